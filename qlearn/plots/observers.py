"""Pictures of what observers remember."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qlearn.plots.picture import picture
from qlearn.style import BLUE, INK, VERMILLION

LEAST = 1e-3  # values nearer to 0 are left of the picture


@picture
def two_histograms(x: Any, *, bins: int = 2048) -> tuple[Figure, str]:
    """|x| counted in equal bins from 0 to the largest value, and in bins as wide as their values are large.

    The second kind is `LogHistogram`'s: the values that agree in sign, exponent and 7 fraction bits.

    >>> two_histograms(np.float32([0.5, 0.501, 0.75, 100.0]), bins=10)
    |x| of 4 values, the largest 100. 10 equal bins: 2 hold something, the fullest 3 values. Bins of 0.4 to 0.8 % \
of their values: 3 hold something, the fullest 2 values.
    """
    magnitude = np.abs(np.asarray(x, dtype=np.float32).reshape(-1))
    counts, edges = np.histogram(magnitude, bins=bins, range=(0, float(magnitude.max())))
    starts, log_counts = np.unique((magnitude.view(np.int32) >> 16 << 16).view(np.float32), return_counts=True)

    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    held = counts > 0
    shown = np.maximum(edges, LEAST)
    for left, right, count in zip(shown[:-1][held], shown[1:][held], counts[held], strict=True):
        upper.fill_between([left, max(right, 1.01 * left)], 0.5, count, color=VERMILLION, linewidth=0.8, alpha=0.9)
    seen = starts >= LEAST
    lower.vlines(starts[seen], 0.5, log_counts[seen], color=BLUE, linewidth=0.8)
    for axes, title, many, fullest in (
        (upper, f"{bins:,} equal bins", np.count_nonzero(held), counts.max()),
        (lower, "bins whose width is 0.4 to 0.8 % of their values", len(starts), log_counts.max()),
    ):
        axes.set(title=f"{title}: {many:,} hold something", xscale="log", yscale="log", ylabel="count")
        note = f"fullest: {fullest:,} values"
        axes.text(0.995, 0.84, note, transform=axes.transAxes, ha="right", color=INK, fontsize=8)
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_ylim(bottom=0.5)
    lower.set_xlabel("|x|")
    return figure, (
        f"|x| of {len(magnitude):,} values, the largest {magnitude.max():,.4g}. {bins:,} equal bins: "
        f"{np.count_nonzero(held):,} hold something, the fullest {counts.max():,} values. Bins of 0.4 to 0.8 % of "
        f"their values: {len(starts):,} hold something, the fullest {log_counts.max():,} values."
    )
