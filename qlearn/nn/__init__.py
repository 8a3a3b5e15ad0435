"""Quantized networks in PyTorch: prepare → calibrate → convert, and what the lessons need around it.

Which file goes with which lesson; nothing imports what comes later:

    the floor        linear_maps, batches, collect, threads, network: layers, data, and what a network holds
                     distributed: several processes that share the work
                     flow, tracing, recording, in_turn: which layer feeds which, and one after the other
                     site, unchanged, rescaling: where channels can be rescaled, and that it changes nothing
    lesson 05        layers, integer_layers, overrides, prepared, ptq: layers of integers, three steps that lead to them
                     folding, storage, summary, models, training: what the other lessons need as well
    lesson 06        fake_quantize, qat
    lesson 07        equalization, bias_correction, gptq, mixed_precision (and folding, above)
    lesson 09        language_model, perplexity, reading_on, generation; smoothquant, awq, stream, rotate;
                     codebook_layer, adapters
    files            export (ONNX), packed_files (compressed-tensors), gguf_files (llama.cpp)
    lesson 10        processor, engines, machine, speed: the same network in several engines, and how long each takes
"""

from qlearn.nn.adapters import AdaptedLayer, adapter_state, add_adapters, train_adapters
from qlearn.nn.awq import awq
from qlearn.nn.bias_correction import correct_bias
from qlearn.nn.codebook_layer import CodebookLayer, use_codebook
from qlearn.nn.distributed import join_workers
from qlearn.nn.engines import ENGINES, Engine, engine
from qlearn.nn.equalization import equalize, unequalize
from qlearn.nn.export import export_onnx
from qlearn.nn.fake_quantize import FakeQuantize, LearnedFakeQuantize, gradient_scale, learned_step, straight_through
from qlearn.nn.folding import fold_batch_norm
from qlearn.nn.generation import generate
from qlearn.nn.gguf_files import list_gguf, read_gguf_tensor, write_gguf
from qlearn.nn.gptq import gptq, hessians
from qlearn.nn.integer_layers import DynamicLayer, StaticLayer
from qlearn.nn.language_model import (
    LanguageModel,
    language_model,
    load_language_model,
    to_text,
    to_tokens,
)
from qlearn.nn.layers import QuantizedLayer, WeightOnlyLayer
from qlearn.nn.machine import Machine, measure_machine, roofline
from qlearn.nn.mixed_precision import allocate_bits, descent, layer_bytes, overrides_for, sensitivity
from qlearn.nn.models import cnn, load_trained, mlp
from qlearn.nn.packed_files import write_compressed_tensors
from qlearn.nn.perplexity import perplexity
from qlearn.nn.ptq import calibrate, convert, prepare
from qlearn.nn.qat import prepare_qat
from qlearn.nn.rescaling import plant_outliers
from qlearn.nn.rotate import rotate
from qlearn.nn.smoothquant import smooth
from qlearn.nn.speed import Latency, Work, latencies, latency, layer_work
from qlearn.nn.storage import load, save
from qlearn.nn.summary import summary
from qlearn.nn.training import accuracy, to_inputs, train

__all__ = [
    "ENGINES",
    "AdaptedLayer",
    "CodebookLayer",
    "DynamicLayer",
    "Engine",
    "FakeQuantize",
    "LanguageModel",
    "Latency",
    "LearnedFakeQuantize",
    "Machine",
    "QuantizedLayer",
    "StaticLayer",
    "WeightOnlyLayer",
    "Work",
    "accuracy",
    "adapter_state",
    "add_adapters",
    "allocate_bits",
    "awq",
    "calibrate",
    "cnn",
    "convert",
    "correct_bias",
    "descent",
    "engine",
    "equalize",
    "export_onnx",
    "fold_batch_norm",
    "generate",
    "gptq",
    "gradient_scale",
    "hessians",
    "join_workers",
    "language_model",
    "latencies",
    "latency",
    "layer_bytes",
    "layer_work",
    "learned_step",
    "list_gguf",
    "load",
    "load_language_model",
    "load_trained",
    "measure_machine",
    "mlp",
    "overrides_for",
    "perplexity",
    "plant_outliers",
    "prepare",
    "prepare_qat",
    "read_gguf_tensor",
    "roofline",
    "rotate",
    "save",
    "sensitivity",
    "smooth",
    "straight_through",
    "summary",
    "to_inputs",
    "to_text",
    "to_tokens",
    "train",
    "train_adapters",
    "unequalize",
    "use_codebook",
    "write_compressed_tensors",
    "write_gguf",
]
