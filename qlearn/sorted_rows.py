"""Many rows of values, sorted once: a view, as `gains` has it, that answers for all rows together.

`SortedView` is for one row, however long; this one is for channels and groups, of which there may be thousands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlearn.gains import AT_ONCE, sse

FEW = 32  # values in a row: up to there adding up all gains is quicker than looking up a place
LOOKED_UP_FROM = 16  # times 2ᵇ values in a row: from there on looking up ties is quicker than quantizing all values


class SortedRows:
    """The values of each row in order, with their running sum. Everything it has begins with the axis of the rows.

    Args:
        rows: (r, n) NumPy array of finite floats.
    Cost: one sort, O(r n log n).

    >>> SortedRows(np.array([[2.0, 0.0], [1.0, 3.0]])).gains(np.array([[1.0], [4.0]]))
    array([[1.],
           [4.]])
    """

    def __init__(self, rows: Any) -> None:
        self.values = np.sort(rows, axis=-1).astype(np.float64)
        r, self.count = self.values.shape
        self.sums = np.zeros((r, self.count + 1))
        np.cumsum(self.values, axis=-1, out=self.sums[:, 1:])
        self.total = self.sums[:, -1:]
        self.squares = np.einsum("rn,rn->r", self.values, self.values)[:, None]
        # All rows as one list in order: row i, brought to 0 … 1, lies between 2 i and 2 i + 1.
        self.first = self.values[:, :1]
        span = self.values[:, -1:] - self.first
        self.span = np.where(span > 0, span, 1.0)
        self.places = 2.0 * np.arange(r)[:, None]
        self.list = ((self.values - self.first) / self.span + self.places).reshape(-1)

    def gains(self, t: Any) -> Any:
        """G(t) = Σ max(0, t − x) = k t − sums[k] of thresholds (r, …), with k = #{x < t} in the same row."""
        r = len(self.values)
        flat = t.reshape(r, -1)
        if self.count <= FEW:
            gained = np.empty(flat.shape)
            step = max(1, AT_ONCE // self.values.size)
            for start in range(0, flat.shape[1], step):
                some = slice(start, start + step)
                of_each = flat[:, some, None] - self.values[:, None, :]
                gained[:, some] = np.maximum(of_each, 0, out=of_each).sum(-1)
            return gained.reshape(t.shape)
        wanted = np.clip((flat - self.first) / self.span, -0.5, 1.5) + self.places
        k = np.searchsorted(self.list, wanted) - self.count * np.arange(r)[:, None]
        return (k * flat - np.take_along_axis(self.sums, k, -1)).reshape(t.shape)

    def sse(self, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
        """The sum of squared errors of quantizers (r, c): by gains, or by quantizing where rows are short."""
        if self.count >= LOOKED_UP_FROM * (quant_max - quant_min + 1):
            return sse(self, scale, zero_point, quant_min, quant_max)
        found = np.empty(scale.shape)
        step = max(1, AT_ONCE // self.values.size)
        x = self.values[:, None, :]
        for start in range(0, scale.shape[1], step):
            some = slice(start, start + step)
            s, z = scale[:, some, None], zero_point[:, some, None]
            codes = np.rint(x / s)
            np.clip(codes, quant_min - z, quant_max - z, out=codes)
            codes *= s
            codes -= x
            found[:, some] = np.einsum("rcn,rcn->rc", codes, codes)
        return found
