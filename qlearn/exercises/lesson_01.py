"""Exercises of lesson 01, quantization from scratch."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.exercises.networks import mlp_accuracy, with_weights

_values = st.integers(-4000, 4000).map(lambda n: n / 8)  # exact in binary, many halves among them


def _no_tie(steps):
    """Whether no value lies halfway between two codes, where the last bit of the scale would decide."""
    return bool(np.all(np.abs(np.abs(steps - np.floor(steps)) - 0.5) > 1e-6))


_vectors = hnp.arrays(np.float64, st.integers(1, 6), elements=_values)


# 01.1 clamp, then cast


def to_uint8(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _cast_first(values):
    return np.clip(np.rint(values).astype(np.int64).astype(np.uint8), 0, 255)


def _only_cast(values):
    return values.astype(np.int64).astype(np.uint8)


def _no_rounding(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def _half_up(values):
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _clamp_in_place(values):
    values[values < 0] = 0
    values[values > 255] = 255
    return np.rint(values).astype(np.uint8)


def _not_cast(values):
    return np.clip(np.rint(values), 0, 255)


def _cast_too_wide(values):
    return np.clip(np.rint(values), 0, 255).astype(np.int64)


def _absolute(values):
    return np.clip(np.rint(np.abs(values)), 0, 255).astype(np.uint8)


def _lower_end_open(values):
    return np.minimum(np.rint(values), 255).astype(np.int64).astype(np.uint8)


def _upper_end_open(values):
    return np.maximum(np.rint(values), 0).astype(np.int64).astype(np.uint8)


def _one_too_many(values):
    return np.clip(np.rint(values), 0, 256).astype(np.int64).astype(np.uint8)


def _one_too_few(values):
    return np.clip(np.rint(values), 0, 254).astype(np.uint8)


def _rounded_up(values):
    return np.clip(np.ceil(values), 0, 255).astype(np.uint8)


def _cast_to_signed(values):
    return np.clip(np.rint(values), 0, 255).astype(np.int64).astype(np.int8)


def _limits_of_int8(values):
    return np.clip(np.rint(values), -128, 127).astype(np.int8)


TO_UINT8 = Exercise(
    id="01.1",
    solution=to_uint8,
    examples=(
        {"values": np.array([-3.2, 0.0, 99.7, 255.0, 300.0])},
        {"values": np.array([0.5, 1.5, 2.5])},
        {"values": np.array([7.25, 8.75])},
    ),
    cases=st.fixed_dictionaries({"values": _vectors}),
    mistakes=(
        Mistake(_cast_first, "Your codes wrapped around: clamp before the cast, while 300 is still 300."),
        Mistake(_only_cast, "A bare cast cuts the fraction off and wraps around: round first, then clamp, then cast."),
        Mistake(
            _no_rounding,
            "A cast cuts the fraction off, as np.floor does. Round to the nearest integer instead, with np.rint.",
        ),
        Mistake(_rounded_up, "You round up. The nearest integer is np.rint(values)."),
        Mistake(_cast_to_signed, "int8 ends at 127, so 255 has wrapped. Cast to np.uint8."),
        Mistake(_limits_of_int8, "These are the limits of int8. A uint8 holds 0 … 255."),
        Mistake(_half_up, "You round halves up. np.rint rounds them to the even neighbour: 0.5 to 0, 1.5 to 2."),
        Mistake(_clamp_in_place, "values[...] = ... writes into the caller's array. np.clip gives you a new one."),
        Mistake(_not_cast, "The values are right, but they are still floats: end with .astype(np.uint8)."),
        Mistake(
            _cast_too_wide, "The values are right, in a wider type of integers than a code needs: cast to np.uint8."
        ),
        Mistake(_absolute, "You take the absolute value: −3.2 is not 3.2. What lies below 0 becomes 0."),
        Mistake(_lower_end_open, "Below 0 your codes still wrap around: clamp both ends."),
        Mistake(_upper_end_open, "Above 255 your codes still wrap around: clamp both ends."),
        Mistake(_one_too_many, "You clamp at 256, which is no code: uint8 ends at 255, and 256 wraps to 0."),
        Mistake(_one_too_few, "The largest of 256 codes that start at 0 is 255."),
    ),
    hints=(
        "What does a cast from 300.0 to `uint8` do, and what would you rather have?",
        "Three things are to be done: round, clamp, cast. Which must be the last, so that nothing is left to wrap?",
        "`np.rint` rounds, `np.clip` clamps at two ends, `.astype` casts. Each takes what the one before it gives.",
    ),
)


# 01.2 symmetric quantization


def quantize_symmetric(x, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.max(np.abs(x)) / quant_max
    codes = np.clip(np.rint(x / scale), -quant_max, quant_max).astype(np.int8)
    return codes, scale


def _largest_not_absolute(x, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.max(x) / quant_max
    return np.clip(np.rint(x / scale), -quant_max, quant_max).astype(np.int8), scale


def _unsigned_limit(x, bits):
    quant_max = 2**bits - 1
    scale = np.max(np.abs(x)) / quant_max
    return np.clip(np.rint(x / scale), -quant_max, quant_max).astype(np.int8), scale


def _whole_signed_range(x, bits):
    scale = np.max(np.abs(x)) / 2 ** (bits - 1)
    codes = np.clip(np.rint(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8)
    return codes, scale


def _half_a_step_too_fine(x, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.max(np.abs(x)) / (quant_max + 0.5)
    return np.clip(np.rint(x / scale), -quant_max, quant_max).astype(np.int8), scale


def _eight_bits(x, bits):
    return quantize_symmetric(x, 8)


def _rounded_down(x, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.max(np.abs(x)) / quant_max
    return np.clip(np.floor(x / scale), -quant_max, quant_max).astype(np.int8), scale


def _not_cast_to_int8(x, bits):
    codes, scale = quantize_symmetric(x, bits)
    return codes.astype(np.float64), scale


def _cast_to_int64(x, bits):
    codes, scale = quantize_symmetric(x, bits)
    return codes.astype(np.int64), scale


def _cast_to_uint8(x, bits):
    codes, scale = quantize_symmetric(x, bits)
    return codes.astype(np.uint8), scale


def _without_rounding(x, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.max(np.abs(x)) / quant_max
    return np.clip(x / scale, -quant_max, quant_max).astype(np.int8), scale


def _range_over_steps(x, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = (np.max(x) - np.min(x)) / (2 * quant_max)
    return np.clip(np.rint(x / scale), -quant_max, quant_max).astype(np.int8), scale


def _scale_of_codes(x, bits):
    codes, scale = quantize_symmetric(x, bits)
    return codes, scale * (2 ** (bits - 1) - 1)


def _other_order(x, bits):
    codes, scale = quantize_symmetric(x, bits)
    return scale, codes


def _reciprocal_scale(x, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = quant_max / np.max(np.abs(x))
    return np.clip(np.rint(x * scale), -quant_max, quant_max).astype(np.int8), scale


def _other(scale_of, limits=lambda quant_max: (-quant_max, quant_max), to_codes=np.rint):
    """Symmetric quantization with another scale, other limits or another rounding."""

    def wrong(x, bits):
        scale = scale_of(x, bits)
        with np.errstate(all="ignore"):
            codes = np.clip(to_codes(x / scale), *limits(2 ** (bits - 1) - 1))
        return codes.astype(np.int64).astype(np.int8), scale

    return wrong


def _right_scale(x, bits):
    return np.max(np.abs(x)) / (2 ** (bits - 1) - 1)


def _every_code(quant_max):
    return -quant_max - 1, quant_max


def _no_limits(quant_max):
    return -np.inf, np.inf


def _times_the_scale(x, bits):
    scale = _right_scale(x, bits)
    quant_max = 2 ** (bits - 1) - 1
    return np.clip(np.rint(x * scale), -quant_max, quant_max).astype(np.int8), scale


def _x_hat(x, bits):
    codes, scale = quantize_symmetric(x, bits)
    return codes * scale, scale


def _x_hat_cast(x, bits):
    x_hat, scale = _x_hat(x, bits)
    return x_hat.astype(np.int8), scale


def _with_a_zero_point(x, bits):
    scale = (x.max() - x.min()) / (2**bits - 1)
    return np.clip(np.rint(x / scale) + np.rint(-x.min() / scale), 0, 2**bits - 1).astype(np.uint8), scale


def _caret(x, bits):
    quant_max = 2 ^ (bits - 1) - 1
    with np.errstate(all="ignore"):
        scale = np.max(np.abs(x)) / quant_max
        return np.clip(np.rint(x / scale), -quant_max, quant_max).astype(np.int8), scale


def _no_tie_among(case: Mapping[str, Any]) -> bool:
    """Whether each value lies clearly nearer to one tick than to the next."""
    x, quant_max = case["x"], 2 ** (case["bits"] - 1) - 1
    return _no_tie(x * quant_max / np.abs(x).max())


def _symmetric_in_the_network(quantize_symmetric):
    def changed(bits):
        def change(w):
            codes, scale = quantize_symmetric(w.ravel().astype(np.float64), bits)
            return (codes * scale).reshape(w.shape)

        return change

    found = ", ".join(f"{with_weights(changed(bits)):.1f} % at {bits} bits" for bits in (8, 4, 3, 2))
    return (
        f"Your `quantize_symmetric` on the weights of lesson 00's network (float32: {mlp_accuracy():.1f} %): {found}. "
        "At 2 bits only the codes −1, 0 and 1 are left."
    )


UNSIGNED = "2**bits − 1 counts unsigned codes. A sign takes one bit: the largest code is 2**(bits − 1) − 1."
ONE_CODE_FEWER = "You divide by 2**(bits − 1). The positive side has one code fewer: 2**(bits − 1) − 1."
WHOLE_RANGE = "You divide the whole range, max − min. Symmetric codes reach max|x| on both sides."
BY_127 = "You divide by the number of codes halved, 127.5; the largest value should get code 127, so divide by 127."

QUANTIZE_SYMMETRIC = Exercise(
    id="01.2",
    solution=quantize_symmetric,
    examples=(
        {"x": np.array([-4.0, 0.0, 1.0, 3.0]), "bits": 8},
        {"x": np.array([-1.5, 0.25, 6.0]), "bits": 3},
        {"x": np.array([-2.0, 2.0, 4.0]), "bits": 2},  # two ties, exact in binary
    ),
    cases=st.fixed_dictionaries(
        {"x": _vectors.filter(lambda x: x.max() > 0), "bits": st.integers(2, 8)},
    ).filter(_no_tie_among),
    mistakes=(
        Mistake(_largest_not_absolute, "Your scale looks at the largest value only; −4 is further from 0 than 3 is."),
        Mistake(_unsigned_limit, UNSIGNED),
        Mistake(_other(lambda x, bits: np.max(np.abs(x)) / (2**bits - 1)), UNSIGNED),
        Mistake(_whole_signed_range, ONE_CODE_FEWER),
        *(
            Mistake(_other(lambda x, bits: np.max(np.abs(x)) / 2 ** (bits - 1), limits), ONE_CODE_FEWER)
            for limits in (lambda quant_max: (-quant_max, quant_max), _no_limits)
        ),
        Mistake(_half_a_step_too_fine, BY_127),
        *(
            Mistake(_other(lambda x, bits: np.max(np.abs(x)) / (2 ** (bits - 1) - 0.5), limits), BY_127)
            for limits in (_every_code, _no_limits)
        ),
        Mistake(
            _reciprocal_scale,
            "Your scale is upside down. It is the size of one step: max|x| divided by the largest code.",
        ),
        Mistake(_eight_bits, "127 is the largest code of 8 bits. For other widths it is 2**(bits − 1) − 1."),
        Mistake(_rounded_down, "You round down. Divide with / and round to the nearest integer with np.rint."),
        Mistake(_not_cast_to_int8, "The codes are right, but they are still floats: end with .astype(np.int8)."),
        Mistake(
            _cast_to_int64,
            "The codes are right, in a type eight times as wide as they need: end with .astype(np.int8).",
        ),
        Mistake(_cast_to_uint8, "uint8 has no negative codes, so yours have wrapped: symmetric codes need int8."),
        Mistake(_without_rounding, "A cast cuts the fraction off. Round to the nearest integer first, with np.rint."),
        Mistake(_range_over_steps, WHOLE_RANGE),
        Mistake(_other(lambda x, bits: (np.max(x) - np.min(x)) / (2**bits - 1)), WHOLE_RANGE),
        Mistake(
            _other(lambda x, bits: np.max(np.abs(x)) / 2 ** (bits - 1) - 1),
            "Brackets: / comes before −, so you divide by 2**(bits − 1) and take 1 off the scale.",
        ),
        Mistake(
            _other(_right_scale, to_codes=lambda steps: np.floor(steps + 0.5)),
            "You round halves up. np.rint rounds them to the even neighbour: 0.5 to 0.",
        ),
        Mistake(
            _other(_right_scale, to_codes=lambda steps: np.sign(steps) * np.floor(np.abs(steps) + 0.5)),
            "You round halves away from 0. np.rint rounds them to the even neighbour: 0.5 to 0.",
        ),
        Mistake(
            _other(_right_scale, lambda quant_max: (0, quant_max)),
            "You clamp at 0, so that every negative value is lost. Symmetric codes begin at −quant_max.",
        ),
        Mistake(_times_the_scale, "You multiply by the scale. A code counts steps: x / scale."),
        Mistake(
            _with_a_zero_point,
            "That is the asymmetric way. Symmetric codes have a sign and no zero point: code 0 stands on 0.0.",
        ),
        Mistake(_caret, "In Python ^ is no power. The largest code is 2 ** (bits − 1) − 1."),
        Mistake(_x_hat, "These are x̂, the values that come back. Return the codes, and the scale."),
        Mistake(_x_hat_cast, "You multiply back before the cast. Return the codes themselves, and the scale."),
        Mistake(
            _scale_of_codes,
            "You return max|x|. The scale is the length of one step: max|x| divided by the largest code.",
        ),
        Mistake(_other_order, "Both results are right, in the other order: the codes first, then the scale."),
    ),
    hints=(
        "Which value must land on the outermost code? Which code is that, with one bit spent on the sign?",
        "The largest code is `2 ** (bits - 1) - 1`. The scale is the size of one step: the largest |x| shared out over that many.",
        "With `np.abs(x).max()` you have the largest |x|. Then it is exercise 01.1 with `x / scale`, other ends and `np.int8`.",
    ),
    consequence=_symmetric_in_the_network,
)


# 01.3 back to real numbers


def dequantize_uint8(codes, scale, zero_point):
    return scale * (codes.astype(np.float64) - zero_point)


def _zero_point_added(codes, scale, zero_point):
    return scale * codes.astype(np.float64) + zero_point


def _zero_point_kept(codes, scale, zero_point):
    return scale * codes.astype(np.float64) - zero_point


def _subtracted_in_uint8(codes, scale, zero_point):
    return scale * (codes - np.uint8(zero_point)).astype(np.float64)


def _cast_to_int8(codes, scale, zero_point):
    return scale * (codes.astype(np.int8).astype(np.float64) - zero_point)


def _divided(codes, scale, zero_point):
    return (codes.astype(np.float64) - zero_point) / scale


def _rounded_back(codes, scale, zero_point):
    return np.rint(dequantize_uint8(codes, scale, zero_point)).astype(np.int64)


def _zero_point_forgotten(codes, scale, zero_point):
    return scale * codes.astype(np.float64)


def _added_to_the_code(codes, scale, zero_point):
    return scale * (codes.astype(np.float64) + zero_point)


def _the_other_way_round(codes, scale, zero_point):
    return scale * (zero_point - codes.astype(np.float64))


def _cut_to_int(codes, scale, zero_point):
    return dequantize_uint8(codes, scale, zero_point).astype(np.int64)


def _quantized_again(codes, scale, zero_point):
    return codes.astype(np.float64) / scale + zero_point


def _divided_first(codes, scale, zero_point):
    return codes.astype(np.float64) / scale - zero_point


DEQUANTIZE = Exercise(
    id="01.3",
    solution=dequantize_uint8,
    examples=(
        {"codes": np.array([0, 64, 255], dtype=np.uint8), "scale": 0.5, "zero_point": 64},
        {"codes": np.array([3, 200], dtype=np.uint8), "scale": 0.25, "zero_point": 0},
    ),
    cases=st.fixed_dictionaries(
        {
            "codes": hnp.arrays(np.uint8, st.integers(1, 6)),
            "scale": st.integers(1, 64).map(lambda n: n / 16),
            "zero_point": st.integers(0, 255),
        }
    ),
    mistakes=(
        Mistake(
            _zero_point_added,
            "You add the zero point to real numbers. It is a code: subtract it from the codes, before scaling.",
        ),
        Mistake(
            _zero_point_kept,
            "You scale first and subtract a code from a real number. Subtract zero_point before you multiply.",
        ),
        Mistake(
            _subtracted_in_uint8, "The subtraction wrapped: in uint8, 0 − 64 is 192. Cast the codes to float first."
        ),
        Mistake(_cast_to_int8, "int8 ends at 127, so code 255 became −1. Cast the codes to float."),
        Mistake(_divided, "Quantizing divided by the scale; the way back multiplies."),
        Mistake(
            _rounded_back, "x̂ is a real number: what is between two whole numbers must stay there. Do not round it."
        ),
        Mistake(_cut_to_int, "x̂ is a real number: what is between two whole numbers must stay there. Do not cast it."),
        Mistake(_added_to_the_code, "Quantizing added the zero point; the way back subtracts it."),
        Mistake(_the_other_way_round, "Your signs are turned round: it is code − zero_point."),
        Mistake(
            _divided_first,
            "Quantizing divided, then added. Go back in the opposite order: subtract from the codes, then multiply.",
        ),
        Mistake(_quantized_again, "You divide and add, as quantizing does. The way back subtracts, then multiplies."),
        Mistake(_zero_point_forgotten, "The zero point is missing: code zero_point must come back as 0.0."),
    ),
    hints=(
        "Which code must come back as 0.0? And what does `uint8` do with 0 − 64?",
        "The formula is x̂ = scale · (code − zero_point). The difference may be negative, so compute it in a type that has a sign.",
        "`codes.astype(np.float64)` has one. The brackets of the formula say what comes first.",
    ),
)


# 01.4 the range must hold zero


def asymmetric_qparams_repaired(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**bits - 1)
    zero_point = int(np.rint(-lo / scale))
    return scale, zero_point


def _not_widened(lo, hi, bits):
    scale = (hi - lo) / (2**bits - 1)
    return scale, int(np.clip(np.rint(-lo / scale), 0, 2**bits - 1))


def _not_widened_not_clipped(lo, hi, bits):
    scale = (hi - lo) / (2**bits - 1)
    return scale, int(np.rint(-lo / scale))


def _only_lo_widened(lo, hi, bits):
    return _not_widened_not_clipped(min(lo, 0.0), hi, bits)


def _only_hi_widened(lo, hi, bits):
    return _not_widened_not_clipped(lo, max(hi, 0.0), bits)


def _one_step_too_many(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / 2**bits
    return scale, int(np.rint(-lo / scale))


def _zero_point_not_rounded(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**bits - 1)
    return scale, -lo / scale


def _truncated(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**bits - 1)
    return scale, int(-lo / scale)


def _symmetric_instead(lo, hi, bits):
    return max(abs(lo), abs(hi)) / (2 ** (bits - 1) - 0.5), 2 ** (bits - 1)


def _other_order_of_two(lo, hi, bits):
    scale, zero_point = asymmetric_qparams_repaired(lo, hi, bits)
    return zero_point, scale


def _no_whole_number(function):
    _, zero_point = function(-1.0, 3.0, 8)
    whole = isinstance(zero_point, (int, np.integer)) or getattr(zero_point, "dtype", np.dtype(float)).kind in "iu"
    return "" if whole else f"your zero point {zero_point!r} is a float. A code is a whole number: int(…)."


def _sign_lost(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**bits - 1)
    return scale, int(np.rint(lo / scale))


def _from_0(lo, hi, bits):
    return _not_widened_not_clipped(0.0, hi, bits)


def _from_0_widened(lo, hi, bits):
    return _not_widened_not_clipped(0.0, max(hi, 0.0), bits)


def _only_lo_widened_clipped(lo, hi, bits):
    return _not_widened(min(lo, 0.0), hi, bits)


def _only_hi_widened_clipped(lo, hi, bits):
    return _not_widened(lo, max(hi, 0.0), bits)


def _min_and_max_swapped(lo, hi, bits):
    return _not_widened_not_clipped(max(lo, 0.0), min(hi, 0.0), bits)


def _widened_too_late(lo, hi, bits):
    scale = (hi - lo) / (2**bits - 1)
    return scale, int(np.rint(-min(lo, 0.0) / scale))


def _signed_limit(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / max(2 ** (bits - 1) - 1, 1)
    return scale, int(np.rint(-lo / scale))


def _always_8_bits(lo, hi, bits):
    return asymmetric_qparams_repaired(lo, hi, 8)


def _zero_point_up(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**bits - 1)
    return scale, int(np.ceil(-lo / scale))


def _no_tie_between(case):
    """Whether 0.0 lies clearly nearer to one tick than to the next."""
    lo, hi = min(case["lo"], 0.0), max(case["hi"], 0.0)
    return _no_tie(-lo * (2 ** case["bits"] - 1) / (hi - lo))


LARGE = 20.0  # about 160 standard deviations of the layer's weights


def one_large_weight(w):
    """The first layer's weights, with one of pixel 0 made large: that corner is black in every image."""
    w = w.copy()
    w[0, 0] = LARGE
    return w


