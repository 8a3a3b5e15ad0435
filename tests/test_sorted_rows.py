"""Rows in order against sums over all values."""

from __future__ import annotations

import numpy as np
import pytest

from qlearn import sorted_rows
from qlearn.sorted_rows import SortedRows


def rows_of(n: int) -> np.ndarray:
    rows = np.random.default_rng(n).normal(size=(5, n)) * [[1], [100], [0.01], [3], [3]] + [[0], [500], [-2], [-9], [9]]
    return np.concatenate([rows, np.full((1, n), 2.5), np.zeros((1, n))])  # and rows without a span


@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_gains_are_sums_over_all_values_of_the_row(n):
    rows = rows_of(n)
    inside = np.sort(np.random.default_rng(1).uniform(-1, 1, size=(7, 9)) * (1 + np.abs(rows).max(-1, keepdims=True)))
    t = np.concatenate(
        [inside, rows[:, :1], rows.min(-1, keepdims=True) - 1000, rows.max(-1, keepdims=True) + 1000], -1
    )
    wanted = np.maximum(t[:, :, None] - rows[:, None, :], 0).sum(-1)
    view = SortedRows(rows)
    assert view.gains(t) == pytest.approx(wanted, rel=1e-9, abs=1e-7)  # sums of up to 100,000
    assert view.gains(t.reshape(7, 2, 6)).shape == (7, 2, 6)
    assert view.count == n
    assert view.total[:, 0] == pytest.approx(rows.sum(-1)) and view.squares[:, 0] == pytest.approx((rows**2).sum(-1))


@pytest.mark.parametrize("at_once", [1, 100, 200])  # of 49 values: for one threshold, two or four
def test_gains_of_short_rows_are_added_up_in_parts_that_change_nothing(at_once, monkeypatch):
    view, t = SortedRows(rows_of(7)), np.linspace(-9, 9, 11) * np.ones((7, 1))
    whole = view.gains(t)
    monkeypatch.setattr(sorted_rows, "AT_ONCE", at_once)
    monkeypatch.setattr(np, "empty", lambda shape: np.full(shape, np.nan))  # and not what was there before
    assert view.gains(t).tolist() == whole.tolist()


@pytest.mark.parametrize(("n", "looked_up"), [(32, False), (33, True)])
def test_gains_of_rows_of_more_than_32_values_are_looked_up(n, looked_up):
    view = SortedRows(rows_of(n))
    view.sums *= np.nan
    assert np.isnan(view.gains(np.ones((7, 1)))).all() == looked_up


def test_a_row_of_one_value_and_rows_far_apart():
    view = SortedRows(np.array([[1.0, 3.0], [1e6, 3e6]], np.float32))
    assert view.gains(np.array([[2.0, 4.0], [2e6, 5e6]])).tolist() == [[1.0, 4.0], [1e6, 6e6]]
    assert view.values.dtype == np.float64


@pytest.mark.parametrize("n", [5, 63, 64, 65, 300])  # quantized up to 63 values, looked up from 64 on
@pytest.mark.parametrize("at_once", [1, 700, 5000, 1 << 20])
def test_errors_are_those_of_quantizing(n, at_once, monkeypatch):
    monkeypatch.setattr(sorted_rows, "AT_ONCE", at_once)
    rows = rows_of(n)
    scale = np.abs(rows).max(-1, keepdims=True) * np.geomspace(0.1, 1, 12) + 0.1
    zero_point = np.arange(12) % 4 + np.zeros((7, 1))
    codes = np.clip(np.rint(rows[:, None] / scale[..., None]) + zero_point[..., None], 0, 3) - zero_point[..., None]
    wanted = ((rows[:, None] - scale[..., None] * codes) ** 2).sum(-1)
    assert SortedRows(rows).sse(scale, zero_point, 0, 3) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("n", "by_gains"), [(63, False), (64, True)])
def test_long_rows_are_looked_up(n, by_gains, monkeypatch):
    monkeypatch.setattr(sorted_rows, "sse", lambda *arguments: arguments)
    view = SortedRows(rows_of(n))
    scale, zero_point = np.ones((7, 1)), np.zeros((7, 1))
    assert isinstance(view.sse(scale, zero_point, 0, 3), tuple) == by_gains
    assert isinstance(view.sse(scale, zero_point, -2, 1), tuple) == by_gains
