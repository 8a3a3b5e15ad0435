"""The explorer of lesson 01: one tensor, one scale, one zero point."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.affine import QParams, choose_qparams, dequantize, quantize
from qlearn.arrays import quietly
from qlearn.style import BLUE, GREEN, GREY, VERMILLION
from qlearn.widgets.controls import SCHEME, Slider, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.panels import Bins, Histograms, decades, diamond, error_axis, moving, on_decades, ring
from qlearn.widgets.values import (
    CODES,
    ERRORS,
    LARGEST_OUTLIER,
    OUTLIER_SIZE,
    OUTLIERS,
    SCALE,
    Parts,
    Values,
    ends,
    measure,
)

MOST_BITS = 8


@quietly
def explore_affine(
    x: Any = None,
    *,
    bits: int = 4,
    symmetric: bool = False,
    outliers: int = 0,
    size: int = 20,
    value: float | None = None,
    pixel_ratio: float = 1,
) -> AffineExplorer:
    """Quantize `x` with a scale and a zero point from its smallest and its largest value, and see what is left of it.

    Args:
        x: array or tensor of any shape; 100,000 values of a normal distribution if it is left out.
        bits, symmetric: as in `choose_qparams`, bits up to 8.
        outliers, size: how many values are added to x, and how far out the largest lies, in standard deviations.
        value: the number whose arithmetic is shown step by step.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: empty `x`, NaN or infinity in `x`, a control that cannot take its value.

    Cost: one sort of x; then O(2ᵇ log n) for each move of a control.

    >>> explorer = explore_affine(bits=8)
    >>> explorer.numbers["codes_used"], round(explorer.numbers["sqnr_db"], 1)
    (232, 40.3)
    """
    start: dict[str, Any] = {"bits": bits, "symmetric": symmetric, "outliers": outliers, "size": size}
    if value is not None:
        start["value"] = value
    return AffineExplorer(x, start=start, pixel_ratio=pixel_ratio)


class AffineExplorer(Explorer):
    """Histograms of x and x̂, the staircase from one to the other, and the error at every number of bits.

    The outliers are kept apart from x, which is sorted once: moving them sorts nothing again.
    """

    title = "Affine quantization"
    size = (800, 430)
    shown: ClassVar = {**SCALE, **CODES, **ERRORS}

    def __init__(self, x: Any = None, **options: Any) -> None:
        if x is None:
            x = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
        self.data = Values(x)
        self._fix_axes()
        first, last, step = self._value_limits()
        help = "A number to follow through quantization, step by step."
        self.controls = {
            "bits": Slider("bits", "How many bits a code has: b bits give 2ᵇ codes.", 1, MOST_BITS, 4),
            "symmetric": SCHEME,
            "outliers": OUTLIERS,
            "size": OUTLIER_SIZE,
            "value": Slider("one value", help, first, last, round((0.35 * first + 0.65 * last) / step) * step, step),
        }
        super().__init__(**options)

    def limits(self, **values: Any) -> dict[str, tuple[float, float]]:
        return {"bits": (2 if values["symmetric"] else 1, MOST_BITS)}

    def idle(self, **values: Any) -> set[str]:
        return set() if values["outliers"] else {"size"}

    def compute(self, bits: int, symmetric: bool, outliers: int, size: int, value: float) -> dict[str, Any]:
        """All numbers and arrays of the picture, at O(2ᵇ log n)."""
        parts = self.data.parts(outliers, size)
        qparams = choose_qparams(*ends(parts), bits=bits, symmetric=symmetric)
        return {
            **measure(parts, qparams),
            "bits": bits,
            "histogram": sum(part.histogram(self.bins.edges) for part in parts),
            "errors": self._errors(parts, symmetric),
            "clean_errors": self.clean_errors[symmetric],
            "steps": _arithmetic(self.data.base.values.dtype.type(value), qparams),
        }

    def setup(self, figure: Figure) -> list[Artist]:
        boxes = (0.082, 0.115, 0.495, 0.815), (0.665, 0.535, 0.32, 0.395), (0.665, 0.115, 0.32, 0.285)
        left, top, bottom = map(figure.add_axes, boxes)
        left.set_title("Histograms of $x$ and $\\hat{x}$")
        self._histograms = Histograms(left, self.size[0])
        self._histograms.fit(self.bins, len(self.data.base))
        left.legend(loc="upper left")
        return [*self._histograms.artists, *self._setup_staircase(top), *self._setup_errors(bottom)]

    def update(self, result: dict[str, Any]) -> None:
        ticks, steps = result["ticks"], result["steps"]
        self._histograms.update(result["histogram"], ticks, result["counts"])

        ties = (ticks[1:] + ticks[:-1]) / 2
        left, right = self.window
        self._stairs.set_data(np.concatenate([[left], np.repeat(ties, 2), [right]]), np.repeat(ticks, 2))
        x, x_hat = float(steps["x"]), float(steps["x_hat"])
        self._picked.set_data([x, x, left], [left, x_hat, x_hat])

        bits = 1 + np.arange(MOST_BITS)
        self._curve.set_data(bits, on_decades(result["errors"], self.decades[0]))
        self._clean.set_data(bits, on_decades(result["clean_errors"], self.decades[0]))
        self._here.set_data([result["bits"]], [on_decades(result["mse"], self.decades[0])])

    def explain(self, result: dict[str, Any]) -> list[str]:
        qparams, steps = result["qparams"], result["steps"]
        scale, zero_point = rounded(result["scale"]), int(qparams.zero_point)
        x, quotient, rint, shifted, code, x_hat = (
            steps[key] for key in ("x", "quotient", "rint", "shifted", "code", "x_hat")
        )
        return [
            f"x = {rounded(x)}",
            f"x / scale = {rounded(x)} / {scale} = {rounded(quotient)}",
            f"rint: {rint}",
            f"+ zero point: {rint} + {zero_point} = {shifted}",
            f"clamp to {qparams.quant_min} … {qparams.quant_max}: code {code}",
            f"x̂ = scale · (code − zero point) = {scale} · ({code} − {zero_point}) = {rounded(x_hat)}",
            f"error x − x̂ = {rounded(x - x_hat)}",
        ]

    # The numbers behind the picture

    def _errors(self, parts: Parts, symmetric: bool) -> Any:
        """The mean squared error at 1 to 8 bits; NaN where there is no such quantizer."""
        lo, hi = ends(parts)
        errors = np.full(MOST_BITS, np.nan)
        for bits in range(2 if symmetric else 1, MOST_BITS + 1):
            q = choose_qparams(lo, hi, bits=bits, symmetric=symmetric)
            errors[bits - 1] = sum(part.sse(q.scale, q.zero_point, q.quant_min, q.quant_max) for part in parts)
        return errors / sum(len(part) for part in parts)

    def _fix_axes(self) -> None:
        """What the axes must have room for: x, the largest outliers, and every error that there can be."""
        data = self.data
        self.bins = Bins(data.unit, data.reach)
        # The staircase shows the bulk of x, the histograms all of it.
        left, right = min(0, max(data.lo, data.mean - 5 * data.std)), max(0, min(data.hi, data.mean + 5 * data.std))
        pad = 0.06 * (right - left) or data.std
        self.window = left - pad, right + pad

        self.clean_errors = {symmetric: self._errors([data.base], symmetric) for symmetric in (False, True)}
        extreme = data.parts(LARGEST_OUTLIER, LARGEST_OUTLIER)
        worst = [self._errors(extreme, symmetric) for symmetric in (False, True)]
        self.decades = decades([*self.clean_errors.values(), *worst])

    def _value_limits(self) -> tuple[float, float, float]:
        """The ends of the slider for one value, and its step, a power of ten."""
        left, right = self.window
        step = 10.0 ** math.floor(math.log10((right - left) / 200))
        return math.ceil(left / step) * step, math.floor(right / step) * step, step

    # The panels

    def _setup_staircase(self, axes: Axes) -> list[Artist]:
        axes.set(title="From $x$ to $\\hat{x}$", xlim=self.window, ylim=self.window)
        axes.set_xlabel("$x$", labelpad=1)
        axes.set_ylabel("$\\hat{x}$", rotation=0, labelpad=6)
        axes.grid()
        axes.plot(self.window, self.window, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
        self._stairs = moving(axes, color=VERMILLION, linewidth=1.5)
        self._picked = diamond(axes, GREEN, 6, linewidth=1.2, linestyle=(0, (4, 2)), markevery=[1])
        return [self._stairs, self._picked]

    def _setup_errors(self, axes: Axes) -> list[Artist]:
        axes.set(title="MSE (log scale) against bits", xlim=(0.6, MOST_BITS + 0.4), xticks=range(1, MOST_BITS + 1))
        axes.set_xlabel("bits", labelpad=1)
        error_axis(axes, *self.decades)
        axes.grid()
        self._clean = moving(axes, color=GREY, linewidth=1, linestyle=(0, (4, 2)), label="without outliers")
        self._curve = moving(axes, "o-", color=BLUE, linewidth=1.4, markersize=3.5)
        self._here = ring(axes, 9)
        axes.legend(loc="upper right", borderpad=0, borderaxespad=0.1)
        return [self._clean, self._curve, self._here]


def _arithmetic(x: Any, qparams: QParams) -> dict[str, float]:
    """One value through `quantize` and `dequantize`, with every number on the way."""
    quotient = x / type(x)(qparams.scale)
    rint = int(np.rint(quotient))
    code = int(quantize(x, qparams))
    return {
        "x": float(x),
        "quotient": float(quotient),
        "rint": rint,
        "shifted": rint + int(qparams.zero_point),
        "code": code,
        "x_hat": float(dequantize(np.asarray(code), qparams)),
    }
