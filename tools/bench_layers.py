"""Benchmarks of converted layers: their time beside the float layers' and torchao's, and the memory that they need."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from bench_rows import Row, against, race
from qlearn import PerToken, QuantConfig, nn

SIZES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # of the linear layers in a block of ViT-B/16
LARGE = 25088, 4096  # the largest layer of VGG


def layers() -> Iterator[Row]:
    """One block's linear layers of ViT-B/16 on 8 images, on one thread and on all; and VGG's largest layer."""
    import torch

    threads = torch.get_num_threads()
    for number in dict.fromkeys((1, threads)):
        torch.set_num_threads(number)
        try:
            yield from _times(f"ViT-B/16 block, {number} thread{'s' * (number > 1)}")
        finally:
            torch.set_num_threads(threads)
    megabytes = float(subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout)
    name = f"forward of Linear{LARGE} beyond its codes, 4 rows"
    yield Row(name, megabytes, "MB", floor="≤ 200 MB", met=megabytes <= 200)


def _times(title: str) -> Iterator[Row]:
    import torch

    torch.manual_seed(0)
    floats = [torch.nn.Linear(*size).eval() for size in SIZES]
    inputs = [torch.randn(8, 197, size[0]) for size in SIZES]
    static = [
        nn.convert(nn.calibrate(nn.prepare(f), x[:1], progress=False)) for f, x in zip(floats, inputs, strict=True)
    ]
    by_token = QuantConfig(method="dynamic", symmetric=True, granularity=PerToken())
    dynamic = [nn.convert(nn.prepare(layer, activations=by_token)) for layer in floats]
    weights = [nn.convert(nn.prepare(layer, activations=None)) for layer in floats]
    runners: dict[str, Any] = {"float": floats, "static": static, "dynamic": dynamic, "weights": weights}
    runners |= {f"torchao {name}": made for name, made in _of_torchao(floats).items()}

    def all_of(made: list[Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                for layer, x in zip(made, inputs, strict=True):
                    layer(x)

        return run

    ms = race(7, **{name: all_of(made) for name, made in runners.items()})
    yield against(f"W8A8 static, {title}", ms["static"], "float", ms["float"], 0.5)
    for own in ("dynamic", "weights"):
        what = {"dynamic": "W8A8 dynamic, per token", "weights": "weight-only, 8 bits"}[own]
        yield against(f"{what}, {title}", ms[own], "float", ms["float"])
        if f"torchao {own}" in ms:
            yield against(f"{what}, {title}", ms[own], "torchao", ms[f"torchao {own}"])
        else:
            yield Row(f"{what}: no torchao", None, "", peer="torchao")


def _of_torchao(floats: list[Any]) -> dict[str, list[Any]]:
    """The same layers by torchao; {} without it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao import quantization
    except ImportError:
        return {}
    found = {}
    for name, config in (
        ("dynamic", quantization.Int8DynamicActivationInt8WeightConfig()),
        ("weights", quantization.Int8WeightOnlyConfig()),
    ):
        made = [copy.deepcopy(layer) for layer in floats]
        for layer in made:
            quantization.quantize_(layer, config)
        found[name] = made
    return found


MEMORY = f"""
import resource, torch
from qlearn import nn
layer = nn.convert(nn.calibrate(nn.prepare(torch.nn.Linear(*{LARGE})), torch.rand(1, {LARGE[0]}), progress=False))
x = torch.rand(4, {LARGE[0]})
now = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
layer(x)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print((peak - now) / 2**20)
"""
