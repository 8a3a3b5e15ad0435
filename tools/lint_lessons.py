"""The house rules for lessons, each a function from a notebook to its problems: `python tools/lint_lessons.py`.

A notebook is the dictionary that its JSON holds. A rule reads and never changes it. `RULES` must hold;
`advice` is for what may have a good reason.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lessons import IGNORED, NOTEBOOKS, WIDGET_VIEW, exercise_of, find, text_of

Notebook = dict[str, Any]
Targets = Mapping[str, set[str]]  # what a lesson may link to: path, as seen from notebooks/ → the anchors in it
Rule = Callable[[Notebook], Iterator[str]]

SECTIONS = ("In the field", "Recap", "Quiz", "References")
NO_FRAME = ("glossary.ipynb",)
NOT_OURS = ("my_lessons", "build", "dist")  # made from the lessons, and perhaps changed by a learner
CELLS, WORDS, LINES, EXERCISES = (40, 80), (1200, 2500), (100, 250), (3, 5)  # lines of at most WIDTH
LESSON_NUMBERS = re.compile(r"\blessons?\s+(\d\d(?:(?:\s*(?:,|-|–|to|and|or)\s*)+\d\d)*)", re.IGNORECASE)
WIDTH = 80  # characters of code: longer lines are cut off on a page 800 pixels wide
FOLDED = 75  # characters of a folded cell's first line: three dots follow it


def lint(notebook: Notebook, name: str, targets: Targets) -> list[str]:
    """Every problem of one notebook, whose file is called `name`."""
    rules = RULES + (() if name in NO_FRAME else FRAME_RULES)
    problems = [problem for rule in rules for problem in rule(notebook)]
    return problems + [problem for rule in LINK_RULES for problem in rule(notebook, name, targets)]


# --- the frame: what every lesson has --------------------------------------------------------------------------------


def opening(notebook: Notebook) -> Iterator[str]:
    """The first cell says what the lesson is, what it gives, what it needs and how long it takes."""
    cells = notebook["cells"]
    if not cells or cells[0]["cell_type"] != "markdown":
        yield "cell 1 must be markdown: the title, what you will be able to do, needs, minutes"
        return
    text = source_of(cells[0])
    if not text.startswith("# "):
        yield "cell 1 must start with the title, '# …'"
    for wanted, pattern in {
        "a paragraph 'What you will be able to do'": r"what you will be able to do",
        "a paragraph 'Needs'": r"\bneeds\b",
        "its time, 'NN minutes'": r"\b\d+ minutes\b",
    }.items():
        if not re.search(pattern, text, re.IGNORECASE):
            yield f"cell 1 lacks {wanted}"
    titles = [title for _, level, title in headings(notebook) if level == 1]
    if len(titles) > 1:
        yield f"only the title is a heading of level 1, and here are {len(titles)}: {titles}"


def first_code_cell(notebook: Notebook) -> Iterator[str]:
    """The first code cell imports qlearn and asserts its version."""
    for number, source in code_cells(notebook):
        tree = parse(source)
        nodes = list(ast.walk(tree)) if tree else []
        if not any(isinstance(n, ast.Import) and any(a.name == "qlearn" for a in n.names) for n in nodes):
            yield f"cell {number}, the first with code, must import qlearn"
        if not any(isinstance(n, ast.Assert) and "__version__" in ast.dump(n) for n in nodes):
            yield f"cell {number}, the first with code, must assert qlearn.__version__"
        return
    yield "there is no code"


def sections(notebook: Notebook) -> Iterator[str]:
    """In the field, recap, quiz and references are there, in this order."""
    titles = [title for _, level, title in headings(notebook) if level >= 2]
    places = [next((i for i, t in enumerate(titles) if t.lower() == name.lower()), None) for name in SECTIONS]
    for name, place in zip(SECTIONS, places, strict=True):
        if place is None:
            yield f"there is no section '## {name}'"
    found = [place for place in places if place is not None]
    if found != sorted(found):
        yield f"the last sections must come in this order: {', '.join(SECTIONS)}"


def quiz(notebook: Notebook) -> Iterator[str]:
    """The quiz is one cell, `exercises.quiz("03")`, whose five questions are stored, each with choices to unfold."""
    cells = [cell for _, cell in cells_of(notebook, "code") if "exercises.quiz(" in source_of(cell)]
    if len(cells) != 1:
        yield f"there must be one cell with exercises.quiz(…), and here are {len(cells)}"
        return
    stored = "".join("".join(output.get("data", {}).get("text/html", "")) for output in cells[0].get("outputs", []))
    if len(numbers := re.findall(r"<b>\d\.</b>", stored)) != 5:
        yield f"the quiz must have five questions, and shows {len(numbers)}"
    if stored.count("<details>") < 2 * len(numbers):
        yield "a question of the quiz has fewer than two choices"


# --- what is stored --------------------------------------------------------------------------------------------------


def valid_format(notebook: Notebook) -> Iterator[str]:
    """The file is a valid notebook of format 4.5, for a Python kernel of any version."""
    import nbformat

    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {str(error).splitlines()[0]}"
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) != (4, 5):
        yield "the notebook's format must be 4.5"
    metadata = notebook.get("metadata", {})
    if metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel must be called python3"
    if "version" in metadata.get("language_info", {}):
        yield "language_info holds Python's exact version, which differs from machine to machine"


def no_stored_state(notebook: Notebook) -> Iterator[str]:
    """No widget state, no live widget, no time stamp."""
    if "widgets" in notebook.get("metadata", {}):
        yield "metadata.widgets is stored, and GitHub refuses to show such a notebook"
    for number, cell in cells_of(notebook):
        for name in ("execution", "ExecuteTime"):
            if name in cell.get("metadata", {}):
                yield f"cell {number} stores the time of its execution"
        if any(WIDGET_VIEW in output.get("data", {}) for output in cell.get("outputs", [])):
            yield f"cell {number} stores a live widget, which hides the picture beside it in a reopened file"


def execution_counts(notebook: Notebook) -> Iterator[str]:
    """The counts are 1 … n, as after one run from top to bottom."""
    expected = 1
    for number, cell in cells_of(notebook, "code"):
        if not source_of(cell).strip():
            yield f"cell {number} is an empty code cell"
            continue
        if cell.get("execution_count") != expected:
            yield f"cell {number} has execution count {cell.get('execution_count')}, expected {expected}"
            return
        for output in cell.get("outputs", []):
            if output["output_type"] == "execute_result" and output.get("execution_count") != expected:
                yield f"cell {number} has an output with execution count {output.get('execution_count')}"
        expected += 1


def no_errors(notebook: Notebook) -> Iterator[str]:
    """No traceback and nothing from stderr is stored."""
    for number, cell in cells_of(notebook, "code"):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield f"cell {number} stores an error: {output.get('ename')}"
            if output["output_type"] == "stream" and output.get("name") == "stderr":
                yield f"cell {number} stores stderr"


def alt_text(notebook: Notebook) -> Iterator[str]:
    """Every picture is also said in words: in text/plain, and the same in the picture's alt text."""
    for number, cell in cells_of(notebook):
        for output in cell.get("outputs", []):
            if not {"image/png", "image/jpeg", "image/svg+xml"} & set(output.get("data", {})):
                continue
            said = words("".join(output["data"].get("text/plain", "")))
            if said.startswith("<") or len(said.split()) < 4:
                yield f"cell {number} shows a picture whose text/plain is no sentence: {said[:40]!r}"
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt is not None and words(alt) != said:
                yield f"cell {number} has an alt text that differs from its text/plain: {alt[:40]!r}"
        if cell["cell_type"] == "markdown":
            text = without_code(source_of(cell))
            if re.search(r"!\[\s*\]\(", text) or re.search(r"<img\b(?![^>]*\balt=[\"'][^\"'])", text):
                yield f"cell {number} has an image without alt text"


