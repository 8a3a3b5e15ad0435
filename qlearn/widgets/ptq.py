"""The explorer of lesson 05: a trained network in few bits, its accuracy, and the digits that it no longer reads."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.affine import QParams
from qlearn.arrays import quietly
from qlearn.errors import sqnr_db
from qlearn.style import BLACK, BLUE, SKY
from qlearn.widgets.controls import Choice, Number, Slider, rounded
from qlearn.widgets.engine import Explorer, with_torch
from qlearn.widgets.mosaic import draw, mosaic
from qlearn.widgets.panels import AFTER, BEFORE, OUTLINE, count_ticks, counted, heading, height, plain

NETWORKS = {"MLP": "mlp", "CNN": "cnn"}
BITS: dict[str, Any] = {**{str(bits): bits for bits in range(2, 9)}, "float": "float"}
BINS = 101  # of the weights' histogram: odd, so that 0 has one of its own
COLUMNS = 5  # of digits
SLOW = 0.15  # seconds: a network that takes longer is asked when a slider is let go


@quietly
def explore_ptq(
    model: Any = None,
    *,
    network: str = "mlp",
    weight_bits: int | str = 3,
    activation_bits: int | str = 8,
    granularity: str = "tensor",
    method: str = "min_max",
    layer: int = 1,
    pixel_ratio: float = 1,
) -> PTQExplorer:
    """Quantize a trained network with fewer and fewer bits, and see which digits it no longer reads.

    Every setting is what `nn.prepare`, `nn.calibrate` and `nn.convert` make: weights symmetric, activations
    asymmetric, ranges of activations from the 1,000 calibration digits. It answers the first 1,000 test digits.

    Args:
        model: a trained network of your own that takes MNIST digits, (N, 1, 28, 28), and gives 10 logits.
        network: without `model`, one that comes with this package: "mlp" or "cnn".
        weight_bits, activation_bits: 2 … 8, or "float".
        granularity: of the weights: "tensor" for one scale a layer, "channel" for one a row.
        method: how ranges are chosen, of weights and of activations: "min_max", "percentile" (99.9) or "mse".
        layer: whose weights are shown, from 1 on.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: a control that cannot take its value; a model without a layer that can be quantized, or one that
            does not take digits.

    Cost: one pass of the network over 1,000 digits for each setting that was not seen before.

    >>> explorer = explore_ptq(weight_bits=2)
    >>> explorer.numbers["accuracy_percent"] < 20, explorer.numbers["float_percent"] > 97
    (True, True)
    >>> explorer.set(method="mse")
    >>> explorer.numbers["accuracy_percent"] > 90
    True
    """
    start = dict(
        weight_bits=weight_bits, activation_bits=activation_bits, granularity=granularity, method=method, layer=layer
    ) | ({} if model is not None else {"network": network})
    return PTQExplorer(model, start=start, pixel_ratio=pixel_ratio)


class PTQExplorer(Explorer):
    """A layer's weights before and after, right answers by digit, and digits that became wrong or right."""

    title = "Post-training quantization"
    size = (800, 450)
    shown: ClassVar = {
        "accuracy_percent": Number("accuracy", "%"),
        "float_percent": Number("in float", "%"),
        "became_wrong": Number("became wrong"),
        "became_right": Number("became right"),
        "bytes": Number("size", "bytes"),
        "size_percent": Number("of float's", "%"),
        "weight_sqnr_db": Number("weights' SQNR", "dB"),
        "scales": Number("their scales"),
    }

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._torch = runs = with_torch("explore_ptq")
        self._own = None if model is None else runs.Network(model)
        self._network = lru_cache(None)(lambda name: self._own or runs.Network(name))
        self._before = lru_cache(64)(self._histogram_before)
        self._after = lru_cache(256)(self._find_after)
        self._images, self._labels = runs.digits()
        layers = len(self._own.layers) if self._own else 3
        self.controls = {
            **({} if self._own else {"network": Choice("network", "Which trained network.", NETWORKS, "mlp")}),
            "weight_bits": Choice("weight bits", "How many bits a weight has.", BITS, 3, slide=True),
            "activation_bits": Choice("activ. bits", "How many bits a layer's input has.", BITS, 8, slide=True),
            "granularity": Choice(
                "granularity",
                "How many weights share a scale: all of a layer, or those of one output channel.",
                {"per tensor": "tensor", "per channel": "channel"},
                "tensor",
            ),
            "method": Choice(
                "range",
                "How ranges are chosen, of weights and of activations.",
                {"min-max": "min_max", "percentile 99.9": "percentile", "MSE": "mse"},
                "min_max",
            ),
            "layer": Slider("layer", "Whose weights are shown: 1 is the first layer.", 1, layers, 1),
        }
        super().__init__(**options)
        if self._own and self._own.seconds > SLOW:
            self._follow_on_release()

    def compute(
        self,
        weight_bits: int | str,
        activation_bits: int | str,
        granularity: str,
        method: str,
        layer: int,
        network: str = "own",
    ) -> dict[str, Any]:
        """All numbers and arrays of the picture."""
        with self._torch.Network.at_work():
            setting = self._torch.Setting(weight_bits, activation_bits, granularity, method)
            return self._compute(setting, layer, network)

    def _compute(self, setting: Any, layer: int, network: str) -> dict[str, Any]:
        one = self._network(network)
        outcome, floats, labels = one.outcome(setting), one.floats, self._labels
        right, was_right = outcome.says == labels, floats.says == labels
        became_wrong, became_right = np.flatnonzero(was_right & ~right), np.flatnonzero(right & ~was_right)
        name = one.layers[layer - 1]
        edges, before = self._before(network, layer)
        after, sqnr = self._after(network, layer, setting._replace(activation_bits="float"))
        weights = one.weight_qparams(name, setting)
        return {
            "accuracy_percent": 100 * float(right.mean()),
            "float_percent": 100 * float(was_right.mean()),
            "became_wrong": len(became_wrong),
            "became_right": len(became_right),
            "bytes": outcome.bytes,
            "size_percent": 100 * outcome.bytes / floats.bytes,
            "weight_sqnr_db": sqnr,
            "scales": 0 if weights is None else np.asarray(weights.scale).size,
            "by_digit": np.array([100 * right[labels == digit].mean() for digit in range(10)]),
            "float_by_digit": np.array([100 * was_right[labels == digit].mean() for digit in range(10)]),
            "flipped": {"wrong": became_wrong, "right": became_right},
            "answers": (floats.says, outcome.says),
            "edges": edges,
            "before": before,
            "after": after,
            "weights": weights,
            "inputs": one.input_qparams(name, setting),
            "name": name,
            "layer": (network, layer),
            "right": int(right.sum()),
            "was_right": int(was_right.sum()),
        }

    def setup(self, figure: Figure) -> list[Artist]:
        weights, accuracy = map(figure.add_axes, ((0.08, 0.615, 0.37, 0.315), (0.08, 0.075, 0.37, 0.37)))
        wrong, right = map(figure.add_axes, ((0.495, 0.3, 0.5, 0.63), (0.495, 0.015, 0.5, 0.21)))
        self._flipped = {"wrong": Digits(wrong, rows=3), "right": Digits(right, rows=1)}
        digits = [artist for panel in self._flipped.values() for artist in panel.artists]
        return [*self._setup_weights(weights), *self._setup_accuracy(accuracy), *digits]

    def scene(self, result: dict[str, Any]) -> tuple[str, int]:
        return result["layer"]

    def arrange(self, result: dict[str, Any]) -> None:
        """An axis for the weights of another layer."""
        edges = result["edges"]
        total = int(result["before"].sum())
        self._above.set(title=f"Weights of {result['name']}, {total:,} of them", xlim=edges[[0, -1]])
        ticks = even_ticks(edges[-1])
        self._above.set_xticks(ticks, [plain(float(tick)) for tick in ticks])
        top = height(total) + 0.2
        self._above.set_ylim(height(0) - 0.1, top)
        count_ticks(self._above, int(top) + 1)

    def update(self, result: dict[str, Any]) -> None:
        for stairs, counts in ((self._x, "before"), (self._x_line, "before"), (self._x_hat, "after")):
            stairs.set_data(height(result[counts]), result["edges"])
        for bar, percent in zip(self._bars, result["by_digit"], strict=True):
            bar.set_width(percent)
        self._floats.set_xdata(result["float_by_digit"])
        before, now = result["answers"]
        for name, panel in self._flipped.items():
            which = result["flipped"][name]
            panel.update(
                f"Became {name}: {panel.some(len(which))}",
                self._images[which[: panel.places]],
                [f"{before[i]} → {now[i]}" for i in which[: panel.places]],
            )

    def explain(self, result: dict[str, Any]) -> list[str]:
        steps = [_of_weights(result["name"], result["weights"], float(result["edges"][-1]))]
        inputs: QParams | None = result["inputs"]
        if inputs is not None:
            low, high = (float(inputs.scale) * (end - int(inputs.zero_point)) for end in (0, inputs.quant_max))
            steps.append(f"its input: {rounded(low)} … {rounded(high)} in {inputs.quant_max} steps")
        became = f"{result['was_right']} − {result['became_wrong']} + {result['became_right']}"
        steps.append(f"right answers: {became} = {result['right']} of {len(self._labels):,}")
        return steps

    # What is found once

    def _histogram_before(self, network: str, layer: int) -> tuple[Any, Any]:
        """Bins as wide as the weights reach, and how many fall into each."""
        one = self._network(network)
        weight = one.weight(one.layers[layer - 1]).float().cpu().numpy().reshape(-1)
        reach = float(np.abs(weight).max()) or 1.0
        edges = 1.04 * np.linspace(-reach, reach, BINS + 1)
        return edges, np.histogram(weight, edges)[0]

    def _find_after(self, network: str, layer: int, setting: Any) -> tuple[Any, float]:
        """The histogram of the quantized weights, and their SQNR."""
        one = self._network(network)
        name = one.layers[layer - 1]
        weight, after = (x.float().cpu().numpy() for x in (one.weight(name), one.quantized_weight(name, setting)))
        return np.histogram(after, self._before(network, layer)[0])[0], sqnr_db(weight, after)

    # The panels

    def _setup_weights(self, axes: Axes) -> list[Artist]:
        self._above = axes
        axes.set(xlabel="value of a weight", ylabel="how many (log)")
        axes.grid(axis="y")
        self._x = counted(axes, **BEFORE, label="before")
        self._x_hat = counted(axes, **AFTER, label="after")
        self._x_line = counted(axes, **OUTLINE)
        axes.legend(loc="upper right", borderaxespad=0.1)
        return [self._x, self._x_hat, self._x_line]

    def _setup_accuracy(self, axes: Axes) -> list[Artist]:
        axes.set(title="Right answers (%)", ylabel="digit", xlim=(0, 101.5), ylim=(9.7, -0.7), yticks=range(10))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        self._bars = list(axes.barh(range(10), np.zeros(10), height=0.72, color=SKY, edgecolor=BLUE, linewidth=0.8))
        (self._floats,) = axes.plot(np.zeros(10), range(10), "|", color=BLACK, markersize=9, markeredgewidth=1.8)
        self._bars[0].set_label("now")
        self._floats.set_label("in float")
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.02, 0.995), ncols=2, columnspacing=1.2, borderaxespad=0,
            handlelength=1.3,
        )  # fmt: skip
        return [*self._bars, self._floats]


