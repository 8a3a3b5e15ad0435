"""All exercises, challenges and questions by their ids, and what a learner does with one."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pkgutil
import textwrap
from typing import Any

import qlearn.exercises
from qlearn.exercises.challenges import Challenge, face
from qlearn.exercises.checking import Exercise, Result, examine
from qlearn.exercises.questions import Asked, Question
from qlearn.exercises.time_limit import TookTooLong, within

IN_THE_NETWORK = 20.0  # seconds for a consequence, which takes one or two: a loop over every weight takes minutes


def _all(kind: str, what: str) -> dict[str, Any]:
    """Id → what the modules of this kind list under this name: lesson_03.EXERCISES."""
    names = sorted(name for _, name, _ in pkgutil.iter_modules(qlearn.exercises.__path__) if name.startswith(kind))
    modules = [importlib.import_module(f"qlearn.exercises.{name}") for name in names]
    return {each.id: each for module in modules for each in getattr(module, what, ())}


_EXERCISES: dict[str, Exercise] = _all("lesson_", "EXERCISES")
_CHALLENGES: dict[str, Challenge] = _all("lesson_", "CHALLENGES")
_QUESTIONS: dict[str, Question] = _all("questions_", "QUESTIONS")
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
    exercise = _find(_EXERCISES, exercise_id, "exercise")
    result = examine(exercise, attempt)
    if result.status != "correct":
        return result
    _solved.add(exercise_id)
    lesson = exercise_id.partition(".")[0]
    of_lesson = [other for other in ids() if other.startswith(f"{lesson}.")]
    done = sum(other in _solved for other in of_lesson)
    return Result(
        result.status,
        f"{result.message} {done} of {len(of_lesson)} in this lesson.{_what_it_does(exercise, attempt)}",
    )


def _what_it_does(exercise: Exercise, attempt: Any) -> str:
    """What the learner's own function does where it matters."""
    consequence = exercise.consequence
    if consequence is None:
        return ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a forgotten print would come for every row of the network
            said = within(IN_THE_NETWORK, lambda: consequence(attempt), {})
        return f"\n{textwrap.indent(said, '  ')}"
    except TookTooLong:
        return (
            f"\n  In the network it had not ended after {IN_THE_NETWORK:.0f} seconds, and was stopped. Is there a loop "
            "over numbers in it?\n  An operation on whole arrays is a hundred times as fast."
        )
    except Exception as error:  # it has passed the checks; whatever stops it now must not take that back
        return f"\n  In the network it raised {type(error).__name__}: {error}"


def challenge(challenge_id: str, attempt: Any) -> Result:
    """Judge an answer to a challenge, and show it in a table beside what simple answers reach.

    Args:
        challenge_id: such as "03.C".
        attempt: your function itself. With one whose body is `...`, you see the table.

    Returns:
        A `Result`: "correct" is one that meets the target. An answer that fails raises nothing.

    Raises:
        ValueError: an id that does not exist.

    >>> challenge("99.C", ...)
    Traceback (most recent call last):
    ValueError: there is no challenge '99.C'...
    """
    return face(_find(_CHALLENGES, challenge_id, "challenge"), attempt)


def predict(question_id: str) -> Asked:
    """A question whose answer the next cell computes: choose, then see.

    Args:
        question_id: lesson and a letter, such as "03.a".

    Raises:
        ValueError: an id that does not exist.

    >>> predict("99.a")
    Traceback (most recent call last):
    ValueError: there is no question '99.a'...
    """
    return Asked([_find(_QUESTIONS, question_id, "question")], lead="Predict.")


def quiz(lesson: str) -> Asked:
    """The questions at the end of a lesson: "03".

    Raises:
        ValueError: a lesson that has none.

    >>> quiz("99")
    Traceback (most recent call last):
    ValueError: there is no quiz '99'...
    """
    questions = [question for name, question in _QUESTIONS.items() if name.startswith(f"{lesson}.q")]
    if not questions:
        raise ValueError(f'there is no quiz {lesson!r}; lessons have two digits: quiz("03").')
    return Asked(questions)


def hint(exercise_id: str) -> None:
    """Print a hint; called again, the next one.

    >>> hint("01.1")
    Hint 1 of 3: What does a cast from 300.0 to `uint8` do, and what would you rather have?
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


def challenge_ids() -> list[str]:
    """The ids of all challenges, in order.

    >>> all(name.endswith(".C") for name in challenge_ids())
    True
    """
    return sorted(_CHALLENGES)


def find(exercise_id: str) -> Exercise | Challenge:
    """The exercise or the challenge with this id.

    Raises:
        ValueError: there is none.

    >>> find("01.1").solution.__name__
    'to_uint8'
    """
    return _CHALLENGES[exercise_id] if exercise_id in _CHALLENGES else _find(_EXERCISES, exercise_id, "exercise")


def _find(shelf: dict[str, Any], wanted: str, what: str) -> Any:
    if wanted not in shelf:
        raise ValueError(f"there is no {what} {wanted!r}; the {what}s are {', '.join(sorted(shelf))}.")
    return shelf[wanted]
