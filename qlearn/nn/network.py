"""What there is in a network: layers that can be quantized, what cannot be, and numbers that are shared.

Nothing here looks at what a `forward` does; `flow` does that.
"""

from __future__ import annotations

import copy
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from qlearn.nn.linear_maps import KINDS, NAMES, is_linear_map

T = TypeVar("T")

# PyTorch's own quick path through these reads `.weight` of their children and never calls them.
READ_THEIR_CHILDREN = (nn.TransformerEncoderLayer, nn.MultiheadAttention)

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
MOST_NAMES = 4  # of one kind that are written out

REMEDIES = {
    "_orig": "torch.nn.utils.prune.remove(layer, {!r}) (or remove_spectral_norm) makes them numbers again",
    "_g": "torch.nn.utils.remove_weight_norm(layer, {!r}) makes them numbers again",
}


def check_model(model: object, *, numbers: bool = True) -> None:
    """Raise unless it is a network, and one that has numbers if they are needed.

    >>> check_model(nn.Linear)
    Traceback (most recent call last):
    TypeError: model is the class Linear: wanted is a network, Linear(…) with its arguments.
    """
    if isinstance(model, type):
        raise TypeError(
            f"model is the class {model.__name__}: wanted is a network, {model.__name__}(…) with its arguments."
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: wanted is a network, an nn.Module.")
    if lazy := next((name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)), None):
        raise ValueError(f"{lazy} has no shape yet, being part of a lazy layer: call the network once, on a batch.")
    if numbers and (meta := next((name for name, p in model.named_parameters() if p.is_meta), None)):
        raise ValueError(f"{meta} is on the meta device, where it has a shape and no numbers: load the weights first.")


def check_counts(**counts: Any) -> None:
    """Raise unless each of these arguments is a whole number, 1 or more.

    >>> check_counts(epochs=8, batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size=0 must be a whole number, 1 or more.
    """
    for name, value in counts.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < 1:
            raise (ValueError if whole else TypeError)(f"{name}={value!r} must be a whole number, 1 or more.")


def check_numbers(**numbers: Any) -> None:
    """Raise unless each of these arguments is a real number.

    >>> check_numbers(alpha=0.5, spread="wide")
    Traceback (most recent call last):
    TypeError: spread='wide' must be a number.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}={value!r} must be a number.")


def check_seed(seed: object) -> None:
    """Raise unless it is a whole number."""
    if not isinstance(seed, Integral):
        raise TypeError(f"seed={seed!r} must be a whole number.")


def check_places(name: str, values: Tensor, count: int, known: str, hint: str = "") -> None:
    """Raise unless whole numbers are places in a list of so many; `known` says whose list.

    >>> check_places("labels", torch.tensor([7, 2, 10]), 10, ", and the network knows the classes")
    Traceback (most recent call last):
    ValueError: labels go from 2 to 10, and the network knows the classes 0 to 9.
    """
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if low < 0 or high >= count:
        raise ValueError(f"{name} go from {low} to {high}{known} 0 to {count - 1}{hint}.")


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be quantized: name → layer. One that stands at several places has its first name.

    >>> list(linear_maps(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LSTM(3, 3))))
    ['0']
    """
    check_model(model, numbers=False)
    read = _read_by_parents(model)
    return {name: module for name, module in model.named_modules() if module not in read and is_linear_map(module)}


def copy_of(model: nn.Module, instead: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A copy of a network, in which `instead` may name modules that stand for others.

    Weights are copied when somebody writes to one of the two, not before: for a large network that is half the memory.
    Hooks that are no methods of its modules are not copied: what they are to fill is their owner's.

    >>> model = nn.Linear(2, 2)
    >>> copy = copy_of(model)
    >>> _ = copy.weight.data.zero_()
    >>> bool((model.weight != 0).all())
    True
    """
    return copy_with(model, None, instead)[0]


def copy_with(model: nn.Module, others: T, instead: Mapping[nn.Module, nn.Module] | None = None) -> tuple[nn.Module, T]:
    """`copy_of` a network, and a copy of anything that has modules of it.

    >>> copy, (layer,) = copy_with(model := nn.Sequential(nn.ReLU()), [model[0]])
    >>> layer is copy[0]
    True
    """
    check_model(model, numbers=False)
    memo: dict[int, object] = {id(old): new for old, new in (instead or {}).items()}
    memo.update(_hooks_of_others(model))
    taken = {part for old in instead or {} for part in old.modules()}
    for module in model.modules():
        if module in taken:
            continue
        for parameter in module.parameters(recurse=False):
            if type(parameter) is nn.Parameter and parameter.layout is torch.strided and not parameter.is_meta:
                memo[id(parameter)] = nn.Parameter(_lazy_clone(parameter.detach()), parameter.requires_grad)
        for value in vars(module).values():  # computed weights, which Python's copy refuses
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy((model, others), memo)


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, wherever in the tree they are used, shared ones included."""
    if model in new:
        return new[model]
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new[module])
    return model


