"""Stamp into every lesson how Colab opens it and gets qlearn, and into README.md where the site is: `make links`.

The addresses come from one place, `Repository` and `Documentation` in [project.urls] of pyproject.toml. Until they are
set, no link leads nowhere: README.md has none, and lessons say what to upload instead. `make wheel` builds that, the
lessons without outputs. A link leads to the lesson as it is stored, so it says how to clear the outputs, which would
answer every prediction.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat

import lessons
from dev import ROOT

# The last paragraph of the first cell, and the import in the first cell with code, as an earlier stamp left them.
INVITATION = re.compile(r"\n\n(?:\*In Colab:\*|\[Open in Colab\]|<details><summary>In Colab</summary>).*\Z")
IMPORT = re.compile(
    r"^import qlearn$|^try:\n    import qlearn\nexcept ModuleNotFoundError:.*\n    %pip .*\n    import qlearn$",
    re.MULTILINE,
)


# The line under the title of README.md.
LEAD = re.compile(r"(?<=\A# qlearn\n\n)\*\*\[Read every lesson.*\n\n")


def main() -> int:
    """Stamp all lessons, their template and README.md; say which ones changed."""
    for path in [*numbered(), ROOT / "docs/template.ipynb"]:
        notebook = nbformat.read(path, as_version=4)
        if stamp(notebook, path.name, repository(), wheel()):
            lessons.store(notebook, path)
            print(f"{path.name}: stamped")
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    if (after := lead(before, site())) != before:
        readme.write_text(after, encoding="utf-8")
        print("README.md: stamped")
    return 0


def numbered() -> list[Path]:
    """The lessons without the glossary, which has no code."""
    return [path for path in lessons.find() if path.name[0].isdigit()]


def repository() -> str:
    """Where the project is published, "https://github.com/owner/name", or nothing."""
    return _address("Repository")


def site() -> str:
    """Where the site of `make site` is published, or nothing."""
    return _address("Documentation")


def _address(name: str) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get(name, "").rstrip("/")


def lead(readme: str, address: str) -> str:
    """README.md with a first line that leads to the site; without it where the site has no address."""
    line = f"**[Read every lesson, and run some of them in the browser]({address}/)**, with nothing installed.\n\n"
    title, gap, rest = LEAD.sub("", readme).partition("# qlearn\n\n")
    return f"{title}{gap}{line if address else ''}{rest}"


def wheel() -> str:
    """The name of the file that `make wheel` builds."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "qlearn/__init__.py").read_text("utf-8"), re.MULTILINE)
    return f"qlearn-{version}-py3-none-any.whl"


def stamp(notebook: Any, name: str, address: str, file: str) -> bool:
    """Write invitation and import into one lesson. Returns whether that changed it; its outputs stay as they are."""
    opening = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if address:
        help_ = (
            f'<a href="{colab(address, name)}">Open this lesson in Colab</a>, then choose '
            "<i>Edit</i>, <i>Clear all outputs</i>: the stored ones answer every prediction."
        )
        package = f"git+{address}"
    else:
        help_ = (
            f"<code>make wheel</code> makes <code>dist/{file}</code> and <code>dist/lessons/</code>. Upload this "
            "lesson from there, then the wheel with the folder symbol on the left."
        )
        package = file
    invitation = (  # one folded line; inside HTML there is no Markdown
        f"<details><summary>In Colab</summary>{help_} The cell below installs qlearn and changes nothing that Colab "
        "has.</details>"
    )
    try_it = (
        "try:\n    import qlearn\nexcept ModuleNotFoundError:  # as in Colab\n"
        f"    %pip install --quiet {package}\n    import qlearn"
    )
    before = opening.source, first.source
    opening.source = INVITATION.sub("", opening.source) + "\n\n" + invitation
    first.source = IMPORT.sub(lambda _: try_it, first.source, count=1)
    return (opening.source, first.source) != before


def colab(address: str, name: str) -> str:
    """Where Colab opens a lesson of a repository on GitHub."""
    page = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    return f"{page}/blob/main/notebooks/{name}"


if __name__ == "__main__":
    sys.exit(main())
