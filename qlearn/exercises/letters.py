"""The shipped language model: what a learner's own function does to chapters that the lesson does not show.

PyTorch is imported late, because other lessons work without it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from qlearn import datasets
from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis

LETTERS = 4096  # of the test part: 32 windows
ROWS = QuantConfig(bits=8, symmetric=True, granularity=PerAxis(0))


@lru_cache(maxsize=1)
def model() -> Any:
    """The model as it was trained. Whoever hands it to a learner hands over a copy."""
    from qlearn import nn

    return nn.load_language_model()


@lru_cache(maxsize=2)
def planted(channels: int = 2, factor: float = 256.0) -> Any:
    """The model with some channels behind each norm that are so many times as large."""
    from qlearn import nn

    return nn.plant_outliers(model(), channels=channels, factor=factor)


@lru_cache(maxsize=1)
def planted_in_eight_bits() -> Any:
    """The planted model, weights and activations of 8 bits, the activations with one range a layer."""
    return nearest(planted(), ROWS, QuantConfig(bits=8))


@lru_cache(maxsize=1)
def batches() -> list[Any]:
    """64 pieces of text to calibrate with, in four batches."""
    from qlearn.nn.language_model import CONTEXT, windows

    return list(windows(datasets.text_parts().calibration[: 64 * CONTEXT + 1])[0].split(16))


def held_out(letters: int = LETTERS) -> str:
    """The beginning of the test part."""
    return datasets.text_parts().test[: letters + 1]


def perplexity(model: Any, letters: int = LETTERS) -> float:
    """How surprised a model is by the held-out letters."""
    from qlearn import nn

    return nn.perplexity(model, held_out(letters))


def logits_and_following(model: Any) -> tuple[Any, Any]:
    """What a model expects at each held-out place, float64 (T, 80), and the letter that came, (T,)."""
    import torch

    from qlearn.nn.language_model import windows

    inputs, following = windows(held_out())
    with torch.no_grad():
        return model(inputs).flatten(0, 1).double().numpy(), following.flatten().numpy()


def nearest(model: Any, weights: QuantConfig, activations: QuantConfig | None = None) -> Any:
    """A model with its weights rounded to the nearest, and its activations, if they are to be."""
    from qlearn import nn

    prepared = nn.prepare(model, weights, activations)
    if activations is not None:
        nn.calibrate(prepared, batches()[:1], progress=False)
    return nn.convert(prepared)


def inputs_of_query(model: Any) -> Any:
    """What the first block's query, key and value read, float64 (2048, 192)."""
    import torch

    with torch.no_grad():
        tokens = batches()[0]
        x = model.tokens(tokens) + model.positions(torch.arange(tokens.shape[1]))
        return model.blocks[0].norm1(x).flatten(0, 1).double().numpy()


def behind(model: Any, layers: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    """A copy in which what these layers of each block put out, (N, T, O), is changed: "attention.key"."""
    from torch import nn

    class Changed(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Any) -> Any:
            return change(self.layer(x))

    twin = copy.deepcopy(model)
    for block in twin.blocks:
        for name in layers:
            block.set_submodule(name, Changed(block.get_submodule(name)))
    return twin
