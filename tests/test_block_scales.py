"""Scales of few bits against exact fractions, and what each rule promises."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlearn import PerAxis, PerGroup, PerTensor
from qlearn.block_scales import (
    RULES,
    bits_per_value,
    fp8_numbers,
    max_scale,
    mx_scale,
    nvfp4_scale,
    powers_of_two,
)
from qlearn.formats import E2M1, E2M3, E3M2, E4M3, E5M2, cast, encode

FORMATS = (E2M1, E2M3, E3M2, E4M3, E5M2)
MAGNITUDES = st.floats(2.0**-80, 2.0**80, width=32)


def power_at_most(a: Fraction) -> int:
    """floor(log2 a), by comparing with powers of two."""
    power = 0
    while Fraction(2) ** (power + 1) <= a:
        power += 1
    while Fraction(2) ** power > a:
        power -= 1
    return power


def exact_scale(a: float, format, rule: str) -> float:
    """The four rules as torchao and the specification word them, in fractions."""
    a = Fraction(a)
    if rule == "rceil":
        over = a / Fraction(format.largest)
        power = power_at_most(over)
        return 2.0 ** (power + (Fraction(2) ** power != over))
    power = power_at_most(a)
    if rule == "ceil":
        power += Fraction(2) ** power != a
    if rule == "even":
        steps = 2**format.significand_bits
        rounded = (a / Fraction(2) ** power * steps + Fraction(1, 2)) // 1  # half up
        power += rounded >= 2 * steps
    return 2.0 ** (power - power_at_most(Fraction(format.largest)))


@given(MAGNITUDES, st.sampled_from(FORMATS), st.sampled_from(RULES))
def test_powers_of_two_are_those_of_the_exact_rules(a, format, rule):
    x = np.float32([[a, -a / 2, 0.0, a / 3]])
    wanted = exact_scale(float(np.float32(a)), format, rule)
    assert mx_scale(x, format, rule=rule, block_size=4).tolist() == [[wanted]]
    assert mx_scale(torch.from_numpy(-x), format, rule=rule, block_size=4).tolist() == [[wanted]]


@pytest.mark.parametrize("rule", RULES)
def test_at_powers_of_two_and_at_the_format_s_own_end(rule):
    for format in FORMATS:
        for a in (1.0, 2.0, format.largest, np.nextafter(np.float32(format.largest), np.float32(0)), 1.75, 1.5, 7.0):
            below, above = (np.nextafter(np.float32(a), np.float32(end)) for end in (0, np.inf))
            for value in (float(a), float(below), float(above)):
                assert float(mx_scale([[value]], format, rule=rule, block_size=1)[0, 0]) == exact_scale(
                    value, format, rule
                )


@given(MAGNITUDES, st.sampled_from(FORMATS))
def test_what_the_rules_promise(a, format):
    floor, ceil, rceil, even = (
        float(powers_of_two(np.array([a]), format.largest, format.significand_bits, r)[0]) for r in RULES
    )
    assert a <= ceil * format.largest and a <= rceil * format.largest  # nothing is cut off
    assert a > rceil / 2 * format.largest  # and half of it would cut something off
    assert floor <= rceil <= ceil and floor <= even <= 2 * floor and ceil <= 2 * floor
    assert floor * 2.0**format.largest_exponent <= a < 2 * floor * 2.0**format.largest_exponent


def test_with_ceil_the_six_of_fp4_is_never_used():
    x = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    used = {rule: np.abs(cast(x, E2M1, s) / s.repeat(32, 1)).max() for rule in RULES for s in [mx_scale(x, rule=rule)]}
    assert used == {"floor": 6, "ceil": 4, "rceil": 6, "even": 6}


def test_floor_cuts_up_to_a_quarter_off():
    a = np.float32(np.nextafter(np.float32(8), np.float32(0)))
    assert cast([[a]], E2M1, mx_scale([[a]], block_size=1)).tolist() == [[6.0]]


def test_extremes_stay_within_eight_bits():
    x = np.array([[1e300, 1e-300, 0.0]])
    assert mx_scale(x, block_size=1).tolist() == [[2.0**127, 2.0**-127, 1.0]]
    assert np.float32(2.0**-127) > 0


# --- scales of a largest level ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), PerGroup(4)], ids=str)
def test_the_largest_of_each_block_meets_the_largest_level(granularity):
    x = np.random.default_rng(1).normal(size=(6, 8))
    x[2] = 0
    scale = max_scale(x, 448.0, granularity)
    assert scale.shape == granularity.scale_shape(x.shape)
    spread = np.ones(x.shape) * (scale if scale.ndim == 0 or granularity != PerGroup(4) else scale.repeat(4, 1))
    codes = encode(x, E4M3, scale)
    assert np.abs(x / spread).max() == pytest.approx(448.0) and (spread[2] == 1).all() == (
        granularity in (PerAxis(0), PerGroup(4))
    )
    assert (codes.max() & 127) == E4M3.largest_code
    assert np.array_equal(max_scale(torch.from_numpy(x), 448.0, granularity).numpy(), scale)


def test_nvfp4_scales_are_fp8_numbers_times_one_number():
    x = np.random.default_rng(2).normal(size=(32, 64)).astype(np.float32)
    x *= 10.0 ** np.random.default_rng(3).uniform(-3, 3, size=(32, 1)).astype(np.float32)
    scale = nvfp4_scale(x)
    assert scale.shape == (32, 4) and scale.dtype == np.float32
    short = scale / (np.abs(x).max() / (6 * 448))
    fp8 = short.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert short == pytest.approx(fp8, rel=1e-6) and short.max() == pytest.approx(448)
    nearest = (np.abs(x).reshape(32, 4, 16).max(-1) / 6 / (np.abs(x).max() / (6 * 448))).astype(ml_dtypes.float8_e4m3fn)
    assert fp8 == pytest.approx(np.maximum(nearest.astype(np.float32), 2.0**-9))
    assert np.allclose(nvfp4_scale(torch.from_numpy(x)).numpy(), scale, rtol=1e-6)


def test_silent_blocks_get_a_scale_too():
    assert nvfp4_scale(np.zeros((2, 32))).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    x = np.zeros((1, 32))
    x[0, 0] = 6 * 448.0
    assert nvfp4_scale(x).tolist() == [[448.0, 2.0**-9]]
    assert mx_scale(np.zeros((1, 32))).tolist() == [[1.0]]
    assert max_scale(np.zeros(3), 6.0) == 1.0
    assert fp8_numbers(np.zeros(2), 6.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("bits", "block", "scale_bits", "extra", "wanted"),
    [
        (4, 32, 8, 0, 4.25),
        (4, 16, 8, 32, 4.5 + 32 / 4096),
        (8, 32, 8, 0, 8.25),
        (4, 64, 32, 0, 4.5),
        (3, 4096, 0, 256, 3.0625),
    ],
)
def test_bits_are_counted_honestly(bits, block, scale_bits, extra, wanted):
    assert bits_per_value(bits, block, scale_bits, 4096, extra) == wanted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mx_scale(np.ones((2, 32)), rule="up"), "rule='up' must be one of 'floor', 'ceil', 'rceil', 'even'"),
        (lambda: mx_scale(np.ones((2, 48))), "group_size=32 does not divide x's last axis of length 48"),
        (lambda: nvfp4_scale(np.ones(24)), "group_size=16 does not divide"),
        (lambda: mx_scale([[np.nan] * 32]), "x holds 32 values that are not finite"),
        (lambda: max_scale([], 1.0), "x is empty"),
    ],
)
def test_what_cannot_be_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
