"""Write and read files of llama.cpp: GGUF, a list of named tensors in blocks (see `qlearn.gguf_blocks`).

The package `gguf` writes and reads the container: its head, names, shapes and where each tensor begins. What stands
in the tensors is ours.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlearn.formats import FLOAT16, cast
from qlearn.gguf_blocks import TYPES, BlockType, pack_q4_0, pack_q8_0
from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.linear_maps import LinearMap, rows_of
from qlearn.nn.network import linear_maps, naming, refuse_computed_weights, some_of
from qlearn.nn.packed_files import inside, other_numbers, weight_only_layers
from qlearn.nn.storage import readable, whole

ARCHITECTURE = "qlearn"  # what llama.cpp would look for in its list of networks, where it is not
MATRICES = ("Linear", "Conv1D")
# Types that hold the codes of a layer as they are: how, and from which code to which.
EXACT = {"Q8_0": (pack_q8_0, -128, 127), "Q4_0": (pack_q4_0, -8, 7)}


def write_gguf(
    model: nn.Module, path: str | os.PathLike[str], kind: str = "Q8_0", *, otherwise: str | None = None
) -> int:
    """Write a network as a GGUF file, and return the file's size in bytes.

    Of a float network, the weights of each Linear are rounded to blocks, with the rules of that type (and those of
    GPT-2's Conv1D, which lie the other way round in the network and output channels first in the file). Of a network
    with codes, these are stored as they are and never rounded again; their scales become float16, whose last bit is
    2⁻¹¹ of them, and what the network left in float stays so. All else is float32, or integers as they are.

    Any reader of GGUF finds the tensors, under the names they have here. llama.cpp runs networks whose architecture
    it knows, and this is none of them.

    Args:
        model: a float network, or one from `convert` with activations=None and symmetric codes.
        path: of the file, which appears under its name only when it is complete.
        kind: "Q8_0", "Q4_0", or, for a float network, "Q4_K".
        otherwise: the type of a Linear whose rows are no multiple of Q4_K's 256 values, and which is else refused.
            llama.cpp, too, takes another type there, Q5_0.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: an unknown type; a layer that the type cannot hold, or no layer at all. Names it.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.

    >>> write_gguf(nn.Linear(64, 8), "layer.gguf", "Q4_0")  # doctest: +SKIP
    576
    >>> write_gguf(nn.Linear(64, 8), "layer.gguf", "Q5_K")
    Traceback (most recent call last):
    ValueError: kind='Q5_K' must be one of 'Q8_0', 'Q4_0', 'Q4_K'.
    """
    for name, value in (("kind", kind), ("otherwise", otherwise)):
        known = isinstance(value, str) and value in TYPES
        if not known and not (name == "otherwise" and value is None):
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, TYPES))}.")
    layers = weight_only_layers(model, MATRICES)
    rounded = {} if layers else {n: m for n, m in linear_maps(model).items() if LinearMap.of(m).kind in MATRICES}
    if not layers and not rounded:
        raise ValueError(f"{type(model).__name__} has no Linear: nothing in it can be stored as {kind}.")
    tensors: dict[str, tuple[Any, str | None]] = {}
    for name, tensor in other_numbers(model):
        tensors[name] = _array(name, tensor), None
    refuse_computed_weights(rounded)
    for name, layer in rounded.items():
        weight = rows_of(layer).detach().float().cpu()
        fitting = _fitting(name, weight, kind, otherwise)
        with naming(name):
            tensors[inside(name, "weight")] = fitting.quantize(weight).numpy(), fitting.name
    for name, quantized in layers.items():
        tensors[inside(name, "weight")] = _stored(name, quantized, kind), kind
        if quantized.bias is not None:
            tensors[inside(name, "bias")] = _array(name, quantized.bias.detach().cpu()), None
    gguf = _gguf("write_gguf")
    with whole(path) as unfinished, closing(gguf.GGUFWriter(unfinished, ARCHITECTURE)) as writer:
        writer.add_name(type(model).__name__)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, (array, of) in tensors.items():
            writer.add_tensor(name, array, raw_dtype=None if of is None else gguf.GGMLQuantizationType[of])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return Path(path).stat().st_size


def list_gguf(path: str | os.PathLike[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors in a GGUF file: name → its type and shape.

    Raises: as `read_gguf_tensor`.

    >>> list_gguf("somebodys_model.gguf")  # doctest: +SKIP
    {'token_embd.weight': ('Q4_K', (32000, 4096)), …
    >>> list_gguf("no_model.gguf")
    Traceback (most recent call last):
    FileNotFoundError: there is no file no_model.gguf.
    """
    return {tensor.name: (tensor.tensor_type.name, _shape(tensor)) for tensor in _tensors(path, "list_gguf")}


def read_gguf_tensor(path: str | os.PathLike[str], name: str) -> Any:
    """Read one tensor of anybody's GGUF file as numbers: float32, NumPy, output channels first.

    The file is not read as a whole, so its size does not matter.

    Args:
        path: of the file.
        name: of a tensor in it, of type Q8_0, Q4_0, Q4_K, F32 or F16.

    Raises:
        ImportError: the package gguf is not installed.
        FileNotFoundError: no such file.
        ValueError: no GGUF file, one that is cut short, no tensor of that name, or one of another type.

    >>> read_gguf_tensor("somebodys_model.gguf", "output_norm.weight").shape  # doctest: +SKIP
    (4096,)
    >>> read_gguf_tensor("no_model.gguf", "output_norm.weight")
    Traceback (most recent call last):
    FileNotFoundError: there is no file no_model.gguf.
    """
    tensors = {tensor.name: tensor for tensor in _tensors(path, "read_gguf_tensor")}
    if name not in tensors:
        raise ValueError(f"{path} has no tensor {name!r}; it has {some_of(list(tensors)) or 'none'}.")
    tensor, kind = tensors[name], tensors[name].tensor_type.name
    if kind in ("F32", "F16"):
        return np.array(tensor.data, np.float32)
    if kind not in TYPES:
        raise ValueError(f"{name!r} in {path} has the type {kind}; read are {', '.join(TYPES)}, F32 and F16.")
    return TYPES[kind].dequantize(np.array(tensor.data)).reshape(_shape(tensor))


def _gguf(caller: str) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"{caller}() needs the package gguf ({error}): pip install gguf.") from error
    return gguf


