"""How quick qlearn is, against named peers in the same run: `make bench`, or `make bench ONLY="quantize mse"`.

Parts: import, quantize, mse, observers, ptq, qat, gptq, writing, real (minutes), adapters, layers, mixed_precision,
workers, speed, kernel, memory, lessons, page (which takes most of the time). The table is printed, and written with
more digits to bench.json, which git ignores. Times depend on the machine and on what else it does, so nothing fails.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version

from bench_explorers import kernel, memory, page
from bench_language_models import adapters, real, writing
from bench_layers import layers
from bench_maths import imports, lesson_times, mse, quantize
from bench_networks import gptq, mixed_precision, observers, ptq, qat
from bench_rows import Row, heading, line
from bench_speed import speed
from bench_workers import workers
from dev import ROOT

PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "import": imports,
    "quantize": quantize,
    "mse": mse,
    "observers": observers,
    "ptq": ptq,
    "qat": qat,
    "gptq": gptq,
    "writing": writing,
    "real": real,
    "adapters": adapters,
    "layers": layers,
    "mixed_precision": mixed_precision,
    "workers": workers,
    "speed": speed,
    "kernel": kernel,
    "memory": memory,
    "lessons": lesson_times,
    "page": page,
}
FILE = ROOT / "bench.json"


def main(wanted: list[str]) -> int:
    """Run the parts that are wanted, or all of them; print and store the table."""
    if unknown := [name for name in wanted if name not in PARTS]:
        print(f"There is no part {' or '.join(unknown)}. The parts are {', '.join(PARTS)}.")
        return 2
    began, load = time.perf_counter(), load_average()
    rows, failures = [], []
    for name in wanted or PARTS:
        print(f"… {name}", file=sys.stderr, flush=True)
        try:
            for row in PARTS[name]():
                print(f"  {line(row)}", file=sys.stderr, flush=True)
                rows.append(row)
        except Exception:
            failures.append(name)
            traceback.print_exc()

    print("\n" + heading())
    print("\n".join(map(line, rows)))
    counted = [row.met for row in rows if row.met is not None]
    print(f"\n{sum(counted)} of {len(counted)} floors met; {time.perf_counter() - began:.0f} s.", end=" ")
    print(f"Load of the machine, 1 minute: {load} before, {load_average()} after, {os.cpu_count()} cores.")
    if failures:
        print(f"Went wrong, see above: {', '.join(failures)}.")
    names = ("numpy", "torch", "matplotlib", "ipywidgets", "jupyterlab", "ipykernel")
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": [load, load_average()],
        **{name: version(name) for name in names},
    }
    FILE.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(f"Written to {FILE.relative_to(ROOT)}.", flush=True)
    return 0


def load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
