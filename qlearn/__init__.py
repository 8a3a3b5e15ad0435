"""qlearn: neural-network quantization, built by hand, checked, played with, imported.

    x → find_range → (lo, hi) → choose_qparams → QParams → quantize → codes → dequantize → x̂ → errors

The maths is here at once; `qlearn.nn`, `qlearn.plots`, `qlearn.widgets`, `qlearn.exercises` and
`qlearn.datasets` are loaded when they are first used, so that `import qlearn` stays quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from qlearn import (
    block_scales,
    codebooks,
    errors,
    formats,
    gguf_blocks,
    gptq,
    integer,
    observers,
    packing,
    rotations,
)
from qlearn.affine import QParams, choose_qparams, dequantize, fake_quantize, quantize
from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis, PerGroup, PerTensor, PerToken
from qlearn.ranges import find_qparams, find_range

__version__ = "0.1.0"

__all__ = [
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QParams",
    "QuantConfig",
    "block_scales",
    "choose_qparams",
    "codebooks",
    "dequantize",
    "errors",
    "fake_quantize",
    "find_qparams",
    "find_range",
    "formats",
    "gguf_blocks",
    "gptq",
    "integer",
    "observers",
    "packing",
    "quantize",
    "rotations",
]

_LATE = ("datasets", "exercises", "nn", "plots", "widgets")


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return importlib.import_module(f"qlearn.{name}")
    raise AttributeError(f"module 'qlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATE])
