"""Browsers count in 32 bits: there a place in an array is an int32, and NumPy's own integers are int32.

No such machine is needed to find what would fail on it. NumPy's functions that take places or counts convert them to
`np.intp` with the rule "safe", which an int64 or a uint32 does not pass on a 32-bit machine. The stand-in for NumPy
below makes every int64 that a module asks for by name a `longlong`: as large, but told apart from `np.intp` by its
letter, which arithmetic passes on.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from qlearn import codebooks, find_range, formats, histogram, ranges, sorted_view
from qlearn.widgets import accumulator, heat, picture

pytestmark = pytest.mark.skipif(
    np.dtype(np.intp).char != "l" or np.dtype(np.intp).itemsize != 8, reason="int64 and intp share a letter here"
)


def place(numbers):
    """The numbers, if a 32-bit machine would take them as places."""
    array = np.asarray(numbers)
    small = np.can_cast(array.dtype, np.int32, "safe")
    assert small or array.dtype.char == np.dtype(np.intp).char, f"{array.dtype.char} are no places on a 32-bit machine"
    return numbers


class Ufunc:
    """A ufunc whose `reduceat` looks at the places."""

    def __init__(self, ufunc):
        self.ufunc = ufunc

    def __call__(self, *args, **options):
        return self.ufunc(*args, **options)

    def __getattr__(self, name):
        return getattr(self.ufunc, name)

    def reduceat(self, values, places, *args, **options):
        return self.ufunc.reduceat(values, place(places), *args, **options)


class SmallNumPy:
    """NumPy, whose functions refuse places that a 32-bit machine refuses."""

    int64 = np.longlong
    add, minimum, maximum = Ufunc(np.add), Ufunc(np.minimum), Ufunc(np.maximum)

    def __getattr__(self, name):
        return getattr(np, name)

    def take(self, values, places, *args, **options):
        return np.take(values, place(places), *args, **options)

    def repeat(self, values, counts, *args, **options):
        return np.repeat(values, place(counts), *args, **options)

    def bincount(self, values, *args, **options):
        return np.bincount(place(values), *args, **options)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (codebooks, ranges, histogram, sorted_view, accumulator, heat, picture):
        monkeypatch.setattr(module, "np", SmallNumPy())


class Table(np.ndarray):
    """A table whose own `take` looks at the places."""

    def take(self, places, *args, **options):
        return np.asarray(self).take(place(places), *args, **options)


def test_the_stand_in_refuses_what_a_small_machine_refuses():
    small, x = SmallNumPy(), np.arange(4.0)
    for places in (np.array([0, 2], small.int64), np.array([0, 2], np.uint32), 1 + np.array([0, 2], small.int64)):
        with pytest.raises(AssertionError, match="no places on a 32-bit machine"):
            small.take(x, places)
        with pytest.raises(AssertionError, match="no places on a 32-bit machine"):
            small.add.reduceat(x, places)
    assert small.take(x, [0, 2]).tolist() == [0, 2]
    assert small.add.reduceat(x, np.array([0, 2], np.uint8)).tolist() == [1, 5]


def test_codebooks_find_their_places():
    x = np.random.default_rng(0).normal(size=300).astype(np.float32)
    for levels in (codebooks.optimal(x, 4), codebooks.kmeans(x, 4), codebooks.kmeans(np.repeat(x[:9], 40), 8)):
        codes = codebooks.encode(x, levels)
        assert np.array_equal(codebooks.decode(codes, levels), levels.astype(np.float32)[codes])


def test_ranges_and_histograms_find_their_places():
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    counted = histogram.LogHistogram.of(x[:2500]) + histogram.LogHistogram.of(x[2500:])
    assert len(counted) == 5000
    assert find_range(x, "entropy", bits=4)[1] > 0
    assert find_range(x, "mse", bits=4)[1] > 0
    assert ranges.kl_divergence(np.array([4, 4, 2, 2]), 4, 2) == 0


def test_pictures_find_their_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    palette = picture.Palette(pixels)
    palette.table = palette.table.view(Table)
    assert palette.encode(pixels).size == (9, 8)
    palette.encode(np.full_like(pixels, 77))  # a colour that is to be learnt


def test_the_accumulator_explorer_counts_its_sums():
    explorer = accumulator.explore_accumulator()
    assert explorer.result["lengths"].sum() > 0


@pytest.mark.parametrize("format", [formats.FLOAT32, formats.FLOAT16, formats.E4M3])
def test_the_sign_bit_of_32_bits_is_no_int32(format, monkeypatch):
    """A boolean times a Python number is a default integer: int32 on a small machine, which 2³¹ is not."""

    def signbit(x):
        return np.signbit(x).astype(np.int32)

    names = {name: getattr(np, name) for name in dir(np) if not name.startswith("_")}
    monkeypatch.setattr(formats, "native_namespace", lambda x: SimpleNamespace(**{**names, "signbit": signbit}))
    x = np.float32([-1.5, 0.0, 2.0])
    codes = formats.encode(x, format)
    monkeypatch.undo()
    assert np.array_equal(formats.decode(codes, format), x)
