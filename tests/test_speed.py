"""Engines give what the network gives; latencies are taken in turn; a machine's numbers and the roofline's formula.

How long something takes is for `make bench`. Here only what must hold on every machine, however busy, is asked.
"""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime  # noqa: F401, an engine
import onnxscript  # noqa: F401, writes what it reads
import pytest
import torch
from torch import nn

import qlearn
from qlearn import PerAxis, QuantConfig, plots
from qlearn.datasets import mnist_arrays
from qlearn.nn import (
    ENGINES,
    Latency,
    Machine,
    Work,
    engine,
    engines,
    latencies,
    latency,
    layer_work,
    machine,
    processor,
    roofline,
    speed,
)

FOUR = QuantConfig(4, symmetric=True, granularity=PerAxis(0))
ON_CODES = ("fake quantized", "integers by hand", "ONNX Runtime int8")
WITHOUT_TORCHAO = [name for name in ENGINES if name != "torchao int8"]


@pytest.fixture(scope="module")
def digits():
    return qlearn.nn.to_inputs(mnist_arrays().validation.images[:500])


def network(name):
    model = qlearn.nn.load_trained(name)
    return qlearn.nn.fold_batch_norm(model) if name == "cnn" else model


def calibrated(model, x, **kwargs):
    return qlearn.nn.calibrate(qlearn.nn.prepare(model, **kwargs), [x], progress=False)


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_engines_agree(name, digits, capsys):
    """In float to float32 rounding; on codes too, but that an activation at a near tie may get the next code."""
    model = network(name)
    prepared = calibrated(model, digits)
    made = {engine_name: engine(engine_name, prepared, digits) for engine_name in WITHOUT_TORCHAO}
    logits = {engine_name: run(digits) for engine_name, run in made.items()}
    with torch.no_grad():
        wanted = model(digits)
        by_hand = qlearn.nn.convert(prepared)(digits)
    assert all(out.shape == wanted.shape and not out.requires_grad for out in logits.values())
    assert torch.equal(logits["float"], wanted) and torch.equal(logits["integers by hand"], by_hand)
    torch.testing.assert_close(logits["ONNX Runtime"], wanted, rtol=1e-4, atol=1e-4)
    # One step of the last layer's input times its largest weight moves a logit by less than 0.1; most do not move.
    for engine_name in ("fake quantized", "ONNX Runtime int8"):
        off = (logits[engine_name] - by_hand).abs()
        moved = (off > 1e-3 * by_hand.abs().max()).float().mean()
        assert moved < 0.02 and off.max() < 0.5, engine_name
    same = {
        engine_name: float((out.argmax(1) == by_hand.argmax(1)).float().mean()) for engine_name, out in logits.items()
    }
    assert min(same[engine_name] for engine_name in ON_CODES) >= 0.998 and min(same.values()) >= 0.99
    with capsys.disabled():
        print(f"\n{name}: the same digit as by hand: " + ", ".join(f"{n} {100 * s:.1f} %" for n, s in same.items()))


def test_torchao_agrees(digits):
    pytest.importorskip("torchao")
    model = network("mlp")
    theirs = engine("torchao int8", model, digits)
    wanted = engine("float", model, digits)(digits)
    assert (theirs(digits).argmax(1) == wanted.argmax(1)).float().mean() >= 0.99
    assert 89_000 < theirs.bytes < 95_000  # 89,400 codes, and scales and biases
    assert type(model.linear1.weight) is nn.Parameter  # it works on a copy


def test_bytes_are_those_of_files_and_summaries(digits, tmp_path):
    model = network("mlp")
    prepared = calibrated(model, digits)
    converted = qlearn.nn.convert(prepared)
    made = {name: engine(name, prepared, digits).bytes for name in WITHOUT_TORCHAO}
    assert made["float"] == made["fake quantized"] == qlearn.nn.summary(model).bytes
    assert made["integers by hand"] == qlearn.nn.summary(converted).bytes
    assert made["ONNX Runtime"] == qlearn.nn.export_onnx(model, tmp_path / "float.onnx", (1, 28, 28))
    assert made["ONNX Runtime int8"] == qlearn.nn.export_onnx(converted, tmp_path / "int8.onnx", (1, 28, 28))


def test_four_bits_and_weights_alone(digits):
    model = network("mlp")
    for activations in (QuantConfig(), None):
        by_hand = engine("integers by hand", model, digits, weights=FOUR, activations=activations)
        onnx = engine("ONNX Runtime int8", model, digits, weights=FOUR, activations=activations)
        assert onnx.bytes < 0.6 * engine("ONNX Runtime int8", model, digits).bytes
        assert (by_hand(digits).argmax(1) == onnx(digits).argmax(1)).float().mean() >= 0.99


