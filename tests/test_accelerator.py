"""What a network or an array gives on an accelerator: what it gives on the processor, and there. Without one, skipped."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

import qlearn
from qlearn import (
    PerAxis,
    PerGroup,
    PerTensor,
    PerToken,
    QuantConfig,
    block_scales,
    codebooks,
    errors,
    formats,
    integer,
    observers,
    packing,
)
from qlearn.gptq import gptq_quantize, output_error

torch = pytest.importorskip("torch")
from torch import nn as layers  # noqa: E402

from qlearn import nn  # noqa: E402

FOUND = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no accelerator here")

INT8 = QuantConfig(symmetric=True, granularity=PerAxis(0))
INT4 = QuantConfig(4, symmetric=True, granularity=PerAxis(0))
GROUPS = QuantConfig(4, symmetric=True, granularity=PerGroup(16))
MODES = {
    "static": (INT8, QuantConfig()),
    "static, 4 bits, mse": (QuantConfig(4, symmetric=True, granularity=PerAxis(0), method="mse"), QuantConfig(method="mse")),
    "static, percentile": (INT8, QuantConfig(method="percentile")),
    "static, entropy": (INT8, QuantConfig(symmetric=True, method="entropy")),
    "static, moving average": (QuantConfig(granularity=PerAxis(0)), QuantConfig(method="moving_average")),
    "dynamic": (INT8, QuantConfig(method="dynamic")),
    "dynamic, symmetric": (INT8, QuantConfig(symmetric=True, method="dynamic")),
    "dynamic per row": (INT8, QuantConfig(method="dynamic", granularity=PerAxis(0))),
    "dynamic per token": (INT8, QuantConfig(method="dynamic", granularity=PerToken())),
    "weights alone": (INT8, None),
    "weights alone, groups": (GROUPS, None),
}  # fmt: skip


def there(x):
    return x.to(FOUND)


def is_there(x):
    return x.device.type == FOUND.type


def near(found, wanted, within=1e-4):
    """Sums of floats come in another order there."""
    assert is_there(found) and found.dtype == wanted.dtype and found.shape == wanted.shape
    found, wanted = found.detach().cpu().double(), wanted.detach().double()
    assert float((found - wanted).norm()) <= within * float(wanted.norm()) + 1e-30


def same(found, wanted):
    assert is_there(found) and found.dtype == wanted.dtype
    assert torch.equal(found.detach().cpu(), wanted.detach())


@pytest.fixture
def values():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 256), np.float32))
    x[3, 5] = 40.0
    return x


def mlp():
    torch.manual_seed(0)
    return layers.Sequential(layers.Linear(64, 32), layers.ReLU(), layers.Linear(32, 10)).eval()


class Pictures(layers.Module):
    """Convolutions of all kinds: with norms, in groups, one channel by one, transposed, in one dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = layers.Conv2d(3, 16, 3, padding=1, bias=False), layers.BatchNorm2d(16)
        self.grouped = layers.Conv2d(16, 32, 3, padding=1, groups=4)
        self.depthwise = layers.Conv2d(32, 32, 3, padding=1, groups=32)
        self.up = layers.ConvTranspose2d(32, 8, 2, stride=2)
        self.row = layers.Conv1d(8, 6, 5)
        self.head = layers.Linear(6, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.depthwise(torch.relu(self.grouped(x))))
        x = torch.relu(self.row(torch.relu(self.up(x)).flatten(2)))
        return self.head(x.mean(2))


def pictures():
    torch.manual_seed(0)
    network = Pictures().eval()
    network.norm.running_mean.normal_(), network.norm.running_var.uniform_(0.5, 2)
    return network


def text_model():
    return nn.language_model()


EXAMPLES = {
    mlp: lambda: torch.from_numpy(np.random.default_rng(1).standard_normal((40, 64), np.float32)),
    pictures: lambda: torch.from_numpy(np.random.default_rng(1).standard_normal((40, 3, 16, 16), np.float32)),
    text_model: lambda: nn.to_tokens(qlearn.datasets.text()[:2000]).reshape(-1)[: 14 * 128].reshape(14, 128),
}
NETWORKS = pytest.mark.parametrize("make", EXAMPLES, ids=lambda make: make.__name__)


