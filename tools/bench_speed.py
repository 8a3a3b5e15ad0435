"""Benchmarks of the engines: the same networks in PyTorch, by hand, in ONNX Runtime and in torchao."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench_rows import Row
from qlearn import PerAxis, QuantConfig, nn

BATCH = 1000
SECONDS = 1.0  # for each engine
FOUR_BITS = QuantConfig(4, symmetric=True, granularity=PerAxis(0))


def speed() -> Iterator[Row]:
    """Median and 95th percentile of a batch of 1,000 on one thread, against float in the same engine, and bytes."""
    machine = nn.measure_machine()
    yield Row(f"processor: {', '.join(machine.instructions)}", None, "")
    yield Row("memory, one thread", machine.bytes_per_second / 1e9, "GB/s")
    in_float, in_int8 = machine.float_operations_per_second, machine.int8_operations_per_second
    yield Row("float32 product", in_float / 1e9, "Gop/s")
    if in_int8 is not None:
        yield Row(
            "int8 product",
            in_int8 / 1e9,
            "Gop/s",
            peer="float32",
            peer_measured=in_float / 1e9,
            ratio=in_int8 / in_float,
        )
    for title, (model, x) in _networks().items():
        yield from _engines(title, model, x)


def _networks() -> dict[str, tuple[Any, Any]]:
    import torch

    from qlearn.datasets import mnist_arrays

    digits = nn.to_inputs(mnist_arrays().validation.images[:BATCH])
    torch.manual_seed(0)
    wide = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024)).eval()
    return {
        "MLP": (nn.load_trained("mlp"), digits),
        "CNN": (nn.fold_batch_norm(nn.load_trained("cnn")), digits),
        "1024-4096-1024": (wide, torch.randn(BATCH, 1024)),
    }


def _engines(title: str, model: Any, x: Any) -> Iterator[Row]:
    prepared = nn.calibrate(nn.prepare(model), [x], progress=False)
    engines: dict[str, Any] = {}
    for name in nn.ENGINES:
        try:
            engines[name] = nn.engine(name, prepared, x)
        except ImportError as error:
            yield Row(f"{title}, {name}: {error}", None, "")
    if "ONNX Runtime int8" in engines:
        engines["ONNX Runtime, W4A8"] = nn.engine("ONNX Runtime int8", model, x, weights=FOUR_BITS)
    found = nn.latencies(engines, x, seconds=SECONDS, progress=False)
    for name, latency in found.items():
        peer = "ONNX Runtime" if name.startswith("ONNX Runtime") and name != "ONNX Runtime" else "float"
        ms, of_peer = 1e3 * latency.median, 1e3 * found[peer].median
        what = f"{title}, {name}, {engines[name].bytes:,} bytes"
        yield Row(what, ms, "ms", 1e3 * latency.p95, peer, of_peer, of_peer / ms)