def exchanged(model: nn.Module, layers: Mapping[str, Any], make: Callable[[str, Any], nn.Module]) -> nn.Module:
    """A copy in which new modules, made of these layers, take their places and have their hooks.

    Raises:
        ValueError, TypeError: what `make` raises; names the layer.

    >>> exchanged(nn.Sequential(layer := nn.ReLU()), {"0": layer}, lambda name, layer: nn.Identity())
    Sequential(
      (0): Identity()
    )
    """
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        with naming(name):
            new[layer] = make(name, layer)
    return copy_exchanging(model, new)


def copy_exchanging(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy in which new modules take the places of old ones and have their hooks: methods of the copy, where they
    are the network's."""
    copied, hooks = copy_with(model, {layer: _hooks_of(layer) for layer in new}, new)
    for layer, own in hooks.items():  # the new ones
        _add_hooks(layer, own)
    return copied


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let the hooks of a module fire on the one that is put around it, and on that alone."""
    _add_hooks(new, _hooks_of(old))
    for kind in HOOKS:
        getattr(old, kind).clear()


def carry_attributes(old: nn.Module, new: nn.Module) -> None:
    """Let a module have the plain attributes of the one whose place it takes, such as `in_features` and one's own.

    >>> old, new = nn.Linear(2, 3), nn.Identity()
    >>> old.gain = 2.0
    >>> carry_attributes(old, new)
    >>> new.out_features, new.gain
    (3, 2.0)
    """
    known = dir(new)
    for name, value in vars(old).items():
        if name not in known:
            setattr(new, name, value)


class Around(nn.Module):
    """A module around a `layer`, that has what the layer has wherever it has nothing of its own.

    >>> around = Around()
    >>> around.layer = nn.Linear(2, 3)
    >>> around.in_features
    2
    """

    def __getattr__(self, name: str) -> Any:
        """The layer's, of all that this one does not have: `in_features`, and one's own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)


def carry_parts(old: nn.Module, new: nn.Module) -> None:
    """Let a module have the buffers, parameters and modules, too, that somebody has given the one in whose place it is.

    >>> old, new = nn.Linear(2, 3), nn.Identity()
    >>> old.register_buffer("mask", torch.ones(1))
    >>> carry_parts(old, new)
    >>> new.mask
    tensor([1.])
    """
    known = {"weight", "bias", *dir(new)}
    for name, buffer in old._buffers.items():
        if name not in known:
            new.register_buffer(name, buffer, persistent=name not in old._non_persistent_buffers_set)
    for name, part in {**old._parameters, **old._modules}.items():
        if name not in known:
            setattr(new, name, part)


