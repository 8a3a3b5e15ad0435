"""Integer arithmetic against int64, exact fractions, gemmlowp's definition and ONNX Runtime."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import qlearn
from qlearn.datasets import mnist_arrays, trained
from qlearn.integer import matmul, quantize_multiplier, requantize, sum_of_products

multipliers = st.floats(2.0**-30, 1, exclude_max=True)
accumulators = st.integers(-(2**31), 2**31 - 1)


def gemmlowp(acc: int, m: int, shift: int) -> int:
    """fixedpoint.h, line by line, in Python's integers: a truncating division by 2³¹, then RoundingDivideByPOT."""
    product = acc * m
    nudge = 2**30 if product >= 0 else 1 - 2**30
    high = abs(product + nudge) // 2**31 * (1 if product + nudge >= 0 else -1)
    mask = 2**shift - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> shift) + (1 if (high & mask) > threshold else 0)


@given(multipliers)
def test_a_multiplier_is_kept_to_31_bits(multiplier):
    m, shift = quantize_multiplier(multiplier)
    assert 2**30 <= m < 2**31
    assert abs(Fraction(m, 2 ** (31 + shift)) - Fraction(multiplier)) <= Fraction(multiplier) * Fraction(1, 2**31)


@given(st.lists(accumulators, min_size=1, max_size=20), multipliers)
def test_requantize_is_gemmlowp_s_definition(accs, multiplier):
    m, shift = quantize_multiplier(multiplier)
    ours = requantize(accs, m, shift, zero_point=0, quant_min=-(2**31), quant_max=2**31 - 1)
    assert ours.tolist() == [gemmlowp(acc, m, shift) for acc in accs]
    tensor = requantize(torch.tensor(accs), m, shift, zero_point=0, quant_min=-(2**31), quant_max=2**31 - 1)
    assert tensor.tolist() == ours.tolist()


@given(st.integers(-(2**24), 2**24), multipliers)
def test_requantize_is_within_one_of_the_exact_fraction(acc, multiplier):
    """Two roundings and a rounded multiplier: never more than one code, and one only near a tie."""
    code = int(
        requantize([acc], *quantize_multiplier(multiplier), zero_point=0, quant_min=-(2**31), quant_max=2**31 - 1)[0]
    )
    exact = acc * Fraction(multiplier)
    assert abs(code - exact) <= Fraction(1, 2) + Fraction(1, 2) + abs(exact) * Fraction(1, 2**31)
    if abs(exact - round(exact)) < Fraction(1, 4) and shift_is_large(multiplier):
        assert code == round(exact)


def shift_is_large(multiplier: float) -> bool:
    """From a shift of 4 on the first rounding moves the second by less than a sixteenth."""
    return quantize_multiplier(multiplier)[1] >= 4


@pytest.mark.parametrize("dtypes", [(np.uint8, np.int8), (np.int8, np.int8), (np.uint8, np.uint8)])
def test_matmul_equals_int64(dtypes):
    rng = np.random.default_rng(0)
    a, b = (
        rng.integers(np.iinfo(d).min, np.iinfo(d).max + 1, size=shape, dtype=d)
        for d, shape in zip(dtypes, [(2, 30, 784), (784, 20)], strict=True)
    )
    bias = rng.integers(-1000, 1000, size=20)
    expected = (a.astype(np.int64) - 7) @ (b.astype(np.int64) + 3) + bias
    ours = matmul(a, b, a_zero_point=7, b_zero_point=-3, bias=bias)
    assert ours.dtype == np.int32
    assert np.array_equal(ours, expected)
    tensor = matmul(
        torch.from_numpy(a), torch.from_numpy(b), a_zero_point=7, b_zero_point=-3, bias=torch.from_numpy(bias)
    )
    assert tensor.dtype == torch.int32
    assert np.array_equal(tensor.numpy(), expected)


def test_the_four_terms_are_the_product():
    rng = np.random.default_rng(0)
    a, b, za, zb = rng.integers(0, 256, (5, 9)), rng.integers(-128, 128, (9, 4)), 100, -5
    terms = a @ b - za * b.sum(0) - zb * a.sum(1, keepdims=True) + 9 * za * zb
    assert np.array_equal(matmul(a, b, a_zero_point=za, b_zero_point=zb), terms)


