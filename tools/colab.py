"""qlearn with the versions that Colab has: `make test-colab`.

Makes `.venv-colab` from tools/colab.txt (5 GB, most of it PyTorch), builds the wheel, installs it as a learner would,
then what the lessons fetch there, and proves that this replaced nothing. Then runs there, from a folder without the
package's source, the tests and the lessons that need nothing else. PYTHON_COLAB names a Python; without it 3.13 is
looked for.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dev import NBVAL, ROOT, Result, fail, from_report, heading, notebook_environment, own_environment, say

VENV = ROOT / ".venv-colab"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "qlearn-installed.txt"
VERSIONS = ROOT / "tools/colab.txt"
TEST_TOOLS = ("nbval", "pytest", "pytest-xdist")
OF_THE_HOUSE = {
    "test_house.py",
    "test_lessons.py",
    "test_lite.py",
    "test_mutants.py",
    "test_processors.py",
    "test_website.py",
}  # they look at the repository, not at what is installed


def main() -> int:
    """Make the environment, install the wheel, run what can run; say what was left out."""
    make_environment(wanted())
    results = [install_wheel(wanted(), lessons_fetch())]
    with tempfile.TemporaryDirectory(prefix="qlearn-colab-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        env = notebook_environment(home) | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # a remark of older kernels
        away = home / "away"  # no qlearn/ in here, so that `import qlearn` finds the wheel
        for name in ("tests", "tools", "notebooks"):
            shutil.copytree(ROOT / name, away / name, ignore=shutil.ignore_patterns("__pycache__", "browser"))
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, away)

        def pytest(title: str, *options: str) -> None:
            heading(title)
            start = time.perf_counter()
            report = home / f"{len(results)}.xml"
            quiet = ("-q", "--disable-warnings", "-p", "no:cacheprovider")
            command = [str(PYTHON), "-m", "pytest", *quiet, f"--junitxml={report}", *options]
            code = subprocess.call(command, cwd=away, env=env)
            results.append(from_report(title, code, report, time.perf_counter() - start))

        tests, left_out = which_can_run(away)
        pytest("unit and property tests", "-n", "2", *tests)
        pytest("doctests of the wheel", "--pyargs", "qlearn", "--doctest-modules", "--doctest-ignore-import-errors")
        lessons, lessons_left_out = which_lessons_can_run(away)
        if lessons:
            pytest("lessons, outputs compared", *NBVAL, *lessons)

    heading("left out")
    print("Browser tests, doctests that need a missing package; and these files:")
    for name, reason in (left_out | lessons_left_out).items():
        print(f"  {name:46} {reason}")
    heading("summary")
    for result in results:
        print(result)
    passed, failed, skipped = (sum(getattr(r, name) for r in results) for name in ("passed", "failed", "skipped"))
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return int(failed > 0)


# --- the environment -------------------------------------------------------------------------------------------------


def wanted() -> dict[str, str]:
    """{package: version} of tools/colab.txt."""
    lines = VERSIONS.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def make_environment(versions: dict[str, str]) -> None:
    """Make `.venv-colab` with these versions, unless it is there already."""
    base = find_python()
    pins = [f"{name}=={version}" for name, version in versions.items()]
    stamp = hashlib.sha256("\n".join([base, str(ROOT), *pins, *TEST_TOOLS]).encode()).hexdigest()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == stamp:
        return
    say(f"Making .venv-colab with {base} and Colab's versions.")
    if subprocess.call([base, "-m", "venv", "--clear", str(VENV)], env=own_environment()) != 0:
        fail("Python could not make .venv-colab.")
    # The tools of the tests come in the same command, so that they take what Colab has and do not choose versions.
    if pip("install", "--quiet", *pins, *TEST_TOOLS) != 0:
        fail("pip could not install Colab's versions; its last lines say why.")
    STAMP.write_text(stamp)


def lessons_fetch() -> list[str]:
    """The packages that the lessons install in Colab beside the wheel."""
    asked = re.compile(r"%pip install --quiet ((?:\w+ ?)+)\\n")  # a wheel's name has a hyphen, so it is none of these
    found = (asked.findall(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb")))
    return sorted({name for lines in found for line in lines for name in line.split()})


def install_wheel(versions: dict[str, str], beside: list[str]) -> Result:
    """Build the wheel, install it as `pip install qlearn` would, then what the lessons fetch `beside` it; count what
    that replaced as failures."""
    heading("the wheel")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)) != 0:
            fail("The wheel could not be built.")
        (wheel,) = map(str, Path(folder).glob("*.whl"))
        # First what is missing, by pip's own choice; then surely this wheel, whose version may have been there before.
        if pip("install", "--quiet", wheel) or pip("install", "--quiet", "--no-deps", "--force-reinstall", wheel):
            fail("The wheel could not be installed.")
        if beside and pip("install", "--quiet", *beside):
            fail(f"{', '.join(beside)} could not be installed.")
    found = installed()
    replaced = [f"{name} {v} → {found.get(name)}" for name, v in versions.items() if found.get(name) != v]
    for line in replaced:
        say(f"Replaced: {line}")
    broken = pip("check")
    say("Nothing that Colab has was replaced." if not replaced else "Installing qlearn must not do that.")
    wrong = len(replaced) + int(broken != 0)
    return Result("the wheel replaces nothing", len(versions) + 1 - wrong, wrong, 0, time.perf_counter() - start)


def installed() -> dict[str, str]:
    """{package: version} of `.venv-colab`, names as in tools/colab.txt."""
    listed = subprocess.run(
        [PYTHON, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"],
        capture_output=True,
        text=True,
        check=True,
        env=own_environment(),
    )
    return {
        re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"].partition("+")[0]
        for package in json.loads(listed.stdout)
    }


def pip(*arguments: str) -> int:
    return subprocess.call([PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments], env=own_environment())


def find_python() -> str:
    """A Python 3.13 as Colab has; else 3.12 or 3.11, which the same versions can be installed for."""
    for version in ("3.13", "3.12", "3.11"):
        for path in candidates(version):
            ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
            answer = subprocess.run([path, "-c", ask], capture_output=True, text=True)
            # A name on the PATH need not be a Python: pyenv's answer with an error where they are switched off.
            found, _, executable = answer.stdout.strip().partition(" ")
            if answer.returncode == 0 and (found == version or path == os.environ.get("PYTHON_COLAB")):
                if found != "3.13":
                    say(
                        f"Colab has Python 3.13; none was found, so this is Python {found}. PYTHON_COLAB names another."
                    )
                return executable
    raise SystemExit("No Python 3.13, 3.12 or 3.11 was found. PYTHON_COLAB can name one.")


def candidates(version: str) -> Iterator[str]:
    """Where a Python of this version may be."""
    if named := os.environ.get("PYTHON_COLAB"):
        yield named
        return
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}*/bin/python{version}")))
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        yield sys.executable


# --- what can run ----------------------------------------------------------------------------------------------------


def which_can_run(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The test files all of whose imports are installed; and of the others, the reason."""
    files = sorted((folder / "tests").glob("test_*.py"))
    needs = {path.name: imported(path.read_text(encoding="utf-8")) for path in files}
    missing = not_installed(set().union(*needs.values()), folder)
    reasons = {name: f"needs {', '.join(sorted(needs[name] & missing))}" for name in needs if needs[name] & missing}
    reasons |= {name: "is about the repository" for name in OF_THE_HOUSE & set(needs)}
    return [f"tests/{name}" for name in needs if name not in reasons], reasons


