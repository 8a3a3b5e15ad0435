"""A million values counted in narrow bins: what a search needs to know of them, without sorting.

    bin of x = x truncated to 13 fraction bits: 8,192 bins between a power of two and the next

Counting and adding up are quick on every processor; how quick sorting is depends on its vector instructions. The
bins do not know where in a bin a value lies, so the error of a quantizer is known up to a small slack only. What can
win in spite of it is judged on the values themselves, and the result is that of a search on all values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlearn.arrays import slabs
from qlearn.gains import sse
from qlearn.range_search import ALIKE, Search, Tried
from qlearn.sorted_view import SortedView

DROPPED = 10  # of the 23 fraction bits of a float32
LARGEST = 0x7F7FFFFF  # the bits of the largest float32; above come infinity and NaN
MOST_JUDGED = 16  # quantizers that are judged by quantizing; for more of them sorting is quicker


class FineBins:
    """How many values fell into each bin, and what they sum to: a view, as `gains` has it, that never says too little.

    Of a bin that a threshold cuts, only count and sum are known. `gains` is the most that the values can give: they lie
    at the two ends of the bin. So `sse` is the least that the error can be; `most` is the most: all lie at their mean.

    Args:
        x: (n,) finite float32, NumPy.
        smallest: no threshold nearer to 0 is ever asked for. Values below share one bin.
    Cost: O(n), and 32 bytes for each of 16,384 bins an octave between `smallest` and the largest value.

    >>> bins = FineBins(np.float32([0.75, -0.5, 0.25, 9.0]), smallest=0.25)
    >>> bins.gains(np.array([1.0, 0.75]))
    array([2.5 , 1.75])
    """

    def __init__(self, x: Any, smallest: float) -> None:
        self.count = len(x)
        self.lowest = int(np.float32(smallest).view(np.int32)) >> DROPPED
        largest = int(np.abs([x.min(), x.max()]).max().view(np.int32)) >> DROPPED
        self.highest = max(largest - self.lowest, 0) + 1  # the bin beyond the last value, which is empty
        self.counts = np.zeros(2 * self.highest + 1, np.intp)
        self.sums, self.squares = np.zeros(2 * self.highest + 1), 0.0
        for part in slabs(x):  # in pieces that stay in the cache, and in memory that was used before
            bins, wide = self._bin(x[part]).astype(np.intp), x[part].astype(np.float64)
            np.add.at(self.counts, bins, 1)
            np.add.at(self.sums, bins, wide)
            self.squares += float(np.einsum("i,i->", wide, wide))
        self.counts_below = np.cumsum(self.counts) - self.counts
        self.sums_below = np.concatenate([[0.0], np.cumsum(self.sums)])
        self.total = self.sums_below[-1]

    def _bin(self, x: Any) -> Any:
        """The bin of each float32: its bits without the last ones, counted from the bin of 0."""
        bits = x.view(np.int32)
        place = (bits & 0x7FFFFFFF) >> DROPPED
        place -= self.lowest
        np.clip(place, 0, self.highest, out=place)
        sign = bits >> 31  # 0 or −1
        place ^= sign
        place -= sign  # with its sign, in two's complement
        place += self.highest
        return place

    def _cut(self, t: Any) -> tuple[Any, Any, Any]:
        """The gain of the bins below each threshold; the bin that it cuts, and how many values that one holds."""
        bins = self._bin(t.astype(np.float32))
        return self.counts_below[bins] * t - self.sums_below[bins], bins, self.counts[bins]

    def gains(self, t: Any) -> Any:
        """The most that G(t) = Σ max(0, t − x) can be."""
        below, bins, c = self._cut(t)
        place = bins - self.highest
        ends = (np.minimum((np.abs(place) + more + self.lowest) << DROPPED, LARGEST) for more in (0, 1))
        near, far = (end.astype(np.int32).view(np.float32).astype(np.float64) for end in ends)
        low, high = np.where(place > 0, near, -far), np.where(place < 0, -near, far)
        width = np.where(c > 0, high - low, 1)  # the empty bins at both ends may have none
        return below + (c * high - self.sums[bins]) * (t - low) / width

    def least(self, t: Any) -> Any:
        """The least that G(t) can be."""
        below, bins, c = self._cut(t)
        return below + np.maximum(c * t - self.sums[bins], 0)

    def sse(self, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        """The least that the sum of squared errors can be."""
        return sse(self, scale, zero_point, quant_min, quant_max)

    def most(self, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        """The most that the sum of squared errors can be."""
        ties = scale[..., None] * (np.arange(quant_min + 1, quant_max + 1) - zero_point[..., None] - 0.5)
        unsure = (self.gains(ties) - self.least(ties)).sum(-1)
        return self.sse(scale, zero_point, quant_min, quant_max) + 2 * scale * unsure


def search_long(x: Any, search: Search) -> tuple[float, float]:
    """The scale and zero point with the smallest error for a long row of float32, of all quantizers tried.

    >>> x = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    >>> scale, zero_point = search_long(x, Search(bits=2, symmetric=True))
    >>> round(scale, 1), zero_point
    (1.2, 0.0)
    """
    lo, hi = float(x.min()), float(x.max())
    mean = sum(float(np.abs(x[part]).sum(dtype=np.float64)) for part in slabs(x)) / len(x)
    bins = FineBins(x, smallest=0.49 * float(search.scales(lo, hi, mean).min()))
    if bins.squares == 0:
        return 0.0, 0.0  # nothing but zeros
    tried = _rivals(bins, search.tried(bins, lo, hi, mean), search)
    if not search.symmetric:
        scale, near = np.repeat(tried.scale, 3, axis=-1), search.neighbours(tried.zero_point.T).ravel()[None]
        tried = _rivals(bins, Tried(scale, near, bins.sse(scale, near, *search.limits)), search)
    errors = _judged(x, tried, search)
    best = tried.scale[:, search.first_of_scales(bins, errors)].item()
    same_scale = tried.scale.ravel() == best
    i = search.first_of_zero_points(bins, errors[:, same_scale])
    return best, tried.zero_point[:, same_scale][:, i].item()


def _rivals(bins: FineBins, tried: Tried, search: Search) -> Tried:
    """Those that can have the smallest error, or one that counts as equal, for all that the bins know."""
    front = np.argsort(tried.sse.ravel())[:MOST_JUDGED]
    most = bins.most(tried.scale[:, front], tried.zero_point[:, front], *search.limits).min() * (1 + ALIKE)
    rivals = np.flatnonzero(tried.sse <= most)
    return Tried(*(values[:, rivals] for values in (tried.scale, tried.zero_point, tried.sse)))


def _judged(x: Any, tried: Tried, search: Search) -> Any:
    """The sums of squared errors of all values, summed in float64."""
    if tried.scale.size > MOST_JUDGED:
        return SortedView(x).sse(tried.scale, tried.zero_point, *search.limits)
    quant_min, quant_max = search.limits
    errors = np.zeros(tried.scale.size)
    # In such a unit, a power of two, that the square of an error does not leave float32.
    unit = 2.0 ** np.floor(np.log2(tried.scale.max()))
    scales = (tried.scale / unit).ravel().tolist()
    for part in slabs(x):
        values = (x[part] / np.float64(unit)).astype(np.float32)
        for i, (s, z) in enumerate(zip(scales, tried.zero_point.ravel().tolist(), strict=True)):
            error = values / s
            np.rint(error, out=error)
            np.clip(error, quant_min - z, quant_max - z, out=error)
            error *= s
            error -= values
            error *= error
            errors[i] += error.sum(dtype=np.float64)
    return errors[None] * unit**2
