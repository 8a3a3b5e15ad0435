"""What is interrupted, fails or is abandoned leaves no trace: threads, random numbers, modes, hooks, gradients, models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import qlearn
from qlearn import PerAxis, QuantConfig
from qlearn import nn as qnn
from qlearn.nn.training import training_steps

FOUR = QuantConfig(4, symmetric=True, granularity=PerAxis(0))
X, Y = torch.rand(60, 1, 3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 5
OPTIONS = {"epochs": 2, "batch_size": 7, "learning_rate": 1e-2}


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 9), nn.ReLU(), nn.Linear(9, 5)
    )
    model.register_forward_hook(lambda *_: None)
    model[4].register_forward_pre_hook(lambda *_: None)
    model.train()
    model[1].eval()  # frozen on purpose
    return model


class Watch:
    """What the world and some models look like."""

    def __init__(self, *models):
        self.models = models
        self.before = self.look()

    def look(self):
        return [
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            *(self.look_at(module) for model in self.models for module in model.modules()),
            *({name: t.tolist() for name, t in model.state_dict().items()} for model in self.models),
            *([p.grad is None for p in model.parameters()] for model in self.models),
        ]

    @staticmethod
    def look_at(module):
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        return type(module), module.training, [len(kind) for kind in hooks], sorted(vars(module))

    def unchanged(self):
        assert self.look() == self.before


class Stop(Exception):
    pass


@pytest.fixture(params=[KeyboardInterrupt, Stop, ValueError])
def error(request):
    return request.param


@pytest.fixture(autouse=True)
def two_threads():
    """So that one thread would be seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def stopping(error, after):
    """A forward that fails at a later call."""
    calls = []

    def forward(model, batch):
        calls.append(1)
        if len(calls) > after:
            raise error("stop")
        return model(batch)

    return forward


# --- functions that are given a network -------------------------------------------------------------------------------

WITH_BATCHES = {
    "calibrate": lambda model, forward: qnn.calibrate(
        qnn.prepare(model, FOUR), [X[:20], X[20:40], X[40:]], forward=forward, progress=False
    ),
    "sensitivity": lambda model, forward: qnn.sensitivity(model, [X[:20], X[20:]], bits=(4, 2), forward=forward),
    "accuracy": lambda model, forward: qnn.accuracy(model, X, Y, batch_size=11, forward=forward),
}


@pytest.mark.parametrize("function", WITH_BATCHES)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_pass_that_fails_in_the_middle_leaves_no_trace(function, after, error):
    model = network()
    watch = Watch(model)
    with pytest.raises(error):
        WITH_BATCHES[function](model, stopping(error, after))
    watch.unchanged()


@pytest.mark.parametrize("function", WITH_BATCHES)
def test_a_pass_that_succeeds_leaves_none_either(function):
    model = network()
    watch = Watch(model)
    WITH_BATCHES[function](model, None)
    watch.unchanged()


@pytest.mark.parametrize("prepare", [qnn.prepare, qnn.prepare_qat])
def test_preparing_calibrating_converting_leave_the_networks_before_as_they_are(prepare):
    model = network()
    first = Watch(model)
    prepared = prepare(model, FOUR)
    first.unchanged()
    qnn.calibrate(prepared, X, progress=False)
    first.unchanged()
    second = Watch(model, prepared)
    converted = qnn.convert(prepared)
    second.unchanged()
    qnn.accuracy(converted, X, Y)
    qnn.summary(converted)
    second.unchanged()


def test_a_calibration_that_fails_leaves_the_prepared_network_as_it_was(error):
    prepared = qnn.calibrate(qnn.prepare(network(), FOUR), X[:10], progress=False)
    watch, seen = Watch(prepared), [str(layer.observer) for layer in qnn.prepared.prepared_layers(prepared)]
    with pytest.raises(error):
        qnn.calibrate(prepared, [9 * X, X], forward=stopping(error, 1), progress=False)
    watch.unchanged()
    assert [str(layer.observer) for layer in qnn.prepared.prepared_layers(prepared)] == seen
    assert not any(layer.calibrating for layer in qnn.prepared.prepared_layers(prepared))


def test_a_conversion_that_fails_leaves_the_prepared_network_as_it_was():
    prepared = qnn.calibrate(qnn.prepare(network()), X, progress=False)
    prepared[6].layer.weight.data[2, 3] = torch.nan
    watch = Watch(prepared)
    watch.before[-2] = None  # NaN equals nothing, not even itself
    with pytest.raises(ValueError, match="layer '6': x holds 1 value that is not finite"):
        qnn.convert(prepared)
    after = watch.look()
    after[-2] = None
    assert after == watch.before


# --- training ---------------------------------------------------------------------------------------------------------


def test_between_two_steps_threads_and_random_numbers_are_the_caller_s():
    steps = training_steps(network(), X, Y, seed=0, **OPTIONS)
    watch = Watch()
    for _ in range(3):
        next(steps)
        watch.unchanged()
    steps.close()
    watch.unchanged()


