"""Rescaling a language model: the function stays, and SmoothQuant and AWQ choose factors as their papers say."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qlearn import PerAxis, PerGroup, QuantConfig, datasets, fake_quantize, rounding
from qlearn import nn as qnn
from qlearn.nn.awq import awq, awq_factors
from qlearn.nn.language_model import LanguageModel, load_language_model, perplexity, to_tokens, windows
from qlearn.nn.rescaling import plant_outliers, sites
from qlearn.nn.smoothquant import largest_inputs, smooth, smoothing_factors

FOUR_BITS = QuantConfig(bits=4, symmetric=True, granularity=PerAxis(0))


@pytest.fixture(scope="module")
def model():
    return load_language_model()


@pytest.fixture(scope="module")
def batches():
    return windows(datasets.text_parts().calibration[:8300])[0]


@pytest.fixture(scope="module")
def text():
    return datasets.text_parts().validation[:8300]


def weight_only(model, config):
    return qnn.convert(qnn.prepare(model, config, None, overrides={"head": None}))


# --- sites ------------------------------------------------------------------------------------------------------------


def test_any_factors_leave_the_function(model):
    torch.manual_seed(0)
    changed, x = copy.deepcopy(model).double(), to_tokens("Call me Ishmael.")
    for site in sites(changed):
        site.rescale(torch.rand(site.channels, dtype=torch.float64) * 10 + 0.01)
    with torch.no_grad():
        assert torch.allclose(changed(x), copy.deepcopy(model).double()(x), atol=1e-9)


def test_every_linear_layer_of_a_block_reads_one_site(model):
    read = [layer for site in sites(model) for layer in site.consumers]
    assert len(read) == len(set(read)) == 4 * 7
    assert {type(site.producer) for site in sites(model)} == {nn.RMSNorm, nn.Linear}


def test_what_cannot_be_rescaled_is_said(model):
    with pytest.raises(ValueError, match="Sequential has no place that could be rescaled .0: 'the output' reads it"):
        sites(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="'blocks.0.attention.query' is a ObservedLayer: .* before nn.prepare"):
        sites(qnn.prepare(model, FOUR_BITS, None))


def test_planted_outliers_are_as_large_as_asked_and_change_nothing(model, batches):
    planted = plant_outliers(model, channels=3, factor=64.0)
    before, after = (largest_inputs(m, sites(m), batches[:4]) for m in (model, planted))
    for site in sites(model):
        ratio = after[site.name] / before[site.name]
        norm = isinstance(site.producer, nn.RMSNorm)
        assert sorted(ratio.round(decimals=3).tolist())[-4:] == ([1, 64, 64, 64] if norm else [1, 1, 1, 1])
    with torch.no_grad():
        assert torch.allclose(planted(batches[:2]), model(batches[:2]), atol=1e-4)
    with pytest.raises(ValueError, match="channels=193, factor=64.0: there are 192 channels"):
        plant_outliers(model, channels=193)


# --- SmoothQuant ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothing_shares_the_difficulty(alpha):
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0.1, 50, size=20), rng.uniform(0.01, 2, size=20)
    s = smoothing_factors(x, w, alpha)
    assert x / s == pytest.approx(x ** (1 - alpha) * w ** (1 - alpha))
    assert w * s == pytest.approx(x**alpha * w**alpha)


def test_smoothing_factors_on_both_libraries_and_for_silent_channels():
    x, w = np.array([4.0, 0.0, 9.0]), np.array([1.0, 2.0, 0.0])
    assert smoothing_factors(x, w).tolist() == [2.0, 1.0, 1.0]
    assert smoothing_factors(torch.tensor(x), torch.tensor(w)).tolist() == [2.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="alpha=1.5 must be from 0 to 1"):
        smoothing_factors(x, w, 1.5)


def test_largest_inputs_are_what_flows_into_the_layers(model, batches):
    heard = {}
    block = model.blocks[1]
    handle = block.mlp.down.register_forward_pre_hook(lambda _, x: heard.setdefault("down", x[0]))
    with torch.no_grad():
        model(batches[:3])
    handle.remove()
    assert torch.equal(largest_inputs(model, sites(model), [batches[:3]])["blocks.1.mlp.up"], heard["down"].abs().amax((0, 1)))
    in_parts = largest_inputs(model, sites(model), [batches[:1], batches[1:3]])["blocks.1.mlp.up"]
    assert torch.allclose(in_parts, heard["down"].abs().amax((0, 1)), rtol=1e-5)
    assert not block.mlp.down._forward_pre_hooks, "the hooks are gone"


def test_smoothing_saves_activations_of_8_bits_with_outliers(model, batches, text):
    """Outliers ruin activations with one scale for all; smoothed, the network is nearly as good as in float."""
    planted = plant_outliers(model, channels=2, factor=64.0)

    def at_8_bits(network):
        prepared = qnn.prepare(
            network, QuantConfig(bits=8, symmetric=True, granularity=PerAxis(0)), QuantConfig(bits=8)
        )
        return perplexity(qnn.convert(qnn.calibrate(prepared, batches, progress=False)), text)

    in_float = perplexity(model, text)
    assert perplexity(planted, text) == pytest.approx(in_float, rel=1e-4)
    plain, smoothed = at_8_bits(planted), at_8_bits(smooth(planted, batches))
    assert smoothed < 1.03 * in_float
    assert plain - in_float > 5 * (smoothed - in_float)


# --- AWQ --------------------------------------------------------------------------------------------------------------


def slow_search(weights, hessian, config, grid):
    """The formula, one exponent after the other, in NumPy."""
    root_mean_square = np.sqrt(np.diag(hessian))
    tried = []
    for step in range(grid + 1):
        s = root_mean_square ** (step / grid)
        s /= np.sqrt(s.max() * s.min())
        error = 0.0
        for w in weights:
            e = w - fake_quantize(w * s, config.find_qparams(w * s)) / s
            error += np.einsum("oi,ij,oj->", e, hessian, e)
        tried.append((error, s))
    return min(tried, key=lambda pair: pair[0])


def test_the_search_is_what_its_formula_says():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 12)) * 10.0 ** rng.uniform(-1, 1, size=12)
    weights, h = [rng.normal(size=(5, 12)), rng.normal(size=(7, 12))], x.T @ x / 500
    config = QuantConfig(bits=3, symmetric=True, granularity=PerGroup(6))
    error, s = slow_search(weights, h, config, 10)
    found, found_error = awq_factors(weights, h, config, grid=10)
    assert found == pytest.approx(s) and found_error == pytest.approx(error)
    tensors, as_tensor = [torch.tensor(w) for w in weights], torch.tensor(h)
    assert awq_factors(tensors, as_tensor, config, grid=10)[0].numpy() == pytest.approx(s)


def test_a_silent_channel_does_no_harm():
    h = np.diag([4.0, 0.0, 1.0])
    s, error = awq_factors([np.array([[0.3, 5.0, 1.0]])], h, QuantConfig(bits=3, symmetric=True))
    assert np.isfinite(s).all() and np.isfinite(error)
    s, error = awq_factors([np.ones((1, 3))], np.zeros((3, 3)), QuantConfig(bits=3, symmetric=True))
    assert s.tolist() == [1, 1, 1] and error == 0
    with pytest.raises(ValueError, match="grid=0 must be 1 or more"):
        awq_factors([np.ones((1, 3))], np.eye(3), QuantConfig(), grid=0)


def test_no_outputs_get_worse_than_by_rounding_to_the_nearest(model, batches):
    planted, gains = plant_outliers(model, channels=20, factor=16.0), []
    names = {layer: name for name, layer in planted.named_modules()}
    products = qnn.hessians(planted, batches)
    for site in sites(planted):
        weights, h = [layer.weight.detach() for layer in site.consumers], products[names[site.consumers[0]]]
        nearest = sum(rounding.output_error(w, fake_quantize(w, FOUR_BITS.find_qparams(w)), h) for w in weights)
        gains.append(nearest / awq_factors(weights, h, FOUR_BITS)[1])
    assert min(gains) >= 1 and max(gains) > 4


def test_awq_undoes_most_of_what_outliers_cost(model, batches, text):
    planted = plant_outliers(model, channels=20, factor=16.0)
    in_float, nearest = perplexity(model, text), perplexity(weight_only(planted, FOUR_BITS), text)
    rescaled = awq(planted, batches, FOUR_BITS, progress=False)
    assert perplexity(rescaled, text) == pytest.approx(in_float, rel=1e-3)
    assert nearest > 1.03 * in_float
    assert perplexity(weight_only(rescaled, FOUR_BITS), text) - in_float < 0.3 * (nearest - in_float)


def test_the_given_model_is_left_alone(model, batches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plant_outliers(model), smooth(model, batches[:1]), awq(model, batches[:1], FOUR_BITS, progress=False)
    assert isinstance(model, LanguageModel)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
