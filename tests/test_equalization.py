"""Cross-layer equalization: the function stays, the ranges become equal, and one scale for all fits again."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import qlearn
from networks import copy_is_separate, random_images, random_network
from qlearn import PerTensor, QuantConfig, datasets
from qlearn.nn.equalization import CONVERGED, equalizing_factors
from qlearn.nn.training import to_inputs


def with_pairs(seed: int) -> nn.Sequential:
    return random_network(seed, norms=False)


def has_pairs(model: nn.Module) -> bool:
    return sum(isinstance(module, (nn.Linear, nn.Conv2d)) for module in model.modules()) > 1


def ranges_of(first: nn.Module, second: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """The largest |weight| that makes each channel and that reads it, in loops over NumPy arrays."""
    made = first.weight.detach().numpy()
    read = second.weight.detach().numpy()
    channels = len(made)
    groups = getattr(second, "groups", 1)
    r1 = np.array([np.abs(made[c]).max() for c in range(channels)])
    r2 = np.empty(channels)
    for c in range(channels):
        if isinstance(second, nn.Linear):
            block = read.shape[1] // channels
            r2[c] = np.abs(read[:, c * block : (c + 1) * block]).max()
        else:
            inside, outputs = channels // groups, len(read) // groups
            group = c // inside
            r2[c] = np.abs(read[group * outputs : (group + 1) * outputs, c % inside]).max()
    return r1, r2


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


@given(st.integers(0, 10_000))
def test_any_network_computes_what_it_did_and_its_ranges_are_equal(seed):
    model = qlearn.nn.unequalize(with_pairs(seed), seed=seed)
    before = copy.deepcopy(model.state_dict())
    equal = qlearn.nn.equalize(model)
    x = random_images(seed)
    with torch.no_grad():
        wanted, found = model(x), equal(x)
    # Sums of a few hundred float64 products through at most six layers.
    assert (wanted - found).abs().max() <= 1e-12 * wanted.abs().max()
    assert copy_is_separate(before, model)
    layers = layers_of(equal)
    for first, second in pairwise(layers):
        r1, r2 = ranges_of(first, second)
        # The last sweep moved nothing by more than CONVERGED, and a pair's ranges by its factor and its neighbours'.
        np.testing.assert_allclose(r1, r2, rtol=8 * CONVERGED)


@given(st.integers(0, 10_000))
def test_unequal_networks_are_the_same_bit_for_bit(seed):
    model = with_pairs(seed).float()
    unequal = qlearn.nn.unequalize(model, seed=seed)
    x = random_images(seed).float()
    with torch.no_grad():
        assert torch.equal(model(x), unequal(x))
    factors = layers_of(unequal)[0].weight / layers_of(model)[0].weight
    exponents = torch.log2(factors)
    assert torch.equal(exponents, exponents.round()) and exponents.abs().max() <= 5  # 2⁵ = 32 is about 10^1.5


def test_where_equalization_ends_does_not_depend_on_where_it_began():
    model = with_pairs(5)
    ends = [qlearn.nn.equalize(model)]
    ends += [qlearn.nn.equalize(qlearn.nn.unequalize(model, seed=seed)) for seed in range(5)]
    ends.append(qlearn.nn.equalize(ends[0]))
    for end in ends[1:]:
        for name, value in end.state_dict().items():
            torch.testing.assert_close(value, ends[0].state_dict()[name], rtol=1e-5, atol=0)


def test_two_layers_in_closed_form():
    """One pair needs one step: w₁/s and w₂·s with s = √(r₁/r₂), in NumPy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    w1, b1, w2 = (p.detach().numpy() for p in (model[0].weight, model[0].bias, model[2].weight))
    s = np.sqrt(np.abs(w1).max(axis=1) / np.abs(w2).max(axis=0))
    equal = qlearn.nn.equalize(model)
    for found, wanted in ((equal[0].weight, w1 / s[:, None]), (equal[0].bias, b1 / s), (equal[2].weight, w2 * s)):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-12)
    assert torch.equal(equal[2].bias, model[2].bias)


