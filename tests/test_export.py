"""Exported networks run in ONNX Runtime, on all 10,000 test digits: the same predictions, and the codes compared.

ONNX Runtime does here what the file says: products of dequantized numbers in float32. Its rewriting of the pattern
into integer products is another test: with int8 weights these saturate in pairs of int16 on processors without VNNI
unless the session is told not to.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401, the package needs it to write files
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import qlearn
from qlearn import PerAxis, PerGroup, QuantConfig, dequantize, quantize
from qlearn.datasets import mnist_arrays
from qlearn.nn.integer_layers import StaticLayer
from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.training import to_inputs

PER_CHANNEL = QuantConfig(symmetric=True, granularity=PerAxis(0))
FOUR = QuantConfig(bits=4, symmetric=True, granularity=PerAxis(0))
DIGIT = (1, 28, 28)


@pytest.fixture(scope="module")
def digits():
    return mnist_arrays()


def convert(model, inputs, weights=PER_CHANNEL, activations=QuantConfig(), **kwargs):
    prepared = qlearn.nn.prepare(model, weights, activations, **kwargs)
    return qlearn.nn.convert(qlearn.nn.calibrate(prepared, inputs, progress=False))


def network(name, digits, weights=PER_CHANNEL, activations=QuantConfig(), **kwargs):
    model = qlearn.nn.load_trained(name.removeprefix("folded "))
    if name.startswith("folded"):
        model = qlearn.nn.fold_batch_norm(model)
    return convert(model, to_inputs(digits.calibration.images), weights, activations, **kwargs)


def session_of(path, *, extra=(), rewrite=False):
    """A session that also puts out the values called `extra`."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in extra)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if rewrite:
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def stretches(model):
    """A network cut in front of its quantized layers: each with what follows it, up to the next one."""
    modules = list(model)
    starts = [i for i, module in enumerate(modules) if isinstance(module, QuantizedLayer)]
    ends = [*starts[1:], len(modules)]
    return [nn.Sequential(*modules[start:end]) for start, end in zip(starts, ends, strict=True)]


def rounding_bound(stretch, x):
    """How far float32 sums of one layer can be from the exact ones, and what comes of it up to the next layer.

    n products: n roundings of partial sums, and one each of x̂, ŵ, the product and the result; 2⁻²⁴ of Σ |x̂ ŵ| + |b| a
    rounding, twice as much to be sure. ReLU and max pooling make no difference larger; batch norm multiplies it.
    """
    layer = stretch[0]
    weight = layer.dequantized_weight().abs()
    bias = None if layer.bias is None else layer.bias.abs()
    n = weight[0].numel() + 4
    bound = n * 2.0**-23 * layer.map(x.abs(), weight, bias)
    for module in stretch[1:]:
        if isinstance(module, nn.BatchNorm2d):
            gain = (module.weight / (module.running_var + module.eps).sqrt()).abs().reshape(-1, 1, 1)
            # The batch norm itself rounds its product and its sum.
            reach = (module.bias - module.running_mean * module.weight / module.running_var.sqrt()).abs()
            bound = bound * gain * 2 + 2.0**-21 * (reach.reshape(-1, 1, 1) + bound * gain / (n * 2.0**-23))
        elif isinstance(module, (nn.MaxPool2d, nn.Flatten)):
            bound = module(bound)
    return bound


