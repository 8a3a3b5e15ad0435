"""The lessons in the browser: the same results as stored, and lesson 01 in a real Chromium without a network.

They need Pyodide's wheels, in the folder that PYODIDE names, and Node.js.
"""

import base64
import concurrent.futures
import json
import os
import shutil
import struct
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from operator import ne

import nbformat
import numpy as np
import pytest
from test_lesson_01 import STATE, agrees

import lite
import real_lab
from explorer_page import ExplorerPage

WHEELS, NODE = os.environ.get("PYODIDE"), shutil.which("node")
if not (WHEELS and NODE):
    missing = "Node.js" if WHEELS else "a folder with Pyodide's wheels, named by PYODIDE"
    pytest.skip(f"the lessons in the browser need {missing}", allow_module_level=True)

PATIENCE = 600  # seconds for a lesson under Node, which takes 20 on a quiet machine: a kernel that hangs says nothing
FIRST_VISIT = 35_000_000  # bytes that lesson 01 may load

# Every exercise of a lesson with its solution, and how long the slowest took; every challenge with its reference.
SOLVED = """
import time
from qlearn import exercises
from qlearn.exercises.shelf import _CHALLENGES, _EXERCISES
slowest = 0
for id, each in (_EXERCISES | _CHALLENGES).items():
    if id.startswith("{lesson}"):
        start = time.perf_counter()
        judge = exercises.check if id in _EXERCISES else exercises.challenge
        print(id, judge(id, each.solution).status)
        slowest = max(slowest, time.perf_counter() - start)
import sys
print(f"{{slowest:.1f}} s", file=sys.stderr)
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "lite"
    assert [name[:2] for name in lite.build(folder)] == list(lite.LESSONS)
    return folder


# --- under Node ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def under_node(site, tmp_path_factory):
    """{lesson: what will have come of its cells}; two lessons run at a time, from the first question on."""
    folder = tmp_path_factory.mktemp("node")

    def run(lesson):
        (path,) = lite.copies.LESSONS.glob(f"{lesson}_*.ipynb")
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell(SOLVED.format(lesson=lesson)))
        nbformat.write(notebook, folder / path.name)
        command = [NODE, lite.ROOT / "tools/lite_node.mjs", site / "static/pyodide", folder / path.name]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr[-2000:]
        return notebook, [json.loads(line) for line in result.stdout.splitlines()][1:]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {lesson: pool.submit(run, lesson) for lesson in lite.LESSONS}


@pytest.mark.parametrize("lesson", lite.LESSONS)
def test_a_lesson_gives_what_is_stored(under_node, lesson, capsys):
    notebook, found = under_node[lesson].result()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(found) == len(cells)
    assert [(cell["index"], cell["error"]) for cell in found if cell["error"]] == []
    for cell, now in zip(cells[:-1], found[:-1], strict=True):
        assert now["stderr"] == "", cell.source
        if "nbval-ignore-output" not in cell.metadata.get("tags", []) and "NBVAL_IGNORE_OUTPUT" not in cell.source:
            printed, shown, pictures = stored(cell)
            assert (printed, shown) == (now["stdout"], [text for text in now["shown"] if text]), cell.source
            # An older Matplotlib makes some pictures a pixel higher.
            np.testing.assert_allclose(list(map(size, now["pictures"])), list(map(size, pictures)), rtol=0, atol=2)
    solved = found[-1]["stdout"].splitlines()
    assert solved and all(line.endswith(("correct", "passed")) for line in solved), solved
    with capsys.disabled():
        seconds = sum(cell["seconds"] for cell in found[:-1])
        print(f"\nlesson {lesson}: {seconds:.0f} s under Node, the slowest exercise {found[-1]['stderr'].strip()}")


def stored(cell):
    """What a lesson's file has of a cell: what it printed, what it showed as text, the heads of its pictures."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    data = [output.data for output in cell.outputs if "data" in output]
    pictures = [bundle["image/png"][:32] for bundle in data if "image/png" in bundle]
    return printed, [text for bundle in data if (text := bundle.get("text/plain"))], pictures


def size(head):
    """Width and height of a PNG, from its first 24 bytes. Raises an error if this is none."""
    content = base64.b64decode(head)
    assert content.startswith(b"\x89PNG"), head
    return struct.unpack(">II", content[16:])


# --- in Chromium -----------------------------------------------------------------------------------------------------

# The browser asks nobody else: what the page tries is refused, and reported here.
ONLY_HERE = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; report-uri /outside"
NO_NETWORK = "--host-resolver-rules=MAP unsafe.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class Handler(SimpleHTTPRequestHandler):
    """A static host that counts what it gives out, and what pages have asked of others."""

    protocol_version = "HTTP/1.1"

    def end_headers(self):
        self.send_header("Content-Security-Policy", ONLY_HERE)
        super().end_headers()

    def copyfile(self, source, outputfile):
        content = source.read()
        self.server.given_out[self.path] = len(content)
        outputfile.write(content)

    def do_POST(self):
        self.server.outside.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    server.given_out, server.outside = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tab(browser, host):
    with real_lab.browser_page(options=[NO_NETWORK]) as page:
        yield page


def address(host, name, machine="127.0.0.1"):
    return f"http://{machine}:{host.server_port}/lab/index.html?path={name}"


