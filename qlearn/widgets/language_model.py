"""The explorer of a small language model in few bits: its perplexity, its size and the text that it writes."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlearn.arrays import quietly
from qlearn.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION
from qlearn.widgets.controls import Choice, Number, rounded
from qlearn.widgets.engine import with_torch
from qlearn.widgets.jobs import Job, WorkingExplorer
from qlearn.widgets.panels import columns, moving, ring

FLOAT, ROW = "float", "row"
OUTLIERS = {
    "as trained": "trained",
    "planted, × 256": "planted",
    "planted, smoothed": "smoothed",
    "planted, rotated": "rotated",
}
METHODS = {"nearest, min-max": "min_max", "nearest, MSE": "mse", "GPTQ": "gptq", "AWQ": "awq"}
BITS: dict[str, Any] = {FLOAT: FLOAT, **{str(bits): bits for bits in (8, 4, 3, 2)}}
ACTIVATIONS = {FLOAT: FLOAT, "8 bits a tensor": "tensor8", "8 bits a token": "token8", "4 bits a token": "token4"}
MARKS = {  # colour, marker and size of a method's points: where several lie at one place, each can be seen
    "nearest, min-max": (BLUE, "o", 7),
    "nearest, MSE": (GREEN, "s", 10),
    "GPTQ": (VERMILLION, "^", 8),
    "AWQ": (PURPLE, "D", 4.5),
    "weights in float": (ORANGE, "*", 11),
}
TICKS = (1.1, 1.2, 1.5, 2, 2.5, 3, 4, 4.5, 5, 6, 8, 10, 15, 20, 40, 80, 150, 300)  # of perplexities
FEW = 0.01  # excess over float below which the axis is linear, as a share of float
EDGES = (1.0, 3.0, 6.0)  # bits of surprise
# From no colour on. INK stands out from all of them, on a dark page as well; the last one has thick letters too.
LEVELS = ("#FFFFFF", "#FCE3CA", "#F6C797", "#EFAC6C")
COLUMNS, ROWS, TAIL = 40, 11, 10  # of the text: so many letters of a word may be lost at the end of a row
LETTER = 11  # points
MOST_LETTERS = 328  # of a prompt and what follows


@quietly
def explore_language_model(
    model: Any = None,
    *,
    method: str = "min_max",
    bits: int | str = 4,
    group: int | str = ROW,
    activations: str = FLOAT,
    cache: int | str = FLOAT,
    outliers: str = "trained",
    prompt: str = "The whale ",
    pixel_ratio: float = 1,
) -> LanguageModelExplorer:
    """Quantize a small language model, and see its perplexity, its size and the text that it writes on your prompt.

    Perplexity is that of 8,192 validation letters, of a text that the model has not read. Each letter of the text that
    it writes is coloured by how surprised the float model is by it, −log2 p in bits. Every setting that was tried stays
    on the picture. What was not computed before takes seconds: a bar says how far it is, and Stop ends it.

    Args:
        model: a `qlearn.nn.LanguageModel` of your own; without it the one that comes with this package.
        method: of the weights: "min_max" or "mse" (to the nearest), "gptq" or "awq", both on ranges by MSE.
        bits: of a weight: "float", 8, 4, 3 or 2.
        group: how many weights share a scale: "row" for all that make one output, 64 or 32 of them. Activations that
            are quantized need "row".
        activations: of each layer's input: "float", "tensor8", "token8" or "token4", bits of one range a tensor, which
            is found beforehand, or one a token.
        cache: bits of keys and values, with a range for each head of each token: "float", 8, 4, 3 or 2.
        outliers: "trained", "planted" (two channels behind each norm × 256), "smoothed" (SmoothQuant on these),
            "rotated" (Hadamard matrices on these).
        prompt: 1 … 128 letters that the model knows.
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ImportError: PyTorch is not installed.
        TypeError: a model that is no `LanguageModel`.
        ValueError: a control that cannot take its value.

    Cost: a second at first, and as much for the text when it is shown. A setting takes one to ten seconds; the second
        time it is there at once.

    >>> explorer = explore_language_model(bits=8)
    >>> explorer.numbers["bytes"], round(explorer.numbers["bits_per_weight"], 2)
    (1983668, 8.14)
    >>> 4 < explorer.numbers["float_perplexity"] < 4.5 and 4 < explorer.numbers["perplexity"] < 4.5
    True
    """
    start = {"method": method, "bits": bits, "group": group, "activations": activations, "cache": cache}
    return LanguageModelExplorer(
        model, start={**start, "outliers": outliers, "prompt": prompt}, pixel_ratio=pixel_ratio
    )


@dataclass(frozen=True)
class Prompt:
    """A control for the text that the model begins with: it is read when Enter is pressed or the field is left."""

    label: str
    help: str
    value: str

    def widget(self, value: str) -> ipywidgets.Widget:
        return ipywidgets.Text(value=value, continuous_update=False)

    def check(self, name: str, value: Any) -> str:
        """`value`, if the model can write on it."""
        from qlearn.widgets.language_model_runs import check

        return check(value)


class LanguageModelExplorer(WorkingExplorer):
    """Perplexity against size for what was tried; and what the model writes, with the float model's surprise."""

    title = "A language model in few bits"
    size = (800, 450)
    shown: ClassVar = {
        "perplexity": Number("perplexity"),
        "float_perplexity": Number("in float"),
        "bits_per_weight": Number("bits per weight"),
        "tried": Number("settings tried"),
        "bytes": Number("model bytes"),
        "cache_bytes": Number("cache bytes"),
        "size_percent": Number("of float's size", "%"),
    }
    # Letters that are drawn at a near tie are others on another processor: not for the sentence that is compared.
    untold: ClassVar = ("surprise",)
    unfinished: ClassVar = "This text was not written."

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._torch = with_torch("explore_language_model")
        self._runs = self._torch.Runs(model)
        groups: dict[str, Any] = {"a row": ROW, **{str(size): size for size in self._runs.groups}}
        self.controls: Mapping[str, Any] = {
            "method": Choice(
                "weights by", "How weights are rounded. GPTQ and AWQ use ranges by MSE.", METHODS, "min_max"
            ),
            "bits": Choice("weight bits", "How many bits a weight has.", BITS, 4, slide=True),
            "group": Choice("group", "How many weights share a scale. Groups need activations in float.", groups, ROW),
            "activations": Choice(
                "activations", "Bits of each layer's input, and what has a range of its own.", ACTIVATIONS, FLOAT
            ),
            "cache": Choice("cache bits", "Of keys and values, one range a head and token.", BITS, FLOAT, slide=True),
            "outliers": Choice(
                "outliers",
                "Two channels behind each norm are made 256 times as large. And what helps.",
                OUTLIERS,
                "trained",
            ),
            "prompt": Prompt("prompt", "What the model begins with, 1 to 128 letters. Enter ends it.", "The whale "),
        }
        super().__init__(**options)

    # What the work is

    def work(self, job: Job, values: Mapping[str, Any]) -> None:
        """The numbers of a setting, which are shown as soon as they are there, and then its text."""
        setting, prompt = self._wanted(values)
        tell = partial(self._tell, job)
        if not self._runs.known(setting):
            self._runs.outcome(setting, tell)
            self._arrived(job)
        self._runs.text(setting, prompt, tell)

    def check_values(self, values: Mapping[str, Any]) -> None:
        self._wanted(values)

    def presentable(self, values: Mapping[str, Any]) -> bool:
        return self._runs.known(self._setting(values))

    def known(self, values: Mapping[str, Any]) -> bool:
        return self._runs.known_text(*self._wanted(values)) is not None

    def complete(self, result: Mapping[str, Any]) -> bool:
        return result["text"] is not None

    def _outcome(self, setting: Any) -> Any:
        """What a setting is worth, computed here and now."""
        if self._runs.known(setting):
            return self._runs.outcome(setting, _silent)
        self._job = job = Job(_silent, _silent)
        self._buttons["stop"].disabled = False
        try:
            return self._runs.outcome(setting, partial(self._tell, job))
        finally:
            self._end()

    def _setting(self, values: Mapping[str, Any]) -> Any:
        return self._torch.Setting.of(**values)

    def _wanted(self, values: Mapping[str, Any]) -> tuple[Any, str]:
        """The setting and the prompt that the controls ask for; `ValueError` where there is no writing on it."""
        return self._setting(values), self._torch.check(values["prompt"])

    # What the engine asks for

    def idle(self, **values: Any) -> tuple[str, ...]:
        if values["bits"] == FLOAT:
            return ("method", "group")
        return () if values["activations"] == FLOAT else ("group",)

    def compute(self, *_: Any, **values: Any) -> dict[str, Any]:
        """The numbers of this setting, which from now on counts as tried; and the text, if it is written already."""
        setting, prompt = self._wanted(values)
        floats = self._outcome(self._torch.IN_FLOAT)
        now = self._outcome(setting)
        self._tried[setting] = now
        text = self._runs.known_text(setting, prompt)
        size, of_float = (outcome.bytes + outcome.cache_bytes for outcome in (now, floats))
        return {
            "values": values,
            "setting": setting,
            "perplexity": now.perplexity,
            "float_perplexity": floats.perplexity,
            "bits_per_weight": now.bits,
            "tried": len(self._tried),
            "bytes": now.bytes,
            "cache_bytes": now.cache_bytes,
            "size_percent": 100 * size / of_float,
            "outcome": now,
            "points": list(self._tried.items()),
            "prompt": prompt,
            "text": text and text.text,
            "surprises": text and text.surprises,
            "surprise": None if text is None else float(text.surprises[len(prompt) :].mean()),
        }

    def setup(self, figure: Figure) -> list[Artist]:
        left, right = (figure.add_axes(box) for box in ((0.085, 0.235, 0.375, 0.7), (0.5, 0.215, 0.492, 0.72)))
        return [*self._setup_sizes(left), *self._setup_text(figure, right)]

    def update(self, result: dict[str, Any]) -> None:
        self._shown_values = result["values"]
        labels = {value: label for label, value in METHODS.items()}
        places: dict[str, list[tuple[float, float]]] = {name: [] for name in MARKS}
        for setting, outcome in result["points"]:
            name = "weights in float" if setting.bits == FLOAT else labels[setting.method]
            places[name].append(self._place(outcome))
        for name, line in self._marks.items():
            line.set_data(*columns(places[name]))
        self._now.set_data(*columns([self._place(result["outcome"])]))
        self._update_text(result)

    def explain(self, result: dict[str, Any]) -> list[str]:
        now, setting = result["outcome"], result["setting"]
        steps = [f"{now.weights:,} weights · {now.bits:.4g} bits / 8 = {now.packed:,} bytes"]
        steps.append(f"+ {now.bytes - now.packed:,} in float = {now.bytes:,} bytes")
        blocks, width, head = self._runs.cache_shape
        each = (
            f" of {setting.cache} + {(32 + setting.cache) / head:.4g} bits" if setting.cache != FLOAT else " of 32 bits"
        )
        steps.append(f"cache: 2 · {blocks} blocks · 128 letters · {width} numbers{each} = {now.cache_bytes:,} bytes")
        return steps

    # The panels

    def _setup_sizes(self, axes: Axes) -> list[Artist]:
        floats = self._runs.outcome(self._torch.IN_FLOAT, _silent)
        self._float = floats.perplexity
        self._top = max(300.0, 10 * self._float)
        axes.set_title("Perplexity against size: down and left is better")
        axes.set_xlabel("model and cache of 128 letters, MB")
        axes.set_ylabel("perplexity, stretched towards float")
        largest = (floats.bytes + floats.cache_bytes) / 1e6
        axes.set_xlim(np.log10(largest / 18), np.log10(largest * 1.25))
        sizes = [size for k in range(-4, 3) for size in (10.0**k, 2 * 10.0**k, 5 * 10.0**k)]
        shown = [size for size in sizes if largest / 18 < size < largest * 1.25]
        axes.set_xticks(np.log10(shown), [f"{size:g}" for size in shown])
        ticks = [self._float]
        for tick in TICKS:
            if self._height(tick) - self._height(ticks[-1]) > 0.7 and tick < self._top:
                ticks.append(tick)
        axes.set_yticks(self._height([*ticks, self._top]), [*(f"{tick:.3g}" for tick in ticks), f"{self._top:.0f} +"])
        axes.set_ylim(-1.2, self._height(self._top) + 0.5)
        axes.grid()
        axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
        right = axes.get_xlim()[1]
        axes.annotate("float", (right, 0), (0, -3), textcoords="offset points", ha="right", va="top", color=GREY)
        self._marks = {
            name: moving(axes, marker, color=colour, linestyle="", markersize=size, label=name, zorder=2 + 1 / size)
            for name, (colour, marker, size) in MARKS.items()
        }
        self._now = ring(axes, 13, markeredgewidth=1.5, label="now")
        axes.figure.legend(
            handles=axes.get_legend_handles_labels()[0], loc="lower left", bbox_to_anchor=(0.075, 0.0), ncols=2,
            markerscale=0.8, columnspacing=2.0,
        )  # fmt: skip
        return [*self._marks.values(), self._now]

    def _setup_text(self, figure: Figure, axes: Axes) -> list[Artist]:
        axes.set_title("What it writes on your prompt (in bold)")
        axes.set_xlim(0, COLUMNS)
        axes.set_ylim(ROWS, 0)
        axes.set_axis_off()
        self._surprise = axes.imshow(
            np.zeros((ROWS, COLUMNS)), cmap=ListedColormap(LEVELS), vmin=0, vmax=len(LEVELS) - 1,
            interpolation="nearest", aspect="auto", extent=(0, COLUMNS, ROWS, 0),
        )  # fmt: skip
        style: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": LETTER, "ha": "center", "va": "baseline"}
        self._letters = [axes.text(0, 0, "", color=INK, **style) for _ in range(MOST_LETTERS)]
        self._pending = axes.text(COLUMNS / 2, 2.6, "", ha="center", color=GREY, fontsize=9)
        x = 0.5
        self._mean = figure.text(x, 0.155, "", fontsize=9, fontweight="bold")
        figure.text(x, 0.1, "how much each letter surprises the float model, −log2 p in bits:")
        ends = [f"{edge:g}" for edge in EDGES]
        names = [
            f"below {ends[0]}",
            *(f"{low} – {high}" for low, high in pairwise(ends)),
            f"{ends[-1]} or more",
        ]
        for k, (colour, name) in enumerate(zip(LEVELS, names, strict=True)):
            corner = (x + 0.122 * k, 0.04)
            figure.add_artist(Rectangle(corner, 0.018, 0.036, facecolor=colour, edgecolor=GREY, linewidth=0.8))
            weight = "bold" if k == len(LEVELS) - 1 else "normal"
            figure.text(corner[0] + 0.024, 0.047, name, fontweight=weight)
        return [self._surprise, *self._letters, self._pending, self._mean]

    def _update_text(self, result: dict[str, Any]) -> None:
        text = result["text"] or result["prompt"]
        start = len(result["prompt"])
        levels = np.zeros(len(text), int)
        if result["text"] is not None:
            levels[start:] = np.digitize(result["surprises"][start:], EDGES)
        cells = np.zeros((ROWS, COLUMNS))
        for k, (letter, (row, column)) in enumerate(zip(self._letters, wrapped(text, COLUMNS, TAIL), strict=False)):
            if k >= len(text) or row >= ROWS:
                letter.set_text("")
                continue
            cells[row, column] = levels[k]
            letter.set_text("↵" if text[k] == "\n" else text[k].strip())
            letter.set_position((column + 0.5, row + 0.72))
            letter.set_fontweight("bold" if k < start or levels[k] == len(LEVELS) - 1 else "normal")
        for letter in self._letters[len(text) :]:
            letter.set_text("")
        self._surprise.set_data(cells)
        self._pending.set_text("" if result["text"] is not None else "the text of this setting is not written yet")
        surprise = result["surprise"]
        self._mean.set_text(
            "" if surprise is None else f"mean surprise of the float model: {rounded(surprise)} bits a letter"
        )

    def _table_html(self) -> str:
        """The table, and for screen readers the text, which is in the picture only."""
        if (text := self.result["text"]) is None:
            return super()._table_html()
        hidden = "position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)"
        return super()._table_html() + f'<p style="{hidden}">It writes: {html.escape(text)}</p>'

    def _height(self, perplexity: Any) -> Any:
        """Where a perplexity lies on the axis: logarithmic in what it is above float's."""
        return np.arcsinh((np.minimum(perplexity, self._top) / self._float - 1) / FEW)

    def _place(self, outcome: Any) -> tuple[float, float]:
        return float(np.log10((outcome.bytes + outcome.cache_bytes) / 1e6)), float(self._height(outcome.perplexity))


def wrapped(text: str, columns: int, tail: int) -> list[tuple[int, int]]:
    """Row and column of each letter: rows end at spaces, but within a word where that would leave many columns empty.

    >>> wrapped("to be or", columns=6, tail=4)
    [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0), (1, 1)]
    >>> wrapped("a bcdef", columns=4, tail=2)
    [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    """
    places: list[tuple[int, int]] = []
    row = start = 0
    while start < len(text):
        end = start + columns
        if end < len(text):
            space = text.rfind(" ", start + columns - tail, end)
            end = end if space < 0 else space + 1
        places += [(row, column) for column in range(min(end, len(text)) - start)]
        row, start = row + 1, end
    return places


def _silent(*_: Any) -> None:
    """Who says nothing, and is told nothing."""
