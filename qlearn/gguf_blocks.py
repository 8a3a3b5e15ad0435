"""The blocks of GGUF, byte by byte: how llama.cpp stores weights of 8 and 4 bits.

A file of that kind knows no layers and no granularity, only rows of numbers cut into blocks. Each block holds what it
needs to be read alone:

    type    values    bytes   bits a value    what stands in them, in this order
    Q8_0        32       34            8.5    scale d | 32 codes of 8 bits, signed
    Q4_0        32       18            4.5    scale d | 32 codes of 4 bits, stored + 8
    Q4_K       256      144            4.5    d | dmin | 8 scales and 8 minima of 6 bits, 12 bytes | 256 codes of 4 bits

    Q8_0, Q4_0:  x̂ = d · code                  Q4_K:  x̂ = (d · scale) · code − (dmin · minimum)

d and dmin are float16, the low byte first. Half a block of 4-bit codes lies in the low halves of the bytes, the other
half in the high ones: value i of Q4_0 shares a byte with value i + 16, and in Q4_K two sub-blocks of 32 share 32 bytes.

Source: llama.cpp, ggml/src/ggml-common.h and ggml-quants.c, and its Python package gguf 0.19, gguf/quants.py. The bytes
of `quantize_q8_0` and `quantize_q4_0` are those of that package, but for scales that float16 cannot hold: from 65520 on
it writes infinity, and below 3e-39, whose inverse is infinite in float32, codes that stand for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from qlearn.arrays import Array, as_array, as_codes, as_floats, dtype_name, native_namespace, quietly, saturate
from qlearn.formats import FLOAT16, decode, encode

MOST = 65520.0  # below it a scale rounds to float16's largest number, from it on to infinity


@quietly
def quantize_q8_0(x: Any) -> Array:
    """Round each row of `x` to blocks of Q8_0.

        d = max|x| / 127        code = round(x · (1 / d)), half away from zero

    d is rounded to float16 after the codes were found. A block of zeros has d = 0.

    Args:
        x: array (…, n), n a multiple of 32; computed in float32.
    Returns:
        Bytes (…, 34 · n / 32): uint8, of x's library.
    Raises:
        ValueError: a row that is no multiple of 32, empty `x`, NaN or infinity.
    Cost: O(n).
    Source: as for this module. What is too large for a float16 scale saturates; llama.cpp makes it infinite.

    >>> import numpy as np
    >>> quantize_q8_0(np.linspace(0, 127, 32))[:8]
    array([  0,  60,   0,   4,   8,  12,  16,  20], dtype=uint8)
    """
    blocks = _blocks_of(x, Q8_0)
    xp = native_namespace(blocks)
    d = xp.clip(array_namespace(blocks).max(xp.abs(blocks), axis=-1, keepdims=True) / 127, None, MOST)
    scaled = blocks * _inverse(d)
    size = xp.abs(scaled)
    whole = xp.floor(size) + (size - xp.floor(size) >= 0.5)  # size + ½ would lift 0.49999997 to 1
    return pack_q8_0(array_namespace(d).astype(xp.clip(xp.sign(scaled) * whole, -127, 127), xp.int8), d)


@quietly
def quantize_q4_0(x: Any) -> Array:
    """Round each row of `x` to blocks of Q4_0.

        m = the value of largest magnitude, with its sign; the first of several        d = m / −8
        code = floor(x · (1 / d) + 8.5) − 8, at most 7

    The largest value gets the code −8, so of 16 codes none is idle; what is as large on the other side has to make do
    with 7. Ties are rounded up, and d is rounded to float16 after the codes were found. A block of zeros has d = −0.

    Args:
        x: array (…, n), n a multiple of 32; computed in float32.
    Returns:
        Bytes (…, 18 · n / 32): uint8, of x's library.
    Raises:
        ValueError: a row that is no multiple of 32, empty `x`, NaN or infinity.
    Cost: O(n).
    Source: as for this module. What is too large for a float16 scale saturates; llama.cpp makes it infinite.

    >>> import numpy as np
    >>> quantize_q4_0(np.linspace(-8, 7.5, 32))[:8]
    array([  0,  60, 128, 145, 145, 162, 162, 179], dtype=uint8)
    """
    blocks = _blocks_of(x, Q4_0)
    compat, xp = array_namespace(blocks), native_namespace(blocks)
    place = compat.argmax(xp.abs(blocks), axis=-1, keepdims=True)
    d = xp.clip(compat.take_along_axis(blocks, place, axis=-1) / -8, -MOST, MOST)
    codes = xp.clip(xp.floor(blocks * _inverse(d) + 8.5), 0, 15) - 8
    return pack_q4_0(compat.astype(codes, xp.int8), d)


@quietly
def quantize_q4_k(x: Any) -> Array:
    """Round each row of `x` to super-blocks of Q4_K, from the ends of each sub-block of 32.

        lo = min(x, 0)     s = (max x − lo) / 15     m = −lo                  a sub-block's scale and minimum
        d = max s / 63     scale = rint(s / d)                                6 bits, of the 8 sub-blocks
        dmin = max m / 63  minimum = rint(m / dmin)
        code = rint((x + dmin · minimum) / (d · scale)), 0 … 15               with d and dmin as float16 has them

    llama.cpp searches for better scales and minima, so its bytes are others; they are read in the same way.

    Args:
        x: array (…, n), n a multiple of 256; computed in float32.
    Returns:
        Bytes (…, 144 · n / 256): uint8, of x's library.
    Raises:
        ValueError: a row that is no multiple of 256, empty `x`, NaN or infinity.
    Cost: O(n).
    Source: as for this module.

    >>> import numpy as np
    >>> quantize_q4_k(np.tile(np.linspace(-1, 14, 32), 8))[:20]
    array([ 16,  36,  16,  36, 255, 255, 255, 255, 255, 255, 255, 255, 255,
           255, 255, 255,   0,   0,  17,  17], dtype=uint8)
    """
    blocks = _blocks_of(x, Q4_K)
    compat, xp = array_namespace(blocks), native_namespace(blocks)
    parts = blocks.reshape(*blocks.shape[:-1], 8, 32)
    low = xp.clip(compat.min(parts, axis=-1), None, 0)
    d, scale = _six_bits(compat.max(parts, axis=-1) / 15 - low / 15)
    dmin, minimum = _six_bits(-low)
    step = (d * scale)[..., None]
    codes = xp.round((parts + (dmin * minimum)[..., None]) / xp.where(step > 0, step, xp.ones_like(step)))
    codes = compat.astype(xp.clip(codes, 0, 15), xp.uint8).reshape(blocks.shape)
    return pack_q4_k(codes, d, scale, dmin, minimum)


def dequantize_q8_0(data: Any) -> Array:
    """The numbers that rows of Q8_0 blocks stand for: d · code.

    Args:
        data: bytes (…, 34 · n / 32), uint8.
    Returns:
        (…, n), float32, of data's library.
    Raises:
        TypeError: no bytes.  ValueError: a row that is no multiple of 34 bytes; a scale that is infinite or NaN.
    Cost: O(n).

    >>> import numpy as np
    >>> dequantize_q8_0(quantize_q8_0(np.linspace(0, 127, 32)))[:4]
    array([ 0.,  4.,  8., 12.], dtype=float32)
    """
    codes, d = unpack_q8_0(data)
    return _as_rows(_times(d, codes))


def dequantize_q4_0(data: Any) -> Array:
    """The numbers that rows of Q4_0 blocks stand for: d · code.

    Args:
        data: bytes (…, 18 · n / 32), uint8.
    Returns:
        (…, n), float32, of data's library.
    Raises:
        TypeError: no bytes.  ValueError: a row that is no multiple of 18 bytes; a scale that is infinite or NaN.
    Cost: O(n).

    >>> import numpy as np
    >>> dequantize_q4_0(quantize_q4_0(np.linspace(-8, 7.5, 32)))[:4]
    array([-8., -7., -7., -6.], dtype=float32)
    """
    codes, d = unpack_q4_0(data)
    return _as_rows(_times(d, codes))


def dequantize_q4_k(data: Any) -> Array:
    """The numbers that rows of Q4_K super-blocks stand for: (d · scale) · code − (dmin · minimum).

    Args:
        data: bytes (…, 144 · n / 256), uint8.
    Returns:
        (…, n), float32, of data's library.
    Raises:
        TypeError: no bytes.  ValueError: a row that is no multiple of 144 bytes; d or dmin that is infinite or NaN.
    Cost: O(n).

    >>> import numpy as np
    >>> dequantize_q4_k(quantize_q4_k(np.tile(np.linspace(-1, 14, 32), 8)))[:4].round(2)
    array([-1., -1.,  0.,  0.], dtype=float32)
    """
    codes, d, scale, dmin, minimum = unpack_q4_k(data)
    parts = codes.reshape(*codes.shape[:-1], 8, 32)
    return _as_rows(_times(_times(d, scale)[..., None], parts) - _times(dmin, minimum)[..., None], 3)


def pack_q8_0(codes: Any, d: Any) -> Array:
    """Blocks of Q8_0 from codes −128 … 127 (…, blocks, 32) and scales (…, blocks, 1): bytes (…, 34 · blocks).

    >>> import numpy as np
    >>> pack_q8_0(np.arange(32).reshape(1, 32), np.array([[1.0]]))[:5]
    array([ 0, 60,  0,  1,  2], dtype=uint8)
    """
    codes = _codes(codes, Q8_0, -128, 127)
    return _together(_half(d), codes & 255)


def pack_q4_0(codes: Any, d: Any) -> Array:
    """Blocks of Q4_0 from codes −8 … 7 (…, blocks, 32) and scales (…, blocks, 1): bytes (…, 18 · blocks).

    >>> import numpy as np
    >>> pack_q4_0(np.arange(32).reshape(1, 32) // 2 - 8, np.array([[1.0]]))[:5]
    array([  0,  60, 128, 128, 145], dtype=uint8)
    """
    codes = _codes(codes, Q4_0, -8, 7)
    return _together(_half(d), _nibbles(codes + 8))


def pack_q4_k(codes: Any, d: Any, scale: Any, dmin: Any, minimum: Any) -> Array:
    """Super-blocks of Q4_K from their parts: bytes (…, 144 · blocks). The inverse of `unpack_q4_k`.

    Scales s and minima m of 6 bits lie in 12 bytes: the first four of each whole, and above them, in the two bits that
    are free, the upper bits of the last four; their lower bits share the last four bytes.

        byte j          s[j + 4] upper 2 | s[j] all 6                j = 0 … 3
        byte j + 4      m[j + 4] upper 2 | m[j] all 6
        byte j + 8      m[j + 4] lower 4 | s[j + 4] lower 4

    Args:
        codes: 0 … 15, (…, blocks, 256).
        d, dmin: (…, blocks, 1).
        scale, minimum: 0 … 63, (…, blocks, 8).

    >>> import numpy as np
    >>> one, six = np.array([[1.0]]), np.array([[1, 2, 3, 4, 5, 6, 7, 63]])
    >>> pack_q4_k(np.zeros((1, 256), int), one, six, one, six)[4:16]
    array([  1,   2,   3, 196,   1,   2,   3, 196,  85, 102, 119, 255], dtype=uint8)
    """
    codes = _codes(codes, Q4_K, 0, 15)
    xp = array_namespace(codes)
    s, m = xp.astype(as_array(scale), xp.int16), xp.astype(as_array(minimum), xp.int16)
    whole = [p[..., :4] | (p[..., 4:] >> 4 << 6) for p in (s, m)]
    shared = (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4)
    halves = _nibbles(codes.reshape(*codes.shape[:-1], 4, 64))
    return _together(_half(d), _half(dmin), *whole, shared, halves.reshape(*codes.shape[:-1], 128))


def unpack_q8_0(data: Any) -> tuple[Array, Array]:
    """Take rows of Q8_0 blocks apart: codes (…, blocks, 32), int8, and scales (…, blocks, 1), float32.

    >>> import numpy as np
    >>> codes, d = unpack_q8_0(quantize_q8_0(np.linspace(0, 127, 32)))
    >>> codes.shape, d.shape, codes[0, :4]
    ((1, 32), (1, 1), array([ 0,  4,  8, 12], dtype=int8))
    """
    blocks = _blocks_in(data, Q8_0)
    xp = array_namespace(blocks)
    return xp.astype((blocks[..., 2:] ^ 128) - 128, xp.int8), _number(blocks, 0)


def unpack_q4_0(data: Any) -> tuple[Array, Array]:
    """Take rows of Q4_0 blocks apart: codes −8 … 7 (…, blocks, 32), int8, and scales (…, blocks, 1), float32.

    >>> import numpy as np
    >>> codes, d = unpack_q4_0(quantize_q4_0(np.linspace(-8, 7.5, 32)))
    >>> float(d[0, 0]), codes[0, :4]
    (1.0, array([-8, -7, -7, -6], dtype=int8))
    """
    blocks = _blocks_in(data, Q4_0)
    xp = array_namespace(blocks)
    return xp.astype(_values(blocks[..., 2:]) - 8, xp.int8), _number(blocks, 0)


def unpack_q4_k(data: Any) -> tuple[Array, Array, Array, Array, Array]:
    """Take rows of Q4_K super-blocks apart: codes, d, scale, dmin, minimum, as `pack_q4_k` takes them.

    >>> import numpy as np
    >>> codes, d, scale, dmin, minimum = unpack_q4_k(quantize_q4_k(np.tile(np.linspace(-1, 14, 32), 8)))
    >>> codes[0, :4], scale, minimum
    (array([0, 0, 1, 1], dtype=uint8), array([[63, 63, 63, 63, 63, 63, 63, 63]], dtype=uint8),
     array([[63, 63, 63, 63, 63, 63, 63, 63]], dtype=uint8))
    """
    blocks = _blocks_in(data, Q4_K)
    xp = array_namespace(blocks)
    s, m, shared = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scale = xp.concat([s & 63, (shared & 15) | (s >> 6 << 4)], axis=-1)
    minimum = xp.concat([m & 63, (shared >> 4) | (m >> 6 << 4)], axis=-1)
    codes = _values(blocks[..., 16:].reshape(*blocks.shape[:-1], 4, 32)).reshape(*blocks.shape[:-1], 256)
    codes, scale, minimum = (xp.astype(part, xp.uint8) for part in (codes, scale, minimum))
    return codes, _number(blocks, 0), scale, _number(blocks, 2), minimum


@dataclass(frozen=True)
class BlockType:
    """One way of GGUF to store a block.

    Attributes:
        name: as llama.cpp has it.
        values: in a block.
        bytes: that it takes.
        quantize, dequantize: rows of numbers → rows of bytes, and back.

    >>> TYPES["Q4_K"].values, TYPES["Q4_K"].bits_per_value
    (256, 4.5)
    """

    name: str
    values: int
    bytes: int
    quantize: Callable[[Any], Array]
    dequantize: Callable[[Any], Array]

    @property
    def bits_per_value(self) -> float:
        """What a value takes, scales included."""
        return 8 * self.bytes / self.values


Q8_0 = BlockType("Q8_0", 32, 34, quantize_q8_0, dequantize_q8_0)
Q4_0 = BlockType("Q4_0", 32, 18, quantize_q4_0, dequantize_q4_0)
Q4_K = BlockType("Q4_K", 256, 144, quantize_q4_k, dequantize_q4_k)
TYPES = {kind.name: kind for kind in (Q8_0, Q4_0, Q4_K)}


def _blocks_of(x: Any, kind: BlockType) -> Array:
    """Rows of numbers in float32, cut into blocks: (…, blocks, values)."""
    x = as_floats(x)
    if x.ndim == 0 or x.shape[-1] % kind.values:
        raise ValueError(f"x has shape {tuple(x.shape)}: {kind.name} takes rows of a multiple of {kind.values} values.")
    x = saturate(x, native_namespace(x).float32)
    return x.reshape(*x.shape[:-1], -1, kind.values)


def _blocks_in(data: Any, kind: BlockType) -> Array:
    """Rows of bytes, cut into blocks: (…, blocks, bytes), int16, in which they can be shifted."""
    data = as_array(data, "data")
    if dtype_name(data) != "uint8":
        raise TypeError(f"data has dtype {dtype_name(data)}: blocks are bytes, uint8.")
    if data.ndim == 0 or math.prod(data.shape) == 0 or data.shape[-1] % kind.bytes:
        raise ValueError(
            f"data has shape {tuple(data.shape)}: a row of {kind.name} is a multiple of {kind.bytes} bytes, one block "
            f"of {kind.values} values each."
        )
    xp = array_namespace(data)
    return xp.astype(data, xp.int16).reshape(*data.shape[:-1], -1, kind.bytes)


def _codes(codes: Any, kind: BlockType, low: int, high: int) -> Array:
    """Codes in int16, if they fit."""
    codes = as_codes(codes)
    if codes.ndim < 2 or codes.shape[-1] != kind.values or codes.min() < low or codes.max() > high:
        raise ValueError(
            f"codes run from {int(codes.min())} to {int(codes.max())} and have shape {tuple(codes.shape)}: those of "
            f"{kind.name} run from {low} to {high} and have shape (…, blocks, {kind.values})."
        )
    xp = array_namespace(codes)
    return xp.astype(codes, xp.int16)


def _inverse(d: Array) -> Array:
    """1 / d, and 0 where that is no number: d is 0 or so small that float16 makes it 0."""
    xp = native_namespace(d)
    inverse = 1 / xp.where(d == 0, xp.ones_like(d), d)
    return xp.where((d == 0) | xp.isinf(inverse), xp.zeros_like(d), inverse)


def _six_bits(parts: Array) -> tuple[Array, Array]:
    """Numbers ≥ 0, (…, 8), as a float16 for all (…, 1) and 6 bits for each: the two factors, as float32."""
    xp = native_namespace(parts)
    d = decode(encode(array_namespace(parts).max(parts, axis=-1, keepdims=True) / 63, FLOAT16), FLOAT16)
    return d, xp.clip(xp.round(parts / xp.where(d > 0, d, xp.ones_like(d))), None, 63)


def _nibbles(values: Array) -> Array:
    """The first half of the last axis in the lower four bits of bytes, the other half in the upper ones."""
    half = values.shape[-1] // 2
    return values[..., :half] | (values[..., half:] << 4)


def _values(nibbles: Array) -> Array:
    """The inverse of `_nibbles`."""
    return array_namespace(nibbles).concat([nibbles & 15, nibbles >> 4], axis=-1)


def _half(d: Any) -> Array:
    """Numbers (…, 1) as the two bytes of a float16 (…, 2), the low one first."""
    bits = encode(d, FLOAT16)
    return array_namespace(bits).concat([bits & 255, bits >> 8], axis=-1)


def _number(blocks: Array, at: int) -> Array:
    """The float16 whose low byte is the one at that place of each block: float32 (…, 1).

    Raises:
        ValueError: infinity or NaN.
    """
    xp = array_namespace(blocks)
    low, high = (xp.astype(blocks[..., i : i + 1], xp.int32) for i in (at, at + 1))
    d = decode(low | (high << 8), FLOAT16)
    if not bool(xp.isfinite(d).all()):
        raise ValueError("data holds a block whose scale is infinite or NaN: these bytes are no weights.")
    return d


def _times(scale: Array, codes: Array) -> Array:
    """A product in float32."""
    xp = array_namespace(scale)
    return scale * xp.astype(codes, xp.float32)


def _together(*parts: Array) -> Array:
    """The parts of blocks, one after the other, as rows of bytes."""
    xp = array_namespace(parts[0])
    blocks = xp.concat([xp.astype(part, xp.uint8) for part in parts], axis=-1)
    return _as_rows(blocks)


def _as_rows(blocks: Array, axes: int = 2) -> Array:
    """The last axes as one."""
    return blocks.reshape(*blocks.shape[:-axes], -1)
