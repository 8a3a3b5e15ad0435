"""What measures and what tries other versions: it says what it finds, and cannot be fooled by what is missing."""

import sys

import pytest

import bench
import bench_explorers
import colab
from bench_rows import Row, against, line, race
from qlearn import widgets

# --- make bench ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "met"), [(8.0, True), (7.9, False)])
def test_a_floor_is_met_or_not(other, met):
    row = against("quantize", 2.0, "textbook", other, 4)
    assert (row.ratio, row.met) == (other / 2, met)
    assert line(row).endswith("yes" if met else "NO")


def test_without_a_floor_nothing_is_met():
    assert against("quantize", 2.0, "textbook", 8.0).met is None
    assert line(Row("memory", 1.0, "MB")).split() == ["memory", "1", "MB"]


def test_a_race_takes_the_shortest_time_of_each():
    clock = [0.0]

    def taking(*seconds):
        later = iter(seconds)
        return lambda: clock.append(clock[-1] + next(later))

    runners = {"quick": taking(9, 0.5, 0.25, 1), "slow": taking(9, 2, 4, 8)}  # the first run of each is not timed
    times = race(3, clock=lambda: clock[-1], **runners)
    assert times == {"quick": 250, "slow": 2000}


def test_an_unknown_part_is_told_so(capsys):
    assert bench.main(["quantise"]) == 2
    assert "There is no part quantise" in capsys.readouterr().out


def test_every_control_is_moved_within_its_limits():
    explorer = widgets.explore_affine(**bench_explorers.START["explore_affine"])
    seen = {name: set() for name in explorer.controls}
    for k in range(100):
        for name, control in explorer._inputs.items():
            bench_explorers.move(control, k)
            seen[name].add(control.value)
    assert min(map(len, seen.values())) >= 2 and len(seen["value"]) >= 10
    assert explorer._message.value == ""


# --- make test-colab -------------------------------------------------------------------------------------------------


def test_each_line_of_colabs_list_is_a_package_and_its_version():
    assert {"numpy", "torch", "torchao", "torchvision"} < set(colab.wanted())
    assert all(version[0].isdigit() for version in colab.wanted().values())


def test_what_the_lessons_fetch_in_colab_is_found():
    assert {"gguf", "onnx", "onnxruntime", "onnxscript"} <= set(colab.lessons_fetch())


@pytest.mark.parametrize(
    ("source", "packages"),
    [
        ("import numpy.linalg", {"numpy"}),
        ("from onnx.reference import ReferenceEvaluator", {"onnx"}),
        ("from qlearn import nn", {"qlearn", "torch"}),
        ("def f():\n    import torch", set()),
    ],
)
def test_what_a_test_file_needs(source, packages):
    assert colab.imported(source) == packages


def test_the_python_that_is_named_is_taken(monkeypatch):
    monkeypatch.setenv("PYTHON_COLAB", sys.executable)
    assert colab.find_python() == sys.executable


def test_a_name_that_is_no_python_is_passed_over(monkeypatch, tmp_path):
    """As pyenv's are, for versions that are switched off."""
    shim = tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\necho command not found >&2\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.delenv("PYTHON_COLAB", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    if sys.version_info[:2] in ((3, 11), (3, 12), (3, 13)):
        assert colab.find_python() == sys.executable
    else:
        with pytest.raises(SystemExit, match="PYTHON_COLAB"):
            colab.find_python()
