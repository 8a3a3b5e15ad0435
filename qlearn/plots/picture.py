"""A figure and the sentence that says what it shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qlearn.style import DPI, STILL_RATIO, own_style


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure and the sentence that says what it shows: shown as an image with alt text, printed as the sentence.

    >>> Picture(Figure(), "An empty page of no use.")
    An empty page of no use.
    """

    figure: Figure
    alt: str

    def __repr__(self) -> str:
        return self.alt

    def png(self) -> bytes:
        """The picture as PNG, with two pixels for each one of the page."""
        buffer = io.BytesIO()
        with own_style():
            FigureCanvasAgg(self.figure).print_figure(buffer, format="png", dpi=DPI * STILL_RATIO)
        return buffer.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        width, height = self.figure.get_size_inches() * DPI
        metadata = {"image/png": {"alt": self.alt, "width": round(width), "height": round(height)}}
        return {"image/png": self.png(), "text/plain": self.alt}, metadata


def picture(draw: Callable[..., tuple[Figure, str]]) -> Callable[..., Picture]:
    """Make a function that draws a figure and words its sentence into one that returns a `Picture` in our style.

    >>> picture(lambda: (Figure(), "An empty page in our style."))()
    An empty page in our style.
    """

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Picture:
        with own_style():
            return Picture(*draw(*args, **kwargs))

    return drawn
