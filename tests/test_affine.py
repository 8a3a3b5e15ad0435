"""choose_qparams, quantize, dequantize and fake_quantize do what their docstrings say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qlearn
from qlearn import QParams, choose_qparams, dequantize, fake_quantize, find_qparams, quantize
from qlearn.affine import align
from strategies import arrays, codes_of, moderate

EPS = np.finfo(np.float32).eps


@given(arrays(), codes_of())
def test_error_is_at_most_half_a_step(x, codes):
    qparams = find_qparams(x, **codes)
    error = np.abs(x.astype(np.float64) - fake_quantize(x, qparams))
    # Asymmetric: lo and hi may both lie up to half a step beyond the shifted grid. The rest is float32 rounding
    # of x / scale and of the product, relative to the largest value.
    rounding = 4 * EPS * np.abs(x).max()
    assert error.max() <= 0.5 * qparams.scale * (1 if codes["symmetric"] else 2) + rounding


@given(arrays(), codes_of())
def test_inside_the_ticks_the_error_is_half_a_step_even_if_asymmetric(x, codes):
    qparams = find_qparams(x, **codes)
    inside = ~qlearn.errors.clipped(x, qparams)
    error = np.abs(x.astype(np.float64) - fake_quantize(x, qparams))[inside]
    assert error.size == 0 or error.max() <= 0.5 * qparams.scale + 4 * EPS * np.abs(x).max()


@given(moderate, moderate, codes_of(st.integers(1, 16)))
def test_zero_is_exact(a, b, codes):
    qparams = choose_qparams(min(a, b), max(a, b), **codes)
    zero = quantize(np.zeros(1, dtype=np.float32), qparams)
    assert zero[0] == qparams.zero_point
    assert dequantize(zero, qparams)[0] == 0.0


@given(arrays(), codes_of(st.integers(1, 16)))
def test_codes_stay_inside_their_limits_and_keep_the_order(x, codes):
    qparams = find_qparams(x / 2, **codes)  # a range of half the size, so that some values saturate
    q = quantize(x, qparams)
    assert q.min() >= qparams.quant_min
    assert q.max() <= qparams.quant_max
    order = np.argsort(x, axis=None)
    assert (np.diff(q.reshape(-1)[order].astype(int)) >= 0).all()


@given(arrays(), codes_of())
def test_quantizing_twice_changes_nothing(x, codes):
    qparams = find_qparams(x, **codes)
    once = fake_quantize(x, qparams)
    assert np.array_equal(fake_quantize(once, qparams), once)


@given(arrays(), codes_of(st.integers(1, 16)))
def test_numpy_and_torch_give_the_same_bits(x, codes):
    ours, theirs = find_qparams(x, **codes), find_qparams(torch.from_numpy(x), **codes)
    assert float(ours.scale) == float(theirs.scale)
    assert ours.zero_point == theirs.zero_point
    q, t = quantize(x, ours), quantize(torch.from_numpy(x), theirs)
    assert str(t.dtype) == f"torch.{q.dtype}"
    assert np.array_equal(q, t.numpy())
    assert np.array_equal(dequantize(q, ours), dequantize(t, theirs).numpy())
    assert dequantize(q, ours).dtype == np.float32


@given(st.data())
def test_blocks_equal_one_call_for_each_block(data):
    x = data.draw(arrays(dims=3))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    qparams = find_qparams(x, granularity=qlearn.PerAxis(axis))
    whole = quantize(x, qparams)
    for i in range(x.shape[axis]):
        part = np.take(x, i, axis)
        assert np.array_equal(np.take(whole, i, axis), quantize(part, find_qparams(part)))


@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_groups_equal_one_call_for_each_group(group_size):
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    qparams = find_qparams(x, bits=3, granularity=qlearn.PerGroup(group_size))
    assert qparams.scale.shape == (4, 6 // group_size)
    groups = x.reshape(-1, group_size)
    each = [fake_quantize(group, find_qparams(group, bits=3)) for group in groups]
    assert np.array_equal(fake_quantize(x, qparams), np.reshape(each, x.shape))


def test_large_arrays_are_cut_into_slabs_without_a_seam():
    x = np.random.default_rng(0).normal(size=(3, 100_003)).astype(np.float32)
    qparams = find_qparams(x)
    formula = np.clip(np.round(x / np.float32(qparams.scale)) + qparams.zero_point, 0, 255).astype(np.uint8)
    assert np.array_equal(quantize(x, qparams), formula)
    per_row = find_qparams(x, granularity=qlearn.PerAxis(0))
    assert np.array_equal(quantize(x, per_row)[1], quantize(x[1], find_qparams(x[1])))
    assert np.array_equal(quantize(x[:, ::2], qparams), quantize(x, qparams)[:, ::2])


@pytest.mark.parametrize(
    ("lo", "hi", "bits", "scale", "zero_point"),
    [
        (-1.0, 3.0, 8, 4 / 255, 64),  # not 64.0 − 128: codes start at 0
        (-1.0, 2.0, 8, 3 / 255, 85),
        (-1.5, 2.8, 8, 4.3 / 255, 89),
        (10.0, 11.0, 8, 11 / 255, 0),  # widened down to 0
        (-11.0, -10.0, 8, 11 / 255, 255),  # widened up to 0
        (0.0, 0.0, 8, 1.0, 0),
        (-1.0, 1.0, 1, 2.0, 0),  # rint(0.5): half to even
    ],
)
def test_asymmetric_qparams_by_hand(lo, hi, bits, scale, zero_point):
    qparams = choose_qparams(lo, hi, bits=bits)
    assert qparams.scale == pytest.approx(scale, rel=1e-15)
    assert qparams.zero_point == zero_point


@pytest.mark.parametrize(
    ("narrow_range", "scale", "limits"),
    [(True, 4 / 127, (-127, 127)), (False, max(4 / 128, 3 / 127), (-128, 127))],
)
def test_symmetric_qparams_by_hand(narrow_range, scale, limits):
    qparams = choose_qparams(-4.0, 3.0, symmetric=True, narrow_range=narrow_range)
    assert qparams.scale == pytest.approx(scale, rel=1e-15)
    assert (qparams.quant_min, qparams.quant_max) == limits
    assert qparams.zero_point == 0


@given(moderate, moderate, st.integers(1, 16), arrays())
def test_signed_asymmetric_codes_are_the_same_ticks_counted_from_below(a, b, bits, x):
    usual = choose_qparams(min(a, b), max(a, b), bits=bits)
    signed = choose_qparams(min(a, b), max(a, b), bits=bits, signed=True)
    half = 2 ** (bits - 1)
    assert (signed.quant_min, signed.quant_max) == (-half, half - 1)
    assert (signed.scale, signed.zero_point) == (usual.scale, usual.zero_point - half)
    assert np.array_equal(quantize(x, signed).astype(int) + half, quantize(x, usual))
    assert np.array_equal(fake_quantize(x, signed), fake_quantize(x, usual))


def test_signed_changes_no_symmetric_codes_and_is_true_or_false():
    assert choose_qparams(-1.0, 3.0, symmetric=True, signed=True) == choose_qparams(-1.0, 3.0, symmetric=True)
    with pytest.raises(TypeError, match="signed=1 must be True or False"):
        choose_qparams(-1.0, 3.0, signed=1)


def test_a_range_far_from_zero_survives():
    x = np.array([10.0, 10.5, 11.0])
    assert np.abs(fake_quantize(x, find_qparams(x)) - x).max() <= 11 / 255 / 2


def test_out_of_range_values_saturate_and_never_wrap():
    qparams = QParams(0.005, 0, -127, 127)
    x = np.array([0.9, -0.9, 3e38, -3e38, 1e30], dtype=np.float32)
    assert quantize(x, qparams).tolist() == [127, -127, 127, -127, 127]
    assert quantize(torch.from_numpy(x), qparams).tolist() == [127, -127, 127, -127, 127]


@pytest.mark.parametrize("hi", [3e38, 1e-38, 1e-44, 1e-45])
def test_extreme_ranges_give_a_finite_quantizer(hi):
    x = np.array([0, hi / 2, hi], dtype=np.float32)
    qparams = find_qparams(x)
    assert np.isfinite(qparams.scale)
    assert qparams.scale > 0
    assert quantize(x, qparams)[0] == 0


@pytest.mark.parametrize(
    ("limits", "dtype"),
    [
        ((0, 255), "uint8"),
        ((-128, 127), "int8"),
        ((0, 1023), "int16"),
        ((-32767, 32767), "int16"),
        ((0, 65535), "int32"),
    ],
)
def test_codes_take_the_smallest_type_that_holds_them(limits, dtype):
    qparams = QParams(1.0, 0, *limits)
    assert quantize(np.array([0.0, 1e9]), qparams).dtype == dtype
    assert quantize(np.array([0.0, 1e9]), qparams)[1] == limits[1]
    assert quantize(torch.tensor([0.0, 1e9]), qparams).tolist() == [0, limits[1]]


def test_shapes_and_types_of_the_result():
    qparams = QParams(0.5, 1, 0, 7)
    assert quantize(0.25, qparams) == 1
    assert fake_quantize(np.float16([1.1]), qparams).dtype == np.float16
    assert fake_quantize(torch.tensor([1.1], dtype=torch.bfloat16), qparams).dtype == torch.bfloat16
    assert fake_quantize([[1, 2], [3, 4]], qparams).tolist() == [[1, 2], [3, 3]]
    leaf = torch.ones(3, requires_grad=True)
    assert not fake_quantize(leaf, qparams).requires_grad
    assert dequantize(quantize(np.ones(2, np.float32), qparams), QParams(np.float32(0.5), 1, 0, 7)).dtype == np.float32


def test_the_scale_is_stored_in_the_data_s_type():
    assert find_qparams(np.ones(3, dtype=np.float32)).scale.dtype == np.float32
    assert find_qparams(np.ones(3, dtype=np.float16)).scale.dtype == np.float32
    assert find_qparams(torch.ones(3, dtype=torch.bfloat16)).scale.dtype == torch.float32
    assert isinstance(choose_qparams(-1.0, 1.0).scale, float)


def test_inputs_are_left_alone():
    x = np.linspace(-1, 1, 11, dtype=np.float32)
    before = x.copy()
    x.flags.writeable = False
    quantize(x, find_qparams(x, bits=3))
    assert np.array_equal(x, before)


# What is wrong is said, with where and what would be right.

FINITE = "x holds 2 values that are not finite; the first is {} at index {}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("call", [lambda x: quantize(x, QParams(1.0, 0, 0, 3)), qlearn.find_range, find_qparams])
def test_nan_and_infinity_are_named_and_placed(bad, make, call):
    x = np.zeros((300, 700), dtype=np.float32)
    x[217, 3] = x[299, 699] = bad
    with pytest.raises(ValueError) as error:
        call(make(x))
    assert FINITE.format(bad, (217, 3)) in str(error.value)


def test_one_bad_number_is_said_in_the_singular():
    with pytest.raises(ValueError, match="x holds 1 value that is not finite; the first is nan at index 1"):
        quantize([0.0, np.nan], QParams(1.0, 0, 0, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize([], QParams(1.0, 0, 0, 3)), r"x is empty \(shape \(0,\)\): it needs at least one value"),
        (lambda: find_qparams(np.zeros((3, 0))), r"x is empty \(shape \(3, 0\)\)"),
        (lambda: choose_qparams(-1, 1, bits=0), "bits=0 must be a whole number from 1 to 16"),
        (lambda: choose_qparams(-1, 1, bits=17), "bits=17 must be a whole number from 1 to 16"),
        (lambda: choose_qparams(-1, 1, bits=1, symmetric=True), "bits=1 must be a whole number from 2 to 16"),
        (lambda: choose_qparams(-1, 1, bits=4.0), "bits=4.0 must be a whole number from 1 to 16"),  # type: ignore[arg-type]
        (lambda: choose_qparams(-1, 1, bits=True), "bits=True must be a whole number"),
        (lambda: choose_qparams(2.0, 1.0), "lo=2.0 is larger than hi=1.0: a range needs lo <= hi"),
        (lambda: choose_qparams(np.nan, 1.0), "lo holds 1 value that is not finite; the first is nan"),
        (lambda: choose_qparams(np.zeros(2), np.ones(3)), r"lo has shape \(2,\), hi has shape \(3,\)"),
        (lambda: QParams(0.0, 0, 0, 255), r"scale=0.0 must be larger than 0"),
        (lambda: QParams(1.0, 300, 0, 255), "zero_point=300 lies outside the codes 0 … 255"),
        (lambda: QParams(1.0, 0, 7, 7), "quant_min=7 must be smaller than quant_max=7"),
        (lambda: QParams(np.ones(2), np.zeros(3, int), 0, 3), r"zero_point has shape \(3,\), scale has shape \(2,\)"),
        (
            lambda: quantize(np.zeros((4, 6)), QParams(np.ones((3, 1)), 0, 0, 3)),
            r"scale has shape \(3, 1\), x has shape \(4, 6\)",
        ),
        (lambda: quantize(np.zeros((4, 6)), QParams(np.ones(6), 0, 0, 3)), r"scale needs as many axes as x"),
    ],
)
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(np.array([True]), QParams(1.0, 0, 0, 3)), "x has dtype bool: it must hold real numbers"),
        (lambda: quantize(np.array([1j]), QParams(1.0, 0, 0, 3)), "x has dtype complex128"),
        (lambda: quantize(["a"], QParams(1.0, 0, 0, 3)), "x has dtype <U1"),
        (lambda: dequantize(np.array([0.5]), QParams(1.0, 0, 0, 3)), "codes have dtype float64: they must be integers"),
        (lambda: QParams(1.0, 0.5, 0, 3), "zero_point has dtype float64: it is a code, so it must be an integer"),
        (lambda: QParams(1.0, 0, 0.0, 3), "quant_min=0.0 is a code, so it must be a whole number"),
        (lambda: QParams(1.0, 0, 0, True), "quant_max=True is a code, so it must be a whole number"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_limits_may_be_numpy_s_integers():
    qparams = QParams(1.0, 0, np.int8(-128), np.int8(127))
    assert (qparams.bits, qparams.code_dtype) == (8, "int8")
    assert qparams == QParams(1.0, 0, -128, 127)


def test_quantizers_are_equal_if_their_numbers_are():
    scale = np.float32([[0.5], [0.1]])
    one = QParams(scale, np.int32([[0], [3]]), 0, 7)
    same = [
        QParams(scale.copy(), np.int64([[0], [3]]), 0, 7),
        QParams(torch.tensor(scale), torch.tensor([[0], [3]]), 0, 7),
    ]
    assert all(one == other and hash(one) == hash(other) for other in same)
    others = [
        QParams(scale + 1, np.int32([[0], [3]]), 0, 7),
        QParams(scale, np.int32([[0], [2]]), 0, 7),
        QParams(scale, np.int32([[0], [3]]), 0, 8),
        QParams(scale.T, np.int32([[0, 3]]), 0, 7),
    ]
    assert not any(one == other for other in others)
    assert one != "a quantizer"
    assert QParams(1.0, 0, 0, 3) == QParams(np.float32(1), np.int8(0), 0, 3)


# The ends of what numbers can be, and what no average case shows.


@pytest.mark.parametrize("make", [np.float32, np.float64])
def test_one_bit_spans_the_whole_type(make):
    ends = np.finfo(make)
    qparams = choose_qparams(ends.min, ends.max, bits=1)  # twice the largest number apart: the scale is cut to it
    assert (qparams.scale, qparams.zero_point) == (ends.max, 1)
    assert fake_quantize(np.array([ends.min, 0, ends.max]), qparams).tolist() == [-ends.max, 0, 0]


def test_a_subnormal_scale_leaves_the_zero_point_among_the_codes():
    """float32 has no number between 1.4e-45 and 2.8e-45: the rounded scale makes −lo / scale 357."""
    qparams = choose_qparams(np.float32(-5e-43), np.float32(0))
    assert qparams.scale == np.float32(1e-45)
    assert qparams.zero_point == 255
    assert quantize(np.float32([-5e-43, 0]), qparams).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("lo", "hi", "kind"),
    [
        (-1.0, 1.0, float),
        (-1, 1, float),
        (np.float64(-1), np.float64(1), np.float64),
        (np.float32(-1), np.float32(1), np.float32),
        (np.float64(-1), 1.0, np.float64),
        (-1.0, np.float64(1), np.float64),
        (np.float32(-1), 1.0, np.float64),
    ],
)
def test_python_numbers_give_python_numbers_and_others_their_own_type(lo, hi, kind):
    qparams = choose_qparams(lo, hi)
    assert type(qparams.scale) is kind
    assert type(qparams.zero_point) is int


def test_one_bad_entry_of_an_array_is_enough():
    for scale in ([[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [-1.0]]):
        with pytest.raises(ValueError, match="must be larger than 0"):
            QParams(np.array(scale), 0, 0, 3)
    for zero_point in ([[0], [4]], [[-1], [0]], [[4], [3]], [[3], [-1]]):
        with pytest.raises(ValueError, match="lies outside the codes 0 … 3"):
            QParams(np.ones((2, 1)), np.array(zero_point), 0, 3)
    with pytest.raises(ValueError, match="lo=3.0 is larger than hi=2.0"):
        choose_qparams(np.array([0.0, 1.0, 3.0]), np.array([1.0, 1.0, 2.0]))


def test_the_first_and_the_last_code_may_be_zero_points():
    assert [QParams(1.0, code, 0, 3).zero_point for code in (0, 3)] == [0, 3]
    assert QParams(1.0, 0, 0, 1).bits == 1  # the fewest codes there are


@pytest.mark.parametrize("field", ["scale", "zero_point", "quant_min", "quant_max"])
def test_a_quantizer_does_not_change(field):
    with pytest.raises(AttributeError, match="cannot assign to field"):
        setattr(QParams(1.0, 0, 0, 3), field, 1)


def test_values_have_the_type_of_the_scale_or_the_library_s_own():
    codes = np.array([0, 7], np.uint8)
    assert dequantize(codes, QParams(0.5, 1, 0, 7)).dtype == np.float64
    assert dequantize(torch.from_numpy(codes), QParams(0.5, 1, 0, 7)).dtype == torch.float32
    for scale, ours, theirs in (
        (np.float32(0.5), np.float32, torch.float32),
        (np.float64(0.5), np.float64, torch.float64),
    ):
        assert dequantize(codes, QParams(scale, 1, 0, 7)).dtype == ours
        assert dequantize(torch.from_numpy(codes), QParams(scale, 1, 0, 7)).dtype == theirs
    # Whole numbers come back as floats: their nearest ticks need not be whole.
    assert fake_quantize(np.array([1, 4]), QParams(1.5, 0, 0, 7)).tolist() == [1.5, 4.5]


@pytest.mark.parametrize(
    ("limits", "dtype", "bits"),
    [
        ((0, 255), "uint8", 8),
        ((0, 256), "int16", 9),
        ((-1, 127), "int8", 8),
        ((-128, 127), "int8", 8),
        ((-129, 127), "int16", 9),
        ((-1, 128), "int16", 8),
        ((-32768, 32767), "int16", 16),
        ((-32769, 0), "int32", 16),
        ((0, 32768), "int32", 16),
        ((-(2**31), 2**31 - 1), "int32", 32),
    ],
)
def test_the_type_of_codes_at_its_own_ends(limits, dtype, bits):
    qparams = QParams(1.0, 0, *limits)
    assert (qparams.code_dtype, qparams.bits) == (dtype, bits)


@pytest.mark.parametrize("limits", [(0, 2**31), (-(2**31) - 1, 0)])
def test_codes_that_do_not_fit_into_32_bits_have_no_type(limits):
    with pytest.raises(ValueError, match="do not fit into 32 bits"):
        _ = QParams(1.0, 0, *limits).code_dtype


def test_many_scales_may_share_one_zero_point():
    scale = np.array([[0.5], [2.0]])
    x = np.array([[1.0, -1.0], [4.0, -2.0]])
    qparams = QParams(scale, 3, 0, 7)
    assert quantize(x, qparams).tolist() == [[5, 1], [5, 2]]
    assert dequantize(quantize(x, qparams), qparams).tolist() == x.tolist()
    tensor = QParams(torch.from_numpy(scale), 3, 0, 7)
    assert quantize(torch.from_numpy(x), tensor).tolist() == [[5, 1], [5, 2]]


def test_a_list_of_values_may_have_groups_with_zero_points_of_their_own():
    x = np.array([0.0, 1.0, -2.0, 2.0, 3.0, 6.0])
    qparams = QParams(np.array([1.0, 2.0]), np.array([0, 1]), 0, 7)
    assert quantize(x, qparams).tolist() == [0, 1, 0, 2, 3, 4]
    assert dequantize(quantize(x, qparams), qparams).tolist() == [0, 1, 0, 2, 4, 6]


@pytest.mark.parametrize(("shape", "axis"), [((2000, 100), 1), ((2, 200_000), 0), ((2, 200_000), 1), ((3, 100_000), 0)])
def test_in_slabs_each_row_and_column_keeps_its_own_scale(shape, axis):
    """More values than are worked on at once."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    qparams = find_qparams(x, granularity=qlearn.PerAxis(axis))
    formula = np.clip(np.round(x / qparams.scale) + qparams.zero_point, 0, 255).astype(np.uint8)
    assert np.array_equal(quantize(x, qparams), formula)
    values = qparams.scale * (formula.astype(np.float32) - qparams.zero_point.astype(np.float32))
    assert np.array_equal(dequantize(formula, qparams), values)


