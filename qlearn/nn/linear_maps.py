"""The layers that can be quantized: sums of products of inputs and weights, whatever their shapes.

    Linear            y = W x                       W: (O, I)
    Conv1d, Conv2d    y = Σ over a window           W: (O, I / groups, kh, kw)
    ConvTranspose2d   y = windows, laid over others W: (I, O / groups, kh, kw)
    Conv1D            y = Wᵀ x                      W: (I, O), the Linear of GPT-2 in the transformers library

Quantization sees the same in all of them: one *row* of weights for each output channel. A `LinearMap` knows where
the rows are, and how PyTorch multiplies with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn.granularity import Granularity, PerGroup

Supported: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
NAMES = "Linear, Conv1d, Conv2d or ConvTranspose2d"

# Kind → PyTorch's function, and which attributes of the layer it takes.
_WINDOW = ("stride", "padding", "dilation", "groups")
_PRODUCTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "Linear": (functional.linear, ()),
    "Conv1D": (functional.linear, ()),
    "Conv1d": (functional.conv1d, _WINDOW),
    "Conv2d": (functional.conv2d, _WINDOW),
    "ConvTranspose2d": (functional.conv_transpose2d, (*_WINDOW, "output_padding")),
}


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module is one of these layers. A subclass may compute something else, so only the exact types are.

    Nor is a layer of complex numbers, or one that was given a `forward` of its own, as libraries do that load weights
    when they are needed.

    >>> is_linear_map(nn.Linear(2, 3)), is_linear_map(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    (True, False)
    """
    of_torch = type(module) in KINDS and getattr(module, "padding_mode", "zeros") == "zeros"
    if not of_torch and f"{type(module).__module__}.{type(module).__name__}" != "transformers.pytorch_utils.Conv1D":
        return False
    return "forward" not in vars(module) and not (isinstance(module.weight, Tensor) and module.weight.is_complex())


