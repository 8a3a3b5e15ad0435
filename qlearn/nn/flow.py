"""Which calls of a network read what others make, and what each does to the channels that pass through it.

    trace(model)          from the code alone: PyTorch's `torch.fx`, for as much of the network as it can follow
    record(model, batch)  from one pass: whatever the code is, but only what this batch reaches

Both give a `Flow`. What nobody can see from outside is somebody who reads everything: the rest of a network around a
part that could be traced, hooks, and functions that are not in the tables here.
"""

from __future__ import annotations

import copy
import inspect
import operator
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from qlearn.nn.batches import Forward, call, evaluating
from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.linear_maps import KINDS, is_linear_map
from qlearn.nn.network import refuse_computed_weights, sharing, used_once
from qlearn.nn.prepared import HOOKS, PreparedLayer

# What a step does to its channels. All but "?" let a positive factor of a channel through: f(s · x) = s · f(x).
KEEPS, POOLS, FLATTENS = "keeps", "pools", "flattens"  # where they are; over the image; (N, C, …) → (N, C · …)
MOVES, TIMES, MIXES = (
    "moves",
    "times",
    "mixes",
)  # to other axes; by other numbers; tokens, by weights (the last operand)
MAPS, UNKNOWN = "maps", "?"
HEARD = "a hook sees what goes in or comes out"
READ = "the network reads its numbers without calling it"

MODULES: dict[type, str] = {
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), KEEPS),
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d), POOLS + "1"),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d), POOLS + "2"),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), MOVES),
}
FUNCTIONS = {
    **dict.fromkeys(("relu", "leaky_relu", "dropout", "dropout2d", "contiguous", "clone", "detach"), KEEPS),
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "adaptive_max_pool1d", "adaptive_avg_pool1d"), POOLS + "1"),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"), POOLS + "2"),
    **dict.fromkeys(("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "getitem", "cat"), MOVES),
    **dict.fromkeys(("transpose", "permute", "expand", "repeat_interleave"), MOVES),
    **dict.fromkeys(("mul", "multiply", "imul", "rmul"), TIMES),
    **dict.fromkeys(("matmul", "bmm", "scaled_dot_product_attention"), MIXES),
}
# Questions about a tensor that its values do not answer.
ASKS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "len", "is_contiguous", "is_floating_point"}
ASKS |= {"get_device", "element_size", "is_complex", "data_ptr"}
ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "itemsize", "nbytes"}
# fx shows a function that decides by a flag under another name.
_BY_FLAG = {getattr(functional, name): name for name in FUNCTIONS if "max_pool" in name}


@dataclass(eq=False)
class Step:
    """One call in a network.

    Attributes:
        name: of the module in the network, or of the function.
        does: what it does to the channels.
        module: which was called; None for a function.
        reads: the steps whose outputs it takes, in the order of its arguments.
        readers: the steps that take its output.
        shape: of its output, where it was recorded.
    """

    name: str
    does: str = UNKNOWN
    module: nn.Module | None = None
    reads: list[Step] = field(default_factory=list, repr=False)
    readers: list[Step] = field(default_factory=list, repr=False)
    shape: tuple[int, ...] = ()


