"""Write a quantized network as an ONNX file, which runs without PyTorch and without this package.

The form is called QDQ. In front of each product stand the codes, and what turns them into numbers:

    x → QuantizeLinear → DequantizeLinear ─┐
    codes of weights → DequantizeLinear ───┼→ Gemm, MatMul, Conv or ConvTranspose
    codes of bias → DequantizeLinear ──────┘

A runtime that has integer products sees the pattern and multiplies the codes; every other computes in float on the
same numbers. `torch.export` records the network, with a twin in the place of each quantized layer that does these
steps as two operations of their own; `onnxscript` knows what all others are in ONNX, and here stands what the two are.
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlearn.affine import QParams, dequantize, quantize
from qlearn.datasets import write_whole
from qlearn.nn.codebook_layer import CodebookLayer
from qlearn.nn.integer_layers import DynamicLayer, StaticLayer
from qlearn.nn.layers import QuantizedLayer, quantized_layers
from qlearn.nn.network import carry_attributes, carry_parts, check_model, exchanged
from qlearn.nn.prepared import ObservedLayer
from qlearn.nn.storage import writable

OPSET = 21  # the first with 4-bit codes and with groups
INPUT, OUTPUT, BATCH = "input", "output", "N"
LARGEST = 2**31 - 1  # bytes of one file
SMALL = 1000  # values of a constant that is computed with beforehand; of larger ones, a second copy would be stored


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    input_shape: Sequence[int],
    *,
    input_dtype: torch.dtype = torch.float32,
    opset: int = OPSET,
) -> int:
    """Write a quantized network to an ONNX file with QuantizeLinear and DequantizeLinear; returns its size in bytes.

    Codes, scales and zero points are those of the network. Codes of weights are stored in the smallest type that
    ONNX has for them: 4 bits (INT4, UINT4) for 2 to 4 bits, 8 bits (INT8, UINT8) for 5 to 8. Inputs are quantized to
    8-bit types; where their codes are fewer, a Clip in front makes them so. All other numbers are float32.

    The file has the bytes that `summary` counts, for codes of 4 and 8 bits; for each scale of weights a zero point of
    at most 1 byte; for each channel with an integer bias 8 bytes, its scale and zero point; and up to 300 bytes for
    each operation.

    A runtime that computes the products in float, as this file says it, gives what the network gives, but for
    float32 rounding: next to a tie the code of an activation can be off by one. ONNX Runtime makes integer products
    of the pattern. On x86 processors without VNNI these saturate in 16 bits: set its session option
    "session.x64quantprecision" to "1", or "session.disable_quant_qdq" to "1" for products in float. Where only the
    weights are codes of 8 bits, it rounds the inputs of a Linear to 8 bits, too, unless
    "session.qdq_matmulnbits_accuracy_level" is "1".

    Args:
        model: any network that `torch.export` can record, from `convert`, static or weight-only; or a float network.
            It takes one tensor and gives one.
        path: of the file, which appears under its name only when it is complete.
        input_shape: of one example, without the batch: (1, 28, 28). The file takes batches of any size.
        input_dtype: of the input: torch.float32, or torch.int64 for tokens.
        opset: the version of ONNX's operations that the file is written in; 21 is read by ONNX Runtime from 1.18 on.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError: an input_shape, input_dtype or opset that is none.
        ValueError: an opset before 21, which has no codes of 4 bits and no groups, or one that onnx does not know; a
            module that cannot be written (names it); an input_shape that the network does not take; a file of more
            than 2 GiB. No file is made then.

    Cost: a second or more, for recording and translating; for a network of a hundred layers ten.
    Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, version 21.

    >>> import tempfile
    >>> from qlearn.nn import calibrate, convert, prepare
    >>> layer = convert(calibrate(prepare(nn.Linear(100, 8)), torch.rand(50, 100), progress=False))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     800 < export_onnx(layer, f"{folder}/layer.onnx", (100,)) < 2000
    True
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export_onnx() needs onnx and onnxscript ({error}): pip install onnx onnxscript.") from error
    check_model(model)
    path = writable(path)
    if not isinstance(input_shape, (tuple, list, torch.Size)) or not all(isinstance(n, Integral) for n in input_shape):
        raise TypeError(f"input_shape={input_shape!r} must be the shape of one example: (1, 28, 28).")
    if input_dtype not in (torch.float32, torch.int64, torch.int32):
        raise TypeError(f"input_dtype={input_dtype!r} must be torch.float32, or torch.int64 for tokens.")
    _check_opset(opset, onnx.defs.onnx_opset_version())
    twin = _twin(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the libraries will change themselves
        example = _example(twin, tuple(input_shape), input_dtype)
        written = _in_onnx(twin, _recorded(twin, example), opset)
    _tidy(written, twin, opset)
    content = _content(written)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"this network cannot be written to ONNX: {error}") from error
    write_whole(path, content)
    return len(content)


