"""The shipped network on arrays: what a learner's own function does to digits that the lessons do not show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from qlearn import datasets

DIGITS = 2_000  # every fifth of the test images: the noise of an accuracy is about 0.3 points
WEIGHTS = ("linear1.weight", "linear2.weight", "linear3.weight")


@lru_cache(maxsize=1)
def held_out() -> tuple[Any, Any]:
    """(images (2000, 784) float32, labels (2000,)) of the test set."""
    test = datasets.mnist_arrays().test
    return test.images[::5].reshape(DIGITS, -1).astype(np.float32) / 255, test.labels[::5]


def mlp_accuracy(changed: Mapping[str, Any] | None = None) -> float:
    """Percent of the held-out digits that the MLP of the lessons reads rightly.

    Args:
        changed: name → weights in the place of its own, "linear2.weight" for example.

    >>> round(mlp_accuracy())
    98
    """
    net = {**datasets.trained("mlp"), **(changed or {})}
    x, labels = held_out()
    for layer in ("linear1", "linear2"):
        x = np.maximum(x @ net[f"{layer}.weight"].T + net[f"{layer}.bias"], 0)
    logits = x @ net["linear3.weight"].T + net["linear3.bias"]
    return float(100 * np.mean(np.argmax(logits, axis=1) == labels))


def with_weights(change: Callable[[Any], Any]) -> float:
    """The same with each of the three weight matrices changed by a function."""
    net = datasets.trained("mlp")
    return mlp_accuracy({name: np.asarray(change(net[name])) for name in WEIGHTS})
