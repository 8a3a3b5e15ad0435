"""Granularities: from the shape of x to the shape of its scales."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from qlearn import PerAxis, PerGroup, PerTensor
from qlearn.granularity import check_granularity


@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (2, 3, 4, 5)])
def test_a_tensor_has_one_scale(shape):
    assert PerTensor().scale_shape(shape) == ()


@pytest.mark.parametrize(
    ("axis", "wanted"),
    [(0, (2, 1, 1)), (1, (1, 3, 1)), (2, (1, 1, 4)), (-1, (1, 1, 4)), (-2, (1, 3, 1)), (-3, (2, 1, 1))],
)
def test_the_axis_that_is_named_is_kept(axis, wanted):
    assert PerAxis(axis).scale_shape((2, 3, 4)) == wanted


@pytest.mark.parametrize(
    ("size", "wanted"), [(1, (2, 3, 12)), (4, (2, 3, 3)), (12, (2, 3, 1)), (np.int64(6), (2, 3, 2))]
)
def test_groups_lie_along_the_last_axis(size, wanted):
    shape = PerGroup(size).scale_shape((2, 3, 12))
    assert shape == wanted
    assert all(isinstance(n, (int, np.integer)) for n in shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PerAxis(2).scale_shape((4, 6)), r"axis=2\): x has shape \(4, 6\), so axis must be from -2 to 1\."),
        (lambda: PerAxis(-3).scale_shape((4, 6)), r"axis=-3\): x has shape \(4, 6\), so axis must be from -2 to 1\."),
        (lambda: PerAxis(0).scale_shape(()), r"so axis must be left alone: a single number has no axis\."),
        (lambda: PerGroup(4).scale_shape((9, 6)), r"last axis of length 6\. Sizes that do: 1, 2, 3, 6\.$"),
        (lambda: PerGroup(8).scale_shape((8, 7)), r"last axis of length 7\. Sizes that do: 1, 7\.$"),
        (lambda: PerGroup(1).scale_shape(()), "x is a single number and has no axis to cut into groups"),
        (lambda: PerGroup(0), "group_size=0 must be a whole number of 1 or more"),
        (lambda: PerGroup(2.0), "group_size=2.0 must be a whole number of 1 or more"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("granularity", "field"), [(PerTensor(), "axis"), (PerAxis(0), "axis"), (PerGroup(2), "group_size")]
)
def test_a_granularity_can_be_a_key_and_does_not_change(granularity, field):
    assert {granularity: 1}[type(granularity)(*vars(granularity).values())] == 1
    with pytest.raises(FrozenInstanceError):
        setattr(granularity, field, 1)


def test_another_class_is_no_granularity():
    with pytest.raises(TypeError, match=r"granularity=<class 'int'> must be PerTensor\(\), PerAxis"):
        check_granularity(int)
