"""The explorer of a language model: its numbers, its texts, what is kept, what can be stopped, prompts that cannot be."""

import base64
import contextlib
import html
import io
import itertools
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

import qlearn
from pictures import picture
from qlearn import PerAxis, PerGroup, PerToken, QuantConfig, datasets
from qlearn.nn.language_model import ALPHABET, CONTEXT, LanguageModel, language_model, to_tokens, windows
from qlearn.style import DRAWING, GREY, INK, contrast, on_dark
from qlearn.widgets import explore_language_model, jobs, language_model_runs
from qlearn.widgets.jobs import Stopped
from qlearn.widgets.language_model import COLUMNS, LEVELS, MOST_LETTERS, ROWS, TAIL, wrapped
from qlearn.widgets.language_model_runs import LETTERS, MEASURED, Runs, Setting, surprises

PATIENCE = 60


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """On a model as small as these, threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny():
    torch.manual_seed(0)
    return LanguageModel(width=64, heads=2, hidden=128, blocks=1).eval()


@pytest.fixture(scope="module")
def short():
    """Small texts everywhere, for a model that has learnt nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model_runs, "MEASURED", 2 * CONTEXT + 1)
        patch.setattr(language_model_runs, "LETTERS", 12)
        language_model_runs._calibration.cache_clear()
        patch.setattr(language_model_runs, "CALIBRATED", 4)
        yield
        language_model_runs._calibration.cache_clear()


