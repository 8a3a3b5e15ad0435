"""Layers that multiply codes with codes: what a network becomes on hardware that knows integers only.

    x → codes → Σ (code_x − zero_point_x) · (code_w − zero_point_w) → scale_x · scale_w · acc

The sum of a Linear is lesson 04's `integer.matmul`; that of a convolution is the same over windows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlearn import integer
from qlearn.affine import QParams, quantize
from qlearn.arrays import block_rows, check_finite, saturate
from qlearn.config import QuantConfig
from qlearn.granularity import Granularity, PerAxis, PerTensor, PerToken
from qlearn.nn.layers import QuantizedLayer, WeightOnlyLayer, fixed
from qlearn.nn.linear_maps import Supported, rows_of
from qlearn.ranges import find_range

# How what is said of a dynamic layer's input ends.
DYNAMIC: dict[Granularity, str] = {
    PerToken(): "dynamic per token",
    PerAxis(0): "dynamic per row",
    PerTensor(): "dynamic",
}
BIAS_ROOM = 2.0**30  # bias codes stay below this, so that bias and products together fit into int32


class IntegerLayer(QuantizedLayer):
    """A layer that multiplies codes with codes and sums the products up in integers.

        acc = Σ (code_x − zero_point_x) · (code_w − zero_point_w)        32 bits

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2.
    """

    input_limits: tuple[int, int]
    _known_sum: tuple[tuple[int, int] | None, int] = None, 0

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """Real input → real output. No gradient goes through, and none is lost without a word: `backward` says so."""
        output = super().forward(input, output_size)
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and input.requires_grad):
            return output
        return _NoGradient.apply(input, output, self.name)

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
        largest = self._largest(zero_point)
        # NNPACK and cuDNN transform 3 × 3 convolutions, and autocast uses shorter floats: all three would round.
        with (
            torch.backends.nnpack.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
            torch.autocast(codes.device.type, enabled=False),
        ):
            if not self.map.is_matrix:
                return self._convolve(codes, zero_point, largest)
            matrix = codes if codes.ndim > 1 else codes[None]
            sums = [self._times(matrix, zero_point, rows, largest) for rows in self._tiles()]
        return (sums[0] if len(sums) == 1 else torch.cat(sums, -1)).reshape(*codes.shape[:-1], -1)

    def _times(self, codes: Tensor, zero_point: Tensor, rows: slice, largest: int) -> Tensor:
        """Lesson 04's product, with some rows of the weights."""
        zeros = self._of_rows(self.weight_zero_point, rows)
        return integer.matmul(
            codes,
            self.weight_codes[rows].T,
            a_zero_point=zero_point,
            b_zero_point=zeros.reshape(1, -1) if zeros.ndim else zeros,
            largest_sum=largest,
        )

    def _convolve(self, codes: Tensor, zero_point: Tensor, largest: int) -> Tensor:
        """The same sums for windows of the input: the channels are the axis that is cut into pieces."""
        weight, zeros = self.map.weight(self.weight_codes), self.weight_zero_point
        if zeros.ndim:
            zeros = self.map.weight(zeros.expand_as(self.weight_codes))
        channels = self.map.output_axis, (0 if self.map.transposed else 1) - weight.ndim
        if self.map.groups > 1 and largest >= integer.EXACT_IN_FLOAT32:  # groups cannot be cut: float64 in one piece
            codes, weight = codes.double() - zero_point, weight.double() - zeros
            return self.map(codes, weight).round().to(torch.int32)
        return integer.sum_of_products(self.map, (codes, weight), (zero_point, zeros), channels, largest)

    def _largest(self, zero_point: Tensor) -> int:
        """`largest_sum` with this zero point, or with the weights as they are where that is less than 2²⁴."""
        if torch.compiler.is_compiling():
            return self.largest_sum
        low, high = self.input_limits
        reach = max(int(zero_point.max()) - low, high - int(zero_point.min()))
        within = reach * self._weight_sum()
        depth = self.weight_codes[0].numel()
        return within if within < integer.EXACT_IN_FLOAT32 else reach * depth * _reach(self.weight_limits)

    def _weight_sum(self) -> int:
        """The largest Σ |code_w − zero_point_w| of a row; kept until the codes change."""
        codes = self.weight_codes
        now = None if codes.is_inference() else (codes._version, codes.data_ptr())  # those made there count no changes
        if now is None or self._known_sum[0] != now:
            tiles = ((self.weight_codes[t].float(), self._of_rows(self.weight_zero_point, t)) for t in self._tiles())
            found = max(float((codes - zero_point).abs().flatten(1).sum(1).max()) for codes, zero_point in tiles)
            self._known_sum = now, int(found * (1 + 1e-6)) + 1  # the sum itself is rounded
        return self._known_sum[1]

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

    >>> layer = torch.nn.Linear(2, 1)
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
            weight_qparams = with_room_for_bias(weight_qparams, rows_of(layer).detach(), bias, input_qparams)
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

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[1.0, -0.5]])
    >>> dynamic = DynamicLayer(layer, QParams(0.5, 0, -7, 7), QuantConfig(bits=2))
    >>> dynamic(torch.tensor([[0.0, 3.0]])), dynamic(torch.tensor([[30.0, 0.0]]))
    (tensor([[-1.5000]]), tensor([[30.]]))
    """

    prefix = "Dynamic"

    def __init__(self, layer: Supported, weight_qparams: QParams, inputs: QuantConfig) -> None:
        super().__init__(layer, weight_qparams)
        self.inputs = inputs
        self.input_limits = inputs.limits
        self.bias = fixed(layer.bias)
        self._check_accumulator()

    @property
    def inputs_text(self) -> str:
        """The bits of the input's codes, and how many values share a range."""
        return f"{self.input_bits} bits {DYNAMIC.get(self.inputs.granularity, 'dynamic per row')}"

    def qparams_of(self, x: Tensor) -> QParams:
        """The quantizer for this batch.

        Raises:
            ValueError: examples are asked for, and there are none: x is one without an axis for the batch.
        """
        granularity = self.inputs.granularity
        if granularity not in (PerTensor(), PerToken()) and x.ndim < len(self.map.shape):
            raise ValueError(f"an input of shape {tuple(x.shape)} has no axis for the batch: x[None] has one.")
        return self.inputs.choose_qparams(*find_range(x, granularity=granularity))

    def codes_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input's codes, and their scale and zero point."""
        if torch.compiler.is_compiling():
            scale, zero_point = self._range_unchecked(x)
            return _codes_unchecked(x, scale, zero_point, self.input_limits), scale, zero_point
        qparams = self.qparams_of(x)
        return quantize(x, qparams), qparams.scale, torch.as_tensor(qparams.zero_point, device=x.device)

    def compute(self, x: Tensor) -> Tensor:
        """The product in between is one of integers."""
        codes, input_scale, zero_point = self.codes_of(x)
        acc = self.multiply(codes, zero_point)
        scale = saturate(input_scale * self.map.per_output(self._channels(self.weight_scale.detach())), torch.float32)
        y = acc * scale
        return saturate(y if self.bias is None else y + self.map.per_output(self.bias), x.dtype)

    def _range_unchecked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of `qparams_of`, while a graph is being recorded and numbers are not known."""
        shape = self.inputs.granularity.scale_shape(tuple(x.shape))
        rows = (block_rows(x, shape) if shape else x.reshape(1, -1)).double()
        low, high = (end.reshape(shape) for end in (rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)))
        (quant_min, quant_max), steps = self.input_limits, self.input_limits[1] - self.input_limits[0]
        exact = torch.maximum(low / quant_min, high / quant_max) if quant_min < 0 else high / steps - low / steps
        scale = saturate(exact, torch.promote_types(x.dtype, torch.float32))
        scale = torch.where(scale == 0, 1.0, scale)
        if quant_min < 0:
            return scale, torch.zeros_like(scale, dtype=torch.int32)
        return scale, torch.round(-low / scale.double()).clamp(quant_min, quant_max).to(torch.int32)


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

    Raises:
        ValueError: a bias that is not finite.
    """
    check_finite(bias.detach(), "its bias")
    scale = torch.as_tensor(qparams.scale, dtype=torch.float32, device=bias.device)
    shape = scale.shape
    finest = saturate(bias.abs().double() / (float(input_qparams.scale) * BIAS_ROOM), scale.dtype)
    silent = (rows.flatten(1) == 0).all(1)
    if scale.ndim == 0:
        finest, silent = finest.max(), silent.all()
    finest, silent = finest.reshape(shape), silent.reshape(shape)
    scale = torch.where(silent & (finest > 0), finest, torch.maximum(scale, finest))
    return QParams(scale, qparams.zero_point, qparams.quant_min, qparams.quant_max)


class _NoGradient(torch.autograd.Function):
    """What comes out of a layer that rounds its input: a gradient that arrives here is refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, name: str) -> Tensor:
        ctx.name = name
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise ValueError(
            f"layer {ctx.name!r} rounds its inputs, and no gradient goes through that: nn.prepare_qat makes a network "
            "that learns with the rounding, before nn.convert, and activations=None leaves the inputs in float."
        )


def _codes_unchecked(x: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int]) -> Tensor:
    """`quantize`, while a graph is being recorded and numbers are not known."""
    x = x.to(torch.promote_types(x.dtype, scale.dtype))  # a single number's type does not count beside a tensor's
    return (torch.round(x / scale) + zero_point).clamp(*limits).to(torch.uint8 if limits[0] == 0 else torch.int8)


def _reach(limits: tuple[int, int]) -> int:
    """How far a code can be from its zero point, which is 0 where there are codes below 0."""
    low, high = limits
    return high - low if low == 0 else max(-low, high)
