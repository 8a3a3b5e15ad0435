"""How the site is made: a notebook becomes a page, a docstring becomes reStructuredText, and nothing is left half done."""

import copy
import importlib.util
import os
import sys
import tomllib
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import dev
import docstrings
import lessons
import links
import reading
import website
from links_of_site import problems

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def lesson():
    """A small lesson with a picture, its words, an exercise and a folded cell."""
    known = {"image/png": {"alt": 'x < "y"', "width": 700, "height": 300}}
    words = '<details class="qlearn-words">x</details><style>a {}</style>'
    asked = "<pre>01.C: a table\n… 01.C not attempted yet. Replace the three dots above.\n  Stuck?</pre>"
    cells = [
        new_markdown_cell("# 01 Name\n\n*45 minutes*\n\n<details><summary>In Colab</summary>x</details>"),
        new_code_cell("try:\n    import qlearn\nexcept ModuleNotFoundError:  # x\n    %pip install x\n    import qlearn"),
        new_code_cell("plots.x()", outputs=[
            new_output("display_data", {"image/png": PIXEL, "text/plain": "x"}, metadata=known),
            new_output("display_data", {"text/html": words}),
        ]),
        new_code_cell("exercises.check()", outputs=[new_output("execute_result", {"text/html": asked, "text/plain": "x"})]),
        new_code_cell("1", metadata={"jupyter": {"source_hidden": True}, "tags": ["nbval-ignore-output"]}),
    ]  # fmt: skip
    code = [cell for cell in cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
    return new_notebook(cells=cells)


# --- a notebook becomes a page ---------------------------------------------------------------------------------------


def test_a_page_is_to_be_read():
    before = lesson()
    kept = copy.deepcopy(before)
    page = reading.page(before, "01_name", "<p>doors</p>")
    title, first, picture, exercise, folded = page.notebook.cells
    assert title.source == "# 01 Name\n\n<p>doors</p>\n\n*45 minutes*"
    assert first.source == "import qlearn"
    shown, words = picture.outputs
    assert shown["data"] == {
        "text/html": '<img class="qlearn-picture dark-light" src="../pictures/01_name-01.png" alt="x &lt; &quot;y&quot;" '
        'width="700" height="300" loading="lazy">'
    }
    assert words["data"] == {"text/html": '<details class="qlearn-words">x</details>'}
    assert exercise.outputs[0]["data"] == {"text/html": f"<pre>01.C: a table\n01.C {reading.TO_SOLVE[3:]}</pre>"}
    assert folded.metadata == {"tags": ["nbval-ignore-output", "hide-input"]}
    assert page.pictures["01_name-01.png"].startswith(b"\x89PNG")
    assert before == kept, "the notebook itself was changed"


def test_a_page_needs_stored_outputs():
    unrun = lesson()
    unrun.cells[2].execution_count = None
    with pytest.raises(ValueError, match=r"code cell 2 of 01_name\.ipynb has no stored output: make lessons LESSON=01"):
        reading.page(unrun, "01_name", "")


def test_every_checker_that_nobody_asked_is_recognised():
    """What the lessons have stored, in their own words."""
    for path in lessons.find():
        notebook = nbformat.read(path, as_version=4)
        before, after = html_of(notebook), html_of(reading.page(notebook, path.stem, "").notebook)
        assert "not attempted" not in after and "<style" not in after
        assert after.count("is yours to solve") == before.count("not attempted yet")


def html_of(notebook):
    """All HTML that the cells have given."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def test_doors(monkeypatch):
    monkeypatch.setattr(links, "repository", lambda: "")
    assert "Download" in website.doors_of("01_a.ipynb", False)
    assert "lite/lab/index.html?path=01_a.ipynb" not in website.doors_of("01_a.ipynb", False)
    assert "../lite/lab/index.html?path=01_a.ipynb" in website.doors_of("01_a.ipynb", True)
    assert "Colab" not in website.doors_of("01_a.ipynb", True)
    monkeypatch.setattr(links, "repository", lambda: "https://github.com/owner/name")
    colab = "https://colab.research.google.com/github/owner/name/blob/main/notebooks/01_a.ipynb"
    assert f'href="{colab}"' in website.doors_of("01_a.ipynb", False)


# --- a docstring becomes reStructuredText ----------------------------------------------------------------------------

DOCSTRING = """Make y of x.

    y = a_x * 2      if |x| > 0
      = 0            else

It sees `x.shape` and calls `quantize`, see https://a.b/c_d*e_f, p. 3.

Args:
    x, y: numbers_of
        a tensor.

    z: another.
Raises:
    ValueError: never.
Cost: O(n),
    or less.

>>> f(1)
2
"""

RST = r"""Make y of x.

::

    y = a_x * 2      if |x| > 0
      = 0            else

It sees ``x.shape`` and calls :py:obj:`quantize <qlearn.quantize>`, see https://a.b/c_d*e_f, p. 3.

.. rubric:: Args

``x``, ``y``
    numbers\_of
    a tensor.

``z``
    another.

.. rubric:: Raises

``ValueError``
    never.

.. rubric:: Cost

O(n),
or less.

>>> f(1)
2
"""


def test_a_docstring_keeps_its_formulas_and_lists():
    def paragraphs(lines):
        return [line for line in lines if line.strip()]

    assert paragraphs(docstrings.rst(DOCSTRING)) == paragraphs(RST.splitlines())


def test_every_module_that_exports_something_has_its_page():
    import qlearn

    pages = [module for _, modules in docstrings.PAGES.values() for module in modules]
    assert len(set(pages)) == len(pages)
    names = {name for module in pages for name in docstrings.public(module)}
    exported = [name for name in qlearn.nn.__all__ if callable(getattr(qlearn.nn, name))]  # not a table
    missing = [f"qlearn.nn.{name}" for name in exported if f"qlearn.nn.{name}" not in names]
    missing += [
        f"qlearn.{name}" for name in qlearn.__all__ if callable(getattr(qlearn, name)) and f"qlearn.{name}" not in names
    ]
    assert missing == []
    modules = {name.split(".")[0] for name in pages}
    assert {name for name in qlearn.__all__ if not callable(getattr(qlearn, name))} <= modules


# --- what can go wrong -----------------------------------------------------------------------------------------------


def refused(call, *arguments, **named):
    """What is said when it stops: one sentence or two, on one line."""
    with pytest.raises(SystemExit) as stopped:
        call(*arguments, **named)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "myst_nb" else name)
    assert refused(website.build, tmp_path / "site", with_lite=False).startswith("myst_nb is not installed.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "installs"), [("==0.0.1", True), (f"=={nbformat.__version__}", False)])
def test_tools_of_another_version_are_installed(monkeypatch, version, installs):
    """nbformat stands for them: it is there."""
    calls, ordinary = [], dev.subprocess.call

    def call(command, **named):
        calls.append("pip" in command)
        return 0 if "pip" in command else ordinary(command, **named)

    monkeypatch.setattr(dev, "environment", lambda: sys.executable)
    monkeypatch.setattr(dev, "project", lambda: {"optional-dependencies": {"site": [f"nbformat{version}"]}})
    monkeypatch.setattr(dev.subprocess, "call", call)
    assert dev.site_environment() == sys.executable
    assert calls == [False, True][: 1 + installs]


@pytest.fixture
def earlier(monkeypatch, tmp_path):
    """A site that is there, notebooks of one's own, and tools that are installed."""
    monkeypatch.setattr(website, "need", lambda *names: None)
    monkeypatch.setattr(docstrings, "pages", lambda: iter([]))
    monkeypatch.setattr(website, "mathjax", lambda folder: None)
    site, notebooks = tmp_path / "out/site", tmp_path / "notebooks"
    site.mkdir(parents=True)
    notebooks.mkdir()
    (site / "index.html").write_text("earlier")
    return site, notebooks


def as_it_was(site):
    return [path.name for path in site.parent.iterdir()] == ["site"] and (site / "index.html").read_text() == "earlier"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cells": []}'])
def test_a_file_that_is_no_notebook(earlier, content):
    site, notebooks = earlier
    (notebooks / "01_a.ipynb").write_text(content)
    said = refused(website.build, site, with_lite=False, notebooks=notebooks)
    assert said.startswith("01_a.ipynb cannot be shown: ")
    assert as_it_was(site)


def test_a_notebook_without_outputs(earlier):
    site, notebooks = earlier
    unrun = lesson()
    unrun.cells[1].execution_count = None
    nbformat.write(unrun, notebooks / "01_a.ipynb")
    said = refused(website.build, site, with_lite=False, notebooks=notebooks)
    assert said == "01_a.ipynb cannot be shown: code cell 1 of 01_a.ipynb has no stored output: make lessons LESSON=01"
    assert as_it_was(site)


def test_lessons_in_the_browser_that_cannot_be_built(earlier, monkeypatch):
    def build(out):
        out.mkdir()
        raise SystemExit("npm is not installed.")

    monkeypatch.setitem(sys.modules, "lite", SimpleNamespace(build=build, __spec__=object()))
    site, notebooks = earlier
    said = refused(website.build, site, with_lite=True, notebooks=notebooks)
    assert said == "npm is not installed. The site without lessons that run in the browser: make site LITE=none"
    assert as_it_was(site)


def test_a_build_that_fails_leaves_the_earlier_site(earlier, monkeypatch):
    site, notebooks = earlier
    monkeypatch.setattr(website, "run_sphinx", lambda source, made, tags: (made.mkdir(), dev.fail("It failed.")))
    assert refused(website.build, site, with_lite=False, notebooks=notebooks) == "It failed."
    assert as_it_was(site)


def test_a_new_site_takes_the_place_of_the_earlier_one(earlier, monkeypatch):
    site, notebooks = earlier
    nbformat.write(lesson(), notebooks / "01_a.ipynb")

    def sphinx(source, made, tags):
        os.replace(source / "extra", made)

    monkeypatch.setattr(website, "run_sphinx", sphinx)
    website.build(site, with_lite=False, notebooks=notebooks)
    assert sorted(path.name for path in site.rglob("*.*")) == ["01_a-01.png", "01_a.ipynb"]
    assert [path.name for path in site.parent.iterdir()] == ["site"]


def test_another_mathjax_is_refused(monkeypatch, tmp_path):
    pytest.importorskip("mathjax", reason="the site's tools are not installed")
    website.mathjax(tmp_path / "a")
    monkeypatch.setattr(website, "MATHJAX_SHA256", "0" * 64)
    assert "MathJax is not the one that was tested" in refused(website.mathjax, tmp_path / "b")
    monkeypatch.setattr(website, "MATHJAX", (*website.MATHJAX, "none.js"))
    assert "none.js is missing" in refused(website.mathjax, tmp_path / "c")


# --- the theme's pages are repaired ----------------------------------------------------------------------------------


def test_what_the_theme_lacks():
    page = (
        '<head>\n  <script defer src="../_static/scripts/fontawesome.js?digest=1"></script></head>'
        '<div id="pst-primary-sidebar"></div><summary><span class="toctree-toggle"></span></summary>'
        '<summary>Hint</summary><span class="sig-paren">(</span>\n<dl>\n<dd>x,</dd>\n</dl>\n<dl><dd>y</dd></dl>'
    )
    assert website.repaired(page) == (
        '<head></head><div role="navigation" aria-label="Site" id="pst-primary-sidebar"></div>'
        '<summary aria-label="Pages of this part"><span class="toctree-toggle"></span></summary>'
        '<summary>Hint</summary><span class="sig-paren">(</span>\n<span class="sig-row">x,</span>\n\n<dl><dd>y</dd></dl>'
    )


def test_a_style_sheet_is_slimmed():
    style = "a{b:c}.card{b:c}.card:hover,.sd-x{b:c}.card,p{b:c}@media print{.toast{b:c}.note{b:c}}.cards-x p{b:c}"
    assert website.slimmed(style) == "a{b:c}.card,p{b:c}@media print{.note{b:c}}"
    signs = '@font-face{font-family:x;src:url(../vendor/fontawesome/x.woff2)}.fa-x,.fa-y{--fa:"1"}.fa-lg{b:c}'
    assert website.slimmed(signs) == ".fa-lg{b:c}"


# --- the tests of the built site can fail ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<a href="none.html">x</a>', "a.html: links to none.html, which is not there"),
        ('<a href="b.html#none">x</a>', "a.html: links to b.html#none, which is not there"),
        ('<a href="#none">x</a>', "a.html: links to #none, which is not there"),
        (
            '<script src="https://elsewhere.org/x.js"></script>',
            "a.html: loads https://elsewhere.org/x.js, which is not here",
        ),
        ('<script src="//elsewhere.org/x.js"></script>', "a.html: loads //elsewhere.org/x.js, which is not here"),
        ('<link rel="stylesheet" href="none.css">', "a.html: loads none.css, which is not here"),
        ('<img src="b.html">', "a.html: no alt text for b.html"),
        ('<img src="b.html" alt=" ">', "a.html: no alt text for b.html"),
    ],
)
def test_what_is_wrong_with_a_page_is_found(tmp_path, page, problem):
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    (tmp_path / "a.html").write_text(page)
    assert problems(tmp_path) == [problem]


