"""Finite data stay finite, at both ends of every type; and NumPy's error flags, switched on, find nothing to raise."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

import qlearn
from qlearn import (
    PerAxis,
    PerGroup,
    QParams,
    QuantConfig,
    block_scales,
    codebooks,
    dequantize,
    errors,
    fake_quantize,
    find_qparams,
    find_range,
    formats,
    gptq,
    observers,
    quantize,
    ranges,
)
from qlearn import nn as qnn
from qlearn.arrays import saturate
from qlearn.sorted_view import SortedView
from strategies import codes_of

F32, F64 = np.finfo(np.float32), np.finfo(np.float64)
TYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64, "bfloat16": np.float32}


def numbers(dtype: str) -> st.SearchStrategy[float]:
    """Finite numbers of the type, 0, its ends and its smallest number more often than chance has it."""
    info = np.finfo(TYPES[dtype])
    largest = 2.0**127 if dtype == "bfloat16" else float(info.max)
    special = st.sampled_from([0.0, largest, -largest, float(info.tiny), float(info.smallest_subnormal)])
    return special | st.floats(-largest, largest, width=info.bits)


@st.composite
def tensors(draw):
    """NumPy arrays and tensors of any float type, in any size of numbers."""
    dtype = draw(st.sampled_from(list(TYPES)))
    x = draw(hnp.arrays(TYPES[dtype], st.integers(1, 12), elements=numbers(dtype)))
    if dtype == "bfloat16":
        return torch.from_numpy(x).to(torch.bfloat16)
    return torch.from_numpy(x) if draw(st.booleans()) else x


def finite(x) -> bool:
    return bool(np.isfinite(np.asarray(x.detach().double() if torch.is_tensor(x) else x, dtype=np.float64)).all())


@given(tensors(), codes_of(st.integers(1, 16)))
def test_finite_data_stay_finite_and_zero_stays_zero(x, codes):
    qparams = find_qparams(x, **codes)
    x_hat = fake_quantize(x, qparams)
    assert x_hat.dtype == x.dtype
    assert finite(x_hat)
    assert finite(dequantize(quantize(x, qparams), qparams))
    zero = fake_quantize(0 * x[:1], qparams)
    assert float(zero[0]) == 0
    if torch.is_tensor(x):
        assert torch.equal(qnn.straight_through(x, qparams), x_hat)


@given(tensors(), st.floats(F64.smallest_subnormal, F64.max), st.integers(0, 255))
def test_a_scale_that_the_type_cannot_hold_does_no_harm(x, scale, zero_point):
    for held in (scale, np.float64(scale), np.full(1, scale)):
        qparams = QParams(held, zero_point if np.ndim(held) == 0 else np.full(1, zero_point), 0, 255)
        codes = quantize(x, qparams)
        assert finite(fake_quantize(x, qparams))
        assert finite(dequantize(codes, qparams))
    if not float(F32.smallest_subnormal) <= scale <= float(F32.max):
        wide = np.asarray(x.double() if torch.is_tensor(x) else x, np.float64)
        with np.errstate(over="ignore", under="ignore"):
            exact = np.clip(np.rint(wide / scale) + zero_point, 0, 255)
        assert np.array_equal(np.asarray(codes), exact)


@pytest.fixture(scope="module")
def onnx_session():
    real, code = TensorProto.FLOAT, TensorProto.UINT8
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "q",
        [info("x", real, [None]), info("scale", real, []), info("zero_point", code, [])],
        [info("y", code, [None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@given(hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_codes_of_large_values_equal_onnx_runtime_s(onnx_session, x):
    qparams = find_qparams(x)
    # ONNX Runtime casts rint(x / scale) to int32 before it clamps, so it is asked where that fits.
    assume(np.abs(x / np.float64(qparams.scale)).max() < 2**31 - 1000)
    inputs = {"x": x, "scale": np.asarray(qparams.scale), "zero_point": np.asarray(qparams.zero_point, np.uint8)}
    assert np.array_equal(quantize(x, qparams), onnx_session.run(None, inputs)[0])


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_end_ticks_are_clamped_to_the_type(make):
    x = make(np.float32([F32.min, 0, F32.max]))
    x_hat = fake_quantize(x, find_qparams(x, bits=2))  # ticks at −⁴⁄₃, −⅔, 0 and ⅔ of the largest number
    assert x_hat.tolist() == pytest.approx([-F32.max, 0, 2 / 3 * F32.max], rel=1e-6)
    half = make(np.float16([-65504, 0, 65504]))
    assert fake_quantize(half, find_qparams(half, bits=2)).tolist() == pytest.approx([-65504, 0, 43680], rel=1e-3)


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_what_saturates_may_be_of_a_wider_type(make):
    x = make(np.float32([1.5, np.inf, -np.inf]))
    for dtype in ("float16", "float32", "float64"):
        wanted = min(float(np.finfo(dtype).max), float(F32.max))
        y = saturate(x, getattr(torch, dtype) if torch.is_tensor(x) else np.dtype(dtype))
        assert str(y.dtype).endswith(dtype)
        assert y.tolist() == [1.5, wanted, -wanted]


def test_the_type_of_the_ticks():
    codes = np.array([0, 3])
    assert dequantize(codes, QParams(np.array(2), 1, 0, 7)).dtype == np.float64
    assert dequantize(codes, QParams(np.array(2), 1, 0, 7)).tolist() == [-2.0, 4.0]
    assert dequantize(torch.tensor(codes), QParams(torch.tensor(2), 1, 0, 7)).dtype == torch.float32
    assert dequantize(np.array([65535]), QParams(np.float16(0.5), 0, 0, 65535)).tolist() == [32768]
    assert dequantize(np.array([65535]), QParams(np.float16(8), 0, 0, 65535)).tolist() == [65504]
    assert dequantize(codes, QParams(torch.tensor(0.5).bfloat16(), 0, 0, 7)).tolist() == [0.0, 1.5]


def test_codes_of_32_bits_saturate_and_never_wrap():
    qparams = QParams(1e-9, 0, -(2**31), 2**31 - 1)
    x = np.float32([9.0, -9.0, 0.0])
    assert quantize(x, qparams).tolist() == [2**31 - 1, -(2**31), 0]
    assert quantize(torch.from_numpy(x), qparams).tolist() == [2**31 - 1, -(2**31), 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_layers_of_the_largest_numbers(dtype):
    top = torch.finfo(dtype).max
    x = torch.tensor([[-top, 0, top, 1]], dtype=dtype)
    layer = torch.nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
        layer.bias.copy_(torch.tensor([-1.0, 1, 1e4, 0]))
    layer = layer.to(dtype)
    static = qnn.convert(qnn.calibrate(qnn.prepare(layer), x, progress=False))
    dynamic = qnn.convert(qnn.prepare(layer, activations=QuantConfig(method="dynamic")))
    trained = qnn.calibrate(qnn.prepare_qat(layer), x, progress=False)
    for model in (static, dynamic, trained):
        y = model(x).detach()
        assert y.dtype == dtype
        assert finite(y)
        assert float(y[0, 2]) > 0.98 * top


@pytest.mark.parametrize("rule", block_scales.RULES)
@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_mx_blocks_of_the_largest_numbers(rule, make):
    x = make(np.float32([[F32.max, 1.0, -F32.max, 2e38] * 8]))
    for format in (formats.E2M1, formats.E4M3, formats.E5M2):
        scale = block_scales.mx_scale(x, format, rule=rule)
        assert finite(formats.cast(x, format, scale))
    # In FP4, twice 2^126 would be 2^128: it is float32's largest number instead.
    assert float(formats.decode(make([7]), formats.E2M1, 2.0**127)[0]) == F32.max
    assert float(codebooks.decode(make([1]), [0.0, 6.0], 2.0**127)[0]) == F32.max


def test_reserved_codes_stay_infinite():
    x = formats.decode([124, 252, 125], formats.E5M2, 1e-300)
    assert x.tolist()[:2] == [math.inf, -math.inf]
    assert math.isnan(x[2])


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e-45, 1e-40, 1e-38, 1.0, 3e38, 1e300, F64.max])
def test_nvfp4_scales_of_any_size(size, make):
    for dtype in (np.float32, np.float64):
        if not float(np.finfo(dtype).smallest_subnormal) <= size <= float(np.finfo(dtype).max):
            continue
        x = np.full((1, 48), size, dtype)
        x[0, :16] /= 3
        x[0, 32:] = 0
        scale = np.asarray(block_scales.nvfp4_scale(make(x)))
        assert (scale > 0).all() and np.isfinite(scale).all()
        if 1e-30 < size < 1e30:
            assert scale[0, 1] == pytest.approx(size / 6, rel=1e-6)
    assert block_scales.mx_scale(np.full((1, 32), 5e-324))[0, 0] == 2.0**-127  # not 1, and not ½


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1)
)
def test_between_two_numbers_lies_no_infinity(below, above, t):
    below, above = sorted((below, above))
    found = ranges.between(below, above, t)
    assert below - 1e-300 <= found <= above + 1e-300 + 1e-15 * abs(above)


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
@pytest.mark.parametrize("constant", [0.01, 0.5, 1.0])
def test_a_moving_average_of_opposite_ends(make, constant):
    observer = observers.MovingAverageObserver(averaging_constant=constant)
    for sign in (1, -1):
        observer.observe(make(sign * np.float32([F32.max, 0.5 * F32.max])))
    share = 1 - 2 * constant
    assert [float(end) for end in observer.range()] == pytest.approx(
        [((1 - constant) * 0.5 - constant) * F32.max, (1 - constant) * F32.max - constant * 0.5 * F32.max], rel=1e-6
    )
    assert share <= 1
    assert ranges.percentile(np.array([-F64.max, F64.max]), percentile=75)[1] == pytest.approx(F64.max / 2)


# Errors beyond what float64 can square


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e-45, 1.0, 1e100, 1e200, F64.max])
def test_errors_of_any_size(size):
    x, x_hat = np.array([size, -size, 0.0]), np.array([size, size, 0.0])
    assert errors.sqnr_db(x, x_hat) == pytest.approx(-10 * math.log10(2), abs=1e-9)
    assert errors.sqnr_db(x, -x) == pytest.approx(-20 * math.log10(2), abs=1e-9)
    exact = 4 * Fraction(size) ** 2 / 3
    assert errors.mse(x, x_hat) == pytest.approx(float(min(exact, Fraction(sys.float_info.max))), rel=1e-15)
    qparams = QParams(size if size > 1e-300 else 1e-300, 0, 0, 1)
    report = errors.report(x, qparams)
    assert report.max_error == size
    assert (
        report.clipping == pytest.approx(float(min(exact / 4, Fraction(sys.float_info.max))), rel=1e-15)
        or size < 1e-300
    )
    assert math.isfinite(report.mse) and math.isfinite(report.sqnr_db)


def test_a_tiny_error_beside_a_large_value_is_an_error():
    assert math.isfinite(errors.sqnr_db([1.0, 1e-200], [1.0, 0.0]))
    assert errors.sqnr_db([1.0, 1e-200], [1.0, 0.0]) == pytest.approx(4000)
    assert errors.sqnr_db([1e300, 1e-300], [1e300, 0.0]) == pytest.approx(12000)
    assert errors.mse([1e300], [0.0]) == sys.float_info.max
    assert errors.report(np.array([F64.max]), QParams(1.0, 0, -7, 7)).max_error == F64.max
    assert gptq.output_error([[1e200]], [[0.0]], [[1.0]]) == sys.float_info.max


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1.0, 1e200, 1.7e308])
def test_levels_of_any_size(size):
    x = size * np.array([0.0, 0.01, 0.98, 1.0])
    for levels in (codebooks.kmeans(x, 2), codebooks.optimal(x, 2), codebooks.kmeans(x, 2, start=[0.0, size])):
        assert levels / size == pytest.approx([0.005, 0.99])


# The nearest level, exactly


@st.composite
def encodings(draw):
    """Values on and beside the middles between levels, where rounding would decide."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    levels = sorted(draw(st.lists(st.floats(-4, 4, allow_subnormal=False), min_size=2, max_size=6)))
    scale = draw(st.one_of(st.just(1.0), st.floats(1e-3, 1e3), st.sampled_from([0.1, 0.25, 3.0])))
    middles = [(a + b) / 2 * scale for a in levels for b in levels]
    near = dtype(draw(st.lists(st.sampled_from(middles), min_size=1, max_size=6)))
    steps = draw(st.integers(-2, 2))
    for _ in range(abs(steps)):
        near = np.nextafter(near, dtype(math.copysign(100, steps)) * np.ones_like(near))
    return near, levels, scale


