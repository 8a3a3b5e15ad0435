"""Which calls of a network read what others make, and what each does to the channels that pass through it.

    tracing.trace(model)             from the code alone, for as much of the network as `torch.fx` can follow
    recording.record(model, batch)   from one pass: whatever the code is, but only what this batch reaches

Both give a `Flow`. What nobody can see from outside is somebody who reads everything: the rest of a network around a
part that could be traced, hooks, and functions that are not in the tables here.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from qlearn.nn.linear_maps import is_linear_map
from qlearn.nn.network import HOOKS, grouped, in_lines, sharing

# What a step does to its channels. All but "?" let a positive factor of a channel through: f(s · x) = s · f(x).
KEEPS, POOLS, FLATTENS = "keeps", "pools", "flattens"  # where they are; over the image; (N, C, …) → (N, C · …)
MOVES, TIMES, MIXES = "moves", "times", "mixes"  # to other axes; by other numbers; tokens, by weights
MAPS, UNKNOWN = "maps", "?"
HEARD = "a hook sees what goes in or comes out"
READ = "the network reads its numbers without calling it"

# By the names of functions, and of PyTorch's modules: max_pool2d, MaxPool2d.
DOES = {
    **dict.fromkeys(("relu", "leakyrelu", "identity", "contiguous", "clone", "detach"), KEEPS),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d"), KEEPS),
    **{
        f"{kind}pool{axes}d": f"{POOLS}{axes}"
        for kind in ("max", "avg", "adaptivemax", "adaptiveavg")
        for axes in (1, 2)
    },
    **dict.fromkeys(("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "getitem", "cat"), MOVES),
    **dict.fromkeys(("transpose", "permute", "expand", "repeatinterleave"), MOVES),
    **dict.fromkeys(("mul", "multiply", "imul", "rmul"), TIMES),
    **dict.fromkeys(("matmul", "bmm", "scaleddotproductattention"), MIXES),
}
# Questions about a tensor that its values do not answer.
ASKS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "len", "is_contiguous", "is_floating_point"}
ASKS |= {"get_device", "element_size", "is_complex", "data_ptr"}
ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "itemsize", "nbytes"}
# fx shows a function that decides by a flag under another name.
_BY_FLAG = {getattr(functional, name): name for name in vars(functional) if "max_pool" in name}


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

    @property
    def values_place(self) -> int:
        """Which operand of a mix its values are: attention's third, the second of a product of matrices."""
        return 2 if self.name == "scaled_dot_product_attention" else 1


class Flow:
    """The calls of a network, in their order.

    Attributes:
        steps: all of them.
        names: of the network's modules.
        way: how they were found: "traced", "traced in parts" or "recorded".
        calls: how often each module is called.
        shared: the modules whose numbers belong to others, too; see `network.sharing`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.steps: list[Step] = []
        self.way = "traced"
        self.calls: Counter[nn.Module | None] = Counter()
        self.shared = sharing(model)
        self._places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self._owners = {p: module for module in model.modules() for p in module.parameters(recurse=False)}
        self._forbidden = {module: HEARD for module in model.modules() if hooks(module)}

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

    def why_not(self, module: nn.Module, beside: Collection[str] = ()) -> str:
        """Why the numbers of a module cannot be changed for the sake of one call of it, or "".

        With others `beside`, named ones, it may share its numbers.
        """
        shared = self.shared.get(module, [])
        if others := [name for name in shared if name not in beside]:
            return f"it shares its numbers with {', '.join(map(repr, others))}"
        if (self._places[module] > 1 and not shared) or self.calls[module] > 1:
            return "it is used more than once"
        if module in self._forbidden:
            return self._forbidden[module]
        return "" if self.calls[module] else "nobody sees who calls it"

    def what_does(self, module: nn.Module) -> str:
        """What a module does to the channels: unknown if hooks listen to it."""
        if is_linear_map(module):
            return MAPS
        if self._forbidden.get(module) == HEARD:
            return UNKNOWN
        if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return FLATTENS
        own = type(module).__name__ if type(module).__module__.startswith("torch.nn.") else ""
        return getattr(module, "does_to_channels", what_does(own))


def walk(steps: Iterable[Step], on: Callable[[Step], Iterable[Step]]) -> Iterator[Step]:
    """These steps and all that they lead to, each once; `on` says where it goes on from one."""
    seen, todo = set[Step](), list(steps)
    for at in todo:  # grows
        if at not in seen:
            seen.add(at)
            yield at
            todo += on(at)


def leads_on(step: Step) -> bool:
    """Whether a linear map is somewhere behind a step."""
    return any(at.does == MAPS for at in walk(step.readers, lambda at: at.readers))


def say_left(done: str, left: Mapping[str, str], stacklevel: int = 4) -> None:
    """Warn of what was left as it is, if anything was: "folded 3 of 4 batch norms; left: bn4 (it follows 'relu')".

    Args:
        done: what was done, and to how many.
        left: name → why.
    """
    if left:
        warnings.warn(in_lines(f"{done}; left: {grouped(left)}"), stacklevel=stacklevel)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one step: PyTorch's own, and those that hold no others."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or type(module) is nn.Sequential:
        return False
    return type(module).__module__.startswith("torch.nn.") or not any(True for _ in module.children())


def function_name(function: Any) -> str:
    """Its name in the tables here, for a function, an operator or a method: "relu" for relu_, "mul" for __mul__."""
    name = function if isinstance(function, str) else _BY_FLAG.get(function, getattr(function, "__name__", ""))
    return str(name).strip("_")


def hooks(module: nn.Module) -> list[Any]:
    """Those that see what goes into a module, or comes out; a `forward` that was put in its place sees both."""
    heard = [hook for kind in HOOKS for hook in getattr(module, kind).values() if "forward" in kind]
    return heard + [own for name, own in vars(module).items() if name == "forward"]


def what_does(name: str) -> str:
    """What a function or a type of modules of this name does to the channels."""
    return DOES.get(name.replace("_", "").lower(), UNKNOWN)
