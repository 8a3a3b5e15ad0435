"""Exercises of lesson 07, repairing post-training quantization."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

from functools import lru_cache

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlearn
from qlearn import datasets, gptq
from qlearn.errors import sqnr_db
from qlearn.exercises import cnn
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
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


def _turned_round(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight.T * factor, (bias - mean) * factor + beta


def _own_bias_not_scaled(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], bias - mean * factor + beta


def _own_bias_lost(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], beta - mean * factor


def _mean_not_scaled(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], bias * factor - mean + beta


def _beta_scaled(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], (bias - mean + beta) * factor


def _beta_lost(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], (bias - mean) * factor


def _mean_added(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], (bias + mean) * factor + beta


def _mean_lost(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight * factor[:, None], bias * factor + beta


def _gamma_lost(weight, bias, gamma, beta, mean, var, eps):
    factor = 1 / np.sqrt(var + eps)
    return weight * factor[:, None], (bias - mean) * factor + beta


def _deviation_lost(weight, bias, gamma, beta, mean, var, eps):
    return weight * gamma[:, None], (bias - mean) * gamma + beta


def _deviation_multiplied(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma * np.sqrt(var + eps)
    return weight * factor[:, None], (bias - mean) * factor + beta


def _gamma_for_weights_only(weight, bias, gamma, beta, mean, var, eps):
    root = np.sqrt(var + eps)
    return weight * (gamma / root)[:, None], (bias - mean) / root + beta


def _weight_forgotten(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return weight, (bias - mean) * factor + beta


def _weights_moved_too(weight, bias, gamma, beta, mean, var, eps):
    factor = gamma / np.sqrt(var + eps)
    return (weight - mean[:, None]) * factor[:, None] + beta[:, None], (bias - mean) * factor + beta


def _folds_the_network(fold):
    net, eps = datasets.trained("cnn"), 1e-5
    weights, biases = {}, {}
    for number in "12":
        weight = net[f"conv{number}.weight"].astype(np.float64)
        names = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, var = (net[f"bn{number}.{name}"].astype(np.float64) for name in names)
        rows, no_bias = weight.reshape(len(weight), -1), np.zeros(len(weight))
        weights[f"conv{number}"], biases[f"conv{number}"] = fold(rows, no_bias, gamma, beta, mean, var, eps)
    changed = int(np.sum(cnn.logits(weights, biases).argmax(axis=1) != _with_batch_norm()))
    return (
        f"Your `fold` on both convolutions: no batch norm is left, and of {cnn.DIGITS:,} held-out digits "
        f"{changed} {'is' if changed == 1 else 'are'} read otherwise than before."
    )


@lru_cache(maxsize=1)
def _with_batch_norm():
    """The class of each held-out digit by the network as it was trained."""
    import torch

    from qlearn import nn

    with torch.no_grad():
        return nn.load_trained("cnn").double()(cnn.images()["test"]).argmax(1).numpy()


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
        Mistake(
            _turned_round, "You return the transposed weights. Outputs are rows, before and after: factor[:, None]."
        ),
        Mistake(_own_bias_not_scaled, "The layer's own bias goes through the batch norm too: scale it by the factor."),
        Mistake(
            _own_bias_lost, "The layer's own bias is lost. Many layers before a batch norm have none; this one does."
        ),
        Mistake(
            _mean_not_scaled, "The mean is subtracted before the factor multiplies: (bias − mean) · factor + beta."
        ),
        Mistake(_beta_scaled, "beta comes last, after the factor: it is not multiplied."),
        Mistake(_beta_lost, "beta is missing: the batch norm adds it at its end."),
        Mistake(_mean_added, "Your sign is wrong: the batch norm subtracts the mean."),
        Mistake(_mean_lost, "mean is missing: it is subtracted from what the layer gives, bias − mean."),
        Mistake(_gamma_lost, "gamma is missing: the factor is gamma / np.sqrt(var + eps)."),
        Mistake(_deviation_lost, "The deviation is missing: divide gamma by np.sqrt(var + eps)."),
        Mistake(_deviation_multiplied, "You multiply by the deviation. The batch norm divides by it."),
        Mistake(_gamma_for_weights_only, "gamma multiplies the bias and the mean, too: one factor for all but beta."),
        Mistake(
            _weights_moved_too,
            "The weights are only multiplied: mean and beta are there once for an output, in its bias, and not once for "
            "each input.",
        ),
        Mistake(_weight_forgotten, "The weights stay as they were: multiply each row by its factor."),
    ),
    hints=(
        "Put `w x + b` in the place of z. What is `x` multiplied by then, and what is left where there is no `x`?",
        "One number for each output multiplies z: `factor = gamma / np.sqrt(var + eps)`. An output is a row of `weight`.",
        "The new weights are `weight * factor[:, None]`. For the new bias take x = 0: the layer gives `bias`, and the batch norm makes something of it.",
    ),
    consequence=_folds_the_network,
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


def _dead_where_made(w1, b1, w2):
    r1, r2 = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    with np.errstate(all="ignore"):
        return _rescaled(w1, b1, w2, np.where(r2 > 0, np.sqrt(r1 / r2), 1))


def _dead_where_read(w1, b1, w2):
    r1, r2 = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    with np.errstate(all="ignore"):
        return _rescaled(w1, b1, w2, np.where(r1 > 0, np.sqrt(r1 / r2), 1))


def _nan_replaced(w1, b1, w2):
    with np.errstate(all="ignore"):
        s = np.nan_to_num(np.sqrt(np.abs(w1).max(axis=1) / np.abs(w2).max(axis=0)), nan=1)
        return _rescaled(w1, b1, w2, s)


def _a_little_added(above, below):
    def equalize_nearly(w1, b1, w2):
        r1, r2 = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
        with np.errstate(all="ignore"):
            return _rescaled(w1, b1, w2, np.sqrt((r1 + above) / (r2 + below)))

    return equalize_nearly


def _at_least(least):
    def equalize_nearly(w1, b1, w2):
        r1, r2 = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
        return _rescaled(w1, b1, w2, np.sqrt(np.maximum(r1, least) / np.maximum(r2, least)))

    return equalize_nearly


def _factor_zero(w1, b1, w2):
    r1, r2 = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    with np.errstate(all="ignore"):
        return _rescaled(w1, b1, w2, np.where((r1 > 0) & (r2 > 0), np.sqrt(r1 / r2), 0))


def _factors_of(range_of):
    """The same with something else in the place of the largest |weight|."""

    def equalize_something_else(w1, b1, w2):
        return _rescaled(w1, b1, w2, _safe(range_of(w1, 1), range_of(w2, 0), lambda a, b: np.sqrt(a / b)))

    return equalize_something_else


def _rows_and_columns_swapped(w1, b1, w2):
    if w1.shape[1] != len(w1) or w2.shape[0] != len(w1):
        raise ValueError("operands could not be broadcast together")
    s = _safe(np.abs(w1).max(axis=0), np.abs(w2).max(axis=1), lambda a, b: np.sqrt(a / b))
    return _rescaled(w1, b1, w2, s)


def _columns_and_rows_throughout(w1, b1, w2):
    s = _safe(np.abs(w1).max(axis=0), np.abs(w2).max(axis=1), lambda a, b: np.sqrt(a / b))
    return w1 / s, b1 / s, w2 * s[:, None]


def _columns_divided(w1, b1, w2):
    s = _safe(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0), lambda a, b: np.sqrt(a / b))
    return w1 / s, b1 / s, w2 * s


def _rows_multiplied(w1, b1, w2):
    s = _safe(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0), lambda a, b: np.sqrt(a / b))
    return w1 / s[:, None], b1 / s, w2 * s[:, None]


def _one_for_both(w1, b1, w2):
    s = _safe(np.abs(w1).max(), np.abs(w2).max(), lambda a, b: np.sqrt(a / b))
    return w1 / s, b1 / s, w2 * s


def _product(w1, b1, w2):
    s = _safe(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0), lambda a, b: np.sqrt(a * b))
    return _rescaled(w1, b1, w2, s)


def _bias_multiplied(w1, b1, w2):
    s = _safe(np.abs(w1).max(axis=1), np.abs(w2).max(axis=0), lambda a, b: np.sqrt(a / b))
    return w1 / s[:, None], b1 * s, w2 * s


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


def _eight_bits_one_scale(weights):
    """Each layer with 8 bits and one scale, all weights to their nearest ticks."""
    return {
        name: qlearn.fake_quantize(w, qlearn.find_qparams(w, bits=8, symmetric=True)) for name, w in weights.items()
    }


@lru_cache(maxsize=1)
def _unequal():
    """Weights and biases of the lesson's unequal network, and its accuracy with 8 bits and one scale for each layer."""
    from qlearn import nn

    weights, biases = cnn.rows_of(nn.unequalize(cnn.network()))
    return weights, biases, cnn.accuracy(_eight_bits_one_scale(weights), biases)


