"""Blocks of GGUF against llama.cpp's own Python package: byte for byte where it writes, number for number where it reads."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn import gguf_blocks
from qlearn.gguf_blocks import TYPES, pack_q4_0, pack_q4_k, pack_q8_0, unpack_q4_0, unpack_q4_k, unpack_q8_0

FLOAT32 = np.finfo(np.float32)
written = pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
read = pytest.mark.parametrize("name", TYPES)


def theirs(name):
    return GGMLQuantizationType[name]


def bytes_of(name, x):
    """What gguf makes of it; casts of infinity, which it says nothing about, are silenced."""
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, theirs(name))


def rows_of_every_kind():
    """Rows of 96 values: of all sizes that a scale of float16 can hold, with ties, zeros, and ends of either sign."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-8, 5, size=(3000, 1))
    normal = rng.normal(size=(3000, 96)) * sizes
    ties = rng.integers(-16, 17, size=(3000, 96)) / 2 * 2.0 ** rng.integers(-14, 13, size=(3000, 1))
    sparse = normal * (rng.random(normal.shape) < 0.05)
    negative, positive = -np.abs(normal), np.abs(normal)
    return np.concatenate([normal, ties, sparse, negative, positive]).astype(np.float32)


ROWS = rows_of_every_kind()


@written
def test_bytes_equal_those_of_gguf(name):
    ours = TYPES[name].quantize(ROWS)
    assert ours.dtype == np.uint8 and ours.shape == (len(ROWS), 3 * TYPES[name].bytes)
    assert np.count_nonzero(ours != bytes_of(name, ROWS)) == 0


@written
def test_the_data_has_what_rules_differ_on(name):
    """Values exactly half between two codes, and blocks in which the largest magnitude comes with both signs."""
    blocks = ROWS.reshape(-1, 32).astype(np.float64)
    largest = np.abs(blocks).max(1, keepdims=True)
    place = blocks[largest[:, 0] > 0] / largest[largest > 0][:, None] * (127 if name == "Q8_0" else 8)
    assert name == "Q8_0" or np.count_nonzero(np.abs(place - np.floor(place)) == 0.5) > 1000
    assert np.count_nonzero((blocks.max(1) == -blocks.min(1)) & (blocks.max(1) > 0)) > 100
    assert np.count_nonzero(largest == 0) > 10


EDGES = {
    "zeros": np.zeros(32),
    "negative zeros": -np.zeros(32),
    "a scale that float16 keeps as a subnormal": np.linspace(-3e-6, 1e-6, 32),
    "a scale that float16 makes 0": np.linspace(-1e-9, 1e-9, 32),
    "subnormals of float32": np.linspace(-3e-38, 1e-38, 32),
    "the largest is negative": np.linspace(-1, 0.9, 32),
    "the largest is positive": np.linspace(-0.9, 1, 32),
    "the largest with both signs, minus first": np.r_[-1.0, 1.0, np.zeros(30)],
    "the largest with both signs, plus first": np.r_[1.0, -1.0, np.zeros(30)],
    "a lone value": np.r_[np.zeros(31), -7.0],
    "the largest scale of float16": np.r_[np.zeros(31), -65504.0 * 8],
    "just below a tie": np.r_[127.0, np.full(31, np.nextafter(np.float32(0.5), np.float32(0)))],
    "ties of eight bits": np.r_[127.0, np.arange(31) - 15.5],
    "ties of four bits": np.r_[-8.0, (np.arange(31) - 15) / 2],
}


@written
@pytest.mark.parametrize("edge", EDGES)
def test_edges_equal_those_of_gguf(name, edge):
    x = EDGES[edge].astype(np.float32)
    assert TYPES[name].quantize(x).tolist() == bytes_of(name, x).tolist()


any_float32 = st.floats(-5e5, 5e5, width=32, allow_nan=False)


@written
@given(data=st.data())
def test_any_block_equals_that_of_gguf(name, data):
    x = data.draw(hnp.arrays(np.float32, 32, elements=any_float32))
    d = np.abs(x).max() / np.float32(127 if name == "Q8_0" else 8)
    ours, others = TYPES[name].quantize(x), bytes_of(name, x)
    if d > 0 and d < 1 / FLOAT32.max:  # 1 / d is infinite: they cast NaN to whole numbers, and float16 makes d 0
        ours, others = ours[:2], others[:2]
    assert ours.tolist() == others.tolist()


@read
@given(data=st.data())
def test_any_bytes_are_read_as_gguf_reads_them(name, data):
    kind = TYPES[name]
    raw = data.draw(hnp.arrays(np.uint8, (2, kind.bytes)))
    for low in (0, 2) if name == "Q4_K" else (0,):
        raw[:, low + 1] &= 0b10111111  # an exponent that is neither infinite nor NaN
    assert np.array_equal(kind.dequantize(raw), gguf.quants.dequantize(raw, theirs(name)))


