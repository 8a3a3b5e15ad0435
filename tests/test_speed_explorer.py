"""The explorer of speed: its settings, what is measured and kept, what can be stopped, engines that are not there.

Latencies are replaced by known ones where numbers are looked at: how long something takes is for `make bench`.
"""

import base64
import io
import sys
import threading
import time

import numpy as np
import onnxruntime  # noqa: F401, an engine
import onnxscript  # noqa: F401, writes what it reads
import pytest
import torch
from PIL import Image

import qlearn
from pictures import picture
from qlearn.nn import Latency, Machine
from qlearn.style import DRAWING
from qlearn.widgets import explore_speed, jobs, speed_runs
from qlearn.widgets.jobs import Stopped
from qlearn.widgets.speed import BATCHES, INTENSITIES, RATES, WIDTHS
from qlearn.widgets.speed_runs import Setting, least

PATIENCE = 60
MACHINE = Machine(10e9, 100e9, 400e9, ("AVX2",))
SMALL = {"width": 128, "batch": 1, "bits": "float", "engine": "pytorch"}


def known(calls, x, **_):
    """Half a millisecond and two for the float layer, and the bar is told."""
    for call in calls.values():
        call(x)
    return {name: Latency(s, 2 * s, 10) for name, s in zip(calls, (0.0005, 0.002, 1e-9), strict=True)}


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """What is measured is known beforehand."""
    monkeypatch.setattr(qlearn.nn, "latencies", known)
    monkeypatch.setattr(speed_runs, "measured_machine", lambda: MACHINE)


@pytest.fixture
def explorer():
    return explore_speed(**SMALL)


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
    """A measurement that waits until it is let through."""

    def __init__(self, monkeypatch):
        self._open, self.reached = threading.Event(), threading.Event()

        def waits(calls, x, **_):
            self.reached.set()
            while not self._open.wait(0.005):
                calls[""](x)
            return known(calls, x)

        monkeypatch.setattr(qlearn.nn, "latencies", waits)

    def pass_(self):
        self._open.set()


# --- settings --------------------------------------------------------------------------------------------------------


def test_what_pytorch_runs_in_float_is_one_setting():
    same = {Setting.of(width=128, batch=1, bits="float", engine=engine) for engine in ("pytorch", "fake", "torchao")}
    assert same == {Setting(128, 1, "float", "pytorch")}
    assert Setting.of(width=128, batch=1, bits="float", engine="onnxruntime").runs_on == "ONNX Runtime"


@pytest.mark.parametrize(
    ("bits", "engine", "runs_on", "weight_bits"),
    [
        ("float", "pytorch", "float", 32),
        (8, "pytorch", "integers by hand", 8),
        (4, "fake", "fake quantized", 32),
        (4, "onnxruntime", "ONNX Runtime int8", 4),
        (8, "torchao", "torchao int8", 8),
    ],
)
def test_operations_bytes_and_the_roofline(bits, engine, runs_on, weight_bits):
    setting = Setting(256, 16, bits, engine)
    assert (setting.runs_on, setting.weight_bits) == (runs_on, weight_bits)
    work = qlearn.nn.layer_work(torch.nn.Linear(256, 256), torch.zeros(16, 256), weight_bits=weight_bits)["model"]
    assert (setting.operations, setting.moved) == (work.operations, work.bytes)
    peak = 400e9 if setting.integers else 100e9
    assert least(MACHINE, setting) == pytest.approx(max(work.operations / peak, work.bytes / 10e9))
    no_runtime = Machine(10e9, 100e9, None, ())
    assert least(no_runtime, setting) == pytest.approx(max(work.operations / 100e9, work.bytes / 10e9))


