"""The explorer of lesson 05: every setting is what prepare, calibrate and convert make, on the same digits, exactly."""

from __future__ import annotations

import base64
import copy
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import qlearn
from pictures import picture
from qlearn import PerAxis, PerTensor, QuantConfig, datasets, errors, fake_quantize
from qlearn.nn.prepared import prepared_layers
from qlearn.widgets import explore_ptq, ptq_runs
from qlearn.widgets.controls import Slider
from qlearn.widgets.digit_networks import PoolOfFour
from qlearn.widgets.ptq_runs import Network, Setting

GRANULARITIES = {"tensor": PerTensor(), "channel": PerAxis(0)}
SETTINGS = [
    Setting(8, 8, "channel", "min_max"),
    Setting(3, 8, "tensor", "min_max"),
    Setting(2, 5, "channel", "mse"),
    Setting(4, 2, "tensor", "percentile"),
    Setting(6, "float", "channel", "mse"),
    Setting("float", "float", "tensor", "percentile"),
]


@pytest.fixture(scope="module")
def data():
    return datasets.mnist_arrays()


@pytest.fixture(scope="module")
def made():
    return explore_ptq()


@pytest.fixture
def explorer(made):
    made.reset()
    return made


def by_hand(name, setting, data):
    """The network of a setting, the long way."""
    model = qlearn.nn.load_trained(name)
    if setting.weight_bits == setting.activation_bits == "float":
        return model
    granularity = GRANULARITIES[setting.granularity]
    weights = QuantConfig(setting.weight_bits, symmetric=True, granularity=granularity, method=setting.method)
    activations = None
    if setting.activation_bits != "float":
        activations = QuantConfig(setting.activation_bits, method=setting.method)
    prepared = qlearn.nn.prepare(model, weights, activations)
    calibration = qlearn.nn.to_inputs(data.calibration.images)
    return qlearn.nn.convert(qlearn.nn.calibrate(prepared, calibration, progress=False))


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting)))
def test_numbers_are_those_of_prepare_calibrate_convert(name, setting, explorer, data):
    explorer.set(network=name, **setting._asdict())
    model, floats = by_hand(name, setting, data), qlearn.nn.load_trained(name)
    images, labels = data.test.images[:1000], data.test.labels[:1000]
    numbers = explorer.numbers
    assert numbers["accuracy_percent"] == 100 * qlearn.nn.accuracy(model, images, labels)
    assert numbers["float_percent"] == 100 * qlearn.nn.accuracy(floats, images, labels)
    assert numbers["bytes"] == qlearn.nn.summary(model).bytes
    assert numbers["size_percent"] == 100 * numbers["bytes"] / qlearn.nn.summary(floats).bytes
    with torch.no_grad():
        now, before = (network(qlearn.nn.to_inputs(images)).argmax(1).numpy() for network in (model, floats))
    assert np.array_equal(explorer.result["flipped"]["wrong"], np.flatnonzero((before == labels) & (now != labels)))
    assert np.array_equal(explorer.result["flipped"]["right"], np.flatnonzero((before != labels) & (now == labels)))
    assert np.array_equal(explorer.result["answers"], (before, now))
    assert numbers["became_wrong"] == len(explorer.result["flipped"]["wrong"])
    for digit in range(10):
        assert explorer.result["by_digit"][digit] == 100 * (now == labels)[labels == digit].mean()


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("setting", SETTINGS[:5], ids=lambda setting: "-".join(map(str, setting)))
def test_the_layer_shown_is_the_layer_used(layer, setting, explorer, data):
    explorer.set(network="mlp", layer=layer, **setting._asdict())
    quantized = by_hand("mlp", setting, data).get_submodule(f"linear{layer}")
    weight = qlearn.nn.load_trained("mlp").get_submodule(f"linear{layer}").weight.detach()
    after = quantized.dequantized_weight()
    result = explorer.result
    assert result["name"] == f"linear{layer}"
    assert result["weight_sqnr_db"] == pytest.approx(errors.sqnr_db(weight.numpy(), after.numpy()), rel=1e-6)
    assert result["scales"] == quantized.weight_scale.numel()
    assert np.array_equal(result["before"], np.histogram(weight, result["edges"])[0])
    assert np.array_equal(result["after"], np.histogram(after, result["edges"])[0])
    assert result["before"].sum() == result["after"].sum() == weight.numel()


@pytest.mark.parametrize("bits", [8, 3])
def test_float_weights_with_rounded_activations(bits, data):
    """`nn.prepare` has no such setting: float layers, each on a rounded input."""
    network, floats = Network("mlp"), qlearn.nn.load_trained("mlp")
    prepared = qlearn.nn.prepare(floats, activations=QuantConfig(bits, method="mse"))
    qlearn.nn.calibrate(prepared, qlearn.nn.to_inputs(data.calibration.images), progress=False)
    x = qlearn.nn.to_inputs(data.test.images[:1000]).flatten(1)
    with torch.no_grad():
        for name in ("linear1", "linear2", "linear3"):
            layer = prepared.get_submodule(name)
            x = layer.layer(fake_quantize(x, layer.observer.qparams()))
            x = x if name == "linear3" else x.relu()
    outcome = network.outcome(Setting("float", bits, "tensor", "mse"))
    assert np.array_equal(outcome.says, x.argmax(1).numpy())
    assert outcome.bytes == network.floats.bytes == 4 * 89_610


