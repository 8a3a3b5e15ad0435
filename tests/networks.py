"""Random networks for the tests of what rearranges them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

INPUT = (3, 12, 12)  # channels, height, width


def random_network(seed: int, *, norms: bool = True) -> nn.Sequential:
    """Convolutions and linear layers in float64, some with groups, strides, no bias, nested; and batch norms if asked.

    The running statistics of the batch norms are such as training may leave them: none is 0 or 1.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)

    def often(p: float) -> bool:
        return bool(rng.random() < p)

    def norm(kind: type[nn.Module], size: int) -> list[nn.Module]:
        if not norms or often(0.3):
            return [nn.Identity()] if often(0.5) else []
        made = kind(size, eps=float(rng.choice([1e-5, 1e-3])), affine=often(0.7))
        made.running_mean = torch.randn(size)
        made.running_var = 0.1 + 3 * torch.rand(size)
        if made.affine:
            nn.init.normal_(made.weight, 1, 0.5)
            nn.init.normal_(made.bias)
        return [*([nn.Identity()] if often(0.2) else []), made]

    steps: list[nn.Module] = []
    channels, side = INPUT[0], INPUT[1]
    for _ in range(rng.integers(1, 4)):
        groups = channels if often(0.3) else 1
        wider = channels * int(rng.integers(1, 3)) if groups > 1 else int(rng.integers(2, 7))
        conv = nn.Conv2d(channels, wider, 3, padding=1, groups=groups, bias=often(0.5))
        block = [conv, *norm(nn.BatchNorm2d, wider), nn.LeakyReLU(0.1) if often(0.3) else nn.ReLU()]
        if side % 2 == 0 and often(0.6):
            block.append(nn.AvgPool2d(2) if often(0.3) else nn.MaxPool2d(2))
            side //= 2
        steps += [nn.Sequential(*block)] if often(0.4) else block
        channels = wider
    steps.append(nn.Flatten())
    width = channels * side * side
    for _ in range(rng.integers(1, 3)):
        wider = int(rng.integers(2, 9))
        steps += [nn.Linear(width, wider, bias=often(0.5)), *norm(nn.BatchNorm1d, wider), nn.ReLU(), nn.Dropout(0.5)]
        width = wider
    steps.append(nn.Linear(width, 10))
    return nn.Sequential(*steps).double().eval()


def random_images(seed: int, count: int = 5) -> torch.Tensor:
    """Images that fit, in float64."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, *INPUT)))


def copy_is_separate(before: dict[str, torch.Tensor], model: nn.Module) -> bool:
    """Whether a model still has the numbers that it had."""
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
