"""Exercises of lesson 05, post-training quantization."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlearn
from qlearn import PerAxis, QuantConfig, datasets, packing
from qlearn.exercises import networks
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.exercises.time_limit import TookTooLong, within

PATIENCE = 3.0  # seconds for 2,000 digits; a matrix product takes a tenth of it
LAYERS = ("linear1", "linear2", "linear3")

_values = st.integers(-400, 400).map(lambda n: n / 8)
_batches = hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 4)), elements=_values)


# The MLP on integers, in NumPy: what the consequences run


def _read_by_layers(x):
    """What each of the three layers of the float network reads."""
    net = datasets.trained("mlp")
    for name in LAYERS:
        yield x
        x = np.maximum(x @ net[f"{name}.weight"].T + net[f"{name}.bias"], 0)


def _accuracy_on_integers(ranges, accumulate):
    """Percent of the held-out digits that are read rightly with 8-bit weights and inputs of these ranges."""
    net = datasets.trained("mlp")
    x, labels = networks.held_out()
    for name, (lo, hi) in zip(LAYERS, ranges, strict=True):
        weight = net[f"{name}.weight"]
        of_inputs = qlearn.choose_qparams(lo, hi)
        of_weights = qlearn.find_qparams(weight, symmetric=True, granularity=PerAxis(0))
        acc = accumulate(qlearn.quantize(x, of_inputs), of_inputs.zero_point, qlearn.quantize(weight, of_weights))
        x = float(of_inputs.scale) * of_weights.scale.T * acc + net[f"{name}.bias"]
        if name != LAYERS[-1]:
            x = np.maximum(x, 0)
    return 100 * np.mean(x.argmax(1) == labels)


# 05.1 an observer's memory


def observe(lo, hi, batch):
    return min(lo, batch.min()), max(hi, batch.max())


def _last_batch_only(lo, hi, batch):
    return batch.min(), batch.max()


def _average(lo, hi, batch):
    return (lo + batch.min()) / 2, (hi + batch.max()) / 2


def _moving_average(c):
    def moves(lo, hi, batch):
        with np.errstate(invalid="ignore"):  # of infinity
            return lo + c * (batch.min() - lo), hi + c * (batch.max() - hi)

    def weighs(lo, hi, batch):
        return (1 - c) * lo + c * batch.min(), (1 - c) * hi + c * batch.max()

    return moves, weighs


def _begun_with_the_first(average):
    """A moving average that takes the first batch's own range, before which there is none."""

    def moves(lo, hi, batch):
        return (batch.min(), batch.max()) if np.isinf(lo) else average(lo, hi, batch)

    return moves


def _upper_end_forgets(lo, hi, batch):
    return min(lo, batch.min()), batch.max()


def _lower_end_forgets(lo, hi, batch):
    return batch.min(), max(hi, batch.max())


def _as_it_was(lo, hi, batch):
    return lo, hi


def _first_row(lo, hi, batch):
    return min(lo, batch[0].min()), max(hi, batch[0].max())


def _places(lo, hi, batch):
    return min(lo, batch.argmin()), max(hi, batch.argmax())


def _means(lo, hi, batch):
    return min(lo, batch.mean()), max(hi, batch.mean())


def _upper_end_only(lo, hi, batch):
    return lo, max(hi, batch.max())


def _lower_end_only(lo, hi, batch):
    return min(lo, batch.min()), hi


def _one_end_at_a_time(lo, hi, batch):
    if batch.min() < lo:
        lo = batch.min()
    elif batch.max() > hi:
        hi = batch.max()
    return lo, hi


def _other_end_at_a_time(lo, hi, batch):
    if batch.max() > hi:
        hi = batch.max()
    elif batch.min() < lo:
        lo = batch.min()
    return lo, hi


def _what_both_have(lo, hi, batch):
    return max(lo, batch.min()), min(hi, batch.max())


def _ends_swapped(lo, hi, batch):
    return max(hi, batch.max()), min(lo, batch.min())


def _ends_mixed(lo, hi, batch):
    return min(lo, hi, batch.min()), max(lo, hi, batch.max())


def _symmetric(lo, hi, batch):
    largest = max(abs(lo), abs(hi), np.abs(batch).max())
    return -largest, largest


def _symmetric_batch(lo, hi, batch):
    largest = np.abs(batch).max()
    return min(lo, -largest), max(hi, largest)


def _magnitudes(lo, hi, batch):
    return min(lo, np.abs(batch).min()), max(hi, np.abs(batch).max())


def _magnitudes_above(lo, hi, batch):
    return min(lo, batch.min()), max(hi, np.abs(batch).max())


def _last_row(lo, hi, batch):
    return min(lo, batch[-1].min()), max(hi, batch[-1].max())


def _upper_end_beside_lo(lo, hi, batch):
    return min(lo, batch.min()), max(lo, batch.max())


def _lower_end_beside_hi(lo, hi, batch):
    return min(hi, batch.min()), max(hi, batch.max())


def _from_zero(lo, hi, batch):
    return min(lo, batch.min(), 0.0), max(hi, batch.max(), 0.0)


def _whole_numbers(lo, hi, batch):
    return min(lo, int(batch.min())), max(hi, int(batch.max()))


def _each_column(lo, hi, batch):
    return np.minimum(lo, batch.min(axis=0)), np.maximum(hi, batch.max(axis=0))


