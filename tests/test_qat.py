"""Quantization-aware training: gradients through the staircase, and the integer network that comes of it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import qlearn
from qlearn import PerAxis, PerGroup, PerTensor, QParams, QuantConfig, datasets
from qlearn.nn import FakeQuantize, LearnedFakeQuantize, learned_step, straight_through
from qlearn.nn.fake_quantize import gradient_scale
from qlearn.nn.training import to_inputs, training_steps

PER_CHANNEL = QuantConfig(bits=2, symmetric=True, granularity=PerAxis(0), method="mse")
CODES = [
    pytest.param({"bits": bits, "symmetric": symmetric}, id=f"{bits} bits {'symmetric' if symmetric else 'asymmetric'}")
    for bits in (2, 3, 8)
    for symmetric in (True, False)
]
GRANULARITIES = [PerTensor(), PerAxis(0), PerGroup(4)]


@pytest.fixture(scope="module")
def mnist():
    return datasets.mnist_arrays()


@pytest.fixture(scope="module")
def model():
    return qlearn.nn.load_trained("mlp")


@pytest.fixture(scope="module")
def calibration(mnist):
    return to_inputs(mnist.calibration.images)


def trained(prepared, mnist, images=6_000, **options):
    options = {"epochs": 1, "learning_rate": 2e-3, "progress": False, **options}
    qlearn.nn.train(prepared, mnist.train.images[:images], mnist.train.labels[:images], **options)
    return prepared


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10)
    )  # fmt: skip


# --- straight through ------------------------------------------------------------------------------------------------


def gradient_of(function, x, upstream):
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(upstream)
    return y.detach(), x.grad


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_forward_pass_is_fake_quantize_and_the_gradient_has_its_closed_form(codes, granularity):
    torch.manual_seed(0)
    x, upstream = torch.randn(6, 8), torch.randn(6, 8)
    # Ranges that clip: a third of the values lies outside.
    qparams = QuantConfig(granularity=granularity, **codes).find_qparams(x / 3)
    x_hat, grad = gradient_of(lambda x: straight_through(x, qparams), x, upstream)
    assert torch.equal(x_hat, qlearn.fake_quantize(x, qparams))
    # The closed form in float64: within half a step of the ticks, or nearer to the inside.
    repeat = {PerTensor(): (1, 1), PerAxis(0): (1, 8), PerGroup(4): (1, 4)}[granularity]
    scale, zero_point = (
        np.kron(np.broadcast_to(v, np.broadcast_shapes(np.shape(qparams.scale), (1, 1))), np.ones(repeat))
        for v in (np.asarray(qparams.scale, np.float64), np.asarray(qparams.zero_point, np.float64))
    )
    place = x.double().numpy() / scale + zero_point
    inside = (place > qparams.quant_min - 0.5) & (place < qparams.quant_max + 0.5)
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(grad.numpy(), upstream.numpy() * inside)


@pytest.mark.parametrize(
    ("x", "gradient"),
    [
        (-0.5, 1),  # a tie between codes −1 and 0: the even one is 0, which is there
        (-0.500001, 0),
        (0.0, 1),
        (2.5, 1),  # ties inside change nothing
        (7.0, 1),  # the last tick
        (7.499999, 1),  # beyond it, and still rounded to it
        (7.5, 0),  # a tie between 7 and 8: the even one is 8, and the clamp moves it
        (1e30, 0),
        (-1e30, 0),
    ],
)
def test_the_mask_at_the_boundary(x, gradient):
    x = torch.tensor([x], dtype=torch.float64)
    _, grad = gradient_of(lambda x: straight_through(x, QParams(1.0, 0, 0, 7)), x, torch.ones(1, dtype=torch.float64))
    assert grad.item() == gradient


@pytest.mark.parametrize("codes", CODES)
def test_pytorch_masks_the_same_values(codes):
    """Its own operator, with a power of two as scale: there its product with the reciprocal is a division."""
    torch.manual_seed(1)
    x, upstream = torch.randn(5000), torch.randn(5000)
    x[:200] = torch.arange(200) / 16 - 5  # ties among them
    found = QuantConfig(**codes).find_qparams(x / 3)
    qparams = QParams(2.0 ** round(math.log2(found.scale)), int(found.zero_point), found.quant_min, found.quant_max)
    limits = qparams.scale, qparams.zero_point, qparams.quant_min, qparams.quant_max
    theirs = gradient_of(lambda x: torch.fake_quantize_per_tensor_affine(x, *limits), x, upstream)
    ours = gradient_of(lambda x: straight_through(x, qparams), x, upstream)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_what_is_inside_is_what_errors_does_not_call_clipped():
    x = torch.linspace(-3, 12, 1000)
    qparams = QParams(1.0, 2, 0, 7)
    _, grad = gradient_of(lambda x: straight_through(x, qparams), x, torch.ones(1000))
    assert torch.equal(grad == 0, qlearn.errors.clipped(x, qparams))


def test_the_end_of_a_min_max_range_keeps_its_gradient():
    """The largest weight of a channel must be able to learn, however its quotient by the scale is rounded."""
    torch.manual_seed(2)
    weights = torch.randn(500, 30)
    qparams = QuantConfig(bits=3, symmetric=True, granularity=PerAxis(0)).find_qparams(weights)
    _, grad = gradient_of(lambda x: straight_through(x, qparams), weights, torch.ones(500, 30))
    assert grad.min() == 1


def test_a_gradient_of_a_gradient_is_refused():
    x = torch.ones(3, requires_grad=True)
    y = straight_through(x, QParams(1.0, 0, 0, 7)).pow(2).sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# --- learned step size -----------------------------------------------------------------------------------------------


def surrogate(x, scale, zero_point, quant_min, quant_max, residual):
    """What LSQ differentiates, in NumPy: the clamp, and rounding as the addition of a fixed number."""
    clamped = np.clip(x / scale, quant_min - zero_point, quant_max - zero_point)
    return scale * (clamped + residual)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_are_finite_differences_of_the_surrogate_with_its_residual_frozen(codes, granularity):
    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 8, dtype=torch.float64)
    found = QuantConfig(granularity=granularity, **codes).find_qparams(x.detach() / 3)
    scale = torch.as_tensor(found.scale, dtype=torch.float64).clone().requires_grad_()
    rest = found.zero_point, found.quant_min, found.quant_max
    x_hat = learned_step(x, scale, *rest)
    assert torch.equal(x_hat, qlearn.fake_quantize(x, QParams(scale.detach(), *rest)))
    x_hat.backward(upstream)

    # Everything in the shape of x, so that NumPy needs no blocks.
    values, step = x.detach().numpy(), scale.detach().numpy()
    repeat = 8 // step.shape[1] if step.ndim else 1
    wide = np.repeat(step, repeat, 1) if step.ndim else step
    zero_points = np.asarray(found.zero_point)
    wide_zero_points = np.repeat(zero_points, repeat, 1) if zero_points.ndim else zero_points
    ends = wide_zero_points, found.quant_min, found.quant_max
    clamped = np.clip(values / wide, found.quant_min - wide_zero_points, found.quant_max - wide_zero_points)
    residual = np.rint(clamped) - clamped
    assert np.array_equal(surrogate(values, wide, *ends, residual), x_hat.detach().numpy())
    assert 0 < (residual == 0).sum() < residual.size  # some are clipped, some are not

    h = 1e-6  # no value is so near to an end of the range that it would cross it; checked below
    distance = np.abs(np.stack([values / wide - (end - wide_zero_points) for end in ends[1:]]))
    assert distance.min() > 10 * h / wide.min()
    slope_x = (surrogate(values + h, wide, *ends, residual) - surrogate(values - h, wide, *ends, residual)) / (2 * h)
    slope_s = (surrogate(values, wide + h, *ends, residual) - surrogate(values, wide - h, *ends, residual)) / (2 * h)
    # The surrogate is piecewise linear in both: what is left is float64's 1e-16, divided by h.
    assert np.allclose(x.grad.numpy(), upstream.numpy() * slope_x, atol=1e-8, rtol=0)
    products = upstream.numpy() * slope_s
    sums = products.reshape(6, -1, repeat).sum(2) if step.ndim else products.sum()
    sums = sums.sum(1, keepdims=True) if step.shape == (6, 1) else sums
    assert np.allclose(scale.grad.numpy(), sums, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("x", "for_x", "for_scale"),
    [
        (-9.0, 0, 0.0),  # below: quant_min − zero_point
        (0.4, 1, -0.4),
        (0.5, 1, -0.5),  # a tie goes to the even 0
        (1.5, 1, 0.5),  # … or 2
        (3.0, 1, 0.0),  # the last tick itself is inside
        (3.000001, 0, 3.0),  # from there on the surrogate is 3 · scale
        (3.4, 0, 3.0),
        (50.0, 0, 3.0),
    ],
)
def test_learned_step_at_the_boundary(x, for_x, for_scale):
    x = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    learned_step(x, scale, 0, 0, 3).sum().backward()
    assert (x.grad.item(), scale.grad.item()) == (for_x, pytest.approx(for_scale, abs=1e-15))


def test_a_quotient_that_overflows_is_clipped():
    x, scale = torch.tensor([1e38, -1e38, 0.5], requires_grad=True), torch.tensor(1e-3, requires_grad=True)
    x_hat = learned_step(x, scale, 0, -7, 7)
    x_hat.sum().backward()
    assert (x_hat.detach() / 1e-3).round().tolist() == [7, -7, 7]
    assert (x.grad.tolist(), scale.grad.item()) == ([0, 0, 0], 7)
    _, grad = gradient_of(lambda x: straight_through(x, QParams(1e-3, 0, -7, 7)), x.detach(), torch.ones(3))
    assert grad.tolist() == [0, 0, 0]


def test_the_gradient_of_the_scale_is_scaled():
    x, scale = torch.tensor([9.0, 0.6]), torch.tensor(1.0, requires_grad=True)
    learned_step(x, scale, 0, 0, 3, gradient_scale=0.25).sum().backward()
    assert scale.grad.item() == pytest.approx(0.25 * (3 + 0.4))
    assert gradient_scale(784, 127) == 1 / math.sqrt(784 * 127)
    with pytest.raises(ValueError, match="must be larger than 0"):
        learned_step(x, torch.tensor(-1.0), 0, 0, 3)


@pytest.mark.parametrize(("start", "n"), [(QParams(torch.full((4, 1), 0.5), 0, -1, 1), 6), (None, 24)])
def test_modules_count_the_values_that_share_a_scale(start, n):
    """Weights: those of a channel. Inputs: the features of one example, however many examples there are."""
    module = LearnedFakeQuantize(PER_CHANNEL if start else QuantConfig(bits=2, symmetric=True), start)
    module.start(QParams(0.5, 0, -1, 1))
    x = torch.full((4, 6) if start else (5, 2, 3, 4), 9.0)
    module(x).sum().backward()
    shared = x.numel() // module.log_scale.numel()
    # Every value is clipped to one step of 0.5; the last 0.5 comes from the logarithm.
    expected = shared * 1 * gradient_scale(n, 1) * 0.5
    assert torch.allclose(module.log_scale.grad, torch.full_like(module.log_scale, expected), rtol=1e-6)


def test_a_learned_scale_stays_above_zero():
    """At 8 bits a scale is smaller than one step of Adam."""
    torch.manual_seed(0)
    module = LearnedFakeQuantize(QuantConfig(symmetric=True), QParams(0.005, 0, -127, 127))
    x = 0.2 * torch.randn(1000)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(200):
        loss = ((module(x) - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert module.qparams().scale > 0
    # It has found its way: near the scale with the smallest squared error, which is a flat valley.
    best = qlearn.find_qparams(x, "mse", symmetric=True)
    error = qlearn.errors.mse(x, qlearn.fake_quantize(x, module.qparams()))
    assert error < 1.2 * qlearn.errors.mse(x, qlearn.fake_quantize(x, best))


def test_learning_a_scale_finds_the_best_one():
    """Gradient descent on the squared error, from a bad start, at 3 bits: theory's step for N(0, 1)."""
    torch.manual_seed(0)
    x = torch.randn(20_000)
    module = LearnedFakeQuantize(QuantConfig(bits=3, symmetric=True), QParams(2.0, 0, -3, 3))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(150):
        loss = ((module(x) - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Best clip for seven levels: 1.9523. A surrogate is not the derivative of the error: 3 % off was measured.
    assert 3 * module.qparams().scale.item() == pytest.approx(1.9523, rel=0.06)


# --- modules in a network --------------------------------------------------------------------------------------------


def count(model):
    return sum(isinstance(module, FakeQuantize) for module in model.modules())


def test_every_layer_gets_two_fake_quantize_modules(model):
    assert count(model) == 0
    assert count(qlearn.nn.prepare(model)) == 0  # observers alone round nothing
    assert count(qlearn.nn.prepare_qat(model)) == 6
    assert count(qlearn.nn.prepare_qat(model, activations=None)) == 3
    assert count(qlearn.nn.prepare_qat(model, overrides={"linear1": None})) == 4
    assert count(qlearn.nn.prepare_qat(model, learned_step_size=True)) == 6
    learned = qlearn.nn.prepare_qat(model, learned_step_size=True).modules()
    assert sum(isinstance(module, LearnedFakeQuantize) for module in learned) == 6


@pytest.mark.parametrize("learned", [False, True])
def test_the_summary_has_a_row_for_each_layer_and_all_bytes(model, learned, tmp_path):
    prepared = qlearn.nn.prepare_qat(model, PER_CHANNEL, learned_step_size=learned)
    summary = qlearn.nn.summary(prepared)
    assert [layer.name for layer in summary.layers] == ["linear1", "linear2", "linear3"]
    assert [layer.weights for layer in summary.layers] == ["to be 2 bits per channel"] * 3
    assert 0 < qlearn.nn.save(prepared, tmp_path / "qat.safetensors") - summary.bytes < 2_000  # the head of the file


def test_the_model_is_not_touched(model, calibration, mnist):
    before = copy.deepcopy(model.state_dict())
    prepared = qlearn.nn.prepare_qat(model, PER_CHANNEL, learned_step_size=True)
    trained(qlearn.nn.calibrate(prepared, calibration, progress=False), mnist, images=500)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("learned", [False, True])
def test_training_starts_where_post_training_quantization_ends(model, calibration, learned):
    inputs = QuantConfig()  # both by the same observer
    prepared = qlearn.nn.prepare_qat(model, PER_CHANNEL, inputs, learned_step_size=learned)
    qlearn.nn.calibrate(prepared, calibration, progress=False)
    ptq = qlearn.nn.calibrate(qlearn.nn.prepare(model, PER_CHANNEL, inputs), calibration, progress=False)
    for name in ("linear1", "linear2", "linear3"):
        assert repr(prepared.get_submodule(name).observer) == repr(ptq.get_submodule(name).observer)
    ptq, ours = qlearn.nn.convert(ptq), qlearn.nn.convert(prepared)
    for name in ("linear1", "linear2", "linear3"):
        theirs, mine = ptq.get_submodule(name), ours.get_submodule(name)
        # exp(log(scale)) may differ from scale in the last digit, and with it a weight next to a tie.
        assert (theirs.weight_codes != mine.weight_codes).sum() <= (2 if learned else 0)
        assert torch.allclose(theirs.weight_scale, mine.weight_scale, rtol=3e-7 if learned else 0, atol=0)
        assert torch.allclose(theirs.input_scale, mine.input_scale, rtol=3e-7 if learned else 0, atol=0)


def codes_into(model, images):
    """The codes of every layer's input, as the layer itself makes them."""
    codes, hooks = [], []

    def look(layer, args):
        (x,) = args
        qparams = layer.input_qparams if hasattr(layer, "input_qparams") else layer.follow(x)
        codes.append(qlearn.quantize(x, qparams).flatten(1).int())

    for module in model.modules():
        if hasattr(module, "input_qparams") or hasattr(module, "input_fake_quantize"):
            hooks.append(module.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, codes


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        (PER_CHANNEL, {"learned_step_size": True}),
        (QuantConfig(bits=4, symmetric=True, granularity=PerAxis(0)), {}),
        (QuantConfig(bits=3), {"activations": QuantConfig(bits=4, method="min_max")}),
        (QuantConfig(bits=3, granularity=PerAxis(0)), {"learned_step_size": True}),
    ],
    ids=["2 bits learned", "4 bits", "3 bits asymmetric", "3 bits asymmetric learned"],
)
def test_the_integer_network_predicts_what_the_fake_quantized_one_does(model, mnist, calibration, weights, options):
    """All 10,000 test digits. What is left between the two is float32's rounding, and a code next to a tie."""
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare_qat(model, weights, **options), calibration, progress=False)
    fake = trained(prepared, mnist, images=3_000)
    integer = qlearn.nn.convert(fake)
    images = to_inputs(mnist.test.images)
    (fake_logits, fake_codes), (logits, codes) = codes_into(fake, images), codes_into(integer, images)
    other = fake_logits.argmax(1) != logits.argmax(1)
    # With one scale for all channels, logits are whole numbers of one step, and the two largest may be equal.
    tied = logits.topk(2).values
    assert not (other & (tied[:, 0] > tied[:, 1])).any()
    assert other.sum() <= (0 if weights.granularity == PerAxis(0) else 20)
    assert len(codes) == len(fake_codes) == 3

    differing = torch.stack([(a != b).any(1) for a, b in zip(fake_codes, codes, strict=True)]).any(0)
    assert all((a - b).abs().max() <= 1 for a, b in zip(fake_codes, codes, strict=True))
    # Measured: 0 to 3 digits. One of 200 inner values within 1e-7 of 255 ticks: about 10 in 10,000 digits at most.
    assert differing.sum() <= 20
    # With equal codes both compute the same sums: float32 keeps 2⁻²⁴ of each factor x̂ and ŵ and of the result.
    last = fake.linear3
    x = fake_codes[2] - int(integer.linear3.input_zero_point)
    magnitude = (x.abs() * integer.linear3.input_scale).double() @ last.layer.weight.abs().double().T
    bound = 4 * 2.0**-24 * (magnitude + last.layer.bias.abs() + logits.abs())
    error = (fake_logits - logits).abs().double()
    assert (error <= bound)[~differing].all()


