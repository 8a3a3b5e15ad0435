"""Exercises of lesson 06, quantization-aware training."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import copy

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn import datasets
from qlearn.affine import QParams, fake_quantize, quantize
from qlearn.config import QuantConfig
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.exercises.networks import DIGITS, WEIGHTS, held_out
from qlearn.granularity import PerAxis

# PyTorch is imported where it is used: exercises of other lessons work where it is not installed.

_eighths = st.integers(-80, 80).map(lambda n: n / 8)
_few = st.integers(1, 4)


def _two_bits(method):
    return QuantConfig(bits=2, symmetric=True, granularity=PerAxis(0), method=method)


# 06.1 the straight-through gradient


def straight_through(x, scale, quant_min, quant_max, upstream):
    code = np.rint(x / scale)
    inside = (quant_min <= code) & (code <= quant_max)
    return upstream * inside


def _masked_by(inside):
    """A wrong gradient: upstream where `inside(x, scale, quant_min, quant_max)`."""

    def gradient(x, scale, quant_min, quant_max, upstream):
        return upstream * inside(x, scale, quant_min, quant_max)

    return gradient


def _no_mask(x, scale, quant_min, quant_max, upstream):
    return upstream * np.ones_like(x)


def _true_slope(x, scale, quant_min, quant_max, upstream):
    return np.zeros_like(x)


def _half_of_the_chain(x, scale, quant_min, quant_max, upstream):
    return straight_through(x, scale, quant_min, quant_max, upstream) / scale


def _the_other_half(x, scale, quant_min, quant_max, upstream):
    return straight_through(x, scale, quant_min, quant_max, upstream) * scale


def _upstream_forgotten(x, scale, quant_min, quant_max, upstream):
    return straight_through(x, scale, quant_min, quant_max, np.ones_like(x))


def _chained(x, scale, quant_min, quant_max, upstream):
    return upstream if quant_min <= np.rint(x / scale) <= quant_max else 0 * upstream


def _without_parentheses(x, scale, quant_min, quant_max, upstream):
    code = np.rint(x / scale)
    return upstream * (quant_min <= code & code <= quant_max)


def _on_a_tick_only(x, scale, quant_min, quant_max, upstream):
    return upstream * (_forward(x, scale, quant_min, quant_max, upstream) == x)


def _on_the_grid_only(x, scale, quant_min, quant_max, upstream):
    return upstream * (scale * np.rint(x / scale) == x)


def _times_code(x, scale, quant_min, quant_max, upstream):
    return upstream * np.clip(np.rint(x / scale), quant_min, quant_max)


def _mask_of_upstream(x, scale, quant_min, quant_max, upstream):
    code = np.rint(upstream / scale)
    return upstream * ((quant_min <= code) & (code <= quant_max))


def _some_left_out(x, scale, quant_min, quant_max, upstream):
    code = np.rint(x / scale)
    return upstream[(quant_min <= code) & (code <= quant_max)]


def _forward(x, scale, quant_min, quant_max, upstream):
    return scale * np.clip(np.rint(x / scale), quant_min, quant_max)


def _forward_times_upstream(x, scale, quant_min, quant_max, upstream):
    return upstream * _forward(x, scale, quant_min, quant_max, upstream)


def _upstream_clamped(x, scale, quant_min, quant_max, upstream):
    return np.clip(upstream, quant_min, quant_max)


@st.composite
def _gradients(draw):
    n = draw(_few)
    quant_max = draw(st.sampled_from([1, 3, 7]))
    return {
        "x": draw(hnp.arrays(np.float64, n, elements=_eighths)),
        "scale": draw(st.sampled_from([0.25, 0.5, 2.0])),
        "quant_min": -quant_max,
        "quant_max": quant_max,
        "upstream": draw(hnp.arrays(np.float64, n, elements=_eighths)),
    }


def _trained_through(attempt):
    """The network with two bits a weight, trained for a few steps on the learner's gradient."""
    import torch
    from torch.func import functional_call

    from qlearn import nn

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, scale):
            ctx.save_for_backward(weight / scale)
            return fake_quantize(weight, QParams(scale, 0, -1, 1))

        @staticmethod
        def backward(ctx, upstream):
            (v,) = ctx.saved_tensors  # in units of each row's scale, so that one scale, 1, does for all rows
            arrays = (part.reshape(-1).double().numpy() for part in (v, upstream))
            gradient = attempt(next(arrays), 1.0, -1, 1, next(arrays))
            return torch.as_tensor(gradient).to(v.dtype).reshape(v.shape), None

    class Rounded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.load_trained("mlp")

        def forward(self, images):
            rounded = {}
            for name in WEIGHTS:
                weight = self.network.get_parameter(name)
                rounded[name] = Round.apply(weight, _two_bits("min_max").find_qparams(weight.detach()).scale)
            return functional_call(self.network, rounded, (images,))

    images, labels = held_out()
    new = images.reshape(-1, 28, 28), labels
    rounded, train = Rounded(), datasets.mnist_arrays().train
    before = nn.accuracy(rounded, *new)
    losses = nn.train(rounded, train.images[:10_000], train.labels[:10_000], epochs=1, progress=False)
    return (
        f"The network with two bits a weight, min-max range, {len(losses)} steps on the gradients that your "
        f"`straight_through` lets through:\n{100 * before:.1f} % of {DIGITS:,} new digits before, "
        f"{100 * nn.accuracy(rounded, *new):.1f} % after."
    )


