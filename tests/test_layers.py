"""A converted layer is a polite layer: to everyone around it, it is what it replaces, in every mode and of every kind."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import qlearn
from qlearn import PerAxis, PerGroup, PerTensor, PerToken, QParams, QuantConfig, fake_quantize, integer, quantize
from qlearn.nn import integer_layers, layers
from qlearn.nn.integer_layers import DynamicLayer, StaticLayer, quantized
from qlearn.nn.layers import WeightOnlyLayer

PER_CHANNEL = QuantConfig(symmetric=True, granularity=PerAxis(0))
DYNAMIC = QuantConfig(method="dynamic")
MODES = {"static": QuantConfig(), "dynamic": DYNAMIC, "weights only": None}
CLASSES = {"static": StaticLayer, "dynamic": DynamicLayer, "weights only": WeightOnlyLayer}
PREFIXES = {"static": "Quantized", "dynamic": "Dynamic", "weights only": "WeightOnly"}
KINDS = {
    "Linear": (lambda: nn.Linear(12, 6), (5, 12)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (5, 4, 11)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, dilation=2, groups=2), (5, 4, 9, 8)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), (5, 4, 5, 4)),
}


def inputs_like(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convert(model, x, mode, weights=PER_CHANNEL, **kwargs):
    prepared = qlearn.nn.prepare(model, weights, MODES.get(mode, mode), **kwargs)
    return qlearn.nn.convert(qlearn.nn.calibrate(prepared, x, progress=False))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def case(kind, mode):
    """The float layer, its input, and a network in which it is called "fc", converted."""
    torch.manual_seed(len(kind))
    make, shape = KINDS[kind]
    layer, x = make(), inputs_like(shape)
    return layer, x, convert(nn.Sequential().append(layer), x, mode)[0]


# --- what others read -------------------------------------------------------------------------------------------------


def test_it_shows_what_it_was_and_what_it_is(case, kind, mode):
    _, _, layer = case
    assert type(layer) is CLASSES[mode]
    assert str(layer).startswith(f"{PREFIXES[mode]}{kind}(") and "weights 8 bits per channel" in str(layer)


def test_weight_and_bias_are_real_numbers_near_those_of_the_float_layer(case):
    layer, _, made = case
    assert made.weight.dtype == made.bias.dtype == torch.float32
    assert made.weight.shape == layer.weight.shape and made.bias.shape == layer.bias.shape
    scale = made.weight_scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    error = made.map.rows((made.weight - layer.weight).detach()).abs()
    assert (error <= scale * (0.5 + 1e-5)).all()  # half a step, and float32's rounding of the quotient
    step = made.output_scale.reshape(-1) if isinstance(made, StaticLayer) else torch.zeros(6)
    assert ((made.bias - layer.bias).abs() <= step * 0.5 + 1e-7).all()


def test_codes_times_steps_are_the_weights_bit_for_bit(case):
    _, _, made = case
    assert made.weight_codes.dtype == torch.int8 and len(made.weight_codes) == 6
    exact = made.weight_codes.double() * made.weight_scale.detach().double()
    assert torch.equal(made.map.rows(made.weight), exact.float())
    if isinstance(made, StaticLayer):
        assert made.bias_codes.dtype == torch.int32
        assert torch.equal(made.bias, (made.bias_codes * made.output_scale.reshape(-1)).float())


def test_attributes_are_those_of_the_float_layer(case):
    layer, _, made = case
    for name in type(layer).__constants__:
        assert getattr(made, name) == getattr(layer, name), name
    with pytest.raises(AttributeError, match="surprise"):
        _ = made.surprise


def test_a_network_s_parameters_tell_its_device_and_type_and_none_is_trained(case):
    _, _, made = case
    first = next(made.parameters())
    assert (first.device, first.dtype) == (torch.device("cpu"), torch.float32)
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert made.weight.device == first.device


@pytest.mark.parametrize(
    "stage",
    [
        lambda model, x: convert(model, x, "static"),
        lambda model, x: convert(model, x, None),
        lambda model, x: qlearn.nn.prepare(model),
        lambda model, x: qlearn.nn.prepare_qat(model, learned_step_size=True),
        lambda model, x: qlearn.nn.use_codebook(model, [-1.0, 0.0, 1.0], block=4),
        lambda model, x: qlearn.nn.add_adapters(model),
        lambda model, x: qlearn.nn.add_adapters(convert(model, x, None)),
    ],
)
def test_so_are_buffers_parameters_and_modules_that_a_user_has_given_it(stage):
    layer, x = nn.Linear(12, 6), inputs_like((5, 12))
    layer._gain, layer.act, layer.offset = 2.0, nn.ReLU(), nn.Parameter(torch.ones(6))
    layer.register_buffer("mask", torch.zeros(6))
    layer.register_buffer("seen", torch.zeros(1), persistent=False)
    made = stage(nn.Sequential(layer), x)
    for each in (made[0], copy.deepcopy(made)[0]):
        assert each._gain == 2.0 and type(each.act) is nn.ReLU
        assert torch.equal(each.offset, layer.offset) and torch.equal(each.mask, layer.mask)
    names = {name.rpartition(".")[2] for name in made.state_dict()}
    assert {"mask", "offset"} <= names and "seen" not in names and "seen" in str([*dict(made.named_buffers())])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("bits", lambda model: qlearn.nn.convert(qlearn.nn.prepare(model, activations=None))),
        ("observer", qlearn.nn.prepare),
        ("scale", qlearn.nn.add_adapters),
        ("levels", lambda model: qlearn.nn.use_codebook(model, [-1.0, 1.0], block=4)),
    ],
)
def test_a_name_that_means_something_else_there_is_refused(name, make):
    model = nn.Sequential(nn.Linear(12, 6))
    setattr(model[0], name, 2.0)
    with pytest.raises(ValueError, match=f"layer '0': its attribute '{name}' has the name of one of .*Layer's own"):
        make(model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bias_that_is_not_finite_is_refused_by_name(kind, mode, value):
    make, shape = KINDS[kind]
    model, x = nn.Sequential(nn.Identity(), make()), inputs_like(shape)
    model[1].bias.data[2] = value
    with pytest.raises(ValueError, match="layer '1': its bias holds 1 value that is not finite"):
        convert(model, x, mode)


@pytest.mark.parametrize("activations", [QuantConfig(), DYNAMIC])
def test_no_gradient_is_lost_without_a_word(activations):
    """A layer in front, left in float, would learn from what goes round the integer one alone."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.rand(9, 4)
    made = convert(model, x, activations, overrides={"0": None})
    first = made[0](x)
    y = first + made[1](first)
    assert torch.equal(y.detach(), first + made[1](first.detach()))
    with pytest.raises(ValueError, match="layer '1' rounds its inputs, and no gradient goes through"):
        y.sum().backward()
    assert not made[1](x).requires_grad


