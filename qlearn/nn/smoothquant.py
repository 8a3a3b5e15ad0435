"""SmoothQuant: large activations are made smaller, and the weights that read them larger.

Activations are hard to quantize where a few channels are many times as large as all others: one scale for a tensor
must reach them all, and leaves few codes to the rest. Weights are even, so they can take over part of the difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlearn.nn.batches import Batches, Forward, listed
from qlearn.nn.collect import LargestOfChannels, collected
from qlearn.nn.equalization import balancing_factors
from qlearn.nn.linear_maps import LinearMap
from qlearn.nn.network import check_numbers
from qlearn.nn.rescaling import copied
from qlearn.nn.site import Site, rescale


def smoothing_factors(largest_x: Any, largest_w: Any, alpha: float = 0.5) -> Any:
    """How much smaller to make each channel of the activations.

        s_j = max|x_j|^α / max|w_j|^(1 − α)

    With α = ½ channel and weights meet half way: both reach √(max|x_j| · max|w_j|). With α = 0 the weights' channels
    become equal, with α = 1 those of the activations. A channel that is 0 on one side gets the factor 1.

    Args:
        largest_x: (C,) the largest magnitude of each channel of the activations.
        largest_w: (C,) that of the weights that read it.
        alpha: 0 … 1.

    Returns:
        s: (C,), by which activations are to be divided and weights multiplied.

    Raises:
        ValueError: alpha outside 0 … 1.

    Source: Xiao et al. 2022, https://arxiv.org/abs/2211.10438, equation 4.

    >>> import numpy as np
    >>> smoothing_factors(np.array([64.0, 1.0, 0.0]), np.array([1.0, 4.0, 1.0]))
    array([8. , 0.5, 1. ])
    """
    check_numbers(alpha=alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be from 0 to 1.")
    return balancing_factors(largest_x, largest_w, alpha)


def smooth(
    model: nn.Module,
    batches: Batches,
    *,
    alpha: float = 0.5,
    forward: Forward | None = None,
    sites: Sequence[Site] | None = None,
) -> nn.Module:
    """Copy a network and move the outliers of its activations into its weights.

        smooth → prepare → calibrate → convert

    The function stays the same, but for rounding in the last digits. Layers whose inputs cannot be rescaled are left
    as they are, and named in a warning.

    Args:
        model: a float network: a transformer, or any other that has such places; see `rescaling.sites`. It is not
            changed.
        batches: data that the model was not trained on and will not be tested on, as for `calibrate`. On the first
            batch the network is watched.
        alpha: how much of the difficulty goes to the weights, 0 … 1.
        forward: how the network is called on a batch, for all that `batches.call` does not understand.
        sites: the places to rescale, if you know them better.

    Raises:
        ValueError: no batches, alpha outside 0 … 1, a model without such places, or prepared already; weights that a
            hook computes; sites that share their numbers with others.

    Cost: one pass through the network, and two more of the first batch.
    Source: Xiao et al. 2022, https://arxiv.org/abs/2211.10438.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, x = language_model(), to_tokens("Call me Ishmael.")
    >>> bool(torch.allclose(smooth(model, [x])(x), model(x), atol=1e-5))
    True
    """
    smoothed, found, pieces = copied(model, listed(batches), forward, sites, "smoothed")
    largest = largest_inputs(smoothed, found, pieces, forward)
    rescale(smoothed, {site: smoothing_factors(largest[site.name], site.largest_read(), alpha) for site in found})
    return smoothed


def largest_inputs(
    model: nn.Module, sites: Sequence[Site], batches: Batches, forward: Forward | None = None
) -> dict[str, Tensor]:
    """For each of these sites of a model, the largest magnitude of each channel: name → (C,).

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> from qlearn.nn.rescaling import sites
    >>> model = language_model()
    >>> largest_inputs(model, sites(model), [to_tokens("Call me")])["blocks.0.norm1"].shape
    torch.Size([192])
    """
    layers = {f"{site.name} {i}": layer for site in sites for i, layer in enumerate(site.consumers)}
    found = collected(
        model, layers, lambda layer: LargestOfChannels(LinearMap.of(layer).output_axis), batches, forward=forward
    )
    return {
        site.name: torch.stack(
            [site.largest(layer, found[f"{site.name} {i}"].largest) for i, layer in enumerate(site.consumers)]
        ).amax(0)
        for site in sites
    }
