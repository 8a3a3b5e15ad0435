"""Pictures of single numbers: their bits, their ticks, their errors, their codes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlearn.affine import QParams, dequantize, fake_quantize, quantize
from qlearn.plots.charts import COLOURS, MARKERS, without_left_spine
from qlearn.plots.picture import picture
from qlearn.style import BLACK, BLUE, GREY, INK, ORANGE, PALE, SKY, VERMILLION


@picture
def number_formats(value: int = 100) -> tuple[Figure, str]:
    """The bits of one whole number as uint8, of its negative as int8, and of the number as float32.

    >>> number_formats(100)
    The bits of 100 as uint8: 01100100. Of -100 as int8: 10011100. Of 100.0 as float32: sign 0, \
exponent 10000101, fraction 10010000000000000000000.
    """
    unsigned = f"{value:08b}"
    signed = f"{-value & 255:08b}"
    single = f"{struct.unpack('>I', struct.pack('>f', value))[0]:032b}"
    figure = Figure(figsize=(7.6, 2.0), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-8.2, 32.6), ylim=(-0.15, 3.35))
    axes.axis("off")
    rows = [
        (2.3, f"uint8   {value}", unsigned, [(8, SKY, "256 values, 0 … 255")]),
        (1.2, f"int8   −{value}", signed, [(1, ORANGE, ""), (7, SKY, "256 values, −128 … 127")]),
        (0.1, f"float32   {value}.0", single, [(1, ORANGE, "sign"), (8, PALE, "exponent"), (23, SKY, "fraction")]),
    ]
    for y, label, bits, fields in rows:
        axes.text(-0.6, y + 0.3, label, ha="right", va="center", color=INK)
        colours = [colour for count, colour, _ in fields for _ in range(count)]
        for i, (bit, colour) in enumerate(zip(bits, colours, strict=True)):
            axes.add_patch(Rectangle((i, y), 1, 0.6, facecolor=colour, edgecolor="white", linewidth=1.2))
            axes.text(i + 0.5, y + 0.29, bit, ha="center", va="center", fontsize=8, color=BLACK)
        if len(bits) == 8:
            axes.text(8.5, y + 0.3, fields[-1][2], va="center", color=GREY)
        else:
            start = 0
            for count, _, name in fields:
                axes.text(start + count / 2, y + 0.68, name, ha="center", va="bottom", fontsize=8, color=GREY)
                start += count
    alt = (
        f"The bits of {value} as uint8: {unsigned}. Of -{value} as int8: {signed}. Of {value}.0 as float32: "
        f"sign {single[0]}, exponent {single[1:9]}, fraction {single[9:]}."
    )
    return figure, alt


@picture
def number_line(x: Any, qparams: QParams) -> tuple[Figure, str]:
    """Values above a line of ticks, each with an arrow down to the tick it is given.

    >>> number_line([-1.0, 0.4, 3.0], QParams(1.0, 1, 0, 7))
    A line with 8 ticks from -1 to 6, codes 0 to 7, code 1 at 0.0. 3 values point to their nearest ticks; \
