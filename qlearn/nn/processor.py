"""Which instructions for quick products a processor has."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
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
# One of these adds four products of int8 codes to an int32 sum; without them two are added in 16 bits, which saturate.
EXACT = ("AVX-VNNI", "AVX-512 VNNI", "AMX int8", "NEON dotprod", "NEON i8mm")


def instructions() -> tuple[str, ...]:
    """What this processor has for quick products: "AVX2", "AVX-512 VNNI", "AMX int8", "NEON dotprod", …

    Linux lists them in /proc/cpuinfo. Elsewhere it is what PyTorch has found ("AVX2"), or ("unknown",).
    """
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    listed = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    if found := tuple(name for flag, name in FLAGS.items() if flag in listed):
        return found
    if platform.machine().lower() in ("arm64", "aarch64") and platform.system() == "Darwin":
        return ("NEON dotprod",)  # every processor of this kind has them
    capability = torch.backends.cpu.get_cpu_capability()
    return ("unknown",) if capability in ("DEFAULT", "NO AVX") else (capability.replace("AVX512", "AVX-512"),)
