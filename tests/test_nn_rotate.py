"""Rotating a language model: against QuaRot written out, on the shipped model, on others' models, and what is refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from qlearn import PerAxis, PerToken, QuantConfig, datasets
from qlearn import nn as qnn
from qlearn.nn.language_model import LanguageModel, load_language_model, to_tokens, windows
from qlearn.nn.network import linear_maps
from qlearn.nn.perplexity import perplexity
from qlearn.nn.rotate import HadamardProduct, rotate
from qlearn.rotations import hadamard, kurtosis, random_hadamard

W4 = QuantConfig(bits=4, symmetric=True, granularity=PerAxis(0))
W8 = QuantConfig(bits=8, symmetric=True, granularity=PerAxis(0))


@pytest.fixture(scope="module")
def model():
    return load_language_model()


@pytest.fixture(scope="module")
def batches():
    return windows(datasets.text_parts().calibration[:8300])[0]


@pytest.fixture(scope="module")
def planted(model):
    return qnn.plant_outliers(model, factor=256.0)


@pytest.fixture(scope="module")
def rotated(planted, batches):
    return rotate(planted, [batches[:2]])


@pytest.fixture(scope="module")
def text():
    return datasets.text_parts().validation[:8300]


def small(seed=0, **options):
    """A small one with numbers that matter, norms' weights included."""
    torch.manual_seed(seed)
    model = LanguageModel(**{"width": 24, "heads": 3, "hidden": 48, "blocks": 2, **options}).eval()
    return stirred(model)


