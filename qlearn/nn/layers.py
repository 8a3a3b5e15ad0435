"""Layers that compute on integer codes.

Between two layers values are real numbers. Inside a layer they are codes: the input is quantized, multiplied
with the weights' codes and summed up in integers, and only the sum is scaled back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn.affine import QParams, dequantize, quantize
from qlearn.packing import pack, unpack

BIAS_ROOM = 2.0**30  # bias codes stay below this, so that bias and products together fit into int32


class QuantizedLayer(nn.Module):
    """A linear map on integer codes, with bias and, if asked for, ReLU.

        acc = Σ (code_x − zero_point_x) · (code_w − zero_point_w) + code_b        integers, 32 bits
        acc ← max(acc, 0)                                                         if ReLU is fused
        y   = scale_x · scale_w · acc

    The bias is an integer too, on the grid of the accumulator: code_b = rint(b / (scale_x · scale_w)).
    In `state_dict()` the weights are packed at their bit width, so a saved file is as small as it claims to be.

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2.

    Args:
        weight: real weights, output channels first.
        bias: real biases, (O,), or None.
        weight_qparams: scale and zero point as scalars, or one for each output channel (O, 1, …).
        input_qparams: one scale and zero point for the whole input.
        relu: whether a ReLU follows and is done here.

    >>> issubclass(QuantizedLinear, QuantizedLayer), issubclass(QuantizedConv2d, QuantizedLayer)
    (True, True)
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor
    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weight_qparams: QParams, input_qparams: QParams, *, relu: bool
    ) -> None:
        super().__init__()
        weight = weight.detach()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        weight_qparams = _with_room_for_bias(weight_qparams, weight, bias, input_qparams)
        self.relu = relu
        self.bits = weight_qparams.bits
        self.input_bits = input_qparams.bits
        self.weight_limits = weight_qparams.quant_min, weight_qparams.quant_max
        self.input_limits = input_qparams.quant_min, input_qparams.quant_max
        self.register_buffer("weight", quantize(weight, weight_qparams))
        self.register_buffer("weight_scale", torch.as_tensor(weight_qparams.scale, dtype=torch.float32))
        self.register_buffer("weight_zero_point", torch.as_tensor(weight_qparams.zero_point, dtype=torch.int32))
        self.register_buffer("input_scale", torch.as_tensor(input_qparams.scale, dtype=torch.float32))
        self.register_buffer("input_zero_point", torch.as_tensor(input_qparams.zero_point, dtype=torch.int32))
        self.register_buffer("bias", torch.round(bias.double() / self._channels(self.output_scale)).to(torch.int32))
        self._check_accumulator()
        self.register_state_dict_post_hook(_pack_weight)
        self.register_load_state_dict_pre_hook(_unpack_weight)

    @property
    def weight_qparams(self) -> QParams:
        """The quantizer of the weights."""
        zero_point = self.weight_zero_point
        return QParams(self.weight_scale, int(zero_point) if zero_point.ndim == 0 else zero_point, *self.weight_limits)

    @property
    def input_qparams(self) -> QParams:
        """The quantizer of the input."""
        return QParams(self.input_scale, int(self.input_zero_point), *self.input_limits)

    @property
    def output_scale(self) -> Tensor:
        """What one step of the accumulator is worth: scale_x · scale_w, in float64, in weight_scale's shape."""
        return self.input_scale.double() * self.weight_scale.double()

    def dequantized_weight(self) -> Tensor:
        """The weights that this layer really uses, as real numbers."""
        return dequantize(self.weight, self.weight_qparams)

    def accumulate(self, codes: Tensor) -> Tensor:
        """Integer codes of the input → int32 accumulators, bias included, ReLU not yet done.

        PyTorch has no fast integer product on the processor, so the integers travel as floats of a type in which
        every partial sum is exact: float32 holds all integers up to 2²⁴, float64 up to 2⁵³.
        """
        exact = torch.float32 if self.largest_sum < 2**24 else torch.float64
        x = codes.to(exact) - self.input_zero_point
        w = self.weight.to(exact) - self.weight_zero_point
        # NNPACK transforms 3 × 3 convolutions, and autocast uses shorter floats: both would round.
        with torch.backends.nnpack.flags(enabled=False), torch.autocast(x.device.type, enabled=False):
            product = self._product(x, w)
        return product.round().to(torch.int32) + self._per_output(self.bias)

    @property
    def largest_sum(self) -> int:
        """No sum of products can be larger: depth · (span of the input's codes) · (span of the weights')."""
        low, high = self.weight_limits
        weight_span = high - low if low == 0 else -low
        return self.weight[0].numel() * (self.input_limits[1] - self.input_limits[0]) * weight_span

    def forward(self, x: Tensor) -> Tensor:
        """Real input → real output; in between everything is an integer."""
        acc = self.accumulate(quantize(x, self.input_qparams))
        if self.relu:
            acc = acc.clamp(min=0)
        return (acc * self._per_output(self._channels(self.output_scale))).to(x.dtype)

    def _product(self, x: Tensor, w: Tensor) -> Tensor:
        raise NotImplementedError

    def _per_output(self, values: Tensor) -> Tensor:
        """One number for each output channel, in the shape that broadcasts against the output."""
        raise NotImplementedError

    def _channels(self, scale: Tensor) -> Tensor:
        """A scale for the tensor or for each channel, as one number for each channel: (O,)."""
        return scale.reshape(-1).expand(len(self.weight))

    def _check_accumulator(self) -> None:
        bound = self.largest_sum + int(self.bias.double().abs().max())
        if bound >= 2**31:
            raise ValueError(
                f"sums of {self.weight[0].numel()} products can reach {bound}, which does not fit into an int32 "
                f"accumulator (limit {2**31 - 1}). Use fewer bits for this layer, or leave it in float."
            )

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        outputs, *inputs = self.weight.shape
        scales = "per channel" if self.weight_scale.ndim else "per tensor"
        return (
            f"{' × '.join(map(str, inputs))} → {outputs}, weights {self.bits} bits {scales}, "
            f"input {self.input_bits} bits{', relu' if self.relu else ''}"
        )


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` on integer codes.  x: (…, I), weight: (O, I)  →  y: (…, O)

    >>> weights, inputs = QParams(0.5, 0, -7, 7), QParams(0.25, 0, 0, 15)
    >>> layer = QuantizedLinear(torch.tensor([[1.0, -0.5]]), torch.tensor([2.0]), weights, inputs, relu=False)
    >>> codes = torch.tensor([[4, 8]])
    >>> layer.accumulate(codes), layer(0.25 * codes)  # 4 · 2 − 8 · 1 + 16 steps of 0.125
    (tensor([[16]], dtype=torch.int32), tensor([[2.]]))
    """

    def _product(self, x: Tensor, w: Tensor) -> Tensor:
        return functional.linear(x, w)

    def _per_output(self, values: Tensor) -> Tensor:
        return values


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` on integer codes.  x: (N, I, H, W), weight: (O, I / groups, kh, kw)  →  y: (N, O, H′, W′)

    Padding is exact: the border is filled with zero_point, the code of 0.0.

    >>> weights, inputs = QParams(1.0, 0, -7, 7), QParams(1.0, 3, 0, 15)
    >>> geometry = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    >>> layer = QuantizedConv2d(torch.ones(1, 1, 3, 3), None, weights, inputs, relu=False, geometry=geometry)
    >>> layer(torch.ones(1, 1, 2, 2))
    tensor([[[[4., 4.],
              [4., 4.]]]])
    """

    def __init__(self, *args: Any, geometry: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry

    def _product(self, x: Tensor, w: Tensor) -> Tensor:
        return functional.conv2d(x, w, **self.geometry)

    def _per_output(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)


def quantized(
    layer: nn.Linear | nn.Conv2d, weight_qparams: QParams, input_qparams: QParams, *, relu: bool
) -> QuantizedLayer:
    """The integer layer that does what this float layer does."""
    parts = (layer.weight, layer.bias, weight_qparams, input_qparams)
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(*parts, relu=relu)
    geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return QuantizedConv2d(*parts, relu=relu, geometry=geometry)


def _with_room_for_bias(qparams: QParams, weight: Tensor, bias: Tensor, input_qparams: QParams) -> QParams:
    """The weights' quantizer with its scales as stored, in float32, and wide enough for the bias.

    In a channel with very weak weights the bias would not fit into int32: its scale is widened.
    A channel whose weights are all zero has no scale of its own (1.0 stands in): it gets the finest one
    that its bias allows.
    """
    scale = torch.as_tensor(qparams.scale, dtype=torch.float32)
    shape = scale.shape
    finest = (bias.abs().double() / (float(input_qparams.scale) * BIAS_ROOM)).to(scale.dtype)
    silent = (weight.flatten(1) == 0).all(1)
    if scale.ndim == 0:
        finest, silent = finest.max(), silent.all()
    finest, silent = finest.reshape(shape), silent.reshape(shape)
    scale = torch.where(silent & (finest > 0), finest, torch.maximum(scale, finest))
    zero_point = 0 if qparams.quant_min < 0 else qparams.zero_point  # symmetric: one zero says it for all channels
    return QParams(scale, zero_point, qparams.quant_min, qparams.quant_max)


def _pack_weight(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    state[prefix + "weight"] = pack(state[prefix + "weight"], layer.bits)


def _unpack_weight(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    key = prefix + "weight"
    if key in state:
        state[key] = unpack(state[key], layer.bits, tuple(layer.weight.shape), signed=layer.weight_limits[0] < 0)
