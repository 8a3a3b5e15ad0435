"""Which search a row gets, and the sweep of all scales by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qlearn import row_search
from qlearn.range_search import Search
from qlearn.row_search import by_searching, by_sweeping


def test_the_sweep_by_hand():
    search = Search(2, symmetric=True)
    # Codes 0, 1, 1 cost 0.5² + 2 · 0.5²; a scale of (2 + 1) / 2 for the two largest is best.
    lo, hi = by_sweeping(np.array([[0.5, 2.0, -1.0], [0.0, 0.0, 0.0], [-4.0, 0.0, 0.0]]), search)
    assert (lo.tolist(), hi.tolist()) == ([-1.5, 0.0, -4.0], [1.5, 0.0, 4.0])
    full = Search(2, symmetric=True, narrow_range=False)
    lo, hi = by_sweeping(np.array([[-2.0, 1.0], [2.0, -1.0], [-2.0, -2.0]]), full)
    assert (lo.tolist(), hi.tolist()) == ([-2.0, -3.0, -2.0], [1.0, 1.5, 1.0])  # 2 has no code 2; -2 is -1 or -2


def test_all_codes_are_given_to_negative_values_only():
    full = Search(2, symmetric=True, narrow_range=False)
    lo, hi = by_sweeping(np.array([[-2.0] + [1.0] * 20]), full)  # the many that have no code 2 say nothing about it
    assert (lo.tolist(), hi.tolist()) == ([-2.0], [1.0])


def test_tiny_and_huge_values_are_swept_together():
    lo, hi = by_sweeping(np.array([[-1e200, 1e-200], [1e-200, 1e200]]), Search(2, symmetric=True))
    assert (lo.tolist(), hi.tolist()) == ([-1e200, -1e200], [1e200, 1e200])


def test_of_scales_whose_errors_differ_by_less_than_a_millionth_the_smaller_is_taken():
    # With b = √2 − 1 the codes 1, 0 cost b², and the codes 1, 1 as much: (1 − b)² / 2. As b falls by a share of it,
    # the first falls by 2 of them, and the second rises by √2.
    rows = np.array([[1.0, (np.sqrt(2) - 1) * (1 - below)] for below in (2.8e-7, 3.1e-7)])
    _, hi = by_sweeping(rows, Search(2, symmetric=True))
    assert hi == pytest.approx([np.sqrt(0.5), 1.0], rel=1e-6)  # as far as b was moved


@pytest.mark.parametrize(("below", "wanted"), [(5e-7, 127 - 127 * 0.5 / 127**3), (2e-6, 127.0)])
def test_of_scales_whose_errors_differ_by_less_than_a_share_of_all_squares_the_smaller_is_taken(below, wanted):
    # The last value costs a quarter with the code 0, and 2 · below more with the code 1; 1e-12 of all squares is 2e-6.
    _, hi = by_sweeping(np.array([[127.0] * 127 + [0.5 - below]]), Search(8, symmetric=True))
    assert hi == pytest.approx([wanted], rel=1e-9)


def error_of(rows, scale, quant_min, quant_max):
    codes = np.clip(np.rint(rows / scale), quant_min, quant_max)
    return ((rows - scale * codes) ** 2).sum(-1)


@pytest.mark.parametrize("narrow_range", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
def test_no_scale_is_better_than_the_sweep_s(bits, narrow_range, unit):
    rows = np.random.default_rng(bits).standard_t(3, size=(6, 20))
    search = Search(bits, True, narrow_range)
    _, hi = by_sweeping(rows * unit, search)
    found = error_of(rows, (hi / unit / search.limits[1])[:, None], *search.limits)
    for scale in np.geomspace(0.01, 3, 500) * np.abs(rows).max() / search.limits[1]:
        assert (found <= error_of(rows, scale, *search.limits) * (1 + 2e-6)).all()


def test_rows_are_swept_in_parts_that_change_nothing(monkeypatch):
    rows, search = np.random.default_rng(0).normal(size=(7, 30)), Search(3, True)
    whole = by_sweeping(rows, search)
    for breakpoints in (1, 90, 200, 10_000):
        monkeypatch.setattr(row_search, "BREAKPOINTS", breakpoints)
        assert [end.tolist() for end in by_sweeping(rows, search)] == [end.tolist() for end in whole]


def test_parts_have_as_many_rows_as_may_be_worked_on_at_once(monkeypatch):
    parts, rows = [], np.ones((7, 30))
    monkeypatch.setattr(row_search, "_sweep", lambda rows, *_: parts.append(len(rows)) or np.ones(len(rows)))
    monkeypatch.setattr(row_search, "_of_rows", lambda rows, _: parts.append(len(rows)) or 2 * [np.ones(len(rows))])
    for breakpoints in (1, 200):  # of 90 in a row
        monkeypatch.setattr(row_search, "BREAKPOINTS", breakpoints)
        by_sweeping(rows, Search(3, True))
    for slab in (1, 80):
        monkeypatch.setattr(row_search, "SLAB", slab)
        by_searching(rows, Search(3))
    assert parts == 2 * ([1] * 7 + [2, 2, 2, 1])


def test_rows_are_searched_in_parts_that_change_nothing(monkeypatch):
    rows, search = np.random.default_rng(0).normal(size=(7, 30)), Search(3)
    whole = by_searching(rows, search)
    for slab in (1, 60, 100, 10_000):
        monkeypatch.setattr(row_search, "SLAB", slab)
        assert [end.tolist() for end in by_searching(rows, search)] == [end.tolist() for end in whole]


@pytest.fixture
def used(monkeypatch) -> list[str]:
    """Which searches are asked for, which then do nothing."""
    kinds: list[str] = []
    for name, kind in (("_of_rows", "rows"), ("search_long", "bins"), ("_of_row", "sorted")):

        def record(rows, search, kind=kind):
            kinds.append(kind)
            return 2 * [np.ones(len(np.atleast_2d(rows)))]

        monkeypatch.setattr(row_search, name, record)
    return kinds


@pytest.mark.parametrize(
    ("n", "dtype", "bits", "wanted"),
    [
        (99, np.float32, 3, "rows"),
        (99, np.float64, 3, "rows"),
        (100, np.float32, 3, "bins"),
        (100, np.float32, 8, "bins"),
        (100, np.float32, 9, "sorted"),
        (100, np.float64, 3, "sorted"),
    ],
)
def test_long_rows_are_searched_one_by_one_and_those_of_float32_in_bins(n, dtype, bits, wanted, used, monkeypatch):
    monkeypatch.setattr(row_search, "LONG", 100)
    monkeypatch.setattr(row_search, "LOOKED_UP_FROM", 0)  # how many codes there are is another reason to sort rows
    by_searching(np.ones((2, n), dtype), Search(bits))
    assert used == [wanted] * (1 if wanted == "rows" else 2)


@pytest.mark.parametrize(("bits", "least", "wanted"), [(3, 2**16, "bins"), (13, 2**17, "sorted")])
def test_rows_are_long_from_65536_values_and_16_for_each_code_on(bits, least, wanted, used):
    for n in (least - 1, least):
        by_searching(np.ones((1, n), np.float32), Search(bits))
    assert used == ["rows", wanted]


def test_rows_of_float64_are_brought_near_one(monkeypatch):
    seen, rows = [], np.array([[-4.0, 1.0], [6.0, 0.0]])
    monkeypatch.setattr(row_search, "_of_rows", lambda rows, _: seen.append(rows.tolist()) or (np.ones(2), np.zeros(2)))
    assert by_searching(rows, Search(2))[1].tolist() == [3 * 8, 3 * 8]  # and the range back
    assert by_searching(rows.astype(np.float32), Search(2))[1].tolist() == [3, 3]
    assert seen == [[[-0.5, 0.125], [0.75, 0.0]], rows.tolist()]


@pytest.mark.parametrize("unit", [1.0, 2.0**-1000, 2.0**1000])
@pytest.mark.parametrize("long", [1, 1000])
def test_the_unit_of_float64_does_not_matter(unit, long, monkeypatch):
    monkeypatch.setattr(row_search, "LONG", long)
    rows, search = np.random.default_rng(0).normal(size=(3, 300)), Search(3)
    lo, hi = by_searching(rows, search)
    found = by_searching(rows * unit, search)
    assert [(end / unit).tolist() for end in found] == [lo.tolist(), hi.tolist()]


def test_one_row_alone_is_what_it_is_among_others(monkeypatch):
    rows, search = np.random.default_rng(0).gumbel(size=(3, 300)) - 1, Search(4)
    together = by_searching(rows, search)
    monkeypatch.setattr(row_search, "LONG", 1)
    alone = by_searching(rows, search)
    assert alone[0] == pytest.approx(together[0], rel=1e-9) and alone[1] == pytest.approx(together[1], rel=1e-9)
    lo, hi = by_searching(np.zeros((2, 5)), search)
    assert (lo.tolist(), hi.tolist()) == ([0.0, 0.0], [0.0, 0.0])
