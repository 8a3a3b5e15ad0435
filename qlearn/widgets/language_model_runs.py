"""A small language model quantized in every way that its explorer offers: what that explorer does with PyTorch.

    outliers → rounded weights → inputs and cache that are rounded on the way → perplexity, text

What was found once is kept: models with other outliers, rounded weights, perplexities, texts. All that takes time says
how far it is, and can be stopped there.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from qlearn import datasets, nn
from qlearn.affine import QParams, fake_quantize
from qlearn.arrays import quietly
from qlearn.config import QuantConfig
from qlearn.errors import SCALE_BITS
from qlearn.granularity import PerAxis, PerGroup, PerToken
from qlearn.nn.language_model import CONTEXT, LanguageModel, to_tokens, windows
from qlearn.nn.network import linear_maps
from qlearn.nn.prepared import prepared_layers
from qlearn.nn.threads import one_thread
from qlearn.ranges import find_range
from qlearn.widgets.jobs import Tell, at_work

FLOAT, ROW = "float", "row"
# Outliers: so many channels behind each norm, so many times as large.
PLANTED: dict[str, Any] = {"channels": 2, "factor": 256.0}
SEARCHES = ("mse", "gptq", "awq")  # whose ranges are those with the smallest squared error
ACTIVATIONS = {
    "tensor8": QuantConfig(),
    "token8": QuantConfig(method="dynamic", granularity=PerToken()),
    "token4": QuantConfig(4, method="dynamic", granularity=PerToken()),
}
RANGE_BYTES = 8  # of a layer whose input has one range: a scale and a zero point of 32 bits
MEASURED = 8193  # letters of the validation text: 64 pieces
CALIBRATED, BATCH = 64, 16  # pieces of the calibration text, and how many at once
LETTERS = 200  # that are written
KEPT_WEIGHTS, KEPT_TEXTS = 8, 512


class Setting(NamedTuple):
    """How the model is quantized, in the words of the explorer's controls."""

    outliers: str
    method: str
    bits: int | str
    group: int | str
    activations: str
    cache: int | str

    @classmethod
    def of(cls, **values: Any) -> Setting:
        """A setting in which what changes nothing has one value: groups need activations in float."""
        wanted = cls(*(values[name] for name in cls._fields))
        if wanted.bits == FLOAT:
            return wanted._replace(method="min_max", group=ROW)
        return wanted if wanted.activations == FLOAT else wanted._replace(group=ROW)


IN_FLOAT = Setting("trained", "min_max", FLOAT, ROW, FLOAT, FLOAT)


class Outcome(NamedTuple):
    """What a setting is worth: `weights` of `bits` each, scales included, take `packed` of the bytes."""

    perplexity: float
    bytes: int
    cache_bytes: int
    weights: int
    packed: int

    @property
    def bits(self) -> float:
        return 8 * self.packed / self.weights


class Text(NamedTuple):
    """A prompt and what the model has written on, and how surprised the float model is by each letter, in bits."""

    text: str
    surprises: np.ndarray


class Rounded(NamedTuple):
    """A model with rounded weights; the one whose inputs say which ranges they have; and sizes as in `Outcome`."""

    model: Any
    source: Any
    bytes: int
    weights: int
    packed: int


