"""Bits for each layer: sensitivities from the whole network, sizes from its file, and the greedy choice against all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import qlearn
from qlearn import PerAxis, PerGroup, QuantConfig, datasets
from qlearn.nn import allocate_bits, descent, layer_bytes, overrides_for, sensitivity

PER_CHANNEL = QuantConfig(symmetric=True, granularity=PerAxis(0))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 7 * 7, 12, bias=False),
        nn.ReLU(),
        nn.Linear(12, 10),
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return qlearn.nn.to_inputs(datasets.mnist_arrays().calibration.images[:300])


# --- what is measured ------------------------------------------------------------------------------------------------


def test_sensitivity_is_the_divergence_when_one_layer_has_rounded_weights(images):
    """With the weights of one layer replaced by hand, and PyTorch's own divergence."""
    model = network().eval()
    found = sensitivity(model, images, bits=(8, 3, 2), weights=QuantConfig(symmetric=True, method="mse"))
    assert {name: list(errors) for name, errors in found.items()} == {name: [8, 3, 2] for name in ("0", "5", "7")}
    with torch.no_grad():
        before = model(images).double().log_softmax(1)
        for name, bits in itertools.product(found, (8, 3, 2)):
            weight = model.get_submodule(name).weight
            kept = weight.clone()
            config = QuantConfig(bits=bits, symmetric=True, method="mse")
            weight.copy_(qlearn.fake_quantize(weight, config.find_qparams(weight)))
            after = model(images).double().log_softmax(1)
            expected = float(nn.functional.kl_div(after, before, reduction="batchmean", log_target=True))
            # Logits are float32, in batches of another size: 1e-6 of a logit, of which the divergence is a square.
            assert found[name][bits] == pytest.approx(expected, rel=1e-2, abs=1e-12)
            weight.copy_(kept)


def test_fewer_bits_cost_more_and_no_change_costs_nothing(images):
    found = sensitivity(qlearn.nn.load_trained("mlp"), images)
    for errors in found.values():
        assert 0 < errors[8] < errors[4] < errors[3] < errors[2]
    exact = nn.Sequential(nn.Flatten(), nn.Linear(784, 3, bias=False))
    exact[1].weight.data.fill_(0.5)
    assert sensitivity(exact, images, bits=(2,)) == {"1": {2: 0.0}}


def test_measuring_does_not_touch_the_network(images):
    model = network()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    pairs = [(images[:100], None), (images[100:], None)]
    assert sensitivity(model, pairs, bits=(2,))["7"][2] > 0
    layer_bytes(model)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


ACTIVATIONS = [QuantConfig(), QuantConfig(bits=4, method="percentile"), QuantConfig(method="dynamic"), None]


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize(
    "weights",
    [PER_CHANNEL, QuantConfig(granularity=PerAxis(0)), QuantConfig(symmetric=True, method="mse")],
)
def test_sizes_are_those_of_the_file(weights, activations, images, tmp_path):
    """Byte for byte: the sum of the tensors in the file that `save` writes, and so of what `summary` says."""
    from safetensors.numpy import load_file

    model = network()
    sizes = layer_bytes(model, bits=range(2, 9), weights=weights, activations=activations)
    for bits in ({"0": 8, "5": 3, "7": 2}, {"0": 5, "5": 7, "7": 6}):
        prepared = qlearn.nn.prepare(model, weights, activations, overrides_for(bits, weights))
        converted = qlearn.nn.convert(qlearn.nn.calibrate(prepared, images, progress=False))
        rows = {row.name: row.bytes for row in qlearn.nn.summary(converted).layers}
        assert {name: rows[name] for name in bits} == {name: sizes[name][b] for name, b in bits.items()}
        qlearn.nn.save(converted, tmp_path / "network.safetensors")
        stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "network.safetensors").values())
        assert stored == sum(sizes[name][b] for name, b in bits.items()) + rows["2"]


def test_sizes_count_the_scales_of_groups():
    model = nn.Sequential(nn.Linear(64, 5, bias=False))
    sizes = layer_bytes(
        model, bits=(4,), weights=QuantConfig(symmetric=True, granularity=PerGroup(16)), activations=None
    )
    assert sizes == {"0": {4: 5 * 32 + 4 * 5 * 4 + 4}}  # codes, float32 scales, one zero point


