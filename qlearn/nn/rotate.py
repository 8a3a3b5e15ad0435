"""Rotations in a network: its residual stream in another basis, so that no channel is larger than all others.

    x  →  x Q        writers: W → Qᵀ W        readers: W → W Q        Q Qᵀ = 1

A transformer's blocks read from one stream and add to it. In between is a norm, and the root mean square of x Q is
that of x: once a norm's weight is moved into the layers that read it, the whole stream can be turned.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from qlearn.nn.batches import Batches, Forward, listed
from qlearn.nn.flow import say_left
from qlearn.nn.linear_maps import LinearMap, is_linear_map
from qlearn.nn.network import copy_of, in_lines, naming, replace, set_parameter
from qlearn.nn.recording import watched
from qlearn.nn.stream import Stream, Values, ends_of_mlps, streams_of, values_of
from qlearn.nn.unchanged import distance, failing, outputs_in_float, wanted_outputs
from qlearn.rotations import hadamard, random_hadamard, random_orthogonal

SAME = 1e-4  # of the largest output; half types: some units in the last place

Change: TypeAlias = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]  # of a layer's rows and bias
Changes: TypeAlias = dict[str, list[Change]]  # name of a layer → what is done to it, one after the other


def rotate(
    model: nn.Module,
    batches: Batches,
    *,
    seed: int = 0,
    heads: bool = True,
    online: bool = False,
    forward: Forward | None = None,
) -> nn.Module:
    """Copy a transformer and turn the basis of its residual stream, so that its outliers are shared by all channels.

        rotate → prepare → calibrate → convert

        norms:    γ and β go into the layers that read the norm:  W → W γ,  b → b + W β
        stream:   what writes into it gives x Q instead of x, what reads it takes x Q       (R1 in SpinQuant)
        heads:    the values of each head, and what the attention's output reads            (R2)
        online:   h → h H in front of the layers that end an MLP, whose weights are W H     (R4)

    Q and the heads' matrix are Hadamard matrices with random signs, or random orthogonal ones for sizes that have none
    here. The function stays the same, but for rounding in the last digits; that is looked at on the first batch. All
    products are computed in float64, and each weight is rounded once.

    A LayerNorm's mean is taken out where it comes from, in the layers that write into the stream; a `nn.RMSNorm` takes
    its place. All norms' weights are 1 then. If head and embedding share their numbers and the last norm has a weight,
    the head gets numbers of its own, and a warning says so.

    Args:
        model: a float network whose norms stand in front of its blocks and multiply by their weight, as in GPT-2, OPT,
            Llama, Mistral and Qwen. It is not changed.
        batches: as for `calibrate`; only the first batch is looked at.
        seed: of the signs.
        heads: whether to turn the values, too. Attentions in which that cannot be done are named in a warning.
        online: whether to put a `HadamardProduct` in front of the layers that end an MLP: it costs time in each call,
            and the layer's name gets a ".1" behind it.
        forward: how the network is called on a batch, for all that `batches.call` does not understand.

    Raises:
        ValueError: no residual stream that norms read; something other than linear maps and embeddings that writes
            into it, as the norms of a post-norm model do; layers of it that are used twice, are shared (but for the
            head), have hooks, or are not reached by the batch; a network that is prepared or quantized; outputs that do
            not stay the same (says who else reads the stream).

    Cost: two passes of the first batch, and two products with (C, C) matrices for each layer; O(n²) for each token and
        layer in each call with online=True, for n hidden values.
    Source: Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456; Liu et al. 2024, https://arxiv.org/abs/2405.16406;
        LayerNorm: Ashkboos et al. 2024, https://arxiv.org/abs/2401.15024, section 3.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, x = language_model(), to_tokens("Call me Ishmael.")
    >>> bool(torch.allclose(rotate(model, [x])(x), model(x), atol=1e-5))
    True
    """
    batch = next(iter(listed(batches)))
    flow = watched(model, batch, forward)
    wanted = wanted_outputs(model, batch, forward)

    def off(network: nn.Module) -> float:
        return distance(wanted, outputs_in_float(network, batch, forward))

    limit = max([SAME, *(16 * torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())])
    streams = streams_of(flow, model)
    changes: Changes = defaultdict(list)
    for stream in streams:
        _turn_stream(stream, _basis(stream.width, seed), changes)
    if heads:
        found, left = values_of(flow, streams)
        wrong = failing(found, lambda some: off(_changed(model, _turn_values(some, seed))[0]) <= limit)
        left.update({each.output: "the network computes something else when its values are turned" for each in wrong})
        right = [each for each in found if each not in wrong]
        say_left(f"turned the values of {len(right)} of {len(right) + len(left)} attentions", left)
        for name, more in _turn_values(right, seed).items():
            changes[name] += more
    ends = ends_of_mlps(streams) if online else {}
    for name, inputs in ends.items():
        with naming(name):
            changes[name].append(_reads(torch.from_numpy(hadamard(inputs))))
    rotated, untied = _changed(model, changes, streams)
    replace(rotated, {(layer := rotated.get_submodule(name)): _online(layer) for name in ends})
    if not (how_far := off(rotated)) <= limit:
        others = dict.fromkeys(repr(step.name) for stream in streams for step in stream.others)
        reason = f"what reads it and is no linear map: {', '.join(list(others)[:5])}" if others else "nobody sees why"
        raise ValueError(
            f"{type(model).__name__} computes something else when its residual stream is rotated: its outputs are off "
            f"by {how_far:.2g} of the largest ({reason})."
        )
    for head, embedding in untied.items():
        own = (
            f"{head!r} shared its numbers with {embedding!r}; it has its own now, with the last norm's weight in them."
        )
        warnings.warn(in_lines(own), stacklevel=2)
        if getattr(getattr(rotated, "config", None), "tie_word_embeddings", False):
            rotated.config.tie_word_embeddings = False  # so that transformers does not tie them again
    return rotated


class HadamardProduct(nn.Module):
    """x H along the last axis: what `rotate` puts in front of a layer with online=True.

    The matrix is made of n alone, so it stands in no `state_dict`.

    >>> HadamardProduct(4)(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    tensor([2., 0., 0., 0.])
    """

    matrix: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(hadamard(n)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, n) → (…, n)."""
        return x @ self.matrix.to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return str(len(self.matrix))


def _basis(n: int, seed: int) -> Tensor:
    try:
        return torch.from_numpy(random_hadamard(n, seed))
    except ValueError:  # none of this size
        return torch.from_numpy(random_orthogonal(n, seed))


def _writes(q: Tensor, last: int = 0) -> Change:
    """Turn what a layer makes: in each block of len(q) rows, of the last so many or of all."""

    def change(rows: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        start, m = len(rows) - (last or len(rows)), q.to(rows.device)
        turned = (m.T @ rows[start:].unflatten(0, (-1, len(m)))).flatten(0, 1)
        if bias is not None:
            bias = torch.cat([bias[:start], (bias[start:].unflatten(0, (-1, len(m))) @ m).flatten()])
        return torch.cat([rows[:start], turned]), bias

    return change


def _reads(q: Tensor, norm: nn.Module | None = None) -> Change:
    """Turn what a layer reads, in blocks of len(q), and take in a norm's weight and bias."""
    gain, shift = (getattr(norm, which, None) for which in ("weight", "bias"))

    def change(rows: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        m = q.to(rows.device)
        if shift is not None and shift.any():
            moved = rows @ shift.detach().to(rows)
            bias = moved if bias is None else bias + moved
        if gain is not None:
            rows = rows * gain.detach().to(rows)
        return (rows.unflatten(1, (-1, len(m))) @ m).flatten(1), bias

    return change


def _turn_values(found: Iterable[Values], seed: int) -> Changes:
    """What turns the values of attentions, each head by the same matrix."""
    changes: Changes = defaultdict(list)
    for values in found:
        q = _basis(values.width, seed + 1)
        changes[values.value].append(_writes(q, values.rows))
        changes[values.output].append(_reads(q))
    return changes


def _turn_stream(stream: Stream, q: Tensor, changes: Changes) -> None:
    """Collect what turns a stream."""
    made = q - q.mean(0) if stream.centred else q  # of each token's channels, the mean is taken out
    for step in stream.writers:
        changes[step.name].append(_writes(made))
    for step, norm in stream.readers.items():
        changes[step.name].append(_reads(q, None if norm is None else norm.module))


def _changed(model: nn.Module, changes: Changes, streams: Iterable[Stream] = ()) -> tuple[nn.Module, dict[str, str]]:
    """A copy with these changes and with norms of weight 1; and what is not shared any more, head → embedding."""
    twin, made = copy_of(model), dict[Tensor, tuple[str, nn.Parameter]]()
    untied = {}
    for name, todo in changes.items():
        layer = twin.get_submodule(name)
        old, bias = layer.weight, getattr(layer, "bias", None)
        is_map = is_linear_map(layer)
        rows = (LinearMap.of(layer).rows(old) if is_map else old.T).detach().double()
        new_bias = None if bias is None else bias.detach().double()
        for change in todo:
            rows, new_bias = change(rows, new_bias)
        with naming(name):
            set_parameter(layer, "weight", (LinearMap.of(layer).weight(rows) if is_map else rows.T).contiguous())
            if new_bias is not None:
                set_parameter(layer, "bias", new_bias)
        other, shared = made.setdefault(old, (name, layer.weight))
        if torch.equal(shared, layer.weight):
            layer.weight = shared
        else:
            untied[name] = other
    for norm in (step for stream in streams for step in stream.norms):
        replace(twin, {(module := twin.get_submodule(norm.name)): _without_weight(module, twin)})
    return twin, untied


def _without_weight(norm: nn.Module, model: nn.Module) -> nn.Module:
    """A norm whose weight is 1; for a LayerNorm, one that takes no mean out."""
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.fill_(name == "weight")
    if type(norm) is not nn.LayerNorm:
        return norm
    like = next(p for p in (*norm.parameters(), *model.parameters()) if p.is_floating_point())
    rms = nn.RMSNorm(norm.normalized_shape, norm.eps, device=like.device, dtype=like.dtype)
    return rms.train(norm.training).requires_grad_(like.requires_grad)


def _online(layer: nn.Module) -> nn.Module:
    """A layer behind a product with a Hadamard matrix."""
    product = HadamardProduct(LinearMap.of(layer).inputs).to(layer.weight)
    return nn.Sequential(product, layer).train(layer.training)
