"""Which range the ticks should span: x → (lo, hi).

Each method is one function of rows of values. `find_range` cuts a tensor into rows, one for each scale,
and calls the method by its name.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.affine import QParams, choose_qparams, fake_quantize, quant_limits
from qlearn.arrays import Array, as_floats, block_rows, like, ordered, quietly, saturate, to_numpy
from qlearn.granularity import Granularity, PerTensor, check_granularity
from qlearn.range_search import CANDIDATES, EXACT, TIE, Search, clip_grid
from qlearn.row_search import by_searching, by_sweeping

SWEEP_UP_TO = 1 << 14  # breakpoints in a row: so many are sorted in a millisecond
HISTOGRAM_BINS = 2048  # of |x| from 0 to its largest value, as in TensorRT's calibrator
BESIDE = 1 + 1e-6  # widens the bins a little: values at equal distances, as of an image, do not lie on edges


@quietly
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
    x = _rows(x)
    xp = array_namespace(x)
    return xp.min(x, axis=-1), xp.max(x, axis=-1)


@quietly
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
    check_percentile(percentile)
    rows = ordered(_rows(x))
    return _interpolate(rows, (100 - percentile) / 100), _interpolate(rows, percentile / 100)


@quietly
def mse(
    x: Any,
    *,
    bits: int = 8,
    symmetric: bool = False,
    narrow_range: bool = True,
    candidates: int = CANDIDATES,
) -> tuple[Array, Array]:
    """The range with the smallest mean squared error between x and x̂.

        (scale, zero_point) = argmin Σ (x − fake_quantize(x, scale, zero_point))²
        lo = scale · (quant_min − zero_point),  hi = scale · (quant_max − zero_point)

    Scales are those of `clip_grid`, some smaller and larger ones, and a finer grid around the best. For asymmetric
    codes each scale is judged with the best of all zero points: lo and hi need not be alike. All values are judged. The
    range ends at the first and the last tick, so that `choose_qparams` makes of it the scale and zero point that
    were found, the scale up to the rounding of lo and hi to x's type.

    Of scales with equal errors, up to 1e-6 of them, the smaller is taken, and of zero points with equal errors, up to
    1e-5, the smaller: scaling the data by 1.0000001, or another order of them, changes nothing that is seen.

    Short symmetric rows get the best range there is, on the grid or off it: the codes change only where |x| / scale
    crosses j − ½, so all scales between two such breakpoints share their codes, and the best scale for given codes q
    is Σ|x|q / Σq².

    Args:
        x: (..., n); each row of n values gets its own range.
        bits, symmetric, narrow_range: the codes to be used.
        candidates: how many scales to try first; some 80 to 140 more follow beside them and around the best.
    Returns:
        lo, hi: (...), of x's type.
    Raises:
        ValueError: candidates below 2, bits outside their limits, empty `x`, NaN or infinity in `x`.
    Cost: O(n) for long float32 rows up to 8 bits, O(n log n) beside them, and O(candidates · 2ᵇ) lookups a row;
        O(candidates · n) for rows shorter than 16 · 2ᵇ, and above 12 bits; O(n 2ᵇ log n) for short symmetric rows.

    >>> lo, hi = mse([-1.0, -1.0, 0.0, 1.0, 1.0, 2.0], bits=2, symmetric=True)
    >>> float(hi)
    1.2
    """
    _check_candidates(candidates)
    x = _rows(x)
    search = Search(bits, symmetric, narrow_range, int(candidates))
    quant_min, _ = search.limits
    shape = tuple(x.shape[:-1])
    rows = to_numpy(x).reshape(math.prod(shape), -1)
    if symmetric and rows.shape[-1] * -quant_min <= SWEEP_UP_TO:
        lo, hi = by_sweeping(rows, search)
    else:
        lo, hi = by_searching(rows, search)
    return like(lo.reshape(shape), x)[()], like(hi.reshape(shape), x)[()]


@quietly
def cross_entropy(
    x: Any,
    *,
    bits: int = 8,
    symmetric: bool = False,
    narrow_range: bool = True,
    candidates: int = CANDIDATES,
) -> tuple[Array, Array]:
    """For logits: the range after which the network's output, the softmax, is nearest to what it was.

        (lo, hi) = argmin of mean over rows of −Σ_c softmax(x)_c · log softmax(x̂)_c

    The ranges tried are those of `clip_grid`: both ends cut off at ±t. For asymmetric codes −lo / scale then lies
    between two codes, mostly halfway, and both are tried as the zero point.

    What counts is the softmax, not the values: an error on a logit far below the largest one costs nothing.

    Args:
        x: logits (..., C) of C ≥ 2 classes; all rows share one range.
        bits, symmetric, narrow_range, candidates: as for `mse`.
    Returns:
        lo, hi: scalars of x's type.
    Raises:
        ValueError: one class only, candidates below 2, bits outside their limits, NaN or infinity in `x`.
    Cost: O(candidates · n).
    Source: Nagel et al. 2021, https://arxiv.org/abs/2106.08295, section 3.1.

    >>> logits = np.array([[4.0, 0.5, -1.0], [0.1, 9.0, 0.0]])
    >>> lo, hi = cross_entropy(logits, bits=3)
    >>> round(float(lo), 2), round(float(hi), 2)
    (-1.21, 7.27)
    """
    x = as_floats(x)
    if x.ndim < 1 or x.shape[-1] < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: cross_entropy needs logits (..., C) of at least two classes.")
    _check_candidates(candidates)
    xp = array_namespace(x)
    search = Search(bits, symmetric, narrow_range, int(candidates))
    x64 = xp.astype(x, xp.float64)
    lo, hi = float(xp.min(x)), float(xp.max(x))
    unit = max(-lo, hi) or 1.0  # divided by the largest, magnitudes have a finite sum
    grid = clip_grid(lo, hi, unit * float(xp.mean(xp.abs(x64 / unit))), candidates)
    scale, zero_point = search.quantizers_of(*grid)
    lows, highs = (like(end, x) for end in search.range_of(scale, zero_point, to_numpy(x).dtype))
    log_target = _log_softmax(x64)
    target = xp.exp(log_target)
    losses = []
    for i in range(len(scale)):
        x_hat = fake_quantize(
            x, choose_qparams(lows[i], highs[i], bits=bits, symmetric=symmetric, narrow_range=narrow_range)
        )
        excess = target * (
            log_target - _log_softmax(xp.astype(x_hat, xp.float64))
        )  # over the cross-entropy of x itself
        losses.append(float(xp.mean(xp.sum(excess, axis=-1))))
    best = int(np.argmax(np.asarray(losses) <= min(losses) * (1 + TIE) + EXACT))
    return lows[best], highs[best]


@quietly
def entropy(
    x: Any,
    *,
    bits: int = 8,
    symmetric: bool = False,
    narrow_range: bool = True,
    bins: int = HISTOGRAM_BINS,
) -> tuple[Array, Array]:
    """The clip at which the histogram of |x| loses least information, by Kullback-Leibler divergence.

        t = argmin over bins k of KL(P_k ‖ Q_k)        lo = max(min(x), −t),  hi = min(max(x), t)
        P_k: the first k bins of the histogram of |x|, everything beyond added to the last of them
        Q_k: the same k bins without that, merged into as many levels as |x| has codes, and spread out evenly
             over those of them that hold something

    For asymmetric codes the range is moved so that its ends are ticks: −lo / scale is a whole number.

    The result depends on such details: on how many bins there are, on where the clipped values go, on how empty
    bins are treated. Libraries that call this method by the same name differ.

    Args:
        x: array of any shape; all of it shares one range.
        bits, symmetric, narrow_range: the codes to be used.
        bins: of the histogram.
    Returns:
        lo, hi: scalars of x's type.
    Raises:
        ValueError: fewer bins than levels, bits outside their limits, empty `x`, NaN or infinity in `x`.
    Cost: O(n + bins²).
    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017.

    >>> lo, hi = entropy(np.array([0.0, 0.1, 0.2, 0.3, 8.0]), bits=2, bins=8)
    >>> float(hi)
    8.0
    """
    x = as_floats(x).reshape(-1)
    xp = array_namespace(x)
    lo, hi = xp.min(x), xp.max(x)
    magnitude = np.abs(np.asarray(to_numpy(x), dtype=np.float64))

    def count(edges: np.ndarray) -> np.ndarray:
        return np.histogram(magnitude, bins=len(edges) - 1, range=(0, edges[-1]))[0]

    codes: dict[str, Any] = {"bits": bits, "symmetric": symmetric, "narrow_range": narrow_range}
    low, high = entropy_range(count, float(lo), float(hi), bins=bins, **codes)
    ends = (saturate(xp.full_like(lo, end, dtype=xp.float64), x.dtype) for end in (low, high))
    first, last = (end[()] for end in ends)
    return first, last


@quietly
def entropy_range(
    count: Callable[[np.ndarray], np.ndarray],
    lo: float,
    hi: float,
    *,
    bits: int,
    symmetric: bool,
    narrow_range: bool,
    bins: int = HISTOGRAM_BINS,
) -> tuple[float, float]:
    """The search of `entropy`, for whoever can count: `count(edges)` says how many |x| lie between each two edges.

    >>> codes = {"bits": 1, "symmetric": False, "narrow_range": True}
    >>> entropy_range(lambda edges: np.array([4, 4, 0, 1]), 0.0, 8.0, bins=4, **codes)
    (0.0, 8.0)
    """
    _, quant_max = quant_limits(bits, symmetric=symmetric, narrow_range=narrow_range)
    one_sided = lo >= 0 or hi <= 0
    levels = max(quant_max if symmetric or one_sided else 2 ** (bits - 1), 2)
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < levels:
        raise ValueError(f"bins={bins!r} must be a whole number of at least {levels}, the number of levels of |x|.")
    largest = max(-lo, hi)
    edges = np.linspace(0, min(largest * BESIDE, sys.float_info.max), bins + 1)
    if (edges[1:] <= edges[:-1]).any():  # zeros, or numbers so small that there are no others between them
        return lo, hi
    counts = count(edges)
    divergences = np.array([kl_divergence(counts, k, levels) for k in range(levels, bins + 1)])
    t = float(edges[levels + int(np.argmax(divergences <= divergences.min() * (1 + TIE) + EXACT))])
    low, high = max(lo, -t), min(hi, t)
    return (low, high) if symmetric else Search(bits).settled(low, high)


@quietly
def kl_divergence(counts: Any, k: int, levels: int) -> float:
    """What is lost if a histogram is cut off after `k` bins and merged into `levels`: KL(P ‖ Q) as in `entropy`.

    Infinity where Q has nothing and P has something.

    >>> kl_divergence(np.array([4, 4, 2, 2]), 4, 2)
    0.0
    """
    q_counts = np.asarray(counts[:k], dtype=np.float64)
    p = q_counts.copy()
    p[-1] += float(np.sum(counts[k:]))
    starts = np.arange(levels) * k // levels
    filled = q_counts > 0
    mass = np.add.reduceat(q_counts, starts)
    share = mass / np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1)
    q = np.where(filled, np.repeat(share, np.diff(np.append(starts, k))), 0)
    if q.sum() == 0 or (q[p > 0] == 0).any():
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    return float(np.sum(p[there] * np.log(p[there] / q[there])))


METHODS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "min_max": min_max,
    "percentile": percentile,
    "mse": mse,
    "cross_entropy": cross_entropy,
    "entropy": entropy,
}
_OF_THE_CODES = ("bits", "symmetric", "narrow_range")
KNOW_THE_CODES = ("mse", "cross_entropy", "entropy")  # take bits, symmetric and narrow_range
WHOLE_TENSOR = ("cross_entropy", "entropy")  # one range for everything


@quietly
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
        method: "min_max", "percentile", "mse", "cross_entropy" or "entropy"; the last two per tensor only.
        bits, symmetric, narrow_range: the codes that the range is for; they matter to methods that weigh errors.
        granularity: PerTensor(), PerAxis(axis) or PerGroup(group_size).
        options: the method's own, such as `percentile=99.9`.

    Returns:
        lo, hi: scalars of x's type for PerTensor, else arrays of the granularity's scale shape.

    Raises:
        ValueError: unknown method, bits outside 1 … 16, a granularity that does not fit x, or the method's own.
        TypeError: a granularity that is none.

    Cost: that of the method, on all values of x.

    >>> find_range([[1.0, 5.0], [-2.0, 2.0]])
    (np.float64(-2.0), np.float64(5.0))
    """
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method={method!r} is not known; the methods are {', '.join(map(repr, METHODS))}.")
    quant_limits(bits, symmetric=symmetric, narrow_range=narrow_range)
    check_granularity(granularity)
    takes = [name for name in inspect.signature(METHODS[method]).parameters if name not in ("x", *_OF_THE_CODES)]
    if unknown := [name for name in options if name not in takes]:
        raise TypeError(f"method={method!r} has no option {unknown[0]!r}; it has {', '.join(takes) or 'none'}.")
    if method in KNOW_THE_CODES:
        options = {"bits": bits, "symmetric": symmetric, "narrow_range": narrow_range, **options}
    x = as_floats(x)
    shape = granularity.scale_shape(tuple(x.shape))
    if method in WHOLE_TENSOR:
        if shape != ():
            raise ValueError(
                f"method={method!r} finds one range for a whole tensor: use PerTensor(), not {granularity}."
            )
        return METHODS[method](x, **options)
    if shape == ():
        return METHODS[method](x.reshape(-1), **options)
    lo, hi = METHODS[method](block_rows(x, shape), **options)
    return lo.reshape(shape), hi.reshape(shape)


