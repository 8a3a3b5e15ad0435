"""The explorer of lesson 07: bits for each layer, and what a network of that size can still do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ipywidgets import IntProgress, Layout
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.arrays import quietly
from qlearn.style import BLACK, BLUE, DRAWING, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION
from qlearn.widgets.controls import Number, Slider, raised, rounded
from qlearn.widgets.engine import LateExplorer, with_torch
from qlearn.widgets.panels import decades, error_axis, moving, on_decades, ring, towards_100

if TYPE_CHECKING:
    from qlearn.widgets.mixed_precision_runs import BitTrials, Point

GIVEN_UP = 1.0  # points of accuracy that the smallest network may lose
PERCENTS = (10, 50, 80, 90, 95, 98, 99, 99.5, 99.9)  # ticks
ABOVE = 0.4  # room on the axis for networks that are better than the float one
BOTTOM = -2.13  # of the axis of accuracies: guessing is right in 10 % and lies at −1.95
stretched = partial(towards_100, best=99.95)
# Colour and marker of a layer's curve, in the network's order.
COLOURS, MARKERS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY), "os^DvPX*"


@quietly
def explore_mixed_precision(
    model: Any = None, *, network: str = "cnn", method: str = "min_max", pixel_ratio: float = 1, **bits: int
) -> MixedPrecisionExplorer:
    """Choose bits for each layer, and see accuracy and size; each setting that was tried stays on the picture.

    The accuracy is that of the integer network on the first 1,000 validation digits, its size that of all tensors in
    its file. Weights have one scale for each channel, activations 8 bits.

    Args:
        model: a trained network of your own that takes MNIST digits (N, 1, 28, 28), with at most eight layers to
            quantize; without it `network` says which of those that come with this package.
        network: "cnn", its batch norm folded, or "mlp".
        method: "min_max" or "mse", by which the ranges of weights are found.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.
        bits: where the sliders stand at first, 2 … 8 for each layer by its name: conv1=4. The others have 8.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: an unknown network, method or layer, bits outside 2 … 8, a model that does not take digits, or that
            has no layer to quantize, or too many.

    Cost: a second at first. The curves for comparison take two more, with a progress bar, when it is shown. A move runs
        the network from the first layer that changed.

    >>> explorer = explore_mixed_precision(network="mlp", linear1=3, linear2=4)
    >>> explorer.values, explorer.numbers["bytes"]
    ({'linear1': 3, 'linear2': 4, 'linear3': 8}, 37116)
    """
    return MixedPrecisionExplorer(model, network=network, method=method, start=bits, pixel_ratio=pixel_ratio)


class MixedPrecisionExplorer(LateExplorer):
    """Accuracy against size for what was tried, for the greedy choice and for the same bits everywhere; and
    beside it what each layer's bits cost alone."""

    title = "Bits for each layer"
    size = (800, 430)
    shown: ClassVar = {
        "accuracy": Number("accuracy", "%"),
        "float_accuracy": Number("float", "%"),
        "bytes": Number("size", "bytes"),
        "times_smaller": Number("compression", "×"),
        "bits_per_value": Number("bits per value"),
        "greedy_accuracy": Number("greedy", "%"),
        "best_bytes": Number("your best", "bytes"),
        "tried": Number("settings tried"),
    }

    def __init__(self, model: Any = None, *, network: str = "cnn", method: str = "min_max", **options: Any) -> None:
        torch_half = with_torch("explore_mixed_precision")
        if method not in ("min_max", "mse"):
            raise ValueError(f"method={method!r} must be 'min_max' or 'mse'.")
        self._trials: BitTrials = torch_half.BitTrials(model, network, method)
        self._stops = self._trials.greedy()
        self._loaded = False
        self.controls = {
            name: Slider(name, f"How many bits a weight of the layer {name} has.", 2, 8, 8)
            for name in self._trials.layers
        }
        super().__init__(**options)
        hidden = Layout(display="none")
        self._bar = IntProgress(description="curves", style={"description_width": "88px"}, layout=hidden)
        self._put_under_controls(self._bar)

    @quietly
    def load(self) -> None:
        """Measure the curves to compare with: the greedy choice at every size, and the same bits everywhere.

        Showing or saving the explorer does this. A progress bar says how far it is.
        """
        if self._loaded:
            return
        settings = list(dict.fromkeys([*self._stops, *self._trials.uniform()]))
        self._bar.max, self._bar.layout.display = len(settings), ""
        try:
            for done, setting in enumerate(settings, start=1):
                with DRAWING:  # a control may move meanwhile, on another thread
                    self._trials.point(setting)
                self._bar.value = done
            self._loaded = True
            self.refresh()
        finally:
            self._bar.layout.display = "none"

    @property
    def _greedy(self) -> list[Point]:
        return [self._trials.point(setting) for setting in self._stops]

    @property
    def _uniform(self) -> list[Point]:
        return [self._trials.point(setting) for setting in self._trials.uniform()]

    def compute(self, *_: Any, **bits: int) -> dict[str, Any]:
        """The numbers of this setting, which from now on counts as tried."""
        trials = self._trials
        now = trials.point(tuple(bits[name] for name in trials.layers))
        self._tried[now.setting] = now
        tried = list(self._tried.values())
        best = smallest_that_will_do(tried, trials.float_percent - GIVEN_UP - 1e-9)  # for the last bit of a float
        stop = next((setting for setting in self._stops if trials.bytes(setting) <= now.bytes), None)
        greedy = stop and trials.point(stop)
        return {
            "accuracy": now.percent,
            "float_accuracy": trials.float_percent,
            "bytes": now.bytes,
            "times_smaller": trials.float_bytes / now.bytes,
            "bits_per_value": 8 * now.bytes / trials.parameters,
            "greedy_accuracy": greedy and greedy.percent,
            "best_bytes": best and best.bytes,
            "tried": len(tried),
            "now": now,
            "points": tried,
            "front": front(tried),
            "best": best,
            "greedy": greedy,
            "bits": bits,
            "layer_bytes": {name: trials.sizes[name][b] for name, b in bits.items()},
            "sensitivity": {name: trials.sensitivity[name][b] for name, b in bits.items()},
        }

    def setup(self, figure: Figure) -> list[Artist]:
        left, right = map(figure.add_axes, ((0.075, 0.12, 0.535, 0.81), (0.705, 0.51, 0.28, 0.42)))
        artists = [*self._setup_sizes(left), *self._setup_layers(right)]
        # Learners' points go everywhere on the left, so its legend stands beside it.
        lines, _ = left.get_legend_handles_labels()
        figure.legend(handles=lines, loc="lower right", bbox_to_anchor=(0.97, 0.02), markerscale=0.8, labelspacing=0.7)
        return artists

    def scene(self, result: dict[str, Any]) -> bool:
        return self._loaded

    def arrange(self, result: dict[str, Any]) -> None:
        """The curves, once they are measured."""
        if not self._loaded:
            return
        self._by_greed.set_data(*_places(self._greedy))
        self._same_bits.set_data(*_places(self._uniform))
        under: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top", "color": INK}
        for point in self._uniform:  # 8 points lower, where the ring around the setting of now ends
            self._axes.annotate(str(point.setting[0]), (point.bytes / 1000, stretched(point.percent)), (0, -8), **under)

    def update(self, result: dict[str, Any]) -> None:
        best, greedy = result["best"], result["greedy"]
        points = {"tried": result["points"], "front": result["front"], "now": [result["now"]]}
        points |= {"greedy": [greedy] if greedy else [], "best": [best] if best else []}
        for name, shown in points.items():
            self._marks[name].set_data(*_places(shown))
        at = list(result["bits"].values())
        self._cost.set_data(at, on_decades(list(result["sensitivity"].values()), self._low))

    def explain(self, result: dict[str, Any]) -> list[str]:
        parts = [f"{name} {size:,}" for name, size in result["layer_bytes"].items()]
        if self._trials.other_bytes:
            parts.append(f"layers in float {self._trials.other_bytes:,}")
        steps = [f"{' + '.join(parts)} = {result['bytes']:,} bytes"]
        if (stop := result["greedy"]) is None:
            return [*steps, "greedy finds nothing as small"]
        bits = ", ".join(f"{name} {b}" for name, b in zip(self._trials.layers, stop.setting, strict=True))
        return [*steps, f"greedy: {bits} bits take {stop.bytes:,} bytes and get {rounded(stop.percent)} % right"]

    # The panels

    def _setup_sizes(self, axes: Axes) -> list[Artist]:
        self._axes = axes
        axes.set(title="Accuracy against size: up and to the left is better", xlabel="size of the file's tensors, kB")
        axes.set_ylabel("accuracy on 1,000 digits (%), stretched towards 100")
        smallest, largest = (self._trials.bytes((bits,) * len(self._trials.layers)) / 1000 for bits in (2, 8))
        pad = 0.06 * (largest - smallest)
        axes.set_xlim(smallest - pad, largest + pad)
        top = stretched(self._trials.float_percent) + ABOVE
        axes.set_ylim(BOTTOM, top)
        shown = [percent for percent in PERCENTS if stretched(percent) < top]
        axes.set_yticks([stretched(percent) for percent in shown], [f"{percent:g}" for percent in shown])
        axes.grid()
        self._levels(axes)
        self._same_bits = moving(axes, "^", color=ORANGE, markersize=7, label="same bits everywhere")
        self._by_greed = moving(axes, ".-", color=BLUE, markersize=5, linewidth=1.2, label="greedy by sensitivity")
        self._marks = {
            "tried": moving(axes, "o", color=GREY, markersize=5, label="tried"),
            "front": moving(axes, color=BLACK, linewidth=1.2, drawstyle="steps-post", label="the best of them"),
            "greedy": ring(axes, 12, "o", markeredgecolor=BLUE, label="greedy, no larger than now"),
            "best": moving(axes, "*", color=GREEN, markersize=13, label="your best"),
            "now": ring(axes, 12, label="now"),
        }
        return list(self._marks.values())

    def _levels(self, axes: Axes) -> None:
        """The float network's accuracy, and the one that is still good enough."""
        right = axes.get_xlim()[1]
        for percent, text, style, side, up in (
            (self._trials.float_percent, "float", ":", "bottom", 1),
            (self._trials.float_percent - GIVEN_UP, f"{GIVEN_UP:g} point less", "--", "top", -3),
        ):
            y = stretched(percent)
            axes.axhline(y, color=GREY, linewidth=1, linestyle=style)
            axes.annotate(text, (right, y), (0, up), textcoords="offset points", ha="right", va=side, color=GREY)

    def _setup_layers(self, axes: Axes) -> list[Artist]:
        table = self._trials.sensitivity
        bits = list(next(iter(table.values())))
        axes.set(title="Sensitivity of each layer alone", xlabel="bits", ylabel="divergence, nats")
        axes.set(xlim=(bits[0] - 0.4, bits[-1] + 0.4), xticks=bits)
        values = np.array([list(errors.values()) for errors in table.values()])
        self._low, high = decades(np.where(values > 0, values, np.nan)) if (values > 0).any() else (-6, 0)
        error_axis(axes, self._low, high, ticks=5, label=lambda power: f"10{raised(power)}")
        axes.grid()
        for (name, errors), colour, marker in zip(table.items(), COLOURS, MARKERS, strict=False):
            places = on_decades(list(errors.values()), self._low)
            axes.plot(bits, places, marker=marker, color=colour, markersize=5, linewidth=1.2, label=name)
        self._cost = ring(axes, 11, label="now")
        axes.legend(loc="upper right", markerscale=0.8, ncols=1 + len(table) // 4, borderaxespad=0)
        return [self._cost]


def front(points: Sequence[Point]) -> list[Point]:
    """The points to which no other is preferable, from small to large: nothing as small is as good."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, -p.percent)):
        if not best or point.percent > best[-1].percent:
            best.append(point)
    return best


def smallest_that_will_do(points: Sequence[Point], percent: float) -> Point | None:
    """The smallest of the points with at least this accuracy; of several, the most accurate; None if there is none."""
    good = [point for point in points if point.percent >= percent]
    return min(good, key=lambda p: (p.bytes, -p.percent), default=None)


def _places(points: Sequence[Point]) -> tuple[list[float], Any]:
    """Where points lie on the picture."""
    return [point.bytes / 1000 for point in points], stretched([point.percent for point in points])
