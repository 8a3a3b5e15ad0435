"""A trained network becomes an integer one: prepare, calibrate, convert."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import qlearn
from qlearn import PerAxis, PerGroup, PerTensor, PerToken, QuantConfig, datasets, quantize
from qlearn.nn.integer_layers import StaticLayer, quantized
from qlearn.nn.training import to_inputs

PER_CHANNEL = QuantConfig(symmetric=True, granularity=PerAxis(0))
PRODUCTS = ("mm", "addmm", "bmm", "linear", "matmul", "convolution", "conv2d", "_slow_conv2d_forward", "mkldnn")


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 7 * 7, 12),
        nn.ReLU(),
        nn.Linear(12, 10, bias=False),
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_inputs(datasets.mnist_arrays().calibration.images[:200])


def convert(model, images, weights=PER_CHANNEL, activations=QuantConfig(), **kwargs):
    prepared = qlearn.nn.prepare(model, weights, activations, **kwargs)
    return qlearn.nn.convert(qlearn.nn.calibrate(prepared, images, progress=False))


class OnlyIntegersAreMultiplied(TorchDispatchMode):
    """Fail as soon as a matrix product or a convolution gets a number that is not whole."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(product) for product in PRODUCTS):
            self.products += 1
            for operand in args:
                if isinstance(operand, torch.Tensor):
                    assert bool((operand == operand.round()).all()), f"{name} on numbers that are not whole"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weights", [PER_CHANNEL, QuantConfig(bits=4, symmetric=True), QuantConfig(bits=3)])
def test_the_converted_network_multiplies_integers_only(images, weights):
    model = convert(small_network(), images, weights)
    with OnlyIntegersAreMultiplied() as watch, torch.no_grad():
        model(images)
    assert watch.products == 3
    with pytest.raises(AssertionError, match="not whole"), OnlyIntegersAreMultiplied(), torch.no_grad():
        small_network()(images)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0)])
def test_accumulators_equal_int64_arithmetic(bits, symmetric, granularity):
    """Against a loop over NumPy int64: no float, none of our code."""
    torch.manual_seed(0)
    layer = nn.Linear(784, 20)
    x = torch.randn(50, 784)
    weight_qparams = QuantConfig(bits=bits, symmetric=symmetric, granularity=granularity).find_qparams(layer.weight)
    integer = quantized(layer, weight_qparams, qlearn.find_qparams(x))
    codes = quantize(x, integer.input_qparams)
    acc = integer.accumulate(codes)
    assert acc.dtype == torch.int32
    w = integer.weight_codes.numpy().astype(np.int64) - np.asarray(integer.weight_qparams.zero_point, np.int64)
    expected = (codes.numpy().astype(np.int64) - int(integer.input_zero_point)) @ w.T + integer.bias_codes.numpy()
    assert np.array_equal(acc.numpy(), expected)


def test_accumulators_stay_exact_under_autocast():
    torch.manual_seed(0)
    layer = nn.Linear(784, 10)
    x = torch.randn(20, 784)
    weights = QuantConfig(bits=4, symmetric=True, granularity=PerAxis(0))
    integer = quantized(layer, weights.find_qparams(layer.weight), qlearn.find_qparams(x))
    codes = quantize(x, integer.input_qparams)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = integer.accumulate(codes)
    assert torch.equal(inside, integer.accumulate(codes))


@pytest.mark.parametrize("geometry", [{"padding": 2}, {"stride": 2, "dilation": 2}, {"groups": 2, "padding": "same"}])
def test_convolutions_equal_int64_arithmetic(geometry):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **geometry)
    x = torch.randn(3, 4, 12, 12)
    integer = quantized(layer, PER_CHANNEL.find_qparams(layer.weight), qlearn.find_qparams(x))
    assert type(integer) is StaticLayer and integer._get_name() == "QuantizedConv2d"
    acc = integer.accumulate(quantize(x, integer.input_qparams))
    # PyTorch's own integer convolution, in int64, which cannot round and cannot wrap here.
    codes = quantize(x, integer.input_qparams).to(torch.int64) - int(integer.input_zero_point)
    expected = nn.functional.conv2d(codes, integer.weight_codes.to(torch.int64), **geometry)
    assert torch.equal(acc.to(torch.int64), expected + integer.bias_codes.reshape(-1, 1, 1))


