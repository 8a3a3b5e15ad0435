"""What stands under an explorer's picture where no kernel runs: controls, numbers and calculation."""

from __future__ import annotations

import textwrap
from itertools import groupby

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qlearn.style import DPI, GREY, INK, STILL_RATIO

ROW = 20  # pixels of the page


def footer(width: int, settings: str, rows: list[list[tuple[str, str]]], steps: list[str]) -> FigureCanvasAgg:
    """Settings, rows of labels with their numbers, and steps with arrows between them, as a picture."""
    unbroken = ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in settings.split(", "))
    headings, lines = textwrap.wrap(unbroken, width // 8), joined(steps, width // 7)
    height = ROW * (len(headings) + len(rows) + len(lines)) + 14
    # The hundredth of a pixel: some versions of Matplotlib cut 227.99… pixels off to 227.
    size = ((width + 0.01) / DPI, (height + 0.01) / DPI)
    figure = Figure(figsize=size, dpi=DPI * STILL_RATIO, facecolor="#F4F4F4")

    def write(x: float, row: int, text: str, weight: str = "normal", colour: str = INK) -> None:
        figure.text(
            x / width, 1 - (8 + ROW * row) / height, text, va="top", family="DejaVu Sans", size=8.5, weight=weight,
            color=colour,
        )  # fmt: skip

    for row, line in enumerate(headings):
        write(14, row, line, "bold")
    for row, cells in enumerate(rows, start=len(headings)):
        for column, (label, text) in enumerate(cells):
            x = 14 + column * (width - 28) / len(rows[0])
            write(x, row, label, colour=GREY)
            write(x + 96, row, text, "bold")
    for row, line in enumerate(lines, start=len(headings) + len(rows)):
        write(14, row, line)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def joined(steps: list[str], width: int) -> list[str]:
    """The steps with arrows between them, on lines of at most `width` letters.

    >>> joined(["x = 1", "x / 2 = 0.5", "rint: 0", "", "y = 3"], width=20)
    ['x = 1 → x / 2 = 0.5', '→ rint: 0', 'y = 3']
    """
    lines = []
    for first, *others in calculations(steps):
        lines.append(first)
        for step in others:
            if len(lines[-1]) + len(step) + 3 <= width:
                lines[-1] += f" → {step}"
            else:
                lines.append(f"→ {step}")
    return lines


def calculations(steps: list[str]) -> list[list[str]]:
    """The steps of each calculation: an empty one stands between two.

    >>> calculations(["x = 1", "x / 2 = 0.5", "", "y = 3"])
    [['x = 1', 'x / 2 = 0.5'], ['y = 3']]
    """
    return [list(group) for filled, group in groupby(steps, bool) if filled]