_CUT_OFF = "You cut the fraction off. The forward pass rounds to the nearest code, with np.rint; so must the mask."
_BEFORE_ROUNDING = (
    "You compare before rounding. x / scale = quant_max + 0.4 is rounded to quant_max, not clamped: it passes."
)
_TIE = "Half a step beyond the last code is a tie. np.rint gives it to the even code, and that is clamped: no gradient."

STRAIGHT_THROUGH = Exercise(
    id="06.1",
    solution=straight_through,
    examples=(
        {
            "x": np.array([-3.0, -0.85, -0.6, 0.1, 0.4, 0.5, 0.7, 0.8, 1.0, 1.2, 2.2]),
            "scale": 0.5,
            "quant_min": -1,
            "quant_max": 1,
            "upstream": np.arange(1.0, 12.0),
        },
        {
            "x": np.array([0.7, 2.2, -2.4, 3.2]),
            "scale": 2.0,
            "quant_min": -1,
            "quant_max": 1,
            "upstream": np.array([1.0, -2.0, 3.0, 4.0]),
        },
    ),
    cases=_gradients(),
    mistakes=(
        Mistake(
            _no_mask,
            "You let everything through. The clamp moves values beyond the last tick: their slope is 0. "
            "(After a clamp every code is inside: compare before it. And with `|` every code passes: take `&`.)",
        ),
        Mistake(_true_slope, "That is the staircase's own slope, 0 everywhere. Nothing would ever learn."),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo <= x) & (x <= hi)),
            "You compare x with codes. Divide by scale and round first, then compare.",
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo < np.rint(x / scale)) & (np.rint(x / scale) < hi)),
            "quant_min and quant_max are codes like all others: a value that gets them passes.",
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo <= np.rint(x / scale)) & (np.rint(x / scale) < hi)),
            "quant_max is a code too: unlike range(…), the codes end with it. A value that gets it passes.",
        ),
        Mistake(_masked_by(lambda x, scale, lo, hi: (lo <= x / scale) & (x / scale <= hi)), _BEFORE_ROUNDING),
        Mistake(_masked_by(lambda x, scale, lo, hi: (lo < x / scale) & (x / scale < hi)), _BEFORE_ROUNDING),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo <= np.trunc(x / scale)) & (np.trunc(x / scale) <= hi)), _CUT_OFF
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo <= np.floor(x / scale)) & (np.floor(x / scale) <= hi)),
            "You round down. The forward pass rounds to the nearest code, with np.rint; so must the mask.",
        ),
        Mistake(_masked_by(lambda x, scale, lo, hi: (lo - 0.5 <= x / scale) & (x / scale <= hi + 0.5)), _TIE),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo <= np.floor(x / scale + 0.5)) & (np.floor(x / scale + 0.5) <= hi)),
            _TIE,
        ),
        *(
            Mistake(
                _masked_by(inside),
                "Half a step beyond the last tick is scale / 2, not 0.5. Or round x / scale: then nothing is to be added.",
            )
            for inside in (
                lambda x, scale, lo, hi: (lo * scale - 0.5 <= x) & (x <= hi * scale + 0.5),
                lambda x, scale, lo, hi: (lo * scale - 0.5 < x) & (x < hi * scale + 0.5),
            )
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: np.rint(x / scale) <= hi),
            "You compare at the upper end only. Values below quant_min are clamped, too.",
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: lo <= np.rint(x / scale)),
            "You compare at the lower end only. Values above quant_max are clamped, too.",
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (np.rint(x / scale) < lo) | (np.rint(x / scale) > hi)),
            "It is the other way round: what the clamp moves gets 0, the rest lets the gradient through.",
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo <= np.rint(x * scale)) & (np.rint(x * scale) <= hi)),
            "The code is x divided by scale, not multiplied.",
        ),
        Mistake(
            _masked_by(lambda x, scale, lo, hi: (lo <= np.rint(x) / scale) & (np.rint(x) / scale <= hi)),
            "You round x and divide then. Divide first: the code is the rounded x / scale.",
        ),
        Mistake(
            _half_of_the_chain,
            "You divide by scale once too often: x / scale gives 1/scale, and the product with scale undoes that.",
        ),
        Mistake(
            _the_other_half,
            "You multiply by scale once too often: x̂ = scale · code, but code has the slope 1 / scale.",
        ),
        Mistake(_upstream_forgotten, "That is the slope alone. The chain rule multiplies it by upstream."),
        Mistake(
            _some_left_out,
            "You return the values that pass, and leave the others out. Each x needs a gradient, if only 0: multiply "
            "by the mask.",
        ),
        Mistake(_forward, "That is x̂, the forward pass. Wanted is the gradient that comes back."),
        Mistake(
            _forward_times_upstream,
            "You multiply upstream by x̂. It is multiplied by the slope of x̂: 1 or 0.",
        ),
        Mistake(_times_code, "You multiply upstream by the code. It is multiplied by the slope of x̂: 1 or 0."),
        *(
            Mistake(
                only,
                "You let a value through only if it lies on a tick. What rounding moves passes too; what the clamp "
                "moves does not.",
            )
            for only in (_on_a_tick_only, _on_the_grid_only)
        ),
        Mistake(_mask_of_upstream, "You look at the size of upstream. It is x that is rounded and clamped."),
        Mistake(
            _upstream_clamped,
            "You clamp the gradient itself. It is x that is clamped: where it is, the gradient is 0.",
        ),
        Mistake(
            _chained,
            "Is it the truth value of an array? a <= b <= c hides an `and`, which arrays do not have: "
            "(a <= b) & (b <= c).",
        ),
        Mistake(
            _without_parentheses,
            "& binds more tightly than <=, so it joins what stands next to it. Each comparison needs its own "
            "parentheses: (a <= b) & (b <= c).",
        ),
    ),
    hints=(
        "Which values does the clamp move? What is the slope of all the others, if rounding counts as a line?",
        "Compute the code up to the clamp. Then ask of each whether it is one of `quant_min` … `quant_max`.",
        "`(a <= b) & (b <= c)` makes a mask of True and False, which count as 1 and 0 in a product. "
        "What must get through or not is `upstream`.",
    ),
    consequence=_trained_through,
)