def test_so_are_those_that_a_user_has_given_it(kind, mode):
    make, shape = KINDS[kind]
    layer = make()
    layer.gain, layer.spans = 2.0, [3]
    made = convert(nn.Sequential(layer), inputs_like(shape), mode)[0]
    prepared = qlearn.nn.prepare(nn.Sequential(layer))[0]
    for each in (made, prepared, copy.deepcopy(made)):
        assert each.gain == 2.0 and each.spans == [3] and each.training is False
    assert kind == "Linear" or made.transposed == layer.transposed


def test_the_linear_of_gpt_2_keeps_its_sizes(mode):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    x = inputs_like((5, 12))
    made = convert(nn.Sequential(conv1d(6, 12)), x, mode)[0]
    assert (made.nf, made.nx) == (6, 12)
    assert qlearn.nn.prepare_qat(nn.Sequential(conv1d(6, 12)))[0].nf == 6


def test_the_linear_of_gpt_2_is_corrected_and_written_as_any_other(tmp_path):
    conv1d, x = pytest.importorskip("transformers.pytorch_utils").Conv1D, torch.rand(50, 32)
    model = nn.Sequential(conv1d(6, 32))
    made = convert(model, x, "static", QuantConfig(bits=2, symmetric=True))
    corrected = qlearn.nn.correct_bias(made, model, x, progress=False)
    off = [(network(x) - model(x)).mean(0).abs().max() for network in (made, corrected)]
    assert off[1] < 0.2 * off[0]
    codes = qlearn.nn.convert(qlearn.nn.prepare(model, QuantConfig(bits=4, symmetric=True), None))
    for network, kind in ((model, "Q8_0"), (codes, "Q4_0")):
        qlearn.nn.write_gguf(network, tmp_path / "model.gguf", kind)
        assert qlearn.nn.list_gguf(tmp_path / "model.gguf")["0.weight"] == (kind, (6, 32))
        read = torch.from_numpy(qlearn.nn.read_gguf_tensor(tmp_path / "model.gguf", "0.weight"))
        assert (read.T - network[0].weight).abs().max() < 0.02 * network[0].weight.abs().max()


