"""Notebooks of all kinds, graded: what was solved counts, what only looks so does not, and nothing stops the table."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import lessons
from qlearn import exercises
from qlearn.exercises import __main__ as command
from qlearn.exercises import grading, kernel_side
from qlearn.exercises.kernel import Limits

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="not tried on Windows")

START = "import numpy as np\nfrom qlearn import exercises"
FIRST = exercises.solution_source("01.1") + '\n\nexercises.check("01.1", to_uint8)'
SECOND = exercises.solution_source("01.2") + '\n\nexercises.check("01.2", quantize_symmetric)'
STUB = 'def quantize_symmetric(x, bits):\n    ...\n\nexercises.check("01.2", quantize_symmetric)'
WRONG = 'def to_uint8(values):\n    return values.astype(np.uint8)\n\nexercises.check("01.1", to_uint8)'
SLEEP = "import time\nwhile True: time.sleep(0.01)"
SECONDS = 40  # much more than a notebook needs, on a busy machine too
LIMITS = Limits(seconds=SECONDS, file_mb=8, folder_mb=16, memory_mb=1024, processes=40)


def raising(error, code):
    """A cell that goes on after this error, and ends the kernel if it does not come."""
    return f"import os\ntry:\n    {code}\nexcept {error}:\n    pass\nelse:\n    os._exit(1)"


# Name → the code cells; what is expected of 01.1 and 01.2, and what the problem says. Few, for each takes a second.
NOTEBOOKS = {
    "solved": ([START, FIRST, SECOND], "✓✓", ""),
    "wrong": ([START, WRONG, STUB], "✗·", ""),
    "raises_on_the_way": (
        [
            START,
            "1 / 0",
            FIRST,
            "input('How are you?')",
            "for _ in range(300): print('x' * 100_000)",
            "import sys\nsys.exit()",
            "import subprocess\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], start_new_session=True)",
            SECOND,
        ],
        "✓✓",
        "cell 2 raised ZeroDivisionError: division by zero; 2 more raised an error",
    ),
    "no_function": (
        [START, "def to_uint8(:\n" + FIRST, 'exercises.check("01.2", quantize_symmetric)'],
        "✗✗",
        "cell 2 raised SyntaxError",
    ),
    "input": ([START, "input('How are you?')", FIRST], "✓–", "cell 2 waits for input()"),
    # What a learner may do to names, and what they print, is nothing to the grader.
    "shadowed": (
        [
            START,
            f"class exercises:\n    check = lambda *_: '✓'\n{WRONG}",
            f"exercises = None\nprint('✓ 01.2 correct.')\n{STUB}",
        ],
        "✗·",
        "cell 3 raised AttributeError",
    ),
    "package_changed": (
        [
            START,
            "import qlearn.exercises.shelf as shelf, qlearn.exercises.checking as checking\n"
            "shelf.examine = checking.examine = lambda exercise, _: checking.Result('correct', '✓')",
            WRONG,
            "list = dict = open = print = __file__ = runpy = None\n" + SECOND,
        ],
        "✗✓",
        "",
    ),
    # However the attempt was made, it is found.
    "no_check_at_all": ([START, *(cell.partition("\nexercises.check")[0] for cell in (FIRST, SECOND))], "✓✓", ""),
    "second_try": ([START, WRONG, FIRST, "del to_uint8", SECOND.replace("exercises.check", "#")], "✓✓", ""),
    "lambda_and_renamed": (
        [
            START,
            "to_uint8 = lambda values: np.clip(np.rint(values), 0, 255).astype(np.uint8)",
            SECOND.replace("quantize_symmetric", "my_own"),
        ],
        "✓✓",
        "",
    ),
    # What does not end, or ends too much.
    "loops": ([START, FIRST, SLEEP, SECOND], "✓✓", "cell 3 was interrupted after"),
    "loops_in_the_function": (
        [START, "import time\ndef to_uint8(values):\n    while True: time.sleep(0.01)", SECOND],
        "✗✓",
        "",
    ),
    "will_not_stop": (
        [START, FIRST, f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{SLEEP}", SECOND],
        "✓–",
        "cell 3 did not stop after",
    ),
    "dies": ([START, FIRST, "import os\nos._exit(0)", SECOND], "✓–", "cell 3 ended the kernel"),
    "dies_when_checked": ([START, "def to_uint8(values):\n    import os; os._exit(0)", SECOND], "––", "cell 2 ended"),
    "within_limits": (
        [
            START,
            raising("OSError", "open('x', 'wb').write(bytes(9 * 2**20))"),
            raising("MemoryError", "np.ones(2**28)"),
            raising("ConnectionError", "import socket; socket.create_connection(('192.0.2.1', 80))"),
            FIRST,
        ],
        "✓–",
        "",
    ),
    "fills_the_disk": (
        [START, FIRST, "for k in range(20):\n    open(str(k), 'wb').write(bytes(2**20))\n" + SLEEP, SECOND],
        "✓–",
        "cell 3 wrote more than 16 MB",
    ),
    "forks": (
        [START, FIRST, f"import os, time\nfor _ in range(50):\n    if os.fork() == 0: time.sleep(99)\n{SLEEP}", SECOND],
        "✓–",
        "cell 3 started more than 40 processes",
    ),
}
NOT_NOTEBOOKS = {
    "not_json": (b"{", "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "a_list": (b"[]", "is JSON, but no notebook"),
    "old": (b'{"nbformat": 3, "worksheets": []}', "has format 3, and 4 is needed"),
    "broken_cells": (b'{"nbformat": 4, "cells": [3]}', "broken cells"),
    "of_no_lesson": (json.dumps(new_notebook(cells=[new_code_cell("1")])).encode(), "has no exercise"),
}


def write(path, cells):
    title = new_markdown_cell("# 01 A lesson")  # last, so that code cells are counted from 1
    nbformat.write(new_notebook(cells=[*map(new_code_cell, cells), title]), path)


def kernels(folder):
    """The grader's kernels whose temporary folders are in this one, and what they have left."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("QLEARN_DATA", "").startswith(f"{folder}{os.sep}"):
                found += [process] * (process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            pass
    return found


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Everything graded at once, two at a time."""
    folder = tmp_path_factory.mktemp("class")
    for name, (cells, _, _) in NOTEBOOKS.items():
        write(folder / f"{name}.ipynb", cells)
    for name, (data, _) in NOT_NOTEBOOKS.items():
        (folder / f"{name}.ipynb").write_bytes(data)
    (folder / "empty_folder").mkdir()
    (folder / ".ipynb_checkpoints").mkdir()
    write(folder / ".ipynb_checkpoints/solved-checkpoint.ipynb", [START])
    # The slow ones first, so that no one waits for them at the end.
    slow = [folder / f"{name}.ipynb" for name in ("will_not_stop", "loops", "loops_in_the_function")]
    paths = grading.notebooks([*map(str, slow), str(folder), str(folder / "gone.ipynb"), str(folder / "empty_folder")])
    temporary = tmp_path_factory.mktemp("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        rows = grading.grade_all(paths, LIMITS, jobs=2)
    assert not kernels(temporary), "a notebook has left a process behind"
    assert not list(temporary.iterdir()), "a notebook has left files behind"
    return {row.learner: row for row in rows}


def marks(row):
    return "".join(command.MARKS[row.verdicts[e][0]] for e in ("01.1", "01.2"))


def test_every_notebook_has_one_row(graded):
    assert set(graded) == {*NOTEBOOKS, *NOT_NOTEBOOKS, "gone", "empty_folder"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_was_solved_counts(graded, name):
    _, wanted, problem = NOTEBOOKS[name]
    row = graded[name]
    assert (marks(row), bool(row.problem)) == (wanted, bool(problem)), row
    assert problem in row.problem and "\n" not in row.problem, row.problem
    assert row.verdicts["01.3"][0] == row.verdicts["01.4"][0] == "missing"


@pytest.mark.parametrize("name", NOT_NOTEBOOKS)
def test_what_is_no_notebook_has_a_row_that_says_so(graded, name):
    assert NOT_NOTEBOOKS[name][1] in graded[name].problem and graded[name].verdicts == {}


def test_a_missing_notebook_and_an_empty_folder_have_a_row(graded):
    assert graded["gone"].problem == "is not there"
    assert graded["empty_folder"].problem == "is a folder without notebooks"


def test_messages_are_the_checkers(graded):
    status, message = graded["wrong"].verdicts["01.1"]
    assert status == "wrong" and "cast" in message
    first, _, consequence = graded["solved"].verdicts["01.2"][1].partition("\n")
    assert first == "✓ 01.2 correct." and "`quantize_symmetric`" in consequence
    assert "its cell raised SyntaxError" in graded["no_function"].verdicts["01.1"][1]


def test_a_challenge_is_asked_about_like_an_exercise():
    def check(exercise_id, _):
        raise ValueError(f"there is no exercise {exercise_id}")

    def challenge(_, attempt):
        return SimpleNamespace(status="correct", message=f"✓ {attempt}")

    package = SimpleNamespace(check=check, challenge=challenge)
    assert kernel_side.check(package, "01.C", "it") == ("correct", "✓ it")
    assert kernel_side.check(SimpleNamespace(check=check, challenge=check), "01.C", "it")[0] == "missing"
    by_cell, rest = grading.exercises_of([("code", "exercises.challenge('01.C', mine)")], "x.ipynb")
    assert "mine" in by_cell[0]["01.C"] and {"01.1", "01.C"} <= set(rest)


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    command_line = [sys.executable, "-m", "qlearn.exercises", *map(str, arguments)]
    return subprocess.run(
        command_line, capture_output=True, text=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"}
    )


def test_a_real_lesson_with_its_solutions_in_a_table_and_as_json(tmp_path):
    (lesson,) = [path for path in lessons.find() if path.name.startswith("01")]
    notebook = nbformat.read(lesson, as_version=4)
    lessons.with_solutions(notebook, exercises.solution_source)
    for learner in ("ada", "alan"):
        (tmp_path / learner).mkdir()
    nbformat.write(notebook, tmp_path / "ada/01.ipynb")
    write(tmp_path / "alan/01.ipynb", [START, STUB])
    done = run("--json", "--jobs", 2, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ada, alan = found["notebooks"]
    assert [ada["learner"], alan["learner"]] == ["ada/01", "alan/01"]
    assert [ada["solved"], alan["solved"], ada["problem"], alan["problem"]] == [5, 0, "", ""]
    assert [e["status"] for e in alan["exercises"].values()] == ["missing", "not attempted", *["missing"] * 3]
    assert found["solved"] == {f"01.{k}": 1 for k in (1, 2, 3, 4, "C")}


def test_the_table(tmp_path):
    write(tmp_path / "ada.ipynb", [START, FIRST, STUB])
    (tmp_path / "alan.ipynb").write_text("{")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert ["alan", "is", "not", "JSON,", "so", "no", "notebook"] in [line.split() for line in lines]
    assert ["ada", "✓", "·", "–", "–", "–", "1", "of", "5"] in [line.split() for line in lines]
    assert ["solved", "by", "1", "0", "0", "0", "0"] in [line.split() for line in lines]
    assert lines[-1] == command.LEGEND


@pytest.mark.parametrize("arguments", [[], ["--timeout", "0", "x"], ["--timeout", "nan", "x"], ["--jobs", "0", "x"]])
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2 and "usage:" in capsys.readouterr().err


def test_without_ipykernel_it_says_what_to_install(monkeypatch, capsys):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "ipykernel" else find(name))
    assert command.main(["x.ipynb"]) == 1
    assert capsys.readouterr().err == "To run notebooks ipykernel is needed: pip install 'qlearn[lab]'\n"


def test_ctrl_c_leaves_no_kernel(tmp_path):
    write(tmp_path / "ada.ipynb", [START, SLEEP])
    process = subprocess.Popen(
        [sys.executable, "-m", "qlearn.exercises", str(tmp_path)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit SIG_IGN
    )
    while not kernels(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert not kernels(tmp_path) and [path.name for path in tmp_path.iterdir()] == ["ada.ipynb"]
