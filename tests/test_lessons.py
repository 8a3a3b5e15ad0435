"""The lessons keep the house rules, their exercises can be solved, and each rule is able to fail."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import lessons
import links
import lint_lessons
from dev import NBVAL, ROOT, notebook_environment
from lint_lessons import FRAME_RULES, LINK_RULES, RULES, lint

LESSONS = lessons.find()
WIDGET = {lessons.WIDGET_VIEW: {"model_id": "a1", "version_major": 2, "version_minor": 0}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def name(path):
    return path.stem


# --- the lessons themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_lesson_keeps_the_house_rules(path):
    assert lint(json.loads(path.read_text(encoding="utf-8")), path.name, lint_lessons.known_targets()) == []


def test_template_keeps_the_house_rules():
    template = ROOT / "docs/template.ipynb"
    assert lint(json.loads(template.read_text(encoding="utf-8")), template.name, lint_lessons.known_targets()) == []
    notebook = nbformat.read(template, as_version=4)
    assert not links.stamp(notebook, template.name, links.repository(), links.wheel())


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_solutions_pass_in_their_lesson_with_every_cell_run_twice(path):
    notebook = nbformat.read(path, as_version=4)
    if not any(lessons.exercise_of(cell.source) for cell in notebook.cells):
        pytest.skip("no exercises")
    from qlearn import exercises

    ids = lessons.with_solutions(notebook, exercises.solution_source)
    assert len(set(ids)) == len(ids), f"an exercise comes twice: {ids}"
    twice(notebook)
    lessons.run(notebook, path.parent)
    for cell in notebook.cells:
        if exercise := lessons.exercise_of(cell.source):
            said = lessons.text_of(cell)
            assert passed(said), f"the solution of {exercise[0]} is told: {said}"


def twice(notebook):
    """Learners run a cell again: no cell may spoil its own second run, or what comes after."""
    notebook.cells = [copy.deepcopy(cell) for cell in notebook.cells for _ in range(1 + (cell.cell_type == "code"))]


def passed(said):
    """Does a checker's answer say "correct", and neither "incorrect" nor "not correct"?"""
    return re.search(r"(?<!not )\bcorrect\b", said, re.IGNORECASE) is not None


def test_only_correct_counts_as_passed():
    assert passed("Correct: 40 random cases.")
    assert not any(map(passed, ["incorrect", "Not correct yet", "not attempted yet", ""]))


# --- every rule is able to fail --------------------------------------------------------------------------------------


QUIZ = "".join(f"<p><b>{n}.</b> Why?</p><details>So.</details><details>Or so.</details>" for n in range(1, 6))


def good():
    """A lesson, as short as the rules allow, in which nothing is wrong."""
    sentence = "A line through three points."
    picture = new_output(
        "display_data",
        {"image/png": PIXEL, "text/plain": sentence},
        metadata={"image/png": {"alt": sentence}},
    )
    untouched = [new_output("stream", name="stdout", text="01.1: not attempted yet\n")]
    cells = [
        new_markdown_cell(
            "# Title\n\n**What you will be able to do.** Much.\n\n**Needs.** Lesson 00.\n\n*45 minutes.*"
        ),
        new_code_cell("import qlearn\n\nassert qlearn.__version__ == '0.1.0'"),
        new_markdown_cell(
            "## A section\n\nSee [above](#A-section), [the start](00_start_here.ipynb#Go) and `x[0](y)`."
        ),
        new_code_cell("loss = train()", metadata={"tags": ["nbval-ignore-output"]}),
        new_code_cell("assert loss < 1"),
        new_code_cell("draw()", outputs=[picture]),
        new_code_cell("def f(x):\n    ...\n\n\nexercises.check('01.1', f)", outputs=untouched),
        new_markdown_cell("## In the field\n\n## Recap\n\n## Quiz"),
        new_code_cell("exercises.quiz('01')", outputs=[new_output("display_data", {"text/html": QUIZ})]),
        new_markdown_cell("## References"),
    ]
    count = 0
    for cell in cells:
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
    metadata = {"kernelspec": lessons.KERNELSPEC, "language_info": lessons.LANGUAGE}
    notebook = new_notebook(cells=cells, metadata=metadata)
    notebook.nbformat_minor = 5
    return json.loads(nbformat.writes(notebook, split_lines=False))


def problems(notebook):
    targets = {"00_start_here.ipynb": {"Go"}, "../README.md": {"install"}, "01_title.ipynb": set()}
    before = copy.deepcopy(notebook)
    found = lint(notebook, "01_title.ipynb", targets)
    assert notebook == before, "a rule changed the notebook"
    return found


def cell(number, text):
    """A breaker that sets the text of a cell (numbered from 1)."""
    return lambda nb: nb["cells"][number - 1].update(source=text)


def swap(number, old, new):
    """A breaker that replaces a piece of a cell's text."""

    def break_it(nb):
        source = nb["cells"][number - 1]["source"]
        assert old in source, f"{old!r} is not in cell {number}"
        nb["cells"][number - 1]["source"] = source.replace(old, new, 1)

    return break_it


def put(number, **entries):
    """A breaker that sets a cell's entries."""
    return lambda nb: nb["cells"][number - 1].update(entries)


def picture(number, change):
    """A breaker that changes the cell's first output."""
    return lambda nb: change(nb["cells"][number - 1]["outputs"][0])


def stream(kind, text="x\n"):
    return {"output_type": "stream", "name": kind, "text": text}


ERROR = {"output_type": "error", "ename": "KeyError", "evalue": "1", "traceback": []}
LIVE = {"output_type": "display_data", "data": {**WIDGET, "text/plain": "x"}, "metadata": {}}

BROKEN = [
    ("opening", "cell 1 must be markdown", lambda nb: nb["cells"].pop(0)),
    ("opening", "must start with the title", swap(1, "# Title", "Title")),
    ("opening", "What you will be able to do", swap(1, "What you will be able to do", "Aim")),
    ("opening", "'Needs'", swap(1, "Needs", "Before")),
    ("opening", "NN minutes", swap(1, "45 minutes", "a while")),
    ("opening", "only the title", swap(3, "## A", "# A")),
    ("first_code_cell", "must import qlearn", swap(2, "import qlearn", "import numpy")),
    ("first_code_cell", "must assert", swap(2, "assert", "print")),
    ("first_code_cell", "no code", lambda nb: nb.update(cells=[c for c in nb["cells"] if c["cell_type"] != "code"])),
    ("sections", "no section '## Recap'", swap(8, "## Recap", "## Summary")),
    ("sections", "in this order", swap(8, "## In the field\n\n## Recap", "## Recap\n\n## In the field")),
    ("quiz", "and here are 0", cell(9, "exercises.predict('01.a')")),
    ("quiz", "shows 4", picture(9, lambda o: o["data"].update({"text/html": QUIZ.replace("<b>5.</b>", "")}))),
    (
        "quiz",
        "fewer than two choices",
        picture(9, lambda o: o["data"].update({"text/html": QUIZ.replace("<details>", "<p>", 6)})),
    ),
    ("width", "81 characters of code, and 80 fit", cell(5, "assert loss < 1  #" + " " * 63)),
    ("width", "81 characters of code", swap(3, "See ", "```python\n" + "x" * 81 + "\n```\n\nSee ")),
    (
        "width",
        "cell 5 is folded, and its first line of 76 characters is cut off after 75",
        put(5, metadata={"jupyter": {"source_hidden": True}}, source="# " + "x" * 74 + "\nassert loss < 1"),
    ),
    ("valid_format", "not a valid notebook", lambda nb: nb["cells"][1].pop("outputs")),
    ("valid_format", "must be 4.5", lambda nb: (nb.update(nbformat_minor=4), [c.pop("id") for c in nb["cells"]])),
    ("valid_format", "called python3", lambda nb: nb["metadata"]["kernelspec"].update(name="mine")),
    ("valid_format", "exact version", lambda nb: nb["metadata"]["language_info"].update(version="3.11.7")),
    ("no_stored_state", "metadata.widgets", lambda nb: nb["metadata"].update(widgets={})),
    ("no_stored_state", "stores the time", put(5, metadata={"execution": {"iopub.status.busy": "2026"}})),
    ("no_stored_state", "stores the time", put(5, metadata={"ExecuteTime": {"start_time": "2026"}})),
    ("no_stored_state", "live widget", put(5, outputs=[LIVE])),
    ("execution_counts", "empty code cell", cell(5, " ")),
    ("execution_counts", "expected 3", put(5, execution_count=7)),
    ("execution_counts", "expected 3", put(5, execution_count=None)),
    (
        "execution_counts",
        "output with execution count 2",
        put(5, outputs=[{"output_type": "execute_result", "execution_count": 2, "data": {}, "metadata": {}}]),
    ),
    ("no_errors", "stores an error: KeyError", put(5, outputs=[ERROR])),
    ("no_errors", "stores stderr", put(5, outputs=[stream("stderr")])),
    (
        "alt_text",
        "is no sentence",
        picture(6, lambda o: o["data"].update({"text/plain": "<Figure size 640x480 with 1 Axes>"})),
    ),
    ("alt_text", "is no sentence", picture(6, lambda o: o["data"].pop("text/plain"))),
    ("alt_text", "differs from its text/plain", picture(6, lambda o: o["metadata"]["image/png"].update(alt="Other."))),
    ("alt_text", "image without alt", swap(3, "See ", "![](../README.md) ")),
    ("alt_text", "image without alt", swap(3, "See ", '<img src="../README.md"> ')),
    ("no_path_tricks", "uses sys.path", cell(5, "import sys\nsys.path.append('..')\nassert loss < 1")),
    ("no_path_tricks", "uses os.chdir", cell(5, "os.chdir('..')\nassert loss < 1")),
    ("no_path_tricks", "uses %cd", cell(5, "%cd ..\nassert loss < 1")),
    ("no_path_tricks", "installs something", cell(5, "%pip install numpy\nassert loss < 1")),
    ("no_path_tricks", "installs something", cell(5, "run([sys.executable, '-m', 'pip', 'install'])\nassert loss < 1")),
    ("markers", "as a tag of the cell", cell(4, "# NBVAL_IGNORE_OUTPUT\nloss = train()")),
    ("markers", "as a tag of the cell", cell(4, "# NBVAL_SKIP\nloss = train()")),
    ("markers", "leaves the cell unchecked", put(4, metadata={"tags": ["nbval-skip"]})),
    ("markers", "leaves the cell unchecked", put(4, metadata={"tags": ["raises-exception"]})),
    ("ignored_is_asserted", "must assert something", cell(5, "print(loss)")),
    ("ignored_is_asserted", "must assert something", put(5, metadata={"tags": ["nbval-ignore-output"]})),
    ("ignored_is_asserted", "must assert something", lambda nb: nb.update(cells=nb["cells"][:4])),
    ("exercises", "last line must be", swap(7, "exercises.check('01.1', f)", "exercises.check('01.1', f)\nprint(1)")),
    ("exercises", "does not define", swap(7, "def f", "def g")),
    ("exercises", "has no '...'", swap(7, "...", "return x")),
    ("exercises", "not stored as 'not attempted'", put(7, outputs=[stream("stdout", "01.1: correct\n")])),
    ("links", "links to 03_none.ipynb", swap(3, "(00_start_here.ipynb#Go)", "(03_none.ipynb)")),
    ("links", "links to #Gone", swap(3, "#Go)", "#Gone)")),
    ("links", "links to #below", swap(3, "#A-section", "#below")),
    ("links", "links to ../none.py", swap(3, "See ", '<a href="../none.py">it</a> ')),
    ("links", "not attached", swap(3, "See ", "![a thing](attachment:a.png) ")),
    ("links", "lesson that is not there", swap(3, "#A-section", "https://github.com/x/qlearn/blob/main/09_llm.ipynb")),
    ("named_lessons", "names lesson 07", swap(3, "See ", "Lesson 07 shows it. ")),
    ("named_lessons", "names lesson 09", swap(3, "See ", "Lessons 00, 01 and 09 show it. ")),
]


def test_a_good_lesson_has_no_problems():
    assert problems(good()) == []


@pytest.mark.parametrize("rule, expected, break_it", BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_rule_fires(rule, expected, break_it):
    notebook = good()
    break_it(notebook)
    found = problems(notebook)
    assert any(expected in problem for problem in found), found


def test_every_rule_is_shown_to_fire():
    rules = {rule.__name__ for rule in (*FRAME_RULES, *RULES, *LINK_RULES)}
    assert rules == {rule for rule, _, _ in BROKEN}


def test_the_glossary_needs_no_frame_and_everything_else():
    notebook = good()
    swap(1, "Needs", "Before")(notebook)
    assert lint(notebook, "glossary.ipynb", {"00_start_here.ipynb": {"Go"}}) == []
    notebook["metadata"]["widgets"] = {}
    assert lint(notebook, "glossary.ipynb", {"00_start_here.ipynb": {"Go"}}) != []


def test_a_lesson_outside_the_guide_is_only_advised():
    advice = lint_lessons.advice(good(), "01_title.ipynb")
    assert [line.split(",")[0] for line in advice] == [
        "10 cells",
        f"{advice[1].split()[0]} words",
        f"{advice[2].split()[0]} lines of visible code",
        "1 exercises",
        "no explorer",
    ]
    assert lint_lessons.advice(good(), "00_start_here.ipynb") == []


# --- exercises -------------------------------------------------------------------------------------------------------


def test_solution_takes_the_stubs_place_and_nothing_else():
    source = 'import numpy as np\n\n@once\ndef f(x):\n    ...\n\n\nexercises.check("01.2", f)'
    solution = "def f(x):\n    return np.abs(x)\n"
    assert lessons.with_solution(source, solution) == (
        'import numpy as np\n\ndef f(x):\n    return np.abs(x)\n\n\nexercises.check("01.2", f)'
    )


@pytest.mark.parametrize(
    "source, solution, message",
    [
        ("def g(x):\n    ...\nexercises.check('01.2', f)", "def f(x): pass", "its cell defines no f"),
        ("def f(x):\n    ...\nexercises.check('01.2', f)", "def g(x): pass", "defines no f"),
    ],
)
def test_solution_that_does_not_fit_is_refused(source, solution, message):
    with pytest.raises(ValueError, match=message):
        lessons.with_solution(source, solution)


def test_only_a_checker_on_the_last_line_makes_an_exercise():
    assert lessons.exercise_of("def f(): ...\nexercises.check('01.2', f)\n") == ("01.2", "f")
    assert lessons.exercise_of("exercises.check('01.2', f)\nprint(1)") is None
    assert lessons.exercise_of("") is None


# --- running and storing ---------------------------------------------------------------------------------------------

EXPLORER = f"""\
PIXEL = {PIXEL!r}
import base64
import ipywidgets

class Explorer:  # as the package's explorers do it: the live widget, and beside it a picture and a sentence
    def _repr_mimebundle_(self, include=None, exclude=None):
        slider = ipywidgets.IntSlider()
        said = "An error of 0.5 at 8 bits."
        picture = base64.b64decode(PIXEL)
        data = slider._repr_mimebundle_() | dict(zip(["image/png", "text/plain"], [picture, said]))
        return data, dict([("image/png", dict(alt=said))])

Explorer()"""
BAR = """\
import time
from tqdm.auto import tqdm
for _ in tqdm(range(3)):
    print(time.perf_counter())"""
FIGURE = """\
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()"""


def lesson_file(folder, *sources):
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), *map(new_code_cell, sources)])
    for cell in notebook.cells:
        if cell.source == BAR:
            cell.metadata["tags"] = ["nbval-ignore-output"]
    path = folder / "01_title.ipynb"
    nbformat.write(notebook, path)
    return path


def nbval(path, home):
    command = [
        sys.executable,
        *["-m", "pytest", "-q", "-p", "no:cacheprovider", *NBVAL[:4]],
        path.name,
    ]
    env = notebook_environment(home)
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.slow
def test_stored_lesson_passes_nbval_and_a_changed_number_fails(tmp_path):
    path = lesson_file(tmp_path, EXPLORER, BAR, FIGURE, "print(1 / 3)")
    notes, changed = lessons.rerun(path)
    assert changed and notes == []

    notebook = json.loads(path.read_text(encoding="utf-8"))
    explorer, bar, figure, number = notebook["cells"][1:]
    assert set(explorer["outputs"][0]["data"]) == {"image/png", "text/plain"}
    assert [output["output_type"] for output in bar["outputs"]] == ["stream"], "the bar goes, what was printed stays"
    assert "image/png" in figure["outputs"][-1]["data"], "figures are drawn by the notebook's own backend"
    assert [c["execution_count"] for c in notebook["cells"][1:]] == [1, 2, 3, 4]
    assert "widgets" not in notebook["metadata"]

    code, said = nbval(path, tmp_path)
    assert code == 0, said

    number["outputs"][0]["text"] = ["0.3333\n"]
    explorer["outputs"][0]["data"]["text/plain"] = ["An error of 0.6 at 8 bits."]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    code, said = nbval(path, tmp_path)
    assert code == 1 and "2 failed, 2 passed" in said, said


@pytest.mark.slow
def test_a_second_run_changes_no_byte(tmp_path):
    path = lesson_file(tmp_path, EXPLORER, FIGURE, "print(1)", "print(1)")
    lessons.rerun(path)
    first = path.read_bytes()
    assert lessons.rerun(path)[1] is False
    assert path.read_bytes() == first and first.endswith(b"}\n")