@pytest.mark.parametrize("end", ["close", "forget"])
def test_steps_that_are_abandoned_leave_threads_alone_and_the_network_in_eval_mode(end):
    model = network()
    steps = training_steps(model, X, Y, seed=0, **OPTIONS)
    watch = Watch()
    next(steps)
    if end == "close":
        steps.close()
    del steps
    watch.unchanged()
    assert not any(module.training for module in model.modules())


def test_two_trainings_may_take_turns():
    """Each gives what it gives alone: neither's threads, random numbers or modes reach the other."""
    alone = []
    for seed in (0, 1):
        model = network(seed)
        alone.append((list(training_steps(model, X, Y, seed=seed, **OPTIONS)), model.state_dict()))
    models = [network(0), network(1)]
    watch = Watch()
    both = [training_steps(model, X, Y, seed=seed, **OPTIONS) for seed, model in enumerate(models)]
    losses = [list(pair) for pair in zip(*zip(*both, strict=True), strict=True)]
    watch.unchanged()
    for (expected, state), found, model in zip(alone, losses, models, strict=True):
        assert found == expected
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_training_that_fails_gives_threads_back_and_leaves_eval_mode(error):
    model = network()
    watch = Watch()
    with pytest.raises(error):
        qnn.train(model, X, Y, forward=stopping(error, 4), progress=False, **OPTIONS)
    watch.unchanged()
    assert not any(module.training for module in model.modules())


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_network():
    model = network()
    images = X.clone()
    images[-20:] = torch.nan
    with pytest.raises(ValueError, match=r"the loss is nan: .*The network is as it was after the step before"):
        qnn.train(model, images, Y, progress=False, **OPTIONS)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_training_leaves_the_network_that_was_prepared_alone():
    model = network()
    watch = Watch(model)
    prepared = qnn.prepare_qat(model, FOUR, learned_step_size=True)
    qnn.train(prepared, X, Y, progress=False, **OPTIONS)
    watch.unchanged()
    before = copy.deepcopy(prepared.state_dict())
    qnn.convert(prepared)
    assert all(torch.equal(before[name], tensor) for name, tensor in prepared.state_dict().items())


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["generate", "perplexity"])
def test_reading_and_writing_leave_no_trace(function):
    torch.manual_seed(0)
    model = qlearn.nn.LanguageModel(width=8, heads=2, hidden=16, blocks=1, dropout=0.5).train()
    watch = Watch(model)
    if function == "generate":
        qnn.generate(model, "Call me", length=3)
    else:
        qnn.perplexity(model, "Call me Ishmael. " * 9)
    watch.unchanged()
    with pytest.raises(ValueError, match="the text has '€'"):
        qnn.generate(model, "€") if function == "generate" else qnn.perplexity(model, "€" * 200)
    watch.unchanged()


def test_dropout_draws_from_the_seed_and_from_nobody_else_s_numbers():
    images, labels = torch.rand(30, 1, 2, 2), torch.arange(30) % 3

    def train(seed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(7)
        losses = qnn.train(model, images, labels, epochs=2, batch_size=10, seed=seed, progress=False)
        return losses, torch.rand(1)

    torch.manual_seed(7)
    untouched = torch.rand(1)
    first, again, other = train(1), train(1), train(2)
    assert first[0] == again[0] != other[0]
    assert first[1] == again[1] == other[1] == untouched


# --- what others have switched off ------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_has_gradients_wherever_it_is_called(off):
    free, inside = network(), network()
    losses = qnn.train(free, X, Y, progress=False, **OPTIONS)
    text = "Call me Ishmael. " * 10
    small, again = (qnn.add_adapters(qnn.LanguageModel(width=8, heads=2, hidden=16, blocks=1)) for _ in "ab")
    again.load_state_dict(small.state_dict())
    adapted = qnn.train_adapters(small, text, steps=2, progress=False)
    with off():
        assert qnn.train(inside, X, Y, progress=False, **OPTIONS) == losses
        assert qnn.train_adapters(again, text, steps=2, progress=False) == adapted
        assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled() == (off is torch.inference_mode)


def test_a_network_that_can_never_be_trained_is_named():
    with torch.inference_mode():
        made = network()
    with pytest.raises(ValueError, match=r"'0\.weight' was made in torch\.inference_mode\(\) and can never be trained"):
        qnn.train(made, X, Y, progress=False, **OPTIONS)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_computed_weights_stay_computed_in_the_network_that_was_prepared(kind):
    """PyTorch makes a class for each such layer, and takes the weight off that class when it is made a number again."""
    model, x = network().eval(), X[:3]
    getattr(parametrizations, kind)(model[4])
    two = copy.deepcopy(model)
    before, watch = model(x), Watch(model, two)
    with pytest.warns(UserWarning, match="ordinary numbers in this copy"):
        prepared = qnn.prepare_qat(model, FOUR)
    watch.unchanged()
    assert torch.equal(model(x), before) and torch.equal(two(x), before)
    assert type(prepared[4].layer) is nn.Linear