class Digits:
    """Rows of digits, with what was and what is said of each written under it.

    Attributes:
        places: how many digits there is room for.
        artists: those that move.
    """

    def __init__(self, axes: Axes, *, rows: int) -> None:
        self._rows, self.places = rows, rows * COLUMNS
        self._title = heading(axes, 0.017)
        self._mosaic, self._captions = draw(axes, [], rows, COLUMNS, gap=1)
        self.artists: list[Artist] = [self._mosaic, self._title, *self._captions]

    def some(self, total: int) -> str:
        """How many of so many there is room for."""
        return f"{total}" if total <= self.places else f"{self.places} of {total}"

    def update(self, title: str, images: Any, captions: list[str]) -> None:
        """Show at most `places` digits."""
        self._title.set_text(title + (" (answer in float → answer now)" if captions else ""))
        self._mosaic.set_data(mosaic(images, self._rows, COLUMNS))
        for text, caption in zip(self._captions, captions + [""] * (self.places - len(captions)), strict=True):
            text.set_text(caption)


def even_ticks(reach: float) -> Any:
    """A few round numbers from −`reach` to `reach`, 0 among them.

    >>> even_ticks(0.93), even_ticks(48.0)
    (array([-0.5,  0. ,  0.5]), array([-40., -20.,   0.,  20.,  40.]))
    """
    unit = 10.0 ** math.floor(math.log10(reach))
    step = max(step for step in (unit / 2, unit, 2 * unit, 5 * unit) if reach >= 1.5 * step)
    return step * np.arange(-(reach // step), reach // step + 1)


def _of_weights(name: str, qparams: QParams | None, reach: float) -> str:
    """The scales of a layer's weights, in words."""
    if qparams is None:
        return f"{name}: weights in float"
    scales = np.asarray(qparams.scale).reshape(-1)
    if len(scales) == 1:
        return f"{name}: scale {rounded(float(scales[0]))}, codes −{qparams.quant_max} … {qparams.quant_max}"
    ends = f"{rounded(float(scales.min()))} … {rounded(float(scales.max()))}"
    return f"{name}: {len(scales)} scales, {ends}, codes −{qparams.quant_max} … {qparams.quant_max}"
