"""Bias correction: after it each channel has the mean that it had in float."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import qlearn
from networks import copy_is_separate
from qlearn import PerAxis, PerTensor, QuantConfig, datasets
from qlearn.nn.bias_correction import correct_bias, corrected_bias
from qlearn.nn.training import to_inputs

ROUGH = QuantConfig(bits=3, symmetric=True, granularity=PerAxis(0))
INPUTS = {"static": QuantConfig(), "dynamic": QuantConfig(method="dynamic"), "weight only": None}


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 14 * 14, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )


@pytest.fixture(scope="module")
def digits():
    return datasets.mnist_arrays()


@pytest.fixture(scope="module")
def images(digits) -> torch.Tensor:
    return to_inputs(digits.calibration.images[:300])


def converted(model, images, weights=ROUGH, activations=QuantConfig()):
    prepared = qlearn.nn.prepare(model, weights, activations)
    return qlearn.nn.convert(qlearn.nn.calibrate(prepared, images, progress=False))


def means_of(model, name, x):
    """The mean of each channel of one layer, in NumPy."""
    heard = []
    model = copy.deepcopy(model)
    model.get_submodule(name).register_forward_hook(lambda *call: heard.append(call[2]))
    with torch.no_grad():
        model(x)
    y = heard[0].numpy().astype(np.float64)
    return y.mean(axis=(0, 2, 3)) if y.ndim == 4 else y.mean(axis=0)


def half_a_step(layer):
    """How near the mean of an integer layer can be brought to any number."""
    return layer.output_scale.reshape(-1).expand(len(layer.weight_codes)).numpy() / 2


def test_every_layer_has_the_means_that_it_had_in_float(images):
    model = small_network()
    rough = converted(model, images)
    before = copy.deepcopy(rough.state_dict())
    fine = correct_bias(rough, model, images)
    assert copy_is_separate(before, rough)
    for name in ("0", "3", "5"):
        wanted = means_of(model, name, images)
        off_before = np.abs(means_of(rough, name, images) - wanted)
        off = np.abs(means_of(fine, name, images) - wanted)
        bound = half_a_step(fine.get_submodule(name))
        assert (off <= bound + 1e-6 * np.abs(wanted).max()).all()  # outputs are rounded to float32 on their way here
        assert off_before.max() > 10 * bound.max()
    assert fine[0].bias_codes.dtype == torch.int32  # of a layer that had none


@pytest.mark.parametrize("kind", INPUTS)
def test_layers_of_every_kind(images, kind):
    model = small_network()
    fine = correct_bias(converted(model, images, activations=INPUTS[kind]), model, images)
    x = images if kind != "dynamic" else images[:256]  # a dynamic layer looks at batches, of 256 here
    if kind == "dynamic":
        fine = correct_bias(converted(model, images, activations=INPUTS[kind]), model, x)
    with torch.no_grad():
        wanted, found = model(x).mean(0), fine(x).mean(0)
    bound = half_a_step(fine[5]).max() if kind == "static" else 0
    assert (wanted - found).abs().max() <= bound + 1e-5  # float32 biases and sums, of numbers around 1


def test_correcting_twice_is_correcting_once(images):
    model = small_network()
    once = correct_bias(converted(model, images), model, images)
    assert copy_is_separate(once.state_dict(), correct_bias(once, model, images))


def test_nothing_is_corrected_where_nothing_is_rounded():
    """Weights, bias and inputs lie on their grids, so that the integer layer is the float layer."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3.0, 7.0], [7.0, 0.0, 2.0]]))
        layer.bias.copy_(torch.tensor([5.0, -2.0]))
    x = torch.randint(0, 16, (50, 3)).float()
    x[0, 0] = 15
    exact = converted(layer, x, QuantConfig(bits=4, symmetric=True), QuantConfig(bits=4))
    assert copy_is_separate(exact.state_dict(), correct_bias(exact, layer, x))


def test_each_layer_is_measured_on_what_the_corrected_ones_before_it_put_out(images):
    """Correcting all layers at once would count the first layer's error twice."""
    model = small_network()
    rough = converted(model, images)
    at_once = copy.deepcopy(rough)
    for name in ("0", "3", "5"):
        layer = at_once.get_submodule(name)
        shift = means_of(model, name, images) - means_of(rough, name, images)
        steps = torch.from_numpy(np.rint(shift / (2 * half_a_step(layer)))).to(torch.int32)
        layer.bias_codes = steps if layer.bias_codes is None else layer.bias_codes + steps
    wanted = means_of(model, "5", images)
    off = [np.abs(means_of(m, "5", images) - wanted).max() for m in (at_once, correct_bias(rough, model, images))]
    assert off[0] > 10 * off[1]