@given(encodings(), st.booleans(), st.booleans())
def test_codes_are_of_the_nearest_level_exactly(encoding, tensor, blocks):
    x, levels, scale = encoding
    given_scale = np.array([scale]) if blocks else scale
    found = codebooks.encode(torch.from_numpy(x) if tensor else x, levels, given_scale)
    for value, code in zip(x, found, strict=True):
        quotient = Fraction(float(value)) / Fraction(scale)
        distances = [abs(quotient - Fraction(level)) for level in levels]
        assert int(code) == distances.index(min(distances))


def test_a_middle_that_float32_would_round():
    levels = [0.0, 1.0 + 2.0**-23]
    above = np.float32(0.5 + 2.0**-24)  # exactly the middle
    assert codebooks.encode(np.float32([above, np.nextafter(above, np.float32(1))]), levels).tolist() == [0, 1]
    assert codebooks.encode(np.float32([0.1, 0.2]), [-1.0, 0.3, 0.3, 0.3], 0.5).tolist() == [1, 1]


# np.seterr(all="raise")


def mixed(dtype, *extremes):
    x = np.random.default_rng(0).standard_normal(1024).astype(dtype)
    x[: len(extremes)] = extremes
    return x


MIXED = {
    "tiny float32": mixed(np.float32, 1e-25, 1e-40, 1e-45, -1e-40),
    "huge float32": mixed(np.float32, 1e30, F32.max, F32.min, 1e-40),
    "tiny float64": mixed(np.float64, 1e-25, 1e-200, 5e-324, -1e-310),
    "float16": mixed(np.float16, 6e-8, 65504, -65504, 1e-5),
    "subnormal float32": (np.random.default_rng(0).standard_normal(1024) * 1e-40).astype(np.float32),
}


