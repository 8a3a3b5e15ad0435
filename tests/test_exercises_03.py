"""Lesson 03: what learners write is told the truth, and right answers in other words pass."""

from __future__ import annotations

import numpy as np
import pytest

import qlearn
from qlearn import exercises, integer
from qlearn.exercises import lesson_03
from qlearn.integer import matmul


def steps(bits):
    return 2 ** (bits - 1) - 1


def rows(formula):
    """A quantizer of rows; the formula gets w, its scales, and the largest code."""
    return lambda w, bits: formula(w, np.abs(w).max(axis=1, keepdims=True) / steps(bits), steps(bits))


def product(formula):
    return lambda x_codes, x_scale, w_codes, w_scale: formula(x_codes, x_scale, w_codes, w_scale)


def groups(formula):
    """The formula gets w, its groups with a third axis, and the largest code."""
    return lambda w, group_size, bits: formula(w, w.reshape(len(w), -1, group_size), steps(bits))


def cost(formula):
    return lambda bits, group_size, scale_bits, zero_point_bits: formula(bits, group_size, scale_bits, zero_point_bits)


def whole(codes):
    return codes.astype(np.int32)


def spread_scales(w, group_size, bits):
    scale = np.abs(w.reshape(len(w), -1, group_size)).max(axis=2) / steps(bits)
    scale = np.repeat(scale, group_size, axis=1)
    return scale * np.rint(w / scale)


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("03.1", rows(lambda w, s, q: [np.round(w / s).astype("i1"), s])),
        ("03.2", product(lambda x, sx, w, sw: np.dot(whole(x), whole(w).T) * (sx @ sw.T))),
        ("03.2", product(lambda x, sx, w, sw: np.dot(whole(x), whole(w).T) * np.outer(sx, sw))),
        ("03.2", product(lambda x, sx, w, sw: np.einsum("mi,oi->mo", whole(x), whole(w)) * sx * sw.reshape(1, -1))),
        ("03.2", product(lambda x, sx, w, sw: np.matmul(x, w.T, dtype=np.int32) * sx * sw.T)),
        ("03.2", product(lambda x, sx, w, sw: integer.matmul(x, w.T) * sx * sw.T)),
        ("03.2", product(lambda x, sx, w, sw: matmul(x, np.transpose(w)) * (sx * sw.T))),
        ("03.3", spread_scales),
        (
            "03.3",
            lambda w, group_size, bits: qlearn.fake_quantize(
                w, qlearn.find_qparams(w, bits=bits, symmetric=True, granularity=qlearn.PerGroup(group_size))
            ),
        ),
        ("03.4", cost(lambda bits, size, scale, zero: (bits * size + scale + zero) / size)),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message
    assert "raised" not in result.message


REAL = "you multiply real numbers"
FLOATS = "your codes are floats when you sum them"


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("03.1", rows(lambda w, s, q: (s, np.rint(w / s).astype(np.int8))), "in the other order"),
        ("03.1", rows(lambda w, s, q: (np.rint(w * s).astype(np.int8), s)), "you multiply w by them"),
        (
            "03.1",
            rows(lambda w, s, q: (np.rint(w / (s * q / (2 * q + 1))).astype(np.int8), s * q / (2 * q + 1))),
            "the largest code without a sign",
        ),
        ("03.2", product(lambda x, sx, w, sw: np.sum((x * sx)[:, None] * (w * sw), axis=2)), REAL),
        (
            "03.2",
            product(lambda x, sx, w, sw: np.array([[sum(a * b) for b in w * sw] for a in x * sx])),
            REAL,
        ),
        ("03.2", product(lambda x, sx, w, sw: (x * sx) @ whole(w).T * sw.T), REAL),
        ("03.2", product(lambda x, sx, w, sw: 0 * integer.matmul(x, w.T) + (x * sx) @ (w * sw).T), REAL),
        ("03.2", product(lambda x, sx, w, sw: x.astype(float) @ w.astype(float).T * sx * sw.T), FLOATS),
        ("03.2", product(lambda x, sx, w, sw: whole(x) @ whole(w).T * (sx + sw.T)), "not their sum"),
        ("03.2", product(lambda x, sx, w, sw: whole(whole(x) @ whole(w).T * sx * sw.T)), "Cast the codes, not the"),
        (
            "03.3",
            groups(lambda w, g, q: (np.abs(w).max() / q) * np.rint(w / (np.abs(w).max() / q))),
            "one scale for the whole matrix",
        ),
        (
            "03.3",
            groups(lambda w, g, q: (w / (np.abs(g).max(axis=2, keepdims=True) / q)).reshape(w.shape)),
            "Divide the groups by them, not w",
        ),
        (
            "03.3",
            lambda w, group_size, bits: spread_scales(w, group_size, bits).reshape(-1, group_size),
            "Bring them back to the shape of w",
        ),
        (
            "03.3",
            groups(
                lambda w, g, q: (
                    np.abs(g).max(axis=1, keepdims=True) / q * np.rint(g / (np.abs(g).max(axis=1, keepdims=True) / q))
                ).reshape(w.shape)
            ),
            "a group lies along axis 2",
        ),
        ("03.4", cost(lambda bits, size, scale, zero: bits + scale + zero / size), "brackets around both"),
        ("03.4", cost(lambda bits, size, scale, zero: bits + scale / size + zero), "divide it as well"),
        ("03.4", cost(lambda bits, size, scale, zero: (scale + zero) / size), "The code of each value is missing"),
        ("03.4", cost(lambda bits, size, scale, zero: round(bits + (scale + zero) / size)), "It is an average"),
    ],
)
def test_wrong_answers_in_a_learners_words(exercise_id, attempt, message):
    with np.errstate(all="ignore"):
        result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong", result.message
    assert message in result.message, result.message


@pytest.mark.parametrize(("percent", "shown", "status"), [(97.36, "97.4 %", "correct"), (97.34, "97.3 %", "wrong")])
def test_what_the_challenges_table_shows_is_what_counts(percent, shown, status, monkeypatch):
    monkeypatch.setattr(lesson_03, "mlp_accuracy", lambda changed=None: percent)
    result = exercises.challenge("03.C", lesson_03.store_layer)
    assert result.status == status
    assert shown in result.message.splitlines()[-2]
