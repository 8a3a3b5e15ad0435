"""Lesson 08: what learners write is told the truth; the challenge counts every bit; the table of libraries holds."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest

from qlearn import codebooks, exercises, formats
from qlearn.exercises.challenges import CannotBeJudged
from qlearn.exercises.lesson_08 import LEAST_SQNR, judge_format, my_format


def middles(levels):
    return (levels[1:] + levels[:-1]) / 2


# --- right answers that look different -------------------------------------------------------------------------------


def nearest_by_a_loop(x, levels):
    codes = np.zeros(x.shape, np.uint8)
    for place in np.ndindex(x.shape):
        codes[place] = min(range(len(levels)), key=lambda c: abs(x[place] - levels[c]))
    return codes


def nearest_by_counting(x, levels):
    return (x[..., None] > middles(levels)).sum(axis=-1).astype(np.uint8)


def step_by_sums(x, levels):
    codes = np.digitize(x, middles(levels), right=True)
    counts = np.bincount(codes, minlength=len(levels))
    sums = np.bincount(codes, weights=x, minlength=len(levels))
    return np.where(counts > 0, sums / np.maximum(counts, 1), levels)


def step_by_lists(x, levels):
    owned = [[] for _ in levels]
    for value in x:
        owned[int(np.argmin(np.abs(levels - value)))].append(value)
    return np.array(
        [sum(values) / len(values) if values else level for values, level in zip(owned, levels, strict=True)]
    )


def float_by_text(code, exponent_bits, significand_bits):
    text = format(code, f"0{1 + exponent_bits + significand_bits}b")
    e, m = int(text[1 : 1 + exponent_bits], 2), int(text[1 + exponent_bits :], 2)
    step = 2.0 ** (max(e, 1) - 2 ** (exponent_bits - 1) + 1 - significand_bits)
    return (-1) ** int(text[0]) * (m + (e > 0) * 2**significand_bits) * step


def float_by_masks(code, exponent_bits, significand_bits):
    significand = code & ((1 << significand_bits) - 1)
    exponent = code >> significand_bits & ((1 << exponent_bits) - 1)
    sign = -1 if code & 1 << (exponent_bits + significand_bits) else 1
    bias = (1 << (exponent_bits - 1)) - 1
    if not exponent:
        return np.float64(sign * significand) / 2 ** (significand_bits + bias - 1)
    return sign * np.ldexp(1 + significand / (1 << significand_bits), exponent - bias)


def scale_by_frexp(block, largest_exponent):
    return np.ldexp(1.0, np.frexp(max(abs(block)))[1] - 1 - largest_exponent)


def scale_by_a_loop(block, largest_exponent):
    scale = 1.0
    while scale * 2 <= np.abs(block).max():
        scale *= 2
    while scale > np.abs(block).max():
        scale /= 2
    return scale / 2**largest_exponent


def scale_of_the_quotient(block, largest_exponent):
    return 2 ** np.floor(np.log2(np.max(np.abs(block)) / 2**largest_exponent))


def pack_as_one_number(codes, bits):
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    return np.frombuffer(number.to_bytes(-(-len(codes) * bits // 8), "little"), np.uint8)


def pack_bit_by_bit(codes, bits):
    packed = np.zeros(-(-len(codes) * bits // 8), np.uint8)
    for i, code in enumerate(codes):
        for k in range(bits):
            if code >> k & 1:
                packed[(i * bits + k) // 8] |= np.uint8(1 << (i * bits + k) % 8)
    return packed


def pack_by_unpackbits(codes, bits):
    table = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(table, bitorder="little")


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("08.1", nearest_by_a_loop),
        ("08.1", nearest_by_counting),
        ("08.2", step_by_sums),
        ("08.2", step_by_lists),
        ("08.3", float_by_text),
        ("08.3", float_by_masks),
        ("08.4", scale_by_frexp),
        ("08.4", scale_by_a_loop),
        ("08.4", scale_of_the_quotient),
        ("08.5", pack_as_one_number),
        ("08.5", pack_bit_by_bit),
        ("08.5", pack_by_unpackbits),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message
    assert "new digits" in result.message and "raised" not in result.message


# --- wrong answers as learners write them ----------------------------------------------------------------------------


def means(x, levels, codes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array([x[codes == c].mean() for c in range(len(levels))])


def nearest(x, levels):
    return np.abs(x[:, None] - levels).argmin(axis=1)


def moves_in_place(x, levels):
    for c in np.unique(nearest(x, levels)):
        levels[c] = x[nearest(x, levels) == c].mean()
    return levels


def into_whole_numbers(x, levels):
    moved = levels.astype(int)
    for c in np.unique(nearest(x, levels)):
        moved[c] = x[nearest(x, levels) == c].mean()
    return np.where(np.isin(np.arange(len(levels)), nearest(x, levels)), moved, levels)


def without_minlength(x, levels):
    codes = nearest(x, levels)
    counts, sums = np.bincount(codes), np.bincount(codes, weights=x)
    return np.where(counts > 0, sums / np.maximum(counts, 1), levels[: len(counts)])


def with_digitize(x, levels):
    codes, moved = np.digitize(x, middles(levels)), levels.copy()
    for c in set(codes):
        moved[c] = x[codes == c].mean()
    return moved


def until_nothing_moves(x, levels):
    while not np.array_equal(moved := step_by_lists(x, levels), levels):
        levels = moved
    return levels


def ties_and_empty(x, levels):
    return means(x, levels, np.digitize(x, middles(levels)))


def loses_at_the_byte(codes, bits):
    packed = np.zeros(-(-len(codes) * bits // 8), dtype=np.uint8)
    for i in range(len(codes)):
        packed[i * bits // 8] += (codes[i] << (i * bits) % 8) & 255
    return packed


def of_a_course(codes, bits):
    packed = np.zeros(len(codes) * bits // 8, dtype=np.uint8)
    n = 0
    for i in range(len(packed)):
        for j in range(8 // bits):
            packed[i] |= codes[n] << (bits * j)
            n += 1
    return packed


def field(code, exponent_bits, significand_bits):
    e = (code >> significand_bits) & (2**exponent_bits - 1)
    return (
        e,
        (code & (2**significand_bits - 1)) / 2**significand_bits,
        (-1) ** (code >> (exponent_bits + significand_bits)),
    )


def always_one_in_front(code, exponent_bits, significand_bits):
    e, m, sign = field(code, exponent_bits, significand_bits)
    bias = 2 ** (exponent_bits - 1) - 1
    return sign * (1 + m) * 2.0 ** (e - bias if e else 1 - bias)


def bias_of_eight_bits(code, exponent_bits, significand_bits):
    e, m, sign = field(code, exponent_bits, significand_bits)
    return sign * m * 2.0**-126 if e == 0 else sign * (1 + m) * 2.0 ** (e - 127)


def whole_bias(code, exponent_bits, significand_bits):
    e, m, sign = field(code, exponent_bits, significand_bits)
    bias = 2 ** (exponent_bits - 1)
    return sign * (m * 2.0 ** (1 - bias) if e == 0 else (1 + m) * 2.0 ** (e - bias))


def two_things_missing(code, exponent_bits, significand_bits):
    m = 2**significand_bits
    return (1 + code % m / m) * 2.0 ** (code // m % 2**exponent_bits - 2 ** (exponent_bits - 1) + 1)


def masks_that_are_none(code, exponent_bits, significand_bits):
    e, m = code >> significand_bits & exponent_bits, (code & significand_bits) / 2**significand_bits
    value = (e != 0) + m
    sign = 1 - 2 * (code >> exponent_bits + significand_bits)
    return sign * value * 2.0 ** ((e or 1) - 2 ** (exponent_bits - 1) + 1)


def by_text(codes, bits, order):
    text = "".join(format(code, f"0{bits}b")[::order] for code in codes)
    return np.array([int(text[i : i + 8], 2) for i in range(0, len(text), 8)], np.uint8)


def means_or_old(x, levels, codes):
    return np.array([x[codes == c].mean() if (codes == c).any() else level for c, level in enumerate(levels)])


def root_mean_squares(x, levels):
    codes = nearest(x, levels)
    return np.array([np.mean(x[codes == c] ** 2) ** 0.5 if c in codes else level for c, level in enumerate(levels)])


def fields(code, exponent_bits, significand_bits):
    sign = -1 if code >> (exponent_bits + significand_bits) else 1
    return sign, (code >> significand_bits) % 2**exponent_bits, code % 2**significand_bits, 2 ** (exponent_bits - 1) - 1


def no_sign_below_the_normal(code, **bits):
    value = float_by_text(code, **bits)
    return value if fields(code, **bits)[1] else abs(value)


def fractions_up_to_one(code, exponent_bits, significand_bits):
    sign, e, m, bias = fields(code, exponent_bits, significand_bits)
    return sign * ((e > 0) + m / (2**significand_bits - 1)) * 2.0 ** (max(e, 1) - bias)


def bias_with_a_plus(code, exponent_bits, significand_bits):
    sign, e, m, bias = fields(code, exponent_bits, significand_bits)
    return sign * ((e > 0) + m / 2**significand_bits) * 2.0 ** (max(e, 1) + bias)


def bias_of_all_ones(code, exponent_bits, significand_bits):
    sign, e, m, _ = fields(code, exponent_bits, significand_bits)
    return sign * ((e > 0) + m / 2**significand_bits) * 2.0 ** (max(e, 1) - 2**exponent_bits + 1)


def floored(values):
    return 2.0 ** np.floor(np.log2(np.max(np.abs(values))))


def row_by_row(codes, bits):
    table = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(table, axis=1, bitorder="little")


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("08.1", lambda x, levels: np.digitize(x, levels).astype(np.uint8), "begins with 1"),
        ("08.1", lambda x, levels: (np.digitize(x, levels) - 1).astype(np.uint8), "next level below"),
        ("08.1", lambda x, levels: np.digitize(x, levels) - 1, "next level below"),
        ("08.1", lambda x, levels: (np.searchsorted(levels, x) - 1).astype(np.uint8), "next level below"),
        ("08.1", lambda x, levels: np.searchsorted(levels, x).astype(np.uint8), "next level above"),
        ("08.1", lambda x, levels: np.abs(x[..., None] - levels).argmin(-1), "the values are right"),
        ("08.1", lambda x, levels: np.abs(x[..., None] - levels).argmin().astype(np.uint8), "Without axis=-1"),
        ("08.1", lambda x, levels: np.abs(levels[:, None] - x).argmin(0).astype(np.uint8), "works for a list only"),
        ("08.1", lambda x, levels: np.abs(x[:, None] - levels).argmin(1).astype(np.uint8), "works for a list only"),
        ("08.1", lambda x, levels: (x[..., None] - levels).argmin(-1).astype(np.uint8), "smallest np.abs"),
        ("08.1", lambda x, levels: levels[np.searchsorted(middles(levels), x)], "These are the levels themselves"),
        ("08.1", lambda x, levels: np.searchsorted((levels[1:] + levels[:-1]) // 2, x).astype("u1"), "drops the half"),
        (
            "08.1",
            lambda x, levels: np.searchsorted(levels, x, side="right").astype("u1"),
            "You count the levels up to x",
        ),
        ("08.1", lambda x, levels: np.searchsorted(middles(levels), x) + 1, "Off by one"),
        ("08.1", lambda x, levels: (np.searchsorted(middles(levels), x) - 1).astype("u1"), "Off by one"),
        ("08.1", lambda x, levels: np.searchsorted(levels[1:] + levels[:-1], x).astype("u1"), "divide by 2"),
        ("08.1", lambda x, levels: np.abs(x[..., None] - levels).argmax(-1).astype("u1"), "farthest away"),
        ("08.1", lambda x, levels: np.abs(x[..., None] - levels).min(-1), "These are the distances"),
        ("08.2", lambda x, levels: np.bincount(nearest(x, levels), x) / np.bincount(nearest(x, levels)), "minlength"),
        ("08.2", lambda x, levels: means_or_old(x, levels, np.searchsorted(levels, x)), "belongs to its nearest level"),
        ("08.2", root_mean_squares, "never negative"),
        ("08.2", lambda x, levels: means(x, levels, nearest(x, levels)), "0/0 is NaN"),
        ("08.2", lambda x, levels: np.nan_to_num(means(x, levels, nearest(x, levels))), "went to 0"),
        ("08.2", moves_in_place, "changed its input levels"),
        ("08.2", into_whole_numbers, "lost their fractions"),
        ("08.2", without_minlength, "is missing from your result"),
        ("08.2", with_digitize, "belongs to the smaller one"),
        ("08.2", until_nothing_moves, "until nothing moves"),
        ("08.2", ties_and_empty, "belongs to the smaller one"),
        ("08.2", lambda x, levels: nearest(x, levels), "Those are the codes"),
        ("08.2", lambda x, levels: levels[nearest(x, levels)], "each level once|other values|has shape"),
        ("08.2", lambda x, levels: levels, "Your levels are the old ones"),
        ("08.2", lambda x, levels: list(step_by_lists(x, levels)), "a NumPy array is wanted"),
        ("08.3", always_one_in_front, "no 1 in front"),
        ("08.3", two_things_missing, "Two things are missing"),
        ("08.3", masks_that_are_none, "keeps the wrong bits"),
        ("08.3", bias_of_eight_bits, "127 is the bias of 8 exponent bits"),
        ("08.3", whole_bias, "Yours is half of what is wanted"),
        ("08.3", lambda code, **bits: -float_by_text(code, **bits), "other values"),
        ("08.3", lambda code, **bits: abs(float_by_masks(code, **bits)), "The top bit is the sign"),
        ("08.3", lambda code, exponent_bits, significand_bits: code / 2**significand_bits, "other values"),
        ("08.3", lambda code, **bits: (code >> sum(bits.values())) * abs(float_by_text(code, **bits)), "1 or −1"),
        ("08.3", no_sign_below_the_normal, "Subnormal numbers have a sign"),
        ("08.3", fractions_up_to_one, "steps from one power of two to the next"),
        ("08.3", bias_with_a_plus, "You add the bias"),
        ("08.3", bias_of_all_ones, "largest exponent field"),
        ("08.4", lambda block, largest_exponent: floored(block) / largest_exponent, "largest_exponent itself"),
        ("08.4", lambda block, largest_exponent: floored(block) / 4, "You subtract 2"),
        ("08.4", lambda block, largest_exponent: max(abs(block)) // 1 / 2**largest_exponent, "round the magnitude"),
        ("08.4", lambda block, largest_exponent: np.log2(max(abs(block))) - largest_exponent, "not a whole one"),
        ("08.4", lambda block, largest_exponent: floored(min(abs(block))) / 2**largest_exponent, "smallest magnitude"),
        ("08.4", lambda block, largest_exponent: 2 * scale_by_frexp(block, largest_exponent), "one too large"),
        ("08.4", lambda block, largest_exponent: 2.0 ** np.ceil(np.log2(max(abs(block)) / 6)), "You divide by 6"),
        ("08.4", lambda block, largest_exponent: 2.0 ** np.floor(np.log2(max(abs(block)) / 6)), "You divide by 6"),
        (
            "08.4",
            lambda block, largest_exponent: 2.0 ** np.ceil(np.log2(np.abs(block).max() / 1.5) - largest_exponent),
            "You divide by 6",
        ),
        ("08.4", lambda block, largest_exponent: abs(block).max() / 6, "no power of two"),
        ("08.4", lambda block, largest_exponent: 1 / scale_by_frexp(block, largest_exponent), "one over the scale"),
        (
            "08.4",
            lambda block, largest_exponent: 2.0 ** (np.floor(np.log(np.abs(block).max())) - largest_exponent),
            "np.log counts in powers of e",
        ),
        (
            "08.4",
            lambda block, largest_exponent: 2.0 ** (np.floor(np.log2(block.max())) - largest_exponent),
            "may belong to a negative number",
        ),
        (
            "08.4",
            lambda block, largest_exponent: 2.0 ** (np.floor(np.log2(np.abs(block))) - largest_exponent),
            "A block shares one",
        ),
        (
            "08.4",
            lambda block, largest_exponent: (
                2 ** (np.floor(np.log2(np.abs(block).max())).astype(int) - largest_exponent)
            ),
            "to a negative power",
        ),
        ("08.4", lambda block, largest_exponent: block / scale_by_frexp(block, largest_exponent), "divided by its"),
        (
            "08.4",
            lambda block, largest_exponent: 2.0 ** np.round(np.log2(np.max(block)) - largest_exponent),
            "may belong to a negative number",
        ),
        ("08.5", lambda codes, bits: np.packbits(codes[:, None] >> np.arange(bits), bitorder="little"), "one bit"),
        ("08.5", lambda codes, bits: np.packbits(np.unpackbits(codes[:, None], 1)[:, :bits]), "leaves unused"),
        ("08.5", lambda codes, bits: pack_as_one_number(codes, bits)[::-1], "in reverse order"),
        ("08.5", row_by_row, "each code by itself"),
        ("08.5", of_a_course, "codes are lost"),
        ("08.5", lambda codes, bits: np.packbits(codes, bitorder="little"), "packs single bits"),
        ("08.5", lambda codes, bits: by_text(codes, bits, 1), "lies in the high bits"),
        ("08.5", lambda codes, bits: by_text(codes, bits, -1), "from the top bit down"),
        ("08.5", loses_at_the_byte, "loses those upper bits"),
        ("08.5", lambda codes, bits: codes, "still have a byte each"),
        ("08.5", lambda codes, bits: np.append(pack_bit_by_bit(codes, bits), np.uint8(0)), "has shape"),
        ("08.5", lambda codes, bits: pack_as_one_number(codes, bits).astype(int), "the values are right"),
        ("08.5", lambda codes, bits: pack_as_one_number(codes, bits).tobytes(), "a NumPy array is wanted"),
    ],
)
def test_wrong_answers_in_a_learners_words(exercise_id, attempt, message):
    with np.errstate(all="ignore"):
        result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert any(part in result.message for part in message.split("|")), result.message


def test_a_list_of_right_levels_is_no_other_mistake():
    result = exercises.check("08.2", lambda x, levels: list(step_by_lists(x, levels)))
    assert "a NumPy array is wanted" in result.message and "until nothing moves" not in result.message


@pytest.mark.parametrize("exercise_id", ["08.1", "08.2", "08.3", "08.4", "08.5"])
def test_no_hint_is_the_solution(exercise_id):
    exercise = exercises.find(exercise_id)
    lines = [line.strip().removeprefix("return ") for line in exercises.solution_source(exercise_id).splitlines()[1:]]
    assert len(exercise.hints) == 3
    assert not any(line in hint for line in lines for hint in exercise.hints)


# --- the challenge ---------------------------------------------------------------------------------------------------


def changed(**parts):
    """The solution's answer with some of its four parts replaced."""

    def answer(x):
        own = dict(zip(("codes", "levels", "scale_codes", "scale_levels"), my_format(x), strict=True))
        return tuple((own | {name: make(own, x) for name, make in parts.items()}).values())

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x, "return four arrays"),
        (lambda x: (x, x), "return four arrays"),
        (changed(codes=lambda own, x: x), "codes has dtype float32: codes are whole numbers"),
        (changed(codes=lambda own, x: own["codes"][:, :256]), "each weight needs a code"),
        (changed(codes=lambda own, x: own["codes"] + 1), "codes runs from 1 to 16; places in its list are 0 … 15"),
        (changed(codes=lambda own, x: own["codes"] - np.int64(1)), "codes runs from -1 to 14"),
        (changed(levels=lambda own, x: x.reshape(-1)), "levels must be a list of 1 to 256 numbers"),
        (changed(levels=lambda own, x: own["levels"] * 1j), "levels must be a list of 1 to 256 numbers"),
        (changed(levels=lambda own, x: [np.nan] * 16), "levels holds NaN or infinity"),
        (changed(levels=lambda own, x: [1e300] * 16), "too large for float32"),
        (changed(scale_levels=lambda own, x: []), "scale_levels must be a list"),
        (changed(scale_codes=lambda own, x: x[:, ::16]), "scale_codes has dtype float32"),
        (changed(scale_codes=lambda own, x: own["scale_codes"][:, :7]), "does not cut (192, 512) into equal blocks"),
        (changed(scale_codes=lambda own, x: own["scale_codes"].reshape(-1)), "does not cut (192, 512)"),
        (changed(scale_codes=lambda own, x: own["scale_codes"][:0]), "does not cut (192, 512)"),
    ],
)
def test_what_is_no_format_cannot_be_judged(answer, message):
    with pytest.raises(CannotBeJudged) as refused:
        judge_format(answer)
    assert message in str(refused.value)
    assert message in exercises.challenge("08.C", answer).message