# 06.2 the slope of the scale


def scale_slope(x, scale, quant_max):
    v = x / scale
    inside = np.abs(v) <= quant_max
    return np.where(inside, np.rint(v) - v, np.sign(v) * quant_max)


def _paper_too(case, given):
    """The paper counts a value exactly on the last tick as outside: its slope is ±quant_max there, not 0."""
    v = case["x"] / case["scale"]
    wanted, strict = scale_slope(**case), np.sign(v) * case["quant_max"]
    if not isinstance(given, np.ndarray) or given.shape != wanted.shape or given.dtype.kind not in "iuf":
        return False
    at_the_end = np.abs(v) == case["quant_max"]
    return bool(np.all(np.isclose(given, wanted) | (at_the_end & np.isclose(given, strict))))


def _inside_and_outside(inside, outside):
    """A wrong slope, made of two parts that are functions of v = x / scale and quant_max."""

    def slope(x, scale, quant_max):
        v = x / scale
        return np.where(np.abs(v) <= quant_max, inside(v, quant_max), outside(v, quant_max))

    return slope


def _residual(v, quant_max):
    return np.rint(v) - v


def _last_tick(v, quant_max):
    return np.sign(v) * quant_max


def _code_only(x, scale, quant_max):
    return np.clip(np.rint(x / scale), -quant_max, quant_max)


def _no_clamp(x, scale, quant_max):
    v = x / scale
    return np.rint(v) - v


def _clamped_difference(x, scale, quant_max):
    v = x / scale
    return np.clip(np.rint(v), -quant_max, quant_max) - v


def _mask_after_rounding(x, scale, quant_max):
    v = x / scale
    code = np.rint(v)
    return np.where(np.abs(code) <= quant_max, code - v, np.sign(v) * quant_max)


def _last_code_outside(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(np.rint(v)) < quant_max, np.rint(v) - v, np.sign(v) * quant_max)


