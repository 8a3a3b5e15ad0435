"""A quantized network whose layers take other bits at any time: the half of `explore_mixed_precision` that needs torch.

What was found once is kept: a layer at so many bits, what a part of the network gives for the digits, the accuracy
of a setting.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qlearn import nn
from qlearn.affine import dequantize, quantize
from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis
from qlearn.nn.integer_layers import StaticLayer, quantized
from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.mixed_precision import divergence
from qlearn.nn.network import replace as exchange
from qlearn.nn.prepared import ObservedLayer, prepared_layers
from qlearn.nn.threads import one_thread
from qlearn.widgets.digit_networks import answers, at_once, calibration, mnist, quick

BITS = range(2, 9)
DIGITS = 1000  # of the validation images, on which settings are judged
SENSED = 500  # of the calibration images, on which sensitivities are measured
MOST_LAYERS = 8  # that have a slider
MOST_BYTES = 128 << 20  # of what is kept between the parts of the network

Setting = tuple[int, ...]  # the bits of each layer, in the network's order


@dataclass(frozen=True)
class Point:
    """What a setting is worth."""

    setting: Setting
    bytes: int
    percent: float


class BitTrials:
    """One network, calibrated once, its weights at any bits, judged on the same digits every time.

    The accuracy of a setting is that of `prepare` (with these bits as overrides) → `calibrate` → `convert`: ranges of
    activations are found in the float network, and so do not depend on the bits of weights. Layers are judged in
    order, and what goes into the first one that changed is still there.

    Args:
        model: a float network for MNIST digits; None for the one of that name.
        network: "cnn", whose batch norm is folded, or "mlp".
        method: how the ranges of weights are found.

    Attributes:
        layers: the names of the layers that have bits.
        sensitivity, sizes: {layer: {bits: number}}, as `nn.sensitivity` and `nn.layer_bytes` give them.
        float_percent, float_bytes: the network before quantization.
    """

    @one_thread()
    def __init__(self, model: Any, network: str, method: str) -> None:
        if model is None:
            model = nn.fold_batch_norm(nn.load_trained(network))
        self.model = copy.deepcopy(model).eval()
        self.weights = QuantConfig(symmetric=True, granularity=PerAxis(0), method=method)
        images, labels = mnist().validation
        self._images, self._labels = nn.to_inputs(images[:DIGITS]), torch.from_numpy(labels[:DIGITS])
        self._at_once = at_once(self.model)

        float_network = quick(self.model)
        prepared = nn.prepare(float_network, self.weights)
        self._prepared = {layer.name: layer for layer in prepared_layers(prepared)}
        self.layers = tuple(self._prepared)
        if len(self.layers) > MOST_LAYERS:
            raise ValueError(
                f"the network has {len(self.layers)} layers to quantize: at most {MOST_LAYERS} can have a slider each."
            )
        nn.calibrate(prepared, calibration(), progress=False)
        self._network = nn.convert(prepared)
        self._parts = _parts(self._network, self.layers)
        self._now: dict[str, QuantizedLayer] = {name: self._network.get_submodule(name) for name in self.layers}
        self._layer = lru_cache(maxsize=None)(self._make_layer)
        self._kept: OrderedDict[tuple[int, Setting], Tensor] = OrderedDict()
        self._points: dict[Setting, Point] = {}

        self.sensitivity = self._find_sensitivity(float_network, calibration()[:SENSED])
        self.sizes = nn.layer_bytes(self.model, bits=BITS, weights=self.weights)
        summary = nn.summary(self._network)
        self.parameters = summary.parameters
        self.other_bytes = summary.bytes - sum(self.sizes[name][self.weights.bits] for name in self.layers)
        self.float_bytes = nn.summary(self.model).bytes
        self.float_percent = self._percent(answers(float_network, self._images, self._at_once))

    def point(self, setting: Setting) -> Point:
        """The size of a setting, and the share of digits that it gets right."""
        if setting not in self._points:
            self._points[setting] = Point(setting, self.bytes(setting), self._percent(self._logits(setting)))
        return self._points[setting]

    def bytes(self, setting: Setting) -> int:
        """All tensors in the file of this setting."""
        return self.other_bytes + sum(self.sizes[name][b] for name, b in zip(self.layers, setting, strict=True))

    def greedy(self) -> list[Setting]:
        """All stops of `nn.descent`, from many bits to few."""
        return [tuple(stop.values()) for stop in nn.descent(self.sensitivity, self.sizes)]

    def uniform(self) -> list[Setting]:
        """The same bits in every layer, from few to many."""
        return [(b,) * len(self.layers) for b in BITS]

    def _percent(self, logits: Tensor) -> float:
        return 100 * int((logits.argmax(1) == self._labels).sum()) / len(self._labels)

    def _find_sensitivity(self, model: Any, images: Tensor) -> dict[str, dict[int, float]]:
        """What `nn.sensitivity` finds, but that each layer's input is found once."""
        parts = _parts(model, self.layers)
        with torch.no_grad():
            inputs = [images]
            for steps, _ in parts:
                inputs.append(_through(model, steps, inputs[-1], self._at_once))
            target = inputs.pop().double().log_softmax(-1)
            table: dict[str, dict[int, float]] = {}
            for place, name in enumerate(self.layers):
                first = next(number for number, (_, depth) in enumerate(parts) if depth > place)
                others: dict[str, None] = {other: None for other in self.layers if other != name}
                table[name] = {}
                for b in BITS:
                    changed = nn.convert(nn.prepare(model, replace(self.weights, bits=b), None, overrides=others))
                    x = inputs[first]
                    for steps, _ in parts[first:]:
                        x = _through(changed, steps, x, self._at_once)
                    logs = x.double().log_softmax(-1)
                    table[name][b] = divergence(target, logs)
        return table

    def _make_layer(self, name: str, bits: int) -> QuantizedLayer:
        """Cached as `_layer`: the layer with its weights at so many bits."""
        layer: ObservedLayer = self._prepared[name]
        assert layer.observer is not None
        qparams = replace(self.weights, bits=bits).find_qparams(layer.layer.weight)
        return quantized(layer.layer, qparams, layer.observer.qparams(), name)

    @one_thread()
    def _logits(self, setting: Setting) -> Tensor:
        for name, bits in zip(self.layers, setting, strict=True):
            new = self._layer(name, bits)
            if new is not self._now[name]:
                self._network = exchange(self._network, {self._now[name]: new})
                self._now[name] = new
        keys = [(number, setting[:depth]) for number, (_, depth) in enumerate(self._parts)]
        done = -1
        for number, key in enumerate(keys):
            if key in self._kept:
                self._kept.move_to_end(key)
                done = number
        x = self._images if done < 0 else self._recall(done, self._kept[keys[done]])
        with torch.no_grad():
            for number in range(done + 1, len(self._parts)):
                x = _through(self._network, self._parts[number][0], x, self._at_once)
                self._keep(number, keys[number], x)
        return x

    def _keep(self, number: int, key: tuple[int, Setting], x: Tensor) -> None:
        """Remember what a part of the network gives; what was used longest ago is forgotten where room is short.

        An integer layer that comes next looks at nothing but codes: they will do, at a quarter of the room.
        """
        reader = self._reader(number)
        self._kept[key] = x if reader is None else quantize(x, reader.input_qparams)
        while sum(kept.nbytes for kept in self._kept.values()) > MOST_BYTES:
            self._kept.popitem(last=False)

    def _recall(self, number: int, kept: Tensor) -> Tensor:
        """What the next part gets: of codes, the numbers that they stand for, which get the same codes again."""
        reader = self._reader(number)
        return kept if reader is None else dequantize(kept, reader.input_qparams)

    def _reader(self, number: int) -> StaticLayer | None:
        """The integer layer that takes what part `number` gives, if that is what the next part begins with."""
        if number + 1 == len(self._parts):
            return None
        first = self._network.get_submodule(self._parts[number + 1][0][0])
        return first if isinstance(first, StaticLayer) else None


def _through(network: Any, steps: list[str], x: Tensor, many: int) -> Tensor:
    """What these steps of the network make of x, so many examples at once."""
    return answers(torch.nn.Sequential(*(network.get_submodule(name) for name in steps)), x, many)


def _parts(network: Any, layers: tuple[str, ...]) -> list[tuple[list[str], int]]:
    """The network's steps, in parts that begin with a layer: the names of the steps, and how many layers come so far.

    Only a plain Sequential shows its steps; everything else is one part.
    """
    if type(network) is not torch.nn.Sequential:
        return [([""], len(layers))]
    parts: list[tuple[list[str], int]] = []
    depth = 0
    steps = [path for path, _ in network.named_modules(remove_duplicate=False) if path and "." not in path]
    for name in steps:  # a module that stands at two places is two steps
        own = sum(layer == name or layer.startswith(f"{name}.") for layer in layers)
        depth += own
        if own or not parts:
            parts.append(([], depth))
        parts[-1][0].append(name)
    return parts
