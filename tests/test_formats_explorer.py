"""The explorer of lesson 08 against ml_dtypes, searches through all levels, and what a learner passes."""

from __future__ import annotations

import base64
import io
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image

from pictures import decoded, picture
from qlearn import errors
from qlearn.widgets import explore_formats
from qlearn.widgets.controls import Slider, rounded
from qlearn.widgets.formats import BLOCKS, KINDS, ROWS, SCALES

THEIRS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e2m1": ml_dtypes.float4_e2m1fn}
SCALE_BITS = {"float32": 32, "float16": 16, "fp8": 8, "floor": 8, "ceil": 8, "rceil": 8, "even": 8}


@pytest.fixture(scope="module")
def explorer():
    return explore_formats()


@pytest.fixture(autouse=True)
def at_the_start(explorer):
    explorer.reset()


# --- the numbers ------------------------------------------------------------------------------------------------------


def scales_of(blocks, largest, significand_bits, rule):
    """The scale of each block, one after the other, in Python's own numbers."""
    found = []
    tensor = max(abs(v) for block in blocks for v in block) / (largest * 448)
    for block in blocks:
        a = max(abs(v) for v in block)
        if rule in ("float32", "float16"):
            scale = float(np.dtype(rule).type(np.float32(a) / np.float32(largest)))
        elif rule == "fp8":
            scale = tensor * max(float(np.float32(a / (largest * tensor)).astype(ml_dtypes.float8_e4m3fn)), 2.0**-9)
        elif rule == "rceil":
            scale = 2.0 ** math.ceil(math.log2(a / largest))
        else:
            power = math.floor(math.log2(a))
            if rule == "ceil":
                power = math.ceil(math.log2(a))
            if rule == "even":
                steps = 2**significand_bits
                power += math.floor(a / 2.0**power * steps + 0.5) >= 2 * steps
            scale = 2.0 ** (power - math.floor(math.log2(largest)))
        found.append(scale)
    return found


OWN = np.random.default_rng(3).laplace(size=(4, 80)).astype(np.float32)


@pytest.fixture(scope="module")
def own():
    return explore_formats(OWN)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("block", [0, 32])
def test_numbers_are_those_of_every_value(own, format, scale, block):
    own.set(format=format, scale=scale, block=block)
    kind, flat = KINDS[format], OWN.reshape(-1)
    blocks = [flat[i : i + (block or 320)] for i in range(0, 320, block or 320)]
    scales = np.array(scales_of(blocks, kind.largest, kind.significand_bits, scale), np.float32).repeat(block or 320)
    scaled = flat / scales
    levels = own._every("own", scale)[format, block].levels
    if format in THEIRS:
        x_hat = np.clip(scaled, -kind.largest, kind.largest).astype(THEIRS[format]).astype(np.float32) * scales
    else:
        x_hat = levels[np.abs(scaled[:, None].astype(np.float64) - levels).argmin(1)].astype(np.float32) * scales
    numbers = own.numbers
    assert numbers["mse"] == pytest.approx(errors.mse(flat, x_hat), rel=1e-6)
    assert numbers["sqnr_db"] == pytest.approx(errors.sqnr_db(flat, x_hat), rel=1e-6)
    assert numbers["largest_error"] == pytest.approx(np.abs(flat - x_hat).max(), rel=1e-5)
    if format != "kmeans":  # its outer levels are means: values lie beyond them by design
        assert numbers["clipped_percent"] == pytest.approx(100 * np.mean(np.abs(scaled) > levels[-1] * (1 + 1e-6)))
    assert numbers["scales"] == len(blocks)
    stored_once = 32 * (scale == "fp8") + 16 * 32 * (format == "kmeans")
    assert numbers["bits_per_value"] == pytest.approx(kind.bits + (SCALE_BITS[scale] * len(blocks) + stored_once) / 320)


def test_a_last_block_that_is_not_full_counts_only_its_values():
    x = np.random.default_rng(0).normal(size=50).astype(np.float32)
    explorer = explore_formats(x, format="nf4", block=16, scale="float32")
    assert explorer.numbers["scales"] == 4
    alone = [
        explore_formats(x[i : i + 16], format="nf4", block=0, scale="float32").numbers["mse"] for i in (0, 16, 32, 48)
    ]
    assert explorer.numbers["mse"] == pytest.approx(np.dot(alone, [16, 16, 16, 2]) / 50, rel=1e-6)


def test_curves_hold_every_block_size(explorer):
    for name, points in explorer.result["curves"].items():
        explorer.set(format=name)
        for block, point in zip(BLOCKS.values(), points, strict=True):
            explorer.set(block=block)
            assert point == (explorer.numbers["bits_per_value"], explorer.numbers["sqnr_db"])


# --- one value --------------------------------------------------------------------------------------------------------


def shown_bits(explorer):
    """What stands in the cells, row by row."""
    rows = [[""] * row.bits for row in ROWS]
    for digit, line in zip("01", explorer._bits._digits, strict=True):
        for x, y in zip(*line.get_data(), strict=True):
            rows[int(y)][int(x)] = digit
    return {row.name: "".join(cells) for row, cells in zip(ROWS, rows, strict=True)}


