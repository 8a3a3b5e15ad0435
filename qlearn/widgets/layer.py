"""A layer's weights, with rows that can be made unequal, and the quantizers of every granularity for them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from qlearn.affine import QParams, fake_quantize
from qlearn.arrays import as_array
from qlearn.config import QuantConfig
from qlearn.errors import SCALE_BITS, bits_per_value
from qlearn.granularity import Granularity, PerAxis, PerGroup, PerTensor
from qlearn.widgets.values import as_numpy

MOST_VALUES = 1 << 17
SMALLEST_GROUP = 4
BITS = range(2, 9)
MOST_SPREAD = 2.0


class Layer:
    """Weights (rows, columns), and what is found about them, which is found only once.

    A row that is multiplied by a power of two has its range and its error multiplied by just that: not a digit
    changes. So what is found for rows and for groups, "row" and "group", holds at every spread; what is found
    for the others, "tensor" and "column", does not.
    """

    def __init__(self, x: Any) -> None:
        self.weights = as_matrix(x)
        rows, self.columns = self.weights.shape
        places = np.random.default_rng(0).permutation(rows)
        self._powers = math.log2(10) * np.linspace(-1, 1, rows)[places] if rows > 1 else np.zeros(1)
        self._range = lru_cache(64)(self._find_range)
        self._point = lru_cache(4096)(self._find_point)

    def spread(self, spread: float) -> Any:
        """The weights, each row multiplied by a power of two of its own, from 10^−spread to 10^spread."""
        return np.ldexp(self.weights, self._exponents(spread))

    def qparams(self, kind: str, group: int, bits: int, method: str, symmetric: bool, spread: float) -> QParams:
        """The quantizer of one granularity; `group` is 0 for all kinds but "group"."""
        by_row = kind in ("row", "group")
        lo, hi = self._range(kind, group, bits if method == "mse" else 0, method, symmetric, 0.0 if by_row else spread)
        if by_row:
            lo, hi = (np.ldexp(end, self._exponents(spread)) for end in (lo, hi))
        return QuantConfig(bits, symmetric).choose_qparams(lo, hi)

    def curve(
        self, kind: str, group: int, symmetric: bool, spread: float, scale_bits: int
    ) -> list[tuple[float, float]]:
        """Bits per value and row error for each number of bits, with min-max ranges."""
        spread = 0.0 if kind in ("row", "group") else spread
        points = [self._point(kind, group, bits, symmetric, spread) for bits in BITS]
        return [(cost(self.weights.shape, qparams, scale_bits), error) for qparams, error in points]

    def _exponents(self, spread: float) -> Any:
        return np.rint(spread * self._powers).astype(np.int32)[:, None]

    def _find_range(
        self, kind: str, group: int, bits: int, method: str, symmetric: bool, spread: float
    ) -> tuple[Any, Any]:
        """`find_range`; min-max ranges are the same for all bits, and are asked for with none."""
        by: dict[str, Granularity] = {"tensor": PerTensor(), "column": PerAxis(1), "row": PerAxis(0)}
        granularity = by[kind] if kind in by else PerGroup(group)
        return QuantConfig(bits or BITS[-1], symmetric, granularity, method).find_range(self.spread(spread))

    def _find_point(self, kind: str, group: int, bits: int, symmetric: bool, spread: float) -> tuple[QParams, float]:
        weights = self.spread(spread)
        qparams = self.qparams(kind, group, bits, "min_max", symmetric, spread)
        return qparams, row_error(weights, fake_quantize(weights, qparams))


def cost(shape: tuple[int, ...], qparams: QParams, scale_bits: int) -> float:
    """Bits per value where a scale is counted with so many bits; `bits_per_value` counts 32.

    >>> cost((4, 128), QParams(scale=1.0, zero_point=0, quant_min=-7, quant_max=7), scale_bits=8)
    4.015625
    """
    return bits_per_value(shape, qparams) - (SCALE_BITS - scale_bits) * np.size(qparams.scale) / math.prod(shape)


def as_matrix(x: Any) -> Any:
    """Weights as a NumPy matrix: one row for each index of the first axis.

    >>> as_matrix(np.zeros((8, 2, 3, 3))).shape
    (8, 18)
    """
    shape = tuple(as_array(x).shape)
    if len(shape) < 2:
        raise ValueError(f"x has shape {shape}: a layer's weights need two axes or more, the first for its outputs.")
    if math.prod(shape) > MOST_VALUES:
        raise ValueError(
            f"x has {math.prod(shape):,} values: every move quantizes all of them, so at most {MOST_VALUES:,} are "
            "taken. Pass some of its rows, such as x[:32]."
        )
    x = as_numpy(x)
    return x.reshape(len(x), -1)


def group_sizes(n: int) -> list[int]:
    """The sizes of groups that divide a row of `n` values and are worth their scale; n itself if there is no other.

    >>> group_sizes(100), group_sizes(7)
    ([4, 5, 10, 20, 25, 50], [7])
    """
    return [size for size in range(SMALLEST_GROUP, n) if n % size == 0] or [n]


def row_sizes(weights: Any) -> Any:
    """The root mean square of each row, (O, 1); 1 where all are 0."""
    size = np.sqrt(np.mean(np.square(weights, dtype=np.float64), axis=1, keepdims=True))
    return np.where(size > 0, size, 1)


def row_error(weights: Any, after: Any) -> float:
    """The error relative to the row's size, root mean square over all values.

    >>> row_error(np.array([[9.0, 9.0], [0.5, 0.5]]), np.array([[0.0, 18.0], [0.0, 1.0]]))
    1.0
    """
    return float(np.sqrt(np.mean(np.square((weights - after) / row_sizes(weights)))))