@read
def test_many_bytes_are_read_as_gguf_reads_them(name):
    raw = np.random.default_rng(1).integers(0, 256, size=(500, 3 * TYPES[name].bytes), dtype=np.uint8)
    halves = raw.reshape(-1, TYPES[name].bytes)
    halves[:, [1, 3] if name == "Q4_K" else [1]] &= 0b10111111
    assert np.array_equal(TYPES[name].dequantize(raw), gguf.quants.dequantize(raw, theirs(name)))


@read
def test_tensors_give_what_arrays_give(name):
    x = np.random.default_rng(2).normal(size=(2, 3, 512)).astype(np.float32)
    ours, tensor = TYPES[name].quantize(x), TYPES[name].quantize(torch.from_numpy(x))
    assert np.array_equal(tensor.numpy(), ours)
    real = TYPES[name].dequantize(tensor)
    assert real.dtype == torch.float32 and tuple(real.shape) == x.shape
    assert np.array_equal(real.numpy(), TYPES[name].dequantize(ours))


@read
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_other_floats_are_computed_in_float32(name, dtype):
    x = np.random.default_rng(3).normal(size=256).astype(dtype)
    assert np.array_equal(TYPES[name].quantize(x), TYPES[name].quantize(x.astype(np.float32)))


# --- what holds for all three ----------------------------------------------------------------------------------------


@read
@given(data=st.data())
@example(data=None)
def test_finite_data_stay_finite_and_zeros_zero(name, data):
    kind = TYPES[name]
    ends = [0.0, FLOAT32.max, -FLOAT32.max, FLOAT32.smallest_subnormal, -1e-40, 1e6, -1.0]
    x = np.resize(np.float32(ends), kind.values)
    if data is not None:
        x = data.draw(hnp.arrays(np.float32, kind.values, elements=st.sampled_from(ends) | any_float32))
    with np.errstate(all="raise"):
        real = kind.dequantize(kind.quantize(x))
    assert np.isfinite(real).all()
    if name != "Q4_K":  # whose zero is as far from a code as any other number
        assert not real[x == 0].any()


@pytest.mark.parametrize(("name", "ends"), [("Q8_0", (-127, 127)), ("Q4_0", (-8, 7)), ("Q4_K", (-63, 63 * 15))])
def test_what_is_too_large_saturates(name, ends):
    """At float16's largest number times the outermost code, where llama.cpp's scale is infinite."""
    for x, end in zip((-1e30, 1e30), ends, strict=True):
        real = TYPES[name].dequantize(TYPES[name].quantize(np.full(256, x)))
        assert np.abs(real).tolist() == [abs(-8 if name == "Q4_0" else end) * 65504.0] * 256
        assert np.sign(real[0]) == np.sign(x)


@written
@pytest.mark.parametrize("large", [-1e30, 1e30])
def test_beside_what_is_too_large_others_keep_their_size(name, large):
    x = np.r_[large, np.linspace(-4e5, 4e5, 31)]
    assert np.abs(TYPES[name].dequantize(TYPES[name].quantize(x)) - x)[1:].max() < 0.51 * 65520


def test_super_blocks_of_positive_numbers_need_no_minimum():
    x = np.random.default_rng(7).uniform(0.1, 0.9, size=(20, 256))
    codes, d, scale, dmin, minimum = unpack_q4_k(TYPES["Q4_K"].quantize(x))
    assert not dmin.any() and not minimum.any() and (d > 0).all() and scale.max() == 63 and codes.max() == 15


@pytest.mark.parametrize(("name", "step"), [("Q8_0", 1 / 127), ("Q4_0", 1 / 8), ("Q4_K", 2 / 15)])
def test_errors_are_as_small_as_the_bits_allow(name, step):
    """Half a step, of which Q4_0 lacks one at the end; a scale of 11 or of 6 bits may be off by its own rounding."""
    x = np.random.default_rng(4).uniform(-1, 1, size=(200, 512)).astype(np.float32)
    error = np.abs(TYPES[name].dequantize(TYPES[name].quantize(x)) - x)
    assert error.max() < {"Q8_0": 0.55, "Q4_0": 1.01, "Q4_K": 0.75}[name] * step
    assert np.mean(error**2) < 1.15 * step**2 / 12