def test_other_batches_have_other_sizes(digits):
    run = engine("ONNX Runtime int8", network("mlp"), digits)
    assert [len(run(digits[:n])) for n in (1, 7, 500)] == [1, 7, 500]
    torch.testing.assert_close(run(digits[:7]), run(digits)[:7], rtol=1e-5, atol=1e-5)


def test_a_model_is_not_changed_and_a_converted_one_will_do(digits):
    model = network("mlp").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in WITHOUT_TORCHAO:
        engine(name, model, digits)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    converted = qlearn.nn.convert(calibrated(network("mlp"), digits))
    assert torch.equal(engine("integers by hand", converted, digits)(digits), converted(digits))
    with pytest.raises(ValueError, match="'float' needs float numbers, which a converted network does not have"):
        engine("float", converted, digits)


def test_what_an_engine_refuses(digits, monkeypatch):
    model = network("mlp")
    with pytest.raises(ValueError, match="name='tensorrt' is no engine: those are 'float', "):
        engine("tensorrt", model, digits)
    with pytest.raises(TypeError, match="model is the class Linear"):
        engine("float", nn.Linear, digits)
    for name in ("fake quantized", "integers by hand"):
        with pytest.raises(RuntimeError, match=r"call nn\.calibrate"):
            engine(name, qlearn.nn.prepare(model), digits)
    rounded = qlearn.nn.gptq(calibrated(model, digits), [digits], progress=False)
    with pytest.raises(ValueError, match=r"was rounded by nn\.gptq already"):
        engine("fake quantized", rounded, digits)
    for package, name in (("onnxruntime", "ONNX Runtime"), ("torchao", "torchao int8")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=f"{name!r} needs .*: pip install {package}"):
                engine(name, model, digits)


def test_a_torchao_that_does_not_fit_is_named(digits, monkeypatch):
    """The newest one, beside a PyTorch that is older than it knows, fails on import with an AttributeError."""

    def fails():
        raise AttributeError("module 'torch' has no attribute 'new'")

    monkeypatch.setattr(engines, "_torchao", fails)
    with pytest.raises(ImportError, match="needs a torchao that fits this PyTorch .*has no attribute 'new'"):
        engine("torchao int8", network("mlp"), digits)


@pytest.mark.parametrize(
    ("found", "entered"),
    [
        (("AVX2",), True),
        (("unknown",), True),
        (("AVX2", "AVX-512 VNNI"), False),
        (("AMX int8",), False),
        (("NEON dotprod",), False),
    ],
)
def test_exact_products_are_asked_for_where_the_quick_ones_saturate(monkeypatch, found, entered):
    """With the option ONNX Runtime leaves the instructions of AMX aside: twenty times as long, and no digit better."""
    entries = {}
    options = SimpleNamespace(add_session_config_entry=entries.__setitem__)
    fake = SimpleNamespace(SessionOptions=lambda: options, InferenceSession=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(engines, "instructions", lambda: found)
    engines.session_of(b"")
    assert ("session.x64quantprecision" in entries) == entered and options.intra_op_num_threads == 1


# --- latency ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to, for `latencies`."""
    now = [0.0]
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def taking(*seconds):
        later = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def call(*_):
            now[0] += next(later)

        return call

    return taking


def test_calls_are_measured_in_turn_without_the_warmup():
    order = []
    calls = {"a": lambda x: order.append("a" * x), "b": lambda x: order.append("b" * x)}
    found = latencies(calls, 2, seconds=1e-9, warmup=3, progress=False)
    assert order == ["aa"] * 3 + ["bb"] * 3 + ["aa", "bb"] * 5
    assert list(found) == ["a", "b"] and found["a"].runs == found["b"].runs == 5


def test_median_and_percentile_are_those_of_the_runs(clock):
    call = clock(9, 9, *[0.25] * 19, 4.0)  # two to warm up, twenty that count
    found = latency(call, seconds=0.25 * 19 + 4, warmup=2)
    assert found == Latency(0.25, pytest.approx(0.25 + 0.05 * 3.75), 20)


def test_each_gets_its_seconds_and_all_the_same_runs(clock):
    found = latencies({"quick": clock(0.5), "slow": clock(1.5)}, seconds=10, progress=False)
    assert found == {"quick": Latency(0.5, 0.5, 10), "slow": Latency(1.5, 1.5, 10)}  # 20 seconds in all


def test_there_are_five_runs_at_least(clock):
    assert latency(clock(100.0), seconds=1).runs == 5


def test_it_says_what_it_found():
    assert str(Latency(0.012, 0.0345, 1234)) == "12 ms (95 % within 34.5 ms, 1,234 runs)"


def test_one_thread_without_gradients_and_afterwards_as_before():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        latency(lambda: seen.append((torch.get_num_threads(), torch.is_grad_enabled())), seconds=1e-9)
        assert set(seen) == {(1, False)} and torch.get_num_threads() == 2 and torch.is_grad_enabled()
        with pytest.raises(ZeroDivisionError):
            latency(lambda: 1 / 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("calls", "options", "message"),
    [
        ({}, {}, "there is nothing to measure"),
        ({"a": int}, {"seconds": 0}, "seconds=0 must be above 0"),
        ({"a": int}, {"seconds": float("nan")}, "seconds=nan must be above 0"),
        ({"a": int}, {"warmup": -1}, "warmup=-1 must be 0 or more"),
    ],
)
def test_what_cannot_be_measured(calls, options, message):
    with pytest.raises(ValueError, match=message):
        latencies(calls, progress=False, **options)


def test_ten_times_the_work_takes_longer():
    """Direction only: a product of a hundredfold operations against a small one."""
    small, large = torch.rand(32, 32), torch.rand(512, 512)
    found = latencies({"small": lambda: small @ small, "large": lambda: large @ large}, seconds=0.05, progress=False)
    assert found["large"].median > found["small"].median


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("STREAM", 1 << 16), ("MATRIX", 64), ("TRIED", 0.001)):
        monkeypatch.setattr(machine, name, value)


