"""Pictures of integer arithmetic: a product of differences, a fixed-point multiplication, codes near a tie."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlearn.integer import requantize
from qlearn.plots.charts import without_left_spine
from qlearn.plots.picture import picture
from qlearn.style import BLACK, BLUE, GREY, INK, ORANGE, PALE, SKY, VERMILLION

LIGHT_ORANGE = "#FBDDA8"
WIDE = 64  # bits of the product of two 32-bit integers


@picture
def four_terms(x: int = 9, w: int = 12, x_zero_point: int = 3, w_zero_point: int = 4) -> tuple[Figure, str]:
    """The product (x − z_x)(w − z_w) as a rectangle that is left when two strips are taken away.

    >>> four_terms(9, 12, 3, 4)
    A rectangle of 9 by 12. Two strips are taken away: 3 · 12 = 36 along the bottom, 4 · 9 = 36 along the left. \
They share a corner of 3 · 4 = 12, which is added back. What is left is (9 − 3) · (12 − 4) = 108 − 36 − 36 + 12 = 48.
    """
    z_x, z_w = x_zero_point, w_zero_point
    figure = Figure(figsize=(7.6, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    unit = 1 / x
    axes.set(xlim=(-0.45 * w * unit, 2.45 * w * unit), ylim=(-0.24, 1.06))
    for place, size, colour, hatch in (
        ((z_w, z_x), (w - z_w, x - z_x), SKY, ""),
        ((z_w, 0), (w - z_w, z_x), "white", "////"),
        ((0, z_x), (z_w, x - z_x), "white", "\\\\\\\\"),
        ((0, 0), (z_w, z_x), "white", "xxxx"),
    ):
        scaled = [(value * unit) for value in (*place, *size)]
        axes.add_patch(
            Rectangle(
                (scaled[0], scaled[1]), scaled[2], scaled[3],
                facecolor=colour, edgecolor=VERMILLION if hatch else BLUE, hatch=hatch, linewidth=1.2,
            )
        )  # fmt: skip
    label: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    product = r"$(x − z_x) \cdot (w − z_w)$" + f"\n= {(x - z_x) * (w - z_w)}"
    axes.text((z_w + w) / 2 * unit, (z_x + x) / 2 * unit, product, **label)
    for along, low, high, text in (
        (True, 0, z_w, f"$z_w$ = {z_w}"),
        (True, z_w, w, f"$w − z_w$ = {w - z_w}"),
        (False, 0, z_x, f"$z_x$ = {z_x}"),
        (False, z_x, x, f"$x − z_x$ = {x - z_x}"),
    ):
        middle = (low + high) / 2 * unit
        if along:
            axes.text(middle, -0.04, text, ha="center", va="top", color=GREY)
        else:
            axes.text(-0.04 * w * unit, middle, text, ha="right", va="center", color=GREY)
    right = 1.3 * w * unit
    for y, sign, text, value, colour in (
        (0.9, "", rf"$x \cdot w$ = {x} · {w}", x * w, INK),
        (0.7, "−", rf"$z_x \cdot w$ = {z_x} · {w}   the bottom strip", z_x * w, VERMILLION),
        (0.5, "−", rf"$z_w \cdot x$ = {z_w} · {x}   the left strip", z_w * x, VERMILLION),
        (0.3, "+", rf"$z_x \cdot z_w$ = {z_x} · {z_w}   the corner, taken away twice", z_x * z_w, BLUE),
        (0.1, "=", "what is left", (x - z_x) * (w - z_w), INK),
    ):
        axes.text(right, y, f"{sign} {value}".strip(), ha="right", va="center", color=colour, fontweight="bold")
        axes.text(right + 0.05, y, text, va="center", color=INK)
    return figure, (
        f"A rectangle of {x} by {w}. Two strips are taken away: {z_x} · {w} = {z_x * w} along the bottom, "
        f"{z_w} · {x} = {z_w * x} along the left. They share a corner of {z_x} · {z_w} = {z_x * z_w}, which is added "
        f"back. What is left is ({x} − {z_x}) · ({w} − {z_w}) = {x * w} − {z_x * w} − {z_w * x} + {z_x * z_w} "
        f"= {(x - z_x) * (w - z_w)}."
    )


@picture
def fixed_point_bits(acc: int, m: int, shift: int) -> tuple[Figure, str]:
    """The bits of an accumulator times a 31-bit multiplier: which are kept, and which only decide the rounding.

    >>> fixed_point_bits(1000, 1288490189, 1)
    The bits of 1000 · 1288490189 = 1288490189000. The lowest 31 are rounded away: 600. Of these the lowest 1 is \
