"""One linear layer of any width, batch, bits and engine, measured here: the half of `explore_speed` that needs PyTorch.

layer → engine → seconds of a call, beside the float layer's, in turn        machine → roofline
"""

from __future__ import annotations

import threading
import time
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from qlearn import nn
from qlearn.arrays import quietly
from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis
from qlearn.widgets.jobs import Tell, at_work

FLOAT = "float"
ENGINES = {  # as the explorer calls them → what runs them in float, and on codes
    "pytorch": ("float", "integers by hand"),
    "fake": ("float", "fake quantized"),
    "onnxruntime": ("ONNX Runtime", "ONNX Runtime int8"),
    "torchao": ("float", "torchao int8"),
}
NEEDS = {"onnxruntime": ("onnx", "onnxruntime", "onnxscript"), "torchao": ("torchao",)}
SECONDS = 0.3  # for each of the two that are measured


class Setting(NamedTuple):
    """A layer and what runs it, in the words of the explorer's controls."""

    width: int
    batch: int
    bits: int | str
    engine: str

    @classmethod
    def of(cls, **values: Any) -> Setting:
        """A setting in which what changes nothing has one value: in float, all that PyTorch runs is the same."""
        wanted = cls(*(values[name] for name in cls._fields))
        if wanted.bits == FLOAT and ENGINES[wanted.engine][0] == FLOAT:
            return wanted._replace(engine="pytorch")
        return wanted

    @property
    def runs_on(self) -> str:
        """The name for `nn.engine`."""
        return ENGINES[self.engine][self.bits != FLOAT]

    @property
    def integers(self) -> bool:
        """Whether its weights are stored as codes and multiplied as such; fake quantization only rounds floats."""
        return self.bits != FLOAT and self.engine != "fake"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one batch."""
        return 2 * self.batch * self.width**2

    @property
    def weight_bits(self) -> int:
        return int(self.bits) if self.integers else 32

    @property
    def moved(self) -> int:
        """Bytes of one batch: the weights as they are stored; inputs and outputs, which all engines have in float."""
        return self.width**2 * self.weight_bits // 8 + 2 * self.batch * self.width * 4


class Outcome(NamedTuple):
    """What was measured: of this engine, of the float layer in the same run, and how many bytes the engine keeps."""

    now: nn.Latency
    in_float: nn.Latency
    bytes: int


class Runs:
    """All settings that were measured."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # one measures, the others wait: they would be in each other's way
        self._outcomes: dict[Setting, Outcome] = {}
        self.machine: nn.Machine | None = None

    def known(self, setting: Setting) -> Outcome | None:
        """What was measured, if it was."""
        return self._outcomes.get(setting)

    @quietly
    def outcome(self, setting: Setting, tell: Tell) -> Outcome:
        """What this setting takes; measured if it is not known."""
        with at_work(self._lock, tell):
            if self.machine is None:
                tell("machine", 0.0)
                self.machine = measured_machine()
            if setting not in self._outcomes:
                self._outcomes[setting] = _measure(setting, tell)
        return self._outcomes[setting]


def check(setting: Setting) -> None:
    """Raise unless the setting can be measured here.

    Raises:
        ValueError: an engine that is not installed, or that does not have these bits.
    """
    if setting.engine == "torchao" and setting.bits == 4:
        raise ValueError("torchao: measured here are its int8 products, which have 8 bits.")
    missing = [name for name in NEEDS.get(setting.engine, ()) if find_spec(name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is not installed here: pip install {' '.join(missing)}.")


def least(machine: nn.Machine, setting: Setting) -> float:
    """The seconds that the roofline allows. Where int8 products could not be measured, as if they were float's."""
    int8 = setting.integers and machine.int8_operations_per_second is not None
    return nn.roofline(machine, setting.operations, setting.moved, int8=int8)


@lru_cache(maxsize=1)
def measured_machine() -> nn.Machine:
    """Once in a process."""
    return nn.measure_machine()


def _measure(setting: Setting, tell: Tell) -> Outcome:
    tell("preparing", 0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = torch.nn.Linear(setting.width, setting.width).eval(), torch.randn(setting.batch, setting.width)
    bits = 8 if isinstance(setting.bits, str) else setting.bits
    weights = QuantConfig(bits, symmetric=True, granularity=PerAxis(0))
    in_float = nn.engine("float", layer, x)
    tell("preparing", 0.3)
    now = in_float
    if setting.runs_on != "float":
        try:
            now = nn.engine(setting.runs_on, layer, x, weights=weights)
        except ImportError as error:
            raise ValueError(str(error)) from error
    began = time.perf_counter()

    def hear(_: Any) -> None:  # in turn with the others, so that it is in none of their times
        tell("measuring", min((time.perf_counter() - began) / (2 * SECONDS), 1.0))

    found = nn.latencies(
        {"now": now, "float": in_float, "": hear}, x, seconds=2 * SECONDS / 3, warmup=2, progress=False
    )
    return Outcome(found["now"], found["float"], now.bytes)
