"""The explorer of lesson 03: one layer, and how many of its weights share one scale."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from qlearn.affine import QParams, fake_quantize, quantize
from qlearn.arrays import quietly
from qlearn.datasets import trained
from qlearn.errors import report
from qlearn.style import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILLION
from qlearn.widgets.controls import RANGES, SCHEME, Choice, Number, Slider, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.heat import HeatMap, Shades
from qlearn.widgets.layer import BITS, MOST_SPREAD, Layer, cost, group_sizes, row_error, row_sizes
from qlearn.widgets.panels import moving, plain, power_ticks, ring
from qlearn.widgets.values import CODES, ERRORS

USUAL_GROUP = 32
LEAST_ERROR, MOST_ERROR = 1e-3, 3.0  # ends of the axis for a row's error
KINDS = {"per tensor": "tensor", "per column": "column", "per row": "row", "per group": "group"}
STYLES: dict[str, dict[str, Any]] = {  # told apart by marker and line as well as by colour
    "tensor": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "column": {
        "color": GREEN,
        "marker": "^",
        "linestyle": ":",
        "markersize": 8,
        "markerfacecolor": "none",
        "zorder": 3,
    },
    "row": {"color": VERMILLION, "marker": "s", "linestyle": "--"},
    "group": {"color": PURPLE, "marker": "D", "linestyle": "-."},
}
ERROR = Shades(
    "YlOrBr",
    lambda share: 1 + np.log2(np.maximum(share, 1e-9)) / 8,
    {"0.4 %": 0.0, "1.6 %": 0.25, "6 %": 0.5, "25 %": 0.75, "100 %": 1.0},
)
WEIGHTS = Shades("PuOr", lambda weight: 0.5 + weight / 6, {"−3": 0.0, "0": 0.5, "3": 1.0})
VIEWS = {
    "error": (ERROR, "Error of each weight, relative to its row"),
    "before": (WEIGHTS, "Weights, relative to their rows"),
    "after": (WEIGHTS, "Weights after, relative to their rows"),
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
    scale_bits: int = 32,
    show: str = "error",
    row: int | None = None,
    column: int | None = None,
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
        scale_bits: with how many bits a scale is counted in "bits per value", 32, 16 or 8. The scales stay as they are.
        show: what the heat map shows, "error", "before" or "after".
        row, column: of the weight whose arithmetic is shown step by step, counted from 0; one in the middle without.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: fewer than two axes, too many values, NaN or infinity in `x`, a control that cannot take its value.

    Cost: O(n) for each move of a control, with "mse" 100 times that where its ranges have not been found before.

    >>> explorer = explore_granularity(granularity="group", group_size=25)
    >>> explorer.numbers["scales"], explorer.numbers["bits_per_value"]
    (400, 5.28)
    """
    chosen = {"group_size": group_size, "row": row, "column": column}
    start = dict(
        granularity=granularity, bits=bits, method=method, symmetric=symmetric, spread=spread, scale_bits=scale_bits,
        show=show, **{name: value for name, value in chosen.items() if value is not None},
    )  # fmt: skip
    return GranularityExplorer(x, start=start, pixel_ratio=pixel_ratio)