@dataclass(frozen=True)
class LinearMap:
    """What one layer does with its weights.

    Attributes:
        kind: the layer's type: "Linear".
        options: stride, padding and so on, as PyTorch's functions take them; {} for Linear.
        shape: of the weights.

    >>> LinearMap.of(nn.Conv2d(1, 2, 3, padding=1)).options
    {'stride': (1, 1), 'padding': (1, 1), 'dilation': (1, 1), 'groups': 1}
    """

    kind: str
    options: dict[str, Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, layer: Supported) -> LinearMap:
        """That of a layer."""
        kind = type(layer).__name__
        return cls(kind, {name: getattr(layer, name) for name in _PRODUCTS[kind][1]}, tuple(layer.weight.shape))

    @property
    def transposed(self) -> bool:
        """Whether the input's channels come first in the weights."""
        return self.kind == "ConvTranspose2d"

    @property
    def is_matrix(self) -> bool:
        """Whether rows are multiplied with the last axis of the input."""
        return len(self.shape) == 2

    @property
    def groups(self) -> int:
        """Into how many parts the channels are cut, each with weights of its own."""
        return self.options.get("groups", 1)

    @property
    def outputs(self) -> int:
        """How many output channels there are, and rows of weights."""
        return self.shape[1] * self.groups if self.transposed or self.kind == "Conv1D" else self.shape[0]

    @property
    def inputs(self) -> int:
        """How many input channels there are."""
        return self.shape[0] if self.transposed or self.kind == "Conv1D" else self.shape[1] * self.groups

    @property
    def output_axis(self) -> int:
        """Where the channels are in what comes out, counted from the end."""
        return 1 - len(self.shape) if len(self.shape) > 2 else -1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's output for the input x. If the weights are a matrix, they are given as rows, or some of them."""
        return _PRODUCTS[self.kind][0](x, weight, bias, **self.options)

    def in_parts(self, x: Tensor, parts: Iterable[tuple[slice, Tensor]], bias: Tensor | None) -> Tensor:
        """The output for x, of weights that are made a part at a time: which rows, and what stands in them."""
        made = [self(x, weight, None if bias is None else bias[rows]) for rows, weight in parts]
        return made[0] if len(made) == 1 else torch.cat(made, self.output_axis)

    def rows(self, weight: Tensor) -> Tensor:
        """The weights with the output channels first: (O, …).

        >>> LinearMap.of(nn.ConvTranspose2d(2, 3, 5)).rows(torch.zeros(2, 3, 5, 5)).shape
        torch.Size([3, 2, 5, 5])
        """
        if not self.transposed:
            return weight.T if self.kind == "Conv1D" else weight
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def weight(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`, which undoes itself: it swaps two axes."""
        return self.rows(rows)

    def per_output(self, values: Tensor) -> Tensor:
        """One number for each output channel, in a shape that broadcasts against the output."""
        return values.reshape(-1, *[1] * (-1 - self.output_axis))

    def columns(self, x: Tensor) -> Tensor:
        """What each row is multiplied with, flat: (groups, I, n), one column for each sum of products.

        >>> layer = nn.Conv2d(1, 1, (1, 2))
        >>> LinearMap.of(layer).columns(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        tensor([[[1., 2.],
                 [2., 3.]]])
        """
        if self.is_matrix:
            return x.reshape(1, -1, x.shape[-1]).mT
        x = x if x.ndim == len(self.shape) else x[None]
        kernel = self.shape[2:]
        # Each input channel by itself, with kernels that are 1 at one place and 0 at all others: what they pick out.
        taps = torch.eye(math.prod(kernel), dtype=x.dtype, device=x.device).reshape(-1, 1, *kernel)
        taps = (taps.transpose(0, 1) if self.transposed else taps).repeat(self.inputs, *[1] * (x.ndim - 1))
        with torch.autocast(x.device.type, enabled=False):
            patches = replace(self, options={**self.options, "groups": self.inputs})(x, taps)
        return patches.flatten(2).unflatten(1, (self.groups, -1)).permute(1, 2, 0, 3).flatten(2)

    def in_strips(self, x: Tensor, most: int) -> Iterator[tuple[LinearMap, Tensor]]:
        """The input of a convolution, (N, C, …), cut across its first axis of places, and the map of such strips.

        All strips together have the columns of x, each as few as `most` numbers of them allow.

        >>> layer, x = nn.Conv1d(1, 1, 3, padding=1), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        >>> [strip.flatten().tolist() for _, strip in LinearMap.of(layer).in_strips(x, 6)]
        [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 0.0]]
        """
        if self.transposed:  # its outputs overlap
            yield self, x
            return
        padding, kernel, dilation = self.options["padding"], self.shape[2:], self.options["dilation"]
        if isinstance(padding, str):
            around = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
            sides = [(both // 2, both - both // 2) for both in around]
        else:
            sides = [(one, one) for one in padding]
        x = functional.pad(x, [n for side in reversed(sides) for n in side])
        stride, reach = self.options["stride"][0], dilation[0] * (kernel[0] - 1) + 1
        count = (x.shape[2] - reach) // stride + 1
        step = max(1, most // (x[:, :, 0].numel() * math.prod(kernel)))
        plain = replace(self, options={**self.options, "padding": 0})
        for start in range(0, count, step):
            yield plain, x[:, :, start * stride : (min(start + step, count) - 1) * stride + reach]


def rows_of(layer: Supported) -> Tensor:
    """The weights of a layer, one row for each output channel.

    >>> rows_of(nn.ConvTranspose2d(2, 3, 5)).shape
    torch.Size([3, 2, 5, 5])
    """
    return LinearMap.of(layer).rows(layer.weight)


def as_blocks(rows: Tensor, granularity: Granularity) -> Tensor:
    """Rows of weights as the granularity sees them: groups run along the rows of (O, I·kh·kw).

    >>> as_blocks(torch.zeros(3, 2, 5, 5), PerGroup(10)).shape
    torch.Size([3, 50])
    """
    return rows.flatten(1) if isinstance(granularity, PerGroup) else rows
