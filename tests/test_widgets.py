"""The explorers without a browser: their numbers, their controls, and what happens when something goes wrong."""

import ast
import base64
import io
import itertools
import sys
import threading
from pathlib import Path
from typing import ClassVar

import ipywidgets
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import qlearn
from pictures import decoded, picture
from qlearn import errors, sorted_view
from qlearn.widgets import engine, explore_affine
from qlearn.widgets.controls import Choice, Number, Slider, rounded
from qlearn.widgets.engine import Explorer
from qlearn.widgets.inline import flush_on_main_thread_only
from qlearn.widgets.picture import Palette, exact_png


class Square(Explorer):
    """As small as an explorer can be: it fails at −1."""

    title = "Squares"
    size = (200, 100)
    shown: ClassVar = {"square": Number("square", "of {x}")}

    def __init__(self, **options):
        self.controls = {
            "x": Slider("number", "A number to square.", -5, 5, 2),
            "sign": Choice("sign", "Its sign.", {"plus": 1, "minus": -1}, 1),
        }
        super().__init__(**options)

    def limits(self, **values):
        return {"x": (-5, 5) if values["sign"] == 1 else (0, 4)}

    def compute(self, x, sign):
        if x == -1:
            raise ValueError("minus one <is> not wanted.")
        return {"x": x, "square": sign * x * x}

    def setup(self, figure):
        axes = figure.add_axes([0.2, 0.2, 0.7, 0.7], xlim=(-6, 6), ylim=(-30, 30))
        (self.dot,) = axes.plot([], [], "o")
        return [self.dot]

    def update(self, result):
        self.dot.set_data([result["x"]], [result["square"]])


@pytest.fixture(scope="module")
def affine():
    return explore_affine()


@pytest.fixture(autouse=True)
def at_the_start(request):
    if "affine" in request.fixturenames:
        request.getfixturevalue("affine").reset()


def move(explorer, name, value):
    """Move a control as the page does."""
    explorer._inputs[name].set_state({"value": value})


def direct(explorer):
    """The numbers of the affine explorer, from every value."""
    v = explorer.values
    x = np.concatenate([explorer.data.base.values, explorer.data.outliers(v["outliers"], v["size"])])
    q = qlearn.choose_qparams(x.min(), x.max(), bits=v["bits"], symmetric=v["symmetric"])
    codes = qlearn.quantize(x, q)
    x_hat = qlearn.dequantize(codes, q)
    return {
        "scale": float(q.scale),
        "zero_point": int(q.zero_point),
        "codes_used": len(np.unique(codes)),
        "bits_per_value": errors.bits_per_value(x.shape, q),
        "mse": errors.mse(x, x_hat),
        "sqnr_db": errors.sqnr_db(x, x_hat),
        "largest_error": float(abs(x.astype(np.float64) - x_hat).max()),
        "clipped_percent": 100 * float(errors.clipped(x, q).mean()),
    }, np.bincount(codes.astype(int) - q.quant_min, minlength=len(explorer.result["counts"]))


# --- numbers and pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("outliers", "size"), [(0, 20), (1, 100), (100, 1), (37, 50)])
def test_numbers_are_those_of_every_value(affine, bits, symmetric, outliers, size):
    affine.set(bits=max(bits, 2 if symmetric else 1), symmetric=symmetric, outliers=outliers, size=size)
    numbers, counts = direct(affine)
    assert affine.numbers == pytest.approx(numbers, rel=1e-9)
    np.testing.assert_array_equal(affine.result["counts"], counts)


def test_error_curve_goes_through_the_error(affine):
    affine.set(outliers=10, bits=5)
    for bits in range(1, 9):
        curve = affine.result["errors"]
        affine.set(bits=bits)
        assert curve[bits - 1] == pytest.approx(affine.numbers["mse"], rel=1e-6)  # x̂ in float32 against exact ticks


def test_histogram_holds_every_value(affine):
    affine.set(outliers=100, size=100)
    assert affine.result["histogram"].sum() == affine.result["counts"].sum() == 100_100


