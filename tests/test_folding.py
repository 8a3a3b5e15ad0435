"""Batch norms are folded into the layers before them, and the network computes what it did."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import qlearn
from networks import copy_is_separate, random_images, random_network
from qlearn import datasets
from qlearn.nn.folding import FoldedNorm, folded
from qlearn.nn.training import to_inputs

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trained_norm(kind, size):
    norm = kind(size)
    norm.running_mean, norm.running_var = torch.randn(size), 0.5 + torch.rand(size)
    return norm.eval()


@given(st.integers(0, 10_000))
def test_any_network_computes_what_it_did(seed):
    model = random_network(seed)
    before = copy.deepcopy(model.state_dict())
    simple = qlearn.nn.fold_batch_norm(model)
    assert not any(isinstance(module, NORMS) for module in simple.modules())
    x = random_images(seed)
    with torch.no_grad():
        wanted, found = model(x), simple(x)
    # Sums of a few hundred float64 products through at most six layers: measured below 1e-14 of the largest.
    assert (wanted - found).abs().max() <= 1e-12 * wanted.abs().max()
    assert copy_is_separate(before, model)
    assert not simple.training
    assert [name for name, _ in simple.named_modules()] == [name for name, _ in model.named_modules()]


@pytest.mark.parametrize("bias", [True, False])
def test_numpy_and_pytorch_fold_alike_and_as_the_definition_says(bias):
    torch.manual_seed(0)
    layer, norm = nn.Linear(6, 4, bias=bias).double(), trained_norm(nn.BatchNorm1d, 4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    parts = {"gamma": norm.weight, "beta": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
    parts = {name: value.detach() for name, value in parts.items()}
    by_torch = folded(layer.weight.detach(), layer.bias.detach() if bias else None, **parts)
    by_numpy = folded(
        layer.weight.detach().numpy(),
        layer.bias.detach().numpy() if bias else None,
        **{name: value.numpy() for name, value in parts.items()},
    )
    for a, b in zip(by_torch, by_numpy, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-15)  # one rounding: pow differs in its last digit
    x = torch.randn(7, 6, dtype=torch.float64)
    weight, shift = by_torch
    with torch.no_grad():
        torch.testing.assert_close(x @ weight.T + shift, norm(layer(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
def test_pytorch_s_own_folding_agrees(affine):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, groups=2).double(), nn.BatchNorm2d(6, affine=affine).double()
    norm.running_mean, norm.running_var = torch.randn(6).double(), 0.5 + torch.rand(6).double()
    model = nn.Sequential(conv, norm).eval()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    wanted = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
    found = qlearn.nn.fold_batch_norm(model)[0]
    # A few roundings in float64 on both sides.
    torch.testing.assert_close(found.weight, wanted.weight, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found.bias, wanted.bias, rtol=1e-14, atol=1e-14)


def test_in_float32_each_output_is_as_exact_as_a_sum_of_products_can_be():
    """|error| ≤ (n + 4) u (Σ|w′x| + |b′|): n products and sums, and the rounding of w′, b′ and x; u = 2⁻²⁴."""
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(8, 5, 3, padding=1), trained_norm(nn.BatchNorm2d, 5)
    model = nn.Sequential(layer, norm).eval()
    simple = qlearn.nn.fold_batch_norm(model)[0]
    x = torch.randn(20, 8, 10, 10)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        sizes = nn.functional.conv2d(x.double().abs(), simple.weight.double().abs(), padding=1)
        bound = (8 * 9 + 4) * 2.0**-24 * (sizes + simple.bias.double().abs().reshape(-1, 1, 1))
        assert ((simple(x).double() - exact).abs() <= bound).all()


def test_the_shipped_network_gives_the_same_answers():
    model = qlearn.nn.load_trained("cnn")
    simple = qlearn.nn.fold_batch_norm(model)
    x = to_inputs(datasets.mnist_arrays().test.images)
    with torch.no_grad():
        wanted, found = model(x), simple(x)
    assert torch.equal(wanted.argmax(1), found.argmax(1))
    assert (wanted - found).abs().max() <= 1e-6 * wanted.abs().max()  # measured 4e-7; the docstring says 10⁻⁶
    assert [type(simple.get_submodule(name)) for name in ("bn1", "bn2")] == [nn.Identity, nn.Identity]
    assert simple.conv1.bias is not None and model.conv1.bias is None


def test_folding_twice_is_folding_once_and_a_network_without_norms_is_copied():
    once = qlearn.nn.fold_batch_norm(random_network(3))
    twice = qlearn.nn.fold_batch_norm(once)
    assert copy_is_separate(once.state_dict(), twice) and twice is not once


def test_two_norms_in_a_row_are_both_folded():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), trained_norm(nn.BatchNorm1d, 4), nn.Identity(), trained_norm(nn.BatchNorm1d, 4)
    )
    simple = qlearn.nn.fold_batch_norm(model.eval())
    assert [type(step) for step in simple] == [nn.Linear, FoldedNorm, nn.Identity, FoldedNorm]
    x = torch.randn(6, 3)
    torch.testing.assert_close(simple(x), model(x), rtol=1e-5, atol=1e-5)


def left_alone():
    conv, norm = nn.Conv2d(3, 3, 3, padding=1), trained_norm(nn.BatchNorm2d, 3)

    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    class Added(nn.Sequential):
        def forward(self, x):
            return self[1](y := self[0](x)) + y

    class Careful(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x)) if x.sum() > 0 else self[1](x)

    class Outside(nn.Sequential):
        def forward(self, x):
            y = self[0][0](x)
            return self[0][1](y if x.sum() > 0 else x)

    class Reading(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x)) * self[0].weight.sum()

    heard = nn.Conv2d(3, 3, 3)
    heard.register_forward_hook(lambda *_: None)
    tied = nn.Linear(3, 3)
    tied.weight = (other := nn.Linear(3, 3)).weight
    yield "the first step", nn.Sequential(norm, conv)
    yield "behind a ReLU", nn.Sequential(conv, nn.ReLU(), norm)
    yield "a layer used twice", nn.Sequential(conv, norm, nn.ReLU(), conv)
    yield "a norm used twice", nn.Sequential(conv, norm, nn.Conv2d(3, 3, 3), norm)
    yield "a block used twice", nn.Sequential(block := nn.Sequential(conv, norm), nn.ReLU(), block)
    yield "weights of two layers", nn.Sequential(tied, trained_norm(nn.BatchNorm1d, 3), nn.ReLU(), other)
    yield "a layer that somebody else reads, too", Added(conv, norm)
    yield "code that looks at values", Careful(conv, norm)
    yield "the steps of a Sequential, called by code that looks at values", Outside(nn.Sequential(conv, norm))
    yield "weights that the network reads without a call", Reading(conv, norm)
    yield "a layer to which a hook listens", nn.Sequential(heard, trained_norm(nn.BatchNorm2d, 3))
    own = trained_norm(nn.BatchNorm2d, 3)
    own.forward = lambda x: 2 * functional.batch_norm(x, own.running_mean, own.running_var)
    yield "a norm whose forward was replaced", nn.Sequential(nn.Conv2d(3, 3, 3), own)
    yield "across a module that is no Sequential", nn.Sequential(Doubled(conv), norm)


@pytest.mark.parametrize("model", [pytest.param(model, id=name) for name, model in left_alone()])
def test_norms_that_belong_to_no_single_layer_are_left_alone(model):
    model.eval()
    with pytest.warns(UserWarning, match="folded 0 of . batch norms; left: "):
        same = qlearn.nn.fold_batch_norm(model)
    assert copy_is_separate(model.state_dict(), same)
    assert sum(isinstance(m, NORMS) for m in same.modules()) == sum(isinstance(m, NORMS) for m in model.modules()) > 0


def test_a_shared_layer_keeps_its_place_in_the_order():
    """conv, other, conv, norm: the norm is behind the shared one, not behind `other`."""
    conv, other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, other, conv, trained_norm(nn.BatchNorm2d, 3)).eval()
    with pytest.warns(UserWarning, match="left: 3 .it follows '0', and it is used more than once"):
        assert copy_is_separate(model.state_dict(), qlearn.nn.fold_batch_norm(model))


class Functional(nn.Module):
    """Code of one's own: a residual block with its own names, and functions where modules could be."""

    def __init__(self):
        super().__init__()
        self.second, self.after = nn.Conv2d(6, 6, 3, padding=1, groups=2), trained_norm(nn.BatchNorm2d, 6)
        self.first, self.before = nn.Conv2d(3, 6, 1, bias=False), trained_norm(nn.BatchNorm2d, 6)
        self.lone = trained_norm(nn.BatchNorm2d, 6)

    def forward(self, x, mask=None):
        y = self.before(self.first(x)).relu()
        if mask is not None:
            y = y * mask
        y = y + self.after(self.second(y))
        return self.lone(y)


