"""Learners' copies of the lessons: without outputs, brought up to date, and never overwritten once worked in."""

import json
import multiprocessing
import os
import re

import pytest

import copies
import dev
import lessons

FIRST, SECOND = "01_first.ipynb", "02_second.ipynb"


def notebook(source, output="the answer\n"):
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "id": "a1",
        "metadata": {"tags": ["kept"]},
        "outputs": [{"name": "stdout", "output_type": "stream", "text": [output]}],
        "source": [source],
    }
    text = {"cell_type": "markdown", "id": "b1", "metadata": {}, "source": ["# Ünïcode x̂"]}
    whole = {"cells": [text, cell], "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


@pytest.fixture
def folders(tmp_path):
    lessons_, mine = tmp_path / "notebooks", tmp_path / "my_lessons"
    lessons_.mkdir()
    for name in (FIRST, SECOND, "glossary.ipynb"):
        (lessons_ / name).write_text(notebook(f"print({name!r})"), encoding="utf-8")
    return lessons_, mine


def work_in(path, what="my own work"):
    path.write_text(notebook(what), encoding="utf-8")
    return path.read_bytes()


def names(folder):
    return sorted(path.name for path in folder.glob("*.ipynb"))


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".draft")]


def test_a_copy_is_the_lesson_without_outputs(folders):
    lessons_, mine = folders
    assert copies.give_out(*folders) == []
    assert names(mine) == [FIRST, SECOND, "glossary.ipynb"] and left_over(mine) == []
    copy, lesson = (json.loads((folder / FIRST).read_text(encoding="utf-8")) for folder in (mine, lessons_))
    assert copy["cells"][1]["outputs"] == [] and copy["cells"][1]["execution_count"] is None
    lesson["cells"][1] |= {"outputs": [], "execution_count": None}
    assert copy == lesson


def test_no_real_lesson_shows_an_output_in_its_copy_and_nothing_else_changes():
    editions, lines = copies.editions(copies.LESSONS)
    assert lines == [] and list(editions) == [path.name for path in lessons.find()]
    for name, edition in editions.items():
        stored = (copies.LESSONS / name).read_text(encoding="utf-8")
        emptied = json.loads(stored)
        for cell in emptied["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        assert json.loads(edition) == emptied
        assert b"not attempted yet" not in edition and b"image/png" not in edition
        # Written as the lessons are, so that a tool that compares them line by line shows the outputs alone.
        assert (
            not set(edition.decode().splitlines())
            - set(stored.splitlines())
            - {
                '   "outputs": [],',
                '   "execution_count": null,',
            }
        )


def test_an_untouched_copy_follows_the_lesson(folders):
    lessons_, mine = folders
    copies.give_out(*folders)
    (lessons_ / FIRST).write_text(notebook("a new edition"), encoding="utf-8")
    assert copies.give_out(*folders) == []
    assert b"a new edition" in (mine / FIRST).read_bytes()
    (lessons_ / FIRST).write_text(notebook("a new edition", output="other outputs"), encoding="utf-8")
    before = (mine / FIRST).stat().st_mtime_ns
    assert copies.give_out(*folders) == [] and (mine / FIRST).stat().st_mtime_ns == before


def test_a_copy_that_was_worked_in_stays_even_when_there_is_a_new_edition(folders):
    lessons_, mine = folders
    copies.give_out(*folders)
    work = work_in(mine / FIRST)
    assert copies.give_out(*folders) == [], "the lesson is as it was: nothing to say"
    (lessons_ / FIRST).write_text(notebook("a new edition"), encoding="utf-8")
    for _ in range(2):
        (line,) = copies.give_out(*folders)
        assert line.startswith(f"{FIRST} has a new edition") and "make reset LESSON=01 " in line
        assert (mine / FIRST).read_bytes() == work


def test_a_copy_that_was_only_opened_and_saved_was_not_worked_in(folders):
    lessons_, mine = folders
    copies.give_out(*folders)
    opened = json.loads((mine / FIRST).read_text(encoding="utf-8"))
    opened["metadata"]["language_info"] = {"version": "3.13.1"}
    opened["cells"][1]["source"] = "".join(opened["cells"][1]["source"])
    (mine / FIRST).write_text(json.dumps(opened, sort_keys=True), encoding="utf-8")
    before = (mine / FIRST).read_bytes()
    assert copies.give_out(*folders) == [] and (mine / FIRST).read_bytes() == before
    (lessons_ / FIRST).write_text(notebook("a new edition"), encoding="utf-8")
    assert copies.give_out(*folders) == [] and b"a new edition" in (mine / FIRST).read_bytes()


@pytest.mark.parametrize("change", ["output", "source", "new_cell", "cell_metadata"])
def test_every_change_of_a_cell_is_work(folders, change):
    mine = folders[1]
    copies.give_out(*folders)
    changed = json.loads((mine / FIRST).read_text(encoding="utf-8"))
    if change == "output":
        changed["cells"][1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["1\n"]}]
    elif change == "source":
        changed["cells"][0]["source"] += ["\n", "my note"]
    elif change == "new_cell":
        changed["cells"].append({"cell_type": "markdown", "id": "c", "metadata": {}, "source": []})
    else:
        changed["cells"][1]["metadata"]["tags"] = []
    (mine / FIRST).write_text(json.dumps(changed), encoding="utf-8")
    assert "Your work is kept" in copies.reset("01", *folders)[0]