def _one_weight_in_the_network(asymmetric_qparams_repaired):
    def rounded(bits):
        def change(w):
            scale, zero_point = asymmetric_qparams_repaired(float(w.min()), float(w.max()), bits)
            codes = np.clip(np.rint(w / scale) + zero_point, 0, 2**bits - 1)
            return scale * (codes - zero_point)

        return change

    def spoilt(change):
        return with_weights(lambda w: change(one_large_weight(w) if w.shape[1] == 784 else w))

    return (
        f"Your ruler on the three layers, 4 bits: {with_weights(rounded(4)):.1f} % (float32: {mlp_accuracy():.1f} %). "
        f"With the one large weight: float32 {spoilt(lambda w: w):.1f} %, "
        + ", ".join(f"{bits} bits {spoilt(rounded(bits)):.1f} %" for bits in (8, 6, 4))
        + ". Your ruler now reaches up to 20. How many ticks are left for the other weights, between −1 and 1?"
    )


FROM_0 = "Your range begins at 0 whatever lo is. Values below 0 need ticks too: lo stays where it is if it is negative."
HI_TOO = "You widen lo only. A range such as [−11, −10] needs hi widened to 0."
LO_TOO = "You widen hi only. A range such as [10, 11] needs lo widened to 0."

_ends = st.tuples(_values, _values).map(sorted).filter(lambda ends: ends[0] < ends[1])

