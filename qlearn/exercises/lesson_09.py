"""Exercises of lesson 09, a language model in four bits."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import copy

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlearn
from qlearn.config import QuantConfig
from qlearn.exercises import letters
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.granularity import PerAxis

_eighths = st.integers(-64, 64).map(lambda n: n / 8)


def _matrix(rows, columns, elements=_eighths):
    return hnp.arrays(np.float64, (rows, columns), elements=elements)


# 09.1 perplexity


def perplexity(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p[np.arange(len(following)), following].mean())


def _picked(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p[np.arange(len(following)), following]


def _no_shift(logits, following):
    with np.errstate(all="ignore"):
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.exp(-np.log(p[np.arange(len(following)), following]).mean())


def _no_shift_of_log(logits, following):
    with np.errstate(all="ignore"):
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.exp(-log_p[np.arange(len(following)), following].mean())


def _shifted_but_log_of_p(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        return np.exp(-np.log(p[np.arange(len(following)), following]).mean())


def _sum_not_mean(logits, following):
    with np.errstate(over="ignore"):
        return np.exp(-_picked(logits, following).sum())


def _sign_lost(logits, following):
    return np.exp(_picked(logits, following).mean())


def _cross_entropy(logits, following):
    return -_picked(logits, following).mean()


def _cross_entropy_in_bits(logits, following):
    return -_picked(logits, following).mean() / np.log(2)


def _bits_as_nats(logits, following):
    return np.exp(-_picked(logits, following).mean() / np.log(2))


def _nats_as_bits(logits, following):
    return 2 ** (-_picked(logits, following).mean())


def _mean_of_inverse(logits, following):
    with np.errstate(over="ignore"):
        return np.exp(-_picked(logits, following)).mean()


def _inverse_of_mean(logits, following):
    with np.errstate(divide="ignore"):
        return 1 / np.exp(_picked(logits, following)).mean()


def _wrong_axis(logits, following):
    shifted = logits - logits.max(axis=0, keepdims=True)
    with np.errstate(all="ignore"):
        log_p = shifted - np.log(np.exp(shifted).sum(axis=0, keepdims=True))
        return np.exp(-log_p[np.arange(len(following)), following].mean())


def _one_softmax_for_all(logits, following):
    shifted = logits - logits.max()
    with np.errstate(all="ignore"):
        log_p = shifted - np.log(np.exp(shifted).sum())
        return np.exp(-log_p[np.arange(len(following)), following].mean())


def _all_pairs(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p[:, following].mean())


def _likeliest(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p.max(axis=1).mean())


def _all_letters(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p.mean())


def _logits_alone(logits, following):
    with np.errstate(all="ignore"):
        return np.exp(-logits[np.arange(len(following)), following].mean())


def _one_shift_for_all(logits, following):
    shifted = logits - logits.max()
    with np.errstate(divide="ignore"):
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p[np.arange(len(following)), following].mean())


def _sums_without_keepdims(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1))
    return np.exp(-log_p[np.arange(len(following)), following].mean())


def _rows_of_following(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p[following].mean())


def _only_shifted(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.exp(-shifted[np.arange(len(following)), following].mean())


def _sum_without_log(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.exp(shifted).sum(axis=1, keepdims=True)
    return np.exp(-log_p[np.arange(len(following)), following].mean())


def _shifted_in_the_sum_alone(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    with np.errstate(over="ignore"):
        return np.exp(-log_p[np.arange(len(following)), following].mean())


def _at_least(smallest, add):
    def perplexity_of_at_least(logits, following):
        p = np.exp(_picked(logits, following))
        return np.exp(-np.log(p + smallest if add else np.maximum(p, smallest)).mean())

    return perplexity_of_at_least


def _each_letter(logits, following):
    with np.errstate(over="ignore"):
        return np.exp(-_picked(logits, following))


def _mean_over_alphabet(logits, following):
    with np.errstate(over="ignore"):
        return np.exp(-_picked(logits, following).sum() / logits.shape[1])


def _next_but_one(logits, following):
    if len(following) < 2:
        return np.nan  # as the mean of nothing, but without NumPy's warning below a learner's cell
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p[np.arange(len(following) - 1), following[1:]].mean())


def _log10(logits, following):
    return np.exp(-_picked(logits, following).mean() / np.log(10))


def _powers_of_two(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        log_p = shifted - np.log2((2.0**shifted).sum(axis=1, keepdims=True))
        return 2.0 ** -log_p[np.arange(len(following)), following].mean()


def _in_float32(logits, following):
    logits = logits.astype(np.float32)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    with np.errstate(over="ignore"):
        return np.exp(-log_p[np.arange(len(following)), following].mean())


def _product_of_probabilities(logits, following):
    with np.errstate(divide="ignore"):
        return np.prod(np.exp(_picked(logits, following))) ** (-1 / len(following))


def _expected(logits, following):
    log_p = np.log(1e-300 + np.exp(logits - logits.max(axis=1, keepdims=True)))
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return np.exp(-(np.exp(log_p) * log_p).sum(axis=1).mean())


def _clipped(largest):
    def perplexity_of_clipped(logits, following):
        return perplexity(np.minimum(logits, largest), following)

    return perplexity_of_clipped


def _letter_before_row(logits, following):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(-log_p[following, np.arange(len(following))].mean())


def _judges_three_writers(attempt):
    each_row = {"symmetric": True, "granularity": PerAxis(0)}
    writers = {
        "float": letters.model(),
        "4 bits": letters.nearest(letters.model(), QuantConfig(bits=4, **each_row)),
        "2 bits": letters.nearest(letters.model(), QuantConfig(bits=2, **each_row)),
    }
    said = [f"{name} {attempt(*letters.logits_and_following(net)):.2f}" for name, net in writers.items()]
    return (
        f"Your `perplexity` of the model on {letters.LETTERS:,} letters that it has not read, ranges by min-max:\n"
        f"{', '.join(said)}."
    )


_OVERFLOWS = "np.exp overflows for logits in the hundreds. Subtract the largest of each row first: the softmax stays."
_LOG_OF_P = "A probability can be 0 in float64, and its logarithm is −∞. Take the logarithm of the softmax by hand: "


@st.composite
def _texts(draw):
    places, alphabet = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    factor = draw(st.sampled_from([1.0, 1.0, 100.0]))
    return {
        "logits": draw(_matrix(places, alphabet)) * factor,
        "following": draw(hnp.arrays(np.int64, places, elements=st.integers(0, alphabet - 1))),
    }


PERPLEXITY = Exercise(
    id="09.1",
    solution=perplexity,
    examples=(
        {"logits": np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.5, 0.0]]), "following": np.array([3, 1])},
        {"logits": np.array([[800.0, 799.0, 0.0], [1.0, 0.0, 3.0]]), "following": np.array([1, 0])},
        {"logits": np.array([[0.0, 900.0], [2.0, 1.0], [5.0, 5.5]]), "following": np.array([1, 0, 1])},
    ),
    cases=_texts(),
    mistakes=(
        Mistake(_no_shift, _OVERFLOWS),
        Mistake(_no_shift_of_log, _OVERFLOWS),
        Mistake(_shifted_but_log_of_p, f"{_LOG_OF_P}the shifted logit minus np.log of the row's sum."),
        Mistake(_cross_entropy, "That is the mean surprise in nats. Perplexity is e to the power of it: np.exp."),
        Mistake(_cross_entropy_in_bits, "That is the mean surprise in bits. Perplexity is 2 to the power of it."),
        Mistake(
            _sign_lost, "The sign is lost: surprise is −log p, so that a model that knows nothing has a large one."
        ),
        Mistake(_sum_not_mean, "You take the sum over all letters. It is the mean: a longer text is no worse."),
        Mistake(
            _bits_as_nats, "You divided by np.log(2), so these are bits: then 2 to the power of the mean, not np.exp."
        ),
        Mistake(_nats_as_bits, "np.log gives nats: then np.exp of the mean, not 2 to the power of it."),
        Mistake(_mean_of_inverse, "You average 1 / p. Average the logarithms first, then np.exp once."),
        Mistake(_inverse_of_mean, "You average the probabilities. Average their logarithms, then np.exp once."),
        Mistake(_wrong_axis, "Your softmax runs down the text. Each row is one place: sum over axis 1."),
        Mistake(
            _one_softmax_for_all, "That is one softmax over the whole array. Each row is one place: keepdims, axis 1."
        ),
        Mistake(
            _all_pairs,
            "logits[:, following] takes every letter at every place. Of row i take following[i] alone: "
            "[np.arange(len(following)), following].",
        ),
        Mistake(_likeliest, "You judge the letters that the model likes best. Judge those that came: `following`."),
        Mistake(_all_letters, "You average over the whole alphabet. Only the letter that came counts: `following`."),
        Mistake(
            _one_shift_for_all,
            "One maximum for the whole array: a row that lies hundreds below it becomes all 0. Each row has its own: "
            "logits.max(axis=1, keepdims=True).",
        ),
        Mistake(
            _sums_without_keepdims,
            "A row of maxima or sums has shape (T,). With keepdims=True it is (T, 1), and fits the rows.",
        ),
        Mistake(
            _rows_of_following,
            "log_p[following] takes whole rows. Of row i take entry following[i]: [np.arange(len(following)), following].",
        ),
        Mistake(_only_shifted, "The largest is taken off, but the log of the row's sum of exp is missing."),
        Mistake(_sum_without_log, "You subtract the sum of exp itself: its logarithm is wanted, np.log."),
        Mistake(_shifted_in_the_sum_alone, "Only the sum was shifted. Shift the logits in front of it as well."),
        *(
            Mistake(
                _at_least(smallest, add),
                "A floor under the probabilities hides how wrong a model was. Leave it away, and take the log by hand.",
            )
            for smallest in (1e-12, 1e-10, 1e-9, 1e-8)
            for add in (True, False)
        ),
        Mistake(
            _product_of_probabilities,
            "A product of probabilities soon falls below all that float64 holds: add their logs.",
        ),
        Mistake(
            _expected,
            "That is the surprise which the model expects, over the whole alphabet. Judge the letter that came: `following`.",
        ),
        *(
            Mistake(
                _clipped(largest),
                "Clipped logits are other logits. Subtract the largest of each row: that changes nothing.",
            )
            for largest in (100, 300, 500, 600, 700, 709)
        ),
        Mistake(_letter_before_row, "Rows come first, letters second: log_p[np.arange(len(following)), following]."),
        Mistake(_each_letter, "That is one number a letter. Average −log p over them, then np.exp once."),
        Mistake(_mean_over_alphabet, "You divide by the size of the alphabet. It is the mean over the T letters."),
        Mistake(_next_but_one, "`following` is shifted already: row i of logits is judged by following[i]."),
        Mistake(_log10, "np.exp undoes np.log. With np.log10 it would be 10 to the power of the mean."),
        Mistake(_powers_of_two, "A softmax has e in it, whatever the unit of the surprise: np.exp of the logits."),
        Mistake(_in_float32, "float32 ends at 3e38: stay in float64."),
        Mistake(
            _logits_alone, "A logit is no logarithm of a probability yet: subtract the log of the row's sum of exp."
        ),
    ),
    hints=(
        "A softmax turns each row into probabilities. Which one entry of a row is asked for?",
        "log p of a letter is its logit minus `np.log(np.exp(row).sum())`, and that stays the same if a number is "
        "subtracted from the whole row first: its largest.",
        "`log_p[np.arange(len(following)), following]` picks one entry of each row. Mean, minus, `np.exp`.",
    ),
    consequence=_judges_three_writers,
)


# 09.2 smoothing factors


def smoothing_factors(x, w):
    return np.sqrt(np.abs(x).max(axis=0) / np.abs(w).max(axis=0))


def _upside_down(x, w):
    return np.sqrt(np.abs(w).max(axis=0) / np.abs(x).max(axis=0))


def _no_root(x, w):
    return np.abs(x).max(axis=0) / np.abs(w).max(axis=0)


def _product(x, w):
    return np.sqrt(np.abs(x).max(axis=0) * np.abs(w).max(axis=0))


def _no_abs(x, w):
    with np.errstate(all="ignore"):
        return np.sqrt(x.max(axis=0) / w.max(axis=0))


def _activations_alone(x, w):
    return np.sqrt(np.abs(x).max(axis=0))


def _one_number(x, w):
    return np.sqrt(np.abs(x).max() / np.abs(w).max())


def _one_for_weights(x, w):
    return np.sqrt(np.abs(x).max(axis=0) / np.abs(w).max())


def _rows_of_w(x, w):
    return np.sqrt(np.abs(x).max(axis=0) / np.abs(w).max(axis=1))


def _rows_of_both(x, w):
    return np.sqrt(np.abs(x).max(axis=1) / np.abs(w).max(axis=1))


def _means(x, w):
    return np.sqrt(np.abs(x).mean(axis=0) / np.abs(w).mean(axis=0))


def _spans(x, w):
    with np.errstate(all="ignore"):
        return np.sqrt((x.max(axis=0) - x.min(axis=0)) / (w.max(axis=0) - w.min(axis=0)))


def _root_mean_squares(x, w):
    return np.sqrt(np.sqrt((x**2).mean(axis=0)) / np.sqrt((w**2).mean(axis=0)))


def _sums(x, w):
    return np.sqrt(np.abs(x).sum(axis=0) / np.abs(w).sum(axis=0))


def _deviations(x, w):
    with np.errstate(all="ignore"):
        return np.sqrt(x.std(axis=0) / w.std(axis=0))


def _root_of_x_alone(x, w):
    return np.sqrt(np.abs(x).max(axis=0)) / np.abs(w).max(axis=0)


def _root_of_w_alone(x, w):
    return np.abs(x).max(axis=0) / np.sqrt(np.abs(w).max(axis=0))


def _abs_too_late(x, w):
    with np.errstate(all="ignore"):
        return np.sqrt(np.abs(x.max(axis=0)) / np.abs(w.max(axis=0)))


def _no_abs_of_x(x, w):
    with np.errstate(all="ignore"):
        return np.sqrt(x.max(axis=0) / np.abs(w).max(axis=0))


def _no_abs_of_w(x, w):
    with np.errstate(all="ignore"):
        return np.sqrt(np.abs(x).max(axis=0) / w.max(axis=0))


def _one_for_activations(x, w):
    return np.sqrt(np.abs(x).max() / np.abs(w).max(axis=0))


def _weights_alone(x, w):
    return 1 / np.sqrt(np.abs(w).max(axis=0))


def _squared(x, w):
    return (np.abs(x).max(axis=0) / np.abs(w).max(axis=0)) ** 2


def _upside_down_without_root(x, w):
    return np.abs(w).max(axis=0) / np.abs(x).max(axis=0)


def _never_below_one(x, w):
    return np.maximum(smoothing_factors(x, w), 1)


def _rows_of_x(x, w):
    return np.sqrt(np.abs(x).max(axis=1) / np.abs(w).max(axis=0))


def _as_a_matrix(x, w):
    return smoothing_factors(x, w)[None, :]


def _smooths_the_planted_model(attempt):
    import torch

    from qlearn.nn.rescaling import copied
    from qlearn.nn.site import rescale

    smoothed, sites, _ = copied(letters.planted(), None, None, None)
    factors = {}
    read = _inputs_of_sites(smoothed, sites)
    for site in sites:
        if site.name not in read:
            continue
        w = np.concatenate([layer.weight.detach().double().numpy() for layer in site.consumers])
        s = np.asarray(attempt(read[site.name], w), dtype=np.float64)
        factors[site] = torch.from_numpy(s).float()
    rescale(smoothed, factors)
    before = letters.perplexity(letters.planted_in_eight_bits())
    after = letters.perplexity(letters.nearest(smoothed, letters.ROWS, QuantConfig(bits=8)))
    return (
        f"Your factors behind every norm of the planted model, weights and activations of 8 bits: perplexity "
        f"{after:.2f}\n(planted {before:.1f}, in float {letters.perplexity(letters.model()):.2f})."
    )


def _inputs_of_sites(model, sites):
    """What the readers of each norm see in the first batch, float64 (N, C)."""
    import torch

    seen = {}

    def watch(site):
        def keep(module, inputs, output):
            seen[site.name] = output.flatten(0, -2).double().numpy()

        return site.producer.register_forward_hook(keep)

    handles = [watch(site) for site in sites if site.producer.weight.ndim == 1]
    with torch.no_grad():
        model(letters.batches()[0])
    for handle in handles:
        handle.remove()
    return seen


@st.composite
def _layers(draw):
    channels = draw(st.integers(1, 3))
    x, w = draw(_matrix(draw(st.integers(1, 4)), channels)), draw(_matrix(draw(st.integers(1, 4)), channels))
    x[0], w[-1] = np.where(np.abs(x).max(axis=0) > 0, x[0], 2.0), np.where(np.abs(w).max(axis=0) > 0, w[-1], -0.5)
    return {"x": x, "w": w}


SMOOTH = Exercise(
    id="09.2",
    solution=smoothing_factors,
    examples=(
        {"x": np.array([[64.0, 1.0], [-16.0, -4.0], [8.0, 2.0]]), "w": np.array([[0.25, -1.0], [-1.0, 0.5]])},
        {"x": np.array([[2.0, -32.0, 1.0]]), "w": np.array([[0.5, 0.125, -4.0], [0.25, -2.0, 1.0]])},
    ),
    cases=_layers(),
    mistakes=(
        Mistake(_upside_down, "Upside down: a large channel is to be divided by a large factor."),
        Mistake(
            _no_root, "Without the root all of the difficulty goes to the weights: they meet half way with np.sqrt."
        ),
        Mistake(_product, "That is what both reach in the end. The factor is the root of the quotient."),
        *(
            Mistake(function, "Large negative numbers count as well: np.abs before the maximum, of x and of w.")
            for function in (_no_abs, _no_abs_of_x, _no_abs_of_w, _abs_too_late)
        ),
        Mistake(_root_mean_squares, "That is the typical size. A range has to reach the largest value: np.abs, max."),
        Mistake(_sums, "Those are sums, and grow with the number of rows. A range reaches to the largest: max."),
        Mistake(_deviations, "Those are deviations. A range has to reach the largest value: np.abs, then max."),
        Mistake(_root_of_x_alone, "Only the activations are under your root. It is the root of the whole quotient."),
        Mistake(_root_of_w_alone, "Only the weights are under your root. It is the root of the whole quotient."),
        Mistake(_squared, "Squared, the factors overshoot: it is the root of the quotient, np.sqrt."),
        Mistake(_upside_down_without_root, "Upside down, and without the root: activations over weights, np.sqrt."),
        Mistake(_one_for_activations, "One number for all of x. Each column has its own largest magnitude: axis 0."),
        Mistake(_weights_alone, "The activations are missing: their largest magnitudes are above the line."),
        Mistake(_never_below_one, "A factor below 1 is right, too: there the weights are the hard part."),
        Mistake(_rows_of_x, "A row of x is one input. Channel j is column j: max over axis 0."),
        Mistake(_as_a_matrix, "One row of C factors is wanted, shape (C,): without keepdims."),
        Mistake(
            _activations_alone, "The weights have a say, too: divide by the largest magnitude of each column of w."
        ),
        Mistake(_one_number, "That is one factor for the whole layer. Each channel has its own: max over axis 0."),
        Mistake(_one_for_weights, "One number for all of w. Each column has its own largest magnitude: axis 0."),
        Mistake(_rows_of_w, "A row of w makes an output. What reads channel j is column j: max over axis 0."),
        Mistake(_rows_of_both, "You look along rows. A channel is a column, of x and of w: max over axis 0."),
        Mistake(_means, "Those are means. A range has to reach the largest value: max."),
        Mistake(_spans, "That is how far the values spread. Take their largest magnitude: np.abs, then max."),
    ),
    hints=(
        "Which numbers of x and of w belong to channel j?",
        "Column j of both. The largest magnitude of each column is `np.abs(…).max(axis=0)`.",
        "Divide the one row of maxima by the other, the activations' by the weights', and take `np.sqrt`.",
    ),
    consequence=_smooths_the_planted_model,
)


# 09.3 search α


def best_alpha(w, x, quantize, alphas):
    size = np.sqrt((x**2).mean(axis=0))
    errors = []
    for alpha in alphas:
        s = size**alpha
        change = x @ (quantize(w * s) / s - w).T
        errors.append((change**2).mean())
    return alphas[np.argmin(errors)]


def _with(w, x, quantize, alphas, size=None, error=None, restore=True):
    size = np.sqrt((x**2).mean(axis=0)) if size is None else size
    error = error or (lambda w_hat: ((x @ (w_hat - w).T) ** 2).mean())
    errors = []
    for alpha in alphas:
        s = size**alpha
        w_hat = quantize(w * s) / s if restore else quantize(w * s)
        errors.append(error(w_hat))
    return alphas[int(np.argmin(errors))]


def _not_divided(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, restore=False)


def _error_of_weights(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: ((w_hat - w) ** 2).mean())


def _divided_first(w, x, quantize, alphas):
    size = np.sqrt((x**2).mean(axis=0))
    return _with(w, x, quantize, alphas, size=1 / size)


def _errors_with_signs(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: (x @ (w_hat - w).T).mean())


def _worst(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: -((x @ (w_hat - w).T) ** 2).mean())


def _place_not_alpha(w, x, quantize, alphas):
    return int(np.flatnonzero(np.asarray(alphas) == best_alpha(w, x, quantize, alphas))[0])


def _the_error(w, x, quantize, alphas):
    size, errors = np.sqrt((x**2).mean(axis=0)), []
    for alpha in alphas:
        s = size**alpha
        errors.append(((x @ (quantize(w * s) / s - w).T) ** 2).mean())
    return min(errors)


def _quantized_before(w, x, quantize, alphas):
    size = np.sqrt((x**2).mean(axis=0))
    w_hat, errors = quantize(w), []
    for alpha in alphas:
        s = size**alpha
        errors.append(((x @ (w_hat * s / s - w).T) ** 2).mean())
    return alphas[int(np.argmin(errors))]


def _inputs_divided_too(w, x, quantize, alphas):
    size, errors = np.sqrt((x**2).mean(axis=0)), []
    for alpha in alphas:
        s = size**alpha
        errors.append((((x / s) @ (quantize(w * s) / s).T - x @ w.T) ** 2).mean())
    return alphas[int(np.argmin(errors))]


def _with_magnitudes(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=np.abs(x).mean(axis=0))


def _with_largest(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=np.abs(x).max(axis=0))


def _without_root(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=(x**2).mean(axis=0))


def _sum_of_squares(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=np.sqrt((x**2).sum(axis=0)))


def _one_size(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=np.sqrt((x**2).mean()))


def _size_of_weights(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=np.sqrt((w**2).mean(axis=0)))


def _size_of_rows(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=np.sqrt((x**2).mean(axis=1)))


def _magnitudes_of_errors(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: np.abs(x @ (w_hat - w).T).mean())


def _largest_error(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: np.abs(x @ (w_hat - w).T).max())


def _magnitudes_of_weights(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: np.abs(w_hat - w).mean())


def _not_turned(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: ((x @ (w_hat - w)) ** 2).mean())


def _against_scaled(w, x, quantize, alphas):
    size, errors = np.sqrt((x**2).mean(axis=0)), []
    for alpha in alphas:
        s = size**alpha
        errors.append(((x @ (quantize(w * s) / s - w * s).T) ** 2).mean())
    return alphas[int(np.argmin(errors))]


def _each_channel_alone(w, x, quantize, alphas):
    size = np.sqrt((x**2).mean(axis=0))
    return _with(w, x, quantize, alphas, error=lambda w_hat: (((w_hat - w) * size) ** 2).mean())


def _square_of_mean(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, error=lambda w_hat: (x @ (w_hat - w).T).mean() ** 2)


def _deviation_of_channels(w, x, quantize, alphas):
    return _with(w, x, quantize, alphas, size=x.std(axis=0))


def _size_as_smoothing(w, x, quantize, alphas):
    largest = [np.abs(values).max(axis=0) for values in (x, w)]
    return _with(w, x, quantize, alphas, size=np.sqrt(largest[0] / largest[1]))


def _brought_to_one(middle):
    def best_alpha_of_scaled(w, x, quantize, alphas):
        size, errors = np.sqrt((x**2).mean(axis=0)), []
        for alpha in alphas:
            s = size**alpha / middle(size**alpha)
            errors.append(((x @ (quantize(w * s) / s - w).T) ** 2).mean())
        return alphas[int(np.argmin(errors))]

    return best_alpha_of_scaled


def _best_forgotten(w, x, quantize, alphas):
    return alphas[-1]


def _always_the_first(w, x, quantize, alphas):
    return alphas[0]


def _the_factors(w, x, quantize, alphas):
    return np.sqrt((x**2).mean(axis=0)) ** best_alpha(w, x, quantize, alphas)


def _as_good(case, given):
    """Another α with the same error, but for the last bits."""
    if np.ndim(given) or given not in case["alphas"]:
        return False
    w, x, quantize = (case[name] for name in ("w", "x", "quantize"))

    def error(alpha):
        s = np.sqrt((x**2).mean(axis=0)) ** alpha
        return ((x @ (quantize(w * s) / s - w).T) ** 2).mean()

    return bool(np.isclose(error(given), error(best_alpha(**case)), rtol=1e-9, atol=1e-30))


class Steps:
    """Rounds to whole steps of a size, and shows itself in the words of a learner."""

    def __init__(self, step):
        self.step = step

    def __call__(self, w):
        return np.rint(w / self.step) * self.step

    def __repr__(self):
        return f"lambda w: {self.step} * np.rint(w / {self.step})"

    def __eq__(self, other):
        return isinstance(other, Steps) and self.step == other.step

    def __hash__(self):
        return hash(self.step)


def _protects_the_planted_model(attempt):
    import torch

    from qlearn.nn.rescaling import copied
    from qlearn.nn.site import rescale

    three = QuantConfig(bits=3, symmetric=True, granularity=PerAxis(0))

    def quantize(w):
        return qlearn.fake_quantize(w, three.find_qparams(w))

    planted = letters.planted(channels=24, factor=16.0)
    protected, sites, _ = copied(planted, None, None, None)
    read, factors = _inputs_of_sites(protected, sites), {}
    for site in sites:
        if site.name not in read:
            continue
        x = read[site.name][::16]
        w = np.concatenate([layer.weight.detach().double().numpy() for layer in site.consumers])
        alpha = attempt(w, x.copy(), quantize, [0.0, 0.5, 1.0])  # few, so that a busy computer has time for them
        factors[site] = torch.from_numpy(np.sqrt((x**2).mean(axis=0)) ** alpha).float()
    rescale(protected, factors)
    never, before, after = (
        letters.perplexity(letters.nearest(net, three)) for net in (letters.model(), planted, protected)
    )
    return (
        f"Your search behind every norm of a model with 24 channels 16 times as large, weights of 3 bits: perplexity "
        f"{before:.2f} → {after:.2f}\n(never planted {never:.2f}, in float {letters.perplexity(letters.model()):.2f})."
    )


@st.composite
def _searches(draw):
    channels = draw(st.integers(2, 3))
    case = {
        "w": draw(_matrix(draw(st.integers(1, 3)), channels)),
        "x": draw(_matrix(draw(st.integers(1, 3)), channels)),
        "quantize": Steps(draw(st.sampled_from([1.0, 2.0, 0.75]))),
        "alphas": draw(st.sampled_from([[0.0, 0.5, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 1.0]])),
    }
    case["x"][0] = np.where(np.abs(case["x"]).max(axis=0) > 0, case["x"][0], 4.0)  # no silent channel
    return case


ALPHA = Exercise(
    id="09.3",
    solution=best_alpha,
    examples=(
        {
            "w": np.array([[2.4, 2.7, -1.7], [-1.0, -0.1, 0.1], [1.1, 0.1, -1.5]]),
            "x": np.array([[4.1, 1.1, -0.6], [-2.5, 0.6, -1.2], [0.9, 0.3, -0.4], [5.2, -1.1, 0.5]]),
            "quantize": Steps(1.0),
            "alphas": [step / 8 for step in range(9)],
        },
        {
            "w": np.array([[0.0, 2.1, 1.5], [1.4, 3.2, -2.4], [-1.3, -2.6, -0.2]]),
            "x": np.array([[8.0, 0.0, 0.2], [-15.3, 0.1, -0.5], [14.2, 0.9, 0.5], [-0.5, 0.6, 0.3]]),
            "quantize": Steps(1.0),
            "alphas": [step / 8 for step in range(9)],
        },
        {
            "w": np.array([[-1.2, -2.7, 0.4], [0.3, 1.8, -0.7], [4.9, 2.1, 1.6]]),
            "x": np.array([[-0.2, -1.6, 0.3], [0.2, -0.6, 1.5], [-0.1, -1.6, -0.6], [0.1, 0.1, 0.0]]),
            "quantize": Steps(1.0),
            "alphas": [step / 8 for step in range(9)],
        },
    ),
    cases=_searches(),
    mistakes=(
        Mistake(_not_divided, "After rounding the columns are still s times too large: quantize(w * s) / s."),
        Mistake(
            _error_of_weights,
            "You measure the change of the weights. What counts is the change of the outputs: x @ (…).T.",
        ),
        Mistake(_divided_first, "The wrong way round: columns that read large channels become larger, w * s."),
        Mistake(_errors_with_signs, "Errors of both signs cancel in your mean: square them first."),
        Mistake(_worst, "That is the α with the largest error."),
        Mistake(_place_not_alpha, "That is the place in `alphas`. Return the α that stands there."),
        Mistake(_the_error, "That is the smallest error. Return the α that gave it."),
        Mistake(
            _quantized_before, "You round before you scale, so every α gives the same weights: quantize(w * s) / s."
        ),
        Mistake(
            _inputs_divided_too,
            "The factor is taken out twice: once from the weights (/ s) and once from x. The layer still reads x.",
        ),
        Mistake(
            _with_magnitudes, "That is the mean magnitude, as in the paper. Here a_j is the root of the mean square."
        ),
        Mistake(_with_largest, "That is the largest magnitude. a_j is the root of the mean square of column j."),
        Mistake(_without_root, "The root is missing: a_j is the root of the mean square, np.sqrt."),
        Mistake(_sum_of_squares, "The mean is missing: a_j is the root of the mean square, not of the sum."),
        Mistake(_one_size, "One size for all of x. Each channel has its own: mean over axis 0."),
        Mistake(_size_of_weights, "You take the size of the weights. It is the activations that say what counts: x."),
        Mistake(_size_of_rows, "A row of x is one input. A channel is a column: mean over axis 0."),
        Mistake(_magnitudes_of_errors, "You average magnitudes of errors. The mean of their squares is wanted."),
        Mistake(_largest_error, "You compare the largest errors. The mean of their squares is wanted."),
        Mistake(
            _magnitudes_of_weights,
            "You compare the weights' errors. What counts is the change of the outputs: x @ (…).T.",
        ),
        Mistake(
            _each_channel_alone,
            "You weigh each weight's error by its own channel. In an output they add up or cancel: x @ (…).T, then square.",
        ),
        Mistake(_square_of_mean, "Errors of both signs cancel before you square. Square first, then the mean."),
        Mistake(
            _deviation_of_channels, "A deviation leaves the mean out. a_j is the root of the mean square of column j."
        ),
        Mistake(
            _size_as_smoothing,
            "Those are the factors of exercise 09.2. a_j is the root of the mean square of column j.",
        ),
        *(
            Mistake(_brought_to_one(middle), "You scale the factors once more. Here s is a**alpha as it is.")
            for middle in (np.mean, np.max, lambda s: np.sqrt(s.max() * s.min()))
        ),
        Mistake(_not_turned, "The .T is missing: each row of w makes one output, x @ (w_hat - w).T."),
        Mistake(_against_scaled, "The outputs to compare with are those of w itself, not of w * s."),
        Mistake(_best_forgotten, "You return the last α. Compare with the smallest error so far, and keep that, too."),
        Mistake(
            _always_the_first,
            "The first α wins, whatever the numbers are. Is it s = a**alpha, and quantize(w * s) / s?",
        ),
        Mistake(_the_factors, "Those are the factors s. Return the α that they came from."),
    ),
    hints=(
        "One loop over `alphas`, one error for each. What is the weight that the layer multiplies with in the end?",
        "`s` is the root mean square of each column of x, `np.sqrt((x**2).mean(axis=0))`, to the power of α. Scale, "
        "round, scale back.",
        "The outputs change by `x @ (w_hat - w).T`. Keep the mean of its squares for each α, and let `np.argmin` find "
        "the smallest.",
    ),
    also_right=_as_good,
    consequence=_protects_the_planted_model,
)


# 09.4 a Hadamard matrix


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def _signs(n):
    return hadamard(n) * np.sqrt(n)


def _divided_by_n(n):
    return hadamard(n) / np.sqrt(n)


def _minus_elsewhere(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [-h, h]])
    return h / np.sqrt(n)


def _minus_upper_left(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[-h, h], [h, h]])
    return h / np.sqrt(n)


def _minus_upper_right(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, -h], [h, h]])
    return h / np.sqrt(n)


def _three_minuses(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, -h], [-h, -h]])
    return h / np.sqrt(n)


def _two_minuses(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, -h], [-h, h]])
    return h / np.sqrt(n)


def _sorted_by_changes(n):
    h = hadamard(n)
    return h[np.argsort((np.diff(h, axis=1) != 0).sum(axis=1))]


def _doubled_one_less_than_n_times(n):
    h = np.ones((1, 1))
    for _ in range(min(n - 1, 8)):
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def _negative(n):
    return -hadamard(n)


def _divided_each_time(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
        h = h / np.sqrt(len(h))
    return h


def _times_root(n):
    return hadamard(n) * n


def _halved(n):
    return hadamard(n) * np.sqrt(n) / 2


def _by_root_of_two(n):
    return hadamard(n) * np.sqrt(n) / np.sqrt(2)


def _begins_with_two(n):
    h = np.array([[1.0, 1.0], [1.0, -1.0]])
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def _doubled_once_too_often(n):
    h = np.ones((1, 1))
    while len(h) <= n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def _blocks_of_two(n):
    h = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
    return np.kron(np.eye(n // 2), h) if n > 1 else np.ones((1, 1))


def _random(n):
    return qlearn.rotations.random_hadamard(n)


def _no_minus(n):
    return np.ones((n, n)) / np.sqrt(n)


def _too_large(n):
    return hadamard(2 * n)


def _of_size_two_to_the_n(n):
    h = np.ones((1, 1))
    for _ in range(min(n, 8)):
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(len(h))


def _identity(n):
    return np.eye(n)


def _turns_the_planted_model(attempt):
    import torch

    q = np.kron(np.eye(3), np.asarray(attempt(64), dtype=np.float64))
    turn = torch.from_numpy(q).float()
    rows, eight = letters.ROWS, QuantConfig(bits=8)

    class Turned(torch.nn.Module):
        """A layer whose inputs and weights are turned, and then both have 8 bits, the inputs one range."""

        def __init__(self, layer):
            super().__init__()
            weight = layer.weight.detach() @ turn
            self.weight = qlearn.fake_quantize(weight, rows.find_qparams(weight))

        def forward(self, x):
            x = x @ turn
            return qlearn.fake_quantize(x, eight.find_qparams(x)) @ self.weight.T

    before = letters.perplexity(letters.planted_in_eight_bits())
    turned = copy.deepcopy(letters.planted_in_eight_bits())
    for name, layer in letters.planted().named_modules():
        if name.endswith(("query", "key", "value", "gate", "up", "head")):
            turned.set_submodule(name, Turned(layer))
    x = letters.inputs_of_query(letters.planted())
    return (
        f"Your matrix turns what the first layers read: largest magnitude {np.abs(x).max():.0f} → "
        f"{np.abs(x @ q).max():.0f}.\nThe planted model, weights and activations of 8 bits: perplexity "
        f"{before:.1f} → {letters.perplexity(turned):.2f}."
    )


HADAMARD = Exercise(
    id="09.4",
    solution=hadamard,
    examples=({"n": 1}, {"n": 2}, {"n": 4}, {"n": 8}),
    cases=st.sampled_from([1, 2, 4, 8, 16, 32, 64]).map(lambda n: {"n": n}),
    mistakes=(
        Mistake(_signs, "Those are the signs. A rotation leaves lengths alone: divide by √n."),
        Mistake(_divided_by_n, "Each row has n entries, so its length is √n, not n: divide by np.sqrt(n)."),
        *(
            Mistake(function, "A rotation, too, but not this one: the minus belongs to the lower right block.")
            for function in (_minus_elsewhere, _minus_upper_left, _minus_upper_right, _three_minuses, _negative)
        ),
        Mistake(
            _two_minuses,
            "With two minuses the rows below are those above with another sign, and nothing is perpendicular: one minus.",
        ),
        Mistake(
            _sorted_by_changes,
            "A rotation, too, with its rows in another order. Here they stay as the doubling makes them.",
        ),
        Mistake(_divided_each_time, "You divide by √n at every doubling. Once, at the end, is enough."),
        Mistake(_times_root, "You multiply by √n. Divide: each row's length is √n before."),
        Mistake(_halved, "Divide by √n: 2 is right for n = 4 alone."),
        Mistake(_by_root_of_two, "Divide by √n: √2 is right for n = 2 alone."),
        Mistake(_begins_with_two, "For n = 1 it is 1: begin with the matrix of size 1."),
        Mistake(_doubled_once_too_often, "It is doubled once too often: while it has fewer than n rows, `<`."),
        Mistake(_blocks_of_two, "Each turns two channels only. An outlier is to reach all of them: double the whole."),
        Mistake(_random, "That one has random signs. Here it is the plain one, built by doubling."),
        Mistake(_no_minus, "All rows are alike, so nothing is perpendicular: the lower right block is −H."),
        Mistake(_too_large, "Twice the size: stop when it has n rows."),
        *(
            Mistake(function, "n is the number of rows, not how often they double.")
            for function in (_of_size_two_to_the_n, _doubled_one_less_than_n_times)
        ),
        Mistake(_identity, "That turns nothing."),
    ),
    hints=(
        "Begin with the matrix of size 1. How does the next come from it, and the one after that?",
        "Each has the one before it in four blocks, with a minus at the lower right. `np.block([[a, b], [c, d]])` puts "
        "blocks together.",
        "Double while it has fewer than n rows, with plain ones. The division by √n comes once, at the end.",
    ),
    consequence=_turns_the_planted_model,
)


# 09.5 a cache that does not leak


def quantize_cache(x, bits):
    rows = x.reshape(len(x), -1)
    group = qlearn.PerGroup(x.shape[-1])
    qparams = qlearn.find_qparams(rows, bits=bits, granularity=group)
    return qlearn.fake_quantize(rows, qparams).reshape(x.shape)


def _by_hand(x, bits, axis, zero=True, symmetric=False):
    lo, hi = x.min(axis=axis, keepdims=True), x.max(axis=axis, keepdims=True)
    if zero:
        lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    if symmetric:
        largest = np.maximum(-lo, hi)
        scale = largest / (2 ** (bits - 1) - 1)
        scale = np.where(scale > 0, scale, 1.0)
        return np.clip(np.rint(x / scale), -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * scale
    scale = (hi - lo) / (2**bits - 1)
    scale = np.where(scale > 0, scale, 1.0)
    zero_point = np.rint(-lo / scale)
    return (np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1) - zero_point) * scale


def _whole_cache(x, bits):
    return _by_hand(x, bits, None)


def _per_head_only(x, bits):
    return _by_hand(x, bits, (0, 2))


def _per_letter_only(x, bits):
    return _by_hand(x, bits, (1, 2))


def _per_channel(x, bits):
    return _by_hand(x, bits, 0)


def _per_place_in_head(x, bits):
    return _by_hand(x, bits, (0, 1))


def _across_heads(x, bits):
    return _by_hand(x, bits, 1)


def _symmetric(x, bits):
    return _by_hand(x, bits, 2, symmetric=True)


def _without_zero(x, bits):
    return _by_hand(x, bits, 2, zero=False)


def _codes(x, bits):
    rows = x.reshape(len(x), -1)
    qparams = qlearn.find_qparams(rows, bits=bits, granularity=qlearn.PerGroup(x.shape[-1]))
    return qlearn.quantize(rows, qparams).reshape(x.shape)


def _flat(x, bits):
    return quantize_cache(x, bits).reshape(len(x), -1)


def _groups_of_heads(x, bits):
    rows = x.reshape(len(x), -1)
    qparams = qlearn.find_qparams(rows, bits=bits, granularity=qlearn.PerGroup(x.shape[1]))
    return qlearn.fake_quantize(rows, qparams).reshape(x.shape)


def _lowest_kept(x, bits):
    lo, hi = x.min(axis=2, keepdims=True), x.max(axis=2, keepdims=True)
    scale = (hi - lo) / (2**bits - 1)
    scale = np.where(scale > 0, scale, 1.0)
    return np.rint((x - lo) / scale) * scale + lo


def _zero_between_codes(x, bits):
    lo = np.minimum(x.min(axis=2, keepdims=True), 0)
    scale = (np.maximum(x.max(axis=2, keepdims=True), 0) - lo) / (2**bits - 1)
    scale = np.where(scale > 0, scale, 1.0)
    return np.rint((x - lo) / scale) * scale + lo


def _one_step_too_many(x, bits):
    lo, hi = np.minimum(x.min(axis=2, keepdims=True), 0), np.maximum(x.max(axis=2, keepdims=True), 0)
    scale = (hi - lo) / 2**bits
    scale = np.where(scale > 0, scale, 1.0)
    zero_point = np.rint(-lo / scale)
    return (np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1) - zero_point) * scale


def _always(bits_of_mine):
    def quantize_cache_to_these(x, bits):
        return _by_hand(x, bits_of_mine, 2)

    return quantize_cache_to_these


def _zero_point_forgotten(x, bits):
    qparams = qlearn.find_qparams(x, bits=bits, granularity=qlearn.PerToken())
    return qlearn.quantize(x, qparams) * qparams.scale


def _groups_of_this_model(x, bits):
    rows = x.reshape(len(x), -1)
    qparams = qlearn.find_qparams(rows, bits=bits, granularity=qlearn.PerGroup(32))
    return qlearn.fake_quantize(rows, qparams).reshape(x.shape)


def _ranges_of_rows_for_heads(x, bits):
    rows = x.reshape(len(x), -1)
    qparams = qlearn.find_qparams(rows, bits=bits, granularity=qlearn.PerGroup(x.shape[-1]))
    return qlearn.fake_quantize(x, qparams)


def _by_mse(x, bits):
    qparams = qlearn.find_qparams(x, "mse", bits=bits, granularity=qlearn.PerGroup(x.shape[-1]))
    return qlearn.fake_quantize(x, qparams)


def _growing_range(axis):
    def quantize_cache_so_far(x, bits):
        lo, hi = x.min(axis=axis, keepdims=True), x.max(axis=axis, keepdims=True)
        lo, hi = np.minimum(np.minimum.accumulate(lo), 0), np.maximum(np.maximum.accumulate(hi), 0)
        return qlearn.fake_quantize(x, qlearn.choose_qparams(lo, hi, bits=bits))

    return quantize_cache_so_far


def _untouched(x, bits):
    return x


def _tie_the_other_way(case, given):
    """Where a zero point or a code falls on a tie, another order of the same steps moves it: float32 above all."""
    x, top, hair = case["x"], 2 ** case["bits"] - 1, 1e-4
    if not isinstance(given, np.ndarray) or given.shape != x.shape or given.dtype.kind != "f":
        return False
    lo, hi = np.minimum(x.min(axis=2, keepdims=True), 0), np.maximum(x.max(axis=2, keepdims=True), 0)
    scale = np.where(hi > lo, (hi - lo) / top, 1.0)
    right = np.zeros(x.shape[:2], dtype=bool)
    for zero_point in (np.rint(-lo / scale - hair), np.rint(-lo / scale + hair)):
        either = (np.clip(np.rint(x / scale + d) + zero_point, 0, top) - zero_point for d in (-hair, hair))
        right |= np.any([np.abs(given / scale - one) < hair for one in either], axis=0).all(axis=2)
    return bool(right.all())


READ = 256  # letters: a loop over letters and heads is a right answer, too


def _keeps_the_cache(attempt):
    import torch

    from qlearn import nn

    bits = 4

    def change(y):  # (N, T, 192): text after text
        done = [np.asarray(attempt(text.reshape(len(text), 6, 32), bits)) for text in y.double().numpy()]
        return torch.from_numpy(np.stack(done)).reshape(y.shape).to(y)

    net = letters.behind(letters.model(), ("attention.key", "attention.value"), change)
    words = "the white whale"
    with torch.no_grad():
        before, after = (net(nn.to_tokens(words + end))[0, : len(words)] for end in "!Q")
    changed = int((before != after).any(dim=-1).sum())
    return (
        f"Your cache of {bits} bits in all blocks: perplexity {letters.perplexity(net, READ):.2f} (in float "
        f"{letters.perplexity(letters.model(), READ):.2f}). A later letter was changed:\n"
        f"{changed} of the {len(words)} places before it noticed."
    )


@st.composite
def _caches(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)))
    return {
        "x": draw(hnp.arrays(np.float64, shape, elements=_eighths)),
        "bits": draw(st.sampled_from([2, 3, 4, 8])),
    }


CACHE = Exercise(
    id="09.5",
    solution=quantize_cache,
    examples=(
        {"x": np.array([[[1.0, -2.0, 0.5], [8.0, 3.0, 1.0]], [[0.25, 0.5, -0.125], [-3.0, 6.0, 1.5]]]), "bits": 3},
        {"x": np.array([[[0.5, 3.5], [-1.0, 2.0], [7.0, 1.0]]]), "bits": 2},
        {"x": np.array([[[3.0, -1.0]], [[30.0, 10.0]], [[-0.5, 0.25]]]), "bits": 4},
    ),
    cases=_caches(),
    mistakes=(
        Mistake(
            _whole_cache,
            "One range for the whole cache: a later letter changes the step of all before it. That is the leak.",
        ),
        Mistake(_per_head_only, "One range for each head, over all letters: a later letter still changes it."),
        Mistake(_per_letter_only, "No leak, but one range for all heads of a letter. Each head wants its own."),
        *(
            Mistake(function, "A range for each column looks down the text, at letters that come later.")
            for function in (_per_channel, _per_place_in_head)
        ),
        Mistake(_across_heads, "You look across heads. The numbers of one head are the last axis."),
        Mistake(
            _symmetric, "That is symmetric. Asymmetric is wanted, as find_qparams does it if nothing else is said."
        ),
        Mistake(_without_zero, "The range must reach to 0, too, as lesson 01's does: find_qparams sees to it."),
        Mistake(_codes, "Those are codes. Dequantize them, or use qlearn.fake_quantize."),
        Mistake(_flat, "The shape is lost: reshape the result to x.shape."),
        *(
            Mistake(
                function, "Your 0 lies between two codes. The zero point is a whole number: find_qparams rounds it."
            )
            for function in (_lowest_kept, _zero_between_codes)
        ),
        Mistake(_one_step_too_many, "Between 2^bits codes lie 2^bits − 1 steps."),
        *(
            Mistake(_always(same), f"That has {same} bits whatever is asked for: hand `bits` on, bits=bits.")
            for same in (8, 4, 3, 2)
        ),
        Mistake(_zero_point_forgotten, "The zero point is missing: x̂ = scale · (code − zero point), or fake_quantize."),
        Mistake(_by_mse, "Those are ranges by MSE. Here the range reaches from the smallest to the largest: min_max."),
        *(
            Mistake(
                _growing_range(axis),
                "That does not leak, but one early outlier coarsens all that follows. Each letter has its own range.",
            )
            for axis in ((1, 2), 2)
        ),
        Mistake(_untouched, "Nothing is rounded: these are the inputs."),
        Mistake(_groups_of_heads, "The groups are as large as the number of heads. One head has x.shape[-1] numbers."),
        *(
            Mistake(
                function,
                "One head has x.shape[-1] numbers, 32 in this model alone; and what find_qparams has seen, in its shape, "
                "fake_quantize has to get.",
            )
            for function in (_groups_of_this_model, _ranges_of_rows_for_heads)
        ),
    ),
    hints=(
        "Which numbers may share a range, if no letter may look at another, and no head either?",
        "The last axis. In two dimensions, (T, H · W), the heads are groups of W neighbours in a row: lesson 03.",
        "`qlearn.find_qparams(…, granularity=qlearn.PerGroup(…))`, then `qlearn.fake_quantize`, then back to the shape "
        "of x.",
    ),
    also_right=_tie_the_other_way,
    consequence=_keeps_the_cache,
)

EXERCISES = (PERPLEXITY, SMOOTH, ALPHA, HADAMARD, CACHE)


# 09.C the best model under a budget

BUDGET, WANTED = 700_000, 4.15
JUDGED = 8192  # letters


def compress(model, batches):
    from qlearn import PerAxis, QuantConfig, nn

    def four_levels(bits):
        return QuantConfig(bits=bits, method="mse", granularity=PerAxis(0))

    more = {
        "head": {"weights": four_levels(4)},
        "*.output": {"weights": four_levels(3)},
    }
    prepared = nn.prepare(model, four_levels(2), None, more)
    return nn.convert(nn.gptq(prepared, batches, damping=0.1))


def _nearest_mse(symmetric):
    def compress_to_nearest(model, batches):
        from qlearn import PerAxis, QuantConfig, nn

        config = QuantConfig(bits=2, symmetric=symmetric, method="mse", granularity=PerAxis(0))
        return nn.convert(nn.prepare(model, config, None))

    return compress_to_nearest


def _gptq(model, batches):
    from qlearn import PerAxis, QuantConfig, nn

    config = QuantConfig(bits=2, method="mse", granularity=PerAxis(0))
    return nn.convert(nn.gptq(nn.prepare(model, config, None), batches, progress=False))


# With the bytes and the perplexity that they reach: a learner's own answer need not wait for theirs.
_SIMPLE = {
    "2 bits, nearest, MSE ranges": (_nearest_mse(symmetric=True), (645_044, 5.00)),
    "the same, four levels": (_nearest_mse(symmetric=False), (676_992, 4.39)),
    "the same, GPTQ": (_gptq, (676_992, 4.22)),
}


def judge(answer):
    for simple, (size, reached) in _SIMPLE.values():
        if answer is simple:
            return _score(size, reached)
    return _score(*_measured(answer))


def _score(size, reached):
    return Score({"bytes": f"{size:,}", "perplexity": f"{reached:.2f}"}, size <= BUDGET and reached <= WANTED)


def _measured(answer):
    import torch

    from qlearn import nn

    model, measure, sizes = (
        letters.model(),
        nn.perplexity,
        nn.summary,
    )  # before the answer runs: it may put others there
    given = answer(copy.deepcopy(model), [batch.clone() for batch in letters.batches()])
    _check(model, given)
    size = sizes(given).bytes
    # The weights alone count: they are put into a model of our own, so no other code runs.
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(given.get_submodule(name.rpartition(".")[0]).weight)
    return size, measure(twin, letters.held_out(JUDGED))


def _check(model, given):
    """Raise `CannotBeJudged` unless an answer is the same model with some of its layers quantized."""
    import torch

    from qlearn import nn

    if not isinstance(given, torch.nn.Module):
        raise CannotBeJudged(f"compress must return the quantized model, and returned a {type(given).__name__}.")
    theirs = dict(given.named_modules())
    for name, module in model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        other = theirs.get(name)
        if other is None or not hasattr(other, "weight") or other.weight.shape != module.weight.shape:
            raise CannotBeJudged(
                f"{name!r} is missing, or has another shape: keep the model as it is, but for its bits."
            )
        if type(other) not in (type(module), nn.WeightOnlyLayer):
            raise CannotBeJudged(
                f"{name!r} is a {type(other).__name__}. Layers may be in float, or as nn.convert leaves them when only "
                "weights are quantized: nn.prepare(model, …, None) first, nn.convert last."
            )
        if other.weight.dtype != torch.float32 or not bool(torch.isfinite(other.weight).all()):
            raise CannotBeJudged(f"the weights of {name!r} are not finite float32 numbers.")


CHALLENGE = Challenge(
    id="09.C",
    target=f"perplexity {WANTED} or less on {JUDGED:,} letters of the test part, with at most {BUDGET:,} bytes.",
    solution=compress,
    judge=judge,
    simple={name: simple for name, (simple, _) in _SIMPLE.items()},
    hints=(
        "2 bits everywhere leave about 23,000 bytes over. A layer with 3 bits costs an eighth of a byte a weight more.",
        "Which layers are small, and matter? Try one kind after the other on the validation part: `head`, `*.query`, "
        "`*.value`, `*.output`.",
        "`overrides` of `nn.prepare` takes a pattern for a kind of layer: give the head 4 bits and one other kind 3. "
        "Then GPTQ; 64 pieces of text are few, so a larger `damping` than 0.01 may help.",
    ),
)

CHALLENGES = (CHALLENGE,)
