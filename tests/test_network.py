"""What there is in a network: layers, copies, shared and computed numbers, and how much stays in float."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import qlearn
from qlearn import PerAxis, QuantConfig
from qlearn.nn.network import (
    InFloat,
    check_model,
    copy_of,
    in_float_text,
    left_in_float,
    linear_maps,
    plain_lists,
    refuse_computed_weights,
    set_parameter,
    sharing,
    with_plain_weights,
)

PER_CHANNEL = QuantConfig(symmetric=True, granularity=PerAxis(0))


def tied():
    """Two layers with one matrix, and a third that stands at two places."""
    torch.manual_seed(0)
    first, second, again = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, second, again, nn.ReLU(), again)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layers_have_their_first_names_and_those_that_pytorch_reads_are_left_out():
    model = nn.ModuleDict(
        {
            "stem": nn.Conv1d(1, 1, 1),
            "encoder": nn.TransformerEncoderLayer(4, 2, 8),
            "attention": nn.MultiheadAttention(4, 2),
            "up": nn.ConvTranspose2d(1, 1, 1),
            "odd": nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        }
    )
    model["again"] = model["stem"]
    assert list(linear_maps(model)) == ["stem", "up"]
    assert linear_maps(nn.Linear(2, 2)).keys() == {""}


def test_all_four_kinds_are_quantized_wherever_they_stand():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 3, 3), nn.ReLU(),
        nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Flatten(), nn.Linear(2 * 4 * 8, 5),
    )  # fmt: skip
    x = torch.randn(30, 2, 8)
    with torch.no_grad():
        expected = model(x)
    for activations in (QuantConfig(), QuantConfig(method="dynamic"), None):
        prepared = qlearn.nn.calibrate(qlearn.nn.prepare(model, PER_CHANNEL, activations), x, progress=False)
        converted = qlearn.nn.convert(prepared)
        assert qlearn.nn.summary(converted).float_layers == []
        # Half a step of input and weights in four layers: measured 1 % of the range.
        assert (converted(x) - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["original", "copy"])
def test_writing_to_a_copy_or_to_its_original_leaves_the_other_alone(written):
    model = tied()
    before = [p.clone() for p in model.parameters()]
    other = copy_of(model)
    for parameter in (model if written == "original" else other).parameters():
        parameter.data.mul_(2)
    left = other if written == "original" else model
    assert all(torch.equal(a, b) for a, b in zip(before, left.parameters(), strict=True))


def test_training_a_copy_leaves_the_original_alone():
    model = tied()
    before, other = copy.deepcopy(model.state_dict()), copy_of(model).train()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(other[0].weight, model[0].weight)


def test_what_is_shared_in_a_network_is_shared_in_its_copy():
    other = copy_of(tied())
    assert other[0].weight is other[1].weight and other[2] is other[4]
    assert [p.requires_grad for p in other.parameters()] == [True] * 5
    frozen = tied().requires_grad_(False)
    assert not any(p.requires_grad for p in copy_of(frozen).parameters())


def test_modules_may_stand_for_others_in_a_copy():
    model, new = tied(), nn.Linear(4, 4)
    other = copy_of(model, {model[2]: new})
    assert other[2] is new and other[4] is new and other[0] is not model[0]
    assert copy_of(model[2], {model[2]: new}) is new


def test_a_network_with_a_computed_weight_can_be_copied():
    """Python's own copy refuses what has a gradient function."""
    layer = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    layer(torch.ones(1, 4))
    other = copy_of(nn.Sequential(layer))
    assert torch.equal(other[0].weight, layer.weight)


# --- numbers that are shared ------------------------------------------------------------------------------------------


def test_modules_that_share_know_of_each_other():
    model = tied()
    assert sharing(model) == {model[0]: ["1"], model[1]: ["0"]}


def test_tied_parameters_are_counted_and_saved_once(tmp_path):
    model = tied()
    summary = qlearn.nn.summary(model)
    assert [(layer.name, layer.parameters) for layer in summary.layers] == [("0", 20), ("1", 4), ("2", 20)]
    size = qlearn.nn.save(model, tmp_path / "tied.safetensors")
    assert 0 < size - summary.bytes < 1000 and summary.bytes == 4 * 44
    other = copy.deepcopy(tied())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x = torch.randn(3, 4)
    assert torch.equal(qlearn.nn.load(other, tmp_path / "tied.safetensors")(x), model(x))
    assert other[0].weight is other[1].weight


# --- weights that are computed ----------------------------------------------------------------------------------------


