"""Floating-point numbers of few bits: FP8, FP6, FP4, and the larger ones that they descend from.

    bits:   sign | exponent | significand        value = ± significand · 2^exponent

A float is a codebook too: its levels are dense near 0 and twice as far apart each time the exponent rises by 1.
Codes are the bits themselves, read as an unsigned integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.arrays import Array, as_codes, as_floats, in_slabs, native_namespace, of_blocks, quietly, saturate


@dataclass(frozen=True)
class FloatFormat:
    """How the bits of a floating-point number are laid out.

        exponent field e > 0:   value = ± (1 + significand / 2ᵐ) · 2^(e − bias)          normal
        exponent field e = 0:   value = ± (0 + significand / 2ᵐ) · 2^(1 − bias)          subnormal

    Attributes:
        name: as people write it.
        exponent_bits, significand_bits: of the two fields (m above); one bit more is the sign.
        reserved: how many of the largest magnitudes are no numbers but infinity and NaN.

    >>> E2M1.bits, E2M1.bias, E2M1.largest, E2M1.smallest
    (4, 1, 6.0, 0.5)
    """

    name: str
    exponent_bits: int
    significand_bits: int
    reserved: int

    @property
    def bits(self) -> int:
        """Of one number: sign, exponent and significand."""
        return 1 + self.exponent_bits + self.significand_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field: 2^(exponent bits − 1) − 1."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def largest_code(self) -> int:
        """The code of the largest finite number."""
        return 2 ** (self.bits - 1) - 1 - self.reserved

    @property
    def largest(self) -> float:
        """The largest finite number."""
        steps = 2**self.significand_bits
        return (steps + self.largest_code % steps) * 2.0 ** (self.largest_exponent - self.significand_bits)

    @property
    def largest_exponent(self) -> int:
        """The exponent of the largest finite number: 2 for 6 = 1.5 · 2²."""
        return (self.largest_code >> self.significand_bits) - self.bias

    @property
    def smallest(self) -> float:
        """The smallest number above 0, which is also the distance between neighbours around 0."""
        return 2.0 ** (1 - self.bias - self.significand_bits)

    def levels(self) -> Any:
        """All finite numbers of the format in rising order, 0 once: float32, NumPy. For up to 16 bits.

        >>> E2M1.levels()
        array([-6. , -4. , -3. , -2. , -1.5, -1. , -0.5,  0. ,  0.5,  1. ,  1.5,  2. ,  3. ,  4. ,  6. ],
              dtype=float32)
        """
        positive = decode(np.arange(self.largest_code + 1), self)
        return np.concatenate([-positive[:0:-1], positive])

    def __str__(self) -> str:
        return self.name


FLOAT32 = FloatFormat("float32", 8, 23, reserved=2**23)
FLOAT16 = FloatFormat("float16", 5, 10, reserved=2**10)
BFLOAT16 = FloatFormat("bfloat16", 8, 7, reserved=2**7)
E5M2 = FloatFormat("FP8 E5M2", 5, 2, reserved=2**2)
E4M3 = FloatFormat("FP8 E4M3", 4, 3, reserved=1)  # no infinity, and a single NaN: 448 is the largest, not 240
E3M2 = FloatFormat("FP6 E3M2", 3, 2, reserved=0)
E2M3 = FloatFormat("FP6 E2M3", 2, 3, reserved=0)
E2M1 = FloatFormat("FP4 E2M1", 2, 1, reserved=0)


def check_format(format: object) -> None:
    """Raise `TypeError` unless it is a format.

    >>> check_format("E4M3")
    Traceback (most recent call last):
    TypeError: format='E4M3' must be a FloatFormat, such as formats.E4M3.
    """
    if not isinstance(format, FloatFormat):
        raise TypeError(f"format={format!r} must be a FloatFormat, such as formats.E4M3.")


@quietly
def encode(x: Any, format: FloatFormat, scale: Any = 1.0) -> Array:
    """Give every value of `x` the bits of the nearest number of the format.

        e = max(floor(log2 |x|), 1 − bias)      code = (e + bias − 1) · 2ᵐ + rint(|x| / 2^(e − m))      and the sign

    (of x / scale, where there is a scale). Rounds half to even, and saturates: what is too large gets the largest
    finite number, never infinity. A significand that rounds up to 2 raises the exponent by carrying over.

    Args:
        x: array of any shape.
        format: of up to 32 bits.
        scale: a number > 0, or an array of x's rank, one entry for each block of x.
    Returns:
        Codes of x's shape: uint8 up to 8 bits, int32 up to 16, int64 above.
    Raises:
        ValueError: empty `x`, NaN or infinity, a scale whose shape does not divide x's.
    Cost: O(n).
    Source: OCP 8-bit Floating Point Specification (2023) and Microscaling Formats Specification (2023); IEEE 754.

    >>> encode([0.5, 1.25, -5.0, 100.0], E2M1)
    array([ 1,  2, 14,  7], dtype=uint8)
    """
    check_format(format)
    x = as_floats(x)
    compat, xp = array_namespace(x), native_namespace(x)
    scaled = of_blocks(x, scale, compat.divide)  # may overflow to infinity, which saturates like all that is too large

    def code_of(part: Array) -> Array:
        magnitude = xp.clip(compat.astype(xp.abs(part), xp.float64), None, format.largest)
        exponent = xp.frexp(magnitude)[1] - 1  # of a significand in 1 … 2: frexp's is in ½ … 1
        smallest = xp.full_like(exponent, 1 - format.bias)
        exponent = xp.where(magnitude > 0, xp.maximum(exponent, smallest), smallest)
        steps = xp.round(xp.ldexp(magnitude, format.significand_bits - exponent))
        code = compat.astype(exponent + (format.bias - 1), xp.int64) * 2**format.significand_bits
        sign = compat.astype(xp.signbit(part), xp.int64) * 2 ** (format.bits - 1)  # in int64: 2³¹ is no int32
        return code + compat.astype(steps, xp.int64) + sign

    return in_slabs(code_of, scaled, xp.uint8 if format.bits <= 8 else xp.int32 if format.bits <= 16 else xp.int64)


@quietly
def decode(codes: Any, format: FloatFormat, scale: Any = 1.0) -> Array:
    """Give every code, the bits of a float read as an integer, its value.

        x̂ = scale · (± significand · 2^exponent)            see `FloatFormat`

    Args:
        codes: integers 0 … 2^bits − 1 of any shape.
        format, scale: those that `encode` was given.
    Returns:
        Array of codes' shape and library, float32. Reserved codes become infinity and NaN; a number that is too large
        for float32 only because of its scale becomes float32's largest.
    Raises:
        TypeError: codes that are not integers.  ValueError: no codes, or codes that the format does not have.
    Cost: O(n).

    >>> decode([1, 2, 14, 7], E2M1)
    array([ 0.5,  1. , -4. ,  6. ], dtype=float32)
    """
    check_format(format)
    codes = as_codes(codes, wanted="a code is the bits of a float, read as an integer.")
    compat, xp = array_namespace(codes), native_namespace(codes)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= 2**format.bits:
        raise ValueError(f"codes run from {low} to {high}: {format} has the codes 0 … {2**format.bits - 1}.")
    m = format.significand_bits

    def value_of(part: Array) -> Array:
        sign, exponent, significand = fields(part, format)
        normal = exponent > 0
        steps = compat.astype(significand + normal * 2**m, xp.float64)
        value = xp.ldexp(steps, xp.clip(exponent, 1, None) - format.bias - m)
        return xp.where(sign > 0, -value, value)

    def is_special(part: Array) -> Array:
        return compat.astype(part, xp.int64) % 2 ** (format.bits - 1) > format.largest_code

    real = saturate(of_blocks(in_slabs(value_of, codes, xp.float32), scale, compat.multiply), xp.float32)
    special = in_slabs(is_special, codes, xp.bool)
    if bool(special.any()):
        sign, _, significand = fields(codes, format)
        infinity = xp.where(sign > 0, xp.full_like(real, float("-inf")), xp.full_like(real, float("inf")))
        real = xp.where(special, xp.where(significand == 0, infinity, xp.full_like(real, float("nan"))), real)
    return real[()]


@quietly
def cast(x: Any, format: FloatFormat, scale: Any = 1.0) -> Array:
    """Round every value of `x` to the nearest number of the format: encode and decode in one step.

    Arguments, rounding, errors and cost are those of `encode`; the result is float32, of x's shape.

    >>> cast([0.1, 3.3, 500.0], E4M3)
    array([1.015625e-01, 3.250000e+00, 4.480000e+02], dtype=float32)
    """
    return decode(encode(x, format, scale), format, scale)


def fields(codes: Any, format: FloatFormat) -> tuple[Array, Array, Array]:
    """Take the bits of a float apart: sign, exponent field and significand field, integers of codes' shape.

    >>> fields(0b1101, E2M1)
    (1, 2, 1)
    """
    check_format(format)
    if not isinstance(codes, int):
        codes = as_codes(codes)
        codes = array_namespace(codes).astype(codes, array_namespace(codes).int64)  # masks may be wider than the codes
    m = format.significand_bits
    return codes >> (format.bits - 1), (codes >> m) & (2**format.exponent_bits - 1), codes & (2**m - 1)