def test_one_value_step_by_step(affine):
    affine.set(bits=4, value=-1.0)
    q = affine.result["qparams"]
    x = np.float32(-1.0)
    code = int(qlearn.quantize(x, q))
    steps = affine.explain(affine.result)
    assert steps[0] == "x = −1"
    assert steps[4] == f"clamp to 0 … 15: code {code}"
    assert f"({code} − {q.zero_point})" in steps[5]
    assert steps[6] == f"error x − x̂ = {rounded(-1 - float(qlearn.dequantize(np.asarray(code), q)))}"


@pytest.mark.parametrize(
    "change",
    [{"bits": 3}, {"symmetric": True}, {"outliers": 1}, {"outliers": 5, "size": 90}, {"value": -3.0}],
    ids=lambda change: next(iter(change)),
)
def test_every_control_changes_the_picture(affine, change):
    before = picture(affine)
    affine.set(**change)
    assert (picture(affine) != before).any()


def test_same_values_same_picture(affine):
    """Nothing of an earlier picture is left behind."""
    before = affine._picture.value
    affine.set(bits=8, outliers=100, size=100, value=-4.0, symmetric=True)
    affine.reset()
    assert affine._picture.value == before


def test_blitted_picture_is_the_drawn_one(affine):
    affine.set(bits=3, outliers=20)
    blitted = picture(affine)
    affine._canvas.draw()
    drawn = np.asarray(affine._canvas.buffer_rgba())[..., :3]
    # Lines above and below an artist that moves may be drawn in another order: a few pixels' edges.
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.002


def test_sharp_at_device_scale_factor_2():
    explorer = explore_affine(pixel_ratio=2)
    assert picture(explorer).shape == (860, 1600, 3)
    assert (explorer._picture.width, explorer._picture.height) == ("800", "430")


def test_picture_is_sent_without_delay_on_this_computer_and_short_to_others(affine, monkeypatch):
    affine.set(bits=3)
    here = bytes(affine._picture.value)
    assert here.startswith(b"data:image/png;base64,")
    assert len(here) > 2 * 65_483  # two segments of TCP on the loopback interface
    monkeypatch.setenv("JUPYTERHUB_USER", "someone")
    there = explore_affine()
    there.set(bits=3)
    assert there._picture.format == "png"
    assert len(there._picture.value) < 40_000
    np.testing.assert_array_equal(picture(there), decoded(here))


def test_colours_do_not_depend_on_the_learners_style():
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "axes.facecolor": "red"}):
        assert explore_affine()._picture.value == explore_affine()._picture.value
        corner = picture(explore_affine())[0, 0]
    assert corner.tolist() == [255, 255, 255]


# --- controls --------------------------------------------------------------------------------------------------------


def test_moves_as_the_page_sends_them(affine):
    for name, value in [("bits", 6), ("outliers", 40), ("size", 77), ("value", 0.5)]:
        move(affine, name, value)
        assert affine.values[name] == value
        assert affine.numbers == pytest.approx(direct(affine)[0], rel=1e-9)
    affine._inputs["symmetric"].set_state({"index": 1})
    assert affine.numbers["zero_point"] == 0


def test_set_moves_the_controls_and_reset_moves_them_back(affine):
    start = affine.values
    affine.set(bits=7, outliers=3)
    assert (affine.values["bits"], affine.values["outliers"]) == (7, 3)
    affine._button.click()
    assert affine.values == start


def test_start_values_are_where_reset_leads():
    explorer = explore_affine(bits=2, symmetric=True, outliers=5, size=40, value=1.0)
    explorer.set(bits=8, symmetric=False)
    explorer.reset()
    assert explorer.values == {"bits": 2, "symmetric": True, "outliers": 5, "size": 40, "value": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "bits=9 must be a whole number from 1 to 8"),
        ({"bits": 2.5}, "bits=2.5 must be a whole number from 1 to 8"),
        ({"bits": True}, "bits=True must be a whole number"),
        ({"bits": 1, "symmetric": True}, "bits=1 must be a whole number from 2 to 8"),
        ({"outliers": -1}, "outliers=-1 must be a whole number from 0 to 100"),
        ({"size": "large"}, "size='large' must be a whole number from 1 to 100"),
        ({"value": float("nan")}, "value=nan must be a number from"),
        ({"symmetric": "yes"}, r"symmetric='yes' must be one of False \(asymmetric\), True \(symmetric\)"),
        ({"bit": 3}, "no control 'bit'. The controls are bits, symmetric, outliers, size, value"),
    ],
)
def test_set_says_what_is_allowed(affine, change, message):
    before = affine.values
    with pytest.raises(ValueError, match=message):
        affine.set(outliers=1, **change) if "outliers" not in change else affine.set(**change)
    assert affine.values == before, "something moved"


