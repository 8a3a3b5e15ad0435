"""Low-rank adapters: a frozen, quantized network that learns through a few numbers beside each layer.

    y = layer(x) + (x Aᵀ) Bᵀ · α / r        A: (r, I)    B: (O, r)

The layer keeps its codes and is never trained; A and B are r numbers for each input and each output of it. B starts
at zero, so at first nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn.nn.batches import Forward, device_of
from qlearn.nn.codebook_layer import CodebookLayer
from qlearn.nn.integer_layers import IntegerLayer
from qlearn.nn.language_model import CONTEXT
from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.linear_maps import LinearMap, is_linear_map
from qlearn.nn.network import (
    Around,
    check_counts,
    check_model,
    check_numbers,
    check_seed,
    copy_of,
    linear_maps,
    move_hooks,
    naming,
    refuse_computed_weights,
    refuse_names,
    replace,
    say_who_asks,
)
from qlearn.nn.perplexity import as_tokens, logits_of
from qlearn.nn.prepared import prepared_layers
from qlearn.nn.training import adam, learn, losses_of

WARM_UP = 10  # steps until the learning rate has its full size


class AdaptedLayer(Around):
    """A layer that is left as it is, and a product of two thin matrices beside it.

        y = layer(x) + (x Aᵀ) Bᵀ · α / r

    Args:
        layer: a Linear, or one with its weights in codes.
        rank: r.
        alpha: α.
        generator: draws A, normal with deviation 1 / √I. B is zero.

    Attributes:
        layer: as it was. Hooks that were registered on it are on this one now.
        a, b: the parameters (r, I) and (O, r).

    >>> layer = AdaptedLayer(nn.Linear(4, 3), 2, 2.0)
    >>> _ = layer.b.data.fill_(1.0)
    >>> bool(torch.allclose(layer(torch.eye(4)), functional.linear(torch.eye(4), layer.weight, layer.bias), atol=1e-6))
    True
    """

    def __init__(self, layer: Any, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.layer, self.scale = layer, alpha / rank
        self.map = LinearMap.of(layer) if is_linear_map(layer) else layer.map
        a = torch.randn(rank, self.map.inputs, generator=generator) / math.sqrt(self.map.inputs)
        self.a = nn.Parameter(a.to(layer.weight))
        self.b = nn.Parameter(self.a.new_zeros(self.map.outputs, rank))
        if is_linear_map(layer):
            refuse_names(layer, self)
        move_hooks(layer, self)

    @property
    def weight(self) -> Tensor:
        """W + B A · α / r: the weights of one layer that does the same."""
        return self.layer.weight + self.map.weight(self.b @ self.a) * self.scale

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        return self.layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        return self.layer(input) + functional.linear(functional.linear(input, self.a), self.b) * self.scale

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"rank {len(self.a)}, {self.a.numel() + self.b.numel()} numbers to train"


def add_adapters(
    model: nn.Module, rank: int = 2, *, alpha: float | None = None, layers: str = "*", seed: int = 0
) -> nn.Module:
    """Copy a network and put an adapter beside each of its linear layers; nothing but the adapters can be trained.

        quantize → add_adapters → train_adapters        with NF4 codes (`use_codebook`) this is QLoRA

    Args:
        model: float, or quantized with its activations in float: from `convert` or `use_codebook`. It is not changed.
        rank: r, of each adapter: it has r numbers for each input and output of its layer.
        alpha: α; r if not given. Adam's steps do not hang on it at first, what they change does.
        layers: names of those that get one, as a pattern: "*.attention.*".
        seed: of A.

    Returns:
        The copy, in eval mode. It computes exactly what the model does, until it is trained. Its file, from `nn.save`,
        holds codes and adapters; `adapter_state` holds the adapters alone.

    Raises:
        ValueError: no such layers, ranks below 1 or above what the smallest layer has, layers that round their inputs
            (no gradient goes through them), a model that is prepared or has adapters already.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685; on quantized layers: Dettmers et al. 2023,
        https://arxiv.org/abs/2305.14314.

    >>> model = add_adapters(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)), rank=2)
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
    400
    """
    check_model(model)
    if prepared_layers(model):
        raise ValueError("this model is prepared: nn.convert makes codes of its weights, which adapters go beside.")
    if any(isinstance(module, AdaptedLayer) for module in model.modules()):
        raise ValueError("this model has adapters already.")
    check_seed(seed)
    check_numbers(alpha=rank if alpha is None else alpha)
    if not isinstance(layers, str):
        raise TypeError(f"layers={layers!r} must be a name or a pattern, '*.attention.*'.")
    copied = copy_of(model).requires_grad_(False)
    kinds = (QuantizedLayer, CodebookLayer)
    maps = linear_maps(copied)
    refuse_computed_weights(maps)
    in_codes = {name: module for name, module in copied.named_modules() if isinstance(module, kinds)}
    known: dict[str, Any] = {**in_codes, **maps}
    found = {name: m for name, m in known.items() if fnmatchcase(name, layers) and m.weight.ndim == 2}
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer that is called {layers!r}.")
    if rounding := [name for name, layer in found.items() if isinstance(layer, IntegerLayer)]:
        raise ValueError(
            f"{rounding[0]!r} rounds its inputs, and no gradient goes through that: adapters need activations=None."
        )
    most = min(min(layer.weight.shape) for layer in found.values())
    if isinstance(rank, bool) or not isinstance(rank, Integral) or not 1 <= rank <= most:
        raise ValueError(f"rank={rank!r} must be a whole number from 1 to {most}, what the smallest layer has.")
    alpha, generator = float(rank if alpha is None else alpha), torch.Generator().manual_seed(int(seed))
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be above 0, and finite.")
    say_who_asks(copied, list(found.values()))
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in found.items():
        with naming(name):
            made[layer] = AdaptedLayer(layer, int(rank), alpha, generator)
    return replace(copied, made).eval()


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The numbers of the adapters alone, by name: what a file needs beside the model that they were made for.

        safetensors.torch.save_file(adapter_state(model), path)
        model.load_state_dict(safetensors.torch.load_file(path), strict=False)

    Raises:
        ValueError: a model without adapters.

    >>> {name: tuple(t.shape) for name, t in adapter_state(add_adapters(nn.Sequential(nn.Linear(6, 3)))).items()}
    {'0.a': (2, 6), '0.b': (3, 2)}
    """
    check_model(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}
    if not layers:
        raise ValueError("this model has no adapters: nn.add_adapters gives it some.")
    return {
        f"{name}.{p}".lstrip("."): getattr(layer, p).detach().clone() for name, layer in layers.items() for p in "ab"
    }


