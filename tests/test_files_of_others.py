"""Networks in files that other libraries read: the same codes, the same numbers, complete or not there at all."""

from __future__ import annotations

import builtins
import json
import sys
import warnings

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import qlearn
from qlearn import PerAxis, PerGroup, PerTensor, QuantConfig
from qlearn.gguf_blocks import TYPES, unpack_q4_0, unpack_q8_0
from qlearn.nn import LanguageModel, list_gguf, read_gguf_tensor, to_tokens, write_compressed_tensors, write_gguf
from qlearn.nn.layers import quantized_layers
from qlearn.nn.packed_files import _words

TEXT = "Call me Ishmael."


def symmetric(bits=4, granularity=PerGroup(32)):
    return QuantConfig(bits=bits, symmetric=True, granularity=granularity)


def small_model(seed=0):
    torch.manual_seed(seed)
    return LanguageModel(width=96, heads=2, hidden=256, blocks=1).eval()


def prepared(model=None, config=symmetric(), activations=None, overrides=None):
    with warnings.catch_warnings(action="ignore"):  # of what stays in float
        return qlearn.nn.prepare(model or small_model(), config, activations, overrides=overrides)


def quantized(model=None, config=symmetric(), **overrides):
    return qlearn.nn.convert(prepared(model, config, overrides=overrides or None))


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- compressed-tensors ----------------------------------------------------------------------------------------------


