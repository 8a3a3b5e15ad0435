"""Which changes to the maths go unnoticed by its tests: `make mutants`.

Each module of MODULES is changed in one small place after the other (see mutations.py), and its doctests and its tests
(tests/test_<module>.py and those of TESTS) are run on what comes of it. A mutant that fails no test is a hole in the
tests, unless the change changes nothing: such ones are named in mutants.toml, each with its reason. Exits with 1 if
there are others.

    MODULE="affine errors" python tools/mutants.py     these only
    AT_MOST=40 python tools/mutants.py                 of each module a sample, always the same

Nothing is written into the package. pytest collects a module's tests once, and runs all of them to see how long each
takes and which lines it reaches. For a mutant the process forks; the child puts the changed code into the module that
the tests have imported, and runs those tests that reach the changed lines, the quick ones first, until one fails. A
child that takes far longer for a test than it took counts as failed. `.mutants/` holds what is known already: a run
may be interrupted, and the next one goes on; when tests or code have changed, the test that failed last time is tried
first.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import inspect
import json
import os
import random
import signal
import sys
import time
import tomllib
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from mutations import Mutant, mutants

ROOT = Path(__file__).resolve().parents[1]
_OFFERED = ("affine", "errors", "granularity", "integer", "packing", "codebooks", "formats", "ranges")
_SEARCH = ("gains", "range_search", "row_search", "fine_bins", "sorted_rows")
MODULES = (*_OFFERED, *_SEARCH)
TESTS = dict.fromkeys(_OFFERED, ("extremes", "clear_errors"))  # beside tests/test_<module>.py
KNOWN = ROOT / ".mutants"
EXPLAINED = ROOT / "tools/mutants.toml"
LONGEST = 3  # seconds: what only a longer test would notice counts as unnoticed
PATIENCE = 10  # seconds of processor time more than three times what the test took


def main() -> int:
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"  # fewer examples, not made smaller: see tests/conftest.py
    explained = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    rows, holes, stale = [], [], []
    for module in os.environ.get("MODULE", "").split() or MODULES:
        judge = Judge(module, int(os.environ.get("AT_MOST", 0)))
        tests = [str(judge.path), *(str(path) for path in judge.tests)]
        options = ["-s", "-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:nbval"]
        if pytest.main([*tests, *options], plugins=[judge]) != 0 or judge.broken:
            raise SystemExit(f"{module}: the tests fail without any change: {judge.broken or 'see above'}")
        reasons = explained.get(module, {})
        survivors = [mutant for mutant in judge.chosen if judge.verdicts[mutant.name] is None]
        unexplained = [mutant for mutant in survivors if mutant.name not in reasons]
        holes += [f"qlearn/{module}.py:{mutant.line}: {mutant.name}" for mutant in unexplained]
        if len(judge.chosen) == judge.total:
            stale += [f"{module}: {name}" for name in set(reasons) - {mutant.name for mutant in survivors}]
        killed, known = len(judge.chosen) - len(survivors), len(survivors) - len(unexplained)
        rows.append((module, len(judge.chosen), killed, known, len(unexplained)))
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    print("\n{:12} {:>8} {:>8} {:>10} {:>9}".format("module", "mutants", "killed", "explained", "survived"))
    print("\n".join("{:12} {:8} {:8} {:10} {:9}".format(*row) for row in rows))
    print("".join(f"\nno test notices: {hole}" for hole in holes))
    print("".join(f"\nexplained in {EXPLAINED.name}, but noticed or gone: {name}" for name in sorted(stale)))
    return int(bool(holes or stale))


class Judge:
    """A pytest plugin that runs the collected tests once as they are, and then on mutants of one module.

    Attributes:
        verdicts: by the mutant's name the test that failed on it, or None.
        broken: a test that fails without any change.
    """

    def __init__(self, module: str, at_most: int) -> None:
        self.module, self.path = f"qlearn.{module}", ROOT / f"qlearn/{module}.py"
        names = dict.fromkeys((module, *TESTS.get(module, ())))
        self.tests = [path for name in names if (path := ROOT / f"tests/test_{name}.py").exists()]
        everything = list(mutants(self.path.read_text(encoding="utf-8")))
        self.total = len(everything)
        self.chosen = sorted(everything, key=lambda mutant: mutant.line)
        if at_most and at_most < self.total:
            self.chosen = sorted(random.Random(0).sample(everything, at_most), key=lambda mutant: mutant.line)
        self.verdicts: dict[str, str | None] = {}
        self.broken = self.now = ""
        self.lines: dict[str, set[int]] = defaultdict(set)
        self.seconds: dict[str, float] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items: dict[str, Any] = {item.nodeid: item for item in session.items}
        self.watch_all()
        same = Mutant(0, "the module as it is", range(0), True, self.path.read_text(encoding="utf-8"))
        self.broken = self.broken or self.try_out(same, None) or ""
        if self.broken:
            return True
        store, seen = KNOWN / f"{self.path.stem}.json", self.fingerprint()
        known = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
        KNOWN.mkdir(exist_ok=True)
        with tqdm(self.chosen, self.path.stem, unit="mutant", disable=None) as bar:
            for mutant in bar:
                when, killer = known.get(mutant.name, (None, None))
                if when != seen:
                    killer = self.try_out(mutant, killer)
                    known[mutant.name] = (seen, killer)
                    store.write_text(json.dumps(known, indent=0, ensure_ascii=False), encoding="utf-8")
                    if killer is None:
                        bar.write(f"survives: {self.path.stem}:{mutant.line}: {mutant.name}", file=sys.stderr)
                self.verdicts[mutant.name] = killer
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.broken = report.nodeid

    def watch_all(self) -> None:
        """Run every test once: how long each takes, and which lines of the module it reaches."""
        for name, item in self.items.items():
            names = dict(item.dtest.globs) if isinstance(item, pytest.DoctestItem) else None
            self.now, start = name, time.process_time()
            sys.settrace(self.enter)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            sys.settrace(None)
            self.seconds[name] = time.process_time() - start
            if names is not None:
                item.dtest.globs.update(names)  # which running it clears

    def enter(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        return self.step if frame.f_code.co_filename == str(self.path) else None

    def step(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        self.lines[self.now].add(frame.f_lineno)
        return self.step

    def try_out(self, mutant: Mutant, before: str | None) -> str | None:
        """The test that fails on this mutant."""
        names = [name for name in self.items if self.lines[name] & set(mutant.lines)]
        if mutant.at_import:
            own = f"tests/test_{self.path.stem}.py::"
            names = [name for name in self.items if self.lines[name] or name.startswith(own)]
        names = [name for name in names if self.seconds[name] <= LONGEST or name == before]
        names.sort(key=lambda name: (name != before, self.seconds[name]))
        import resource  # not on Windows, where nothing forks either

        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            gc.freeze()  # what the parent has left over may wait for threads, which the child does not have
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            try:
                put_into(importlib.import_module(self.module), mutant.source)
                for name in names:
                    patience = int(3 * self.seconds[name]) + PATIENCE
                    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + patience, -1))
                    signal.alarm(20 * patience)  # for a child that waits for ever
                    self.items[name].config.hook.pytest_runtest_protocol(item=self.items[name], nextitem=None)
                    if self.broken:
                        break
            except BaseException as error:
                self.broken = repr(error)
            os.write(writing, self.broken.encode()[:2000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            killer = answer.read().decode(errors="replace")
        _, status = os.waitpid(child, 0)
        return killer or None if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"

    def fingerprint(self) -> str:
        """Of everything that a verdict depends on."""
        files = [
            *(ROOT / "qlearn").glob("*.py"),
            *(ROOT / "tests").glob("[cs]*.py"),
            *self.tests,
        ]
        return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def put_into(module: types.ModuleType, source: str) -> None:
    """Give a module that is imported already other code; its functions, classes and instances stay the same objects."""
    space = vars(module)
    before = dict(space)
    exec(compile(source, str(module.__file__), "exec"), space)
    for name, old in before.items():
        new = space[name]
        if isinstance(old, types.FunctionType) and old.__module__ == module.__name__:
            inner, other = inspect.unwrap(old), inspect.unwrap(new)  # under decorators such as `quietly`
            for part in ("__code__", "__defaults__", "__kwdefaults__"):
                setattr(inner, part, getattr(other, part))
        elif isinstance(old, type) and old.__module__ == module.__name__:
            for part in set(vars(old)) - set(vars(new)):
                delattr(old, part)
            for part in set(vars(new)) - {"__dict__", "__weakref__", "__module__", "__doc__"}:
                for cell in getattr(vars(new)[part], "__closure__", None) or ():
                    if cell.cell_contents is new:
                        cell.cell_contents = old
                setattr(old, part, vars(new)[part])
        elif not isinstance(old, type) and type(old).__module__ == module.__name__:
            vars(old).update(vars(new))
        else:
            continue
        space[name] = old


if __name__ == "__main__":
    sys.exit(main())
