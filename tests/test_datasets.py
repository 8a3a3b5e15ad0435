"""The shipped data: right, complete, whole at every moment, and there without a network and without torch."""

import errno
import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qlearn import datasets

NAMES = [Path(name).name for name in datasets.MD5 if name.startswith("mnist/")]
SMALL = "t10k-labels-idx1-ubyte"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache with MNIST in it, unpacked once for all tests of this file."""
    home = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLEARN_DATA", str(home))
        datasets.mnist_folder()
    return home


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """QLEARN_DATA names a folder that is not there yet."""
    monkeypatch.setenv("QLEARN_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cache(filled, empty):
    """A filled cache of the test's own, to be spoilt."""
    shutil.copytree(filled, empty)
    return empty


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def raw(home):
    return home / "MNIST" / "raw"


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def assert_whole(home):
    """Exactly the four files are there, and each is the original."""
    assert sorted(p.name for p in raw(home).iterdir()) == sorted(NAMES)
    assert {name: md5(raw(home) / name) for name in NAMES} == {name: datasets.MD5[f"mnist/{name}"] for name in NAMES}


# The arrays


def test_the_parts_have_their_sizes_and_types(cache, no_network):
    sizes = {"train": 55_000, "validation": 4_000, "calibration": 1_000, "test": 10_000}
    digits = datasets.mnist_arrays()
    assert {name: len(part.images) for name, part in digits._asdict().items()} == sizes
    for part in digits:
        assert part.images.shape[1:] == (28, 28) and part.images.dtype == np.uint8
        assert part.labels.shape == (len(part.images),) and part.labels.dtype == np.int64
        assert set(part.labels) == set(range(10))


def test_no_image_has_two_tasks():
    training_set = range(60_000)
    parts = [set(training_set[part]) for part in (datasets.TRAIN, datasets.VALIDATION, datasets.CALIBRATION)]
    assert set.union(*parts) == set(training_set)
    assert sum(map(len, parts)) == len(training_set)


def test_no_calibration_image_is_seen_elsewhere(cache):
    """Not even a copy: calibration images are no test, validation or training images by content either."""
    found = {
        name: {image.tobytes() for image in part.images} for name, part in datasets.mnist_arrays()._asdict().items()
    }
    calibration = found.pop("calibration")
    assert len(calibration) == 1000
    assert {name: len(calibration & images) for name, images in found.items()} == dict.fromkeys(found, 0)


def test_torchvision_reads_the_same(cache, no_network):
    digits = datasets.mnist_arrays()
    training = datasets.mnist()
    held_apart = digits.train, digits.validation, digits.calibration
    np.testing.assert_array_equal(training.data.numpy(), np.concatenate([part.images for part in held_apart]))
    np.testing.assert_array_equal(training.targets.numpy(), np.concatenate([part.labels for part in held_apart]))
    test = datasets.mnist(train=False, transform=np.asarray)
    np.testing.assert_array_equal(test.data.numpy(), digits.test.images)
    np.testing.assert_array_equal(test.targets.numpy(), digits.test.labels)
    image, label = test[7]
    np.testing.assert_array_equal(image, digits.test.images[7])
    assert label == digits.test.labels[7]


def test_a_learner_cannot_spoil_the_data(cache):
    first = datasets.mnist_arrays()
    first.train.images[:] = 0
    first.test.labels[:] = 0
    again = datasets.mnist_arrays()
    assert again.train.images.any() and again.test.labels.any()
    assert_whole(cache)


# The cache


def test_the_cache_is_where_qlearn_data_says(monkeypatch):
    monkeypatch.setenv("QLEARN_DATA", str(Path("~") / "digits"))
    assert datasets.cache_folder() == Path.home() / "digits"
    monkeypatch.setenv("QLEARN_DATA", "digits")
    assert datasets.cache_folder() == Path.cwd() / "digits"
    monkeypatch.setenv("QLEARN_DATA", "")
    usual = datasets.cache_folder()
    monkeypatch.delenv("QLEARN_DATA")
    assert datasets.cache_folder() == usual
    assert usual.is_absolute() and usual.name.lower() in ("qlearn", "cache")


