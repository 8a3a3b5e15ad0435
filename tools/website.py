"""The site: every lesson to read, the glossary, the package function by function. `make site` builds it into site/.

Nothing is run. Lessons are shown as they are stored; docstrings are read from the package. What is in site/ goes onto
any static host, and no page asks another host for anything. `LITE=none` leaves out the lessons that run in the
browser, which tools/lite.py builds.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat

import copies
import docstrings
import lessons
import links
import reading
from dev import ROOT, fail, say
from qlearn.style import DARK_FILTER

SITE = ROOT / "site"
DOCS = ROOT / "docs"
LITE = "lite"  # the folder of the lessons that run in the browser

# Pages and pictures keep their places, so that the links between them lead from page to page, too.
KEPT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/teaching.md", "docs/publishing.md")
PICTURES = ("docs/explore_affine.gif", "docs/lessons")
TEMPLATE = "docs/template.ipynb"  # to download

# MathJax 3.2.2, of which these parts are needed, as the package django-static-mathjax has it (without Django).
MATHJAX = (
    *("startup.js", "core.js", "input/tex-base.js", "input/tex/extensions/ams.js"),
    *("input/tex/extensions/textmacros.js", "output/chtml.js", "output/chtml/fonts/tex.js", "a11y/assistive-mml.js"),
)
MATHJAX_FONTS = "output/chtml/fonts/woff-v2"
MATHJAX_SHA256 = "b134e3c9f24167f3d5f4b2389793b4e897f3efaa03d738cd183381a912674af7"

# The theme brings two thousand signs, of which site.css draws the dozen that are used; other languages, other
# people's marks, and maps for its makers.
LEFT_OUT = re.compile(r"/vendor/|fontawesome|/locales/|/images/logo_|macros\.html$|\.map$|/\.buildinfo$")

SIGNS = re.compile(r'@font-face\{[^}]*fontawesome[^}]*\}|(?:\.fa-[\w-]+,?)+\{--fa:"[^"]*"\}')
# Colours of terminals, and parts of Bootstrap that no page has: rules all of whose selectors begin so.
UNUSED = re.compile(
    r"div\.highlight \.-Color|\.(?:accordion|carousel|toast|list-group|card|sd-|progress|spinner|placeholder|"
    r"pagination|btn-group|alert|form-(?:floating|check|select|range|switch)|input-group|nbinput|nboutput|text-bg|"
    r"ratio|offset-|row-cols|badge)"
)
RULE = re.compile(r"(?<=[{}])([^{}@/]+)\{[^{}]*\}")
# Search has a page of its own, and no other page needs the index, a quarter of a megabyte with what reads it.
SEARCH = re.compile(r'\n *<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>')
# What the theme's pages lack: a name for the arrow that unfolds a part, a landmark around the sidebar, and arguments
# that are not half a list of definitions.
REPAIRS = (
    (re.compile(r'\n *<script defer src="[^"]*fontawesome\.js[^"]*"></script>'), ""),
    (re.compile(r'<summary>(?=<span class="toctree-toggle")'), '<summary aria-label="Pages of this part">'),
    (
        re.compile(r'<div id="pst-primary-sidebar"'),
        r'<div role="navigation" aria-label="Site" id="pst-primary-sidebar"',
    ),
    (
        re.compile(r'(<span class="sig-paren">\(</span>)\s*<dl>(.*?)</dl>', re.DOTALL),
        lambda found: _rows(*found.groups()),
    ),
)


def main(arguments: list[str]) -> int:
    """Build the site in site/, or in the folder that is named, whole or not at all."""
    start = time.perf_counter()
    out = Path(*arguments) if arguments else SITE
    build(out, with_lite=os.environ.get("LITE", "") != "none")
    seconds = time.perf_counter() - start
    say(f"Built {out.name}/ in {seconds:.0f} s. To look at it: python -m http.server --directory {out.name}")
    return 0


def build(out: Path, *, with_lite: bool, notebooks: Path = lessons.NOTEBOOKS) -> None:
    """Put the site into a folder.

    Raises:
        SystemExit: something is missing or wrong; the message says what, in a sentence. The folder is as it was.
    """
    need("sphinx", "myst_nb", "sphinx_book_theme", "mathjax")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=out.parent) as folder:
        source, made = Path(folder, "source"), Path(folder, "site")
        alive = build_lite(Path(folder, LITE)) if with_lite else []
        lay_out(source, alive, notebooks)
        run_sphinx(source, made, ["lite"] if alive else [])
        clean(made)
        if alive:
            os.replace(Path(folder, LITE), made / LITE)
        if out.exists():
            os.replace(out, Path(folder, "before"))
        os.replace(made, out)


def need(*modules: str) -> None:
    """Stop where a tool is not installed."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        fail(f"{', '.join(missing)} is not installed. `make site` installs it; by hand: pip install -e .[site]")


def build_lite(folder: Path) -> list[str]:
    """Build the lessons that run in the browser; return their names."""
    import lite  # only where it is wanted: it needs more

    try:
        return lite.build(folder)
    except SystemExit as error:
        fail(f"{error} The site without lessons that run in the browser: make site LITE=none")


# --- what Sphinx is given --------------------------------------------------------------------------------------------