# --- what the code may do --------------------------------------------------------------------------------------------


def no_path_tricks(notebook: Notebook) -> Iterator[str]:
    """No sys.path, no change of folder; only the first code cell may install anything."""
    for index, (number, source) in enumerate(code_cells(notebook)):
        for trick in (r"\bsys\.path\b", r"\bos\.chdir\b", r"^\s*%cd\b"):
            if found := re.search(trick, source, re.MULTILINE):
                yield f"cell {number} uses {found[0].strip()}"
        if index > 0 and re.search(r"^\s*[%!]\s*(pip|conda|uv|apt)\b|-m[\"', ]+pip\b", source, re.MULTILINE):
            yield f"cell {number} installs something, which only the first code cell may"


def markers(notebook: Notebook) -> Iterator[str]:
    """nbval's marks are tags, where no reader stumbles over them, and leave nothing unchecked but an output."""
    for number, cell in cells_of(notebook, "code"):
        if found := re.search(r"\b(NBVAL_\w+|PYTEST_VALIDATE_\w+)", source_of(cell)):
            yield f"cell {number}: write {found[1]} as a tag of the cell, not into its code: tags = [{IGNORED!r}]"
        for tag in cell.get("metadata", {}).get("tags", []):
            if tag != IGNORED and (tag.startswith(("nbval-", "pytest-")) or tag == "raises-exception"):
                yield f"cell {number} has the tag {tag}, which leaves the cell unchecked"


