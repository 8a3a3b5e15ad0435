"""Where NumPy and PyTorch meet: the few things that both libraries must agree on.

The maths of this package is written once, against the Python array API standard, and runs on
NumPy arrays and PyTorch tensors alike. This file checks what comes in and cuts arrays into blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

Array = Any  # a NumPy array or a PyTorch tensor: the two share no base class that could be named here

SLAB = 1 << 17  # values worked on at once: 512 KiB of float32 stay in a core's second-level cache

# For functions that compute with floats. What becomes too large is clamped by them, and what becomes too small is
# rounded to 0: neither is an error, even where a user has asked NumPy to raise on both (np.seterr(all="raise")).
# A decorator: `@quietly` above a function.
quietly = np.errstate(over="ignore", under="ignore")


def as_array(x: Any, name: str = "x") -> Array:
    """`x` itself if it is an array (a tensor without its gradient), else a NumPy array made of it.

    Bytes in another order than the processor's, as files often have them, are turned round.

    Raises:
        TypeError: no numbers in rows of equal length; an array that hides some of its values (masked), a tensor that
            has none (meta) or does not store each (sparse).

    >>> as_array(np.array([1, 2], dtype=">i2")).dtype
    dtype('int16')
    """
    if is_torch_array(x):
        if x.is_meta:
            raise TypeError(
                f"{name} is on the meta device, where a tensor has a shape and no numbers: load them first."
            )
        if (layout := str(x.layout).removeprefix("torch.")) != "strided":
            raise TypeError(f"{name} is a tensor of layout {layout}: wanted is an ordinary one, {name}.to_dense().")
        return x.detach().resolve_neg()  # a view such as z.conj().imag has numbers of its own only then
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, and its mask would be ignored: {name}.compressed() are the values that count, "
            f"{name}.filled(0) puts a number in the place of the others."
        )
    if isinstance(x, np.matrix):
        x = x.A  # a matrix stays two-dimensional whatever is done with it
    if not isinstance(x, np.ndarray):
        try:
            x = np.asarray(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} cannot be made an array, which takes numbers in rows of equal length: {error}"
            ) from error
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def dtype_name(x: Array) -> str:
    """The name of `x`'s type that NumPy and PyTorch share: "float32", not "torch.float32"."""
    return str(x.dtype).removeprefix("torch.")


def as_floats(x: Any, name: str = "x", *, finite: bool = True) -> Array:
    """`x` as a non-empty, finite array of float32 or float64; with `finite=False` that is not looked at.

    Half types become float32; integers, Python numbers and lists take their library's default float.

    Raises:
        TypeError: for booleans, complex numbers, text and objects.
        ValueError: for an empty array; for NaN or infinity, saying how many and where the first is.
    """
    x = as_array(x, name)
    xp = array_namespace(x)
    if math.prod(x.shape) == 0:
        raise ValueError(f"{name} is empty (shape {tuple(x.shape)}): it needs at least one value.")
    dtype = dtype_name(x)
    if dtype in ("float32", "float64"):
        pass
    elif dtype in ("float16", "bfloat16"):
        x = xp.astype(x, xp.float32)
    elif dtype.startswith(("int", "uint")):
        x = xp.astype(x, xp.float32 if is_torch_array(x) else xp.float64)
    else:
        raise TypeError(f"{name} has dtype {dtype}: it must hold real numbers (integers, or floats of 16 to 64 bits).")
    if finite:
        check_finite(x, name)
    return x


def as_codes(codes: Any, name: str = "codes", wanted: str = "they must be integers.") -> Array:
    """`codes` as a non-empty array of integers.

    Raises:
        TypeError: numbers of another type, booleans included; says what is `wanted`.  ValueError: an empty array.

    >>> as_codes([1, 2])
    array([1, 2])
    """
    codes = as_array(codes, name)
    if "int" not in dtype_name(codes):
        raise TypeError(f"{name} {'have' if name == 'codes' else 'has'} dtype {dtype_name(codes)}: {wanted}")
    if math.prod(codes.shape) == 0:
        raise ValueError(
            f"{name} {'are' if name == 'codes' else 'is'} empty (shape {tuple(codes.shape)}): "
            "wanted is at least one integer."
        )
    return codes