def _each_row(lo, hi, batch):
    return np.minimum(lo, batch.min(axis=1)), np.maximum(hi, batch.max(axis=1))


def _each_value(lo, hi, batch):
    return np.minimum(lo, batch), np.maximum(hi, batch)


def _python_min_of_columns(lo, hi, batch):
    return min(lo, batch.min(axis=0)), max(hi, batch.max(axis=0))


def _python_min_of_rows(lo, hi, batch):
    return min(lo, min(batch)), max(hi, max(batch))


def _python_min_of_all(lo, hi, batch):
    return min(lo, batch), max(hi, batch)


def _observed_ranges(attempt):
    """What the learner's function makes of the calibration images, in batches of 100, for each layer."""
    images = datasets.mnist_arrays().calibration.images
    inputs = (images.reshape(len(images), -1) / 255).astype(np.float32)
    ranges = []
    for values in _read_by_layers(inputs):
        lo, hi = np.inf, -np.inf
        for batch in np.split(values, 10):
            lo, hi = attempt(lo, hi, batch)
        ranges.append((float(lo), float(hi)))
    return ranges


def _observed(attempt):
    """The network with the learner's ranges, and with a guess."""
    ranges = _observed_ranges(attempt)
    found, guessed = (_accuracy_on_integers(r, accumulate) for r in (ranges, [(0.0, 1.0)] * 3))
    first, second, third = (f"{hi:.3g}" for _, hi in ranges)  # where they begin is the next question
    return (
        "Your `observe` watched 1,000 digits go by in front of three layers of another network, and the ranges end at\n"
        f"{first}, {second} and {third}. "
        f"With these ranges, on 8-bit integers, it reads {found:.1f} % of 2,000 other digits\n"
        f"(in float {networks.mlp_accuracy():.1f} %); with the range of pixels everywhere: {guessed:.1f} %."
    )


_FORGETS = "Your observer forgets: only the last batch counts. Compare with lo and hi."
_AVERAGES = "An average of ranges clips the larger batch, and depends on the order of the batches. Take min and max."
_ELIF = "With `elif` the second end is looked at only if the first one stayed. A batch may move both: use two `if`s."
_ZERO_CENTRED = "You make the range symmetric. Whether it is to be is decided later; an observer remembers what it saw."
_FOR_EACH = (
    "That is a value for each column or row. The observer remembers two numbers in all: batch.min(), without an axis."
)
_PYTHONS_OWN = (
    "Python's own min and max compare single numbers, and got an array: batch.min(), without an axis, is one."
)

OBSERVE = Exercise(
    id="05.1",
    solution=observe,
    examples=(
        {"lo": -1.0, "hi": 2.0, "batch": np.array([[0.5, 3.0], [-0.5, 1.0]])},
        {"lo": -1.0, "hi": 2.0, "batch": np.array([[-4.0, 0.0]])},
        {"lo": -1.0, "hi": 2.0, "batch": np.array([[-2.5, 0.0], [1.0, 3.5]])},
        {"lo": np.inf, "hi": -np.inf, "batch": np.array([[1.0, 2.0]])},
    ),
    cases=st.builds(
        lambda ends, batch: {"lo": ends[0], "hi": ends[1], "batch": batch},
        st.tuples(_values, _values).map(sorted),
        _batches,
    ),
    mistakes=(
        Mistake(_last_batch_only, _FORGETS),
        Mistake(_average, _AVERAGES),
        Mistake(_begun_with_the_first(_average), _AVERAGES),
        *(
            Mistake(wrong, _AVERAGES)
            for c in (0.1, 0.01, 0.9)
            for average in _moving_average(c)
            for wrong in (average, _begun_with_the_first(average))
        ),
        Mistake(_upper_end_forgets, "Your upper end forgets: only the last batch counts for it. Compare with hi."),
        Mistake(_lower_end_forgets, "Your lower end forgets: only the last batch counts for it. Compare with lo."),
        Mistake(_as_it_was, "That is the old pair: nothing of the batch has got into it."),
        Mistake(_first_row, "You look at the first row of the batch only: batch.min() looks at all."),
        Mistake(_last_row, "You look at the last row of the batch only: batch.min() looks at all."),
        Mistake(_places, "argmin and argmax say *where* the value is. Its size is batch.min() and batch.max()."),
        Mistake(_means, "A mean lies inside the batch's range: its ends are its smallest and its largest value."),
        Mistake(
            _upper_end_only, "Your lower end never moves. Activations below 0 exist: the first layer may see them."
        ),
        Mistake(_lower_end_only, "Your upper end never moves. It is the larger of hi and the batch's largest value."),
        Mistake(_one_end_at_a_time, _ELIF),
        Mistake(_other_end_at_a_time, _ELIF),
        Mistake(
            _what_both_have,
            "You keep what both ranges have in common, so the range shrinks. It must hold all values: min for lo, "
            "max for hi.",
        ),
        Mistake(_ends_swapped, "The numbers are right, in the wrong order: return the lower end first."),
        Mistake(
            _ends_mixed,
            "hi has no say in the lower end, nor lo in the upper: before the first batch they are ∞ and −∞.",
        ),
        Mistake(_upper_end_beside_lo, "Your upper end is compared with lo. Its old value is hi."),
        Mistake(_lower_end_beside_hi, "Your lower end is compared with hi. Its old value is lo."),
        Mistake(_symmetric, _ZERO_CENTRED),
        Mistake(_symmetric_batch, _ZERO_CENTRED),
        Mistake(_magnitudes, "You look at magnitudes: the values' signs count, and the lower end may be negative."),
        Mistake(
            _magnitudes_above, "Your upper end looks at magnitudes: a large negative value is no reason to move it."
        ),
        Mistake(
            _from_zero,
            "You mix 0 into the range. choose_qparams does that later; an observer only remembers what it saw.",
        ),
        Mistake(_whole_numbers, "int() cuts fractions off, and the range no longer holds the value itself."),
        Mistake(_each_column, _FOR_EACH),
        Mistake(_each_row, _FOR_EACH),
        Mistake(_each_value, _FOR_EACH),
        Mistake(_python_min_of_columns, _PYTHONS_OWN),
        Mistake(_python_min_of_rows, _PYTHONS_OWN),
        Mistake(_python_min_of_all, _PYTHONS_OWN),
    ),
    hints=(
        "What must the range be after two batches, whichever came first?",
        "Each end is decided by itself: the old one, or the batch's own.",
        "`batch.min()` is one number for the whole array. The smaller of it and `lo` is the new lower end.",
    ),
    consequence=_observed,
)


