"""Pictures of training through a staircase: slopes, and weights on their way from tick to tick."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qlearn.plots.picture import picture
from qlearn.style import BLACK, BLUE, GREY, ORANGE, VERMILLION

LOOKS: tuple[dict[str, Any], ...] = (  # colour, and the line's style as the second cue
    {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1.2},
    {"color": BLUE, "linewidth": 1.9},
    {"color": VERMILLION, "linewidth": 1.9},
    {"color": ORANGE, "linestyle": (0, (3, 1)), "linewidth": 1.5},
)
PATHS = ((BLUE, "-"), (VERMILLION, "--"), (BLACK, ":"), (ORANGE, "-."))


@picture
def slopes(x: Any, values: Mapping[str, Any], gradients: Mapping[str, Any]) -> tuple[Figure, str]:
    """Functions of x above, and below what is taken for their slopes.

    Args:
        x: places, in order, in steps of the quantizer.
        values: name → the function's values there; at most two.
        gradients: name → slopes there; at most three. The first looks like the second function: its own slope.

    >>> import numpy as np
    >>> x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    >>> slopes(x, {"x": x, "clamped": x.clip(-1, 1)}, {"slope": [0, 1, 1, 1, 0]})
    From x = -2 to 2: x from -2 to 2; clamped from -1 to 1. Below, slope: from 0 to 1, and not 0 from x = -1 to 1.
    """
    x = np.asarray(x, dtype=np.float64)
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    parts, below_parts = [], []
    for (name, y), look in zip(values.items(), cycle(LOOKS), strict=False):
        y = np.asarray(y, dtype=np.float64)
        above.plot(x, y, label=name, **look)
        parts.append(f"{name} from {y.min():.3g} to {y.max():.3g}")
    for (name, y), look in zip(gradients.items(), cycle(LOOKS[1:]), strict=False):
        y = np.asarray(y, dtype=np.float64)
        below.plot(x, y, label=name, **look)
        there = x[y != 0]
        where = f", and not 0 from x = {there[0]:.3g} to {there[-1]:.3g}" if len(there) else ""
        below_parts.append(f"{name}: from {y.min():.3g} to {y.max():.3g}{where}")
    above.set(title="values", ylim=(-2.1, 2.1))
    below.set(title="slopes", xlabel="x, in steps", ylim=(-2.0, 1.3), yticks=[-1, 0, 1])
    for axes in (above, below):
        axes.grid()
    above.legend(loc="upper left")
    below.legend(loc="lower center", ncols=len(gradients), borderaxespad=0.1)
    head = f"From x = {x[0]:.3g} to {x[-1]:.3g}: {'; '.join(parts)}."
    return figure, f"{head} Below, {'; '.join(below_parts)}."


@picture
def weight_paths(steps: Any, paths: Mapping[str, Any]) -> tuple[Figure, str]:
    """Weights in units of their scale, step by step of a training, and the ticks −1, 0 and 1 they are rounded to.

    Args:
        steps: numbers of the steps.
        paths: name → weight / scale at these steps; at most four.

    >>> weight_paths([0, 1, 2], {"one": [0.4, 0.45, 0.6]})
    Weights in units of their scale, from step 0 to 2. one: from 0.40 to 0.60, its code from 0 to 1, 1 change.
    """
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for boundary in (-0.5, 0.5):
        axes.axhline(boundary, color=GREY, linewidth=1.0, linestyle=":")
    parts = []
    for (name, path), (colour, style) in zip(paths.items(), cycle(PATHS), strict=False):
        path = np.asarray(path, dtype=np.float64)
        axes.plot(steps, path, color=colour, linestyle=style, linewidth=1.5, label=name)
        codes = np.rint(path).clip(-1, 1)
        changes = int(np.count_nonzero(np.diff(codes)))
        ends = f"its code from {int(codes[0])} to {int(codes[-1])}, {changes} change{'s' if changes != 1 else ''}"
        parts.append(f"{name}: from {path[0]:.2f} to {path[-1]:.2f}, {ends}")
    axes.set(xlabel="step of training", ylabel="weight / scale", yticks=[-1, -0.5, 0, 0.5, 1], ylim=(-1.5, 1.5))
    axes.grid(axis="x")
    if len(paths) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    head = f"Weights in units of their scale, from step {steps[0]} to {steps[-1]}."
    return figure, f"{head} {'; '.join(parts)}.".replace("-", "−")
