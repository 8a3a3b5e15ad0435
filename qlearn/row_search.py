"""The range with the smallest squared error for each row of values: by the search, or by sweeping all scales.

Rows are (r, n), NumPy: r tensors, channels or groups of n values each. Found are lo and hi, (r,) of the rows' type.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlearn.arrays import SLAB
from qlearn.fine_bins import search_long
from qlearn.range_search import EXACT, TIE, Search
from qlearn.sorted_rows import LOOKED_UP_FROM, SortedRows
from qlearn.sorted_view import SortedView

LONG = 1 << 16  # values: from there on a row is searched alone
MOST_BINNED_BITS = 8  # beyond, too many steps are as narrow as a bin
BREAKPOINTS = 1 << 20  # swept at once: some 64 MB


def by_searching(rows: Any, search: Search) -> tuple[Any, Any]:
    """One search for all rows of a part, or for each long row."""
    n, dtype = rows.shape[-1], rows.dtype
    exponent = np.zeros(len(rows), np.int32)
    found: list[tuple[Any, Any]]
    if dtype == np.float64:  # their squares could overflow, or vanish: a power of two brings them near 1
        exponent = np.frexp(np.abs(rows).max(-1))[1]
        rows = np.ldexp(rows, -exponent[:, None])
    if n < max(LONG, LOOKED_UP_FROM * 2**search.bits):
        step = max(1, SLAB // n)
        found = [_of_rows(rows[i : i + step], search) for i in range(0, len(rows), step)]
    elif dtype == np.float32 and search.bits <= MOST_BINNED_BITS:
        found = [search_long(row, search) for row in rows]
    else:
        found = [_of_row(row, search) for row in rows]
    scale, zero_point = (np.concatenate(parts, axis=None) for parts in zip(*found, strict=True))
    return search.range_of(scale, zero_point, dtype, exponent)


def _of_rows(rows: Any, search: Search) -> tuple[Any, Any]:
    view = SortedRows(rows)
    tried = search.tried(view, view.values[:, 0], view.values[:, -1], np.abs(view.values).mean(-1))
    return search.best(view, tried)


def _of_row(row: Any, search: Search) -> tuple[Any, Any]:
    view = SortedView(row)
    tried = search.tried(view, float(view.values[0]), float(view.values[-1]), float(np.abs(row).mean(dtype=np.float64)))
    return search.best(view, tried)


def by_sweeping(rows: Any, search: Search) -> tuple[Any, Any]:
    """The best symmetric scale of all: as it falls, one value after the other gets a code one larger.

    With codes q the best scale is Σ|x|q / Σq², and the error then is Σx² − (Σ|x|q)² / Σq². Each breakpoint
    adds |x| to the first sum and j² − (j − 1)² = 2j − 1 to the second. Among equals the smallest scale wins.
    """
    quant_min, quant_max = search.limits
    step = max(1, BREAKPOINTS // (rows.shape[-1] * -quant_min))
    scale = np.concatenate([_sweep(rows[i : i + step], quant_min, quant_max) for i in range(0, len(rows), step)])
    return search.range_of(scale, np.zeros_like(scale), rows.dtype)


def _sweep(rows: Any, quant_min: int, quant_max: int) -> Any:
    j = np.arange(1, -quant_min + 1, dtype=np.float64)
    largest = np.abs(rows).max(-1, keepdims=True)
    unit = np.where(largest > 0, largest, 1).astype(np.float64)
    magnitude = (np.abs(rows) / unit)[..., None]  # 0 … 1: their squares neither overflow nor vanish
    allowed = (rows[..., None] < 0) | (j <= quant_max)  # the full range has one code more below zero than above
    points, xq, qq = (
        np.where(allowed, values, 0).reshape(len(rows), -1) for values in (magnitude / (j - 0.5), magnitude, 2 * j - 1)
    )
    order = np.argsort(-points, axis=-1, kind="stable")
    sum_xq = np.cumsum(np.take_along_axis(xq, order, -1), -1)
    sum_qq = np.cumsum(np.take_along_axis(qq, order, -1), -1)  # from 1 on: code 1 of the largest value
    squares = (magnitude**2).sum((-2, -1))[:, None]
    error = squares - sum_xq**2 / sum_qq
    equal = error <= error.min(-1, keepdims=True) * (1 + TIE) + EXACT * squares
    last = equal.shape[-1] - 1 - equal[:, ::-1].argmax(-1)[:, None]
    return np.squeeze(np.take_along_axis(sum_xq / sum_qq, last, -1) * unit, -1)
