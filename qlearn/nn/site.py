"""A place in a network where channels can be rescaled, and the rescaling itself.

    producer / s   →   channel j is smaller by s_j   →   consumers · s

What makes a channel (the weight of a norm, or the rows of a linear map) is divided by a factor, and the columns that
read it are multiplied by the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlearn.nn.linear_maps import LinearMap, is_linear_map


@dataclass(frozen=True, eq=False)
class Site:
    """A place between a producer and the layers that read what it makes.

    Attributes:
        name: of the place in the model: the producer's.
        producer: a norm with a weight (and a bias) for each channel, or a linear map with a row for each.
        consumers: linear maps, a column or several for each channel; nothing else reads these channels.
        reads: (I,) which channel each input channel of the consumers is. None: equal blocks of neighbours, as after a
            Flatten, or just one.

    >>> site = Site("norm", nn.RMSNorm(2), (nn.Linear(2, 1, bias=False),))
    >>> site.consumers[0].weight.data = torch.ones(1, 2)
    >>> site.rescale(torch.tensor([2.0, 1.0]))
    >>> site.producer.weight.tolist(), site.consumers[0].weight.tolist()
    ([0.5, 1.0], [[2.0, 1.0]])
    """

    name: str
    producer: nn.Module
    consumers: tuple[nn.Module, ...]
    reads: Tensor | None = None

    @property
    def channels(self) -> int:
        """How many there are."""
        return LinearMap.of(self.producer).outputs if is_linear_map(self.producer) else len(self.producer.weight)

    def channel_of(self, consumer: nn.Module) -> Tensor:
        """(I,): which channel each input channel of a consumer is."""
        if self.reads is not None:
            return self.reads.to(consumer.weight.device)
        channels = torch.arange(self.channels, device=consumer.weight.device)
        return channels.repeat_interleave(LinearMap.of(consumer).inputs // self.channels)

    def largest(self, consumer: nn.Module, values: Tensor) -> Tensor:
        """Of values (I,) ≥ 0, one for each input channel of a consumer, the largest for each channel: (C,)."""
        return values.new_zeros(self.channels).scatter_reduce(0, self.channel_of(consumer), values, "amax")

    def largest_made(self) -> Tensor:
        """The largest |weight| that makes each channel: (C,)."""
        weight = self.producer.weight.detach().abs()
        return LinearMap.of(self.producer).rows(weight).flatten(1).amax(1) if weight.ndim > 1 else weight

    def largest_read(self) -> Tensor:
        """The largest |weight| that reads each channel: (C,)."""
        found = []
        for layer in self.consumers:
            columns = _by_input(LinearMap.of(layer), layer.weight.detach())
            found.append(self.largest(layer, columns.abs().amax((1, 3)).flatten()))
        return torch.stack(found).amax(0)

    def rescale(self, s: Tensor) -> None:
        """Divide what makes each channel by s (C,), and multiply what reads it by s; each number is rounded once."""
        s = s.to(self.producer.weight.device).double()
        with torch.no_grad():
            for parameter in self.producer.parameters(recurse=False):
                if parameter.ndim == 1:
                    parameter.copy_(parameter.double() / s)
                else:
                    made = LinearMap.of(self.producer)
                    rows = made.rows(parameter.double())
                    parameter.copy_(made.weight(rows / s.reshape(-1, *[1] * (rows.ndim - 1))))
            for layer in self.consumers:
                read = LinearMap.of(layer)
                columns = _by_input(read, layer.weight.detach())
                factors = s.to(columns.device)[self.channel_of(layer)].reshape(len(columns), 1, -1, 1)
                scaled = columns.double() * factors
                as_rows = scaled.reshape(read.outputs, -1) if read.is_matrix else scaled.reshape(read.shape)
                layer.weight.copy_(read.weight(as_rows) if read.is_matrix else as_rows)


def rescale(model: nn.Module, factors: Mapping[Site, Tensor]) -> None:
    """Rescale several sites of a model at once, in place: all in float64, and each weight is rounded once.

    Raises:
        ValueError: weights that would not be finite (names the layer).
    """
    with in_float64(model, factors):
        for site, s in factors.items():
            site.rescale(s)


@contextmanager
def in_float64(model: nn.Module, sites: Iterable[Site]) -> Iterator[None]:
    """The layers of these sites are in float64 in here, and in their own type afterwards.

    Raises:
        ValueError: weights that are not finite, before or after (names the layer).
    """
    layers = {layer for site in sites for layer in (site.producer, *site.consumers)}
    types: list[tuple[str, str, nn.Parameter, torch.dtype]] = []
    for name, layer in model.named_modules():
        for which, parameter in layer.named_parameters(recurse=False) if layer in layers else ():
            types.append((name, which, parameter, parameter.dtype))
            if not parameter.isfinite().all():
                raise ValueError(
                    f"layer {name!r} has {'weights' if which == 'weight' else 'a bias'} that are not finite."
                )
            parameter.data = parameter.data.double()
    yield
    for name, which, parameter, dtype in types:
        parameter.data = parameter.data.to(dtype)
        if not parameter.isfinite().all():
            raise ValueError(f"layer {name!r}: its {which} would have values that are not finite in {dtype}.")


def _by_input(made: LinearMap, weight: Tensor) -> Tensor:
    """A linear map's weights as (groups, outputs of a group, input channels of a group, weights for each)."""
    outputs = 1 if made.transposed else made.outputs // made.groups
    matrix = made.rows(weight) if made.is_matrix else weight
    return matrix.reshape(made.groups, outputs, made.inputs // made.groups, -1)