def all_finite(x: Array) -> bool:
    """Whether no value of `x` is NaN or infinity.

    A sum of squares is quicker than `isfinite`, since nothing but a number is stored. If it is not finite, numbers
    beyond 1e19 can be the reason. Then 0 times each value is summed up, which is NaN only for NaN and infinity.

    >>> all_finite(np.float32([1.0, 3e38])), all_finite(np.float32([1.0, np.inf]))
    (True, False)
    """
    flat, xp = x.reshape(-1), native_namespace(x)
    with np.errstate(all="ignore"):
        return float(xp.dot(flat, flat)) < math.inf or float(xp.dot(flat, xp.zeros_like(flat))) == 0


def as_shape(shape: Any, name: str = "shape") -> tuple[int, ...]:
    """The lengths of an array's axes, of whatever says them.

    Raises:
        TypeError: no whole numbers.  ValueError: one below 0.

    >>> as_shape(3), as_shape([2, np.int64(5)])
    ((3,), (2, 5))
    """
    try:
        lengths = (shape,) if isinstance(shape, str) else tuple(shape)
    except TypeError:
        lengths = (shape,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in lengths):
        raise TypeError(f"{name}={shape!r} must be a whole number, or a list or tuple of whole numbers.")
    if any(n < 0 for n in lengths):
        raise ValueError(f"{name}={shape!r} has a length below 0: use that of the codes before they were packed.")
    return tuple(int(n) for n in lengths)


def check_finite(x: Array, name: str = "x") -> None:
    """Raise `ValueError` if `x` holds NaN or infinity, with their number and the first one's place."""
    flat = x.reshape(-1)
    if all(all_finite(flat[part]) for part in slabs(flat)):
        return
    bad = ~native_namespace(x).isfinite(x)
    count = int(bad.sum())
    first = tuple(int(i) for i in np.argwhere(to_numpy(bad))[0])
    place = "" if x.ndim == 0 else f" at index {first[0] if len(first) == 1 else first}"
    raise ValueError(
        f"{name} holds {count} value{'s' if count > 1 else ''} that {'are' if count > 1 else 'is'} not finite; "
        f"the first is {float(x[first])}{place}. Remove or replace NaN and infinity before quantizing."
    )


def exponent_of(largest: float, ordinary: float = 1e70) -> int:
    """The power of two by which numbers up to `largest` are to be divided before they are squared and summed up.

    0 for ordinary numbers, whose squares can also be divided by each other; else at most 1000 on either side, since
    2^1074 would not be a float64.

    >>> exponent_of(1.0), exponent_of(1e200), exponent_of(5e-324)
    (0, 665, -1000)
    """
    if largest == 0 or 1 / ordinary < largest < ordinary:
        return 0
    return max(-1000, min(math.frexp(largest)[1], 1000))


@quietly
def saturate(values: Array, dtype: Any) -> Array:
    """`values` as floats of another type; what is too large for it becomes its largest number, not infinity.

    >>> saturate(np.array([1.5, -1e30]), np.float16)
    array([ 1.50e+00, -6.55e+04], dtype=float16)
    """
    compat, xp = array_namespace(values), native_namespace(values)
    largest = min(float(xp.finfo(kind).max) for kind in (dtype, values.dtype))  # PyTorch takes no limit beyond its type
    return compat.astype(xp.clip(values, -largest, largest), dtype, copy=False)


def native_namespace(x: Array) -> Any:
    """NumPy or torch itself: what fast loops call, without the compatibility layer's wrappers."""
    return array_namespace(x, use_compat=False)


def like(value: Any, x: Array, dtype: Any = None) -> Array:
    """`value` as an array of `x`'s library, on `x`'s device."""
    if is_torch_array(value) and not is_torch_array(x):
        value = to_numpy(value)
    if isinstance(value, np.ndarray):
        value = as_array(value)
        if is_torch_array(x) and any(step < 0 for step in value.strides):
            value = value.copy()  # PyTorch has no views that go backwards
    return array_namespace(x).asarray(value, dtype=dtype, device=device(x))


def to_numpy(x: Any) -> Any:
    """A tensor's values in the processor's memory, as a NumPy array; what is no tensor, unchanged.

    >>> to_numpy(np.array([1.0]))
    array([1.])
    """
    return x.detach().cpu().numpy() if is_torch_array(x) else x


def ordered(x: Array) -> Array:
    """`x` sorted along its last axis.

    >>> ordered(np.array([3.0, 1.0, 2.0]))
    array([1., 2., 3.])
    """
    if is_torch_array(x) and x.device.type == "cpu":  # NumPy sorts with vector instructions: 20 times as quick
        return like(np.sort(x.numpy()), x)
    return array_namespace(x).sort(x, axis=-1, stable=False)