def test_every_setting_has_a_place_on_the_picture():
    for width in WIDTHS.values():
        for batch in BATCHES.values():
            for bits, engine in (("float", "pytorch"), (8, "onnxruntime"), (4, "onnxruntime")):
                setting = Setting(width, batch, bits, engine)
                assert INTENSITIES[0] < setting.operations / setting.moved < INTENSITIES[1]


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "engine", "size"),
    [("float", "pytorch", 4 * 129 * 128), (8, "pytorch", None), (4, "fake", 4 * 129 * 128), (4, "onnxruntime", None)],
)
def test_numbers_are_those_of_the_measurement(explorer, bits, engine, size):
    explorer.set(bits=bits, engine=engine, batch=4)
    numbers, setting = explorer.numbers, Setting(128, 4, bits, engine)
    expected = {"ms": 0.5, "p95_ms": 1.0, "float_ms": 2.0, "ratio": 4.0, "operations": setting.operations}
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    assert numbers["least_ms"] == pytest.approx(1e3 * least(MACHINE, setting))
    assert numbers["intensity"] == setting.operations / setting.moved
    codes = 128 * 128 * setting.weight_bits // 8
    assert numbers["bytes"] == size if size else codes < numbers["bytes"] < codes + 4000


def test_what_is_measured_is_the_layer_in_the_engine(explorer, monkeypatch):
    """Both get the same input and give the same output, but for rounding."""
    outputs = {}

    def looks(calls, x, **_):
        outputs.update({name: call(x) for name, call in calls.items()})
        return known(calls, x)

    monkeypatch.setattr(qlearn.nn, "latencies", looks)
    for bits, engine, off in (
        (8, "pytorch", 0.05),
        (4, "fake", 0.4),
        (8, "onnxruntime", 0.05),
        ("float", "onnxruntime", 1e-5),
    ):
        explorer.set(bits=bits, engine=engine, batch=16)
        assert outputs["now"].shape == outputs["float"].shape == (16, 128) and outputs[""] is None
        error = float((outputs["now"] - outputs["float"]).abs().max())
        assert error < off and (bits == "float" or error > 0)


