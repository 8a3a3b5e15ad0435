"""The site, from the stored lessons and the docstrings: `make site`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from dev import ROOT

sys.path[:0] = [str(ROOT)]

import copies
import docstrings
import lessons
import reading

SITE = ROOT / "site"


def main() -> int:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "site")
        lay_out(source)
        build(source, out)
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.move(out, SITE)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


def lay_out(source: Path) -> None:
    for name in ("docs/lessons",):
        shutil.copytree(ROOT / name, source / name)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/teaching.md", "docs/publishing.md", "docs/explore_affine.gif", "docs/template.ipynb", "tools/docstrings.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    text = (source / "CONTRIBUTING.md").read_text().replace("(docs/template.ipynb)", "(path:docs/template.ipynb)")
    (source / "CONTRIBUTING.md").write_text(text)
    for name in ("conf.py", "index.md"):
        shutil.copyfile(ROOT / "docs" / name, source / name)
    for name in ("api", "notebooks", "_static/mathjax", "extra/pictures", "extra/notebooks"):
        (source / name).mkdir(parents=True)
    shutil.copyfile(ROOT / "docs/site.css", source / "_static/site.css")
    (source / "api/index.rst").write_text(docstrings.contents())
    for file, (title, modules) in docstrings.PAGES.items():
        (source / f"api/{file}.rst").write_text(docstrings.page(title, modules))
    for path in lessons.find():
        notebook = nbformat.read(path, as_version=4)
        doors = f'<p class="qlearn-doors"><a href="{path.name}" download>Download the notebook</a></p>' if path.name[0].isdigit() else ""
        page = reading.page(notebook, path.stem, doors)
        nbformat.write(page.notebook, source / "notebooks" / path.name)
        for name, data in page.pictures.items():
            (source / "extra/pictures" / name).write_bytes(data)
        (source / "extra/notebooks" / path.name).write_bytes(copies.cleared(path.read_bytes()))
    import mathjax
    es5 = Path(next(iter(mathjax.__path__)), "static/mathjax/es5")
    for name in ("startup.js", "core.js", "input/tex-base.js", "input/tex/extensions/ams.js", "input/tex/extensions/textmacros.js", "output/chtml.js", "output/chtml/fonts/tex.js", "a11y/assistive-mml.js"):
        target = source / "_static/mathjax" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(es5 / name, target)
    shutil.copytree(es5 / "output/chtml/fonts/woff-v2", source / "_static/mathjax/output/chtml/fonts/woff-v2")


def build(source: Path, out: Path) -> None:
    from sphinx.cmd.build import build_main
    code = build_main(["-q", "-j", "2", "-W", "--keep-going", "-b", "html", str(source), str(out)])
    if code:
        raise SystemExit("Sphinx has found something to repair, above.")


if __name__ == "__main__":
    sys.exit(main())
