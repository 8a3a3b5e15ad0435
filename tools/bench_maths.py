"""Benchmarks without a page: quantize, the range search, the import, the lessons."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
import numpy as np

import lessons
import qlearn
from bench_rows import Row, against, race
from dev import own_environment

N = 10**7
GROUP = 128


def quantize() -> Iterator[Row]:
    """10⁷ float32, 8 bits, against the code of most notebooks and against PyTorch's own kernel on one thread."""
    import torch

    x = np.random.default_rng(0).standard_normal(N, dtype=np.float32)
    q = qlearn.find_qparams(x)
    tensor, threads = torch.from_numpy(x), torch.get_num_threads()
    torch.set_num_threads(1)
    runners: dict[str, Any] = {
        "array": lambda: qlearn.quantize(x, q),
        "textbook": lambda: textbook(x, q.scale, q.zero_point, 0, 255),
        "tensor": lambda: qlearn.quantize(tensor, q),
    }
    if hasattr(torch, "quantize_per_tensor"):  # deprecated: some release will come without it
        scale, zero_point = float(q.scale), int(q.zero_point)
        runners["torch"] = lambda: torch.quantize_per_tensor(tensor, scale, zero_point, torch.quint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ms = race(9, **runners)
    torch.set_num_threads(threads)
    assert (qlearn.quantize(x, q) == textbook(x, q.scale, q.zero_point, 0, 255)).all()
    yield against("quantize 10⁷ float32, NumPy", ms["array"], "textbook code", ms["textbook"], 4)
    if "torch" in ms:
        peer = "torch.quantize_per_tensor"
        yield against("quantize 10⁷ float32, NumPy", ms["array"], peer, ms["torch"], 1)
        yield against("quantize 10⁷ float32, PyTorch", ms["tensor"], peer, ms["torch"])

    matrix = x.reshape(-1, 5 * GROUP)
    q = qlearn.find_qparams(matrix, symmetric=True, granularity=qlearn.PerGroup(GROUP))
    groups, scales = x.reshape(-1, GROUP), q.scale.reshape(-1, 1)
    ms = race(
        5,
        own=lambda: qlearn.quantize(matrix, q),
        textbook=lambda: textbook(groups, scales, 0, -127, 127),
    )
    assert (qlearn.quantize(matrix, q).reshape(-1, GROUP) == textbook(groups, scales, 0, -127, 127)).all()
    yield against(
        f"quantize 10⁷ float32, groups of {GROUP}", ms["own"], "textbook code, per group", ms["textbook"], 2.5
    )


def textbook(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Any:
    """As the notebooks of the field have it."""
    codes = np.round(x / scale) + zero_point
    codes[codes < quant_min] = quant_min
    codes[codes > quant_max] = quant_max
    return codes.astype(np.int32)


def mse() -> Iterator[Row]:
    """The exact search against quantizing once for each candidate, in place; and against float64 for its error."""
    if "mse" not in qlearn.ranges.METHODS:
        return
    from qlearn.range_search import Search
    from qlearn.sorted_view import SortedView

    x = np.random.default_rng(0).standard_normal(10**6, dtype=np.float32)
    view, mean = SortedView(x), float(np.abs(x).mean())
    for symmetric in (False, True):
        search = Search(8, symmetric)
        tried = search.tried(view, x.min(), x.max(), mean)  # each scale with the best of its zero points
        pairs = zip(tried.scale[0].tolist(), tried.zero_point[0].astype(int).tolist(), strict=True)
        candidates = [qlearn.QParams(scale, zero_point, *search.limits) for scale, zero_point in pairs]

        def brute_force(candidates: Any = candidates) -> Any:
            work = np.empty_like(x)
            return candidates[int(np.argmin([squared_error(x, q, work) for q in candidates]))]

        def own(symmetric: bool = symmetric) -> Any:
            return qlearn.find_range(x, "mse", symmetric=symmetric)

        name = f"MSE range, 10⁶ float32, {'symmetric' if symmetric else 'asymmetric'}"
        ms = race(5, own=own, brute=brute_force)
        yield against(name, ms["own"], f"brute force in place, the same {len(candidates)}", ms["brute"], 4)
        observer, peer = torchao_search(x, symmetric), "torchao's MSE observer"
        if observer:
            ms = race(3, own=own, torchao=observer)
            yield against(name, ms["own"], peer, ms["torchao"], 20)
        else:
            yield Row(f"{name}: no torchao", None, "", peer=peer, floor="≥ 20×")

    wide, worst = x.astype(np.float64), 0.0
    for scale in search.scales(x.min(), x.max(), mean)[0].tolist():
        q = qlearn.QParams(scale, 128, 0, 255)
        codes = qlearn.quantize(x, q).astype(np.float64)
        direct = float(((wide - float(q.scale) * (codes - q.zero_point)) ** 2).sum())
        worst = max(worst, abs(float(view.sse(q.scale, q.zero_point, 0, 255)) - direct) / direct)
    peer = "brute force in float64"
    yield Row("MSE range, relative error", worst, "", peer=peer, floor="≤ 1e-9", met=worst <= 1e-9)


def torchao_search(x: Any, symmetric: bool) -> Callable[[], Any] | None:
    """torchao's search over 100 ranges, or None without torchao."""
    import torch

    try:
        from torchao.quantization import MappingType
        from torchao.quantization import PerTensor as WholeTensor
        from torchao.quantization.observer import AffineQuantizedMSEObserver
    except ImportError:
        return None
    torch.set_num_threads(1)  # as qlearn has
    tensor = torch.from_numpy(x)
    kind = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    return lambda: AffineQuantizedMSEObserver(kind, torch.uint8, WholeTensor(), 0, 255, run_once=True)(tensor)


def squared_error(x: Any, q: Any, work: Any) -> float:
    np.divide(x, q.scale, out=work)
    np.rint(work, out=work)
    np.clip(work, q.quant_min - q.zero_point, q.quant_max - q.zero_point, out=work)
    np.multiply(work, q.scale, out=work)
    np.subtract(work, x, out=work)
    return float(np.dot(work, work))


def imports() -> Iterator[Row]:
    """`import qlearn` after `import numpy`, in fresh interpreters, and what it must not load."""
    code = """if True:
        import sys, time
        start = time.perf_counter(); import numpy; middle = time.perf_counter(); import qlearn
        print(1e3 * (time.perf_counter() - middle), 1e3 * (middle - start))
        print(*[name for name in ("torch", "matplotlib") if name in sys.modules])"""
    answers = []
    for _ in range(7):
        command = [sys.executable, "-c", code]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=own_environment())
        answers.append(said.stdout.splitlines())
    own, numpy = (statistics.median(float(a[0].split()[i]) for a in answers) for i in (0, 1))
    heavy = answers[0][1].split()  # neither torch nor matplotlib may be loaded
    floor = "≤ 250 ms, no torch"
    met = own <= 250 and not heavy
    yield Row("import qlearn, beyond NumPy", own, "ms", None, "import numpy", numpy, numpy / own, floor, met)


def lesson_times() -> Iterator[Row]:
    """Each lesson from top to bottom in a fresh kernel."""
    for path in lessons.find():
        start = time.perf_counter()
        lessons.run(nbformat.read(path, as_version=4), path.parent)
        seconds = time.perf_counter() - start
        most = 35 if path.name.startswith("05") else 60
        yield Row(f"lesson {path.stem}", seconds, "s", floor=f"≤ {most} s", met=seconds <= most)
