"""A lesson as a page to read: its pictures in files, its doors to where it can be run, nothing that needs a kernel."""

from __future__ import annotations

import base64
import copy
import html
import re
from dataclasses import dataclass, field
from typing import Any

import links

# What a checker says of an exercise that nobody has tried yet, up to the end of its box.
UNTRIED = re.compile(r"… (\d\d\.\w+) not attempted yet\.[^<]*")
TO_SOLVE = r"\1 is yours to solve: where the lesson runs, your answer is checked here."
# JupyterLab's pictures on a dark page; here the page's own style sheet does that.
STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A notebook to be shown, and its pictures: {name: PNG}."""

    notebook: Any
    pictures: dict[str, bytes] = field(default_factory=dict)


def page(notebook: Any, stem: str, doors: str) -> Page:
    """What is shown of a stored notebook. `doors` is HTML, placed under the title of a lesson.

    Raises:
        ValueError: a code cell has not been run, and the message says which; or there is no text at all.
    """
    shown = copy.deepcopy(notebook)
    pictures: dict[str, bytes] = {}
    code = [cell for cell in shown.cells if cell.cell_type == "code"]
    if unrun := [number for number, cell in enumerate(code, 1) if not cell.execution_count]:
        raise ValueError(f"code cell {unrun[0]} of {stem}.ipynb has no stored output: make lessons LESSON={stem[:2]}")
    if doors:
        opening = next((cell for cell in shown.cells if cell.cell_type == "markdown"), None)
        if opening is None:
            raise ValueError("it has no title")
        title, _, rest = links.INVITATION.sub("", opening.source).partition("\n")
        opening.source = f"{title}\n\n{doors}\n{rest}"
    for cell in code:
        cell.source = links.IMPORT.sub("import qlearn", cell.source)
        folded = cell.metadata.pop("jupyter", {}).get("source_hidden")
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), *(["hide-input"] if folded else [])]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1:02}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                output["data"] = {"text/html": _image(name, output.metadata["image/png"])}
            elif "text/html" in data:
                output["data"] = {"text/html": _readable(data["text/html"])}
    return Page(shown, pictures)


def _image(name: str, known: Any) -> str:
    """A picture that keeps its ratio, is fetched when it comes into view, and says in words what it shows."""
    size = f'width="{known["width"]}" height="{known["height"]}"'
    alt = html.escape(known["alt"], quote=True)
    return f'<img class="qlearn-picture dark-light" src="../pictures/{name}" alt="{alt}" {size} loading="lazy">'


def _readable(output: str) -> str:
    """HTML that a cell has given, without JupyterLab's styles and without what only a kernel can do."""
    return UNTRIED.sub(TO_SOLVE, STYLE.sub("", output))
