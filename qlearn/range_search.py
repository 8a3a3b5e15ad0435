"""The search for the range with the smallest mean squared error: which ranges to try, and three ways to judge them.

Rows are (r, n): r tensors, channels or groups of n values each. Each way judges a candidate on all values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.affine import choose_qparams, fake_quantize
from qlearn.arrays import Array, as_floats, like
from qlearn.sorted_view import SortedView

CANDIDATES = 100
BREAKPOINTS = 1 << 20  # swept at once: some 64 MB


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
    t = safe * xp.where(mean > 0, largest / safe, xp.zeros_like(mean)) ** share
    t = xp.where(share == 1, largest, t)  # a power rounds; the widest range is the min-max range itself
    return xp.maximum(lo, -t), xp.minimum(hi, t)


def grid_of(rows: Array, candidates: int) -> tuple[Array, Array]:
    """`clip_grid` of each row, in the rows' type: (rows, candidates)."""
    xp = array_namespace(rows)
    mean = xp.sum(xp.abs(rows), axis=-1, dtype=xp.float64) / rows.shape[-1]
    smallest, largest = (xp.astype(end, xp.float64) for end in (xp.min(rows, axis=-1), xp.max(rows, axis=-1)))
    lo, hi = clip_grid(smallest, largest, mean, candidates)
    return xp.astype(lo, rows.dtype), xp.astype(hi, rows.dtype)


def by_sorting(rows: Array, codes: dict[str, Any], candidates: int) -> tuple[Array, Array]:
    """For long rows: sort each one, then judge all candidates at once."""
    xp = array_namespace(rows)
    chosen = []
    for row in rows:
        view = SortedView(row)
        lo, hi = (end[0] for end in grid_of(view.values[None], candidates))
        q = choose_qparams(lo, hi, **codes)
        best = int(xp.argmin(view.sse(q.scale, q.zero_point, q.quant_min, q.quant_max)))
        chosen.append((lo[best], hi[best]))
    lo, hi = zip(*chosen, strict=True)
    return xp.stack([xp.asarray(end) for end in lo]), xp.stack([xp.asarray(end) for end in hi])


def by_quantizing(rows: Array, codes: dict[str, Any], candidates: int) -> tuple[Array, Array]:
    """For many short rows: quantize all of them with their i-th candidates, for one i after the other."""
    xp = array_namespace(rows)
    lo, hi = grid_of(rows, candidates)
    errors = []
    for i in range(candidates):
        x_hat = fake_quantize(rows, choose_qparams(lo[:, i : i + 1], hi[:, i : i + 1], **codes))
        errors.append(xp.sum(xp.astype(rows - x_hat, xp.float64) ** 2, axis=-1))
    best = xp.argmin(xp.stack(errors, axis=-1), axis=-1)
    every = like(np.arange(len(rows)), rows)
    return lo[every, best], hi[every, best]


def by_sweeping(rows: Array, quant_min: int, quant_max: int) -> tuple[Array, Array]:
    """The best symmetric scale of all: as it falls, one value after the other gets a code one larger.

    With codes q the best scale is Σ|x|q / Σq², and the error then is Σx² − (Σ|x|q)² / Σq². Each breakpoint
    adds |x| to the first sum and j² − (j − 1)² = 2j − 1 to the second. Among equals the smallest scale wins.
    """
    xp = array_namespace(rows)
    at_once = max(1, BREAKPOINTS // (rows.shape[-1] * -quant_min))
    parts = [_sweep(rows[i : i + at_once], quant_min, quant_max) for i in range(0, len(rows), at_once)]
    scale = xp.concat(parts)
    return xp.astype(scale * quant_min, rows.dtype), xp.astype(scale * quant_max, rows.dtype)


def _sweep(rows: Array, quant_min: int, quant_max: int) -> Array:
    xp = array_namespace(rows)
    j = xp.astype(like(np.arange(1, -quant_min + 1), rows), xp.float64)
    magnitude = xp.abs(xp.astype(rows, xp.float64))[..., None]
    allowed = (rows[..., None] < 0) | (j <= quant_max)  # the full range has one code more below zero than above
    points = xp.where(allowed, magnitude / (j - 0.5), xp.zeros_like(j)).reshape(len(rows), -1)
    xq = xp.where(allowed, magnitude + 0 * j, xp.zeros_like(j)).reshape(len(rows), -1)
    qq = xp.where(allowed, 2 * j - 1 + 0 * magnitude, xp.zeros_like(j)).reshape(len(rows), -1)
    order = xp.argsort(-points, axis=-1, stable=True)
    sum_xq = xp.cumulative_sum(xp.take_along_axis(xq, order, axis=-1), axis=-1)
    sum_qq = xp.maximum(xp.cumulative_sum(xp.take_along_axis(qq, order, axis=-1), axis=-1), xp.ones_like(sum_xq))
    score = sum_xq**2 / sum_qq
    equal = score >= xp.max(score, axis=-1, keepdims=True) * (1 - 1e-12)
    place = like(np.arange(score.shape[-1]), rows)
    last = xp.max(xp.where(equal, place, xp.zeros_like(place)), axis=-1, keepdims=True)
    return xp.take_along_axis(sum_xq / sum_qq, last, axis=-1)[..., 0]
