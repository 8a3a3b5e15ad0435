"""Who has solved what, for teachers: `python -m qlearn.exercises submissions/` prints a table."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from qlearn.exercises.grading import Graded, as_json, counts, grade_all, notebooks
from qlearn.exercises.kernel import Limits

MARKS = {"correct": "✓", "wrong": "✗", "not attempted": "·", "missing": "–"}
LEGEND = "✓ solved  ✗ wrong  · not attempted  – no such function, or the notebook did not run as far"


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments, grade, print. 0 if there is a table, 1 if notebooks cannot be run here."""
    parser = argparse.ArgumentParser(
        prog="python -m qlearn.exercises",
        description="Run learners' notebooks, each in a fresh kernel without network, and print who has solved what. "
        "Nothing that a notebook prints counts: the checker is asked from outside. This is no sandbox: what a notebook "
        "does, it does as you.",
    )
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="notebooks, or folders that hold some")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, the checker's messages too")
    parser.add_argument(
        *("--timeout", "-t"),
        type=_positive(float),
        default=Limits.seconds,
        metavar="SECONDS",
        help="for one notebook; a single cell gets at most half of what is left (default %(default)g)",
    )
    parser.add_argument(
        *("--jobs", "-j"),
        type=_positive(int),
        default=max(1, (os.cpu_count() or 1) // 2),
        metavar="N",
        help="notebooks at a time (default %(default)s)",
    )
    wanted = parser.parse_args(arguments)
    for package in ("ipykernel", "jupyter_client", "psutil"):
        if importlib.util.find_spec(package) is None:
            print(f"To run notebooks {package} is needed: pip install 'qlearn[lab]'", file=sys.stderr)
            return 1
    paths = notebooks(wanted.notebooks)
    with tqdm(total=len(paths), unit="notebook", file=sys.stderr, disable=None, leave=False) as bar:
        rows = grade_all(paths, Limits(seconds=wanted.timeout), wanted.jobs, bar.update)
    print(json.dumps(as_json(rows), indent=1, ensure_ascii=False) if wanted.json else "\n".join(table(rows)))
    return 0


def table(rows: Sequence[Graded]) -> Iterator[str]:
    """The lines of the tables, one table for the notebooks of the same lessons."""
    for lessons in sorted({row.lessons for row in rows}):
        of_lesson = [row for row in rows if row.lessons == lessons]
        ids = sorted({exercise for row in of_lesson for exercise in row.verdicts})
        width = max(len("solved by"), *(len(row.learner) for row in of_lesson))
        number = len(of_lesson)
        yield f"Lesson {', '.join(lessons)}: {number} notebook{'s' * (number != 1)}" if lessons else "Of no lesson"
        if ids:
            yield "  ".join([f"{'':{width}}", *(f"{exercise:^5}" for exercise in ids), "solved"])
        for row in of_lesson:
            marks = [MARKS[row.verdicts[e][0] if e in row.verdicts else "missing"] for e in ids]
            solved = [f"{row.solved} of {len(ids)}"] if ids else []
            line = [f"{row.learner:{width}}", *(f"{mark:^5}" for mark in marks), *solved, row.problem]
            yield "  ".join(line).rstrip()
        if ids:
            solved_by = counts(of_lesson)
            yield "  ".join([f"{'solved by':{width}}", *(f"{solved_by[e]:^5}" for e in ids)]).rstrip()
        yield ""
    yield LEGEND


def _positive(kind: type) -> type:
    """`kind`, for numbers above zero only."""

    def read(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    read.__name__ = f"positive {kind.__name__}"
    return read  # type: ignore[return-value]


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console without these characters
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
