"""The data of the lessons, shipped with the package: no download, no network.

MNIST is unpacked once into a folder of the user's own, `QLEARN_DATA` or the system's usual place for
caches, where torchvision finds it as well. What lies there is checked before it is used, and made anew
if it is damaged. The trained networks and the text are read from the package itself.

The package for browsers is smaller: it lacks the 55,000 training images, which no lesson there needs, and
fetches other large files when they are first asked for.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import itertools
import json
import os
import secrets
import sys
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["mnist", "mnist_arrays", "text", "text_parts", "trained"]

# The last images of the training set are held out. Ranges are chosen on the calibration images, settings
# on the validation images, and the test images judge the result: no image has two of these tasks.
TRAIN = slice(0, 55_000)
VALIDATION = slice(55_000, 59_000)
CALIBRATION = slice(59_000, 60_000)

# The language model learns from the chapters before 116. The others have the three tasks of the images above.
FIRST_CHAPTERS = {"calibration": 116, "validation": 120, "test": 128}

TRAINED = ("mlp", "cnn", "language_model")

SHIPPED = Path(__file__).parent / "data"

MD5 = {  # of the unpacked files
    "mnist/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "mnist/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "mnist/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "mnist/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "moby-dick.txt": "43d17462189f7f4152fbb330b7fbd342",
    "held-out-images-idx3-ubyte": "f002f8a52317de072a0af656b64e0e3a",
}

# The training images from 55,000 on, which the package for browsers has in the place of all 60,000.
HELD_OUT = "held-out-images-idx3-ubyte"
IN_BROWSER = sys.platform == "emscripten"

# How a safetensors file calls the types that NumPy has.
TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


class Split(NamedTuple):
    """Some of the images, uint8 (N, 28, 28) from 0 (paper) to 255 (ink), and their digits, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class MnistArrays(NamedTuple):
    """The four parts of MNIST. No image is in two of them."""

    train: Split
    validation: Split
    calibration: Split
    test: Split


class TextParts(NamedTuple):
    """The four parts of the text. No chapter is in two of them."""

    train: str
    calibration: str
    validation: str
    test: str


def mnist_arrays() -> MnistArrays:
    """All of MNIST as NumPy arrays, in four parts for four tasks.

        train         the first 55,000 training images: the network learns from them
        validation    the next 4,000: choose settings with them
        calibration   the last 1,000: find the ranges of activations with them
        test          the 10,000 test images: judge the result with them, once

    Returns:
        `MnistArrays`; each part has `images`, uint8 (N, 28, 28), and `labels`, int64 (N,). The arrays are
        yours to change: every call makes new ones.

    Where nothing can be written, as in a read-only home or on a full disk, they are unpacked in memory. In a
    browser there are no training images: `train` says so when it is used.

    Raises:
        RuntimeError: a file of this installation is damaged.

    Cost: 55 MB of memory; half a second the first time on a machine, 0.1 s the first time in a process.
    Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition".

    >>> for name, part in mnist_arrays()._asdict().items():
    ...     print(f"{name:12} {part.images.shape} {part.labels[:5]}")
    train        (55000, 28, 28) [5 0 4 1 9]
    validation   (4000, 28, 28) [1 2 8 7 4]
    calibration  (1000, 28, 28) [6 3 5 7 2]
    test         (10000, 28, 28) [7 2 1 0 4]
    """
    if IN_BROWSER:
        return _without_training_images()
    folder: Path | None
    try:
        folder = mnist_folder()
    except OSError:
        folder = None
    images, labels = _read(folder, "train")
    return MnistArrays(
        train=Split(images[TRAIN], labels[TRAIN]),
        validation=Split(images[VALIDATION], labels[VALIDATION]),
        calibration=Split(images[CALIBRATION], labels[CALIBRATION]),
        test=Split(*_read(folder, "t10k")),
    )


class _NotHere(Split):
    """The training images where there are none: whoever uses them is told why."""

    def _why(self, *_: Any) -> Any:
        raise RuntimeError(
            "The 55,000 training images do not come along into the browser, because they take 10 MB. qlearn on a "
            "computer has them; here are mnist_arrays()'s validation, calibration and test images."
        )

    images = labels = property(_why)  # type: ignore[assignment]
    __iter__ = __getitem__ = __len__ = _why

    def __repr__(self) -> str:
        return "_NotHere()"


def _without_training_images() -> MnistArrays:
    """All of MNIST that the package for browsers has."""
    images = np.frombuffer(bytearray(_unpack_shipped(HELD_OUT)), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(_content(None, "train-labels-idx1-ubyte"), np.uint8, offset=8).astype(np.int64)

    def part(where: slice) -> Split:
        start = TRAIN.stop
        return Split(images[where.start - start : where.stop - start], labels[where])

    nothing = np.empty(0)
    return MnistArrays(_NotHere(nothing, nothing), part(VALIDATION), part(CALIBRATION), Split(*_read(None, "t10k")))


def mnist(train: bool = True, transform: Callable[[Any], Any] | None = None) -> Any:
    """MNIST as torchvision's own `datasets.MNIST`, from the files that come with this package.

    Args:
        train: the 60,000 training images, or the 10,000 test images. Mind that the training images include
            what `mnist_arrays` keeps apart for validation and calibration: indices from 55,000 on.
        transform: applied to each image, a PIL image, as torchvision does it.

    Raises:
        ImportError: torchvision is not installed.  Else as `mnist_folder`.

    >>> image, label = mnist(train=False)[0]
    >>> image.size, label
    ((28, 28), 7)
    """
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise ImportError(
            f'mnist() needs torchvision ({error}): pip install "qlearn[torch]". mnist_arrays() works without it.'
        ) from error
    return MNIST(root=str(mnist_folder().parents[1]), train=train, transform=transform, download=False)


def trained(name: str) -> dict[str, np.ndarray]:
    """The weights of a trained network, by name, in float32.

    Args:
        name: "mlp" (784 → 100 → 100 → 10) or "cnn" (16 and 32 channels), trained on the 55,000 training images of
            MNIST; or "language_model", trained on the first 115 chapters of *Moby-Dick* and stored in float16.
            `qlearn.nn.models` and `qlearn.nn.language_model` have the networks.

    Raises:
        ValueError: for another name.

    >>> trained("mlp")["linear1.weight"].shape
    (100, 784)
    """
    if name not in TRAINED:
        raise ValueError(f"name={name!r}: there are trained weights for {', '.join(map(repr, TRAINED))}.")
    return {key: value.astype(np.float32) for key, value in _tensors(_shipped(f"{name}.safetensors")).items()}


def _tensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: the length of a head, the head in JSON, the numbers.

    Read here, because the library `safetensors` is compiled and browsers may lack it.
    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    start = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:start])
    head.pop("__metadata__", None)
    found = {}
    for name, entry in head.items():
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(content[start + begin : start + end], TYPES[entry["dtype"]])
        found[name] = numbers.reshape(entry["shape"])
    return found


