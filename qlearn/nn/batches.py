"""What a network is shown, and how: batches as people have them, one pass over them, and what comes out.

    for output in outputs(model, batches): …

Whatever in this package runs data through a network does it with `outputs`: in eval mode, without gradients, with a
progress bar, and with the caller's `forward` where a batch is not what the network takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from qlearn.arrays import as_array
from qlearn.nn.network import check_model

BATCH_SIZE = 256  # into which a tensor of examples is cut

Forward: TypeAlias = Callable[[nn.Module, Any], Any]
Batches: TypeAlias = Iterable[Any] | Tensor

FAILURES = TypeError, AttributeError, IndexError, KeyError, RuntimeError  # of code that is given what it does not take

HOW = "say how the network takes it: forward=lambda model, batch: model(…)"


def outputs(
    model: nn.Module,
    batches: Batches,
    *,
    forward: Forward | None = None,
    desc: str = "",
    progress: bool = False,
    some: bool = True,
) -> Iterator[Any]:
    """Call the model on each batch, in eval mode and without gradients, and hand over what comes out.

    Args:
        model: any network. Every module gets its own mode back.
        batches: an iterable of batches, or one tensor of examples, which is cut into pieces of 256. A batch is what
            `call` takes.
        forward: how the network is called on a batch, for all that `call` does not understand.
        desc, progress: what the bar says, and whether there is one.
        some: whether there has to be a batch.

    Raises:
        ValueError, TypeError: no batches, or batches that say nothing clear; see `call`.

    >>> [len(y) for y in outputs(nn.Identity(), torch.zeros(300, 2))]
    [256, 44]
    >>> [len(y) for y in outputs(nn.Identity(), [(torch.zeros(3, 2), [7, 2, 1])])]  # images and labels
    [3]
    """
    check_model(model)
    with evaluating(model):
        for batch in tqdm(listed(batches, some=some), desc=desc, unit="batch", leave=False, disable=not progress):
            with torch.no_grad():  # only while the network runs, not in the loop of whoever looks at what comes out
                output = call(model, batch, forward)
            yield output


def listed(batches: Batches, *, some: bool = True) -> Iterable[Any]:
    """The batches one after the other; a tensor of examples is cut up. A loader keeps its length, for the bar.

    Raises:
        ValueError: there is no batch at all, and has to be some.
        TypeError: one batch was given where a list of them belongs.
    """
    if isinstance(batches, Tensor) and batches.ndim == 0:
        raise ValueError("batches is a single number, a tensor of shape (): wanted are examples, (N, …).")
    if isinstance(batches, Tensor):
        return batches.split(BATCH_SIZE) if len(batches) else _some(()) if some else ()
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise TypeError(f"batches is a {type(batches).__name__}: wanted is a list of batches, [batch] for one.")
    if isinstance(batches, tuple) and len(batches) > 1 and all(isinstance(part, Tensor) for part in batches):
        raise TypeError(
            "batches is a tuple of tensors, which may be one batch or several: hand over the inputs alone, "
            "[(inputs, labels)] for one batch, or a list of tensors for one batch each."
        )
    return batches if not some or (isinstance(batches, Sequence) and len(batches)) else _some(batches)


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """What the model gives for one batch.

    Without `forward` a batch may be a tensor, a dictionary of the model's arguments, a list of tensors of a model that
    takes lists, or a pair (inputs, labels) or (arguments, labels), whose labels are left out. Whatever could mean
    something else is refused.

    Raises:
        ValueError, TypeError: it does not say which parts the network takes; NumPy arrays.

    >>> call(nn.Identity(), {"input": torch.ones(1)})
    tensor([1.])
    """
    if forward is not None:
        if not callable(forward):
            raise TypeError(
                f"forward is a {type(forward).__name__}: wanted is a function, lambda model, batch: model(…)."
            )
        return forward(model, batch)
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Mapping):
        batch = batch[0]  # the other part can only be labels
    if isinstance(batch, Mapping):
        takes = _arguments(model)
        if unknown := [name for name in batch if not any(part in (name, "**") for part in takes)]:
            raise ValueError(f"a batch has {unknown[0]!r}, and the network takes {', '.join(takes)}: {HOW}.")
        return _called(model, **batch)
    return _called(model, _input_of(model, batch))


def as_tensor(values: Any, name: str) -> Tensor:
    """Numbers as people have them, as one tensor: lists, lists of tensors, NumPy arrays however they lie in memory.

    Raises:
        TypeError: no numbers in rows of equal length; an array that hides some of its values.

    >>> as_tensor(np.array([1, 2, 3], dtype=">i2")[::-1], "labels")
    tensor([3, 2, 1], dtype=torch.int16)
    """
    if isinstance(values, np.ndarray):
        values = as_array(values, name)
        values = values.copy() if any(step < 0 for step in values.strides) else values
    try:
        if isinstance(values, (list, tuple)) and values and all(isinstance(part, Tensor) for part in values):
            return torch.stack(tuple(values))
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} cannot be made a tensor, which takes numbers in rows of equal length: {error}"
        ) from error


def one_tensor(output: Any) -> Tensor:
    """The logits in a network's output: a tensor, or what a dictionary, an object or a tuple holds of them.

    Raises:
        TypeError: none can be found.

    >>> one_tensor({"logits": torch.ones(1), "loss": None})
    tensor([1.])
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if named is None and isinstance(output, (tuple, list)) and output:
        named = output[0]
    if isinstance(named, Tensor):
        return named
    holds = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"the network puts out a {type(output).__name__}{holds}, and no logits: hand over those that count, "
        "forward=lambda model, batch: model(batch)[…]."
    )


