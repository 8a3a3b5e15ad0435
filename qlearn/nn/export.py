"""Write a quantized network as an ONNX file, which runs without PyTorch and without this package.

The form is called QDQ. In front of each product stand the codes, and what turns them into numbers:

    x → QuantizeLinear → DequantizeLinear ─┐
    codes of weights → DequantizeLinear ───┼→ Gemm or Conv → Relu
    codes of bias → DequantizeLinear ──────┘

A runtime that has integer products sees the pattern and multiplies the codes; every other computes in float on the
same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlearn.datasets import write_whole
from qlearn.nn.batches import evaluating
from qlearn.nn.folding import FoldedNorm
from qlearn.nn.integer_layers import DynamicLayer, StaticLayer
from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.linear_maps import is_linear_map
from qlearn.nn.network import check_model
from qlearn.nn.prepared import ObservedLayer
from qlearn.nn.storage import writable
from qlearn.packing import pack

OPSET = 21  # the first with 4-bit codes and with groups
IR_VERSION = 10  # the form of file that belongs to it
INPUT, OUTPUT = "input", "output"


def export_onnx(model: nn.Module, path: str | os.PathLike[str], input_shape: Sequence[int]) -> int:
    """Write a quantized network to an ONNX file with QuantizeLinear and DequantizeLinear; returns its size in bytes.

    Codes, scales and zero points are those of the network. Codes of weights are stored in the smallest type that
    ONNX has for them: 4 bits (INT4, UINT4) for 2 to 4 bits, 8 bits (INT8, UINT8) for 5 to 8. Inputs are quantized to
    8-bit types; where their codes are fewer, a Clip in front makes them so.

    A runtime that computes the products in float, as this file says it, gives what the network gives, but for
    float32 rounding: next to a tie the code of an activation can be off by one. ONNX Runtime makes integer products
    of the pattern. On x86 processors without VNNI these saturate in 16 bits: set its session option
    "session.x64quantprecision" to "1", or "session.disable_quant_qdq" to "1" for products in float.

    Args:
        model: from `convert`: an `nn.Sequential` of quantized layers, static or weight-only, and of Linear, Conv2d,
            BatchNorm2d, ReLU, MaxPool2d, Flatten, Dropout and Identity; or one of these. A float network works too.
        path: of the file, which appears under its name only when it is complete.
        input_shape: of one example, without the batch: (1, 28, 28). The file takes batches of any size.

    Raises:
        ImportError: onnx is not installed.
        ValueError: a module that cannot be written (names it), or an input_shape that the network does not take.

    Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, opset 21.

    >>> import tempfile
    >>> from qlearn.nn import calibrate, convert, prepare
    >>> layer = convert(calibrate(prepare(nn.Linear(100, 8)), torch.rand(50, 100), progress=False))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     800 < export_onnx(layer, f"{folder}/layer.onnx", (100,)) < 2000
    True
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"export_onnx() needs onnx ({error}): pip install onnx.") from error
    check_model(model)
    path = writable(path)
    if not isinstance(input_shape, (tuple, list, torch.Size)) or not all(isinstance(n, Integral) for n in input_shape):
        raise TypeError(f"input_shape={input_shape!r} must be the shape of one example: (1, 28, 28).")
    steps = _steps(model)
    output_shape = _output_shape(model, tuple(input_shape))
    graph = _Graph(onnx)
    for name, module in steps:
        graph.add(name, module)
    content = graph.finished(tuple(input_shape), output_shape).SerializeToString()
    write_whole(path, content)
    return len(content)