def test_calibration_digits_choose_ranges_and_test_digits_judge(data, monkeypatch):
    shown = []
    ordinary = qlearn.nn.calibrate
    monkeypatch.setattr(ptq_runs.nn, "calibrate", lambda model, x, **kw: shown.append(x) or ordinary(model, x, **kw))
    Network("mlp").outcome(Setting(4, 4, "channel", "mse"))
    calibration = qlearn.nn.to_inputs(data.calibration.images)
    assert len(shown) == 2 and all(torch.equal(x, calibration) for x in shown)  # "min_max" names the layers
    images, labels = ptq_runs.digits()
    assert np.array_equal(images, data.test.images[:1000]) and np.array_equal(labels, data.test.labels[:1000])


def test_nothing_is_found_twice(monkeypatch):
    network = Network("mlp")
    calls = {"calibrate": 0, "quantized": 0}

    def counted(name, ordinary):
        def call(*args, **kwargs):
            calls[name] += 1
            return ordinary(*args, **kwargs)

        return call

    monkeypatch.setattr(ptq_runs.nn, "calibrate", counted("calibrate", qlearn.nn.calibrate))
    monkeypatch.setattr(ptq_runs, "quantized", counted("quantized", ptq_runs.quantized))
    for _ in range(3):
        for bits in (2, 3, 4):
            network.outcome(Setting(bits, 8, "channel", "mse"))
            network.outcome(Setting(bits, 8, "tensor", "mse"))
    assert calls == {"calibrate": 1, "quantized": 2 * 3 * 3}


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 2, 7, 9), (3, 1, 2, 3)])
def test_quick_pooling_is_pooling(shape):
    x = torch.randn(shape)
    assert torch.equal(PoolOfFour()(x), nn.MaxPool2d(2)(x))


def test_threads_are_as_before(explorer):
    before = torch.get_num_threads()
    explorer.set(weight_bits=7, activation_bits=7)
    assert torch.get_num_threads() == before


# --- the page ---------------------------------------------------------------------------------------------------------


def ends_of(control):
    return [control.lo, control.hi] if isinstance(control, Slider) else list(control.options.values())


def test_both_ends_of_every_control(explorer):
    for name, control in explorer.controls.items():
        for end in ends_of(control):
            explorer._inputs[name].value = end
            assert explorer._message.value == "" and explorer.values[name] == end
            assert "nan" not in explorer._table.value and "not a number" not in explorer._table.value
        explorer.reset()
    for which in (0, -1):
        explorer.set(**{name: ends_of(control)[which] for name, control in explorer.controls.items()})
        assert explorer._message.value == ""


def test_every_control_changes_the_picture_and_reset_changes_it_back(explorer):
    before = explorer._picture.value
    for name, control in explorer.controls.items():
        pixels, start = picture(explorer), explorer.values[name]
        explorer.set(**{name: next(end for end in ends_of(control) if end != start)})
        assert (picture(explorer) != pixels).any(), name
        explorer._button.click()
    assert explorer._picture.value == before


@pytest.mark.parametrize("change", [{}, {"network": "cnn", "layer": 2, "weight_bits": 4}, {"weight_bits": "float"}])
def test_blitted_picture_is_the_drawn_one(explorer, change):
    explorer.set(**change)
    blitted = picture(explorer)
    explorer._canvas.draw()
    drawn = np.asarray(explorer._canvas.buffer_rgba())[..., :3]
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.002


def test_digits_are_shown_with_both_answers(explorer, data):
    result = explorer.result
    first = result["flipped"]["wrong"][0]
    shown = explorer._flipped["wrong"]
    assert np.array_equal(shown._mosaic.get_array()[:28, :28], data.test.images[first])
    now = result["answers"][1][first]
    assert shown._captions[0].get_text() == f"{data.test.labels[first]} → {now}"
    assert (
        shown._title.get_text()
        == f"Became wrong: 15 of {explorer.numbers['became_wrong']} (answer in float → answer now)"
    )
    explorer.set(weight_bits="float", activation_bits="float")
    assert [text.get_text() for text in shown._captions] == [""] * 15
    assert shown._title.get_text() == "Became wrong: 0"
    assert not shown._mosaic.get_array().any()


def test_the_steps_add_up(explorer):
    explorer.set(weight_bits=2)
    numbers, steps = explorer.numbers, explorer.explain(explorer.result)
    assert steps[0].startswith("linear1: scale ") and steps[0].endswith(", codes −1 … 1")
    assert steps[1] == "its input: 0 … 1 in 255 steps"
    right = round(10 * numbers["accuracy_percent"])
    before = round(10 * numbers["float_percent"])
    assert steps[2] == (
        f"right answers: {before} − {numbers['became_wrong']} + {numbers['became_right']} = {right} of 1,000"
    )
    assert before - numbers["became_wrong"] + numbers["became_right"] == right
    explorer.set(granularity="channel", weight_bits=4, activation_bits="float")
    assert explorer.explain(explorer.result)[0].startswith("linear1: 100 scales, ")
    assert len(explorer.explain(explorer.result)) == 2
    explorer.set(weight_bits="float")
    assert explorer.explain(explorer.result)[0] == "linear1: weights in float"


