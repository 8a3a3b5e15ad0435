"""Lesson 02: right answers in unusual words, wrong ones and what they are told, the challenge, and who does what."""

from __future__ import annotations

import importlib
import re

import nbformat
import numpy as np
import pytest

import qlearn
from dev import ROOT
from qlearn import exercises
from qlearn.exercises import lesson_02
from qlearn.exercises.challenges import CannotBeJudged

# --- right answers that look unlike the solution ---------------------------------------------------------------------


def _parts_in_a_loop(x, scale, quant_max):
    rounding = clipping = 0.0
    for value in x:
        code = round(value / scale)
        clamped = min(max(code, -quant_max), quant_max)
        square = (value - scale * clamped) ** 2
        if clamped == code:
            rounding += square / len(x)
        else:
            clipping += square / len(x)
    return rounding, clipping


def _parts_by_selection(x, scale, quant_max):
    inside = np.abs(np.round(x / scale)) <= quant_max
    squares = np.square(x - np.round(x / scale).clip(-quant_max, quant_max) * scale)
    return np.array([squares[inside].sum() / x.size, squares[~inside].sum() / x.size])


def _parts_in_a_loop_over_codes(x, scale, quant_max):
    parts = [0.0, 0.0]
    codes = np.round(x / scale)
    for code in np.unique(codes):
        kept = min(max(code, -quant_max), quant_max)
        parts[int(kept != code)] += np.sum((x[codes == code] - scale * kept) ** 2) / len(x)
    return parts


def _percentile_by_hand(x, p):
    ordered = sorted(x)

    def at(share):
        place = share * (len(ordered) - 1)
        k = min(int(place), max(len(ordered) - 2, 0))
        return ordered[k] + (place - k) * (ordered[min(k + 1, len(ordered) - 1)] - ordered[k])

    return [at(1 - p / 100), at(p / 100)]


def _clip_in_one_go(x, bits, clips):
    quant_max = 2 ** (bits - 1) - 1
    scales = clips[:, np.newaxis] / quant_max
    x_hat = np.round(x / scales).clip(-quant_max, quant_max) * scales
    return clips[((x - x_hat) ** 2).sum(axis=1).argmin()]


def _clip_one_by_one(x, bits, clips):
    best, smallest = None, float("inf")
    for clip in clips:
        qparams = qlearn.choose_qparams(-clip, clip, bits=bits, symmetric=True)
        error = qlearn.errors.mse(x, qlearn.fake_quantize(x, qparams))
        if error < smallest:
            best, smallest = clip, error
    return float(best)


def _logaddexp(logits, logits_hat):
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    q = logits_hat - np.logaddexp.reduce(logits_hat, axis=-1, keepdims=True)
    return -(p * q).sum(axis=1).mean()


def _torch_says(logits, logits_hat):
    torch = pytest.importorskip("torch")
    p = torch.softmax(torch.tensor(logits), dim=-1)
    return torch.nn.functional.cross_entropy(torch.tensor(logits_hat), p).item()


def _row_by_row(logits, logits_hat):
    total = 0
    for row, row_hat in zip(logits, logits_hat, strict=True):
        p = np.exp(row - max(row))
        total += np.dot(p / sum(p), max(row_hat) + np.log(np.exp(row_hat - max(row_hat)).sum()) - row_hat)
    return total / len(logits)


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("02.1", _parts_in_a_loop),
        ("02.1", _parts_by_selection),
        ("02.1", _parts_in_a_loop_over_codes),
        ("02.1", lambda x, scale, quant_max: list(_parts_by_selection(x, scale, quant_max))),
        ("02.2", lambda x, p: np.percentile(x, [100 - p, p])),
        ("02.2", lambda x, p: (np.quantile(x, 1 - p / 100), np.quantile(x, p / 100))),
        ("02.2", lambda x, p: (-np.percentile(-x, p), np.percentile(x, p))),
        ("02.2", _percentile_by_hand),
        ("02.3", _clip_in_one_go),
        ("02.3", _clip_one_by_one),
        ("02.4", _logaddexp),
        ("02.4", _torch_says),
        ("02.4", _row_by_row),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message


# --- wrong answers, as a learner might write them --------------------------------------------------------------------


def _parts(codes_of, limits=lambda quant_max: (-quant_max, quant_max)):
    def error_parts(x, scale, quant_max):
        codes = codes_of(x / scale)
        clamped = codes.clip(*limits(quant_max))
        squares = (x - clamped * scale) ** 2
        return np.where(codes == clamped, squares, 0).mean(), np.where(codes != clamped, squares, 0).mean()

    return error_parts


