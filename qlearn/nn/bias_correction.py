"""Bias correction: rounding shifts the mean of each layer's output, and the bias can shift it back.

Rounding errors of weights are random, but they are the same for every image: in a sum over inputs that are never
negative, as after a ReLU, they do not cancel. What is left of them on average is a constant for each channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn.affine import dequantize, fake_quantize
from qlearn.nn.batches import Batches, Forward, evaluating, listed
from qlearn.nn.collect import MeanOfChannels, collect
from qlearn.nn.in_turn import in_turn, look
from qlearn.nn.integer_layers import DynamicLayer, StaticLayer
from qlearn.nn.layers import QuantizedLayer, fixed, quantized_layers
from qlearn.nn.linear_maps import LinearMap, is_linear_map
from qlearn.nn.network import check_model, copy_of, naming


def corrected_bias(bias: Any, float_mean: Any, quantized_mean: Any) -> Any:
    """The bias after which a quantized layer puts out, on average, what the float layer does.

        b′ = b + E[y] − E[ŷ]

    Args:
        bias: b, (O,).
        float_mean, quantized_mean: the mean of each output channel, (O,), over the same images.

    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix D.

    >>> import numpy as np
    >>> corrected_bias(np.array([1.0, 2.0]), np.array([0.5, 0.0]), np.array([0.25, 1.0]))
    array([1.25, 1.  ])
    """
    return bias + (float_mean - quantized_mean)


def correct_bias(
    quantized: nn.Module, model: nn.Module, batches: Batches, *, forward: Forward | None = None, progress: bool = True
) -> nn.Module:
    """Copy a quantized network and shift its biases, so that each channel has the mean that it had in float.

    One layer after the other, from the input on: each is measured on what the corrected layers before it put out, so
    it makes up for their errors as well as for its own. Means are taken over all images and places, in float64. A
    layer is linear in what it has read, so the mean of its inputs x̂ says what its outputs are on average:

        E[ŷ] = Ŵ E[x̂] + b̂

    The bias of an integer layer moves in whole steps of its accumulator.

    Args:
        quantized: from `convert`. It is not changed.
        model: the float network that it was made of; layers are matched by their names.
        batches, forward: calibration images, as for `calibrate`: none that the result will be judged by.
        progress: show a bar.

    Returns:
        The corrected copy, in evaluation mode.

    Raises:
        ValueError: a network without quantized layers, a float network that has other layers, no batches, outputs
            that are not finite, a bias that would not fit into 32 bits. All but the batches are named.
        RuntimeError: a layer that no image has reached.
        TypeError: NumPy arrays, which networks do not take.

    Cost: one pass of the float network and one of the quantized one, what stands between its modules once more for
        each layer; in memory as `gptq`.
    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, appendix D.

    >>> from qlearn import QuantConfig
    >>> from qlearn.nn import calibrate, convert, prepare
    >>> float_model, x = nn.Linear(2, 1), torch.rand(100, 2)
    >>> rough = convert(calibrate(prepare(float_model, QuantConfig(2, symmetric=True)), x, progress=False))
    >>> fine = correct_bias(rough, float_model, x, progress=False)
    >>> bool((fine(x) - float_model(x)).mean().abs() < 0.51 * fine.output_scale)  # half a step of the accumulator
    True
    """
    check_model(quantized)
    check_model(model)
    corrected = copy_of(quantized).eval()
    layers = quantized_layers(corrected)
    if not layers:
        raise ValueError("this network has no quantized layers: nn.convert makes them.")
    floats = {name: _float_layer(model, name, layer) for name, layer in layers.items()}
    batches = list(listed(batches))
    with collect(floats, lambda layer: MeanOfChannels(LinearMap.of(layer).output_axis), of="output") as wanted:
        turns = look(model, floats, batches, forward=forward, desc="In float", progress=progress)
    if wrong := [name for name, found in wanted.items() if not found.mean.isfinite().all()]:
        raise ValueError(f"layer {wrong[0]!r} puts out values that are not finite.")
    bar = tqdm(total=len(layers), desc="Correcting", unit="layer", leave=False, disable=not progress)
    with torch.no_grad(), evaluating(corrected), bar:
        if not _built_alike(model, corrected, layers):
            turns = look(corrected, layers, batches, forward=forward)
        for name, found in in_turn(corrected, layers, turns, batches, _MeanOutput, forward=forward):
            with naming(name):
                _set_bias(layers[name], corrected_bias(found.bias, wanted[name].mean, found.mean))
            bar.update()
    return corrected


class _MeanOutput(MeanOfChannels):
    """The mean of each channel that a quantized layer puts out, from the mean of what it makes of its inputs."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.map.output_axis)
        self.layer, self.map = layer, layer.map
        weight = layer.dequantized_weight().double()
        self.weight = self.map.rows(weight) if self.map.is_matrix else weight

    def add(self, values: Tensor, times: int = 1) -> None:
        """Take in one batch. The mean of its images has, at each place, the mean of their outputs."""
        if isinstance(self.layer, StaticLayer):
            values = dequantize(self.layer.codes_of(values), self.layer.input_qparams)
        elif isinstance(self.layer, DynamicLayer):
            values = fake_quantize(values, self.layer.qparams_of(values))
        images = values.flatten(0, -2) if self.map.is_matrix else values
        images = images if images.ndim == len(self.map.shape) else images[None]
        image = images.mean(0, keepdim=True, dtype=torch.float64)
        super().add(self.map(image, self.weight), times * len(images))

    @property
    def mean(self) -> Tensor:
        """Of all batches, the bias added."""
        return super().mean + self.bias

    @property
    def bias(self) -> Tensor:
        """In float64; of an integer layer what its codes stand for, and 0 where there is none."""
        if self.layer.bias is None:
            return self.weight.new_zeros(self.map.outputs)
        if isinstance(self.layer, StaticLayer):
            return self.layer.bias_codes * self.layer.output_scale.reshape(-1)
        return self.layer.bias.double()


def _built_alike(one: nn.Module, other: nn.Module, layers: dict[str, Any]) -> bool:
    """Whether two networks differ in these layers only, so that what one calls, the other calls."""
    types = [
        [(name, type(module)) for name, module in model.named_modules() if name not in layers] for model in (one, other)
    ]
    return types[0] == types[1]


def _float_layer(model: nn.Module, name: str, layer: QuantizedLayer) -> nn.Module:
    """The layer of the float network that this one was made of."""
    found = dict(model.named_modules()).get(name)
    shape = layer.map.shape
    if found is None or not is_linear_map(found) or LinearMap.of(found) != layer.map:
        what = "no such layer" if found is None else f"a {type(found).__name__} of another kind or size there"
        raise ValueError(
            f"the quantized network has a layer {name!r} with weights {tuple(shape)}, and the float network has "
            f"{what}: give the network that was prepared."
        )
    return found


def _set_bias(layer: QuantizedLayer, bias: Tensor) -> None:
    """Give a layer another bias, which is real or counted in steps of the accumulator."""
    if not isinstance(layer, StaticLayer):
        layer.bias = fixed(bias)
        return
    codes = torch.round(bias / layer.output_scale.reshape(-1))
    bound = layer.largest_sum + float(codes.abs().max())
    if bound >= 2**31:
        raise ValueError(f"the corrected bias would be {bound:.3g} steps of the accumulator, which has 32 bits.")
    layer.bias_codes = codes.to(torch.int32)
