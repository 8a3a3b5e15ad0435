"""Observers: order and split of the data do not matter, memory is bounded, and the ranges are those of all the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlearn.observers.histograms
from qlearn import PerAxis, PerGroup, PerTensor, QuantConfig, choose_qparams, fake_quantize, find_qparams, find_range
from qlearn.errors import mse as mse_of
from qlearn.histogram import COUNTED_FROM, LogHistogram, _by_sorting
from qlearn.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
    make_observer,
)
from qlearn.sorted_view import SortedView
from strategies import arrays

# Everything that float32 has: −0.0, subnormal numbers, the largest ones.
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)

MERGEABLE = [
    (MinMaxObserver, "min_max"),
    (HistogramObserver, "mse"),
    (PercentileObserver, "percentile"),
    (MSEObserver, "mse"),
    (EntropyObserver, "entropy"),
]
PER_CHANNEL = [pair for pair in MERGEABLE if pair[0] is not EntropyObserver]


def state(observer):
    """All that an observer remembers, byte by byte."""
    parts = [observer.lo, observer.hi]
    for histogram in getattr(observer, "histograms", ()):
        parts += [histogram.first, histogram.last, histogram.counts]
    parts += [getattr(observer, name) for name in ("smallest", "largest") if hasattr(observer, name)]
    return [(np.asarray(part).dtype.str, np.asarray(part).shape, np.asarray(part).tobytes()) for part in parts]


@pytest.mark.parametrize(("kind", "method"), [*MERGEABLE, (MovingAverageObserver, "moving_average")])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0)])
def test_a_state_that_is_handed_on_is_the_state(kind, method, granularity):
    if kind is EntropyObserver and granularity != PerTensor():
        return
    x = np.random.default_rng(0).standard_normal((3, 400), dtype=np.float32)
    observer = kind(QuantConfig(symmetric=True, method=method, granularity=granularity))
    assert observer.state() == {} and not observer.with_state({}).seen
    observer.observe(x)
    other = kind(observer.config).with_state(observer.state())
    assert state(other) == state(observer) and type(other.lo) is type(observer.lo)
    assert state(other.observe(x + 1)) == state(observer.observe(x + 1)) and repr(other) == repr(observer)


def test_a_moving_average_hands_its_constant_on():
    assert MovingAverageObserver(averaging_constant=0.5).with_state({}).averaging_constant == 0.5


def listed(histogram):
    """The list of values that a histogram stands for, written out."""
    bins = zip(histogram.first.astype(float), histogram.last.astype(float), histogram.counts, strict=True)
    return np.concatenate([np.linspace(first, last, int(count)) for first, last, count in bins])


# Order and shards


@pytest.mark.parametrize(("kind", "method"), MERGEABLE)
@given(x=arrays(finite, dims=2), shards=st.integers(1, 4), random=st.randoms(use_true_random=False))
def test_order_and_shards_leave_no_trace(kind, method, x, shards, random):
    config = QuantConfig(bits=4, method=method)
    pieces = list(x.reshape(-1, 1))
    random.shuffle(pieces)
    workers = [kind(config) for _ in range(shards)]
    for piece in pieces:
        random.choice(workers).observe(piece)
    while len(workers) > 1:  # any two, either way round: merging is associative and commutative
        random.shuffle(workers)
        workers.append(workers.pop().merge(workers.pop()))
    assert state(workers[0]) == state(kind(config).observe(x))


@pytest.mark.parametrize(("kind", "method"), PER_CHANNEL)
@given(x=arrays(finite, dims=3), random=st.randoms(use_true_random=False))
def test_so_it_is_for_channels(kind, method, x, random):
    x = x.reshape(len(x), -1, 1)
    config = QuantConfig(method=method, granularity=PerAxis(1))
    pieces = [x[i : i + 1] for i in range(len(x))]
    random.shuffle(pieces)
    cut = random.randrange(len(pieces) + 1)
    left, right = kind(config), kind(config)
    for worker, part in ((left, pieces[:cut]), (right, pieces[cut:])):
        for piece in part:
            worker.observe(piece)
    whole = kind(config).observe(x)
    assert state(left.merge(right)) == state(right.merge(left)) == state(whole)
    assert whole.lo.shape == (1, x.shape[1], 1)


def test_groups_merge_too():
    config = QuantConfig(granularity=PerGroup(2))
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    one, two, three = (MinMaxObserver(config).observe(part) for part in x)
    assert state(one.merge(two).merge(three)) == state(three.merge(one.merge(two)))
    assert np.array_equal(one.merge(two).lo, np.minimum(one.lo, two.lo))


@pytest.mark.parametrize(("kind", "method"), PER_CHANNEL)
def test_numpy_and_pytorch_remember_the_same(kind, method):
    x = np.random.default_rng(0).standard_t(3, size=(50, 4, 6)).astype(np.float32)
    for granularity in (PerTensor(), PerAxis(1)):
        config = QuantConfig(bits=5, method=method, granularity=granularity)
        of_array, of_tensor = kind(config).observe(x), kind(config).observe(torch.from_numpy(x))
        assert state(of_array) == state(of_tensor)
        assert isinstance(of_tensor.qparams().scale, torch.Tensor)
        assert of_tensor.qparams().scale.dtype == torch.float32
        assert of_array.qparams() == of_tensor.qparams()


def test_merging_leaves_both_as_they_were():
    config = QuantConfig(method="percentile")
    one = PercentileObserver(config).observe(np.arange(4.0))
    two = PercentileObserver(config).observe(np.arange(9.0))
    before = state(one), state(two)
    merged = one.merge(two)
    merged.observe(np.array([-5.0]))
    assert (state(one), state(two)) == before
    assert state(one.merge(PercentileObserver(config))) == state(one)
    assert not PercentileObserver(config).merge(PercentileObserver(config)).seen


# The histogram


@given(arrays(finite))
def test_a_bin_holds_the_numbers_that_agree_in_eight_binary_digits(x):
    x = x[np.abs(x) >= 2.0**-126] + 0.0
    if not x.size:
        return
    fraction, exponent = np.frexp(x.astype(np.float64))
    truncated = np.trunc(fraction * 256) / 256 * 2.0**exponent
    histogram = LogHistogram.of(x)
    values, counts = np.unique(truncated, return_counts=True)
    assert np.array_equal(histogram.counts, counts)
    assert np.array_equal(histogram.first, [x[truncated == value].min() for value in values])
    assert np.array_equal(histogram.last, [x[truncated == value].max() for value in values])


def test_zero_has_a_bin_of_its_own():
    x = np.float32([-1e-38, -0.0, 0.0, 0.0, 1e-38])
    assert LogHistogram.of(x).counts.tolist() == [1, 3, 1]


def test_histograms_of_the_same_values_are_equal():
    x = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    whole, parts = LogHistogram.of(x), LogHistogram.of(x[:300]) + LogHistogram.of(x[300:])
    assert whole == parts and hash(whole) == hash(parts)
    assert whole != LogHistogram.of(x[1:]) and whole != LogHistogram.of(2 * x) and whole != 1


@given(hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(1, 2, width=32)), st.data())
def test_the_histogram_answers_for_the_list_it_stands_for(x, data):
    """All in one octave, so that bins hold many values and thresholds cut them."""
    x *= np.resize(np.float32([1, -1, -4]), len(x))
    histogram = LogHistogram.of(x)
    values = listed(histogram)
    assert len(histogram) == len(values) == len(x)
    thresholds = data.draw(hnp.arrays(np.float64, 5, elements=st.floats(-8, 8)))
    # np.linspace and first + j · step may differ in the last digit: thresholds that close to a value are left out.
    clear = np.abs(thresholds[:, None] - values).min(axis=1) > 1e-9
    assert np.array_equal(histogram.below(thresholds)[clear], [(values < t).sum() for t in thresholds[clear]])
    share = data.draw(st.floats(0, 1))
    assert histogram.quantile(share) == pytest.approx(np.quantile(values, share), rel=1e-12)
    scale, zero_point = data.draw(st.floats(0.01, 1)), data.draw(st.integers(0, 15))
    expected = SortedView(values).sse(scale, zero_point, 0, 15)
    # Differences of sums: relative to Σ x² they are as good as float64, 200 values long.
    assert histogram.sse([scale], [zero_point], 0, 15)[0] == pytest.approx(expected, abs=1e-11 * (values**2).sum())


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=finite, unique=True))
def test_where_no_bin_holds_more_than_two_values_nothing_is_lost(x):
    histogram = LogHistogram.of(x)
    if histogram.counts.max() <= 2:
        assert np.array_equal(listed(histogram), np.sort(x))


@given(arrays(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)), st.floats(0, 1))
def test_a_quantile_is_off_by_less_than_one_bin(x, share):
    values = np.sort(x.astype(np.float64), axis=None)
    place = share * (len(values) - 1)
    beside = np.abs(values[[int(place), int(np.ceil(place))]]).max()
    assert LogHistogram.of(x).quantile(share) == pytest.approx(np.quantile(values, share), abs=2.0**-7 * beside)


def test_all_bins_there_are_take_what_the_docstring_says():
    every = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    every = every[np.isfinite(every)]
    histogram = LogHistogram.of(np.concatenate([every, np.nextafter(every, np.float32(0))]))
    # Of the two zeros only one counts, and below it lie the negative numbers of the smallest bin.
    assert len(histogram.counts) in (65_278, 65_279, 65_280)
    assert histogram.nbytes == 16 * len(histogram.counts) <= 1_044_480
    assert (histogram + histogram).nbytes == histogram.nbytes


def test_a_million_values_take_little():
    x = np.random.default_rng(0).standard_normal(1_000_000, dtype=np.float32)
    observer = MSEObserver(QuantConfig(method="mse"))
    for batch in np.split(x, 10):
        observer.observe(batch)
    assert observer.nbytes < 60_000
    keeper = PercentileObserver(QuantConfig(method="percentile")).observe(x)
    assert keeper.nbytes < 60_000 + 2 * 4 * 16_384
    assert MinMaxObserver().observe(x).nbytes == 8
    assert MinMaxObserver().nbytes == 0


# Ranges: percentile


@given(arrays(), st.floats(50, 100, exclude_min=True), st.randoms(use_true_random=False))
def test_the_percentile_is_that_of_all_values(x, percentile, random):
    config = QuantConfig(method="percentile", percentile=percentile)
    observer = PercentileObserver(config)
    pieces = list(x.reshape(-1, 1))
    random.shuffle(pieces)
    for piece in pieces:
        observer.observe(piece)
    assert observer.exact
    assert observer.range() == find_range(x, "percentile", percentile=percentile)


def test_the_percentile_is_exact_while_its_tail_is_remembered(monkeypatch):
    monkeypatch.setattr(qlearn.observers.histograms, "TAIL", 10)
    x = np.random.default_rng(0).laplace(size=3000).astype(np.float32)
    config = QuantConfig(method="percentile", percentile=99)
    observer = PercentileObserver(config)
    assert not observer.seen
    exact = []
    for n in range(0, 3000, 100):
        exact.append(observer.observe(x[n : n + 100]).exact)
        lo, hi = find_range(x[: n + 100], "percentile", percentile=99)
        if observer.exact:
            assert observer.range() == (lo, hi)
        else:
            assert observer.range() == pytest.approx((lo, hi), rel=2.0**-7)
        assert observer.smallest.size == observer.largest.size == 10
    # 1 % of n − 1 values, and the one beyond: places up to 9 are among ten values.
    assert exact == [int((n - 1) * 0.01) + 1 <= 9 for n in range(100, 3100, 100)]
    assert True in exact and False in exact


def test_percentiles_of_channels():
    x = torch.randn(200, 3, 5, generator=torch.manual_seed(0)) * torch.tensor([1.0, 10, 100])[:, None]
    config = QuantConfig(method="percentile", percentile=98, granularity=PerAxis(1))
    observer = PercentileObserver(config)
    for batch in x.split(64):
        observer.observe(batch)
    wanted = find_range(x, "percentile", percentile=98, granularity=PerAxis(1))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(observer.range(), wanted, strict=True))


# Ranges: MSE


def samples():
    """Shapes that values have in networks, and worse."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(100_000, dtype=np.float32)
    return {
        "normal": normal,
        "laplace": rng.laplace(size=100_000),
        "relu": np.maximum(normal, 0),
        "one outlier": np.append(normal, 100),
        "a lone million": np.append(normal, 1e6),
        "heavy tails": rng.standard_t(2, size=100_000),
        "lopsided": rng.gumbel(size=100_000),
        "away from zero": rng.uniform(5, 8, size=100_000),
        "bytes": rng.integers(0, 256, size=100_000) / 255,
        "few": normal[:500],
    }