def test_it_really_measures(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(speed_runs, "measured_machine", lambda: MACHINE)
    explorer = explore_speed(**SMALL)
    numbers = explorer.numbers
    assert 0 < numbers["ms"] <= numbers["p95_ms"] and explorer.result["outcome"].now.runs >= 5
    assert numbers["ratio"] == pytest.approx(numbers["float_ms"] / numbers["ms"])
    state = torch.random.get_rng_state()
    explorer.set(batch=2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_calculation(explorer):
    explorer.set(batch=16)
    assert explorer.explain(explorer.result) == [
        "2 · 16 rows · 128 · 128 = 524,288 operations",
        "128 · 128 weights · 32 bits / 8 + 2 · 16 · 128 numbers · 4 bytes = 81,920 bytes to move",
        "the roofline allows 0.00819 ms: it waits for its bytes",
    ]
    explorer.set(batch=1024)
    assert explorer.explain(explorer.result)[2].endswith("it waits for its operations")


# --- what is kept, and the background --------------------------------------------------------------------------------


def test_at_first_nothing_is_measured_and_showing_measures(monkeypatch):
    asked = []
    monkeypatch.setattr(qlearn.nn, "latencies", lambda calls, x, **_: asked.append(1) or known(calls, x))
    explorer = explore_speed(**SMALL)
    assert not asked and explorer.result["outcome"] is None and "not measured yet" in explorer._pending.get_text()
    assert set(dict(explorer._cells(explorer.result))) == {"intensity", "operations"}
    explorer._repr_mimebundle_()
    assert len(asked) == 1 and explorer._pending.get_text() == "" and explorer._bar.layout.visibility == "hidden"
    for _ in range(2):
        explorer.set(batch=2)
        explorer.reset()
    assert len(asked) == 2  # what is known is not measured again


def test_what_was_tried_stays_until_reset(explorer):
    explorer.load()
    explorer.set(bits=8)
    explorer.set(batch=4)
    kind = explorer._rates["pytorch", 8], explorer._times["pytorch", 8]
    assert [len(line.get_xdata()) for line in kind] == [2, 2]
    setting = Setting(128, 4, 8, "pytorch")
    place = np.log10([setting.operations / setting.moved, setting.operations / 0.0005])
    np.testing.assert_allclose([d[0] for d in explorer._now_rate.get_data()], place)
    np.testing.assert_allclose([d[0] for d in explorer._now_time.get_data()], [2, np.log10(0.5)])
    explorer.set(width=256)  # times are shown of one width, rates of all
    assert [len(line.get_xdata()) for line in kind] == [3, 1]
    explorer._button.click()
    assert [len(line.get_xdata()) for line in kind] == [0, 0]
    of_float = explorer._rates["pytorch", "float"], explorer._times["pytorch", "float"]
    assert [len(line.get_xdata()) for line in of_float] == [1, 1]


def test_roofs_are_those_of_the_machine(explorer, monkeypatch):
    assert [len(line.get_xdata()) for line, _ in explorer._roofs.values()] == [0, 0]  # not measured yet
    explorer.load()
    for name, peak in (("float32", 100e9), ("int8", 400e9)):
        line, text = explorer._roofs[name]
        x, y = 10 ** np.asarray(line.get_data())
        np.testing.assert_allclose(y, np.minimum(peak, 10e9 * x))
        assert text.get_text() == f"{name}, {peak / 1e9:g}"
    monkeypatch.setattr(speed_runs, "measured_machine", lambda: Machine(1e9, 1e9, None, ()))
    without = explore_speed(**SMALL)
    without.load()
    assert len(without._roofs["int8"][0].get_xdata()) == 0 and without._roofs["int8"][1].get_text() == ""


def test_what_is_out_of_the_picture_lies_on_its_edge(explorer):
    outcome = speed_runs.Outcome(Latency(1e9, 1e9, 5), Latency(1, 1, 5), 0)
    assert explorer._rate(Setting(128, 1, 8, "pytorch"), outcome)[1] == np.log10(RATES[0])


def test_a_move_shows_a_bar_and_then_the_numbers(explorer, monkeypatch):
    explorer.load()
    before = picture(explorer)
    gate = Gate(monkeypatch)
    explorer._inputs["batch"].value = 8
    assert gate.reached.wait(PATIENCE)
    wait_for("the bar is shown", lambda: explorer._bar.layout.visibility == "visible")
    wait_for("the bar says it", lambda: explorer._bar.description == "measuring")
    assert not explorer._buttons["stop"].disabled and (picture(explorer) == before).all()
    gate.pass_()
    at_rest(explorer)
    assert explorer.result["setting"].batch == 8 and (picture(explorer) != before).any()
    assert explorer._bar.layout.visibility == "hidden" and explorer._buttons["stop"].disabled


def test_stop_leads_back_to_what_is_shown(explorer, monkeypatch):
    explorer.load()
    values, numbers, shown = explorer.values, explorer.numbers, explorer._picture.value
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        explorer._inputs["batch"].value = 8
        assert gate.reached.wait(PATIENCE)
        explorer._buttons["stop"].click()
    assert explorer.values == values and explorer.numbers == numbers and explorer._picture.value == shown
    assert "Stopped. Controls are back" in explorer._message.value
    wait_for("its thread has ended", lambda: not jobs.running)
    explorer._inputs["batch"].value = 8
    at_rest(explorer)
    assert explorer._message.value == "" and explorer.result["setting"].batch == 8


def test_stop_before_anything_is_known_leaves_the_controls(monkeypatch):
    explorer = explore_speed(**SMALL)
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        presses = threading.Thread(target=lambda: (gate.reached.wait(PATIENCE), explorer.stop()))
        presses.start()
        explorer.load()
        presses.join()
    assert explorer.result["outcome"] is None and explorer.values == SMALL and "Stopped." in explorer._message.value
    assert explorer.numbers["ms"] == pytest.approx(0.5)  # whoever asks for it gets it


def test_stop_reaches_a_cell_that_waits(explorer, monkeypatch):
    explorer.load()
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        presses = threading.Thread(target=lambda: (gate.reached.wait(PATIENCE), explorer.stop()))
        presses.start()
        with pytest.raises(Stopped, match="stopped before it was done"):
            explorer.set(batch=8)
        presses.join()
    assert explorer.values == SMALL and explorer.result["outcome"] is not None and explorer._job is None
    explorer.set(batch=8)
    assert explorer._message.value == ""


def test_another_move_ends_the_measurement_of_the_last_one(explorer, monkeypatch):
    explorer.load()
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        explorer._inputs["batch"].value = 8
        assert gate.reached.wait(PATIENCE)
        patch.setattr(qlearn.nn, "latencies", known)
        explorer._inputs["batch"].value = 4
    at_rest(explorer)
    assert explorer.result["setting"].batch == 4
    assert not any(setting.batch == 8 for setting in explorer._runs._outcomes)


# --- engines that are not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"engine": "torchao", "bits": 4}, "torchao: measured here are its int8 products, which have 8 bits."),
        ({"engine": "onnxruntime"}, "onnxruntime is not installed here: pip install onnxruntime."),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(explorer, monkeypatch, wanted, message):
    explorer.load()
    ordinary = speed_runs.find_spec
    monkeypatch.setattr(speed_runs, "find_spec", lambda name: None if name == "onnxruntime" else ordinary(name))
    values, numbers, shown = explorer.values, explorer.numbers, explorer._picture.value
    with pytest.raises(ValueError, match=message):
        explorer.set(**wanted)
    assert explorer.values == values
    with pytest.raises(ValueError, match=message):
        explore_speed(**{**SMALL, **wanted})
    with explorer._hands_off():
        explorer._inputs["bits"].value = wanted.get("bits", "float")
    explorer._inputs["engine"].value = wanted["engine"]  # by hand
    assert message in explorer._message.value and explorer._picture.value == shown and explorer._job is None
    explorer.reset()
    assert explorer._message.value == "" and explorer.numbers == numbers


def test_a_library_that_fails_on_import_is_one_sentence(explorer, monkeypatch):
    explorer.load()
    monkeypatch.setattr(speed_runs, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "torchao", None)
    explorer._inputs["bits"].value = 8
    at_rest(explorer)
    explorer._inputs["engine"].value = "torchao"
    at_rest(explorer)
    assert "needs a torchao that fits this PyTorch" in explorer._message.value
    with pytest.raises(ValueError, match="pip install torchao"):
        explorer.set(batch=2)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"width": 100}, "width=100 must be one of 128"),
        ({"batch": 3}, "batch=3 must be one of 1"),
        ({"bits": 2}, "bits=2 must be one of 'float'"),
        ({"engine": "tpu"}, "engine='tpu' must be one of 'pytorch'"),
        ({"speed": 9}, "There is no control 'speed'"),
    ],
)
def test_wrong_values_are_named(explorer, wanted, message):
    with pytest.raises(ValueError, match=message):
        explorer.set(**wanted)
    assert explorer.values == SMALL