def read_by_compressed_tensors(folder, model):
    """A float network that the package has filled with the numbers in a folder."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    compressor = ModelCompressor(quantization_config=QuantizationConfig(**config))
    apply_quantization_config(model, compressor.quantization_config)
    compressor.compress_model(model)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    compressor.decompress_model(model)
    return model


@pytest.mark.parametrize("granularity", [PerGroup(32), PerGroup(16), PerAxis(0), PerTensor()], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_reads_codes_and_values(bits, granularity, tmp_path):
    model = quantized(config=symmetric(bits, granularity), head=None)
    size = write_compressed_tensors(model, tmp_path / "network")
    assert size == sum(path.stat().st_size for path in (tmp_path / "network").iterdir())
    state = load_file(tmp_path / "network/model.safetensors")
    for name, layer in quantized_layers(model).items():
        packed, shape = state[f"{name}.weight_packed"], state[f"{name}.weight_shape"]
        assert torch.equal(packed, pack_to_int32(layer.weight_codes, bits))
        assert torch.equal(unpack_from_int32(packed, bits, torch.Size(shape.tolist())), layer.weight_codes)
    theirs = read_by_compressed_tensors(tmp_path / "network", small_model(1))
    for name, layer in quantized_layers(model).items():
        assert torch.equal(theirs.get_submodule(name).weight, layer.weight)
    assert torch.equal(theirs.head.weight, model.head.weight)
    assert torch.equal(theirs(to_tokens(TEXT)), model(to_tokens(TEXT)))


def test_the_language_model_of_the_lessons(tmp_path):
    model = quantized(qlearn.nn.load_language_model(), symmetric(4, PerGroup(64)))
    write_compressed_tensors(model, tmp_path)
    theirs = read_by_compressed_tensors(tmp_path, LanguageModel())
    assert torch.equal(theirs(to_tokens(TEXT)), model(to_tokens(TEXT)))
    packed = sum(layer.weight_codes.numel() for layer in quantized_layers(model).values()) // 2
    scales = sum(4 * layer.weight_scale.numel() for layer in quantized_layers(model).values())
    others = 4 * (sum(p.numel() for p in LanguageModel().parameters()) - 2 * packed)
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - packed - scales - others < 12_000  # names and shapes


def test_several_kinds_of_layers_and_biases(tmp_path):
    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(33, 20), nn.ReLU(), nn.Sequential(nn.Linear(20, 7, bias=False)), nn.Linear(7, 3))

    overrides = {"0": {"weights": symmetric(8, PerGroup(11))}, "3": None}
    model = quantized(network(0), symmetric(4, PerAxis(0)), **overrides)
    write_compressed_tensors(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert [(g["targets"], g["weights"]["num_bits"]) for g in config["config_groups"].values()] == [
        (["0"], 8),
        (["2.0"], 4),
    ]
    assert config["ignore"] == ["3"]
    theirs, x = read_by_compressed_tensors(tmp_path, network(1)), torch.rand(5, 33)
    assert torch.equal(theirs(x), model(x))


def test_a_layer_by_itself(tmp_path):
    layer = quantized(nn.Linear(64, 5))
    write_compressed_tensors(layer, tmp_path)
    assert sorted(load_file(tmp_path / "model.safetensors")) == [
        "bias",
        "weight_packed",
        "weight_scale",
        "weight_shape",
    ]


@pytest.mark.filterwarnings("ignore:left in float")
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_its_own_models_back(tied, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=96, tie_word_embeddings=tied, **sizes)
    model, tokens = transformers.LlamaForCausalLM(config).eval(), torch.arange(12).reshape(2, 6)
    weights = QuantConfig(bits=4, symmetric=True, granularity=PerGroup(32))
    network = qlearn.nn.convert(qlearn.nn.prepare(model, weights, None))
    qlearn.nn.write_compressed_tensors(network, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, network(tokens).logits)
        assert not torch.equal(again(tokens).logits, model(tokens).logits)


def test_shared_numbers_are_written_once(tmp_path):
    layer = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Embedding(4, 32), "d": nn.Embedding(4, 32)})
    model["d"].weight = model["c"].weight
    write_compressed_tensors(quantized(model), tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == {"a.bias", "a.weight_packed", "a.weight_scale", "a.weight_shape", "c.weight"}


@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from([4, 8]), st.integers(0, 99))
def test_words_of_any_shape_are_theirs(rows, columns, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=generator, dtype=torch.int8)
    assert torch.equal(_words(codes, bits), pack_to_int32(codes, bits))


def test_a_folder_is_written_again_and_others_left_alone(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for seed in (0, 1):
        model = quantized(small_model(seed))
        write_compressed_tensors(model, tmp_path)
        assert files_in(tmp_path) == ["config.json", "model.safetensors", "tokenizer.json"]
        theirs = read_by_compressed_tensors(tmp_path, small_model(2))
        assert torch.equal(theirs(to_tokens(TEXT)), model(to_tokens(TEXT)))


@pytest.mark.parametrize("at", ["save_file", "write_whole"])
def test_an_interrupted_folder_is_not_taken_for_a_complete_one(at, tmp_path, monkeypatch):
    write_compressed_tensors(quantized(), tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"qlearn.nn.packed_files.{at}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_compressed_tensors(quantized(small_model(1)), tmp_path)
    # What was there, or weights without a config: never the config of one network with the weights of another.
    assert files_in(tmp_path) == (["config.json", "model.safetensors"] if at == "save_file" else ["model.safetensors"])


# --- GGUF ------------------------------------------------------------------------------------------------------------


def read_by_gguf(path):
    """The tensors of a file as their own reader has them: name → (type, bytes, numbers)."""
    return {
        t.name: (
            t.tensor_type.name,
            t.data,
            gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist()),
        )
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("kind", TYPES)
def test_gguf_reads_the_language_model_of_the_lessons(kind, tmp_path):
    model = qlearn.nn.load_language_model()
    path = tmp_path / "model.gguf"
    size = write_gguf(model, path, kind, otherwise="Q4_0")
    assert size == path.stat().st_size and files_in(tmp_path) == ["model.gguf"]
    found, types, state = read_by_gguf(path), {}, model.state_dict()
    assert list(found) == list(state) == list(list_gguf(path))
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, (of, data, numbers) in found.items():
        types[name] = of
        weight = state[name].numpy()
        if name in linear:
            assert np.array_equal(data, TYPES[of].quantize(weight))
            assert np.array_equal(numbers, TYPES[of].dequantize(data))
            assert of == ("Q4_0" if weight.shape[1] % TYPES[kind].values else kind)
        else:
            assert of == "F32" and np.array_equal(numbers, weight)
        assert np.array_equal(read_gguf_tensor(path, name), numbers)
        assert list_gguf(path)[name] == (of, weight.shape)
    assert kind in types.values()
    stored = sum(state[n].numel() * (TYPES[of].bits_per_value / 8 if of in TYPES else 4) for n, of in types.items())
    assert 0 <= size - stored < 6_000  # names, shapes, and filling up to 32 bytes


@pytest.mark.parametrize("granularity", [PerGroup(32), PerGroup(96), PerAxis(0), PerTensor()], ids=str)
@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q8_0", 4), ("Q4_0", 4), ("Q4_0", 3)])
def test_codes_are_stored_as_they_are(kind, bits, granularity, tmp_path):
    torch.manual_seed(0)
    model = quantized(
        nn.Sequential(nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 3)),
        symmetric(bits, granularity),
        **{"2": None},
    )
    write_gguf(model, tmp_path / "model.gguf", kind)
    found, layer = read_by_gguf(tmp_path / "model.gguf"), model[0]
    assert {name: of for name, (of, *_) in found.items()} == {
        "2.weight": "F32",
        "2.bias": "F32",
        "0.weight": kind,
        "0.bias": "F32",
    }
    codes, d = (unpack_q8_0 if kind == "Q8_0" else unpack_q4_0)(np.array(found["0.weight"][1]))
    assert np.array_equal(codes.reshape(10, 96), layer.weight_codes.numpy())
    scale = layer.weight_scale.detach().numpy().astype(np.float16).astype(np.float32)
    assert np.array_equal(
        d[..., 0], np.broadcast_to(np.repeat(scale, 3 // scale.shape[1], 1) if scale.ndim else scale, (10, 3))
    )
    assert np.array_equal(found["0.bias"][2], layer.bias.detach().numpy())
    assert np.allclose(found["0.weight"][2], layer.weight.detach().numpy(), rtol=2**-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_types(dtype, tmp_path):
    model = nn.Sequential(nn.Linear(32, 4)).to(dtype)
    write_gguf(model, tmp_path / "model.gguf")
    expected = TYPES["Q8_0"].quantize(model[0].weight.detach().float().numpy())
    assert np.array_equal(read_by_gguf(tmp_path / "model.gguf")["0.weight"][1], expected)


def test_whole_numbers_stay_what_they_are(tmp_path):
    model = nn.Sequential(nn.Linear(32, 4), nn.BatchNorm1d(4))
    write_gguf(model, tmp_path / "model.gguf")
    assert list_gguf(tmp_path / "model.gguf")["1.num_batches_tracked"][0] == "I64"
    with pytest.raises(
        ValueError, match="'1.num_batches_tracked' in .* has the type I64; read are Q8_0, Q4_0, Q4_K, F32"
    ):
        read_gguf_tensor(tmp_path / "model.gguf", "1.num_batches_tracked")
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="'mask' has dtype torch.bool, for which GGUF has no type"):
        write_gguf(model, tmp_path / "model.gguf")


def stranger(path):
    """A file by somebody else, with text and lists in its head, and tensors of several types."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("somebody's model")
    writer.add_token_list(["a", "b", "whale"])
    writer.add_token_types([1, 1, 3])
    data = {}
    for kind in ("Q4_K", "Q6_K", "F16", "Q8_0"):
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
        if kind == "F16":
            data[kind] = rng.normal(size=(2, 256)).astype(np.float16)
            writer.add_tensor(kind, data[kind])
            continue
        data[kind] = rng.integers(0, 60, size=(2, size), dtype=np.uint8)
        writer.add_tensor(kind, data[kind], raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return data


def test_a_strangers_file(tmp_path):
    path = tmp_path / "model.gguf"
    data = stranger(path)
    assert list_gguf(path) == {
        "Q4_K": ("Q4_K", (2, 256)),
        "Q6_K": ("Q6_K", (2, 256)),
        "F16": ("F16", (2, 256)),
        "Q8_0": ("Q8_0", (2, 32)),
    }
    for kind in ("Q4_K", "Q8_0", "F16"):
        numbers = read_gguf_tensor(path, kind)
        assert numbers.dtype == np.float32
        assert np.array_equal(numbers, gguf.quants.dequantize(data[kind], gguf.GGMLQuantizationType[kind]))
    with pytest.raises(ValueError, match="'Q6_K' in .* has the type Q6_K; read are Q8_0, Q4_0, Q4_K, F32 and F16"):
        read_gguf_tensor(path, "Q6_K")
    with pytest.raises(ValueError, match="has no tensor 'head'; it has Q4_K, Q6_K, F16, Q8_0"):
        read_gguf_tensor(path, "head")


def test_a_file_cut_anywhere_is_told_so(tmp_path):
    path, cut = tmp_path / "model.gguf", tmp_path / "cut.gguf"
    stranger(path)
    content = path.read_bytes()
    for length in [*range(4, 700, 7), len(content) - 40]:
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut.gguf is cut short, or damaged"):
            read_gguf_tensor(cut, "Q8_0")
    for start in (b"", b"GGU", b"PK\x03\x04 a checkpoint"):
        cut.write_bytes(start)
        with pytest.raises(ValueError, match="cut.gguf is not a GGUF file: it begins with b'"):
            list_gguf(cut)


def test_an_interrupted_file_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    write_gguf(nn.Linear(32, 4), path)
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_gguf(nn.Linear(32, 4), path)
    assert path.read_bytes() == before and files_in(tmp_path) == ["model.gguf"]


# --- bad input -------------------------------------------------------------------------------------------------------

COMPRESSED = {
    "float": (lambda: small_model(), "LanguageModel has no layer with codes: call nn.prepare"),
    "three bits": (
        lambda: quantized(config=symmetric(3)),
        "layer 'blocks.0.attention.query' has codes of 3 bits: .* 4 and 8",
    ),
}
BOTH = {
    "prepared": (
        lambda: prepared(),
        "'blocks.0.attention.query', .* is only prepared: call nn.convert",
    ),
    "asymmetric": (
        lambda: quantized(config=QuantConfig(bits=4)),
        "layer 'blocks.0.attention.query' has asymmetric codes",
    ),
    "inputs": (
        lambda: qlearn.nn.convert(
            prepared(config=symmetric(granularity=PerAxis(0)), activations=QuantConfig(method="dynamic"))
        ),
        "layer 'blocks.0.attention.query' quantizes its input, too: use activations=None",
    ),
    "convolution": (
        lambda: quantized(nn.Sequential(nn.Conv2d(32, 4, 1))),
        "layer '0' is a Conv2d: .* Linear layers only",
    ),
    "convolutions": (
        lambda: quantized(nn.Sequential(nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Linear(32, 4), nn.Conv1d(32, 4, 1))),
        r"layers 0 \(Conv2d\), 3 \(Conv1d\) are none: .* Linear layers only; overrides=\{'0, 3': None\} leaves",
    ),
    "adapters": (lambda: qlearn.nn.add_adapters(quantized()), "AdaptedLayer, holds more than codes and scales"),
    "codebook": (
        lambda: qlearn.nn.use_codebook(small_model(), [-1.0, 0.0, 1.0], block=32),
        "CodebookLayer, holds more than",
    ),
}
GGUF = {
    "no linear": (lambda: nn.Sequential(nn.ReLU()), {}, "Sequential has no Linear: nothing in it can be stored as Q8_0"),
    "type": (small_model, {"kind": "Q5_K"}, "kind='Q5_K' must be one of 'Q8_0', 'Q4_0', 'Q4_K'"),
    "other type": (small_model, {"otherwise": "F16"}, "otherwise='F16' must be one of"),
    "rows of 96": (small_model, {"kind": "Q4_K"}, "'blocks.0.attention.query' has rows of 96 weights: Q4_K takes multiples of 256; with otherwise='Q4_0'"),
    "rows of 33": (lambda: nn.Linear(33, 2), {"otherwise": "Q4_0"}, r"layer '' has rows of 33 weights: Q8_0 takes multiples of 32\."),
    "codes as Q4_K": (lambda: quantized(), {"kind": "Q4_K"}, "has codes, and scales that Q4_K cannot hold: write the float network"),
    "too many bits": (lambda: quantized(config=symmetric(5)), {"kind": "Q4_0"}, "has codes of 5 bits: those of Q4_0 run from -8 to 7"),
    "groups": (lambda: quantized(config=symmetric(4, PerGroup(16))), {}, "has 16 weights to a scale: Q8_0 takes multiples of 32"),
}  # fmt: skip


def planted(value):
    layer = nn.Linear(32, 2)
    layer.weight.data[0] = value
    return layer


@pytest.mark.parametrize("case", COMPRESSED | BOTH)
def test_what_compressed_tensors_has_no_place_for_is_refused(case, tmp_path):
    make, message = (COMPRESSED | BOTH)[case]
    with pytest.raises(ValueError, match=message):
        write_compressed_tensors(make(), tmp_path / "network")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("case", BOTH | GGUF)
def test_what_gguf_has_no_place_for_is_refused(case, tmp_path):
    make, options, message = GGUF.get(case) or (BOTH[case][0], {}, BOTH[case][1])
    with pytest.raises(ValueError, match=message):
        write_gguf(make(), tmp_path / "model.gguf", **options)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("value", [1e-9, 1e9])
def test_scales_that_float16_does_not_hold_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match="layer '' has scales from .* Q8_0 stores them as float16, from 5.96"):
        write_gguf(quantized(planted(value)), tmp_path / "model.gguf")


