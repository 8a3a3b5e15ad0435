"""What post-training quantization and quantization-aware training share: finding layers, and putting others in place.

    prepare    every Linear and Conv2d  →  a PreparedLayer around it
    convert    every PreparedLayer      →  what it has become: a layer that stores integer codes

Everything else in a network stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from qlearn.affine import QParams
from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis, PerGroup, PerTensor
from qlearn.ranges import METHODS

Supported: TypeAlias = nn.Linear | nn.Conv2d
Overrides: TypeAlias = Mapping[str, Mapping[str, QuantConfig | None] | None]
LayerMaker: TypeAlias = Callable[[str, Supported, QuantConfig, QuantConfig | None], "PreparedLayer"]

# PyTorch's own quick path through these reads `.weight` of their children and never calls them.
READ_THEIR_CHILDREN = (nn.TransformerEncoderLayer, nn.MultiheadAttention)


class PreparedLayer(nn.Module):
    """A float layer with what will be needed to make an integer layer of it.

    Attributes:
        name: where the layer is in the model.
        layer: the float layer itself.
        weights, activations: how its weights and its input are to be quantized; activations None: not at all.
        relu: whether this layer also does the ReLU that follows it.
        weight_qparams: a quantizer for the weights that was found already, else None.
    """

    def __init__(self, name: str, layer: Supported, weights: QuantConfig, activations: QuantConfig | None) -> None:
        super().__init__()
        self.name = name
        self.layer = layer
        self.weights = weights
        self.activations = activations
        self.relu = False
        self.weight_qparams: QParams | None = None

    def __getattr__(self, name: str) -> Any:
        """The float layer's own numbers, such as `in_features`, for a parent that looks at them."""
        layer = self.__dict__.get("_modules", {}).get("layer")
        return getattr(layer, name) if name in getattr(layer, "__constants__", ()) else super().__getattr__(name)

    @property
    def weight(self) -> Tensor:
        """The float layer's, for a parent that looks at it."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The float layer's."""
        return self.layer.bias

    @property
    def ready(self) -> bool:
        """Whether it has seen the data that it needs to be converted."""
        return True

    def find_weight_qparams(self) -> QParams:
        """`weight_qparams` if there is one, else what the configuration finds in the weights as they are now."""
        if self.weight_qparams is not None:
            return self.weight_qparams
        return self.weights.find_qparams(as_blocks(self.layer.weight, self.weights))

    def converted(self) -> nn.Module:
        """The integer layer that takes this one's place."""
        raise NotImplementedError


def prepare_layers(
    model: nn.Module,
    make: LayerMaker,
    weights: QuantConfig,
    activations: QuantConfig | None,
    overrides: Overrides | None,
) -> nn.Module:
    """A copy of the model in which `make` has replaced every layer that can be quantized, ReLU fused.

    Raises:
        ValueError: a model that is prepared already or has no such layer; configurations that its layers cannot
            have, and names in `overrides` that are no such layer.
    """
    if prepared_layers(model):
        raise ValueError("this model is prepared already: call nn.prepare once, on the trained network.")
    if meta := next((name for name, p in model.named_parameters() if p.is_meta), None):
        raise ValueError(f"{meta} is on the meta device, where it has a shape and no numbers: load the weights first.")
    prepared = copy.deepcopy(model)
    names = quantizable(prepared)
    if not names:
        raise ValueError(f"{type(model).__name__} has no Linear or Conv2d layer that could be quantized.")
    for name in overrides or {}:
        if name not in names:
            raise ValueError(f"overrides names {name!r}, which is no layer to quantize; those are {', '.join(names)}.")

    made: dict[nn.Module, nn.Module] = {}
    for name in names:
        override = (overrides or {}).get(name, {})
        if override is None:
            continue
        if not isinstance(override, Mapping):
            raise TypeError(
                f"overrides[{name!r}]={override!r} must be {{'weights': …, 'activations': …}}, or None for float."
            )
        if unknown := sorted(set(override) - {"weights", "activations"}):
            raise ValueError(f"overrides[{name!r}] has {unknown[0]!r}: it may have 'weights' and 'activations'.")
        configs: dict[str, Any] = {"weights": weights, "activations": activations, **override}
        layer = prepared.get_submodule(name)
        assert isinstance(layer, Supported)
        try:
            made[layer] = make(name, layer, *_checked(layer, **configs))
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name!r}: {error}") from error
    prepared = replace(prepared, made)
    fuse_relu(prepared)
    return prepared


