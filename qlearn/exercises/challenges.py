"""Challenges: a target, no single right answer, and a table in which one's own stands between simple ones."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qlearn.exercises.checking import Result, no_function
from qlearn.exercises.time_limit import TookTooLong, within

SECONDS = 60.0  # for all that a judge does with one answer


@dataclass(frozen=True)
class Score:
    """What an answer reaches.

    Attributes:
        columns: heading → what the table shows, such as {"accuracy": "97.2 %", "bytes": "8,904"}.
        passed: whether the target is met.
    """

    columns: Mapping[str, str]
    passed: bool


class CannotBeJudged(Exception):
    """An answer breaks a rule of its challenge; the message says which, and what would be right."""


@dataclass(frozen=True)
class Challenge:
    """One open task of a lesson.

    Attributes:
        id: lesson and C, such as "03.C".
        target: in words, with its numbers.
        solution: one answer that meets it, under the name that the lesson's stub has.
        judge: runs an answer on data that the lesson has not shown. Raises `CannotBeJudged`.
        simple: what one would try first, name → answer. At least one of them falls short.
        hints: from a nudge to almost the answer.
    """

    id: str
    target: str
    solution: Callable[..., Any]
    judge: Callable[[Callable[..., Any]], Score]
    simple: Mapping[str, Callable[..., Any]]
    hints: tuple[str, ...]


_scores: dict[tuple[str, str], Score] = {}  # of the simple answers: they stay what they are


def face(challenge: Challenge, attempt: Any) -> Result:
    """Judge an answer, and show it in the table of the simple ones.

    Whatever the answer does, this returns.
    """
    rows = {name: _simple(challenge, name) for name in challenge.simple}
    head = f"{challenge.id}: {challenge.target}"
    if early := no_function(challenge.id, challenge.solution.__name__, attempt):
        text = early.message if early.status == "wrong" else f"… {challenge.id} not attempted yet."
        return Result(early.status, f"{head}\n{_table(rows)}\n{text}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a forgotten print would come for every call of the judge
            mine = within(SECONDS, challenge.judge, {"answer": attempt})
    except CannotBeJudged as reason:
        return Result("wrong", f"✗ {challenge.id}: {reason}\n  {challenge.target}")
    except TookTooLong:
        return Result("wrong", f"✗ {challenge.id}: {SECONDS:.0f} seconds were not enough, and your answer was stopped.")
    except (Exception, SystemExit) as error:
        return Result("wrong", f"✗ {challenge.id}: your function raised {type(error).__name__}: {error}")
    status = "correct" if mine.passed else "wrong"
    verdict = f"✓ {challenge.id} correct: the target is met." if mine.passed else f"✗ {challenge.id}: not there yet."
    return Result(status, f"{head}\n{_table({**rows, 'yours': mine})}\n{verdict}")


def _simple(challenge: Challenge, name: str) -> Score:
    if (challenge.id, name) not in _scores:
        _scores[challenge.id, name] = challenge.judge(challenge.simple[name])
    return _scores[challenge.id, name]


def _table(rows: Mapping[str, Score]) -> str:
    """Names at the left, columns to the right, and a ✓ where the target is met."""
    headings = list(next(iter(rows.values())).columns)
    lines = [["", *headings, "target"]]
    lines += [[name, *score.columns.values(), "✓" if score.passed else "✗"] for name, score in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    at_left = "<" + ">" * len(headings) + ">"
    return "\n".join(
        "  " + "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, at_left, widths, strict=True))
        for line in lines
    )
