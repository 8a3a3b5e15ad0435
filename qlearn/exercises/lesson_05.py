"""Exercises of lesson 05, post-training quantization."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.checking import Exercise, Mistake

_values = st.integers(-400, 400).map(lambda n: n / 8)
_batches = hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 4)), elements=_values)


# 05.1 an observer's memory


def observe(lo, hi, batch):
    return min(lo, batch.min()), max(hi, batch.max())


def _last_batch_only(lo, hi, batch):
    return batch.min(), batch.max()


def _average(lo, hi, batch):
    return (lo + batch.min()) / 2, (hi + batch.max()) / 2


def _upper_end_only(lo, hi, batch):
    return lo, max(hi, batch.max())


def _from_zero(lo, hi, batch):
    return min(lo, batch.min(), 0.0), max(hi, batch.max(), 0.0)


OBSERVE = Exercise(
    id="05.1",
    solution=observe,
    examples=(
        {"lo": -1.0, "hi": 2.0, "batch": np.array([[0.5, 3.0], [-0.5, 1.0]])},
        {"lo": -1.0, "hi": 2.0, "batch": np.array([[-4.0, 0.0]])},
        {"lo": np.inf, "hi": -np.inf, "batch": np.array([[1.0, 2.0]])},
    ),
    cases=st.builds(
        lambda ends, batch: {"lo": ends[0], "hi": ends[1], "batch": batch},
        st.tuples(_values, _values).map(sorted),
        _batches,
    ),
    mistakes=(
        Mistake(_last_batch_only, "Your observer forgets: only the last batch counts. Compare with lo and hi."),
        Mistake(
            _average,
            "An average of ranges clips the larger batch, and depends on the order of the batches. Take min and max.",
        ),
        Mistake(
            _upper_end_only, "Your lower end never moves. Activations below 0 exist: the first layer may see them."
        ),
        Mistake(
            _from_zero,
            "You mix 0 into the range. choose_qparams does that later; an observer only remembers what it saw.",
        ),
    ),
    hints=(
        "What must the range be after two batches, whichever came first?",
        "The smaller of lo and the batch's smallest value; the larger of hi and the batch's largest.",
    ),
)


# 05.2 the bin of a value


def bin_of(x):
    bits = x.view(np.int32)
    return (bits >> 16 << 16).view(np.float32)


def _cast(x):
    return (x.astype(np.int32) >> 16 << 16).astype(np.float32)


def _integer_part(x):
    return np.trunc(x)


def _pattern(x):
    return x.view(np.int32) >> 16


def _pattern_as_number(x):
    return (x.view(np.int32) >> 16).astype(np.float32)


def _rounded(x):
    return (x.view(np.int32) + 0x8000 >> 16 << 16).view(np.float32)


def _sign_and_exponent(x):
    return (x.view(np.int32) >> 23 << 23).view(np.float32)


def _equal_bins(x):
    return np.float32(1 / 128) * np.trunc(x * 128)


_floats = st.floats(-1000, 1000, width=32, allow_subnormal=False).filter(lambda v: abs(v) > 2.0**-20)

BIN_OF = Exercise(
    id="05.2",
    solution=bin_of,
    examples=(
        {"x": np.array([1.0, 1.003, 1.009, 200.3, 201.9], dtype=np.float32)},
        {"x": np.array([-0.1, -3.14159, 1e-3, 1e6], dtype=np.float32)},
    ),
    cases=st.fixed_dictionaries({"x": hnp.arrays(np.float32, st.integers(1, 4), elements=_floats)}),
    mistakes=(
        Mistake(
            _cast,
            "astype turns the number into an integer; view leaves its 32 bits alone and reads them as an integer.",
        ),
        Mistake(_integer_part, "That cuts off the fraction of the decimal number. Cut off bits of its pattern."),
        Mistake(_pattern, "That is the bin's number. Shift it back by 16 and view it as float32 again."),
        Mistake(_pattern_as_number, "You turned the pattern into a float by its value. Shift back by 16, then view."),
        Mistake(
            _rounded, "You round to the nearest bfloat16: then half of each bin belongs to its neighbour. Cut, only."
        ),
        Mistake(
            _sign_and_exponent,
            "You keep sign and exponent alone: bins twice as wide as their start. Keep 7 fraction bits too, 16 in all.",
        ),
        Mistake(
            _equal_bins, "Those bins are all of one width. Here a bin is as wide as its values are large: cut bits off."
        ),
    ),
    hints=(
        "A float32 is 32 bits: sign, 8 bits exponent, 23 bits fraction. Which 16 do you keep?",
        "bits = x.view(np.int32) reads the pattern; shift it by 16 to the right and back; view it as np.float32.",
    ),
)


# 05.3 an integer layer


def accumulate(x_codes, x_zero_point, w_codes):
    x = x_codes.astype(np.int32) - x_zero_point
    return x @ w_codes.astype(np.int32).T


def _narrow_product(x_codes, x_zero_point, w_codes):
    return (x_codes - np.uint8(x_zero_point)) @ w_codes.T


def _narrow_then_cast(x_codes, x_zero_point, w_codes):
    return ((x_codes - np.uint8(x_zero_point)) @ w_codes.T).astype(np.int32)


def _subtracted_too_late(x_codes, x_zero_point, w_codes):
    return x_codes.astype(np.int32) @ w_codes.astype(np.int32).T - x_zero_point


def _zero_point_forgotten(x_codes, x_zero_point, w_codes):
    return x_codes.astype(np.int32) @ w_codes.astype(np.int32).T


def _wrapped_difference(x_codes, x_zero_point, w_codes):
    return (x_codes - np.uint8(x_zero_point)).astype(np.int32) @ w_codes.astype(np.int32).T


def _not_transposed(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int32) - x_zero_point) @ w_codes.astype(np.int32)


def _in_float(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.float64) - x_zero_point) @ w_codes.astype(np.float64).T


@st.composite
def _layers(draw):
    rows, depth, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    return {
        "x_codes": draw(hnp.arrays(np.uint8, (rows, depth))),
        "x_zero_point": draw(st.integers(0, 255)),
        "w_codes": draw(hnp.arrays(np.int8, (outputs, depth), elements=st.integers(-127, 127))),
    }


ACCUMULATE = Exercise(
    id="05.3",
    solution=accumulate,
    examples=(
        {
            "x_codes": np.array([[0, 255, 10]], dtype=np.uint8),
            "x_zero_point": 10,
            "w_codes": np.array([[1, 2, 3], [-127, 127, 0]], dtype=np.int8),
        },
        {
            "x_codes": np.array([[200, 200]], dtype=np.uint8),
            "x_zero_point": 0,
            "w_codes": np.array([[100, 100]], dtype=np.int8),
        },
    ),
    cases=_layers(),
    mistakes=(
        Mistake(
            _narrow_product,
            "Your sums wrapped: NumPy kept the narrow type. Cast both codes to int32 before anything else.",
        ),
        Mistake(
            _narrow_then_cast,
            "You cast after the product, when it has wrapped already. Cast both codes to int32 first.",
        ),
        Mistake(
            _subtracted_too_late,
            "The zero point belongs to every input code: subtract it before the product, not from the sum.",
        ),
        Mistake(
            _zero_point_forgotten,
            "Code x_zero_point stands for 0.0 and must add nothing: subtract it from the input codes.",
        ),
        Mistake(_wrapped_difference, "0 − 10 is 246 in uint8: cast the input codes to int32 before you subtract."),
        Mistake(
            _not_transposed, "w_codes is (outputs, inputs): transpose it, so that both inputs meet in the product."
        ),
        Mistake(
            _in_float, "The values are right, but they are floats: an integer unit would cast to int32, not to float."
        ),
    ),
    hints=(
        "How large can one product of two codes be, and does int8 hold it?",
        "x = x_codes.astype(np.int32) - x_zero_point, then a matrix product with w_codes.astype(np.int32).T.",
    ),
)


# 05.4 the honest size


def layer_bytes(outputs, inputs, bits):
    codes = -(-outputs * inputs * bits // 8)
    scales = 4 * outputs
    bias = 4 * outputs
    return codes + scales + bias


def _scales_forgotten(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 4 * outputs


def _nothing_but_codes(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8)


def _one_scale(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 4 + 4 * outputs


def _whole_bytes(outputs, inputs, bits):
    return outputs * inputs + 8 * outputs


def _cut_off(outputs, inputs, bits):
    return outputs * inputs * bits // 8 + 8 * outputs


LAYER_BYTES = Exercise(
    id="05.4",
    solution=layer_bytes,
    examples=(
        {"outputs": 100, "inputs": 784, "bits": 4},
        {"outputs": 3, "inputs": 3, "bits": 3},
    ),
    cases=st.fixed_dictionaries(
        {"outputs": st.integers(1, 64), "inputs": st.integers(1, 64), "bits": st.integers(2, 8)},
    ),
    mistakes=(
        Mistake(
            _scales_forgotten,
            "4 bytes for each output are missing: there is a float32 scale and an int32 bias for each.",
        ),
        Mistake(
            _nothing_but_codes,
            "Codes alone are useless: add a float32 scale and an int32 bias for each output channel.",
        ),
        Mistake(_one_scale, "That is one scale for the whole tensor. Here each output channel has its own."),
        Mistake(_whole_bytes, "That is a whole byte for each code. Packed, a code takes `bits` bits."),
        Mistake(_cut_off, "27 bits do not fit into 3 bytes: round the last byte up."),
    ),
    hints=(
        "Three things are stored: packed codes, one scale for each output, one bias for each output.",
        "Codes: outputs · inputs · bits / 8, rounded up. Scales and biases: 4 bytes each, for each output.",
    ),
)

EXERCISES = (OBSERVE, BIN_OF, ACCUMULATE, LAYER_BYTES)