SAMPLES = {name: x.astype(np.float32) for name, x in samples().items()}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_range_is_as_good_as_that_of_all_values(name, bits, symmetric):
    x = SAMPLES[name]
    config = QuantConfig(bits=bits, symmetric=symmetric, method="mse")
    exact = mse_of(x, fake_quantize(x, config.find_qparams(x)))
    found = mse_of(x, fake_quantize(x, MSEObserver(config).observe(x).qparams()))
    # 1 %: the floor. Bytes at 8 bits come back but for float32 rounding, which 1e-15 covers.
    assert found <= 1.01 * exact + 1e-15


def test_each_end_finds_its_own_distance():
    x = SAMPLES["lopsided"]
    lo, hi = MSEObserver(QuantConfig(bits=3, method="mse")).observe(x).range()
    found = mse_of(x, fake_quantize(x, choose_qparams(lo, hi, bits=3)))
    alike = (
        mse_of(x, fake_quantize(x, choose_qparams(max(-t, x.min()), t, bits=3)))
        for t in np.geomspace(0.5, x.max(), 200)
    )
    assert found < 0.9 * min(alike)


def test_counting_and_sorting_make_the_same_histogram():
    """Few values are sorted, many are counted: state and range must not depend on how the data came in batches."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_t(1, 70_000), rng.integers(-9, 9, 5_000) / 8, np.zeros(100)]).astype(np.float32)
    tiny = np.float32([1e-45, -1e-45, 9.2e-41, -9.2e-41, 1e-38, -1e-38, -0.0, 3.4e38, -3.4e38])
    x = np.concatenate([x, tiny, np.negative(np.zeros(50, np.float32))])
    rng.shuffle(x)
    counted, as_sorted = LogHistogram.of(x), _by_sorting(np.sort(x))
    for name in ("first", "last", "counts"):
        assert getattr(counted, name).tobytes() == getattr(as_sorted, name).tobytes()
    assert len(x) >= COUNTED_FROM


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_observer_and_find_range_are_one_search(name, symmetric):
    """At 4 bits a bin of the histogram is so much narrower than a step that both find the same place."""
    x = SAMPLES[name]
    config = QuantConfig(bits=4, symmetric=symmetric, method="mse")
    ours, theirs = MSEObserver(config).observe(x).qparams(), config.find_qparams(x)
    assert ours.zero_point == theirs.zero_point
    # A few hundred values have several minima that are nearly as good: the sweep of short rows finds the best of all.
    assert float(ours.scale) == pytest.approx(float(theirs.scale), rel=0.003 if len(x) > 10_000 else 0.02)


# J. Max 1960 for uniform steps, zero being a level.
@pytest.mark.parametrize(("bits", "clip"), [(2, 1.2240), (3, 1.9523), (4, 2.4739), (5, 2.8987)])
def test_the_best_clip_for_normal_values_is_theory_s(bits, clip):
    n = 1_000_000
    x = scipy.special.ndtri((np.arange(n) + 0.5) / n).astype(np.float32)
    observer = MSEObserver(QuantConfig(bits=bits, symmetric=True, method="mse"))
    for batch in np.array_split(x, 7):  # sorted: each batch sees another part of the range
        observer.observe(batch)
    assert float(observer.range()[1]) == pytest.approx(clip, rel=0.01)


def test_the_bits_matter():
    """The same histogram, asked for other bits: fewer codes want a narrower range."""
    x = SAMPLES["laplace"]
    clips = [MSEObserver(QuantConfig(bits=b, symmetric=True, method="mse")).observe(x).range()[1] for b in (2, 4, 8)]
    assert clips[0] < 0.6 * clips[1] < 0.6 * 0.8 * clips[2]


def test_channels_get_the_range_they_would_get_alone():
    x = np.random.default_rng(0).standard_t(3, size=(500, 4)).astype(np.float32) * np.float32([1, 10, 0.1, 0])
    config = QuantConfig(bits=3, method="mse", granularity=PerAxis(1))
    lo, hi = MSEObserver(config).observe(x).range()
    assert lo.shape == hi.shape == (1, 4)
    for i in range(4):
        alone = MSEObserver(QuantConfig(bits=3, method="mse")).observe(x[:, i])
        assert alone.range() == (lo[0, i], hi[0, i])


# Ranges: entropy


@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "one outlier"])
def test_entropy_is_that_of_the_list_the_histogram_stands_for(name):
    observer = EntropyObserver(QuantConfig(symmetric=True, method="entropy")).observe(SAMPLES[name])
    values = listed(observer.histograms[0])
    assert observer.range() == pytest.approx(find_range(values, "entropy", symmetric=True), rel=1e-6)  # float32's step


def test_entropy_clips_an_outlier():
    observer = EntropyObserver(QuantConfig(symmetric=True, method="entropy"))
    x = np.append(SAMPLES["normal"], np.float32(50))
    lo, hi = observer.observe(x[:70_000]).observe(x[70_000:]).range()
    assert 2 < hi < 10
    assert -10 < lo < -2


# The moving average


def batches():
    rng = np.random.default_rng(0)
    return [(rng.standard_t(2, size=(20, 4)) * 3).astype(np.float32) for _ in range(30)]


def test_the_moving_average_is_pytorch_s():
    from torch.ao.quantization import observer as theirs

    for granularity, peer in (
        (PerTensor(), theirs.MovingAverageMinMaxObserver(averaging_constant=0.05)),
        (PerAxis(1), theirs.MovingAveragePerChannelMinMaxObserver(averaging_constant=0.05, ch_axis=1)),
    ):
        config = QuantConfig(method="moving_average", granularity=granularity)
        observer = MovingAverageObserver(config, averaging_constant=0.05)
        for batch in batches():
            observer.observe(torch.from_numpy(batch))
            peer(torch.from_numpy(batch))
        # 1e-6: thirty additions in float32, in another order of operations.
        assert observer.lo.reshape(-1).tolist() == pytest.approx(peer.min_val.reshape(-1).tolist(), rel=1e-6)
        assert observer.hi.reshape(-1).tolist() == pytest.approx(peer.max_val.reshape(-1).tolist(), rel=1e-6)


def test_the_moving_average_is_its_closed_form():
    """hi = (1 − c)ᵏ m₀ + Σ c (1 − c)ᵏ⁻ⁱ mᵢ over the batches' maxima m₀ … m_k."""
    c, maxima = 0.1, np.array([float(batch.max()) for batch in batches()])
    weights = c * (1 - c) ** np.arange(len(maxima) - 1, -1, -1)
    weights[0] /= c
    assert weights.sum() == pytest.approx(1)
    observer = MovingAverageObserver(averaging_constant=c)
    for batch in batches():
        observer.observe(batch.astype(np.float64))
    assert float(observer.hi) == pytest.approx(weights @ maxima, rel=1e-12)


