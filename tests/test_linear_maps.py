"""Linear maps as rows of weights: what they multiply, against PyTorch's own layers and their gradients.

All numbers are small whole ones in float64: sums are exact, and every comparison is one of bits.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlearn import PerAxis, PerGroup, PerTensor
from qlearn.nn.linear_maps import LinearMap, as_blocks, is_linear_map, rows_of

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear, of a text": (lambda: nn.Linear(5, 3), (2, 3, 5)),
    "linear, one example": (lambda: nn.Linear(5, 3), (5,)),
    "1d": (lambda: nn.Conv1d(3, 4, 2), (2, 3, 7)),
    "1d, stride, padding, dilation": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=3, dilation=2), (2, 2, 9)),
    "1d, same": (lambda: nn.Conv1d(2, 2, 4, padding="same"), (2, 2, 6)),
    "1d, valid, groups": (lambda: nn.Conv1d(6, 9, 3, padding="valid", groups=3), (2, 6, 5)),
    "1d, one example": (lambda: nn.Conv1d(2, 4, 3, padding=1), (2, 7)),
    "2d": (lambda: nn.Conv2d(2, 3, 3), (2, 2, 5, 6)),
    "2d, all": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 3), groups=2), (2, 4, 7, 8)),
    "2d, same": (lambda: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)), (2, 2, 5, 4)),
    "2d, same, even": (lambda: nn.Conv2d(1, 2, (4, 2), padding="same"), (1, 1, 6, 5)),
    "2d, valid, stride": (lambda: nn.Conv2d(2, 2, 3, stride=(2, 3), padding="valid"), (1, 2, 8, 9)),
    "2d, a channel each": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 5)),
    "2d, one example": (lambda: nn.Conv2d(2, 3, 2), (2, 4, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3), (2, 2, 4, 5)),
    "transposed, stride": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 2, 3, 3)),
    "transposed, all": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), output_padding=(1, 2), groups=2, dilation=(2, 1)),
        (2, 4, 4, 3),
    ),
    "transposed, padding beyond the kernel": (lambda: nn.ConvTranspose2d(1, 2, 2, padding=2), (1, 1, 6, 7)),
    "transposed, one example": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (3, 4, 4)),
}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")


@pytest.fixture(params=LAYERS)
def pair(request):
    """A layer and an input for it, both of whole numbers."""
    make, shape = LAYERS[request.param]
    torch.manual_seed(len(request.param))
    layer = make().double()
    for parameter in layer.parameters():
        parameter.data = torch.randint(-9, 10, parameter.shape, dtype=torch.float64)
    return layer, torch.randint(-9, 10, shape, dtype=torch.float64)


def by_channels(linear: LinearMap, y: torch.Tensor) -> torch.Tensor:
    """An output (…, channels, …) as one row for each channel: (O, places)."""
    return y.movedim(linear.output_axis, 0).flatten(1) if y.ndim > 1 else y[:, None]


def test_a_map_gives_what_its_layer_gives(pair):
    layer, x = pair
    linear = LinearMap.of(layer)
    assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))
    without = LinearMap.of(layer)(x, layer.weight)
    assert torch.equal(without + linear.per_output(layer.bias), layer(x))
    assert layer(x).shape[linear.output_axis] == linear.outputs == len(layer.bias)


def test_columns_times_rows_are_the_output(pair):
    """What nobody of us computes with, the sums written out: for each group its rows times its columns."""
    layer, x = pair
    linear = LinearMap.of(layer)
    columns, rows = linear.columns(x), rows_of(layer).flatten(1)
    groups = getattr(layer, "groups", 1)
    assert columns.shape[:2] == (groups, rows.shape[1])
    products = torch.cat(
        [of_rows @ of_columns for of_rows, of_columns in zip(rows.chunk(groups), columns, strict=True)]
    )
    assert torch.equal(products + layer.bias[:, None], by_channels(linear, layer(x)))


def test_a_column_is_the_gradient_of_one_output_by_its_row(pair):
    """Where a product is Σ w · x, the derivative by w is x: PyTorch's autograd says which values a row meets."""
    layer, x = pair
    linear = LinearMap.of(layer)
    groups = getattr(layer, "groups", 1)
    place = by_channels(linear, layer(x)).shape[1] // 2
    for channel in (0, linear.outputs - 1):
        layer.zero_grad()
        by_channels(linear, layer(x))[channel, place].backward()
        gradient = linear.rows(layer.weight.grad).flatten(1)
        assert torch.equal(gradient[channel], linear.columns(x)[channel * groups // linear.outputs, :, place])
        assert bool((gradient.abs().sum(1) != 0)[torch.arange(linear.outputs) != channel].any()) is False


def test_weight_is_the_inverse_of_rows_and_rows_belong_to_output_channels(pair):
    layer, x = pair
    linear = LinearMap.of(layer)
    rows = linear.rows(layer.weight)
    assert len(rows) == linear.outputs and rows.numel() == layer.weight.numel()
    assert torch.equal(linear.weight(rows), layer.weight)
    for channel in range(linear.outputs):  # scale one row: one output channel changes, by that factor
        scaled = rows.detach().clone()
        scaled[channel] *= 5
        before, after = (by_channels(linear, linear(x, linear.weight(w))) for w in (rows, scaled))
        assert torch.equal(after[channel], 5 * before[channel])
        others = torch.arange(linear.outputs) != channel
        assert torch.equal(after[others], before[others])


def test_numbers_for_outputs_broadcast_against_the_output(pair):
    layer, x = pair
    linear = LinearMap.of(layer)
    y, factors = layer(x), torch.arange(1.0, linear.outputs + 1, dtype=torch.float64)
    expected = by_channels(linear, y) * factors[:, None]
    assert torch.equal(by_channels(linear, y * linear.per_output(factors)), expected)


def test_some_rows_of_a_linear_layer_are_enough():
    linear, x = nn.Linear(6, 9).double(), torch.arange(12.0, dtype=torch.float64).reshape(2, 6)
    part = LinearMap.of(linear)(x, linear.weight[3:5])
    assert torch.allclose(part, x @ linear.weight[3:5].T, atol=1e-14)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 2), True),
        (nn.Conv1d(1, 1, 1), True),
        (nn.ConvTranspose2d(1, 1, 1), True),
        (nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), False),
        (nn.Conv3d(1, 1, 1), False),
        (nn.ConvTranspose1d(1, 1, 1), False),
        (nn.Bilinear(2, 2, 2), False),
        (type("Mine", (nn.Linear,), {})(2, 2), False),
        (nn.Linear, False),
        (None, False),
    ],
)
def test_only_the_exact_types_padded_with_zeros_are_linear_maps(module, expected):
    assert is_linear_map(module) is expected


def test_groups_run_along_flat_rows_and_other_granularities_see_the_kernels():
    rows = torch.arange(2 * 3 * 4.0).reshape(2, 3, 2, 2)
    assert torch.equal(as_blocks(rows, PerGroup(4)), rows.reshape(2, 12))
    assert as_blocks(rows, PerAxis(0)) is rows and as_blocks(rows, PerTensor()) is rows