def test_super_blocks_keep_what_they_can_store():
    """Numbers that are codes times scales of 6 bits less minima of 6 bits come back as they were."""
    rng = np.random.default_rng(5)
    scale, minimum = rng.integers(1, 64, (20, 8)), rng.integers(0, 64, (20, 8))
    scale[:, 0], minimum[:, 1] = 63, 63  # d and dmin are what they were only if one of each is the largest
    codes = rng.integers(0, 16, (20, 8, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    x = (0.25 * scale[..., None] * codes - 0.5 * minimum[..., None]).reshape(20, 256)
    data = TYPES["Q4_K"].quantize(x)
    found = unpack_q4_k(data)
    ends = [float(found[1].min()), float(found[1].max()), float(found[3].min()), float(found[3].max())]
    assert ends == [0.25, 0.25, 0.5, 0.5]
    assert np.array_equal(found[2][:, 0], scale) and np.array_equal(found[4][:, 0], minimum)
    assert np.array_equal(TYPES["Q4_K"].dequantize(data), x)


def test_a_smaller_error_than_without_minima():
    x = np.random.default_rng(6).gamma(2.0, size=(50, 256)).astype(np.float32)
    error = {name: np.mean((TYPES[name].dequantize(TYPES[name].quantize(x)) - x) ** 2) for name in ("Q4_0", "Q4_K")}
    assert error["Q4_K"] < 0.5 * error["Q4_0"]


@given(st.data())
def test_packing_and_unpacking_are_inverse(data):
    def whole(low, high, *shape):
        return data.draw(hnp.arrays(np.int64, shape, elements=st.integers(low, high)))

    d = data.draw(hnp.arrays(np.float16, (2, 3, 1), elements=st.floats(0, 60000, width=16))).astype(np.float32)
    for codes, pack, unpack in (
        (whole(-128, 127, 2, 3, 32), pack_q8_0, unpack_q8_0),
        (whole(-8, 7, 2, 3, 32), pack_q4_0, unpack_q4_0),
    ):
        assert all(np.array_equal(*pair) for pair in zip(unpack(pack(codes, d)), (codes, d), strict=True))
    parts = whole(0, 15, 2, 3, 256), d, whole(0, 63, 2, 3, 8), d / 2, whole(0, 63, 2, 3, 8)
    back = unpack_q4_k(pack_q4_k(*parts))
    d_half = (d / 2).astype(np.float16).astype(np.float32)
    assert all(np.array_equal(*pair) for pair in zip(back, (*parts[:3], d_half, parts[4]), strict=True))


def test_the_layout_by_hand():
    """Byte by byte, as the table in the module's docstring says it."""
    codes = np.arange(32).reshape(1, 32) % 16 - 8
    assert pack_q4_0(codes, np.array([[-2.0]])).tolist() == [0, 0xC0, *(17 * i for i in range(16))]
    assert pack_q8_0(-np.arange(32).reshape(1, 32), np.array([[0.5]])).tolist() == [0, 0x38, 0, *range(255, 224, -1)]


@read
def test_sizes_are_those_of_gguf(name):
    values, size = gguf.GGML_QUANT_SIZES[theirs(name)]
    assert (TYPES[name].values, TYPES[name].bytes) == (values, size)
    assert TYPES[name].bits_per_value == 8 * size / values


# --- bad input -------------------------------------------------------------------------------------------------------


@read
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros(48), ValueError, r"x has shape \(48,\): Q.* takes rows of a multiple of (32|256) values"),
        (np.float32(1), ValueError, r"x has shape \(\): Q.* takes rows"),
        (np.zeros((3, 0)), ValueError, "x is empty"),
        (np.full(256, np.nan), ValueError, "x holds 256 values that are not finite"),
        (np.full(256, np.inf), ValueError, "x holds 256 values that are not finite"),
        (np.full(256, True), TypeError, "x has dtype bool"),
    ],
)
def test_what_cannot_be_quantized_is_refused(name, x, error, message):
    with pytest.raises(error, match=message):
        TYPES[name].quantize(x)


@read
def test_what_are_no_blocks_is_refused(name):
    kind = TYPES[name]
    good = kind.quantize(np.ones(256))
    for data, error, message in (
        (good[:-1], ValueError, f"a row of {name} is a multiple of {kind.bytes} bytes, one block of {kind.values}"),
        (good[:0], ValueError, r"data has shape \(0,\)"),
        (good.astype(np.int32), TypeError, "data has dtype int32: blocks are bytes, uint8"),
        (np.r_[good, np.full(kind.bytes, 0xFF, np.uint8)], ValueError, "a block whose scale is infinite or NaN"),
        (good[0], ValueError, r"data has shape \(\)"),
    ):
        with pytest.raises(error, match=message):
            kind.dequantize(data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_q4_0(np.arange(32)[None] - 23, np.ones((1, 1))), "codes run from -23 to 8 .* from -8 to 7"),
        (lambda: pack_q4_0(np.arange(32)[None] // 2 - 7, np.ones((1, 1))), "codes run from -7 to 8"),
        (lambda: pack_q4_0(np.arange(32)[None] // 2 - 9, np.ones((1, 1))), "codes run from -9 to 6"),
        (lambda: pack_q4_0(np.zeros(32, int), np.ones(1)), r"have shape \(32,\): those of Q4_0 .* \(…, blocks, 32\)"),
        (lambda: pack_q4_k(np.full((1, 256), 16), *[np.ones((1, 1))] * 4), "codes run from 16 to 16 .* from 0 to 15"),
        (lambda: pack_q8_0(np.zeros((1, 16), int), np.ones((1, 1))), r"Q8_0 .* have shape \(…, blocks, 32\)"),
        (lambda: pack_q8_0(np.full((1, 32), -129), np.ones((1, 1))), "codes run from -129 to -129"),
    ],
)
def test_codes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_module_is_reached_from_the_package():
    import qlearn

    assert qlearn.gguf_blocks is gguf_blocks