def test_convolutions_predict_the_same(mnist):
    images = to_inputs(mnist.validation.images[:2000])
    fake = trained(qlearn.nn.prepare_qat(small_network(), PER_CHANNEL, learned_step_size=True), mnist, images=3000)
    integer = qlearn.nn.convert(fake)
    assert [module._get_name() for module in integer] == [
        *("QuantizedConv2d", "ReLU", "Flatten", "QuantizedLinear", "ReLU", "QuantizedLinear")
    ]
    with torch.no_grad():
        assert torch.equal(fake(images).argmax(1), integer(images).argmax(1))


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (QuantConfig(bits=3, symmetric=True, granularity=PerGroup(28)), None),
        (QuantConfig(bits=2, symmetric=True, granularity=PerAxis(0)), QuantConfig(method="dynamic")),
        (
            QuantConfig(bits=2, symmetric=True, granularity=PerAxis(0)),
            QuantConfig(method="dynamic", granularity=PerAxis(0)),
        ),
    ],
    ids=["weights only, groups", "dynamic", "dynamic per row"],
)
@pytest.mark.parametrize("learned", [False, True])
def test_weights_only_and_dynamic_need_no_calibration(mnist, weights, activations, learned):
    model = qlearn.nn.mlp() if activations else nn.Sequential(nn.Flatten(), nn.Linear(784, 28), nn.Linear(28, 10))
    fake = trained(qlearn.nn.prepare_qat(model, weights, activations, learned_step_size=learned), mnist, images=2000)
    images = to_inputs(mnist.validation.images[:500])
    with torch.no_grad():
        before, after = fake(images), qlearn.nn.convert(fake)(images)
    assert torch.equal(before.argmax(1), after.argmax(1))


