"""Exercises of lesson 08, below eight bits."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.checking import Exercise, Mistake

# Eighths and quarters: middles between two levels are exact, so that a tie is a tie.
_eighths = st.integers(-80, 80).map(lambda n: n / 8)
_codebooks = st.lists(st.integers(-32, 32), min_size=2, max_size=6, unique=True).map(lambda n: np.sort(n) / 4)


# 08.1 the nearest level


def nearest_level(x, levels):
    middles = (levels[:-1] + levels[1:]) / 2
    return np.searchsorted(middles, x).astype(np.uint8)


def _next_above(x, levels):
    return np.searchsorted(levels, x).astype(np.uint8)


def _next_above_clipped(x, levels):
    return np.minimum(np.searchsorted(levels, x), len(levels) - 1).astype(np.uint8)


def _next_below(x, levels):
    return (np.searchsorted(levels, x, side="right") - 1).astype(np.uint8)


def _next_below_clipped(x, levels):
    return np.maximum(np.searchsorted(levels, x, side="right") - 1, 0).astype(np.uint8)


def _values_not_codes(x, levels):
    return levels[nearest_level(x, levels)]


def _even_grid(x, levels):
    step = levels[1] - levels[0]
    return np.clip(np.rint((x - levels[0]) / step), 0, len(levels) - 1).astype(np.uint8)


def _no_abs(x, levels):
    return (x[..., None] - levels).argmin(axis=-1).astype(np.uint8)


def _wrong_axis(x, levels):
    return np.abs(x[..., None] - levels).argmin(axis=0).astype(np.uint8)


def _one_axis_only(x, levels):
    return np.abs(x[:, None] - levels).argmin(axis=1).astype(np.uint8)


def _half_distances(x, levels):
    return np.searchsorted(np.diff(levels) / 2, x).astype(np.uint8)


def _ties_upward(x, levels):
    return np.searchsorted((levels[:-1] + levels[1:]) / 2, x, side="right").astype(np.uint8)


_ROUNDED_UP = "np.searchsorted(levels, x) finds the next level above. Search among the middles between the levels."
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
        Mistake(_next_above, _ROUNDED_UP),
        Mistake(_next_above_clipped, _ROUNDED_UP),
        Mistake(_next_below, _ROUNDED_DOWN),
        Mistake(_next_below_clipped, _ROUNDED_DOWN),
        Mistake(_values_not_codes, "These are the levels themselves. Wanted are their codes: places in the list."),
        Mistake(
            _even_grid,
            "You step along an even grid. The distances between levels differ, so no single step leads to the code.",
        ),
        Mistake(_no_abs, "The most negative difference is the smallest number. Nearest is the smallest np.abs of it."),
        Mistake(
            _wrong_axis,
            "You look for the value nearest to each level. The axis that goes is that of the levels, the last.",
        ),
        Mistake(
            _one_axis_only, "That works for a list only. x[..., None] adds a last axis to any shape; argmin over it."
        ),
        Mistake(_half_distances, "That is half the distance to the next level. Add it to the level to get the middle."),
        Mistake(
            _ties_upward, "In the middle between two levels, yours takes the larger one. Here the smaller one wins."
        ),
    ),
    hints=(
        "At which x does the nearest level change from one to the next?",
        "At the middles, (levels[:-1] + levels[1:]) / 2. How many of them lie below x is the code: np.searchsorted.",
    ),
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


def _median(x, levels):
    return _moved(x, levels, nearest_level(x, levels), np.median)


def _middle_of_extremes(x, levels):
    return _moved(x, levels, nearest_level(x, levels), lambda values: (values.min() + values.max()) / 2)


def _equal_counts(x, levels):
    parts = np.array_split(np.sort(x), len(levels))
    return np.array([part.mean() if len(part) else level for part, level in zip(parts, levels, strict=True)])


def _half_way(x, levels):
    return (levels + lloyd_step(x, levels)) / 2


def _values_of_the_level_below(x, levels):
    return _moved(x, levels, _next_below_clipped(x, levels), np.mean)


def _values_of_the_level_above(x, levels):
    return _moved(x, levels, _next_above_clipped(x, levels), np.mean)


def _sum_for_mean(x, levels):
    return _moved(x, levels, nearest_level(x, levels), np.sum)


def _old_level_counted(x, levels):
    codes = nearest_level(x, levels)
    return np.array([np.append(x[codes == c], level).mean() for c, level in enumerate(levels)])


_NOT_NEAREST = "A value belongs to its nearest level, whether that lies above or below it: assign as in 08.1."

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
        Mistake(_empty_is_lost, "A level without values is missing from your result. It stays where it is."),
        Mistake(_median, "That is the median. The squared error is smallest at the mean."),
        Mistake(
            _middle_of_extremes,
            "That is the middle between the smallest and the largest value. The mean counts those in between too.",
        ),
        Mistake(
            _equal_counts,
            "You gave each level equally many values. Each value belongs to its nearest level, however many that makes.",
        ),
        Mistake(_half_way, "You went half of the way: a level moves to the mean itself."),
        Mistake(_values_of_the_level_below, _NOT_NEAREST),
        Mistake(_values_of_the_level_above, _NOT_NEAREST),
        Mistake(_sum_for_mean, "That is the sum of each level's values. Divide it by how many they are."),
        Mistake(_old_level_counted, "You count the old level as one of the values. Only x has a say in the mean."),
    ),
    hints=(
        "Two steps: which level is nearest to each value? And what is the mean of the values with the same answer?",
        "codes as in 08.1; then for each code in np.unique(codes), moved[code] = x[codes == code].mean() in a copy.",
    ),
)


# 08.3 the value of a float


def float_value(code, exponent_bits, significand_bits):
    sign = code >> (exponent_bits + significand_bits)
    exponent = (code >> significand_bits) % 2**exponent_bits
    significand = code % 2**significand_bits / 2**significand_bits
    bias = 2 ** (exponent_bits - 1) - 1
    value = significand * 2.0 ** (1 - bias) if exponent == 0 else (1 + significand) * 2.0 ** (exponent - bias)
    return -value if sign else value


def _parts(code, exponent_bits, significand_bits):
    """±1, the exponent field, the significand as a fraction, the bias."""
    sign = -1.0 if code >> (exponent_bits + significand_bits) else 1.0
    exponent = (code >> significand_bits) % 2**exponent_bits
    return sign, exponent, code % 2**significand_bits / 2**significand_bits, 2 ** (exponent_bits - 1) - 1


def _all_normal(code, exponent_bits, significand_bits):
    sign, exponent, significand, bias = _parts(code, exponent_bits, significand_bits)
    return sign * (1 + significand) * 2.0 ** (exponent - bias)


def _only_zero_is_special(code, exponent_bits, significand_bits):
    _, exponent, significand, _ = _parts(code, exponent_bits, significand_bits)
    return 0.0 if exponent == significand == 0 else _all_normal(code, exponent_bits, significand_bits)


def _flushed_to_zero(code, exponent_bits, significand_bits):
    _, exponent, _, _ = _parts(code, exponent_bits, significand_bits)
    return 0.0 if exponent == 0 else _all_normal(code, exponent_bits, significand_bits)


def _subnormal_one_too_low(code, exponent_bits, significand_bits):
    sign, exponent, significand, bias = _parts(code, exponent_bits, significand_bits)
    return sign * ((exponent > 0) + significand) * 2.0 ** (exponent - bias)


def _no_bias(code, exponent_bits, significand_bits):
    sign, exponent, significand, _ = _parts(code, exponent_bits, significand_bits)
    return sign * ((exponent > 0) + significand) * 2.0 ** max(exponent, 1)


def _bias_too_large(code, exponent_bits, significand_bits):
    return float_value(code, exponent_bits, significand_bits) / 2


def _no_sign(code, exponent_bits, significand_bits):
    return abs(float_value(code, exponent_bits, significand_bits))


def _sign_in_the_exponent(code, exponent_bits, significand_bits):
    sign, _, significand, bias = _parts(code, exponent_bits, significand_bits)
    exponent = code >> significand_bits
    return sign * ((exponent > 0) + significand) * 2.0 ** (max(exponent, 1) - bias)


def _no_implicit_one(code, exponent_bits, significand_bits):
    sign, exponent, significand, bias = _parts(code, exponent_bits, significand_bits)
    return sign * significand * 2.0 ** (max(exponent, 1) - bias)


def _significand_not_divided(code, exponent_bits, significand_bits):
    sign, exponent, significand, bias = _parts(code, exponent_bits, significand_bits)
    return sign * ((exponent > 0) + significand * 2**significand_bits) * 2.0 ** (max(exponent, 1) - bias)


def _infinity_and_nan(code, exponent_bits, significand_bits):
    sign, exponent, significand, _ = _parts(code, exponent_bits, significand_bits)
    if exponent == 2**exponent_bits - 1:
        return math.nan if significand else sign * math.inf
    return float_value(code, exponent_bits, significand_bits)


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
        Mistake(_all_normal, _SUBNORMAL),
        Mistake(_only_zero_is_special, _SUBNORMAL),
        Mistake(
            _flushed_to_zero,
            "An exponent field of 0 does not make the number 0: a subnormal still has its significand.",
        ),
        Mistake(
            _subnormal_one_too_low,
            "Subnormals go on with the step of the smallest normal numbers: their exponent is 1 − bias, not 0 − bias.",
        ),
        Mistake(_no_bias, "The exponent field is never negative; the exponent may be: subtract the bias."),
        Mistake(_bias_too_large, "Yours is half of what is wanted: the bias is 2 ** (exponent_bits − 1) − 1."),
        Mistake(_no_sign, "The top bit is the sign: where it is 1, the value is negative."),
        Mistake(
            _sign_in_the_exponent,
            "Your exponent field still has the sign on top of it. Keep its own bits only: % 2**exponent_bits.",
        ),
        Mistake(
            _no_implicit_one,
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
        "Cut the code into its three fields first: >> drops the bits below a field, % those above it.",
        "(1 + s) * 2.0 ** (e - bias), with s = significand field / 2**significand_bits; if e is 0, s * 2.0 ** (1 - bias).",
    ),
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


def _ceil(block, largest_exponent):
    return _rounded_by(np.ceil, block, largest_exponent)


def _nearest_exponent(block, largest_exponent):
    return _rounded_by(np.rint, block, largest_exponent)


def _exponent_cut_off(block, largest_exponent):
    return _rounded_by(np.trunc, block, largest_exponent)


def _exponent_not_rounded(block, largest_exponent):
    return np.abs(block).max() / 2.0**largest_exponent


def _exponent_of_frexp(block, largest_exponent):
    return 2.0 ** (np.frexp(np.abs(block).max())[1] - largest_exponent)


def _largest_exponent_forgotten(block, largest_exponent):
    return _rounded_by(np.floor, block, 0)


def _added(block, largest_exponent):
    return _rounded_by(np.floor, block, -largest_exponent)


def _exponent_only(block, largest_exponent):
    return np.floor(np.log2(np.abs(block).max())) - largest_exponent


def _one_for_each_value(block, largest_exponent):
    with np.errstate(all="ignore"):
        return 2.0 ** (np.floor(np.log2(np.abs(block))) - largest_exponent)


def _integer_power(block, largest_exponent):
    return 2 ** np.int64(np.floor(np.log2(np.abs(block).max())) - largest_exponent)


@st.composite
def _mx_blocks(draw):
    n = draw(st.integers(1, 6))
    block = draw(hnp.arrays(np.float64, n, elements=st.integers(-31, 31)).filter(np.any))
    return {
        "block": block * 2.0 ** draw(st.integers(-6, 6)),
        "largest_exponent": draw(st.sampled_from([2, 4, 8, 15])),
    }


_SIGN_MATTERS = "The block's largest magnitude may belong to a negative number: np.abs first, then max."

MX_SCALE = Exercise(
    id="08.4",
    solution=mx_scale,
    examples=(
        {"block": np.array([0.5, -7.0, 3.0, 1.0]), "largest_exponent": 2},
        {"block": np.array([0.3125, 0.1875, -0.25]), "largest_exponent": 2},
        {"block": np.array([96.0, -512.0, 512.0, 17.0]), "largest_exponent": 8},
    ),
    cases=_mx_blocks(),
    mistakes=(
        Mistake(_signed_maximum, _SIGN_MATTERS),
        Mistake(_abs_of_the_maximum, _SIGN_MATTERS),
        Mistake(_ceil, "You round the exponent up. The rule here is floor: the power of two at or below max|x|."),
        Mistake(
            _nearest_exponent,
            "You round the exponent to the nearest whole number. The rule here is floor: always down.",
        ),
        Mistake(
            _exponent_cut_off, "A cast cuts towards 0. Below 1 the exponent is negative and must go down: np.floor."
        ),
        Mistake(
            _exponent_not_rounded, "That is no power of two. Only the exponent is stored, a whole number: np.floor."
        ),
        Mistake(
            _exponent_of_frexp,
            "np.frexp counts from ½, so its exponent is one larger than floor(log2): subtract 1.",
        ),
        Mistake(
            _largest_exponent_forgotten,
            "That brings the block to 1 … 2. The format reaches further: subtract largest_exponent.",
        ),
        Mistake(_added, "x is divided by the scale. For quotients up to 2^largest_exponent, it must be subtracted."),
        Mistake(_exponent_only, "That is the exponent. The scale is two to its power."),
        Mistake(
            _one_for_each_value, "That is a scale for each value. A block shares one, that of its largest magnitude."
        ),
        Mistake(_integer_power, "NumPy does not raise an integer to a negative power. Begin with a float: 2.0 ** …"),
    ),
    hints=(
        "Which power of two lies at or just below the block's largest magnitude? And which does the format reach?",
        "np.floor(np.log2(np.abs(block).max())) is the first one's exponent; subtract largest_exponent, then 2.0 ** it.",
    ),
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


def _top_bit_first(codes, bits):
    return np.packbits((codes[:, None] >> np.arange(bits)) & 1, bitorder="big")


def _first_code_on_top(codes, bits):
    return np.packbits((codes[:, None] >> np.arange(bits)[::-1]) & 1, bitorder="big")


def _codes_turned_round(codes, bits):
    return np.packbits((codes[:, None] >> np.arange(bits)[::-1]) & 1, bitorder="little")


def _last_byte_dropped(codes, bits):
    return pack(codes, bits)[: len(codes) * bits // 8]


def _full_bytes_only(codes, bits):
    stream = ((codes[:, None] >> np.arange(bits)) & 1).reshape(-1, 8)
    return (stream @ 2 ** np.arange(8)).astype(np.uint8)


def _a_bit_a_byte(codes, bits):
    return ((codes[:, None] >> np.arange(bits)) & 1).reshape(-1).astype(np.uint8)


def _all_first_bits_first(codes, bits):
    return np.packbits(((codes[:, None] >> np.arange(bits)) & 1).T, bitorder="little")


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
        Mistake(_cut_at_the_byte, _ACROSS),
        Mistake(_too_large_for_a_byte, _ACROSS),
        Mistake(_top_bit_first, 'You fill bytes from the top bit down. Fill from the lowest: bitorder="little".'),
        Mistake(
            _first_code_on_top,
            "Your first code lies in the high bits of the first byte. Here it takes the lowest ones.",
        ),
        Mistake(
            _codes_turned_round, "Your codes lie in the bytes with their bits reversed: the lowest bit comes first."
        ),
        Mistake(
            _last_byte_dropped,
            "Codes are lost at the end: a last byte that is not full is stored too, filled up with zeros.",
        ),
        Mistake(_full_bytes_only, "The stream need not end with a full byte: fill the last one up with zeros."),
        Mistake(_a_bit_a_byte, "Your bits are right, but each has a byte of its own. np.packbits puts eight into one."),
        Mistake(
            _all_first_bits_first,
            "You store the lowest bits of all codes, then the next ones. Here all bits of a code stay together.",
        ),
    ),
    hints=(
        "Take it in two steps: first one long row of single bits, code after code; then eight of them to a byte.",
        '(codes[:, None] >> np.arange(bits)) & 1 are the bits, a row for each code; np.packbits(…, bitorder="little").',
    ),
)

EXERCISES = (NEAREST_LEVEL, LLOYD_STEP, FLOAT_VALUE, MX_SCALE, PACK)
