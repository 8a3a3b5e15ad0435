"""Learners' notebooks, run in fresh kernels: who has solved which exercise.

The checker is asked by the grader itself, after each cell that defines an attempt or has it checked. What a notebook
prints counts nothing.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlearn.exercises import shelf
from qlearn.exercises.kernel import Ended, Kernel, Limits, Stopped

# exercises.check("01.2", name), in whatever way `check` or `challenge` was imported.
CHECK_LINE = re.compile(r"""\b(?:check|challenge)\(\s*["'](\d\d\.\w+)["']\s*,\s*(\w+)""")
STATUSES = ("correct", "wrong", "not attempted", "missing")

NOT_REACHED = ("missing", "the notebook did not run as far as this.")

Wanted = dict[str, list[str]]  # exercise → the names that its attempt may have


@dataclass
class Graded:
    """What became of one notebook.

    Attributes:
        learner: its name in the table.
        file: its path.
        verdicts: for each exercise the status ("correct", "wrong", "not attempted" or "missing") and the message.
        problem: what went wrong with the notebook itself, in a sentence; nothing if all went well.
        seconds: how long it took.
    """

    learner: str
    file: str
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    problem: str = ""
    seconds: float = 0.0

    @property
    def lessons(self) -> tuple[str, ...]:
        """The lessons that its exercises are of: ("01",)."""
        return tuple(sorted({exercise.partition(".")[0] for exercise in self.verdicts}))

    @property
    def solved(self) -> int:
        """How many exercises are solved."""
        return sum(status == "correct" for status, _ in self.verdicts.values())


class Unreadable(Exception):
    """This is no notebook that can be run; the message says why."""


def notebooks(paths: Sequence[str]) -> list[Path]:
    """The notebooks that are meant: a folder stands for all in it and below, less hidden ones.

    A path at which nothing can be found stays in the list, so that it gets its row.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.rglob("*.ipynb")) if path.is_dir() else []
        seen = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        found += seen or [path]
    return list(dict.fromkeys(found))


def learners(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: what is left of it without the folders that all share.

    >>> learners([Path("class/ada.ipynb"), Path("class/alan.ipynb")])
    ['ada', 'alan']
    >>> learners([Path("class/ada/01_a.ipynb"), Path("class/alan/01_a.ipynb")])
    ['ada/01_a', 'alan/01_a']
    """
    parts = [path.parts for path in paths]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return ["/".join(p[common:]).removesuffix(".ipynb") or "." for p in parts]


def grade_all(
    paths: Sequence[Path], limits: Limits, jobs: int = 1, done: Callable[[], object] = lambda: None
) -> list[Graded]:
    """Grade notebooks, `jobs` at a time, in the order in which they are given; `done` is called after each."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(max(1, jobs))

    def one(path: Path, learner: str) -> Graded:
        graded = grade(path, learner, limits, stop)
        done()
        return graded

    try:
        return list(pool.map(one, paths, learners(paths)))
    finally:  # after Ctrl-C too: no kernel stays
        stop.set()
        pool.shutdown(cancel_futures=True)


def grade(path: Path, learner: str, limits: Limits, stop: threading.Event) -> Graded:
    """Run one notebook and ask the checker; whatever the notebook is or does, this returns."""
    graded, began = Graded(learner, str(path)), time.monotonic()
    try:
        cells = read(path)
        by_cell, rest = exercises_of(cells, path.name)
        graded.verdicts = dict.fromkeys(sorted(rest), NOT_REACHED)
        if not rest:
            raise Unreadable("has no exercise that this qlearn knows")
        graded.problem = "; ".join(_run(cells, by_cell, rest, graded, limits, stop))
    except Unreadable as error:
        graded.problem = str(error)
    except Ended:
        graded.problem = "could not be run: its kernel did not start"
    except Stopped:
        graded.problem = "was not graded to its end"
    except Exception as error:  # of the grader or the system: a row, and the table goes on
        graded.problem = f"could not be run: {one_line(f'{type(error).__name__}: {error}')}"
    graded.seconds = time.monotonic() - began
    return graded


def _run(
    cells: Sequence[tuple[str, str]],
    by_cell: Sequence[Wanted],
    rest: Wanted,
    graded: Graded,
    limits: Limits,
    stop: threading.Event,
) -> list[str]:
    """Fill in `graded.verdicts`; return what went wrong on the way."""
    problems: list[str] = []
    errors: list[str] = []
    number = 0
    with Kernel(limits, stop) as kernel:
        try:
            for number, ((kind, source), wanted) in enumerate(zip(cells, by_cell, strict=True), start=1):
                if kind != "code" or not source.strip():
                    continue
                went_wrong = ""
                try:
                    if error := kernel.run(source):
                        waits = error.startswith("StdinNotImplementedError")
                        went_wrong = "waits for input()" if waits else f"raised {one_line(error)}"
                        errors.append(f"cell {number} {went_wrong}")
                except TimeoutError as late:
                    went_wrong = str(late)
                    problems.append(f"cell {number} {went_wrong}")
                _ask(kernel, wanted, graded, went_wrong)
            # Attempts that no cell showed by its text: a lambda, a function made by another one.
            _ask(kernel, {e: names for e, names in rest.items() if graded.verdicts[e] == NOT_REACHED}, graded)
        except Ended as end:
            problems.append(f"cell {number} {end}" if number else str(end))
    more = [f"{len(errors) - 1} more raised an error"] if len(errors) > 1 else []
    return [*errors[:1], *more, *problems]


def _ask(kernel: Kernel, wanted: Wanted, graded: Graded, went_wrong: str = "") -> None:
    """Write down what the checker says; of several attempts at an exercise the best counts."""
    for exercise, names in wanted.items():
        try:
            status, message = kernel.ask(exercise, names)
        except TimeoutError as late:
            status, message = "wrong", f"✗ {exercise}: your function {late}."
        if went_wrong and status == "missing":
            status, message = "wrong", f"✗ {exercise}: its cell {went_wrong}"
        message = re.sub(r" \d+ of \d+ in this lesson\.", "", message)  # counted in this question alone
        if STATUSES.index(status) <= STATUSES.index(graded.verdicts[exercise][0]):
            graded.verdicts[exercise] = status, message


def read(path: Path) -> list[tuple[str, str]]:
    """(kind, source) of every cell.

    Raises:
        Unreadable: it is missing, a folder, not JSON, no notebook, or of another format.
    """
    if path.is_dir():
        raise Unreadable("is a folder without notebooks")
    try:
        notebook = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Unreadable("is not there") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Unreadable("is not JSON, so no notebook") from None
    version = notebook.get("nbformat") if isinstance(notebook, dict) else None
    if version != 4:
        of = f"has format {version}, and 4 is needed: open and save it in JupyterLab"
        raise Unreadable(of if version is not None else "is JSON, but no notebook")
    try:
        return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    except (KeyError, TypeError):
        raise Unreadable("is a notebook with broken cells") from None


def exercises_of(cells: Sequence[tuple[str, str]], file: str) -> tuple[list[Wanted], Wanted]:
    """Which exercises to ask about after each cell, and all of the notebook's.

    An exercise belongs to a cell that has it checked, or that defines what the package calls its solution. The
    notebook has all the exercises of the lessons that its checks are of; without any check, of the lesson that its
    title or its file's name begins with.
    """
    named = [dict(CHECK_LINE.findall(source)) if kind == "code" else {} for kind, source in cells]
    lessons = {exercise.partition(".")[0] for checks in named for exercise in checks}
    if not lessons:
        titles = [re.match(r"#\s+(\d\d)\b", source) for kind, source in cells if kind == "markdown"]
        numbers = [found[1] for found in [*titles, re.match(r"(\d\d)(?!\d)", file)] if found]
        lessons = set(numbers[:1])
    known = [*shelf.ids(), *shelf.challenge_ids()]
    all_: Wanted = {e: [shelf.find(e).solution.__name__] for e in known if e.partition(".")[0] in lessons}
    for exercise, name in (pair for checks in named for pair in checks.items()):
        all_[exercise] = list(dict.fromkeys([*all_.get(exercise, ()), name]))
    by_cell = []
    for (kind, source), checks in zip(cells, named, strict=True):
        defined = (
            set(re.findall(r"^(?:async )?(?:def|class)\s+(\w+)", source, re.MULTILINE)) if kind == "code" else set()
        )
        here = [e for e in all_ if e in checks or defined & set(all_[e])]
        by_cell.append({e: all_[e] for e in here})
    return by_cell, all_


def one_line(text: str, most: int = 120) -> str:
    """A text that an unknown notebook gave, on one line and without what a terminal would take for commands."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 10 * most]).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def counts(rows: Sequence[Graded]) -> Counter[str]:
    """How many have solved each exercise."""
    return Counter(e for row in rows for e, (status, _) in row.verdicts.items() if status == "correct")


def as_json(rows: Sequence[Graded]) -> dict[str, Any]:
    """All results, as JSON has it."""
    return {
        "notebooks": [
            {
                "learner": row.learner,
                "file": row.file,
                "solved": row.solved,
                "exercises": {e: {"status": s, "message": m} for e, (s, m) in row.verdicts.items()},
                "problem": row.problem,
                "seconds": round(row.seconds, 1),
            }
            for row in rows
        ],
        "solved": dict(sorted(counts(rows).items())),
    }
