"""Mixed precision: a number of bits for each layer, so that the network fits a budget and stays as good as it can.

    sensitivity, layer_bytes  →  allocate_bits  →  overrides_for  →  prepare → calibrate → convert

The first two measure a network, and give tables {layer: {bits: number}}. What is decided on these tables is pure
arithmetic, and knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn.config import QuantConfig
from qlearn.nn.batches import Batches, Forward, listed, one_tensor, outputs
from qlearn.nn.distributed import TIMEOUT, Part, exchange, telling, workers
from qlearn.nn.integer_layers import quantized
from qlearn.nn.network import linear_maps, naming
from qlearn.nn.prepared import ObservedLayer, prepare_layers, prepared_layers
from qlearn.nn.ptq import ACTIVATIONS, WEIGHTS, convert
from qlearn.nn.summary import summary

BITS = (8, 4, 3, 2)

Table: TypeAlias = Mapping[str, Mapping[int, float]]


def sensitivity(
    model: nn.Module,
    batches: Batches,
    *,
    bits: Sequence[int] = BITS,
    weights: QuantConfig = WEIGHTS,
    forward: Forward | None = None,
    progress: bool = True,
    timeout: float = TIMEOUT,
) -> dict[str, dict[int, float]]:
    """How much a classifier's answers change when the weights of one layer alone are quantized.

        sensitivity = mean over inputs of Σ_c p_c · log(p_c / p̂_c)        p, p̂ = softmax before and after

    This Kullback-Leibler divergence is 0 where nothing changes. It needs no labels, and sees changes that are too
    small to flip an answer. On several workers (`join_workers`) each one takes its share of the layers, so all hand
    over the same network and all batches; all get the whole table, with the same bits.

    Args:
        model: a trained network that gives logits (…, C). It is not changed.
        batches: as for `calibrate`: data that the network was not trained on and will not be tested on.
        bits: what to try for each layer, 2 … 8.
        weights: scheme, granularity and range method; its own bits do not matter.
        forward: as for `calibrate`; it may also pick the logits out of what the network gives.
        progress: show a bar.
        timeout: seconds that a worker who is done waits for the others.

    Returns:
        Layer name → bits → divergence, in nats.

    Raises:
        ValueError: a model without a layer to quantize, no batches, bits that a layer cannot have, outputs that are
            not finite.
        RuntimeError: on several workers: one that has ended, does not come in time or has failed, or that measures
            another network, other batches or bits, by its rank.

    Cost: one pass through the network for each layer and number of bits, and one more; the layers of n workers are
        measured n at a time.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> layer.weight.data = torch.tensor([[0.0, 1.0], [0.6, 1.0]])
    >>> found = sensitivity(nn.Sequential(layer), torch.tensor([[1.0, 0.0]]), bits=(8, 2))  # 0.6 becomes 1.0
    >>> {bits: round(error, 5) for bits, error in found["0"].items()}
    {8: 0.0, 2: 0.01751}
    """
    rank, count = workers()
    table: dict[str, dict[int, float]] = {}
    with telling("nn.sensitivity", timeout):
        _check_tries(bits, weights)
        seen = list(listed(batches))
        layers = list(linear_maps(model))
        target = _log_softmax(model, seen, forward)
        own = (layers or [""])[rank::count]  # without any, prepare says what is wrong
        for name in tqdm(own, desc="Sensitivity", unit="layer", leave=False, disable=not progress):
            others: dict[str, None] = {other: None for other in layers if other != name}
            for b in bits:
                changed = convert(prepare_layers(model, ObservedLayer, replace(weights, bits=b), None, others))
                logs = _log_softmax(changed, seen, forward)
                table.setdefault(name, {})[b] = divergence(target, logs)
    if count == 1:
        return table
    measured = [layers, [int(b) for b in bits], repr(weights), list(target.shape), float(target.sum())]
    return _whole_table(measured, table, timeout)


def divergence(target: Tensor, logs: Tensor) -> float:
    """The mean over rows of Σ_c p_c · log(p_c / p̂_c), from log p and log p̂, both (…, C).

    >>> round(divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()), 4)
    0.1438
    """
    return float((target.exp() * (target - logs)).sum(-1).mean())


def _whole_table(measured: list[Any], table: Table, timeout: float) -> dict[str, dict[int, float]]:
    """All workers' parts of a table, in the order of the layers, if all have measured the same."""
    rows = [[name, list(errors.items())] for name, errors in table.items()]
    parts = [part.about for part in exchange("nn.sensitivity", Part([measured, rows]), timeout)]
    *same, total = measured
    for rank, ((*other, their_total), _) in enumerate(parts):
        # The last bits of the sum are the processor's.
        if other != same or not math.isclose(their_total, total, rel_tol=1e-4):
            raise RuntimeError(
                f"worker {rank} of {len(parts)} measures another network, other batches or other bits: the workers of "
                "nn.sensitivity share the layers, and all take all batches."
            )
    found = {name: {b: error for b, error in errors} for _, their_rows in parts for name, errors in their_rows}
    return {name: found[name] for name in measured[0]}