def text() -> str:
    """Herman Melville's *Moby-Dick; or, The Whale* (1851): 135 chapters and the epilogue, 1.2 million ASCII characters.

    >>> text()[:42]
    'CHAPTER 1. Loomings.\\n\\nCall me Ishmael. Som'
    """
    return _unpack_shipped("moby-dick.txt").decode("ascii")


def text_parts() -> TextParts:
    """The text in four parts for four tasks, cut between chapters.

        train         chapters 1 to 115: the language model learns from them
        calibration   116 to 119: find ranges and roundings with them
        validation    120 to 127: choose settings with them
        test          128 to 135 and the epilogue: judge the result with them, once

    >>> for name, part in text_parts()._asdict().items():
    ...     print(f"{name:12} {len(part):9,} characters, {part.partition('.')[0]}")
    train        1,034,306 characters, CHAPTER 1
    calibration     24,681 characters, CHAPTER 116
    validation      36,231 characters, CHAPTER 120
    test            97,694 characters, CHAPTER 128
    """
    whole = text()
    cuts = [0, *(whole.index(f"CHAPTER {chapter}. ") for chapter in FIRST_CHAPTERS.values()), len(whole)]
    return TextParts(*(whole[start:end] for start, end in itertools.pairwise(cuts)))


def mnist_folder() -> Path:
    """The folder of MNIST's four unpacked files, where torchvision expects them: `…/MNIST/raw`.

    Missing and damaged files are made from those that come with the package. Several processes may do so
    at once: each writes a file of its own and moves it into place when it is complete.

    Raises:
        OSError: the folder cannot be written.  RuntimeError: a file of this installation is damaged.
    """
    folder = cache_folder() / "MNIST" / "raw"
    for name, md5 in MD5.items():
        path = folder / Path(name).name
        if name.startswith("mnist/") and not _is_intact(path, md5):
            _into_cache(path, _unpack_shipped(name), md5)
    return folder


def cache_folder() -> Path:
    """The environment variable QLEARN_DATA, or the system's usual folder for what programs keep for a user."""
    chosen = os.environ.get("QLEARN_DATA")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("qlearn", appauthor=False))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it: under another name first, then moved into place."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _into_cache(path: Path, content: bytes, md5: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        if _is_intact(path, md5):
            return  # another process was first, and has the file open: Windows then lets nobody replace it
        raise OSError(  # with an errno Python makes it a PermissionError, a FileExistsError, …
            error.errno or errno.EIO,
            f"Cannot write {path.name} ({error.strerror or error}) into the folder {path.parent}. Unpacking MNIST "
            "takes 55 MB; set the environment variable QLEARN_DATA to a folder that has room and may be written",
        ) from error


def _shipped(name: str) -> bytes:
    """A file of this package. In a browser it is fetched now, if it did not come along."""
    if IN_BROWSER and not (SHIPPED / name).exists():
        from qlearn.browser import fetched

        return fetched(name)
    return (SHIPPED / name).read_bytes()


def _unpack_shipped(name: str) -> bytes:
    """The content of a compressed file of this package, proved to be the right one."""
    packed = SHIPPED / f"{name}.gz"
    try:
        content = gzip.decompress(_shipped(f"{name}.gz"))
    except (OSError, EOFError, zlib.error) as error:  # missing · cut short · altered
        raise RuntimeError(f"{packed} cannot be read ({error}): install qlearn again.") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != MD5[name]:
        raise RuntimeError(f"{packed} is not the original (MD5 {found}, not {MD5[name]}): install qlearn again.")
    return content


def _is_intact(path: Path, md5: str) -> bool:
    """Whether the file is there and has this MD5 sum, which is computed again only if the file has changed."""
    try:
        state = path.stat()
        return _file_md5(path, state.st_size, state.st_mtime_ns) == md5
    except OSError:
        return False


@lru_cache(maxsize=64)
def _file_md5(path: Path, size: int, changed: int) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _read(folder: Path | None, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of "train" or "t10k". IDX files: a head of 16 or 8 bytes, then one byte a value."""
    images = np.frombuffer(_content(folder, f"{part}-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(_content(folder, f"{part}-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels.astype(np.int64)


def _content(folder: Path | None, name: str) -> bytearray:
    """One of MNIST's files, from the cache or else from the package, in memory that may be changed."""
    return bytearray((folder / name).read_bytes() if folder else _unpack_shipped(f"mnist/{name}"))
