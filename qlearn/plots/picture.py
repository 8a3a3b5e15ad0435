"""A figure and the sentence that says what it shows."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from qlearn.style import DARK_FILTER, DPI, STILL_RATIO, own_style

CORNER = 0.06  # inches, 6 pixels of the page
# An output cannot say how an image before it looks on a dark page, but a style that comes with the words can.
ABOVE = ".jp-OutputArea-child:has(+ .jp-OutputArea-child .qlearn-words) img"
TURNED = f'<style>[data-jp-theme-light="false"] {ABOVE} {{filter: {DARK_FILTER}}}</style>'


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure and the sentence that says what it shows: shown as an image with alt text, printed as the sentence.

    JupyterLab leaves the alt text of a stored image out, so the sentence is also folded under the picture, as text. On
    a dark page of JupyterLab the picture turns dark, as explorers do.

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

    def _ipython_display_(self) -> None:
        from IPython.display import display  # only a notebook asks for it

        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)
        words = f"<summary>The picture in words</summary>{html.escape(self.alt)}"
        display({"text/html": f'<details class="qlearn-words">{words}</details>{TURNED}'}, raw=True)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        width, height = self.figure.get_size_inches() * DPI
        metadata = {"image/png": {"alt": self.alt, "width": round(width), "height": round(height)}}
        text = base64.b64encode(self.png()).decode("ascii")  # a browser's kernel hands bytes to the page as they are
        return {"image/png": text, "text/plain": self.alt}, metadata


def picture(draw: Callable[..., tuple[Figure, str]]) -> Callable[..., Picture]:
    """Make a function that draws a figure and words its sentence into one that returns a `Picture` in our style.

    >>> picture(lambda: (Figure(), "An empty page in our style."))()
    An empty page in our style.
    """

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Picture:
        with own_style():
            figure, alt = draw(*args, **kwargs)
            _round_corners(figure)
            return Picture(figure, alt)

    return drawn


def _round_corners(figure: Figure) -> None:
    """A stored picture knows no theme: it is a white card, with round corners where the page is dark."""
    width, height = figure.get_size_inches()
    card = FancyBboxPatch(
        (0, 0), width, height, boxstyle=f"round,pad=0,rounding_size={CORNER}", transform=figure.dpi_scale_trans,
        facecolor=figure.get_facecolor(), edgecolor="none", zorder=-1,
    )  # fmt: skip
    card.set_in_layout(False)
    figure.patch.set_visible(False)
    figure.add_artist(card)
