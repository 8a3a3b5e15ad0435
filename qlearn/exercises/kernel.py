"""A kernel of its own for one notebook: offline, in a folder of its own, within limits, and gone at the end.

What keeps a notebook within bounds here is meant for mistakes, an endless loop or a full disk. It is no sandbox: a
notebook may do what its user may do.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qlearn
from qlearn.exercises import confined

POSIX = os.name == "posix"
START = 120.0  # seconds for a kernel to start, however busy the machine is
QUESTION = 180.0  # seconds for the checker, which stops most attempts much earlier by itself
GRACE = 5.0  # seconds for what was interrupted to stop
PAUSE = 0.5  # seconds between two looks at folder and processes
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Limits:
    """What one notebook may use. `seconds` are for all of it; a single cell gets at most half of what is left."""

    seconds: float = 600
    file_mb: int = 256
    folder_mb: int = 512
    folder_files: int = 20_000
    memory_mb: int = 4096
    address_mb: int = 16384
    processes: int = 64


class Ended(Exception):
    """The kernel is gone, or was ended; the message says why."""


class Stopped(Exception):
    """Whoever called wants no more results."""


class Kernel:
    """One kernel, to be used in a `with` statement: `run` cells, `ask` the checker.

    Needs ipykernel, and what it brings: jupyter_client and psutil.
    """

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.limits, self.stop = limits, stop
        self._looked = 0.0

    def __enter__(self) -> Kernel:
        self._folder = tempfile.TemporaryDirectory(prefix="qlearn-", ignore_cleanup_errors=True)
        try:
            self._start(Path(self._folder.name))
        except BaseException:
            self.__exit__()
            raise
        self.deadline = time.monotonic() + self.limits.seconds
        return self

    def __exit__(self, *_: object) -> None:
        for part in ("_client", "_process"):
            if part in vars(self):
                self._client.stop_channels() if part == "_client" else self._end()
        self._folder.cleanup()

    def _start(self, home: Path) -> None:
        from jupyter_client import BlockingKernelClient
        from jupyter_client.connect import write_connection_file

        self._home = home
        work, startup = home / "work", home / "ipython/profile_default/startup"
        for folder in (work, startup, home / "tmp"):
            folder.mkdir(parents=True)
        (startup / "00_confined.py").write_text(self._first_lines(), encoding="utf-8")
        sockets = str(home / "socket")
        # Sockets in the folder, where no other user and no other kernel meets them, if their name is not too long.
        way: dict[str, Any] = {"transport": "ipc", "ip": sockets} if POSIX and len(sockets) < 90 else {}
        file, _ = write_connection_file(str(home / "connection.json"), key=os.urandom(16).hex().encode(), **way)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ipykernel_launcher", "-f", file],
            cwd=work,
            env=self._environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=POSIX,
        )
        self._client = BlockingKernelClient(connection_file=file)
        self._client.load_connection_file()
        # What a cell prints goes nowhere: nobody listens, so it cannot become too much either.
        self._client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
        self._reply(self._client.kernel_info(), START)

    def _first_lines(self) -> str:
        """What the kernel does before anything else: find this very package, and keep to the limits."""
        megabyte = 2**20
        ours = str(Path(qlearn.__file__).resolve().parent)
        find = (
            "import sys, importlib.util\n"
            "_found = importlib.util.find_spec('qlearn')\n"
            f"if not _found or __import__('os').path.realpath(_found.submodule_search_locations[0]) != {ours!r}:\n"
            f"    sys.path.insert(0, {str(Path(ours).parent)!r})\n"
            "del sys, importlib, _found\n"
        )
        return find + confined.startup(
            "confine",
            file_bytes=self.limits.file_mb * megabyte,
            memory_bytes=self.limits.memory_mb * megabyte,
            address_bytes=self.limits.address_mb * megabyte,
            processes=_threads_of_this_user() + 1000,
        )

    @staticmethod
    def _environment(home: Path) -> dict[str, str]:
        away = ("IPYTHON", "JUPYTER", "JPY_", "MPLBACKEND", "PYTHONSTARTUP")
        env = {name: value for name, value in os.environ.items() if not name.startswith(away)}
        return env | {
            **{"IPYTHONDIR": str(home / "ipython"), "QLEARN_DATA": str(home / "qlearn"), "TMPDIR": str(home / "tmp")},
            **{f"JUPYTER_{name}_DIR": str(home / f"jupyter-{name.lower()}") for name in ("CONFIG", "DATA", "RUNTIME")},
            "JPY_PARENT_PID": str(os.getpid()),  # the kernel ends with whoever has started it
            "OMP_NUM_THREADS": "1",  # notebooks run side by side, and PyTorch's threads would wait for each other
            "CUDA_VISIBLE_DEVICES": "",  # a GPU's addresses alone go beyond any limit
        }

    def run(self, source: str) -> str:
        """Run one cell; return the error that it has raised, "ValueError: why", or nothing.

        Raises:
            Ended: the kernel has died, or had to be ended.
            TimeoutError: the cell was interrupted, and the kernel lives.
        """
        share = self._share()
        content, interrupted = self._execute(source, share)
        if interrupted:
            raise TimeoutError(f"was interrupted after {share:.0f} s")
        return ": ".join(filter(None, (content.get("ename"), content.get("evalue"))))

    def ask(self, exercise: str, names: Sequence[str]) -> tuple[str, str]:
        """What the checker says of the kernel's present objects of these names; see `kernel_side.answer`.

        Raises what `run` does.
        """
        side = f"__import__('runpy').run_path({str(HERE / 'kernel_side.py')!r})"
        call = f"{side}['answer'](globals(), {exercise!r}, {list(names)!r})"
        share = min(QUESTION, self._share())
        content, interrupted = self._execute("", share, silent=True, user_expressions={"answer": call})
        if interrupted:
            raise TimeoutError(f"did not come back within {share:.0f} s")
        reply = content.get("user_expressions", {}).get("answer", {})
        try:
            status, message = json.loads(ast.literal_eval(reply["data"]["text/plain"]))
            return str(status), str(message)
        except (KeyError, ValueError, SyntaxError, TypeError):
            return "missing", f"the checker could not run in this kernel: {reply.get('ename')}: {reply.get('evalue')}"

    def _share(self) -> float:
        left = self.deadline - time.monotonic()
        if left < min(1.0, self.limits.seconds / 10):
            raise Ended(f"the time of {self.limits.seconds:g} s was over")
        return left / 2

    def _execute(self, code: str, seconds: float, **options: Any) -> tuple[dict[str, Any], bool]:
        options = {"store_history": not options.get("silent")} | options
        asked = self._client.execute(code, allow_stdin=False, stop_on_error=False, **options)
        return self._reply(asked, seconds)

    def _reply(self, asked: str, seconds: float) -> tuple[dict[str, Any], bool]:
        """The kernel's answer, and whether it had to be interrupted for that."""
        end, interrupted = time.monotonic() + seconds, False
        while True:
            self._look()
            try:
                reply = self._client.get_shell_msg(timeout=0.1)
            except queue.Empty:
                if self._process.poll() is not None:
                    raise Ended("ended the kernel") from None
                if time.monotonic() > end:
                    if interrupted or not POSIX:
                        raise Ended(f"did not stop after {seconds:.0f} s") from None
                    self._process.send_signal(signal.SIGINT)
                    end, interrupted = time.monotonic() + GRACE, True
                continue
            if reply["parent_header"].get("msg_id") == asked:
                return reply["content"], interrupted

    def _look(self) -> None:
        """Now and then: what lies in the folder, how many processes there are, and whether to go on."""
        if self.stop.is_set():
            raise Stopped
        began = time.monotonic()
        if began < self._looked + PAUSE:
            return
        size = number = 0
        for base, _, files in os.walk(self._home):
            number += len(files)
            for name in files:
                with contextlib.suppress(OSError):
                    size += os.lstat(os.path.join(base, name)).st_size
            if number > self.limits.folder_files:
                raise Ended(f"made more than {self.limits.folder_files:,} files")
        if size > self.limits.folder_mb * 2**20:
            raise Ended(f"wrote more than {self.limits.folder_mb} MB")
        if sum(1 for _ in self._processes()) > self.limits.processes:
            raise Ended(f"started more than {self.limits.processes} processes")
        # So that many files take at most a tenth of the time to look at.
        self._looked = time.monotonic() + 9 * (time.monotonic() - began)

    def _processes(self) -> Iterator[int]:
        """The kernel's and those that came of it: its session's. Elsewhere than on POSIX, its descendants."""
        import psutil

        if not POSIX:
            with contextlib.suppress(psutil.Error):
                yield from (child.pid for child in psutil.Process(self._process.pid).children(recursive=True))
            return
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                if os.getsid(pid) == self._process.pid:
                    yield pid

    def _end(self) -> None:
        """End the kernel and whatever it has started, also what has left its session and still bears its folder."""
        import psutil

        started = [] if POSIX else list(self._processes())
        if POSIX:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for _ in range(20):  # what forks while it is looked for is found the next time
            started += self._processes() if POSIX else []
            started += [process.pid for process in psutil.process_iter() if self._bears_our_folder(process)]
            alive = [process for pid in started if (process := _alive(pid))]
            if not alive:
                return
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            started = []
            time.sleep(0.05)

    def _bears_our_folder(self, process: Any) -> bool:
        try:
            return process.environ().get("QLEARN_DATA") == str(self._home / "qlearn")
        except Exception:  # another user's, or gone: whatever the system says, it is not one to end
            return False


def _alive(pid: int) -> Any:
    """The process, if there is one that still runs."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _threads_of_this_user() -> int:
    import psutil

    if not POSIX:
        return 0
    found = psutil.process_iter(["uids", "num_threads"])
    return sum(p.info["num_threads"] or 0 for p in found if p.info["uids"] and p.info["uids"].real == os.getuid())