def test_symmetric_codes_need_two_bits(affine):
    affine.set(bits=1)
    affine._inputs["symmetric"].set_state({"index": 1})
    assert affine.values["bits"] == affine.numbers["bits_per_value"] // 1 == 2
    assert affine._message.value == ""


def test_controls_can_be_read_and_used_without_a_mouse(affine):
    for name, widget in affine._inputs.items():
        assert widget.description == affine.controls[name].label
        assert (widget.tooltip if hasattr(widget, "tooltip") else widget.description_tooltip).endswith(".")
        assert getattr(widget, "continuous_update", True)
    assert 'aria-label="Affine quantization: numbers"' in affine._table.value
    assert affine._table.value.count('<th scope="row">') == len(affine.shown)


def test_only_core_widgets_and_no_pyplot(affine):
    assert not isinstance(affine, ipywidgets.Widget)
    names = set()
    for file in Path(engine.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names |= {alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")}
            names |= {node.attr} if isinstance(node, ast.Attribute) else set()
    assert not names & {"pyplot", "matplotlib.pyplot", "interact", "interactive", "Output", "jslink", "jsdlink"}


def test_controls_that_do_nothing_are_greyed():
    class Signed(Square):
        def idle(self, sign, **values):
            return {"x"} if sign == -1 else ()

    explorer = Signed()
    assert not explorer._inputs["x"].disabled
    explorer._inputs["sign"].set_state({"index": 1})
    assert explorer._inputs["x"].disabled and not explorer._inputs["sign"].disabled
    explorer.set(x=3)  # the kernel may still move it
    assert explorer.numbers == {"square": -9}
    explorer.reset()
    assert not explorer._inputs["x"].disabled


# --- when something goes wrong ---------------------------------------------------------------------------------------


def test_an_error_becomes_a_line_and_the_next_move_works():
    explorer = Square()
    move(explorer, "x", -1)
    assert "minus one &lt;is&gt; not wanted." in explorer._message.value
    assert explorer.numbers == {"square": 4}
    move(explorer, "x", 3)
    assert explorer._message.value == ""
    assert explorer.numbers == {"square": 9}


def test_an_error_in_set_is_raised_too():
    explorer = Square()
    with pytest.raises(ValueError, match="minus one"):
        explorer.set(x=-1)
    assert "minus one" in explorer._message.value
    explorer.set(x=-2)
    assert explorer.numbers == {"square": 4}


def test_a_surprise_is_named(monkeypatch):
    explorer = Square()
    monkeypatch.setattr(explorer, "compute", lambda **values: 1 / 0)
    move(explorer, "x", 1)
    assert "ZeroDivisionError: division by zero" in explorer._message.value


@pytest.mark.parametrize("where", ["compute", "update", "_draw", "_encode", "_table_html"])
def test_an_interrupt_leaves_it_usable(monkeypatch, where):
    explorer = Square()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(explorer, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            explorer.set(x=4)
    explorer.set(x=3)
    assert explorer.numbers == {"square": 9}
    fresh = Square(start={"x": 3})
    np.testing.assert_array_equal(picture(explorer), picture(fresh))


def test_an_interrupt_while_the_background_is_drawn(monkeypatch):
    explorer = Square()
    explorer._scenes.clear()

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(explorer._canvas, "draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            explorer.set(x=4)
    explorer.set(x=2)
    np.testing.assert_array_equal(picture(explorer), picture(Square()))


def test_limits_that_depend_on_a_choice():
    explorer = Square(start={"x": 5})
    explorer.set(sign=-1)
    assert explorer.values["x"] == 4
    with pytest.raises(ValueError, match="from 0 to 4"):
        explorer.set(x=5)
    explorer.set(sign=1, x=-5)
    assert explorer.numbers == {"square": 25}


# --- what a learner passes -------------------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(1).normal(scale=0.02, size=(4, 3, 5))


@pytest.mark.parametrize(
    "x",
    [
        WEIGHTS,
        WEIGHTS.astype(np.float16),
        torch.tensor(WEIGHTS, requires_grad=True),
        torch.tensor(WEIGHTS).to(torch.bfloat16),
        torch.arange(-3, 20, dtype=torch.int8),
        np.arange(50),
        [1, 2, 3],
        0.5,
        np.zeros(7),
        np.full(9, -2.5),
        np.abs(WEIGHTS) + 1000,
        np.append(WEIGHTS, 1e6),
        1e-30 * WEIGHTS,
        1e30 * WEIGHTS,
        np.array([-3e38, 3e38], np.float32),
    ],
    ids=str,
)
def test_any_real_numbers(x):
    explorer = explore_affine(x)
    for bits, symmetric, outliers in [(8, False, 0), (2, True, 100), (1, False, 1)]:
        explorer.set(bits=bits, symmetric=symmetric, outliers=outliers, size=100)
        numbers, counts = direct(explorer)
        np.testing.assert_array_equal(explorer.result["counts"], counts)
        # Where x̂ is x but for its last digit, the error is noise of 1e-16.
        noise = 1e-15 * float(np.abs(np.asarray(explorer.data.base.values)).max()) ** 2 + 1e-300
        assert explorer.numbers["mse"] == pytest.approx(numbers["mse"], rel=1e-7, abs=noise)
    assert "nan" not in str(explorer)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([]), "x is empty"),
        ([1.0, float("nan")], "x holds 1 value that is not finite"),
        (torch.tensor([float("inf")]), "x holds 1 value that is not finite"),
    ],
)
def test_what_cannot_be_explored(x, message):
    with pytest.raises(ValueError, match=message):
        explore_affine(x)


# --- shown ------------------------------------------------------------------------------------------------------------


def test_bundle_for_every_reader(affine):
    affine.set(bits=3, outliers=10)
    data, metadata = affine._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == affine._page.model_id
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert still.size[0] == 2 * metadata["image/png"]["width"] == 1600
    assert still.size[1] == 2 * metadata["image/png"]["height"] > 2 * 430, "no numbers under the picture"
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(affine) == repr(affine)


def test_sentence_is_rounded_and_repeatable(affine):
    assert str(affine) == (
        "Affine quantization (bits 4, scheme asymmetric, outliers 0, outlier size 20, one value 1.22): scale 0.567, "
        "zero point 8, codes used 16 of 16, bits per value 4, MSE 0.0267, SQNR 15.7 dB, largest error 0.283, clipped 0 %."
    )
    assert "\n" not in str(affine)
    assert str(explore_affine()) == str(affine)


def test_still_picture_leaves_the_live_one_alone(affine):
    before = affine._picture.value
    affine._repr_mimebundle_()
    affine.set(bits=5)
    affine.set(bits=4)
    assert affine._picture.value == before


def test_saved_picture(affine, tmp_path):
    affine.save(tmp_path / "explorer.png")
    assert Image.open(tmp_path / "explorer.png").size[0] == 1600


def test_rounding():
    assert [rounded(v) for v in (0.0, -0.0, 1e-7, 0.00012345, 99.96, 123456.0, 7, np.int64(1234))] == [
        *("0", "0", "1e−07", "0.000123", "100", "1.23e+05", "7", "1234"),
    ]
    assert rounded(float("inf")) == "∞"
    assert rounded(float("-inf")) == "−∞"


# --- threads, figures, speed -----------------------------------------------------------------------------------------


def test_moves_from_many_threads():
    explorers = [Square(), Square()]
    failures = []

    def play(seed):
        try:
            for x in np.random.default_rng(seed).integers(0, 5, 25):
                explorer = explorers[x % 2]
                if seed % 2:
                    move(explorer, "x", int(x))
                else:
                    explorer.set(x=int(x), sign=1)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not any(thread.is_alive() for thread in threads), "two threads wait for each other"
    assert not failures
    for explorer in explorers:
        x = explorer.values["x"]
        assert explorer.numbers == {"square": x * x}
        np.testing.assert_array_equal(picture(explorer), picture(Square(start={"x": x})))


def test_numbers_and_sentence_are_those_of_one_moment():
    """A training on another thread may put its next result in the place of the last while they are being read."""

    class Growing(Square):
        shown: ClassVar = {name: Number(name) for name in ("step", "loss", "percent")}

        def compute(self, x, sign):
            return {"x": x, "square": 0, "step": 0, "loss": None, "percent": 10}

    explorer = Growing()
    first, second = explorer.result, {**explorer.result, "step": 5, "loss": 0.25, "percent": 90}
    turns = itertools.cycle([second, first])
    Growing.result = property(lambda self: next(turns))
    whole = [{"step": 0, "percent": 10}, {"step": 5, "loss": 0.25, "percent": 90}]
    said = ["step 0, percent 10.", "step 5, loss 0.25, percent 90."]
    for _ in range(3):
        assert explorer.numbers in whole
        assert str(explorer).split(": ")[1] in said


def test_one_hundred_rapid_moves(affine):
    rng = np.random.default_rng(0)
    for _ in range(100):
        name = rng.choice(["bits", "outliers", "size"])
        move(affine, name, int(rng.integers(1, 9)))
    numbers, counts = direct(affine)
    assert affine.numbers == pytest.approx(numbers, rel=1e-9)
    np.testing.assert_array_equal(affine.result["counts"], counts)


def test_figures_are_flushed_on_the_main_thread_only(monkeypatch):
    backend_inline = pytest.importorskip("matplotlib_inline.backend_inline")
    flushed = []

    def flush_figures():
        flushed.append(threading.current_thread())

    class Shell:
        class events:
            callbacks: ClassVar = {"post_execute": [print, flush_figures]}

    monkeypatch.setattr(backend_inline, "flush_figures", flush_figures)
    monkeypatch.setattr("IPython.get_ipython", lambda: Shell)
    flush_on_main_thread_only()
    flush_on_main_thread_only()
    guarded = backend_inline.flush_figures
    assert Shell.events.callbacks["post_execute"] == [print, guarded] and guarded is not flush_figures

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    assert flushed == []
    guarded()
    assert flushed == [threading.main_thread()]


@pytest.mark.slow
def test_a_thousand_moves_gather_no_memory(affine):
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024

    def peak_after(moves):
        for k in range(moves):
            affine.set(bits=1 + k % 8, outliers=k % 101)
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak_after(200)
    assert peak_after(1000) - before <= 5e6


def test_a_move_sorts_nothing_but_the_outliers(monkeypatch):
    """What makes a move cost the same for any number of values; `make bench` measures it."""
    explorer = explore_affine()
    sorted_lengths = []
    monkeypatch.setattr(
        sorted_view, "ordered", lambda x, ordered=sorted_view.ordered: (sorted_lengths.append(len(x)), ordered(x))[1]
    )
    for name, value in {"bits": 8, "symmetric": True, "outliers": 100, "size": 90, "value": 0.5}.items():
        explorer.set(**{name: value})
    assert max(sorted_lengths) == 100


# --- the way to a PNG --------------------------------------------------------------------------------------------


def noise(colours, seed=0):
    """An opaque picture of 40 × 50 pixels in so many colours."""
    rng = np.random.default_rng(seed)
    palette = np.column_stack([rng.integers(0, 256, (colours, 3)), np.full(colours, 255)]).astype(np.uint8)
    return palette[rng.integers(0, colours, (40, 50))]


def test_exact_png_keeps_every_pixel():
    pixels = noise(5000)
    read = np.asarray(Image.open(io.BytesIO(exact_png(pixels))))
    np.testing.assert_array_equal(read, pixels)


def test_a_palette_keeps_common_colours_and_takes_the_nearest_for_later_ones():
    pixels = noise(20)
    palette = Palette(pixels)
    np.testing.assert_array_equal(np.asarray(palette.encode(pixels).convert("RGB")), pixels[..., :3])

    later = noise(300, seed=1)
    shown = np.asarray(palette.encode(later).convert("RGB")).reshape(-1, 3).astype(int)
    wanted = later[..., :3].reshape(-1, 1, 3).astype(int)
    distances = np.sqrt(((wanted - palette.colours.astype(int)) ** 2).sum(-1))
    # A colour and the one that stands for its kind differ by less than 8 in each channel, so by 8 · √3 together. Once
    # on the way to the nearest colour, and once in which one that is.
    assert (np.sqrt(((wanted[:, 0] - shown) ** 2).sum(-1)) <= distances.min(1) + 2 * 8 * np.sqrt(3)).all()
    np.testing.assert_array_equal(np.asarray(palette.encode(pixels).convert("RGB")), pixels[..., :3])