def test_a_machine_has_positive_numbers(quick):
    found = qlearn.nn.measure_machine()
    assert min(found.bytes_per_second, found.float_operations_per_second, found.int8_operations_per_second) > 1e6
    assert found.balance == found.float_operations_per_second / found.bytes_per_second
    assert found.instructions == processor.instructions() and all(isinstance(name, str) for name in found.instructions)


def test_numbers_are_bytes_and_operations_by_the_shortest_time(quick, monkeypatch):
    monkeypatch.setattr(machine, "_best", lambda call: 0.5)
    found = qlearn.nn.measure_machine()
    assert found.bytes_per_second == 2 * 4 * (1 << 16)
    assert found.float_operations_per_second == found.int8_operations_per_second == 2 * 2 * 64**3


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_onnx_runtime_int8_is_not_known(quick, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    found = qlearn.nn.measure_machine()
    assert found.int8_operations_per_second is None and "no ONNX Runtime" in str(found)
    with pytest.raises(ValueError, match="int8 products were not measured"):
        roofline(found, 1, 1, int8=True)


def test_the_int8_product_is_one_of_int8(quick):
    multiply = machine._int8_product(16)
    (found,) = multiply()
    codes = np.random.default_rng(0).integers(-127, 128, (16, 16), dtype=np.int8)
    np.testing.assert_array_equal(found, codes.astype(np.uint8).astype(int) @ codes)


@pytest.mark.parametrize(
    ("operations", "moved", "int8", "seconds"),
    [
        (1e9, 0, False, 0.01),
        (1e9, 1e9, False, 0.1),
        (1e9, 1e8, False, 0.01),
        (1e9, 1e7, True, 0.0025),
        (0, 1, True, 1e-10),
    ],
)
def test_the_roofline_is_the_larger_of_two_times(operations, moved, int8, seconds):
    found = Machine(10e9, 100e9, 400e9, ("unknown",))
    assert roofline(found, operations, moved, int8=int8) == pytest.approx(seconds, rel=1e-12)


CPUINFO = "processor\t: 0\nmodel name\t: avx2 in a name\n{}\t: fpu {} sse\n"


@pytest.mark.parametrize(
    ("name", "flags", "found"),
    [
        ("flags", "avx2 avx512f avx512_vnni amx_int8", ("AVX2", "AVX-512", "AVX-512 VNNI", "AMX int8")),
        ("flags", "avx2", ("AVX2",)),
        ("Features", "fp asimddp i8mm", ("NEON dotprod", "NEON i8mm")),
    ],
)
def test_linux_lists_instructions(monkeypatch, tmp_path, name, flags, found):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(name, flags))
    assert processor.instructions() == found


@pytest.mark.parametrize(
    ("system", "kind", "capability", "found"),
    [
        ("Darwin", "arm64", "DEFAULT", ("NEON dotprod",)),
        ("Windows", "AMD64", "AVX2", ("AVX2",)),
        ("Windows", "AMD64", "AVX512", ("AVX-512",)),
        ("Windows", "AMD64", "DEFAULT", ("unknown",)),
    ],
)
def test_elsewhere_pytorch_is_asked(monkeypatch, tmp_path, system, kind, capability, found):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(processor.platform, "system", lambda: system)
    monkeypatch.setattr(processor.platform, "machine", lambda: kind)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert processor.instructions() == found


