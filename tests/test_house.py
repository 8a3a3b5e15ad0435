"""The house is in order: packages, imports, docstrings, and nothing of the machine it was built on."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import colab
import dev
import qlearn

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qlearn"

# --- one list of packages --------------------------------------------------------------------------------------------

CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}


def floors(requirements):
    """{package: its floor}; where a package comes twice, the higher floor counts."""
    found = {}
    for requirement in requirements:
        name, _, floor = requirement.partition(">=")
        assert floor, f"{requirement} has no floor"
        found[name.strip()] = max(found.get(name.strip(), ""), floor.strip(), key=version)
    return found


def version(text):
    return [int(part) for part in text.split(".") if part]


def of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    everything = [*project["dependencies"], *(r for e in dev.EXTRAS for r in project["optional-dependencies"][e])]
    return {CONDA_NAMES.get(n, n): f for n, f in floors([*everything, f"python{project['requires-python']}"]).items()}


def of_environment():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert re.search(r"- pip:\n\s+- -e \.\n", text), "environment.yml must install qlearn itself, with -e ."
    lines = re.findall(r"^ +- (\S+)(?: #.*)?$", text.partition("dependencies:")[2], re.MULTILINE)
    return floors(line for line in lines if line not in ("pip", "pip:"))


def test_conda_and_pip_install_the_same():
    assert of_environment() == of_pyproject()


# Installing qlearn on Colab must not replace anything; what is not on its list replaces nothing.
COLAB = {"python": "3.13", **colab.wanted(), "hypothesis": "6.100", "array-api-compat": "1.11.2"}


def test_core_floors_are_no_higher_than_colabs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, floor in floors(project["dependencies"]).items():
        assert version(floor) <= version(COLAB[name]), name


def test_the_version_has_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "qlearn/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", qlearn.__version__)


# --- imports ---------------------------------------------------------------------------------------------------------


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    heavy = ("torch", "torchvision", "matplotlib", "ipywidgets", "IPython", "hypothesis", "PIL")
    loaded = python(f"import sys, qlearn; print([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


# Arrows point one way: a module imports only modules of its own layer and of those below.
LAYERS = [
    {"arrays", "browser", "datasets"},
    {"affine", "errors", "ranges", "granularity", "config"}
    | {"gains", "sorted_view", "sorted_rows", "fine_bins", "range_search", "row_search"}
    | {"integer", "codebooks", "formats", "block_scales", "packing", "gguf_blocks", "gptq", "rotations"},
    {"histogram", "observers"},
    {"nn"},
    {"style", "plots", "widgets"},
    {"exercises"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def modules():
    """(name below qlearn, path) of every file of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path, own):
    """The parts of qlearn that a file imports, wherever in the file it does so: "nn", "affine"."""
    return (name.split(".")[1] for name in imports(path, own) if name.startswith("qlearn."))