def test_only_on_other_devices_a_scale_is_a_tensor():
    """There PyTorch divides by a Python number as if it were its reciprocal. Meta tensors stand for such a device."""
    qparams = QParams(0.1, 3, 0, 7)
    for x in (torch.empty(2), np.empty(2)):
        _, scale, zero_point = align(x, qparams, x.dtype)
        assert type(scale) is float and (scale, zero_point) == (0.1, 3)
    _, scale, zero_point = align(torch.empty(2, device="meta"), qparams, torch.float32)
    assert isinstance(scale, torch.Tensor) and (scale.device.type, scale.dtype) == ("meta", torch.float32)
    assert zero_point == 3


def test_one_tensor_among_the_ends_makes_the_scale_a_tensor():
    ends = [(torch.tensor(-1.0), 2.0), (-1.0, torch.tensor(2.0)), (torch.tensor(-1.0), torch.tensor(2.0))]
    for lo, hi in [*ends, (np.float32(-1), torch.tensor(2.0)), (torch.tensor(-1.0), np.float32(2))]:
        qparams = choose_qparams(lo, hi)
        assert isinstance(qparams.scale, torch.Tensor)
        assert float(qparams.scale) == pytest.approx(3 / 255, rel=1e-7)  # float32


def test_of_an_array_type_and_shape_are_printed():
    assert repr(QParams(np.ones(3), np.ones(3, np.int32), 0, 7)) == (
        "QParams(scale=<float64 (3,)>, zero_point=<int32 (3,)>, quant_min=0, quant_max=7)"
    )
    assert repr(QParams(np.ones((2, 1), np.float32), 1, 0, 7)).startswith(
        "QParams(scale=<float32 (2, 1)>, zero_point=1,"
    )
    assert repr(QParams(np.float32(0.1), 1, 0, 7)).startswith("QParams(scale=0.1, zero_point=1,")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("largest", "code"), [(2**24, 4194306), (2**24 + 1, 4194305)])
def test_codes_that_float32_cannot_tell_apart_are_computed_in_float64(largest, code, sign):
    x = np.float32([sign * (3 * 4194305 + 1)])  # a third above a whole number of steps: float32 rounds that to a half
    limits = (0, largest) if sign > 0 else (-largest, 1)
    assert quantize(x, QParams(np.float32(3), 0, *limits)).tolist() == [sign * code]