@pytest.mark.parametrize("bits", [8, 5])
def test_the_output_is_the_float_layer_s_on_rounded_numbers(bits, images):
    """Integer arithmetic equals float64 arithmetic on the dequantized input, weights and bias."""
    model = convert(small_network(), images, QuantConfig(bits=bits, symmetric=True, granularity=PerAxis(0)))
    layer = model[4]
    x = torch.rand(20, 196)
    x_hat = qlearn.fake_quantize(x, layer.input_qparams).double()
    bias = layer.bias_codes * layer.output_scale.reshape(-1)
    expected = x_hat @ layer.dequantized_weight().double().T + bias
    # float32 rounding of x̂ and ŵ (2⁻²⁴ each) and of the result, relative to the sum of magnitudes.
    bound = 2.0**-22 * (x_hat.abs() @ layer.dequantized_weight().abs().double().T + bias.abs())
    assert ((layer(x) - expected).abs() <= bound).all()


def test_every_relu_stays_where_it_is(images):
    model = small_network()
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare(model), images, progress=False)
    for some in (prepared, qlearn.nn.convert(prepared)):
        assert [i for i, module in enumerate(some) if type(module) is nn.ReLU] == [1, 5]
    converted = qlearn.nn.convert(prepared)
    assert converted[:1](images).min() < 0  # the layer puts out its sums; the ReLU behind it cuts them off
    assert converted[:2](images).min() == 0


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_relu_behind_a_layer_is_one_on_its_accumulators_bit_for_bit(mode):
    """relu(s · acc) = s · relu(acc) for every s > 0: nothing is lost where both are not one step."""
    torch.manual_seed(1)
    layer, x = nn.Linear(300, 40, bias=False), torch.randn(64, 300)
    inputs = qlearn.find_qparams(x) if mode == "static" else QuantConfig(method="dynamic")
    integer = quantized(layer, PER_CHANNEL.find_qparams(layer.weight), inputs)
    qparams = integer.input_qparams if mode == "static" else integer.qparams_of(x)
    acc = integer.multiply(quantize(x, qparams), torch.as_tensor(qparams.zero_point))
    assert acc.min() < 0 < acc.max()
    # In float64 the product of both scales is exact, and is rounded once to float32: as the layer has it.
    scale = (torch.as_tensor(qparams.scale).double() * integer.weight_scale.reshape(-1).double()).float()
    assert torch.equal(nn.functional.relu(integer(x)), acc.clamp(min=0) * scale)


def test_a_parent_may_call_the_steps_of_a_sequential_one_by_one(images):
    """And look at, or use, what is between a layer and its ReLU: it sees what the float network has there."""

    class BeforeTheReLU(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.steps = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10))

        def forward(self, x):
            flatten, first, relu, last = self.steps
            before = first(flatten(x))
            return last(relu(before)) + before.mean(1, keepdim=True)

    model = BeforeTheReLU().eval()
    converted = convert(model, images)
    whole = converted.steps(images)
    before = converted.steps[1](images.flatten(1))
    assert before.min() < 0
    assert torch.equal(converted(images), whole + before.mean(1, keepdim=True))
    with torch.no_grad():
        expected = model(images)
    # Half a step of input and weights through two layers: measured 0.7 % of the range.
    assert (converted(images) - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


def test_hooks_on_a_relu_fire_and_see_what_it_cut_off(images):
    model = small_network()
    seen = []
    model[1].register_forward_hook(lambda module, args, y: seen.append((args[0].min().item(), y.min().item())))
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare(model), images, progress=False)
    seen.clear()
    for some in (prepared, qlearn.nn.convert(prepared)):
        some(images)
    assert len(seen) == 2
    assert all(before < 0 and after == 0 for before, after in seen)


