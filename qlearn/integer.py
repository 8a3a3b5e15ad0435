"""Integer arithmetic: products of codes, and the way from an accumulator back to a narrow code.

    codes → matmul → int32 accumulator → requantize → codes

All numbers are whole. The one real factor, the multiplier, is turned into integers before the work starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.arrays import Array, as_array, as_codes, as_floats, dtype_name, like, quietly, to_numpy

INT32_MAX = 2**31 - 1
EXACT_IN_FLOAT32 = 2**24  # all whole numbers up to there


def matmul(
    a: Any,
    b: Any,
    *,
    a_zero_point: Any = 0,
    b_zero_point: Any = 0,
    bias: Any = None,
    largest_sum: int | None = None,
) -> Array:
    """Multiply two matrices of codes, exactly.

        acc = Σₖ (aₖ − z_a) · (bₖ − z_b) + bias
            = Σ aₖ bₖ − z_a Σ bₖ − z_b Σ aₖ + K z_a z_b + bias      the four terms that hardware computes

    Processors are quicker at products of floats than at those of integers, so the integers travel as floats, in
    pieces of K so short that every partial sum is a whole number that float32 holds, below 2²⁴.

    Args:
        a, b: integer codes, (…, M, K) and (…, K, N).
        a_zero_point: a whole number, or an array that broadcasts against a: (M, 1) for one a row.
        b_zero_point: a whole number, or an array that broadcasts against b: (1, N) for one a column.
        bias: integers on the accumulator's grid, (N,), or None.
        largest_sum: what |acc| can be at most, bias included, if that is known; None to look for it in the codes.

    Returns:
        int32, (…, M, N).

    Raises:
        TypeError: codes, zero points or a bias that are not integers.
        ValueError: empty codes; shapes that do not fit; sums that could leave int32, naming K and the bound.

    Cost: O(M K N).
    Source: gemmlowp, doc/low-precision.md; ONNX MatMulInteger, to which it is equal bit for bit.

    >>> matmul([[0, 3]], [[1, 2], [3, 4]], a_zero_point=1)
    array([[5, 6]], dtype=int32)
    """
    a, b = (
        as_codes(codes, name, "it must hold integer codes. Quantize first.") for name, codes in (("a", a), ("b", b))
    )
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"a has shape {tuple(a.shape)}, b has shape {tuple(b.shape)}: wanted are (…, M, K) and (…, K, N)."
        )
    if any(m != n and 1 not in (m, n) for m, n in zip(a.shape[-3::-1], b.shape[-3::-1], strict=False)):
        raise ValueError(
            f"a has shape {tuple(a.shape)}, b has shape {tuple(b.shape)}: axes before the last two must agree."
        )
    _check_shape("a_zero_point", a_zero_point, "a", tuple(a.shape), "(M, 1) for one a row")
    _check_shape("b_zero_point", b_zero_point, "b", tuple(b.shape), "(1, N) for one a column")
    if bias is not None:
        _check_shape(
            "bias", bias, "the last axis of b", tuple(b.shape[-1:]), "(N,)", "Divide it by scale_a · scale_b and round."
        )
    if not isinstance(largest_sum, (int, np.integer, type(None))):
        raise TypeError(f"largest_sum={largest_sum!r} must be a whole number, or None.")
    if largest_sum is None:
        largest_sum = _largest_sum(a, a_zero_point, b, b_zero_point, bias)
    b, xp = like(b, a), array_namespace(a)
    acc = sum_of_products(
        xp.matmul, (a, b), (_number(a_zero_point, a), _number(b_zero_point, b)), (-1, -2), largest_sum
    )
    return acc if bias is None else acc + xp.astype(like(bias, acc), xp.int32)


def sum_of_products(
    multiply: Callable[[Array, Array], Array],
    codes: tuple[Array, Array],
    zero_points: tuple[Any, Any],
    axes: tuple[int, int],
    largest: int,
) -> Array:
    """What `multiply` makes of two arrays of codes, their zero points taken off, exactly: `matmul`, or a convolution.

    Args:
        multiply: a linear map of both, which adds up products along an axis of each.
        codes, zero_points: two of each.
        axes: the two axes.
        largest: as many products as a sum has, times the largest magnitude that one of them can have.

    Returns:
        int32.

    >>> sum_of_products(np.matmul, (np.array([[0, 3]]), np.array([[1], [3]])), (1, 0), (-1, -2), 9)
    array([[5]], dtype=int32)
    """
    xp = array_namespace(*codes)
    n = codes[0].shape[axes[0]]
    # PyTorch may multiply float32 in TF32 or bfloat16, if its user has said so: that is exact for codes of 8 bits.
    narrow = isinstance(codes[0], np.ndarray) or all(dtype_name(array) in ("int8", "uint8") for array in codes)
    step = n if largest < EXACT_IN_FLOAT32 or not narrow else n * (EXACT_IN_FLOAT32 - 1) // largest
    dtype = xp.float32 if step and narrow else xp.float64  # where not even one product of each kind fits into float32
    acc = None
    for start in range(0, n, step or n):
        parts = []
        for values, zero_point, axis in zip(codes, zero_points, axes, strict=True):
            part, zero = (_cut(array, axis, start, step or n) for array in (values, zero_point))
            parts.append(xp.astype(part, dtype) - zero)
        sums = xp.astype(multiply(*parts), xp.int32)
        acc = sums if acc is None else acc + sums
    return acc


@quietly
def quantize_multiplier(multiplier: Any) -> tuple[Any, Any]:
    """Write a real factor as a 31-bit integer and a shift.

        multiplier ≈ m · 2^(−31 − shift),   2³⁰ ≤ m < 2³¹,  shift ≥ 0

    m is rounded half away from zero. The factor of a quantized layer is scale_x · scale_w / scale_y.

    Args:
        multiplier: real numbers, 0 < multiplier < 1; a scalar, or an array with one a channel.

    Returns:
        (m, shift), whole numbers; int64 arrays of multiplier's shape for an array.

    Raises:
        ValueError: a multiplier outside (0, 1), or so small that its shift is more than 31.

    Source: gemmlowp, doc/quantization_example.cc, QuantizeMultiplierSmallerThanOne.

    >>> quantize_multiplier(0.3)
    (1288490189, 1)
    """
    real = np.asarray(to_numpy(as_floats(multiplier, "multiplier")), dtype=np.float64)
    if not ((real > 0) & (real < 1)).all():
        wrong = float(real[~((real > 0) & (real < 1))].flat[0]) if real.ndim else float(real)
        raise ValueError(
            f"multiplier={wrong} must be larger than 0 and smaller than 1: scale_x · scale_w / scale_y. "
            "If it is larger, the output's range is too narrow for what the layer computes."
        )
    fraction, exponent = np.frexp(real)  # real = fraction · 2^exponent with 0.5 ≤ fraction < 1
    m = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    shift = -exponent.astype(np.int64)
    over = m == 2**31  # 0.99999… was rounded up to 1: half of it, one place further left
    m, shift = np.where(over, m // 2, m), np.where(over, shift - 1, shift)
    m, shift = np.where(shift < 0, 2**31 - 1, m), np.maximum(shift, 0)  # and next to 1 itself, the largest there is
    if (shift > 31).any():
        raise ValueError(f"multiplier={float(real.min())} cannot be written with a shift of 0 to 31.")
    if real.ndim == 0:
        return int(m), int(shift)
    return m, shift


def requantize(acc: Any, m: Any, shift: Any, *, zero_point: Any, quant_min: int, quant_max: int) -> Array:
    """Turn int32 accumulators into codes of the next layer, with integers only.

        high = rint(acc · m / 2³¹)                                        halves towards +∞
        code = clamp(rint(high / 2^shift) + zero_point, quant_min, quant_max)   halves away from zero

    A ReLU costs nothing: let quant_min be zero_point.

    Args:
        acc: int32 accumulators.
        m, shift: from `quantize_multiplier`; scalars, or arrays that broadcast against acc.
        zero_point: of the output's codes; a whole number, or an array that broadcasts against acc.
        quant_min, quant_max: of the output's codes.

    Returns:
        Codes of acc's shape, in int32.

    Raises:
        TypeError: numbers that are not integers.
        ValueError: empty acc; shapes that do not fit it; m outside 2³⁰ … 2³¹ − 1, shift outside 0 … 31,
            accumulators outside int32.

    Cost: O(n).
    Source: gemmlowp, fixedpoint/fixedpoint.h, SaturatingRoundingDoublingHighMul and RoundingDivideByPOT.

    >>> requantize([-1000, 10, 1000], *quantize_multiplier(0.3), zero_point=5, quant_min=0, quant_max=255)
    array([  0,   8, 255], dtype=int32)
    """
    acc = as_codes(acc, "acc", "accumulators are integers.")
    for name, number in {"m": m, "shift": shift, "zero_point": zero_point}.items():
        _check_shape(name, number, "acc", tuple(acc.shape), "one number for all, or one for each channel")
    for name, number in {"quant_min": quant_min, "quant_max": quant_max}.items():
        _check_shape(name, number, "acc", (), "one whole number")
    if not -INT32_MAX - 1 <= int(quant_min) <= int(quant_max) <= INT32_MAX:
        raise ValueError(f"quant_min={quant_min}, quant_max={quant_max}: wanted are codes of int32, in rising order.")
    m_numbers, shifts = as_array(to_numpy(m)), as_array(to_numpy(shift))
    if (m_numbers < 2**30).any() or (m_numbers >= 2**31).any() or (shifts < 0).any() or (shifts > 31).any():
        raise ValueError("m must lie in 2**30 … 2**31 − 1 and shift in 0 … 31: take both from quantize_multiplier.")
    xp = array_namespace(acc)
    wide = xp.astype(acc, xp.int64)
    if bool((wide > INT32_MAX).any()) or bool((wide < -INT32_MAX - 1).any()):
        raise ValueError("acc holds sums outside int32: they have wrapped, or would on hardware.")
    product = wide * like(m, wide, xp.int64)
    high = (product + 2**30) >> 31
    code = _shift_right(high, like(shift, wide, xp.int64)) + like(zero_point, wide, xp.int64)
    return xp.astype(xp.clip(code, quant_min, quant_max), xp.int32)


def _shift_right(values: Array, places: Array) -> Array:
    """values / 2^places, rounded to the nearest integer, halves away from zero."""
    xp = array_namespace(values)
    half = (xp.ones_like(values) << places) >> 1
    return xp.where(values < 0, -((-values + half) >> places), (values + half) >> places)


def _check_shape(name: str, number: Any, other: str, shape: tuple[int, ...], wanted: str, advice: str = "") -> None:
    """Raise unless `number` holds integers and broadcasts against an array of this shape without making it larger."""
    number = as_array(number, name)
    if "int" not in dtype_name(number):
        raise TypeError(f"{name} has dtype {dtype_name(number)}: it must hold integers.{advice and ' ' + advice}")
    own = tuple(number.shape)
    if len(own) > len(shape) or any(n not in (1, m) for n, m in zip(own[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name} has shape {own}, {other} has shape {shape}: wanted is {wanted}.")


def _largest_sum(a: Array, a_zero_point: Any, b: Array, b_zero_point: Any, bias: Any) -> int:
    """What a sum of products can reach with codes as large as these.

    Raises:
        ValueError: more than int32 holds.
    """
    depth = int(a.shape[-1])
    product = _reach(a, a_zero_point) * _reach(b, b_zero_point)
    of_bias = 0 if bias is None else int(np.abs(np.asarray(to_numpy(as_array(bias)), dtype=np.float64)).max())
    bound = depth * product + of_bias
    if bound > INT32_MAX:
        raise ValueError(
            f"sums of K={depth} products can reach {bound}, beyond int32's {INT32_MAX}: "
            f"with codes this large K must be at most {max(INT32_MAX - of_bias, 0) // max(product, 1)}."
        )
    return bound


def _reach(codes: Array, zero_point: Any) -> int:
    """The largest |code − zero_point|."""
    if isinstance(zero_point, (int, np.integer)):
        return max(int(codes.max()) - int(zero_point), int(zero_point) - int(codes.min()))
    xp = array_namespace(codes)
    return int(abs(xp.astype(codes, xp.float64) - _number(zero_point, codes)).max())


def _number(zero_point: Any, codes: Array) -> Any:
    return int(zero_point) if isinstance(zero_point, (int, np.integer)) else like(zero_point, codes, None)


def _cut(array: Any, axis: int, start: int, step: int) -> Any:
    """A piece of an array along an axis, counted from the end; what has one entry for all of it stays."""
    if isinstance(array, int) or array.ndim < -axis or step >= array.shape[axis]:
        return array
    places = [slice(None)] * array.ndim
    places[axis] = slice(start, start + step)
    return array[tuple(places)]