def which_lessons_can_run(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The lessons all of whose imports are installed; and of the others, the reason."""
    needs = {}
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        # An import further in, as of torchao, is one that the lesson can do without.
        needs[path.name] = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
        if re.search(r"\bqlearn(\.| import .*\b)nn\b", code):
            needs[path.name].add("torch")
    missing = not_installed(set().union(*needs.values()), folder)
    reasons = {name: f"needs {', '.join(sorted(needs[name] & missing))}" for name in needs if needs[name] & missing}
    return [f"notebooks/{name}" for name in needs if name not in reasons], reasons


def imported(source: str) -> set[str]:
    """The packages that a file imports when it is itself imported."""
    found = set()
    for node in ast.parse(source).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if "qlearn.nn" in names or (names == ["qlearn"] and any(alias.name == "nn" for alias in node.names)):  # type: ignore[attr-defined]
            names.append("torch")
        found |= {name.partition(".")[0] for name in names if name}
    return found


def not_installed(names: set[str], folder: Path) -> set[str]:
    """Those of the packages that `.venv-colab` does not have."""
    ask = "import importlib.util as u, sys; sys.path[:0] = ['.', 'tools', 'tests']; "
    ask += "print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    answer = subprocess.run([PYTHON, "-c", ask, *sorted(names)], capture_output=True, text=True, cwd=folder, check=True)
    return set(answer.stdout.split())


if __name__ == "__main__":
    sys.exit(main())
