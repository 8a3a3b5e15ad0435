"""Building the lessons in the browser: what is missing or altered is noticed, and the smaller package does its work.

The lessons themselves run in tests/browser/test_lessons_in_browser.py.
"""

import gzip
import hashlib
import io
import sys
import tarfile
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

import lite
from qlearn import browser, datasets
from qlearn.exercises.time_limit import TookTooLong, within


def listed(folder, **packages):
    """A list of these packages, each with a file, beside what the kernel needs."""
    found = {}
    for name in {*lite.AT_START, *packages}:
        wheel = lite.write_wheel(folder, name.replace("-", "_"), "1", {})
        found[name] = {
            "file_name": wheel.name,
            "sha256": lite.sha256(wheel.read_bytes()),
            "depends": packages.get(name, []),
        }
    return found


def test_a_complete_list_passes(tmp_path):
    lite.complete(listed(tmp_path, ipython=["jedi"]), tmp_path)


@pytest.mark.parametrize("name", ["jedi", "comm", "piplite"])
def test_a_package_that_the_kernel_lacks_is_named(tmp_path, name):
    packages = listed(tmp_path)
    del packages[name]
    with pytest.raises(SystemExit, match=f"lacks {name}, which the kernel needs"):
        lite.complete(packages, tmp_path)


def test_a_package_that_another_one_lacks_is_named(tmp_path):
    with pytest.raises(SystemExit, match="lacks parso, which jedi needs"):
        lite.complete(listed(tmp_path, jedi=["parso"]), tmp_path)


def test_a_missing_and_an_altered_file_are_named(tmp_path):
    packages = listed(tmp_path)
    (tmp_path / packages["comm"]["file_name"]).write_bytes(b"altered")
    with pytest.raises(SystemExit, match="comm-1.*sha256"):
        lite.complete(packages, tmp_path)
    (tmp_path / packages["comm"]["file_name"]).unlink()
    with pytest.raises(SystemExit, match="comm-1.* is missing"):
        lite.complete(packages, tmp_path)


# --- where files come from -------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Nothing downloaded so far; PYODIDE names no folder."""
    monkeypatch.setattr(lite, "CACHE", lite.ROOT / "build" / f"test-{tmp_path.name}")
    lite.CACHE.mkdir(parents=True)
    monkeypatch.delenv("PYODIDE", raising=False)
    yield lite.CACHE
    lite.shutil.rmtree(lite.CACHE)


def test_a_wheel_comes_from_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PYODIDE", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^a\.whl is missing in PYODIDE"):
        lite.of_pyodide("a.whl", lite.sha256(b"right"))
    (tmp_path / "a.whl").write_bytes(b"wrong")
    with pytest.raises(SystemExit, match=r"a\.whl in PYODIDE .* is not Pyodide"):
        lite.of_pyodide("a.whl", lite.sha256(b"right"))
    (tmp_path / "a.whl").write_bytes(b"right")
    assert lite.of_pyodide("a.whl", lite.sha256(b"right")) == b"right"


def test_without_a_folder_it_is_fetched_proved_and_kept(tmp_path, monkeypatch, own_cache):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(lite, "PUBLIC", f"http://127.0.0.1:{server.server_port}/v{{version}}/")
    monkeypatch.setattr(lite, "VERSION", "1")
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/a.whl").write_bytes(b"wrong")
    with pytest.raises(SystemExit, match=r"a\.whl, fetched from .* sha256 differs"):
        lite.of_pyodide("a.whl", lite.sha256(b"right"))
    (tmp_path / "v1/a.whl").write_bytes(b"right")
    assert lite.of_pyodide("a.whl", lite.sha256(b"right")) == b"right"
    server.shutdown()
    server.server_close()
    assert lite.of_pyodide("a.whl", lite.sha256(b"right")) == b"right"  # from what was kept
    with pytest.raises(SystemExit, match=r"b\.whl could not be fetched .* PYODIDE"):
        lite.of_pyodide("b.whl", lite.sha256(b"right"))


def test_no_npm_and_a_wrong_core_are_said(tmp_path, monkeypatch, own_cache):
    monkeypatch.setattr(lite.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="npm is missing"):
        lite.core(tmp_path)

    def brings_nothing(*_, **__):
        return SimpleNamespace(returncode=1, stderr="npm error network: nothing there\n")

    monkeypatch.setattr(lite.shutil, "which", lambda name: name)
    monkeypatch.setattr(lite.subprocess, "run", brings_nothing)
    with pytest.raises(SystemExit, match="npm could not bring pyodide.*network.*nothing there"):
        lite.core(tmp_path)

    def brings_another(*_, **__):
        (own_cache / f"pyodide-{lite.VERSION}.tgz").write_bytes(b"another")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(lite.subprocess, "run", brings_another)
    with pytest.raises(SystemExit, match="another file than the one expected"):
        lite.core(tmp_path)
    assert not list(own_cache.glob("*.tgz"))


