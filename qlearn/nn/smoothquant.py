"""SmoothQuant: large activations are made smaller, and the weights that read them larger.

Activations are hard to quantize where a few channels are many times as large as all others: one scale for a tensor
must reach them all, and leaves few codes to the rest. Weights are even, so they can take over part of the difficulty.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from array_api_compat import array_namespace
from torch import Tensor, nn

from qlearn.nn.batches import outputs
from qlearn.nn.rescaling import Site, sites


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
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be from 0 to 1.")
    xp = array_namespace(largest_x, largest_w)
    alive = (largest_x > 0) & (largest_w > 0)
    one = xp.ones_like(largest_x)
    return xp.where(
        alive, xp.where(alive, largest_x, one) ** alpha / xp.where(alive, largest_w, one) ** (1 - alpha), one
    )


def smooth(model: nn.Module, batches: Iterable[Any] | Tensor, *, alpha: float = 0.5) -> nn.Module:
    """Copy a language model and move the outliers of its activations into its weights.

        smooth → prepare → calibrate → convert

    The function stays the same, but for rounding in the last digits.

    Args:
        model: a `LanguageModel` in float. It is not changed.
        batches: tokens (N, T) that the model was not trained on and will not be tested on, as for `calibrate`.
        alpha: how much of the difficulty goes to the weights, 0 … 1.

    Raises:
        ValueError: no batches, alpha outside 0 … 1, a model without transformer blocks or one that is prepared.

    Cost: one pass through the network.
    Source: Xiao et al. 2022, https://arxiv.org/abs/2211.10438.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, x = language_model(), to_tokens("Call me Ishmael.")
    >>> bool(torch.allclose(smooth(model, [x])(x), model(x), atol=1e-5))
    True
    """
    smoothed = copy.deepcopy(model)
    largest = largest_inputs(smoothed, batches)
    for site in sites(smoothed):
        largest_w = torch.stack([layer.weight.detach().abs().amax(0) for layer in site.consumers]).amax(0)
        site.rescale(smoothing_factors(largest[site.name], largest_w, alpha))
    return smoothed


def largest_inputs(model: nn.Module, batches: Iterable[Any] | Tensor) -> dict[str, Tensor]:
    """For each site of a language model, the largest magnitude of each channel: name → (C,).

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> largest_inputs(language_model(), [to_tokens("Call me")])["blocks.0.norm1"].shape
    torch.Size([192])
    """
    found: dict[str, Tensor] = {}

    def listen(site: Site) -> Any:
        def hear(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            largest = arguments[0].abs().flatten(0, -2).amax(0)
            found[site.name] = torch.maximum(found[site.name], largest) if site.name in found else largest

        return site.consumers[0].register_forward_pre_hook(hear)

    with ExitStack() as stack:
        for site in sites(model):
            stack.callback(listen(site).remove)
        for _ in outputs(model, batches):
            pass
    return found