class Runs:
    """One language model in every setting.

    Args:
        model: a `LanguageModel`; without it the one that comes with this package.

    Attributes:
        groups: sizes of groups that fit into all of its rows.
        cache_shape: blocks, width and width of a head.
    """

    def __init__(self, model: Any = None) -> None:
        if model is not None and not isinstance(model, LanguageModel):
            raise TypeError(f"model is a {type(model).__name__}: wanted is a qlearn.nn.LanguageModel.")
        self._float = nn.load_language_model() if model is None else copy.deepcopy(model).eval()
        widths = [layer.weight.shape[1] for layer in linear_maps(self._float).values()]
        self.groups = [size for size in (64, 32) if all(width % size == 0 for width in widths)]
        attention = self._float.blocks[0].attention
        width = attention.key.out_features
        self.cache_shape = len(self._float.blocks), width, width // attention.heads
        self._lock = threading.RLock()  # one computes, the others wait
        self._base = lru_cache(None)(self._find_base)
        self._rounded: OrderedDict[Setting, Rounded] = OrderedDict()
        self._ranges: dict[Setting, dict[str, QParams]] = {}
        self._outcomes: dict[Setting, Outcome] = {}
        self._texts: OrderedDict[tuple[Setting, str], Text] = OrderedDict()

    def known(self, setting: Setting) -> bool:
        """Whether its perplexity is known."""
        return setting in self._outcomes

    def known_text(self, setting: Setting, prompt: str) -> Text | None:
        """What it writes on this prompt, if that is known."""
        return self._texts.get((setting, prompt))

    @quietly
    def outcome(self, setting: Setting, tell: Tell) -> Outcome:
        """What a setting is worth."""
        if setting not in self._outcomes:
            with at_work(self._lock, tell), one_thread():
                if setting not in self._outcomes:
                    self._outcomes[setting] = self._find_outcome(setting, tell)
        return self._outcomes[setting]

    @quietly
    def text(self, setting: Setting, prompt: str, tell: Tell) -> Text:
        """What it writes on this prompt."""
        key = setting, prompt
        if (found := self._texts.get(key)) is None:
            with at_work(self._lock, tell), one_thread():
                model = self._network(setting, tell)
                with _calls(tell, "writing", (), LETTERS) as each:
                    text = nn.generate(model, prompt, length=LETTERS, each=each)
                found = self._texts[key] = Text(text, surprises(self._float, text))
                _keep(self._texts, KEPT_TEXTS)
        return found

    def _find_outcome(self, setting: Setting, tell: Tell) -> Outcome:
        model = self._network(setting, tell)
        with _calls(tell, "measuring", linear_maps(model).values(), 1):
            perplexity = nn.perplexity(model, datasets.text_parts().validation[:MEASURED])
        rounded = self._weights(setting, tell)
        size = rounded.bytes
        if setting.activations == "tensor8" and setting.bits != FLOAT:
            size += RANGE_BYTES * len(linear_maps(model))
        return Outcome(perplexity, size, self._cache_bytes(setting.cache), rounded.weights, rounded.packed)

    def _cache_bytes(self, bits: int | str) -> int:
        """Keys and values of `CONTEXT` letters: codes, and for each head of each letter a scale and a zero point."""
        blocks, width, head = self.cache_shape
        numbers = 2 * blocks * CONTEXT * width
        if isinstance(bits, str):
            return 4 * numbers
        return -(-(numbers * bits + numbers // head * (SCALE_BITS + bits)) // 8)

    # The model of a setting

    def _network(self, setting: Setting, tell: Tell) -> Any:
        """A model that computes what that of `prepare`, `calibrate` and `convert` does, in float: that is quicker."""
        network = copy.deepcopy(self._weights(setting, tell).model)
        if setting.activations != FLOAT:
            ranges = self._input_ranges(setting, tell)
            each_token = _rounding(ACTIVATIONS[setting.activations])
            for name, layer in linear_maps(network).items():
                layer.register_forward_pre_hook(_rounding(ranges[name]) if name in ranges else each_token)
        if not isinstance(setting.cache, str):
            for block in network.blocks:
                block.attention.cache = QuantConfig(setting.cache, granularity=PerGroup(self.cache_shape[2]))
        return network

    def _find_base(self, outliers: str) -> Any:
        """Cached as `_base`: the float model with these outliers; all of them compute the same."""
        if outliers == "trained":
            return self._float
        if outliers == "planted":
            return nn.plant_outliers(self._float, **PLANTED)
        mend = nn.smooth if outliers == "smoothed" else nn.rotate
        return mend(self._base("planted"), _calibration())

    def _weights(self, setting: Setting, tell: Tell) -> Rounded:
        """The same for all activations, caches and prompts."""
        key = setting._replace(activations=FLOAT, cache=FLOAT)
        if key not in self._rounded:
            tell("quantizing", 0.0)
            self._rounded[key] = self._round(key, tell)
        self._rounded.move_to_end(key)
        _keep(self._rounded, KEPT_WEIGHTS)
        return self._rounded[key]

    def _round(self, setting: Setting, tell: Tell) -> Rounded:
        base = self._base(setting.outliers)
        tell("quantizing", 0.1)
        if isinstance(setting.bits, str):
            weights = sum(layer.weight.numel() for layer in linear_maps(base).values())
            return Rounded(base, base, nn.summary(base).bytes, weights, 4 * weights)
        granularity = PerAxis(0) if isinstance(setting.group, str) else PerGroup(setting.group)
        min_max = QuantConfig(setting.bits, symmetric=True, granularity=granularity)
        config = replace(min_max, method="mse") if setting.method in SEARCHES else min_max
        if setting.method == "awq":  # factors by min-max, and then clipped, as its authors do
            base = nn.awq(base, _calibration(), min_max, progress=False)
        prepared = nn.prepare(base, config, None)
        if setting.method == "gptq":
            layers = prepared_layers(prepared)
            with _calls(tell, "quantizing", layers, 4 * len(_calibration())):
                prepared = nn.gptq(prepared, _calibration(), progress=False)
        tell("quantizing", 0.5)
        converted = nn.convert(prepared)
        model = copy.deepcopy(base)
        for name, layer in linear_maps(model).items():
            layer.weight.data.copy_(converted.get_submodule(name).weight)
        summary = nn.summary(converted)
        packed = [row for row in summary.layers if row.weights != FLOAT]
        return Rounded(
            model, model if setting.method == "gptq" else base, summary.bytes,
            sum(row.parameters for row in packed), sum(row.bytes for row in packed),
        )  # fmt: skip

    def _input_ranges(self, setting: Setting, tell: Tell) -> dict[str, QParams]:
        """The quantizer of each layer's input, where one for all inputs is found beforehand."""
        if setting.activations != "tensor8":
            return {}
        key = setting._replace(cache=FLOAT)
        if setting.method in ("min_max", "mse"):  # ranges are those of the float model
            key = key._replace(method="min_max", bits=FLOAT, group=ROW)
        if key not in self._ranges:
            prepared = nn.prepare(self._weights(key, tell).source)
            layers = prepared_layers(prepared)
            with _calls(tell, "calibrating", layers, len(_calibration())):
                nn.calibrate(prepared, _calibration(), progress=False)
            self._ranges[key] = {layer.name: layer.observer.qparams() for layer in layers if layer.observer}
        return self._ranges[key]


def surprises(model: Any, text: str) -> np.ndarray:
    """How many bits of surprise each letter of a text is to a model: −log2 p(letter | those before it).

    The first letter is no surprise: NaN. Of the letters before one at least half a `CONTEXT` is seen, all if there are
    fewer.
    """
    tokens = to_tokens(text)[0]
    found = torch.full((len(tokens),), float("nan"))
    with torch.no_grad():
        for start in range(0, max(len(tokens) - CONTEXT // 2, 1), CONTEXT // 2):
            piece = tokens[start : start + CONTEXT + 1]
            if len(piece) < 2:
                continue
            logs = model(piece[None, :-1])[0].log_softmax(-1).gather(-1, piece[1:, None])[:, 0]
            seen = 0 if start == 0 else CONTEXT // 2
            found[start + 1 + seen : start + len(piece)] = -logs[seen:] / np.log(2)
    return found.numpy()


def check(prompt: Any) -> str:
    """A prompt that can be written on.

    Raises:
        ValueError: an empty one, one that is too long, letters that the model does not know.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r} must be a text.")
    if not 0 < len(prompt) <= CONTEXT:
        length = f"has {len(prompt)} letters" if prompt else "is empty"
        raise ValueError(f"the prompt {length}: one letter is needed, and at most {CONTEXT} are seen.")
    try:
        to_tokens(prompt)
    except ValueError as error:
        raise ValueError(f"prompt: {error}.") from None
    return prompt


@contextmanager
def _calls(tell: Tell, stage: str, layers: Any, times: int) -> Iterator[Callable[..., None]]:
    """Tell how far a stage is, in which each of these layers, or what this gives out, is called so many times."""
    layers = list(layers)
    expected, done = times * max(len(layers), 1), 0

    def hear(*_: Any) -> None:
        nonlocal done
        done += 1
        tell(stage, min(done / expected, 1.0))

    tell(stage, 0.0)
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(hear))
        yield hear


def _rounding(quantizer: QParams | QuantConfig) -> Callable[[Any, Any], Any]:
    """A hook that rounds a layer's input: with this quantizer, or with one found for each token.

    Queries, keys and values are made of one input: it is rounded once.
    """
    last: Any = None
    rounded: Any = None

    def round_input(_: Any, args: Any) -> Any:
        nonlocal last, rounded
        (x,) = args
        if x is not last:
            qparams = quantizer
            if isinstance(qparams, QuantConfig):
                qparams = qparams.choose_qparams(*find_range(x, granularity=qparams.granularity))
            last, rounded = x, fake_quantize(x, qparams)
        return rounded

    return round_input


def _keep(kept: OrderedDict[Any, Any], most: int) -> None:
    """Forget what was put in longest ago."""
    while len(kept) > most:
        kept.popitem(last=False)


@lru_cache(maxsize=1)
def _calibration() -> list[Any]:
    text = datasets.text_parts().calibration[: CALIBRATED * CONTEXT + 1]
    return list(windows(text)[0].split(BATCH))