def _equalizes_the_network(equalize):
    weights, biases, before = _unequal()
    w, b = dict(weights), dict(biases)
    for _ in range(12):
        for made, read, channels in (("conv1", "conv2", 16), ("conv2", "linear", 32)):
            reading = w[read].reshape(len(w[read]), channels, -1)  # each channel is read at several places
            turned = reading.transpose(0, 2, 1)
            w[made], b[made], rescaled = equalize(w[made].copy(), b[made].copy(), turned.reshape(-1, channels))
            w[read] = rescaled.reshape(turned.shape).transpose(0, 2, 1).reshape(w[read].shape)
    after = cnn.accuracy(_eight_bits_one_scale(w), b)
    return (
        "Your `equalize`, twelve times over all layers of the unequal network, 8 bits and one scale for each layer's "
        f"weights:\n{after:.1f} % of {cnn.DIGITS:,} held-out digits (before: {before:.1f} %)."
    )


# Two channels are 0 on one side. No example: whoever has forgotten them may have made another mistake before, and is
# told of that one first.
_DEAD = {
    "w1": np.array([[0.0, 0.0, 0.0], [1.0, -4.0, 0.5], [2.0, 0.0, -3.0]]),
    "b1": np.array([3.0, 0.0, 1.0]),
    "w2": np.array([[5.0, 1.0, 0.0], [-1.0, 0.5, 0.0], [2.0, 0.25, 0.0]]),
}


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
            "w1": np.array([[3.25, -5.0], [6.0, -8.0]]),
            "b1": np.array([1.0, 2.0]),
            "w2": np.array([[0.5, 0.5], [1.25, -0.5]]),
        },
    ),
    cases=st.just(_DEAD) | _two_layers(),
    mistakes=(
        Mistake(_dead_channels, "A channel without weights gives 0/0 or 1/0. It has no range to equalize: factor 1."),
        Mistake(_dead_where_made, "A channel that nothing makes (r₁ = 0) gets s = 0, and 0/0. Its factor is 1."),
        Mistake(
            _nan_replaced,
            "np.nan_to_num makes a huge number of s = ∞, and leaves s = 0: where one side is 0, the factor is 1.",
        ),
        Mistake(_dead_where_read, "A channel that nothing reads (r₂ = 0) gets s = ∞. Its factor is 1."),
        *(
            Mistake(
                function,
                "A small number added to a range, or in its place, spares you the division by 0, and gives a channel "
                "that is 0 on one side a huge or tiny factor. Its factor is 1.",
            )
            for small in (1e-12, 1e-9, 1e-8, 1e-6)
            for function in (_a_little_added(0, small), _a_little_added(small, small), _at_least(small))
        ),
        Mistake(
            _factor_zero, "You give a channel that is 0 on one side the factor 0, and divide by it. Factor 1 leaves it."
        ),
        Mistake(_upside_down, "Your factors are upside down: the unequal ranges become more unequal. s = √(r₁ / r₂)."),
        Mistake(_ratio_without_root, "Without the square root the two ranges only change places."),
        Mistake(_bias_kept, "The bias is a part of what makes the channel: divide it by s as well."),
        Mistake(
            _second_layer_kept, "What reads the channel must make up for the division: multiply w2's columns by s."
        ),
        Mistake(_both_divided, "You divided twice. What the first layer loses, the second has to gain: w2 * s."),
        Mistake(_first_layer_to_one, "Now w1 is perfect, and w2 has all the inequality. Share it: s = √(r₁ / r₂)."),
        Mistake(
            _factors_of(lambda w, axis: np.maximum(w.max(axis=axis), 0)),
            "You take the largest weight. A large negative one stretches the range as well: np.abs first.",
        ),
        Mistake(
            _factors_of(lambda w, axis: np.abs(w).mean(axis=axis)),
            "You take the mean of |weight|. What a scale has to reach is the largest.",
        ),
        Mistake(
            _factors_of(lambda w, axis: np.sqrt((w**2).sum(axis=axis))),
            "You take the length of each row and column. What a scale has to reach is the largest |weight|.",
        ),
        Mistake(
            _factors_of(lambda w, axis: w.max(axis=axis) - w.min(axis=axis)),
            "You take largest minus smallest. A symmetric scale has to reach the largest |weight|.",
        ),
        Mistake(
            _rows_and_columns_swapped, "A channel is a row of w1 and a column of w2: max over axis 1, then axis 0."
        ),
        Mistake(
            _columns_and_rows_throughout,
            "You take columns of w1 and rows of w2. A channel is a row where it is made, and a column where it is read.",
        ),
        Mistake(_columns_divided, "w1 / s divides the columns of w1. A channel is a row there: s[:, None]."),
        Mistake(_rows_multiplied, "w2 * s[:, None] multiplies the rows of w2. A channel is a column there: w2 * s."),
        Mistake(_one_for_both, "That is one factor for all channels. Each has its own: max along one axis."),
        Mistake(_product, "√(r₁ r₂) is the range that both get in the end. The factor is √(r₁ / r₂)."),
        Mistake(_bias_multiplied, "The bias is on the side that is divided: b1 / s."),
    ),
    hints=(
        "Channel c is row c of `w1` and column c of `w2`. Write its largest |weight| on either side with s in it. What must be equal?",
        "From `r1 / s = r2 * s` follows s. The bias belongs to what makes the channel. Where `r1` or `r2` is 0, s stays 1.",
        "Start with `s = np.ones(len(w1))`, and set `np.sqrt(r1 / r2)` only where both are above 0. The rows of `w1` need `s[:, None]`, the columns of `w2` no new axis.",
    ),
    consequence=_equalizes_the_network,
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