def pruned_twice(layer):
    return prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3)


COMPUTED = {
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.4), r"prune\.remove\(layer, 'weight'\)"),
    "pruned twice": (pruned_twice, r"prune\.remove\(layer, 'weight'\)"),
    "pruned bias": (lambda layer: prune.l1_unstructured(layer, "bias", 0.4), r"prune\.remove\(layer, 'bias'\)"),
    "spectral norm": (spectral_norm, r"or remove_spectral_norm\) makes them numbers again"),
    "weight norm": (weight_norm, r"remove_weight_norm\(layer, 'weight'\) makes them numbers again"),
    "parametrized": (parametrizations.weight_norm, r"parametrize\.remove_parametrizations\(layer, 'weight'\)"),
    "orthogonal": (parametrizations.orthogonal, r"parametrize\.remove_parametrizations\(layer, 'weight'\)"),
}
OLD = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:`torch.nn.utils.weight_norm`")


@OLD
@pytest.mark.parametrize(("compute", "remedy"), COMPUTED.values(), ids=COMPUTED)
def test_weights_that_are_computed_are_refused_with_what_would_do(compute, remedy):
    torch.manual_seed(0)
    layer = compute(nn.Linear(6, 4))
    with pytest.raises(ValueError, match=f"layer 'head'.* computed before each call.*{remedy}|layer 'head' {remedy}"):
        refuse_computed_weights({"head": layer})
    with pytest.raises(ValueError, match="layer '1' has"):
        qlearn.nn.prepare(nn.Sequential(nn.Linear(6, 6), layer))
    with pytest.raises(ValueError, match="layers '0', '2' have"):  # all at once
        qlearn.nn.prepare(nn.Sequential(compute(nn.Linear(6, 6)), nn.ReLU(), compute(nn.Linear(6, 4))))


@OLD
@pytest.mark.parametrize("compute", [compute for compute, _ in COMPUTED.values()], ids=COMPUTED)
def test_training_makes_ordinary_numbers_of_them_and_says_so(compute):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), compute(nn.Linear(6, 4))).eval()
    x = torch.randn(5, 6)
    expected = model(x)
    with pytest.warns(UserWarning, match=r"^1: weights that were computed before each call .* zeros of pruning do not"):
        plain = with_plain_weights(copy_of(model))
    assert torch.allclose(plain(x), expected, rtol=0, atol=1e-6)  # orthogonal matrices are computed anew, in float32
    refuse_computed_weights(linear_maps(plain))
    assert sorted(name for name, _ in plain[1].named_parameters()) == ["bias", "weight"]
    with pytest.raises(ValueError, match="computed before each call"):  # the model itself is as it was
        refuse_computed_weights({"1": model[1]})


def test_ordinary_weights_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_plain_weights(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)))


def test_parameters_are_set_in_the_type_of_the_weights():
    layer = nn.Linear(2, 3, bias=False).half().requires_grad_(False)
    set_parameter(layer, "bias", torch.ones(3, dtype=torch.float64))
    assert layer.bias.dtype == torch.float16 and not layer.bias.requires_grad
    with pytest.raises(ValueError, match=r"its bias would have values that are not finite in torch\.float16"):
        set_parameter(layer, "bias", torch.full((3,), 1e6))


# --- what stays in float ----------------------------------------------------------------------------------------------


class MyLinear(nn.Linear):
    pass


def test_all_that_stays_in_float_is_named_with_its_reason():
    model = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(3),
            "mine": MyLinear(2, 2),
            "reflecting": nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"),
            "attention": nn.MultiheadAttention(2, 1),
            "kept": nn.Linear(2, 3),
            "taken": nn.Linear(5, 5),
        }
    )
    found = {part.name: part for part in left_in_float(model, {model["taken"]})}
    assert list(found) == ["norm", "mine", "reflecting", "attention", "attention.out_proj", "kept"]
    assert found["norm"] == InFloat("norm", "LayerNorm", 6, "not a Linear, Conv1d, Conv2d or ConvTranspose2d")
    assert found["mine"].reason == "a subclass of Linear, which may compute something else"
    assert found["reflecting"].reason == "padding_mode='reflect'"
    assert found["attention.out_proj"].reason == "PyTorch's attention reads its weights without calling it"
    assert (found["kept"].reason, found["kept"].parameters) == ("left out by overrides", 9)


