"""Lesson 04: what learners write is told the truth and runs on integers; the challenge's registers have 32 bits."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import qlearn
from qlearn import exercises, integer
from qlearn.exercises.challenges import CannotBeJudged
from qlearn.exercises.integer_network import bias_codes, codes_off, digits_read, exact, layers, nearest
from qlearn.exercises.lesson_04 import REQUANTIZE, _dark_on_light, correct_zero_points, rounding_shift
from qlearn.exercises.registers import Registers
from qlearn.exercises.watched import Watched, watch


def terms(formula):
    return lambda raw, x, w, x_zero_point, w_zero_point: formula(raw, x, w, x_zero_point, w_zero_point)


def of_a_bias(formula):
    return lambda bias, x_scale, w_scale: formula(bias, x_scale, w_scale)


def shifted(formula):
    return lambda values, places: formula(values, places)


# --- right answers that look different -------------------------------------------------------------------------------


def terms_by_loops(raw, x, w, x_zero_point, w_zero_point):
    corrected = raw.copy()
    for i in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            corrected[i, j] -= x_zero_point * sum(w[:, j]) + w_zero_point * sum(x[i])
            corrected[i, j] += x.shape[1] * x_zero_point * w_zero_point
    return corrected


def bias_by_the_package(bias, x_scale, w_scale):
    return qlearn.quantize(bias, qlearn.QParams(x_scale * w_scale, 0, -(2**31), 2**31 - 1)).astype(np.int32)


def multiplier_by_frexp(factor):
    fraction, exponent = np.frexp(factor)
    return int(np.rint(fraction * 2**31)), -exponent


def multiplier_by_logarithm(factor):
    shift = int(np.ceil(-np.log2(factor))) - 1
    return round(factor * 2 ** (31 + shift)), shift


def multiplier_from_the_other_end(factor):
    doublings = 0
    while factor < 2**30:
        factor, doublings = factor * 2, doublings + 1
    return round(factor), doublings - 31


def shift_by_a_remainder(values, places):
    mask = (1 << places) - 1
    return (values >> places) + ((values & mask) > (mask >> 1) + (values < 0))


def shift_in_a_loop(values, places):
    half = (1 << places) >> 1
    return np.array([(abs(int(v)) + half >> places) * (-1 if v < 0 else 1) for v in values])


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("04.1", terms_by_loops),
        ("04.1", terms(lambda raw, x, w, zx, zw: raw - zw * x.sum(1)[:, None] - zx * (w - zw).sum(0))),
        ("04.2", bias_by_the_package),
        ("04.2", of_a_bias(lambda b, sx, sw: np.round(b / sx / sw).astype("i4"))),
        ("04.2", of_a_bias(lambda b, sx, sw: np.floor(b / (sx * sw) + 0.5).astype(np.int32))),
        ("04.3", multiplier_by_frexp),
        ("04.3", multiplier_by_logarithm),
        ("04.3", multiplier_from_the_other_end),
        ("04.3", lambda factor: list(integer.quantize_multiplier(factor))),
        ("04.4", shift_by_a_remainder),
        ("04.4", shift_in_a_loop),
        ("04.4", shifted(lambda v, n: np.sign(v) * (abs(v) + 2**n // 2 >> n))),
        ("04.4", shifted(lambda v, n: np.where(v < 0, -1, 1) * ((abs(v) + 2**n // 2) // 2**n))),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message
    assert "digits that it has not seen" in result.message and "raised" not in result.message


# --- wrong answers as learners write them ----------------------------------------------------------------------------


def second_product_of_matrices(raw, x, w, zx, zw):
    return raw - np.full_like(x, zx) @ w - x @ np.full_like(w, zw) + x.shape[1] * zx * zw


def product_by_loops(raw, x, w, zx, zw):
    return np.array([[sum((row - zx) * (column - zw)) for column in w.T] for row in x])


def subtracts_in_place(raw, x, w, zx, zw):
    raw -= zx * w.sum(axis=0)
    raw -= zw * x.sum(axis=1, keepdims=True)
    return raw + x.shape[1] * zx * zw


def never_doubles(factor):
    shift = 0
    while factor < 0.5:
        shift += 1
    return round(factor * 2**31), shift


def doubles_up_to_one(factor):
    shift = 0
    while factor * 2 <= 1:
        factor, shift = factor * 2, shift + 1
    return round(factor * 2**31), shift


def doubles_once(factor):
    return (round(factor * 2**32), 1) if factor < 0.5 else (round(factor * 2**31), 0)


def halves(factor):
    shift = 0
    while factor > 0.5:
        factor, shift = factor / 2, shift + 1
    return round(factor * 2**31), shift


def rounds(how):
    """The multiplier of `frexp`, made a number of whatever kind by `how`."""
    return lambda factor: (how(np.frexp(factor)[0] * 2.0**31), -int(np.frexp(factor)[1]))


AGAIN = "you multiply matrices again"
NEAREST = "m must be a whole number, the nearest one"


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("04.1", terms(second_product_of_matrices), AGAIN),
        ("04.1", terms(product_by_loops), AGAIN),
        ("04.1", terms(lambda raw, x, w, zx, zw: ((x[:, :, None] - zx) * (w - zw)).sum(axis=1)), AGAIN),
        ("04.1", terms(lambda raw, x, w, zx, zw: (x - zx) @ (w - zw)), AGAIN),
        ("04.1", terms(lambda raw, x, w, zx, zw: np.einsum("ik,kj->ij", x - zx, w - zw)), AGAIN),
        ("04.1", terms(lambda raw, x, w, zx, zw: (x - zx).dot(w - zw)), AGAIN),
        ("04.1", terms(subtracts_in_place), "changed its input raw"),
        ("04.1", terms(lambda raw, x, w, zx, zw: raw - zx * w.sum(0)), "That is enough if w_zero_point is 0"),
        ("04.1", terms(lambda raw, x, w, zx, zw: raw - zx * zw), "other values"),
        (
            "04.1",
            terms(lambda *a: correct_zero_points(*a).astype(float)),
            "float64; wanted is int64 (the values are right",
        ),
        ("04.1", terms(lambda raw, x, w, zx, zw: raw - zx * w.sum(1) - zw * x.sum(0)), "raised ValueError"),
        (
            "04.1",
            terms(lambda raw, x, w, zx, zw: raw - zx * w.sum(0) - zw * x.sum(0, keepdims=True) + len(w) * zx * zw),
            "You sum x over the images",
        ),
        ("04.2", of_a_bias(lambda b, sx, sw: np.rint(b / (sx * sw))), "still floats"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.rint(b / (sx * sw)).astype(int)), "the values are right"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.rint(b / (sx * sw)).astype(np.int8)), "int8 ends at 127"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.int32(b / (sx * sw))), "cuts the fraction off"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.int32(b // (sx * sw))), "round down"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.int32(np.rint(b / (sx / sw)))), "multiplies by w_scale"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.int32(np.rint(b * sx / sw))), "other values"),
        ("04.2", of_a_bias(lambda b, sx, sw: [round(each / (sx * sw)) for each in b]), "but a list is no array"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.int32(-np.rint(b / (sx * sw)))), "other values"),
        ("04.2", of_a_bias(lambda b, sx, sw: np.clip(b / (sx * sw), 0, 255).astype(np.uint8)), "dtype uint8"),
        ("04.3", rounds(float), NEAREST),
        ("04.3", rounds(int), NEAREST),
        ("04.3", rounds(lambda m: int(np.ceil(m))), NEAREST),
        ("04.3", rounds(np.rint), "the answers are right, but one of the two is a float64"),
        ("04.3", rounds(lambda m: float(round(m))), "is a float."),
        ("04.3", lambda factor: (multiplier_by_frexp(factor)[0], np.ceil(-np.log2(factor)) - 1), "is a float64"),
        ("04.3", lambda factor: (round(factor * 2**31), 31), "The shift says how often you doubled"),
        ("04.3", doubles_once, "while, not if"),
        ("04.3", rounds(lambda m: round(2 * m)), "m needs 32 bits like this"),
        ("04.3", lambda factor: (multiplier_by_frexp(factor)[0], 0), "your shift stays 0"),
        ("04.3", doubles_up_to_one, "You double 0.5 as well"),
        ("04.3", halves, "Double it until it is at least 0.5"),
        ("04.3", lambda factor: multiplier_by_frexp(factor)[0], "must return 2 values"),
        ("04.4", shifted(lambda v, n: np.round(v / 2**n).astype(int)), "Stay in integers"),
        ("04.4", shifted(lambda v, n: np.rint(v / 2**n)), "Stay in integers"),
        ("04.4", shifted(lambda v, n: v // 2**n), "A bare shift rounds down"),
        ("04.4", shifted(lambda v, n: (v / 2**n).astype(int)), "A cast cuts the fraction off"),
        ("04.4", shifted(lambda v, n: np.trunc(v / 2**n).astype(int)), "A cast cuts the fraction off"),
        ("04.4", shifted(lambda v, n: (v + 2 ** (n - 1)) >> n), "a half goes up"),
        ("04.4", shifted(lambda v, n: (v + (1 << n - 1)) >> n), "a half goes up"),
        ("04.4", shifted(lambda v, n: np.sign(v) * ((abs(v) + (1 << n - 1)) >> n)), "With places = 0 there is no half"),
        ("04.4", shifted(lambda v, n: np.sign(v) * ((abs(v) + 2 ** (n - 1)) >> n)), "is 0.5, a float"),
        ("04.4", shifted(lambda v, n: np.sign(v) * ((abs(v) + n // 2) >> n)), "places is a number of bits"),
        ("04.4", shifted(lambda v, n: rounding_shift(v, n).astype(np.int32)), "dtype int32"),
        ("04.4", shifted(lambda v, n: rounding_shift(v, n) * 1.0), "float64"),
        ("04.4", shifted(lambda v, n: rounding_shift(v, n) + (v * 0.0).astype(int)), "you go through floats"),
        ("04.4", shifted(lambda v, n: [int(each) >> n for each in v]), "a NumPy array is wanted"),
    ],
)
def test_wrong_answers_in_a_learners_words(exercise_id, attempt, message):
    with np.errstate(all="ignore"):
        result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong", result.message
    assert message in result.message, result.message


def test_a_loop_without_an_end_is_stopped_and_named(monkeypatch):
    monkeypatch.setattr("qlearn.exercises.checking.SECONDS", 0.2)
    said = exercises.check("04.3", never_doubles).message
    assert "had not ended after" in said and "Is there a loop without an end?" in said and "factor=0.3" in said


@pytest.mark.parametrize("exercise_id", ["04.1", "04.2", "04.3", "04.4", "04.C"])
def test_no_hint_is_the_solution(exercise_id):
    exercise = exercises.find(exercise_id)
    lines = [line.strip().removeprefix("return ") for line in exercises.solution_source(exercise_id).splitlines()[1:]]
    assert len(exercise.hints) == 3
    assert not any(line in hint for line in lines for hint in exercise.hints)


def test_the_lesson_shows_the_hints_that_the_package_gives():
    (path,) = Path(__file__).parents[1].glob("notebooks/04_*.ipynb")
    text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
    for exercise_id in ("04.1", "04.2", "04.3", "04.4", "04.C"):
        parts = *exercises.find(exercise_id).hints, exercises.solution_source(exercise_id)
        assert all(part in text for part in parts), exercise_id


# --- the network that the exercises run ------------------------------------------------------------------------------


def test_the_nearest_codes_are_what_exact_fractions_give():
    for sums, factor, codes in exact():
        n, d = Fraction(factor).as_integer_ratio()
        some = np.unique(sums)[::7].tolist()
        wanted = [min(max((2 * a * n + d) // (2 * d), 0), 255) for a in some]
        assert np.array_equal(np.clip(nearest(np.array(some), factor), 0, 255), wanted)
        assert codes.min() == 0 and codes.max() == 255
        # No product is so near a tie that the last bits of a scale, which differ between processors, could decide.
        products = np.unique(sums) * factor
        assert np.abs(products - np.floor(products) - 0.5).min() > 1e-9


def test_zero_points_and_biases_matter_to_the_network():
    def without(layer, codes):
        return integer.matmul(codes, layer.w_codes).astype(np.int64)

    assert all(layer.w_zero_point > 0 for layer in layers(False))
    assert digits_read(symmetric=False, sums=without) < 300 < 1900 < digits_read(symmetric=False)
    turned, forgotten = _dark_on_light(bias_codes), _dark_on_light(lambda bias, *scales: 0 * bias.astype(int))
    assert digits_read(sums=forgotten) < 300 < 1900 < digits_read(sums=turned)
    assert codes_off(lambda sums, factor: nearest(sums, factor) + (sums > 0)) > 100_000


# --- the challenge ---------------------------------------------------------------------------------------------------


def bits_of(factor, bits):
    m, shift = integer.quantize_multiplier(factor)
    return round(m / 2 ** (31 - bits)), bits + shift


def two_factors(sums, factor):
    sums = np.clip(sums, 0, int(256 / factor))
    m, places = bits_of(factor, 11)
    rest = round((factor - m / 2**places) * 2 ** (places + 9))
    return np.clip((sums * m + ((sums * rest) >> 9) + (1 << places - 1)) >> places, 0, 255)


def by_comparing(sums, factor):
    """The 255 sums at which the code changes, looked up: no product at all."""
    return np.searchsorted(np.ceil((np.arange(255) + 0.5) / factor).astype(np.int64), sums, side="right")


def in_place(sums, factor):
    np.clip(sums, 0, int(256 / factor), out=sums)
    low = sums & 4095
    sums >>= 12
    m, places = bits_of(factor, 19)
    sums *= m
    sums += ((low * m) >> 12) + (1 << (places - 13))
    return (sums >> (places - 12)).clip(0, 255)


@pytest.mark.parametrize("answer", [two_factors, by_comparing, in_place])
def test_other_ideas_meet_the_target(answer):
    assert REQUANTIZE.judge(answer).passed
    assert exercises.challenge("04.C", answer).status == "correct"


def clamped_first(sums, factor):
    m, places = bits_of(factor, 12)
    return np.clip((np.clip(sums, 0, int(256 / factor)) * m + (1 << places - 1)) >> places, 0, 255)


def cut_off(sums, factor):
    m, places = bits_of(factor, 11)
    return np.clip((sums * m) >> places, 0, 255)


@pytest.mark.parametrize("answer", [clamped_first, cut_off, lambda sums, factor: sums * 0])
def test_half_of_the_idea_is_not_enough(answer):
    assert not REQUANTIZE.judge(answer).passed


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda sums, factor: np.clip(np.rint(sums * factor), 0, 255), "np.multiply takes float64"),
        (lambda sums, factor: np.clip(sums.astype(np.float32) * factor, 0, 255), "np.astype gives float32"),
        (lambda sums, factor: sums.astype(object) * 1102016544 >> 41, "np.astype gives object"),
        (lambda sums, factor: (sums * bits_of(factor, 31)[0]) >> 41, "bits, and a register has 32"),
        (lambda sums, factor: (sums.astype(np.int32) * 1102016544) >> 41, "bits, and a register has 32"),
        (lambda sums, factor: sums * 2**40 >> 51, "np.multiply takes 1,099,511,627,776, which needs 42 bits"),
        (lambda sums, factor: np.clip(sums // round(1 / factor), 0, 255), "cannot divide"),
        (lambda sums, factor: np.clip(sums / 2000, 0, 255), "cannot divide"),
        (lambda sums, factor: np.zeros(sums.shape, dtype=int), "was not computed on `sums` as a whole"),
        (lambda sums, factor: np.array([[int(s * factor) for s in row] for row in sums]), "takes float64"),
        (lambda sums, factor: sums >> 11, "codes are 0 … 255; yours go from"),
        (lambda sums, factor: np.clip(sums >> 11, 0, 255)[:5], "must be integers of shape (2000, 100)"),
        (lambda sums, factor: sums > 0, "yours are bool"),
        (lambda sums, factor: np.clip(sums >> 11, 0, 255).astype(np.float32), "np.astype gives float32"),
    ],
)
def test_what_the_chip_cannot_do_cannot_be_judged(answer, message):
    with pytest.raises(CannotBeJudged) as refused:
        REQUANTIZE.judge(answer)
    assert message in str(refused.value)
    assert message in exercises.challenge("04.C", answer).message


def through(way_out):
    """An answer whose codes are right, computed in floats from values that `way_out` takes out of the sums."""

    def cheat(sums, factor):
        codes = np.clip(np.rint(np.reshape(way_out(sums), sums.shape) * factor), 0, 255).astype(np.int64)
        return sums * 0 + codes

    return cheat


def copied(sums):
    values = np.zeros(sums.shape, dtype=np.int64)
    values[:] = sums
    return values


def added(sums):
    values = np.zeros(sums.shape, dtype=np.int64)
    values += sums
    return values


def saved(sums):
    stream = io.BytesIO()
    np.save(stream, sums)
    stream.seek(0)
    return np.load(stream)


def along_an_axis(sums):
    values = []
    np.apply_along_axis(lambda row: values.append(row) or row, 1, sums)
    return np.array(values)


def by_a_ufunc(sums):
    values = []
    np.frompyfunc(lambda value: values.append(value) or value, 1, 1)(sums)
    return np.array(values)


@pytest.mark.parametrize(
    ("way_out", "named"),
    [
        (np.asarray, "np.asarray, or what calls it,"),
        (np.array, "np.asarray, or what calls it,"),
        (lambda sums: np.array([*sums]), "np.asarray, or what calls it,"),
        (np.from_dlpack, "__dlpack__"),
        (memoryview, "memoryview"),
        (copied, "np.asarray, or what calls it,"),
        (added, "np.add into an array of yours"),
        (saved, "np.save"),
        (along_an_axis, "np.apply_along_axis with a function of yours"),
        (by_a_ufunc, "<lambda> (vectorized)"),
        (lambda sums: sums.tolist(), ".tolist"),
        (lambda sums: sums.view(np.ndarray), ".view"),
        (lambda sums: np.frombuffer(sums.data, dtype=np.int64), ".data"),
        (lambda sums: [[int(value) for value in row] for row in sums], "int()"),
        (lambda sums: [[float(value) for value in row] for row in sums], "float()"),
        (lambda sums: [[value.item() for value in row] for row in sums], ".item"),
        (lambda sums: [[range(abs(value)).stop for value in row] for row in sums], "a number of one entry"),
        (lambda sums: np.split(sums, 1)[0], "np.multiply takes float64"),
        (lambda sums: np.array2string(sums), "np.array2string"),
    ],
)
def test_no_value_comes_out_of_the_registers(way_out, named):
    said = exercises.challenge("04.C", through(way_out))
    assert said.status == "wrong" and named in said.message, said.message


def test_registers_compute_what_arrays_do():
    held = Registers(np.arange(-3, 3).reshape(2, 3), lambda *operation: None)
    assert held.shape == held.T.T.shape == (2, 3) and held.size == 6 and held.ndim == 2 and len(held) == 2
    assert held.dtype == np.int64 and "shape" not in vars(held)
    held[held < 0] = 7
    assert held.held().tolist() == [[7, 7, 7], [0, 1, 2]]
    held -= 1
    np.clip(held, 0, 5, out=held)
    np.multiply(held, 10, out=held, where=held > 3)
    assert held.held().tolist() == [[50, 50, 50], [0, 0, 1]]
    low, high = np.divmod(held, 7)
    assert (low * 7 + high == held).all()
    assert held.max().held() == 50 and np.stack([*held]).shape == (2, 3)
    assert held.astype(np.int8).reshape(-1)[1:3].held().tolist() == [50, 50]
    with pytest.raises(AttributeError):
        held.no_such_thing  # noqa: B018


def test_what_is_done_to_a_watched_array_is_noted():
    seen = []
    watched = watch(np.arange(6, dtype=np.int8).reshape(2, 3), lambda *operation: seen.append(operation))
    assert isinstance(np.where(watched > 2, -watched, watched), Watched)
    assert [name for name, _, _ in seen] == ["greater", "negative", "where"]
    seen.clear()
    total = (watched * 100).sum()  # wraps in int8, and is seen before it does
    assert total == 1500 and [name for name, _, _ in seen] == ["multiply", "add"]
    assert all(not isinstance(value, Watched) for _, inputs, result in seen for value in (*inputs, result))
    watched += 1
    assert isinstance(watched, Watched) and watched.dtype == np.int8 and watched.max() == 6
    np.multiply(watched, 10, out=watched, where=watched > 5)  # what is left out stays
    assert watched.tolist() == [[1, 2, 3], [4, 5, 60]]
