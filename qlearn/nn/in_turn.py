"""Layer after layer: what reaches each one through the layers before it, as those are by then.

    look       one pass that notes which layers are called, and in which order
    in_turn    a pass for each layer, which ends as soon as it has reached it

What lies before the layer whose turn it is does not change any more. So it is not computed again: what a module has
given out is kept, and the next pass hands it out. Of a plain Sequential only the last step's output is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from qlearn.nn.batches import Batches, Forward, call, outputs, tensors_in
from qlearn.nn.collect import Statistic, collect, unreached

KEPT = 1 << 30  # bytes of outputs: what there is beyond them is computed anew in each pass

S = TypeVar("S", bound=Statistic)


@dataclass
class Turn:
    """Layers that are looked at in one pass, because they read the very same tensor: query, key and value.

    Attributes:
        names: of the layers.
        once: whether every batch calls them once, so that a pass may end at the last of them.
    """

    names: list[str]
    once: bool


def look(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    *,
    forward: Forward | None = None,
    desc: str = "",
    progress: bool = False,
) -> list[Turn]:
    """The turns of layers, in the order in which a network calls them first, from one pass over all batches.

    Args:
        model: any network, as are batches, forward, desc and progress those of `outputs`.
        layers: name → layer.

    Raises:
        RuntimeError: layers that nothing has reached, naming them.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> look(model, {"first": model[0], "last": model[2]}, torch.ones(1, 2))
    [Turn(names=['first'], once=True), Turn(names=['last'], once=True)]
    """
    names = {layer: name for name, layer in layers.items()}
    calls: list[tuple[str, bool]] = []
    seen: list[list[tuple[str, bool]]] = []
    read, state = None, None

    def hear(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal read, state
        before, read = read, next(iter((*args, *kwargs.values())), None)
        old, state = state, _states(read)
        calls.append((names[layer], read is before and state == old))

    with ExitStack() as hooks:
        for layer in names:
            hooks.enter_context(layer.register_forward_pre_hook(hear, prepend=True, with_kwargs=True))
        for _ in outputs(model, batches, forward=forward, desc=desc, progress=progress):
            if calls not in seen:
                seen.append([*calls])
            calls.clear()
    times = Counter(name for name, _ in seen[0]) if len(seen) == 1 else {}
    turns: dict[str, Turn] = {}
    before = ""
    for name, alike in (each for batch in seen for each in batch):
        if name not in turns:
            once = times.get(name) == 1
            turns[name] = turns[before] if alike and once and turns[before].once else Turn([], once)
            turns[name].names.append(name)
        before = name
    if text := unreached(layers, turns):
        raise RuntimeError(text)
    return list({id(turn): turn for turn in turns.values()}.values())


def in_turn(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    turns: Sequence[Turn],
    batches: Sequence[Any],
    make: Callable[[nn.Module], S],
    *,
    forward: Forward | None = None,
) -> Iterator[tuple[str, S]]:
    """Hand over layer after layer and what is known of its inputs; the layer may be changed before the next.

    A layer's inputs come through the layers before it as they are when its turn comes.

    Args:
        model: in eval mode, and without gradients.
        layers: as in `look`.
        turns: from `look`.
        batches: a list: they are gone through more than once.
        make: the statistic of a layer's inputs.

    Yields:
        name, statistic, in the order of the layers' first calls.

    Cost: one pass through the network, and what is between modules (sums, attention) once more for each turn.

    >>> import torch
    >>> from qlearn.nn.collect import MeanOfChannels
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1)).eval()
    >>> layers = dict(model.named_children())
    >>> with torch.no_grad():
    ...     turns = look(model, layers, [torch.ones(1, 1)])
    ...     for name, inputs in in_turn(model, layers, turns, [torch.ones(1, 1)], lambda layer: MeanOfChannels(-1)):
    ...         print(name, inputs.mean.tolist())
    ...         _ = layers[name].weight.fill_(3)
    0 [1.0]
    1 [3.0]
    """
    again = _Again(model, layers.values())
    kept = [_Call() for _ in batches]
    try:
        for turn in turns:
            read = {name: layers[name] for name in turn.names}
            with collect(read, make) as found:
                for batch, calls in zip(batches, kept, strict=True):
                    with again.one_pass(calls, read[turn.names[-1]] if turn.once else None):
                        call(model, batch, forward)
            if text := unreached(read, found):
                raise RuntimeError(text)
            again.undone.difference_update(read.values())
            yield from found.items()
    finally:
        again.end()


class _Enough(BaseException):
    """Ends a pass that has reached what it is for. No error: `except Exception` in a network must not stop it."""


class _Call:
    """A module's call for one batch, or the batch itself: what need not be computed again, and the calls in it.

    A Sequential has a step for each module in it, all else is one step: so many are `passed`, and the last of them
    gave `output`. `inner` are the calls after it, each the so-and-so-many-th of its module in this pass.
    """

    def __init__(self) -> None:
        self.passed, self.output = 0, None
        self.inner: dict[tuple[nn.Module, int], _Call] = {}
        self.counts: Counter[nn.Module] = Counter()

    def next_of(self, module: nn.Module) -> _Call:
        """The next call of this module in here."""
        self.counts[module] += 1
        return self.inner.setdefault((module, self.counts[module]), _Call())

    def bytes(self) -> int:
        """The size of all that is kept here."""
        return _size(self.output) + sum(call.bytes() for call in self.inner.values())


class _Again:
    """Stands for the `forward` of each module of a network, and hands out what has been computed before."""

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        self.undone = set(layers)
        self.room = KEPT
        inside = {part for layer in self.undone for part in layer.modules()} - self.undone
        self.forwards = {module: module.forward for module in model.modules() if module not in inside}
        for module, forward in self.forwards.items():
            module.forward = update_wrapper(partial(self.forward, module), forward)

    def end(self) -> None:
        """Give each module its own back."""
        for module, forward in self.forwards.items():
            del module.forward
            if module.forward != forward:  # it was an attribute of this very module
                module.forward = forward

    @contextmanager
    def one_pass(self, batch: _Call, last: nn.Module | None) -> Iterator[None]:
        """In here the network is called on a batch, as far as this layer."""
        self.open, self.last = [batch], last
        self.final = True  # no layer has been called that will still be changed
        batch.counts.clear()
        with suppress(_Enough):
            yield

    def forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What a module gives out."""
        if module is self.last:
            raise _Enough
        self.final &= module not in self.undone
        this = self.open[-1].next_of(module)
        before, given, named = _states((args, kwargs)), args, kwargs
        if this.passed:
            given, named = (_copied(this.output),), {}
        forward = self.forwards[module]
        in_steps = getattr(forward, "__func__", None) is nn.Sequential.forward and not kwargs
        steps = [*module] if in_steps else [forward]
        this.counts.clear()
        self.open.append(this)
        try:
            for place, step in enumerate(steps[this.passed :], this.passed + 1):
                given, named = (step(*given, **named),), {}
                if self.final and _states((args, kwargs)) == before and _apart(given, before):
                    self._keep(this, place, given[0])
        finally:
            self.open.pop()
        return given[0]

    def _keep(self, call: _Call, passed: int, output: Any) -> None:
        """Keep an output, and forget those that led to it."""
        size = _size(output)
        if size <= (room := self.room + call.bytes()):
            self.room = room - size
            call.passed, call.output, call.inner = passed, _copied(output), {}
            call.counts.clear()


def _size(output: Any) -> int:
    return sum(part.nbytes for part in tensors_in(output))


def _copied(output: Any) -> Any:
    return tree_map_only(Tensor, Tensor.clone, output)


def _states(values: Any) -> list[tuple[Any, Any]]:
    """The memory and the version of each tensor in there; what is neither tensor nor number, nobody knows."""
    found = []
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_inference():
            found.append((value.untyped_storage().data_ptr(), value._version))
        elif not isinstance(value, (int, float, str, type(None))):
            found.append((None, object()))
    return found


def _apart(output: Any, given: list[tuple[Any, Any]]) -> bool:
    """Whether an output is made of tensors in memory of their own, and numbers."""
    taken = {None, *(memory for memory, _ in given)}
    return not any(memory in taken for memory, _ in _states(output))
