"""AWQ: weights that read large activations are made larger before rounding, so that their error is smaller.

An error of a weight counts as much as the activation that it is multiplied with. Scale the column of a channel with
large activations up by s and its activations down by s: on the same grid, its relative error falls by s.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from array_api_compat import array_namespace
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn import gptq
from qlearn.affine import fake_quantize
from qlearn.config import QuantConfig
from qlearn.nn.gptq import hessians
from qlearn.nn.rescaling import sites

GRID = 20  # exponents that are tried between 0 and 1


def awq_factors(weights: Sequence[Any], hessian: Any, config: QuantConfig, *, grid: int = GRID) -> tuple[Any, float]:
    """Find how much larger to make the column of each channel before the weights are rounded.

        s_j = a_j^α / √(max a^α · min a^α)        a_j = √H_jj, the root mean square of channel j
        α   = argmin over 0, 1/grid … 1 of Σ over layers of mean ‖(ŵ(s) − w) x‖²,    ŵ(s) = fake_quantize(w · s) / s

    The paper takes the mean magnitude for a_j; H has the root mean square, which serves as well and is at hand. α = 0
    leaves all as it was, so the result is never worse than rounding to the nearest.

    Args:
        weights: of the layers that read these channels, each (O, C).
        hessian: (C, C), the mean of x xᵀ over the channels' values x.
        config: how the weights are to be quantized.
        grid: how many steps α takes from 0 to 1.

    Returns:
        s (C,), and the error with it, in the squared units of the outputs.

    Raises:
        ValueError: a grid below 1, shapes that do not belong together.

    Cost: grid + 1 times one quantization of the weights and one product with H.
    Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978, section 3.2.

    >>> import numpy as np
    >>> w, h = np.array([[0.4, 1.0], [0.2, -1.0]]), np.diag([100.0, 1.0])
    >>> s, error = awq_factors([w], h, QuantConfig(bits=3, symmetric=True))
    >>> bool(s[0] > 1 > s[1]), bool(error < awq_factors([w], np.eye(2), QuantConfig(bits=3, symmetric=True))[1] * 100)
    (True, True)
    """
    if grid < 1:
        raise ValueError(f"grid={grid} must be 1 or more.")
    xp = array_namespace(hessian, *weights)
    a = xp.sqrt(xp.linalg.diagonal(hessian))
    a = xp.where(
        a > 0, a, xp.min(xp.where(a > 0, a, xp.max(a) + (xp.max(a) == 0) * 1.0))
    )  # a silent channel: the least
    best: tuple[Any, float] | None = None
    for step in range(grid + 1):
        s = a ** (step / grid)
        s = s / xp.sqrt(xp.max(s) * xp.min(s))
        error = 0.0
        for w in weights:
            factor = xp.astype(s, w.dtype)
            scaled = w * factor
            w_hat = fake_quantize(scaled, config.find_qparams(scaled)) / factor
            error += float(gptq.output_error(w, w_hat, hessian))
        if best is None or error < best[1]:
            best = s, error
    assert best is not None
    return best


def awq(
    model: nn.Module, batches: Iterable[Any] | Tensor, weights: QuantConfig, *, grid: int = GRID, progress: bool = True
) -> nn.Module:
    """Copy a language model and rescale its channels so that rounding its weights harms its outputs least.

        awq → prepare(…, weights, activations=None) → convert

    The function stays the same, but for rounding in the last digits. Sites are taken in the order of the network, with
    inputs as they are in float.

    Args:
        model: a `LanguageModel` in float. It is not changed.
        batches: tokens (N, T) that the model was not trained on and will not be tested on, as for `calibrate`.
        weights: how they will be quantized: the search rounds them in this way.
        grid: how many exponents are tried.
        progress: show a bar.

    Raises:
        ValueError: no batches, a model without transformer blocks or one that is prepared.

    Cost: one pass through the network, and grid + 1 quantizations of each layer.
    Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, x = language_model(), to_tokens("Call me Ishmael.")
    >>> rescaled = awq(model, [x], QuantConfig(bits=4, symmetric=True), progress=False)
    >>> bool((rescaled(x) - model(x)).abs().max() < 1e-5)
    True
    """
    rescaled = copy.deepcopy(model)
    names = {layer: name for name, layer in rescaled.named_modules()}
    products = hessians(rescaled, batches)
    for site in tqdm(sites(rescaled), desc="AWQ", unit="site", leave=False, disable=not progress):
        # Measured before anything was rescaled, and still right: rescaling one site changes no other's inputs.
        h = products[names[site.consumers[0]]]
        s, _ = awq_factors([layer.weight.detach() for layer in site.consumers], h, weights, grid=grid)
        site.rescale(s.to(site.consumers[0].weight.dtype))
    return rescaled