@pytest.fixture
def all_of_it(short):
    """The texts in their full length again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model_runs, "MEASURED", MEASURED)
        patch.setattr(language_model_runs, "LETTERS", LETTERS)
        yield


@pytest.fixture(scope="module")
def made(short):
    return explore_language_model(tiny())


@pytest.fixture
def explorer(made):
    made.reset()
    return made


def wait_for(what, true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"waited too long until {what}"
        time.sleep(0.005)


def at_rest(explorer):
    wait_for("nothing is computed", lambda: explorer._job is None)
    with DRAWING:  # who has ended it holds the lock until the picture is drawn
        pass


class Gate:
    """Work that waits at a stage until it is let through."""

    def __init__(self, monkeypatch, stage):
        self._open, self.reached = threading.Event(), threading.Event()
        ordinary = language_model_runs._calls

        @contextlib.contextmanager
        def calls(tell, name, layers, times):
            if name == stage:
                self.reached.set()
                while not self._open.wait(0.005):
                    tell(name, 0.5)
            with ordinary(tell, name, layers, times) as hear:
                yield hear

        monkeypatch.setattr(language_model_runs, "_calls", calls)

    def pass_(self):
        self._open.set()


# --- the numbers -----------------------------------------------------------------------------------------------------


def by_the_long_way(model, calibration, text, values):
    """Perplexity and bytes of what `prepare`, `calibrate` and `convert` make."""
    nn = qlearn.nn
    outliers, bits, group, inputs = (values[name] for name in ("outliers", "bits", "group", "activations"))
    if outliers != "trained":
        model = nn.plant_outliers(model, channels=2, factor=256.0)
    if outliers == "smoothed":
        model = nn.smooth(model, calibration)
    granularity = PerAxis(0) if group == "row" or inputs != "float" else PerGroup(group)
    by = {name: QuantConfig(bits, True, granularity, name) for name in ("min_max", "mse")}
    if values["method"] == "awq":
        model = nn.awq(model, calibration, by["min_max"], progress=False)
    config = by["min_max" if values["method"] == "min_max" else "mse"]
    activations = {
        "float": None,
        "tensor8": QuantConfig(),
        "token8": QuantConfig(method="dynamic", granularity=PerToken()),
        "token4": QuantConfig(4, method="dynamic", granularity=PerToken()),
    }
    prepared = nn.prepare(model, config, activations[inputs])
    if values["method"] == "gptq":
        prepared = nn.gptq(prepared, calibration, progress=False)
    converted = nn.convert(nn.calibrate(prepared, calibration, progress=False))
    if values["cache"] != "float":
        for block in converted.blocks:
            block.attention.cache = QuantConfig(values["cache"], granularity=PerGroup(32))
    return nn.perplexity(converted, text), nn.summary(converted)


SETTINGS = [
    {"bits": 4},
    {"bits": 2, "method": "mse", "group": 32},
    {"bits": 3, "method": "gptq", "group": 64, "cache": 3},
    {"bits": 3, "method": "gptq", "activations": "tensor8"},
    {"bits": 2, "method": "awq", "activations": "token4", "outliers": "planted"},
    {"bits": 8, "outliers": "planted", "activations": "tensor8", "group": 32},
    {"bits": 8, "method": "mse", "outliers": "smoothed", "activations": "tensor8", "cache": 2},
    {"bits": 8, "method": "awq", "outliers": "smoothed", "activations": "tensor8"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_numbers_are_those_of_prepare_calibrate_convert(explorer, setting):
    explorer.set(**setting)
    numbers, values = explorer.numbers, explorer.values
    calibration = list(windows(datasets.text_parts().calibration[: 4 * CONTEXT + 1])[0].split(16))
    text = datasets.text_parts().validation[: 2 * CONTEXT + 1]
    perplexity, summary = by_the_long_way(tiny(), calibration, text, values)
    # The layers of `convert` add up integers and round the sums; codes at a near tie may be others.
    assert numbers["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert numbers["bytes"] == summary.bytes
    rows = [row for row in summary.layers if row.weights != "float"]
    own = 8 * len(rows) if values["activations"] == "tensor8" else 0
    packed = sum(row.bytes for row in rows) - own
    assert numbers["bits_per_weight"] == 8 * packed / sum(row.parameters for row in rows)
    of_float = qlearn.nn.summary(tiny()).bytes + 4 * 2 * CONTEXT * 64
    assert numbers["size_percent"] == pytest.approx(100 * (summary.bytes + numbers["cache_bytes"]) / of_float)


def test_float_is_float_whatever_was_planted(explorer):
    text = datasets.text_parts().validation[: 2 * CONTEXT + 1]
    perplexity = qlearn.nn.perplexity(tiny(), text)
    for outliers in ("trained", "planted", "smoothed"):
        explorer.set(bits="float", outliers=outliers)
        assert explorer.numbers["perplexity"] == pytest.approx(perplexity, rel=1e-5)
        assert explorer.numbers["float_perplexity"] == pytest.approx(perplexity, rel=1e-6)
        assert explorer.numbers["bytes"] == qlearn.nn.summary(tiny()).bytes
        assert (explorer.numbers["bits_per_weight"], explorer.numbers["size_percent"]) == (32, 100)


@pytest.mark.parametrize(
    ("bits", "size"), [("float", 4 * 16384), (8, 16384 + 512 * 5), (3, 6144 + 512 * 4 + 192), (2, 4096 + 512 * 4 + 128)]
)
def test_bytes_of_the_cache(explorer, bits, size):
    """Keys and values of 128 letters, 64 wide, in one block: 16,384 numbers, and 512 ranges of 32 + bits."""
    explorer.set(cache=bits)
    assert explorer.numbers["cache_bytes"] == size


def test_the_model_that_comes_with_the_package(all_of_it):
    explorer = explore_language_model()
    model, text = qlearn.nn.load_language_model(), datasets.text_parts().validation[:8193]
    assert explorer.numbers["float_perplexity"] == pytest.approx(qlearn.nn.perplexity(model, text), rel=1e-5)
    assert explorer.numbers["perplexity"] == pytest.approx(4.35, abs=0.01)
    explorer.set(bits=2)
    babble, surprised = explorer.numbers["perplexity"], explorer.numbers["surprise"]
    assert 25 < babble < 50 and surprised > 6
    explorer.set(method="mse")
    assert explorer.numbers["perplexity"] == pytest.approx(5.44, abs=0.03)
    assert explorer.numbers["surprise"] < 4
    assert explorer.explain(explorer.result) == [
        "1,784,832 weights · 2.144 bits / 8 = 478,388 bytes",
        "+ 166,656 in float = 645,044 bytes",
        "cache: 2 · 4 blocks · 128 letters · 192 numbers of 32 bits = 786,432 bytes",
    ]


# --- the text --------------------------------------------------------------------------------------------------------


def test_it_writes_what_generate_writes(explorer):
    explorer.set(bits="float", prompt="Call me ")
    text = explorer.result["text"]
    assert text == qlearn.nn.generate(tiny(), "Call me ", length=12)
    assert explorer.numbers["surprise"] == pytest.approx(float(surprises(tiny(), text)[8:].mean()), rel=1e-5)
    before = explorer.numbers["perplexity"]
    explorer.set(prompt="Ishmael")
    assert explorer.result["text"].startswith("Ishmael") and explorer.numbers["perplexity"] == before
    assert explorer.numbers["tried"] == 2  # a prompt is no setting


def test_surprises_are_those_of_the_letters_before():
    model, text = tiny(), datasets.text_parts().validation[:300]
    found, tokens = surprises(model, text), to_tokens(text)
    assert np.isnan(found[0]) and len(found) == 300
    with torch.no_grad():
        for place in (1, 2, 127, 128, 129, 192, 193, 256, 299):
            first = 0 if place <= CONTEXT else CONTEXT // 2 * (-(-(place - CONTEXT) // (CONTEXT // 2)))
            logs = model(tokens[:, first:place])[0, -1].log_softmax(-1)
            assert found[place] == pytest.approx(-float(logs[tokens[0, place]]) / np.log(2), rel=1e-4)
    knows_nothing = language_model()
    knows_nothing.head.weight.data.zero_()
    np.testing.assert_allclose(surprises(knows_nothing, "Call me")[1:], np.log2(80), rtol=1e-5)
    assert len(surprises(model, "a")) == 1


def test_letters_stand_where_they_are_written_and_are_coloured(explorer):
    explorer.set(bits=2, prompt="Ahab\nAhab ")
    text, start = explorer.result["text"], len("Ahab\nAhab ")
    shown = [letter.get_text() for letter in explorer._letters]
    assert shown[: len(text)] == ["↵" if letter == "\n" else letter.strip() for letter in text]
    assert set(shown[len(text) :]) == {""}
    places, cells = wrapped(text, COLUMNS, TAIL), np.asarray(explorer._surprise.get_array())
    for k, (place, bits) in enumerate(zip(places, explorer.result["surprises"], strict=True)):
        level = 0 if k < start else sum(bits >= edge for edge in (1, 3, 6))
        assert cells[place] == level
        bold = explorer._letters[k].get_fontweight() == "bold"
        assert bold == (k < start or level == 3)
    assert explorer._mean.get_text().startswith("mean surprise of the float model: ")
    assert html.escape(text) in explorer._table.value


@pytest.mark.parametrize("seed", range(20))
def test_every_text_has_room(seed):
    random = np.random.default_rng(seed)
    letters = ALPHABET + (seed % 4) * 20 * " "
    text = "".join(random.choice(list(letters), CONTEXT + LETTERS))
    places = wrapped(text, COLUMNS, TAIL)
    assert len(text) == len(places) == len(set(places)) == MOST_LETTERS
    assert max(row for row, _ in places) < ROWS and max(column for _, column in places) < COLUMNS
    assert places == sorted(places)


def test_letters_stand_out_from_every_colour_on_light_and_dark_pages():
    for colour in LEVELS:
        assert contrast(INK, colour) >= 4.5 and contrast(on_dark(INK), on_dark(colour)) >= 4.5
    for page in (str, on_dark):  # from one level to the next it becomes darker, or on a dark page lighter
        steps = [contrast(page(INK), page(colour)) for colour in LEVELS]
        assert all(a > 1.15 * b for a, b in itertools.pairwise(steps))
    assert contrast(GREY, "white") >= 4.5


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty: one letter is needed"),
        ("Café", r"prompt: the text has 'é' at place 3: the model knows ASCII letters.*\."),
        ("a" * 129, "the prompt has 129 letters: one letter is needed, and at most 128 are seen"),
    ],
)
def test_prompts_that_cannot_be_written_on(explorer, prompt, message):
    before, values, shown = explorer.numbers, explorer.values, explorer._picture.value
    with pytest.raises(ValueError, match=message):
        explorer.set(prompt=prompt)
    assert explorer.values == values and explorer._message.value == ""
    explorer._inputs["prompt"].value = prompt  # by hand
    assert html.escape(message.split("(")[0].split(" at")[0].removeprefix("prompt: ")[:20]) in explorer._message.value
    assert "last values that worked" in explorer._message.value
    assert explorer.numbers == before and explorer._picture.value == shown and explorer._job is None
    explorer._inputs["prompt"].value = "Call me "
    at_rest(explorer)
    assert explorer._message.value == "" and explorer.result["text"].startswith("Call me ")


def test_a_prompt_that_is_no_text(explorer):
    with pytest.raises(ValueError, match="prompt=3 must be a text"):
        explorer.set(prompt=3)
    with pytest.raises(ValueError, match="the prompt is empty"):
        explore_language_model(tiny(), prompt="")


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_weights_are_quantized_once_for_all_activations_and_caches(short, monkeypatch):
    explorer = explore_language_model(tiny())
    rounded, measured, written = [], [], []
    ordinary = Runs._round, qlearn.nn.perplexity, qlearn.nn.generate
    monkeypatch.setattr(Runs, "_round", lambda *args: (rounded.append(args[1]), ordinary[0](*args))[1])
    monkeypatch.setattr("qlearn.nn.perplexity", lambda *args: (measured.append(1), ordinary[1](*args))[1])
    monkeypatch.setattr("qlearn.nn.generate", lambda *a, **k: (written.append(1), ordinary[2](*a, **k))[1])
    counts = []

    def count(**setting):
        for calls in (rounded, measured, written):
            calls.clear()
        explorer.set(**setting)
        counts.append((len(rounded), len(measured), len(written)))

    for setting in (
        *({"bits": 3}, {"activations": "token8"}, {"cache": 4}, {"cache": 2}, {"prompt": "Call me "}),
        *({"cache": 4}, {"activations": "float", "cache": "float", "prompt": "The whale "}, {"group": 32}),
    ):
        count(**setting)
    assert counts == [(1, 1, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1), (0, 0, 1), (0, 0, 1), (0, 0, 0), (1, 1, 1)]


def test_what_changes_nothing_is_the_same_setting_and_is_greyed(explorer):
    explorer.set(bits=3)
    for values, greyed in (
        ({"bits": "float", "method": "gptq", "group": 32}, {"method", "group"}),
        ({"activations": "token8", "group": 32}, {"group"}),
        ({"group": 32}, set()),
    ):
        explorer.reset()
        explorer.set(**values)
        assert {name for name, widget in explorer._inputs.items() if widget.disabled} == greyed
    values = {"outliers": "trained", "cache": "float", "bits": 4, "method": "mse"}
    assert Setting.of(**values, activations="token4", group=32) == Setting.of(
        **values, activations="token4", group="row"
    )
    floats = values | {"bits": "float", "activations": "float"}
    assert Setting.of(**floats, group=32) == language_model_runs.IN_FLOAT


def test_little_is_kept_and_many_moves_need_no_memory(explorer, monkeypatch):
    monkeypatch.setattr(language_model_runs, "KEPT_WEIGHTS", 2)
    monkeypatch.setattr(language_model_runs, "KEPT_TEXTS", 6)
    settings = [{"bits": bits, "cache": cache} for bits in (2, 3, 4, 8) for cache in ("float", 2)]
    for setting in settings:
        explorer.set(**setting)
        assert len(explorer._runs._rounded) <= 2 and len(explorer._runs._texts) <= 6
    monkeypatch.setattr(language_model_runs, "KEPT_TEXTS", 512)
    for setting in settings:
        explorer.set(**setting)
    tracemalloc.start()
    try:
        for k in range(32):
            if k == 16:
                before = tracemalloc.get_traced_memory()[0]
            explorer.set(**settings[k % len(settings)])
        assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_was_tried_stays_until_reset(explorer):
    for setting in ({"bits": 2}, {"bits": 2, "method": "mse"}, {"bits": "float", "method": "min_max"}):
        explorer.set(**setting)
    assert explorer.numbers["tried"] == 4
    drawn = {name: len(line.get_xdata()) for name, line in explorer._marks.items()}
    assert drawn == {"nearest, min-max": 2, "nearest, MSE": 1, "GPTQ": 0, "AWQ": 0, "weights in float": 1}
    size = (explorer.numbers["bytes"] + explorer.numbers["cache_bytes"]) / 1e6
    assert 10 ** explorer._now.get_xdata()[0] == pytest.approx(size)
    assert explorer._now.get_ydata()[0] == pytest.approx(0, abs=1e-6)  # float's own height
    explorer._button.click()
    assert explorer.numbers["tried"] == 1 and explorer.values["bits"] == 4


# --- in the background -----------------------------------------------------------------------------------------------


def fresh():
    explorer = explore_language_model(tiny())
    explorer.load()
    return explorer


def test_a_move_shows_a_bar_then_numbers_then_the_text(short, monkeypatch):
    explorer = fresh()
    before = picture(explorer)
    measuring, writing = Gate(monkeypatch, "measuring"), None
    explorer._inputs["bits"].value = 2
    assert measuring.reached.wait(PATIENCE)
    wait_for("the bar is shown", lambda: explorer._bar.layout.visibility == "visible")
    wait_for("the bar says it", lambda: (explorer._bar.description, explorer._bar.value) == ("measuring", 50))
    assert not explorer._buttons["stop"].disabled and (picture(explorer) == before).all()
    with monkeypatch.context() as patch:
        writing = Gate(patch, "writing")
        measuring.pass_()
        assert writing.reached.wait(PATIENCE)
        assert explorer.result["setting"].bits == 2 and explorer.result["text"] is None
        assert "not written yet" in explorer._pending.get_text() and "tried" in explorer._table.value
        assert explorer._mean.get_text() == "" and (picture(explorer) != before).any()
        writing.pass_()
        at_rest(explorer)
    assert explorer.result["text"] is not None and explorer._pending.get_text() == ""
    assert explorer._bar.layout.visibility == "hidden" and explorer._buttons["stop"].disabled
    alone = fresh()
    alone.set(bits=2)
    assert alone.numbers == pytest.approx(explorer.numbers)


@pytest.mark.parametrize("stage", ["quantizing", "measuring"])
def test_stop_leads_back_to_what_is_shown(short, monkeypatch, stage):
    explorer = fresh()
    shown, values, numbers = explorer._picture.value, explorer.values, explorer.numbers
    with monkeypatch.context() as patch:
        gate = Gate(patch, stage)
        explorer._inputs["method"].value = "gptq"
        assert gate.reached.wait(PATIENCE)
        explorer._buttons["stop"].click()
    assert explorer.values == values and explorer.numbers == numbers and explorer._picture.value == shown
    assert "Stopped. Controls are back" in explorer._message.value
    assert explorer._bar.layout.visibility == "hidden" and explorer._buttons["stop"].disabled
    wait_for("its thread has ended", lambda: not jobs.running)
    assert explorer._bar.layout.visibility == "hidden"
    explorer._inputs["method"].value = "gptq"
    at_rest(explorer)
    assert explorer._message.value == "" and explorer.result["setting"].method == "gptq"
    explorer.stop()  # once more does nothing
    assert explorer._message.value == ""


def test_stop_while_it_writes_keeps_the_numbers(short, monkeypatch):
    explorer = fresh()
    with monkeypatch.context() as patch:
        gate = Gate(patch, "writing")
        explorer._inputs["bits"].value = 3
        assert gate.reached.wait(PATIENCE)
        explorer.stop()
    assert explorer.values["bits"] == 3 and explorer.result["text"] is None
    assert "This text was not written" in explorer._message.value
    assert "surprise" in explorer.numbers and explorer.result["text"] is not None  # whoever asks for it gets it


def test_another_move_ends_the_work_of_the_last_one(short, monkeypatch):
    explorer = fresh()
    with monkeypatch.context() as patch:
        gate = Gate(patch, "quantizing")
        explorer._inputs["method"].value = "gptq"
        assert gate.reached.wait(PATIENCE)
        explorer._inputs["method"].value = "mse"
    at_rest(explorer)
    assert explorer.result["setting"].method == "mse" and explorer.numbers["tried"] == 2
    assert not any(setting.method == "gptq" for setting in explorer._runs._outcomes)


def test_set_ends_what_a_hand_has_set_off_and_waits_for_its_own(short, monkeypatch):
    explorer = fresh()
    with monkeypatch.context() as patch:
        gate = Gate(patch, "quantizing")
        explorer._inputs["method"].value = "gptq"
        assert gate.reached.wait(PATIENCE)
        with pytest.raises(ValueError, match="bits=5 must be one of"):
            explorer.set(bits=5)
        assert explorer._job is not None  # a refused one ends nothing
        explorer.set(method="awq", bits=3)
    assert explorer.result["text"] is not None and explorer._job is None
    assert (explorer.result["setting"].method, explorer.result["setting"].bits) == ("awq", 3)


def test_stop_reaches_a_cell_that_waits(short, monkeypatch):
    """Where the kernel hears buttons while a cell runs, they come on another thread."""
    explorer = fresh()
    with monkeypatch.context() as patch:
        gate = Gate(patch, "quantizing")
        presses = threading.Thread(target=lambda: (gate.reached.wait(PATIENCE), explorer.stop()))
        presses.start()
        with pytest.raises(Stopped, match="stopped before it was done"):
            explorer.set(method="gptq")
        presses.join()
    assert "Stopped" in explorer._message.value and explorer._job is None
    explorer.set(method="gptq")
    assert explorer._message.value == "" and explorer.result["text"] is not None


def test_an_error_becomes_a_line_and_the_next_move_works(short, monkeypatch):
    explorer = fresh()

    def fails(*args, **kwargs):
        raise RuntimeError("no <memory>")

    with monkeypatch.context() as patch:
        patch.setattr("qlearn.nn.generate", fails)
        explorer._inputs["bits"].value = 3
        at_rest(explorer)
        assert "RuntimeError: no &lt;memory&gt;" in explorer._message.value
        with pytest.raises(RuntimeError, match="no <memory>"):
            explorer.load()
    explorer._inputs["bits"].value = 2
    at_rest(explorer)
    assert explorer._message.value == "" and explorer.result["text"] is not None


def test_two_explorers_do_not_disturb_each_other(short):
    pair = explore_language_model(tiny()), explore_language_model(tiny())
    for explorer, bits in zip(pair, (2, 3), strict=True):
        explorer._inputs["bits"].value = bits
    for explorer, bits in zip(pair, (2, 3), strict=True):
        at_rest(explorer)
        alone = explore_language_model(tiny(), bits=bits)
        for name in ("perplexity", "bytes", "surprise"):
            assert explorer.numbers[name] == pytest.approx(alone.numbers[name])


def test_leaving_python_ends_it_in_good_order():
    code = """
