"""Codes of 1 to 8 bits, side by side with no gap: what 4 bits a value means on disk.

The layout is a little-endian stream of bits, as in ONNX and most 4-bit kernels: value i takes the bits
i·b … i·b + b − 1, counted from the lowest bit of the first byte. At 4 bits the first value is the low nibble.
Signed codes are stored in two's complement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from qlearn.arrays import Array, as_array, as_shape, dtype_name

TOGETHER = 8  # eight codes of b bits fill exactly b bytes


def pack(codes: Any, bits: int) -> Array:
    """Pack integer codes into bytes.

        n codes of b bits  →  ceil(n · b / 8) bytes; the last byte is filled up with zeros

    Args:
        codes: integers of any shape, read in C order, all in 0 … 2ᵇ − 1 or all in −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1.
        bits: 1 … 8.
    Returns:
        One-dimensional uint8 array of codes' library.
    Raises:
        TypeError: codes that are not integers.
        ValueError: bits outside 1 … 8; codes that do not fit, naming the range they have.
    Cost: O(n).

    >>> import numpy as np
    >>> pack(np.array([1, 2, 3]), bits=4)
    array([33,  3], dtype=uint8)
    """
    codes = as_array(codes, "codes")
    xp = array_namespace(codes)
    _check_bits(bits)
    if "int" not in dtype_name(codes):
        raise TypeError(f"codes have dtype {dtype_name(codes)}: only integers can be packed. Quantize first.")
    n = math.prod(codes.shape)
    if n == 0:
        return xp.zeros(0, dtype=xp.uint8, device=device(codes))
    low, high = int(xp.min(codes)), int(xp.max(codes))
    if low < -(2 ** (bits - 1)) or high > (2**bits - 1 if low >= 0 else 2 ** (bits - 1) - 1):
        raise ValueError(
            f"codes run from {low} to {high} and do not fit into {bits} bits: unsigned codes must lie in "
            f"0 … {2**bits - 1}, signed ones in {-(2 ** (bits - 1))} … {2 ** (bits - 1) - 1}."
        )
    if bits == 8:
        return xp.astype(codes.reshape(-1), xp.uint8)
    padded = xp.concat([codes.reshape(-1), xp.zeros(-n % TOGETHER, dtype=codes.dtype, device=device(codes))])
    rows = xp.astype(padded.reshape(-1, TOGETHER), xp.int64) & (2**bits - 1)
    word = sum(rows[:, i] << (i * bits) for i in range(TOGETHER))  # eight codes are at most 56 bits
    packed = xp.stack([(word >> (8 * j)) & 255 for j in range(bits)], axis=-1)
    return xp.astype(packed.reshape(-1), xp.uint8)[: packed_size(n, bits)]


def unpack(packed: Any, bits: int, shape: int | Sequence[int], *, signed: bool = False) -> Array:
    """Take packed bytes apart again: the inverse of `pack`.

    Args:
        packed: one-dimensional uint8 array.
        bits: 1 … 8.
        shape: of the codes; a whole number n stands for (n,).
        signed: read the codes as two's complement, −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1.
    Returns:
        Codes of the given shape, uint8, or int8 if signed.
    Raises:
        TypeError: a shape that is not made of whole numbers.
        ValueError: bits outside 1 … 8; a length below 0 in shape; a number of bytes that does not belong to shape
            and bits.
    Cost: O(n).

    >>> import numpy as np
    >>> unpack(np.array([33, 3], dtype=np.uint8), bits=4, shape=(3,))
    array([1, 2, 3], dtype=uint8)
    """
    packed = as_array(packed, "packed")
    xp = array_namespace(packed)
    _check_bits(bits)
    shape = as_shape(shape)
    n = math.prod(shape)
    if dtype_name(packed) != "uint8" or tuple(packed.shape) != (packed_size(n, bits),):
        raise ValueError(
            f"packed has dtype {dtype_name(packed)} and shape {tuple(packed.shape)}: {n} codes of {bits} bits "
            f"are uint8 of shape ({packed_size(n, bits)},)."
        )
    groups = -(-n // TOGETHER)
    padded = packed
    if bits < 8:
        filling = xp.zeros(groups * bits - len(packed), dtype=xp.uint8, device=device(packed))
        padded = xp.concat([packed, filling])
        rows = xp.astype(padded.reshape(-1, bits), xp.int64)
        word = sum(rows[:, j] << (8 * j) for j in range(bits))
        padded = xp.stack([(word >> (i * bits)) & (2**bits - 1) for i in range(TOGETHER)], axis=-1).reshape(-1)[:n]
    codes = xp.astype(padded, xp.int16)
    if signed:
        codes = xp.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
    return xp.astype(codes, xp.int8 if signed else xp.uint8).reshape(shape)


def packed_size(n: int, bits: int) -> int:
    """How many bytes `n` codes of `bits` bits take: ceil(n · bits / 8).

    >>> packed_size(3, bits=4)
    2
    """
    _check_bits(bits)
    if len(lengths := as_shape(n, "n")) != 1:
        raise TypeError(f"n={n!r} must be one whole number.")
    return -(-lengths[0] * bits // 8)


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= 8:
        raise ValueError(f"bits={bits!r} must be a whole number from 1 to 8.")
