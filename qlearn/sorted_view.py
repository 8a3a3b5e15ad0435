"""Sort once, then ask about any quantizer: counts and errors without another pass over the data.

    values[k]   the k-th smallest value                         (n,)
    sum1[k]     running sum of the values                       (n + 1,) float64
    sum2[k]     running sum of their squares                    (n + 1,) float64

The values that get one code are neighbours in sorted order, so whatever is asked about them is the
difference of two entries: values[j:k] sum to sum1[k] − sum1[j]. The running sums start at 0.0 and go outwards
both ways, so that an outlier at either end stays out of all differences but its own. Finding the 2ᵇ places
takes O(2ᵇ log n): as quick for 10⁷ values as for 10⁴.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from qlearn.affine import QParams, dequantize, quantize, working_type
from qlearn.arrays import Array, as_floats, dtype_name, like, native_namespace, ordered, quietly, slabs, to_numpy
from qlearn.gains import sse

ROW = 256  # values that a running sum adds up one by one
NEIGHBOURS = 3  # floats looked at on both sides of a tie: tie and quotient are off by half a float each


@dataclass(frozen=True)
class Measured:
    """What a quantizer does to the values of a `SortedView`.

    Attributes:
        counts: how many values get each code, quant_min first; shape (2ᵇ,), integers.
        rounding: Σ (x − x̂)² over the values that the clamp leaves alone.
        clipping: Σ (x − x̂)² over the values that the clamp moves.
        clipped: how many values the clamp moves.
        largest_error: max |x − x̂|.
    """

    counts: Array
    rounding: float
    clipping: float
    clipped: int
    largest_error: float

    @property
    def sse(self) -> float:
        """Σ (x − x̂)², the sum of squared errors."""
        return self.rounding + self.clipping

    def __add__(self, other: Measured) -> Measured:
        """The same quantizer on both sets of values together."""
        return Measured(
            counts=self.counts + other.counts,
            rounding=self.rounding + other.rounding,
            clipping=self.clipping + other.clipping,
            clipped=self.clipped + other.clipped,
            largest_error=max(self.largest_error, other.largest_error),
        )


class SortedView:
    """The values of `x` in order, with the running sums of x and x².

    Args:
        x: array of any shape and n values; half types are taken as float32.

    Raises:
        ValueError: empty `x`, NaN or infinity in `x`.

    Cost: one sort, O(n log n), and 16 bytes a value beside the sorted copy.

    >>> view = SortedView([0.9, -0.6, 0.25, 9.0])
    >>> view.measure(QParams(scale=0.5, zero_point=1, quant_min=0, quant_max=7)).counts
    array([1, 1, 0, 1, 0, 0, 0, 1])
    """

    def __init__(self, x: Any) -> None:
        x = as_floats(x)
        self.values = ordered(x.reshape(-1))

    @cached_property
    def sum1(self) -> Array:
        """The running sum of the values, 0 at the first one that is not negative."""
        return self._outwards(1)

    @cached_property
    def sum2(self) -> Array:
        """The running sum of their squares, 0 at the first value that is not negative."""
        return self._outwards(2)

    @quietly
    def _outwards(self, power: int) -> Array:
        compat, xp = array_namespace(self.values), native_namespace(self.values)
        first, place = int(self.below([0.0])[0]), device(self.values)
        total = compat.empty(len(self) + 1, dtype=xp.float64, device=place)
        left = compat.empty(first + 1, dtype=xp.float64, device=place)
        _running_sum(compat.flip(self.values[:first]), power, left)
        _running_sum(self.values[first:], power, total[first:])
        total[:first] = compat.flip(left)[:-1]
        total[:first] *= -1
        return total

    def __len__(self) -> int:
        return len(self.values)

    @quietly
    def measure(self, qparams: QParams) -> Measured:
        """Count and judge what `quantize` and `dequantize` do to the values.

            Σ (x − l)² = Σ x² − 2 l Σ x + n l²       over the n values that get the tick l

        Counts are exactly those of `quantize`, ties and floating point included. Sums agree with float64
        arithmetic on every value to about 2²ᵇ · 1e-15.

        Args:
            qparams: one scale and one zero point for all values.

        Raises:
            ValueError: a scale of one entry a block.

        Cost: O(2ᵇ log n).

        >>> measured = SortedView([0.9, -0.6, 0.25, 9.0]).measure(QParams(0.5, 1, 0, 7))
        >>> measured.clipped, measured.clipping, measured.largest_error
        (1, 36.0, 6.0)
        """
        if getattr(qparams.scale, "ndim", 0) > 0:
            raise ValueError(
                f"scale has shape {tuple(qparams.scale.shape)}: a SortedView needs one scale for all values."
            )
        xp = native_namespace(self.values)
        inner = self.below(self._thresholds(qparams))
        ends = like([0, len(self)], self.values, inner.dtype)
        places = xp.concatenate([ends[:1], inner, ends[1:]])

        # 2ᵇ + 2 runs of neighbours: one for each code, and at both ends one of the values that the clamp moves.
        codes = xp.clip(xp.arange(qparams.quant_min - 1, qparams.quant_max + 2), qparams.quant_min, qparams.quant_max)
        tick = array_namespace(self.values).astype(like(dequantize(codes, qparams), self.values), xp.float64)
        n = xp.diff(places)
        with np.errstate(invalid="ignore"):  # where a tick is so far out that no value has it, and its square infinite
            sse = xp.diff(self.sum2[places]) - 2 * tick * xp.diff(self.sum1[places]) + n * tick**2
        sse = xp.where((n > 0) & (sse > 0), sse, xp.zeros_like(sse))  # a difference of sums can miss 0 by a rounding

        counts = xp.concatenate([n[1:-1]])
        counts[0] += n[0]
        counts[-1] += n[-1]
        used = n > 0
        first, last = self.values[places[:-1][used]], self.values[places[1:][used] - 1]
        return Measured(
            counts=counts,
            rounding=float(sse[1:-1].sum()),
            clipping=float(sse[0] + sse[-1]),
            clipped=int(n[0] + n[-1]),
            largest_error=max(float(abs(first - tick[used]).max()), float(abs(last - tick[used]).max())),
        )

    def sse(self, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        """The sum of squared errors, by the shortest way: for searches that try many scales.

        The formula is that of `gains.sse`.
        `zero_point` may be any number: at z = q + ½ no tick lies at 0.0. Relative error below 1e-9 up to 8 bits.

        Args:
            scale, zero_point: numbers, or arrays of one shape (…) for as many quantizers at once.

        Returns:
            A number, or a float64 NumPy array of shape (…).

        Cost: O(2ᵇ log n) for each quantizer.

        >>> SortedView([0.75, -0.5, 0.25, 9.0]).sse(0.5, 1, 0, 7)
        36.125
        """
        found = sse(self, to_numpy(scale), to_numpy(zero_point), quant_min, quant_max)
        return float(found) if found.ndim == 0 else found

    @quietly
    def gains(self, t: Any) -> Any:
        """G(t) = Σ max(0, t − x) = k t − sum1[k] of many thresholds, with k = #{x < t}; float64, NumPy.

        >>> SortedView([0.75, -0.5, 0.25, 9.0]).gains(np.array([0.0, 1.0]))
        array([0.5, 2.5])
        """
        t = np.asarray(t, np.float64)
        flat = t.reshape(-1)
        order = np.argsort(flat)  # places are found three times as quickly when they are asked for in order
        k = self.below(flat[order])
        gained = np.empty_like(flat)
        gained[order] = to_numpy(k) * flat[order] - to_numpy(self.sum1[k] - self.sum1[0])
        return gained.reshape(t.shape)

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.values)

    @cached_property
    def total(self) -> float:
        """Σ x."""
        return float(sum(wide.sum() for wide in self._wide_slabs()))

    @cached_property
    def squares(self) -> float:
        """Σ x²."""
        return float(sum(native_namespace(wide).einsum("i,i->", wide, wide) for wide in self._wide_slabs()))

    def _wide_slabs(self) -> Iterator[Array]:
        for rows in slabs(self.values):
            yield array_namespace(self.values).astype(self.values[rows], native_namespace(self.values).float64)

    def below(self, thresholds: Array) -> Array:
        """How many values are smaller than each threshold: #{x < t}.

        Thresholds finer than x's type are rounded up to it, which changes no answer and spares `searchsorted`
        a copy of the data in the finer type.

        >>> SortedView([1.0, 2.0, 2.0, 3.0]).below([2.0, 2.5])
        array([1, 3])
        """
        xp = native_namespace(self.values)
        exact = like(thresholds, self.values, xp.float64)
        with np.errstate(over="ignore", under="ignore"):  # beyond the largest number lies infinity, which is right
            near = array_namespace(exact).astype(exact, self.values.dtype)
            near = xp.where(near < exact, xp.nextafter(near, xp.full_like(near, float("inf"))), near)
        return xp.searchsorted(self.values, near)

    def histogram(self, edges: Array) -> Array:
        """How many values lie in each bin: edges[i] ≤ x < edges[i + 1]; shape (len(edges) − 1,).

        >>> SortedView([1.0, 2.0, 2.0, 3.0]).histogram([0.0, 2.0, 4.0])
        array([1, 3])
        """
        return native_namespace(self.values).diff(self.below(edges))

    @quietly
    def _thresholds(self, qparams: QParams) -> Array:
        """The smallest float of x's type that gets each of the codes quant_min … quant_max + 1, were there no clamp.

        In real numbers that is the tie s (q − z − ½). In floating point the division rounds, so that the
        switch lies some floats beside it. `quantize` itself is asked: for the floats around each tie, which
        is the first one with that code? (It never falls, so the first one is the switch.)
        """
        xp = native_namespace(self.values)
        wide = QParams(qparams.scale, qparams.zero_point, qparams.quant_min - 1, qparams.quant_max + 1)
        codes = xp.arange(qparams.quant_min, qparams.quant_max + 2)
        step = float(qparams.scale)
        if working_type(dtype_name(self.values), qparams) == dtype_name(self.values):
            step = float(like(step, self.values, self.values.dtype))  # as in quantize
        ties = step * (like(codes, self.values, xp.float64) - (int(qparams.zero_point) + 0.5))
        limit = float(xp.finfo(self.values.dtype).max)
        near = array_namespace(ties).astype(xp.clip(ties, -limit, limit), self.values.dtype)

        lowest, highest = xp.full_like(near, -limit), xp.full_like(near, limit)
        floats = [near]
        for _ in range(NEIGHBOURS):
            floats = [xp.nextafter(floats[0], lowest), *floats, xp.nextafter(floats[-1], highest)]
        around = xp.stack(floats)
        reached = quantize(around, wide) >= codes
        first = xp.where(reached, around, xp.full_like(around, float("inf")))
        return xp.amin(first, 0)


def _running_sum(values: Array, power: int, total: Array) -> None:
    """Write 0, values[0]ᵖ, values[0]ᵖ + values[1]ᵖ, … into `total`, (n + 1,) in float64.

    Summed in rows, then the rows' sums in rows, and so on: one long sum would gather a rounding at every
    value, which at 10⁷ values and 8 bits is seen in the ninth digit of the error.
    """
    xp = native_namespace(values)
    total[0] = 0
    terms = total[1:]
    terms[:] = values
    if power != 1:
        terms **= power
    whole = len(values) // ROW * ROW
    rows, rest = terms[:whole].reshape(-1, ROW), terms[whole:]
    xp.cumsum(rest, 0, out=rest)
    if whole:
        xp.cumsum(rows, 1, out=rows)
        before = xp.empty_like(total[: len(rows) + 1])
        _running_sum(rows[:, -1], 1, before)
        rows += before[:-1, None]
        rest += before[-1]
