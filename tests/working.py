"""What the workers of tests/test_distributed.py do: real processes, that join through gloo on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch
from safetensors.numpy import save
from torch import nn as layers

from qlearn import PerToken, QuantConfig, nn
from qlearn.observers import HistogramObserver

CONFIGS = {
    "min_max": QuantConfig(),
    "percentile": QuantConfig(method="percentile", percentile=99.0),
    "mse": QuantConfig(bits=4, method="mse"),
    "entropy": QuantConfig(symmetric=True, method="entropy"),
    "histogram": QuantConfig(method="percentile", percentile=99.0),
}
SHARES = {
    "equal": lambda batches, rank, count: batches[rank::count],
    "unequal": lambda batches, rank, count: [batches[:1], batches[1:6], batches[6:8], batches[8:]][rank],
    "one empty": lambda batches, rank, count: [batches[:3], [], batches[3:4], batches[4:]][rank],
    "one has all": lambda batches, rank, count: batches if rank == 2 else [],
}


def network():
    torch.manual_seed(0)
    return layers.Sequential(
        layers.Linear(6, 16), layers.GELU(), layers.Linear(16, 8), layers.ReLU(), layers.Linear(8, 3)
    )


def images(seed=0):
    """250 of them: the last of the eleven batches is smaller."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(250, 6, generator=generator) * torch.rand(250, 1, generator=generator).exp()


def batches(seed=0):
    return list(images(seed).split(24))


def prepared(name="min_max"):
    model = nn.prepare(network(), activations=CONFIGS[name])
    if name == "histogram":
        for layer in (model[0], model[2], model[4]):
            layer.observer = HistogramObserver(CONFIGS[name])
    return model


def calibrated(model, share, **options):
    return nn.calibrate(model, share, progress=False, **options)


def remembered(model):
    """All that the observers of a network remember, as one number, and what kind of thing they keep it in."""
    found = {}
    for layer in (model[0], model[2], model[4]):
        assert isinstance(layer.observer.lo, torch.Tensor)
        found[layer.name] = [hashlib.sha256(save(layer.observer.state())).hexdigest(), repr(layer.observer.qparams())]
    return found


def labelled():
    x = torch.rand(101, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, (x.flatten(1).sum(1) * 7).long() % 3


def classifier():
    torch.manual_seed(1)
    return layers.Sequential(layers.Flatten(), layers.Linear(16, 3))


def as_text(table):
    return json.dumps(table, sort_keys=True)


def all_results(rank=0, count=1, share_out=SHARES["equal"]):
    """What is compared between one worker and many, for one way to share the batches out."""
    found = {}
    for name in CONFIGS:
        model = calibrated(prepared(name), share_out(batches(), rank, count))
        found[name] = remembered(model)
        found[f"{name}, again"] = remembered(calibrated(model, share_out(batches(1), rank, count)))
    x, y = labelled()
    order = list(range(len(x)))
    mine = share_out(order, rank, count) if count > 1 else order
    found["accuracy"] = nn.accuracy(classifier(), x[mine], y[mine])
    found["sensitivity"] = as_text(nn.sensitivity(network(), batches(), bits=(8, 3)))
    return found


# --- scenarios: what a worker does and returns ---------------------------------------------------------------------------


def agree(rank, count):
    found = {name: all_results(rank, count, share_out) for name, share_out in SHARES.items()}
    dynamic = nn.prepare(network(), activations=QuantConfig(method="dynamic", granularity=PerToken()))
    found["dynamic"] = calibrated(dynamic, []) is dynamic
    return found


def refuse(rank, count):
    """Everything that is refused on all workers alike, after which they still work together."""
    other_config = prepared("mse" if rank == 2 else "min_max")
    other_past = prepared()
    if rank == 2:
        other_past[0].observer.observe(torch.ones(3))
    moving = nn.prepare(network(), activations=QuantConfig(method="moving_average"))
    bad = [torch.full((2, 6), torch.nan)] if rank == 2 else batches()[rank::count]
    x, y = labelled()
    tries = {
        "moving average": lambda: calibrated(moving, batches()),
        "all empty": lambda: calibrated(prepared(), []),
        "no images": lambda: nn.accuracy(classifier(), x[:0], y[:0]),
        "another network": lambda: calibrated(other_config, batches()),
        "another past": lambda: calibrated(other_past, batches()),
        "NaN": lambda: calibrated(prepared(), bad),
        "another function": lambda: (
            nn.accuracy(classifier(), x, y) if rank == 2 else calibrated(prepared(), batches()[rank::count])
        ),
        "other batches": lambda: nn.sensitivity(network(), batches()[rank::count], bits=(8,)),
        "other bits": lambda: nn.sensitivity(network(), batches(), bits=(4,) if rank == 2 else (8,)),
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "nothing was wrong"
        except (ValueError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    found["past is kept"] = (other_past[0].observer.seen, other_past[2].observer.seen) == (rank == 2, False)
    found["afterwards"] = remembered(calibrated(prepared(), batches()[rank::count]))
    return found


def killed(rank, count):
    if rank == 2:
        os.kill(os.getpid(), 9)
    return calibrate_and_say(rank, count)


def hung(rank, count):
    if rank == 2:
        time.sleep(600)
    return calibrate_and_say(rank, count, timeout=3)


def calibrate_and_say(rank, count, **options):
    model = prepared()
    try:
        calibrated(model, batches()[rank::count], **options)
        return "nothing was wrong"
    except RuntimeError as error:
        assert not model[0].observer.seen
        return str(error)


def nothing(rank, count):
    return "nothing"


def fine(rank, count):
    return remembered(calibrated(prepared(), batches()[rank::count]))


def late(rank, count):
    raise AssertionError("not reached: a worker is missing")


# --- the processes -------------------------------------------------------------------------------------------------------


def work(scenario, rank, count, port, folder, timeout):
    """The life of one worker; what it finds is in a file of the folder."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with nn.join_workers(timeout) as (own, of):
            found = globals()[scenario](own, of)
    except RuntimeError as error:
        found = f"could not join: {error}"
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(scenario, folder, count=4, *, start=range(4), port=None, timeout=30.0, last=()):
    """Start workers, wait for all but the `last` ones, end those; {rank: what it found}, and no process is left."""
    # Where there is a fork server, PyTorch is imported once, and not by each worker.
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload(["qlearn.nn", "working"])
    port = port or free_port()
    arguments = {rank: (scenario, rank, count, port, str(folder), timeout) for rank in start if rank < count}
    processes = {rank: context.Process(target=work, args=own) for rank, own in arguments.items()}
    try:
        for process in processes.values():
            process.start()
        for rank, process in processes.items():
            if rank not in last:
                process.join(120)
                assert process.exitcode is not None, f"worker {rank} does not end"
    finally:
        for process in processes.values():
            process.kill()
            process.join()
    return {rank: json.loads(file.read_text()) for rank in start if (file := Path(folder, f"{rank}.json")).exists()}


def script(folder):
    """As a learner's script: what torchrun runs."""
    with nn.join_workers(30) as (rank, count):
        Path(folder, f"{rank}.pid").write_text(str(os.getpid()))
        found = {"fine": fine, "hung": hung}[sys.argv[2]](rank, count)
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
        if isinstance(found, str):
            raise SystemExit(found)


if __name__ == "__main__":
    script(sys.argv[1])