@pytest.mark.parametrize("value", [0, 37, 100])
def test_the_bits_are_those_of_the_value(explorer, value):
    explorer.set(value=value, scale="float32", block=64)
    x, bits = explorer.result["x"], shown_bits(explorer)
    assert bits["float32"] == f"{np.float32(x).view(np.uint32):032b}"
    assert bits["bfloat16"] == f"{np.array(x, ml_dtypes.bfloat16).view(np.uint16):016b}"
    for name, dtype in THEIRS.items():
        picked = explorer.result["picked"][name]
        scale = picked.x_hat / picked.level
        code = np.array(x / scale, np.float32).astype(dtype)
        assert int(bits[KINDS[name].name], 2) == int(code.view(np.uint8))
        assert picked.level == float(code)
    for name in ("int8", "int4"):
        level = explorer.result["picked"][name].level
        assert int(bits[name], 2) == int(level) % 2 ** KINDS[name].bits and level == round(level)


def test_beside_the_bits_stands_what_they_mean(explorer):
    """Letter by letter: each is a marker, from left to right without a gap."""
    explorer.set(value=0, format="int8")
    rows = {row: [] for row in range(len(ROWS))}
    for letter, line in explorer._bits._letters.items():
        for x, row in zip(*line.get_data(), strict=True):
            rows[int(row)].append((x, letter))
    written = ["".join(letter for _, letter in sorted(letters)) for letters in rows.values()]
    assert written[2:] == [rounded(explorer.result["picked"][name].x_hat) for name in KINDS]
    assert written[0] == rounded(explorer.result["x"]) and written[0].startswith("−")
    for row, letters in zip(ROWS, rows.values(), strict=True):
        places = [x for x, _ in sorted(letters)]
        assert row.bits < places[0] < row.bits + 1.2 and max(np.diff(places), default=0) < 0.6


def test_one_value_step_by_step(explorer):
    assert explorer.explain(explorer.result) == [
        "x = 1.3, scale of its block = 0.5",
        "x / scale = 2.6",
        "nearest level 3, stored as 0 10 1",
        "3 · 0.5 = 1.5",
        "error −0.202",
    ]


# --- the controls -----------------------------------------------------------------------------------------------------


def ends_of(control):
    return [control.lo, control.hi] if isinstance(control, Slider) else list(control.options.values())


def test_every_setting_of_every_control(explorer):
    for name, control in explorer.controls.items():
        for end in ends_of(control):
            explorer._inputs[name].value = end
            assert explorer._message.value == "" and explorer.values[name] == end
            assert "nan" not in explorer._table.value and "not a number" not in explorer._table.value
        explorer.reset()


def test_every_control_changes_the_picture_and_reset_changes_it_back(explorer):
    before = explorer._picture.value
    for name, control in explorer.controls.items():
        explorer.set(**{name: ends_of(control)[-2 if name == "data" else 0]})
        assert (picture(explorer) != decoded(before)).any(), name
        explorer.reset()
        assert explorer._picture.value == before


def test_blitted_picture_is_the_drawn_one(explorer):
    explorer.set(data="laplace", format="e4m3", block=64, scale="fp8", value=3)
    blitted = picture(explorer)
    explorer._canvas.draw()
    drawn = np.asarray(explorer._canvas.buffer_rgba())[..., :3]
    assert (abs(blitted.astype(int) - drawn) > 40).any(-1).mean() < 0.004


def test_bundle_for_every_reader(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == str(explorer) == str(explore_formats())
    assert str(explorer).startswith(
        "Formats (data normal, format FP4 E2M1, block 32, scale power of two: floor, one value 90): levels used 15 of 15, "
        "bits per value 4.25, scales 1024,"
    )
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size[0] == 1600


# --- what a learner passes --------------------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(1).normal(scale=0.02, size=(4, 3, 5))


@pytest.mark.parametrize(
    "x",
    [
        WEIGHTS,
        WEIGHTS.astype(np.float16),
        torch.tensor(WEIGHTS, requires_grad=True),
        torch.tensor(WEIGHTS).to(torch.bfloat16),
        torch.arange(-3, 20, dtype=torch.int8),
        [1, 2, 3],
        0.5,
        np.zeros(7),
        np.full(9, -2.5),
        np.append(WEIGHTS, 1e6),
        1e-30 * WEIGHTS,
        1e30 * WEIGHTS,
        np.array([-3e38, 3e38], np.float32),
    ],
    ids=str,
)
def test_any_real_numbers(x):
    explorer = explore_formats(x)
    for scale in SCALES:
        for format in KINDS:
            explorer.set(scale=scale, format=format, block=16, value=100)
            assert "nan" not in str(explorer) and explorer._message.value == ""
            assert math.isfinite(explorer.numbers["mse"])


def test_of_a_large_tensor_blocks_from_all_over_are_taken():
    x = np.arange(10**6, dtype=np.float32)
    explorer = explore_formats(x)
    values = explorer.result["values"].x
    assert len(values) == 65_536
    assert values[0] == 0 and values[-1] > 999_000 and (np.diff(values.reshape(-1, 256)) == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explore_formats(np.array([])), "x is empty"),
        (lambda: explore_formats([1.0, float("nan")]), "x holds 1 value that is not finite"),
        (lambda: explore_formats(format="fp4"), "format='fp4' must be one of 'int8'"),
        (lambda: explore_formats(block=48), "block=48 must be one of 0"),
        (lambda: explore_formats(scale="up"), "scale='up' must be one of 'float32'"),
        (lambda: explore_formats(value=101), "value=101 must be a whole number from 0 to 100"),
        (lambda: explore_formats([1.0], data="normal").set(data="normal"), "There is no control 'data'"),
    ],
)
def test_what_cannot_be_explored(call, message):
    with pytest.raises(ValueError, match=message):
        call()
