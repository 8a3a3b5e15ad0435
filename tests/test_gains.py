"""The error of a quantizer by gains, and the best of all zero points, on numbers small enough to add up by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qlearn import gains
from qlearn.gains import best_zero_points, sse
from qlearn.sorted_view import SortedView


def by_quantizing(x, scale, zero_point, quant_min, quant_max):
    codes = np.clip(np.rint(x / scale), quant_min - zero_point, quant_max - zero_point)
    return np.sum((x - scale * codes) ** 2)


@pytest.mark.parametrize("limits", [(0, 1), (0, 3), (-7, 7), (-8, 7), (0, 255)])
def test_the_error_is_that_of_quantizing(limits):
    x = np.random.default_rng(0).normal(size=500) * 3
    scale, zero_point = np.array([[0.02, 0.5, 1.0], [0.1, 0.3, 2.0]]), np.array([[0, 1, 1], [0, 1, 0]])
    found = sse(SortedView(x), scale, zero_point, *limits)
    wanted = [by_quantizing(x, s, z, *limits) for s, z in zip(scale.flat, zero_point.flat, strict=True)]
    assert found.reshape(-1) == pytest.approx(wanted, rel=1e-9)


def test_the_error_is_never_negative():
    tenths = np.random.default_rng(0).integers(0, 8, 1000) * 0.1
    assert sse(SortedView(tenths), np.array([0.1]), np.array([0]), 0, 7).tolist() == [0.0]  # by its sums -8e-13
    assert sse(SortedView([0.1, 0.2, 0.3, 0.7]), np.geomspace(0.001, 0.1, 200), np.zeros(200), 0, 7).min() >= 0
    assert sse(SortedView([0.1] * 7), np.array([0.1]), np.array([0]), 0, 3) == pytest.approx([0.0], abs=1e-15)
    exact = sse(SortedView(np.full(1000, 0.1)), 0.1 * np.ones(4), np.arange(4), 0, 7)
    assert (exact >= 0).all() and exact == pytest.approx(np.zeros(4), abs=1e-12)


@pytest.mark.parametrize("at_once", [1, 4, 5, 1000])
def test_codes_asked_about_in_parts_add_up(monkeypatch, at_once):
    x = np.random.default_rng(0).normal(size=300)
    scale, zero_point = np.array([0.1, 0.3]), np.array([3, 5])
    monkeypatch.setattr(gains, "AT_ONCE", at_once)
    found = sse(SortedView(x), scale, zero_point, 0, 9)
    assert found == pytest.approx([by_quantizing(x, 0.1, 3, 0, 9), by_quantizing(x, 0.3, 5, 0, 9)], rel=1e-9)


@pytest.mark.parametrize("quant_max", [1, 3, 4, 5, 6, 15])
@pytest.mark.parametrize("shift", [-1000.0, -1.0, 0.0, 0.7, 1000.0])
def test_no_zero_point_is_better(quant_max, shift):
    x = np.random.default_rng(quant_max).gumbel(size=60) + shift
    scale = np.geomspace(0.05, 3, 40).reshape(2, 20)
    found = best_zero_points(SortedView(x), scale, quant_max)
    for s, z in zip(scale.flat, found.flat, strict=True):
        errors = [by_quantizing(x, s, other, 0, quant_max) for other in range(quant_max + 1)]
        assert z == np.argmin(errors) or errors[int(z)] == pytest.approx(min(errors), rel=1e-12)
    if abs(shift) == 1000:
        assert (found == (0 if shift > 0 else quant_max)).all()


def test_zero_points_of_equal_errors():
    # Ticks from −1 or from 0 on: of two places that lose as much as they gain the upper one is used, m = 0.
    assert best_zero_points(SortedView([-1.0, 0.0, 0.0, 1.0]), np.array([1.0]), 1).tolist() == [0.0]
    none = best_zero_points(SortedView([1.0, 2.0, 3.0]), np.array([1.0]), 3)
    assert none.tolist() == [0.0] and not np.signbit(none).any()


@pytest.mark.parametrize(("below", "n", "wanted"), [(0.5, 1, 0), (1.0, 1, 1), (1.5, 2, 0), (2.0, 2, 1)])
def test_gain_and_loss_are_equal_if_they_differ_by_less_than_a_billionth_of_a_step_a_value(below, n, wanted):
    x = [-0.5e9 - below] + [0.0] * (n - 1)  # so far nearer to the tick at −1e9, which the zero point 1 has
    assert best_zero_points(SortedView(x), np.array([1e9]), 1).tolist() == [wanted]


class Counting(SortedView):
    """Counts the questions."""

    asked = 0

    def gains(self, t):
        self.asked += 1
        assert self.asked <= 8
        return super().gains(t)


@pytest.mark.parametrize("x", [-1000.0, -100.0, 0.0, 1000.0])
def test_one_of_256_places_is_found_in_eight_halvings(x):
    view = Counting([x])
    best_zero_points(view, np.array([1.0, 2.0]), 255)
    assert view.asked == 8
