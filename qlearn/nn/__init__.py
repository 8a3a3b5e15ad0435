"""Quantized networks in PyTorch: prepare → calibrate → convert, and what the lessons need around it."""

from qlearn.nn.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from qlearn.nn.models import cnn, load_trained, mlp
from qlearn.nn.ptq import calibrate, convert, prepare
from qlearn.nn.storage import load, save
from qlearn.nn.summary import summary
from qlearn.nn.training import accuracy, to_inputs, train

__all__ = [
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "accuracy",
    "calibrate",
    "cnn",
    "convert",
    "load",
    "load_trained",
    "mlp",
    "prepare",
    "save",
    "summary",
    "to_inputs",
    "train",
]
