"""Explorers in a real JupyterLab: two in one notebook, quick moves, interrupts, errors; and what is left without it."""

import json
import subprocess
import sys

import nbformat
import pytest

import real_lab
from explorer_page import ExplorerPage

NAME = "explorers.ipynb"
SHOW = "print('STATE' + json.dumps([{'values': e.values, 'numbers': e.numbers} for e in (layer, chosen)]))"
CELLS = (
    "import json\nfrom qlearn.widgets import explore_granularity, explore_ranges\nlayer = explore_granularity()\nlayer",
    "chosen = explore_ranges()\nchosen",
    "1 + 1",  # rewritten by the tests
    SHOW,
)
SLOW = """
import pathlib, time
ordinary, wanted = chosen.compute, True
def slow(**values):
    pathlib.Path("slow").touch()
    while wanted:
        time.sleep(0.01)
    return ordinary(**values)
chosen.compute = slow
"""
QUICK = """
wanted = False
chosen.compute = ordinary
"""
FAULT = """
chosen.compute = ordinary
def faulty(**values):
    if values["bits"] == 5:
        raise RuntimeError("five is <not> wanted")
    return ordinary(**values)
chosen.compute = faulty
"""

BOTH = """
import os
from IPython.display import display
display(explore_granularity())
os.environ["JUPYTERHUB_USER"] = "someone"
display(explore_granularity())
del os.environ["JUPYTERHUB_USER"]
"""


@pytest.fixture(scope="module")
def notebook(lab, page):
    real_lab.write_notebook(lab.folder / NAME, *CELLS)
    page.complaints.clear()
    real_lab.open_notebook(page, lab, NAME)
    real_lab.run_all(page)
    return page


@pytest.fixture
def layer(notebook):
    return ExplorerPage(notebook, ".jp-CodeCell:nth-of-type(1) .qlearn-explorer")


@pytest.fixture
def chosen(notebook):
    return ExplorerPage(notebook, ".jp-CodeCell:nth-of-type(2) .qlearn-explorer")


def states(page):
    return json.loads(real_lab.run_cell(page, 3).split("STATE", 1)[1])


def agrees(explorer, state):
    """The table shows what the kernel has."""
    shown = explorer.numbers()
    assert float(shown["MSE"]) == pytest.approx(state["numbers"]["mse"], rel=0.0051)
    assert float(shown["bits per value"]) == pytest.approx(state["numbers"]["bits_per_value"], rel=0.0051)


def test_two_explorers_do_not_disturb_each_other(notebook, layer, chosen):
    still = chosen.looks()
    layer.press("bits", "ArrowRight", times=2)
    assert chosen.looks() == still
    still = layer.looks()
    chosen.choose("method", "MSE")
    assert layer.looks() == still
    first, second = states(notebook)
    assert (first["values"]["bits"], second["values"]["method"]) == (6, "mse")
    agrees(layer, first)
    agrees(chosen, second)


def test_thirty_quick_moves_end_on_the_last_value(notebook, layer, chosen):
    layer.drag("spread", [k / 30 for k in range(30)] + [0.5])
    chosen.drag("outliers", [(7 * k % 30) / 30 for k in range(30)])
    first, second = states(notebook)
    assert first["values"]["spread"] == layer.readout("spread") == 1
    assert second["values"]["outliers"] == chosen.readout("outliers")
    agrees(layer, first)
    agrees(chosen, second)
    # The picture is that of the last value too: moved away and back it looks the same.
    for explorer, label in ((layer, "spread"), (chosen, "outliers")):
        before = explorer.looks()
        explorer.press(label, "ArrowRight")
        assert explorer.looks() != before
        explorer.press(label, "ArrowLeft")
        assert explorer.looks() == before


def test_an_interrupt_leaves_it_usable(notebook, lab, chosen):
    """Kernels before ipykernel 7 end what a slider has set off. Newer ones do that beside the cells, and let it go on."""
    real_lab.run_cell(notebook, 2, SLOW)
    bits = chosen.readout("bits")
    before = chosen.looks()
    chosen.press("bits", "ArrowRight", settle=False)
    real_lab.until("the kernel is computing", (lab.folder / "slow").exists)
    real_lab.command(notebook, "notebook:interrupt-kernel")
    real_lab.finished(notebook, "the kernel has been interrupted")
    real_lab.run_cell(notebook, 2, QUICK)
    chosen.press("bits", "ArrowRight")
    assert chosen.looks() != before
    state = states(notebook)[1]
    assert state["values"]["bits"] == chosen.readout("bits") == bits + 2
    agrees(chosen, state)


def test_an_error_is_a_line_and_the_next_move_works(notebook, chosen):
    real_lab.run_cell(notebook, 2, FAULT)
    while chosen.readout("bits") > 5:
        chosen.press("bits", "ArrowLeft")
    line = chosen.root.locator(".qlearn-error")
    assert "RuntimeError: five is <not> wanted" in line.inner_text()
    chosen.press("bits", "ArrowLeft")
    assert line.count() == 0
    agrees(chosen, states(notebook)[1])


def test_a_picture_from_another_computer_is_the_same(notebook):
    """It comes as bytes and not as an address, because there every byte costs time."""
    real_lab.run_cell(notebook, 2, BOTH)
    roots = ".jp-CodeCell:nth-of-type(3) .jp-OutputArea-child:nth-child({}) .qlearn-explorer"
    here, there = (ExplorerPage(notebook, roots.format(k)) for k in (1, 2))
    for explorer in (here, there):
        explorer.press("bits", "ArrowRight")
    kinds = [explorer.image.get_attribute("src").split(":")[0] for explorer in (here, there)]
    assert kinds == ["data", "blob"]
    assert (here.pixels() == there.pixels()).all()
    real_lab.run_cell(notebook, 2, "1 + 1")


def test_reopened_it_shows_its_picture_and_html_holds_it(notebook, lab, page):
    real_lab.run_cell(page, 2, "chosen.compute = ordinary")
    real_lab.run_cell(page, 0)
    real_lab.run_cell(page, 1)
    real_lab.command(page, "docmanager:save")
    real_lab.finished(page, "the notebook is saved")
    saved = lab.folder / NAME
    assert "image/png" in json.dumps([o["data"] for o in nbformat.read(saved, 4).cells[1].outputs])
    copy = nbformat.read(saved, 4)
    # As it comes from somebody else: not trusted. In a trusted file JupyterLab insists on the widget, and finds none.
    copy.cells[2].source = "2 + 2"
    nbformat.write(copy, lab.folder / "reopened.ipynb")
    assert real_lab.error_outputs(page) == []
    real_lab.open_notebook(page, lab, "reopened.ipynb")
    for index in (0, 1):
        image = page.locator(".jp-CodeCell").nth(index).locator(".jp-OutputArea img").first
        assert real_lab.pixels(image).shape[1] == 1600

    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--log-level", "ERROR", "reopened.ipynb"]
    subprocess.run(command, cwd=lab.folder, check=True, timeout=real_lab.PATIENCE)
    page_source = (lab.folder / "reopened.html").read_text(encoding="utf-8")
    for cell in copy.cells[:2]:
        assert cell.outputs[0]["data"]["image/png"].strip()[:2000] in page_source.replace("\n", "")