@pytest.mark.parametrize(
    ("name", "weights"),
    [("mlp", PER_CHANNEL), ("mlp", FOUR), ("cnn", PER_CHANNEL), ("folded cnn", PER_CHANNEL)],
    ids=["mlp W8A8", "mlp W4A8", "cnn W8A8", "folded cnn W8A8"],
)
def test_all_test_digits_in_onnx_runtime(name, weights, digits, tmp_path, capsys):
    """The same predictions. Each layer gets ONNX Runtime's own codes: those of the next may differ next to ties only."""
    path = tmp_path / "model.onnx"
    model = network(name, digits, weights)
    qlearn.nn.export_onnx(model, path, DIGIT)
    names = [name for name, module in model.named_children() if isinstance(module, QuantizedLayer)]
    session = session_of(path, extra=[f"{name}.codes.output" for name in names])
    parts = stretches(model)
    different, total, predictions, largest = np.zeros(len(names), int), np.zeros(len(names), int), 0, 0.0
    inputs = to_inputs(digits.test.images)
    with torch.no_grad():
        for x in inputs.split(500):
            logits, *codes = (torch.from_numpy(array) for array in session.run(None, {"input": x.numpy()}))
            ours = model(x)
            predictions += int((ours.argmax(1) != logits.argmax(1)).sum())
            largest = max(largest, float((ours - logits).abs().max()))
            # The first layer's codes are those of the pixels: nothing was computed yet.
            assert torch.equal(codes[0], quantize(x.flatten(1) if name == "mlp" else x, parts[0][0].input_qparams))
            total[0] += codes[0].numel()
            for i in range(1, len(parts)):
                layer = parts[i][0]
                before = dequantize(codes[i - 1], parts[i - 1][0].input_qparams)
                value = parts[i - 1](before)
                difference = quantize(value, layer.input_qparams).int() - codes[i].int()
                assert difference.abs().max() <= 1
                wrong = difference != 0
                steps = value[wrong].double() / float(layer.input_scale)
                from_tie = (steps - steps.floor() - 0.5).abs()
                allowed = rounding_bound(parts[i - 1], before)[wrong].double() / float(layer.input_scale)
                assert (from_tie <= allowed).all()
                assert allowed.numel() == 0 or allowed.max() < 0.05, "the bound would explain anything"
                different[i] += int(wrong.sum())
                total[i] += wrong.numel()
    with capsys.disabled():
        counts = ", ".join(
            f"{d} of {n:,} codes of {m}'s input" for d, n, m in zip(different, total, names, strict=True)
        )
        print(f"\n  {name}, {weights.bits}-bit weights: {counts} differ, outputs by {largest:.2g} at most", end="")
    assert predictions == 0
    assert (different <= 1e-5 * total).all()  # measured: a handful in millions


@pytest.mark.parametrize(
    ("name", "weights", "activations", "overrides"),
    [
        ("mlp", QuantConfig(bits=3, symmetric=True), QuantConfig(bits=5), None),
        ("mlp", QuantConfig(bits=6), QuantConfig(symmetric=True), {"linear2": None}),
        ("mlp", QuantConfig(bits=4, granularity=PerGroup(2)), None, {"linear1": {"weights": FOUR}}),
        ("cnn", QuantConfig(granularity=PerAxis(0)), QuantConfig(bits=4, symmetric=True, narrow_range=False), None),
        (
            "folded cnn",
            QuantConfig(bits=2, symmetric=True, granularity=PerGroup(3), method="mse"),
            None,
            {"linear": None},
        ),
    ],
    ids=["3 and 5 bits", "asymmetric weights", "groups", "symmetric inputs", "groups of kernels"],
)
def test_other_codes_in_onnx_runtime(name, weights, activations, overrides, digits, tmp_path):
    model = network(name, digits, weights, activations, overrides=overrides)
    qlearn.nn.export_onnx(model, tmp_path / "model.onnx", DIGIT)
    x = to_inputs(digits.test.images[:500])
    logits = session_of(tmp_path / "model.onnx").run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        ours = model(x).numpy()
    # With few bits two logits can be equal to the last digit; then either may be called the largest.
    best, second = np.sort(ours, axis=1)[:, :-3:-1].T
    assert (best - second)[ours.argmax(1) != logits.argmax(1)].max(initial=0) < 1e-5
    # Float32 rounding, or where an activation lay at a tie one code of it: measured 2e-5 without ties.
    assert np.median(abs(ours - logits)) < 1e-4
    assert abs(ours - logits).max() < 0.05 * abs(logits).max()


@pytest.mark.parametrize("name", ["mlp", "folded cnn"])
def test_integer_products_of_onnx_runtime(name, digits, tmp_path):
    """Rewritten into integer products, with the setting that the docstring names."""
    model = network(name, digits)
    qlearn.nn.export_onnx(model, tmp_path / "model.onnx", DIGIT)
    x = to_inputs(digits.test.images)
    logits = session_of(tmp_path / "model.onnx", rewrite=True).run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        ours = torch.cat([model(part) for part in x.split(500)]).numpy()
    # Its own requantization rounds once more: a digit that hangs in the balance may flip. Measured: none.
    assert (ours.argmax(1) != logits.argmax(1)).sum() <= 2


