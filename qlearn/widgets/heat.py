"""A heat map that is quick to redraw: a few levels of colour, and no more cells than the eye can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

LEVELS = 17


@dataclass(frozen=True)
class Shades:
    """How numbers become colours: `place` maps them to 0 … 1, `name` is Matplotlib's for the colours.

    `ticks` label some of the places beside the colours; `cells` says how many rows and columns there are at most.
    """

    name: str
    place: Callable[[Any], Any]
    ticks: Mapping[str, float]
    cells: tuple[int, int] = (100, 128)

    def colours(self) -> Any:
        """All levels from 0 to 1: (LEVELS, 4) bytes."""
        return (255 * matplotlib.colormaps[self.name](np.linspace(0.02, 0.98, LEVELS))).round().astype(np.uint8)

    def of(self, values: Any) -> Any:
        """The colour of each value, four bytes."""
        levels = np.clip(self.place(values) * LEVELS, 0, LEVELS - 1).astype(np.intp)
        return self.colours()[levels]


class HeatMap:
    """A matrix as cells of colour, with a strip of all colours under it.

    Attributes:
        artists: those that move.
    """

    def __init__(self, axes: Axes, strip: Axes, shape: tuple[int, int]) -> None:
        self.axes, self.strip = axes, strip
        rows, columns = shape
        blank = np.full((1, 1, 4), 255, np.uint8)
        self._image = axes.imshow(
            blank, extent=(0, columns, rows, 0), aspect="auto", interpolation="nearest", resample=False
        )
        axes.spines[:].set_visible(True)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, prune="upper"))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        self._colours = strip.imshow(blank, extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest")
        strip.spines[:].set_visible(True)
        strip.set_yticks([])
        self.artists: list[Artist] = [self._image, *axes.spines.values()]  # the frame again over the cells

    def arrange(self, shades: Shades, title: str) -> None:
        """Change the colours and what is written beside them."""
        self.axes.set_title(title)
        self._colours.set_data(shades.colours()[None])
        self.strip.set_xticks(list(shades.ticks.values()), list(shades.ticks))
        self._shades = shades

    def update(self, values: Any) -> None:
        """Show a matrix, in cells that are the means of what they stand for."""
        self._image.set_data(self._shades.of(averages(values, *self._shades.cells)))


def averages(values: Any, rows: int, columns: int) -> Any:
    """`values` as a matrix of at most so many rows and columns, each cell the mean of those that it stands for.

    >>> averages(np.array([[1.0, 3.0, 5.0], [1.0, 3.0, 5.0]]), 2, 2)
    array([[1., 4.],
           [1., 4.]])
    """
    for axis, most in enumerate((rows, columns)):
        n = values.shape[axis]
        if n > most:
            starts = np.arange(most) * n // most
            sums = np.add.reduceat(values, starts, axis)
            values = sums / np.expand_dims(np.diff(np.append(starts, n)), 1 - axis)
    return values
