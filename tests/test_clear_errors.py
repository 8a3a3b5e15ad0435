"""What is handed over in another form works, or is refused in a sentence that names the argument and what would do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from qlearn import (
    PerAxis,
    PerGroup,
    PerTensor,
    QParams,
    QuantConfig,
    block_scales,
    choose_qparams,
    codebooks,
    dequantize,
    errors,
    fake_quantize,
    find_qparams,
    find_range,
    formats,
    gptq,
    integer,
    observers,
    packing,
    quantize,
    ranges,
    rotations,
)
from qlearn import nn as qnn

GRID = QParams(1.0, 0, 0, 255)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: find_qparams([1.0], granularity=PerTensor),
            TypeError,
            r"granularity=PerTensor is a class: PerTensor\(\)",
        ),
        (
            lambda: find_range([1.0], granularity=PerGroup),
            TypeError,
            r"granularity=PerGroup is a class: PerGroup\(32\)",
        ),
        (
            lambda: quantize([1.0], 0.1),
            TypeError,
            r"qparams is a float: wanted is a QParams. find_qparams\(x\) finds one",
        ),
        (lambda: dequantize([1], (0.1, 0)), TypeError, "qparams is a tuple: wanted is a QParams"),
        (lambda: fake_quantize([1.0], None), TypeError, "qparams is a NoneType: wanted is"),
        (lambda: errors.report([1.0], "int8"), TypeError, "qparams is a str: wanted is a QParams"),
        (lambda: QuantConfig(granularity=PerAxis), TypeError, r"granularity=PerAxis is a class: PerAxis\(0\)"),
        (lambda: QuantConfig(granularity="tensor"), TypeError, r"granularity='tensor' must be PerTensor\(\), PerAxis"),
        (lambda: QuantConfig(granularity=8), TypeError, r"granularity=8 must be PerTensor\(\), PerAxis"),
        (lambda: PerAxis("0"), TypeError, "axis='0' must be a whole number"),
        (lambda: PerAxis(True), TypeError, "axis=True must be a whole number"),
        (lambda: PerAxis(0.0), TypeError, "axis=0.0 must be a whole number"),
        (lambda: PerGroup(True), ValueError, "group_size=True must be a whole number of 1 or more"),
        (lambda: PerGroup("4"), ValueError, "group_size='4' must be a whole number of 1 or more"),
        (lambda: QuantConfig(percentile="99"), TypeError, "percentile='99' must be a number, more than 50"),
        (lambda: QuantConfig(percentile=True), TypeError, "percentile=True must be a number"),
        (lambda: QuantConfig(percentile=None), TypeError, "percentile=None must be a number"),
        (lambda: find_range([1.0], "percentile", percentile=[99]), TypeError, r"percentile=\[99\] must be a number"),
        (lambda: ranges.percentile([1.0], percentile=float("nan")), ValueError, "percentile=nan must be more than 50"),
        (lambda: QuantConfig(symmetric="yes"), TypeError, "symmetric='yes' must be True or False"),
        (lambda: QuantConfig(narrow_range="no"), TypeError, "narrow_range='no' must be True or False"),
        (lambda: choose_qparams(-1, 1, symmetric=1), TypeError, "symmetric=1 must be True or False"),
        (lambda: find_qparams([1.0], narrow_range=None), TypeError, "narrow_range=None must be True or False"),
        (lambda: QuantConfig(bits=8.0), ValueError, "bits=8.0 must be a whole number"),
        (lambda: QuantConfig(bits=np.float64(8)), ValueError, r"bits=np.float64\(8.0\) must be a whole number"),
        (lambda: QuantConfig(bits="8"), ValueError, "bits='8' must be a whole number"),
        (lambda: find_range([1.0, 2.0], "mse", candidates=2.5), ValueError, "candidates=2.5 must be a whole number"),
        (lambda: find_range([1.0, 2.0], "mse", candidates=True), ValueError, "candidates=True must be a whole number"),
        (lambda: find_range([1.0, 2.0], "entropy", bins=True), ValueError, "bins=True must be a whole number"),
        (lambda: QParams(1.0, np.array(0.0), 0, 255), TypeError, "zero_point has dtype float64"),
        (lambda: QParams(1.0, True, 0, 255), TypeError, "zero_point has dtype bool"),
        (lambda: dequantize(np.array([True]), GRID), TypeError, "codes have dtype bool: they must be integers"),
        (lambda: codebooks.decode([True], [0.0, 1.0]), TypeError, "codes have dtype bool"),
        (lambda: formats.decode([1.0], formats.E2M1), TypeError, "codes have dtype float64"),
        (
            lambda: observers.MovingAverageObserver(averaging_constant="0.1"),
            ValueError,
            "averaging_constant='0.1' must be",
        ),
        (lambda: packing.unpack(np.uint8([33]), 4, 2.0), TypeError, "shape=2.0 must be a whole number, or a list"),
        (lambda: packing.unpack(np.uint8([33]), 4, "2"), TypeError, "shape='2' must be a whole number, or a list"),
        (lambda: packing.unpack(np.uint8([33]), 4, (2.0,)), TypeError, r"shape=\(2.0,\) must be a whole number"),
        (lambda: packing.unpack(np.uint8([33]), 4, (-1, -2)), ValueError, r"shape=\(-1, -2\) has a length below 0"),
        (lambda: packing.packed_size(3, "4"), ValueError, "bits='4' must be a whole number from 1 to 8"),
        (lambda: packing.packed_size(2.5, 4), TypeError, "n=2.5 must be a whole number"),
        (lambda: packing.packed_size(-1, 4), ValueError, "n=-1 has a length below 0"),
        (lambda: formats.cast([1.0], "E4M3"), TypeError, "format='E4M3' must be a FloatFormat, such as formats.E4M3"),
        (lambda: formats.decode([1], "E4M3"), TypeError, "format='E4M3' must be a FloatFormat"),
        (lambda: block_scales.mx_scale(np.ones((1, 32)), "E2M1"), TypeError, "format='E2M1' must be a FloatFormat"),
        (
            lambda: find_range([1.0], candidates=5),
            TypeError,
            "method='min_max' has no option 'candidates'; it has none",
        ),
        (lambda: find_range([1.0], "mse", bins=5), TypeError, "method='mse' has no option 'bins'; it has candidates"),
        (lambda: rotations.kurtosis([1.0, 2.0], axis=0.5), ValueError, r"axis=0.5: x has shape \(2,\), so it must be"),
        (
            lambda: integer.matmul(np.ones((2, 1, 1), int), np.ones((3, 1, 1), int)),
            ValueError,
            r"a has shape \(2, 1, 1\), b has shape \(3, 1, 1\): axes before the last two must agree",
        ),
        (
            lambda: integer.requantize([9], 2**30, 0, zero_point=0, quant_min=255, quant_max=0),
            ValueError,
            "quant_min=255, quant_max=0: wanted are codes of int32, in rising order",
        ),
        (
            lambda: integer.requantize([9], 2**30, 0, zero_point=2**40, quant_min=0, quant_max=2**41),
            ValueError,
            "wanted are codes of int32",
        ),
        (lambda: find_range([1.0], np.array(["mse"])), ValueError, r"method=array\(.*\) is not known; the methods are"),
        (lambda: find_qparams([1.0], ["mse"]), ValueError, r"method=\['mse'\] is not known"),
        (lambda: observers.make_observer("mse"), TypeError, "config is a str: wanted is a QuantConfig"),
        (lambda: errors.clipped([1.0], 0.1), TypeError, "qparams is a float: wanted is a QParams"),
        (lambda: errors.bits_per_value((4,), 0.1), TypeError, "qparams is a float: wanted is a QParams"),
        (lambda: errors.bits_per_value("4", GRID), TypeError, "shape='4' must be a whole number, or a list"),
        (lambda: errors.bits_per_value((4, 0), GRID), ValueError, r"shape=\(4, 0\) has no values"),
        (lambda: gptq.gptq_quantize([[1.0]], [[1.0]], 0.1), TypeError, "qparams is a float: wanted is a QParams"),
        (
            lambda: gptq.gptq_quantize([[1.0]], [[1.0]], GRID, act_order=[1, 2]),
            TypeError,
            r"act_order=\[1, 2\] must be",
        ),
        (lambda: formats.fields([1], "E4M3"), TypeError, "format='E4M3' must be a FloatFormat"),
        (lambda: formats.fields([1.0], formats.E4M3), TypeError, "codes have dtype float64"),
        (lambda: codebooks.kmeans([1.0, 2.0], 2, steps=[1]), ValueError, r"steps=\[1\] must be a whole number, 0 or"),
        (lambda: block_scales.mx_scale(np.ones((1, 32)), rule=np.ones(2)), ValueError, r"rule=array\(.*must be one of"),
        (lambda: integer.matmul([[1]], [[1]], largest_sum=[1, 2]), TypeError, r"largest_sum=\[1, 2\] must be a whole"),
        (lambda: packing.packed_size((2, 3), 4), TypeError, r"n=\(2, 3\) must be one whole number"),
        (lambda: packing.unpack(np.uint8([33]), 4, np.array(2.0)), TypeError, "must be a whole number, or a list"),
        # Empty arrays
        (
            lambda: dequantize(np.array([], int), GRID),
            ValueError,
            r"codes are empty \(shape \(0,\)\): wanted is at least one",
        ),
        (
            lambda: codebooks.decode(np.zeros((2, 0), int), [0.0, 1.0]),
            ValueError,
            r"codes are empty \(shape \(2, 0\)\)",
        ),
        (lambda: formats.decode(np.array([], int), formats.E2M1), ValueError, "codes are empty"),
        (
            lambda: integer.matmul(np.zeros((1, 0), int), np.zeros((0, 1), int)),
            ValueError,
            r"a is empty \(shape \(1, 0\)\)",
        ),
        (
            lambda: integer.requantize(np.array([], int), 2**30, 0, zero_point=0, quant_min=0, quant_max=1),
            ValueError,
            r"acc is empty \(shape \(0,\)\)",
        ),
    ],
)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": [1, 2, 3]}, r"bias has shape \(3,\), the last axis of b has shape \(2,\): wanted is \(N,\)"),
        ({"bias": [[1, 2]]}, r"bias has shape \(1, 2\), the last axis of b has shape \(2,\)"),
        (
            {"a_zero_point": [[1], [2], [3]]},
            r"a_zero_point has shape \(3, 1\), a has shape \(1, 2\): wanted is \(M, 1\)",
        ),
        ({"a_zero_point": [[[1]]]}, r"a_zero_point has shape \(1, 1, 1\), a has shape \(1, 2\)"),
        ({"b_zero_point": [[1, 2, 3]]}, r"b_zero_point has shape \(1, 3\), b has shape \(2, 2\): wanted is \(1, N\)"),
    ],
)
def test_a_product_does_not_grow(options, message):
    with pytest.raises(ValueError, match=message):
        integer.matmul([[1, 2]], [[1, 2], [3, 4]], **{name: np.array(n) for name, n in options.items()})


@pytest.mark.parametrize("name", ["m", "shift", "zero_point"])
@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 1, 2)])
def test_requantizing_does_not_grow(name, shape):
    options = {"m": 2**30, "shift": 0, "zero_point": 0, name: np.full(shape, 2**30 if name == "m" else 1)}
    with pytest.raises(ValueError, match=rf"{name} has shape .*, acc has shape \(1, 2\): wanted is one number for all"):
        integer.requantize([[1, 2]], **options, quant_min=0, quant_max=255)
    with pytest.raises(TypeError, match="zero_point has dtype float64: it must hold integers"):
        integer.requantize([[1, 2]], 2**30, 0, zero_point=0.5, quant_min=0, quant_max=255)
    with pytest.raises(ValueError, match=r"quant_max has shape \(2,\), .*: wanted is one whole number"):
        integer.requantize([[1, 2]], 2**30, 0, zero_point=0, quant_min=0, quant_max=np.array([1, 2]))


def test_shapes_that_fit_still_do():
    one_each = {"a_zero_point": np.array([[1], [2]]), "b_zero_point": np.array([[1, 0]]), "bias": np.array([5, 6])}
    assert integer.matmul([[1, 2], [3, 4]], [[1, 2], [3, 4]], **one_each).tolist() == [[7, 10], [9, 16]]
    per_channel = np.array([2**30, 2**30]), np.array([0, 1])
    acc = integer.requantize([[4, 4], [8, 8]], *per_channel, zero_point=np.array([0, 1]), quant_min=0, quant_max=255)
    assert acc.tolist() == [[2, 2], [4, 3]]


# Bytes in the other order


@pytest.mark.parametrize("order", [">", "<"])
def test_either_order_of_bytes_will_do(order):
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    turned = x.astype(order + "f4")
    codes = np.arange(8)
    for method in ranges.METHODS:
        assert find_qparams(turned, method) == find_qparams(x, method)
    assert np.array_equal(fake_quantize(turned, find_qparams(turned)), fake_quantize(x, find_qparams(x)))
    assert find_qparams(codes.astype(order + "i2")) == find_qparams(codes)
    assert errors.mse(x.astype(order + "f8"), turned) == 0
    for kind in observers.KINDS:
        seen = [observers.make_observer(QuantConfig(method=kind)).observe(batch) for batch in (x, turned)]
        assert seen[0].qparams() == seen[1].qparams()
    for width in "248":
        short = codes.astype(order + "i" + width)
        assert packing.unpack(packing.pack(short, 4), 4, (8,)).tolist() == codes.tolist()
        assert np.array_equal(dequantize(short, GRID), codes)
        assert np.array_equal(codebooks.decode(short, np.arange(8.0)), codes)
        assert np.array_equal(formats.decode(short, formats.E2M1), formats.decode(codes, formats.E2M1))
        assert integer.matmul(short[None], short[:, None], bias=short[:1]).tolist() == [[140]]
        m = np.array([2**30]).astype(order + "i8")
        assert integer.requantize(short, m, short[:1], zero_point=0, quant_min=0, quant_max=9).tolist()[-1] == 4
    scale = np.array([[0.5], [2.0]]).astype(order + "f4")
    qparams = QParams(scale, np.array([[1], [2]]).astype(order + "i4"), 0, 255)
    for y in (np.ones((2, 3)), torch.ones(2, 3)):
        assert quantize(y, qparams).tolist() == [[3] * 3, [2] * 3]
    assert codebooks.encode(torch.ones(2, 2), np.array([0.0, 2.0]).astype(order + "f8"), scale).tolist() == [
        [1, 1],
        [0, 0],
    ]


NO_ARRAYS = {
    "masked": (
        np.ma.masked_less(np.arange(8.0), 4),
        r"is a masked array, .*\.compressed\(\) are the values that count",
    ),
    "long double": (np.arange(8, dtype=np.longdouble), "has dtype .*: it must hold real numbers .*floats of 16 to 64"),
    "ragged": ([[1.0, 2.0], [3.0]], "cannot be made an array, which takes numbers in rows of equal length"),
    "sparse": (
        torch.eye(4).to_sparse(),
        r"is a tensor of layout sparse_coo: wanted is an ordinary one, .*\.to_dense\(\)",
    ),
    "without numbers": (
        torch.ones(4, device="meta"),
        "is on the meta device, where a tensor has a shape and no numbers",
    ),
}
READERS = {
    "find_qparams": find_qparams,
    "fake_quantize": lambda x: fake_quantize(x, GRID),
    "choose_qparams": lambda x: choose_qparams(x, x),
    "MinMaxObserver": lambda x: observers.MinMaxObserver().observe(x),
    "mse": lambda x: errors.mse(x, np.arange(8.0)),
    "kmeans": lambda x: codebooks.kmeans(x, 2),
    "cast": lambda x: formats.cast(x, formats.E4M3),
}


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="here a long double is a float64")
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("x", "message"), NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_what_holds_no_numbers_of_its_own_is_refused(read, x, message):
    with pytest.raises(TypeError, match=rf"^(x|lo) {message}"):
        read(x)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda codes: dequantize(codes, GRID), "codes"),
        (lambda codes: packing.pack(codes, 4), "codes"),
        (lambda codes: packing.unpack(codes, 4, 8), "packed"),
        (lambda codes: integer.matmul(codes[None], codes[:, None]), "a"),
        (lambda codes: integer.matmul([[1]], [[1]], bias=codes), "bias"),
        (lambda codes: QParams(1.0, codes[0:1], 0, 255), "zero_point"),
    ],
)
def test_masked_codes_are_refused_by_name(read, name):
    with pytest.raises(TypeError, match=f"^{name} is a masked array"):
        read(np.ma.masked_less(np.arange(4, dtype=np.uint8), 2))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_and_a_view_of_complex_numbers_are_arrays():
    x = np.arange(-4.0, 4.0).reshape(2, 4)
    imaginary = torch.complex(torch.zeros(2, 4), -torch.tensor(x, dtype=torch.float32)).conj().imag
    assert imaginary.is_neg()
    for method in ("min_max", "percentile", "mse", "entropy"):
        assert find_qparams(np.matrix(x), method) == find_qparams(x, method)
        assert find_qparams(imaginary, method) == find_qparams(x.astype(np.float32), method)
    for granularity in (PerAxis(0), PerGroup(2)):
        assert find_qparams(np.matrix(x), granularity=granularity) == find_qparams(x, granularity=granularity)
    assert np.array_equal(fake_quantize(np.matrix(x), GRID), x.clip(0))


def test_arrays_that_go_backwards():
    scale, zero_point = np.array([[1.0], [2.0]])[::-1], np.array([[3], [4]])[::-1]
    qparams = QParams(scale, zero_point, 0, 255)
    assert quantize(torch.full((2, 3), 4.0), qparams).tolist() == [[6] * 3, [7] * 3]
    assert dequantize(torch.tensor([[6], [7]]), qparams).tolist() == [[4.0], [4.0]]
    assert codebooks.encode(torch.ones(2, 2), np.array([1.0, 0.0])[::-1], scale).tolist() == [[0, 0], [1, 1]]
    assert errors.mse(torch.ones(2), np.array([0.0, 1.0])[::-1]) == 0.5


def test_single_numbers():
    assert ranges.min_max(5.0) == (5.0, 5.0)
    assert ranges.percentile(5.0) == (5.0, 5.0)
    assert ranges.entropy(5.0) == (0.0, 5.0)  # widened to hold 0, so that both ends are ticks
    for method in ("min_max", "percentile", "mse", "entropy"):
        assert find_range(5.0, method)[1] == pytest.approx(5, rel=1e-6)
    with pytest.raises(ValueError, match=r"x has shape \(\): cross_entropy needs logits"):
        find_range(5.0, "cross_entropy")


def test_a_tensor_and_an_array_can_be_multiplied():
    a, b = np.array([[1, 2]]), np.array([[3], [4]])
    for one, other in ((torch.tensor(a), b), (a, torch.tensor(b))):
        product = integer.matmul(one, other, bias=np.array([1]))
        assert type(product) is type(one) and product.tolist() == [[12]]


def test_numpy_s_whole_numbers_are_sizes():
    assert np.array_equal(rotations.hadamard(np.int64(12)), rotations.hadamard(12))
    assert packing.packed_size(np.int64(3), np.int64(4)) == 2


def test_a_tensor_and_an_array_can_be_compared():
    assert errors.mse(torch.ones(3), np.zeros(3)) == errors.mse(np.ones(3), torch.zeros(3)) == 1
    assert errors.sqnr_db(torch.ones(3), np.full(3, 0.9)) == pytest.approx(20)


def test_a_length_is_a_shape():
    assert packing.unpack(np.uint8([33]), 4, 2).tolist() == packing.unpack(np.uint8([33]), 4, [2]).tolist() == [1, 2]
    assert packing.unpack(packing.pack(np.array([], int), 4), 4, 0).shape == (0,)


# Observers


def test_observers_merge_if_what_they_use_agrees():
    def merged(kind, one, other):
        a, b = (kind(QuantConfig(**config)).observe(np.arange(9.0) * k) for k, config in ((1, one), (-2, other)))
        assert a.merge(b).qparams() == b.merge(a).qparams()

    merged(observers.MinMaxObserver, {"percentile": 99}, {"percentile": 99.9})
    merged(observers.MinMaxObserver, {"narrow_range": True}, {"narrow_range": False})
    merged(observers.MSEObserver, {"method": "mse", "percentile": 99}, {"method": "mse", "percentile": 98})
    merged(observers.EntropyObserver, {"method": "entropy", "percentile": 99}, {"method": "entropy"})
    for kind, one, other in (
        (observers.MinMaxObserver, {"bits": 4}, {"bits": 8}),
        (observers.MinMaxObserver, {"symmetric": True}, {"symmetric": True, "narrow_range": False}),
        (observers.PercentileObserver, {"method": "percentile", "percentile": 99}, {"method": "percentile"}),
        (observers.HistogramObserver, {"method": "percentile", "percentile": 99}, {"method": "percentile"}),
        (observers.HistogramObserver, {"method": "mse"}, {"method": "min_max"}),
    ):
        with pytest.raises(ValueError, match="these observers cannot be merged: one has QuantConfig"):
            merged(kind, one, other)


# Networks


class ByKeyword(torch.nn.Module):
    """Calls its layer by keyword, and looks at its size."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(input=x).reshape(-1, self.fc.out_features)


