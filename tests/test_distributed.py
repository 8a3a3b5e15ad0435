"""Many workers end with what one would have found, and never wait for ever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import working
from qlearn import nn
from qlearn.nn import distributed
from qlearn.nn.threads import one_thread

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="PyTorch has no gloo here"
)


@pytest.fixture(scope="module")
def alone():
    with one_thread():
        return working.all_results()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return working.run("agree", tmp_path_factory.mktemp("agree"))


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    return working.run("refuse", tmp_path_factory.mktemp("refuse"))


# --- the same result -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", working.SHARES)
@pytest.mark.parametrize("what", [*working.CONFIGS, *(f"{name}, again" for name in working.CONFIGS)])
def test_observers_of_four_workers_are_those_of_one(what, shares, alone, together):
    assert len(together) == 4
    for rank, found in together.items():
        assert found[shares][what] == alone[what], rank


@pytest.mark.parametrize("shares", working.SHARES)
@pytest.mark.parametrize("what", ["accuracy", "sensitivity"])
def test_four_workers_measure_what_one_does(what, shares, alone, together):
    assert [found[shares][what] for found in together.values()] == 4 * [alone[what]]
    assert alone["accuracy"] not in (0, 1)


def test_dynamic_ranges_need_no_other_worker(together):
    assert all(found["dynamic"] for found in together.values())


def test_the_comparison_can_fail(alone):
    with one_thread():
        fewer = working.remembered(working.calibrated(working.prepared("mse"), working.batches()[1:]))
    assert all(fewer[name] != alone["mse"][name] for name in fewer)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what, message",
    [
        ("moving average", "RuntimeError: moving averages cannot be merged: each depends on the order of its batches"),
        ("all empty", "ValueError: there is no batch: the shares of all 4 workers are empty."),
        ("no images", "ValueError: the shares of all 4 workers are empty: there must be images."),
        ("other batches", "measures another network, other batches or other bits"),
    ],
)
def test_all_workers_refuse_what_cannot_be_merged(what, message, refusals):
    assert len(refusals) == 4
    for found in refusals.values():
        assert message in found[what]


@pytest.mark.parametrize(
    "what, message",
    [
        ("another network", "worker 2 of 4 has a network that was prepared in another way"),
        ("another past", "worker 2 of 4 has observers that had seen other data before nn.calibrate"),
        ("NaN", "worker 2 of 4 has failed in nn.calibrate, ValueError: layer '0': its input cannot be used"),
        ("another function", "worker 2 of 4 is in nn.accuracy, and this one"),
        ("other bits", "worker 2 of 4 measures another network, other batches or other bits"),
    ],
)
def test_the_worker_who_does_something_else_is_named(what, message, refusals):
    for rank in (0, 1, 3):
        assert message in refusals[rank][what]
    assert "nothing was wrong" not in refusals[2][what]


def test_after_a_refusal_observers_are_as_before_and_workers_go_on(refusals, alone):
    for found in refusals.values():
        assert found["past is kept"]
        assert found["afterwards"] == alone["min_max"]


# --- faults ----------------------------------------------------------------------------------------------------------


def test_workers_with_nothing_to_do_wait_until_all_are_connected(tmp_path):
    assert working.run("nothing", tmp_path) == dict.fromkeys(range(4), "nothing")


def test_a_killed_worker_ends_the_others_and_is_named(tmp_path):
    found = working.run("killed", tmp_path)
    assert sorted(found) == [0, 1, 3]
    assert all("worker 2 of 4 has ended before it came to nn.calibrate." in text for text in found.values())
    assert not any(f"worker {rank} of" in text for text in found.values() for rank in (0, 1, 3))


def test_a_hung_worker_ends_the_others_and_is_named(tmp_path):
    found = working.run("hung", tmp_path, last=(2,))
    assert sorted(found) == [0, 1, 3]
    assert all("worker 2 of 4 has not come to nn.calibrate in 3 s" in text for text in found.values())


def test_workers_that_never_start_are_named(tmp_path):
    found = working.run("late", tmp_path, start=(0, 2), timeout=4.0)
    assert found[0] == "could not join: worker 1, 3 of 4 did not start in 4 s."
    assert found[2] in (found[0], "could not join: worker 0 of 4, to whom the others come, has ended.")


def test_a_port_in_use_is_said(tmp_path):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        found = working.run("late", tmp_path, start=(0, 1), port=port, timeout=4.0)
    text = "could not join: port {} of 127.0.0.1 {}: start the workers with another MASTER_PORT."
    assert found == {0: text.format(port, "is in use"), 1: text.format(port, "has no worker 0 who answers in 4 s")}


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set without a right RANK, MASTER_ADDR, MASTER_PORT: start"),
        ({"WORLD_SIZE": "4", "RANK": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "without a right RANK: "),
        ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}, "right MASTER_PORT: "),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE='many' must be the number of workers"),
    ],
)
def test_half_a_launcher_is_refused(environment, message, monkeypatch):
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(RuntimeError, match=message), nn.join_workers():
        pass


@pytest.mark.parametrize("act", ["calibrate", "accuracy", "sensitivity"])
def test_workers_who_have_not_joined_do_not_work_alone(act, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    x, y = working.labelled()
    acts = {
        "calibrate": lambda: working.calibrated(working.prepared(), working.batches()),
        "accuracy": lambda: nn.accuracy(working.classifier(), x, y),
        "sensitivity": lambda: nn.sensitivity(working.network(), working.batches()),
    }
    with pytest.raises(
        RuntimeError, match=r"WORLD_SIZE=4 says that there are 4 workers, .*`with nn.join_workers\(\):`"
    ):
        acts[act]()


def test_one_worker_is_no_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with nn.join_workers() as (rank, count):
        assert (rank, count) == (0, 1) == distributed.workers()
        assert not torch.distributed.is_initialized()


# --- torchrun --------------------------------------------------------------------------------------------------------


def torchrun(folder, how):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=4",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [working.__file__, str(folder), how]
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def ended(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv on Windows")
def test_torchrun_starts_the_workers(tmp_path, alone):
    ran = torchrun(tmp_path, "fine")
    assert ran.returncode == 0, ran.stderr
    assert [json.loads(Path(tmp_path, f"{rank}.json").read_text()) for rank in range(4)] == 4 * [alone["min_max"]]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv on Windows")
def test_torchrun_leaves_no_process_where_one_hangs(tmp_path):
    ran = torchrun(tmp_path, "hung")
    assert ran.returncode != 0
    assert "worker 2 of 4 has not come to nn.calibrate in 3 s" in ran.stderr
    pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    assert len(pids) == 4 and all(map(ended, pids))
