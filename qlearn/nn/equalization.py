"""Cross-layer equalization: channels of unequal range are rescaled between two layers, and nothing else changes.

Divide what makes a channel by a number and multiply what reads it by the same number: a ReLU between the two lets
positive factors through, so the network computes what it did. The ranges of the channels are free to choose, then,
and one scale for a whole tensor fits best where they are equal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from array_api_compat import array_namespace
from torch import Tensor, nn

from qlearn.nn.flow import chains
from qlearn.nn.network import set_parameter, used_once

# f(s · x) = s · f(x) for s > 0, channel by channel. ReLU6 and batch norm are not of this kind.
ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

CONVERGED = 1e-6  # relative: where the factors are so near to 1, another sweep changes nothing that 8 bits could see
MOST_SWEEPS = 1000


def equalizing_factors(r1: Any, r2: Any) -> Any:
    """The factors between two layers that give each channel the same range on both sides.

        s = √(r₁ / r₂),   so that   r₁ / s = r₂ · s = √(r₁ r₂)

    A channel that is 0 on one side has no range to equalize: its factor is 1.

    Args:
        r1: (C,) the largest |weight| that makes each channel, in the first layer.
        r2: (C,) the largest |weight| that reads it, in the second layer.

    Returns:
        s: (C,), by which the first layer's channels are to be divided and the second's multiplied.

    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1.2.

    >>> import numpy as np
    >>> equalizing_factors(np.array([8.0, 0.5, 0.0]), np.array([2.0, 2.0, 1.0]))
    array([2. , 0.5, 1. ])
    """
    xp = array_namespace(r1, r2)
    alive = (r1 > 0) & (r2 > 0)
    one = xp.ones_like(r1)
    # Two roots, not the root of a ratio: that could overflow where its root does not.
    return xp.where(alive, xp.sqrt(xp.where(alive, r1, one)) / xp.sqrt(xp.where(alive, r2, one)), one)


def equalize(model: nn.Module) -> nn.Module:
    """Copy a network and give each channel the same weight range in the layer that makes it and the one that reads it.

    Works on each pair of `Conv2d` and `Linear` layers that follow each other in an `nn.Sequential` with nothing
    between but ReLU, LeakyReLU, 2-d pooling, Flatten, Dropout and Identity. The pairs of a chain pull at each other's
    ranges, so they are swept over until no factor differs from 1.

    The function stays the same: the factors are found in float64, and each weight is rounded once. The activations
    between two layers do change, by the same factors. Where a channel has weak weights and a large bias, they can
    become large; look at their ranges if you quantize them, too.

    Args:
        model: a network without batch norm between its layers (`fold_batch_norm`). It is not changed.

    Raises:
        ValueError: no two layers of the model follow each other so; weights that are not finite (names the layer).

    Cost: O(weights) a sweep, about ten sweeps.
    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[8.0], [0.5]]), torch.tensor([[2.0, 2.0]])
    >>> equal = equalize(model)
    >>> equal[0].weight.tolist(), equal[2].weight.tolist()
    ([[4.0], [1.0]], [[4.0, 1.0]])
    """
    return _rescaled(model, "equalize", _equalize_all)


def unequalize(model: nn.Module, *, spread: float = 1.5, seed: int = 0) -> nn.Module:
    """Copy a network and make the ranges of its channels unequal, without changing what it computes.

        s = 2ᵏ,   k = rint(u · log₂ 10),   u uniform in −spread … spread

    Networks come like this out of training, more often than not; this one is made for trying out what helps. All
    factors are powers of two, so nothing is rounded: the outputs are the same, bit for bit.

    Args:
        model: as for `equalize`.
        spread: 1.5 gives factors from about 10^−1.5 to 10^1.5 (1/32 to 32).
        seed: of the random factors.

    Raises:
        ValueError: a negative spread, and what `equalize` raises.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> x = torch.rand(5, 3)
    >>> torch.equal(unequalize(model)(x), model(x))
    True
    """
    if not 0 <= spread < math.inf:
        raise ValueError(f"spread={spread} must be 0 or more: the factors go from 10^−spread to 10^spread.")
    random = torch.Generator().manual_seed(seed)

    def make_unequal(pairs: list[_Pair]) -> None:
        for pair in pairs:
            u = spread * (2 * torch.rand(pair.channels, generator=random, dtype=torch.float64) - 1)
            pair.rescale(2.0 ** -torch.round(u * math.log2(10)).to(pair.first.weight.device))

    return _rescaled(model, "unequalize", make_unequal)


@dataclass
class _Numbers:
    """A layer's weights and bias in float64, while they are being changed."""

    weight: Tensor
    bias: Tensor | None


