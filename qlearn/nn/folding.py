"""Batch-norm folding: a layer and the batch norm behind it become one layer.

A trained batch norm multiplies each channel by one number and adds another. The layer in front of it can do both
with its own weights and bias, so that there is one tensor less to quantize, and no float layer left in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qlearn.nn.flow import KEEPS, MAPS, Flow, Step, say_left
from qlearn.nn.linear_maps import LinearMap
from qlearn.nn.network import carry_attributes, copy_with, replace, set_parameter
from qlearn.nn.recording import watched

NORM_BEHIND = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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

    Found are `BatchNorm2d` behind `Conv2d` and `ConvTranspose2d`, and `BatchNorm1d` behind `Conv1d` and `Linear`, with
    nothing or an `nn.Identity` between, in any code that `tracing.trace` can follow. An `nn.Identity` takes the batch
    norm's place, so that all names stay. Every other batch norm is left as it is, and named in a warning.

    Behind a `Linear` the batch norm takes (N, C) and (N, L, C) alike, and normalizes L in the second: no layer can do
    that. What takes its place refuses such an input.

    The new weights are computed in float64 and rounded once. In float32 the outputs move by a few units in the last
    place of the largest sums in them: on the lessons' network by less than 10⁻⁶ of the largest logit.

    Args:
        model: a trained network in evaluation mode. It is not changed.

    Raises:
        ValueError: a batch norm that would use the statistics of each batch, which no fixed weight can do (names it);
            weights that would not be finite, that a hook computes, or that are codes.

    Cost: O(weights).
    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2.

    >>> fold_batch_norm(nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU()).eval())
    Sequential(
      (0): Conv2d(2, 3, kernel_size=(1, 1), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    flow = watched(model)
    pairs, left = foldable(flow)
    if left:
        say_left(f"folded {len(pairs)} of {len(pairs) + len(left)} batch norms", left, stacklevel=3)
    names = flow.names
    for norm in pairs:
        _refuse_without_statistics(norm, names[norm])
    twin, twins = copy_with(model, list(pairs.items()))
    for (norm, layer), (named, into) in zip(twins, pairs.items(), strict=True):
        try:
            _fold(layer, norm)
        except ValueError as error:
            raise ValueError(f"{names[named]!r} cannot be folded into {names[into]!r}: {error}") from error
    return replace(twin, {norm: _in_its_place(norm, layer) for norm, layer in twins})


class FoldedNorm(nn.Identity):
    """In the place of a `BatchNorm1d` that was folded: what has another number of axes was normalized otherwise."""

    does_to_channels = KEEPS

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, input: Tensor) -> Tensor:
        """The input itself.

        Raises:
            ValueError: it has another number of axes.
        """
        if input.ndim != self.axes:
            raise ValueError(
                f"a batch norm was folded here that gets inputs of {self.axes} axes, not of shape "
                f"{tuple(input.shape)}, of which it would have normalized axis 1: leave it out of fold_batch_norm."
            )
        return input

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"axes={self.axes}"


def foldable(flow: Flow) -> tuple[dict[nn.Module, nn.Module], dict[str, str]]:
    """The batch norms that can be folded, each with the layer in front of it; and why others cannot, name → why."""
    pairs: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}
    steps = {step.module: step for step in flow.steps}
    for norm in dict.fromkeys([*steps, *flow.names]):  # in the order of the calls
        if isinstance(norm, BATCH_NORMS):
            layer = _in_front(flow, steps.get(norm), norm, pairs)
            if isinstance(layer, str):
                left[flow.names[norm]] = layer
            else:
                pairs[norm] = layer
    return pairs, left


def _in_front(
    flow: Flow, step: Step | None, norm: nn.Module, folded_away: Mapping[nn.Module, nn.Module]
) -> nn.Module | str:
    """The layer that can take a norm in, or why there is none."""
    if step is None or flow.why_not(norm):
        return flow.why_not(norm)
    source = step.reads[0]
    while len(source.reads) == len(source.readers) == 1 and (
        isinstance(source.module, nn.Identity) or source.module in folded_away
    ):
        source = source.reads[0]
    if source.module is None or NORM_BEHIND.get(type(source.module)) is not type(norm) or source.does != MAPS:
        return f"it is a {type(norm).__name__} and follows {source.name!r}"
    if len(source.readers) > 1:
        return f"it is not the only one that reads {source.name!r}"
    if reason := flow.why_not(source.module):
        return f"it follows {source.name!r}, and {reason}"
    if norm.num_features != LinearMap.of(source.module).outputs:
        return f"it has not as many channels as {source.name!r}"
    return source.module


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Change the layer's weights and bias."""
    made = LinearMap.of(layer)
    weight, bias = folded(
        made.rows(layer.weight.detach().double()),
        _double(layer.bias),
        gamma=_double(norm.weight),
        beta=_double(norm.bias),
        mean=norm.running_mean.double(),
        var=norm.running_var.double(),
        eps=norm.eps,
    )
    set_parameter(layer, "weight", made.weight(weight))
    set_parameter(layer, "bias", bias)


def _refuse_without_statistics(norm: nn.Module, name: str) -> None:
    if norm.training or norm.running_mean is None:
        remedy = (
            "Call model.eval() first."
            if norm.running_mean is not None
            else "Train it with track_running_stats=True, or leave it out of the Sequential."
        )
        raise ValueError(
            f"{name!r} would normalize each batch by the batch's own mean and variance, which no fixed weight "
            f"can do. {remedy}"
        )


def _in_its_place(norm: nn.Module, layer: nn.Module) -> nn.Module:
    place = nn.Identity() if type(norm) is nn.BatchNorm2d else FoldedNorm(2 if type(layer) is nn.Linear else 3)
    carry_attributes(norm, place)
    return place.train(norm.training)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double()
