"""A small language model: a transformer that writes one character after the other.

    tokens (N, T)  →  tokens + positions  →  blocks  →  norm  →  head  →  logits (N, T, 80)

Built like the large ones of today (norms in front, a gated MLP, no biases), and small enough to be trained on a
laptop. It has read *Moby-Dick*, all but the last chapters.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn import datasets
from qlearn.config import QuantConfig
from qlearn.granularity import PerGroup, PerToken
from qlearn.nn.batches import call, device_of, evaluating, one_tensor
from qlearn.nn.fake_quantize import straight_through

ALPHABET = "\n !\"$&'()*,-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
CONTEXT = 128  # characters that the model sees at once
BATCH_SIZE = 64


class Attention(nn.Module):
    """Each character looks at those before it and takes over what it finds: softmax(q kᵀ / √w) v, in several heads.

    `cache` says how keys and values are quantized: per token, or in groups of each token's numbers, so that no
    character's range looks at those that follow it. None leaves them in float. A model that writes keeps the keys and
    values of everything before, so for long texts they take more memory than the weights do.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.cache: QuantConfig | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → (N, T, width).

        Raises:
            ValueError: a `cache` whose ranges would span several characters.
        """
        q, k, v = self.query(x), self._stored(self.key(x)), self._stored(self.value(x))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(found.transpose(1, 2).flatten(2))

    def _stored(self, x: Tensor) -> Tensor:
        if self.cache is None:
            return x
        if not isinstance(self.cache.granularity, (PerToken, PerGroup)):
            raise ValueError(
                f"cache={self.cache.granularity}: one range for several characters lets each see those that follow "
                "it. Use PerToken(), or PerGroup(…) for a range a head."
            )
        return straight_through(x, self.cache.find_qparams(x))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) · up(x)): the gate decides how much of each hidden number goes on."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → (N, T, width)."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): what a block finds is added to what is there."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.RMSNorm(width)
        self.mlp = GatedMLP(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → (N, T, width)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class LanguageModel(nn.Module):
    """Logits for the next character, at every place of a text of up to `CONTEXT` characters.

    >>> LanguageModel(width=8, heads=2, hidden=16, blocks=1)(to_tokens("Call me")).shape
    torch.Size([1, 7, 80])
    """

    def __init__(
        self, width: int = 192, heads: int = 6, hidden: int = 512, blocks: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(ALPHABET), width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, dropout) for _ in range(blocks)))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) whole numbers → logits (N, T, 80), float32.

        Raises:
            ValueError: a text of more than `CONTEXT` characters, or anything but numbers of characters.
        """
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
            shown = (
                f"shape {tuple(tokens.shape)}, {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
            )
            raise ValueError(
                f"tokens has {shown}: wanted are whole numbers (N, T), as nn.to_tokens makes them of a text."
            )
        if not torch.compiler.is_compiling() and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= len(ALPHABET):
                raise ValueError(f"tokens go from {low} to {high}: the model knows 0 to {len(ALPHABET) - 1}.")
        if tokens.shape[-1] > CONTEXT:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}: the model sees at most {CONTEXT} characters at once. "
                f"Cut the text into pieces, or hand over its end: tokens[..., -{CONTEXT}:]."
            )
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.dropout(self.tokens(tokens) + self.positions(places)))))


def language_model(*, seed: int = 0, dropout: float = 0.0) -> LanguageModel:
    """The transformer, not trained: 4 blocks, 192 wide, 6 heads; 1,826,496 parameters.

    Args:
        seed: of the initial weights, normal with deviation 0.02. torch's own random state is neither used nor changed.
        dropout: the share of numbers that training leaves out at random; in eval mode nothing is left out.

    >>> language_model()(to_tokens("Call me")).shape
    torch.Size([1, 7, 80])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(dropout=dropout)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        return model


def load_language_model() -> LanguageModel:
    """The model with the weights that come with this package, in eval mode: trained on `datasets.text_parts().train`.

    >>> model = load_language_model()
    >>> perplexity(model, datasets.text_parts().validation[:20_000]) < 4.5
    True
    """
    model = LanguageModel()
    weights = datasets.trained("language_model")
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model.eval()


def to_tokens(text: str) -> Tensor:
    """A text as the model takes it: int64 (1, T), the place of each character in the alphabet.

    Raises:
        ValueError: a character that the model has never seen, and where it stands.

    >>> to_tokens("\\n a")
    tensor([[ 0,  1, 54]])
    """
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}: wanted is a text, 'Call me Ishmael.'")
    unknown = next((place for place, letter in enumerate(text) if letter not in ALPHABET), None)
    if unknown is not None:
        raise ValueError(
            f"the text has {text[unknown]!r} at place {unknown}: the model knows ASCII letters, digits, space, new "
            f"line and {''.join(letter for letter in ALPHABET if not letter.isalnum() and not letter.isspace())}"
        )
    return torch.tensor([[ALPHABET.index(letter) for letter in text]], dtype=torch.int64).reshape(1, -1)


def to_text(tokens: Tensor) -> str:
    """The inverse of `to_tokens`.

    >>> to_text(to_tokens("Call me Ishmael."))
    'Call me Ishmael.'
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens is a {type(tokens).__name__}: wanted is a tensor of whole numbers.")
    numbers = tokens.reshape(-1).tolist()
    if wrong := [number for number in numbers if number not in range(len(ALPHABET))]:
        raise ValueError(f"tokens holds {wrong[0]}: the model knows 0 to {len(ALPHABET) - 1}.")
    return "".join(ALPHABET[number] for number in numbers)


