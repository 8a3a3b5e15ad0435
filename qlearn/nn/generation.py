"""Writing: one character after the other, each drawn from what the model expects after those before it.

Keys and values of what was read are kept (the KV cache), so that each new character costs one character's work.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from qlearn.nn.batches import device_of, evaluating
from qlearn.nn.language_model import ALPHABET, CONTEXT, to_text, to_tokens
from qlearn.nn.network import check_model
from qlearn.nn.perplexity import logits_of
from qlearn.nn.reading_on import Reader, reads_on
from qlearn.nn.threads import one_thread


def generate(
    model: nn.Module,
    prompt: str,
    *,
    length: int = 200,
    temperature: float = 0.7,
    seed: int = 0,
    slide: int = CONTEXT // 2,
    each: Callable[[str], object] | None = None,
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
        each: is called with every new character as soon as it is there; what it raises ends the writing.

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
    if each is not None and not callable(each):
        raise TypeError(f"each is a {type(each).__name__}: wanted is a function of a character, or None.")
    if not prompt or length < 0 or not temperature >= 0:
        raise ValueError(
            f"prompt={prompt!r}, length={length}, temperature={temperature}: none may be empty or negative."
        )
    if not 1 <= slide <= CONTEXT:
        raise ValueError(f"slide={slide} must be from 1 to {CONTEXT}, the characters of a window.")
    random = torch.Generator().manual_seed(int(seed))  # on the processor, so that a text does not depend on the device
    tokens, device = to_tokens(prompt)[0].tolist(), device_of(model)
    start, keeps = max(0, len(tokens) - CONTEXT), reads_on(model)
    # Products this small would only wait for other threads; without anything for gradients they are a sixth quicker.
    no_gradients = torch.inference_mode if keeps else torch.no_grad
    with no_gradients(), evaluating(model), one_thread():
        reader = Reader(model) if keeps else None
        for step in range(length):
            if moves := len(tokens) - start > CONTEXT:
                start += int(slide)
            if reader is not None and step and not moves:
                logits = reader.read(tokens[-1])
            else:
                window = torch.tensor([tokens[start:]], device=device)
                logits = logits_of(model, window, len(ALPHABET))[0, -1] if reader is None else reader.begin(window)
            tokens.append(_drawn(logits.cpu(), float(temperature), random))
            if each is not None:
                each(ALPHABET[tokens[-1]])
    return to_text(torch.tensor(tokens))


def _drawn(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    """One of the characters; the likeliest if the temperature is 0, or so small that the quotient overflows."""
    if temperature:
        scaled = logits / temperature
        if bool(scaled.isfinite().all()):
            return int(torch.multinomial(scaled.softmax(-1), 1, generator=random))
    if not bool(logits.isfinite().all()):
        raise ValueError("the network's outputs are not finite.")
    return int(logits.argmax())