def test_after_flatten_a_channel_is_a_block_of_columns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 4, 2)).double()
    unequal = qlearn.nn.unequalize(model, seed=1)
    factors = (unequal[4].weight / model[4].weight).detach()
    assert len(factors.unique()) > 1
    assert all(len(block.unique()) == 1 for block in factors.split(4, dim=1))


def test_numpy_and_pytorch_give_the_same_factors():
    r1, r2 = np.array([8.0, 1e-300, 0.0, 3.0, 0.0]), np.array([2.0, 1e300, 5.0, 0.0, 0.0])
    by_numpy = equalizing_factors(r1, r2)
    assert np.array_equal(by_numpy, equalizing_factors(torch.tensor(r1), torch.tensor(r2)).numpy())
    assert by_numpy.tolist() == [2.0, 1e-300, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("dead", ["made", "read"])
def test_dead_channels_stay_as_they_are(dead):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        (model[0].weight[1] if dead == "made" else model[2].weight[:, 1]).zero_()
    equal = qlearn.nn.equalize(model)
    assert torch.equal(equal[0].weight[1], model[0].weight[1])
    assert torch.equal(equal[0].bias[1], model[0].bias[1])
    assert torch.equal(equal[2].weight[:, 1], model[2].weight[:, 1])
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(equal(x), model(x), rtol=1e-12, atol=1e-12)
    every = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    for parameter in every.parameters():
        nn.init.zeros_(parameter)
    assert copy_is_separate(every.state_dict(), qlearn.nn.equalize(every))


def without_pairs():
    conv, linear, tied = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = (other := nn.Linear(4, 4)).weight
    yield "one layer", linear
    yield "ReLU6 caps", nn.Sequential(conv, nn.ReLU6(), nn.Conv2d(4, 4, 3))
    yield "sigmoid bends", nn.Sequential(linear, nn.Sigmoid(), nn.Linear(4, 4))
    yield "a layer used twice", nn.Sequential(linear, nn.ReLU(), linear)
    yield "weights of two layers", nn.Sequential(tied, nn.ReLU(), other)
    yield "an unknown module between", nn.Sequential(conv, nn.LocalResponseNorm(2), nn.Conv2d(4, 4, 3))
    yield "a linear layer on rows of an image", nn.Sequential(conv, nn.ReLU(), nn.Linear(4, 4))
    yield "pooling over a linear layer's outputs", nn.Sequential(linear, nn.MaxPool2d(2), nn.Linear(2, 2))
    yield "flatten that mixes tokens", nn.Sequential(linear, nn.Flatten(), nn.Linear(12, 2))
    yield "flatten that keeps an axis", nn.Sequential(conv, nn.Flatten(2), nn.Linear(36, 4))
    yield "back to an image", nn.Sequential(linear, nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1))
    yield "not in a Sequential", nn.ModuleList([linear, nn.Linear(4, 4)])


@pytest.mark.parametrize("model", [pytest.param(model, id=name) for name, model in without_pairs()])
def test_what_cannot_be_equalized_is_refused(model):
    for function, verb in ((qlearn.nn.equalize, "equalize"), (qlearn.nn.unequalize, "unequalize")):
        with pytest.raises(ValueError, match=f"has nothing to {verb}: no linear map's channels are read by"):
            function(model)


def test_what_the_order_does_not_say_is_left_as_it_is_beside_what_can_be_equalized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match="equalized 1 of 2 layers; left: 2 .'3' reads it"):
        equal = qlearn.nn.equalize(model)
    assert torch.equal(equal[4].weight, model[4].weight) and not torch.equal(equal[0].weight, model[0].weight)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"'bn1' is a batch norm: call nn.fold_batch_norm\(model\) first"):
        qlearn.nn.equalize(qlearn.nn.load_trained("cnn"))
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    for spread in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="spread=.* must be 0 or more"):
            qlearn.nn.unequalize(model, spread=spread)
    assert copy_is_separate(model.state_dict(), qlearn.nn.unequalize(model, spread=0))
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer '2' has weights that are not finite"):
        qlearn.nn.equalize(model)
    half = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).half()
    with torch.no_grad():
        half[0].weight.mul_(60_000)
    with pytest.raises(
        ValueError, match="layer '0': its weight would have values that are not finite in torch.float16"
    ):
        qlearn.nn.unequalize(half, spread=3)


