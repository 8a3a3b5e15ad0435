"""What is written and drawn in the explorers can be seen, on a light page and on a dark one."""

import pytest
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, StepPatch
from matplotlib.text import Text

from qlearn import widgets
from qlearn.style import BLACK, BLUE, DPI, GREEN, GREY, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, contrast, on_dark
from qlearn.widgets.page import page_style

MARKS = (BLACK, BLUE, GREEN, GREY, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION)
NARROW = 632 / 800  # what JupyterLab leaves of a picture's width in a window of 800 pixels
TEXT, MARK = 4.5, 3.0
AREA = 8  # points: a line as wide as that lies under something


@pytest.fixture(scope="module", params=[name for name in widgets.__all__ if name.startswith("explore_")])
def explorer(request):
    return getattr(widgets, request.param)()


def least_contrast(colour):
    """With the background, on the page where it is harder to see."""
    return min(contrast(colour, "white"), contrast(on_dark(colour), on_dark("white")))


@pytest.mark.parametrize("colour", MARKS)
def test_colours_of_marks(colour):
    assert least_contrast(colour) >= MARK


def test_colours_of_texts():
    assert min(least_contrast(colour) for colour in (INK, GREY)) >= TEXT
    assert contrast(GREY, "#F4F4F4") >= TEXT  # the table under a still picture


def test_every_text_is_dark_enough_and_large_enough(explorer):
    texts = [text for text in explorer.figure.findobj(Text) if text.get_text().strip()]
    assert len(texts) > 10
    for text in texts:
        assert least_contrast(text.get_color()) >= TEXT, text
        assert text.get_size() * DPI / 72 * NARROW * 800 / explorer.size[0] >= 9, text


def test_every_mark_stands_out(explorer):
    """Each line, marker and area that moves has some part that does: its line, its face or its edge."""
    seen = 0
    for artist in explorer._moving:
        colours = []
        if isinstance(artist, Line2D) and artist.get_linewidth() < AREA:
            has_line = artist.get_linestyle() not in ("None", "none", "", " ")
            has_marker = artist.get_marker() not in (None, "None", "none", "", " ")
            colours = [artist.get_color()] * has_line
            colours += [artist.get_markerfacecolor(), artist.get_markeredgecolor()] * has_marker
        elif isinstance(artist, Patch) and not isinstance(artist, StepPatch):
            colours = [artist.get_facecolor(), artist.get_edgecolor()]
        colours = [colour for colour in colours if to_rgba(colour)[3] > 0]
        if colours:
            seen += 1
            assert max(least_contrast(colour) for colour in colours) >= MARK, artist
    assert seen


def test_colab_is_asked_for_its_own_theme_only(monkeypatch):
    assert "prefers-color-scheme" in page_style()
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert "prefers-color-scheme" not in page_style() and 'html[theme="dark"]' in page_style()
