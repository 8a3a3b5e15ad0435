"""Our codes against libraries that share no line with ours."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qlearn import PerAxis, QParams, dequantize, fake_quantize, find_qparams, quantize

N = 1_000_000


def values(rng: np.random.Generator, scale: float) -> np.ndarray:
    """A million normal values, every third one moved as near to a tie between two ticks as float32 allows."""
    x = rng.normal(size=(1000, N // 1000)).astype(np.float32)
    ties = np.rint(x / np.float32(scale)) + np.float32(0.5)
    return np.where(rng.random(x.shape) < 1 / 3, (ties * np.float32(scale)).astype(np.float32), x)


def onnx_model(op: str, axis: int | None) -> onnx.ModelProto:
    real, code = TensorProto.FLOAT, TensorProto.UINT8
    source, target = (real, code) if op == "QuantizeLinear" else (code, real)
    shape = [] if axis is None else [None]
    node = helper.make_node(op, ["x", "scale", "zero_point"], ["y"], **({} if axis is None else {"axis": axis}))
    graph = helper.make_graph(
        [node],
        op,
        [
            helper.make_tensor_value_info("x", source, [None, None]),
            helper.make_tensor_value_info("scale", real, shape),
            helper.make_tensor_value_info("zero_point", code, shape),
        ],
        [helper.make_tensor_value_info("y", target, [None, None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def run(engine: str, op: str, x: np.ndarray, qparams: QParams, axis: int | None) -> np.ndarray:
    model = onnx_model(op, axis)
    inputs = {
        "x": x,
        "scale": np.asarray(qparams.scale, np.float32).reshape(-1 if axis is not None else ()),
        "zero_point": np.asarray(qparams.zero_point, np.uint8).reshape(-1 if axis is not None else ()),
    }
    if engine == "reference":
        return ReferenceEvaluator(model).run(None, inputs)[0]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("engine", ["onnxruntime", "reference"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_codes_and_values_equal_onnx(engine, axis):
    rng = np.random.default_rng(0)
    scale = np.float32(8 / 255)
    x = values(rng, scale)
    if axis is None:
        qparams = QParams(scale, 128, 0, 255)
    else:
        x *= 2.0 ** rng.integers(-3, 3, size=(1000, 1) if axis == 0 else (1, 1000)).astype(np.float32)
        qparams = find_qparams(x, granularity=PerAxis(axis))
    codes = quantize(x, qparams)
    theirs = run(engine, "QuantizeLinear", x, qparams, axis)
    assert codes.size == N
    assert np.count_nonzero(codes != theirs) == 0
    assert np.array_equal(dequantize(codes, qparams), run(engine, "DequantizeLinear", codes, qparams, axis))


def test_ties_really_occur_in_the_oracles_data():
    scale = np.float32(8 / 255)
    x = values(np.random.default_rng(0), scale)
    place = x / scale
    assert np.count_nonzero(np.abs(place - np.floor(place) - 0.5) < 1e-5) > N / 4
    assert np.count_nonzero(place - np.floor(place) == 0.5) > 100_000


@pytest.mark.parametrize("scale", [2.0**-5, 8 / 255])
def test_codes_equal_torch_fake_quantize_but_for_the_reciprocal(scale):
    """PyTorch multiplies by 1 / scale. With a power of two that is the same; else it may differ, at ties only."""
    x = values(np.random.default_rng(1), scale)
    qparams = QParams(np.float32(scale), 128, 0, 255)
    theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), float(np.float32(scale)), 128, 0, 255).numpy()
    differ = fake_quantize(x, qparams) != theirs
    if scale == 2.0**-5:
        assert not differ.any()
    place = x[differ].astype(np.float64) / np.float32(scale)
    # At a tie: as near as float32's rounding of a quotient below 256 can bring it, 256 · 2⁻²⁴ on either side.
    assert np.abs(np.abs(place - np.floor(place)) - 0.5).max(initial=0) <= 256 * 2.0**-24
    assert np.abs(fake_quantize(x, qparams) - theirs).max() <= scale * (1 + 1e-5)


def test_codes_equal_torch_per_channel_for_power_of_two_scales():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(64, 1000)).astype(np.float32)
    scale = (2.0 ** rng.integers(-7, -4, size=(64, 1))).astype(np.float32)
    zero_point = rng.integers(0, 256, size=(64, 1)).astype(np.int32)
    theirs = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(x), torch.from_numpy(scale[:, 0]), torch.from_numpy(zero_point[:, 0]), 0, 0, 255
    )
    assert np.array_equal(fake_quantize(x, QParams(scale, zero_point, 0, 255)), theirs.numpy())
