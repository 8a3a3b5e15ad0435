"""Calibrating and measuring on 1, 2 and 4 workers: `workers` asks torchrun to run this very file.

What is timed is the work, not the start of the processes: a worker needs seconds to import PyTorch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench_rows import Row, against

REPEATS = 7
IMAGES, BATCH = 8192, 64


def workers() -> Iterator[Row]:
    """Each job on 1, 2 and 4 workers, and what one of them sends; OMP_NUM_THREADS=1 for all."""
    command = [sys.executable, "-m", "torch.distributed.run", "--local-addr=127.0.0.1"]
    found = {}
    for count in (1, 2, 4):
        ran = subprocess.run(
            [*command, f"--nproc-per-node={count}", __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        found[count] = json.loads(ran.stdout.strip().splitlines()[-1])
    for job in found[1]["ms"]:
        for count in (2, 4):
            yield against(f"{job}, {count} workers", found[count]["ms"][job], "one worker", found[1]["ms"][job])
    yield Row("… what a worker of 4 tells each other one", found[4]["kilobytes"], "kB")


def measure() -> dict[str, Any]:
    """The shortest time of each job, until the last worker is done, and the size of the observers of a share."""
    import torch

    from qlearn import QuantConfig, nn
    from qlearn.datasets import mnist_arrays

    with nn.join_workers() as (rank, count):
        model = nn.load_trained("cnn")
        data = mnist_arrays().train  # there are more of them than for calibration
        inputs, labels = nn.to_inputs(data.images[:IMAGES]), torch.as_tensor(data.labels[:IMAGES])
        batches = list(inputs.split(BATCH))
        share = batches[rank::count]
        own: list[Any] = []

        def calibrate() -> None:
            prepared = nn.prepare(model, activations=QuantConfig(method="mse"))
            own[:] = [nn.calibrate(prepared, share, progress=False)]

        jobs: dict[str, Callable[[], Any]] = {
            f"calibrate the CNN, mse, {IMAGES:,} images": calibrate,
            f"accuracy of the CNN, {IMAGES:,} images": lambda: nn.accuracy(
                model, inputs[rank::count], labels[rank::count]
            ),
            "sensitivity of the CNN, 512 images": lambda: nn.sensitivity(model, inputs[:512]),
        }
        ms = {}
        for name, job in jobs.items():
            times = []
            for _ in range(REPEATS + 1):
                if count > 1:
                    torch.distributed.barrier()
                start = time.perf_counter()
                job()
                times.append(1e3 * (time.perf_counter() - start))
            ms[name] = min(times[1:])
        observers = [layer.observer for layer in own[0].modules() if hasattr(layer, "observer")]
        return {"rank": rank, "ms": ms, "kilobytes": sum(observer.nbytes for observer in observers) / 1e3}


if __name__ == "__main__":
    measured = measure()
    if measured["rank"] == 0:
        print(json.dumps(measured))
