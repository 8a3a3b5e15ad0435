"""Pictures of what is repaired: channels of unequal range, shifted means, and roundings that could be better."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qlearn.plots.charts import COLOURS, MARKERS
from qlearn.plots.picture import picture
from qlearn.style import BLACK, BLUE, GREY, INK, PALE, VERMILLION


@picture
def straight_lines(
    x: Any, y: Any, names: Mapping[int, str], *, xlabel: str = "before", ylabel: str = "after"
) -> tuple[Figure, str]:
    """What a module makes of some channels: one point for each number, x before and y after.

    Args:
        x, y: (N, C) or (N, C, H, W), the numbers before and after.
        names: channels to draw → their labels.

    >>> import numpy as np
    >>> x = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 3.0]])
    >>> straight_lines(x, x * [2, -1] + [1, 0], {0: "a", 1: "b"})
    after against before. a: 3 points on the line 2 · x + 1. b: 3 points on the line −1 · x.
    """
    x, y = (np.moveaxis(np.asarray(v, dtype=np.float64), 1, -1).reshape(-1, np.shape(v)[1]) for v in (x, y))
    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    axes = figure.subplots()
    parts = []
    for (channel, name), colour, marker in zip(names.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        before, after = x[:, channel], y[:, channel]
        shown = np.argsort(before)[np.unique(np.linspace(0, len(before) - 1, 60).astype(int))]
        axes.plot(before[shown], after[shown], marker, color=colour, markersize=3.5, alpha=0.8, label=name)
        slope, intercept = np.polyfit(before, after, 1)
        off = np.abs(slope * before + intercept - after).max() / max(np.abs(after).max(), 1e-30)
        where = f"on the line {_number(slope)} · x{_signed(intercept)}" if off < 1e-4 else "on no line"
        parts.append(f"{name}: {len(before)} points {where}.")
    axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid()
    axes.legend()
    return figure, f"{ylabel} against {xlabel}. {' '.join(parts)}"


@picture
def channel_ranges(
    networks: Mapping[str, tuple[Any, Any]], *, labels: tuple[str, str] = ("made by", "read by")
) -> tuple[Figure, str]:
    """For each channel between two layers, the largest |weight| that makes it and the largest that reads it.

    Args:
        networks: title → (r₁, r₂), both (C,).
        labels: of r₁ and r₂.

    >>> channel_ranges({"before": ([4.0, 0.5], [1.0, 2.0]), "after": ([2.0, 1.0], [2.0, 1.0])})
    Largest weights of 2 channels. before: made by 0.5 to 4, read by 1 to 2, up to 4 times as large on one side as on \
