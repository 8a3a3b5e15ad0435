"""The explorer of lesson 01: one tensor, one scale, one zero point."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar

import numpy as np
from array_api_compat import is_torch_array
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.affine import QParams, choose_qparams, dequantize, quantize
from qlearn.arrays import as_floats
from qlearn.errors import bits_per_value
from qlearn.sorted_view import SortedView
from qlearn.style import BLACK, BLUE, GREEN, GREY, VERMILLION
from qlearn.widgets.controls import Choice, Number, Slider, rounded
from qlearn.widgets.engine import Explorer

MOST_BITS = 8
LARGEST_OUTLIER = 100  # standard deviations
BINS = 110
FEWEST = 0.5  # the count at which a logarithmic axis begins, so that a single value has a height
LIGHT_BLUE = "#BFDDF0"
BAR = 5.0  # pixels: the width of a code's bar where there is room


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
    shown: ClassVar = {
        "scale": Number("scale"),
        "zero_point": Number("zero point"),
        "codes_used": Number("codes used", "of {codes}"),
        "bits_per_value": Number("bits per value"),
        "mse": Number("MSE"),
        "sqnr_db": Number("SQNR", "dB"),
        "largest_error": Number("largest error"),
        "clipped_percent": Number("clipped", "%"),
    }

    def __init__(self, x: Any = None, *, start: Mapping[str, Any] | None = None, pixel_ratio: float = 1) -> None:
        if x is None:
            x = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
        x = as_floats(x)
        self.base = SortedView(x.cpu().numpy() if is_torch_array(x) else x)
        self._measure_base()
        first, last, step = self._value_limits()
        self.controls = {
            "bits": Slider("bits", "How many bits a code has: b bits give 2ᵇ codes.", 1, MOST_BITS, 4),
            "symmetric": Choice(
                "scheme",
                "Asymmetric: codes from 0, and a zero point. Symmetric: as many codes below 0 as above it.",
                {"asymmetric": False, "symmetric": True},
                False,
            ),
            "outliers": Slider("outliers", "How many large positive values are added to x.", 0, 100, 0),
            "size": Slider(
                "outlier size",
                "How far out the largest outlier lies, in standard deviations of x; the smallest at 0.8 times that.",
                1,
                LARGEST_OUTLIER,
                20,
            ),
            "value": Slider(
                "one value",
                "A number to follow through quantization, step by step.",
                first,
                last,
                round((0.35 * first + 0.65 * last) / step) * step,
                step,
            ),
        }
        super().__init__(start=start, pixel_ratio=pixel_ratio)

    def limits(self, **values: Any) -> dict[str, tuple[float, float]]:
        return {"bits": (2 if values["symmetric"] else 1, MOST_BITS)}

    def compute(self, bits: int, symmetric: bool, outliers: int, size: int, value: float) -> dict[str, Any]:
        """All numbers and arrays of the picture, at O(2ᵇ log n)."""
        parts = [self.base]
        if outliers:
            parts.append(SortedView(self._outliers(outliers, size)))
        n = sum(len(part) for part in parts)
        qparams = choose_qparams(*_range(parts), bits=bits, symmetric=symmetric)
        measured = reduce(operator.add, [part.measure(qparams) for part in parts])
        signal = sum(float(part.sum2[-1]) for part in parts)
        codes = np.arange(qparams.quant_min, qparams.quant_max + 1)
        return {
            "scale": float(qparams.scale),
            "zero_point": int(qparams.zero_point),
            "mse": measured.sse / n,
            "sqnr_db": _decibel(signal, measured.sse),
            "largest_error": measured.largest_error,
            "clipped_percent": 100 * measured.clipped / n,
            "codes_used": int((measured.counts > 0).sum()),
            "codes": len(codes),
            "bits_per_value": bits_per_value((n,), qparams),
            "bits": bits,
            "qparams": qparams,
            "ticks": dequantize(codes, qparams).astype(np.float64),
            "counts": measured.counts,
            "histogram": sum(part.histogram(self.edges) for part in parts),
            "errors": self._errors(parts, symmetric),
            "clean_errors": self.clean_errors[symmetric],
            "steps": _arithmetic(self.base.values.dtype.type(value), qparams),
        }

    def setup(self, figure: Figure) -> list[Artist]:
        left, top, bottom = (
            figure.add_axes(box)
            for box in ((0.082, 0.115, 0.495, 0.815), (0.665, 0.535, 0.32, 0.395), (0.665, 0.115, 0.32, 0.285))
        )
        return [*self._setup_histograms(left), *self._setup_staircase(top), *self._setup_errors(bottom)]

    def update(self, result: dict[str, Any]) -> None:
        ticks, steps = result["ticks"], result["steps"]

        self._x.set_data(_height(result["histogram"]))
        self._x_line.set_data(_height(result["histogram"]))
        # One bar a code that is used: BAR wide where there is room, touching its neighbours where there is not.
        used = result["counts"] > 0
        place = self._place(ticks[used])
        room = np.diff(place) / 2
        half = np.minimum(np.concatenate([[self._bar], room, [self._bar]]), self._bar / 2)
        edges = np.stack([place - half[:-1], place + half[1:]], 1).reshape(-1)
        bars = np.zeros(len(edges) - 1) + _height(0)
        bars[::2] = _height(result["counts"][used])
        self._x_hat.set_data(bars, edges)
        self._rug.set_data(self._place(ticks), np.full(len(ticks), _height(0) - 0.2))

        ties = (ticks[1:] + ticks[:-1]) / 2
        left, right = self.window
        self._stairs.set_data(np.concatenate([[left], np.repeat(ties, 2), [right]]), np.repeat(ticks, 2))
        x, x_hat = float(steps["x"]), float(steps["x_hat"])
        self._picked.set_data([x, x, left], [left, x_hat, x_hat])

        bits = 1 + np.arange(MOST_BITS)
        self._curve.set_data(bits, np.log10(np.maximum(result["errors"], self.floor)))
        self._clean.set_data(bits, np.log10(np.maximum(result["clean_errors"], self.floor)))
        self._here.set_data([result["bits"]], [math.log10(max(result["mse"], self.floor))])

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
            f"error x̂ − x = {rounded(x_hat - x)}",
        ]

    # The numbers behind the picture

    def _outliers(self, count: int, size: float) -> Any:
        """`count` values from `size` standard deviations down to four fifths of it."""
        dtype = self.base.values.dtype
        return np.minimum(np.linspace(1, 0.8, count) * size * self.std, np.finfo(dtype).max).astype(dtype)

    def _errors(self, parts: list[SortedView], symmetric: bool) -> Any:
        """The mean squared error at 1 to 8 bits; NaN where there is no such quantizer."""
        lo, hi = _range(parts)
        errors = np.full(MOST_BITS, np.nan)
        for bits in range(2 if symmetric else 1, MOST_BITS + 1):
            q = choose_qparams(lo, hi, bits=bits, symmetric=symmetric)
            errors[bits - 1] = sum(part.sse(q.scale, q.zero_point, q.quant_min, q.quant_max) for part in parts)
        return errors / sum(len(part) for part in parts)

    def _measure_base(self) -> None:
        """What the fixed axes are made from: x's spread, its ends, and the smallest and largest errors there can be."""
        values, n = self.base.values, len(self.base)
        lo, hi = float(values[0]), float(values[-1])
        mean = float(self.base.sum1[-1]) / n
        deviation = math.sqrt(max(float(self.base.sum2[-1]) / n - mean**2, 0))
        self.std = deviation or max(abs(lo), abs(hi)) or 1.0

        # The staircase shows the bulk of x, the histograms all of it.
        left, right = min(0, max(lo, mean - 5 * self.std)), max(0, min(hi, mean + 5 * self.std))
        pad = 0.06 * (right - left) or self.std
        self.window = left - pad, right + pad

        # arcsinh(x / unit) is linear within one unit and logarithmic beyond: bulk and outliers on one axis.
        middle = float(values[int(0.84 * (n - 1))]) / 2 - float(values[int(0.16 * (n - 1))]) / 2
        self.unit = middle or self.std
        end = 1.03 * self._place(max(-lo, hi, LARGEST_OUTLIER * self.std))
        self.bins = np.linspace(-end, end, BINS + 1)
        self.edges = self.unit * np.sinh(self.bins)

        self.clean_errors = {symmetric: self._errors([self.base], symmetric) for symmetric in (False, True)}
        extreme = [self.base, SortedView(self._outliers(LARGEST_OUTLIER, LARGEST_OUTLIER))]
        errors = np.concatenate(
            [*self.clean_errors.values(), self._errors(extreme, False), self._errors(extreme, True)]
        )
        largest = float(np.nanmax(errors)) or 1.0
        self.ceiling = 10.0 ** math.ceil(math.log10(largest))
        self.floor = 10.0 ** math.floor(math.log10(max(float(np.nanmin(errors)), 1e-9 * largest)))

    def _value_limits(self) -> tuple[float, float, float]:
        """The ends of the slider for one value, and its step, a power of ten."""
        left, right = self.window
        step = 10.0 ** math.floor(math.log10((right - left) / 200))
        return math.ceil(left / step) * step, math.floor(right / step) * step, step

    def _place(self, x: Any) -> Any:
        """Where `x` lies on the axis of the histograms."""
        return np.arcsinh(np.asarray(x) / self.unit)

    # The panels

    def _setup_histograms(self, axes: Axes) -> list[Artist]:
        axes.set_title("Histograms of $x$ and $\\hat{x}$")
        axes.set_xlabel("value")
        axes.set_ylabel("how many values")
        self._logarithmic_x(axes)
        top = _height(len(self.base)) + 0.45
        axes.set_ylim(_height(0) - 0.4, top)
        powers = range(math.ceil(top))
        axes.set_yticks(list(powers), [_count(10**power) for power in powers])
        axes.grid(axis="y")
        axes.axhline(_height(0), color=GREY, linewidth=0.8)

        empty = np.full(BINS, _height(0))
        self._bar = BAR * (self.bins[-1] - self.bins[0]) / (axes.get_position().width * self.size[0])
        self._x = axes.stairs(empty, self.bins, baseline=_height(0), fill=True, color=LIGHT_BLUE, label="$x$, in bins")
        self._x_hat = axes.stairs(
            empty, self.bins, baseline=_height(0), fill=True, facecolor=VERMILLION, edgecolor="#FFD2B0", hatch="/////",
            linewidth=0, label="$\\hat{x}$, one bar a code",
        )  # fmt: skip
        self._x_line = axes.stairs(empty, self.bins, baseline=None, color=BLUE, linewidth=1.3)
        (self._rug,) = axes.plot(
            [], [], "|", color=VERMILLION, markersize=7, markeredgewidth=0.8, label="tick of a code"
        )
        axes.legend(loc="upper left", ncols=1)
        return [self._x, self._x_hat, self._x_line, self._rug]

    def _logarithmic_x(self, axes: Axes) -> None:
        end = self.bins[-1]
        axes.set_xlim(-end, end)
        first = round(math.log10(self.unit))
        last = math.floor(math.log10(self.unit * math.sinh(end)))
        powers = [10.0**power for power in range(first, last + 1)]
        every = -(-len(powers) // 4)
        major = [*(-power for power in powers[::every]), 0.0, *powers[::every]]
        axes.set_xticks(self._place(major), [_plain(tick) for tick in major])
        minor = [sign * digit * power for power in powers for digit in range(2, 10) for sign in (-1, 1)]
        axes.set_xticks([place for place in self._place(minor) if abs(place) < end], minor=True)

    def _setup_staircase(self, axes: Axes) -> list[Artist]:
        axes.set_title("From $x$ to $\\hat{x}$")
        axes.set_xlabel("$x$", labelpad=1)
        axes.set_ylabel("$\\hat{x}$", rotation=0, labelpad=6)
        axes.set_xlim(*self.window)
        axes.set_ylim(*self.window)
        axes.grid()
        axes.plot(self.window, self.window, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
        (self._stairs,) = axes.plot([], [], color=VERMILLION, linewidth=1.5)
        (self._picked,) = axes.plot(
            [], [], color=GREEN, linewidth=1.2, linestyle=(0, (4, 2)), marker="D", markevery=[1], markersize=6,
            markeredgecolor="white",
        )  # fmt: skip
        return [self._stairs, self._picked]

    def _setup_errors(self, axes: Axes) -> list[Artist]:
        axes.set_title("MSE against bits")
        axes.set_xlabel("bits", labelpad=1)
        axes.set_xlim(0.6, MOST_BITS + 0.4)
        axes.set_xticks(range(1, MOST_BITS + 1))
        low, high = math.log10(self.floor), math.log10(self.ceiling)
        axes.set_ylim(low - 0.3, high + 0.3)
        every = -(-round(high - low) // 4)
        powers = range(round(low), round(high) + 1, every)
        axes.set_yticks(list(powers), [_plain(10.0**power) for power in powers])
        axes.grid()
        (self._clean,) = axes.plot([], [], color=GREY, linewidth=1, linestyle=(0, (4, 2)), label="without outliers")
        (self._curve,) = axes.plot([], [], "o-", color=BLUE, linewidth=1.4, markersize=3.5)
        (self._here,) = axes.plot([], [], "s", color="none", markeredgecolor=BLACK, markersize=9, markeredgewidth=1.4)
        axes.legend(loc="upper right", borderpad=0, borderaxespad=0.1)
        return [self._clean, self._curve, self._here]


def _range(parts: list[SortedView]) -> tuple[Any, Any]:
    return min(part.values[0] for part in parts), max(part.values[-1] for part in parts)


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


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _height(count: Any) -> Any:
    """Where a count lies on the logarithmic axis."""
    return np.log10(np.maximum(count, FEWEST))


def _plain(number: float) -> str:
    """A tick's label: 0.001, −10; powers of ten only where zeros can no longer be counted at a glance."""
    text = f"{number:g}" if number == 0 or not 1e-6 < abs(number) < 1e5 else f"{number:.6f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


def _count(n: int) -> str:
    """A power of ten in few letters: 10, 1 k, 10 k, 1 M."""
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if n >= size:
            return f"{n // size}{letter}"
    return str(n)
