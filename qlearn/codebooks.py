"""Codebooks: levels that need not be evenly spaced. A code is a place in a list of numbers.

    x̂ = scale · levels[code],   code = the place of the level nearest to x / scale

Levels are one-dimensional, in rising order, at most 256 of them. A scale of 1 leaves the levels as they are;
an array of scales has x's rank, and each of its entries covers one block of x, as everywhere in qlearn.
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.arrays import (
    Array,
    as_codes,
    as_floats,
    dtype_name,
    exponent_of,
    like,
    native_namespace,
    of_blocks,
    quietly,
    saturate,
    to_numpy,
)
from qlearn.sorted_view import SortedView

MOST_LEVELS = 256
MOST_STEPS = 1000  # of Lloyd's algorithm; it settles in some hundred


@quietly
def encode(x: Any, levels: Any, scale: Any = 1.0) -> Array:
    """Give every value of `x` the code of its nearest level.

        code = argmin_c |x / scale − levels[c]|

    Exactly: no quotient and no middle between two levels is rounded. A value in the middle between two levels gets
    the smaller one, and of equal levels the first one counts.

    Args:
        x: array of any shape; half types are computed in float32.
        levels: (k,), in rising order, 2 … 256 of them.
        scale: a number > 0, or an array of x's rank, one entry for each block of x.
    Returns:
        Codes 0 … k − 1 of x's shape, uint8.
    Raises:
        ValueError: empty `x`, NaN or infinity, levels that do not rise, a scale whose shape does not divide x's.
    Cost: O(n log k).

    >>> encode([-0.9, 0.2, 0.26, 7.0], [-1.0, 0.0, 0.5, 2.0])
    array([0, 1, 2, 3], dtype=uint8)
    """
    x = as_floats(x)
    levels, first = np.unique(check_levels(levels), return_index=True)
    xp = array_namespace(x)
    middles = [(Fraction(below) + Fraction(above)) / 2 for below, above in pairwise(levels)]
    if type(scale) in (int, float) and scale == 1:
        # x > middle, exactly if and only if x is larger than the largest float up to there.
        codes = xp.searchsorted(like(_floats_beside(middles, dtype_name(x))[0], x), x.reshape(-1))
    else:
        x = xp.astype(x, xp.float64, copy=False)
        codes = _of_quotients(x, scale, middles)
    return xp.astype(like(first, x)[codes], xp.uint8).reshape(x.shape)[()]


@quietly
def decode(codes: Any, levels: Any, scale: Any = 1.0) -> Array:
    """Give every code the value of its level.

        x̂ = scale · levels[code]

    Args:
        codes: integers 0 … k − 1, of any shape.
        levels, scale: those that `encode` was given.
    Returns:
        Array of codes' shape and library, float32; what is too large for that is its largest number, not infinity.
    Raises:
        TypeError: codes that are not integers.  ValueError: no codes, or codes that have no level.
    Cost: O(n).

    >>> decode([0, 1, 2, 3], [-1.0, 0.0, 0.5, 2.0], scale=10.0)
    array([-10.,   0.,   5.,  20.], dtype=float32)
    """
    codes = as_codes(codes, wanted="a code is a place in the list of levels, an integer.")
    levels = check_levels(levels)
    xp = array_namespace(codes)
    low, high = int(xp.min(codes)), int(xp.max(codes))
    if low < 0 or high >= len(levels):
        raise ValueError(f"codes run from {low} to {high}: {len(levels)} levels have the codes 0 … {len(levels) - 1}.")
    values = saturate(like(levels, codes), xp.float32)[xp.astype(codes, xp.int64)]
    return saturate(of_blocks(values, scale, xp.multiply), xp.float32)[()]


@quietly
def kmeans(x: Any, k: int, *, start: Any = None, steps: int = MOST_STEPS) -> Any:
    """Fit `k` levels to the values of `x` by Lloyd's algorithm, also called k-means.

        each value goes to its nearest level;  each level moves to the mean of its values;  again until nothing moves

    The squared error never rises, but it may settle in a minimum that is not the smallest: see `optimal`. A level
    that loses all its values stays where it is.

    Args:
        x: array of any shape and n values.
        k: how many levels, 2 … 256.
        start: (k,) the first levels, in rising order; without them, the (i + ½) / k quantiles of x.
        steps: how often at most; 0 returns `start`.
    Returns:
        Levels (k,) float64, in rising order, NumPy.
    Raises:
        ValueError: empty `x`, NaN or infinity, fewer different values than levels.
    Cost: one sort, then O(k log n) a step: neighbours in order share a level, and running sums give their mean.
    Source: S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory 28 (1982).

    >>> kmeans([0.0, 1.0, 9.0, 10.0, 11.0], 2)
    array([ 0.5, 10. ])
    """
    view, unit = _sorted(x, k)
    if start is None:
        places = ((np.arange(k) + 0.5) / k * len(view)).astype(np.intp)
        start = _apart(view.values[places].astype(np.float64), view)
    else:
        start = check_levels(start) / unit
    levels = check_levels(start)
    if len(levels) != k:
        raise ValueError(f"start has {len(levels)} levels, k={k}: they must agree.")
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
        raise ValueError(f"steps={steps!r} must be a whole number, 0 or more.")
    for _ in range(steps):
        middles = (levels[1:] + levels[:-1]) / 2
        ends = view.below(np.nextafter(middles, np.inf))  # a value in the middle belongs to the smaller level
        places = np.concatenate([[0], ends, [len(view)]])
        counts = np.diff(places)
        means = np.diff(view.sum1[places]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, levels)
        if np.array_equal(moved, levels):
            break
        levels = moved
    return levels * unit


@quietly
def optimal(x: Any, k: int) -> Any:
    """The `k` levels with the smallest squared error there is.

        D_q(i) = min_{j < i} D_{q−1}(j) + SSE(j, i)        SSE(j, i) = Σ x² − (Σ x)² / (i − j)  over x_j … x_{i−1}

    D_q(i) is the least error of q levels on the i smallest values: in order, the values of one level are
    neighbours, so it is enough to try where the last level's values begin. That place never moves back as i
    grows, which halves the range of every search.

    Args:
        x: array of any shape and n values.
        k: how many levels, 2 … 256.
    Returns:
        Levels (k,) float64, in rising order, NumPy.
    Raises:
        ValueError: empty `x`, NaN or infinity, fewer different values than levels.
    Cost: O(k n log n) time, O(k n) memory: a reference, and for tensors of up to some 10⁵ values.
    Source: H. Wang and M. Song, "Ckmeans.1d.dp", The R Journal 3/2 (2011); the halving is from A. Grønlund et al.,
        https://arxiv.org/abs/1701.07204.

    >>> optimal([0.0, 1.0, 9.0, 10.0, 11.0], 2)
    array([ 0.5, 10. ])
    """
    view, unit = _sorted(x, k)
    n = len(view)
    # Around the mean: the difference of two large sums would lose the digits of a small error.
    x1 = np.concatenate([[0.0], np.cumsum(view.values.astype(np.float64) - view.total / n)])
    x2 = np.concatenate([[0.0], np.cumsum((view.values.astype(np.float64) - view.total / n) ** 2)])

    def sse(j: Any, i: Any) -> Any:
        return x2[i] - x2[j] - (x1[i] - x1[j]) ** 2 / np.maximum(i - j, 1)

    ends = np.arange(n + 1)
    error = sse(0, ends)
    begins = []
    for q in range(2, k + 1):
        error, begin = _best_begins(error, sse, q - 1, n)
        begins.append(begin)
    cuts = [n]
    for begin in reversed(begins):
        cuts.append(int(begin[cuts[-1]]))
    places = np.array([0, *reversed(cuts)])
    return np.add.reduceat(view.values.astype(np.float64), places[:-1]) / np.diff(places) * unit


@quietly
def normal_float(bits: int = 4) -> Any:
    """The levels of NF4, and of its kin with other numbers of bits: quantiles of the normal distribution.

        p_i = linspace(δ, ½, 2ᵇ⁻¹ + 1)    above 0:  Φ⁻¹(p_i), 2ᵇ⁻¹ of them    below 0:  likewise, one fewer    and 0
        all divided by the largest;  δ = 1 − ½ (1 / (2 · 2ᵇ) + 1 / (2 (2ᵇ − 1)))

    Divide a block by its largest magnitude before it is encoded: the levels run from −1 to 1. The quantiles were meant
    to make all levels equally frequent. They do not, since a block's largest magnitude depends on its size: of normal
    values in blocks of 64, each level gets from 1.7 to 9.3 %.

    Args:
        bits: 2 … 8.
    Returns:
        (2ᵇ,) float64, NumPy, in rising order, with −1, 0 and 1 among them.
    Raises:
        ValueError: bits outside 2 … 8.
    Source: T. Dettmers et al., "QLoRA", https://arxiv.org/abs/2305.14314, section 3 and its published code; D. Yoshida,
        "NF4 Isn't Information Theoretically Optimal (and that's Good)", https://arxiv.org/abs/2306.06965.

    >>> normal_float(3).round(3)
    array([-1.   , -0.535, -0.247,  0.   ,  0.183,  0.382,  0.623,  1.   ])
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 2 <= bits <= 8:
        raise ValueError(f"bits={bits!r} must be a whole number from 2 to 8.")
    codes, half = 2 ** int(bits), 2 ** (int(bits) - 1)
    outermost = 1 - (1 / (2 * codes) + 1 / (2 * (codes - 1))) / 2
    quantile = np.vectorize(NormalDist().inv_cdf)
    above = quantile(np.linspace(outermost, 0.5, half + 1)[:-1])
    below = -quantile(np.linspace(outermost, 0.5, half)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above]))
    return levels / levels[-1]


