"""The two or three numbers of a processor that say how quick a layer can be at most: its roofline.

    seconds ≥ max(operations / operations_per_second, bytes / bytes_per_second)

An operation is one multiplication or one addition; everything is measured on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qlearn.nn.engines import session_of
from qlearn.nn.processor import instructions
from qlearn.nn.threads import one_thread

STREAM = 1 << 26  # float32 numbers, 256 MB, in the array that bandwidth is measured on: more than a cache holds
MATRIX = 1024  # rows and columns of the matrices that operations are measured on
TRIED = 0.2  # seconds for each


@dataclass(frozen=True)
class Machine:
    """What one thread of a processor can do at most, as measured. An operation is one multiplication or one addition.

    Attributes:
        bytes_per_second: read from memory, by a sum over an array that no cache holds.
        float_operations_per_second: of a product of large float32 matrices.
        int8_operations_per_second: of a product of large int8 matrices by ONNX Runtime; None where it is not there.
        instructions: what of VNNI and the like the processor has; ("unknown",) where nobody says.

    >>> print(Machine(10e9, 100e9, 1.9e12, ("AVX2", "AMX int8")))
    one thread: 10 GB/s, 100 billion operations/s in float32, 1,900 billion in int8 (AVX2, AMX int8)
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
            whole = f"{_billions(self.int8_operations_per_second)} billion in int8"
        return (
            f"one thread: {_billions(self.bytes_per_second)} GB/s, "
            f"{_billions(self.float_operations_per_second)} billion operations/s in float32, {whole} "
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
        seconds = _best(stream.sum)
        bandwidth = stream.nbytes / seconds
        del stream
        a, b = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
        product, operations = torch.empty(MATRIX, MATRIX), 2 * MATRIX**3
        in_float = operations / _best(lambda: torch.mm(a, b, out=product))
        try:
            in_int8 = operations / _best(_int8_product(MATRIX))
        except ImportError:
            in_int8 = None
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


def _billions(number: float) -> str:
    """Three significant digits, written out."""
    return f"{float(f'{number / 1e9:.3g}'):,g}"


def _best(call: Callable[[], Any]) -> float:
    """The shortest time of a call in `TRIED` seconds, and of three calls at least."""
    call()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < TRIED:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _int8_product(size: int) -> Callable[[], Any]:
    """A product of two square matrices of int8 codes in ONNX Runtime, as a call.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    from onnx import TensorProto, helper, numpy_helper

    codes = np.random.default_rng(0).integers(-127, 128, (size, size), dtype=np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    ends = (
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [size, size])],
    )
    graph = helper.make_graph([node], "product", *ends, [numpy_helper.from_array(codes, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session, a = session_of(model.SerializeToString()), codes.astype(np.uint8)
    return lambda: session.run(None, {"a": a})
