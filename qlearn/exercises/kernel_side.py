"""What the grader runs inside a learner's kernel, beside what the learner has left there.

It is run from its file, and imports `qlearn.exercises` anew for each question, so it does not matter what the notebook
calls by that name, or has changed in it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ORDER = ("correct", "wrong", "not attempted", "missing")


def answer(variables: Mapping[str, Any], exercise: str, names: Sequence[str]) -> str:
    """Check the attempt at an exercise.

    Args:
        variables: the kernel's variables by name.
        exercise: its id.
        names: what the attempt may be called. Of several that exist, the best counts.

    Returns:
        JSON of [status, message]. The status is "missing" if there is no attempt, or no such exercise.
    """
    with fresh_exercises() as exercises:
        found = [check(exercises, exercise, variables[name]) for name in names if name in variables]
    nothing = ("missing", f"there is no {' or '.join(names)}.")
    return json.dumps(min(found, key=lambda verdict: ORDER.index(verdict[0]), default=nothing))


def check(exercises: Any, exercise_id: str, attempt: Any) -> tuple[str, str]:
    """Status and message of one attempt."""
    for kind in ("check", "challenge"):
        try:
            result = getattr(exercises, kind)(exercise_id, attempt)
        except ValueError:
            continue  # no such exercise of this kind
        return str(result.status), str(result.message)
    return "missing", f"there is no exercise {exercise_id} in this qlearn."


@contextlib.contextmanager
def fresh_exercises() -> Iterator[Any]:
    """`qlearn.exercises` as its files have it; the learner's own is back afterwards, as it was."""

    def loaded() -> list[str]:
        return [name for name in sys.modules if f"{name}.".startswith("qlearn.exercises.")]

    learners = {name: sys.modules.pop(name) for name in loaded()}
    try:
        yield importlib.import_module("qlearn.exercises")
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(learners)
        if "qlearn.exercises" in learners and "qlearn" in sys.modules:
            vars(sys.modules["qlearn"])["exercises"] = learners["qlearn.exercises"]