def test_the_moving_average_depends_on_the_order_and_does_not_merge():
    forwards, backwards = MovingAverageObserver(), MovingAverageObserver()
    for one, other in zip(batches(), reversed(batches()), strict=True):
        forwards.observe(one)
        backwards.observe(other)
    assert float(forwards.hi) != pytest.approx(float(backwards.hi), rel=0.1)
    with pytest.raises(RuntimeError, match="moving averages cannot be merged: each depends on the order"):
        forwards.merge(backwards)
    for constant in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match="must be more than 0 and at most 1"):
            MovingAverageObserver(averaging_constant=constant)


# Choosing


def test_the_method_chooses_the_observer():
    kinds = {
        "min_max": MinMaxObserver,
        "moving_average": MovingAverageObserver,
        "percentile": PercentileObserver,
        "mse": MSEObserver,
        "entropy": EntropyObserver,
    }
    assert {method: type(make_observer(QuantConfig(method=method))) for method in kinds} == kinds
    with pytest.raises(ValueError, match="method='dynamic' has no observer: every batch gets the range of its own"):
        make_observer(QuantConfig(method="dynamic"))
    with pytest.raises(ValueError, match="method='cross_entropy' has no observer: it weighs whole rows of logits"):
        make_observer(QuantConfig(method="cross_entropy"))