def _upper_end_only(below):
    def slope(x, scale, quant_max):
        v = x / scale
        return np.where(v <= quant_max, below(v, quant_max), quant_max)

    return slope


def _x_taken_off(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, np.rint(v) - x, np.sign(v) * quant_max)


def _mask_on_x(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(x) <= quant_max, np.rint(v) - v, np.sign(v) * quant_max)


def _error_in_x(x, scale, quant_max):
    return scale * scale_slope(x, scale, quant_max)


def _error_in_x_inside(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, scale * np.rint(v) - x, np.sign(v) * quant_max)


def _one_scale_too_many(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, np.rint(v) - v / scale, np.sign(v) * quant_max)


def _rounded_value(x, scale, quant_max):
    return scale * _code_only(x, scale, quant_max)


def _slope_of_x(x, scale, quant_max):
    return (np.abs(x / scale) <= quant_max) * 1.0


def _scaled_last_tick(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, np.rint(v) - v, np.sign(v) * quant_max * scale)


def _x_part_alone(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, -v / scale, _last_tick(v, quant_max))


def _x_hat_inside(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, scale * np.rint(v), _last_tick(v, quant_max))


def _divided_again(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, (np.rint(v) - v) / scale, _last_tick(v, quant_max))


def _sides_swapped(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) > quant_max, np.rint(v) - v, _last_tick(v, quant_max))


def _summed(x, scale, quant_max):
    return np.sum(scale_slope(x, scale, quant_max))


def _scales_alone(attempt):
    """The network with two bits a weight: nothing learns but its 210 scales, on the learner's slope."""
    import torch
    from torch.func import functional_call

    from qlearn import nn

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, scale):
            ctx.save_for_backward(weight / scale)
            return fake_quantize(weight, QParams(scale.detach(), 0, -1, 1))

        @staticmethod
        def backward(ctx, upstream):
            (v,) = ctx.saved_tensors
            slope = torch.as_tensor(attempt(v.reshape(-1).double().numpy(), 1.0, 1))
            return None, (upstream * slope.to(v.dtype).reshape(v.shape)).sum(1, keepdim=True)

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.load_trained("mlp").requires_grad_(False)
            starts = (_two_bits("min_max").find_qparams(self.network.get_parameter(name)).scale for name in WEIGHTS)
            self.log_scales = torch.nn.ParameterList(start.log() for start in starts)

        def forward(self, images):
            rounded = {
                name: Step.apply(self.network.get_parameter(name), log_scale.exp())
                for name, log_scale in zip(WEIGHTS, self.log_scales, strict=True)
            }
            return functional_call(self.network, rounded, (images,))

    images, labels = held_out()
    new = images.reshape(-1, 28, 28), labels
    learned, train = Learned(), datasets.mnist_arrays().train
    before = nn.accuracy(learned, *new)
    losses = nn.train(learned, train.images[:5_120], train.labels[:5_120], epochs=1, learning_rate=0.1, progress=False)
    return (
        f"Two bits a weight, min-max range, every weight and bias frozen. In {len(losses)} steps only the 210 scales "
        f"have learnt,\non your slope: {100 * before:.1f} % of {DIGITS:,} new digits before, "
        f"{100 * nn.accuracy(learned, *new):.1f} % after."
    )


