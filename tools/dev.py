#!/usr/bin/env python3
"""The project's everyday commands. Needs nothing but Python, so that it can install the rest.

    python tools/dev.py lab        JupyterLab on copies of the lessons   PORT=8999  BROWSER=none
    python tools/dev.py reset      a fresh copy of one, yours is kept    LESSON=03
    python tools/dev.py test       every check there is
    python tools/dev.py lessons    run the lessons, store their outputs  LESSON=05
    python tools/dev.py weights    train the shipped networks again
    python tools/dev.py bench      how quick it is, against named peers  ONLY=quantize
    python tools/dev.py mutants    changes that no test notices          MODULE=affine  AT_MOST=40
    python tools/dev.py test-colab tests with Colab's versions
    python tools/dev.py test-processors  the same on other processors  SETTING=nehalem
    python tools/dev.py wheel      package and lessons, to upload        into dist/
    python tools/dev.py links      stamp the address of the lessons into them
    python tools/dev.py front      make the pictures of README.md
    python tools/dev.py site       every lesson as a page, into site/    LITE=none
    python tools/dev.py lite       lessons that run in the browser       into site/lite/
    python tools/dev.py floors     print the oldest versions that are allowed, as pip's constraints

`make lab` and so on are the same. The first call makes `.venv` and installs into it; later calls see from a
stamp that nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NoReturn

import copies

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LITE_VENV = ROOT / ".venv-lite"  # JupyterLite wants other versions than the lessons
STAMP = VENV / "qlearn-installed.txt"
# The kernel is this environment's own, whatever kernels the user has. What takes longer than this hangs, however busy
# the machine is.
NBVAL = (
    *("--nbval", "--nbval-current-env", "--nbval-cell-timeout=1200", "--nbval-kernel-startup-timeout=600"),
    *("-n", "2", "--dist=loadfile"),
)
OLDEST = (3, 11)
# What the lessons and their tests need; the other extras are installed where they are used.
EXTRAS = ("torch", "lab", "lessons", "test")


def main(arguments: list[str]) -> int:
    """Do what the first argument says; NAME=value arguments are as good as environment variables."""
    for setting in [a for a in arguments if "=" in a]:
        name, _, value = setting.partition("=")
        os.environ[name] = value
    commands = [a for a in arguments if "=" not in a]
    known = {
        **{"lab": lab, "reset": reset, "test": test, "lessons": lessons, "weights": weights, "bench": bench},
        **{
            "mutants": mutants,
            "test-colab": test_colab,
            "test-processors": test_processors,
            "wheel": wheel,
            "links": links,
        },
        **{"front": front, "site": site, "lite": lite, "floors": floors, "find-browser": show_browser},
    }
    if len(commands) != 1 or commands[0] not in known:
        print(__doc__)
        return 2
    if sys.version_info < OLDEST:
        say(
            f"Python {'.'.join(map(str, OLDEST))} or newer is needed, and this is {sys.version.split()[0]} "
            f"({sys.executable}). With a newer one beside it: make {commands[0]} PYTHON=python3.13"
        )
        return 1
    os.chdir(ROOT)
    return known[commands[0]]()


# --- commands --------------------------------------------------------------------------------------------------------


def lab() -> int:
    """Start JupyterLab on copies of the lessons without outputs, on this computer only, with its token."""
    python = environment()
    folder = copies.COPIES
    try:
        lines = copies.give_out(copies.LESSONS, folder)
    except OSError as error:
        fail(copies.cannot(error))
    say("\n".join([*lines, f"The lessons are in {folder.name}/, without outputs. What you change in them is yours."]))
    command = [python, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1"]
    if os.environ.get("PORT"):
        command += [f"--ServerApp.port={os.environ['PORT']}", "--ServerApp.port_retries=0"]
    if os.environ.get("BROWSER") == "none":
        del os.environ["BROWSER"]
        command += ["--no-browser"]
    if (folder / "00_start_here.ipynb").exists():
        command += ["--LabApp.default_url=/lab/tree/00_start_here.ipynb"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command += ["--allow-root"]
    say("JupyterLab prints its address, with the token, below. Ctrl-C twice stops it.")
    if os.name == "posix":
        # Jupyter takes this process's place: signals reach it, and nothing is left behind when it ends.
        os.execve(python, command, own_environment())
    with subprocess.Popen(command, env=own_environment()) as server:
        while True:
            try:
                return server.wait()
            except KeyboardInterrupt:
                pass  # the server got it too, and asks before it stops


def reset() -> int:
    """Put a fresh copy in the place of a lesson's; one that was worked in is kept beside it."""
    lesson = os.environ.get("LESSON", "")
    if not lesson:
        say(
            "Which lesson? make reset LESSON=03, or LESSON=all. What you have done in it is kept beside the fresh copy."
        )
        return 2
    try:
        say("\n".join(copies.reset(lesson, copies.LESSONS, copies.COPIES)))
    except LookupError as error:
        fail(str(error))
    except OSError as error:
        fail(copies.cannot(error))
    return 0