class Flow:
    """The calls of a network, in their order.

    Attributes:
        steps: all of them.
        names: of the network's modules.
        way: how they were found: "traced", "traced in parts" or "recorded".
        closed: modules whose own code could not be followed, name → why. Nobody sees what they call.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.steps: list[Step] = []
        self.way = "traced"
        self.closed: dict[str, str] = {}
        self.calls: Counter[nn.Module | None] = Counter()
        self._alone, self._shared = used_once(model), sharing(model)
        self._owners = {p: module for module in model.modules() for p in module.parameters(recurse=False)}
        self._forbidden = {module: HEARD for module in model.modules() if _hooks(module)}

    def add(self, step: Step) -> Step:
        """Put a step behind those that are there."""
        for source in step.reads:
            source.readers.append(step)
        self.steps.append(step)
        self.calls[step.module] += 1
        return step

    def forbid(self, what: Any, why: str) -> None:
        """Note that the numbers of a module, or of that which a parameter belongs to, are used by others, too."""
        module = self._owners.get(what) if isinstance(what, Tensor) else what
        if module is not None:
            self._forbidden.setdefault(module, why)

    def why_not(self, module: nn.Module) -> str:
        """Why the numbers of a module cannot be changed for the sake of one call of it, or ""."""
        if others := self._shared.get(module):
            return f"it shares its numbers with {', '.join(map(repr, others))}"
        if module not in self._alone or self.calls[module] > 1:
            return "it is used more than once"
        if module in self._forbidden:
            return self._forbidden[module]
        return "" if self.calls[module] else "nobody sees who calls it"

    def what_does(self, module: nn.Module) -> str:
        """What a module does to the channels: unknown if hooks listen to it."""
        does = _of_module(module)
        return does if does == MAPS or self._forbidden.get(module) != HEARD else UNKNOWN


def trace(model: nn.Module) -> Flow:
    """Follow the code of a network with `torch.fx`, in eval mode and with the defaults of all arguments that have one.

    A module that fx cannot follow (its code asks for values) is a closed one, and its children are traced by
    themselves, each as a unit; what leaves or enters a unit is read by somebody unknown.

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
        if _is_leaf(unit) and unit is not twin:
            continue
        tracer = _Tracer(hooked - {unit})
        why = "its parts are called from outside" if unit in in_parts else tracer.follow(unit)
        in_parts |= tracer.in_parts
        if not why:
            _add_graph(flow, tracer, originals)
        elif not isinstance(unit, (nn.ModuleList, nn.ModuleDict)):
            flow.closed[flow.names[originals[unit]]] = why
        inner = unit.children() if why else (module for module in unit.modules() if module in tracer.closed)
        units += [module for module in inner if module not in units]
    flow.way = "traced in parts" if len(units) > 1 else "traced"
    return flow


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
    leaves = [module for module in model.modules() if _is_leaf(module)]
    handles = [module.register_forward_pre_hook(recorder.enter) for module in leaves]
    handles += [module.register_forward_hook(recorder.leave, with_kwargs=True, always_call=True) for module in leaves]
    try:
        with torch.no_grad(), evaluating(model), recorder:
            output = call(model, batch, forward)
    finally:
        for handle in handles:
            handle.remove()
    recorder.add(Step("the output"), _tensors(output), [])
    return flow


def watched(model: nn.Module, batch: Any = None, forward: Forward | None = None) -> Flow:
    """The flow of a float network whose numbers are to be changed: recorded on a batch, or traced if there is none.

    Raises:
        ValueError: weights that a hook computes, a model that is prepared or quantized (names the layer).
    """
    for name, module in model.named_modules():
        if isinstance(module, (PreparedLayer, QuantizedLayer)):
            raise ValueError(f"{name!r} is a {type(module).__name__}: change the float network, before nn.prepare.")
    refuse_computed_weights({name: module for name, module in model.named_modules() if isinstance(module, KINDS)})
    return trace(model) if batch is None else record(model, batch, forward)


def leads_on(step: Step) -> bool:
    """Whether a linear map is somewhere behind a step."""
    steps = dict.fromkeys(step.readers)
    while steps:
        at, _ = steps.popitem()
        if at.does == MAPS:
            return True
        steps.update(dict.fromkeys(at.readers))
    return False


