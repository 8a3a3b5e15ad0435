"""What a network is shown: one tensor of examples, or batches as a DataLoader yields them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

BATCH_SIZE = 256  # into which a tensor of examples is cut


def inputs_of(batches: Iterable[Any] | Tensor) -> Iterator[Tensor]:
    """The inputs of each batch: (inputs, labels) pairs lose their labels, one tensor of examples is cut up.

    Raises:
        ValueError: there is no batch at all.  TypeError: NumPy arrays, which networks do not take.

    >>> import torch
    >>> [len(x) for x in inputs_of(torch.zeros(300, 2))], [len(x) for x in inputs_of([(torch.zeros(3, 2), [7, 2, 1])])]
    ([256, 44], [3])
    """
    if isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
        inputs, labels = batches
        if labels.ndim < inputs.ndim:
            raise TypeError("batches is one pair (inputs, labels): hand over inputs alone, or [(inputs, labels)].")
    empty = True
    for batch in batches.split(BATCH_SIZE) if isinstance(batches, Tensor) else batches:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        if isinstance(inputs, np.ndarray):
            raise TypeError("batches hold NumPy arrays, but networks take tensors: nn.to_inputs makes them.")
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"a batch is a {type(batch).__name__}: wanted are tensors of inputs, or (inputs, labels) pairs of them."
            )
        empty = False
        yield inputs
    if empty:
        raise ValueError("there is no batch: the loader is empty.")