the largest error is 0.4.
    """
    x = np.asarray(x, dtype=np.float64)
    codes = np.arange(qparams.quant_min, qparams.quant_max + 1)
    ticks = dequantize(codes, qparams)
    x_hat = fake_quantize(x, qparams)
    figure = Figure(figsize=(7.6, 1.9), layout="constrained")
    axes = figure.subplots()
    margin = 0.04 * (ticks[-1] - ticks[0])
    axes.set(xlim=(min(ticks[0], x.min()) - margin, max(ticks[-1], x.max()) + margin), ylim=(-0.85, 1.25))
    axes.axis("off")
    axes.axhline(0, color=GREY, linewidth=1)
    axes.plot(ticks, np.zeros_like(ticks), "|", color=INK, markersize=11, markeredgewidth=1.2)
    for code, tick in zip(codes, ticks, strict=True):
        is_zero = code == qparams.zero_point
        weight = "bold" if is_zero else "normal"
        axes.text(tick, -0.2, str(code), ha="center", va="top", fontweight=weight, color=BLUE, fontsize=8)
        axes.text(
            tick,
            -0.52,
            f"{tick:.3g}".replace("-", "−"),
            ha="center",
            va="top",
            fontweight=weight,
            color=GREY,
            fontsize=8,
        )
    left = axes.get_xlim()[0]
    for y, text, colour in ((0.95, "x", VERMILLION), (-0.3, "code", BLUE), (-0.62, "x̂", GREY)):
        axes.annotate(  # a little to the left: the label of the first tick reaches beyond the axes
            text,
            (left, y),
            (-12, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=colour,
            fontsize=8,
        )
    for value, tick in zip(x, x_hat, strict=True):
        axes.annotate(
            "",
            (tick, 0.12),
            (value, 0.9),
            arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.7, "shrinkB": 0},
        )
    axes.plot(x, np.full_like(x, 0.95), "o", color=VERMILLION, markersize=4.5)
    alt = (
        f"A line with {len(codes)} ticks from {ticks[0]:.3g} to {ticks[-1]:.3g}, codes {codes[0]} to {codes[-1]}, "
        f"code {qparams.zero_point} at 0.0. {len(x)} values point to their nearest ticks; "
        f"the largest error is {np.abs(x - x_hat).max():.3g}."
    )
    return figure, alt


@picture
def errors_of(x: Any, x_hats: Mapping[str, Any]) -> tuple[Figure, str]:
    """The error x − x̂ of every value, for a few quantizers one above the other, on one scale.

    >>> errors_of([1.0, 2.0], {"fine": [1.0, 2.1], "coarse": [1.5, 1.5]})
    Errors of 2 values. fine: mean squared error 0.005, largest 0.1. coarse: mean squared error 0.25, largest 0.5.
    """
    x = np.asarray(x, dtype=np.float64)
    errors = {name: x - np.asarray(x_hat) for name, x_hat in x_hats.items()}
    top = 1.15 * max(np.abs(error).max() for error in errors.values())
    figure = Figure(figsize=(7.6, 0.5 + 1.15 * len(errors)), layout="constrained")
    rows = figure.subplots(len(errors), sharex=True, squeeze=False)[:, 0]
    for axes, (name, error), colour, marker in zip(rows, errors.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.vlines(np.arange(len(x)), 0, error, color=colour, linewidth=1.6)
        axes.plot(np.arange(len(x)), error, marker, color=colour, markersize=4)
        axes.set(ylim=(-top, top), title=f"{name}: mean squared error {np.mean(error**2):.3g}", ylabel="x − x̂")
        axes.grid(axis="y")
    rows[-1].set(xlabel="index of the value", xticks=np.arange(len(x)))
    parts = (
        f"{name}: mean squared error {np.mean(error**2):.3g}, largest {np.abs(error).max():.3g}."
        for name, error in errors.items()
    )
    return figure, f"Errors of {len(x)} values. {' '.join(parts)}"


@picture
def codes_in_use(x: Any, quantizers: Mapping[str, QParams]) -> tuple[Figure, str]:
    """Which part of its codes each quantizer gives to the values of x.

    >>> codes_in_use([0.0, 3.0], {"signed": QParams(1.0, 0, -3, 3), "unsigned": QParams(1.0, 0, 0, 3)})
    Codes used, from smallest to largest. signed: 0 to 3 of -3 to 3. unsigned: 0 to 3 of 0 to 3.
    """
    figure = Figure(figsize=(7.6, 0.55 + 0.62 * len(quantizers)), layout="constrained")
    axes = figure.subplots()
    parts = []
    for row, (name, qparams) in enumerate(quantizers.items()):
        codes = quantize(x, qparams).astype(int)
        colour = COLOURS[row]
        axes.barh(
            row,
            qparams.quant_max - qparams.quant_min,
            left=qparams.quant_min,
            height=0.52,
            facecolor="white",
            edgecolor=colour,
            hatch="////",
        )
        axes.barh(row, codes.max() - codes.min(), left=codes.min(), height=0.52, color=colour)
        axes.plot(codes, np.full_like(codes, row), "|", color="white", markersize=13, markeredgewidth=0.9)
        parts.append(f"{name}: {codes.min()} to {codes.max()} of {qparams.quant_min} to {qparams.quant_max}.")
    axes.set(yticks=range(len(quantizers)), yticklabels=quantizers, xlabel="code (hatched: never used)")
    axes.invert_yaxis()
    without_left_spine(axes)
    return figure, f"Codes used, from smallest to largest. {' '.join(parts)}"
