"""The lessons' networks: what the shipped ones reach, and training that anyone can repeat, stop and trust."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
import tqdm.auto
from safetensors import safe_open
from torch import nn

from qlearn import datasets
from qlearn.nn.models import cnn, load_trained, mlp
from qlearn.nn.training import accuracy, to_inputs, train, training_steps


@pytest.fixture(scope="module")
def digits():
    return datasets.mnist_arrays()


@pytest.fixture(scope="module")
def few(digits):
    return digits.train.images[:2000], digits.train.labels[:2000]


def stored_facts(name):
    with safe_open(datasets.SHIPPED / f"{name}.safetensors", framework="np") as file:
        return json.loads(file.metadata()["training"])


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# The networks


@pytest.mark.parametrize("name, least", [("mlp", 0.976), ("cnn", 0.988)])
def test_the_shipped_network_reaches_what_its_file_says(digits, name, least):
    model = load_trained(name)
    assert not any(module.training for module in model.modules())
    reached = accuracy(model, *digits.test)
    assert reached >= least
    # Another processor rounds sums otherwise: that may turn a digit or two of 10,000 that stand on the edge.
    assert reached == pytest.approx(stored_facts(name)["test_accuracy"], abs=2e-4)
    assert accuracy(model, *digits.validation) == pytest.approx(stored_facts(name)["validation_accuracy"], abs=5e-4)


def test_the_shipped_weights_come_from_the_settings_in_the_tool():
    import weights as tool

    for name, settings in tool.SETTINGS.items():
        assert settings.items() <= stored_facts(name).items()


@pytest.mark.parametrize("name, make", [("mlp", mlp), ("cnn", cnn)])
def test_the_files_hold_every_weight_of_the_network(name, make):
    wanted = {k: tuple(v.shape) for k, v in make().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {key: value.shape for key, value in datasets.trained(name).items()} == wanted


@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_seed_makes_a_network(make):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert equal(make(seed=1), make(seed=1))
    assert not equal(make(seed=1), make(seed=2))
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers were touched"


# Training


def test_training_is_repeatable(few):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [mlp(), mlp(), mlp()]
    losses = [train(m, *few, epochs=2, seed=s, progress=False) for m, s in zip(models, (1, 1, 2), strict=True)]
    assert losses[0] == losses[1] and equal(models[0], models[1])
    assert losses[0] != losses[2]
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers were touched"


class DropsInItsCode(nn.Module):
    """As attention does: its dropout is a function, and no module says so."""

    def __init__(self):
        super().__init__()
        self.inner, self.masks = nn.Linear(784, 10), []

    def forward(self, x):
        dropped = nn.functional.dropout(torch.ones_like(x), 0.5, self.training)
        self.masks.append(dropped[0] != 0)
        return self.inner((x * dropped).flatten(1))


def test_what_a_networks_code_draws_is_its_own(few):
    """Anew at each step, the same again with the same seed; torch's own random numbers go on as if nothing was."""
    images, labels = (part[:120] for part in few)
    torch.manual_seed(5)
    network, before = DropsInItsCode(), torch.get_rng_state()
    losses = []
    for seed in (1, 1, 2):
        twin = copy.deepcopy(network)
        losses.append(train(twin, images, labels, epochs=1, batch_size=40, seed=seed, progress=False))
        assert len({tuple(mask.flatten().tolist()) for mask in twin.masks}) == 3
        torch.rand(3)
    assert losses[0] == losses[1] != losses[2]
    torch.set_rng_state(before)
    train(copy.deepcopy(network), images, labels, epochs=1, batch_size=40, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_threads_changes_nothing(few):
    threads = torch.get_num_threads()
    losses = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            losses.append(train(mlp(), *few, epochs=1, progress=False))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("make, images, least", [(mlp, 12_000, 0.9), (cnn, 3_000, 0.9)])
def test_training_learns(digits, make, images, least):
    model = make()
    losses = train(model, digits.train.images[:images], digits.train.labels[:images], epochs=2, progress=False)
    assert len(losses) == 2 * -(-images // 128)
    assert accuracy(model, *digits.validation) >= least
    assert not model.training


@pytest.mark.slow
def test_all_of_mnist_gives_what_the_lessons_promise(digits):
    model = mlp(seed=1)  # not the seed of the shipped one
    train(model, *digits.train, seed=1, progress=False)
    assert accuracy(model, *digits.test) >= 0.976


class Remember(nn.Module):
    """Gives logits and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(1, 10), []

    def forward(self, x):
        self.seen.append((x * 255).round().int().flatten().tolist())
        return self.linear(x.flatten(1))


def test_every_epoch_shows_every_image_once_in_a_new_order():
    model = Remember()
    images = np.arange(200, dtype=np.uint8).reshape(200, 1, 1)
    train(model, images, np.arange(200) % 10, epochs=3, batch_size=64, progress=False)
    assert [len(batch) for batch in model.seen] == [64, 64, 64, 8] * 3
    epochs = [[i for batch in model.seen[start : start + 4] for i in batch] for start in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(200)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_learning_rate_falls_to_nothing():
    # Adam's first step is the learning rate itself; with one and the same gradient at every step, so are the others.
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(model[1].weight)
    path = [0.0]
    for _ in training_steps(
        model, np.full((8, 1, 1), 1e-3, np.float32), np.zeros(8, int), epochs=4, batch_size=8, learning_rate=0.1, seed=0
    ):
        path.append(model[1].weight[0, 0].item())
    np.testing.assert_allclose(np.diff(path), [0.1, 0.075, 0.05, 0.025], rtol=1e-3)


class Interrupted(nn.Module):
    """Somebody presses stop at the sixth step."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 6:
            raise KeyboardInterrupt
        return self.model(x)


def test_an_interrupt_leaves_a_usable_model(few):
    model, threads = cnn(), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(model), *few, progress=False)
    assert not any(module.training for module in model.modules())
    assert torch.get_num_threads() == threads
    assert not equal(model, cnn()), "what it had learnt is lost"
    assert accuracy(model, *few) > 0.1


def test_an_interrupt_between_two_steps_does_too(few, monkeypatch):
    import tqdm.auto

    def stop(self, n=1):
        raise KeyboardInterrupt

    monkeypatch.setattr(tqdm.auto.tqdm, "update", stop)
    model, threads = mlp(), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt) as kept:  # `kept` holds the frames, as a notebook does
        train(model, *few)
    assert kept.traceback and not model.training and torch.get_num_threads() == threads


