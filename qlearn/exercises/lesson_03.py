"""Exercises of lesson 03, granularity."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import sys

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlearn
from qlearn import datasets, integer
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.exercises.networks import WEIGHTS, held_out, mlp_accuracy, with_weights
from qlearn.exercises.watched import watch
from qlearn.granularity import PerAxis, PerGroup, PerTensor

_values = st.integers(-400, 400).filter(bool).map(lambda n: n / 8)  # no zeros, so that no scale is 0
_matrices = hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 4)), elements=_values)


# 03.1 one scale a row


def quantize_rows(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / quant_max
    codes = np.clip(np.rint(w / scale), -quant_max, quant_max).astype(np.int8)
    return codes, scale


def _columns(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=0, keepdims=True) / quant_max
    return np.clip(np.rint(w / scale), -quant_max, quant_max).astype(np.int8), scale


def _axis_dropped(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1) / quant_max
    return np.clip(np.rint(w / scale), -quant_max, quant_max).astype(np.int8), scale


def _flat_scale(w, bits):
    codes, scale = quantize_rows(w, bits)
    return codes, scale[:, 0]


def _one_scale(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(keepdims=True) / quant_max
    return np.clip(np.rint(w / scale), -quant_max, quant_max).astype(np.int8), scale


def _row_maximum(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = w.max(axis=1, keepdims=True) / quant_max
    return np.clip(np.rint(w / scale), -quant_max, quant_max).astype(np.int8), scale


def _range_not_scale(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    largest = np.abs(w).max(axis=1, keepdims=True)
    return np.clip(np.rint(w / largest * quant_max), -quant_max, quant_max).astype(np.int8), largest


def _full_range(w, bits):
    steps = 2 ** (bits - 1)
    scale = np.abs(w).max(axis=1, keepdims=True) / steps
    return np.clip(np.rint(w / scale), -steps, steps - 1).astype(np.int8), scale


def _always_eight_bits(w, bits):
    return quantize_rows(w, 8)


def _scale_for_nothing(w, bits):
    codes, scale = quantize_rows(w, bits)
    return codes, np.broadcast_to(scale, w.shape)


def _not_cast(w, bits):
    codes, scale = quantize_rows(w, bits)
    return codes.astype(np.float64), scale


def _not_cast_but_whole(w, bits):
    codes, scale = quantize_rows(w, bits)
    return codes.astype(np.int64), scale


def _rounded_down(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / quant_max
    return np.floor(w / scale).astype(np.int8), scale


def _upside_down(w, bits):
    codes, scale = quantize_rows(w, bits)
    return codes, 1 / scale


def _dequantized(w, bits):
    codes, scale = quantize_rows(w, bits)
    return codes * scale, scale


def _in_the_network(quantize):
    def w_hat(w):
        codes, scale = quantize(w.astype(np.float64), 3)
        return (codes * scale).astype(np.float32)

    one = with_weights(lambda w: qlearn.fake_quantize(w, qlearn.find_qparams(w, bits=3, symmetric=True)))
    return (
        f"Your quantize_rows on all three layers of the network, 3 bits: {with_weights(w_hat):.1f} % of 2,000 digits "
        f"that it has not seen\n(one scale for each layer: {one:.1f} %, float: {mlp_accuracy():.1f} %)."
    )


def _cut_off(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / quant_max
    return (w / scale).astype(np.int8), scale


def _exchanged(w, bits):
    return quantize_rows(w, bits)[::-1]


def _without_a_sign(w, bits):
    quant_max = 2**bits - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / quant_max
    return np.rint(w / scale).astype(np.int8), scale


def _times_scale(w, bits):
    _, scale = quantize_rows(w, bits)
    return np.rint(w * scale).astype(np.int8), scale


def _one_number(w, bits):
    scale = np.abs(w).max() / (2 ** (bits - 1) - 1)
    return np.rint(w / scale).astype(np.int8), scale


def _whole_range(w, bits):
    scale = np.ptp(w, axis=1, keepdims=True) / (2**bits - 2)
    return np.rint(w / scale).astype(np.int64).astype(np.int8), scale


def _whole_range_unsigned(w, bits):
    scale = np.ptp(w, axis=1, keepdims=True) / (2**bits - 1)
    return np.rint(w / scale).astype(np.int64).astype(np.int8), scale


def _half_a_code_more(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / (quant_max + 0.5)
    return np.clip(np.rint(w / scale), -quant_max - 1, quant_max).astype(np.int8), scale


def _lying_down(limit):
    def wrong(w, bits):
        quant_max = 2 ** (bits - 1) - 1
        scale = np.abs(w).max(axis=1).reshape(1, -1) / quant_max
        codes = np.clip(np.rint(w / scale), -limit(quant_max), limit(quant_max))
        return codes.astype(np.int64).astype(np.int8), scale

    return wrong


EQUALLY_FAR = "Symmetric codes reach equally far on both sides: divide by 2 ** (bits - 1) − 1."
ONE_FOR_ALL = "That is one scale for the whole matrix. Each row must look at its own values only."
ROWS_RANGE = "You divide the row's whole range, max − min. Symmetric codes reach max|w| on both sides."

QUANTIZE_ROWS = Exercise(
    id="03.1",
    solution=quantize_rows,
    examples=(
        {"w": np.array([[4.0, -8.0, 2.0], [0.5, 0.25, -0.125]]), "bits": 8},
        {"w": np.array([[1.0, -3.0], [30.0, 10.0]]), "bits": 4},
    ),
    cases=st.fixed_dictionaries({"w": _matrices, "bits": st.integers(2, 8)}),
    mistakes=(
        Mistake(_columns, "That is one scale for each column. axis=0 is the axis that goes; here axis 1 must go."),
        Mistake(
            _axis_dropped,
            "max(axis=1) gives shape (O,), which NumPy lines up with the columns. keepdims=True gives (O, 1).",
        ),
        Mistake(_flat_scale, "The numbers are right. Return them as a column, shape (O, 1), so that they broadcast."),
        *(Mistake(function, ONE_FOR_ALL) for function in (_one_scale, _one_number)),
        *(Mistake(function, ROWS_RANGE) for function in (_whole_range, _whole_range_unsigned)),
        *(
            Mistake(
                _lying_down(limit),
                "Your scales lie in a row, which NumPy lines up with the columns. They must stand: (O, 1).",
            )
            for limit in (lambda quant_max: quant_max, lambda quant_max: np.inf)
        ),
        Mistake(_row_maximum, "Your scale looks at each row's largest value; in 4, −8, 2 the −8 is furthest from 0."),
        Mistake(
            _range_not_scale,
            "You return the row's largest |w|. The scale is the length of one step: divide it by quant_max.",
        ),
        *(Mistake(function, EQUALLY_FAR) for function in (_full_range, _half_a_code_more)),
        Mistake(_always_eight_bits, "You use 127 for every bit width. The largest code is 2 ** (bits - 1) − 1."),
        Mistake(
            _scale_for_nothing,
            "The numbers are right, each stored once for every weight of its row: keep one for a row, shape (O, 1).",
        ),
        Mistake(_not_cast, "The codes are right, but they are still floats: end with .astype(np.int8)."),
        Mistake(_not_cast_but_whole, "The codes are right, in a wider type than they need: cast to np.int8."),
        Mistake(_rounded_down, "You round down. The nearest tick may lie above: np.rint."),
        Mistake(
            _upside_down,
            "Your scale is upside down: it is the length of one step, max|w| of the row divided by quant_max.",
        ),
        Mistake(_dequantized, "These are the weights on their ticks, code · scale. Return the codes themselves."),
        Mistake(_cut_off, "A cast cuts the fraction off. Round to the nearest integer first, with np.rint."),
        Mistake(_exchanged, "Both are right, in the other order: the codes first, then the scales."),
        Mistake(
            _without_a_sign,
            "2 ** bits − 1 is the largest code without a sign. With one, the largest is 2 ** (bits - 1) − 1.",
        ),
        Mistake(_times_scale, "Your scales are right, but you multiply w by them. How many steps make w? Divide."),
    ),
    hints=(
        "It is the symmetric quantizer that you know, with a maximum for each row instead of one for everything.",
        "`max(axis=1)` looks along each row. But what comes out must still be a column, or NumPy lines it up with the columns.",
        "`max(axis=1, keepdims=True)` has shape (O, 1): then `w / scale` divides each row by its own entry. The largest code is `2 ** (bits - 1) - 1`.",
    ),
    consequence=_in_the_network,
)


# 03.2 a matrix product on codes


def matmul_codes(x_codes, x_scale, w_codes, w_scale):
    sums = x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)
    return sums * x_scale * w_scale.T


def _scale_not_turned(x_codes, x_scale, w_codes, w_scale):
    sums = x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)
    return sums * x_scale * w_scale


def _summed_in_int8(x_codes, x_scale, w_codes, w_scale):
    return (x_codes @ w_codes.T) * x_scale * w_scale.T


def _summed_in_int16(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int16) @ w_codes.T.astype(np.int16)) * x_scale * w_scale.T


def _x_scale_forgotten(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)) * w_scale.T


def _w_scale_forgotten(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)) * x_scale


def _divided(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)) / x_scale / w_scale.T


def _summed_in_float32(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.float32) @ w_codes.T.astype(np.float32)) * x_scale * w_scale.T


def _only_the_sums(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)).astype(np.float64)


def _elementwise(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) * w_codes.astype(np.int32)) * x_scale * w_scale


def _x_scale_turned(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)) * x_scale.T * w_scale.T


def _scales_added(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)) * (x_scale + w_scale.T)


def _cast_at_the_end(x_codes, x_scale, w_codes, w_scale):
    return matmul_codes(x_codes, x_scale, w_codes, w_scale).astype(np.int32)


def _by_the_package():
    """Is this called by `qlearn.integer`, whose floats are whole numbers so small that every sum of them is exact?"""
    frame = sys._getframe()
    while frame and frame.f_globals.get("__name__") != integer.__name__:
        frame = frame.f_back
    return frame is not None


def _multiplies_floats(function):
    """A complaint about floats along the axis that is summed. Products of scales alone do not have it."""
    depth, floats = 5, []

    def note(name, inputs, result):
        arrays = (value for value in (*inputs, result) if isinstance(value, np.ndarray))
        along = [value for value in arrays if value.dtype.kind == "f" and depth in value.shape]
        if along and not _by_the_package():
            floats.extend(along)

    codes = {"x_codes": np.ones((2, depth), dtype=np.int8), "w_codes": np.ones((3, depth), dtype=np.int8)}
    scales = {"x_scale": np.full((2, 1), 0.3), "w_scale": np.full((3, 1), 0.3)}
    function(**{name: watch(values, note) for name, values in {**codes, **scales}.items()})
    if not floats:
        return ""
    if all(np.all(values == np.rint(values)) for values in floats):
        return "your codes are floats when you sum them. Cast them to *integers* with room for the sums, np.int32."
    return "you multiply real numbers. Multiply the *codes*, in int32, and scale the sums once at the end."


def _whole_network(multiply):
    net, (x, labels) = datasets.trained("mlp"), held_out()
    rows = {"symmetric": True, "granularity": PerAxis(0)}
    for layer in ("linear1", "linear2", "linear3"):
        w = net[f"{layer}.weight"]
        qx, qw = qlearn.find_qparams(x, **rows), qlearn.find_qparams(w, **rows)
        y = multiply(qlearn.quantize(x, qx), qx.scale, qlearn.quantize(w, qw), qw.scale) + net[f"{layer}.bias"]
        x = np.maximum(y, 0).astype(np.float32)
    percent = 100 * np.mean(y.argmax(axis=1) == labels)
    return (
        f"Your matmul_codes multiplied int8 codes in all three layers of the network: {percent:.1f} % of 2,000 digits "
        f"that it has not seen\n(float: {mlp_accuracy():.1f} %)."
    )


def _product_not_turned(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.astype(np.int32)) * x_scale * w_scale.T


def _both_turned(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.T.astype(np.int32)) * x_scale.T * w_scale


def _outputs_first(x_codes, x_scale, w_codes, w_scale):
    return matmul_codes(x_codes, x_scale, w_codes, w_scale).T


_codes = st.integers(-127, 127)
_scales = st.integers(1, 32).map(lambda n: n / 16)

MATMUL_CODES = Exercise(
    id="03.2",
    solution=matmul_codes,
    examples=(
        {
            "x_codes": np.array([[100, -50], [3, 127]], dtype=np.int8),
            "x_scale": np.array([[0.5], [2.0]]),
            "w_codes": np.array([[127, 0], [-20, 90]], dtype=np.int8),
            "w_scale": np.array([[0.25], [4.0]]),
        },
        {
            "x_codes": np.array([[1, 2, 3], [-4, 5, 6]], dtype=np.int8),
            "x_scale": np.array([[1.0], [0.5]]),
            "w_codes": np.array([[10, 0, -30], [7, 70, 0], [1, 1, 1], [-9, 8, 100]], dtype=np.int8),
            "w_scale": np.array([[0.5], [2.0], [1.0], [0.25]]),
        },
        {
            "x_codes": np.full((1, 1201), 127, dtype=np.int8),
            "x_scale": np.array([[1.0]]),
            "w_codes": np.full((1, 1201), 127, dtype=np.int8),
            "w_scale": np.array([[1.0]]),
        },
        {
            "x_codes": np.array([[127, 127, 127]], dtype=np.int8),
            "x_scale": np.array([[0.5]]),
            "w_codes": np.array([[127, 127, 127], [-127, -127, -127]], dtype=np.int8),
            "w_scale": np.array([[2.0], [0.5]]),
        },
    ),
    cases=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)).flatmap(
        lambda n: st.fixed_dictionaries(
            {
                "x_codes": hnp.arrays(np.int8, (n[0], n[2]), elements=_codes),
                "x_scale": hnp.arrays(np.float64, (n[0], 1), elements=_scales),
                "w_codes": hnp.arrays(np.int8, (n[1], n[2]), elements=_codes),
                "w_scale": hnp.arrays(np.float64, (n[1], 1), elements=_scales),
            }
        )
    ),
    mistakes=(
        Mistake(
            _scale_not_turned,
            "w_scale is a column (O, 1), but the outputs lie along the result's columns: it takes a row, w_scale.T.",
        ),
        Mistake(_summed_in_int8, "Your sums wrapped: int8 times int8 stays int8 in NumPy. Cast the codes to int32."),
        Mistake(_summed_in_int16, "Your sums wrapped: three products of 8-bit codes do not fit into int16. Use int32."),
        Mistake(_x_scale_forgotten, "x_scale is missing: a product of two codes counts steps of both scales."),
        Mistake(_w_scale_forgotten, "w_scale is missing: a product of two codes counts steps of both scales."),
        Mistake(_divided, "Quantizing divided by the scales. Here you go back to real numbers: multiply."),
        Mistake(
            _summed_in_float32,
            "Your sums lost their last digits: float32 holds whole numbers up to 2²⁴ only. Sum in int32.",
        ),
        Mistake(_only_the_sums, "These are the sums of codes. Each still counts steps: multiply by both scales."),
        Mistake(_elementwise, "* multiplies entry by entry. A layer is a matrix product: x_codes @ w_codes.T."),
        Mistake(
            _x_scale_turned,
            "x_scale is a column (M, 1), one for each row of the result: it stays as it is. Only w_scale turns.",
        ),
        Mistake(
            _both_turned,
            "It is the other way round: x_scale, (M, 1), fits the rows of the result as it is, and w_scale takes a .T.",
        ),
        Mistake(
            _outputs_first, "Your result has shape (O, M). Each row of x gives one of its rows: x_codes @ w_codes.T."
        ),
        Mistake(_product_not_turned, "The rows of w are outputs: the product is x_codes @ w_codes.T."),
        Mistake(_scales_added, "A product of codes is worth the product of the two scales, not their sum."),
        Mistake(_cast_at_the_end, "The result is real numbers: scaled sums. Cast the codes, not the result."),
    ),
    hints=(
        "First a product of integers only, in a type that holds the sums. What shape has it, and whose scale is whose?",
        "The sums have shape (M, O). A row of them belongs to one x_scale, a column to one w_scale.",
        "Cast both to `np.int32` before the `@`. (M, 1) fits the rows as it is; (O, 1) must become (1, O), with `.T`.",
    ),
    forbidden=_multiplies_floats,
    consequence=_whole_network,
)


# 03.3 one scale a group


def fake_quantize_groups(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / quant_max
    return (scale * np.rint(groups / scale)).reshape(w.shape)


def _every_so_many(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], group_size, -1)
    scale = np.abs(groups).max(axis=1, keepdims=True) / quant_max
    return (scale * np.rint(groups / scale)).reshape(w.shape)


def _number_of_groups(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], group_size, -1)
    scale = np.abs(groups).max(axis=2, keepdims=True) / quant_max
    return (scale * np.rint(groups / scale)).reshape(w.shape)


def _rows_only(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / quant_max
    return scale * np.rint(w / scale)


def _across_the_rows(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=(0, 2), keepdims=True) / quant_max
    return (scale * np.rint(groups / scale)).reshape(w.shape)


def _tiled(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w.reshape(w.shape[0], -1, group_size)).max(axis=2) / quant_max
    scale = np.tile(scale, (1, group_size))
    return scale * np.rint(w / scale)


def _axis_dropped_in_groups(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2) / quant_max
    return (scale * np.rint(groups / scale)).reshape(w.shape)


def _scale_not_spread(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w.reshape(w.shape[0], -1, group_size)).max(axis=2) / quant_max
    return scale * np.rint(w / scale)


def _largest_not_absolute(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = groups.max(axis=2, keepdims=True) / quant_max
    return (scale * np.clip(np.rint(groups / scale), -quant_max, quant_max)).reshape(w.shape)


def _cut_off_in_groups(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / quant_max
    return (scale * (groups / scale).astype(np.int64)).reshape(w.shape)


def _groups_in_the_network(fake_quantize):
    def divides(w):
        return 28 if w.shape[1] % 28 == 0 else 25

    def in_groups(w):
        return np.asarray(fake_quantize(w.astype(np.float64), divides(w), 2), dtype=np.float32)

    rows = with_weights(
        lambda w: qlearn.fake_quantize(w, qlearn.find_qparams(w, bits=2, symmetric=True, granularity=PerAxis(0)))
    )
    return (
        f"Your groups of 28 and 25 in the network, 2 bits: {with_weights(in_groups):.1f} % of 2,000 digits that it has "
        f"not seen\n(one scale for each row: {rows:.1f} %, float: {mlp_accuracy():.1f} %)."
    )


def _left_in_groups(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / quant_max
    return scale * np.rint(groups / scale)


def _codes_only(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / quant_max
    return np.rint(groups / scale).reshape(w.shape)


def _codes_as_int8(w, group_size, bits):
    return _codes_only(w, group_size, bits).astype(np.int8)


def _one_scale_for_all(w, group_size, bits):
    scale = np.abs(w).max() / (2 ** (bits - 1) - 1)
    return scale * np.rint(w / scale)


def _left_flat(w, group_size, bits):
    return fake_quantize_groups(w, group_size, bits).reshape(-1, group_size)


def _full_range_in_groups(w, group_size, bits):
    steps = 2 ** (bits - 1)
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / steps
    return (scale * np.clip(np.rint(groups / scale), -steps, steps - 1)).reshape(w.shape)


def _rounded_down_in_groups(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / quant_max
    return (scale * np.floor(groups / scale)).reshape(w.shape)


def _across_the_groups(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=1, keepdims=True) / quant_max
    return (scale * np.rint(groups / scale)).reshape(w.shape)


def _whole_rows_divided(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w.reshape(w.shape[0], -1, group_size)).max(axis=2, keepdims=True) / quant_max
    return (scale * np.rint(w / scale)).reshape(w.shape)


def _codes_and_scales(w, group_size, bits):
    quant_max = 2 ** (bits - 1) - 1
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / quant_max
    return np.rint(groups / scale).astype(np.int8), scale


def _largest_not_clipped(w, group_size, bits):
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = groups.max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1)
    return (scale * np.rint(groups / scale)).reshape(w.shape)


def _always_127(w, group_size, bits):
    return fake_quantize_groups(w, group_size, 8)


def _repeated_downwards(w, group_size, bits):
    scale = np.abs(w.reshape(w.shape[0], -1, group_size)).max(axis=2) / (2 ** (bits - 1) - 1)
    scale = np.repeat(scale, group_size, axis=0)
    return scale * np.rint(w / scale)


def _scaled_too_late(w, group_size, bits):
    groups = w.reshape(w.shape[0], -1, group_size)
    scale = np.abs(groups).max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1)
    return scale * np.rint(groups / scale).reshape(w.shape)


_LEFT = "The values are right. Bring them back to the shape of w."
_CODES = "These are the codes. Multiply each by its scale, while they lie in groups."

FAKE_QUANTIZE_GROUPS = Exercise(
    id="03.3",
    solution=fake_quantize_groups,
    examples=(
        {
            "w": np.array([[1.0, -0.3, 20.0, 7.0, 0.5, 0.2], [8.0, 3.0, -0.25, 0.1, -60.0, 11.0]]),
            "group_size": 2,
            "bits": 4,
        },
        {"w": np.array([[1.0, -0.3, 0.6, 50.0, 13.0, 7.0]]), "group_size": 3, "bits": 3},
    ),
    cases=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)).flatmap(
        lambda n: st.fixed_dictionaries(
            {
                "w": hnp.arrays(np.float64, (n[0], n[1] * n[2]), elements=_values),
                "group_size": st.just(n[2]),
                "bits": st.integers(2, 8),
            }
        )
    ),
    mistakes=(
        Mistake(
            _every_so_many,
            "Your groups are made of values far apart. A group is a run of neighbours: reshape to (O, −1, group_size).",
        ),
        Mistake(
            _number_of_groups, "You made group_size groups. It is how many values a group has: the last of three axes."
        ),
        Mistake(_rows_only, "That is one scale for each row: the groups are missing."),
        Mistake(
            _across_the_rows, "Your groups reach across all rows. Each row has groups of its own: reduce axis 2 only."
        ),
        Mistake(
            _tiled,
            "np.tile repeats the whole list of scales, 1 2 3 1 2 3. Neighbours share one: np.repeat, 1 1 2 2 3 3.",
        ),
        Mistake(
            _axis_dropped_in_groups,
            "max(axis=2) gives shape (O, G), which does not line up with (O, G, group_size). keepdims=True gives (O, G, 1).",
        ),
        Mistake(
            _scale_not_spread,
            "Your scales have shape (O, G), and w has shape (O, I). Give w three axes, so that each group meets its own scale.",
        ),
        *(
            Mistake(function, "Your scale looks at each group's largest value; a −60 is further from 0 than 11.")
            for function in (_largest_not_absolute, _largest_not_clipped)
        ),
        Mistake(_always_127, "You use 127 for every bit width. The largest code is 2 ** (bits - 1) − 1."),
        Mistake(_repeated_downwards, "Along axis 0 np.repeat repeats rows. The values of a group lie along axis 1."),
        Mistake(
            _scaled_too_late, "Your scales have three axes: multiply while the codes have three, and reshape last."
        ),
        Mistake(_cut_off_in_groups, "A cast cuts the fraction off. Round to the nearest code first, with np.rint."),
        Mistake(_left_in_groups, _LEFT),
        Mistake(_left_flat, _LEFT),
        Mistake(_codes_only, _CODES),
        Mistake(_codes_as_int8, _CODES),
        Mistake(_codes_and_scales, "These are codes and scales. Here their product is wanted, in the shape of w."),
        Mistake(_one_scale_for_all, "That is one scale for the whole matrix: the groups are missing."),
        Mistake(_full_range_in_groups, EQUALLY_FAR),
        Mistake(_rounded_down_in_groups, "You round down. The nearest tick may lie above: np.rint."),
        Mistake(
            _across_the_groups,
            "Axis 1 counts the groups, and a group lies along axis 2: that is the axis to take the maximum of.",
        ),
        Mistake(
            _whole_rows_divided,
            "Your scales have three axes, and w has two. Divide the groups by them, not w.",
        ),
    ),
    hints=(
        "Give w a third axis, so that a group is what lies along it. Then it is exercise 03.1 along another axis.",
        "`w.reshape(w.shape[0], -1, group_size)` has the groups along its last axis, and `-1` lets NumPy count them.",
        "The scale is the maximum along axis 2, with `keepdims=True`. Quantize and dequantize in that shape, and go back with `.reshape(w.shape)`.",
    ),
    consequence=_groups_in_the_network,
)


# 03.4 what a value costs


def bits_per_value(bits, group_size, scale_bits, zero_point_bits):
    return bits + (scale_bits + zero_point_bits) / group_size


def _not_shared(bits, group_size, scale_bits, zero_point_bits):
    return bits + scale_bits + zero_point_bits


def _zero_point_forgotten(bits, group_size, scale_bits, zero_point_bits):
    return bits + scale_bits / group_size


def _all_shared(bits, group_size, scale_bits, zero_point_bits):
    return (bits + scale_bits + zero_point_bits) / group_size


def _in_bytes(bits, group_size, scale_bits, zero_point_bits):
    return (bits + (scale_bits + zero_point_bits) / group_size) / 8


def _whole_group(bits, group_size, scale_bits, zero_point_bits):
    return bits * group_size + scale_bits + zero_point_bits


def _whole_bits_only(bits, group_size, scale_bits, zero_point_bits):
    return bits + (scale_bits + zero_point_bits) // group_size


def _divided_the_codes(bits, group_size, scale_bits, zero_point_bits):
    return bits / group_size + scale_bits + zero_point_bits


def _multiplied(bits, group_size, scale_bits, zero_point_bits):
    return bits + (scale_bits + zero_point_bits) * group_size


def _rounded_up(bits, group_size, scale_bits, zero_point_bits):
    return bits + -(-(scale_bits + zero_point_bits) // group_size)


def _no_overhead(bits, group_size, scale_bits, zero_point_bits):
    return float(bits)


def _only_the_zero_point_shared(bits, group_size, scale_bits, zero_point_bits):
    return bits + scale_bits + zero_point_bits / group_size


def _only_the_scale_shared(bits, group_size, scale_bits, zero_point_bits):
    return bits + scale_bits / group_size + zero_point_bits


def _codes_forgotten(bits, group_size, scale_bits, zero_point_bits):
    return (scale_bits + zero_point_bits) / group_size


def _rounded(bits, group_size, scale_bits, zero_point_bits):
    return round(bits + (scale_bits + zero_point_bits) / group_size)


def _upside_down_share(bits, group_size, scale_bits, zero_point_bits):
    return bits + group_size / (scale_bits + zero_point_bits)


_AVERAGE = "It is an average over the values of a group: it need not be a whole number."

BITS_PER_VALUE = Exercise(
    id="03.4",
    solution=bits_per_value,
    examples=(
        {"bits": 4, "group_size": 32, "scale_bits": 16, "zero_point_bits": 0},
        {"bits": 4, "group_size": 128, "scale_bits": 16, "zero_point_bits": 4},
        {"bits": 3, "group_size": 8, "scale_bits": 16, "zero_point_bits": 4},
    ),
    cases=st.fixed_dictionaries(
        {
            "bits": st.integers(2, 8),
            "group_size": st.sampled_from([8, 16, 32, 64, 128]),
            "scale_bits": st.sampled_from([8, 16, 32]),
            "zero_point_bits": st.integers(0, 8),
        }
    ),
    mistakes=(
        Mistake(_not_shared, "A scale is stored once for the whole group, not once for each value: divide it."),
        Mistake(_zero_point_forgotten, "The zero point of each group is stored too: count its bits."),
        Mistake(_all_shared, "Each value has a code of its own. Only scale and zero point are shared by the group."),
        Mistake(_in_bytes, "That is in bytes. Wanted are bits."),
        Mistake(_whole_group, "That is what the whole group costs. Divide it by the number of its values."),
        Mistake(_whole_bits_only, "// drops the fraction, and here a scale costs a fraction of a bit: divide with /."),
        Mistake(_divided_the_codes, "It is the other way round: the scale is shared by the group, the code is not."),
        Mistake(_multiplied, "The larger the group, the less a scale costs each of its values: divide."),
        Mistake(_upside_down_share, "Upside down: the group's scale and zero point are divided among its values."),
        Mistake(_rounded_up, _AVERAGE),
        Mistake(_rounded, _AVERAGE),
        Mistake(
            _only_the_zero_point_shared,
            "Only the zero point is divided here. The group shares its scale as well: brackets around both.",
        ),
        Mistake(_only_the_scale_shared, "The zero point is stored once for the whole group, too: divide it as well."),
        Mistake(_codes_forgotten, "That is what scale and zero point cost. The code of each value is missing."),
        Mistake(_no_overhead, "The code is not all: somebody must also store the group's scale and zero point."),
    ),
    hints=(
        "What lies in memory for one whole group? Divide that by the number of its values.",
        "A group stores `group_size` codes, one scale and one zero point. Add up their bits.",
        "Each value has its own code, so `bits` stays whole. Only the scale and the zero point are divided among the values.",
    ),
)

# 03.C few bits for a whole network

_AT_MOST, _AT_LEAST = 3.1, 97.4


def _judge_store(answer):
    stored, count, layers = 0, 0, {}
    for name in WEIGHTS:
        w = datasets.trained("mlp")[name].astype(np.float64)
        given_ = answer(w.copy())
        if not isinstance(given_, tuple) or len(given_) != 2:
            raise CannotBeJudged("return two arrays, the codes and the scales.")
        codes, scale = map(np.asarray, given_)
        if codes.dtype != np.int8 or codes.shape != w.shape:
            raise CannotBeJudged(f"the codes must be int8 of shape {w.shape}; yours are {codes.dtype} {codes.shape}.")
        divides = scale.ndim == 2 and all(s and n % s == 0 for n, s in zip(w.shape, scale.shape, strict=True))
        if scale.dtype.kind != "f" or not (scale.ndim == 0 or divides):
            raise CannotBeJudged(
                f"the scales must be floats whose shape divides {w.shape}; yours are {scale.dtype} {scale.shape}."
            )
        half = np.clip(scale, 0, 60_000).astype(np.float16).astype(np.float64)  # that is how they are stored
        if not np.all(half > 0):
            raise CannotBeJudged("a scale must be above 0 in float16 as well.")
        levels = int(codes.max()) - int(codes.min()) + 1
        stored += codes.size * max((levels - 1).bit_length(), 1) + 16 * half.size
        count += codes.size
        layers[name] = qlearn.dequantize(codes, qlearn.QParams(half, 0, -128, 127)).astype(np.float32)
    bits, percent = stored / count, mlp_accuracy(layers)
    columns = {"bits per weight": f"{bits:.2f}", "digits read": f"{percent:.1f} %"}
    return Score(columns, round(bits, 2) <= _AT_MOST and round(percent, 1) >= _AT_LEAST)  # what is shown is what counts


def _stored(bits, granularity, method="min_max"):
    def store(w):
        qparams = qlearn.find_qparams(w, method, bits=bits, symmetric=True, granularity=granularity(w))
        return qlearn.quantize(w, qparams), np.asarray(qparams.scale)

    return store


def store_layer(w):
    codes = {"bits": 3, "symmetric": True, "granularity": PerAxis(0)}
    qparams = qlearn.find_qparams(w, "mse", **codes)
    return qlearn.quantize(w, qparams), qparams.scale


STORE_LAYER = Challenge(
    id="03.C",
    target=f"{_AT_LEAST} % of 2,000 digits, with {_AT_MOST} bits per weight at most (scales count 16 bits each).",
    solution=store_layer,
    judge=_judge_store,
    simple={
        "3 bits, one scale": _stored(3, lambda w: PerTensor()),
        "3 bits, a scale a row": _stored(3, lambda w: PerAxis(0)),
        "3 bits, groups of 25 or 28": _stored(3, lambda w: PerGroup(28 if w.shape[1] % 28 == 0 else 25)),
        "2 bits, one scale a row": _stored(2, lambda w: PerAxis(0)),
    },
    hints=(
        "Look at the table: what is within the budget, and how many digits are missing?",
        "Scales cost bits, and so do codes. One thing that this lesson changed costs none at all.",
        "`qlearn.find_qparams` takes a method as its second argument; the last section compared two of them.",
    ),
)

EXERCISES = (QUANTIZE_ROWS, MATMUL_CODES, FAKE_QUANTIZE_GROUPS, BITS_PER_VALUE)
CHALLENGES = (STORE_LAYER,)
