"""The explorer of lesson 03: one layer, and how many of its weights share one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.affine import fake_quantize
from qlearn.arrays import quietly
from qlearn.datasets import trained
from qlearn.errors import SCALE_BITS, report
from qlearn.style import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILLION
from qlearn.widgets.controls import SCHEME, Choice, Number, Slider, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.heat import HeatMap, Shades
from qlearn.widgets.layer import BITS, MOST_SPREAD, Layer, group_sizes, row_error, row_sizes
from qlearn.widgets.panels import plain
from qlearn.widgets.values import CODES, ERRORS

USUAL_GROUP = 32
LEAST_ERROR, MOST_ERROR = 1e-3, 3.0  # ends of the axis for a row's error

KINDS = {"per tensor": "tensor", "per column": "column", "per row": "row", "per group": "group"}
STYLES: dict[str, dict[str, Any]] = {  # told apart by marker and line as well as by colour
    "tensor": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "column": {"color": GREEN, "marker": "^", "linestyle": ":"},
    "row": {"color": VERMILLION, "marker": "s", "linestyle": "--"},
    "group": {"color": PURPLE, "marker": "D", "linestyle": "-."},
}
ERROR = Shades(
    "YlOrBr",
    lambda share: 1 + np.log2(np.maximum(share, 1e-9)) / 8,
    {"0.4 %": 0.0, "1.6 %": 0.25, "6 %": 0.5, "25 %": 0.75, "100 %": 1.0},
    cells=(100, 25),  # single errors are noise to the eye; the mean of a few neighbours shows where they are large
)
WEIGHTS = Shades("PuOr", lambda weight: 0.5 + weight / 6, {"−3": 0.0, "0": 0.5, "3": 1.0})
VIEWS = {
    "error": (ERROR, "Error, relative to the row's size"),
    "before": (WEIGHTS, "Weights, in units of the row's size"),
    "after": (WEIGHTS, "Weights after quantization, same units"),
}


@quietly
def explore_granularity(
    x: Any = None,
    *,
    granularity: str = "tensor",
    group_size: int | None = None,
    bits: int = 4,
    method: str = "min_max",
    symmetric: bool = True,
    spread: float = 0.0,
    show: str = "error",
    pixel_ratio: float = 1,
) -> GranularityExplorer:
    """Give a layer's weights one scale, or one a row, column or group of neighbours, and see where the error goes.

    Args:
        x: weights (O, …), array or tensor, taken as a matrix of O rows, (O, I · kh · kw) for a convolution, with
            at most 131,072 values; the second layer of the trained MLP if it is left out.
        granularity: "tensor", "column", "row" or "group".
        group_size: how many neighbours in a row share a scale; it must divide the row.
        bits, method, symmetric: as in `find_qparams`; bits from 2 to 8, method "min_max" or "mse".
        spread: rows are multiplied by powers of two between 10^−spread and 10^spread, spread up to 2.
        show: what the heat map shows, "error", "before" or "after".
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: fewer than two axes, too many values, NaN or infinity in `x`, a control that cannot take its value.

    Cost: O(n) for each move of a control, with "mse" 100 times that where its ranges have not been found before.

    >>> explorer = explore_granularity(granularity="group", group_size=25)
    >>> explorer.numbers["scales"], explorer.numbers["bits_per_value"]
    (400, 5.28)
    """
    start: dict[str, Any] = {
        **{"granularity": granularity, "bits": bits, "method": method, "symmetric": symmetric},
        **{"spread": spread, "show": show},
    }
    if group_size is not None:
        start["group_size"] = group_size
    return GranularityExplorer(x, start=start, pixel_ratio=pixel_ratio)


class GranularityExplorer(Explorer):
    """A heat map of the layer, the scales of its rows beside it, and the error against bits per value.

    The size of a row is the root of its mean square, and the row error is relative to it, so that small rows
    count as much as large ones.
    """

    title = "Granularity"
    size = (800, 430)
    shown: ClassVar = {
        "scales": Number("scales"),
        "smallest_scale": Number("smallest scale"),
        "largest_scale": Number("largest scale"),
        "bits_per_value": CODES["bits_per_value"],
        "row_error_percent": Number("row error", "%"),
        "lost_rows": Number("lost rows", "of {rows}"),
        "codes_used": CODES["codes_used"],
        "clipped_percent": ERRORS["clipped_percent"],
        **ERRORS,
    }

    def __init__(self, x: Any = None, *, start: Mapping[str, Any] | None = None, pixel_ratio: float = 1) -> None:
        self.layer = Layer(trained("mlp")["linear2.weight"] if x is None else x)
        sizes = group_sizes(self.layer.columns)
        self.controls = {
            "granularity": Choice("granularity", "Which weights share one scale.", KINDS, "tensor"),
            "group_size": Choice(
                "group size",
                "Per group: how many neighbours in a row share one scale. Only sizes that divide the row.",
                {str(size): size for size in sizes},
                max((size for size in sizes if size <= USUAL_GROUP), default=sizes[0]),
                slide=True,
            ),
            "bits": Slider("bits", "How many bits a code has: b bits give 2ᵇ codes.", BITS[0], BITS[-1], 4),
            "method": Choice(
                "range",
                "Min-max: nothing is clipped. MSE: the range with the smallest mean squared error.",
                {"min-max": "min_max", "MSE": "mse"},
                "min_max",
            ),
            "symmetric": SCHEME,
            "spread": Slider(
                "spread",
                "Makes rows unequal: each is multiplied by its own power of two, from 10^−spread to 10^spread.",
                0.0,
                MOST_SPREAD,
                0.0,
                0.1,
            ),
            "show": Choice(
                "heat map",
                "What is drawn: the error, or the weights before or after quantization.",
                {"error": "error", "weights before": "before", "weights after": "after"},
                "error",
            ),
        }
        super().__init__(start=start, pixel_ratio=pixel_ratio)

    def compute(
        self, granularity: str, group_size: int, bits: int, method: str, symmetric: bool, spread: float, show: str
    ) -> dict[str, Any]:
        """All numbers and arrays of the picture, at O(n)."""
        weights = self.layer.spread(spread)
        group = group_size if granularity == "group" else 0
        qparams = self.layer.qparams(granularity, group, bits, method, symmetric, spread)
        after = fake_quantize(weights, qparams)
        measured = report(weights, qparams)
        scale = np.atleast_2d(qparams.scale)
        curves = {
            kind: self.layer.curve(kind, group_size if kind == "group" else 0, symmetric, spread) for kind in STYLES
        }
        shown = {"error": abs(weights - after), "before": weights, "after": after}[show]
        return {
            "scales": scale.size,
            "smallest_scale": float(scale.min()),
            "largest_scale": float(scale.max()),
            "bits_per_value": measured.bits_per_value,
            "row_error_percent": 100 * row_error(weights, after),
            "lost_rows": int(((after == 0).all(1) & (weights != 0).any(1)).sum()),
            "rows": len(weights),
            "mse": measured.mse,
            "sqnr_db": measured.sqnr_db,
            "largest_error": measured.max_error,
            "clipped_percent": 100 * measured.clipped,
            "codes_used": measured.codes_used,
            "codes": qparams.quant_max - qparams.quant_min + 1,
            "bits": bits,
            "kind": granularity,
            "group": group,
            "qparams": qparams,
            "show": show,
            "cells": shown / row_sizes(weights),
            "row_scales": [np.broadcast_to(end, len(weights)) for end in (scale.min(1), scale.max(1))],
            "own_scales": self.layer.qparams("row", 0, bits, "min_max", symmetric, spread).scale[:, 0],
            "curves": curves,
        }

    def setup(self, figure: Figure) -> list[Artist]:
        heat, strip, beside, right = (
            figure.add_axes(box)
            for box in (
                *((0.062, 0.235, 0.36, 0.695), (0.062, 0.105, 0.36, 0.028)),
                *((0.436, 0.235, 0.13, 0.695), (0.655, 0.115, 0.33, 0.815)),
            )
        )
        heat.set_xlabel("column: input", labelpad=1)
        heat.set_ylabel("row: output", labelpad=1)
        self._heat = HeatMap(heat, strip, self.layer.weights.shape)
        return [*self._heat.artists, *self._setup_scales(beside), *self._setup_errors(right)]

    def scene(self, result: dict[str, Any]) -> str:
        return result["show"]

    def arrange(self, result: dict[str, Any]) -> None:
        self._heat.arrange(*VIEWS[result["show"]])

    def update(self, result: dict[str, Any]) -> None:
        self._heat.update(result["cells"])
        low, high = (np.log10(end) for end in result["row_scales"])
        rows = np.arange(len(low)) + 0.5
        gap = np.full(len(low), np.nan)
        self._all.set_data(np.stack([low, high, gap], 1).reshape(-1), np.repeat(rows, 3))
        self._ends.set_data(np.concatenate([low, high]), np.concatenate([rows, rows]))
        self._own.set_data(np.log10(result["own_scales"]), rows)
        for kind, line in self._curves.items():
            bits, errors = zip(*result["curves"][kind], strict=True)
            line.set_data(np.log2(bits), _on_axis(errors))
        here = np.log2(result["bits_per_value"]), _on_axis(result["row_error_percent"] / 100)
        self._here.set_data([here[0]], [here[1]])

    def explain(self, result: dict[str, Any]) -> list[str]:
        (rows, columns), scales, bits = self.layer.weights.shape, result["scales"], result["bits"]
        counted = {
            "tensor": "1 scale for all",
            "column": f"{columns} columns: {columns} scales",
            "row": f"{rows} rows: {rows} scales",
            "group": f"{rows} rows · {columns // (result['group'] or 1)} × {result['group']} in each: {scales} scales",
        }
        asymmetric = result["qparams"].quant_min == 0
        cost = f"({SCALE_BITS} + {bits})" if asymmetric else f"{SCALE_BITS}"
        return [
            f"{rows} × {columns} = {rows * columns} weights",
            counted[result["kind"]],
            f"bits per value = {bits} + {scales} · {cost} / {rows * columns} = {rounded(result['bits_per_value'])}",
            f"row error = √ mean (error / size of its row)² = {rounded(result['row_error_percent'])} %",
        ]

    # The panels

    def _setup_scales(self, axes: Axes) -> list[Artist]:
        rows = len(self.layer.weights)
        axes.set_title("Scale of each row")
        axes.set_xlabel("scale", labelpad=1)
        axes.set_ylim(rows, 0)
        axes.set_yticks([])
        # There is room for every scale, at each number of bits and each spread.
        largest = abs(self.layer.weights).max(1).astype(np.float64)
        largest = largest[largest > 0] if largest.any() else np.ones(1)
        room = MOST_SPREAD if rows > 1 else 0
        left, right = math.log10(largest.min() / 255) - room, math.log10(2 * largest.max()) + room
        axes.set_xlim(left, right)
        first, last = math.ceil(left), math.floor(right)
        every = 3 if last - first > 4 else 1
        powers = [power for power in range(first, last + 1) if power % every == 0]
        axes.set_xticks(powers, [plain(10.0**power) for power in powers])
        axes.grid(axis="x")
        (self._all,) = axes.plot([], [], "-", color=PURPLE, linewidth=1.4)
        (self._own,) = axes.plot([], [], "|", color=GREY, markersize=4, label="alone")
        (self._ends,) = axes.plot([], [], ".", color=BLACK, markersize=3, label="chosen")
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.115), ncols=2, columnspacing=1, handletextpad=0, markerscale=1.6
        )
        return [self._all, self._own, self._ends]

    def _setup_errors(self, axes: Axes) -> list[Artist]:
        axes.set_title("Row error against bits per value")
        axes.set_xlabel("bits per value, scales included")
        axes.set_ylabel("row error", labelpad=2)
        ticks = (2, 3, 4, 6, 8, 12, 16)
        axes.set_xlim(math.log2(1.85), math.log2(20))
        axes.set_xticks(np.log2(ticks), [str(tick) for tick in ticks])
        axes.set_ylim(math.log10(LEAST_ERROR) - 0.1, math.log10(MOST_ERROR))
        shares = (0.001, 0.01, 0.1, 1.0)
        axes.set_yticks(np.log10(shares), [f"{plain(100 * share)} %" for share in shares])
        axes.grid()
        labels = {kind: label for label, kind in KINDS.items()}
        self._curves = {
            kind: axes.plot([], [], linewidth=1.3, markersize=4.5, label=labels[kind], **style)[0]
            for kind, style in STYLES.items()
        }
        (self._here,) = axes.plot(
            [], [], "s", color="none", markeredgecolor=BLACK, markersize=11, markeredgewidth=1.6, label="chosen"
        )
        axes.legend(loc="lower left", title="min-max ranges:", alignment="left")
        return [*self._curves.values(), self._here]


def _on_axis(error: Any) -> Any:
    return np.log10(np.clip(error, LEAST_ERROR, MOST_ERROR))