def _in_place(x, scale, quant_max):
    x /= scale
    return lesson_02.error_parts(x, 1.0, quant_max)


def _keeps_the_last(x, bits, clips):
    quant_max, best, smallest = 2 ** (bits - 1) - 1, 0, 0
    for clip in clips:
        error = np.mean((x - np.rint(x / clip * quant_max).clip(-quant_max, quant_max) * clip / quant_max) ** 2)
        if error > smallest or best == 0:  # the wrong way round
            best, smallest = clip, error
    return best


def _returns_too_soon(x, bits, clips):
    for clip in clips:
        quant_max = 2 ** (bits - 1) - 1
        x_hat = np.rint(x / clip * quant_max) * clip / quant_max
        errors = [np.mean((x - x_hat) ** 2)]
        return clips[np.argmin(errors)]


def _softmax(z):
    return np.exp(z) / np.sum(np.exp(z), axis=-1, keepdims=True)


def _means_of_selections(x, scale, quant_max):
    codes = np.rint(x / scale)
    squares = (x - scale * codes.clip(-quant_max, quant_max)) ** 2
    clipped = abs(codes) > quant_max
    return tuple(part.mean() if part.size else np.nan for part in (squares[~clipped], squares[clipped]))


def _quiet(function):
    """The same without the warnings that NumPy would print."""

    def silent(logits, logits_hat):
        with np.errstate(all="ignore"):
            return function(logits, logits_hat)

    return silent


