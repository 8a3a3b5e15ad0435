"""Explorers: move a slider, and the numbers and pictures follow.

Each `explore_…()` returns an `Explorer`. As the last line of a cell it shows itself: live where a kernel runs,
as a picture with its numbers everywhere else.
"""

from qlearn.widgets.affine import explore_affine

__all__ = ["explore_affine"]
