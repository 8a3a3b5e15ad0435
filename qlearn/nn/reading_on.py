"""Reading on: one character after those that a language model has read, at the cost of one character.

Keys and values of what was read are kept (the KV cache). At a single row most of a network's time goes into calling its
modules, so here rows are vectors and layers are products of a matrix and a vector: weights in codes are made real once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn.granularity import PerGroup, PerToken
from qlearn.nn.adapters import AdaptedLayer
from qlearn.nn.batches import device_of
from qlearn.nn.codebook_layer import CodebookLayer
from qlearn.nn.fake_quantize import FakeQuantize, LearnedFakeQuantize
from qlearn.nn.flow import hooks
from qlearn.nn.integer_layers import DynamicLayer
from qlearn.nn.language_model import CONTEXT, Attention, Block, GatedMLP, LanguageModel, Past
from qlearn.nn.layers import WeightOnlyLayer
from qlearn.nn.prepared import ObservedLayer, notice_uncalled

Row = Callable[[Tensor], Tensor]


class Reader:
    """A language model that reads a window, and then on from there, one character at a time.

    Args:
        model: one of which `reads_on` is true, in eval mode. Its weights are looked at now, not at each character.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, tokens = language_model(), to_tokens("Call me Ishmael.")
    >>> reader = Reader(model)
    >>> with torch.no_grad():
    ...     _ = reader.begin(tokens[:, :-1])
    ...     print(bool(torch.allclose(reader.read(int(tokens[0, -1])), model(tokens)[0, -1], atol=1e-5)))
    True
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model, self._place = model, 0
        self._tokens, self._positions = model.tokens.weight.detach(), model.positions.weight.detach()
        self._blocks = [_Block(block) for block in model.blocks]  # type: ignore[arg-type]
        self._norm, self._head = _by_itself(model.norm), _by_itself(model.head)

    def begin(self, tokens: Tensor) -> Tensor:
        """Forget everything and read a window (1, T): the logits (80,) after its last character."""
        pasts = [Past() for _ in self._blocks]
        logits = self._model.read_on(tokens, pasts)[0, -1]
        for block, past in zip(self._blocks, pasts, strict=True):
            block.remember(past)
        self._place = tokens.shape[1]
        return logits

    def read(self, token: int) -> Tensor:
        """Read the next character: the logits (80,) after it. A window has room for `CONTEXT` of them."""
        x = self._tokens[token] + self._positions[self._place]
        self._place += 1
        for block in self._blocks:
            x = block(x, self._place)
        return self._head(self._norm(x))


class _Block:
    """What a `Block` makes of one row, (width,) → (width,)."""

    def __init__(self, block: Block) -> None:
        self._attention, mlp = block.attention, block.mlp
        self._norm1, self._norm2 = _by_itself(block.norm1), _by_itself(block.norm2)
        self._reads = _by_itself(self._attention.query, self._attention.key, self._attention.value)
        self._output = _by_itself(self._attention.output)
        self._gates, self._down = _by_itself(mlp.gate, mlp.up), _by_itself(mlp.down)

    def remember(self, past: Past) -> None:
        """Take over keys and values, with room for those to come."""
        kept = torch.cat([past.keys, past.values])  # type: ignore[list-item]
        self._kept = kept.new_empty(2, kept.shape[1], CONTEXT, kept.shape[3])
        self._kept[:, :, : past.length] = kept

    def __call__(self, x: Tensor, length: int) -> Tensor:
        """`length` counts the characters up to this one."""
        heads = self._attention.heads
        query, new = self._reads(self._norm1(x)).view(3, -1).split((1, 2))
        if self._attention.cache is not None:
            new = self._attention.stored(new[:, None])
        self._kept.select(2, length - 1).copy_(new.view(2, heads, -1))
        keys, values = self._kept.narrow(2, 0, length).split(1)
        found = functional.scaled_dot_product_attention(query.view(1, heads, 1, -1), keys, values)
        x = x + self._output(found.view(-1))
        gate, up = self._gates(self._norm2(x)).chunk(2)
        return x + self._down(functional.silu(gate) * up)


def _by_itself(*parts: Any) -> Row:
    """What parts of a network make of one row, one result behind the other, in as few calls as it takes."""
    if len(parts) == 1 and type(parts[0]) is nn.RMSNorm:
        return parts[0]
    if all(_is_product(part) for part in parts):
        return torch.cat([part.weight.detach() for part in parts]).mv
    return lambda x: torch.cat([part(x[None, None])[0, 0] for part in parts])


def _is_product(part: Any) -> bool:
    """Whether a part multiplies its input with real weights, and does nothing else."""
    inner = part.layer if type(part) is AdaptedLayer else part
    return type(inner) in (nn.Linear, WeightOnlyLayer, CodebookLayer) and part.bias is None


def reads_on(model: nn.Module) -> TypeGuard[LanguageModel]:
    """Whether every part of the model takes each character by itself, attention apart, so that once is enough."""
    if type(model) is not LanguageModel or not all(_is_plain(block) for block in model.blocks):
        return False
    if torch.is_autocast_enabled(device_of(model).type):  # which does not know all functions that are called here
        return False
    prepared = {layer for layer in model.modules() if isinstance(layer, ObservedLayer)}
    inside = {part for layer in prepared for part in layer.modules()} - prepared
    return all(
        type(module).__module__.startswith(("torch.nn.", "qlearn.nn."))
        and all(hook is notice_uncalled for hook in hooks(module))
        and (module in inside or not _looks_around(module))
        for module in model.modules()
    )


def _is_plain(block: Any) -> bool:
    """Whether a block is built as `Block` says, of whatever layers."""
    kinds = [Block, Attention, GatedMLP, nn.Dropout]
    return type(block) is Block and [type(m) for m in (block, block.attention, block.mlp, block.dropout)] == kinds


def _looks_around(module: nn.Module) -> bool:
    """Whether a module finds one range for several characters."""
    config: Any = None
    if isinstance(module, DynamicLayer):
        config = module.inputs
    elif isinstance(module, ObservedLayer) and module.activations and module.activations.method == "dynamic":
        config = module.activations
    elif isinstance(module, FakeQuantize) and not isinstance(module, LearnedFakeQuantize):
        config = module.config
    return config is not None and not isinstance(config.granularity, (PerToken, PerGroup))
