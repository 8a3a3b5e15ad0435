"""Trainings that can be watched and stopped: what the explorer of lesson 06 does with PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from qlearn import nn
from qlearn.affine import QParams, quantize
from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis
from qlearn.nn.fake_quantize import FakeQuantize, LearnedFakeQuantize
from qlearn.nn.prepared import prepared_layers
from qlearn.nn.threads import one_thread
from qlearn.nn.training import training_steps
from qlearn.widgets.digit_networks import calibration, mnist
from qlearn.widgets.jobs import Job

BATCH_SIZE = 128
STEPS = 430  # every training image once
EVERY = 10  # steps between two looks at the accuracy
DIGITS = 1000  # validation digits it is measured on


class Setting(NamedTuple):
    """What a training depends on.

    `bits` are the weights', activations have 8; `rate` is the learning rate of the first step. Scales start from the
    range that `method` finds. They are `learned` from there, or found again as the weights move: by min-max in every
    step, by MSE, which has to search, at every look.
    """

    bits: int
    rate: float
    learned: bool
    method: str


class Point(NamedTuple):
    """How far a training has come: the loss is the mean of the steps since the last point."""

    step: int
    percent: float
    loss: float
    changed_percent: float


class Latent(NamedTuple):
    """Layer by layer: the float weights, a row for each output channel, and the scales, one for each row."""

    rows: list[np.ndarray]
    scales: list[np.ndarray]


class Network:
    """The float network, and what its trainings start from, each found once.

    Args:
        model: a network that takes MNIST digits; without it the MLP that comes with this package.

    Attributes:
        layers: the names of the layers that are quantized.
        percent: the accuracy before quantization.
    """

    @one_thread()  # the network is small: threads would mostly wait for each other
    def __init__(self, model: Any = None) -> None:
        self._float = nn.load_trained("mlp") if model is None else copy.deepcopy(model).eval()
        layers = prepared_layers(nn.prepare(self._float, weights(8, "min_max")))
        self.layers = [layer.name for layer in layers]
        self._rows = [layer.rows.detach() for layer in layers]
        self._arrays = [rows.numpy() for rows in self._rows]
        self._qparams = lru_cache(None)(self._find_qparams)
        self.ptq_percent = lru_cache(None)(self._find_ptq_percent)
        self.start = lru_cache(None)(self._find_start)
        self.percent = accuracy(self._float)

    @one_thread()
    def prepared(self, bits: int, learned: bool, method: str) -> Any:
        """The network that `nn.prepare_qat` and `nn.calibrate` make. A search is not made again for each of them."""
        model = nn.prepare_qat(self._float, weights(bits, "min_max"), QuantConfig(), learned_step_size=learned)
        config = weights(bits, method)
        for layer, found in zip(prepared_layers(model), self._qparams(bits, method), strict=True):
            layer.weights = config
            if learned:
                layer.weight_fake_quantize = LearnedFakeQuantize(config, found)
            elif method != "min_max":
                layer.weight_fake_quantize = FoundNowAndThen(config, found)
        nn.calibrate(model, calibration(), progress=False)
        with torch.no_grad():
            model(calibration()[:1])  # learned scales of inputs start at the first pass: from what was calibrated
        return model

    def _find_start(self, bits: int, learned: bool, method: str) -> tuple[Point, Latent]:
        """Cached as `start`: a training's first point, and its weights and scales then."""
        point = Point(0, accuracy(self.prepared(bits, learned, method)), float("nan"), 0.0)
        scales = [np.asarray(qparams.scale).reshape(-1) for qparams in self._qparams(bits, method)]
        return point, Latent(self._arrays, scales)

    @one_thread()
    def _find_ptq_percent(self, bits: int) -> float:
        """Cached as `ptq_percent`: what post-training quantization gives with the best range it has, by MSE."""
        prepared = nn.prepare(self._float, weights(bits, "min_max"))
        for layer, found in zip(prepared_layers(prepared), self._qparams(bits, "mse"), strict=True):
            layer.weight_qparams = found
        return accuracy(nn.convert(nn.calibrate(prepared, calibration(), progress=False)))

    def _find_qparams(self, bits: int, method: str) -> list[QParams]:
        return [weights(bits, method).find_qparams(rows) for rows in self._rows]