@pytest.mark.parametrize("method", ["moving_average", "dynamic"])
def test_one_array_has_no_stream(method):
    with pytest.raises(ValueError, match=f"method='{method}' is for batches that come one after the other"):
        QuantConfig(method=method).find_qparams(np.zeros(3))


def test_a_config_s_percentile_is_used():
    x = np.arange(101.0)
    config = QuantConfig(method="percentile", percentile=90)
    assert config.find_qparams(x) == find_qparams(x, "percentile", percentile=90)
    assert PercentileObserver(config).observe(x).range() == (10, 90)
    with pytest.raises(ValueError, match="percentile=50 must be more than 50"):
        QuantConfig(percentile=50)


def test_one_histogram_answers_all_questions():
    x = SAMPLES["laplace"]
    for method, kind in (("mse", MSEObserver), ("entropy", EntropyObserver)):
        config = QuantConfig(bits=6, method=method)
        assert HistogramObserver(config).observe(x).qparams() == kind(config).observe(x).qparams()
    ends = HistogramObserver(QuantConfig(method="min_max")).observe(x).range()
    assert ends == (x.min(), x.max())


# Bad input


EVERY = [*MERGEABLE, (MovingAverageObserver, "moving_average")]


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_nothing_seen_is_named(kind, method):
    observer = kind(QuantConfig(method=method))
    assert not observer.seen
    with pytest.raises(RuntimeError, match=r"has seen no data: call observe\(x\)"):
        observer.qparams()
    assert "nothing seen yet" in repr(observer)


