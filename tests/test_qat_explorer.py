"""The explorer of lesson 06: what it shows of a training, and that a training can be watched, stopped and replaced."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import qlearn
from pictures import picture
from qlearn import PerAxis, QuantConfig, datasets
from qlearn.nn.prepared import prepared_layers
from qlearn.style import DRAWING
from qlearn.widgets import explore_qat, jobs, qat, qat_runs

TRAIN_DIGITS = 20 * qat_runs.BATCH_SIZE


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Twenty steps instead of 430, with a look at every other one."""
    data = datasets.mnist_arrays()
    few = data._replace(train=type(data.train)(data.train.images[:TRAIN_DIGITS], data.train.labels[:TRAIN_DIGITS]))
    monkeypatch.setattr(qat_runs, "mnist", lambda: few)
    monkeypatch.setattr(qat_runs, "EVERY", 2)


@pytest.fixture
def explorer():
    made = explore_qat()
    yield made
    made.close()


PATIENCE = 600  # seconds until a test is given up: it hangs then, however busy the machine is


def wait_for(what, condition):
    """Look again and again, until it is so; `what` says in words what that is."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s for this: {what}"
        time.sleep(0.01)


def at_step(explorer, step):
    wait_for(f"step {step}", lambda: explorer.numbers["step"] == step)


def at_the_end(explorer):
    """The training is over, and its last picture drawn."""
    explorer._run._thread.join(PATIENCE)
    assert not explorer._run._thread.is_alive() and not explorer.running


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", ["min_max", "mse"])
def test_before_training_it_shows_post_training_quantization(bits, learned, method):
    data, model = datasets.mnist_arrays(), qlearn.nn.load_trained("mlp")
    images, labels = (part[:1000] for part in data.validation)

    def percent(method):
        weights = QuantConfig(bits=bits, symmetric=True, granularity=PerAxis(0), method=method)
        prepared = qlearn.nn.prepare(model, weights)
        calibration = qlearn.nn.to_inputs(data.calibration.images)
        ptq = qlearn.nn.convert(qlearn.nn.calibrate(prepared, calibration, progress=False))
        return 100 * qlearn.nn.accuracy(ptq, images, labels)

    numbers = explore_qat(bits=bits, learned=learned, method=method).numbers
    assert numbers["float_percent"] == 100 * qlearn.nn.accuracy(model, images, labels)
    assert numbers["ptq_percent"] == percent("mse")
    # A learned scale is stored as its logarithm: its last digit may differ, and with it one weight's code.
    assert numbers["qat_percent"] == pytest.approx(percent(method), abs=0.11 if learned else 0)
    assert (numbers["step"], numbers["changed_percent"], "loss" in numbers) == (0, 0, False)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", ["min_max", "mse"])
def test_a_training_starts_from_what_prepare_qat_makes(learned, method):
    weights = QuantConfig(bits=3, symmetric=True, granularity=PerAxis(0), method=method)
    model = qlearn.nn.load_trained("mlp")
    direct = qlearn.nn.prepare_qat(model, weights, QuantConfig(), learned_step_size=learned)
    data = datasets.mnist_arrays()
    qlearn.nn.calibrate(direct, qlearn.nn.to_inputs(data.calibration.images), progress=False)
    images = qlearn.nn.to_inputs(data.validation.images[:100])
    made = qat_runs.Network().prepared(3, learned, method)
    with torch.no_grad():
        assert torch.equal(made(images), direct(images))
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in direct.named_parameters()]
    explorer = explore_qat(bits=3, learned=learned, method=method)
    assert all(isinstance(layer.weights, QuantConfig) and layer.weights == weights for layer in layers_of(explorer))


def layers_of(explorer):
    return prepared_layers(explorer.model)


@pytest.mark.parametrize(("learned", "method"), [(True, "min_max"), (True, "mse"), (False, "min_max"), (False, "mse")])
def test_weights_and_ticks_are_those_of_the_network_in_training(learned, method):
    explorer = explore_qat(learned=learned, method=method, layer=2, channel=7)
    start, at_first = explorer.numbers["scale"], explorer.result["histogram"]
    assert explorer.numbers["start_scale"] == start
    np.testing.assert_array_equal(explorer.result["ticks"], explorer.result["start_ticks"])
    explorer.train()
    layer = layers_of(explorer)[1]
    rows = layer.rows.detach()
    scale = layer.find_weight_qparams().scale.reshape(-1)[6].item()
    assert explorer.numbers["scale"] == scale != start == explorer.numbers["start_scale"]
    if not learned:
        found = QuantConfig(bits=2, symmetric=True, granularity=PerAxis(0), method=method).find_qparams(rows)
        assert found.scale.reshape(-1)[6].item() == scale, "the scale is not that of the weights shown"
    largest = abs(datasets.trained("mlp")["linear2.weight"][6]).max()
    np.testing.assert_allclose(explorer.result["ticks"] * largest, [-scale, 0, scale], rtol=1e-6)
    np.testing.assert_array_equal(explorer.result["histogram"], np.histogram(rows[6].numpy() / largest, qat.BINS)[0])
    assert explorer.result["histogram"].sum() == 100 and (explorer.result["histogram"] != at_first).any()


def test_another_layer_has_other_channels(explorer):
    explorer.set(channel=100)
    explorer.set(layer=3)
    assert explorer._inputs["channel"].max == explorer.values["channel"] == 10
    with pytest.raises(ValueError, match="channel=11 must be a whole number from 1 to 10"):
        explorer.set(channel=11)


def test_settings_that_nobody_trains_leave_nothing_behind(explorer):
    """A network for each of them would fill the memory."""
    for change in ({"bits": 5}, {"rate": 0.001}, {"learned": False}, {"method": "min_max"}, {"x": 1.0}, {"layer": 2}):
        explorer.set(**change)
    assert not explorer._runs


def test_ranges_are_searched_once(monkeypatch):
    searches = []
    ordinary = QuantConfig.find_qparams
    counted = lambda self, x, *rest: (searches.append((self.bits, self.method)), ordinary(self, x, *rest))[1]  # noqa: E731
    monkeypatch.setattr(QuantConfig, "find_qparams", counted)
    explorer = explore_qat(bits=3)
    explorer.set(learned=False)
    explorer.set(bits=4)
    explorer.set(rate=0.001)
    assert sorted(search for search in searches if search[1] == "mse") == [(3, "mse")] * 3 + [(4, "mse")] * 3


def test_training_moves_the_numbers_and_the_curve(explorer):
    before = picture(explorer)
    explorer.train()
    points = explorer.result["points"]
    assert points[:, 0].tolist() == list(range(0, 21, 2))
    assert np.isfinite(points[1:]).all()
    assert explorer.numbers["step"] == 20 and explorer.numbers["changed_percent"] > 1
    assert (
        explorer.numbers["qat_percent"]
        == points[-1, 1]
        == 100 * qlearn.nn.accuracy(explorer.model, *(part[:1000] for part in datasets.mnist_arrays().validation))
    )
    assert (picture(explorer) != before).any()
    assert "step 20 of 430" in str(explorer)


def test_a_training_is_repeatable_and_belongs_to_its_settings(explorer):
    explorer.train()
    first = explorer.result["points"]
    explorer.set(rate=0.001)
    assert explorer.numbers["step"] == 0 and len(explorer.result["others"]) == 1
    explorer.set(rate=0.004)
    np.testing.assert_array_equal(explorer.result["points"], first)
    explorer.train()  # from the start again
    np.testing.assert_array_equal(explorer.result["points"], first)
    explorer.set(bits=3)
    assert explorer.result["others"] == []  # other bits, another start


def test_a_setting_that_was_left_untrained_can_be_trained_later(explorer):
    explorer.set(rate=0.001)
    explorer.set(rate=0.004)
    explorer.train()
    assert explorer.numbers["step"] == 20


def test_many_settings_show_the_latest_others(explorer):
    for rate in qat.RATES:  # one more than fit
        explorer.set(rate=rate)
        explorer.train()
    explorer.set(learned=False)
    assert len(explorer.result["others"]) == qat.EARLIER
    assert explorer._message.value == ""


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_staircase_and_its_surrogate(bits):
    """In closed form: 1 up to half a step beyond the last tick, or for a learned scale up to the last tick."""
    last = 2 ** (bits - 1) - 1
    x = np.linspace(-2, 2, 997)
    codes = np.clip(np.rint(x * last), -last, last)
    for learned, reach in ((False, 1 + 0.5 / last), (True, 1)):
        x_hat, of_x, of_scale = qat_runs.staircase(x, bits, learned)
        assert np.allclose(x_hat, codes / last, atol=1e-12)
        assert np.array_equal(of_x, abs(x) <= reach)
        if learned:
            expected = np.where(abs(x) <= 1, codes - x * last, codes) / last
            assert np.allclose(of_scale, expected, atol=1e-12)
        else:
            assert np.isnan(of_scale).all()


def test_one_value_step_by_step(explorer):
    explorer.set(bits=3, x=0.4)
    assert explorer.explain(explorer.result) == [
        "x = 0.4, scale = 1/3",
        "x / scale = 1.2",
        "code 1",
        "x̂ = 0.333",
        "slope of the staircase: 0; training takes ∂x̂/∂x = 1",
        "∂x̂/∂scale = −0.2",
    ]
    explorer.set(x=-1.9, learned=False)
    assert explorer.explain(explorer.result)[2:] == [
        "code −3",
        "x̂ = −1",
        "slope of the staircase: 0; training takes ∂x̂/∂x = 0",
    ]


def test_every_control_changes_the_picture_and_reset_changes_it_back(explorer):
    before = explorer._picture.value
    for change in (
        *({"bits": 4}, {"rate": 0.032}, {"learned": False}, {"method": "min_max"}),
        *({"x": -0.3}, {"layer": 2}, {"channel": 2}),
    ):
        explorer.train()  # so that another learning rate has another curve
        shown = picture(explorer)
        explorer.set(**change)
        assert (picture(explorer) != shown).any(), change
        assert explorer._message.value == ""
        explorer._runs.clear()
        explorer._button.click()
        assert explorer._picture.value == before


def test_both_ends_of_every_control(explorer):
    for name, control in explorer.controls.items():
        ends = list(control.options.values()) if hasattr(control, "options") else [control.lo, control.hi]
        for end in ends:
            explorer._inputs[name].value = end
            assert explorer._message.value == "" and explorer.values[name] == end
            assert "nan" not in explorer._table.value and "not a number" not in explorer._table.value
        explorer.reset()


def test_blitted_picture_is_the_drawn_one(explorer):
    explorer.train()
    explorer.set(rate=0.001)
    explorer.train()
    blitted = picture(explorer)
    explorer._canvas.draw()
    drawn = np.asarray(explorer._canvas.buffer_rgba())[..., :3]
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.004


def test_bundle_for_every_reader(explorer):
    explorer.train()
    data, metadata = explorer._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert still.size[0] == 2 * metadata["image/png"]["width"] == 1600
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(explorer)
    assert str(explorer).startswith(
        "Quantization-aware training (weight bits 2, learning rate 0.004, gradient learned scale (LSQ), start range MSE, "
        "one value 0.6, layer 1, channel 1): "
        "float 98 %, PTQ 94.5 %, QAT "
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits=1 must be a whole number from 2 to 8"),
        ({"rate": 0.003}, "rate=0.003 must be one of 0.0005"),
        ({"learned": 1}, "learned=1 must be one of False"),
        ({"method": "entropy"}, "method='entropy' must be one of 'min_max'"),
        ({"channel": 101}, "channel=101 must be a whole number from 1 to 100"),
        ({"x": 3.0}, "x=3.0 must be a number from -2 to 2"),
    ],
)
def test_set_says_what_is_allowed(explorer, change, message):
    before = explorer.values
    with pytest.raises(ValueError, match=message):
        explorer.set(**change)
    assert explorer.values == before


def test_a_network_of_one_s_own_is_not_changed():
    own = qlearn.nn.mlp(seed=5)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    explorer = explore_qat(own)
    assert explorer.numbers["float_percent"] < 40  # it has learnt nothing
    explorer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())


def test_explorers_of_other_lessons_need_no_torch():
    code = "import sys, qlearn.widgets; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- in the background -----------------------------------------------------------------------------------------------


def test_the_background_gives_what_train_gives(explorer, monkeypatch):
    explorer.train()
    expected = explorer.result["points"]
    threads = torch.get_num_threads()
    gate = Gate(monkeypatch)
    explorer._buttons["start"].click()
    assert explorer.running
    gate.pass_(1000)
    at_the_end(explorer)
    np.testing.assert_array_equal(explorer.result["points"], expected)
    assert torch.get_num_threads() == threads
    assert not explorer.model.training


def test_buttons_say_what_can_be_done(explorer, monkeypatch):
    def state():
        return [explorer._buttons[name].disabled for name in ("start", "stop")]

    assert state() == [False, True]
    gate = Gate(monkeypatch)
    explorer.start()
    assert state() == [True, False]
    gate.pass_(1000)
    at_the_end(explorer)
    assert state() == [False, True]
    assert [button.description for button in (*explorer._buttons.values(), explorer._button)] == [
        *("Train", "Stop", "Reset settings"),
    ]


class Gate:
    """Training steps that wait to be let through, so that a test can look at what happens in between."""

    def __init__(self, monkeypatch):
        self._ordinary, self._open = qat_runs.training_steps, threading.Semaphore(0)
        monkeypatch.setattr(qat_runs, "training_steps", self._steps)

    def _steps(self, *args, **kwargs):
        for loss in self._ordinary(*args, **kwargs):
            assert self._open.acquire(timeout=PATIENCE)
            yield loss

    def pass_(self, steps):
        self._open.release(steps)


def endless(*args, **kwargs):
    """Training steps that only `stop` ends."""
    while True:
        yield 0.1


def test_the_curve_grows_while_the_kernel_does_other_things(explorer, monkeypatch):
    gate = Gate(monkeypatch)
    explorer.start()
    for step in (2, 4, 6):
        gate.pass_(2)
        at_step(explorer, step)
        assert explorer.running
        assert DRAWING.acquire(timeout=PATIENCE), "the training holds the drawing lock"
        DRAWING.release()
        shown = picture(explorer)
        explorer.set(x=step / 10)  # a control that has nothing to do with the training
        assert (picture(explorer) != shown).any() and explorer.running
    explorer.start()  # it is being done already
    assert explorer.numbers["step"] == 6
    gate.pass_(1000)
    at_the_end(explorer)
    assert explorer.numbers["step"] == 20


def test_stop_leaves_a_usable_network(explorer, monkeypatch):
    gate = Gate(monkeypatch)
    explorer.start()
    gate.pass_(3)
    at_step(explorer, 2)
    explorer._run.stop(wait=False)
    gate.pass_(1)
    explorer.stop()
    assert not explorer.running and not explorer.model.training
    assert explorer.numbers["step"] in (3, 4)  # the step in progress, too
    digits = [part[:1000] for part in datasets.mnist_arrays().validation]
    integer = qlearn.nn.convert(explorer.model)
    assert 100 * qlearn.nn.accuracy(integer, *digits) == explorer.numbers["qat_percent"]
    explorer.stop()  # once more does nothing
    gate.pass_(1000)
    explorer.start()  # from the start
    at_the_end(explorer)
    assert explorer.numbers["step"] == 20


def test_another_setting_ends_the_training_and_keeps_its_curve(explorer, monkeypatch):
    gate = Gate(monkeypatch)
    explorer.start()
    gate.pass_(4)
    at_step(explorer, 4)
    old = explorer._run
    explorer.set(rate=0.001)
    gate.pass_(1)
    wait_for("the training ends", lambda: not old._thread.is_alive())
    assert explorer.numbers["step"] == 0 and not explorer.running
    explorer.set(rate=0.004)
    assert explorer.numbers["step"] == 5


def test_two_explorers_do_not_disturb_each_other():
    expected = []
    for options in ({"bits": 2}, {"bits": 3, "learned": False}):
        alone = explore_qat(**options)
        alone.train()
        expected.append(alone.result["points"])
    pair = explore_qat(bits=2), explore_qat(bits=3, learned=False)
    for explorer in pair:
        explorer.start()
    for explorer, points in zip(pair, expected, strict=True):
        at_the_end(explorer)
        np.testing.assert_array_equal(explorer.result["points"], points)
        np.testing.assert_array_equal(picture(explorer)[:5], picture(alone)[:5])


def test_an_error_in_training_becomes_a_line_and_another_setting_works(explorer, monkeypatch):
    def fails(*args, **kwargs):
        yield 0.1
        raise ValueError("layer 'linear1': weights are <not> finite")

    with monkeypatch.context() as patch:
        patch.setattr(qat_runs, "training_steps", fails)
        explorer.start()
        at_the_end(explorer)
    assert "weights are &lt;not&gt; finite" in explorer._message.value
    assert not explorer.running and not explorer._buttons["start"].disabled
    explorer.set(rate=0.002)
    assert explorer._message.value == ""
    explorer.train()
    assert explorer.numbers["step"] == 20


def test_an_interrupt_of_train_leaves_it_usable(explorer, monkeypatch):
    ordinary = torch.nn.functional.cross_entropy
    steps = iter(range(5))

    def interrupted(*args, **kwargs):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return ordinary(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explorer.train()
    assert not explorer.model.training
    explorer.train()
    assert explorer.numbers["step"] == 20


def test_closing_ends_the_training(monkeypatch):
    gate = Gate(monkeypatch)
    explorer = explore_qat()
    explorer.start()
    gate.pass_(2)
    at_step(explorer, 2)
    thread = explorer._run._thread
    explorer._run.stop(wait=False)
    gate.pass_(1)
    explorer.close()
    assert not thread.is_alive()


def test_running_a_cell_again_ends_its_training(monkeypatch):
    monkeypatch.setattr(qat, "_this_cell", lambda: "the same cell")
    first = explore_qat()
    with monkeypatch.context() as patch:
        patch.setattr(qat_runs, "training_steps", endless)
        first.start()
        explore_qat()
        assert not first.running and not first._run._thread.is_alive()
    monkeypatch.setattr(qat, "_this_cell", lambda: "another cell")
    gate = Gate(monkeypatch)
    other = explore_qat()
    other.start()
    monkeypatch.setattr(qat, "_this_cell", lambda: "a third one")
    explore_qat()
    assert other.running
    gate.pass_(1000)
    at_the_end(other)


def test_a_control_that_moves_while_a_training_begins(explorer, monkeypatch):
    """Its message arrives on another thread, at any time: the training is that of the settings read at first."""
    explorer.train()
    before, key, other = explorer._run, explorer._key, qat_runs.Setting(3, 0.001, False, "mse")
    keys = iter([key])
    with monkeypatch.context() as patch:
        patch.setattr(type(explorer), "_key", property(lambda self: next(keys, other)))
        explorer.train()
    begun = [run for run in explorer._runs.values() if run.begun]
    assert begun == [explorer._runs[key]] and begun != [before]


class Lock:
    """The drawing lock, and the threads that have asked for it."""

    def __init__(self, monkeypatch):
        self.asked = []
        monkeypatch.setattr(qat, "DRAWING", self)

    def __enter__(self):
        self.asked.append(threading.current_thread())
        return DRAWING.__enter__()

    def __exit__(self, *error):
        DRAWING.__exit__(*error)


def in_a_thread(function):
    """Call it in a thread of its own, and wait for the end; return what it returns or raises."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function)
        return future.exception() or future.result()