ASYMMETRIC_QPARAMS = Exercise(
    id="01.4",
    solution=asymmetric_qparams_repaired,
    examples=(
        {"lo": 10.0, "hi": 11.0, "bits": 8},
        {"lo": -11.0, "hi": -10.0, "bits": 8},
        {"lo": -1.0, "hi": 3.0, "bits": 8},
    ),
    cases=st.builds(lambda ends, bits: {"lo": ends[0], "hi": ends[1], "bits": bits}, _ends, st.integers(1, 8)).filter(
        _no_tie_between
    ),
    mistakes=(
        Mistake(
            _not_widened,
            "Clipping the zero point hides the trouble: [10, 11] comes back as 1.0. Widen the range to hold 0 first.",
        ),
        Mistake(
            _not_widened_not_clipped, "For [10, 11] your zero point is no code at all. Widen the range to hold 0 first."
        ),
        *(Mistake(function, HI_TOO) for function in (_only_lo_widened, _only_lo_widened_clipped)),
        *(Mistake(function, LO_TOO) for function in (_only_hi_widened, _only_hi_widened_clipped)),
        Mistake(_one_step_too_many, "Between 256 ticks there are 255 steps: divide by 2**bits − 1."),
        Mistake(_zero_point_not_rounded, "zero_point is a code, so it must be a whole number: round it."),
        Mistake(_truncated, "The fraction is cut off. Round to the nearest code first."),
        Mistake(
            _symmetric_instead,
            "That is the symmetric way, with the zero point in the middle. Let the ticks run from lo to hi.",
        ),
        Mistake(
            _other_order_of_two, "Both numbers are right, in the other order: the scale first, then the zero point."
        ),
        *(Mistake(function, FROM_0) for function in (_from_0, _from_0_widened)),
        Mistake(_min_and_max_swapped, "min and max are swapped: lo becomes min(lo, 0), so that it never moves up."),
        Mistake(_widened_too_late, "Your scale is that of the old range. Move the ends first, then compute it."),
        Mistake(
            _signed_limit, "2**(bits − 1) − 1 belongs to codes with a sign. Here 2**bits ticks have 2**bits − 1 steps."
        ),
        Mistake(_always_8_bits, "255 steps belong to 8 bits. For other widths they are 2**bits − 1."),
        Mistake(_zero_point_up, "You round up. The nearest code is np.rint(-lo / scale)."),
        Mistake(_sign_lost, "The tick at lo has code 0, and 0.0 lies −lo / scale ticks further right: mind the sign."),
    ),
    hints=(
        "Where on the line of ticks is 0.0, if the ticks run from 10 to 11?",
        "Move the ends of the range first, so that 0.0 lies between them. Then the two formulas are the old ones.",
        "`min(lo, 0.0)` is lo or 0.0, whichever is smaller. The other end needs its own. And a code is a whole number: `int(…)`.",
    ),
    forbidden=_no_whole_number,
    consequence=_one_weight_in_the_network,
)


