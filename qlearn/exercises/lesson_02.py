"""Exercises of lesson 02, choosing the range."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.checking import Exercise, Mistake

_values = st.integers(-400, 400).map(lambda n: n / 8)  # exact in binary, ties among them
_vectors = hnp.arrays(np.float64, st.integers(1, 8), elements=_values)


# 02.1 the two parts of the error


def error_parts(x, scale, quant_max):
    codes = np.rint(x / scale)
    clipped = np.abs(codes) > quant_max
    squares = (x - scale * np.clip(codes, -quant_max, quant_max)) ** 2
    return np.mean(squares * ~clipped), np.mean(squares * clipped)


def _each_over_its_own(x, scale, quant_max):
    codes = np.rint(x / scale)
    clipped = np.abs(codes) > quant_max
    squares = (x - scale * np.clip(codes, -quant_max, quant_max)) ** 2
    return np.sum(squares * ~clipped) / max(np.sum(~clipped), 1), np.sum(squares * clipped) / max(np.sum(clipped), 1)


def _mean_of_each_part(x, scale, quant_max):
    clipped = np.abs(x) > scale * quant_max
    squares = (x - scale * np.clip(np.rint(x / scale), -quant_max, quant_max)) ** 2
    return np.sum(squares * ~clipped) / max(np.sum(~clipped), 1), np.sum(squares * clipped) / max(np.sum(clipped), 1)


def _right_side_only(x, scale, quant_max):
    codes = np.rint(x / scale)
    clipped = codes > quant_max
    squares = (x - scale * np.clip(codes, -quant_max, quant_max)) ** 2
    return np.mean(squares * ~clipped), np.mean(squares * clipped)


def _outermost_code_counts_as_clipped(x, scale, quant_max):
    codes = np.clip(np.rint(x / scale), -quant_max, quant_max)
    clipped = np.abs(codes) == quant_max
    squares = (x - scale * codes) ** 2
    return np.mean(squares * ~clipped), np.mean(squares * clipped)


def _beyond_the_last_tick(x, scale, quant_max):
    clipped = np.abs(x) > scale * quant_max
    squares = (x - scale * np.clip(np.rint(x / scale), -quant_max, quant_max)) ** 2
    return np.mean(squares * ~clipped), np.mean(squares * clipped)


def _never_clamped(x, scale, quant_max):
    codes = np.rint(x / scale)
    clipped = np.abs(codes) > quant_max
    squares = (x - scale * codes) ** 2
    return np.mean(squares * ~clipped), np.mean(squares * clipped)


def _not_squared(x, scale, quant_max):
    codes = np.rint(x / scale)
    clipped = np.abs(codes) > quant_max
    errors = np.abs(x - scale * np.clip(codes, -quant_max, quant_max))
    return np.mean(errors * ~clipped), np.mean(errors * clipped)


def _sums(x, scale, quant_max):
    rounding, clipping = error_parts(x, scale, quant_max)
    return len(x) * rounding, len(x) * clipping


def _other_order(x, scale, quant_max):
    rounding, clipping = error_parts(x, scale, quant_max)
    return clipping, rounding


ERROR_PARTS = Exercise(
    id="02.1",
    solution=error_parts,
    examples=(
        {"x": np.array([0.25, 6.75, 7.25, 9.0]), "scale": 1.0, "quant_max": 7},
        {"x": np.array([-3.0, -0.5, 0.5, 1.75]), "scale": 0.5, "quant_max": 3},
    ),
    cases=st.fixed_dictionaries(
        {"x": _vectors, "scale": st.integers(1, 64).map(lambda n: n / 8), "quant_max": st.integers(1, 7)}
    ),
    mistakes=(
        Mistake(
            _each_over_its_own,
            "You average each part over its own values. Divide both by the number of all values: "
            "then the parts add up to the mean squared error.",
        ),
        Mistake(
            _mean_of_each_part,
            "Two things: divide both sums by the number of all values, so that the parts add up to the mean squared "
            "error. And clipped is what the clamp moves, not every value beyond the last tick.",
        ),
        Mistake(_right_side_only, "You look for clipped values on the right side only. Those on the left count too."),
        Mistake(
            _outermost_code_counts_as_clipped,
            "A value with the outermost code need not be clipped: 7.25 rounds to 7 by itself. "
            "Look at the codes before the clamp.",
        ),
        Mistake(
            _beyond_the_last_tick,
            "A value up to half a step beyond the last tick still rounds to it, like any other value. "
            "Clipped is what the clamp moves.",
        ),
        Mistake(_never_clamped, "Your clipped values keep codes that do not exist: clamp before you multiply back."),
        Mistake(_not_squared, "These are mean absolute errors. Square each error first."),
        Mistake(_sums, "These are sums. Divide by the number of values to get means."),
        Mistake(_other_order, "Both parts are right, in the other order: rounding first, then clipping."),
    ),
    hints=(
        "Which codes does the clamp change? Only those values are clipped.",
        "codes = np.rint(x / scale), clipped = np.abs(codes) > quant_max; take the squared errors after the clamp, "
        "then np.mean(squares * ~clipped) and np.mean(squares * clipped).",
    ),
)


# 02.2 percentile on both tails


def percentile_range(x, p):
    return np.percentile(x, 100 - p), np.percentile(x, p)


def _one_tail(x, p):
    return np.min(x), np.percentile(x, p)


def _mirrored(x, p):
    hi = np.percentile(x, p)
    return -hi, hi


def _of_magnitudes(x, p):
    hi = np.percentile(np.abs(x), p)
    return -hi, hi


def _share_halved(x, p):
    return np.percentile(x, (100 - p) / 2), np.percentile(x, 100 - (100 - p) / 2)


def _swapped(x, p):
    return np.percentile(x, p), np.percentile(x, 100 - p)


def _as_share(x, p):
    return np.percentile(x, 1 - p / 100), np.percentile(x, p / 100)


def _one_minus_p(x, p):
    return np.percentile(x, 1 - p), np.percentile(x, p)


def _of_the_largest(x, p):
    return np.min(x) * p / 100, np.max(x) * p / 100


PERCENTILE_RANGE = Exercise(
    id="02.2",
    solution=percentile_range,
    examples=(
        {"x": np.array([0.0, 1.0, 2.0, 3.0, 100.0]), "p": 75},
        {"x": np.array([-50.0, -2.0, 0.0, 1.0, 4.0, 9.0]), "p": 90},
    ),
    cases=st.fixed_dictionaries({"x": _vectors, "p": st.integers(51, 100)}),
    mistakes=(
        Mistake(_one_tail, "You cut one tail only: outliers on the left still set the scale. lo is a percentile too."),
        Mistake(
            _mirrored, "You mirror the right end. The left tail may be longer or shorter: lo is the (100 − p)-th one."
        ),
        Mistake(
            _of_magnitudes,
            "The percentile of |x| is one number for both ends, a rule for symmetric codes. Cut each tail by itself.",
        ),
        Mistake(_share_halved, "You cut half of the share at each end. Here 100 − p percent go at *each* end."),
        Mistake(_swapped, "Your lo lies above your hi: the p-th percentile is the upper end."),
        Mistake(_as_share, "np.percentile counts from 0 to 100: hand it p itself, not p / 100."),
        Mistake(
            _one_minus_p, "np.percentile counts from 0 to 100, and so does p: the lower end is the percentile 100 − p."
        ),
        Mistake(
            _of_the_largest,
            "You shorten the min-max range by a factor. A percentile counts values: p percent of them lie below it.",
        ),
    ),
    hints=(
        "Below which value do p percent of x lie, and below which one 100 − p percent?",
        "np.percentile(x, 100 - p) is the lower end, np.percentile(x, p) the upper one.",
    ),
)


# 02.3 grid search for the smallest mean squared error


def best_clip(x, bits, clips):
    quant_max = 2 ** (bits - 1) - 1
    errors = []
    for clip in clips:
        scale = clip / quant_max
        x_hat = scale * np.clip(np.rint(x / scale), -quant_max, quant_max)
        errors.append(np.mean((x - x_hat) ** 2))
    return clips[np.argmin(errors)]


def _errors_of_clips(x, bits, clips):
    quant_max = 2 ** (bits - 1) - 1
    scales = clips[:, None] / quant_max
    x_hat = scales * np.clip(np.rint(x / scales), -quant_max, quant_max)
    return x - x_hat, np.abs(x) <= clips[:, None]


def _the_error_itself(x, bits, clips):
    errors, _ = _errors_of_clips(x, bits, clips)
    return np.mean(errors**2, axis=1).min()


def _the_index(x, bits, clips):
    errors, _ = _errors_of_clips(x, bits, clips)
    return np.argmin(np.mean(errors**2, axis=1))


def _largest_error(x, bits, clips):
    errors, _ = _errors_of_clips(x, bits, clips)
    return clips[np.argmax(np.mean(errors**2, axis=1))]


def _without_the_clipped(x, bits, clips):
    errors, inside = _errors_of_clips(x, bits, clips)
    return clips[np.argmin(np.mean(errors**2 * inside, axis=1))]


def _no_clamp(x, bits, clips):
    scales = clips[:, None] / (2 ** (bits - 1) - 1)
    return clips[np.argmin(np.mean((x - scales * np.rint(x / scales)) ** 2, axis=1))]


def _signed_mean(x, bits, clips):
    errors, _ = _errors_of_clips(x, bits, clips)
    return clips[np.argmin(np.abs(np.mean(errors, axis=1)))]


def _worst_value(x, bits, clips):
    errors, _ = _errors_of_clips(x, bits, clips)
    return clips[np.argmin(np.abs(errors).max(axis=1))]


def _eight_bits(x, bits, clips):
    return best_clip(x, 8, clips)


def _unsigned_limit(x, bits, clips):
    return best_clip(x, bits + 1, clips)


def _one_code_too_many(x, bits, clips):
    quant_max = 2 ** (bits - 1)
    scales = clips[:, None] / quant_max
    x_hat = scales * np.clip(np.rint(x / scales), -quant_max, quant_max)
    return clips[np.argmin(np.mean((x - x_hat) ** 2, axis=1))]


def _absolute_error(x, bits, clips):
    errors, _ = _errors_of_clips(x, bits, clips)
    return clips[np.argmin(np.mean(np.abs(errors), axis=1))]


def _is_clear(case):
    """Whether the smallest error is smaller than all others by more than rounding: no tie decides."""
    errors, _ = _errors_of_clips(**case)
    first, second = np.sort(np.mean(errors**2, axis=1))[:2]
    return second - first > 1e-6 * second


_clips = st.lists(st.integers(1, 400), min_size=2, max_size=6, unique=True).map(lambda ns: np.sort(ns) / 8)

BEST_CLIP = Exercise(
    id="02.3",
    solution=best_clip,
    examples=(
        {"x": np.array([-2.0, 1.0, 3.5, 3.75, 4.0]), "bits": 2, "clips": np.array([0.75, 2.0, 4.0, 7.75])},
        {"x": np.array([-3.25, -2, -1.75, 2, 3.25, 3.25]), "bits": 2, "clips": np.array([0.75, 1.0, 5.25, 7.75])},
        {"x": np.array([-2.0, -2.0, -0.75, 4.0]), "bits": 2, "clips": np.array([2.0, 3.0, 3.5, 3.75, 4.75])},
    ),
    cases=st.fixed_dictionaries({"x": _vectors, "bits": st.integers(2, 8), "clips": _clips}).filter(_is_clear),
    mistakes=(
        Mistake(_the_error_itself, "You return the smallest error. Wanted is the clip that has it."),
        Mistake(_the_index, "You return the position of the best clip. Wanted is the clip itself: clips[position]."),
        Mistake(_largest_error, "You return the clip with the largest error: np.argmin, not np.argmax."),
        Mistake(
            _without_the_clipped,
            "You judge only the values inside the range. What was clipped counts too, or the tightest range wins.",
        ),
        Mistake(_no_clamp, "Without the clamp no value is ever clipped, and the finest ruler wins: clip the codes."),
        Mistake(_signed_mean, "Errors of opposite signs cancel in your mean. Square them first."),
        Mistake(_worst_value, "You minimise the largest error. Wanted is the smallest mean of squared errors."),
        Mistake(
            _unsigned_limit,
            "Your largest code is that of codes without a sign, 2**bits − 1. Here it is 2**(bits − 1) − 1.",
        ),
        Mistake(_one_code_too_many, "Your largest code is 2**(bits − 1). Symmetric codes end one earlier."),
        Mistake(_absolute_error, "You average absolute errors. Square them: large errors then weigh more."),
        Mistake(
            _eight_bits, "You judge with 8-bit codes. The best clip depends on `bits`: quant_max is 2**(bits−1)−1."
        ),
    ),
    hints=(
        "For one clip you know what to do: scale, codes, x̂, mean squared error. Do it for each clip and compare.",
        "In a loop: scale = clip / quant_max, x_hat = scale * np.clip(np.rint(x / scale), -quant_max, quant_max); "
        "collect np.mean((x - x_hat) ** 2), and return clips[np.argmin(errors)].",
    ),
)


# 02.4 cross-entropy between two sets of logits


def cross_entropy(logits, logits_hat):
    def log_softmax(z):
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    return np.mean(-np.sum(np.exp(log_softmax(logits)) * log_softmax(logits_hat), axis=-1))


def _softmax(z, axis=-1):
    z = np.exp(z - z.max(axis=axis, keepdims=True))
    return z / z.sum(axis=axis, keepdims=True)


def _log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def _arguments_swapped(logits, logits_hat):
    return cross_entropy(logits_hat, logits)


def _mean_of_everything(logits, logits_hat):
    return np.mean(-_softmax(logits) * _log_softmax(logits_hat))


def _sum_over_rows(logits, logits_hat):
    return np.sum(-_softmax(logits) * _log_softmax(logits_hat))


def _minus_missing(logits, logits_hat):
    return -cross_entropy(logits, logits_hat)


def _hard_labels(logits, logits_hat):
    return -np.mean(_log_softmax(logits_hat)[np.arange(len(logits)), logits.argmax(axis=-1)])


def _divergence(logits, logits_hat):
    return cross_entropy(logits, logits_hat) - cross_entropy(logits, logits)


def _down_the_columns(logits, logits_hat):
    z = logits_hat - logits_hat.max(axis=0)
    return np.mean(-np.sum(_softmax(logits, axis=0) * (z - np.log(np.exp(z).sum(axis=0))), axis=-1))


def _overflows(logits, logits_hat):
    with np.errstate(all="ignore"):
        p, q = (np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) for z in (logits, logits_hat))
        return np.mean(-np.sum(p * np.log(q), axis=-1))


def _log_of_zero(logits, logits_hat):
    with np.errstate(all="ignore"):
        return np.mean(-np.sum(_softmax(logits) * np.log(_softmax(logits_hat)), axis=-1))


_logits = hnp.arrays(np.float64, (3, 3), elements=st.integers(-64, 64).map(lambda n: n / 4))

CROSS_ENTROPY = Exercise(
    id="02.4",
    solution=cross_entropy,
    examples=(
        {"logits": np.array([[4.0, 6, -12], [1, 3, -10]]), "logits_hat": np.array([[4.0, 6, 0], [0, 4, 0]])},
        {"logits": np.array([[900.0, 899, 898]]), "logits_hat": np.array([[900.0, 900, 898]])},
        {"logits": np.array([[-900.0, 5, 6], [0, 1, 2]]), "logits_hat": np.array([[-900.0, 7, 6], [800, 1, 0]])},
    ),
    cases=st.fixed_dictionaries({"logits": _logits, "logits_hat": _logits}),
    mistakes=(
        Mistake(_arguments_swapped, "The weights are the softmax of the *original* logits, the logarithm is of x̂'s."),
        Mistake(
            _mean_of_everything, "You divide by the number of logits. Sum over the classes, then average the rows."
        ),
        Mistake(_sum_over_rows, "You sum over the rows too. Sum over the classes, then take the mean of the rows."),
        Mistake(
            _minus_missing, "The sign is wrong: logarithms of probabilities are negative, so a minus stands in front."
        ),
        Mistake(_hard_labels, "You look at the largest class only. Every class counts, weighted with its probability."),
        Mistake(
            _divergence, "You subtract the original's own entropy: that is the KL divergence, without it cross-entropy."
        ),
        Mistake(_down_the_columns, "Your softmax runs down the columns. The classes lie along the last axis."),
        Mistake(_overflows, "exp(900) is infinite. Subtract each row's maximum first: the softmax does not change."),
        Mistake(
            _log_of_zero,
            "A probability became 0, and its logarithm infinite. Take the logarithm by hand: z − log Σ exp(z).",
        ),
    ),
    hints=(
        "log softmax(z) is z − log Σ exp(z), taken along the last axis after subtracting the row's maximum.",
        "p = exp(log_softmax(logits)); then np.mean(-np.sum(p * log_softmax(logits_hat), axis=-1)).",
    ),
)

EXERCISES = (ERROR_PARTS, PERCENTILE_RANGE, BEST_CLIP, CROSS_ENTROPY)
