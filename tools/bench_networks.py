"""Benchmarks of networks: the observers they are calibrated with, and quantization-aware training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

import qlearn
from bench_rows import Row, against, race
from qlearn import widgets
from qlearn.errors import mse
from qlearn.observers import HistogramObserver, MSEObserver

PERCENTILES = (99, 99.9, 99.99)


def observers() -> Iterator[Row]:
    """The mergeable histogram against PyTorch's, on 10⁶ values: time, error of its ranges, percentiles, merging."""
    import torch

    samples = shapes(10**6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _times(samples["normal"])
        yield from _ranges(samples)
    finally:
        torch.set_num_threads(threads)

    off = 0.0
    for x in samples.values():
        for percentile in PERCENTILES:
            config = qlearn.QuantConfig(method="percentile", percentile=percentile)
            found = HistogramObserver(config).observe(x).range()
            wanted = qlearn.find_range(x, "percentile", percentile=percentile)
            off = max(off, *(float(abs(a - b) / abs(b)) for a, b in zip(found, wanted, strict=True) if b))
    name = f"percentiles {', '.join(map(str, PERCENTILES))}, worst of {len(samples)}"
    yield Row(name, 100 * off, "%", peer="numpy.percentile", floor="≤ 1 %", met=off <= 0.01)
    yield _merging(samples["heavy tails"])


def ptq() -> Iterator[Row]:
    """A move of `explore_ptq` in the kernel, picture and all: to settings not seen before, and back to seen ones."""
    for network in ("mlp", "cnn"):
        explorer = widgets.explore_ptq(network=network)
        for when in ("not seen before", "seen before"):
            explorer.reset()
            times = []
            for move in ptq_moves():
                start = time.perf_counter()
                explorer.set(**move)
                times.append(1e3 * (time.perf_counter() - start))
            median, p95 = np.percentile(times, [50, 95]).tolist()
            met = median <= 150 and p95 <= 200
            title = f"kernel, one move, explore_ptq, {network.upper()}, setting {when}"
            yield Row(title, median, "ms", p95, floor="≤ 150 / 200 ms", met=met)


def ptq_moves() -> Iterator[dict[str, Any]]:
    """Ninety settings, none of them twice, on a way on which nearly every step moves one control only."""
    methods, granularities = ["min_max", "mse", "percentile"], ["tensor", "channel"]
    activation_bits, weight_bits = [8, 4, 2], [7, 6, 5, 4, 2]
    for method in methods:
        for granularity in granularities:
            for activations in activation_bits:
                for weights in weight_bits:
                    yield {
                        "method": method,
                        "granularity": granularity,
                        "activation_bits": activations,
                        "weight_bits": weights,
                    }
                weight_bits.reverse()
            activation_bits.reverse()
        granularities.reverse()


def shapes(n: int) -> dict[str, Any]:
    """Values as networks have them, and worse: float32 (n,) each."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(n, dtype=np.float32)
    outlier, lone = normal.copy(), normal.copy()
    outlier[0], lone[0] = 100, 1e6
    return {
        "normal": normal,
        "Laplace": rng.laplace(size=n).astype(np.float32),
        "after ReLU": np.maximum(normal, 0),
        "one outlier of 100": outlier,
        "a lone million": lone,
        "heavy tails": rng.standard_t(2, size=n).astype(np.float32),
    }


def peer_observer(bits: int) -> Any:
    """PyTorch's HistogramObserver for unsigned codes of so many bits, or None where PyTorch has it no more."""
    try:
        from torch.ao.quantization import HistogramObserver as Peer
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Peer(quant_min=0, quant_max=2**bits - 1)


def _times(x: Any) -> Iterator[Row]:
    import torch

    tensor, config = torch.from_numpy(x), qlearn.QuantConfig(method="mse")
    observed = MSEObserver(config).observe(tensor)
    runners: dict[str, Any] = {"observe": lambda: MSEObserver(config).observe(tensor), "solve": observed.qparams}
    if peer := peer_observer(8):
        peer(tensor)
        runners |= {"peer": lambda: peer_observer(8)(tensor), "peer_solve": peer.calculate_qparams}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ms = race(9, **runners)
    if peer:
        yield against("histogram of 10⁶ float32", ms["observe"], "torch HistogramObserver", ms["peer"])
        yield against("… its range, 8 bits", ms["solve"], "torch HistogramObserver", ms["peer_solve"])
    else:
        yield Row("histogram of 10⁶ float32", ms["observe"], "ms")
        yield Row("… its range, 8 bits", ms["solve"], "ms")


def _ranges(samples: dict[str, Any]) -> Iterator[Row]:
    """The MSE that an observer's range leaves, as a multiple of what the exact search on all values leaves."""
    for bits in (8, 4):
        config = qlearn.QuantConfig(bits=bits, method="mse")
        for name, x in samples.items():
            exact = mse(x, qlearn.fake_quantize(x, config.find_qparams(x)))
            own = mse(x, qlearn.fake_quantize(x, MSEObserver(config).observe(x).qparams())) / exact
            met = own <= 1.01
            name = f"range's MSE / exact one's, {bits} bits, {name}"
            if (q := _peers_range(x, bits)) is None:
                yield Row(name, own, "×", floor="≤ 1.01×", met=met)
                continue
            peers = mse(x, qlearn.fake_quantize(x, q)) / exact
            yield Row(name, own, "×", None, "torch HistogramObserver", peers, peers / own, "≤ 1.01×", met)


def _peers_range(x: Any, bits: int) -> qlearn.QParams | None:
    import torch

    if (peer := peer_observer(bits)) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer(torch.from_numpy(x))
        scale, zero_point = (float(number) for number in peer.calculate_qparams())
    return qlearn.QParams(scale, int(zero_point), 0, 2**bits - 1)


def _merging(x: Any) -> Row:
    """Sixteen workers' histograms, merged in three orders: do all bytes agree?"""
    config = qlearn.QuantConfig(method="mse")
    parts = [MSEObserver(config).observe(part) for part in np.array_split(x, 16)]
    orders = [parts, parts[::-1], parts[::2] + parts[1::2]]
    states = set()
    for order in orders:
        merged = order[0]
        for part in order[1:]:
            merged = merged.merge(part)
        histogram = merged.histograms[0]
        states.add(b"".join(array.tobytes() for array in (histogram.first, histogram.last, histogram.counts)))
    name = f"histograms merged in {len(orders)} orders, states that differ"
    return Row(name, len(states) - 1, "", floor="0", met=len(states) == 1)


def qat() -> Iterator[Row]:
    """All of MNIST, the MLP, weights of 2 bits per channel, activations of 8: accuracy and time, worst of three seeds.

    Beside it what post-training quantization loses with the same range, by MSE. Time is that of training alone.
    """
    from qlearn import datasets, nn

    data = datasets.mnist_arrays()
    calibration = nn.to_inputs(data.calibration.images)
    weights = qlearn.QuantConfig(bits=2, symmetric=True, granularity=qlearn.PerAxis(0), method="mse")
    lost: dict[int, list[float]] = {1: [], 2: []}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    lost_by_ptq, other = [], 0
    for seed in range(3):
        options: dict[str, Any] = {"batch_size": 256, "learning_rate": 8e-3, "seed": seed, "progress": False}
        model = nn.mlp(seed=seed)
        nn.train(model, *data.train, epochs=6, seed=seed, progress=False)
        reference = nn.accuracy(model, *data.test)
        ptq = nn.convert(nn.calibrate(nn.prepare(model, weights), calibration, progress=False))
        lost_by_ptq.append(100 * (reference - nn.accuracy(ptq, *data.test)))
        for epochs in lost:
            trained = nn.prepare_qat(model, weights, learned_step_size=True)
            nn.calibrate(trained, calibration, progress=False)
            start = time.perf_counter()
            nn.train(trained, *data.train, epochs=epochs, **options)
            seconds[epochs].append(time.perf_counter() - start)
            converted = nn.convert(trained)
            lost[epochs].append(100 * (reference - nn.accuracy(converted, *data.test)))
            other += _predicted_otherwise(trained, converted, data.test.images)
    for epochs, points, limit in ((1, 1.0, 10), (2, 0.5, 15)):
        name = f"W2A8, {epochs} epoch{'s' if epochs > 1 else ''} of QAT"
        worst, slowest, by_ptq = max(lost[epochs]), max(seconds[epochs]), max(lost_by_ptq)
        floor = f"≤ {points:g} points"
        yield Row(f"{name}: below float", worst, "points", None, "PTQ", by_ptq, None, floor, worst <= points)
        yield Row(f"{name}: training", slowest, "s", floor=f"≤ {limit} s", met=slowest <= limit)
    name = "digits of 60,000 on which integer and fake-quantized network differ"
    yield Row(name, other, "", floor="0", met=other == 0)


def _predicted_otherwise(one: Any, another: Any, images: Any) -> int:
    import torch

    from qlearn import nn

    with torch.no_grad():
        inputs = nn.to_inputs(images)
        return int((one(inputs).argmax(1) != another(inputs).argmax(1)).sum())


def gptq() -> Iterator[Row]:
    """The CNN on all test digits, weights of 3 and 2 bits per channel: GPTQ above nearest, the worst of three H.

    Each of the three comes from another third of the calibration digits.
    """
    from qlearn import datasets, nn

    data = datasets.mnist_arrays()
    calibration = nn.to_inputs(data.calibration.images)
    model = nn.fold_batch_norm(nn.load_trained("cnn"))
    for bits, method, least in ((3, "min_max", 3.0), (2, "min_max", 60.0), (2, "mse", 6.0)):
        weights = qlearn.QuantConfig(bits=bits, symmetric=True, granularity=qlearn.PerAxis(0), method=method)
        prepared = nn.prepare(model, weights)
        nearest = nn.accuracy(nn.convert(nn.calibrate(prepared, calibration, progress=False)), *data.test)
        gained, seconds = [], []
        for third in range(3):
            start = time.perf_counter()
            rounded = nn.gptq(prepared, calibration[third::3], progress=False)
            seconds.append(time.perf_counter() - start)
            converted = nn.convert(nn.calibrate(rounded, calibration, progress=False))
            gained.append(100 * (nn.accuracy(converted, *data.test) - nearest))
        worst = min(gained)
        name = f"GPTQ above nearest ({100 * nearest:.1f} %), CNN, {bits} bits, {method}"
        yield Row(name, worst, "points", floor=f"≥ {least:g} points", met=worst >= least)
    yield Row("… rounding the CNN with 333 digits", max(seconds), "s")
    yield from _gptq_of_the_language_model()


def _gptq_of_the_language_model() -> Iterator[Row]:
    """All of it with 64 windows; and the rounding alone beside the published loop, from the same Hessians."""
    import torch

    from qlearn import datasets, gptq, nn
    from qlearn.nn.language_model import windows

    model, tokens = nn.load_language_model(), windows(datasets.text_parts().calibration)[0][:64]
    weights = qlearn.QuantConfig(bits=4, symmetric=True, granularity=qlearn.PerAxis(0))
    prepared = nn.prepare(model, weights, None)
    start = time.perf_counter()
    nn.gptq(prepared, tokens, progress=False)
    seconds = time.perf_counter() - start
    yield Row("GPTQ of the language model, 4 bits, 64 windows", seconds, "s", floor="≤ 6 s", met=seconds <= 6)
    spent, differ = {"own": 0.0, "published": 0.0}, 0
    for name, h in nn.hessians(model, tokens).items():
        weight = model.get_submodule(name).weight.detach()
        qparams, found = weights.find_qparams(weight), []
        for which, rounded in (("own", gptq.gptq_quantize), ("published", _published_gptq)):
            start = time.perf_counter()
            found.append(rounded(weight, h, qparams))
            spent[which] += time.perf_counter() - start
        differ += int(torch.sum(found[0] != found[1]))
    yield against("… rounding alone", 1e3 * spent["own"], "the published loop", 1e3 * spent["published"])
    yield Row("… codes that differ from the published loop's", differ, "", floor="0", met=differ == 0)


def _published_gptq(weight: Any, h: Any, qparams: qlearn.QParams) -> Any:
    """Frantar et al. 2022, algorithm 1, as in their code: the inverse's factor, errors spread in blocks of 128."""
    import torch

    w, scale = weight.double(), qparams.scale[:, 0]
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    codes = torch.empty_like(weight)
    for start in range(0, len(h), 128):
        stop = min(start + 128, len(h))
        errors = torch.zeros(len(w), stop - start, dtype=w.dtype)
        for j in range(start, stop):
            codes[:, j] = torch.clamp(torch.round(w[:, j].float() / scale), qparams.quant_min, qparams.quant_max)
            error = (w[:, j] - (codes[:, j] * scale).double()) / inverse[j, j]
            w[:, j:stop] -= torch.outer(error, inverse[j, j:stop])
            errors[:, j - start] = error
        w[:, stop:] -= errors @ inverse[start:stop, stop:]
    return codes


def mixed_precision() -> Iterator[Row]:
    """What a move of a slider costs `explore_mixed_precision` in the kernel: 120 moves, the sliders in turn."""
    from qlearn.widgets import explore_mixed_precision

    for network in ("cnn", "mlp"):
        start = time.perf_counter()
        explorer = explore_mixed_precision(network=network)
        explorer._repr_mimebundle_()
        yield Row(f"explore_mixed_precision, {network}, first display", time.perf_counter() - start, "s")
        random, inputs = np.random.default_rng(0), list(explorer._inputs.values())
        times, first_times = [], []
        for k in range(120):
            slider, tried = inputs[k % len(inputs)], explorer.numbers["tried"]
            to = random.choice([bits for bits in range(2, 9) if bits != slider.value])
            start = time.perf_counter()
            slider.value = int(to)
            times.append(1e3 * (time.perf_counter() - start))
            if explorer.numbers["tried"] > tried:
                first_times.append(times[-1])
        floor = "≤ 150 / 200 ms"
        for name, found in (("", times), (", settings not yet tried", first_times)):
            median, p95 = np.percentile(found, [50, 95]).tolist()
            met = median <= 150 and p95 <= 200
            yield Row(f"… one move{name}", median, "ms", p95, floor=floor, met=met)
