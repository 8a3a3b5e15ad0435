"""Values in bins against sums over all values, number by number, and the search that they serve."""

from __future__ import annotations

import numpy as np
import pytest

from qlearn import arrays, fine_bins
from qlearn.fine_bins import FineBins, search_long
from qlearn.range_search import ALIKE, Search, Tried
from qlearn.sorted_view import SortedView

TOP = float(np.finfo(np.float32).max)
WIDTH = 2.0**-13  # of the bins from 1 to 2


def number_of(magnitude: float) -> int:
    """The bin of a positive number, counted from that of 0: the upper 13 of its fraction bits."""
    mantissa, exponent = np.frexp(magnitude)
    return int((exponent + 125) * 2**13 + np.floor((mantissa * 2 - 1) * 2**13) + 2**13)


def edge_of(number: int) -> float:
    """Where a bin begins."""
    return min(float(np.ldexp(1 + number % 2**13 / 2**13, number // 2**13 - 127)), TOP)


def bounds(x, t, smallest):
    """The least and the most that the gain of a threshold can be."""
    first = number_of(smallest)

    def place(value):
        steps = 0 if abs(value) < smallest else number_of(abs(value)) - first
        return -steps if value < 0 else steps

    below = sum(t - value for value in x if place(value) < place(t))
    inside = [value for value in x if place(value) == place(t)]
    near, far = edge_of(abs(place(t)) + first), edge_of(abs(place(t)) + first + 1)
    low, high = (near, far) if place(t) > 0 else (-far, -near) if place(t) < 0 else (-far, far)
    at_the_low_end = (len(inside) * high - sum(inside)) / (high - low) if inside else 0
    return below + max(len(inside) * t - sum(inside), 0), below + at_the_low_end * (t - low)


@pytest.fixture
def clusters() -> np.ndarray:
    """Some values in each bin that counts, the bin of 0 and those beside it with it."""
    starts = np.array([0.25, 0.25 + WIDTH / 4, 0.3125, 1.0, 1.0 + WIDTH, 1.75, 2.0, 3.0, 100.0])
    values = (starts[:, None] * (1 + np.array([0, 1, 2, 5]) * WIDTH / 8)).reshape(-1)
    return np.concatenate([values, -values, [0.0, 0.01, -0.02, -0.02, 0.03]]).astype(np.float32)


@pytest.mark.parametrize("slab", [10, 1000])
def test_gains_lie_between_the_bounds_of_their_bins(clusters, slab, monkeypatch):
    monkeypatch.setattr(arrays, "SLAB", slab)
    x = clusters.tolist()
    bins = FineBins(clusters, smallest=0.25)
    t = np.array([*(v for v in x if abs(v) >= 0.25), 0.5, -0.5, 2.5, -50.0, 1000.0, -1000.0, *np.add(x[12:20], 2**-15)])
    wanted = np.array([bounds(x, threshold, 0.25) for threshold in t.tolist()])
    assert bins.least(t) == pytest.approx(wanted[:, 0], rel=1e-12, abs=1e-13)  # the rounding of sums of up to 10,000
    assert bins.gains(t) == pytest.approx(wanted[:, 1], rel=1e-12, abs=1e-13)
    assert (wanted[:, 0] < wanted[:, 1]).sum() > 40
    assert bins.count == len(x)
    assert bins.total == pytest.approx(sum(x)) and bins.squares == pytest.approx(sum(v * v for v in x))


def test_gains_by_hand():
    x = np.float32([1.0, 1.0 + WIDTH / 2, 3.0])
    for values in (x, x[::-1].copy()):
        bins = FineBins(values, smallest=0.25)
        t = np.array([1 + WIDTH / 4, 1 + WIDTH / 2, 2.0])
        assert bins.least(t).tolist() == [0.0, WIDTH / 2, 2 - WIDTH / 2]
        assert bins.gains(t).tolist() == [1.5 * WIDTH / 4, 1.5 * WIDTH / 2, 2 - WIDTH / 2]  # one and a half at 1
    bins = FineBins(-x, smallest=0.25)
    assert bins.least(np.array([-1.0, -1 - WIDTH / 4])).tolist() == [2 + WIDTH / 2, 2 - WIDTH / 4]
    assert bins.gains(np.array([-1 - WIDTH / 4])).tolist() == [2 - WIDTH / 4 + 0.5 * 0.75 * WIDTH]


@pytest.mark.parametrize(
    ("x", "smallest", "highest"),
    [
        ([1.0, 2.0], 1.0, 8193),
        ([-2.0, 1.0], 1.0, 8193),
        ([-1.0, 0.0], 1.0, 1),
        ([1.0, 1.0 + WIDTH], 1.0, 2),
        ([0.25, -0.125], 1.0, 1),
    ],
)
def test_there_are_8192_bins_an_octave_and_an_empty_one(x, smallest, highest):
    bins = FineBins(np.float32(x), smallest)
    assert len(bins.counts) == len(bins.sums) == 2 * highest + 1
    assert bins.counts[0] == bins.counts[-1] == 0 and bins.counts.sum() == 2
    assert bins.gains(np.array([64.0])).tolist() == [128 - sum(x)]


def test_bins_end_at_the_largest_number():
    x = np.float32([-TOP, TOP])
    bins = FineBins(x, smallest=TOP / 2)
    step = 2.0**104  # from the largest number to the one below
    with np.errstate(divide="raise", invalid="raise", over="ignore"):
        assert bins.gains(np.array([TOP, 2 * TOP, -2 * TOP])).tolist() == [2 * TOP, 4 * TOP, 0.0]
        assert bins.gains(np.array([TOP - step, -TOP + step])).tolist() == [2 * TOP - step, step]


def test_the_most_that_an_error_can_be():
    unit = 0.5 * (1 + WIDTH * 3 / 8)  # so that ties lie within bins
    ties = unit * (np.arange(-9, 10) + 0.5)  # of all codes, and of some more
    x = np.float32([tie * (1 + k * WIDTH / 16) for tie in ties for k in (-2, -1, 1, 2, 3)])
    bins = FineBins(x, smallest=0.2)
    scale, zero_point = np.array([[unit, 3 * unit]]), np.array([[1.0, 2.0]])
    found = bins.most(scale, zero_point, 0, 3), bins.sse(scale, zero_point, 0, 3)
    for i, (s, z) in enumerate(((unit, 1), (3 * unit, 2))):
        last = s * (3 - z)
        gains = np.array([bounds(x.tolist(), s * (q - z - 0.5), 0.2) for q in (1, 2, 3)]).sum(0)
        most, least = np.sum((x - np.float64(last)) ** 2) - 2 * s * gains
        assert most > least + 1e-5
        assert (found[0][0, i], found[1][0, i]) == (pytest.approx(most, rel=1e-12), pytest.approx(least, rel=1e-12))


# Rivals


class Known:
    """Bins that know the largest error of each scale."""

    def __init__(self, most):
        self.known = most

    def most(self, scale, zero_point, quant_min, quant_max):
        return np.array([[self.known[int(s)] for s in scale[0]]])


@pytest.mark.parametrize(("place", "counts"), [(0, True), (15, True), (16, False)])
def test_rivals_are_those_that_may_be_as_good_as_the_best_of_16(place, counts):
    most = 5.0 + np.arange(20.0)[::-1]
    most[place] = 1.0
    limit = 1.0 if counts else most[:16].min()
    sse = np.sort([*np.linspace(0.5, 0.9, 17), limit * (1 + ALIKE), np.nextafter(limit * (1 + ALIKE), 99), 99])
    order = np.random.default_rng(0).permutation(20)
    tried = Tried(np.arange(20.0)[None, order], np.arange(20.0)[None, order] + 0.5, sse[None, order])
    found = fine_bins._rivals(Known(most), tried, Search(2))
    wanted = [i for i in order if sse[i] <= limit * (1 + ALIKE)]
    assert len(wanted) == 18
    assert found.scale.tolist() == [wanted]
    assert found.zero_point.tolist() == [[i + 0.5 for i in wanted]] and found.sse.tolist() == [sse[wanted].tolist()]


@pytest.mark.parametrize(("tried", "by_sorting"), [(3, False), (16, False), (17, True)])
def test_up_to_16_rivals_are_judged_by_quantizing(tried, by_sorting, monkeypatch):
    x = (np.random.default_rng(0).integers(-90, 91, 300) / 16).astype(np.float32)
    sorted_views = []
    monkeypatch.setattr(fine_bins, "SortedView", lambda values: sorted_views.append(1) or SortedView(values))
    monkeypatch.setattr(arrays, "SLAB", 70)
    scale, zero_point = np.resize([0.5, 1.0, 0.25], (1, tried)), np.resize([3.0, 0.0, 5.0, 7.0], (1, tried))
    x_hat = scale[0, :, None] * (np.clip(np.rint(x / scale[0, :, None]), -zero_point.T, 7 - zero_point.T))
    found = fine_bins._judged(x, Tried(scale, zero_point, scale), Search(3))
    assert found.tolist() == [((x - x_hat) ** 2).sum(-1).tolist()]  # dyadic numbers: every sum is exact
    assert sorted_views == [1] * by_sorting


# The search


def by_sorting(x, search):
    view = SortedView(x)
    tried = search.tried(view, float(x.min()), float(x.max()), float(np.abs(x).mean(dtype=np.float64)))
    scale, zero_point = search.best(view, tried)
    return scale.item(), zero_point.item()


@pytest.mark.parametrize("search", [Search(1), Search(2), Search(3), Search(2, True), Search(3, True, False)])
@pytest.mark.parametrize("shift", [-3, 0.5, 2])
def test_the_search_finds_what_a_search_on_sorted_values_finds(search, shift):
    x = np.random.default_rng(0).gumbel(size=4000).astype(np.float32) + np.float32(shift)
    found = search_long(x, search)
    assert all(type(number) is float for number in found)
    assert found == pytest.approx(by_sorting(x, search), rel=1e-12)


def test_the_search_begins_with_the_ends_and_the_mean_magnitude(monkeypatch):
    asked = []

    class Noting(Search):
        def tried(self, view, lo, hi, mean):
            asked.append((lo, hi, mean))
            return super().tried(view, lo, hi, mean)

    class NotingBins(FineBins):
        def __init__(self, x, smallest):
            asked.append(smallest)
            super().__init__(x, smallest)

    monkeypatch.setattr(arrays, "SLAB", 300)
    monkeypatch.setattr(fine_bins, "FineBins", NotingBins)
    x = (np.random.default_rng(0).integers(-90, 200, 1024) / 16).astype(np.float32)
    search_long(x, Noting(3))
    first = float(x.min()), float(x.max()), float(np.abs(x).mean(dtype=np.float64))
    assert asked == [0.49 * Search(3).scales(*first).min(), first]


@pytest.mark.parametrize("power", [-120, -100, -60, 100, 120])
@pytest.mark.parametrize("search", [Search(3, True), Search(2)])
def test_the_unit_of_the_values_does_not_matter(search, power):
    """The square of an error of 2⁻¹⁰⁰ is 0 in float32, and that of one of 2¹⁰⁰ infinite."""
    x = np.random.default_rng(1).standard_normal(5000, dtype=np.float32)
    scale, zero_point = search_long(x, search)
    assert search_long(np.ldexp(x, power), search) == (pytest.approx(scale * 2.0**power, rel=1e-12), zero_point)


def test_zeros_have_no_scale_and_a_sum_of_squares_of_one_has():
    assert search_long(np.zeros(50, np.float32), Search(2)) == (0.0, 0.0)
    assert search_long(np.float32([0.5, -0.5, 0.5, -0.5]), Search(2, True)) == pytest.approx((0.5, 0.0), rel=2e-3)


@pytest.mark.parametrize("more", [-1e-6, 0, 1e-6])
def test_of_neighbouring_zero_points_that_are_as_good_the_smaller_is_taken(more):
    half = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    x = np.concatenate([half, -half * np.float32(1 + more)])
    scale, zero_point = search_long(x, Search(3))
    errors = SortedView(x).sse(np.full(2, scale), np.array([3.0, 4.0]), 0, 7)
    assert errors[0] == pytest.approx(errors[1], rel=ALIKE) and (errors[0] > errors[1]) == (more < 0)
    assert zero_point == 3


def test_symmetric_codes_keep_the_zero_point_0():
    x = np.float32([-1.0] * 70 + [-2.0] * 30)  # with the zero point 1 both had a tick nearby
    assert search_long(x, Search(2, True)) == pytest.approx((1.3, 0.0), rel=2e-3)  # scales are tried 0.25 % apart
