"""The engine of the explorers: controls in, numbers and a picture out.

    move a control  →  compute (numbers and arrays)  →  table  →  update (the artists)  →  picture

An explorer states its controls, a pure `compute`, and how to draw. Everything else is here.

What makes it quick: the figure is drawn once; afterwards only the artists that move are drawn, over a stored
copy of everything that stays. The picture travels as a PNG with a palette. Only widgets of ipywidgets itself
are used, so that it works wherever ipywidgets does.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from qlearn.arrays import quietly
from qlearn.style import DPI, DRAWING, STILL_RATIO, own_style
from qlearn.widgets.controls import Button, Choice, Number, Slider, rounded
from qlearn.widgets.footer import calculations, footer
from qlearn.widgets.inline import flush_on_main_thread_only
from qlearn.widgets.page import LABELS, page_style
from qlearn.widgets.picture import Palette, exact_png, for_page, page_format, pixels_of, to_png


class Explorer:
    """A picture and a table of numbers that follow their controls.

    A subclass states `title`, `shown` and `controls`, in its class or before it calls `__init__`, and writes:

        compute(**values)   →  a dict of numbers and arrays. Pure: no drawing, no state, so that it can be tested.
        setup(figure)       →  draw everything once; return the artists that move
        update(result)      →  give these artists their data
        explain(result)     →  a calculation in steps, for the line under the table, "" before another one (optional)
        limits(**values)    →  controls whose limits depend on the others: name → (lo, hi) (optional)
        idle(**values)      →  names of controls that change nothing while the others stand so: greyed (optional)
        scene(result)       →  a name for what stays, where a choice asks for other axes (optional)
        arrange(result)     →  change what stays to fit a new scene (optional)

    Axes are fixed in `setup`: an axis that moves would have to be drawn again, which costs more than all else.
    A scene is the exception, for a few choices: it is drawn when it comes for the first time, and stored.
    A number that is None is left out of the table. `untold` names results that `numbers` has and the table has not:
    for readers who do not know yet what they are. The picture has a palette of 256 colours, which is quicker;
    with `exact_colours` it has them all. `buttons` maps the names of methods to what is written on their buttons.
    Where results come with time, from another thread too, `refresh` shows them.

    Args:
        start: where controls stand at first, and after a reset; without it each stands at its own `value`.
        pixel_ratio: pixels of the picture for one of the page: 2 is sharp on a screen with device scale factor 2.

    Raises:
        Whatever `compute` raises for the first values. Later, an error is shown as a line under the controls.
    """

    title: ClassVar[str] = ""
    size: ClassVar[tuple[int, int]] = (800, 400)
    shown: ClassVar[Mapping[str, Number]] = {}
    untold: ClassVar[Collection[str]] = ()
    exact_colours: ClassVar[bool] = False
    controls: Mapping[str, Slider | Choice] = {}
    buttons: ClassVar[Mapping[str, Button]] = {}

    def __init__(self, *, start: Mapping[str, Any] | None = None, pixel_ratio: float = 1) -> None:
        flush_on_main_thread_only()
        self._busy = False
        self._scenes: dict[Hashable, tuple[Any, Palette]] = {}
        self._arranged: Hashable = ()
        self.result: dict[str, Any] = {}
        self._start = {name: control.value for name, control in self.controls.items()}
        self._start |= self._checked(start or {}, self._start)
        with own_style():
            self.figure = Figure(figsize=(self.size[0] / DPI, self.size[1] / DPI), dpi=DPI * pixel_ratio)
            self._canvas = FigureCanvasAgg(self.figure)
            self._build_page()
            self._fit_limits()
            self.result = self.compute(**self.values)
            self._moving = sorted(self.setup(self.figure), key=lambda artist: artist.get_zorder())
            self._show()
        for widget in self._inputs.values():
            widget.observe(self._on_move, "value")

    # What a subclass writes

    def compute(self, *_: Any, **values: Any) -> dict[str, Any]:
        raise NotImplementedError

    def setup(self, figure: Figure) -> list[Artist]:
        raise NotImplementedError

    def update(self, result: dict[str, Any]) -> None:
        raise NotImplementedError

    def scene(self, result: dict[str, Any]) -> Hashable:
        return None

    def arrange(self, result: dict[str, Any]) -> None:
        pass

    def explain(self, result: dict[str, Any]) -> list[str]:
        return []

    def limits(self, **values: Any) -> dict[str, tuple[float, float]]:
        return {}

    def idle(self, **values: Any) -> Collection[str]:
        return ()

    # What a learner calls

    @property
    def values(self) -> dict[str, Any]:
        """Where the controls stand."""
        return {name: widget.value for name, widget in self._inputs.items()}

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the table, not rounded, and those that are not told there."""
        result = self.result  # another thread may put the next one in its place at any time
        return {name: result[name] for name in (*dict(self._cells(result)), *self.untold)}

    @quietly
    def set(self, **controls: Any) -> None:
        """Move controls, as a hand would do: `explorer.set(bits=3)`.

        Raises:
            ValueError: a control that does not exist, or a value that it cannot take; then nothing moves.
        """
        with DRAWING:
            checked = self._checked(controls, self.values)
            with self._hands_off():
                self._fit_limits({**self.values, **checked})
                for name, value in checked.items():
                    self._inputs[name].value = value
            try:
                self._follow()
            except Exception as error:
                self._complain(error)
                raise

    def reset(self) -> None:
        """Move all controls back to where they were at first."""
        self.set(**self._start)

    def __str__(self) -> str:
        """One sentence with the values of the controls and the rounded numbers."""
        result = self.result
        numbers = ", ".join(f"{number.label} {number.text(name, result)}" for name, number in self._cells(result))
        return f"{self.title} ({self._settings()}): {numbers}."

    __repr__ = __str__

    @quietly
    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Live widgets, a still picture and a sentence: every reader shows the best that it can."""
        with DRAWING:
            data, (png, width, height) = self._live(), self._still()
        data["image/png"] = base64.b64encode(png).decode("ascii")
        return data, {"image/png": {"alt": data["text/plain"], "width": width, "height": height}}

    def _live(self) -> dict[str, Any]:
        """The sentence and the live widgets, without a still picture."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self._page.model_id}
        return {"text/plain": str(self), "application/vnd.jupyter.widget-view+json": view}

    @quietly
    def save(self, path: Any) -> None:
        """Write the still picture, a PNG with the numbers under it, to a file."""
        with DRAWING, open(path, "wb") as file:
            file.write(self._still()[0])

    # What happens when a control moves

    def _on_move(self, change: Any) -> None:
        self.refresh()

    @quietly
    def refresh(self) -> None:
        """Compute and draw again where the controls stand. An error becomes a line under them."""
        # Whoever holds the lock may be moving several controls at once; then they follow, with all of them moved.
        with DRAWING:
            if self._busy:
                return
            try:
                with self._hands_off():
                    self._fit_limits()
                self._follow()
            except Exception as error:
                self._complain(error)

    def _follow(self) -> None:
        self.result = self.compute(**self.values)
        self._show()
        self._message.value = ""

    def _show(self) -> None:
        self._table.value = self._table_html()  # the numbers first: they are on their way while the picture is drawn
        scene = self.scene(self.result)
        if scene != self._arranged:
            with own_style():
                self._arranged = ()
                self.arrange(self.result)
                self._arranged = scene
        self.update(self.result)
        self._draw(scene)
        self._picture.value = self._encode(scene)

    def _complain(self, error: Exception) -> None:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        self._message.value = (
            f'<div class="qlearn-error" role="alert">{html.escape(kind + str(error))} '
            "Picture and numbers are those of the last values that worked.</div>"
        )

    @contextmanager
    def _hands_off(self) -> Iterator[None]:
        """Controls that are moved in here are moved by us, so nothing follows them."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def _checked(self, wanted: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """What `set` is asked for, if the controls can take all of it while the others stand at `values`."""
        for name in wanted:
            if name not in self.controls:
                raise ValueError(f"There is no control {name!r}. The controls are {', '.join(self.controls)}.")
        limits = self._limits({**values, **wanted})
        checked = {}
        for name, value in wanted.items():
            control = self.controls[name]
            checked[name] = control.check(name, value, *limits.get(name, ()))
        return checked

    def _limits(self, values: dict[str, Any]) -> dict[str, tuple[float, float]]:
        fixed = {
            name: (control.lo, control.hi) for name, control in self.controls.items() if isinstance(control, Slider)
        }
        return {**fixed, **self.limits(**values)}

    def _fit_limits(self, values: dict[str, Any] | None = None) -> None:
        """Give every slider its limits, one that stands outside them moves to the nearest; and grey what is idle."""
        values = values or self.values
        idle = self.idle(**values)
        for name, widget in self._inputs.items():
            widget.disabled = name in idle
        for name, (lo, hi) in self._limits(values).items():
            slider = self._inputs[name]
            if (slider.min, slider.max) != (lo, hi):
                slider.min, slider.max = min(lo, slider.min), max(hi, slider.max)  # min never passes max on the way
                slider.min, slider.max = lo, hi

    # The picture

    def _draw(self, scene: Hashable) -> None:
        """Lay the artists that move over the stored picture of everything that stays."""
        stored = self._scenes.get(scene)
        background = stored[0] if stored else self._background()
        self._canvas.restore_region(background)
        for artist in self._moving:
            self.figure.draw_artist(artist)
        if not stored:
            self._scenes[scene] = background, Palette(pixels_of(self._canvas))

    def _background(self) -> Any:
        """The picture of everything that stays."""
        seen = [artist for artist in self._moving if artist.get_visible()]
        for artist in seen:
            artist.set_visible(False)
        try:
            with own_style():
                self._canvas.draw()
        finally:
            for artist in seen:
                artist.set_visible(True)
        return self._canvas.copy_from_bbox(self.figure.bbox)

    def _encode(self, scene: Hashable) -> bytes:
        """The canvas as a PNG for the page; one with a palette is a quarter of the bytes, and quicker."""
        pixels = pixels_of(self._canvas)
        if self.exact_colours:
            png = exact_png(pixels)
        else:
            png = to_png(self._scenes[scene][1].encode(pixels), compress_level=1)
        return for_page(png, self._picture.format)

    def _still(self) -> tuple[bytes, int, int]:
        """The picture for where no kernel runs, with the numbers under it: PNG, width and height on the page."""
        dpi = self.figure.dpi
        try:
            self.figure.dpi = DPI * STILL_RATIO
            with own_style():
                self._canvas.draw()
            below = footer(self.size[0], self._settings(), self._rows(), self.explain(self.result))
            pixels = np.concatenate([pixels_of(self._canvas), pixels_of(below)])
        finally:
            self.figure.dpi = dpi
        picture = Image.fromarray(pixels[..., :3]) if self.exact_colours else Palette(pixels).encode(pixels)
        png = to_png(picture, optimize=True)
        return png, pixels.shape[1] // STILL_RATIO, pixels.shape[0] // STILL_RATIO

    # The page

    def _build_page(self) -> None:
        self._inputs: dict[str, ipywidgets.Widget] = {}
        for name, control in self.controls.items():
            widget = control.widget(self._start[name])
            widget.description = control.label
            widget.style.description_width = LABELS
            widget.layout = ipywidgets.Layout(width="auto")
            tooltip = "tooltip" if widget.has_trait("tooltip") else "description_tooltip"  # its name in ipywidgets 7
            setattr(widget, tooltip, control.help)
            self._inputs[name] = widget
        self._button = Button("Reset", "Move all controls back to where they were at first.").widget(self.reset)
        self._buttons = {name: own.widget(getattr(self, name)) for name, own in self.buttons.items()}
        buttons = ipywidgets.Box([*self._buttons.values(), self._button])
        buttons.add_class("qlearn-buttons")
        self._message = ipywidgets.HTML()
        self._table = ipywidgets.HTML()
        self._picture = ipywidgets.Image(format=page_format(), width=str(self.size[0]), height=str(self.size[1]))
        # Controls beside the picture where the page is wide enough, else above it; what may change its height below.
        controls = ipywidgets.Box([*self._inputs.values(), buttons, self._message])
        controls.add_class("qlearn-controls")
        shown = ipywidgets.Box([self._picture, self._table])
        shown.add_class("qlearn-shown")
        style = ipywidgets.HTML(page_style(), layout=ipywidgets.Layout(display="none"))
        self._page = ipywidgets.Box([style, controls, shown])
        self._page.add_class("qlearn-explorer")

    def _put_under_controls(self, widget: ipywidgets.Widget) -> None:
        _, controls, _ = self._page.children
        controls.children = (*controls.children, widget)

    def _follow_on_release(self) -> None:
        """Sliders are followed when they are let go: for settings that take long."""
        for widget in self._inputs.values():
            if widget.has_trait("continuous_update"):
                widget.continuous_update = False

    def _settings(self) -> str:
        """The controls' values: "bits 4, scheme asymmetric"."""
        parts = []
        for name, control in self.controls.items():
            value = self._inputs[name].value
            if isinstance(control, Choice):
                value = next(label for label, allowed in control.options.items() if allowed == value)
            parts.append(f"{control.label} {value if isinstance(value, str) else rounded(value)}")
        return ", ".join(parts)

    def _cells(self, result: dict[str, Any]) -> list[tuple[str, Number]]:
        return [(name, number) for name, number in self.shown.items() if result[name] is not None]

    def _rows(self) -> list[list[tuple[str, str]]]:
        """The table: label and number, four in a row."""
        cells = [(number.label, number.text(name, self.result)) for name, number in self._cells(self.result)]
        return [cells[start : start + 4] for start in range(0, len(cells), 4)]

    def _table_html(self) -> str:
        rows = "".join(
            "<tr>"
            + "".join(f'<th scope="row">{html.escape(a)}</th><td>{html.escape(b)}</td>' for a, b in cells)
            + "</tr>"
            for cells in self._rows()
        )
        lists = (
            "".join(f"<li>{html.escape(step)}</li>" for step in steps)
            for steps in calculations(self.explain(self.result))
        )
        return (
            f'<table class="qlearn-numbers" aria-label="{html.escape(self.title)}: numbers">{rows}</table>'
            + "".join(f'<ol class="qlearn-steps" aria-label="Step by step">{items}</ol>' for items in lists)
        )