@pytest.fixture(scope="module")
def lesson(host, tab, pytestconfig):
    """Lesson 01, run from top to bottom."""
    tab.goto(address(host, LESSON))
    tab.locator(".jp-Notebook .jp-Cell").first.wait_for()
    cells_after = since_start(tab)
    real_lab.wait_for(tab, "the kernel is there", real_lab.READY, [LESSON, "light"])
    real_lab.command(tab, "notebook:run-all-cells")
    tab.locator(".qlearn-explorer img").first.wait_for(state="attached")
    explorer_after = since_start(tab)
    assert real_lab.finished(tab, "all cells have run"), real_lab.error_outputs(tab)
    real_lab.at_rest(tab)
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        loaded = sum(host.given_out.values()) / 1e6
        print(f"\ncells visible after {cells_after:.1f} s, the first explorer after {explorer_after:.1f} s")
        print(f"lesson 01 loads {loaded:.1f} MB in {len(host.given_out)} files, before any compression")
    return ExplorerPage(tab)


LESSON = "01_quantization_from_scratch.ipynb"


def since_start(page):
    """Seconds since the page was asked for."""
    return page.evaluate("() => performance.now() / 1000")


def test_lesson_01_runs_without_errors(lesson):
    assert real_lab.error_outputs(lesson.page) == []
    assert lesson.page.complaints == []
    assert lesson.page.locator(".qlearn-says").count() == 0


def test_the_first_visit_is_small(lesson, host):
    assert sum(host.given_out.values()) <= FIRST_VISIT, sorted(host.given_out.items(), key=lambda file: -file[1])[:20]


def test_three_sliders_move_numbers_and_picture_and_both_agree(lesson, capsys):
    real_lab.run_cell(lesson.page, -1, STATE)
    agrees(lesson)
    for label, name, by in (("bits", "bits", -2), ("outliers", "outliers", 2), ("outlier size (std)", "size", 2)):
        before, at = lesson.looks(), lesson.readout(label)
        # This kernel says that it is idle before it has answered.
        lesson.press(label, "ArrowRight" if by > 0 else "ArrowLeft", times=abs(by))
        real_lab.until("numbers and picture are others", lambda b=before: all(map(ne, b, lesson.looks())))
        assert agrees(lesson)["values"][name] == lesson.readout(label) == at + by
    times = sorted(lesson.paint_times("bits", 30))
    with capsys.disabled():
        print(f"\nslider to picture: {times[len(times) // 2]:.0f} ms in the median of {len(times)} moves")


def test_an_exercise_is_judged(lesson):
    stub = 4
    right = "def to_uint8(values):\n    return np.clip(np.rint(values), 0, 255).astype(np.uint8)\n"
    wrong = right.replace("np.clip(np.rint(values), 0, 255)", "np.rint(values).astype(np.int64)")
    ask = '\nexercises.check("01.1", to_uint8)'
    assert "clamp before the cast" in real_lab.run_cell(lesson.page, stub, wrong + ask)
    assert "01.1 correct" in real_lab.run_cell(lesson.page, stub, right + ask)


def test_what_the_learner_writes_is_kept_and_can_be_downloaded(lesson, host):
    page = lesson.page
    real_lab.run_cell(page, 1, "# my own words")
    real_lab.command(page, "docmanager:save")
    real_lab.finished(page, "saved")
    with page.expect_download() as download:
        real_lab.command(page, "docmanager:download")
    assert "my own words" in download.value.path().read_text(encoding="utf-8")
    page.goto(address(host, LESSON))
    page.get_by_text("# my own words").wait_for()


def test_a_second_tab_starts_no_kernel_and_goes_on_when_it_may(lesson, host):
    page = lesson.page
    with page.expect_popup() as popup:
        page.evaluate("address => { window.open(address); }", address(host, LESSON))
    second = popup.value
    second.get_by_text("One lesson at a time: another tab has a lesson open").wait_for()
    page.goto("about:blank")
    second.locator(".jp-Notebook .jp-Cell").first.wait_for()
    second.close()


OPEN = "path => { window.jupyterapp.commands.execute('docmanager:open', {path}); }"


def test_a_text_needs_no_kernel_and_a_second_lesson_takes_the_first_ones(lesson, host):
    page = lesson.page
    page.goto(address(host, LESSON))
    real_lab.wait_for(page, "the kernel is there", real_lab.READY, [LESSON, "light"])
    for name, words in (
        ("glossary.md", "accumulator"),
        ("05_post_training_quantization.md", "does not run in a browser"),
    ):
        page.evaluate(OPEN, name)
        page.locator(".jp-MarkdownViewer").get_by_text(words).first.wait_for()
    assert kernels(page) == [LESSON]
    second = "03_granularity.ipynb"
    page.evaluate(OPEN, second)
    page.get_by_text(f"the kernel of {LESSON} has been stopped").wait_for()
    real_lab.until("one kernel is left", lambda: kernels(page) == [second])


def kernels(page):
    """The lessons that have one."""
    return page.evaluate("() => [...window.jupyterapp.serviceManager.sessions.running()].map(({path}) => path)")


def test_without_service_workers_a_sentence_says_what_is_missing(host, lesson):
    page = lesson.page
    page.goto(address(host, LESSON, machine="unsafe.test"))  # no https, and not this computer's own address
    page.get_by_text("This browser has no service workers here").wait_for()


def test_nobody_else_was_asked_for_anything(host, lesson):
    assert host.outside == []
    lesson.page.goto(address(host, LESSON))

    def noticed():
        """A browser may lose one report: it is given a new one at each look, as it says nothing twice."""
        lesson.page.evaluate("() => { fetch(`http://elsewhere.test/${performance.now()}`).catch(() => {}); }")
        return host.outside

    assert "elsewhere.test" in real_lab.until("what pages ask of others is noticed", noticed)[0]