def train_adapters(
    model: nn.Module,
    text: Any,
    *,
    steps: int = 240,
    batch_size: int = 8,
    context: int = CONTEXT,
    learning_rate: float = 2e-2,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool = True,
) -> list[float]:
    """Train what can be trained in a causal language model, in place, to expect each next token of a text.

    Adam on the cross-entropy, on windows from all over the text; the learning rate rises over 10 steps, then falls in
    a straight line to 0. Interrupt it when you like: the model keeps what it has learnt so far, in eval mode.

    Args:
        model: from `add_adapters`; or any that gives logits for each token.
        text: for training: a text for a `LanguageModel`, or tokens as `perplexity` takes them.
        steps, batch_size, context: how many steps, of how many windows, of how many tokens.
        learning_rate: the largest.
        seed: of the windows (and of dropout); torch's own random state is neither used nor changed. The same numbers
            come out however many cores there are.
        forward: how the network is called on a batch of tokens (N, context).
        progress: show a bar with the loss and the time left.

    Returns:
        The loss of every step.

    Raises:
        ValueError: nothing to train, a text shorter than a window, counts below 1; outputs that are not finite.

    Cost: a forward pass, and a backward pass without the weights' own gradients, for each step; with the defaults 42 s
        of one core for the shipped model, which at 2 bits by min-max comes down from a perplexity of 37 to 6.5.

    >>> from qlearn.nn.language_model import language_model
    >>> model = add_adapters(language_model(), rank=1)
    >>> len(train_adapters(model, "Call me Ishmael. " * 20, steps=2, batch_size=2, context=16, progress=False))
    2
    """
    check_model(model)
    check_counts(steps=steps, batch_size=batch_size, context=context)
    rate = adam(model, learning_rate, lambda step: min((step + 1) / WARM_UP, 1 - step / steps))
    check_seed(seed)
    tokens, device = as_tokens(text), device_of(model)
    if tokens.shape[1] <= context:
        raise ValueError(f"the text has {tokens.shape[1]} tokens: {context + 1} are needed at least.")
    places = torch.Generator().manual_seed(int(seed))

    def windows() -> Iterator[Tensor]:
        for _ in range(steps):
            texts = torch.randint(len(tokens), (batch_size, 1), generator=places)
            starts = torch.randint(tokens.shape[1] - context, (batch_size, 1), generator=places)
            yield tokens[texts, starts + torch.arange(context + 1)].to(device)

    def loss_of(windows: Tensor) -> Tensor:
        logits = logits_of(model, windows[:, :-1], forward=forward)
        return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    return losses_of(learn(model, windows(), loss_of, rate, seed=int(seed)), int(steps), progress)