@pytest.fixture
def raising():
    with np.errstate(all="raise"):
        yield


@pytest.mark.parametrize("x", MIXED.values(), ids=MIXED)
def test_ranges_raise_no_flags(x, raising):
    rows = x.reshape(32, 32)
    for method in ranges.METHODS:
        for codes in ({}, {"symmetric": True, "bits": 4}):
            lo, hi = find_range(rows, method, **codes)
            assert np.isfinite([lo, hi]).all()
            assert finite(fake_quantize(x, find_qparams(rows, method, **codes)))
    for method in ("min_max", "percentile", "mse"):
        for granularity in (PerAxis(0), PerGroup(16)):
            qparams = find_qparams(rows, method, bits=4, granularity=granularity)
            assert finite(fake_quantize(rows, qparams))


@pytest.mark.parametrize("x", MIXED.values(), ids=MIXED)
def test_quantizing_and_measuring_raise_no_flags(x, raising):
    for scale in (0.1, 1e-30, 1e30, 1e-300, 1e300):
        qparams = QParams(scale, 3, 0, 255)
        assert finite(dequantize(quantize(x, qparams), qparams))
        report = errors.report(x, qparams)
        assert all(math.isfinite(n) for n in (report.mse, report.rounding, report.clipping, report.max_error))
        for format in (formats.FLOAT32, formats.BFLOAT16, formats.E4M3, formats.E2M1):
            assert finite(formats.cast(x, format, scale))
        assert finite(codebooks.decode(codebooks.encode(x, [-1.0, 0.0, 0.5], scale), [-1.0, 0.0, 0.5], scale))
    rows = x.reshape(32, 32)
    for scale in (block_scales.nvfp4_scale(rows), block_scales.max_scale(rows, 6.0, PerGroup(32))):
        assert finite(formats.cast(rows, formats.E2M1, scale))
    for rule in block_scales.RULES:
        assert finite(formats.cast(rows, formats.E2M1, block_scales.mx_scale(rows, rule=rule)))
    assert finite(codebooks.kmeans(x, 4))
    assert finite(codebooks.optimal(x[:100], 4))
    weight = x[:64].reshape(4, 16)
    gptq.gptq_quantize(weight, np.eye(16) + 0.1, find_qparams(weight, symmetric=True, bits=4, granularity=PerAxis(0)))


