"""Lessons 00 and 01: right answers in unusual words, and wrong ones with what they are told."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import qlearn
from qlearn import datasets, exercises
from qlearn.exercises import lesson_01, networks


def _symmetric(scale=lambda x, q: np.abs(x).max() / q, codes=np.rint, at_least=lambda q: -q):
    def quantize_symmetric(x, bits):
        q = 2 ** (bits - 1) - 1
        step = scale(x, q)
        return np.clip(codes(x / step), at_least(q), q).astype(np.int8), step

    return quantize_symmetric


def _asymmetric(ends, zero_point=lambda steps: round(steps), steps=lambda bits: 2**bits - 1):
    def asymmetric_qparams_repaired(lo, hi, bits):
        lo, hi = ends(lo, hi)
        scale = (hi - lo) / steps(bits)
        return scale, zero_point(-lo / scale)

    return asymmetric_qparams_repaired


def _widened(lo, hi):
    return min(lo, 0), max(hi, 0)


def _too_late(lo, hi, bits):
    scale = (hi - lo) / (2**bits - 1)
    return scale, round(-min(lo, 0) / scale)


def _by_largest(x, bits):
    largest, q = np.abs(x).max(), 2 ** (bits - 1) - 1
    return np.array([round(value * q / largest) for value in x], np.int8), largest / q


def _on_a_line(lo, hi, bits):
    ticks = np.linspace(min(lo, 0), max(hi, 0), 2**bits)
    return ticks[1] - ticks[0], int(np.abs(ticks).argmin())


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("00.1", lambda parameters, bits: math.ceil(parameters * bits / 8)),
        ("00.1", lambda parameters, bits: (parameters * bits + 7) // 8),
        ("01.1", lambda values: np.array([min(max(round(v), 0), 255) for v in values], dtype=np.uint8)),
        ("01.2", _by_largest),
        ("01.2", _symmetric(at_least=lambda q: -q - 1)),
        ("01.3", lambda codes, scale, zero_point: scale * codes - scale * zero_point),
        ("01.3", lambda codes, scale, zero_point: scale * (codes.astype(np.int16) - zero_point)),
        ("01.4", _asymmetric(_widened)),
        ("01.4", _on_a_line),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("00.1", lambda parameters, bits: parameters * bits * 8, "divide by 8"),
        ("00.1", lambda parameters, bits: math.ceil(parameters * 2**bits / 8), "how many values"),
        ("00.1", lambda parameters, bits: parameters * (bits // 8), "half a byte, not none"),
        ("00.1", lambda parameters, bits: math.ceil(parameters / 8) * bits, "before all bits are counted"),
        ("01.1", lambda values: np.ceil(values).clip(0, 255).astype(np.uint8), "You round up"),
        ("01.1", lambda values: np.floor(values).clip(0, 255).astype(np.uint8), "as np.floor does"),
        ("01.1", lambda values: values.round().clip(-128, 127).astype(np.int8), "the limits of int8"),
        ("01.1", lambda values: values.round().clip(0, 255).astype(np.uint8).astype(np.int8), "255 has wrapped"),
        ("01.2", _symmetric(lambda x, q: np.abs(x).max() / (2 * q + 1)), "A sign takes one bit"),
        ("01.2", _symmetric(lambda x, q: np.abs(x).max() / (q + 1)), "one code fewer"),
        ("01.2", _symmetric(lambda x, q: np.abs(x).max() / (q + 0.5), at_least=lambda q: -q - 1), "by 127."),
        ("01.2", _symmetric(lambda x, q: np.ptp(x) / (2 * q + 1)), "the whole range"),
        ("01.2", _symmetric(lambda x, q: np.abs(x).max() / (q + 1) - 1), "Brackets"),
        ("01.2", _symmetric(codes=lambda steps: np.floor(steps + 0.5)), "You round halves up"),
        ("01.2", _symmetric(codes=lambda steps: np.trunc(steps + np.copysign(0.5, steps))), "away from 0"),
        ("01.2", _symmetric(at_least=lambda q: 0), "every negative value is lost"),
        ("01.2", lambda x, bits: (_by_largest(x, bits)[0] * _by_largest(x, bits)[1], _by_largest(x, bits)[1]), "x̂"),
        ("01.3", lambda codes, scale, zero_point: scale * (zero_point - codes.astype(int)), "turned round"),
        ("01.3", lambda codes, scale, zero_point: scale * (codes.astype(int) + zero_point), "subtracts it"),
        ("01.3", lambda codes, scale, zero_point: codes / scale + zero_point, "as quantizing does"),
        ("01.3", lambda codes, scale, zero_point: (scale * (codes.astype(int) - zero_point)).astype(int), "not cast"),
        ("01.4", _asymmetric(lambda lo, hi: (0, hi)), "begins at 0 whatever lo is"),
        ("01.4", _asymmetric(lambda lo, hi: (max(lo, 0), min(hi, 0))), "min and max are swapped"),
        ("01.4", _asymmetric(_widened, steps=lambda bits: 255), "255 steps belong to 8 bits"),
        ("01.4", _asymmetric(_widened, steps=lambda bits: 2 ** (bits - 1) - 1), "codes with a sign|division by zero"),
        ("01.4", _asymmetric(_widened, zero_point=math.ceil), "You round up"),
        ("01.4", _asymmetric(_widened, zero_point=math.floor), "The fraction is cut off"),
        ("01.4", _asymmetric(lambda lo, hi: (lo, max(hi, 0)), zero_point=lambda z: max(round(z), 0)), "widen hi only"),
        ("01.4", _too_late, "that of the old range"),
    ],
)
def test_wrong_answers_in_other_words(exercise_id, attempt, message):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert any(part in result.message for part in message.split("|")), result.message


def percentages(text):
    return [float(number) for number in re.findall(r"(\d+\.\d) %", text)]


def test_symmetric_codes_run_in_the_network():
    text = lesson_01.QUANTIZE_SYMMETRIC.consequence(_by_largest)
    floats, *at_8_4_and_3, at_2 = percentages(text)
    assert [abs(floats - accuracy) < 1 for accuracy in at_8_4_and_3] == [True, True, False]
    assert at_2 < 15 and "−1, 0 and 1" in text


def test_one_weight_that_does_nothing_ruins_the_network():
    text = lesson_01.ASYMMETRIC_QPARAMS.consequence(_on_a_line)
    at_4, floats, spoilt_floats, at_8, at_6, spoilt = percentages(text)
    assert spoilt_floats == floats
    assert abs(at_4 - floats) < 1 and abs(at_8 - floats) < 1 and 90 < at_6 < floats - 2 and spoilt < 15


def test_the_large_weight_meets_only_black():
    images, _ = networks.held_out()
    assert not images[:, 0].any()
    weights = datasets.trained("mlp")
    assert sum(weights[name].size for name in networks.WEIGHTS) == 89_400  # as the question says
    assert all(np.abs(weights[name]).max() < 1 for name in networks.WEIGHTS)
    changed = lesson_01.one_large_weight(weights["linear1.weight"])
    assert np.argwhere(changed != weights["linear1.weight"]).tolist() == [[0, 0]]
    assert changed.max() == 20


def test_a_list_is_not_taken_for_floats():
    message = exercises.check("01.1", lambda values: [min(max(round(v), 0), 255) for v in values]).message
    assert "a NumPy array is wanted" in message
    assert "floats" not in message


def test_the_package_solves_the_exercises():
    def asymmetric_qparams_repaired(lo, hi, bits):
        qparams = qlearn.choose_qparams(lo, hi, bits=bits)
        return qparams.scale, qparams.zero_point

    def quantize_symmetric(x, bits):
        qparams = qlearn.find_qparams(x, bits=bits, symmetric=True)
        return qlearn.quantize(x, qparams), qparams.scale

    assert exercises.check("01.2", quantize_symmetric).status == "correct"
    assert exercises.check("01.4", asymmetric_qparams_repaired).status == "correct"
