"""Rescaling a language model: the function stays, and SmoothQuant and AWQ choose factors as their papers say."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from qlearn import PerAxis, PerGroup, QuantConfig, datasets, fake_quantize, gptq
from qlearn import nn as qnn
from qlearn.nn.awq import awq, awq_factors
from qlearn.nn.language_model import LanguageModel, load_language_model, to_tokens, windows
from qlearn.nn.perplexity import perplexity
from qlearn.nn.rescaling import plant_outliers, sites
from qlearn.nn.site import Site, rescale
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
    with pytest.raises(
        ValueError, match="Sequential has no place that could be rescaled .behind '0', 'the output' reads it"
    ):
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


def test_each_kind_of_layer_divides_its_rows_and_multiplies_its_columns():
    """Powers of two change no bit in between, whatever stands there: groups, transposed convolutions, a Flatten."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 4, 2, groups=4), nn.LeakyReLU(), nn.Flatten(), nn.Linear(4 * 25, 5), nn.Dropout(0.5),
        nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3),
    ).eval()  # fmt: skip
    x = torch.randn(3, 2, 8, 8)
    changed = copy.deepcopy(model)
    found = sites(changed)
    assert [site.name for site in found] == ["0", "2", "4", "7", "10"] and [site.channels for site in found] == [
        6,
        4,
        4,
        5,
        6,
    ]
    rescale(changed, {site: 2.0 ** torch.randint(-3, 4, (site.channels,)) for site in found})
    with torch.no_grad():
        assert torch.equal(changed(x), model(x))
        assert not any(
            torch.equal(a.weight, b.weight) for a, b in zip(changed, model, strict=True) if hasattr(a, "weight")
        )


def test_factors_are_multiplied_in_float64_and_rounded_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    changed = copy.deepcopy(model)
    first, second = sites(changed)
    s, t = torch.rand(4, dtype=torch.float64) + 0.1, torch.rand(4, dtype=torch.float64) + 0.1
    rescale(changed, {first: s, second: t})
    assert torch.equal(changed[2].weight, (model[2].weight.double() * s / t[:, None]).float())
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="layer '0' has weights that are not finite"):
        rescale(model, {sites(model)[0]: s})


class Normed(nn.Module):
    """A norm of one's own: y = x / rms(x) · (offset + weight)."""

    def __init__(self, width, offset):
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.rand(width)), offset

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (self.offset + self.weight)


