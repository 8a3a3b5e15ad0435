"""Language models as they are downloaded: saved and loaded by the library they come from, and then quantized here.

Configurations of five families, as small as they can be, with random weights.
"""

import warnings

import pytest
import torch

from qlearn import PerAxis, PerGroup, QuantConfig, fake_quantize, gptq
from qlearn import nn as qnn
from qlearn.nn.linear_maps import LinearMap, as_blocks, rows_of
from qlearn.nn.network import linear_maps

transformers = pytest.importorskip("transformers")

VOCABULARY, WINDOW = 96, 16
SIZES = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": VOCABULARY}
LIKE_LLAMA = {**SIZES, "intermediate_size": 384, "num_key_value_heads": 2}
GPT2 = {"n_embd": 128, "n_layer": 1, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}
FAMILIES = {
    "Llama": ("LlamaConfig", {**LIKE_LLAMA, "tie_word_embeddings": True}),
    "Qwen2": ("Qwen2Config", {**LIKE_LLAMA, "tie_word_embeddings": True}),
    "Qwen3": ("Qwen3Config", {**LIKE_LLAMA, "head_dim": 32}),
    "Mistral": ("MistralConfig", {**LIKE_LLAMA, "sliding_window": 8}),
    "GPT-2": ("GPT2Config", {**GPT2, "bos_token_id": 0, "eos_token_id": 0}),
    "OPT": ("OPTConfig", {**SIZES, "ffn_dim": 512, "word_embed_proj_dim": 128, "max_position_embeddings": 64}),
}
BY_GROUP = QuantConfig(bits=4, symmetric=True, granularity=PerGroup(128))
BY_CHANNEL = QuantConfig(bits=4, symmetric=True, granularity=PerAxis(0))


def forward(model, tokens):
    return model(tokens, use_cache=False).logits


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module", params=FAMILIES)
def downloaded(request, tmp_path_factory):
    """(model, tokens, logits). Its numbers are scattered: some channels are large, norms are not all ones."""
    torch.manual_seed(0)
    config, options = FAMILIES[request.param]
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(torch.exp(0.5 * torch.randn(parameter.shape[-1]))).add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    assert list(folder.glob("*.safetensors")) and not list(folder.glob("*.bin"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(0, VOCABULARY, (32, WINDOW), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(forward(model, tokens), forward(made.eval(), tokens))
        return model, tokens, forward(model, tokens)


@pytest.fixture(autouse=True)
def quiet():
    """What stays in float, and what cannot be rescaled, is said in warnings, which other tests look at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def without_tied_head(model):
    """Overrides that leave a head in float whose numbers are those of the embedding."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return {"lm_head": None} if tied else {}


@pytest.mark.parametrize(
    "repair",
    [
        lambda model, x: qnn.smooth(model, [x], forward=forward),
        lambda model, x: qnn.awq(model, [x], BY_GROUP, forward=forward, progress=False),
        lambda model, x: qnn.awq(model, [x], BY_CHANNEL, forward=forward, progress=False),
        lambda model, x: qnn.plant_outliers(model, batches=[x], forward=forward),
    ],
    ids=["smooth", "awq by group", "awq by channel", "plant_outliers"],
)
def test_the_function_is_kept(downloaded, repair):
    """And the weights are not: each family has places that are rescaled."""
    model, tokens, wanted = downloaded
    repaired = repair(model, tokens)
    with torch.no_grad():
        assert relative(forward(repaired, tokens), wanted) < 1e-4  # measured: 2e-7 to 3e-6
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), repaired.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 3


@pytest.mark.parametrize("weights", [BY_GROUP, BY_CHANNEL], ids=["by group", "by channel"])
def test_gptq_is_better_than_nearest_in_each_layer(downloaded, weights):
    """In what it makes small, on the inputs it was shown, as they reach the layer."""
    model, tokens, wanted = downloaded
    prepared = qnn.prepare(model, weights, None, without_tied_head(model))
    rounded = qnn.gptq(prepared, [tokens], forward=forward, progress=False)
    products = qnn.hessians(rounded, [tokens], forward=forward)  # those of before, but for the last rounding
    count = 0
    for name, layer in linear_maps(model).items():
        if f"{name}.layer" not in products:
            continue
        h, rows = products[f"{name}.layer"], rows_of(layer).detach()
        blocks = as_blocks(rows, weights.granularity)
        nearest = fake_quantize(blocks, weights.find_qparams(blocks)).reshape(rows.shape)
        found = LinearMap.of(layer).rows(rounded.get_submodule(name).weight.detach())
        assert gptq.output_error(rows, found, h) < gptq.output_error(rows, nearest, h), name
        count += 1
    assert count == len(linear_maps(model)) - len(without_tied_head(model)) >= 4
    with torch.no_grad():
        errors = [relative(forward(qnn.convert(network), tokens), wanted) for network in (rounded, prepared)]
    assert errors[0] < errors[1]


def test_eight_bits_and_what_is_saved(downloaded, tmp_path):
    model, tokens, wanted = downloaded
    weights = QuantConfig(symmetric=True, granularity=PerAxis(0))
    prepared = qnn.prepare(model, weights, QuantConfig(), without_tied_head(model))
    converted = qnn.convert(qnn.calibrate(prepared, [tokens], forward=forward, progress=False))
    with torch.no_grad():
        found = forward(converted, tokens)
        assert 0 < relative(found, wanted) < 0.1
        qnn.save(converted, tmp_path / "model.safetensors")
        assert torch.equal(forward(qnn.load(converted, tmp_path / "model.safetensors"), tokens), found)


def test_perplexity_is_the_library_s_own_loss(downloaded):
    model, tokens, _ = downloaded
    with torch.no_grad():
        wanted = float(model(tokens, labels=tokens).loss.exp())
    assert qnn.perplexity(model, tokens, context=WINDOW - 1) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match=r"tokens go from 0 to 96, and the network has logits for 0 to 95: they come"):
        qnn.perplexity(model, [0, 96] * 20, context=8)


@pytest.mark.parametrize("family", ["GPT-2", "OPT"])
def test_windows_longer_than_the_places_are_refused(family):
    config, options = FAMILIES[family]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**options))
    with pytest.raises(ValueError, match=r"cannot look up tokens of up to 1 at 80 places .*: a smaller context="):
        qnn.perplexity(model, [0, 1] * 60, context=80)
