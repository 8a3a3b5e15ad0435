"""The same network in several engines: PyTorch in float, fake-quantized, integers by hand, ONNX Runtime, torchao.

    engine = nn.engine("ONNX Runtime int8", model, images)
    logits = engine(images)

Each takes what the network takes and gives what it gives, so that both outputs and times can be compared. All use
one thread: ONNX Runtime is told so, PyTorch inside `latency`.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlearn.config import QuantConfig
from qlearn.nn.batches import one_tensor
from qlearn.nn.export import INPUT, export_onnx
from qlearn.nn.layers import quantized_layers
from qlearn.nn.network import check_model, copy_of
from qlearn.nn.prepared import ObservedLayer, prepared_layers
from qlearn.nn.processor import EXACT, instructions
from qlearn.nn.ptq import ACTIVATIONS, WEIGHTS, calibrate, convert, prepare
from qlearn.nn.qat import FakeQuantizedLayer
from qlearn.nn.summary import summary

ENGINES = {
    "float": "the float network in PyTorch",
    "fake quantized": "PyTorch on rounded floats: what quantization-aware training computes with",
    "integers by hand": "the network of nn.convert: codes that PyTorch's own products multiply",
    "ONNX Runtime": "the float network, exported",
    "ONNX Runtime int8": "the quantized network, exported with QuantizeLinear and DequantizeLinear",
    "torchao int8": "int8 weights, int8 inputs with a range for each row, found at run time; Linear layers only",
}
OF_CONVERTED = ("integers by hand", "ONNX Runtime int8")  # those that need no float numbers


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run.

    Attributes:
        name: which engine.
        run: what calls it.
        bytes: of its weights, scales and whatever else it keeps: of an ONNX file, its size.

    >>> half = Engine("by hand", lambda x: x / 2, bytes=0)
    >>> half(torch.tensor([3.0]))
    tensor([1.5000])
    """

    name: str
    run: Callable[[Tensor], Tensor]
    bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for a batch, without gradients."""
        with torch.no_grad():
            return self.run(x)


def engine(
    name: str,
    model: nn.Module,
    example: Tensor,
    *,
    weights: QuantConfig = WEIGHTS,
    activations: QuantConfig | None = ACTIVATIONS,
) -> Engine:
    """Get a network ready to run in one of the `ENGINES`.

    Args:
        name: "float", "fake quantized", "integers by hand", "ONNX Runtime", "ONNX Runtime int8" or "torchao int8".
        model: a network from `prepare` after `calibrate`, which all engines can take; a float network, which is
            prepared here and calibrated on the example; or one from `convert`, which has no float numbers left, so
            that only "integers by hand" and "ONNX Runtime int8" can take it. It is not changed.
        example: a batch of inputs. Other batches may have other sizes.
        weights, activations: of a float network, as for `prepare`; 4-bit weights with `QuantConfig(bits=4, …)`.

    Returns:
        The engine, a function of one batch. Those of ONNX Runtime compute in float32, whatever type the batch has.

    Raises:
        ImportError: the engine's library is not installed; the message is one sentence.
        ValueError: another name; a converted network where float numbers are needed; what `export_onnx` cannot write.
        RuntimeError: a prepared network that has not been calibrated.

    Cost: "ONNX Runtime" exports the network, a second or more; torchao is slow when it is imported first.

    >>> layer, x = torch.nn.Linear(4, 2), torch.rand(8, 4)
    >>> by_hand = engine("integers by hand", layer, x)
    >>> by_hand.bytes, by_hand(x).shape, torch.allclose(by_hand(x), layer(x), atol=0.02)
    (36, torch.Size([8, 2]), True)
    """
    if name not in ENGINES:
        raise ValueError(f"name={name!r} is no engine: those are {', '.join(map(repr, ENGINES))}.")
    check_model(model)
    converted = bool(quantized_layers(model))
    if converted and name not in OF_CONVERTED:
        raise ValueError(
            f"{name!r} needs float numbers, which a converted network does not have: hand over the prepared network."
        )
    quantized = name in (*OF_CONVERTED, "fake quantized")
    if quantized and not converted and not prepared_layers(model):
        model = calibrate(prepare(model, weights, activations), [example], progress=False)
    if name == "fake quantized":
        return _of_pytorch(name, copy_of(model, {layer: _rounding(layer) for layer in prepared_layers(model)}))
    if not quantized:
        model = _in_float(model)
    elif not converted:
        model = convert(model)
    if name in ("float", "integers by hand"):
        return _of_pytorch(name, model)
    if name == "torchao int8":
        return _of_torchao(name, model)
    return _of_onnx_runtime(name, model, example)


def _of_pytorch(name: str, model: nn.Module) -> Engine:
    model.eval()
    bytes = summary(_in_float(model)).bytes  # of one that computes with rounded floats, those of the floats
    return Engine(name, lambda x: one_tensor(model(x)), bytes)


def _in_float(model: nn.Module) -> nn.Module:
    """A copy in which prepared layers are the float layers that they were."""
    return copy_of(model, {layer: layer.layer for layer in prepared_layers(model)})


def _rounding(layer: ObservedLayer) -> nn.Module:
    """The layer that lesson 06 trains, with this one's observer.

    Raises:
        RuntimeError: the observer has seen nothing.
        ValueError: weights that `nn.gptq` has rounded, which have a quantizer of their own.
    """
    if not layer.ready:
        raise RuntimeError(f"call nn.calibrate(model, batches) first: layer {layer.name!r} has seen no input.")
    if layer.weight_qparams is not None:
        raise ValueError(f"layer {layer.name!r} was rounded by nn.gptq already: its weights are not rounded again.")
    made = FakeQuantizedLayer(layer.name, layer.layer, layer.weights, layer.activations, learned=False)
    made.observer = copy.deepcopy(layer.observer)
    return made


def _of_onnx_runtime(name: str, model: nn.Module, example: Tensor) -> Engine:
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{name!r} needs onnxruntime ({error}): pip install onnxruntime onnx onnxscript.") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        dtype = torch.float32 if example.is_floating_point() else example.dtype  # a file has no others
        size = export_onnx(model, path, tuple(example.shape[1:]), input_dtype=dtype)
        session = session_of(path.read_bytes())

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: np.ascontiguousarray(x.to(dtype))})[0])

    return Engine(name, run, size)


def session_of(model: bytes) -> Any:
    """An ONNX Runtime session on one thread of the processor, with exact integer products.

    On x86 processors without VNNI its quickest int8 products saturate in 16 bits; here it takes the exact ones, which
    take longer there.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = 1
    # Only there: elsewhere ONNX Runtime takes the option for "products of uint8 codes", which have no AMX.
    if not set(EXACT) & set(instructions()):
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # inputs stay float if they are
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _of_torchao(name: str, model: nn.Module) -> Engine:
    try:
        quantization = _torchao()
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{name!r} needs a torchao that fits this PyTorch ({error}): pip install torchao.") from error
    model = copy.deepcopy(model).eval()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return Engine(name, lambda x: one_tensor(model(x)), sum(map(_stored, model.state_dict().values())))


def _torchao() -> Any:
    """torchao's quantization, without the remarks on stderr that it is imported with."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao import quantization
        _ = quantization.Int8DynamicActivationInt8WeightConfig
    finally:
        logging.disable(logging.NOTSET)
    return quantization


def _stored(value: Any) -> int:
    """The bytes of a tensor, or of those that a tensor of torchao consists of."""
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return sum(_stored(getattr(value, part)) for part in names)
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