def test_every_bit_is_counted():
    def one_scale_a_weight(x):  # the weights themselves as scales, as well as 256 of them can say it
        scales = np.quantile(x, np.linspace(0, 1, 256))
        return np.zeros(x.shape, int), [1.0], codebooks.encode(x, scales), scales

    score = judge_format(one_scale_a_weight)
    assert score.columns["bits per weight"] == "8.08"  # 8, and 257 numbers of 32 bits over 98,304 weights
    assert not score.passed
    score = judge_format(lambda x: (np.zeros(x.shape, int), [0.0], np.zeros((1, 1), int), [1.0]))
    assert score.columns == {"bits per weight": "0.00", "SQNR": "0.0 dB"}


def test_half_of_the_idea_is_not_enough():
    def own_scales_and_normal_levels(x):
        largest = np.abs(x.reshape(len(x), -1, 16)).max(axis=-1)
        scales = codebooks.kmeans(largest, 16)
        codes = codebooks.encode(largest, scales)
        levels = codebooks.normal_float(4)
        return codebooks.encode(x, levels, scales[codes]), levels, codes, scales

    def own_levels_and_one_scale(x):
        levels = codebooks.kmeans(x, 16)
        return codebooks.encode(x, levels), levels, np.zeros((1, 1), int), [1.0]

    def own_scales_and_own_levels(x):  # each block with the scale of its largest magnitude
        blocks = x.reshape(len(x), -1, 16)
        largest = np.abs(blocks).max(axis=-1)
        scales = codebooks.kmeans(largest, 16)
        codes = codebooks.encode(largest, scales)
        levels = codebooks.kmeans(blocks / scales[codes][..., None], 16)
        return codebooks.encode(x, levels, scales[codes]), levels, codes, scales

    for answer in (own_scales_and_normal_levels, own_levels_and_one_scale, own_scales_and_own_levels):
        score = judge_format(answer)
        assert not score.passed and decibels(score) < LEAST_SQNR - 0.1
    score = judge_format(my_format)
    assert score.passed and decibels(score) > LEAST_SQNR + 0.2


