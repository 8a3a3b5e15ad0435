"""Layers that store their weights as integer codes, and compute on codes where they can.

Between two layers values are real numbers. What happens inside depends on what is known about the input:

    StaticLayer       its range was found by calibration: codes are multiplied and summed up in integers
    DynamicLayer      its range is found anew for every batch; then integers, as above
    WeightOnlyLayer   it stays real: the codes of the weights are turned back into numbers first

To everyone else they are what they replace: `.weight` and `.bias` are real numbers, `in_features`, `stride` and the
like are there, and so are the hooks that were registered on the float layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qlearn import integer
from qlearn.affine import QParams, dequantize, quant_limits, quantize
from qlearn.arrays import saturate
from qlearn.config import QuantConfig
from qlearn.granularity import PerTensor, PerToken
from qlearn.nn.linear_maps import LinearMap, Supported
from qlearn.packing import pack, unpack
from qlearn.ranges import find_range

BIAS_ROOM = 2.0**30  # bias codes stay below this, so that bias and products together fit into int32
TILE = 1 << 22  # weights that are turned into floats at once: 16 MB


class QuantizedLayer(nn.Module):
    """A linear map whose weights are codes. Its subclasses say what is done with the input.

    In `state_dict()` the codes are packed at their bit width, so a saved file is as small as it claims to be.
    Scales stay float32, whatever `.half()` or `.double()` make of the rest of a network.

    Args:
        layer: the float layer that it replaces: Linear, Conv1d, Conv2d or ConvTranspose2d.
        weight_qparams: of the weights, output channels first: scale and zero point as scalars, one for each output
            channel (O, 1, …), or one for each group along the rows of (O, I·kh·kw), shape (O, groups).

    Attributes:
        weight_codes: the codes, one row for each output channel.
        weight: what they stand for, as the float layer has it; made anew whenever it is read.
        bias: (O,), or None.
        name: where the layer is in its network.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.1, -0.6]])
    >>> quantized = WeightOnlyLayer(layer, QParams(0.5, 0, -7, 7))
    >>> quantized.weight_codes, quantized.weight, quantized.in_features
    (tensor([[ 2, -1]], dtype=torch.int8), tensor([[ 1.0000, -0.5000]]), 2)
    """

    prefix = "Quantized"  # of the name that `print(model)` shows
    weight_codes: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, layer: Supported, weight_qparams: QParams) -> None:
        super().__init__()
        self.map = LinearMap.of(layer)
        self.name, self.called = "", False
        for attribute in type(layer).__constants__:
            setattr(self, attribute, getattr(layer, attribute))
        self.bits = weight_qparams.bits
        self.weight_limits = weight_qparams.quant_min, weight_qparams.quant_max
        zero_point = torch.as_tensor(weight_qparams.zero_point, dtype=torch.int32)
        if weight_qparams.quant_min < 0:
            zero_point = zero_point.new_zeros(())  # symmetric: one zero says it for all channels
        rows = self.map.rows(layer.weight.detach())
        # A parameter, if one that is not trained: people ask a network's parameters where it is and of what type.
        scale = torch.as_tensor(weight_qparams.scale, dtype=torch.float32).clone()
        self.weight_scale = nn.Parameter(scale.to(rows.device), requires_grad=False)
        self.register_buffer("weight_zero_point", zero_point.clone().to(rows.device))
        self.register_buffer("weight_codes", quantize(self._in_blocks(rows), self.weight_qparams).view_as(rows))
        self.register_buffer("_real", rows.new_empty(0), persistent=False)  # knows the type of real numbers here
        self.register_state_dict_post_hook(_pack_codes)
        self.register_load_state_dict_pre_hook(_unpack_codes)

    @property
    def weight_qparams(self) -> QParams:
        """The quantizer of the weights."""
        zero_point = self.weight_zero_point
        zero_point = int(zero_point) if zero_point.ndim == 0 else zero_point
        return QParams(self.weight_scale.detach(), zero_point, *self.weight_limits)

    def dequantized_weight(self) -> Tensor:
        """The weights that this layer really uses, as real numbers in float32."""
        return self.map.weight(self._real_rows(slice(None)))

    @property
    def weight(self) -> Tensor:
        """`dequantized_weight`, in the network's type."""
        return saturate(self.dequantized_weight(), self._real.dtype)

    @property
    def weights_text(self) -> str:
        """How the weights are stored: "4 bits per channel"."""
        granularity = "per tensor"
        if self.weight_scale.ndim:
            size = self.weight_codes.numel() // self.weight_scale.numel()
            granularity = "per channel" if size == self.weight_codes[0].numel() else f"per group of {size}"
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
            **self.map.options,
        }

    def check(self) -> None:
        """Whether codes, scales and zero points are such as quantization makes them.

        Raises:
            ValueError: they are not; says which.
        """
        _ = self.weight_qparams
        (low, high), codes = self.weight_limits, self.weight_codes
        if codes.min() < low or codes.max() > high:
            raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())}, not {low} … {high}.")

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        outputs, *inputs = self.weight_codes.shape
        return f"{' × '.join(map(str, inputs))} → {outputs}, weights {self.weights_text}, input {self.inputs_text}"

    def forward(self, input: Tensor) -> Tensor:
        """Real input → real output.

        Raises:
            TypeError: whole numbers, no tensor.  ValueError: NaN, infinity or another shape. All name the layer.
        """
        if not torch.compiler.is_compiling():
            self.called = True
        if not isinstance(input, Tensor):
            raise TypeError(f"layer {self.name!r}: its input is a {type(input).__name__}: it must be a tensor.")
        if not input.is_floating_point():
            raise TypeError(f"layer {self.name!r}: its input has dtype {input.dtype}: it must hold floats.")
        if input.numel() == 0:
            return self.map(input, saturate(self.weight, input.dtype))
        try:
            return self.compute(input)
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {error}") from error
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # no memory is left, say
                raise
            raise ValueError(
                f"layer {self.name!r} does not take an input of shape {tuple(input.shape)}: {error}"
            ) from error

    def compute(self, x: Tensor) -> Tensor:
        """The output for an input that holds something."""
        raise NotImplementedError

    def _get_name(self) -> str:
        return self.prefix + self.map.kind

    def _in_blocks(self, rows: Tensor) -> Tensor:
        """Rows of weights in a shape that the scales divide: groups run along rows of (O, I·kh·kw)."""
        return rows.flatten(1) if 0 < self.weight_scale.ndim < rows.ndim else rows

    def _of_rows(self, parameter: Tensor, rows: slice) -> Tensor:
        """The part of a scale or zero point that belongs to some rows."""
        return parameter[rows] if parameter.ndim else parameter

    def _channels(self, scale: Tensor) -> Tensor:
        """A scale for the tensor or for each channel, as one number for each channel: (O,)."""
        return scale.reshape(-1).expand(self.map.outputs)

    def _tiles(self) -> Iterator[slice]:
        """The rows, in pieces that are turned into floats at once. Only of a Linear they can be taken apart."""
        outputs = self.map.outputs
        step = max(1, TILE // self.weight_codes[0].numel()) if self.map.kind == "Linear" else outputs
        return (slice(start, start + step) for start in range(0, outputs, step))

    def _real_rows(self, rows: slice) -> Tensor:
        """Some rows of weights as real numbers, in float32."""
        codes = self.weight_codes[rows]
        scale, zero_point = (self._of_rows(p, rows) for p in (self.weight_scale.detach(), self.weight_zero_point))
        blocks = self._in_blocks(codes)
        if torch.compiler.is_compiling():  # where numbers are not known, nothing can be checked
            view = blocks.unflatten(-1, (scale.shape[-1], -1)) if scale.ndim == 2 else blocks
            one_each = [p[..., None] if p.ndim == 2 and scale.ndim == 2 else p for p in (scale, zero_point)]
            return ((view.float() - one_each[1]) * one_each[0]).reshape(codes.shape)
        qparams = QParams(scale, zero_point if zero_point.ndim else int(zero_point), *self.weight_limits)
        return dequantize(blocks, qparams).view_as(codes)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        scales = {name: tensor.data for name, tensor in self.state_dict(keep_vars=True).items() if name in _SCALES}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            getattr(self, name).data = scale.to(getattr(self, name).device)
        return self


_SCALES = ("weight_scale", "input_scale")


class IntegerLayer(QuantizedLayer):
    """A layer that multiplies codes with codes and sums the products up in integers.

        acc = Σ (code_x − zero_point_x) · (code_w − zero_point_w)        32 bits

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2.
    """

    input_limits: tuple[int, int]

    @property
    def largest_sum(self) -> int:
        """No sum of products can be larger: depth · reach of the input's codes · reach of the weights'."""
        return self.weight_codes[0].numel() * _reach(self.input_limits) * _reach(self.weight_limits)

    @property
    def input_bits(self) -> int:
        """How many bits a code of the input has."""
        return (self.input_limits[1] - self.input_limits[0]).bit_length()

    @property
    def configuration(self) -> dict[str, Any]:
        """As of every layer, and the input's codes."""
        return {**super().configuration, "input codes": list(self.input_limits)}

    def multiply(self, codes: Tensor, zero_point: Tensor) -> Tensor:
        """The products of the input's codes and the weights', summed up in int32."""
        # NNPACK transforms 3 × 3 convolutions, and autocast uses shorter floats: both would round.
        with torch.backends.nnpack.flags(enabled=False), torch.autocast(codes.device.type, enabled=False):
            if self.map.kind != "Linear":
                return self._convolve(codes, zero_point)
            matrix = codes if codes.ndim > 1 else codes[None]
            sums = [self._times(matrix, zero_point, rows) for rows in self._tiles()]
        return (sums[0] if len(sums) == 1 else torch.cat(sums, -1)).reshape(*codes.shape[:-1], -1)

    def _times(self, codes: Tensor, zero_point: Tensor, rows: slice) -> Tensor:
        """Lesson 04's product, with some rows of the weights."""
        zeros = self._of_rows(self.weight_zero_point, rows)
        return integer.matmul(
            codes,
            self.weight_codes[rows].T,
            a_zero_point=zero_point,
            b_zero_point=zeros.reshape(1, -1) if zeros.ndim else zeros,
            largest_sum=self.largest_sum,
        )

    def _convolve(self, codes: Tensor, zero_point: Tensor) -> Tensor:
        """The same sums for windows of the input: the channels are the axis that is cut into pieces."""
        weight, zeros = self.map.weight(self.weight_codes), self.weight_zero_point
        if zeros.ndim:
            zeros = self.map.weight(zeros.expand_as(self.weight_codes))
        channels = self.map.output_axis, (0 if self.map.transposed else 1) - weight.ndim
        largest = self.largest_sum
        if self.map.groups > 1 and largest >= integer.EXACT_IN_FLOAT32:  # groups cannot be cut: float64 in one piece
            codes, weight = codes.double() - zero_point, weight.double() - zeros
            return self.map(codes, weight).round().to(torch.int32)
        return integer.sum_of_products(self.map, (codes, weight), (zero_point, zeros), channels, largest)

    def _check_accumulator(self, largest_bias: int = 0) -> None:
        bound = self.largest_sum + largest_bias
        if bound > integer.INT32_MAX:
            raise ValueError(
                f"sums of {self.weight_codes[0].numel()} products can reach {bound}, which does not fit into an int32 "
                f"accumulator (limit {integer.INT32_MAX}). Use fewer bits for this layer, or leave it in float."
            )


class StaticLayer(IntegerLayer):
    """An integer layer whose input has one scale and zero point, known beforehand.

        acc = Σ (code_x − zero_point_x) · (code_w − zero_point_w) + code_b        integers, 32 bits
        y   = scale_x · scale_w · acc

    The bias is an integer too, on the grid of the accumulator: code_b = rint(b / (scale_x · scale_w)).

    Args:
        layer: the float layer.
        weight_qparams: per tensor or per output channel.
        input_qparams: one scale and zero point for the whole input.

    Attributes:
        bias_codes: (O,) int32, or None; `bias` is what they stand for.

    Raises:
        ValueError: sums that might not fit into 32 bits.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data, layer.bias.data = torch.tensor([[1.0, -0.5]]), torch.tensor([2.0])
    >>> static = StaticLayer(layer, QParams(0.5, 0, -7, 7), QParams(0.25, 0, 0, 15))
    >>> codes = torch.tensor([[4, 8]])
    >>> static.accumulate(codes), static(0.25 * codes)  # 4 · 2 − 8 · 1 + 16 steps of 0.125
    (tensor([[16]], dtype=torch.int32), tensor([[2.]]))
    """

    input_scale: Tensor
    input_zero_point: Tensor
    bias_codes: Tensor | None

    def __init__(self, layer: Supported, weight_qparams: QParams, input_qparams: QParams) -> None:
        bias = None if layer.bias is None else layer.bias.detach()
        if bias is not None:
            rows = LinearMap.of(layer).rows(layer.weight.detach())
            weight_qparams = with_room_for_bias(weight_qparams, rows, bias, input_qparams)
        super().__init__(layer, weight_qparams)
        device = self.weight_codes.device
        self.input_limits = input_qparams.quant_min, input_qparams.quant_max
        scale = torch.as_tensor(input_qparams.scale, dtype=torch.float32).clone()
        self.register_buffer("input_scale", scale.to(device))
        zero_point = torch.as_tensor(input_qparams.zero_point, dtype=torch.int32).clone().to(device)
        self.register_buffer("input_zero_point", zero_point)
        steps = None if bias is None else torch.round(bias.double() / self._channels(self.output_scale))
        self.register_buffer("bias_codes", None if steps is None else steps.to(torch.int32))
        self._check_accumulator(0 if steps is None else int(steps.abs().max()))

    @property
    def bias(self) -> Tensor | None:
        """What the bias's codes stand for, in the network's type."""
        if self.bias_codes is None:
            return None
        return saturate(self.bias_codes * self._channels(self.output_scale), self._real.dtype)

    @property
    def input_qparams(self) -> QParams:
        """The quantizer of the input."""
        return QParams(self.input_scale, int(self.input_zero_point), *self.input_limits)

    @property
    def output_scale(self) -> Tensor:
        """What one step of the accumulator is worth: scale_x · scale_w, in float64, in weight_scale's shape."""
        return self.input_scale.double() * self.weight_scale.detach().double()

    @property
    def inputs_text(self) -> str:
        """The bits of the input's codes."""
        return f"{self.input_bits} bits"

    def codes_of(self, x: Tensor) -> Tensor:
        """The input's codes."""
        if torch.compiler.is_compiling():
            return _codes_unchecked(x, self.input_scale, self.input_zero_point, self.input_limits)
        return quantize(x, self.input_qparams)

    def accumulate(self, codes: Tensor) -> Tensor:
        """Integer codes of the input → int32 accumulators, bias included."""
        acc = self.multiply(codes, self.input_zero_point)
        return acc if self.bias_codes is None else acc + self.map.per_output(self.bias_codes)

    def compute(self, x: Tensor) -> Tensor:
        """In between everything is an integer."""
        scale = saturate(self._channels(self.output_scale), torch.float32)
        return saturate(self.accumulate(self.codes_of(x)) * self.map.per_output(scale), x.dtype)

    def check(self) -> None:
        """As of every layer, and the input's scale and zero point."""
        super().check()
        _ = self.input_qparams


class DynamicLayer(IntegerLayer):
    """An integer layer that looks at each batch to find the range of its input: no calibration.

        scale_x, zero_point_x  from the smallest and the largest value of this batch, or of each of its rows
        y = scale_x · scale_w · Σ (code_x − zero_point_x) · (code_w − zero_point_w) + b

    The bias is a float: the grid of the accumulator is another one for every batch. Per tensor an output depends on
    what else is in its batch; per example, `PerAxis(0)`, or per token it does not.

    Args:
        layer, weight_qparams: as for `StaticLayer`.
        inputs: bits, scheme and granularity of the input.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, -0.5]])
    >>> dynamic = DynamicLayer(layer, QParams(0.5, 0, -7, 7), QuantConfig(bits=2))
    >>> dynamic(torch.tensor([[0.0, 3.0]])), dynamic(torch.tensor([[30.0, 0.0]]))
    (tensor([[-1.5000]]), tensor([[30.]]))
    """

    prefix = "Dynamic"

    def __init__(self, layer: Supported, weight_qparams: QParams, inputs: QuantConfig) -> None:
        super().__init__(layer, weight_qparams)
        self.inputs = inputs
        self.input_limits = quant_limits(inputs.bits, symmetric=inputs.symmetric, narrow_range=inputs.narrow_range)
        self.bias = _fixed(layer.bias)
        self._check_accumulator()

    @property
    def inputs_text(self) -> str:
        """The bits of the input's codes, and how many values share a range."""
        granularity = self.inputs.granularity
        each = "" if granularity == PerTensor() else " per token" if granularity == PerToken() else " per row"
        return f"{self.input_bits} bits dynamic{each}"

    def qparams_of(self, x: Tensor) -> QParams:
        """The quantizer for this batch.

        Raises:
            ValueError: examples are asked for, and there are none: x is one without an axis for the batch.
        """
        granularity = self.inputs.granularity
        if granularity not in (PerTensor(), PerToken()) and x.ndim < len(self.map.shape):
            raise ValueError(f"an input of shape {tuple(x.shape)} has no axis for the batch: x[None] has one.")
        return self.inputs.choose_qparams(*find_range(x, granularity=granularity))

    def compute(self, x: Tensor) -> Tensor:
        """The product in between is one of integers."""
        qparams = self.qparams_of(x)
        zero_point = torch.as_tensor(qparams.zero_point, device=x.device)
        acc = self.multiply(quantize(x, qparams), zero_point)
        scale = qparams.scale.double() * self.map.per_output(self._channels(self.weight_scale.detach()).double())
        y = acc * saturate(scale, torch.float32)
        return saturate(y if self.bias is None else y + self.map.per_output(self.bias), x.dtype)


class WeightOnlyLayer(QuantizedLayer):
    """A layer that only stores its weights as codes and computes on real numbers: small, but not quicker.

        y = Σ x · scale_w · (code_w − zero_point_w) + b

    Args:
        layer: the float layer.
        weight_qparams: per tensor, per output channel, or per group along the rows of (O, I·kh·kw).

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.1, -0.6]])
    >>> WeightOnlyLayer(layer, QParams(0.5, 0, -7, 7))(torch.tensor([[1.0, 10.0]]))
    tensor([[-4.]])
    """

    prefix = "WeightOnly"

    def __init__(self, layer: Supported, weight_qparams: QParams) -> None:
        super().__init__(layer, weight_qparams)
        self.bias = _fixed(layer.bias)

    @property
    def inputs_text(self) -> str:
        """The input is not touched."""
        return "float"

    def compute(self, x: Tensor) -> Tensor:
        """The float layer, on the weights that the codes stand for."""
        bias = None if self.bias is None else saturate(self.bias, x.dtype)
        parts = []
        for rows in self._tiles():
            weight = saturate(self.map.weight(self._real_rows(rows)), x.dtype)
            parts.append(self.map(x, weight, None if bias is None else bias[rows]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.map.output_axis)


def quantized(
    layer: Supported, weight_qparams: QParams, inputs: QParams | QuantConfig | None, name: str = ""
) -> QuantizedLayer:
    """The quantized layer that does what this float layer does.

    Args:
        layer: the float layer.
        weight_qparams: the quantizer of its weights.
        inputs: the quantizer of its input; a configuration, by which it is found for each batch; None for "in float".
        name: where it is in its network, for error messages.
    """
    made: QuantizedLayer
    if inputs is None:
        made = WeightOnlyLayer(layer, weight_qparams)
    elif isinstance(inputs, QuantConfig):
        made = DynamicLayer(layer, weight_qparams, inputs)
    else:
        made = StaticLayer(layer, weight_qparams, inputs)
    made.name = name
    return made


def with_room_for_bias(qparams: QParams, rows: Tensor, bias: Tensor, input_qparams: QParams) -> QParams:
    """The weights' quantizer with its scales as stored, in float32, and wide enough for the bias.

    In a channel with very weak weights the bias would not fit into int32: its scale is widened.
    A channel whose weights are all zero has no scale of its own (1.0 stands in): it gets the finest one
    that its bias allows.
    """
    scale = torch.as_tensor(qparams.scale, dtype=torch.float32)
    shape = scale.shape
    finest = saturate(bias.abs().double() / (float(input_qparams.scale) * BIAS_ROOM), scale.dtype)
    silent = (rows.flatten(1) == 0).all(1)
    if scale.ndim == 0:
        finest, silent = finest.max(), silent.all()
    finest, silent = finest.reshape(shape), silent.reshape(shape)
    scale = torch.where(silent & (finest > 0), finest, torch.maximum(scale, finest))
    return QParams(scale, qparams.zero_point, qparams.quant_min, qparams.quant_max)


def _fixed(bias: Tensor | None) -> nn.Parameter | None:
    """A bias in float32 that is not trained."""
    return None if bias is None else nn.Parameter(bias.detach().float().clone(), requires_grad=False)


def _codes_unchecked(x: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int]) -> Tensor:
    """`quantize`, while a graph is being recorded and numbers are not known."""
    x = x.to(torch.promote_types(x.dtype, scale.dtype))  # a single number's type does not count beside a tensor's
    return (torch.round(x / scale) + zero_point).clamp(*limits).to(torch.uint8 if limits[0] == 0 else torch.int8)


def _reach(limits: tuple[int, int]) -> int:
    """How far a code can be from its zero point, which is 0 where there are codes below 0."""
    low, high = limits
    return high - low if low == 0 else max(-low, high)


def _pack_codes(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    state[prefix + "weight_codes"] = pack(state[prefix + "weight_codes"], layer.bits)


def _unpack_codes(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    key = prefix + "weight_codes"
    if key in state:
        shape, signed = tuple(layer.weight_codes.shape), layer.weight_limits[0] < 0
        state[key] = unpack(state[key], layer.bits, shape, signed=signed)