the other. after: made by 1 to 2, read by 1 to 2, equal on both sides.
    """
    figure = Figure(figsize=(7.6, 2.7), layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    parts = []
    for axes, (title, ranges) in zip(panels, networks.items(), strict=True):
        made, read = (np.asarray(r, dtype=np.float64) for r in ranges)
        places = np.arange(len(made))
        alive = (made > 0) & (read > 0)
        axes.vlines(places[alive], *np.sort([made[alive], read[alive]], axis=0), color=GREY, linewidth=0.9)
        # Open circles around squares: both are seen where the two ranges are the same.
        axes.plot(places, made, "o", color=BLUE, markersize=7, fillstyle="none", markeredgewidth=1.4, label=labels[0])
        axes.plot(places, read, "s", color=VERMILLION, markersize=3.5, label=labels[1])
        axes.set(title=title, xlabel="channel", yscale="log")
        axes.minorticks_off()
        axes.grid(axis="y")
        ratio = float(np.exp(np.abs(np.log(made[alive] / read[alive])).max())) if alive.any() else 1.0
        how = "equal on both sides" if ratio < 1.01 else f"up to {ratio:.3g} times as large on one side as on the other"
        sides = ", ".join(
            f"{label} {r.min():.3g} to {r.max():.3g}" for label, r in zip(labels, (made, read), strict=True)
        )
        parts.append(f"{title}: {sides}, {how}.")
    low, high = panels[0].get_ylim()
    powers = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    panels[0].set_yticks(10.0**powers, [f"{10.0**p:g}" for p in powers])
    panels[0].set_ylabel("largest |weight|")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure, f"Largest weights of {len(made)} channels. {' '.join(parts)}"


@picture
def mean_shifts(
    shifts: Mapping[str, Any], *, xlabel: str = "channel", ylabel: str = "mean error"
) -> tuple[Figure, str]:
    """The mean error of each channel in several networks, as bars from 0.

    Args:
        shifts: name → (C,), the mean of ŷ − y for each channel.

    >>> mean_shifts({"before": [0.5, -1.0], "after": [0.0, 0.01]})
    mean error of 2 channels. before: −1 to 0.5. after: 0 to 0.01.
    """
    figure = Figure(figsize=(7.6, 2.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(shifts)
    parts = []
    hatches = ("", "////", "....", "xxxx")
    for k, (name, values) in enumerate(shifts.items()):
        values = np.asarray(values, dtype=np.float64)
        places = np.arange(len(values)) + (k - (len(shifts) - 1) / 2) * width
        look: dict[str, Any] = (
            {"color": COLOURS[k]} if not hatches[k] else {"facecolor": "white", "edgecolor": COLOURS[k]}
        )
        axes.bar(places, values, width=width, hatch=hatches[k], linewidth=0.8, label=name, **look)
        parts.append(f"{name}: {_number(values.min())} to {_number(values.max())}.")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(np.arange(len(values)) if len(values) <= 16 else np.arange(0, len(values), 4))
    axes.grid(axis="y")
    axes.legend()
    return figure, f"{ylabel} of {len(values)} channels. {' '.join(parts)}"


@picture
def two_weights(
    w: Any, h: Any, chosen: Mapping[str, Any], *, names: tuple[str, str] = ("first weight", "second weight")
) -> tuple[Figure, str]:
    """Two weights among the ticks around them, and a line of equal output error through each of the chosen ticks.

        error of ŵ = (w − ŵ)ᵀ H (w − ŵ)

    Args:
        w: the two weights, in steps: ticks are whole numbers.
        h: (2, 2), the mean of x xᵀ over inputs x.
        chosen: name → the two ticks that were chosen.

    >>> two_weights([0.5, 0.5], [[1.0, 0.9], [0.9, 1.0]], {"nearest": [0, 0], "best": [0, 1]})
    Two weights, 0.5 and 0.5, among ticks. nearest: 0 and 0, output error 0.95. best: 0 and 1, output error 0.05.
    """
    w, h = np.asarray(w, dtype=np.float64), np.asarray(h, dtype=np.float64)
    low, high = np.floor(w) - 1.2, np.ceil(w) + 1.2
    figure = Figure(figsize=(5.4, 3.5), layout="compressed")
    axes = figure.subplots()
    xs, ys = (np.linspace(a, b, 241) for a, b in zip(low, high, strict=True))
    e1, e2 = xs[None, :] - w[0], ys[:, None] - w[1]
    surface = h[0, 0] * e1**2 + 2 * h[0, 1] * e1 * e2 + h[1, 1] * e2**2
    parts = []
    ticks = [np.arange(np.ceil(a), np.floor(b) + 1) for a, b in zip(low, high, strict=True)]
    every = np.stack(np.meshgrid(*ticks), axis=-1).reshape(-1, 2)
    axes.plot(*every.T, ".", color=GREY, markersize=7, label="ticks")
    axes.plot(*w, "x", color=BLACK, markersize=9, markeredgewidth=2, label="the two weights")
    styles = zip((BLUE, VERMILLION, BLACK, INK), ("o", "s", "^", "D"), ("--", "-", ":", "-."), strict=True)
    for (name, ticks_of), (colour, marker, line) in zip(chosen.items(), cycle(styles), strict=False):
        place = np.asarray(ticks_of, dtype=np.float64)
        error = float((w - place) @ h @ (w - place))
        axes.contour(xs, ys, surface, levels=[error], colors=[colour], linestyles=[line], linewidths=1.3)
        axes.plot(*place, marker, color=colour, markersize=9, label=f"{name}: error {error:.2g}")
        at = " and ".join(_number(v) for v in place)
        parts.append(f"{name}: {at}, output error {error:.2g}.")
    axes.set(xlabel=f"{names[0]} (steps)", ylabel=f"{names[1]} (steps)", xticks=ticks[0], yticks=ticks[1])
    axes.set(aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    numbers = " and ".join(_number(v) for v in w)
    return figure, f"Two weights, {numbers}, among ticks. {' '.join(parts)}"


@picture
def passed_on(w: Any, r: Any) -> tuple[Figure, str]:
    """A row of weights, rounded one after the other: above, what each error adds to the weights that come later.

        wanted_j = w_j + Σ_{i<j} (w_i − ŵ_i) R_ij          ŵ_j = wanted_j, rounded to a whole number

    Args:
        w: (n,), the weights in steps: ticks are whole numbers.
        r: (n, n), upper triangular, ones on its diagonal, as `gptq.factors` gives it.

    >>> passed_on([0.4, 0.4], [[1.0, 0.9], [0.0, 1.0]])
    2 weights, rounded one after the other. Weight 1 is 0.4, wants 0.4, becomes 0; its error 0.4 adds 0.36 to weight \
