"""Every way to quantize a network after training, and networks, inputs and loaders out of the ordinary."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qlearn
from qlearn import PerAxis, PerGroup, PerTensor, QuantConfig, datasets, fake_quantize, quantize
from qlearn.nn.integer_layers import IntegerLayer, StaticLayer, quantized
from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.prepared import prepared_layers
from qlearn.nn.training import to_inputs

PER_CHANNEL = QuantConfig(symmetric=True, granularity=PerAxis(0))
DYNAMIC = QuantConfig(method="dynamic")
ROWS = QuantConfig(method="dynamic", granularity=PerAxis(0))
MUCH_IN_FLOAT = pytest.mark.filterwarnings("ignore:left in float")  # which is what these tests are about


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 7 * 7, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_inputs(datasets.mnist_arrays().calibration.images[:100])


def convert(model, images, weights=PER_CHANNEL, activations=QuantConfig(), **kwargs):
    prepared = qlearn.nn.prepare(model, weights, activations, **kwargs)
    return qlearn.nn.convert(qlearn.nn.calibrate(prepared, images, progress=False))


# --- static: any observer ---------------------------------------------------------------------------------------------

METHODS = ("min_max", "moving_average", "percentile", "mse", "entropy")


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_the_observer_that_the_method_names(method, images):
    """Against an observer that is shown the layer's input outside the network."""
    config = QuantConfig(bits=5, method=method)
    model = small_network().eval()
    converted = convert(model, [images[:50], images[50:]], activations=config)
    observer = qlearn.observers.make_observer(config)
    with torch.no_grad():
        for batch in (images[:50], images[50:]):
            observer.observe(model[:4](batch))
    expected = observer.qparams()
    assert float(converted[4].input_scale) == float(expected.scale)
    assert int(converted[4].input_zero_point) == int(expected.zero_point)


def test_methods_find_different_ranges(images):
    scales = {
        method: float(convert(small_network(), images, activations=QuantConfig(bits=4, method=method))[6].input_scale)
        for method in METHODS
    }
    assert len({scales[name] for name in ("min_max", "percentile", "mse")}) == 3
    assert max(scales.values()) == scales["min_max"]


# --- dynamic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [8, 3])
def test_dynamic_layers_are_the_float_layers_on_rounded_inputs(bits, symmetric):
    """In float64, on x̂ and ŵ of the batch itself: products and sums are then exact but for float64's own rounding."""
    torch.manual_seed(0)
    inputs = QuantConfig(bits, symmetric=symmetric, method="dynamic")
    find = QuantConfig(bits, symmetric=symmetric).find_qparams
    linear, conv = nn.Linear(30, 5), nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    for layer, batch in ((linear, (7, 30)), (conv, (3, 4, 9, 9))):
        integer = quantized(layer, PER_CHANNEL.find_qparams(layer.weight), inputs)
        exact = copy.deepcopy(layer).double()
        exact.weight.data = integer.dequantized_weight().double()
        for spread in (1.0, 100.0):
            x = spread * torch.randn(batch)
            expected = exact(fake_quantize(x, find(x)).double())
            # x̂ and ŵ are rounded to float32, 2⁻²⁴ of each at most, and so is the result.
            bound = 2.0**-22 * (expected.abs().max() + 1) * spread
            assert (integer(x) - expected).abs().max() <= bound


def test_a_dynamic_network_needs_no_calibration_and_follows_its_input(images):
    converted = qlearn.nn.convert(qlearn.nn.prepare(small_network(), activations=DYNAMIC))
    kinds = [layer._get_name() for layer in converted.modules() if isinstance(layer, QuantizedLayer)]
    assert kinds == ["DynamicConv2d", "DynamicLinear", "DynamicLinear"]
    model = small_network().eval()
    with torch.no_grad():
        for scale in (1, 1000):  # a static range would clip nearly everything
            expected = model(scale * images)
            worst = (converted(scale * images) - expected).abs().max()
            # Half a step of input and weights in three layers: measured 0.6 % of the range.
            assert worst <= 0.02 * (expected.max() - expected.min())


