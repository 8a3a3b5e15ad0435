"""The other explorer of lesson 00: a whole network with fewer and fewer bits, and which digits it still reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlearn.affine import dequantize, fake_quantize
from qlearn.arrays import quietly
from qlearn.config import QuantConfig
from qlearn.datasets import mnist_arrays, trained
from qlearn.packing import packed_size
from qlearn.style import BLUE, GREEN, GREY, VERMILLION
from qlearn.widgets.controls import RANGES, Choice, Number, Slider, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.mosaic import GAP, SIDE, corners, draw
from qlearn.widgets.panels import moving, ring
from qlearn.widgets.sources import MLP_LAYERS, through_mlp

FLOAT = "float"
BITS: dict[str, Any] = {FLOAT: FLOAT, **{str(bits): bits for bits in range(8, 0, -1)}}
DIGITS = 1000  # validation digits that the network reads
ROWS, COLUMNS = 4, 6
SHOWN = ROWS * COLUMNS  # the first of them
GUESSING = 10.0  # percent


@quietly
def explore_network(*, bits: int | str = FLOAT, method: str = "min_max", pixel_ratio: float = 1) -> NetworkExplorer:
    """Give all weights of a trained network fewer and fewer bits, and see how long it can read handwritten digits.

    The network is the MLP that comes with this package, 784-100-100-10. Each of its three matrices of weights has
    one range and 2ᵇ values, asymmetric, as in lesson 01; biases and activations stay in float. It reads the first
    1,000 validation digits.

    Args:
        bits: of one weight: "float", for the 32 it was trained in, or 8 … 1.
        method: how a range is chosen: "min_max" or "mse".
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: a control that cannot take its value.

    Cost: one pass of the network over 1,000 digits for each of the 18 settings, at first; then none.

    >>> explorer = explore_network(bits=2)
    >>> explorer.numbers["accuracy_percent"], explorer.numbers["bytes"]
    (46.0, 22350)
    >>> explorer.set(method="mse")
    >>> explorer.numbers["accuracy_percent"]
    96.9
    """
    return NetworkExplorer(start={"bits": bits, "method": method}, pixel_ratio=pixel_ratio)


class NetworkExplorer(Explorer):
    """How many digits are read right, at every number of bits; and what the network says of some of them."""

    title = "A network with fewer bits"
    size = (800, 430)
    shown: ClassVar = {
        "accuracy_percent": Number("accuracy", "%"),
        "misread": Number("misread", f"of {DIGITS:,}"),
        "bytes": Number("weights", "bytes"),
        "size_percent": Number("of float's", "%"),
    }
    controls: Mapping[str, Slider | Choice] = {
        "bits": Choice("bits", "How many bits a weight has: b bits give 2ᵇ values.", BITS, FLOAT, slide=True),
        "method": Choice(
            "range",
            "Which range the values are spread over: from the smallest weight to the largest, or the one with the "
            "smallest mean squared error.",
            RANGES,
            "min_max",
        ),
    }

    def compute(self, bits: int | str, method: str) -> dict[str, Any]:
        """All numbers and arrays of the picture."""
        labels, now = _digits()[1], _outcome(bits, method)
        return {
            "accuracy_percent": now.percent,
            "misread": int((now.says != labels).sum()),
            "bytes": now.bytes,
            "size_percent": 100 * now.bytes / _outcome(FLOAT, method).bytes,
            "bits": bits,
            "method": method,
            "curves": {name: [_outcome(b, name).percent for b in BITS.values()] for name in RANGES.values()},
            "place": list(BITS.values()).index(bits),
            "says": now.says[:SHOWN],
            "labels": labels[:SHOWN],
            "values": now.values,
        }

    def idle(self, **values: Any) -> tuple[str, ...]:
        return ("method",) if values["bits"] == FLOAT else ()

    def setup(self, figure: Figure) -> list[Artist]:
        left, right = map(figure.add_axes, ((0.065, 0.115, 0.395, 0.6), (0.505, 0.015, 0.485, 0.895)))
        self._accuracy = figure.text(0.065, 0.825, "", fontsize=30, fontweight="bold")
        figure.text(0.27, 0.85, f"of {DIGITS:,} digits\nare read right", linespacing=1.3, va="center", fontsize=10)
        return [self._accuracy, *self._setup_curves(left), *self._setup_digits(figure, right)]

    def update(self, result: dict[str, Any]) -> None:
        self._accuracy.set_text(f"{result['accuracy_percent']:.1f} %")
        self._now.set_data([result["place"]], [result["accuracy_percent"]])
        for method, line in self._curves.items():
            line.set_data(range(len(BITS)), result["curves"][method])
        wrong = result["says"] != result["labels"]
        self._misread.set_text(f"{int(wrong.sum())} of these {SHOWN} are misread")
        for text, frame, says, label in zip(
            self._captions, self._frames, result["says"], result["labels"], strict=True
        ):
            text.set_text(f"{says}" if says == label else f"{says}, not {label}")
            frame.set_visible(says != label)

    def explain(self, result: dict[str, Any]) -> list[str]:
        weights, bits = sum(trained("mlp")[f"{name}.weight"].size for name in MLP_LAYERS), result["bits"]
        right = f"right: {DIGITS - result['misread']} of {DIGITS:,}"
        if bits == FLOAT:
            return [f"{weights:,} weights · 32 bits / 8 = {result['bytes']:,} bytes", right]
        values = [rounded(value) for value in result["values"]]
        listed = ", ".join(values if len(values) <= 4 else [*values[:2], "…", values[-1]])
        return [
            f"{weights:,} weights · {bits} {'bit' if bits == 1 else 'bits'} / 8 = {result['bytes']:,} bytes",
            f"{2**bits} values in the first layer: {listed}",
            right,
        ]

    # The panels

    def _setup_curves(self, axes: Axes) -> list[Artist]:
        axes.set(title="Read right (%), at every number of bits", xlabel="bits of a weight")
        axes.set(xlim=(-0.4, len(BITS) - 0.6), ylim=(0, 104), yticks=range(0, 101, 20))
        axes.set_xticks(range(len(BITS)), list(BITS))
        axes.grid(axis="y")
        axes.axhline(GUESSING, color=GREY, linewidth=1, linestyle=":")
        axes.annotate("guessing", (1, GUESSING), (0, 3), textcoords="offset points", ha="center", color=GREY)
        look: dict[str, Any] = {"markersize": 5, "linewidth": 1.4}
        self._curves = {
            "mse": moving(axes, "s--", color=GREEN, label="MSE range", **look),
            "min_max": moving(axes, "o-", color=BLUE, label="min-max range", **look),
        }
        self._now = ring(axes, 13, markeredgewidth=1.6, label="now")
        axes.legend(loc="center", bbox_to_anchor=(0.4, 0.5), labelspacing=0.8)
        return [*self._curves.values(), self._now]

    def _setup_digits(self, figure: Figure, axes: Axes) -> list[Artist]:
        box = axes.get_position()
        figure.text(box.x0, 0.945, "What the network says", fontsize=9)
        self._misread = figure.text(box.x1, 0.945, "", fontsize=9, ha="right", fontweight="bold")
        _, self._captions = draw(axes, _digits()[0][:SHOWN], ROWS, COLUMNS, gap=0.5)
        self._frames = [
            Rectangle((x - 1.5, y - 1), SIDE + 3, SIDE + 2 * GAP - 2, fill=False, edgecolor=VERMILLION, linewidth=1.8)
            for x, y in corners(ROWS, COLUMNS)
        ]  # fmt: skip
        for frame in self._frames:
            frame.set_clip_on(False)
            axes.add_patch(frame)
        return [self._misread, *self._captions, *self._frames]


# The numbers behind the picture


class Outcome(NamedTuple):
    """What the network of one setting says of each digit, its weights' bytes, and the values of its first layer."""

    says: np.ndarray
    bytes: int
    values: Any

    @property
    def percent(self) -> float:
        """How many digits it reads right."""
        return 100 * int((self.says == _digits()[1]).sum()) / DIGITS


@cache
def _outcome(bits: int | str, method: str) -> Outcome:
    return _read(None) if isinstance(bits, str) else _read(QuantConfig(bits=bits, method=method))


def _read(config: QuantConfig | None) -> Outcome:
    """Sums are made in float64: in float32 they end in other digits on another processor."""
    net, size, values = {**trained("mlp")}, 0, None
    for name in (f"{layer}.weight" for layer in MLP_LAYERS):
        w = net[name]
        if config is None:
            size += w.nbytes
            continue
        qparams = config.find_qparams(w)
        net[name] = fake_quantize(w, qparams)
        size += packed_size(w.size, config.bits)
        if values is None:
            values = dequantize(np.arange(2**config.bits), qparams)
    return Outcome(through_mlp(net, _digits()[0])[-1].argmax(axis=1), size, values)


@cache
def _digits() -> tuple[Any, Any]:
    images, labels = mnist_arrays().validation
    return images[:DIGITS].copy(), labels[:DIGITS].copy()
