"""Whether a network that was changed still computes what it did: what comes out for a batch, before and after.

wanted_outputs(model, batch)  →  changes  →  distance(wanted, outputs_in_float(changed, batch)) ≤ limit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qlearn.nn.batches import Forward, call, device_of, evaluating, tensors_in

T = TypeVar("T")


def outputs_in_float(model: nn.Module, batch: Any, forward: Forward | None) -> list[Tensor]:
    """All tensors in what a network puts out for a batch, in eval mode and without gradients."""
    with torch.no_grad(), evaluating(model), torch.autocast(device_of(model).type, enabled=False):
        return [part.float() for part in tensors_in(call(model, batch, forward))]


def wanted_outputs(model: nn.Module, batch: Any, forward: Forward | None) -> list[Tensor]:
    """`outputs_in_float` of a network that is to be changed, which must be such as can be compared.

    Raises:
        ValueError: NaN.
    """
    wanted = outputs_in_float(model, batch, forward)
    if any(part.isnan().any() for part in wanted):
        raise ValueError("the network's outputs are not finite: look for NaN in the first batch or its weights.")
    return wanted


def distance(wanted: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """The largest difference of outputs, in parts of the largest number; NaN if there is one.

    >>> distance([torch.tensor([2.0, -4.0])], [torch.tensor([2.0, -3.0])])
    0.25
    """
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a.numel()]
    off = [(a - b).abs().max() / a.abs().max().clamp(min=1e-30) for a, b in pairs]
    return float(torch.tensor([0.0, *off]).max())


def failing(changes: list[T], hold: Callable[[list[T]], bool]) -> list[T]:
    """Those changes that do not hold: all are tried at once, and where that fails either half by itself.

    >>> failing([1, 2, 3, 4], lambda some: 3 not in some)
    [3]
    """
    if not changes or hold(changes):
        return []
    half = len(changes) // 2
    return failing(changes[:half], hold) + failing(changes[half:], hold) if half else changes