def test_what_stands_in_the_file(digits, tmp_path):
    """Our codes, scales and zero points, bit for bit, in the types that the docstring promises."""
    model = network(
        "mlp", digits, FOUR, overrides={"linear2": {"weights": QuantConfig(bits=6, granularity=PerAxis(0))}}
    )
    size = qlearn.nn.export_onnx(model, tmp_path / "model.onnx", DIGIT)
    assert size == (tmp_path / "model.onnx").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    proto = onnx.load(tmp_path / "model.onnx")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in stored.items()}
    assert stored["linear1.weight"].data_type == TensorProto.INT4
    assert stored["linear2.weight"].data_type == TensorProto.UINT8
    for name in ("linear1", "linear2", "linear3"):
        layer = model.get_submodule(name)
        assert np.array_equal(arrays[f"{name}.weight"].astype(int), layer.weight_codes.numpy())
        assert np.array_equal(arrays[f"{name}.weight_scale"], layer.weight_scale.reshape(-1).numpy())
        assert np.array_equal(arrays[f"{name}.bias"], layer.bias_codes.numpy())
        assert arrays[f"{name}.bias"].dtype == np.int32
        assert arrays[f"{name}.input_scale"] == layer.input_scale.numpy()
        assert arrays[f"{name}.input_zero_point"] == layer.input_zero_point.numpy()
    zeros = arrays["linear2.weight_zero_point"].astype(int)
    assert np.array_equal(zeros, model.linear2.weight_zero_point.reshape(-1).numpy())
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("QuantizeLinear") == 3 and kinds.count("Gemm") == 3 and kinds.count("DequantizeLinear") == 9
    floats = {name: array.size for name, array in arrays.items() if array.dtype == np.float32}
    assert max(floats.values()) == 100, "weights were written as numbers, too"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=(2, 1), groups=2),
        nn.Conv2d(4, 2, (4, 3), padding="same"),
        nn.Conv2d(4, 2, 3, padding="valid", bias=False),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.BatchNorm2d(4, affine=False),
        nn.Sequential(nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Identity(), nn.Flatten(), nn.Linear(400, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("quantize_it", [True, False])
def test_geometry_in_onnx_runtime(layer, quantize_it, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 10, 10)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    if quantize_it and any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()):
        model = convert(model, x)
    qlearn.nn.export_onnx(model, tmp_path / "model.onnx", (4, 10, 10))
    with torch.no_grad():
        ours = model(x).numpy()
    theirs = session_of(tmp_path / "model.onnx").run(None, {"input": x.numpy()})[0]
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() <= 1e-5 * abs(ours).max()  # float32 sums of at most 400 products


def test_names_of_modules_may_be_anything(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in ("input", "output", "weight"):
        model.add_module(name, nn.Linear(3, 3))
    shared = nn.Linear(3, 3)
    model.extend([shared, shared])
    x = torch.rand(20, 3)
    converted = convert(model, x)
    qlearn.nn.export_onnx(converted, tmp_path / "model.onnx", (3,))
    theirs = session_of(tmp_path / "model.onnx").run(None, {"input": x.numpy()})[0]
    assert abs(converted(x).numpy() - theirs).max() < 1e-5


class Doubled(nn.Module):
    """Gives two tensors."""

    def forward(self, x):
        return x, x


class Branching(nn.Module):
    """Looks at its numbers, which nobody can record."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class OfTwo(nn.Module):
    """Takes two examples at once, and no more."""

    def forward(self, x):
        return x.reshape(2, 4)


@dataclass
class Scale:
    """No module, and as a dataclass of values nothing that a dictionary could look up."""

    largest: float = 1.0

    def of(self, x):
        return x / max(self.largest, float(x.max()))


class Scaled(nn.Module):
    """Asks somebody else for what cannot be recorded."""

    def forward(self, x):
        return Scale().of(x)


class Rare(nn.Module):
    """Does what ONNX has no word for."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Sequential(Branching())),
            "module '0.0', Branching, cannot be written to ONNX: torch.export ca",
        ),
        (nn.Sequential(Scaled()), "module '0', Scaled, cannot be written to ONNX: torch.export cannot record"),
        (nn.Sequential(OfTwo()), "cannot be written to ONNX: torch.export cannot record its code for batches of any"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(Rare())),
            "module '1.0', Rare, .* no operation for .*bessel_j0",
        ),
        (Doubled(), "the network gives a tuple: wanted is one that gives one tensor, such as a module"),
        (
            qlearn.nn.prepare(nn.Linear(4, 4)),
            "module 'model', ObservedLayer, .* only prepared, so call nn.convert first",
        ),
        (
            qlearn.nn.prepare_qat(nn.Sequential(nn.Linear(4, 4))),
            "module '0', FakeQuantizedLayer, .* only prepared, so call nn.convert first",
        ),
        (
            qlearn.nn.convert(qlearn.nn.prepare(nn.Linear(4, 4), activations=QuantConfig(method="dynamic"))),
            "module 'model', DynamicLinear, .* at run time; use static activations, or activations=None",
        ),
        (
            qlearn.nn.use_codebook(nn.Sequential(nn.Linear(4, 4)), [-1.0, 0.0, 1.0], block=4),
            "module '0', CodebookLayer, .* its codes are places in a list of levels",
        ),
    ],
)
def test_what_cannot_be_written_is_named_and_no_file_is_made(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        qlearn.nn.export_onnx(model, tmp_path / "model.onnx", (4,))
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"does not take an input_shape of \(5,\) with input_dtype=torch.float32"):
        qlearn.nn.export_onnx(nn.Sequential(nn.Linear(4, 2)), path, (5,))
    with pytest.raises(ValueError, match=r"does not take an input_shape of \(5,\) with input_dtype=torch.float32"):
        qlearn.nn.export_onnx(nn.Embedding(4, 2), path, (5,))
    with pytest.raises(TypeError, match="input_dtype=torch.float16 must be torch.float32, or torch.int64 for tokens"):
        qlearn.nn.export_onnx(nn.Linear(4, 2), path, (4,), input_dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_would_be_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(qlearn.nn.export, "LARGEST", 50)
    with pytest.raises(ValueError, match="has 60 bytes of numbers: an ONNX file holds 50 at most"):
        qlearn.nn.export_onnx(nn.Linear(4, 3), tmp_path / "model.onnx", (4,))
    assert list(tmp_path.iterdir()) == []


def test_the_network_is_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)), torch.randn(9, 4)).half().train()
    before, dropped = {name: value.clone() for name, value in model.state_dict().items()}, model[0].called
    qlearn.nn.export_onnx(model, tmp_path / "model.onnx", (4,))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    assert model[1].training and model[0].called == dropped and after["0.input_scale"].dtype == torch.float32