@quietly
def check_levels(levels: Any) -> Any:
    """Levels as float64 (k,) in NumPy.

    Raises:
        ValueError: no 2 … 256 finite numbers in rising order; says which two do not rise.

    >>> check_levels([-1, 0, 2])
    array([-1.,  0.,  2.])
    """
    numbers = to_numpy(as_floats(levels, "levels")).astype(np.float64)
    if numbers.ndim != 1 or not 2 <= len(numbers) <= MOST_LEVELS:
        raise ValueError(f"levels have shape {numbers.shape}: a codebook is a list of 2 to {MOST_LEVELS} numbers.")
    falls = np.flatnonzero(np.diff(numbers) < 0)
    if len(falls):
        i = int(falls[0])
        raise ValueError(
            f"levels[{i}]={numbers[i]:g} is larger than levels[{i + 1}]={numbers[i + 1]:g}: levels must be in rising "
            "order. Sort them first."
        )
    return numbers


def _floats_beside(numbers: list[Fraction], dtype: str) -> tuple[Any, Any]:
    """For each number the largest float that is not above it, and the smallest that is not below it."""
    limit = np.finfo(dtype).max
    near = np.array([float(number) for number in numbers]).clip(-float(limit), float(limit)).astype(dtype)
    above = np.array([Fraction(float(f)) > number for f, number in zip(near, numbers, strict=True)])
    below = np.array([Fraction(float(f)) < number for f, number in zip(near, numbers, strict=True)])
    return np.where(above, np.nextafter(near, -limit), near), np.where(below, np.nextafter(near, limit), near)


