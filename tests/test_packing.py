"""Packed codes come back as they were, in the number of bytes that was promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.packing import pack, unpack


@given(st.data(), st.integers(1, 8), st.booleans())
def test_unpacking_gives_the_codes_back(data, bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=9))
    codes = data.draw(hnp.arrays(np.int16, shape, elements=st.integers(low, high)))
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert len(packed) == int(np.ceil(codes.size * bits / 8))
    assert np.array_equal(unpack(packed, bits, shape, signed=signed), codes)
    tensor = pack(torch.from_numpy(codes), bits)
    assert np.array_equal(tensor.numpy(), packed)
    assert np.array_equal(unpack(tensor, bits, shape, signed=signed).numpy(), codes)


@given(st.data(), st.integers(1, 8))
def test_the_layout_is_a_little_endian_stream_of_bits(data, bits):
    codes = data.draw(hnp.arrays(np.uint8, st.integers(1, 40), elements=st.integers(0, 2**bits - 1)))
    stream = "".join(format(code, f"0{bits}b")[::-1] for code in codes.tolist())
    expected = [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]
    assert pack(codes, bits).tolist() == expected


def test_three_bits_lose_nothing():
    assert unpack(pack(np.arange(8), 3), 3, (8,)).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: pack(np.array([0, 16]), 4),
            ValueError,
            r"codes run from 0 to 16 and do not fit into 4 bits: .* 0 … 15",
        ),
        (lambda: pack(np.array([-1, 8]), 4), ValueError, r"codes run from -1 to 8 .* signed ones in -8 … 7"),
        (lambda: pack(np.array([0]), 9), ValueError, "bits=9 must be a whole number from 1 to 8"),
        (lambda: pack(np.array([0.5]), 4), TypeError, "codes have dtype float64: only integers can be packed"),
        (lambda: unpack(np.zeros(3, np.uint8), 4, (4,)), ValueError, r"4 codes of 4 bits are uint8 of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_no_codes_take_no_bytes(library, bits):
    packed = pack(library(np.zeros((3, 0), np.int64)), bits)
    assert tuple(packed.shape) == (0,) and str(packed.dtype).endswith("uint8")
    assert tuple(unpack(packed, bits, (3, 0)).shape) == (3, 0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_outermost_codes_fit_and_those_beyond_do_not(bits):
    half, most = 2 ** (bits - 1), 2**bits - 1
    for codes, signed in (([0, most], False), ([-half, half - 1], True), ([-half, -half], True)):
        assert unpack(pack(codes, bits), bits, (2,), signed=signed).tolist() == codes
    for codes in ([0, most + 1], [-half - 1, 0], [-half - 1, -half - 1], [-1, half]):
        with pytest.raises(
            ValueError, match=f"codes run from {codes[0]} to {codes[1]} and do not fit into {bits} bits"
        ):
            pack(codes, bits)


@pytest.mark.parametrize("bits", [0, 9, -1, 4.0, True, "4"])
def test_both_ways_refuse_a_wrong_number_of_bits(bits):
    for call in (lambda: pack(np.array([1]), bits), lambda: unpack(np.zeros(1, np.uint8), bits, (1,))):
        with pytest.raises(ValueError, match=f"bits={bits!r} must be a whole number from 1 to 8"):
            call()


def test_packed_codes_are_bytes():
    with pytest.raises(ValueError, match=r"packed has dtype int64 and shape \(2,\): 4 codes of 4 bits are uint8"):
        unpack(np.zeros(2, np.int64), 4, (4,))
    with pytest.raises(ValueError, match=r"packed has dtype uint8 and shape \(2, 1\): 4 codes"):
        unpack(np.zeros((2, 1), np.uint8), 4, (4,))


@pytest.mark.parametrize("shape", ["", "8", True, (4, True), (2, 4.0), (4.0, 2), None])
def test_a_shape_is_made_of_whole_numbers(shape):
    with pytest.raises(TypeError, match="must be a whole number, or a list or tuple of whole numbers"):
        unpack(np.uint8([1]), 1, shape)


@pytest.mark.parametrize("shape", [-1, (-1,), (2, -1), (-1, 0)])
def test_no_length_is_below_0(shape):
    with pytest.raises(ValueError, match="has a length below 0"):
        unpack(np.uint8([]), 1, shape)