def test_eight_bits_change_almost_nothing_and_the_model_is_not_touched(images):
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    converted = convert(model, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    with torch.no_grad():
        expected = model(images)
    # Half a step of input and weights through three layers: measured 0.6 % of the range, 2 % leaves room for other seeds.
    assert (converted(images) - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


def test_what_cannot_be_quantized_stays_float_and_is_named(images):
    converted = convert(qlearn.nn.load_trained("cnn"), images)
    summary = qlearn.nn.summary(converted)
    assert summary.float_layers == ["bn1", "bn2"]
    assert "left in float: 0.47 % of the numbers: bn1, bn2 (BatchNorm2d)" in str(summary)
    odd = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 3))
    with pytest.warns(
        UserWarning, match=r"left in float: 34 % of the numbers: 0 \(Conv2d\)\s+.*padding_mode='reflect'"
    ):
        assert qlearn.nn.summary(convert(odd, images)).float_layers == ["0"]


def test_overrides_choose_for_one_layer(images):
    overrides = {"4": {"weights": QuantConfig(bits=4, symmetric=True)}, "6": None}
    converted = convert(small_network(), images, overrides=overrides)
    assert (converted[0].bits, converted[4].bits, type(converted[6])) == (8, 4, nn.Linear)


def test_batches_may_be_a_tensor_a_list_or_pairs(images):
    labels = torch.zeros(100)
    loaders = [images, [images[:100], images[100:]], [(images[:100], labels), (images[100:], labels)]]
    converted = []
    for loader in loaders:
        prepared = qlearn.nn.prepare(small_network())
        converted.append(qlearn.nn.convert(qlearn.nn.calibrate(prepared, loader, progress=False)))
    assert torch.equal(converted[0](images), converted[1](images))
    assert torch.equal(converted[0](images), converted[2](images))


def test_observers_learn_only_inside_calibrate(images):
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare(small_network()), images, progress=False)
    first = prepared[0].observer
    assert (float(first.lo), float(first.hi)) == (float(images.min()), float(images.max()))
    prepared(1000 * images)
    assert float(first.hi) == float(images.max())


def test_shared_modules_stay_shared():
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    converted = convert(model, torch.rand(30, 5))
    assert converted[0] is converted[2]
    assert isinstance(converted[1], nn.ReLU)
    assert isinstance(converted[0], StaticLayer)


def test_a_weak_channel_keeps_its_bias():
    """Weights of 1e-12 beside a bias of 1, and no weights at all: the bias codes must still fit into int32."""
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [1e-12, 0, 0], [0, 0, 0]]))
        layer.bias.copy_(torch.tensor([0.5, 1.0, -0.3]))
    x = torch.rand(50, 3)
    for granularity in (PerAxis(0), PerTensor()):
        config = QuantConfig(symmetric=True, granularity=granularity)
        integer = quantized(layer, config.find_qparams(layer.weight), qlearn.find_qparams(x))
        assert (integer(x)[:, 1:] - layer.bias[1:]).abs().max() < 1e-4


