"""AWQ: weights that read large activations are made larger before rounding, so that their error is smaller.

An error of a weight counts as much as the activation that it is multiplied with. Scale the column of a channel with
large activations up by s and its activations down by s: on the same grid, its relative error falls by s.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from array_api_compat import array_namespace
from torch import nn
from tqdm.auto import tqdm

from qlearn import gptq
from qlearn.affine import fake_quantize
from qlearn.config import QuantConfig
from qlearn.nn.batches import Batches, Forward, listed
from qlearn.nn.collect import collected
from qlearn.nn.gptq import SecondMoment
from qlearn.nn.linear_maps import LinearMap, rows_of
from qlearn.nn.network import check_counts
from qlearn.nn.rescaling import copied
from qlearn.nn.site import Site, rescale

GRID = 20  # exponents that are tried between 0 and 1


def awq_factors(
    weights: Sequence[Any], hessian: Any, config: QuantConfig, *, grid: int = GRID, channel_of: Any = None
) -> tuple[Any, float]:
    """Find how much larger to make the column of each channel before the weights are rounded.

        s_j = a_j^α / √(max a^α · min a^α)        a_j = √H_jj, the root mean square of channel j
        α   = argmin over 0, 1/grid … 1 of Σ over layers of mean ‖(ŵ(s) − w) x‖²,    ŵ(s) = fake_quantize(w · s) / s

    The paper takes the mean magnitude for a_j; H has the root mean square, which serves as well and is at hand. α = 0
    leaves all as it was, so the result is never worse than rounding to the nearest.

    Args:
        weights: of the layers that read these channels, each (O, C), or (O, I) if a channel has several columns.
        hessian: (I, I), the mean of x xᵀ over what the columns are multiplied with.
        config: how the weights are to be quantized.
        grid: how many steps α takes from 0 to 1.
        channel_of: (I,) the channel of each column; None for one column each. a_j is the root of the channel's mean.

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
    check_counts(grid=grid)
    xp = array_namespace(hessian, *weights)
    squares = xp.linalg.diagonal(hessian)
    if channel_of is not None:
        belongs = xp.astype(channel_of[None, :] == xp.unique_values(channel_of)[:, None], squares.dtype)
        squares = (belongs @ squares) / xp.sum(belongs, axis=1)
    a = xp.sqrt(squares)
    # A silent channel counts as the weakest one that is not.
    a = xp.where(a > 0, a, xp.min(xp.where(a > 0, a, xp.max(a) + (xp.max(a) == 0) * 1.0)))

    def tried(alpha: float) -> tuple[Any, float]:
        s = a**alpha
        s = s / xp.sqrt(xp.max(s) * xp.min(s))
        error = 0.0
        for w in weights:
            factor = xp.astype(s if channel_of is None else s[channel_of], w.dtype)
            scaled = w * factor
            w_hat = fake_quantize(scaled, config.find_qparams(scaled)) / factor
            error += float(gptq.output_error(w, w_hat, hessian))
        return s, error

    return min((tried(step / grid) for step in range(grid + 1)), key=itemgetter(1))


def awq(
    model: nn.Module,
    batches: Batches,
    weights: QuantConfig,
    *,
    grid: int = GRID,
    forward: Forward | None = None,
    sites: Sequence[Site] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Copy a network and rescale its channels so that rounding its weights harms its outputs least.

        awq → prepare(…, weights, activations=None) → convert

    The function stays the same, but for rounding in the last digits. The factors are found with inputs as they are in
    float; rescaling one site changes no other's. Layers whose inputs cannot be rescaled are left as they are, and
    named in a warning; so are convolutions with groups.

    Args:
        model: a float network: a transformer, or any other that has such places; see `rescaling.sites`. It is not
            changed.
        batches: data that the model was not trained on and will not be tested on, as for `calibrate`. On the first
            batch the network is watched.
        weights: how they will be quantized: the search rounds them in this way.
        grid: how many exponents are tried.
        forward: how the network is called on a batch, for all that `batches.call` does not understand.
        sites: the places to rescale, if you know them better.
        progress: show a bar.

    Raises:
        ValueError: no batches, a model without such places, or prepared already; weights that a hook computes; sites
            that share their numbers with others.

    Cost: one pass through the network, two more of the first batch, and grid + 1 quantizations of each layer.
    Source: Lin et al. 2023, https://arxiv.org/abs/2306.00978.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, x = language_model(), to_tokens("Call me Ishmael.")
    >>> rescaled = awq(model, [x], QuantConfig(bits=4, symmetric=True), progress=False)
    >>> bool((rescaled(x) - model(x)).abs().max() < 1e-5)
    True
    """
    check_counts(grid=grid)
    if not isinstance(weights, QuantConfig):
        raise TypeError(f"weights must be a QuantConfig, not {weights!r}.")
    rescaled, found, pieces = copied(model, listed(batches), forward, sites, "rescaled")
    # All consumers of a site read the same channels: one of them is looked at.
    first = {site.name: site.consumers[0] for site in found}
    products = collected(rescaled, first, SecondMoment, pieces, forward=forward)
    factors = {}
    for site in tqdm(found, desc="AWQ", unit="site", leave=False, disable=not progress):
        layer: Any = site.consumers[0]
        if any(
            other.weight.shape[1:] != layer.weight.shape[1:] or LinearMap.of(other).groups > 1
            for other in site.consumers
        ):
            warnings.warn(f"{site.name}: its readers have groups or are of several shapes: left.", stacklevel=2)
            continue
        channel_of = site.channel_of(layer).repeat_interleave(rows_of(layer)[0, 0].numel())
        rows = [rows_of(each).detach().flatten(1) for each in site.consumers]
        factors[site], _ = awq_factors(rows, products[site.name].mean, weights, grid=grid, channel_of=channel_of)
    rescale(rescaled, factors)
    return rescaled
