"""Keep the figures of a running cell alive while a slider moves."""

from __future__ import annotations

import functools
import threading
from typing import Any


def flush_on_main_thread_only() -> None:
    """Let matplotlib's inline backend show and close figures on the main thread only.

    The backend shows *and closes* all open figures when a cell ends, and also after each message from a
    slider. Newer kernels (ipykernel 7 with JupyterLab 4.4) handle those messages on another thread, while
    the cell still runs: the figure that it is drawing would be closed under its hands, half done.
    See https://github.com/jupyterlab/jupyterlab/issues/19719.

    Outside a notebook, and at the second call, this does nothing.
    """
    try:
        from IPython import get_ipython  # imported here, because a plain Python program needs neither
        from matplotlib_inline import backend_inline
    except ImportError:
        return
    shell, flush = get_ipython(), backend_inline.flush_figures
    if shell is None or hasattr(flush, "__wrapped__"):
        return

    @functools.wraps(flush)
    def flush_figures() -> Any:
        if threading.current_thread() is threading.main_thread():
            return flush()
        return None

    # Both places: the name that the backend registers when it is switched on, and what it has registered so far.
    backend_inline.flush_figures = flush_figures
    callbacks = shell.events.callbacks["post_execute"]
    callbacks[:] = [flush_figures if callback is flush else callback for callback in callbacks]
