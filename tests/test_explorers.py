"""The explorers of lessons 00, 02 and 03: their numbers, from every value; the ends of every control; what a learner passes."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import qlearn
from pictures import picture
from qlearn import PerAxis, PerGroup, PerTensor, datasets, errors, packing, ranges
from qlearn.sorted_view import SortedView
from qlearn.widgets import explore_digit, explore_granularity, explore_network, explore_ranges
from qlearn.widgets.controls import Slider
from qlearn.widgets.search import errors as errors_of
from qlearn.widgets.search import quantile

TAKE_VALUES = {"digit": explore_digit, "granularity": explore_granularity, "ranges": explore_ranges}
EXPLORERS = {**TAKE_VALUES, "network": explore_network}
GRANULARITIES = {"tensor": PerTensor(), "column": PerAxis(1), "row": PerAxis(0)}


@pytest.fixture(scope="module")
def made():
    return {name: make() for name, make in EXPLORERS.items()}


@pytest.fixture(params=EXPLORERS)
def explorer(made, request):
    made[request.param].reset()
    return made[request.param]


@pytest.fixture
def digit(made):
    made["digit"].reset()
    return made["digit"]


@pytest.fixture
def network(made):
    made["network"].reset()
    return made["network"]


@pytest.fixture
def layer(made):
    made["granularity"].reset()
    return made["granularity"]


@pytest.fixture
def chosen(made):
    made["ranges"].reset()
    return made["ranges"]


def same_report(numbers, x, q):
    """The numbers of an explorer are those of `errors.report`, from every value."""
    report = errors.report(x, q)
    # Where x̂ is x but for its last digit, the error is noise.
    noise = 1e-13 * float(np.square(np.asarray(x, np.float64)).max()) + 1e-300
    assert numbers["mse"] == pytest.approx(report.mse, rel=1e-6, abs=noise)
    assert numbers["largest_error"] == pytest.approx(report.max_error, rel=1e-6, abs=noise**0.5)
    assert numbers["clipped_percent"] == pytest.approx(100 * report.clipped)
    assert numbers["codes_used"] == report.codes_used
    assert numbers["bits_per_value"] == pytest.approx(report.bits_per_value)
    if report.mse > noise:
        assert numbers["sqnr_db"] == pytest.approx(report.sqnr_db, rel=1e-6)


# --- all four --------------------------------------------------------------------------------------------------------


def ends_of(control):
    return [control.lo, control.hi] if isinstance(control, Slider) else list(control.options.values())


def test_both_ends_of_every_control(explorer):
    """As the page moves them, from where the explorer starts, and all together at one end."""
    for name, control in explorer.controls.items():
        for end in ends_of(control):
            explorer._inputs[name].value = end
            if end == "cross_entropy":
                assert "needs logits" in explorer._message.value
            else:
                assert explorer._message.value == "" and explorer.values[name] == end
            assert "nan" not in explorer._table.value and "not a number" not in explorer._table.value
        explorer.reset()
    for which in (0, -1):
        explorer.set(
            **{name: ends_of(control)[which] for name, control in explorer.controls.items() if name != "method"}
        )
        assert explorer._message.value == ""
    explorer.reset()


def test_every_control_changes_the_picture(explorer):
    before = {"granularity": "group", "symmetric": False, "outliers": 20}
    explorer.set(**{name: value for name, value in before.items() if name in explorer.controls})
    if type(explorer).__name__ == "NetworkExplorer":
        explorer.set(bits=2)  # in float there is no range
    for name, control in explorer.controls.items():
        if name in ("clip", "percentile"):
            explorer.set(method=name)
        start, pixels = explorer.values[name], picture(explorer)
        explorer.set(**{name: next(end for end in ends_of(control) if end != start)})
        assert (picture(explorer) != pixels).any(), name
        explorer.set(**{name: start})


def test_same_values_same_picture(explorer):
    before = explorer._picture.value
    for name, control in explorer.controls.items():
        if name != "method":
            explorer.set(**{name: ends_of(control)[-1]})
    explorer.reset()
    assert explorer._picture.value == before


def test_blitted_picture_is_the_drawn_one(explorer):
    for show in ("after", "error") if "show" in explorer.controls else (None,):
        explorer.set(bits=3, **({"show": show} if show else {}))
        blitted = picture(explorer)
        explorer._canvas.draw()
        drawn = np.asarray(explorer._canvas.buffer_rgba())[..., :3]
        assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.004


def test_bundle_for_every_reader(explorer):
    data, metadata = explorer._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert still.size[0] == 2 * metadata["image/png"]["width"] == 1600
    assert still.size[1] > 2 * explorer.size[1], "no numbers under the picture"
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(explorer)
    assert "\n" not in str(explorer) and str(explorer).endswith(".")


def test_sentences_are_repeatable(made):
    for name, make in EXPLORERS.items():
        made[name].reset()
        assert str(make()) == str(made[name])


def test_tables_can_be_read_without_a_mouse(explorer):
    for name, widget in explorer._inputs.items():
        assert widget.description == explorer.controls[name].label
        assert (widget.tooltip if hasattr(widget, "tooltip") else widget.description_tooltip).endswith(".")
        assert getattr(widget, "continuous_update", True)
    assert explorer._table.value.count('<th scope="row">') == len(explorer.numbers)


# --- what a learner passes -------------------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(1).normal(scale=0.02, size=(4, 3, 5))


@pytest.mark.parametrize("make", TAKE_VALUES.values(), ids=TAKE_VALUES)
@pytest.mark.parametrize(
    "x",
    [
        WEIGHTS[0],
        WEIGHTS[0].astype(np.float16),
        torch.tensor(WEIGHTS[0], requires_grad=True),
        torch.tensor(WEIGHTS[0]).to(torch.bfloat16),
        torch.arange(-3, 21, dtype=torch.int8).reshape(4, 6),
        np.arange(50, dtype=np.uint8).reshape(5, 10),
        [[1, 2], [3, 4]],
        np.zeros((3, 4)),
        np.full((3, 4), -2.5),
        np.full((1, 1), 7.0),
        np.append(np.abs(WEIGHTS[0]), np.zeros((1, 5)), 0) + 1000,
        1e-30 * WEIGHTS[0],
        1e30 * WEIGHTS[0],
        np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32),
    ],
    ids=lambda x: str(np.shape(x) if not torch.is_tensor(x) else x.dtype),
)
def test_any_matrix_of_real_numbers(make, x):
    explorer = make(x)
    for bits in (8, 2):
        explorer.set(bits=bits)
        if make is explore_granularity:
            for granularity in ("column", "group", "row"):
                explorer.set(granularity=granularity, method="mse" if bits == 2 else "min_max", spread=1.0)
        if make is explore_ranges:
            explorer.set(method="mse", outliers=100, size=100)
    assert "nan" not in str(explorer) and "not a number" not in str(explorer)


@pytest.mark.parametrize("make", TAKE_VALUES.values(), ids=TAKE_VALUES)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 4)), "is empty"),
        ([[1.0, float("nan")], [0.0, 1.0]], "holds 1 value that is not finite"),
        (torch.tensor([[float("inf"), 1.0]]), "holds 1 value that is not finite"),
    ],
)
def test_what_cannot_be_explored(make, x, message):
    with pytest.raises(ValueError, match=message):
        make(x)


def test_shapes_that_fit():
    assert explore_ranges(0.5, outliers=0).numbers["codes_used"] == 1
    assert explore_ranges(WEIGHTS, outliers=0).result["counts"].sum() == 60
    assert explore_granularity(WEIGHTS).numbers["scales"] == 1
    assert explore_granularity(WEIGHTS, granularity="group").layer.weights.shape == (4, 15)
    assert explore_digit(WEIGHTS[:1]).numbers["bytes"] == packing.packed_size(15, 2)


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (explore_granularity, np.ones(8), r"x has shape \(8,\): a layer's weights need two axes or more"),
        (explore_granularity, 1.0, r"x has shape \(\): a layer's weights need two axes"),
        (explore_granularity, np.ones((1000, 10_000), np.float32), "10,000,000 values.*Pass some of its rows"),
        (explore_digit, np.ones(784), r"image has shape \(784,\): one grey value a pixel is needed, shape \(height"),
        (explore_digit, np.ones((28, 28, 3)), r"image has shape \(28, 28, 3\): one grey value a pixel"),
    ],
)
def test_shapes_that_do_not_fit(make, x, message):
    with pytest.raises(ValueError, match=message):
        make(x)


@pytest.mark.parametrize("make", [explore_ranges, explore_digit])
def test_ten_million_values(make):
    x = np.random.default_rng(0).standard_normal((2500, 4000), dtype=np.float32)
    explorer = make(x, bits=4)
    explorer.set(bits=3)
    assert explorer.numbers["codes_used"] <= 8


# --- explore_digit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("which", "writer"), [(0, 1), (7, 100)])
def test_a_digits_numbers(digit, bits, which, writer):
    digit.set(bits=bits, digit=which, writer=writer)
    test = datasets.mnist_arrays().test
    image = test.images[test.labels == which][writer - 1]
    q = qlearn.choose_qparams(np.float32(0), np.float32(255), bits=bits)
    same_report(digit.numbers, image.astype(np.float32), q)
    assert digit.numbers["bytes"] == len(packing.pack(qlearn.quantize(image, q), bits))
    np.testing.assert_array_equal(digit.result["before"], image)
    np.testing.assert_allclose(digit.result["after"], qlearn.fake_quantize(image, q), rtol=1e-6)
    assert digit.result["histogram"].sum() == digit.result["counts"].sum() == 784


def test_eight_bits_lose_nothing_and_the_picture_has_every_grey(digit):
    digit.set(bits=8)
    assert digit.numbers["mse"] == 0
    np.testing.assert_array_equal(digit.result["before"], digit.result["after"])
    image = digit.result["before"].astype(int)
    shown = picture(digit)
    neutral = shown[(shown.max(-1) == shown.min(-1))][:, 0]
    assert set(255 - np.unique(image)) <= set(neutral.tolist())


def test_a_pixel_step_by_step(digit):
    digit.set(bits=3)
    row, column = digit.result["marked"]
    pixel = int(digit.result["before"][row, column])
    code = int(np.rint(pixel / (255 / 7)))
    assert digit.explain(digit.result)[0] == f"marked pixel: {pixel}"
    assert digit.explain(digit.result)[2] == f"code {code}, stored as {code:03b}"


def test_digits_are_seen_where_nothing_can_be_written(digit, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLEARN_DATA", str(tmp_path / "file"))
    np.testing.assert_array_equal(explore_digit().result["before"], digit.result["before"])


# --- explore_network -------------------------------------------------------------------------------------------------


def read_by_hand(bits, method):
    """What the network says of 1,000 validation digits, in float32, and the bytes of its weights."""
    net = datasets.trained("mlp")
    x, size = datasets.mnist_arrays().validation.images[:1000].reshape(1000, -1).astype(np.float32) / 255, 0
    for name in ("linear1", "linear2", "linear3"):
        w = net[f"{name}.weight"]
        if bits == "float":
            size += w.nbytes
        else:
            q = qlearn.find_qparams(w, method, bits=bits)
            size += len(packing.pack(qlearn.quantize(w, q), bits))
            w = qlearn.fake_quantize(w, q)
        x = x @ w.T + net[f"{name}.bias"]
        x = np.maximum(x, 0) if name != "linear3" else x
    return x.argmax(1), size


@pytest.mark.parametrize("bits", ["float", *range(8, 0, -1)])
@pytest.mark.parametrize("method", ["min_max", "mse"])
def test_a_networks_numbers(network, bits, method):
    network.set(bits=bits, method=method)
    says, size = read_by_hand(bits, method)
    labels = datasets.mnist_arrays().validation.labels[:1000]
    # By hand in float32: of two logits that are equal up to their last digits another one may be the larger.
    assert abs(network.numbers["misread"] - (says != labels).sum()) <= 1
    assert network.numbers["accuracy_percent"] == pytest.approx(100 - network.numbers["misread"] / 10)
    assert network.numbers["bytes"] == size
    assert network.numbers["size_percent"] == pytest.approx(100 if bits == "float" else 100 * bits / 32, rel=1e-3)
    curve = network.result["curves"][method]
    assert curve[network.result["place"]] == network.numbers["accuracy_percent"]


def test_a_network_reads_at_three_bits_and_not_at_two_until_its_range_is_chosen(network):
    percent = {}
    for bits in ("float", 4, 3, 2, 1):
        network.set(bits=bits)
        percent[bits] = network.numbers["accuracy_percent"]
    assert min(percent["float"], percent[4], percent[3]) > 97
    assert 40 < percent[2] < 50 and percent[1] < 15
    network.set(bits=2, method="mse")
    assert network.numbers["accuracy_percent"] > 96


def test_misread_digits_are_framed_and_say_what_they_are(network):
    labels = datasets.mnist_arrays().validation.labels[:24]
    network.set(bits="float")
    assert not any(frame.get_visible() for frame in network._frames)
    assert [text.get_text() for text in network._captions] == [str(label) for label in labels]
    network.set(bits=2)
    wrong = network.result["says"] != labels
    assert 0 < wrong.sum() < 24
    assert [frame.get_visible() for frame in network._frames] == wrong.tolist()
    for text, says, label in zip(network._captions, network.result["says"], labels, strict=True):
        assert text.get_text() == (str(says) if says == label else f"{says}, not {label}")


def test_a_networks_arithmetic(network):
    assert network.explain(network.result)[0] == "89,400 weights · 32 bits / 8 = 357,600 bytes"
    network.set(bits=2)
    steps = network.explain(network.result)
    assert steps[0] == "89,400 weights · 2 bits / 8 = 22,350 bytes"
    q = qlearn.find_qparams(datasets.trained("mlp")["linear1.weight"], bits=2)
    values = [float(text.replace("−", "-")) for text in steps[1].split(": ")[1].split(", ")]
    np.testing.assert_allclose(values, q.scale * (np.arange(4) - q.zero_point), rtol=5e-3)


def test_in_float_a_network_has_no_range(network):
    assert network._inputs["method"].disabled
    network.set(bits=8)
    assert not network._inputs["method"].disabled


# --- explore_granularity ---------------------------------------------------------------------------------------------


def direct_layer(explorer):
    v = explorer.values
    w = explorer.layer.spread(v["spread"])
    granularity = GRANULARITIES.get(v["granularity"]) or PerGroup(v["group_size"])
    q = qlearn.find_qparams(w, v["method"], bits=v["bits"], symmetric=v["symmetric"], granularity=granularity)
    return w, q


@pytest.mark.parametrize("granularity", ["tensor", "column", "row", "group"])
@pytest.mark.parametrize("method", ["min_max", "mse"])
@pytest.mark.parametrize(
    ("bits", "symmetric", "spread"), [(2, True, 0.0), (4, False, 1.5), (8, True, 2.0), (8, False, 0.3)]
)
def test_a_layers_numbers(layer, granularity, method, bits, symmetric, spread):
    layer.set(granularity=granularity, method=method, bits=bits, symmetric=symmetric, spread=spread, group_size=20)
    w, q = direct_layer(layer)
    # The explorer widens the range of a row's blocks, and does not search the widened row again: where both are
    # rounded to float32, a searched scale may end in another last bit (2⁻²³ of it).
    np.testing.assert_allclose(layer.result["qparams"].scale, q.scale, rtol=2**-22 if method == "mse" else 0)
    np.testing.assert_array_equal(layer.result["qparams"].zero_point, q.zero_point)
    same_report(layer.numbers, w, q)
    w_hat = qlearn.fake_quantize(w, q)
    size = np.sqrt((w.astype(float) ** 2).mean(1))
    error = np.sqrt((((w - w_hat).astype(float) / size[:, None]) ** 2).mean())
    assert layer.numbers["row_error_percent"] == pytest.approx(100 * error)
    assert layer.numbers["scales"] == np.size(q.scale)
    assert layer.numbers["lost_rows"] == (w_hat == 0).all(1).sum()


def test_the_curves_go_through_the_numbers(layer):
    for granularity in GRANULARITIES | {"group": None}:
        for bits in (2, 5, 8):
            layer.set(granularity=granularity, bits=bits, spread=0.7, symmetric=False)
            bits_per_value, error = layer.result["curves"][granularity][bits - 2]
            assert bits_per_value == pytest.approx(layer.numbers["bits_per_value"])
            assert 100 * error == pytest.approx(layer.numbers["row_error_percent"])


def test_a_spread_layer_needs_scales_for_its_rows(layer):
    layer.set(bits=8, spread=1.5)
    per_tensor = layer.numbers["row_error_percent"]
    layer.set(granularity="row")
    assert layer.numbers["row_error_percent"] < 1 < 50 < per_tensor
    before = layer.numbers["row_error_percent"]
    layer.set(spread=0.0)
    assert layer.numbers["row_error_percent"] == before  # powers of two change no digit


def test_group_sizes_divide_the_row(layer):
    assert list(layer.controls["group_size"].options.values()) == [4, 5, 10, 20, 25, 50]
    with pytest.raises(ValueError, match="group_size=30 must be one of"):
        layer.set(group_size=30)


def test_a_convolution_is_a_matrix():
    explorer = explore_granularity(datasets.trained("cnn")["conv2.weight"], granularity="row")
    assert explorer.layer.weights.shape == (32, 144) and explorer.numbers["scales"] == 32


# --- explore_ranges --------------------------------------------------------------------------------------------------


def all_values(explorer):
    v = explorer.values
    values = explorer.source(v.get("data", "own")).values
    return np.concatenate([values.base.values, values.outliers(v["outliers"], v["size"])])


@pytest.mark.parametrize("data", ["normal", "laplace", "relu", "weights", "activations", "logits"])
@pytest.mark.parametrize("method", ["min_max", "percentile", "mse"])
@pytest.mark.parametrize(
    ("bits", "symmetric", "outliers", "size"), [(2, True, 0, 20), (4, False, 100, 100), (8, True, 7, 30)]
)
def test_a_ranges_numbers(chosen, data, method, bits, symmetric, outliers, size):
    chosen.set(data=data, method=method, bits=bits, symmetric=symmetric, outliers=outliers, size=size, percentile=99.0)
    x = all_values(chosen)
    options = {"percentile": 99.0} if method == "percentile" else {}
    lo, hi = qlearn.find_range(x, method, bits=bits, symmetric=symmetric, **options)
    if method == "mse":  # two neighbours of the grid may be equally good up to the last digit
        assert [chosen.numbers["lo"], chosen.numbers["hi"]] == pytest.approx([float(lo), float(hi)], rel=1e-5)
    else:
        assert [chosen.numbers["lo"], chosen.numbers["hi"]] == [float(lo), float(hi)]
    q = chosen.result["qparams"]
    same_report(chosen.numbers, x, q)
    parts = errors.split(x, q)
    assert [chosen.numbers["rounding"], chosen.numbers["clipping"]] == pytest.approx(parts, rel=1e-6, abs=1e-12)
    np.testing.assert_array_equal(
        chosen.result["counts"],
        np.bincount(qlearn.quantize(x, q).astype(int) - q.quant_min, minlength=len(chosen.result["counts"])),
    )
    assert chosen.result["marks"][method][1] == pytest.approx(chosen.numbers["mse"], rel=1e-5)


def test_the_curve_of_errors_and_its_parts():
    rng = np.random.default_rng(3)
    base, few = rng.normal(size=3000).astype(np.float32), np.array([20.0, 30.0], np.float32)
    lo, hi = np.array([-1.0, -2.0, -3.5], np.float32), np.array([1.0, 3.0, 25.0], np.float32)
    for codes in ({"bits": 3, "symmetric": False}, {"bits": 5, "symmetric": True}):
        found = errors_of([SortedView(base), SortedView(few)], lo, hi, codes)
        for i in range(3):
            split = errors.split(np.append(base, few), qlearn.choose_qparams(lo[i], hi[i], **codes))
            assert [found["rounding"][i], found["clipping"][i]] == pytest.approx(split, rel=1e-6)
            assert found["mse"][i] == pytest.approx(sum(split), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize(("n", "few"), [(1, 0), (1, 3), (50, 7), (1000, 100)])
def test_percentiles_of_two_sorted_parts(share, n, few):
    rng = np.random.default_rng(n)
    base, others = rng.normal(size=n), rng.normal(size=few) + np.arange(few) % 3
    parts = [SortedView(base), *([SortedView(others)] if few else [])]
    assert quantile(parts, share) == pytest.approx(np.percentile(np.append(base, others), 100 * share), rel=1e-12)


def test_a_range_by_hand(chosen):
    chosen.set(method="clip", clip=1.5, outliers=0)
    std = chosen.source("normal").values.std
    assert -chosen.numbers["lo"] == pytest.approx(1.5 * std, rel=1e-6)
    # A little nearer, so that −lo / scale is no tie that the last bit of the clip decides.
    assert chosen.numbers["hi"] == pytest.approx((1 - 1e-5) * 1.5 * std, rel=1e-6)
    assert chosen.numbers["zero_point"] == 2 ** (chosen.values["bits"] - 1)
    chosen.set(clip=20.0)
    x = all_values(chosen)
    assert [chosen.numbers["lo"], chosen.numbers["hi"]] == [x.min(), x.max()]


@pytest.mark.parametrize("bits", [2, 4])
def test_logits_keep_their_class(chosen, bits):
    chosen.set(data="logits", method="cross_entropy", bits=bits, outliers=0)
    source = chosen.source("logits")
    lo, hi = ranges.cross_entropy(source.logits, bits=bits)
    assert [chosen.numbers["lo"], chosen.numbers["hi"]] == [float(lo), float(hi)]
    after = qlearn.fake_quantize(source.logits, qlearn.choose_qparams(lo, hi, bits=bits)).argmax(1)
    assert chosen.numbers["same_class_percent"] == pytest.approx(100 * (after == source.logits.argmax(1)).mean())
    assert chosen.numbers["right_class_percent"] == pytest.approx(100 * (after == source.labels).mean())
    chosen.set(method="min_max", data="normal")
    assert "same_class_percent" not in chosen.numbers and "same class" not in str(chosen)


def test_logits_are_those_of_the_network(chosen):
    from qlearn.nn import models, training

    images = datasets.mnist_arrays().calibration.images
    with torch.no_grad():
        expected = models.load_trained("mlp")(training.to_inputs(images)).numpy()
    np.testing.assert_allclose(chosen.source("logits").logits, expected, atol=1e-4)


def test_own_logits():
    logits = np.random.default_rng(0).normal(size=(50, 4))
    explorer = explore_ranges(logits, logits.argmax(1), method="cross_entropy", bits=8, outliers=0)
    assert explorer.numbers["same_class_percent"] == explorer.numbers["right_class_percent"] >= 96
    assert "right_class_percent" not in explore_ranges(logits, logits=True).numbers
    assert "same_class_percent" not in explore_ranges(logits).numbers


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.ones(5), np.ones(5, int), r"x has shape \(5,\): logits have shape \(rows, classes\)"),
        (np.ones((5, 3)), np.ones(4, int), r"labels have shape \(4,\).*need one whole number from 0 to 2 a row"),
        (np.ones((5, 3)), np.ones(5), "labels have shape .* dtype float64"),
        (np.ones((5, 3)), np.full(5, 3), "need one whole number from 0 to 2"),
    ],
)
def test_labels_that_do_not_fit(x, labels, message):
    with pytest.raises(ValueError, match=message):
        explore_ranges(x, labels)


def test_cross_entropy_without_logits_says_what_is_needed(chosen):
    chosen._inputs["method"].value = "cross_entropy"
    assert "needs logits" in chosen._message.value
    chosen._inputs["data"].value = "logits"
    assert chosen._message.value == "" and chosen.values["method"] == "cross_entropy"