def test_bundle_for_every_reader(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(explorer)
    assert str(explorer).startswith(
        "Post-training quantization (network MLP, weight bits 3, activ. bits 8, granularity per tensor, "
        "range min-max, layer 1): accuracy 91.8 %, in float 97.9 %, became wrong 66, became right 5,"
    )
    assert "\n" not in str(explorer) and str(explorer).endswith(".")
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size[0] == 1600


def test_it_can_be_read_and_moved_without_a_mouse(explorer):
    for name, widget in explorer._inputs.items():
        assert widget.description == explorer.controls[name].label
        assert (widget.tooltip if hasattr(widget, "tooltip") else widget.description_tooltip).endswith(".")
        assert getattr(widget, "continuous_update", True)
    assert explorer._table.value.count('<th scope="row">') == len(explorer.numbers) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_bits": 1}, "weight_bits=1 must be one of 2 "),
        ({"activation_bits": 4.0}, "activation_bits=4.0 must be one of"),
        ({"granularity": "group"}, r"granularity='group' must be one of 'tensor' \(per tensor\), 'channel'"),
        ({"method": "entropy"}, "method='entropy' must be one of 'min_max'"),
        ({"network": "resnet"}, "network='resnet' must be one of 'mlp'"),
        ({"layer": 4}, "layer=4 must be a whole number from 1 to 3"),
    ],
)
def test_set_says_what_is_allowed(explorer, change, message):
    before = explorer.values
    with pytest.raises(ValueError, match=message):
        explorer.set(**change)
    with pytest.raises(ValueError, match=message):
        explore_ptq(**change)
    assert explorer.values == before


# --- a learner's own network ------------------------------------------------------------------------------------------


class Own(nn.Module):
    """Not a Sequential; it has a layer that is used twice, and pools in another way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 5, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.hidden = nn.Linear(75, 75)
        self.out = nn.Linear(75, 10)

    def forward(self, x):
        x = self.pool(self.conv(x).relu()).flatten(1)
        return self.out(self.hidden(self.hidden(x).relu()).relu())


def test_a_network_of_one_s_own(data):
    model = Own().train()
    before = copy.deepcopy(model.state_dict())
    explorer = explore_ptq(model, weight_bits=8)
    assert "network" not in explorer.controls
    assert explorer.controls["layer"].hi == 3
    prepared = qlearn.nn.prepare(model, QuantConfig(8, symmetric=True), QuantConfig())
    qlearn.nn.calibrate(prepared, qlearn.nn.to_inputs(data.calibration.images), progress=False)
    accuracy = qlearn.nn.accuracy(qlearn.nn.convert(prepared), data.test.images[:1000], data.test.labels[:1000])
    assert explorer.numbers["accuracy_percent"] == 100 * accuracy
    explorer.set(layer=3, weight_bits=2)
    assert explorer.result["name"] == "out"
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_later_change_of_one_s_own_network_changes_nothing(data):
    model = Own()
    explorer = explore_ptq(model)
    before = explorer.numbers
    with torch.no_grad():
        model.out.weight.zero_()
    explorer.set(weight_bits=8)
    explorer.reset()
    assert explorer.numbers == before


def test_a_slow_network_is_asked_when_the_slider_is_let_go(monkeypatch):
    monkeypatch.setattr(qlearn.widgets.ptq, "SLOW", -1)
    explorer = explore_ptq(Own())
    assert not explorer._inputs["weight_bits"].continuous_update
    assert explore_ptq()._inputs["weight_bits"].continuous_update


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(784, 10), r"does not take MNIST digits, inputs of shape \(N, 1, 28, 28\): .*mat1 and mat2 shapes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 5)), r"gives shape \(2, 5\): logits of shape \(2, 10\) are needed"),
        (nn.Conv2d(1, 10, 28), r"gives shape \(2, 10, 1, 1\): logits"),
        (nn.Flatten(), "Flatten has no Linear, Conv1d, Conv2d or ConvTranspose2d that could be quantized"),
        (qlearn.nn.prepare(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), "this model is prepared already"),
    ],
)
def test_a_network_that_will_not_do_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        explore_ptq(model)


def test_two_explorers_do_not_disturb_each_other(explorer):
    other = explore_ptq(weight_bits=2, method="mse")
    before = explorer.numbers
    other.set(network="cnn", layer=3)
    assert explorer.numbers == before
    assert len(prepared_layers(explorer._network("mlp")._calibrated("min_max"))) == 3


# --- without PyTorch --------------------------------------------------------------------------------------------------


def test_without_pytorch_the_others_work_and_this_one_says_what_is_missing():
    code = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from qlearn import widgets
widgets.explore_affine()
try:
    widgets.explore_ptq()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "explore_ptq() needs PyTorch (No module named 'torch'): pip install \"qlearn[torch]\".\n"