def width(notebook: Notebook) -> Iterator[str]:
    """Code fits a narrow page, in cells and in solutions."""
    for number, cell in cells_of(notebook):
        text = source_of(cell)
        blocks = [text] if cell["cell_type"] == "code" else re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
        for line in "\n".join(blocks).splitlines():
            if len(line) > WIDTH:
                yield f"cell {number} has a line of {len(line)} characters of code, and {WIDTH} fit: {line[:30]!r}"
        first = text.split("\n", 1)[0]
        if is_folded(cell) and len(first) > FOLDED:
            yield f"cell {number} is folded, and its first line of {len(first)} characters is cut off after {FOLDED}"


def ignored_is_asserted(notebook: Notebook) -> Iterator[str]:
    """A cell whose output is not compared is followed by one that asserts something about it, and is compared."""
    cells = [(number, cell) for number, cell in cells_of(notebook, "code") if source_of(cell).strip()]
    for (number, cell), (_, after) in pairwise([*cells, (0, {"source": ""})]):
        if not is_ignored(cell):
            continue
        tree = parse(source_of(after))
        if is_ignored(after) or tree is None or not any(isinstance(n, ast.Assert) for n in ast.walk(tree)):
            yield f"cell {number} is not compared, so the next code cell must assert something about its result"


def exercises(notebook: Notebook) -> Iterator[str]:
    """An exercise is a stub of `...` that ends with its checker, and is stored as not attempted."""
    for number, cell in cells_of(notebook, "code"):
        source = source_of(cell)
        if not re.search(r"\bexercises\.(check|challenge)\(", source):
            continue
        found = exercise_of(source)
        if found is None:
            yield f'cell {number}: the last line must be exercises.check("NN.k", name)'
            continue
        tree = parse(source)
        stub = next((n for n in tree.body if getattr(n, "name", None) == found[1]), None) if tree else None
        if stub is None:
            yield f"cell {number}: exercise {found[0]} checks {found[1]}, which the cell does not define"
        elif "Constant(value=Ellipsis)" not in ast.dump(stub):
            yield f"cell {number}: the stub of exercise {found[0]} has no '...'"
        if "not attempted" not in text_of(cell):
            yield f"cell {number}: exercise {found[0]} is not stored as 'not attempted'"


# --- links -----------------------------------------------------------------------------------------------------------


def links(notebook: Notebook, name: str, targets: Targets) -> Iterator[str]:
    """Every local link leads to a file that is there, and to a heading or anchor in it."""
    anchors = {**targets, name: anchors_of(notebook)}
    for number, cell in cells_of(notebook, "markdown"):
        attached = cell.get("attachments", {})
        for link in links_in(source_of(cell)):
            if link.startswith("attachment:"):
                if link.removeprefix("attachment:") not in attached:
                    yield f"cell {number} shows {link}, which is not attached"
                continue
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                if link.endswith(".ipynb") and "qlearn" in link and link.rpartition("/")[2] not in anchors:
                    yield f"cell {number} links to a lesson that is not there: {link}"
                continue
            path, _, anchor = link.partition("#")
            path = os.path.normpath(unquote(path)).replace(os.sep, "/") if path else name
            if path not in anchors:
                yield f"cell {number} links to {path}, which is not there"
            elif anchor and unquote(anchor) not in anchors[path]:
                yield f"cell {number} links to #{anchor}, which {path} does not have"


def named_lessons(notebook: Notebook, name: str, targets: Targets) -> Iterator[str]:
    """Prose names no lesson that does not exist yet."""
    there = {path[:2] for path in [*targets, name] if re.fullmatch(r"\d\d_\w+\.ipynb", path)}
    for number, cell in cells_of(notebook, "markdown"):
        for mention in re.findall(LESSON_NUMBERS, source_of(cell)):
            for lesson in re.findall(r"\d\d", mention):
                if lesson not in there:
                    yield f"cell {number} names lesson {lesson}, which is not there"


FRAME_RULES: tuple[Rule, ...] = (opening, first_code_cell, sections, quiz)
RULES: tuple[Rule, ...] = (
    valid_format,
    no_stored_state,
    execution_counts,
    no_errors,
    alt_text,
    no_path_tricks,
    markers,
    width,
    ignored_is_asserted,
    exercises,
)
LINK_RULES = (links, named_lessons)


