"""Which calls read what others make: followed in the code, or watched on a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import copy_is_separate
from qlearn.nn.equalization import equalize
from qlearn.nn.language_model import LanguageModel, to_tokens
from qlearn.nn.recording import record, watched
from qlearn.nn.tracing import trace


def readers(flow, name):
    """What reads the calls of this name."""
    return sorted(reader.name for step in flow.steps if step.name == name for reader in step.readers)


class Code(nn.Module):
    """Functions, shapes that are asked for, a branch, a tied weight and a default."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b, self.c = nn.Conv2d(1, 2, 3), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, twice=False):
        x = functional.max_pool2d(functional.relu(self.conv(x)), 2)
        n, _ = x.shape[0], x.dtype
        x = functional.dropout(x.reshape(n, -1), 0.5, self.training).contiguous()
        y = self.a(x)
        if twice:
            y = self.a(y)
        return functional.linear(self.b(y) + y, self.c.weight)


def test_functions_are_known_by_what_they_do_and_questions_are_no_readers():
    model, x = Code(), torch.randn(2, 1, 6, 6)
    for flow in (trace(model), record(model, x)):
        does = {step.name: step.does for step in flow.steps}
        assert [does[name] for name in ("conv", "relu", "max_pool2d", "reshape", "contiguous", "a", "linear")] == [
            *("maps", "keeps", "pools2", "flattens", "keeps", "maps", "?")
        ]
        assert readers(flow, "conv") == ["relu"] and readers(flow, "max_pool2d") == ["reshape"]
        assert readers(flow, "a") == ["add", "b"] and readers(flow, "add") == ["linear"]
        assert flow.why_not(model.a) == flow.why_not(model.conv) == ""
        assert flow.why_not(model.c) == "the network reads its numbers without calling it"
    assert (trace(model).way, record(model, x).way) == ("traced", "recorded")
    twice = record(model, x, lambda model, x: model(x, twice=True))
    assert twice.why_not(model.a) == "it is used more than once"


def test_what_cannot_be_followed_is_closed_and_its_parts_are_followed_by_themselves():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else x

    model = nn.Sequential(nn.Linear(4, 4), Careful(), nn.Linear(4, 4))
    flow = trace(model)
    assert flow.way == "traced in parts"
    assert readers(flow, "0") == ["1"] and readers(flow, "1") == ["2"]
    assert readers(flow, "1.inner.0") == ["1.inner.1"] and readers(flow, "1.inner.2") == ["the output"]
    assert readers(record(model, torch.ones(1, 4) * 1e9), "1.inner.0") in (["1.inner.1"], [])


def test_code_that_is_not_its_type_s_is_not_followed():
    class Called(nn.Sequential):
        def __call__(self, x):
            return self[2](self[0](x)) + self[0](x)

    parts = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)
    given = nn.Sequential(*parts)
    given.forward = lambda x: given[2](given[0](x)) + given[0](x)
    for model in (given, Called(*parts)):
        assert all(trace(model).why_not(part) == "nobody sees who calls it" for part in parts)
        for around in (model, nn.Sequential(nn.Linear(2, 2), model)):
            with pytest.raises(ValueError, match="nothing to equalize"):
                equalize(around)


def test_steps_that_closed_code_calls_from_outside_belong_to_no_chain():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x):
            y = self.net[0](x)
            return self.net[2](self.net[1](y)) + y if x.sum() > 0 else y

    model = Outside()
    flow = trace(model)
    assert flow.why_not(model.net[0]) == "nobody sees who calls it"
    assert readers(record(model, torch.ones(1, 4)), "net.0") == ["add", "net.1"]


def test_a_language_model_is_followed_block_by_block_and_watched_as_a_whole():
    model = LanguageModel(width=8, heads=2, hidden=16, blocks=2).eval()
    traced, recorded = trace(model), record(model, to_tokens("Call me"))
    assert traced.why_not(model.head) == "nobody sees who calls it" and recorded.why_not(model.head) == ""
    for flow in (traced, recorded):
        assert readers(flow, "blocks.1.norm1") == [f"blocks.1.attention.{name}" for name in ("key", "query", "value")]
        assert readers(flow, "blocks.0.mlp.up") == ["mul"]


def test_the_network_is_left_as_it_is():
    heard = []
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.ReLU()))
    model.register_forward_hook(lambda *_: heard.append("model"))
    model[2].register_forward_hook(lambda *_: heard.append("2"))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flow = trace(model)
    assert not heard, "hooks of the network are not called with what stands for a tensor"
    assert readers(flow, "1") == ["2"] and flow.why_not(model[0]) == ""
    record(model, torch.ones(2, 3))
    assert copy_is_separate(before, model)
    assert [module.training for module in model] == [True, False, True]
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_watching_sees_changes_in_place_and_reads_of_values():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.a(x)
            y[:, 0] = 1.0
            if y.max().item() > 100:
                y = y * 2
            return self.b(y)

    flow = watched(InPlace(), torch.ones(2, 3))
    assert readers(flow, "a") == ["setitem"] and readers(flow, "setitem") == ["b", "max"]