@pytest.mark.parametrize(
    ("numbers", "total", "shown"),
    [
        (0, 100, "0 %"),
        (1, 1000, "0.1 %"),
        (1, 70, "1 %"),
        (505, 1000, "50 %"),
        (996, 1000, "99.6 %"),
        (3, 10**6, "0.0003 %"),
        (7, 7, "100 %"),
    ],
)
def test_the_share_in_float_is_rounded(numbers, total, shown):
    parts = [InFloat("a", "LayerNorm", numbers, "…")] if numbers else []
    end = ": a (LayerNorm)" if numbers else ""
    assert in_float_text(parts, total) == f"left in float: {shown} of the numbers{end}"


@pytest.mark.parametrize(("width", "warned"), [(4, True), (400, False)])
def test_much_in_float_is_said_and_little_is_not(width, warned):
    model = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qlearn.nn.prepare(model)
        qlearn.nn.prepare(model, overrides={"0": {"weights": PER_CHANNEL}})
    assert len(caught) == (2 if warned else 0)
    assert all("left in float: 29 % of the numbers: 1 (LayerNorm)" in str(warning.message) for warning in caught)
    assert all(warning.filename == __file__ for warning in caught)  # the line of whoever called prepare


def test_each_reason_to_stay_in_float_is_said_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.GRU(4, 4))
    with pytest.warns(UserWarning, match="left in float") as caught:
        qlearn.nn.prepare(model)
    assert str(caught[0].message).endswith(
        "\n    LayerNorm, BatchNorm1d, GRU: not a Linear, Conv1d, Conv2d or ConvTranspose2d."
    )


def test_measuring_a_network_says_nothing_of_what_stays_in_float():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), torch.rand(9, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert qlearn.nn.sensitivity(model, x).keys() == qlearn.nn.layer_bytes(model).keys() == {"0"}


def test_what_overrides_leave_in_float_is_no_surprise():
    model = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qlearn.nn.prepare(model, overrides={"0": None})


def test_layers_in_a_plain_list_are_pointed_out():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)
            self.blocks = [nn.Linear(2, 2), nn.ReLU()]
            self.named = {"a": self.head, "b": nn.Linear(2, 2)}
            self.sizes = [1, 2]

        def forward(self, x):
            return self.head(x)

    assert list(plain_lists(nn.Sequential(Listed()))) == [("0.blocks", 2), ("0.named", 1)]
    with pytest.warns(UserWarning, match=r"modules that PyTorch does not know of.*use nn\.ModuleList") as caught:
        qlearn.nn.prepare(Listed())
    assert [str(warning.message).partition(" modules")[0] for warning in caught] == ["blocks holds 2", "named holds 1"]


# --- overrides --------------------------------------------------------------------------------------------------------


def nested():
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(1, 2, 3),
            "encoder": nn.ModuleList([nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}) for _ in range(2)]),
            "head": nn.Linear(2, 2),
        }
    )


def bits_of(overrides):
    prepared = qlearn.nn.prepare(nested(), PER_CHANNEL, overrides=overrides)
    layers = {layer.name: layer for layer in qlearn.nn.prepared.prepared_layers(prepared)}
    return {name: layers[name].weights.bits if name in layers else None for name in linear_maps(nested())}


def w(bits):
    return {"weights": QuantConfig(bits)}


NAMES = ("stem", "encoder.0.a", "encoder.0.b", "encoder.1.a", "encoder.1.b", "head")


