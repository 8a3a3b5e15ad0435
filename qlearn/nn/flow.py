"""Which layer feeds which: the steps of `nn.Sequential`, nested ones opened, in the order of their calls.

Only there the order can be read off a network. What a `forward` of somebody's own does, nobody sees from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

from torch import nn


def chains(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The steps of each outermost Sequential of a model. What is not a Sequential is one step, whatever it holds.

    >>> list(chains(nn.Sequential(nn.Sequential(nn.Identity()), nn.ReLU())))
    [[Identity(), ReLU()]]
    """
    inner = {child for module in model.modules() if _is_plain(module) for child in module.children()}
    for module in model.modules():
        if _is_plain(module) and module not in inner:
            yield list(_steps(module))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """A Sequential that calls its steps one after the other; a subclass may do something else."""
    return type(module) is nn.Sequential


def _steps(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for step in sequence:  # not .children(), which names a module that stands at two places only once
        if _is_plain(step):
            yield from _steps(step)
        else:
            yield step