class GranularityExplorer(Explorer):
    """A heat map of the layer, the scales of its rows and columns beside it, and the error against bits per value.

    The size of a row is the root of its mean square, and the row error is relative to it, so that small rows
    count as much as large ones.
    """

    title = "Granularity"
    size = (800, 480)
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

    def __init__(self, x: Any = None, **options: Any) -> None:
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
                RANGES,
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
            "scale_bits": Choice(
                "bits of a scale",
                "How many bits of storage a scale counts for. It is not rounded to them: that is lesson 08.",
                {"32": 32, "16": 16, "8": 8},
                32,
            ),
            "show": Choice(
                "heat map",
                "What is drawn: the error, or the weights before or after quantization.",
                {"error": "error", "weights before": "before", "weights after": "after"},
                "error",
            ),
        }
        for name, many in zip(("row", "column"), self.layer.weights.shape, strict=True):
            if many > 1:
                help = f"Which {name} the weight is in that is marked, and followed step by step."
                self.controls[name] = Slider(name, help, 0, many - 1, many // 2)
        super().__init__(**options)

    def idle(self, **values: Any) -> set[str]:
        return {"spread"} if len(self.layer.weights) == 1 else set()

    def compute(
        self,
        granularity: str,
        group_size: int,
        bits: int,
        method: str,
        symmetric: bool,
        spread: float,
        scale_bits: int,
        show: str,
        row: int = 0,
        column: int = 0,
    ) -> dict[str, Any]:
        """All numbers and arrays of the picture, at O(n)."""
        weights = self.layer.spread(spread)
        group = group_size if granularity == "group" else 0
        qparams = self.layer.qparams(granularity, group, bits, method, symmetric, spread)
        after = fake_quantize(weights, qparams)
        measured = report(weights, qparams)
        scale = np.atleast_2d(qparams.scale)
        curves = {
            kind: self.layer.curve(kind, group_size if kind == "group" else 0, symmetric, spread, scale_bits)
            for kind in STYLES
        }
        blocks = np.repeat(scale, weights.shape[1] // scale.shape[1], 1)  # a column of scales for each of weights
        own = {
            kind: self.layer.qparams(kind, 0, bits, "min_max", symmetric, spread).scale for kind in ("row", "column")
        }
        shown = {"error": abs(weights - after), "before": weights, "after": after}[show]
        return {
            "scales": scale.size,
            "smallest_scale": float(scale.min()),
            "largest_scale": float(scale.max()),
            "bits_per_value": cost(weights.shape, qparams, scale_bits),
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
            "column_scales": [blocks.min(0), blocks.max(0)],
            "own_scales": {"row": own["row"][:, 0], "column": own["column"][0]},
            "curves": curves,
            "scale_bits": scale_bits,
            "picked": _picked(weights, after, qparams, row, column),
        }

    def setup(self, figure: Figure) -> list[Artist]:
        width, height = self.size

        def at(x: int, y: int, w: int, h: int) -> Axes:
            """Axes in pixels, so that each of the default layer's weights has three times three."""
            return figure.add_axes((x / width, y / height, w / width, h / height))

        heat, strip, right = at(56, 76, 300, 300), at(56, 24, 300, 12), at(532, 52, 260, 400)
        above, beside = at(56, 406, 300, 46), at(366, 76, 96, 300)
        heat.set_xlabel("column: input", labelpad=1)
        heat.set_ylabel("row: output", labelpad=1)
        self._heat = HeatMap(heat, strip, self.layer.weights.shape)
        self._mark = ring(heat, 9)
        self._mark.set_path_effects([withStroke(linewidth=3.4, foreground="white")])  # seen on dark cells too
        self._scales: dict[str, list[Any]] = {}
        scales = [*self._setup_scales("column", above), *self._setup_scales("row", beside)]
        return [*self._heat.artists, self._mark, *scales, *self._setup_errors(right)]

    def scene(self, result: dict[str, Any]) -> str:
        return result["show"]

    def arrange(self, result: dict[str, Any]) -> None:
        self._heat.arrange(*VIEWS[result["show"]])

    def update(self, result: dict[str, Any]) -> None:
        self._heat.update(result["cells"])
        self._mark.set_data([result["picked"]["column"] + 0.5], [result["picked"]["row"] + 0.5])
        for kind, (every, own, ends) in self._scales.items():
            low, high = (np.log10(end) for end in result[f"{kind}_scales"])
            at = np.arange(len(low)) + 0.5
            turn = 1 if kind == "row" else -1  # of columns the scale is drawn upwards, of rows to the right
            every.set_data(*[np.stack([low, high, np.full(len(low), np.nan)], 1).reshape(-1), np.repeat(at, 3)][::turn])
            ends.set_data(*[np.concatenate([low, high]), np.concatenate([at, at])][::turn])
            own.set_data(*[np.log10(result["own_scales"][kind]), at][::turn])
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
        each = f"({result['scale_bits']} + {bits})" if asymmetric else f"{result['scale_bits']}"
        picked = result["picked"]
        scale, zero_point = rounded(picked["scale"]), picked["zero_point"]
        back = f"({picked['code']} − {zero_point})" if asymmetric else rounded(picked["code"])
        return [
            f"marked weight: {rounded(picked['weight'])}",
            f"{rounded(picked['weight'])} / {scale} = {rounded(picked['weight'] / picked['scale'])}",
            f"code {rounded(picked['code'])}",
            f"{scale} · {back} = {rounded(picked['after'])}",
            f"error {rounded(picked['weight'] - picked['after'])}",
            "",
            f"{rows} × {columns} = {rows * columns} weights",
            counted[result["kind"]],
            f"bits per value = {bits} + {scales} · {each} / {rows * columns} = {rounded(result['bits_per_value'])}",
            f"row error = √ mean (error / size of its row)² = {rounded(result['row_error_percent'])} %",
        ]

    # The panels

    def _setup_scales(self, kind: str, axes: Axes) -> list[Artist]:
        """The scales of all rows or columns: what each would have alone, and from where to where it has them."""
        by_row, (rows, columns) = kind == "row", self.layer.weights.shape
        axes.set_title(f"Scale of each {kind}")
        # There is room for every scale, at each number of bits and each spread.
        largest = abs(self.layer.weights).max(1 if by_row else 0).astype(np.float64)
        largest = largest[largest > 0] if largest.any() else np.ones(1)
        room = MOST_SPREAD if rows > 1 else 0  # columns hold rows that grow, so that they hardly shrink
        low, high = (
            math.log10(largest.min() / 255) - (room if by_row else room / 8),
            math.log10(2 * largest.max()) + room,
        )
        every = 3 if math.floor(high) - math.ceil(low) > 3 else 1
        if by_row:
            axes.set(ylim=(rows, 0), yticks=[], xlim=(low, high))
            axes.set_xlabel("scale (log scale)", labelpad=1)
            power_ticks(axes.xaxis, low, high, every=every)
        else:
            axes.set(xlim=(0, columns), xticks=[], ylim=(low, high))
            power_ticks(axes.yaxis, low, high, every=every)
        axes.grid(axis="x" if by_row else "y")
        line = moving(axes, color=PURPLE, linewidth=1.4)
        own = moving(axes, "|" if by_row else "_", color=GREY, markersize=4, label="alone")
        ends = moving(axes, ".", color=BLACK, markersize=3, label="chosen")
        self._scales[kind] = [line, own, ends]
        if not by_row:
            axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), handletextpad=0, markerscale=1.6)
        return self._scales[kind]

    def _setup_errors(self, axes: Axes) -> list[Artist]:
        axes.set(title="Row error against bits per value", xlabel="bits per value, scales included")
        axes.set_ylabel("row error", labelpad=2)
        axes.set(xlim=np.log2([1.85, 20]), ylim=(math.log10(LEAST_ERROR) - 0.1, math.log10(MOST_ERROR)))
        ticks = (2, 3, 4, 6, 8, 12, 16)
        axes.set_xticks(np.log2(ticks), [str(tick) for tick in ticks])
        shares = (0.001, 0.01, 0.1, 1.0)
        axes.set_yticks(np.log10(shares), [f"{plain(100 * share)} %" for share in shares])
        axes.grid()
        labels = {kind: label for label, kind in KINDS.items()}
        self._curves = {
            kind: moving(axes, **{"linewidth": 1.3, "markersize": 4.5, "label": labels[kind], **style})
            for kind, style in STYLES.items()
        }
        self._here = ring(axes, 11, markeredgewidth=1.6, label="chosen")
        axes.legend(loc="lower left", title="min-max ranges:", alignment="left")
        return [*self._curves.values(), self._here]


def _picked(weights: Any, after: Any, qparams: QParams, row: int, column: int) -> dict[str, Any]:
    """One weight on its way through quantization, with the scale and the zero point of its block."""
    scale, zero_point = (
        end[row * end.shape[0] // weights.shape[0], column * end.shape[1] // weights.shape[1]]
        for end in (np.atleast_2d(part) for part in (qparams.scale, qparams.zero_point))
    )
    x = weights[row, column]
    code = int(quantize(x, QParams(scale, zero_point, qparams.quant_min, qparams.quant_max)))
    return dict(
        row=row, column=column, weight=float(x), scale=float(scale), zero_point=int(zero_point), code=code,
        after=float(after[row, column]),
    )  # fmt: skip


def _on_axis(error: Any) -> Any:
    return np.log10(np.clip(error, LEAST_ERROR, MOST_ERROR))