def test_what_cannot_be_measured_is_named(images):
    with pytest.raises(ValueError, match="ReLU has no Linear, Conv1d, Conv2d or ConvTranspose2d"):
        sensitivity(nn.ReLU(), images)
    with pytest.raises(ValueError, match="there is no batch"):
        sensitivity(network(), [])
    with pytest.raises(ValueError, match="weights of 9 bits; these layers take 2 to 8"):
        sensitivity(network(), images, bits=(9,))
    broken = network()
    broken[7].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="outputs are not finite"):
        sensitivity(broken, images)


# --- what is decided -------------------------------------------------------------------------------------------------


@st.composite
def tables(draw, most_layers: int = 4, most_bits: int = 4):
    """Sensitivities and sizes as they come, or worse: more bits may cost more and take less."""
    layers = draw(st.integers(1, most_layers))
    errors, sizes = {}, {}
    for layer in range(layers):
        bits = draw(st.lists(st.integers(2, 8), min_size=1, max_size=most_bits, unique=True))
        # Small whole numbers: plenty of ties, and every sum is exact.
        errors[f"layer{layer}"] = {b: float(draw(st.integers(-3, 40))) for b in bits}
        sizes[f"layer{layer}"] = {b: draw(st.integers(1, 60)) for b in bits}
    return errors, sizes


def every_choice(errors, sizes):
    """(sum of errors, sum of sizes) of all choices of bits."""
    for bits in itertools.product(*errors.values()):
        pairs = list(zip(errors, bits, strict=True))
        yield sum(errors[name][b] for name, b in pairs), sum(sizes[name][b] for name, b in pairs)


def total(table, chosen):
    return sum(table[name][b] for name, b in chosen.items())


@given(tables(), st.integers(0, 240))
def test_the_budget_holds_and_the_greedy_choice_lies_as_near_to_the_best_as_it_says(tables, budget):
    errors, sizes = tables
    fitting = [error for error, size in every_choice(errors, sizes) if size <= budget]
    smallest = min(size for _, size in every_choice(errors, sizes))
    if not fitting:
        with pytest.raises(ValueError, match=rf"budget={budget} is too small: .* it takes {smallest}\."):
            allocate_bits(errors, sizes, budget)
        return
    chosen = allocate_bits(errors, sizes, budget)
    assert list(chosen) == list(errors) and total(sizes, chosen) <= budget
    way = descent(errors, sizes)
    stop = next(i for i, bits in enumerate(way) if total(sizes, bits) <= budget)
    last_step = total(errors, way[stop]) - total(errors, way[stop - 1]) if stop else 0.0
    assert min(fitting) <= total(errors, chosen) <= min(fitting) + last_step
    assert total(errors, chosen) <= total(errors, way[stop])


@given(tables())
def test_no_choice_beats_a_stop_without_taking_more_room(tables):
    errors, sizes = tables
    way = descent(errors, sizes)
    assert total(errors, way[0]) == min(error for error, _ in every_choice(errors, sizes))
    assert total(sizes, way[-1]) == min(size for _, size in every_choice(errors, sizes))
    for stop in way:
        least = min(error for error, size in every_choice(errors, sizes) if size <= total(sizes, stop))
        assert total(errors, stop) == least
    for before, after in itertools.pairwise(way):
        assert sum(before[name] != after[name] for name in before) == 1
        assert total(sizes, after) < total(sizes, before)


@given(tables(), st.integers(0, 240), st.randoms(use_true_random=False))
def test_the_order_of_bits_in_a_table_does_not_matter(tables, budget, random):
    errors, sizes = tables
    if total(sizes, descent(errors, sizes)[-1]) > budget:
        return
    chosen = allocate_bits(errors, sizes, budget)

    def shuffled(options):
        return dict(random.sample(list(options.items()), len(options)))

    mixed = [{name: shuffled(options) for name, options in table.items()} for table in (errors, sizes)]
    again = allocate_bits(*mixed, budget)
    # Options of one layer that cost and take the same can stand for each other; all else is the same.
    assert [(errors[n][b], sizes[n][b]) for n, b in again.items()] == [
        (errors[n][b], sizes[n][b]) for n, b in chosen.items()
    ]


