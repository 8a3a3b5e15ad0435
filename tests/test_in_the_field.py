"""What the lessons say of other libraries, asked of the libraries that are installed here."""

from __future__ import annotations

import inspect

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
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
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