def networks(make):
    """A network, one there, what they are shown, and that there."""
    network, x = make(), EXAMPLES[make]()
    return network, there(copy.deepcopy(network)), x, there(x)


def quiet(function, *arguments, **named):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **named)


def converted(network, x, weights, activations):
    prepared = quiet(nn.prepare, network, weights, activations)
    return quiet(nn.convert, nn.calibrate(prepared, [x], progress=False) if activations else prepared)


# --- maths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8, 12])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), PerGroup(32)], ids=repr)
@pytest.mark.parametrize("method", ["min_max", "percentile", "mse"])
def test_quantizers_and_codes(values, method, granularity, bits, symmetric):
    options = {"bits": bits, "symmetric": symmetric, "granularity": granularity}
    wanted, found = (qlearn.find_qparams(x, method, **options) for x in (values, there(values)))
    near(torch.as_tensor(found.scale), torch.as_tensor(wanted.scale), 1e-6)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        x = values.to(dtype)
        same(qlearn.quantize(there(x), found), qlearn.quantize(x, wanted))
        same(qlearn.fake_quantize(there(x), found), qlearn.fake_quantize(x, wanted))
    assert qlearn.errors.mse(there(values), qlearn.fake_quantize(there(values), found)) == pytest.approx(
        errors.mse(values, qlearn.fake_quantize(values, wanted)), rel=1e-5
    )


@pytest.mark.parametrize("method", ["cross_entropy", "entropy"])
def test_searches_of_whole_tensors(values, method):
    wanted, found = (qlearn.find_qparams(x, method, symmetric=True) for x in (values, there(values)))
    near(torch.as_tensor(found.scale), torch.as_tensor(wanted.scale), 1e-6)


def test_a_quotient_is_a_quotient():
    """Kernels that multiply by the reciprocal of a scalar miss ties and the codes beside them."""
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, 10**6).astype(np.float32))
    x[::3] = (torch.arange(len(x[::3])) % 200 - 100 + 0.5) * 0.01
    for scale in (0.01, 1 / 3, 0.007, 0.1):
        qparams = qlearn.QParams(scale, 0, -128, 127)
        same(qlearn.quantize(there(x), qparams), qlearn.quantize(x, qparams))


def test_report(values):
    qparams = qlearn.QParams(0.01, 3, 0, 255)
    for name, wanted in vars(errors.report(values, qparams)).items():
        assert getattr(errors.report(there(values), qparams), name) == pytest.approx(wanted, rel=1e-5), name


def test_values_that_are_not_finite_are_found(values):
    values[2, 7] = float("nan")
    with pytest.raises(ValueError, match=r"1 value that is not finite; the first is nan at index \(2, 7\)"):
        qlearn.find_qparams(there(values))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(("bits", "depth"), [(8, 1000), (12, 100), (16, 7)])
