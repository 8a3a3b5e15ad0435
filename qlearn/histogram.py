"""A histogram whose bins never move: adding two of them up is exact, whatever came first.

    bin of x = x truncated to bfloat16: its sign, its exponent, and the first 7 of its 23 fraction bits

A bin is as wide as its values are large, 0.4 to 0.8 % of them, and the bins reach from −3.4e38 to 3.4e38. So the
histogram resolves a million values near 0 and a lone 1e6 alike, where equal bins would put all but one value
into a single bin, and it never has to know the range in advance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.arrays import Array, as_floats, check_finite, to_numpy
from qlearn.gains import sse
from qlearn.ranges import between, place_of

PATTERNS = 1 << 16  # of 16 bits
PIECE = 1 << 15  # values counted at once: with all that is made of them they stay in the cache
COUNTED_FROM = 1 << 16  # values: for fewer, sorting them is quicker than going through all patterns


@dataclass(frozen=True, eq=False, repr=False)
class LogHistogram:
    """How many values fell into each bin, and the smallest and the largest of them; empty bins are not kept.

    It stands for a list of values: those of a bin evenly spaced from its smallest to its largest. Where no bin
    holds more than two values, or all that it holds are equal, that is the very list that was counted.

    Attributes:
        first, last: the smallest and the largest value of each bin, ascending, (m,) float32.
        counts: how many values each bin holds, (m,) int64, 1 or more.

    Memory: 16 bytes a bin, at most 65,280 bins or 1.04 MB; a million normal values fill 3,600 bins.

    >>> LogHistogram.of([0.0, 0.0, 3.0]) + LogHistogram.of([-1.0, 3.005, 1e6])
    LogHistogram(6 values in 4 bins, from -1 to 1e+06)
    """

    first: np.ndarray
    last: np.ndarray
    counts: np.ndarray

    @staticmethod
    def of(x: Any) -> LogHistogram:
        """Count the values of `x`. Values below 9.2e-41 in size share the bin of 0.0.

        Args:
            x: array of any shape and float type; float64 is rounded to float32.
        Raises:
            ValueError: empty `x`, NaN or infinity in `x`, or a number beyond float32's largest.
        Cost: O(n): three passes that count, whatever the order; one sort for fewer values than there are bins.

        >>> LogHistogram.of([1.0, 1.001, 2.0]).counts
        array([2, 1])
        """
        return LogHistogram.of_finite(as_floats(x).reshape(-1))

    @staticmethod
    def of_finite(values: Array) -> LogHistogram:
        """The same for floats (n,) that are known to be finite."""
        values = to_numpy(as_float32(values))
        return _by_counting(values) if len(values) >= COUNTED_FROM else _by_sorting(np.sort(values))

    def __add__(self, other: LogHistogram) -> LogHistogram:
        """The histogram of both lists of values: exact, and the same in any order. Cost: O(m log m)."""
        first, last, counts = (
            np.concatenate(pair)
            for pair in ((self.first, other.first), (self.last, other.last), (self.counts, other.counts))
        )
        order = np.argsort(first, kind="stable")
        patterns = first[order].view(np.int32) >> 16
        starts = np.flatnonzero(np.append(True, patterns[1:] != patterns[:-1]))
        return LogHistogram(
            np.minimum.reduceat(first[order], starts),
            np.maximum.reduceat(last[order], starts),
            np.add.reduceat(counts[order], starts),
        )

    def __eq__(self, other: object) -> bool:
        """The same bins, with the same ends and counts."""
        return self._bytes() == other._bytes() if isinstance(other, LogHistogram) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._bytes())

    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(array.tobytes() for array in (self.first, self.last, self.counts))

    def __len__(self) -> int:
        return int(self._places[-1])

    def __repr__(self) -> str:
        return (
            f"LogHistogram({len(self):,} values in {len(self.counts):,} bins, "
            f"from {self.first[0]:.4g} to {self.last[-1]:.4g})"
        )

    @property
    def nbytes(self) -> int:
        """What the histogram keeps in memory."""
        return self.first.nbytes + self.last.nbytes + self.counts.nbytes

    def below(self, thresholds: Any) -> np.ndarray:
        """How many values are smaller than each threshold: #{x < t}, int64.

        >>> LogHistogram.of([1.0, 1.001, 1.002, 2.0]).below([1.0, 1.0015, 5.0])
        array([0, 2, 4])
        """
        t = np.asarray(thresholds, dtype=np.float64)
        bins, inside = self._cut(t)
        return self._places[bins] + inside

    def quantile(self, share: float) -> float:
        """The value below which this share of all values lies, between two of them as `numpy.quantile` has it.

        Its error is that of a place in one bin: less than 0.8 % of the value.

        >>> LogHistogram.of([1.0, 2.0, 3.0, 100.0]).quantile(0.5)
        2.5
        """
        k, t = place_of(share, len(self))
        return float(between(self._at(k), self._at(min(k + 1, len(self) - 1)), t))

    @cached_property
    def mean_magnitude(self) -> float:
        """The mean of |x|. Every bin has one sign, so it is the sum of the bins' sums without their sign."""
        return float(np.abs(np.diff(self._sums)).sum()) / len(self)

    def sse(self, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> np.ndarray:
        """The sum of squared errors after quantization; the formula is `gains.sse`'s.

        Args:
            scale, zero_point: arrays of one shape (…), for as many quantizers.
        Returns:
            float64 (…).
        Cost: O(2ᵇ log m) for each quantizer, however many values were counted.

        >>> LogHistogram.of([0.75, -0.5, 0.25, 9.0]).sse([0.5], [1], 0, 7)
        array([36.125])
        """
        return sse(self, scale, zero_point, quant_min, quant_max)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return len(self)

    @property
    def total(self) -> float:
        """Σ x."""
        return float(self._sums[-1])

    def gains(self, t: Any) -> np.ndarray:
        """G(t) = Σ max(0, t − x), in t's shape."""
        t = np.asarray(t, dtype=np.float64)
        bins, inside = self._cut(t)
        cut = np.minimum(bins, len(self.counts) - 1)
        of_cut = inside * (t - self.first[cut]) - self._step[cut] * inside * (inside - 1) / 2
        return self._places[bins] * t - self._sums[bins] + of_cut

    def of_magnitudes(self, edges: Sequence[float] | np.ndarray) -> np.ndarray:
        """How many |x| lie in each bin of a histogram with these edges; the last bin holds its upper edge too.

        >>> LogHistogram.of([-1.0, 0.5, 2.0]).of_magnitudes([0.0, 1.0, 2.0])
        array([1, 2])
        """
        t = np.asarray(edges, dtype=np.float64)
        smaller = np.maximum(self.below(t) - self.below(np.nextafter(-t, math.inf)), 0)  # #{x < t} − #{x ≤ −t}
        smaller[-1] = self.below(np.nextafter(t[-1], math.inf)) - self.below(-t[-1])
        return np.diff(smaller)

    # The list that the histogram stands for: value j of a bin is first + j · step.

    @cached_property
    def _places(self) -> np.ndarray:
        """How many values lie before each bin, and in the end: (m + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def _step(self) -> np.ndarray:
        width = self.last.astype(np.float64) - self.first
        return width / np.maximum(self.counts - 1, 1)

    @cached_property
    def _sums(self) -> np.ndarray:
        """The running sum of the bins' values, (m + 1,) float64."""
        sums = self.counts * ((self.last.astype(np.float64) + self.first) / 2)
        return np.concatenate([[0.0], np.cumsum(sums)])

    @cached_property
    def squares(self) -> float:
        """Σ x² = Σ c (mean² + variance) over the bins; c evenly spaced values have the variance step² (c² − 1) / 12."""
        c = self.counts.astype(np.float64)
        mean = (self.last.astype(np.float64) + self.first) / 2
        return float(np.sum(c * (mean**2 + self._step**2 * (c**2 - 1) / 12)))

    def _cut(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many bins lie below each threshold, and how many values of the bin that it cuts."""
        bins = np.searchsorted(self.last, t)
        cut = np.minimum(bins, len(self.counts) - 1)
        first, step = self.first[cut].astype(np.float64), self._step[cut]
        partly = (bins < len(self.counts)) & (first < t)
        inside = np.ceil((t - first) / np.where(step > 0, step, 1.0))
        return bins, np.where(partly, np.minimum(inside, self.counts[cut]), 0).astype(np.int64)

    def _at(self, k: int) -> float:
        """The k-th smallest value, k from 0."""
        b = int(np.searchsorted(self._places, k, side="right")) - 1
        j, c = k - int(self._places[b]), int(self.counts[b])
        return between(float(self.first[b]), float(self.last[b]), j / (c - 1) if c > 1 else 0.0)


def _by_sorting(values: np.ndarray) -> LogHistogram:
    """For float32 in order: the values of a bin are neighbours."""
    values = values + np.float32(0)  # no −0.0
    patterns = values.view(np.int32) >> 16  # the upper half of the bits is the bfloat16
    ends = np.flatnonzero(patterns[1:] != patterns[:-1])
    starts, ends = np.append(0, ends + 1), np.append(ends, len(values) - 1)
    return LogHistogram(values[starts], values[ends], (ends - starts + 1).astype(np.int64))


def _by_counting(values: np.ndarray) -> LogHistogram:
    """For float32 in any order. Read as whole numbers, bits are ordered as magnitudes are."""
    counts = np.zeros(PATTERNS, np.int64)
    least, most = np.full(PATTERNS, 2**32 - 1, np.uint32), np.zeros(PATTERNS, np.uint32)
    for start in range(0, len(values), PIECE):
        bits = (values[start : start + PIECE] + np.float32(0)).view(
            np.uint32
        )  # + 0 makes 0.0 of −0.0: both are counted in one bin
        patterns = (bits >> 16).astype(np.intp)
        np.add.at(counts, patterns, 1)
        np.minimum.at(least, patterns, bits)
        np.maximum.at(most, patterns, bits)
    filled = np.flatnonzero(counts)
    positive, negative = filled[filled < PATTERNS // 2], filled[filled >= PATTERNS // 2][::-1]
    first = np.concatenate([most[negative], least[positive]]).view(np.float32)
    last = np.concatenate([least[negative], most[positive]]).view(np.float32)
    return LogHistogram(first, last, counts[np.concatenate([negative, positive])])


def as_float32(x: Array) -> Array:
    """`x` rounded to float32.

    Raises:
        ValueError: a number that is too large for float32.

    >>> as_float32(np.array([0.1]))
    array([0.1], dtype=float32)
    """
    xp = array_namespace(x)
    if x.dtype == xp.float32:
        return x
    with np.errstate(over="ignore"):
        rounded = xp.astype(x, xp.float32)
    try:
        check_finite(rounded)
    except ValueError:
        largest = float(xp.max(xp.abs(x)))
        raise ValueError(
            f"x holds {largest:.3g}: the histogram counts in float32, whose largest number is 3.4e38. Divide x first."
        ) from None
    return rounded
