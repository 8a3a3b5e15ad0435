"""The explorer of lesson 04: sums of products of codes, the register that holds them, and the way back to a code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.affine import choose_qparams, quantize
from qlearn.arrays import quietly
from qlearn.style import BLACK, BLUE, GREEN, GREY
from qlearn.widgets.controls import Choice, Number, Slider, raised
from qlearn.widgets.engine import Explorer
from qlearn.widgets.panels import (
    AFTER,
    bars,
    count_ticks,
    counted,
    diamond,
    error_axis,
    height,
    moving,
    on_decades,
    ring,
)

DEPTHS = tuple(2**power for power in range(4, 15))
ROWS = 64  # of the input, and columns of the weights: so many times so many sums
MOST_BITS = 8
WIDEST = 32  # bits of an accumulator
FEWEST_FACTOR_BITS, MOST_FACTOR_BITS = 2, 31  # bits of a multiplier
DECADES = -5, 2  # of the axis for the largest error, in codes
BAR = 0.72


@quietly
def explore_accumulator(
    *,
    bits: int = 8,
    depth: int = 1024,
    accumulator: int = 18,
    multiplier: int = 8,
    one_sum: int = 90,
    pixel_ratio: float = 1,
) -> AccumulatorExplorer:
    """Add up products of codes in a register of so many bits, and turn the sums into codes again with integers only.

    There are 64 · 64 sums of `depth` products each: codes of an activation after ReLU, from 0, times signed codes
    of weights.

    Args:
        bits: of all codes, 2 … 8.
        depth: how many products are added up: a power of two, 16 … 16,384.
        accumulator: bits of the register that holds a sum, 8 … 32. A sum that does not fit wraps.
        multiplier: bits of the integer factor that leads back to codes, 2 … 31.
        one_sum: the sum whose arithmetic is shown, as a percentile: 0 for the smallest, 100 for the largest.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: a control that cannot take its value.

    Cost: O(depth) once for each pair of bits and depth; then O(1).

    >>> explorer = explore_accumulator(depth=16384, accumulator=32, multiplier=31)
    >>> explorer.numbers["worst_bits"], explorer.numbers["used_bits"], explorer.numbers["overflow_percent"]
    (30, 21, 0.0)
    """
    start = {"bits": bits, "depth": depth, "accumulator": accumulator, "multiplier": multiplier, "one_sum": one_sum}
    return AccumulatorExplorer(start=start, pixel_ratio=pixel_ratio)


class AccumulatorExplorer(Explorer):
    """How many bits the sums need, and what the integer factor costs at every number of bits."""

    title = "Accumulator and multiplier"
    size = (800, 400)
    shown: ClassVar = {
        "worst_bits": Number("worst case", "bits"),
        "used_bits": Number("used", "bits"),
        "overflow_percent": Number("overflow", "%"),
        "wrong_percent": Number("wrong codes", "%"),
        "m": Number("m"),
        "shift": Number("shift"),
        "rescaling_error": Number("largest error"),
        "rescaling_percent": Number("by rescaling", "%"),
    }
    controls: Mapping[str, Slider | Choice] = {
        "bits": Slider("bits of codes", "How many bits the codes of inputs, weights and outputs have.", 2, 8, 8),
        "depth": Choice(
            "depth K",
            "How many products are added up: the number of inputs of a layer.",
            {f"{depth:,}": depth for depth in DEPTHS},
            1024,
            slide=True,
        ),
        "accumulator": Slider("accumulator", "How many bits hold a sum. A sum that does not fit wraps.", 8, 32, 18),
        "multiplier": Slider("multiplier", "How many bits the integer factor of the rescaling has.", 2, 31, 8),
        "one_sum": Slider("one sum", "A sum to follow: 0 is the smallest, 100 the largest.", 0, 100, 90),
    }

    def compute(self, bits: int, depth: int, accumulator: int, multiplier: int, one_sum: int) -> dict[str, Any]:
        """All numbers and arrays of the picture."""
        sums, lengths, factor, exact, errors = _layer(bits, depth)
        m, shift = fixed_point(factor, multiplier)
        zero_point, quant_max = 2 ** (bits - 1), 2**bits - 1
        wanted = np.clip(_half_away(exact) + zero_point, 0, quant_max)

        def code(acc: Any) -> Any:
            return np.clip(_shift_right(_high_multiply(acc, m, multiplier), shift) + zero_point, 0, quant_max)

        held = wrap(sums, accumulator)
        worst = depth * quant_max * (2 ** (bits - 1) - 1)
        picked = round(one_sum / 100 * (len(sums) - 1))
        return {
            "accumulator": accumulator,
            "multiplier": multiplier,
            "worst_bits": worst.bit_length() + 1,
            "used_bits": int(lengths.max()),
            "lengths": np.bincount(lengths, minlength=WIDEST + 1),
            "overflow_percent": 100 * float((lengths > accumulator).mean()),
            "wrong_percent": 100 * float((code(held) != wanted).mean()),
            "m": int(m),
            "shift": int(shift),
            "errors": errors,
            "rescaling_error": float(errors[multiplier - FEWEST_FACTOR_BITS]),
            "rescaling_percent": 100 * float((code(sums) != wanted).mean()),
            "floor": 2.0 ** -(int(shift) + 1),
            "steps": {
                "acc": int(sums[picked]),
                "length": int(lengths[picked]),
                "held": int(held[picked]),
                "high": int(_high_multiply(held[picked], m, multiplier)),
                "shifted": int(_shift_right(_high_multiply(held[picked], m, multiplier), shift)),
                "zero_point": zero_point,
                "quant_max": quant_max,
                "code": int(code(held[picked])),
                "wanted": int(wanted[picked]),
            },
        }

    def setup(self, figure: Figure) -> list[Artist]:
        left, right = map(figure.add_axes, ((0.082, 0.125, 0.475, 0.8), (0.665, 0.125, 0.32, 0.8)))
        return [*self._setup_sums(left), *self._setup_errors(right)]

    def update(self, result: dict[str, Any]) -> None:
        accumulator, counts = result["accumulator"], result["lengths"][1:]
        places = 1 + np.arange(WIDEST)
        for artist, shown in ((self._fits, places <= accumulator), (self._lost, places > accumulator)):
            heights = np.where(shown, height(counts), height(0))
            artist.set_data(*bars(places, heights, BAR, height(0)))
        self._limit.set_xdata([accumulator + 0.5] * 2)
        self._worst.set_xdata([result["worst_bits"] + 0.5] * 2)
        length = result["steps"]["length"]
        self._picked.set_data([length], [height(counts[length - 1])])

        bits = np.arange(FEWEST_FACTOR_BITS, MOST_FACTOR_BITS + 1)
        self._curve.set_data(bits, on_decades(result["errors"], DECADES[0]))
        self._floor.set_ydata([on_decades(result["floor"], DECADES[0])] * 2)
        self._here.set_data([result["multiplier"]], [on_decades(result["rescaling_error"], DECADES[0])])

    def explain(self, result: dict[str, Any]) -> list[str]:
        s, bits = result["steps"], result["multiplier"]
        fits = s["acc"] == s["held"]
        return [
            f"sum {s['acc']:,} needs {s['length']} bits",
            f"{result['accumulator']} bits hold it" if fits else f"wraps to {s['held']:,}",
            f"· m / 2{raised(bits)}, rounded: {s['held']:,} · {result['m']:,} / 2{raised(bits)} = {s['high']:,}",
            f"/ 2{raised(result['shift'])}, rounded: {s['shifted']:,}",
            f"+ zero point {s['zero_point']}: {s['shifted'] + s['zero_point']:,}",
            f"clamp to 0 … {s['quant_max']}: code {s['code']}",
            f"exact arithmetic gives {'the same' if s['code'] == s['wanted'] else s['wanted']}",
        ]

    # The panels

    def _setup_sums(self, axes: Axes) -> list[Artist]:
        axes.set(title="How many bits the sums need", xlabel="bits, with one for the sign", ylabel="how many sums")
        axes.set(xlim=(0.2, WIDEST + 1.2), xticks=[1, *range(4, WIDEST + 1, 4)])
        axes.set_ylim(height(0), height(ROWS**2) + 1.0)
        count_ticks(axes, 4)
        axes.grid(axis="y")
        ends = [height(0), height(ROWS**2)]  # the lines leave room for the legend
        self._fits = counted(axes, fill=True, color=BLUE, linewidth=0, label="fits")
        self._lost = counted(axes, **AFTER, label="overflows: it wraps")
        upright: dict[str, Any] = {"x": [0, 0], "y": ends}
        dashed: dict[str, Any] = {"color": GREY, "linewidth": 1.4, "linestyle": (0, (4, 2))}
        self._limit = moving(axes, **upright, color=BLACK, linewidth=1.6, label="end of the accumulator")
        self._worst = moving(axes, **upright, **dashed, label="largest sum there can be")
        self._picked = diamond(axes, GREEN, label="the sum to follow")
        axes.legend(loc="upper left", ncols=2, columnspacing=1.2, borderaxespad=0.1)
        return [self._fits, self._lost, self._worst, self._limit, self._picked]

    def _setup_errors(self, axes: Axes) -> list[Artist]:
        axes.set(title="Rescaling error", xlabel="bits of the multiplier", ylabel="largest error, in codes")
        axes.set(xlim=(1, MOST_FACTOR_BITS + 1), xticks=[2, 8, 16, 24, 31])
        error_axis(axes, *DECADES)
        axes.grid()
        (self._floor,) = axes.plot(
            [1, MOST_FACTOR_BITS + 1], [0, 0], color=GREY, linewidth=1.2, linestyle=(0, (4, 2)),
            label="the first rounding alone",
        )  # fmt: skip
        self._curve = moving(axes, "o-", color=BLUE, linewidth=1.4, markersize=3.5, label="both roundings and m")
        self._here = ring(axes, 9)
        axes.legend(loc="upper right", borderaxespad=0.1)
        return [self._floor, self._curve, self._here]


# The numbers behind the picture


def fixed_point(factor: float, bits: int) -> tuple[int, int]:
    """A real factor below 1 as an integer of so many bits and a shift: factor ≈ m · 2^(−bits − shift).

    >>> fixed_point(0.3, 4), fixed_point(0.3, 31)
    ((10, 1), (1288490189, 1))
    """
    fraction, exponent = np.frexp(factor)
    m, shift = int(np.floor(fraction * 2.0**bits + 0.5)), -int(exponent)
    return (m // 2, shift - 1) if m == 2**bits else (m, shift)


def wrap(sums: Any, bits: int) -> Any:
    """What a signed register of so many bits holds of each sum.

    >>> wrap(np.array([127, 128, -129]), 8)
    array([ 127, -128,  127])
    """
    half = 1 << (bits - 1)
    return ((sums + half) & (2 * half - 1)) - half


def _high_multiply(acc: Any, m: Any, bits: Any) -> Any:
    """rint(acc · m / 2^bits), halves towards +∞: gemmlowp's, where bits is 31."""
    return (acc * m + (1 << (bits - 1))) >> bits