def test_batches_may_be_a_tensor_a_list_pairs_or_used_up_by_one_pass(images):
    model = small_network()
    rough = converted(model, images)
    wanted = correct_bias(rough, model, images)
    halves = [images[:150], images[150:]]
    for batches in (halves, [(half, torch.zeros(150)) for half in halves], iter(halves)):
        found = correct_bias(rough, model, batches)
        for name, value in found.state_dict().items():
            # In another order of sums a mean may round to the other side of a tie between two steps.
            assert (value - wanted.state_dict()[name]).abs().max() <= (1 if name.endswith("bias_codes") else 0)


def test_shared_layers_are_corrected_once_over_all_their_calls():
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.rand(200, 5)
    fine = correct_bias(converted(model, x, activations=None), model, x)
    assert fine[0] is fine[2]
    with torch.no_grad():
        wanted = model[0](x).mean(0) + model(x).mean(0)
        once = fine[0](x).mean(0) + fine[2](fine[1](fine[0](x))).mean(0)
        off = converted(model, x, activations=None)
        before = off[0](x).mean(0) + off(x).mean(0)
    assert (wanted - once).abs().max() < (wanted - before).abs().max()


def test_the_formula_on_arrays():
    bias, y, y_hat = np.array([1.0, -2.0]), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 2.0], [2.0, 6.0]])
    assert corrected_bias(bias, y.mean(0), y_hat.mean(0)).tolist() == [2.0, -3.0]


def test_bad_input_is_named(images):
    model = small_network()
    rough = converted(model, images)
    with pytest.raises(ValueError, match="no quantized layers: nn.convert makes them"):
        correct_bias(model, model, images)
    with pytest.raises(
        ValueError, match=r"layer '3' with weights \(12, 784\), and the float network has a Linear of an"
    ):
        correct_bias(rough, nn.Sequential(*model[:3], nn.Linear(784, 5)), images)
    with pytest.raises(ValueError, match="layer '5' .* and the float network has no such layer"):
        correct_bias(rough, model[:5], images)
    with pytest.raises(ValueError, match="there is no batch"):
        correct_bias(rough, model, [])
    with pytest.raises(TypeError, match="networks take tensors"):
        correct_bias(rough, model, [images.numpy()])
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[3].bias[2] = torch.inf
    with pytest.raises(ValueError, match="layer '3' puts out values that are not finite"):
        correct_bias(rough, broken, images)
    with torch.no_grad():
        broken[3].bias[2] = 1e12
    with pytest.raises(ValueError, match="layer '3': the corrected bias would be .* steps of the accumulator"):
        correct_bias(rough, broken, images)


def test_a_layer_that_no_image_reaches_is_named(images):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model, x = Half(), torch.rand(20, 4)
    with pytest.raises(RuntimeError, match="no data has reached unused"):
        correct_bias(converted(model, x, activations=None), model, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bits, method, gain",
    [
        (2, "mse", 0.05),  # measured 82.0 → 90.5 %
        (3, "min_max", 0.02),  # measured 92.3 → 96.6 %
    ],
)
def test_correction_gains_points_where_bits_are_few(digits, bits, method, gain):
    """The equalized CNN, one scale for all weights of a layer, all test digits."""
    model = qlearn.nn.equalize(qlearn.nn.fold_batch_norm(qlearn.nn.load_trained("cnn")))
    calibration = to_inputs(digits.calibration.images)
    rough = converted(
        model, calibration, QuantConfig(bits=bits, symmetric=True, granularity=PerTensor(), method=method)
    )
    fine = correct_bias(rough, model, calibration)
    assert qlearn.nn.accuracy(fine, *digits.test) >= qlearn.nn.accuracy(rough, *digits.test) + gain


