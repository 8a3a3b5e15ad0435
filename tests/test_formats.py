"""Small floats against ml_dtypes and PyTorch, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from qlearn import codebooks
from qlearn.formats import (
    BFLOAT16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FLOAT16,
    FLOAT32,
    FloatFormat,
    cast,
    decode,
    encode,
    fields,
)

THEIRS = {
    E2M1: ml_dtypes.float4_e2m1fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E3M2: ml_dtypes.float6_e3m2fn,
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    BFLOAT16: ml_dtypes.bfloat16,
    FLOAT16: np.float16,
}
TORCHS = {
    E4M3: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
    BFLOAT16: torch.bfloat16,
    FLOAT16: torch.float16,
    FLOAT32: torch.float32,
}
each = pytest.mark.parametrize("format", THEIRS, ids=str)


def bits_of(values, format):
    return values.view(np.uint16 if format.bits == 16 else np.uint8)


def values_of(format):
    """A million values of all sizes; those in the middle between two numbers of the format, and right beside them."""
    rng = np.random.default_rng(0)
    span = np.log10(format.largest) - np.log10(format.smallest) + 4
    x = rng.normal(size=10**6) * 10.0 ** (rng.random(10**6) * span + np.log10(format.smallest) - 2)
    x = x[np.abs(x) <= format.largest].astype(np.float32)
    levels = format.levels().astype(np.float64)
    ties = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([x, [0.0, -0.0], levels.astype(np.float32), ties, *beside])
    return x[np.abs(x) <= format.largest]


@each
def test_codes_are_those_of_ml_dtypes(format):
    x = values_of(format)
    assert len(x) > 400_000
    theirs = x.astype(THEIRS[format])
    codes = encode(x, format)
    assert codes.dtype == (np.uint8 if format.bits <= 8 else np.int32)
    assert np.array_equal(codes, bits_of(theirs, format))
    assert np.array_equal(cast(x, format), theirs.astype(np.float32))


@pytest.mark.parametrize("format", TORCHS, ids=str)
def test_tensors_are_cast_as_pytorch_does_it(format):
    x = torch.from_numpy(
        values_of(format) if format is not FLOAT32 else np.float32([1e-45, -1e-40, 3e38, 0.1, -0.0, 7])
    )
    ours = cast(x, format)
    assert isinstance(ours, torch.Tensor) and torch.equal(ours, x.to(TORCHS[format]).float())
    assert torch.equal(torch.signbit(ours), torch.signbit(x))
    assert np.array_equal(encode(x, format).numpy(), encode(x.numpy(), format))


@each
def test_every_code_means_what_ml_dtypes_says(format):
    """All of them, infinity and NaN included."""
    codes = np.arange(2**format.bits)
    theirs = codes.astype(np.uint16 if format.bits == 16 else np.uint8).view(THEIRS[format]).astype(np.float32)
    assert np.array_equal(decode(codes, format), theirs, equal_nan=True)
    finite = np.isfinite(theirs)
    assert np.array_equal(encode(theirs[finite], format), codes[finite])


def test_float32_is_its_own_bits():
    x = np.random.default_rng(1).integers(0, 2**32, size=100_000, dtype=np.uint32).view(np.float32)
    x = np.append(x[np.isfinite(x)], np.float32([0.0, -0.0, 1e-45, 3.4028235e38]))
    assert np.array_equal(encode(x, FLOAT32), x.view(np.uint32))
    assert np.array_equal(decode(encode(x, FLOAT32), FLOAT32).view(np.uint32), x.view(np.uint32))


@each
def test_what_is_too_large_saturates(format):
    beyond = [1e30, -1e30, 1.01 * format.largest, 2 * format.largest] if format.largest < 1e30 else [3.4e38]
    ends = np.sign(beyond) * format.largest
    assert cast(beyond, format).tolist() == ends.tolist()
    assert cast(torch.tensor(beyond, dtype=torch.float64), format).tolist() == ends.tolist()


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_a_quotient_beyond_the_type_saturates_too(library, recwarn):
    x = library(np.float32([3e38, -3e38]))
    assert encode(x, E4M3, scale=1e-30).tolist() == [E4M3.largest_code, 128 + E4M3.largest_code]
    assert codebooks.encode(x, [-1.0, 0.0, 1.0], scale=1e-30).tolist() == [2, 0]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("format", "bits", "bias", "largest", "smallest", "exponent"),
    [
        (E2M1, 4, 1, 6.0, 0.5, 2),
        (E2M3, 6, 1, 7.5, 0.125, 2),
        (E3M2, 6, 3, 28.0, 0.0625, 4),
        (E4M3, 8, 7, 448.0, 2.0**-9, 8),
        (E5M2, 8, 15, 57344.0, 2.0**-16, 15),
        (FLOAT16, 16, 15, 65504.0, 2.0**-24, 15),
        (BFLOAT16, 16, 127, 3.3895313892515355e38, 2.0**-133, 127),
        (FLOAT32, 32, 127, 3.4028234663852886e38, 2.0**-149, 127),
    ],
    ids=str,
)
def test_the_formats_are_those_of_their_specifications(format, bits, bias, largest, smallest, exponent):
    assert (format.bits, format.bias, format.largest, format.smallest) == (bits, bias, largest, smallest)
    assert format.largest_exponent == exponent
    if bits <= 16:
        levels = format.levels()
        assert (np.diff(levels) > 0).all() and np.array_equal(levels, -levels[::-1])
        assert levels[-1] == largest and np.abs(levels[levels != 0]).min() == smallest
        assert len(levels) == 2**bits - 1 - 2 * format.reserved


def test_fields_are_sign_exponent_and_significand():
    assert [part.tolist() for part in fields(np.array([0b1_01111_10]), E5M2)] == [[1], [15], [2]]


def test_scales_cover_blocks():
    x = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    scale = np.float32([[0.5, 2.0], [1.0, 4.0], [0.25, 8.0], [1.0, 1.0]])
    spread = scale.repeat(4, axis=1)
    assert np.array_equal(encode(x, E2M1, scale), encode(x / spread, E2M1))
    assert np.array_equal(cast(x, E2M1, scale), cast(x / spread, E2M1) * spread)
    assert np.array_equal(cast(torch.from_numpy(x), E2M1, torch.from_numpy(scale)).numpy(), cast(x, E2M1, scale))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encode([], E4M3), ValueError, "x is empty"),
        (lambda: encode([1.0, np.inf], E4M3), ValueError, "x holds 1 value that is not finite"),
        (lambda: encode([1.0], E4M3, scale=-1.0), ValueError, "scale holds -1: every scale must be larger than 0"),
        (lambda: encode(np.ones((2, 6)), E4M3, np.ones((2, 4))), ValueError, r"scale has shape \(2, 4\)"),
        (lambda: decode([0.5], E4M3), TypeError, "codes have dtype float64: a code is the bits of a float"),
        (lambda: decode([16], E2M1), ValueError, "codes run from 16 to 16: FP4 E2M1 has the codes 0 … 15"),
        (lambda: decode([-1], E2M1), ValueError, "codes run from -1 to -1"),
    ],
)
def test_what_cannot_be_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("exponent_bits", "significand_bits", "dtype"),
    [(4, 3, "uint8"), (5, 3, "int32"), (5, 10, "int32"), (5, 11, "int64"), (8, 23, "int64")],
)
@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_codes_take_the_smallest_of_three_types(exponent_bits, significand_bits, dtype, library):
    format = FloatFormat("", exponent_bits, significand_bits, reserved=0)
    codes = encode(library(np.array([format.largest, -1.0])), format)
    assert str(codes.dtype).endswith(dtype)
    assert codes[0] == 2 ** (format.bits - 1) - 1
    assert codes[1] == 2 ** (format.bits - 1) + (format.bias << significand_bits)


def test_one_code_that_the_format_does_not_have_is_enough():
    for codes in ([-1, 3], [3, -1]):
        with pytest.raises(ValueError, match="codes run from -1 to 3: FP4 E2M1 has the codes 0 … 15"):
            decode(codes, E2M1)
    with pytest.raises(ValueError, match="codes run from 0 to 16"):
        decode([0, 16], E2M1)
    assert decode([0, 15], E2M1).tolist() == [0.0, -6.0]


def test_a_format_does_not_change_and_can_be_a_key():
    assert {E2M1: 1}[FloatFormat("FP4 E2M1", 2, 1, reserved=0)] == 1
    with pytest.raises(AttributeError, match="cannot assign to field"):
        E2M1.reserved = 1


@pytest.mark.parametrize("asarray", [np.asarray, torch.tensor])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_codes_of_any_width_are_decoded(asarray, dtype):
    codes = np.array([0, 1, 15, 100, 127])
    for format in (E4M3, E5M2, FLOAT16):
        narrow, wide = (np.asarray(decode(asarray(codes.astype(t)), format)) for t in (dtype, np.int64))
        assert np.array_equal(narrow, wide, equal_nan=True)


def test_pieces_of_a_large_array_are_cast_as_all_of_it(monkeypatch):
    x = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32)
    scale = np.linspace(0.5, 2, 30).reshape(-1, 1)
    wanted = cast(x, E4M3, scale)
    monkeypatch.setattr("qlearn.arrays.SLAB", 11)
    assert np.array_equal(cast(x, E4M3, scale), wanted)
    assert np.array_equal(cast(torch.tensor(x), E4M3, scale).numpy(), wanted)
