"""Explorers: move a slider, and the numbers and pictures follow.

Each `explore_…()` returns an `Explorer`. As the last line of a cell it shows itself: live where a kernel runs,
as a picture with its numbers everywhere else.
"""

from qlearn import style as style  # first: it quietens Matplotlib before the fonts are looked for
from qlearn.widgets.accumulator import explore_accumulator
from qlearn.widgets.affine import explore_affine
from qlearn.widgets.digit import explore_digit
from qlearn.widgets.formats import explore_formats
from qlearn.widgets.granularity import explore_granularity
from qlearn.widgets.language_model import explore_language_model
from qlearn.widgets.mixed_precision import explore_mixed_precision
from qlearn.widgets.network import explore_network
from qlearn.widgets.ptq import explore_ptq
from qlearn.widgets.qat import explore_qat
from qlearn.widgets.ranges import explore_ranges
from qlearn.widgets.speed import explore_speed

__all__ = [
    "explore_accumulator",
    "explore_affine",
    "explore_digit",
    "explore_formats",
    "explore_granularity",
    "explore_language_model",
    "explore_mixed_precision",
    "explore_network",
    "explore_ptq",
    "explore_qat",
    "explore_ranges",
    "explore_speed",
]
