"""Last bits disturbed on purpose, in a notebook's kernel: what processors that nobody here has would do to a lesson.

Only results that do differ from one processor or system to another are disturbed, and by as much as they differ: sums
of products by up to 8 units in the last place, because kernels sum in different orders; logarithms, exponentials and
random numbers made with them by one unit. The disturbance hangs on a number's significand alone. So equal numbers stay
equal, a product with a power of two stays exact, and a cell that runs twice gives the same.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

SUMS, FUNCTIONS = 8, 1  # units in the last place
UNSIGNED = {np.dtype(np.float32): (np.uint32, 23), np.dtype(np.float64): (np.uint64, 52)}
FACTOR = 0x9E3779B1  # 2³² divided by the golden ratio: neighbouring significands get unlike disturbances


def disturbed(x: Any, seed: int, units: int) -> Any:
    """x with each number moved by up to `units` in its last place; integers, infinities and NaN stay as they are.

    >>> disturbed(np.float32([1, 2, 3, 0]), seed=1, units=8).tolist() != [1, 2, 3, 0]
    True
    """
    x = np.asarray(x)
    if x.dtype not in UNSIGNED:
        return x
    unsigned, bits = UNSIGNED[x.dtype]
    significand = np.ascontiguousarray(x).reshape(-1).view(unsigned) & unsigned(2**bits - 1)
    mixed = ((significand.astype(np.uint64) + np.uint64(seed)) * np.uint64(FACTOR)) >> np.uint64(24)
    moves = (mixed % np.uint64(2 * units + 1)).astype(np.int64) - units
    step = (moves * 2.0**-bits).astype(x.dtype).reshape(x.shape)
    return (x + np.where(np.isfinite(x), x, 0) * step)[()]


def disturb(seed: int) -> None:
    """From here on, this process' NumPy, its PyTorch and the shipped networks are disturbed."""
    for name in ("ml_dtypes", "torchao.quantization"):  # as they load they ask for the functions themselves, by name
        with contextlib.suppress(ImportError, AttributeError), warnings.catch_warnings(action="ignore"):
            importlib.import_module(name)
    disturb_numpy(seed)
    try:
        import torch
    except ImportError:
        pass
    else:
        disturb_torch(torch, seed)
    disturb_networks(seed)


def disturb_numpy(seed: int) -> None:
    """Functions that each mathematics library rounds its own way, and random numbers that are made with them."""

    def other(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: disturbed(f(*args, **options), seed, FUNCTIONS)

    for name in ("exp", "log", "log2", "log10", "log1p", "tanh", "geomspace", "logspace"):
        setattr(np, name, other(getattr(np, name)))

    class Generator(np.random.Generator):
        """NumPy's own, with other last bits wherever it takes a logarithm."""

        def normal(self, *args: Any, **options: Any) -> Any:
            x = super().normal(*args, **options)
            return np.where(np.abs(x) > 3.6, disturbed(x, seed, FUNCTIONS), x)[()]  # its tails alone need one

        laplace = other(np.random.Generator.laplace)
        standard_t = other(np.random.Generator.standard_t)

    def default_rng(seed: int | None = None) -> Generator:
        return Generator(np.random.PCG64(seed))

    np.random.default_rng = default_rng  # type: ignore[assignment]


def disturb_torch(torch: Any, seed: int) -> None:
    """The sums of linear and convolutional layers, and normal random numbers."""
    functional = torch.nn.functional

    def other(f: Callable[..., Any], units: int) -> Callable[..., Any]:
        def g(*args: Any, **options: Any) -> Any:
            y = f(*args, **options)
            if type(y) is not torch.Tensor:  # without numbers, while PyTorch records a network
                return y
            moved = torch.from_numpy(np.asarray(disturbed(y.detach().numpy(), seed, units)))
            return y + (moved - y.detach())  # the gradient is y's

        return g

    for name in ("linear", "conv2d"):
        setattr(functional, name, other(getattr(functional, name), SUMS))
    torch.randn = other(torch.randn, FUNCTIONS)


def disturb_networks(seed: int) -> None:
    """The products that NumPy makes with a shipped network's weights."""
    from qlearn import datasets

    class Weights(np.ndarray):
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
            plain = [np.asarray(x) if isinstance(x, Weights) else x for x in inputs]
            if "out" in options:  # else the ufunc would come back here
                options["out"] = tuple(np.asarray(x) if isinstance(x, Weights) else x for x in options["out"])
            result = getattr(ufunc, method)(*plain, **options)
            return disturbed(result, seed, SUMS) if ufunc is np.matmul else result

    shipped = datasets.trained

    def trained(name: str) -> dict[str, np.ndarray]:
        return {key: array.view(Weights) for key, array in shipped(name).items()}

    datasets.trained = trained
