"""Quantized networks in files: packed, complete or not there at all, and refused by any other network."""

from __future__ import annotations

import copy
import json
import pickle
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import qlearn
from qlearn import PerAxis, PerGroup, PerTensor, QuantConfig

PER_CHANNEL = QuantConfig(symmetric=True, granularity=PerAxis(0))
INPUTS = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10, bias=False)
    )


def quantized(model, weights=PER_CHANNEL, activations=QuantConfig(), **kwargs):
    prepared = qlearn.nn.prepare(model, weights, activations, **kwargs)
    return qlearn.nn.convert(qlearn.nn.calibrate(prepared, INPUTS, progress=False))


def state_of(model):
    return copy.deepcopy(model.state_dict())


def assert_untouched(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_saved_network_is_small_and_comes_back(bits, tmp_path):
    weights = QuantConfig(bits=bits, symmetric=True, granularity=PerAxis(0))
    model = quantized(qlearn.nn.load_trained("mlp"), weights)
    size = qlearn.nn.save(model, tmp_path / "mlp.safetensors")
    assert size == (tmp_path / "mlp.safetensors").stat().st_size
    tensors = qlearn.nn.summary(model).bytes
    assert tensors == sum(-(-n * bits // 8) for n in (78_400, 10_000, 1_000)) + 4 * (210 + 210) + 3 * 3 * 4
    assert 0 < size - tensors < 2_000  # the names, types and shapes at the head of the file
    again = quantized(qlearn.nn.mlp(seed=1), weights)
    assert torch.equal(qlearn.nn.load(again, tmp_path / "mlp.safetensors")(INPUTS), model(INPUTS))
    assert [path.name for path in tmp_path.iterdir()] == ["mlp.safetensors"]


@pytest.mark.parametrize(
    "configs",
    [
        (PER_CHANNEL, QuantConfig(method="dynamic")),
        (PER_CHANNEL, QuantConfig(method="dynamic", granularity=PerAxis(0))),
        (QuantConfig(bits=3), None),
        (QuantConfig(bits=4, granularity=PerGroup(3)), None),
    ],
    ids=["dynamic", "dynamic per row", "weights only", "groups"],
)
def test_every_kind_of_layer_comes_back(configs, tmp_path):
    model = quantized(small_network(), *configs, overrides={"3": {"weights": QuantConfig(bits=2)}})
    qlearn.nn.save(model, tmp_path / "model.safetensors")
    again = quantized(small_network(1), *configs, overrides={"3": {"weights": QuantConfig(bits=2)}})
    assert not torch.equal(again(INPUTS), model(INPUTS))
    assert torch.equal(qlearn.nn.load(again, tmp_path / "model.safetensors")(INPUTS), model(INPUTS))


FOUR = QuantConfig(bits=4, symmetric=True, granularity=PerAxis(0))
ROWS = QuantConfig(method="dynamic", granularity=PerAxis(0))
OTHERS = {
    "weight bits": ({"weights": FOUR}, "layer '0' has weights 8 bits per channel in the file, 4 bits per channel in"),
    "codes": (
        {"weights": QuantConfig(symmetric=True, granularity=PerAxis(0), narrow_range=False)},
        "layer '0' has codes -127 … 127 in the file, -128 … 127 in the network",
    ),
    "granularity": (
        {"weights": QuantConfig(symmetric=True)},
        "layer '0' has weights 8 bits per channel in the file, 8 bits per tensor in the network",
    ),
    "input bits": ({"activations": QuantConfig(6)}, "layer '0' has inputs 8 bits in the file, 6 bits in the network"),
    "input codes": (
        {"activations": QuantConfig(symmetric=True)},
        "layer '0' has input codes 0 … 255 in the file, -127 … 127 in the network",
    ),
    "mode": ({"activations": ROWS}, "layer '0' has inputs 8 bits in the file, 8 bits dynamic per row in the network"),
    "weights only": ({"activations": None}, "layer '0' has inputs 8 bits in the file, float in the network"),
    "float": ({"overrides": {"3": None}}, "layer '3' is quantized in the file and not in the network"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_a_file_of_other_codes_is_refused(change, message, tmp_path):
    path = tmp_path / "model.safetensors"
    qlearn.nn.save(quantized(small_network()), path)
    other = quantized(small_network(), **change)
    before = state_of(other)
    with pytest.raises(ValueError, match=message):
        qlearn.nn.load(other, path)
    assert_untouched(other, before)


def test_a_file_with_other_options_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    qlearn.nn.save(quantized(small_network()), path)
    model = small_network()
    model[0].dilation = (2, 2)
    model[0].padding = (2, 2)
    with pytest.raises(ValueError, match=r"'0' has padding 1 … 1 in the file, 2 … 2 in the network; .* dilation 1 … 1"):
        qlearn.nn.load(quantized(model), path)


def test_missing_and_extra_keys_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    qlearn.nn.save(quantized(small_network()), path)
    with pytest.raises(
        ValueError, match=r"missing in the file: bias, weight; not in the network: 0.bias_codes, 0.input_scale"
    ):
        qlearn.nn.load(nn.Linear(2, 2), path)
    qlearn.nn.save(nn.Linear(2, 2), path)
    with pytest.raises(
        ValueError, match=r"bias is float32 \(2,\) in the file, float32 \(3,\) in the network; weight is"
    ):
        qlearn.nn.load(nn.Linear(2, 3), path)
    with pytest.raises(ValueError, match=r"bias is float32 \(2,\) in the file, float16 \(2,\) in the network"):
        qlearn.nn.load(nn.Linear(2, 2).half(), path)


def test_a_file_without_a_head_is_refused_for_codes_and_taken_for_floats(tmp_path):
    path = tmp_path / "model.safetensors"
    model = quantized(small_network())
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    with pytest.raises(ValueError, match="layer '0' is quantized in the network and not in the file"):
        qlearn.nn.load(model, path)
    layer = nn.Linear(3, 2)
    save_file(layer.state_dict(), path)
    assert torch.equal(qlearn.nn.load(nn.Linear(3, 2), path).weight, layer.weight)


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])  # by the name alone torch.load chooses a reader
@pytest.mark.parametrize("content", [pickle.dumps(Harmful()), b"", b"\x10", b'\x02\0\0\0\0\0\0\0{"'])
def test_what_is_no_safetensors_file_is_refused(content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is not a complete safetensors file"):
        qlearn.nn.load(nn.Linear(2, 2), path)


def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path):
    path = tmp_path / "model.safetensors"
    model = quantized(small_network())
    size = qlearn.nn.save(model, path)
    whole, before = path.read_bytes(), state_of(model)
    for length in [*range(0, size, 97), size - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a complete safetensors file"):
            qlearn.nn.load(model, path)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.weight_scale", -1.0, "layer '0' has scale=.* must be larger than 0"),
        ("0.weight_scale", float("nan"), "layer '0' has scale holds"),
        ("3.input_scale", 0.0, "layer '3' has scale=0.0 must be larger than 0"),
        ("3.input_zero_point", 300, "layer '3' has zero_point=300 lies outside the codes 0 … 255"),
        ("3.weight_codes", 128, "layer '3' has codes from -128 to .*, not -127 … 127"),
    ],
)
def test_impossible_numbers_are_refused(name, value, message, tmp_path):
    path = tmp_path / "model.safetensors"
    model = quantized(small_network())
    qlearn.nn.save(model, path)
    with safe_open(path, "pt") as file:
        head, state = file.metadata(), {key: file.get_tensor(key) for key in list(file.keys())}
    state[name].view(-1)[:1] = value
    save_file(state, path, head)
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        qlearn.nn.load(model, path)
    assert_untouched(model, before)


def test_an_interrupted_save_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    qlearn.nn.save(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def half(state, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(qlearn.nn.storage, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        qlearn.nn.save(nn.Linear(2, 2), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_shared_layer_is_written_once(tmp_path):
    path = tmp_path / "model.safetensors"
    shared = nn.Linear(5, 5)
    prepared = qlearn.nn.prepare(nn.Sequential(shared, nn.Tanh(), shared))
    model = qlearn.nn.convert(qlearn.nn.calibrate(prepared, torch.rand(30, 5), progress=False))
    qlearn.nn.save(model, path)
    with safe_open(path, "pt") as file:
        assert {name.partition(".")[0] for name in list(file.keys())} == {"0"}
        stored = sum(file.get_tensor(name).nbytes for name in list(file.keys()))
    assert stored == qlearn.nn.summary(model).bytes
    again = copy.deepcopy(model)
    again[0].weight_codes.zero_()
    assert torch.equal(qlearn.nn.load(again, path)(torch.ones(1, 5)), model(torch.ones(1, 5)))
    assert again[0] is again[2]


def test_the_head_says_how_each_layer_is_quantized(tmp_path):
    path = tmp_path / "model.safetensors"
    qlearn.nn.save(quantized(small_network(), QuantConfig(bits=4, granularity=PerTensor())), path)
    with safe_open(path, "pt") as file:
        head = json.loads(file.metadata()["qlearn"])
    assert head["3"] == {
        "weights": "4 bits per tensor",
        "codes": [0, 15],
        "inputs": "8 bits",
        "input codes": [0, 255],
    }
    options = {key: head["0"][key] for key in ("stride", "padding", "dilation", "groups")}
    assert options == {"stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "groups": 1}


# --- without calibration ----------------------------------------------------------------------------------------------

CONFIGURED = {
    "static": (PER_CHANNEL, QuantConfig()),
    "static, few bits": (QuantConfig(3), QuantConfig(5, symmetric=True)),
    "all codes": (QuantConfig(symmetric=True, narrow_range=False), QuantConfig(symmetric=True, narrow_range=False)),
    "dynamic": (PER_CHANNEL, QuantConfig(method="dynamic")),
    "dynamic, all codes": (PER_CHANNEL, QuantConfig(4, symmetric=True, narrow_range=False, method="dynamic")),
    "dynamic per row": (PER_CHANNEL, QuantConfig(6, symmetric=True, granularity=PerAxis(0), method="dynamic")),
    "weights only": (QuantConfig(bits=3, granularity=PerAxis(0)), None),
    "groups": (QuantConfig(bits=4, granularity=PerGroup(3)), None),
    "symmetric groups": (QuantConfig(bits=4, symmetric=True, granularity=PerGroup(3)), None),
}


@pytest.mark.parametrize("configs", CONFIGURED.values(), ids=CONFIGURED)
def test_a_float_network_takes_a_file_of_codes(configs, tmp_path):
    path = tmp_path / "model.safetensors"
    model = quantized(small_network(), *configs, overrides={"3": {"weights": QuantConfig(bits=2)}})
    qlearn.nn.save(model, path)
    fresh = small_network(1)
    before = state_of(fresh)
    again = qlearn.nn.load(fresh, path)
    assert torch.equal(again(INPUTS), model(INPUTS))
    assert_untouched(fresh, before)
    assert again is not fresh and type(fresh[0]) is nn.Conv2d
    assert [layer.configuration for layer in again.modules() if hasattr(layer, "configuration")] == [
        layer.configuration for layer in model.modules() if hasattr(layer, "configuration")
    ]
    assert qlearn.nn.summary(again).bytes == qlearn.nn.summary(model).bytes
    qlearn.nn.save(again, tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_layers_left_in_float_and_shared_ones_come_back(tmp_path):
    path = tmp_path / "model.safetensors"

    def network(seed):
        torch.manual_seed(seed)
        shared = nn.Linear(5, 5)
        return nn.Sequential(shared, nn.BatchNorm1d(5), shared, nn.Linear(5, 2)).eval()

    x = torch.randn(40, 5)
    prepared = qlearn.nn.prepare(network(0), overrides={"3": None})
    model = qlearn.nn.convert(qlearn.nn.calibrate(prepared, x, progress=False))
    qlearn.nn.save(model, path)
    again = qlearn.nn.load(network(1), path)
    assert torch.equal(again(x), model(x)) and again[0] is again[2] and type(again[3]) is nn.Linear


def test_a_parameter_that_is_tied_is_stored_once_and_stays_tied(tmp_path):
    path = tmp_path / "model.safetensors"

    def network(seed):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"embedding": nn.Embedding(20, 8), "body": nn.Linear(8, 8), "head": nn.Linear(8, 20)})
        model["head"].weight = model["embedding"].weight
        return model

    prepared = qlearn.nn.prepare(network(0), activations=None, overrides={"head": None})
    model = qlearn.nn.convert(prepared)
    qlearn.nn.save(model, path)
    with safe_open(path, "pt") as file:
        assert "head.weight" not in list(file.keys())
    again = qlearn.nn.load(network(1), path)
    assert again["head"].weight is again["embedding"].weight
    assert torch.equal(again["head"].weight, model["head"].weight)


@pytest.mark.parametrize("activations", [QuantConfig(), None])
def test_corrected_biases_come_back(activations, tmp_path):
    """Of layers that had none in float, too."""
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(9, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    x = torch.rand(100, 9)
    prepared = qlearn.nn.prepare(network, QuantConfig(3), activations)
    model = qlearn.nn.convert(qlearn.nn.calibrate(prepared, x, progress=False))
    corrected = qlearn.nn.correct_bias(model, network, x)
    assert not torch.equal(corrected(x), model(x))
    qlearn.nn.save(corrected, path)
    assert torch.equal(qlearn.nn.load(network, path)(x), corrected(x))


@pytest.mark.filterwarnings("ignore:left in float")
def test_a_fresh_network_computes_what_was_saved_at_once(tmp_path):
    """It comes in training mode, in which dropout draws and a batch norm looks at the batch."""
    path, x = tmp_path / "model.safetensors", torch.rand(20, 5)

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2))

    model = qlearn.nn.convert(qlearn.nn.calibrate(qlearn.nn.prepare(network()), x, progress=False))
    qlearn.nn.save(model, path)
    fresh = network()
    assert torch.equal(qlearn.nn.load(fresh, path)(x), model(x)) and fresh.training


def test_a_network_whose_batch_norms_were_folded_says_so(tmp_path):
    path, x = tmp_path / "model.safetensors", torch.rand(20, 5)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(5, 5), nn.BatchNorm1d(5)))).eval()
    folded = qlearn.nn.fold_batch_norm(model)
    quantized = qlearn.nn.convert(qlearn.nn.calibrate(qlearn.nn.prepare(folded), x, progress=False))
    qlearn.nn.save(quantized, path)
    with pytest.raises(
        ValueError, match=r"missing in the file: 1.bias, .* and \d+ more; '1' is a batch norm"
    ) as caught:
        qlearn.nn.load(model, path)
    assert "nn.fold_batch_norm(model) before nn.load." in str(caught.value) and len(str(caught.value)) < 400
    assert torch.equal(qlearn.nn.load(qlearn.nn.fold_batch_norm(model), path)(x), quantized(x))


def test_a_file_of_another_network_is_refused_by_a_float_one(tmp_path):
    path = tmp_path / "model.safetensors"
    qlearn.nn.save(quantized(small_network()), path)
    wider = nn.Sequential(
        nn.Conv2d(1, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 196, 10, bias=False)
    )
    before = state_of(wider)
    with pytest.raises(
        ValueError, match="does not belong to this network: layer '0': 4 output channels in the file, 5 in"
    ):
        qlearn.nn.load(wider, path)
    other = small_network()
    other[0].stride = (1, 1)
    with pytest.raises(ValueError, match="layer '0' has stride 2 … 2 in the file, 1 … 1 in the network"):
        qlearn.nn.load(other, path)
    with pytest.raises(ValueError, match="layer '3' is quantized in the file and not in the network"):
        qlearn.nn.load(small_network()[:1], path)
    assert_untouched(wider, before)


def test_a_file_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    layer = nn.Linear(3, 2)
    save_file(layer.state_dict(), path, {"qlearn 2": "{}"})
    with pytest.raises(
        ValueError, match="model.safetensors is of format 'qlearn 2': this version of qlearn reads 'qlearn'"
    ):
        qlearn.nn.load(layer, path)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", ["moving_average", "min_max", "mse", "percentile"])
def test_a_training_goes_on_from_its_file(method, learned, tmp_path):
    """With what the observers have seen, in a file of ours and in PyTorch's own."""
    x, path = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), tmp_path / "training.safetensors"

    def prepared():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
        return qlearn.nn.prepare_qat(
            model, QuantConfig(bits=3, symmetric=True), QuantConfig(method=method), None, learned
        )

    half = prepared().train()
    half(x[:10])
    qlearn.nn.save(half, path)
    torch.save(half.state_dict(), tmp_path / "training.pt")
    by_us, by_torch = qlearn.nn.load(prepared(), path), prepared()
    by_torch.load_state_dict(torch.load(tmp_path / "training.pt"))
    for again in (by_us, by_torch):
        assert torch.equal(again.eval()(x), half.eval()(x))
        for network in (again.train(), half.train()):
            network(x[10:20])
        assert torch.equal(qlearn.nn.convert(again)(x), qlearn.nn.convert(half)(x))
        half.load_state_dict(torch.load(tmp_path / "training.pt"))  # back to where it was saved


def test_a_calibrated_network_is_converted_after_it_was_loaded(tmp_path):
    model, x = small_network(), INPUTS
    prepared = qlearn.nn.calibrate(qlearn.nn.prepare(model, activations=QuantConfig(method="mse")), x, progress=False)
    qlearn.nn.save(prepared, tmp_path / "model.safetensors")
    again = qlearn.nn.load(
        qlearn.nn.prepare(small_network(1), activations=QuantConfig(method="mse")), tmp_path / "model.safetensors"
    )
    assert torch.equal(qlearn.nn.convert(again)(x), qlearn.nn.convert(prepared)(x))
    qlearn.nn.save(qlearn.nn.calibrate(qlearn.nn.prepare(model), x, progress=False), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="layer '0' has a MSEObserver, which needs 'bins': the file is of another"):
        qlearn.nn.load(again, tmp_path / "model.safetensors")


@pytest.mark.parametrize("weights", [QuantConfig(3, granularity=PerAxis(0)), QuantConfig(3, granularity=PerGroup(2))])
def test_a_network_that_gptq_has_rounded_keeps_its_codes(weights, tmp_path):
    """Found in the rounded weights anew, the range of asymmetric codes would be another one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)).eval()
    x = torch.randn(80, 2, 6, 6)
    rounded = qlearn.nn.gptq(qlearn.nn.prepare(model, weights, None), x, progress=False)
    wanted = qlearn.nn.convert(rounded)(x)
    qlearn.nn.save(rounded, tmp_path / "rounded.safetensors")
    back = qlearn.nn.load(qlearn.nn.prepare(model, weights, None), tmp_path / "rounded.safetensors")
    assert torch.equal(qlearn.nn.convert(back)(x), wanted)
    again = qlearn.nn.prepare(model, weights, None)
    again.load_state_dict(rounded.state_dict())
    assert torch.equal(qlearn.nn.convert(again)(x), wanted)
    with torch.no_grad():
        again[0].layer.weight += 1.0
    with pytest.raises(ValueError, match="the weights of 0 have changed since nn.gptq rounded them"):
        qlearn.nn.convert(again)