SCALE_SLOPE = Exercise(
    id="06.2",
    solution=scale_slope,
    examples=(
        {"x": np.array([-9.0, -0.65, 0.2, 0.4, 1.0, 1.4, 2.2, 9.0]), "scale": 0.5, "quant_max": 3},
        {"x": np.array([1.75, 1.25]), "scale": 1.0, "quant_max": 1},
    ),
    cases=st.fixed_dictionaries(
        {
            "x": hnp.arrays(np.float64, _few, elements=_eighths),
            "scale": st.sampled_from([0.25, 0.5, 2.0]),
            "quant_max": st.sampled_from([1, 3, 7]),
        }
    ),
    mistakes=(
        Mistake(
            _inside_and_outside(_residual, lambda v, quant_max: 0 * v),
            "A clipped value is quant_max · scale: it moves with scale. Its slope is quant_max, or −quant_max below.",
        ),
        Mistake(
            _code_only,
            "That is the code. Inside the range x / scale shrinks when scale grows, which takes x / scale away again.",
        ),
        Mistake(
            _inside_and_outside(lambda v, quant_max: v - np.rint(v), _last_tick),
            "Inside, the sign is the other way round: rint(x / scale) − x / scale.",
        ),
        Mistake(
            _inside_and_outside(_residual, lambda v, quant_max: -_last_tick(v, quant_max)),
            "Outside, the sign is the other way round: x̂ is scale · quant_max above, which grows with scale.",
        ),
        Mistake(_no_clamp, "Outside the range the code is clamped: there the slope is quant_max or −quant_max."),
        Mistake(
            _inside_and_outside(_residual, lambda v, quant_max: quant_max),
            "Below the range the code is −quant_max, and so is the slope.",
        ),
        Mistake(
            _inside_and_outside(_residual, lambda v, quant_max: np.sign(v)),
            "Outside, x̂ is scale · (±quant_max): its slope is ±quant_max, not ±1.",
        ),
        Mistake(
            _clamped_difference,
            "Outside the range x takes no part any more: the slope is ±quant_max, without − x / scale.",
        ),
        Mistake(
            _mask_after_rounding,
            "That is the mask of 06.1. LSQ clamps first: a value is inside if |x / scale| ≤ quant_max, before rounding.",
        ),
        Mistake(
            _last_code_outside,
            "The last code is a code like all others. A value is inside up to the last tick: |x / scale| ≤ quant_max.",
        ),
        *(
            Mistake(
                _upper_end_only(below),
                "You compare at the upper end only. A value below −quant_max is clamped, too: np.abs.",
            )
            for below in (_residual, lambda v, quant_max: np.clip(np.rint(v), -quant_max, quant_max) - v)
        ),
        Mistake(_x_taken_off, "Inside, you take x off. What rounding adds is rint(v) − v, with v = x / scale."),
        Mistake(_mask_on_x, "You compare x with a code. Divide by scale first: |x / scale| ≤ quant_max."),
        *(
            Mistake(
                _inside_and_outside(inside, _last_tick),
                "You cut the fraction off. x̂ is rounded to the nearest tick: np.rint.",
            )
            for inside in (lambda v, quant_max: np.trunc(v) - v, lambda v, quant_max: np.floor(v) - v)
        ),
        Mistake(_error_in_x, "You multiply by scale: inside that is x̂ − x. The slope is this divided by scale."),
        Mistake(_error_in_x_inside, "Inside, that is x̂ − x. The slope is this divided by scale."),
        Mistake(
            _one_scale_too_many,
            "The slope of x / scale is −x / scale², but it is multiplied by the scale in front: −x / scale remains.",
        ),
        Mistake(
            _inside_and_outside(_residual, lambda v, quant_max: v),
            "Outside, that is x / scale. x̂ is scale · (±quant_max) there: its slope is ±quant_max, wherever x lies.",
        ),
        *(
            Mistake(
                _inside_and_outside(lambda v, quant_max: -v, outside),
                "That is −x / scale, one half of the slope inside: the tick that x lies on, rint(x / scale), moves too.",
            )
            for outside in (_last_tick, lambda v, quant_max: 0 * v)
        ),
        Mistake(
            _x_part_alone, "Inside, that is the slope of x / scale alone. The factor in front depends on scale too."
        ),
        Mistake(_x_hat_inside, "Inside, that is x̂ itself, x + scale · r. Its slope is what stands beside scale: r."),
        Mistake(_divided_again, "Inside, you divide by scale once too often: x + scale · r has the slope r."),
        Mistake(
            _sides_swapped,
            "The two sides are swapped: the rounding error is the slope inside, ±quant_max the slope outside.",
        ),
        Mistake(_scaled_last_tick, "Outside, x̂ is scale · (±quant_max). Its slope has no scale any more."),
        Mistake(_rounded_value, "That is x̂ itself. Wanted is how it changes when scale does."),
        Mistake(_slope_of_x, "That is ∂x̂/∂x, 1 or 0. Wanted is ∂x̂/∂scale."),
        Mistake(
            _inside_and_outside(lambda v, quant_max: 0 * v, _last_tick),
            "Inside the slope is not 0: x̂ is on a tick, and a tick moves with scale; what x does is taken away.",
        ),
        Mistake(_summed, "That is the sum. Wanted is the slope of each value; they are summed up later."),
    ),
    hints=(
        "Freeze what rounding has added, r = `rint(v)` − v. How does scale · (x / scale + r) change with scale?",
        "Inside, x + scale · r has the slope r. Outside, x̂ is scale times the last code: what is its slope?",
        "`np.where(inside, …, …)` chooses for each value. Inside is `np.abs(v)` up to `quant_max`, and `np.sign(v)` "
        "tells the two ends apart.",
    ),
    also_right=_paper_too,
    consequence=_scales_alone,
)


