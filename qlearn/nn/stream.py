"""The residual stream of a transformer, found in its flow: who writes into it, who reads it, and through which norm.

    embeddings  →  x  →  norm  →  linear maps  →  attention, MLP  →  linear maps  →  x + …  →  norm  →  head

A stream is the set of values that adds connect. Its width is all that they need to have in common; the names of
modules count for nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn.nn.flow import KEEPS, MAPS, MIXES, MOVES, TIMES, Flow, Step, walk
from qlearn.nn.linear_maps import LinearMap, is_linear_map
from qlearn.nn.network import refuse_computed_weights
from qlearn.nn.rescaling import given_by, is_norm

PASS = {"dropout", "identity", "contiguous", "clone", "detach", "to", "float", "type", "typeas", "half", "bfloat16"}
ADDS, CUTS = {"add", "iadd", "radd"}, {"split", "chunk"}
SAME = 1e-2  # of the largest output of a norm, to which it adds a small number


@dataclass
class Stream:
    """A residual stream: the values that adds connect.

    Attributes:
        width: how many channels.

        values: the steps that make them.
        writers: linear maps and embeddings.
        readers: linear map → the norm that it reads the stream through, None if through none.
        norms: those that read it.
        others: who else reads it, or one of its norms.
    """

    width: int

    values: dict[Step, None] = field(default_factory=dict)
    writers: list[Step] = field(default_factory=list)
    readers: dict[Step, Step | None] = field(default_factory=dict)
    norms: list[Step] = field(default_factory=list)
    others: list[Step] = field(default_factory=list)

    @property
    def centred(self) -> bool:
        """Whether its norms take the mean of the channels out."""
        return any(type(norm.module) is nn.LayerNorm for norm in self.norms)


def streams_of(flow: Flow, model: nn.Module) -> list[Stream]:
    """The residual streams of a network, all of whose layers can be changed; one at least.

    Raises:
        ValueError: there is none, or one that cannot be rotated.
    """
    kind, found = type(model).__name__, list[Stream]()
    norms = {step: None for step in flow.steps if _is_norm_step(step)}
    for step in norms:
        if any(step in stream.norms for stream in found):
            continue
        stream = Stream(step.shape[-1])
        why = _follow(stream, step.reads[0], norms)
        if any(map(_adds, stream.values)):
            found.append(stream)
            if why := why or _why_not(flow, stream):
                raise ValueError(f"{kind} has a residual stream that cannot be rotated: {why}.")
    if not found:
        raise ValueError(f"{kind} has no residual stream: sums that a norm reads, and linear maps behind it.")
    for module, name in flow.names.items():
        if (is_linear_map(module) or isinstance(module, nn.Embedding)) and not flow.calls[module]:
            raise ValueError(
                f"{kind} cannot be rotated: with another batch, {name!r}, which the first one does not reach, may read "
                "or write its residual stream."
            )
    return found


def _follow(stream: Stream, source: Step, known: Collection[Step]) -> str:
    """Fill a stream with all that is connected with one of its values; why it cannot be rotated, or "".

    `known` are the norms of the network.
    """
    steps: list[tuple[Step, Step | None]] = [(source, None)]  # and the norm behind which a step is
    for at, norm in steps:  # grows
        if norm is None:
            if at in stream.values:
                continue
            stream.values[at] = None
            if at.does == MAPS or isinstance(at.module, nn.Embedding):
                stream.writers.append(at)
            elif _adds(at) or _passes(at, stream.width):
                steps += [(source, None) for source in at.reads]
            elif at in known:
                return f"{at.name!r}, a norm, writes into it, as in a post-norm model"
            elif at.name == "an input":
                return "a part of it is made by no layer"
            else:
                return f"{at.name!r} writes into it and is no linear map"
        for reader in dict.fromkeys(at.readers):
            if reader.does == MAPS:
                stream.readers[reader] = norm
            elif _passes(reader, stream.width) or (norm is None and _adds(reader)):
                steps.append((reader, norm))
            elif norm is None and reader in known:
                stream.norms.append(reader)
                steps.append((reader, reader))
            else:
                stream.others.append(reader)
    return ""


def _adds(step: Step) -> bool:
    """Whether a step is a sum of two values or more."""
    return step.module is None and step.name in ADDS and len(step.reads) > 1


def _passes(step: Step, width: int) -> bool:
    """Whether what goes in comes out, in the same order of channels: as it is, or times one number."""
    if len(step.reads) != 1 or step.does == MAPS:
        return False
    if step.module is not None:
        return isinstance(step.module, (nn.Identity, nn.Dropout))
    same = step.shape[-1:] == (width,)
    return step.name.replace("_", "") in PASS or (step.does in (MOVES, TIMES) and same)


def _is_norm_step(step: Step) -> bool:
    """Whether a step is a LayerNorm, or takes the size out and no direction once its weight is 1: tried on numbers."""
    module = step.module
    if module is None or not step.shape or len(step.reads) != 1 or step.does in (MAPS, KEEPS):
        return False
    width, own = step.shape[-1], dict(module.named_parameters())
    if type(module) is nn.LayerNorm:
        return tuple(module.normalized_shape) == (width,)
    if any(True for _ in module.children()) or (own and not is_norm(module)):
        return False
    norm, plain = copy.deepcopy(module).cpu().float(), {name: torch.tensor(float(name == "weight")) for name in own}
    x = torch.sin(torch.arange(6.0 * width)).reshape(2, 3, width)
    v = functional.normalize(torch.arange(1.0, width + 1), dim=0)

    def mirrored(x: Tensor) -> Tensor:
        return x - 2 * (x @ v)[..., None] * v

    wanted, *found = (given_by(norm, part, plain) for part in (x, mirrored(x), 2 * mirrored(x)))
    if wanted is None:
        return False
    wanted = mirrored(wanted)
    return all(y is not None and bool((y - wanted).abs().max() <= SAME * wanted.abs().max()) for y in found)


def _why_not(flow: Flow, stream: Stream) -> str:
    """Why a stream's layers cannot be changed, or ""."""
    embeddings = {step.name for step in stream.writers if isinstance(step.module, nn.Embedding)}
    maps = {step.name for step in stream.readers}
    layers: list[Any] = [step.module for step in (*stream.writers, *stream.readers, *stream.norms)]
    refuse_computed_weights({flow.names[layer]: layer for layer in layers})
    for layer in layers:
        name = flow.names[layer]
        owners = {name, *flow.shared.get(layer, ())}
        tied = len(owners) == 2 and len(owners & embeddings) == len(owners & maps) == 1
        if reason := flow.why_not(layer, beside=owners if tied else ()):
            return f"{name!r} belongs to it, and {reason}"
        if is_linear_map(layer) and not LinearMap.of(layer).is_matrix:
            return f"{name!r} belongs to it, and is a {type(layer).__name__}"
    if stream.centred:
        through = [step.name for step, norm in stream.readers.items() if norm is None]
        through += [norm.name for norm in stream.norms if type(norm.module) is not nn.LayerNorm]
        if through:
            return f"{through[0]!r} reads it as it is, and layer norms without its mean"
    return ""


