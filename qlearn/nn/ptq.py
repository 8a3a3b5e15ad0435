"""Post-training quantization: a trained network becomes an integer one, without training.

    prepare → calibrate → convert

`prepare` puts an observer in front of every layer it can quantize, `calibrate` shows them typical inputs,
`convert` replaces each observed layer by one that computes on integer codes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis, PerTensor
from qlearn.nn.layers import QuantizedLayer, quantized
from qlearn.observers import MinMaxObserver

BATCH_SIZE = 256  # into which `calibrate` cuts a tensor of examples

WEIGHTS = QuantConfig(symmetric=True, granularity=PerAxis(0))
ACTIVATIONS = QuantConfig()


class ObservedLayer(nn.Module):
    """A float layer, and an observer that remembers the range of its input. ReLU is done here if it is fused."""

    def __init__(self, name: str, layer: nn.Module, weights: QuantConfig, activations: QuantConfig) -> None:
        super().__init__()
        self.name = name
        self.layer = layer
        self.weights = weights
        self.observer = MinMaxObserver(activations)
        self.relu = False
        self.observing = False  # on only inside `calibrate`: an accuracy test must not teach the observers

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            try:
                self.observer.observe(x)
            except ValueError as error:
                raise ValueError(f"layer {self.name!r}: its input cannot be observed: {error}") from error
        y = self.layer(x)
        return y.relu() if self.relu else y

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"{self.observer}{', relu' if self.relu else ''}"


def prepare(
    model: nn.Module,
    weights: QuantConfig = WEIGHTS,
    activations: QuantConfig = ACTIVATIONS,
    overrides: Mapping[str, Mapping[str, QuantConfig] | None] | None = None,
) -> nn.Module:
    """Copy a trained network and put an observer in front of every `Linear` and `Conv2d`.

    A ReLU that directly follows such a layer inside an `nn.Sequential` is fused into it. Every other
    module is left as it is and stays in float; `summary` names those that have parameters.

    Args:
        model: a trained network. It is not changed.
        weights: for weights: 2 … 8 bits, per tensor or per output channel, `PerAxis(0)`.
        activations: for layer inputs: 2 … 8 bits, per tensor, range by min-max.
        overrides: layer name → {"weights": …, "activations": …} (either may be left out), or None for "leave in float".

    Returns:
        The observed copy, in evaluation mode.

    Raises:
        ValueError: bits or granularity that these layers cannot have, a name in `overrides` that is no
            such layer, or a model without any.

    >>> from torch import nn
    >>> prepare(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    Sequential(
      (0): ObservedLayer(
        MinMaxObserver(nothing seen yet), relu
        (layer): Linear(in_features=4, out_features=3, bias=True)
      )
      (1): Identity()
    )
    """
    if any(isinstance(module, ObservedLayer) for module in model.modules()):
        raise ValueError("this model has its observers already: call nn.prepare once, on the trained network.")
    prepared = copy.deepcopy(model).eval()
    names = [name for name, module in prepared.named_modules() if _can_quantize(module)]
    if not names:
        raise ValueError(f"{type(model).__name__} has no Linear or Conv2d layer that could be quantized.")
    for name in overrides or {}:
        if name not in names:
            raise ValueError(f"overrides names {name!r}, which is no layer to quantize; those are {', '.join(names)}.")

    observed: dict[nn.Module, nn.Module] = {}
    for name in names:
        override = (overrides or {}).get(name, {})
        if override is None:
            continue
        configs = {"weights": weights, "activations": activations, **override}
        _check_configs(name, **configs)
        layer = prepared.get_submodule(name)
        observed[layer] = ObservedLayer(name, layer, **configs)
    prepared = _replace(prepared, observed)
    _fuse_relu(prepared)
    return prepared


def calibrate(model: nn.Module, batches: Iterable[Any] | Tensor, *, progress: bool = True) -> nn.Module:
    """Run typical inputs through a prepared network, so that its observers see the ranges of all layer inputs.

    Use images that the network was not trained on and will not be tested on. A few hundred are enough.

    Args:
        model: from `prepare`. Its observers are changed, its weights are not.
        batches: inputs (N, …), or (inputs, labels) pairs, as a DataLoader yields them; or one tensor of examples.
        progress: show a bar.

    Returns:
        The model.

    Raises:
        ValueError: no batches, a model without observers, NaN or infinity in an activation (names the layer).

    >>> import torch
    >>> batches = [torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0, 1.0]])]
    >>> calibrate(prepare(nn.Linear(2, 1)), batches, progress=False).observer
    MinMaxObserver(lo=-1.0, hi=2.0)
    """
    layers = [module for module in model.modules() if isinstance(module, ObservedLayer)]
    if not layers:
        raise ValueError("this model has no observers: call nn.prepare(model) first.")
    if isinstance(batches, Tensor):
        batches = batches.split(BATCH_SIZE)
    seen = 0
    try:
        for layer in layers:
            layer.observing = True
        with torch.no_grad():
            for batch in tqdm(batches, desc="Calibrating", unit="batch", leave=False, disable=not progress):
                model(batch[0] if isinstance(batch, (tuple, list)) else batch)
                seen += 1
    finally:
        for layer in layers:
            layer.observing = False
    if seen == 0:
        raise ValueError("there was no batch to calibrate with: the loader is empty.")
    return model


def convert(model: nn.Module) -> nn.Module:
    """Copy a calibrated network and replace every observed layer by one that computes on integer codes.

    Args:
        model: from `prepare`, after `calibrate`. It is not changed.

    Returns:
        The quantized copy, in evaluation mode.

    Raises:
        ValueError: a model without observers.
        RuntimeError: observers that have seen nothing, naming their layers.

    >>> import torch
    >>> float_model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> convert(calibrate(prepare(float_model), torch.rand(100, 4), progress=False))
    Sequential(
      (0): QuantizedLinear(4 → 3, weights 8 bits per channel, input 8 bits, relu)
      (1): Identity()
    )
    """
    converted = copy.deepcopy(model).eval()
    layers = [module for module in converted.modules() if isinstance(module, ObservedLayer)]
    if not layers:
        raise ValueError("this model has no observers: call nn.prepare(model) and nn.calibrate(model, …) first.")
    blind = [layer.name for layer in layers if layer.observer.lo is None]
    if blind:
        raise RuntimeError(f"no data has reached {', '.join(blind)}: call nn.calibrate(model, batches) before convert.")
    return _replace(converted, {layer: _convert_layer(layer) for layer in layers})


def _convert_layer(observed: ObservedLayer) -> QuantizedLayer:
    layer = observed.layer
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    try:
        weight_qparams = observed.weights.find_qparams(layer.weight)
        return quantized(layer, weight_qparams, observed.observer.qparams(), relu=observed.relu)
    except ValueError as error:
        raise ValueError(f"layer {observed.name!r}: {error}") from error


def _can_quantize(module: nn.Module) -> bool:
    # The exact types: a subclass may compute something else, or be read by its parent without being called.
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.padding_mode == "zeros")


def _check_configs(name: str, weights: QuantConfig, activations: QuantConfig) -> None:
    for role, config in (("weights", weights), ("activations", activations)):
        if not 2 <= config.bits <= 8:
            raise ValueError(f"layer {name!r}: {role} of {config.bits} bits; integer layers take 2 to 8.")
    if weights.granularity not in (PerTensor(), PerAxis(0)):
        raise ValueError(f"layer {name!r}: weights take PerTensor() or PerAxis(0), not {weights.granularity}.")
    if activations.method != "min_max":
        raise ValueError(f"layer {name!r}: activations are observed by 'min_max', not by {activations.method!r}.")
    if activations.granularity != PerTensor():
        raise ValueError(f"layer {name!r}: activations take PerTensor(), not {activations.granularity}.")


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, wherever in the tree they are used, shared ones included."""
    if model in new:
        return new[model]
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new[module])
    return model


def _fuse_relu(model: nn.Module) -> None:
    """Let each observed layer do the ReLU that directly follows it in a Sequential, where it is used only once."""
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for sequence in list(model.modules()):
        if not isinstance(sequence, nn.Sequential):
            continue
        for i in range(len(sequence) - 1):
            layer = sequence[i]
            if isinstance(layer, ObservedLayer) and uses[layer] == 1 and type(sequence[i + 1]) is nn.ReLU:
                layer.relu = True
                sequence[i + 1] = nn.Identity()
