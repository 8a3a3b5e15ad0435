"""Several processes that look at their shares of the data and end with what one process would have found.

    torchrun --nproc-per-node=4 script.py
    worker 0, 1, 2, 3:  its own share  →  what it has found  ⇄  what all have found, by rank  →  the same result

What they tell each other is numbers: arrays as safetensors, and JSON. Nothing that is received can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor, distributed

from qlearn.observers import Observer

TIMEOUT = 60.0  # seconds that a worker waits for the others
LATE = "has not come to {what} in {timeout:g} s, which all workers have to call"
HOME = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, eq=False)
class Part:
    """What one worker tells the others: JSON, and arrays by name."""

    about: Any
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@contextmanager
def join_workers(timeout: float = TIMEOUT) -> Iterator[tuple[int, int]]:
    """In here this process is one of several workers, which torchrun has started; says which one, and of how many.

        torchrun --local-addr=127.0.0.1 --nproc-per-node=4 script.py  # four times, on this machine and a free port

        with nn.join_workers() as (rank, count):
            nn.calibrate(prepared, batches[rank::count])

    In here `calibrate`, `accuracy` and `sensitivity` belong to all workers together: each worker calls them, in the
    same order, and each gets the result that one worker would have. All other functions know of no other worker. A
    group that exists already (torch.distributed.init_process_group) is as good, and is used.

    Args:
        timeout: seconds to wait for workers that have not come.

    Returns:
        rank, from 0, and count. Without a launcher (no WORLD_SIZE) that is 0 and 1, so the script runs alone, too.

    Raises:
        RuntimeError: WORLD_SIZE without all that a launcher sets with it; a port that is in use; workers that do not
            come in time (says which).

    Source: https://docs.pytorch.org/docs/stable/distributed.html; the processor's backend, gloo.

    >>> with join_workers() as (rank, count):
    ...     print(f"worker {rank} of {count}")
    worker 0 of 1
    """
    if _in_a_group() or (count := _world_size()) == 1:
        yield workers()
        return
    rank, address, port = _launched(count)
    if address in HOME:  # listen on no other interface than the one that the workers use
        for name in {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    store = distributed.PrefixStore("qlearn", _store(rank, address, port, timeout))
    _meet(store, "here", rank, count, timeout)
    try:
        limit = timedelta(seconds=timeout)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
    except RuntimeError as error:
        raise RuntimeError(f"worker {rank} of {count} could not be connected with the others: {error}") from error
    try:
        # A worker that goes on and ends while others still connect would break their connection, and not be named.
        _meet(store, "connected", rank, count, timeout)
        yield rank, count
    finally:
        distributed.destroy_process_group()


def workers() -> tuple[int, int]:
    """This worker's rank and how many there are: 0 and 1 where nobody has joined.

    Raises:
        RuntimeError: a launcher says that there are more, and this one has not joined them. Whatever it computed
            would be of its own share only.

    >>> workers()
    (0, 1)
    """
    if _in_a_group():
        if "gloo" not in distributed.get_backend_config():
            raise RuntimeError(
                f"the process group has the backend {distributed.get_backend()}, and workers tell each other numbers "
                "through gloo: init_process_group('cpu:gloo,cuda:nccl') has both."
            )
        return distributed.get_rank(), distributed.get_world_size()
    if (count := _world_size()) > 1:
        raise RuntimeError(
            f"WORLD_SIZE={count} says that there are {count} workers, and this process has not joined them: call this "
            "in `with nn.join_workers():`, or unset WORLD_SIZE."
        )
    return 0, 1


def exchange(what: str, part: Part, timeout: float = TIMEOUT) -> list[Part]:
    """What each worker has to say, in the order of their ranks; the same list for all of them.

    Args:
        what: the function in which the workers meet.
        part: what this one says.
        timeout: seconds to wait for the others.

    Raises:
        RuntimeError: workers that have ended, do not answer in time, have failed, or are in another function; each is
            named. All of them have been waited for, so nobody is named who has only seen another one go.

    After a wait that ran out the group is closed, and of no more use.

    Cost: each of n workers sends its part n − 1 times.

    >>> [part.about for part in exchange("a test", Part({"right": 7}))]
    [{'right': 7}]
    """
    rank, count = workers()
    if count == 1:
        return [part]
    about = np.frombuffer(json.dumps({"what": what, "about": part.about}).encode(), np.uint8)
    message = torch.frombuffer(bytearray(save({**part.arrays, "": about})), dtype=torch.uint8)
    until = time.monotonic() + timeout
    others = [other for other in range(count) if other != rank]
    with ThreadPoolExecutor(count - 1) as pool:  # a wait that runs out ends all others: each has to run by itself
        answers = dict(zip(others, pool.map(lambda other: _talk(other, message, until), others), strict=True))
    found, wrong = [], []
    for other in range(count):
        if other == rank:
            found.append(part)
        elif isinstance(answer := answers[other], Tensor):
            arrays = load(answer.numpy().tobytes())
            told = json.loads(arrays.pop("").tobytes())
            if "error" in (told["about"] or ()):
                wrong.append(f"worker {other} of {count} has failed in {told['what']}, {told['about']['error']}")
            elif told["what"] != what:
                wrong.append(f"worker {other} of {count} is in {told['what']}, and this one, {rank}, is in {what}")
            found.append(Part(told["about"], arrays))
        else:
            wrong.append(f"worker {other} of {count} {answer.format(what=what, timeout=timeout)}")
    if wrong:
        raise RuntimeError(f"{'; '.join(wrong)}.")
    return found


@contextmanager
def telling(what: str, timeout: float = TIMEOUT) -> Iterator[None]:
    """An error in here is told to the other workers, who would wait for this one, and goes on when they have heard."""
    try:
        yield
    except Exception as error:
        with suppress(RuntimeError):
            exchange(what, Part({"error": f"{type(error).__name__}: {str(error).rstrip('.')}"}), timeout)
        raise


def merged(
    what: str,
    before: Mapping[str, Observer],
    shares: Mapping[str, Observer],
    device: torch.device,
    timeout: float = TIMEOUT,
) -> dict[str, Observer]:
    """What all workers' observers have seen together, by name.

    Args:
        before: what had been seen before the data were shared out, the same on all workers: it counts once.
        shares: what this worker has seen of its own share.
        device: where the tensors of the result are.

    Raises:
        RuntimeError: as `exchange`; a worker with other observers, or another past.  ValueError: nobody saw anything.
    """
    same = {
        "layers": {name: [type(observer).__name__, repr(observer.config)] for name, observer in before.items()},
        "past": {name: _digest(observer) for name, observer in before.items()},
    }
    arrays = {f"{name}/{key}": array for name, own in shares.items() for key, array in own.state().items()}
    parts = exchange(what, Part(same, arrays), timeout)
    for rank, part in enumerate(parts):
        if part.about["layers"] != same["layers"]:
            raise RuntimeError(f"worker {rank} of {len(parts)} has a network that was prepared in another way.")
        if part.about["past"] != same["past"]:
            raise RuntimeError(f"worker {rank} of {len(parts)} has observers that had seen other data before {what}.")
    if not any(part.arrays for part in parts):
        raise ValueError(f"there is no batch: the shares of all {len(parts)} workers are empty.")
    result = dict(before)
    for part in parts:
        states: dict[str, dict[str, Any]] = defaultdict(dict)
        for key, array in part.arrays.items():
            name, _, what_of_it = key.rpartition("/")
            states[name][what_of_it] = array
        for name, state in states.items():
            ends = {end: torch.from_numpy(state[end]).to(device) for end in ("lo", "hi")}
            result[name] = result[name].merge(before[name].with_state({**state, **ends}))
    return result


def _in_a_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or text == "0":
        raise RuntimeError(f"WORLD_SIZE={text!r} must be the number of workers, as torchrun sets it: unset it.")
    return int(text)


def _launched(count: int) -> tuple[int, str, int]:
    """The rank, address and port that a launcher has set."""
    found = {name: os.environ.get(name, "") for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")}
    wrong = [name for name, text in found.items() if not text or (name != "MASTER_ADDR" and not text.isdecimal())]
    if not wrong and (int(found["RANK"]) >= count or int(found["MASTER_PORT"]) >= 1 << 16):
        wrong = ["RANK" if int(found["RANK"]) >= count else "MASTER_PORT"]
    if wrong:
        raise RuntimeError(
            f"WORLD_SIZE={count} is set without a right {', '.join(wrong)}: start the workers with "
            f"`torchrun --nproc-per-node={count} script.py`, or unset WORLD_SIZE."
        )
    return int(found["RANK"]), found["MASTER_ADDR"], int(found["MASTER_PORT"])


def _meet(store: Any, where: str, rank: int, count: int, timeout: float) -> None:
    """Wait until all workers have said through the store that they are there."""
    until = time.monotonic() + timeout
    missing = []
    try:
        store.set(f"{where}/{rank}", "")
        for other in range(count):
            try:
                store.wait([f"{where}/{other}"], timedelta(seconds=max(0.1, until - time.monotonic())))
            except distributed.DistStoreError:
                missing.append(str(other))
    except RuntimeError as error:
        raise RuntimeError(f"worker 0 of {count}, to whom the others come, has ended.") from error
    if missing:
        late = "start" if where == "here" else "connect with the others"
        raise RuntimeError(f"worker {', '.join(missing)} of {count} did not {late} in {timeout:g} s.")


def _store(rank: int, address: str, port: int, timeout: float) -> Any:
    """What all workers find each other through."""
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has one already
    found: list[Any] = []

    def connect() -> None:
        limit = timedelta(seconds=timeout)
        try:
            found.append(distributed.TCPStore(address, port, None, serves, limit, wait_for_workers=False))
        except RuntimeError as error:
            found.append(error)

    # Something else behind that port may never answer, and PyTorch waits for it without end.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout + 1)
    error = found[0] if found else TimeoutError()
    if isinstance(error, Exception):
        why = "is in use" if "EADDRINUSE" in str(error) else f"has no worker 0 who answers in {timeout:g} s"
        raise RuntimeError(f"port {port} of {address} {why}: start the workers with another MASTER_PORT.") from error
    return found[0]


def _talk(other: int, message: Tensor, until: float) -> Tensor | str:
    """Send a message to another worker and receive its own; if it does not come, why."""

    def wait(work: Any) -> None:
        work.wait(timedelta(seconds=max(0.001, until - time.monotonic())))

    try:
        size = torch.empty(1, dtype=torch.int64)
        sent = [distributed.isend(part, other) for part in (torch.tensor([message.numel()]), message)]
        wait(distributed.irecv(size, other))
        received = torch.empty(int(size), dtype=torch.uint8)
        wait(distributed.irecv(received, other))
        for work in sent:
            wait(work)
    except RuntimeError:
        gone = time.monotonic() < until
        return "has ended before it came to {what}" if gone else LATE
    return received


def _digest(observer: Observer) -> str:
    return hashlib.sha256(save(observer.state())).hexdigest()
