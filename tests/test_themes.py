"""What is written and drawn in the explorers can be seen, on a light page and on a dark one; and pictures are cards."""

import base64
import io

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, StepPatch
from matplotlib.text import Text
from PIL import Image

from qlearn import plots, widgets
from qlearn.plots.picture import ABOVE
from qlearn.style import (
    BLACK,
    BLUE,
    DARK_FILTER,
    DPI,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    contrast,
    on_dark,
)
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


def test_a_lessons_picture_is_a_card_with_round_corners():
    card = np.asarray(Image.open(io.BytesIO(plots.bars({"a": 1.0}, xlabel="size").png())))
    assert card.shape[-1] == 4
    assert (card[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all()
    edge = np.concatenate([card[:8, 20:-20].reshape(-1, 4), card[-8:, 20:-20].reshape(-1, 4)])
    assert (edge == 255).all(), "something touches the edge"


def test_a_lessons_picture_is_said_in_words_that_every_reader_gets(monkeypatch):
    """JupyterLab leaves out the alt text of images."""
    shown = plots.bars({"a < b": 1.0}, xlabel="size")
    outputs = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, metadata=None, raw=False: outputs.append((data, metadata))
    )
    shown._ipython_display_()
    (image, metadata), (words, _) = outputs
    assert image["text/plain"] == metadata["image/png"]["alt"] == shown.alt
    # As text: a browser's kernel hands on what it is given, and no page shows bytes.
    assert base64.b64decode(image["image/png"], validate=True).startswith(b"\x89PNG")
    assert set(words) == {"text/html"}
    assert "size: a &lt; b 1." in words["text/html"]
    # What comes with them turns the picture above dark, on a page that is.
    assert f'[data-jp-theme-light="false"] {ABOVE} {{filter: {DARK_FILTER}}}' in words["text/html"]
    assert 'class="qlearn-words"' in words["text/html"] and ABOVE.endswith(
        ":has(+ .jp-OutputArea-child .qlearn-words) img"
    )
