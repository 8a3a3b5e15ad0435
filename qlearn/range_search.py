"""The search for the quantizer with the smallest mean squared error.

    scales of a grid  →  the best zero point of each  →  a finer grid around the best scale  →  (scale, zero point)

There is one search, for whatever can judge quantizers: a view of the values, as `gains` has it. Numbers are float64
NumPy arrays that begin with the axis of the rows: a row of values gets a quantizer of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.affine import quant_limits
from qlearn.arrays import Array, as_floats, like
from qlearn.gains import View, best_zero_points

CANDIDATES = 100
BELOW = ABOVE = 20  # scales more, down to half the smallest of the grid, and up to twice the largest
AROUND = 2  # steps to both sides of the best scale of the grid, which are then cut into parts,
PARTS = {0: 32, 1 << 16: 96}  # more of them from so many values on: there the error says more about the scale
HALVES = 4  # and then the two steps of that finer grid beside its best scale, again and again,
FINE = 0.0025  # until scales are at most this far apart, relative to each other
BESIDE = 1.02  # to look around the best scale means at least this factor, however dense the grid is
TIE = 1e-6  # errors of two scales that differ by less, relative to the smaller one, count as equal;
ALIKE = 1e-5  # those of neighbouring zero points by less than this: data that are alike on both sides are common
EXACT = 1e-12  # and so do errors below this share of Σ x², to which float32 rounds the values themselves
NEAR = 1e-3  # a zero point this little below a code counts as that code


def clip_grid(lo: Any, hi: Any, mean: Any, candidates: int = CANDIDATES) -> tuple[Array, Array]:
    """The ranges that a search tries: both ends cut off at ±t, for t from mean|x| to the largest |x|.

        t_i = mean^(1 − i/(m−1)) · max(−lo, hi)^(i/(m−1)),  i = 0 … m − 1
        lo_i = max(lo, −t_i),  hi_i = min(hi, t_i)

    Every t is larger than the one before by the same factor, so the grid is as fine for a best range far below
    the largest value as for one near it. The last one is the min-max range.

    Args:
        lo, hi, mean: smallest and largest value and mean of |x|, numbers or arrays (…), in float64.
    Returns:
        lo, hi: (…, candidates).

    >>> clip_grid(-1.0, 16.0, 1.0, candidates=3)
    (array([-1., -1., -1.]), array([ 1.,  4., 16.]))
    """
    lo, hi, mean = (as_floats(number, "range")[..., None] for number in (lo, hi, mean))
    xp = array_namespace(lo, hi, mean)
    largest = xp.maximum(-lo, hi)
    share = xp.astype(like(np.linspace(0, 1, candidates), lo), lo.dtype)
    safe = xp.where(mean > 0, mean, xp.ones_like(mean))
    t = safe * (largest / safe) ** share
    t = xp.where(share == 1, largest, t)  # a power rounds; the widest range is the min-max range itself
    return xp.maximum(lo, -t), xp.minimum(hi, t)


@dataclass(frozen=True)
class Tried:
    """The quantizers that a search has judged, in rising order of their scales: arrays (rows, tried)."""

    scale: Any
    zero_point: Any
    sse: Any


@dataclass(frozen=True)
class Search:
    """What a search looks for: the codes, and how many scales it tries first.

    >>> from qlearn.sorted_view import SortedView
    >>> view = SortedView([-1.0, -1.0, 0.0, 1.0, 1.0, 2.0])
    >>> Search(bits=2).best(view, Search(bits=2).tried(view, -1.0, 2.0, 1.0))
    (array([1.]), array([1.]))
    """

    bits: int
    symmetric: bool = False
    narrow_range: bool = True
    candidates: int = CANDIDATES

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return quant_limits(self.bits, symmetric=self.symmetric, narrow_range=self.narrow_range)

    def tried(self, view: View, lo: Any, hi: Any, mean: Any) -> Tried:
        """Judge the scales of a grid, each with its best zero point, and then those of finer grids around the best.

        Args:
            lo, hi, mean: smallest and largest value and mean of |x|, (rows,) or numbers.
        Cost: 2ᵇ gains for each of candidates + 137 scales, or candidates + 78; a few more with far outliers.
        """
        parts = [self._judged(view, self.scales(lo, hi, mean))]
        finer = PARTS[max(least for least in PARTS if least <= view.count)]
        steps, beside, done = AROUND, BESIDE, np.array([[False]])
        while not done.all():
            scale, i = parts[-1].scale, parts[-1].sse.argmin(-1)[:, None]
            best, last = np.take_along_axis(scale, i, -1), scale.shape[-1] - 1
            low = np.minimum(np.take_along_axis(scale, np.maximum(i - steps, 0), -1), best / beside)
            high = np.maximum(np.take_along_axis(scale, np.minimum(i + steps, last), -1), best * beside)
            # A row that is done stays as it is: what is found for it must not depend on the rows beside it.
            low, high = np.where(done, best, low), np.where(done, best, high)
            parts.append(self._judged(view, np.squeeze(np.geomspace(low, high, finer + 1, axis=-1), 1)))
            done = np.log(high / low) <= FINE * finer
            steps, beside, finer = 1, 1.0, HALVES
        scale, zero_point, errors = (
            np.concatenate([getattr(part, name) for part in parts], -1) for name in ("scale", "zero_point", "sse")
        )
        order = np.argsort(scale, -1, kind="stable")
        return Tried(*(np.take_along_axis(values, order, -1) for values in (scale, zero_point, errors)))

    def scales(self, lo: Any, hi: Any, mean: Any) -> Any:
        """The first scales: those of the ranges of `clip_grid`, and of some narrower and wider ones, (rows, tried)."""
        lo, hi, mean = (np.atleast_1d(np.asarray(number, np.float64)) for number in (lo, hi, mean))
        narrow = mean[:, None] * np.geomspace(0.5, 1, BELOW, endpoint=False)
        low, high = clip_grid(lo, hi, mean, self.candidates)
        low = np.concatenate([np.maximum(lo[:, None], -narrow), low], -1)
        high = np.concatenate([np.minimum(hi[:, None], narrow), high], -1)
        scale = self.scale_of(low, high)
        return np.concatenate([scale, scale[:, -1:] * np.geomspace(1, 2, ABOVE + 1)[1:]], -1)

    def scale_of(self, lo: Any, hi: Any) -> Any:
        """The scale of each range, widened to hold 0, as in `choose_qparams`."""
        lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
        quant_min, quant_max = self.limits
        scale = np.maximum(lo / quant_min, hi / quant_max) if self.symmetric else hi / quant_max - lo / quant_max
        return np.where(scale > 0, scale, 1.0)

    def quantizers_of(self, lo: Any, hi: Any) -> tuple[Any, Any]:
        """Scale and zero point of each range (c,); for asymmetric codes with both zero points beside −lo / scale.

        Where the two ends are alike, −lo / scale lies halfway between two codes, and the last bit of the data would
        decide to which one it is rounded.

        >>> Search(bits=2).quantizers_of(np.array([-3.0]), np.array([3.0]))
        (array([2., 2.]), array([1., 2.]))
        """
        scale = self.scale_of(lo, hi)
        if self.symmetric:
            return scale, np.zeros_like(scale)
        below = np.floor(-np.minimum(lo, 0) / scale + NEAR)
        both = np.minimum(np.stack([below, below + 1], -1), self.limits[1])
        return np.repeat(scale, 2), both.ravel()

    def settled(self, lo: float, hi: float) -> tuple[float, float]:
        """A range like this one whose ends are ticks; where −lo / scale lies halfway, or nearly, it is rounded up.

        >>> Search(bits=2).settled(-3.0, 3.0)
        (-4.0, 2.0)
        """
        scale = self.scale_of(lo, hi)
        zero_point = np.floor(-min(lo, 0.0) / scale + 0.5 + NEAR)
        first, last = self.range_of(scale, np.minimum(zero_point, self.limits[1]), np.float64)
        return float(first), float(last)

    def best(self, view: View, tried: Tried) -> tuple[Any, Any]:
        """The scale and zero point, (rows,), with the smallest error among those tried.

        Of scales whose errors are equal up to `TIE` the smallest is taken. Of neighbouring zero points whose errors
        are equal up to `ALIKE`, the smallest. So a last bit in the data decides nothing.
        """
        i = self.first_of_scales(view, tried.sse)[:, None]
        scale, zero_point = np.take_along_axis(tried.scale, i, -1), np.take_along_axis(tried.zero_point, i, -1)
        if not self.symmetric:
            near = self.neighbours(zero_point)
            errors = view.sse(np.broadcast_to(scale, near.shape), near, *self.limits)
            zero_point = np.take_along_axis(near, self.first_of_zero_points(view, errors)[:, None], -1)
        something = view.squares > 0  # of nothing but zeros the range is 0 … 0
        scale, zero_point = (np.squeeze(np.where(something, found, 0.0), 1) for found in (scale, zero_point))
        return scale, zero_point

    def first_of_scales(self, view: View, errors: Any) -> Any:
        """The place of the first error in each row that counts as equal to the smallest one."""
        return _first(errors, TIE, EXACT * view.squares)

    def first_of_zero_points(self, view: View, errors: Any) -> Any:
        """The same for zero points beside each other, of one scale."""
        return _first(errors, ALIKE, EXACT * view.squares)

    def neighbours(self, zero_point: Any) -> Any:
        """The zero points beside each one, and itself, in order: (rows, 3) of (rows, 1)."""
        return np.clip(zero_point + np.array([-1.0, 0.0, 1.0]), 0, self.limits[1])

    def range_of(self, scale: Any, zero_point: Any, dtype: Any, exponent: Any = 0) -> tuple[Any, Any]:
        """The range whose ends are the first and the last tick, times 2^exponent and rounded to a type: lo, hi.

        `choose_qparams` makes of it the same zero point, and the same scale up to that rounding.

        >>> Search(bits=2).range_of(np.array([0.5]), np.array([1.0]), np.float32)
        (array([-0.5], dtype=float32), array([1.], dtype=float32))
        """
        largest = float(np.finfo(dtype).max)
        with np.errstate(over="ignore"):  # the last tick may lie beyond the largest number: then that is the end
            scale = np.minimum(scale, np.finfo(np.float64).max)  # 0 steps of infinity would be NaN
            ends = [np.ldexp(scale * (code - zero_point), exponent) for code in self.limits]
        low, high = (np.clip(end, -largest, largest).astype(dtype) + 0 for end in ends)  # no −0.0
        return low, high

    def _judged(self, view: View, scale: Any) -> Tried:
        quant_min, quant_max = self.limits
        zero_point = np.zeros_like(scale) if self.symmetric else best_zero_points(view, scale, quant_max)
        return Tried(scale, zero_point, view.sse(scale, zero_point, quant_min, quant_max))


def _first(errors: Any, share: float, slack: Any) -> Any:
    """The place of the first error in each row that exceeds the smallest by no more than a share of it and slack."""
    return (errors <= errors.min(-1, keepdims=True) * (1 + share) + slack).argmax(-1)
