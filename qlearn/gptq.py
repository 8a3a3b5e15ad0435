"""GPTQ on arrays: rounding that knows what the weights are for.

A layer computes Σ_j w_j x_j. When one weight is rounded up, another whose input is similar can make up for it by
being rounded down: the nearest tick for each weight alone is not the best choice for their sum.

Which inputs are similar is what a matrix says, H = mean over inputs of x xᵀ. This file knows arrays only;
`nn.gptq` finds H in a network.
"""

from __future__ import annotations

import math
import sys
from numbers import Real
from typing import Any

from array_api_compat import array_namespace, device

from qlearn.affine import QParams, working_type
from qlearn.arrays import (
    Array,
    as_array,
    as_floats,
    block_view,
    check_finite,
    dtype_name,
    exponent_of,
    like,
    quietly,
)

__all__ = ["factors", "gptq_quantize", "output_error"]

BLOCK = 128  # columns between two large products of matrices


@quietly
def gptq_quantize(
    weight: Any, hessian: Any, qparams: QParams, *, damping: float = 0.01, act_order: bool = False
) -> Array:
    """Round weights column by column, each column making up for the errors of those before it.

        H + λ·1 = R D Rᵀ       R upper triangular, its diagonal 1;  D diagonal;  λ = damping · mean of all H_jj
        w′_j   = w_j + Σ_{i<j} (w_i − ŵ_i) R_ij                                     for the columns j = 1 … I
        code_j = quantize(w′_j)        ŵ_j = dequantize(code_j)

    The paper writes it with inverse matrices, and spreads each error over all later columns. Here the errors of all
    earlier columns are collected when a column's turn comes: the codes are the same, as Chee et al. prove, and one sees
    why it works. With λ added to H, the `output_error` is

        Σ_j D_j (w′_j − ŵ_j)²

    so no column could do better on its grid, given the columns before it. The grid itself does not move: scales and
    zero points are those of `qparams`.

    An input that is always 0 (H_jj = 0) tells nothing about its weight, which goes to its nearest tick. If H is a
    multiple of the identity, all weights do: the codes are those of `quantize`.

    Columns are taken in blocks of 128, as in the paper: what the blocks before it have left to a block is one product
    of matrices.

    Args:
        weight: (O, …), one row for each output; the I values of a row are its columns, in C order.
        hessian: (I, I), the mean of x xᵀ over inputs x, or any multiple of it. (groups, I, I) where the first
            O / groups rows read other inputs than the next, as in a convolution with groups.
        qparams: the grid: scale and zero point as scalars, or one for each block of weight.
        damping: λ in parts of H's mean diagonal. It makes up for too few inputs and keeps weights near where they were.
        act_order: take the columns by falling H_jj instead of from left to right.

    Returns:
        Codes of weight's shape, in the smallest of uint8, int8, int16 and int32 that holds them. Errors are summed up
        in float64; w′_j is rounded to weight's type, and from there half to even, as in `quantize`.

    Raises:
        ValueError: a hessian of another shape, not symmetric, or not positive definite (says what helps);
            damping below 0; NaN or infinity; a scale that does not fit weight.

    Cost: O(I³ + O I²).
    Source: Frantar et al. 2022, https://arxiv.org/abs/2210.17323, section 4; act_order is an option of their code.
        The form: Chee et al. 2023, https://arxiv.org/abs/2307.13304, where it is called LDLQ.

    >>> from qlearn.affine import quantize
    >>> grid = QParams(1.0, 0, -3, 3)
    >>> gptq_quantize([[0.4, 0.4]], [[1.0, 0.9], [0.9, 1.0]], grid), quantize([[0.4, 0.4]], grid)  # inputs nearly alike
    (array([[0, 1]], dtype=int8), array([[0, 0]], dtype=int8))
    """
    weight = as_floats(weight, "weight")
    if weight.ndim < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: it needs one row for each output, (O, I).")
    if not isinstance(act_order, bool):
        raise TypeError(f"act_order={act_order!r} must be True or False.")
    xp, on = array_namespace(weight), device(weight)
    h = _hessian(hessian, weight.reshape(weight.shape[0], -1))
    groups, columns = h.shape[:2]
    each = xp.arange(groups, device=on)[:, None]
    order = xp.broadcast_to(xp.arange(columns, device=on), (groups, columns))
    if act_order:
        order = xp.argsort(-xp.linalg.diagonal(h))
    r, _ = factors(_damped(h, damping)[each[..., None], order[:, :, None], order[:, None, :]])

    # Turned on their side, (groups, I, O / groups), so that what belongs to one column lies together in memory.
    dtype = getattr(xp, working_type(dtype_name(weight), qparams))  # as `quantize` computes
    w, scale, zero_point = (
        xp.matrix_transpose(values.reshape(groups, -1, columns))[each, order]
        for values in (weight, _one_each(qparams.scale, weight, dtype), _one_each(qparams.zero_point, weight, dtype))
    )
    codes = xp.empty(w.shape, dtype=dtype, device=on)
    errors = xp.zeros(w.shape, dtype=xp.float64, device=on)
    largest = float(xp.finfo(w.dtype).max)
    for start in range(0, columns, BLOCK):
        block = slice(start, min(start + BLOCK, columns))
        wanted = w[:, block] + xp.matrix_transpose(r[:, :start, block]) @ errors[:, :start]
        for j in range(columns)[block]:
            w_j = wanted[:, j - start] + (r[:, None, start:j, j] @ errors[:, start:j])[:, 0]
            # `quantize` and `dequantize` without their checks, which take longer than the column itself.
            w_j = xp.astype(xp.astype(w_j, w.dtype), dtype)
            code = xp.round(w_j / scale[:, j]) + zero_point[:, j]
            codes[:, j] = xp.clip(code, qparams.quant_min, qparams.quant_max)
            w_hat = xp.clip((codes[:, j] - zero_point[:, j]) * scale[:, j], -largest, largest)
            errors[:, j] = w[:, j] - xp.astype(xp.astype(w_hat, w.dtype), xp.float64)
    check_finite(errors, "what rounding leaves over")
    found = xp.astype(codes[each, xp.argsort(order)], getattr(xp, qparams.code_dtype))
    return xp.matrix_transpose(found).reshape(weight.shape)


