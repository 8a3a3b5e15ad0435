"""What keeps a notebook's kernel from the network, and within limits.

Whoever starts a kernel writes `startup(…)` into a file that IPython executes at its start. The functions are run from
this file alone, before anything else: they need nothing of this package, and import what they need themselves.
"""

from __future__ import annotations

from pathlib import Path


def startup(function: str, **arguments: int) -> str:
    """The line that calls one of the functions below, and leaves no name behind.

    >>> startup("stay_offline").endswith("['stay_offline']()")
    True
    """
    handed = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return f"__import__('runpy').run_path({str(Path(__file__).resolve())!r})[{function!r}]({handed})"


def stay_offline() -> None:
    """From now on Python reaches this computer and no other."""
    import socket

    def at_home(name: str):  # type: ignore[no-untyped-def]
        wanted = getattr(socket.socket, name)

        def guarded(self, address, *more):  # type: ignore[no-untyped-def]
            host = address[0] if isinstance(address, tuple) else "localhost"
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise ConnectionError(f"A lesson must run without a network, and this one asks for {host}.")
            return wanted(self, address, *more)

        return guarded

    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, at_home(name))


def confine(file_bytes: int, memory_bytes: int, address_bytes: int, processes: int) -> None:
    """Stay offline, and within limits where the system has them (not on Windows); they cannot be raised again.

    Args:
        file_bytes: size of one file.
        memory_bytes: memory that is written to. Linux holds to it; elsewhere it means less.
        address_bytes: addresses, used or not. PyTorch reserves some gigabytes that it never fills.
        processes: processes and threads of this user, all programs together. Nothing binds root.
    """
    stay_offline()
    try:
        import resource
    except ImportError:
        return
    wanted = {
        "RLIMIT_FSIZE": file_bytes,
        "RLIMIT_DATA": memory_bytes,
        "RLIMIT_AS": address_bytes,
        "RLIMIT_NPROC": processes,
        "RLIMIT_CORE": 0,
    }
    for name, value in wanted.items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        most = resource.getrlimit(number)[1]
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        try:
            resource.setrlimit(number, (value, value))
        except (ValueError, OSError):  # macOS refuses some
            continue