@pytest.mark.parametrize(("kind", "method"), EVERY)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([50.0, np.inf], "x holds 1 value that is not finite; the first is inf at index 1"),
        ([50.0, np.nan, np.nan], "x holds 2 values that are not finite"),
        ([], r"x is empty \(shape \(0,\)\)"),
    ],
)
def test_a_batch_that_fails_leaves_no_trace(kind, method, x, message):
    observer = kind(QuantConfig(method=method)).observe(np.array([1.0, 2.0]))
    before = state(observer)
    with pytest.raises(ValueError, match=message):
        observer.observe(np.array(x))
    with pytest.raises(TypeError, match="x has dtype bool"):
        observer.observe(np.array([True]))
    assert state(observer) == before


@pytest.mark.parametrize(("kind", "method"), PER_CHANNEL)
def test_a_number_beyond_float32_is_named_or_kept(kind, method):
    x = np.array([[1.0, 2.0], [3.0, 1e39]])
    observer = kind(QuantConfig(method=method, granularity=PerAxis(0)))
    if kind is MinMaxObserver:
        assert observer.observe(x).hi[1, 0] == 1e39
        return
    with pytest.raises(ValueError, match=r"x holds 1e\+39: the histogram counts in float32"):
        observer.observe(x)
    assert not observer.seen and observer.nbytes == 0


