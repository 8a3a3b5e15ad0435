"""Observers look at data batch by batch and remember just enough to choose a quantizer.

    collect → merge → solve:   observe(x) adds to the statistics, merge(other) joins two, qparams() solves.

The statistics are plain state of bounded size. Observing in another order, or on several workers that are
merged afterwards, gives the same state, byte for byte, and so the same quantizer. The moving average is the
exception: it depends on the order, and cannot be merged.
"""

from __future__ import annotations

from qlearn.config import QuantConfig
from qlearn.observers.histograms import EntropyObserver, HistogramObserver, MSEObserver, PercentileObserver
from qlearn.observers.min_max import MinMaxObserver, MovingAverageObserver, Observer

__all__ = [
    "EntropyObserver",
    "HistogramObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
    "PercentileObserver",
    "make_observer",
]

KINDS: dict[str, type[Observer]] = {
    "min_max": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "entropy": EntropyObserver,
}


def make_observer(config: QuantConfig) -> Observer:
    """The observer that remembers what `config.method` needs.

    Raises:
        ValueError: a method without anything to remember ("dynamic"), or one that needs all the data at once
            ("cross_entropy"); a granularity that the observer cannot keep.
        TypeError: no configuration.

    >>> make_observer(QuantConfig(method="mse"))
    MSEObserver(nothing seen yet)
    """
    if not isinstance(config, QuantConfig):
        raise TypeError(f"config is a {type(config).__name__}: wanted is a QuantConfig, QuantConfig(method='mse').")
    if config.method in KINDS:
        return KINDS[config.method](config)
    reasons = {
        "dynamic": "every batch gets the range of its own values when it comes, so there is nothing to observe",
        "cross_entropy": "it weighs whole rows of logits: use find_range on the logits themselves",
    }
    raise ValueError(
        f"method={config.method!r} has no observer: {reasons[config.method]}. "
        f"There are observers for {', '.join(map(repr, KINDS))}."
    )