def test_steps_can_be_watched_and_ended(few):
    model = mlp()
    steps = training_steps(model, *few, epochs=2, batch_size=100, learning_rate=1e-3, seed=0)
    losses = [next(steps) for _ in range(3)]
    accuracy(model, *few)
    assert model.training, "measuring between two steps must not end the training mode"
    steps.close()
    assert not model.training
    assert losses == train(mlp(), *few, epochs=2, batch_size=100, learning_rate=1e-3, progress=False)[:3]


def test_progress_is_shown_only_if_wanted(few, capsys, monkeypatch):
    """After every step here, however quick it was; and nothing of it stays."""
    monkeypatch.setattr("qlearn.nn.training.tqdm", partial(tqdm.auto.tqdm, mininterval=0, miniters=1))
    train(mlp(), *few, epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")
    train(mlp(), *few, epochs=2)
    out, err = capsys.readouterr()
    assert out == "" and "epoch 2 of 2, loss" in err and "32/32" in err
    assert err.split("\r")[-2].isspace()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": [1, 2]}, "3 images and 2 labels"),
        ({"images": np.zeros((0, 28, 28), np.uint8), "labels": []}, "0 images"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"images": np.zeros((3, 784), np.uint8)}, r"\(3, 784\).*\(N, H, W\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    right = {"images": np.zeros((3, 28, 28), np.uint8), "labels": [1, 2, 3]}
    model = mlp()
    with pytest.raises(ValueError, match=message):
        train(model, **(right | change), progress=False)


# Measuring


class Pixel(nn.Module):
    """Names the class that is the image's only pixel."""

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        return nn.functional.one_hot((x.flatten() * 255).round().long(), 10).float()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_accuracy_counts(batch_size):
    images = np.array([0, 1, 2, 3, 4, 5, 6], np.uint8).reshape(7, 1, 1)
    right = accuracy(Pixel(), images, [0, 1, 2, 3, 9, 9, 9], batch_size=batch_size)
    assert isinstance(right, float) and right == 4 / 7


def test_accuracy_gives_every_module_its_mode_back(few):
    model = cnn().train()
    model.bn1.eval()  # frozen on purpose
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy(model, *few)
    assert [name for name, module in model.named_modules() if not module.training] == ["bn1"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bytes_and_floats_give_the_same_inputs(digits):
    images = digits.test.images[:5]
    inputs = to_inputs(images)
    assert inputs.shape == (5, 1, 28, 28) and inputs.dtype == torch.float32
    assert inputs.min() == 0 and inputs.max() == 1
    np.testing.assert_array_equal(inputs[:, 0].numpy(), images.astype(np.float32) / np.float32(255))
    assert torch.equal(to_inputs(inputs), inputs)
    assert to_inputs(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    assert torch.equal(to_inputs(torch.from_numpy(images)), inputs)
    with pytest.raises(TypeError, match="int64.*uint8"):
        to_inputs(images.astype(np.int64))


@pytest.mark.parametrize("kind", ["rows of numbers", "rows of tokens", "float64"])
def test_rows_of_numbers_and_of_tokens_are_learnt_too(kind):
    labels = np.arange(200) % 3
    if kind == "rows of tokens":
        model: nn.Module = nn.Sequential(nn.EmbeddingBag(3, 4), nn.Linear(4, 3))
        examples = np.stack([labels] * 5, 1)
    else:
        model, examples = nn.Linear(3, 3), np.eye(3, dtype="float64" if kind == "float64" else "float32")[labels]
    train(model, examples, labels, epochs=60, learning_rate=0.1, progress=False)
    assert accuracy(model, examples, labels) == 1.0
    with pytest.raises(ValueError, match=r"images have shape \(200, 3\): \(N, H, W\) or \(N, C, H, W\)"):
        accuracy(model, np.zeros((200, 3), np.uint8), labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_gets_images_of_its_own_type(dtype):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).to(dtype)
    images, labels = torch.rand(12, 4, 4), torch.arange(12) % 3
    with torch.no_grad():
        right = (model(images[:, None].to(dtype)).argmax(1) == labels).float().mean().item()
    assert accuracy(model, images.to(dtype), labels) == pytest.approx(right)
    assert accuracy(model, images, labels) == pytest.approx(right)
    train(model, images, labels, epochs=1, learning_rate=1e-3, progress=False)
    assert all(p.dtype == dtype for p in model.parameters())


def test_no_images_at_all_are_told_as_such():
    with pytest.raises(ValueError, match="must be one image or more"):
        accuracy(nn.Flatten(), torch.rand(0, 3, 1), torch.zeros(0, dtype=torch.int64))