def lessons() -> int:
    """Run the lessons in fresh kernels and store their outputs."""
    command = [environment(), "tools/lessons.py", *os.environ.get("LESSON", "").split()]
    return subprocess.call(command, env=own_environment())


def weights() -> int:
    """Train the networks that the package ships."""
    return subprocess.call([environment(), "tools/weights.py"], env=own_environment())


def bench() -> int:
    """Measure how quick everything is, and print a table."""
    command = [environment(), "tools/bench.py", *os.environ.get("ONLY", "").split()]
    return subprocess.call(command, env=own_environment())


def mutants() -> int:
    """Change the maths in one small place after the other, and list the changes that no test notices."""
    return subprocess.call([environment(), "tools/mutants.py"], env={**own_environment(), "OMP_NUM_THREADS": "1"})


def test_colab() -> int:
    """Run what can run with the versions that Colab has, in an environment of its own."""
    return subprocess.call([sys.executable, "tools/colab.py"])


def test_processors() -> int:
    """Run the lessons and the tests of the maths as on other processors."""
    command = [environment(), "tools/processors.py", *os.environ.get("SETTING", "").split()]
    return subprocess.call(command, env=own_environment())


def wheel() -> int:
    """Build what a learner uploads where qlearn cannot be downloaded: the wheel, and the lessons without outputs."""
    command = [environment(), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]
    code = subprocess.call(command, env=own_environment())
    if code == 0:
        folder = ROOT / "dist/lessons"
        folder.mkdir(exist_ok=True)
        editions, lines = copies.editions(copies.LESSONS)
        for name, edition in editions.items():
            copies.write(folder / name, edition)
        built = sorted(f"dist/{path.name}" for path in (ROOT / "dist").glob("*.whl"))
        say("\n".join([*lines, f"Built {', '.join(built)}, and dist/lessons/ without outputs."]))
    return code


def links() -> int:
    """Stamp into every lesson how it is opened in Colab and how it gets qlearn there."""
    return subprocess.call([environment(), "tools/links.py"], env=own_environment())


def front() -> int:
    """Make the pictures of README.md."""
    return subprocess.call([environment(), "tools/front.py"], env=own_environment())


def site() -> int:
    """Build the site of all lessons."""
    return subprocess.call([site_environment(), "tools/website.py"], env=own_environment())


def lite() -> int:
    """Build the lessons that run in the browser. Any Python will do: PyTorch is not installed for that."""
    return subprocess.call([sys.executable, "tools/lite.py"], env=own_environment())


def floors() -> int:
    """Print "package==version" for every "package>=version" of pyproject.toml; of two floors the higher one."""
    wanted = project()["dependencies"] + [
        each for extra in EXTRAS for each in project()["optional-dependencies"][extra]
    ]
    oldest: dict[str, tuple[int, ...]] = {}
    for name, _, version in (requirement.partition(">=") for requirement in wanted):
        oldest[name] = max(oldest.get(name, ()), tuple(map(int, version.split("."))))
    print("\n".join(f"{name}=={'.'.join(map(str, version))}" for name, version in sorted(oldest.items())))
    return 0