@pytest.mark.parametrize("x", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("method", observers.KINDS)
def test_observers_raise_no_flags(x, method, raising):
    def observed(batch):
        return observers.make_observer(QuantConfig(method=method)).observe(batch)

    observer = observed(x)
    if method == "moving_average":
        observer.observe(-x)
    else:
        observer = observer.merge(observed(-x))
    assert finite(fake_quantize(x, observer.qparams()))


@pytest.mark.parametrize("explore", ["explore_affine", "explore_ranges", "explore_granularity", "explore_formats"])
def test_explorers_raise_no_flags(explore, raising):
    x = MIXED["tiny float32"].reshape(32, 32)
    explorer = getattr(qlearn.widgets, explore)(x)
    explorer.reset()
    assert all(not math.isnan(number) for number in explorer.numbers.values())


def test_large_values_are_looked_at_once_and_bad_ones_are_found():
    x = np.full(300_000, 1e30, np.float32)
    assert (quantize(x, QParams(1e28, 0, 0, 255)) == 100).all()
    x[[200_000, 299_999]] = np.nan, np.inf
    with pytest.raises(ValueError, match="x holds 2 values that are not finite; the first is nan at index 200000"):
        quantize(x, QParams(1e28, 0, 0, 255))


def test_large_values_take_as_long_as_others(monkeypatch):
    """Each value is looked at once or twice, however large it is; not once for every piece of the array."""
    from qlearn import affine

    looked = []
    ask = affine.all_finite
    monkeypatch.setattr(affine, "all_finite", lambda x: looked.append(x.size) or ask(x))
    monkeypatch.setattr(affine, "check_finite", lambda x: looked.append(x.size))
    x = np.full(1 << 20, 1e30, np.float32)
    quantize(x, QParams(1e28, 0, 0, 255))
    assert sum(looked) == x.size


@pytest.mark.parametrize("method", ["mse", "cross_entropy", "entropy", "min_max", "percentile"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_logits_of_the_largest_numbers_have_a_range(method, symmetric):
    x = np.random.default_rng(0).uniform(-1, 1, (20, 5)) * 1.7e308
    x[0, 0], x[0, 1] = np.finfo(np.float64).max, np.finfo(np.float64).min
    for bits in (2, 4, 8) if symmetric else (1, 2, 4, 8):
        with np.errstate(all="raise"):
            lo, hi = find_range(x, method, bits=bits, symmetric=symmetric)
        assert -np.inf < lo <= 0 <= hi < np.inf and lo < hi


def test_a_sorted_view_is_no_other_than_quantize_where_x_cannot_hold_the_scale():
    x = np.float32([-1e-45, 0.0, 1e-45, 1.0, 2.0])
    for scale in (1e-300, 1e-60, 1e300):
        q = QParams(scale, 1, 0, 7)
        counts = np.bincount(quantize(x, q), minlength=8)
        with np.errstate(all="raise"):
            assert np.array_equal(SortedView(x).measure(q).counts, counts)
