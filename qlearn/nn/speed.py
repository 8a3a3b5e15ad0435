"""How long a network takes on this machine, and how short it could be: measured, not promised.

    latency, latencies    seconds of a call; several calls in turn, so that what else the machine does meets all alike
    measure_machine       two or three numbers of a processor: bytes a second, operations a second
    layer_work            operations and bytes of each layer
    roofline              seconds that so many operations and bytes take at least

Everything here runs on one thread, so that the numbers of two runs can be compared.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn.nn.batches import evaluating
from qlearn.nn.linear_maps import LinearMap, Supported
from qlearn.nn.network import linear_maps
from qlearn.nn.threads import one_thread

LEAST_RUNS = 5  # of each call, however long it takes
STREAM = 1 << 26  # bytes of the array that bandwidth is measured on; times four where a cache might hold it
MATRIX = 1024  # rows and columns of the matrices that operations are measured on
FLAGS = {  # what Linux calls a processor's instructions, and what people call them
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX int8",
    "asimddp": "NEON dotprod",
    "i8mm": "NEON i8mm",
    "sve": "SVE",
}


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
    return {
        name: Latency(float(np.median(times)), float(np.percentile(times, 95)), len(times))
        for name, times in taken.items()
    }


# --- what the machine can do ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What one thread of a processor can do at most, as measured. An operation is one multiplication or one addition.

    Attributes:
        bytes_per_second: read from memory, by a sum over an array that no cache holds.
        float_operations_per_second: of a product of large float32 matrices.
        int8_operations_per_second: of a product of large int8 matrices by ONNX Runtime; None where it is not there.
        instructions: what of VNNI and the like the processor has; ("unknown",) where nobody says.
    """

    bytes_per_second: float
    float_operations_per_second: float
    int8_operations_per_second: float | None
    instructions: tuple[str, ...]

    @property
    def balance(self) -> float:
        """Float operations for each byte read: with fewer of them, a layer waits for its bytes."""
        return self.float_operations_per_second / self.bytes_per_second

    def __str__(self) -> str:
        whole = "no ONNX Runtime"
        if self.int8_operations_per_second is not None:
            whole = f"{self.int8_operations_per_second / 1e9:.3g} billion in int8"
        return (
            f"one thread: {self.bytes_per_second / 1e9:.3g} GB/s, "
            f"{self.float_operations_per_second / 1e9:.3g} billion operations/s in float32, {whole} "
            f"({', '.join(self.instructions)})"
        )


def measure_machine() -> Machine:
    """The numbers of a roofline, measured on one thread of this processor.

    Each is the best of several tries: a peak is what nothing has disturbed.

    Cost: about a second, and 260 MB of memory in between.
    Source: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785.

    >>> machine = measure_machine()
    >>> machine.bytes_per_second > 1e7 and machine.float_operations_per_second > 1e7
    True
    """
    with one_thread(), torch.no_grad():
        stream = torch.ones(STREAM)  # 4 bytes each
        seconds = _best(stream.sum, 0.25)
        bandwidth = stream.nbytes / seconds
        del stream
        a, b = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
        product, operations = torch.empty(MATRIX, MATRIX), 2 * MATRIX**3
        in_float = operations / _best(lambda: torch.mm(a, b, out=product), 0.25)
        multiply = _int8_product(MATRIX)
        in_int8 = None if multiply is None else operations / _best(multiply, 0.25)
    return Machine(bandwidth, in_float, in_int8, instructions())