def tensors_in(parts: Any) -> list[Tensor]:
    """The tensors in anything that holds some.

    >>> tensors_in({"a": torch.ones(1), "b": (2, [torch.zeros(1)])})
    [tensor([1.]), tensor([0.])]
    """
    return [part for part in tree_leaves(parts) if isinstance(part, Tensor)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode in here; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where the model's numbers are; a model without any is content with the processor."""
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def _called(model: nn.Module, *inputs: Any, **named: Any) -> Any:
    """What the model gives. Where it fails, the error says on what."""
    if any(isinstance(part, np.ndarray) for part in tree_leaves((inputs, named))):
        raise TypeError(
            "batches hold NumPy arrays, but networks take tensors: nn.to_inputs makes them of "
            "images, torch.from_numpy of all else."
        )
    try:
        return model(*inputs, **named)
    except FAILURES as error:
        try:
            inspect.signature(model.forward).bind(*inputs, **named)
        except TypeError as why:  # it cannot be called so, whatever the values are
            raise ValueError(f"a batch does not hold what the network takes ({why}): {HOW}.") from error
        if type(error) not in FAILURES:  # no memory is left, say
            raise
        shown = ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in tensors_in((inputs, named)))
        raise type(error)(f"the network fails on a batch of shape {shown}: {error}") from error


def _input_of(model: nn.Module, batch: Any) -> Any:
    """The one thing that a network takes of a batch."""
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch
    if not isinstance(batch, (tuple, list)) or not batch:
        raise TypeError(
            f"a batch is a {type(batch).__name__}: wanted are tensors of inputs, dictionaries of arguments, or "
            f"(inputs, labels) pairs. For all else {HOW}."
        )
    first, *others = batch
    if len(batch) == 1:
        return _input_of(model, first)
    takes = [name for name in _arguments(model) if name != "**"]
    if len(takes) > 1 or "*" in takes:
        most = "any number of" if "*" in takes else f"up to {len(takes)}"
        raise ValueError(
            f"a batch has {len(batch)} parts, and the network takes {most} inputs ({', '.join(takes)}), "
            f"so that the second may be an input or labels: {HOW}."
        )
    if len(batch) > 2 or (isinstance(first, Tensor) and not _are_labels(others[0], first)):
        raise ValueError(f"a batch has {len(batch)} parts that all look like inputs: {HOW}.")
    return first if isinstance(first, list) else _input_of(model, first)


def _are_labels(part: Any, inputs: Tensor) -> bool:
    """Whether the second part of a batch can only be what the inputs are to become."""
    if not isinstance(part, Tensor):
        return True
    if part.ndim == inputs.ndim and inputs.ndim > 2:
        return False
    return part.ndim < inputs.ndim or not part.is_floating_point() or part.shape[1:] != inputs.shape[1:]


def _arguments(model: nn.Module) -> list[str]:
    """The names of what a network's forward takes, with "*" or "**" for any others."""
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(model.forward).parameters.values()
    # A transposed convolution may be told the size of its output, which is in no batch.
    return [stars.get(p.kind, p.name) for p in parameters if p.name != "output_size"]


def _some(batches: Iterable[Any]) -> Iterator[Any]:
    """The same batches, of which there is one at least."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError("there is no batch: the loader is empty.")
