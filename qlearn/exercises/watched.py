"""Arrays that report what is done with them: for rules that an answer alone does not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Note = Callable[[str, Sequence[Any], Any], None]  # the operation's name, its arrays and numbers, its result


class Watched(np.ndarray):
    """An array each operation on which is noted, and whose results are watched as well.

    Whole numbers are computed in int64, so that one who looks sees a sum that a narrower type would have wrapped.
    """

    note: Note | None = None

    def __array_finalize__(self, parent: Any) -> None:
        self.note = getattr(parent, "note", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return self._noted(ufunc.__name__, getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return self._noted(function.__name__, function, arguments, options)

    def _noted(self, name: str, function: Any, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
        out = options.pop("out", None)
        target = out[0] if isinstance(out, tuple) else out
        plain, options = _bare(inputs), {key: _bare(value) for key, value in options.items()}
        if target is not None:
            options["out"] = _bare(watch(target, None))  # in it stays what `where` leaves out
        result = function(*plain, **options)
        if self.note is not None:
            self.note(name, plain, result)
        if target is not None:
            target.view(np.ndarray)[...] = result
            return target
        return watch(result, self.note) if isinstance(result, np.ndarray) else result


def watch(values: Any, note: Note | None) -> Watched:
    """A watched view of an array. What `note` raises ends the operation that it was told of.

    >>> names = []
    >>> watch(np.arange(3), lambda name, inputs, result: names.append(name)) * 2 + 1
    Watched([1, 3, 5])
    >>> names
    ['multiply', 'add']
    """
    watched = np.asarray(values).view(Watched)
    watched.note = note
    return watched


def _bare(value: Any) -> Any:
    """The same with plain arrays, those of whole numbers in int64."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_bare, value))
    if not isinstance(value, Watched):
        return value
    plain = value.view(np.ndarray)
    return plain.astype(np.int64, copy=False) if plain.dtype.kind in "iu" else plain
