"""Exercises of lesson 03, granularity."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.checking import Exercise, Mistake

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


def _cut_off(w, bits):
    quant_max = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1, keepdims=True) / quant_max
    return (w / scale).astype(np.int8), scale


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
        Mistake(_one_scale, "That is one scale for the whole matrix. Each row must look at its own values only."),
        Mistake(_row_maximum, "Your scale looks at each row's largest value; in 4, −8, 2 the −8 is furthest from 0."),
        Mistake(
            _range_not_scale,
            "You return the row's largest |w|. The scale is the length of one step: divide it by quant_max.",
        ),
        Mistake(_full_range, "Symmetric codes reach equally far on both sides: divide by 2 ** (bits - 1) − 1."),
        Mistake(_always_eight_bits, "You use 127 for every bit width. The largest code is 2 ** (bits - 1) − 1."),
        Mistake(_cut_off, "A cast cuts the fraction off. Round to the nearest integer first, with np.rint."),
    ),
    hints=(
        "It is the symmetric quantizer that you know, with a maximum for each row instead of one for everything.",
        "np.abs(w).max(axis=1, keepdims=True) has shape (O, 1), so w / scale divides each row by its own entry.",
    ),
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


def _product_not_turned(x_codes, x_scale, w_codes, w_scale):
    return (x_codes.astype(np.int32) @ w_codes.astype(np.int32)) * x_scale * w_scale.T


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
        Mistake(_product_not_turned, "The rows of w are outputs: the product is x_codes @ w_codes.T."),
    ),
    hints=(
        "First a product of integers only, in a type that holds the sums. What shape has it, and whose scale is whose?",
        "sums = x_codes.astype(np.int32) @ w_codes.T.astype(np.int32); then times x_scale (M, 1) and w_scale.T (1, O).",
    ),
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
        Mistake(_left_in_groups, "The values are right. Bring them back to the shape of w."),
        Mistake(_codes_only, _CODES),
        Mistake(_codes_as_int8, _CODES),
    ),
    hints=(
        "Give w a third axis, so that a group is what lies along it. Then it is exercise 03.1 along another axis.",
        "groups = w.reshape(w.shape[0], -1, group_size); the scale reduces axis 2 with keepdims; reshape to w.shape last.",
    ),
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


def _no_overhead(bits, group_size, scale_bits, zero_point_bits):
    return float(bits)


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
        Mistake(_no_overhead, "The code is not all: somebody must also store the group's scale and zero point."),
    ),
    hints=(
        "What lies in memory for one whole group? Divide that by the number of its values.",
        "A group stores group_size codes, one scale and one zero point: bits + (scale_bits + zero_point_bits) / group_size.",
    ),
)

EXERCISES = (QUANTIZE_ROWS, MATMUL_CODES, FAKE_QUANTIZE_GROUPS, BITS_PER_VALUE)
