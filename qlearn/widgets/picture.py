"""The way from Matplotlib's canvas to a small PNG."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

# Two segments of TCP on a computer's own network interface, 64 KiB each, and a little more. A shorter message has to
# wait until the page has acknowledged the one before (Nagle's algorithm), which a page takes 40 ms to do; two whole
# segments are acknowledged at once. Between computers segments are short, and a picture fills several as it is.
PROMPT = 140_000
ELSEWHERE = ("COLAB_RELEASE_TAG", "JUPYTERHUB_USER")  # set where the page is on another computer than the kernel
UNKNOWN = -1  # the code of a kind of colour that no picture has had so far
STRIP = 1 << 14  # pixels worked on at once: what they need stays in the cache, and in memory that was used before


def pixels_of(canvas: FigureCanvasAgg) -> np.ndarray:
    """Red, green, blue and alpha, shape (height, width, 4); a view that the next drawing changes."""
    return np.asarray(canvas.buffer_rgba())


class Palette:
    """256 colours for pictures like this one: its commonest ones, kept exactly.

    Colours are told apart by five bits a channel, 32,768 kinds. A table says which colour of the palette each
    kind becomes, so that turning a picture into codes is one look-up a pixel. Kinds that a later picture brings
    get the nearest colour when they first appear.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        colours, counts = np.unique(pixels.view(np.uint32), return_counts=True)
        colours = colours[np.argsort(-counts, kind="stable")]
        kinds, first = np.unique(self._kinds(colours), return_index=True)  # of each kind, its commonest colour
        kept = np.argsort(first)[:256]
        self.colours = colours[first[kept]].view(np.uint8).reshape(-1, 4)[:, :3]
        self.table = np.full(1 << 15, UNKNOWN, np.int16)
        self.table[kinds[kept]] = np.arange(len(kept))

    def encode(self, pixels: np.ndarray) -> Image.Image:
        """Pixels of shape (height, width, 4) as a picture with this palette."""
        flat = pixels.view(np.uint32).reshape(-1)
        codes = np.empty(flat.size, np.uint8)
        for start in range(0, flat.size, STRIP):
            strip = slice(start, start + STRIP)
            codes[strip] = self._codes(self._kinds(flat[strip]))
        picture = Image.frombytes("P", pixels.shape[1::-1], codes.data)
        picture.putpalette(self.colours.tobytes())
        return picture

    def _codes(self, kinds: np.ndarray) -> np.ndarray:
        places = kinds.astype(np.intp)  # what `take` wants: where a place has 32 bits, uint32 is refused
        codes = self.table.take(places)
        if codes.min() == UNKNOWN:
            self._learn(np.unique(places[codes == UNKNOWN]))
            codes = self.table.take(places)
        return codes

    def _learn(self, kinds: np.ndarray) -> None:
        """Find for each of these kinds the nearest colour."""
        colours = 255 / 31 * np.stack([kinds >> shift & 31 for shift in (0, 5, 10)], -1)
        palette = self.colours.astype(np.float64)
        distance = (palette**2).sum(1) - 2 * colours @ palette.T  # less |colour|², which is the same for all of it
        self.table[kinds] = distance.argmin(1)

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


def exact_png(pixels: np.ndarray) -> bytes:
    """Pixels of shape (height, width, 4) as a PNG with all their colours.

    Pillow tries five filters on each row, which takes five times as long as all else and saves a quarter of the
    bytes. This is the PNG without filters: every row begins with a 0.

    Source: the PNG specification, https://www.w3.org/TR/png-3/, sections 5 and 9.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 4 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)  # 8 bits a channel, kind 6: red, green, blue, alpha
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(rows.data, 1), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def page_format() -> str:
    """How a picture goes to the page: "url" to one on this computer, "png" to one on another."""
    return "png" if any(name in os.environ for name in ELSEWHERE) else "url"


def for_page(png: bytes, page_format: str) -> bytes:
    """A PNG as the value of a picture on the page.

    An address that holds the PNG itself is shown 5 ms sooner than its bytes, for which the browser makes an
    address first and then fetches them from another process. Spaces, which belong to no address, make it long
    enough to be sent at once. To another computer the bytes go as they are: there every one of them costs time.
    """
    if page_format == "png":
        return png
    return (b"data:image/png;base64," + base64.b64encode(png)).ljust(PROMPT)
