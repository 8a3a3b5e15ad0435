"""An explorer in a dark JupyterLab: its picture is dark too, in the colours that the contrasts were computed for."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

import real_lab
from explorer_page import ExplorerPage
from qlearn.style import INK, on_dark
from screenshots import still

NAME = "theme.ipynb"
CELL = "from qlearn import widgets\nwidgets.explore_granularity()"
SWITCH = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
IS_LIGHT = "light => document.body.dataset.jpThemeLight === String(light)"


@pytest.fixture
def explorer(lab, page):
    real_lab.write_notebook(lab.folder / NAME, CELL)
    real_lab.open_notebook(page, lab, NAME)
    real_lab.run_all(page)
    yield ExplorerPage(page)
    switch(page, "JupyterLab Light")


def switch(page, theme):
    page.evaluate(SWITCH, theme)
    page.locator("#jupyterlab-splash").wait_for(state="hidden")
    real_lab.wait_for(page, f"the theme is {theme}", IS_LIGHT, theme == "JupyterLab Light")


def seen(explorer):
    """The picture as it is on the screen: shape (pixels, 3)."""
    shot = Image.open(io.BytesIO(still(explorer.image)))
    return np.asarray(shot.convert("RGB")).reshape(-1, 3).astype(int)


def has(pixels, colour, within=3):
    wanted = np.round(255 * np.array(to_rgb(colour)))
    return (abs(pixels - wanted).max(-1) <= within).mean()


def test_picture_follows_the_theme(page, explorer):
    before, sent = seen(explorer), explorer.looks()
    assert has(before, "white") > 0.3 and has(before, INK) > 0.0003
    switch(page, "JupyterLab Dark")
    after = seen(explorer)
    assert has(after, on_dark("white")) > 0.3 and has(after, on_dark(INK)) > 0.0003
    assert has(after, "white") == 0
    assert explorer.looks() == sent, "the kernel has sent another picture"
    switch(page, "JupyterLab Light")
    np.testing.assert_array_equal(seen(explorer), before)


@pytest.mark.parametrize(("width", "beside"), [(1280, True), (800, False)])
def test_page_is_filled(page, explorer, width, beside):
    """Controls stand beside the picture where there is room for both, above it where there is not."""
    size = page.viewport_size
    page.set_viewport_size({"width": width, "height": 900})
    try:
        explorer.settle()
        output = page.locator(".jp-OutputArea-output").first.bounding_box()
        picture, controls = explorer.image.bounding_box(), explorer.root.locator(".qlearn-controls").bounding_box()
        assert (controls["x"] + controls["width"] <= picture["x"]) == beside
        assert (controls["y"] + controls["height"] <= picture["y"]) == (not beside)
        right = max(box["x"] + box["width"] for box in (picture, controls))
        assert right - output["x"] > 0.97 * output["width"]
        assert right <= output["x"] + output["width"] + 4
    finally:
        page.set_viewport_size(size)
