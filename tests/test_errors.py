"""Errors are measured as their formulas say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from qlearn import PerAxis, PerGroup, QParams, errors, fake_quantize, find_qparams
from strategies import arrays, codes_of


@given(arrays(), codes_of())
def test_the_two_parts_sum_to_the_mse(x, codes):
    qparams = find_qparams(x / 2, **codes)
    total = errors.mse(x, fake_quantize(x, qparams))
    assert sum(errors.split(x, qparams)) == pytest.approx(total, rel=1e-12)  # float64 sums in another order


@given(arrays())
def test_a_range_that_holds_everything_clips_nothing_when_symmetric(x):
    qparams = find_qparams(x, symmetric=True)
    rounding, clipping = errors.split(x, qparams)
    assert clipping == 0
    # A uniform bound: no error is larger than half a step, up to float32 rounding of x / scale.
    assert rounding <= (0.5 * qparams.scale * (1 + 1e-5)) ** 2


def test_clipping_counts_only_values_beyond_the_last_tick():
    rounding, clipping = errors.split([0.25, 1.0, 7.25, 9.0], QParams(1.0, 0, 0, 7))
    assert (rounding, clipping) == ((0.0625 + 0.0625) / 4, 4 / 4)


@pytest.mark.parametrize("bits", range(3, 9))
def test_one_bit_is_about_six_decibel(bits):
    x = np.random.default_rng(0).uniform(-1, 1, 200_000)
    gain = (
        errors.report(x, find_qparams(x, bits=bits + 1)).sqnr_db - errors.report(x, find_qparams(x, bits=bits)).sqnr_db
    )
    # Steps shrink from 2 / (2ᵇ − 1) to 2 / (2ᵇ⁺¹ − 1); 0.05 dB is over three standard errors of 200,000 samples.
    assert gain == pytest.approx(20 * math.log10((2 ** (bits + 1) - 1) / (2**bits - 1)), abs=0.05)


def test_the_report_equals_the_long_way():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    qparams = find_qparams(x, "percentile", bits=4, percentile=99)
    x_hat = fake_quantize(x, qparams)
    report = errors.report(x, qparams)
    difference = x.astype(np.float64) - x_hat.astype(np.float64)
    assert report.mse == np.mean(difference**2)
    assert report.max_error == np.abs(difference).max()
    assert report.codes_used == len(np.unique(x_hat))
    assert report.clipped == np.mean(
        (x < np.float32(-7.5) * 0 + x_hat.min() - qparams.scale / 2) | (x > x_hat.max() + qparams.scale / 2)
    )
    assert report.sqnr_db == pytest.approx(10 * math.log10(np.mean(x.astype(np.float64) ** 2) / report.mse), rel=1e-12)
    assert (
        errors.report(torch.from_numpy(x), find_qparams(torch.from_numpy(x), "percentile", bits=4, percentile=99))
        == report
    )


@pytest.mark.parametrize(
    ("granularity", "symmetric", "expected"),
    [
        (PerAxis(0), True, 4 + 32 / 128),
        (PerAxis(0), False, 4 + 36 / 128),
        (PerGroup(32), True, 4 + 32 / 32),
    ],
)
def test_scales_are_part_of_the_price(granularity, symmetric, expected):
    x = np.random.default_rng(0).normal(size=(16, 128))
    qparams = find_qparams(x, bits=4, symmetric=symmetric, granularity=granularity)
    assert errors.bits_per_value(x.shape, qparams) == expected


def test_no_error_is_infinite_sqnr():
    assert errors.sqnr_db([1.0, 2.0], [1.0, 2.0]) == math.inf
    assert errors.sqnr_db([0.0, 0.0], [0.0, 0.5]) == -math.inf


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"x has shape \(2,\), x_hat has shape \(3,\)"):
        errors.mse(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="x_hat holds 1 value that is not finite"):
        errors.mse(np.zeros(2), np.array([0, np.nan]))


@pytest.mark.parametrize(
    ("zero_point", "limits", "expected"),
    [
        (0, (-8, 7), 4 + 4 * 32 / 64),  # signed, and no zero point to store
        (np.int32([[0], [0], [0], [0]]), (-8, 7), 4 + 4 * 32 / 64),  # zeros need not be stored either
        (np.int32([[0], [3], [0], [0]]), (-8, 7), 4 + 4 * (32 + 4) / 64),  # one that is not 0: all are stored
        (np.int32([[1], [3], [2], [1]]), (-8, 7), 4 + 4 * (32 + 4) / 64),
        (np.int32([[0], [0], [0], [0]]), (0, 15), 4 + 4 * (32 + 4) / 64),  # unsigned codes have zero points
        (3, (-8, 7), 4 + (4 * 32 + 4) / 64),  # one for all
        (np.int32([[0], [0], [0], [0]]), (-1, 2), 2 + 4 * 32 / 64),
        (np.int32([[1], [1], [1], [1]]), (1, 4), 2 + 4 * (32 + 2) / 64),
    ],
)
def test_zero_points_are_part_of_the_price_unless_signed_codes_need_none(zero_point, limits, expected):
    qparams = QParams(np.ones((4, 1)), zero_point, *limits)
    assert errors.bits_per_value((4, 16), qparams) == expected


def test_a_report_does_not_change():
    report = errors.report([0.0, 1.5], QParams(scale=1.0, zero_point=0, quant_min=0, quant_max=3))
    with pytest.raises(AttributeError, match="cannot assign to field"):
        report.mse = 0.0


def test_what_is_clipped_is_asked_of_numbers_only():
    with pytest.raises(ValueError, match="x holds 1 value that is not finite; the first is nan at index 1"):
        errors.clipped([0.0, math.nan], QParams(scale=1.0, zero_point=0, quant_min=0, quant_max=3))
