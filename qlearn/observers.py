"""Observers look at data batch by batch and remember just enough to choose a quantizer.

    collect → merge → solve:   observe(x) adds to the statistics, merge(other) joins two, qparams() solves.

The statistics are plain state of bounded size. Observing in another order, or on several workers that are
merged afterwards, gives the same quantizer.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from qlearn.affine import QParams
from qlearn.arrays import Array, as_floats, block_rows
from qlearn.config import QuantConfig
from qlearn.ranges import min_max


class MinMaxObserver:
    """Remember the smallest and the largest value seen, for each block of the granularity.

        lo ← min(lo, min(x)),  hi ← max(hi, max(x));   qparams = choose_qparams(lo, hi)

    Memory: two numbers a block, however much data goes by.

    Args:
        config: bits, scheme and granularity of the quantizer that is asked for at the end.

    Attributes:
        lo, hi: the range so far, in the granularity's scale shape; None before the first `observe`.

    Raises:
        ValueError: a configuration whose method is another than "min_max".

    >>> import numpy as np
    >>> observer = MinMaxObserver(QuantConfig(bits=2))
    >>> observer.observe(np.array([0.0, 3.0])).observe(np.array([-1.0, 2.0])).qparams()
    QParams(scale=1.3333333333333333, zero_point=1, quant_min=0, quant_max=3)
    """

    def __init__(self, config: QuantConfig | None = None) -> None:
        self.config = config if config is not None else QuantConfig()
        if self.config.method != "min_max":
            raise ValueError(f"method={self.config.method!r}: a MinMaxObserver remembers nothing but 'min_max'.")
        self.lo: Array | None = None
        self.hi: Array | None = None

    def observe(self, x: Any) -> MinMaxObserver:
        """Take in one batch; returns the observer, so that calls can be chained.

        Raises:
            ValueError: empty `x`, NaN or infinity in `x`, or a shape with other blocks than before.
        Cost: O(n).
        """
        x = as_floats(x)
        shape = self.config.granularity.scale_shape(tuple(x.shape))
        lo, hi = (end.reshape(shape)[()] for end in min_max(block_rows(x, shape) if shape else x.reshape(-1)))
        self._widen(lo, hi)
        return self

    def merge(self, other: MinMaxObserver) -> MinMaxObserver:
        """A new observer that has seen what both have seen. Neither is changed; the order does not matter.

        Raises:
            ValueError: the two were made for different configurations, or saw blocks of different shapes.
        """
        if other.config != self.config:
            raise ValueError(f"these observers cannot be merged: one has {self.config}, the other {other.config}.")
        merged = type(self)(self.config)
        for part in (self, other):
            if part.lo is not None:
                merged._widen(part.lo, part.hi)
        return merged

    def qparams(self) -> QParams:
        """The quantizer for what was seen.

        Raises:
            RuntimeError: nothing was observed yet.
        """
        if self.lo is None:
            raise RuntimeError("this observer has seen no data: call observe(x) (or calibrate the network) first.")
        return self.config.choose_qparams(self.lo, self.hi)

    def _widen(self, lo: Array, hi: Array) -> None:
        if self.lo is None or self.hi is None:
            self.lo, self.hi = lo, hi
            return
        if lo.shape != self.lo.shape:
            raise ValueError(
                f"this batch has ranges of shape {tuple(lo.shape)}, earlier ones had {tuple(self.lo.shape)}: "
                "every batch needs the same blocks."
            )
        xp = array_namespace(lo)
        self.lo, self.hi = xp.minimum(self.lo, lo)[()], xp.maximum(self.hi, hi)[()]

    def __repr__(self) -> str:
        seen = "nothing seen yet" if self.lo is None else f"lo={self.lo}, hi={self.hi}"
        return f"MinMaxObserver({seen})"
