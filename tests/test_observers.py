"""Observers: the order and the split of the data do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlearn import PerAxis, QuantConfig, find_qparams
from qlearn.observers import MinMaxObserver
from strategies import arrays


@given(arrays(dims=2), st.randoms(use_true_random=False), st.booleans())
def test_order_and_shards_do_not_matter(x, random, symmetric):
    config = QuantConfig(bits=4, symmetric=symmetric)
    rows = list(x)
    random.shuffle(rows)
    cut = random.randrange(len(rows) + 1)
    left, right = MinMaxObserver(config), MinMaxObserver(config)
    for row in rows[:cut]:
        left.observe(row)
    for row in rows[cut:]:
        right.observe(row)
    whole = find_qparams(x, bits=4, symmetric=symmetric)
    assert left.merge(right).qparams() == right.merge(left).qparams() == whole


def test_channels_have_ranges_of_their_own():
    x = torch.randn(5, 3, 4, 4, generator=torch.manual_seed(0))
    observer = MinMaxObserver(QuantConfig(granularity=PerAxis(1)))
    for batch in x.split(2):
        observer.observe(batch)
    assert observer.lo.shape == (1, 3, 1, 1)
    assert torch.equal(observer.qparams().scale, find_qparams(x, granularity=PerAxis(1)).scale)


def test_wrong_use_is_named():
    with pytest.raises(RuntimeError, match="has seen no data"):
        MinMaxObserver().qparams()
    with pytest.raises(ValueError, match="x holds 1 value that is not finite"):
        MinMaxObserver().observe(np.array([np.nan]))
    with pytest.raises(ValueError, match="method='mse': a MinMaxObserver remembers nothing but 'min_max'"):
        MinMaxObserver(QuantConfig(method="mse"))
    with pytest.raises(ValueError, match="cannot be merged"):
        MinMaxObserver().merge(MinMaxObserver(QuantConfig(bits=4)))
    observer = MinMaxObserver(QuantConfig(granularity=PerAxis(0))).observe(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"ranges of shape \(4, 1\), earlier ones had \(2, 1\)"):
        observer.observe(np.zeros((4, 3)))


def test_a_failed_batch_leaves_no_trace():
    observer = MinMaxObserver().observe(np.array([1.0, 2.0]))
    with pytest.raises(ValueError):
        observer.observe(np.array([50.0, np.inf]))
    assert observer.hi == 2.0