def test_zero_points_for_each_row_and_column():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (5, 9)), rng.integers(0, 256, (9, 4))
    za, zb = rng.integers(0, 256, (5, 1)), rng.integers(0, 256, (1, 4))
    assert np.array_equal(matmul(a, b, a_zero_point=za, b_zero_point=zb), (a - za) @ (b - zb))


def run(op: str, inputs: dict[str, np.ndarray], output: int) -> np.ndarray:
    types = {
        np.dtype("uint8"): TensorProto.UINT8,
        np.dtype("int8"): TensorProto.INT8,
        np.dtype("float32"): TensorProto.FLOAT,
    }
    node = helper.make_node(op, list(inputs), ["y"])
    values = [helper.make_tensor_value_info(name, types[x.dtype], x.shape) for name, x in inputs.items()]
    graph = helper.make_graph([node], op, values, [helper.make_tensor_value_info("y", output, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_matmul_equals_onnx_runtime():
    # uint8 × uint8: with int8 weights, ONNX Runtime may saturate in pairs of int16 on processors without VNNI.
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, size=shape, dtype=np.uint8) for shape in ((50, 784), (784, 30)))
    inputs = {"a": a, "b": b, "a_zero_point": np.uint8(12), "b_zero_point": np.uint8(131)}
    theirs = run("MatMulInteger", {k: np.asarray(v) for k, v in inputs.items()}, TensorProto.INT32)
    assert np.array_equal(matmul(a, b, a_zero_point=12, b_zero_point=131), theirs)


def test_a_requantized_layer_equals_onnx_runtime_s_but_for_ties():
    """ONNX Runtime rescales in float: the same code, or its neighbour where the exact value is near a tie."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, size=shape, dtype=np.uint8) for shape in ((200, 784), (784, 30)))
    scales = {"a_scale": np.float32(0.004), "b_scale": np.float32(0.003), "y_scale": np.float32(0.09)}
    inputs = {
        "a": a, "a_scale": scales["a_scale"], "a_zero_point": np.uint8(12),
        "b": b, "b_scale": scales["b_scale"], "b_zero_point": np.uint8(131),
        "y_scale": scales["y_scale"], "y_zero_point": np.uint8(100),
    }  # fmt: skip
    theirs = run("QLinearMatMul", {k: np.asarray(v) for k, v in inputs.items()}, TensorProto.UINT8).astype(int)
    acc = matmul(a, b, a_zero_point=12, b_zero_point=131)
    multiplier = float(scales["a_scale"]) * float(scales["b_scale"]) / float(scales["y_scale"])
    ours = requantize(acc, *quantize_multiplier(multiplier), zero_point=100, quant_min=0, quant_max=255)
    differ = ours != theirs
    exact = acc[differ] * multiplier
    assert np.abs(ours - theirs).max(initial=0) <= 1
    # The first of the two integer roundings is worth 2^−shift of a code at most, float32's rescaling less.
    distance = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
    assert distance.max(initial=0) <= 2.0 ** -quantize_multiplier(multiplier)[1]
    print(f"{np.count_nonzero(differ)} of {differ.size} codes differ")


def quantized_network(weight_bits):
    """The shipped network with unsigned codes: per layer codes, int32 bias, the three quantizers."""
    network, inputs = trained("mlp"), qlearn.choose_qparams(np.float32(0), np.float32(1))
    x = mnist_arrays().calibration.images.reshape(-1, 784) / np.float32(255)
    layers = []
    for name in ("linear1", "linear2", "linear3"):
        weight, bias = network[f"{name}.weight"], network[f"{name}.bias"]
        x = x @ weight.T + bias
        x = x if name == "linear3" else np.maximum(x, 0)
        weights = qlearn.find_qparams(weight, bits=weight_bits)
        outputs = qlearn.choose_qparams(x.min(), x.max())
        step = float(inputs.scale) * float(weights.scale)
        layers.append(
            (qlearn.quantize(weight, weights).T, np.rint(bias / step).astype(np.int32), inputs, weights, outputs)
        )
        inputs = outputs
    return layers


@pytest.mark.parametrize("weight_bits", [8, 7])
def test_a_network_on_all_test_digits_equals_onnx_runtime_s_but_for_ties(weight_bits, capsys):
    """Every layer gets the same input codes. Both sides round to a code; only near a tie may they disagree.

    QLinearMatMul takes no bias, so a layer's bias enters as one more input, of code z_x + 1, in as many pieces as fit
    into a weight's code: the accumulators stay the same.
    """
    digits = mnist_arrays().test
    codes = digits.images.reshape(-1, 784)
    for number, (weight, bias, inputs, weights, outputs) in enumerate(quantized_network(weight_bits), start=1):
        acc = matmul(codes, weight, a_zero_point=inputs.zero_point, b_zero_point=weights.zero_point, bias=bias)
        multiplier = float(inputs.scale) * float(weights.scale) / float(outputs.scale)
        m, shift = quantize_multiplier(multiplier)
        ours = requantize(acc, m, shift, zero_point=outputs.zero_point, quant_min=0, quant_max=255)

        a, b = with_bias_as_inputs(codes, weight, bias, int(inputs.zero_point), int(weights.zero_point), 2**weight_bits)
        given = {
            "a": a, "a_scale": inputs.scale, "a_zero_point": np.uint8(inputs.zero_point),
            "b": b, "b_scale": weights.scale, "b_zero_point": np.uint8(weights.zero_point),
            "y_scale": outputs.scale, "y_zero_point": np.uint8(outputs.zero_point),
        }  # fmt: skip
        theirs = run("QLinearMatMul", {k: np.asarray(v) for k, v in given.items()}, TensorProto.UINT8).astype(int)

        assert np.array_equal(matmul(a, b, a_zero_point=inputs.zero_point, b_zero_point=weights.zero_point), acc), (
            "the two sides do not add up the same"
        )
        differ = ours != theirs
        assert np.abs(ours - theirs).max() <= 1
        # A tie of the real value. The first of our two roundings moves it by half of 2^−shift of a code at most, the
        # rounded multiplier by 2⁻³¹ of it; theirs rounds a float32 product: 2⁻²³ of a value below 2⁸ codes, doubled
        # because its own multiplier is a rounded float32 quotient.
        distance = [
            abs(abs(exact - int(exact)) - Fraction(1, 2))
            for exact in (int(value) * Fraction(multiplier) for value in acc[differ])
        ]
        assert max(distance, default=0) <= 2.0 ** -(shift + 1) + 2.0**8 * (2.0**-31 + 2 * 2.0**-23)
        # What is left of double rounding is one code in 2^(shift + 1): more would be a bug.
        assert differ.mean() < 2 * 2.0 ** -(shift + 1)
        with capsys.disabled():
            print(
                f"\n  layer {number}, {weight_bits}-bit weights: {differ.sum()} of {differ.size:,} codes differ", end=""
            )
        codes = ours.astype(np.uint8)
    assert (codes.argmax(axis=1) == digits.labels).mean() > 0.975


def with_bias_as_inputs(codes, weight, bias, x_zero_point, w_zero_point, levels):
    """Codes and weights with further inputs whose products add up to the bias.

    An input as far from z_x as it can be, times a whole number of steps; then an input one step from z_x for the rest.
    """
    up = 1 if x_zero_point < 128 else -1
    far = (255 if up > 0 else 0) - x_zero_point
    lowest, highest = -w_zero_point, levels - 1 - w_zero_point
    rows, columns = [], []
    for step in (far, up):
        rest = bias - sum((s * column for s, column in zip(rows, columns, strict=True)), np.zeros_like(bias))
        wanted = np.trunc(rest / step).astype(int)
        while wanted.any():
            piece = np.clip(wanted, lowest, highest)
            rows.append(step)
            columns.append(piece)
            wanted = wanted - piece
    extra = np.tile(np.array(rows, int) + x_zero_point, (len(codes), 1)).astype(np.uint8)
    return np.hstack([codes, extra]), np.vstack([weight, (np.array(columns) + w_zero_point).astype(np.uint8)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: matmul(np.ones((2, 3)), np.ones((3, 2), int)),
            TypeError,
            "a has dtype float64: it must hold integer codes",
        ),
        (
            lambda: matmul(np.ones((2, 3), int), np.ones((2, 3), int)),
            ValueError,
            r"a has shape \(2, 3\), b has shape \(2, 3\)",
        ),
        (
            lambda: matmul(np.zeros((0, 3), int), np.ones((3, 2), int)),
            ValueError,
            r"a is empty \(shape \(0, 3\)\): wanted is at least one integer",
        ),
        (
            lambda: matmul(np.full((1, 70_000), 255), np.full((70_000, 1), 127)),
            ValueError,
            r"sums of K=70000 products can reach 2266950000, beyond int32's 2147483647: .* K must be at most 66311",
        ),
        (lambda: matmul([[1]], [[1]], bias=[0.7]), TypeError, "bias has dtype float64: .* Divide it by scale_a"),
        (lambda: matmul([[1]], [[1]], a_zero_point=1.5), TypeError, "a_zero_point has dtype float64"),
        (
            lambda: matmul([[0, -3]], [[1], [3]], bias=np.int32([-(2**31)])),
            ValueError,
            "sums of K=2 products can reach",
        ),
        (lambda: quantize_multiplier(1.0), ValueError, "multiplier=1.0 must be larger than 0 and smaller than 1"),
        (lambda: quantize_multiplier([0.5, -0.1]), ValueError, "multiplier=-0.1 must be larger than 0"),
        (lambda: quantize_multiplier(2.0**-40), ValueError, "cannot be written with a shift of 0 to 31"),
        (
            lambda: requantize([0.5], 2**30, 0, zero_point=0, quant_min=0, quant_max=1),
            TypeError,
            "accumulators are integers",
        ),
        (
            lambda: requantize([1], 5, 0, zero_point=0, quant_min=0, quant_max=1),
            ValueError,
            "take both from quantize_multiplier",
        ),
        (lambda: requantize([2**31], 2**30, 0, zero_point=0, quant_min=0, quant_max=1), ValueError, "outside int32"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The ends of what is allowed, from both sides.


@pytest.mark.parametrize(
    ("a", "b"),
    [((3,), (3, 2)), ((2, 3), (3,)), ((3,), (3,)), ((2, 3), (2, 3)), ((4, 2, 3), (4, 2, 3)), ((), (3, 2))],
)
def test_a_product_is_of_two_matrices_that_fit(a, b):
    with pytest.raises(ValueError, match=r"wanted are \(…, M, K\) and \(…, K, N\)"):
        matmul(np.ones(a, int), np.ones(b, int))


def test_each_argument_must_be_codes():
    ones = np.ones((2, 2), int)
    for name, call in {
        "a": lambda: matmul(ones / 1, ones),
        "b": lambda: matmul(ones, ones / 1),
        "a_zero_point": lambda: matmul(ones, ones, a_zero_point=0.5),
        "b_zero_point": lambda: matmul(ones, ones, b_zero_point=[0.5]),
        "bias": lambda: matmul(ones, ones, bias=[0.5, 0.5]),
    }.items():
        with pytest.raises(TypeError, match=f"^{name} has dtype float64: it must hold integer") as error:
            call()
        assert ("Divide it by scale_a · scale_b and round." in str(error.value)) == (name == "bias")


@pytest.mark.parametrize("shapes", [((0, 3), (3, 2)), ((2, 3), (3, 0)), ((2, 0), (0, 2))])
def test_nothing_has_no_product(shapes):
    with pytest.raises(ValueError, match=r"^[ab] is empty \(shape"):
        matmul(*(np.ones(shape, int) for shape in shapes))


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_may_reach_the_last_number_of_int32_and_no_further(sign):
    most = 2**31 - 1
    a, b = np.array([[sign * 65535, sign]]), np.array([[32768], [32767]])  # their bound is 2 · 65535 · 32768
    assert matmul(a[:, :1], b[:1], bias=[sign * (most - 65535 * 32768)]).tolist() == [[sign * most]]
    with pytest.raises(ValueError, match=f"sums of K=1 products can reach {most + 1}, beyond int32's {most}"):
        matmul(a[:, :1], b[:1], bias=[sign * (most - 65535 * 32768 + 1)])
    with pytest.raises(ValueError, match=rf"of K=2 products can reach {2 * 65535 * 32768}, .* K must be at most 1\.$"):
        matmul(a, b)
    with pytest.raises(ValueError, match=r"of K=1 products can reach 2147483658, .* K must be at most 0\.$"):
        matmul([[1]], [[sign]], bias=[sign * (most + 10)])
    with pytest.raises(ValueError, match=r"of K=1 products can reach 2147483657, .* K must be at most 0\.$"):
        matmul([[0]], [[sign]], bias=[sign * (most + 10)])
    with pytest.raises(ValueError, match=rf"of K=3 products can reach {3 * 10**9 + 7}, .* K must be at most 2\.$"):
        matmul([[1000, 0, 0]], [[0], [-1_000_000], [0]], bias=[-7])


def test_a_zero_point_may_be_any_whole_number():
    a, b = np.array([[3, 5]], np.uint8), np.array([[2], [7]], np.uint8)
    for one in (1, np.int64(1), np.uint8(1), np.array(1), np.array([[1]])):
        assert matmul(a, b, a_zero_point=one).tolist() == [[2 * 2 + 4 * 7]]
        assert matmul(a, b, b_zero_point=one).tolist() == [[3 * 1 + 5 * 6]]
    assert matmul(torch.from_numpy(a), torch.from_numpy(b), a_zero_point=torch.tensor(1)).tolist() == [[32]]


@pytest.mark.parametrize(
    ("multiplier", "m", "shift"),
    [
        (0.5, 2**30, 0),
        (0.25, 2**30, 1),
        (0.75, 3 * 2**29, 0),
        (2.0**-32, 2**30, 31),  # the smallest there is
        (2.0**-31 * (1 - 2.0**-40), 2**30, 30),  # rounded up to the next power of two
        (0.5 * (1 - 2.0**-40), 2**30, 0),
        (0.25 * (1 - 2.0**-32), 2**30, 1),  # a half, away from zero
        (0.25 * (1 - 3 * 2.0**-33), 2**31 - 1, 2),
        (1 - 2.0**-31, 2**31 - 1, 0),
        (1 - 2.0**-32, 2**31 - 1, 0),  # would be 2³¹, and there is no further place
        (1 - 2.0**-53, 2**31 - 1, 0),  # the largest float64 below 1
    ],
)
def test_multipliers_by_hand(multiplier, m, shift):
    assert quantize_multiplier(multiplier) == (m, shift)
    assert [type(number) for number in quantize_multiplier(multiplier)] == [int, int]
    many, shifts = quantize_multiplier([[0.3, multiplier]])
    assert (many.tolist(), shifts.tolist()) == ([[1288490189, m]], [[1, shift]])
    assert many.dtype == shifts.dtype == np.int64


@pytest.mark.parametrize("multiplier", [0.0, -0.5, 1.0, 1.5, 2.0**-33, 2.0**-32 * (1 - 2.0**-30)])
def test_multipliers_that_cannot_be_written_are_named(multiplier):
    for numbers in (multiplier, [0.5, multiplier], torch.tensor([0.5, multiplier], dtype=torch.float64)):
        with pytest.raises(ValueError, match=f"multiplier={multiplier} "):
            quantize_multiplier(numbers)


FREE = {"zero_point": 0, "quant_min": -(2**31), "quant_max": 2**31 - 1}


@pytest.mark.parametrize(("m", "shift"), [(2**30, 0), (2**31 - 1, 31), (2**30, 31), (2**31 - 1, 0)])
def test_every_m_and_shift_that_quantize_multiplier_gives_is_taken(m, shift):
    accs = [-(2**31), -3, 0, 5, 2**31 - 1]
    wanted = [gemmlowp(acc, m, shift) for acc in accs]
    assert requantize(accs, m, shift, **FREE).tolist() == wanted
    assert requantize(accs, np.full(5, m), np.full(5, shift), **FREE).tolist() == wanted
    assert requantize(torch.tensor(accs), m, shift, **FREE).dtype == torch.int32


@pytest.mark.parametrize(("m", "shift"), [(2**30 - 1, 0), (2**31, 0), (2**30, -1), (2**30, 32), (-(2**30), 0)])
def test_others_are_refused(m, shift):
    for numbers in ((m, shift), (np.array([2**30, m]), shift), (m, np.array([0, shift]))):
        with pytest.raises(ValueError, match="take both from quantize_multiplier"):
            requantize([1, 1], *numbers, **FREE)


@pytest.mark.parametrize("acc", [2**31, -(2**31) - 1])
def test_one_sum_outside_int32_is_enough(acc):
    with pytest.raises(ValueError, match="outside int32: they have wrapped"):
        requantize([0, acc], 2**30, 0, **FREE)


def test_the_zero_point_comes_before_the_clamp():
    codes = requantize([-100, -12, -2, 0, 6, 50], 2**30, 0, zero_point=3, quant_min=-3, quant_max=7)
    assert codes.tolist() == [-3, -3, 2, 3, 6, 7]
    assert requantize([-100, 6], 2**30, 0, zero_point=3, quant_min=3, quant_max=7).tolist() == [3, 6]  # with a ReLU


def test_of_several_wrong_multipliers_the_first_is_named():
    with pytest.raises(ValueError, match="multiplier=-0.1 must be larger than 0"):
        quantize_multiplier([0.5, -0.1, 7.0])


def test_the_last_halves_go_away_from_zero():
    assert requantize([-6, -2, 0, 2, 6], 2**30, 1, **FREE).tolist() == [-2, -1, 0, 1, 2]


def test_the_largest_bias_counts():
    with pytest.raises(ValueError, match="of K=1 products can reach 2147483648"):
        matmul([[1]], [[1, 1]], bias=[0, 2**31 - 1])


# --- integers that travel as floats -----------------------------------------------------------------------------------


def test_sums_that_float32_cannot_hold_are_exact():
    """Odd sums beyond 2²⁴ are no float32: they are added up in pieces, the zero points of all rows in each of them."""
    a, b = np.full((2, 701), 255, np.uint8), np.full((701, 1), 127, np.int8)
    assert matmul(a, b).tolist() == [[701 * 255 * 127]] * 2
    zero_points = np.array([[0], [3]])
    assert matmul(a, b, a_zero_point=zero_points).tolist() == [[701 * 255 * 127], [701 * 252 * 127]]
    columns = np.arange(701).reshape(-1, 1) % 3  # a zero point for each place in the sum is cut with the codes
    wanted = int(((b.astype(np.int64) - columns) * 255).sum())
    assert matmul(a, b, b_zero_point=columns).tolist() == [[wanted]] * 2


def test_a_piece_is_never_one_product_too_long():
    """673 · 97 · 257 = 2²⁴ + 1: so many products are one too many."""
    a, b = np.full((1, 1346), 97, np.int16), np.full((1346, 1), 257, np.int16)
    assert matmul(a, b).tolist() == [[2 * (2**24 + 1)]]


def test_codes_too_wide_for_float32_are_exact():
    assert matmul([[32769, 3]], [[32767], [5]]).tolist() == [[32769 * 32767 + 15]]
    assert matmul([[7, 7]], [[0], [0]], a_zero_point=7).tolist() == [[0]]


def test_the_bound_is_that_of_the_codes_without_their_zero_points():
    assert matmul([[40_000]], [[100_000]], a_zero_point=30_000).tolist() == [[10**9]]
    assert matmul([[60_000]], [[100_000]], a_zero_point=np.array([[60_000]])).tolist() == [[0]]
    with pytest.raises(ValueError, match="can reach 3000000000, beyond int32"):
        matmul([[0], [10]], [[30_000_000]], a_zero_point=np.array([[100], [10]]))


def test_a_bound_that_is_known_is_not_looked_for():
    a, b = [[46_000, 0]], [[46_000], [46_000]]
    with pytest.raises(ValueError, match="can reach"):
        matmul(a, b)
    assert matmul(a, b, largest_sum=46_000**2).tolist() == [[46_000**2]]


@pytest.mark.parametrize(
    ("types", "depth", "wanted"),
    [
        (("uint8", "int8"), 4, ["float32"]),
        (("uint8", "int8"), 2000, ["float32"] * 4),  # 2000 · 255 · 127 is three times 2²⁴, and more
        (("int64", "int8"), 4, ["float64"]),
        (("uint8", "int16"), 4, ["float64"]),
        (("int32", "int32"), 2000, ["float64"]),
    ],
)
def test_pytorch_multiplies_wide_codes_as_float64(types, depth, wanted):
    """Its products of float32 may be of TF32 or bfloat16, by `set_float32_matmul_precision`; NumPy's are not."""
    seen = []

    def multiply(a, b):
        seen.append(str(a.dtype).removeprefix("torch."))
        assert a.dtype == b.dtype
        return a @ b

    a, b = (np.full(size, n, kind) for size, n, kind in zip([(1, depth), (depth, 1)], [255, 127], types, strict=True))
    for made in ((torch.from_numpy(a), torch.from_numpy(b)), (a, b)):
        sums = sum_of_products(multiply, made, (0, 0), (-1, -2), depth * 255 * 127)
        assert int(sums[0, 0]) == depth * 255 * 127
    pieces = -(-depth * 255 * 127 // (2**24 - 1))
    assert seen == wanted + ["float32"] * pieces