def test_products_are_exact(bits, depth, dtype, precision):
    """Whoever trains with TF32 has asked for products of shorter floats."""
    rng = np.random.default_rng(bits)
    if dtype == torch.uint8 and bits > 8:
        pytest.skip("such codes have other types")
    a = torch.from_numpy(rng.integers(0, 2**bits, size=(33, depth))).to(dtype)
    b = torch.from_numpy(rng.integers(-127, 128, size=(depth, 9))).to(torch.int8 if dtype == torch.uint8 else dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        same(integer.matmul(there(a), there(b), a_zero_point=3), ((a.long() - 3) @ b.long()).to(torch.int32))
    finally:
        torch.set_float32_matmul_precision(before)


def test_requantize():
    acc = torch.randint(-(10**6), 10**6, (100,), dtype=torch.int32)
    m, shift = integer.quantize_multiplier(0.0003)
    options = {"zero_point": 5, "quant_min": 0, "quant_max": 255}
    same(integer.requantize(there(acc), m, shift, **options), integer.requantize(acc, m, shift, **options))


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing(bits):
    codes = torch.randint(0, 2**bits, (13, 7), dtype=torch.uint8)
    packed = packing.pack(there(codes), bits)
    same(packed, packing.pack(codes, bits))
    same(packing.unpack(packed, bits, (13, 7)), codes)


def test_formats(values):
    for format in (formats.E4M3, formats.E5M2, formats.E2M1):
        same(formats.cast(there(values), format), formats.cast(values, format))
    for scale_of in (block_scales.mx_scale, block_scales.nvfp4_scale):
        wanted, found = scale_of(values), scale_of(there(values))
        same(found, wanted)
        same(formats.cast(there(values), formats.E2M1, found), formats.cast(values, formats.E2M1, wanted))


def test_codebooks(values):
    levels = codebooks.normal_float(4)
    same(codebooks.encode(there(values), levels), codebooks.encode(values, levels))
    for find in (codebooks.kmeans, codebooks.optimal):
        assert np.allclose(np.asarray(find(there(values[:4]), 4)), np.asarray(find(values[:4], 4)), rtol=1e-5)


def test_gptq_of_arrays(values):
    x = values[:, :32]
    hessian = x.double().T @ x.double()
    weight = values[:8, 32:64]
    qparams = INT4.find_qparams(weight)
    wanted, found = (
        gptq_quantize(w, h, q)
        for w, h, q in ((weight, hessian, qparams), (there(weight), there(hessian), INT4.find_qparams(there(weight))))
    )
    found, wanted = (made if isinstance(made, torch.Tensor) else made[0] for made in (found, wanted))
    assert is_there(found) and float((found.cpu() != wanted).float().mean()) < 0.01
    assert output_error(there(weight), qlearn.dequantize(found, qparams).float(), there(hessian)) == pytest.approx(
        output_error(weight, qlearn.dequantize(wanted, qparams).float(), hessian), rel=0.05
    )


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse", "entropy", "moving_average"])
def test_observers(values, method):
    config = QuantConfig(symmetric=method == "entropy", method=method)
    here, observer = observers.make_observer(config), observers.make_observer(config)
    for part in values.split(16):
        here.observe(part), observer.observe(there(part))
    near(torch.as_tensor(observer.qparams().scale), torch.as_tensor(here.qparams().scale), 1e-6)


# --- networks ------------------------------------------------------------------------------------------------------


@NETWORKS
@pytest.mark.parametrize("mode", MODES)
def test_quantized_networks(make, mode):
    weights, activations = MODES[mode]
    network, network_there, x, x_there = networks(make)
    if activations is not None and activations.granularity == PerToken() and make is pictures:
        pytest.skip("tokens are a Linear's")
    if isinstance(weights.granularity, PerGroup) and make is pictures:
        pytest.skip("its rows are shorter than a group")
    wanted, found = converted(network, x, weights, activations), converted(network_there, x_there, weights, activations)
    moved = there(copy.deepcopy(wanted))
    of_here, of_there = (qlearn.nn.layers.quantized_layers(q) for q in (wanted, found))
    assert of_here
    for name, layer in of_here.items():
        codes = of_there[name].weight_codes
        assert is_there(codes) and torch.equal(codes.cpu(), layer.weight_codes), name
    y = wanted(x)
    near(moved(x_there), y, 0.02)
    near(found(x_there), y, 0.02)
    near(found(x_there), network(x), 0.6)


def test_convolutions_whose_channels_lie_last():
    """There cuDNN has a kernel that transforms, whose sums are no whole numbers: seen on an H100, with TF32 off."""
    torch.manual_seed(0)
    layer, x = layers.Conv2d(16, 128, 3, padding=1), torch.randn(64, 16, 28, 28)
    wanted = converted(layers.Sequential(layer), x, INT8, QuantConfig())[0]
    codes = wanted.codes_of(x)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        moved = there(copy.deepcopy(wanted)).to(memory_format=torch.channels_last)
        same(moved.accumulate(there(codes).to(memory_format=torch.channels_last)), wanted.accumulate(codes))
    finally:
        torch.backends.cudnn.allow_tf32 = before


@NETWORKS
@pytest.mark.parametrize("deterministic", [False, True])
def test_sums_of_products_are_whole_numbers(make, deterministic):
    """Convolutions have kernels that transform (Winograd's, FFT), and shorter floats: both would round."""
    network, _, x, _ = networks(make)
    wanted = converted(network, x, INT8, QuantConfig())
    seen = {}

    def keep(layer, inputs, _):
        seen[layer.name] = inputs[0].detach()

    found = qlearn.nn.layers.quantized_layers(wanted)
    for layer in found.values():
        layer.register_forward_hook(keep)
    wanted(x)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark, before = not deterministic, torch.backends.cudnn.benchmark
    try:
        for name, layer in found.items():
            moved, codes = there(copy.deepcopy(layer)), layer.codes_of(seen[name])
            same(moved.accumulate(there(codes)), layer.accumulate(codes))
            same(moved.codes_of(there(seen[name])), codes)
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = before


def test_half_floats_and_autocast():
    network, network_there, x, x_there = networks(pictures)
    q = converted(network_there, x_there, INT8, QuantConfig())
    wanted = converted(network, x, INT8, QuantConfig())(x)
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(q).to(dtype)
        assert half(x_there.to(dtype)).dtype == dtype
        near(half(x_there.to(dtype)).float(), wanted, 0.05)
        with torch.autocast(FOUND.type, dtype):
            near(q(x_there).float(), wanted, 0.05)


def test_repairs_of_pictures():
    network, network_there, x, x_there = networks(pictures)

    def repaired(network, x):
        folded = quiet(nn.fold_batch_norm, network)
        equal = quiet(nn.equalize, folded)
        yield folded(x)
        yield equal(x)
        prepared = quiet(nn.gptq, quiet(nn.prepare, folded, INT4, None), [x], progress=False)
        made = nn.convert(prepared)
        yield made(x)
        yield nn.correct_bias(made, folded, [x], progress=False)(x)

    for wanted, found in zip(repaired(network, x), repaired(network_there, x_there), strict=True):
        near(found, wanted, 0.05)


def test_repairs_of_the_language_model():
    network, network_there, x, x_there = networks(text_model)

    def repaired(network, x):
        yield nn.plant_outliers(network)(x)
        yield nn.smooth(network, [x])(x)
        yield nn.awq(network, [x[:2]], GROUPS, grid=4, progress=False)(x)
        yield nn.rotate(network, [x[:2]])(x)
        yield nn.rotate(network, [x[:2]], online=True)(x)
        yield nn.convert(nn.gptq(quiet(nn.prepare, network, INT4, None), [x[:4]], progress=False))(x)
        yield nn.use_codebook(network, codebooks.normal_float(4))(x)

    for wanted, found in zip(repaired(network, x), repaired(network_there, x_there), strict=True):
        near(found, wanted, 0.05)


def test_which_layers_mind():
    network, network_there, x, x_there = networks(mlp)
    wanted, found = (
        nn.sensitivity(m, [y], bits=(4, 2), progress=False) for m, y in ((network, x), (network_there, x_there))
    )
    for name in wanted:
        assert found[name] == pytest.approx(wanted[name], rel=0.01)


def test_reading_and_writing_text():
    network, network_there, *_ = networks(text_model)
    text = qlearn.datasets.text()[:2000]
    assert nn.perplexity(network_there, text) == pytest.approx(nn.perplexity(network, text), rel=1e-4)
    assert nn.generate(network_there, "Call me", length=150) == nn.generate(network, "Call me", length=150)
    cached = (copy.deepcopy(m) for m in (network, network_there))
    prompts = [nn.generate(m, "Call me", length=5, temperature=0) for m in cached]
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("learned", [False, True])
def test_training(learned):
    labels = torch.arange(40) % 10
    lost = {}
    for place in ("cpu", FOUND.type):
        prepared = nn.prepare_qat(mlp().to(place), INT4, learned_step_size=learned)
        nn.calibrate(prepared, EXAMPLES[mlp]().to(place), progress=False)
        lost[place] = nn.train(prepared, EXAMPLES[mlp](), labels, epochs=30, batch_size=20, progress=False)
        assert lost[place][-1] < lost[place][0] / 2
        assert nn.accuracy(nn.convert(prepared), EXAMPLES[mlp](), labels) > 0.8
        assert nn.accuracy(prepared, EXAMPLES[mlp]().to(place), labels.to(place)) > 0.8
    assert lost[FOUND.type][:5] == pytest.approx(lost["cpu"][:5], rel=0.02)


def test_dropout_draws_anew_and_leaves_the_random_state():
    """Each step has another mask, the same with the same seed, and torch's random numbers go on as if nothing was."""
    device = torch.get_device_module(FOUND)
    images, labels = torch.ones(64, 16), torch.zeros(64, dtype=torch.int64)
    masks = []

    class Noted(layers.Dropout):
        def forward(self, x):
            y = super().forward(x)
            masks.append(y[0].detach() != 0)
            return y

    network = layers.Sequential(Noted(0.5), layers.Linear(16, 2))
    before = torch.get_rng_state(), device.get_rng_state()
    for _ in range(2):
        twin = there(copy.deepcopy(network))
        nn.train(twin, images, labels, epochs=1, batch_size=16, progress=False)
    assert len(masks) == 8 and not torch.equal(masks[0], masks[1])
    assert all(torch.equal(a, b) for a, b in zip(masks[:4], masks[4:], strict=True))
    after = torch.get_rng_state(), device.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_adapters_learn():
    network = nn.convert(quiet(nn.prepare, there(text_model()), GROUPS, None))
    adapted = nn.add_adapters(network)
    losses = nn.train_adapters(adapted, qlearn.datasets.text()[:4000], steps=20, progress=False)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(is_there(p) for p in adapted.parameters())


def test_files_are_those_of_the_processor(tmp_path):
    network, network_there, x, x_there = networks(mlp)
    here, elsewhere = converted(network, x, INT8, QuantConfig()), converted(network_there, x_there, INT8, QuantConfig())
    for name, q in (("here", here), ("there", elsewhere)):
        nn.save(q, tmp_path / f"{name}.safetensors")
    back = nn.load(there(mlp()), tmp_path / "here.safetensors")
    near(back(x_there), here(x))
    near(nn.load(mlp(), tmp_path / "there.safetensors").to(FOUND)(x_there), here(x))
    pytest.importorskip("onnxscript")
    for name, q in (("here", here), ("there", elsewhere)):
        quiet(nn.export_onnx, q, tmp_path / f"{name}.onnx", (64,))
    assert (tmp_path / "here.onnx").stat().st_size == (tmp_path / "there.onnx").stat().st_size


def test_files_of_others(tmp_path):
    pytest.importorskip("gguf")
    made = []
    for name, place in (("here", "cpu"), ("there", FOUND.type)):
        network = text_model().to(place)
        nn.write_gguf(network, tmp_path / f"{name}.gguf")
        made.append((tmp_path / f"{name}.gguf").read_bytes())
        q = nn.convert(quiet(nn.prepare, network, GROUPS, None))
        nn.write_compressed_tensors(q, tmp_path / name)
        made.append((tmp_path / name / "model.safetensors").read_bytes())
    assert made[:2] == made[2:]


def test_summary_names_the_same():
    network, network_there, x, x_there = networks(pictures)
    wanted, found = converted(network, x, INT8, QuantConfig()), converted(network_there, x_there, INT8, QuantConfig())
    assert str(nn.summary(found)).split("\n")[0] == str(nn.summary(wanted)).split("\n")[0]


@NETWORKS
def test_compiled_and_exported(make):
    _, network_there, _, x_there = networks(make)
    q = converted(network_there, x_there, INT8, QuantConfig())
    y = q(x_there)
    near(torch.compile(q, backend="aot_eager")(x_there), y.cpu(), 1e-5)
    near(torch.export.export(q, (x_there,)).module()(x_there), y.cpu(), 1e-5)


def test_explorers_take_arrays_from_there(values):
    from qlearn import widgets

    for explore in (
        widgets.explore_affine,
        widgets.explore_ranges,
        widgets.explore_granularity,
        widgets.explore_formats,
    ):
        assert repr(explore(there(values))) == repr(explore(values))