# 01.C a ruler for anything

_BITS, _ENOUGH = 4, 19.5


def _unseen():
    random = np.random.default_rng(2)
    normal, spoilt = random.normal(size=(2, 4000))
    spoilt[:4] = [30, -25, 40, 28]
    return {
        "normal": normal,
        "outliers": spoilt,
        "ReLU": np.maximum(random.normal(size=4000), 0),
        "far": random.uniform(5, 9, size=4000),
        "tails": random.laplace(size=4000),
    }


def _sqnr(x, scale, zero_point):
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 2**_BITS - 1)
    return 10 * np.log10(np.sum(x**2) / np.sum((x - scale * (codes - zero_point)) ** 2))


def _judge_ruler(answer):
    found = {}
    for name, x in _unseen().items():
        given_ = answer(x.copy(), _BITS)
        if not isinstance(given_, (tuple, list)) or len(given_) != 2:
            raise CannotBeJudged("return two numbers, the scale and the zero point.")
        scale, zero_point = (np.asarray(part) for part in given_)
        if scale.ndim or zero_point.ndim or scale.dtype.kind not in "iuf" or not 0 < float(scale) < np.inf:
            raise CannotBeJudged(f"the scale must be one number above 0, and yours is {given_[0]!r}.")
        if zero_point.dtype.kind not in "iuf" or zero_point != np.rint(zero_point) or not 0 <= zero_point < 2**_BITS:
            raise CannotBeJudged(
                f"the zero point must be a whole number from 0 to {2**_BITS - 1}, and yours is {given_[1]!r}."
            )
        found[name] = float(_sqnr(x, float(scale), float(zero_point)))
    mean = float(np.mean(list(found.values())))
    columns = {**{name: f"{value:.1f}" for name, value in found.items()}, "mean": f"{mean:.1f} dB"}
    return Score(columns, round(mean, 1) >= _ENOUGH)  # what the table shows is what counts


