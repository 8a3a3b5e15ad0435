"""Calls that end: a learner's loop may not, and the lesson must go on."""

from __future__ import annotations

import ctypes
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SECONDS = 10.0  # for one call on small inputs, which takes milliseconds: only what never ends takes longer


class TookTooLong(BaseException):
    """A call was stopped. No `Exception`, so that an `except Exception` in the function does not catch it."""


def within(seconds: float, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a function, and stop it when its time is over.

    What is stopped is Python code, between two of its steps; one long call into a library is waited for. In a browser,
    which gives Python no threads, the function's own lines look at the clock, and a bare `except` in it gets away.

    Raises:
        TookTooLong: the time is over.

    >>> within(1.0, lambda x: x + 1, {"x": 1})
    2
    """
    thread, ended, lock = threading.get_ident(), threading.Event(), threading.Lock()
    here = sys._getframe()
    stopped = False

    def watch() -> None:
        nonlocal stopped
        wait = seconds
        while not ended.wait(wait):  # again and again: a bare `except` in a loop swallows the first one
            wait = 0.2
            with lock:
                # What arrives at the very end of the call keeps it from saying that it has ended: look who runs.
                if ended.is_set() or not _runs(here, thread):
                    return
                stopped = True
                _raise_in(thread)

    try:
        threading.Thread(target=watch, daemon=True).start()
    except RuntimeError:
        return _looking_at_the_clock(seconds, function, arguments)
    try:
        return function(**arguments)
    finally:
        with lock:
            ended.set()
        if stopped:
            _receive(thread)  # one that is on its way must not arrive later, in other code


def _looking_at_the_clock(seconds: float, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """The same without a thread: before each line that is not a library's, Python asks whether time is over.

    Not in libraries, where it would be lost in what clears up an object: Python drops its errors, and this with them.
    """
    end, folders = time.monotonic() + seconds, {*map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))}
    libraries = (*folders, *(folder.replace(".", "") for folder in folders))  # a browser's are in "….zip" beside it

    def look(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename.startswith(libraries):
            return None
        if time.monotonic() > end:
            raise TookTooLong
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        return function(**arguments)
    finally:
        sys.settrace(before)


def _runs(frame: FrameType, thread: int) -> bool:
    """Whether a call is still under way in a thread."""
    running = sys._current_frames().get(thread)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


def _raise_in(thread: int) -> None:
    """Let `TookTooLong` come up in a thread at its next step. It takes the place of one that has not arrived yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TookTooLong))


def _receive(thread: int) -> None:
    """Catch what may still be on its way to this thread.

    Taking it back (an error of NULL) would leave Python 3.11 and 3.12 with a note that something is there: they look
    for it at every call from then on, and under a debugger or a profiler do nothing else.
    """
    try:
        _raise_in(thread)
        while True:  # it arrives between two steps of a loop
            pass
    except TookTooLong:
        pass