def lay_out(source: Path, alive: Iterable[str], notebooks: Path) -> None:
    """Write all pages, ready for Sphinx. `alive` names the lessons that run in the browser."""
    for name in ("api", "notebooks", "docs", "_static", "extra/pictures", "extra/notebooks"):
        (source / name).mkdir(parents=True)
    for name in KEPT:
        text = links.lead((ROOT / name).read_text(encoding="utf-8"), "")  # which is here
        (source / name).write_text(text.replace(f"]({TEMPLATE})", f"](path:{TEMPLATE})"), encoding="utf-8")
    for name in (*PICTURES, TEMPLATE):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    for name in ("conf.py", "index.md"):
        shutil.copyfile(DOCS / name, source / name)
    for name, page in docstrings.pages():
        (source / "api" / f"{name}.rst").write_text(page, encoding="utf-8")
    for path in lessons.find(notebooks):
        lesson(path, source, path.name in set(alive))
    for name in ("favicon.svg", "site.js"):
        shutil.copyfile(DOCS / name, source / "_static" / name)
    style = (DOCS / "site.css").read_text(encoding="utf-8")
    (source / "_static/site.css").write_text(f":root {{--turned: {DARK_FILTER}}}\n{style}", encoding="utf-8")
    mathjax(source / "_static/mathjax")


def lesson(path: Path, source: Path, alive: bool) -> None:
    """The page of one notebook, its pictures, and the notebook itself, without outputs, to download."""
    try:
        edition = copies.cleared(path.read_bytes())
        notebook = nbformat.read(path, as_version=4)
        doors = doors_of(path.name, alive) if path.name[0].isdigit() else ""
        page = reading.page(notebook, path.stem, doors)
    except (OSError, ValueError, LookupError, AttributeError) as error:
        fail(f"{path.name} cannot be shown: {error}")
    nbformat.write(page.notebook, source / "notebooks" / path.name)
    (source / "extra/notebooks" / path.name).write_bytes(edition)
    for name, picture in page.pictures.items():
        (source / "extra/pictures" / name).write_bytes(picture)


def doors_of(name: str, alive: bool) -> str:
    """The ways to run a lesson, as one paragraph of HTML: in the browser, in Colab, on one's own computer."""
    doors = []
    if alive:
        doors.append(f'<a class="qlearn-run" href="../{LITE}/lab/index.html?path={name}">Run it in the browser</a>')
    if address := links.repository():
        doors.append(f'<a href="{links.colab(address, name)}">Open it in Colab</a>')
    doors.append(f'<a href="{name}" download>Download the notebook</a>')
    return f'<p class="qlearn-doors">{"".join(doors)}</p>'


def mathjax(target: Path) -> None:
    """The parts of MathJax that are used, proved by their hash."""
    package = importlib.util.find_spec("mathjax")
    folders = list(package.submodule_search_locations or []) if package else []
    es5 = Path(folders[0], "static/mathjax/es5") if folders else Path()
    names = [*MATHJAX, *(f"{MATHJAX_FONTS}/{path.name}" for path in sorted((es5 / MATHJAX_FONTS).glob("*.woff")))]
    proof = hashlib.sha256()
    for name in names:
        if not (es5 / name).is_file():
            fail(f"MathJax is not whole: {name} is missing. pip install --force-reinstall django-static-mathjax")
        content = (es5 / name).read_bytes()
        proof.update(name.encode() + b"\0" + content)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    if proof.hexdigest() != MATHJAX_SHA256:
        fail(f"MathJax is not the one that was tested: its sha256 is {proof.hexdigest()}, not {MATHJAX_SHA256}.")


# --- what Sphinx makes of it -----------------------------------------------------------------------------------------


def run_sphinx(source: Path, made: Path, tags: list[str]) -> None:
    """Build the pages; a warning is an error."""
    from sphinx.cmd.build import build_main

    doctrees = source.parent / "doctrees"
    options = [option for tag in tags for option in ("-t", tag)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = build_main(
            ["-q", "-W", "--keep-going", "-j", "2", "-d", str(doctrees), *options, str(source), str(made)]
        )
    if code:
        fail(f"Sphinx has found what must be repaired:\n{said.getvalue().replace(str(source), '').strip()}")


def clean(made: Path) -> None:
    """Leave out what no page uses."""
    for path in sorted(made.rglob("*"), reverse=True):
        if path.is_file() and LEFT_OUT.search(f"/{path.relative_to(made).as_posix()}"):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.suffix == ".html":
            page = repaired(path.read_text(encoding="utf-8"))
            path.write_text(page if path.name == "search.html" else SEARCH.sub("", page), encoding="utf-8")
        elif path.suffix == ".css":
            path.write_text(slimmed(path.read_text(encoding="utf-8")), encoding="utf-8")


def slimmed(style: str) -> str:
    """A style sheet without the rules that no page uses."""

    def used(rule: re.Match[str]) -> str:
        selectors = [part.strip() for part in rule[1].split(",")]
        return "" if all(UNUSED.match(selector) for selector in selectors) else rule[0]

    return RULE.sub(used, SIGNS.sub("", style))


def repaired(page: str) -> str:
    """A page of the theme that everybody can use."""
    for lacking, better in REPAIRS:
        page = lacking.sub(better, page)
    return page


def _rows(parenthesis: str, arguments: str) -> str:
    return parenthesis + arguments.replace("<dd>", '<span class="sig-row">').replace("</dd>", "</span>")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
