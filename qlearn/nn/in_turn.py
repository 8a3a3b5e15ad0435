"""Layer after layer: what reaches each one through the layers before it, as those are by then.

    whole network     trace: one pass that only notes which module calls which, and who hands its output to whom
    one block of it   its inputs are kept, and only the block runs again for each layer in it
    the next block    its inputs are the outputs of the one before it, which runs on what was kept

The whole network need not run again for every layer. A pass ends as soon as it has reached the layer that it is for.
Where a network does not do the same with every batch, or uses a layer twice, all of what is in question runs again.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qlearn.nn.batches import Batches, Forward, call, outputs
from qlearn.nn.collect import Statistic, collect, unreached

KEPT = 1 << 30  # bytes of inputs of one block: where there are more, they are computed anew each time

BATCH = "(batch)"  # stands for `forward(model, batch)`, which calls the network

S = TypeVar("S", bound=Statistic)
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Call:
    """A module's call, and the calls in it, in their order.

    Attributes:
        name: of the module; "" is the network, "(batch)" what calls it.
        calls: of other modules, layers to be looked at being the innermost.
        handed: how its arguments differ from those of the call before it: the first one is what that call gave out,
            "all" of it or its "first" part. "": in another way.
        alike: it reads the very tensor that the call before it has read.
        hands_on: it gives out just what the last call in it gives out.
    """

    name: str
    calls: list[Call] = field(default_factory=list)
    handed: str = ""
    alike: bool = False
    hands_on: bool = False

    def every(self) -> Iterator[Call]:
        """This call and all calls in it."""
        yield self
        for inner in self.calls:
            yield from inner.every()


def trace(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    *,
    forward: Forward | None = None,
    desc: str = "",
    progress: bool = False,
) -> Call:
    """What a network calls when it is given a batch, on one pass over all batches.

    Args:
        model: any network, as are batches and forward those of `outputs`.
        layers: name → layer, as the network names them; what is inside them is left out.

    Returns:
        The calls of one batch. Where they are not the same for all batches, or are made under autocast that the
        network itself has switched on, only the layers, in the order of their first calls, each twice: nothing else
        can be relied on.

    Raises:
        RuntimeError: layers that nothing has reached, naming them.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> import torch
    >>> [(call.name, call.handed) for call in trace(model, {"0": model[0]}, torch.ones(1, 2)).calls[0].calls]
    [('0', ''), ('1', 'all'), ('2', 'all')]
    """
    inside = {part for layer in layers.values() for part in layer.modules()} - set(layers.values())
    recorder = _Recorder({module: name for name, module in model.named_modules() if module not in inside})
    found: list[Call] = []
    handles = [hook for module in recorder.names for hook in recorder.listen(module)]
    try:
        for _ in outputs(model, batches, forward=forward, desc=desc, progress=progress):
            if (calls := recorder.finish()) not in found:
                found.append(calls)
    finally:
        for handle in handles:
            handle.remove()
    order = dict.fromkeys(call.name for calls in found for call in calls.every() if call.name in layers)
    if text := unreached(layers, order):
        raise RuntimeError(text)
    return found[0] if len(found) == 1 and recorder.as_outside else Call(BATCH, [Call(name) for name in order] * 2)


def in_turn(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calls: Call,
    batches: Sequence[Any],
    make: Callable[[nn.Module], S],
    *,
    forward: Forward | None = None,
    alike: Callable[[str], Hashable] = lambda name: name,
) -> Iterator[tuple[str, S]]:
    """Hand over layer after layer and what is known of its inputs; the layer may be changed before the next.

    A layer's inputs come through the layers before it as they are when its turn comes. Layers that read the same
    tensor, such as query, key and value, are looked at in one pass.

    Args:
        model: in eval mode, and without gradients.
        layers: as in `trace`.
        calls: from `trace`.
        batches: a list: they are gone through more than once.
        make: the statistic of a layer's inputs.
        alike: layers of which this is equal have the same statistic, if they read the same tensor.

    Yields:
        name, statistic, in the order of the layers' first calls.

    Cost: for a chain of layers about one pass through the network; for the blocks of a transformer about three.

    >>> import torch
    >>> from qlearn.nn.collect import MeanOfChannels
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1)).eval()
    >>> layers = dict(model.named_children())
    >>> with torch.no_grad():
    ...     calls = trace(model, layers, [torch.ones(1, 1)])
    ...     for name, inputs in in_turn(model, layers, calls, [torch.ones(1, 1)], lambda layer: MeanOfChannels(-1)):
    ...         print(name, inputs.mean.tolist())
    ...         _ = layers[name].weight.fill_(3)
    0 [1.0]
    1 [3.0]
    """

    def whole_network() -> None:
        def until_enough(model: nn.Module, batch: Any) -> None:
            with suppress(_Enough):
                call(model, batch, forward)

        for _ in outputs(model, batches, forward=until_enough):
            pass

    walk = _Walk(dict(model.named_modules()), layers, calls, make, alike)
    yield from walk.within(calls, whole_network)


class _Enough(BaseException):
    """Ends a pass that has reached what it is for. No error: `except Exception` in a network must not stop it."""


class _Walk:
    """One walk through the calls of a network."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        layers: Mapping[str, nn.Module],
        calls: Call,
        make: Callable[[nn.Module], Any],
        alike: Callable[[str], Hashable],
    ) -> None:
        self.modules, self.layers, self.make, self.alike = {**modules, **layers}, layers, make, alike
        self.times = Counter(call.name for call in calls.every())
        self.done: set[str] = set()

    def within(self, calls: Call, run: Callable[[], None]) -> Generator[tuple[str, Any], None, _Source | None]:
        """The layers in one call, which `run` makes again for all batches. Returns where its last call stands."""
        source: _Source | None = None  # the call before, and its arguments
        for place, this in enumerate(calls.calls):
            if len(self.done) == len(self.layers):
                return None
            following = calls.calls[place + 1 :]
            kept = source.handed_on(this.handed) if source is not None and this.handed else None
            todo = [each.name for each in this.every() if each.name in self.layers and each.name not in self.done]
            alone = bool(todo) and self._stands_alone(this)
            if kept is None and alone and (this.calls or (following and following[0].handed)):
                kept = self._arguments(this, run)
            source = None if kept is None else _Source(self.modules[this.name], kept)
            if source is not None and alone and this.name in self.layers:
                yield from self._hear(self._reading_alike(this, following, self.alike(this.name)), source.run)
            elif source is not None and alone:
                source.inner = yield from self.within(this, source.run)
                if not this.hands_on:
                    source.inner = None
            else:
                for name in todo:
                    if name not in self.done:
                        once = this.name == name and self.times[name] == 1
                        yield from self._hear(self._reading_alike(this, following) if once else [name], run)
            if following and not following[0].handed:
                source = None
        return source

    def _stands_alone(self, call: Call) -> bool:
        """Whether the network calls this module once, and the layers in it nowhere else."""
        inside = Counter(each.name for each in call.every())
        return self.times[call.name] == 1 and all(
            self.times[name] == count for name, count in inside.items() if name in self.layers
        )

    def _reading_alike(self, call: Call, following: Sequence[Call], key: Hashable = None) -> list[str]:
        """This layer and those right after it that read the same tensor; with a key, and also in the same way."""
        names = [call.name]
        for other in following:
            name = other.name
            if not other.alike or name not in self.layers or name in self.done or self.times[name] > 1:
                break
            if key is not None and self.alike(name) != key:
                break
            names.append(name)
        return names

    def _hear(self, names: list[str], run: Callable[[], None]) -> Iterator[tuple[str, Any]]:
        """The statistics of these layers, from one pass."""
        heard: dict[Hashable, str] = {}
        for name in names:
            heard.setdefault(self.alike(name), name)
        *_, last = heard.values()
        end = nullcontext() if self.times[last] > 1 else _ending_at(self.layers[last])
        with collect({name: self.layers[name] for name in heard.values()}, self.make) as found, end:
            run()
        if text := unreached(heard.values(), found):
            raise RuntimeError(text)
        self.done.update(names)
        for name in names:
            yield name, found[heard[self.alike(name)]]

    def _arguments(self, call: Call, run: Callable[[], None]) -> list[Arguments] | None:
        """What this call is given, for each batch; None if that is too much to keep."""
        kept: list[Arguments] = []
        size = 0

        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal size
            size += sum(value.nbytes for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            if size <= KEPT:
                kept.append((args, kwargs))
            else:
                kept.clear()

        with _ending_at(self.modules[call.name], keep, prepend=True):
            run()
        return kept if size <= KEPT else None


@dataclass
class _Source:
    """A module and its arguments for each batch; `inner`, where its output is that of a call in it, which is known."""

    module: nn.Module
    kept: list[Arguments]
    inner: _Source | None = None

    def run(self) -> None:
        """Call it for each batch, on copies of the arguments, which it may change."""
        for args, kwargs in self.kept:
            tensors = {id(value): value.clone() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
            args, kwargs = copy.deepcopy((args, kwargs), tensors)
            with suppress(_Enough):
                self.module(*args, **kwargs)

    def handed_on(self, handed: str) -> list[Arguments] | None:
        """The arguments of the call after it; its own are used up. None if that is too much to keep."""
        following: list[Arguments] = []
        size = 0
        inner = self.inner if all(len(args) == 1 and not kwargs for args, kwargs in self.kept) else None
        for output, (args, kwargs) in zip((inner or self)._outputs(), self.kept, strict=False):
            first = output if handed == "all" else output[0]
            following.append(((first, *args[1:]), kwargs))
            size += first.nbytes
        return following if size <= KEPT else None

    def _outputs(self) -> Iterator[Any]:
        if self.inner is not None:
            yield from self.inner._outputs()
            return
        for place, (args, kwargs) in enumerate(self.kept):
            yield self.module(*args, **kwargs)
            self.kept[place] = (), {}


class _Recorder:
    """Notes the calls of modules while a network runs."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.names = names
        self.setting = _setting()
        self.as_outside = True  # no call is made in another setting, in which it would have to run again
        self.open = [_Open(Call(BATCH), (), {})]

    def listen(self, module: nn.Module) -> Iterator[Any]:
        """The hooks on one module. What they hear is what goes into its own hooks, and what comes out of them."""
        yield module.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True)
        yield module.register_forward_hook(self.leave)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins."""
        self.as_outside &= _setting() == self.setting
        above, call = self.open[-1], Call(self.names[module])
        above.call.calls.append(call)
        self.open.append(this := _Open(call, args, kwargs))
        if (before := above.before) is not None and args:
            call.alike = before.read == this.read
            call.handed = next(
                (part for part, mark in before.gave.items() if (mark, before.others) == (this.read, _others(this))), ""
            )

    def leave(self, module: nn.Module, _: Any, output: Any) -> None:
        """It ends."""
        while (this := self.open.pop()).call.name != self.names[module]:
            pass  # calls that have failed, and the network went on
        this.give(output)
        self.open[-1].before = this

    def finish(self) -> Call:
        """What has been called since the last time."""
        calls = self.open[0].call
        self.open = [_Open(Call(BATCH), (), {})]
        return calls


class _Open:
    """A call that is going on, or is the last one that has ended in its place."""

    def __init__(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call, self.args, self.kwargs = call, args, kwargs
        self.read = _mark(args[0]) if args else None
        self.before: _Open | None = None

    def give(self, output: Any) -> None:
        """Note what came out, and in what state the arguments are now."""
        self.output = output  # while this is held, no other object has its id
        last = self.before
        self.before = None
        self.gave = {"all": _mark(output)} if isinstance(output, Tensor) else {}
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            self.gave = {"first": _mark(output[0])}
        self.others = _others(self)
        self.call.hands_on = last is not None and bool(self.gave) and self.gave == last.gave == {"all": _mark(output)}


def _others(call: _Open) -> list[Any]:
    """The arguments but the first one."""
    return [*map(_mark, call.args[1:]), *((name, _mark(value)) for name, value in sorted(call.kwargs.items()))]


def _setting() -> list[bool]:
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]


def _mark(value: Any) -> Any:
    """Equal for equal numbers, and for the same object; a tensor must not have changed since."""
    if isinstance(value, Tensor):
        return id(value), object() if value.is_inference() else value._version
    return (type(value), value) if isinstance(value, (int, float, str, type(None))) else id(value)


@contextmanager
def _ending_at(module: nn.Module, hear: Callable[..., None] | None = None, *, prepend: bool = False) -> Iterator[None]:
    """In here a pass ends when it reaches this module."""

    def end(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if hear is not None:
            hear(args, kwargs)
        raise _Enough

    handle = module.register_forward_pre_hook(end, prepend=prepend, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
