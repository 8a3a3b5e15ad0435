"""Copies of the lessons without outputs, for learners to work in: `make lab` makes them, `make reset` makes one anew.

The lessons in notebooks/ are stored with their outputs, which answer every "Predict". A copy has none. What a learner
has changed is never overwritten: a small file beside the copies remembers what was given out, and only a copy whose
cells are still those is replaced by a newer edition. Needs nothing but Python, like dev.py, which calls it;
`python tools/copies.py` makes the copies without starting anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LESSONS = ROOT / "notebooks"
COPIES = ROOT / "my_lessons"
GIVEN = ".given_out.json"  # {name of a copy: what `digest` makes of what was given out}


def cleared(lesson: bytes) -> bytes:
    """A notebook without outputs and execution counts; everything else stays.

    Raises:
        ValueError: this is not a notebook.
    """
    notebook = json.loads(lesson)
    try:
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
    except (TypeError, KeyError):
        raise ValueError("no notebook") from None
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def editions(lessons: Path) -> tuple[dict[str, bytes], list[str]]:
    """{name: cleared copy} of every lesson, and a line for each file that is none."""
    found, lines = {}, []
    for path in sorted(lessons.glob("*.ipynb")):
        if path.name.startswith("."):
            continue
        try:
            found[path.name] = cleared(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            lines.append(f"{path} is not a notebook that can be read, so there is no copy of it.")
    return found, lines


def give_out(lessons: Path, folder: Path) -> list[str]:
    """Bring the copies in `folder` up to date; return what to tell the learner, a line each.

    Raises:
        OSError: the folder cannot be written.
    """
    new, lines = editions(lessons)
    with alone_in(folder):
        given, lost = remembered(folder)
        if lost:
            lines.append(f"{folder / GIVEN} could not be read and is made anew. Every copy was left as it is.")
        for name, edition in new.items():
            copy, wanted = folder / name, digest(edition)
            found = digest(copy.read_bytes()) if copy.exists() else None
            if found is None or (found == given.get(name) != wanted):
                write(copy, edition)
                given[name] = wanted
            elif found == wanted or lost:
                given[name] = wanted
            elif given.get(name) != wanted:
                lesson = name.removesuffix(".ipynb").partition("_")[0]
                lines.append(
                    f"{name} has a new edition. Yours has your work in it and stays; "
                    f"make reset LESSON={lesson} gives you the new one, and keeps yours beside it."
                )
        for name in [name for name in given if name not in new and not (lessons / name).exists()]:
            copy = folder / name  # its lesson is gone or has another name now
            if copy.exists() and digest(copy.read_bytes()) == given[name]:
                copy.unlink()
            del given[name]
        write(folder / GIVEN, json.dumps(given, indent=1).encode())
    return lines


def reset(wanted: str, lessons: Path, folder: Path) -> list[str]:
    """Put a fresh copy in the place of each lesson whose name starts with `wanted` ("3" is "03"), or of "all".

    A copy with work in it is kept beside the fresh one, under a name with date and time. Returns a line for each.

    Raises:
        LookupError: there is no such lesson; the message says so.
        OSError: the folder cannot be written.
    """
    new, lines = editions(lessons)
    start = "" if wanted == "all" else wanted.zfill(2) if wanted.isdigit() else wanted
    chosen = [name for name in new if name.startswith(start)]
    if not chosen:
        raise LookupError(f"No lesson's name starts with {start}.")
    give_out(lessons, folder)  # from here on it is known what was given out
    with alone_in(folder):
        given, _ = remembered(folder)
        for name in chosen:
            copy, wanted_digest = folder / name, digest(new[name])
            worked_in = copy.exists() and digest(copy.read_bytes()) not in (wanted_digest, given.get(name))
            if worked_in:
                kept = unused(copy.with_name(f"{copy.stem} {time.strftime('%Y-%m-%d %H-%M-%S')}.ipynb"))
                with draft(folder, new[name]) as fresh:  # first, so that a full disk leaves all as it was
                    os.rename(copy, kept)
                    os.replace(fresh, copy)
                lines.append(f"{name} is fresh. Your work is kept as {kept.name}.")
            else:
                write(copy, new[name])
                lines.append(f"{name} is fresh. There was no work of yours in it.")
            given[name] = wanted_digest
        write(folder / GIVEN, json.dumps(given, indent=1).encode())
    return lines


def digest(notebook: bytes) -> str:
    """A fingerprint of a notebook's cells, outputs and all; of its bytes, if it is none.

    The rest does not count as work: JupyterLab writes Python's version into every notebook that it opens.
    """
    try:
        cells = json.loads(notebook)["cells"]
        for cell in cells:
            cell["source"] = "".join(cell["source"])  # the format allows a list of lines, and JupyterLab writes them
        notebook = json.dumps(cells, sort_keys=True).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return hashlib.sha256(notebook).hexdigest()


def remembered(folder: Path) -> tuple[dict[str, str], bool]:
    """What was given out, and whether that could not be read although there are copies."""
    try:
        given = json.loads((folder / GIVEN).read_bytes())
        if all(isinstance(part, str) for pair in given.items() for part in pair):
            return given, False
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return {}, any(folder.glob("*.ipynb"))


def unused(path: Path) -> Path:
    """This path, or one like it that nothing has yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem} {number}.ipynb")
    return free


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: the new one takes the old one's place in one step."""
    with draft(path.parent, data) as new:
        os.replace(new, path)


def cannot(error: OSError) -> str:
    """What to say when the copies cannot be made."""
    return f"The copies in {COPIES.name}/ cannot be made: {error.strerror or error} ({error.filename or COPIES})."


@contextlib.contextmanager
def draft(folder: Path, data: bytes) -> Iterator[str]:
    """A file with these bytes, to be moved to its place; what is not moved is removed."""
    number, name = tempfile.mkstemp(prefix=".", suffix=".draft", dir=folder)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)  # mkstemp lets nobody else read it
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder, and wait until no other process gives out copies in it. The lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        with contextlib.suppress(OSError):  # a network drive without locks: two at once are rare, and write the same
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print("\n".join([*give_out(LESSONS, COPIES), f"The copies are in {COPIES.name}/."]))
    except OSError as error:
        sys.exit(cannot(error))
