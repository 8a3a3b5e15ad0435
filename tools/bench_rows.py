"""One line of the benchmark's table, and how times are taken."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WIDTHS = (54, 14, 26, 8, 6, 20)


@dataclass(frozen=True)
class Row:
    """What was measured, beside the same job done by a peer; `ratio` is how many times as much the peer takes.

    `p95` is the 95th percentile where `measured` is a median. `met` is None where there is no floor, `measured`
    where nothing could be measured: the name says why.
    """

    name: str
    measured: float | None
    unit: str
    p95: float | None = None
    peer: str = ""
    peer_measured: float | None = None
    ratio: float | None = None
    floor: str = ""
    met: bool | None = None


def race(repeats: int, *, clock: Any = time.perf_counter, **runners: Callable[[], Any]) -> dict[str, float]:
    """The shortest time of each in milliseconds, all taken in turn: what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner()
    for _ in range(repeats):
        for name, runner in runners.items():
            gc.collect()
            start = clock()
            runner()
            times[name].append(1e3 * (clock() - start))
    return {name: min(found) for name, found in times.items()}


def against(name: str, own: float, peer: str, other: float, least: float | None = None) -> Row:
    """Two times in milliseconds, and how many times as long as ours the peer's has to be."""
    ratio = other / own
    floor = "" if least is None else f"≥ {least:g}×"
    met = None if least is None else ratio >= least
    return Row(name, own, "ms", peer=peer, peer_measured=other, ratio=ratio, floor=floor, met=met)


def heading() -> str:
    titles = ("what", "qlearn", "peer", "peer's", "ratio", "floor")
    return "  ".join(_cells(titles)) + "  met\n" + "─" * (sum(WIDTHS) + 15)


def line(row: Row) -> str:
    parts = [number(value) for value in (row.measured, row.p95) if value is not None]
    measured = f"{' / '.join(parts)} {row.unit}" if parts else "none"
    peers = "" if row.peer_measured is None else f"{number(row.peer_measured)} {row.unit}"
    ratio = "" if row.ratio is None else f"{number(row.ratio)}×"
    met = {True: "yes", False: "NO", None: ""}[row.met]
    return ("  ".join(_cells((row.name, measured, row.peer, peers, ratio, row.floor))) + f"  {met}").rstrip()


def number(value: float) -> str:
    """Three significant digits, without an exponent where one can do without it."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(texts: tuple[str, ...]) -> list[str]:
    numbers = (1, 3, 4)
    return [f"{t:>{w}}" if i in numbers else f"{t:<{w}}" for i, (t, w) in enumerate(zip(texts, WIDTHS, strict=True))]
