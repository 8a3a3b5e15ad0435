"""A linear layer whose weights are places in a list of levels, such as NF4: a codebook, and a scale for each block.

ŵ = scale of its block · levels[code]        scale = max|w| over the block
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlearn.codebooks import check_levels, decode, encode
from qlearn.nn.layers import TILE
from qlearn.nn.linear_maps import NAMES, LinearMap, is_linear_map, rows_of
from qlearn.nn.network import (
    carry_attributes,
    carry_parts,
    check_counts,
    check_model,
    exchanged,
    grouped,
    linear_maps,
    refuse_computed_weights,
    refuse_names,
    say_who_asks,
)
from qlearn.packing import pack, packed_size, unpack


class CodebookLayer(nn.Module):
    """A Linear that stores packed codes, one scale for each block of a row, and the levels.

    Args:
        layer: a Linear. It is not changed.
        levels: (k,) from −1 to 1, in rising order: `codebooks.normal_float()`.
        block: how many neighbours in a row share a scale.

    Raises:
        ValueError: no Linear, a block that does not divide the row.

    >>> layer = nn.Linear(4, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.5, -0.1, 8.0, 4.5]])
    >>> CodebookLayer(layer, [-1.0, 0.0, 0.5, 1.0], block=2).weight
    tensor([[0.5000, 0.0000, 8.0000, 4.0000]])
    """

    packed: Tensor
    scale: Tensor
    levels: Tensor

    def __init__(self, layer: Any, levels: Any, block: int = 64) -> None:
        super().__init__()
        if not is_linear_map(layer) or layer.weight.ndim != 2:
            raise ValueError(f"{type(layer).__name__} has no codebook: wanted is a Linear.")
        self.map, rows = LinearMap.of(layer), rows_of(layer).detach()
        check_counts(block=block)
        if block > rows.shape[1] or rows.shape[1] % block:
            raise ValueError(f"block={block} does not divide its rows of {rows.shape[1]} weights.")
        self.shape, numbers = tuple(rows.shape), check_levels(levels)
        self.bits = max(1, (len(numbers) - 1).bit_length())
        scale = rows.float().unflatten(1, (-1, block)).abs().amax(2)
        scale = torch.where(scale > 0, scale, 1.0)
        self.register_buffer("scale", scale)
        self.register_buffer("levels", torch.tensor(numbers.astype(np.float32)))
        parts = [pack(encode(rows[part].float(), numbers, scale[part]), self.bits) for part in self._places()]
        self.register_buffer("packed", torch.cat(parts))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.register_buffer("_real", rows.new_empty(0), persistent=False)  # knows the type of real numbers here
        refuse_names(layer, self)
        carry_attributes(layer, self)
        carry_parts(layer, self)

    @property
    def weight(self) -> Tensor:
        """What the codes stand for, as the float layer has it; made anew whenever it is read."""
        return self.map.weight(torch.cat([rows for _, rows in self._tiles()]))

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        parts = ((place, rows.to(input.dtype)) for place, rows in self._tiles())
        return self.map.in_parts(input, parts, self.bias)

    def _places(self) -> Iterator[slice]:
        """The rows, in pieces that are packed and unpacked at once. Of eight rows the codes fill whole bytes."""
        outputs, inputs = self.shape
        step = max(8, TILE // 4 // inputs // 8 * 8)  # codes are unpacked as int64, which takes more than their floats
        return (slice(start, min(start + step, outputs)) for start in range(0, outputs, step))

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows after the other, as floats."""
        inputs = self.shape[1]
        for part in self._places():
            of_codes = slice(*(packed_size(row * inputs, self.bits) for row in (part.start, part.stop)))
            codes = unpack(self.packed[of_codes], self.bits, (part.stop - part.start, inputs))
            yield part, decode(codes, self.levels, self.scale[part]).to(self._real.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        block = self.shape[1] // self.scale.shape[1]
        return f"{self.shape[1]} → {self.shape[0]}, {len(self.levels)} levels, blocks of {block}"


def use_codebook(model: nn.Module, levels: Any, *, block: int = 64, leave: str | tuple[str, ...] = ()) -> nn.Module:
    """Copy a network and give every Linear in it codes of these levels: with `codebooks.normal_float()` this is NF4.

    Args:
        model: a float network. It is not changed.
        levels, block: as for `CodebookLayer`.
        leave: name or names of layers that stay in float, a head that is the embedding, say.

    Raises:
        ValueError: no Linear, a block that does not divide a row (names the layer), a name that is no layer; weights
            that a hook computes.

    Source: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3, but for the scales, which stay float32.

    >>> from qlearn.codebooks import normal_float
    >>> use_codebook(nn.Sequential(nn.Linear(128, 2), nn.ReLU()), normal_float())
    Sequential(
      (0): CodebookLayer(128 → 2, 16 levels, blocks of 64)
      (1): ReLU()
    )
    """
    check_model(model)
    leave = (leave,) if isinstance(leave, str) else leave
    if not isinstance(leave, Collection) or not all(isinstance(name, str) for name in leave):
        raise TypeError(f"leave={leave!r} must be the names of layers.")
    layers = {name: layer for name, layer in linear_maps(model).items() if layer.weight.ndim == 2}
    if unknown := [name for name in leave if name not in layers]:
        raise ValueError(f"leave names {unknown[0]!r}, which is no Linear; those are {', '.join(layers)}.")
    layers = {name: layer for name, layer in layers.items() if name not in leave}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Linear left to quantize; it knows {NAMES}.")
    refuse_computed_weights(layers)
    say_who_asks(model, list(layers.values()))
    rows = {name: rows_of(layer).shape[1] for name, layer in layers.items()}
    if len(wrong := {name: n for name, n in rows.items() if isinstance(block, int) and block > 0 and n % block}) > 1:
        (first, row), *others = wrong.items()
        raise ValueError(
            f"layer {first!r}: block={block} does not divide its rows of {row} weights, nor those of "
            f"{grouped({name: str(n) for name, n in others})}: use another, or leave={tuple(wrong)} in float."
        )
    return exchanged(model, layers, lambda _, layer: CodebookLayer(layer, levels, block))
