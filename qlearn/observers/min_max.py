"""The smallest and the largest value of a stream, or an average of them; and what all observers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from array_api_compat import array_namespace

from qlearn.affine import QParams
from qlearn.arrays import Array, as_floats, block_rows, like, quietly, to_numpy
from qlearn.config import QuantConfig
from qlearn.ranges import between, min_max


class Observer:
    """What all observers share: the smallest and the largest value seen, and the three steps.

    Args:
        config: bits, scheme, granularity and method of the quantizer that is asked for at the end.

    Attributes:
        lo, hi: the smallest and the largest value so far, in the granularity's scale shape; None before the
            first `observe`. They are of x's library and type (float32 for half types).

    Raises:
        ValueError: a configuration whose method this observer cannot solve for.

    >>> issubclass(MinMaxObserver, Observer), MinMaxObserver().seen
    (True, False)
    """

    methods: ClassVar[tuple[str, ...]]  # what it can solve for; the first one is meant if there is no config

    def __init__(self, config: QuantConfig | None = None) -> None:
        self.config = config if config is not None else QuantConfig(method=self.methods[0])
        if self.config.method not in self.methods:
            what = ", ".join(map(repr, self.methods))
            raise ValueError(
                f"method={self.config.method!r}: a {type(self).__name__} remembers nothing but what {what} needs."
            )
        self.lo: Array | None = None
        self.hi: Array | None = None

    @property
    def seen(self) -> bool:
        """Whether any data came by."""
        return self.lo is not None

    @property
    def nbytes(self) -> int:
        """How many bytes its state takes now."""
        return 0 if self.lo is None or self.hi is None else int(self.lo.nbytes + self.hi.nbytes)

    @quietly
    def observe(self, x: Any) -> Self:
        """Take in one batch; returns the observer, so that calls can be chained.

        Args:
            x: NumPy array or PyTorch tensor of any shape and float type, with or without gradient.
        Raises:
            ValueError: empty `x`, NaN or infinity in `x`, or a shape with other blocks than before. The observer
                is then what it was.
        """
        x = as_floats(x)
        shape = self.config.granularity.scale_shape(tuple(x.shape))
        self._check_blocks(shape)
        self._take(block_rows(x, shape) if shape else x.reshape(1, -1), shape)
        return self

    @quietly
    def merge(self, other: Self) -> Self:
        """A new observer that has seen what both have seen. Neither is changed; the order does not matter.

        Raises:
            ValueError: the two are of different kinds, or saw blocks of different shapes; their configurations
                differ in something that the quantizer depends on (the percentile counts for that method only,
                narrow_range for symmetric codes only).
        """
        if type(other) is not type(self):
            raise ValueError(f"a {type(self).__name__} and a {type(other).__name__} cannot be merged.")
        if _used(other.config) != _used(self.config):
            raise ValueError(f"these observers cannot be merged: one has {self.config}, the other {other.config}.")
        merged = type(self)(self.config)
        for part in (self, other):
            if part.lo is not None:
                merged._check_blocks(tuple(part.lo.shape))
                merged._join(part)
        return merged

    def state(self) -> dict[str, np.ndarray]:
        """All that it remembers, as arrays by name, for a file or for another process; {} if it has seen nothing.

        >>> MinMaxObserver().observe(np.array([1.0, 2.0])).state()
        {'lo': array(1.), 'hi': array(2.)}
        """
        return {} if self.lo is None else {"lo": np.asarray(to_numpy(self.lo)), "hi": np.asarray(to_numpy(self.hi))}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """A new observer of this kind and configuration that remembers what `state` has given out.

        Args:
            state: its lo and hi may be tensors: then the quantizer is one for tensors.

        >>> MinMaxObserver().with_state({"lo": np.array(1.0), "hi": np.array(2.0)})
        MinMaxObserver(lo=1.0, hi=2.0)
        """
        found = type(self)(self.config)
        if state:
            found._remember(state)
        return found

    @quietly
    def qparams(self) -> QParams:
        """The quantizer for what was seen.

        Raises:
            RuntimeError: nothing was observed yet.
        """
        return self.config.choose_qparams(*self.range())

    @quietly
    def range(self) -> tuple[Array, Array]:
        """The range (lo, hi) that the quantizer is to span, by the configuration's method.

        Raises:
            RuntimeError: nothing was observed yet.
        """
        if self.lo is None or self.hi is None:
            raise RuntimeError("this observer has seen no data: call observe(x) (or calibrate the network) first.")
        return self._solve(self.lo, self.hi)

    def _take(self, rows: Array, shape: tuple[int, ...]) -> None:
        """Add rows (blocks, n) of finite numbers to the state, or raise and leave it alone."""
        raise NotImplementedError

    def _join(self, part: Self) -> None:
        """Add another one's state to this one's."""
        raise NotImplementedError

    def _remember(self, state: Mapping[str, Any]) -> None:
        self._widen(state["lo"], state["hi"])

    def _solve(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return lo, hi

    def _check_blocks(self, shape: tuple[int, ...]) -> None:
        if self.lo is not None and tuple(self.lo.shape) != shape:
            raise ValueError(
                f"this batch has ranges of shape {shape}, earlier ones had {tuple(self.lo.shape)}: "
                "every batch needs the same blocks."
            )

    def _widen(self, lo: Array, hi: Array) -> None:
        if self.lo is not None and self.hi is not None:
            lo, hi = like(lo, self.lo), like(hi, self.hi)
            xp = array_namespace(lo)
            lo, hi = xp.minimum(self.lo, lo), xp.maximum(self.hi, hi)
        self.lo, self.hi = (lo + 0.0)[()], (hi + 0.0)[()]  # + 0.0: of −0.0 and 0.0, whichever came first would stay

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'nothing seen yet' if self.lo is None else f'lo={self.lo}, hi={self.hi}'})"


class MinMaxObserver(Observer):
    """Remember the smallest and the largest value seen, for each block of the granularity.

        lo ← min(lo, min(x)),  hi ← max(hi, max(x));   qparams = choose_qparams(lo, hi)

    Memory: two numbers a block, however much data goes by. Cost: O(n).

    >>> import numpy as np
    >>> observer = MinMaxObserver(QuantConfig(bits=2))
    >>> observer.observe(np.array([0.0, 3.0])).observe(np.array([-1.0, 2.0])).qparams()
    QParams(scale=1.3333333333333333, zero_point=1, quant_min=0, quant_max=3)
    """

    methods: ClassVar[tuple[str, ...]] = ("min_max",)

    def _take(self, rows: Array, shape: tuple[int, ...]) -> None:
        lo, hi = min_max(rows)
        self._widen(lo.reshape(shape), hi.reshape(shape))

    def _join(self, part: Self) -> None:
        self._widen(part.lo, part.hi)


class MovingAverageObserver(Observer):
    """Remember an average over the batches' smallest and largest values, in which old batches fade away.

        first batch:  lo = min(x),  hi = max(x)        then:  lo ← lo + c · (min(x) − lo),  hi ← hi + c · (max(x) − hi)

    One wild batch moves the range a little only. The price: the result depends on the order of the batches, on
    their size, and on the first one most of all. So there is no merging two of them.

    Memory: two numbers a block. Cost: O(n).

    Args:
        averaging_constant: c, more than 0 and at most 1; at 1 only the latest batch counts.

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1; PyTorch's MovingAverageMinMaxObserver.

    >>> batches = [0.0, 10.0], [0.0, 20.0]
    >>> for order in (batches, batches[::-1]):
    ...     observer = MovingAverageObserver(averaging_constant=0.25)
    ...     print(observer.observe(order[0]).observe(order[1]).hi)
    12.5
    17.5
    """

    methods: ClassVar[tuple[str, ...]] = ("moving_average",)

    def __init__(self, config: QuantConfig | None = None, *, averaging_constant: float = 0.01) -> None:
        super().__init__(config)
        if isinstance(averaging_constant, (bool, str)) or not 0 < averaging_constant <= 1:
            raise ValueError(f"averaging_constant={averaging_constant!r} must be more than 0 and at most 1.")
        self.averaging_constant = averaging_constant

    def merge(self, other: Self) -> Self:
        """There is no such thing.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "moving averages cannot be merged: each depends on the order of its batches, and which of two observers' "
            "batches came first is not known. Observe all batches with one observer, or use 'min_max', 'percentile' "
            "or 'mse', which merge exactly."
        )

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """As `Observer.with_state`, with this one's averaging constant."""
        found = super().with_state(state)
        found.averaging_constant = self.averaging_constant
        return found

    def _take(self, rows: Array, shape: tuple[int, ...]) -> None:
        lo, hi = (end.reshape(shape) for end in min_max(rows))
        if self.lo is not None and self.hi is not None:
            c = self.averaging_constant
            lo, hi = between(self.lo, like(lo, self.lo), c), between(self.hi, like(hi, self.hi), c)
        self.lo, self.hi = lo[()], hi[()]


def _used(config: QuantConfig) -> QuantConfig:
    """The configuration without what its method and its codes do not use."""
    unused: dict[str, Any] = {} if config.method == "percentile" else {"percentile": 100.0}
    if not config.symmetric:
        unused["narrow_range"] = True
    return replace(config, **unused)
