"""A picture of a quantized layer as ONNX writes it: operations, what the file stores, and what flows between them."""

from __future__ import annotations

from matplotlib.figure import Figure

from qlearn.plots.picture import picture
from qlearn.style import BLUE, GREY, INK

# name → (text, column of its middle, row, half its width); columns are hundredths of the picture's width
BOXES = {
    "x": ("x", 3, 2, 2.0),
    "quantize": ("QuantizeLinear", 23, 2, 7.6),
    "x_hat": ("DequantizeLinear", 51, 2, 8.5),
    "weights": ("weights, int8", 23, 1, 7.0),
    "w_hat": ("DequantizeLinear", 51, 1, 8.5),
    "bias": ("bias, int32", 23, 0, 6.0),
    "b_hat": ("DequantizeLinear", 51, 0, 8.5),
    "gemm": ("Gemm", 77, 1, 4.2),
    "relu": ("Relu", 95, 1, 3.2),
}
STORED = ("weights", "bias")  # in the file
ARROWS = {  # from, to → what goes along
    ("x", "quantize"): "floats",
    ("quantize", "x_hat"): "uint8",
    ("weights", "w_hat"): "int8",
    ("bias", "b_hat"): "int32",
    ("x_hat", "gemm"): "x̂",
    ("w_hat", "gemm"): "ŵ",
    ("b_hat", "gemm"): "b̂",
    ("gemm", "relu"): "floats",
}


@picture
def qdq_layer() -> tuple[Figure, str]:
    """A linear layer with QuantizeLinear and DequantizeLinear, and the ReLU behind it. What the file stores is blue.

    >>> qdq_layer()
    A quantized layer in a file: x goes through QuantizeLinear, whose uint8 codes go through DequantizeLinear and give \
x̂; int8 weights and the int32 bias go through a DequantizeLinear each and give ŵ and b̂. Gemm multiplies and adds the \
three, Relu follows.
    """
    figure = Figure(figsize=(7.6, 2.3), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, 100), ylim=(-0.5, 2.5))
    for name, (text, column, row, _) in BOXES.items():
        fill, edge, ink = (BLUE, BLUE, "white") if name in STORED else ("white", GREY, INK)
        card = {"boxstyle": "round,pad=0.4", "facecolor": fill, "edgecolor": edge}
        axes.text(column, row, text, ha="center", va="center", bbox=card, color=ink, fontsize=8.5)
    for (start, end), carried in ARROWS.items():
        (_, x0, y0, before), (_, x1, y1, after) = BOXES[start], BOXES[end]
        left, right = x0 + before + 0.5, x1 - after - 0.5
        target = y1 + 0.15 * (y0 - y1)  # arrows from above and below meet the box's edge apart
        axes.annotate("", (right, target), (left, y0), arrowprops={"arrowstyle": "->", "color": GREY})
        beside = -0.36 if y0 < target else 0.13  # below an arrow that rises, else above
        axes.text((left + right) / 2, (y0 + target) / 2 + beside, carried, ha="center", color=GREY, fontsize=8.5)
    return figure, (
        "A quantized layer in a file: x goes through QuantizeLinear, whose uint8 codes go through DequantizeLinear and "
        "give x̂; int8 weights and the int32 bias go through a DequantizeLinear each and give ŵ and b̂. Gemm multiplies "
        "and adds the three, Relu follows."
    )