def test_trainings_are_made_with_the_drawing_lock_in_hand(explorer, monkeypatch):
    """Or a cell and a control would both make one of the same settings, and a picture find the list changing."""

    def lock_is_free():
        free = DRAWING.acquire(blocking=False)
        if free:
            DRAWING.release()
        return free

    free, ordinary = [], qat_runs.Run
    monkeypatch.setattr(qat_runs, "Run", lambda *args: (free.append(in_a_thread(lock_is_free)), ordinary(*args))[1])
    explorer._runs.clear()
    assert explorer.model is not None
    explorer.train()
    explorer.train()
    assert free == [False, False]


def test_trainings_may_come_while_somebody_asks_whether_one_runs(explorer):
    """The list of trainings grows on another thread, in the middle of a look through it."""

    class Adds:
        @property
        def running(self):
            explorer._runs[len(explorer._runs)] = self
            return False

    runs = dict(explorer._runs)
    explorer._runs["adds"] = Adds()
    assert not explorer.running
    explorer._runs = runs


def test_stop_waits_until_a_training_has_wholly_begun(explorer, monkeypatch):
    """A thread that has not been started cannot be waited for."""
    monkeypatch.setattr(qat_runs, "training_steps", endless)
    lock, ordinary, others = Lock(monkeypatch), threading.Thread.start, []

    def start(thread):
        if thread.name == "qlearn explorer":
            others.append(pool.submit(explorer.stop))
            wait_for("the lock is asked for", lambda: others[0].done() or len(set(lock.asked)) == 2)
        ordinary(thread)

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(threading.Thread, "start", start)
        explorer.start()
    assert others[0].exception() is None
    assert not explorer.running and not explorer._run._thread.is_alive()


def test_whoever_leaves_python_waits_for_the_last_picture(explorer, monkeypatch):
    running = []
    ordinary = explorer.refresh
    monkeypatch.setattr(explorer, "refresh", lambda: (running.append(explorer._run in jobs.running), ordinary()))
    explorer.start()
    at_the_end(explorer)
    assert running and all(running)
    assert explorer._run not in jobs.running


def test_a_cell_has_an_id_only_in_a_notebook():
    assert qat._this_cell() is None


def test_leaving_python_ends_a_training_in_good_order():
    code = """
import time
from qlearn.widgets import explore_qat
explorer = explore_qat()
explorer.start()
while explorer.numbers["step"] == 0:
    time.sleep(0.01)
print("bye")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "bye\n", "")
