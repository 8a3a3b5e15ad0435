"""Every public function of nn, handed something wrong: a sentence of ours that names it, and says what would do.

The last line that was reached must be a `raise` of this package: nobody has to guess what PyTorch's words mean here.
"""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qlearn
from qlearn import PerAxis, QuantConfig
from qlearn import nn as qnn
from qlearn.nn.language_model import LanguageModel

PACKAGE = Path(qlearn.__file__).parent
FOUR = QuantConfig(4, symmetric=True, granularity=PerAxis(0))
X, Y = torch.rand(20, 1, 3, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4
TEXT = "The whale, the whale! " * 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(15, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def converted():
    return qnn.convert(qnn.calibrate(qnn.prepare(network()), X, progress=False))


def small():
    torch.manual_seed(0)
    return LanguageModel(width=8, heads=2, hidden=16, blocks=1).eval()


def refused(call, error, message):
    """Whether a call is refused with this sentence, by a `raise` of this package."""
    with warnings.catch_warnings(), pytest.raises(error, match=message) as caught:
        warnings.simplefilter("ignore")
        call()
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert Path(last.filename).is_relative_to(PACKAGE), f"{last.filename}:{last.lineno} says it"
    assert last.line.startswith("raise"), last.line
    text = str(caught.value)
    assert text == text.strip() and not re.search(r"0x[0-9a-f]{6}", text)


# --- batches ----------------------------------------------------------------------------------------------------------

SHOWN = {
    "calibrate": lambda batches: qnn.calibrate(qnn.prepare(network()), batches, progress=False),
    "calibrate, for training": lambda batches: qnn.calibrate(qnn.prepare_qat(network()), batches, progress=False),
    "sensitivity": lambda batches: qnn.sensitivity(network(), batches, bits=(4,)),
    "hessians": lambda batches: qnn.hessians(network(), batches),
    "gptq": lambda batches: qnn.gptq(qnn.prepare(network(), FOUR), batches, progress=False),
    "correct_bias": lambda batches: qnn.correct_bias(converted(), network(), batches, progress=False),
    "smooth": lambda batches: qnn.smooth(network(), batches),
    "awq": lambda batches: qnn.awq(network(), batches, FOUR, progress=False),
    "rotate": lambda batches: qnn.rotate(network(), batches),
}
NO_BATCHES = {
    "nothing": (None, TypeError, r"batches is a NoneType: wanted is a list of batches, \[batch\] for one"),
    "a number": (3, TypeError, "batches is a int: wanted is a list of batches"),
    "a class": (nn.Linear, TypeError, "batches is a type: wanted is a list"),
    "a text": ("digits", TypeError, "a batch is a str: wanted are tensors of inputs, dictionaries of arguments"),
    "no batch": ([], ValueError, "there is no batch: the loader is empty"),
    "a tensor of nothing": (X[:0], ValueError, "there is no batch"),
    "one dictionary": ({"input": X}, TypeError, "batches is a dict: wanted is a list"),
    "one pair": ((X, Y), TypeError, r"may be one batch or several: .*\[\(inputs, labels\)\] for one batch"),
    "arrays": ([X.numpy()], TypeError, r"NumPy arrays, but networks take tensors: nn\.to_inputs makes them"),
    "texts": (["whale"], TypeError, "a batch is a str: wanted are tensors"),
    "another shape": ([torch.rand(5, 7)], RuntimeError, r"the network fails on a batch of shape \(5, 7\) of torch\.float32: "),
    "whole numbers": ([X.long()], RuntimeError, r"fails on a batch of shape \(20, 1, 3, 5\) of torch\.int64: "),
    "NaN": ([X.log() * 0 + torch.nan], ValueError, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("function", SHOWN)
@pytest.mark.parametrize(("batches", "error", "message"), NO_BATCHES.values(), ids=NO_BATCHES)
def test_batches(function, batches, error, message):
    refused(lambda: SHOWN[function](batches), error, message)


# --- networks ---------------------------------------------------------------------------------------------------------

MODELS = {
    "nothing": (None, TypeError, "model is a NoneType: wanted is a network, an nn.Module"),
    "a class": (nn.Linear, TypeError, r"model is the class Linear: wanted is a network, Linear\(…\)"),
    "a function": (lambda x: x, TypeError, "model is a function: wanted is a network"),
    "an array": (np.zeros(3), TypeError, "model is a ndarray: wanted is a network"),
    "a configuration": (FOUR, TypeError, "model is a QuantConfig: wanted is a network"),
}
TAKE_MODELS = {
    "prepare": qnn.prepare,
    "prepare_qat": qnn.prepare_qat,
    "calibrate": lambda model: qnn.calibrate(model, X, progress=False),
    "convert": qnn.convert,
    "sensitivity": lambda model: qnn.sensitivity(model, X),
    "layer_bytes": qnn.layer_bytes,
    "accuracy": lambda model: qnn.accuracy(model, X, Y),
    "train": lambda model: qnn.train(model, X, Y, epochs=1, progress=False),
    "summary": qnn.summary,
    "save": lambda model: qnn.save(model, "never.safetensors"),
    "load": lambda model: qnn.load(model, "never.safetensors"),
    "export_onnx": lambda model: qnn.export_onnx(model, "never.onnx", (1, 3, 5)),
    "perplexity": lambda model: qnn.perplexity(model, TEXT),
    "generate": lambda model: qnn.generate(model, "Call me", length=2),
    "hessians": lambda model: qnn.hessians(model, X),
    "gptq": lambda model: qnn.gptq(model, X, progress=False),
    "correct_bias": lambda model: qnn.correct_bias(model, network(), X, progress=False),
    "correct_bias, float": lambda model: qnn.correct_bias(converted(), model, X, progress=False),
    "fold_batch_norm": qnn.fold_batch_norm,
    "equalize": qnn.equalize,
    "unequalize": qnn.unequalize,
    "smooth": lambda model: qnn.smooth(model, X),
    "awq": lambda model: qnn.awq(model, X, FOUR, progress=False),
    "plant_outliers": qnn.plant_outliers,
    "rotate": lambda model: qnn.rotate(model, X),
    "add_adapters": qnn.add_adapters,
    "adapter_state": qnn.adapter_state,
    "train_adapters": lambda model: qnn.train_adapters(model, TEXT, progress=False),
    "use_codebook": lambda model: qnn.use_codebook(model, [-1.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("function", TAKE_MODELS)
@pytest.mark.parametrize(("model", "error", "message"), MODELS.values(), ids=MODELS)
def test_networks(function, model, error, message):
    refused(lambda: TAKE_MODELS[function](model), error, message)


@pytest.mark.parametrize(
    "function",
    [
        *("prepare", "prepare_qat", "sensitivity", "layer_bytes", "accuracy", "train", "save", "load", "export_onnx"),
        *("hessians", "gptq", "correct_bias, float", "fold_batch_norm", "equalize", "unequalize", "smooth", "awq"),
        "rotate",
    ],
)
def test_networks_without_numbers(function):
    message = r"1\.weight is on the meta device, where it has a shape and no numbers: load the weights first"
    refused(lambda: TAKE_MODELS[function](network().to("meta")), ValueError, message)


AT_ANOTHER_STEP = {
    "calibrate a float network": (lambda: qnn.calibrate(network(), X), ValueError, r"call nn\.prepare\(model\) first"),
    "convert a float network": (lambda: qnn.convert(network()), ValueError, r"nn\.prepare\(model\) and nn\.calibrate"),
    "convert twice": (lambda: qnn.convert(converted()), ValueError, "is quantized already: its layers hold codes"),
    "calibrate a converted one": (lambda: qnn.calibrate(converted(), X), ValueError, "is quantized already"),
    "convert what has seen nothing": (
        lambda: qnn.convert(qnn.prepare(network())), RuntimeError,
        r"call nn\.calibrate\(model, batches\) before convert: no data has reached 1, 3\. .*overrides=\{'1, 3': None\}",
    ),
    "prepare twice": (lambda: qnn.prepare(qnn.prepare(network())), ValueError, "prepared already: call nn.prepare once"),
    "prepare for training twice": (lambda: qnn.prepare_qat(qnn.prepare(network())), ValueError, "prepared already"),
    "prepare a converted one": (lambda: qnn.prepare(converted()), ValueError, "is quantized already: its layers hold"),
    "prepare what has no layer": (lambda: qnn.prepare(nn.LSTM(2, 2)), ValueError, "LSTM has no Linear, Conv1d, Conv2d"),
    "train a converted one": (
        lambda: qnn.train(converted(), X, Y, epochs=1, progress=False), ValueError,
        r"nothing that can be trained: of a converted one, nn\.prepare_qat makes a network that learns",
    ),
    "train one with a batch norm before its codes": (
        lambda: qnn.train(nn.Sequential(nn.BatchNorm2d(1), converted()), X, Y, epochs=1, progress=False), ValueError,
        r"layer '3' rounds its inputs, and no gradient goes through that: nn\.prepare_qat makes a network that learns",
    ),
    "use one before its first data": (
        lambda: qnn.prepare_qat(network())(X), RuntimeError, r"layer '1': no data has reached its input: call nn\.calibrate",
    ),
    "export a prepared one": (
        lambda: qnn.export_onnx(qnn.prepare(network()), "never.onnx", (1, 3, 5)), ValueError,
        "module '1', ObservedLayer, .*only prepared, so call nn.convert first",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), AT_ANOTHER_STEP.values(), ids=AT_ANOTHER_STEP)
def test_networks_that_are_at_another_step(call, error, message):
    refused(call, error, message)


# --- arguments of their own -------------------------------------------------------------------------------------------


def accuracy(images=X, labels=Y, **options):
    return lambda: qnn.accuracy(network(), images, labels, **options)


def train(images=X, labels=Y, **options):
    return lambda: qnn.train(network(), images, labels, **{"epochs": 1, "progress": False, **options})


def sensitivity(forward=None, batches=X, **options):
    return lambda: qnn.sensitivity(network(), batches, forward=forward, **{"bits": (4,), **options})


ARGUMENTS = {
    # labels and images
    "labels in a column": (accuracy(labels=Y[:, None]), ValueError, r"labels have shape \(20, 1\): .* labels\[:, 0\] is"),
    "one-hot labels": (train(labels=torch.eye(4)[Y]), ValueError, r"shape \(20, 4\): .* labels\.argmax\(1\), if they are one-hot"),
    "labels that are floats": (accuracy(labels=Y / 2), TypeError, "labels have dtype torch.float32: wanted are whole numbers"),
    "labels beyond the classes": (train(labels=Y + 1), ValueError, "labels go from [12] to 4, and the network knows the classes 0 to 3"),
    "labels below 0": (accuracy(labels=Y - 1), ValueError, "labels go from -1 to 2"),
    "labels in words": (accuracy(labels=["cat"] * 20), TypeError, "labels cannot be made a tensor, which takes numbers"),
    "no labels": (train(labels=None), TypeError, "labels cannot be made a tensor"),
    "a single label": (accuracy(labels=3), ValueError, "labels is a single number: wanted is an array with one entry"),
    "fewer labels": (accuracy(labels=Y[:3]), ValueError, "20 images and 3 labels: there must be one label for each"),
    "no images": (accuracy(images=None), TypeError, "images cannot be made a tensor"),
    "images of ragged rows": (lambda: qnn.to_inputs([[1.0], [1.0, 2.0]]), TypeError, "images cannot be made a tensor, which takes numbers in rows of equal length"),
    "images that are int64": (accuracy(images=X[:, 0].long()), TypeError, r"images have dtype torch\.int64: they must be bytes"),
    "images with a mask": (accuracy(images=np.ma.masked_less(X.numpy(), 0.5)), TypeError, r"images is a masked array, .*images\.filled\(0\)"),
    "labels with a mask": (train(labels=np.ma.masked_equal(Y.numpy(), 0)), TypeError, "labels is a masked array"),
    "bytes in rows": (accuracy(images=X.flatten(1).byte()), ValueError, r"images have shape \(20, 15\): \(N, H, W\) or"),
    "images of another size": (accuracy(images=X[..., :2]), RuntimeError, r"the network fails on a batch of shape \(20, 1, 3, 2\) of torch\.float32"),
    "images of NaN": (accuracy(images=X * torch.nan), ValueError, "the network puts out NaN: it has no accuracy"),
    "training on NaN": (train(images=X * torch.nan), ValueError, "the loss is nan: images hold numbers that are not finite, or learning_rate=0.004"),
    "outputs that are no logits": (accuracy(forward=lambda model, x: model(x).flatten()), ValueError, r"for 20 images the network puts out shape \(80,\): wanted are logits, \(N, C\)"),
    "outputs without logits": (accuracy(forward=lambda model, x: {"loss": 1}), TypeError, "puts out a dict with loss, and no logits"),
    # numbers
    "batches of nothing": (accuracy(batch_size=0), ValueError, "batch_size=0 must be a whole number, 1 or more"),
    "batches of a half": (train(batch_size=2.5), TypeError, "batch_size=2.5 must be a whole number"),
    "no epochs": (train(epochs=0), ValueError, "epochs=0 must be a whole number, 1 or more"),
    "epochs in words": (train(epochs="3"), TypeError, "epochs='3' must be a whole number"),
    "a learning rate below 0": (train(learning_rate=-1), ValueError, "learning_rate=-1 must be larger than 0, and finite"),
    "a learning rate of NaN": (train(learning_rate=torch.nan), ValueError, "learning_rate=nan must be larger than 0"),
    "a seed in words": (train(seed="a"), TypeError, "seed='a' must be a whole number"),
    # configurations
    "weights that are bits": (lambda: qnn.prepare(network(), 8), TypeError, "layer '1': weights must be a QuantConfig, not 8"),
    "activations that are bits": (lambda: qnn.prepare(network(), FOUR, 8), TypeError, "layer '1': activations must be a QuantConfig, not 8"),
    "bits that are no list": (sensitivity(bits=4), TypeError, r"bits=4 must be numbers to try, \(8, 4\)"),
    "sizes of one number of bits": (lambda: qnn.layer_bytes(network(), bits=4), TypeError, "bits=4 must be numbers to try"),
    "too many bits": (sensitivity(bits=(9,)), ValueError, "layer '1': weights of 9 bits; these layers take 2 to 8"),
    "no weights": (sensitivity(weights=None), TypeError, "weights must be a QuantConfig, not None"),
    "a forward that is no function": (sensitivity(forward=3), TypeError, r"forward is a int: wanted is a function, lambda model, batch: model\(…\)"),
    # sensitivity
    "one class": (sensitivity(lambda model, x: model(x)[:, :1]), ValueError, r"shape \(20, 1\): wanted are logits \(…, C\), of two classes or more"),
    "a sum": (sensitivity(lambda model, x: model(x).sum()), ValueError, r"shape \(\): wanted are logits"),
    "another number of classes in each batch": (sensitivity(lambda model, x: model(x)[:, : len(x)], [X[:3], X[:2]]), ValueError, r"shape \(2, 2\): .* as many for each batch"),
    "batches that hold nothing": (sensitivity(batches=[X[:0]]), ValueError, "the batches hold no example: nothing can be measured"),
    # mixed precision
    "no table": (lambda: qnn.allocate_bits(None, {}, 3), TypeError, r"sensitivity must be a table \{layer: \{bits: number\}\}, not None"),
    "a flat table": (lambda: qnn.descent({"a": 1}, {"a": 2}), TypeError, "sensitivity must be a table"),
    "a budget in words": (lambda: qnn.allocate_bits({"a": {8: 0.0}}, {"a": {8: 1}}, "1"), TypeError, "budget='1' must be a number"),
    "bits of no layer": (lambda: qnn.overrides_for(None), TypeError, r"bits=None must be \{layer: bits\}"),
    # text
    "a text of bytes": (lambda: qnn.perplexity(small(), TEXT.encode()), TypeError, "text is a bytes: wanted is a text"),
    "a short text": (lambda: qnn.perplexity(small(), "Call me"), ValueError, "the text has 7 characters: 129 are needed"),
    "a text of other letters": (lambda: qnn.perplexity(small(), TEXT + "ß"), ValueError, "the text has 'ß' at place 176: the model knows"),
    "a network of images": (lambda: qnn.perplexity(network(), TEXT), RuntimeError, r"the network fails on a batch of shape \(1, 128\) of torch\.int64"),
    "a network of no characters": (lambda: qnn.perplexity(nn.Embedding(80, 5), TEXT), ValueError, r"shape \(1, 128, 5\): wanted are logits, one for each of 80"),
    "no tokens": (lambda: qnn.perplexity(small(), []), ValueError, r"tokens have shape \(0,\): wanted are some, \(T,\) or \(N, T\)"),
    "tokens of a half": (lambda: qnn.perplexity(small(), [0.5, 1.0]), TypeError, "tokens have dtype torch.float32: wanted are whole numbers"),
    "few tokens": (lambda: qnn.perplexity(small(), torch.zeros(3, 128, dtype=int)), ValueError, "the text has 128 tokens: 129 are needed"),
    "tokens of another": (lambda: qnn.perplexity(small(), [500] * 200), ValueError, "tokens go from 500 to 500, and the network has logits for 0 to 79: they come from another model's tokenizer"),
    "tokens below 0": (lambda: qnn.perplexity(small(), [-100] * 200), ValueError, "tokens go from -100 to -100, and"),
    "tokens without a row": (lambda: qnn.perplexity(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 9)), [7] * 9, context=4), ValueError, "cannot look up tokens of up to 7 at 4 places"),
    "texts of two lengths": (lambda: qnn.perplexity(small(), [[1, 2], [1]]), TypeError, "Texts of different lengths are to be joined to one"),
    "a tokenizer's all": (lambda: qnn.perplexity(small(), {"input_ids": [1]}), TypeError, r"text is a dict: wanted are the tokens alone, text\['input_ids'\]"),
    "no window": (lambda: qnn.perplexity(small(), TEXT, context=0), ValueError, "context=0 must be a whole number, 1 or more"),
    "logits of nothing": (lambda: qnn.perplexity(nn.Flatten(), [1] * 200), ValueError, r"shape \(1, 1\): wanted are logits, one for each token"),
    "a prompt of tokens": (lambda: qnn.generate(small(), qnn.to_tokens("a")), TypeError, "prompt is a Tensor: wanted is a text"),
    "no prompt": (lambda: qnn.generate(small(), ""), ValueError, "prompt='', length=200, temperature=0.7: none may be empty"),
    "a length of a half": (lambda: qnn.generate(small(), "a", length=2.5), TypeError, "length=2.5, .*: all must be numbers"),
    "a temperature of NaN": (lambda: qnn.generate(small(), "a", temperature=torch.nan), ValueError, "temperature=nan"),
    "a text for the model": (lambda: small()("Call me"), ValueError, "tokens has str: wanted are whole numbers"),
    "tokens that are floats": (lambda: small()(torch.rand(1, 5)), ValueError, r"tokens has shape \(1, 5\), torch\.float32"),
    "tokens without a batch": (lambda: small()(torch.arange(5)), ValueError, r"tokens has shape \(5,\), torch\.int64: wanted .* \(N, T\)"),
    "tokens of no character": (lambda: small()(torch.tensor([[3, 80]])), ValueError, "tokens go from 3 to 80: the model knows 0 to 79"),
    "numbers of no character": (lambda: qnn.to_text(torch.tensor([[5, -1]])), ValueError, "tokens go from -1 to 5: the model knows 0 to 79"),
    "numbers of no character, but floats": (lambda: qnn.to_text(torch.rand(1, 5)), TypeError, "tokens has dtype torch.float32: wanted is a tensor of whole"),
    "tokens with a mask": (lambda: qnn.perplexity(small(), np.ma.masked_equal(np.ones(200, int), 0)), TypeError, "text is a masked array"),
    "a text that is a text already": (lambda: qnn.to_text("abc"), TypeError, "tokens is a str: wanted is a tensor"),
    # layers
    "a layer and NumPy": (lambda: converted()[1](np.zeros((2, 15), np.float32)), TypeError, "layer '1': its input is a ndarray: it must be a tensor"),
    "a layer and another shape": (lambda: converted()[1](torch.rand(2, 14)), ValueError, "layer '1'.* 14"),
    "weights only and another shape": (lambda: qnn.convert(qnn.prepare(network(), activations=None))[1](torch.rand(2, 14)), ValueError, r"layer '1' does not take an input of shape \(2, 14\): "),
    "a convolution and other channels": (lambda: qnn.convert(qnn.prepare(nn.Sequential(nn.Conv2d(1, 2, 3)), activations=QuantConfig(method="dynamic")))(torch.rand(2, 3, 5, 5)), ValueError, r"layer '0' does not take an input of shape \(2, 3, 5, 5\): "),
    "training on whole numbers": (lambda: qnn.prepare_qat(network()).train()(X.long()), TypeError, r"layer '1': its input has dtype torch\.int64: it must hold floats"),
    "a lazy layer": (lambda: qnn.prepare(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))), ValueError, r"0\.weight has no shape yet, being part of a lazy layer: call the network once"),
    "folding a lazy layer": (lambda: qnn.fold_batch_norm(nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4))), ValueError, r"0\.weight has no shape yet"),
    "layers of complex numbers": (lambda: qnn.equalize(nn.Sequential(*(nn.Linear(4, 4, dtype=torch.complex64) for _ in "ab"))), ValueError, "nothing to equalize"),
    "a text for a number": (lambda: qnn.smooth(network(), X, alpha="0.5"), TypeError, "alpha='0.5' must be a number"),
    "a learning rate in words": (train(learning_rate="0.1"), TypeError, "learning_rate='0.1' must be a number"),
    "a spread in a list": (lambda: qnn.unequalize(network(), spread=[1]), TypeError, r"spread=\[1\] must be a number"),
    "seeds in words": (lambda: qnn.mlp(seed="a"), TypeError, "seed='a' must be a whole number"),
    "no seed for a language model": (lambda: qnn.language_model(seed=None), TypeError, "seed=None must be a whole number"),
    "a rank's weight in words": (lambda: qnn.add_adapters(network(), alpha="2"), TypeError, "alpha='2' must be a number"),
    "layers in a list": (lambda: qnn.add_adapters(network(), layers=["1"]), TypeError, r"layers=\['1'\] must be a name or a pattern"),
    "outliers in words": (lambda: qnn.plant_outliers(small(), factor="2"), TypeError, "factor='2' must be a number"),
    "sites by name": (lambda: qnn.smooth(small(), [qnn.to_tokens(TEXT[:9])], sites=["blocks.0"]), TypeError, "sites must be a list of rescaling.Site"),
    "a grid of a half": (lambda: qnn.awq(small(), [qnn.to_tokens(TEXT[:9])], FOUR, grid=2.5), TypeError, "grid=2.5 must be a whole number"),
    "awq for bits": (lambda: qnn.awq(small(), [qnn.to_tokens(TEXT[:9])], 4), TypeError, "weights must be a QuantConfig, not 4"),
    "overrides for bits": (lambda: qnn.overrides_for({"1": 4}, 4), TypeError, "weights must be a QuantConfig, not 4"),
    "overrides that are an array": (lambda: qnn.prepare(network(), overrides=np.ones(2)), TypeError, r"overrides=array\(.* must be a dictionary"),
    "nobody to leave": (lambda: qnn.use_codebook(network(), [-1.0, 1.0], leave=3), TypeError, "leave=3 must be the names of layers"),
    "a block of a half": (lambda: qnn.use_codebook(network(), [-1.0, 1.0], block=2.5), TypeError, "layer '1': block=2.5 must be a whole number"),
    "a kind in a list": (lambda: qnn.write_gguf(network(), "never.gguf", ["Q8_0"]), ValueError, r"kind=\['Q8_0'\] must be one of"),
    "trained weights of a list": (lambda: qnn.load_trained(["mlp"]), ValueError, r"name=\['mlp'\]: there are trained weights"),
    "somebody to tell who is none": (lambda: qnn.generate(small(), "a", each=3), TypeError, "each is a int: wanted is a function"),
    "a gradient for an array": (lambda: qnn.straight_through(np.ones(2), qlearn.QParams(1.0, 0, -1, 1)), TypeError, "x is a ndarray: it must be a tensor"),
    "a scale that cannot learn": (lambda: qnn.learned_step(X, 0.1, 0, -1, 1), TypeError, "scale is a float: it must be a tensor"),
    "images without numbers": (accuracy(images=X.to("meta")), TypeError, "images are on the meta device"),
    "another name of a network": (lambda: qnn.load_trained("vgg"), ValueError, "name='vgg': there are trained weights for 'mlp' and 'cnn'"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(call, error, message):
    refused(call, error, message)


# --- files ------------------------------------------------------------------------------------------------------------

WRITERS = {
    "save": qnn.save,
    "export_onnx": lambda model, path: qnn.export_onnx(model, path, (1, 3, 5)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_places_for_files(write, tmp_path):
    refused(lambda: write(network(), tmp_path), IsADirectoryError, "is a folder: wanted is the name of a file in it")
    message = "there is no folder .*missing: make it first, or write somewhere else"
    refused(lambda: write(network(), tmp_path / "missing" / "file"), FileNotFoundError, message)
    for path in (None, 3):
        refused(lambda path=path: write(network(), path), TypeError, "path is a .*: wanted is the name of a file")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there(tmp_path):
    refused(lambda: qnn.load(network(), tmp_path / "lost"), FileNotFoundError, "there is no file .*lost")
    refused(lambda: qnn.load(network(), tmp_path), FileNotFoundError, "there is no file")
    refused(lambda: qnn.load(network(), None), TypeError, "path is a NoneType: wanted is the name of a file")
    refused(lambda: qnn.load("file", network()), TypeError, "model is a str: wanted is a network")


@pytest.mark.parametrize("shape", [15, "1,3,5", None, (1.5, 2), [None, 3]])
def test_shapes_for_files(shape, tmp_path):
    message = r"input_shape=.* must be the shape of one example: \(1, 28, 28\)"
    refused(lambda: qnn.export_onnx(network(), tmp_path / "a.onnx", shape), TypeError, message)


def test_a_shape_that_a_network_does_not_take(tmp_path):
    for shape in ((3, 4), (-1, 3, 5)):
        message = "the network does not take an input_shape of"
        refused(lambda shape=shape: qnn.export_onnx(network(), tmp_path / "a.onnx", shape), ValueError, message)


# --- what is right, in other clothes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turned",
    [
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: a[::-1].copy()[::-1],
        np.asfortranarray,
        lambda a: list(torch.tensor(a)),
        lambda a: list(a),
    ],
    ids=["the other byte order", "backwards", "Fortran", "a list of tensors", "a list of arrays"],
)
@pytest.mark.filterwarnings("ignore:Creating a tensor from a list")
def test_images_labels_and_tokens_however_they_lie_in_memory(turned):
    model, tokens = network().eval(), np.arange(300) % 80
    images, labels = X.numpy(), model(X).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 4
    assert qnn.accuracy(model, turned(images), turned(labels)) == qnn.accuracy(model, X, labels) == 0.95
    assert torch.equal(qnn.to_inputs(turned(images)), X)
    assert qnn.perplexity(small(), turned(tokens)) == qnn.perplexity(small(), tokens)


def test_tokens_may_be_bytes():
    tokens = qnn.to_tokens("Call me Ishmael.")
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(small()(tokens.to(dtype)), small()(tokens))
