"""Scales that take few bits themselves: powers of two for the MX formats, FP8 numbers for NVFP4.

With 16 or 32 values to a scale, a scale of 32 bits would cost one or two bits a value. These take a quarter
of that. Each function returns scales of x's rank that `codebooks.encode` and `formats.encode` take as they are.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace

from qlearn import formats
from qlearn.arrays import Array, as_floats, block_rows, exponent_of, native_namespace, quietly, saturate
from qlearn.formats import E2M1, E4M3, FloatFormat
from qlearn.granularity import Granularity, PerGroup, PerTensor

LARGEST_POWER = 127  # of an E8M0 scale: eight bits, no sign, no significand
RULES = ("floor", "ceil", "rceil", "even")


@quietly
def max_scale(x: Any, largest: float, granularity: Granularity = PerTensor()) -> Array:
    """The scale that puts each block's largest magnitude on the largest level.

        scale = max|x| / largest

    An all-zero block gets 1.0.

    Args:
        x: array of any shape.
        largest: the largest level: 1.0 for NF4, 448.0 for FP8 E4M3.
        granularity: what a block is.
    Returns:
        A number for `PerTensor`, else an array of x's rank; float32, float64 for a float64 x.
    Raises:
        ValueError: empty `x`, NaN or infinity, a group size that does not divide.
    Cost: O(n).

    >>> max_scale([[1.0, -4.0, 0.5, 0.25]], 1.0, PerGroup(2))
    array([[4. , 0.5]])
    """
    largest_of_block = _largest(x, granularity) / largest
    xp = array_namespace(largest_of_block)
    return xp.where(largest_of_block > 0, largest_of_block, xp.ones_like(largest_of_block))[()]


@quietly
def mx_scale(x: Any, format: FloatFormat = E2M1, *, rule: str = "floor", block_size: int = 32) -> Array:
    """The power of two that an MX block of values shares.

        floor:   2^(floor(log2 a) − e)          what the specification says; cuts up to a quarter off an FP4 block
        ceil:    2^(ceil(log2 a) − e)           cuts nothing off, but then FP4's 6 is never used
        rceil:   2^ceil(log2(a / largest))      the smallest power that cuts nothing off
        even:    2^(floor(log2 a′) − e)         a′ is a rounded to the format's significand, half up

    a is the block's largest magnitude, e the exponent of the format's largest number: 2 for FP4, 8 for E4M3.
    An all-zero block gets 1.0.

    Args:
        x: array (…, n).
        format: of the values.
        rule: one of the four.
        block_size: how many neighbours along the last axis share a scale; it must divide n.
    Returns:
        Powers of two 2⁻¹²⁷ … 2¹²⁷, (…, n / block_size), float32, or float64 for a float64 x.
    Raises:
        ValueError: an unknown rule, empty `x`, NaN or infinity, a block size that does not divide n.
    Cost: O(n).
    Source: OCP Microscaling Formats (MX) Specification 1.0, section 6.3; rceil: NVIDIA's cuBLAS; all four: torchao.

    >>> x = [[0.1, 7.0]]
    >>> [float(mx_scale(x, rule=rule, block_size=2)[0, 0]) for rule in RULES]
    [1.0, 2.0, 2.0, 2.0]
    """
    formats.check_format(format)
    return powers_of_two(_largest(x, PerGroup(block_size)), format.largest, format.significand_bits, rule)


@quietly
def nvfp4_scale(x: Any, block_size: int = 16) -> Array:
    """The scales of NVFP4: an FP8 number for each block, times one float32 number for the tensor.

        s = max|x| / (6 · 448)          scale = s · cast(a / (6 s), FP8 E4M3)

    a is the block's largest magnitude, 6 the largest number of FP4 and 448 that of E4M3, so that the block with
    the largest value gets 448. A block so small that its FP8 number would be 0 gets the smallest above 0, and a scale
    too small for its type the type's smallest.

    Args:
        x: array (…, n).
        block_size: how many neighbours along the last axis share an FP8 number; it must divide n.
    Returns:
        (…, n / block_size), float32, or float64 for a float64 x. All-zero `x` gets 1.0.
    Raises:
        ValueError: empty `x`, NaN or infinity, a block size that does not divide n.
    Cost: O(n).
    Source: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference" (2025).

    >>> nvfp4_scale([[3.0, -1.0, 0.5, 0.4]], block_size=2)
    array([[0.5       , 0.08035714]])
    """
    return fp8_numbers(_largest(x, PerGroup(block_size)), E2M1.largest)


@quietly
def powers_of_two(a: Array, largest: float, significand_bits: int, rule: str) -> Array:
    """A power of two for each of some largest magnitudes, by one of the rules of `mx_scale`.

    Args:
        a: the blocks' largest magnitudes, of any shape.
        largest: the largest level.
        significand_bits: how finely levels just below it are spaced; only the rule "even" asks.
        rule: "floor", "ceil", "rceil" or "even".
    Returns:
        Powers of two of a's shape and type.
    Raises:
        ValueError: an unknown rule.

    >>> import numpy as np
    >>> powers_of_two(np.array([6.0, 6.5, 7.0]), 6.0, 1, "even")
    array([1., 1., 2.])
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"rule={rule!r} must be one of {', '.join(map(repr, RULES))}.")
    compat, xp, dtype = array_namespace(a), native_namespace(a), a.dtype
    a = compat.astype(a, xp.float64)
    over = largest if rule == "rceil" else 2.0 ** (math.frexp(largest)[1] - 1)  # the largest level, or its power of two
    significand, power = xp.frexp(a / over)  # a / over = significand · 2^power, and ½ ≤ significand < 1
    # Rounded up are: none; all but the powers of two themselves; those that are half a step or less below the next.
    half_a_step = 2.0 ** -(significand_bits + 2)
    most = {"floor": 1.0, "ceil": 0.5, "rceil": 0.5, "even": math.nextafter(1 - half_a_step, 0)}[rule]
    power = xp.clip(power - 1 + (significand > most) * 1, -LARGEST_POWER, LARGEST_POWER)
    power = xp.where(significand > 0, power, xp.full_like(power, -LARGEST_POWER))  # a / over may have become 0
    power = xp.where(a > 0, power, xp.zeros_like(power))
    return compat.astype(xp.ldexp(xp.ones_like(a), power), dtype)