def _rounded_down(bias_codes, step, y, y_hat):
    return (bias_codes + np.floor((y - y_hat).mean(axis=0) / step)).astype(np.int32)


def _shift_cut_off(bias_codes, step, y, y_hat):
    return bias_codes + ((y - y_hat).mean(axis=0) / step).astype(np.int32)


def _real_bias(bias_codes, step, y, y_hat):
    return bias_codes * step + (y - y_hat).mean(axis=0)


def _real_bias_rounded(bias_codes, step, y, y_hat):
    return np.rint(bias_codes * step + (y - y_hat).mean(axis=0)).astype(np.int32)


def _size_of_the_error(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint(np.abs(y - y_hat).mean(axis=0) / step)).astype(np.int32)


def _sum_not_mean(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint((y - y_hat).sum(axis=0) / step)).astype(np.int32)


def _mean_of_images(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint((y - y_hat).mean(axis=1) / step)).astype(np.int32)


def _new_bias_only(bias_codes, step, y, y_hat):
    return np.rint((y - y_hat).mean(axis=0) / step).astype(np.int32)


def _median_not_mean(bias_codes, step, y, y_hat):
    return (bias_codes + np.rint(np.median(y - y_hat, axis=0) / step)).astype(np.int32)


def _each_image_rounded(bias_codes, step, y, y_hat):
    return np.rint(bias_codes + np.rint((y - y_hat) / step).mean(axis=0)).astype(np.int32)