def _steps(model: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """What a Sequential does, one after the other; Sequentials inside it are opened up."""
    if type(model) is not nn.Sequential:
        return [(name or "model", model)]
    prefix = f"{name}." if name else ""
    return [step for child, module in model._modules.items() if module for step in _steps(module, prefix + child)]


def _output_shape(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what comes out for one example."""
    like = next((p for p in model.parameters()), torch.zeros(()))
    try:
        with torch.no_grad(), evaluating(model):
            return tuple(model(torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)).shape)[1:]
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the network does not take an input_shape of {input_shape}: {error}") from error


class _Graph:
    """An ONNX graph that grows by one module after the other; `last` is the name of what came out so far."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.last = INPUT

    def add(self, name: str, module: nn.Module) -> None:
        """Append what this module does.

        Raises:
            ValueError: a module that has no place here.
        """
        kind = type(module)
        of_kind = module.map.kind if isinstance(module, QuantizedLayer) else kind.__name__
        if (isinstance(module, QuantizedLayer) or is_linear_map(module)) and of_kind in ("Linear", "Conv2d"):
            self._add_layer(name, module)
        elif kind is nn.BatchNorm2d and module.running_mean is not None:
            ones = torch.ones_like(module.running_mean)
            numbers = self._constants(
                f"{name}.",
                weight=ones if module.weight is None else module.weight,
                bias=torch.zeros_like(ones) if module.bias is None else module.bias,
                mean=module.running_mean,
                var=module.running_var,
            )
            self._step("BatchNormalization", name, *numbers, epsilon=module.eps)
        elif kind is nn.ReLU:
            self._step("Relu", name)
        elif kind is nn.MaxPool2d and not module.return_indices:
            shape = {"kernel_shape": module.kernel_size, "strides": module.stride, "dilations": module.dilation}
            pairs = {key: _pair(value) for key, value in shape.items()}
            self._step("MaxPool", name, **pairs, pads=_pair(module.padding) * 2, ceil_mode=int(module.ceil_mode))
        elif kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            self._step("Flatten", name, axis=1)
        elif kind not in (nn.Identity, nn.Dropout, FoldedNorm):
            raise ValueError(_reason(name, module))

    def finished(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Any:
        """The whole model, checked by ONNX itself."""
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [self.last], [OUTPUT]))
        ends = [
            [helper.make_tensor_value_info(name, float32, ["N", *shape])]
            for name, shape in ((INPUT, input_shape), (OUTPUT, output_shape))
        ]
        graph = helper.make_graph(self.nodes, "qlearn", *ends, self.constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="qlearn")
        try:
            self.onnx.checker.check_model(model, full_check=True)
        except (self.onnx.checker.ValidationError, self.onnx.shape_inference.InferenceError) as error:
            raise ValueError(
                f"this network cannot be written to ONNX; Linear layers take (N, I) there: {error}"
            ) from error
        return model

    def _add_layer(self, name: str, layer: Any) -> None:
        """A product: of numbers, or of codes that are turned into numbers in front of it."""
        if isinstance(layer, DynamicLayer):
            raise ValueError(_reason(name, layer))
        if isinstance(layer, StaticLayer):
            self._round_trip(name, layer)
        quantized = isinstance(layer, QuantizedLayer)
        inputs = [self._weight(name, layer) if quantized else self._constant(f"{name}.weight", layer.weight)]
        if isinstance(layer, StaticLayer) and layer.bias_codes is not None:
            codes = self._constant(f"{name}.bias", layer.bias_codes)
            scale = layer.output_scale.float().reshape(-1).expand(len(layer.bias_codes))
            quantizer = self._constants(f"{name}.bias_", scale=scale, zero_point=torch.zeros_like(layer.bias_codes))
            inputs.append(self._node("DequantizeLinear", f"{name}.bias_numbers", codes, *quantizer, axis=0))
        elif layer.bias is not None:
            inputs.append(self._constant(f"{name}.bias", layer.bias))
        if hasattr(layer, "kernel_size"):
            self._step("Conv", name, *inputs, **_geometry(layer))
        else:
            self._step("Gemm", name, *inputs, transB=1)

    def _round_trip(self, name: str, layer: StaticLayer) -> None:
        """The input becomes codes, and numbers again."""
        scale, zero_point, (low, high) = layer.input_scale, layer.input_zero_point, layer.input_limits
        dtype = torch.uint8 if low == 0 else torch.int8
        if (low, high) != (torch.iinfo(dtype).min, torch.iinfo(dtype).max):
            ends = self._constants(f"{name}.", lo=scale * (low - zero_point), hi=scale * (high - zero_point))
            self._step("Clip", f"{name}.clip", *ends)
        quantizer = self._constants(f"{name}.input_", scale=scale, zero_point=zero_point.to(dtype))
        self._step("QuantizeLinear", f"{name}.codes", *quantizer)
        self._step("DequantizeLinear", f"{name}.input", *quantizer)

    def _weight(self, name: str, layer: QuantizedLayer) -> str:
        """The name of the weights as numbers, behind their codes."""
        types = self.onnx.TensorProto
        signed = layer.weight_limits[0] < 0
        if layer.bits <= 4:
            onnx_type, width = (types.INT4 if signed else types.UINT4), 4
        else:
            onnx_type, width = (types.INT8 if signed else types.UINT8), 8
        scale, zero_point = layer.weight_scale, layer.weight_zero_point.expand(layer.weight_scale.shape)
        matrix = layer.weight_codes.flatten(1)
        per_group = scale.ndim > 0 and scale.numel() != len(matrix)
        blocks = {}
        if per_group:
            blocks = {"axis": 1, "block_size": matrix.shape[1] // scale.shape[1]}
        elif scale.ndim:
            blocks, scale, zero_point = {"axis": 0}, scale.reshape(-1), zero_point.reshape(-1)
        codes = self._packed(f"{name}.weight", matrix if per_group else layer.weight_codes, onnx_type, width)
        zeros = self._packed(f"{name}.weight_zero_point", zero_point, onnx_type, width)
        scales = self._constant(f"{name}.weight_scale", scale)
        weight = self._node("DequantizeLinear", f"{name}.weight_numbers", codes, scales, zeros, **blocks)
        if per_group and layer.weight_codes.ndim != 2:
            shape = self._constant(f"{name}.weight_shape", torch.tensor(layer.weight_codes.shape))
            weight = self._node("Reshape", f"{name}.weight_kernels", weight, shape)
        return weight

    def _packed(self, name: str, codes: Tensor, onnx_type: int, width: int) -> str:
        """Codes of `width` bits as a constant: ONNX packs them as `pack` does."""
        content = pack(codes, width).cpu().numpy().tobytes()
        self.constants.append(self.onnx.helper.make_tensor(name, onnx_type, tuple(codes.shape), content, raw=True))
        return name

    def _constants(self, prefix: str, **tensors: Tensor) -> list[str]:
        return [self._constant(prefix + name, tensor) for name, tensor in tensors.items()]

    def _constant(self, name: str, tensor: Tensor) -> str:
        values = tensor.detach().cpu()
        array = np.asarray(values.float() if values.is_floating_point() else values)
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def _step(self, op: str, name: str, *inputs: str, **attributes: Any) -> None:
        """A node on what came out so far."""
        self.last = self._node(op, name, self.last, *inputs, **attributes)

    def _node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """A node of that name; returns the name of what comes out of it."""
        result = f"{name}.output"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [result], name=name, **attributes))
        return result


def _geometry(layer: Any) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution, in ONNX's words."""
    dilations, padding = _pair(layer.dilation), layer.padding
    if padding == "same":  # what is odd comes to the right and the bottom
        reach = [d * (k - 1) for d, k in zip(dilations, _pair(layer.kernel_size), strict=True)]
        pads = [*(r // 2 for r in reach), *(r - r // 2 for r in reach)]
    else:
        pads = _pair(0 if padding == "valid" else padding) * 2
    return {"strides": _pair(layer.stride), "pads": pads, "dilations": dilations, "group": layer.groups}


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def _reason(name: str, module: nn.Module) -> str:
    """Why a module cannot be written."""
    what = f"module {name!r}, {module._get_name()}, cannot be written to ONNX: "
    if isinstance(module, ObservedLayer):
        return what + "the network is only prepared, so call nn.convert first."
    if isinstance(module, DynamicLayer):
        return what + "the range of its input is found at run time; use static activations, or activations=None."
    return what + (
        "there are Linear, Conv2d padded with zeros, BatchNorm2d, ReLU, MaxPool2d, Flatten from axis 1, Dropout and "
        "Identity in an nn.Sequential, quantized or not."
    )