def block_view(x: Array, counts: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """View `x` so that an array of one number a block broadcasts against it.

    `counts[i]` says into how many equal blocks axis i is cut. An axis that is cut into blocks of more
    than one value becomes two axes, (block, place in the block); the others stay as they are.

    >>> view, shape = block_view(np.zeros((4, 6)), (4, 3))
    >>> view.shape, shape
    ((4, 3, 2), (4, 3, 1))

    Returns the view, and the shape that the array of shape `counts` takes to broadcast against it.
    """
    if len(counts) != x.ndim or any(c < 1 or n % c for n, c in zip(x.shape, counts, strict=True)):
        raise ValueError(
            f"scale has shape {counts}, x has shape {tuple(x.shape)}: scale needs as many axes as x, and "
            "along each one a length that divides x's, so that every entry covers one block of x."
        )
    view: list[int] = []
    shape: list[int] = []
    for n, c in zip(x.shape, counts, strict=True):
        whole = c in (1, n)
        view += [n] if whole else [c, n // c]
        shape += [c] if whole else [c, 1]
    return x.reshape(view), tuple(shape)


def of_blocks(x: Array, scale: Any, operation: Callable[[Any, Any], Array]) -> Array:
    """`operation(x, scale)`, where each entry of `scale` meets the values of its block.

    The result has x's shape and type, or is float64 where x's type cannot hold the scale.

    >>> of_blocks(np.array([[2.0, 4.0, 6.0, 9.0]]), np.array([[2.0, 3.0]]), np.divide)
    array([[1., 2., 2., 3.]])
    """
    scale = as_floats(scale, "scale")
    if not bool((scale > 0).all()):
        raise ValueError(
            f"scale holds {float(scale[~(scale > 0)].reshape(-1)[0]):g}: every scale must be larger than 0."
        )
    if not can_hold(dtype_name(x), scale):
        x = array_namespace(x).astype(x, array_namespace(x).float64)
    if scale.ndim == 0:
        return operation(x, float(scale))
    view, shape = block_view(x, tuple(scale.shape))
    return operation(view, like(scale.reshape(shape), x, x.dtype)).reshape(x.shape)


def can_hold(dtype: str, scale: Array) -> bool:
    """Whether in float32 or float64 (`dtype`) none of these scales becomes 0 or infinity.

    >>> can_hold("float32", np.array(1e300)), can_hold("float64", np.array(1e300))
    (False, True)
    """
    if dtype == "float64" or dtype_name(scale) == "float32":
        return True
    info = np.finfo(np.float32)
    return float(info.smallest_subnormal) <= float(scale.min()) and float(scale.max()) <= float(info.max)


def block_rows(x: Array, counts: tuple[int, ...]) -> Array:
    """`x` as one row a block: shape (number of blocks, values in a block), blocks in C order.

    >>> block_rows(np.arange(8).reshape(2, 4), (1, 2))
    array([[0, 1, 4, 5],
           [2, 3, 6, 7]])
    """
    view, shape = block_view(x, counts)
    inside = [axis for axis, n in enumerate(shape) if n == 1]
    across = [axis for axis, n in enumerate(shape) if n != 1]
    return array_namespace(x).permute_dims(view, (*across, *inside)).reshape(math.prod(shape), -1)


def in_slabs(operation: Callable[[Array], Array], x: Array, dtype: Any) -> Array:
    """`operation`, value by value, on pieces of `x` that stay in the cache: an array of x's shape, or a number.

    >>> in_slabs(np.sqrt, np.array([4, 9]), np.float32)
    array([2., 3.], dtype=float32)
    """
    flat = x.reshape(-1)
    found = array_namespace(x).empty(flat.shape, dtype=dtype, device=device(x))
    for part in slabs(flat):
        found[part] = operation(flat[part])
    return found.reshape(x.shape)[()]


def slabs(view: Array) -> Iterator[slice]:
    """Slices along the first axis that cut `view` into pieces of about `SLAB` values.

    A formula of five steps reads and writes its data five times. In pieces that fit the processor's
    cache only the first read and the last write go to memory.
    """
    rows = len(view)
    step = max(1, SLAB * rows // math.prod(view.shape))
    for start in range(0, rows, step):
        yield slice(start, start + step)
