"""The search for the range with the smallest squared error: as good as all of a brute-force grid, and no coin toss."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn import (
    PerAxis,
    PerGroup,
    QParams,
    choose_qparams,
    datasets,
    fake_quantize,
    find_qparams,
    find_range,
    range_search,
    row_search,
)
from qlearn.arrays import block_rows
from qlearn.errors import mse as mse_of
from qlearn.fine_bins import FineBins
from qlearn.gains import best_zero_points
from qlearn.histogram import LogHistogram
from qlearn.range_search import ALIKE, TIE, Search, Tried, clip_grid
from qlearn.sorted_rows import SortedRows
from qlearn.sorted_view import SortedView
from strategies import codes_of

# Theory

# Gauss, one zero level: the best symmetric clip and its error (J. Max 1960 for uniform steps; zero being a level).
THEORY = {2: (1.2240, 0.190174), 3: (1.9523, 0.046860), 4: (2.4739, 0.012889), 5: (2.8987, 0.003693)}


@pytest.fixture(scope="module")
def gaussian() -> np.ndarray:
    """A million normal values without luck: the quantiles at (i + ½) / n."""
    n = 1_000_000
    return scipy.special.ndtri((np.arange(n) + 0.5) / n).astype(np.float32)


@pytest.mark.parametrize("bits", THEORY)
def test_the_best_clip_for_normal_values_is_theory_s(gaussian, bits):
    clip, error = THEORY[bits]
    _, hi = find_range(gaussian, "mse", bits=bits, symmetric=True)
    assert float(hi) == pytest.approx(clip, rel=0.002)  # the last scales tried are 0.1 % apart
    x_hat = fake_quantize(gaussian, choose_qparams(-hi, hi, bits=bits, symmetric=True))
    assert mse_of(gaussian, x_hat) == pytest.approx(error, rel=0.001)  # the quantiles' tails end at 4.9


def test_eight_bits_for_normal_values(gaussian):
    _, hi = find_range(gaussian, "mse", bits=8, symmetric=True)
    assert float(hi) == pytest.approx(3.9205, rel=0.02)  # the minimum is so flat that its place is less certain


@pytest.mark.parametrize(
    ("step", "error", "bits"), [(0.9957, 0.118846, 2), (0.5860, 0.037440, 3), (0.3352, 0.011543, 4)]
)
def test_without_a_zero_level_the_error_is_theory_s_too(gaussian, step, error, bits):
    view = SortedView(gaussian)
    half = (2**bits - 1) / 2  # a zero point between two codes: no tick lies at 0.0
    steps = step * np.linspace(0.97, 1.03, 61)
    errors = view.sse(steps, np.full(61, half), 0, 2**bits - 1) / len(view)
    assert steps[errors.argmin()] == pytest.approx(step, rel=0.01)
    assert errors.min() == pytest.approx(error, rel=0.003)


# As good as brute force


def samples(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    data = {
        "normal": rng.standard_normal(n),
        "relu": np.maximum(rng.standard_normal(n), 0),
        "lopsided": rng.gumbel(size=n),
        "outliers": np.append(rng.standard_normal(n - 2), [40, -90]),
        "negative": -rng.exponential(size=n),
        "bytes": rng.integers(0, 256, n) / 255,
    }
    return {name: x.astype(np.float32) for name, x in data.items()}


def brute_force(x, bits, symmetric, narrow_range=True):
    """The smallest sum of squared errors of 100 scales with each of all zero points."""
    search = Search(bits, symmetric, narrow_range)
    quant_min, quant_max = search.limits
    widest = float(search.scale_of(x.min(), x.max()))
    scales = widest * np.linspace(0.01, 1, 100)
    zeros = np.arange(0, quant_max + 1) if not symmetric else np.zeros(1)
    view = SortedView(x)
    return min(float(view.sse(np.full(len(zeros), s), zeros, quant_min, quant_max).min()) for s in scales)


def error_of(x, lo, hi, **codes):
    """The sum of squared errors in real numbers; x̂ in float32 would add a rounding of its own."""
    q = choose_qparams(lo, hi, **codes)
    return SortedView(x).sse(float(q.scale), int(q.zero_point), q.quant_min, q.quant_max)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n", [row_search.LONG // 2, 2 * row_search.LONG])  # sorted, and counted in bins
def test_the_error_is_at_most_that_of_a_grid_of_all_scales_and_zero_points(bits, symmetric, n):
    if symmetric and bits == 1:
        return  # there are no such codes
    for name, x in samples(n).items():
        found = error_of(x, *find_range(x, "mse", bits=bits, symmetric=symmetric), bits=bits, symmetric=symmetric)
        # 1e-4: the scales that are tried lie 0.1 % apart. Bytes come back at 8 bits but for the rounding of x.
        assert found <= 1.0001 * brute_force(x, bits, symmetric) + 1e-12 * float(x @ x), name


def on_the_grid(x, **codes):
    """The search of earlier versions: ranges cut off at ±t, and the zero point that rounding makes of each."""
    lo, hi = clip_grid(float(x.min()), float(x.max()), float(np.abs(x).mean()))
    return min(error_of(x, a, b, **codes) for a, b in zip(lo.astype(x.dtype), hi.astype(x.dtype), strict=True))


values = st.floats(-64, 64, width=32, allow_subnormal=False) | st.integers(-8, 8).map(float)


@given(hnp.arrays(np.float32, st.integers(1, 200), elements=values), codes_of())
def test_no_error_is_larger_than_with_both_ends_cut_off_alike(x, codes):
    found, wanted = error_of(x, *find_range(x, "mse", **codes), **codes), on_the_grid(x, **codes)
    # Errors this little apart count as equal. And float32 rounds both ends of the range and the scale, to 2⁻²⁴ of them
    # each: three of these move the error by up to 2 · 3 · 2⁻²⁴ · √(Σ(x − x̂)² · Σx²), by Cauchy and Schwarz.
    rounding = 2 * 3 * 2**-24 * np.sqrt(wanted * float(x @ x))
    assert found <= (1 + TIE + ALIKE) * wanted + rounding + 1e-12 * float(x @ x)


@given(
    hnp.arrays(np.float64, st.integers(2, 24), elements=st.floats(-8, 8, width=32)), st.integers(2, 4), st.booleans()
)
def test_the_sweep_finds_the_best_scale_of_all(x, bits, narrow_range):
    codes = {"bits": bits, "symmetric": True, "narrow_range": narrow_range}
    lo, hi = find_range(x, "mse", **codes)
    found = mse_of(x, fake_quantize(x, choose_qparams(lo, hi, **codes)))
    top = max(np.abs(x).max(), 1e-12)
    for clip in top * np.linspace(0.05, 1.5, 400):
        qparams = choose_qparams(-clip, clip, bits=bits, symmetric=True)
        if not narrow_range:
            qparams = QParams(qparams.scale, 0, -qparams.quant_max - 1, qparams.quant_max)
        # Errors up to TIE apart count as equal, and so do those of a rounding.
        assert found <= mse_of(x, fake_quantize(x, qparams)) * (1 + TIE) + 1e-12 * float(x @ x) / len(x)


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=values), st.integers(1, 5), st.floats(0.01, 20))
def test_the_best_zero_point_is_the_best_of_all(x, bits, scale):
    top, view = 2**bits - 1, SortedView(x)
    every = view.sse(np.full(top + 1, scale), np.arange(top + 1.0), 0, top)
    found = view.sse(scale, best_zero_points(view, np.array([scale]), top)[0], 0, top)
    assert found <= every.min() + 1e-12 * (
        float(x @ x) + len(x) * (top * scale) ** 2
    )  # sums of that size are subtracted


def test_more_ticks_than_the_values_need_begin_at_the_values():
    """Three values, four ticks: a scale above that of min-max hits all of them, and of the two places the upper is used."""
    x = np.tile([0.0, 1.0, 2.0], 100)
    lo, hi = find_range(x, "mse", bits=2)
    assert lo == 0 and hi == pytest.approx(3, rel=0.003)  # scales are tried 0.25 % apart
    assert mse_of(x, fake_quantize(x, choose_qparams(lo, hi, bits=2))) < 1e-5
    lo, hi = find_range(-x, "mse", bits=2)
    assert (lo, hi) == pytest.approx((-2, 1), rel=0.003)


def test_mse_is_never_worse_than_min_max():
    for x in samples(5000).values():
        for bits in (2, 3, 4, 8):
            by_mse, by_ends = (find_qparams(x, method, bits=bits) for method in ("mse", "min_max"))
            of_ends = mse_of(x, fake_quantize(x, by_ends))
            assert mse_of(x, fake_quantize(x, by_mse)) <= of_ends * (1 + TIE + ALIKE) + 1e-12 * float(x @ x) / len(x)


# Every view of the values says the same


@pytest.mark.parametrize("shape", ["normal", "relu", "outliers", "negative"])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_bins_never_say_more_than_the_least_nor_less_than_the_most(shape, bits, symmetric):
    x = samples(50_000)[shape]
    search = Search(bits, symmetric)
    scale = search.scales(x.min(), x.max(), np.abs(x).mean())
    bins, view = FineBins(x, 0.49 * scale.min()), SortedView(x)
    zero = np.zeros_like(scale) if symmetric else best_zero_points(view, scale, 2**bits - 1)
    exact = view.sse(scale, zero, *search.limits)
    rounding = 1e-9 * exact  # of float64, where sums of the size of Σ x² are subtracted
    assert (bins.sse(scale, zero, *search.limits) <= exact + rounding).all()
    assert (bins.most(scale, zero, *search.limits) >= exact - rounding).all()
    # With 8,192 bins an octave little is open: steps at 8 bits are as wide as 60 bins or more at the clips that win.
    good = exact <= 2 * exact.min()
    unsure = bins.most(scale, zero, *search.limits) / bins.sse(scale, zero, *search.limits) - 1
    assert unsure[good].max() < 2e-3


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_counting_in_bins_finds_what_sorting_finds(bits, symmetric):
    if symmetric and bits == 1:
        return  # there are no such codes
    for name, x in samples(2 * row_search.LONG).items():
        counted = find_range(x, "mse", bits=bits, symmetric=symmetric)
        view, search = SortedView(x), Search(bits, symmetric)
        best = search.best(view, search.tried(view, x.min(), x.max(), float(np.abs(x).mean(dtype=np.float64))))
        as_sorted = [end[0] for end in search.range_of(*best, np.float32)]
        # The finer grid is laid around a minimum that the bins know up to their slack: its neighbour may be taken.
        assert counted == pytest.approx(as_sorted, rel=3e-3), name


@pytest.mark.parametrize("kind", [SortedView, LogHistogram.of])
def test_rows_are_what_each_row_is_alone(kind):
    rows = np.random.default_rng(0).standard_t(3, size=(5, 300))
    t = np.linspace(-9, 9, 40) * np.ones((5, 1))
    together = SortedRows(rows).gains(t)
    for row, thresholds, gained in zip(rows, t, together, strict=True):
        # The histogram counts in float32, and spreads the few values that share a bin of 0.8 % evenly.
        rel, absolute = (1e-9, 1e-9) if kind is SortedView else (1e-2, 0.05)
        assert gained == pytest.approx(kind(row).gains(thresholds), rel=rel, abs=absolute)


@pytest.mark.parametrize("granularity", [PerAxis(0), PerAxis(1), PerGroup(25), PerGroup(100)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_blocks_get_the_range_that_they_would_get_alone(granularity, symmetric):
    x = np.random.default_rng(0).standard_t(3, size=(6, 100)).astype(np.float32)
    lo, hi = find_range(x, "mse", bits=3, symmetric=symmetric, granularity=granularity)
    rows = block_rows(x, granularity.scale_shape(x.shape))
    each = [find_range(row, "mse", bits=3, symmetric=symmetric) for row in rows]
    assert [tuple(pair) for pair in zip(lo.reshape(-1), hi.reshape(-1), strict=True)] == each
    tensor = find_range(torch.from_numpy(x), "mse", bits=3, symmetric=symmetric, granularity=granularity)
    assert np.array_equal(tensor[1].numpy(), hi)


@given(hnp.arrays(np.int8, 100, elements=st.integers(-64, 64)).map(lambda n: n / 16), st.integers(2, 5))
def test_on_dyadic_numbers_the_sorted_error_is_exact(x, bits):
    """Eighths and sixteenths: every product and sum is exact in float64, so both ways must give the same bits."""
    for scale in (0.125, 0.25, 0.5):
        for zero_point in (0, 3, 2**bits - 1):
            zero_point = min(zero_point, 2**bits - 1)
            x_hat = scale * (np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1) - zero_point)
            assert SortedView(x).sse(scale, zero_point, 0, 2**bits - 1) == np.sum((x - x_hat) ** 2)


# The range and the quantizer


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=values), codes_of(st.integers(1, 16)))
def test_the_range_ends_at_the_first_and_the_last_tick(x, codes):
    lo, hi = find_range(x, "mse", **codes)
    q = choose_qparams(lo, hi, **codes)
    if lo == hi == 0:  # nothing but zeros
        assert not x.any()
        return
    # The scale is that of the search up to the rounding of both ends; ends of many steps are long sums of it.
    assert float(lo) == pytest.approx(float(q.scale) * (q.quant_min - int(q.zero_point)), rel=3e-7)
    assert float(hi) == pytest.approx(float(q.scale) * (q.quant_max - int(q.zero_point)), rel=3e-7)


@pytest.mark.parametrize("bits", [1, 4, 8, 13, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", [1e-300, 1e-38, 1e-20, 1.0, 1e30, 1e300])
def test_tiny_and_huge_values_are_searched_alike(bits, dtype, unit):
    if not float(np.finfo(dtype).tiny) < unit < float(np.finfo(dtype).max) / 100:
        return  # x has no such values
    x = np.random.default_rng(0).standard_normal(400)
    for codes in ({"bits": bits}, {"bits": max(bits, 2), "symmetric": True}):
        _, wanted = find_range(x, "mse", **codes)
        _, hi = find_range((x * unit).astype(dtype), "mse", **codes)
        assert float(hi) / unit == pytest.approx(float(wanted), rel=1e-3)  # float32 data are other data, by 1e-7


def test_the_largest_numbers_have_a_range():
    for dtype in (np.float32, np.float64):
        top = np.finfo(dtype).max
        for bits in (1, 2, 8, 16):
            lo, hi = find_range(np.array([-top, 0, top / 3, top], dtype), "mse", bits=bits)
            assert -top <= lo <= 0 <= hi <= top and lo < hi


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_long_row_up_to_the_largest_float32_has_the_range_of_the_same_row_in_other_units(symmetric):
    top = np.finfo(np.float32).max
    x = np.random.default_rng(0).uniform(-1, 1, 2 * row_search.LONG).astype(np.float32)
    x[:2] = 1, -1
    for bits in (2, 8):
        codes = {"bits": bits, "symmetric": symmetric}
        wanted = np.clip(np.array(find_range(x, "mse", **codes), np.float64), -1, 1)  # no end lies beyond the type's
        with np.errstate(all="raise"):
            found = find_range(x * top, "mse", **codes)
        assert np.array(found, np.float64) / float(top) == pytest.approx(wanted, rel=2e-3)  # other float32, other bins


def test_a_single_number_has_a_range():
    assert find_range(5.0, "mse") == find_range([5.0], "mse")
    lo, hi = find_range(torch.tensor(5.0), "mse")
    assert lo == 0 and hi == 5


# The search, step by step


class Valley:
    """A view of rows whose error depends on the scale alone: the smallest is at a scale of our choice."""

    def __init__(self, lowest, count=1, squares=1.0):
        self.lowest, self.count = np.reshape(lowest, (-1, 1)), count
        self.squares, self.asked = np.full(self.lowest.shape, squares), 0

    def sse(self, scale, zero_point, quant_min, quant_max):
        self.asked += 1
        assert self.asked < 20  # a search that goes on for ever
        return np.log(scale / self.lowest) ** 2


def test_the_grid_by_hand():
    for lo, hi, mean in ((-16.0, 1.0, 0.25), (-1.0, 16.0, 0.25)):
        clips = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
        low, high = clip_grid(lo, hi, mean, 7)
        assert low == pytest.approx([max(lo, -t) for t in clips], rel=1e-14)
        assert high == pytest.approx([min(hi, t) for t in clips], rel=1e-14)
    for largest in np.random.default_rng(0).uniform(1, 2, 50):  # powers are rounded, and the last range is not
        assert [end[-1] for end in clip_grid(-largest, 1.0, 0.3)] == [-largest, 1.0]
    with np.errstate(all="raise"):
        assert [end.tolist() for end in clip_grid(0.0, 0.0, 0.0, 3)] == [[0, 0, 0], [0, 0, 0]]


def test_eight_bits_are_asymmetric_and_a_hundred_scales_are_tried_if_nothing_is_said():
    assert Search(8) == Search(8, symmetric=False, narrow_range=True, candidates=100)
    assert len(clip_grid(-1.0, 1.0, 0.5)[0]) == 100
    search, tried = Search(8), Search(3, True).tried(Valley([1.0]), -1.0, 1.0, 0.5)
    for thing in (search, tried):
        with pytest.raises(AttributeError):
            thing.scale = thing.bits = 1


@pytest.mark.parametrize(
    ("search", "lo", "hi", "wanted"),
    [
        (Search(2), -1.0, 2.0, 1.0),
        (Search(2), 0.5, 3.0, 1.0),
        (Search(2), -3.0, -0.5, 1.0),
        (Search(3), -3.0, 0.5, 0.5),
        (Search(2), 0.0, 0.0, 1.0),
        (Search(2, True), -3.0, 1.0, 3.0),
        (Search(2, True), -1.0, 3.0, 3.0),
        (Search(2, True), 0.25, 0.5, 0.5),
        (Search(2, True), -0.5, -0.25, 0.5),
        (Search(2, True, False), -3.0, 1.0, 1.5),
        (Search(2, True, False), -3.0, 2.0, 2.0),
        (Search(3, True), -3.0, 6.0, 2.0),
        (Search(2, True), 0.0, 0.0, 1.0),
    ],
)
def test_scales_of_ranges_by_hand(search, lo, hi, wanted):
    assert search.scale_of(lo, hi) == wanted


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_first_scales_are_those_of_140_ranges(symmetric):
    rows = [(-1.0, 16.0, 1.0), (-9.0, 2.0, 0.5), (0.5, 4.0, 2.0), (-4.0, -0.5, 2.0)]
    wanted = []
    for lo, hi, mean in rows:
        clips = [mean * 2 ** (k / 20 - 1) for k in range(20)]
        clips += [mean ** (1 - i / 99) * max(-lo, hi) ** (i / 99) for i in range(100)]
        ranges = [(min(max(lo, -t), 0), max(min(hi, t), 0)) for t in clips]
        scales = [max(-low, high) / 3 if symmetric else (high - low) / 7 for low, high in ranges]
        wanted.append(scales + [scales[-1] * 2 ** (k / 20) for k in range(1, 21)])
    found = Search(3, symmetric).scales(*np.transpose(rows))
    assert found == pytest.approx(np.array(wanted), rel=1e-12)  # roots and powers
    assert Search(3, symmetric).scales(*rows[0]).tolist() == found[:1].tolist()


def rounds_of(scales, lowest, count):
    """The scales that are tried for one row, round after round, and whether that is enough."""
    steps, beside, parts = 2, 1.02, 32 if count < 2**16 else 96
    while True:
        i = min(range(len(scales)), key=lambda k: abs(np.log(scales[k] / lowest)))
        low = min(scales[max(i - steps, 0)], scales[i] / beside)
        high = max(scales[min(i + steps, len(scales) - 1)], scales[i] * beside)
        scales = [low * (high / low) ** (k / parts) for k in range(parts + 1)]
        yield scales, np.log(high / low) / parts <= 0.0025
        steps, beside, parts = 1, 1, 4


@pytest.mark.parametrize("count", [1, 2**16 - 1, 2**16, 2**20])
@pytest.mark.parametrize("largest", [1.5, 1e3, 1e9])
def test_finer_grids_are_laid_around_the_best_scale(count, largest):
    search = Search(3, symmetric=True)
    rows = np.array([[-largest, 1.0, 1.0]] * 8 + [[-3.0, 7.0, 2.0]])
    first = search.scales(*rows.T)
    lowest = first[range(9), [0, 1, 2, 3, 60, 136, 138, 139, 60]] * 1.001
    with np.errstate(all="raise"):
        found = search.tried(Valley(lowest, count), *rows.T)
    each: list[list[list[float]]] = []
    for scales, best in zip(first.tolist(), lowest, strict=True):
        each.append([scales])
        for finer, enough in rounds_of(scales, best, count):
            each[-1].append(finer)
            if enough:
                break
    rounds = max(len(parts) for parts in each)
    for i, parts in enumerate(each):
        best = min(parts[-1], key=lambda scale: abs(np.log(scale / lowest[i])))
        again = [best] * (5 * (rounds - len(parts)))  # a row that is done stays as it is
        assert found.scale[i] == pytest.approx(np.sort(np.concatenate([*parts, again])), rel=1e-11)  # roots of powers
    assert found.sse == pytest.approx(np.log(found.scale / lowest[:, None]) ** 2)
    assert not found.zero_point.any()


def test_steps_that_are_fine_enough_are_not_cut_again(monkeypatch):
    search, grid = Search(3, symmetric=True), (-9.0, 1.0, 1.0)
    first = search.scales(*grid)[0]
    monkeypatch.setattr(range_search, "FINE", np.log(first[62] / first[58]) / 32)
    assert search.tried(Valley(first[60]), *grid).scale.shape == (1, 140 + 33)


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_scale_is_judged_with_its_best_zero_point(symmetric):
    rows = np.random.default_rng(0).gumbel(size=(3, 40))
    view, search = SortedRows(rows), Search(3, symmetric)
    tried = search.tried(view, rows.min(-1), rows.max(-1), np.abs(rows).mean(-1))
    wanted = 0 * tried.scale if symmetric else best_zero_points(view, tried.scale, 7)
    assert (np.diff(tried.scale) >= 0).all() and tried.zero_point.tolist() == wanted.tolist()
    assert tried.sse == pytest.approx(view.sse(tried.scale, wanted, *search.limits), rel=1e-12)


def test_errors_that_count_as_equal():
    search, two = Search(2), Valley([1.0, 1.0], squares=0.0)
    errors = np.array([[9.0, 1 + 1e-6, 1.0], [1.5, 1 + 2e-6, 1.0]])
    assert search.first_of_scales(two, errors).tolist() == [1, 2]
    errors = np.array([[9.0, 1 + 1e-5, 1.0], [1.5, 1 + 2e-5, 1.0]])
    assert search.first_of_zero_points(two, errors).tolist() == [1, 2]
    many, errors = Valley([1.0, 1.0], squares=100.0), np.array([[1.0, 9e-11, 0.0], [1.0, 2e-10, 0.0]])
    assert search.first_of_scales(many, errors).tolist() == [1, 2]
    assert search.first_of_zero_points(many, errors).tolist() == [1, 2]


def test_neighbours_by_hand():
    assert Search(2).neighbours(np.array([[0.0], [1.0], [3.0]])).tolist() == [[0, 0, 1], [0, 1, 2], [2, 3, 3]]


def test_the_best_of_those_tried_by_hand():
    rows = np.array([[-1.0, 0.0, 1.0, 2.0], [-3.0, -2.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-0.5, 0.0, 0.0, 0.25]])
    view, scale = SortedRows(rows), np.array([[0.5, 1.0, 2.0]] * 3 + [[0.125, 0.25, 0.5]])
    for search, wanted in ((Search(2), [1, 3, 0, 2]), (Search(2, True, False), [0, 0, 0, 0])):
        zero_point = np.minimum(np.array(wanted)[:, None] + [0.0, 1.0, 1.0], 3) * (not search.symmetric)
        tried = Tried(scale, zero_point, view.sse(scale, np.array(wanted)[:, None] + 0 * scale, *search.limits))
        found = search.best(view, tried)
        assert [numbers.tolist() for numbers in found] == [[1, 1, 0, 0.25], wanted]
    nothing = Search(2).best(Valley([1.0], squares=0.0), Tried(np.ones((1, 2)), 2 * np.ones((1, 2)), np.ones((1, 2))))
    assert [numbers.tolist() for numbers in nothing] == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("bits", "lo", "hi", "scale", "zero_points", "settled"),
    [
        (2, -1.0, 2.0, 1.0, [1, 2], (-1.0, 2.0)),
        (2, -1.0, 1.0, 2 / 3, [1, 2], (-4 / 3, 2 / 3)),
        (2, 0.0, 3.0, 1.0, [0, 1], (0.0, 3.0)),
        (2, 2.0, 3.0, 1.0, [0, 1], (0.0, 3.0)),
        (2, -3.0, -2.0, 1.0, [3, 3], (-3.0, 0.0)),
        (2, -1.4996, 1.5004, 1.0, [1, 2], (-2.0, 1.0)),  # a thousandth below a half counts as a half
        (2, -1.498, 1.502, 1.0, [1, 2], (-1.0, 2.0)),
        (3, -0.9992, 6.0008, 1.0, [1, 2], (-1.0, 6.0)),  # and one below a code as that code
        (3, -0.998, 6.002, 1.0, [0, 1], (-1.0, 6.0)),
        (4, -1e-322, 0.0, 5e-324, [15, 15], (-15 * 5e-324, 0.0)),  # the smallest scale there is
    ],
)
def test_zero_points_beside_a_range_by_hand(bits, lo, hi, scale, zero_points, settled):
    twice = [numbers.tolist() for numbers in Search(bits).quantizers_of(np.array([lo, -3.0]), np.array([hi, 3.0]))]
    other = 6 / (2**bits - 1)
    middle = 2 ** (bits - 1) - 1
    assert twice == [pytest.approx([scale] * 2 + [other] * 2, rel=1e-14), [*zero_points, middle, middle + 1]]
    assert Search(bits).settled(lo, hi) == pytest.approx(settled, rel=1e-14)


def test_symmetric_codes_have_the_zero_point_0():
    scale, zero_point = Search(2, True).quantizers_of(np.array([-3.0, -1.0]), np.array([3.0, 2.0]))
    assert (scale.tolist(), zero_point.tolist()) == ([3.0, 2.0], [0.0, 0.0])


def test_ranges_by_hand():
    search = Search(2)
    lo, hi = search.range_of(np.array([1.0, 0.5, 0.0]), np.array([1.0, 0.0, 2.0]), np.float64)
    assert (lo.tolist(), hi.tolist()) == ([-1.0, 0.0, 0.0], [2.0, 1.5, 0.0]) and not np.signbit(lo[1:]).any()
    lo, hi = search.range_of(np.array([1.0, 1.0]), np.array([1.0, 2.0]), np.float32, np.array([3, -1]))
    assert (lo.tolist(), hi.tolist()) == ([-8.0, -1.0], [16.0, 0.5]) and lo.dtype == hi.dtype == np.float32
    top = float(np.finfo(np.float32).max)
    lo, hi = search.range_of(np.array([top, 1e300]), np.array([1.0, 1.0]), np.float32)
    assert (lo.tolist(), hi.tolist()) == ([-top, -top], [top, top])


# No coin toss


def logits_of_the_mlp() -> np.ndarray:
    """From products in float64, rounded: the same on every processor."""
    weights, images = datasets.trained("mlp"), datasets.mnist_arrays().calibration.images
    x = images.reshape(len(images), 784) / 255
    for name in ("linear1", "linear2", "linear3"):
        x = x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]
        x = x if name == "linear3" else np.maximum(x, 0)
    return x.astype(np.float32)


def perturbed(x, seed):
    """The same data to whoever measures them: another last bit, another unit, another order."""
    rng = np.random.default_rng(seed)
    noisy = x * (1 + 1e-7 * rng.choice([-1, 0, 1], x.shape))
    return [
        noisy.astype(x.dtype),
        (x * np.float64(1 + 1e-7 * rng.choice([-1, 1]))).astype(x.dtype),
        rng.permutation(noisy.reshape(-1) if x.ndim == 1 else noisy).astype(x.dtype),
    ][seed % 3]


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    half = rng.standard_normal(4000).astype(np.float32)
    return {
        "logits": logits_of_the_mlp(),
        "the same on both sides": np.concatenate([half, -half]),
        "evenly spaced": np.linspace(-1, 1, 1001, dtype=np.float32),
        "sixteenths": (rng.integers(-40, 90, 3000) / 16).astype(np.float32),
        "long": rng.standard_normal(2 * row_search.LONG, dtype=np.float32),
    }


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", ["mse", "cross_entropy", "entropy", "percentile"])
def test_a_last_bit_decides_nothing(tensors, method, bits, symmetric):
    for name, x in tensors.items():
        if method == "cross_entropy" and x.ndim == 1:
            continue  # no logits
        if method == "percentile" and name in ("the same on both sides", "evenly spaced"):
            continue  # both ends alike: −lo / scale is a tie, which the formula of the zero point leaves to the data
        wanted = find_range(x, method, bits=bits, symmetric=symmetric)
        zero_point = choose_qparams(*wanted, bits=bits, symmetric=symmetric).zero_point
        for seed in range(3 if name == "long" or method != "mse" else 9):
            found = find_range(perturbed(x, seed), method, bits=bits, symmetric=symmetric)
            assert choose_qparams(*found, bits=bits, symmetric=symmetric).zero_point == zero_point, name
            assert found == pytest.approx(wanted, rel=0.01), name


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_last_bit_decides_nothing_for_groups(symmetric):
    x = (np.random.default_rng(0).integers(-60, 61, size=(32, 64)) / 8).astype(np.float32)
    for bits in (2, 4):  # at 8 bits the last bits of 32 values with equal ends change their error by more than ALIKE
        codes = {"bits": bits, "symmetric": symmetric}
        wanted = find_qparams(x, "mse", granularity=PerGroup(32), **codes)
        for seed in range(0, 4, 3):
            found = find_qparams(perturbed(x, seed), "mse", granularity=PerGroup(32), **codes)
            assert np.array_equal(found.zero_point, wanted.zero_point)
            assert found.scale == pytest.approx(wanted.scale, rel=0.01)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_curve_of_the_best_zero_points_has_no_teeth(tensors, bits):
    """The smallest error of each scale is continuous in the scale: no step from one point to the next but a small one."""
    view = SortedView(tensors["logits"])
    scale = 50 / 2**bits * np.geomspace(0.3, 1, 4000)
    errors = np.sqrt(view.sse(scale, best_zero_points(view, scale, 2**bits - 1), 0, 2**bits - 1))
    # √SSE is the distance of x to the ticks' lattice: scaling it by 0.03 % moves it by at most 0.03 % of |x|.
    assert np.abs(np.diff(errors)).max() <= 1.01 * np.diff(np.log(scale)).max() * np.sqrt(view.squares)
