"""Post-training quantization: a trained network becomes an integer one, without training.

    prepare → calibrate → convert

`prepare` puts an observer in front of every layer it can quantize, `calibrate` shows them typical inputs,
`convert` replaces each observed layer by one that stores integer codes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis
from qlearn.nn.batches import Batches, Forward, device_of
from qlearn.nn.collect import collected, unreached
from qlearn.nn.distributed import TIMEOUT, merged, telling, workers
from qlearn.nn.network import exchanged
from qlearn.nn.prepared import ObservedLayer, Overrides, already, prepare_layers, prepared_layers, say_what_stays

WEIGHTS = QuantConfig(symmetric=True, granularity=PerAxis(0))
ACTIVATIONS = QuantConfig()


def prepare(
    model: nn.Module,
    weights: QuantConfig = WEIGHTS,
    activations: QuantConfig | None = ACTIVATIONS,
    overrides: Overrides | None = None,
) -> nn.Module:
    """Copy a trained network and put an observer in front of every `Linear`, `Conv1d`, `Conv2d` and `ConvTranspose2d`.

    Every other module is left as it is and stays in float; `summary` names those that have parameters, and a warning
    does where they are much. So do subclasses of these layers and the layers of `nn.TransformerEncoderLayer`, whose
    weights PyTorch reads without calling them.

    Args:
        model: a trained network, of any float type. It is not changed.
        weights: for weights: 2 … 8 bits, per tensor or per output channel, `PerAxis(0)`; range by any method of
            `find_range`. Where activations stay in float also `PerGroup`, along the rows of (O, I·kh·kw).
        activations: for layer inputs: 2 … 8 bits, per tensor; range by any observer of `qlearn.observers`, which
            needs `calibrate`. With method "dynamic" the range is found for every batch, with `PerAxis(0)` for each of
            its examples, with `PerToken()` for each token. None leaves activations in float: only weights are
            quantized.
        overrides: which layers → {"weights": …, "activations": …} (either may be left out), or None for "leave in
            float". Which: names ("conv1", or "conv1, conv2"), a pattern ("encoder.*.dense") or a type (nn.Conv2d);
            names count most.

    Returns:
        The observed copy, in evaluation mode.

    Raises:
        ValueError: bits, granularity or method that these layers cannot have, a name in `overrides` that is no
            such layer, a model without any, or one that is prepared already; weights that a hook computes before each
            call (prune, weight_norm, spectral_norm, parametrize).

    >>> from torch import nn
    >>> prepare(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    Sequential(
      (0): ObservedLayer(
        MinMaxObserver(nothing seen yet)
        (layer): Linear(in_features=4, out_features=3, bias=True)
      )
      (1): ReLU()
    )
    """
    prepared = prepare_layers(model, ObservedLayer, weights, activations, overrides).eval()
    say_what_stays(prepared)
    return prepared


def calibrate(
    model: nn.Module,
    batches: Batches,
    *,
    forward: Forward | None = None,
    progress: bool = True,
    timeout: float = TIMEOUT,
) -> nn.Module:
    """Run typical inputs through a prepared network, so that its observers see the ranges of all layer inputs.

    Use images that the network was not trained on and will not be tested on. A few hundred are enough.
    It is all or nothing: if it is interrupted or fails, the observers know what they knew before. Call it again and
    they add what they see. A network without observers (weights only, dynamic) is returned as it is.

    On several workers (`join_workers`) each one hands over its own share of the batches: unequal or empty shares are
    fine, and no batch may be in two of them. All workers call this together, and all get the observers that one
    worker would have after all batches, bit for bit, if a batch gives the same values on each (the same processor and
    number of threads). There is no way to leave the merging out, for nobody would notice. What the observers
    knew before has to be the same on all workers, and counts once.

    Args:
        model: from `prepare`. Its observers are changed, its weights are not.
        batches: tensors of inputs (N, …), dictionaries of arguments, or pairs of either and labels, as a DataLoader
            yields them; or one tensor of examples.
        forward: how the network is called on a batch that is something else: lambda model, batch: model(*batch).
        progress: show a bar.
        timeout: seconds that a worker who is done waits for the others.

    Returns:
        The model.

    Raises:
        ValueError: no batches, a model that is not prepared, NaN or infinity in an activation (names the layer), a
            batch that may mean several things.
        TypeError: NumPy arrays, which networks do not take.
        RuntimeError: on several workers: one that has ended, does not come in time or has failed, by its rank; a
            moving average, which cannot be merged.

    >>> import torch
    >>> batches = [torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0, 1.0]])]
    >>> calibrate(prepare(nn.Linear(2, 1)), batches, progress=False).observer
    MinMaxObserver(lo=-1.0, hi=2.0)
    """
    layers = prepared_layers(model)
    if not layers:
        raise ValueError(already(model) or "this model has no observers: call nn.prepare(model) first.")
    observed = {layer.name: layer for layer in layers if layer.observer is not None}
    if not observed:
        return model
    before: dict[str, Any] = {name: layer.observer for name, layer in observed.items()}
    together = workers()[1] > 1
    options: Any = {"forward": forward, "desc": "Calibrating", "progress": progress, "some": not together}
    try:
        with telling("nn.calibrate", timeout):
            for layer in layers:
                layer.calibrating = True
            for observer in before.values() if together else ():
                observer.merge(_that_saw_nothing(observer))  # or refuse, before any work is done
            start = _that_saw_nothing if together else copy.deepcopy
            found = collected(model, observed, lambda layer: _Observing(start(layer.observer)), batches, **options)
        seen = {name: observing.observer for name, observing in found.items()}
        if together:
            seen = merged("nn.calibrate", before, seen, device_of(model), timeout)
    finally:
        for layer in layers:
            layer.calibrating = False
    for name, observer in seen.items():
        observed[name].observer = observer
    return model


@dataclass
class _Observing:
    """An observer as the statistic that is collected."""

    observer: Any

    def add(self, values: Tensor) -> None:
        self.observer.observe(values)


def _that_saw_nothing(observer: Any) -> Any:
    return type(observer)(observer.config)


def convert(model: nn.Module) -> nn.Module:
    """Copy a prepared network and replace every prepared layer by one that stores integer codes.

    Args:
        model: from `prepare`, after `calibrate`; or from `prepare_qat`, after training. It is not changed.

    Returns:
        The quantized copy, in evaluation mode.

    Raises:
        ValueError: a model that is not prepared; sums that would not fit into 32 bits (names the layer).
        RuntimeError: observers that have seen nothing, naming their layers.

    >>> import torch
    >>> float_model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> convert(calibrate(prepare(float_model), torch.rand(100, 4), progress=False))
    Sequential(
      (0): QuantizedLinear(4 → 3, weights 8 bits per channel, input 8 bits)
      (1): ReLU()
    )
    """
    layers = prepared_layers(model)
    if not layers:
        wanted = "this model has no observers: call nn.prepare(model) and nn.calibrate(model, …) first."
        raise ValueError(already(model) or wanted)
    ready = {layer.name: layer for layer in layers if layer.ready}
    if blind := unreached((layer.name for layer in layers), ready):
        raise RuntimeError(f"call nn.calibrate(model, batches) before convert: {blind}")
    converted = exchanged(model, ready, lambda _, layer: layer.converted()).eval()
    vars(converted).pop("noticed", None)
    return converted
