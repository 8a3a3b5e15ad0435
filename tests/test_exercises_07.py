"""Lesson 07: what learners write, and what they are told; the challenge; and what the lesson says of other libraries."""

from __future__ import annotations

import re

import numpy as np
import pytest

import qlearn
from qlearn import exercises, gptq
from qlearn.exercises import cnn
from qlearn.exercises.challenges import CannotBeJudged


def fold_loop(weight, bias, gamma, beta, mean, var, eps):
    new, shift = np.empty_like(weight), []
    for o in range(len(weight)):
        f = gamma[o] / (var[o] + eps) ** 0.5
        new[o] = weight[o] * f
        shift.append(bias[o] * f - mean[o] * f + beta[o])
    return new, np.array(shift)


def fold_matrix(weight, bias, gamma, beta, mean, var, eps):
    f = np.diag(gamma * (var + eps) ** -0.5)
    return f @ weight, f @ (bias - mean) + beta


def equalize_loop(w1, b1, w2):
    w1, b1, w2 = w1.copy(), b1.copy(), w2.copy()
    for c in range(len(w1)):
        r1, r2 = abs(w1[c]).max(), abs(w2[:, c]).max()
        if r1 and r2:
            middle = (r1 * r2) ** 0.5
            w1[c] *= middle / r1
            b1[c] *= middle / r1
            w2[:, c] *= middle / r2
    return [w1, b1, w2]


def equalize_where(w1, b1, w2):
    r1, r2 = np.max(np.abs(w1), 1, keepdims=True), np.max(np.abs(w2), 0, keepdims=True).T
    alive = r1 * r2 > 0
    s = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=alive))
    s[~alive] = 1
    return w1 / s, b1 / s[:, 0], w2 * s.T


def correct_all_at_once(bias_codes, step, y, y_hat):
    return np.rint(bias_codes + (y - y_hat).mean(0) / step).astype(np.int32)


def correct_half_up(bias_codes, step, y, y_hat):
    return (bias_codes + np.floor((y - y_hat).mean(0) / step + 0.5)).astype("int32")


def round_row_half_up(w, r):
    w_hat = np.zeros_like(w)
    for j, v in enumerate(w):
        w_hat[j] = np.floor(v + sum((w[i] - w_hat[i]) * r[i, j] for i in range(j)) + 0.5)
    return w_hat


def round_row_of_whole_numbers(w, r):
    out = []
    for j in range(len(w)):
        out.append(round(float(w[j] + (w[:j] - np.array(out, dtype=float)) @ r[:j, j])))
    return np.array(out)


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("07.1", fold_loop),
        ("07.1", fold_matrix),
        ("07.2", equalize_loop),
        ("07.2", equalize_where),
        ("07.3", correct_all_at_once),
        ("07.3", correct_half_up),
        ("07.4", round_row_half_up),
        ("07.4", round_row_of_whole_numbers),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message
    assert "raised" not in result.message


def _fold(factor, shift):
    """A fold with this factor and this bias."""

    def fold(weight, bias, gamma, beta, mean, var, eps):
        v = dict(weight=weight, bias=bias, gamma=gamma, beta=beta, mean=mean, var=var, eps=eps)
        f = factor(v)
        return weight * f.reshape(-1, 1), shift(v, f)

    return fold


def _factor(v):
    return v["gamma"] / np.sqrt(v["var"] + v["eps"])


def _shift(v, f):
    return (v["bias"] - v["mean"]) * f + v["beta"]


def _equalize(scale, how=lambda w1, b1, w2, s: (w1 / s[:, None], b1 / s, w2 * s)):
    """An equalization with these factors."""

    def equalize(w1, b1, w2):
        with np.errstate(all="ignore"):
            return how(w1, b1, w2, scale(abs(w1).max(1), abs(w2).max(0)))

    return equalize


def _guarded(r1, r2):
    return np.where(r1 * r2 > 0, np.sqrt(r1 / np.where(r2 > 0, r2, 1)), 1)


def _pushing_errors_on(w, r):
    w, w_hat = w.copy(), np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = round(w[j])
        w[j + 1 :] += (w[j] - w_hat[j]) * r[j, j + 1 :]
    return w_hat


