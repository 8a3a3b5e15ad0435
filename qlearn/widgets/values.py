"""The values that an explorer quantizes: sorted once, with outliers that come and go beside them."""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import Any

import numpy as np

from qlearn.affine import QParams, dequantize
from qlearn.arrays import as_floats, to_numpy
from qlearn.errors import bits_per_value
from qlearn.sorted_view import SortedView
from qlearn.widgets.controls import Number, Slider

LARGEST_OUTLIER = 100  # standard deviations

OUTLIERS = Slider("outliers", "How many large positive values are added to x.", 0, 100, 0)
OUTLIER_SIZE = Slider(
    "outlier size (std)",
    "How far out the largest outlier lies, in standard deviations of x; the smallest at 0.8 times that.",
    1,
    LARGEST_OUTLIER,
    20,
)

# How `measure` is shown.
SCALE = {"scale": Number("scale"), "zero_point": Number("zero point")}
CODES = {"codes_used": Number("codes used", "of {codes}"), "bits_per_value": Number("bits per value")}
ERRORS = {
    "mse": Number("MSE"),
    "sqnr_db": Number("SQNR", "dB"),
    "largest_error": Number("largest error"),
    "clipped_percent": Number("clipped", "%"),
}

Parts = list[SortedView]  # values that are quantized together, each part sorted by itself


class Values:
    """The values of `x`, and what is to be known about them before anything is drawn.

    Attributes:
        base: the values in order; never changed.
        mean, std: their mean and standard deviation; std is larger than 0 even where all are equal.
        lo, hi: the smallest and the largest.
        unit: half the width of their middle two thirds: one standard deviation, were they normal.

    >>> values = Values([3.0, -1.0, 1.0])
    >>> values.lo, values.hi, values.outliers(2, size=10).round(1)
    (-1.0, 3.0, array([16.3, 13.1]))
    """

    def __init__(self, x: Any) -> None:
        self.base = SortedView(as_numpy(x))
        ordered, n = self.base.values, len(self.base)
        _ = self.base.sum1, self.base.sum2  # made now: every move asks for them, and so do the axes before the first
        self.lo, self.hi = float(ordered[0]), float(ordered[-1])
        self.mean = self.base.total / n
        deviation = math.sqrt(max(self.base.squares / n - self.mean**2, 0))
        self.std = deviation or max(abs(self.lo), abs(self.hi)) or 1.0
        middle = float(ordered[int(0.84 * (n - 1))]) / 2 - float(ordered[int(0.16 * (n - 1))]) / 2
        self.unit = middle or self.std

    @property
    def reach(self) -> float:
        """How far from 0 a value or an outlier may lie."""
        return max(-self.lo, self.hi, LARGEST_OUTLIER * self.std)

    def outliers(self, count: int, size: float) -> Any:
        """`count` values from `size` standard deviations down to four fifths of it."""
        dtype = self.base.values.dtype
        return np.minimum(np.linspace(1, 0.8, count) * size * self.std, np.finfo(dtype).max).astype(dtype)

    def parts(self, count: int, size: float) -> Parts:
        """The values, and beside them so many outliers: moving those sorts nothing again."""
        return [self.base, SortedView(self.outliers(count, size))] if count else [self.base]


def as_numpy(x: Any) -> Any:
    """`x` as a NumPy array of float32 or float64, finite and not empty."""
    return to_numpy(as_floats(x))


def ends(parts: Parts) -> tuple[Any, Any]:
    """The smallest and the largest value."""
    return min(part.values[0] for part in parts), max(part.values[-1] for part in parts)


def measure(parts: Parts, qparams: QParams) -> dict[str, Any]:
    """The numbers that all explorers show, and the codes behind them, at O(2ᵇ log n).

    >>> measured = measure([SortedView([0.9, -0.6, 0.25, 9.0])], QParams(0.5, 1, 0, 7))
    >>> measured["clipping"], measured["clipped_percent"], measured["codes_used"]
    (9.0, 25.0, 4)
    """
    n = sum(len(part) for part in parts)
    measured = reduce(operator.add, [part.measure(qparams) for part in parts])
    codes = np.arange(qparams.quant_min, qparams.quant_max + 1)
    return {
        "scale": float(qparams.scale),
        "zero_point": int(qparams.zero_point),
        "mse": measured.sse / n,
        "rounding": measured.rounding / n,
        "clipping": measured.clipping / n,
        "sqnr_db": decibel(sum(part.squares for part in parts), measured.sse),
        "largest_error": measured.largest_error,
        "clipped_percent": 100 * measured.clipped / n,
        "codes_used": int((measured.counts > 0).sum()),
        "codes": len(codes),
        "bits_per_value": bits_per_value((n,), qparams),
        "qparams": qparams,
        "ticks": dequantize(codes, qparams).astype(np.float64),
        "counts": measured.counts,
    }


def decibel(signal: float, noise: float) -> float:
    """How much larger the signal is than the noise: 10 · log10(signal / noise).

    >>> decibel(100.0, 1.0), decibel(1.0, 0.0)
    (20.0, inf)
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