def test_the_input_range_follows_training_and_rests_in_eval_mode():
    prepared = qlearn.nn.prepare_qat(nn.Sequential(nn.Linear(3, 2)), activations=QuantConfig(method="min_max")).train()
    layer = prepared[0]
    prepared(torch.tensor([[0.0, 1.0, 2.0]]))
    assert float(layer.observer.hi) == 2
    prepared(torch.tensor([[0.0, 1.0, 5.0]]))
    assert float(layer.observer.hi) == 5
    prepared.eval()(torch.tensor([[0.0, 1.0, 9.0]]))
    assert float(layer.observer.hi) == 5
    average = qlearn.nn.prepare_qat(nn.Sequential(nn.Linear(3, 2))).train()
    average(torch.tensor([[0.0, 1.0, 2.0]]))
    average(torch.tensor([[0.0, 1.0, 5.0]]))
    assert float(average[0].observer.hi) == pytest.approx(2.03)


def test_a_learned_input_scale_starts_at_the_first_batch_or_at_calibration():
    inputs = QuantConfig(bits=2, method="min_max")
    for calibrated in (False, True):
        prepared = qlearn.nn.prepare_qat(nn.Sequential(nn.Linear(3, 2)), activations=inputs, learned_step_size=True)
        module = prepared[0].input_fake_quantize
        assert not module.started and not prepared[0].ready
        if calibrated:
            qlearn.nn.calibrate(prepared, torch.tensor([[0.0, 1.0, 6.0]]), progress=False)
        assert prepared[0].ready == calibrated
        prepared.train()(torch.tensor([[0.0, 1.0, 3.0]]))
        assert module.qparams().scale.item() == pytest.approx(2.0 if calibrated else 1.0)
        qlearn.nn.convert(prepared)