def stirred(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def off(a, b, x):
    """How far the outputs are from each other, in parts of the largest."""
    with torch.no_grad():
        a, b = (getattr(y, "logits", y) for y in (a(x), b(x)))
    return float((a - b).abs().max() / a.abs().max())


X = to_tokens("Call me Ishmael. Some years ago")


# --- what it is -------------------------------------------------------------------------------------------------------


def test_it_is_quarot_written_out():
    """Each weight of a block by plain products: W γ Q in, Qᵀ W out, R on each head's values, H in front of down."""
    model = small().double()
    found = rotate(model, [X], seed=3, online=True)
    q, r, h = (torch.from_numpy(m) for m in (random_hadamard(24, 3), random_hadamard(8, 4), hadamard(48)))
    each_head = torch.block_diag(r, r, r)
    same = {"rtol": 0, "atol": 1e-12}
    for old, new in zip(model.blocks, found.blocks, strict=True):
        g1, g2 = torch.diag(old.norm1.weight), torch.diag(old.norm2.weight)
        a, b = old.attention, new.attention
        torch.testing.assert_close(b.query.weight, a.query.weight @ g1 @ q, **same)
        torch.testing.assert_close(b.key.weight, a.key.weight @ g1 @ q, **same)
        torch.testing.assert_close(b.value.weight, each_head.T @ a.value.weight @ g1 @ q, **same)
        torch.testing.assert_close(b.output.weight, q.T @ a.output.weight @ each_head, **same)
        torch.testing.assert_close(new.mlp.gate.weight, old.mlp.gate.weight @ g2 @ q, **same)
        torch.testing.assert_close(new.mlp.up.weight, old.mlp.up.weight @ g2 @ q, **same)
        torch.testing.assert_close(new.mlp.down[1].weight, q.T @ old.mlp.down.weight @ h, **same)
        torch.testing.assert_close(new.mlp.down[0].matrix, h, **same)
        assert (new.norm1.weight == 1).all() and (new.norm2.weight == 1).all()
    torch.testing.assert_close(found.tokens.weight, model.tokens.weight @ q, **same)
    torch.testing.assert_close(found.positions.weight, model.positions.weight @ q, **same)
    torch.testing.assert_close(found.head.weight, model.head.weight @ torch.diag(model.norm.weight) @ q, **same)
    assert off(model, found, X) < 1e-12


def test_the_stream_itself_is_turned():
    model = small()
    found, q = rotate(model, [X], seed=5), torch.from_numpy(random_hadamard(24, 5)).float()
    heard = [[], []]
    for network, values in zip((model, found), heard, strict=True):
        for block in network.blocks:
            block.register_forward_hook(lambda _, args, out, values=values: values.append(out))
        with torch.no_grad():
            network(X)
    for before, after in zip(*heard, strict=True):
        torch.testing.assert_close(after, before @ q, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(after, before, atol=0.1)


def test_seeds_options_and_the_original():
    model = small()
    before = copy.deepcopy(model.state_dict())
    first, again, other = rotate(model, [X]), rotate(model, [X], seed=0), rotate(model, [X], seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    plain = rotate(model, [X], heads=False)
    assert torch.equal(plain.head.weight, first.head.weight)
    assert not torch.equal(plain.blocks[0].attention.value.weight, first.blocks[0].attention.value.weight)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(first.state_dict()) == list(before)
    assert all(off(model, network, X) < 1e-5 for network in (first, other, plain))
    assert off(model, rotate(first, [X], seed=9), X) < 1e-5  # a second time


def test_sizes_without_a_hadamard_matrix_are_turned_too():
    model = small(width=18, heads=2)  # heads of 9
    found = rotate(model, [X])
    assert off(model, found, X) < 1e-5 and not torch.allclose(found.head.weight, model.head.weight, atol=0.1)
    with pytest.raises(ValueError, match=r"layer 'blocks.0.mlp.down': n=50: no Hadamard matrix .* are 48 and 56"):
        rotate(small(hidden=50), [X], online=True)


def test_modes_types_and_gradients_stay():
    model = small().train()
    model.blocks[0].norm1.weight.requires_grad_(False)
    model.blocks[0].attention.query.weight.requires_grad_(False)
    found = rotate(model, [X])
    assert found.training and all(module.training for module in found.modules())
    assert {n for n, p in found.named_parameters() if not p.requires_grad} == {
        "blocks.0.norm1.weight",
        "blocks.0.attention.query.weight",
    }
    assert all(parameter.is_leaf for parameter in found.parameters())
    half = rotate(small().bfloat16(), [X], online=True)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half.blocks[0].mlp.down[
        0
    ].matrix.dtype == torch.bfloat16


# --- the shipped model ------------------------------------------------------------------------------------------------


def test_the_shipped_model_stays_what_it_was(model, planted, rotated, batches, text):
    assert off(model, rotated, batches[5:9]) < 1e-4 and off(planted, rotated, batches[5:9]) < 1e-4
    assert perplexity(rotated, text) == pytest.approx(perplexity(model, text), rel=1e-5)


def heaviness(model, x):
    """The kurtosis of what each layer reads."""
    found = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: found.update({name: kurtosis(args[0])}))
        for name, layer in linear_maps(model).items()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def test_outliers_are_shared_by_all_channels(planted, rotated, batches):
    before, after = heaviness(planted, batches[:8]), heaviness(rotated, batches[:8])
    behind_norms = [name for name in before if name.split(".")[-1] in ("query", "key", "value", "gate", "up")]
    assert len(behind_norms) == 20
    assert all(before[name] > 250 and 2.9 < after[name] < 3.1 for name in behind_norms)  # a Gaussian has 3
    # What the MLPs hold between their layers is not of the stream: as heavy as before, unless it is turned online.
    online = heaviness(rotate(planted, [batches[:2]], online=True), batches[:8])
    ends = [name for name in before if name.endswith("down")]
    assert all(before[name] > 70 and after[name] == pytest.approx(before[name], rel=1e-2) for name in ends)
    assert all(online[f"{name}.1"] < 5 for name in ends)


def quantized_perplexity(model, weights, bits, text):
    activations = QuantConfig(bits=bits, granularity=PerToken(), method="dynamic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays in float
        return perplexity(qnn.convert(qnn.prepare(model, weights, activations)), text)


@pytest.mark.slow
def test_rotated_networks_bear_coarse_activations(model, planted, rotated, batches, text):
    text = text[:2100]
    float_ = perplexity(model, text)
    broken, kept = (quantized_perplexity(network, W8, 8, text) for network in (planted, rotated))
    assert kept < 1.01 * float_ < 1.02 * float_ < broken
    online = rotate(planted, [batches[:2]], online=True)
    broken, kept, better = (quantized_perplexity(network, W4, 4, text) for network in (planted, rotated, online))
    assert better < kept < broken / 2


# --- others' models ---------------------------------------------------------------------------------------------------

LIKE_THE_LARGE_ONES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4}


def of_transformers(name, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {} if "n_embd" in options else LIKE_THE_LARGE_ONES
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(vocab_size=50, **sizes, **ends, **options)
    head = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return stirred(getattr(transformers, head)(config).eval())


TOKENS = torch.arange(24).reshape(2, 12) * 7 % 50
TIED = r"'lm_head' shared its numbers with '.*'; it has its own now"


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Llama", {"num_key_value_heads": 2}),
        ("Llama", {"num_key_value_heads": 2, "attn_implementation": "eager", "attention_bias": True, "mlp_bias": True}),
        ("Mistral", {"num_key_value_heads": 2}),
        ("Qwen2", {"num_key_value_heads": 2}),
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
        ("Phi3", {"num_key_value_heads": 2}),  # query, key and value in one layer
        ("Granite", {"num_key_value_heads": 2, "residual_multiplier": 0.2, "embedding_multiplier": 3.0}),
        ("GPTJ", {**GPT2, "rotary_dim": 4}),  # attention and MLP side by side
        ("GPT2", {**GPT2, "tie_word_embeddings": False}),
        ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 48, "tie_word_embeddings": False}),
    ],
)
def test_language_models_of_any_maker(name, options, online):
    model = of_transformers(name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rotate(model, [TOKENS], online=online)
    assert off(model, found, TOKENS[:, 3:]) <= 1e-5  # measured 1e-6
    turned = dict(found.named_parameters())
    same = [n for n, p in model.named_parameters() if n in turned and torch.allclose(turned[n], p, atol=1e-3)]
    # The names are whatever they are, but no weight stays as it was, and only biases inside a block do.
    assert [n for n in same if not n.endswith("bias") and not n.endswith(("q_norm.weight", "k_norm.weight"))] == []
    ends = [module for module in found.modules() if isinstance(module, HadamardProduct)]
    assert len(ends) == 2 * online


@pytest.mark.parametrize(("name", "options"), [("GPT2", GPT2), ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 48})])
def test_layer_norms_lose_their_mean_and_tied_heads_their_tie(name, options):
    model = of_transformers(name, **options)
    with pytest.warns(UserWarning, match=TIED):
        found = rotate(model, [TOKENS])
    assert off(model, found, TOKENS) < 1e-5
    kinds = {type(module) for module in found.modules()}
    assert nn.LayerNorm not in kinds and nn.RMSNorm in kinds
    assert found.lm_head.weight is not found.get_input_embeddings().weight and found.lm_head.bias is not None
    assert not found.config.tie_word_embeddings and model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_tied_head_stays_tied_where_no_norm_has_a_weight():
    model = small()
    model.head.weight = model.tokens.weight
    nn.init.ones_(model.norm.weight)
    found = rotate(model, [X])
    assert found.head.weight is found.tokens.weight and off(model, found, X) < 1e-5
    nn.init.constant_(model.norm.weight, 2.0)
    with pytest.warns(
        UserWarning, match=r"'head' shared its numbers with 'tokens'; it has its own now, with\s+the last"
    ):
        found = rotate(model, [X])
    assert found.head.weight is not found.tokens.weight and off(model, found, X) < 1e-5


