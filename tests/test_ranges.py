"""Ranges: min-max, percentiles, and one for each block."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlearn import (
    PerAxis,
    PerGroup,
    PerTensor,
    QuantConfig,
    choose_qparams,
    fake_quantize,
    find_qparams,
    find_range,
    quantize,
)
from qlearn.range_search import Search, clip_grid
from qlearn.ranges import METHODS, between, check_percentile, cross_entropy, entropy, kl_divergence, place_of
from qlearn.row_search import by_searching, by_sweeping
from strategies import arrays


@given(arrays())
def test_min_max_is_min_and_max(x):
    assert find_range(x) == (x.min(), x.max())
    lo, hi = find_range(torch.from_numpy(x))
    assert (lo.item(), hi.item()) == (x.min(), x.max())


@given(arrays(), st.floats(50, 100, exclude_min=True))
def test_percentile_equals_numpy_s(x, percentile):
    # In float64: numpy.percentile would round the percentage itself to float32 for float32 data.
    lo, hi = np.percentile(x.astype(np.float64), [100 - percentile, percentile])
    ours = find_range(x, "percentile", percentile=percentile)
    assert ours == pytest.approx((np.float32(lo), np.float32(hi)), rel=1e-6, abs=1e-30)  # one float32 step
    lo, hi = find_range(torch.from_numpy(x), "percentile", percentile=percentile)
    assert (lo.item(), hi.item()) == ours


@given(st.data(), st.sampled_from(["min_max", "percentile"]))
def test_ranges_of_blocks_are_ranges_of_their_values(data, method):
    x = data.draw(arrays(dims=3))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    lo, hi = find_range(x, method, granularity=PerAxis(axis))
    assert lo.shape == tuple(n if i == axis % x.ndim else 1 for i, n in enumerate(x.shape))
    each = [find_range(np.take(x, i, axis), method) for i in range(x.shape[axis])]
    assert [tuple(pair) for pair in zip(lo.reshape(-1), hi.reshape(-1), strict=True)] == each


def test_convolution_weights_per_output_channel():
    weight = torch.randn(8, 3, 5, 5, generator=torch.manual_seed(0))
    qparams = find_qparams(weight, symmetric=True, granularity=PerAxis(0))
    assert qparams.scale.shape == (8, 1, 1, 1)
    assert (quantize(weight, qparams).reshape(8, -1).abs().amax(1) == 127).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: find_range(x, "minmax"), "method='minmax' is not known; the methods are 'min_max', 'percentile'"),
        (lambda x: find_range(x, "percentile", percentile=50), r"percentile=50 must be more than 50 and at most 100"),
        (lambda x: find_range(x, "percentile", percentile=100.1), r"percentile=100.1 must be more than 50"),
        (lambda x: find_range(x, bits=99), "bits=99 must be a whole number from 1 to 16"),
        (lambda x: find_range(x, granularity=PerAxis(2)), r"PerAxis\(axis=2\): x has shape \(4, 6\), .* from -2 to 1"),
        (lambda x: find_range(x[0, 0], granularity=PerAxis(0)), "a single number has no axis"),
        (
            lambda x: find_range(x, granularity=PerGroup(4)),
            r"group_size=4 does not divide .* length 6. Sizes that do: 1, 2, 3, 6",
        ),
        (lambda x: PerGroup(0), "group_size=0 must be a whole number of 1 or more"),
        (lambda x: QuantConfig(bits=0), "bits=0 must be a whole number from 1 to 16"),
        (lambda x: QuantConfig(method="best"), "method='best' is not known"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((4, 6)))


def test_a_config_is_the_same_as_its_arguments():
    x = np.random.default_rng(0).normal(size=(4, 6))
    config = QuantConfig(bits=3, symmetric=True, granularity=PerAxis(0), narrow_range=False)
    direct = find_qparams(x, bits=3, symmetric=True, granularity=PerAxis(0), narrow_range=False)
    assert np.array_equal(config.find_qparams(x).scale, direct.scale)
    assert QuantConfig() == QuantConfig(granularity=PerTensor())


# Cross-entropy


def test_cross_entropy_is_the_grid_s_best():
    logits = np.random.default_rng(0).normal(size=(200, 10)) * 4
    logits[0, 0] = 60
    lo, hi = find_range(logits, "cross_entropy", bits=3)
    softmax = scipy.special.softmax(logits, axis=-1)

    def loss(a, b):
        x_hat = fake_quantize(logits, choose_qparams(a, b, bits=3))
        return -np.mean(np.sum(softmax * scipy.special.log_softmax(x_hat, axis=-1), axis=-1))

    grid = clip_grid(logits.min(), logits.max(), np.abs(logits).mean(), 100)
    losses = [loss(a, b) for a, b in zip(*grid, strict=True)]
    assert loss(lo, hi) <= min(losses)  # of the two zero points beside each, choose_qparams takes one
    assert loss(lo, hi) < loss(*find_range(logits, "min_max"))


# Entropy


@pytest.mark.parametrize("k", [7, 8, 20, 64])
def test_one_candidate_s_divergence_equals_scipy_s(k):
    counts = np.random.default_rng(0).integers(0, 50, size=64)
    counts[5] = 0
    p = counts[:k].astype(float)
    p[-1] += counts[k:].sum()
    q = np.zeros(k)
    for level in range(7):
        part = slice(level * k // 7, (level + 1) * k // 7)
        filled = counts[:k][part] > 0
        q[part] = np.where(filled, counts[:k][part].sum() / max(filled.sum(), 1), 0)
    assert kl_divergence(counts, k, 7) == pytest.approx(scipy.stats.entropy(p, q), rel=1e-12)


def test_entropy_leaves_numbers_so_small_that_there_is_nothing_between_them():
    x = np.array([-3e-322, 5e-324, 1e-323])
    assert find_range(x, "entropy") == (-3e-322, 1e-323)


def test_entropy_clips_an_outlier_and_keeps_a_uniform_range():
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(size=100_000), 50.0)
    _, hi = find_range(x, "entropy", symmetric=True)
    assert 2 < hi < 10
    x = rng.uniform(-1, 1, size=100_000)
    assert find_range(x, "entropy", symmetric=True)[1] > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: find_range(x, "mse", candidates=1), "candidates=1 must be a whole number of 2 or more"),
        (lambda x: find_range(x[:, :1], "cross_entropy"), r"shape \(4, 1\): cross_entropy needs logits .* two classes"),
        (
            lambda x: find_range(x, "cross_entropy", granularity=PerAxis(0)),
            "'cross_entropy' finds one range for a whole tensor",
        ),
        (lambda x: find_range(x, "entropy", granularity=PerGroup(2)), "'entropy' finds one range for a whole tensor"),
        (lambda x: find_range(x, "entropy", bins=100), "bins=100 must be a whole number of at least 255"),
        (lambda x: find_range(x * np.nan, "mse"), "x holds 24 values that are not finite"),
    ],
)
def test_wrong_searches_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((4, 6)))


# The parts of the methods, by hand and against slow ways


def test_the_percentile_is_that_of_99_9_if_nothing_is_said():
    x = np.random.default_rng(0).normal(size=5000)
    assert find_range(x, "percentile") == find_range(x, "percentile", percentile=99.9)
    assert find_range(x, "percentile") == pytest.approx(np.percentile(x, [0.1, 99.9]), rel=1e-12)  # float64's rounding
    assert find_range(x, "percentile", percentile=100) == (x.min(), x.max())
    for percentile in (50, 100.001):
        with pytest.raises(ValueError, match=f"percentile={percentile} must be more than 50"):
            check_percentile(percentile)
    check_percentile(50.001)


@pytest.mark.parametrize(
    ("share", "n", "place"),
    [
        (0.0, 5, (0, 0.0)),
        (0.25, 5, (1, 0.0)),
        (1.0, 5, (3, 1.0)),
        (0.5, 2, (0, 0.5)),
        (1.0, 2, (0, 1.0)),
        (0.5, 1, (0, 0.0)),
    ],
)
def test_places_by_hand(share, n, place):
    assert place_of(share, n) == place


@pytest.mark.parametrize("t", [0.125, 0.25, 0.5, 0.75, 0.875])
def test_between_two_values_every_bit_is_numpy_s(t):
    for below, above in np.sort(np.random.default_rng(0).normal(size=(200, 2)), axis=1):
        assert between(below, above, t) == np.percentile([below, above], 100 * t)


def test_a_single_value_is_its_own_range():
    assert find_range([3.0], "percentile") == (3.0, 3.0)
    assert find_range([[3.0], [4.0]], "percentile", granularity=PerAxis(0))[1].tolist() == [[3.0], [4.0]]


@pytest.mark.parametrize("method", ["cross_entropy", "entropy"])
def test_eight_bits_asymmetric_and_narrow_are_meant_if_nothing_is_said(method):
    x = np.random.default_rng(0).normal(size=(300, 8)) * 4 + 1
    x[0, 0] = 40
    plain = METHODS[method](x)
    assert plain == METHODS[method](x, bits=8, symmetric=False, narrow_range=True)
    assert plain == find_range(x, method) == find_range(x, method, bits=8, symmetric=False)
    options = [{"bits": 7}, {"bits": 9}, {"symmetric": True}]
    assert all(METHODS[method](x, **option) != plain for option in options)
    assert all(find_range(x, method, **option) == METHODS[method](x, **option) for option in options)
    narrow = {"bits": 2, "symmetric": True}
    assert METHODS[method](x, **narrow) == METHODS[method](x, narrow_range=True, **narrow)
    assert find_range(x, method, **narrow) == METHODS[method](x, **narrow)
    qparams = find_qparams(x, method)
    assert qparams == choose_qparams(*plain)
    assert find_qparams(x, method, **narrow) == choose_qparams(*METHODS[method](x, **narrow), **narrow)


def test_the_full_range_of_codes_is_searched_if_it_is_asked_for():
    x = np.random.default_rng(2).normal(size=(50, 3)) * 4
    x[0, 0], codes = -30, {"bits": 2, "symmetric": True}
    full = cross_entropy(x, narrow_range=False, **codes)
    assert full != cross_entropy(x, **codes)
    assert find_range(x, "cross_entropy", narrow_range=False, **codes) == full
    wanted = choose_qparams(*full, narrow_range=False, **codes)
    assert find_qparams(x, "cross_entropy", narrow_range=False, **codes) == wanted
    assert (find_qparams(x, narrow_range=False, **codes).quant_min, find_qparams(x, **codes).quant_min) == (-2, -1)


@pytest.mark.parametrize("shape", [(30, 7), (4, 5, 3), (2,)])
@pytest.mark.parametrize("size", [1, 2000])
def test_cross_entropy_is_scipy_s_for_logits_of_every_size_and_shape(shape, size):
    """Beyond 709 an exponential overflows in float64: only differences to the largest logit may enter one."""
    logits = np.random.default_rng(0).normal(size=shape) * size
    softmax = scipy.special.softmax(logits, axis=-1)
    search = Search(2)
    grid = clip_grid(logits.min(), logits.max(), np.abs(logits).mean(), 5)
    lo, hi = search.range_of(*search.quantizers_of(*grid), np.float64)
    losses = []
    for a, b in zip(lo, hi, strict=True):
        x_hat = fake_quantize(logits, choose_qparams(a, b, bits=2))
        losses.append(-np.mean(np.sum(softmax * scipy.special.log_softmax(x_hat, axis=-1), axis=-1)))
    excess = np.array(losses) + np.mean(np.sum(softmax * scipy.special.log_softmax(logits, axis=-1), axis=-1))
    best = int(np.argmax(excess <= excess.min() + 1e-9))  # of those that are equal up to rounding the first
    assert cross_entropy(logits, bits=2, candidates=5) == pytest.approx((lo[best], hi[best]), rel=1e-12)  # mean of |x|


def test_candidates_and_classes_at_their_limits():
    assert cross_entropy([[0.0, 3.0]], candidates=2) == (0.0, 3.0)
    for candidates in (1, 2.0):
        with pytest.raises(ValueError, match=f"candidates={candidates} must be a whole number of 2 or more"):
            cross_entropy([[0.0, 3.0]], candidates=candidates)
    for x in (1.0, [1.0], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="of at least two classes"):
            cross_entropy(x)
    cross_entropy([[0.0, 3.0]], candidates=np.int64(2))


def slow_entropy(x, levels, bins):
    """The search in plain loops, with SciPy's divergence."""
    magnitude, largest = np.abs(x), np.abs(x).max() * (1 + 1e-6)  # so that no value lies on an edge
    counts = np.zeros(bins)
    for value in magnitude:
        counts[min(int(value / largest * bins), bins - 1)] += 1
    best, clip = np.inf, None
    for k in range(levels, bins + 1):
        p, q = counts[:k].copy(), np.zeros(k)
        p[-1] += counts[k:].sum()
        for level in range(levels):
            part = slice(level * k // levels, (level + 1) * k // levels)
            filled = counts[:k][part] > 0
            q[part] = filled * counts[:k][part].sum() / max(filled.sum(), 1)
        divergence = np.inf if q.sum() == 0 or ((p > 0) & (q == 0)).any() else scipy.stats.entropy(p, q)
        if divergence < best * (1 - 1e-12):  # float64's rounding: among equals the first
            best, clip = divergence, k
    return max(x.min(), -largest * clip / bins), min(x.max(), largest * clip / bins)


def ends_on_ticks(lo, hi, bits=8, symmetric=False, narrow_range=True):
    """For asymmetric codes: the range moved so that −lo / scale is a whole number, halves and a little less upwards."""
    if symmetric:
        return lo, hi
    scale = (hi - lo) / (2**bits - 1)
    zero_point = np.floor(-lo / scale + 0.501)
    return -zero_point * scale, (2**bits - 1 - zero_point) * scale


@pytest.mark.parametrize(
    ("codes", "sides", "levels"),
    [
        ({"bits": 4}, (-1, 1), 8),  # half of the codes on either side
        ({"bits": 4}, (0, 1), 15),
        ({"bits": 4}, (-1, 0), 15),
        ({"bits": 4, "symmetric": True}, (-1, 1), 7),
        ({"bits": 4, "symmetric": True}, (0, 1), 7),
        ({"bits": 4, "symmetric": True, "narrow_range": False}, (-1, 1), 7),
        ({"bits": 1}, (-1, 1), 2),  # fewer than two make no histogram
        ({"bits": 2, "symmetric": True}, (-1, 1), 2),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_entropy_is_the_search_in_plain_loops(codes, sides, levels, seed):
    rng = np.random.default_rng(seed)
    x = np.clip(rng.standard_t(2, size=400), 8.0 * sides[0], 9.0 * sides[1])
    x[:2] = 8.0 * sides[0], 9.0 * sides[1]
    wanted = ends_on_ticks(*slow_entropy(x, levels, 64), **codes)
    assert entropy(x, bins=64, **codes) == pytest.approx(wanted, rel=1e-12, abs=1e-12)  # edges, rounded
    with pytest.raises(ValueError, match=f"bins={levels - 1} must be a whole number of at least {levels},"):
        entropy(x, bins=levels - 1, **codes)
    everything = ends_on_ticks(x.min(), x.max(), **codes)
    assert entropy(x, bins=levels, **codes) == pytest.approx(everything, rel=1e-12, abs=1e-12)


def test_the_histogram_has_2048_bins_and_the_clip_is_one_of_their_edges():
    x = np.append(np.random.default_rng(0).normal(size=20_000), 16.0)
    lo, hi = entropy(x.reshape(3, -1), symmetric=True)
    assert (lo, hi) == entropy(x, bins=2048, symmetric=True) == find_range(x, "entropy", symmetric=True)
    place = hi * 2048 / (16 * (1 + 1e-6))
    assert place == pytest.approx(round(place), rel=1e-12) and 2 < hi < 16
    assert lo == max(x.min(), -hi)
    with pytest.raises(ValueError, match="bins=2 must be a whole number of at least 128,"):  # half of the 256 codes
        entropy([-1.0, 1.0], bins=2)
    for bins in (2048.0, "2048"):
        with pytest.raises(ValueError, match=f"bins={bins!r} must be a whole number"):
            entropy(x, bins=bins)


@pytest.mark.parametrize(
    ("counts", "k", "levels", "wanted"),
    [
        ([1, 0, 5], 2, 2, np.inf),  # what is cut off goes where nothing was
        ([0, 0, 5], 2, 2, np.inf),  # nothing is left
        ([1, 1, 0, 0], 2, 2, 0.0),
        ([3, 1], 2, 1, 0.75 * np.log(1.5) + 0.25 * np.log(0.5)),
        ([3, 1, 2], 2, 2, 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)),
        ([3, 0, 1], 3, 1, 0.75 * np.log(1.5) + 0.25 * np.log(0.5)),  # an empty bin gets nothing
        ([2, 0, 0, 2], 4, 2, 0.0),
    ],
)
def test_divergences_by_hand(counts, k, levels, wanted, recwarn):
    assert kl_divergence(np.array(counts), k, levels) == pytest.approx(wanted, rel=1e-12, abs=1e-15)
    assert not recwarn.list


def test_the_smallest_error_is_that_of_eight_asymmetric_bits_if_nothing_is_said():
    x, mse = np.random.default_rng(0).normal(size=400), METHODS["mse"]
    plain = mse(x)
    assert plain == mse(x, bits=8, symmetric=False, narrow_range=True, candidates=100) == find_range(x, "mse")
    assert all(mse(x, **option) != plain for option in ({"bits": 7}, {"bits": 9}, {"symmetric": True}))
    narrow = {"bits": 2, "symmetric": True}
    assert mse(x, **narrow) == mse(x, narrow_range=True, **narrow) != mse(x, narrow_range=False, **narrow)
    assert find_range(x, "mse", **narrow) == mse(x, **narrow)


@pytest.mark.parametrize("narrow_range", [False, True])
@pytest.mark.parametrize(("more", "search_it"), [(0, by_sweeping), (1, by_searching)])
def test_rows_of_up_to_16384_breakpoints_are_swept(narrow_range, more, search_it):
    search = Search(2, True, narrow_range)
    n = 2**14 // -search.limits[0] + more
    rows = np.random.default_rng(0).normal(size=(2, n))
    lo, hi = METHODS["mse"](rows, bits=2, symmetric=True, narrow_range=narrow_range)
    assert (lo.tolist(), hi.tolist()) == tuple(end.tolist() for end in search_it(rows, search))
    assert by_sweeping(rows, search)[1].tolist() != by_searching(rows, search)[1].tolist()  # near, and not the same


def test_asymmetric_rows_are_searched_however_short_they_are():
    rows = np.array([[[-1.0, -1.0, 0.0, 1.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0, 0.0, 3.0]]])
    lo, hi = METHODS["mse"](rows, bits=2)
    assert lo.shape == hi.shape == (1, 2)
    assert (lo, hi) == (pytest.approx(np.array([[-1.0, 0.0]]), abs=1e-6), pytest.approx(np.array([[2.0, 3.0]])))


def test_logits_of_one_sign_are_clipped_too_and_zeros_have_a_range():
    x = np.random.default_rng(0).normal(size=(50, 5)) ** 2 * 2 + 0.5
    assert cross_entropy(x, bits=3) == pytest.approx((0, 8.676377), rel=1e-6)  # of 19.8
    assert cross_entropy(-x, bits=3) == pytest.approx((-4.870015, 0), rel=1e-6)
    assert choose_qparams(*cross_entropy(np.zeros((2, 3)))).scale == 1


@pytest.mark.parametrize("codes", [{"bits": 4}, {"bits": 4, "symmetric": True}])
@pytest.mark.parametrize("unit", [2.0**-4, 2.0**-10])
def test_the_unit_of_the_values_does_not_matter_to_entropy(codes, unit):
    x = np.append(np.random.default_rng(0).normal(size=2000), [-12.0, 16.0])  # -0.75 … 1 in sixteenths
    wanted = entropy(x, bins=128, **codes)
    assert wanted[1] < 12
    assert entropy(x * unit, bins=128, **codes) == (wanted[0] * unit, wanted[1] * unit)
    for sides, levels in ((x, 7 if "symmetric" in codes else 8), (np.abs(x), 7 if "symmetric" in codes else 15)):
        for signed in (sides, -sides):
            with pytest.raises(ValueError, match=f"bins=2 must be a whole number of at least {levels},"):
                entropy(signed * unit, bins=2, **codes)


def test_zeros_have_no_range_to_lose():
    assert entropy(np.zeros(3)) == entropy(np.zeros(3), symmetric=True) == (0, 0)
    assert kl_divergence(np.zeros(4, int), 3, 2) == np.inf  # nothing is there at all


def test_logits_may_lie_further_apart_than_the_largest_number():
    lo, hi = cross_entropy([[1.7e308, -1.7e308, 1e308, 0.0]], bits=2)
    assert (lo / 1.1e308, hi / 1.1e308) == pytest.approx((-2 / 3, 4 / 3))  # codes tell the two largest apart
    # With a smaller mean the first ranges do not: their last tick but one must come to lie nearer to 1e308.
    lo, hi = cross_entropy([[1.7e308, -1.7e308, 1e308] + [0.0] * 6], bits=2)
    assert (lo / 1e308, hi / 1e308) == pytest.approx((-2 / 3, 4 / 3), rel=0.013)  # ranges are tried 1.3 % apart
