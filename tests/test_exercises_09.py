"""Lesson 09: what learners write is told the truth; the challenge counts every byte; the folded cell runs."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import qlearn  # noqa: E402
from qlearn import PerAxis, PerGroup, PerToken, QuantConfig, exercises, nn  # noqa: E402
from qlearn.exercises import lesson_09, letters  # noqa: E402
from qlearn.exercises.challenges import CannotBeJudged  # noqa: E402
from qlearn.exercises.lesson_09 import BUDGET, WANTED, compress, judge  # noqa: E402
from qlearn.nn.language_model import ALPHABET  # noqa: E402

# --- right answers that look different -------------------------------------------------------------------------------


def perplexity_by_a_loop(logits, following):
    bits = [
        np.log2(np.exp(row - row.max()).sum()) - (row[c] - row.max()) / np.log(2)
        for row, c in zip(logits, following, strict=True)
    ]
    return 2 ** np.mean(bits)


def perplexity_by_torch(logits, following):
    return float(torch.nn.functional.cross_entropy(torch.as_tensor(logits), torch.as_tensor(following)).exp())


def perplexity_by_logaddexp(logits, following):
    picked = np.take_along_axis(logits, following[:, None], axis=1)[:, 0]
    return np.exp((np.logaddexp.reduce(logits, axis=1) - picked).mean())


def perplexity_by_scipy(logits, following):
    special = pytest.importorskip("scipy.special")
    return np.exp(-special.log_softmax(logits, axis=1)[range(len(following)), following].mean())


def factors_by_a_loop(x, w):
    return np.array([(max(abs(a)) / max(abs(b))) ** 0.5 for a, b in zip(x.T, w.T, strict=True)])


def factors_in_float32(x, w):
    largest = [torch.as_tensor(v, dtype=torch.float32).abs().amax(dim=0) for v in (x, w)]
    return (largest[0] / largest[1]).sqrt().numpy()


def factors_of_ends(x, w):
    return np.sqrt(np.maximum(x.max(0), -x.min(0)) / np.maximum(w.max(0), -w.min(0)))


def alpha_by_a_loop(w, x, quantize, alphas):
    best = None
    for alpha in alphas:
        s = ((x * x).sum(axis=0) / len(x)) ** (alpha / 2)
        error = np.linalg.norm(x @ w.T - x @ (quantize(w * s) / s).T)
        if best is None or error < best[0]:
            best = error, alpha
    return best[1]


def alpha_by_hessian(w, x, quantize, alphas):
    h, size = x.T @ x, np.sqrt(np.mean(np.square(x), axis=0))
    change = {alpha: quantize(w * size**alpha) / size**alpha - w for alpha in alphas}
    return min(alphas, key=lambda alpha: np.trace(change[alpha] @ h @ change[alpha].T))


def alpha_of_scaled_inputs(w, x, quantize, alphas):
    size = np.sqrt((x**2).mean(axis=0))
    errors = [(((x / size**a) @ quantize(w * size**a).T - x @ w.T) ** 2).sum() for a in alphas]
    return alphas[errors.index(min(errors))]


def hadamard_by_kron(n):
    h = np.ones((1, 1))
    for _ in range(n.bit_length() - 1):
        h = np.kron(h, [[1, 1], [1, -1]])
    return h * n**-0.5


def hadamard_by_scipy(n):
    return pytest.importorskip("scipy.linalg").hadamard(n) / np.sqrt(n)


def hadamard_of_bits(n):
    return np.array([[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)], np.float32) / n**0.5


def hadamard_again_and_again(n):
    if n == 1:
        return np.array([[1.0]])
    h = hadamard_again_and_again(n // 2) / np.sqrt(2)
    return np.vstack([np.hstack([h, h]), np.hstack([h, -h])])


def cache_by_hand(x, bits):
    lo, hi = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    step = (hi - lo) / (2**bits - 1)
    step[step == 0] = 1
    zero = np.rint(-lo / step)
    return (np.clip(np.rint(x / step) + zero, 0, 2**bits - 1) - zero) * step


def cache_by_loops(x, bits):
    out = np.empty_like(x)
    for t, h in np.ndindex(x.shape[:2]):
        out[t, h] = qlearn.fake_quantize(x[t, h], qlearn.find_qparams(x[t, h], bits=bits))
    return out


def cache_by_tokens(x, bits):
    return qlearn.fake_quantize(x, qlearn.find_qparams(x, bits=bits, granularity=PerToken()))


def cache_in_float32(x, bits):
    y = torch.as_tensor(x, dtype=torch.float32)
    return qlearn.fake_quantize(y, qlearn.find_qparams(y, bits=bits, granularity=PerGroup(y.shape[-1]))).numpy()


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("09.1", perplexity_by_a_loop),
        ("09.1", perplexity_by_torch),
        ("09.1", perplexity_by_logaddexp),
        ("09.1", perplexity_by_scipy),
        ("09.2", factors_by_a_loop),
        ("09.2", factors_in_float32),
        ("09.2", factors_of_ends),
        ("09.3", alpha_by_a_loop),
        ("09.3", alpha_by_hessian),
        ("09.3", alpha_of_scaled_inputs),
        ("09.4", hadamard_by_kron),
        ("09.4", hadamard_by_scipy),
        ("09.4", hadamard_of_bits),
        ("09.4", hadamard_again_and_again),
        ("09.5", cache_by_hand),
        ("09.5", cache_by_loops),
        ("09.5", cache_by_tokens),
        ("09.5", cache_in_float32),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message
    assert "Your " in result.message and "raised" not in result.message


# --- wrong answers as learners write them ----------------------------------------------------------------------------


def log_p(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def of_each(logits, following):
    return log_p(logits)[np.arange(len(following)), following]


def searched(w, x, quantize, alphas, size=None, error=None):
    size = np.sqrt((x**2).mean(axis=0)) if size is None else size
    error = error or (lambda w_hat: ((x @ (w_hat - w).T) ** 2).mean())
    return alphas[int(np.argmin([error(quantize(w * size**a) / size**a) for a in alphas]))]


def expected(logits):
    p = np.exp(log_p(logits))
    return -(p * np.where(p > 0, log_p(logits), 0)).sum(axis=1)


def scaled_once_more(w, x, quantize, alphas):
    def change(s):
        s = s / np.sqrt(s.max() * s.min())
        return ((x @ (quantize(w * s) / s - w).T) ** 2).mean()

    size = np.sqrt((x**2).mean(axis=0))
    return min(alphas, key=lambda alpha: change(size**alpha))


def changes(row):
    return sum(a != b for a, b in pairwise(row))


def doubled_in_a_loop(n):
    h = np.ones((1, 1))
    for _ in range(1, min(n, 9)):
        h = np.kron([[1, 1], [1, -1]], h)
    return h / np.sqrt(n)


def without_zero_point(x, bits):
    qparams = qlearn.find_qparams(x, bits=bits, granularity=PerToken())
    return qlearn.quantize(x, qparams).astype(float) * qparams.scale


def ranges_of_flat_rows(x, bits):
    qparams = qlearn.find_qparams(x.reshape(len(x), -1), bits=bits, granularity=PerGroup(x.shape[2]))
    return qlearn.fake_quantize(x, qparams)


def range_so_far(x, bits):
    out = np.empty_like(x)
    for t, h in np.ndindex(x.shape[:2]):
        seen = x[: t + 1, h]
        out[t, h] = qlearn.fake_quantize(seen, qlearn.find_qparams(seen, bits=bits))[-1]
    return out


def scales_its_input(w, x, quantize, alphas):
    for alpha in alphas:
        w *= np.sqrt((x**2).mean(axis=0)) ** alpha
    return alphas[0]


def blocks(n, *signs):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[signs[0] * h, signs[1] * h], [signs[2] * h, signs[3] * h]])
    return h / np.sqrt(n)


def grouped(x, bits, granularity, **options):
    return qlearn.fake_quantize(x, qlearn.find_qparams(x, bits=bits, granularity=granularity, **options))


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        (
            "09.1",
            lambda logits, following: np.exp(-np.log(np.exp(of_each(logits, following)) + 1e-9).mean()),
            "A floor",
        ),
        ("09.1", lambda logits, following: 2 ** -of_each(logits, following).mean(), "np.log gives nats"),
        ("09.1", lambda logits, following: np.exp(-of_each(logits, following)), "one number a letter"),
        ("09.1", lambda logits, following: np.exp(-log_p(logits)[following].mean()), "takes whole rows"),
        ("09.1", lambda logits, following: np.exp(-log_p(logits).max(axis=1).mean()), "likes best"),
        ("09.1", lambda logits, following: np.exp(-of_each(logits - logits.max(), following).mean()) * 0 + 1, "other"),
        ("09.1", lambda logits, following: np.exp(-(logits - logits.max(axis=1)).mean()), "could not be broadcast"),
        ("09.1", lambda logits, following: np.exp(of_each(logits, following).mean()), "The sign is lost"),
        (
            "09.1",
            lambda logits, following: np.prod(np.exp(of_each(logits, following))) ** (-1 / len(following)),
            "add their logs",
        ),
        ("09.1", lambda logits, following: np.exp(expected(logits).mean()), "which the model expects"),
        (
            "09.1",
            lambda logits, following: np.exp(-of_each(logits.clip(-700, 700), following).mean()),
            "Clipped logits",
        ),
        (
            "09.1",
            lambda logits, following: np.exp(-log_p(logits)[following, range(len(following))].mean()),
            "Rows come first",
        ),
        ("09.2", lambda x, w: np.sqrt(np.abs(x).max(axis=0)) / np.abs(w).max(axis=0), "Only the activations"),
        ("09.2", lambda x, w: np.abs(x).max(axis=0) / np.sqrt(np.abs(w).max(axis=0)), "Only the weights"),
        ("09.2", lambda x, w: np.sqrt(np.abs(x.max(axis=0)) / np.abs(w.max(axis=0))), "np.abs before the maximum"),
        ("09.2", lambda x, w: np.sqrt(np.abs(x).max(axis=0) / w.max(axis=0)), "np.abs before the maximum"),
        ("09.2", lambda x, w: np.sqrt(np.linalg.norm(x, axis=0) / np.linalg.norm(w, axis=0)), "other values"),
        ("09.2", lambda x, w: np.maximum(1, factors_of_ends(x, w)), "A factor below 1 is right"),
        ("09.2", lambda x, w: torch.as_tensor(factors_of_ends(x, w)), "a NumPy array is wanted"),
        ("09.3", lambda w, x, quantize, alphas: searched(w, x, quantize, alphas, abs(x).mean(0)), "as in the paper"),
        (
            "09.3",
            lambda w, x, quantize, alphas: searched(w, x, quantize, alphas, (x**2).mean(0)),
            "The root is missing",
        ),
        ("09.3", lambda w, x, quantize, alphas: searched(w, x, quantize, alphas, abs(x).max(0)), "largest magnitude"),
        (
            "09.3",
            lambda w, x, quantize, alphas: searched(w, x, quantize, alphas, error=lambda v: abs(x @ (v - w).T).mean()),
            "You average magnitudes",
        ),
        (
            "09.3",
            lambda w, x, quantize, alphas: searched(w, x, lambda v: quantize(w), alphas, size=np.ones(x.shape[1])),
            "The first α wins",
        ),
        (
            "09.3",
            lambda w, x, quantize, alphas: searched(
                w, x, quantize, alphas, error=lambda v: ((v - w) ** 2 * (x**2).mean(axis=0)).sum()
            ),
            "by its own channel",
        ),
        (
            "09.3",
            lambda w, x, quantize, alphas: searched(
                w, x, quantize, alphas, error=lambda v: (x @ (v - w).T).mean() ** 2
            ),
            "Square first",
        ),
        ("09.3", lambda w, x, quantize, alphas: searched(w, x, quantize, alphas, x.std(axis=0)), "leaves the mean out"),
        (
            "09.3",
            lambda w, x, quantize, alphas: searched(w, x, quantize, alphas, factors_of_ends(x, w)),
            "of exercise 09.2",
        ),
        ("09.3", scaled_once_more, "You scale the factors once more"),
        ("09.3", scales_its_input, "changed its input w"),
        ("09.4", lambda n: blocks(n, -1, 1, 1, 1), "lower right block"),
        ("09.4", lambda n: blocks(n, 1, -1, 1, 1), "lower right block"),
        ("09.4", lambda n: blocks(n, 1, 1, 1, 1), "nothing is perpendicular"),
        ("09.4", lambda n: blocks(n, 1, -1, -1, 1), "one minus"),
        ("09.4", lambda n: blocks(n, 1, -1, -1, -1), "lower right block"),
        ("09.4", lambda n: np.array(sorted(blocks(n, 1, 1, 1, -1).tolist(), key=changes)), "rows in another order"),
        ("09.4", doubled_in_a_loop, "not how often they double"),
        ("09.4", lambda n: blocks(n, 1, 1, 1, -1) * n**0.5 / 2, "2 is right for n = 4"),
        ("09.4", lambda n: qlearn.rotations.random_hadamard(n), "random signs"),
        ("09.4", lambda n: blocks(n, 1, 1, 1, -1).tolist(), "a NumPy array is wanted"),
        ("09.5", lambda x, bits: grouped(x, bits, qlearn.PerTensor()), "That is the leak"),
        ("09.5", lambda x, bits: grouped(x, bits, PerAxis(0)), "one range for all heads"),
        ("09.5", lambda x, bits: grouped(x, bits, PerAxis(1)), "One range for each head, over all letters"),
        ("09.5", lambda x, bits: grouped(x, bits, PerAxis(2)), "down the text"),
        ("09.5", lambda x, bits: grouped(x, 8, PerToken()), "hand `bits` on"),
        ("09.5", lambda x, bits: grouped(x, bits, PerToken(), symmetric=True), "That is symmetric"),
        ("09.5", lambda x, bits: grouped(x, bits, PerToken(), method="mse"), "ranges by MSE"),
        ("09.5", lambda x, bits: grouped(x.reshape(len(x), -1), bits, PerToken()).reshape(x.shape), "all heads"),
        ("09.5", lambda x, bits: grouped(x, bits, PerToken()).tolist(), "a NumPy array is wanted"),
        ("09.5", lambda x, bits: grouped(x, 4, PerToken()), "That has 4 bits"),
        ("09.5", without_zero_point, "The zero point is missing"),
        (
            "09.5",
            lambda x, bits: grouped(x.reshape(len(x), -1), bits, PerGroup(32)).reshape(x.shape),
            "x.shape[-1] numbers",
        ),
        ("09.5", ranges_of_flat_rows, "in its shape"),
        ("09.5", range_so_far, "one early outlier"),
        ("09.5", lambda x, bits: x, "Nothing is rounded"),
    ],
)
def test_wrong_answers_in_a_learners_words(exercise_id, attempt, message):
    with np.errstate(all="ignore"):
        result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert message in result.message, result.message


def test_the_mean_of_nothing_warns_nobody():
    (off_by_one,) = (m for m in exercises.find("09.1").mistakes if "is shifted already" in m.diagnosis)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(off_by_one.function(np.zeros((1, 3)), np.array([2])))


@pytest.mark.parametrize("exercise_id", ["09.1", "09.2", "09.3", "09.4", "09.5"])
def test_no_hint_is_the_solution(exercise_id):
    exercise = exercises.find(exercise_id)
    lines = [line.strip().removeprefix("return ") for line in exercises.solution_source(exercise_id).splitlines()[1:]]
    assert len(exercise.hints) == 3
    assert not any(line in hint for line in lines for hint in exercise.hints)


def test_what_is_done_with_an_answer_is_said_in_numbers():
    def said(exercise_id):
        return exercises.check(exercise_id, exercises.find(exercise_id).solution).message

    assert "perplexity 3.8" in said("09.2") and "in float 3.82" in said("09.2")
    assert "weights of 3 bits: perplexity 4.46 → 4.1" in said("09.3") and "never planted 4.07" in said("09.3")
    assert "largest magnitude 794 → 101" in said("09.4")
    assert "0 of the 15 places before it noticed" in said("09.5")


# --- the challenge ---------------------------------------------------------------------------------------------------


def four_levels(bits):
    return QuantConfig(bits=bits, method="mse", granularity=PerAxis(0))


def mixed(model, batches, gptq=True, **more):
    bits = {name: {"weights": four_levels(b)} for name, b in more.items()}
    prepared = nn.prepare(
        model, four_levels(2), None, {("head" if n == "head" else f"*.{n}"): v for n, v in bits.items()}
    )
    return nn.convert(nn.gptq(prepared, batches, damping=0.1, progress=False) if gptq else prepared)


def reached(score):
    return int(score.columns["bytes"].replace(",", "")), float(score.columns["perplexity"])


def test_the_budget_and_the_target_leave_room_on_both_sides():
    size, perplexity = reached(judge(compress))
    assert size <= BUDGET and perplexity < WANTED - 0.05
    for answer in (
        lambda model, batches: mixed(model, batches),  # all with 2 bits
        lambda model, batches: mixed(model, batches, gptq=False, head=4, output=3),
    ):
        score = judge(answer)
        assert reached(score)[0] <= BUDGET and reached(score)[1] > WANTED + 0.02 and not score.passed
    score = judge(lambda model, batches: mixed(model, batches, down=3))
    assert reached(score)[1] < WANTED and reached(score)[0] > BUDGET and not score.passed


def test_what_is_said_of_the_simple_answers_is_what_they_reach():
    for simple, (size, perplexity) in lesson_09._SIMPLE.values():
        measured = lesson_09._measured(simple)
        assert measured[0] == size and measured[1] == pytest.approx(perplexity, abs=0.02)
        assert reached(judge(simple)) == (size, perplexity) and not judge(simple).passed


def rounded(model, batches):  # quick, and good enough to be refused
    return nn.convert(nn.prepare(model, four_levels(2), None))


def with_codes_and_floats(model, batches):
    """Layers that carry their codes for the scales to see, and float weights for the judge."""
    given = rounded(model, batches)
    for name, layer in given.named_modules():
        if isinstance(layer, nn.WeightOnlyLayer):
            floats = model.get_submodule(name).weight.detach()
            layer.__class__ = type(
                "WeightOnlyLayer", (nn.WeightOnlyLayer,), {"weight": property(lambda _, w=floats: w)}
            )
    return given


def with_one_block_twice(model, batches):
    given = rounded(model, batches)
    given.blocks[1] = given.blocks[0]
    return given


def not_a_number(model, batches):
    given = rounded(model, batches)
    given.norm.weight.data.fill_(float("nan"))
    return given


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda model, batches: None, "returned a NoneType"),
        (lambda model, batches: model.state_dict(), "must return the quantized model"),
        (lambda model, batches: torch.nn.Sequential(model), "'tokens' is missing"),
        (lambda model, batches: nn.prepare(model, four_levels(2), None), "is a ObservedLayer"),
        (
            lambda model, batches: nn.convert(nn.prepare(model, four_levels(2), QuantConfig(method="dynamic"))),
            "Layers may",
        ),
        (lambda model, batches: nn.add_adapters(rounded(model, batches)), "is a AdaptedLayer"),
        (lambda model, batches: model.half(), "not finite float32"),
        (not_a_number, "not finite float32"),
        (with_codes_and_floats, "Layers may be in float, or as nn.convert leaves them"),
        (with_one_block_twice, "'blocks.1.norm1' is missing"),
        (lambda model, batches: nn.load_language_model().blocks, "'tokens' is missing"),
    ],
)
def test_what_breaks_a_rule_cannot_be_judged(answer, message):
    with pytest.raises(CannotBeJudged) as refused:
        judge(answer)
    assert message in str(refused.value)


def test_what_an_answer_does_to_its_surroundings_is_not_believed(monkeypatch):
    class Small:
        bytes = 1

    def patched(model, batches):
        monkeypatch.setattr(nn, "summary", lambda model: Small)
        monkeypatch.setattr(nn, "perplexity", lambda *_: 1.0)
        return model

    assert reached(judge(patched)) == (7_305_984, 3.82)

    def with_a_forward_of_its_own(model, batches):
        given = rounded(model, batches)
        given.forward = lambda tokens: torch.zeros(*tokens.shape, 80)
        return given

    monkeypatch.undo()
    assert reached(judge(with_a_forward_of_its_own)) == reached(judge(rounded))
    assert reached(judge(lambda model, batches: model)) == (7_305_984, 3.82), "no answer changes the judge's model"


# --- what the lesson says, and no cell shows -------------------------------------------------------------------------


def test_the_ship_that_it_has_never_met():
    parts = qlearn.datasets.text_parts()
    assert "Rachel" not in parts.train and "Rachel" in parts.test[:129]


def test_the_text_of_a_cache_of_four_bits():
    """ "The text may stay as it is": on most processors it does, on all the perplexity stays within a hundredth."""
    import copy

    net = copy.deepcopy(letters.model())
    for block in net.blocks:
        block.attention.cache = QuantConfig(bits=4, granularity=PerGroup(32))
    assert letters.perplexity(net) < 1.01 * letters.perplexity(letters.model())


def test_almost_all_numbers_are_in_29_linear_layers():
    model = letters.model()
    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == 29
    inside = sum(layer.weight.numel() for layer in linear) / sum(p.numel() for p in model.parameters())
    assert inside > 0.95
    adapted = nn.add_adapters(model, rank=2)
    assert abs(sum(p.numel() for p in adapted.parameters()) / sum(p.numel() for p in model.parameters()) - 1.016) < 5e-4


# --- the folded cell -------------------------------------------------------------------------------------------------


def test_a_model_from_hugging_face(tmp_path, capsys):
    """The folded cell's function, on a small Llama with random weights and letters for tokens, read from a folder."""
    import json
    from pathlib import Path

    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    letters_of = {letter: number for number, letter in enumerate(ALPHABET)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({**letters_of, "[UNK]": len(letters_of)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=len(letters_of) + 1, tie_word_embeddings=True)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)

    path = Path(__file__).parent.parent / "notebooks" / "09_a_language_model_in_four_bits.ipynb"
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    (cell,) = [source for source in cells if "def hugging_face" in source]
    parts = qlearn.datasets.text_parts()
    known = {"torch": torch, "nn": nn, "QuantConfig": QuantConfig, "PerGroup": PerGroup}
    known |= {"parts": parts, "text": parts.validation[:1500]}
    exec(cell, known)  # LOAD is False: nothing but a sentence
    assert "Not loaded" in capsys.readouterr().out
    known["hugging_face"](str(tmp_path))
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.strip().splitlines())
    assert list(printed) == ["float", "4 bits, nearest", "4 bits, GPTQ", "4 bits, AWQ"]
    assert all(70 < float(value) < 90 for value in printed.values()), "random weights know nothing of 81 letters"
