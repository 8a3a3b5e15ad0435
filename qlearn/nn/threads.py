"""One thread for small work; afterwards as many as before, also where several did so at once or were stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside: set[int] = set()  # Python threads that are in `one_thread`
_before = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one thread in here.

    How many threads torch has is a number of the whole process. Of several that are in here at once, in threads of
    their own or one in another, the first one notes it and the last one brings it back.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    global _before
    own = threading.get_ident()
    with _lock:
        outermost = own not in _inside
        if not _inside:
            _before = torch.get_num_threads()
        _inside.add(own)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if outermost:
            with _lock:
                _inside.discard(own)
                torch.set_num_threads(_before)
