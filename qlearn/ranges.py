"""Which range the ticks should span: x → (lo, hi).

Each method is one function of rows of values. `find_range` cuts a tensor into rows, one for each scale,
and calls the method by its name.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from qlearn.affine import QParams, choose_qparams, quant_limits
from qlearn.arrays import Array, as_floats, block_rows, ordered
from qlearn.granularity import Granularity, PerTensor


def min_max(x: Any) -> tuple[Array, Array]:
    """The smallest and the largest value: nothing is clipped, and one outlier stretches every step.

        lo = min(x),  hi = max(x)

    Args:
        x: (..., n); each row of n values gets its own range.
    Returns:
        lo, hi: (...), of x's type.
    Raises:
        ValueError: empty `x`, NaN or infinity in `x`.
    Cost: O(n).

    >>> min_max([[1.0, 5.0, 3.0], [-2.0, 0.0, 2.0]])
    (array([ 1., -2.]), array([5., 2.]))
    """
    x = as_floats(x)
    xp = array_namespace(x)
    return xp.min(x, axis=-1), xp.max(x, axis=-1)


def percentile(x: Any, *, percentile: float = 99.9) -> tuple[Array, Array]:
    """Leave out the same share of values at both ends.

        lo = the (100 − p)-th percentile of x,  hi = the p-th

    Between two values it interpolates linearly, as `numpy.percentile` does. On n values, a percentile
    above 100 · (n − 2) / (n − 1) lies between the two largest ones, and so gives in to a single outlier.

    Args:
        x: (..., n); each row of n values gets its own range.
        percentile: p, more than 50 and at most 100.
    Returns:
        lo, hi: (...), of x's type.
    Raises:
        ValueError: percentile outside (50, 100], empty `x`, NaN or infinity in `x`.
    Cost: O(n log n), for one sort.

    >>> percentile([0.0, 1.0, 2.0, 3.0, 100.0], percentile=75)
    (np.float64(1.0), np.float64(3.0))
    """
    if not 50 < percentile <= 100:
        raise ValueError(
            f"percentile={percentile} must be more than 50 and at most 100: it is where the upper end lies."
        )
    x = as_floats(x)
    rows = ordered(x)
    return _interpolate(rows, (100 - percentile) / 100), _interpolate(rows, percentile / 100)


METHODS = {"min_max": min_max, "percentile": percentile}


def find_range(
    x: Any,
    method: str = "min_max",
    *,
    bits: int = 8,
    symmetric: bool = False,
    narrow_range: bool = True,
    granularity: Granularity = PerTensor(),
    **options: Any,
) -> tuple[Array, Array]:
    """Find the range of `x` that the ticks should span, one for each block of the granularity.

        x → (lo, hi)

    Args:
        x: array of any shape.
        method: "min_max" or "percentile".
        bits, symmetric, narrow_range: the codes that the range is for; they matter to methods that weigh errors.
        granularity: PerTensor(), PerAxis(axis) or PerGroup(group_size).
        options: the method's own, such as `percentile=99.9`.

    Returns:
        lo, hi: scalars of x's type for PerTensor, else arrays of the granularity's scale shape.

    Raises:
        ValueError: unknown method, bits outside 1 … 16, a granularity that does not fit x, or the method's own.

    Cost: that of the method, on all values of x.

    >>> find_range([[1.0, 5.0], [-2.0, 2.0]])
    (np.float64(-2.0), np.float64(5.0))
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; the methods are {', '.join(map(repr, METHODS))}.")
    quant_limits(bits, symmetric=symmetric, narrow_range=narrow_range)
    x = as_floats(x)
    shape = granularity.scale_shape(tuple(x.shape))
    if shape == ():
        return METHODS[method](x.reshape(-1), **options)
    lo, hi = METHODS[method](block_rows(x, shape), **options)
    return lo.reshape(shape), hi.reshape(shape)


def find_qparams(
    x: Any,
    method: str = "min_max",
    *,
    bits: int = 8,
    symmetric: bool = False,
    narrow_range: bool = True,
    granularity: Granularity = PerTensor(),
    **options: Any,
) -> QParams:
    """Find the quantizer for `x`: `find_range`, then `choose_qparams`, with the arguments of both.

    >>> find_qparams([-1.0, 0.0, 3.0], bits=2)
    QParams(scale=1.3333333333333333, zero_point=1, quant_min=0, quant_max=3)
    """
    codes: dict[str, Any] = {"bits": bits, "symmetric": symmetric, "narrow_range": narrow_range}
    lo, hi = find_range(x, method, granularity=granularity, **codes, **options)
    return choose_qparams(lo, hi, **codes)


def _interpolate(rows: Array, share: float) -> Array:
    """The value below which this share of each sorted row lies, in float64, rounded to the row's type at the end."""
    xp = array_namespace(rows)
    last = rows.shape[-1] - 1
    place = share * last
    k = min(int(place), max(last - 1, 0))
    below = xp.astype(rows[..., k], xp.float64)
    above = xp.astype(rows[..., min(k + 1, last)], xp.float64)
    # Counted from the nearer end, so that the result never leaves the two values (numpy.percentile's rule).
    t = place - k
    value = below + (above - below) * t if t < 0.5 else above - (above - below) * (1 - t)
    return xp.astype(value, rows.dtype)[()]
