"""The explorer of lesson 06: the staircase, what training takes for its slope, and a training that can be watched.

While it trains, the accuracy grows, the float weights of a channel move, and the ticks of its scale with them.
"""

from __future__ import annotations

import math
import weakref
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.arrays import quietly
from qlearn.style import BLACK, BLUE, DRAWING, GREEN, GREY, MUTED, ORANGE, VERMILLION
from qlearn.widgets.controls import RANGES, Button, Choice, Number, Slider, rounded
from qlearn.widgets.engine import Explorer, with_torch
from qlearn.widgets.panels import BEFORE, OUTLINE, count, counted, diamond, heading, height, moving, towards_100

RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
REACH = 2.0  # of the axis of x, in units of the last tick
PLACES = np.linspace(-REACH, REACH, 2001)
EARLIER = 6  # so many other trainings are shown beside
STEPS = 430  # of a training; `qat_runs` has the same number
BEST_PERCENT = 99.7  # the upper end of the axis of accuracies
_stretched = partial(towards_100, best=BEST_PERCENT)
FARTHEST = 1.6  # end of the axis of weights, in units of the largest that the channel had before training
BINS = np.linspace(-FARTHEST, FARTHEST, 97)
ROW_NOW, ROW_START = height(0) - 0.42, height(0) - 0.95  # of ticks, under the histogram


@quietly
def explore_qat(
    model: Any = None,
    *,
    bits: int = 2,
    rate: float = 0.004,
    learned: bool = True,
    method: str = "mse",
    x: float = 0.6,
    layer: int = 1,
    channel: int = 1,
    pixel_ratio: float = 1,
) -> QATExplorer:
    """Train a network with fake quantization, and watch: the surrogate gradient, the accuracy, weights and ticks.

    The button Train (or `start()`) trains in the background for one epoch of MNIST, Stop (or `stop()`) ends it early;
    cells can be run meanwhile. `train()` does the same and returns when it is done. Each setting keeps its curve.

    Args:
        model: a trained network of your own that takes MNIST digits; without it the MLP that comes with this package.
        bits: of the weights, 2 … 8; one scale for each channel. Activations have 8.
        rate: the learning rate of the first step: 0.0005, 0.001, … 0.032.
        learned: the scales are learnt (LSQ). Else the gradient goes straight through, and the scales are found again
            as the weights move: by min-max in every step, by MSE, which has to search, in every tenth.
        method: the range that the scales start from, "min_max" or "mse".
        x: the value whose arithmetic is shown, in units of the last tick.
        layer, channel: whose weights are shown, from 1 on.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ImportError: PyTorch is not installed.  ValueError: a control that cannot take its value.

    Cost: a training takes a few seconds on one core.

    >>> explorer = explore_qat(bits=2, method="min_max")
    >>> explorer.numbers["step"], explorer.numbers["float_percent"] > 97, explorer.numbers["qat_percent"] < 60
    (0, True, True)
    """
    start = {"bits": bits, "rate": rate, "learned": learned, "method": method, "x": x, "layer": layer}
    return QATExplorer(model, start={**start, "channel": channel}, pixel_ratio=pixel_ratio)


