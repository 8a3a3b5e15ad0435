"""Ranges, and their errors, of values that lie in sorted parts: what `qlearn.ranges` finds, but live."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlearn import ranges
from qlearn.affine import choose_qparams, quant_limits
from qlearn.range_search import clip_grid
from qlearn.widgets.values import Parts, ends

BELOW = 20  # points of the curve below the narrowest range that the search tries


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
    """The range of all values and 0, cut off at ±t."""
    lo, hi = ends(parts)
    return max(min(lo, type(lo)(0)), type(lo)(-t)), min(max(hi, type(hi)(0)), type(hi)(t))


def errors(parts: Parts, lo: Any, hi: Any, codes: dict[str, Any]) -> dict[str, Any]:
    """The mean squared error of many ranges at once, and its parts: O(2ᵇ log n) for each.

    Returns:
        mse, rounding, clipping: float64 arrays of the shape of lo and hi.
    """
    q = choose_qparams(lo, hi, **codes)
    scale, zero_point = np.asarray(q.scale, np.float64), np.asarray(q.zero_point, np.float64)
    n = sum(len(part) for part in parts)
    total, clipping = np.zeros(scale.shape), np.zeros(scale.shape)
    for part in parts:
        total += part.sse(scale, zero_point, q.quant_min, q.quant_max)
        first, last = (scale * (code - zero_point) for code in (q.quant_min, q.quant_max))
        below, above = part.below(first - scale / 2), part.below(last + scale / 2)
        for tick, start, stop in ((first, 0, below), (last, above, len(part))):
            squares = part.sum2[stop] - part.sum2[start] - 2 * tick * (part.sum1[stop] - part.sum1[start])
            clipping += np.maximum(squares + (stop - start) * tick**2, 0) * (stop > start)
    clipping = np.minimum(clipping, total)
    return {"mse": total / n, "rounding": (total - clipping) / n, "clipping": clipping / n}


def search(parts: Parts, codes: dict[str, Any]) -> dict[str, Any]:
    """The error of the range cut off at ±t, for every t of `clip_grid` and some below, and the best range.

    Returns:
        t, mse, rounding, clipping: float64 arrays.  best: the lo and hi that `qlearn.ranges.mse` finds.
    """
    values = parts[0].values
    lo, hi = ends(parts)
    mean = mean_magnitude(parts)
    grid = [end.astype(values.dtype) for end in clip_grid(float(lo), float(hi), mean)]
    t = mean * np.geomspace(0.25, 1, BELOW, endpoint=False)
    low = np.concatenate([np.maximum(min(lo, 0), -t).astype(values.dtype), grid[0]])
    high = np.concatenate([np.minimum(max(hi, 0), t).astype(values.dtype), grid[1]])
    found = errors(parts, low, high, codes)
    best = BELOW + int(np.argmin(found["mse"][BELOW:]))
    quant_min, _ = quant_limits(**codes)
    n = sum(len(part) for part in parts)
    if codes["symmetric"] and n * -quant_min <= ranges.SWEEP_UP_TO:
        chosen = ranges.mse(np.concatenate([part.values for part in parts]), **codes)  # the best off the grid, too
    else:
        chosen = low[best], high[best]
    return {"t": np.maximum(-low, high).astype(np.float64), **found, "best": chosen}


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
