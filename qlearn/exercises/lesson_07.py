"""Exercises of lesson 07, repairing post-training quantization."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import itertools

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn.exercises.checking import Exercise, Mistake

# Multiples of powers of two: sums are exact, so that a tie is a tie in whatever order they are added.
_eighths = st.integers(-80, 80).map(lambda n: n / 8)
_signs = st.sampled_from([-1.0, 1.0])


# 07.1 fold a batch norm


def fold(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], (bias - mean) * factor + beta


def _no_root(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / (var + eps)
    return weight * factor[:, None], (bias - mean) * factor + beta


def _no_eps(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var)
    return weight * factor[:, None], (bias - mean) * factor + beta


def _eps_outside(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / (np.sqrt(var) + eps)
    return weight * factor[:, None], (bias - mean) * factor + beta


def _factor_for_columns(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor, (bias - mean) * factor + beta


def _own_bias_not_scaled(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], bias - mean * factor + beta


def _own_bias_lost(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], beta - mean * factor


def _mean_not_scaled(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], bias * factor - mean + beta


def _weight_forgotten(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight, (bias - mean) * factor + beta


@st.composite
def _layers_with_norm(draw):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))

    def vector(elements):
        return draw(hnp.arrays(np.float64, rows, elements=elements))

    return {
        "weight": draw(hnp.arrays(np.float64, (rows, columns), elements=_eighths)),
        "bias": vector(_eighths),
        "gamma": vector(_eighths),
        "beta": vector(_eighths),
        "mean": vector(_eighths),
        "var": vector(st.integers(1, 64).map(lambda n: n / 8)),
        "eps": draw(st.sampled_from([0.125, 1e-3])),
    }


FOLD = Exercise(
    id="07.1",
    solution=fold,
    examples=(
        {
            "weight": np.array([[1.0, 2.0], [3.0, -4.0]]),
            "bias": np.array([1.0, 3.0]),
            "gamma": np.array([4.0, 1.0]),
            "beta": np.array([0.5, -1.0]),
            "mean": np.array([2.0, -3.0]),
            "var": np.array([3.75, 0.75]),
            "eps": 0.25,
        },
    ),
    cases=_layers_with_norm(),
    mistakes=(
        Mistake(_no_root, "You divide by the variance. The batch norm divides by its square root, the deviation."),
        Mistake(_no_eps, "The square root is of var + eps: eps is there for channels that hardly vary."),
        Mistake(_eps_outside, "eps stands under the root: np.sqrt(var + eps)."),
        Mistake(
            _factor_for_columns,
            "The factor belongs to an output, that is to a row: factor[:, None]. Yours multiplies columns.",
        ),
        Mistake(_own_bias_not_scaled, "The layer's own bias goes through the batch norm too: scale it by the factor."),
        Mistake(
            _own_bias_lost, "The layer's own bias is lost. Many layers before a batch norm have none; this one does."
        ),
        Mistake(
            _mean_not_scaled, "The mean is subtracted before the factor multiplies: (bias − mean) · factor + beta."
        ),
        Mistake(_weight_forgotten, "The weights stay as they were: multiply each row by its factor."),
    ),
    hints=(
        "A batch norm computes γ · (z − μ) / √(σ² + ε) + β with z = w x + b. Put that in, and sort by what x is behind.",
        "factor = gamma / np.sqrt(var + eps). The weights are multiplied by factor[:, None]; then look at what has no x.",
    ),
)


# 07.2 equalize two layers


def equalize(w1, b1, w2):
    r1, r2 = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    alive = (r1 > 0) & (r2 > 0)
    s = np.ones(len(w1))
    s[alive] = np.sqrt(r1[alive] / r2[alive])
    return w1 / s[:, None], b1 / s, w2 * s


def _rescaled(w1, b1, w2, s):
    return w1 / s[:, None], b1 / s, w2 * s


def _safe(r1, r2, factor):
    alive = (r1 > 0) & (r2 > 0)
    return np.where(alive, factor(np.where(alive, r1, 1), np.where(alive, r2, 1)), 1)


def _dead_channels(w1, b1, w2):
    with np.errstate(all="ignore"):
        return _rescaled(w1, b1, w2, np.sqrt(np.abs(w1).max(axis=1) / np.abs(w2).max(axis=0)))


def _upside_down(w1, b1, w2):
    return _rescaled(w1, b1, w2, _safe(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0), lambda a, b: np.sqrt(b / a)))


def _ratio_without_root(w1, b1, w2):
    return _rescaled(w1, b1, w2, _safe(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0), lambda a, b: a / b))


def _bias_kept(w1, b1, w2):
    first, _, second = equalize(w1, b1, w2)
    return first, b1, second


def _second_layer_kept(w1, b1, w2):
    first, bias, _ = equalize(w1, b1, w2)
    return first, bias, w2


def _both_divided(w1, b1, w2):
    s = _safe(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0), lambda a, b: np.sqrt(a / b))
    return w1 / s[:, None], b1 / s, w2 / s


def _first_layer_to_one(w1, b1, w2):
    r1 = np.abs(w1).max(axis=1)
    return _rescaled(w1, b1, w2, np.where(r1 > 0, r1, 1))


@st.composite
def _two_layers(draw):
    inputs, channels, outputs = (draw(st.integers(1, 4)) for _ in range(3))
    return {
        "w1": draw(hnp.arrays(np.float64, (channels, inputs), elements=_eighths)),
        "b1": draw(hnp.arrays(np.float64, channels, elements=_eighths)),
        "w2": draw(hnp.arrays(np.float64, (outputs, channels), elements=_eighths)),
    }


EQUALIZE = Exercise(
    id="07.2",
    solution=equalize,
    examples=(
        {
            "w1": np.array([[8.0, -2.0], [-0.5, 0.25]]),
            "b1": np.array([4.0, 1.0]),
            "w2": np.array([[2.0, 0.5], [-1.0, -2.0], [0.0, 1.0]]),
        },
        {
            "w1": np.array([[0.0, 0.0], [1.0, -4.0]]),
            "b1": np.array([3.0, 0.0]),
            "w2": np.array([[5.0, 1.0]]),
        },
    ),
    cases=_two_layers(),
    mistakes=(
        Mistake(_dead_channels, "A channel without weights gives 0/0 or 1/0. It has no range to equalize: factor 1."),
        Mistake(_upside_down, "Your factors are upside down: the unequal ranges become more unequal. s = √(r₁ / r₂)."),
        Mistake(_ratio_without_root, "Without the square root the two ranges only change places."),
        Mistake(_bias_kept, "The bias is a part of what makes the channel: divide it by s as well."),
        Mistake(
            _second_layer_kept, "What reads the channel must make up for the division: multiply w2's columns by s."
        ),
        Mistake(_both_divided, "You divided twice. What the first layer loses, the second has to gain: w2 * s."),
        Mistake(_first_layer_to_one, "Now w1 is perfect, and w2 has all the inequality. Share it: s = √(r₁ / r₂)."),
    ),
    hints=(
        "Channel c is row c of w1 and column c of w2. Which factor makes the largest |weight| the same in both?",
        "r1 / s = r2 * s gives s = np.sqrt(r1 / r2), where neither is 0. Then w1 / s[:, None], b1 / s, w2 * s.",
    ),
)


# 07.3 correct a bias


def correct(bias_codes, step, y, y_hat):
    shift = y.mean(axis=0) - y_hat.mean(axis=0)
    return (bias_codes + np.rint(shift / step)).astype(np.int32)


def _wrong_way(bias_codes, step, y, y_hat):
    return (bias_codes - np.rint((y - y_hat).mean(axis=0) / step)).astype(np.int32)


def _one_for_all(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint((y - y_hat).mean() / step)).astype(np.int32)


def _not_in_steps(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint((y - y_hat).mean(axis=0))).astype(np.int32)


def _multiplied(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint((y - y_hat).mean(axis=0) * step)).astype(np.int32)


def _cut_off(bias_codes, step, y, y_hat):
    return (bias_codes + (y - y_hat).mean(axis=0) / step).astype(np.int32)


def _sum_not_mean(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint((y - y_hat).sum(axis=0) / step)).astype(np.int32)


def _mean_of_images(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint((y - y_hat).mean(axis=1) / step)).astype(np.int32)


def _new_bias_only(bias_codes, step, y, y_hat):
    return np.rint((y - y_hat).mean(axis=0) / step).astype(np.int32)


@st.composite
def _outputs(draw):
    images, channels = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    values = hnp.arrays(np.float64, (images, channels), elements=_eighths)
    return {
        "bias_codes": draw(hnp.arrays(np.int32, channels, elements=st.integers(-1000, 1000))),
        "step": draw(st.sampled_from([0.125, 0.25, 0.5])),
        "y": draw(values),
        "y_hat": draw(values),
    }


CORRECT = Exercise(
    id="07.3",
    solution=correct,
    examples=(
        {
            "bias_codes": np.array([10, -20], dtype=np.int32),
            "step": 0.25,
            "y": np.array([[10.0, 2.0], [30.0, 4.0]]),
            "y_hat": np.array([[0.0, 12.5], [1.125, 16.0]]),
        },
    ),
    cases=_outputs(),
    mistakes=(
        Mistake(_wrong_way, "You move away from the float outputs: what is missing, y − ŷ, must be added."),
        Mistake(_one_for_all, "That is one number for all channels. Each has a mean of its own: mean over axis 0."),
        Mistake(_not_in_steps, "The bias is counted in steps of the accumulator: divide the shift by step."),
        Mistake(_multiplied, "A step is worth `step`, so a shift has shift / step of them: divide."),
        Mistake(_cut_off, "The cast cuts fractions off: round first, np.rint."),
        Mistake(_sum_not_mean, "The bias is added to every image's output, so it is the mean error, not the sum."),
        Mistake(_mean_of_images, "That is one mean for each image. Each channel needs one: mean over axis 0."),
        Mistake(_new_bias_only, "The old bias is still needed: add the shift to it."),
    ),
    hints=(
        "How far is each channel off on average, and how many steps is that?",
        "shift = y.mean(axis=0) - y_hat.mean(axis=0); then np.rint(shift / step), added to bias_codes, as int32.",
    ),
)


# 07.4 round a row, passing the errors on


def round_row(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        wanted = w[j] + (w[:j] - w_hat[:j]) @ r[:j, j]
        w_hat[j] = np.rint(wanted)
    return w_hat


def _nearest(w, r):
    return np.rint(w)


def _wrong_sign(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.rint(w[j] - (w[:j] - w_hat[:j]) @ r[:j, j])
    return w_hat


def _error_of_the_wanted(w, r):
    wanted, w_hat = np.zeros(len(w)), np.zeros(len(w))
    for j in range(len(w)):
        wanted[j] = w[j] + (wanted[:j] - w_hat[:j]) @ r[:j, j]
        w_hat[j] = np.rint(wanted[j])
    return w_hat


def _all_errors_at_once(w, r):
    return np.rint(w + (w - np.rint(w)) @ np.triu(r, 1))


def _only_the_neighbour(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        wanted = w[j] + ((w[j - 1] - w_hat[j - 1]) * r[j - 1, j] if j else 0)
        w_hat[j] = np.rint(wanted)
    return w_hat


def _own_error_too(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.rint(w[j] + (w - w_hat) @ r[:, j])
    return w_hat


def _not_rounded(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = w[j] + (w[:j] - np.rint(w[:j])) @ r[:j, j]
    return w_hat


@st.composite
def _rows(draw):
    n = draw(st.integers(1, 5))
    r = draw(hnp.arrays(np.float64, (n, n), elements=st.integers(-16, 16).map(lambda k: k / 8)))
    return {
        "w": draw(hnp.arrays(np.float64, n, elements=st.integers(-48, 48).map(lambda k: k / 16))),
        "r": np.triu(r, 1) + np.eye(n),
    }


ROUND_ROW = Exercise(
    id="07.4",
    solution=round_row,
    examples=(
        {"w": np.array([0.375, 0.375]), "r": np.array([[1.0, 0.875], [0.0, 1.0]])},
        {
            "w": np.array([0.4375, 0.4375, 1.375, -0.4375]),
            "r": np.array([[1.0, 0.75, 0.5, 0.25], [0.0, 1.0, 0.75, 0.5], [0.0, 0.0, 1.0, 0.75], [0.0, 0.0, 0.0, 1.0]]),
        },
    ),
    cases=_rows(),
    mistakes=(
        Mistake(_nearest, "That is the nearest tick for each weight alone: the errors before it are not passed on."),
        Mistake(_wrong_sign, "Your sign is wrong: what a weight lost, w − ŵ, must be added to those after it."),
        Mistake(
            _error_of_the_wanted,
            "You pass on wanted − ŵ. Errors passed on to a weight are then passed on again: the error is w − ŵ.",
        ),
        Mistake(
            _all_errors_at_once,
            "You rounded all weights first. Each must be rounded after it got the errors of those before it.",
        ),
        Mistake(_only_the_neighbour, "A weight makes up for all errors before it, not for its neighbour's alone."),
        Mistake(
            _own_error_too,
            "Your sum has weight j in it, which has no error yet: it is there twice. Sum over those before it, [:j].",
        ),
        Mistake(_not_rounded, "Your weights do not lie on ticks: round what is wanted, np.rint."),
    ),
    hints=(
        "Go through the weights from left to right. When weight j is rounded, which errors are known already?",
        "wanted = w[j] + (w[:j] - w_hat[:j]) @ r[:j, j], and w_hat[j] is what that rounds to.",
    ),
)


# 07.5 the best rounding there is


def best_rounding(w, h):
    choices = itertools.product(*[(np.floor(v), np.ceil(v)) for v in w])
    errors = [(w - np.array(choice)) @ h @ (w - np.array(choice)) for choice in choices]
    return min(errors)


def _error_of_the_nearest(w, h):
    e = w - np.rint(w)
    return e @ h @ e


def _weights_alone(w, h):
    return np.sum((w - np.rint(w)) ** 2)


def _inputs_alike_forgotten(w, h):
    e = w - np.rint(w)
    return e @ np.diag(np.diag(h)) @ e


def _all_up_or_all_down(w, h):
    return min((w - choice) @ h @ (w - choice) for choice in (np.floor(w), np.ceil(w)))


def _worst(w, h):
    choices = itertools.product(*[(np.floor(v), np.ceil(v)) for v in w])
    return max((w - np.array(choice)) @ h @ (w - np.array(choice)) for choice in choices)


def _ticks_zero_and_one(w, h):
    choices = itertools.product([0.0, 1.0], repeat=len(w))
    return min((w - np.array(choice)) @ h @ (w - np.array(choice)) for choice in choices)


def _one_weight_changed(w, h):
    nearest = np.rint(w)
    tried = [nearest]
    for j in range(len(w)):
        other = nearest.copy()
        other[j] = np.floor(w[j]) + np.ceil(w[j]) - nearest[j]
        tried.append(other)
    return min((w - choice) @ h @ (w - choice) for choice in tried)


@st.composite
def _rows_with_inputs(draw):
    n = draw(st.integers(1, 4))
    x = draw(hnp.arrays(np.float64, (3, n), elements=st.integers(0, 8).map(lambda k: k / 4)))
    w = draw(hnp.arrays(np.float64, n, elements=st.integers(-40, 40).map(lambda k: k / 16)))
    return {"w": w, "h": x.T @ x}


BEST_ROUNDING = Exercise(
    id="07.5",
    solution=best_rounding,
    examples=(
        {"w": np.array([0.375, 0.375]), "h": np.array([[1.0, 0.875], [0.875, 1.0]])},
        {
            "w": np.array([0.375, -0.375, 0.4375, 0.625]),
            "h": np.array([[4.0, 2.0, 3.0, 1.0], [2.0, 2.0, 2.0, 0.5], [3.0, 2.0, 3.0, 1.0], [1.0, 0.5, 1.0, 4.0]]),
        },
        {"w": np.array([2.375, -1.375]), "h": np.array([[1.0, 0.875], [0.875, 1.0]])},
    ),
    cases=_rows_with_inputs(),
    mistakes=(
        Mistake(_error_of_the_nearest, "That is what the nearest ticks give. Try every choice of up and down."),
        Mistake(_weights_alone, "That is the weights' own error. The outputs' is (w − ŵ) @ h @ (w − ŵ)."),
        Mistake(
            _inputs_alike_forgotten,
            "You use h's diagonal only. That two inputs are alike is what stands beside it.",
        ),
        Mistake(
            _all_up_or_all_down,
            "You tried all up and all down. Each weight goes up or down by itself: 2ⁿ choices.",
        ),
        Mistake(_worst, "That is the worst choice; the smallest error is wanted."),
        Mistake(_ticks_zero_and_one, "Your ticks are 0 and 1. A weight lies between np.floor and np.ceil of itself."),
        Mistake(_one_weight_changed, "Changing one weight at a time is not enough: two together can be better still."),
    ),
    hints=(
        "Each weight has two ticks to go to, np.floor and np.ceil. How many choices have n weights together?",
        "itertools.product(*[(np.floor(v), np.ceil(v)) for v in w]) lists them all; take the min of e @ h @ e, e = w − ŵ.",
    ),
)

EXERCISES = (FOLD, EQUALIZE, CORRECT, ROUND_ROW, BEST_ROUNDING)