def layer_bytes(
    model: nn.Module,
    *,
    bits: Sequence[int] = BITS,
    weights: QuantConfig = WEIGHTS,
    activations: QuantConfig | None = ACTIVATIONS,
) -> dict[str, dict[int, int]]:
    """What each layer takes in a file at each number of bits: packed codes, scales, zero points and bias.

    The sum over layers, and what `summary` counts for layers left in float, is the size of all tensors in the file
    that `save` writes after prepare → calibrate → convert with the same configurations.

    Args:
        model: a network, of which only the layers' shapes matter.
        bits: 2 … 8.
        weights, activations: as for `prepare`; the bits of `weights` do not matter.

    Returns:
        Layer name → bits → bytes.

    Raises:
        ValueError: as `prepare` does.

    >>> layer_bytes(nn.Sequential(nn.Linear(784, 100)), bits=(8, 2))  # 78,400 codes, 100 scales, 100 biases, 3 numbers
    {'0': {8: 79212, 2: 20412}}
    """
    _check_tries(bits, weights)
    table: dict[str, dict[int, int]] = {}
    for b in bits:
        asked = replace(weights, bits=b, method="min_max")
        for layer in prepared_layers(prepare_layers(model, ObservedLayer, asked, activations, None)):
            static = activations is not None and activations.method != "dynamic"
            inputs = activations.choose_qparams(0.0, 1.0) if activations and static else activations
            with naming(layer.name):
                stored = quantized(layer.layer, layer.find_weight_qparams(), inputs)
            table.setdefault(layer.name, {})[b] = summary(stored).bytes
    return table


def allocate_bits(sensitivity: Table, sizes: Table, budget: float) -> dict[str, int]:
    """Choose bits for each layer such that all together fit the budget, and the sum of their sensitivities is small.

    Greedy: along `descent` until the sizes fit. What the last step saved too much is given back where that lowers the
    sum most. The sum exceeds the smallest possible one by no more than the last step added.

    The sum stands for what quantizing all layers together does, which is not quite the same: layers' errors can add
    up to more, or cancel. What the choice is worth, a measurement of the whole network says.

    Args:
        sensitivity: layer → bits → how much it costs; any measure that may be added up.
        sizes: layer → bits → how much room it takes, for the same layers and bits.
        budget: of all sizes together, in their unit.

    Returns:
        Layer → bits, in the order of `sensitivity`. The same tables give the same result: of equals, the step that
        saves less comes first, then the earlier layer.

    Raises:
        ValueError: not even the smallest sizes fit (says what they are); tables that do not have the same layers and
            bits, or hold NaN or infinity.

    Cost: O((layers · bits)²).
    Source: Dong et al. 2020, https://arxiv.org/abs/1911.03852, choose bits by sensitivity, too. That such a greedy
        choice lies so near to the best is known of knapsacks: Sinha and Zoltners 1979, "The multiple-choice knapsack
        problem", Operations Research 27.

    >>> sensitivity = {"first": {8: 0.0, 4: 0.1, 2: 0.9}, "last": {8: 0.0, 4: 0.2, 2: 0.6}}
    >>> sizes = {"first": {8: 800, 4: 400, 2: 200}, "last": {8: 8000, 4: 4000, 2: 2000}}
    >>> allocate_bits(sensitivity, sizes, budget=5_000)
    {'first': 8, 'last': 4}
    """
    way = descent(sensitivity, sizes)
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise TypeError(f"budget={budget!r} must be a number.")
    fitting = (chosen for chosen in way if _total(sizes, chosen) <= budget)
    if (chosen := next(fitting, None)) is None:
        smallest = sum(min(options.values()) for options in sizes.values())
        raise ValueError(f"budget={budget:,} is too small: with the fewest bits in every layer it takes {smallest:,}.")
    room = budget - _total(sizes, chosen)
    while better := [change for change in _changes(sensitivity, sizes, chosen) if change[0] < 0 and change[1] <= room]:
        *_, name, b = min(better)
        chosen = {**chosen, name: b}
        room = budget - _total(sizes, chosen)
    return chosen