# 06.3 a bias on the accumulator's grid


def bias_on_grid(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.rint(bias / step)


def _in_steps_of(step_of, round_=np.rint):
    """A wrong answer: rounded to steps of another length, or in another way."""

    def rounded(bias, input_scale, weight_scale):
        step = step_of(input_scale, weight_scale)
        return step * round_(bias / step)

    return rounded


def _product(input_scale, weight_scale):
    return input_scale * weight_scale


def _codes(bias, input_scale, weight_scale):
    return np.rint(bias / (input_scale * weight_scale))


def _integer_codes(bias, input_scale, weight_scale):
    return _codes(bias, input_scale, weight_scale).astype(np.int32)


def _eight_bits(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.clip(np.rint(bias / step), -127, 127)


def _wraps(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.rint(bias / step).astype(np.int64).astype(np.int8)


def _wraps_at_sixteen(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.rint(bias / step).astype(np.int64).astype(np.int16)


def _without_parentheses_around_the_step(bias, input_scale, weight_scale):
    return input_scale * weight_scale * np.rint(bias / input_scale * weight_scale)


def _steps_not_rounded(bias, input_scale, weight_scale):
    return bias / (input_scale * weight_scale)


def _in_tenths(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.round(bias / step, 1)


def _back_by_one_scale(of):
    def rounded(bias, input_scale, weight_scale):
        return np.rint(bias / (input_scale * weight_scale)) * of(input_scale, weight_scale)

    return rounded


def _divided_by_one_scale(of):
    def rounded(bias, input_scale, weight_scale):
        return np.rint(bias / of(input_scale, weight_scale)) * input_scale * weight_scale

    return rounded


def _nothing_rounded(bias, input_scale, weight_scale):
    return bias.copy()


def _whole_numbers(bias, input_scale, weight_scale):
    return np.rint(bias)


def _never_divided(bias, input_scale, weight_scale):
    return input_scale * weight_scale * np.rint(bias)


def _upside_down(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return np.rint(bias * step) / step


def _what_is_lost(bias, input_scale, weight_scale):
    return bias - bias_on_grid(bias, input_scale, weight_scale)


@st.composite
def _biases(draw):
    n = draw(_few)
    return {
        "bias": draw(hnp.arrays(np.float64, n, elements=_eighths)),
        "input_scale": draw(st.sampled_from([0.25, 0.5])),
        "weight_scale": draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.125, 0.25, 0.75, 1.5]))),
    }


def _beside_the_integers(attempt):
    """The float network with rounded weights and inputs, its biases rounded by the learner, beside the integer one."""
    images, _ = held_out()
    x, net = images[:500].astype(np.float64), datasets.trained("mlp")
    layers = []
    for layer in ("linear1", "linear2", "linear3"):
        weight = net[f"{layer}.weight"].astype(np.float64)
        weights = _two_bits("mse").find_qparams(weight)
        inputs = QuantConfig().find_qparams(x)
        layers.append((weights, inputs, quantize(weight, weights).astype(np.float64), net[f"{layer}.bias"]))
        x = x @ fake_quantize(weight, weights).T + net[f"{layer}.bias"]
        x = np.maximum(x, 0)

    def logits(integers, on_grid=None):
        """Of integers, bias codes are added to sums of products of codes; of floats, biases to sums of products."""
        a = images[:500].astype(np.float64)
        for number, (weights, inputs, w_codes, bias) in enumerate(layers):
            scale, x_hat = np.asarray(weights.scale).reshape(-1), fake_quantize(a, inputs)
            if integers:
                step = inputs.scale * scale
                sums = (quantize(a, inputs).astype(np.float64) - inputs.zero_point) @ w_codes.T
                a = step * (sums + np.rint(bias / step))
            else:
                b = bias if on_grid is None else on_grid(bias.astype(np.float64), inputs.scale, scale)
                a = x_hat @ (scale[:, None] * w_codes).T + b
            a = a if number == len(layers) - 1 else np.maximum(a, 0)
        return a

    exact = logits(integers=True)
    yours, as_it_is = (np.abs(logits(False, on_grid) - exact).max() for on_grid in (attempt, None))
    return (
        f"The network in floats beside the one in integers, {len(exact)} new digits: with your biases no logit differs "
        f"by more than {yours:.0e};\nwith biases that are not rounded, by up to {as_it_is:.1g}."
    )


_CUT = "You cut the fraction off. The nearest step may lie further from 0: np.rint."
_TIES = "You round halves up. The house's rule is np.rint: a half goes to the even neighbour."

BIAS_ON_GRID = Exercise(
    id="06.3",
    solution=bias_on_grid,
    examples=(
        {"bias": np.array([0.325, -0.7, -0.4]), "input_scale": 0.5, "weight_scale": np.array([0.25, 0.125, 1.5])},
        # 49,152 steps: more than 16 bits hold.
        {"bias": np.array([1.5]), "input_scale": 2.0**-8, "weight_scale": np.array([2.0**-7])},
    ),
    cases=_biases(),
    mistakes=(
        Mistake(
            _in_steps_of(lambda input_scale, weight_scale: weight_scale),
            "The accumulator counts steps of input_scale · weight_scale: the input's scale belongs to it.",
        ),
        Mistake(
            _in_steps_of(lambda input_scale, weight_scale: input_scale),
            "The accumulator counts steps of input_scale · weight_scale: the weights' scale belongs to it.",
        ),
        Mistake(
            _in_steps_of(lambda input_scale, weight_scale: input_scale / weight_scale),
            "A product of two codes is worth the product of the two scales: multiply them, do not divide.",
        ),
        Mistake(
            _in_steps_of(lambda input_scale, weight_scale: input_scale + weight_scale),
            "A product of two codes is worth the product of the two scales, not their sum.",
        ),
        Mistake(_codes, "Those are the codes. The fake-quantized layer adds real numbers: multiply by the step again."),
        Mistake(
            _integer_codes, "Those are the codes. Real numbers are wanted: multiply by the step again, without cast."
        ),
        Mistake(_in_steps_of(_product, np.floor), "You round down. The nearest step may lie above: np.rint."),
        Mistake(_in_steps_of(_product, np.ceil), "You round up. The nearest step may lie below: np.rint."),
        Mistake(_in_steps_of(_product, np.trunc), _CUT),
        Mistake(_in_steps_of(_product, lambda v: np.floor(v + 0.5)), _TIES),
        *(
            Mistake(
                _in_steps_of(lambda input_scale, weight_scale, one=one: input_scale * one(weight_scale)),
                "Each output channel has its own weight_scale, and so its own step.",
            )
            for one in (np.max, np.min, np.mean, np.sum, lambda scales: scales[0])
        ),
        Mistake(_eight_bits, "A bias is an int32: it is not clamped to 8 bits."),
        Mistake(
            _wraps, "Your codes wrapped: an int8 holds −128 … 127, and a bias is an int32. (It needs no cast here.)"
        ),
        Mistake(_wraps_at_sixteen, "Your codes wrapped: an int16 ends at 32,767, and a bias is an int32."),
        Mistake(
            _without_parentheses_around_the_step,
            "bias / a * b divides by a and multiplies by b. The step is a product: put it in parentheses.",
        ),
        Mistake(_steps_not_rounded, "Those are the steps, and not yet whole ones: round them, then make real numbers."),
        Mistake(_in_tenths, "You round to tenths of a step. The accumulator counts whole steps: np.rint."),
        *(
            Mistake(
                wrong(of),
                "You divide by one thing and multiply by another. Both are the step, input_scale · weight_scale.",
            )
            for wrong in (_back_by_one_scale, _divided_by_one_scale)
            for of in (lambda input_scale, weight_scale: input_scale, lambda input_scale, weight_scale: weight_scale)
        ),
        Mistake(
            _nothing_rounded, "The bias is as it was: nothing is rounded. The integer layer can add whole steps only."
        ),
        Mistake(_whole_numbers, "You round the bias itself. Round how many steps it has: bias / step."),
        Mistake(_never_divided, "You round the bias itself. Round how many steps it has: bias / step."),
        Mistake(_upside_down, "It is the other way round: bias divided by the step is rounded, then multiplied by it."),
        Mistake(_what_is_lost, "That is what rounding takes away. Wanted is what is left: the rounded bias."),
    ),
    hints=(
        "What is one unit of the accumulator worth, if inputs are worth `input_scale` and weights `weight_scale`?",
        "A product of codes is worth the product of the scales. How many such steps is `bias`, in whole numbers?",
        "`step = input_scale * weight_scale` has an entry for each output. `np.rint` counts the steps; "
        "what you return is in the unit of `bias` again.",
    ),
    consequence=_beside_the_integers,
)


# 06.C two bits from a thousand digits

_TARGET = 96.3
_TEST = 10_000
_LAYERS = ("linear1", "linear2", "linear3")


def two_bits(model, images, labels):
    import torch

    from qlearn import nn

    ternary = QuantConfig(
        bits=2,
        symmetric=True,
        granularity=PerAxis(0),
        method="mse",
    )
    network = nn.prepare_qat(model, ternary, None, learned_step_size=True)
    network.train()
    with torch.no_grad():
        wanted = model(images)  # ten logits say more than one label
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(15):
        for batch in torch.randperm(1000, generator=order).split(100):
            miss = network(images[batch]) - wanted[batch]
            optimizer.zero_grad()
            (miss**2).mean().backward()
            optimizer.step()
    return network.eval()


def _rounded_parts(network):
    """(ŵ as exact as its codes and scales are, bias) of each layer, or a sentence about what is wrong with one."""
    import torch

    parts = []
    shapes = [(100, 784), (100, 100), (10, 100)]
    for name, shape in zip(_LAYERS, shapes, strict=True):
        try:
            layer = network.get_submodule(name)
            weight, bias = (
                torch.as_tensor(part).detach().cpu().double().numpy() for part in (layer.weight, layer.bias)
            )
        except (AttributeError, TypeError, ValueError):
            raise CannotBeJudged(
                f"return a network with layers {', '.join(_LAYERS)}, each with weight and bias; "
                f"{name} could not be read from a {type(network).__name__}."
            ) from None
        if weight.shape != shape or bias.shape != shape[:1]:
            raise CannotBeJudged(
                f"{name}: weight and bias have shapes {weight.shape} and {bias.shape}; wanted are {shape} and {shape[:1]}."
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise CannotBeJudged(f"{name} holds NaN or infinity.")
        scale = np.abs(weight).max(axis=1, keepdims=True)
        scale[scale == 0] = 1.0
        codes = np.rint(weight / scale)
        worst = np.abs(weight / scale - codes).max(axis=1)
        if (worst > 1e-3).any():
            row = int(worst.argmax())
            raise CannotBeJudged(
                f"row {row} of {name}.weight has {len(np.unique(weight[row]))} different values. Two bits are −s, 0 and "
                "s: are those the latent weights?"
            )
        parts.append((codes * scale, bias))
    return parts


def judge_two_bits(answer):
    """Read three matrices of −s, 0 and s from what an answer returns, and let them read all test digits."""
    from qlearn import nn

    data = datasets.mnist_arrays()
    inputs = nn.to_inputs(data.calibration.images)
    labels = np.array(data.calibration.labels)
    network = answer(copy.deepcopy(nn.load_trained("mlp")), inputs, _as_labels(labels))
    a = data.test.images.reshape(_TEST, -1).astype(np.float64) / 255
    for number, (weight, bias) in enumerate(_rounded_parts(network)):
        a = a @ weight.T + bias
        a = a if number == len(_LAYERS) - 1 else np.maximum(a, 0)
    percent = float(100 * np.mean(a.argmax(axis=1) == data.test.labels))
    # Two decimals are exact for 10,000 digits: what is shown and what is judged are the same number.
    return Score({"of 10,000 test digits": f"{percent:.2f} %"}, percent >= _TARGET)


def _as_labels(labels):
    import torch

    return torch.as_tensor(labels).long()


def _prepared(model, method, learned):
    from qlearn import nn

    return nn.prepare_qat(model, _two_bits(method), activations=None, learned_step_size=learned)


def _only_rounded(model, images, labels):
    return _prepared(model, "mse", False)


def _with_labels(method, learned):
    def answer(model, images, labels):
        from qlearn import nn

        network = _prepared(model, method, learned)
        nn.train(network, images, labels, epochs=5, progress=False)
        return network

    return answer


TWO_BITS = Challenge(
    id="06.C",
    target=f"two bits a weight, learnt from 1,000 digits: {_TARGET} % of the test digits or more.",
    solution=two_bits,
    judge=judge_two_bits,
    simple={
        "PTQ, MSE range": _only_rounded,
        "min-max, straight through, 5 epochs": _with_labels("min_max", False),
        "MSE start, learned scale, 5 epochs": _with_labels("mse", True),
    },
    hints=(
        "1,000 digits are soon known by heart, and more epochs on their labels do not help. "
        "Who else knows something about digits?",
        "The float network: its ten logits for a digit say more than a label, which classes are near and which are not.",
        "`nn.prepare_qat` with the MSE start, a loop with `torch.optim.Adam`, and as loss the squared difference between "
        "the logits of your network and those of `model`.",
    ),
)

EXERCISES = (STRAIGHT_THROUGH, SCALE_SLOPE, BIAS_ON_GRID)
CHALLENGES = (TWO_BITS,)
