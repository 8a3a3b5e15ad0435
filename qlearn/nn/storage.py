"""Save and load networks as safetensors: plain numbers with names, no code, no pickle.

Quantized layers are packed at their bit width, so the size of the file is the size of the network.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def save(model: torch.nn.Module, path: str | os.PathLike[str]) -> int:
    """Write a network's parameters and scales to a file, and return the file's size in bytes.

    The file appears under its name only when it is complete; an interrupted save leaves an older file as it was.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(torch.nn.Linear(10, 2), f"{folder}/layer.safetensors") > 4 * (10 * 2 + 2)
    True
    """
    path = Path(path)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}  # shared ones, too
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder, path.name)
        save_file(state, unfinished)
        os.replace(unfinished, path)
    return path.stat().st_size


def load(model: torch.nn.Module, path: str | os.PathLike[str]) -> torch.nn.Module:
    """Read a file written by `save` into a network of the same structure, and return the network.

    Raises:
        ValueError: a file that is not safetensors, or whose tensors are not those of this network
            (names what is missing, too many, or of the wrong size). The network is then left as it was.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(torch.nn.Linear(10, 2), f"{folder}/layer.safetensors")
    ...     load(torch.nn.Linear(10, 2), f"{folder}/layer.safetensors")
    Linear(in_features=10, out_features=2, bias=True)
    """
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}).") from error
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    other = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or extra or other:
        raise ValueError(
            f"{path} does not belong to this network: missing {missing or 'nothing'}, unexpected {extra or 'nothing'}, "
            f"of another size {sorted(other) or 'nothing'}. Prepare it with the same bits and granularity."
        )
    model.load_state_dict(state)
    return model