2. Weight 2 is 0.4, wants 0.76, becomes 1; its error is −0.6.
    """
    w, r = np.asarray(w, dtype=np.float64), np.triu(np.asarray(r, dtype=np.float64))
    wanted, w_hat = w.copy(), np.zeros_like(w)
    for j in range(len(w)):
        wanted[j] += (w[:j] - w_hat[:j]) @ r[:j, j]
        w_hat[j] = np.rint(wanted[j])
    errors = w - w_hat
    places: Any = np.arange(len(w))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.1, 1))
    turn = np.linspace(0, np.pi, 60)
    for i in places:
        for j in places[i + 1 :]:
            passed = errors[i] * r[i, j]
            colour, line = (VERMILLION, "-") if passed > 0 else (BLUE, "--")
            middle, radius = (i + j) / 2, (j - i) / 2
            arc = middle - radius * np.cos(turn), 2 * radius * np.sin(turn)
            above.plot(*arc, line, color=colour, linewidth=0.8 + 3 * abs(passed), solid_capstyle="butt")
            above.text(
                middle,
                2 * radius,
                _with_sign(passed),
                ha="center",
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
    above.plot(places, np.zeros(len(w)), "o", color=INK, markersize=5, clip_on=False)
    above.set(ylim=(0, len(w) - 0.6), yticks=[], title="what each error adds to the weights after it")
    above.spines["left"].set_visible(False)
    above.tick_params(bottom=False)

    ticks = np.arange(np.floor(min(w.min(), w_hat.min())), np.ceil(max(w.max(), w_hat.max(), wanted.max())) + 1)
    below.set(yticks=ticks, ylim=(ticks[0] - 0.35, ticks[-1] + 0.35), ylabel="steps")
    below.grid(axis="y")
    for j in places:
        if abs(wanted[j] - w[j]) > 0.25:  # a shorter arrow would be all head
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 5, "shrinkB": 5}
            below.annotate("", (j, wanted[j]), (j, w[j]), arrowprops=arrow)
    below.plot(places, w, "x", color=BLACK, markersize=8, markeredgewidth=2, label="weight")
    below.plot(places, wanted, "o", color=VERMILLION, markersize=8, fillstyle="none", label="wanted")
    below.plot(places + 0.12, w_hat, "s", color=BLUE, markersize=7, label="rounded")
    names = [f"weight {number}\nerror {_with_sign(error)}" for number, error in enumerate(errors, start=1)]
    below.set_xticks(places, names)
    below.set_xlim(-0.4, len(w) - 0.6)
    below.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    parts = []
    for i, error in enumerate(errors):
        added = ", ".join(f"{_number(error * r[i, j])} to weight {j + 1}" for j in places[i + 1 :])
        passes_on = f"its error {_number(error)} adds {added}" if added else f"its error is {_number(error)}"
        parts.append(
            f"Weight {i + 1} is {_number(w[i])}, wants {_number(wanted[i])}, becomes {_number(w_hat[i])}; {passes_on}."
        )
    return figure, f"{len(w)} weights, rounded one after the other. {' '.join(parts)}"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _with_sign(value: float) -> str:
    """+0.48 or −0.4, two digits behind the point at most."""
    return f"{value:+.2f}".rstrip("0").rstrip(".").replace("-", "−")


def _signed(value: float) -> str:
    """+ 1.5 or − 1.5, to stand behind a term; nothing for 0."""
    return "" if abs(value) < 1e-9 else f" {'+' if value > 0 else '−'} {abs(value):.3g}"