def test_an_empty_cache_is_filled(empty, no_network):
    assert datasets.mnist_folder() == raw(empty)
    assert_whole(empty)


def _cut(content):
    return content[: len(content) // 2]


def _empty(content):
    return b""


def _flip_one_bit(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


@pytest.mark.parametrize("damage", [_cut, _empty, _flip_one_bit])
@pytest.mark.parametrize("name", [SMALL, "t10k-images-idx3-ubyte"])
def test_a_damaged_file_is_made_anew(cache, name, damage):
    path = raw(cache) / name
    path.write_bytes(damage(path.read_bytes()))
    datasets.mnist_folder()
    assert_whole(cache)


def test_damage_done_while_the_process_runs_is_seen(cache):
    datasets.mnist_folder()
    path = raw(cache) / SMALL
    path.write_bytes(_flip_one_bit(path.read_bytes()))
    datasets.mnist_folder()
    assert_whole(cache)


def test_a_file_is_read_for_its_check_once(cache):
    datasets.mnist_folder()
    before = datasets._file_md5.cache_info()
    datasets.mnist_folder()
    after = datasets._file_md5.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (0, len(NAMES))


def test_an_intact_cache_is_never_written(cache, monkeypatch):
    def refuse(path, content):
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(datasets, "write_whole", refuse)
    assert len(datasets.mnist_arrays().test.images) == 10_000


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(empty, monkeypatch, stop):
    seen = []

    def stop_halfway(self, content):
        with open(self, "wb") as file:
            file.write(_cut(content))
        seen.extend(path.name for path in self.parent.iterdir())
        raise stop

    monkeypatch.setattr(Path, "write_bytes", stop_halfway)
    with pytest.raises(type(stop)) as caught:
        datasets.mnist_folder()
    assert len(seen) == 1 and seen[0] not in NAMES  # there was half a file, and not under the final name
    assert list(raw(empty).iterdir()) == []
    if isinstance(stop, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert "No space left" in str(caught.value) and "QLEARN_DATA" in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setenv("QLEARN_DATA", str(empty))
    datasets.mnist_folder()
    assert_whole(empty)


def test_a_file_gets_its_name_when_it_is_complete(tmp_path, monkeypatch):
    moved = []
    really_replace = os.replace

    def watch(source, target):
        assert Path(source).read_bytes() == b"all of it" and not Path(target).exists()
        moved.append(Path(source).name)
        really_replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        datasets.write_whole(tmp_path / name / "file", b"all of it")
        assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]
    assert len(set(moved)) == 2, "two processes would write to one unfinished file"


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QLEARN_DATA", str(tmp_path / "file" / "below"))
    with pytest.raises(OSError, match="QLEARN_DATA") as caught:
        datasets.mnist_folder()
    assert str(tmp_path / "file" / "below") in str(caught.value)


def test_a_folder_without_permission_is_named(empty, monkeypatch):
    def refuse(self, content):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PermissionError, match="Permission denied.*QLEARN_DATA") as caught:
        datasets.mnist_folder()
    assert str(raw(empty)) in str(caught.value)


@pytest.mark.parametrize("reason", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_arrays_come_where_nothing_can_be_written(cache, empty, monkeypatch, reason):
    expected = datasets.mnist_arrays()

    def refuse(self, content):
        raise OSError(reason, os.strerror(reason), str(self))

    monkeypatch.setenv("QLEARN_DATA", str(empty.with_name("another")))
    monkeypatch.setattr(Path, "write_bytes", refuse)
    for found, wanted in zip(datasets.mnist_arrays(), expected, strict=True):
        np.testing.assert_array_equal(found.images, wanted.images)
        np.testing.assert_array_equal(found.labels, wanted.labels)
        found.images[:] = 0  # one's own, as ever
    assert list(raw(empty.with_name("another")).iterdir()) == []


def test_a_home_that_does_not_exist_and_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "home")
    code = """
import numpy as np
from qlearn import datasets, plots, widgets
print(datasets.mnist_arrays().test.images.shape)
print(len(widgets.explore_digit()._repr_mimebundle_()[0]["image/png"]) > 10_000)
"""
    homes = dict.fromkeys(
        ("HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), nowhere
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("QLEARN_DATA", "MPLCONFIGDIR")}
    environment = {**kept, **homes, "PYTHONPATH": os.pathsep.join([str(Path(datasets.__file__).parents[1]), *sys.path])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["(10000, 28, 28)", "True"]


def test_being_second_is_no_error(cache, filled, monkeypatch):
    # Windows refuses to replace a file that another process has open; by then that process has made it.
    (raw(cache) / SMALL).unlink()

    def too_late(source, target):
        shutil.copy(raw(filled) / SMALL, target)
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(os, "replace", too_late)
    datasets.mnist_folder()
    assert_whole(cache)


def test_processes_may_start_at_once(empty):
    code = "from qlearn import datasets; print(int(datasets.mnist_arrays().train.labels.sum()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(datasets.__file__).parents[1]), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    results = [(*process.communicate(timeout=600), process.returncode) for process in processes]
    assert len(set(results)) == 1, results
    assert results[0][1:] == (b"", 0)
    assert_whole(empty)


# The shipped files


def _cut_gz(path):
    path.write_bytes(_cut(path.read_bytes()))


def _another_content(path):
    path.write_bytes(gzip.compress(_flip_one_bit(gzip.decompress(path.read_bytes()))))


def _no_gz(path):
    path.write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize("tamper", [_cut_gz, _another_content, _no_gz, Path.unlink])
def test_a_tampered_installation_is_reported(cache, tmp_path, monkeypatch, tamper):
    shutil.copytree(datasets.SHIPPED, tmp_path / "shipped")
    monkeypatch.setattr(datasets, "SHIPPED", tmp_path / "shipped")
    packed = tmp_path / "shipped" / "mnist" / f"{SMALL}.gz"
    tamper(packed)
    datasets.mnist_folder()  # what is unpacked already is enough
    (raw(cache) / SMALL).unlink()
    with pytest.raises(RuntimeError, match="install qlearn again") as caught:
        datasets.mnist_folder()
    assert str(packed) in str(caught.value)
    assert not (raw(cache) / SMALL).exists()


def test_everything_but_the_dataset_works_without_torch(cache):
    code = """
import sys
blocked = ("torch", "torchvision", "matplotlib")
for name in blocked:
    sys.modules[name] = None  # importing it now raises ModuleNotFoundError
from qlearn import datasets
assert not {"safetensors", "platformdirs", "tqdm", "socket"} & set(sys.modules), "imported too early"
print(datasets.mnist_arrays().test.images.shape, len(datasets.text()))
print(*sorted(datasets.trained("mlp")), *sorted(datasets.trained("cnn")))
try:
    datasets.mnist()
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(datasets.__file__).parents[1]), *sys.path])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    shapes, names, error = result.stdout.splitlines()
    assert shapes == "(10000, 28, 28) 1192912"
    assert names.split()[:6] == [f"linear{i}.{what}" for i in (1, 2, 3) for what in ("bias", "weight")]
    assert 'pip install "qlearn[torch]"' in error


def test_trained_weights_are_float32_and_ones_own():
    for name in datasets.TRAINED:
        weights = datasets.trained(name)
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in weights.values())
        for array in weights.values():
            array[:] = 0  # must be writable: torch warns of arrays that are not
        assert all(array.any() for key, array in datasets.trained(name).items() if key.endswith("weight"))


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="'resnet'.*'mlp', 'cnn', 'language_model'"):
        datasets.trained("resnet")


def test_the_weights_take_less_than_five_megabytes():
    assert sum((datasets.SHIPPED / f"{name}.safetensors").stat().st_size for name in datasets.TRAINED) < 5_000_000


def test_the_text_is_the_whole_whale():
    text = datasets.text()
    assert text.isascii() and "\r" not in text
    assert [text.count(f"\nCHAPTER {n}. ") + text.startswith(f"CHAPTER {n}. ") for n in range(1, 136)] == [1] * 135
    assert text.rstrip().endswith("only found another orphan.")


def test_every_shipped_file_has_its_source_written_down():
    readme = (datasets.SHIPPED / "README.md").read_text(encoding="utf-8")
    for path in datasets.SHIPPED.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in readme or f"`{path.name}/*" in readme, path.name