def prepared_layers(model: nn.Module) -> list[PreparedLayer]:
    """The prepared layers of a model, each once."""
    return [module for module in model.modules() if isinstance(module, PreparedLayer)]


def quantizable(model: nn.Module) -> list[str]:
    """The names of all layers that can be quantized."""
    read = {
        child for module in model.modules() if isinstance(module, READ_THEIR_CHILDREN) for child in module.children()
    }
    return [name for name, module in model.named_modules() if module not in read and _is_supported(module)]


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, wherever in the tree they are used, shared ones included."""
    if model in new:
        return new[model]
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new[module])
    return model


def fuse_relu(model: nn.Module) -> None:
    """Let each prepared layer do the ReLU that follows it in a Sequential, where it is used only once.

    An `nn.Identity` between the two does not matter: folding leaves one in the place of a batch norm.
    """
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for sequence in list(model.modules()):
        if not isinstance(sequence, nn.Sequential):
            continue
        for i, layer in enumerate(sequence):
            if not isinstance(layer, PreparedLayer) or uses[layer] != 1:
                continue
            behind = next((k for k in range(i + 1, len(sequence)) if type(sequence[k]) is not nn.Identity), i)
            if type(sequence[behind]) is nn.ReLU:
                layer.relu = True
                sequence[behind] = nn.Identity()


def as_blocks(weight: Tensor, config: QuantConfig) -> Tensor:
    """Weights as the granularity sees them: groups run along the rows of (O, I·kh·kw)."""
    return weight.flatten(1) if isinstance(config.granularity, PerGroup) else weight


def _is_supported(module: nn.Module) -> bool:
    # The exact types: a subclass may compute something else, or be read by its parent without being called.
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.padding_mode == "zeros")


def _checked(
    layer: Supported, weights: QuantConfig, activations: QuantConfig | None
) -> tuple[QuantConfig, QuantConfig | None]:
    """Both configurations, if layers that store codes can have them."""
    for role, config in (("weights", weights), ("activations", activations)):
        if config is None and role == "activations":
            continue
        if not isinstance(config, QuantConfig):
            raise TypeError(f"{role} must be a QuantConfig, not {config!r}.")
        if not 2 <= config.bits <= 8:
            raise ValueError(f"{role} of {config.bits} bits; these layers take 2 to 8.")
    if weights.method not in METHODS:
        raise ValueError(f"weights do not come in batches: the method {weights.method!r} is for activations.")
    if isinstance(weights.granularity, PerAxis) and weights.granularity != PerAxis(0):
        raise ValueError(f"weights take PerTensor(), PerAxis(0) or PerGroup(…), not {weights.granularity}.")
    if isinstance(weights.granularity, PerGroup) and activations is not None:
        raise ValueError(
            f"weights take PerTensor() or PerAxis(0), not {weights.granularity}: all products of one sum of integers "
            "need the same scale. Groups work with activations=None."
        )
    weights.granularity.scale_shape(tuple(as_blocks(layer.weight, weights).shape))
    if activations is not None and activations.granularity != PerTensor():
        per_row = activations.method == "dynamic" and activations.granularity == PerAxis(0)
        if not per_row:
            raise ValueError(
                f"activations take PerTensor(), or PerAxis(0) with method='dynamic', not {activations.granularity} "
                f"with method={activations.method!r}."
            )
    return weights, activations
