"""Save and load networks as safetensors: plain numbers with names, no code, no pickle.

Quantized layers are packed at their bit width, so the size of the file is the size of the network. What their
numbers do not say by themselves (which codes, per channel or per group, static or dynamic) stands in the
file's head, and `load` compares it with the network.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qlearn.affine import QParams
from qlearn.config import QuantConfig
from qlearn.nn.folding import BATCH_NORMS
from qlearn.nn.integer_layers import DYNAMIC, quantized
from qlearn.nn.layers import quantized_layers
from qlearn.nn.linear_maps import LinearMap
from qlearn.nn.network import check_model, copy_exchanging, linear_maps, some_of
from qlearn.nn.prepared import SEEN, ObservedLayer

HEAD = "qlearn"  # under which the configurations stand in the file's head, as JSON; a later format: "qlearn 2", say


def save(model: torch.nn.Module, path: str | os.PathLike[str]) -> int:
    """Write a network's parameters and scales to a file, and return the file's size in bytes.

    The file appears under its name only when it is complete; an interrupted save leaves an older file as it was.
    What is used in several places, a module or a parameter, is written once, under its first name. Of a prepared
    network what its observers have seen is written, too, so that calibrating or training can go on.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(torch.nn.Linear(10, 2), f"{folder}/layer.safetensors") > 4 * (10 * 2 + 2)
    True
    """
    check_model(model)
    with whole(path) as unfinished:
        state = {name: tensor.contiguous().clone() for name, tensor in _state(model).items()}
        configurations = json.dumps(_configurations(model), separators=(",", ":"))
        save_file(state, unfinished, {HEAD: configurations})
    return Path(path).stat().st_size


def load(model: torch.nn.Module, path: str | os.PathLike[str]) -> torch.nn.Module:
    """Read a file written by `save` into a network of the same structure, and return the network.

    A float network will do for a file of a quantized one, without calibration: the file knows its configuration. What
    comes back is then a copy, in evaluation mode, in which the layers that the file has codes for are layers of codes;
    the float network stays as it is. Its batch norms have to be folded where those of the saved one were; what
    `prepare`, `use_codebook`, `add_adapters` or an online rotation put into the saved one has to be there first.

    Raises:
        ValueError: a file that is not safetensors, is cut short or of another format; one whose tensors are not those
            of this network (names what is missing, too many, or of another size or type) or whose layers were
            quantized in another way (names the layer and both ways); scales or codes that are impossible. The network
            is then left as it was.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(torch.nn.Linear(10, 2), f"{folder}/layer.safetensors")
    ...     load(torch.nn.Linear(10, 2), f"{folder}/layer.safetensors")
    Linear(in_features=10, out_features=2, bias=True)
    >>> from qlearn.nn.ptq import convert, prepare
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(convert(prepare(torch.nn.Linear(10, 2), activations=None)), f"{folder}/layer.safetensors")
    ...     load(torch.nn.Linear(10, 2), f"{folder}/layer.safetensors")
    WeightOnlyLinear(10 → 2, weights 8 bits per channel, input float)
    """
    check_model(model)
    state, configurations = _read(path)
    if configurations and not quantized_layers(model):
        model = _with_layers_of_codes(model, state, configurations, str(path))
    versions = getattr(model.state_dict(), "_metadata", {})  # of the modules, which some ask for
    own, file = (_without_seen(model, numbers) for numbers in (_state(model), state))
    others = list(_other_layers(configurations, _configurations(model))) or list(_other_kinds(file, own))
    if differences := [*_other_names(file, own, model), *others]:
        raise ValueError(f"{path} does not belong to this network: {'; '.join(differences)}.")
    trial = copy.deepcopy(model)
    for network in (trial, model):  # the real one only when nothing can go wrong any more
        state._metadata = versions  # type: ignore[attr-defined]
        network.load_state_dict(state, strict=False)
        for name, layer in quantized_layers(network).items():
            try:
                layer.check()
            except ValueError as error:
                raise ValueError(f"{path} holds impossible numbers: layer {name!r} has {error}") from error
    return model


def writable(path: str | os.PathLike[str], what: str = "file") -> Path:
    """The path of a file or "folder" that is to be written.

    Raises:
        TypeError: no path.  FileNotFoundError: its folder is missing.
        IsADirectoryError, NotADirectoryError: it is a folder itself, or a file where a folder is wanted.
    """
    path = _path(path, what)
    if what == "file" and path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: wanted is the name of a file in it.")
    if what == "folder" and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: wanted is the name of a folder.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: make it first, or write somewhere else.")
    return path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a file in here; it gets its own name when it is complete.

    Raises:
        TypeError, FileNotFoundError, IsADirectoryError: as `writable`.
    """
    path = writable(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder, path.name)
        yield unfinished
        os.replace(unfinished, path)


