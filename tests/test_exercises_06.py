"""Lesson 06: what learners write is told the truth; the challenge takes nothing but two bits; the table holds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from qlearn import QuantConfig, exercises
from qlearn.exercises.challenges import CannotBeJudged
from qlearn.exercises.lesson_06 import bias_on_grid, judge_two_bits, scale_slope, straight_through
from qlearn.granularity import PerAxis

torch = pytest.importorskip("torch")
nn = pytest.importorskip("qlearn.nn")

# --- right answers that look different -------------------------------------------------------------------------------


def gradient_by_a_loop(x, scale, quant_min, quant_max, upstream):
    gradient = np.zeros(len(x))
    for i in range(len(x)):
        if quant_min <= round(x[i] / scale) <= quant_max:
            gradient[i] = upstream[i]
    return gradient


def gradient_by_clip(x, scale, quant_min, quant_max, upstream):
    codes = np.round(x / scale)
    return np.where(np.clip(codes, quant_min, quant_max) == codes, upstream, 0)


def gradient_of_a_copy(x, scale, quant_min, quant_max, upstream):
    gradient = upstream.copy()
    gradient[np.abs(x / scale) >= quant_max + 0.5] = 0
    return gradient


def slope_of_the_paper(x, scale, quant_max):
    v = x / scale
    return np.where(v <= -quant_max, -quant_max, np.where(v >= quant_max, quant_max, np.rint(v) - v))


def slope_half_open(x, scale, quant_max):
    v = x / scale
    return np.where(v < -quant_max, -quant_max, np.where(v >= quant_max, quant_max, np.rint(v) - v))


def slope_by_clamping(x, scale, quant_max):
    v = x / scale
    clamped = np.clip(v, -quant_max, quant_max)
    return np.rint(clamped) - v * (v == clamped)


def slope_by_a_loop(x, scale, quant_max):
    slopes = np.empty_like(x)
    for i, v in enumerate(x / scale):
        slopes[i] = quant_max if v > quant_max else -quant_max if v < -quant_max else round(v) - v
    return slopes


def bias_by_codes(bias, input_scale, weight_scale):
    codes = np.round(bias / (input_scale * weight_scale)).astype(np.int32)
    return codes * (input_scale * weight_scale)


def bias_by_a_loop(bias, input_scale, weight_scale):
    pairs = zip(bias, weight_scale, strict=True)
    return np.array([round(b / (input_scale * w)) * input_scale * w for b, w in pairs])


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("06.1", gradient_by_a_loop),
        ("06.1", gradient_by_clip),
        ("06.1", gradient_of_a_copy),
        ("06.2", slope_of_the_paper),
        ("06.2", slope_half_open),
        ("06.2", slope_by_clamping),
        ("06.2", slope_by_a_loop),
        ("06.3", bias_by_codes),
        ("06.3", bias_by_a_loop),
        ("06.3", lambda bias, input_scale, weight_scale: bias_by_codes(bias, input_scale, weight_scale).astype("f4")),
    ],
)
def test_right_answers_that_look_different(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message
    assert "new digits" in result.message and "raised" not in result.message


@pytest.mark.parametrize("exercise_id", ["06.1", "06.2"])
def test_what_was_written_repairs_the_network(exercise_id):
    exercise = exercises.find(exercise_id)
    before, after = _percents(exercise.consequence(exercise.solution))
    assert before < 60 and after > 85


def _percents(sentence):
    words = sentence.replace("\n", " ").split()
    return [float(words[i - 1]) for i, word in enumerate(words) if word == "%"]


def test_the_gradient_that_is_sent_back_matters():
    consequence = exercises.find("06.1").consequence
    _, dead = _percents(consequence(lambda x, scale, quant_min, quant_max, upstream: 0 * x))
    _, alive = _percents(consequence(straight_through))
    assert dead + 30 < alive


def test_integers_and_floats_agree_with_biases_on_the_grid():
    sentence = exercises.find("06.3").consequence(bias_on_grid)
    yours, as_it_is = (float(sentence.split(part)[1].split()[0].strip(";.")) for part in ("more than", "up to"))
    assert yours < 1e-10 < 1e-3 < as_it_is


# --- wrong answers as learners write them ----------------------------------------------------------------------------


def masked(mask):
    return lambda x, scale, quant_min, quant_max, upstream: upstream * mask(x, scale, quant_min, quant_max)


def gradient_in_place(x, scale, quant_min, quant_max, upstream):
    codes = np.rint(x / scale)
    upstream[(codes < quant_min) | (codes > quant_max)] = 0
    return upstream


def chained(x, scale, quant_min, quant_max, upstream):
    codes = np.rint(x / scale)
    return upstream * (quant_min <= codes <= quant_max)


def with_and(x, scale, quant_min, quant_max, upstream):
    codes = np.rint(x / scale)
    return upstream if codes >= quant_min and codes <= quant_max else np.zeros_like(x)


def mask_after_the_clamp(x, scale, quant_min, quant_max, upstream):
    codes = np.clip(np.rint(x / scale), quant_min, quant_max)
    return upstream * ((codes >= quant_min) & (codes <= quant_max))


def mask_alone(x, scale, quant_min, quant_max, upstream):
    codes = np.rint(x / scale)
    return (codes >= quant_min) & (codes <= quant_max)


def two_parts(inside, outside, limit=lambda v, quant_max: np.abs(v) <= quant_max):
    def slope(x, scale, quant_max):
        v = x / scale
        return np.where(limit(v, quant_max), inside(v, scale), outside(v, quant_max))

    return slope


def residual(v, scale):
    return np.rint(v) - v


def last(v, quant_max):
    return np.where(v > 0, quant_max, -quant_max)


def without_parentheses(x, scale, quant_min, quant_max, upstream):
    code = np.rint(x / scale)
    return upstream * (quant_min <= code & code <= quant_max)


def sides_swapped(x, scale, quant_max):
    v = x / scale
    return np.where(np.abs(v) > quant_max, np.rint(v) - v, np.sign(v) * quant_max)


def bias_in_place(bias, input_scale, weight_scale):
    bias /= input_scale * weight_scale
    return np.rint(bias) * input_scale * weight_scale


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("06.1", lambda x, upstream, **_: upstream, "let everything through"),
        ("06.1", mask_after_the_clamp, "compare before it"),
        ("06.1", lambda x, **_: np.zeros(len(x)), "staircase's own slope"),
        ("06.1", mask_alone, "slope alone"),
        ("06.1", chained, "hides an `and`"),
        ("06.1", with_and, "hides an `and`"),
        ("06.1", gradient_in_place, "changed its input upstream"),
        ("06.1", masked(lambda x, s, lo, hi: (x >= s * lo) & (x <= s * hi)), "compare before rounding"),
        ("06.1", masked(lambda x, s, lo, hi: np.abs(x / s) < hi), "compare before rounding"),
        ("06.1", masked(lambda x, s, lo, hi: np.abs((x / s).astype(int)) <= hi), "cut the fraction off"),
        ("06.1", masked(lambda x, s, lo, hi: (x // s >= lo) & (x // s <= hi)), "You round down"),
        ("06.1", masked(lambda x, s, lo, hi: np.abs(x / s) <= hi + 0.5), "is a tie"),
        ("06.1", masked(lambda x, s, lo, hi: np.rint(x / s) <= hi), "upper end only"),
        ("06.1", masked(lambda x, s, lo, hi: (np.rint(x / s) >= lo) & (np.rint(x / s) < hi)), "unlike range"),
        ("06.1", masked(lambda x, s, lo, hi: (np.rint(x / s) > lo) & (np.rint(x / s) < hi)), "like all others"),
        ("06.1", masked(lambda x, s, lo, hi: np.abs(np.rint(x / s)) > hi), "the other way round"),
        ("06.1", masked(lambda x, s, lo, hi: np.abs(np.rint(x * s)) <= hi), "not multiplied"),
        ("06.1", masked(lambda x, s, lo, hi: np.abs(np.rint(x)) <= hi), "compare x with codes|other values"),
        (
            "06.1",
            lambda x, scale, quant_min, quant_max, upstream: upstream[np.abs(np.rint(x / scale)) <= quant_max],
            "leave the others out",
        ),
        (
            "06.1",
            lambda x, scale, quant_min, quant_max, upstream: scale * np.rint(x / scale).clip(quant_min, quant_max),
            "the forward pass",
        ),
        (
            "06.1",
            lambda **arguments: straight_through(**arguments) * arguments["scale"],
            "multiply by scale once too often",
        ),
        ("06.1", lambda **arguments: straight_through(**arguments) / arguments["scale"], "divide by scale once too"),
        ("06.1", lambda **arguments: list(straight_through(**arguments)), "a NumPy array is wanted"),
        ("06.1", lambda x, **_: torch.zeros(len(x)), "a NumPy array is wanted"),
        ("06.2", two_parts(residual, lambda v, quant_max: 0 * v), "it moves with scale"),
        ("06.2", lambda x, scale, quant_max: np.rint(x / scale).clip(-quant_max, quant_max), "That is the code"),
        ("06.2", two_parts(lambda v, scale: v - np.rint(v), last), "Inside, the sign"),
        ("06.2", two_parts(residual, lambda v, quant_max: -last(v, quant_max)), "Outside, the sign"),
        ("06.2", two_parts(residual, lambda v, quant_max: np.sign(v)), "not ±1"),
        ("06.2", two_parts(residual, lambda v, quant_max: quant_max + 0 * v), "Below the range"),
        ("06.2", two_parts(lambda v, scale: v.astype(int) - v, last), "cut the fraction off"),
        ("06.2", two_parts(lambda v, scale: np.floor(v) - v, last), "cut the fraction off"),
        ("06.2", two_parts(lambda v, scale: scale * (np.rint(v) - v), last), "Inside, that is x̂ − x"),
        ("06.2", two_parts(lambda v, scale: np.rint(v) - v / scale, last), "−x / scale remains"),
        ("06.2", two_parts(lambda v, scale: 0 * v, last), "Inside the slope is not 0"),
        (
            "06.2",
            two_parts(residual, last, limit=lambda v, quant_max: np.abs(np.rint(v)) <= quant_max),
            "the mask of 06.1",
        ),
        ("06.2", lambda x, scale, quant_max: np.rint(x / scale) - x / scale, "the code is clamped"),
        (
            "06.2",
            lambda x, scale, quant_max: np.clip(np.rint(x / scale) - x / scale, -quant_max, quant_max),
            "the code is clamped",
        ),
        ("06.2", lambda x, scale, quant_max: 1.0 * (np.abs(x / scale) <= quant_max), "That is ∂x̂/∂x"),
        ("06.2", lambda x, scale, quant_max: np.abs(x / scale) <= quant_max, "That is ∂x̂/∂x"),
        ("06.2", lambda x, scale, quant_max: scale_slope(x, scale, quant_max).sum(), "That is the sum"),
        ("06.2", lambda x, scale, quant_max: np.sum(np.rint(x / scale) - x / scale), "a NumPy array is wanted"),
        (
            "06.2",
            lambda x, scale, quant_max: scale * np.rint(x / scale).clip(-quant_max, quant_max),
            "That is x̂ itself",
        ),
        (
            "06.2",
            lambda x, scale, quant_max: np.where(np.abs(x) <= quant_max, np.rint(x / scale) - x / scale, quant_max),
            "other values",
        ),
        ("06.3", lambda bias, input_scale, weight_scale: np.rint(bias / (input_scale * weight_scale)), "are the codes"),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (bias / (input_scale * weight_scale)).astype(np.int32),
            "are the codes|other values|dtype",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                (bias / (input_scale * weight_scale)).astype(int) * input_scale * weight_scale
            ),
            "cut the fraction off",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: bias - np.fmod(bias, input_scale * weight_scale),
            "cut the fraction off",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: bias // (input_scale * weight_scale) * input_scale * weight_scale,
            "You round down",
        ),
        ("06.3", lambda bias, input_scale, weight_scale: bias, "nothing is rounded"),
        ("06.3", lambda bias, input_scale, weight_scale: np.rint(bias), "You round the bias itself"),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: input_scale * np.rint(bias / input_scale),
            "the weights' scale belongs to it",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: weight_scale * np.rint(bias / weight_scale),
            "the input's scale belongs to it",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                input_scale / weight_scale * np.rint(bias / (input_scale / weight_scale))
            ),
            "do not divide",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: bias_on_grid(bias, input_scale, weight_scale.max()),
            "its own weight_scale",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: bias_on_grid(bias, input_scale, weight_scale.mean()),
            "its own weight_scale",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                np.floor(bias / (input_scale * weight_scale) + 0.5) * input_scale * weight_scale
            ),
            "You round halves up",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                np.clip(np.rint(bias / (input_scale * weight_scale)), -128, 127) * input_scale * weight_scale
            ),
            "not clamped to 8 bits",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                np.rint(bias * input_scale * weight_scale) / (input_scale * weight_scale)
            ),
            "the other way round",
        ),
        ("06.1", lambda x, scale, upstream, **_: upstream * (scale * np.rint(x / scale) == x), "lies on a tick"),
        ("06.1", without_parentheses, "binds more tightly"),
        ("06.1", lambda x, scale, quant_max, upstream, **_: upstream * np.rint(x / scale).clip(-1, 1), "other values"),
        ("06.2", two_parts(residual, lambda v, quant_max: v), "wherever x lies"),
        ("06.2", two_parts(lambda v, scale: (np.rint(v) - v) / scale, last), "once too often"),
        (
            "06.2",
            lambda x, scale, quant_max: np.where(np.abs(x / scale) <= quant_max, -x / scale**2, 0),
            "other values",
        ),
        (
            "06.2",
            lambda x, scale, quant_max: np.where(np.abs(x) > scale * quant_max, 0, np.sign(x) * quant_max),
            "other values",
        ),
        ("06.2", sides_swapped, "two sides are swapped"),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: bias_on_grid(bias, input_scale, weight_scale.sum()),
            "its own weight_scale",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                np.rint(bias / (input_scale * weight_scale)).astype(np.int8) * input_scale * weight_scale
            ),
            "Your codes wrapped",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: np.rint(bias / input_scale) * input_scale * weight_scale,
            "divide by one thing and multiply by another",
        ),
        ("06.3", lambda bias, input_scale, weight_scale: bias / (input_scale * weight_scale), "not yet whole ones"),
        ("06.3", bias_in_place, "changed its input bias"),
        (
            "06.1",
            masked(lambda x, s, lo, hi: (np.rint(x / s) >= lo) | (np.rint(x / s) <= hi)),
            "with `|` every code passes",
        ),
        ("06.1", masked(lambda x, s, lo, hi: np.abs(x) <= hi * s + 0.5), "is scale / 2, not 0.5"),
        ("06.1", masked(lambda x, s, lo, hi: np.abs(x) < hi * s + 0.5), "is scale / 2, not 0.5"),
        (
            "06.2",
            lambda x, scale, quant_max: np.where(x <= scale * quant_max, np.rint(x / scale) - x / scale, quant_max),
            "at the upper end only",
        ),
        (
            "06.2",
            two_parts(residual, last, limit=lambda v, quant_max: np.abs(np.rint(v)) < quant_max),
            "The last code is a code like all others",
        ),
        (
            "06.2",
            lambda x, scale, quant_max: np.where(
                np.abs(x) <= quant_max, np.rint(x / scale) - x / scale, np.sign(x) * quant_max
            ),
            "You compare x with a code",
        ),
        (
            "06.2",
            lambda x, scale, quant_max: np.where(
                np.abs(x / scale) <= quant_max, np.rint(x / scale) - x, np.sign(x) * quant_max
            ),
            "you take x off",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                np.rint(bias / (input_scale * weight_scale)).astype(np.int16) * input_scale * weight_scale
            ),
            "int16 ends at 32,767",
        ),
        (
            "06.3",
            lambda bias, input_scale, weight_scale: (
                np.rint(bias / input_scale * weight_scale) * input_scale * weight_scale
            ),
            "put it in parentheses",
        ),
    ],
)
def test_wrong_answers_in_a_learners_words(exercise_id, attempt, message):
    with np.errstate(all="ignore"):
        result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert any(part in result.message for part in message.split("|")), result.message


@pytest.mark.parametrize("exercise_id", ["06.1", "06.2", "06.3", "06.C"])
def test_no_hint_is_the_solution(exercise_id):
    exercise = exercises.find(exercise_id)
    lines = [line.strip().removeprefix("return ") for line in exercises.solution_source(exercise_id).splitlines()[1:]]
    assert len(exercise.hints) == 3
    final = [line for line in lines if line and "=" not in line] + [lines[-1]]
    assert not any(line in hint for line in final if len(line) > 3 for hint in exercise.hints)


# --- the challenge ---------------------------------------------------------------------------------------------------


def prepared(model, **options):
    config = QuantConfig(bits=2, symmetric=True, granularity=PerAxis(0), method="mse")
    return nn.prepare_qat(model, config, activations=None, **options)


def with_changed(name, change):
    def answer(model, images, labels):
        network = prepared(model)
        layer = torch.nn.Module()
        layer.weight, layer.bias = network.linear2.weight.detach(), network.linear2.bias.detach()
        setattr(layer, name, change(getattr(layer, name)))
        network.linear2 = layer
        return network

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda model, images, labels: model, "has 784 different values. Two bits are −s, 0 and s"),
        (lambda model, images, labels: prepared(model).state_dict(), "return a network with layers linear1"),
        (lambda model, images, labels: 0 * labels, "could not be read from a Tensor"),
        (lambda model, images, labels: torch.nn.Sequential(model, prepared(model)), "return a network with layers"),
        (with_changed("weight", lambda w: w[:, :50]), "wanted are (100, 100) and (100,)"),
        (with_changed("weight", lambda w: w * float("nan")), "holds NaN or infinity"),
        (with_changed("weight", lambda w: w + 0.01), "Two bits are −s, 0 and s"),
        (with_changed("bias", lambda b: b[None]), "wanted are (100, 100) and (100,)"),
        (with_changed("bias", lambda b: "none"), "could not be read"),
    ],
)
def test_what_is_more_than_two_bits_cannot_be_judged(answer, message):
    with pytest.raises(CannotBeJudged) as refused:
        judge_two_bits(answer)
    assert message in str(refused.value)
    assert message in exercises.challenge("06.C", answer).message


def test_the_judge_runs_the_weights_itself():
    class Cheat(torch.nn.Module):
        """Has weights of two bits to show, and computes with others."""

        def __init__(self, model):
            super().__init__()
            self.linear1, self.linear2, self.linear3 = (torch.nn.Module() for _ in range(3))
            for name, shape in (("linear1", (100, 784)), ("linear2", (100, 100)), ("linear3", (10, 100))):
                layer = getattr(self, name)
                layer.weight, layer.bias = torch.zeros(shape), torch.zeros(shape[0])
            self.model = model

        def forward(self, images):
            return self.model(images)

    score = judge_two_bits(lambda model, images, labels: Cheat(model))
    assert not score.passed and float(score.columns["of 10,000 test digits"].split()[0]) < 15


def test_more_epochs_on_the_labels_are_not_enough():
    def answer(model, images, labels):
        network = prepared(model, learned_step_size=True)
        nn.train(network, images, labels, epochs=20, progress=False)
        return network

    assert not judge_two_bits(answer).passed


def test_the_model_is_a_copy():
    def spoils(model, images, labels):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        images.zero_()
        labels.zero_()
        return prepared(nn.load_trained("mlp"))

    first, second = judge_two_bits(spoils), judge_two_bits(spoils)
    assert first == second and first.columns["of 10,000 test digits"] != "10.00 %"


# --- the lesson's table of libraries ---------------------------------------------------------------------------------


def test_torchao_replaces_layers_and_goes_straight_through():
    pytest.importorskip("torchao", minversion="0.18")
    from torchao.quantization import quantize_
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig, QATConfig

    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    per_row = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    per_channel = IntxFakeQuantizeConfig(torch.int4, "per_channel")
    quantize_(model, QATConfig(activation_config=per_row, weight_config=per_channel, step="prepare"))
    assert isinstance(model[0], FakeQuantizedLinear)
    assert per_row.is_dynamic and not per_row.range_learning
    model(torch.ones(2, 8)).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_the_older_interface_rounds_only_with_a_qat_configuration():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = pytest.importorskip("torch.ao.quantization")
        counts = []
        for config in (old.default_qconfig, old.get_default_qat_qconfig()):
            model = torch.nn.Sequential(torch.nn.Linear(8, 4)).train()
            model.qconfig = config
            modules = old.prepare_qat(model).modules()
            counts.append(sum(isinstance(module, old.FakeQuantizeBase) for module in modules))
    assert counts == [0, 2]