@dataclass
class _Pair:
    """Two layers of which the second reads each channel that the first makes, and nothing else."""

    first: _Numbers
    second: _Numbers
    groups: int  # of the second layer, if it is a convolution

    @property
    def channels(self) -> int:
        return len(self.first.weight)

    @property
    def by_channel(self) -> tuple[int, int, int, int]:
        """The second layer's weights as (groups, outputs of a group, channels of a group, weights for each channel)."""
        outputs = len(self.second.weight)
        return self.groups, outputs // self.groups, self.channels // self.groups, -1

    def ranges(self) -> tuple[Tensor, Tensor]:
        """The largest |weight| that makes each channel, and that reads it."""
        made = self.first.weight.abs().flatten(1).amax(1)
        read = self.second.weight.abs().reshape(self.by_channel).amax((1, 3)).flatten()
        return made, read

    def rescale(self, s: Tensor) -> None:
        """Divide the channels where they are made by s, and multiply them by s where they are read."""
        first, second = self.first, self.second
        first.weight = first.weight / s.reshape(-1, *[1] * (first.weight.ndim - 1))
        first.bias = None if first.bias is None else first.bias / s
        blocks = second.weight.reshape(self.by_channel) * s.reshape(self.groups, 1, -1, 1)
        second.weight = blocks.reshape(second.weight.shape)


def _equalize_all(pairs: list[_Pair]) -> None:
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for pair in pairs:
            s = equalizing_factors(*pair.ranges())
            pair.rescale(s)
            largest = max(largest, float((s - 1).abs().max()))
        if largest < CONVERGED:
            return


def _rescaled(model: nn.Module, verb: str, change: Callable[[list[_Pair]], None]) -> nn.Module:
    """A copy of the model, after `change` has worked on the numbers of its pairs of layers."""
    model = copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}
    numbers: dict[nn.Module, _Numbers] = {}

    def numbers_of(layer: nn.Module) -> _Numbers:
        if layer not in numbers:
            bias = None if layer.bias is None else layer.bias.detach().double()
            numbers[layer] = _Numbers(layer.weight.detach().double(), bias)
            if not numbers[layer].weight.isfinite().all():
                raise ValueError(f"layer {names[layer]!r} has weights that are not finite.")
        return numbers[layer]

    pairs = [_Pair(numbers_of(a), numbers_of(b), getattr(b, "groups", 1)) for a, b in _neighbours(model)]
    if not pairs:
        norm = next((names[module] for module in model.modules() if isinstance(module, NORMS)), None)
        advice = f" {norm!r} is a batch norm: call nn.fold_batch_norm(model) first." if norm is not None else ""
        raise ValueError(
            f"{type(model).__name__} has nothing to {verb}: no two Linear or Conv2d layers follow each other in an "
            f"nn.Sequential with only ReLU, pooling and Flatten between.{advice}"
        )
    change(pairs)
    for layer, changed in numbers.items():
        try:
            set_parameter(layer, "weight", changed.weight)
            if changed.bias is not None:
                set_parameter(layer, "bias", changed.bias)
        except ValueError as error:
            raise ValueError(f"layer {names[layer]!r}: {error}") from error
    return model


def _neighbours(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The pairs of layers of which the second reads what the first makes, positive factors let through."""
    own = used_once(model)
    found = []
    for chain in chains(model):
        for i, layer in enumerate(chain):
            if type(layer) in (nn.Linear, nn.Conv2d) and layer in own:
                reader = _reader(layer, chain[i + 1 :])
                if reader is not None and reader in own:
                    found.append((layer, reader))
    return found


def _reader(layer: nn.Module, following: list[nn.Module]) -> nn.Module | None:
    """The layer that reads this one's channels and knows which is which, or None."""
    flat = type(layer) is nn.Linear  # after Flatten a channel is a block of neighbours; pooling would mix channels
    channels = len(layer.weight)
    for step in following:
        if type(step) in ELEMENTWISE or (type(step) in POOLING and not flat):
            continue
        if type(step) is nn.Flatten and (step.start_dim, step.end_dim) == (1, -1):
            flat = True
        elif type(step) is nn.Conv2d:
            return step if not flat and step.in_channels == channels else None
        elif type(step) is nn.Linear:
            block, rest = divmod(step.in_features, channels)
            return step if flat and rest == 0 and (block == 1 or type(layer) is nn.Conv2d) else None
        else:
            return None
    return None
