"""What a network consists of after quantization: layer by layer, bits, scales and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.network import InFloat, check_model, in_float_text, left_in_float
from qlearn.nn.prepared import ObservedLayer

COLUMNS = ("layer", "kind", "weights", "inputs", "parameters", "scales", "from", "to", "bytes")
FIRST_NUMBER = COLUMNS.index("parameters")
WIDTH = 100  # columns of text: a wider table would be cut into pieces on many screens


@dataclass(frozen=True)
class LayerSummary:
    """One layer that has parameters.

    Attributes:
        name, kind: where it is in the model, and its class; of a prepared layer, the class that was prepared.
        weights, inputs: how they are stored and computed, such as "4 bits per channel" or "float".
        parameters: how many numbers it has, scales not counted.
        scales: how many scales its weights have; 0 in float.
        scale_range: the smallest and the largest of them; None in float.
        bytes: what it takes in a file, scales and zero points included.
    """

    name: str
    kind: str
    weights: str
    inputs: str
    parameters: int
    scales: int
    scale_range: tuple[float, float] | None
    bytes: int


@dataclass(frozen=True)
class Summary:
    """All layers of a model. `print` shows a table; `float_layers` names those that were left in float.

    Attributes:
        layers: one row each.
        in_float: what has no codes, and why.
    """

    layers: tuple[LayerSummary, ...]
    in_float: tuple[InFloat, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers the model has, scales not counted."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def bytes(self) -> int:
        """The tensors' size in a file."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def float_layers(self) -> list[str]:
        """The names of layers that have parameters and compute in float."""
        return [layer.name for layer in self.layers if layer.weights == "float"]

    def __str__(self) -> str:
        table = [COLUMNS, *map(_cells, self.layers)]
        table.append(("total", "", "", "", f"{self.parameters:,}", "", "", "", f"{self.bytes:,}"))
        if all(layer.scale_range is None for layer in self.layers):  # nothing but float: no columns for scales
            table = [(*row[: FIRST_NUMBER + 1], row[-1]) for row in table]
        if _width(table) > WIDTH and len(table[0]) == len(COLUMNS):  # a long name is worth more than the scales' ends
            table = [(*row[: FIRST_NUMBER + 2], row[-1]) for row in table]
        names = max(16, WIDTH - _width([row[1:] for row in table]) - 2)
        table = [(_shortened(row[0], names), *row[1:]) for row in table]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i >= FIRST_NUMBER else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        lines.append(in_float_text(list(self.in_float), self.parameters, WIDTH))
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """List the layers of a model that have parameters, with their bits, scales and bytes.

    A module that holds parameters of its own beside other modules is listed too, with its own. What is used in
    several places, or shared between layers, is counted once, under its first name, and `save` writes it once.

    >>> print(summary(nn.Sequential(nn.Linear(784, 100), nn.ReLU())))
    layer  kind    weights  inputs  parameters    bytes
    0      Linear  float    float       78,500  314,000
    total                               78,500  314,000
    left in float: 100 % of the numbers: 0 (Linear)
    """
    check_model(model, numbers=False)
    quantized = {module for module in model.modules() if isinstance(module, (ObservedLayer, QuantizedLayer))}
    inside = {part for module in quantized for part in module.children()}  # its row is that of the layer around it
    seen: set[Tensor] = set()
    rows = []
    for name, module in model.named_modules():
        if module not in inside and (row := _summarize(name or "(model)", module, seen)) is not None:
            rows.append(row)
        seen.update(module.parameters(recurse=False))
    return Summary(tuple(rows), tuple(left_in_float(model, quantized)))


def _summarize(name: str, module: nn.Module, seen: set[Tensor]) -> LayerSummary | None:
    """The row of a module, if it has anything of its own that is stored and was not counted before."""
    if isinstance(module, ObservedLayer):
        return _prepared(name, module)
    shared = [key for key, parameter in module.named_parameters(recurse=False) if parameter in seen]
    stored = list(_stored(module, shared))
    if not stored:
        return None
    if not isinstance(module, QuantizedLayer):
        numbers = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter not in seen)
        return LayerSummary(name, type(module).__name__, "float", "float", numbers, 0, None, _bytes(stored))
    scale = module.weight_scale
    return LayerSummary(
        name=name,
        kind=module._get_name(),
        weights=module.weights_text,
        inputs=module.inputs_text,
        parameters=module.weight_codes.numel() + (0 if module.bias is None else module.bias.numel()),
        scales=scale.numel(),
        scale_range=(float(scale.min()), float(scale.max())),
        bytes=_bytes(stored),
    )


def _prepared(name: str, module: ObservedLayer) -> LayerSummary:
    """A layer that is still in float, with what it is to become."""
    layer, config = module.layer, module.weights
    per = {"PerTensor": "tensor", "PerAxis": "channel", "PerGroup": "group"}[type(config.granularity).__name__]
    return LayerSummary(
        name=name,
        kind=f"{type(layer).__name__}, prepared",
        weights=f"to be {config.bits} bits per {per}",
        inputs="to stay float" if module.activations is None else f"to be {module.activations.bits} bits",
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
        scales=0,
        scale_range=None,
        bytes=_bytes(module.state_dict().values()),
    )


def _stored(module: nn.Module, without: list[str]) -> Iterator[Tensor]:
    """What a module itself has in the model's state, without its children: codes packed."""
    for key, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and key not in without and key.partition(".")[0] not in module._modules:
            yield tensor


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _width(table: list[tuple[str, ...]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(*table, strict=True)) - 2


def _shortened(name: str, width: int) -> str:
    """A name without its middle, if it is too long."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-(width - width // 2) :]}"


def _cells(row: LayerSummary) -> tuple[str, ...]:
    scales: tuple[str, ...] = ("", "", "")
    if row.scale_range is not None:
        scales = (f"{row.scales:,}", *(f"{end:.3g}" for end in row.scale_range))
    return (row.name, row.kind, row.weights, row.inputs, f"{row.parameters:,}", *scales, f"{row.bytes:,}")
