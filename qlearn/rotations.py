"""Rotations: a change of basis that spreads outliers over all channels, and the number that says how heavy tails are.

    W x = (W Q) (Qᵀ x)        Q Qᵀ = 1

One channel that is many times as large as all others sets the scale for all of them. In another basis its size is
shared by all: each of n entries gets 1/√n of it. Hadamard matrices do that best, since all their entries have the same
magnitude. This file knows arrays only; `nn.rotate` puts such a basis into a network.
"""

from __future__ import annotations

import math
from itertools import count
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qlearn.arrays import Array, as_floats, exponent_of, quietly

__all__ = ["hadamard", "kurtosis", "random_hadamard", "random_orthogonal"]

SIZE = "it is how many rows and columns there are"


def hadamard(n: int) -> Array:
    """A matrix of ±1/√n whose rows are orthogonal and of length 1.

        H Hᵀ = 1        |H_ij| = 1/√n

    Built from a small matrix of size m, doubled until its size is n:

        Sylvester:  H_2k = [[H_k, H_k], [H_k, −H_k]]
        Paley I:    m = q + 1,    q a prime, q mod 4 = 3     (4, 8, 12, 20, 24, 32, 44, …)
        Paley II:   m = 2(q + 1), q a prime, q mod 4 = 1     (12, 28, 36, 60, 76, …)

    There is none unless n is 1, 2 or a multiple of 4. Of those up to 1000, most can be built so; for 52, 92, 100 and
    some others, matrices are known that need more than this.

    Args:
        n: how many rows and columns; 1 or more.

    Returns:
        (n, n), a NumPy array of float64. Its signs are exact, and the same wherever it is built.

    Raises:
        ValueError: an n for which it cannot be built (names the nearest sizes below and above).

    Cost: O(n²).
    Source: Sylvester 1867; R. Paley, "On orthogonal matrices", Journal of Mathematics and Physics 12 (1933).

    >>> hadamard(4) * 2
    array([[ 1.,  1.,  1.,  1.],
           [ 1., -1.,  1., -1.],
           [ 1.,  1., -1., -1.],
           [ 1., -1., -1.,  1.]])
    """
    _check_whole(n, "n", 1, SIZE)
    n = int(n)  # NumPy's integers have no bit_length
    m = _smallest_part(n)
    if m is None:
        below = next((k for k in range(n - 1, 0, -1) if _smallest_part(k)), 1)
        above = next(k for k in count(n + 1) if _smallest_part(k))
        raise ValueError(f"n={n}: no Hadamard matrix of this size is built here; the nearest are {below} and {above}.")
    signs = np.ones((1, 1)) if m == 1 else _paley(m)
    while len(signs) < n:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs / math.sqrt(n)


def random_hadamard(n: int, seed: int = 0) -> Array:
    """A Hadamard matrix whose columns have random signs.

        H · diag(±1)

    It is as orthogonal as `hadamard`, and no vector of the data is likely to be one of its rows: H itself would gather
    such a one in a single entry instead of spreading it.

    Args:
        n: how many rows and columns, as for `hadamard`.
        seed: of the signs.

    Returns:
        (n, n), a NumPy array of float64; the same numbers on every processor.

    Raises:
        ValueError: an n without a Hadamard matrix, where `random_orthogonal` helps; a seed below 0.

    Cost: O(n²).
    Source: Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456, section 3.

    >>> random_hadamard(2, seed=1) * 2**0.5
    array([[-1.,  1.],
           [-1., -1.]])
    """
    _check_whole(seed, "seed", 0, "it says which signs")
    return hadamard(n) * np.random.default_rng(seed).choice([-1.0, 1.0], size=n)