from qlearn.widgets import explore_language_model
explorer = explore_language_model()
explorer._inputs["bits"].value = 3
print("bye")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")


# --- the page --------------------------------------------------------------------------------------------------------


def test_at_first_there_is_no_text_and_showing_writes_it(short, monkeypatch):
    explorer = explore_language_model(tiny())
    assert explorer.result["text"] is None and "not written yet" in explorer._pending.get_text()
    sentence, shown = str(explorer), []

    class Handle:
        def update(self, data, metadata, raw):
            shown.append((explorer.result["text"] is not None, set(data), data["text/plain"]))

    def display(data, raw, display_id):
        shown.append((explorer.result["text"] is not None, set(data), data["text/plain"]))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    explorer._ipython_display_()
    live = {"text/plain", "application/vnd.jupyter.widget-view+json"}
    assert shown == [(False, live, sentence), (True, live | {"image/png"}, sentence)]


def test_the_sentence_has_nothing_that_hangs_on_the_draws(explorer):
    assert str(explorer).startswith(
        "A language model in few bits (weights by nearest, min-max, weight bits 4, group a row, activations float, "
        "cache bits float, outliers as trained, prompt The whale ): perplexity "
    )
    assert "surprise" not in str(explorer) and "surprise" in explorer.numbers


def test_bundle_for_every_reader(explorer, tmp_path):
    data, metadata = explorer._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert still.size[0] == 2 * metadata["image/png"]["width"] == 1600
    assert still.size[1] > 2 * explorer.size[1], "no numbers under the picture"
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(explorer)
    explorer.save(tmp_path / "still.png")
    assert Image.open(tmp_path / "still.png").size == still.size