def test_weights_that_are_no_numbers_are_named(tmp_path):
    with pytest.raises(ValueError, match="layer '0': x holds 32 values that are not finite"):
        write_gguf(nn.Sequential(planted(float("nan"))), tmp_path / "model.gguf")


def test_paths_that_cannot_be(tmp_path):
    file, model = tmp_path / "file", quantized()
    file.write_text("")
    for call, error, message in (
        (lambda: write_compressed_tensors(model, 3), TypeError, "folder is a int"),
        (
            lambda: write_compressed_tensors(model, file),
            NotADirectoryError,
            "is a file: wanted is the name of a folder",
        ),
        (
            lambda: write_compressed_tensors(model, tmp_path / "a/b"),
            FileNotFoundError,
            "there is no folder .*a: make it first",
        ),
        (lambda: write_gguf(model, tmp_path), IsADirectoryError, "is a folder"),
        (lambda: list_gguf(tmp_path / "none"), FileNotFoundError, "there is no file .*none"),
        (lambda: list_gguf(3), TypeError, "path is a int"),
        (lambda: write_gguf("model", file), TypeError, "model is a str"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_without_gguf_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_gguf(nn.Linear(32, 2), tmp_path / "model.gguf")
    ordinary = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'")
        return ordinary(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "gguf")
    monkeypatch.setattr(builtins, "__import__", without)
    for call in (
        lambda: write_gguf(nn.Linear(32, 2), tmp_path / "model.gguf"),
        lambda: list_gguf(tmp_path / "model.gguf"),
        lambda: read_gguf_tensor(tmp_path / "model.gguf", "weight"),
    ):
        with pytest.raises(ImportError, match=r"\(\) needs the package gguf .*: pip install gguf"):
            call()