def test_a_bias_lies_on_the_accumulator_s_grid_and_still_learns():
    torch.manual_seed(0)
    prepared = qlearn.nn.prepare_qat(nn.Sequential(nn.Linear(5, 4)), PER_CHANNEL).train()
    x = torch.rand(20, 5)
    prepared(x).sum().backward()
    assert torch.equal(prepared[0].layer.bias.grad, torch.full((4,), 20.0))
    integer = qlearn.nn.convert(prepared)[0]
    silent = prepared.eval()(torch.zeros(1, 5))[0]
    steps = (silent / integer.output_scale.reshape(-1)).detach()
    assert torch.allclose(steps, integer.bias_codes.double(), atol=1e-5)  # whole numbers, to float32's digits


def test_two_runs_give_the_same_network(model, mnist, calibration):
    runs = []
    for _ in range(2):
        prepared = qlearn.nn.prepare_qat(model, PER_CHANNEL, learned_step_size=True)
        runs.append(trained(qlearn.nn.calibrate(prepared, calibration, progress=False), mnist, images=1500))
    first, second = (run.state_dict() for run in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_short_training_repairs_two_bits(model, mnist, calibration):
    """6,000 images, once. Post-training quantization by min-max leaves less than half of the digits right."""
    images, labels = mnist.validation
    min_max = QuantConfig(bits=2, symmetric=True, granularity=PerAxis(0))
    ptq = qlearn.nn.convert(qlearn.nn.calibrate(qlearn.nn.prepare(model, min_max), calibration, progress=False))
    assert qlearn.nn.accuracy(ptq, images, labels) < 0.5
    # The range by min-max sends most weights to 0, and the surrogate has to bring them back one by one.
    for weights, learned, reached in ((min_max, False, 0.75), (PER_CHANNEL, True, 0.94)):
        prepared = qlearn.nn.prepare_qat(model, weights, learned_step_size=learned)
        fake = trained(qlearn.nn.calibrate(prepared, calibration, progress=False), mnist)
        assert qlearn.nn.accuracy(qlearn.nn.convert(fake), images, labels) > reached


def test_training_that_is_interrupted_leaves_a_usable_network(model, mnist, calibration, monkeypatch):
    prepared = qlearn.nn.prepare_qat(model, PER_CHANNEL, learned_step_size=True)
    qlearn.nn.calibrate(prepared, calibration, progress=False)
    before = qlearn.nn.accuracy(prepared, *mnist.validation)
    steps = iter(range(30))
    ordinary = nn.functional.cross_entropy

    def interrupted(*args, **kwargs):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return ordinary(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "cross_entropy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(prepared, mnist)
    assert not prepared.training
    after = qlearn.nn.accuracy(qlearn.nn.convert(prepared), *mnist.validation)
    assert after == qlearn.nn.accuracy(prepared, *mnist.validation)
    assert after > before
    monkeypatch.undo()
    trained(prepared, mnist, images=500)  # and training can go on


def test_steps_can_be_stopped_at_any_point(model, mnist, calibration):
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare_qat(model, PER_CHANNEL), calibration, progress=False)
    options = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3, "seed": 0}
    steps = training_steps(prepared, *mnist.train, **options)
    assert len([next(steps) for _ in range(3)]) == 3
    steps.close()
    assert not prepared.training
    qlearn.nn.convert(prepared)


