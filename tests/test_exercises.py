"""Checkers know a right answer, and say what is wrong with a wrong one."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import qlearn
from qlearn import exercises
from qlearn.exercises.lesson_01 import asymmetric_qparams_repaired, dequantize_uint8, quantize_symmetric

ALL = [exercises.find(exercise_id) for exercise_id in exercises.ids()]
EVERY_MISTAKE = [
    pytest.param(exercise, mistake, id=f"{exercise.id} {mistake.function.__name__.strip('_')}")
    for exercise in ALL
    for mistake in exercise.mistakes
]


@pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.id)
def test_the_solution_is_correct(exercise):
    result = exercises.check(exercise.id, exercise.solution)
    assert result.status == "correct", result.message
    assert f"✓ {exercise.id} correct" in repr(result)


@pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.id)
def test_there_are_hints_and_at_least_three_mistakes(exercise):
    assert len(exercise.mistakes) >= 3
    assert len(exercise.hints) == 2
    assert "TODO" not in inspect.getsource(exercise.solution)


@pytest.mark.parametrize(("exercise", "mistake"), EVERY_MISTAKE)
def test_each_mistake_gets_its_own_diagnosis(exercise, mistake):
    result = exercises.check(exercise.id, mistake.function)
    assert result.status == "wrong"
    assert mistake.diagnosis in result.message
    others = {other.diagnosis for other in exercise.mistakes} - {mistake.diagnosis}
    assert not any(other in result.message for other in others)


# Wrong answers written another way than the checker's own, as a learner might.
@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("01.1", lambda values: np.clip(values.astype(np.uint8), 0, 255), "A cast cuts|wrapped|other values"),
        (
            "01.1",
            lambda values: np.asarray([min(max(int(v), 0), 255) for v in values], np.uint8),
            "A cast cuts the fraction off",
        ),
        ("00.1", lambda parameters, bits: 1 + parameters * bits // 8, "only where bits are left over"),
        ("01.1", lambda values: np.round(np.minimum(values, 255)).astype(int).astype(np.uint8), "Below 0"),
        (
            "01.2",
            lambda x, bits: (np.rint(x / (x.max() / 127)).astype(np.int8), x.max() / 127),
            "your result has other values",
        ),
        ("01.3", lambda codes, scale, zero_point: codes * scale + zero_point, "You add the zero point to real numbers"),
        ("01.3", lambda codes, scale, zero_point: scale * (codes - zero_point), "raised OverflowError|wrapped"),
        ("01.4", lambda lo, hi, bits: ((hi - lo) / 255, round(-lo / ((hi - lo) / 255))), "no code at all"),
        (
            "02.1",
            lambda x, scale, quant_max: (
                np.mean(((x - scale * np.rint(x / scale)) ** 2)[np.abs(x) <= scale * (quant_max + 0.5)]),
                0.0,
            ),
            "other values",
        ),
        ("02.2", lambda x, p: tuple(np.quantile(x, [0, p / 100])), "You cut one tail only"),
        ("02.2", lambda x, p: [np.percentile(x, 100 - p), np.percentile(x, p)], "must return 2 values"),
        (
            "02.3",
            lambda x, bits, clips: min(
                clips,
                key=lambda c: np.mean((x - np.rint(x / c * (2 ** (bits - 1) - 1)) * c / (2 ** (bits - 1) - 1)) ** 2),
            ),
            "Without the clamp",
        ),
        (
            "02.3",
            lambda x, bits, clips: min(
                clips,
                key=lambda c: np.mean(
                    (x - np.rint(x / c * (2**bits - 1)).clip(1 - 2**bits, 2**bits - 1) * c / (2**bits - 1)) ** 2
                ),
            ),
            "codes without a sign",
        ),
        (
            "02.4",
            lambda logits, logits_hat: np.mean(
                [np.logaddexp.reduce(z) - z[x.argmax()] for x, z in zip(logits, logits_hat, strict=True)]
            ),
            "You look at the largest class only",
        ),
        ("03.1", lambda w, bits: (np.rint(w / w.max() * 127).astype(np.int8), w), "other values"),
        (
            "03.2",
            lambda x_codes, x_scale, w_codes, w_scale: (
                np.einsum("mi,oi->mo", x_codes.astype(np.int16), w_codes.astype(np.int16)) * x_scale * w_scale.T
            ),
            "do not fit into int16",
        ),
        (
            "03.4",
            lambda bits, group_size, scale_bits, zero_point_bits: (
                bits + int((scale_bits + zero_point_bits) / group_size)
            ),
            "drops the fraction",
        ),
        (
            "04.1",
            lambda raw, x, w, x_zero_point, w_zero_point: (
                raw - x_zero_point * w.sum(0) - w_zero_point * x.sum(1) + len(w) * x_zero_point * w_zero_point
            ),
            "keepdims=True makes them a column",
        ),
        (
            "04.3",
            lambda factor: (np.frexp(factor)[0] * 2.0**31, -int(np.frexp(factor)[1])),
            "m must be a whole number",
        ),
        ("04.4", lambda values, places: (values + 2 ** (places - 1)) >> places, "Your −24 / 16 became −1"),
        (
            "04.4",
            lambda values, places: (values + np.sign(values) * (2**places // 2)) >> places,
            "but >> rounds down",
        ),
        ("05.1", lambda lo, hi, batch: (batch.min(), batch.max()), "Your observer forgets"),
        (
            "05.3",
            lambda x_codes, x_zero_point, w_codes: np.dot(x_codes.astype(int), w_codes.T.astype(int)),
            "wanted is int32",
        ),
        ("05.2", lambda x: (x.view(np.uint32) >> 20 << 20).view(np.float32), "other values"),
        ("05.2", lambda x: np.round(x * 128) / 128, "is float32|other values"),
        ("05.4", lambda outputs, inputs, bits: outputs * inputs * bits / 8, "other values|Codes alone"),
        (
            "06.1",
            lambda x, scale, quant_min, quant_max, upstream: upstream * (abs(x) < scale * quant_max),
            "other values|before rounding",
        ),
        ("06.1", lambda x, scale, quant_min, quant_max, upstream: 0 * x, "That is the staircase's own slope"),
        (
            "06.2",
            lambda x, scale, quant_max: np.round(x / scale).clip(-quant_max, quant_max) - x / scale,
            "Outside the range x takes no part",
        ),
        ("06.2", lambda x, scale, quant_max: np.sum(np.rint(x / scale) - x / scale), "a NumPy array is wanted"),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (bias / input_scale / weight_scale).round(),
            "Those are the codes",
        ),
        (
            "07.1",
            lambda weight, bias, gamma, beta, mean, var, eps: (
                (weight.T * (gamma * var**-0.5)).T,
                gamma * (bias - mean) / var**0.5 + beta,
            ),
            "The square root is of var + eps",
        ),
        ("07.1", lambda weight, bias, gamma, beta, mean, var, eps: weight * gamma[:, None], "must return 2 values"),
        ("07.2", lambda w1, b1, w2: (w1, b1, w2), "other values"),
        (
            "07.3",
            lambda bias_codes, step, y, y_hat: bias_codes + np.rint(np.mean(y - y_hat, axis=0) / step),
            "has dtype float64; wanted is int32 (the values are right)",
        ),
        ("07.4", lambda w, r: np.round(np.asarray(w)), "the nearest tick for each weight alone"),
        ("07.5", lambda w, h: np.sum((w - np.round(w)) @ h * (w - np.round(w))), "what the nearest ticks give"),
        (
            "08.1",
            lambda x, levels: np.digitize(x, (levels[1:] + levels[:-1]) / 2).astype(np.uint8),
            "Here the smaller one wins",
        ),
        (
            "08.1",
            lambda x, levels: np.array([np.abs(levels - v).argmin() for v in x], np.uint8),
            "That works for a list only",
        ),
        (
            "08.2",
            lambda x, levels: np.array(
                [x @ near / max(near.sum(), 1) for near in np.eye(len(levels))[:, abs(x[:, None] - levels).argmin(1)]]
            ),
            "A level without values went to 0",
        ),
        (
            "08.3",
            lambda code, exponent_bits, significand_bits: (
                (-1) ** (code >> exponent_bits + significand_bits)
                * 2.0 ** ((code >> significand_bits) % 2**exponent_bits - 2 ** (exponent_bits - 1) + 1)
                * (1 + (code & (2**significand_bits - 1)) / 2**significand_bits)
            ),
            "An exponent field of 0 means a subnormal number",
        ),
        (
            "08.4",
            lambda block, largest_exponent: 2.0 ** (np.int64(np.log2(np.max(abs(block)))) - largest_exponent),
            "A cast cuts towards 0",
        ),
        (
            "08.5",
            lambda codes, bits: np.packbits(np.unpackbits(codes[:, None], axis=1)[:, -bits:]),
            "Your first code lies in the high bits",
        ),
        (
            "08.5",
            lambda codes, bits: np.packbits(
                ((codes[:, None] >> np.arange(bits)) & 1).reshape(-1, 8), axis=1, bitorder="little"
            )[:, 0],
            "fill the last one up with zeros",
        ),
    ],
)
def test_wrong_answers_in_other_words(exercise_id, attempt, message):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert any(part in result.message for part in message.split("|")), result.message


def _stub(values):
    """Still to be written."""
    ...


@pytest.mark.parametrize("attempt", [..., _stub, lambda values: ...])
def test_unattempted_is_no_error(attempt):
    result = exercises.check("01.1", attempt)
    assert result.status == "not attempted"
    assert "01.1 not attempted yet" in result.message


def _raises(values):
    raise ZeroDivisionError("division by zero")


def _changes_its_input(values):
    values.sort()
    return exercises.find("01.1").solution(values)


def _endless_recursion(values):
    return _endless_recursion(values)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (_raises, "your function raised ZeroDivisionError: division by zero\n  in the call to_uint8(values="),
        (lambda: 0, "your function raised TypeError"),
        (lambda x: x, "Keep the names of the parameters"),
        (lambda values: exit(), "your function raised SystemExit"),
        (_endless_recursion, "your function raised RecursionError"),
        (lambda values: np.uint8([1, 2]), "your result has shape (2,); wanted is shape (5,)"),
        (lambda values: [0, 0, 100, 255, 255], "your function returned a list; a NumPy array is wanted"),
        (lambda values: "codes", "your function returned a str; a NumPy array is wanted"),
        (lambda values: print(values), "your function returned nothing. Is there a return at its end?"),
        (_changes_its_input, "your function changed its input values"),
        (np.uint8([0]), "is not a function. Pass to_uint8 itself, without brackets"),
        (
            lambda values: np.clip(np.rint(values), 0, 255).astype(np.int16),
            "dtype int16; wanted is uint8 (the values are right)",
        ),
        (lambda values: np.array([object()] * 5), "a number is wanted"),
        (lambda values: [[1], [1, 2]], "your function returned a list; a NumPy array is wanted"),
    ],
)
def test_whatever_an_attempt_does_the_lesson_goes_on(attempt, message, capsys):
    result = exercises.check("01.1", attempt)
    assert result.status == "wrong"
    assert message in result.message
    assert capsys.readouterr().out == ""


def test_answers_that_change_from_call_to_call_are_said_to():
    calls = []

    def wrong_once_in_a_while(values):
        calls.append(values)
        right = exercises.find("01.1").solution(values)
        return right + 1 if len(calls) == 30 else right

    assert "different answers to the same call" in exercises.check("01.1", wrong_once_in_a_while).message


class NoArray:
    """What PyTorch's tensors with a gradient say when NumPy asks for their values."""

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def test_what_numpy_cannot_hold_is_wrong_and_no_crash():
    for attempt in (lambda **_: NoArray(), lambda **_: [[1], [1, 2]]):
        assert exercises.check("05.4", attempt).status == "wrong"


