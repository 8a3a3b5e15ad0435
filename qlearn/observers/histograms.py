"""Observers that remember a histogram, and can so answer any question about the range at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from array_api_compat import array_namespace

from qlearn.arrays import Array, like, ordered, saturate, to_numpy
from qlearn.config import QuantConfig
from qlearn.granularity import PerGroup, PerTensor
from qlearn.histogram import LogHistogram
from qlearn.observers.min_max import MinMaxObserver
from qlearn.range_search import Search
from qlearn.ranges import between, entropy_range, place_of

TAIL = 1 << 14  # values that a PercentileObserver keeps at either end


class HistogramObserver(MinMaxObserver):
    """Remember a histogram, and the exact smallest and largest value beside it, for each block of the granularity.

        qparams = choose_qparams(range of the histogram by config.method)

    One histogram answers all questions: "min_max", "percentile", "mse" and "entropy" (that one per tensor only).
    The range is solved for the configuration's bits and codes. It is that of the list of values which the
    histogram stands for, so it is exact as long as no bin holds more than two different values.

    Memory: at most 1.04 MB a block (65,280 bins of 16 bytes), and two numbers. Cost: O(n) for each batch; solving
    takes as long for 10⁹ values as for 10⁶.

    Raises:
        ValueError: PerGroup granularity: histograms of small groups would take more room than their values.

    >>> import numpy as np
    >>> x = np.append(np.linspace(-1, 1, 1000), 10.0)
    >>> for method in ("min_max", "percentile", "mse"):
    ...     lo, hi = HistogramObserver(QuantConfig(bits=4, method=method, percentile=99)).observe(x).range()
    ...     print(f"{method:10} {lo:6.3f} {hi:6.3f}")
    min_max    -1.000 10.000
    percentile -0.980  0.982
    mse        -0.936  6.087
    """

    methods: ClassVar[tuple[str, ...]] = ("mse", "percentile", "entropy", "min_max")

    def __init__(self, config: QuantConfig | None = None) -> None:
        super().__init__(config)
        if self.config.method == "entropy" and self.config.granularity != PerTensor():
            raise ValueError(
                f"method='entropy' finds one range for a whole tensor: use PerTensor(), not {self.config.granularity}."
            )
        if isinstance(self.config.granularity, PerGroup):
            raise ValueError(
                f"{self.config.granularity}: a {type(self).__name__} keeps a histogram for each block, which for "
                "small groups is more than their values. Use PerTensor(), PerAxis(axis), or a MinMaxObserver."
            )
        self.histograms: tuple[LogHistogram, ...] = ()  # one a block

    @property
    def nbytes(self) -> int:
        """How many bytes its state takes now."""
        return super().nbytes + sum(histogram.nbytes for histogram in self.histograms)

    def state(self) -> dict[str, np.ndarray]:
        """As `Observer.state`; the histograms' bins one after the other, and how many each block has."""
        if not self.histograms:
            return super().state()
        bins = np.array([len(histogram.counts) for histogram in self.histograms])
        parts = {
            name: np.concatenate([getattr(histogram, name) for histogram in self.histograms])
            for name in ("first", "last", "counts")
        }
        return {**super().state(), "bins": bins, **parts}

    def _remember(self, state: Mapping[str, Any]) -> None:
        super()._remember(state)
        cuts = np.cumsum(state["bins"])[:-1]
        parts = (np.split(np.asarray(state[name]), cuts) for name in ("first", "last", "counts"))
        self.histograms = tuple(LogHistogram(*block) for block in zip(*parts, strict=True))

    def _take(self, rows: Array, shape: tuple[int, ...]) -> None:
        self._count(tuple(LogHistogram.of_finite(row) for row in rows))
        xp = array_namespace(rows)
        self._widen(xp.min(rows, axis=-1).reshape(shape), xp.max(rows, axis=-1).reshape(shape))

    def _join(self, part: Self) -> None:
        self._count(part.histograms)
        self._widen(part.lo, part.hi)

    def _count(self, more: tuple[LogHistogram, ...]) -> None:
        pairs = zip(self.histograms, more, strict=True)
        self.histograms = tuple(old + new for old, new in pairs) if self.histograms else more

    def _solve(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        if self.config.method == "min_max":
            return lo, hi
        ends = zip(to_numpy(lo.reshape(-1)), to_numpy(hi.reshape(-1)), strict=True)
        ranges = [self._solve_block(i, low, high) for i, (low, high) in enumerate(ends)]
        found = (like(np.reshape(end, tuple(lo.shape)), lo) for end in np.transpose(ranges).astype(np.float64))
        low, high = (saturate(end, lo.dtype)[()] for end in found)
        return low, high

    def _solve_block(self, block: int, lo: np.floating, hi: np.floating) -> tuple[float, float]:
        """The range of one block, whose smallest and largest value are lo and hi."""
        return SOLVERS[self.config.method](self.histograms[block], lo, hi, self.config)


class MSEObserver(HistogramObserver):
    """A `HistogramObserver` for the range with the smallest mean squared error, for the configuration's codes.

        (scale, zero_point) = argmin Σ (x − fake_quantize(x, scale, zero_point))²

    The search is that of `find_range(x, "mse")`, on the values that the histogram stands for. The mean squared error
    is within 1 % of what the search on all values finds (for some hundred values or more).

    Memory: at most 1.04 MB a block. Cost: O(n) to observe, O(200 · 2ᵇ log m) for m bins to solve.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    >>> observer = MSEObserver(QuantConfig(bits=2, symmetric=True, method="mse")).observe(x)
    >>> round(float(observer.qparams().scale), 1)  # theory for normal values: 1.224
    1.2
    """

    methods: ClassVar[tuple[str, ...]] = ("mse",)


class EntropyObserver(HistogramObserver):
    """A `HistogramObserver` for the clip at which the histogram of |x| loses least information; per tensor only.

        t = argmin over bins k of KL(P_k ‖ Q_k),  as `find_range(x, "entropy")` has it

    Its 2,048 equal bins are filled from the histogram, which knows less than the data: where the values are few,
    the result differs.

    Memory: at most 1.04 MB. Cost: O(n) to observe, O(2048²) to solve.
    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017.

    >>> import numpy as np
    >>> x = np.append(np.random.default_rng(0).standard_normal(100_000, dtype=np.float32), np.float32(40))
    >>> observer = EntropyObserver(QuantConfig(symmetric=True, method="entropy")).observe(x)
    >>> 2 < float(observer.range()[1]) < 10
    True
    """

    methods: ClassVar[tuple[str, ...]] = ("entropy",)


class PercentileObserver(HistogramObserver):
    """Leave out the same share of all values seen at both ends: exactly, as long as they fit into the memory.

        lo = the (100 − p)-th percentile of everything seen,  hi = the p-th

    It keeps the 16,384 smallest and the 16,384 largest values beside a histogram. With p = 99.9 that is exact,
    and equal to `find_range(x, "percentile")`, up to 16 million values a block; beyond, the histogram answers, to
    within 0.8 % of the range's end. `exact` says which.

    Memory: at most 1.04 MB + 2 · 16,384 values (131 kB in float32) a block. Cost: O(n log n).

    >>> import numpy as np
    >>> observer = PercentileObserver(QuantConfig(method="percentile", percentile=75))
    >>> observer.observe(np.array([100.0, 1.0])).observe(np.array([3.0, 0.0, 2.0])).range()
    (np.float64(1.0), np.float64(3.0))
    >>> observer.exact
    True
    """

    methods: ClassVar[tuple[str, ...]] = ("percentile",)

    def __init__(self, config: QuantConfig | None = None) -> None:
        super().__init__(config)
        self.smallest: np.ndarray | None = None  # (blocks, up to TAIL), in order, as are the largest
        self.largest: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes its state takes now."""
        return super().nbytes + sum(tail.nbytes for tail in (self.smallest, self.largest) if tail is not None)

    @property
    def exact(self) -> bool:
        """Whether the values beside both percentiles are still in memory; True before the first value."""
        return not self.seen or all(self._from_tails(0, share) is not None for share in _shares(self.config.percentile))

    def state(self) -> dict[str, np.ndarray]:
        """As `HistogramObserver.state`, and the values at both ends."""
        if self.smallest is None or self.largest is None:
            return super().state()
        return {**super().state(), "smallest": self.smallest, "largest": self.largest}

    def _remember(self, state: Mapping[str, Any]) -> None:
        super()._remember(state)
        self._keep(state["smallest"], state["largest"])

    def _take(self, rows: Array, shape: tuple[int, ...]) -> None:
        rows = ordered(rows)
        super()._take(rows, shape)
        self._keep(to_numpy(rows[:, :TAIL]), to_numpy(rows[:, -TAIL:]))

    def _join(self, part: Self) -> None:
        super()._join(part)
        self._keep(part.smallest, part.largest)

    def _keep(self, smallest: Any, largest: Any) -> None:
        if self.smallest is not None and self.largest is not None:
            smallest = np.sort(np.concatenate([self.smallest, smallest], axis=1))[:, :TAIL]
            largest = np.sort(np.concatenate([self.largest, largest], axis=1))[:, -TAIL:]
        self.smallest, self.largest = smallest + 0.0, largest + 0.0  # copies, and no −0.0

    def _solve_block(self, block: int, lo: np.floating, hi: np.floating) -> tuple[float, float]:
        low, high = (self._from_tails(block, share) for share in _shares(self.config.percentile))
        if low is None or high is None:
            return super()._solve_block(block, lo, hi)
        return low, high

    def _from_tails(self, block: int, share: float) -> float | None:
        """The value below which this share of the block lies, if both values beside that place are in memory."""
        assert self.smallest is not None and self.largest is not None
        n, low, high = len(self.histograms[block]), self.smallest[block], self.largest[block]
        k, t = place_of(share, n)
        beside = [k, min(k + 1, n - 1)]
        if beside[1] < len(low):
            below, above = low[beside]
        elif beside[0] >= n - len(high):
            below, above = high[np.subtract(beside, n - len(high))]
        else:
            return None
        return float(between(float(below), float(above), t))


Solver = Callable[[LogHistogram, np.floating, np.floating, QuantConfig], tuple[float, float]]


def _percentile(histogram: LogHistogram, lo: np.floating, hi: np.floating, config: QuantConfig) -> tuple[float, float]:
    low, high = (histogram.quantile(share) for share in _shares(config.percentile))
    return max(low, float(lo)), min(high, float(hi))  # the histogram rounds to float32, float64 data do not


def _entropy(histogram: LogHistogram, lo: np.floating, hi: np.floating, config: QuantConfig) -> tuple[float, float]:
    return entropy_range(
        histogram.of_magnitudes,
        float(lo),
        float(hi),
        bits=config.bits,
        symmetric=config.symmetric,
        narrow_range=config.narrow_range,
    )


def _mse(histogram: LogHistogram, lo: np.floating, hi: np.floating, config: QuantConfig) -> tuple[float, float]:
    search = Search(config.bits, config.symmetric, config.narrow_range)
    found = search.best(histogram, search.tried(histogram, lo, hi, histogram.mean_magnitude))
    low, high = search.range_of(*found, lo.dtype)
    return low[0], high[0]


SOLVERS: dict[str, Solver] = {"percentile": _percentile, "mse": _mse, "entropy": _entropy}


def _shares(percentile: float) -> tuple[float, float]:
    """The shares of the values below the lower and below the upper end."""
    return (100 - percentile) / 100, percentile / 100