# 05.2 an integer layer


def accumulate(x_codes, x_zero_point, w_codes):
    x = x_codes.astype(np.int32) - x_zero_point
    return x @ w_codes.astype(np.int32).T


def _narrow_product(x_codes, x_zero_point, w_codes):
    return (x_codes - np.uint8(x_zero_point)) @ w_codes.T


def _narrow_then_cast(x_codes, x_zero_point, w_codes):
    return ((x_codes - np.uint8(x_zero_point)) @ w_codes.T).astype(np.int32)


def _narrow_without_zero_point(x_codes, x_zero_point, w_codes):
    return x_codes @ w_codes.T


def _narrow_without_zero_point_then_cast(x_codes, x_zero_point, w_codes):
    return (x_codes @ w_codes.T).astype(np.int32)


def _narrow_then_cast_then_subtracted(x_codes, x_zero_point, w_codes):
    return (x_codes @ w_codes.T).astype(np.int32) - x_zero_point


def _sixteen_bits(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int16) - np.int16(x_zero_point)) @ w_codes.astype(np.int16).T


def _sixteen_bits_then_cast(x_codes, x_zero_point, w_codes):
    return _sixteen_bits(x_codes, x_zero_point, w_codes).astype(np.int32)


def _inputs_as_int8(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int8).astype(np.int32) - x_zero_point) @ w_codes.astype(np.int32).T


def _differences_as_int8(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int32) - x_zero_point).astype(np.int8) @ w_codes.T


def _turned_around(x_codes, x_zero_point, w_codes):
    return (x_zero_point - x_codes.astype(np.int32)) @ w_codes.astype(np.int32).T


def _turned_around_too_late(x_codes, x_zero_point, w_codes):
    return x_zero_point - x_codes.astype(np.int32) @ w_codes.astype(np.int32).T


def _clamped(x_codes, x_zero_point, w_codes):
    return np.clip(accumulate(x_codes, x_zero_point, w_codes), -128, 127)


def _with_relu(x_codes, x_zero_point, w_codes):
    return np.maximum(accumulate(x_codes, x_zero_point, w_codes), 0)


def _subtracted_too_late(x_codes, x_zero_point, w_codes):
    return x_codes.astype(np.int32) @ w_codes.astype(np.int32).T - x_zero_point


def _once_a_product(x_codes, x_zero_point, w_codes):
    return x_codes.astype(np.int32) @ w_codes.astype(np.int32).T - x_zero_point * x_codes.shape[1]


def _sum_of_all_weights(x_codes, x_zero_point, w_codes):
    w = w_codes.astype(np.int32)
    return (x_codes.astype(np.int32) @ w.T - x_zero_point * w.sum()).astype(np.int32)


def _zero_point_forgotten(x_codes, x_zero_point, w_codes):
    return x_codes.astype(np.int32) @ w_codes.astype(np.int32).T


def _added(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int32) + x_zero_point) @ w_codes.astype(np.int32).T


def _from_the_weights(x_codes, x_zero_point, w_codes):
    return x_codes.astype(np.int32) @ (w_codes.astype(np.int32) - x_zero_point).T


def _from_both(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int32) - x_zero_point) @ (w_codes.astype(np.int32) - x_zero_point).T


def _wrapped_difference(x_codes, x_zero_point, w_codes):
    return (x_codes - np.uint8(x_zero_point)).astype(np.int32) @ w_codes.astype(np.int32).T


def _not_transposed(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int32) - x_zero_point) @ w_codes.astype(np.int32)


def _reshaped(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int32) - x_zero_point) @ w_codes.astype(np.int32).reshape(-1, len(w_codes))


def _outputs_first(x_codes, x_zero_point, w_codes):
    return w_codes.astype(np.int32) @ (x_codes.astype(np.int32) - x_zero_point).T


def _entry_by_entry(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int32) - x_zero_point) * w_codes.astype(np.int32)


def _in_float(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.float64) - x_zero_point) @ w_codes.astype(np.float64).T


def _in_float32(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.float32) - x_zero_point) @ w_codes.astype(np.float32).T


