"""Pictures of bits: one number in many formats, and codes side by side in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath, text_to_path

from qlearn.formats import FloatFormat, decode, encode
from qlearn.plots.granularity import TINTS
from qlearn.plots.picture import picture
from qlearn.style import INK, SMALLEST

# The three fields of a float, and the bits of a code that has none. On a dark page, too, one tells them apart.
COLOURS = {"sign": "#F0AE80", "exponent": "#98DDB4", "significand": "#9CC8F5", "code": "#D8D8D8"}
WIDEST = 32
BYTE = 8
DIGIT = 7.5  # points
LETTERS = "0123456789.−+einfa∞"  # of numbers as they are written beside the bits


@picture
def float_bits(x: float, formats: Sequence[FloatFormat]) -> tuple[Figure, str]:
    """The bits of one number in several floating-point formats, and what each format makes of it.

    >>> from qlearn.formats import BFLOAT16, E2M1
    >>> float_bits(0.1, [BFLOAT16, E2M1])
    0.1 bit by bit: sign, exponent, significand. bfloat16 0 01111011 1001101 is 0.10009765625. FP4 E2M1 0 00 0 is 0.
    """
    figure = Figure(figsize=(7.6, 0.35 + 0.27 * len(formats)), layout="constrained")
    rows = [Row(format.name, format.bits, format) for format in formats]
    codes = [int(encode(x, format)) for format in formats]
    values = [float(decode(code, format)) for code, format in zip(codes, formats, strict=True)]
    drawn = BitRows(figure.subplots(), rows)
    figure.draw_without_rendering()  # now the axes have their width
    drawn.update(codes, [f"{value:.12g}".replace("-", "−") for value in values])
    parts = []
    for row, code, value in zip(rows, codes, values, strict=True):
        bits = f"{code:0{row.bits}b}"
        split = 1 + row.format.exponent_bits if row.format else 1
        parts.append(f"{row.name} {bits[0]} {bits[1:split]} {bits[split:]} is {value:.12g}.")
    return figure, f"{x:g} bit by bit: sign, exponent, significand. {' '.join(parts)}"


@picture
def packed_bits(codes: Any, bits: int) -> tuple[Figure, str]:
    """Codes side by side in bytes: which bits of which byte belong to which code. The lowest bit is on the left.

    >>> packed_bits([1, 2, 3], 3)
    3 codes of 3 bits in 2 bytes, lowest bit first: 100 010 11|0 0000000. 1 code lies across two bytes.
    """
    codes = np.asarray(codes).reshape(-1)
    stream = ((codes[:, None] >> np.arange(bits)) & 1).reshape(-1)
    n = -(-len(stream) // BYTE)
    figure = Figure(figsize=(7.6, 0.95), layout="constrained")
    axes = figure.subplots()
    for place in range(n * BYTE):
        used = place < len(stream)
        owner = place // bits
        colour = TINTS[owner % len(TINTS)] if used else "none"
        axes.add_patch(Rectangle((place, 0), 1, 1, facecolor=colour, edgecolor="white", alpha=0.45, linewidth=1))
        axes.text(place + 0.5, 0.5, str(stream[place] if used else 0), ha="center", va="center", color=INK)
    for owner, code in enumerate(codes):
        axes.text((owner + 0.5) * bits, 1.2, f"{code}", ha="center", va="bottom", color=INK)
    for byte in range(n):
        axes.add_patch(Rectangle((byte * BYTE, 0), BYTE, 1, fill=False, edgecolor=INK, linewidth=1.4))
        value = sum(int(bit) << k for k, bit in enumerate(stream[byte * BYTE : (byte + 1) * BYTE]))
        axes.text((byte + 0.5) * BYTE, -0.2, f"byte {byte}: {value}", ha="center", va="top", color=INK)
    axes.text(-0.4, 1.2, "codes", ha="right", va="bottom", color=INK)
    axes.set(xlim=(-2.6, max(n, 3) * BYTE + 0.2), ylim=(-0.75, 1.75), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    across = sum(k * bits // BYTE != ((k + 1) * bits - 1) // BYTE for k in range(len(codes)))
    text = "".join(
        ("|" if place and place % BYTE == 0 else "")
        + (" " if place and (place % bits == 0 if place <= len(stream) else False) else "")
        + str(stream[place] if place < len(stream) else 0)
        for place in range(n * BYTE)
    )
    return figure, (
        f"{len(codes)} codes of {bits} bits in {n} bytes, lowest bit first: {text}. "
        f"{across} code{'s lie' if across != 1 else ' lies'} across two bytes."
    )


@dataclass(frozen=True)
class Row:
    """A format's name and how many bits its codes have; `format` if they are the bits of a float."""

    name: str
    bits: int
    format: FloatFormat | None = None

    @property
    def fields(self) -> list[str]:
        """What each bit belongs to, the first on the left."""
        if self.format is None:
            return ["code"] * self.bits
        return ["sign", *["exponent"] * self.format.exponent_bits, *["significand"] * self.format.significand_bits]


