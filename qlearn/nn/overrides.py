"""How each layer of a network is to be quantized: one configuration for all, others by name, pattern or type.

    nn.prepare(model, weights=int8, overrides={
        nn.Conv1d: None,                                # a type: these layers stay in float
        "encoder.*": {"weights": int4},                 # a pattern counts more than a type
        "encoder.0.query, head": {"activations": None}  # and a name more than a pattern
    })

All keys that mean a layer are merged; what the last of them says counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from qlearn.config import QuantConfig
from qlearn.granularity import PerAxis, PerGroup, PerTensor, PerToken
from qlearn.nn.linear_maps import LinearMap, Supported, as_blocks, rows_of
from qlearn.nn.network import naming
from qlearn.ranges import METHODS

Overrides: TypeAlias = Mapping[Any, Mapping[str, QuantConfig | None] | None]
Configs: TypeAlias = tuple[QuantConfig, QuantConfig | None]


def configs_of(
    layers: Mapping[str, Any], weights: QuantConfig, activations: QuantConfig | None, overrides: Overrides | None
) -> dict[str, Configs]:
    """The configurations of the weights and the input of each layer that is not to stay in float.

    Raises:
        ValueError: a key that means no layer; configurations that a layer cannot have. Names the layers.
        TypeError: overrides that are no such dictionary; configurations that are none.
    """
    _check_keys(layers, {} if overrides is None else overrides)
    found: dict[str, Configs] = {}
    for name, layer in layers.items():
        keys = sorted((key for key in overrides or () if _means(key, name, layer)), key=lambda key: _rank(key, name))
        chosen = [(overrides or {})[key] for key in keys]
        if not chosen or chosen[-1] is not None:
            both: dict[str, Any] = {"weights": weights, "activations": activations}
            for override in chosen:
                both.update(override or {})
            found[name] = both["weights"], both["activations"]
    _refuse_groups_that_do_not_fit(layers, found)
    for name, configs in found.items():
        with naming(name):
            _check(layers[name], *configs)
    return found


def _check_keys(layers: Mapping[str, nn.Module], overrides: Overrides) -> None:
    if not isinstance(overrides, Mapping):
        raise TypeError(
            f"overrides={overrides!r} must be a dictionary: layer names → {{'weights': …}}, or None for float."
        )
    for key, override in overrides.items():
        if not isinstance(key, (str, type)):
            raise TypeError(f"overrides has the key {key!r}: layers are called by names, in quotes, or by their type.")
        if not any(_means(key, name, layer) for name, layer in layers.items()):
            shown = repr(key) if isinstance(key, str) else getattr(key, "__name__", repr(key))
            raise ValueError(f"overrides names {shown}, which is no layer to quantize; those are {', '.join(layers)}.")
        if override is None:
            continue
        if not isinstance(override, Mapping):
            raise TypeError(
                f"overrides[{key!r}]={override!r} must be {{'weights': …, 'activations': …}}, or None for float."
            )
        if unknown := sorted(set(override) - {"weights", "activations"}):
            raise ValueError(f"overrides[{key!r}] has {unknown[0]!r}: it may have 'weights' and 'activations'.")


def _means(key: str | type, name: str, layer: nn.Module) -> bool:
    """Whether a key of `overrides` means this layer: names, patterns such as "encoder.*", or its type."""
    if isinstance(key, type):
        return type(layer) is key
    return any(fnmatchcase(name, part.strip()) for part in str(key).split(","))


def _rank(key: str | type, name: str) -> tuple[bool, bool, int]:
    """A type counts least, then patterns, the longer the more, then names."""
    names = [] if isinstance(key, type) else [part.strip() for part in key.split(",")]
    return name in names, bool(names), len(names[0]) if names else 0


def _refuse_groups_that_do_not_fit(layers: Mapping[str, Any], configs: dict[str, Configs]) -> None:
    """All layers at once, so that nobody meets them one by one. Beside activations in codes no groups fit at all."""
    rows = {}
    for name, (weights, activations) in configs.items():
        if activations is None and isinstance(weights, QuantConfig) and isinstance(weights.granularity, PerGroup):
            row = rows_of(layers[name])[0].numel()
            if row % weights.granularity.group_size:
                rows[name] = row
    if len(rows) > 1:
        size = configs[next(iter(rows))][0].granularity
        raise ValueError(
            f"{', '.join(rows)!r} (rows of {', '.join(map(str, dict.fromkeys(rows.values())))}) cannot have {size}: "
            f"overrides={{{', '.join(rows)!r}: {{'weights': …}}}} gives them another granularity, None leaves them in "
            "float."
        )


def _check(layer: Supported, weights: QuantConfig, activations: QuantConfig | None) -> None:
    """Raise unless layers that store codes can have both configurations."""
    for role, config in (("weights", weights), ("activations", activations)):
        if config is None and role == "activations":
            continue
        if not isinstance(config, QuantConfig):
            raise TypeError(f"{role} must be a QuantConfig, not {config!r}.")
        if not 2 <= config.bits <= 8:
            raise ValueError(f"{role} of {config.bits} bits; these layers take 2 to 8.")
    if weights.method not in METHODS:
        raise ValueError(f"weights do not come in batches: the method {weights.method!r} is for activations.")
    granularity = weights.granularity
    if granularity == PerToken() or (isinstance(granularity, PerAxis) and granularity != PerAxis(0)):
        raise ValueError(f"weights take PerTensor(), PerAxis(0) or PerGroup(…), not {granularity}.")
    if isinstance(granularity, PerGroup) and activations is not None:
        raise ValueError(
            f"weights take PerTensor() or PerAxis(0), not {granularity}: all products of one sum of integers "
            "need the same scale. Groups work with activations=None."
        )
    granularity.scale_shape(tuple(as_blocks(rows_of(layer), granularity).shape))
    if activations is not None and activations.granularity != PerTensor():
        wanted = (PerAxis(0), PerToken()) if LinearMap.of(layer).is_matrix else (PerAxis(0),)
        if activations.method != "dynamic" or activations.granularity not in wanted:
            raise ValueError(
                "activations take PerTensor(), or with method='dynamic' PerAxis(0), a range for each example, or "
                f"PerToken() in a Linear, not {activations.granularity} with method={activations.method!r}."
            )
