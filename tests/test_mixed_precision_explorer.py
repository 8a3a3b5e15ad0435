"""The explorer of lesson 07: its numbers are those of prepare, calibrate and convert; what was tried stays; nothing is run twice."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import qlearn
from pictures import picture
from qlearn import PerAxis, QuantConfig, datasets
from qlearn.widgets import explore_mixed_precision, mixed_precision_runs
from qlearn.widgets.mixed_precision import front, smallest_that_will_do
from qlearn.widgets.mixed_precision_runs import BitTrials, Point


@pytest.fixture(scope="module")
def made():
    return {"cnn": explore_mixed_precision(), "mlp": explore_mixed_precision(network="mlp", method="mse")}


@pytest.fixture
def cnn(made):
    made["cnn"].reset()
    return made["cnn"]


@pytest.fixture
def mlp(made):
    made["mlp"].reset()
    return made["mlp"]


@pytest.fixture(scope="module")
def data():
    return datasets.mnist_arrays()


def accuracy(model, data):
    share = qlearn.nn.accuracy(model, data.validation.images[:1000], data.validation.labels[:1000])
    return round(1000 * share) / 10  # so many of 1,000 digits


def direct(model, bits, method, data):
    """Accuracy and bytes by the long way."""
    weights = QuantConfig(symmetric=True, granularity=PerAxis(0), method=method)
    prepared = qlearn.nn.prepare(model, weights, overrides=qlearn.nn.overrides_for(bits, weights))
    calibration = qlearn.nn.to_inputs(data.calibration.images)
    converted = qlearn.nn.convert(qlearn.nn.calibrate(prepared, calibration, progress=False))
    return accuracy(converted, data), qlearn.nn.summary(converted).bytes


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_numbers_are_exactly_those_of_prepare_calibrate_convert(cnn, mlp, data):
    models = {"cnn": qlearn.nn.fold_batch_norm(qlearn.nn.load_trained("cnn")), "mlp": qlearn.nn.load_trained("mlp")}
    for explorer, name, method in ((cnn, "cnn", "min_max"), (mlp, "mlp", "mse")):
        for setting in ((8, 8, 8), (8, 8, 2), (3, 8, 2), (2, 5, 2), (8, 5, 2), (2, 2, 2), (3, 8, 4)):
            bits = dict(zip(explorer.controls, setting, strict=True))
            explorer.set(**bits)
            assert (explorer.numbers["accuracy"], explorer.numbers["bytes"]) == direct(models[name], bits, method, data)
        assert explorer.numbers["float_accuracy"] == accuracy(models[name], data)
        size = explorer.numbers["bytes"]
        assert explorer.numbers["times_smaller"] == qlearn.nn.summary(models[name]).bytes / size
        assert explorer.numbers["bits_per_value"] == 8 * size / sum(p.numel() for p in models[name].parameters())


def test_what_is_kept_as_codes_comes_back_as_the_same_codes(data):
    """Whatever is still there of earlier settings, the logits are those of the network run as a whole, bit for bit."""
    trials = BitTrials(None, "cnn", "min_max")
    assert not trials._kept
    for setting in ((4, 3, 8), (4, 3, 2), (4, 6, 2), (7, 6, 2), (4, 3, 8)):
        found = trials._logits(setting)
        with torch.no_grad():
            assert torch.equal(found, torch.cat([trials._network(x) for x in trials._images.split(100)]))
    stored = [part.dtype for (number, _), part in trials._kept.items() if number < 2]
    assert set(stored) == {torch.uint8}


def test_tables_are_the_package_s_own(mlp, data):
    model = qlearn.nn.load_trained("mlp")
    weights = QuantConfig(symmetric=True, granularity=PerAxis(0), method="mse")
    images = qlearn.nn.to_inputs(data.calibration.images[:500])
    errors = qlearn.nn.sensitivity(model, images, bits=range(2, 9), weights=weights)
    sizes = qlearn.nn.layer_bytes(model, bits=range(2, 9), weights=weights)
    assert mlp._trials.sizes == sizes
    for name in errors:  # float32 logits, whose last digits depend on the number of threads
        assert mlp._trials.sensitivity[name] == pytest.approx(errors[name], rel=1e-3, abs=1e-10)
    stops = qlearn.nn.descent(mlp._trials.sensitivity, sizes)
    assert [stop.setting for stop in mlp._greedy] == [tuple(stop.values()) for stop in stops]
    assert [point.setting for point in mlp._uniform] == [(b, b, b) for b in range(2, 9)]
    assert all(point.bytes == mlp._trials.bytes(point.setting) for point in (*mlp._greedy, *mlp._uniform))


def test_greedy_is_the_best_stop_with_no_more_room(mlp):
    mlp.set(linear1=4, linear2=4, linear3=4)
    stop = mlp.result["greedy"]
    assert stop.bytes <= mlp.numbers["bytes"] < mlp._greedy[mlp._greedy.index(stop) - 1].bytes
    assert mlp.numbers["greedy_accuracy"] == stop.percent
    assert mlp.explain(mlp.result)[0] == "linear1 40,012 + linear2 5,812 + linear3 592 = 46,416 bytes"
    assert f"take {stop.bytes:,} bytes" in mlp.explain(mlp.result)[1]


# --- what was tried --------------------------------------------------------------------------------------------------


def test_what_was_tried_stays_until_reset(mlp):
    assert mlp.numbers["tried"] == 1
    settings = [(8, 8, 8), (3, 8, 8), (3, 3, 8), (2, 2, 2), (3, 8, 8)]
    for setting in settings[1:]:
        mlp.set(**dict(zip(mlp.controls, setting, strict=True)))
    assert mlp.numbers["tried"] == 4
    assert {point.setting for point in mlp.result["points"]} == set(settings)
    assert len(mlp._marks["tried"].get_xdata()) == 4
    good = [p for p in mlp.result["points"] if p.percent >= mlp.numbers["float_accuracy"] - 1]
    assert mlp.numbers["best_bytes"] == min(p.bytes for p in good) < mlp._trials.bytes((8, 8, 8))
    mlp._button.click()
    assert mlp.numbers["tried"] == 1 and mlp.values == dict.fromkeys(mlp.controls, 8)
    assert mlp.numbers["best_bytes"] == mlp.numbers["bytes"]


def test_without_a_good_point_there_is_no_best():
    explorer = explore_mixed_precision(network="mlp", linear1=2, linear2=2, linear3=2)
    assert explorer.result["best"] is None and "best_bytes" not in explorer.numbers
    assert len(explorer._marks["best"].get_xdata()) == 0
    assert "your best" not in str(explorer)


def test_front_and_best():
    a, b, c, d = (Point((0,), size, right) for size, right in ((10, 50.0), (20, 90.0), (30, 80.0), (20, 70.0)))
    assert front([d, c, b, a]) == [a, b]
    assert front([]) == []
    assert smallest_that_will_do([a, b, c, d], 75.0) == b
    assert smallest_that_will_do([a, b, c, d], 95.0) is None


# --- quick -----------------------------------------------------------------------------------------------------------


def test_only_what_changed_runs_again():
    explorer = explore_mixed_precision()
    explorer.load()
    runs: list[str] = []
    for name in explorer.controls:
        for bits in range(2, 9):
            layer = explorer._trials._layer(name, bits)
            layer.register_forward_pre_hook(lambda *_, name=name: runs.append(name))

    def run(**bits):
        runs.clear()
        explorer.set(**bits)
        return list(dict.fromkeys(runs))

    assert run(linear=3, conv2=7, conv1=5) == ["conv2", "linear"]  # conv1 at 5 bits ran before: 5 bits everywhere
    assert run(linear=4) == ["linear"]
    assert run(linear=3) == []
    assert run(conv2=6) == ["conv2", "linear"]
    assert run(linear=5, conv2=7) == ["linear"]
    explorer.reset()
    assert run(linear=3, conv2=7, conv1=5) == []


def test_little_is_kept(monkeypatch, mlp):
    monkeypatch.setattr(mixed_precision_runs, "MOST_BYTES", 300_000)
    mlp._trials._kept = OrderedDict()
    for bits in range(2, 9):
        mlp.set(linear1=bits, linear2=2 + (bits + 1) % 7, linear3=5)
        assert sum(part.nbytes for part in mlp._trials._kept.values()) <= 300_000
    assert len(mlp._trials._kept) >= 2


# --- at first --------------------------------------------------------------------------------------------------------


def test_the_first_picture_waits_for_one_setting_only(monkeypatch):
    asked = []
    ordinary = BitTrials.point
    monkeypatch.setattr(BitTrials, "point", lambda self, setting: asked.append(setting) or ordinary(self, setting))
    explorer = explore_mixed_precision(network="mlp", linear1=3, linear2=3, linear3=3)
    assert set(asked) == {(3, 3, 3), explorer.result["greedy"].setting}
    sentence, before = str(explorer), picture(explorer)
    assert explorer._bar.layout.display == "none"
    seen = []
    explorer._bar.observe(lambda change: seen.append((change.new, explorer._bar.layout.display)), "value")
    explorer.load()
    assert seen == [(k, "") for k in range(1, len({*explorer._stops, *explorer._trials.uniform()}) + 1)]
    assert seen[-1][0] == explorer._bar.max and explorer._bar.layout.display == "none"
    assert (picture(explorer) != before).any() and str(explorer) == sentence
    np.testing.assert_array_equal(explorer._by_greed.get_xdata(), [p.bytes / 1000 for p in explorer._greedy])
    seen.clear()
    explorer.load()
    assert not seen


def test_the_page_comes_at_once_and_the_still_picture_with_the_curves(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, metadata, raw):
            shown.append((explorer._loaded, set(data)))

    def display(data, raw, display_id):
        shown.append((explorer._loaded, set(data)))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    explorer = explore_mixed_precision(network="mlp")
    explorer._ipython_display_()
    live = {"text/plain", "application/vnd.jupyter.widget-view+json"}
    assert shown == [(False, live), (True, live | {"image/png"})]


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_control_changes_the_picture_and_reset_changes_it_back(cnn):
    before = cnn._picture.value
    for name in cnn.controls:
        pixels = picture(cnn)
        cnn._inputs[name].value = 5
        assert cnn._message.value == "" and (picture(cnn) != pixels).any()
    cnn.reset()
    assert cnn._picture.value == before


def test_blitted_picture_is_the_drawn_one(cnn):
    cnn.set(conv1=3, linear=4)
    cnn.set(conv2=2)
    blitted = picture(cnn)
    cnn._canvas.draw()
    drawn = np.asarray(cnn._canvas.buffer_rgba())[..., :3]
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.002


def test_bundle_for_every_reader(cnn):
    cnn.set(conv1=8, conv2=4, linear=4)
    bundle, metadata = cnn._repr_mimebundle_()
    assert bundle["text/plain"] == metadata["image/png"]["alt"] == str(cnn)
    assert str(cnn).startswith("Bits for each layer (conv1 8, conv2 4, linear 4): accuracy 99.")
    assert "size 10788 bytes, compression 7.6 ×, bits per value 4.21," in str(cnn)
    assert str(cnn).endswith("settings tried 2.")
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size[0] == 1600


def test_tables_can_be_read_without_a_mouse(cnn):
    for name, widget in cnn._inputs.items():
        assert (widget.description, widget.continuous_update) == (name, True)
        tooltip = widget.tooltip if hasattr(widget, "tooltip") else widget.description_tooltip
        assert tooltip == f"How many bits a weight of the layer {name} has."
    assert cnn._table.value.count('<th scope="row">') == len(cnn.numbers)


def test_start_values_are_where_reset_leads():
    explorer = explore_mixed_precision(network="mlp", linear2=3)
    explorer.set(linear2=8, linear1=4)
    explorer.reset()
    assert explorer.values == {"linear1": 8, "linear2": 3, "linear3": 8}


# --- a network of the learner's own ----------------------------------------------------------------------------------


class Own(nn.Module):
    """Not a Sequential, a part of it nested, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU())
        self.again = nn.Linear(30, 30)
        self.head = nn.Linear(30, 10, bias=False)

    def forward(self, x):
        x = self.body(x)
        return self.head(self.again(self.again(x).relu()).relu())


