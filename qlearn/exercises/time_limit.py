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

    def watch() -> None:
        wait = seconds
        while not ended.wait(wait):  # again and again: a bare `except` in a loop swallows the first one
            wait = 0.2
            with lock:
                # What arrives at the very end of the call keeps it from saying that it has ended: look who runs.
                if ended.is_set() or not _runs(here, thread):
                    return
                _raise_in(thread, TookTooLong)

    try:
        threading.Thread(target=watch, daemon=True).start()
    except RuntimeError:
        return _looking_at_the_clock(seconds, function, arguments)
    try:
        return function(**arguments)
    finally:
        with lock:
            ended.set()
            _raise_in(thread, None)  # one that is on its way must not arrive later, in other code


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


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)