def descent(sensitivity: Table, sizes: Table) -> list[dict[str, int]]:
    """The greedy way from each layer's best number of bits to its smallest size: all stops, one layer changed in each.

        next step = the layer and bits with the smallest  (added sensitivity) / (saved size)

    No other choice of bits has a smaller sum of sensitivities than a stop, unless it takes more room.

    Args, Returns, Raises: as for `allocate_bits`, without a budget.

    >>> sensitivity = {"first": {8: 0.0, 4: 0.1, 2: 0.9}, "last": {8: 0.0, 4: 0.2, 2: 0.6}}
    >>> sizes = {"first": {8: 800, 4: 400, 2: 200}, "last": {8: 8000, 4: 4000, 2: 2000}}
    >>> [tuple(chosen.values()) for chosen in descent(sensitivity, sizes)]
    [(8, 8), (8, 4), (8, 2), (4, 2), (2, 2)]
    """
    _check(sensitivity, sizes)
    chosen = {name: min(errors, key=lambda b: (errors[b], sizes[name][b])) for name, errors in sensitivity.items()}
    way = [chosen]
    while steps := [
        (added / -taken, -taken, number, name, b)
        for added, taken, number, name, b in _changes(sensitivity, sizes, chosen)
        if taken < 0
    ]:
        *_, name, b = min(steps)
        chosen = {**chosen, name: b}
        way.append(chosen)
    return way


def overrides_for(bits: Mapping[str, int], weights: QuantConfig = WEIGHTS) -> dict[str, dict[str, QuantConfig]]:
    """The `overrides` of `prepare` that give each layer its own bits, and leave all else as in `weights`.

    >>> overrides_for({"conv1": 8, "linear": 3})["linear"]["weights"].bits
    3
    """
    if not isinstance(bits, Mapping):
        raise TypeError(f"bits={bits!r} must be {{layer: bits}}, as allocate_bits gives it.")
    if not isinstance(weights, QuantConfig):
        raise TypeError(f"weights must be a QuantConfig, not {weights!r}.")
    return {name: {"weights": replace(weights, bits=b)} for name, b in bits.items()}


def _changes(
    sensitivity: Table, sizes: Table, chosen: Mapping[str, int]
) -> Iterator[tuple[float, float, int, str, int]]:
    """Every change of one layer: the sensitivity that it adds and the room that it takes; the layer's place, its name
    and the bits."""
    for number, (name, now) in enumerate(chosen.items()):
        errors, rooms = sensitivity[name], sizes[name]
        for b in errors:
            yield errors[b] - errors[now], rooms[b] - rooms[now], number, name, b


def _total(sizes: Table, chosen: Mapping[str, int]) -> float:
    return sum(sizes[name][b] for name, b in chosen.items())


def _check_tries(bits: Sequence[int], weights: QuantConfig) -> None:
    """`prepare` says which numbers will do."""
    if not isinstance(bits, Sequence) or not bits or not all(isinstance(b, Integral) for b in bits):
        raise TypeError(f"bits={bits!r} must be numbers to try, (8, 4).")
    if not isinstance(weights, QuantConfig):
        raise TypeError(f"weights must be a QuantConfig, not {weights!r}.")


def _check(sensitivity: Table, sizes: Table) -> None:
    for what, found in (("sensitivity", sensitivity), ("sizes", sizes)):
        if not isinstance(found, Mapping) or not all(isinstance(row, Mapping) for row in found.values()):
            raise TypeError(f"{what} must be a table {{layer: {{bits: number}}}}, not {found!r}.")
    if not sensitivity or sensitivity.keys() != sizes.keys():
        raise ValueError(
            f"sensitivity has the layers {', '.join(sensitivity) or 'none'}, sizes {', '.join(sizes) or 'none'}: "
            "both need the same ones."
        )
    for name in sensitivity:
        if not sensitivity[name] or sensitivity[name].keys() != sizes[name].keys():
            raise ValueError(
                f"layer {name!r}: sensitivity has {sorted(sensitivity[name])} bits, sizes {sorted(sizes[name])}: "
                "both need the same ones."
            )
        for table, values in (("sensitivity", sensitivity[name]), ("sizes", sizes[name])):
            for b, value in values.items():
                if not math.isfinite(value):
                    raise ValueError(f"layer {name!r}: {table} at {b} bits is {value}, not a finite number.")


def _log_softmax(model: nn.Module, batches: Batches, forward: Forward | None) -> Tensor:
    """The logarithms of what the network takes each class's probability for, in float64."""
    parts: list[Tensor] = []
    for output in outputs(model, batches, forward=forward):
        of_batch = one_tensor(output)
        classes = parts[0].shape[-1] if parts else max(2, of_batch.shape[-1] if of_batch.ndim else 0)
        if of_batch.ndim < 2 or of_batch.shape[-1] != classes:
            raise ValueError(
                f"the network puts out shape {tuple(of_batch.shape)}: wanted are logits (…, C), of two classes or more "
                "and of as many for each batch."
            )
        parts.append(of_batch.flatten(0, -2))
    logits = torch.cat(parts)
    if len(logits) == 0:
        raise ValueError("the batches hold no example: nothing can be measured.")
    if not bool(logits.isfinite().all()):
        raise ValueError("the network's outputs are not finite: its sensitivity cannot be measured.")
    return logits.double().log_softmax(-1)