def test_half_precision_weights_are_quantized_in_float32():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4).half()
    full = quantized(
        copy.deepcopy(layer).float(),
        PER_CHANNEL.find_qparams(layer.weight),
        qlearn.find_qparams(torch.ones(1, 8)),
    )
    half = quantized(layer, PER_CHANNEL.find_qparams(layer.weight), qlearn.find_qparams(torch.ones(1, 8)))
    assert torch.equal(full.weight_codes, half.weight_codes)
    assert half(torch.ones(1, 8).half()).dtype == torch.float16


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": QuantConfig(bits=9)}, "layer '0': weights of 9 bits; these layers take 2 to 8"),
        ({"activations": QuantConfig(bits=1)}, "layer '0': activations of 1 bits"),
        (
            {"weights": QuantConfig(granularity=PerGroup(7))},
            r"layer '0': weights take PerTensor\(\) or PerAxis\(0\), not PerGroup.* need the same scale. Groups work",
        ),
        ({"weights": QuantConfig(granularity=PerAxis(1))}, r"weights take PerTensor\(\), PerAxis\(0\) or PerGroup"),
        (
            {"weights": QuantConfig(granularity=PerGroup(5)), "activations": None},
            r"'0, 4, 6' \(rows of 9, 196, 12\) cannot have PerGroup\(group_size=5\): overrides=\{'0, 4, 6': ",
        ),
        (
            {"weights": QuantConfig(granularity=PerGroup(5)), "activations": None, "overrides": {"4, 6": None}},
            "layer '0': group_size=5 does not divide x's last axis of length 9. Sizes that do: 1, 3, 9",
        ),
        (
            {"weights": QuantConfig(granularity=PerToken())},
            r"layer '0': weights take PerTensor\(\), PerAxis\(0\) or PerGroup\(…\), not PerToken\(\)",
        ),
        (
            {"activations": QuantConfig(method="dynamic", granularity=PerToken())},
            r"layer '0': activations take .* PerToken\(\) in a Linear, not PerToken",
        ),
        ({"weights": QuantConfig(method="moving_average")}, "weights do not come in batches: the method 'moving_av"),
        (
            {"activations": QuantConfig(granularity=PerAxis(0))},
            r"activations take PerTensor\(\), or with method='dynamic' PerAxis\(0\), .* not PerAxis",
        ),
        ({"activations": QuantConfig(method="cross_entropy")}, "layer '0': method='cross_entropy'"),
        ({"overrides": {"4": {"weight": QuantConfig()}}}, r"overrides\['4'\] has 'weight': it may have 'weights'"),
        ({"overrides": {"fc": None}}, "overrides names 'fc', which is no layer to quantize; those are 0, 4, 6"),
    ],
)
def test_wrong_configurations_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        qlearn.nn.prepare(small_network(), **kwargs)


def test_wrong_order_and_wrong_data_are_named(images):
    model = small_network()
    with pytest.raises(
        ValueError, match="ReLU has no Linear, Conv1d, Conv2d or ConvTranspose2d that could be quantized"
    ):
        qlearn.nn.prepare(nn.ReLU())
    with pytest.raises(ValueError, match=r"no observers: call nn.prepare\(model\) first"):
        qlearn.nn.calibrate(model, images)
    with pytest.raises(ValueError, match="this model is prepared already"):
        qlearn.nn.prepare(qlearn.nn.prepare(model))
    with pytest.raises(
        RuntimeError, match=r"call nn.calibrate\(model, batches\) before convert: no data has reached 0, 4, 6"
    ):
        qlearn.nn.convert(qlearn.nn.prepare(model))
    with pytest.raises(ValueError, match="the loader is empty"):
        qlearn.nn.calibrate(qlearn.nn.prepare(model), [], progress=False)
    prepared = qlearn.nn.prepare(model)
    with torch.no_grad():
        prepared[0].layer.bias[2] = torch.nan
    with pytest.raises(ValueError, match="layer '4': its input cannot be used: x holds .* values that are not finite"):
        qlearn.nn.calibrate(prepared, images, progress=False)
    assert not prepared[0].calibrating


def test_an_accumulator_that_could_overflow_is_refused():
    layer = nn.Linear(70_000, 1)
    with pytest.raises(ValueError, match="sums of 70000 products can reach .* does not fit into an int32 accumulator"):
        quantized(layer, PER_CHANNEL.find_qparams(layer.weight), qlearn.find_qparams(torch.rand(1, 2)))


# --- README.md --------------------------------------------------------------------------------------------------------


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 5))
    known = {"x": torch.randn(6, 8).numpy(), "model": nn.Sequential(*layers), "batches": [torch.rand(9, 3, 32, 32)]}
    for block in blocks:
        exec(block, known)
    printed = capsys.readouterr().out
    assert "SQNR" in printed and "4 bits per channel" in printed
    again = qlearn.nn.load(known["model"], "network.safetensors")
    assert torch.equal(again(known["batches"][0]), known["quantized"](known["batches"][0]))
    assert Path("network.onnx").stat().st_size > 1000
