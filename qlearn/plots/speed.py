"""The roofline: what a processor can do at most, and what layers reach of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qlearn.plots.charts import COLOURS, MARKERS
from qlearn.plots.picture import picture
from qlearn.style import GREY

LINES = ("-", "--", ":", "-.")


@picture
def roofline(
    bytes_per_second: float,
    peaks: Mapping[str, float],
    points: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Figure, str]:
    """Operations a second against operations for each byte, both logarithmic: the roofs, and layers under them.

        roof(x) = min(peak, bytes_per_second · x)

    Left of its bend a layer waits for its bytes, right of it for its operations. A layer whose weights lie in a cache
    can be above the slope, which is that of the memory.

    Args:
        bytes_per_second: what the memory gives.
        peaks: a name for each kind of operation, such as "float32" → operations a second.
        points: a name for each layer → (its operations for each byte, the operations a second that it reached).

    Source: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785.

    >>> roofline(10e9, {"float32": 100e9, "int8": 400e9}, {"linear": (5.0, 25e9)})
    Roofline of a memory of 10 GB/s. float32: 100 billion operations a second, from 10 operations a byte on. int8: 400 \
billion operations a second, from 40 operations a byte on. linear: 5 operations a byte, 25 billion a second.
    """
    points = points or {}
    bends = {name: peak / bytes_per_second for name, peak in peaks.items()}
    xs = [*bends.values(), *(x for x, _ in points.values())]
    low, high = min(xs) / 8, max(xs) * 8
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    parts = [f"Roofline of a memory of {_billions(bytes_per_second)} GB/s."]
    for (name, peak), line in zip(peaks.items(), cycle(LINES), strict=False):
        bend = bends[name]
        axes.plot([low, bend, high], [bytes_per_second * low, peak, peak], line, color=GREY, linewidth=1.6)
        axes.annotate(
            f"{name}, {_billions(peak)} billion/s", (high, peak), (0, 4), textcoords="offset points", ha="right"
        )
        parts.append(f"{name}: {_billions(peak)} billion operations a second, from {bend:.3g} operations a byte on.")
    start = 1.3 * low  # left of all points, which lie above the label
    axes.annotate(
        f"{_billions(bytes_per_second)} GB/s", (start, bytes_per_second * start), (8, 0), textcoords="offset points",
        va="top",
    )  # fmt: skip
    for (name, (x, y)), colour, marker in zip(points.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        axes.plot([x], [y], marker, color=colour, markersize=7, label=name)
        parts.append(f"{name}: {x:.3g} operations a byte, {_billions(y)} billion a second.")
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set(xlabel="operations for each byte", ylabel="billion operations a second")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, 1.5 * top)
    powers = _powers(low, high)
    axes.set_xticks(10.0**powers, [f"{10.0**power:,g}" for power in powers])
    powers = _powers(bottom / 1e9, 1.5 * top / 1e9)
    axes.set_yticks(1e9 * 10.0**powers, [f"{10.0**power:,g}" for power in powers])
    axes.minorticks_off()
    axes.grid()
    if points:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure, " ".join(parts)


def _powers(low: float, high: float) -> Any:
    """The powers of ten between two numbers."""
    return np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)


def _billions(number: float) -> str:
    """Three significant digits, written out."""
    return f"{float(f'{number / 1e9:.3g}'):,g}"
