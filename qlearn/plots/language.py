"""Pictures of a language model: a text and its surprise, a block, what each letter looks at, and how models read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from qlearn.plots.charts import without_left_spine
from qlearn.plots.picture import picture
from qlearn.style import BLUE, GREY, INK, SKY, SMALLEST, VERMILLION

COLUMNS = 76  # letters in a line
LINE = 0.21  # inches
MOST = 8.0  # bits at which the colour ends
SURPRISE = ListedColormap(colormaps["Oranges"](np.linspace(0.0, 0.75, 256)), "surprise")  # black letters stay legible
SHOWN = {"\n": "¶", " ": "·"}  # letters that leave no ink


@picture
def surprise(text: str, bits: Any) -> tuple[Figure, str]:
    """A text, each letter on the colour of how surprised a model was by it; those it was not asked about are white.

    Args:
        text: what was read.
        bits: −log₂ p of the last letters of the text, as many as the model was asked about.

    >>> surprise("whale", [0.1, 0.0, 4.0])
    'whale': 1.37 bits a letter, from 0.0 for 'l' to 4.0 for 'e'.
    """
    lines, bits = wrapped(text), np.asarray(bits, dtype=float)
    first = len(text) - len(bits)
    figure = Figure(figsize=(7.6, LINE * len(lines) + 0.55), layout="constrained")
    axes = figure.subplots()
    asked, start = np.concatenate([np.full(first, np.nan), bits]), 0
    grid = np.full((len(lines), COLUMNS), np.nan)
    for row, line in enumerate(lines):
        grid[row, : len(line)] = asked[start : start + len(line)]
        start += len(line)
        for column, letter in enumerate(line):
            axes.text(
                column, row, "¶" if letter == "\n" else letter,
                ha="center", va="center", family="DejaVu Sans Mono", size=SMALLEST, color=INK,
            )  # fmt: skip
    axes.imshow(grid, cmap=SURPRISE, vmin=0, vmax=MOST, aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    shown = ScalarMappable(Normalize(0, MOST), SURPRISE)
    colours = figure.colorbar(shown, ax=axes, orientation="horizontal", aspect=60, pad=0.02, shrink=0.5, anchor=(0, 1))
    colours.set_label("surprise (bits)")
    colours.set_ticks([0, 2, 4, 6, 8], labels=["0", "2", "4", "6", "8 or more"])
    least, most = int(bits.argmin()), int(bits.argmax())
    return figure, (
        f"{text!r}: {bits.mean():.3g} bits a letter, from {bits[least]:.1f} for {text[first + least]!r} to "
        f"{bits[most]:.1f} for {text[first + most]!r}."
    )


def wrapped(text: str, columns: int = COLUMNS) -> list[str]:
    """A text in lines: broken behind a space where there is one, and behind each new line.

    >>> wrapped("the white whale", columns=10)
    ['the white ', 'whale']
    """
    lines, rest = [], text
    while rest:
        end = rest.find("\n", 0, columns) + 1
        if not end:
            end = len(rest) if len(rest) <= columns else rest.rfind(" ", 0, columns) + 1 or columns
        lines.append(rest[:end])
        rest = rest[end:]
    return lines or [""]


@picture
def attention(heads: Mapping[str, Any], text: str) -> tuple[Figure, str]:
    """Who looks at whom: row i has the shares of its attention that letter i gives to itself and to those before it.

    Args:
        heads: name → (T, T), each row with the sum 1 and nothing above the diagonal.
        text: the T letters.

    >>> attention({"a head": [[1.0, 0.0], [0.25, 0.75]]}, "ab")
    2 letters; each row is one that looks, each column one that is looked at. a head: the last, 'b', gives most, \
