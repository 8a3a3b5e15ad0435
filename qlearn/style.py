"""How all pictures look: colours that colour-blind readers can tell apart, one font, few lines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb

# Okabe and Ito's colours, https://jfly.uni-koeln.de/color/, the orange and the sky blue darkened: a thin line has to
# stand out from its background by 3 to 1, which theirs do not. Yellow and PALE are for areas with something on them.
BLACK, ORANGE, SKY, GREEN = "#000000", "#C08500", "#3A96D2", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
INK, GREY, MUTED, PALE = "#222222", "#5F5F5F", "#8A8A8A", "#D9D9D9"  # text, text, lines that stand back, areas

# The same picture on a dark page. The page itself turns the colours over as it shows the picture, so that no kernel
# has to know the theme: lightness is turned round, the hue stays, and white becomes the dark of JupyterLab's page.
DARKEST = 1 / 15
DARK_FILTER = f"invert({1 - DARKEST:.3f}) hue-rotate(180deg)"

# In a browser Matplotlib looks for its fonts each time, in a moment, and says so in red: nothing that a learner needs.
logging.getLogger("matplotlib.font_manager").addFilter(lambda record: "building the font cache" not in str(record.msg))

DPI = 100  # pixels of the page in an inch of the figure
STILL_RATIO = 2  # pixels of a still picture for one of the page: for print, and for screens that have them
SMALLEST = 8.5  # points: 9 pixels where a picture of 800 has been shrunk to the 632 of a narrow page

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so that a picture is the same everywhere
    "font.size": SMALLEST,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": SMALLEST,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.1,  # inches: on a dark page a stored picture is a white card
    "figure.constrained_layout.h_pad": 0.1,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": SMALLEST,
    "hatch.linewidth": 0.7,
}


def on_dark(colour: Any) -> str:
    """What DARK_FILTER makes of a colour.

    >>> on_dark("white"), on_dark("black"), on_dark(BLUE)
    ('#111111', '#eeeeee', '#4bade5')

    Source: W3C, Filter Effects, https://www.w3.org/TR/filter-effects-1/, sections 13.3 and 13.7.
    """
    turned = 1 - DARKEST + np.asarray(to_rgb(colour)) * (2 * DARKEST - 1)
    grey = np.array([0.213, 0.715, 0.072])  # hue-rotate turns about the axis of greys, by these weights
    red, green, blue = np.clip(2 * grey @ turned - turned, 0, 1)
    return to_hex((red, green, blue))


def contrast(one: Any, other: Any) -> float:
    """How far two colours stand apart, from 1 to 21: text needs 4.5, a line or a marker 3.

        (L₁ + 0.05) / (L₂ + 0.05),  L the relative luminance, the lighter one first

    >>> contrast("white", "black"), round(contrast("white", BLUE), 2)
    (21.0, 5.19)

    Source: W3C, WCAG 2.2, https://www.w3.org/TR/WCAG22/, criteria 1.4.3 and 1.4.11.
    """

    def luminance(colour: Any) -> float:
        c = np.asarray(to_rgb(colour))
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


# One picture at a time in a process: Matplotlib shares fonts and settings between its figures, and current
# kernels call an explorer's controls from another thread than the one that runs the cells.
DRAWING = threading.RLock()


@contextmanager
def own_style() -> Iterator[None]:
    """Draw in our style, whatever style the learner has chosen for their own figures."""
    with DRAWING, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield
