"""Lesson 10: what learners write is told the truth; the challenge judges the file; what the lesson says is so."""

from __future__ import annotations

import json
import logging
import math
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_name)

import qlearn  # noqa: E402
from qlearn import PerAxis, QuantConfig, exercises, gguf_blocks, nn  # noqa: E402
from qlearn.affine import QParams  # noqa: E402
from qlearn.exercises import lesson_10  # noqa: E402
from qlearn.exercises.challenges import CannotBeJudged  # noqa: E402
from qlearn.exercises.lesson_10 import RIGHT, SMALL, judge, ship, wanted_speed  # noqa: E402

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "10_shipping_it.ipynb"


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What a limit of time must not interrupt: the first export imports much."""
    lesson_10._shipped()


# --- right answers that look different -------------------------------------------------------------------------------


def qdq_by_integers(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    codes = np.rint(x / x_scale).astype(np.int64) + x_zero_point
    sums = (codes.clip(0, 255) - x_zero_point) @ w_codes.T.astype(np.int64) + bias_codes
    return x_scale * w_scale * sums


def qdq_by_loops(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    y = np.zeros((len(x), len(w_codes)))
    for n, row in enumerate(x):
        for o, weights in enumerate(w_codes):
            acc = int(bias_codes[o])
            for value, weight in zip(row, weights, strict=True):
                acc += (min(255, max(0, round(value / x_scale) + x_zero_point)) - x_zero_point) * int(weight)
            y[n, o] = acc * x_scale * w_scale[o]
    return y


def qdq_by_qlearn(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    x_hat = qlearn.fake_quantize(x, QParams(x_scale, x_zero_point, 0, 255))
    w_hat = qlearn.dequantize(w_codes, QParams(w_scale.reshape(-1, 1), 0, -128, 127))
    return np.einsum("ni,oi->no", x_hat, w_hat) + bias_codes * x_scale * w_scale


def qdq_in_float32(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    return qdq_by_integers(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes).astype(np.float32)


def even_by_a_formula(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    below = 2 * inputs * outputs * bandwidth - (inputs + outputs) * value_bytes * operations
    return math.ceil(inputs * outputs * weight_bytes * operations / below) if below > 0 else math.inf


def even_by_a_loop(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    if 2 * inputs * outputs / operations <= (inputs + outputs) * value_bytes / bandwidth:
        return float("inf")
    n = 1
    while 2 * n * inputs * outputs / operations < (
        (inputs * outputs * weight_bytes + n * (inputs + outputs) * value_bytes) / bandwidth
    ):
        n += 1
    return n


def block_by_struct(block):
    d, *rest = struct.unpack("<e16B", block.tobytes())
    return np.array([d * ((b & 15) - 8) for b in rest] + [d * ((b >> 4) - 8) for b in rest])


def block_by_division(block):
    d = np.frombuffer(block[:2].tobytes(), dtype=np.float16).astype(np.float32)
    low, high = block[2:] % 16, block[2:] // 16
    return d * (np.hstack([low, high]).astype(np.int8) - 8)


def block_by_qlearn(block):
    return gguf_blocks.dequantize_q4_0(block)


def merged_by_counting(bins, counts):
    total = Counter()
    for own, many in zip(bins, counts, strict=True):
        total.update(dict(zip(own.tolist(), many.tolist(), strict=True)))
    keys = sorted(total)
    return np.array(keys, dtype=np.int64), np.array([total[k] for k in keys], dtype=np.int64)


def merged_by_a_loop(bins, counts):
    every = np.array(sorted({int(b) for own in bins for b in own}), dtype=np.int64)
    sums = [sum(many[own == b].sum() for own, many in zip(bins, counts, strict=True)) for b in every]
    return every, np.array(sums, dtype=np.int64)


def merged_by_bincount(bins, counts):
    every, place = np.unique(np.concatenate(bins), return_inverse=True)
    return every, np.bincount(place, np.concatenate(counts), len(every)).astype(np.int64)


@pytest.mark.parametrize(
    ("exercise_id", "attempt"),
    [
        ("10.1", qdq_by_integers),
        ("10.1", qdq_by_loops),
        ("10.1", qdq_by_qlearn),
        ("10.1", qdq_in_float32),
        ("10.2", even_by_a_formula),
        ("10.2", even_by_a_loop),
        ("10.3", block_by_struct),
        ("10.3", block_by_division),
        ("10.3", block_by_qlearn),
        ("10.4", merged_by_counting),
        ("10.4", merged_by_a_loop),
        ("10.4", merged_by_bincount),
    ],
)
def test_right_answers_in_other_words(exercise_id, attempt, monkeypatch):
    monkeypatch.setattr(exercises.shelf, "IN_THE_NETWORK", 2.0)  # a loop over 1.6 million weights is right, and told so
    result = exercises.check(exercise_id, attempt)
    assert result.status == "correct", result.message
    assert "raised" not in result.message


# --- wrong answers as learners write them ----------------------------------------------------------------------------


def codes_of(x, s, z):
    return np.clip(np.rint(x / s) + z, 0, 255)


def half_up(x, s, z, w, ws, b):
    return (np.clip(np.floor(x / s + 0.5) + z, 0, 255) - z) * s @ (w * ws[:, None]).T + b * s * ws


def wraps(x, s, z, w, ws, b):
    with np.errstate(invalid="ignore"):
        codes = (np.rint(x / s) + z).astype(np.int32).astype(np.uint8)
    return (codes.astype(int) - z) * s @ (w * ws[:, None]).T + b * s * ws


def unclipped(x, s, z, w, ws, b):
    return np.rint(x / s) * s @ (w * ws[:, None]).T + b * s * ws


def in_bytes(x, s, z, w, ws, b):
    codes = codes_of(x, s, z).astype(np.uint8)
    return (codes - np.uint8(z)) * s @ (w * ws[:, None]).T + b * s * ws


def renamed(function):
    """Learners keep the stub's names; the short ones here are for the eye."""

    def attempt(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
        return function(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes)

    return attempt


def even(function):
    def attempt(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
        return function(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth)

    return attempt


def nibbles(block):
    return np.concatenate([block[2:] & 15, block[2:] >> 4])


def d_of(block):
    return float(block[:2].view(np.float16)[0])


@pytest.mark.parametrize(
    ("exercise_id", "attempt", "message"),
    [
        ("10.1", renamed(half_up), "rounds halves to the even number"),
        ("10.1", renamed(wraps), "wrapped around: clip"),
        ("10.1", renamed(unclipped), "Codes end at 0 and 255"),
        ("10.1", renamed(in_bytes), "uint8 has no negative numbers"),
        (
            "10.1",
            renamed(lambda x, s, z, w, ws, b: (codes_of(x, s, z) - z) * s @ (w * ws).T + b * s * ws),
            "one entry for each output",
        ),
        (
            "10.1",
            renamed(lambda x, s, z, w, ws, b: (codes_of(x, s, z) - z) * s @ (w * ws[:, None]) + b * s * ws),
            "Weights have shape (O, I)",
        ),
        (
            "10.1",
            renamed(lambda x, s, z, w, ws, b: (codes_of(x, s, z) * s - z) @ (w * ws[:, None]).T + b * s * ws),
            "take it off before",
        ),
        (
            "10.1",
            renamed(lambda x, s, z, w, ws, b: (codes_of(x, s, z) - z) * s @ (w * ws[:, None]).T + b),
            "still codes",
        ),
        ("10.1", renamed(lambda x, s, z, w, ws, b: (codes_of(x, s, z) - z) @ w.T + b), "Those are the integer sums"),
        ("10.1", renamed(lambda x, s, z, w, ws, b: x @ (w * ws[:, None]).T + b * s * ws), "never quantized"),
        (
            "10.1",
            renamed(lambda x, s, z, w, ws, b: ((codes_of(x, s, z) - z) @ w.T + b * s * ws) * (s * ws)),
            "The bias is scaled twice",
        ),
        (
            "10.1",
            renamed(lambda x, s, z, w, ws, b: (codes_of(x, s, z) - z) * s @ ((w - z) * ws[:, None]).T + b * s * ws),
            "belongs to x alone",
        ),
        (
            "10.1",
            renamed(lambda x, s, z, w, ws, b: ((codes_of(x, s, z) - z) @ w.T + b - z) * (s * ws)),
            "belongs to x alone",
        ),
        ("10.1", renamed(lambda *all_: torch.as_tensor(qdq_by_integers(*all_))), "a NumPy array is wanted"),
        ("10.2", even(lambda i, o, w, v, p, b: np.ceil(w * p / (2 * b))), "are moved as well"),
        ("10.2", even(lambda *all_: even_by_a_formula(*all_) - 1), "other values"),
        (
            "10.2",
            even(
                lambda i, o, w, v, p, b: (
                    np.floor(i * o * w * p / (2 * i * o * b - (i + o) * v * p))
                    if 2 * i * o * b > (i + o) * v * p
                    else np.inf
                )
            ),
            "the last batch that is still bound by memory",
        ),
        (
            "10.2",
            even(
                lambda i, o, w, v, p, b: (
                    math.ceil(i * o * w / b / (2 * i * o / p - (i + o) * v / b))
                    if 2 * i * o / p != (i + o) * v / b
                    else np.inf
                )
            ),
            "A batch is never negative",
        ),
        ("10.2", even(lambda i, o, w, v, p, b: math.ceil(p / b)), "the ridge of the roofline"),
        ("10.2", even(lambda *all_: np.inf), "other values"),
        ("10.2", even(lambda i, o, w, v, p, b: even_by_a_formula(i, o, w, v, b, p)), "yours are mixed up"),
        ("10.2", even(lambda i, o, w, v, p, b: even_by_a_formula(i, o, w, v, 1 / p, 1 / b)), "or multiplied"),
        (
            "10.2",
            even(lambda i, o, w, v, p, b: max(1, math.ceil(i * o * w / b / (2 * i * o / p - (i + o) * v / b)))),
            "no batch is large enough",
        ),
        (
            "10.2",
            even(lambda i, o, w, v, p, b: math.ceil(i * o * w / b / abs(2 * i * o / p - (i + o) * v / b))),
            "no batch is large enough",
        ),
        ("10.3", lambda block: block[:2].view(np.float16)[0] * (nibbles(block) - 8), "3 − 8 becomes 251"),
        ("10.3", lambda block: d_of(block) * (nibbles(block) - 8), "3 − 8 becomes 251"),
        ("10.3", lambda block: d_of(block) * nibbles(block), "take 8 off"),
        (
            "10.3",
            lambda block: d_of(block) * (np.stack([block[2:] & 15, block[2:] >> 4], 1).ravel().astype(int) - 8),
            "You lay neighbours into one byte",
        ),
        ("10.3", lambda block: nibbles(block).astype(int) - 8, "Those are the codes"),
        ("10.3", lambda block: block[:2].view(np.float16) * (nibbles(block).astype(np.int8) - 8), "rounded once more"),
        ("10.3", lambda block: float(block[:2].view(">f2")[0]) * (nibbles(block).astype(int) - 8), "low byte of d"),
        ("10.3", lambda block: [d_of(block) * (int(c) - 8) for c in nibbles(block)], "a NumPy array is wanted"),
        ("10.4", lambda bins, counts: (bins[0], sum(counts)), "add what has the same number"),
        (
            "10.4",
            lambda bins, counts: (np.unique(np.concatenate(bins)), np.sum([c.sum() for c in counts])),
            "returned a int64; a NumPy array is wanted",
        ),
        ("10.4", lambda bins, counts: (np.concatenate(bins), np.concatenate(counts)), "is there twice"),
        ("10.4", lambda bins, counts: np.unique(np.concatenate(bins), return_counts=True), "how many workers"),
        ("10.4", lambda bins, counts: merged_by_counting(bins, counts)[1], "Return both"),
        ("10.4", lambda bins, counts: merged_by_counting(bins, counts)[::-1], "first the bins"),
        (
            "10.4",
            lambda bins, counts: (lambda b, c: (b, c.astype(float)))(*merged_by_counting(bins, counts)),
            "floats, which count to 2^53",
        ),
    ],
)
def test_wrong_answers_in_a_learners_words(exercise_id, attempt, message):
    with np.errstate(all="ignore"):
        result = exercises.check(exercise_id, attempt)
    assert result.status == "wrong"
    assert message in result.message, result.message


@pytest.mark.parametrize("exercise_id", ["10.1", "10.2", "10.3", "10.4", "10.C"])
def test_no_hint_is_the_solution(exercise_id):
    exercise = exercises.find(exercise_id)
    lines = [line.strip().removeprefix("return ") for line in exercises.solution_source(exercise_id).splitlines()[1:]]
    assert len(exercise.hints) == 3
    assert not any(len(line) > 12 and line in hint for line in lines for hint in exercise.hints)


def test_what_is_done_with_an_answer_is_said_in_numbers():
    def said(exercise_id):
        return exercises.check(exercise_id, exercises.find(exercise_id).solution).message

    assert "of 2,000 held-out digits are read as ONNX Runtime" in said("10.1")
    same = int(said("10.1").split("three layers: ")[1].split(" of")[0].replace(",", ""))
    assert same >= 1998
    here = said("10.2")
    assert "your break-even is a batch of" in here and "with codes of 8 bits" in here
    assert "55,776 blocks of the language model's 29 linear layers" in said("10.3")
    assert "to the last bit that of one worker who saw all" in said("10.4")


def test_a_measurement_may_disagree_with_a_prediction():
    """From 1 to 32 examples the time grows 2 times, then in step with the batch; or always in step."""
    assert "\nAs predicted" in lesson_10._direction(32, 1.0, 2.0, 8.0)
    assert "\nNot as predicted" in lesson_10._direction(32, 1.0, 32.0, 128.0)


@pytest.mark.parametrize(
    ("found", "said", "measured"),
    [(np.inf, "at no batch", False), (4000.0, "4,000", False), (2.0, "a batch of 2", True)],
)
def test_only_batches_that_fit_are_measured(found, said, measured):
    message = lesson_10._measured_here(lambda *_: found)
    assert said in message
    assert ("roofline     measured" in message) == measured


# --- the challenge ---------------------------------------------------------------------------------------------------


def reached(score):
    size, right = score.columns["bytes"], score.columns["accuracy"]
    return int(size.replace(",", "")), float(right.split()[0]), float(score.columns["times as quick"])


def test_the_target_leaves_room_on_both_sides():
    size, right, times = reached(judge(ship))
    assert size <= SMALL - 1500 and right >= RIGHT + 0.1 and times >= wanted_speed()
    found = {name: reached(judge(answer)) for name, answer in lesson_10.CHALLENGE.simple.items()}
    assert found["weights and inputs 8 bits"][0] > SMALL + 10_000
    for name in ("weights 4 bits, inputs 8", "weights 4 bits"):
        assert found[name][0] < SMALL and found[name][1] > RIGHT
        assert found[name][2] < 0.9 * wanted_speed()


class Two(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2]


class Untraceable(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] * (1 if float(x.sum()) > 0 else 2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda model, images: None, "returned a NoneType"),
        (lambda model, images: model.state_dict(), "must return a network"),
        (lambda model, images: nn.prepare(model), "only prepared, so call nn.convert first"),
        (lambda model, images: nn.convert(nn.prepare(model, activations=QuantConfig(method="dynamic"))), "run time"),
        (lambda model, images: Untraceable(), "cannot be written"),
        (lambda model, images: Two(), "wanted are 10 logits"),
    ],
)
def test_what_breaks_a_rule_cannot_be_judged(answer, message):
    with pytest.raises(CannotBeJudged) as refused:
        judge(answer)
    assert message in str(refused.value)