def _in_int64(x_codes, x_zero_point, w_codes):
    return (x_codes.astype(np.int64) - x_zero_point) @ w_codes.astype(np.int64).T


@st.composite
def _layers(draw):
    rows, depth, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    return {
        "x_codes": draw(hnp.arrays(np.uint8, (rows, depth))),
        "x_zero_point": draw(st.integers(0, 255)),
        "w_codes": draw(hnp.arrays(np.int8, (outputs, depth), elements=st.integers(-127, 127))),
    }


_NARROW = "Your sums wrapped: NumPy kept the narrow type. Cast both codes to int32 before anything else."
_CAST_LATE = "You cast after the product, when it has wrapped already. Cast both codes to int32 first."
_FLOATS = "The values are right, but they are floats: an integer unit would cast to int32, not to float."
_BELONGS = "The zero point belongs to every input code: subtract it before the product, not from the sum."


def _accumulated(attempt):
    """The network with the learner's product in all three layers."""
    arguments = {"ranges": _observed_ranges(observe), "accumulate": attempt}
    try:
        percent = within(PATIENCE, _accuracy_on_integers, arguments)
    except TookTooLong:
        return (
            f"In a network it had not read 2,000 digits after {PATIENCE:.0f} seconds: Python's loops are slow.\n"
            "One matrix product, `@`, does all sums at once."
        )
    return (
        "Your `accumulate` at work in all three layers, 8-bit codes in and int32 sums out:\n"
        f"{percent:.1f} % of 2,000 digits (in float {networks.mlp_accuracy():.1f} %)."
    )


ACCUMULATE = Exercise(
    id="05.2",
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
        Mistake(_narrow_product, _NARROW),
        Mistake(_narrow_then_cast, _CAST_LATE),
        Mistake(
            _narrow_without_zero_point,
            "uint8 times int8 is int16 in NumPy, and your sums wrapped. The zero point is still in the input, too.",
        ),
        Mistake(_narrow_without_zero_point_then_cast, _CAST_LATE),
        Mistake(_narrow_then_cast_then_subtracted, _CAST_LATE),
        Mistake(
            _sixteen_bits,
            "int16 ends at 32,767: it holds one product, and not a sum of several. Cast both codes to int32.",
        ),
        Mistake(_sixteen_bits_then_cast, _CAST_LATE),
        Mistake(
            _inputs_as_int8,
            "Codes of the input go up to 255, and int8 ends at 127: they wrapped. Cast to int32 at once.",
        ),
        Mistake(_differences_as_int8, "int8 holds neither the differences nor the sums: they wrapped. Cast to int32."),
        Mistake(_turned_around, "The signs are turned around: it is code − zero point, not zero point − code."),
        Mistake(_turned_around_too_late, _BELONGS),
        Mistake(_clamped, "An accumulator has 32 bits so that nothing need be clamped. Return the sums as they are."),
        Mistake(_with_relu, "That is a ReLU already. Sums may be negative: return them as they are."),
        Mistake(_subtracted_too_late, _BELONGS),
        Mistake(_once_a_product, _BELONGS),
        Mistake(
            _sum_of_all_weights,
            "Each output has weights of its own: the zero point times the sum of *its row* goes off, not of all rows.",
        ),
        Mistake(
            _zero_point_forgotten,
            "Code x_zero_point stands for 0.0 and must add nothing: subtract it from the input codes.",
        ),
        Mistake(_added, "You added the zero point. The code of 0.0 is x_zero_point: only the difference counts."),
        Mistake(_from_the_weights, "x_zero_point is the input's. The weights are symmetric and have none."),
        Mistake(_from_both, "You took x_zero_point off the weights, too. They are symmetric: their zero point is 0."),
        Mistake(_wrapped_difference, "0 − 10 is 246 in uint8: cast the input codes to int32 before you subtract."),
        Mistake(
            _not_transposed, "w_codes is (outputs, inputs): transpose it, so that both inputs meet in the product."
        ),
        Mistake(
            _reshaped,
            "reshape keeps the order of the numbers and mixes the rows. `.T` swaps the axes: transpose w_codes.",
        ),
        Mistake(_outputs_first, "That is (outputs, images): the other way round. Images come first."),
        Mistake(_entry_by_entry, "`*` multiplies entry by entry. A layer sums products up: `@`, the matrix product."),
        Mistake(_in_float, _FLOATS),
        Mistake(_in_float32, _FLOATS),
        Mistake(
            _in_int64,
            "`int` and most sums of narrow integers are int64 in NumPy. The accumulator of an integer unit has 32 bits: "
            "np.int32.",
        ),
    ),
    hints=(
        "How large can one product of two codes be, and does int8 hold it?",
        "Widen the codes first. Then take the zero point off the input, and multiply the matrices.",
        "`astype(np.int32)` widens. `@` wants (images, inputs) and (inputs, outputs).",
    ),
    consequence=_accumulated,
)


# 05.3 the honest size


