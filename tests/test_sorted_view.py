"""A sorted view says of every quantizer what quantizing every value says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlearn import QParams, choose_qparams, dequantize, errors, quantize
from qlearn.sorted_view import SortedView

LIBRARIES = {"numpy": np.asarray, "torch": torch.asarray}

dyadic_scales = st.integers(-20, 20).map(lambda power: 2.0**power)
ordinary_scales = st.floats(1e-30, 1e30)


@st.composite
def quantizers(draw):
    bits = draw(st.integers(1, 8))
    signed = draw(st.booleans())
    quant_min = -(2 ** (bits - 1)) if signed else 0
    quant_max = quant_min + 2**bits - 1
    scale = draw(dyadic_scales | ordinary_scales)
    return QParams(scale, draw(st.integers(quant_min, quant_max)), quant_min, quant_max)


@st.composite
def values_and_quantizers(draw):
    """Values that like to lie on ties, one float beside them, or anywhere."""
    q = draw(quantizers())
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    halves = draw(st.lists(st.integers(-600, 600), min_size=1, max_size=60))
    x = (np.array(halves) / 2 * q.scale).astype(dtype)
    ulps = draw(st.lists(st.integers(-2, 2), min_size=len(x), max_size=len(x)))
    for _ in range(2):
        towards = np.where(np.sign(ulps) > 0, np.inf, -np.inf).astype(dtype)
        x = np.where(np.equal(ulps, 0), x, np.nextafter(x, towards))
        ulps = ulps - np.sign(ulps)
    anywhere = draw(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=20))
    return np.concatenate([x, np.array(anywhere, dtype)]), q


def counted(x, q):
    codes = np.asarray(quantize(x, q)).astype(np.int64).reshape(-1)
    return np.bincount(codes - q.quant_min, minlength=q.quant_max - q.quant_min + 1)


@pytest.mark.parametrize("library", LIBRARIES)
@given(case=values_and_quantizers())
def test_counts_are_exactly_those_of_quantize(library, case):
    x, q = case
    x = LIBRARIES[library](x)
    np.testing.assert_array_equal(np.asarray(SortedView(x).measure(q).counts), counted(x, q))


@pytest.mark.parametrize("library", LIBRARIES)
@given(case=values_and_quantizers())
def test_clipped_values_are_those_of_errors(library, case):
    x, q = case
    x = LIBRARIES[library](x)
    assert SortedView(x).measure(q).clipped == int(errors.clipped(x, q).sum())


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("clip", [1.0, 0.4])
def test_errors_are_those_of_every_value(library, dtype, bits, clip):
    x = np.random.default_rng(bits).standard_t(4, 20_000).astype(dtype)
    q = choose_qparams(clip * x.min(), clip * x.max(), bits=bits)
    difference = x.astype(np.float64) - dequantize(quantize(x, q), q)
    measured = SortedView(LIBRARIES[library](x)).measure(q)
    # Sums of up to Σ x² are taken from each other: the error is 1e-15 of that, and Σ x² is at most 4ᵇ · SSE.
    assert measured.sse == pytest.approx((difference**2).sum(), rel=1e-14 * 4**bits + 1e-12)
    clipped = errors.clipped(x, q)
    assert measured.clipping == pytest.approx((difference[clipped] ** 2).sum(), rel=1e-9)
    assert measured.rounding == pytest.approx((difference[~clipped] ** 2).sum(), rel=1e-9)
    assert measured.largest_error == abs(difference).max()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("shift", [0, 0.5])
def test_the_short_way_to_the_error_agrees(library, bits, shift):
    """The relative error against float64 brute force stays below 1e-9 up to 8 bits."""
    x = np.random.default_rng(bits).normal(size=1_000_000).astype(np.float32)
    top, zero = 2**bits - 1, 2 ** (bits - 1) - shift
    scale = 8.0 / top
    codes = np.clip(np.rint(x.astype(np.float64) / scale + zero), 0, top)
    sse = ((x - scale * (codes - zero)) ** 2).sum()
    assert SortedView(LIBRARIES[library](x)).sse(scale, zero, 0, top) == pytest.approx(sse, rel=1e-9)


def test_the_short_way_is_exact_where_arithmetic_is():
    """Multiples of 1/8, scale 1/2: every sum is exact, and many values are ties."""
    x = np.random.default_rng(0).integers(-80, 80, 5_000) / 8
    q = QParams(0.5, 10, 0, 31)
    direct = ((x - dequantize(quantize(x, q), q)) ** 2).sum()
    view = SortedView(x)
    assert view.sse(0.5, 10, 0, 31) == view.measure(q).sse == direct


@pytest.mark.parametrize("library", LIBRARIES)
@given(
    x=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50),
    edges=st.lists(st.floats(-100, 100), min_size=2, max_size=10, unique=True).map(sorted),
)
def test_histogram_is_numpys(library, x, edges):
    edges = [*edges, 101.0]  # NumPy closes the last bin at both ends; no value lies here
    view = SortedView(LIBRARIES[library](np.array([*x, edges[0]], np.float32)))
    expected = np.histogram(np.array([*x, edges[0]], np.float32).astype(float), edges)[0]
    np.testing.assert_array_equal(np.asarray(view.histogram(edges)), expected)


def test_two_views_of_one_quantizer_add_up():
    x = np.random.default_rng(0).normal(size=1_000)
    q = choose_qparams(-1.0, 2.0, bits=3)
    both, whole = SortedView(x[:300]).measure(q) + SortedView(x[300:]).measure(q), SortedView(x).measure(q)
    np.testing.assert_array_equal(both.counts, whole.counts)
    assert (both.clipped, both.largest_error) == (whole.clipped, whole.largest_error)
    assert both.sse == pytest.approx(whole.sse, rel=1e-10)


@pytest.mark.parametrize("x", [[0.0], [3.0] * 5, [-2.0, -2.0], [1e-45], [3e38, -3e38]])
def test_few_and_extreme_values(x):
    x = np.array(x, np.float32)
    q = choose_qparams(x.min(), x.max(), bits=4)
    measured = SortedView(x).measure(q)
    np.testing.assert_array_equal(measured.counts, counted(x, q))
    assert math.isfinite(measured.sse) and measured.counts.sum() == len(x)


def test_tensors_with_gradients_and_half_types():
    x = torch.linspace(-1, 1, 24, dtype=torch.bfloat16).reshape(2, 3, 4).requires_grad_()
    q = choose_qparams(-1.0, 1.0, bits=3)
    np.testing.assert_array_equal(SortedView(x).measure(q).counts, counted(x, q))


def test_sorting_leaves_x_alone():
    for make in LIBRARIES.values():
        x = make([3.0, 1.0, 2.0])
        SortedView(x)
        assert x.tolist() == [3.0, 1.0, 2.0]


def test_a_scale_for_each_block_is_refused():
    q = QParams(np.array([[1.0], [2.0]]), np.array([[0], [0]]), 0, 7)
    with pytest.raises(ValueError, match=r"\(2, 1\).*one scale"):
        SortedView([1.0, 2.0]).measure(q)


@pytest.mark.parametrize(("x", "message"), [([], "empty"), ([1.0, float("nan")], "not finite")])
def test_what_cannot_be_sorted(x, message):
    with pytest.raises(ValueError, match=message):
        SortedView(x)


@pytest.mark.parametrize("outlier", [-1e8, -1e6, 1e8])
def test_an_outlier_does_not_spoil_the_rounding_error_of_the_others(outlier):
    x = np.append(np.random.default_rng(0).normal(size=10_000), outlier).astype(np.float32)
    qparams = choose_qparams(-4.0, 4.0, bits=8)
    rounding, _ = errors.split(x, qparams)
    # float32 rounds x̂ in errors.split and not here: 2⁻²⁴ of the largest x̂ against an error of a hundredth.
    assert SortedView(x).measure(qparams).rounding == pytest.approx(rounding * len(x), rel=1e-4)
