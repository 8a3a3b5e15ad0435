"""The data of several explorers: what real tensors look like, each in its own way, without a deep-learning library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlearn.arrays import as_array
from qlearn.datasets import mnist_arrays, trained
from qlearn.widgets.panels import Bins, decades
from qlearn.widgets.search import mean_magnitude
from qlearn.widgets.values import Values, as_numpy

COUNT = 100_000
MLP_LAYERS = ("linear1", "linear2", "linear3")


@dataclass(frozen=True)
class Source:
    """Values, and what the axes need to know about them.

    Attributes:
        values: sorted, with their outliers.
        bins: of the histograms.
        mean: of |x|.
        errors: the powers of ten between which the errors lie.
        logits: the values as they came, (…, C), if they are logits.
        labels: the right class of each row of logits, (…), if it is known.
    """

    values: Values
    bins: Bins
    mean: float
    errors: tuple[int, int]
    logits: Any = None
    labels: Any = None

    @classmethod
    def of(cls, x: Any, *, logits: bool = False, labels: Any = None) -> Source:
        """The source of these values, with everything it takes to draw them."""
        x = as_numpy(x)
        if logits or labels is not None:
            labels = _checked(x, labels)
        values = Values(x)
        power = values.base.squares / len(values.base) or 1.0
        return cls(
            values=values,
            bins=Bins(values.unit, values.reach),
            mean=mean_magnitude([values.base]) or 1.0,
            errors=decades([2e-5 * power, 5 * power]),
            logits=x if logits or labels is not None else None,
            labels=labels,
        )


def normal(count: int = COUNT) -> Any:
    """Values of the standard normal distribution."""
    return np.random.default_rng(0).standard_normal(count, dtype=np.float32)


def laplace(count: int = COUNT) -> Any:
    """Values of the Laplace distribution with standard deviation 1: more of them far out."""
    return np.random.default_rng(0).laplace(scale=math.sqrt(0.5), size=count).astype(np.float32)


def relu() -> Any:
    """The normal values after a ReLU: half of them are 0, and none is below."""
    return np.maximum(normal(), 0)


def weights() -> Any:
    """The 78,400 weights of the trained MLP's first layer."""
    return trained("mlp")["linear1.weight"]


def activations() -> Any:
    """What the first layer gives for the 1,000 calibration images, after its ReLU: 100,000 values."""
    return mlp_outputs(mnist_arrays().calibration.images)[0]


def logits() -> Source:
    """The 1,000 × 10 logits of the trained MLP for the calibration images, with the right digits."""
    images, labels = mnist_arrays().calibration
    return Source.of(mlp_outputs(images)[-1], labels=labels)


# What the learner reads, and what makes the values.
SOURCES: dict[str, tuple[str, Callable[[], Source]]] = {
    "normal": ("normal", lambda: Source.of(normal())),
    "laplace": ("Laplace", lambda: Source.of(laplace())),
    "relu": ("after a ReLU", lambda: Source.of(relu())),
    "weights": ("MLP: weights", lambda: Source.of(weights())),
    "activations": ("MLP: activations", lambda: Source.of(activations())),
    "logits": ("MLP: logits", logits),
}


def mlp_outputs(images: Any) -> list[Any]:
    """What each layer of the trained MLP gives for these images, after its ReLU where it has one.

    Added up in float64 and rounded to float32: sums in float32 end in other digits on another processor.
    """
    return [output.astype(np.float32) for output in through_mlp(trained("mlp"), images)]


def through_mlp(net: Mapping[str, Any], images: Any) -> list[Any]:
    """What each layer of an MLP with these weights gives for images, in float64."""
    outputs = [images.reshape(len(images), -1) / 255]
    for layer in MLP_LAYERS:
        y = outputs[-1] @ net[f"{layer}.weight"].T.astype(np.float64) + net[f"{layer}.bias"]
        outputs.append(y if layer == MLP_LAYERS[-1] else np.maximum(y, 0))
    return outputs[1:]


def _checked(x: Any, labels: Any) -> Any:
    """The labels as an array, if they belong to these logits."""
    if x.ndim < 2 or x.shape[-1] < 2:
        raise ValueError(f"x has shape {x.shape}: logits have shape (rows, classes), with two classes or more.")
    if labels is None:
        return None
    labels = np.asarray(as_array(labels))
    if (
        labels.shape != x.shape[:-1]
        or labels.dtype.kind not in "iu"
        or not (0 <= labels.min() <= labels.max() < x.shape[-1])
    ):
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}: logits of shape {x.shape} need one whole "
            f"number from 0 to {x.shape[-1] - 1} a row, shape {x.shape[:-1]}."
        )
    return labels
