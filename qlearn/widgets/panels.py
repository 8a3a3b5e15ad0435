"""What several explorers draw: histograms of x and x̂, errors on a logarithmic axis, and the marks of what is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.text import Text

from qlearn.style import BLACK, BLUE, GREY, VERMILLION

BINS = 110
FEWEST = 0.5  # the count at which a logarithmic axis begins, so that a single value has a height
LIGHT_BLUE = "#BFDDF0"
BAR = 5.0  # pixels: the width of a code's bar where there is room

# How stairs look: what was before quantization filled and with an outline, what is after it hatched.
BEFORE: dict[str, Any] = {"fill": True, "color": LIGHT_BLUE}
OUTLINE: dict[str, Any] = {"baseline": None, "color": BLUE, "linewidth": 1.3}
AFTER: dict[str, Any] = dict(fill=True, facecolor=VERMILLION, edgecolor="#FFD2B0", hatch="/////", linewidth=0)


class Bins:
    """Bins on an axis on which bulk and outliers both have room: linear within one unit of 0, logarithmic beyond.

        place = arcsinh(x / unit)

    Attributes:
        places: the edges of the bins on the axis.
        edges: the same in the units of x.

    >>> float(Bins(unit=1.0, reach=100.0).place(0.0))
    0.0
    """

    def __init__(self, unit: float, reach: float) -> None:
        self.unit = unit
        self.end = 1.03 * float(self.place(reach))
        self.places = np.linspace(-self.end, self.end, BINS + 1)
        self.edges = unit * np.sinh(self.places)

    def place(self, x: Any) -> Any:
        """Where `x` lies on the axis."""
        return np.arcsinh(np.asarray(x) / self.unit)

    def label(self, axes: Axes) -> None:
        """Give the horizontal axis its limits, and its ticks at powers of ten."""
        axes.set_xlim(-self.end, self.end)
        first = round(math.log10(self.unit))
        last = math.floor(math.log10(self.unit * math.sinh(self.end)))
        powers = [10.0**power for power in range(first, last + 1)]
        every = -(-len(powers) // 4)
        major = [*(-power for power in powers[::every]), 0.0, *powers[::every]]
        axes.set_xticks(self.place(major), [plain(tick) for tick in major])
        minor = [sign * digit * power for power in powers for digit in range(2, 10) for sign in (-1, 1)]
        axes.set_xticks([place for place in self.place(minor) if abs(place) < self.end], minor=True)


class EvenBins:
    """So many bins of one width from `lo` to `hi`, on an ordinary axis; attributes as those of `Bins`.

    >>> EvenBins(0.0, 4.0, 2).edges
    array([0., 2., 4.])
    """

    def __init__(self, lo: float, hi: float, bins: int) -> None:
        self.places = self.edges = np.linspace(lo, hi, bins + 1)

    def place(self, x: Any) -> Any:
        """Where `x` lies on the axis."""
        return np.asarray(x)

    def label(self, axes: Axes) -> None:
        """Give the horizontal axis its limits."""
        pad = 0.02 * (self.edges[-1] - self.edges[0])
        axes.set_xlim(self.edges[0] - pad, self.edges[-1] + pad)


class Histograms:
    """x as an outline of bins, x̂ as one bar a code; where several codes share a bin, each has the height of a bin.

    Args:
        axes: to draw on.
        pixels: the width of the whole figure.

    Attributes:
        artists: those that move.
    """

    def __init__(self, axes: Axes, pixels: int) -> None:
        self.axes = axes
        self._width = axes.get_position().width * pixels
        axes.set_xlabel("value")
        axes.set_ylabel("how many values (log scale)")
        axes.grid(axis="y")
        axes.axhline(height(0), color=GREY, linewidth=0.8)
        self._x = counted(axes, **BEFORE, label="$x$, in bins")
        self._x_hat = counted(axes, **AFTER, label="$\\hat{x}$, one bar a code")
        self._x_line = counted(axes, **OUTLINE)
        self._rug = moving(axes, "|", color=VERMILLION, markersize=7, markeredgewidth=0.8, label="tick of a code")
        self.artists: list[Artist] = [self._x, self._x_hat, self._x_line, self._rug]

    def fit(self, bins: Bins | EvenBins, most: int) -> None:
        """Make room for these bins and for `most` values in one of them."""
        self.bins = bins
        self._bar = BAR * (bins.places[-1] - bins.places[0]) / self._width
        bins.label(self.axes)
        top = height(most) + 0.45
        self.axes.set_ylim(height(0) - 0.4, top)
        count_ticks(self.axes, math.ceil(top))

    def update(self, histogram: Any, ticks: Any, counts: Any) -> None:
        """Show how many values of x lie in each bin, and how many get each code, whose tick is given."""
        used = counts > 0
        self._x.set_data(height(histogram), self.bins.places)
        self._x_line.set_data(height(histogram), self.bins.places)
        places = self.bins.place(ticks)
        heights = height(per_bin(places, counts, self.bins.places))
        self._x_hat.set_data(*bars(places[used], heights[used], self._bar, height(0)))
        self._rug.set_data(places, np.full(len(ticks), height(0) - 0.2))


def counted(axes: Axes, **look: Any) -> StepPatch:
    """Stairs on a logarithmic axis of counts, without any so far."""
    return axes.stairs([height(0)], [0.0, 1.0], **{"baseline": height(0), **look})


def moving(axes: Axes, *marks: str, x: Any = (), y: Any = (), **look: Any) -> Line2D:
    """A line or markers; without points so far, or with some of which only x or only y will change."""
    return axes.plot(x, y, *marks, **look)[0]


def heading(axes: Axes, above: float) -> Text:
    """A title that changes, so far above. Not the axes' own, whose place is found only when all axes are drawn."""
    corner = axes.get_position()
    return axes.figure.text(corner.x0, corner.y1 + above, "", fontsize=9)