@pytest.mark.parametrize("kind", INPUTS)
def test_sequences_have_their_channels_last_and_the_mean_is_over_all_their_steps(kind):
    """(N, T, C): 7 steps of 5 numbers. With T = C a wrong axis would only give wrong numbers."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7)), torch.rand(40, 7, 5)
    rough = converted(model, x, ROUGH, INPUTS[kind])
    fine = correct_bias(rough, model, x)
    for layer in (0, 2):
        with torch.no_grad():
            wanted = model[: layer + 1](x).mean((0, 1))
            found = fine[: layer + 1](x).mean((0, 1))
            before = rough[: layer + 1](x).mean((0, 1))
        # An integer layer's bias moves in whole steps; what else is left is float32's rounding of numbers around 1.
        bound = float(half_a_step(fine[layer]).max()) if kind == "static" else 0
        assert (found - wanted).abs().max() <= bound + 1e-5
        assert (before - wanted).abs().max() > 3 * (bound + 1e-5)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 5, 3, padding=2, stride=2), (40, 3, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (30, 4, 6, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (30, 4, 5, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_windows_at_the_border_count_as_those_inside(layer, shape, kind):
    """The mean output comes from the mean image: zeros around it, and places that overlap, included."""
    torch.manual_seed(0)
    model, x = nn.Sequential(layer, nn.ReLU()), torch.rand(shape)
    rough = converted(model, x, ROUGH, INPUTS[kind])
    fine = correct_bias(rough, model, x, progress=False)
    axes = [axis for axis in range(len(shape)) if axis != 1]
    with torch.no_grad():
        wanted, before, found = (network[0](x).double().mean(axes) for network in (model, rough, fine))
    bound = float(half_a_step(fine[0]).max()) if kind == "static" else 0
    assert (found - wanted).abs().max() <= bound + 1e-6  # float32 outputs and biases, of numbers around 1
    assert (before - wanted).abs().max() > 3 * (bound + 1e-6)


def test_batches_of_different_sizes_count_by_their_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2))
    batches = [torch.rand(9, 2, 8, 8), torch.rand(2, 2, 5, 6), torch.rand(4, 2, 8, 8) + 1]
    fine = correct_bias(converted(model, batches, activations=None), model, batches, progress=False)
    with torch.no_grad():
        wanted, found = (
            torch.cat([network(x).transpose(0, 1).flatten(1) for x in batches], 1).mean(1) for network in (model, fine)
        )
    assert (wanted - found).abs().max() <= 1e-6  # float32 outputs and biases, of numbers around 1


def test_each_network_is_gone_through_once(images):
    """A chain of layers: a pass for each batch through both, whatever the number of layers, and other ways to call it."""
    model = nn.Sequential(small_network()[:3], nn.Sequential(*small_network()[3:]))
    rough = converted(model, images)
    wanted = correct_bias(rough, model, images, progress=False).state_dict()
    calls: dict[str, int] = {}
    for which, network in (("float", model), ("quantized", rough)):
        for place in ((0, 0), (1, 0)):
            network[place[0]][place[1]].register_forward_hook(
                lambda *_, key=f"{which} {place}": calls.update({key: calls.get(key, 0) + 1})
            )
    batches = [{"pixels": part} for part in images.split(100)]
    found = correct_bias(rough, model, batches, forward=lambda m, batch: m(batch["pixels"]), progress=False)
    assert list(calls.values()) == [3] * 4
    for name, value in found.state_dict().items():
        # In another order of sums a mean may round to the other side of a tie between two steps.
        assert (value - wanted[name]).abs().max() <= (1 if name.endswith("bias_codes") else 0)


def test_a_network_of_another_make_with_the_same_layers_is_no_trouble():
    """The float network calls its layers another way: then the quantized one is looked at itself."""

    class Unrolled(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.a, self.b = layers

        def forward(self, x):
            return self.b(self.a(x).relu())

    class Squared(Unrolled):
        def forward(self, x):
            return self.b(self.a(x) ** 2)

    torch.manual_seed(0)
    layers, x = [nn.Linear(4, 4), nn.Linear(4, 3)], torch.rand(60, 4)
    rough = converted(Unrolled(layers), x, activations=None)
    fine = correct_bias(rough, Squared(layers), x, progress=False)
    with torch.no_grad():
        assert (fine(x).mean(0) - Squared(layers)(x).mean(0)).abs().max() <= 1e-6  # float32, of numbers around 1


@pytest.mark.parametrize("kind", ["static", "weight only"])
def test_a_single_image_without_a_batch_axis_has_its_channels_first(kind):
    """(C, H, W): the channel is the third axis from the end, whether or not there is one of images before it."""
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(2, 3, 3)), torch.rand(6, 2, 9, 8)
    rough = converted(model, images, ROUGH, INPUTS[kind])
    together = correct_bias(rough, model, images)
    each = correct_bias(rough, model, [image for image in images])
    assert together[0].bias.shape == (3,)
    # In another order of sums a mean may round to the other side of a tie between two steps.
    assert (together[0].bias - each[0].bias).abs().max() <= (1 if kind == "static" else 1e-6)
    assert (together[0].bias - (0 if rough[0].bias is None else rough[0].bias)).abs().max() > 1e-5
