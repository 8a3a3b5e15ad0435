"""Which layer feeds which: the steps of `nn.Sequential`, nested ones opened, in the order of their calls.

Only there the order can be read off a network. What a `forward` of somebody's own does, nobody sees from outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeGuard

from torch import Tensor, nn


def chains(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The steps of each outermost Sequential of a model. What is not a Sequential is one step, whatever it holds.

    >>> list(chains(nn.Sequential(nn.Sequential(nn.Identity()), nn.ReLU())))
    [[Identity(), ReLU()]]
    """
    inner = {child for module in model.modules() if _is_plain(module) for child in module.children()}
    for module in model.modules():
        if _is_plain(module) and module not in inner:
            yield list(_steps(module))


def used_once(model: nn.Module) -> set[nn.Module]:
    """The modules that stand at one place only and share no parameter: changing one of them changes nothing else.

    >>> shared = nn.ReLU()
    >>> [shared in used_once(nn.Sequential(*steps)) for steps in ([shared], [shared, shared])]
    [True, False]
    """
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    owners = Counter(parameter for module in places for parameter in module.parameters(recurse=False))
    return {
        module
        for module, count in places.items()
        if count == 1 and all(owners[parameter] == 1 for parameter in module.parameters(recurse=False))
    }


def set_parameter(layer: nn.Module, name: str, value: Tensor) -> None:
    """Give a layer a parameter of this value, in the type of its weights, trainable if they are.

    Raises:
        ValueError: the value has entries that are not finite in this type.
    """
    weight = layer.weight
    value = value.to(weight.dtype)
    if not value.isfinite().all():
        raise ValueError(f"its {name} would have values that are not finite in {weight.dtype}.")
    setattr(layer, name, nn.Parameter(value, requires_grad=weight.requires_grad))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """A Sequential that calls its steps one after the other; a subclass may do something else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _steps(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for step in sequence:  # not .children(), which names a module that stands at two places only once
        if _is_plain(step):
            yield from _steps(step)
        else:
            yield step