def test_a_copy_that_is_no_notebook_any_more_counts_as_work(folders):
    lessons_, mine = folders
    copies.give_out(*folders)
    (mine / FIRST).write_bytes(b'{"cells": [')
    (lessons_ / FIRST).write_text(notebook("a new edition"), encoding="utf-8")
    assert "has a new edition" in copies.give_out(*folders)[0]
    assert (mine / FIRST).read_bytes() == b'{"cells": ['


def test_a_copy_that_was_deleted_is_given_out_again(folders):
    copies.give_out(*folders)
    (folders[1] / FIRST).unlink()
    copies.give_out(*folders)
    assert (folders[1] / FIRST).exists()


def test_a_renamed_lesson_leaves_work_alone_and_takes_the_untouched_copy_along(folders):
    lessons_, mine = folders
    copies.give_out(*folders)
    work = work_in(mine / FIRST)
    for old in (FIRST, SECOND):
        (lessons_ / old).rename(lessons_ / f"new_{old}")
    for _ in range(2):
        assert copies.give_out(*folders) == []
        assert names(mine) == [FIRST, "glossary.ipynb", f"new_{FIRST}", f"new_{SECOND}"]
        assert (mine / FIRST).read_bytes() == work


@pytest.mark.parametrize("state", [b"{", b"[]", b'{"01_first.ipynb": 1}', b"\xff\xfe", b"[" * 100_000, None])
def test_without_its_memory_every_copy_is_kept_and_that_is_said_once(folders, state):
    lessons_, mine = folders
    copies.give_out(*folders)
    work = work_in(mine / FIRST)
    given = mine / copies.GIVEN
    given.unlink() if state is None else given.write_bytes(state)
    (line,) = copies.give_out(*folders)
    assert "could not be read" in line
    assert (mine / FIRST).read_bytes() == work and copies.give_out(*folders) == []
    (lessons_ / FIRST).write_text(notebook("a new edition"), encoding="utf-8")
    (lessons_ / SECOND).write_text(notebook("a new edition"), encoding="utf-8")
    (line,) = copies.give_out(*folders)
    assert line.startswith(FIRST) and b"a new edition" in (mine / SECOND).read_bytes()


def test_a_lesson_that_cannot_be_read_is_named_and_its_copy_stays(folders):
    lessons_, mine = folders
    copies.give_out(*folders)
    before = (mine / FIRST).read_bytes()
    for broken in ("{", "[]", '{"cells": 3}', '{"cells": [3]}', "[" * 100_000):
        (lessons_ / FIRST).write_text(broken)
        (line,) = copies.give_out(*folders)
        assert FIRST in line and "not a notebook" in line
        assert (mine / FIRST).read_bytes() == before


# --- reset -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", ["01", "1", "01_first", "all"])
def test_reset_gives_a_fresh_copy_and_keeps_the_work_beside_it(folders, lesson):
    mine = folders[1]
    copies.give_out(*folders)
    fresh = (mine / FIRST).read_bytes()
    work = work_in(mine / FIRST)
    line = copies.reset(lesson, *folders)[0]
    assert (mine / FIRST).read_bytes() == fresh and left_over(mine) == []
    (kept,) = [name for name in names(mine) if re.fullmatch(r"01_first \d{4}-\d\d-\d\d \d\d-\d\d-\d\d\.ipynb", name)]
    assert line == f"{FIRST} is fresh. Your work is kept as {kept}."
    assert (mine / kept).read_bytes() == work
    assert copies.give_out(*folders) == [] and (mine / kept).exists()


def test_three_resets_within_a_second_keep_three_copies(folders):
    copies.give_out(*folders)
    for number in range(3):
        work_in(folders[1] / FIRST, f"work {number}")
        copies.reset("01", *folders)
    kept = [path.read_text() for path in folders[1].glob("01_first *.ipynb")]
    assert sorted(re.findall(r"work \d", " ".join(kept))) == ["work 0", "work 1", "work 2"]