def test_an_output_size_that_is_said_in_the_call_is_refused(mode):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x):
            return self.up(x, output_size=(8, 8))

    x = inputs_like((2, 2, 3, 3))
    message = r"layer 'up': it is called with output_size=\(8, 8\), .*give the layer an output_padding, or leave it"
    for prepare in (qlearn.nn.prepare, qlearn.nn.prepare_qat):
        with pytest.raises(ValueError, match=message):
            prepare(Up(), PER_CHANNEL, MODES[mode])(x)
    with pytest.raises(ValueError, match=message):
        qlearn.nn.convert(qlearn.nn.prepare(Up(), PER_CHANNEL, None))(x)
    assert qlearn.nn.prepare(nn.Sequential(Up(), nn.Conv2d(3, 1, 1)), overrides={"0.up": None})(x).shape == (2, 1, 8, 8)


def test_networks_that_are_made_in_inference_mode_work(case):
    layer, x, made = case
    with torch.inference_mode():
        inside = convert(
            nn.Sequential().append(layer), x, next(mode for mode, kind in CLASSES.items() if type(made) is kind)
        )
        assert torch.equal(inside(x), made(x))
    with torch.no_grad():
        assert torch.equal(inside(x), made(x))


def test_a_layer_with_a_forward_of_its_own_stays_in_float(kind, mode):
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    first, x = make(), inputs_like(shape)
    model = nn.Sequential(first, nn.Flatten(1), nn.Linear(first(x)[0].numel(), 4))
    original = first.forward
    first.forward = lambda x: 2 * original(x)
    with pytest.warns(UserWarning, match=r"its forward was replaced, by accelerate for example"):
        made = convert(model, x, mode)
    with torch.no_grad():
        assert (made(x) - model(x)).norm() < 0.05 * model(x).norm()
    assert type(made[0]) is type(first)


def test_it_is_called_by_keyword_as_the_float_layer(case):
    _, x, made = case
    assert torch.equal(made(input=x), made(x))


def test_one_example_without_a_batch_is_one_of_a_batch(case):
    layer, x, made = case
    assert made(x[0]).shape == layer(x[0]).shape
    assert torch.equal(made(x[0]), made(x[:1])[0])


def test_the_output_is_that_of_the_float_layer_on_rounded_numbers(case, mode):
    """In float64, on x̂ and ŵ: sums of integers are exact, so only the roundings of x̂, ŵ and the result are left."""
    layer, x, made = case
    exact = copy.deepcopy(layer).double()
    exact.weight.data, exact.bias.data = made.weight.double(), made.bias.double()
    x_hat = x.double()
    if mode != "weights only":
        qparams = made.input_qparams if mode == "static" else QuantConfig().find_qparams(x)
        x_hat = fake_quantize(x, qparams).double()
    with torch.no_grad():
        expected = exact(x_hat)
        magnitude = copy.deepcopy(exact)
        magnitude.weight.data, magnitude.bias.data = exact.weight.abs(), exact.bias.abs()
        # Weights only: float32 sums of at most 18 products, each rounded.
        roundings = 40 if mode == "weights only" else 4
        assert ((made(x) - expected).abs() <= roundings * 2.0**-24 * magnitude(x_hat.abs())).all()


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_refused_by_name(case, dtype):
    _, x, made = case
    with pytest.raises(TypeError, match=f"layer '0': its input has dtype {dtype}: it must hold floats"):
        made(x.to(dtype))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("some", ["static", "dynamic"])
