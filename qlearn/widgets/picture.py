"""The way from Matplotlib's canvas to a small PNG."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

# Two segments of TCP on a computer's own network interface, 64 KiB each, and a little more. A shorter message has to
# wait until the page has acknowledged the one before (Nagle's algorithm), which a page takes 40 ms to do; two whole
# segments are acknowledged at once. Between computers segments are short, and a picture fills several as it is.
PROMPT = 140_000
ELSEWHERE = ("COLAB_RELEASE_TAG", "JUPYTERHUB_USER")  # set where the page is on another computer than the kernel


def pixels_of(canvas: FigureCanvasAgg) -> np.ndarray:
    """Red, green, blue and alpha, shape (height, width, 4); a view that the next drawing changes."""
    return np.asarray(canvas.buffer_rgba())


class Palette:
    """256 colours for pictures like this one: its commonest ones, kept exactly.

    Colours are told apart by five bits a channel, 32,768 kinds. A table says which colour of the palette each
    kind becomes, so that turning a picture into codes is one look-up a pixel.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        colours, counts = np.unique(pixels.view(np.uint32), return_counts=True)
        colours = colours[np.argsort(-counts, kind="stable")]
        _, first = np.unique(self._kinds(colours), return_index=True)  # of each kind, its commonest colour
        self.colours = colours[np.sort(first)][:256].view(np.uint8).reshape(-1, 4)[:, :3]

        levels = 255 / 31 * np.arange(32, dtype=np.float32)
        blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")
        kinds = np.stack([red, green, blue], -1).reshape(-1, 3)
        palette = self.colours.astype(np.float32)
        distance = (palette**2).sum(1) - 2 * kinds @ palette.T  # less |kind|², which is the same for all colours
        self.table = distance.argmin(1).astype(np.uint8)
        self.table[self._kinds(colours[np.sort(first)][:256])] = np.arange(len(palette))

    def encode(self, pixels: np.ndarray) -> Image.Image:
        """Pixels of shape (height, width, 4) as a picture with this palette."""
        codes = self.table.take(self._kinds(pixels.view(np.uint32)[..., 0]))
        picture = Image.frombytes("P", codes.shape[::-1], codes.tobytes())
        picture.putpalette(self.colours.tobytes())
        return picture

    @staticmethod
    def _kinds(colours: np.ndarray) -> np.ndarray:
        """The five highest bits of each channel, blue first; `colours` hold alpha, blue, green, red from the top."""
        kinds = colours >> 3 & 0x001F
        kinds |= colours >> 6 & 0x03E0
        kinds |= colours >> 9 & 0x7C00
        return kinds


def to_png(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def prompt(png: bytes) -> bytes:
    """The same PNG, long enough to be sent without delay to a page on this computer: zeros follow its end mark."""
    return png if any(name in os.environ for name in ELSEWHERE) else png.ljust(PROMPT, b"\0")
