"""A network quantized in every way that the explorer of lesson 05 offers: what that explorer does with PyTorch.

Whatever can be used again is found once: what the observers have seen, the scales of each layer, the layers
themselves, and the answers of each setting.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qlearn import nn
from qlearn.affine import QParams, fake_quantize
from qlearn.config import QuantConfig
from qlearn.granularity import Granularity, PerAxis, PerTensor
from qlearn.nn.integer_layers import quantized
from qlearn.nn.linear_maps import as_blocks
from qlearn.nn.prepared import prepared_layers
from qlearn.nn.threads import one_thread
from qlearn.widgets.digit_networks import answers, at_once, calibration, mnist, quick

DIGITS = 1000  # test digits that are shown to the networks
FLOAT = "float"
GRANULARITIES: dict[str, Granularity] = {"channel": PerAxis(0), "tensor": PerTensor()}


class Setting(NamedTuple):
    """How a network is quantized: `weight_bits` and `activation_bits` are 2 … 8 or "float"."""

    weight_bits: int | str
    activation_bits: int | str
    granularity: str
    method: str


class Outcome(NamedTuple):
    """What comes of it: the answer to each digit, and the size in bytes."""

    says: np.ndarray
    bytes: int


class Network:
    """A trained network, and what becomes of it when it is quantized after training.

    Args:
        model: "mlp" or "cnn", the networks that come with this package; or one of the learner's own.

    Attributes:
        layers: the names of the layers that are quantized.
        floats: what the float network answers, and its size.
        seconds: how long it took for that.

    Raises:
        ValueError: a model that has no layer to quantize, or does not take MNIST digits.
    """

    def __init__(self, model: Any) -> None:
        self._float = nn.load_trained(model) if isinstance(model, str) else copy.deepcopy(model).eval()
        self._at_once = at_once(self._float)
        self._calibrated = lru_cache(None)(self._calibrate)
        self._input_qparams = lru_cache(256)(self._find_input_qparams)
        self._weight_qparams = lru_cache(256)(self._find_weight_qparams)
        self._layer = lru_cache(32)(self._make_layer)
        self.outcome = lru_cache(1024)(self._find_outcome)
        self.layers = [layer.name for layer in self._prepared("min_max").values()]
        begin = time.perf_counter()
        self.floats = self.outcome(Setting(FLOAT, FLOAT, "channel", "min_max"))
        self.seconds = time.perf_counter() - begin

    at_work = staticmethod(one_thread)  # on pieces as small as these, threads wait for each other longer than they work

    def weight(self, layer: str) -> Tensor:
        """The trained weights of a layer."""
        return self._prepared("min_max")[layer].layer.weight.detach()

    def quantized_weight(self, layer: str, setting: Setting) -> Tensor:
        """The weights that it has in this setting, as numbers."""
        qparams = self.weight_qparams(layer, setting)
        return self.weight(layer) if qparams is None else fake_quantize(self.weight(layer), qparams)

    def weight_qparams(self, layer: str, setting: Setting) -> QParams | None:
        """The quantizer of a layer's weights; None for float."""
        if setting.weight_bits == FLOAT:
            return None
        return self._weight_qparams(layer, setting.weight_bits, setting.granularity, setting.method)

    def input_qparams(self, layer: str, setting: Setting) -> QParams | None:
        """The quantizer of a layer's input; None for float."""
        if setting.activation_bits == FLOAT:
            return None
        return self._input_qparams(layer, setting.activation_bits, setting.method)

    def quantized(self, setting: Setting) -> Any:
        """The network of this setting: the same that `prepare`, `calibrate` and `convert` make."""
        if setting.weight_bits == setting.activation_bits == FLOAT:
            return self._float
        prepared = self._calibrated(setting.method)
        made = {id(layer): self._layer(layer.name, setting) for layer in prepared_layers(prepared)}
        return copy.deepcopy(prepared, made)  # which takes what is made already instead of copying it

    def _find_outcome(self, setting: Setting) -> Outcome:
        model = self.quantized(setting)
        says = answers(quick(model), _inputs(), self._at_once).argmax(1)
        return Outcome(says.numpy().astype(np.int16), nn.summary(model).bytes)

    def _calibrate(self, method: str) -> Any:
        prepared = nn.prepare(self._float, _weights(8, "channel", "min_max"), QuantConfig(method=method))
        return nn.calibrate(prepared, calibration(), progress=False)

    def _prepared(self, method: str) -> dict[str, Any]:
        return {layer.name: layer for layer in prepared_layers(self._calibrated(method))}

    def _find_input_qparams(self, layer: str, bits: int, method: str) -> QParams:
        """What the observer has seen does not depend on the bits; what it makes of it does."""
        observer = copy.copy(self._prepared(method)[layer].observer)
        observer.config = dataclasses.replace(observer.config, bits=bits)
        return observer.qparams()

    def _find_weight_qparams(self, layer: str, bits: int, granularity: str, method: str) -> QParams:
        config = _weights(bits, granularity, method)
        return config.find_qparams(as_blocks(self.weight(layer), config.granularity))

    def _make_layer(self, name: str, setting: Setting) -> Any:
        prepared = self._prepared(setting.method)[name]
        weights, inputs = self.weight_qparams(name, setting), self.input_qparams(name, setting)
        if weights is not None:
            return quantized(prepared.layer, weights, inputs, name)
        assert inputs is not None
        return RoundedInput(prepared.layer, inputs)


class RoundedInput(torch.nn.Module):
    """A float layer whose input is rounded: activations in few bits, weights in float."""

    def __init__(self, layer: Any, qparams: QParams) -> None:
        super().__init__()
        self.layer, self.qparams = layer, qparams

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(fake_quantize(x, self.qparams))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The images and labels that are shown."""
    images, labels = mnist().test
    return images[:DIGITS], labels[:DIGITS]


def _weights(bits: int, granularity: str, method: str) -> QuantConfig:
    return QuantConfig(bits, symmetric=True, granularity=GRANULARITIES[granularity], method=method)


@lru_cache(maxsize=1)
def _inputs() -> Tensor:
    return nn.to_inputs(digits()[0])
