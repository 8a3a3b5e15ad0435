"""Writing: one character after the other, each drawn from what the model expects after those before it.

Keys and values of what was read are kept (the KV cache), so that each new character costs one character's work.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import nn

from qlearn.granularity import PerGroup, PerToken
from qlearn.nn.batches import Forward, device_of, evaluating
from qlearn.nn.fake_quantize import FakeQuantize, LearnedFakeQuantize
from qlearn.nn.flow import hooks
from qlearn.nn.integer_layers import DynamicLayer
from qlearn.nn.language_model import ALPHABET, CONTEXT, Block, LanguageModel, Past, to_text, to_tokens
from qlearn.nn.network import check_model
from qlearn.nn.perplexity import logits_of
from qlearn.nn.prepared import ObservedLayer, notice_uncalled
from qlearn.nn.threads import one_thread


def generate(
    model: nn.Module,
    prompt: str,
    *,
    length: int = 200,
    temperature: float = 0.7,
    seed: int = 0,
    slide: int = CONTEXT // 2,
) -> str:
    """Let the model write on: `length` characters, each drawn from what it expects after those before it.

        p = softmax(logits / temperature)

    The model sees a window of `CONTEXT` characters at most. While it fills, keys and values are kept and each
    character is read once. When it is full it moves on by `slide` characters and is read anew, since places are counted
    from its beginning: with 64, each character is chosen after the last 65 to 128. A `slide` of 1 always shows the
    last 128, and reads them anew for each.

    Args:
        model: a `LanguageModel`, quantized or not, or any network that gives such logits. One of another kind, one
            with hooks, or whose layers look at several tokens at once to find a range, reads its window anew each time.
        prompt: what it begins with, one character or more; only the last `CONTEXT` are looked at.
        length: how many characters to add.
        temperature: 0 always takes the likeliest character; 1 draws as the model expects, less makes it more careful.
        seed: of the draws; torch's own random state is neither used nor changed.
        slide: by how many characters a full window moves on, 1 … `CONTEXT`.

    Returns:
        The prompt and what follows.

    Raises:
        ValueError: an empty prompt, characters that the model does not know, a negative length or temperature, a slide
            outside 1 … `CONTEXT`.

    Cost: one pass of one character for each, and one of a window each time it moves. Keys and values take
        2 · blocks · width floats for each character of the window.

    >>> from qlearn.nn.language_model import language_model
    >>> len(generate(language_model(), "Call me", length=5))
    12
    """
    check_model(model)
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}: wanted is a text.")
    kinds = ((length, Integral), (temperature, Real), (seed, Integral), (slide, Integral))
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise TypeError(
            f"length={length!r}, temperature={temperature!r}, seed={seed!r}, slide={slide!r}: all must be numbers."
        )
    if not prompt or length < 0 or not temperature >= 0:
        raise ValueError(
            f"prompt={prompt!r}, length={length}, temperature={temperature}: none may be empty or negative."
        )
    if not 1 <= slide <= CONTEXT:
        raise ValueError(f"slide={slide} must be from 1 to {CONTEXT}, the characters of a window.")
    random = torch.Generator().manual_seed(int(seed))  # on the processor, so that a text does not depend on the device
    tokens, device = to_tokens(prompt), device_of(model)
    start = max(0, tokens.shape[1] - CONTEXT)
    keeps, unread, forward = _reads_on(model), tokens[:, start:], None
    # Products this small would only wait for other threads; without anything for gradients they are a sixth quicker.
    no_gradients = torch.inference_mode if keeps else torch.no_grad
    with no_gradients(), evaluating(model), one_thread():
        for _ in range(length):
            if moves := tokens.shape[1] - start > CONTEXT:
                start += int(slide)
            if moves or forward is None:
                unread, forward = tokens[:, start:], _reading_on(model) if keeps else None
            logits = logits_of(model, unread.to(device), len(ALPHABET), forward)[0, -1].cpu()
            if temperature == 0 or not bool((logits / temperature).isfinite().all()):  # so small a temperature is 0
                following = logits.argmax().reshape(1)
            else:
                following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=random)
            unread = following[None]
            tokens = torch.cat([tokens, unread], dim=1)
    return to_text(tokens)


def _reading_on(model: LanguageModel) -> Forward:
    """How the model is called on the characters that follow those of the calls before."""
    pasts = [Past() for _ in model.blocks]
    return lambda model, unread: model.read_on(unread, pasts)


def _reads_on(model: nn.Module) -> TypeGuard[LanguageModel]:
    """Whether every part of the model takes each character by itself, attention apart, so that once is enough."""
    if type(model) is not LanguageModel or any(type(block) is not Block for block in model.blocks):
        return False
    prepared = {layer for layer in model.modules() if isinstance(layer, ObservedLayer)}
    inside = {part for layer in prepared for part in layer.modules()} - prepared
    return all(
        type(module).__module__.startswith(("torch.nn.", "qlearn.nn."))
        and "forward" not in vars(module)
        and all(hook is notice_uncalled for hook in hooks(module))
        and (module in inside or not _looks_around(module))
        for module in model.modules()
    )


def _looks_around(module: nn.Module) -> bool:
    """Whether a module finds one range for several characters."""
    config: Any = None
    if isinstance(module, DynamicLayer):
        config = module.inputs
    elif isinstance(module, ObservedLayer) and module.activations and module.activations.method == "dynamic":
        config = module.activations
    elif isinstance(module, FakeQuantize) and not isinstance(module, LearnedFakeQuantize):
        config = module.config
    return config is not None and not isinstance(config.granularity, (PerToken, PerGroup))