def test_an_untied_model_is_saved_and_read_as_what_it_is(tmp_path):
    model = of_transformers("Qwen2", num_key_value_heads=2, tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=TIED):
        found = rotate(model, [TOKENS])
    found.save_pretrained(tmp_path)
    assert off(found, type(model).from_pretrained(tmp_path).eval(), TOKENS) == 0


def test_attentions_whose_values_cannot_be_told_are_named():
    model = of_transformers("GPTNeoX", tie_word_embeddings=False)  # query, key and value of each head side by side
    with pytest.warns(UserWarning, match=r"turned the values of 0 of 2 attentions; left: .*layers.0.attention.dense"):
        found = rotate(model, [TOKENS])
    assert off(model, found, TOKENS) < 1e-5


# --- afterwards -------------------------------------------------------------------------------------------------------


def test_what_is_done_afterwards_still_works(batches, tmp_path):
    model = small()
    found = rotate(model, [X], online=True)
    assert off(found, copy.deepcopy(found), X) == 0
    other = rotate(small(seed=1), [X], seed=7, online=True)
    qnn.save(found, tmp_path / "rotated.safetensors")
    assert off(found, qnn.load(other, tmp_path / "rotated.safetensors"), X) == 0
    with pytest.warns(UserWarning, match=r"smoothed the inputs of 13 of 15 layers; left: blocks\.0\.mlp\.down\.1"):
        smoothed = qnn.smooth(found, [X])
    assert off(found, smoothed, X) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays in float
        prepared = qnn.prepare(found, W8, QuantConfig(granularity=PerToken(), method="dynamic"))
        rounded = qnn.gptq(qnn.prepare(found, W8, None), [batches[:1]], progress=False)
    converted = qnn.convert(prepared)
    assert type(converted.blocks[0].mlp.down[0]) is HadamardProduct
    assert isinstance(converted.blocks[0].mlp.down[1], qnn.DynamicLayer)
    assert off(found, converted, X) < 0.1
    assert off(found, qnn.convert(rounded), X) < 0.1
    assert all(parameter.is_contiguous() for parameter in found.parameters())


