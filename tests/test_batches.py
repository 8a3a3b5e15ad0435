"""Batches as people have them: what is understood, what is refused and with which sentence, what is left as it was."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest
import torch
from torch import nn

from qlearn import nn as qnn
from qlearn.nn.batches import call, device_of, evaluating, listed, one_tensor, outputs


class Two(nn.Module):
    """Takes two inputs, the second one by choice."""

    def forward(self, tokens, mask=None):
        return tokens if mask is None else tokens * mask


class Detector(nn.Module):
    """Takes a list of images, each of its own size."""

    def forward(self, images):
        return [image.sum() for image in images]


class Anything(nn.Module):
    def forward(self, x, **more):
        return x + sum(more.values())


class AnyNumber(nn.Module):
    def forward(self, *inputs):
        return sum(inputs)


class Beside(nn.Module):
    """As the models of the transformers library."""

    def forward(self, tokens, mask=None, **more):
        return tokens if mask is None else tokens * mask


class Both(nn.Module):
    def forward(self, tokens, mask):
        return tokens * mask


ONE = nn.Identity()
X = torch.arange(12.0).reshape(3, 4)
IMAGES = torch.arange(24.0).reshape(2, 3, 2, 2)
Pair = collections.namedtuple("Pair", "image label")


# --- one batch --------------------------------------------------------------------------------------------------------

UNDERSTOOD = {
    "a tensor": (ONE, X, X),
    "a tensor in a list": (ONE, [X], X),
    "a tensor in a tuple": (ONE, (X,), X),
    "classes": (ONE, (X, torch.tensor([0, 1, 2])), X),
    "classes in a list": (ONE, [X, [0, 1, 2]], X),
    "words as labels": (ONE, (X, ("cat", "dog", "cow")), X),
    "numbers to predict": (ONE, (X, torch.zeros(3)), X),
    "one number each to predict": (ONE, (X, torch.zeros(3, 1)), X),
    "classes of pixels": (ONE, (IMAGES, torch.zeros(2, 2, 2, dtype=torch.int64)), IMAGES),
    "boxes of each image": (ONE, (IMAGES, [{"boxes": 1}, {"boxes": 2}]), IMAGES),
    "a named tuple": (ONE, Pair(X, torch.tensor([0, 1, 2])), X),
    "a dictionary": (ONE, {"input": X}, X),
    "a dictionary of two": (Two(), {"tokens": X, "mask": 2 * X}, 2 * X * X),
    "a dictionary of two and classes": (Two(), [{"tokens": X, "mask": 2 * X}, torch.tensor([0, 1, 2])], 2 * X * X),
    "a dictionary of one of two": (Two(), {"tokens": X}, X),
    "a tensor for the first of two": (Two(), X, X),
    "more keywords": (Anything(), {"x": X, "bias": 1, "gain": 2}, X + 3),
}


@pytest.mark.parametrize(("model", "batch", "expected"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_batches_that_are_clear_are_understood(model, batch, expected):
    assert torch.equal(call(model, batch), expected)


def test_a_list_of_images_is_what_a_detector_takes():
    small, large = torch.ones(3, 2, 2), torch.ones(3, 5, 4)
    assert call(Detector(), ([small, large], [{"boxes": 1}, {"boxes": 2}])) == [12, 60]


def test_a_layer_by_itself_takes_inputs_and_classes():
    x, classes = torch.rand(3, 2, 4, 4), torch.tensor([0, 1, 2])
    for layer in (
        nn.ConvTranspose2d(2, 2, 3),
        qnn.prepare(nn.ConvTranspose2d(2, 2, 3)),
        qnn.prepare_qat(nn.Conv2d(2, 2, 3)),
    ):
        assert qnn.calibrate(
            qnn.prepare(layer) if isinstance(layer, nn.ConvTranspose2d) else layer, [(x, classes)], progress=False
        ).observer.seen
    converted = qnn.convert(qnn.prepare(nn.Conv2d(2, 2, 3), activations=None))
    assert torch.equal(call(converted, (x, classes)), converted(x))


def test_a_layer_that_is_given_no_tensor_is_named():
    prepared = qnn.prepare(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    with pytest.raises(TypeError, match="layer '0': its input is a list: it must be a tensor"):
        qnn.calibrate(prepared, [([X, X], torch.tensor([0, 1, 2]))], progress=False)


HOW = r"say how the network takes it: forward=lambda model, batch: model\(…\)"
REFUSED = {
    "two inputs": (Two(), (X, X), ValueError, rf"has 2 parts, and the network takes up to 2 inputs \(tokens, mask\).*{HOW}"),
    "an input and classes": (Two(), (X, torch.tensor([0, 1, 2])), ValueError, "may be an input or labels"),
    "an input and a mask for any number": (AnyNumber(), (X, X > 0), ValueError, rf"takes any number of inputs \(\*\), so that the second may be an input or labels: {HOW}"),
    "tokens and a mask for names beside": (Beside(), (X.long(), X.long()), ValueError, r"takes up to 2 inputs \(tokens, mask\), so that the second may be"),
    "one input of two": (Both(), X, ValueError, rf"does not hold what the network takes \(missing a required argument: 'mask'\): {HOW}"),
    "one name of two": (Both(), {"tokens": X}, ValueError, "missing a required argument: 'mask'"),
    "two images": (ONE, (IMAGES, IMAGES), ValueError, rf"a batch has 2 parts that all look like inputs: {HOW}"),
    "two alike": (ONE, (X, X), ValueError, "2 parts that all look like inputs"),
    "three parts": (ONE, (X, X, torch.tensor([0, 1, 2])), ValueError, "3 parts that all look like inputs"),
    "a key that is no argument": (Two(), {"tokens": X, "labels": X}, ValueError, rf"'labels', and the network takes tokens, mask: {HOW}"),
    "an array": (ONE, np.ones((3, 4)), TypeError, r"NumPy arrays, but networks take tensors: nn\.to_inputs makes them of images, torch\.from_numpy of all else"),
    "an array and classes": (ONE, (np.ones((3, 4)), [1, 2, 3]), TypeError, "NumPy arrays, but networks take tensors"),
    "an array by its name": (Two(), {"tokens": X, "mask": np.ones((3, 4))}, TypeError, "NumPy arrays, but networks take tensors"),
    "a list of arrays": (ONE, ([np.ones((3, 4))], [1, 2, 3]), TypeError, "NumPy arrays, but networks take tensors"),
    "a list for one that takes a tensor": (nn.Softmax(1), ([X, X], [1, 2, 3]), AttributeError, r"the network fails on a batch of shape \(3, 4\) of torch\.float32, \(3, 4\) of"),
    "tokens that are not in the table": (nn.Embedding(3, 2), torch.tensor([7]), IndexError, r"the network fails on a batch of shape \(1,\) of torch\.int64: index out of range"),
    "a number": (ONE, 3, TypeError, "a batch is a int: wanted are tensors of inputs, dictionaries of arguments, or"),
    "a text": (ONE, "Call me", TypeError, "a batch is a str: wanted are tensors"),
    "nothing": (ONE, None, TypeError, "a batch is a NoneType: wanted are tensors"),
    "an empty list": (ONE, [], TypeError, "a batch is a list: wanted are tensors"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "batch", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_could_mean_something_else_is_refused(model, batch, error, message):
    with pytest.raises(error, match=message):
        call(model, batch)


def test_forward_says_it_all():
    """With it any batch is understood: it is handed over as it is."""
    seen = []

    def forward(model, batch):
        seen.append(batch)
        return model(batch[0], batch[1])

    assert torch.equal(call(Two(), (X, 2 * X), forward), 2 * X * X)
    assert torch.equal(next(outputs(Two(), [(X, 3 * X)], forward=forward)), 3 * X * X)
    assert len(seen) == 2 and seen[0][0] is X


# --- many batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (256, [256]), (257, [256, 1]), (600, [256, 256, 88])])
def test_one_tensor_is_cut_into_batches(count, sizes):
    x = torch.arange(2.0 * count).reshape(count, 2)
    pieces = list(outputs(ONE, x))
    assert [len(piece) for piece in pieces] == sizes
    assert torch.equal(torch.cat(pieces), x)


def test_loaders_keep_their_length_and_generators_are_read_once():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.arange(3)), batch_size=2)
    assert [len(y) for y in outputs(ONE, loader)] == [2, 1]
    assert [len(y) for y in outputs(ONE, (part for part in (X, X[:1])))] == [3, 1]
    assert listed([X, X]) == [X, X]
    assert len(listed(torch.zeros(700, 1))) == 3


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "there is no batch: the loader is empty"),
        ((), ValueError, "there is no batch"),
        (iter(()), ValueError, "there is no batch"),
        (torch.zeros(0, 3), ValueError, "there is no batch"),
        (torch.utils.data.DataLoader([]), ValueError, "there is no batch"),
        ({"input": X}, TypeError, r"batches is a dict: wanted is a list of batches, \[batch\] for one"),
        (7, TypeError, "batches is a int: wanted is a list of batches"),
        (None, TypeError, "batches is a NoneType: wanted is a list of batches"),
        ((X, torch.arange(3)), TypeError, r"may be one batch or several: .*\[\(inputs, labels\)\] for one batch"),
        ((X, X, X), TypeError, "batches is a tuple of tensors, which may be one batch or several"),
        ("Call me", TypeError, "a batch is a str"),
        (np.ones((3, 4)), TypeError, "NumPy arrays, but networks take tensors"),
        (torch.tensor(3.0), ValueError, r"batches is a single number, a tensor of shape \(\)"),
    ],
)
def test_what_is_no_list_of_batches_is_refused(batches, error, message):
    with pytest.raises(error, match=message):
        list(outputs(ONE, batches))


# --- what is left as it was -------------------------------------------------------------------------------------------


def odd_modes():
    """A network in which some modules train and others do not."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)), nn.ReLU()).train()
    model[1][1].eval()
    return model, [module.training for module in model.modules()]