# --- the page --------------------------------------------------------------------------------------------------------


def test_bundle_for_every_reader(explorer, tmp_path):
    data, metadata = explorer._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert still.size[0] == 2 * metadata["image/png"]["width"] == 1600
    assert still.size[1] > 2 * explorer.size[1], "no numbers under the picture"
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(explorer)
    assert str(explorer).startswith(
        "How quick a layer is here (width 128, batch 1, weight bits float, engine PyTorch): median 0.5 ms, "
    )
    explorer.save(tmp_path / "still.png")
    assert Image.open(tmp_path / "still.png").size == still.size


def test_every_control_changes_the_picture_and_reset_changes_it_back(explorer):
    explorer.load()
    before = explorer._picture.value
    for change in ({"width": 256}, {"batch": 2}, {"bits": 8}, {"engine": "onnxruntime"}):
        start, pixels = explorer.values, picture(explorer)
        explorer.set(**change)
        assert (picture(explorer) != pixels).any() and explorer._message.value == "", change
        explorer.set(**start)
    explorer.reset()
    assert explorer._picture.value == before


def test_blitted_picture_is_the_drawn_one(explorer):
    explorer.set(bits=8)
    explorer.set(bits=4, engine="onnxruntime")
    blitted = picture(explorer)
    explorer._canvas.draw()
    drawn = np.asarray(explorer._canvas.buffer_rgba())[..., :3]
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.004


def test_it_can_be_used_without_a_mouse(explorer):
    explorer.load()
    for name, widget in explorer._inputs.items():
        assert widget.description == explorer.controls[name].label
        assert (widget.tooltip if hasattr(widget, "tooltip") else widget.description_tooltip).endswith(".")
        assert not getattr(widget, "continuous_update", False)  # a setting takes seconds
    assert explorer._table.value.count('<th scope="row">') == len(explorer.numbers)
    assert [button.description for button in (*explorer._buttons.values(), explorer._button)] == ["Stop", "Reset"]