75 %, to 'b'.
    """
    figure = Figure(figsize=(3.8 * len(heads), 3.6), layout="constrained")
    letters = [SHOWN.get(letter, letter) for letter in text]
    parts = [f"{len(text)} letters; each row is one that looks, each column one that is looked at."]
    panels = figure.subplots(1, len(heads), squeeze=False)[0]
    for axes, (name, weights) in zip(panels, heads.items(), strict=True):
        weights = np.asarray(weights, dtype=float)
        shown = axes.imshow(weights, cmap="Purples", vmin=0, vmax=1)
        axes.set(title=name, xlabel="looked at", ylabel="looks")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(len(text)), labels=letters, family="DejaVu Sans Mono")
            axis.set_tick_params(length=0)
        most = int(weights[-1].argmax())
        share = f"{100 * weights[-1, most]:.0f} %"
        parts.append(f"{name}: the last, {text[-1]!r}, gives most, {share}, to {text[most]!r}.")
    figure.colorbar(shown, ax=panels, label="share of its attention", shrink=0.8)
    return figure, " ".join(parts)


@picture
def perplexities(values: Mapping[str, float], *, in_float: float, most: float) -> tuple[Figure, str]:
    """How well models read: bars that begin at the perplexity in float, with their numbers.

    Args:
        values: name → perplexity.
        in_float: where the bars begin.
        most: where the axis ends; a longer bar is cut there.

    >>> perplexities({"4 bits": 73.119, "4 bits, rotated": 4.496}, in_float=4.294, most=4.6)
    perplexity, in float 4.29: 4 bits 73.12, far beyond the axis; 4 bits, rotated 4.50.
    """
    figure = Figure(figsize=(7.6, 0.55 + 0.32 * len(values)), layout="constrained")
    axes = figure.subplots()
    parts, width = [], most - in_float
    for row, (name, value) in enumerate(values.items()):
        cut = value > most
        axes.barh(row, min(value, most) - in_float, left=in_float, color=BLUE, height=0.62)
        if cut:  # two strokes through the bar
            for at in (0.93, 0.95):
                x = in_float + at * width
                axes.plot([x, x + 0.015 * width], [row + 0.4, row - 0.4], color="white", linewidth=2.5)
        axes.text(min(value, most), row, f" {value:.2f}", va="center", color=INK)
        parts.append(f"{name} {value:.2f}{', far beyond the axis' if cut else ''}")
    axes.set(yticks=range(len(values)), yticklabels=values, xlim=(in_float, in_float + 1.1 * width))
    axes.set_xlabel(f"perplexity (the bars begin at {in_float:.2f}, in float)")
    axes.invert_yaxis()
    without_left_spine(axes)
    return figure, f"perplexity, in float {in_float:.2f}: {'; '.join(parts)}."


@picture
def transformer_block(width: int, heads: int, hidden: int, blocks: int = 1) -> tuple[Figure, str]:
    """The parts of a pre-norm transformer block with a gated network, and how they hang on the stream.

    Args:
        width: numbers a token has in the stream.
        heads: attention heads, of width / heads numbers each.
        hidden: outputs of *gate* and *up*.
        blocks: how many such blocks follow one another.

    >>> transformer_block(192, 6, 512, blocks=4)
    A stream of 192 numbers a letter runs from left to right through 4 blocks. In each, twice a norm reads it and \
something is added to it: first norm, then query, key and value (each 192 to 192), attention in 6 heads of 32, and \
output (192 to 192); then norm, gate and up (192 to 512), silu(gate) · up, and down (512 to 192).
    """
    figure = Figure(figsize=(7.6, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, 103), ylim=(0, 40))

    def box(x: float, y: float, text: str, linear: bool, size: float = 9.5) -> None:
        colours = (SKY, BLUE) if linear else ("white", GREY)
        style = "round,pad=0,rounding_size=0.8"
        card = FancyBboxPatch((x, y - 2.6), size, 5.2, boxstyle=style, facecolor=colours[0], edgecolor=colours[1])
        axes.add_patch(card)
        axes.text(x + size / 2, y - 0.2, text, ha="center", va="center", color=INK)

    def arrow(*points: tuple[float, float]) -> None:
        """Through all points; the head is at the last."""
        axes.plot(*zip(*points, strict=True), color=GREY, linewidth=1.2, solid_joinstyle="round", zorder=0)
        axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": GREY}, zorder=0)

    stream, middle = 35, 16
    axes.annotate("", (103, stream), (0, stream), arrowprops={"arrowstyle": "-|>", "color": VERMILLION, "linewidth": 4})
    axes.text(0, stream + 2, f"stream: {width} numbers a letter", va="bottom", color=VERMILLION)
    for start, names, joint, last, end in (
        (2, ("query", "key", "value"), f"{heads} heads\nof {width // heads}", "output", 50),
        (51, ("gate", "up"), "silu(gate)\n· up", "down", 99.5),
    ):
        places = [middle + 8.0 * (row - (len(names) - 1) / 2) for row in range(len(names))][::-1]
        arrow((start, stream), (start, middle), (start + 2, middle))
        box(start + 2, middle, "norm", linear=False, size=7.5)
        for name, y in zip(names, places, strict=True):
            arrow((start + 9.5, middle), (start + 11, middle), (start + 11, y), (start + 13, y))
            box(start + 13, y, name, linear=True, size=8.5)
            arrow((start + 21.5, y), (start + 23, y), (start + 23, middle), (start + 25, middle))
        box(start + 25, middle, joint, linear=False)
        arrow((start + 34.5, middle), (start + 36.5, middle))
        box(start + 36.5, middle, last, linear=True, size=9)
        arrow((start + 45.5, middle), (end - 1.5, middle), (end - 1.5, stream - 2))
        plus = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": VERMILLION, "linewidth": 1.5}
        axes.text(end - 1.5, stream, "+", ha="center", va="center", color=VERMILLION, fontweight="bold", bbox=plus)
    axes.text(24, 0, "attention", ha="center", va="bottom", color=GREY)
    axes.text(74, 0, "a network for each letter", ha="center", va="bottom", color=GREY)
    return figure, (
        f"A stream of {width} numbers a letter runs from left to right through {blocks} block{'s' * (blocks != 1)}. "
        "In each, twice a norm reads it and something is added to it: first norm, then query, key and value "
        f"(each {width} to {width}), attention in {heads} heads of {width // heads}, and output ({width} to {width}); "
        f"then norm, gate and up ({width} to {hidden}), silu(gate) · up, and down ({hidden} to {width})."
    )
