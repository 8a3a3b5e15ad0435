"""Run the lessons and the tests of the maths as on other processors: `make test-processors`, or SETTING=nehalem.

The order in which a float32 product is summed, and the last bit of a logarithm, depend on the BLAS kernel, on the width
of the SIMD registers and on the number of threads. What a lesson prints must not. Each setting below makes NumPy and
PyTorch choose other kernels of those that they carry; the last one disturbs last bits on purpose, for the processors
that no setting can imitate. Whether a setting does what it says is looked up in a process of its own: one that
changes nothing here, or that this processor cannot run, is left out, and the table says why.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dev import NBVAL, ROOT, Result, from_report, heading, notebook_environment, say
from lessons import find

# The tests of the maths: neither a browser nor a picture, and nothing that is only about files.
MATHS = (
    *("affine", "errors", "ranges", "range_search", "sorted_view", "integer", "packing", "codebooks", "formats"),
    *("block_scales", "observers", "exercises", "oracles", "folding", "equalization", "bias_correction", "gptq"),
    *("rescaling", "mixed_precision", "ptq", "ptq_modes", "qat", "extremes", "clear_errors"),
)
ARRAY_LESSONS = ("00", "01", "02", "03", "04", "08")  # those that need NumPy and no PyTorch

# Older and newer versions of NumPy name the same instructions differently; both names of those of 512 bits are here.
WIDE = re.compile(r"AVX512|X86_V4")


class Setting(NamedTuple):
    """Variables of the environment, and what a process that has them must then say of itself."""

    name: str
    says: str
    variables: dict[str, str]
    wanted: dict[str, Any]  # what `look` must find
    needs: tuple[str, ...] = ()  # instructions, by NumPy's names, without which it cannot run
    workers: int = 2
    noise: int = 0  # other than 0: the seed of the noise in the lessons


def settings(own: Mapping[str, Any]) -> list[Setting]:
    """The settings for a processor, from what it says of itself: `seen()`."""
    wide = [name for name in own["numpy"] if WIDE.search(name)]
    narrow = [name for name in own["numpy"] if name not in wide]
    avx2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    least = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    avx2 |= {"NPY_DISABLE_CPU_FEATURES": " ".join(wide)} if wide else {}
    least |= {"NPY_DISABLE_CPU_FEATURES": " ".join([*narrow, *wide])} if own["numpy"] else {}
    is_avx2 = {"numpy": narrow, "torch": "AVX2", "MKL": "AVX2", "oneDNN": "Intel AVX2"}
    is_least = {"numpy": [], "torch": "DEFAULT", "MKL": "COMPATIBLE", "oneDNN": "Intel SSE4.1"}
    nehalem, is_nehalem = {"OPENBLAS_CORETYPE": "Nehalem"}, {"blas": "Nehalem"}
    two, are_two = {"OMP_NUM_THREADS": "2"}, {"threads": 2, "torch threads": 2}  # of OpenBLAS and of PyTorch
    x86 = ("SSE42",)

    def blas(name: str, core: str, needs: tuple[str, ...]) -> Setting:
        return Setting(name, f"OpenBLAS as for {core}", {"OPENBLAS_CORETYPE": core}, {"blas": core}, needs)

    return [
        Setting("own", "this processor as it is, one thread", {}, {}),
        Setting("threads", "two threads", two, are_two, workers=1),
        blas("skylakex", "SkylakeX", ("AVX512F", "AVX512_SKX")),
        blas("haswell", "Haswell", ("AVX2", "FMA3")),
        blas("zen", "Zen", ("AVX2", "FMA3")),
        blas("nehalem", "Nehalem", x86),
        Setting("avx2", "NumPy and PyTorch with AVX2 and nothing wider", avx2, is_avx2, ("AVX2", "FMA3")),
        Setting("least", "NumPy and PyTorch with the least they can do", least, is_least),
        Setting("oldest", "all three, two threads", least | nehalem | two, is_least | is_nehalem | are_two, x86, 1),
        Setting("noise", "this processor, last bits disturbed in the lessons", {}, {}, noise=1),
    ]


# --- what a process says of itself -----------------------------------------------------------------------------------


def look() -> dict[str, Any]:
    """Which kernels this process uses, from NumPy, OpenBLAS and PyTorch themselves; None where there is no answer."""
    import numpy as np

    core: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    has = {name for name, there in core.__cpu_features__.items() if there}
    ones = np.ones((64, 64), dtype=np.float32)
    assert (ones @ ones == 64).all()  # a kernel that this processor cannot run ends the process here
    found: dict[str, Any] = {
        "processor": platform.machine(),
        "features": sorted(has),
        "numpy": [name for name in core.__cpu_dispatch__ if name in has],
        **dict.fromkeys(("blas", "threads", "torch", "torch threads", "MKL", "oneDNN")),
    }
    if library := openblas():
        found["blas"], found["threads"] = library
    try:
        import torch
    except ImportError:
        return found
    found["torch"], found["torch threads"] = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    torch.ones(64, 64) @ torch.ones(64, 64)  # MKL and oneDNN say in a line of text what they use: see `seen`
    torch.nn.functional.conv2d(torch.ones(64, 16, 14, 14), torch.ones(32, 16, 3, 3))
    return found


def openblas() -> tuple[str, int] | None:
    """The core that NumPy's OpenBLAS has chosen, and its threads; None where NumPy has another BLAS."""
    import numpy as np

    folders = [Path(np.__file__).parent / ".dylibs", Path(np.__file__).parents[1] / "numpy.libs"]
    for path in [p for folder in folders for p in folder.glob("*openblas*")]:
        library = ctypes.CDLL(str(path))  # the one already loaded
        for before, after in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            name = f"{before}openblas_get_corename{after}"
            if hasattr(library, name):
                corename = getattr(library, name)
                corename.restype = ctypes.c_char_p
                threads = getattr(library, f"{before}openblas_get_num_threads{after}")()
                return corename().decode(), threads
    return None