class BitRows:
    """Cells with a 0 or a 1 in each, and what the bits mean beside them.

    Args:
        axes: to draw on.
        rows: from top to bottom.
        legend: where its right end is, as a share of the axes' width.

    Attributes:
        artists: those that move.
    """

    def __init__(self, axes: Axes, rows: Sequence[Row], legend: float = 0.8) -> None:
        self._rows, self._axes = rows, axes
        axes.set_xlim(-0.3, WIDEST + 8.2)  # room for what a float32 stands for
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        cells = [
            Rectangle((bit, place - 0.42), 1, 0.84, facecolor=COLOURS[field])
            for place, row in enumerate(rows)
            for bit, field in enumerate(row.fields)
        ]
        axes.add_collection(PatchCollection(cells, match_original=True, edgecolor="white", linewidth=0.8))
        seen = {field for row in rows for field in row.fields}
        axes.legend(
            handles=[Patch(facecolor=colour, label=field) for field, colour in COLOURS.items() if field in seen],
            loc="lower right",
            bbox_to_anchor=(legend, -0.02),
            handlelength=1,
            labelspacing=0.2,
        )
        style: dict[str, Any] = {"linestyle": "", "color": INK, "markeredgewidth": 0}
        self._digits = [axes.plot([], [], marker=f"${digit}$", markersize=DIGIT, **style)[0] for digit in (0, 1)]
        # Each letter is a marker: a text takes half a millisecond to draw, and there is one in each row.
        self._letters, self._widths = {}, {}
        for letter in LETTERS:
            shape, self._widths[letter] = _as_marker(letter)
            size = 2 * float(np.abs(shape.vertices).max())  # a marker is made to fit into its size
            (self._letters[letter],) = axes.plot([], [], marker=shape, markersize=size, **style)
        self.artists: list[Artist] = [*self._digits, *self._letters.values()]

    def update(self, codes: Sequence[int], values: Sequence[str]) -> None:
        """Show these codes, one a row, and what each stands for."""
        places = [
            (bit + 0.5, place, code >> (row.bits - 1 - bit) & 1)
            for place, (row, code) in enumerate(zip(self._rows, codes, strict=True))
            for bit in range(row.bits)
        ]
        x, y, digit = np.array(places).T
        for wanted, line in enumerate(self._digits):
            line.set_data(x[digit == wanted], y[digit == wanted])
        # Points in one unit of the axis.
        points = self._axes.get_window_extent().width * 72 / self._axes.figure.dpi / np.ptp(self._axes.get_xlim())
        written: dict[str, list[tuple[float, int]]] = {letter: [] for letter in LETTERS}
        for row, (bits, value) in enumerate(zip((row.bits for row in self._rows), values, strict=True)):
            left = bits + 0.6
            for letter in value:
                width = self._widths[letter] / points
                written[letter].append((left + width / 2, row))
                left += width
        for letter, line in self._letters.items():
            line.set_data(*np.array(written[letter]).reshape(-1, 2).T)


@cache
def _as_marker(letter: str) -> tuple[Path, float]:
    """A letter's outline, in points, around the middle of the digits' height and of its width; and this width."""
    font = FontProperties(family="DejaVu Sans", size=SMALLEST)
    width, digit, _ = text_to_path.get_text_width_height_descent("0", font, ismath=False)
    width = text_to_path.get_text_width_height_descent(letter, font, ismath=False)[0]
    outline = TextPath((0, 0), letter, prop=font)
    return Path(outline.vertices - [width / 2, digit / 2], outline.codes), width