# --- values, and the ends of MLPs -------------------------------------------------------------------------------------


@dataclass
class Values:
    """An attention's values.

    Attributes:
        value, output: the names of the layers that make and that read them.
        rows: how many of the value layer's last rows they are.
        width: of a head.
    """

    value: str
    output: str
    rows: int
    width: int


def values_of(flow: Flow, streams: Iterable[Stream]) -> tuple[list[Values], dict[str, str]]:
    """The values of all attentions that write into a stream, and why some cannot be turned: output layer → reason."""
    found, left = [], {}
    for output in (step for stream in streams for step in stream.writers if _behind_attention(step)):
        values = _behind_output(flow, output)
        if isinstance(values, str):
            left[output.name] = values
        else:
            found.append(values)
    return found, left


def _behind_output(flow: Flow, output: Step) -> Values | str:
    """The values that an attention's output reads, through steps that only move them; or why they are not known."""
    at = output.reads[0]
    while at.does in (MOVES, KEEPS) and len(at.reads) == len(at.readers) == 1:
        at = at.reads[0]
    if at.does != MIXES or len(at.readers) > 1:
        return f"{at.name!r} stands between it and its values, or is read by others, too"
    at = at.reads[at.values_place]
    width, rows = at.shape[-1], 0
    while len(at.reads) == 1 and (at.does in (MOVES, KEEPS) or at.name in CUTS):
        at, rows = at.reads[0], at.shape[-1]
    if at.does != MAPS or not (values := LinearMap.of(at.module)).is_matrix:
        return f"{at.name!r} stands between it and its values"
    if reason := flow.why_not(at.module):
        return f"it reads {at.name!r}, and {reason}"
    part = rows if len(at.readers) > 1 or any(step.name in CUTS for step in at.readers) else values.outputs
    if part % width:
        return f"the values' place in {at.name!r} is not known"
    return Values(at.name, output.name, part, width)


def _behind_attention(step: Step) -> bool:
    """Whether tokens are mixed between a linear map and those in front of it."""
    between = walk(step.reads, lambda at: [] if at.does == MAPS else at.reads)
    return any(at.does == MIXES for at in between)


def ends_of_mlps(streams: Iterable[Stream]) -> dict[str, int]:
    """The linear maps that write into a stream and neither read one nor an attention: name → how many inputs."""
    readers = {step for stream in streams for step in stream.readers}
    return {
        step.name: LinearMap.of(step.module).inputs
        for stream in streams
        for step in stream.writers
        if step.does == MAPS and step not in readers and not _behind_attention(step)
    }
