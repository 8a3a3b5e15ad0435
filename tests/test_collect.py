"""Statistics of layers' inputs and outputs, against the same numbers taken from all data at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlearn.nn.batches import outputs
from qlearn.nn.collect import LargestOfChannels, MeanOfChannels, collect, unreached


class Counted:
    """Keeps what it was given."""

    def __init__(self, layer):
        self.layer, self.batches = layer, []

    def add(self, values):
        self.batches.append(values)


class Picky(Counted):
    def add(self, values):
        raise ValueError("it is full.")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


BATCHES = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (5, 2, 7)]


@pytest.mark.parametrize("of", ["input", "output"])
def test_every_batch_of_a_layer_arrives_once_and_in_order(of):
    model = network()
    with collect({"first": model[0], "last": model[2]}, Counted, of=of) as found:
        for _ in outputs(model, BATCHES):
            pass
    assert list(found) == ["first", "last"] and found["last"].layer is model[2]
    x = torch.cat(BATCHES)
    with torch.no_grad():
        expected = {"input": (x, model[:2](x)), "output": (model[0](x), model(x))}[of]
    for statistic, values in zip(found.values(), expected, strict=True):
        assert [len(batch) for batch in statistic.batches] == [5, 2, 7]
        # Float32 sums of 3 or 4 products over batches of other sizes.
        assert torch.allclose(torch.cat(statistic.batches), values, rtol=0, atol=1e-6)


def test_layers_appear_in_the_order_of_their_first_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.never = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(input=self.b(x))  # by keyword, too

    model = Backwards()
    with collect(dict(model.named_children()), Counted) as found:
        model(BATCHES[0])
    assert list(found) == ["b", "a"]
    assert unreached(["a", "b"], found) == ""
    assert unreached(["a", "b", "never", "ever"], found) == (
        "no data has reached never, ever. Layers that the network never calls, as it reads their weights itself, can "
        "be left in float, overrides={'never, ever': None}, or quantized but for their inputs: "
        "overrides={'never, ever': {'activations': None}}."
    )


def test_a_layer_under_two_names_is_heard_once_and_every_call_counts():
    shared = nn.Linear(3, 3)
    with collect({"one": shared, "two": shared}, Counted) as found:
        nn.Sequential(shared, shared)(BATCHES[0])
    assert list(found) == ["one"] and len(found["one"].batches) == 2


def test_empty_batches_reach_a_layer_and_say_nothing():
    model = network()
    with collect({"first": model[0]}, Counted) as found:
        model(torch.zeros(0, 3))
    assert found["first"].batches == []


def test_what_a_statistic_cannot_take_names_the_layer():
    model = network()
    with (
        pytest.raises(ValueError, match=r"^layer 'last': its input cannot be used: it is full\.$"),
        collect({"last": model[2]}, Picky),
    ):
        model(BATCHES[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_no_hook_is_left_behind(error):
    model = network()
    try:
        with collect({"0": model[0], "2": model[2]}, Counted, of="input"):
            model(BATCHES[0])
            if error:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_nothing_is_kept_for_gradients():
    model = network().train()
    with collect({"0": model[2]}, Counted) as found:
        model(BATCHES[0])
    assert not found["0"].batches[0].requires_grad


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), -1), ((2, 3, 4), -1), ((2, 4, 5), -2), ((2, 4, 3, 5), -3)])
def test_statistics_of_channels_are_those_of_all_data(shape, axis):
    batches = [10 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    largest, mean = LargestOfChannels(axis), MeanOfChannels(axis)
    for batch in batches:
        largest.add(batch)
        mean.add(batch)
    others = [i for i in range(len(shape)) if i != len(shape) + axis]
    everything = torch.cat(batches)
    assert torch.equal(largest.largest, everything.abs().amax(others))
    assert mean.mean.dtype == torch.float64 and mean.mean.shape == (4,)
    assert torch.allclose(mean.mean, everything.double().mean(others), rtol=0, atol=1e-12)
