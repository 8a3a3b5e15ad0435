"""What a network consists of after quantization: layer by layer, bits and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from qlearn.nn.layers import QuantizedLayer
from qlearn.nn.ptq import ObservedLayer


@dataclass(frozen=True)
class LayerSummary:
    """One layer that has parameters.

    Attributes:
        name, kind: where it is in the model, and its class.
        weights, inputs: how they are stored and computed, such as "4 bits per channel" or "float".
        parameters: how many numbers it has, scales not counted.
        bytes: what it takes in a file, scales and zero points included.
    """

    name: str
    kind: str
    weights: str
    inputs: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """All layers of a model. `print` shows a table; `float_layers` names those that were left in float."""

    layers: tuple[LayerSummary, ...]

    @property
    def bytes(self) -> int:
        """The tensors' size in a file."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def float_layers(self) -> list[str]:
        """The names of layers that have parameters and compute in float."""
        return [layer.name for layer in self.layers if layer.weights == "float"]

    def __str__(self) -> str:
        head = ("layer", "kind", "weights", "inputs", "parameters", "bytes")
        body = [(x.name, x.kind, x.weights, x.inputs, f"{x.parameters:,}", f"{x.bytes:,}") for x in self.layers]
        foot = ("total", "", "", "", f"{sum(x.parameters for x in self.layers):,}", f"{self.bytes:,}")
        table = [head, *body, foot]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i >= 4 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        if self.float_layers:
            lines.append(f"left in float: {', '.join(self.float_layers)}")
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """List the layers of a model that have parameters, with their bits and bytes.

    >>> print(summary(nn.Sequential(nn.Linear(784, 100), nn.ReLU())))
    layer  kind    weights  inputs  parameters    bytes
    0      Linear  float    float       78,500  314,000
    total                               78,500  314,000
    left in float: 0
    """
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, ObservedLayer) or any(True for _ in module.children()):
            continue  # what it holds is listed by itself
        state = module.state_dict()
        if not state:
            continue
        name = name.removesuffix(".layer") or "(model)"
        quantized = isinstance(module, QuantizedLayer)
        rows.append(
            LayerSummary(
                name=name,
                kind=type(module).__name__,
                weights=f"{module.bits} bits {'per channel' if module.weight_scale.ndim else 'per tensor'}"
                if quantized
                else "float",
                inputs=f"{module.input_bits} bits" if quantized else "float",
                parameters=module.weight.numel() + len(module.bias)
                if quantized
                else sum(parameter.numel() for parameter in module.parameters()),
                bytes=sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
            )
        )
    return Summary(tuple(rows))
