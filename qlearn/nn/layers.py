"""Layers that store their weights as integer codes. What they share, and the one that computes in float.

Between two layers values are real numbers. What happens inside depends on what is known about the input:

    StaticLayer       its range was found by calibration: codes are multiplied and summed up in integers
    DynamicLayer      its range is found anew for every batch; then integers, as above
    WeightOnlyLayer   it stays real: the codes of the weights are turned back into numbers first

To everyone else they are what they replace: `.weight` and `.bias` are real numbers, `in_features`, `stride` and
attributes of one's own are there, and so are the hooks that were registered on the float layer. The first two are in
`integer_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qlearn.affine import QParams, dequantize, quantize
from qlearn.arrays import check_finite, saturate
from qlearn.nn.linear_maps import LinearMap, Supported
from qlearn.nn.network import carry_attributes, carry_parts, refuse_names
from qlearn.packing import pack, unpack

TILE = 1 << 22  # weights that are turned into floats at once: 16 MB
SCALES = ("weight_scale", "input_scale")


class QuantizedLayer(nn.Module):
    """A linear map whose weights are codes. Its subclasses say what is done with the input.

    In `state_dict()` the codes are packed at their bit width, so a saved file is as small as it claims to be.
    Scales stay float32, whatever `.half()` or `.double()` make of the rest of a network.

    Args:
        layer: the float layer that it replaces: Linear, Conv1d, Conv2d or ConvTranspose2d.
        weight_qparams: of the weights, output channels first: scale and zero point as scalars, one for each output
            channel (O, 1, …), or one for each group along the rows of (O, I·kh·kw), shape (O, groups).

    Raises:
        ValueError: weights or a bias that are not finite; an attribute of one's own that has the name of one of these.

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
        refuse_names(layer, self)
        carry_attributes(layer, self)
        carry_parts(layer, self)
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

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """Real input → real output.

        Raises:
            TypeError: whole numbers, no tensor.  ValueError: NaN, infinity or another shape, an output_size. All name
                the layer.
        """
        refuse_output_size(self.name, output_size)
        if not torch.compiler.is_compiling():
            self.called = True
        check_input(self.name, input)
        if input.numel() == 0:
            return self.map(input, saturate(self._multiplied(slice(None)), input.dtype))
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
        step = max(1, TILE // self.weight_codes[0].numel()) if self.map.is_matrix else outputs
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

    def _multiplied(self, rows: slice) -> Tensor:
        """Some rows as the map takes them."""
        real = self._real_rows(rows)
        return real if self.map.is_matrix else self.map.weight(real)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        scales = {name: getattr(self, name).data for name in SCALES if hasattr(self, name)}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            getattr(self, name).data = scale.to(getattr(self, name).device)
        return self


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
        self.bias = fixed(layer.bias)

    @property
    def inputs_text(self) -> str:
        """The input is not touched."""
        return "float"

    def compute(self, x: Tensor) -> Tensor:
        """The float layer, on the weights that the codes stand for."""
        bias = None if self.bias is None else saturate(self.bias, x.dtype)
        return self.map.in_parts(x, ((rows, saturate(self._multiplied(rows), x.dtype)) for rows in self._tiles()), bias)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers of a network that have codes: name → layer, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def check_input(name: str, input: Any) -> None:
    """Raise `TypeError`, naming the layer, unless its input is a tensor of floats."""
    if not isinstance(input, Tensor):
        raise TypeError(f"layer {name!r}: its input is a {type(input).__name__}: it must be a tensor.")
    if not input.is_floating_point():
        raise TypeError(f"layer {name!r}: its input has dtype {input.dtype}: it must hold floats.")


def refuse_output_size(name: str, output_size: Any) -> None:
    """Raise `ValueError`, naming the layer, if a transposed convolution is told the size of its output in a call."""
    if output_size is not None:
        raise ValueError(
            f"layer {name!r}: it is called with output_size={output_size}, which changes its padding from call to "
            f"call: give the layer an output_padding, or leave it in float, overrides={{{name!r}: None}}."
        )


def fixed(bias: Tensor | None) -> nn.Parameter | None:
    """A bias in float32 that is not trained.

    Raises:
        ValueError: it is not finite.
    """
    if bias is None:
        return None
    check_finite(bias.detach(), "its bias")
    return nn.Parameter(bias.detach().float().clone(), requires_grad=False)


def _pack_codes(layer: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    state[prefix + "weight_codes"] = pack(state[prefix + "weight_codes"], layer.bits)


def _unpack_codes(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(layer, QuantizedLayer)
    key = prefix + "weight_codes"
    if key in state:
        shape, signed = tuple(layer.weight_codes.shape), layer.weight_limits[0] < 0
        state[key] = unpack(state[key], layer.bits, shape, signed=signed)