def test_networks_run_in_eval_mode_without_gradients_and_get_each_mode_back():
    model, before = odd_modes()
    for y in outputs(model, [X, X]):
        assert not any(module.training for module in model.modules()) and not y.requires_grad
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("how", ["closed", "an error of the network", "an error of the loader"])
def test_a_pass_that_ends_early_leaves_everything_as_it_was(how):
    model, before = odd_modes()

    def batches():
        yield X
        if how == "an error of the loader":
            raise OSError
        yield X[:, :3]

    running = outputs(model, batches())
    next(running)
    if how == "closed":
        running.close()
    else:
        with pytest.raises((OSError, RuntimeError)):
            next(running)
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_a_pass_that_rests_between_two_batches_turns_off_no_gradients_outside():
    """Somebody may look at each output and compute with it: gradients are off while the network runs, not after."""
    running = outputs(ONE, [X, X])
    next(running)
    assert torch.is_grad_enabled()
    running.close()


def test_modes_come_back_after_an_error_inside():
    model, before = odd_modes()
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        raise KeyboardInterrupt
    assert [module.training for module in model.modules()] == before


# --- what comes out ---------------------------------------------------------------------------------------------------


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    "output", [X, {"logits": X, "loss": None}, Output(X), (X, "hidden"), [X], collections.OrderedDict(logits=X)]
)
def test_logits_are_found(output):
    assert one_tensor(output) is X


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"loss": X, "hidden": X}, r"puts out a dict with loss, hidden, and no logits: .*model\(batch\)\[…\]"),
        (None, "puts out a NoneType, and no logits"),
        ((), "puts out a tuple, and no logits"),
        (["a"], "puts out a list, and no logits"),
        (Output(None), "puts out a Output, and no logits"),
    ],
)
def test_outputs_without_logits_are_refused(output, message):
    with pytest.raises(TypeError, match=message):
        one_tensor(output)


def test_where_a_network_is():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")


def test_sentences_end_and_name_no_machine():
    for *_, message in REFUSED.values():
        assert not re.search(r"/home|/work|0x", message)
