"""The flow of a network, watched on one batch: whatever its code is, all that it calls goes past here.

Modules are heard by hooks, functions by a `TorchFunctionMode`. Who reads what is known by the tensors themselves.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from qlearn.nn.batches import Forward, call, evaluating, tensors_in
from qlearn.nn.flow import ASKS, FLATTENS, READ, Flow, Step, function_name, is_leaf, what_does
from qlearn.nn.linear_maps import KINDS
from qlearn.nn.network import check_model, refuse_computed_weights
from qlearn.nn.tracing import trace


def refuse_unless_float(model: nn.Module) -> None:
    """Raise where a network has layers whose numbers cannot be changed: codes, or what a hook computes.

    Raises:
        ValueError: names the layer.
    """
    check_model(model)
    for name, module in model.named_modules():
        if hasattr(module, "weight_qparams"):
            raise ValueError(f"{name!r} is a {type(module).__name__}: change the float network, before nn.prepare.")
    refuse_computed_weights({name: module for name, module in model.named_modules() if isinstance(module, KINDS)})


def watched(model: nn.Module, batch: Any = None, forward: Forward | None = None) -> Flow:
    """The flow of a network whose numbers are to be changed: recorded on a batch, or traced if there is none.

    Raises:
        ValueError: as `refuse_unless_float`.
    """
    refuse_unless_float(model)
    return trace(model) if batch is None else record(model, batch, forward)


def record(model: nn.Module, batch: Any, forward: Forward | None = None) -> Flow:
    """Watch the network on one batch, in eval mode and without gradients.

    Args:
        model, batch, forward: as for `batches.call`. The model has its hooks and modes back afterwards.

    Cost: one pass; some microseconds for each call.

    >>> flow = record(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))
    >>> [(step.name, [reader.name for reader in step.readers]) for step in flow.steps]
    [('0', ['1']), ('1', ['the output']), ('the output', [])]
    """
    flow = Flow(model)
    flow.way = "recorded"
    recorder = _Recorder(flow)
    with ExitStack() as hooks:
        for leaf in filter(is_leaf, model.modules()):
            hooks.enter_context(leaf.register_forward_pre_hook(recorder.enter))
            hooks.enter_context(leaf.register_forward_hook(recorder.leave, with_kwargs=True, always_call=True))
        with torch.no_grad(), evaluating(model), recorder:
            output = call(model, batch, forward)
    recorder.add(Step("the output"), tensors_in(output), [])
    return flow


class _Recorder(TorchFunctionMode):
    """Makes a step of each function and of each leaf module that is called."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.made: Any = WeakTensorKeyDictionary()  # tensor → the step that made it
        self.inside = 0  # how many leaf modules are running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = function_name(func)
        made = [args[0]] if name == "setitem" else tensors_in(output)
        if self.inside or name in ASKS or (name == "get" and not made):
            return output
        reads = tensors_in((args, kwargs))
        step = Step(name, what_does(name))
        if name in ("flatten", "view", "reshape") and reads[0].ndim > 2 and made[0].shape[:-1] == reads[0].shape[:1]:
            step.does = FLATTENS
        self.add(step, reads, made)
        return output

    def enter(self, *_: Any) -> None:
        """A leaf begins: what it calls is its own affair."""
        self.inside += 1

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A leaf has ended."""
        self.inside -= 1
        if not self.inside:
            step = Step(self.flow.names[module], self.flow.what_does(module), module)
            self.add(step, tensors_in((args, kwargs)), tensors_in(output))

    def add(self, step: Step, reads: list[Tensor], made: list[Tensor]) -> None:
        """Put the step into the flow, and remember what it made."""
        for tensor in reads:
            self.flow.forbid(tensor, READ)
        # Something and an empty cache is that something.
        step.reads = [self.made.setdefault(tensor, Step("an input")) for tensor in reads if tensor.numel()]
        step.shape = tuple(made[0].shape) if made else ()
        self.flow.add(step)
        for tensor in made:
            self.made[tensor] = step