def _tensors(path: str | os.PathLike[str], caller: str) -> list[Any]:
    """What the package's reader finds in a file."""
    with open(readable(path), "rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file: it begins with {start!r} and not with b'GGUF'.")
    try:
        return _gguf(caller).GGUFReader(path).tensors
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{path} is cut short, or damaged ({error}).") from error


def _shape(tensor: Any) -> tuple[int, ...]:
    """GGUF counts axes from the last one."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _fitting(name: str, weight: Tensor, kind: str, otherwise: str | None) -> BlockType:
    """The first of two types whose blocks fill the rows of these weights."""
    inputs = weight.shape[-1]
    for tried in (kind, otherwise or kind):
        if inputs % TYPES[tried].values == 0:
            return TYPES[tried]
    ways = "; with otherwise='Q4_0' or 'Q8_0' such layers are of that type" if inputs % 32 == 0 else ""
    raise ValueError(
        f"layer {name!r} has rows of {inputs} weights: {kind} takes multiples of {TYPES[kind].values}{ways}."
    )


def _stored(name: str, layer: QuantizedLayer, kind: str) -> Any:
    """The codes of a layer as blocks of that type, with the scales that they have."""
    codes, scale = layer.weight_codes.cpu().numpy(), layer.weight_scale.detach().cpu().numpy()
    outputs, inputs = codes.shape
    if kind not in EXACT:
        raise ValueError(f"layer {name!r} has codes, and scales that {kind} cannot hold: write the float network.")
    packed, low, high = EXACT[kind]
    if layer.weight_limits[0] < low or layer.weight_limits[1] > high:
        raise ValueError(f"layer {name!r} has codes of {layer.bits} bits: those of {kind} run from {low} to {high}.")
    size = inputs // scale.shape[1] if scale.ndim else inputs
    if size % 32:
        raise ValueError(f"layer {name!r} has {size} weights to a scale: {kind} takes multiples of 32.")
    short = cast(scale, FLOAT16)
    if not np.all(short > 0) or scale.max() > FLOAT16.largest:
        raise ValueError(
            f"layer {name!r} has scales from {scale.min():g} to {scale.max():g}: {kind} stores them as float16, from "
            f"{FLOAT16.smallest:g} to {FLOAT16.largest:g}."
        )
    each = np.broadcast_to(np.repeat(short, size // 32, axis=1) if scale.ndim else short, (outputs, inputs // 32))
    return packed(codes.reshape(outputs, -1, 32), each[..., None])


def _array(name: str, tensor: Tensor) -> Any:
    """Numbers that are not quantized, as the file has them."""
    if tensor.is_floating_point():
        return tensor.float().numpy()
    if tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        return tensor.numpy()
    raise ValueError(f"{name!r} has dtype {tensor.dtype}, for which GGUF has no type.")