def test_nothing_is_wrong_with_a_good_page(tmp_path):
    (tmp_path / "b.html").write_text('<p id="here é"></p>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here%20%C3%A9">x</a><a href="https://a.org">y</a><a href=".">z</a>'
    )
    (tmp_path / "index.html").write_text('<img src="data:image/png;base64,x" alt="x">')
    assert problems(tmp_path) == []
    (tmp_path / "a.css").write_text(
        '@import "https://elsewhere.org/a.css"; a {background: url(https://elsewhere.org/x)}'
    )
    assert len(problems(tmp_path)) == 2


# --- where README.md leads -------------------------------------------------------------------------------------------

README = (dev.ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_leads_to_the_site_once_it_has_an_address():
    assert links.lead(README, links.site()) == README, "make links"
    urls = tomllib.loads((dev.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    assert ("Read every lesson" in README) == ("Documentation" in urls)


def test_the_first_line_of_readme_comes_and_goes():
    led = links.lead(README, "https://owner.github.io/qlearn")
    assert led.startswith("# qlearn\n\n**[Read every lesson")
    assert led.splitlines()[2].count("(https://owner.github.io/qlearn/)") == 1
    assert links.lead(led, "https://other.org").splitlines()[2].count("https://other.org/") == 1
    assert links.lead(led, "") == links.lead(README, "")
