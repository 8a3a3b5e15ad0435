"""The lessons of arrays alive in the browser: `make lite` builds `site/lite`, or `build(folder)` any other folder.

JupyterLab without a server (JupyterLite), Python as WebAssembly (Pyodide), and one list of packages of our own
(`pyodide-lock.json`), so that `import qlearn` brings everything that it needs and no lesson changes. What is in the
folder goes onto any static host: it asks no other host for anything.

Pyodide's core comes from npm, its packages from the folder that the environment variable PYODIDE names, else from
Pyodide's public address; what is Python alone comes from PyPI. Every file is proved by its sha256.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import copies
from dev import LITE_VENV, ROOT, fail, lite_environment, own_environment, say

LESSONS = ("00", "01", "02", "03", "04", "08")
PINS = ROOT / "tools/lite.txt"
PAGE = ROOT / "tools/lite_page.js"
CACHE = ROOT / "build/lite"  # what was downloaded, proved again before it is used
DATA = ROOT / "qlearn/data"
HELD_OUT = "held-out-images-idx3-ubyte.gz"

VERSION = "0.27.7"  # of Pyodide; the kernel, ipywidgets and the packages are those that fit it
CORE_SHA256 = "89d5d952675eb08e11286e52c7238f1248ce71726e896db9703e73bef23dc343"
CORE = ("pyodide.js", "pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip")
PUBLIC = "https://cdn.jsdelivr.net/pyodide/v{version}/full/"

# Of Pyodide's packages, those that a lesson or the kernel imports.
OF_PYODIDE = (
    *("numpy", "matplotlib", "contourpy", "cycler", "kiwisolver", "packaging", "pillow", "pyparsing"),
    *("python-dateutil", "six", "matplotlib-pyodide", "ipython", "asttokens", "decorator", "executing"),
    *("matplotlib-inline", "prompt-toolkit", "pure-eval", "pygments", "stack-data", "traitlets", "wcwidth"),
    *("jedi", "parso", "micropip", "sqlite3"),
)
# Matplotlib wants these, one for PDF and one of old, and does without.
LEFT_AWAY = {"fonttools", "pytz"}
# The kernel asks for this and does without: an empty wheel takes its place.
EMPTY = ("ssl",)
# What is Python alone: its name → what it is imported as, what it needs.
PURE: dict[str, tuple[list[str], list[str]]] = {
    "array-api-compat": (["array_api_compat"], []),
    "comm": (["comm"], ["traitlets"]),
    "hypothesis": (["hypothesis"], ["sortedcontainers"]),
    "ipywidgets": (["ipywidgets"], ["comm", "ipython", "traitlets"]),
    "platformdirs": (["platformdirs"], []),
    "sortedcontainers": (["sortedcontainers"], []),
    "tqdm": (["tqdm"], []),
}
OF_KERNEL: dict[str, tuple[list[str], list[str]]] = {
    "ipykernel": (["ipykernel"], []),
    "piplite": (["piplite"], ["micropip"]),
    "pyodide-kernel": (["pyodide_kernel"], ["ipykernel", "ipython", "comm", "jedi"]),
}
OF_QLEARN = ["array-api-compat", "hypothesis", "ipywidgets", "matplotlib", "numpy", "pillow", "platformdirs", "tqdm"]
# What the kernel loads at its start. One that is missing shows up only as a kernel that never starts.
AT_START = (
    *("micropip", "piplite", "ssl", "sqlite3", "ipykernel", "comm", "pyodide-kernel", "jedi", "ipython", "qlearn"),
)

# What the lessons never use: typefaces, headers, colours of other languages, time zones, hints on other libraries.
TRIMMED = {
    "matplotlib": r"matplotlib/(testing|sphinxext|mpl-data/(sample_data|images|fonts/(afm|pdfcorefonts))|"
    r"mpl-data/fonts/ttf/(DejaVuSerif|DejaVuSans-BoldOblique|DejaVuSansMono-.*))|.*\.pyi",
    "numpy": r"numpy/(f2py/src|_core/include|.*\.(pyi|a|pxd))",
    "pillow": r"PIL/_(webp|imagingft)\.",
    "pygments": r"pygments/lexers/(?!(__init__|_mapping|python|special)\.py)",
    "jedi": r"jedi/third_party/(django-stubs|typeshed/(third_party|stdlib/2/))",
    "python-dateutil": r"dateutil/zoneinfo/.*\.gz",
}
# Fetched when they are first asked for.
LATE = ("language_model.safetensors", "mnist/t10k-images-idx3-ubyte.gz", HELD_OUT)
LEFT_OUT = re.compile(r"qlearn/data/(mnist/.*-images-.*|cnn\..*|language_model\..*|moby-dick.*)")


KERNEL = {"display_name": "Python (Pyodide)", "language": "python", "name": "python"}
OVERRIDES: dict[str, Any] = {
    # What the learner writes is kept in the browser; texts are shown and not edited.
    "@jupyterlab/docmanager-extension:plugin": {
        "autosaveInterval": 10,
        "defaultViewers": {"markdown": "Markdown Preview"},
    },
    # A closed lesson needs no kernel any more; and all of a lesson is in the page, to be searched and linked to.
    "@jupyterlab/notebook-extension:tracker": {"kernelShutdown": True, "windowingMode": "none"},
}


def main() -> int:
    """Build `site/lite`."""
    out = ROOT / "site/lite"
    names = build(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    say(f"Built {out.relative_to(ROOT)}: {len(names)} lessons, {size:.0f} MB. Any static host can serve it.")
    return 0


def build(out: Path) -> list[str]:
    """Build the folder anew, whole or not at all; return the names of the lessons that run in it.

    Raises:
        SystemExit: something is missing or is not what it should be; the message says what, in a sentence.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    python = lite_environment()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lite-", dir=out.parent) as name:
        home = Path(name)
        packages = home / "pyodide"
        packages.mkdir()
        upstream = core(packages)
        (packages / "pyodide-lock.json").write_text(json.dumps(lock(packages, upstream, python)), encoding="utf-8")
        late_data(packages)
        names = contents(home / "contents")
        made = jupyterlite(python, home)
        shutil.move(packages, made / "static/pyodide")
        speak(made)
        if out.exists():
            shutil.rmtree(out)
        os.replace(made, out)
    return names