def test_a_core_that_was_kept_is_unpacked(tmp_path, monkeypatch, own_cache):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (*lite.CORE, "pyodide-lock.json"):
            file = tarfile.TarInfo(f"package/{name}")
            file.size = 2
            archive.addfile(file, io.BytesIO(b"{}"))
    (own_cache / f"pyodide-{lite.VERSION}.tgz").write_bytes(packed.getvalue())
    monkeypatch.setattr(lite, "CORE_SHA256", lite.sha256(packed.getvalue()))
    assert lite.core(tmp_path) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(lite.CORE)


def test_pip_says_why_it_brings_nothing(monkeypatch, own_cache):
    said = "WARNING: of no use\nERROR: No matching distribution found for comm\n"
    monkeypatch.setattr(lite.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    with pytest.raises(SystemExit, match=r"lite\.txt: No matching distribution found for comm$"):
        lite.of_pypi(sys.executable)


# --- wheels and pages ------------------------------------------------------------------------------------------------


def test_a_wheel_can_be_installed_and_is_the_same_each_time(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        lite.write_wheel(tmp_path / folder, "thing", "1.0", {"thing.py": b"x = 1\n"})
    one, two = (tmp_path / folder / "thing-1.0-py3-none-any.whl" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    sys.path.insert(0, str(one))
    try:
        import importlib.metadata

        import thing

        assert thing.x == 1 and importlib.metadata.version("thing") == "1.0"
        assert len(importlib.metadata.files("thing")) == 4
    finally:
        sys.path.remove(str(one))
        sys.modules.pop("thing", None)


def test_a_wheel_is_trimmed_and_lists_what_is_left(tmp_path):
    wheel = lite.write_wheel(tmp_path, "thing", "1.0", {"thing/a.py": b"", "thing/font.ttf": b"large"})
    lite.trim(wheel, lite.re.compile(r"thing/.*\.ttf"))
    with zipfile.ZipFile(wheel) as archive:
        assert "thing/a.py" in archive.namelist() and "thing/font.ttf" not in archive.namelist()
        assert b"font" not in archive.read("thing-1.0.dist-info/RECORD")
    with pytest.raises(SystemExit, match="has another name now"):
        lite.trim(wheel, lite.re.compile(r"thing/.*\.ttf"))


def test_the_package_for_browsers_is_small_and_has_all_modules(tmp_path):
    wheel = lite.qlearn_wheel(tmp_path)
    assert wheel.stat().st_size < 1_500_000
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {path.relative_to(lite.ROOT).as_posix() for path in (lite.ROOT / "qlearn").rglob("*.py")}
    assert wanted <= names
    assert {"qlearn/data/mlp.safetensors", "qlearn/data/mnist/train-labels-idx1-ubyte.gz"} <= names
    assert not any("-images-" in name or "language_model.s" in name for name in names)


def test_lessons_are_handed_out_without_answers_and_other_files_without_code(tmp_path):
    folder = tmp_path / "contents"
    assert [name[:2] for name in lite.contents(folder)] == list(lite.LESSONS)
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "image/png" not in text and "not attempted yet" not in text
        for target in lite.re.findall(r"\]\(([\w-]+\.(?:ipynb|md))", text):
            assert (folder / target).exists(), f"{path.name} leads to {target}"
    assert "does not run in a browser" in (folder / "05_post_training_quantization.md").read_text(encoding="utf-8")
    assert "### accumulator" in (folder / "glossary.md").read_text(encoding="utf-8")


# --- the package in a browser ----------------------------------------------------------------------------------------


@pytest.fixture
def in_browser(tmp_path, monkeypatch):
    """The package as browsers have it, and a page that fetches."""
    site = tmp_path / "site"
    site.mkdir()
    lite.late_data(site)
    (tmp_path / "shipped/mnist").mkdir(parents=True)
    for name in ("mlp.safetensors", "mnist/train-labels-idx1-ubyte.gz", "mnist/t10k-labels-idx1-ubyte.gz"):
        (tmp_path / "shipped" / name).write_bytes((datasets.SHIPPED / name).read_bytes())
    asked = []

    class Request:
        @staticmethod
        def new():
            return Request()

        def open(self, method, url, later):
            assert (method, later) == ("GET", False)
            self.path = site / url.removeprefix("https://here.test/pyodide/")
            asked.append(url)

        def send(self):
            self.status = 200 if self.path.exists() else 404
            content = self.path.read_bytes() if self.path.exists() else b""
            self.response = SimpleNamespace(to_bytes=lambda: content)

    api = SimpleNamespace(config=SimpleNamespace(indexURL="https://here.test/pyodide/"))
    monkeypatch.setitem(sys.modules, "js", SimpleNamespace(XMLHttpRequest=Request))
    monkeypatch.setitem(sys.modules, "pyodide_js", SimpleNamespace(_api=api))
    whole = datasets.mnist_arrays()
    model = datasets.trained("language_model")
    monkeypatch.setattr(datasets, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(datasets, "IN_BROWSER", True)
    browser.fetched.cache_clear()
    yield SimpleNamespace(whole=whole, model=model, asked=asked, site=site)
    browser.fetched.cache_clear()


def test_in_a_browser_the_digits_are_the_same_and_fetched_once(in_browser):
    for _ in range(2):
        found = datasets.mnist_arrays()
        for name in ("validation", "calibration", "test"):
            part, wanted = getattr(found, name), getattr(in_browser.whole, name)
            np.testing.assert_array_equal(part.images, wanted.images)
            np.testing.assert_array_equal(part.labels, wanted.labels)
            assert part.labels.dtype == np.int64 and part.images.dtype == np.uint8
            part.images[:] = 0  # one's own, as ever
    assert len(in_browser.asked) == len(set(in_browser.asked)) == 2


def test_in_a_browser_the_training_images_are_missing_and_say_so(in_browser):
    train = datasets.mnist_arrays().train
    for use in (lambda: train.images, lambda: train.labels, lambda: list(train), lambda: train[0], lambda: len(train)):
        with pytest.raises(RuntimeError, match="55,000 training images do not come along into the browser"):
            use()
    assert "_NotHere" in repr(datasets.mnist_arrays())


def test_in_a_browser_a_network_is_fetched_when_it_is_asked_for(in_browser):
    datasets.trained("mlp")
    assert in_browser.asked == []
    model = datasets.trained("language_model")
    assert in_browser.asked == ["https://here.test/pyodide/language_model.safetensors"]
    assert all(np.array_equal(model[name], array) for name, array in in_browser.model.items())


def test_what_the_site_does_not_have_or_has_altered_is_said(in_browser):
    with pytest.raises(OSError, match=r"cnn\.safetensors does not come along .* answers 404"):
        datasets.trained("cnn")
    (in_browser.site / lite.HELD_OUT).write_bytes(gzip.compress(b"another"))
    with pytest.raises(RuntimeError, match="is not the original"):
        datasets.mnist_arrays()


def test_a_site_that_cannot_be_reached_is_said(in_browser, monkeypatch):
    def breaks(self):
        raise RuntimeError("NetworkError")

    monkeypatch.setattr(sys.modules["js"].XMLHttpRequest, "send", breaks)
    with pytest.raises(OSError, match="could not be fetched: NetworkError"):
        datasets.trained("language_model")


def test_the_held_out_images_are_those_of_the_training_file():
    assert hashlib.md5(lite.held_out()).hexdigest() == datasets.MD5[datasets.HELD_OUT]


@pytest.mark.parametrize("name", datasets.TRAINED)
def test_our_reader_reads_what_the_library_reads(name):
    path = datasets.SHIPPED / f"{name}.safetensors"
    ours, theirs = datasets._tensors(path.read_bytes()), load_file(path)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype
        np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.fixture
def no_threads(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_without_threads_a_loop_without_an_end_is_stopped_too(no_threads):
    def helper(k):
        return k + 1

    def endless(start):
        while True:
            start = helper(start)

    with pytest.raises(TookTooLong):
        within(0.1, endless, {"start": 0})


def test_without_threads_an_object_that_is_cleared_up_as_time_ends_does_not_swallow_it(no_threads):
    code = "class Late:\n    def __del__(self):\n        time.sleep(0.2)\n        time.monotonic()"
    made = {"time": time}
    exec(compile(code, np.__file__, "exec"), made)  # a library's, as far as its file says

    def endless(start):
        while start < 1e8:  # it ends if it is not stopped, so that the test does, too
            start += 1
            late = made["Late"]() if start == 100 else None  # noqa: F841

    with pytest.raises(TookTooLong):
        within(0.1, endless, {"start": 0})


def test_without_threads_what_ends_in_time_is_left_alone(no_threads):
    before = sys.gettrace()
    assert within(10.0, lambda x: np.sort(x)[0], {"x": np.array([2, 1])}) == 1
    with pytest.raises(ZeroDivisionError):
        within(10.0, lambda: 1 / 0, {})
    assert sys.gettrace() is before
