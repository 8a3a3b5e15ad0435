"""The shipped CNN on arrays: what a learner's own function does to digits that the lessons do not show.

Its batch norms are folded, and the weights of a layer are rows of numbers, (O, I), as exercises have them. All sums are
float64: no digit hangs on a last bit, so an accuracy is the same on every processor. PyTorch is imported late, because
the other lessons work without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qlearn import datasets

LAYERS = ("conv1", "conv2", "linear")
DIGITS = 1_000  # every tenth of the test images: the noise of an accuracy is about 0.4 points
CALIBRATION = 500  # images from which the inputs of the layers are known


@dataclass(frozen=True)
class Layer:
    """A layer, and what is known of its inputs x.

    Attributes:
        weight, bias: (O, I) and (O,), float64.
        hessian, mean: the mean of x xᵀ, (I, I), and that of x, (I,).
    """

    weight: Any
    bias: Any
    hessian: Any
    mean: Any


def network() -> Any:
    """The network itself, its batch norms folded."""
    from qlearn import nn

    return nn.fold_batch_norm(nn.load_trained("cnn"))


def rows_of(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights (O, I) and the biases (O,) of a network built like this one, by layer, in float64."""
    found = {name: getattr(model, name) for name in LAYERS}
    return (
        {name: layer.weight.detach().flatten(1).double().numpy() for name, layer in found.items()},
        {name: layer.bias.detach().double().numpy() for name, layer in found.items()},
    )


@lru_cache(maxsize=1)
def layers() -> dict[str, Layer]:
    """The three layers. Whoever hands them to a learner hands over copies."""
    weights, biases = rows_of(network())
    seen: dict[str, Any] = {}
    _run(weights, biases, images()["calibration"], seen)
    return {name: Layer(weights[name], biases[name], *seen[name]) for name in LAYERS}


@lru_cache(maxsize=1)
def images() -> dict[str, Any]:
    """Images as the network takes them: "calibration", and "test", every tenth of the test images; its "labels"."""
    from qlearn import nn

    arrays = datasets.mnist_arrays()
    return {
        "calibration": nn.to_inputs(arrays.calibration.images[:CALIBRATION]).double(),
        "test": nn.to_inputs(arrays.test.images[::10]).double(),
        "labels": arrays.test.labels[::10].copy(),
    }


def logits(
    weights: Mapping[str, Any] | None = None, biases: Mapping[str, Any] | None = None, part: str = "test"
) -> Any:
    """(N, 10): what the network gives for these images.

    Args:
        weights, biases: layer → (O, I) and (O,), in the place of its own. Layers that are not named keep theirs.
        part: "test", the held-out digits, or "calibration".
    """
    own = layers()
    return _run(
        {name: layer.weight for name, layer in own.items()} | dict(weights or {}),
        {name: layer.bias for name, layer in own.items()} | dict(biases or {}),
        images()[part],
    )


def accuracy(weights: Mapping[str, Any] | None = None, biases: Mapping[str, Any] | None = None) -> float:
    """Percent of the held-out digits that are read rightly.

    >>> round(accuracy())
    99
    """
    return float(100 * np.mean(logits(weights, biases).argmax(axis=1) == images()["labels"]))


def _run(weights: Mapping[str, Any], biases: Mapping[str, Any], x: Any, seen: dict[str, Any] | None = None) -> Any:
    """The network's logits. Into `seen` goes, for each layer, what its inputs are like."""
    import torch
    from torch.nn import functional

    w, b = (
        {name: torch.from_numpy(np.array(values[name], dtype=np.float64)) for name in LAYERS}
        for values in (weights, biases)
    )
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            if seen is not None:
                seen[name] = _moments(functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1))
            kernel = w[name].reshape(len(w[name]), -1, 3, 3)
            x = functional.max_pool2d(functional.relu(functional.conv2d(x, kernel, b[name], padding=1)), 2)
        x = x.flatten(1)
        if seen is not None:
            seen["linear"] = _moments(x.T)
        return (x @ w["linear"].T + b["linear"]).numpy()


def _moments(columns: Any) -> tuple[Any, Any]:
    """The mean of x xᵀ and that of x over the columns x of (I, N)."""
    return (columns @ columns.T / columns.shape[1]).numpy(), columns.mean(1).numpy()
