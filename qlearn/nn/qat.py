"""Quantization-aware training: the network learns with the rounding that it will be used with.

    prepare_qat → (calibrate) → train → convert

`prepare_qat` puts fake quantization into every layer, so that the loss feels it; training is the ordinary `train`;
`convert` gives the integer network, which predicts what the fake-quantized one does.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qlearn.affine import QParams
from qlearn.arrays import saturate
from qlearn.config import QuantConfig
from qlearn.nn.fake_quantize import FakeQuantize, LearnedFakeQuantize
from qlearn.nn.integer_layers import with_room_for_bias
from qlearn.nn.layers import TILE, check_input, refuse_output_size
from qlearn.nn.linear_maps import Supported, rows_of
from qlearn.nn.network import copy_of, with_plain_weights
from qlearn.nn.prepared import ObservedLayer, Overrides, prepare_layers, say_what_stays
from qlearn.nn.ptq import WEIGHTS

ACTIVATIONS = QuantConfig(method="moving_average")


class FakeQuantizedLayer(ObservedLayer):
    """A float layer that computes with rounded numbers, and whose weights learn from what comes out.

        ŵ, x̂ = w, x fake-quantized        b̂ = b, rounded to the accumulator's grid scale_x · scale_w
        y = layer(x̂) with ŵ and b̂ in the place of w and b

    While `calibrate` runs it computes in float, as every observed layer does.

    Attributes:
        weight_fake_quantize, input_fake_quantize: the two places where numbers are rounded. The second is None where
            the input stays in float.
        observer: gives the range of the input. In training it goes on watching, in eval mode it is left alone;
            of a learned scale it gives the start only. None where the input is float or dynamic.
    """

    def __init__(
        self, name: str, layer: Supported, weights: QuantConfig, activations: QuantConfig | None, *, learned: bool
    ) -> None:
        super().__init__(name, layer, weights, activations)
        self.weight_fake_quantize = FakeQuantize(weights)
        self.input_fake_quantize = None if activations is None else FakeQuantize(activations)
        if learned:
            self.weight_fake_quantize = LearnedFakeQuantize(weights, self.find_weight_qparams())
            if activations is not None and self.observer is not None:
                self.input_fake_quantize = LearnedFakeQuantize(activations).to(layer.weight.device)

    @property
    def ready(self) -> bool:
        """Whether there is a quantizer for the input, if it needs one."""
        inputs = self.input_fake_quantize
        return super().ready or (isinstance(inputs, LearnedFakeQuantize) and inputs.started)

    def find_weight_qparams(self) -> QParams:
        """The quantizer of the weights as they are now."""
        return self.weight_fake_quantize.qparams(self.rows.detach())

    @property
    def weight(self) -> Tensor:
        """ŵ, with its gradient: a parent that reads the weights itself computes with rounded ones, too."""
        return self.layer.weight if self.calibrating else self._rounded_weight(self.find_weight_qparams())

    def follow(self, x: Tensor) -> QParams | None:
        """The quantizer for this input. In training the observer sees it first, and a learned scale may start here."""
        inputs, observer = self.input_fake_quantize, self.observer
        if inputs is None:
            return None
        if observer is None or (isinstance(inputs, LearnedFakeQuantize) and inputs.started):
            return inputs.qparams(x)
        if self.training:
            observer.observe(x)
        if not observer.seen:
            raise RuntimeError(
                f"layer {self.name!r}: no data has reached its input: call nn.calibrate(model, batches), or train."
            )
        if isinstance(inputs, LearnedFakeQuantize):
            inputs.start(observer.qparams())
            return inputs.qparams()  # exp(log(scale)), as from now on
        return observer.qparams()

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """What the integer layer will do, in numbers that have a gradient."""
        refuse_output_size(self.name, output_size)
        if self.calibrating or input.numel() == 0:
            return super().forward(input)
        self.called = True
        check_input(self.name, input)
        try:
            parameters, x_hat = self._rounded(input)
        except ValueError as error:
            raise ValueError(
                f"layer {self.name!r}: {error} If the network was in training, a smaller learning rate may help."
            ) from error
        if not self.training:
            # The integer layer's sums are exact. In float32 these would differ in the seventh digit, and one value in
            # a million, being next to a tie, would get another code in the next layer.
            parameters, x_hat = {name: p.double() for name, p in parameters.items()}, x_hat.double()
        pieces = x_hat.split(len(x_hat) if self.training else self._at_once(x_hat))
        made = [functional_call(self.layer, parameters, piece) for piece in pieces]
        y = made[0] if len(made) == 1 else torch.cat(made)
        if y.dtype != input.dtype:
            y = saturate(y, input.dtype)
        return y

    def find_input_qparams(self) -> QParams | QuantConfig | None:
        """That of eval mode: the learned one, if there is one."""
        if isinstance(inputs := self.input_fake_quantize, LearnedFakeQuantize) and inputs.started:
            return inputs.qparams()
        return super().find_input_qparams()

    def extra_repr(self) -> str:
        """Nothing: what there is to say, the modules inside say."""
        return ""

    def _at_once(self, x: Tensor) -> int:
        """How many images of a batch: in float64 PyTorch makes all patches of what it convolves."""
        kernel = self.layer.weight.shape[2:]
        if not kernel or x.ndim < 2 + len(kernel):
            return len(x)
        return max(1, TILE // (x[0].numel() * math.prod(kernel)))

    def _rounded(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The parameters and the input that the layer computes with."""
        bias = self.layer.bias
        inputs, weights = self.follow(x), self.find_weight_qparams()
        parameters = {}
        if bias is not None:
            if inputs is not None and self.observer is not None:
                weights = with_room_for_bias(weights, rows_of(self.layer).detach(), bias.detach(), inputs)
                bias = _on_grid(bias, inputs, weights)
            parameters["bias"] = bias
        parameters["weight"] = self._rounded_weight(weights)
        return parameters, x if self.input_fake_quantize is None else self.input_fake_quantize(x, inputs)

    def _rounded_weight(self, qparams: QParams) -> Tensor:
        return self.weight_of(self.weight_fake_quantize(self.rows, qparams))