@quietly
def fp8_numbers(a: Array, largest: float) -> Array:
    """A scale for each of some largest magnitudes: an FP8 number times what all of them share, as in `nvfp4_scale`.

    Args:
        a: the blocks' largest magnitudes, of any shape.
        largest: the largest level.
    Returns:
        Scales of a's shape and type.

    >>> import numpy as np
    >>> fp8_numbers(np.array([448.0, 10.2, 0.0]), 1.0)
    array([4.480000e+02, 1.000000e+01, 1.953125e-03])
    """
    xp, dtype = array_namespace(a), a.dtype
    top = float(xp.max(a))
    if top == 0:
        return xp.ones_like(a)
    # Counted in a power of two next to the largest of them: a / (largest · s) neither overflows nor loses digits.
    unit = 2.0 ** exponent_of(top, ordinary=1.0)
    a = xp.astype(xp.astype(a, xp.float64) / unit, dtype)
    s = float(xp.max(a)) / (largest * E4M3.largest)
    short = xp.clip(xp.astype(formats.cast(a / (largest * s), E4M3), dtype), E4M3.smallest, None)
    scale = xp.astype(s * short, xp.float64) * unit
    return saturate(xp.clip(scale, float(xp.finfo(dtype).smallest_normal) * float(xp.finfo(dtype).eps), None), dtype)


def bits_per_value(bits: float, block_size: float, scale_bits: float, n: int, extra_bits: float = 0) -> float:
    """What one value really costs: its code, its share of the block's scale, and of what there is once for all.

        bits + scale_bits / block_size + extra_bits / n

    Args:
        bits: of a code.
        block_size: values that share a scale.
        scale_bits: of a scale.
        n: how many values there are.
        extra_bits: stored once: a codebook's levels, a scale for the whole tensor.

    >>> bits_per_value(4, 16, 8, n=1024, extra_bits=32)
    4.53125
    """
    return bits + scale_bits / block_size + extra_bits / n


def _largest(x: Any, granularity: Granularity) -> Array:
    """The largest magnitude of each block, in the shape of the scales."""
    x = as_floats(x)
    xp = array_namespace(x)
    shape = granularity.scale_shape(tuple(x.shape))
    if math.prod(shape) == 1:
        return xp.max(xp.abs(x)).reshape(shape)
    return xp.max(xp.abs(block_rows(x, shape)), axis=-1).reshape(shape)
