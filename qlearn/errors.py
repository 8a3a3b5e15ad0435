"""How far x̂ is from x: one number for the error, and where it comes from.

Sums are taken in float64, whatever the type of the data, so that a million small squares add up. Values beyond
1e154, whose squares float64 cannot hold, are divided by a power of two before they are squared.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from qlearn.affine import QParams, align, check_qparams, fake_quantize, quantize, working_floats
from qlearn.arrays import Array, all_finite, as_array, as_floats, as_shape, check_finite, exponent_of, like, quietly

SCALE_BITS = 32  # a scale is stored as float32


@quietly
def mse(x: Any, x_hat: Any) -> float:
    """Mean squared error, in the squared units of x.

        mse = mean((x − x̂)²)

    Args:
        x, x_hat: arrays of one shape, of NumPy or PyTorch.
    Returns:
        A finite float64: an error that is too large for it is its largest number, 1.8e308.
    Raises:
        ValueError: different shapes, an empty array, NaN or infinity.
    Cost: O(n).

    >>> mse([1.0, 2.0, 3.0], [1.0, 2.5, 2.5])
    0.16666666666666666
    """
    return _mean_square(*_difference(x, x_hat)).number


@quietly
def sqnr_db(x: Any, x_hat: Any) -> float:
    """Signal-to-quantization-noise ratio in decibel: how much larger the signal is than the error.

        sqnr = 10 · log10( Σ x² / Σ (x − x̂)² )

    One bit more is about 6.02 dB more: half the step, a quarter of the squared error.
    No error at all is infinity; an error on an all-zero signal is minus infinity.
    Arguments, errors and cost are those of `mse`.

    Source: W. R. Bennett, "Spectra of quantized signals", Bell System Technical Journal 27 (1948).

    >>> round(sqnr_db([1.0, -1.0], [0.9, -0.9]), 6)
    20.0
    """
    noise = _mean_square(*_difference(x, x_hat))
    signal = _mean_square(as_floats(x))
    if noise.mantissa == 0:
        return math.inf
    if signal.mantissa == 0:
        return -math.inf
    return 10 * math.log10(signal.mantissa / noise.mantissa) + 10 * math.log10(2) * (signal.exponent - noise.exponent)


@quietly
def split(x: Any, qparams: QParams) -> tuple[float, float]:
    """The mean squared error's two parts: (rounding, clipping). Their sum is the MSE.

        clipped  ⇔  rint(x / scale) + zero_point lies outside quant_min … quant_max
        clipping = Σ over clipped values of (x − x̂)² / n        rounding = the same over all others

    A wider range has larger steps, so more rounding error; a narrower one cuts off more, so more clipping error.

    Returns:
        Two floats, in the squared units of x.
    Raises:
        ValueError: as `quantize`.
    Cost: O(n).

    >>> split([0.25, 1.0, 9.0], QParams(scale=1.0, zero_point=0, quant_min=0, quant_max=7))
    (0.020833333333333332, 1.3333333333333333)
    """
    difference, power = _difference(x, fake_quantize(x, qparams))
    outside = clipped(x, qparams)
    return _mean_square(difference * ~outside, power).number, _mean_square(difference * outside, power).number


@quietly
def clipped(x: Any, qparams: QParams) -> Array:
    """Which values of `x` have no tick of their own and get the first or the last one: booleans of x's shape.

        rint(x / scale) + zero_point < quant_min   or   > quant_max

    >>> clipped([-0.4, 0.4, 7.4, 7.6], QParams(scale=1.0, zero_point=0, quant_min=0, quant_max=7))
    array([False, False, False,  True])
    """
    x = working_floats(x, qparams)
    check_finite(x)
    view, scale, zero_point = align(x, qparams, x.dtype)
    code = array_namespace(x).round(view / scale) + zero_point  # infinitely far outside is outside
    return ((code < qparams.quant_min) | (code > qparams.quant_max)).reshape(x.shape)


def bits_per_value(shape: tuple[int, ...], qparams: QParams) -> float:
    """What one value really costs: its code, and its share of the scales and zero points.

        bits + (32 · number of scales + bits · number of zero points) / number of values

    Signed codes whose zero points are all 0 need none.

    Raises:
        TypeError: a shape or qparams that are none.  ValueError: a shape without values.

    >>> bits_per_value((4, 128), QParams(scale=1.0, zero_point=0, quant_min=-7, quant_max=7))
    4.0625
    """
    check_qparams(qparams)
    values = math.prod(as_shape(shape))
    if not values:
        raise ValueError(f"shape={shape!r} has no values: wanted is that of an array that holds some.")
    scales = math.prod(as_array(qparams.scale).shape)
    zero_point = as_array(qparams.zero_point)
    symmetric = qparams.quant_min < 0 and not bool((zero_point != 0).any())
    zero_points = 0 if symmetric else math.prod(zero_point.shape)
    return qparams.bits + (scales * SCALE_BITS + zero_points * qparams.bits) / values


@dataclass(frozen=True)
class Report:
    """What quantizing did to a tensor. `print` shows a small table.

    Attributes:
        mse: mean squared error; `rounding` and `clipping` are its two parts.
        sqnr_db: signal-to-quantization-noise ratio in decibel.
        max_error: the largest |x − x̂|.
        clipped: share of values outside the range of the ticks, 0 … 1.
        codes_used: how many different codes occur, all blocks taken together.
        bits_per_value: code, scales and zero points.

    >>> report([0.0, 1.5], QParams(scale=1.0, zero_point=0, quant_min=0, quant_max=3)).max_error
    0.5
    """

    mse: float
    rounding: float
    clipping: float
    sqnr_db: float
    max_error: float
    clipped: float
    codes_used: int
    bits_per_value: float

    def __str__(self) -> str:
        return "\n".join(
            (
                f"mean squared error  {self.mse:.3g}  (rounding {self.rounding:.3g}, clipping {self.clipping:.3g})",
                f"SQNR                {self.sqnr_db:.1f} dB",
                f"largest error       {self.max_error:.3g}",
                f"clipped values      {100 * self.clipped:.3g} %",
                f"codes used          {self.codes_used}",
                f"bits per value      {self.bits_per_value:.3g}",
            )
        )


@quietly
def report(x: Any, qparams: QParams) -> Report:
    """Quantize `x` and measure everything this file can measure.

    Args, errors: as `quantize`.  Cost: O(n log n), for counting the codes.

    >>> print(report([-1.0, 0.3, 0.5, 9.0], QParams(scale=0.5, zero_point=2, quant_min=0, quant_max=7)))
    mean squared error  10.6  (rounding 0.01, clipping 10.6)
    SQNR                2.9 dB
    largest error       6.5
    clipped values      25 %
    codes used          3
    bits per value      11.8
    """
    x = as_floats(x)
    xp = array_namespace(x)
    x_hat = fake_quantize(x, qparams)
    rounding, clipping = split(x, qparams)
    difference, power = _difference(x, x_hat)
    return Report(
        mse=mse(x, x_hat),
        rounding=rounding,
        clipping=clipping,
        sqnr_db=sqnr_db(x, x_hat),
        max_error=min(float(xp.max(xp.abs(difference))) * 2**power, sys.float_info.max),
        clipped=float(xp.mean(xp.astype(clipped(x, qparams), xp.float64))),
        codes_used=int(xp.unique_values(as_array(quantize(x, qparams))).shape[0]),
        bits_per_value=bits_per_value(x.shape, qparams),
    )


@dataclass(frozen=True)
class _Wide:
    """mantissa · 2^exponent: a number that float64 may be too small or too large for."""

    mantissa: float
    exponent: int

    @property
    def number(self) -> float:
        """The nearest float64, never infinity."""
        try:
            return math.ldexp(self.mantissa, self.exponent)
        except OverflowError:
            return sys.float_info.max


def _difference(x: Any, x_hat: Any) -> tuple[Array, int]:
    """(x − x̂) / 2ᵖ in float64, and p: 0, or 1 where the difference itself would be infinite."""
    x, x_hat = as_floats(x), as_floats(x_hat, "x_hat")
    if x.shape != x_hat.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, x_hat has shape {tuple(x_hat.shape)}: they must agree.")
    xp = array_namespace(x)
    x, x_hat = xp.astype(x, xp.float64), like(x_hat, x, xp.float64)
    difference = x - x_hat
    return (difference, 0) if all_finite(difference) else (x / 2 - x_hat / 2, 1)


def _mean_square(values: Array, power: int = 0) -> _Wide:
    """The mean of (values · 2^power)²."""
    xp = array_namespace(values)
    values = xp.astype(values, xp.float64)
    unit = exponent_of(float(xp.max(xp.abs(values))))
    squares = (values if unit == 0 else values * 2.0**-unit) ** 2
    return _Wide(float(xp.mean(squares)), 2 * (unit + power))
