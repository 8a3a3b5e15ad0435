"""Run lessons from scratch and store their outputs, cleaned: `make lessons`, or `make lessons LESSON=05`.

Each lesson runs in a fresh kernel that finds nothing stored by an earlier run. Where a cell fails, the file
stays as it was.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from dev import ROOT, notebook_environment

NOTEBOOKS = ROOT / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
IGNORED = "nbval-ignore-output"  # the tag of a cell whose output comes out of training, or of a clock
TIMING_METADATA = ("execution", "ExecuteTime", "trusted", "scrolled")
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


class LessonError(Exception):
    """A lesson did not run to its end; the message names the cell."""


def main(wanted: list[str]) -> int:
    """Run the lessons whose names start with one of `wanted`, or all of them."""
    wanted = [name.zfill(2) if name.isdigit() else name for name in wanted]
    paths = [p for p in find() if not wanted or p.name.startswith(tuple(wanted))]
    if not paths:
        print(f"No lesson's name starts with {' or '.join(wanted)}." if wanted else "There are no lessons yet.")
        return int(bool(wanted))
    failures = 0
    for path in paths:
        start = time.perf_counter()
        try:
            notes, changed = rerun(path)
        except LessonError as error:
            failures += 1
            print(f"{path.name:40} FAILED, file left as it was\n{error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        print(f"{path.name:40} {seconds:6.1f} s  {'stored' if changed else 'unchanged'}", flush=True)
        for note in notes:
            print(f"    {note}", flush=True)
    return int(failures > 0)


def find(folder: Path = NOTEBOOKS) -> list[Path]:
    """The lessons, in their order."""
    return sorted(p for p in folder.glob("*.ipynb") if not p.name.startswith("."))


def rerun(path: Path) -> tuple[list[str], bool]:
    """Run one lesson and store it. Returns what the author should look at, and whether the file changed."""
    notebook = nbformat.read(path, as_version=4)
    run(notebook, path.parent)
    return store(notebook, path)


def store(notebook: Any, path: Path) -> tuple[list[str], bool]:
    """Clean a lesson and write it; returns what `rerun` does."""
    notes = clean(notebook)
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    changed = text != path.read_text(encoding="utf-8")
    if changed:
        # Whole or not at all: the new file takes the old one's place in one step.
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    return notes, changed


def run(notebook: Any, folder: Path, timeout: int = 1200) -> None:
    """Execute every cell of `notebook` in a fresh kernel, in place."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=timeout,
        startup_timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # ipykernel warns of unencrypted connections on this computer itself
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory(prefix="qlearn-lesson-", ignore_cleanup_errors=True) as home:
        try:
            client.execute(env=notebook_environment(Path(home)))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise LessonError(f"{_failed_cell(notebook)}\n{error}") from error


def clean(notebook: Any) -> list[str]:
    """Remove what differs from run to run or misleads a reader; return remarks for the author.

    Out go stderr, live widgets (a picture beside one stays, and is what a reopened file shows), outputs that
    were only a widget (progress bars), widget state, time stamps and the kernel's exact version.
    """
    notes = []
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata.pop("widgets", None)
    notebook.metadata.kernelspec = KERNELSPEC
    notebook.metadata.language_info = LANGUAGE
    seen: set[str] = set()
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = _stable_id(cell, seen)
        for name in TIMING_METADATA:
            cell.metadata.pop(name, None)
        if cell.cell_type != "code":
            continue
        ignored = IGNORED in cell.metadata.get("tags", [])
        kept: list[Any] = []
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "stream" and output.name == "stderr":
                if not ignored:
                    notes.append(f"cell {number} wrote to stderr: {output.text.strip().splitlines()[-1][:100]!r}")
            elif WIDGET_VIEW in data and set(data) <= {WIDGET_VIEW, "text/plain"}:
                if not ignored:
                    notes.append(f"cell {number} shows a widget that has no picture beside it; it is not stored")
            elif output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            else:
                data.pop(WIDGET_VIEW, None)
                kept.append(output)
        cell.outputs = kept
    nbformat.validate(notebook)
    return notes


def with_solutions(notebook: Any, solution_source: Any) -> list[str]:
    """Put each exercise's solution in the place of its stub; return the exercises' ids, in their order."""
    ids = []
    for cell in notebook.cells:
        exercise = exercise_of(cell.source) if cell.cell_type == "code" else None
        if exercise:
            cell.source = with_solution(cell.source, solution_source(exercise[0]))
            ids.append(exercise[0])
    return ids


def with_solution(source: str, solution: str) -> str:
    """An exercise cell with the stub, a function or a class, replaced by `solution`; the checker's line stays."""
    exercise = exercise_of(source)
    assert exercise is not None, "not an exercise cell"
    name = exercise[1]
    stub = next((n for n in ast.parse(source).body if getattr(n, "name", None) == name), None)
    if stub is None:
        raise ValueError(f"exercise {exercise[0]} checks {name}, but its cell defines no {name}.")
    if not any(getattr(n, "name", None) == name for n in ast.parse(solution).body):
        raise ValueError(f"the solution of exercise {exercise[0]} defines no {name}.")
    first = min([stub.lineno, *(d.lineno for d in getattr(stub, "decorator_list", []))])
    lines = source.splitlines()
    return "\n".join([*lines[: first - 1], *solution.strip("\n").splitlines(), *lines[stub.end_lineno :]])


def exercise_of(source: str) -> tuple[str, str] | None:
    """(id, attempt's name) if a cell's last line is `exercises.check("01.2", name)` or `.challenge(…)`, else None."""
    lines = source.strip().splitlines()
    found = (
        re.fullmatch(r"""exercises\.(?:check|challenge)\(["']([\w.]+)["'],\s*(\w+)\);?""", lines[-1].strip())
        if lines
        else None
    )
    return (found[1], found[2]) if found else None


def text_of(cell: Any) -> str:
    """All the text of a cell's outputs."""
    parts = []
    for output in cell.get("outputs", []):
        parts += [output.get("text", "")]
        parts += [value for mime, value in output.get("data", {}).items() if mime.startswith("text/")]
    return "\n".join("".join(part) for part in parts)


def _stable_id(cell: Any, seen: set[str]) -> str:
    """An id made of the cell's text, so that it changes only with the text, however the file was made."""
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
    name, copy = digest, 1
    while name in seen:
        copy += 1
        name = f"{digest}-{copy}"
    seen.add(name)
    return name


def _failed_cell(notebook: Any) -> str:
    """Which cell stopped the run: the first with an error, else the last that was started."""
    code = [(n, c) for n, c in enumerate(notebook.cells, start=1) if c.cell_type == "code"]
    wrong = [n for n, c in code if any(o.output_type == "error" for o in c.outputs)]
    started = [n for n, c in code if c.execution_count is not None or c.outputs]
    return f"in cell {(wrong[:1] or started[-1:] or [1])[0]} of {len(notebook.cells)}:"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