def nested():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU())
    shared = nn.Linear(12, 12)
    return nn.Sequential(
        inner,
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(108, 12),
        nn.ReLU(),
        shared,
        nn.Tanh(),
        shared,
        nn.Linear(12, 10),
    )


@pytest.mark.parametrize(("make", "names"), [(Own, ["body.1", "again", "head"]), (nested, ["0.0", "3", "5", "8"])])
def test_any_network_for_digits(make, names, data):
    model = make()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    explorer = explore_mixed_precision(model)
    assert list(explorer.controls) == names
    for setting in ([8] * 4, [3, 4, 5, 6], [3, 2, 5, 6], [3, 2, 5, 2], [8, 2, 5, 2]):
        bits = dict(zip(names, setting, strict=False))
        explorer.set(**bits)
        assert (explorer.numbers["accuracy"], explorer.numbers["bytes"]) == direct(model, bits, "min_max", data)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    if make is nested:
        assert "layers in float 56" in explorer.explain(explorer.result)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "resnet"}, "name='resnet': there are trained weights for 'mlp' and 'cnn'"),
        ({"method": "entropy"}, "method='entropy' must be 'min_max' or 'mse'"),
        ({"network": "mlp", "conv1": 4}, "There is no control 'conv1'. The controls are linear1, linear2, linear3"),
        ({"network": "mlp", "linear1": 9}, "linear1=9 must be a whole number from 2 to 8"),
        ({"model": nn.Linear(5, 10)}, "does not take MNIST digits, inputs of shape"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(784, 3))},
            r"gives shape \(2, 3\): logits of shape \(2, 10\) are needed",
        ),
        ({"model": nn.LSTM(28, 10)}, "does not take MNIST digits"),
        ({"model": nn.AdaptiveAvgPool2d(1)}, r"gives shape \(2, 1, 1, 1\)"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(784, 10), *(nn.Linear(10, 10) for _ in range(8)))},
            "has 9 layers to quantize: at most 8 can have a slider each",
        ),
    ],
)
def test_what_cannot_be_explored(arguments, message):
    with pytest.raises(ValueError, match=message):
        explore_mixed_precision(**arguments)


def test_set_says_what_is_allowed(mlp):
    before = mlp.values
    with pytest.raises(ValueError, match="linear2=1 must be a whole number from 2 to 8"):
        mlp.set(linear1=3, linear2=1)
    assert mlp.values == before and mlp.numbers["tried"] == 1