def test_a_learned_network_can_be_saved_and_loaded(model, mnist, calibration, tmp_path):
    fake = qlearn.nn.prepare_qat(model, PER_CHANNEL, learned_step_size=True)
    trained(qlearn.nn.calibrate(fake, calibration, progress=False), mnist, images=500)
    qlearn.nn.save(fake, tmp_path / "qat.safetensors")
    again = qlearn.nn.prepare_qat(qlearn.nn.mlp(seed=3), PER_CHANNEL, learned_step_size=True)
    qlearn.nn.load(again, tmp_path / "qat.safetensors")
    images = to_inputs(mnist.validation.images[:500])
    assert torch.equal(again(images), fake(images))
    assert torch.equal(qlearn.nn.convert(again)(images), qlearn.nn.convert(fake)(images))


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named(model, calibration):
    with pytest.raises(
        ValueError, match="ReLU has no Linear, Conv1d, Conv2d or ConvTranspose2d that could be quantized"
    ):
        qlearn.nn.prepare_qat(nn.ReLU())
    with pytest.raises(ValueError, match="this model is prepared already"):
        qlearn.nn.prepare_qat(qlearn.nn.prepare_qat(model))
    with pytest.raises(ValueError, match="overrides names 'fc', which is no layer to quantize"):
        qlearn.nn.prepare_qat(model, overrides={"fc": None})
    with pytest.raises(ValueError, match="layer 'linear1': weights of 9 bits"):
        qlearn.nn.prepare_qat(model, QuantConfig(bits=9))
    for learned in (False, True):
        prepared = qlearn.nn.prepare_qat(model, learned_step_size=learned)
        with pytest.raises(RuntimeError, match=r"layer 'linear1': no data has reached its input: call nn.calibrate"):
            prepared(calibration[:2])
        with pytest.raises(RuntimeError, match="no data has reached linear1, linear2, linear3"):
            qlearn.nn.convert(prepared)
    with pytest.raises(ValueError, match="the loader is empty"):
        qlearn.nn.calibrate(prepared, [], progress=False)
    with pytest.raises(RuntimeError, match="this scale has no start"):
        LearnedFakeQuantize(QuantConfig())(torch.ones(2))