def _shift_right(values: Any, places: Any) -> Any:
    """rint(values / 2^places), halves away from zero."""
    half = (1 << places) >> 1
    return np.where(values < 0, -((-values + half) >> places), (values + half) >> places)


def _half_away(values: Any) -> Any:
    return (np.sign(values) * np.floor(np.abs(values) + 0.5)).astype(np.int64)


@lru_cache(maxsize=len(DEPTHS) * MOST_BITS)
def _layer(bits: int, depth: int) -> tuple[Any, Any, float, Any, Any]:
    """The sums in order, the bits that each needs, the real factor to codes, sums · factor, and the errors.

    The output's range is four standard deviations of the sums to both sides. An error is the largest distance
    from sums · factor before the last rounding, for each number of bits of the multiplier.
    """
    x, w = _codes(bits, depth)
    # In pieces too small for several threads, which wait for each other longer than they compute. They are exact
    # in float32: 64 products of eight-bit codes stay below 2²⁴.
    piece = min(depth, 64)
    pieces = x.reshape(ROWS, -1, piece).swapaxes(0, 1) @ w.reshape(-1, piece, ROWS)
    sums = np.sort(pieces.sum(axis=0, dtype=np.float64).astype(np.int64).reshape(-1))
    lengths = np.frexp(np.where(sums < 0, -sums - 1, sums).astype(np.float64))[1] + 1
    factor = (2**bits - 1) / (8 * float(sums.std()))
    exact = sums * factor
    errors = []
    for factor_bits in range(FEWEST_FACTOR_BITS, MOST_FACTOR_BITS + 1):
        m, shift = fixed_point(factor, factor_bits)
        errors.append(np.abs(_high_multiply(sums, m, factor_bits) / 2.0**shift - exact).max())
    return sums, lengths, factor, exact, np.array(errors)


def _codes(bits: int, depth: int) -> tuple[Any, Any]:
    """Codes of |N(0, 1)| from 0 and of N(0, 1) with a sign: both rulers end at four deviations."""
    x, w = _normal()[:, :, :depth]
    x = quantize(np.abs(x), choose_qparams(0.0, 4.0, bits=bits))
    w = quantize(w, choose_qparams(-4.0, 4.0, bits=bits, symmetric=True))
    return x.astype(np.float32), np.ascontiguousarray(w.T, np.float32)


@lru_cache(maxsize=1)
def _normal() -> Any:
    return np.random.default_rng(4).standard_normal((2, ROWS, DEPTHS[-1]), dtype=np.float32)