@pytest.mark.parametrize(
    ("overrides", "bits"),
    [
        ({}, (8, 8, 8, 8, 8, 8)),
        ({"stem, head": w(4)}, (4, 8, 8, 8, 8, 4)),
        ({"encoder.*": w(3)}, (8, 3, 3, 3, 3, 8)),
        ({"encoder.*.b": None}, (8, 8, None, 8, None, 8)),
        ({nn.Linear: w(5)}, (8, 5, 5, 5, 5, 5)),
        ({nn.Conv2d: None}, (None, 8, 8, 8, 8, 8)),
        ({"encoder.1.a": w(2), "encoder.*": w(3), nn.Linear: w(5)}, (8, 3, 3, 2, 3, 5)),
        ({nn.Linear: w(5), "encoder.*": w(3), "encoder.1.a": w(2)}, (8, 3, 3, 2, 3, 5)),
        ({nn.Linear: None, "head": w(6)}, (8, None, None, None, None, 6)),
        ({"encoder.*": w(3), "encoder.1.*": w(4)}, (8, 3, 3, 4, 4, 8)),
        ({"head": {"activations": None}, "*": w(7)}, (7, 7, 7, 7, 7, 7)),
    ],
)
def test_a_name_counts_more_than_a_pattern_and_that_than_a_type(overrides, bits):
    assert bits_of(overrides) == dict(zip(NAMES, bits, strict=True))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            {"tail": None},
            ValueError,
            "overrides names 'tail', which is no layer to quantize; those are stem, encoder.0.a",
        ),
        ({"decoder.*": None}, ValueError, r"overrides names 'decoder\.\*', which is no layer"),
        ({nn.Conv1d: None}, ValueError, "overrides names Conv1d, which is no layer"),
        ({"head": QuantConfig(4)}, TypeError, r"overrides\['head'\]=QuantConfig.* must be \{'weights': …"),
        ({"head": {"weight": QuantConfig(4)}}, ValueError, r"overrides\['head'\] has 'weight': it may have"),
        ({"head": {"weights": 4}}, TypeError, "layer 'head': weights must be a QuantConfig, not 4"),
        ({0: None}, TypeError, "overrides has the key 0: layers are called by names, in quotes, or by their type"),
        (["head"], TypeError, r"overrides=\['head'\] must be a dictionary: layer names → "),
    ],
)
def test_overrides_that_mean_nothing_are_named(overrides, error, message):
    with pytest.raises(error, match=message):
        qlearn.nn.prepare(nested(), overrides=overrides)


# --- layers that nobody calls -----------------------------------------------------------------------------------------


class Reads(nn.Module):
    """Reads the weights of a layer itself."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.called(x) @ self.read.weight.T + self.read.bias


def test_layers_that_are_never_called_are_named_in_the_first_pass_and_only_there():
    prepared = qlearn.nn.prepare(Reads(), PER_CHANNEL, None)
    sentence = r"^read: not called in the first pass\. .*overrides=\{'read': None\} leaves it in float"
    with pytest.warns(UserWarning, match=sentence):
        prepared(torch.ones(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(torch.ones(1, 3))
    converted = qlearn.nn.convert(prepared)
    with pytest.warns(UserWarning, match=sentence):
        converted(torch.ones(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted(torch.ones(1, 3))


def test_weights_that_are_read_are_real_numbers_rounded_to_codes():
    torch.manual_seed(0)
    model, x = Reads(), torch.randn(6, 3)
    converted = qlearn.nn.convert(qlearn.nn.prepare(model, PER_CHANNEL, None))
    rounded = copy.deepcopy(model)
    for name in ("called", "read"):
        weight = rounded.get_submodule(name).weight
        weight.data = qlearn.fake_quantize(weight.detach(), PER_CHANNEL.find_qparams(weight.detach()))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one is never called
        assert torch.equal(converted(x), rounded(x))


# --- what is no network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (None, TypeError, "model is a NoneType: wanted is a network, an nn.Module"),
        (nn.Linear, TypeError, r"model is the class Linear: wanted is a network, Linear\(…\) with its arguments"),
        (lambda x: x, TypeError, "model is a function: wanted is a network"),
        (nn.Linear(2, 2, device="meta"), ValueError, "weight is on the meta device, .*: load the weights first"),
    ],
)
def test_what_is_no_network_is_named(model, error, message):
    with pytest.raises(error, match=message):
        check_model(model)
    check_model(nn.ReLU())
    check_model(nn.Linear(2, 2, device="meta"), numbers=False)


class Asking(nn.Module):
    """What is done with a layer's output hangs on its type."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu() if isinstance(layer, nn.Linear) else layer(x)
        return x


class AskingByName(Asking):
    def forward(self, x):
        return [y := x] + [y := layer(y) for layer in self.layers if layer.__class__.__name__ == "Linear"]


class AskingSomethingElse(Asking):
    def forward(self, x):
        return self.layers[0](x if isinstance(x, torch.Tensor) else x[0])


MAKERS = {
    "prepare": qlearn.nn.prepare,
    "prepare_qat": qlearn.nn.prepare_qat,
    "use_codebook": lambda model: qlearn.nn.use_codebook(model, [-1.0, 0.0, 1.0], block=4),
    "add_adapters": qlearn.nn.add_adapters,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_code_that_asks_for_the_type_of_a_layer_is_named(make):
    for kind in (Asking, AskingByName):
        with pytest.warns(UserWarning, match=rf"{kind.__name__}\.forward asks whether a layer is a 'Linear'") as caught:
            make(nn.Sequential(kind(), kind()))
        assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(AskingSomethingElse())