def test_a_layer_may_be_called_by_keyword_and_looked_at():
    x = torch.ones(3, 8)
    assert qnn.calibrate(qnn.prepare(ByKeyword()), x, progress=False).fc.observer.seen
    assert qnn.calibrate(qnn.prepare_qat(ByKeyword()), x, progress=False)(x).shape == (3, 4)
    assert list(qnn.hessians(ByKeyword(), x)) == ["fc"]
    layer = qnn.convert(qnn.calibrate(qnn.prepare(torch.nn.Linear(8, 4)), x, progress=False))
    assert torch.equal(layer(input=x), layer(x))
    with pytest.raises(AttributeError, match="no attribute 'surprise'"):
        _ = qnn.prepare(torch.nn.Linear(8, 4)).surprise
    assert copy.deepcopy(qnn.prepare(torch.nn.Conv2d(3, 4, 5))).kernel_size == (5, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, x: qnn.calibrate(m, [{"x": x}], progress=False),
            ValueError,
            "a batch has 'x', and the network takes input",
        ),
        (
            lambda m, x: qnn.calibrate(m, {"input": x}, progress=False),
            TypeError,
            r"batches is a dict: .*\[batch\] for one",
        ),
        (
            lambda m, x: qnn.calibrate(m, (x, torch.zeros(3)), progress=False),
            TypeError,
            r"\[\(inputs, labels\)\] for one batch",
        ),
        (lambda m, x: qnn.prepare(m.layer, overrides={"": QuantConfig()}), TypeError, r"overrides\[''\]=QuantConfig"),
        (lambda m, x: qnn.prepare(m.layer.to("meta")), ValueError, "weight is on the meta device"),
        (lambda m, x: qnn.language_model()(torch.zeros(2, 129, dtype=int)), ValueError, r"tokens has shape \(2, 129\)"),
    ],
)
def test_what_a_network_cannot_take_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(qnn.prepare(torch.nn.Linear(8, 4)), torch.ones(3, 8))


def test_a_tuple_of_tensors_may_be_a_batch_or_several_and_is_refused():
    """Two batches in a tuple, or (inputs, labels) without its list: nobody can tell. In a list both are clear."""
    zeros, ones = torch.zeros(3, 2), torch.ones(3, 2)
    prepared = qnn.prepare(torch.nn.Linear(2, 1))
    with pytest.raises(
        TypeError, match=r"batches is a tuple of tensors, which may be one batch or several: .*a list of"
    ):
        qnn.calibrate(prepared, (zeros, ones), progress=False)
    assert not prepared.observer.seen
    assert float(qnn.calibrate(prepared, [zeros, ones], progress=False).observer.hi) == 1
