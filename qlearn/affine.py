"""Affine quantization: real numbers to integer codes and back.

    x  →  quantize  →  code  →  dequantize  →  x̂

A line with evenly spaced ticks: `scale` is the distance between two ticks, `zero_point` is the number
written on the tick at 0.0. Lesson 01 builds these functions by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from qlearn.arrays import (
    Array,
    all_finite,
    as_array,
    as_codes,
    as_floats,
    block_view,
    can_hold,
    check_finite,
    dtype_name,
    like,
    native_namespace,
    quietly,
    slabs,
    to_numpy,
)

CODE_DTYPES = ("uint8", "int8", "int16", "int32")
EXACT_IN_FLOAT32 = 2**24  # all integers up to here


@dataclass(frozen=True, repr=False)
class QParams:
    """The four numbers that define an affine quantizer:  x ≈ scale · (code − zero_point).

    Attributes:
        scale: distance between neighbouring ticks, > 0, in the units of x. A scalar, or an array of x's
            rank each entry of which covers one block of x: `x.shape[i] % scale.shape[i] == 0`.
        zero_point: the code of 0.0, quant_min ≤ zero_point ≤ quant_max. A scalar or an array of scale's shape.
        quant_min, quant_max: the smallest and the largest code.

    >>> QParams(scale=0.5, zero_point=10, quant_min=0, quant_max=255)
    QParams(scale=0.5, zero_point=10, quant_min=0, quant_max=255)
    >>> QParams(np.array([[0.5], [2.0]]), 0, -7, 7) == QParams(np.array([[0.5], [2.0]]), 0, -7, 7)
    True
    """

    scale: Any
    zero_point: Any
    quant_min: int
    quant_max: int

    def __post_init__(self) -> None:
        for name in ("quant_min", "quant_max"):
            limit = getattr(self, name)
            if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)):
                raise TypeError(f"{name}={limit!r} is a code, so it must be a whole number.")
            object.__setattr__(self, name, int(limit))  # NumPy's integers have no bit_length, and overflow
        if not self.quant_min < self.quant_max:
            raise ValueError(f"quant_min={self.quant_min} must be smaller than quant_max={self.quant_max}.")
        scale = as_floats(self.scale, "scale")
        if not bool((scale > 0).all()):
            raise ValueError(f"scale={_text(self.scale)} must be larger than 0: it is the distance between two ticks.")
        zero_point = as_array(self.zero_point, "zero_point")
        if "int" not in dtype_name(zero_point):
            raise TypeError(f"zero_point has dtype {dtype_name(zero_point)}: it is a code, so it must be an integer.")
        if tuple(zero_point.shape) not in ((), tuple(scale.shape)):
            raise ValueError(
                f"zero_point has shape {tuple(zero_point.shape)}, "
                f"scale has shape {tuple(scale.shape)}: they must agree."
            )
        if not bool(((zero_point >= self.quant_min) & (zero_point <= self.quant_max)).all()):
            raise ValueError(
                f"zero_point={_text(self.zero_point)} lies outside the codes {self.quant_min} … {self.quant_max}: "
                "0.0 must have a code of its own. Widen the range so that it holds 0."
            )

    @property
    def bits(self) -> int:
        """How many bits one code takes."""
        return (self.quant_max - self.quant_min).bit_length()

    @property
    def code_dtype(self) -> str:
        """The smallest of uint8, int8, int16 and int32 that holds every code."""
        for name in CODE_DTYPES:
            if np.iinfo(name).min <= self.quant_min and self.quant_max <= np.iinfo(name).max:
                return name
        raise ValueError(f"codes {self.quant_min} … {self.quant_max} do not fit into 32 bits.")

    def __eq__(self, other: object) -> bool:
        """The same numbers in the same shapes; whether NumPy or PyTorch holds them does not matter."""
        return self._numbers() == other._numbers() if isinstance(other, QParams) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._numbers())

    def _numbers(self) -> tuple[Any, ...]:
        arrays = [as_array(self.scale), as_array(self.zero_point)]
        of_arrays = [(tuple(array.shape), tuple(array.reshape(-1).tolist())) for array in arrays]
        return (*of_arrays, self.quant_min, self.quant_max)

    def __repr__(self) -> str:
        return (
            f"QParams(scale={_text(self.scale)}, zero_point={_text(self.zero_point)}, "
            f"quant_min={self.quant_min}, quant_max={self.quant_max})"
        )


@quietly
def choose_qparams(
    lo: Any, hi: Any, *, bits: int = 8, symmetric: bool = False, narrow_range: bool = True, signed: bool = False
) -> QParams:
    """Find the quantizer whose ticks span the range from `lo` to `hi`, widened to hold 0.

        asymmetric:  scale = (hi − lo) / (2ᵇ − 1)                zero_point = rint(−lo / scale)   codes 0 … 2ᵇ − 1
        … signed:    the same ticks                              and all codes 2ᵇ⁻¹ smaller       −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1
        symmetric:   scale = max(−lo, hi) / (2ᵇ⁻¹ − 1)           zero_point = 0                   codes ±(2ᵇ⁻¹ − 1)
        … full:      scale = max(−lo / 2ᵇ⁻¹, hi / (2ᵇ⁻¹ − 1))    zero_point = 0                   codes −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1

    Solved in float64, then the scale is rounded to the type of `lo` and `hi`, and the zero point is
    computed from that rounded scale, half to even. A scale of 0 (`lo == hi == 0`, or a range too small
    for the type) becomes 1.0 with zero point 0.

    Args:
        lo, hi: the range, lo ≤ hi: two numbers, or two arrays of one shape with one entry for each block.
        bits: 1 … 16, or 2 … 16 if symmetric.
        symmetric: signed codes, zero point 0.
        narrow_range: for symmetric codes, leave out −2ᵇ⁻¹, so that the codes are symmetric too.
        signed: for asymmetric codes, count from −2ᵇ⁻¹, as ONNX Runtime and LiteRT do. Symmetric codes always are.

    Returns:
        `QParams`; Python numbers for Python numbers, else scale of lo's library and type (float32 for half types).

    Raises:
        ValueError: bits outside its limits, lo > hi, NaN or infinity.
        TypeError: `symmetric`, `narrow_range` or `signed` neither True nor False.

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 2.1 and equation 5.

    >>> choose_qparams(-1.0, 3.0, bits=2)
    QParams(scale=1.3333333333333333, zero_point=1, quant_min=0, quant_max=3)
    >>> choose_qparams(-1.0, 3.0, bits=8, symmetric=True)
    QParams(scale=0.023622047244094488, zero_point=0, quant_min=-127, quant_max=127)
    >>> choose_qparams(-1.0, 3.0, bits=2, signed=True)
    QParams(scale=1.3333333333333333, zero_point=-1, quant_min=-2, quant_max=1)
    """
    quant_min, quant_max = quant_limits(bits, symmetric=symmetric, narrow_range=narrow_range, signed=signed)
    low, high, dtype = _range_in_float64(lo, hi)
    xp = array_namespace(low)
    low, high = xp.minimum(low, xp.zeros_like(low)), xp.maximum(high, xp.zeros_like(high))

    if symmetric:
        # −quant_min is 2ᵇ⁻¹ − 1 in the narrow range and 2ᵇ⁻¹ in the full one: one line is both formulas.
        exact = xp.maximum(low / quant_min, high / quant_max)
    else:
        steps = quant_max - quant_min
        exact = high / steps - low / steps  # = (high − low) / steps, and cannot overflow
    scale = xp.astype(xp.clip(exact, max=xp.finfo(dtype).max), dtype)
    scale = xp.where(scale == 0, xp.ones_like(scale), scale)

    zero_point = xp.zeros_like(low) if symmetric else quant_min + xp.round(-low / xp.astype(scale, xp.float64))
    zero_point = xp.astype(xp.clip(zero_point, quant_min, quant_max), xp.int32)

    if low.ndim > 0:
        return QParams(scale, zero_point, quant_min, quant_max)
    plain = _is_python_number(lo) and _is_python_number(hi)
    return QParams(float(scale) if plain else scale[()], int(zero_point), quant_min, quant_max)


@quietly
def quantize(x: Any, qparams: QParams) -> Array:
    """Give every value of `x` the code of its nearest tick.

        code = clamp(rint(x / scale) + zero_point, quant_min, quant_max)

    Divides (no multiplication with the reciprocal), rounds half to even, rounds before the zero point is
    added, and clamps before the cast to a narrow integer: values outside the range saturate, they never wrap.

    Args:
        x: array of any shape; half types are computed in float32, and any type in float64 whose numbers would be
            too small or too large to hold the scale.
        qparams: scale and zero point as scalars, or as arrays of x's rank, one entry for each block of x.

    Returns:
        Codes of x's shape, in the smallest of uint8, int8, int16 and int32 that holds quant_min … quant_max.

    Raises:
        ValueError: empty `x`, NaN or infinity in `x`, a scale whose shape does not divide x's.
        TypeError: qparams that are none.

    Cost: O(n), in pieces that fit the processor's cache.
    Source: ONNX, https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html; equal to ONNX Runtime bit for bit.

    >>> quantize([-0.6, 0.25, 0.75, 9.0], QParams(scale=0.5, zero_point=1, quant_min=0, quant_max=7))
    array([0, 1, 3, 7], dtype=uint8)
    """
    check_qparams(qparams)
    x = working_floats(x, qparams)
    xp = native_namespace(x)
    view, scale, zero_point = align(x, qparams, x.dtype)
    codes = xp.empty_like(view, dtype=getattr(xp, qparams.code_dtype))
    for rows in slabs(view):
        part, s, z = view[rows], of_rows(scale, rows), of_rows(zero_point, rows)
        if not all_finite(part):  # asked here, where the values are in the cache already
            check_finite(x)
        part = part / s  # may overflow to infinity, which the clamp brings back
        xp.round(part, out=part)
        part += z
        codes[rows] = xp.clip(part, qparams.quant_min, qparams.quant_max, out=part)
    return codes.reshape(x.shape)[()]


@quietly
def dequantize(codes: Any, qparams: QParams) -> Array:
    """Give every code the value of its tick.

        x̂ = scale · (code − zero_point),  clamped to the numbers of its type

    Args:
        codes: integer array of any shape.
        qparams: the quantizer that made them.

    Returns:
        Array of codes' shape and of scale's type; for a Python number or integers as scale, of the library's
        default float. A tick that lies beyond the type's largest number becomes that number, not infinity.

    Raises:
        TypeError: codes that are not integers, qparams that are none.
        ValueError: empty codes; a scale whose shape does not divide codes'.

    Cost: O(n), in pieces that fit the processor's cache.
    Source: ONNX, https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.

    >>> dequantize(np.array([0, 1, 3, 7], dtype=np.uint8), QParams(0.5, 1, 0, 7))
    array([-0.5,  0. ,  1. ,  3. ])
    """
    check_qparams(qparams)
    codes = as_codes(codes, wanted="they must be integers. Did you pass x instead of its codes?")
    xp = native_namespace(codes)
    dtype = dtype_name(as_array(qparams.scale))
    if _is_python_number(qparams.scale) or "int" in dtype:
        dtype = "float32" if is_torch_array(codes) else "float64"
    return _dequantize(codes, qparams, getattr(xp, dtype, xp.float32))  # NumPy has no bfloat16


@quietly
def fake_quantize(x: Any, qparams: QParams) -> Array:
    """Round every value of `x` to its nearest tick: quantize and dequantize in one step.

        x̂ = scale · (clamp(rint(x / scale) + zero_point, quant_min, quant_max) − zero_point),  clamped to x's type

    "Fake", because the result is still a float: it shows the error of quantization and saves nothing.
    Arguments, errors and cost are those of `quantize`; the result has x's shape and type.

    >>> fake_quantize([-0.6, 0.25, 0.75, 9.0], QParams(0.5, 1, 0, 7))
    array([-0.5,  0. ,  1. ,  3. ])
    """
    x = as_array(x)
    floats = as_floats(x)
    return _dequantize(quantize(floats, qparams), qparams, x.dtype if "float" in dtype_name(x) else floats.dtype)


def check_qparams(qparams: object) -> None:
    """Raise `TypeError` unless they are `QParams`.

    >>> check_qparams(0.1)
    Traceback (most recent call last):
    TypeError: qparams is a float: wanted is a QParams. find_qparams(x) finds one, QParams(scale, 0, -127, 127) is one.
    """
    if not isinstance(qparams, QParams):
        raise TypeError(
            f"qparams is a {type(qparams).__name__}: wanted is a QParams. find_qparams(x) finds one, "
            "QParams(scale, 0, -127, 127) is one."
        )


def quant_limits(
    bits: int, *, symmetric: bool = False, narrow_range: bool = True, signed: bool = False
) -> tuple[int, int]:
    """The smallest and the largest code: 0 … 2ᵇ − 1, or symmetric ±(2ᵇ⁻¹ − 1), or −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1.

    >>> quant_limits(8), quant_limits(8, symmetric=True), quant_limits(8, symmetric=True, narrow_range=False)
    ((0, 255), (-127, 127), (-128, 127))
    """
    for name, value in (("symmetric", symmetric), ("narrow_range", narrow_range), ("signed", signed)):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}={value!r} must be True or False.")
    fewest = 2 if symmetric else 1
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not fewest <= bits <= 16:
        raise ValueError(
            f"bits={bits!r} must be a whole number from {fewest} to 16"
            + (" (symmetric codes need one bit for the sign)." if symmetric else ".")
        )
    half = 2 ** (int(bits) - 1)
    if symmetric:
        return (1 - half if narrow_range else -half), half - 1
    return (-half, half - 1) if signed else (0, 2 * half - 1)


@quietly
def _dequantize(codes: Array, qparams: QParams, dtype: Any) -> Array:
    xp = native_namespace(codes)
    largest = float(xp.finfo(dtype).max)
    # Computed in floats: code − zero_point need not fit into the codes' own type, nor into a half type.
    wide = getattr(xp, working_type("float64" if dtype == xp.float64 else "float32", qparams))
    view, scale, zero_point = align(codes, qparams, wide)
    x_hat = xp.empty_like(view, dtype=wide)
    for rows in slabs(view):
        part = x_hat[rows]
        part[...] = view[rows]
        part -= of_rows(zero_point, rows)
        part *= of_rows(scale, rows)
        xp.clip(part, -largest, largest, out=part)
    return array_namespace(codes).astype(x_hat.reshape(codes.shape), dtype, copy=False)[()]


def working_type(dtype: str, qparams: QParams) -> str:
    """The type to compute in: `dtype`, "float32" or "float64"; float64 if float32 cannot hold scales or codes."""
    check_qparams(qparams)
    largest_code = max(-qparams.quant_min, qparams.quant_max)
    fits = largest_code <= EXACT_IN_FLOAT32 and can_hold(dtype, as_floats(qparams.scale, "scale"))
    return dtype if fits else "float64"


def working_floats(x: Any, qparams: QParams) -> Array:
    """`x` as an array of the `working_type`, not yet checked for NaN and infinity."""
    x = as_floats(x, finite=False)
    xp = array_namespace(x)
    return xp.astype(x, getattr(xp, working_type(dtype_name(x), qparams)), copy=False)


def align(x: Array, qparams: QParams, dtype: Any) -> tuple[Array, Any, Any]:
    """`x` viewed in blocks, and scale and zero point as what broadcasts against it.

    Scalars become Python numbers, because those take the type of the array they meet in both libraries;
    a 0-d array would not (float32 ÷ 0-d float64 is float64 in NumPy and float32 in PyTorch).
    """
    scale, zero_point = as_array(qparams.scale), as_array(qparams.zero_point)
    if scale.ndim == 0:
        # On other devices than the processor, PyTorch divides by a Python number as if it were its reciprocal.
        elsewhere = is_torch_array(x) and x.device.type != "cpu"
        return x.reshape(-1), like(scale, x, dtype) if elsewhere else float(scale), int(zero_point)
    view, shape = block_view(x, tuple(scale.shape))
    if zero_point.ndim > 0:
        zero_point = zero_point.reshape(shape)
    return view, like(scale.reshape(shape), x, dtype), like(zero_point, x, dtype)


def of_rows(parameter: Any, rows: slice) -> Any:
    """The part of a scale or zero point that belongs to these rows: all of it, unless each row has its own."""
    if isinstance(parameter, (int, float)) or parameter.ndim == 0 or len(parameter) == 1:
        return parameter
    return parameter[rows]


def _range_in_float64(lo: Any, hi: Any) -> tuple[Array, Array, Any]:
    """Both ends as finite float64 arrays of one shape, and the type in which the scale is to be stored."""
    low, high = as_floats(lo, "lo"), as_floats(hi, "hi")
    if is_torch_array(high) and not is_torch_array(low):
        low = like(low, high)
    high = like(high, low)
    if low.shape != high.shape:
        raise ValueError(f"lo has shape {tuple(low.shape)}, hi has shape {tuple(high.shape)}: they must agree.")
    xp = array_namespace(low)
    dtype = xp.result_type(low, high)
    low, high = xp.astype(low, xp.float64), xp.astype(high, xp.float64)
    if bool((low > high).any()):
        worst = low > high
        raise ValueError(
            f"lo={float(low[worst][0])} is larger than hi={float(high[worst][0])}: a range needs lo <= hi."
        )
    return low, high, dtype


def _is_python_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, np.generic)


def _text(value: Any) -> str:
    """A scalar's shortest decimal form; of an array its type and shape, so that a QParams prints on one line."""
    array = as_array(value)
    if array.ndim > 0:
        return f"<{dtype_name(array)} {tuple(array.shape)}>"
    return str(np.asarray(to_numpy(array))[()])