rounded away: 300.
    """
    product, high = acc * m, (acc * m + 2**30) >> 31
    low = 2**31 - 1
    code = int(requantize([acc], m, shift, zero_point=0, quant_min=-low, quant_max=low)[0])
    figure = Figure(figsize=(7.6, 2.05), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-19.5, WIDE + 0.5), ylim=(-0.1, 4.1))
    axes.axis("off")
    rows = [
        (3.15, f"acc = {acc:,}", acc, 32, 31, 0),
        (2.1, "acc · m", product, WIDE, WIDE - 1, 31),
        (1.05, f"/ 2³¹ = {high:,}", high, 32, 31 + 31, shift),
        (0.0, f"/ 2{_raised(shift)} = {code:,}", code, 32 - shift, 31 + 31, 0),
    ]
    for y, text, value, width, leftmost, dropped in rows:
        axes.text(-1, y + 0.32, text, ha="right", va="center", color=INK)
        for place in range(width):
            at = WIDE - 1 - (leftmost - (width - 1 - place))
            away = place < dropped
            colour = LIGHT_ORANGE if away else SKY if value >> place else PALE
            axes.add_patch(
                Rectangle((at, y), 1, 0.66, facecolor=colour, edgecolor="white", linewidth=0.6, hatch="///" * away)
            )
            axes.text(at + 0.5, y + 0.31, str(value >> place & 1), ha="center", va="center", fontsize=8, color=BLACK)
    axes.text(0, 3.47, "blue: the number; grey: leading zeros", va="center", fontsize=8, color=GREY)
    axes.text(WIDE / 2 + 2, 1.37, "orange, hatched: rounded away", va="center", fontsize=8, color=GREY)
    return figure, (
        f"The bits of {acc} · {m} = {product}. The lowest 31 are rounded away: {high}. "
        f"Of these the lowest {shift} {'is' if shift == 1 else 'are'} rounded away: {code}."
    )


@picture
def near_ties(exact: Any, differs: Any, reach: float) -> tuple[Figure, str]:
    """Where exact values lie that are close to a tie, the middle between two codes, and which got another code.

    Args:
        exact: values in units of codes, before they are rounded.
        differs: which of them were given another code than rint(exact).
        reach: how close to a tie the first rounding can lead astray.

    >>> near_ties([7.4999, 3.5003, 2.1], [True, False, False], reach=0.0005)
    2 of 3 values lie within 0.002 of a tie. 1 of them got another code, all within 0.0005 below it.
    """
    exact, differs = np.asarray(exact, dtype=np.float64), np.asarray(differs)
    distance = exact - np.floor(exact) - 0.5
    distance = np.where(exact < 0, -distance, distance)  # below means nearer to zero: halves are rounded away from it
    close = np.abs(distance) < 4 * reach
    figure = Figure(figsize=(7.6, 1.75), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-reach, 0, facecolor=LIGHT_ORANGE, edgecolor=ORANGE, hatch="//", linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    for row, (chosen, marker, colour) in enumerate(((~differs, "o", BLUE), (differs, "D", VERMILLION))):
        places = distance[close & chosen]
        spread = (np.arange(len(places)) * 0.618) % 1 - 0.5  # so that points do not cover each other
        axes.plot(places, row + 0.5 * spread, marker, color=colour, markersize=4)
    axes.set(
        xlim=(-4 * reach, 4 * reach), ylim=(1.5, -0.5), yticks=[0, 1], yticklabels=["same code", "another code"],
        xlabel="distance from the tie, in codes (hatched: where the first rounding can reach it)",
    )  # fmt: skip
    without_left_spine(axes)
    count, of = int(differs[close].sum()), int(close.sum())
    below = bool(((distance[differs] >= -reach) & (distance[differs] <= 0)).all())
    return figure, (
        f"{of} of {len(exact)} values lie within {4 * reach:.3g} of a tie. {count} of them got another code, "
        f"{'all' if below else 'not all'} within {reach:.3g} below it."
    )


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