def _each_image_rounded_then_cut_off(bias_codes, step, y, y_hat):
    return bias_codes + np.rint((y - y_hat) / step).mean(axis=0).astype(np.int32)


def _old_codes_divided(bias_codes, step, y, y_hat):
    return np.rint((bias_codes + (y - y_hat).mean(axis=0)) / step).astype(np.int32)


def _nearest_bias(case, answer):
    """Whether each code is a nearest one: at a tie there are two."""
    wanted = case["bias_codes"] + (case["y"].mean(axis=0) - case["y_hat"].mean(axis=0)) / case["step"]
    is_codes = isinstance(answer, np.ndarray) and answer.dtype == np.int32 and answer.shape == wanted.shape
    return is_codes and bool(np.all(np.abs(answer - wanted) <= 0.5 + 1e-9))


@lru_cache(maxsize=1)
def _three_bits():
    """The network with 3 bits and one scale for each layer, and its accuracy."""
    weights = {
        name: qlearn.fake_quantize(layer.weight, qlearn.find_qparams(layer.weight, bits=3, symmetric=True))
        for name, layer in cnn.layers().items()
    }
    return weights, cnn.accuracy(weights)


def _corrects_the_last_bias(correct):
    weights, before = _three_bits()
    step = 1e-3
    y, y_hat = cnn.logits(part="calibration"), cnn.logits(weights, part="calibration")
    codes = np.rint(cnn.layers()["linear"].bias / step).astype(np.int32)
    after = cnn.accuracy(weights, {"linear": step * correct(codes, step, y, y_hat)})
    return (
        "Your `correct` on the last layer, weights with 3 bits and one scale for each layer:\n"
        f"{after:.1f} % of {cnn.DIGITS:,} held-out digits (before: {before:.1f} %)."
    )


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
            "y_hat": np.array([[0.0, 12.5], [1.125, 16.125]]),
        },
        {
            "bias_codes": np.array([3], dtype=np.int32),
            "step": 0.5,
            "y": np.array([[1.0], [2.0], [9.0]]),
            "y_hat": np.array([[0.0], [0.0], [0.0]]),
        },
    ),
    cases=_outputs(),
    mistakes=(
        Mistake(_wrong_way, "You move away from the float outputs: what is missing, y − ŷ, must be added."),
        Mistake(_one_for_all, "That is one number for all channels. Each has a mean of its own: mean over axis 0."),
        Mistake(_not_in_steps, "The bias is counted in steps of the accumulator: divide the shift by step."),
        Mistake(_multiplied, "A step is worth `step`, so a shift has shift / step of them: divide."),
        Mistake(_cut_off, "The cast cuts fractions off: round first, np.rint."),
        Mistake(_shift_cut_off, "The cast cuts fractions off: round first, np.rint."),
        Mistake(_rounded_down, "You round down, so the bias is half a step too low on average: np.rint."),
        Mistake(_real_bias, "That is the bias as a real number. Wanted are its codes: divide by step and round."),
        Mistake(_real_bias_rounded, "That is the bias as a real number, rounded. Wanted are its codes, in steps."),
        Mistake(
            _size_of_the_error,
            "You take the size of each error. What counts is what is left of them with their signs: no np.abs.",
        ),
        Mistake(_sum_not_mean, "The bias is added to every image's output, so it is the mean error, not the sum."),
        Mistake(_median_not_mean, "That is the median. The squared error is smallest when the mean error is gone."),
        Mistake(_mean_of_images, "That is one mean for each image. Each channel needs one: mean over axis 0."),
        Mistake(_each_image_rounded, "You round the error of each image. Take the mean first, then round once."),
        Mistake(
            _each_image_rounded_then_cut_off, "You round the error of each image. Take the mean first, then round once."
        ),
        Mistake(_old_codes_divided, "The old codes are in steps already: divide the shift alone."),
        Mistake(_new_bias_only, "The old bias is still needed: add the shift to it."),
    ),
    hints=(
        "For each image you know what a channel gave in float, and what it gives now. What is missing on average?",
        "The shift of a channel is the mean of `y - y_hat` over images, axis 0. How many steps is that?",
        "Round the shift divided by `step` with `np.rint`. Add it to the old codes, and make the sum int32.",
    ),
    also_right=_nearest_bias,
    consequence=_corrects_the_last_bias,
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


