"""What a learner moves and what they read: sliders, choices and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import ipywidgets
import numpy as np


@dataclass(frozen=True)
class Slider:
    """A control for a number from `lo` to `hi`; whole numbers only if `step` is one.

    `help` is the sentence that is shown when the pointer rests on the control. With `on_release` a move is followed
    when the handle is let go: for what takes longer than a picture.
    """

    label: str
    help: str
    lo: float
    hi: float
    value: float
    step: float = 1
    on_release: bool = False

    def widget(self, value: float) -> ipywidgets.Widget:
        kind = ipywidgets.IntSlider if self.whole else ipywidgets.FloatSlider
        form = {} if self.whole else {"readout_format": f".{max(0, -math.floor(math.log10(self.step)))}f"}
        follow = {"continuous_update": not self.on_release}
        return kind(value=value, min=self.lo, max=self.hi, step=self.step, **follow, **form)

    def check(self, name: str, value: Any, lo: float, hi: float) -> float:
        """`value`, if this control can take it."""
        is_number = isinstance(value, Integral if self.whole else Real) and not isinstance(value, (bool, np.bool_))
        if not is_number or not lo <= value <= hi:
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(f"{name}={value!r} must be {kind} from {lo:g} to {hi:g}.")
        return int(value) if self.whole else float(value)

    @property
    def whole(self) -> bool:
        return isinstance(self.step, int)


@dataclass(frozen=True)
class Choice:
    """A control for one of a few values: `options` maps what the learner reads to the value.

    `slide` makes it a slider, for options that have an order.
    """

    label: str
    help: str
    options: Mapping[str, Any]
    value: Any
    slide: bool = False

    def widget(self, value: Any) -> ipywidgets.Widget:
        kind = ipywidgets.SelectionSlider if self.slide else ipywidgets.Dropdown
        return kind(options=list(self.options.items()), value=value)

    def check(self, name: str, value: Any) -> Any:
        """`value`, if this control can take it."""
        for allowed in self.options.values():
            if value is allowed or (type(value) is type(allowed) and value == allowed):
                return allowed
        names = ", ".join(f"{allowed!r} ({label})" for label, allowed in self.options.items())
        raise ValueError(f"{name}={value!r} must be one of {names}.")


def by_label(options: Mapping[str, tuple]) -> dict[str, str]:
    """The options of a choice, from a table of values whose rows begin with what the learner reads.

    >>> by_label({"mse": ("MSE", 7)})
    {'MSE': 'mse'}
    """
    return {label: name for name, (label, *_) in options.items()}


@dataclass(frozen=True)
class Button:
    """What is written on a button, and the sentence that is shown when the pointer rests on it."""

    label: str
    help: str

    def widget(self, press: Callable[[], None]) -> ipywidgets.Widget:
        button = ipywidgets.Button(description=self.label, tooltip=self.help)
        button.layout = ipywidgets.Layout(width="88px", margin="2px 2px 2px 0")
        button.on_click(lambda _: press())
        return button


SCHEME = Choice(
    "scheme",
    "Asymmetric: codes from 0, and a zero point. Symmetric: as many codes below 0 as above it.",
    {"asymmetric": False, "symmetric": True},
    False,
)


RANGES = {"min-max": "min_max", "MSE": "mse"}  # how a range is found: what the learner reads → the method


@dataclass(frozen=True)
class Number:
    """How one of `compute`'s numbers is shown: its label and its unit, which may name others, as "of {codes}"."""

    label: str
    unit: str = ""

    def text(self, name: str, result: Mapping[str, Any]) -> str:
        return f"{rounded(result[name])} {self.unit.format_map(result)}".rstrip()


def rounded(value: float) -> str:
    """Three significant digits, in the shortest form; whole numbers in full. The minus sign is that of the axes.

    >>> rounded(0.034567), rounded(1234.5), rounded(255), rounded(4.0), rounded(-0.0001)
    ('0.0346', '1230', '255', '4', '−0.0001')
    """
    if isinstance(value, Integral):
        return str(int(value)).replace("-", "−")
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    text = f"{value:.3g}"
    if "e" in text and 1e-5 < abs(value) < 1e5:
        text = f"{float(text):f}".rstrip("0").rstrip(".")
    return "0" if float(text) == 0 else text.replace("-", "−")


def raised(number: int) -> str:
    """A whole number as an exponent.

    >>> raised(31), raised(-4)
    ('³¹', '⁻⁴')
    """
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