def roofline(machine: Machine, operations: float, bytes: float, *, int8: bool = False) -> float:
    """Seconds that a computation takes at least: it waits for its operations or for its bytes.

        seconds = max(operations / operations_per_second, bytes / bytes_per_second)

    A simple model: bytes and operations overlap perfectly, and every byte is read once, from memory. A layer whose
    weights fit into a cache can be quicker than it says.

    Args:
        machine: from `measure_machine`.
        operations, bytes: of the computation; see `layer_work`.
        int8: whether the operations are those of int8 products.

    Raises:
        ValueError: int8 on a machine where that was not measured.

    Source: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785.

    >>> machine = Machine(10e9, 100e9, 400e9, ("unknown",))
    >>> roofline(machine, 1e9, 1e9), roofline(machine, 1e9, 1e6)  # waits for its bytes, then for its operations
    (0.1, 0.01)
    >>> roofline(machine, 1e9, 1e6, int8=True)
    0.0025
    """
    peak = machine.int8_operations_per_second if int8 else machine.float_operations_per_second
    if peak is None:
        raise ValueError("int8 products were not measured on this machine: that needs onnx and onnxruntime.")
    return max(operations / peak, bytes / machine.bytes_per_second)


def instructions() -> tuple[str, ...]:
    """What this processor has for quick products: "AVX2", "AVX-512 VNNI", "AMX int8", "NEON dotprod", …

    Linux lists them in /proc/cpuinfo. Elsewhere it is what PyTorch has found ("AVX2"), or ("unknown",).
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    listed = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    if found := tuple(name for flag, name in FLAGS.items() if flag in listed):
        return found
    if platform.machine().lower() in ("arm64", "aarch64") and platform.system() == "Darwin":
        return ("NEON dotprod",)  # every processor of this kind has them
    capability = torch.backends.cpu.get_cpu_capability()
    return ("unknown",) if capability in ("DEFAULT", "NO AVX") else (capability.replace("AVX512", "AVX-512"),)


def _best(call: Callable[[], Any], seconds: float) -> float:
    """The shortest time of a call, tried for so long, and three times at least."""
    call()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _int8_product(size: int) -> Callable[[], Any] | None:
    """A product of two square matrices of int8 codes in ONNX Runtime, as a call; None where that is not installed."""
    try:
        from onnx import TensorProto, helper, numpy_helper

        from qlearn.nn.engines import session_of
    except ImportError:
        return None
    codes = np.random.default_rng(0).integers(-127, 128, (size, size), dtype=np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    ends = (
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [size, size])],
    )
    graph = helper.make_graph([node], "product", *ends, [numpy_helper.from_array(codes, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    try:
        session = session_of(model.SerializeToString())
    except ImportError:
        return None
    a = codes.astype(np.uint8)
    return lambda: session.run(None, {"a": a})


# --- what a network asks for ------------------------------------------------------------------------------------------


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


def layer_work(model: nn.Module, example: Tensor, *, weight_bits: int = 32, input_bits: int = 32) -> dict[str, Work]:
    """Operations and bytes of each layer of a float network that is a linear map, in one pass of a batch.

        operations = 2 · outputs · (weights of one output)
        bytes      = (weights · weight_bits + inputs · input_bits + outputs · 32) / 8

    Scales and biases, which are few, are left out. A layer that is called twice does both.

    Args:
        model: a float network.
        example: the batch.
        weight_bits, input_bits: what a weight and an input take: 32 in float, 8 or 4 as codes.

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

    def note(name: str, layer: Supported, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, one = layer.weight.numel(), LinearMap.of(layer)
        # A transposed convolution multiplies each input with many weights; all others sum up for each output.
        ends, channels = (inputs[0], one.inputs) if one.transposed else (output, one.outputs)
        products = ends.numel() * weights // channels
        bits = weights * weight_bits + inputs[0].numel() * input_bits + output.numel() * 32
        old = found.get(name, Work(0, 0))
        found[name] = Work(old.operations + 2 * products, old.bytes + -(-bits // 8))

    layers: dict[str, Any] = linear_maps(model)
    hooks = [
        module.register_forward_hook(
            lambda layer, inputs, output, name=name: note(name or "model", layer, inputs, output)
        )
        for name, module in layers.items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("this network has called no Linear, Conv1d, Conv2d or ConvTranspose2d.")
    return found