# --- the list of packages --------------------------------------------------------------------------------------------


def lock(folder: Path, upstream: dict[str, Any], python: str) -> dict[str, Any]:
    """Bring every package into `folder` and list it, as Pyodide's own list does."""
    packages: dict[str, Any] = {}

    def add(name: str, wheel: Path, imports: list[str], depends: list[str]) -> None:
        packages[name] = {
            **{"name": name, "version": wheel.name.split("-")[1], "file_name": wheel.name, "install_dir": "site"},
            **{"sha256": sha256(wheel.read_bytes()), "package_type": "package", "unvendored_tests": False},
            **{"imports": imports, "depends": [need for need in map(normal, depends) if need not in LEFT_AWAY]},
        }

    for name in OF_PYODIDE:
        entry = upstream["packages"].get(name) or fail(f"Pyodide {VERSION} has no package {name}.")
        wheel = folder / entry["file_name"]
        wheel.write_bytes(of_pyodide(entry["file_name"], entry["sha256"]))
        if name in TRIMMED:
            trim(wheel, re.compile(TRIMMED[name]))
        add(name, wheel, entry["imports"], entry["depends"])
    pure, kernel = of_pypi(python), of_kernel()
    for found, wanted in ((pure, PURE), (kernel, OF_KERNEL)):
        for name, (imports, depends) in wanted.items():
            add(name, Path(shutil.copy(found[name], folder)), imports, depends)
    for name in EMPTY:
        add(name, write_wheel(folder, name, "0", {}), [], [])
    add("qlearn", qlearn_wheel(folder), ["qlearn"], OF_QLEARN)
    complete(packages, folder)
    return {"info": upstream["info"], "packages": packages}