@quietly
def output_error(weight: Any, weight_hat: Any, hessian: Any) -> float:
    """How far a layer's outputs are off: the mean over inputs x of the squared distance of Wx and Ŵx.

        tr((W − Ŵ) H (W − Ŵ)ᵀ)  =  mean of ‖Wx − Ŵx‖²          where H = mean of x xᵀ

    This, and not the weights' own error, is what `gptq_quantize` keeps small.

    Args:
        weight, weight_hat: (O, …), the weights before and after.
        hessian: as for `gptq_quantize`.

    Returns:
        The error, summed over outputs, computed in float64; one that is too large for it is its largest number.

    Raises:
        ValueError: weights of different shapes, a hessian of another shape or not symmetric, NaN or infinity.

    Cost: O(O I²).
    Source: Nagel et al. 2020, https://arxiv.org/abs/2004.10568, section 3.

    >>> output_error([[0.5, 0.5]], [[0.0, 1.0]], [[1.0, 0.75], [0.75, 1.0]])
    0.125
    """
    weight, weight_hat = as_floats(weight, "weight"), as_floats(weight_hat, "weight_hat")
    if tuple(weight.shape) != tuple(weight_hat.shape) or weight.ndim < 2:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and weight_hat {tuple(weight_hat.shape)}: both need the same one, "
            "(O, …), with one row for each output."
        )
    xp = array_namespace(weight)
    error = xp.astype(weight, xp.float64) - like(weight_hat, weight, xp.float64)
    h = _hessian(hessian, error.reshape(weight.shape[0], -1))
    unit = 2.0 ** exponent_of(float(xp.max(xp.abs(error))))
    error = (error / unit).reshape(h.shape[0], -1, h.shape[-1])
    return min(float(xp.sum((error @ h) * error)) * unit * unit, sys.float_info.max)


def factors(h: Array) -> tuple[Array, Array]:
    """R and the diagonal of D such that H = R D Rᵀ, where R is upper triangular and has ones on its diagonal.

    Cholesky's L Lᵀ read from the other corner; its lines then are divided by their diagonals. Several matrices
    (groups, I, I) are taken at once.

    >>> import numpy as np
    >>> r, d = factors(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> r, d
    (array([[1. , 0.5],
           [0. , 1. ]]), array([1.5, 2. ]))
    """
    xp = array_namespace(h)
    try:
        upper = xp.flip(xp.linalg.cholesky(xp.flip(h, axis=(-2, -1))), axis=(-2, -1))
    except (ValueError, RuntimeError) as error:  # LinAlgError is the one in NumPy, the other in PyTorch
        smallest = float(xp.min(xp.linalg.eigvalsh(h)))
        raise ValueError(
            f"the hessian is not positive definite, damping included: its smallest eigenvalue is {smallest:.3g}. "
            "A mean of x xᵀ has no negative ones; where there were fewer inputs than columns, damping > 0 helps."
        ) from error
    diagonal = xp.linalg.diagonal(upper)
    return upper / diagonal[..., None, :], diagonal**2


def _hessian(hessian: Any, rows: Array) -> Array:
    """The hessian in float64, (groups, I, I), if it belongs to these rows."""
    xp = array_namespace(rows)
    h = like(as_floats(hessian, "hessian"), rows, xp.float64)
    outputs, columns = (int(n) for n in rows.shape)
    if tuple(h.shape[-2:]) != (columns, columns) or h.ndim > 3 or (h.ndim == 3 and outputs % h.shape[0]):
        raise ValueError(
            f"hessian has shape {tuple(h.shape)}: rows of {columns} weights need one of ({columns}, {columns}), or "
            f"several of them that divide the {outputs} rows among them."
        )
    h = h.reshape(-1, columns, columns)
    # Sums of products in float32 come in another order on the other side of the diagonal.
    unlike = xp.max(xp.abs(h - xp.matrix_transpose(h)), axis=(-2, -1))
    if bool(xp.any(unlike > 1e-5 * xp.max(xp.abs(h), axis=(-2, -1)))):
        raise ValueError("hessian is not symmetric: it must be the mean of x xᵀ over inputs x.")
    return h


def _damped(h: Array, damping: float) -> Array:
    """H + λ·1; an input that is always 0 gets a 1 of its own on the diagonal, which ties its weight to no other."""
    if not isinstance(damping, Real) or not 0 <= damping < math.inf:
        raise ValueError(f"damping={damping!r} must be 0 or more, and finite: it is added to the hessian's diagonal.")
    xp = array_namespace(h)
    diagonal = xp.linalg.diagonal(h)
    added = float(damping) * xp.mean(diagonal, axis=-1, keepdims=True) + xp.astype(diagonal == 0, xp.float64)
    return h + added[..., None] * xp.eye(h.shape[-1], dtype=xp.float64, device=device(h))


def _one_each(parameter: Any, x: Array, dtype: Any) -> Array:
    """A scale or zero point, one for each block of `x`, as one for each value."""
    parameter, xp = like(as_array(parameter), x, dtype), array_namespace(x)
    if parameter.ndim == 0:
        return xp.broadcast_to(parameter, x.shape)
    view, shape = block_view(x, tuple(parameter.shape))
    return xp.broadcast_to(parameter.reshape(shape), view.shape).reshape(x.shape)