def test_per_row_an_output_does_not_depend_on_its_batch(images):
    loud = torch.cat([images[:1], 100 * images[1:2]])
    for model in (small_network(), qlearn.nn.load_trained("mlp")):
        rows = qlearn.nn.convert(qlearn.nn.prepare(model, activations=ROWS))
        assert torch.equal(rows(loud)[:1], rows(images[:1]))
        tensor = qlearn.nn.convert(qlearn.nn.prepare(model, activations=DYNAMIC))
        assert not torch.equal(tensor(loud)[:1], tensor(images[:1]))
        assert torch.equal(tensor(images[:1]), rows(images[:1]))  # one image alone: both are the same


def test_rows_need_a_batch():
    layer = qlearn.nn.convert(qlearn.nn.prepare(nn.Linear(4, 2), activations=ROWS))
    with pytest.raises(ValueError, match=r"an input of shape \(4,\) has no axis for the batch: x\[None\] has one"):
        layer(torch.ones(4))
    assert layer(torch.ones(4)[None]).shape == (1, 2)


# --- weight-only ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerGroup(3)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weight_only_layers_are_the_float_layers_on_rounded_weights(granularity, symmetric, images):
    config = QuantConfig(bits=3, symmetric=symmetric, granularity=granularity, method="mse")
    model = small_network().eval()
    overrides = {"4": {"weights": QuantConfig(4, granularity=PerGroup(49))}, "6": None}
    converted = convert(model, [], config, None, overrides=overrides)
    assert [converted[i]._get_name() for i in (0, 4, 6)] == ["WeightOnlyConv2d", "WeightOnlyLinear", "Linear"]
    rounded = copy.deepcopy(model)
    conv, linear = model[0].weight.detach(), model[4].weight.detach()
    matrix = conv.reshape(4, 9) if isinstance(granularity, PerGroup) else conv
    rounded[0].weight.data = fake_quantize(matrix, config.find_qparams(matrix)).reshape(conv.shape)
    rounded[4].weight.data = fake_quantize(linear, overrides["4"]["weights"].find_qparams(linear))
    with torch.no_grad():
        assert torch.equal(converted(images), rounded(images))


