"""Batch-norm folding: a layer and the batch norm behind it become one layer.

A trained batch norm multiplies each channel by one number and adds another. The layer in front of it can do both
with its own weights and bias, so that there is one tensor less to quantize, and no float layer left in between.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from qlearn.nn.flow import chains
from qlearn.nn.network import set_parameter, used_once

NORM_BEHIND = {nn.Linear: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


def folded(
    weight: Any, bias: Any, *, gamma: Any = None, beta: Any = None, mean: Any, var: Any, eps: float = 1e-5
) -> tuple[Any, Any]:
    """The weights and bias of one layer that does what a layer and its batch norm do.

        y  = γ · (w x + b − μ) / √(σ² + ε) + β
        w′ = w · γ / √(σ² + ε)        b′ = (b − μ) · γ / √(σ² + ε) + β

    Args:
        weight: w, (O, …), output channels first; NumPy or PyTorch, like all others.
        bias: b, (O,), or None for 0.
        gamma, beta: the batch norm's own weight and bias, (O,); None for 1 and 0.
        mean, var: μ and σ², the running statistics, (O,).
        eps: ε.

    Returns:
        w′ in the shape of w, and b′ (O,).

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2.

    >>> import numpy as np
    >>> ones = np.ones(1)
    >>> folded(np.array([[2.0, 4.0]]), None, gamma=3 * ones, beta=ones, mean=4 * ones, var=3.75 * ones, eps=0.25)
    (array([[3., 6.]]), array([-5.]))
    """
    factor = (var + eps) ** -0.5
    if gamma is not None:
        factor = factor * gamma
    shift = -mean if bias is None else bias - mean
    shift = shift * factor if beta is None else shift * factor + beta
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), shift


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Copy a trained network and fold each batch norm into the layer in front of it.

    Found are `BatchNorm2d` behind `Conv2d`, and `BatchNorm1d` behind `Linear` on (N, I), wherever they follow each
    other in an `nn.Sequential`, with nothing or an `nn.Identity` between. An `nn.Identity` takes the batch norm's
    place, so that all names stay. Every other batch norm is left as it is: one behind something else, one in a
    `forward` of your own, one behind a layer that is used a second time.

    The new weights are computed in float64 and rounded once. In float32 the outputs move by a few units in the last
    place of the largest sums in them: on the lessons' network by less than 10⁻⁶ of the largest logit.

    Args:
        model: a trained network in evaluation mode. It is not changed.

    Raises:
        ValueError: a batch norm that would use the statistics of each batch, which no fixed weight can do (names it);
            weights that would not be finite.

    Cost: O(weights).
    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2.

    >>> fold_batch_norm(nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU()).eval())
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Identity()
      (2): ReLU()
    )
    """
    model = copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}
    own = used_once(model)
    folded_away = []
    for chain in chains(model):
        layer: nn.Module | None = None
        for step in chain:
            if type(step) is nn.Identity:
                continue
            if layer is not None and _fits(layer, step) and layer in own and step in own:
                _fold(layer, step, names)
                folded_away.append(names[step])
            else:
                layer = step if type(step) in NORM_BEHIND else None
    for name in folded_away:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    return type(norm) is NORM_BEHIND[type(layer)] and norm.num_features == len(layer.weight)


def _fold(layer: nn.Module, norm: nn.Module, names: dict[nn.Module, str]) -> None:
    if norm.training or norm.running_mean is None:
        remedy = (
            "Call model.eval() first."
            if norm.running_mean is not None
            else "Train it with track_running_stats=True, or leave it out of the Sequential."
        )
        raise ValueError(
            f"{names[norm]!r} would normalize each batch by the batch's own mean and variance, which no fixed weight "
            f"can do. {remedy}"
        )
    weight, bias = folded(
        layer.weight.detach().double(),
        _double(layer.bias),
        gamma=_double(norm.weight),
        beta=_double(norm.bias),
        mean=norm.running_mean.double(),
        var=norm.running_var.double(),
        eps=norm.eps,
    )
    try:
        set_parameter(layer, "weight", weight)
        set_parameter(layer, "bias", bias)
    except ValueError as error:
        raise ValueError(f"{names[norm]!r} cannot be folded into {names[layer]!r}: {error}") from error


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double()