def complete(packages: dict[str, Any], folder: Path) -> None:
    """See that no package is missing, and that each file is there and is the one that is listed."""
    wanted = {need: "the kernel" for need in AT_START}
    wanted |= {need: name for name, entry in packages.items() for need in entry["depends"]}
    for need, name in wanted.items():
        if need not in packages:
            fail(f"The list of packages lacks {need}, which {name} needs: a kernel would never start.")
    for name, entry in packages.items():
        wheel = folder / entry["file_name"]
        if not wheel.exists():
            fail(f"{entry['file_name']} is missing: without {name} a kernel would never start.")
        if sha256(wheel.read_bytes()) != entry["sha256"]:
            fail(f"{entry['file_name']} is not the file that the list of packages names (its sha256 differs).")


def core(folder: Path) -> dict[str, Any]:
    """Put Pyodide's core into a folder; return the list of all packages that there are for it."""
    packed = CACHE / f"pyodide-{VERSION}.tgz"
    if not packed.exists() or sha256(packed.read_bytes()) != CORE_SHA256:
        npm = shutil.which("npm") or fail(
            "npm is missing, which brings Pyodide's core: install Node.js, or put "
            f"pyodide-{VERSION}.tgz of the npm registry into {CACHE.relative_to(ROOT)}/."
        )
        command = [npm, "pack", "--silent", f"pyodide@{VERSION}", "--pack-destination", str(CACHE)]
        result = subprocess.run(command, capture_output=True, text=True, env=own_environment())
        if result.returncode:
            reason = next((line for line in result.stderr.splitlines() if "error" in line.lower()), "it says nothing")
            fail(f"npm could not bring pyodide@{VERSION}; is there a network? ({reason.strip()})")
        if sha256(packed.read_bytes()) != CORE_SHA256:
            packed.unlink()
            fail(f"What npm brought as pyodide@{VERSION} is another file than the one expected (its sha256 differs).")
    with tarfile.open(packed) as archive:
        for name in CORE:
            (folder / name).write_bytes(member(archive, f"package/{name}"))
        upstream: dict[str, Any] = json.loads(member(archive, "package/pyodide-lock.json"))
    return upstream


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of one file of an archive."""
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()


def of_pyodide(name: str, expected: str) -> bytes:
    """A wheel of Pyodide, from the folder PYODIDE or else from the public address; proved."""
    if given := os.environ.get("PYODIDE"):
        path = Path(given) / name
        if not path.exists():
            fail(f"{name} is missing in PYODIDE ({given}).")
        content = path.read_bytes()
        if sha256(content) != expected:
            fail(f"{name} in PYODIDE ({given}) is not Pyodide {VERSION}'s (its sha256 differs).")
        return content
    kept = CACHE / name
    if kept.exists() and sha256(content := kept.read_bytes()) == expected:
        return content
    address = PUBLIC.format(version=VERSION) + name
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            content = answer.read()
    except (OSError, urllib.error.URLError) as error:
        fail(f"{name} could not be fetched ({error}). Without a network, name a folder that has it in PYODIDE.")
    if sha256(content) != expected:
        fail(f"{name}, fetched from {address}, is not Pyodide {VERSION}'s (its sha256 differs).")
    copies.write(kept, content)
    return content


def of_pypi(python: str) -> dict[str, Path]:
    """{name: wheel} of what tools/lite.txt pins. The pip of that Python proves them, also what it brought earlier."""
    folder = CACHE / "pypi"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    versions = ["--python-version", "3.12", "--platform", "any", "--only-binary", ":all:", "--no-deps"]
    command = [*pip, "download", "--quiet", *versions, "--require-hashes", "--requirement", str(PINS)]
    for extra in (["--no-index", f"--find-links={folder}"], []):  # what is there already needs no network
        result = subprocess.run([*command, "--dest", str(folder), *extra], capture_output=True, text=True)
        if result.returncode == 0:
            pins = re.findall(r"^([\w-]+)==(\S+)", PINS.read_text(encoding="utf-8"), re.MULTILINE)
            # By their versions: of earlier pins there may be other ones.
            return {name: next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")) for name, version in pins}
    reason = next((line for line in result.stderr.splitlines() if line.startswith("ERROR")), "ERROR: no reason given")
    fail(f"pip could not bring the packages of {PINS.relative_to(ROOT)}: {reason.removeprefix('ERROR: ')}")


def of_kernel() -> dict[str, Path]:
    """{name: wheel} of what comes with the kernel."""
    return wheels(LITE_VENV / "share/jupyter/labextensions/@jupyterlite/pyodide-kernel-extension/static/pypi")


def wheels(folder: Path) -> dict[str, Path]:
    """{name: wheel} of a folder."""
    return {normal(path.name.split("-")[0]): path for path in sorted(folder.glob("*.whl"))}


def normal(name: str) -> str:
    """A package's name as the list has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- wheels ----------------------------------------------------------------------------------------------------------