def seen(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `look` finds in a process with these variables; empty if that process cannot run."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--look"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1", **(variables or {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        return {}
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    if mkl := re.search(r"^MKL_VERBOSE .*MKL.*$", done.stdout, re.MULTILINE):
        compatible = "CNR:COMPATIBLE" in done.stdout
        found["MKL"] = "COMPATIBLE" if compatible else (re.findall(r"AVX[-\w]*", mkl[0]) or ["SSE"])[0]
    if onednn := re.search(r"^onednn_verbose.*cpu,isa:(.*)$", done.stdout, re.MULTILINE):
        found["oneDNN"] = onednn[1]
    return found


def judge(setting: Setting, own: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Why a setting is not run, or nothing; and which of its variables do not do what they say.

    `own` is what a process says without the variables, `found` what it says with them. A library that is not there
    (None in `own`) need not obey.
    """
    missing = [name for name in setting.needs if name not in own["features"]]
    if missing:
        return f"this processor ({own['processor']}) has no {' and no '.join(missing)}", []
    wanted = {key: value for key, value in setting.wanted.items() if own[key] is not None}
    if not setting.wanted:
        return "", []
    if not wanted:
        return f"nothing here has a choice of {' or '.join(setting.wanted)}", []
    if not found:
        return "a process with these variables does not run", []
    notes = [f"{key} is {found[key]} and not {value}" for key, value in wanted.items() if found[key] != value]
    if not any(found[key] == value != own[key] for key, value in wanted.items()):
        return "; ".join(notes) or "the same as own", []
    return "", notes


# --- running ---------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run the settings that are named, or all of them, and print a table."""
    if arguments == ["--look"]:
        print(json.dumps(look()))
        return 0
    own = seen()
    every = settings(own)
    if arguments == ["--another"]:
        print(json.dumps(another(every, own)))
        return 0
    if unknown := set(arguments) - {setting.name for setting in every}:
        say(f"No setting is called {' or '.join(sorted(unknown))}. There are:")
        say("\n".join(f"    {setting.name:10} {setting.says}" for setting in every))
        return 2
    rows, remarks, failed = [], [], 0
    for setting in every:
        if arguments and setting.name not in arguments:
            continue
        why, notes = judge(setting, own, seen(setting.variables) if setting.wanted else own)
        remarks += [f"{setting.name}: {note}" for note in notes]
        if why:
            rows.append(f"{setting.name:10} left out: {why}")
            continue
        heading(f"{setting.name}: {setting.says}")
        say("    ".join(f"{name}={value}" for name, value in setting.variables.items()))
        results, wrong = run(setting)
        failed += sum(result.failed for result in results)
        columns = "".join(f"{f'{r.failed} failed, {r.passed} passed':28}" for r in results)
        rows.append(f"{setting.name:10} {columns:56}{sum(r.seconds for r in results):6.0f} s")
        remarks += [f"{setting.name}: failed: {name}" for name in wrong]
    heading("summary")
    say(f"{'setting':10} {'cells of the lessons':28}{'tests of the maths':28}")
    say("\n".join([*rows, "", *remarks]))
    return int(failed > 0)


def run(setting: Setting) -> tuple[list[Result], list[str]]:
    """Run the lessons, and the tests of the maths, with a setting; the results, and the names of what failed."""
    results, wrong = [], []
    with tempfile.TemporaryDirectory(prefix="qlearn-processors-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        env = notebook_environment(home) | setting.variables
        tests = [f"tests/test_{name}.py" for name in MATHS]
        steps = {"lessons": ["notebooks", *NBVAL], "maths": tests}
        if setting.noise:
            disturb = f"import runpy; runpy.run_path({str(ROOT / 'tools/noise.py')!r})['disturb']({setting.noise})\n"
            (home / "ipython/profile_default/startup/01_noise.py").write_text(disturb, encoding="utf-8")
            # Workers that a lesson starts are processes of their own, which torchrun gives a RANK.
            ranked = f"import os\nif 'RANK' in os.environ:\n    {disturb}"
            (home / "workers").mkdir()
            (home / "workers/sitecustomize.py").write_text(ranked, encoding="utf-8")
            env["PYTHONPATH"] = str(home / "workers")
            del steps["maths"]
        for title, options in steps.items():
            start, report = time.perf_counter(), home / f"{title}.xml"
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options]
            code = subprocess.call([*command, "-n", str(setting.workers)], cwd=ROOT, env=env)
            results.append(from_report(title, code, report, time.perf_counter() - start))
            wrong += failures(report)
    return results, wrong


def failures(report: Path) -> list[str]:
    """The names of the tests and cells that failed."""
    if not report.exists():
        return ["everything: pytest wrote no report"]
    cases = ElementTree.parse(report).iter("testcase")
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return [f"{case.get('classname', '').removeprefix('tests.')} {case.get('name')}" for case in bad]


def another(every: list[Setting], own: Mapping[str, Any]) -> dict[str, Any]:
    """For `make test`: variables under which NumPy computes otherwise than here, and the lessons to run with them."""
    why = ""
    for name in ("oldest", "least", "haswell"):  # the first that differs from what this process has already
        setting = next(s for s in every if s.name == name)
        of_numpy = {key: value for key, value in setting.wanted.items() if key in ("numpy", "blas")}
        variables = {key: value for key, value in setting.variables.items() if key != "OMP_NUM_THREADS"}
        setting = setting._replace(wanted=of_numpy, variables=variables)
        why, _ = judge(setting, own, seen(variables))
        if not why:
            break
    lessons = [f"notebooks/{path.name}" for path in find() if path.name.startswith(ARRAY_LESSONS)]
    return {"name": setting.name, "variables": variables, "lessons": lessons, "why": why}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
