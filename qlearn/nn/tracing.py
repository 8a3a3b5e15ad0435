"""The flow of a network, followed in its code by `torch.fx`.

fx runs the code with something that stands for a tensor, and writes down what is done with it. Code that asks for
values cannot be run so; it is left out, and the modules that it calls are followed by themselves.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from qlearn.nn.flow import (
    ASKS,
    ATTRIBUTES,
    FLATTENS,
    READ,
    Flow,
    Step,
    function_name,
    hooks,
    is_leaf,
    what_does,
)  # fmt: skip
from qlearn.nn.network import HOOKS


def trace(model: nn.Module) -> Flow:
    """Follow the code of a network with `torch.fx`, in eval mode and with the defaults of all arguments that have one.

    Of a module that fx cannot follow (its code asks for values), the children are traced by themselves, each as a unit;
    what leaves or enters a unit is read by somebody unknown.

    Args:
        model: any network. It is not changed; its parameters are not copied.

    Cost: some milliseconds for each call in the network's code.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
    ...     def forward(self, x):
    ...         return self.b(self.a(x).relu())
    >>> [(step.name, step.does) for step in trace(Net()).steps]
    [('x', '?'), ('a', 'maps'), ('relu', 'keeps'), ('b', 'maps'), ('the output', '?')]
    """
    flow = Flow(model)
    parameters: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, parameters).eval()
    originals = dict(zip(twin.modules(), model.modules(), strict=True))
    hooked = {module for module in twin.modules() if _unhook(module)}
    in_parts, units = set[nn.Module](), [twin]
    for unit in units:  # grows
        if is_leaf(unit) and unit is not twin:
            continue
        tracer = _Tracer(hooked - {unit})
        inner: Iterable[nn.Module] = unit.children()
        if unit not in in_parts and tracer.follow(unit):
            _add_graph(flow, tracer, originals)
            inner = [module for module in unit.modules() if module in tracer.closed]
        in_parts |= tracer.in_parts
        units += [module for module in inner if module not in units]
    flow.way = "traced in parts" if len(units) > 1 else "traced"
    return flow


class _Tracer(fx.Tracer):
    """fx's tracer, that goes on where it cannot follow a module: that one is closed then, as those of its type are."""

    def __init__(self, closed: Iterable[nn.Module]) -> None:
        super().__init__()
        self.closed = set(closed)
        self.in_parts: set[nn.Module] = set()
        self.running: list[nn.Module] = []

    def follow(self, unit: nn.Module) -> bool:
        """Fill `graph`; whether that can be done."""
        # fx reads the code of a type, which is not always what a module runs.
        if "forward" in vars(unit) or type(unit).__call__ is not nn.Module.__call__:
            return False
        self.owners = dict(_owners(unit, unit))
        parameters = inspect.signature(unit.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        while True:
            self.running = [unit]
            try:
                self.graph = self.trace(unit, defaults)
                return True
            except Exception:  # whatever the code of a network may raise where a number is no number
                culprit = self.running[-1]
                if culprit is unit:
                    return False
                self.closed |= {module for module in unit.modules() if type(module) is type(culprit)} - {unit}

    def is_leaf_module(self, module: nn.Module, _: str) -> bool:
        """Whether fx has to take it as one call."""
        return is_leaf(module) or module in self.closed

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """As fx does it; in between, know who is running."""
        if self.owners.get(module) not in (None, self.running[-1]):
            self.in_parts.add(self.owners[module])
        if self.is_leaf_module(module, ""):
            return super().call_module(module, forward, args, kwargs)
        self.running.append(module)
        result = super().call_module(module, forward, args, kwargs)
        self.running.pop()  # not after an error: then the last one is where it happened
        return result


def _owners(module: nn.Module, owner: nn.Module) -> Iterable[tuple[nn.Module, nn.Module]]:
    """Every module inside, with the one whose code is to call it."""
    for child in module.children():
        yield child, owner
        yield from _owners(child, owner if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else child)


def _add_graph(flow: Flow, tracer: _Tracer, originals: Mapping[nn.Module, nn.Module]) -> None:
    """Put the calls that fx has found into the flow."""
    made: dict[fx.Node, Step] = {}
    root = tracer.root
    closed = [flow.names[originals[module]] + "." for module in tracer.closed]
    for node in tracer.graph.nodes:
        sources = [part for part in tree_leaves((node.args, node.kwargs)) if isinstance(part, fx.Node)]
        if _asks(node) or (node.op == "get_attr" and all(map(_asks, node.users))):
            continue
        step = Step(str(node.target), reads=[made[source] for source in sources if source in made])
        if node.op == "call_module":
            module = root.get_submodule(node.target)
            step.module, step.name = originals[module], flow.names[originals[module]]
            step.does = flow.what_does(step.module)
            if inside := next((name for name in closed if step.name.startswith(name)), None):
                flow.forbid(step.module, f"{inside[:-1]!r}, whose code cannot be followed, may call it, too")
        elif node.op in ("call_function", "call_method"):
            step.name = function_name(node.target)
            step.does = FLATTENS if _flattens(node) else what_does(step.name)
        elif node.op == "get_attr":
            flow.forbid(operator.attrgetter(node.target)(root), READ)
        elif node.op == "output":
            step.name = "the output"
        made[node] = flow.add(step)


def _asks(node: fx.Node) -> bool:
    """Whether a call asks for a shape or a type, and not for values."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ATTRIBUTES
    return node.op in ("call_function", "call_method") and function_name(node.target) in ASKS


def _flattens(node: fx.Node) -> bool:
    """flatten(x, 1), x.view(x.size(0), -1), x.reshape(x.shape[0], -1)."""
    name = function_name(node.target)
    if name == "flatten":
        axes = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False)) | node.kwargs
        return (axes.get("start_dim", 0), axes.get("end_dim", -1)) == (1, -1)
    if name not in ("view", "reshape"):
        return False
    x, *sizes = tree_leaves((node.args, node.kwargs))
    if len(sizes) != 2 or sizes[1] != -1 or not isinstance(sizes[0], fx.Node):
        return False
    if sizes[0].target is operator.getitem and sizes[0].args[1] == 0 and isinstance(sizes[0].args[0], fx.Node):
        shape = sizes[0].args[0]
        return (shape.target, *shape.args) in ((getattr, x, "shape"), ("size", x))
    return (sizes[0].target, *sizes[0].args) == ("size", x, 0)


def _unhook(module: nn.Module) -> bool:
    """Take the hooks from a module; whether there were any."""
    found = bool(hooks(module))
    for kind in HOOKS:
        setattr(module, kind, type(getattr(module, kind))())
    return found