@quietly
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


def check_percentile(percentile: float) -> None:
    """Raise `TypeError` unless it is a number, `ValueError` unless 50 < percentile ≤ 100."""
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float, np.integer, np.floating)):
        raise TypeError(f"percentile={percentile!r} must be a number, more than 50 and at most 100.")
    if not 50 < percentile <= 100:
        raise ValueError(
            f"percentile={percentile} must be more than 50 and at most 100: it is where the upper end lies."
        )


def place_of(share: float, n: int) -> tuple[int, float]:
    """Where in n sorted values this share of them lies below: beside the k-th value, t of the way to the next one.

    >>> place_of(0.75, 11)
    (7, 0.5)
    """
    place = share * (n - 1)
    k = min(int(place), max(n - 2, 0))
    return k, place - k


def between(below: Any, above: Any, t: float) -> Any:
    """The number t of the way from one to the other, never outside the two.

    Counted from the nearer end, as `numpy.percentile` does. Halves, because the distance itself may be infinite.

    >>> between(1.0, 3.0, 0.25), between(-1.5e308, 1.5e308, 0.5)
    (1.5, 0.0)
    """
    half = above / 2 - below / 2
    return below + 2 * (half * t) if t < 0.5 else above - 2 * (half * (1 - t))


def _rows(x: Any) -> Array:
    """`x`, finite, as (..., n); a single number is a row of one."""
    x = as_floats(x)
    return x.reshape(1) if x.ndim == 0 else x


def _interpolate(rows: Array, share: float) -> Array:
    """The value below which this share of each sorted row lies, in float64, rounded to the row's type at the end."""
    xp = array_namespace(rows)
    n = int(rows.shape[-1])
    k, t = place_of(share, n)
    below, above = (xp.astype(rows[..., i], xp.float64) for i in (k, min(k + 1, n - 1)))
    return xp.astype(between(below, above, t), rows.dtype)[()]


def _check_candidates(candidates: int) -> None:
    if isinstance(candidates, bool) or not isinstance(candidates, (int, np.integer)) or candidates < 2:
        raise ValueError(f"candidates={candidates!r} must be a whole number of 2 or more.")


def _log_softmax(x: Array) -> Array:
    xp = array_namespace(x)
    wide = xp.astype(x, xp.float64)
    shifted = wide - xp.max(wide, axis=-1, keepdims=True)
    shifted = xp.clip(shifted, -xp.finfo(xp.float64).max, None)  # finite: 0 times it is 0
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
