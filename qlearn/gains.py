"""What one function of the data, the gain, says about every quantizer of evenly spaced ticks.

    G(t) = Σ max(0, t − x)        summed over the values below the threshold t

Whoever can answer G for any t, exactly or nearly, can judge any scale and zero point without quantizing. Here such
a source is called a view: values that are sorted, or counted in bins, or several of these together. It has

    count, total, squares    how many values, Σ x, Σ x²
    gains(t)                 G of every entry of t, in t's shape
    sse(…)                   the sum of squared errors of many quantizers: this file's `sse`, or a better way to it
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from qlearn.arrays import quietly

AT_ONCE = 1 << 20  # thresholds asked for together
EQUAL = 1e-9  # gain and loss, in steps a value, that differ by less are equal


class View(Protocol):
    """What this file asks of values. For rows of values, all that it has begins with the axis of the rows."""

    @property
    def count(self) -> int:
        """How many values (of a row)."""

    @property
    def total(self) -> Any:
        """Σ x."""

    @property
    def squares(self) -> Any:
        """Σ x²."""

    def gains(self, t: Any) -> Any:
        """G(t) = Σ max(0, t − x), in t's shape."""

    def sse(self, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        """Σ (x − x̂)² for many quantizers."""


@quietly
def sse(view: View, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
    """The sum of squared errors after quantization, for many quantizers.

        SSE = Σ (x − l_max)² − 2 s Σ_q G(t_q)       t_q = s (q − z − ½),  q = quant_min + 1 … quant_max
        l_max = s (quant_max − z), the last tick

    With the last tick alone the error is the first term. Each tick that is added below it takes over the values
    under the tie t_q, and lowers their squared errors by 2 s (t_q − x) in all. A value on a tie adds 0, so it does
    not matter to which side it is rounded. The zero point may be any number, also q + ½: then no tick lies at 0.0.

    Args:
        scale, zero_point: NumPy arrays of one shape (…), for as many quantizers.
    Returns:
        float64 (…).
    Cost: one gain for each quantizer and code.

    >>> from qlearn.sorted_view import SortedView
    >>> sse(SortedView([0.75, -0.5, 0.25, 9.0]), np.array([0.5, 1.0]), np.array([1, 1]), 0, 7)
    array([36.125,  9.375])
    """
    s, z = np.broadcast_arrays(np.asarray(scale, np.float64), np.asarray(zero_point, np.float64))
    last = s * (quant_max - z)
    step = max(1, AT_ONCE // s.size)
    gained = np.zeros(s.shape)
    for first in range(quant_min + 1, quant_max + 1, step):
        q = np.arange(first, min(first + step, quant_max + 1))
        gained += view.gains(s[..., None] * (q - z[..., None] - 0.5)).sum(-1)
    return np.maximum(view.squares - 2 * last * view.total + view.count * last**2 - 2 * s * gained, 0)


@quietly
def best_zero_points(view: View, scale: Any, quant_max: int) -> Any:
    """For each scale, the zero point of the codes 0 … quant_max with the smallest sum of squared errors.

    The ticks lie at the multiples of s; the zero point says which quant_max + 1 of them in a row are used: those
    from m = −z on. One place up, the lowest tick is lost and one is gained above the highest:

        SSE(m + 1) − SSE(m) = 2 s (G(s (m + ½)) − G⁺(s (m + quant_max + ½)))       G⁺(t) = Σ max(0, x − t)

    The loss grows with m and the gain shrinks, so the error falls, and from some place on it rises: halving finds
    that place, and with it the best of all zero points. Where several are equally good, because more ticks are there
    than the values need, it is the smallest.

    Args:
        scale: NumPy array (…).
    Returns:
        Whole numbers 0 … quant_max as float64 (…).
    Cost: 2 log₂(quant_max + 1) gains for each scale.

    >>> from qlearn.sorted_view import SortedView
    >>> best_zero_points(SortedView([-1.0, 0.0, 1.0, 2.0]), np.array([1.0, 0.5]), 3)
    array([1., 0.])
    """
    s = np.asarray(scale, np.float64)
    low, high = np.full(s.shape, -float(quant_max)), np.zeros(s.shape)
    while (low < high).any():
        m = np.floor((low + high) / 2)
        bottom, top = s * (m + 0.5), s * (m + quant_max + 0.5)
        below, under = np.moveaxis(view.gains(np.stack([bottom, top], -1)), -1, 0)
        above = view.total - view.count * top + under  # G⁺ = Σ (x − t) + G
        better = above - below > -EQUAL * view.count * s
        low, high = np.where(better & (low < high), m + 1, low), np.where(better, high, m)
    return -low + 0.0  # no −0.0
