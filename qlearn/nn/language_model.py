"""A small language model: a transformer that writes one character after the other.

    tokens (N, T)  →  tokens + positions  →  blocks  →  norm  →  head  →  logits (N, T, 80)

Built like the large ones of today (norms in front, a gated MLP, no biases), and small enough to be trained on a
laptop. It has read *Moby-Dick*, all but the last chapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlearn import datasets
from qlearn.config import QuantConfig
from qlearn.granularity import PerGroup, PerToken
from qlearn.nn.fake_quantize import straight_through
from qlearn.nn.network import check_numbers, check_places, check_seed

ALPHABET = "\n !\"$&'()*,-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
CONTEXT = 128  # characters that the model sees at once


@dataclass(eq=False)
class Past:
    """The keys and values of the characters that a block has read already: its KV cache, empty at first.

    Attributes:
        keys, values: (N, heads, characters, width of a head), as attention reads them: after `cache` has rounded them.

    >>> past = Past()
    >>> _ = past.add(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    >>> past.add(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))[0].shape, past.length
    (torch.Size([1, 2, 6, 4]), 6)
    """

    keys: Tensor | None = None
    values: Tensor | None = None

    @property
    def length(self) -> int:
        """How many characters are in it."""
        return 0 if self.keys is None else self.keys.shape[2]

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the next characters, and hand over all there are."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


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

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        """(N, T, width) → (N, T, width). With a `past`, x are the characters after those in it, and are added to it.

        Raises:
            ValueError: a `cache` whose ranges would span several characters.
        """
        q, k, v = self.query(x), self.stored(self.key(x)), self.stored(self.value(x))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        before, mask = 0 if past is None else past.length, None
        if past is not None:
            k, v = past.add(k, v)
        if before and x.shape[1] > 1:  # the last of x sees all there is, the one before it all but one
            mask = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool, device=x.device).tril(before)
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not before)
        return self.output(found.transpose(1, 2).flatten(2))

    def stored(self, x: Tensor) -> Tensor:
        """Keys or values as they are kept, (N, T, width)."""
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

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        """(N, T, width) → (N, T, width). `past` is the attention's."""
        x = x + self.dropout(self.attention(self.norm1(x), past))
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
        return self._out(self.blocks(self._in(tokens)))

    def read_on(self, tokens: Tensor, pasts: Sequence[Past]) -> Tensor:
        """The logits after each of the next characters, without reading again those before them.

        Args:
            tokens: (N, T), what follows the characters in `pasts`.
            pasts: one for each block, all new or from calls before. The characters are added to them.

        Raises:
            ValueError: as for the network itself; `CONTEXT` counts both together.

        >>> model, tokens = language_model(), to_tokens("Call me Ishmael.")
        >>> pasts = [Past() for _ in model.blocks]
        >>> in_parts = [model.read_on(part, pasts) for part in tokens.split(5, dim=1)]
        >>> bool(torch.allclose(torch.cat(in_parts, dim=1), model(tokens), atol=1e-5))
        True
        """
        x = self._in(tokens, pasts[0].length)
        for block, past in zip(self.blocks, pasts, strict=True):
            x = block(x, past)
        return self._out(x)

    def _in(self, tokens: Tensor, before: int = 0) -> Tensor:
        """What goes into the first block, if these are characters and not too many."""
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex():
            shown = (
                f"shape {tuple(tokens.shape)}, {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
            )
            raise ValueError(
                f"tokens has {shown}: wanted are whole numbers (N, T), as nn.to_tokens makes them of a text."
            )
        if not torch.compiler.is_compiling():
            check_places("tokens", tokens, len(ALPHABET), ": the model knows")
        if before + tokens.shape[-1] > CONTEXT:
            after = f" after {before} characters" if before else ""
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}{after}: the model sees at most {CONTEXT} characters at once. "
                f"Cut the text into pieces, or hand over its end: tokens[..., -{CONTEXT}:]."
            )
        places = torch.arange(before, before + tokens.shape[-1], device=tokens.device)
        return self.dropout(self.tokens(tokens.long()) + self.positions(places))

    def _out(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def language_model(*, seed: int = 0, dropout: float = 0.0) -> LanguageModel:
    """The transformer, not trained: 4 blocks, 192 wide, 6 heads; 1,826,496 parameters.

    Args:
        seed: of the initial weights, normal with deviation 0.02. torch's own random state is neither used nor changed.
        dropout: the share of numbers that training leaves out at random; in eval mode nothing is left out.

    >>> language_model()(to_tokens("Call me")).shape
    torch.Size([1, 7, 80])
    """
    check_seed(seed)
    check_numbers(dropout=dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(dropout=dropout)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        return model


def load_language_model() -> LanguageModel:
    """The model with the weights that come with this package, in eval mode: trained on `datasets.text_parts().train`.

    >>> from qlearn.nn.perplexity import perplexity
    >>> perplexity(load_language_model(), datasets.text_parts().validation[:20_000]) < 4.5
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
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        shown = f"has dtype {tokens.dtype}" if isinstance(tokens, Tensor) else f"is a {type(tokens).__name__}"
        raise TypeError(f"tokens {shown}: wanted is a tensor of whole numbers.")
    check_places("tokens", tokens, len(ALPHABET), ": the model knows")
    return "".join(ALPHABET[number] for number in tokens.reshape(-1).tolist())


def windows(text: str | Tensor, context: int = CONTEXT) -> tuple[Tensor, Tensor]:
    """A text cut into pieces of `context` characters: inputs (N, T), and the characters that follow each, (N, T).

    The last characters, which fill no piece, are left out.

    Args:
        text: a text, or tokens (texts, T) of any model: each row is a text of its own.
        context: the tokens of a piece.

    Raises:
        ValueError: fewer characters than one piece needs, `context` + 1.

    >>> inputs, following = windows("whale " * 50)
    >>> inputs.shape, bool((inputs[0, 1:] == following[0, :-1]).all())
    (torch.Size([2, 128]), True)
    """
    tokens, what = (text, "tokens") if isinstance(text, Tensor) else (to_tokens(text), "characters")
    length = tokens.shape[1]
    n = (length - 1) // context
    if n < 1:
        raise ValueError(
            f"the text has {length} {what}: {context + 1} are needed at least, for a window of {context} and the one "
            "that follows it."
        )
    return tokens[:, : n * context].reshape(-1, context), tokens[:, 1 : n * context + 1].reshape(-1, context)