def same_function(model, simple, x):
    with torch.no_grad():
        # float64: a few roundings
        torch.testing.assert_close(
            simple.double()(x.double()), copy.deepcopy(model).double()(x.double()), rtol=1e-5, atol=1e-5
        )


def test_a_forward_of_one_s_own_is_followed_and_what_stays_is_named():
    torch.manual_seed(0)
    model = Functional().eval()
    with pytest.warns(UserWarning) as said:
        simple = qlearn.nn.fold_batch_norm(model)
    assert [str(w.message) for w in said] == [
        "folded 2 of 3 batch norms; left: lone (it is a BatchNorm2d and follows 'add')"
    ]
    assert type(simple.before) is type(simple.after) is nn.Identity and type(model.before) is nn.BatchNorm2d
    same_function(model, simple, torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d, (2, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d, (2, 4, 9)),
        (nn.Linear(4, 6), nn.BatchNorm1d, (5, 4)),
    ],
)
def test_every_kind_of_layer_takes_its_norm_in(layer, norm, shape, recwarn):
    torch.manual_seed(0)
    model = nn.Sequential(layer, trained_norm(norm, 6), nn.ReLU()).eval()
    simple = qlearn.nn.fold_batch_norm(model)
    assert not recwarn.list
    assert not any(isinstance(module, NORMS) for module in simple.modules())
    same_function(model, simple, torch.randn(shape))