def advice(notebook: Notebook, name: str) -> list[str]:
    """What lies outside the guide: sizes, exercises, an explorer, alt texts. A lesson may have its reasons."""
    if name in NO_FRAME or name.startswith("00"):
        return []
    code = "\n".join(source for _, source in code_cells(notebook))
    prose = " ".join(without_help(without_code(source_of(c))) for _, c in cells_of(notebook, "markdown"))
    folded = sum(len(source_of(c).splitlines()) for _, c in cells_of(notebook, "code") if is_folded(c))
    counts = {
        "cells": (len(notebook["cells"]), CELLS),
        "words": (len(re.findall(r"\w[\w'’-]*", prose)), WORDS),
        "lines of visible code": (len([line for line in code.splitlines() if line.strip()]) - folded, LINES),
        "exercises": (len(re.findall(r"^exercises\.check\(", code, re.MULTILINE)), EXERCISES),
    }
    found = [
        f"{count} {what}, the guide says {low} to {high}"
        for what, (count, (low, high)) in counts.items()
        if not low <= count <= high
    ]
    if "explore_" not in code:
        found.append("no explorer")
    for number, cell in cells_of(notebook, "code"):
        pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if any("alt" not in o.get("metadata", {}).get("image/png", {}) for o in pictures):
            found.append(f'cell {number} has a picture without {{"image/png": {{"alt": …}}}} in its metadata')
    return found


# --- reading a notebook ----------------------------------------------------------------------------------------------


def is_folded(cell: Mapping[str, Any]) -> bool:
    """Whether JupyterLab shows of a cell's code the first line only, and three dots."""
    return bool(cell.get("metadata", {}).get("jupyter", {}).get("source_hidden"))


def source_of(cell: Mapping[str, Any]) -> str:
    """A cell's text; the format allows a list of lines too."""
    return "".join(cell["source"])


def cells_of(notebook: Notebook, kind: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, cell), of one kind or of all."""
    for number, cell in enumerate(notebook["cells"], start=1):
        if kind in (None, cell["cell_type"]):
            yield number, cell


def code_cells(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """(number, source) of the code cells that have any."""
    for number, cell in cells_of(notebook, "code"):
        if source_of(cell).strip():
            yield number, source_of(cell)


def parse(source: str) -> ast.Module | None:
    """The syntax tree of a cell, its magics and shell lines read as `pass`; None if it is not Python."""
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))
    except SyntaxError:
        return None


def is_ignored(cell: dict[str, Any]) -> bool:
    """Does nbval leave this cell's output uncompared?"""
    return IGNORED in cell.get("metadata", {}).get("tags", [])


def words(text: str) -> str:
    """A text with single spaces, and without the quotes of a string's repr."""
    return " ".join(text.strip().strip("'\"").split())


def without_code(text: str) -> str:
    """Markdown less its code and its formulas, in which brackets are no links."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    return re.sub(r"\$\$.+?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)


def without_help(text: str) -> str:
    """Markdown less what is folded: hints and solutions, which most readers do not unfold."""
    return re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)


def links_in(text: str) -> list[str]:
    """The addresses of a markdown text's links and images."""
    text = without_code(text)
    return re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:href|src)=[\"']([^\"']+)", text)


def headings(notebook: Notebook) -> Iterator[tuple[int, int, str]]:
    """(cell, level, text) of every heading."""
    for number, cell in cells_of(notebook, "markdown"):
        fenced = re.sub(r"^(```|~~~).*?^\1", "", source_of(cell), flags=re.DOTALL | re.MULTILINE)
        for marks, text in re.findall(r"^(#{1,6})\s+(.+?)\s*#*$", fenced, re.MULTILINE):
            yield number, len(marks), text


def anchors_of(notebook: Notebook) -> set[str]:
    """What can stand behind # in a link to a notebook: Jupyter's heading ids, and ids given by hand."""
    ids = {re.sub(r"[`*]", "", text).replace(" ", "-") for _, _, text in headings(notebook)}
    for _, cell in cells_of(notebook, "markdown"):
        ids |= set(re.findall(r"\b(?:id|name)=[\"']([^\"']+)", source_of(cell)))
    return ids


def known_targets(folder: Path = NOTEBOOKS) -> dict[str, set[str]]:
    """Everything that a lesson in `folder` can link to: the lessons, and the files and folders around them."""
    root = folder.parent
    targets: dict[str, set[str]] = {}
    for base, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith((".", "__pycache__")) and f not in NOT_OURS]
        for name in [*files, *folders, "."]:
            path = Path(base, name)
            anchors: set[str] = set()
            if path.suffix == ".ipynb" and path.is_file():
                anchors = anchors_of(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix == ".md":
                titles = re.findall(r"^#+\s+(.+?)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            targets[os.path.relpath(path, folder).replace(os.sep, "/")] = anchors
    return targets


def main(names: list[str]) -> int:
    """Print the problems of the lessons named, or of all."""
    targets = known_targets()
    count = 0
    for path in [Path(name) for name in names] or find():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        problems = lint(notebook, path.name, targets)
        count += len(problems)
        for line in [*problems, *(f"(advice) {line}" for line in advice(notebook, path.name))]:
            print(f"{path.name}: {line}")
    print(f"{count} problem{'' if count == 1 else 's'}")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