def test_reset_brings_the_new_edition(folders):
    lessons_, mine = folders
    copies.give_out(*folders)
    work_in(mine / FIRST)
    (lessons_ / FIRST).write_text(notebook("a new edition"), encoding="utf-8")
    copies.reset("01", *folders)
    assert b"a new edition" in (mine / FIRST).read_bytes() and copies.give_out(*folders) == []


def test_reset_of_a_copy_without_work_keeps_nothing(folders):
    copies.give_out(*folders)
    assert "no work of yours" in copies.reset("01", *folders)[0]
    assert names(folders[1]) == [FIRST, SECOND, "glossary.ipynb"]


def test_reset_works_before_the_first_lab_and_names_a_lesson_that_is_not_there(folders):
    assert "is fresh" in copies.reset("glossary", *folders)[0]
    with pytest.raises(LookupError, match="No lesson's name starts with 09"):
        copies.reset("9", *folders)


def test_a_full_disk_loses_nothing(folders, monkeypatch):
    mine = folders[1]
    copies.give_out(*folders)
    work = work_in(mine / FIRST)
    monkeypatch.setattr(copies, "give_out", lambda *_: [])
    monkeypatch.setattr(copies.os, "fdopen", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        copies.reset("01", *folders)
    assert (mine / FIRST).read_bytes() == work and names(mine) == [FIRST, SECOND, "glossary.ipynb"]
    assert left_over(mine) == []


# --- two at once -----------------------------------------------------------------------------------------------------


def give_out_often(lessons_, mine, start):
    start.wait()
    for _ in range(20):
        copies.give_out(lessons_, mine)


def test_two_at_once_lose_nothing(folders):
    lessons_, mine = folders
    fresh = multiprocessing.get_context("spawn")
    start = fresh.Barrier(3)
    both = [fresh.Process(target=give_out_often, args=(lessons_, mine, start)) for _ in range(2)]
    for process in both:
        process.start()
    start.wait()
    (lessons_ / SECOND).write_text(notebook("a new edition"), encoding="utf-8")
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    work = work_in(mine / FIRST)
    assert copies.give_out(*folders) == [] and (mine / FIRST).read_bytes() == work
    assert b"a new edition" in (mine / SECOND).read_bytes()
    assert names(mine) == [FIRST, SECOND, "glossary.ipynb"] and left_over(mine) == []


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(folders, monkeypatch):
    """`dev.main` on these folders; the command that would take this process's place is only written down."""
    started = []

    def execve(_, command, __):
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(copies, "LESSONS", folders[0])
    monkeypatch.setattr(copies, "COPIES", folders[1])
    monkeypatch.setattr(dev, "environment", lambda: "python")
    monkeypatch.setattr(dev.os, "execve", execve)
    for name in ("LESSON", "PORT", "BROWSER"):
        monkeypatch.setenv(name, "")  # so that what `main` sets is undone
    monkeypatch.chdir(dev.ROOT)
    return started


@pytest.mark.skipif(os.name == "nt", reason="JupyterLab is a process of its own there")
def test_lab_starts_on_the_copies(folders, commands, capsys):
    with pytest.raises(SystemExit):
        dev.main(["lab", "BROWSER=none"])
    assert f"--ServerApp.root_dir={folders[1]}" in commands[0]
    assert names(folders[1]) == [FIRST, SECOND, "glossary.ipynb"]
    assert "my_lessons/, without outputs" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_said_in_one_sentence(folders, commands):
    folders[1].write_text("a file where the folder should be")
    for command in (["lab"], ["reset", "LESSON=01"]):
        with pytest.raises(SystemExit, match=r"^The copies in my_lessons/ cannot be made: .*\)\.$"):
            dev.main(command)
    assert commands == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(folders, commands):
    folders[1].mkdir(mode=0o555)
    with pytest.raises(SystemExit, match="cannot be made: Permission denied"):
        dev.main(["lab"])


def test_reset_asks_which_lesson(commands, capsys):
    assert dev.main(["reset"]) == 2
    assert "make reset LESSON=03, or LESSON=all" in capsys.readouterr().out


def test_reset_says_what_it_has_done(folders, commands, capsys):
    copies.give_out(*folders)
    work_in(folders[1] / SECOND)
    assert dev.main(["reset", "LESSON=2"]) == 0
    assert "02_second.ipynb is fresh. Your work is kept as 02_second " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="No lesson's name starts with 07"):
        dev.main(["reset", "LESSON=07"])
