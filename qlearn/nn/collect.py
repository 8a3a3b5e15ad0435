"""What one needs to know of the inputs or outputs of layers: a statistic for each, filled while data run through.

    found = collected(model, layers, Statistic, batches)
    found["conv1"]

All methods that look at data use it: calibration, bias correction, GPTQ, SmoothQuant, AWQ. Each brings a statistic,
an object with `add(values)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from qlearn.nn.batches import Batches, outputs


class Statistic(Protocol):
    """What is known of some values, and grows with each batch of them."""

    def add(self, values: Tensor) -> None:
        """Take in one batch."""


S = TypeVar("S", bound=Statistic)


@contextmanager
def collect(
    layers: Mapping[str, nn.Module], make: Callable[[nn.Module], S], *, of: str = "input"
) -> Iterator[dict[str, S]]:
    """In here, whatever these layers take in is added to a statistic of each.

    Args:
        layers: by name. One that stands under two names is heard once, under the first.
        make: the statistic of a layer.
        of: "input", or "output".

    Returns:
        name → statistic, in the order of the layers' first calls. Layers that nothing reaches are left out.

    Raises:
        ValueError: what a statistic cannot take; names the layer.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with collect({"first": model[0]}, lambda layer: LargestOfChannels(axis=-1)) as found:
    ...     _ = model(torch.tensor([[1.0, -3.0], [2.0, 0.0]]))
    >>> found["first"].largest
    tensor([2., 3.])
    """
    found: dict[str, S] = {}
    names: dict[nn.Module, str] = {}
    for name, layer in layers.items():
        names.setdefault(layer, name)

    def add(layer: nn.Module, values: Any) -> None:
        name = names[layer]
        if not isinstance(values, Tensor):
            raise TypeError(f"layer {name!r}: its {of} is a {type(values).__name__}: it must be a tensor.")
        if name not in found:
            found[name] = make(layer)
        if values.numel():
            try:
                found[name].add(values.detach())
            except ValueError as error:
                raise ValueError(f"layer {name!r}: its {of} cannot be used: {error}") from error

    def hear(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], *output: Any) -> None:
        add(layer, next(iter((*output, *arguments, *keywords.values()))))

    with ExitStack() as hooks:
        for layer in names:
            register = layer.register_forward_pre_hook if of == "input" else layer.register_forward_hook
            hooks.enter_context(register(hear, with_kwargs=True))
        yield found


def collected(
    model: nn.Module, layers: Mapping[str, nn.Module], make: Callable[[nn.Module], S], batches: Batches, **options: Any
) -> dict[str, S]:
    """What `collect` finds of the layers' inputs in one pass of a model; batches and options as for `outputs`.

    >>> layer = nn.Linear(2, 3)
    >>> collected(layer, {"it": layer}, lambda _: MeanOfChannels(-1), torch.tensor([[1.0, 3.0]]))["it"].mean.tolist()
    [1.0, 3.0]
    """
    with collect(layers, make) as found:
        for _ in outputs(model, batches, **options):
            pass
    return found


def unreached(layers: Iterable[str], found: Mapping[str, Any]) -> str:
    """What to say of layers that no data has reached, or "".

    >>> print(unreached(["a", "b", "c"], {"a": 1}))
    no data has reached b, c. Layers that the network never calls, as it reads their weights itself, can be left in \
float, overrides={'b, c': None}, or quantized but for their inputs: overrides={'b, c': {'activations': None}}.
    """
    missing = ", ".join(name for name in layers if name not in found)
    return missing and (
        f"no data has reached {missing}. Layers that the network never calls, as it reads their weights itself, can be "
        f"left in float, overrides={{{missing!r}: None}}, or quantized but for their inputs: overrides={{{missing!r}: "
        "{'activations': None}}."
    )


@dataclass
class LargestOfChannels:
    """The largest magnitude of each channel: `largest` (C,)."""

    axis: int
    largest: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in one batch."""
        largest = _channels_last(values, self.axis).abs().amax(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)


@dataclass
class MeanOfChannels:
    """The mean of each channel, in float64: `mean` (C,)."""

    axis: int
    sum: Any = 0.0  # a tensor from the first batch on
    count: int = 0

    def add(self, values: Tensor, times: int = 1) -> None:
        """Take in one batch, or one that stands for so many that are like it."""
        rows = _channels_last(values, self.axis)
        self.sum = self.sum + rows.double().sum(0) * times
        self.count += len(rows) * times

    @property
    def mean(self) -> Tensor:
        """Of all batches."""
        return self.sum / self.count


def _channels_last(values: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, -1).flatten(0, -2)