def test_numbers_that_are_not_finite_are_named(model, calibration):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.linear2.weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match="layer 'linear2': x holds 1 value that is not finite"):
        qlearn.nn.prepare_qat(broken, learned_step_size=True)
    prepared = qlearn.nn.prepare_qat(broken).train()
    with pytest.raises(ValueError, match="layer 'linear2': .* not finite.* a smaller learning rate may help"):
        prepared(calibration[:10])
    prepared = qlearn.nn.prepare_qat(model).train()
    with pytest.raises(ValueError, match="layer 'linear1': .* not finite"):
        prepared(torch.full((1, 1, 28, 28), torch.inf))


def test_a_shared_layer_stays_shared():
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    prepared = qlearn.nn.prepare_qat(nn.Sequential(shared, nn.ReLU(), shared)).train()
    assert prepared[0] is prepared[2]
    assert count(prepared) == 2
    x = torch.rand(30, 5)
    prepared(x)
    integer = qlearn.nn.convert(prepared)
    assert integer[0] is integer[2]
    assert (integer(x) - prepared.eval()(x)).abs().max() < 1e-5


def test_half_precision_strange_strides_and_empty_batches():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    layer.weight = nn.Parameter(torch.randn(8, 4).T)  # not contiguous
    x = torch.rand(6, 8)
    for model in (nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer)).half()):
        for learned in (False, True):
            prepared = qlearn.nn.prepare_qat(model, PER_CHANNEL, learned_step_size=learned).train()
            x = x.to(model[0].weight.dtype)
            prepared(x).sum().backward()
            assert prepared[0].layer.weight.grad.dtype == x.dtype
            assert prepared.eval()(x[:0]).shape == (0, 4)
            # Half a digit of float16 beside the largest output.
            error = (qlearn.nn.convert(prepared)(x) - prepared(x)).abs().max()
            assert error <= (2e-3 if x.dtype == torch.float16 else 1e-6) * prepared(x).abs().max()


