"""The explorer of lesson 02: one tensor, and the range that its ticks span."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qlearn.affine import QParams, fake_quantize
from qlearn.arrays import quietly
from qlearn.config import QuantConfig
from qlearn.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from qlearn.widgets.controls import SCHEME, Choice, Number, Slider, by_label, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.panels import Histograms, error_axis, moving, on_decades, power_ticks, ring
from qlearn.widgets.search import cut, errors, half_width, quantile, search
from qlearn.widgets.sources import SOURCES, Source
from qlearn.widgets.values import CODES, ERRORS, OUTLIER_SIZE, OUTLIERS, SCALE, Parts, ends, measure

OWN = "own"
CLIPS = 0.1, 20.0  # standard deviations

# What the learner reads; colour and marker (its size) tell methods apart, in both panels alike.
METHODS: dict[str, tuple[str, str, str, int]] = {
    "min_max": ("min-max", BLUE, "o", 7),
    "percentile": ("percentile", GREEN, "^", 8),
    "mse": ("MSE", VERMILLION, "D", 7),
    "cross_entropy": ("cross-entropy", PURPLE, "*", 12),
    "clip": ("by hand", GREY, "X", 8),
}


@quietly
def explore_ranges(
    x: Any = None,
    labels: Any = None,
    *,
    logits: bool = False,
    data: str = "normal",
    method: str = "min_max",
    bits: int = 4,
    symmetric: bool = False,
    percentile: float = 99.9,
    clip: float = 3.0,
    outliers: int | None = None,
    size: int = 20,
    pixel_ratio: float = 1,
) -> RangesExplorer:
    """Choose the range of a quantizer by one method or another, and see what rounding and clipping cost.

    Args:
        x: values of your own, array or tensor of any shape; without it `data` is a choice.
        labels: the right class of each row of `x`, if x are logits (…, C).
        logits: x are logits, also where no labels are known. Then "cross_entropy" is a method as well.
        data: "normal", "laplace", "relu", "weights", "activations" or "logits".
        method: "min_max", "percentile", "mse", "cross_entropy", or "clip" for a range chosen by hand.
        bits, symmetric: as in `choose_qparams`, bits from 2 to 8.
        percentile: of the upper end, for the method of that name.
        clip: for a range by hand: where both ends are cut off, in standard deviations.
        outliers, size: how many values are added, and how far out the largest lies, in standard deviations; ten are
            added where it is not said, and none to values of your own.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ValueError: empty `x`, NaN or infinity in `x`, labels that do not belong to x, a control that cannot take
            its value.

    Cost: one sort of x; then O(2ᵇ log n) for each of some 200 ranges, once for each setting of data, bits and outliers.

    >>> explorer = explore_ranges(method="mse", bits=2, symmetric=True, outliers=0)
    >>> round(explorer.numbers["hi"], 2), round(explorer.numbers["mse"], 3)
    (1.22, 0.188)
    """
    if outliers is None:
        outliers = 10 if x is None else 0
    start = dict(
        method=method, bits=bits, symmetric=symmetric, percentile=percentile, clip=clip, outliers=outliers, size=size
    )
    if x is None:
        return RangesExplorer(start={"data": data, **start}, pixel_ratio=pixel_ratio)
    return RangesExplorer(Source.of(x, logits=logits, labels=labels), start=start, pixel_ratio=pixel_ratio)


class RangesExplorer(Explorer):
    """Histograms with the range of every method above them, and the error of every range with its two parts.

    A method whose range or error is off the axes has a hollow mark at their edge.

    The outliers are kept apart from the values, which are sorted once: moving them sorts nothing again.
    """

    title = "Choosing the range"
    size = (800, 450)
    shown: ClassVar = {
        **{"lo": Number("lo"), "hi": Number("hi")},
        **SCALE,
        **{"mse": ERRORS["mse"], "rounding": Number("rounding"), "clipping": Number("clipping")},
        **ERRORS,
        **CODES,
        "same_class_percent": Number("same class", "%"),
        "right_class_percent": Number("right class", "%"),
    }

    def __init__(self, own: Source | None = None, **options: Any) -> None:
        self._sources = {OWN: own} if own else {}
        self._cross_entropy = lru_cache(64)(self._find_cross_entropy)
        self._curve = lru_cache(64)(self._find_curve)
        self.controls = {
            **({} if own else {"data": Choice("data", "Which values are quantized.", by_label(SOURCES), "normal")}),
            "method": Choice(
                "method",
                "How the range is chosen. Cross-entropy: for logits. By hand: with the slider 'clip at (std)'.",
                by_label(METHODS),
                "min_max",
            ),
            "bits": Slider("bits", "How many bits a code has: b bits give 2ᵇ codes.", 2, 8, 4),
            "symmetric": SCHEME,
            "percentile": Slider(
                "percentile (%)",
                "Where the upper end lies; as many values are left out below.",
                90.0,
                100.0,
                99.9,
                0.01,
            ),
            "clip": Slider(
                "clip at (std)", "By hand: where both ends are cut off, in standard deviations of x.", *CLIPS, 3.0, 0.1
            ),
            "outliers": OUTLIERS,
            "size": OUTLIER_SIZE,
        }
        super().__init__(**options)

    def idle(self, **values: Any) -> set[str]:
        """Values of one's own have no outliers unless they are asked for in code."""
        if values["outliers"]:
            return set()
        return {"size"} if "data" in values else {"outliers", "size"}

    def source(self, data: str) -> Source:
        """The values of that name, made when they are first asked for."""
        if data not in self._sources:
            self._sources[data] = SOURCES[data][1]()
        return self._sources[data]

    def compute(
        self,
        method: str,
        bits: int,
        symmetric: bool,
        percentile: float,
        clip: float,
        outliers: int,
        size: int,
        data: str = OWN,
    ) -> dict[str, Any]:
        """All numbers and arrays of the picture, at O(2ᵇ log n) for each range."""
        source = self.source(data)
        parts = source.values.parts(outliers, size)
        config = QuantConfig(bits, symmetric)
        curve = self._curve(data, outliers, size, config)
        found = {
            "min_max": ends(parts),
            "percentile": tuple(quantile(parts, share / 100) for share in (100 - percentile, percentile)),
            "mse": curve["best"],
            "clip": cut(parts, clip * source.values.std),
        }
        if source.logits is not None:
            found["cross_entropy"] = self._cross_entropy(data, config)
        if method not in found:
            raise ValueError(
                "Cross-entropy compares the softmax before and after, so it needs logits: choose the data "
                "'MLP: logits', or pass your own as explore_ranges(x, logits=True)."
            )
        lo, hi = found[method]
        qparams = config.choose_qparams(lo, hi)
        return {
            **measure(parts, qparams),
            **_classes(source, qparams),
            "lo": float(lo),
            "hi": float(hi),
            "data": data,
            "method": method,
            "symmetric": symmetric,
            "found": {name: (float(low), float(high)) for name, (low, high) in found.items()},
            "histogram": sum(part.histogram(source.bins.edges) for part in parts),
            "curve": curve,
            "marks": self._marks_of(parts, found, config),
        }

    def setup(self, figure: Figure) -> list[Artist]:
        boxes = (0.118, 0.73, 0.47, 0.2), (0.118, 0.11, 0.47, 0.6), (0.68, 0.11, 0.298, 0.82)
        above, left, right = map(figure.add_axes, boxes)
        self._histograms = Histograms(left, self.size[0])
        left.legend(loc="upper left")
        return [*self._histograms.artists, *self._setup_ranges(above, left), *self._setup_errors(right)]

    def scene(self, result: dict[str, Any]) -> str:
        return result["data"]

    def arrange(self, result: dict[str, Any]) -> None:
        """Axes for another source."""
        source = self.source(result["data"])
        self._histograms.fit(source.bins, len(source.values.base))
        source.bins.label(self._above)
        self._above.tick_params(axis="x", which="both", length=0, labelbottom=False)
        self._listed = [name for name in METHODS if name in result["found"]]
        self._above.set_ylim(len(self._listed) - 0.4, -0.6)
        self._above.set_yticks(range(len(self._listed)), [METHODS[name][0] for name in self._listed])
        nearest = CLIPS[0] * source.values.std  # the smallest range by hand, which has an end on each side of 0
        low, high = np.log10(min(source.mean / 4, 0.8 * nearest)), np.log10(1.15 * source.values.reach)
        self._right.set_xlim(low, high)
        power_ticks(self._right.xaxis, low, high)
        minor = [p + np.log10(digit) for p in range(-41, 41) for digit in range(2, 10)]
        self._right.set_xticks([place for place in minor if low < place < high], minor=True)
        error_axis(self._right, *source.errors)

    def update(self, result: dict[str, Any]) -> None:
        self._histograms.update(result["histogram"], result["ticks"], result["counts"])
        place, low = self._histograms.bins.place, self.source(result["data"]).errors[0]
        for name, line in self._ranges.items():
            row = self._listed.index(name) if name in self._listed else -9
            line.set_data(place(result["found"].get(name, (0, 0))), [row, row])
            line.set_linewidth(3 if name == result["method"] else 1.2)
        lo, hi = place([result["lo"], result["hi"]])
        for line in self._ends:
            line.set_xdata([lo, lo, np.nan, hi, hi])
        curve = result["curve"]
        for name in ("rounding", "clipping", "mse"):
            # What is 0 is below every axis, not on its lower end.
            errors = np.where(curve[name] > 0, on_decades(curve[name], low - 9), np.nan)
            self._parts[name].set_data(np.log10(curve["half"]), errors)
        for name, mark in self._marks.items():
            places, outside = self._in_frame(*result["marks"].get(name, (np.nan, np.nan)))
            mark.set_data(*places)
            mark.set_markerfacecolor("white" if outside else METHODS[name][1])
            mark.set_markeredgecolor(METHODS[name][1] if outside else "white")
        self._here.set_data(*self._in_frame(*result["marks"][result["method"]])[0])

    def explain(self, result: dict[str, Any]) -> list[str]:
        qparams: QParams = result["qparams"]
        lo, hi = (rounded(end) for end in (min(result["lo"], 0.0), max(result["hi"], 0.0)))
        rounding, clipping, both = (rounded(result[name]) for name in ("rounding", "clipping", "mse"))
        low = f"({lo})" if lo.startswith("−") else lo
        width = f"max(−{low}, {hi})" if result["symmetric"] else f"({hi} − {low})"
        steps = [
            f"range {lo} … {hi}",
            f"scale = {width} / {qparams.quant_max} = {rounded(result['scale'])}",
            f"MSE = rounding {rounding} + clipping {clipping} = {both}",
        ]
        if result["same_class_percent"] is not None:
            steps.append(f"{rounded(result['same_class_percent'])} % of rows keep their largest logit")
        return steps

    def _marks_of(self, parts: Parts, found: dict[str, Any], config: QuantConfig) -> dict[str, tuple[float, float]]:
        """Where each method's range lies on the picture of errors: half its width, and its MSE."""
        lo, hi = (np.asarray(end) for end in zip(*found.values(), strict=True))
        half, mse = half_width(lo, hi, config.symmetric), errors(parts, lo, hi, config)["mse"]
        return dict(zip(found, zip(half, mse, strict=True), strict=True))

    def _in_frame(self, half: float, error: float) -> tuple[Any, bool]:
        """Where a mark lies on the picture of errors, moved into the frame if it lies outside; and whether it does."""
        point = np.log10(np.maximum([half, error], 1e-300))
        low, high = np.transpose([self._right.get_xlim(), self._right.get_ylim()])
        room = 0.03 * (high - low)
        inside = np.where(point < low, low + room, np.where(point > high, high - room, point))
        return inside[:, None], bool(((point < low) | (point > high)).any())

    def _find_curve(self, data: str, outliers: int, size: int, config: QuantConfig) -> dict[str, Any]:
        """Cached as `_curve`: where only the method moves, the errors of all ranges stay."""
        return search(self.source(data).values.parts(outliers, size), config)

    def _find_cross_entropy(self, data: str, config: QuantConfig) -> tuple[Any, Any]:
        """Cached as `_cross_entropy`: outliers are in no row, and change nothing."""
        return replace(config, method="cross_entropy").find_range(self.source(data).logits)

    # The panels

    def _setup_ranges(self, above: Axes, left: Axes) -> list[Artist]:
        self._above = above
        above.set_title("The range of each method, and histograms of $x$ and $\\hat{x}$")
        above.spines[["left", "bottom"]].set_visible(False)
        above.tick_params(axis="y", length=0)
        self._ranges = {
            name: moving(above, "-", color=colour, marker=marker, markersize=size, markeredgecolor="white")
            for name, (_, colour, marker, size) in METHODS.items()
        }
        self._ends = []
        for axes, top in ((above, 1), (left, 0.7)):  # under the legend of the histograms
            along = axes.get_xaxis_transform()
            (line,) = axes.plot([0] * 5, [0, top, np.nan, 0, top], "--", transform=along, color=BLACK, linewidth=1)
            self._ends.append(line)
        return [*self._ends, *self._ranges.values()]

    def _setup_errors(self, axes: Axes) -> list[Artist]:
        self._right = axes
        axes.set(title="MSE (log scale) against the width", xlabel="half the width of the ticks (log scale)")
        axes.grid()
        self._parts = {
            "rounding": moving(axes, "--", color=ORANGE, label="rounding"),
            "clipping": moving(axes, ":", color=GREY, label="clipping"),
            "mse": moving(axes, color=BLACK, linewidth=1.3, label="both: MSE"),
        }
        self._marks = {
            name: moving(axes, marker, color=colour, markersize=size + 1, markeredgecolor="white")
            for name, (_, colour, marker, size) in METHODS.items()
        }
        self._marks["clip"].set_zorder(1.9)  # by hand lies under what it may hit upon
        self._here = ring(axes, 13)
        axes.legend(loc="lower left")
        return [*self._parts.values(), *self._marks.values(), self._here]


def _classes(source: Source, qparams: QParams) -> dict[str, float | None]:
    """How many rows of logits keep their largest one, and in how many that is the right one."""
    if source.logits is None:
        return {"same_class_percent": None, "right_class_percent": None}
    before, after = (x.argmax(-1) for x in (source.logits, fake_quantize(source.logits, qparams)))
    return {
        "same_class_percent": 100 * float((after == before).mean()),
        "right_class_percent": None if source.labels is None else 100 * float((after == source.labels).mean()),
    }
