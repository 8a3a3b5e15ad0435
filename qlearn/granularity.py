"""How many values share one scale: a whole tensor, one channel, or a group of a few.

A granularity turns the shape of x into the shape of its scales. Everything else follows from one rule:
each entry of scale covers one block of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PerTensor:
    """One scale for all of x.

        x: (A, B)  →  scale: ()

    >>> PerTensor().scale_shape((4, 6))
    ()
    """

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales for x of this shape: a single number."""
        return ()


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index along `axis`, the axis that is kept. Rows of a weight matrix are axis 0.

        x: (A, B), axis 0  →  scale: (A, 1)            x: (O, I, kh, kw), axis 0  →  scale: (O, 1, 1, 1)

    >>> PerAxis(0).scale_shape((4, 6)), PerAxis(-1).scale_shape((4, 6))
    ((4, 1), (1, 6))
    """

    axis: int

    def __post_init__(self) -> None:
        if isinstance(self.axis, bool) or not isinstance(self.axis, (int, np.integer)):
            raise TypeError(f"axis={self.axis!r} must be a whole number, that of the axis that is kept.")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales for x of this shape.

        Raises:
            ValueError: x has no such axis.
        """
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(
                f"PerAxis(axis={self.axis}): x has shape {tuple(shape)}, so axis must be "
                + (f"from {-len(shape)} to {len(shape) - 1}." if shape else "left alone: a single number has no axis.")
            )
        kept = self.axis % len(shape)
        return tuple(n if i == kept else 1 for i, n in enumerate(shape))


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `group_size` values along the last axis.

        x: (A, B)  →  scale: (A, B / group_size)

    >>> PerGroup(32).scale_shape((4, 128))
    (4, 4)
    """

    group_size: int

    def __post_init__(self) -> None:
        if (
            isinstance(self.group_size, bool)
            or not isinstance(self.group_size, (int, np.integer))
            or self.group_size < 1
        ):
            raise ValueError(f"group_size={self.group_size!r} must be a whole number of 1 or more.")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales for x of this shape.

        Raises:
            ValueError: the group size does not divide the last axis; names the sizes that do.
        """
        if not shape:
            raise ValueError(f"PerGroup({self.group_size}): x is a single number and has no axis to cut into groups.")
        n = shape[-1]
        if n % self.group_size:
            sizes = ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
            raise ValueError(
                f"group_size={self.group_size} does not divide x's last axis of length {n}. Sizes that do: {sizes}."
            )
        return (*shape[:-1], n // self.group_size)


@dataclass(frozen=True)
class PerToken:
    """One scale for all values along the last axis: for each token of a text, or each row of a batch.

        x: (N, T, C)  →  scale: (N, T, 1)

    >>> PerToken().scale_shape((4, 6)), PerToken().scale_shape((2, 4, 6))
    ((4, 1), (2, 4, 1))
    """

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales for x of this shape.

        Raises:
            ValueError: x is a single number.
        """
        if not shape:
            raise ValueError("PerToken(): x is a single number and has no last axis.")
        return (*shape[:-1], 1)


Granularity = PerTensor | PerAxis | PerGroup | PerToken
KINDS = {PerTensor: "PerTensor()", PerAxis: "PerAxis(0)", PerGroup: "PerGroup(32)", PerToken: "PerToken()"}


def check_granularity(granularity: object) -> None:
    """Raise `TypeError` unless it is one of the four.

    >>> check_granularity(PerTensor)
    Traceback (most recent call last):
    TypeError: granularity=PerTensor is a class: PerTensor(), with brackets, is a granularity.
    """
    if isinstance(granularity, tuple(KINDS)):
        return
    if isinstance(granularity, type):
        for kind, example in KINDS.items():
            if issubclass(granularity, kind):
                raise TypeError(
                    f"granularity={granularity.__name__} is a class: {example}, with brackets, is a granularity."
                )
    raise TypeError(
        f"granularity={granularity!r} must be PerTensor(), PerAxis(axis), PerGroup(group_size) or PerToken()."
    )
