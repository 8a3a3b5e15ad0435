"""Exercises of lesson 08, below eight bits."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn import codebooks, datasets
from qlearn.block_scales import powers_of_two
from qlearn.errors import sqnr_db
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.exercises.networks import DIGITS, WEIGHTS, with_weights
from qlearn.formats import E2M1
from qlearn.packing import unpack

STEPS = 20  # of exercise 08.2, in the network

# Eighths and quarters: middles between two levels are exact, so that a tie is a tie.
_eighths = st.integers(-80, 80).map(lambda n: n / 8)
_codebooks = st.lists(st.integers(-32, 32), min_size=2, max_size=6, unique=True).map(lambda n: np.sort(n) / 4)


# 08.1 the nearest level


def nearest_level(x, levels):
    middles = (levels[:-1] + levels[1:]) / 2
    return np.searchsorted(middles, x).astype(np.uint8)


def _next_above_clipped(x, levels):
    return np.minimum(np.searchsorted(levels, x), len(levels) - 1).astype(np.uint8)


def _next_below_clipped(x, levels):
    return np.maximum(np.searchsorted(levels, x, side="right") - 1, 0).astype(np.uint8)


def _even_grid(x, levels):
    step = levels[1] - levels[0]
    return np.clip(np.rint((x - levels[0]) / step), 0, len(levels) - 1).astype(np.uint8)


def _ties_upward(x, levels):
    return np.searchsorted((levels[:-1] + levels[1:]) / 2, x, side="right").astype(np.uint8)


_FOR_A_LIST = "That works for a list only. x[..., None] adds a last axis to any shape; argmin over it."


def _in_the_network_of_four_levels(attempt):
    def nearest(levels_of):
        def change(weight):
            levels = levels_of(weight)
            return levels[attempt(weight, levels)]

        return with_weights(change)

    fitted = nearest(lambda weight: codebooks.kmeans(weight, 4))
    even = nearest(lambda weight: np.linspace(weight.min(), weight.max(), 4))
    return (
        f"Your `nearest_level` rounds all three layers to four levels each, fitted ones: the network reads "
        f"{fitted:.1f} % of {DIGITS:,} new digits\n(with four even levels {even:.1f} %)."
    )


_ROUNDED_UP = "np.searchsorted(levels, x) finds the next level above. Search among the middles between the levels."
_OFF_BY_ONE = "Off by one: the code is the number of middles below x, and 0 for the first level."
_ROUNDED_DOWN = "You take the next level below, even if the one above is nearer. Search among the middles instead."

NEAREST_LEVEL = Exercise(
    id="08.1",
    solution=nearest_level,
    examples=(
        {"x": np.array([-3.0, -0.875, 0.0, 0.75, 1.0, 1.5, 9.0]), "levels": np.array([-1.0, -0.5, 0.5, 1.5, 4.0])},
        {"x": np.array([[0.25, 2.5, 3.0], [7.0, 1.0, -2.0]]), "levels": np.array([-2.0, 0.0, 1.0, 4.0])},
    ),
    cases=st.fixed_dictionaries(
        {
            "x": hnp.arrays(np.float64, hnp.array_shapes(max_dims=2, max_side=4), elements=_eighths),
            "levels": _codebooks,
        }
    ),
    mistakes=(
        Mistake(lambda x, levels: np.searchsorted(levels, x).astype(np.uint8), _ROUNDED_UP),
        Mistake(_next_above_clipped, _ROUNDED_UP),
        Mistake(lambda x, levels: (np.searchsorted(levels, x, side="right") - 1).astype(np.uint8), _ROUNDED_DOWN),
        Mistake(_next_below_clipped, _ROUNDED_DOWN),
        Mistake(lambda x, levels: (np.searchsorted(levels, x) - 1).astype(np.uint8), _ROUNDED_DOWN),
        Mistake(lambda x, levels: np.searchsorted(levels, x, side="right") - 1, _ROUNDED_DOWN),
        Mistake(
            lambda x, levels: np.digitize(x, levels).astype(np.uint8),
            "You count the levels up to x, as np.digitize(x, levels) does: that rounds down and begins with 1. "
            "Count the middles below x.",
        ),
        Mistake(
            lambda x, levels: np.searchsorted((levels[:-1] + levels[1:]) // 2, x).astype(np.uint8),
            "// 2 drops the half of a middle: divide with /.",
        ),
        Mistake(
            lambda x, levels: np.abs(x[..., None] - levels).argmin().astype(np.uint8),
            "Without axis=-1, argmin finds one place in the whole table. Wanted is a code for each value.",
        ),
        Mistake(
            lambda x, levels: levels[nearest_level(x, levels)],
            "These are the levels themselves. Wanted are their codes: places in the list.",
        ),
        Mistake(
            _even_grid,
            "You step along an even grid. The distances between levels differ, so no single step leads to the code.",
        ),
        Mistake(
            lambda x, levels: (x[..., None] - levels).argmin(axis=-1).astype(np.uint8),
            "The most negative difference is the smallest number. Nearest is the smallest np.abs of it.",
        ),
        Mistake(
            lambda x, levels: np.abs(x[..., None] - levels).argmin(axis=0).astype(np.uint8),
            "You look for the value nearest to each level. The axis that goes is that of the levels, the last.",
        ),
        Mistake(lambda x, levels: np.abs(x[:, None] - levels).argmin(axis=1).astype(np.uint8), _FOR_A_LIST),
        Mistake(lambda x, levels: np.abs(levels[:, None] - x).argmin(axis=0).astype(np.uint8), _FOR_A_LIST),
        Mistake(lambda x, levels: nearest_level(x, levels) + np.uint8(1), _OFF_BY_ONE),
        Mistake(lambda x, levels: nearest_level(x, levels) - np.uint8(1), _OFF_BY_ONE),
        Mistake(
            lambda x, levels: np.searchsorted(levels[:-1] + levels[1:], x).astype(np.uint8),
            "The sum of two neighbours is twice their middle: divide by 2.",
        ),
        Mistake(
            lambda x, levels: np.abs(x[..., None] - levels).argmax(axis=-1).astype(np.uint8),
            "argmax finds the level that is farthest away. Nearest is argmin.",
        ),
        Mistake(
            lambda x, levels: np.abs(x[..., None] - levels).min(axis=-1),
            "These are the distances to the nearest levels. Their places in the list come from argmin.",
        ),
        Mistake(
            lambda x, levels: np.searchsorted(np.diff(levels) / 2, x).astype(np.uint8),
            "That is half the distance to the next level. Add it to the level to get the middle.",
        ),
        Mistake(
            _ties_upward, "In the middle between two levels, yours takes the larger one. Here the smaller one wins."
        ),
    ),
    hints=(
        "At which x does the nearest level change from one to the next?",
        "In the middle between two neighbours. How many of the middles lie below x?",
        "`levels[:-1]` and `levels[1:]` are all pairs of neighbours, and `np.searchsorted` counts: "
        "give it the middles, not the levels, and cast its answer.",
    ),
    consequence=_in_the_network_of_four_levels,
)


# 08.2 one step of Lloyd's algorithm


def lloyd_step(x, levels):
    codes = np.searchsorted((levels[:-1] + levels[1:]) / 2, x)
    moved = levels.copy()
    for code in np.unique(codes):
        moved[code] = x[codes == code].mean()
    return moved


def _moved(x, levels, codes, centre):
    """Each level moved to the centre of its values, if it has any."""
    return np.array([centre(x[codes == c]) if (codes == c).any() else level for c, level in enumerate(levels)])


def _empty_is_nan(x, levels):
    codes = nearest_level(x, levels)
    return _moved(x, np.full(len(levels), np.nan), codes, np.mean)


def _empty_is_zero(x, levels):
    codes = nearest_level(x, levels)
    return _moved(x, np.zeros(len(levels)), codes, np.mean)


def _empty_is_lost(x, levels):
    codes = nearest_level(x, levels)
    return np.array([x[codes == code].mean() for code in np.unique(codes)])


def _middle_of_extremes(x, levels):
    return _moved(x, levels, nearest_level(x, levels), lambda values: (values.min() + values.max()) / 2)


def _equal_counts(x, levels):
    parts = np.array_split(np.sort(x), len(levels))
    return np.array([part.mean() if len(part) else level for part, level in zip(parts, levels, strict=True)])


def _assigned_and_emptied(assign, empty):
    """Two mistakes at once: another level than the nearest, and empty levels that do not stay."""

    def step(x, levels):
        return _moved(x, np.full(len(levels), empty), assign(x, levels), np.mean)

    return step


def _trailing_lost(x, levels):
    codes = nearest_level(x, levels)
    return np.array([x[codes == c].mean() if (codes == c).any() else levels[c] for c in range(codes.max() + 1)])


def _counted_without_minlength(x, levels):
    codes = nearest_level(x, levels)
    with np.errstate(all="ignore"):
        return np.bincount(codes, weights=x) / np.bincount(codes)


def _until_it_settles(x, levels):
    for _ in range(100):
        levels = lloyd_step(x, levels)
    return levels


def _assigned_again_in_between(x, levels):
    moved = levels.copy()
    for code in range(len(levels)):
        codes = np.abs(x[:, None] - moved).argmin(axis=1)
        if (codes == code).any():
            moved[code] = x[codes == code].mean()
    return moved


def _old_level_counted(x, levels):
    codes = nearest_level(x, levels)
    return np.array([np.append(x[codes == c], level).mean() for c, level in enumerate(levels)])


def _in_the_network_after_steps(attempt):
    def change(steps):
        def fitted(weight):
            levels = np.linspace(weight.min(), weight.max(), 4)
            for _ in range(steps):
                levels = attempt(weight.reshape(-1), levels)
            return levels[nearest_level(weight, levels)]

        return with_weights(fitted)

    return (
        f"{STEPS} of your steps, from four even levels in each of the three layers: the network reads "
        f"{change(STEPS):.1f} % of {DIGITS:,} new digits\n(before the first step {change(0):.1f} %)."
    )


_EMPTY_IS_LOST = "A level without values is missing from your result. It stays where it is."
_NOT_NEAREST = "A value belongs to its nearest level, whether that lies above or below it: assign as in 08.1."
_TIE = "In the middle between two levels, a value belongs to the smaller one, as in 08.1."

LLOYD_STEP = Exercise(
    id="08.2",
    solution=lloyd_step,
    examples=(
        {"x": np.array([0.0, 0.5, 1.0, 4.5, 6.0, 7.0, 13.0]), "levels": np.array([1.0, 8.0])},
        {"x": np.array([2.0, -1.0, 2.5, 0.0, 3.0]), "levels": np.array([-4.0, -1.0, 2.0, 9.0])},
    ),
    cases=st.fixed_dictionaries(
        {"x": hnp.arrays(np.float64, st.integers(1, 8), elements=_eighths), "levels": _codebooks}
    ),
    mistakes=(
        Mistake(_empty_is_nan, "A level without values has no mean: 0/0 is NaN. It stays where it is."),
        Mistake(_empty_is_zero, "A level without values went to 0. It stays where it is."),
        Mistake(_empty_is_lost, _EMPTY_IS_LOST),
        Mistake(_trailing_lost, _EMPTY_IS_LOST),
        Mistake(
            _counted_without_minlength,
            "A level without values has no mean, and np.bincount leaves the last ones out: minlength=len(levels). "
            "An empty level stays where it is.",
        ),
        Mistake(lambda x, levels: _moved(x, levels, np.searchsorted(levels, x), np.mean), _NOT_NEAREST),
        Mistake(
            lambda x, levels: _moved(x, levels, nearest_level(x, levels), lambda values: np.sqrt((values**2).mean())),
            "The root of the mean square is never negative. A level goes to the mean of its values.",
        ),
        Mistake(
            lambda x, levels: _moved(x, np.full(len(levels), x.mean()), nearest_level(x, levels), np.mean),
            "A level without values went to the mean of all values. It stays where it is.",
        ),
        Mistake(
            lambda x, levels: nearest_level(x, levels),
            "Those are the codes of the values. Wanted are the levels, each moved to its mean.",
        ),
        Mistake(
            lambda x, levels: lloyd_step(x, levels)[nearest_level(x, levels)],
            "Those are the new levels of all values. Wanted is the list: each level once, in order.",
        ),
        Mistake(
            lambda x, levels: levels.copy(),
            "Your levels are the old ones. Each moves to the mean of the values nearest to it.",
        ),
        Mistake(
            lambda x, levels: np.trunc(lloyd_step(x, levels)),
            "Your means lost their fractions. Put them into an array of floats: levels.copy(), or np.zeros(len(levels)).",
        ),
        Mistake(_until_it_settles, "You went on until nothing moves. Wanted is one step: assign once, move once."),
        Mistake(
            _assigned_again_in_between,
            "You assign anew after each level that has moved. All values go to the old levels first, then all move.",
        ),
        Mistake(lambda x, levels: _moved(x, levels, _ties_upward(x, levels), np.mean), _TIE),
        *(
            Mistake(_assigned_and_emptied(assign, empty), diagnosis)
            for assign, diagnosis in (
                (_ties_upward, _TIE),
                (_next_below_clipped, _NOT_NEAREST),
                (_next_above_clipped, _NOT_NEAREST),
            )
            for empty in (0.0, math.nan)
        ),
        Mistake(
            lambda x, levels: _moved(x, levels, nearest_level(x, levels), lambda values: values.sum() / len(x)),
            "You divide by the number of all values. Divide by how many the level itself has.",
        ),
        Mistake(
            lambda x, levels: _moved(x, levels, nearest_level(x, levels), np.median),
            "That is the median. The squared error is smallest at the mean.",
        ),
        Mistake(
            _middle_of_extremes,
            "That is the middle between the smallest and the largest value. The mean counts those in between too.",
        ),
        Mistake(
            _equal_counts,
            "You gave each level equally many values. Each value belongs to its nearest level, however many that makes.",
        ),
        Mistake(
            lambda x, levels: (levels + lloyd_step(x, levels)) / 2,
            "You went half of the way: a level moves to the mean itself.",
        ),
        Mistake(lambda x, levels: _moved(x, levels, _next_below_clipped(x, levels), np.mean), _NOT_NEAREST),
        Mistake(lambda x, levels: _moved(x, levels, _next_above_clipped(x, levels), np.mean), _NOT_NEAREST),
        Mistake(
            lambda x, levels: _moved(x, levels, nearest_level(x, levels), np.sum),
            "That is the sum of each level's values. Divide it by how many they are.",
        ),
        Mistake(_old_level_counted, "You count the old level as one of the values. Only x has a say in the mean."),
    ),
    hints=(
        "Two steps: which level is nearest to each value? And what is the mean of the values with the same answer?",
        "Find the codes as in 08.1. `x[codes == 2]` are the values of level 2.",
        "Begin with a copy of the levels, and overwrite a level with the mean of its values only if it has any: "
        "`np.unique(codes)` lists those that have.",
    ),
    consequence=_in_the_network_after_steps,
)


# 08.3 the value of a float


def float_value(code, exponent_bits, significand_bits):
    sign = code >> (exponent_bits + significand_bits)
    exponent = (code >> significand_bits) % 2**exponent_bits
    significand = code % 2**significand_bits / 2**significand_bits
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 0:
        value = significand * 2.0 ** (1 - bias)
    else:
        value = (1 + significand) * 2.0 ** (exponent - bias)
    return -value if sign else value


def _parts(code, exponent_bits, significand_bits):
    """±1, the exponent field, the significand as a fraction, the bias."""
    sign = -1.0 if code >> (exponent_bits + significand_bits) else 1.0
    exponent = (code >> significand_bits) % 2**exponent_bits
    return sign, exponent, code % 2**significand_bits / 2**significand_bits, 2 ** (exponent_bits - 1) - 1


def _value(sign, exponent, fraction, bias):
    """What the parts say."""
    return sign * ((exponent > 0) + fraction) * 2.0 ** (max(exponent, 1) - bias)


def _reading(of_parts):
    """A function that cuts the code up rightly, and makes something else of its parts."""
    return lambda code, exponent_bits, significand_bits: of_parts(*_parts(code, exponent_bits, significand_bits))


def _masked_with_counts(code, exponent_bits, significand_bits):
    sign, _, _, bias = _parts(code, exponent_bits, significand_bits)
    exponent, significand = (code >> significand_bits) & exponent_bits, code & significand_bits
    return _value(sign, exponent, significand / 2**significand_bits, bias)


def _sign_in_the_exponent(code, exponent_bits, significand_bits):
    sign, _, fraction, bias = _parts(code, exponent_bits, significand_bits)
    return _value(sign, code >> significand_bits, fraction, bias)


def _significand_not_divided(code, exponent_bits, significand_bits):
    sign, exponent, _, bias = _parts(code, exponent_bits, significand_bits)
    return _value(sign, exponent, code % 2**significand_bits, bias)


def _infinity_and_nan(code, exponent_bits, significand_bits):
    sign, exponent, fraction, bias = _parts(code, exponent_bits, significand_bits)
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else sign * math.inf
    return _value(sign, exponent, fraction, bias)


def _twos_complement(code, exponent_bits, significand_bits):
    bits = 1 + exponent_bits + significand_bits
    if code >> (bits - 1):
        return -float_value(2**bits - code, exponent_bits, significand_bits) if code % 2 ** (bits - 1) else 0.0
    return float_value(code, exponent_bits, significand_bits)


def _significand_before_exponent(code, exponent_bits, significand_bits):
    sign, _, _, bias = _parts(code, exponent_bits, significand_bits)
    significand = (code >> exponent_bits) % 2**significand_bits
    return _value(sign, code % 2**exponent_bits, significand / 2**significand_bits, bias)


def _last_fraction_is_one(code, exponent_bits, significand_bits):
    sign, exponent, _, bias = _parts(code, exponent_bits, significand_bits)
    return _value(sign, exponent, code % 2**significand_bits / (2**significand_bits - 1), bias)


def _number_of_bits_as_mask(code, exponent_bits, significand_bits):
    sign, exponent, _, bias = _parts(code, exponent_bits, significand_bits)
    return _value(sign, exponent, code % significand_bits / 2**significand_bits, bias)


def _in_the_network_as_fp4(attempt):
    levels = np.unique([attempt(code, 2, 1) for code in range(16)])

    def change(weight):
        scale = np.abs(weight).max(axis=1, keepdims=True) / levels[-1]
        return codebooks.decode(codebooks.encode(weight, levels, scale), levels, scale)

    return (
        f"Your function's {len(levels)} numbers of FP4 as levels, one scale a row, in all three layers: the network "
        f"reads {with_weights(change):.1f} % of {DIGITS:,} new digits\n(in float {with_weights(lambda w: w):.1f} %)."
    )


_SUBNORMAL = "An exponent field of 0 means a subnormal number: there the significand has no 1 in front."

FLOAT_VALUE = Exercise(
    id="08.3",
    solution=float_value,
    examples=(
        {"code": 0b0101, "exponent_bits": 2, "significand_bits": 1},
        {"code": 0b1001, "exponent_bits": 2, "significand_bits": 1},
        {"code": 0b1_110_11, "exponent_bits": 3, "significand_bits": 2},
        {"code": 0b0_000_11, "exponent_bits": 3, "significand_bits": 2},
    ),
    cases=st.tuples(st.integers(2, 5), st.integers(1, 4)).flatmap(
        lambda n: st.fixed_dictionaries(
            {
                "code": st.integers(0, 2 ** (1 + n[0] + n[1]) - 1),
                "exponent_bits": st.just(n[0]),
                "significand_bits": st.just(n[1]),
            }
        )
    ),
    mistakes=(
        Mistake(_reading(lambda sign, e, f, bias: sign * (1 + f) * 2.0 ** (e - bias)), _SUBNORMAL),
        Mistake(_reading(lambda sign, e, f, bias: sign * (1 + f) * 2.0 ** (e - bias) if e or f else 0.0), _SUBNORMAL),
        Mistake(
            _reading(lambda sign, e, f, bias: (1 + f) * 2.0 ** (e - bias)),
            "Two things are missing: the sign, which is the top bit, and exponent field 0, which has no 1 in front.",
        ),
        Mistake(
            _masked_with_counts,
            "& exponent_bits keeps the wrong bits: a mask of the lowest n bits is 2**n − 1.",
        ),
        Mistake(_reading(lambda sign, e, f, bias: sign * (1 + f) * 2.0 ** (max(e, 1) - bias)), _SUBNORMAL),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign, e, f, 127)),
            "127 is the bias of 8 exponent bits. Here it is 2 ** (exponent_bits − 1) − 1.",
        ),
        Mistake(
            _twos_complement,
            "You read negative numbers as two's complement. A float's sign is a bit of its own: the others stay.",
        ),
        Mistake(
            _significand_before_exponent,
            "You take the lowest bits for the exponent. The order from the top is sign, exponent, significand.",
        ),
        Mistake(
            _number_of_bits_as_mask,
            "% significand_bits is no mask: the lowest n bits of a number are number % 2**n.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: sign * (1 + f) * 2.0 ** (e - bias) if e else 0.0),
            "An exponent field of 0 does not make the number 0: a subnormal still has its significand.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: sign * ((e > 0) + f) * 2.0 ** (e - bias)),
            "Subnormals go on with the step of the smallest normal numbers: their exponent is 1 − bias, not 0 − bias.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign, e, f, 0)),
            "The exponent field is never negative; the exponent may be: subtract the bias.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign, e, f, bias + 1)),
            "Yours is half of what is wanted: the bias is 2 ** (exponent_bits − 1) − 1.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign, e, f, -bias if e else bias)),
            "You add the bias. It is subtracted, so that small fields make negative powers.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign, e, f, -bias)),
            "You add the bias. It is subtracted, so that small fields make negative powers.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign, e, f, 2 * bias + 1)),
            "Your bias is the largest exponent field. It is 2 ** (exponent_bits − 1) − 1.",
        ),
        Mistake(
            _last_fraction_is_one,
            "There are 2**significand_bits steps from one power of two to the next: divide by 2**significand_bits.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign < 0, e, f, bias)),
            "The sign bit is 0 for positive numbers: multiply by 1 or −1, not by the bit.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(sign if e else 1, e, f, bias)),
            "Subnormal numbers have a sign, too: apply it to both cases.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: _value(1, e, f, bias)),
            "The top bit is the sign: where it is 1, the value is negative.",
        ),
        Mistake(
            _sign_in_the_exponent,
            "Your exponent field still has the sign on top of it. Keep its own bits only: % 2**exponent_bits.",
        ),
        Mistake(
            _reading(lambda sign, e, f, bias: sign * f * 2.0 ** (max(e, 1) - bias)),
            "A normal number has a 1 in front of its significand that is not stored: 1 + significand.",
        ),
        Mistake(
            _significand_not_divided,
            "The significand field counts steps of 1 / 2**significand_bits: divide it by 2**significand_bits.",
        ),
        Mistake(
            _infinity_and_nan, "Here no code is infinity or NaN: the largest exponent field is one like the others."
        ),
    ),
    hints=(
        "Cut the code into its three fields first: `>>` drops the bits below a field, `%` those above it.",
        "The significand field counts steps of 1 / `2**significand_bits`. What stands in front of it, 0 or 1?",
        "Two cases: for `e > 0` the formula above; for `e == 0` without the 1, with the power of field 1, "
        "`2.0 ** (1 - bias)`. The sign comes last.",
    ),
    consequence=_in_the_network_as_fp4,
)


# 08.4 the scale of an MX block


def mx_scale(block, largest_exponent):
    exponent = np.floor(np.log2(np.abs(block).max())) - largest_exponent
    return 2.0**exponent


def _rounded_by(round_exponent, block, largest_exponent):
    return 2.0 ** (round_exponent(np.log2(np.abs(block).max())) - largest_exponent)


def _signed_maximum(block, largest_exponent):
    with np.errstate(all="ignore"):
        return 2.0 ** (np.floor(np.log2(block.max())) - largest_exponent)


def _abs_of_the_maximum(block, largest_exponent):
    with np.errstate(all="ignore"):
        return 2.0 ** (np.floor(np.log2(np.abs(block.max()))) - largest_exponent)


def _signed_and_rounded_by(round_exponent):
    def scale(block, largest_exponent):
        with np.errstate(all="ignore"):
            return 2.0 ** (round_exponent(np.log2(block.max())) - largest_exponent)

    return scale


def _one_for_each_value(block, largest_exponent):
    with np.errstate(all="ignore"):
        return 2.0 ** (np.floor(np.log2(np.abs(block))) - largest_exponent)


def _smallest_magnitude(block, largest_exponent):
    with np.errstate(all="ignore"):
        return 2.0 ** (np.floor(np.log2(np.abs(block).min())) - largest_exponent)


MX_BLOCKS = (28, 20, 20)  # of the three layers: 784 and 100 inputs are no multiples of 32


def _in_the_network_as_mxfp4(attempt):
    sizes = iter(MX_BLOCKS)

    def change(weight):
        blocks = weight.reshape(len(weight), -1, next(sizes))
        scales = np.array([[attempt(block, E2M1.largest_exponent) for block in row] for row in blocks])
        scales = scales.astype(np.float64)[..., None]
        x_hat = codebooks.decode(codebooks.encode(blocks, E2M1.levels(), scales), E2M1.levels(), scales)
        return x_hat.reshape(weight.shape)

    accuracy = with_weights(change)
    return (
        f"FP4 with your scale for each block of {MX_BLOCKS[0]} or {MX_BLOCKS[1]} weights, about 4.3 bits a weight: the "
        f"network reads {accuracy:.1f} % of {DIGITS:,} new digits\n(in float {with_weights(lambda w: w):.1f} %)."
    )


@st.composite
def _mx_blocks(draw):
    n = draw(st.integers(1, 6))
    block = draw(hnp.arrays(np.float64, n, elements=st.integers(-31, 31)).filter(np.any))
    return {
        "block": block * 2.0 ** draw(st.integers(-6, 6)),
        "largest_exponent": draw(st.sampled_from([2, 4, 8, 15])),
    }


_SIX = (
    "You divide by 6, FP4's largest number. This rule looks at exponents only: of max|x|, rounded down, and "
    "largest_exponent. (Dividing by the largest number and rounding up is another rule, met below.)"
)
_NO_POWER = "That is no power of two. Only the exponent is stored, a whole number: np.floor."
_SIGN_MATTERS = "The block's largest magnitude may belong to a negative number: np.abs first, then max."

MX_SCALE = Exercise(
    id="08.4",
    solution=mx_scale,
    examples=(
        {"block": np.array([0.5, -7.0, 3.0, 1.0]), "largest_exponent": 2},
        {"block": np.array([0.3125, 0.1875, -0.25]), "largest_exponent": 2},
        {"block": np.array([96.0, -512.0, 512.0, 17.0]), "largest_exponent": 8},
        {"block": np.array([5.5, 23.0, 0.0]), "largest_exponent": 4},  # 23/16 lies between √2 and 1.5
    ),
    cases=_mx_blocks(),
    mistakes=(
        Mistake(_signed_maximum, _SIGN_MATTERS),
        Mistake(_abs_of_the_maximum, _SIGN_MATTERS),
        *(Mistake(_signed_and_rounded_by(rounding), _SIGN_MATTERS) for rounding in (np.rint, np.ceil, np.trunc)),
        Mistake(
            lambda block, largest_exponent: _rounded_by(np.ceil, block, largest_exponent),
            "You round the exponent up. The rule here is floor: the power of two at or below max|x|.",
        ),
        Mistake(
            lambda block, largest_exponent: _rounded_by(np.rint, block, largest_exponent),
            "You round the exponent to the nearest whole number. The rule here is floor: always down.",
        ),
        Mistake(
            lambda block, largest_exponent: _rounded_by(np.trunc, block, largest_exponent),
            "A cast cuts towards 0. Below 1 the exponent is negative and must go down: np.floor.",
        ),
        Mistake(lambda block, largest_exponent: np.abs(block).max() / 2.0**largest_exponent, _NO_POWER),
        Mistake(lambda block, largest_exponent: np.abs(block).max() / 6, _NO_POWER),
        Mistake(lambda block, largest_exponent: 2.0 ** np.ceil(np.log2(np.abs(block).max() / 6)), _SIX),
        Mistake(lambda block, largest_exponent: 2.0 ** np.floor(np.log2(np.abs(block).max() / 6)), _SIX),
        Mistake(
            lambda block, largest_exponent: 2.0 ** np.ceil(np.log2(np.abs(block).max() / (1.5 * 2**largest_exponent))),
            _SIX,
        ),
        Mistake(
            lambda block, largest_exponent: 1 / mx_scale(block, largest_exponent),
            "That is one over the scale: x is divided by the scale, so large blocks need a large one.",
        ),
        Mistake(
            lambda block, largest_exponent: 2.0 ** (np.floor(np.log(np.abs(block).max())) - largest_exponent),
            "np.log counts in powers of e. The exponent of a power of two is np.log2.",
        ),
        Mistake(
            lambda block, largest_exponent: np.exp(np.floor(np.log2(np.abs(block).max())) - largest_exponent),
            "np.exp raises e. The scale is a power of two: 2.0 ** exponent.",
        ),
        Mistake(
            lambda block, largest_exponent: 2.0 ** (np.floor(np.log2(np.abs(block).mean())) - largest_exponent),
            "You take the mean magnitude. The largest one must fit into the format: max.",
        ),
        Mistake(
            lambda block, largest_exponent: block / mx_scale(block, largest_exponent),
            "That is the block divided by its scale. Wanted is the scale.",
        ),
        Mistake(
            lambda block, largest_exponent: 2.0 ** (np.frexp(np.abs(block).max())[1] - largest_exponent),
            "Your exponent is one too large. (np.frexp counts from ½: its exponent is floor(log2) + 1.)",
        ),
        Mistake(
            lambda block, largest_exponent: _rounded_by(np.floor, block, 0),
            "That brings the block to 1 … 2. The format reaches further: subtract largest_exponent.",
        ),
        Mistake(
            lambda block, largest_exponent: _rounded_by(np.floor, block, -largest_exponent),
            "x is divided by the scale. For quotients up to 2^largest_exponent, it must be subtracted.",
        ),
        Mistake(
            lambda block, largest_exponent: 2.0 ** np.floor(np.log2(np.abs(block).max())) / largest_exponent,
            "You divide by largest_exponent itself. The power of two that it stands for is 2 ** largest_exponent.",
        ),
        Mistake(
            lambda block, largest_exponent: _rounded_by(np.floor, block, 2),
            "You subtract 2, FP4's largest exponent. Other formats have another: largest_exponent.",
        ),
        Mistake(
            lambda block, largest_exponent: np.floor(np.abs(block).max()) / 2.0**largest_exponent,
            "You round the magnitude down. What goes down is its exponent, np.log2.",
        ),
        Mistake(
            lambda block, largest_exponent: np.log2(np.abs(block).max()) - largest_exponent,
            "That is an exponent, and not a whole one: round log2 down, and raise two to it.",
        ),
        Mistake(_smallest_magnitude, "You take the smallest magnitude. The largest one must fit into the format: max."),
        Mistake(
            lambda block, largest_exponent: np.floor(np.log2(np.abs(block).max())) - largest_exponent,
            "That is the exponent. The scale is two to its power.",
        ),
        Mistake(
            _one_for_each_value, "That is a scale for each value. A block shares one, that of its largest magnitude."
        ),
        Mistake(
            lambda block, largest_exponent: 2 ** np.int64(np.floor(np.log2(np.abs(block).max())) - largest_exponent),
            "NumPy does not raise an integer to a negative power. Begin with a float: 2.0 ** …",
        ),
    ),
    hints=(
        "Which power of two lies at or just below the block's largest magnitude? And which does the format reach?",
        "Work with exponents: `np.log2` of the largest magnitude, rounded down, is the first one's.",
        "To divide powers of two, subtract their exponents. Then raise `2.0`, a float, to the difference.",
    ),
    consequence=_in_the_network_as_mxfp4,
)


# 08.5 pack codes into bytes


def pack(codes, bits):
    stream = (codes[:, None] >> np.arange(bits)) & 1
    return np.packbits(stream.reshape(-1), bitorder="little")


def _bits_left_unused(codes, bits):
    a_byte = 8 // bits
    padded = np.append(codes, np.zeros(-len(codes) % a_byte, np.uint8)).reshape(-1, a_byte)
    return (padded << (np.arange(a_byte) * bits)).sum(axis=1).astype(np.uint8)


def _cut_at_the_byte(codes, bits):
    packed = np.zeros(-(-len(codes) * bits // 8), np.uint8)
    for i, code in enumerate(codes):
        packed[i * bits // 8] |= (int(code) << (i * bits % 8)) & 255
    return packed


def _too_large_for_a_byte(codes, bits):
    packed = np.zeros(-(-len(codes) * bits // 8), np.uint8)
    for i, code in enumerate(codes):
        packed[i * bits // 8] |= int(code) << (i * bits % 8)
    return packed


def _bytes_of_text(text):
    return np.array([int(text[i : i + 8], 2) for i in range(0, len(text), 8)], np.uint8)


def _full_bytes_only(codes, bits):
    stream = ((codes[:, None] >> np.arange(bits)) & 1).reshape(-1, 8)
    return (stream @ 2 ** np.arange(8)).astype(np.uint8)


def _codes_lost_in_bytes(codes, bits):
    a_byte = 8 // bits
    packed = np.zeros(len(codes) * bits // 8, np.uint8)
    for i in range(len(packed)):
        for j in range(a_byte):
            packed[i] |= (int(codes[i * a_byte + j]) << (bits * j)) & 255
    return packed


def _too_few_bytes(codes, bits):
    packed = np.zeros(-(-len(codes) * bits // 8), np.uint8)
    for i, code in enumerate(codes):
        packed[i // (8 // bits)] |= (int(code) << (bits * (i % (8 // bits)))) & 255
    return packed


def _a_byte_too_many(codes, bits):
    whole = len(codes) * bits % 8 == 0
    return np.append(pack(codes, bits), np.zeros(int(whole), np.uint8))


def _overwritten(codes, bits):
    packed = np.zeros(-(-len(codes) * bits // 8), np.uint8)
    for i, code in enumerate(codes):
        packed[i * bits // 8] = (int(code) << (i * bits % 8)) & 255
    return packed


def _in_the_network_unpacked(attempt):
    sizes = []

    def change(weight):
        levels = codebooks.kmeans(weight, 8)
        packed = attempt(codebooks.encode(weight, levels).reshape(-1), 3)
        sizes.append(len(packed))
        return levels[unpack(packed, 3, weight.shape)]

    accuracy = with_weights(change)
    weights = sum(datasets.trained("mlp")[name].size for name in WEIGHTS)
    return (
        f"The network's {weights:,} weights as codes of 3 bits, packed by you: {sum(sizes):,} bytes instead of "
        f"{4 * weights:,}.\nUnpacked again, it reads {accuracy:.1f} % of {DIGITS:,} new digits."
    )


_FROM_THE_TOP = 'You fill bytes from the top bit down. Fill from the lowest: bitorder="little".'
_FIRST_ON_TOP = "Your first code lies in the high bits of the first byte. Here it takes the lowest ones."
_SINGLE_BITS = "np.packbits packs single bits, and takes every code that is not 0 for a 1: give it the codes' bits."
_UNUSED_BITS = "np.unpackbits gives the highest bit first, so these are the bits that a code leaves unused."
_ACROSS = "A code that begins near a byte's end goes on in the next byte. Yours loses those upper bits."

PACK = Exercise(
    id="08.5",
    solution=pack,
    examples=(
        {"codes": np.array([1, 2, 3], dtype=np.uint8), "bits": 4},
        {"codes": np.array([5, 3, 6, 1, 7], dtype=np.uint8), "bits": 3},
        {"codes": np.array([9, 12, 6, 1], dtype=np.uint8), "bits": 4},
    ),
    cases=st.integers(1, 8).flatmap(
        lambda bits: st.fixed_dictionaries(
            {
                "codes": hnp.arrays(np.uint8, st.integers(1, 9), elements=st.integers(0, 2**bits - 1)),
                "bits": st.just(bits),
            }
        )
    ),
    mistakes=(
        Mistake(
            _bits_left_unused,
            "You put 8 // bits codes into a byte, which leaves bits unused if bits does not divide 8. Leave no gap.",
        ),
        Mistake(
            _codes_lost_in_bytes,
            "Your bytes hold 8 // bits codes each and are n · bits // 8: where bits does not divide 8, codes are lost.",
        ),
        Mistake(
            _too_few_bytes,
            "You put 8 // bits codes into a byte, and run out of bytes where bits does not divide 8. Leave no gap.",
        ),
        Mistake(_overwritten, "A byte's later codes overwrite the first ones. Add their bits: |= in the place of =."),
        Mistake(_a_byte_too_many, "You return a byte too many where the codes fill whole bytes: ⌈n · bits / 8⌉."),
        Mistake(lambda codes, bits: codes.copy(), "Your codes still have a byte each. Put their bits side by side."),
        Mistake(_cut_at_the_byte, _ACROSS),
        Mistake(_too_large_for_a_byte, _ACROSS),
        Mistake(
            lambda codes, bits: np.packbits((codes[:, None] >> np.arange(bits)) & 1, bitorder="big"), _FROM_THE_TOP
        ),
        Mistake(lambda codes, bits: _bytes_of_text("".join(f"{code:0{bits}b}"[::-1] for code in codes)), _FROM_THE_TOP),
        Mistake(
            lambda codes, bits: np.packbits((codes[:, None] >> np.arange(bits)[::-1]) & 1, bitorder="big"),
            _FIRST_ON_TOP,
        ),
        Mistake(lambda codes, bits: _bytes_of_text("".join(f"{code:0{bits}b}" for code in codes)), _FIRST_ON_TOP),
        Mistake(lambda codes, bits: np.packbits(codes, bitorder="little"), _SINGLE_BITS),
        Mistake(lambda codes, bits: np.packbits(codes), _SINGLE_BITS),
        Mistake(
            lambda codes, bits: np.packbits((codes[:, None] >> np.arange(bits)[::-1]) & 1, bitorder="little"),
            "Your codes lie in the bytes with their bits reversed: the lowest bit comes first.",
        ),
        Mistake(
            lambda codes, bits: pack(codes, bits)[: len(codes) * bits // 8],
            "Codes are lost at the end: a last byte that is not full is stored too, filled up with zeros.",
        ),
        Mistake(
            lambda codes, bits: np.packbits((codes[:, None] >> np.arange(bits)) & 1, axis=1, bitorder="little"),
            "You pack each code by itself, and it still takes a byte. Pack one long row of bits.",
        ),
        Mistake(
            lambda codes, bits: np.packbits(codes[:, None] >> np.arange(bits), bitorder="little"),
            "`code >> k` still has the bits above, and np.packbits takes all that is not 0 for a 1: & 1 leaves one bit.",
        ),
        Mistake(
            lambda codes, bits: np.packbits(np.unpackbits(codes[:, None], axis=1)[:, :bits], bitorder="little"),
            _UNUSED_BITS,
        ),
        Mistake(lambda codes, bits: np.packbits(np.unpackbits(codes[:, None], axis=1)[:, :bits]), _UNUSED_BITS),
        Mistake(
            lambda codes, bits: pack(codes, bits)[::-1],
            "Your bytes stand in reverse order: the first code lies in the first byte.",
        ),
        Mistake(_full_bytes_only, "The stream need not end with a full byte: fill the last one up with zeros."),
        Mistake(
            lambda codes, bits: ((codes[:, None] >> np.arange(bits)) & 1).reshape(-1).astype(np.uint8),
            "Your bits are right, but each has a byte of its own. np.packbits puts eight into one.",
        ),
        Mistake(
            lambda codes, bits: np.packbits(((codes[:, None] >> np.arange(bits)) & 1).T, bitorder="little"),
            "You store the lowest bits of all codes, then the next ones. Here all bits of a code stay together.",
        ),
    ),
    hints=(
        "Take it in two steps: first one long row of single bits, code after code; then eight of them to a byte.",
        "Bit k of a code is `code >> k & 1`. `np.arange(bits)` has all k, and `codes[:, None]` makes a row of each code.",
        'Flatten the table of bits: row after row is the stream. `np.packbits` with `bitorder="little"` does the rest, '
        "the zeros at the end too.",
    ),
    consequence=_in_the_network_unpacked,
)


# 08.C a format of one's own

MOST_BITS, LEAST_SQNR = 4.3, 22.3
LONGEST_LIST = 256  # what a code of 8 bits can choose from
LIST_BITS = 32  # of each number in a list


def my_format(x):
    blocks = x.reshape(len(x), -1, 16)
    largest = np.abs(blocks).max(axis=-1)
    scale_levels = codebooks.kmeans(largest, 16)
    scale_codes = codebooks.encode(largest, scale_levels)
    scaled = blocks / scale_levels[scale_codes][..., None]
    levels = codebooks.kmeans(scaled, 16)

    def errors(scale):  # of each block with this scale
        codes = codebooks.encode(blocks, levels, scale)
        x_hat = codebooks.decode(codes, levels, scale)
        return ((blocks - x_hat) ** 2).sum(axis=-1)

    # For each block the scale that gives the least error.
    scale_codes = np.argmin([errors(scale) for scale in scale_levels], axis=0)
    codes = codebooks.encode(x, levels, scale_levels[scale_codes])
    return codes, levels, scale_codes, scale_levels


def _as_list(numbers, name):
    numbers = np.array(numbers)
    if numbers.ndim != 1 or not 1 <= len(numbers) <= LONGEST_LIST or numbers.dtype.kind not in "iuf":
        raise CannotBeJudged(f"{name} must be a list of 1 to {LONGEST_LIST} numbers; it has shape {numbers.shape}.")
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise CannotBeJudged(f"{name} holds NaN or infinity, or a number too large for float32.")
    return numbers


def _as_codes(codes, name, choices):
    codes = np.array(codes)
    if codes.dtype.kind not in "iu":
        raise CannotBeJudged(f"{name} has dtype {codes.dtype}: codes are whole numbers, places in a list.")
    if codes.size and not 0 <= codes.min() <= codes.max() < choices:
        raise CannotBeJudged(
            f"{name} runs from {codes.min()} to {codes.max()}; places in its list are 0 … {choices - 1}."
        )
    return codes.astype(np.int64)


def judge_format(answer):
    """Decode what an answer stores of a matrix, and count every bit of it.

    x̂ = scale_levels[scale_codes] · levels[codes],   a scale for each block;  each code takes ⌈log2(its list)⌉ bits,
    each number in a list 32
    """
    x = datasets.trained("language_model")["blocks.3.mlp.down.weight"]
    parts = answer(x.copy())
    if not isinstance(parts, (tuple, list)) or len(parts) != 4:
        raise CannotBeJudged("return four arrays: codes, levels, scale_codes, scale_levels.")
    levels, scale_levels = _as_list(parts[1], "levels"), _as_list(parts[3], "scale_levels")
    codes = _as_codes(parts[0], "codes", len(levels))
    scale_codes = _as_codes(parts[2], "scale_codes", len(scale_levels))
    if codes.shape != x.shape:
        raise CannotBeJudged(f"codes has shape {codes.shape}, and x has {x.shape}: each weight needs a code.")
    if (
        scale_codes.ndim != 2
        or 0 in scale_codes.shape
        or any(n % k for n, k in zip(x.shape, scale_codes.shape, strict=True))
    ):
        raise CannotBeJudged(
            f"scale_codes has shape {scale_codes.shape}, which does not cut {x.shape} into equal blocks: "
            f"blocks of 32 along the rows have {(len(x), x.shape[1] // 32)}."
        )
    scales = scale_levels.astype(np.float64)[scale_codes]
    for axis in (0, 1):
        scales = np.repeat(scales, x.shape[axis] // scale_codes.shape[axis], axis=axis)
    bits = codes.size * _bits_of(levels) + scale_codes.size * _bits_of(scale_levels)
    cost = (bits + LIST_BITS * (len(levels) + len(scale_levels))) / x.size
    sqnr = sqnr_db(x, scales * levels.astype(np.float64)[codes])
    return Score({"bits per weight": f"{cost:.2f}", "SQNR": f"{sqnr:.1f} dB"}, cost <= MOST_BITS and sqnr >= LEAST_SQNR)


def _bits_of(numbers):
    return (len(numbers) - 1).bit_length()


def _int4_one_scale(x):
    levels, scale = np.arange(-7, 8), np.abs(x).max() / 7
    return codebooks.encode(x, levels, float(scale)), levels, np.zeros((1, 1), int), [scale]


def _normal_float_in_blocks(x):
    levels, blocks = codebooks.normal_float(4), x.reshape(len(x), -1, 64)
    scale_levels = np.arange(1, 257) / 256 * np.abs(x).max()
    scale_codes = codebooks.encode(np.abs(blocks).max(axis=-1), scale_levels)
    return codebooks.encode(x, levels, scale_levels[scale_codes]), levels, scale_codes, scale_levels


def _mxfp4(x):
    levels, largest = E2M1.levels(), np.abs(x.reshape(len(x), -1, 32)).max(axis=-1)
    scales = powers_of_two(largest, E2M1.largest, E2M1.significand_bits, "even")
    scale_levels, scale_codes = np.unique(scales, return_inverse=True)
    return codebooks.encode(x, levels, scales), levels, scale_codes.reshape(scales.shape), scale_levels


FORMAT = Challenge(
    id="08.C",
    target=f"a matrix of a language model, at most {MOST_BITS} bits a weight and at least {LEAST_SQNR} dB.",
    solution=my_format,
    judge=judge_format,
    simple={
        "int4, one scale": _int4_one_scale,
        "MXFP4, rule even": _mxfp4,
        "NF4, blocks of 64": _normal_float_in_blocks,
    },
    hints=(
        "4.3 is 4 bits for a code and 0.3 for the rest. A scale of how many bits fits, in blocks of how many weights?",
        "Scales are numbers like any others: a codebook of 16 does for them, too. Then blocks of 16 cost 0.25 bits.",
        "`codebooks.kmeans` of the blocks' largest magnitudes, then of the weights divided by their scale. "
        "Still short? Try for each block which of the scales gives the least error.",
    ),
)

CHALLENGES = (FORMAT,)
EXERCISES = (NEAREST_LEVEL, LLOYD_STEP, FLOAT_VALUE, MX_SCALE, PACK)
