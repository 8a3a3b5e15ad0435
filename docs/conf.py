"""How Sphinx builds the site. tools/website.py lays the pages out beside this file and calls it: `make site`."""

from __future__ import annotations

from typing import Any

import docstrings  # tools/docstrings.py: website.py has put tools/ into the path

project = "qlearn"
html_title = "qlearn"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["README.md", "docs/template.ipynb"]  # parts of one are in index.md, the other is to download

# Nothing is run: outputs are stored, and tests compare them with what the lessons print.
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
myst_heading_slug_func = "docstrings.anchor"
suppress_warnings = ["myst.header"]  # the words of the glossary are headings of the third level

autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
add_module_names = False

# Only what the formulas need, half the size of MathJax in one file. A lesson writes \text{zero\_point}, which is
# textmacros; screen readers are given MathML.
mathjax_path = "mathjax/startup.js"
mathjax3_config = {
    "loader": {"load": ["input/tex-base", "[tex]/ams", "[tex]/textmacros", "output/chtml", "a11y/assistive-mml"]},
    "tex": {"packages": ["base", "ams", "textmacros"]},
    "options": {"enableMenu": False},
}

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_extra_path = ["extra"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_copy_source = False  # lessons are offered as notebooks instead
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "show_toc_level": 2,
    "search_bar_text": "Search",
    "footer_content_items": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def setup(app: Any) -> None:
    """Docstrings are turned into what Sphinx reads."""
    app.connect("autodoc-process-docstring", lambda app, what, name, thing, options, lines: as_rst(lines))


def as_rst(lines: list[str]) -> None:
    lines[:] = docstrings.rst("\n".join(lines))
