"""Pictures of what a language model reads: a text and its surprise, and what each letter looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from qlearn.plots.picture import picture
from qlearn.style import INK, SMALLEST

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