def _below_the_diagonal(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.round(w[j] + np.dot(w[:j] - w_hat[:j], r[j, :j]))
    return w_hat


def _changes_w(w, r):
    for j in range(len(w)):
        rounded = np.rint(w[j])
        w[j + 1 :] += (w[j] - rounded) * r[j, j + 1 :]
        w[j] = rounded
    return w


def _between_its_ticks(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.clip(np.rint(w[j] + (w[:j] - w_hat[:j]) @ r[:j, j]), np.floor(w[j]), np.ceil(w[j]))
    return w_hat


def _mean_of_errors(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.rint(w[j] + (np.mean((w[:j] - w_hat[:j]) * r[:j, j]) if j else 0))
    return w_hat


def _two_roundings(w, r):
    w_hat = np.zeros(len(w))
    for j in range(len(w)):
        w_hat[j] = np.rint(w[j]) + np.rint((w[:j] - w_hat[:j]) @ r[:j, j])
    return w_hat


def _int_of_each(w, r):
    w_hat = []
    for j in range(len(w)):
        w_hat.append(int(w[j] + sum((w[i] - w_hat[i]) * r[i][j] for i in range(j))))
    return np.array(w_hat, dtype=float)


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("07.1", _fold(_factor, lambda v, f: v["bias"] * f + v["beta"]), "mean is missing"),
        ("07.1", _fold(_factor, lambda v, f: (v["bias"] - v["mean"]) * f), "beta is missing"),
        ("07.1", _fold(_factor, lambda v, f: f * (v["bias"] - v["mean"] + v["beta"])), "beta comes last"),
        ("07.1", _fold(_factor, lambda v, f: v["beta"] + f * (v["mean"] + v["bias"])), "the batch norm subtracts"),
        ("07.1", _fold(lambda v: (v["var"] + v["eps"]) ** -0.5, _shift), "gamma is missing"),
        ("07.1", _fold(lambda v: v["gamma"], _shift), "The deviation is missing"),
        ("07.1", _fold(lambda v: v["gamma"] / np.sqrt(v["var"]) + v["eps"], _shift), "other values"),
        ("07.1", _fold(lambda v: v["gamma"] * np.sqrt(v["var"] + v["eps"]), _shift), "You multiply by the deviation"),
        (
            "07.1",
            lambda weight, bias, gamma, beta, mean, var, eps: (
                weight * (gamma / np.sqrt(var + eps)),
                gamma / np.sqrt(var + eps) * (bias - mean) + beta,
            ),
            "Yours multiplies columns",
        ),
        ("07.1", lambda weight, **rest: weight, "must return 2 values"),
        (
            "07.1",
            lambda weight, bias, gamma, beta, mean, var, eps: (
                ((weight.T - mean) * gamma / np.sqrt(var + eps) + beta).T,
                (bias - mean) * gamma / np.sqrt(var + eps) + beta,
            ),
            "The weights are only multiplied",
        ),
        ("07.2", _equalize(lambda r1, r2: np.sqrt(r1 / r2)), "gives 0/0 or 1/0"),
        # Two mistakes at once: dead channels forgotten, and one that is told first.
        (
            "07.2",
            _equalize(lambda r1, r2: np.sqrt(r1 / r2), lambda w1, b1, w2, s: (w1 / s[:, None], b1, w2 * s)),
            "The bias is a part",
        ),
        ("07.2", _equalize(lambda r1, r2: np.sqrt(r2 / r1)), "upside down"),
        ("07.2", _equalize(lambda r1, r2: r1 / r2), "Without the square root"),
        ("07.2", _equalize(lambda r1, r2: np.sqrt(np.maximum(r1, 1e-8) / np.maximum(r2, 1e-8))), "A small number"),
        ("07.2", _equalize(lambda r1, r2: np.where(r1 * r2, np.sqrt(r1 / r2), 0)), "the factor 0, and divide by it"),
        ("07.2", _equalize(lambda r1, r2: np.where(r2 == 0, 1, np.sqrt(r1 / r2))), "that nothing makes"),
        ("07.2", _equalize(lambda r1, r2: np.nan_to_num(np.sqrt(r1 / r2), nan=1)), "np.nan_to_num makes a huge number"),
        ("07.2", _equalize(lambda r1, r2: np.nan_to_num(np.sqrt(r1 / r2), nan=1, posinf=1)), "that nothing makes"),
        ("07.2", _equalize(lambda r1, r2: np.where(r1 == 0, 1, np.sqrt(r1 / r2))), "that nothing reads"),
        ("07.2", _equalize(lambda r1, r2: np.sqrt((r1 + 1e-8) / (r2 + 1e-8))), "A small number added"),
        ("07.2", _equalize(lambda r1, r2: np.sqrt(r1 / (r2 + 1e-12))), "A small number added"),
        ("07.2", _equalize(_guarded, lambda w1, b1, w2, s: (w1 / s, b1 / s, w2 * s)), "divides the columns of w1"),
        (
            "07.2",
            _equalize(_guarded, lambda w1, b1, w2, s: ((w1.T / s).T, b1 / s, (w2.T * s).T)),
            "multiplies the rows of w2",
        ),
        ("07.2", _equalize(_guarded, lambda w1, b1, w2, s: ((w1.T * s).T, b1 * s, w2 / s)), "upside down"),
        ("07.2", _equalize(_guarded, lambda w1, b1, w2, s: ((w1.T / s).T, b1 * s, w2 * s)), "the side that is divided"),
        ("07.2", _equalize(lambda r1, r2: np.where(r1 > 0, r1, 1)), "Share it"),
        (
            "07.2",
            lambda w1, b1, w2: exercises.find("07.2").solution(w1.astype(int), b1, w2.astype(int)),
            "other values",
        ),
        ("07.3", lambda bias_codes, step, y, y_hat: bias_codes + ((y - y_hat).mean(0) // step).astype(int), "int64"),
        (
            "07.3",
            lambda bias_codes, step, y, y_hat: (bias_codes + (y - y_hat).mean(0) // step).astype(np.int32),
            "You round down",
        ),
        (
            "07.3",
            lambda bias_codes, step, y, y_hat: bias_codes + np.int32((y.mean(0) - y_hat.mean(0)) / step),
            "The cast cuts fractions off",
        ),
        ("07.3", lambda bias_codes, step, y, y_hat: bias_codes * step + y.mean(0) - y_hat.mean(0), "as a real number"),
        (
            "07.3",
            lambda bias_codes, step, y, y_hat: (bias_codes + (np.abs(y - y_hat).mean(0) / step).round()).astype("i4"),
            "no np.abs",
        ),
        (
            "07.3",
            lambda bias_codes, step, y, y_hat: np.add(
                bias_codes, np.rint((y_hat - y).mean(0) / step), casting="unsafe"
            ),
            "You move away from the float outputs",
        ),
        (
            "07.3",
            lambda bias_codes, step, y, y_hat: bias_codes + np.int32(np.rint((y - y_hat) / step).mean(0)),
            "Take the mean first",
        ),
        (
            "07.3",
            lambda bias_codes, step, y, y_hat: np.int32(np.rint((bias_codes + (y - y_hat).mean(0)) / step)),
            "divide the shift alone",
        ),
        ("07.4", lambda w, r: np.rint(w + (w - np.rint(w)) @ r), "makes up for itself, too"),
        ("07.4", _pushing_errors_on, "are then passed on again"),
        ("07.4", _below_the_diagonal, "it is r[:j, j], and not r[j, :j]"),
        ("07.4", _changes_w, "your function changed its input w"),
        ("07.4", _int_of_each, "You cut the fraction off"),
        ("07.4", lambda w, r: np.rint(w @ r), "other values"),
        ("07.4", lambda w, r: list(np.rint(w)), "a NumPy array is wanted"),
        ("07.4", lambda w, r: np.full(len(w), np.nan), "other values"),
    ],
)
def test_wrong_answers_in_other_words(exercise_id, attempt, message):
    result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert message in result.message, result.message


@pytest.mark.parametrize("attempt", [_between_its_ticks, _mean_of_errors, _two_roundings])
def test_no_diagnosis_is_better_than_a_false_one(attempt):
    result = exercises.check("07.4", attempt)
    assert result.status == "wrong"
    assert not any(mistake.diagnosis in result.message for mistake in exercises.find("07.4").mistakes), result.message


@pytest.mark.parametrize(
    "answer",
    [
        np.array([1, 1]),  # the right one is 0
        np.array([0, 0], dtype=np.int64),
        np.array([0.0, 0.0]),
        np.array([[0, 0]], dtype=np.int32),
        0,
    ],
)
def test_of_a_bias_only_the_nearest_codes_are_right_too(answer):
    case = {"bias_codes": np.zeros(2, np.int32), "step": 1.0, "y": np.full((1, 2), 0.25), "y_hat": np.zeros((1, 2))}
    assert not exercises.find("07.3").also_right(case, answer)
    at_a_tie = case | {"y": np.full((1, 2), 0.5)}
    assert exercises.find("07.3").also_right(at_a_tie, np.array([1, 0], dtype=np.int32))


def test_what_was_written_runs_in_the_network(monkeypatch):
    """Each sentence has the accuracy with what was written, and without."""
    sentences = {e.id: e.consequence(e.solution) for e in map(exercises.find, exercises.ids()) if e.id[:2] == "07"}
    assert "of 1,000 held-out digits 0 are read otherwise" in sentences["07.1"]
    numbers = {key: [float(n) for n in _numbers(text)] for key, text in sentences.items()}
    equal, unequal = numbers["07.2"][-3], numbers["07.2"][-1]
    assert equal > 98 and unequal < 50, sentences["07.2"]
    after, before = numbers["07.3"][-3], numbers["07.3"][-1]
    assert after > before + 5, sentences["07.3"]
    in_turn, nearest = numbers["07.4"][-3], numbers["07.4"][-1]
    assert in_turn > nearest + 5, sentences["07.4"]
    # What is wrong would be seen: a fold that loses the mean moves answers.
    fold = exercises.find("07.1")
    without_mean = fold.consequence(lambda weight, bias, *rest: (fold.solution(weight, bias, *rest)[0], bias))
    assert " 0 are read otherwise" not in without_mean


def _numbers(text):
    return re.findall(r"\d[\d,]*\.?\d*", text.replace(",", ""))


def test_the_network_on_arrays_is_that_of_the_lesson():
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits = cnn.network().double()(cnn.images()["test"]).numpy()
    assert np.allclose(cnn.logits(), logits, rtol=1e-9, atol=1e-9)
    layer = cnn.layers()["linear"]
    assert layer.hessian.shape == (1568, 1568) and layer.mean.shape == (1568,)
    assert np.allclose(layer.weight @ layer.mean + layer.bias, cnn.logits(part="calibration").mean(axis=0))


# --- the challenge ---------------------------------------------------------------------------------------------------


def codes_of(weight):
    return np.rint(weight / abs(weight).max())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda weight, bias, h, mean: weight, "three things are wanted"),
        (lambda weight, bias, h, mean: (weight, 1.0, bias), "are not whole numbers"),
        (lambda weight, bias, h, mean: (np.rint(weight * 1e6), 1e-6, bias), "do not fit into 8 bits"),
        (lambda weight, bias, h, mean: (codes_of(weight), weight / 0.5, bias), "one for each row, or a single number"),
        (lambda weight, bias, h, mean: (codes_of(weight), np.ones(len(bias)), bias), "one for each row"),
        (lambda weight, bias, h, mean: (codes_of(weight)[:1], 1.0, bias), "its weights have (16, 9)"),
        (lambda weight, bias, h, mean: (codes_of(weight), 1.0, bias[:, None]), "wanted is (16,)"),
        (lambda weight, bias, h, mean: (codes_of(weight), np.nan, bias), "is not finite"),
        (lambda weight, bias, h, mean: (codes_of(weight) * np.nan, 1.0, bias), "are not whole numbers"),
        (lambda weight, bias, h, mean: (codes_of(weight), "one", bias), "must be arrays of numbers"),
        (lambda weight, bias, h, mean: (codes_of(weight), 1.0, 1j * bias), "must be arrays of numbers"),
        (lambda weight, bias, h, mean: (codes_of(weight), [1.0, [2.0]], bias), "must be arrays of numbers"),
        (lambda weight, bias, h, mean: print(end=""), "three things are wanted"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_told_which(answer, message):
    with pytest.raises(CannotBeJudged) as reason:
        exercises.find("07.C").judge(answer)
    assert message in str(reason.value)
    assert exercises.challenge("07.C", answer).status == "wrong"


@pytest.mark.parametrize(("largest", "bits"), [(1, 2), (-2, 2), (3, 3), (-4, 3), (7, 4), (8, 5), (127, 8)])
def test_bytes_are_counted_from_the_codes(largest, bits):
    def answer(weight, bias, h, mean):
        codes = np.zeros(weight.shape)
        codes[0, 0] = largest
        return codes, np.ones((len(bias), 1)), bias

    score = exercises.find("07.C").judge(answer)
    packed = sum(-(-n * bits // 8) for n in (16 * 9, 32 * 144, 10 * 1568))
    assert score.columns["bytes"] == f"{packed + 8 * (16 + 32 + 10):,}"
    assert not score.passed


def _two_bits(use_gptq, bits_of_conv1=2):
    def answer(weight, bias, h, mean):
        bits = bits_of_conv1 if weight.size < 1000 else 2
        grid = qlearn.find_qparams(weight, "mse", bits=bits, symmetric=True, granularity=qlearn.PerAxis(0))
        codes = gptq.gptq_quantize(weight, h, grid) if use_gptq else qlearn.quantize(weight, grid)
        return codes, grid.scale, bias + (weight - codes * grid.scale) @ mean

    return answer


def _decibels(answer):
    score = exercises.find("07.C").judge(answer)
    return float(score.columns["logits' SQNR"].split()[0]), score.passed


def test_the_target_is_met_by_gptq_and_bits_where_they_help_and_not_by_either_alone():
    """A decibel to both sides: no processor's last bits decide."""
    (alone, no), (rich, never), (both, yes) = (
        _decibels(answer) for answer in (_two_bits(True), _two_bits(False, 8), _two_bits(True, 8))
    )
    assert (no, never, yes) == (False, False, True)
    assert max(alone, rich) < 11.5 - 1 and both > 11.5 + 1
    assert exercises.find("07.C").simple and not any(map(_passes, exercises.find("07.C").simple.values()))


def _passes(answer):
    return exercises.find("07.C").judge(answer).passed


def test_logits_that_overflow_are_far_away():
    score = exercises.find("07.C").judge(lambda weight, bias, h, mean: (codes_of(weight), 1e300, bias))
    assert not score.passed


def test_what_an_answer_changes_stays_with_it():
    def spoils(weight, bias, h, mean):
        for array in (weight, bias, h, mean):
            array[:] = 0
        return weight, 1.0, bias

    before = exercises.find("07.C").judge(exercises.find("07.C").solution)
    exercises.find("07.C").judge(spoils)
    assert exercises.find("07.C").judge(exercises.find("07.C").solution) == before


# --- in the field ----------------------------------------------------------------------------------------------------


def test_pytorch_folds_as_the_lesson_says():
    torch = pytest.importorskip("torch")
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from qlearn import nn

    model = nn.load_trained("cnn")
    theirs, ours = fuse_conv_bn_eval(model.conv1, model.bn1), nn.fold_batch_norm(model).conv1
    assert torch.allclose(theirs.weight, ours.weight, rtol=1e-5)
    assert torch.allclose(theirs.bias, ours.bias, rtol=1e-5, atol=1e-6)


def test_onnx_runtime_folds_when_it_loads_a_network(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
    constants = [
        onnx.numpy_helper.from_array(random.uniform(0.5, 1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    number = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "w"], ["z"]),
            onnx.helper.make_node("BatchNormalization", ["z", "gamma", "beta", "mean", "var"], ["y"]),
        ],
        "a convolution and its batch norm",
        [onnx.helper.make_tensor_value_info("x", number, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", number, [1, 4, 6, 6])],
        constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node] == ["Conv"]


def test_torchao_takes_bits_by_name():
    pytest.importorskip("torchao", minversion="0.18")
    import torch
    from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, quantize_

    from qlearn import nn

    model = nn.fold_batch_norm(nn.load_trained("cnn"))
    before = model.linear.weight.detach().clone()
    quantize_(model, FqnToConfig({"linear": IntxWeightOnlyConfig(torch.int3)}), filter_fn=None)
    found = model.linear.weight.dequantize()
    assert not torch.equal(found, before)
    assert max(len(row.unique()) for row in found) <= 8
