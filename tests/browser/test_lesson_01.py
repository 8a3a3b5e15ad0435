"""Lesson 01's explorer in a real JupyterLab: what the page shows is what the kernel has."""

import json
from importlib.metadata import version

import nbformat
import numpy as np
import pytest

import real_lab
from explorer_page import ExplorerPage

LESSON = real_lab.ROOT / "notebooks/01_quantization_from_scratch.ipynb"

# What the kernel has, by the plain way: every value through quantize and dequantize. And where in the picture
# a bar must end for its count, from the axes themselves.
STATE = """
import json as _json, numpy as _np, qlearn as _q
def _state(e):
    v, axes = e.values, e.figure.axes[0]
    x = _np.concatenate([e.data.base.values, e.data.outliers(v["outliers"], v["size"])])
    p = _q.choose_qparams(x.min(), x.max(), bits=v["bits"], symmetric=v["symmetric"])
    codes = _q.quantize(x, p)
    x_hat = _q.dequantize(codes, p)
    count = _np.bincount(codes.astype(int) - p.quant_min, minlength=p.quant_max - p.quant_min + 1)
    ticks = _q.dequantize(_np.arange(p.quant_min, p.quant_max + 1), p)
    bins = _np.histogram(x.astype(float), e.bins.edges)[0]
    place = lambda u, n: axes.transData.transform(_np.column_stack([u, _np.log10(_np.maximum(n, 0.5))])).tolist()
    return {"values": v, "height": e.figure.bbox.height, "foot": place([0], [0])[0][1],
            "counts": count.tolist(), "bars": place(e.bins.place(ticks), count),
            "bins": place((e.bins.places[1:] + e.bins.places[:-1]) / 2, bins),
            "numbers": {"scale": float(p.scale), "zero point": int(p.zero_point), "MSE": _q.errors.mse(x, x_hat),
                        "SQNR": _q.errors.sqnr_db(x, x_hat), "codes used": int((count > 0).sum()),
                        "largest error": float(abs(x.astype(float) - x_hat).max())}}
print("STATE" + _json.dumps(_state(explorer)))
"""


@pytest.fixture(scope="module")
def lesson(lab, page):
    """The lesson, run from top to bottom, with one cell more that tells what the kernel has."""
    notebook = nbformat.read(LESSON, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(STATE))
    nbformat.write(notebook, lab.folder / LESSON.name)
    page.complaints.clear()
    real_lab.open_notebook(page, lab, LESSON.name)
    real_lab.run_all(page)
    return ExplorerPage(page)


def test_lesson_runs_without_errors(lesson):
    assert real_lab.error_outputs(lesson.page) == []
    assert lesson.page.complaints == []


def test_page_agrees_with_kernel_at_first(lesson):
    agrees(lesson)


@pytest.mark.parametrize(
    ("label", "name", "fractions"),
    [
        ("bits", "bits", (0.5, 0.4, 0.3)),
        ("outliers", "outliers", (0.1, 0.3, 0.5)),
        ("outlier size", "size", (0.3, 0.5, 0.6)),
    ],
)
def test_drag(lesson, label, name, fractions):
    before = lesson.looks()
    lesson.drag(label, fractions)
    moved(before, lesson.looks())
    assert agrees(lesson)["values"][name] == lesson.readout(label)


@pytest.mark.parametrize(("label", "name"), [("bits", "bits"), ("outliers", "outliers"), ("outlier size", "size")])
def test_keyboard(lesson, label, name):
    before, at = lesson.looks(), lesson.readout(label)
    lesson.press(label, "ArrowRight", times=2)
    moved(before, lesson.looks())
    assert agrees(lesson)["values"][name] == lesson.readout(label) == at + 2


def test_scheme_and_reset(lesson):
    before = lesson.looks()
    lesson.choose("scheme", "symmetric")
    moved(before, lesson.looks())
    assert lesson.numbers()["zero point"] == "0"
    assert agrees(lesson)["values"]["symmetric"] is True
    lesson.root.get_by_role("button", name="Reset").click()
    lesson.settle()
    assert agrees(lesson)["values"]["symmetric"] is False


