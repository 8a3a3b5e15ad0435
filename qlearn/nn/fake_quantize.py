"""Fake quantization with a gradient: what training needs, since the staircase itself has none.

    forward:   x̂ = scale · (clamp(rint(x / scale) + zero_point, quant_min, quant_max) − zero_point)
    backward:  rint is taken for a straight line of slope 1

The derivative of rint is 0 wherever it exists, so no weight would ever learn. Pretending that it is 1 gives a
*surrogate* gradient. The clamp is taken seriously: a value that it moves gets no gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qlearn.affine import QParams, align, working_floats
from qlearn.arrays import block_rows, check_finite, saturate
from qlearn.config import QuantConfig


def straight_through(x: Tensor, qparams: QParams) -> Tensor:
    """`qlearn.fake_quantize` with the straight-through gradient.

        forward:   x̂ = fake_quantize(x, qparams)
        backward:  ∂x̂/∂x = 1  if quant_min ≤ rint(x / scale) + zero_point ≤ quant_max,  else 0

    At the boundary: a value counts as inside as long as it is *rounded* to the last tick, not clamped to it. So the
    mask reaches half a step beyond the last tick (there a tie belongs to the even code), and is the complement of
    `errors.clipped`. The qparams get no gradient.

    Args:
        x: floats of any shape.
        qparams: as for `qlearn.fake_quantize`: per tensor, axis or group.

    Returns:
        x̂, of x's shape and type.

    Raises:
        ValueError: as `qlearn.fake_quantize`: NaN, infinity, a scale that does not fit.

    Cost: O(n) forward, O(n) backward; one boolean for each value is kept between the two.
    Source: Bengio et al. 2013, https://arxiv.org/abs/1308.3432; with the mask Hubara et al. 2016,
        https://arxiv.org/abs/1609.07061.

    >>> x = torch.tensor([-0.6, 0.3, 3.4, 3.6], requires_grad=True)
    >>> x_hat = straight_through(x, QParams(scale=1.0, zero_point=0, quant_min=0, quant_max=3))
    >>> x_hat.sum().backward()
    >>> x_hat.tolist(), x.grad.tolist()
    ([0.0, 0.0, 3.0, 3.0], [0.0, 1.0, 1.0, 0.0])
    """
    return _StraightThrough.apply(x, qparams)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, qparams: QParams) -> Tensor:
        view, scale, zero_point = _aligned(x, qparams)
        code = torch.round(view / scale) + zero_point
        clamped = code.clamp(qparams.quant_min, qparams.quant_max)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((clamped == code).reshape(x.shape))
        return saturate(scale * (clamped - zero_point), x.dtype).reshape(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None


def learned_step(
    x: Tensor,
    scale: Tensor,
    zero_point: int | Tensor,
    quant_min: int,
    quant_max: int,
    gradient_scale: float = 1.0,
) -> Tensor:
    """`qlearn.fake_quantize` with gradients for x and for the scale: learned step size quantization (LSQ).

        forward:   x̂ = fake_quantize(x, QParams(scale, zero_point, quant_min, quant_max))
        backward, with v = x / scale and the ends l = quant_min − zero_point, h = quant_max − zero_point:
            ∂x̂/∂x     = 1              if l ≤ v ≤ h,  else 0
            ∂x̂/∂scale = rint(v) − v    if l ≤ v ≤ h;  l below, h above;  summed over the block that shares the scale,
                                       and times gradient_scale

    It is the derivative of scale · (clamp(v, l, h) + r), the rounding residual r held fixed. Here the clamp comes
    before rint (which gives the same x̂), so the mask ends at the last tick, half a step before that of
    `straight_through`: beyond it a wider scale would help, and the gradient says so. The paper counts a value
    exactly on the last tick as outside; here it is inside, like the end of a range.

    Args:
        x: floats of any shape.
        scale: > 0, a scalar or one entry for each block of x, as in `QParams`.
        zero_point, quant_min, quant_max: as in `QParams`; they get no gradient.
        gradient_scale: the paper's is 1 / √(n · quant_max) for n values that share one scale, see `gradient_scale`.

    Returns:
        x̂, of x's shape and type.

    Raises:
        ValueError: as `qlearn.fake_quantize` and `QParams`.

    Cost: O(n) forward, O(n) backward.
    Source: Esser et al. 2020, https://arxiv.org/abs/1902.08153, section 2.

    >>> x, scale = torch.tensor([0.75, 9.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> learned_step(x, scale, 0, 0, 3).sum().backward()
    >>> x.grad.tolist(), scale.grad.item()  # 0.75 is rounded up by 0.25; 9 is clipped to 3 steps
    ([1.0, 0.0], 3.25)
    """
    if not isinstance(scale, Tensor):
        raise TypeError(f"scale is a {type(scale).__name__}: it must be a tensor, which can have a gradient.")
    return _LearnedStep.apply(x, scale, QParams(scale.detach(), zero_point, quant_min, quant_max), gradient_scale)


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qparams: QParams, factor: float) -> Tensor:
        view, step, zero_point = _aligned(x, qparams)
        v = view / step
        clamped = v.clamp(qparams.quant_min - zero_point, qparams.quant_max - zero_point)
        steps = torch.round(clamped)
        if any(ctx.needs_input_grad):
            inside = clamped == v
            slope = torch.where(inside, steps - v, steps)
            ctx.save_for_backward(inside.reshape(x.shape), slope.reshape(x.shape))
            ctx.shape, ctx.factor = tuple(scale.shape), factor
        return saturate(step * steps, x.dtype).reshape(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside, slope = ctx.saved_tensors
        return grad * inside, _block_sums(grad * slope, ctx.shape) * ctx.factor, None, None


def _aligned(x: Tensor, qparams: QParams) -> tuple[Tensor, Any, Any]:
    """x, finite and in float32 at least, viewed in blocks, and what broadcasts against it: scale and zero point."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}: it must be a tensor.")
    x = working_floats(x, qparams)
    check_finite(x)
    return align(x, qparams, x.dtype)


def gradient_scale(n: int, quant_max: int) -> float:
    """LSQ's factor for the gradient of a scale that n values share: 1 / √(n · quant_max).

    The sum over n values grows with √n, and a clipped value adds up to quant_max. With this factor the step size
    learns about as fast, relative to its size, as the weights do. (Adam divides every gradient by its usual size,
    so there the factor changes nothing; with plain gradient descent it does.)

    Source: Esser et al. 2020, https://arxiv.org/abs/1902.08153, section 2.2.

    >>> gradient_scale(100, 1)
    0.1
    """
    return float((n * quant_max) ** -0.5)


class FakeQuantize(nn.Module):
    """Fake-quantize what passes: rounded in the forward pass, straight through in the backward pass.

        forward(x) = straight_through(x, qparams)

    Args:
        config: bits, scheme, granularity and range method.

    Raises:
        ValueError: a method that needs more than one tensor, if no qparams are given.

    Cost: O(n), and that of the range method where no qparams are given.

    >>> FakeQuantize(QuantConfig(bits=2))(torch.tensor([-1.0, 0.0, 0.7, 2.0]))
    tensor([-1.,  0.,  1.,  2.])
    """

    def __init__(self, config: QuantConfig) -> None:
        super().__init__()
        self.config, self.source = config, f"range by {config.method}"

    def qparams(self, x: Tensor) -> QParams:
        """The quantizer for x, found in x itself. The method "dynamic" takes its smallest and its largest value."""
        config = replace(self.config, method="min_max") if self.config.method == "dynamic" else self.config
        return config.find_qparams(x)

    def forward(self, x: Tensor, qparams: QParams | None = None) -> Tensor:
        """x̂, with the quantizer that is given, or that of x."""
        return straight_through(x, self.qparams(x) if qparams is None else qparams)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        scheme = "symmetric" if self.config.symmetric else "asymmetric"
        return f"{self.config.bits} bits {scheme}, {self.config.granularity}, {self.source}"


class LearnedFakeQuantize(FakeQuantize):
    """Fake-quantize with a scale that is learnt beside the weights: LSQ.

        forward(x) = learned_step(x, exp(log_scale), zero_point, …)

    What is learnt is the logarithm: a step of Adam is about as long as the learning rate, which may be more than a
    whole scale at 8 bits. Of the logarithm it is a few per mille, and the scale stays above 0. The zero point stays
    what it was at the start.

    Args:
        config: bits, scheme and granularity. Its method has found the quantizer to start from.
        start: that quantizer, if it is known already. Without one it is for activations, and `start` comes later.

    Attributes:
        log_scale: the parameter.
        zero_point: a buffer.
        started: whether there is a quantizer.

    Source: Esser et al. 2020, https://arxiv.org/abs/1902.08153; the logarithm is that of
        Jain et al. 2019, https://arxiv.org/abs/1903.08066.

    >>> module = LearnedFakeQuantize(QuantConfig(bits=2, symmetric=True), QParams(1.0, 0, -1, 1))
    >>> module(torch.tensor([-2.0, 0.4, 0.6])).tolist(), module.log_scale.item()
    ([-1.0, 0.0, 1.0], 0.0)
    """

    zero_point: Tensor

    def __init__(self, config: QuantConfig, start: QParams | None = None) -> None:
        super().__init__(config)
        self.source = "scale learned"
        scale = torch.as_tensor(0.0 if start is None else start.scale)
        self.per_example = start is None
        self.log_scale = nn.Parameter(torch.full_like(scale, -torch.inf, dtype=torch.float32))  # 0: not started
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int32))
        if start is not None:
            self.start(start)

    @property
    def started(self) -> bool:
        return bool(self.log_scale.isfinite().all())

    def start(self, qparams: QParams) -> None:
        """Take over a quantizer's scale and zero point."""
        with torch.no_grad():  # in place: an optimizer may know the parameter already
            self.log_scale.copy_(torch.as_tensor(qparams.scale).log())
            self.zero_point.copy_(torch.as_tensor(qparams.zero_point))

    def qparams(self, x: Tensor | None = None) -> QParams:
        """The quantizer as it has been learnt so far, whatever x is.

        Raises:
            RuntimeError: there is none yet.
        """
        if not self.started:
            raise RuntimeError("this scale has no start: call start(qparams) first.")
        zero_point = self.zero_point if self.zero_point.ndim else int(self.zero_point)
        return QParams(self.log_scale.detach().exp(), zero_point, *self.config.limits)

    def forward(self, x: Tensor, qparams: QParams | None = None) -> Tensor:
        """x̂, with the learned quantizer. Whoever has called `qparams` already may hand it over."""
        own = self.qparams() if qparams is None else qparams
        # The paper's n: the weights that share a scale, or the features of one example of the input.
        n = x[0].numel() if self.per_example else x.numel() // self.log_scale.numel()
        return _LearnedStep.apply(x, self.log_scale.exp(), own, gradient_scale(n, own.quant_max))


def _block_sums(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The sum over each block, in the scale's shape."""
    return block_rows(values, shape).sum(1).reshape(shape) if shape else values.sum()