# --- numbers of 8 bits, and sums of float64 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "n", "factor"),
    [
        (QParams(torch.full((4, 1), 0.5), 0, -128, 127), 6, 127),
        (QParams(0.5, 3, 0, 255), 24, 255),
        (None, 24, 255),
    ],
    ids=["weights, full signed range", "weights, unsigned", "inputs"],
)
def test_the_gradient_of_a_learned_scale_is_divided_by_the_root_of_n_quant_max(start, n, factor):
    """With quant_max = 1 no test could see it. LSQ's g = 1 / √(n · quant_max), from the paper's section 2.2."""
    signed = start is not None and start.quant_min < 0
    module = LearnedFakeQuantize(QuantConfig(symmetric=signed, narrow_range=False), start)
    if start is None:
        module.start(QParams(0.5, 3, 0, 255))
    x = torch.full((4, 6) if start else (5, 2, 3, 4), 1000.0)  # beyond the last tick, which is quant_max − zero_point
    module(x).sum().backward()
    steps = 127 if signed else 255 - 3
    shared = x.numel() // module.log_scale.numel()
    expected = shared * steps / math.sqrt(n * factor) * 0.5  # the last 0.5 comes from the logarithm
    assert torch.allclose(module.log_scale.grad, torch.full_like(module.log_scale, expected), rtol=1e-6)  # float32