class QATExplorer(Explorer):
    """The staircase with what training takes for its slope; accuracy, weights and ticks while a network is trained.

    A training belongs to its settings: bits, learning rate, gradient and range. Another setting ends it and shows its
    own.
    """

    title = "Quantization-aware training"
    size = (800, 450)
    shown: ClassVar = {
        "float_percent": Number("float", "%"),
        "ptq_percent": Number("PTQ", "%"),
        "qat_percent": Number("QAT", "%"),
        "step": Number("step", f"of {STEPS}"),
        "loss": Number("loss"),
        "changed_percent": Number("codes changed", "%"),
        "scale": Number("its scale"),
        "start_scale": Number("at first"),
    }
    buttons: ClassVar = {
        "start": Button("Train", "Train for one epoch with these settings. The curves grow meanwhile."),
        "stop": Button("Stop", "End the training. What the network has learnt so far stays."),
    }

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._torch = with_torch("explore_qat")
        self._network = self._torch.Network(model)
        self._staircase = lru_cache(lambda bits, learned: self._torch.staircase(PLACES, bits, learned))
        self._runs: dict[Any, Any] = {}  # setting → training: those that have begun, and those whose model was wanted
        layers = self._network.layers
        self.controls = {
            "bits": Slider("weight bits", "How many bits a weight has. Activations have 8.", 2, 8, 2, on_release=True),
            "rate": Choice(
                "learning rate", "Of the first step; it falls to 0.", {f"{r:g}": r for r in RATES}, 0.004, slide=True
            ),
            "learned": Choice(
                "gradient",
                "Straight through: scales are found again as the weights move. LSQ: scales are learnt.",
                {"straight through": False, "learned scale (LSQ)": True},
                True,
            ),
            "method": Choice("start range", "The range that the scales start from.", RANGES, "mse"),
            "x": Slider("one value", "A value to follow, in units of the last tick.", -REACH, REACH, 0.6, 0.01),
            "layer": Slider("layer", "Whose weights are shown: 1 is the first layer.", 1, len(layers), 1),
            "channel": Slider("channel", "Which of the layer's rows: each has a scale.", 1, self._channels(1), 1),
        }
        super().__init__(**options)
        self._button.description = "Reset settings"
        self._button.layout.width = "178px"  # as wide as the two above it
        self._mark_buttons()
        _replaces(self)

    # What a learner calls

    def train(self) -> None:
        """Train with these settings and return when it is done."""
        with DRAWING:
            run = self._new_run(self._key)
        run.train()

    def start(self) -> None:
        """Train with these settings in the background. Nothing happens if that is being done already."""
        with DRAWING:
            key = self._key
            if (run := self._runs.get(key)) is not None and run.running:
                return
            self._new_run(key).start()
            self._mark_buttons()

    def stop(self) -> None:
        """End the training in the background and wait for its last step."""
        with DRAWING:  # so that none is half begun
            runs = list(self._runs.values())
        for run in runs:
            run.stop(wait=True)
        self.refresh()

    @property
    def running(self) -> bool:
        """Whether a training is under way in the background."""
        return any(run.running for run in list(self._runs.values()))

    @property
    def model(self) -> Any:
        """The fake-quantized network of these settings as trained so far; `nn.convert` makes an integer one of it."""
        return self._run_of(self._key).model

    def close(self) -> None:
        """End the training and take the controls off the page."""
        self.stop()
        self._page.close()

    # What the engine asks for

    def limits(self, **values: Any) -> dict[str, tuple[float, float]]:
        return {"channel": (1, self._channels(values["layer"]))}

    def compute(
        self, bits: int, rate: float, learned: bool, method: str, x: float, layer: int, channel: int
    ) -> dict[str, Any]:
        """All numbers and arrays of the picture, with the training of these settings as far as it has come."""
        start, latent_start = self._network.start(bits, learned, method)
        run = self._runs.get(self._torch.Setting(bits, rate, learned, method))
        # The training may add another point meanwhile.
        points, latent = ([start], latent_start) if run is None else (list(run.points), run.latent)
        x_hat, of_x, of_scale = self._staircase(bits, learned)
        one = [float(values[0]) for values in self._torch.staircase([x], bits, learned)]
        others = [list(other.points) for key, other in self._runs.items() if key.bits == bits and other is not run]
        before, scale = (float(of.scales[layer - 1][channel - 1]) for of in (latent_start, latent))
        unit = float(np.abs(latent_start.rows[layer - 1][channel - 1]).max()) or 1.0
        codes = np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))
        return {
            "bits": bits,
            "learned": learned,
            "float_percent": self._network.percent,
            "ptq_percent": self._network.ptq_percent(bits),
            "qat_percent": points[-1].percent,
            "step": points[-1].step,
            "loss": None if math.isnan(points[-1].loss) else points[-1].loss,
            "changed_percent": points[-1].changed_percent,
            "points": np.array(points),
            "others": [np.array(other) for other in others if len(other) > 1][-EARLIER:],
            "x_hat": x_hat,
            "of_x": of_x,
            "of_scale": of_scale,
            "one": (x, *one),
            "scale": scale,
            "start_scale": before,
            "ticks": codes * scale / unit,
            "start_ticks": codes * before / unit,
            "histogram": np.histogram(latent.rows[layer - 1][channel - 1] / unit, BINS)[0],
            "shown": f"How many latent weights: {self._network.layers[layer - 1]}, channel {channel}",
        }

    def setup(self, figure: Figure) -> list[Artist]:
        above, below = map(figure.add_axes, ((0.045, 0.46, 0.4, 0.47), (0.045, 0.11, 0.4, 0.24)))
        right, lower = map(figure.add_axes, ((0.585, 0.605, 0.405, 0.325), (0.585, 0.11, 0.405, 0.34)))
        return [*self._setup_staircase(above, below), *self._setup_curve(right), *self._setup_weights(lower)]

    def update(self, result: dict[str, Any]) -> None:
        self._stairs.set_data(PLACES, result["x_hat"])
        self._of_x.set_data(PLACES, result["of_x"])
        self._of_scale.set_data(PLACES, result["of_scale"])
        x, x_hat, of_x, _ = result["one"]
        for line in self._at:
            line.set_xdata([x, x])
        self._one.set_data([x], [x_hat])
        self._one_slope.set_data([x], [of_x])
        steps, percents, _, _ = result["points"].T
        self._accuracy.set_data(steps, _stretched(percents))
        self._now.set_data(steps[-1:], _stretched(percents[-1:]))
        for line, percent in ((self._ptq, "ptq_percent"), (self._reference, "float_percent")):
            line.set_ydata([_stretched(result[percent])] * 2)
        for i, line in enumerate(self._others):
            points = result["others"][i].T if i < len(result["others"]) else np.full((4, 1), np.nan)
            line.set_data(points[0], _stretched(points[1]))
        self._shown.set_text(result["shown"])
        for stairs in (self._weights, self._outline):
            stairs.set_data(height(result["histogram"]), BINS)
        for rug, ticks, row in ((self._ticks, "ticks", ROW_NOW), (self._start_ticks, "start_ticks", ROW_START)):
            rug.set_data(result[ticks], np.full(len(result[ticks]), row))

    def explain(self, result: dict[str, Any]) -> list[str]:
        x, x_hat, of_x, of_scale = result["one"]
        quant_max = 2 ** (result["bits"] - 1) - 1
        steps = [
            f"x = {rounded(x)}, scale = 1/{quant_max}",
            f"x / scale = {rounded(x * quant_max)}",
            f"code {rounded(round(x_hat * quant_max))}",
            f"x̂ = {rounded(x_hat)}",
            f"slope of the staircase: 0; training takes ∂x̂/∂x = {rounded(of_x)}",
        ]
        if result["learned"]:
            steps.append(f"∂x̂/∂scale = {rounded(of_scale * quant_max)}")
        return steps

    # Trainings

    @property
    def _key(self) -> Any:
        values = self.values
        return self._torch.Setting(*(values[name] for name in self._torch.Setting._fields))

    @property
    def _run(self) -> Any:
        """The training of these settings; None if there is none so far."""
        return self._runs.get(self._key)

    def _run_of(self, key: Any) -> Any:
        with DRAWING:  # a cell and a control may ask for it at once, and a picture goes through all of them
            if key not in self._runs:
                self._runs[key] = self._torch.Run(self._network, key, self.refresh)
            return self._runs[key]

    def _new_run(self, key: Any) -> Any:
        """A training from the start, in the place of the one that these settings have had before.

        The settings are handed over, because a control may move in the middle of this, on another thread.
        """
        if (run := self._run_of(key)).begun:
            run.stop(wait=False)
            self._runs.pop(key)
        return self._run_of(key)

    def _channels(self, layer: int) -> int:
        """How many rows the weights of a layer have."""
        return len(self._network.start(2, True, "min_max")[1].scales[layer - 1])

    def _follow(self) -> None:
        for key, run in list(self._runs.items()):
            if key != self._key:
                run.stop(wait=False)  # it may be waiting for the lock that we hold
        super()._follow()
        self._mark_buttons()
        if (run := self._run) is not None and run.error is not None:
            self._complain(run.error)

    def _mark_buttons(self) -> None:
        run = self._run
        running = run is not None and run.running
        self._buttons["start"].disabled = running
        self._buttons["stop"].disabled = not running

    # The panels

    def _setup_staircase(self, above: Axes, below: Axes) -> list[Artist]:
        ends = [-REACH, REACH]
        above.set(title="The staircase $\\hat{x}(x)$, ticks from −1 to 1", ylim=(-1.45, 1.45))
        above.tick_params(labelbottom=False)
        below.set(title="What training takes for its slope", xlabel="x, in units of the last tick", ylim=(-2.1, 1.4))
        for axes in (above, below):
            axes.set_xlim(*ends)
            axes.set_yticks([-1, 0, 1], ["−1", "0", "1"])
            axes.grid()
        above.plot(ends, ends, color=GREY, linewidth=1.1, linestyle=(0, (4, 2)), label="$x$")
        self._stairs = moving(above, color=BLUE, linewidth=1.8, label="$\\hat{x}$")
        above.legend(loc="upper left")
        self._of_x = moving(below, color=VERMILLION, linewidth=1.8, label="$\\partial\\hat{x}/\\partial x$")
        of_scale = "$\\partial\\hat{x}/\\partial$scale / quant_max"
        self._of_scale = moving(below, color=ORANGE, linewidth=1.3, linestyle=(0, (3, 1)), label=of_scale)
        below.legend(loc="lower center", ncols=2, columnspacing=1.2, borderaxespad=0.1)
        look: dict[str, Any] = {"x": [0, 0], "y": [-1.4, 1.4], "color": BLACK, "linewidth": 0.9}
        self._at = [moving(axes, ":", **look) for axes in (above, below)]
        self._one, self._one_slope = diamond(above, GREEN), diamond(below, GREEN)
        return [self._stairs, self._of_x, self._of_scale, *self._at, self._one, self._one_slope]

    def _setup_curve(self, axes: Axes) -> list[Artist]:
        ends = [-6, STEPS + 6]
        axes.set(title="Accuracy (%), on an axis stretched towards 100", xlim=ends)
        axes.set_xlabel("step of training, 128 digits each", labelpad=1)
        ticks = [0, 50, 80, 90, 95, 98, 99]
        axes.set_yticks(_stretched(ticks), [str(tick) for tick in ticks])
        axes.set_ylim(_stretched(0) - 0.05, _stretched(BEST_PERCENT))
        axes.grid()
        level: dict[str, Any] = {"x": ends, "y": [0, 0]}
        self._reference = moving(axes, ":", **level, color=GREY, linewidth=1.1, label="float")
        self._ptq = moving(axes, **level, color=BLACK, linewidth=1.3, linestyle=(0, (5, 2)), label="PTQ, MSE range")
        self._others = [moving(axes, color=MUTED, linewidth=1.0) for _ in range(EARLIER)]
        self._others[0].set_label("QAT, other settings")
        self._accuracy = moving(axes, color=VERMILLION, linewidth=1.7, label="QAT")
        self._now = diamond(axes, VERMILLION, 6)
        axes.legend(loc="lower right", ncols=2, borderaxespad=0.1, columnspacing=1.2)
        return [*self._others, self._reference, self._ptq, self._accuracy, self._now]

    def _setup_weights(self, axes: Axes) -> list[Artist]:
        self._shown = heading(axes, 0.015)
        axes.set(xlabel="weight / the channel's largest before training", xlim=(-FARTHEST, FARTHEST))
        top = max(rows.shape[1] for rows in self._network.start(2, True, "min_max")[1].rows)
        powers = range(int(math.log10(top)) + 1)
        axes.set_ylim(ROW_START - 0.4, height(top) + 0.1)
        rows = {ROW_START: "ticks at first", ROW_NOW: "ticks now"}
        axes.set_yticks([*rows, *powers], [*rows.values(), *(count(10**power) for power in powers)])
        axes.axhline(height(0), color=GREY, linewidth=0.8)
        self._weights, self._outline = counted(axes, **BEFORE), counted(axes, **OUTLINE)
        self._ticks = moving(axes, "|", color=VERMILLION, markersize=12, markeredgewidth=1.6)
        self._start_ticks = moving(axes, "|", color=GREY, markersize=12, markeredgewidth=1.2)
        return [self._shown, self._weights, self._outline, self._ticks, self._start_ticks]


# --- a cell that is run again ----------------------------------------------------------------------------------------

_of_cell: dict[str, weakref.ref[QATExplorer]] = {}


def _replaces(explorer: QATExplorer) -> None:
    """An explorer that is made in a cell ends the training of the one that the same cell has made before."""
    cell = _this_cell()
    if cell is None:
        return
    before = _of_cell.get(cell, lambda: None)()
    _of_cell[cell] = weakref.ref(explorer)
    if before is not None and before.running:
        before.stop()


def _this_cell() -> str | None:
    """The id of the notebook cell that is being run, where a front end tells it."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    parent = getattr(get_ipython(), "parent_header", None) or {}
    return parent.get("metadata", {}).get("cellId")