def _check_opset(opset: int, newest: int) -> None:
    if isinstance(opset, bool) or not isinstance(opset, Integral):
        raise TypeError(f"opset={opset!r} must be a whole number, such as {OPSET}.")
    if opset < OPSET:
        raise ValueError(f"opset={opset} is too old: codes of 4 bits, and groups, came with {OPSET}.")
    if opset > newest:
        raise ValueError(f"opset={opset} is newer than the installed onnx, which knows {newest} at most.")


# --- the two operations, as PyTorch does them -------------------------------------------------------------------------


@torch.library.custom_op(
    "qlearn::quantize_linear", mutates_args=(), schema="(Tensor x, Tensor scale, Tensor zero_point) -> Tensor"
)
def _quantize_linear(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """ONNX's QuantizeLinear with one scale; the zero point's type is that of the codes."""
    ends = torch.iinfo(zero_point.dtype)
    return quantize(x, QParams(scale, int(zero_point), ends.min, ends.max))


@torch.library.custom_op(
    "qlearn::dequantize_linear",
    mutates_args=(),
    schema="(Tensor codes, Tensor scale, Tensor zero_point, int axis, int block_size) -> Tensor",
)
def _dequantize_linear(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block_size: int) -> Tensor:
    """ONNX's DequantizeLinear: one scale for all (axis −1), one for each place of the axis, or one for each block."""
    ends, shape = torch.iinfo(codes.dtype), list(scale.shape)
    if axis >= 0 and not block_size:
        shape = [-1 if at == axis else 1 for at in range(codes.ndim)]
    zero_point = zero_point.int().reshape(shape)
    return dequantize(codes, QParams(scale.reshape(shape), zero_point, ends.min, ends.max))


@_quantize_linear.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


@_dequantize_linear.register_fake
def _(codes: Tensor, scale: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


def _translations() -> dict[Any, Any]:
    """The two, in ONNX."""
    from onnxscript import opset21 as op

    def quantize_linear(x: Any, scale: Any, zero_point: Any) -> Any:
        return op.QuantizeLinear(x, scale, zero_point)

    def dequantize_linear(codes: Any, scale: Any, zero_point: Any, axis: int, block_size: int) -> Any:
        where = {"axis": axis} if axis >= 0 else {}
        return op.DequantizeLinear(
            codes, scale, zero_point, **where, **({"block_size": block_size} if block_size else {})
        )

    ops = torch.ops.qlearn
    return {ops.quantize_linear.default: quantize_linear, ops.dequantize_linear.default: dequantize_linear}


# --- the network as the file will have it -----------------------------------------------------------------------------


REFUSED = {  # layers that ONNX has no words for, and why
    ObservedLayer: "the network is only prepared, so call nn.convert first.",
    DynamicLayer: "the range of its input is found at run time; use static activations, or activations=None.",
    CodebookLayer: "its codes are places in a list of levels.",
}


class QDQLayer(nn.Module):
    """A quantized layer as ONNX says it. Whoever reads its weights gets them behind a DequantizeLinear, too.

    >>> from qlearn.nn.layers import WeightOnlyLayer
    >>> layer = QDQLayer(WeightOnlyLayer(nn.Linear(4, 2), QParams(0.5, 0, -7, 7)))
    >>> sorted(layer.state_dict())
    ['bias_numbers', 'weight_codes', 'weight_scale', 'weight_zero_point']
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.map, self.bits, self.static = layer.map, layer.bits, isinstance(layer, StaticLayer)
        scale, codes = layer.weight_scale.detach(), layer.weight_codes
        self.shape, self.axis, self.block_size = tuple(codes.shape), -1, 0
        zero_point = layer.weight_zero_point.expand(scale.shape).to(codes.dtype)
        if scale.ndim and scale.numel() != len(codes):
            codes, self.axis = codes.flatten(1), 1
            self.block_size = codes.shape[1] // scale.shape[1]
        elif scale.ndim:
            self.axis, scale, zero_point = 0, scale.reshape(-1), zero_point.reshape(-1)
        self._constants(weight_codes=codes, weight_scale=scale, weight_zero_point=zero_point)
        self.clip = None
        if isinstance(layer, StaticLayer):
            (low, high), scale, zero_point = layer.input_limits, layer.input_scale, layer.input_zero_point
            dtype = torch.uint8 if low == 0 else torch.int8
            if (low, high) != (torch.iinfo(dtype).min, torch.iinfo(dtype).max):
                self.clip = float(scale * (low - zero_point)), float(scale * (high - zero_point))
            self._constants(input_scale=scale, input_zero_point=zero_point.to(dtype))
        if isinstance(layer, StaticLayer) and layer.bias_codes is not None:
            scales = layer.output_scale.float().reshape(-1).expand(len(layer.bias_codes))
            zeros = torch.zeros_like(layer.bias_codes)
            self._constants(bias_codes=layer.bias_codes, bias_scale=scales, bias_zero_point=zeros)
        elif layer.bias is not None:
            self._constants(bias_numbers=layer.bias)
        carry_attributes(layer, self)
        carry_parts(layer, self)

    @property
    def weight(self) -> Tensor:
        """As the float layer has it."""
        rows = torch.ops.qlearn.dequantize_linear(
            self.weight_codes, self.weight_scale, self.weight_zero_point, self.axis, self.block_size
        )
        return self.map.weight(rows.reshape(self.shape) if self.block_size else rows)

    @property
    def bias(self) -> Tensor | None:
        """As the float layer has it."""
        if getattr(self, "bias_codes", None) is None:
            return getattr(self, "bias_numbers", None)
        return torch.ops.qlearn.dequantize_linear(self.bias_codes, self.bias_scale, self.bias_zero_point, 0, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Real input → real output, as in ONNX."""
        x = input
        if self.static:
            x = x if self.clip is None else x.clamp(*self.clip)
            codes = torch.ops.qlearn.quantize_linear(x, self.input_scale, self.input_zero_point)
            x = torch.ops.qlearn.dequantize_linear(codes, self.input_scale, self.input_zero_point, -1, 0)
        weight = self.weight
        return self.map(x, self.map.rows(weight) if self.map.is_matrix else weight, self.bias)

    def _constants(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.register_buffer(name, value.detach().clone().contiguous())


def _twin(model: nn.Module) -> nn.Module:
    """A copy in float32 and eval mode, on the processor, in which quantized layers are QDQ layers.

    Raises:
        ValueError: a layer that ONNX has no words for.
    """

    for name, module in model.named_modules():
        for kind, why in REFUSED.items():
            if isinstance(module, kind):
                raise ValueError(_refusal(name, module, why))
    layers = quantized_layers(model)
    return exchanged(model, layers, lambda _, layer: QDQLayer(layer)).cpu().float().eval()


def _example(twin: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Two inputs of zeros, if the network takes such and gives one tensor.

    Raises:
        ValueError: it does not.
    """
    try:
        example = torch.zeros(2, *shape, dtype=dtype)
        output = twin(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"the network does not take an input_shape of {shape} with input_dtype={dtype}: {error}"
        ) from error
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the network gives a {type(output).__name__}: wanted is one that gives one tensor, such as a module whose "
            "forward calls it and returns the part that counts."
        )
    return example


# --- recording and translating ----------------------------------------------------------------------------------------


def _recorded(twin: nn.Module, example: Tensor) -> Any:
    """The network as a graph.

    Raises:
        ValueError: code that cannot be recorded; names the module.
    """
    try:
        sizes = ({0: torch.export.Dim(BATCH)},)
        return torch.export.export(twin, (example,), dynamic_shapes=sizes, strict=False)
    except Exception as error:  # whatever the code of a network may raise where a number is no number
        names = {module: name for name, module in twin.named_modules()}
        owners = [owner for owner in _locals(error, "self") if isinstance(owner, nn.Module)]
        running = [owner for owner in owners if owner in names] or [twin]
        why = f"torch.export cannot record its code for batches of any size ({_first_line(error)})."
        raise ValueError(_refusal(names[running[-1]], running[-1], why)) from error


def _in_onnx(twin: nn.Module, program: Any, opset: int) -> Any:
    """The graph in ONNX's operations.

    Raises:
        ValueError: an operation that ONNX does not have; names the module.
    """
    try:
        return torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=int(opset),
            custom_translation_table=_translations(),
            input_names=[INPUT],
            output_names=[OUTPUT],
            optimize=False,  # it would merge equal constants of several layers
            verbose=False,
        ).model
    except torch.onnx.errors.OnnxExporterError as error:
        nodes = [node for node in _locals(error, "node") if isinstance(node, fx.Node)]
        stack = list((nodes[-1].meta.get("nn_module_stack") or {"": ("", None)}).values()) if nodes else [("", None)]
        name = stack[-1][0]
        what = f"ONNX has no operation for {nodes[-1].target}." if nodes else _first_line(error)
        raise ValueError(_refusal(name, twin.get_submodule(name), what)) from error


def _locals(error: BaseException | None, name: str) -> Iterator[Any]:
    """The local variables of this name where an error and its causes happened, the innermost last."""
    while error is not None:
        yield from (
            frame.f_locals[name] for frame, _ in traceback.walk_tb(error.__traceback__) if name in frame.f_locals
        )
        error = error.__cause__


def _tidy(written: Any, twin: nn.Module, opset: int) -> None:
    """Fold what is constant, take out what only says how the file was made, and give names and narrow types."""
    _fold_constants(written, opset)
    _forget_its_making(written)
    _name_constants(written, twin)
    _name_codes(written)
    _name_batch(written)


def _fold_constants(written: Any, opset: int) -> None:
    """The graph in operations of this opset, without those whose results are known beforehand."""
    from onnx_ir.passes import common
    from onnxscript import optimizer, version_converter

    version_converter.convert_version(written, int(opset))  # older PyTorch leaves that to its user
    common.InlinePass()(written)
    logger = logging.getLogger(optimizer.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says what it leaves as it is
    optimizer.fold_constants(written, input_size_limit=SMALL)
    logger.setLevel(level)
    for node in written.graph.all_nodes():  # a convolution without a bias got one of zeros
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(written)
    for clean in (common.RemoveUnusedNodesPass, common.RemoveUnusedFunctionsPass, common.RemoveUnusedOpsetsPass):
        clean()(written)
    common.OutputFixPass()(written)
    common.NameFixPass()(written)


def _forget_its_making(written: Any) -> None:
    written.producer_name, written.producer_version, written.graph.name = "qlearn", None, "qlearn"
    nodes = list(written.graph.all_nodes())
    values = [*written.graph.initializers.values(), *written.graph.inputs]
    for part in (written, written.graph, *values, *nodes, *(value for node in nodes for value in node.outputs)):
        part.metadata_props.clear()
        part.doc_string = None


def _name_constants(written: Any, twin: nn.Module) -> None:
    """Constants of quantized layers are called "conv1.weight"; codes of up to 4 bits are stored in 4."""
    layers = {name: module for name, module in twin.named_modules() if isinstance(module, QDQLayer)}
    for name, layer in layers.items():
        for constant in layer.state_dict():
            value = written.graph.initializers.get(f"{name}.{constant}".lstrip("."))
            if value is None:  # nobody calls the layer, or nobody reads its bias
                continue
            if layer.bits <= 4 and constant in ("weight_codes", "weight_zero_point"):
                _store_in_four_bits(value)
            value.name = value.name.removesuffix("_codes").removesuffix("_numbers")


def _name_codes(written: Any) -> None:
    """The operations that make codes are called "conv1.codes"; from the second call of a layer on, "conv1.codes_2"."""
    called = Counter[str]()
    for node in written.graph.all_nodes():
        if node.op_type == "QuantizeLinear":
            name = node.inputs[1].name.removesuffix("input_scale") + "codes"
            called[name] += 1
            node.name = name + (f"_{called[name]}" if called[name] > 1 else "")
            node.outputs[0].name = f"{node.name}.output"


def _name_batch(written: Any) -> None:
    """The batch's size is called N, where PyTorch has a name of its own for it."""
    import onnx_ir as ir

    batch = str(written.graph.inputs[0].shape[0])
    for end in (*written.graph.inputs, *written.graph.outputs):
        sizes = (
            size if isinstance(size, int) else ir.SymbolicDim(str(size).replace(batch, BATCH)) for size in end.shape
        )
        end.shape = ir.Shape(sizes)


def _is_zero(value: Any) -> bool:
    """Whether a value in the graph is a constant that holds nothing but 0."""
    constant = value.const_value
    return constant is not None and not constant.numpy().any()


def _store_in_four_bits(value: Any) -> None:
    """Store a constant of 8-bit codes that need no more than 4."""
    import ml_dtypes
    import onnx_ir as ir

    codes = value.const_value.numpy()
    narrow = codes.astype(ml_dtypes.int4 if codes.dtype.kind == "i" else ml_dtypes.uint4)
    value.const_value = ir.tensor(narrow, name=value.name)
    value.type = ir.TensorType(value.const_value.dtype)


def _content(written: Any) -> bytes:
    """The bytes of the file.

    Raises:
        ValueError: more of them than one file can have.
    """
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in written.graph.initializers.values())
    if size > LARGEST:
        raise ValueError(f"this network has {size:,} bytes of numbers: an ONNX file holds {LARGEST:,} at most.")
    proto = ir.to_proto(written)
    del proto.graph.value_info[:]  # shapes in between, which every reader finds by itself
    return proto.SerializeToString()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _refusal(name: str, module: nn.Module, why: str) -> str:
    """Why a module cannot be written."""
    return f"module {name or 'model'!r}, {module._get_name()}, cannot be written to ONNX: {why}"
