"""Pictures of what is in a network: weights and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qlearn.plots.picture import picture
from qlearn.style import BLACK


@picture
def matrices(arrays: Mapping[str, Any], *, digits: int = 2) -> tuple[Figure, str]:
    """Small matrices side by side, every entry printed on its colour.

    >>> matrices({"weights": [[0.5, -0.25]], "codes": [[127, -64]]})
    weights: 1 × 2 numbers from −0.25 to 0.50, first row 0.50 −0.25. codes: 1 × 2 numbers from −64 to 127, \
first row 127 −64.
    """
    rows = max(len(values) for values in arrays.values())
    figure = Figure(figsize=(7.6, max(2.75, 0.35 + 0.17 * rows)), layout="constrained")
    panels = figure.subplots(1, len(arrays), squeeze=False)[0]
    parts = []
    for axes, (name, values) in zip(panels, arrays.items(), strict=True):
        values = np.asarray(values)
        form = f".{digits}f" if values.dtype.kind == "f" else "d"
        texts = [[format(v, form).replace("-", "−") for v in row] for row in values]
        largest = max(float(np.abs(values).max()), 1e-30)
        axes.imshow(values, cmap="PuOr", vmin=-1.8 * largest, vmax=1.8 * largest, aspect="auto")
        for i, row in enumerate(texts):
            for j, text in enumerate(row):
                axes.text(j, i, text, ha="center", va="center", color=BLACK)
        axes.set(title=name, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        low, high = (format(v, form).replace("-", "−") for v in (values.min(), values.max()))
        size = " × ".join(map(str, values.shape))
        parts.append(f"{name}: {size} numbers from {low} to {high}, first row {' '.join(texts[0])}.")
    return figure, " ".join(parts)


@picture
def digits(images: Any, titles: Sequence[str]) -> tuple[Figure, str]:
    """Images of digits in a row, each with its title.

    >>> import numpy as np
    >>> digits(np.zeros((2, 28, 28)), ["a 7", "a 1"])
    2 digits: a 7, a 1.
    """
    lines = 1 + max(title.count("\n") for title in titles)
    figure = Figure(figsize=(7.6, 7.2 / len(titles) + 0.17 * lines + 0.2), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, image, title in zip(panels, np.asarray(images), titles, strict=True):
        axes.imshow(image.reshape(28, 28), cmap="gray_r")
        axes.set_title(title, fontsize=8, loc="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    flat = [title.replace("\n", ", ") for title in titles]
    return figure, f"{len(titles)} digits: {', '.join(flat)}."
