"""The explorer of lesson 00: one handwritten digit, and how little of it is needed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlearn.affine import QParams, choose_qparams, dequantize, fake_quantize, quantize
from qlearn.arrays import as_array, dtype_name, quietly
from qlearn.datasets import mnist_arrays
from qlearn.packing import packed_size
from qlearn.sorted_view import SortedView
from qlearn.style import GREEN
from qlearn.widgets.controls import Number, Slider, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.panels import EvenBins, Histograms
from qlearn.widgets.values import ERRORS, SCALE, as_numpy, measure

MOST_BITS = 8
WRITERS = 100
BYTE = 0.0, 255.0
MOST_PIXELS = 300  # of a side, in the picture


@quietly
def explore_digit(
    image: Any = None, *, digit: int = 5, writer: int = 1, bits: int = 2, pixel_ratio: float = 1
) -> DigitExplorer:
    """Give the pixels of a handwritten digit fewer and fewer bits, and see how long it can be read.

    Args:
        image: a picture of your own instead, array or tensor (height, width); bytes from 0 to 255, or numbers with
            a range of their own.
        digit: which digit of MNIST's test images, 0 … 9.
        writer: which of its first hundred images, 1 … 100.
        bits: of one pixel, 1 … 8.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: an image that is not (height, width), that is empty or holds NaN or infinity; a control that
            cannot take its value.

    Cost: one sort of the pixels; then O(2ᵇ log n) for each move of a control.

    >>> explorer = explore_digit(bits=2)
    >>> explorer.numbers["bytes"], explorer.numbers["codes_used"]
    (196, 4)
    """
    start = {"bits": bits} | ({} if image is not None else {"digit": digit, "writer": writer})
    return DigitExplorer(image, start=start, pixel_ratio=pixel_ratio)


class DigitExplorer(Explorer):
    """The picture before and after quantization, side by side, and the histogram of its pixels."""

    title = "Digit"
    size = (800, 310)
    exact_colours = True  # the greys themselves are what is to be seen
    shown: ClassVar = {
        "bytes": Number("bytes"),
        "bytes_as_float": Number("as float32", "bytes"),
        "codes_used": Number("greys used", "of {codes}"),
    }
    untold = ("bits_per_value", *ERRORS, *SCALE)  # lesson 01 is the first to speak of them

    def __init__(self, image: Any = None, **options: Any) -> None:
        self.controls = {}
        if image is None:
            self._digits = mnist_arrays().test
            self.range = BYTE
            self.controls = {
                "digit": Slider("digit", "Which digit.", 0, 9, 5),
                "writer": Slider(
                    "writer", "Whose handwriting: the first hundred in MNIST's test images.", 1, WRITERS, 1
                ),
            }
        else:
            self._own = as_image(image)
            self._own_sorted = SortedView(self._own)
            is_bytes = dtype_name(as_array(image)) == "uint8"
            self.range = BYTE if is_bytes else (float(self._own.min()), float(self._own.max()))
        self.controls["bits"] = Slider("bits", "How many bits a pixel has: b bits give 2ᵇ greys.", 1, MOST_BITS, 2)
        lo, hi = min(0.0, self.range[0]), max(0.0, self.range[1])
        self.greys = (lo, hi) if lo < hi else (0.0, 1.0)
        # Bytes: eight to a bin. Other values: room for ticks beyond the range, at 1 bit half its width.
        room = (self.greys[1] - self.greys[0]) * (1 / 510 if self.range == BYTE else 0.52)
        self.bins = EvenBins(self.greys[0] - room, self.greys[1] + room, 32 if self.range == BYTE else 64)
        super().__init__(**options)

    def compute(self, bits: int, **which: int) -> dict[str, Any]:
        """All numbers and arrays of the picture."""
        pixels, values = self._pixels(**which)
        qparams = choose_qparams(*(values.values.dtype.type(end) for end in self.range), bits=bits)
        shown = pixels[:: -(-len(pixels) // MOST_PIXELS), :: -(-pixels.shape[1] // MOST_PIXELS)]
        return {
            **measure([values], qparams),
            "bytes": packed_size(pixels.size, bits),
            "bytes_as_float": 4 * pixels.size,
            "bits": bits,
            "before": shown,
            "after": fake_quantize(shown, qparams),
            "histogram": values.histogram(self.bins.edges),
            "marked": _middle_grey(shown, self.greys),
        }

    def setup(self, figure: Figure) -> list[Artist]:
        boxes = (0.02, 0.06, 0.31, 0.8), (0.345, 0.06, 0.31, 0.8), (0.735, 0.16, 0.255, 0.7)
        before, after, right = map(figure.add_axes, boxes)
        figure.text(0.02, 0.885, "Before, bits a pixel: 8" if self.range == BYTE else "Before", fontsize=9)
        # A letter takes 50 µs to draw, so only the number moves.
        title = figure.text(0.345, 0.885, "After, bits a pixel:", fontsize=9)
        end = title.get_window_extent(self._canvas.get_renderer()).x1
        self._number = figure.text(end / figure.bbox.width + 0.006, 0.885, "", fontsize=9)
        figure.text(0.735, 0.885, "Pixels: before (line), after (bars)", fontsize=9)
        self._histograms = Histograms(right, self.size[0])
        self._histograms.fit(self.bins, max(self.result["histogram"].sum(), 1))
        right.set_xlabel("pixel: 0 is paper, 255 is ink" if self.range == BYTE else "pixel")
        self._images = [self._setup_image(axes) for axes in (before, after)]
        frames = [*before.spines.values(), *after.spines.values()]  # drawn again over the pixels
        images = [artist for pair in self._images for artist in pair]
        return [*images, *frames, self._number, *self._histograms.artists]

    def update(self, result: dict[str, Any]) -> None:
        row, column = result["marked"]
        for (image, mark), pixels in zip(self._images, (result["before"], result["after"]), strict=True):
            image.set_data(self._colours(pixels))
            height, width = pixels.shape
            image.set_extent((0, width, height, 0))
            mark.set_bounds(column, row, 1, 1)
        self._number.set_text(str(result["bits"]))
        self._histograms.update(result["histogram"], result["ticks"], result["counts"])

    def explain(self, result: dict[str, Any]) -> list[str]:
        qparams: QParams = result["qparams"]
        x = result["before"][result["marked"]]
        code = quantize(np.asarray(x), qparams)
        x_hat = float(dequantize(np.asarray(code), qparams))
        return [
            f"marked pixel: {rounded(float(x))}",
            f"nearest of {result['codes']} greys: {rounded(x_hat)}, number {int(code)} from 0",
            f"stored as {int(code):0{result['bits']}b}",
        ]

    def _pixels(self, digit: int | None = None, writer: int = 1) -> tuple[Any, SortedView]:
        """The picture, and its pixels in order."""
        if digit is None:
            return self._own, self._own_sorted
        images, labels = self._digits
        pixels = images[np.flatnonzero(labels == digit)[writer - 1]].astype(np.float32)
        return pixels, SortedView(pixels)

    def _colours(self, pixels: Any) -> Any:
        """Paper white, ink black: three equal bytes a pixel, exactly 255 less the pixel where pixels are bytes."""
        paper, ink = self.greys
        light = np.rint(np.clip((ink - pixels) / (ink - paper), 0, 1) * 255).astype(np.uint8)
        return np.repeat(light[..., None], 3, axis=-1)

    def _setup_image(self, axes: Axes) -> tuple[Any, Rectangle]:
        height, width = self.result["before"].shape
        image = axes.imshow(np.full((height, width, 3), 255, np.uint8), interpolation="nearest")
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        mark = Rectangle((0, 0), 1, 1, fill=False, edgecolor=GREEN, linewidth=1.8)
        axes.add_patch(mark)
        return image, mark


def as_image(image: Any) -> Any:
    """A picture as a NumPy matrix of floats; further axes of length 1 are left out.

    >>> as_image(np.zeros((1, 28, 28), np.uint8)).shape
    (28, 28)
    """
    shape = tuple(as_array(image).shape)
    sides = [n for n in shape if n != 1] if len(shape) > 2 else list(shape)
    if len(shape) > 2:
        sides += [1] * (2 - len(sides))
    if len(sides) != 2:
        raise ValueError(f"image has shape {shape}: one grey value a pixel is needed, shape (height, width).")
    pixels = as_numpy(image).reshape(sides)
    return pixels.astype(np.float32) if dtype_name(as_array(image)) == "uint8" else pixels


def _middle_grey(pixels: Any, greys: tuple[float, float]) -> tuple[int, int]:
    """Row and column of the pixel that is nearest to the middle between paper and ink."""
    nearest = int(np.argmin(abs(pixels - (greys[0] / 2 + greys[1] / 2))))
    return nearest // pixels.shape[1], nearest % pixels.shape[1]
