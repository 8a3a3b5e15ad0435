"""How one tensor is to be quantized, as one value that can be passed around, compared and printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qlearn.affine import QParams, choose_qparams, quant_limits
from qlearn.granularity import Granularity, PerTensor
from qlearn.ranges import METHODS, find_qparams


@dataclass(frozen=True)
class QuantConfig:
    """Bits, scheme, granularity and range method for one tensor. The fields are the arguments of `find_qparams`.

    Raises:
        ValueError: bits outside their limits, or an unknown method.

    >>> QuantConfig(bits=4, symmetric=True).find_qparams([-1.0, 7.0])
    QParams(scale=1.0, zero_point=0, quant_min=-7, quant_max=7)
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = field(default_factory=PerTensor)
    method: str = "min_max"
    narrow_range: bool = True

    def __post_init__(self) -> None:
        quant_limits(self.bits, symmetric=self.symmetric, narrow_range=self.narrow_range)
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not known; the methods are {', '.join(map(repr, METHODS))}.")

    def choose_qparams(self, lo: Any, hi: Any) -> QParams:
        """The quantizer for a known range."""
        return choose_qparams(lo, hi, bits=self.bits, symmetric=self.symmetric, narrow_range=self.narrow_range)

    def find_qparams(self, x: Any, **options: Any) -> QParams:
        """The quantizer for `x`: its range by `method`, one for each block of `granularity`."""
        return find_qparams(
            x,
            self.method,
            bits=self.bits,
            symmetric=self.symmetric,
            narrow_range=self.narrow_range,
            granularity=self.granularity,
            **options,
        )
