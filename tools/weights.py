"""Train the networks of the lessons and store their weights with the package: `make weights`, half an hour.

The two image networks, two minutes of it, learn from the 55,000 training images, the language model from the first
115 chapters. Settings were chosen on the validation images and chapters; the test images and chapters are looked at
once, to record in the file what a network reaches. `python tools/weights.py mlp cnn` trains only those.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn
from tqdm.auto import trange

from qlearn import datasets
from qlearn.nn.language_model import CONTEXT, LanguageModel, language_model, to_tokens
from qlearn.nn.models import cnn, mlp
from qlearn.nn.perplexity import perplexity
from qlearn.nn.training import accuracy, train

SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": {"seed": 0, "epochs": 8, "batch_size": 128, "learning_rate": 4e-3},
    "cnn": {"seed": 0, "epochs": 4, "batch_size": 128, "learning_rate": 4e-3},
    "language_model": {"seed": 0, "steps": 3000, "batch_size": 32, "learning_rate": 2e-3, "dropout": 0.1},
}
WARM_UP = 100  # steps in which the learning rate rises
LAST_RATE = 0.02  # of the first, where its cosine ends
WEIGHT_DECAY = 0.1


def main(names: list[str]) -> None:
    for name in names or SETTINGS:
        settings, start = SETTINGS[name], time.perf_counter()
        model, measured = language(**settings) if name == "language_model" else digits(name, settings)
        seconds = time.perf_counter() - start
        content = save(weights(model), metadata={"training": json.dumps(settings | measured)})
        datasets.write_whole(datasets.SHIPPED / f"{name}.safetensors", content)
        print(f"{name}: {measured}, {len(content):,} bytes, {seconds:.1f} s")


def digits(name: str, settings: dict[str, Any]) -> tuple[nn.Module, dict[str, float]]:
    """The MLP or the CNN, trained, and what it reaches."""
    images = datasets.mnist_arrays()
    model = {"mlp": mlp, "cnn": cnn}[name](seed=settings["seed"])
    train(model, *images.train, **settings)
    return model, {
        "validation_accuracy": round(accuracy(model, *images.validation), 5),
        "test_accuracy": round(accuracy(model, *images.test), 5),
    }


def language(
    *, seed: int, steps: int, batch_size: int, learning_rate: float, dropout: float
) -> tuple[LanguageModel, dict[str, float]]:
    """The language model, trained on pieces from all over the training chapters, and what it reaches in float16."""
    parts = datasets.text_parts()
    tokens = to_tokens(parts.train)[0]
    model = language_model(seed=seed, dropout=dropout).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    places = torch.Generator().manual_seed(seed)
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]), trange(steps, desc="Training", unit="step") as bar:
        torch.manual_seed(seed)  # of dropout
        for _ in bar:
            starts = torch.randint(0, len(tokens) - CONTEXT, (batch_size, 1), generator=places)
            pieces = tokens[starts + torch.arange(CONTEXT + 1)]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(pieces[:, :-1])
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), pieces[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    model.half().float().eval()  # it is stored, and used, with the precision of float16
    return model, {
        "validation_perplexity": round(perplexity(model, parts.validation), 4),
        "test_perplexity": round(perplexity(model, parts.test), 4),
    }


def rate(step: int, steps: int) -> float:
    """The learning rate of a step, in parts of the largest: it rises, then falls along a cosine."""
    return min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / steps)) + LAST_RATE)


def weights(model: nn.Module) -> dict:
    """The model's numbers as NumPy arrays, without batch norm's count of batches, which nothing reads."""
    dtype = np.float16 if isinstance(model, LanguageModel) else np.float32
    state = model.state_dict().items()
    return {name: value.numpy().astype(dtype) for name, value in state if not name.endswith("num_batches_tracked")}


if __name__ == "__main__":
    main(sys.argv[1:])