def imports(path, own):
    """The full name of everything that a file imports: "qlearn.nn.layers.StaticLayer"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = ["qlearn", *own.split(".")][: -node.level] if path.name != "__init__.py" else ["qlearn", own]
            base = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from names


MODULES = {name: path for name, path in modules() if name != "__init__"}


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_one_way(name):
    own = name.split(".")[0]
    assert own in LAYER, f"give {own} a place in LAYERS"
    # `from qlearn import quantize` names no module: what qlearn itself exports is of the layers below observers.
    exported = {n for n in vars(qlearn) if not inspect.ismodule(getattr(qlearn, n))}
    wrong = [
        other
        for other in imported(MODULES[name], name)
        if LAYER.get(other, 1 if other in exported else 99) > LAYER[own]
    ]
    assert wrong == [], f"{own} imports from above itself"


# Within nn the order is that of the lessons, too: README and the docstring of qlearn.nn show it.
NN = [
    {"linear_maps", "batches", "collect", "threads", "network", "distributed"}  # the floor
    | {"flow", "tracing", "recording", "site", "unchanged", "rescaling", "in_turn"},
    {
        "layers",
        "integer_layers",
        "overrides",
        "prepared",
        "ptq",
        "folding",
        "storage",
        "summary",
        "models",
        "training",
    },  # lesson 05
    {"fake_quantize", "qat"},  # lesson 06
    {"equalization", "bias_correction", "gptq", "mixed_precision"},  # lesson 07
    {
        "language_model",
        "perplexity",
        "generation",
        "reading_on",
        "smoothquant",
        "awq",
        "stream",
        "rotate",
        "codebook_layer",
        "adapters",
    },
    {"export", "packed_files", "gguf_files"},
    {"processor", "engines", "machine", "speed"},  # lesson 10
]
NN_LAYER = {name: number for number, names in enumerate(NN) for name in names}


def nn_files():
    return [name.removeprefix("nn.") for name in MODULES if name.startswith("nn.")]


@pytest.mark.parametrize("name", nn_files())
def test_nothing_in_nn_imports_what_a_later_lesson_brings(name):
    assert name in NN_LAYER, f"give {name} a place in NN"
    things = {n: getattr(qlearn.nn, n) for n in qlearn.nn.__all__}  # a table such as ENGINES does not know its file
    exported = {n: thing.__module__.split(".")[2] for n, thing in things.items() if hasattr(thing, "__module__")}
    inside = [full.split(".")[2:] for full in imports(MODULES[f"nn.{name}"], f"nn.{name}") if "qlearn.nn." in full]
    files = {exported.get(other[0], other[0]) for other in inside}
    assert [file for file in files if NN_LAYER[file] > NN_LAYER[name]] == [], f"{name} imports from a later lesson"


def test_readers_find_each_file_of_nn():
    listed = set(NN_LAYER)
    assert listed == set(nn_files())
    assert listed <= set(re.findall(r"\w+", qlearn.nn.__doc__))
    assert listed <= set(re.findall(r"`(\w+)\.py`", (ROOT / "README.md").read_text(encoding="utf-8")))


# --- docstrings ------------------------------------------------------------------------------------------------------

# Public: what `qlearn` itself exports, and what its public modules do (their __all__, or names without underscore).
# affine, ranges and the like are reached through `qlearn`; what else they hold is the house's own.
NAMESPACES = set(MODULES) & {
    *(
        "errors",
        "integer",
        "packing",
        "observers",
        "gptq",
        "codebooks",
        "formats",
        "block_scales",
        "gguf_blocks",
        "rotations",
    ),
    *("datasets", "nn", "plots", "widgets", "exercises"),
}
NO_DOCTEST: set[str] = set()  # "module.name", each with its reason


def public(module):
    """(name, object) of each function and class that a module exports."""
    for name in getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]:
        thing = getattr(module, name)
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith(module.__name__):
            yield f"{module.__name__}.{name}", thing


@pytest.mark.parametrize("module", ["qlearn", *(f"qlearn.{name}" for name in sorted(NAMESPACES))])
def test_every_public_docstring_has_a_doctest(module):
    things = dict(public(importlib.import_module(module)))
    without = {name for name, thing in things.items() if ">>> " not in (inspect.getdoc(thing) or "")}
    assert sorted(without - NO_DOCTEST) == []


# --- nothing of the machine it was built on --------------------------------------------------------------------------

# In pieces, so that this file does not hold what it forbids.
FORBIDDEN = {
    "a package registry's host": (
        r"\bpy" + r"pi\.(org|io|python)",
        r"pyth" + r"onhosted\.",
        r"\bdownload\.py" + r"torch\.",
        r"\b(repo|conda)\.ana" + r"conda\.",
        r"\bregistry\.(np" + r"mjs|yarn" + r"pkg)\.",
        r"\bdeb\.deb" + r"ian\.",
    ),
    "an absolute path of one machine": (
        r"(?<![\w.~/])/(ro" + r"ot|wo" + r"rk|ho" + r"me|Us" + r"ers|op" + r"t)/[\w.]",
        r"\b[A-Z]:\\+Us" + r"ers",
        r"/tm" + r"p/(ipykernel|pip-|py" + r"test)",
    ),
}


def repository_files():
    """Every file that is, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name]
    found = []
    for base, folders, files in os.walk(ROOT):
        folders[:] = [
            f for f in folders if f in (".ci", ".github") or not f.startswith((".", "__pycache__", "my_lessons"))
        ]
        found += [Path(base, name) for name in files]
    return found


