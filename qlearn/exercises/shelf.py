"""All exercises by their ids, and what a learner does with one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import textwrap
from typing import Any

import qlearn.exercises
from qlearn.exercises.checking import Exercise, Result, examine

_LESSONS = [name for _, name, _ in pkgutil.iter_modules(qlearn.exercises.__path__) if name.startswith("lesson_")]
_EXERCISES: dict[str, Exercise] = {
    exercise.id: exercise
    for lesson in _LESSONS
    for exercise in importlib.import_module(f"qlearn.exercises.{lesson}").EXERCISES
}
_solved: set[str] = set()  # in this process only; nothing is written anywhere
_hints_given: dict[str, int] = {}


def check(exercise_id: str, attempt: Any) -> Result:
    """Check an attempt and say what is right or wrong with it.

    Args:
        exercise_id: such as "01.2".
        attempt: your function itself. One whose body is `...` counts as not attempted.

    Returns:
        A `Result`, which shows itself at the end of a cell. An attempt that fails raises nothing.

    Raises:
        ValueError: an id that does not exist.

    >>> check("01.1", ...).status
    'not attempted'
    """
    exercise = find(exercise_id)
    result = examine(exercise, attempt)
    if result.status != "correct":
        return result
    _solved.add(exercise_id)
    lesson = exercise_id.partition(".")[0]
    of_lesson = [other for other in ids() if other.startswith(f"{lesson}.")]
    done = sum(other in _solved for other in of_lesson)
    return Result(result.status, f"{result.message} {done} of {len(of_lesson)} in this lesson.")


def hint(exercise_id: str) -> None:
    """Print a hint; called again, the next one.

    >>> hint("01.1")
    Hint 1 of 2: What does a cast from 300.0 to uint8 do, and what would you rather have?
    """
    hints = find(exercise_id).hints
    number = min(_hints_given.get(exercise_id, 0) + 1, len(hints))
    _hints_given[exercise_id] = number
    print(f"Hint {number} of {len(hints)}: {hints[number - 1]}")


def solution(exercise_id: str) -> None:
    """Print the solution's source.

    >>> solution("01.1")
    def to_uint8(values):
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    """
    print(solution_source(exercise_id))


def solution_source(exercise_id: str) -> str:
    """The source of the solution, which can take the place of the lesson's stub.

    >>> print(solution_source("01.1"))
    def to_uint8(values):
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    """
    return textwrap.dedent(inspect.getsource(find(exercise_id).solution)).rstrip()


def ids() -> list[str]:
    """The ids of all exercises, in order.

    >>> ids()[0]
    '00.1'
    """
    return sorted(_EXERCISES)


def find(exercise_id: str) -> Exercise:
    """The exercise with this id.

    >>> find("01.1").solution.__name__
    'to_uint8'
    """
    if exercise_id not in _EXERCISES:
        raise ValueError(f"there is no exercise {exercise_id!r}; the exercises are {', '.join(ids())}.")
    return _EXERCISES[exercise_id]
