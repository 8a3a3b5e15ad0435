"""Exercises of lesson 06, quantization-aware training."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.checking import Exercise, Mistake

_eighths = st.integers(-80, 80).map(lambda n: n / 8)
_few = st.integers(1, 4)


# 06.1 the straight-through gradient


def straight_through(x, scale, quant_min, quant_max, upstream):
    code = np.rint(x / scale)
    inside = (quant_min <= code) & (code <= quant_max)
    return upstream * inside


def _no_mask(x, scale, quant_min, quant_max, upstream):
    return upstream * np.ones_like(x)


def _true_slope(x, scale, quant_min, quant_max, upstream):
    return np.zeros_like(x)


def _mask_on_x(x, scale, quant_min, quant_max, upstream):
    return upstream * ((quant_min <= x) & (x <= quant_max))


def _without_the_ends(x, scale, quant_min, quant_max, upstream):
    code = np.rint(x / scale)
    return upstream * ((quant_min < code) & (code < quant_max))


def _before_rounding(x, scale, quant_min, quant_max, upstream):
    return upstream * ((quant_min <= x / scale) & (x / scale <= quant_max))


def _half_of_the_chain(x, scale, quant_min, quant_max, upstream):
    return straight_through(x, scale, quant_min, quant_max, upstream) / scale


def _upstream_forgotten(x, scale, quant_min, quant_max, upstream):
    return straight_through(x, scale, quant_min, quant_max, np.ones_like(x))


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


STRAIGHT_THROUGH = Exercise(
    id="06.1",
    solution=straight_through,
    examples=(
        {
            "x": np.array([-3.0, -0.6, 0.1, 0.5, 0.7, 4.0]),
            "scale": 0.5,
            "quant_min": -1,
            "quant_max": 1,
            "upstream": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        },
    ),
    cases=_gradients(),
    mistakes=(
        Mistake(_no_mask, "You let everything through. The clamp moves values beyond the last tick: their slope is 0."),
        Mistake(_true_slope, "That is the staircase's own slope, 0 everywhere. Nothing would ever learn."),
        Mistake(_mask_on_x, "You compare x with codes. Divide by scale and round first, then compare."),
        Mistake(_without_the_ends, "quant_min and quant_max are codes like all others: a value that gets them passes."),
        Mistake(
            _before_rounding,
            "You compare before rounding. x / scale = quant_max + 0.4 is rounded to quant_max, not clamped: it passes.",
        ),
        Mistake(
            _half_of_the_chain,
            "You divide by scale once too often: x / scale gives 1/scale, and the product with scale undoes that.",
        ),
        Mistake(_upstream_forgotten, "That is the slope alone. The chain rule multiplies it by upstream."),
    ),
    hints=(
        "Which values does the clamp move? What is the slope of what stays where it is, if rounding counts as a line?",
        "code = np.rint(x / scale); upstream where quant_min ≤ code ≤ quant_max, and 0 elsewhere.",
    ),
)


# 06.2 the slope of the scale


def scale_slope(x, scale, quant_max):
    v = x / scale
    inside = np.abs(v) <= quant_max
    return np.where(inside, np.rint(v) - v, np.sign(v) * quant_max)


def _nothing_outside(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, np.rint(v) - v, 0.0)


def _code_only(x, scale, quant_max):
    return np.clip(np.rint(x / scale), -quant_max, quant_max)


def _wrong_sign(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, v - np.rint(v), np.sign(v) * quant_max)


def _no_clamp(x, scale, quant_max):
    v = x / scale
    return np.rint(v) - v


def _always_up(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) <= quant_max, np.rint(v) - v, quant_max)


def _clamped_difference(x, scale, quant_max):
    v = x / scale
    return np.clip(np.rint(v), -quant_max, quant_max) - v


def _mask_after_rounding(x, scale, quant_max):
    v = x / scale
    code = np.rint(v)
    return np.where(np.abs(code) <= quant_max, code - v, np.sign(v) * quant_max)


def _error_in_x(x, scale, quant_max):
    return scale * scale_slope(x, scale, quant_max)


SCALE_SLOPE = Exercise(
    id="06.2",
    solution=scale_slope,
    examples=(
        {"x": np.array([-9.0, -0.6, 0.2, 0.4, 1.0, 9.0]), "scale": 0.5, "quant_max": 3},
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
            _nothing_outside,
            "A clipped value is quant_max · scale: it moves with scale. Its slope is quant_max, or −quant_max below.",
        ),
        Mistake(
            _code_only,
            "That is the code. Inside the range x / scale shrinks when scale grows, which takes x / scale away again.",
        ),
        Mistake(_wrong_sign, "Inside, the sign is the other way round: rint(x / scale) − x / scale."),
        Mistake(_no_clamp, "Outside the range the code is clamped: there the slope is quant_max or −quant_max."),
        Mistake(_always_up, "Below the range the code is −quant_max, and so is the slope."),
        Mistake(
            _clamped_difference,
            "Outside the range x takes no part any more: the slope is ±quant_max, without − x / scale.",
        ),
        Mistake(
            _mask_after_rounding,
            "That is the mask of 06.1. LSQ clamps first: a value is inside if |x / scale| ≤ quant_max, before rounding.",
        ),
        Mistake(_error_in_x, "That is x̂ − x inside the range. The slope is this divided by scale."),
    ),
    hints=(
        "Freeze the rounding residual r = rint(v) − v. How does scale · (x / scale + r) change with scale?",
        "Inside: rint(v) − v. Outside the value is scale · (±quant_max), so the slope is ±quant_max.",
    ),
)


# 06.3 a bias on the accumulator's grid


def bias_on_grid(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.rint(bias / step)


def _input_scale_forgotten(bias, input_scale, weight_scale):
    return weight_scale * np.rint(bias / weight_scale)


def _codes(bias, input_scale, weight_scale):
    return np.rint(bias / (input_scale * weight_scale))


def _integer_codes(bias, input_scale, weight_scale):
    return _codes(bias, input_scale, weight_scale).astype(np.int32)


def _cut_off(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.floor(bias / step)


def _one_step_for_all(bias, input_scale, weight_scale):
    step = input_scale * weight_scale.max()
    return step * np.rint(bias / step)


def _eight_bits(bias, input_scale, weight_scale):
    step = input_scale * weight_scale
    return step * np.clip(np.rint(bias / step), -127, 127)


@st.composite
def _biases(draw):
    n = draw(_few)
    return {
        "bias": draw(hnp.arrays(np.float64, n, elements=_eighths)),
        "input_scale": draw(st.sampled_from([0.25, 0.5])),
        "weight_scale": draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.125, 0.25, 0.75, 1.5]))),
    }


BIAS_ON_GRID = Exercise(
    id="06.3",
    solution=bias_on_grid,
    examples=(
        {"bias": np.array([0.3, -0.7]), "input_scale": 0.5, "weight_scale": np.array([0.25, 1.5])},
        {"bias": np.array([60.0]), "input_scale": 0.5, "weight_scale": np.array([0.25])},
    ),
    cases=_biases(),
    mistakes=(
        Mistake(
            _input_scale_forgotten,
            "The accumulator counts steps of input_scale · weight_scale: the input's scale belongs to it.",
        ),
        Mistake(_codes, "Those are the codes. The fake-quantized layer adds real numbers: multiply by the step again."),
        Mistake(
            _integer_codes, "Those are the codes. Real numbers are wanted: multiply by the step again, without cast."
        ),
        Mistake(_cut_off, "You cut off instead of rounding to the nearest step."),
        Mistake(_one_step_for_all, "Each output channel has its own weight_scale, and so its own step."),
        Mistake(_eight_bits, "A bias is an int32: it is not clamped to 8 bits."),
    ),
    hints=(
        "What is one unit of the accumulator worth, if inputs are worth input_scale and weights weight_scale?",
        "step = input_scale * weight_scale; round bias / step to whole numbers, and multiply by step.",
    ),
)

EXERCISES = (STRAIGHT_THROUGH, SCALE_SLOPE, BIAS_ON_GRID)