# --- what is refused --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """x + f(norm(x)), or norm(x + f(x))."""

    def __init__(self, width=8, post=False, norm=nn.RMSNorm, between=None):
        super().__init__()
        self.norm, self.up, self.down = norm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.post, self.between = post, between or nn.Identity()

    def forward(self, x):
        if self.post:
            return self.norm(x + self.down(self.up(x).relu()))
        return x + self.between(self.down(self.up(self.norm(x)).relu()))


class Net(nn.Module):
    """A stream of blocks between an embedding and a head."""

    def __init__(self, *blocks, end=None, width=8):
        super().__init__()
        self.tokens, self.blocks = nn.Embedding(10, width), nn.Sequential(*blocks)
        self.end, self.head = end or nn.RMSNorm(width), nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.end(self.blocks(self.tokens(x))))


class Plus(nn.Module):
    """Adds numbers of its own."""

    def __init__(self, width=8):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + self.shift


class Sees(Block):
    """Another pair of eyes on the stream: they count, or they do not."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return super().forward(x) * (1 + self.weight * x.tanh().mean())


class Gate(nn.Module):
    """Reads the stream, and is no linear map."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.out = weight, nn.Linear(8, 8)

    def forward(self, x):
        return x + self.out(self.weight * x.tanh())


class Experts(Block):
    """Of two layers, one is called."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(16, 8)

    def forward(self, x):
        down = self.down if x.mean() < 1e9 else self.spare
        return x + down(self.up(self.norm(x)).relu())


def twice():
    block = Block()
    return Net(block, block)


def shared():
    net = Net(Block(), Block())
    net.blocks[1].down.weight = net.blocks[0].down.weight
    return net


def hooked():
    net = Net(Block())
    net.blocks[0].down.register_forward_hook(lambda *_: None)
    return net


def pruned():
    net = Net(Block())
    prune.l1_unstructured(net.blocks[0].down, "weight", 0.5)
    return net


def tied_twice():
    net = Net(Block(width=8), width=8)
    net.head = nn.Linear(8, 10, bias=False)
    net.other = nn.Embedding(10, 8)
    net.head.weight = net.other.weight = net.tokens.weight
    net.forward = lambda x: net.head(net.end(net.blocks(net.tokens(x) + net.other(x))))
    return net


def not_finite():
    net = Net(Block())
    nn.init.constant_(net.head.weight, torch.nan)
    return net


CANNOT = "Net has a residual stream that cannot be rotated: "
REFUSED = {
    "no stream": (
        lambda: nn.Sequential(nn.Embedding(10, 8), nn.RMSNorm(8), nn.Linear(8, 4)),
        "Sequential has no residual stream: sums that a norm reads",
    ),
    "no norm": (lambda: Net(Block(norm=nn.Identity), end=nn.Identity()), "Net has no residual stream"),
    "a norm of 1 + weight": (
        lambda: Net(Block(norm=Gemmas), end=Gemmas(8)),
        "Net has no residual stream",
    ),
    "post-norm": (
        lambda: Net(Block(post=True), Block(post=True)),
        CANNOT + "'blocks.0.norm', a norm, writes into it, as in a post-norm",
    ),
    "a scale for each channel": (lambda: Net(Block(between=Scale())), CANNOT + "'blocks.0.between' writes into it"),
    "a ReLU": (
        lambda: Net(Block(between=nn.ReLU())),
        CANNOT + "'blocks.0.between' writes into it and is no linear map",
    ),
    "numbers of no layer": (lambda: Net(Plus(), Block()), CANNOT + "'blocks.0' writes into it and is no linear map"),
    "used twice": (twice, CANNOT + "'blocks.0.down' belongs to it, and it is used more than once"),
    "shared": (shared, CANNOT + "'blocks.0.down' belongs to it, and it shares its numbers with 'blocks.1.down'"),
    "tied twice": (tied_twice, CANNOT + "'tokens' belongs to it, and it shares its numbers with 'head', 'other'"),
    "hooks": (hooked, CANNOT + "'blocks.0.down' belongs to it, and a hook sees what goes in or comes out"),
    "pruned": (pruned, r"layer 'blocks.0.down' has weights that are computed before each call"),
    "both kinds of norms": (
        lambda: Net(Block(norm=nn.LayerNorm)),
        CANNOT + "'end' reads it as it is, and layer norms without its mean",
    ),
    "a head without a norm": (
        lambda: Net(Block(norm=nn.LayerNorm), end=nn.Identity()),
        CANNOT + "'head' reads it as it is, and layer norms",
    ),
    "not reached": (lambda: Net(Experts()), "with another batch, 'blocks.0.spare', which the first one does not reach"),
    "read by others": (
        lambda: Net(Gate(1.0), Block()),
        r"Net computes something else when its residual stream is rotated: its outputs are off by .* of the largest "
        r"\(what reads it and is no linear map: 'tanh'\)",
    ),
    "prepared": (lambda: qnn.prepare(Net(Block()), W8, None), "'blocks.0.up' is a ObservedLayer: .* before nn.prepare"),
    "not finite": (not_finite, "the network's outputs are not finite"),
    "a stream that comes out": (
        lambda: nn.Sequential(nn.Embedding(10, 8), Block()),
        r"computes something else when .* \(what reads it and is no linear map: 'the output'\)",
    ),
}


class Gemmas(nn.RMSNorm):
    """Multiplies by 1 + weight."""

    def forward(self, x):
        return functional.rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)


class Scale(nn.Module):
    """As LayerScale."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rotated_is_refused(case):
    make, message = REFUSED[case]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        rotate(make().eval(), [torch.arange(10)[None]])


def test_eyes_that_do_not_count_do_not_matter():
    """Rotary embeddings are handed the stream, and look at its type only."""
    torch.manual_seed(0)
    model, x = stirred(Net(Gate(0.0), Block())), torch.arange(10)[None]
    assert off(model, rotate(model, [x]), x) < 1e-5


def test_layers_that_read_the_stream_without_a_norm():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

        def forward(self, x):
            x = x + self.a(x)  # reads and writes
            x += 2.0 * self.b(x)
            return x

    torch.manual_seed(0)
    model, x = stirred(Net(Direct(), Block())), torch.arange(10)[None]
    found = rotate(model, [x], online=True)
    assert off(model, found, x) < 1e-5 and type(found.blocks[0].a) is nn.Linear
    assert type(found.blocks[1].down) is nn.Sequential


def test_batches_and_forward():
    model = small()
    found = rotate(model, [{"mine": X}], forward=lambda network, batch: network(batch["mine"]))
    assert off(model, found, X) < 1e-5
    with pytest.raises(ValueError, match="there is no batch"):
        rotate(model, [])
    with pytest.raises(TypeError, match="model is a int"):
        rotate(3, [X])