def _stable(z):
    return _softmax(z - z.max(axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("02.1", _parts(lambda z: z.astype(int)), "A cast cuts the fraction off"),
        ("02.1", _parts(lambda z: np.floor(z)), "You round down"),
        ("02.1", _parts(lambda z: np.floor(z + 0.5)), "You round halves up"),
        ("02.1", _parts(lambda z: np.copysign(np.floor(abs(z) + 0.5), z)), "You round halves away from 0"),
        ("02.1", _parts(np.rint, lambda q: (-q - 1, q)), "Symmetric ones begin at −quant_max"),
        ("02.1", _parts(np.rint, lambda q: (0, q)), "every negative value is clipped"),
        ("02.1", _in_place, "your function changed its input x"),
        ("02.1", _means_of_selections, "its own values"),
        (
            "02.1",
            lambda x, scale, q: tuple(
                np.mean((x - scale * np.rint(x / scale).clip(-q, q)) ** 2 * part)
                for part in (abs(x) <= scale * (q + 0.5), abs(x) > scale * (q + 0.5))
            ),
            "exactly half a step beyond",
        ),
        ("02.2", lambda x, p: (np.percentile(-x, p), np.percentile(x, p)), "do not turn the result back"),
        ("02.2", lambda x, p: np.quantile(x, [100 - p, p]), "np.quantile counts from 0 to 1"),
        ("02.2", lambda x, p: np.abs(np.percentile(x, [100 - p, p])).max() * np.array([-1, 1]), "the range symmetric"),
        ("02.3", lambda x, bits, clips: abs(x).max(), "the largest |x|"),
        ("02.3", lambda x, bits, clips: clips[np.argmin(abs(clips - np.percentile(abs(x), 99)))], "other values"),
        ("02.4", _quiet(lambda x, z: -np.mean(np.sum(_stable(z) * np.log(_stable(x)), -1))), "*original* logits"),
        (
            "02.4",
            _quiet(lambda x, z: np.mean(np.sum(_stable(x) * np.log(_stable(x) / _stable(z)), -1))),
            "the KL divergence",
        ),
        ("02.4", _quiet(lambda x, z: -np.mean(np.sum(_stable(x) * np.log2(_stable(z)), -1))), "base 2"),
        ("02.4", _quiet(lambda x, z: -np.mean(np.sum(_stable(x) * np.log(_stable(z)), 0))), "down the columns"),
        ("02.4", lambda x, z: -np.mean(np.sum(_stable(x) * np.log(_stable(z) + 1e-300), -1)), "bounds the logarithm"),
        ("02.1", lambda x, scale, quant_max: _parts_by_selection(x / scale, 1.0, quant_max), "You measure in steps"),
        ("02.1", lambda x, scale, quant_max: _parts_by_selection(x, scale, quant_max) ** 0.5, "Roots do not add up"),
        ("02.1", lambda x, scale, quant_max: _parts_by_selection(x, scale, quant_max)[::-1], "in the other order"),
        ("02.1", lambda x, scale, quant_max: sum(_parts_by_selection(x, scale, quant_max)), "must return 2 values"),
        ("02.1", lambda x, scale, quant_max: (x - np.rint(x / scale) * scale) ** 2, "must return 2 values"),
        ("02.2", lambda x, p: (np.percentile(x, 100 - p), x.max()), "outliers on the right still set the scale"),
        ("02.2", lambda x, p: (0, np.percentile(x, p)), "Your lo is always 0"),
        ("02.2", lambda x, p: (min(0, np.percentile(x, 100 - p)), max(0, np.percentile(x, p))), "You widen the range"),
        ("02.2", lambda x, p: np.percentile(x, [50 - p / 2, 50 + p / 2]), "at *each* end"),
        ("02.2", lambda x, p: np.sort(x)[[int((1 - p / 100) * len(x)), int(p / 100 * len(x)) - 1]], "other values"),
        ("02.2", lambda x, p: tuple(np.percentile(x, [100 - p, p], method="nearest")), "You take one of the values"),
        ("02.2", lambda x, p: (np.percentile(x, p), np.percentile(x, 100 - p)), "Your lo lies above your hi"),
        ("02.2", lambda x, p: np.percentile(x, p), "must return 2 values"),
        ("02.3", _keeps_the_last, "np.argmin, not np.argmax"),
        ("02.3", _returns_too_soon, "Is your `return` inside the loop?"),
        ("02.3", lambda x, bits, clips: np.argmin([error**2 for error in clips]), "other values"),
        (
            "02.3",
            lambda x, bits, clips: _clip_in_one_go(x, bits, clips) / (2 ** (bits - 1) - 1),
            "You return the scale",
        ),
        ("02.3", lambda x, bits, clips: min(clips, key=lambda c: np.mean((x - x.clip(-c, c)) ** 2)), "do not round"),
        (
            "02.3",
            lambda x, bits, clips: min(clips, key=lambda c: np.mean((x - c * (x / c).astype(int).clip(-1, 1)) ** 2)),
            "other values",
        ),
        ("02.3", lambda x, bits, clips: _clip_in_one_go(x.astype(int), bits, clips), "other values"),
        ("02.3", lambda x, bits, clips: _clip_in_one_go(x, bits, clips).reshape(1), "has shape (1,)"),
        ("02.4", _quiet(lambda x, z: np.mean(-np.sum(_softmax(x) * np.log(_softmax(z)), axis=-1))), "infinite"),
        (
            "02.4",
            lambda x, z: np.mean(-np.sum(_stable(x) * np.log(_stable(z) + 1e-12), axis=-1)),
            "bounds the logarithm",
        ),
        (
            "02.4",
            lambda x, z: np.mean(-np.sum(_stable(x) * np.log(_stable(z).clip(1e-9)), axis=-1)),
            "bounds the logar",
        ),
        (
            "02.4",
            lambda x, z: np.mean(-np.sum(_stable(x) * (z - np.log(np.exp(z - z.max(1)).sum(1)) - z.max(1)), axis=1)),
            "With `keepdims=True`",
        ),
        ("02.4", lambda x, z: -np.sum(_stable(x) * (z - np.logaddexp.reduce(z, -1, keepdims=True)), -1), "each row"),
        (
            "02.4",
            _quiet(lambda x, z: np.mean(-_softmax(x) * np.log(_softmax(z)))),
            "You divide by the number of logits",
        ),
        ("02.4", _quiet(lambda x, z: np.sum(-_softmax(x) * np.log(_softmax(z)))), "You sum over the rows too"),
        ("02.4", _quiet(lambda x, z: np.mean(np.sum(_softmax(x) * np.log(_softmax(z)), -1))), "The sign is wrong"),
        (
            "02.4",
            _quiet(lambda x, z: -np.sum(np.exp(x) / np.exp(x).sum() * np.log(np.exp(z) / np.exp(z).sum()))),
            "together",
        ),
        ("02.4", lambda x, z: _logaddexp(x, z) / np.log(2), "base 2"),
        ("02.4", lambda x, z: _logaddexp(x, z) - _logaddexp(x, x), "that is the KL divergence"),
        ("02.4", lambda x, z: _logaddexp(z, x), "The weights are the softmax of the *original* logits"),
        ("02.4", lambda x, z: -np.mean(np.sum(_stable(x) * _stable(z), axis=1)), "The logarithm of the second"),
        ("02.4", lambda x, z: _logaddexp(x.T, z.T), "down the columns|other values"),
    ],
)
def test_wrong_answers_in_other_words(exercise_id, attempt, message):
    def named(**case):  # the parameters' names are the lesson's
        return attempt(*case.values())

    result = exercises.check(exercise_id, named)
    assert result.status == "wrong"
    assert any(part in result.message for part in message.split("|")), result.message