# --- what a network asks for ------------------------------------------------------------------------------------------


def by_counting(layer, x, columns):
    """2 · products, one by one: how often each weight is multiplied."""
    return 2 * layer.weight.numel() * columns * len(x)


@pytest.mark.parametrize(
    ("layer", "shape", "places"),
    [
        (nn.Linear(20, 30), (20,), 1),
        (nn.Linear(20, 30), (7, 20), 7),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 120),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), (4, 11, 11), 25),
        (nn.Conv1d(3, 5, 2), (3, 9), 8),
        (nn.ConvTranspose2d(3, 8, 3, stride=2), (3, 10, 12), 120),
    ],
    ids=str,
)
def test_operations_are_counted_and_bytes_are_those_of_all_tensors(layer, shape, places):
    x = torch.zeros(6, *shape)
    (work,) = layer_work(nn.Sequential(layer), x).values()
    assert work.operations == by_counting(layer, x, places)
    assert work.bytes == 4 * (layer.weight.numel() + x.numel() + layer(x).numel())
    (codes,) = layer_work(nn.Sequential(layer), x, weight_bits=4, input_bits=8).values()
    assert codes == Work(work.operations, -(-layer.weight.numel() // 2) + x.numel() + 4 * layer(x).numel())


def test_layers_that_are_called_by_keyword_are_counted():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.up = nn.Linear(4, 4), nn.ConvTranspose2d(1, 1, 3, stride=2)

        def forward(self, x):
            return self.up(self.fc(input=x), output_size=(10, 10))

    found = layer_work(Named(), torch.zeros(1, 1, 4, 4))
    assert found["fc"] == Work(2 * 4 * 4 * 4, 4 * (16 + 16 + 16))
    assert found["up"] == Work(2 * 16 * 9, 4 * (9 + 16 + 100))


def test_layers_come_in_the_order_of_their_calls_and_twice_is_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(self.a(self.b(x)))

    model = Twice().train()
    found = layer_work(model, torch.zeros(2, 4))
    assert list(found) == ["b", "a"] and found["a"] == Work(2 * found["b"].operations, 2 * found["b"].bytes)
    assert model.training and not model.a._forward_hooks
    with pytest.raises(ValueError, match="has called no Linear"):
        layer_work(nn.Sequential(nn.ReLU()), torch.zeros(2, 4))


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture_has_the_roofs_and_the_points():
    shown = plots.roofline(
        10e9, {"float32": 100e9, "int8": 400e9}, {f"layer {k}": (k + 1, 1e9 * (k + 1)) for k in range(6)}
    )
    (axes,) = shown.figure.axes
    roofs, points = axes.lines[:2], axes.lines[2:]
    for line, peak in zip(roofs, (100e9, 400e9), strict=True):
        x, y = np.asarray(line.get_data())
        np.testing.assert_allclose(y, np.minimum(peak, 10e9 * x))
    assert [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points] == [
        (k + 1, 1e9 * (k + 1)) for k in range(6)
    ]
    looks = {(p.get_color(), p.get_marker()) for p in points}
    assert len(looks) == 6 and "layer 5: 6 operations a byte, 6 billion a second." in shown.alt
    assert "float32: 100 billion operations a second, from 10 operations a byte on." in shown.alt
    assert plots.roofline(10e9, {"float32": 1e11}).figure.axes[0].get_legend() is None


def test_the_work_of_a_network_with_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(4, 2)

        def forward(self, left, right):
            return self.encoder(left) - self.encoder(right)

    x = torch.zeros(3, 4)
    once = layer_work(nn.ModuleDict({"encoder": nn.Linear(4, 2)}), x, forward=lambda model, x: model["encoder"](x))
    twice = layer_work(Two(), {"left": x, "right": x})
    assert twice == layer_work(Two(), (x, x), forward=lambda model, batch: model(*batch))
    assert twice["encoder"].operations == 2 * once["encoder"].operations
    with pytest.raises(ValueError, match=r"say how the network takes it: forward=lambda"):
        layer_work(Two(), (x, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_float_types_run_in_onnx_runtime(dtype):
    model, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).to(dtype), torch.rand(20, 8, dtype=dtype)
    for name in ("ONNX Runtime", "ONNX Runtime int8"):
        y = engine(name, model, x)(x)
        assert y.dtype == torch.float32 and (y - model(x)).abs().max() < 0.03
