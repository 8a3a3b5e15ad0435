"""Where a transformer's channels can be rescaled without changing what it computes.

    producer / s   →   channel j is smaller by s_j   →   consumers · s

What makes a channel (the weight of a norm, or the rows of a linear layer) is divided by a factor, and the columns that
read it are multiplied by the same. Between the two, activations change as one likes: SmoothQuant and AWQ choose s.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlearn.nn.language_model import Block


@dataclass(frozen=True)
class Site:
    """A place between a producer and the layers that read what it makes.

    Attributes:
        name: of the place in the model.
        producer: a norm with a weight for each channel, or a linear layer with a row for each.
        consumers: linear layers with a column for each channel; nothing else reads these channels.
    """

    name: str
    producer: nn.RMSNorm | nn.Linear
    consumers: tuple[nn.Linear, ...]

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.consumers[0].in_features

    def rescale(self, s: Tensor) -> None:
        """Divide what makes each channel by s (C,), and multiply what reads it by s."""
        with torch.no_grad():
            self.producer.weight.div_(s if self.producer.weight.ndim == 1 else s[:, None])
            for layer in self.consumers:
                layer.weight.mul_(s)


def sites(model: nn.Module) -> list[Site]:
    """The four places in each block of a `LanguageModel`, first block first.

        norm1 → query, key, value      value → output      norm2 → gate, up      up → down

    Raises:
        ValueError: a model without such blocks, or one that is prepared or quantized already.

    >>> from qlearn.nn.language_model import language_model
    >>> [site.name for site in sites(language_model())][:2]
    ['blocks.0.norm1', 'blocks.0.attention.value']
    """
    found = list(_sites(model))
    if not found:
        raise ValueError(f"{type(model).__name__} has no transformer blocks (qlearn.nn.language_model.Block).")
    for site in found:
        for layer in (site.producer, *site.consumers):
            if type(layer) not in (nn.RMSNorm, nn.Linear):
                raise ValueError(f"{site.name} holds a {type(layer).__name__}: rescale before nn.prepare.")
    return found


def plant_outliers(model: nn.Module, *, channels: int = 2, factor: float = 64.0, seed: int = 0) -> nn.Module:
    """Copy a language model and make some channels of its activations large, without changing what it computes.

    Large language models come out of training like this: a few channels behind a norm are tens of times as large as
    all others, in nearly every text. Small ones do not; this one is made for trying out what helps.

    Args:
        model: a `LanguageModel`. It is not changed.
        channels: how many, behind each norm of each block.
        factor: how much larger. A power of two changes no bit of what the model computes in between.
        seed: which channels.

    Raises:
        ValueError: more channels than there are, or fewer than none; a factor that is not above 0.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, x = language_model(), to_tokens("Call me Ishmael.")
    >>> bool(torch.allclose(plant_outliers(model)(x), model(x), atol=1e-5))
    True
    """
    planted = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    for site in sites(planted):
        if not isinstance(site.producer, nn.RMSNorm):
            continue
        if not 0 <= channels <= site.channels or not 0 < factor < float("inf"):
            raise ValueError(
                f"channels={channels}, factor={factor}: there are {site.channels} channels, and a factor is above 0."
            )
        s = torch.ones(site.channels)
        s[torch.randperm(site.channels, generator=random)[:channels]] = 1 / factor
        site.rescale(s)
    return planted


def _sites(model: nn.Module) -> Iterator[Site]:
    for name, block in model.named_modules():
        if isinstance(block, Block):
            attention, mlp = block.attention, block.mlp
            yield Site(f"{name}.norm1", block.norm1, (attention.query, attention.key, attention.value))
            yield Site(f"{name}.attention.value", attention.value, (attention.output,))
            yield Site(f"{name}.norm2", block.norm2, (mlp.gate, mlp.up))
            yield Site(f"{name}.mlp.up", mlp.up, (mlp.down,))