def test_a_tuple_is_checked_part_by_part():
    assert "must return 2 values" in exercises.check("01.2", lambda x, bits: x).message
    assert "must return 2 values" in exercises.check("01.2", lambda x, bits: (x, x, x)).message
    wrong_scale = exercises.check("01.2", lambda x, bits: (quantize_symmetric(x, bits)[0], "1"))
    assert "returned a str; a number is wanted" in wrong_scale.message


def test_messages_show_wanted_and_given():
    message = exercises.check("01.1", lambda values: np.zeros(len(values), np.uint8)).message
    assert "call    to_uint8(values=[ -3.2, 0. , 99.7, 255. , 300. ] (float64))" in message
    assert "wanted  [ 0, 0, 100, 255, 255] (uint8)" in message
    assert "yours   [0, 0, 0, 0, 0] (uint8)" in message
    html = exercises.check("01.1", _raises)._repr_html_()
    assert "&lt;" not in exercises.check("01.1", ...)._repr_html_()
    assert 'role="status"' in html


def test_solved_exercises_are_counted():
    exercises.check("05.4", exercises.find("05.4").solution)
    assert "of 4 in this lesson" in exercises.check("05.1", exercises.find("05.1").solution).message


def test_hints_come_one_after_the_other(capsys):
    for expected in ("Hint 1 of 2", "Hint 2 of 2", "Hint 2 of 2"):
        exercises.hint("05.3")
        assert expected in capsys.readouterr().out
    exercises.solution("05.3")
    assert capsys.readouterr().out.startswith("def accumulate(x_codes, x_zero_point, w_codes):")


def test_unknown_ids_are_named():
    with pytest.raises(ValueError, match=r"no exercise '1.2'; the exercises are 00.1, 01.1"):
        exercises.check("1.2", ...)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_solutions_agree_with_the_package(bits):
    x = np.random.default_rng(0).normal(size=50)
    codes, scale = quantize_symmetric(x, bits)
    qparams = qlearn.find_qparams(x, bits=bits, symmetric=True)
    assert scale == qparams.scale
    assert np.array_equal(codes, qlearn.quantize(x, qparams))
    for lo, hi in ((-1.0, 3.0), (10.0, 11.0), (-11.0, -10.0)):
        ours = qlearn.choose_qparams(lo, hi, bits=bits)
        assert asymmetric_qparams_repaired(lo, hi, bits) == pytest.approx((ours.scale, ours.zero_point), rel=1e-15)
        codes = np.arange(2**bits).astype(np.uint8)
        assert dequantize_uint8(codes, ours.scale, ours.zero_point) == pytest.approx(
            qlearn.dequantize(codes, ours), rel=1e-15
        )
