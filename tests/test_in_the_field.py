"""What the lessons say of other libraries, asked of the libraries that are installed here."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re

import numpy as np
import pytest

import qlearn


def pytorch_scale(v, **options):
    torch = pytest.importorskip("torch")
    observer = pytest.importorskip("torch.ao.quantization.observer").MinMaxObserver(dtype=torch.qint8, **options)
    observer(torch.from_numpy(v))
    scale, zero_point = observer.calculate_qparams()
    return float(scale), int(zero_point)


V = np.array([-2.0, 0.3, 1.9], dtype=np.float32)


def test_01_pytorch_divides_by_127_and_a_half():
    torch = pytest.importorskip("torch")
    assert pytorch_scale(V, qscheme=torch.per_tensor_symmetric) == (np.float32(2.0 / 127.5), 0)


def test_01_signed_asymmetric_codes_are_pytorchs_and_onnx_runtimes():
    torch = pytest.importorskip("torch")
    ours = qlearn.choose_qparams(V.min(), V.max(), signed=True)
    scale, zero_point = pytorch_scale(V, qscheme=torch.per_tensor_affine)
    assert (scale, zero_point) == (pytest.approx(ours.scale, rel=1e-6), ours.zero_point)

    quant_utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    ends = (np.array(end, dtype) for end, dtype in ((-2, "f4"), (1.9, "f4"), (-128, "i1"), (127, "i1")))
    zero_point, scale = quant_utils.compute_scale_zp(*ends, symmetric=False)
    assert (float(scale), int(zero_point)) == (pytest.approx(ours.scale, rel=1e-6), ours.zero_point)


def test_01_torchao_has_three_mappings():
    pytest.importorskip("torchao", minversion="0.18")
    primitives = importlib.import_module("torchao.quantization.quant_primitives")
    torch = pytest.importorskip("torch")

    def scale_of(mapping):
        mapping = getattr(primitives.MappingType, mapping)
        return float(primitives.choose_qparams_affine(torch.from_numpy(V), mapping, (3,), torch.int8, eps=1e-12)[0])

    assert scale_of("SYMMETRIC") == np.float32(2.0 / 127.5)
    full = qlearn.choose_qparams(V.min(), V.max(), symmetric=True, narrow_range=False)
    assert scale_of("SYMMETRIC_NO_CLIPPING_ERR") == full.scale


def test_03_which_axis_pytorch_and_onnx_name():
    observer = pytest.importorskip("torch.ao.quantization.observer").PerChannelMinMaxObserver
    assert inspect.signature(observer).parameters["ch_axis"].default == 0
    onnx = pytest.importorskip("onnx")
    attributes = onnx.defs.get_schema("QuantizeLinear", 21).attributes
    assert attributes["axis"].default_value.i == 1
    assert "block_size" in attributes


def test_04_pytorch_takes_the_bit_of_reduce_range_from_the_activations():
    quantization = pytest.importorskip("torch.ao.quantization")
    qconfig = quantization.get_default_qconfig("fbgemm")
    activations, weights = qconfig.activation(), qconfig.weight()
    assert (activations.quant_min, activations.quant_max) == (0, 127)
    assert (weights.quant_min, weights.quant_max) == (-128, 127)


def test_04_onnx_runtime_takes_it_from_the_weights(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    w = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, n]) for name, n in (("x", 4), ("y", 3))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "float.onnx")
    for reduce_range, largest in ((False, 127), (True, 64)):
        options = {"reduce_range": reduce_range, "weight_type": QuantType.QInt8}
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "codes.onnx", **options)
        codes = onnx.load(tmp_path / "codes.onnx").graph
        stored = [numpy_helper.to_array(tensor) for tensor in codes.initializer if tensor.data_type == 3]
        assert max(np.abs(array.astype(int)).max() for array in stored) == largest
        assert "DynamicQuantizeLinear" in {node.op_type for node in codes.node}, "the inputs keep all of uint8"


def test_04_onnx_runtime_rescales_in_float32():
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from onnx import helper

    rng = np.random.default_rng(0)  # b of 7 bits: x86 processors without VNNI saturate two products in 16 bits
    values = {
        "a": rng.integers(0, 256, (200, 784), dtype=np.uint8), "a_scale": np.float32(0.004), "a_zero": np.uint8(0),
        "b": rng.integers(-64, 65, (784, 30), dtype=np.int8), "b_scale": np.float32(0.003), "b_zero": np.int8(0),
        "y_scale": np.float32(0.09), "y_zero": np.uint8(100),
    }  # fmt: skip
    named = {name: np.asarray(value) for name, value in values.items()}
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in named.items()}
    ins = [helper.make_tensor_value_info(name, kinds[name], named[name].shape) for name in named]
    out = helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None)
    graph = helper.make_graph([helper.make_node("QLinearMatMul", list(named), ["y"])], "g", ins, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, named)
    sums = named["a"].astype(np.int32) @ named["b"].astype(np.int32)
    factor = np.float32(0.004) * np.float32(0.003) / np.float32(0.09)
    ours = np.clip(np.rint(sums.astype(np.float32) * factor) + 100, 0, 255)
    assert np.array_equal(theirs, ours)


def test_09_transformers_has_a_cache_of_few_bits():
    cache_utils = pytest.importorskip("transformers.cache_utils")
    parameters = inspect.signature(cache_utils.QuantizedCache.__init__).parameters
    assert {"backend", "nbits", "axis_key", "axis_value", "q_group_size"} <= set(parameters)


def test_09_onnx_runtime_smooths():
    quantize = pytest.importorskip("onnxruntime.quantization.quantize")
    assert {"SmoothQuant", "SmoothQuantAlpha"} <= set(re.findall(r"SmoothQuant\w*", inspect.getsource(quantize)))


def test_09_torchao_has_prototypes_of_gptq_awq_smoothquant_and_spinquant():
    pytest.importorskip("torchao", minversion="0.18")
    for name in ("gptq", "awq", "smoothquant", "spinquant"):
        assert importlib.util.find_spec(f"torchao.prototype.{name}") is not None, name
