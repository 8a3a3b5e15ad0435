"""The lessons' still pictures: functions that take arrays and return a `Picture`, a figure with its sentence.

The sentence says what the picture shows, with its numbers: it is the alt text for a screen reader, and what
a test can compare.
"""

from qlearn.plots.affine import codes_in_use, errors_of, number_formats, number_line
from qlearn.plots.charts import bars, curves, histograms
from qlearn.plots.network import digits, matrices
from qlearn.plots.picture import Picture, picture

__all__ = [
    "Picture",
    "bars",
    "codes_in_use",
    "curves",
    "digits",
    "errors_of",
    "histograms",
    "matrices",
    "number_formats",
    "number_line",
    "picture",
]
