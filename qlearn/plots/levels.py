"""Levels under the values that they are for, and what formats cost and yield."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qlearn.plots.charts import without_left_spine
from qlearn.plots.picture import picture
from qlearn.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, ORANGE, GREY)


@picture
def level_rows(x: Any, levels: Mapping[str, Any], *, xlabel: str = "value") -> tuple[Figure, str]:
    """The histogram of x, and under it the levels of each codebook as a row of ticks.

    >>> level_rows([0.0, 0.1, 0.2, 9.0], {"even": [0, 3, 6, 9], "fitted": [0.05, 0.2, 9]})
    4 values from 0 to 9. even: 4 levels from 0 to 9, 3 apart everywhere. fitted: 3 levels from 0.05 to 9, from 0.15 \
to 8.8 apart.
    """
    x = np.asarray(x, dtype=np.float64).reshape(-1)
    figure = Figure(figsize=(7.6, 1.5 + 0.3 * len(levels)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 0.05 + 0.3 * len(levels)])
    upper.hist(x, 150, color=SKY)
    upper.set(ylabel="count")
    upper.grid(axis="y")
    parts = []
    for row, (name, numbers) in enumerate(levels.items()):
        ticks = np.asarray(numbers, dtype=np.float64)
        lower.plot(ticks, np.full(len(ticks), row), "|", color=COLOURS[row], markersize=13, markeredgewidth=1.2)
        near, far = np.diff(ticks).min(), np.diff(ticks).max()
        apart = f"{near:.3g} apart everywhere" if np.isclose(near, far) else f"from {near:.2g} to {far:.2g} apart"
        parts.append(f"{name}: {len(ticks)} levels from {ticks[0]:.3g} to {ticks[-1]:.3g}, {apart}.")
    lower.set(yticks=range(len(levels)), yticklabels=levels, ylim=(len(levels) - 0.4, -0.6), xlabel=xlabel)
    without_left_spine(lower)
    return figure, f"{len(x)} values from {x.min():.3g} to {x.max():.3g}. {' '.join(parts)}".replace(" -", " −")


@picture
def grouped_bars(
    groups: Sequence[str], values: Mapping[str, Sequence[float]], *, ylabel: str, floor: float = 0.0
) -> tuple[Figure, str]:
    """A group of bars for each name, one bar of each colour and hatch in every group, with its number.

    >>> grouped_bars(["normal", "uniform"], {"int8": [39.31, 48.12], "FP8": [31.6, 31.9]}, ylabel="SQNR (dB)")
    SQNR (dB). normal: int8 39.3, FP8 31.6. uniform: int8 48.1, FP8 31.9.
    """
    figure = Figure(figsize=(7.6, 2.7), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(values)
    hatches = ("", "////", "....", "xxxx")
    for k, ((name, heights), colour) in enumerate(zip(values.items(), cycle(COLOURS), strict=False)):
        places = np.arange(len(groups)) + (k - (len(values) - 1) / 2) * width
        axes.bar(
            places, np.maximum(heights, floor) - floor, 0.92 * width, bottom=floor, color=colour, hatch=hatches[k % 4],
            edgecolor="white", linewidth=0, label=name,
        )  # fmt: skip
        for place, height in zip(places, heights, strict=True):
            axes.text(
                place, max(height, floor), f"{height:.3g}".replace("-", "−"), ha="center", va="bottom", fontsize=8
            )
    axes.set(xticks=range(len(groups)), xticklabels=groups, ylabel=ylabel)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=len(values))
    parts = [
        f"{group}: " + ", ".join(f"{name} {heights[i]:.3g}" for name, heights in values.items()) + "."
        for i, group in enumerate(groups)
    ]
    return figure, f"{ylabel}. {' '.join(parts)}".replace(" -", " −")