def test_a_norm_counts_where_its_output_scales_with_its_weight():
    model = nn.Sequential(Normed(4, 0.0), nn.Linear(4, 4), Normed(4, 1.0), nn.Linear(4, 2))
    assert [site.name for site in sites(model)] == ["0"]
    with pytest.warns(UserWarning, match="smoothed the inputs of 1 of 2 layers; left: 3 .it reads '2'"):
        smoothed = smooth(model, torch.randn(20, 4))
    assert torch.equal(smoothed[3].weight, model[3].weight) and not torch.equal(smoothed[1].weight, model[1].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_norms_of_any_float_type_are_found(dtype):
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 10)).to(dtype)
    x = torch.randn(30, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert [site.name for site in sites(model, [x])] == [site.name for site in sites(model)] == ["0"]
    assert (smooth(model, x)(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()


def test_grouped_queries_and_code_that_looks_at_values():
    """Four heads of queries, two of values; only a batch shows which head reads which."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
            self.output = nn.Linear(8, 8)

        def forward(self, x):
            if x.isnan().any():
                raise ValueError
            y = self.norm(x)
            q, k, v = (part(y).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (self.query, self.key, self.value))
            k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for part in (k, v))
            weights = (q @ k.mT).softmax(-1)
            return x + self.output((weights @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, x = Grouped(), torch.randn(3, 5, 8)
    with pytest.raises(ValueError, match="no place that could be rescaled"):
        sites(model)
    norm, value = sites(model, [x])
    assert value.reads.tolist() == [0, 1, 0, 1, 2, 3, 2, 3] and norm.channels == 8
    for changed in (smooth(model, [x]), awq(model, [x], FOUR_BITS, progress=False)):
        assert not torch.equal(changed.value.bias, model.value.bias)
        with torch.no_grad():
            torch.testing.assert_close(changed(x), model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(plant_outliers(model, batches=[x])(x), model(x))


def test_layers_that_no_batch_has_reached_may_read_it_too():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.experts = nn.LayerNorm(4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x):
            return self.experts[int(x.mean() > 0)](self.norm(x))

    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), Experts())
    with pytest.raises(ValueError, match="'0.experts.0', which the first batch does not reach, may read it"):
        smooth(nn.Sequential(Experts()), [torch.ones(2, 4)])
    with pytest.warns(UserWarning, match="which the first batch does not"):
        smooth(model, [torch.randn(2, 4)])


def tie_queries(model):
    model.blocks[1].attention.query.weight = model.blocks[0].attention.query.weight


def tie_head(model):
    model.head.weight = model.tokens.weight


def share_norm(model):
    model.blocks[1].norm2 = model.blocks[0].norm2


@pytest.mark.parametrize("tie", [tie_queries, tie_head, share_norm])
def test_shared_numbers_are_left_and_named(tie):
    torch.manual_seed(0)
    model, x = LanguageModel(width=16, heads=2, hidden=32, blocks=2).eval(), to_tokens("Call me Ishmael.")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    tie(model)
    for change in (
        lambda: smooth(model, [x]),
        lambda: awq(model, [x], FOUR_BITS, progress=False),
    ):
        with pytest.warns(UserWarning, match=r"left: [\s\S]*(shares\s+its\s+numbers|used\s+more\s+than\s+once)"):
            changed = change()
        with torch.no_grad():
            assert (changed(x) - model(x)).norm() <= 1e-5 * model(x).norm()
    with torch.no_grad():
        assert torch.equal(plant_outliers(model)(x), model(x))


def test_sites_that_are_handed_over():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), torch.randn(20, 4)
    site = Site("mine", model[1], (model[2],))
    smoothed = smooth(model, x, sites=[site])
    assert torch.equal(smoothed[0].weight, model[0].weight) and not torch.equal(smoothed[2].weight, model[2].weight)
    with torch.no_grad():
        torch.testing.assert_close(smoothed(x), model(x), rtol=1e-4, atol=1e-5)
    wrong = {
        "'2' is no linear map of 4 channels": Site("bad", nn.Linear(6, 4), (model[2],)),
        "its LayerNorm is no module of this model": Site("bad", nn.LayerNorm(6), (model[2],)),
        "'1' is no linear map of 6 channels": Site("bad", model[0], (model[1],)),
    }
    for message, bad in wrong.items():
        with pytest.raises(ValueError, match=message if "module" in message else "site 'bad': "):
            smooth(model, x, sites=[bad])
    with pytest.raises(ValueError, match="another site has '2' as a consumer already"):
        smooth(model, x, sites=[site, site])
    tied = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[2].weight = tied[1].weight
    pruned = copy.deepcopy(model)
    prune.l1_unstructured(pruned[2], "weight", 0.5)
    with pytest.raises(ValueError, match="layer '2' has weights that are computed before each call"):
        smooth(pruned, x, sites=[Site("1", pruned[1], (pruned[2],))])
    with pytest.raises(ValueError, match="'1' shares its numbers with '2'"):
        smooth(tied, x, sites=[Site("0", tied[0], (tied[1],))])


def test_convolutions_are_smoothed_and_rescaled_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(30, 2, 8, 8)
    with torch.no_grad():
        model[0].weight[1] *= 30
        smoothed, rescaled = smooth(model, x), awq(model, x, FOUR_BITS, progress=False)
        found = sites(model)
        before, after = largest_inputs(model, found, x), largest_inputs(smoothed, sites(smoothed), x)
        s = smoothing_factors(before["0"], model[2].weight.abs().amax((0, 2, 3)))
        torch.testing.assert_close(after["0"], before["0"] / s, rtol=1e-4, atol=0)
        for changed in (smoothed, rescaled):
            torch.testing.assert_close(changed(x), model(x), rtol=1e-4, atol=1e-4)
        error = {}
        for name, network in (("plain", model), ("rescaled", rescaled)):
            error[name] = (qnn.convert(qnn.prepare(network, FOUR_BITS, None))(x) - model(x)).norm()
    assert error["rescaled"] < error["plain"]


LIKE_THE_LARGE_ONES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("Llama", {"num_key_value_heads": 2}, 9),
        ("Llama", {"num_key_value_heads": 2, "attn_implementation": "eager"}, 9),
        ("Mistral", {"num_key_value_heads": 2}, 9),
        ("Qwen2", {"num_key_value_heads": 4}, 9),
        ("Gemma", {"num_key_value_heads": 2, "head_dim": 8}, 4),  # its norms are 1 + weight
        ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}, 8),
        ("GPTNeoX", {}, 5),
    ],
)
def test_language_models_of_any_maker(name, options, count):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=50, **LIKE_THE_LARGE_ONES, **options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    x = torch.randint(50, (2, 12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        wanted = model(x).logits
        assert len(sites(model, [x])) == count
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OPT's head is tied, GPTNeoX's GELU bends
            smoothed = smooth(model, [x])
        assert (smoothed(x).logits - wanted).norm() <= 1e-5 * wanted.norm()  # measured 6e-7
        if name != "Gemma":
            assert (plant_outliers(model, batches=[x])(x).logits - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("name", ["ViT", "DeiT"])
def test_vision_transformers_of_any_maker(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(image_size=32, patch_size=8, **LIKE_THE_LARGE_ONES)
    model, x = getattr(transformers, f"{name}ForImageClassification")(config).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), pytest.warns(UserWarning, match="left: .*fc2|output.dense"):
        wanted = model(x).logits
        assert len(sites(model, [x])) == 7
        assert (smooth(model, [x])(x).logits - wanted).norm() <= 1e-5 * wanted.norm()


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
    assert torch.equal(
        largest_inputs(model, sites(model), [batches[:3]])["blocks.1.mlp.up"], heard["down"].abs().amax((0, 1))
    )
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
    with pytest.raises(ValueError, match="grid=0 must be a whole number, 1 or more"):
        awq_factors([np.ones((1, 3))], np.eye(3), QuantConfig(), grid=0)


def test_no_outputs_get_worse_than_by_rounding_to_the_nearest(model, batches):
    planted, gains = plant_outliers(model, channels=20, factor=16.0), []
    names = {layer: name for name, layer in planted.named_modules()}
    products = qnn.hessians(planted, batches)
    for site in sites(planted):
        weights, h = [layer.weight.detach() for layer in site.consumers], products[names[site.consumers[0]]]
        nearest = sum(gptq.output_error(w, fake_quantize(w, FOUR_BITS.find_qparams(w)), h) for w in weights)
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