def prepare_qat(
    model: nn.Module,
    weights: QuantConfig = WEIGHTS,
    activations: QuantConfig | None = ACTIVATIONS,
    overrides: Overrides | None = None,
    learned_step_size: bool = False,
) -> nn.Module:
    """Copy a trained network and put fake quantization into every layer that `prepare` knows, for training.

    In each forward pass weights are rounded to the quantizer found in them, and inputs to that of a range which
    follows the data in training and rests in eval mode. Gradients go straight through the rounding. Afterwards train
    the copy as any other network, with a smaller learning rate than at first, and call `convert`. It may be
    interrupted: what it has learnt so far can be converted too, or saved and trained further.

    A `calibrate` before training is optional. It sets the input ranges, so that training starts from what
    post-training quantization ends with; else the first batch does. Fold batch norms before.

    Args:
        model: a trained network. It is not changed.
        weights, activations, overrides: as for `prepare`. The weights' range is found in each forward pass, so a
            method that searches makes training slow; a learned step size does that once. Weights that a hook computes
            (prune, weight_norm) become ordinary numbers in the copy, and a warning says so.
        learned_step_size: learn the scales too (LSQ), of weights and of inputs, from where the methods start them.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: as `prepare`. In training, NaN or infinity in weights or inputs (names the layer).
        RuntimeError: in eval mode, if no data has come by yet (names the layer).

    Cost: a few passes more over weights and inputs in each step. The lessons' small networks train three to five
        times as long as in float; where products take longer, it is less.
    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3;
        learned step size: Esser et al. 2020, https://arxiv.org/abs/1902.08153.

    >>> model = prepare_qat(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), QuantConfig(bits=2, symmetric=True))
    >>> model
    Sequential(
      (0): FakeQuantizedLayer(
        (layer): Linear(in_features=4, out_features=3, bias=True)
        (weight_fake_quantize): FakeQuantize(2 bits symmetric, PerTensor(), range by min_max)
        (input_fake_quantize): FakeQuantize(8 bits asymmetric, PerTensor(), range by moving_average)
      )
      (1): ReLU()
    )
    """
    make = partial(FakeQuantizedLayer, learned=learned_step_size)
    prepared = prepare_layers(with_plain_weights(copy_of(model)), make, weights, activations, overrides).eval()
    say_what_stays(prepared)
    return prepared


def _on_grid(bias: Tensor, inputs: QParams, weights: QParams) -> Tensor:
    """The bias as the integer layer adds it, a whole number of the accumulator's steps; gradients go straight through.

    x̂ · ŵ is a whole number of these steps too, so fake-quantized and integer layer agree to float32's last digits.
    """
    step = torch.as_tensor(inputs.scale).double() * torch.as_tensor(weights.scale).double().reshape(-1)
    rounded = saturate(torch.round(bias.detach() / step) * step, bias.dtype)
    return bias + (rounded - bias).detach()
