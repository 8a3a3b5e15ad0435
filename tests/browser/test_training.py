"""A training in the background of a real JupyterLab: its curve grows, controls and cells work meanwhile, it can be stopped."""

import pytest

import real_lab
from explorer_page import ExplorerPage

NAME = "training.ipynb"
# The training goes on to the step that the test allows, so that it is under way for as long as the test looks at it.
GATE = """
import threading, time
from qlearn.widgets import explore_qat, qat_runs
allowed, ordinary = 20, qat_runs.training_steps
def training_steps(*args, **kwargs):
    for number, loss in enumerate(ordinary(*args, **kwargs), start=1):
        while number > allowed and not stopping():
            time.sleep(0.01)
        yield loss
def stopping():
    return explorer._run.stopped
qat_runs.training_steps = training_steps
"""
CELLS = (
    GATE,
    "explorer = explore_qat()\nexplorer",
    "print('running', [t.name for t in threading.enumerate()].count('qlearn explorer'))",
    "1 + 1",  # rewritten by the test
)


@pytest.fixture(scope="module")
def notebook(lab, page):
    real_lab.write_notebook(lab.folder / NAME, *CELLS)
    page.complaints.clear()
    real_lab.open_notebook(page, lab, NAME)
    real_lab.run_all(page)
    return page


def test_a_training_can_be_watched_stopped_and_replaced(notebook):
    explorer = ExplorerPage(notebook)
    train, stop = (explorer.root.get_by_role("button", name=name) for name in ("Train", "Stop"))
    assert train.is_enabled() and stop.is_disabled()

    def step():
        return int(explorer.numbers()["step"].split()[0])

    pictures = [explorer.pixels()]
    train.click()
    for number in (20, 40):
        real_lab.run_cell(notebook, 3, f"allowed = {number}")  # cells can be run while it trains
        real_lab.until(f"the table shows step {number}", lambda number=number: step() == number)
        # The picture follows the numbers; and the page may hear of it later than of what it has asked itself.
        real_lab.until("the curve has grown", lambda: (explorer.pixels() != pictures[-1]).any())
        pictures.append(explorer.pixels())
    explorer.press("one value", "ArrowLeft")
    assert explorer.readout("one value") == 0.59  # the control answers while it trains
    real_lab.until("the picture shows that value", lambda: (explorer.pixels() != pictures[-1]).any())
    assert real_lab.run_cell(notebook, 2) == "running 1\n"
    assert stop.is_enabled() and train.is_disabled()
    stop.click()
    real_lab.until("the training is stopped", train.is_enabled)
    explorer.settle()
    stopped = step()
    assert 40 <= stopped < 430
    real_lab.run_cell(notebook, 3, "allowed = 1000")
    assert real_lab.run_cell(notebook, 2) == "running 0\n"
    assert step() == stopped

    real_lab.run_cell(notebook, 3, "allowed = 20")
    train.click()
    real_lab.until("the next training is under way", lambda: step() == 20)
    real_lab.run_cell(notebook, 1)  # the same cell once more: its training ends
    assert real_lab.run_cell(notebook, 2) == "running 0\n"
    assert real_lab.error_outputs(notebook) == [] and notebook.complaints == []
