"""The explorer of lesson 04 against sums in Python's integers, exact fractions and the package's own requantization."""

from __future__ import annotations

import base64
import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from pictures import decoded, picture
from qlearn.integer import quantize_multiplier, requantize
from qlearn.widgets import accumulator, explore_accumulator
from qlearn.widgets.accumulator import DEPTHS, fixed_point, wrap


@pytest.fixture(scope="module")
def explorer():
    return explore_accumulator()


@pytest.fixture(autouse=True)
def at_the_start(explorer):
    explorer.reset()


def exact_code(value: Fraction, zero_point: int, quant_max: int) -> int:
    """Halves away from zero, then the clamp."""
    nearest = int(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)
    return min(max(nearest + zero_point, 0), quant_max)


def direct(bits, depth, held_bits, factor_bits):
    """The table's numbers, one sum after the other, in Python's integers and fractions."""
    x, w = (codes.astype(np.int64) for codes in accumulator._codes(bits, depth))
    sums = [int(s) for s in (x @ w).reshape(-1)]
    zero_point, quant_max = 2 ** (bits - 1), 2**bits - 1
    factor = Fraction(quant_max / (8 * float(np.std(np.sort(sums)))))
    shift = 0
    while factor * 2 ** (shift + 1) < 1:
        shift += 1
    m = int(factor * 2 ** (factor_bits + shift) + Fraction(1, 2))
    if m == 2**factor_bits:
        m, shift = m // 2, shift - 1

    def high(acc):
        return (acc * m + 2 ** (factor_bits - 1)) >> factor_bits

    def code(acc):
        return exact_code(Fraction(high(acc), 2**shift), zero_point, quant_max)

    half = 2 ** (held_bits - 1)
    fits = [-half <= s < half for s in sums]
    held = [s if fit else (s + half) % (2 * half) - half for s, fit in zip(sums, fits, strict=True)]
    wanted = [exact_code(s * factor, zero_point, quant_max) for s in sums]
    return {
        "worst_bits": (depth * quant_max * (2 ** (bits - 1) - 1)).bit_length() + 1,
        "used_bits": max((s if s >= 0 else -s - 1).bit_length() for s in sums) + 1,
        "overflow_percent": 100 * (1 - np.mean(fits)),
        "wrong_percent": 100 * np.mean([code(h) != v for h, v in zip(held, wanted, strict=True)]),
        "m": m,
        "shift": shift,
        "rescaling_error": float(max(abs(Fraction(high(s), 2**shift) - s * factor) for s in sums)),
        "rescaling_percent": 100 * np.mean([code(s) != v for s, v in zip(sums, wanted, strict=True)]),
    }


