"""Pictures of blocks: which values share a scale, what that does to each row, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlearn.affine import QParams, dequantize, fake_quantize
from qlearn.plots.charts import COLOURS, MARKERS, without_left_spine
from qlearn.plots.picture import picture
from qlearn.style import BLACK, BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, YELLOW

TINTS = (SKY, ORANGE, GREEN, YELLOW, PURPLE, BLUE, VERMILLION)


@picture
def blocks(shape: tuple[int, int], scale_shapes: Mapping[str, tuple[int, ...]]) -> tuple[Figure, str]:
    """A small matrix cut into blocks in several ways: values of one colour and number share a scale.

    >>> blocks((4, 6), {"per row": (4, 1), "groups of 3": (4, 2)})
    A matrix of 4 × 6 values. per row: scale (4, 1), 4 blocks of 1 × 6. groups of 3: scale (4, 2), 8 blocks of 1 × 3.
    """
    rows, columns = shape
    figure = Figure(figsize=(7.6, 1.45), layout="constrained")
    panels = figure.subplots(1, len(scale_shapes), squeeze=False)[0]
    parts = []
    for axes, (name, counts) in zip(panels, scale_shapes.items(), strict=True):
        down, across = counts or (1, 1)
        height, width = rows // down, columns // across
        for k in range(down * across):
            left, top = (k % across) * width, (k // across) * height
            tint = TINTS[(k + k // len(TINTS)) % len(TINTS)]
            axes.add_patch(Rectangle((left, top), width, height, facecolor=tint, alpha=0.45, edgecolor="none"))
            axes.add_patch(Rectangle((left, top), width, height, facecolor="none", edgecolor=INK, linewidth=1.2))
            axes.text(left + width / 2, top + height / 2, str(k), ha="center", va="center", color=BLACK)
        axes.vlines(range(1, columns), 0, rows, color="white", linewidth=0.8, zorder=0.9)
        axes.hlines(range(1, rows), 0, columns, color="white", linewidth=0.8, zorder=0.9)
        axes.set(xlim=(-0.1, columns + 0.1), ylim=(rows + 0.1, -0.1), aspect="equal", xticks=[], yticks=[])
        axes.set_title(name, loc="center")
        axes.set_xlabel(f"scale {counts}", color=GREY)
        axes.spines[:].set_visible(False)
        number = f"{down * across} blocks" if down * across > 1 else "1 block"
        parts.append(f"{name}: scale {counts}, {number} of {height} × {width}.")
    return figure, f"A matrix of {rows} × {columns} values. {' '.join(parts)}"


@picture
def row_ranges(w: Any) -> tuple[Figure, str]:
    """The range of each row of a matrix, and the symmetric range of the whole.

    >>> row_ranges([[-1.0, 0.5], [0.1, -0.1], [2.0, -4.0]])
    Ranges of 3 rows. The whole matrix needs ±4. The largest |w| of a row goes from 0.1 to 4, and half of the rows \
stay within ±1.
    """
    w = np.asarray(w)
    figure = Figure(figsize=(7.6, 2.2), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(w))
    largest = np.abs(w).max(axis=1)
    axes.vlines(rows, w.min(axis=1), w.max(axis=1), color=BLUE, linewidth=2.2)
    for end in (-largest.max(), largest.max()):
        axes.plot([-1, len(w)], [end, end], color=VERMILLION, linestyle="--", linewidth=1.2)
        place = "last" if end > 0 else "first"
        axes.text(len(w) + 0.5, end, f"{place} tick of\none scale for all", va="center", color=VERMILLION, fontsize=8)
    axes.set(xlabel="row", ylabel="smallest to largest weight", xlim=(-1, 1.16 * len(w)))
    axes.set_ylim(-1.3 * largest.max(), 1.2 * largest.max())
    axes.plot([-1, len(w)], [0, 0], color=GREY, linewidth=0.8)
    axes.set_xticks(np.arange(0, len(w), 10))
    alt = (
        f"Ranges of {len(w)} rows. The whole matrix needs ±{largest.max():.3g}. The largest |w| of a row goes from "
        f"{largest.min():.3g} to {largest.max():.3g}, and half of the rows stay within ±{np.median(largest):.3g}."
    )
    return figure, alt


@picture
def row_errors(w: Any, w_hats: Mapping[str, Any]) -> tuple[Figure, str]:
    """Each row's error in percent of the row's own size, against that size, both root mean squares.

    >>> import numpy as np
    >>> w = np.array([[8.0, -8.0], [0.5, 0.5]])
    >>> row_errors(w, {"coarse": np.array([[8.0, -8.0], [0.0, 0.0]]), "fine": 1.01 * w})
    Error of each of 2 rows, in percent of the row. coarse: from 0 % to 100 %, 1 row lost entirely. \
