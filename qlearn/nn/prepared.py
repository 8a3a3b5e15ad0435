"""What post-training quantization and quantization-aware training share: finding layers, and putting others in place.

    prepare    every Linear, Conv1d, Conv2d, ConvTranspose2d  →  an ObservedLayer around it
    convert    every ObservedLayer                            →  what it has become: a layer that stores integer codes

Everything else in a network stays as it is, and is named where it is much.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qlearn.affine import QParams, dequantize
from qlearn.config import QuantConfig
from qlearn.nn.integer_layers import quantized
from qlearn.nn.layers import QuantizedLayer, quantized_layers, refuse_output_size
from qlearn.nn.linear_maps import NAMES, LinearMap, Supported, as_blocks, rows_of
from qlearn.nn.network import (
    Around,
    check_model,
    copy_of,
    in_float_text,
    in_lines,
    left_in_float,
    linear_maps,
    move_hooks,
    naming,
    plain_lists,
    refuse_computed_weights,
    refuse_names,
    replace,
    say_who_asks,
)
from qlearn.nn.overrides import Overrides, configs_of
from qlearn.observers import Observer, make_observer

LayerMaker: TypeAlias = Callable[[str, Supported, QuantConfig, QuantConfig | None], "ObservedLayer"]

SEEN = "observer."  # begins the names of what an observer has seen, in a layer's state
ROUNDED = ("weight_codes", "weight_scale", "weight_zero_point")  # of what `nn.gptq` has found, behind it
MUCH = 0.05  # of the parameters: where more stays in float than this, `prepare` says so


class ObservedLayer(Around):
    """A float layer with what will be needed to make an integer layer of it.

    There is no observer where the input stays in float, or where its range is found for every batch. It looks at the
    input only inside `calibrate`: an accuracy test must not teach it.

    Attributes:
        name: where the layer is in the model.
        layer: the float layer itself. Hooks that were registered on it are on this one now.
        weights, activations: how its weights and its input are to be quantized; activations None: not at all.
        observer: remembers what it needs to know about the input.
        calibrating: whether `calibrate` runs.
        weight_qparams, weight_codes: what `nn.gptq` has found for the weights as they are now, else None.
    """

    def __init__(self, name: str, layer: Supported, weights: QuantConfig, activations: QuantConfig | None) -> None:
        super().__init__()
        self.name, self.layer, self.weights, self.activations = name, layer, weights, activations
        self.observer: Observer | None = None
        if activations is not None and activations.method != "dynamic":
            self.observer = make_observer(activations)
        self.weight_qparams: QParams | None = None
        self.weight_codes: Tensor | None = None
        self.calibrating = self.called = False
        refuse_names(layer, self)
        move_hooks(layer, self)

    @property
    def weight(self) -> Tensor:
        """The float layer's, for a parent that looks at it."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The float layer's."""
        return self.layer.bias

    @property
    def rows(self) -> Tensor:
        """The float layer's weights as the granularity sees them: a row for each output channel."""
        return as_blocks(rows_of(self.layer), self.weights.granularity)

    def weight_of(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`: weights as the float layer has them."""
        return LinearMap.of(self.layer).weight(rows.reshape(rows_of(self.layer).shape))

    @property
    def ready(self) -> bool:
        """Whether it has seen the data that it needs to be converted."""
        return self.observer is None or self.observer.seen

    @property
    def changed(self) -> bool:
        """Whether `nn.gptq` has rounded the weights, and they are not what it made of them any more."""
        if self.weight_qparams is None or self.weight_codes is None:
            return False
        rows = self.rows
        return not torch.equal(rows, dequantize(self.weight_codes, self.weight_qparams).to(rows))

    def find_weight_qparams(self) -> QParams:
        """`weight_qparams` if there is one, else what the configuration finds in the weights as they are now.

        Raises:
            ValueError: the weights are not those any more that it was found for.
        """
        if self.changed:
            raise ValueError(
                f"the weights of {self.name or 'this layer'} have changed since nn.gptq rounded them, and the codes "
                "that it found are not theirs: run nn.gptq again, or prepare the network anew."
            )
        return self.weights.find_qparams(self.rows) if self.weight_qparams is None else self.weight_qparams

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """What the float layer does."""
        refuse_output_size(self.name, output_size)
        self.called = True
        return self.layer(input)

    def find_input_qparams(self) -> QParams | QuantConfig | None:
        """The quantizer of the input that has been found; by which configuration one is found for each batch; None."""
        return self.activations if self.observer is None else self.observer.qparams()

    def converted(self) -> QuantizedLayer:
        """The layer on codes that takes this one's place."""
        return quantized(self.layer, self.find_weight_qparams(), self.find_input_qparams(), self.name)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, array in {} if self.observer is None else self.observer.state().items():
            destination[f"{prefix}{SEEN}{key}"] = torch.tensor(array)
        if self.weight_qparams is not None and self.weight_codes is not None:
            found = (self.weight_codes, self.weight_qparams.scale, self.weight_qparams.zero_point)
            for key, values in zip(ROUNDED, found, strict=True):
                destination[f"{prefix}{SEEN}{key}"] = torch.as_tensor(values).detach()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        own = f"{prefix}{SEEN}"
        found: dict[str, Any] = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(own)}
        if all(f"{own}{key}" in found for key in ROUNDED):
            codes, scale, zero_point = (found.pop(f"{own}{key}").to(self.layer.weight.device) for key in ROUNDED)
            self.weight_codes, self.weight_qparams = codes, QParams(scale, zero_point, *self.weights.limits)
        if found and self.observer is not None:
            ends = {f"{own}lo", f"{own}hi"}  # as tensors: the rest is NumPy's, whatever the network computes with
            state = {
                key.removeprefix(own): tensor.to(self.layer.weight.device) if key in ends else tensor.cpu().numpy()
                for key, tensor in found.items()
            }
            try:
                self.observer = self.observer.with_state(state)
            except KeyError as missing:
                kind = type(self.observer).__name__
                raise ValueError(
                    f"layer {self.name!r} has a {kind}, which needs {missing}: the file is of another observer."
                ) from missing
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return str(self.observer or ("input float" if self.activations is None else "input dynamic"))


def prepare_layers(
    model: nn.Module,
    make: LayerMaker,
    weights: QuantConfig,
    activations: QuantConfig | None,
    overrides: Overrides | None,
) -> nn.Module:
    """A copy of the model in which `make` has replaced every layer that can be quantized.

    Raises:
        ValueError: a model that is prepared already or has no such layer; configurations that its layers cannot
            have, weights that a hook computes, and names in `overrides` that are no such layer.
    """
    if prepared_layers(model):
        raise ValueError("this model is prepared already: call nn.prepare once, on the trained network.")
    check_model(model)
    # `torch.nn.utils.parametrize` makes another type of a layer, which would be left in float without a word.
    refuse_computed_weights(
        {name: m for name, m in model.named_modules() if isinstance(m, Supported) and parametrize.is_parametrized(m)}
    )
    prepared = copy_of(model)
    layers = linear_maps(prepared)
    if not layers:
        why = already(model) or f"{type(model).__name__} has no {NAMES} that could be quantized."
        raise ValueError(why)
    configs = configs_of(layers, weights, activations, overrides)
    refuse_computed_weights({name: layers[name] for name in configs})
    say_who_asks(prepared, [layers[name] for name in configs], stacklevel=4)
    made: dict[nn.Module, nn.Module] = {}
    for name, (of_weights, of_inputs) in configs.items():
        layer: Any = layers[name]
        with naming(name):
            made[layer] = make(name, layer, of_weights, of_inputs)
    prepared = replace(prepared, made)
    if not isinstance(prepared, ObservedLayer):
        prepared.register_forward_hook(notice_uncalled)
    return prepared


def already(model: nn.Module) -> str:
    """What to say of a network that is quantized, where it should not be; "" if it is not.

    >>> already(nn.Linear(2, 2))
    ''
    """
    return "this model is quantized already: its layers hold codes." if quantized_layers(model) else ""


def prepared_layers(model: nn.Module) -> list[ObservedLayer]:
    """The prepared layers of a model, each once."""
    check_model(model, numbers=False)
    return [module for module in model.modules() if isinstance(module, ObservedLayer)]


def notice_uncalled(model: nn.Module, *_: Any) -> None:
    """A hook on a whole network: after its first pass, say which layers nobody has called."""
    if vars(model).get("noticed") or torch.compiler.is_compiling():
        return
    model.noticed = True
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, (ObservedLayer, QuantizedLayer))
    }
    if uncalled := [name for name, module in layers.items() if not module.called]:
        warnings.warn(
            f"{', '.join(uncalled)}: not called in the first pass. Where the network reads the weights of a layer "
            f"itself, only they are quantized, not the layer's input; overrides={{{uncalled[0]!r}: None}} leaves it "
            "in float.",
            stacklevel=3,
        )


def say_what_stays(prepared: nn.Module) -> None:
    """A warning where much stays in float that nobody asked for, and where PyTorch does not see a module.

    It is for whoever has called the function that calls this one.
    """
    total = sum(parameter.numel() for parameter in prepared.parameters())
    left = [part for part in left_in_float(prepared, set(prepared_layers(prepared))) if "overrides" not in part.reason]
    if sum(part.parameters for part in left) > MUCH * total:
        kinds: dict[str, dict[str, None]] = defaultdict(dict)
        for part in left:
            kinds[part.reason][part.kind] = None
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in kinds.items())
        warnings.warn(f"{in_float_text(left, total)}\n    {in_lines(reasons)}.", stacklevel=3)
    for name, count in plain_lists(prepared):
        warnings.warn(
            f"{name} holds {count} modules that PyTorch does not know of, and that stay in float: use nn.ModuleList or "
            "nn.ModuleDict.",
            stacklevel=3,
        )
