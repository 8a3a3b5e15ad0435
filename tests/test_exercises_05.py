"""Lesson 05: what its checkers say, what its challenge accepts, and what it says of other libraries."""

from __future__ import annotations

import importlib
import math
import warnings

import numpy as np
import pytest

from qlearn import QuantConfig, datasets, exercises
from qlearn.exercises import lesson_05
from qlearn.exercises.checking import examine
from qlearn.exercises.lesson_05 import SMALL_CNN, bin_of, compress, observe

torch = pytest.importorskip("torch")


# --- exercises: right in other words ----------------------------------------------------------------------------------


def observe_in_a_loop(lo, hi, batch):
    for value in batch.flat:
        if value < lo:
            lo = value
        if value > hi:
            hi = value
    return lo, hi


def clear_the_lower_half(x):
    y = x.copy()
    y.view(np.uint16)[::2] = 0
    return y


def accumulate_in_a_loop(x_codes, x_zero_point, w_codes):
    sums = np.zeros((len(x_codes), len(w_codes)), np.int32)
    for image, output in np.ndindex(*sums.shape):
        for x, w in zip(x_codes[image], w_codes[output], strict=True):
            sums[image, output] += (int(x) - x_zero_point) * int(w)
    return sums


def accumulate_in_four_terms(x_codes, x_zero_point, w_codes):
    w = w_codes.astype(np.int32)
    return x_codes.astype(np.int32) @ w.T - x_zero_point * w.sum(1, dtype=np.int32)