def _of_quotients(x: Array, scale: Any, middles: list[Fraction]) -> Array:
    """How many middles lie below each x / scale, x in float64, as (n,) integers.

    A quotient is rounded, and rounding keeps the order. So the quotient decides, unless it is itself one of the two
    floats beside a middle. There fractions decide; there are few of them, and each pair of x and scale is asked once.
    """
    xp = array_namespace(x)
    quotients = of_blocks(x, scale, xp.divide).reshape(-1)
    below, above = (like(side, x) for side in _floats_beside(middles, "float64"))
    if _rounds_nothing(x, to_numpy(as_floats(scale, "scale"))):
        return xp.searchsorted(below, quotients)
    codes = xp.searchsorted(above, quotients)
    doubtful = xp.nonzero(codes != xp.searchsorted(below, quotients, side="right"))[0]
    if len(doubtful):
        scales = of_blocks(xp.ones_like(x), scale, xp.multiply).reshape(-1)[doubtful]
        pairs = to_numpy(xp.stack([x.reshape(-1)[doubtful], scales], axis=-1))
        pairs, places = np.unique(pairs, axis=0, return_inverse=True)
        counts = [bisect_left(middles, Fraction(value) / Fraction(of)) for value, of in pairs]
        codes[doubtful] = like(np.array(counts)[places.reshape(-1)], codes, codes.dtype)
    return codes


