"""Benchmarks of language models: writing, a model of 135 million parameters quantized, two bits repaired."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import qlearn
from bench_rows import Row, against, race

# The shape of SmolLM2-135M. Its rows of 576 are 4.5 groups of 128, so its groups are of 64.
SHAPE: dict[str, Any] = {
    **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
}
GROUP, WINDOWS, CONTEXT = 64, 32, 512


def writing() -> Iterator[Row]:
    """Keys and values kept, against the window read anew for each letter: the same letters, on one thread.

    A window begins somewhere, and places are counted from there. So both move it on alike when it is full, and "at
    full context" is the letter for which it is.
    """
    import torch

    from qlearn import datasets, nn
    from qlearn.nn.language_model import CONTEXT as WINDOW
    from qlearn.nn.reading_on import Reader
    from qlearn.nn.threads import one_thread

    class Anew(nn.LanguageModel):
        """Of a class of its own, so that nothing is known about it and nothing kept."""

    model, anew = nn.load_language_model(), Anew()
    anew.load_state_dict(model.state_dict())
    text = datasets.text_parts().validation
    for length, prompt in ((WINDOW - 16, text[:16]), (3 * WINDOW, text[:WINDOW])):
        write = partial(nn.generate, prompt=prompt, length=length)
        if write(model) != write(anew):
            raise AssertionError("the two ways write other letters.")
        times = race(5, clock=time.process_time, own=partial(write, model), peer=partial(write, anew))
        name = f"writing {length} letters after {len(prompt)}"
        yield against(name, times["own"], "the window anew", times["peer"])

    tokens, last = nn.to_tokens(text[:WINDOW]), 16
    anew.eval()
    with torch.inference_mode(), one_thread():
        reader = Reader(model)

        def read_on() -> None:
            for token in tokens[0, -last:].tolist():
                reader.read(token)

        def read_anew() -> None:
            for length in range(WINDOW - last, WINDOW):
                anew(tokens[:, : length + 1])

        taken: dict[str, list[float]] = {"own": [], "peer": []}
        for _ in range(30):
            reader.begin(tokens[:, :-last])
            for name, read in (("own", read_on), ("peer", read_anew)):
                start = time.process_time()
                read()
                taken[name].append(1e3 * (time.process_time() - start))
    own, peer = (statistics.median(taken[name]) for name in ("own", "peer"))
    yield against(f"letters {WINDOW - last + 1} to {WINDOW} of a window", own, "the window anew", peer, 5)


def real() -> Iterator[Row]:
    """135 million random parameters, 4 bits in groups, 32 windows of 512: seconds, and the process's largest memory."""
    for method, seconds, gigabytes in (("nearest", math.inf, math.inf), ("awq", math.inf, math.inf), ("gptq", 300, 4)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # the largest memory is one of a whole process
            took, most, begun = pool.apply(_quantized, (method,))
        name = f"{method}, 135 M parameters, {WINDOWS} windows of {CONTEXT}"
        limit = seconds < math.inf
        yield Row(name, took, "s", floor=f"≤ {seconds} s" if limit else "", met=took <= seconds if limit else None)
        floor, met = (f"≤ {gigabytes} GB", most <= gigabytes) if limit else ("", None)
        yield Row(f"… largest memory ({begun:.2g} GB before)", most, "GB", floor=floor, met=met)


def _quantized(method: str) -> tuple[float, float, float]:
    """Seconds; the largest memory afterwards and before, in GB."""
    import torch
    import transformers

    from qlearn import nn

    warnings.simplefilter("ignore")  # the head is the embedding, and stays in float
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    batches = list(torch.randint(SHAPE["vocab_size"], (WINDOWS, CONTEXT)).split(1))
    weights = qlearn.QuantConfig(bits=4, symmetric=True, granularity=qlearn.PerGroup(GROUP))
    begun, start = _memory(), time.perf_counter()

    def forward(model: Any, tokens: Any) -> Any:
        return model(tokens, use_cache=False).logits

    if method == "awq":
        model = nn.awq(model, batches, weights, forward=forward, progress=False)
    model = nn.prepare(model, weights, None, {"lm_head": None})
    if method == "gptq":
        model = nn.gptq(model, batches, forward=forward, progress=False)
    nn.convert(model)
    return time.perf_counter() - start, _memory(), begun


def _memory() -> float:
    """The largest that this process has had, in GB; macOS counts bytes, Linux kilobytes."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def adapters() -> Iterator[Row]:
    """The shipped model at 2 bits by its range, and 1.6 % of its numbers trained beside the codes."""
    from qlearn import datasets, nn

    parts = datasets.text_parts()
    weights = qlearn.QuantConfig(bits=2, symmetric=True, granularity=qlearn.PerAxis(0))
    adapted = nn.add_adapters(nn.convert(nn.prepare(nn.load_language_model(), weights, None)))
    before, start = nn.perplexity(adapted, parts.validation), time.perf_counter()
    nn.train_adapters(adapted, parts.train, progress=False)
    seconds = time.perf_counter() - start
    yield Row(f"adapters, perplexity at 2 bits (before: {before:.1f})", nn.perplexity(adapted, parts.validation), "")
    yield Row("… training", seconds, "s", floor="≤ 60 s", met=seconds <= 60)