fine: from 1 % to 1 %, no row lost.
    """
    w = np.asarray(w, dtype=np.float64)
    size = np.sqrt(np.mean(w**2, axis=1))
    figure = Figure(figsize=(6.2, 2.9), layout="constrained")
    axes = figure.subplots()
    parts = []
    for (name, w_hat), colour, marker in zip(w_hats.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        error = 100 * np.sqrt(np.mean((w - w_hat) ** 2, axis=1)) / size
        axes.plot(size, error, marker, color=colour, label=name, markersize=4, alpha=0.75)
        lost = int(np.sum(~np.any(np.asarray(w_hat) != 0, axis=1)))
        lost_text = f"{lost} row{'s' if lost > 1 else ''} lost entirely" if lost else "no row lost"
        parts.append(f"{name}: from {error.min():.2g} % to {error.max():.3g} %, {lost_text}.")
    axes.set_xscale("log")
    axes.set_yscale("log")
    powers = [p for p in range(-4, 3) if axes.get_ylim()[0] <= 10.0**p <= axes.get_ylim()[1]]
    axes.set_yticks([10.0**p for p in powers], [f"{10.0**p:g} %" for p in powers])
    powers = [p for p in range(-6, 4) if axes.get_xlim()[0] <= 10.0**p <= axes.get_xlim()[1]]
    axes.set_xticks([10.0**p for p in powers], [f"{10.0**p:g}" for p in powers])
    axes.set(xlabel="size of the row (root mean square)", ylabel="error, in percent of the row")
    axes.grid()
    axes.legend()
    return figure, f"Error of each of {len(w)} rows, in percent of the row. {' '.join(parts)}"


@picture
def against_cost(
    points: Mapping[str, Sequence[tuple[int, float, float]]],
    *,
    measure: str = "SQNR",
    unit: str = "dB",
    digits: int = 1,
) -> tuple[Figure, str]:
    """A measure against bits per value, scales included; the number in a marker is how many bits a code has.

    >>> against_cost({"per row": [(2, 2.5, 6.0), (3, 3.5, 12.04)]})
    SQNR against bits per value, scales included. per row: 6.0 dB at 2.50 (2 bits), 12.0 dB at 3.50 (3 bits).
    """
    figure = Figure(figsize=(6.6, 3.7), layout="constrained")
    axes = figure.subplots()
    parts = []
    for (name, series), colour, marker in zip(points.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        pointed = marker == "^"  # only its lower half has room for a number
        axes.plot(
            [x for _, x, _ in series],
            [y for _, _, y in series],
            marker=marker,
            color=colour,
            label=name,
            markersize=14 if pointed else 10,
            linewidth=1.3,
        )
        for b, x, y in series:
            ink = BLACK if colour == ORANGE else "white"
            axes.annotate(
                str(b), (x, y), (0, -2.8 * pointed), textcoords="offset points", ha="center", va="center_baseline",
                fontsize=8, color=ink, weight="bold",
            )  # fmt: skip
        parts.append(
            f"{name}: "
            + ", ".join(f"{f'{y:.{digits}f} {unit}'.strip()} at {x:.2f} ({b} bits)" for b, x, y in series)
            + "."
        )
    axes.set(
        xlabel="bits per value, scales included (in the marker: bits of a code)",
        ylabel=f"{measure} ({unit})" if unit else measure,
    )
    axes.grid()
    axes.legend(markerscale=0.7)
    return figure, f"{measure} against bits per value, scales included. {' '.join(parts)}"


@picture
def ticks_below(values: Any, quantizers: Mapping[str, QParams]) -> tuple[Figure, str]:
    """A histogram of values, and below it the ticks of a few quantizers and how many values each one takes to 0.

    >>> ticks_below([-1.0, 0.1, 0.2, 0.6], {"wide": QParams(1.0, 0, -1, 1), "narrow": QParams(0.3, 0, -1, 1)})
    Histogram of 4 values from -1 to 0.6. wide: ticks at -1, 0, 1, 50 % of the values become 0. \
narrow: ticks at -0.3, 0, 0.3, 25 % of the values become 0.
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    figure = Figure(figsize=(6.8, 1.6 + 0.32 * len(quantizers)), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 0.8 * len(quantizers)))
    above.hist(values, 40, color=GREY)
    above.set(ylabel="count")
    parts = []
    for row, (name, qparams) in enumerate(quantizers.items()):
        ticks = dequantize(np.arange(qparams.quant_min, qparams.quant_max + 1), qparams)
        zeros = 100 * float(np.mean(fake_quantize(values, qparams) == 0))
        _ruler(below, row, ticks, COLOURS[row], MARKERS[row])
        listed = ", ".join(f"{tick:.3g}" for tick in ticks)
        parts.append(f"{name}: ticks at {listed}, {zeros:.3g} % of the values become 0.")
    below.set(yticks=range(len(quantizers)), yticklabels=quantizers, ylim=(len(quantizers) - 0.5, -0.5))
    below.set_xlabel("weight")
    without_left_spine(below)
    span = f"from {values.min():.3g} to {values.max():.3g}"
    return figure, f"Histogram of {len(values)} values {span}. {' '.join(parts)}"


def _ruler(axes: Axes, row: int, ticks: Any, colour: str, marker: str) -> None:
    """The ticks as markers on a line, and the points half way between, where rounding changes its mind."""
    axes.plot([ticks[0], ticks[-1]], [row, row], color=colour, linewidth=1)
    axes.plot(ticks, [row] * len(ticks), marker, color=colour, markersize=6)
    middles = (ticks[:-1] + ticks[1:]) / 2
    axes.plot(middles, [row] * len(middles), "|", color=colour, markersize=10 - math.log2(len(ticks)))