def machine_words(text):
    """What in a text is of one machine only."""
    return [f"{what}: {m[0]}" for what, patterns in FORBIDDEN.items() for p in patterns for m in re.finditer(p, text)]


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    found = []
    for path in repository_files():
        if path.is_file() and b"\0" not in (data := path.read_bytes())[:8000]:
            found += [f"{path.relative_to(ROOT)}: {word}" for word in machine_words(data.decode("utf-8", "replace"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "https://py" + "pi.org/simple",
        "see https://files.pyth" + "onhosted.org/x",
        "open('/ho" + "me/me/x')",
        "/ro" + "ot/.cache",
        "C:\\\\Us" + "ers\\\\me",
    ],
)
def test_a_forbidden_word_is_found(text):
    assert machine_words(text)


def test_ordinary_words_are_not_forbidden():
    assert machine_words("PyPI, https://onnx.ai/onnx/work/x, the /usr/bin folder, ~/work/x, docs/home/index") == []


# --- tools/dev.py ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """A repository with a .venv in which installing is only written down."""
    calls = []
    for name, path in {"ROOT": tmp_path, "VENV": tmp_path / ".venv", "STAMP": tmp_path / ".venv/stamp"}.items():
        monkeypatch.setattr(dev, name, path)
    monkeypatch.delenv("CONDA_DEFAULT_ENV", raising=False)

    def call(command, **_):
        calls.append(" ".join(map(str, command)))
        if "venv" in command:
            python = tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
            python.parent.mkdir(parents=True)
            python.touch()
            (tmp_path / ".venv/pyvenv.cfg").write_text("version = 3.12.1\n")
        return 0

    monkeypatch.setattr(dev.subprocess, "call", call)
    (tmp_path / "pyproject.toml").write_text("1")
    return calls


def test_packages_are_installed_once(pretend):
    for _ in range(3):
        dev.environment()
    assert [("-m venv" in c, "-e .[torch,lab,lessons,test]" in c) for c in pretend] == [(1, 0), (0, 1), (0, 0)]


def test_a_changed_list_of_packages_is_installed(pretend, tmp_path):
    dev.environment()
    (tmp_path / "pyproject.toml").write_text("2")
    dev.environment()
    assert sum("pip install" in c for c in pretend) == 2


def test_an_interrupted_installation_is_repeated(pretend, monkeypatch):
    ordinary = dev.subprocess.call

    def interrupted(command, **_):
        if "pip" in command:
            raise KeyboardInterrupt
        return ordinary(command)

    monkeypatch.setattr(dev.subprocess, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dev.environment()
    monkeypatch.setattr(dev.subprocess, "call", ordinary)
    dev.environment()
    assert sum("pip install" in c for c in pretend) == 1


def test_a_failed_installation_says_so_and_is_repeated(pretend, monkeypatch):
    ordinary = dev.subprocess.call
    monkeypatch.setattr(dev.subprocess, "call", lambda command, **_: ordinary(command) or int("pip" in command))
    with pytest.raises(SystemExit, match="pip could not install"):
        dev.environment()
    monkeypatch.setattr(dev.subprocess, "call", ordinary)
    dev.environment()
    assert sum("pip install" in c for c in pretend) == 2


def test_an_old_python_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 2))
    assert dev.main(["lab"]) == 1
    assert "Python 3.11 or newer is needed" in capsys.readouterr().out


@pytest.mark.parametrize("code, passed, failed", [(0, 3, 0), (1, 2, 1), (2, 3, 1), (5, 3, 1)])
def test_a_report_is_counted_and_a_crash_is_a_failure(tmp_path, code, passed, failed):
    wrong = int(code == 1)
    report = tmp_path / "r.xml"
    report.write_text(f'<testsuites><testsuite tests="4" failures="{wrong}" errors="0" skipped="1"/></testsuites>')
    result = dev.from_report("t", code, report, 1.0)
    assert (result.passed, result.failed, result.skipped) == (passed, failed, 1)


def test_notebooks_see_no_other_installation(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    env = dev.notebook_environment(tmp_path)
    assert "PYTHONPATH" not in env and "MPLBACKEND" not in env
    assert env["QLEARN_DATA"].startswith(str(tmp_path))
