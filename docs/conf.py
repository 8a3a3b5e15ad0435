"""How Sphinx builds the site. tools/website.py lays the pages out and calls it."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "tools")]

import docstrings

project = "qlearn"
html_title = "qlearn"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["README.md", "docs/template.ipynb", "tools"]

nb_execution_mode = "off"  # outputs are stored, and compared with what the lessons print by other means
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
myst_heading_slug_func = "docstrings.anchor"
suppress_warnings = ["myst.header"]  # the words of the glossary are headings of the third level

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
add_module_names = False

mathjax_path = "mathjax/startup.js"
mathjax3_config = {
    "loader": {"load": ["input/tex-base", "[tex]/ams", "[tex]/textmacros", "output/chtml", "a11y/assistive-mml"]},
    "tex": {"packages": ["base", "ams", "textmacros"]},
    "options": {"enableMenu": False},
}

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "home_page_in_toc": True,
    "use_download_button": False,
    "show_toc_level": 2,
    "search_bar_text": "Search",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def setup(app):
    app.connect("autodoc-process-docstring", as_rst)


def as_rst(app, what, name, thing, options, lines):
    lines[:] = docstrings.rst("\n".join(lines))