def random_orthogonal(n: int, seed: int = 0) -> Array:
    """An orthogonal matrix drawn at random, all equally likely: for sizes that have no Hadamard matrix.

        A = Q R        A of independent Gaussians, R with a positive diagonal

    It spreads outliers nearly as well: the entries of a column are like Gaussians of deviation 1/√n, so the largest is
    some times that.

    Args:
        n: how many rows and columns; 1 or more.
        seed: of the Gaussians.

    Returns:
        (n, n), a NumPy array of float64. The last bits depend on the library that factorizes.

    Raises:
        ValueError: n below 1, a seed below 0.

    Cost: O(n³).
    Source: Mezzadri 2007, https://arxiv.org/abs/math-ph/0609050.

    >>> q = random_orthogonal(3)
    >>> bool(np.allclose(q @ q.T, np.eye(3)))
    True
    """
    _check_whole(n, "n", 1, SIZE)
    _check_whole(seed, "seed", 0, "it says which matrix")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return q * np.sign(np.diagonal(r))


@quietly
def kurtosis(x: Any, axis: int | None = None) -> Any:
    """How heavy the tails of some values are: the fourth standardized moment.

        kurtosis = mean((x − μ)⁴) / mean((x − μ)²)²

    A Gaussian has 3, a uniform distribution 1.8, two equal peaks 1. One value in n that is far from all others has
    about n, the most that there is. Some texts subtract 3.

    Args:
        x: array of any shape, of NumPy or PyTorch.
        axis: along which to average; None for all values at once.

    Returns:
        A float for axis=None, else an array of float64 without that axis.

    Raises:
        ValueError: values that are all equal, which have no tails; an empty array, NaN or infinity; a wrong axis.

    Cost: O(n).

    >>> kurtosis([-1.0, 1.0, -1.0, 1.0]), kurtosis([0.0] * 99 + [1.0])
    (1.0, 98.01...)
    """
    x = as_floats(x)
    xp = array_namespace(x)
    if axis is not None and (not isinstance(axis, (int, np.integer)) or not -x.ndim <= axis < x.ndim):
        raise ValueError(f"axis={axis}: x has shape {tuple(x.shape)}, so it must be from {-x.ndim} to {x.ndim - 1}.")
    values = xp.astype(x.reshape(-1) if axis is None else x, xp.float64)
    along = 0 if axis is None else axis
    values = values * 2.0 ** -exponent_of(float(xp.max(xp.abs(values))))  # so that no sum is too large
    d = values - xp.mean(values, axis=along, keepdims=True)
    largest = xp.max(xp.abs(d), axis=along, keepdims=True)
    if bool(xp.any(xp.max(values, axis=along) == xp.min(values, axis=along))):
        raise ValueError("x is the same everywhere" + ("." if axis is None else f" along axis {axis} at some place."))
    d = d / largest
    found = xp.mean(d**4, axis=along) / xp.mean(d**2, axis=along) ** 2
    return float(found) if axis is None else found


def _check_whole(value: int, name: str, least: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number, {least} or more: {why}.")


def _smallest_part(n: int) -> int | None:
    """The smallest m with n = 2ᵏ · m that is 1 or that Paley's constructions reach."""
    odd = n // (n & -n)
    sizes = (odd << k for k in range((n // odd).bit_length()))
    return next((m for m in sizes if m == 1 or _paley_prime(m)), None)


def _paley_prime(m: int) -> int | None:
    """The prime q of Paley's constructions for size m, the first before the second."""
    if m % 4:
        return None
    if _is_prime(m - 1):
        return m - 1
    q = m // 2 - 1
    return q if q % 4 == 1 and _is_prime(q) else None


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, math.isqrt(q) + 1))


def _paley(m: int) -> Array:
    """The signs of a Hadamard matrix of size q + 1 or 2(q + 1).

    Entry (i, j) of the inner matrix says whether i − j is a square modulo q: 1 if so, −1 if not, 0 for 0.
    """
    q = _paley_prime(m)
    assert q is not None
    character = np.full(q, -1.0)
    character[np.arange(1, q) ** 2 % q] = 1.0
    character[0] = 0.0
    places = np.arange(q)
    c = np.ones((q + 1, q + 1))
    c[0, 0] = 0.0
    c[1:, 1:] = character[(places[:, None] - places) % q]
    if q % 4 == 3:
        c[1:, 0] = -1.0
        return c + np.eye(q + 1)
    return np.kron(c, [[1.0, 1.0], [1.0, -1.0]]) + np.kron(np.eye(q + 1), [[1.0, -1.0], [-1.0, -1.0]])
