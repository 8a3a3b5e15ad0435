"""Perplexity: how surprised a causal language model is by a text, the shipped one or any other.

text  →  tokens  →  windows  →  logits  →  exp(mean of −log p)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from qlearn.nn.batches import Forward, as_tensor, call, device_of, evaluating, one_tensor
from qlearn.nn.language_model import ALPHABET, CONTEXT, to_tokens, windows
from qlearn.nn.network import check_counts, check_model, check_places

BATCH_SIZE = 64  # windows at once, at most
LOGITS = 1 << 25  # numbers that are put out at once, at most: 128 MB


def perplexity(
    model: nn.Module,
    text: Any,
    *,
    context: int = CONTEXT,
    forward: Forward | None = None,
    progress: bool = False,
) -> float:
    """How surprised the model is by a text: as much as if it had to guess among so many tokens each time.

        perplexity = exp(mean over all predicted tokens of −log p(token | those before it in its window))

    The text is read in windows of `context` tokens, each of which predicts the `context` tokens that follow it one by
    one; what fills no window is left out. 1.0 is a model that knows every token, the size of the vocabulary one that
    knows nothing. Compare models on the *same* text, in the same windows and tokens only: the number is one of a
    token, and says nothing beside that of a model with other tokens.

    Args:
        model: a `LanguageModel`, prepared and quantized ones included; or with tokens any causal network that gives
            logits (N, T, vocabulary), a tensor or in an output with `.logits`, as transformers' models do. Measured in
            eval mode and without gradients.
        text: a text for a `LanguageModel`; or tokens, whole numbers (T,), or (N, T) for N texts of one length.
        context: tokens in a window.
        forward: how the network is called on a batch of tokens (N, context), if not by `model(tokens)`.
        progress: show a bar.

    Raises:
        ValueError: a text that is too short, has characters that the model does not know, or tokens that it has no
            logits for; outputs that are not finite, or not such logits.
        TypeError: tokens that are no whole numbers, texts of different lengths.

    Cost: one pass through the network, a few windows at a time; 0.2 s for 4,000 characters on one core.

    >>> class KnowsNothing(nn.Module):
    ...     def forward(self, tokens):
    ...         return torch.zeros(*tokens.shape, 80)
    >>> round(perplexity(KnowsNothing(), "Call me Ishmael. " * 10), 3)
    80.0
    >>> round(perplexity(KnowsNothing(), [3, 1, 4, 1, 5], context=4), 3)
    80.0
    """
    check_model(model)
    check_counts(context=context)
    of_characters = isinstance(text, (str, bytes))
    inputs, following = windows(text if of_characters else as_tokens(text), int(context))
    total, size, device = 0.0, BATCH_SIZE, device_of(model)
    with torch.no_grad(), evaluating(model):
        if not of_characters:
            first = torch.zeros(1, 1, dtype=torch.int64, device=device)
            vocabulary = logits_of(model, first, forward=forward).shape[-1]
            hint = ": they come from another model's tokenizer"
            check_places("tokens", as_tokens(text), vocabulary, ", and the network has logits for", hint)
            size = min(BATCH_SIZE, max(1, LOGITS // (inputs.shape[1] * vocabulary)))
        pairs = list(zip(inputs.split(size), following.split(size), strict=True))
        for x, y in tqdm(pairs, desc="Reading", unit="batch", leave=False, disable=not progress):
            logits = logits_of(model, x.to(device), len(ALPHABET) if of_characters else None, forward)
            total += functional.cross_entropy(
                logits.flatten(0, 1).float(), y.to(device).flatten(), reduction="sum"
            ).item()
    mean = total / following.numel()
    return math.exp(mean) if mean < 709 else math.inf


def as_tokens(text: Any) -> Tensor:
    """Tokens as int64 (N, T), of a text for a `LanguageModel` its characters.

    Raises:
        TypeError, ValueError: no whole numbers, none, or rows of different lengths.

    >>> as_tokens([3, 1, 4])
    tensor([[3, 1, 4]])
    """
    if isinstance(text, (str, bytes)):
        return to_tokens(text)  # type: ignore[arg-type]
    if isinstance(text, Mapping) or hasattr(text, "input_ids"):
        raise TypeError(f"text is a {type(text).__name__}: wanted are the tokens alone, text['input_ids'].")
    try:
        tokens = as_tensor(text, "text")
    except TypeError as error:
        raise TypeError(
            f"{error} Wanted are whole numbers, (T,) or (N, T). Texts of different lengths are to be joined to one, "
            "or measured one by one."
        ) from None
    if tokens.ndim not in (1, 2) or not tokens.numel():
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}: wanted are some, (T,) or (N, T).")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens have dtype {tokens.dtype}: wanted are whole numbers, as a tokenizer gives them.")
    return tokens.long().reshape(-1, tokens.shape[-1])


def logits_of(
    model: nn.Module, tokens: Tensor, vocabulary: int | None = None, forward: Forward | None = None
) -> Tensor:
    """What a network expects after each token: (N, T) → (N, T, vocabulary).

    Raises:
        ValueError: what it puts out has another shape, or is not finite.

    >>> logits_of(nn.Embedding(80, 80), torch.zeros(1, 5, dtype=torch.int64)).shape
    torch.Size([1, 5, 80])
    """
    try:
        logits = one_tensor(call(model, tokens, forward))
    except IndexError as error:
        raise ValueError(
            f"the network cannot look up tokens of up to {int(tokens.max())} at {tokens.shape[1]} places ({error}): "
            "a smaller context=, or the tokens of its own tokenizer."
        ) from error
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or logits.shape[2] != (vocabulary or logits.shape[2]):
        wanted = f"each of {vocabulary} characters, as a LanguageModel has them" if vocabulary else "each token"
        hint = ". Of a text for another model hand over its tokens" if vocabulary else ""
        raise ValueError(
            f"for tokens of shape {tuple(tokens.shape)} the network puts out shape {tuple(logits.shape)}: wanted are "
            f"logits, one for {wanted}{hint}."
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("the network's outputs are not finite.")
    return logits
