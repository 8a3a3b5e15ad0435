"""Cross-layer equalization: channels of unequal range are rescaled between two layers, and nothing else changes.

Divide what makes a channel by a number and multiply what reads it by the same number: a ReLU between the two lets
positive factors through, so the network computes what it did. The ranges of the channels are free to choose, then,
and one scale for a whole tensor fits best where they are equal.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from array_api_compat import array_namespace
from torch import nn

from qlearn.nn.flow import MAPS, leads_on, say_left
from qlearn.nn.folding import foldable
from qlearn.nn.linear_maps import is_linear_map
from qlearn.nn.network import check_numbers, check_seed, copy_with
from qlearn.nn.recording import watched
from qlearn.nn.rescaling import find_sites
from qlearn.nn.site import Site, in_float64, rescale

CONVERGED = 1e-6  # relative: where the factors are so near to 1, another sweep changes nothing that 8 bits could see
MOST_SWEEPS = 1000


def equalizing_factors(r1: Any, r2: Any) -> Any:
    """The factors between two layers that give each channel the same range on both sides.

        s = √(r₁ / r₂),   so that   r₁ / s = r₂ · s = √(r₁ r₂)

    A channel that is 0 on one side has no range to equalize: its factor is 1. It is `balancing_factors` with α = ½.

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
    return balancing_factors(r1, r2, 0.5)


def balancing_factors(r1: Any, r2: Any, alpha: float) -> Any:
    """r₁^α / r₂^(1 − α), and 1 where one of the two is 0; all (C,).

    >>> import numpy as np
    >>> balancing_factors(np.array([8.0, 0.0]), np.array([2.0, 1.0]), 1)
    array([8., 1.])
    """
    xp = array_namespace(r1, r2)
    alive = (r1 > 0) & (r2 > 0)
    one = xp.ones_like(r1)
    # Two powers, not the power of a ratio: that could overflow where its root does not.
    return xp.where(alive, xp.where(alive, r1, one) ** alpha / xp.where(alive, r2, one) ** (1 - alpha), one)


def equalize(model: nn.Module) -> nn.Module:
    """Copy a network and give each channel the same weight range in the layer that makes it and the one that reads it.

    Works wherever all that reads a linear map's channels are linear maps, with nothing between but ReLU, LeakyReLU,
    pooling, Flatten, Dropout and Identity, or the product of a gated MLP; see `rescaling.sites`. The pairs of a chain
    pull at each other's ranges, so they are swept over until no factor differs from 1. Layers that something else
    follows are left as they are, and named in a warning.

    The function stays the same: the factors are found in float64, and each weight is rounded once. The activations
    between two layers do change, by the same factors. Where a channel has weak weights and a large bias, they can
    become large; look at their ranges if you quantize them, too.

    Args:
        model: a network without batch norm between its layers (`fold_batch_norm`). It is not changed.

    Raises:
        ValueError: no two layers of the model follow each other so; weights that are not finite, that a hook computes,
            or that are codes (names the layer).

    Cost: O(weights) a sweep, about ten sweeps.
    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[8.0], [0.5]]), torch.tensor([[2.0, 2.0]])
    >>> equal = equalize(model)
    >>> equal[0].weight.tolist(), equal[2].weight.tolist()
    ([[4.0], [1.0]], [[4.0, 1.0]])
    """
    equal, pairs = _pairs(model, "equalize")
    with in_float64(equal, pairs):
        for _ in range(MOST_SWEEPS):
            largest = 0.0
            for pair in pairs:
                s = equalizing_factors(pair.largest_made(), pair.largest_read())
                pair.rescale(s)
                largest = max(largest, float((s - 1).abs().max()))
            if largest < CONVERGED:
                break
    return equal


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
    check_seed(seed)
    check_numbers(spread=spread)
    if not 0 <= spread < math.inf:
        raise ValueError(f"spread={spread} must be 0 or more: the factors go from 10^−spread to 10^spread.")
    random = torch.Generator().manual_seed(seed)
    unequal, pairs = _pairs(model, "unequalize")
    factors = {}
    for pair in pairs:
        u = spread * (2 * torch.rand(pair.channels, generator=random, dtype=torch.float64) - 1)
        factors[pair] = 2.0 ** -torch.round(u * math.log2(10))
    rescale(unequal, factors)
    return unequal


def _pairs(model: nn.Module, verb: str) -> tuple[nn.Module, list[Site]]:
    """A copy of the model, and the sites in it between linear maps; a warning names those that have something behind.

    Raises:
        ValueError: there are none; says why, and what helps.
    """
    flow = watched(model)
    found, why = find_sites(model, flow)
    pairs = [site for site in found if is_linear_map(site.producer)]
    left = {
        step.name: why[step.name] for step in flow.steps if step.does == MAPS and step.name in why and leads_on(step)
    }
    if not pairs:
        folding, _ = foldable(flow)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
        advice = (
            f" {flow.names[next(iter(folding))]!r} is a batch norm: call nn.fold_batch_norm(model) first."
            if folding
            else ""
        )
        raise ValueError(
            f"{type(model).__name__} has nothing to {verb}: no linear map's channels are read by linear maps alone, "
            f"with only ReLU, pooling, Flatten and the like between{f' ({reasons})' if reasons else ''}.{advice}"
        )
    say_left(f"{verb}d {len(pairs)} of {len(pairs) + len(left)} layers", left)
    return copy_with(model, pairs)