def ring(axes: Axes, size: float, marker: str = "s", **look: Any) -> Line2D:
    """An open mark around where the controls stand."""
    look = {"color": "none", "markeredgecolor": BLACK, "markeredgewidth": 1.4, **look}
    return moving(axes, marker, markersize=size, **look)


def diamond(axes: Axes, colour: str, size: float = 7, **look: Any) -> Line2D:
    """Where the one value is that can be followed."""
    return moving(axes, "D", color=colour, markersize=size, markeredgecolor="white", **look)


def per_bin(places: Any, counts: Any, edges: Any) -> Any:
    """The height of each code's bar beside bins: its count, or where several codes share a bin, what the bin holds.

    A code has fewer values than a bin with other codes in it, but none is lost. A code's values are spread evenly up to
    the ties with its neighbours, so that bins of two codes and of three have not the heights of two and of three.

    >>> per_bin(np.arange(8.0), np.full(8, 10), edges=[-0.5, 3.5, 7.5])
    array([40., 40., 40., 40., 40., 40., 40., 40.])
    >>> per_bin(np.arange(3.0), np.array([3, 5, 4]), edges=np.linspace(-0.5, 2.5, 7))
    array([3., 5., 4.])
    """
    ties = (places[1:] + places[:-1]) / 2
    ends = np.concatenate([2 * places[:1] - ties[:1], ties, 2 * places[-1:] - ties[-1:]])
    below = np.interp(edges, ends, np.concatenate([[0], np.cumsum(counts)]))
    bins = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, len(edges) - 2)
    return np.maximum(counts, np.diff(below)[bins])


def bars(places: Any, heights: Any, widest: float, baseline: float) -> tuple[Any, Any]:
    """Heights and edges of one bar a place: `widest` where there is room, touching the next where there is not.

    >>> heights, edges = bars(np.array([0.0, 10.0, 12.0]), np.array([5.0, 6.0, 7.0]), 4.0, 0.0)
    >>> heights, edges
    (array([5., 0., 6., 0., 7.]), array([-2.,  2.,  8., 11., 11., 14.]))
    """
    half = np.minimum(np.concatenate([[widest], np.diff(places) / 2, [widest]]), widest / 2)
    steps = np.full(2 * len(places) - 1, baseline)
    steps[::2] = heights
    return steps, np.stack([places - half[:-1], places + half[1:]], 1).reshape(-1)


def decades(values: Any, span: float = 1e9) -> tuple[int, int]:
    """The powers of ten around all values but those smaller than the largest by more than `span`; NaN is left out.

    >>> decades([0.03, 20.0, float("nan")])
    (-2, 2)
    """
    largest = float(np.nanmax(values)) or 1.0
    smallest = max(float(np.nanmin(values)), largest / span)
    return math.floor(math.log10(smallest)), math.ceil(math.log10(largest))


def on_decades(values: Any, low: int) -> Any:
    """Where values lie on an axis that `error_axis` has made; what is smaller than its lower end lies there."""
    return np.log10(np.maximum(values, 10.0**low))


def power_ticks(axis: Axis, low: float, high: float, *, every: int = 1, unit: float = 1.0) -> None:
    """Ticks at powers of ten on an axis for log10 of a number, labelled with the number itself in this unit."""
    powers = [power for power in range(math.ceil(low), math.floor(high) + 1) if power % every == 0]
    axis.set_ticks(powers, labels=[plain(10.0**power / unit) for power in powers])


def error_axis(axes: Axes, low: int, high: int, ticks: int = 4, label: Callable[[int], str] | None = None) -> None:
    """A vertical axis for log10 of an error, from 10^low to 10^high, labelled with the errors themselves.

    There are about so many ticks; `label` writes them in another way, from the power of ten.
    """
    axes.set_ylim(low - 0.3, high + 0.3)
    powers = range(low, high + 1, -(-(high - low) // ticks) or 1)
    axes.set_yticks(powers, [label(power) if label else plain(10.0**power) for power in powers])


def height(count: Any) -> Any:
    """Where a count lies on the logarithmic axis."""
    return np.log10(np.maximum(count, FEWEST))


def towards_100(percent: Any, best: float) -> Any:
    """Where an accuracy lies on an axis on which every halving of the errors is as high as any other, up to `best`.

    >>> float(towards_100(90.0, 99.9)), float(towards_100(0.0, 99.9))
    (-1.0, -2.0)
    """
    return -np.log10(100 - np.minimum(percent, best))


def columns(places: Any) -> Any:
    """Points as what `set_data` takes: all x, and all y; also where there are none.

    >>> columns([(1.0, 2.0), (3.0, 4.0)]).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    return np.reshape(places, (-1, 2)).T


def plain(number: float) -> str:
    """A tick's label; powers of ten only where zeros can no longer be counted at a glance.

    >>> plain(0.001), plain(-10.0), plain(1e6)
    ('0.001', '−10', '1e+06')
    """
    text = f"{number:g}" if number == 0 or not 1e-6 < abs(number) < 1e5 else f"{number:.6f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


def count_ticks(axes: Axes, powers: int) -> None:
    """Ticks for the logarithmic axis of counts: so many powers of ten from 1 on."""
    axes.set_yticks(range(powers), [count(10**power) for power in range(powers)])


def count(n: int) -> str:
    """A power of ten in few letters.

    >>> count(10), count(10_000), count(10**6)
    ('10', '10 k', '1 M')
    """
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if n >= size:
            return f"{n // size}{letter}"
    return str(n)
