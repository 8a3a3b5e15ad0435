"""Write a quantized network as safetensors that others read: the layout `pack-quantized` of compressed-tensors.

model.safetensors, for each layer with codes of b bits, I inputs and O outputs:
    weight_packed     int32 (O, ceil(I · b / 32))     code + 2ᵇ⁻¹, as `packing.pack` lays bits, each row by itself
    weight_scale      float32 (O, groups), (O, 1) or (1,)
    weight_shape      int64 (2,)                      O and I, since a row is filled up to whole words
    bias              as it is; so is all that is no such layer
config.json:          "quantization_config" says for each layer how many bits and how many weights to a scale

ŵ = weight_scale · code
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qlearn.datasets import write_whole
from qlearn.nn.adapters import AdaptedLayer
from qlearn.nn.codebook_layer import CodebookLayer
from qlearn.nn.fake_quantize import FakeQuantize
from qlearn.nn.layers import QuantizedLayer, WeightOnlyLayer, quantized_layers
from qlearn.nn.network import check_model, grouped, linear_maps
from qlearn.nn.prepared import ObservedLayer
from qlearn.nn.storage import writable
from qlearn.packing import pack

WEIGHTS, CONFIG = "model.safetensors", "config.json"
WORD = 32  # bits of an int32, into which codes are packed
BITS = (4, 8)  # which divide a word, so that all versions of the layout agree


def write_compressed_tensors(model: nn.Module, folder: str | os.PathLike[str]) -> int:
    """Write a network's codes and scales in the layout of compressed-tensors, and return the size of both files.

    What vLLM and transformers read. They need a network of their own to put the numbers into; names are those of this
    one. Of a model of transformers its sizes are written, too, so AutoModelForCausalLM.from_pretrained(folder), or
    whatever class it is of, reads it back where compressed-tensors is installed. `config.json` is written last and an
    old one removed first: a folder that has one is complete.

    Args:
        model: from `convert`, with activations=None: symmetric codes of 4 or 8 bits in Linear layers, per tensor, per
            channel or in groups. What it left in float stays so.
        folder: made if it is not there; two files in it are replaced, others left alone.

    Raises:
        ValueError: no layer with codes; a layer or another module that the layout has no place for (names it, and why).
        TypeError: no folder's name.  FileNotFoundError, NotADirectoryError: nowhere to make it, or it is a file.

    Source: compressed-tensors 0.20, compressors/pack_quantized, https://github.com/vllm-project/compressed-tensors.

    >>> from qlearn import PerGroup, QuantConfig
    >>> from qlearn.nn import convert, prepare
    >>> config = QuantConfig(bits=4, symmetric=True, granularity=PerGroup(32))
    >>> network = convert(prepare(nn.Sequential(nn.Linear(64, 8)), config, None))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     _ = write_compressed_tensors(network, f"{place}/network")
    ...     content = json.loads(Path(place, "network", "config.json").read_text())
    >>> content["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"]
    32
    """
    layers = weight_only_layers(model)
    for name, layer in layers.items():
        if layer.bits not in BITS:
            raise ValueError(f"layer {name!r} has codes of {layer.bits} bits: pack-quantized is written for 4 and 8.")
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer with codes: call nn.prepare(…, None) and nn.convert.")
    tensors = dict(other_numbers(model))
    for name, layer in layers.items():
        tensors.update({inside(name, what): tensor for what, tensor in _parts(layer)})
    folder = writable(folder, "folder")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished.") as place:
        save_file({name: t.contiguous().clone() for name, t in tensors.items()}, Path(place, WEIGHTS), {"format": "pt"})
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(Path(place, WEIGHTS), folder / WEIGHTS)
    write_whole(folder / CONFIG, json.dumps(_config(model, layers), indent=2).encode())
    return sum((folder / name).stat().st_size for name in (WEIGHTS, CONFIG))


def weight_only_layers(model: nn.Module, allowed: Collection[str] = ("Linear",)) -> dict[str, QuantizedLayer]:
    """The layers of a network that have codes, if all are nothing but codes and scales of a matrix: name → layer.

    Args:
        allowed: the kinds of layers that a file has a place for.

    Raises:
        ValueError: a module whose numbers mean more than a file of weights can say; names it.

    >>> weight_only_layers(nn.Linear(2, 3))
    {}
    """
    check_model(model)
    for name, module in model.named_modules():
        where = f"module {name!r}, {module._get_name()},"
        if isinstance(module, (ObservedLayer, FakeQuantize)):
            raise ValueError(f"{where} is only prepared: call nn.convert first.")
        if isinstance(module, (AdaptedLayer, CodebookLayer)):
            raise ValueError(f"{where} holds more than codes and scales, for which files of others have no place.")
    layers = quantized_layers(model)
    if kinds := {name: layer.map.kind for name, layer in layers.items() if layer.map.kind not in allowed}:
        names = list(kinds)
        which = f"layer {names[0]!r} is a {kinds[names[0]]}" if len(names) == 1 else f"layers {grouped(kinds)} are none"
        raise ValueError(
            f"{which}: files of others have codes of Linear layers only; overrides={{{', '.join(names)!r}: None}} "
            "leaves the rest in float."
        )
    for name, layer in layers.items():
        if not isinstance(layer, WeightOnlyLayer):
            raise ValueError(f"layer {name!r} quantizes its input, too: use activations=None, which keeps it in float.")
        if layer.weight_limits[0] >= 0:
            raise ValueError(f"layer {name!r} has asymmetric codes: use QuantConfig(symmetric=True, …).")
    return layers


def other_numbers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a network holds beside its layers of codes: names and tensors. What is shared has its first name only."""
    modules = model.named_modules(remove_duplicate=False)
    of_layers = tuple(inside(name, "") for name, module in modules if isinstance(module, QuantizedLayer))
    seen = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith(of_layers) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach().cpu()


