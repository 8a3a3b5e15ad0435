"""The explorer of speed: how long a layer takes on this machine in several engines, and what the machine allows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qlearn.arrays import quietly
from qlearn.style import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION
from qlearn.widgets.controls import Choice, Number, rounded
from qlearn.widgets.engine import with_torch
from qlearn.widgets.jobs import Job, Stopped, WorkingExplorer
from qlearn.widgets.panels import columns, moving, plain, power_ticks, ring

FLOAT = "float"
ENGINES = {
    "PyTorch": "pytorch",
    "PyTorch, fake": "fake",
    "ONNX Runtime": "onnxruntime",
    "torchao": "torchao",
}
BITS: dict[str, Any] = {FLOAT: FLOAT, "8": 8, "4": 4}
WIDTHS = {f"{2**k:,}": 2**k for k in range(7, 13)}
BATCHES = {f"{2**k:,}": 2**k for k in range(11)}
MARKS = {"pytorch": (BLUE, "o"), "fake": (PURPLE, "D"), "onnxruntime": (VERMILLION, "^"), "torchao": (GREEN, "s")}
FILLS: dict[Any, Any] = {FLOAT: "none", 8: "full", 4: "bottom"}
INTENSITIES = 0.3, 2000.0  # operations for each byte, of the smallest and the largest setting
RATES = 1e7, 1e13  # operations a second
TIMES = 0.003, 3000.0  # milliseconds


@quietly
def explore_speed(
    *,
    width: int = 1024,
    batch: int = 64,
    bits: int | str = 8,
    engine: str = "onnxruntime",
    pixel_ratio: float = 1,
) -> SpeedExplorer:
    """Measure on this machine how long a linear layer takes, in float or on codes, in several engines.

    The layer has as many outputs as inputs. Each measurement takes the float layer of PyTorch along, call by call in
    turn, on one thread, so that the ratio holds whatever else the machine does. The roofline says what the machine
    allows: its memory and its products are measured once. Settings that were measured stay on the picture.

    Args:
        width: inputs and outputs of the layer: 128, 256, … 4096.
        batch: how many rows at once: 1, 2, 4, … 1024.
        bits: of the weights: "float", 8 or 4; inputs then have 8.
        engine: "pytorch" (on codes: the integers of `nn.convert`, by hand), "fake" (fake quantization), "onnxruntime"
            or "torchao" (8 bits only).
        pixel_ratio: 2 for a picture that is sharp on a screen with device scale factor 2.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: a control that cannot take its value; an engine that is not installed.

    Cost: two to ten seconds for a setting, with a bar; the second time it is there at once.

    >>> explorer = explore_speed(width=128, batch=1, bits="float", engine="pytorch")
    >>> explorer.numbers["operations"], explorer.numbers["bytes"]
    (32768, 66048)
    >>> explorer.numbers["ms"] > 0
    True
    """
    start = {"width": width, "batch": batch, "bits": bits, "engine": engine}
    return SpeedExplorer(start=start, pixel_ratio=pixel_ratio)


class SpeedExplorer(WorkingExplorer):
    """Operations a second under the roofline, and milliseconds against the batch, for what was measured."""

    title = "How quick a layer is here"
    size = (800, 400)
    shown: ClassVar = {
        "ms": Number("median", "ms"),
        "p95_ms": Number("95 % within", "ms"),
        "float_ms": Number("float takes", "ms"),
        "ratio": Number("times as quick"),
        "least_ms": Number("roofline", "ms"),
        "intensity": Number("ops a byte"),
        "operations": Number("operations"),
        "bytes": Number("bytes kept"),
    }
    controls: Mapping[str, Any] = {
        "width": Choice("width", "Inputs and outputs of the layer.", WIDTHS, 1024, slide=True),
        "batch": Choice("batch", "How many rows come at once.", BATCHES, 64, slide=True),
        "bits": Choice("weight bits", "In float, or as codes; then inputs have 8 bits.", BITS, 8, slide=True),
        "engine": Choice("engine", "What computes the layer. torchao has 8 bits only.", ENGINES, "onnxruntime"),
    }

    def __init__(self, **options: Any) -> None:
        self._torch = with_torch("explore_speed")
        self._runs = self._torch.Runs()
        super().__init__(**options)

    def set(self, **controls: Any) -> None:
        """Move controls and wait until this setting is measured: `explorer.set(bits=4)`.

        Raises:
            ValueError: a control that does not exist, or a value that it cannot take; then nothing moves.
            Stopped: the button was pressed meanwhile.
        """
        super().set(**controls)
        if any(self.values[name] != value for name, value in controls.items()):
            raise Stopped("this was stopped before it was done.")

    # What the work is

    def work(self, job: Job, values: Mapping[str, Any]) -> None:
        self._runs.outcome(self._setting(values), partial(self._tell, job))

    def check_values(self, values: Mapping[str, Any]) -> None:
        self._torch.check(self._setting(values))

    def known(self, values: Mapping[str, Any]) -> bool:
        return self._runs.known(self._setting(values)) is not None

    presentable = known

    def complete(self, result: Mapping[str, Any]) -> bool:
        return result["outcome"] is not None

    def _setting(self, values: Mapping[str, Any]) -> Any:
        return self._torch.Setting.of(**values)

    # What the engine asks for

    def compute(self, *_: Any, **values: Any) -> dict[str, Any]:
        """The numbers of this setting; those that have to be measured are None until they are."""
        self.check_values(values)
        setting = self._setting(values)
        now, machine = self._runs.known(setting), self._runs.machine
        if now is not None:
            self._tried[setting] = now
        return {
            "values": values,
            "setting": setting,
            "outcome": now,
            "machine": machine,
            "points": list(self._tried.items()),
            "ms": now and 1e3 * now.now.median,
            "p95_ms": now and 1e3 * now.now.p95,
            "float_ms": now and 1e3 * now.in_float.median,
            "ratio": now and now.in_float.median / now.now.median,
            "least_ms": None if now is None or machine is None else 1e3 * self._torch.least(machine, setting),
            "intensity": setting.operations / setting.moved,
            "operations": setting.operations,
            "bytes": now and now.bytes,
        }

    def setup(self, figure: Figure) -> list[Artist]:
        left, right = (figure.add_axes(box) for box in ((0.09, 0.235, 0.39, 0.69), (0.585, 0.235, 0.395, 0.69)))
        artists = [*self._setup_roofline(left), *self._setup_times(right)]
        engines = [
            Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
            for label, (colour, marker) in zip(ENGINES, MARKS.values(), strict=True)
        ]
        fills = [
            Line2D([], [], color=INK, marker="o", linestyle="", fillstyle=fill, markerfacecoloralt="white", label=name)
            for name, fill in zip(("float", "8 bits", "4 bits"), FILLS.values(), strict=True)
        ]
        figure.legend(handles=engines, loc="lower left", bbox_to_anchor=(0.08, 0.0), ncols=4, columnspacing=1.2)
        figure.legend(handles=fills, loc="lower left", bbox_to_anchor=(0.66, 0.0), ncols=3, columnspacing=1.2)
        return artists

    def update(self, result: dict[str, Any]) -> None:
        if result["outcome"] is not None:
            self._shown_values = result["values"]
        self._update_roofs(result["machine"])
        width = result["setting"].width
        self._times_title.set_text(f"Time at width {width:,}, against the batch")
        for kind in self._rates:
            found = [(s, o) for s, o in result["points"] if (s.engine, s.bits) == kind]
            self._rates[kind].set_data(*columns([self._rate(s, o) for s, o in found]))
            self._times[kind].set_data(*columns([self._time(s, o) for s, o in found if s.width == width]))
        now = [(result["setting"], result["outcome"])] if result["outcome"] is not None else []
        self._now_rate.set_data(*columns([self._rate(*one) for one in now]))
        self._now_time.set_data(*columns([self._time(*one) for one in now]))
        self._pending.set_text("" if now else "this setting is not measured yet")

    def explain(self, result: dict[str, Any]) -> list[str]:
        setting, machine = result["setting"], result["machine"]
        steps = [
            f"2 · {setting.batch:,} rows · {setting.width:,} · {setting.width:,} = {setting.operations:,} operations"
        ]
        steps.append(
            f"{setting.width:,} · {setting.width:,} weights · {setting.weight_bits} bits / 8 + 2 · {setting.batch:,} · "
            f"{setting.width:,} numbers · 4 bytes = {setting.moved:,} bytes to move"
        )
        if result["outcome"] is not None:
            for_bytes = setting.moved / machine.bytes_per_second
            waits = "its bytes" if self._torch.least(machine, setting) <= for_bytes else "its operations"
            steps.append(f"the roofline allows {rounded(result['least_ms'])} ms: it waits for {waits}")
        return steps

    # The panels

    def _setup_roofline(self, axes: Axes) -> list[Artist]:
        axes.set_title("What the machine allows, and what is reached")
        axes.set_xlabel("operations for each byte")
        axes.set_ylabel("billion operations a second")
        axes.set(xlim=np.log10(INTENSITIES), ylim=np.log10(RATES))
        power_ticks(axes.xaxis, *axes.get_xlim())
        power_ticks(axes.yaxis, *axes.get_ylim(), unit=1e9)
        axes.grid()
        self._roofs = {
            name: (moving(axes, line, color=GREY, linewidth=1.5), axes.text(0, 0, "", ha="right", va="bottom"))
            for name, line in (("float32", "-"), ("int8", "--"))
        }
        middle, bottom = float(np.log10(INTENSITIES).mean()), float(np.log10(RATES[0]))
        self._pending = axes.text(middle, bottom + 0.3, "", ha="center", color=GREY)
        self._rates, self._now_rate = self._setup_points(axes)
        roofs = [artist for pair in self._roofs.values() for artist in pair]
        return [*roofs, self._pending, *self._rates.values(), self._now_rate]

    def _setup_times(self, axes: Axes) -> list[Artist]:
        axes.set_xlabel("batch")
        axes.set_ylabel("milliseconds")
        self._times_title = axes.set_title("Time")
        axes.set_xlim(-0.5, 10.5)
        axes.set_xticks(range(0, 11, 2), [str(2**k) for k in range(0, 11, 2)])
        axes.set(ylim=np.log10(TIMES))
        power_ticks(axes.yaxis, *axes.get_ylim())
        axes.grid()
        self._times, self._now_time = self._setup_points(axes)
        return [self._times_title, *self._times.values(), self._now_time]

    def _setup_points(self, axes: Axes) -> tuple[dict[tuple[str, Any], Line2D], Line2D]:
        """Markers for what was measured, for each engine and bits; and the ring around what is now."""
        look: dict[str, Any] = {"linestyle": "", "markersize": 7, "markerfacecoloralt": "white"}
        points = {
            (engine, bits): moving(axes, marker, color=colour, fillstyle=fill, **look)
            for engine, (colour, marker) in MARKS.items()
            for bits, fill in FILLS.items()
        }
        return points, ring(axes, 13)

    def _update_roofs(self, machine: Any) -> None:
        peaks = machine and {"float32": machine.float_operations_per_second, "int8": machine.int8_operations_per_second}
        for name, (line, text) in self._roofs.items():
            if not machine or peaks[name] is None:
                line.set_data([], [])
                text.set_text("")
                continue
            low, high = INTENSITIES
            bend = min(peaks[name] / machine.bytes_per_second, high)
            ends = [(x, min(peaks[name], machine.bytes_per_second * x)) for x in (low, bend, high)]
            line.set_data(*columns([(np.log10(x), np.log10(y)) for x, y in ends]))
            text.set_text(f"{name}, {plain(float(f'{peaks[name] / 1e9:.3g}'))}")
            text.set_position((np.log10(high), np.log10(ends[-1][1]) + 0.03))

    def _rate(self, setting: Any, outcome: Any) -> tuple[float, float]:
        rate = np.clip(setting.operations / outcome.now.median, *RATES)
        return float(np.log10(setting.operations / setting.moved)), float(np.log10(rate))

    def _time(self, setting: Any, outcome: Any) -> tuple[float, float]:
        return float(np.log2(setting.batch)), float(np.log10(np.clip(1e3 * outcome.now.median, *TIMES)))