def test_what_an_answer_does_to_its_surroundings_is_not_believed(monkeypatch):
    def patched(model, images):
        monkeypatch.setattr(nn, "export_onnx", lambda *_: 1)
        monkeypatch.setattr("qlearn.nn.engines.session_of", lambda *_: None)
        return nn.convert(nn.calibrate(nn.prepare(model), images, progress=False))

    size, right, _ = reached(judge(patched))
    assert size > SMALL and right > RIGHT


def test_a_processor_without_quick_products_asks_for_less(monkeypatch):
    assert wanted_speed() in (lesson_10.TIMES, lesson_10.TIMES_WITHOUT)
    monkeypatch.setattr("qlearn.nn.processor.instructions", lambda: ("AVX2",))
    assert wanted_speed() == lesson_10.TIMES_WITHOUT
    monkeypatch.setattr("qlearn.nn.processor.instructions", lambda: ("AVX2", "AVX-512 VNNI"))
    assert wanted_speed() == lesson_10.TIMES


# --- what the lesson says, and no cell compares ----------------------------------------------------------------------


def cell_with(text):
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]]
    (source,) = [source for source in cells if text in source]
    return source


def test_without_compressed_tensors_its_cell_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    exec(cell_with("def read_by_compressed_tensors("), {"nn": nn, "packed": tmp_path})
    assert capsys.readouterr().out == "Not here: pip install compressed-tensors.\n"
    assert logging.root.manager.disable == logging.NOTSET  # remarks of others are heard again