def test_what_a_last_step_saved_too_much_is_given_back():
    errors = {"small": {8: 0.0, 4: 1.0}, "large": {8: 0.0, 4: 80.0, 2: 160.0}}
    sizes = {"small": {8: 20, 4: 10}, "large": {8: 800, 4: 400, 2: 200}}
    assert [tuple(stop.values()) for stop in descent(errors, sizes)] == [(8, 8), (4, 8), (4, 4), (4, 2)]
    assert allocate_bits(errors, sizes, 425) == {"small": 8, "large": 4}
    assert allocate_bits(errors, sizes, 415) == {"small": 4, "large": 4}
    assert allocate_bits(errors, sizes, 399) == {"small": 8, "large": 2}


def test_ties_go_to_the_smaller_step_and_the_earlier_layer():
    errors = {name: {8: 0.0, 4: 2.0, 2: 3.0} for name in ("first", "second")}
    sizes = {name: {8: 400, 4: 200, 2: 100} for name in ("first", "second")}
    ways = [tuple(stop.values()) for stop in descent(errors, sizes)]
    assert ways == [(8, 8), (4, 8), (2, 8), (2, 4), (2, 2)]
    assert allocate_bits(errors, sizes, 600) == {"first": 4, "second": 8}


@pytest.mark.parametrize(
    ("errors", "sizes", "message"),
    [
        ({}, {}, "sensitivity has the layers none, sizes none"),
        ({"a": {8: 0.0}}, {"b": {8: 1}}, "sensitivity has the layers a, sizes b: both need the same ones"),
        ({"a": {8: 0.0}}, {"a": {8: 1, 4: 1}}, r"layer 'a': sensitivity has \[8\] bits, sizes \[4, 8\]"),
        ({"a": {}}, {"a": {}}, r"layer 'a': sensitivity has \[\] bits"),
        ({"a": {8: float("nan")}}, {"a": {8: 1}}, "layer 'a': sensitivity at 8 bits is nan, not a finite number"),
        ({"a": {8: 0.0}}, {"a": {8: float("inf")}}, "layer 'a': sizes at 8 bits is inf"),
    ],
)
def test_tables_that_do_not_fit_are_named(errors, sizes, message):
    with pytest.raises(ValueError, match=message):
        allocate_bits(errors, sizes, 1000)


def test_the_choice_is_what_prepare_takes(images):
    model = network()
    errors = sensitivity(model, images)
    sizes = layer_bytes(model)
    budget = 1_000
    chosen = allocate_bits(errors, sizes, budget)
    prepared = qlearn.nn.prepare(model, overrides=overrides_for(chosen))
    converted = qlearn.nn.convert(qlearn.nn.calibrate(prepared, images, progress=False))
    assert {name: converted.get_submodule(name).bits for name in chosen} == chosen
    rows = qlearn.nn.summary(converted).layers
    assert sum(row.bytes for row in rows if row.name in chosen) <= budget
    assert overrides_for({"7": 3}, replace(PER_CHANNEL, method="mse")) == {
        "7": {"weights": QuantConfig(bits=3, symmetric=True, granularity=PerAxis(0), method="mse")}
    }


def test_one_percent_more_room_in_the_right_place():
    """The MLP, min-max ranges: 3 bits everywhere, against the same room and 1 % more, spent by sensitivity."""
    data = datasets.mnist_arrays()
    images = qlearn.nn.to_inputs(data.calibration.images)
    model = qlearn.nn.load_trained("mlp")
    sizes = layer_bytes(model, bits=range(2, 9))
    errors = sensitivity(model, images, bits=range(2, 9))
    uniform = dict.fromkeys(sizes, 3)
    mixed = allocate_bits(errors, sizes, 1.01 * total(sizes, uniform))
    accuracy = []
    for bits in (uniform, mixed):
        prepared = qlearn.nn.prepare(model, overrides=overrides_for(bits))
        converted = qlearn.nn.convert(qlearn.nn.calibrate(prepared, images, progress=False))
        accuracy.append(100 * qlearn.nn.accuracy(converted, data.validation.images, data.validation.labels))
    assert accuracy[1] > accuracy[0] + 0.5
