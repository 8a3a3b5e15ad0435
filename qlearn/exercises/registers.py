"""Arrays whose values cannot be taken out: for rules about every operation between a challenge's input and its answer.

A subclass of `ndarray`, such as `watched.Watched`, gives its values to `np.asarray`, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qlearn.exercises.challenges import CannotBeJudged
from qlearn.exercises.watched import Note

_OUT = "takes values out of the registers. Use operators and NumPy's functions on whole arrays."


class Registers(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that computes as NumPy does, notes each operation, and gives nothing but such arrays back.

    Whole numbers are computed in int64, so that one who looks sees a sum that a narrower type would have wrapped.

    >>> held = Registers(np.arange(3), lambda name, inputs, result: print(name, result))
    >>> np.clip(held * 2 + 1, 0, 4).shape
    multiply [0 2 4]
    add [1 3 5]
    clip [1 3 4]
    (3,)
    >>> np.asarray(held)
    Traceback (most recent call last):
    qlearn.exercises.challenges.CannotBeJudged: np.asarray, or what calls it, takes values out of the registers. ...
    """

    def __init__(self, values: Any, note: Note) -> None:
        self._values, self._note = np.asarray(values), note

    shape = property(lambda self: self._values.shape)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    dtype = property(lambda self: self._values.dtype)
    T = property(lambda self: self.transpose())

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise CannotBeJudged(f"np.asarray, or what calls it, {_OUT}")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        name = ufunc.__name__
        if getattr(np, name, None) is not ufunc:
            raise CannotBeJudged(f"{name} {_OUT}")  # a Python function, by np.frompyfunc
        return self._noted(name, getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return self._noted(function.__name__, function, arguments, options)

    def __getattr__(self, name: str) -> Any:
        method = None if name.startswith("_") else getattr(np.ndarray, name, None)
        if method is None:
            raise AttributeError(f"an array has no attribute {name!r}")
        if not hasattr(np, name) and name not in ("astype", "flatten"):  # tolist, item, data
            raise CannotBeJudged(f".{name} {_OUT}")
        return lambda *inputs, **options: self._noted(name, method, (self, *inputs), options)

    def __getitem__(self, place: Any) -> Any:
        return self._held(self._values[_bare(place)], "[ ]")

    def __setitem__(self, place: Any, values: Any) -> None:
        self._values[_bare(place)] = _bare(values)

    def __bool__(self) -> bool:
        return bool(self._values)  # a chip can branch

    def __len__(self) -> int:
        return len(self._values)

    def __int__(self) -> int:
        raise CannotBeJudged(f"int() {_OUT}")

    def __index__(self) -> int:
        raise CannotBeJudged(f"a number of one entry {_OUT}")

    def __float__(self) -> float:
        raise CannotBeJudged(f"float() {_OUT}")

    def held(self) -> Any:
        """The values, for the judge."""
        return self._values.copy()

    def _noted(self, name: str, function: Any, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
        if any(callable(value) and not isinstance(value, type) for value in (*inputs, *options.values())):
            raise CannotBeJudged(f"np.{name} with a function of yours {_OUT}")
        out = options.pop("out", None)
        target = out[0] if isinstance(out, tuple) else out
        if target is not None and not isinstance(target, Registers):
            raise CannotBeJudged(f"np.{name} into an array of yours {_OUT}")
        plain, options = _bare(inputs), {key: _bare(value) for key, value in options.items()}
        if target is not None:
            options["out"] = _bare(target).copy()  # in it stays what `where` leaves out
        result = function(*plain, **options)
        self._note(name, plain, result)
        if target is not None:
            target._values[...] = result
            return target
        return self._held(result, f"np.{name}")

    def _held(self, result: Any, name: str) -> Any:
        if isinstance(result, (np.ndarray, np.generic)):
            return Registers(result, self._note)
        if isinstance(result, (list, tuple)):
            return tuple(self._held(each, name) for each in result)
        if isinstance(result, int):  # a shape, or whether two arrays are equal
            return result
        raise CannotBeJudged(f"{name} {_OUT}")


def _bare(value: Any) -> Any:
    """The same with plain arrays, those of whole numbers in int64."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_bare, value))
    if not isinstance(value, Registers):
        return value
    plain = value._values
    return plain.astype(np.int64, copy=False) if plain.dtype.kind in "iu" else plain
