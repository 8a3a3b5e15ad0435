"""GPTQ in a network: from the inputs of each layer to the rounding of its weights.

    batches  →  inputs of a layer  →  H = mean of x xᵀ  →  rounding.gptq  →  weights on their grid

Layer after layer: each one's inputs come through the layers before it as they are after rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn import rounding
from qlearn.affine import QParams, dequantize, quantize
from qlearn.arrays import as_array
from qlearn.nn.batches import evaluating, listed
from qlearn.nn.linear_maps import LinearMap, Supported, as_blocks
from qlearn.nn.network import linear_maps
from qlearn.nn.prepared import PreparedLayer, prepared_layers
from qlearn.nn.ptq import ObservedLayer


def gptq(
    model: nn.Module,
    batches: Iterable[Any] | Tensor,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    progress: bool = True,
) -> nn.Module:
    """Copy a prepared network and round its weights such that the outputs of its layers change least.

        prepare → gptq → calibrate → convert

    Layers are taken in the order in which the network calls them; the inputs of each come through the rounded layers
    before it. Scales and zero points are those that `convert` would choose, and are kept: the weights then lie on
    their grid, so `convert` turns them into exactly the codes that were found here. (But for a channel whose bias
    would need more than 31 bits in steps of its accumulator: `convert` widens its scale.)

    Args:
        model: from `prepare`, calibrated or not. It is not changed.
        batches: as for `calibrate`, and for the same purpose: data that the network was not trained on and will not be
            tested on. They are gone through once for each layer.
        damping, act_order: as for `rounding.gptq`.
        progress: show a bar.

    Returns:
        The rounded copy, still prepared: what its observers have seen is kept, and was seen before rounding, so
        `calibrate` best comes afterwards.

    Raises:
        ValueError: a model that is not from `prepare`, no batches, NaN or infinity in an input (names the layer),
            weights of a type that cannot hold their grid (bfloat16 cannot hold 256 steps).
        RuntimeError: a layer that the data does not reach.

    Cost: one pass through the network for each layer, and O(I³ + O I²) for each.
    Source: Frantar et al. 2022, https://arxiv.org/abs/2210.17323.

    >>> from qlearn import QuantConfig, nn as qnn
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.4, 1.0]])
    >>> prepared = qnn.prepare(layer, QuantConfig(bits=2, symmetric=True))  # the grid is −1, 0, 1
    >>> both_alike = torch.tensor([[1.0, 1.0], [2.0, 2.1]])
    >>> gptq(prepared, both_alike, progress=False).weight.data
    tensor([[0., 1.]])
    """
    rounded = copy.deepcopy(model)
    layers = prepared_layers(rounded)
    if not layers or any(type(layer) is not ObservedLayer for layer in layers):
        raise ValueError("nn.gptq rounds a network from nn.prepare: call nn.prepare(model, …) first.")
    inputs = list(listed(batches))
    with torch.no_grad(), evaluating(rounded):
        order = _in_order_of_calls(rounded, layers, inputs)
        for layer in tqdm(order, desc="Rounding", unit="layer", leave=False, disable=not progress):
            with _listening([layer.layer]) as products:
                for x in inputs:
                    rounded(x)
            try:
                _round(layer, products[layer.layer].mean, damping=damping, act_order=act_order)
            except ValueError as error:
                raise ValueError(f"layer {layer.name!r}: {error}") from error
    return rounded


def hessians(model: nn.Module, batches: Iterable[Any] | Tensor) -> dict[str, Tensor]:
    """For each `Linear` and `Conv2d` of a network, the mean of x xᵀ over its inputs x: which inputs are alike.

        H = (1/n) Σ x xᵀ

    An input of a convolution is a patch: the numbers under the kernel, in the order of a row of (O, I·kh·kw).

    Args:
        model: a float network, or a prepared one (then each layer is called "name.layer").
        batches: as for `calibrate`.

    Returns:
        Layer name → H, float64 (I, I); for a convolution with groups (groups, I, I). Layers that the data does not
        reach are left out.

    Raises:
        ValueError: no batches, a model without such layers.

    Cost: one pass through the network, and O(n I²) for each layer.

    >>> hessians(nn.Sequential(nn.Linear(2, 5)), torch.tensor([[1.0, 1.0], [3.0, -1.0]]))["0"]
    tensor([[ 5., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    names: Any = {layer: name for name, layer in linear_maps(model).items()}
    if not names:
        raise ValueError(f"{type(model).__name__} has no Linear or Conv2d layer.")
    with torch.no_grad(), evaluating(model), _listening(list(names)) as products:
        for x in listed(batches):
            model(x)
    return {names[layer]: found.mean for layer, found in products.items()}


class _Products:
    """The sum of x xᵀ over the inputs of one layer, and how many there were."""

    def __init__(self, layer: Supported) -> None:
        self.layer = layer
        self.sum: Tensor | None = None
        self.count = 0

    @property
    def mean(self) -> Tensor:
        """(I, I), or (groups, I, I) where there are several groups."""
        assert self.sum is not None
        mean = self.sum / self.count
        return mean[0] if len(mean) == 1 else mean

    def add(self, x: Tensor) -> None:
        """Take one batch of inputs."""
        columns = LinearMap.of(self.layer).columns(x).double()
        products = columns @ columns.mT
        self.sum = products if self.sum is None else self.sum + products
        self.count += columns.shape[-1]


@contextmanager
def _listening(layers: Sequence[Supported]) -> Iterator[dict[nn.Module, _Products]]:
    """The products of the inputs that reach these layers in here; those that nothing reaches are left out."""
    products: dict[nn.Module, _Products] = {}

    def hear(layer: Supported, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        products.setdefault(layer, _Products(layer)).add(arguments[0] if arguments else keywords["input"])

    handles = [layer.register_forward_pre_hook(hear, with_kwargs=True) for layer in layers]
    try:
        yield products
    finally:
        for handle in handles:
            handle.remove()


def _in_order_of_calls(
    model: nn.Module, layers: Sequence[PreparedLayer], inputs: Sequence[Tensor]
) -> list[PreparedLayer]:
    """The layers in the order in which the network calls them for the first time."""
    called: dict[PreparedLayer, None] = {}
    handles = [layer.register_forward_pre_hook(lambda layer, _: called.setdefault(layer)) for layer in layers]
    try:
        for x in inputs:
            if len(called) < len(layers):
                model(x)
    finally:
        for handle in handles:
            handle.remove()
    if silent := [layer.name for layer in layers if layer not in called]:
        raise RuntimeError(
            f"no data has reached {', '.join(silent)}. A layer that the network never calls can be left in float: "
            f"nn.prepare(…, overrides={{{silent[0]!r}: None}})."
        )
    return list(called)


def _round(layer: PreparedLayer, hessian: Tensor, **options: Any) -> None:
    """Put the layer's weights on their grid, and keep the grid."""
    qparams = layer.find_weight_qparams()
    weight = layer.layer.weight
    of_each_group = hessian if hessian.ndim == 3 else hessian[None]
    size = len(weight) // len(of_each_group)
    codes = []
    for group, h in enumerate(of_each_group):
        rows = slice(group * size, (group + 1) * size)
        codes.append(
            rounding.gptq(as_blocks(weight[rows], layer.weights.granularity), h, _of_rows(qparams, rows), **options)
        )
    found = torch.cat(codes)
    weight.copy_(dequantize(found, qparams).reshape(weight.shape))
    if not torch.equal(quantize(as_blocks(weight, layer.weights.granularity), qparams), found):
        raise ValueError(
            f"{str(weight.dtype).removeprefix('torch.')} is too coarse for a grid of {layer.weights.bits} bits: "
            "model.float() is not."
        )
    layer.weight_qparams = qparams


def _of_rows(qparams: QParams, rows: slice) -> QParams:
    """The quantizer of some rows, which have either scales of their own or the same as all others."""
    scale, zero_point = (p[rows] if as_array(p).ndim and len(p) > 1 else p for p in (qparams.scale, qparams.zero_point))
    return QParams(scale, zero_point, qparams.quant_min, qparams.quant_max)