def test_the_file_says_nothing_of_the_machine(tmp_path):
    """PyTorch notes for each operation which line of which file it comes from."""
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)  # of random numbers a byte may be that of a "/"
    qlearn.nn.export_onnx(network, tmp_path / "model.onnx", (4,))
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content and b"/" not in content and b"torch" not in content


# --- networks of any shape --------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Adds, pools, normalizes and gates: what a plain chain of layers does not have."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.GroupNorm(2, 8)
        self.down, self.gate = nn.Conv2d(8, 16, 2, stride=2), nn.Conv2d(8, 16, 2, stride=2)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.last = nn.Linear(4 * 7 * 7, 10)

    def forward(self, x):
        x = nn.functional.relu6(self.norm1(self.conv1(x)))
        x = x + nn.functional.gelu(self.norm2(self.conv2(x)))
        x = nn.functional.silu(self.down(x)) * self.gate(x).sigmoid()
        x = nn.functional.avg_pool2d(nn.functional.leaky_relu(self.up(x)), 2)
        return self.last(nn.functional.adaptive_avg_pool2d(x, 7).flatten(1))


def of_table(name):
    import test_architectures

    model, x = test_architectures.TABLE[name]()
    return model, x


def residual():
    return Residual(), torch.randn(6, 1, 28, 28)


def writer():
    tokens = qlearn.nn.to_tokens(qlearn.datasets.text_parts().validation[: 4 * 64]).reshape(4, 64)
    return qlearn.nn.load_language_model(), tokens


