"""How an attempt is checked, and how a mistake is recognised.

An exercise has a solution that is short enough to read, a few examples, a Hypothesis strategy for many more
inputs, and the mistakes that people make: each one is a wrong function and what to say to whoever wrote it.
An attempt that fails is compared with those wrong functions; if it gives the same wrong answers as one of
them, the learner is told that mistake's diagnosis.
"""

from __future__ import annotations

import contextlib
import copy
import dis
import html
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from qlearn.exercises.time_limit import SECONDS, TookTooLong, within

Case = Mapping[str, Any]  # one call's arguments by name

SEARCH = settings(
    max_examples=200,
    derandomize=True,  # the same attempt gets the same answer every time
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@dataclass(frozen=True)
class Mistake:
    """A wrong function, and the sentence that helps whoever wrote it."""

    function: Callable[..., Any]
    diagnosis: str


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Attributes:
        id: lesson and number, such as "01.2".
        solution: the reference; its name is the one that the lesson's stub has.
        examples: calls to show and to try first.
        cases: many more calls.
        mistakes: what goes wrong often, most telling first.
        hints: from a nudge to almost the answer.
        also_right: says of a case and an answer to it whether it is right, too, though it is not the solution's.
        forbidden: says what a function must not do that its answers do not show, in a sentence; "" if it does not.
        consequence: runs what the learner wrote where it matters, in a network, and says what came out.
    """

    id: str
    solution: Callable[..., Any]
    examples: tuple[Case, ...]
    cases: SearchStrategy[Case]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    also_right: Callable[[Case, Any], bool] | None = None
    forbidden: Callable[[Callable[..., Any]], str] | None = None
    consequence: Callable[[Callable[..., Any]], str] | None = None


@dataclass(frozen=True)
class Result:
    """What the checker found: `status` is "correct", "wrong" or "not attempted"; `message` says it in words."""

    status: str
    message: str

    def __repr__(self) -> str:
        return self.message

    def _repr_html_(self) -> str:
        colour = {"correct": "#009E73", "wrong": "#D55E00"}.get(self.status, "#888888")
        style = "white-space: pre-wrap; word-break: normal; margin: 0; background: none"
        return (
            f'<div role="status" style="border-left: 4px solid {colour}; padding: 0.2em 0.8em">'
            f'<pre style="{style}">{html.escape(self.message)}</pre></div>'
        )


class _Wrong(Exception):
    """An attempt failed on one case; the message says how."""

    def __init__(self, case: Case, message: str, explained: bool = False) -> None:
        super().__init__(message)
        self.case = case
        self.explained = explained  # the message has the reason already


class _Endless(BaseException):
    """A call did not end. No `Exception`: Hypothesis would look for a simpler one that does not end, either."""


def examine(exercise: Exercise, attempt: Any) -> Result:
    """Try an attempt on the examples, then on many more inputs, and say in words what came out.

    Whatever the attempt does, this returns: an exception inside it becomes part of the message.
    """
    if early := no_function(exercise.id, exercise.solution.__name__, attempt):
        return early
    try:
        with _quietly():
            for case in exercise.examples:
                _try(exercise, attempt, case)
            _search(exercise, attempt)
    except _Wrong as wrong:
        diagnosis = "" if wrong.explained else _diagnose(exercise, attempt, wrong.case)
        return Result("wrong", f"✗ {exercise.id}: {wrong}{diagnosis}")
    except _Endless as endless:
        return Result("wrong", f"✗ {exercise.id}: {endless}")
    except Flaky:
        return Result("wrong", f"✗ {exercise.id}: your function gives different answers to the same call.")
    if complaint := _forbidden(exercise, attempt):
        return Result("wrong", f"✗ {exercise.id}: the answers are right, but {complaint}")
    return Result("correct", f"✓ {exercise.id} correct.")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What is tried in here prints nothing, and NumPy's remarks on its numbers are not shown."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # A right answer may divide 0 by 0 and drop it, in a `np.where`; of a wrong one its values tell.
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _forbidden(exercise: Exercise, attempt: Callable[..., Any]) -> str:
    """What a right answer must not do, and does; nothing if it cannot be watched."""
    forbidden = exercise.forbidden
    if forbidden is None:
        return ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return str(within(SECONDS, lambda: forbidden(attempt), {}))
    except (Exception, SystemExit, TookTooLong):  # its answers are right: whatever stops it now does not take that back
        return ""


def no_function(exercise_id: str, name: str, attempt: Any) -> Result | None:
    """What to say of something that cannot be tried: a stub, or no function at all."""
    if attempt is Ellipsis or (callable(attempt) and _is_stub(attempt)):
        return Result(
            "not attempted",
            f"… {exercise_id} not attempted yet. Replace the three dots above with your code and run the cell again.\n"
            f'  Stuck? exercises.hint("{exercise_id}") helps, exercises.solution("{exercise_id}") shows it all.',
        )
    if not callable(attempt):
        return Result(
            "wrong",
            f"✗ {exercise_id}: the checker got {_show(attempt)}, which is not a function. "
            f"Pass {name} itself, without brackets behind it.",
        )
    return None


def _search(exercise: Exercise, attempt: Callable[..., Any]) -> None:
    """Raise `_Wrong` for the simplest input that Hypothesis finds."""

    @SEARCH
    @given(exercise.cases)
    def claim(case: Case) -> None:
        _try(exercise, attempt, case)

    claim()


def _try(exercise: Exercise, attempt: Callable[..., Any], case: Case) -> None:
    """Raise `_Wrong` unless the attempt does on this case what the solution does."""
    wanted = exercise.solution(**copy.deepcopy(case))
    arguments = dict(copy.deepcopy(case))
    call = f"{exercise.solution.__name__}({', '.join(f'{name}={_show(value)}' for name, value in case.items())})"
    try:
        given_ = within(SECONDS, attempt, arguments)
    except TookTooLong:
        raise _Endless(
            f"your function had not ended after {SECONDS:.0f} seconds, and was stopped. "
            f"Is there a loop without an end?\n  in the call {call}"
        ) from None
    except (Exception, SystemExit) as error:
        renamed = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
        advice = "\n  Keep the names of the parameters as they were." if renamed else ""
        message = f"your function raised {type(error).__name__}: {error}\n  in the call {call}{advice}"
        raise _Wrong(case, message, explained=renamed) from None
    changed = [name for name in case if not _same(case[name], arguments[name])]
    if changed:
        raise _Wrong(
            case,
            f"your function changed its input {changed[0]}.\n  in the call {call}\n"
            "  Work on a copy: whoever calls it still needs the original.",
        )
    complaint = _compare(wanted, given_)
    if complaint and not (exercise.also_right is not None and exercise.also_right(case, given_)):
        raise _Wrong(case, f"{complaint}\n  call    {call}\n  wanted  {_show(wanted)}\n  yours   {_show(given_)}")


def _compare(wanted: Any, given_: Any) -> str:
    """What is wrong with the given value, in a few words; nothing if it is right."""
    if given_ is None:
        return "your function returned nothing. Is there a return at its end?"
    if isinstance(wanted, tuple):
        given_ = _as_tuple(given_)
        if not isinstance(given_, tuple) or len(given_) != len(wanted):
            return f"your function must return {len(wanted)} values, separated by commas."
        complaints = (_compare(w, g) for w, g in zip(wanted, given_, strict=True))
        return next((c for c in complaints if c), "")
    if isinstance(wanted, np.ndarray) and not isinstance(given_, np.ndarray):
        return f"your function returned a {type(given_).__name__}; a NumPy array is wanted."
    try:
        array = np.asarray(given_)
        numeric = array.dtype.kind in "iufb"
    except Exception:  # a ragged list, a tensor with a gradient: whatever it is, it is no number
        numeric = False
    if not numeric:
        return f"your function returned a {type(given_).__name__}; a number is wanted."
    if np.shape(wanted) != array.shape:
        return f"your result has shape {array.shape}; wanted is shape {np.shape(wanted)}."
    if isinstance(wanted, np.ndarray) and wanted.dtype.kind in "iu" and array.dtype != wanted.dtype:
        # Of a wrong type the values may still be right: say which of the two it is.
        same = np.array_equal(wanted, array)
        return (
            f"your result has dtype {array.dtype}; wanted is {wanted.dtype}{' (the values are right)' if same else ''}."
        )
    if type(wanted) is int and not np.array_equal(wanted, array):  # whole numbers have no last digits to forgive
        return "your result has other values than wanted."
    return "" if _same(wanted, given_) else "your result has other values than wanted."


def _as_tuple(value: Any) -> Any:
    """A list, or an array with one axis, as a tuple: `return np.array([lo, hi])` gives two values as well."""
    one_axis = isinstance(value, np.ndarray) and value.ndim == 1
    return tuple(value) if one_axis or isinstance(value, list) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) != isinstance(b, tuple):
        a, b = _as_tuple(a), _as_tuple(b)
    if isinstance(a, tuple) or isinstance(b, tuple):
        same_kind = isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b)
        return same_kind and all(_same(x, y) for x, y in zip(a, b, strict=True))
    try:
        a, b = np.asarray(a), np.asarray(b)
    except Exception:
        return a is b
    kinds = {a.dtype.kind, b.dtype.kind}
    numbers = kinds <= set("biuf")
    if a.shape == b.shape and "f" in kinds and numbers:
        # Another order of the same operations may round differently in the last digits.
        tolerance = 1e-6 if np.float32 in (a.dtype, b.dtype) else 1e-9
        return bool(np.allclose(a, b, rtol=tolerance, atol=1e-30, equal_nan=True))
    return (numbers or len(kinds) == 1) and bool(np.array_equal(a, b))


def _diagnose(exercise: Exercise, attempt: Callable[..., Any], failed: Case) -> str:
    """The diagnosis of the first known mistake that gives the attempt's answers; nothing if none does.

    Where none has just the same, one with the same wrong values in another type is meant, or with an error of the
    same kind.
    """
    cases = (failed, *exercise.examples)
    with _quietly():
        answers = [_outcome(attempt, case) for case in cases]
        right = [_outcome(exercise.solution, case) for case in cases]
        known = [(mistake, [_outcome(mistake.function, case) for case in cases]) for mistake in exercise.mistakes]
    for types in (True, False):
        for mistake, theirs in known:
            alike = all(_equal_outcomes(mine, other, types) for mine, other in zip(answers, theirs, strict=True))
            wrong_values = not all(_equal_outcomes(a, b, False) for a, b in zip(theirs, right, strict=True))
            if alike and (types or wrong_values):
                return f"\n  {mistake.diagnosis}"
    return ""


def _outcome(function: Callable[..., Any], case: Case) -> tuple[str, Any]:
    arguments = dict(copy.deepcopy(case))
    try:
        value = within(SECONDS, function, arguments)
    except (Exception, SystemExit, TookTooLong) as error:
        return "raised", f"{type(error).__name__}: {error}"
    return "returned", (value, tuple(arguments.values()))  # a mistake may be to change the input


def _equal_outcomes(a: tuple[str, Any], b: tuple[str, Any], types: bool) -> bool:
    if a[0] != b[0]:
        return False
    if a[0] == "raised":  # the same error; or, less strictly, one of the same kind
        return bool(a == b if types else a[1].partition(":")[0] == b[1].partition(":")[0])
    (mine, my_inputs), (theirs, their_inputs) = a[1], b[1]
    same_type = _types(mine) == _types(theirs)
    return (same_type or not types) and _same(mine, theirs) and _same(my_inputs, their_inputs)


def _types(value: Any) -> Any:
    """The name of the dtype of what a function has returned, or of each of several things."""
    # As text: for NumPy a dtype of float64 equals None, so a list would count as an array of floats.
    return tuple(map(_types, value)) if isinstance(value, tuple) else str(getattr(value, "dtype", None))


def _is_stub(function: Any) -> bool:
    """Whether a function's body is only `...` (and perhaps a docstring): it loads a constant and returns it."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    names = {instruction.opname for instruction in dis.get_instructions(code)}
    constants = {constant for constant in code.co_consts if constant != function.__doc__}
    return names <= {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"} and constants <= {None, Ellipsis}


def _show(value: Any) -> str:
    """A value on one line, long arrays shortened."""
    if isinstance(value, np.ndarray):
        text = np.array2string(value, separator=", ", threshold=12, precision=6, max_line_width=10_000)
        return " ".join(text.split()) + f" ({value.dtype})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))})"
    if isinstance(value, np.generic):
        value = value.item()
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
