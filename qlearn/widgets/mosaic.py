"""Digits in rows as one picture, with room under each for what is written there."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.text import Text

SIDE, GAP = 28, 6  # pixels of a digit, and between two


def draw(axes: Axes, images: Any, rows: int, columns: int, gap: float) -> tuple[AxesImage, list[Text]]:
    """The picture with nothing around it, and under each place, so many pixels below, a text that is empty so far."""
    picture = axes.imshow(
        mosaic(images, rows, columns), cmap="gray_r", vmin=0, vmax=255, interpolation="bilinear", aspect="auto"
    )
    axes.set_axis_off()
    return picture, [
        axes.text(x + SIDE / 2, y + SIDE + gap, "", ha="center", va="top") for x, y in corners(rows, columns)
    ]


def mosaic(images: Any, rows: int, columns: int) -> Any:
    """The picture; places without an image are blank.

    >>> mosaic(np.full((2, 28, 28), 255, np.uint8), rows=1, columns=5).shape
    (40, 170)
    """
    picture = np.zeros((rows * (SIDE + 2 * GAP), columns * (SIDE + GAP)), np.uint8)
    for image, (x, y) in zip(images, corners(rows, columns), strict=False):
        picture[y : y + SIDE, x : x + SIDE] = image
    return picture


def corners(rows: int, columns: int) -> list[tuple[int, int]]:
    """Where each digit begins: from the left, and from above.

    >>> corners(1, 2)
    [(0, 0), (34, 0)]
    """
    return [(column * (SIDE + GAP), row * (SIDE + 2 * GAP)) for row in range(rows) for column in range(columns)]