def test_groups_are_finer_than_channels(images):
    model = qlearn.nn.load_trained("mlp")
    errors, sizes = [], []
    for granularity in (PerTensor(), PerAxis(0), PerGroup(28)):
        weights = QuantConfig(bits=2, symmetric=True, granularity=granularity)
        layer = convert(model, [], weights, None, overrides={"linear2": None, "linear3": None}).linear1
        errors.append(float((layer.dequantized_weight() - model.linear1.weight.detach()).square().mean()))
        sizes.append(qlearn.nn.summary(layer).bytes)
    assert errors[0] > errors[1] > errors[2]
    assert sizes == [n + 784 * 100 * 2 // 8 + 4 * 100 + 4 for n in (4, 400, 100 * 28 * 4)]


def test_layers_of_one_network_may_differ(images):
    overrides = {"0": {"activations": None}, "4": {"activations": ROWS}, "6": {"weights": QuantConfig(bits=2)}}
    converted = convert(small_network(), images, overrides=overrides)
    assert [(converted[i]._get_name(), converted[i].bits) for i in (0, 4, 6)] == [
        ("WeightOnlyConv2d", 8),
        ("DynamicLinear", 8),
        ("QuantizedLinear", 2),
    ]
    text = str(qlearn.nn.summary(converted))
    for part in ("8 bits per channel  float", "8 bits per channel  8 bits dynamic per row", "2 bits per tensor "):
        assert part in text


# --- inputs out of the ordinary ---------------------------------------------------------------------------------------

MODES = {"static": QuantConfig(), "dynamic": DYNAMIC, "rows": ROWS, "weights only": None}


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_gives_an_empty_output(mode, images):
    model = small_network().eval()
    converted = convert(model, images, activations=MODES[mode])
    assert converted(images[:0]).shape == model(images[:0]).shape == (0, 10)
    assert converted(images[:0]).dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_inputs_and_weights_need_not_lie_in_order(mode, images):
    model = small_network().eval()
    strided = copy.deepcopy(model)
    strided[0].weight.data = strided[0].weight.to(memory_format=torch.channels_last)
    strided[4].weight.data = strided[4].weight.T.contiguous().T
    assert not strided[4].weight.is_contiguous()
    converted, other = (convert(m, images, activations=MODES[mode]) for m in (model, strided))
    x = images.transpose(2, 3)
    assert not x.is_contiguous()
    # Float convolutions sum in an order that hangs on the layout: of the outputs, or of the range that was seen, the
    # last bits may differ. A wrong order of the values would show in the first digit.
    y = converted(x)
    assert (y - other(x.contiguous())).abs().max() <= 1e-5 * y.abs().max()
    assert torch.equal(converted[4].weight_codes, other[4].weight_codes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_float_types(mode, dtype, images):
    """Codes are those of the same weights in float32; the output has the input's type."""
    model = small_network().to(dtype)
    converted = convert(model, images.to(dtype), activations=MODES[mode])
    assert converted(images.to(dtype)).dtype == dtype
    same = convert(copy.deepcopy(model).float(), images.to(dtype).float(), activations=MODES[mode])
    assert torch.equal(converted[0].weight_codes, same[0].weight_codes)
    exact = same(images.to(dtype).float())
    # Between layers numbers have the type's own precision; a layer's error is passed on, so a few of them.
    bound = 16 * torch.finfo(dtype).eps * exact.abs().max() + 0.02 * (exact.max() - exact.min())
    assert (converted(images.to(dtype)) - exact).abs().max() <= bound


@pytest.mark.parametrize("mode", MODES)
def test_scales_stay_as_they_are_when_a_network_changes_its_type(mode, images):
    converted = convert(small_network(), images, activations=MODES[mode])
    half = copy.deepcopy(converted).half()
    numbers, others = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (converted, half))
    scales = [name for name in numbers if name.endswith("scale")]
    assert len(scales) == 3 * (2 if mode == "static" else 1)
    for name in scales:
        assert torch.equal(numbers[name], others[name]) and others[name].dtype == torch.float32
    assert half(images.half()).dtype == torch.float16


def test_nan_in_a_batch_raises_and_names_it(images):
    converted = convert(small_network(), images)
    with pytest.raises(ValueError, match="layer '0': x holds 1 value"):
        converted(images.masked_fill(torch.arange(images.numel()).reshape(images.shape) == 5, torch.nan))


# --- networks out of the ordinary -------------------------------------------------------------------------------------


@MUCH_IN_FLOAT
def test_a_transformer_layer_s_own_weights_stay_float_and_it_still_works():
    """PyTorch's quick path reads `linear1.weight` and never calls `linear1`: an observer there would see nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 16),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False),
        nn.Linear(16, 4),
    ).eval()
    x = torch.randn(20, 5, 16)
    converted = convert(model, x)
    assert [type(converted[i]) for i in (0, 2)] == [StaticLayer, StaticLayer]
    floats = qlearn.nn.summary(converted).float_layers
    for name in ("linear1", "linear2", "self_attn", "self_attn.out_proj", "norm1"):
        assert f"1.layers.0.{name}" in floats
    with torch.no_grad():
        expected = model(x)
        # Two of 8 bits around a float block: measured 0.7 % of the range.
        assert (converted(x) - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


@MUCH_IN_FLOAT
def test_attention_keeps_its_projection():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.attention(x, x, x, need_weights=False)[0])

    model, x = Block().eval(), torch.randn(10, 4, 8)
    converted = convert(model, x)
    assert type(converted.attention.out_proj) is type(model.attention.out_proj)
    assert type(converted.out) is StaticLayer
    assert qlearn.nn.summary(converted).float_layers == ["attention", "attention.out_proj"]


class Tied(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.decoder = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return nn.functional.linear(self.encoder(x), self.decoder.weight.T)


def test_a_weight_that_is_read_and_never_called_is_reported_with_the_way_out():
    prepared = qlearn.nn.prepare(Tied())
    with pytest.warns(UserWarning, match=r"^decoder: not called in the first pass.*overrides=\{'decoder': None\}"):
        qlearn.nn.calibrate(prepared, torch.rand(9, 6), progress=False)
    with pytest.raises(RuntimeError, match=r"no data has reached decoder. .* overrides=\{'decoder': None\}"):
        qlearn.nn.convert(prepared)
    model = convert(Tied(), torch.rand(9, 6), overrides={"decoder": None})
    assert model(torch.rand(2, 6)).shape == (2, 6)


def test_a_shared_layer_is_observed_once_with_all_it_sees():
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    prepared = qlearn.nn.prepare(nn.Sequential(shared, nn.Hardtanh(-7, 7), shared))
    assert prepared[0] is prepared[2]
    x = torch.rand(30, 5)
    qlearn.nn.calibrate(prepared, x, progress=False)
    with torch.no_grad():
        second = shared(x)
    assert float(prepared[0].observer.lo) == min(float(x.min()), float(second.min()))
    assert float(prepared[0].observer.hi) == max(float(x.max()), float(second.max()))
    assert len(qlearn.nn.summary(qlearn.nn.convert(prepared)).layers) == 1


@MUCH_IN_FLOAT
def test_what_is_not_exactly_a_layer_that_we_know_stays_float_and_is_named():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(3, 3), nn.Linear(3, 6), nn.LayerNorm(6), nn.Unflatten(1, (2, 3)), nn.GRU(3, 2))
    converted = convert(model, torch.rand(9, 3))
    assert [type(module) for module in converted] == [Doubled, StaticLayer, nn.LayerNorm, nn.Unflatten, nn.GRU]
    assert qlearn.nn.summary(converted).float_layers == ["0", "2", "4"]


def test_weights_that_are_not_finite_name_their_layer(images):
    model = small_network()
    with torch.no_grad():
        model[6].weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="layer '6': x holds 1 value"):
        convert(model, images)


def test_a_network_that_is_one_layer(images):
    converted = convert(nn.Linear(4, 2, bias=False), torch.rand(9, 4))
    assert converted.bias is None and converted.bias_codes is None and type(converted) is StaticLayer
    assert qlearn.nn.summary(converted).layers[0].name == "(model)"
    assert qlearn.nn.summary(converted).parameters == 8


@pytest.mark.parametrize("mode", MODES)
def test_layers_without_bias_have_none(mode):
    torch.manual_seed(0)
    layer = nn.Linear(6, 3, bias=False)
    x = torch.randn(50, 6)
    converted = convert(layer, x, activations=MODES[mode])
    assert converted.bias is None and not any("bias" in name for name in converted.state_dict())
    # Half a step of 8 bits for each of six products: measured 0.01.
    assert (converted(x) - layer(x)).abs().max() < 0.05


# --- calibration ------------------------------------------------------------------------------------------------------


def seen_by(prepared):
    return [copy.deepcopy(vars(m.observer)) for m in prepared.modules() if hasattr(m, "observer")]


@pytest.mark.parametrize("method", ["min_max", "moving_average"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_calibration_changes_no_observer(method, error, images):
    prepared = qlearn.nn.prepare(small_network(), activations=QuantConfig(method=method))
    qlearn.nn.calibrate(prepared, images, progress=False)
    before = seen_by(prepared)

    def batches():
        yield 5 * images
        raise error

    with pytest.raises(error):
        qlearn.nn.calibrate(prepared, batches(), progress=False)
    assert seen_by(prepared) == before
    assert not any(layer.calibrating for layer in prepared_layers(prepared))
    qlearn.nn.convert(prepared)


def test_a_calibration_that_fails_in_a_later_layer_changes_no_earlier_one(images):
    prepared = qlearn.nn.prepare(small_network())
    with torch.no_grad():
        prepared[4].layer.bias[0] = torch.inf
    with pytest.raises(ValueError, match="layer '6': its input cannot be used"):
        qlearn.nn.calibrate(prepared, images, progress=False)
    assert not any(module.observer.seen for module in prepared.modules() if hasattr(module, "observer"))


@MUCH_IN_FLOAT
def test_calibration_is_done_in_eval_mode_and_gives_the_mode_back(images):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Dropout(0.5), nn.Linear(784, 3))
    prepared = qlearn.nn.prepare(model).train()
    before = copy.deepcopy(prepared.state_dict())
    qlearn.nn.calibrate(prepared, images, progress=False)
    after = prepared.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert after.keys() - before.keys() == {"3.observer.lo", "3.observer.hi"}  # what it is for
    assert float(prepared[3].observer.hi) == pytest.approx(
        float(images.max()), rel=1e-4
    )  # nothing dropped, no doubling
    assert all(module.training for module in prepared.modules())


def test_calibrating_twice_adds(images):
    one = qlearn.nn.prepare(small_network())
    for batch in (images[:50], images[50:]):
        qlearn.nn.calibrate(one, batch, progress=False)
    both = qlearn.nn.calibrate(qlearn.nn.prepare(small_network()), images, progress=False)
    assert seen_by(one) == seen_by(both)


def test_loaders_of_nothing_and_of_numpy_are_refused(images):
    prepared = qlearn.nn.prepare(small_network())
    with pytest.raises(ValueError, match="the loader is empty"):
        qlearn.nn.calibrate(prepared, iter(()), progress=False)
    with pytest.raises(ValueError, match="the loader is empty"):
        qlearn.nn.calibrate(prepared, torch.utils.data.DataLoader([]), progress=False)
    with pytest.raises(TypeError, match=r"NumPy arrays, but networks take tensors: nn.to_inputs"):
        qlearn.nn.calibrate(prepared, [np.zeros((3, 1, 28, 28), np.float32)], progress=False)
    qlearn.nn.calibrate(prepared, [images[:0]], progress=False)
    with pytest.raises(RuntimeError, match="no data has reached 0, 4, 6"):
        qlearn.nn.convert(prepared)


# --- summary ----------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Has a parameter of its own beside a child, and a child called "layer"."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.layer = nn.Linear(4, 3)
        self.inner = nn.ModuleDict({"layer": nn.Linear(3, 2, bias=False)})

    def forward(self, x):
        return self.inner["layer"](self.gain * self.layer(x))


@MUCH_IN_FLOAT
def test_summary_names_what_the_learner_named():
    model = Scaled()
    named = ["(model)", "layer", "inner.layer"]
    assert [layer.name for layer in qlearn.nn.summary(model).layers] == named
    prepared = qlearn.nn.prepare(model)
    assert [layer.name for layer in qlearn.nn.summary(prepared).layers] == named
    assert [layer.kind for layer in qlearn.nn.summary(prepared).layers] == [
        "Scaled",
        "Linear, prepared",
        "Linear, prepared",
    ]
    assert qlearn.nn.summary(prepared).float_layers == ["(model)"]
    converted = convert(model, torch.rand(9, 4))
    assert [layer.name for layer in qlearn.nn.summary(converted).layers] == named
    for some in (model, prepared, converted):
        assert [layer.parameters for layer in qlearn.nn.summary(some).layers] == [3, 15, 6]
        assert qlearn.nn.summary(some).bytes == sum(tensor.nbytes for tensor in some.state_dict().values())


def test_summary_counts_scales_and_shows_their_range():
    layer = nn.Linear(4, 3)
    layer.weight.data = torch.diag(torch.tensor([127.0, 12.7, 1.27, 0.0]))[:3]
    row = qlearn.nn.summary(convert(layer, torch.rand(9, 4))).layers[0]
    assert (row.scales, row.weights, row.inputs) == (3, "8 bits per channel", "8 bits")
    assert row.scale_range == (pytest.approx(0.01), 1.0)
    head = str(qlearn.nn.summary(convert(layer, torch.rand(9, 4)))).splitlines()[0]
    assert " ".join(head.split()) == "layer kind weights inputs parameters scales from to bytes"


def test_summary_of_weights_in_groups():
    converted = convert(nn.Linear(12, 3), [], QuantConfig(bits=4, granularity=PerGroup(4)), None)
    row = qlearn.nn.summary(converted).layers[0]
    assert (row.scales, row.weights, row.inputs) == (9, "4 bits per group of 4", "float")
    assert row.bytes == 12 * 3 // 2 + 9 * 4 + 9 * 4 + 3 * 4  # codes, scales, zero points, bias


# --- accumulators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["static", "dynamic", "rows"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_largest_sum_is_reached_and_never_passed(mode, symmetric):
    """The bound that guards the accumulator: inputs and weights that are all at the far end of their codes."""
    config = QuantConfig(8, symmetric=symmetric)
    layer = nn.Linear(50, 1, bias=False)
    layer.weight.data.fill_(1.0)
    x = torch.ones(2, 50)
    inputs = config.find_qparams(x) if mode == "static" else replace(MODES[mode], symmetric=symmetric)
    integer = quantized(layer, config.find_qparams(layer.weight), inputs)
    assert isinstance(integer, IntegerLayer)
    qparams = integer.input_qparams if mode == "static" else integer.qparams_of(x)
    acc = integer.multiply(quantize(x, qparams), torch.as_tensor(qparams.zero_point))
    assert int(acc.max()) == integer.largest_sum == 50 * (127**2 if symmetric else 255**2)