def test_numbers_that_are_not_finite_name_the_layer(kind, some, value):
    make, shape = KINDS[kind]
    x = inputs_like(shape)
    model = convert(nn.Sequential(nn.Identity(), nn.Sequential(make())), x, some)
    x.view(-1)[7] = value
    with pytest.raises(ValueError, match=r"layer '1\.0': x holds 1 value that is not finite"):
        model(x)


@pytest.mark.parametrize("granularity", [PerAxis(0), PerToken()])
def test_ranges_of_their_own_make_examples_independent(granularity):
    torch.manual_seed(0)
    x = inputs_like((3, 7, 12))
    loud = x * torch.tensor([1.0, 100.0, 1.0])[:, None, None]
    model = convert(nn.Linear(12, 6), x, QuantConfig(method="dynamic", granularity=granularity))
    assert torch.equal(model(loud)[[0, 2]], model(x)[[0, 2]])
    louder = x.clone()
    louder[0, 3] *= 100
    same = torch.equal(model(louder)[0, :3], model(x)[0, :3])
    assert same == (granularity == PerToken())  # a token has its own range, or shares the example's


def test_a_range_a_token_is_refused_where_there_are_no_tokens():
    with pytest.raises(ValueError, match=r"layer '0': activations take .*PerToken\(\) in a Linear"):
        qlearn.nn.prepare(
            nn.Sequential(nn.Conv1d(2, 2, 1)), activations=QuantConfig(method="dynamic", granularity=PerToken())
        )


# --- hooks ------------------------------------------------------------------------------------------------------------


def network_with_hooks(kind, heard):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model = nn.Sequential(make(), nn.ReLU())
    model[0].register_forward_pre_hook(lambda layer, args: heard.append(("before", len(args))))
    model[0].register_forward_hook(lambda layer, args, y: heard.append(("after", y.shape)))
    model[0].register_forward_pre_hook(
        lambda layer, args, keywords: heard.append(("keywords", *keywords)), with_kwargs=True
    )
    model[0].register_forward_hook(lambda layer, args, y: y + 1)
    model[1].register_forward_hook(lambda layer, args, y: heard.append(("relu", y.shape)))
    return model, inputs_like(shape)


def test_hooks_of_the_float_layer_fire_once_each_before_and_after_conversion(kind, mode):
    heard = []
    model, x = network_with_hooks(kind, heard)
    model.eval()(x)
    expected = list(heard)
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare(model, PER_CHANNEL, MODES[mode]), x, progress=False)
    converted = qlearn.nn.convert(prepared)
    for some in (prepared, converted):
        heard.clear()
        y = some(x)
        assert heard == expected and len(expected) == 4
        assert y.min() >= 0
        plain = copy.deepcopy(some)
        plain[0]._forward_hooks.clear()
        assert torch.equal(plain[0](x) + 1, some[0](x))  # a hook that changes the output does so, once
    heard.clear()
    converted[0](input=x)
    assert ("keywords", "input") in heard


def test_a_hook_that_is_removed_from_the_float_layer_stays_on_the_copies(kind):
    """Copies are networks of their own: they keep what was registered when they were made."""
    heard = []
    model, x = network_with_hooks(kind, [])
    handle = model[0].register_forward_hook(lambda *_: heard.append(1))
    converted = convert(model, x, "static")
    handle.remove()
    heard.clear()
    model(x)
    assert heard == []
    converted(x)
    assert heard == [1]


class Extractor:
    """Keeps what modules put out, by every kind of function that may be a hook."""

    def __init__(self, model):
        self.model, self.found, self.names = model, [], []
        for module in model:
            module.register_forward_hook(self)
            module.register_forward_hook(self.keep)
            module.register_forward_pre_hook(partial(self.named, type(module).__name__))

    def __call__(self, module, args, y):
        self.found.append(y)

    keep = __call__

    def named(self, name, *_):
        self.names.append(name)