def qlearn_wheel(folder: Path) -> Path:
    """qlearn for browsers: without what no lesson there needs, and what is fetched late."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "qlearn/__init__.py").read_text(encoding="utf-8"))
    assert version
    found = (path for path in sorted((ROOT / "qlearn").rglob("*")) if path.is_file() and path.suffix != ".pyc")
    files = {path.relative_to(ROOT).as_posix(): path for path in found}
    contents = {name: path.read_bytes() for name, path in files.items() if not LEFT_OUT.fullmatch(name)}
    return write_wheel(folder, "qlearn", version[1], contents)


def late_data(folder: Path) -> None:
    """Put what is fetched late beside the packages."""
    for name in LATE:
        (folder / name).parent.mkdir(exist_ok=True)
        content = gzip.compress(held_out(), 9, mtime=0) if name == HELD_OUT else (DATA / name).read_bytes()
        (folder / name).write_bytes(content)


def held_out() -> bytes:
    """The file of the 5,000 training images from which no network of the lessons has learnt."""
    whole = gzip.decompress((DATA / "mnist/train-images-idx3-ubyte.gz").read_bytes())
    images = whole[16 + 55_000 * 784 :]
    return struct.pack(">4B3I", 0, 0, 8, 3, len(images) // 784, 28, 28) + images


def write_wheel(folder: Path, name: str, version: str, contents: dict[str, bytes]) -> Path:
    """A wheel of these files; the same files give the same bytes. Source: PEP 427."""
    info = f"{name}-{version}.dist-info"
    about = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: qlearn\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    pack(path, contents | about, f"{info}/RECORD")
    return path


def trim(wheel: Path, away: re.Pattern[str]) -> None:
    """Leave files out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        kept = {name: archive.read(name) for name in names if name != record and not away.match(name)}
    if len(kept) + 1 == len(names):
        fail(f"Nothing in {wheel.name} is called {away.pattern}: what it leaves out has another name now.")
    pack(wheel, kept, record)


def pack(path: Path, contents: dict[str, bytes], record: str) -> None:
    """Write a wheel and the list of its files."""
    lines = [f"{name},sha256={digest(content)},{len(content)}" for name, content in contents.items()]
    contents = contents | {record: "\n".join([*lines, f"{record},,", ""]).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)  # its date is 1980


def digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


# --- JupyterLite -----------------------------------------------------------------------------------------------------