@pytest.mark.parametrize(("kind", "method"), PER_CHANNEL)
def test_float64_keeps_its_own_ends(kind, method):
    x = np.array([0.1, 0.2, 1e-300, -0.3])
    observer = kind(QuantConfig(method=method)).observe(x)
    assert (observer.lo, observer.hi) == (-0.3, 0.2)
    assert observer.qparams().scale.dtype == np.float64
    lo, hi = observer.range()
    assert lo >= -0.3 and hi <= 0.2


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_half_types_gradients_and_strides_are_taken(kind, method):
    x = torch.randn(8, 6, generator=torch.manual_seed(0))
    config = QuantConfig(method=method)
    for odd in (x.half(), x.bfloat16(), x.t(), x[::2, ::3], x.clone().requires_grad_()):
        plain = odd.detach().float().contiguous()
        observer = kind(config).observe(odd)
        assert state(observer) == state(kind(config).observe(plain))
        assert observer.qparams().scale.dtype == torch.float32
        assert not observer.lo.requires_grad
    assert state(kind(config).observe(np.arange(-3, 4))) == state(kind(config).observe(np.arange(-3.0, 4.0)))


@pytest.mark.parametrize(("kind", "method"), PER_CHANNEL)
def test_the_state_is_the_observer_s_own(kind, method):
    """An activation may be overwritten in place after it was observed."""
    for granularity in (PerTensor(), PerAxis(0)):
        x = np.array([[1.0, 5.0]], dtype=np.float32)
        observer = kind(QuantConfig(method=method, granularity=granularity)).observe(x)
        before = state(observer)
        x[:] = 99
        assert state(observer) == before