class FoundNowAndThen(FakeQuantize):
    """Fake quantization with the range of the weights as they were at the last `find`: each step would be too slow."""

    def __init__(self, config: QuantConfig, found: QParams) -> None:
        super().__init__(config)
        self._found = found

    def find(self, x: torch.Tensor) -> None:
        self._found = self.config.find_qparams(x)

    def qparams(self, x: torch.Tensor) -> QParams:
        return self._found


class Run(Job):
    """One quantization-aware training, from what post-training quantization gives, for one epoch.

    Args:
        network, setting: what is trained.
        after: is called whenever there is a new point, and at the end; from the background, if it is trained there.

    Attributes:
        model: the fake-quantized network as trained so far.
        points: what is known of it, one point every `EVERY` steps.
        latent: its weights and scales at the last of them.
        begun: whether it has been trained, or is being trained.
    """

    def __init__(self, network: Network, setting: Setting, after: Callable[[], None]) -> None:
        super().__init__(self._train, lambda _: after())
        self.rate = setting.rate
        start = setting.bits, setting.learned, setting.method
        self.model = network.prepared(*start)
        point, self.latent = network.start(*start)
        self.points = [point]
        self._before = self._codes()
        self.begun = False

    def start(self) -> None:
        """Train in the background."""
        self.begun = True
        super().start()

    def stop(self, *, wait: bool = False) -> None:
        """End it after the step in progress. Waiting must not be done with the drawing lock in hand."""
        if self.begun:  # one that has not begun may still be wanted
            super().stop()
        if wait:
            self.join()

    def train(self) -> None:
        """Train to the end, or until `stop`."""
        self.begun = True
        self._train(self)
        self._after(self)

    def _train(self, _: Job) -> None:
        images, labels = mnist().train
        options: dict[str, Any] = {"epochs": 1, "batch_size": BATCH_SIZE, "learning_rate": self.rate, "seed": 0}
        losses: list[float] = []
        number = 0
        with closing(training_steps(self.model, images, labels, **options)) as steps:
            for number, loss in enumerate(steps, start=1):
                losses.append(loss)
                if self.stopped:
                    break
                if number % EVERY == 0:
                    self._look(number, float(np.mean(losses)))
                    losses.clear()
                    self._after(self)
        if losses:  # stopped between two points
            self._look(number, float(np.mean(losses)))

    def _look(self, step: int, loss: float) -> None:
        layers = prepared_layers(self.model)
        for layer in layers:
            if isinstance(layer.weight_fake_quantize, FoundNowAndThen):
                layer.weight_fake_quantize.find(layer.rows.detach())
        changed = [codes != before for codes, before in zip(self._codes(), self._before, strict=True)]
        share = sum(int(layer.sum()) for layer in changed) / sum(layer.numel() for layer in changed)
        self.points.append(Point(step, accuracy(self.model), loss, 100 * share))
        self.latent = Latent(
            [layer.rows.detach().numpy().copy() for layer in layers],
            [np.asarray(layer.find_weight_qparams().scale).reshape(-1) for layer in layers],
        )

    def _codes(self) -> list[torch.Tensor]:
        """The weights' codes, layer by layer."""
        return [quantize(layer.rows, layer.find_weight_qparams()) for layer in prepared_layers(self.model)]


def weights(bits: int, method: str) -> QuantConfig:
    """How the weights are quantized here: symmetric, a scale for each channel."""
    return QuantConfig(bits=bits, symmetric=True, granularity=PerAxis(0), method=method)


@one_thread()
def accuracy(model: Any) -> float:
    """In percent, on the first thousand validation digits."""
    images, labels = mnist().validation
    return 100 * nn.accuracy(model, images[:DIGITS], labels[:DIGITS])


def staircase(x: Any, bits: int, learned: bool) -> tuple[Any, Any, Any]:
    """x̂ for values x in units of the last tick, and both surrogate gradients: of x, and of the scale / quant_max.

    Straight-through knows no gradient of the scale; it is NaN then.
    """
    quant_max = 2 ** (bits - 1) - 1
    values = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    scales = torch.full(values.shape, 1 / quant_max, dtype=torch.float64, requires_grad=True)
    if learned:  # a scale for each value, so that each has its own gradient
        x_hat = nn.learned_step(values, scales, 0, -quant_max, quant_max)
    else:
        x_hat = nn.straight_through(values, QParams(1 / quant_max, 0, -quant_max, quant_max))
    x_hat.sum().backward()
    of_scale = np.full(values.shape, np.nan) if scales.grad is None else scales.grad.numpy() / quant_max
    return x_hat.detach().numpy(), values.grad.numpy(), of_scale
