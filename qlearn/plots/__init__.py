"""The lessons' still pictures: functions that take arrays and return a `Picture`, a figure with its sentence.

The sentence says what the picture shows, with its numbers: it is the alt text for a screen reader, and what
a test can compare.
"""

from qlearn.plots.affine import codes_in_use, errors_of, number_formats, number_line
from qlearn.plots.charts import bars, curves, histograms
from qlearn.plots.granularity import against_cost, blocks, row_errors, row_ranges, ticks_below
from qlearn.plots.integer import fixed_point_bits, four_terms, near_ties
from qlearn.plots.network import digits, matrices
from qlearn.plots.picture import Picture, picture
from qlearn.plots.ranges import clip_curve, clip_curves, ranges_over, sorted_values

__all__ = [
    "Picture",
    "against_cost",
    "bars",
    "blocks",
    "clip_curve",
    "clip_curves",
    "codes_in_use",
    "curves",
    "digits",
    "errors_of",
    "fixed_point_bits",
    "four_terms",
    "histograms",
    "matrices",
    "near_ties",
    "number_formats",
    "number_line",
    "picture",
    "ranges_over",
    "row_errors",
    "row_ranges",
    "sorted_values",
    "ticks_below",
]
