"""Pictures show all that they are given, however much it is."""

import numpy as np
import pytest

from qlearn import plots

SIX = [f"series {k}" for k in range(6)]
DRAWN = {
    "against_cost": lambda: plots.against_cost({name: [(4, 4.0 + k, 20.0)] for k, name in enumerate(SIX)}),
    "curves": lambda: plots.curves([1, 2], {name: [k, k + 1] for k, name in enumerate(SIX)}, xlabel="x", ylabel="y"),
    "row_errors": lambda: plots.row_errors(np.eye(3), {name: np.eye(3) * 0.9 for name in SIX}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_no_series_is_left_out_and_no_two_look_alike(name):
    picture = DRAWN[name]()
    lines = [line for axes in picture.figure.axes for line in axes.lines if line.get_label() in SIX]
    assert [line.get_label() for line in lines] == SIX
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(SIX)
    assert all(series in picture.alt for series in SIX)


def test_a_bar_that_is_too_long_is_cut_and_says_its_number():
    picture = plots.perplexities({"ruined": 73.0, "fine": 4.5}, in_float=4.25, most=4.75)
    (axes,) = picture.figure.axes
    assert [bar.get_x() for bar in axes.patches] == [4.25, 4.25]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25]
    assert [text.get_text().strip() for text in axes.texts] == ["73.00", "4.50"]
    assert len(axes.lines) == 2, "two strokes through the one that is cut"
