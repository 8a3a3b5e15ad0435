"""The network of lesson 04 on integers: what a learner's own step in it does to digits that the lessons do not show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qlearn import datasets
from qlearn.affine import choose_qparams, quantize
from qlearn.exercises.networks import held_out
from qlearn.integer import matmul
from qlearn.ranges import find_qparams

CODES = 400_000  # of 2,000 digits, after the two layers that have a ReLU


@dataclass(frozen=True)
class Layer:
    """One layer, prepared: codes of its weights (I, O), its real bias, scales and zero points, and s_x · s_w / s_y."""

    w_codes: Any
    bias: Any
    x_scale: float
    w_scale: float
    x_zero_point: int
    w_zero_point: int
    factor: float


@lru_cache(maxsize=2)
def layers(symmetric: bool = True) -> tuple[Layer, ...]:
    """The three layers, with ranges of outputs from the calibration images, in float64.

    >>> [layer.w_zero_point for layer in layers()]
    [0, 0, 0]
    """
    net, prepared = datasets.trained("mlp"), []
    x = datasets.mnist_arrays().calibration.images.reshape(-1, 784) / 255
    inputs = choose_qparams(0.0, 1.0)
    for name in ("linear1", "linear2", "linear3"):
        w, bias = net[f"{name}.weight"], net[f"{name}.bias"]
        x = np.maximum(x @ w.T + bias, 0)
        weights, outputs = find_qparams(w, symmetric=symmetric), choose_qparams(0.0, x.max())
        x_scale, w_scale = float(inputs.scale), float(weights.scale)
        zero_points = int(inputs.zero_point), int(weights.zero_point)
        factor = x_scale * w_scale / float(outputs.scale)
        prepared.append(Layer(quantize(w, weights).T, bias, x_scale, w_scale, *zero_points, factor))
        inputs = outputs
    return tuple(prepared)


def to_codes(whole: Any) -> Any:
    """What a layer with a ReLU gives out: zero point 0, clamped to 0 … 255.

    >>> to_codes(np.array([-3, 7, 300]))
    array([  0,   7, 255])
    """
    return np.clip(whole, 0, 255)


def nearest(sums: Any, factor: float) -> Any:
    """sums · factor to the nearest whole number, in float64: on these sums that is what exact fractions give.

    >>> nearest(np.array([10, 11]), 0.3)
    array([3, 3])
    """
    return np.rint(sums * factor).astype(np.int64)


def bias_codes(bias: Any, x_scale: float, w_scale: float) -> Any:
    """A bias on the accumulator's grid.

    >>> bias_codes(np.array([0.3]), 0.02, 0.005)
    array([3000])
    """
    return np.rint(bias / (x_scale * w_scale)).astype(np.int64)


def sums_of(layer: Layer, codes: Any, bias: Callable[..., Any] = bias_codes) -> Any:
    """A layer's accumulators, int64."""
    zero_points = {"a_zero_point": layer.x_zero_point, "b_zero_point": layer.w_zero_point}
    acc = matmul(codes, layer.w_codes, **zero_points).astype(np.int64)
    return acc + bias(layer.bias, layer.x_scale, layer.w_scale)


@lru_cache(maxsize=1)
def images() -> Any:
    """Codes of the 2,000 held-out digits: their bytes."""
    return np.rint(held_out()[0] * 255).astype(np.uint8)


def digits_read(
    rescale: Callable[[Any, float], Any] = nearest,
    *,
    sums: Callable[[Layer, Any], Any] = sums_of,
    symmetric: bool = True,
    every: int = 1,
) -> int:
    """How many of the 2,000 digits the network reads rightly. The largest sum of its last layer is the digit.

    Args:
        rescale: (sums, factor) → whole numbers, before the clamp.
        sums: (layer, codes) → its accumulators.
        symmetric: weights without a zero point, or with one.
        every: 10 for every tenth digit only.

    >>> 1900 < digits_read() < 2000
    True
    """
    *hidden, output = layers(symmetric)
    codes = images()[::every]
    for layer in hidden:
        codes = to_codes(np.asarray(rescale(np.asarray(sums(layer, codes)), layer.factor))).astype(np.int64)
    return int(np.sum(np.argmax(sums(output, codes), axis=1) == held_out()[1][::every]))


@lru_cache(maxsize=1)
def exact() -> tuple[tuple[Any, float, Any], ...]:
    """(sums, factor, codes) of the two layers with a ReLU, every code the nearest one."""
    codes, found = images(), []
    for layer in layers()[:2]:
        acc = sums_of(layer, codes)
        codes = to_codes(nearest(acc, layer.factor))
        found.append((acc, layer.factor, codes))
    return tuple(found)


def codes_off(rescale: Callable[[Any, float], Any]) -> int:
    """How many of the 400,000 codes are not the nearest ones, when each layer gets the right input.

    >>> codes_off(nearest)
    0
    """
    return int(sum(np.sum(to_codes(np.asarray(rescale(acc.copy(), f))) != codes) for acc, f, codes in exact()))