# --- what an answer does ---------------------------------------------------------------------------------------------


def percentages(text):
    return [float(number) for number in re.findall(r"(\d+\.\d) %", text)]


def test_the_same_error_is_not_the_same_network():
    text = lesson_02.ERROR_PARTS.consequence(_parts_in_a_loop_over_codes)
    widest, bottom, cut = percentages(text)
    assert 75 < cut < widest - 3 < bottom - 7
    assert text == lesson_02.ERROR_PARTS.consequence(lesson_02.error_parts)


def test_percentiles_run_in_the_network():
    text = lesson_02.PERCENTILE_RANGE.consequence(lesson_02.percentile_range)
    widest, gentle, good, harsh = percentages(text)
    assert widest < 60 < gentle < 90 < harsh < good
    assert "2 bits a weight" in text


def test_grid_search_runs_in_the_network():
    found, widest = percentages(lesson_02.BEST_CLIP.consequence(_clip_in_one_go))
    assert widest < 15 and found > 93
    worst, _ = percentages(lesson_02.BEST_CLIP.consequence(lambda x, bits, clips: clips[-1]))
    assert worst == widest


def test_cross_entropy_chooses_the_range_of_the_logits():
    ours, mse = percentages(lesson_02.CROSS_ENTROPY.consequence(_logaddexp))
    assert ours > 95 > mse > 90


# --- the challenge ---------------------------------------------------------------------------------------------------


def everywhere(method="mse", **changed):
    def choose_ranges(tensors, bits, logits_after):
        ranges = {name: qlearn.find_range(x, method, bits=bits) for name, x in tensors.items()}
        return {**ranges, **changed}

    return choose_ranges


def test_other_good_ideas_meet_the_target():
    def gentle(tensors, bits, logits_after):
        ranges = {name: qlearn.find_range(x, "percentile", percentile=98) for name, x in tensors.items()}
        return {**ranges, "logits": qlearn.find_range(tensors["logits"], "cross_entropy", bits=bits)}

    assert exercises.challenge("02.C", gentle).status == "correct"


def test_one_idea_alone_is_better_and_not_enough():
    def of_logits(tensors, bits, logits_after):
        ranges = everywhere()(tensors, bits, logits_after)
        return {**ranges, "logits": qlearn.find_range(tensors["logits"], "cross_entropy", bits=bits)}

    accuracy, least = percentages(str(lesson_02._judge(of_logits).columns)), lesson_02.TARGET
    assert 87 < accuracy[0] < least - 1
    assert "not there yet" in exercises.challenge("02.C", of_logits).message


def test_no_simple_answer_comes_near_the_target():
    for answer in lesson_02.TWO_BITS.simple.values():
        (accuracy,) = percentages(str(lesson_02._judge(answer).columns))
        assert accuracy < lesson_02.TARGET - 0.5
    (accuracy,) = percentages(str(lesson_02._judge(lesson_02.choose_ranges).columns))
    assert accuracy > lesson_02.TARGET + 1


