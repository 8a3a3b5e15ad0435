"""Ranges, and their errors, of values that lie in sorted parts: what `qlearn.ranges` finds, but live."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qlearn import gains, ranges
from qlearn.affine import QParams
from qlearn.config import QuantConfig
from qlearn.range_search import Search
from qlearn.widgets.values import Parts, ends


def quantile(parts: Parts, share: float) -> Any:
    """The value below which this share of all values lies; between two it interpolates as `numpy.percentile` does.

    >>> from qlearn.sorted_view import SortedView
    >>> float(quantile([SortedView([1.0, 2.0, 9.0]), SortedView([4.0, 5.0])], 0.75))
    5.0
    """
    last = sum(len(part) for part in parts) - 1
    place = share * last
    k = min(int(place), max(last - 1, 0))
    below, above = (float(_nth(parts, i)) for i in (k, min(k + 1, last)))
    t = place - k
    value = below + (above - below) * t if t < 0.5 else above - (above - below) * (1 - t)
    return parts[0].values.dtype.type(value)


def cut(parts: Parts, t: float) -> tuple[Any, Any]:
    """The range of all values and 0, cut off at ±t.

    With both ends alike, 0.0 lies halfway between two codes, and the last bit of t would decide which one it gets. The
    upper end is a little nearer, so that it is always the larger one.
    """
    lo, hi = ends(parts)
    return max(min(lo, type(lo)(0)), type(lo)(-t)), min(max(hi, type(hi)(0)), type(hi)(t * (1 - 1e-5)))


class Together:
    """Several sorted parts as one view, as `gains` has it."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.count = sum(len(part) for part in parts)
        self.total, self.squares = sum(part.total for part in parts), sum(part.squares for part in parts)

    def gains(self, t: Any) -> Any:
        """G(t) = Σ max(0, t − x) over all parts."""
        return sum(part.gains(t) for part in self.parts)

    def sse(self, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        """The sum of squared errors of all parts."""
        return gains.sse(self, scale, zero_point, quant_min, quant_max)


def errors(parts: Parts, lo: Any, hi: Any, config: QuantConfig) -> dict[str, Any]:
    """The mean squared error of many ranges at once, and its parts: O(2ᵇ log n) for each.

    Returns:
        mse, rounding, clipping: float64 arrays of the shape of lo and hi.
    """
    q = config.choose_qparams(lo, hi)
    scale, zero_point = np.asarray(q.scale, np.float64), np.asarray(q.zero_point, np.float64)
    return _split(parts, scale, zero_point, Together(parts).sse(scale, zero_point, q.quant_min, q.quant_max), q)


def search(parts: Parts, config: QuantConfig) -> dict[str, Any]:
    """The error against the width of the range, each width at its best place, and the best range of all.

    Returns:
        half: half the width, rising; mse, rounding, clipping: float64 arrays.
        best: the lo and hi that `find_range` finds by the method "mse".
    """
    view, wanted = Together(parts), Search(config.bits, config.symmetric, config.narrow_range)
    lo, hi = ends(parts)
    tried = wanted.tried(view, lo, hi, mean_magnitude(parts))
    quant_min, quant_max = wanted.limits
    if config.symmetric and view.count * -quant_min <= ranges.SWEEP_UP_TO:
        values = np.concatenate([part.values for part in parts])
        best = replace(config, method="mse").find_range(values)  # the best off the grid, too
    else:
        best = tuple(end[0] for end in wanted.range_of(*wanted.best(view, tried), parts[0].values.dtype))
    scale, zero_point, sse = (values[0] for values in (tried.scale, tried.zero_point, tried.sse))
    found = _split(parts, scale, zero_point, sse, QParams(1.0, 0, quant_min, quant_max))
    return {"half": scale * (quant_max - quant_min) / 2, **found, "best": best}


def half_width(lo: Any, hi: Any, symmetric: bool) -> Any:
    """Half the width of ranges that are widened to hold 0, and for symmetric codes to reach as far on both sides.

    >>> half_width(1.0, 3.0, symmetric=False), half_width(-1.0, 3.0, symmetric=True)
    (np.float64(1.5), np.float64(3.0))
    """
    lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    return np.maximum(-lo, hi) if symmetric else hi / 2 - lo / 2


def _split(parts: Parts, scale: Any, zero_point: Any, sse: Any, limits: QParams) -> dict[str, Any]:
    """Means over all values: the squared error, and what of it belongs to values beyond the ticks."""
    clipping = np.zeros(scale.shape)
    for part in parts:
        first, last = (scale * (code - zero_point) for code in (limits.quant_min, limits.quant_max))
        below, above = part.below(first - scale / 2), part.below(last + scale / 2)
        for tick, start, stop in ((first, 0, below), (last, above, len(part))):
            squares = part.sum2[stop] - part.sum2[start] - 2 * tick * (part.sum1[stop] - part.sum1[start])
            clipping += np.maximum(squares + (stop - start) * tick**2, 0) * (stop > start)
    n, clipping = sum(len(part) for part in parts), np.minimum(clipping, sse)
    return {"mse": sse / n, "rounding": (sse - clipping) / n, "clipping": clipping / n}


def mean_magnitude(parts: Parts) -> float:
    """The mean of |x|; 0 if all are 0."""
    total = 0.0
    for part in parts:
        negative = -float(part.sum1[0])  # the running sum starts at 0
        total += part.total - 2 * negative
    return total / sum(len(part) for part in parts)


def _nth(parts: Parts, k: int) -> Any:
    """The k-th smallest of all values. The second part is a short one: its places among the first are looked up."""
    base = parts[0].values
    if len(parts) == 1:
        return base[k]
    few = parts[1].values
    places = parts[0].below(few) + np.arange(len(few))  # of the few among all
    before = int(np.searchsorted(places, k))
    return few[before] if before < len(few) and places[before] == k else base[k - before]