def refuse_names(layer: nn.Module, new: nn.Module) -> None:
    """Raise where somebody has given a layer an attribute that means something else in what takes its place.

    >>> layer, new = nn.Linear(2, 3), nn.BatchNorm1d(3)
    >>> layer.momentum = 0.5
    >>> refuse_names(layer, new)
    Traceback (most recent call last):
    ValueError: its attribute 'momentum' has the name of one of BatchNorm1d's own: call it something else.
    """
    given = {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
    if taken := sorted(given.intersection(dir(new)).difference(dir(nn.Module()))):
        raise ValueError(
            f"its attribute {taken[0]!r} has the name of one of {type(new).__name__}'s own: call it something else."
        )


def with_plain_weights(model: nn.Module) -> nn.Module:
    """Make ordinary numbers of all weights that a hook or a parametrization computes; in place, with a warning.

    >>> from torch.nn.utils import parametrizations
    >>> layer = parametrizations.weight_norm(nn.Linear(2, 2))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     type(with_plain_weights(nn.Sequential(layer))[0]).__name__, len(caught)
    ('Linear', 1)
    """
    names = []
    for name, module in model.named_modules():
        computed = list(getattr(module, "parametrizations", {}))
        if computed:  # PyTorch takes `weight` off the class, which this copy and the model share: a class of its own
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        for parameter in computed:
            parametrize.remove_parametrizations(module, parameter)
        for key, hook in list(module._forward_pre_hooks.items()):
            which = getattr(hook, "name", getattr(hook, "_tensor_name", ""))
            if _is_computed(module, which) and hasattr(hook, "remove"):
                hook.remove(module)  # as pruning, weight_norm and spectral_norm have it
                del module._forward_pre_hooks[key]
                computed.append(which)
        if computed:
            names.append(name)
    if names:
        warnings.warn(
            f"{', '.join(names)}: weights that were computed before each call (pruned, normalized) are ordinary "
            "numbers in this copy. Training changes them as all others: zeros of pruning do not stay.",
            stacklevel=4,
        )
    return model


def refuse_computed_weights(layers: Mapping[str, nn.Module]) -> None:
    """Raise where a hook computes a layer's weights before each call: what is changed here would be undone there.

    Raises:
        ValueError: names the layer and what makes its weights ordinary numbers.

    >>> from torch.nn.utils import prune
    >>> refuse_computed_weights({"fc": prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5)})
    Traceback (most recent call last):
    ValueError: layer 'fc' has weights that are computed before each call: torch.nn.utils.prune.remove(layer, \
'weight') (or remove_spectral_norm) makes them numbers again.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)  # all at once, so that nobody meets them one by one
    for name, layer in layers.items():
        for which in ("weight", "bias"):
            if parametrize.is_parametrized(layer, which):
                remedy = f"parametrize.remove_parametrizations(layer, {which!r}) makes them numbers again"
            elif _is_computed(layer, which):
                ends = (text for end, text in REMEDIES.items() if which + end in layer._parameters)
                remedy = next(ends, "make it a parameter of the layer").format(which)
            else:
                continue
            found["weights that are" if which == "weight" else "a bias that is", remedy].append(name)
    for (what, remedy), names in found.items():
        have = f"layer {names[0]!r} has" if len(names) == 1 else f"layers {', '.join(map(repr, names))} have"
        raise ValueError(f"{have} {what} computed before each call: {remedy}.")


def say_who_asks(model: nn.Module, layers: Collection[nn.Module], stacklevel: int = 3) -> None:
    """Warn of code that decides by the type of these layers, in whose place others come.

    >>> class Net(nn.Sequential):
    ...     def forward(self, x):
    ...         for part in self:
    ...             x = part(x).relu() if isinstance(part, nn.Linear) else part(x)
    ...         return x
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     say_who_asks(model := Net(nn.Linear(2, 2)), [model[0]])
    >>> str(caught[0].message).partition(":")[0]
    "Net.forward asks whether a layer is a 'Linear'"
    """
    types = {type(layer).__name__ for layer in layers}
    for kind in dict.fromkeys(type(module) for module in model.modules() if module not in layers):
        own = not kind.__module__.startswith("torch.nn.")
        words = set(_words(getattr(kind.forward, "__code__", None))) if own else set()
        if types & words and words & {"isinstance", "type", "__class__"}:
            warnings.warn(
                f"{kind.__name__}.forward asks whether a layer is a {', '.join(map(repr, sorted(types & words)))}: "
                "others come in their place, and it may compute something else. Decide by the layers' names instead.",
                stacklevel=stacklevel,
            )


def sharing(model: nn.Module) -> dict[nn.Module, list[str]]:
    """The modules whose own parameters belong to other modules too: module → the others' names.

    >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> b.weight = a.weight
    >>> sharing(nn.Sequential(a, b))[a]
    ['1']
    """
    owners: dict[Tensor, dict[nn.Module, str]] = defaultdict(dict)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter][module] = name
    found: dict[nn.Module, dict[nn.Module, str]] = defaultdict(dict)  # each once and in order
    for places in owners.values():
        for module in places if len(places) > 1 else ():
            found[module].update(places)
    return {module: [name for other, name in those.items() if other is not module] for module, those in found.items()}


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


@dataclass(frozen=True)
class InFloat:
    """What stays in float.

    Attributes:
        name, kind: of the module.
        parameters: how many of its own.
        reason: why.
    """

    name: str
    kind: str
    parameters: int
    reason: str


def left_in_float(model: nn.Module, taken: set[nn.Module]) -> list[InFloat]:
    """Every module that has parameters of its own and is not in `taken`; a shared parameter counts once.

    >>> left_in_float(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), set())[1]
    InFloat(name='1', kind='LayerNorm', parameters=6, reason='not a Linear, Conv1d, Conv2d or ConvTranspose2d')
    """
    read, found = _read_by_parents(model), []
    inside = {part for module in taken for part in module.modules()}
    seen = {parameter for module in inside for parameter in module.parameters(recurse=False)}
    for name, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
        seen.update(own)
        if own and module not in inside:
            count = sum(parameter.numel() for parameter in own)
            found.append(InFloat(name or "(model)", type(module).__name__, count, _reason(module, module in read)))
    return found


def in_float_text(left: list[InFloat], total: int, width: int = 100) -> str:
    """How large a share of `total` numbers stays in float, and where, on lines of at most so many characters.

    >>> print(in_float_text([InFloat("norm", "LayerNorm", 6, "…")], 600))
    left in float: 1 % of the numbers: norm (LayerNorm)
    """
    share = 100 * sum(part.parameters for part in left) / max(total, 1)
    where = grouped({part.name: part.kind for part in left}, MOST_NAMES)
    rounded = f"{share:.0f}" if 1 <= share <= 99 else f"{share:.{2 if share < 1 else 3}g}"
    return in_lines(f"left in float: {rounded} % of the numbers{': ' if where else ''}{where}", width)


def grouped(kinds: Mapping[str, str], most: int | None = None) -> str:
    """Names by their kinds, of each so many at most.

    >>> grouped({"a": "norm", "b": "other", "c": "norm", "d": "norm"}, most=2)
    'a, c and 1 more (norm), b (other)'
    """
    names: dict[str, list[str]] = defaultdict(list)
    for name, kind in kinds.items():
        names[kind].append(name)
    return ", ".join(f"{some_of(group, most)} ({kind})" for kind, group in names.items())


def some_of(names: Sequence[str], most: int | None = MOST_NAMES) -> str:
    """So many of these names, and how many more there are.

    >>> some_of(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = len(names) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {more} more" if more else "")


def in_lines(text: str, width: int = 100) -> str:
    """A text on lines of at most so many characters."""
    return textwrap.fill(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """A ValueError or TypeError from in here says of which layer it is.

    >>> with naming("fc"):
    ...     raise ValueError("too small.")
    Traceback (most recent call last):
    ValueError: layer 'fc': too small.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}") from error


def plain_lists(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Attributes of modules that are lists, tuples or dictionaries of modules, which PyTorch does not know of.

    >>> model = nn.Sequential(nn.ReLU())
    >>> model[0].layers = [nn.Linear(2, 2)]
    >>> list(plain_lists(model))
    [('0.layers', 1)]
    """
    known = set(model.modules())
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            parts = value.values() if isinstance(value, dict) else value
            if attribute.startswith("_") or not isinstance(value, (list, tuple, dict)):
                continue
            unknown = sum(isinstance(part, nn.Module) and part not in known for part in parts)
            if unknown:
                yield f"{name}.{attribute}".lstrip("."), unknown


def _is_computed(module: nn.Module, which: str) -> bool:
    """Whether a parameter of that name is a plain attribute, which a hook sets."""
    return isinstance(vars(module).get(which), Tensor) and which not in module._parameters


def _hooks_of(module: nn.Module) -> dict[str, Any]:
    """Its hooks, and of which kind those of the backward pass are: PyTorch has an older one."""
    return {name: getattr(module, name) for name in (*HOOKS, "_is_full_backward_hook")}


def _add_hooks(module: nn.Module, hooks: Mapping[str, Any]) -> None:
    for kind in HOOKS:
        getattr(module, kind).update(hooks[kind])
    if hooks["_backward_hooks"]:
        module._is_full_backward_hook = hooks["_is_full_backward_hook"]


def _hooks_of_others(model: nn.Module) -> dict[int, object]:
    """The hooks in a network that are not methods of its modules, by their place in memory."""
    inside, found = set(map(id, model.modules())), dict[int, object]()
    for hook in (hook for module in model.modules() for kind in HOOKS for hook in getattr(module, kind).values()):
        function = hook
        while isinstance(function, partial):
            function = function.func
        if id(getattr(function, "__self__", None)) not in inside:
            found[id(hook)] = hook
    return found


def _words(code: Any) -> Iterator[str]:
    """The names and texts in a piece of code, and in those inside of it."""
    for word in (*code.co_names, *code.co_consts) if code is not None else ():
        if isinstance(word, str):
            yield word
        elif hasattr(word, "co_names"):
            yield from _words(word)


def _lazy_clone(tensor: Tensor) -> Tensor:
    """A clone that shares its memory until one of the two is written to, where PyTorch has that."""
    lazily = getattr(torch, "_lazy_clone", None)
    try:
        return tensor.clone() if lazily is None else lazily(tensor)
    except RuntimeError:  # memory that is not PyTorch's own: a file, as downloaded models have it
        return tensor.clone()


def _read_by_parents(model: nn.Module) -> set[nn.Module]:
    return {
        child for module in model.modules() if isinstance(module, READ_THEIR_CHILDREN) for child in module.children()
    }


def _reason(module: nn.Module, read: bool) -> str:
    if read or isinstance(module, READ_THEIR_CHILDREN):
        return "PyTorch's attention reads its weights without calling it"
    if is_linear_map(module):
        return "left out by overrides"
    if isinstance(module, KINDS) and "forward" in vars(module):
        return "its forward was replaced, by accelerate for example"
    if isinstance(module, KINDS) and module.weight.is_complex():
        return "its weights are complex numbers"
    if type(module) in KINDS:
        return f"padding_mode={module.padding_mode!r}"
    if isinstance(module, KINDS):
        return f"a subclass of {type(module).__mro__[1].__name__}, which may compute something else"
    return f"not a {NAMES}"