def test_nothing_went_wrong_on_the_way(lesson):
    assert real_lab.error_outputs(lesson.page) == []
    assert lesson.page.complaints == []


def test_moving_a_slider_leaves_a_running_cells_figure_alone(lab, page):
    """Matplotlib's inline backend closes all figures after each message from a slider.

    Kernels before ipykernel 7 hear of a slider when the cell has ended, and there the trap does not exist.
    """
    plotting = """
import matplotlib.pyplot as plt, pathlib, time
if moves := len(seen):
    figure = plt.figure(); plt.plot([1, 2, 3])
    pathlib.Path("plotting").touch()
    while not pathlib.Path("moved").exists(): time.sleep(0.01)
    print("slider moved:", len(seen) > moves, "same figure:", plt.fignum_exists(figure.number) and plt.gcf() is figure)
"""
    watched = "seen = []; explorer._inputs['bits'].observe(seen.append, 'value'); explorer"
    first = f"import qlearn.widgets\nexplorer = qlearn.widgets.explore_affine(); {watched}"
    real_lab.write_notebook(lab.folder / "figures.ipynb", first, plotting)
    page.complaints.clear()
    real_lab.open_notebook(page, lab, "figures.ipynb")
    real_lab.run_all(page)
    explorer = ExplorerPage(page)
    explorer.press("bits", "ArrowRight")  # the first move of a session waits for the running cell, the others do not

    in_the_middle = int(version("ipykernel").partition(".")[0]) >= 7
    real_lab.start_cell(page, 1)
    real_lab.until("the cell is plotting", (lab.folder / "plotting").exists)
    explorer.press("bits", "ArrowRight", times=3, settle=in_the_middle)
    (lab.folder / "moved").touch()
    real_lab.finished(page, "the plotting cell has ended")
    real_lab.at_rest(page)
    said = real_lab.printed(page, 1)
    assert f"slider moved: {in_the_middle} same figure: True" in said, said
    assert page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea img").count() == 1
    assert page.complaints == []


def moved(before, after):
    assert after[0] != before[0], "the numbers did not change"
    assert after[1] != before[1], "the picture did not change"


def agrees(lesson):
    """Table and picture show what the kernel has, and every bar has the height of its count."""
    state = kernel_state(lesson.page)
    shown = lesson.numbers()
    for label, number in state["numbers"].items():
        digits = float(shown[label].split()[0].replace("−", "-"))
        assert digits == pytest.approx(number, rel=0.0051), (label, shown[label], number)

    pixels, height = lesson.pixels().astype(int), state["height"]
    assert pixels.shape[0] == height
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    orange = (red > 200) & (green < 225) & (blue < 190)  # the bars of x̂, with their hatch
    line = (blue - red > 120) & (red < 90)  # the outline of x
    foot = round(height - state["foot"])

    clear = [
        i for i, (n, (x, _)) in enumerate(zip(state["counts"], state["bars"], strict=True)) if n and alone(state, i)
    ]
    assert clear, "no bar stands alone, so none can be measured"
    for i in clear:
        x, y = state["bars"][i]
        column = orange[: foot - 2, int(x) - 1 : int(x) + 2].any(axis=1)
        assert abs(np.flatnonzero(column).min() - (height - y)) <= 2, f"bar of code {i}: {state['counts'][i]} values"

    covered = {int(x) + d for x, _ in state["bars"] for d in range(-5, 6)}
    free = [(x, y) for x, y in state["bins"] if int(x) not in covered and y > state["foot"] + 1]
    for x, y in free:
        rows = np.flatnonzero(line[: foot + 2, int(x)])
        assert abs(rows.min() - (height - y)) <= 2, f"histogram of x at column {x:.0f}"
    return state


def alone(state, i):
    """No other bar within ten pixels."""
    x, _ = state["bars"][i]
    others = [other for j, (other, _) in enumerate(state["bars"]) if j != i and state["counts"][j]]
    return all(abs(other - x) > 10 for other in others)


def kernel_state(page):
    """Run the last cell again and read what it prints."""
    return json.loads(real_lab.run_cell(page, -1).split("STATE", 1)[1])