def say_left(done: str, left: Mapping[str, str], stacklevel: int = 4) -> None:
    """Warn of what was left as it is, if anything was: "folded 3 of 4 batch norms; left: bn4 (it follows 'relu')".

    Args:
        done: what was done, and to how many.
        left: name → why.
    """
    if left:
        names: dict[str, list[str]] = {}
        for name, why in left.items():
            names.setdefault(why, []).append(name)
        parts = [f"{', '.join(group)} ({why})" for why, group in names.items()]
        text = f"{done}; left: {', '.join(parts)}"
        text = textwrap.fill(text, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        warnings.warn(text, stacklevel=stacklevel)


class _Tracer(fx.Tracer):
    """fx's tracer, that goes on where it cannot follow a module: that one is closed then, as those of its type are."""

    def __init__(self, closed: Iterable[nn.Module]) -> None:
        super().__init__()
        self.closed = set(closed)
        self.in_parts: set[nn.Module] = set()
        self.running: list[nn.Module] = []

    def follow(self, unit: nn.Module) -> str:
        """Fill `graph`; or say why that cannot be done."""
        owners = dict(_owners(unit, unit))
        while True:
            self.running = [unit]
            self.owners = owners
            try:
                self.graph = self.trace(unit, _defaults(unit))
                return ""
            except Exception as error:  # whatever the code of a network may raise where a number is no number
                culprit = self.running[-1]
                if culprit is unit:
                    return f"its code cannot be followed: {str(error).splitlines()[0] if str(error) else error!r}"
                self.closed |= {module for module in unit.modules() if type(module) is type(culprit)} - {unit}

    def is_leaf_module(self, module: nn.Module, _: str) -> bool:
        """Whether fx has to take it as one call."""
        return _is_leaf(module) or module in self.closed

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


def _defaults(module: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


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
            step.name = _function_name(node.target)
            step.does = FLATTENS if _flattens(node) else FUNCTIONS.get(step.name, UNKNOWN)
        elif node.op == "get_attr":
            flow.forbid(operator.attrgetter(node.target)(root), READ)
        elif node.op == "output":
            step.name = "the output"
        made[node] = flow.add(step)


def _asks(node: fx.Node) -> bool:
    """Whether a call asks for a shape or a type, and not for values."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ATTRIBUTES
    return node.op in ("call_function", "call_method") and _function_name(node.target) in ASKS


def _flattens(node: fx.Node) -> bool:
    """flatten(x, 1), x.view(x.size(0), -1), x.reshape(x.shape[0], -1)."""
    name = _function_name(node.target)
    if name == "flatten":
        start, end = (*node.args[1:], *(1, -1)[len(node.args) - 1 :]) if len(node.args) > 1 else (0, -1)
        return node.kwargs.get("start_dim", start) == 1 and node.kwargs.get("end_dim", end) == -1
    if name not in ("view", "reshape"):
        return False
    given: list[Any] = [*node.args, *node.kwargs.values()]
    x, sizes = given[0], given[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = list(sizes[0])
    if len(sizes) != 2 or sizes[1] != -1 or not isinstance(sizes[0], fx.Node):
        return False
    size = sizes[0]
    if size.target == "size":
        return size.args == (x, 0)
    if size.target is not operator.getitem or size.args[1] != 0 or not isinstance(size.args[0], fx.Node):
        return False
    shape = size.args[0]
    return shape.target in (getattr, "size") and shape.args in ((x,), (x, "shape"))


class _Recorder(TorchFunctionMode):
    """Makes a step of each function and of each leaf module that is called."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.made: Any = WeakTensorKeyDictionary()  # tensor → the step that made it
        self.inside = 0  # how many leaf modules are running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = _function_name(func)
        made = [args[0]] if name == "setitem" else _tensors(output)
        if self.inside or name in ASKS or (name == "get" and not made):
            return output
        reads = _tensors((args, kwargs))
        step = Step(name, FUNCTIONS.get(name, UNKNOWN))
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
            self.add(step, _tensors((args, kwargs)), _tensors(output))

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


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module is one step: PyTorch's own, and those that hold no others."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or type(module) is nn.Sequential:
        return False
    return type(module).__module__.startswith("torch.nn.") or not any(True for _ in module.children())


def _of_module(module: nn.Module) -> str:
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return FLATTENS
    return MAPS if is_linear_map(module) else MODULES.get(type(module), UNKNOWN)


def _function_name(function: Any) -> str:
    name = function if isinstance(function, str) else _BY_FLAG.get(function, getattr(function, "__name__", ""))
    return str(name).strip("_")


def _tensors(parts: Any) -> list[Tensor]:
    """The tensors in anything that holds some."""
    return [part for part in tree_leaves(parts) if isinstance(part, Tensor)]


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for kind in HOOKS for hook in getattr(module, kind).values() if "forward" in kind]


def _unhook(module: nn.Module) -> bool:
    """Take the hooks from a module; whether there were any."""
    found = bool(_hooks(module))
    for kind in HOOKS:
        setattr(module, kind, type(getattr(module, kind))())
    return found