def test_a_failing_cell_leaves_the_file_as_it_was(tmp_path):
    path = lesson_file(tmp_path, "x = 1", "x / 0", "x = 2")
    before = path.read_bytes()
    with pytest.raises(lessons.LessonError, match=r"in cell 3 of 4:(?s:.*)ZeroDivisionError"):
        lessons.rerun(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_a_lesson_finds_nothing_stored_by_an_earlier_run(tmp_path):
    touch = "import os, pathlib\nhome = pathlib.Path(os.environ['QLEARN_DATA'])\nprint(home.exists())\nhome.mkdir()"
    path = lesson_file(tmp_path, touch)
    for _ in range(2):
        lessons.rerun(path)
        assert "False" in path.read_text(encoding="utf-8")


def test_cleaning_says_what_it_took_away():
    live = {"output_type": "display_data", "data": {**WIDGET, "text/plain": "IntSlider()"}, "metadata": {}}
    notebook = nbformat.from_dict(good())
    notebook.cells[4].outputs = [nbformat.from_dict(stream("stderr", "a warning\n")), nbformat.from_dict(live)]
    notebook.cells[3].outputs = [nbformat.from_dict(stream("stderr", "100%\n"))]
    notes = lessons.clean(notebook)
    assert notebook.cells[4].outputs == notebook.cells[3].outputs == []
    assert len(notes) == 2 and "'a warning'" in notes[0] and "no picture" in notes[1]
    assert problems(json.loads(nbformat.writes(notebook))) == []


def test_cell_ids_follow_the_text_alone():
    one, two = nbformat.from_dict(good()), nbformat.from_dict(good())
    two.cells.insert(2, new_markdown_cell("new"))
    lessons.clean(one)
    lessons.clean(two)
    assert [c.id for c in one.cells] == [c.id for c in two.cells if c.source != "new"]
    two.cells.append(copy.deepcopy(two.cells[2]))
    lessons.clean(two)
    assert len({c.id for c in two.cells}) == len(two.cells)


def test_lessons_are_found_in_their_order(tmp_path):
    for file in ("02_b.ipynb", "01_a.ipynb", "glossary.ipynb", ".01_a.ipynb.draft", "notes.txt"):
        Path(tmp_path, file).touch()
    assert [p.name for p in lessons.find(tmp_path)] == ["01_a.ipynb", "02_b.ipynb", "glossary.ipynb"]


# --- where lessons are opened ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", links.numbered(), ids=name)
def test_lesson_bears_the_stamp_of_make_links(path):
    notebook = nbformat.read(path, as_version=4)
    assert not links.stamp(notebook, path.name, links.repository(), links.wheel())


@pytest.mark.parametrize("earlier", ["", "\n\n*In Colab:* `make wheel` builds it.", "\n\n[Open in Colab](https://x/y)"])
def test_a_stamp_replaces_the_one_before(earlier):
    text = "# 01 A lesson\n\n*5 minutes*"
    code = new_code_cell("import numpy as np\n\nimport qlearn\nfrom qlearn import plots")
    notebook = new_notebook(cells=[new_markdown_cell(text + earlier), code])
    opening, first = notebook.cells

    assert links.stamp(notebook, "01_a.ipynb", "", "qlearn-1.0-py3-none-any.whl")
    assert "%pip install --quiet qlearn-1.0-py3-none-any.whl\n" in first.source
    before, _, folded = opening.source.rpartition("\n\n")
    assert before == text
    assert folded.startswith("<details><summary>In Colab</summary>") and folded.endswith("</details>")
    assert "dist/qlearn-1.0-py3-none-any.whl" in folded and "dist/lessons/" in folded and "href" not in folded

    address = "https://github.com/someone/qlearn"
    assert links.stamp(notebook, "01_a.ipynb", address, "unused.whl")
    before, _, folded = opening.source.rpartition("\n\n")
    assert before == text and "\n" not in folded
    page = "https://colab.research.google.com/github/someone/qlearn/blob/main/notebooks/01_a.ipynb"
    assert f'<a href="{page}">' in folded and "Clear all outputs" in folded
    assert first.source.count("import qlearn\n") == 2
    assert "    %pip install --quiet git+https://github.com/someone/qlearn\n" in first.source
    assert not links.stamp(notebook, "01_a.ipynb", address, "unused.whl")


# --- no network ------------------------------------------------------------------------------------------------------


def test_a_lesson_that_asks_for_the_network_is_stopped(tmp_path):
    asks = new_notebook(cells=[new_code_cell("import urllib.request\nurllib.request.urlopen('http://192.0.2.1/')")])
    with pytest.raises(lessons.LessonError, match="must run without a network, and this one asks for 192.0.2.1"):
        lessons.run(asks, tmp_path)


# --- faults ----------------------------------------------------------------------------------------------------------


def steps_done(message):
    """Where the progress bar stands, if the message moves it."""
    value = message["content"].get("data", {}).get("state", {}).get("value", 0)
    return value if isinstance(value, (int, float)) else 0


@pytest.mark.slow
def test_a_kernel_that_was_interrupted_and_restarted_runs_the_lesson(tmp_path):
    """Interrupted in the middle of a training; then begun anew, with all that the first run has left on disk."""
    (path,) = [path for path in LESSONS if path.name.startswith("05")]
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    training = next(number for number, source in enumerate(cells) if "nn.train(" in source)
    long = 600  # seconds: what takes longer hangs, however busy the machine is
    manager, client = start_new_kernel(long, "python3", env=notebook_environment(tmp_path), cwd=str(tmp_path))
    try:
        for source in cells[:training]:
            assert client.execute_interactive(source, timeout=long, output_hook=str)["content"]["status"] == "ok"
        asked = client.execute(cells[training], stop_on_error=False)  # what is asked next is not dropped
        while steps_done(client.get_iopub_msg(timeout=long)) < 100:
            pass
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=long)
        assert reply["parent_header"]["msg_id"] == asked
        assert reply["content"].get("ename") == "KeyboardInterrupt"
        assert client.execute_interactive("assert not model.training", output_hook=str)["content"]["status"] == "ok"

        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=long)
        for source in cells:
            answer = client.execute_interactive(source, timeout=long, output_hook=str)["content"]
            assert answer["status"] == "ok", f"{answer.get('evalue')} in:\n{source}"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