class Branching(nn.Module):
    """Two readers of one layer, a residual sum, a gated product, and functions where modules could be."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.ConvTranspose2d(4, 5, 1)
        self.up, self.gate, self.down = nn.Linear(5 * 9, 6), nn.Linear(5 * 9, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = functional.max_pool2d(self.stem(x).relu(), 2)
        x = self.left(x) + self.right(functional.leaky_relu(x))
        x = x.view(x.size(0), -1)
        return self.down(self.up(x) * self.gate(x).sigmoid())


def test_code_of_one_s_own_with_several_readers():
    torch.manual_seed(0)
    model, x = Branching(), torch.randn(4, 3, 8, 8)
    with pytest.warns(UserWarning) as said:
        equal = qlearn.nn.equalize(model.double())
    (text,) = [" ".join(str(w.message).split()) for w in said]
    assert text == "equalized 2 of 5 layers; left: left, right ('add' reads it), gate ('sigmoid' reads it)"
    with torch.no_grad():
        torch.testing.assert_close(equal(x.double()), model(x.double()), rtol=1e-12, atol=1e-12)
    made = equal.stem.weight.abs().amax((1, 2, 3))
    read = torch.maximum(equal.left.weight.abs().amax((0, 2, 3)), equal.right.weight.abs().amax((1, 2, 3)))
    torch.testing.assert_close(made, read, rtol=8 * CONVERGED, atol=0)
    with pytest.warns(UserWarning):
        unequal = qlearn.nn.unequalize(model.float())
    with torch.no_grad():
        assert torch.equal(unequal(x), model(x)) and not torch.equal(unequal.stem.weight, model.stem.weight)


def test_what_folding_leaves_can_be_equalized_and_folding_is_advised_where_it_helps():
    class Net(nn.Module):
        def __init__(self, between):
            super().__init__()
            self.a, self.between, self.b = nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.b(functional.relu(self.between(self.a(x))))

    model = Net(nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="'between' is a batch norm: call nn.fold_batch_norm"):
        qlearn.nn.equalize(model)
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            qlearn.nn.equalize(qlearn.nn.fold_batch_norm(model))(x), model(x), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError) as error:
        qlearn.nn.equalize(Net(nn.Sequential(nn.Hardswish(), nn.BatchNorm2d(4))).eval())
    assert "fold_batch_norm" not in str(error.value) and "'between.0' reads it" in str(error.value)


# --- the lesson's network, all test digits ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return datasets.mnist_arrays()


@pytest.fixture(scope="module")
def network():
    return qlearn.nn.fold_batch_norm(qlearn.nn.load_trained("cnn"))


def accuracy_at(bits, model, digits):
    prepared = qlearn.nn.prepare(model, QuantConfig(bits=bits, symmetric=True, granularity=PerTensor()), QuantConfig())
    qlearn.nn.calibrate(prepared, to_inputs(digits.calibration.images), progress=False)
    return qlearn.nn.accuracy(qlearn.nn.convert(prepared), *digits.test)


def test_the_shipped_network_keeps_its_logits(network, digits):
    x = to_inputs(digits.test.images)
    with torch.no_grad():
        wanted, found = network(x), qlearn.nn.equalize(network)(x)
        assert torch.equal(wanted, qlearn.nn.unequalize(network)(x))
    assert (wanted - found).abs().max() <= 1e-6 * wanted.abs().max()  # measured 4e-7: float32 rounds other products
    assert torch.equal(wanted.argmax(1), found.argmax(1))


@pytest.mark.slow
def test_equalization_repairs_one_scale_for_all(network, digits):
    """The floor: 8 bits per tensor from below 85 % to within 0.3 points of float; 6 bits with the same margin."""
    in_float = qlearn.nn.accuracy(network, *digits.test)
    unequal = qlearn.nn.unequalize(network, seed=0)
    assert accuracy_at(8, unequal, digits) < 0.85  # measured 16 %; 19 to 39 % with seeds 1 to 7
    equal = qlearn.nn.equalize(unequal)  # the same for every seed: where it ends does not depend on where it began
    assert accuracy_at(8, equal, digits) >= in_float - 0.003  # measured 0.04 points
    assert accuracy_at(6, equal, digits) >= in_float - 0.003  # measured 0.01 points
