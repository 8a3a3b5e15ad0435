"""Training and measuring a small classifier on images that fit into memory.

The images stay as bytes in one array and each batch is cut out of it: no `DataLoader`, which would spend
more time on collecting single images than these networks spend on learning from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn.nn.batches import Forward, as_tensor, call, device_of, evaluating, one_tensor
from qlearn.nn.distributed import TIMEOUT, Part, exchange, telling, workers
from qlearn.nn.network import check_counts, check_model, check_numbers, check_places, check_seed
from qlearn.nn.threads import one_thread

UNTRAINABLE = (
    "this network has nothing that can be trained: of a converted one, nn.prepare_qat makes a network that learns, "
    "before nn.convert; nn.add_adapters gives it something beside its codes."
)


def train(
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    epochs: int = 8,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool = True,
) -> list[float]:
    """Train `model` in place to name the class of each image, and leave it in eval mode.

    Adam on the cross-entropy; the learning rate falls in a straight line to 0. Interrupt it when you like:
    the model keeps what it has learnt so far, in eval mode.

    Args:
        model: maps inputs to logits (N, C).
        images: N images as `to_inputs` takes them; or N rows (N, F) of numbers or of tokens, which go in as they are.
            Three axes are images without colours: of a sequence (N, C, L), forward=lambda model, x: model(x[:, 0]).
        labels: N whole numbers 0 … C − 1.
        epochs: how many times every image is seen.
        batch_size: images in one step; the last step of an epoch takes what is left.
        learning_rate: of the first step.
        seed: of the order of the images. With the same start it gives the same model, however many cores there
            are; torch's own random state is neither used nor changed.
        forward: how the network is called on a batch of images, and which of its outputs are the logits.
        progress: show a progress bar with the time left.

    Returns:
        The loss of every step.

    Raises:
        ValueError: images and labels of different number, or none; labels of another shape than (N,), or outside the
            classes; epochs or batch_size below 1; a loss that is not finite.

    Source: Kingma and Ba 2015, https://arxiv.org/abs/1412.6980.

    >>> dark, bright = torch.zeros(50, 2, 2), torch.ones(50, 2, 2)
    >>> images, labels = torch.cat([dark, bright]), [0] * 50 + [1] * 50
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> losses = train(model, images, labels, epochs=20, batch_size=10, learning_rate=0.1, progress=False)
    >>> len(losses), accuracy(model, images, labels)
    (200, 1.0)
    """
    options: Any = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "forward": forward}
    steps = training_steps(model, images, labels, epochs=epochs, **options)
    an_epoch = -(-len(images) // batch_size)
    return losses_of(steps, epochs * an_epoch, progress, lambda step: f"epoch {step // an_epoch + 1} of {epochs}, ")


def training_steps(
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    forward: Forward | None = None,
) -> Generator[float]:
    """Train as `train` does, and hand over the loss after every step: for whoever draws it, or wants to stop early.

    Close the generator to stop; the model is then in eval mode.
    """
    images, labels = _paired(images, labels)
    check_counts(epochs=epochs, batch_size=batch_size)
    check_model(model)
    check_seed(seed)
    device, order = device_of(model), torch.Generator().manual_seed(int(seed))
    total = epochs * -(-len(images) // batch_size)
    rate = adam(model, learning_rate, lambda step: 1 - step / total, fused=True)
    orders = (torch.randperm(len(images), generator=order) for _ in range(epochs))
    batches = (batch for places in orders for batch in places.split(batch_size))

    def loss_of(batch: Tensor) -> Tensor:
        y = labels[batch]
        logits = _logits(call(model, _as_taken_by(model, images[batch]), forward), y)
        loss = nn.functional.cross_entropy(logits, y.to(device))
        if not loss.requires_grad:  # the network or `forward` takes the gradient off
            raise ValueError(UNTRAINABLE)
        if not loss.isfinite():
            raise ValueError(
                f"the loss is {loss.item()}: images hold numbers that are not finite, or learning_rate="
                f"{learning_rate} is too large. The network is as it was after the step before."
            )
        return loss

    return learn(model, batches, loss_of, rate, seed=int(seed))


def adam(
    model: nn.Module, learning_rate: float, schedule: Callable[[int], float], *, fused: bool = False
) -> torch.optim.lr_scheduler.LRScheduler:
    """Adam on all that can be trained, and what says how long its steps are: number of a step → part of the rate.

    Raises:
        ValueError: a rate that is not above 0; nothing to train.
    """
    check_numbers(learning_rate=learning_rate)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate={learning_rate} must be larger than 0, and finite.")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(UNTRAINABLE)
    return torch.optim.lr_scheduler.LambdaLR(torch.optim.Adam(trained, lr=learning_rate, fused=fused), schedule)


def learn(
    model: nn.Module, batches: Iterable[Any], loss_of: Callable[[Any], Tensor], rate: Any, *, seed: int
) -> Generator[float]:
    """Take one step for each batch, and hand over its loss. The model is in train mode, and at the end in eval mode.

    Args:
        loss_of: batch → loss, to be made smaller.
        rate: from `adam`.
        seed: of dropout.
    """
    chance = torch.Generator().manual_seed(seed)
    model.train()
    try:
        for batch in batches:
            # The number of threads changes the sums' last digits, and with them the trained model.
            with one_thread(), own_random(model, chance), gradients(model):
                loss = loss_of(batch)
                rate.optimizer.zero_grad()
                loss.backward()
                rate.optimizer.step()
                rate.step()
            yield loss.item()
    finally:
        model.eval()


def losses_of(
    steps: Generator[float], total: int, progress: bool, place: Callable[[int], str] = lambda step: ""
) -> list[float]:
    """The losses of all steps, with a bar that shows their recent mean; `place` says where in the data a step is."""
    losses: list[float] = []
    bar = tqdm(total=total, desc="Training", unit="step", leave=False, disable=not progress)
    with bar, closing(steps):  # an interrupt in this loop, too, must end the steps: they put the model into eval mode
        for step, loss in enumerate(steps):
            losses.append(loss)
            recent = losses[-50:]
            bar.set_postfix_str(f"{place(step)}loss {sum(recent) / len(recent):.3f}", refresh=False)
            bar.update()
    return losses


@contextmanager
def own_random(model: nn.Module, chance: torch.Generator) -> Iterator[None]:
    """What is drawn in here, by dropout say, depends on `chance` alone; torch's own random state stays as it is.

    >>> with own_random(nn.Dropout(), torch.Generator().manual_seed(0)):
    ...     first = torch.rand(1)
    >>> bool(first == torch.rand(1, generator=torch.Generator().manual_seed(0)))
    False
    """
    device = device_of(model)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        seed = int(torch.randint(2**62, (), generator=chance))
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def gradients(model: nn.Module) -> Iterator[None]:
    """Gradients are computed in here, whatever its user has switched off around it.

    Raises:
        ValueError: parameters that never have one.

    >>> with torch.no_grad(), gradients(model := nn.Linear(1, 1)):
    ...     model(torch.ones(1)).requires_grad
    True
    """
    if wrong := next((name for name, p in model.named_parameters() if p.requires_grad and p.is_inference()), None):
        raise ValueError(
            f"{wrong!r} was made in torch.inference_mode() and can never be trained: make this network outside of it."
        )
    with torch.inference_mode(False), torch.enable_grad():
        yield


def accuracy(
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    batch_size: int = 500,
    forward: Forward | None = None,
    timeout: float = TIMEOUT,
) -> float:
    """The share of images whose largest logit is that of their label, from 0.0 to 1.0.

    The model is measured in eval mode and without gradients; every module gets its own mode back. On several workers
    (`join_workers`) each one hands over its own share of the images, which may be empty; all get the share of all
    images.

    Args:
        model: maps inputs to logits (N, C).
        images, labels: as for `train`.
        batch_size: images at once.
        forward: how the network is called on a batch of images, and which of its outputs are the logits.
        timeout: seconds that a worker who is done waits for the others.

    Raises:
        ValueError: images and labels of different number, or none; labels of another shape than (N,), or outside the
            classes; logits that are not (N, C) or hold NaN.
        RuntimeError: on several workers: one that has ended, does not come in time or has failed, by its rank.

    >>> images, labels = torch.eye(3).reshape(3, 1, 3), [0, 1, 0]
    >>> accuracy(nn.Flatten(), images, labels)
    0.6666666666666666
    """
    alone = workers()[1] == 1
    with telling("nn.accuracy", timeout):
        images, labels = _paired(images, labels, some=alone)
        check_counts(batch_size=batch_size)
        check_model(model)
        right = _count_right(model, images, labels, batch_size, forward) if len(images) else 0
    counts = [part.about for part in exchange("nn.accuracy", Part([right, len(images)]), timeout)]
    right, total = (sum(numbers) for numbers in zip(*counts, strict=True))
    if not total:
        raise ValueError(f"the shares of all {len(counts)} workers are empty: there must be images.")
    return right / total


def _count_right(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, forward: Forward | None) -> int:
    """For how many images the largest logit is that of their label."""
    device, right = device_of(model), 0
    with torch.no_grad(), evaluating(model):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = _logits(call(model, _as_taken_by(model, x), forward), y)
            right += int((logits.argmax(1) == y.to(device)).sum())
    return right


def to_inputs(images: Any) -> Tensor:
    """Images as a network takes them: float32 of shape (N, C, H, W), pixels from 0.0 to 1.0.

    Args:
        images: array or tensor (N, H, W) or (N, C, H, W). Bytes are divided by 255; floats are taken as they are.

    Raises:
        TypeError: neither bytes (uint8) nor floats.  ValueError: another shape.

    >>> to_inputs(torch.tensor([[[0, 51, 255]]], dtype=torch.uint8))
    tensor([[[[0.0000, 0.2000, 1.0000]]]])
    """
    pixels = as_tensor(images, "images")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise TypeError(f"images have dtype {pixels.dtype}: they must be bytes (uint8) from 0 to 255, or floats.")
    if pixels.ndim not in (3, 4):
        raise ValueError(f"images have shape {tuple(pixels.shape)}: (N, H, W) or (N, C, H, W) would do.")
    inputs = pixels.to(torch.float32)
    if pixels.dtype == torch.uint8:
        inputs = inputs / 255
    return inputs.unsqueeze(1) if pixels.ndim == 3 else inputs


def _as_taken_by(model: nn.Module, examples: Tensor) -> Tensor:
    """Images as `to_inputs` makes them, rows of numbers, tokens as they are: where the model is, floats of its type."""
    if examples.is_meta:
        raise TypeError("images are on the meta device, where a tensor has a shape and no numbers.")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inputs = to_inputs(examples) if examples.ndim in (3, 4) or examples.dtype == torch.uint8 else examples
    return inputs.to(device_of(model), dtype if inputs.is_floating_point() else None)


def _paired(images: Any, labels: Any, *, some: bool = True) -> tuple[Tensor, Tensor]:
    images, labels = as_tensor(images, "images"), as_tensor(labels, "labels")
    if images.ndim == 0 or labels.ndim == 0:
        name = "images" if images.ndim == 0 else "labels"
        raise ValueError(f"{name} is a single number: wanted is an array with one entry for each image.")
    if some and len(images) == len(labels) == 0:
        raise ValueError("0 images and 0 labels: there must be one image or more.")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: there must be one label for each image.")
    if labels.ndim != 1:
        remedy = "labels[:, 0]" if labels.shape[1:] == (1,) else "labels.argmax(1), if they are one-hot,"
        raise ValueError(f"labels have shape {tuple(labels.shape)}: wanted is one number for each image, {remedy} is.")
    if len(labels) and (labels.is_floating_point() or labels.is_complex()):
        raise TypeError(f"labels have dtype {labels.dtype}: wanted are whole numbers, one class for each image.")
    return images, labels.long()


def _logits(output: Any, labels: Tensor) -> Tensor:
    """What a network puts out, if it is one finite logit for each image and class."""
    logits = one_tensor(output)
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"for {len(labels)} images the network puts out shape {tuple(logits.shape)}: wanted are logits, (N, C)."
        )
    check_places("labels", labels, logits.shape[1], ", and the network knows the classes")
    if not torch.is_grad_enabled() and bool(logits.isnan().any()):
        raise ValueError("the network puts out NaN: it has no accuracy.")
    return logits