def layer_bytes(outputs, inputs, bits):
    codes = -(-outputs * inputs * bits // 8)
    scales = 4 * outputs
    bias = 4 * outputs
    return codes + scales + bias


def _scales_forgotten(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 4 * outputs


def _scales_forgotten_and_cut(outputs, inputs, bits):
    return outputs * inputs * bits // 8 + 4 * outputs


def _scales_forgotten_and_fractions(outputs, inputs, bits):
    return outputs * inputs * bits / 8 + 4 * outputs


def _one_scale_and_no_bias(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 4


def _one_of_each_side(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 4 * outputs + 4 * inputs


def _zero_points_too(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 12 * outputs


def _half_scales(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 6 * outputs


def _float_weights(outputs, inputs, bits):
    return 4 * outputs * inputs + 8 * outputs


def _never_across_bytes(outputs, inputs, bits):
    return outputs * inputs // (8 // bits) + 8 * outputs


def _never_across_bytes_rounded_up(outputs, inputs, bits):
    return -(-outputs * inputs // (8 // bits)) + 8 * outputs


def _nothing_but_codes(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8)


def _nothing_but_codes_cut(outputs, inputs, bits):
    return outputs * inputs * bits // 8


def _nothing_but_codes_and_fractions(outputs, inputs, bits):
    return outputs * inputs * bits / 8


def _one_scale(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 4 + 4 * outputs


def _one_of_each(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 8


def _one_of_each_and_fractions(outputs, inputs, bits):
    return outputs * inputs * bits / 8 + 8


def _whole_bytes_of_a_code(outputs, inputs, bits):
    return outputs * inputs * (bits // 8) + 8 * outputs


def _one_scale_and_fractions(outputs, inputs, bits):
    return outputs * inputs * bits / 8 + 4 + 4 * outputs


def _rest_divided_by_eight(outputs, inputs, bits):
    return -(-(outputs * inputs * bits + 8 * outputs) // 8)


def _rest_in_few_bits(outputs, inputs, bits):
    return -(-(outputs * inputs + 2 * outputs) * bits // 8)


def _divided_by_bits(outputs, inputs, bits):
    return -(-outputs * inputs // bits) + 8 * outputs


def _one_more_after_rounding_up(outputs, inputs, bits):
    return layer_bytes(outputs, inputs, bits) + 1


def _for_each_input(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 8 * inputs


def _whole_bytes(outputs, inputs, bits):
    return outputs * inputs + 8 * outputs


def _rows_filled_up(outputs, inputs, bits):
    return outputs * -(-inputs * bits // 8) + 8 * outputs


def _cut_off(outputs, inputs, bits):
    return outputs * inputs * bits // 8 + 8 * outputs


def _fractions(outputs, inputs, bits):
    return outputs * inputs * bits / 8 + 8 * outputs


def _rounded_bytes(outputs, inputs, bits):
    return round(outputs * inputs * bits / 8) + 8 * outputs


def _always_one_more(outputs, inputs, bits):
    return outputs * inputs * bits // 8 + 1 + 8 * outputs


def _all_in_bits(outputs, inputs, bits):
    return outputs * inputs * bits + 64 * outputs


def _codes_in_bits(outputs, inputs, bits):
    return outputs * inputs * bits + 8 * outputs


def _rest_in_bits(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 64 * outputs


def _bias_of_one_byte(outputs, inputs, bits):
    return -(-outputs * inputs * bits // 8) + 5 * outputs


def _bias_in_few_bits(outputs, inputs, bits):
    return -(-(outputs * inputs + outputs) * bits // 8) + 4 * outputs


_ONLY_CODES = "Codes alone are useless: add a float32 scale and an int32 bias for each output channel."
_HALF_OF_THE_REST = "4 bytes for each output are missing: there is a float32 scale and an int32 bias for each."
_ACROSS = "Packed without gaps, a code may begin in one byte and end in the next: count bits, not codes in a byte."
_LAST_BYTE = "27 bits do not fit into 3 bytes: round the last byte up."


def _stored(attempt):
    """The learner's count of the whole network, beside its size in float32."""
    shapes = [datasets.trained("mlp")[f"{name}.weight"].shape for name in LAYERS]
    counts = {bits: sum(attempt(*shape, bits) for shape in shapes) for bits in (8, 4, 2)}
    in_float = 4 * sum(outputs * (inputs + 1) for outputs, inputs in shapes)
    said = ", ".join(f"{count:,.0f} bytes at {bits} bits" for bits, count in counts.items())
    return (
        f"By your `layer_bytes`, the three layers of this network: {said}.\n"
        f"In float32 they are {in_float:,}: 4 bits make them {in_float / counts[4]:.2f} times smaller, not 8 times."
    )


LAYER_BYTES = Exercise(
    id="05.3",
    solution=layer_bytes,
    examples=(
        {"outputs": 100, "inputs": 784, "bits": 4},
        {"outputs": 3, "inputs": 3, "bits": 3},
    ),
    cases=st.fixed_dictionaries(
        {"outputs": st.integers(1, 64), "inputs": st.integers(1, 64), "bits": st.integers(2, 8)},
    ),
    mistakes=(
        Mistake(_scales_forgotten, _HALF_OF_THE_REST),
        Mistake(_scales_forgotten_and_cut, _HALF_OF_THE_REST),
        Mistake(_scales_forgotten_and_fractions, _HALF_OF_THE_REST),
        Mistake(_nothing_but_codes, _ONLY_CODES),
        Mistake(_nothing_but_codes_cut, _ONLY_CODES),
        Mistake(_nothing_but_codes_and_fractions, _ONLY_CODES),
        Mistake(_one_scale, "That is one scale for the whole tensor. Here each output channel has its own."),
        Mistake(
            _one_scale_and_fractions, "That is one scale for the whole tensor. Here each output channel has its own."
        ),
        Mistake(
            _rest_divided_by_eight, "Scales and biases are counted in bytes already: only the codes' bits go by 8."
        ),
        Mistake(_rest_in_few_bits, "Scales and biases are no codes of `bits` bits: each takes 4 bytes."),
        Mistake(_divided_by_bits, "More bits must make more bytes: multiply by `bits`, and divide by 8."),
        Mistake(_one_scale_and_no_bias, "That is one scale in all. Each output has its own, and a bias."),
        *(
            Mistake(one, "That is one scale and one bias in all. Each output has its own.")
            for one in (_one_of_each, _one_of_each_and_fractions)
        ),
        Mistake(
            _whole_bytes_of_a_code,
            "bits // 8 is 0 below 8 bits, and the codes cost nothing. Multiply first, then make bytes of all bits.",
        ),
        Mistake(_one_of_each_side, "Scales *and* biases belong to the outputs: nothing is stored for an input."),
        Mistake(_zero_points_too, "12 bytes for each output are too many: weights are symmetric, without zero points."),
        Mistake(_half_scales, "6 bytes for each output: a float32 and an int32 take 4 bytes each."),
        Mistake(_float_weights, "The weights are stored as codes of `bits` bits, no longer as float32."),
        Mistake(_never_across_bytes, _ACROSS),
        Mistake(_never_across_bytes_rounded_up, _ACROSS),
        Mistake(_for_each_input, "Scales and biases belong to the outputs, the rows of the matrix, not to the inputs."),
        Mistake(_whole_bytes, "That is a whole byte for each code. Packed, a code takes `bits` bits."),
        Mistake(
            _rows_filled_up,
            "You fill up the last byte of each row. Packed without gaps, a row begins where the one before it ends: "
            "round up once, at the end.",
        ),
        Mistake(_cut_off, _LAST_BYTE),
        Mistake(_rounded_bytes, _LAST_BYTE),
        Mistake(_fractions, "A file has no fractions of a byte: round the codes' bytes up."),
        Mistake(_one_more_after_rounding_up, "A byte too many: what is rounded up needs no further byte."),
        Mistake(_always_one_more, "You add a byte always. One more is needed only where bits are left over."),
        Mistake(_all_in_bits, "Those are bits. Eight of them make a byte."),
        Mistake(_codes_in_bits, "You count the codes in bits, and the rest in bytes: eight bits make a byte."),
        Mistake(_rest_in_bits, "You count scales and biases in bits: 32 bits are 4 bytes."),
        Mistake(_bias_of_one_byte, "The bias is no 8-bit code: it is an int32, 4 bytes."),
        Mistake(_bias_in_few_bits, "The bias is not packed with the codes: it is an int32, 4 bytes for each output."),
    ),
    hints=(
        "Three things are stored. How often is each of them there?",
        "Codes: outputs · inputs · bits / 8, rounded up. A scale and a bias: 4 bytes each, for each output.",
        "`-(-n // 8)` rounds n / 8 up, where n counts the bits of all codes together.",
    ),
    consequence=_stored,
)


# 05.4 the bin of a value


def bin_of(x):
    bits = x.view(np.int32)
    return (bits >> 16 << 16).view(np.float32)


def _cast(x):
    return (x.astype(np.int32) >> 16 << 16).astype(np.float32)


def _cast_then_viewed(x):
    return (x.astype(np.int32) >> 16 << 16).view(np.float32)


def _integer_part(x):
    return np.trunc(x)


def _integer_below(x):
    return np.floor(x)


def _mask_without_a_sign(x):
    return (x.view(np.int32) & 0xFFFF0000).view(np.float32)


def _cut_pattern(x):
    return x.view(np.int32) >> 16 << 16


def _end_of_the_bin(x):
    return (x.view(np.int32) | 0xFFFF).view(np.float32)


def _pattern(x):
    return x.view(np.int32) >> 16


def _pattern_as_number(x):
    return (x.view(np.int32) >> 16).astype(np.float32)


def _not_shifted_back(x):
    return (x.view(np.int32) >> 16).view(np.float32)


def _cut_pattern_as_number(x):
    return (x.view(np.int32) >> 16 << 16).astype(np.float32)


def _only_to_the_left(x):
    return (x.view(np.int32) << 16).view(np.float32)


def _lower_half(x):
    return (x.view(np.int32) << 16 >> 16).view(np.float32)


def _lower_half_masked(x):
    return (x.view(np.int32) & 0xFFFF).view(np.float32)


def _two_halves(x):
    return x.view(np.int16)


def _rounded(x):
    return (x.view(np.int32) + 0x8000 >> 16 << 16).view(np.float32)


def _rounded_by_division(x):
    return (np.rint(x.view(np.int32) / 65536).astype(np.int32) << 16).view(np.float32)


def _towards_zero(x):
    return (np.trunc(x.view(np.int32) / 65536).astype(np.int32) << 16).view(np.float32)


def _half_precision(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def _sign_and_exponent(x):
    return (x.view(np.int32) >> 23 << 23).view(np.float32)


def _power_of_two(x):
    return np.float32(2) ** np.floor(np.log2(np.abs(x)))


def _other_cut(places):
    def cut(x):
        return (x.view(np.int32) >> places << places).view(np.float32)

    cut.__name__ = f"_cut_{places}_bits"
    return cut


def _equal_bins(x):
    return np.float32(1 / 128) * np.trunc(x * 128)


def _equal_bins_down(x):
    return np.float32(1 / 128) * np.floor(x * 128)


def _equal_bins_rounded(x):
    return np.float32(1 / 128) * np.rint(x * 128)


def _two_decimals(x):
    return np.round(x, 2)


def _nothing_cut(x):
    return x.copy()


_floats = st.floats(-1000, 1000, width=32, allow_subnormal=False).filter(lambda v: abs(v) > 2.0**-20)

_VIEW = "`astype` turns the number into an integer; `view` leaves its 32 bits alone and reads them as an integer."
_FRACTION = "That cuts off the fraction of the decimal number. Cut off bits of its pattern."
_BACK = "You turned the pattern into a float by its value. Shift back by 16, then `view` it as float32."
_LOW = "You kept the lower 16 bits and cut off the upper ones. Those say most about the number: keep them."
_CUT_ONLY = "You round to the nearest bfloat16: then half of each bin belongs to its neighbour. Cut, only."
_EQUAL = "Those bins are all of one width. Here a bin is as wide as its values are large: cut bits off."
_SIXTEEN = "You cut another number of bits off. Of the 32 the lower 16 go; sign, exponent and 7 of the fraction stay."
_SEVEN = "You keep sign and exponent alone: bins twice as wide as their start. Keep 7 fraction bits too, 16 in all."


def _in_bins(attempt):
    """The network with each weight at the start of its bin."""
    return (
        "Your `bin_of` moved each of the network's weights to the start of its bin: it reads\n"
        f"{networks.with_weights(attempt):.1f} % of 2,000 digits (before: {networks.mlp_accuracy():.1f} %). "
        "The bins are narrow enough."
    )


BIN_OF = Exercise(
    id="05.4",
    solution=bin_of,
    examples=(
        {"x": np.array([1.0, 1.003, 1.009, 200.3, 201.9], dtype=np.float32)},
        {"x": np.array([-0.1, -3.14159, 1e-3, 1e6], dtype=np.float32)},
    ),
    cases=st.fixed_dictionaries({"x": hnp.arrays(np.float32, st.integers(1, 4), elements=_floats)}),
    mistakes=(
        Mistake(_cast, _VIEW),
        Mistake(_cast_then_viewed, _VIEW),
        Mistake(_integer_part, _FRACTION),
        Mistake(_integer_below, _FRACTION),
        Mistake(
            _mask_without_a_sign,
            "That mask is too large for an int32. Read the bits as np.uint32, or write the mask as ~0xFFFF.",
        ),
        Mistake(_end_of_the_bin, "That sets the lower 16 bits to 1: the bin's end. Its start has zeros there."),
        Mistake(_cut_pattern, "That is the right pattern, still read as an integer: `view` it as float32."),
        Mistake(_pattern, "That is the bin's number. Shift it back by 16 and view it as float32 again."),
        Mistake(_pattern_as_number, _BACK),
        Mistake(_cut_pattern_as_number, _BACK),
        Mistake(
            _not_shifted_back,
            "The 16 bits that you keep now stand where the lower ones were, and mean another number. "
            "Shift them back to the left.",
        ),
        Mistake(
            _only_to_the_left,
            "Shifted to the left, the upper 16 bits are lost. First to the right, then back to the left.",
        ),
        Mistake(_lower_half, _LOW),
        Mistake(_lower_half_masked, _LOW),
        Mistake(_two_halves, "An int16 is half of a value: that makes two numbers of each. Read all 32 bits as one."),
        Mistake(_rounded, _CUT_ONLY),
        Mistake(_rounded_by_division, _CUT_ONLY),
        Mistake(
            _towards_zero,
            "Patterns of negative numbers are negative integers, and those you cut towards 0, into the next bin. "
            "Shift with `>>`, or divide with `//`.",
        ),
        Mistake(
            _half_precision,
            "float16 is another format of 16 bits: 5 bits of exponent, nothing beyond 65,504. Cut float32's own bits.",
        ),
        Mistake(_sign_and_exponent, _SEVEN),
        Mistake(
            _power_of_two, "That is a power of two: the exponent alone. The sign stays too, and 7 bits of the fraction."
        ),
        *(Mistake(_other_cut(places), _SIXTEEN) for places in (7, 8, 12, 15, 17, 20, 24)),
        Mistake(_equal_bins, _EQUAL),
        Mistake(_equal_bins_down, _EQUAL),
        Mistake(_equal_bins_rounded, _EQUAL),
        Mistake(_two_decimals, _EQUAL),
        Mistake(_nothing_cut, "That is x as it was: nothing has been cut off."),
    ),
    hints=(
        "Which 16 bits do you keep: those at the left, or those at the right?",
        "Read the pattern as an integer, make its lower 16 bits 0, and read it as a float32 again.",
        "`x.view(np.int32)` is the pattern. Shifted right by 16 and back left, it ends in zeros.",
    ),
    consequence=_in_bins,
)

EXERCISES = (OBSERVE, ACCUMULATE, LAYER_BYTES, BIN_OF)


# 05.C a small convolutional network

CONVOLUTIONS_AND_LINEAR = ("conv1", "conv2", "linear")
MOST_BYTES, LEAST_PERCENT = 6_500, 97.5
TOGETHER = 100  # digits at once: what the layers put out stays in the cache


def compress(name, weight):
    bits = 8 if name == "conv1" else 2
    config = QuantConfig(bits, True, PerAxis(0), "mse")
    qparams = config.find_qparams(weight)
    return qlearn.quantize(weight, qparams), qparams.scale, bits


def _alike(bits, method):
    """The same bits and the same range method for all three layers."""

    def compress(name, weight):
        qparams = QuantConfig(bits, True, PerAxis(0), method).find_qparams(weight)
        return qlearn.quantize(weight, qparams), qparams.scale, bits

    return compress


def _judge(answer):
    """The CNN with weights made of what the answer returns: its bytes, counted here, and what it reads rightly."""
    net = datasets.trained("cnn")
    weights = {f"{name}.weight" for name in CONVOLUTIONS_AND_LINEAR}
    total = sum(4 * array.size for key, array in net.items() if key not in weights)
    changed = {}
    for name in CONVOLUTIONS_AND_LINEAR:
        weight = net[f"{name}.weight"]
        rows = weight.reshape(len(weight), -1)
        codes, scale, bits = _checked(name, rows.shape, answer(name, rows.copy()))
        total += len(packing.pack(codes, bits)) + 4 * scale.size
        scales = np.repeat(scale, rows.shape[1] // scale.shape[1], axis=1)
        with np.errstate(over="ignore"):  # what becomes of it is looked at below
            changed[name] = (codes * scales).astype(np.float32).reshape(weight.shape)
    logits = _cnn_logits(changed)
    percent = 100 * np.mean(logits.argmax(1) == networks.held_out()[1])
    if not np.isfinite(logits).all():
        raise CannotBeJudged("with these weights the network puts out numbers that are not finite.")
    passed = bool(total < MOST_BYTES and percent >= LEAST_PERCENT)
    # Two decimals are exact for 2,000 digits: what is shown and what is judged are the same number.
    return Score({"accuracy": f"{percent:.2f} %", "bytes": f"{total:,}"}, passed)


def _checked(name, shape, returned):
    """(codes, scales (O, groups) float32, bits) if they are what the rules ask for."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 3:
        raise CannotBeJudged(f"{name}: return three things: codes, scale, bits.")
    codes, scale, bits = returned
    if not isinstance(bits, (int, np.integer)) or isinstance(bits, bool) or not 1 <= bits <= 8:
        raise CannotBeJudged(f"{name}: bits is {bits!r}; a whole number from 1 to 8 is wanted.")
    if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
        kind = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
        raise CannotBeJudged(
            f"{name}: codes must be a NumPy array of integers, and this is {kind}. Cast them: np.int8."
        )
    if codes.shape != shape:
        raise CannotBeJudged(f"{name}: codes have shape {codes.shape}; a code for each weight is {shape}.")
    codes = codes.astype(np.int64)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if codes.min() < low or codes.max() > high:
        raise CannotBeJudged(
            f"{name}: codes run from {codes.min()} to {codes.max()}; signed codes of {bits} bits are {low} … {high}."
        )
    try:
        scale = np.asarray(scale, dtype=np.float32)
    except (TypeError, ValueError):
        raise CannotBeJudged(f"{name}: scale must be a number or an array of numbers.") from None
    if not np.isfinite(scale).all():
        raise CannotBeJudged(f"{name}: a scale is not finite.")
    outputs, inputs = shape
    if scale.size == 1:
        scale = scale.reshape(1, 1)
    elif scale.shape == (outputs,):
        scale = scale[:, None]
    if scale.ndim != 2 or scale.shape[0] not in (1, outputs) or scale.shape[1] == 0 or inputs % scale.shape[1]:
        raise CannotBeJudged(
            f"{name}: scale has shape {scale.shape}; wanted is one number, ({outputs}, 1) for one a row, or "
            f"({outputs}, groups) with groups that divide {inputs}."
        )
    return codes, scale, int(bits)


def _cnn_logits(weights):
    """What the CNN answers to the held-out digits, with these weights in its three layers."""
    import torch  # of this lesson, and not of those before it, whose exercises are found here, too

    from qlearn import nn
    from qlearn.nn.threads import one_thread

    model = nn.load_trained("cnn")
    for name, weight in weights.items():
        model.get_submodule(name).weight.data = torch.from_numpy(weight)
    images = torch.from_numpy(networks.held_out()[0]).reshape(-1, 1, 28, 28)
    with torch.no_grad(), one_thread():
        return torch.cat([model(batch) for batch in images.split(TOGETHER)]).numpy()


SMALL_CNN = Challenge(
    id="05.C",
    target=f"the CNN in fewer than {MOST_BYTES:,} bytes that reads at least {LEAST_PERCENT} % of 2,000 digits rightly.",
    solution=compress,
    judge=_judge,
    simple={
        "4 bits, min-max": _alike(4, "min_max"),
        "3 bits, MSE": _alike(3, "mse"),
        "2 bits, min-max": _alike(2, "min_max"),
        "2 bits, MSE": _alike(2, "mse"),
    },
    hints=(
        "Print `name` and `weight.size`. Which layer costs next to nothing, however many bits it gets?",
        "The layers need not be alike. (And 2 bits have a fourth code, −2, that symmetric ranges leave unused.)",
        "Ranges by MSE, a scale for each row, and `bits` by `name`: many for 144 weights, 2 for thousands.",
    ),
)

CHALLENGES = (SMALL_CNN,)