@pytest.mark.parametrize(
    ("bits", "depth", "held_bits", "factor_bits"),
    [(8, 1024, 18, 8), (8, 16384, 32, 31), (2, 16, 8, 2), (2, 16384, 8, 31), (5, 64, 9, 12), (8, 16, 8, 2)],
)
def test_numbers_are_those_of_python_s_integers(explorer, bits, depth, held_bits, factor_bits):
    explorer.set(bits=bits, depth=depth, accumulator=held_bits, multiplier=factor_bits)
    assert explorer.numbers == pytest.approx(direct(bits, depth, held_bits, factor_bits), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("depth", [16, 1024, 16384])
def test_with_31_bits_it_is_the_package_s_own_requantization(explorer, bits, depth):
    explorer.set(bits=bits, depth=depth, multiplier=31, accumulator=32)
    sums, _, factor, exact, _ = accumulator._layer(bits, depth)
    assert (explorer.numbers["m"], explorer.numbers["shift"]) == quantize_multiplier(factor)
    zero_point, quant_max = 2 ** (bits - 1), 2**bits - 1
    codes = requantize(sums, *quantize_multiplier(factor), zero_point=zero_point, quant_min=0, quant_max=quant_max)
    wanted = np.clip(np.sign(exact) * np.floor(abs(exact) + 0.5) + zero_point, 0, quant_max)
    assert explorer.numbers["rescaling_percent"] == 100 * np.mean(codes != wanted)
    assert abs(codes - wanted).max() <= 1
    for percentile in (0, 37, 100):
        explorer.set(one_sum=percentile)
        steps = explorer.result["steps"]
        assert steps["code"] == codes[round(percentile / 100 * (len(sums) - 1))]


def test_sums_stay_below_the_worst_case(explorer):
    for bits in range(2, 9):
        for depth in DEPTHS:
            explorer.set(bits=bits, depth=depth)
            assert explorer.numbers["used_bits"] <= explorer.numbers["worst_bits"] <= 32
            assert explorer.result["lengths"].sum() == 64 * 64
            explorer.set(accumulator=max(8, explorer.numbers["used_bits"]))
            assert explorer.numbers["overflow_percent"] == 0
            assert explorer.numbers["wrong_percent"] == explorer.numbers["rescaling_percent"]


def test_more_bits_of_the_multiplier_reach_the_first_rounding(explorer):
    errors = explorer.result["errors"]
    assert errors[-1] == pytest.approx(explorer.result["floor"], rel=1e-3)
    assert (errors > 0.99 * explorer.result["floor"]).all()
    assert errors[0] > 1000 * errors[-1]


@pytest.mark.parametrize(("value", "held"), [(127, 127), (128, -128), (-128, -128), (-129, 127), (256, 0)])
def test_wrapping_is_what_a_register_does(value, held):
    assert wrap(np.array([value]), 8)[0] == held == np.array([value]).astype(np.int8)[0]


def test_a_factor_next_to_one_keeps_its_bits():
    assert fixed_point(0.99, 3) == (4, -1)  # rounded up to 1: written one place further left
    for bits in range(2, 32):
        m, _ = fixed_point(0.3, bits)
        assert 2 ** (bits - 1) <= m < 2**bits


@pytest.mark.parametrize(
    "change",
    [{"bits": 4}, {"depth": 64}, {"accumulator": 12}, {"multiplier": 20}, {"one_sum": 50}],
    ids=lambda change: next(iter(change)),
)
def test_every_control_changes_the_picture_and_reset_changes_it_back(explorer, change):
    before = explorer._picture.value
    explorer.set(**change)
    assert (picture(explorer) != decoded(before)).any()
    explorer._button.click()
    assert explorer._picture.value == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits=1 must be a whole number from 2 to 8"),
        ({"depth": 100}, "depth=100 must be one of 16"),
        ({"accumulator": 33}, "accumulator=33 must be a whole number from 8 to 32"),
        ({"multiplier": 1}, "multiplier=1 must be a whole number from 2 to 31"),
    ],
)
def test_set_says_what_is_allowed(explorer, change, message):
    before = explorer.values
    with pytest.raises(ValueError, match=message):
        explorer.set(**change)
    assert explorer.values == before


def test_start_values_are_where_reset_leads():
    explorer = explore_accumulator(bits=4, depth=256, accumulator=12, multiplier=31, one_sum=3)
    explorer.set(bits=8, depth=16)
    explorer.reset()
    assert explorer.values == {"bits": 4, "depth": 256, "accumulator": 12, "multiplier": 31, "one_sum": 3}


def test_one_sum_step_by_step(explorer):
    explorer.set(one_sum=100)
    steps = explorer.explain(explorer.result)
    largest = int(accumulator._layer(8, 1024)[0][-1])
    assert steps[0] == f"sum {largest:,} needs 19 bits"
    assert steps[1] == f"wraps to {largest - 2**18:,}"
    assert steps[-1] == f"exact arithmetic gives {explorer.result['steps']['wanted']}"
    assert explorer.result["steps"]["wanted"] > 200 > 128 > explorer.result["steps"]["code"], (
        "a large sum became negative"
    )
    explorer.set(accumulator=32, multiplier=31)
    assert explorer.explain(explorer.result)[1] == "32 bits hold it"
    assert explorer.explain(explorer.result)[-1] == "exact arithmetic gives the same"


def test_bundle_for_every_reader(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(explorer)
    assert str(explorer).startswith(
        "Accumulator and multiplier (bits of codes 8, depth K 1,024, accumulator 18, multiplier 8, one sum 90): "
        "worst case 26 bits, used 19 bits, overflow 5.88 %,"
    )
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size[0] == 1600


def test_blitted_picture_is_the_drawn_one(explorer):
    explorer.set(bits=5, depth=64, accumulator=9)
    blitted = picture(explorer)
    explorer._canvas.draw()
    drawn = np.asarray(explorer._canvas.buffer_rgba())[..., :3]
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.002


def test_a_layer_is_computed_once():
    accumulator._layer.cache_clear()
    explorer = explore_accumulator(pixel_ratio=1)
    for multiplier in range(2, 32):
        explorer.set(multiplier=multiplier, accumulator=multiplier + 1 if multiplier > 7 else 8, one_sum=multiplier)
    assert accumulator._layer.cache_info().misses == 1
