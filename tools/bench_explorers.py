"""Benchmarks of the explorers: in a real JupyterLab, and the kernel's side alone."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import real_lab
from bench_rows import Row
from explorer_page import ExplorerPage
from qlearn import widgets

MOVES = 30
# Where every control has something to do: without outliers their size would not change the picture, nor in float
# the range.
START: dict[str, dict[str, Any]] = {"explore_affine": {"outliers": 10}, "explore_network": {"bits": 2}}
# Explorers that run a whole network: the kernel may take 150 and 200 ms a move, and the page its own 50.
NETWORKS = dict.fromkeys(("explore_ptq", "explore_qat", "explore_mixed_precision"), (200, 250))
# The ratio to the peer, which draws two panels, is asked of the explorers up to lesson 04.
WITHOUT_PEER = {*NETWORKS, "explore_formats"}
SECONDS = {"explore_language_model", "explore_speed"}  # a move may take seconds, with a bar
NOTHING_TO_SEE = {("explore_qat", "rate")}  # a learning rate belongs to a training, and there is none at first
SIZES = (10**4, 10**5, 10**6, 10**7)

# The same job as most notebooks do it: two panels of 10⁵ values, drawn anew at each move.
PEER = """
%matplotlib inline
import numpy as np, matplotlib.pyplot as plt
from ipywidgets import interact, IntSlider
x = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
def draw(bits):
    scale = (x.max() - x.min()) / (2**bits - 1)
    zero_point = np.round(-x.min() / scale)
    codes = np.clip(np.round(x / scale) + zero_point, 0, 2**bits - 1)
    x_hat = scale * (codes - zero_point)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 4.3), dpi=100)
    left.hist(x, bins=110, alpha=0.5, label="x")
    left.hist(x_hat, bins=110, alpha=0.5, label="x̂")
    left.set_yscale("log"); left.set_xlabel("value"); left.legend()
    line = np.linspace(-5, 5, 400)
    steps = scale * (np.clip(np.round(line / scale) + zero_point, 0, 2**bits - 1) - zero_point)
    right.plot(line, line, ":"); right.plot(line, steps); right.set_xlabel("x")
    right.set_title(f"MSE {((x - x_hat) ** 2).mean():.3g}")
    plt.show()
interact(draw, bits=IntSlider(4, 1, 8));"""


def explorers() -> list[str]:
    return [name for name in widgets.__all__ if name.startswith("explore_") and name not in SECONDS]


def page() -> Iterator[Row]:
    """From each move of each control to the painted picture, in a real JupyterLab."""
    if not real_lab.browser_path():
        print("  left out: no Chromium or Chrome found; name one in CHROMIUM")
        return
    with tempfile.TemporaryDirectory() as folder, real_lab.running_lab(Path(folder)) as lab:
        with real_lab.browser_page() as browser:
            for name in explorers():
                peer = None if name in WITHOUT_PEER else peer_median(browser, lab, name)
                yield from controls(browser, lab, name, peer)
        with real_lab.browser_page(device_scale=2) as browser:
            yield from controls(browser, lab, "explore_affine", None, pixel_ratio=2)


def peer_median(browser: Any, lab: real_lab.Lab, name: str) -> float:
    """The peer's median in ms, measured anew beside each explorer: a machine's speed changes within minutes."""
    notebook = f"peer-of-{name}.ipynb"
    real_lab.write_notebook(lab.folder / notebook, PEER)
    peer = shown(browser, lab, notebook, ".widget-interact")
    peer.paint_times("bits", 3)
    return float(np.median(peer.paint_times("bits", MOVES)))


def controls(browser: Any, lab: real_lab.Lab, name: str, peer: float | None, **options: Any) -> Iterator[Row]:
    """One explorer's rows, one for each of its controls."""
    start = START.get(name, {}) | options
    arguments = ", ".join(f"{key}={value!r}" for key, value in start.items())
    notebook = f"{name}-{len(options)}.ipynb"
    real_lab.write_notebook(lab.folder / notebook, f"from qlearn import widgets\nwidgets.{name}({arguments})")
    explorer = shown(browser, lab, notebook)
    own = getattr(widgets, name)(**start)
    # Median and 95th percentile in ms.
    most = (85, 120) if options else (60, 90) if len(own.figure.axes) <= 2 else (70, 110)
    most = NETWORKS.get(name, most)
    for key, control in own.controls.items():
        if (name, key) in NOTHING_TO_SEE:
            continue
        explorer.root.get_by_role("button", name="Reset").click()
        explorer.settle()
        title = f"to paint, {name}, {control.label}" + (", scale 2" if options else "")
        floor = f"≤ {most[0]} / {most[1]} ms"
        try:
            # The first moves of a session wait for the page, and the first ones of a choice for its data.
            explorer.paint_times(control.label, max(3, len(getattr(control, "options", ()))))
            median, p95 = np.percentile(explorer.paint_times(control.label, MOVES), [50, 95]).tolist()
        except TimeoutError as error:
            yield Row(f"{title}: {error}", None, "ms", floor=floor)
            continue
        met = median <= most[0] and p95 <= most[1]
        if peer is None:
            yield Row(title, median, "ms", p95, floor=floor, met=met)
        else:
            ratio = peer / median
            met = met and ratio >= 6
            yield Row(title, median, "ms", p95, "interact + plt.show", peer, ratio, f"{floor}, ≥ 6×", met)