def test_in_eval_mode_sums_are_those_of_float64_rounded_once():
    torch.manual_seed(0)
    prepared = qlearn.nn.prepare_qat(nn.Sequential(nn.Linear(784, 64, bias=False)), PER_CHANNEL)
    x = torch.randn(50, 784)
    layer = qlearn.nn.calibrate(prepared, x, progress=False)[0]
    x_hat = qlearn.fake_quantize(x, layer.observer.qparams())
    w_hat = qlearn.fake_quantize(layer.layer.weight.detach(), layer.find_weight_qparams())
    exact = x_hat.double() @ w_hat.double().T
    half = torch.from_numpy(np.spacing(np.abs(exact.numpy()).astype(np.float32))).double() / 2
    with torch.no_grad():
        y = prepared(x)
    assert y.dtype == torch.float32
    # Half of a float32 step and no more, but for the 2⁻⁵³ of the sums, of which 784 make less than 1e-6 of it.
    assert ((y.double() - exact).abs() <= half * (1 + 1e-6) + 1e-12).all()
    assert not ((x_hat @ w_hat.T).double() - exact).abs().le(half * (1 + 1e-6) + 1e-12).all()  # float32's are not such


def test_a_bias_next_to_a_tie_gets_the_code_that_the_integer_layer_adds():
    """float32's quotient of bias and step is off by up to one part in ten million: some ties would fall over."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4000))
    prepared = qlearn.nn.prepare_qat(model, QuantConfig(symmetric=True), QuantConfig(method="min_max"))
    layer = qlearn.nn.calibrate(prepared, torch.rand(20, 3), progress=False)[0]
    inputs, weights = layer.observer.qparams(), layer.find_weight_qparams()
    step = float(inputs.scale) * float(weights.scale)
    with torch.no_grad():
        layer.layer.bias.copy_((torch.arange(4000) + 0.5).double() * step)
        silent = prepared(torch.zeros(1, 3))[0]
    codes = qlearn.nn.convert(prepared)[0].bias_codes
    assert torch.equal(torch.round(silent.double() / step).int(), codes)
    in_float32 = torch.round(layer.layer.bias.detach() / (inputs.scale * weights.scale)).int()
    assert (in_float32 != codes).any()  # so that the comparison can fail


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3, padding=1), nn.ConvTranspose2d(2, 3, 3), nn.Conv1d(2, 3, 3)])
def test_a_few_images_at_a_time_come_out_as_all_at_once(layer, monkeypatch):
    x = torch.randn((7, 2, 9) if type(layer) is nn.Conv1d else (7, 2, 9, 8))
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare_qat(layer), x, progress=False)
    wanted = prepared(x)
    monkeypatch.setattr("qlearn.nn.qat.TILE", 3 * x[0].numel() * layer.weight[0, 0].numel())
    assert prepared._at_once(x) == 3 and torch.equal(prepared(x), wanted)
    assert torch.equal(prepared(x[0]), wanted[0])
