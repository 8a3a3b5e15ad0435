"""Trainings that can be watched and stopped: what the explorer of lesson 06 does with PyTorch."""

from __future__ import annotations

import atexit
import copy
import threading
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from qlearn import datasets, nn
from qlearn.affine import QParams, quantize
from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis
from qlearn.nn.prepared import prepared_layers
from qlearn.nn.threads import one_thread
from qlearn.nn.training import training_steps

BATCH_SIZE = 128
STEPS = 430  # every training image once
EVERY = 10  # steps between two looks at the accuracy
DIGITS = 1000  # validation digits it is measured on


class Point(NamedTuple):
    """How far a training has come: the loss is the mean of the steps since the last point."""

    step: int
    percent: float
    loss: float
    changed_percent: float


class Run:
    """One quantization-aware training, from what post-training quantization gives, for one epoch.

    Args:
        model: the float network.
        bits: of the weights; activations have 8.
        rate: the learning rate of the first step.
        learned: whether scales are learnt (from the MSE range on), or found by min-max in every step.

    Attributes:
        model: the fake-quantized network as trained so far.
        points: what is known of it, one point every `EVERY` steps.
        begun: whether it has been trained, or is being trained.
        error: what has ended the training, if it was an error.
    """

    @one_thread()  # the network is small: threads would mostly wait for each other
    def __init__(self, model: Any, bits: int, rate: float, learned: bool) -> None:
        self.rate = rate
        config = weights(bits, "mse" if learned else "min_max")
        self.model = nn.prepare_qat(model, config, QuantConfig(), learned_step_size=learned)
        nn.calibrate(self.model, _calibration(), progress=False)
        self._before = self._codes()
        self.points: list[Point] = []
        self.error: Exception | None = None
        self.begun = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._look(0, float("nan"))

    @property
    def running(self) -> bool:
        """Whether it is being trained in the background."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping.is_set()

    def start(self, after: Callable[[], None]) -> None:
        """Train in the background and call `after` from there, whenever there is a new point and at the end."""
        # A daemon, so that leaving Python does not wait for it; `_stop_all` ends it in good order before.
        self._thread = threading.Thread(target=self._in_background, args=(after,), daemon=True, name="qlearn training")
        self.begun = True
        _running.add(self)
        self._thread.start()

    def stop(self, *, wait: bool) -> None:
        """End it after the step in progress. Waiting must not be done with the drawing lock in hand."""
        if self.begun:  # one that has not begun may still be wanted
            self._stopping.set()
        if wait and self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def train(self, after: Callable[[], None]) -> None:
        """Train to the end, or until `stop`; `after` is called whenever there is a new point."""
        self.begun = True
        images, labels = _mnist().train
        options: dict[str, Any] = {"epochs": 1, "batch_size": BATCH_SIZE, "learning_rate": self.rate, "seed": 0}
        losses: list[float] = []
        number = 0
        with closing(training_steps(self.model, images, labels, **options)) as steps:
            for number, loss in enumerate(steps, start=1):
                losses.append(loss)
                if self._stopping.is_set():
                    break
                if number % EVERY == 0:
                    self._look(number, float(np.mean(losses)))
                    losses.clear()
                    after()
        if losses:  # stopped between two points
            self._look(number, float(np.mean(losses)))

    def _in_background(self, after: Callable[[], None]) -> None:
        try:
            self.train(after)
        except Exception as error:  # shown by whoever watches; a thread's traceback would go nowhere
            self.error = error
        finally:
            self._stopping.set()
            try:
                after()
            finally:
                _running.discard(self)  # last: who leaves Python waits for the last picture too

    def _look(self, step: int, loss: float) -> None:
        images, labels = _mnist().validation
        percent = 100 * nn.accuracy(self.model, images[:DIGITS], labels[:DIGITS])
        changed = [codes != before for codes, before in zip(self._codes(), self._before, strict=True)]
        share = sum(int(layer.sum()) for layer in changed) / sum(layer.numel() for layer in changed)
        self.points.append(Point(step, percent, loss, 100 * share))

    def _codes(self) -> list[torch.Tensor]:
        """The weights' codes, layer by layer."""
        return [quantize(layer.rows, layer.find_weight_qparams()) for layer in prepared_layers(self.model)]


def weights(bits: int, method: str) -> QuantConfig:
    """How the weights are quantized here: symmetric, a scale for each channel."""
    return QuantConfig(bits=bits, symmetric=True, granularity=PerAxis(0), method=method)


@one_thread()
def post_training_percent(model: Any, bits: int) -> float:
    """The accuracy of post-training quantization with the best range it has, by MSE."""
    prepared = nn.calibrate(nn.prepare(model, weights(bits, "mse")), _calibration(), progress=False)
    return float_percent(nn.convert(prepared))


@one_thread()
def float_percent(model: Any) -> float:
    """The accuracy of a network on the same digits."""
    images, labels = _mnist().validation
    return 100 * nn.accuracy(model, images[:DIGITS], labels[:DIGITS])


def own_copy(model: Any = None) -> Any:
    """The network to start from: the shipped one, or a copy of the learner's."""
    return nn.load_trained("mlp") if model is None else copy.deepcopy(model).eval()


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


_running: set[Run] = set()


@atexit.register
def _stop_all() -> None:
    for run in list(_running):
        run.stop(wait=True)


@lru_cache(maxsize=1)
def _mnist() -> Any:
    return datasets.mnist_arrays()


@lru_cache(maxsize=1)
def _calibration() -> torch.Tensor:
    return nn.to_inputs(_mnist().calibration.images)