def test_the_tensors_are_those_of_seven_steps_and_may_be_changed():
    seen = {}

    def choose_ranges(tensors, bits, logits_after):
        seen.update({name: x.shape for name, x in tensors.items()})
        assert bits == 2
        before = logits_after({})
        assert np.allclose(before, tensors["logits"], rtol=1e-6)
        assert set(np.unique(logits_after({"logits": (-1, 2)}))) <= {-1, 0, 1, 2}
        for x in tensors.values():
            x[...] = 0
        assert np.array_equal(before, logits_after({}))
        return everywhere()(lesson_02._calibration(), bits, logits_after)

    assert exercises.challenge("02.C", choose_ranges).message == exercises.challenge("02.C", everywhere()).message
    assert list(seen) == list(lesson_02.FLOW)
    assert seen["pixels"] == (1000, 784) and seen["weight3"] == (10, 100) and seen["logits"] == (1000, 10)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda tensors, bits, logits_after: tensors.clear(), "and this is a NoneType"),
        (lambda tensors, bits, logits_after: [(-1, 1)] * 7, "a dictionary name → (lo, hi) is wanted"),
        (
            lambda tensors, bits, logits_after: {"pixels": (0, 1)},
            "weight1, hidden1, weight2, hidden2, weight3, logits: no",
        ),
        (everywhere(bias1=(0, 1)), "there is no tensor 'bias1'; the tensors are pixels, weight1"),
        (everywhere(logits=(1, -1)), "the range of logits must be two finite numbers, lo ≤ hi; this is (1, -1)."),
        (everywhere(logits=(-np.inf, np.inf)), "two finite numbers"),
        (everywhere(logits=(np.nan, 1)), "two finite numbers"),
        (everywhere(logits=7), "two finite numbers"),
        (everywhere(logits=(1, 2, 3)), "two finite numbers"),
        (everywhere(weight1=np.ones((2, 784))), "the range of weight1 must be two finite numbers"),
        (everywhere(logits="ab"), "two finite numbers"),
        (lambda tensors, bits, logits_after: logits_after({"x": (0, 1)}), "there is no tensor 'x'"),
        (lambda tensors, bits, logits_after: 1 / 0, "your function raised ZeroDivisionError"),
        (lambda tensors: {}, "your function raised TypeError"),
    ],
)
def test_what_breaks_a_rule_is_told_which(answer, message):
    result = exercises.challenge("02.C", answer)
    assert result.status == "wrong"
    assert message in result.message


def test_a_range_of_numbers_of_any_kind_will_do():
    for pair in ((0, 1), [0.0, 1.0], np.float32([0, 1]), (np.int8(0), np.float64(1))):
        assert lesson_02._ends("pixels", pair) == (0.0, 1.0)
    with pytest.raises(CannotBeJudged):
        lesson_02._ends("pixels", (1j, 2))


# --- the lesson ------------------------------------------------------------------------------------------------------

LESSON = nbformat.read(ROOT / "notebooks/02_choosing_the_range.ipynb", as_version=4)


@pytest.mark.parametrize("exercise_id", ["02.1", "02.2", "02.3", "02.4", "02.C"])
def test_help_in_the_lesson_is_the_packages(exercise_id):
    (help_,) = [cell.source for cell in LESSON.cells if f"<summary>Hint for {exercise_id}</summary>" in cell.source]
    assert re.findall(r"int for .*?</summary>\n\n(.*?)\n</details>", help_) == list(exercises.find(exercise_id).hints)
    assert f"```python\n{exercises.solution_source(exercise_id)}\n```" in help_


def test_no_solution_stands_open_in_a_later_cell():
    code = "\n".join(cell.source for cell in LESSON.cells if cell.cell_type == "code")
    for line in ("np.percentile(x, 100 - p)", "~clipped", "clips[np.argmin(errors)]\n\n", "def log_softmax"):
        assert line not in code


# --- in the field: what the lesson says of libraries, held against those that are here -------------------------------


def test_pytorchs_histogram_observer_judges_for_the_storage_type():
    torch = pytest.importorskip("torch")
    observer = pytest.importorskip("torch.ao.quantization.observer")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=20_000).astype(np.float32))
    widths = []
    for quant_max in (15, 255):
        seen = observer.HistogramObserver(dtype=torch.quint8, quant_min=0, quant_max=quant_max)
        seen(x)
        scale, _ = seen.calculate_qparams()
        widths.append(float(scale) * quant_max)
    assert widths[0] == pytest.approx(widths[1], rel=1e-6)
    lo, hi = qlearn.find_range(x.numpy(), "mse", bits=4)
    assert widths[0] > 1.4 * (hi - lo)
    assert {"MinMaxObserver", "MovingAverageMinMaxObserver"} <= set(vars(observer))


def test_torchao_has_observers_for_min_max_and_mse():
    pytest.importorskip("torchao", minversion="0.18")
    observer = importlib.import_module("torchao.quantization.observer")
    assert {"AffineQuantizedMinMaxObserver", "AffineQuantizedMSEObserver"} <= set(vars(observer))


def test_onnx_runtime_has_four_calibrators():
    quantization = pytest.importorskip("onnxruntime.quantization")
    assert {method.name for method in quantization.CalibrationMethod} == {
        *("MinMax", "Entropy", "Percentile", "Distribution"),
    }
