"""Codebooks against searches through all levels, all cuts, SciPy and the tables of Lloyd and Max."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.cluster.vq import kmeans2
from scipy.stats import norm

from qlearn import PerGroup
from qlearn.block_scales import max_scale
from qlearn.codebooks import decode, encode, kmeans, normal_float, optimal

# Eighths and quarters: middles, distances and means of few values are exact, so that a tie is a tie.
EIGHTHS = st.integers(-80, 80).map(lambda n: n / 8)
LEVELS = st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True).map(lambda n: np.array(sorted(n)) / 4)
ARRAYS = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=5), elements=EIGHTHS)


def sse(x, levels):
    return float(np.sum((np.asarray(x, np.float64) - np.asarray(levels)[encode(x, levels)]) ** 2))


# --- encode and decode ------------------------------------------------------------------------------------------------


@given(ARRAYS, LEVELS)
def test_every_value_gets_its_nearest_level_and_the_smaller_of_two(x, levels):
    codes = encode(x, levels)
    assert codes.dtype == np.uint8 and codes.shape == x.shape
    assert np.array_equal(codes, np.abs(x[..., None] - levels).argmin(-1))  # argmin takes the first of equals
    assert np.array_equal(decode(codes, levels), levels[codes].astype(np.float32))
    assert np.array_equal(encode(decode(codes, levels), levels), codes)


@given(ARRAYS, LEVELS)
def test_tensors_get_the_same_codes(x, levels):
    tensor = torch.from_numpy(x)
    assert np.array_equal(encode(tensor, levels).numpy(), encode(x, levels))
    assert np.array_equal(decode(encode(tensor, levels), levels).numpy(), decode(encode(x, levels), levels))


@pytest.mark.parametrize("scale_shape", [(), (4, 1), (1, 12), (4, 3), (2, 2)])
def test_each_entry_of_scale_covers_one_block(scale_shape):
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(4, 12)), 2.0 ** rng.integers(-3, 3, size=scale_shape)
    levels = normal_float(4)
    spread = (
        np.broadcast_to(scale, (4, 12))
        if not scale_shape
        else np.kron(scale, np.ones((4 // scale_shape[0], 12 // scale_shape[1])))
    )
    codes = encode(x, levels, scale)
    assert np.array_equal(codes, encode(x / spread, levels))
    assert np.array_equal(decode(codes, levels, scale), (levels[codes].astype(np.float32) * spread).astype(np.float32))


def test_a_tensor_turned_on_its_side_is_taken_without_a_warning(recwarn):
    x = torch.linspace(-1, 1, 60, requires_grad=True).reshape(6, 10)
    assert torch.equal(encode(x.T, normal_float(4)), encode(x, normal_float(4)).T)
    assert not recwarn.list


def test_half_types_scalars_and_lists():
    levels = [-1.0, 0.0, 2.0]
    assert encode(np.float16(0.9), levels) == 1 and encode(1.1, levels) == 2
    assert encode(torch.tensor([0.9, 1.1], dtype=torch.bfloat16), levels).tolist() == [1, 2]
    assert decode([2, 0], levels).tolist() == [2.0, -1.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encode([], [0, 1]), ValueError, "x is empty"),
        (lambda: encode([np.nan], [0, 1]), ValueError, "x holds 1 value that is not finite"),
        (lambda: encode([1.0], [0.0]), ValueError, r"levels have shape \(1,\): a codebook is a list of 2 to 256"),
        (lambda: encode([1.0], np.arange(257.0)), ValueError, r"levels have shape \(257,\)"),
        (lambda: encode([1.0], [[0.0, 1.0]]), ValueError, r"levels have shape \(1, 2\)"),
        (
            lambda: encode([1.0], [0.0, 2.0, 1.0]),
            ValueError,
            r"levels\[1\]=2 is larger than levels\[2\]=1: .* Sort them",
        ),
        (lambda: encode([1.0], [0.0, np.inf]), ValueError, "levels holds 1 value that is not finite"),
        (lambda: encode([1.0], [0.0, 1.0], scale=0.0), ValueError, "scale holds 0: every scale must be larger than 0"),
        (lambda: encode(np.ones((2, 6)), [0.0, 1.0], np.ones((2, 4))), ValueError, r"scale has shape \(2, 4\), x has"),
        (lambda: decode([0.5], [0.0, 1.0]), TypeError, "codes have dtype float64: a code is a place in the list"),
        (lambda: decode([0, 2], [0.0, 1.0]), ValueError, "codes run from 0 to 2: 2 levels have the codes 0 … 1"),
        (lambda: decode([-1], [0.0, 1.0]), ValueError, "codes run from -1 to -1"),
        (lambda: kmeans([1.0, 1.0, 2.0], 3), ValueError, "x has 2 different values: 3 levels need at least as many"),
        (lambda: kmeans([1.0, 2.0], 1), ValueError, "k=1 must be a whole number from 2 to 256"),
        (lambda: kmeans([1.0, 2.0, 3.0], 2, start=[0, 1, 2]), ValueError, "start has 3 levels, k=2"),
        (lambda: optimal([1.0, 2.0], 257), ValueError, "k=257 must be a whole number from 2 to 256"),
        (lambda: normal_float(1), ValueError, "bits=1 must be a whole number from 2 to 8"),
        (lambda: normal_float(4.0), ValueError, "bits=4.0 must be a whole number"),
    ],
)
def test_what_cannot_be_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- k-means ----------------------------------------------------------------------------------------------------------


def slow_lloyd(x, levels, steps):
    levels = levels.astype(np.float64).copy()
    for _ in range(steps):
        codes = np.abs(x[:, None] - levels).argmin(1)
        levels = np.array([x[codes == c].mean() if (codes == c).any() else levels[c] for c in range(len(levels))])
    return levels


@given(hnp.arrays(np.float64, st.integers(9, 30), elements=EIGHTHS, unique=True), LEVELS, st.integers(0, 4))
def test_a_step_is_lloyds_ties_and_empty_cells_included(x, levels, steps):
    # Means of up to 30 eighths: exact in the first step, rounded in the last digit afterwards.
    assert kmeans(x, len(levels), start=levels, steps=steps) == pytest.approx(slow_lloyd(x, levels, steps), abs=1e-12)


def test_scipy_finds_the_same():
    x = np.random.default_rng(0).normal(size=2000)
    start = np.linspace(-2, 2, 8)
    theirs, _ = kmeans2(x[:, None], start[:, None], iter=25, minit="matrix")
    assert kmeans(x, 8, start=start, steps=25) == pytest.approx(theirs[:, 0], abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_never_rises_and_the_end_is_a_fixed_point(dtype):
    x = np.random.default_rng(1).laplace(size=5000).astype(dtype)
    start = np.linspace(x.min(), x.max(), 16)
    errors = [sse(x, kmeans(x, 16, start=start, steps=steps)) for steps in range(0, 60, 3)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]
    levels = kmeans(x, 16, start=start)
    assert np.array_equal(kmeans(x, 16, start=levels, steps=1), levels)


def test_many_equal_values_are_no_trouble():
    x = np.maximum(np.random.default_rng(2).normal(size=4000), 0)
    levels = kmeans(x, 16)
    assert (np.diff(levels) > 0).all() and levels[0] < 0.1 and sse(x, levels) < 3 * sse(x, optimal(x, 16))
    assert kmeans([0.0] * 50 + [1.0, 2.0, 3.0], 4).tolist() == [0.0, 1.0, 2.0, 3.0]


# --- the best levels --------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float64, st.integers(4, 10), elements=st.integers(-20, 20).map(float)), st.integers(2, 4))
def test_nothing_is_better_than_optimal(x, k):
    if len(np.unique(x)) < k:
        with pytest.raises(ValueError, match="different values"):
            optimal(x, k)
        return
    ordered = np.sort(x)
    every = (np.split(ordered, cuts) for cuts in itertools.combinations(range(1, len(x)), k - 1))
    best = min(sum(float(((part - part.mean()) ** 2).sum()) for part in parts) for parts in every)
    assert sse(x, optimal(x, k)) == pytest.approx(best, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("k", [2, 5, 16, 64])
def test_kmeans_is_never_better(k):
    x = np.random.default_rng(3).normal(size=3000) ** 3
    assert sse(x, optimal(x, k)) <= sse(x, kmeans(x, k)) * (1 + 1e-12)


def test_a_large_offset_changes_nothing():
    x = np.random.default_rng(4).integers(0, 1000, size=500) / 8
    assert optimal(x + 2.0**30, 12) - 2.0**30 == pytest.approx(optimal(x, 12), abs=1e-5)


@pytest.mark.parametrize(("bits", "theory"), [(1, 0.3634), (2, 0.117482), (3, 0.034548), (4, 0.009501), (5, 0.002505)])
def test_normal_values_reach_the_tables_of_lloyd_and_max(bits, theory):
    # The quantiles of 200,000 equal shares stand for the distribution without the noise of a sample. What is cut off
    # beyond the outermost share lowers the error by less than 0.3 %.
    x = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    found = sse(x, optimal(x, 2**bits)) / len(x)
    assert theory * 0.997 < found < theory * 1.0003


# --- NF4 --------------------------------------------------------------------------------------------------------------

PUBLISHED = [  # QLoRA's code, computed there in float32
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def test_nf4_is_the_published_list():
    assert normal_float(4) == pytest.approx(PUBLISHED, abs=3e-7)


@pytest.mark.parametrize("bits", range(2, 9))
def test_its_kin_are_quantiles_too(bits):
    levels, half = normal_float(bits), 2 ** (bits - 1)
    assert len(levels) == 2**bits and (np.diff(levels) > 0).all()
    assert levels[0] == -1 and levels[half - 1] == 0 and levels[-1] == 1
    outermost = norm.ppf(1 - (1 / (2 * 2**bits) + 1 / (2 * (2**bits - 1))) / 2)
    probabilities = norm.cdf(levels * outermost)
    assert np.diff(probabilities[half - 1 :]) == pytest.approx(np.diff(probabilities[half - 1 :])[0])
    assert np.diff(probabilities[:half]) == pytest.approx(np.diff(probabilities[:half])[0])


def test_nf4_beats_int4_on_normal_blocks_and_loses_on_even_ones():
    rng = np.random.default_rng(5)
    for x, better in ((rng.normal(size=(64, 640)), True), (rng.uniform(-1, 1, size=(64, 640)), False)):
        scale = max_scale(x, 1.0, PerGroup(64))
        errors = [
            np.sum((x - decode(encode(x, b, scale), b, scale)) ** 2) for b in (normal_float(4), np.arange(-7, 8) / 7)
        ]
        assert (errors[0] < 0.8 * errors[1]) == better and (errors[0] > 1.2 * errors[1]) != better


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "k", "wanted"),
    [
        (np.arange(12.0), 3, [2, 6, 10]),  # the (i + ½) / k quantiles: places 2, 6 and 10 of 12
        (np.arange(10.0), 4, [1, 3, 6, 8]),  # 1.25, 3.75, 6.25, 8.75
        ([0.0] * 6 + [1, 2, 3, 4], 3, [0, 1, 3]),  # 0, 0 and 3; the second 0 makes room for a value that has no level
        ([0.0] * 20 + [1, 2, 3, 4, 5, 6, 7, 8, 9], 4, [0, 1, 6, 9]),  # two make room: for the ends of what is free
        ([0.0] * 40 + [1, 2, 3, 4, 5, 6, 7, 8, 9], 5, [0, 1, 4, 5, 9]),  # three: and for one in the middle
        ([1.0, 2.0], 2, [1, 2]),  # as many values as levels
    ],
)
def test_the_first_levels_are_quantiles_and_no_two_are_equal(x, k, wanted):
    assert kmeans(x, k, steps=0).tolist() == wanted


def test_a_codebook_has_up_to_256_levels():
    levels = np.arange(256.0)
    assert encode([0.0, 254.6, 1e9], levels).tolist() == [0, 255, 255]
    assert decode(np.array([255, 0], np.uint8), levels).tolist() == [255.0, 0.0]
    assert kmeans(levels, 256).tolist() == optimal(levels, 256).tolist() == levels.tolist()
    for call in (lambda: kmeans(np.arange(300.0), 257), lambda: optimal(np.arange(300.0), 257)):
        with pytest.raises(ValueError, match="k=257 must be a whole number from 2 to 256"):
            call()
    with pytest.raises(ValueError, match="k=2.0 must be a whole number"):
        kmeans([1.0, 2.0], 2.0)


def test_of_two_equal_levels_the_first_is_used():
    assert encode([-1.0, 0.0, 0.4, 0.6, 2.0], [0.0, 0.0, 1.0]).tolist() == [0, 0, 0, 2, 2]
    with pytest.raises(ValueError, match=r"levels\[0\]=1 is larger than levels\[1\]=0"):
        encode([1.0], [1.0, 0.0, -1.0])


def test_one_code_without_a_level_is_enough():
    for codes in ([-1, 1], [1, -1]):
        with pytest.raises(ValueError, match="codes run from -1 to 1: 2 levels have the codes 0 … 1"):
            decode(codes, [0.0, 1.0])
    with pytest.raises(ValueError, match="codes run from 0 to 2"):
        decode([2, 0], [0.0, 1.0])


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_best_levels_of_few_values_by_hand(k, recwarn):
    x = [10.0, 0.0, 1.5, 30.0, 31.0, 11.0]
    assert optimal(x, k).tolist() == {2: [5.625, 30.5], 3: [0.75, 10.5, 30.5], 4: [0.0, 1.5, 10.5, 30.5]}[k]
    assert optimal([3.0, 1.0], 2).tolist() == [1.0, 3.0]
    assert not recwarn.list


@pytest.mark.parametrize("bits", [1, 9, 0, True, 4.0])
def test_normal_levels_have_two_to_eight_bits(bits):
    with pytest.raises(ValueError, match=f"bits={bits!r} must be a whole number from 2 to 8"):
        normal_float(bits)


def test_a_level_without_values_stays_where_it_is_and_nothing_is_divided_by_zero(recwarn):
    assert kmeans([0.0, 1.0, 9.0, 10.0, 11.0], 3, start=[0.0, 5.0, 9.5]).tolist() == [0.5, 5.0, 10.0]
    assert not recwarn.list


def test_normal_levels_are_those_of_four_bits_if_nothing_is_said():
    assert normal_float().tolist() == normal_float(4).tolist()


@pytest.mark.parametrize("levels", [1.0, [[0.0, 1.0], [2.0, 3.0]]])
def test_levels_are_a_list(levels):
    with pytest.raises(ValueError, match="a codebook is a list of 2 to 256 numbers"):
        encode([1.0], levels)


# --- to the last bit --------------------------------------------------------------------------------------------------


def exact_codes(x, levels, scales):
    """In fractions: how many middles lie below x / scale."""
    middles = [(Fraction(a) + Fraction(b)) / 2 for a, b in itertools.pairwise(np.asarray(levels, np.float64).tolist())]
    pairs = zip(x.reshape(-1).tolist(), np.broadcast_to(scales, x.shape).reshape(-1).tolist(), strict=True)
    return [sum(middle < Fraction(value) / Fraction(scale) for middle in middles) for value, scale in pairs]


def around(places, dtype):
    """The float nearest to each place, and two more on both sides."""
    floats = [places.astype(dtype)]
    for _ in range(2):
        floats = [np.nextafter(floats[0], dtype(-np.inf)), *floats, np.nextafter(floats[-1], dtype(np.inf))]
    return np.stack(floats, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_values_beside_a_middle_get_the_code_that_fractions_give(dtype, library):
    for seed in range(5):
        levels = np.sort(np.random.default_rng(seed).normal(size=9))
        x = around((levels[1:] + levels[:-1]) / 2, dtype)
        assert encode(library(x), levels).reshape(-1).tolist() == exact_codes(x, levels, 1.0)
    levels = [1 + 2**-23, 1 + 2**-22, 1 + 2**-21]  # no float32 lies in the first middle
    x = around(np.array(levels), dtype)
    assert encode(library(x), levels).reshape(-1).tolist() == exact_codes(x, levels, 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("shape", [(), (8, 1), (8, 5)])
def test_quotients_beside_a_middle_get_the_code_that_fractions_give(dtype, library, shape):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        levels, scale = np.sort(rng.normal(size=9)), rng.uniform(0.1, 10, size=shape)
        whole = np.broadcast_to(scale, (8, 5))
        x = around((levels[1:] + levels[:-1]) / 2 * whole[:, 0], dtype)
        found = encode(library(x), levels, library(scale) if shape else float(scale))
        assert found.reshape(-1).tolist() == exact_codes(x, levels, whole)


def test_numbers_at_the_ends_of_float64_are_not_rounded_either():
    least = 5e-324
    assert encode([3 * least, 1.0, 0.0], [0.0, 3 * least], 2.0).tolist() == [0, 1, 0]  # 1½ is a middle: the smaller one
    assert encode([4 * least, -1.0], [0.0, 3 * least], 2.0).tolist() == [1, 0]
    assert encode([3 * least, 4 * least], [0.0, 3 * least], 2.0).tolist() == [0, 1]
    assert encode([1.0, 3.0], [0.0, 3 * least], 2.0**1000).tolist() == [1, 1]


def test_middles_may_lie_beyond_the_type_of_the_values():
    x = np.float32([-3e38, 0, 1, 3e38])
    assert encode(x, [0.0, 1e300]).tolist() == [0, 0, 0, 0]
    assert encode(x, [-1e300, 0.0]).tolist() == [1, 1, 1, 1]
    assert encode(x, [-1e300, 0.0, 1e300]).tolist() == [1, 1, 1, 1]


def test_one_scale_that_rounds_among_powers_of_two_is_enough():
    levels = np.sort(np.random.default_rng(0).normal(size=9))
    scale = np.array([[2.0], [1.0], [3.0], [0.5], [1.0], [1.7], [4.0], [1.0]])
    x = around((levels[1:] + levels[:-1]) / 2 * scale[:, 0], np.float64)
    assert encode(x, levels, scale).reshape(-1).tolist() == exact_codes(x, levels, scale)


@pytest.mark.parametrize("unit", [-1e300, 1e300, -1e-300, 1e-300])
def test_levels_of_huge_and_tiny_values_of_one_sign(unit):
    x = np.array([1.0, 2.0, 5.0, 5.5, 6.0]) * unit
    wanted = np.sort(np.array([1.5, 5.5]) * unit)
    for found in (optimal(x, 2), kmeans(x, 2, start=np.sort(np.array([2.0, 5.0]) * unit))):
        assert found / unit == pytest.approx(wanted / unit, rel=1e-12)


def test_one_huge_value_on_either_side_sets_the_unit():
    x = np.array([-2.2e300, -2e300, -1e300, 0.0, 1.0])
    for sign in (1, -1):
        found = optimal(sign * x, 3) / 1e300
        assert found == pytest.approx(np.sort(sign * np.array([-2.1, -1.0, 0.0])), abs=1e-12)
