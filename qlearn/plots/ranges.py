"""Pictures of ranges: what each clip costs, how a sorted tensor is judged, where the methods' ranges lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from qlearn.affine import QParams, dequantize, quant_limits, quantize
from qlearn.plots.charts import COLOURS, MARKERS, without_left_spine
from qlearn.plots.picture import picture
from qlearn.range_search import Search
from qlearn.sorted_view import SortedView
from qlearn.style import BLACK, BLUE, GREY, INK, PALE, SKY, VERMILLION

CLIPS = 120  # points of a curve


@picture
def clip_curve(x: Any, bits: int) -> tuple[Figure, str]:
    """The mean squared error and its two parts against the clip: both ends of the range cut off at ±clip.

    >>> clip_curve(np.linspace(-1, 1, 1001), bits=4)
    Mean squared error at 4 bits against the clip. Smallest at 0.987: 0.00148, \
of which rounding 0.00145 and clipping 3.76e-05.
    """
    view = SortedView(x)
    clips = _clips(view)
    rounding, clipping = _parts_of_error(view, clips, bits)
    total = rounding + clipping
    best = int(np.argmin(total))
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(clips, total, color=BLACK, linewidth=2, label="sum: mean squared error")
    axes.plot(clips, rounding, color=BLUE, linestyle="--", linewidth=1.4, label="rounding")
    axes.plot(clips, clipping, color=VERMILLION, linestyle=":", linewidth=1.8, label="clipping")
    axes.plot(clips[best], total[best], "o", color=BLACK, markersize=6)
    axes.annotate(
        f"best clip {clips[best]:.3g}",
        (clips[best], total[best]),
        (0, 9),
        textcoords="offset points",
        ha="center",
        color=INK,
    )
    axes.set(xlabel="clip: the range is −clip … clip", ylabel="mean squared error", yscale="log")
    axes.set_ylim(total[best] / 30, 2 * total.max())
    _log_clips(axes, clips)
    axes.grid()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    alt = (
        f"Mean squared error at {bits} bits against the clip. Smallest at {clips[best]:.3g}: {total[best]:.3g}, "
        f"of which rounding {rounding[best]:.3g} and clipping {clipping[best]:.3g}."
    )
    return figure, alt


@picture
def clip_curves(data: Mapping[str, Any], bits: Sequence[int] = (8, 4, 3, 2)) -> tuple[Figure, str]:
    """The mean squared error against the clip for up to four tensors, each at a few bit widths; the best is marked.

    >>> clip_curves({"flat": np.linspace(-1, 1, 1001)}, bits=[8, 2])
    Best clip by bits. flat (largest 1): 1 at 8, 0.816 at 2.
    """
    views = {name: SortedView(x) for name, x in data.items()}
    columns = min(2, len(views))
    rows = -(-len(views) // columns)
    figure = Figure(figsize=(7.6, 0.5 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    parts = []
    for axes, (name, view) in zip(panels.flat, views.items(), strict=False):
        clips = _clips(view)
        found = []
        for b, colour, marker in zip(bits, cycle(COLOURS), cycle(MARKERS), strict=False):
            total = _errors(view, clips, b)
            best = int(np.argmin(total))
            axes.plot(clips, total, color=colour, linewidth=1.3)
            axes.plot(clips[best], total[best], marker, color=colour, markersize=6, label=f"{b} bits")
            found.append(f"{clips[best]:.3g} at {b}")
        axes.set(title=name, yscale="log")
        axes.grid()
        parts.append(f"{name} (largest {clips[-1]:.3g}): {', '.join(found)}")
    every = np.concatenate([_clips(view) for view in views.values()])
    _log_clips(panels[0, 0], every)
    for axes in panels[-1]:
        axes.set_xlabel("clip")
    for axes in panels[:, 0]:
        axes.set_ylabel("mean squared error")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(bits))
    return figure, f"Best clip by bits. {'; '.join(parts)}."


@picture
def sorted_values(x: Any, qparams: QParams) -> tuple[Figure, str]:
    """The values in order. Those that get one code are neighbours: a code is a stretch between two places.

    >>> sorted_values([0.2, 3.0, 1.2, 0.9], QParams(1.0, 0, 0, 3))
    4 values in order, from 0.2 to 3. Neighbours share a code: 1 value code 0, 2 values code 1, 1 value code 3.
    """
    x = np.sort(np.asarray(x, dtype=np.float64).reshape(-1))
    codes = np.asarray(quantize(x, qparams)).astype(int)
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    axes = figure.subplots()
    parts = []
    used = [code for code in range(qparams.quant_min, qparams.quant_max + 1) if (codes == code).any()]
    top, bottom = x.max(), x.min()
    margin = 0.12 * (top - bottom)
    for k, code in enumerate(used):
        places = np.flatnonzero(codes == code)
        first, last = places[0] - 0.5, places[-1] + 0.5
        tick = float(dequantize(np.int64(code), qparams))
        if k % 2 == 0:
            axes.axvspan(first, last, color=PALE, alpha=0.5, linewidth=0)
        axes.hlines(tick, first, last, color=VERMILLION, linewidth=2, label="tick: x̂" if k == 0 else "")
        axes.vlines(places, tick, x[places], color=GREY, linewidth=0.7)
        axes.text((first + last) / 2, top + margin, str(code).replace("-", "−"), ha="center", color=BLUE)
        parts.append(f"{len(places)} value{'s' if len(places) > 1 else ''} code {code}")
    axes.plot(np.arange(len(x)), x, "o", color=BLUE, markersize=3.5, label="value: x")
    axes.text(-0.012, top + margin, "code", ha="right", color=BLUE, transform=axes.get_yaxis_transform())
    axes.set(xlabel="place in the sorted array", ylabel="value", xlim=(-0.5, len(x) - 0.5))
    axes.set_ylim(bottom - margin, top + 2 * margin)
    axes.legend(loc="lower right")
    return figure, (
        f"{len(x)} values in order, from {x[0]:.3g} to {x[-1]:.3g}. Neighbours share a code: {', '.join(parts)}."
    )


@picture
def ranges_over(
    x: Any, ranges: Mapping[str, tuple[float, float]], notes: Mapping[str, str] | None = None, *, xlabel: str = "value"
) -> tuple[Figure, str]:
    """The histogram of x, and under it the range of each method as a bar, with a note beside it.

    >>> ranges_over([0.0, 1.0, 9.0], {"min-max": (0, 9), "percentile": (0, 2)}, {"min-max": "all of it"})
    3 values from 0 to 9. min-max: 0 to 9, all of it. percentile: 0 to 2.
    """
    x = np.asarray(x, dtype=np.float64).reshape(-1)
    notes = notes or {}
    figure = Figure(figsize=(7.6, 1.9 + 0.42 * len(ranges)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, 0.42 * len(ranges)])
    upper.hist(x, 150, color=SKY)
    upper.set(yscale="log", ylabel="count")
    upper.grid(axis="y")
    parts = []
    for row, ((name, (lo, hi)), colour) in enumerate(zip(ranges.items(), cycle(COLOURS), strict=False)):
        lower.plot([lo, hi], [row, row], "|-", color=colour, linewidth=3.5, markersize=12, markeredgewidth=2)
        note = notes.get(name, "")
        lower.text(1.01, row, note, transform=lower.get_yaxis_transform(), va="center", fontsize=8)
        said = note.replace("\n", ", ")
        parts.append(f"{name}: {lo:.3g} to {hi:.3g}{', ' if note else ''}{said}.")
    lower.set(yticks=range(len(ranges)), yticklabels=ranges, ylim=(len(ranges) - 0.4, -0.6), xlabel=xlabel)
    without_left_spine(lower)
    return figure, f"{len(x)} values from {x.min():.3g} to {x.max():.3g}. {' '.join(parts)}"


def _clips(view: SortedView) -> np.ndarray:
    """Clips from well below the typical value to the largest one, each larger than the one before by one factor."""
    largest = max(abs(float(view.values[0])), abs(float(view.values[-1])))
    typical = float(np.mean(np.abs(view.values)))
    clips = np.geomspace(min(0.4 * typical, largest / 2), largest, CLIPS)
    clips[-1] = largest
    return clips


def _quantizers(view: SortedView, clips: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each clip scale and zero point of the range cut off there, and the sum of squared errors.

    With both ends alike the zero point lies halfway between two codes: the better one is taken.
    """
    search = Search(bits)
    lo, hi = float(view.values[0]), float(view.values[-1])
    scale, zero_point = search.quantizers_of(np.maximum(lo, -clips), np.minimum(hi, clips))
    errors = view.sse(scale, zero_point, *search.limits)
    better = 2 * np.arange(len(clips)) + errors.reshape(-1, 2).argmin(-1)
    return scale[better], zero_point[better], errors[better]


def _errors(view: SortedView, clips: np.ndarray, bits: int) -> np.ndarray:
    """The mean squared error for each clip."""
    return _quantizers(view, clips, bits)[2] / len(view)


def _parts_of_error(view: SortedView, clips: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounding and clipping, as means over all values, for each clip."""
    scale, zero_point, _ = _quantizers(view, clips, bits)
    limits = quant_limits(bits)
    measured = [view.measure(QParams(s, int(z), *limits)) for s, z in zip(scale.tolist(), zero_point, strict=True)]
    n = len(view)
    return np.array([m.rounding for m in measured]) / n, np.array([m.clipping for m in measured]) / n


def _log_clips(axes: Axes, clips: np.ndarray) -> None:
    """A logarithmic axis with whole numbers on it."""
    axes.set_xscale("log")
    digits = (1, 2, 5) if clips.max() > 30 * clips.min() else (1, 2, 3, 5)
    steps = [digit * 10.0**e for e in range(-6, 7) for digit in digits]
    shown = [step for step in steps if clips.min() <= step <= 1.05 * clips.max()]
    axes.set_xticks(shown, [f"{step:g}" for step in shown])
    axes.xaxis.set_minor_locator(NullLocator())