class Counting(nn.Sequential):
    """Has hooks that are methods of its own, which belong to each copy."""

    def count(self, *_):
        self.calls = vars(self).get("calls", 0) + 1


@pytest.mark.parametrize(
    "make",
    [
        qlearn.nn.prepare,
        qlearn.nn.prepare_qat,
        qlearn.nn.add_adapters,
        lambda model: convert(model, torch.rand(9, 4), "static"),
        lambda model: qlearn.nn.correct_bias(
            convert(model, torch.rand(9, 4), "static"), model, torch.rand(9, 4), progress=False
        ),
        lambda model: qlearn.nn.gptq(qlearn.nn.prepare(model), torch.rand(9, 4), progress=False),
        lambda model: qlearn.nn.use_codebook(model, [-1.0, 0.0, 1.0], block=1),
    ],
)
def test_what_hooks_fill_is_their_owners(make):
    model = Counting(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    extractor = Extractor(model)
    model[0].register_forward_hook(model.count)
    made = qlearn.nn.calibrate(m, torch.rand(9, 4), progress=False) if has_observers(m := make(model)) else m
    assert made is not model and made[0]._forward_hooks
    extractor.found.clear()
    extractor.names.clear()
    model.calls = made.calls = 0
    made(torch.rand(5, 4))
    assert len(extractor.found) == 6 and extractor.names == ["Linear", "ReLU", "Linear"]
    assert (model.calls, made.calls) == (0, 1)


def has_observers(model):
    return any(getattr(module, "observer", None) is not None for module in model.modules())


def test_backward_hooks_fire_on_fake_quantized_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    heard = []
    model[0].register_full_backward_hook(lambda layer, given, got: heard.append(got[0].shape))
    prepared = qlearn.nn.prepare_qat(model).train()
    prepared(torch.randn(5, 4, requires_grad=True)).sum().backward()
    assert heard == [(5, 3)]


# --- copies, files, types ---------------------------------------------------------------------------------------------


def test_its_state_makes_another_layer_the_same(case, kind, mode):
    _, x, made = case
    torch.manual_seed(99)
    other = convert(nn.Sequential(KINDS[kind][0]()), 3 * x, mode)[0]
    assert not torch.equal(other(x), made(x))
    state = made.state_dict()
    assert state["weight_codes"].dtype == torch.uint8 and "_real" not in state
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(other(x), made(x))


def test_a_copy_is_a_layer_of_its_own(case):
    _, x, made = case
    before, other = made(x), copy.deepcopy(made)
    assert torch.equal(other(x), before)
    other.weight_codes.zero_()
    other.weight_scale.data.mul_(3)
    assert torch.equal(made(x), before) and not torch.equal(other(x), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scales_stay_float32_when_a_network_changes_its_type(case, dtype):
    _, x, made = case
    other = copy.deepcopy(nn.Sequential(made)).to(dtype)[0]
    for name in ("weight_scale", "input_scale"):
        if hasattr(made, name):
            assert getattr(other, name).dtype == torch.float32
            assert torch.equal(getattr(other, name), getattr(made, name))
    assert other.weight.dtype == dtype and other(x.to(dtype)).dtype == dtype
    assert torch.equal(other.weight, made.weight.to(dtype))
    assert torch.equal(other.weight_codes, made.weight_codes)
    assert torch.equal(copy.deepcopy(other).float().weight, made.weight)  # there and back nothing is lost


def test_a_network_of_another_type_is_converted_to_layers_of_that_type(kind, mode):
    make, shape = KINDS[kind]
    torch.manual_seed(1)
    model, x = nn.Sequential(make()).double(), inputs_like(shape).double()
    made = convert(model, x, mode)[0]
    assert made.weight.dtype == made(x).dtype == torch.float64
    assert made.weight_scale.dtype == torch.float32


# --- exact sums -------------------------------------------------------------------------------------------------------

LONG = {
    "Linear": (lambda: nn.Linear(5000, 3), (4, 5000)),
    "Conv1d": (lambda: nn.Conv1d(1250, 3, 4, stride=3, padding=2), (2, 1250, 9)),
    "Conv2d": (lambda: nn.Conv2d(600, 2, 3, padding=1), (2, 600, 5, 4)),
    "Conv2d, groups": (lambda: nn.Conv2d(1200, 4, 3, groups=2), (2, 1200, 4, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(1200, 2, 3, stride=2), (2, 1200, 3, 3)),
}


@pytest.mark.parametrize("long", LONG)
@pytest.mark.parametrize("symmetric", [True, False])
def test_long_sums_are_exact(long, symmetric):
    """Of thousands of 8-bit products, more than float32 holds: against NumPy's int64, on the columns written out."""
    make, shape = LONG[long]
    torch.manual_seed(0)
    layer = make()
    # Sums that do not cancel: they grow beyond 2²⁴, where float32 has no odd numbers.
    x = 1 + inputs_like(shape).abs() / 4
    layer.weight.data = 1 + inputs_like(layer.weight.shape, 1).abs() / 4
    config = QuantConfig(symmetric=symmetric, granularity=PerAxis(0))
    rows = qlearn.nn.linear_maps.rows_of(layer).detach()
    made = quantized(layer, config.find_qparams(rows), QuantConfig(symmetric=symmetric).find_qparams(x))
    assert made.largest_sum > integer.EXACT_IN_FLOAT32
    codes = quantize(x, made.input_qparams)
    got = made.accumulate(codes)
    columns = made.map.columns(codes.double() - int(made.input_zero_point)).numpy().astype(np.int64)
    zeros = np.asarray(made.weight_qparams.zero_point, np.int64).reshape(-1, 1)
    weights = made.weight_codes.flatten(1).numpy().astype(np.int64) - zeros
    groups = len(columns)
    expected = np.concatenate([w @ c for w, c in zip(np.split(weights, groups), columns, strict=True)])
    expected += made.bias_codes.numpy().astype(np.int64)[:, None]
    flat = got.movedim(made.map.output_axis, 0).flatten(1).numpy()
    assert got.dtype == torch.int32 and np.array_equal(flat, expected)
    assert abs(expected).max() > integer.EXACT_IN_FLOAT32 and (expected % 2 == 1).any()


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("static", PER_CHANNEL),
        ("dynamic", QuantConfig(4, granularity=PerAxis(0))),
        (QuantConfig(method="dynamic", granularity=PerToken()), QuantConfig(3)),
        ("weights only", PER_CHANNEL),
        ("weights only", QuantConfig(4, granularity=PerGroup(8))),
        ("weights only", QuantConfig(4, granularity=PerTensor())),
    ],
)
@pytest.mark.parametrize("shape", [(6, 40), (2, 3, 40), (40,)])
def test_tiles_give_the_bits_of_one_piece(mode, weights, shape, monkeypatch):
    """29 rows in pieces of 3, the last one of 2. Float products, too: each output is a sum of its own."""
    torch.manual_seed(0)
    made = convert(nn.Linear(40, 29), inputs_like((9, 40)), mode, weights)
    x = inputs_like(shape, 1)
    whole = made(x)
    monkeypatch.setattr(layers, "TILE", 3 * 40 + 7)
    tiles = list(made._tiles())
    assert len(tiles) == 10 and tiles[0] == slice(0, 3)
    pieces = made(x)
    if mode == "weights only":  # float32 sums of 40 products: their order may hang on how many rows there are
        assert torch.allclose(pieces, whole, rtol=0, atol=40 * 2.0**-24 * float(whole.abs().max() + 10))
    else:
        assert torch.equal(pieces, whole)


# --- graphs -----------------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Flatten(2),
        nn.Conv1d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 31, 10),
    )  # fmt: skip


