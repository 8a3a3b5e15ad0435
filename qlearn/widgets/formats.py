"""The explorer of lesson 08: formats of 4 and 8 bits, their levels, and short scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn import codebooks, formats
from qlearn.arrays import quietly
from qlearn.block_scales import bits_per_value, fp8_numbers, powers_of_two
from qlearn.formats import BFLOAT16, E2M1, E4M3, E5M2, FLOAT32, FloatFormat
from qlearn.plots.bits import BitRows, Row
from qlearn.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from qlearn.widgets.controls import Choice, Number, Slider, by_label, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.panels import BINS, LIGHT_BLUE, EvenBins, diamond, moving, ring
from qlearn.widgets.sources import activations, laplace, normal, weights
from qlearn.widgets.values import CODES, ERRORS, as_numpy, decibel

COUNT = 32_768
MOST = 65_536  # values of one's own tensor; of a larger one, blocks from all over it
BLOCKS = {"all values": 0, "256": 256, "128": 128, "64": 64, "32": 32, "16": 16}
LARGEST_BLOCK = 256
OWN = "own"
HEIGHT = 6.5  # of the histogram, in rows of levels
BELOW_LEGEND = 4.0


@dataclass(frozen=True)
class Kind:
    """A format of the explorer: how many bits a code has, and its levels; None if they are fitted to the values.

    `significand_bits` says how finely levels just below the largest are spaced.
    """

    name: str
    bits: int
    levels: Any
    style: dict[str, Any]
    format: FloatFormat | None = None
    significand_bits: int = 0

    @property
    def largest(self) -> float:
        return 1.0 if self.levels is None else float(self.levels[-1])


def _line(colour: str, marker: str, bits: int, size: float = 4.5) -> dict[str, Any]:
    return {"color": colour, "marker": marker, "markersize": size, "linestyle": "-" if bits == 8 else "--"}


KINDS = {
    "int8": Kind("int8", 8, np.arange(-127.0, 128), _line(BLUE, "o", 8), significand_bits=6),
    "e4m3": Kind("FP8 E4M3", 8, E4M3.levels().astype(np.float64), _line(VERMILLION, "s", 8), E4M3, 3),
    "e5m2": Kind("FP8 E5M2", 8, E5M2.levels().astype(np.float64), _line(ORANGE, "^", 8, 5), E5M2, 2),
    "int4": Kind("int4", 4, np.arange(-7.0, 8), _line(BLUE, "P", 4, 5), significand_bits=2),
    "e2m1": Kind("FP4 E2M1", 4, E2M1.levels().astype(np.float64), _line(VERMILLION, "D", 4), E2M1, 1),
    "nf4": Kind("NF4", 4, codebooks.normal_float(4), _line(GREEN, "v", 4, 5)),
    "kmeans": Kind("k-means", 4, None, _line(PURPLE, "*", 4, 7)),
}

SCALES: dict[str, tuple[str, int, int]] = {  # label, bits of a scale, bits stored once
    "float32": ("float32", 32, 0),
    "float16": ("float16", 16, 0),
    "fp8": ("FP8, as NVFP4", 8, 32),
    "floor": ("power of two: floor", 8, 0),
    "ceil": ("power of two: ceil", 8, 0),
    "rceil": ("power of two: rceil", 8, 0),
    "even": ("power of two: even", 8, 0),
}

# The rows of the bits: two large floats, then all formats.
ROWS = [Row("float32", 32, FLOAT32), Row("bfloat16", 16, BFLOAT16)] + [
    Row(kind.name, kind.bits, kind.format) for kind in KINDS.values()
]


DATA: dict[str, tuple[str, Callable[[], Any]]] = {
    "normal": ("normal", lambda: normal(COUNT)),
    "laplace": ("Laplace", lambda: laplace(COUNT)),
    "weights": ("MLP: weights", weights),
    "activations": ("MLP: activations", activations),
}


@quietly
def explore_formats(
    x: Any = None,
    *,
    data: str = "normal",
    format: str = "e2m1",
    block: int = 32,
    scale: str = "floor",
    value: int = 90,
    pixel_ratio: float = 1,
) -> FormatsExplorer:
    """Compare formats of 4 and 8 bits: the bits of one value, their levels over your data, and errors at equal cost.

    Args:
        x: values of your own, array or tensor of any shape; blocks are neighbours in C order. Of more than 65,536
            values, blocks from all over x are taken.
        data: "normal", "laplace", "weights" or "activations", without x.
        format: "int8", "e4m3", "e5m2", "int4", "e2m1", "nf4" or "kmeans".
        block: how many values share a scale: 16, 32, 64, 128, 256, or 0 for all of them.
        scale: how a scale is stored: "float32", "float16", "fp8", or as a power of two by one of the four rules
            "floor", "ceil", "rceil", "even".
        value: the value to follow, as a percentile: 0 for the smallest, 100 for the largest.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: empty `x`, NaN or infinity in `x`, a control that cannot take its value.

    Cost: O(n) for each format and block size, once for each kind of scale; then O(1).

    >>> explorer = explore_formats(format="e2m1", block=32, scale="floor")
    >>> explorer.numbers["bits_per_value"], explorer.numbers["levels_used"]
    (4.25, 15)
    """
    start: dict[str, Any] = {"format": format, "block": block, "scale": scale, "value": value}
    if x is None:
        return FormatsExplorer(start={"data": data, **start}, pixel_ratio=pixel_ratio)
    return FormatsExplorer(as_numpy(x), start=start, pixel_ratio=pixel_ratio)


class FormatsExplorer(Explorer):
    """The bits of one value, the levels of every format under the histogram, and errors against bits per value."""

    title = "Formats"
    size = (800, 560)
    shown: ClassVar = {
        "levels_used": Number("levels used", "of {levels}"),
        "bits_per_value": CODES["bits_per_value"],
        "scales": Number("scales"),
        **ERRORS,
    }

    def __init__(self, x: Any = None, **options: Any) -> None:
        self._values = lru_cache(len(DATA))(lambda data: Spread(x if x is not None else DATA[data][1]()))
        self._every = lru_cache(len(DATA) * len(SCALES))(self._find_every)
        self.controls = {
            **({"data": Choice("data", "Which values.", by_label(DATA), "normal")} if x is None else {}),
            "format": Choice(
                "format", "What a code stands for.", {kind.name: name for name, kind in KINDS.items()}, "e2m1"
            ),
            "block": Choice("block", "How many neighbours share one scale.", BLOCKS, 32, slide=True),
            "scale": Choice("scale", "How a scale is stored.", by_label(SCALES), "floor"),
            "value": Slider("one value", "A value to follow: 0 is the smallest, 100 the largest.", 0, 100, 90),
        }
        super().__init__(**options)

    def compute(self, format: str, block: int, scale: str, value: int, data: str = OWN) -> dict[str, Any]:
        """All numbers and arrays of the picture."""
        values, table = self._values(data), self._every(data, scale)
        chosen = table[format, block]
        place, x = values.percentile(value)
        return {
            **chosen.numbers,
            "data": data,
            "format": format,
            "values": values,
            "x": x,
            "picked": {name: _one(kind, table[name, block], place, x) for name, kind in KINDS.items()},
            "own_scale": chosen.scale_at(place),
            "ticks": {name: table[name, block].levels * table[name, block].scale_at(place) for name in KINDS},
            "curves": {name: [table[name, size].point for size in BLOCKS.values()] for name in KINDS},
            "here": chosen.point,
        }

    def setup(self, figure: Figure) -> list[Artist]:
        # The first two rows of bits reach over everything, the others leave room for the curves.
        bits = figure.add_axes((0.088, 0.705, 0.905, 0.29))
        boxes = (0.088, 0.075, 0.53, 0.57), (0.69, 0.53, 0.3, 0.335), (0.69, 0.075, 0.3, 0.36)
        levels, upper, lower = map(figure.add_axes, boxes)
        self._bits = BitRows(bits, ROWS, legend=0.5)
        return [*self._bits.artists, *self._setup_levels(levels), *self._setup_errors(upper, lower)]

    def scene(self, result: dict[str, Any]) -> str:
        return result["data"]

    def arrange(self, result: dict[str, Any]) -> None:
        values: Spread = result["values"]
        self._bins = values.bins
        self._bins.label(self._levels)
        counts = np.histogram(values.x, self._bins.edges)[0]
        self._histogram.set_data(HEIGHT * counts / max(counts.max(), 1), self._bins.places)

    def update(self, result: dict[str, Any]) -> None:
        codes = [int(formats.encode(result["x"], f)) for f in (FLOAT32, BFLOAT16)]
        shown = [float(formats.decode(c, f)) for c, f in zip(codes, (FLOAT32, BFLOAT16), strict=True)]
        codes += [picked.code for picked in result["picked"].values()]
        shown += [picked.x_hat for picked in result["picked"].values()]
        self._bits.update(codes, [rounded(value) for value in shown])

        for row, name in enumerate(KINDS):
            ticks = self._bins.place(result["ticks"][name])
            self._rugs[name].set_data(ticks, np.full(len(ticks), -row - 1.0))
        chosen = result["format"]
        here = -1.0 - list(KINDS).index(chosen)
        self._frame.set_ydata([here, here])
        x, x_hat = (self._bins.place(number) for number in (result["x"], result["picked"][chosen].x_hat))
        self._picked.set_xdata([x, x])
        self._rounded.set_data([x_hat], [here])
        for name, line in self._curves.items():
            line.set_data(*_on_axes(KINDS[name].bits, result["curves"][name]))
        for bits, mark in self._here.items():
            mark.set_data(*(_on_axes(bits, [result["here"]]) if KINDS[chosen].bits == bits else ([], [])))

    def explain(self, result: dict[str, Any]) -> list[str]:
        kind, picked = KINDS[result["format"]], result["picked"][result["format"]]
        scale, bits = result["own_scale"], format(picked.code, f"0{kind.bits}b")
        if kind.format:
            split = 1 + kind.format.exponent_bits
            bits = f"{bits[0]} {bits[1:split]} {bits[split:]}"
        return [
            f"x = {rounded(result['x'])}, scale of its block = {rounded(scale)}",
            f"x / scale = {rounded(result['x'] / scale)}",
            f"nearest level {rounded(picked.level)}, stored as {bits}",
            f"{rounded(picked.level)} · {rounded(scale)} = {rounded(picked.x_hat)}",
            f"error {rounded(result['x'] - picked.x_hat)}",
        ]

    # The panels

    def _setup_levels(self, axes: Axes) -> list[Artist]:
        axes.set_title("Levels of each format, scaled for the block of the value", pad=3)
        axes.set_xlabel("value", labelpad=1)
        axes.set_ylim(-len(KINDS) - 0.7, HEIGHT + 0.3)
        axes.set_yticks([-row - 1 for row in range(len(KINDS))], [kind.name for kind in KINDS.values()])
        axes.tick_params(axis="y", length=0)
        axes.axhline(0, color=GREY, linewidth=0.8)
        self._levels = axes
        self._histogram = axes.stairs([0.0], [0.0, 1.0], fill=True, color=LIGHT_BLUE, label="the values")
        (self._frame,) = axes.plot(
            [0, 1], [0, 0], transform=axes.get_yaxis_transform(), color="#FFF3C4", linewidth=13, solid_capstyle="butt"
        )
        self._rugs = {
            name: moving(axes, "|", color=kind.style["color"], markersize=9, markeredgewidth=0.9)
            for name, kind in KINDS.items()
        }
        ends = [-len(KINDS) - 0.7, BELOW_LEGEND]
        self._picked = moving(axes, x=[0, 0], y=ends, color=BLACK, linewidth=1.2, label="the value")
        self._rounded = diamond(axes, BLACK, 6, label="its nearest level")
        axes.legend(loc="upper left", borderaxespad=0.1)
        return [self._histogram, self._frame, *self._rugs.values(), self._picked, self._rounded]

    def _setup_errors(self, upper: Axes, lower: Axes) -> list[Artist]:
        self._curves = {}
        for axes, bits, (low, high) in ((upper, 8, (14, 52)), (lower, 4, (0, 26))):
            axes.set_title(f"SQNR (dB), formats of {bits} bits", pad=3)  # at the side is no room for it
            axes.set(xlim=(-0.08, 1.52), ylim=(low, high))
            overheads = (0.0, 0.125, 0.5, 1.0, 2.0)
            axes.set_xticks(np.sqrt(overheads), [f"{bits + overhead:g}" for overhead in overheads])
            axes.grid()
            for name, kind in KINDS.items():
                if kind.bits == bits:
                    self._curves[name] = moving(axes, linewidth=1.2, label=kind.name, **kind.style)
            axes.legend(loc="lower right", ncols=2, columnspacing=1, borderaxespad=0.1)
        lower.set_xlabel("bits per value (stretched axis)", labelpad=1)
        self._here = {bits: ring(axes, 12, markeredgewidth=1.6) for axes, bits in ((upper, 8), (lower, 4))}
        return [*self._curves.values(), *self._here.values()]

    # The numbers behind the picture

    def _find_every(self, data: str, scale: str) -> dict[tuple[str, int], Quantized]:
        """Every format with every block size, for one kind of scale."""
        values = self._values(data)
        return {
            (name, block): _quantized(values.x, KINDS[name], block, scale)
            for name in KINDS
            for block in BLOCKS.values()
        }


def _on_axes(bits: int, points: Any) -> Any:
    """Bits per value and SQNR as places: the root of what scales cost, so that short and long ones have room."""
    cost, sqnr = np.array(points).T
    return np.sqrt(np.maximum(cost - bits, 0)), sqnr


class Spread:
    """The values of the explorer in their order, and what is to be known about them before anything is drawn."""

    def __init__(self, x: Any) -> None:
        x = np.ascontiguousarray(x).reshape(-1)
        if len(x) > MOST:
            blocks = x[: len(x) // LARGEST_BLOCK * LARGEST_BLOCK].reshape(-1, LARGEST_BLOCK)
            x = blocks[np.linspace(0, len(blocks) - 1, MOST // LARGEST_BLOCK).astype(np.int64)].reshape(-1)
        self.x = x
        self.order = np.argsort(x, kind="stable")
        reach = float(np.abs(x).max()) or 1.0
        self.bins = EvenBins(-reach, reach, BINS)

    def percentile(self, percent: int) -> tuple[int, float]:
        """Where the value at this percentile stands, and the value itself."""
        place = int(self.order[round(percent / 100 * (len(self.x) - 1))])
        return place, float(self.x[place])


@dataclass(frozen=True)
class Quantized:
    """What one format with one block size does to the values."""

    levels: Any
    scale: Any
    block: int
    numbers: dict[str, Any]

    @property
    def point(self) -> tuple[float, float]:
        """Where it lies in the picture of errors: bits per value, SQNR in dB; an exact result at the upper end."""
        return self.numbers["bits_per_value"], min(self.numbers["sqnr_db"], 99.0)

    def scale_at(self, place: int) -> float:
        """The scale of the block that a value stands in."""
        return float(self.scale[place // self.block])


@dataclass(frozen=True)
class Picked:
    """One value in one format: its code, the level of that code, and what comes back."""

    code: int
    level: float
    x_hat: float


def _quantized(x: Any, kind: Kind, block: int, scale: str) -> Quantized:
    n, fitted = len(x), kind.levels is None
    block = min(block or n, n)
    rows = np.pad(x, (0, -n % block)).reshape(-1, block)  # zeros never are a block's largest
    scales = _scales(np.abs(rows).max(axis=1), kind, scale)
    each = np.repeat(scales, block)[:n]  # the scale of each value
    scaled = x / each
    levels = _fitted(scaled, 2**kind.bits) if fitted else kind.levels
    near = _nearest(scaled, kind, levels)
    x64 = x.astype(np.float64)
    error = x64 - near.astype(np.float64) * each  # x̂ may lie beyond what a float32 can hold
    beyond = np.abs(scaled) > levels[-1] * (1 + 1e-6)  # a largest value may miss the last level by a rounding
    _, scale_bits, once = SCALES[scale]
    once += 32 * len(levels) if fitted else 0
    return Quantized(
        levels=levels,
        scale=scales,
        block=block,
        numbers={
            "levels": len(levels),
            "levels_used": len(np.unique(near)),
            "bits_per_value": bits_per_value(kind.bits, n / len(scales), scale_bits, n, once),
            "scales": len(scales),
            "mse": float(np.mean(error**2)),
            "sqnr_db": decibel(float(np.sum(x64**2)), float(np.sum(error**2))),
            "largest_error": float(np.abs(error).max()),
            "clipped_percent": None if fitted else 100 * float(np.mean(beyond)),
        },
    )


def _scales(a: Any, kind: Kind, scale: str) -> Any:
    """The scales of blocks with these largest magnitudes, rounded to how they are stored."""
    if scale == "fp8":
        return fp8_numbers(a, kind.largest)
    if scale in ("float32", "float16"):
        limits = np.finfo(scale)
        stored = np.clip(a / kind.largest, float(limits.smallest_subnormal), float(limits.max)).astype(scale)
        return np.where(a > 0, stored, 1).astype(a.dtype)
    return powers_of_two(a, kind.largest, kind.significand_bits, scale)


def _nearest(scaled: Any, kind: Kind, levels: Any) -> Any:
    if kind.format:
        return formats.cast(scaled, kind.format)
    return codebooks.decode(codebooks.encode(scaled, levels), levels)


def _fitted(scaled: Any, k: int) -> Any:
    """k levels by Lloyd's algorithm; where there are fewer different values, those."""
    values = np.unique(scaled)
    if len(values) <= k:
        return np.concatenate([values, [values[-1] + 1.0]]) if len(values) == 1 else values.astype(np.float64)
    return codebooks.kmeans(scaled, k)


def _one(kind: Kind, quantized: Quantized, place: int, x: float) -> Picked:
    scale = quantized.scale_at(place)
    if kind.format:
        code = int(formats.encode(x / scale, kind.format))
        level = float(formats.decode(code, kind.format))
    else:
        # As `codebooks.encode`, which decides by fractions: 5 ms, and another answer for one float beside a middle.
        levels = quantized.levels
        code = int(np.searchsorted((levels[:-1] + levels[1:]) / 2, x / scale))
        level = float(quantized.levels[code])
        if kind.name.startswith("int"):
            code = int(level) % 2**kind.bits  # two's complement
    return Picked(code, level, level * scale)
