"""GPTQ in a network: from the inputs of each layer to the rounding of its weights.

    batches  →  inputs of a layer  →  H = mean of x xᵀ  →  gptq_quantize  →  weights on their grid

Layer after layer: each one's inputs come through the layers before it as they are after rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from qlearn.affine import dequantize, quantize
from qlearn.arrays import check_finite
from qlearn.gptq import gptq_quantize
from qlearn.nn.batches import Batches, Forward, evaluating, listed
from qlearn.nn.collect import collected
from qlearn.nn.in_turn import in_turn, look
from qlearn.nn.linear_maps import NAMES, LinearMap
from qlearn.nn.network import check_model, copy_of, linear_maps, naming, set_parameter, sharing, some_of
from qlearn.nn.prepared import ObservedLayer

SLICE = 1 << 22  # numbers of inputs that are multiplied at once: 32 MB


def gptq(
    model: nn.Module,
    batches: Batches,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    forward: Forward | None = None,
    progress: bool = True,
) -> nn.Module:
    """Copy a prepared network and round its weights such that the outputs of its layers change least.

        prepare → gptq → calibrate → convert

    Layers are taken in the order in which the network calls them; the inputs of each come through the rounded layers
    before it. Scales and zero points are those that `convert` would choose, and are kept: the weights then lie on
    their grid, so `convert` turns them into exactly the codes that were found here, and refuses weights that were
    changed since. (But for a channel whose bias would need more than 31 bits in steps of its accumulator: `convert`
    widens its scale.)

    Args:
        model: from `prepare`, calibrated or not. It is not changed.
        batches, forward: as for `calibrate`, and for the same purpose: data that the network was not trained on and
            will not be tested on. A layer of I inputs needs more than I of them; a warning names those that get less.
        damping, act_order: as for `qlearn.gptq.gptq_quantize`.
        progress: show a bar.

    Returns:
        The rounded copy, still prepared: what its observers have seen is kept, and was seen before rounding, so
        `calibrate` best comes afterwards.

    Raises:
        ValueError: a model that is not from `prepare`, no batches, NaN or infinity in an input (names the layer),
            weights that another module uses too (names both), weights of a type that cannot hold their grid (bfloat16
            cannot hold 256 steps).
        RuntimeError: a layer that the data does not reach.

    Cost: two passes through the network, and what stands between its modules once more for each layer;
        O(n I² + I³ + O I²) for each layer; in memory what each block of a transformer gives out for all batches (what
        there is beyond 1 GB is computed anew for each layer).
    Source: Frantar et al. 2022, https://arxiv.org/abs/2210.17323.

    >>> from qlearn import QuantConfig, nn as qnn
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[0.4, 1.0]])
    >>> prepared = qnn.prepare(layer, QuantConfig(bits=2, symmetric=True))  # the grid is −1, 0, 1
    >>> both_alike = torch.tensor([[1.0, 1.0], [2.0, 2.1]])
    >>> gptq(prepared, both_alike, progress=False).weight.data
    tensor([[0., 1.]])
    """
    check_model(model)
    rounded = copy_of(model)
    layers: Any = {name: module for name, module in rounded.named_modules() if isinstance(module, ObservedLayer)}
    if not layers or any(type(layer) is not ObservedLayer for layer in layers.values()):
        raise ValueError("nn.gptq rounds a network from nn.prepare: call nn.prepare(model, …) first.")
    _refuse_tied(rounded, layers)
    batches = list(listed(batches))

    bar = tqdm(total=len(layers), desc="Rounding", unit="layer", leave=False, disable=not progress)
    with torch.no_grad(), evaluating(rounded), bar:
        turns = look(rounded, layers, batches, forward=forward, desc="Looking", progress=progress)
        few: list[str] = []
        for name, inputs in in_turn(rounded, layers, turns, batches, SecondMoment, forward=forward):
            if 0 < inputs.count < (features := inputs.mean.shape[-1]):
                few.append(f"layer {name!r}: {inputs.count} inputs for {features} features")
            with naming(name):
                _round(layers[name], inputs.mean, damping=damping, act_order=act_order)
            bar.update()
    if few:
        warnings.warn(
            f"{some_of(few)}: the rounding fits these inputs and may be worse than the nearest on others. Show more "
            "data, or raise damping.",
            stacklevel=2,
        )
    return rounded


def hessians(model: nn.Module, batches: Batches, *, forward: Forward | None = None) -> dict[str, Tensor]:
    """For each layer that can be quantized, the mean of x xᵀ over its inputs x.

    It says how large the inputs are, and which of them rise and fall together.

        H = (1/n) Σ x xᵀ

    An input of a convolution is a patch: the numbers under the kernel, in the order of a row of (O, I·kh·kw).

    Args:
        model: a float network, or a prepared one (then each layer is called "name.layer").
        batches, forward: as for `calibrate`.

    Returns:
        Layer name → H, float64 (I, I); for a convolution with groups (groups, I, I). Layers that the data does not
        reach are left out.

    Raises:
        ValueError: no batches, a model without such layers.

    Cost: one pass through the network, and O(n I²) for each layer, whose patches are made a few at a time.

    >>> hessians(nn.Sequential(nn.Linear(2, 5)), torch.tensor([[1.0, 1.0], [3.0, -1.0]]))["0"]
    tensor([[ 5., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    layers = linear_maps(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no {NAMES} layer.")
    found = collected(model, layers, SecondMoment, batches, forward=forward)
    return {name: inputs.mean for name, inputs in found.items() if inputs.count}


class SecondMoment:
    """The mean of x xᵀ over the inputs of a layer: `mean`, and their number: `count`.

    Products and sums are float64. The patches of a convolution, many times its input, are made for few images at once,
    or for strips of one.

    >>> inputs = SecondMoment(nn.Linear(2, 1))
    >>> inputs.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> inputs.mean.tolist(), inputs.count
    ([[5.0, 1.0], [1.0, 2.0]], 2)
    """

    def __init__(self, layer: Any) -> None:
        self.map = LinearMap.of(layer.layer if isinstance(layer, ObservedLayer) else layer)
        self.sum: Tensor | float = 0.0
        self.count = 0

    @property
    def mean(self) -> Tensor:
        """(I, I), or (groups, I, I) where there are several groups."""
        if not isinstance(self.sum, Tensor):
            raise ValueError("all inputs that have reached it are empty.")
        mean = self.sum / self.count
        return mean[0] if len(mean) == 1 else mean

    def add(self, values: Tensor) -> None:
        """Take in one batch."""
        check_finite(values, "the input")
        for made, part in self._parts(values):
            columns = made.columns(part)
            size = max(1, SLICE // columns[..., 0].numel())
            for some in columns.split(size, -1):
                some = some.double()
                self.sum = self.sum + some @ some.mT
            self.count += columns.shape[-1]

    def _parts(self, x: Tensor) -> Iterator[tuple[LinearMap, Tensor]]:
        """The batch, cut into pieces whose patches are not too many: images, or strips of one."""
        if self.map.is_matrix:
            yield self.map, x
            return
        x = x if x.ndim == len(self.map.shape) else x[None]
        patches = x[0].numel() * math.prod(self.map.shape[2:])
        for images in x.split(max(1, SLICE // patches)):
            yield from ((self.map, images),) if patches <= SLICE else self.map.in_strips(images, SLICE)


def _refuse_tied(model: nn.Module, layers: Mapping[str, ObservedLayer]) -> None:
    """Raise where the weights of a layer are another module's too: both would be rounded, for one of them alone."""
    shared = sharing(model)
    for name, layer in layers.items():
        for other in shared.get(layer.layer, ()):
            if any(p is layer.weight for p in model.get_submodule(other).parameters(recurse=False)):
                other = other.removesuffix(".layer")
                raise ValueError(
                    f"layer {name!r} shares its weights with {other!r}, which would be rounded with them. Before "
                    f"nn.prepare give it its own, layer = model.get_submodule({name!r}); layer.weight = "
                    "torch.nn.Parameter(layer.weight.detach().clone()), or leave it in float: "
                    f"overrides={{{name!r}: None}}."
                )


def _round(layer: ObservedLayer, hessian: Tensor, **options: Any) -> None:
    """Put the layer's weights on their grid, and keep the grid."""
    if layer.changed:
        layer.weight_qparams = None  # found for weights that are gone
    qparams = layer.find_weight_qparams()
    codes = gptq_quantize(layer.rows, hessian, qparams, **options)
    set_parameter(layer.layer, "weight", layer.weight_of(dequantize(codes, qparams)).contiguous())
    if not torch.equal(quantize(layer.rows, qparams), codes):
        raise ValueError(
            f"{str(layer.weight.dtype).removeprefix('torch.')} is too coarse for a grid of {layer.weights.bits} bits: "
            "model.float() is not."
        )
    layer.weight_qparams, layer.weight_codes = qparams, codes