def readable(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is to be read.

    Raises:
        TypeError: no path.  FileNotFoundError: no such file.
    """
    path = _path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    return path


def _path(path: str | os.PathLike[str], what: str = "file") -> Path:
    if not isinstance(path, (str, os.PathLike)):
        argument = "path" if what == "file" else what
        raise TypeError(f"{argument} is a {type(path).__name__}: wanted is the name of a {what}.")
    return Path(path)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The file's tensors, and how its layers were quantized."""
    try:
        with safe_open(readable(path), framework="pt") as file:
            state = OrderedDict((name, file.get_tensor(name)) for name in list(file.keys()))
            head = file.metadata() or {}
            configurations = json.loads(head.get(HEAD, "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}).") from error
    if others := [key for key in head if key.startswith(f"{HEAD} ")]:  # one key: of several, safetensors has no order
        raise ValueError(f"{path} is of format {others[0]!r}: this version of qlearn reads {HEAD!r}.")
    return state, configurations


def _with_layers_of_codes(
    model: torch.nn.Module, state: dict[str, Tensor], configurations: dict[str, Any], path: str
) -> torch.nn.Module:
    """A copy in which float layers are quantized as the file says, their numbers still to come; or the model itself."""
    layers = linear_maps(model)
    if not configurations.keys() <= layers.keys():
        return model  # of another network: `load` says in what they differ
    new: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, configuration in configurations.items():
        prefix = f"{name}." if name else ""
        parts = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        try:
            new[layers[name]] = _layer_of_codes(layers[name], parts, configuration, name)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not belong to this network: layer {name!r}: {error}") from error
    return copy_exchanging(model, new).eval()


def _layer_of_codes(layer: Any, parts: dict[str, Tensor], configuration: dict[str, Any], name: str) -> torch.nn.Module:
    """A layer of codes with the shapes that a file has for it."""
    (low, high), outputs = configuration["codes"], LinearMap.of(layer).outputs
    if len(channels := parts["weight_scale"].shape) and channels[0] != outputs:
        raise ValueError(f"{channels[0]} output channels in the file, {outputs} in the network.")
    zero_point = torch.zeros(parts["weight_zero_point"].shape, dtype=torch.int32)
    weights = QParams(torch.ones(parts["weight_scale"].shape), zero_point if zero_point.ndim else 0, low, high)
    inputs: QParams | QuantConfig | None = None
    if "input_scale" in parts:
        inputs = QParams(1.0, 0, *configuration["input codes"])
    elif "input codes" in configuration:
        low, high = configuration["input codes"]
        granularity = next(g for g, end in DYNAMIC.items() if configuration["inputs"].endswith(end))
        inputs = QuantConfig((high - low).bit_length(), symmetric=low < 0, narrow_range=low == -high,
                             granularity=granularity, method="dynamic")  # fmt: skip
    if layer.bias is None and ("bias" in parts or "bias_codes" in parts):  # bias correction gave it one
        layer = copy.deepcopy(layer)
        layer.bias = torch.nn.Parameter(layer.weight.new_zeros(outputs))
    return quantized(layer, weights, inputs, name)


def _state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a model, in which what is used in several places has its first name only."""
    first = dict(model.named_modules())
    again = tuple(f"{name}." for name, _ in model.named_modules(remove_duplicate=False) if name not in first)
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith(again) and name not in tied}


def _without_seen(model: torch.nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without what observers have seen, which is of another size in each network."""
    observed = [name for name, module in model.named_modules() if isinstance(module, ObservedLayer)]
    seen = tuple(f"{name}.{SEEN}" if name else SEEN for name in observed)
    return {name: tensor for name, tensor in state.items() if not name.startswith(seen)}


def _configurations(model: torch.nn.Module) -> dict[str, Any]:
    """Layer name → how it is quantized, as it comes back from JSON."""
    return json.loads(json.dumps({name: layer.configuration for name, layer in quantized_layers(model).items()}))


def _other_names(file: dict[str, Tensor], network: dict[str, Tensor], model: torch.nn.Module) -> Iterator[str]:
    if missing := sorted(network.keys() - file.keys()):
        yield f"missing in the file: {some_of(missing)}"
        norms = (name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS))
        if norm := next((name for name in norms if f"{name}.running_mean" in missing), ""):
            yield f"{norm!r} is a batch norm, which may have been folded: then nn.fold_batch_norm(model) before nn.load"
    if extra := sorted(file.keys() - network.keys()):
        yield f"not in the network: {some_of(extra)}"


def _other_layers(file: dict[str, Any], network: dict[str, Any]) -> Iterator[str]:
    """A sentence for each thing in which the layers of a file and of a network are quantized in another way."""
    for name in dict.fromkeys([*network, *file]):
        if name not in file or name not in network:
            here, there = ("network", "file") if name in network else ("file", "network")
            yield f"layer {name!r} is quantized in the {here} and not in the {there}"
            continue
        for what in dict.fromkeys([*network[name], *file[name]]):
            ours, theirs = network[name].get(what), file[name].get(what)
            if theirs != ours:
                yield f"layer {name!r} has {what} {_text(theirs)} in the file, {_text(ours)} in the network"


def _other_kinds(file: dict[str, Tensor], network: dict[str, Tensor]) -> Iterator[str]:
    """A sentence for each tensor that is of another size or type."""
    for name in sorted(network.keys() & file.keys()):
        if _kind(file[name]) != _kind(network[name]):
            yield f"{name} is {_kind(file[name])} in the file, {_kind(network[name])} in the network"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _text(value: Any) -> str:
    return " … ".join(map(str, value)) if isinstance(value, list) else str(value)