def windows(text: str) -> tuple[Tensor, Tensor]:
    """A text cut into pieces of `CONTEXT` characters: inputs (N, T), and the characters that follow each, (N, T).

    The last characters, which fill no piece, are left out.

    Raises:
        ValueError: fewer characters than one piece needs, `CONTEXT` + 1.

    >>> inputs, following = windows("whale " * 50)
    >>> inputs.shape, bool((inputs[0, 1:] == following[0, :-1]).all())
    (torch.Size([2, 128]), True)
    """
    tokens = to_tokens(text)[0]
    n = (len(tokens) - 1) // CONTEXT
    if n < 1:
        raise ValueError(f"the text has {len(text)} characters: {CONTEXT + 1} are needed at least.")
    return tokens[: n * CONTEXT].reshape(n, CONTEXT), tokens[1 : n * CONTEXT + 1].reshape(n, CONTEXT)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """What a network expects after each character, if it is a language model."""
    logits = one_tensor(call(model, tokens))
    if logits.shape != (*tokens.shape, len(ALPHABET)):
        raise ValueError(
            f"for tokens of shape {tuple(tokens.shape)} the network puts out shape {tuple(logits.shape)}: wanted are "
            f"logits, one for each of {len(ALPHABET)} characters, as a LanguageModel has them."
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("the network's outputs are not finite.")
    return logits


def perplexity(model: nn.Module, text: str) -> float:
    """How surprised the model is by a text: as much as if it had to guess among so many characters each time.

        perplexity = exp(mean over all characters of −log p(character | those before it in its piece))

    The text is read in pieces of `CONTEXT` characters. 1.0 is a model that knows every character, 80.0 one that knows
    nothing. Compare models on the *same* text only.

    Args:
        model: a `LanguageModel`, prepared and quantized ones included. Measured in eval mode and without gradients.
        text: of more than `CONTEXT` characters.

    Raises:
        ValueError: a text that is too short, or has characters that the model does not know.

    Cost: one pass through the network; 0.2 s for 4,000 characters on one core.

    >>> class KnowsNothing(nn.Module):
    ...     def forward(self, tokens):
    ...         return torch.zeros(*tokens.shape, 80)
    >>> round(perplexity(KnowsNothing(), "Call me Ishmael. " * 10), 3)
    80.0
    """
    inputs, following = windows(text)
    total, device = 0.0, device_of(model)
    with torch.no_grad(), evaluating(model):
        for x, y in zip(inputs.split(BATCH_SIZE), following.split(BATCH_SIZE), strict=True):
            logits = _logits(model, x.to(device)).flatten(0, 1)
            total += functional.cross_entropy(logits, y.to(device).flatten(), reduction="sum").item()
    return math.exp(total / following.numel())


def generate(model: nn.Module, prompt: str, *, length: int = 200, temperature: float = 0.7, seed: int = 0) -> str:
    """Let the model write on: `length` characters, each drawn from what it expects after those before it.

        p = softmax(logits / temperature)

    Args:
        model: a `LanguageModel`, quantized or not.
        prompt: what it begins with, one character or more; only the last `CONTEXT` are looked at.
        length: how many characters to add.
        temperature: 0 always takes the likeliest character; 1 draws as the model expects, less makes it more careful.
        seed: of the draws; torch's own random state is neither used nor changed.

    Returns:
        The prompt and what follows.

    Raises:
        ValueError: an empty prompt, characters that the model does not know, a negative length or temperature.

    Cost: one pass through the network for each character.

    >>> len(generate(language_model(), "Call me", length=5))
    12
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}: wanted is a text.")
    kinds = ((length, Integral), (temperature, Real), (seed, Integral))
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise TypeError(f"length={length!r}, temperature={temperature!r}, seed={seed!r}: all must be numbers.")
    if not prompt or length < 0 or not temperature >= 0:
        raise ValueError(
            f"prompt={prompt!r}, length={length}, temperature={temperature}: none may be empty or negative."
        )
    random = torch.Generator().manual_seed(int(seed))  # on the processor, so that a text does not depend on the device
    tokens, device = to_tokens(prompt), device_of(model)
    with torch.no_grad(), evaluating(model):
        for _ in range(length):
            logits = _logits(model, tokens[:, -CONTEXT:].to(device))[0, -1].cpu()
            if temperature == 0 or not bool((logits / temperature).isfinite().all()):  # so small a temperature is 0
                following = logits.argmax().reshape(1)
            else:
                following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=random)
            tokens = torch.cat([tokens, following[None]], dim=1)
    return to_text(tokens)