def shipped(name):
    return qlearn.nn.load_trained(name), to_inputs(mnist_arrays().test.images[:100])


NETWORKS = {
    "mlp": functools.partial(shipped, "mlp"),
    "cnn": functools.partial(shipped, "cnn"),
    "residual CNN": residual,
    "language model": writer,
    **{name: functools.partial(of_table, name) for name in ("resnet18", "ConvNeXt", "vit of torchvision", "Swin")},
    "mobilenet_v3_small": functools.partial(of_table, "mobilenet_v3_small"),
    "U-Net": functools.partial(of_table, "U-Net"),
    "1-d convolutions": functools.partial(of_table, "1-d convolutions"),
}
HOW = {
    "W8A8": (PER_CHANNEL, QuantConfig()),
    "W8": (PER_CHANNEL, None),
    "W4": (QuantConfig(4, granularity=PerAxis(0)), None),
    "W4 in groups": (QuantConfig(4, granularity=PerGroup(8)), None),
}
READ = ("vit of torchvision", "Swin")  # PyTorch's attention, or their own, reads weights without calling layers
CASES = [
    *((name, "W8A8") for name in NETWORKS if name not in READ),
    *((name, "W8") for name in ("language model", *READ)),
    *((name, "W4") for name in ("mlp", "residual CNN", "U-Net", "1-d convolutions")),
    *((name, "W4 in groups") for name in ("language model", *READ)),
]


def is_relative(ours, theirs, bound=1e-5):
    return float((ours - theirs).abs().max() / ours.abs().max()) <= bound