def test_every_control_changes_the_picture_and_reset_changes_it_back(explorer):
    before = explorer._picture.value
    for change in (
        *({"bits": 2}, {"method": "mse"}, {"group": 32}, {"activations": "token4"}),
        *({"cache": 2}, {"outliers": "planted"}, {"prompt": "Call me "}),
    ):
        start, pixels = explorer.values, picture(explorer)
        explorer.set(**change)
        assert (picture(explorer) != pixels).any() and explorer._message.value == "", change
        assert "nan" not in explorer._table.value
        explorer.set(**start)
    explorer.reset()
    assert explorer._picture.value == before


def test_blitted_picture_is_the_drawn_one(explorer):
    explorer.set(bits=2)
    explorer.set(bits=3)
    blitted = picture(explorer)
    explorer._canvas.draw()
    drawn = np.asarray(explorer._canvas.buffer_rgba())[..., :3]
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.004


def test_it_can_be_used_without_a_mouse(explorer):
    for name, widget in explorer._inputs.items():
        assert widget.description == explorer.controls[name].label
        assert (widget.tooltip if hasattr(widget, "tooltip") else widget.description_tooltip).endswith(".")
        assert not getattr(widget, "continuous_update", False)  # a setting takes seconds
    assert explorer._table.value.count('<th scope="row">') == len(explorer.numbers) - len(explorer.untold)
    assert [button.description for button in (*explorer._buttons.values(), explorer._button)] == ["Stop", "Reset"]


