"""Exercises of lesson 04, integer arithmetic."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.checking import Exercise, Mistake

# 04.1 the four terms


def correct_zero_points(raw, x, w, x_zero_point, w_zero_point):
    depth = x.shape[1]
    of_columns = x_zero_point * w.sum(axis=0)
    of_rows = w_zero_point * x.sum(axis=1, keepdims=True)
    return raw - of_columns - of_rows + depth * x_zero_point * w_zero_point


def _sums_exchanged(raw, x, w, x_zero_point, w_zero_point):
    depth = x.shape[1]
    of_columns = w_zero_point * w.sum(axis=0)
    of_rows = x_zero_point * x.sum(axis=1, keepdims=True)
    return raw - of_columns - of_rows + depth * x_zero_point * w_zero_point


def _depth_forgotten(raw, x, w, x_zero_point, w_zero_point):
    of_columns = x_zero_point * w.sum(axis=0)
    of_rows = w_zero_point * x.sum(axis=1, keepdims=True)
    return raw - of_columns - of_rows + x_zero_point * w_zero_point


def _no_last_term(raw, x, w, x_zero_point, w_zero_point):
    return raw - x_zero_point * w.sum(axis=0) - w_zero_point * x.sum(axis=1, keepdims=True)


def _last_term_subtracted(raw, x, w, x_zero_point, w_zero_point):
    return _no_last_term(raw, x, w, x_zero_point, w_zero_point) - x.shape[1] * x_zero_point * w_zero_point


def _whole_sums(raw, x, w, x_zero_point, w_zero_point):
    depth = x.shape[1]
    return raw - x_zero_point * w.sum() - w_zero_point * x.sum() + depth * x_zero_point * w_zero_point


def _images_as_depth(raw, x, w, x_zero_point, w_zero_point):
    return _no_last_term(raw, x, w, x_zero_point, w_zero_point) + x.shape[0] * x_zero_point * w_zero_point


def _sums_along_a_row(raw, x, w, x_zero_point, w_zero_point):
    last = x.shape[1] * x_zero_point * w_zero_point
    return raw - x_zero_point * w.sum(axis=0) - w_zero_point * x.sum(axis=1) + last


def _corrections_added(raw, x, w, x_zero_point, w_zero_point):
    return 2 * raw - _last_term_subtracted(raw, x, w, x_zero_point, w_zero_point)


@st.composite
def _products(draw):
    images, depth, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    x = draw(hnp.arrays(np.int64, (images, depth), elements=st.integers(0, 255)))
    w = draw(hnp.arrays(np.int64, (depth, outputs), elements=st.integers(0, 255)))
    return {
        "raw": x @ w,
        "x": x,
        "w": w,
        "x_zero_point": draw(st.integers(0, 255)),
        "w_zero_point": draw(st.integers(0, 255)),
    }


_X = np.array([[3, 0, 5], [10, 2, 7]], dtype=np.int64)
_W = np.array([[1, 4], [0, 6], [2, 9]], dtype=np.int64)

CORRECT_ZERO_POINTS = Exercise(
    id="04.1",
    solution=correct_zero_points,
    examples=(
        {"raw": _X @ _W, "x": _X, "w": _W, "x_zero_point": 3, "w_zero_point": 5},
        {"raw": _X @ _W, "x": _X, "w": _W, "x_zero_point": 3, "w_zero_point": 0},
    ),
    cases=_products(),
    mistakes=(
        Mistake(_sums_exchanged, "Each zero point meets the codes of the other factor: x_zero_point the sums over w."),
        Mistake(_depth_forgotten, "z_x · z_w is there once for each of the K products: multiply it by K."),
        Mistake(_no_last_term, "The fourth term is missing: minus times minus leaves K · z_x · z_w to be added."),
        Mistake(_last_term_subtracted, "The last term has the wrong sign: (−z_x) · (−z_w) is positive."),
        Mistake(
            _whole_sums, "You sum up whole matrices. Each output needs the sum over its own row and its own column."
        ),
        Mistake(_images_as_depth, "K is the number of products in one sum, x.shape[1], not the number of images."),
        Mistake(
            _sums_along_a_row,
            "The sums over x are one for each row of the result: keepdims=True makes them a column, (images, 1).",
        ),
        Mistake(_corrections_added, "The two strips are taken away: the terms with one zero point have a minus."),
    ),
    hints=(
        "Multiply out (x − z_x) · (w − z_w) for one pair of codes, then add up over K pairs.",
        "raw − x_zero_point · w.sum(axis=0) − w_zero_point · x.sum(axis=1, keepdims=True) + K · x_zero_point · w_zero_point.",
    ),
)


# 04.2 the bias on the accumulator's grid


def quantize_bias(bias, x_scale, w_scale):
    return np.rint(bias / (x_scale * w_scale)).astype(np.int32)


def _scale_of_weights(bias, x_scale, w_scale):
    return np.rint(bias / w_scale).astype(np.int32)


def _scale_of_inputs(bias, x_scale, w_scale):
    return np.rint(bias / x_scale).astype(np.int32)


def _multiplied(bias, x_scale, w_scale):
    return np.rint(bias * (x_scale * w_scale)).astype(np.int32)


def _eight_bits(bias, x_scale, w_scale):
    return np.clip(np.rint(bias / (x_scale * w_scale)), -128, 127).astype(np.int32)


def _cut_off(bias, x_scale, w_scale):
    return (bias / (x_scale * w_scale)).astype(np.int32)


def _not_cast(bias, x_scale, w_scale):
    return np.rint(bias / (x_scale * w_scale))


def _no_brackets(bias, x_scale, w_scale):
    return np.rint(bias / x_scale * w_scale).astype(np.int32)


_scales = st.integers(1, 64).map(lambda n: n / 256)

QUANTIZE_BIAS = Exercise(
    id="04.2",
    solution=quantize_bias,
    examples=(
        {"bias": np.array([0.5, -0.2, 0.03]), "x_scale": 1 / 64, "w_scale": 1 / 128},
        {"bias": np.array([1.7, -3.1]), "x_scale": 0.0625, "w_scale": 0.015625},
    ),
    cases=st.fixed_dictionaries(
        {
            "bias": hnp.arrays(np.float64, st.integers(1, 5), elements=st.integers(-400, 400).map(lambda n: n / 64)),
            "x_scale": _scales,
            "w_scale": _scales,
        }
    ),
    mistakes=(
        Mistake(
            _scale_of_weights, "That is the weights' scale. One step of the accumulator is worth x_scale · w_scale."
        ),
        Mistake(_scale_of_inputs, "That is the input's scale. One step of the accumulator is worth x_scale · w_scale."),
        Mistake(_multiplied, "Quantizing divides by the size of a step; you multiplied with it."),
        Mistake(_no_brackets, "a / b * c multiplies by c. Divide by the product: bias / (x_scale * w_scale)."),
        Mistake(_eight_bits, "You clamped to eight bits. The bias joins the accumulator, which has 32."),
        Mistake(_cut_off, "A cast cuts the fraction off. Round to the nearest integer first, with np.rint."),
        Mistake(_not_cast, "The values are right, but they are still floats: end with .astype(np.int32)."),
    ),
    hints=(
        "What is an accumulator of 1 worth, in real numbers?",
        "Divide by x_scale · w_scale, round with np.rint, cast to int32.",
    ),
)


# 04.3 a real factor as two integers


def multiplier_and_shift(factor):
    shift = 0
    while factor < 0.5:
        factor = factor * 2
        shift = shift + 1
    return round(factor * 2**31), shift


def _not_normalized(factor):
    return round(factor * 2**31), 0


def _one_too_far(factor):
    shift = 0
    while factor < 1:
        factor, shift = factor * 2, shift + 1
    return round(factor * 2**31), shift


def _shift_negative(factor):
    m, shift = multiplier_and_shift(factor)
    return m, -shift


def _bits_of_the_sign(factor):
    m, shift = multiplier_and_shift(factor)
    return m * 2, shift


def _thirty_bits(factor):
    shift = 0
    while factor < 0.5:
        factor, shift = factor * 2, shift + 1
    return round(factor * 2**30), shift


def _shift_of_everything(factor):
    m, shift = multiplier_and_shift(factor)
    return m, shift + 31


def _half_doubled(factor):
    shift = 0
    while factor <= 0.5:
        factor, shift = factor * 2, shift + 1
    return round(factor * 2**31), shift


def _cut_off_m(factor):
    shift = 0
    while factor < 0.5:
        factor, shift = factor * 2, shift + 1
    return int(factor * 2**31), shift


def _not_rounded(factor):
    shift = 0
    while factor < 0.5:
        factor, shift = factor * 2, shift + 1
    return factor * 2**31, shift


_ROUNDED = "m must be a whole number, the nearest one: round(factor * 2**31)."

MULTIPLIER_AND_SHIFT = Exercise(
    id="04.3",
    solution=multiplier_and_shift,
    examples=({"factor": 0.75}, {"factor": 0.3}, {"factor": 0.001}),
    cases=st.fixed_dictionaries({"factor": st.integers(1, 2**20 - 1).map(lambda n: n / 2**20)}),
    mistakes=(
        Mistake(
            _not_normalized,
            "A small factor leaves few bits of m in use. Double it until it is at least 0.5, and count.",
        ),
        Mistake(_one_too_far, "You doubled once too often: m must stay below 2³¹, so stop at 0.5, not at 1."),
        Mistake(_shift_negative, "Your shift counts the other way: each doubling adds one place to shift back later."),
        Mistake(_bits_of_the_sign, "m needs 32 bits like this, and int32 has 31 beside its sign: multiply by 2**31."),
        Mistake(_thirty_bits, "m must use all 31 bits: 2³⁰ ≤ m < 2³¹. Multiply by 2**31."),
        Mistake(
            _shift_of_everything,
            "The 31 places of m are taken back by the high multiply. The shift counts doublings only.",
        ),
        Mistake(_cut_off_m, _ROUNDED),
        Mistake(_not_rounded, _ROUNDED),
        Mistake(_half_doubled, "You double 0.5 as well, and m becomes 2³¹, one too large. Double while factor < 0.5."),
    ),
    hints=(
        "How often can you double 0.3 before it reaches 1? Which number is it then?",
        "While factor < 0.5: double it, and add 1 to shift. Then m = round(factor * 2**31).",
    ),
)


# 04.4 a shift that rounds


def rounding_shift(values, places):
    half = (1 << places) >> 1
    magnitude = (np.abs(values) + half) >> places
    return np.where(values < 0, -magnitude, magnitude)


def _floor(values, places):
    return values >> places


def _towards_zero(values, places):
    magnitude = np.abs(values) >> places
    return np.where(values < 0, -magnitude, magnitude)


def _half_up(values, places):
    return (values + ((1 << places) >> 1)) >> places


def _half_to_even(values, places):
    return np.rint(values / 2**places).astype(values.dtype)


def _sign_lost(values, places):
    return (np.abs(values) + ((1 << places) >> 1)) >> places


def _half_outwards(values, places):
    return (values + np.sign(values) * ((1 << places) >> 1)) >> places


def _in_floats(values, places):
    return (np.sign(values) * np.floor(np.abs(values) / 2**places + 0.5)).astype(values.dtype)


def _no_shift_of_zero(values, places):
    magnitude = (np.abs(values) + (1 << (places - 1))) >> places
    return np.where(values < 0, -magnitude, magnitude)


def _one_added(values, places):
    magnitude = (np.abs(values) + (1 << places)) >> places
    return np.where(values < 0, -magnitude, magnitude)


ROUNDING_SHIFT = Exercise(
    id="04.4",
    solution=rounding_shift,
    examples=(
        {"values": np.array([20, 24, 27, -20, -24, -27, 8, -8], dtype=np.int64), "places": 4},
        {"values": np.array([2**55 + 1, -(2**55) - 3], dtype=np.int64), "places": 1},
    ),
    cases=st.fixed_dictionaries(
        {
            "values": hnp.arrays(np.int64, st.integers(1, 6), elements=st.integers(-300, 300)),
            "places": st.integers(0, 6),
        }
    ),
    mistakes=(
        Mistake(_floor, "A bare shift rounds down: −20 >> 4 is −2. Add half a step before you shift."),
        Mistake(_towards_zero, "You cut the fraction off: 27 / 16 is nearer to 2. Add half a step before you shift."),
        Mistake(_half_up, "Your −24 / 16 became −1: a half goes up. Shift the magnitude, then put the sign back."),
        Mistake(
            _half_to_even,
            "8 / 16 became 0: np.rint sends halves to even numbers, and it needs a float. Stay in integers.",
        ),
        Mistake(_sign_lost, "The sign is gone: put it back with np.where(values < 0, -magnitude, magnitude)."),
        Mistake(
            _no_shift_of_zero, "With places = 0 there is no half: (1 << places) >> 1 is 0 there, 1 << −1 an error."
        ),
        Mistake(
            _half_outwards,
            "Half a step goes the right way, but >> rounds down: −28 >> 4 is −2. Shift the magnitude, then add the sign.",
        ),
        Mistake(_in_floats, "A float64 does not hold every integer beyond 2⁵³. Stay in integers."),
        Mistake(_one_added, "You add a whole step. Half a step is (1 << places) >> 1."),
    ),
    hints=(
        "A shift alone rounds down. What must be added first, so that 27 / 16 becomes 2? And what for −27?",
        "Work on np.abs(values): add (1 << places) >> 1, shift right by places, then put the sign back with np.where.",
    ),
)

EXERCISES = (CORRECT_ZERO_POINTS, QUANTIZE_BIAS, MULTIPLIER_AND_SHIFT, ROUNDING_SHIFT)