def shown(browser: Any, lab: real_lab.Lab, notebook: str, root: str = ".qlearn-explorer") -> ExplorerPage:
    real_lab.open_notebook(browser, lab, notebook)
    real_lab.run_all(browser)
    explorer = ExplorerPage(browser, root)
    explorer.root.scroll_into_view_if_needed()
    time.sleep(1)  # what follows is timed, and the browser still has to do with the new page
    return explorer


def kernel() -> Iterator[Row]:
    """What a move costs in the kernel at 10⁴ to 10⁷ values, and the first display of 10⁷."""
    for name in explorers():
        explore = getattr(widgets, name)
        if next(iter(inspect.signature(explore).parameters)) != "x":
            continue  # it has data of its own
        seconds = {}
        for n in SIZES:
            x = np.random.default_rng(0).standard_normal((100, n // 100), dtype=np.float32)
            try:
                explore(x[:, :100], **START.get(name, {}))  # fonts are found once in a process
                start = time.perf_counter()
                explorer = explore(x, **START.get(name, {}))
                explorer._repr_mimebundle_()
                first = time.perf_counter() - start
            except ValueError:
                break  # it takes no more
            seconds[n] = min(statistics.median(move_times(explorer, 40)) for _ in range(3))
            del explorer
            yield Row(f"kernel, one move, {name}, {n:,} values", 1e3 * seconds[n], "ms")
        if len(seconds) == len(SIZES):
            ratio = seconds[SIZES[-1]] / seconds[SIZES[0]]
            yield Row(f"kernel, one move, {name}, 10⁷ against 10⁴", ratio, "×", floor="≤ 1.3×", met=ratio <= 1.3)
            yield Row(f"first display, {name}, 10⁷ values", first, "s", floor="≤ 1.2 s", met=first <= 1.2)


def move_times(explorer: Any, count: int) -> list[float]:
    """Seconds for each of `count` moves, of all controls in turn."""
    times = []
    for k in range(count):
        name = list(explorer._inputs)[k % len(explorer._inputs)]
        start = time.perf_counter()
        move(explorer._inputs[name], k)
        times.append(time.perf_counter() - start)
    return times


def move(control: Any, k: int) -> None:
    """Move a control, as the page would: a choice to its next option, a slider through thirteen places of its range."""
    if hasattr(control, "options"):
        control.index = (control.index + 1) % len(control.options)
        return
    steps = round((control.max - control.min) / control.step)
    place = min(steps, 1 + k % 13 * max(1, steps // 13))
    control.value = type(control.value)(control.min + place * control.step)


def memory() -> Iterator[Row]:
    """How much a process has grown after 1,000 moves of an explorer's controls."""
    for name in explorers():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            grown = fresh.submit(growth, name).result()
        yield Row(f"memory after 1,000 moves, {name}", grown, "MB", floor="≤ 5 MB", met=grown <= 5)


def growth(name: str) -> float:
    import psutil  # comes with ipykernel

    explorer = getattr(widgets, name)(**START.get(name, {}))

    def size_after(moves: int) -> int:
        move_times(explorer, moves)
        gc.collect()
        return psutil.Process().memory_info().rss

    before = size_after(200)  # by then caches are full
    return (size_after(1000) - before) / 1e6