def test_a_norm_of_other_channels_than_its_layer_makes_is_left():
    """A `BatchNorm1d` behind a Linear normalizes axis 1 of (N, L, C): here there are 5 of L and 3 of C."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(5)).eval()
    with pytest.warns(UserWarning, match="folded 0 of 1 batch norms; left: 1 .it has not as many channels as '0'"):
        folded = qlearn.nn.fold_batch_norm(model)
    x = torch.rand(2, 5, 4)
    assert torch.equal(folded(x), model(x))


def test_a_norm_along_another_axis_is_refused_when_it_is_called():
    """BatchNorm1d behind a Linear normalizes the tokens of (N, L, C), which no weight of the Linear can do."""
    model = nn.Sequential(nn.Linear(7, 4), trained_norm(nn.BatchNorm1d, 4)).eval()
    simple = qlearn.nn.fold_batch_norm(model)
    with pytest.raises(
        ValueError, match=r"inputs of 2 axes, not of shape \(3, 4, 4\).*leave it out of fold_batch_norm"
    ):
        simple(torch.randn(3, 4, 7))


def test_a_network_of_torchvision_keeps_its_outputs(recwarn):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.resnet18(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = (
                0.2 * torch.randn(len(module.weight)),
                0.5 + torch.rand(len(module.weight)),
            )
    simple = qlearn.nn.fold_batch_norm(model)
    assert not recwarn.list and not any(isinstance(module, NORMS) for module in simple.modules())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (simple(x) - model(x)).norm() <= 1e-5 * model(x).norm()  # measured 4e-7


@pytest.mark.parametrize("compute", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_computed_are_refused_by_name(compute):
    model = nn.Sequential(nn.Identity(), compute(nn.Linear(4, 3)), trained_norm(nn.BatchNorm1d, 3)).eval()
    with pytest.raises(ValueError, match="layer '1' has weights that are computed before each call"):
        qlearn.nn.fold_batch_norm(model)


def test_half_precision_stays_half_precision_and_frozen_stays_frozen():
    model = nn.Sequential(nn.Linear(4, 3), trained_norm(nn.BatchNorm1d, 3)).eval()
    model[0].half().requires_grad_(False)
    simple = qlearn.nn.fold_batch_norm(model)[0]
    assert (simple.weight.dtype, simple.bias.dtype) == (torch.float16, torch.float16)
    assert not simple.weight.requires_grad and not simple.bias.requires_grad


def test_norms_that_have_no_fixed_statistics_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match=r"'1.1' would normalize each batch .* Call model.eval\(\) first"):
        qlearn.nn.fold_batch_norm(model)
    model[1][1] = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="'1.1' would normalize each batch .* track_running_stats=True"):
        qlearn.nn.fold_batch_norm(model.eval())


@pytest.mark.parametrize("broken", ["running_mean", "running_var"])
def test_weights_that_would_not_be_finite_are_refused(broken):
    model = nn.Sequential(nn.Linear(4, 3), trained_norm(nn.BatchNorm1d, 3)).eval()
    getattr(model[1], broken)[1] = torch.nan
    name = "bias" if broken == "running_mean" else "weight"
    with pytest.raises(ValueError, match=f"'1' cannot be folded into '0': its {name} would have values that are not"):
        qlearn.nn.fold_batch_norm(model)