def test() -> int:
    """Run every check, even after one has failed, and say at the end what passed."""
    python = site_environment()
    began = time.perf_counter()
    results = []
    with tempfile.TemporaryDirectory(prefix="qlearn-test-") as folder:
        home = Path(folder)
        env = notebook_environment(home)

        def check(title: str, *command: str) -> None:
            heading(title)
            start = time.perf_counter()
            code = subprocess.call([python, "-m", *command], env=env)
            results.append(Result(title, int(code == 0), int(code != 0), 0, time.perf_counter() - start))

        def pytest(title: str, *options: str, **variables: str) -> None:
            heading(title)
            start = time.perf_counter()
            report = home / f"{len(results)}.xml"
            command = [python, "-m", "pytest", "-q", f"--junitxml={report}", *options]
            code = subprocess.call(command, env=env | variables)
            results.append(from_report(title, code, report, time.perf_counter() - start))

        check("ruff check", "ruff", "check", ".")
        check("ruff format", "ruff", "format", "--check", ".")
        if os.environ.get("TYPES") != "0":  # they are those that the newest libraries declare; older ones declare less
            check("mypy", "mypy")
        pytest("unit, property and oracle tests, doctests", "-n", "2")

        if list((ROOT / "notebooks").glob("*.ipynb")):
            pytest("lessons, outputs compared", "notebooks", "--durations=5", *NBVAL)
            # Those of arrays once more, as on another processor: `make test-processors` has the whole matrix.
            another = [python, "tools/processors.py", "--another"]
            answer = subprocess.run(another, env=env, stdout=subprocess.PIPE, text=True).stdout
            other = json.loads(answer or '{"why": "tools/processors.py gave no answer"}')
            if not other["why"]:
                pytest("lessons of arrays, another processor", *other["lessons"], *NBVAL, **other["variables"])
            else:
                heading("lessons of arrays, another processor")
                say(f"Skipped: {other['why']}.")
                results.append(Result("lessons of arrays, another processor", 0, int(not answer), 1, 0.0))

        pytest("the site", "tests/website")  # one by one: they share a page

        if list((ROOT / "tests/browser").glob("test_*.py")):
            ask = "import sys; sys.path[:0] = ['tools']; import real_lab; print(real_lab.browser_path())"
            browser = find_browser() or subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout
            if browser.strip() or os.environ.get("CI", "").lower() == "true":
                alone = "--ignore=tests/browser/test_lessons_in_browser.py"
                pytest("browser tests", "tests/browser", alone)  # one by one: they share a JupyterLab and a page
            else:
                heading("browser tests")
                say("Skipped: no Chromium or Chrome found. Install one, or name it in CHROMIUM.")
                results.append(Result("browser tests", 0, 0, 1, 0.0))

        if os.environ.get("PYODIDE") and shutil.which("node"):
            pytest("lessons in the browser", "tests/browser/test_lessons_in_browser.py")
        else:
            heading("lessons in the browser")
            say("Skipped: these need Node.js, and Pyodide's wheels in the folder that PYODIDE names.")
            results.append(Result("lessons in the browser", 0, 0, 1, 0.0))

    heading("summary")
    for result in results:
        print(result)
    passed, failed, skipped = (sum(getattr(r, name) for r in results) for name in ("passed", "failed", "skipped"))
    print(f"{time.perf_counter() - began:.0f} s in all\n")
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return int(failed > 0)


def show_browser() -> int:
    """Print the browser that the tests would use; fail if there is none."""
    browser = find_browser()
    print(browser or "none")
    return int(not browser)


# --- the environment -------------------------------------------------------------------------------------------------


def environment() -> str:
    """The path of the Python that has everything installed; makes `.venv` and installs where that is needed."""
    if os.environ.get("CONDA_DEFAULT_ENV") == "qlearn" and (Path(sys.prefix) / "conda-meta").is_dir():
        return sys.executable  # made from environment.yml
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():  # a link to a Python that is gone does not exist either
        make_venv()
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return str(python)

    if not STAMP.exists():
        say("Installing qlearn, PyTorch, JupyterLab, lessons' and test tools into .venv, once: 2 to 10 minutes.")
        say("On Linux PyTorch comes with its GPU libraries: about 3 GB to download, 5.4 GB on disk.")
    else:
        say("pyproject.toml or Python has changed: bringing .venv up to date.")
    start = time.perf_counter()
    # One command for everything, so that torch and torchvision are chosen together and fit each other.
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-e", f".[{','.join(EXTRAS)}]"]
    if subprocess.call(install) != 0:
        fail("pip could not install the packages; its last lines say why. The next call tries again.")
    # Proves that they do fit, and builds Matplotlib's list of fonts here and not inside a lesson.
    proof = "import torchvision, matplotlib.font_manager, qlearn"
    if subprocess.call([str(python), "-W", "ignore", "-c", proof]) != 0:
        fail("The installed packages do not work together. Delete the folder .venv and try again.")
    STAMP.write_text(wanted)  # last: an install that was interrupted is done again
    say(f"Installed in {time.perf_counter() - start:.0f} s.")
    return str(python)


SAME_VERSIONS = """import importlib.metadata as m, sys
sys.exit(any(m.version(pin.split("==")[0]) != pin.split("==")[1] for pin in sys.argv[1:]))"""


def site_environment() -> str:
    """The path of the Python that has the site's tools, too; installs them where one is missing or another version."""
    python, pins = environment(), project()["optional-dependencies"]["site"]
    if subprocess.call([python, "-c", SAME_VERSIONS, *pins], stderr=subprocess.DEVNULL) != 0:
        say("Installing Sphinx and what else the site needs, once: half a minute.")
        if subprocess.call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]) != 0:
            fail("pip could not install the site's tools; its last lines say why. The next call tries again.")
    return python