def with_codes_of(model, codes, x):
    """The network's output where each quantized layer is given the codes that somebody else found; and how many differ.

    All before a layer is computed from equal codes then, so what differs lies next to a tie, by float32 rounding.
    """
    different = total = 0
    found = {name: iter(values) for name, values in codes.items()}
    names = {module: name for name, module in model.named_modules()}

    def exchange(layer, inputs):
        nonlocal different, total
        theirs = torch.from_numpy(next(found[names[layer]]))
        ours = quantize(inputs[0], layer.input_qparams)
        wrong = ours != theirs
        steps = inputs[0][wrong].double() / float(layer.input_scale)
        assert ((steps - steps.floor() - 0.5).abs() < 1e-3).all()
        assert ((ours.int() - theirs.int()).abs() <= 1).all()
        different, total = different + int(wrong.sum()), total + wrong.numel()
        return (dequantize(theirs, layer.input_qparams),)

    handles = [m.register_forward_pre_hook(exchange) for m in model.modules() if isinstance(m, StaticLayer)]
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    return output, different, total


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left in float")
@pytest.mark.filterwarnings("ignore:.*not called in the first pass")
@pytest.mark.parametrize(("name", "how"), CASES)
def test_networks_of_any_shape_in_onnx_runtime(name, how, tmp_path, capsys):
    """ONNX Runtime, ONNX's own reference and the network itself: the same outputs, but for codes next to a tie."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    weights, activations = HOW[how]
    converted = convert(model.eval(), x, weights, activations)
    path = tmp_path / "model.onnx"
    size = qlearn.nn.export_onnx(converted, path, x.shape[1:], input_dtype=x.dtype)
    proto = onnx.load(path)
    names = [node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    logits, *found = session_of(path, extra=names).run(None, {"input": x.numpy()})
    codes = {output.partition(".codes")[0]: [array] for output, array in zip(names, found, strict=True)}
    ours, different, total = with_codes_of(converted, codes, x)
    assert is_relative(ours, torch.from_numpy(logits))
    assert different <= 1e-4 * total
    reference = ReferenceEvaluator(proto).run([*names, "output"], {"input": x[:2].numpy()})
    codes = {output.partition(".codes")[0]: [array] for output, array in zip(names, reference[:-1], strict=True)}
    again, by_reference, _ = with_codes_of(converted, codes, x[:2])
    assert is_relative(again, torch.from_numpy(reference[-1]))
    kept = qlearn.nn.summary(converted).bytes
    quantized = [module for module in converted.modules() if isinstance(module, QuantizedLayer)]
    kept += sum(module.weight_scale.numel() for module in quantized)
    kept += sum(8 * len(m.bias_codes) for m in quantized if isinstance(m, StaticLayer) and m.bias_codes is not None)
    operations = len(proto.graph.node)
    assert size <= kept + 300 * operations
    assert how not in ("W8", "W8A8") or size > kept  # in memory a zero point has 4 bytes, in the file ½ or 1
    with capsys.disabled():
        relative = float((ours - torch.from_numpy(logits)).abs().max() / ours.abs().max())
        print(f"\n  {name} {how}: outputs differ by {relative:.1g}, {different} of {total:,} codes in ONNX Runtime "
              f"and {by_reference} in the reference; {size:,} bytes, {size - kept:+,} than its numbers, {operations} operations", end="")  # fmt: skip


def test_a_parameter_that_is_tied_is_written_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(100, 32), nn.Linear(32, 100, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    size = qlearn.nn.export_onnx(Tied(), tmp_path / "model.onnx", (7,), input_dtype=torch.int64)
    assert 4 * 3200 < size < 4 * 3200 + 1000


def test_a_network_that_looks_at_its_layer_and_calls_it_by_keyword(tmp_path):
    class Curious(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.fc.gain = 3.0

        def forward(self, x):
            return self.fc(input=x.view(-1, self.fc.in_features)) * self.fc.gain

    torch.manual_seed(0)
    x = torch.randn(6, 4)
    model = convert(Curious(), torch.randn(50, 4))
    qlearn.nn.export_onnx(model, tmp_path / "model.onnx", (4,))
    theirs = session_of(tmp_path / "model.onnx").run(None, {"input": x.numpy()})[0]
    assert is_relative(model(x), torch.from_numpy(theirs))


def test_a_hook_of_a_quantized_layer_is_part_of_the_network(tmp_path):
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(50, 4))
    model[0].register_forward_hook(lambda layer, inputs, output: 3 * output)
    qlearn.nn.export_onnx(model, tmp_path / "model.onnx", (4,))
    x = torch.randn(6, 4)
    theirs = session_of(tmp_path / "model.onnx").run(None, {"input": x.numpy()})[0]
    assert is_relative(model(x), torch.from_numpy(theirs))


def test_without_onnx_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"export_onnx\(\) needs onnx .*pip install onnx"):
        qlearn.nn.export_onnx(nn.Linear(2, 2), tmp_path / "model.onnx", (2,))


def test_without_onnxscript_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"export_onnx\(\) needs onnx and onnxscript .*pip install onnx onnxscript"):
        qlearn.nn.export_onnx(nn.Linear(2, 2), tmp_path / "model.onnx", (2,))


# --- which version of ONNX -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [21, 22])
def test_the_file_says_its_opset_and_runs(opset, tmp_path):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 3), torch.randn(16, 8)
    network = qlearn.nn.convert(qlearn.nn.calibrate(qlearn.nn.prepare(layer), x, progress=False))
    path = tmp_path / "layer.onnx"
    qlearn.nn.export_onnx(network, path, (8,), opset=opset)
    assert [version.version for version in onnx.load(path).opset_import] == [opset]
    (given,) = session_of(path).run(None, {"input": x.numpy()})
    assert np.allclose(given, network(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "error", "message"),
    [
        (20, ValueError, r"opset=20 is too old: codes of 4 bits, and groups, came with 21\."),
        (13, ValueError, r"opset=13 is too old"),
        (999, ValueError, r"opset=999 is newer than the installed onnx, which knows \d+ at most\."),
        ("21", TypeError, r"opset='21' must be a whole number, such as 21\."),
        (True, TypeError, r"opset=True must be a whole number"),
    ],
)
def test_an_opset_that_cannot_be_written_makes_no_file(opset, error, message, tmp_path):
    with pytest.raises(error, match=message):
        qlearn.nn.export_onnx(nn.Linear(4, 2), tmp_path / "layer.onnx", (4,), opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(None,), (-1,), ("N", 4), (4, 0)])
def test_a_shape_that_is_not_one_example_makes_no_file(shape, tmp_path):
    with pytest.raises((TypeError, ValueError), match="input_shape"):
        qlearn.nn.export_onnx(nn.Linear(4, 2), tmp_path / "layer.onnx", shape)
    assert not list(tmp_path.iterdir())
