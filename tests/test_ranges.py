"""Ranges: min-max, percentiles, and one for each block."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlearn import (
    PerAxis,
    PerGroup,
    PerTensor,
    QuantConfig,
    choose_qparams,
    fake_quantize,
    find_qparams,
    find_range,
    quantize,
)
from qlearn.range_search import clip_grid
from qlearn.ranges import kl_divergence
from strategies import arrays


@given(arrays())
def test_min_max_is_min_and_max(x):
    assert find_range(x) == (x.min(), x.max())
    lo, hi = find_range(torch.from_numpy(x))
    assert (lo.item(), hi.item()) == (x.min(), x.max())


@given(arrays(), st.floats(50, 100, exclude_min=True))
def test_percentile_equals_numpy_s(x, percentile):
    # In float64: numpy.percentile would round the percentage itself to float32 for float32 data.
    lo, hi = np.percentile(x.astype(np.float64), [100 - percentile, percentile])
    ours = find_range(x, "percentile", percentile=percentile)
    assert ours == pytest.approx((np.float32(lo), np.float32(hi)), rel=1e-6, abs=1e-30)  # one float32 step
    lo, hi = find_range(torch.from_numpy(x), "percentile", percentile=percentile)
    assert (lo.item(), hi.item()) == ours


@given(st.data(), st.sampled_from(["min_max", "percentile"]))
def test_ranges_of_blocks_are_ranges_of_their_values(data, method):
    x = data.draw(arrays(dims=3))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    lo, hi = find_range(x, method, granularity=PerAxis(axis))
    assert lo.shape == tuple(n if i == axis % x.ndim else 1 for i, n in enumerate(x.shape))
    each = [find_range(np.take(x, i, axis), method) for i in range(x.shape[axis])]
    assert [tuple(pair) for pair in zip(lo.reshape(-1), hi.reshape(-1), strict=True)] == each


def test_convolution_weights_per_output_channel():
    weight = torch.randn(8, 3, 5, 5, generator=torch.manual_seed(0))
    qparams = find_qparams(weight, symmetric=True, granularity=PerAxis(0))
    assert qparams.scale.shape == (8, 1, 1, 1)
    assert (quantize(weight, qparams).reshape(8, -1).abs().amax(1) == 127).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: find_range(x, "minmax"), "method='minmax' is not known; the methods are 'min_max', 'percentile'"),
        (lambda x: find_range(x, "percentile", percentile=50), r"percentile=50 must be more than 50 and at most 100"),
        (lambda x: find_range(x, "percentile", percentile=100.1), r"percentile=100.1 must be more than 50"),
        (lambda x: find_range(x, bits=99), "bits=99 must be a whole number from 1 to 16"),
        (lambda x: find_range(x, granularity=PerAxis(2)), r"PerAxis\(axis=2\): x has shape \(4, 6\), .* from -2 to 1"),
        (lambda x: find_range(x[0, 0], granularity=PerAxis(0)), "a single number has no axis"),
        (
            lambda x: find_range(x, granularity=PerGroup(4)),
            r"group_size=4 does not divide .* length 6. Sizes that do: 1, 2, 3, 6",
        ),
        (lambda x: PerGroup(0), "group_size=0 must be a whole number of 1 or more"),
        (lambda x: QuantConfig(bits=0), "bits=0 must be a whole number from 1 to 16"),
        (lambda x: QuantConfig(method="best"), "method='best' is not known"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((4, 6)))


def test_a_config_is_the_same_as_its_arguments():
    x = np.random.default_rng(0).normal(size=(4, 6))
    config = QuantConfig(bits=3, symmetric=True, granularity=PerAxis(0), narrow_range=False)
    direct = find_qparams(x, bits=3, symmetric=True, granularity=PerAxis(0), narrow_range=False)
    assert np.array_equal(config.find_qparams(x).scale, direct.scale)
    assert QuantConfig() == QuantConfig(granularity=PerTensor())


# Cross-entropy


def test_cross_entropy_is_the_grid_s_best():
    logits = np.random.default_rng(0).normal(size=(200, 10)) * 4
    logits[0, 0] = 60
    lo, hi = find_range(logits, "cross_entropy", bits=3)
    softmax = scipy.special.softmax(logits, axis=-1)

    def loss(a, b):
        x_hat = fake_quantize(logits, choose_qparams(a, b, bits=3))
        return -np.mean(np.sum(softmax * scipy.special.log_softmax(x_hat, axis=-1), axis=-1))

    grid = clip_grid(logits.min(), logits.max(), np.abs(logits).mean(), 100)
    losses = [loss(a, b) for a, b in zip(*grid, strict=True)]
    assert loss(lo, hi) <= min(losses)  # of the two zero points beside each, choose_qparams takes one
    assert loss(lo, hi) < loss(*find_range(logits, "min_max"))


# Entropy


@pytest.mark.parametrize("k", [7, 8, 20, 64])
def test_one_candidate_s_divergence_equals_scipy_s(k):
    counts = np.random.default_rng(0).integers(0, 50, size=64)
    counts[5] = 0
    p = counts[:k].astype(float)
    p[-1] += counts[k:].sum()
    q = np.zeros(k)
    for level in range(7):
        part = slice(level * k // 7, (level + 1) * k // 7)
        filled = counts[:k][part] > 0
        q[part] = np.where(filled, counts[:k][part].sum() / max(filled.sum(), 1), 0)
    assert kl_divergence(counts, k, 7) == pytest.approx(scipy.stats.entropy(p, q), rel=1e-12)


def test_entropy_clips_an_outlier_and_keeps_a_uniform_range():
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(size=100_000), 50.0)
    _, hi = find_range(x, "entropy", symmetric=True)
    assert 2 < hi < 10
    x = rng.uniform(-1, 1, size=100_000)
    assert find_range(x, "entropy", symmetric=True)[1] > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: find_range(x, "mse", candidates=1), "candidates=1 must be a whole number of 2 or more"),
        (lambda x: find_range(x[:, :1], "cross_entropy"), r"shape \(4, 1\): cross_entropy needs logits .* two classes"),
        (
            lambda x: find_range(x, "cross_entropy", granularity=PerAxis(0)),
            "'cross_entropy' finds one range for a whole tensor",
        ),
        (lambda x: find_range(x, "entropy", granularity=PerGroup(2)), "'entropy' finds one range for a whole tensor"),
        (lambda x: find_range(x, "entropy", bins=100), "bins=100 must be a whole number of at least 255"),
        (lambda x: find_range(x * np.nan, "mse"), "x holds 24 values that are not finite"),
    ],
)
def test_wrong_searches_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 6)))