def _all_errors_at_once_and_its_own(w, r):
    return np.rint(w + (w - np.rint(w)) @ r)


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


def _errors_unweighted(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.rint(w[j] + np.sum(w[:j] - w_hat[:j]))
    return w_hat


def _rounded_with(rounding):
    """The same, rounding in another way."""

    def round_row_otherwise(w, r):
        w_hat = np.zeros(len(w))
        for j in range(len(w)):
            w_hat[j] = rounding(w[j] + (w[:j] - w_hat[:j]) @ r[:j, j])
        return w_hat

    return round_row_otherwise


def _from_the_right(w, r):
    w_hat = np.zeros(len(w))
    for j in reversed(range(len(w))):
        w_hat[j] = np.rint(w[j] + (w[j + 1 :] - w_hat[j + 1 :]) @ r[j, j + 1 :])
    return w_hat


def _the_last_one_left_out(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        k = max(j - 1, 0)
        w_hat[j] = np.rint(w[j] + (w[:k] - w_hat[:k]) @ r[:k, j])
    return w_hat


def _rounded_ones_only(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.rint(w[j] - w_hat[:j] @ r[:j, j])
    return w_hat


def _wanted_returned(w, r):
    w_hat, wanted = np.zeros(len(w)), np.zeros(len(w))
    for j in range(len(w)):
        wanted[j] = w[j] + (w[:j] - w_hat[:j]) @ r[:j, j]
        w_hat[j] = np.rint(wanted[j])
    return wanted


def _not_rounded(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = w[j] + (w[:j] - np.rint(w[:j])) @ r[:j, j]
    return w_hat


def _nearest_in_turn(case, answer):
    """Whether each weight lies on a tick that is nearest to what it wants: at a tie there are two."""
    w, r = case["w"], case["r"]
    if not isinstance(answer, np.ndarray) or answer.dtype.kind not in "if" or answer.shape != w.shape:
        return False
    if not np.array_equal(answer, np.rint(answer)):  # NaN is not, either
        return False
    wanted = w + (w - answer) @ np.triu(r, 1)
    return bool(np.all(np.abs(answer - wanted) <= 0.5 + 1e-9))


CONVOLUTIONS = ("conv1", "conv2")


@lru_cache(maxsize=1)
def _two_bit_grids():
    """Grids of 2 bits for the rows of both convolutions, and what their nearest ticks are worth."""
    own = {name: cnn.layers()[name].weight for name in CONVOLUTIONS}
    options = {"bits": 2, "symmetric": True, "granularity": qlearn.PerAxis(0)}
    grids = {name: qlearn.find_qparams(w, "mse", **options) for name, w in own.items()}
    return grids, cnn.accuracy({name: qlearn.fake_quantize(w, grids[name]) for name, w in own.items()})


def _rounds_the_network(round_row):
    grids, nearest = _two_bit_grids()
    weights = {}
    for name, grid in grids.items():
        layer = cnn.layers()[name]
        h = layer.hessian
        r, _ = gptq.factors(h + 0.01 * np.mean(np.diag(h)) * np.eye(len(h)))
        steps = np.array([round_row(row, r.copy()) for row in layer.weight / grid.scale])
        weights[name] = np.clip(steps, grid.quant_min, grid.quant_max) * grid.scale
    return (
        f"Your `round_row` on all {sum(map(len, weights.values()))} filters of both convolutions, 2 bits:\n"
        f"{cnn.accuracy(weights):.1f} % of {cnn.DIGITS:,} held-out digits (each weight to its nearest tick: "
        f"{nearest:.1f} %)."
    )


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
        {  # every mistake below shows in this one
            "w": np.array([-1.625, -2.375, 2.0, -2.375, -0.625]),
            "r": np.array(
                [
                    [1.0, -0.875, -1.0, -0.625, -0.75],
                    [0.0, 1.0, -0.5, -0.25, 0.875],
                    [0.0, 0.0, 1.0, -0.375, 0.25],
                    [0.0, 0.0, 0.0, 1.0, 0.125],
                    [0.0, 0.0, 0.0, 0.0, 1.0],
                ]
            ),
        },
    ),
    cases=_rows(),
    mistakes=(
        Mistake(
            _nearest,
            "That is the nearest tick for each weight alone: no error is passed on. (If you meant to: r is 0 below its "
            "diagonal, so it is r[:j, j], and not r[j, :j].)",
        ),
        Mistake(_wrong_sign, "Your sign is wrong: what a weight lost, w − ŵ, must be added to those after it."),
        Mistake(
            _error_of_the_wanted,
            "You pass on wanted − ŵ. Errors passed on to a weight are then passed on again: the error is w − ŵ.",
        ),
        Mistake(
            _all_errors_at_once,
            "You rounded all weights first. Each must be rounded after it got the errors of those before it.",
        ),
        Mistake(
            _all_errors_at_once_and_its_own,
            "You rounded all weights first, and each makes up for itself, too. Each must be rounded after it got the "
            "errors of those before it.",
        ),
        Mistake(_only_the_neighbour, "A weight makes up for all errors before it, not for its neighbour's alone."),
        Mistake(
            _own_error_too,
            "Your sum has weight j in it, which has no error yet: it is there twice. Sum over those before it, [:j].",
        ),
        Mistake(_not_rounded, "Your weights do not lie on ticks: round what is wanted, np.rint."),
        Mistake(_wanted_returned, "You return what each weight wanted. Wanted are the ticks that it got."),
        Mistake(
            _errors_unweighted,
            "You pass every error on in full. How much of error i reaches weight j is what r[i, j] says.",
        ),
        Mistake(_rounded_with(np.floor), "You round down. A weight goes to the tick that is nearest to what it wants."),
        Mistake(_rounded_with(np.trunc), "You cut the fraction off. Round to the nearest whole number, np.rint."),
        Mistake(_from_the_right, "You go from right to left. R belongs to an order: the first weight comes first."),
        Mistake(
            _the_last_one_left_out,
            "The weight right before j is left out: w[:j] are all that come before j, and ends in front of it.",
        ),
        Mistake(_rounded_ones_only, "You pass on the rounded weights. What is passed on is their error, w − ŵ."),
    ),
    hints=(
        "Go through the weights from left to right. When weight j is rounded, which errors are known already?",
        "The known errors are `w[:j] - w_hat[:j]`. How much of each reaches weight j stands in column j of `r`, above the diagonal.",
        "The errors `@ r[:j, j]` are what weight j has to make up for. Add that to `w[j]`, round it, and store it before you go on.",
    ),
    also_right=_nearest_in_turn,
    consequence=_rounds_the_network,
)


EXERCISES = (FOLD, EQUALIZE, CORRECT, ROUND_ROW)


# 07.C two bits, and logits as near as may be

BUDGET, WANTED = 5_700, 11.5  # bytes, dB


def compress(weight, bias, h, mean):
    bits = 8 if weight.size < 1000 else 2
    grid = qlearn.find_qparams(
        weight,
        "mse",
        bits=bits,
        symmetric=True,
        granularity=qlearn.PerAxis(0),
    )
    codes = gptq.gptq_quantize(weight, h, grid)
    lost = weight - qlearn.dequantize(codes, grid)
    return codes, grid.scale, bias + lost @ mean


def _to_nearest(bits, method="min_max"):
    def compress_to_nearest(weight, bias, h, mean):
        options = {"bits": bits, "symmetric": True, "granularity": qlearn.PerAxis(0)}
        grid = qlearn.find_qparams(weight, method, **options)
        return qlearn.quantize(weight, grid), grid.scale, bias

    return compress_to_nearest


def _bias_corrected(weight, bias, h, mean):
    codes, scale, bias = _to_nearest(2, "mse")(weight, bias, h, mean)
    return codes, scale, bias + (weight - codes * scale) @ mean


def _judge(answer):
    weights, biases, size = {}, {}, 0
    for name, layer in cnn.layers().items():
        arrays = (np.array(values) for values in (layer.weight, layer.bias, layer.hessian, layer.mean))
        codes, scale, bias = _checked(name, answer(*arrays), layer.weight.shape)
        size += -(-codes.size * _bits(codes) // 8) + 4 * (scale.size + bias.size)
        weights[name], biases[name] = codes * scale, bias
    logits = cnn.logits(weights, biases)
    near = sqnr_db(cnn.logits(), logits) if np.isfinite(logits).all() else -np.inf
    percent = 100 * np.mean(logits.argmax(axis=1) == cnn.images()["labels"])
    columns = {"bytes": f"{size:,}", "logits' SQNR": f"{near:.1f} dB", "accuracy": f"{percent:.1f} %"}
    return Score(columns, size <= BUDGET and near >= WANTED)


def _checked(name, answer, shape):
    """Codes, scale and bias as arrays, if they are what they should be."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        raise CannotBeJudged(f"for {name} three things are wanted: codes, scale, bias.")
    try:
        arrays = [np.asarray(values) for values in answer]
    except Exception:  # a ragged list, a tensor with a gradient
        arrays = []
    if not arrays or any(array.dtype.kind not in "iuf" for array in arrays):
        raise CannotBeJudged(f"for {name} codes, scale and bias must be arrays of numbers.")
    codes, scale, bias = (array.astype(np.float64) for array in arrays)
    rows = shape[0]
    if codes.shape != shape:
        raise CannotBeJudged(f"the codes of {name} have shape {codes.shape}; its weights have {shape}.")
    if not np.array_equal(codes, np.rint(codes)):
        raise CannotBeJudged(f"the codes of {name} are not whole numbers: round the weights in steps of the scale.")
    if codes.min() < -128 or codes.max() > 127:
        raise CannotBeJudged(f"the codes of {name} do not fit into 8 bits, −128 … 127: clip them.")
    if scale.shape not in ((), (1,), (1, 1), (rows, 1)):
        raise CannotBeJudged(
            f"the scale of {name} has shape {scale.shape}; wanted is ({rows}, 1), one for each row, or a single number."
        )
    if bias.shape != (rows,):
        raise CannotBeJudged(f"the bias of {name} has shape {bias.shape}; wanted is ({rows},).")
    if not (np.isfinite(scale).all() and np.isfinite(bias).all()):
        raise CannotBeJudged(f"the scale or the bias of {name} is not finite.")
    return codes, scale, bias


def _bits(codes):
    """How many bits hold all codes, 2 to 8: b bits go from −2ᵇ⁻¹ to 2ᵇ⁻¹ − 1."""
    return next(b for b in range(2, 9) if codes.min() >= -(2 ** (b - 1)) and codes.max() < 2 ** (b - 1))


CHALLENGE = Challenge(
    id="07.C",
    target=f"at most {BUDGET:,} bytes, and at least {WANTED} dB for the logits of {cnn.DIGITS:,} held-out digits.",
    solution=compress,
    judge=_judge,
    simple={
        "3 bits, nearest": _to_nearest(3),
        "2 bits, nearest, MSE ranges": _to_nearest(2, "mse"),
        "the same, biases corrected": _bias_corrected,
    },
    hints=(
        "How many bytes has conv1 altogether? `weight.size` tells you which layer you have got.",
        "2 bits everywhere leave about 130 bytes over. And where ranges by MSE have done what they can, `h` says which roundings the outputs mind least.",
        "`gptq.gptq_quantize(weight, h, grid)` rounds on a grid from `qlearn.find_qparams`. What the weights lost, times `mean`, is what each output is short of on average.",
    ),
)

CHALLENGES = (CHALLENGE,)