def project() -> Any:
    """The table [project] of pyproject.toml."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lite_environment() -> str:
    """The path of the Python that has JupyterLite; makes `.venv-lite` from the extra `lite` where that is needed."""
    pins = project()["optional-dependencies"]["lite"]
    python = LITE_VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = LITE_VENV / "qlearn-installed.txt", "\n".join([*pins, sys.version, str(ROOT)])
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        say("Installing JupyterLite into .venv-lite, once: half a minute.")
        if subprocess.call([sys.executable, "-m", "venv", "--clear", str(LITE_VENV)]) != 0:
            fail("Python could not make .venv-lite.")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
        if subprocess.call(install) != 0:
            fail("pip could not install JupyterLite; its last lines say why. The next call tries again.")
        stamp.write_text(wanted)
    return str(python)


def make_venv() -> None:
    """Make `.venv` with the Python that runs this."""
    say(f"Making .venv with Python {sys.version.split()[0]}.")
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]) != 0:
        shutil.rmtree(VENV, ignore_errors=True)  # half an environment would be taken for a whole one
        fail("Python could not make it. On Debian and Ubuntu the package python3-venv is needed: apt install it.")


def fingerprint() -> str:
    """What an installation depends on: the list of packages, Python's version, and where the folder lies."""
    config = (VENV / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    version = next((line.partition("=")[2].strip() for line in config if line.startswith("version")), "")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        fail(f"The folder .venv holds Python {version}, which is too old. Delete it and try again.")
    packages = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return f"{packages}\n{version}\n{ROOT}\n"


def own_environment() -> dict[str, str]:
    """The user's environment less what would lead Python or Jupyter to another installation's files."""
    away = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "MPLBACKEND", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH")
    env = {name: value for name, value in os.environ.items() if name not in away}
    env.update(PYTHONNOUSERSITE="1", JUPYTER_PREFER_ENV_PATH="1")
    return env


# What a notebook's kernel runs first: from then on Python reaches this computer and no other.
NO_NETWORK = f"__import__('runpy').run_path({str(ROOT / 'qlearn/exercises/confined.py')!r})['stay_offline']()\n"


def notebook_environment(home: Path) -> dict[str, str]:
    """An environment in which a notebook finds nothing that an earlier run left, and no network.

    Whatever it stores is in `home`. PyTorch has one thread.
    """
    startup = home / "ipython/profile_default/startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "00_no_network.py").write_text(NO_NETWORK, encoding="utf-8")
    return {
        **own_environment(),
        "QLEARN_DATA": str(home / "qlearn"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "jupyter-config"),
        "JUPYTER_DATA_DIR": str(home / "jupyter-data"),
        # Tests and lessons run side by side: PyTorch's threads would wait for each other much longer than they work.
        "OMP_NUM_THREADS": "1",
    }


def find_browser() -> str:
    """The path of a Chromium or Chrome, or nothing."""
    names = ["chromium", "google-chrome", "google-chrome-stable", "chromium-browser"]
    found = [os.environ.get("CHROMIUM", "")] + [shutil.which(name) or "" for name in names]
    return next((path for path in found if path and Path(path).exists()), "")


# --- reporting -------------------------------------------------------------------------------------------------------


class Result:
    """How one step went."""

    def __init__(self, title: str, passed: int, failed: int, skipped: int, seconds: float) -> None:
        self.title, self.passed, self.failed, self.skipped, self.seconds = title, passed, failed, skipped, seconds

    def __str__(self) -> str:
        verdict = "FAILED" if self.failed else "ok" if self.passed else "nothing run"
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{self.title:45} {verdict:12} {counts:40} {self.seconds:6.1f} s"


def from_report(title: str, code: int, report: Path, seconds: float) -> Result:
    """Count what pytest wrote into its JUnit report. A crash is a failure, and so is finding no test (code 5)."""
    tests = failed = skipped = 0
    if report.exists():
        for suite in ElementTree.parse(report).iter("testsuite"):
            tests += int(suite.get("tests", 0))
            failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
    passed = max(0, tests - failed - skipped)
    if code != 0 and not failed:
        failed = 1
    return Result(title, passed, failed, skipped, seconds)


def heading(title: str) -> None:
    """A line that is easy to find in a long output."""
    print(f"\n━━━ {title} {'━' * (70 - len(title))}", flush=True)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def fail(line: str) -> NoReturn:
    """Print a line and stop."""
    raise SystemExit(line)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a console without these characters
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