def test_a_rotated_model_is_the_package_s_and_computes_the_same(short, monkeypatch):
    asked, rotate = [], qlearn.nn.rotate
    monkeypatch.setattr(qlearn.nn, "rotate", lambda model, batches: asked.append(model) or rotate(model, batches))
    explorer = explore_language_model(tiny(), outliers="rotated", bits="float")
    assert explorer.values["outliers"] == "rotated" and len(asked) == 1
    numbers = explorer.numbers
    assert numbers["perplexity"] == pytest.approx(numbers["float_perplexity"], rel=1e-4)  # rotate's own bound


def test_a_model_of_one_s_own(short):
    odd = LanguageModel(width=48, heads=3, hidden=96, blocks=2)
    before = {name: tensor.clone() for name, tensor in odd.state_dict().items()}
    explorer = explore_language_model(odd, cache=4)
    assert list(explorer.controls["group"].options) == ["a row"]  # neither 64 nor 32 divides 48
    assert explorer.numbers["perplexity"] > 40 and "2 · 2 blocks" in explorer.explain(explorer.result)[2]
    assert odd.training and all(torch.equal(before[name], tensor) for name, tensor in odd.state_dict().items())
    with pytest.raises(TypeError, match=r"model is a Linear: wanted is a qlearn\.nn\.LanguageModel"):
        explore_language_model(torch.nn.Linear(2, 2))