def _rounds_nothing(x: Array, scale: Any) -> bool:
    """Whether x / scale is exact in float64: powers of two, as MX has them, and nothing near the ends of float64."""
    magnitude = native_namespace(x).abs(x[x != 0])
    ordinary = all(bool(((n > 1e-150) & (n < 1e150)).all()) for n in (magnitude, scale))
    return ordinary and bool((np.frexp(scale)[0] == 0.5).all())


def _sorted(x: Any, k: int) -> tuple[SortedView, float]:
    """The values in order, if they are enough for k levels, and the unit in which they are counted.

    The unit is 1, or a power of two for values so large or so small that the sums of their squares would be lost.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 2 <= k <= MOST_LEVELS:
        raise ValueError(f"k={k!r} must be a whole number from 2 to {MOST_LEVELS}.")
    values = to_numpy(as_floats(x))
    exponent = exponent_of(float(np.abs(values).max()))
    unit = 2.0**exponent
    view = SortedView(values if exponent == 0 else values / unit)
    different = 1 + int(np.count_nonzero(np.diff(view.values)))
    if different < k:
        raise ValueError(f"x has {different} different values: {k} levels need at least as many.")
    return view, unit


def _apart(levels: Any, view: SortedView) -> Any:
    """The quantiles, but those that equal the one before it moved to values that no other has."""
    if (np.diff(levels) > 0).all():
        return levels
    values = np.unique(view.values).astype(np.float64)
    free = np.setdiff1d(values, levels)
    kept = np.unique(levels)
    picked = free[np.linspace(0, len(free) - 1, len(levels) - len(kept)).astype(np.intp)]
    return np.sort(np.concatenate([kept, picked]))


def _best_begins(before: Any, sse: Any, first: int, n: int) -> tuple[Any, Any]:
    """min and argmin over j of before[j] + sse(j, i), for every i at once, from coarse to fine.

    The best j of i lies between those of i's neighbours, which are known: all searches of one round together
    try each j once.
    """
    begin = np.zeros(n + 1, dtype=np.intp)  # what `repeat` and `reduceat` take, also where it has 32 bits
    error = np.full(n + 1, np.inf)
    low, high = np.full(n + 1, first), np.arange(n + 1) - 1  # at least one value is left for the last level
    stride = 1 << n.bit_length()
    while stride >= 1:
        ends = np.arange(stride, n + 1, 2 * stride)
        ends = ends[ends > first]
        if len(ends):
            left, right = ends - stride, ends + stride
            lo = np.where(left > first, begin[left], first)
            hi = np.where(right <= n, begin[np.minimum(right, n)], high[ends])
            lo, hi = np.maximum(lo, low[ends]), np.minimum(hi, high[ends])
            lengths = hi - lo + 1
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            j = np.arange(lengths.sum()) - np.repeat(starts - lo, lengths)
            tried = before[j] + sse(j, np.repeat(ends, lengths))
            error[ends] = np.minimum.reduceat(tried, starts)
            hit = np.flatnonzero(tried == np.repeat(error[ends], lengths))
            begin[ends] = j[hit[np.searchsorted(hit, starts)]]
        stride //= 2
    return error, begin