def _min_max(x, bits):
    return asymmetric_qparams_repaired(x.min(), x.max(), bits)


def _symmetric_ruler(x, bits):
    return np.abs(x).max() / (2 ** (bits - 1) - 1), 2 ** (bits - 1)


def _three_sigma(x, bits):
    lo, hi = x.mean() - 3 * x.std(), x.mean() + 3 * x.std()
    return asymmetric_qparams_repaired(max(x.min(), lo), min(x.max(), hi), bits)


def choose_ruler(x, bits):
    def error(ruler):
        scale, zero_point = ruler
        codes = np.rint(x / scale) + zero_point
        x_hat = scale * (np.clip(codes, 0, 2**bits - 1) - zero_point)
        return np.mean((x - x_hat) ** 2)

    rulers = []
    for part in np.linspace(0.05, 1, 100):
        lo, hi = min(part * x.min(), 0.0), max(part * x.max(), 0.0)
        scale = (hi - lo) / (2**bits - 1)
        rulers.append((scale, int(np.rint(-lo / scale))))
    return min(rulers, key=error)


CHOOSE_RULER = Challenge(
    id="01.C",
    target=f"a mean SQNR of {_ENOUGH} dB or more over five tensors, with {_BITS} bits.",
    solution=choose_ruler,
    judge=_judge_ruler,
    simple={"min-max": _min_max, "symmetric": _symmetric_ruler, "within 3σ": _three_sigma},
    hints=(
        "Look along the rows of the table: no simple ruler is the best for all five tensors.",
        "You have x, so you can try a ruler on it: quantize, dequantize, and look at the error before you return anything.",
        "Shrink the range step by step from min-max inwards, keep the scale and zero point of the smallest mean squared error.",
    ),
)

EXERCISES = (TO_UINT8, QUANTIZE_SYMMETRIC, DEQUANTIZE, ASYMMETRIC_QPARAMS)
CHALLENGES = (CHOOSE_RULER,)
