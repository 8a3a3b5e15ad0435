"""How long a network takes on this machine, measured, and what it asks for.

    latency, latencies    seconds of a call; several calls in turn, so that what else the machine does meets all alike
    layer_work            operations and bytes of each layer

Everything here runs on one thread, so that the numbers of two runs can be compared.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn.nn.batches import Forward, call, evaluating
from qlearn.nn.linear_maps import NAMES, LinearMap, Supported
from qlearn.nn.network import linear_maps
from qlearn.nn.threads import one_thread

LEAST_RUNS = 5  # of each call, however long it takes


@dataclass(frozen=True)
class Latency:
    """How long a call took.

    Attributes:
        median, p95: seconds; half of the runs took no longer than the median, 95 % no longer than p95.
        runs: how many were measured.

    >>> print(Latency(median=0.00065, p95=0.0021, runs=300))
    0.65 ms (95 % within 2.1 ms, 300 runs)
    """

    median: float
    p95: float
    runs: int

    def __str__(self) -> str:
        return f"{1e3 * self.median:.3g} ms (95 % within {1e3 * self.p95:.3g} ms, {self.runs:,} runs)"


def latency(call: Callable[..., Any], *inputs: Any, seconds: float = 0.3, warmup: int = 3) -> Latency:
    """Call something again and again for so many seconds, on one thread, and say how long a call takes.

    The first calls are not counted: they fill caches and allocate what later ones find. The median is what a call
    usually takes; a mean would follow the few calls that something else interrupted, which p95 shows.

    Args:
        call: a network, an engine, any function.
        inputs: what it is called with.
        seconds: how long to measure, warm-up not counted. There are 5 runs at least.
        warmup: how many calls come before.

    Raises:
        ValueError: seconds that are not above 0, a warmup below 0.

    Cost: `seconds`, and the warm-up; more where 5 runs take longer.

    >>> latency(torch.nn.Linear(8, 8), torch.zeros(1, 8), seconds=0.01).runs >= 5
    True
    """
    return latencies({"call": call}, *inputs, seconds=seconds, warmup=warmup, progress=False)["call"]


def latencies(
    calls: Mapping[str, Callable[..., Any]],
    *inputs: Any,
    seconds: float = 0.3,
    warmup: int = 3,
    progress: bool = True,
) -> dict[str, Latency]:
    """`latency` of several calls on the same inputs, in turn: first, second, third, first, second, third, …

    What else the machine does, and how warm it is, then meets all of them alike, so that their ratios can be trusted
    further than their times. A call that is ten times as quick gets as many runs as the others.

    Args:
        calls: {name: call}.
        inputs: what each is called with.
        seconds: how long to measure for each call; together they take as many times that.
        warmup: how many calls of each come before.
        progress: show a bar.

    Returns:
        {name: Latency}, in the same order.

    Raises:
        ValueError: no calls, seconds that are not above 0, a warmup below 0.

    Cost: seconds · number of calls, and the warm-up.

    >>> x, layer = torch.zeros(1, 8), torch.nn.Linear(8, 8)
    >>> list(latencies({"twice": lambda x: layer(layer(x)), "once": layer}, x, seconds=0.01, progress=False))
    ['twice', 'once']
    """
    if not calls:
        raise ValueError("there is nothing to measure: latencies takes {name: call}.")
    if not seconds > 0:
        raise ValueError(f"seconds={seconds!r} must be above 0.")
    if warmup < 0:
        raise ValueError(f"warmup={warmup!r} must be 0 or more.")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    total = seconds * len(calls)
    bar = tqdm(total=round(total, 2), desc="Measuring", unit="s", leave=False, disable=not progress)
    with one_thread(), torch.no_grad(), bar:
        for call in calls.values():
            for _ in range(warmup):
                call(*inputs)
        gc.collect()
        began = now = time.perf_counter()
        while now - began < total or len(next(iter(taken.values()))) < LEAST_RUNS:
            for name, call in calls.items():
                start = time.perf_counter()
                call(*inputs)
                taken[name].append(time.perf_counter() - start)
            before, now = now, time.perf_counter()
            bar.update(min(now - before, max(0.0, total - (before - began))))
        bar.update(bar.total - bar.n)  # a bar that ends a rounding error before its end stays, in red
    return {
        name: Latency(float(np.median(times)), float(np.percentile(times, 95)), len(times))
        for name, times in taken.items()
    }


@dataclass(frozen=True)
class Work:
    """What a layer has to do for one batch.

    Attributes:
        operations: multiplications and additions.
        bytes: of its weights, its input and its output, each once.

    >>> Work(operations=200, bytes=50).intensity
    4.0
    """

    operations: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.operations / self.bytes


def layer_work(
    model: nn.Module, example: Any, *, weight_bits: int = 32, input_bits: int = 32, forward: Forward | None = None
) -> dict[str, Work]:
    """Operations and bytes of each layer of a float network that is a linear map, in one pass of a batch.

        operations = 2 · outputs · (weights of one output)
        bytes      = (weights · weight_bits + inputs · input_bits + outputs · 32) / 8

    Scales and biases, which are few, are left out. A layer that is called twice does both.

    Args:
        model: a float network.
        example: the batch, as `calibrate` takes it.
        weight_bits, input_bits: what a weight and an input take: 32 in float, 8 or 4 as codes.
        forward: as for `calibrate`.

    Returns:
        {name: Work}, in the order in which the layers are called.

    Raises:
        ValueError: no layers that were called.

    >>> layer_work(nn.Sequential(nn.Linear(100, 10)), torch.zeros(5, 100))
    {'0': Work(operations=10000, bytes=6200)}
    >>> layer_work(nn.Sequential(nn.Linear(100, 10)), torch.zeros(5, 100), weight_bits=8, input_bits=8)
    {'0': Work(operations=10000, bytes=1700)}
    """
    found: dict[str, Work] = {}

    def note(layer: Supported, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        name, x = names[layer], (*inputs, *named.values())[0]
        weights, one = layer.weight.numel(), LinearMap.of(layer)
        # A transposed convolution multiplies each input with many weights; all others sum up for each output.
        ends, channels = (x, one.inputs) if one.transposed else (output, one.outputs)
        products = ends.numel() * weights // channels
        bits = weights * weight_bits + x.numel() * input_bits + output.numel() * 32
        old = found.get(name, Work(0, 0))
        found[name] = Work(old.operations + 2 * products, old.bytes + -(-bits // 8))

    names: dict[Any, str] = {layer: name or "model" for name, layer in linear_maps(model).items()}
    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for layer in names:
            hooks.enter_context(layer.register_forward_hook(note, with_kwargs=True))
        call(model, example, forward)
    if not found:
        raise ValueError(f"this network has called no {NAMES}.")
    return found