def contents(folder: Path) -> list[str]:
    """Write what the file browser shows: the lessons that run, without outputs; all else as pages without a kernel.

    Returns the names of the lessons that run.
    """
    folder.mkdir()
    editions, lines = copies.editions(copies.LESSONS)
    for line in lines:
        say(line)
    runs = [name for name in editions if name.startswith(LESSONS)]
    for name, edition in editions.items():
        notebook = json.loads(edition)
        for cell in notebook["cells"]:
            cell["source"] = links("".join(cell["source"]), runs)
        if name in runs:
            notebook["metadata"]["kernelspec"] = KERNEL
            text = json.dumps(notebook, indent=1, ensure_ascii=False)
        else:
            text = page(notebook["cells"])
        (folder / name).with_suffix(".ipynb" if name in runs else ".md").write_text(text, encoding="utf-8")
    return runs


def links(text: str, runs: list[str]) -> str:
    """The same, with links to texts where there are no notebooks.

    >>> links("[04](04_x.ipynb), [tie](glossary.ipynb#tie)", runs=["04_x.ipynb"])
    '[04](04_x.ipynb), [tie](glossary.md#tie)'
    """

    def target(found: re.Match[str]) -> str:
        kind = "ipynb" if f"{found[1]}.ipynb" in runs else "md"
        return f"]({found[1]}.{kind}{found[2]})"

    return re.sub(r"\]\(([\w-]+)\.ipynb((?:#[^)]*)?)\)", target, text)


def page(cells: list[dict[str, Any]]) -> str:
    """A notebook without code as one text; of a lesson that needs PyTorch, its title and why it is not here."""
    if all(cell["cell_type"] == "markdown" for cell in cells):
        return "\n\n".join(cell["source"] for cell in cells)
    return f"""{cells[0]["source"].splitlines()[0]}

This lesson trains networks with PyTorch, which does not run in a browser. Read it among the pages of all lessons, or
work in it on a computer that has Python: `make lab` in the project's folder opens it.
"""


def jupyterlite(python: str, home: Path) -> Path:
    """JupyterLab for browsers, with these contents."""
    settings = {
        "pyodideUrl": "./static/pyodide/pyodide.js",
        "disablePyPIFallback": True,
        "loadPyodideOptions": {"packages": [name.replace("-", "_") for name in AT_START]},
    }
    config = {
        "appName": "qlearn",
        "exposeAppInBrowser": True,  # for tools/lite_page.js
        "litePluginSettings": {"@jupyterlite/pyodide-kernel-extension:kernel": settings},
    }
    whole = {"jupyter-lite-schema-version": 0, "jupyter-config-data": config}
    (home / "jupyter-lite.json").write_text(json.dumps(whole), encoding="utf-8")
    (home / "overrides.json").write_text(json.dumps(OVERRIDES), encoding="utf-8")
    made = home / "made"
    command = [
        *(python, "-m", "jupyterlite_core", "build", "--lite-dir", str(home), "--contents", str(home / "contents")),
        *("--output-dir", str(made), "--apps", "lab", "--no-sourcemaps", "--no-unused-shared-packages"),
    ]
    result = subprocess.run(command, cwd=home, capture_output=True, text=True, env=own_environment())
    if result.returncode or not (made / "lab/index.html").exists():
        fail(f"JupyterLite could not be built:\n{(result.stdout + result.stderr)[-2000:]}")
    return made


def speak(made: Path) -> None:
    """Put a script into the page that says what the learner should know."""
    page = made / "lab/index.html"
    text = page.read_text(encoding="utf-8")
    if "</head>" not in text:
        fail("JupyterLite's page has no head any more, so nothing could tell the learner what she should know.")
    shutil.copy(PAGE, made / "lab/qlearn.js")
    for icon in made.rglob("favicon.ico"):  # 0.3 MB, and JupyterLab's own
        icon.write_bytes((made / "icon-120x120.png").read_bytes())
    ours = '<link rel="icon" href="./favicon.ico" /><script defer src="./qlearn.js"></script></head>'
    text = text.replace("<title>JupyterLite</title>", "<title>qlearn</title>")
    page.write_text(text.replace("</head>", ours, 1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
