"""Curves, bars and histograms, for any lesson."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.plots.picture import picture
from qlearn.style import BLACK, BLUE, INK, ORANGE, VERMILLION

MARKERS = (
    "o",
    "s",
    "^",
    "D",
    "v",
)  # the second cue; one more than colours, so that 20 pairs differ
COLOURS = (BLUE, VERMILLION, BLACK, ORANGE)


@picture
def curves(
    x: Sequence[float],
    ys: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> tuple[Figure, str]:
    """A few curves over one axis, told apart by colour and marker.

    >>> curves([2, 4], {"error": [0.5, 0.03]}, xlabel="bits", ylabel="MSE")
    MSE against bits. error: 0.5 at 2, 0.03 at 4.
    """
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for (name, y), colour, marker in zip(ys.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        axes.plot(x, y, marker=marker, color=colour, label=name, markersize=5, linewidth=1.4)
    axes.set(xlabel=xlabel, ylabel=ylabel, xticks=x)
    if log:
        axes.set_yscale("log")
    axes.grid()
    if len(ys) > 1:
        axes.legend()
    parts = (f"{name}: " + ", ".join(f"{v:.3g} at {at}" for at, v in zip(x, y, strict=True)) for name, y in ys.items())
    return figure, f"{ylabel} against {xlabel}. {'; '.join(parts)}."


@picture
def histograms(values: Mapping[str, Any], *, bins: int = 200, xlabel: str = "value") -> tuple[Figure, str]:
    """Histograms one above the other, on one axis and one scale of heights.

    >>> import numpy as np
    >>> histograms({"x": np.array([0.0, 0.1, 1.0]), "x̂": np.array([0.0, 0.0, 1.0])})
    Histograms of x: 3 values from 0 to 1, 3 different ones; x̂: 3 values from 0 to 1, 2 different ones.
    """
    arrays = {name: np.asarray(v, dtype=np.float64).reshape(-1) for name, v in values.items()}
    edges = np.linspace(min(v.min() for v in arrays.values()), max(v.max() for v in arrays.values()), bins + 1)
    figure = Figure(figsize=(7.6, 0.6 + 1.1 * len(arrays)), layout="constrained")
    rows = figure.subplots(len(arrays), sharex=True, sharey=True, squeeze=False)[:, 0]
    parts = []
    for axes, (name, v), colour in zip(rows, arrays.items(), cycle(COLOURS), strict=False):
        axes.hist(v, edges, color=colour)
        axes.set(title=name, ylabel="count", yscale="log")
        axes.grid(axis="y")
        parts.append(f"{name}: {len(v)} values from {v.min():.3g} to {v.max():.3g}, {len(np.unique(v))} different ones")
    rows[-1].set_xlabel(xlabel)
    return figure, f"Histograms of {'; '.join(parts)}."


@picture
def bars(values: Mapping[str, float], *, xlabel: str, unit: str = "") -> tuple[Figure, str]:
    """Horizontal bars with their numbers.

    >>> bars({"float": 358.44, "int8": 92.0}, xlabel="size", unit="kB")
    size: float 358 kB, int8 92 kB.
    """
    figure = Figure(figsize=(7.6, 0.5 + 0.36 * len(values)), layout="constrained")
    axes = figure.subplots()
    names = list(values)
    axes.barh(range(len(values)), list(values.values()), color=BLUE, height=0.62)
    texts = [f"{value:.3g} {unit}".strip() for value in values.values()]
    for row, (value, text) in enumerate(zip(values.values(), texts, strict=True)):
        axes.text(value, row, f" {text}", va="center", color=INK, fontsize=8)
    axes.set(yticks=range(len(values)), yticklabels=names, xlabel=f"{xlabel} ({unit})" if unit else xlabel)
    axes.set_xlim(0, 1.15 * max(values.values()))
    axes.invert_yaxis()
    without_left_spine(axes)
    return figure, f"{xlabel}: {', '.join(f'{name} {text}' for name, text in zip(names, texts, strict=True))}."


def without_left_spine(axes: Axes) -> None:
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