def test_channels_of_zeros_change_no_code():
    """The CNN behind three channels of zeros has the codes of the CNN, and gives the same."""
    known = {"torch": torch}
    exec(cell_with("class WithZeros").split("\n\n\nfilled = ")[0], known)
    x = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def converted(model):
        return nn.convert(nn.calibrate(nn.prepare(model), x, progress=False))

    plain = converted(nn.fold_batch_norm(nn.load_trained("cnn")))
    filled = converted(known["WithZeros"](nn.fold_batch_norm(nn.load_trained("cnn"))).eval())
    assert torch.equal(filled.network.conv1.weight_codes[:, :1], plain.conv1.weight_codes)
    assert not filled.network.conv1.weight_codes[:, 1:].any()
    assert torch.equal(filled(x), plain(x))


def test_four_bit_codes_have_no_integer_product(tmp_path):
    """ "No *QGemm*": ONNX Runtime turns codes of 4 bits into floats before each product."""
    import onnxruntime

    for bits, products in ((8, 2), (4, 0)):
        config = QuantConfig(bits=bits, symmetric=True, granularity=PerAxis(0))
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
        x = torch.rand(16, 64)
        net = nn.convert(nn.calibrate(nn.prepare(net, config), x, progress=False))
        nn.export_onnx(net, tmp_path / "net.onnx", (64,))
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
        session.run(None, {"input": x.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
        ran = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
        assert ran.count("QGemm") == products, ran
        assert ("DequantizeLinear" in ran) == (bits == 4)
