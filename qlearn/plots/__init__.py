"""The lessons' still pictures: functions that take arrays and return a `Picture`, a figure with its sentence.

The sentence says what the picture shows, with its numbers: it is the alt text for a screen reader, and what
a test can compare.
"""

from qlearn import style as style  # first: it quietens Matplotlib before the fonts are looked for
from qlearn.plots.affine import codes_in_use, errors_of, number_formats, number_line
from qlearn.plots.bits import float_bits, packed_bits
from qlearn.plots.charts import bars, curves, histograms
from qlearn.plots.granularity import against_cost, blocks, row_errors, row_ranges, ticks_below
from qlearn.plots.graph import qdq_layer
from qlearn.plots.integer import fixed_point_bits, four_terms, near_ties
from qlearn.plots.language import attention, perplexities, surprise, transformer_block
from qlearn.plots.levels import grouped_bars, level_rows
from qlearn.plots.network import digits, matrices
from qlearn.plots.observers import two_histograms
from qlearn.plots.picture import Picture, picture
from qlearn.plots.ranges import clip_curve, clip_curves, ranges_over, sorted_values
from qlearn.plots.repair import channel_ranges, mean_shifts, passed_on, straight_lines, two_weights
from qlearn.plots.speed import roofline
from qlearn.plots.training import slopes, weight_paths

__all__ = [
    "Picture",
    "against_cost",
    "attention",
    "bars",
    "blocks",
    "channel_ranges",
    "clip_curve",
    "clip_curves",
    "codes_in_use",
    "curves",
    "digits",
    "errors_of",
    "fixed_point_bits",
    "float_bits",
    "four_terms",
    "grouped_bars",
    "histograms",
    "level_rows",
    "matrices",
    "mean_shifts",
    "near_ties",
    "number_formats",
    "number_line",
    "packed_bits",
    "passed_on",
    "perplexities",
    "picture",
    "qdq_layer",
    "ranges_over",
    "roofline",
    "row_errors",
    "row_ranges",
    "slopes",
    "sorted_values",
    "straight_lines",
    "surprise",
    "ticks_below",
    "transformer_block",
    "two_histograms",
    "two_weights",
    "weight_paths",
]
