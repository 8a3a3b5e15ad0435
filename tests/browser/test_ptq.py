"""Lesson 05's explorer in a real JupyterLab, where a whole network answers a thousand digits at each move."""

import json

import pytest

import real_lab
from explorer_page import ExplorerPage

NAME = "ptq.ipynb"
CELLS = (
    "import json\nfrom qlearn.widgets import explore_ptq\nexplorer = explore_ptq()\nexplorer",
    "print('STATE' + json.dumps({'values': explorer.values, 'numbers': explorer.numbers}))",
)


@pytest.fixture(scope="module")
def explorer(lab, page):
    real_lab.write_notebook(lab.folder / NAME, *CELLS)
    page.complaints.clear()
    real_lab.open_notebook(page, lab, NAME)
    real_lab.run_all(page)
    return ExplorerPage(page)


def state(page):
    """What the kernel has, as its last cell prints it."""
    return json.loads(real_lab.run_cell(page, 1).split("STATE", 1)[1])


def agree(explorer, kernel):
    """The table shows what the kernel has."""
    shown, numbers = explorer.numbers(), kernel["numbers"]
    assert float(shown["accuracy"].removesuffix(" %")) == pytest.approx(numbers["accuracy_percent"], abs=0.051)
    assert int(shown["became wrong"]) == numbers["became_wrong"]
    assert shown["size"] == f"{numbers['bytes']} bytes"


def test_moved_with_keys_and_choices(explorer, page):
    agree(explorer, state(page))
    explorer.press("weight bits", "ArrowLeft")
    explorer.choose("range", "MSE")
    explorer.choose("network", "CNN")
    explorer.press("activ. bits", "ArrowRight")
    kernel = state(page)
    agree(explorer, kernel)
    assert kernel["values"] == {
        "network": "cnn",
        "weight_bits": 2,
        "activation_bits": "float",
        "granularity": "tensor",
        "method": "mse",
        "layer": 1,
    }


@pytest.mark.parametrize("network", ["MLP", "CNN"])
def test_thirty_quick_moves_end_on_the_last_value(explorer, page, network):
    page.get_by_role("button", name="Reset").click()
    explorer.choose("network", network)
    explorer.drag("weight bits", [(7 * k % 30) / 30 for k in range(30)] + [0.4])
    kernel = state(page)
    agree(explorer, kernel)
    assert kernel["values"]["weight_bits"] == explorer.readout("weight bits")
    # The picture is that of the last value too: moved away and back it looks the same.
    before = explorer.looks()
    explorer.press("weight bits", "ArrowLeft")
    assert explorer.looks() != before
    explorer.press("weight bits", "ArrowRight")
    assert explorer.looks() == before
    assert page.complaints == []
