"""How one tensor is to be quantized, as one value that can be passed around, compared and printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qlearn.affine import QParams, choose_qparams, quant_limits
from qlearn.granularity import Granularity, PerTensor, check_granularity
from qlearn.ranges import METHODS, check_percentile, find_range

# What only a stream of batches has: an average over them, or a range for each of them while the network runs.
STREAM_METHODS = ("moving_average", "dynamic")


@dataclass(frozen=True)
class QuantConfig:
    """Bits, scheme, granularity and range method for one tensor. The fields are the arguments of `find_qparams`.

    Two methods more make sense for batches that come one after the other: "moving_average" (an observer's), and
    "dynamic", for activations: every batch gets the range of its own values when it comes.

    Raises:
        ValueError: bits outside their limits, an unknown method, a percentile outside (50, 100].
        TypeError: a granularity or a percentile that is none, `symmetric` or `narrow_range` neither True nor False.

    >>> QuantConfig(bits=4, symmetric=True).find_qparams([-1.0, 7.0])
    QParams(scale=1.0, zero_point=0, quant_min=-7, quant_max=7)
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = field(default_factory=PerTensor)
    method: str = "min_max"
    narrow_range: bool = True
    percentile: float = 99.9  # of the method "percentile" alone

    def __post_init__(self) -> None:
        _ = self.limits  # which refuses what cannot be
        check_percentile(self.percentile)
        check_granularity(self.granularity)
        known = (*METHODS, *STREAM_METHODS)
        if self.method not in known:
            raise ValueError(f"method={self.method!r} is not known; the methods are {', '.join(map(repr, known))}.")

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return quant_limits(self.bits, symmetric=self.symmetric, narrow_range=self.narrow_range)

    def choose_qparams(self, lo: Any, hi: Any) -> QParams:
        """The quantizer for a known range."""
        return choose_qparams(lo, hi, bits=self.bits, symmetric=self.symmetric, narrow_range=self.narrow_range)

    def find_qparams(self, x: Any, **options: Any) -> QParams:
        """The quantizer for `x`: that for its range."""
        return self.choose_qparams(*self.find_range(x, **options))

    def find_range(self, x: Any, **options: Any) -> tuple[Any, Any]:
        """The range of `x` by `method`, one for each block of `granularity`.

        Raises:
            ValueError: a method for batches, which one array is not; and what `qlearn.find_range` raises.
        """
        if self.method in STREAM_METHODS:
            raise ValueError(
                f"method={self.method!r} is for batches that come one after the other; one array has one range: "
                f"use {', '.join(map(repr, METHODS))}."
            )
        if self.method == "percentile":
            options = {"percentile": self.percentile, **options}
        return find_range(
            x,
            self.method,
            bits=self.bits,
            symmetric=self.symmetric,
            narrow_range=self.narrow_range,
            granularity=self.granularity,
            **options,
        )