@pytest.mark.parametrize(("kind", "method"), [*PER_CHANNEL, (MovingAverageObserver, "moving_average")])
def test_other_blocks_are_named(kind, method):
    observer = kind(QuantConfig(method=method, granularity=PerAxis(0))).observe(np.zeros((2, 3)))
    before = state(observer)
    with pytest.raises(ValueError, match=r"ranges of shape \(4, 1\), earlier ones had \(2, 1\)"):
        observer.observe(np.zeros((4, 3)))
    assert state(observer) == before


def test_other_configurations_and_kinds_do_not_merge():
    with pytest.raises(
        ValueError, match=r"cannot be merged: one has QuantConfig\(bits=8.*, the other QuantConfig\(bits=4"
    ):
        MinMaxObserver().merge(MinMaxObserver(QuantConfig(bits=4)))
    with pytest.raises(ValueError, match="a MinMaxObserver and a HistogramObserver cannot be merged"):
        MinMaxObserver().merge(HistogramObserver(QuantConfig()))
    config = QuantConfig(granularity=PerAxis(0))
    two, four = (MinMaxObserver(config).observe(np.zeros((n, 3))) for n in (2, 4))
    with pytest.raises(ValueError, match=r"ranges of shape \(4, 1\), earlier ones had \(2, 1\)"):
        two.merge(four)


def test_what_an_observer_cannot_do_is_named():
    with pytest.raises(ValueError, match="method='mse': a MinMaxObserver remembers nothing but what 'min_max' needs"):
        MinMaxObserver(QuantConfig(method="mse"))
    with pytest.raises(ValueError, match=r"PerGroup\(group_size=4\): a MSEObserver keeps a histogram for each block"):
        MSEObserver(QuantConfig(method="mse", granularity=PerGroup(4)))
    with pytest.raises(
        ValueError, match=r"'entropy' finds one range for a whole tensor: use PerTensor\(\), not PerAxis"
    ):
        make_observer(QuantConfig(method="entropy", granularity=PerAxis(0)))
    for kind, method in itertools.product((PercentileObserver, MSEObserver, EntropyObserver), ("min_max",)):
        with pytest.raises(ValueError, match=f"method='{method}': a {kind.__name__}"):
            kind(QuantConfig(method=method))


def test_constant_values_are_kept():
    for value, (kind, method) in itertools.product((0.0, 3.0, -3.0), MERGEABLE):
        x = np.full(500, value, dtype=np.float32)
        qparams = kind(QuantConfig(method=method)).observe(x).qparams()
        assert fake_quantize(x, qparams) == pytest.approx(x, rel=1e-6)  # the scale is rounded to float32