RIGHT = [
    ("05.1", observe_in_a_loop),
    ("05.1", lambda lo, hi, batch: (np.minimum(lo, batch.min()), np.maximum(hi, batch.max()))),
    ("05.1", lambda lo, hi, batch: np.array([min(lo, batch.min()), max(hi, batch.max())])),
    ("05.4", clear_the_lower_half),
    ("05.4", lambda x: (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)),
    ("05.4", lambda x: (x.view(np.int32) // 65536 * 65536).view(np.float32)),
    ("05.2", accumulate_in_a_loop),
    ("05.2", accumulate_in_four_terms),
    ("05.2", lambda x_codes, x_zero_point, w_codes: (x_codes.astype(np.int32) - x_zero_point) @ w_codes.T),
    ("05.3", lambda outputs, inputs, bits: math.ceil(outputs * inputs * bits / 8) + 8 * outputs),
    ("05.3", lambda outputs, inputs, bits: np.ceil(outputs * inputs * bits / 8) + 4 * outputs + 4 * outputs),
]


@pytest.mark.parametrize(("exercise_id", "attempt"), RIGHT)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = examine(exercises.find(exercise_id), attempt)
    assert result.status == "correct", result.message


# --- exercises: wrong as a learner may be -----------------------------------------------------------------------------


def average_that_begins_with_the_first_batch(lo, hi, batch):
    if np.isinf(lo):
        return batch.min(), batch.max()
    return 0.9 * lo + 0.1 * batch.min(), 0.9 * hi + 0.1 * batch.max()


def changes_its_input(x):
    bits = x.view(np.int32)
    bits >>= 16
    bits <<= 16
    return x


WRONG = [
    ("05.1", lambda lo, hi, batch: (batch.min(), batch.max()), "Your observer forgets"),
    ("05.1", lambda lo, hi, batch: (min(lo, batch.min()), batch.max()), "Your upper end forgets"),
    (
        "05.1",
        lambda lo, hi, batch: (0.9 * lo + 0.1 * batch.min(), 0.9 * hi + 0.1 * batch.max()),
        "An average of ranges",
    ),
    ("05.1", average_that_begins_with_the_first_batch, "An average of ranges"),
    ("05.1", lambda lo, hi, batch: (min(lo, batch.min(0)), max(hi, batch.max(0))), "without an axis"),
    ("05.1", lambda lo, hi, batch: (min(lo, min(batch)), max(hi, max(batch))), "without an axis|Python's own min"),
    ("05.1", lambda lo, hi, batch: (min(lo, np.min(abs(batch))), max(hi, np.max(abs(batch)))), "signs count"),
    ("05.1", lambda lo, hi, batch: (max(hi, batch.max()), min(lo, batch.min())), "in the wrong order"),
    ("05.1", lambda lo, hi, batch: min(lo, batch.min()), "must return 2 values"),
    ("05.1", lambda lo, hi, batch: print(min(lo, batch.min()), max(hi, batch.max())), "returned nothing"),
    ("05.1", lambda lo, hi, batch: (min(lo, batch.min()), max(lo, batch.max())), "compared with lo"),
    ("05.1", lambda lo, hi, batch: (min(hi, batch.min()), max(hi, batch.max())), "compared with hi"),
    ("05.1", lambda lo, hi, batch: (min(lo, min(batch[-1])), max(hi, max(batch[-1]))), "the last row"),
    ("05.1", lambda lo, hi, batch: (min(lo, batch.min()), max(hi, abs(batch).max())), "upper end looks at magnitudes"),
    ("05.4", lambda x: (x.view(np.int32) & 0xFFFF0000).view(np.float32), "too large for an int32|wanted is shape"),
    ("05.4", lambda x: x.view(np.int32) & -65536, "`view` it as float32"),
    ("05.4", lambda x: (x.view(np.int32) | 65535).view(np.float32), "the bin's end"),
    ("05.4", lambda x: x // 1, "fraction of the decimal number"),
    ("05.4", changes_its_input, "changed its input x"),
    ("05.4", lambda x: (x.view(np.int32) >> 16).view(np.float32), "Shift them back to the left"),
    ("05.4", lambda x: x.astype(np.int32) >> 16 << 16, "`astype` turns the number into an integer"),
    ("05.4", lambda x: np.sign(x) * 2.0 ** np.floor(np.log2(abs(x))), "sign and exponent alone"),
    ("05.4", lambda x: torch.tensor(x).bfloat16().float().numpy(), "You round to the nearest bfloat16"),
    ("05.4", lambda x: torch.tensor(x).bfloat16().float(), "a NumPy array is wanted"),
    ("05.4", lambda x: np.round(x * 128) / 128, "bins are all of one width"),
    ("05.4", lambda x: (x.view(np.uint32) >> 20 << 20).view(np.float32), "another number of bits"),
    ("05.4", lambda x: x, "nothing has been cut off"),
    (
        "05.2",
        lambda x_codes, x_zero_point, w_codes: np.dot(x_codes.astype(int) - x_zero_point, w_codes.T.astype(int)),
        "int64 in NumPy",
    ),
    ("05.2", lambda x_codes, x_zero_point, w_codes: (x_codes - x_zero_point) @ w_codes.T, "Your sums wrapped"),
    ("05.2", lambda x_codes, x_zero_point, w_codes: x_codes @ w_codes.T, "The zero point is still in the input"),
    (
        "05.2",
        lambda x_codes, x_zero_point, w_codes: (x_codes @ w_codes.T - x_zero_point).astype(np.int32),
        "other values",
    ),
    (
        "05.2",
        lambda x_codes, x_zero_point, w_codes: np.dot(
            x_codes.astype(np.int32) - x_zero_point, w_codes.astype(np.int32)
        ),
        "transpose it",
    ),
    (
        "05.2",
        lambda x_codes, x_zero_point, w_codes: (
            (x_codes.astype(np.float32) - x_zero_point) @ w_codes.T.astype(np.float32)
        ),
        "but they are floats",
    ),
    (
        "05.2",
        lambda x_codes, x_zero_point, w_codes: (
            (x_codes.astype(np.int16) - np.int16(x_zero_point)) @ w_codes.T.astype(np.int16)
        ),
        "int16 ends at 32,767",
    ),
    (
        "05.2",
        lambda x_codes, x_zero_point, w_codes: (
            (x_codes.astype(np.int32) - x_zero_point) @ w_codes.astype(np.int32).reshape(x_codes.shape[1], len(w_codes))
        ),
        "reshape keeps the order",
    ),
    (
        "05.2",
        lambda x_codes, x_zero_point, w_codes: (
            (x_codes.astype(np.int32) - x_zero_point)[:, None] * w_codes.astype(np.int32)
        ).sum(-1, dtype=np.int64),
        "most sums of narrow integers",
    ),
    ("05.3", lambda outputs, inputs, bits: outputs * inputs * bits / 8 + 4 + 4 * outputs, "one scale for the whole"),
    ("05.3", lambda outputs, inputs, bits: outputs * inputs * bits / 8 + 8, "one scale and one bias in all"),
    ("05.3", lambda outputs, inputs, bits: outputs * inputs * (bits // 8) + 8 * outputs, "the codes cost nothing"),
    ("05.3", lambda outputs, inputs, bits: math.ceil((outputs * inputs * bits + 8 * outputs) / 8), "in bytes already"),
    ("05.3", lambda outputs, inputs, bits: math.ceil((outputs * inputs + 2 * outputs) * bits / 8), "takes 4 bytes"),
    ("05.3", lambda outputs, inputs, bits: math.ceil(outputs * inputs / bits) + 8 * outputs, "More bits must make"),
    ("05.3", lambda outputs, inputs, bits: math.ceil(outputs * inputs * bits / 8) + 8 * outputs + 1, "A byte too many"),
    ("05.3", lambda outputs, inputs, bits: outputs * inputs * bits / 8, "Codes alone are useless"),
    ("05.3", lambda outputs, inputs, bits: outputs * inputs * bits / 8 + 8 * outputs, "no fractions of a byte"),
    ("05.3", lambda outputs, inputs, bits: int(outputs * inputs * bits / 8) + 8 * outputs, "round the last byte up"),
    (
        "05.3",
        lambda outputs, inputs, bits: outputs * math.ceil(inputs * bits / 8) + 8 * outputs,
        "last byte of each row",
    ),
    (
        "05.3",
        lambda outputs, inputs, bits: math.ceil(outputs * inputs * bits / 8) + 64 * outputs,
        "32 bits are 4 bytes",
    ),
    ("05.3", lambda outputs, inputs, bits: math.ceil(outputs * inputs / (8 // bits)) + 8 * outputs, "count bits"),
]


@pytest.mark.parametrize(("exercise_id", "attempt", "message"), WRONG)
def test_wrong_answers_are_told_what_is_wrong(exercise_id, attempt, message):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert any(part in result.message for part in message.split("|")), result.message


def test_no_hint_is_the_solution():
    for each in (*lesson_05.EXERCISES, *lesson_05.CHALLENGES):
        assert len(each.hints) == 3
        lines = [line.strip() for line in exercises.solution_source(each.id).splitlines()[1:]]
        assert not any(line in hint for hint in each.hints for line in lines)


# --- what an answer does in the network -------------------------------------------------------------------------------


def test_observed_ranges_are_those_of_the_network():
    said = exercises.check("05.1", observe).message
    ranges = lesson_05._observed_ranges(observe)
    assert ranges[0] == (0.0, 1.0) and all(lo == 0 < 5 < hi for lo, hi in ranges[1:])
    assert f"end at\n  1, {ranges[1][1]:.3g} and {ranges[2][1]:.3g}." in said and "of 2,000 other digits" in said
    assert "0 … " not in said  # where they begin is asked after this exercise
    found, guessed = (
        lesson_05._accuracy_on_integers(r, exercises.find("05.2").solution) for r in (ranges, [(0.0, 1.0)] * 3)
    )
    assert found > 97 and guessed < 95
    assert f"{found:.1f} %" in said and f"{guessed:.1f} %" in said


def test_the_network_shows_a_wrong_product():
    ranges = lesson_05._observed_ranges(observe)
    assert lesson_05._accuracy_on_integers(ranges, lesson_05._narrow_then_cast) < 50


def test_loops_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(lesson_05, "PATIENCE", 0.2)
    message = exercises.check("05.2", accumulate_in_a_loop).message
    assert message.startswith("✓ 05.2 correct.") and "Python's loops are slow" in message


def test_weights_in_their_bins_lose_nothing():
    weight = datasets.trained("mlp")["linear1.weight"]
    assert 0 < np.max(np.abs(bin_of(weight) - weight)) < 0.01
    assert "97.9 % of 2,000 digits (before: 97.9 %)" in exercises.check("05.4", bin_of).message


def test_the_counted_network_is_the_saved_one():
    from qlearn import nn

    said = exercises.check("05.3", exercises.find("05.3").solution).message
    model = nn.load_trained("mlp")
    prepared = nn.prepare(model, QuantConfig(bits=4, symmetric=True, granularity=lesson_05.PerAxis(0)))
    quantized = nn.convert(nn.calibrate(prepared, torch.rand(10, 1, 28, 28), progress=False))
    assert f"{nn.summary(quantized).bytes - 3 * 12:,} bytes at 4 bits" in said


# --- the challenge ----------------------------------------------------------------------------------------------------


def with_bits(**bits):
    """Ranges by MSE, a scale for each row, and these bits; 2 where none are named."""

    def answer(name, weight):
        config = QuantConfig(bits.get(name, 2), True, lesson_05.PerAxis(0), "mse")
        qparams = config.find_qparams(weight)
        return lesson_05.qlearn.quantize(weight, qparams), qparams.scale, config.bits

    return answer


def four_codes(name, weight):
    """Codes −2 … 1 instead of −1 … 1."""
    config = QuantConfig(2, True, lesson_05.PerAxis(0), "mse", narrow_range=False)
    qparams = config.find_qparams(weight)
    return lesson_05.qlearn.quantize(weight, qparams), qparams.scale, 2


def test_the_target_is_met_with_room_to_spare():
    score = SMALL_CNN.judge(compress)
    assert score.passed
    assert float(score.columns["accuracy"].split()[0]) >= lesson_05.LEAST_PERCENT + 0.3
    assert SMALL_CNN.judge(with_bits(conv1=4)).passed


def test_no_simple_answer_meets_it_and_none_is_near_it():
    for simple in SMALL_CNN.simple.values():
        score = SMALL_CNN.judge(simple)
        percent, total = float(score.columns["accuracy"].split()[0]), int(score.columns["bytes"].replace(",", ""))
        assert percent < lesson_05.LEAST_PERCENT - 1 or total > lesson_05.MOST_BYTES + 1000


def test_the_table_does_not_hang_on_last_bits():
    """No digit's two best answers are so close that another order of sums could swap them."""
    for answer in SMALL_CNN.simple.values():
        logits = np.sort(lesson_05._cnn_logits(changed_by(answer)), axis=1)
        gap = (logits[:, -1] - logits[:, -2]) / np.abs(logits).max(axis=1)
        assert gap.min() > 2e-5  # float32 sums of 1,568 products differ by less than 1e-6 of their size


def changed_by(answer):
    changed = {}
    for name in lesson_05.CONVOLUTIONS_AND_LINEAR:
        weight = datasets.trained("cnn")[f"{name}.weight"]
        codes, scale, _ = answer(name, weight.reshape(len(weight), -1))
        changed[name] = (codes * scale).astype(np.float32).reshape(weight.shape)
    return changed


def test_what_is_shown_is_what_is_judged():
    """A ternary answer that reads 97.45 %: 97.5 % would look like the target, refused."""

    def by_threshold(name, weight):
        if name == "conv1":
            scale = np.abs(weight).max(1, keepdims=True) / 127
            return np.rint(weight / scale).astype(np.int8), scale, 8
        size = np.abs(weight)
        kept = size > 0.7 * size.mean(1, keepdims=True)
        scale = (size * kept).sum(1, keepdims=True) / kept.sum(1, keepdims=True)
        return (np.sign(weight) * kept).astype(np.int8), scale, 2

    score = SMALL_CNN.judge(by_threshold)
    assert score.columns["accuracy"] == "97.45 %" and not score.passed


def test_bytes_are_those_that_are_packed():
    fixed = 4 * (10 + 2 * 4 * (16 + 32) // 2)  # the bias, and four numbers for each channel of the batch norms
    assert SMALL_CNN.judge(with_bits(conv1=8)).columns["bytes"] == f"{fixed + 4 * 58 + 144 + (4608 + 15680) // 4:,}"
    one_scale = lambda name, weight: (np.zeros(weight.shape, int), 1.0, 3)  # noqa: E731
    assert SMALL_CNN.judge(one_scale).columns["bytes"] == f"{fixed + 4 * 3 + (144 + 4608 + 15680) * 3 // 8:,}"


def test_other_ideas_are_judged_too():
    score = SMALL_CNN.judge(four_codes)
    assert float(score.columns["accuracy"].split()[0]) > 95
    assert score.columns["bytes"] == "6,148"

    def in_groups(name, weight):
        parts = weight.reshape(len(weight), -1, 3 if name == "conv1" else 8)
        scale = np.abs(parts).max(2) / 7
        return np.rint(parts / scale[..., None]).astype(int).reshape(weight.shape), scale, 4

    assert float(SMALL_CNN.judge(in_groups).columns["accuracy"].split()[0]) > 98


def answer_with(**changed):
    """A right answer but for one of its three parts."""

    def answer(name, weight):
        codes, scale, bits = compress(name, weight)
        parts = {"codes": codes, "scale": scale, "bits": bits}
        parts.update({key: change(parts[key]) for key, change in changed.items()})
        return parts["codes"], parts["scale"], parts["bits"]

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda name, weight: weight, "conv1: return three things: codes, scale, bits."),
        (lambda name, weight: print(name), "return three things"),
        (lambda name, weight: (weight, 1.0, 2), "must be a NumPy array of integers, and this is float32"),
        (answer_with(codes=lambda codes: torch.from_numpy(codes)), "integers, and this is Tensor"),
        (answer_with(codes=lambda codes: codes.astype(float)), "integers, and this is float64"),
        (answer_with(codes=lambda codes: codes.astype(object)), "integers, and this is object"),
        (answer_with(codes=lambda codes: codes[:1]), "a code for each weight is (16, 9)"),
        (answer_with(codes=lambda codes: codes * 0 + 2, bits=lambda _: 2), "signed codes of 2 bits are -2 … 1"),
        (answer_with(bits=lambda _: 2), "conv1: codes run from -126 to 119"),
        (answer_with(bits=lambda _: 0), "a whole number from 1 to 8"),
        (answer_with(bits=lambda _: 9), "a whole number from 1 to 8"),
        (answer_with(bits=lambda _: 2.0), "bits is 2.0"),
        (answer_with(bits=lambda _: True), "bits is True"),
        (answer_with(scale=lambda _: "1"), None),
        (answer_with(scale=lambda _: "one"), "must be a number or an array of numbers"),
        (answer_with(scale=lambda _: np.nan), "a scale is not finite"),
        (answer_with(scale=lambda _: np.ones(5)), "wanted is one number, (16, 1) for one a row"),
        (answer_with(scale=lambda _: np.ones((16, 2))), "groups that divide 9"),
        (answer_with(scale=lambda _: np.ones((16, 0))), "groups that divide 9"),
        (answer_with(scale=lambda _: 1j), "must be a number or an array of numbers"),
        (answer_with(scale=lambda _: 3e38), "not finite"),
    ],
)
def test_an_answer_that_breaks_a_rule_is_told_which(answer, message):
    result = exercises.challenge("05.C", answer)
    if message is None:
        assert result.status == "wrong"
        return
    assert result.status == "wrong"
    assert message in result.message, result.message


def test_float_weights_as_scales_cost_their_bytes():
    """A scale for each weight is float32 by another name, and is counted."""

    def cheat(name, weight):
        return np.ones(weight.shape, int) * -1, -weight, 1

    score = SMALL_CNN.judge(cheat)
    assert score.columns["accuracy"].startswith("99.") and not score.passed
    assert int(score.columns["bytes"].replace(",", "")) > 4 * 20_432


# --- what the lesson says of other libraries --------------------------------------------------------------------------


def test_older_pytorch_observers_are_as_the_lesson_says():
    observer = pytest.importorskip("torch.ao.quantization.observer")
    few = observer.HistogramObserver(quant_min=0, quant_max=7)
    assert few.bins == 2048
    assert few.dst_nbins == 256  # levels of the search, though only 8 codes were asked for
    assert observer.MovingAverageMinMaxObserver().averaging_constant == 0.01
    with pytest.warns(UserWarning, match="must run observer"):
        assert observer.MinMaxObserver().calculate_qparams()[0].item() == 1.0


def test_older_pytorch_histograms_depend_on_the_order():
    observer = pytest.importorskip("torch.ao.quantization.observer")
    chance = torch.Generator().manual_seed(0)
    batches = [size * torch.rand(1000, generator=chance) for size in (1.0, 7.3, 3.1)]
    counts = []
    for order in (batches, batches[::-1]):
        histogram = observer.HistogramObserver()
        for batch in order:
            histogram(batch)
        counts.append(histogram.histogram)
    assert not torch.equal(*counts)


def test_onnx_runtime_calibrators_are_as_the_lesson_says():
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    import inspect

    assert {method.name for method in calibrate.CalibrationMethod} == {
        "MinMax",
        "Entropy",
        "Percentile",
        "Distribution",
    }
    defaults = inspect.signature(calibrate.EntropyCalibrater.__init__).parameters
    bins, levels = defaults["num_bins"].default, defaults["num_quantized_bins"].default
    assert (bins, levels) == (128, 128)

    collector = calibrate.HistogramCollector(
        method="entropy", symmetric=False, num_bins=bins, num_quantized_bins=levels, percentile=99.9, scenario="same"
    )
    x = np.append(np.random.default_rng(0).normal(size=10_000), 50.0).astype(np.float32)
    counts, edges = np.histogram(x, bins=bins, range=(-50, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threshold = collector.get_entropy_threshold((counts, edges, -50, 50), levels)
    assert threshold[1] == pytest.approx(50)  # nothing is ever clipped, not even one outlier of 10,001 values


def test_torchao_is_as_the_lesson_says():
    pytest.importorskip("torchao", minversion="0.18")
    observer = importlib.import_module("torchao.quantization.observer")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from torchao.quantization.granularity import PerRow

    assert hasattr(observer, "AffineQuantizedMinMaxObserver") and hasattr(observer, "AffineQuantizedMSEObserver")
    assert isinstance(Int8DynamicActivationInt8WeightConfig().granularity, PerRow)
