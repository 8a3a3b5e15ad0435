"""Exercises of lesson 04, integer arithmetic."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlearn
from qlearn import datasets
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.exercises.integer_network import CODES, bias_codes, codes_off, digits_read, sums_of, to_codes
from qlearn.exercises.networks import DIGITS, mlp_accuracy
from qlearn.exercises.registers import Registers
from qlearn.exercises.watched import watch

_PRODUCTS = {"matmul", "dot", "vdot", "inner", "einsum", "tensordot", "matvec", "vecmat", "vecdot"}


_EVERY = 10  # digit only where loops are a likely answer, and slow


def _said(digits):
    return f"{digits:,} of {DIGITS:,} digits that it has not seen"


def _floats():
    return f"floats: {round(mlp_accuracy() * DIGITS / 100):,}"


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


def _outputs_as_depth(raw, x, w, x_zero_point, w_zero_point):
    return _no_last_term(raw, x, w, x_zero_point, w_zero_point) + w.shape[1] * x_zero_point * w_zero_point


def _size_as_depth(raw, x, w, x_zero_point, w_zero_point):
    return _no_last_term(raw, x, w, x_zero_point, w_zero_point) + x.size * x_zero_point * w_zero_point


def _only_of_weights(raw, x, w, x_zero_point, w_zero_point):
    return raw - x_zero_point * w.sum(axis=0)


def _only_of_inputs(raw, x, w, x_zero_point, w_zero_point):
    return raw - w_zero_point * x.sum(axis=1, keepdims=True)


def _only_the_corner(raw, x, w, x_zero_point, w_zero_point):
    return raw - x.shape[1] * x_zero_point * w_zero_point


def _axes_exchanged(raw, x, w, x_zero_point, w_zero_point):
    last = x.shape[1] * x_zero_point * w_zero_point
    return raw - x_zero_point * w.sum(axis=1) - w_zero_point * x.sum(axis=0, keepdims=True) + last


def _x_summed_over_images(raw, x, w, x_zero_point, w_zero_point):
    last = x.shape[1] * x_zero_point * w_zero_point
    return raw - x_zero_point * w.sum(axis=0) - w_zero_point * x.sum(axis=0, keepdims=True) + last


def _in_place(raw, x, w, x_zero_point, w_zero_point):
    raw += correct_zero_points(raw, x, w, x_zero_point, w_zero_point) - raw
    return raw


def _multiplies_again(function):
    """A complaint about a second product, by NumPy, or written out without a use for `raw`."""
    products = []

    def note(name, inputs, result):
        products.append(name)

    case = {"raw": _X @ _W + 1, "x": _X, "w": _W}  # no product of the two: whoever corrects it gives back the 1
    zero_points = {"x_zero_point": 3, "w_zero_point": 5}
    given_ = function(**{name: watch(array.copy(), note) for name, array in case.items()}, **zero_points)
    if _PRODUCTS.isdisjoint(products) and np.array_equal(given_, correct_zero_points(**case, **zero_points)):
        return ""
    return "you multiply matrices again. The product is there: correct `raw` with sums over rows and columns."


def _with_zero_points_in_the_weights(correct):
    def read_with(correction):
        def sums(layer, codes):
            x, w = codes.astype(np.int64), layer.w_codes.astype(np.int64)
            raw = qlearn.integer.matmul(x, w).astype(np.int64)
            acc = correction(raw, x, w, layer.x_zero_point, layer.w_zero_point)
            return acc + bias_codes(layer.bias, layer.x_scale, layer.w_scale)

        return digits_read(sums=sums, symmetric=False, every=_EVERY)

    read, raw = read_with(correct), read_with(lambda raw, *rest: raw)
    return (
        "Your correct_zero_points in all three layers of the network, whose weights have zero points here: it reads\n"
        f"{read} of {DIGITS // _EVERY} digits that it has not seen (with the raw products: {raw})."
    )


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
_W = np.array([[1, 4, 7, 3], [0, 6, 1, 8], [2, 9, 5, 5]], dtype=np.int64)

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
        Mistake(_outputs_as_depth, "K is the number of products in one sum, x.shape[1], not the number of outputs."),
        Mistake(_size_as_depth, "x.size counts the codes of all images. K is the length of one sum, x.shape[1]."),
        Mistake(
            _only_of_weights,
            "That is enough if w_zero_point is 0. Here it need not be: the strip with w_zero_point and the corner are missing.",
        ),
        Mistake(
            _only_of_inputs,
            "That is enough if x_zero_point is 0. Here it need not be: the strip with x_zero_point and the corner are missing.",
        ),
        Mistake(_only_the_corner, "That is the corner only. Two strips are missing, one for each zero point."),
        Mistake(
            _axes_exchanged,
            "Sum over K, the axis that x and w share: axis 1 of x, axis 0 of w. What is left has one entry a row, one a column.",
        ),
        Mistake(
            _x_summed_over_images, "You sum x over the images. Each image needs the sum over its own K codes: axis 1."
        ),
        Mistake(_in_place, "You write into raw: −= changes the caller's array. Return raw − … instead."),
    ),
    hints=(
        "Each term of the formula is one line. Which of them needs only the weights, and which only the inputs?",
        "Σ over k of w_k is one sum for each column of w: `w.sum(axis=0)`, shape (outputs,). What is the sum over x's k?",
        "The sums over x must be a column, `keepdims=True`, to meet the rows of `raw`. K is `x.shape[1]`. Then two minus, one plus.",
    ),
    forbidden=_multiplies_again,
    consequence=_with_zero_points_in_the_weights,
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


def _eight_bits(least):
    def clamped(bias, x_scale, w_scale):
        return np.clip(np.rint(bias / (x_scale * w_scale)), least, 127).astype(np.int32)

    return clamped


def _cut_off(bias, x_scale, w_scale):
    return (bias / (x_scale * w_scale)).astype(np.int32)


def _not_cast(bias, x_scale, w_scale):
    return np.rint(bias / (x_scale * w_scale))


def _no_brackets(bias, x_scale, w_scale):
    return np.rint(bias / x_scale * w_scale).astype(np.int32)


def _rounded_down(bias, x_scale, w_scale):
    return np.floor(bias / (x_scale * w_scale)).astype(np.int32)


def _cast_before_dividing(bias, x_scale, w_scale):
    return np.rint(np.rint(bias).astype(np.int32) / (x_scale * w_scale)).astype(np.int32)


def _scales_added(bias, x_scale, w_scale):
    return np.rint(bias / (x_scale + w_scale)).astype(np.int32)


def _own_scale(bias, x_scale, w_scale):
    return np.rint(bias / max(np.abs(bias).max() / 127, 1e-30)).astype(np.int32)


def _dequantized(bias, x_scale, w_scale):
    return np.rint(bias / (x_scale * w_scale)) * (x_scale * w_scale)


def _sixteen_bits(bias, x_scale, w_scale):
    return np.rint(bias / (x_scale * w_scale)).astype(np.int16)


def _one_number(bias, x_scale, w_scale):
    return round(bias / (x_scale * w_scale))


def _eight_bits_wrapped(bias, x_scale, w_scale):
    return np.rint(bias / (x_scale * w_scale)).astype(np.int8)


def _a_list(bias, x_scale, w_scale):
    return [round(b / (x_scale * w_scale)) for b in bias]


def _near_enough(case, given_):
    """Halves may go either way."""
    real = case["bias"] / (case["x_scale"] * case["w_scale"])
    fits = isinstance(given_, np.ndarray) and given_.dtype == np.int32 and given_.shape == real.shape
    return bool(fits and np.all(np.abs(given_ - real) <= 0.5 + 1e-6))


def _dark_on_light(bias):
    """The sums of the network that reads digits turned dark on light: 1 − x for x in its first layer."""

    def sums(layer, codes):
        if len(layer.w_codes) != first.shape[1]:
            return sums_of(layer, codes, bias)
        acc = qlearn.integer.matmul(255 - codes.astype(np.int64), -layer.w_codes).astype(np.int64)
        return acc + bias(layer.bias + first.sum(axis=1), layer.x_scale, layer.w_scale)

    first = datasets.trained("mlp")["linear1.weight"]
    return sums


def _bias_in_the_network(quantize):
    read, wrong = (digits_read(sums=_dark_on_light(f)) for f in (quantize, _scale_of_weights))
    return (
        f"Your quantize_bias in the network that reads dark on light, on integers: {_said(read)}\n"
        f"(biases at the weights' scale: {wrong:,}; {_floats()})."
    )


_scales = st.integers(1, 64).map(lambda n: n / 256)

QUANTIZE_BIAS = Exercise(
    id="04.2",
    solution=quantize_bias,
    examples=(
        {"bias": np.array([0.5, -0.2, 0.03]), "x_scale": 1 / 64, "w_scale": 1 / 128},
        {"bias": np.array([1.7, -3.1]), "x_scale": 0.0625, "w_scale": 0.015625},
        {"bias": np.array([5.0, -20.0]), "x_scale": 1 / 128, "w_scale": 1 / 128},
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
        Mistake(
            _no_brackets, "That divides by x_scale only, and multiplies by w_scale. Divide by the product of the two."
        ),
        *(
            Mistake(_eight_bits(least), "You clamped to eight bits. The bias joins the accumulator, which has 32.")
            for least in (-128, -127)
        ),
        Mistake(_cut_off, "A cast cuts the fraction off. Round to the nearest integer first, with np.rint."),
        Mistake(_not_cast, "The values are right, but they are still floats: end with .astype(np.int32)."),
        Mistake(_rounded_down, "You round down. The nearest code may lie above: np.rint."),
        Mistake(_cast_before_dividing, "You round the real bias first, and nothing is left of 0.03. Divide first."),
        Mistake(_scales_added, "One step of the accumulator is the product of the two scales, not their sum."),
        Mistake(
            _own_scale,
            "You gave the bias a scale of its own. It is added to the accumulator, so it must be counted in its steps.",
        ),
        Mistake(_dequantized, "That is the real bias again, rounded. Return the codes: do not multiply back."),
        Mistake(_one_number, "round and int take one number, and bias is an array: np.rint, and astype(np.int32)."),
        Mistake(_a_list, "The values are right, but a list is no array: np.rint takes the whole bias at once."),
        Mistake(_eight_bits_wrapped, "Your codes wrapped: int8 ends at 127. The bias joins the accumulator: 32 bits."),
        Mistake(_sixteen_bits, "Your codes wrapped: a bias may need more than 16 bits. The accumulator has 32."),
    ),
    hints=(
        "What is an accumulator of 1 worth, in real numbers?",
        "It is a product of codes: one step of the input times one step of the weights. How many such steps make the bias?",
        "Quantize as ever: divide by the size of a step, `x_scale * w_scale`, take the nearest whole number, and cast last.",
    ),
    also_right=_near_enough,
    consequence=_bias_in_the_network,
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
    _, shift = multiplier_and_shift(factor)
    return round(factor * 2 ** (32 + shift)), shift


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


def _rounded_up(factor):
    m, shift = _not_rounded(factor)
    return -int(-m // 1), shift


def _counted_once_more(factor):
    m, shift = multiplier_and_shift(factor)
    return m, shift + 1


def _rounded_first(factor):
    m, shift = round(factor * 2**31), 0
    while m < 2**30:
        m, shift = m * 2, shift + 1
    return m, shift


def _exchanged(factor):
    return multiplier_and_shift(factor)[::-1]


def _shift_as_a_factor(factor):
    m, shift = multiplier_and_shift(factor)
    return m, 2**shift


def _doubled_not_counted(factor):
    shift = 0
    while factor < 0.5:
        factor, shift = factor * 2, 1
    return round(factor * 2**31), shift


def _of_the_factor_itself(factor):
    _, shift = multiplier_and_shift(factor)
    return round(factor * 2**31), shift


def _halves(factor):
    shift = 0
    while factor > 0.5:
        factor, shift = factor / 2, shift + 1
    return round(factor * 2**31), shift


def _doubled_once(factor):
    shift = 0
    if factor < 0.5:
        factor, shift = factor * 2, 1
    return round(factor * 2**31), shift


def _not_counted(factor):
    m, _ = multiplier_and_shift(factor)
    return m, 0


def _always_31(factor):
    return round(factor * 2**31), 31


def _is_no_integer(function):
    values = function(0.3)
    if all(isinstance(value, (int, np.integer)) for value in values):
        return ""
    kind = next(type(value).__name__ for value in values if not isinstance(value, (int, np.integer)))
    return f"one of the two is a {kind}. A shift takes integers only: round(…) gives one, int(…) makes one of a whole float."


def _fixed_point_in_the_network(to_integers):
    def rescale(sums, factor):
        m, shift = map(int, to_integers(factor))
        return (sums * m + (1 << (30 + shift))) >> (31 + shift)

    power = codes_off(_power_of_two)
    return (
        f"Your m and shift in the network, no float between pixels and digit: {_said(digits_read(rescale))}.\n"
        f"{codes_off(rescale):,} of {CODES:,} codes are not the nearest ones (with the nearest power of two as factor: {power:,})."
    )


_ROUNDED = "m must be a whole number, the nearest one: round(factor * 2**31)."

MULTIPLIER_AND_SHIFT = Exercise(
    id="04.3",
    solution=multiplier_and_shift,
    examples=({"factor": 0.75}, {"factor": 0.3}, {"factor": 0.001}, {"factor": 0.1}, {"factor": 0.5}),
    cases=st.fixed_dictionaries({"factor": st.integers(1, 10**6 - 1).map(lambda n: n / 10**6)}),
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
        Mistake(_rounded_up, _ROUNDED),
        Mistake(_halves, "You halve a factor that is below 1 as it is. Double it until it is at least 0.5."),
        Mistake(
            _counted_once_more,
            "m is right, and your shift is one too large: the doubling ends as soon as the factor is at least 0.5.",
        ),
        Mistake(_rounded_first, "You round first, and doubling then doubles the error. Double first, and round last."),
        Mistake(_exchanged, "Both are right, in the other order: m first, then the shift."),
        Mistake(_shift_as_a_factor, "The shift is a number of bits: how often you doubled, not by how much in all."),
        Mistake(_doubled_not_counted, "Your shift stays at 1: add 1 to it with each doubling."),
        Mistake(
            _of_the_factor_itself,
            "Your shift is right, but m was made of the factor as it came. Use what it is after the doublings.",
        ),
        Mistake(_doubled_once, "You double once at most. A small factor needs it more often: while, not if."),
        Mistake(_not_counted, "m is right, and your shift stays 0: add 1 to it with each doubling."),
        Mistake(
            _always_31,
            "The 31 places of m are taken back anyway. The shift says how often you doubled before that.",
        ),
    ),
    hints=(
        "How often can you double 0.3 before it reaches 1? Which number is it then?",
        "A loop: as long as the factor is below 0.5, double it and count. The count is the shift.",
        "What the doublings leave lies in 0.5 … 1. Times `2**31` it fills 31 bits; `round` makes a Python integer of it.",
    ),
    forbidden=_is_no_integer,
    consequence=_fixed_point_in_the_network,
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


def _half_a_float(values, places):
    magnitude = (np.abs(values) + 2 ** (places - 1)) >> places
    return np.where(values < 0, -magnitude, magnitude)


def _one_added(values, places):
    magnitude = (np.abs(values) + (1 << places)) >> places
    return np.where(values < 0, -magnitude, magnitude)


def _half_down(values, places):
    return -((-values + ((1 << places) >> 1)) >> places)


def _without_half_at_zero(values, places):
    half = (1 << places) >> 1
    return np.where(values < 0, (values + half - 1) >> places, (values + half) >> places)


def _places_as_divisor(values, places):
    return (np.sign(values) * ((np.abs(values) + places // 2) // max(places, 1))).astype(values.dtype)


def _half_of_places(values, places):
    magnitude = (np.abs(values) + places // 2) >> places
    return np.where(values < 0, -magnitude, magnitude)


def _cast_of_a_quotient(values, places):
    return (values / 2**places).astype(values.dtype)


def _if_for_arrays(values, places):
    return -rounding_shift(-values, places) if values < 0 else rounding_shift(values, places)


def _left(values, places):
    return values << places


def _sign_turned(values, places):
    return np.where(values > 0, -1, 1) * rounding_shift(np.abs(values), places)


def _as_floats(values, places):
    return np.sign(values) * np.floor(np.abs(values) / 2**places + 0.5)


def _uses_floats(function):
    kinds = set()

    def note(name, inputs, result):
        kinds.update(
            np.asarray(value).dtype.kind for value in (*inputs, result) if isinstance(value, (np.ndarray, np.generic))
        )

    function(values=watch(np.array([20, -24]), note), places=4)
    return "you go through floats, which the chip does not have. Add, shift and compare only." if "f" in kinds else ""


def _in_two_roundings(shift_right):
    def rescale(sums, factor):
        m, places = qlearn.integer.quantize_multiplier(factor)
        high = (sums * m + 2**30) >> 31
        return shift_right(high.reshape(-1), places).reshape(high.shape)  # one axis, as in the examples: a loop will do

    return rescale


def _shift_in_the_network(shift_right):
    mine, bare = _in_two_roundings(shift_right), _in_two_roundings(_floor)
    return (
        f"Your rounding_shift in the network, no float between pixels and digit: {_said(digits_read(mine))}.\n"
        f"{codes_off(mine):,} of {CODES:,} codes are not the nearest ones (with a bare >>: {codes_off(bare):,})."
    )


ROUNDING_SHIFT = Exercise(
    id="04.4",
    solution=rounding_shift,
    examples=(
        {"values": np.array([20, 24, 27, -20, -24, -27, 8, -8, 31], dtype=np.int64), "places": 4},
        {"values": np.array([2**55 + 1, -(2**55) - 3], dtype=np.int64), "places": 1},
    ),
    cases=st.fixed_dictionaries(
        {
            "values": hnp.arrays(np.int64, st.integers(1, 6), elements=st.integers(-300, 300)),
            "places": st.integers(0, 6),
        }
    ),
    mistakes=(
        Mistake(_half_of_places, "places is a number of bits. Half a step is half of 2 ** places: (1 << places) >> 1."),
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
        Mistake(_half_a_float, "With places = 0, 2 ** (places - 1) is 0.5, a float. (1 << places) >> 1 is 0 there."),
        Mistake(
            _half_outwards,
            "Half a step goes the right way, but >> rounds down: −28 >> 4 is −2. Shift the magnitude, then add the sign.",
        ),
        Mistake(_in_floats, "A float64 does not hold every integer beyond 2⁵³. Stay in integers."),
        Mistake(_one_added, "You add a whole step. Half a step is (1 << places) >> 1."),
        Mistake(_half_down, "Your 24 / 16 became 1: halves go away from zero, 1.5 to 2 and −1.5 to −2."),
        Mistake(_without_half_at_zero, "With places = 0 nothing is divided, and your −1 changes negative values."),
        Mistake(_places_as_divisor, "You divide by places. Divide by 2 to the power of places: shift by places bits."),
        Mistake(
            _cast_of_a_quotient,
            "A cast cuts the fraction off, and a float does not hold every integer beyond 2⁵³. Add half a step, then shift.",
        ),
        Mistake(
            _if_for_arrays,
            "values is an array, and an if cannot decide for each of its entries. np.where can.",
        ),
        Mistake(_left, "<< multiplies by 2 to the power of places. To divide, shift to the right: >>."),
        Mistake(_sign_turned, "The signs are turned round: negative values must stay negative."),
        Mistake(_as_floats, "Those are floats. Add half a step and shift: then everything stays an integer."),
    ),
    hints=(
        "A shift alone rounds down. What must be added first, so that 27 / 16 becomes 2? And what for −27?",
        "Half a step is `(1 << places) >> 1`, which is 0 for places = 0. It works for positive values. Can you make all of them positive?",
        "Add half a step to `np.abs(values)` and shift that to the right. Then give it the sign back, with `np.where` on `values < 0`.",
    ),
    forbidden=_uses_floats,
    consequence=_shift_in_the_network,
)


# 04.C requantize in 32-bit registers

_MOST_OFF = 100
_NO_DIVISION = {"divide", "floor_divide", "remainder", "fmod", "divmod", "power", "float_power"}
_LARGEST = 2**31 - 1


def _keep_to_the_registers(name, inputs, result):
    """Raise at the first operation that this chip does not have."""
    if name in _NO_DIVISION:
        raise CannotBeJudged(f"np.{name}: this chip cannot divide. A division by a power of two is a shift, >>.")
    for what, value in [*(("takes", value) for value in inputs), ("gives", result)]:
        if not isinstance(value, (np.ndarray, np.generic, int, float)) or np.size(value) == 0:
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "biu":
            raise CannotBeJudged(f"np.{name} {what} {array.dtype}, and this chip has integers only.")
        low, high = int(array.min()), int(array.max())
        if high > _LARGEST or low < -_LARGEST - 1:
            worst = max(low, high, key=abs)
            raise CannotBeJudged(
                f"np.{name} {what} {worst:,}, which needs {worst.bit_length() + 1} bits, and a register has 32."
            )


def _judge_requantize(answer):
    def rescale(sums, factor):
        given_ = answer(Registers(sums.astype(np.int64), _keep_to_the_registers), factor)
        if not isinstance(given_, Registers):
            raise CannotBeJudged(
                f"your result, of type {type(given_).__name__}, was not computed on `sums` as a whole: use operators and "
                "NumPy's functions on it."
            )
        codes = given_.held()
        if codes.shape != sums.shape or codes.dtype.kind not in "iu":
            raise CannotBeJudged(
                f"the codes must be integers of shape {sums.shape}; yours are {codes.dtype} {codes.shape}."
            )
        if codes.min() < 0 or codes.max() > 255:
            raise CannotBeJudged(f"codes are 0 … 255; yours go from {codes.min()} to {codes.max()}.")
        return codes

    off = codes_off(rescale)
    columns = {"wrong codes": f"{off:,}", "digits read": f"{digits_read(rescale):,}"}
    return Score(columns, off <= _MOST_OFF)


def _power_of_two(sums, factor):
    places = round(-np.log2(factor))
    return to_codes((sums + (1 << (places - 1))) >> places)


def _of_bits(bits):
    def simple(sums, factor):
        m, shift = multiplier_and_shift(factor)
        m, places = round(m / 2 ** (31 - bits)), bits + shift
        return to_codes((sums * m + (1 << (places - 1))) >> places)

    return simple


def requantize_in_32_bits(sums, factor):
    m, shift = qlearn.integer.quantize_multiplier(factor)
    m, places = round(m / 2**12), 19 + shift  # m of 19 bits
    sums = np.clip(sums, 0, int(256 / factor))  # beyond: 0 or 255 anyway
    high, low = sums >> 12, sums & 4095  # sums = high * 4096 + low
    product = high * m + (low * m >> 12)  # sums * m / 4096, cut off
    half = 1 << (places - 13)
    return np.clip((product + half) >> (places - 12), 0, 255)


REQUANTIZE = Challenge(
    id="04.C",
    target=f"at most {_MOST_OFF} of {CODES:,} codes other than the nearest ones, and nothing wider than 32 bits.",
    solution=requantize_in_32_bits,
    judge=_judge_requantize,
    simple={
        "a shift alone": _power_of_two,
        "m of 4 bits": _of_bits(4),
        "m of 8 bits": _of_bits(8),
        "m of 11 bits, the most that fits": _of_bits(11),
    },
    hints=(
        "The sums of the first layer need 20 bits beside the sign, so 11 are left for m. Which sums need not be multiplied at all?",
        "Clamping the sums first gains one bit of m. For more, multiply twice: either by two small factors, or two parts of the sums.",
        "`high = sums >> 12` and `low = sums & 4095` are short enough for an m of 19 bits. Bring `low * m` to the unit of `high * m`, add, and round once.",
    ),
)

EXERCISES = (CORRECT_ZERO_POINTS, QUANTIZE_BIAS, MULTIPLIER_AND_SHIFT, ROUNDING_SHIFT)
CHALLENGES = (REQUANTIZE,)