def grouped(model):
    """In groups that fit every row: 9, 16, 6 and 93 weights."""
    overrides = {"4": {"weights": QuantConfig(4, granularity=PerGroup(2))}, "2": {"weights": PER_CHANNEL}}
    return convert(model, [], "weights only", QuantConfig(4, granularity=PerGroup(3)), overrides=overrides)


CONVERTED = {
    "static": lambda model, x: convert(model, x, "static"),
    "static, asymmetric weights": lambda model, x: convert(model, x, "static", QuantConfig(5)),
    "dynamic": lambda model, x: convert(model, x, "dynamic"),
    "weights only": lambda model, x: convert(model, x, "weights only"),
    "weights only, one zero point": lambda model, x: convert(model, x, "weights only", QuantConfig(4)),
    "weights only, groups": lambda model, x: grouped(model),
}


@pytest.mark.parametrize("how", CONVERTED)
def test_an_exported_program_gives_the_same_numbers(how):
    x = inputs_like((6, 1, 4, 4))
    model = CONVERTED[how](network(), x)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch itself will change
        program = torch.export.export(model, (x,), strict=False)
    assert torch.equal(program.module()(x), expected)
    other = inputs_like((6, 1, 4, 4), 5)
    assert torch.equal(program.module()(other), model(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", ["static", "weights only"])
def test_an_exported_program_of_another_type_gives_the_same_numbers(mode, dtype):
    torch.manual_seed(0)
    x = inputs_like((400, 12)).to(dtype)
    model = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    converted = convert(model, x, mode, QuantConfig(5))
    assert torch.equal(torch.export.export(converted, (x,), strict=False).module()(x), converted(x))


@pytest.mark.parametrize("config", [QuantConfig(), QuantConfig(3), QuantConfig(symmetric=True, narrow_range=False)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_codes_in_a_graph_are_those_of_quantize(config, dtype):
    """Which checks its input and cannot be recorded. Ties, and values far outside, are among these."""
    qparams = config.find_qparams(torch.tensor([-1.3, 2.1]))
    scale, zero_point = torch.as_tensor(qparams.scale, dtype=torch.float32), torch.as_tensor(qparams.zero_point)
    ticks = torch.arange(-300, 301).double() / 2 * float(scale)
    x = torch.cat([ticks, inputs_like(20_000).double(), torch.tensor([1e4, -1e4, 0.0]).double()]).to(dtype)
    limits = (qparams.quant_min, qparams.quant_max)
    assert torch.equal(integer_layers._codes_unchecked(x, scale, zero_point, limits), quantize(x, qparams))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", [PerTensor(), PerToken(), PerAxis(0)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_in_a_graph_are_those_of_each_batch(symmetric, granularity, dtype):
    """With rows of zeros, of one sign, and with numbers as large as the type has them."""
    x = inputs_like((6, 3, 4)).to(dtype)
    x[0], x[1], x[2, 0, 0] = 0, x[1].abs() + 1, torch.finfo(dtype).max
    inputs = QuantConfig(5, symmetric=symmetric, granularity=granularity, method="dynamic")
    layer = integer_layers.DynamicLayer(nn.Linear(4, 2), QParams(0.1, 0, -7, 7), inputs)
    qparams = layer.qparams_of(x)
    scale, zero_point = layer._range_unchecked(x)
    assert torch.equal(scale, qparams.scale) and scale.dtype == qparams.scale.dtype
    assert torch.equal(zero_point, torch.as_tensor(qparams.zero_point).expand_as(zero_point))


@pytest.mark.parametrize("granularity", [PerTensor(), PerToken(), PerAxis(0)])
def test_an_exported_dynamic_network_takes_batches_of_any_size(granularity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    converted = qlearn.nn.convert(
        qlearn.nn.prepare(model, PER_CHANNEL, QuantConfig(granularity=granularity, method="dynamic"))
    )
    sizes = ({0: torch.export.Dim("N")},)
    program = torch.export.export(converted, (inputs_like((4, 12)),), dynamic_shapes=sizes, strict=False).module()
    for count in (1, 7):
        x = inputs_like((count, 12), count)
        assert torch.equal(program(x), converted(x))


@pytest.mark.filterwarnings("ignore:Dynamo")  # of what it does not trace and runs as it is
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("some", ["static", "dynamic", "weights only"])
def test_a_compiled_network_gives_the_same_numbers(some):
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = inputs_like((5, 2, 6))
    model = convert(
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(15, 4)), x, some, QuantConfig(4)
    )
    expected = model(x)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(x), expected)
