"""A training in the background of a real JupyterLab: its curve grows, controls and cells work meanwhile, it can be stopped."""

import time

import pytest

import real_lab
from explorer_page import ExplorerPage

NAME = "training.ipynb"
CELLS = (
    "import threading\nfrom qlearn.widgets import explore_qat\nexplorer = explore_qat()\nexplorer",
    "print('running', [t.name for t in threading.enumerate()].count('qlearn training'))",
)


@pytest.fixture(scope="module")
def notebook(lab, page):
    real_lab.write_notebook(lab.folder / NAME, *CELLS)
    page.complaints.clear()
    real_lab.open_notebook(page, lab, NAME)
    real_lab.run_all(page)
    return page


def run(page, number):
    """Run one cell again; return what it prints."""
    cell = page.locator(".jp-CodeCell").nth(number)
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        "number => /\\d/.test(document.querySelectorAll('.jp-CodeCell')[number].querySelector('.jp-InputPrompt').innerText)",
        arg=number,
    )
    return cell.locator(".jp-OutputArea-output").all_inner_texts()


def until(condition, limit=60):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_a_training_can_be_watched_stopped_and_replaced(notebook):
    explorer = ExplorerPage(notebook)
    train, stop = (explorer.root.get_by_role("button", name=name) for name in ("Train", "Stop"))
    assert train.is_enabled() and stop.is_disabled()

    def step():
        return int(explorer.numbers()["step"].split()[0])

    before = explorer.pixels()
    train.click()
    until(lambda: step() > 0)
    first = step()
    until(lambda: step() > first)
    assert (explorer.pixels() != before).any()
    explorer.control("one value").locator(".noUi-handle").focus()
    notebook.keyboard.press("ArrowLeft")
    until(lambda: explorer.readout("one value") == 0.59)  # the control answers while it trains
    assert run(notebook, 1) == ["running 1\n"]  # and so does a cell
    assert stop.is_enabled()
    stop.click()
    until(train.is_enabled)
    stopped = step()
    time.sleep(0.5)
    assert step() == stopped < 430
    assert run(notebook, 1) == ["running 0\n"]

    train.click()
    until(lambda: step() > 0)
    run(notebook, 0)  # the same cell once more: its training ends
    until(lambda: run(notebook, 1) == ["running 0\n"])
    assert real_lab.error_outputs(notebook) == [] and notebook.complaints == []