def inside(name: str, what: str) -> str:
    """The name of a part of a module: "head.bias"; of the whole network's own, "bias"."""
    return f"{name}.{what}" if name else what


def _parts(layer: QuantizedLayer) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a layer."""
    codes, scale = layer.weight_codes.cpu(), layer.weight_scale.detach().cpu()
    outputs, inputs = codes.shape
    yield "weight_packed", _words(codes, layer.bits)
    yield "weight_scale", scale if scale.ndim else scale.reshape(1)
    yield "weight_shape", torch.tensor([outputs, inputs])
    if layer.bias is not None:
        yield "bias", layer.bias.detach().cpu()


def _words(codes: Tensor, bits: int) -> Tensor:
    """Rows of signed codes as rows of int32; `pack`'s bytes, four to a word, the first the lowest."""
    filled = nn.functional.pad(codes.to(torch.int16) + 2 ** (bits - 1), (0, -codes.shape[1] % (WORD // bits)))
    return pack(filled, bits).reshape(len(codes), -1).view(torch.int32)


def _config(model: nn.Module, layers: dict[str, QuantizedLayer]) -> dict[str, Any]:
    """What config.json says: one group for all layers that are quantized alike, which it names."""
    groups: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        weights = _scheme(layer)
        group = groups.setdefault(json.dumps(weights), {"targets": [], "weights": weights})
        group["targets"].append(name)
    float_layers = [name for name, layer in linear_maps(model).items() if type(layer) is nn.Linear]
    return {
        **_sizes(model),
        "architectures": [type(model).__name__],
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {f"group_{i}": group for i, group in enumerate(groups.values())},
            "ignore": float_layers,
        },
    }


def _sizes(model: Any) -> dict[str, Any]:
    """What a model of transformers says of itself, for the class that is to read the file."""
    if not (hasattr(model, "get_output_embeddings") and hasattr(getattr(model, "config", None), "to_json_string")):
        return {}
    sizes = json.loads(model.config.to_json_string())
    if isinstance(model.get_output_embeddings(), QuantizedLayer):
        sizes["tie_word_embeddings"] = False  # codes are not what the embedding has
    return sizes


def _scheme(layer: QuantizedLayer) -> dict[str, Any]:
    """How a layer's weights are quantized, in the words of compressed-tensors."""
    scheme = {"num_bits": layer.bits, "type": "int", "symmetric": True, "strategy": "tensor"}
    if layer.weight_scale.ndim:
        groups = layer.weight_scale.shape[1]
        scheme["strategy"] = "channel" if groups == 1 else "group"
        if groups > 1:
            scheme["group_size"] = layer.weight_codes.shape[1] // groups
    return scheme
