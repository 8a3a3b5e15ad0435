"""Bias correction: rounding shifts the mean of each layer's output, and the bias can shift it back.

Rounding errors of weights are random, but they are the same for every image: in a sum over inputs that are never
negative, as after a ReLU, they do not cancel. What is left of them on average is a constant for each channel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qlearn.nn.batches import evaluating, listed
from qlearn.nn.integer_layers import StaticLayer
from qlearn.nn.layers import QuantizedLayer


def corrected_bias(bias: Any, float_mean: Any, quantized_mean: Any) -> Any:
    """The bias after which a quantized layer puts out, on average, what the float layer does.

        b′ = b + E[y] − E[ŷ]

    Args:
        bias: b, (O,).
        float_mean, quantized_mean: the mean of each output channel before the ReLU, (O,), over the same images.

    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix D.

    >>> import numpy as np
    >>> corrected_bias(np.array([1.0, 2.0]), np.array([0.5, 0.0]), np.array([0.25, 1.0]))
    array([1.25, 1.  ])
    """
    return bias + (float_mean - quantized_mean)


def correct_bias(quantized: nn.Module, model: nn.Module, batches: Iterable[Any] | Tensor) -> nn.Module:
    """Copy a quantized network and shift its biases, so that each channel has the mean that it had in float.

    One layer after the other, from the input on: each is measured on what the corrected layers before it put out, so
    it makes up for their errors as well as for its own. Means are taken before the ReLU, over all images and places,
    and summed up in float64. The bias of an integer layer moves in whole steps of its accumulator.

    Args:
        quantized: from `convert`. It is not changed.
        model: the float network that it was made of; layers are matched by their names.
        batches: calibration images, as for `calibrate`: none that the result will be judged by.

    Returns:
        The corrected copy, in evaluation mode.

    Raises:
        ValueError: a network without quantized layers, a float network that has other layers, no batches, outputs
            that are not finite, a bias that would not fit into 32 bits. All but the batches are named.
        RuntimeError: a layer that no image has reached.
        TypeError: NumPy arrays, which networks do not take.

    Cost: one pass of the float network, and of the quantized one for each of its layers.
    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, appendix D.

    >>> from qlearn import QuantConfig
    >>> from qlearn.nn import calibrate, convert, prepare
    >>> float_model, x = nn.Linear(2, 1), torch.rand(100, 2)
    >>> rough = convert(calibrate(prepare(float_model, QuantConfig(2, symmetric=True)), x, progress=False))
    >>> fine = correct_bias(rough, float_model, x)
    >>> bool((fine(x) - float_model(x)).mean().abs() < 0.51 * fine.output_scale)  # half a step of the accumulator
    True
    """
    corrected = copy.deepcopy(quantized).eval()
    layers = {name: module for name, module in corrected.named_modules() if isinstance(module, QuantizedLayer)}
    if not layers:
        raise ValueError("this network has no quantized layers: nn.convert makes them.")
    floats = {name: _float_layer(model, name, layer) for name, layer in layers.items()}
    inputs = list(listed(batches))
    wanted = _channel_means(model, floats, inputs)
    for name in wanted:  # in the order in which the float network calls them
        layer = layers[name]
        found = _channel_means(corrected, {name: layer}, inputs)[name]
        try:
            _set_bias(layer, wanted[name], found)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    return corrected


def _float_layer(model: nn.Module, name: str, layer: QuantizedLayer) -> nn.Module:
    """The layer of the float network that this one was made of."""
    found = dict(model.named_modules()).get(name)
    if not isinstance(found, (nn.Linear, nn.Conv2d)) or found.weight.shape != layer.weight.shape:
        what = "no such layer" if found is None else f"a {type(found).__name__} of another kind or size there"
        raise ValueError(
            f"the quantized network has a layer {name!r} with weights {tuple(layer.weight.shape)}, and the float "
            f"network has {what}: give the network that was prepared."
        )
    return found


def _channel_means(model: nn.Module, layers: dict[str, nn.Module], inputs: list[Tensor]) -> dict[str, Tensor]:
    """The mean of each output channel of these layers over all inputs, in the order of their first calls."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, layer: nn.Module, y: Tensor) -> None:
        axis = (
            -3 if isinstance(layer, nn.Conv2d) or getattr(getattr(layer, "map", None), "kind", "") == "Conv2d" else -1
        )
        rows = y.detach().movedim(axis, -1).flatten(0, -2).double()
        sums[name] = sums.get(name, 0) + rows.sum(0)
        counts[name] = counts.get(name, 0) + len(rows)

    with torch.no_grad(), evaluating(model), ExitStack() as hooks:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(lambda layer, _, y, name=name: add(name, layer, y))
            hooks.callback(hook.remove)
        for x in inputs:
            model(x)
    if missing := [name for name in layers if not counts.get(name)]:
        raise RuntimeError(f"no data has reached {', '.join(missing)}: the network never calls it.")
    means = {name: total / counts[name] for name, total in sums.items()}
    if wrong := [name for name, mean in means.items() if not mean.isfinite().all()]:
        raise ValueError(f"layer {wrong[0]!r} puts out values that are not finite.")
    return means


def _set_bias(layer: QuantizedLayer, wanted: Tensor, found: Tensor) -> None:
    """Correct the bias, which is real or counted in steps of the accumulator."""
    if not isinstance(layer, StaticLayer):
        bias = wanted.new_zeros(len(wanted)) if layer.bias is None else layer.bias.double()
        layer.bias = nn.Parameter(corrected_bias(bias, wanted, found).to(torch.float32), requires_grad=False)
        return
    steps = layer.output_scale.reshape(-1).expand(len(wanted))
    codes = wanted.new_zeros(len(wanted)) if layer.bias_codes is None else layer.bias_codes.double()
    codes = torch.round(corrected_bias(codes, wanted / steps, found / steps))
    bound = layer.largest_sum + float(codes.abs().max())
    if bound >= 2**31:
        raise ValueError(f"the corrected bias would be {bound:.3g} steps of the accumulator, which has 32 bits.")
    layer.bias_codes = codes.to(torch.int32)
