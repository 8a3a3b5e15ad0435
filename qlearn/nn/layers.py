"""Layers that store their weights as integer codes, and compute on codes where they can.

Between two layers values are real numbers. What happens inside depends on what is known about the input:

    Quantized…     its range was found by calibration: codes are multiplied and summed up in integers
    Dynamic…       its range is found anew for every batch; then integers, as above
    WeightOnly…    it stays real: the codes of the weights are turned back into numbers first
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn.affine import QParams, dequantize, quant_limits, quantize
from qlearn.arrays import saturate
from qlearn.config import QuantConfig
from qlearn.granularity import PerTensor
from qlearn.packing import pack, unpack
from qlearn.ranges import find_range

BIAS_ROOM = 2.0**30  # bias codes stay below this, so that bias and products together fit into int32


class QuantizedLayer(nn.Module):
    """A linear map whose weights are codes. Its subclasses say what is done with the input.

    In `state_dict()` the weights are packed at their bit width, so a saved file is as small as it claims to be.
    Scales stay float32, whatever `.half()` or `.double()` make of the rest of a network.

    Args:
        weight: real weights, output channels first.
        weight_qparams: scale and zero point as scalars, one for each output channel (O, 1, …), or one for each
            group along the rows of (O, I·kh·kw), shape (O, groups).
        relu: whether a ReLU follows and is done here.
        geometry: for convolutions: stride, padding, dilation and groups.

    Attributes:
        weight: the codes, in the shape of the real weights.
        bias: (O,), or None.

    >>> issubclass(QuantizedLinear, QuantizedLayer), issubclass(WeightOnlyConv2d, QuantizedLayer)
    (True, True)
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, weight_qparams: QParams, *, relu: bool, geometry: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.relu = relu
        self.geometry = geometry or {}
        self.bits = weight_qparams.bits
        self.weight_limits = weight_qparams.quant_min, weight_qparams.quant_max
        scale = torch.as_tensor(weight_qparams.scale, dtype=torch.float32)
        zero_point = torch.as_tensor(weight_qparams.zero_point, dtype=torch.int32)
        if weight_qparams.quant_min < 0:
            zero_point = zero_point.new_zeros(())  # symmetric: one zero says it for all channels
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        self.register_buffer("weight", quantize(self._in_blocks(weight.detach()), self.weight_qparams).view_as(weight))
        self.register_state_dict_post_hook(_pack_weight)
        self.register_load_state_dict_pre_hook(_unpack_weight)

    @property
    def weight_qparams(self) -> QParams:
        """The quantizer of the weights."""
        zero_point = self.weight_zero_point
        return QParams(self.weight_scale, int(zero_point) if zero_point.ndim == 0 else zero_point, *self.weight_limits)

    def dequantized_weight(self) -> Tensor:
        """The weights that this layer really uses, as real numbers."""
        return dequantize(self._in_blocks(self.weight), self.weight_qparams).view_as(self.weight)

    @property
    def weights_text(self) -> str:
        """How the weights are stored: "4 bits per channel"."""
        granularity = "per tensor"
        if self.weight_scale.ndim:
            size = self.weight.numel() // self.weight_scale.numel()
            granularity = "per channel" if size == self.weight[0].numel() else f"per group of {size}"
        return f"{self.bits} bits {granularity}"

    @property
    def inputs_text(self) -> str:
        """What is done with the input: "8 bits"."""
        raise NotImplementedError

    @property
    def configuration(self) -> dict[str, Any]:
        """What a file of this layer's tensors does not say by itself, in words and numbers."""
        return {
            "weights": self.weights_text,
            "codes": list(self.weight_limits),
            "inputs": self.inputs_text,
            "relu": self.relu,
            **self.geometry,
        }

    def check(self) -> None:
        """Whether codes, scales and zero points are such as quantization makes them.

        Raises:
            ValueError: they are not; says which.
        """
        _ = self.weight_qparams
        low, high = self.weight_limits
        if self.weight.min() < low or self.weight.max() > high:
            raise ValueError(f"codes from {int(self.weight.min())} to {int(self.weight.max())}, not {low} … {high}.")

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        outputs, *inputs = self.weight.shape
        return (
            f"{' × '.join(map(str, inputs))} → {outputs}, weights {self.weights_text}, "
            f"input {self.inputs_text}{', relu' if self.relu else ''}"
        )

    def _in_blocks(self, weight: Tensor) -> Tensor:
        """The weights in a shape that the scales divide: groups run along rows of (O, I·kh·kw)."""
        return weight.flatten(1) if 0 < self.weight_scale.ndim < weight.ndim else weight

    def _channels(self, scale: Tensor) -> Tensor:
        """A scale for the tensor or for each channel, as one number for each channel: (O,)."""
        return scale.reshape(-1).expand(len(self.weight))

    def _product(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def _per_output(self, values: Tensor) -> Tensor:
        """One number for each output channel, in the shape that broadcasts against the output."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        scales = {name: scale for name, scale in self.named_buffers(recurse=False) if name.endswith("scale")}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            setattr(self, name, scale.to(getattr(self, name).device))
        return self


class IntegerLayer(QuantizedLayer):
    """A layer that multiplies codes with codes and sums the products up in integers.

        acc = Σ (code_x − zero_point_x) · (code_w − zero_point_w)        32 bits

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2.
    """

    input_limits: tuple[int, int]

    @property
    def largest_sum(self) -> int:
        """No sum of products can be larger: depth · reach of the input's codes · reach of the weights'."""
        return self.weight[0].numel() * _reach(self.input_limits) * _reach(self.weight_limits)

    @property
    def input_bits(self) -> int:
        """How many bits a code of the input has."""
        return (self.input_limits[1] - self.input_limits[0]).bit_length()

    @property
    def configuration(self) -> dict[str, Any]:
        """As of every layer, and the input's codes."""
        return {**super().configuration, "input codes": list(self.input_limits)}

    def multiply(self, codes: Tensor, zero_point: Tensor | int) -> Tensor:
        """The products of the input's codes and the weights', summed up in int32.

        PyTorch has no fast integer product on the processor, so the integers travel as floats of a type in which
        every partial sum is exact: float32 holds all integers up to 2²⁴, float64 up to 2⁵³.
        """
        exact = torch.float32 if self.largest_sum < 2**24 else torch.float64
        x = codes.to(exact) - zero_point
        w = self.weight.to(exact) - self.weight_zero_point
        # NNPACK transforms 3 × 3 convolutions, and autocast uses shorter floats: both would round.
        with torch.backends.nnpack.flags(enabled=False), torch.autocast(x.device.type, enabled=False):
            product = self._product(x, w)
        return product.round_().to(torch.int32)

    def _check_accumulator(self, largest_bias: int = 0) -> None:
        bound = self.largest_sum + largest_bias
        if bound >= 2**31:
            raise ValueError(
                f"sums of {self.weight[0].numel()} products can reach {bound}, which does not fit into an int32 "
                f"accumulator (limit {2**31 - 1}). Use fewer bits for this layer, or leave it in float."
            )


class StaticLayer(IntegerLayer):
    """An integer layer whose input has one scale and zero point, known beforehand.

        acc = Σ (code_x − zero_point_x) · (code_w − zero_point_w) + code_b        integers, 32 bits
        acc ← max(acc, 0)                                                         if ReLU is fused
        y   = scale_x · scale_w · acc

    The bias is an integer too, on the grid of the accumulator: code_b = rint(b / (scale_x · scale_w)).

    Args:
        weight, bias: real, (O, …) and (O,); bias may be None.
        weight_qparams: per tensor or per output channel.
        input_qparams: one scale and zero point for the whole input.
        relu, geometry: as for `QuantizedLayer`.

    Raises:
        ValueError: sums that might not fit into 32 bits.
    """

    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weight_qparams: QParams, input_qparams: QParams, **options: Any
    ) -> None:
        if bias is not None:
            weight_qparams = with_room_for_bias(weight_qparams, weight.detach(), bias.detach(), input_qparams)
        super().__init__(weight, weight_qparams, **options)
        self.input_limits = input_qparams.quant_min, input_qparams.quant_max
        self.register_buffer("input_scale", torch.as_tensor(input_qparams.scale, dtype=torch.float32))
        self.register_buffer("input_zero_point", torch.as_tensor(input_qparams.zero_point, dtype=torch.int32))
        steps = None if bias is None else torch.round(bias.detach().double() / self._channels(self.output_scale))
        self.register_buffer("bias", None if steps is None else steps.to(torch.int32))
        self._check_accumulator(0 if steps is None else int(steps.abs().max()))

    @property
    def input_qparams(self) -> QParams:
        """The quantizer of the input."""
        return QParams(self.input_scale, int(self.input_zero_point), *self.input_limits)

    @property
    def output_scale(self) -> Tensor:
        """What one step of the accumulator is worth: scale_x · scale_w, in float64, in weight_scale's shape."""
        return self.input_scale.double() * self.weight_scale.double()

    @property
    def inputs_text(self) -> str:
        """The bits of the input's codes."""
        return f"{self.input_bits} bits"

    def accumulate(self, codes: Tensor) -> Tensor:
        """Integer codes of the input → int32 accumulators, bias included, ReLU not yet done."""
        acc = self.multiply(codes, self.input_zero_point)
        return acc if self.bias is None else acc + self._per_output(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Real input → real output; in between everything is an integer."""
        acc = self.accumulate(_codes(input, self.input_qparams))
        if self.relu:
            acc = acc.clamp(min=0)
        scale = saturate(self._channels(self.output_scale), torch.float32)
        return saturate(acc * self._per_output(scale), input.dtype)

    def check(self) -> None:
        """As of every layer, and the input's scale and zero point."""
        super().check()
        _ = self.input_qparams


class DynamicLayer(IntegerLayer):
    """An integer layer that looks at each batch to find the range of its input: no calibration.

        scale_x, zero_point_x  from the smallest and the largest value of this batch, or of each of its rows
        y = scale_x · scale_w · Σ (code_x − zero_point_x) · (code_w − zero_point_w) + b,  then ReLU if it is fused

    The bias is a float: the grid of the accumulator is another one for every batch. Per tensor an output depends on
    what else is in its batch; per row, `PerAxis(0)`, it does not.

    Args:
        weight, bias, weight_qparams, relu, geometry: as for `StaticLayer`.
        inputs: bits, scheme and granularity of the input.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weight_qparams: QParams, inputs: QuantConfig, **options: Any
    ) -> None:
        super().__init__(weight, weight_qparams, **options)
        self.inputs = inputs
        self.input_limits = quant_limits(inputs.bits, symmetric=inputs.symmetric, narrow_range=inputs.narrow_range)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self._check_accumulator()

    @property
    def inputs_text(self) -> str:
        """The bits of the input's codes, and how many values share a range."""
        return f"{self.input_bits} bits dynamic{'' if self.inputs.granularity == PerTensor() else ' per row'}"

    def find_input_qparams(self, x: Tensor) -> QParams:
        """The quantizer for this batch.

        Raises:
            ValueError: rows are asked for, and there are none: x is one example without an axis for the batch.
        """
        if self.inputs.granularity != PerTensor() and x.ndim < self.weight.ndim:
            raise ValueError(f"an input of shape {tuple(x.shape)} has no axis for the batch: x[None] has one.")
        return self.inputs.choose_qparams(*find_range(x, granularity=self.inputs.granularity))

    def forward(self, input: Tensor) -> Tensor:
        """Real input → real output; the product in between is one of integers."""
        if input.numel() == 0:
            return self._product(input, saturate(self.dequantized_weight(), input.dtype))
        qparams = self.find_input_qparams(input)
        acc = self.multiply(quantize(input, qparams), qparams.zero_point)
        scale = qparams.scale.double() * self._per_output(self._channels(self.weight_scale).double())
        y = acc * saturate(scale, torch.float32)
        if self.bias is not None:
            y = y + self._per_output(self.bias)
        return saturate(y.clamp(min=0) if self.relu else y, input.dtype)


class WeightOnlyLayer(QuantizedLayer):
    """A layer that only stores its weights as codes and computes on real numbers: small, but not quicker.

        y = Σ x · scale_w · (code_w − zero_point_w) + b,  then ReLU if it is fused

    Args:
        weight, bias, relu, geometry: as for `StaticLayer`.
        weight_qparams: per tensor, per output channel, or per group along the rows of (O, I·kh·kw).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, weight_qparams: QParams, **options: Any) -> None:
        super().__init__(weight, weight_qparams, **options)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    @property
    def inputs_text(self) -> str:
        """The input is not touched."""
        return "float"

    def forward(self, input: Tensor) -> Tensor:
        """The float layer, on the weights that the codes stand for."""
        bias = None if self.bias is None else saturate(self.bias, input.dtype)
        y = self._product(input, saturate(self.dequantized_weight(), input.dtype), bias)
        return y.clamp(min=0) if self.relu else y


class LinearMap(QuantizedLayer):
    """x: (…, I), weight: (O, I)  →  y: (…, O)"""

    def _product(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return functional.linear(x, w, b)

    def _per_output(self, values: Tensor) -> Tensor:
        return values


class Conv2dMap(QuantizedLayer):
    """x: (N, I, H, W), weight: (O, I / groups, kh, kw)  →  y: (N, O, H′, W′)

    Padding is exact: the border is filled with zero_point, the code of 0.0.
    """

    def _product(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return functional.conv2d(x, w, b, **self.geometry)

    def _per_output(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)


class QuantizedLinear(LinearMap, StaticLayer):
    """`nn.Linear` on integer codes.  x: (…, I), weight: (O, I)  →  y: (…, O)

    >>> weights, inputs = QParams(0.5, 0, -7, 7), QParams(0.25, 0, 0, 15)
    >>> layer = QuantizedLinear(torch.tensor([[1.0, -0.5]]), torch.tensor([2.0]), weights, inputs, relu=False)
    >>> codes = torch.tensor([[4, 8]])
    >>> layer.accumulate(codes), layer(0.25 * codes)  # 4 · 2 − 8 · 1 + 16 steps of 0.125
    (tensor([[16]], dtype=torch.int32), tensor([[2.]]))
    """


class QuantizedConv2d(Conv2dMap, StaticLayer):
    """`nn.Conv2d` on integer codes.  x: (N, I, H, W), weight: (O, I / groups, kh, kw)  →  y: (N, O, H′, W′)

    Padding is exact: the border is filled with zero_point, the code of 0.0.

    >>> weights, inputs = QParams(1.0, 0, -7, 7), QParams(1.0, 3, 0, 15)
    >>> geometry = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    >>> layer = QuantizedConv2d(torch.ones(1, 1, 3, 3), None, weights, inputs, relu=False, geometry=geometry)
    >>> layer(torch.ones(1, 1, 2, 2))
    tensor([[[[4., 4.],
              [4., 4.]]]])
    """


class DynamicLinear(LinearMap, DynamicLayer):
    """`nn.Linear` on integer codes; the range of its input is found for every batch.

    >>> layer = DynamicLinear(torch.tensor([[1.0, -0.5]]), None, QParams(0.5, 0, -7, 7), QuantConfig(2), relu=False)
    >>> layer(torch.tensor([[0.0, 3.0]])), layer(torch.tensor([[30.0, 0.0]]))
    (tensor([[-1.5000]]), tensor([[30.]]))
    """


class DynamicConv2d(Conv2dMap, DynamicLayer):
    """`nn.Conv2d` on integer codes; the range of its input is found for every batch.

    >>> geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    >>> weight = torch.ones(1, 1, 2, 2)
    >>> layer = DynamicConv2d(weight, None, QParams(1.0, 0, -7, 7), QuantConfig(2), relu=False, geometry=geometry)
    >>> layer(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]))
    tensor([[[[6.]]]])
    """


class WeightOnlyLinear(LinearMap, WeightOnlyLayer):
    """`nn.Linear` with stored codes and a product in float.

    >>> layer = WeightOnlyLinear(torch.tensor([[1.1, -0.6]]), None, QParams(0.5, 0, -7, 7), relu=False)
    >>> layer(torch.tensor([[1.0, 10.0]]))
    tensor([[-4.]])
    """


class WeightOnlyConv2d(Conv2dMap, WeightOnlyLayer):
    """`nn.Conv2d` with stored codes and a product in float.

    >>> geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    >>> weight = torch.full((1, 1, 2, 2), 0.6)
    >>> WeightOnlyConv2d(weight, None, QParams(0.5, 0, -7, 7), relu=False, geometry=geometry)(torch.ones(1, 1, 2, 2))
    tensor([[[[2.]]]])
    """


def quantized(
    layer: nn.Linear | nn.Conv2d, weight_qparams: QParams, inputs: QParams | QuantConfig | None, *, relu: bool
) -> QuantizedLayer:
    """The quantized layer that does what this float layer does.

    Args:
        layer: the float layer.
        weight_qparams: the quantizer of its weights.
        inputs: the quantizer of its input; a configuration, by which it is found for each batch; None for "in float".
        relu: whether a ReLU follows and is done here.
    """
    options: dict[str, Any] = {"relu": relu}
    is_linear = isinstance(layer, nn.Linear)
    if isinstance(layer, nn.Conv2d):
        options["geometry"] = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    parts = (layer.weight, layer.bias, weight_qparams)
    if inputs is None:
        return (WeightOnlyLinear if is_linear else WeightOnlyConv2d)(*parts, **options)
    if isinstance(inputs, QuantConfig):
        return (DynamicLinear if is_linear else DynamicConv2d)(*parts, inputs, **options)
    return (QuantizedLinear if is_linear else QuantizedConv2d)(*parts, inputs, **options)


def _codes(x: Tensor, qparams: QParams) -> Tensor:
    """`quantize`, which a batch of nothing passes too."""
    return quantize(x, qparams) if x.numel() else torch.empty_like(x, dtype=getattr(torch, qparams.code_dtype))


def _reach(limits: tuple[int, int]) -> int:
    """How far a code can be from its zero point, which is 0 where there are codes below 0."""
    low, high = limits
    return high - low if low == 0 else max(-low, high)


def with_room_for_bias(qparams: QParams, weight: Tensor, bias: Tensor, input_qparams: QParams) -> QParams:
    """The weights' quantizer with its scales as stored, in float32, and wide enough for the bias.

    In a channel with very weak weights the bias would not fit into int32: its scale is widened.
    A channel whose weights are all zero has no scale of its own (1.0 stands in): it gets the finest one
    that its bias allows.
    """
    scale = torch.as_tensor(qparams.scale, dtype=torch.float32)
    shape = scale.shape
    finest = saturate(bias.abs().double() / (float(input_qparams.scale) * BIAS_ROOM), scale.dtype)
    silent = (weight.flatten(1) == 0).all(1)
    if scale.ndim == 0:
        finest, silent = finest.max(), silent.all()
    finest, silent = finest.reshape(shape), silent.reshape(shape)
    scale = torch.where(silent & (finest > 0), finest, torch.maximum(scale, finest))
    return QParams(scale, qparams.zero_point, qparams.quant_min, qparams.quant_max)


def _pack_weight(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    state[prefix + "weight"] = pack(state[prefix + "weight"], layer.bits)


def _unpack_weight(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    key = prefix + "weight"
    if key in state:
        state[key] = unpack(state[key], layer.bits, tuple(layer.weight.shape), signed=layer.weight_limits[0] < 0)