def with_torch(function: str) -> Any:
    """The module with what an explorer does with PyTorch: for `explore_qat` that is `qat_runs`.

    It is not imported at the head of a file: other explorers work without PyTorch.

    Raises:
        ImportError: it is not installed; says who needs it and how to get it.
    """
    try:
        return import_module(f"qlearn.widgets.{function.removeprefix('explore_')}_runs")
    except ImportError as error:
        raise ImportError(f'{function}() needs PyTorch ({error}): pip install "qlearn[torch]".') from error


class LateExplorer(Explorer):
    """An explorer that is shown at once, and complete as soon as what takes long is there: `load` waits for it.

    Settings stay on the picture: `_tried`, setting → what came of it, which `compute` fills.
    """

    def __init__(self, **options: Any) -> None:
        self._tried: dict[Any, Any] = {}
        super().__init__(**options)

    def load(self) -> None:
        """Find what takes long, if it is not there yet, with a bar."""
        raise NotImplementedError

    def reset(self) -> None:
        """Move all controls back to where they were at first, and forget what was tried."""
        with DRAWING:
            self._tried.clear()
        super().reset()  # without the lock: it may wait for who needs it

    def save(self, path: Any) -> None:
        """Write the still picture, a PNG with the numbers under it, to a file."""
        self.load()
        super().save(path)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.load()
        return super()._repr_mimebundle_(include, exclude)

    def _ipython_display_(self) -> None:
        """At once what is there; the rest, and the still picture, as soon as it has come."""
        from IPython.display import display  # only a notebook asks for it

        shown = display(self._live(), raw=True, display_id=True)
        data, metadata = self._repr_mimebundle_()
        shown.update(data, metadata=metadata, raw=True)