def decibels(score):
    return float(score.columns["SQNR"].removesuffix(" dB"))


# --- the lesson's table of libraries ---------------------------------------------------------------------------------


def test_casts_differ_beyond_the_largest_number():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert np.isnan(np.float32(1000).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    assert np.float32(1000).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) == 6
    torch = pytest.importorskip("torch")
    e4m3, e5m2 = (torch.tensor(1e6).to(t).float().item() for t in (torch.float8_e4m3fn, torch.float8_e5m2))
    assert e5m2 == float("inf")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14):
        assert e4m3 == 448
    assert formats.cast(1e6, formats.E4M3) == 448


def test_libraries_name_the_formats_as_the_table_does():
    torch = pytest.importorskip("torch")
    assert torch.finfo(torch.float8_e4m3fn).max == formats.E4M3.largest
    assert torch.finfo(torch.float8_e5m2).max == formats.E5M2.largest
    onnx = pytest.importorskip("onnx")
    assert {"FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1", "FLOAT8E8M0"} <= set(onnx.TensorProto.DataType.keys())
    transformers = pytest.importorskip("transformers")
    assert transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").bnb_4bit_quant_type == "nf4"
    assert hasattr(transformers, "Mxfp4Config")


def test_torchao_has_the_four_rules_and_nvfp4():
    pytest.importorskip("torchao", minversion="0.18")
    config = importlib.import_module("torchao.prototype.mx_formats.config")
    assert {rule.value for rule in config.ScaleCalculationMode} == {"floor", "ceil", "rceil", "even"}
    assert hasattr(importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor"), "NVFP4Tensor")
