"""Exercises of lesson 10, shipping it."""

# mypy: disallow-untyped-defs=False
# What learners read and write has no types.

import copy
import time
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlearn import gguf_blocks
from qlearn.affine import fake_quantize
from qlearn.config import QuantConfig
from qlearn.exercises import letters
from qlearn.exercises.challenges import CannotBeJudged, Challenge, Score
from qlearn.exercises.checking import Exercise, Mistake
from qlearn.exercises.networks import DIGITS, held_out
from qlearn.histogram import LogHistogram

# 10.1 a layer as the file says it


def qdq_linear(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    codes = np.clip(np.rint(x / x_scale) + x_zero_point, 0, 255)
    x_hat = (codes - x_zero_point) * x_scale
    w_hat = w_codes * w_scale[:, None]
    return x_hat @ w_hat.T + bias_codes * (x_scale * w_scale)


def _codes_of(x, x_scale, x_zero_point):
    return np.clip(np.rint(x / x_scale) + x_zero_point, 0, 255)


def _layer(codes, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    """What the layer gives for codes that somebody made otherwise."""
    return ((codes - x_zero_point) * x_scale) @ (w_codes * w_scale[:, None]).T + bias_codes * (x_scale * w_scale)


def _with_codes(make):
    def layer(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
        codes = make(x, x_scale, x_zero_point)
        return _layer(codes, x_scale, x_zero_point, w_codes, w_scale, bias_codes)

    return layer


def _with_x_hat(make):
    def layer(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
        x_hat = make(_codes_of(x, x_scale, x_zero_point), x_scale, x_zero_point)
        return x_hat @ (w_codes * w_scale[:, None]).T + bias_codes * (x_scale * w_scale)

    return layer


def _with_weights(make):
    def layer(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
        x_hat = (_codes_of(x, x_scale, x_zero_point) - x_zero_point) * x_scale
        return x_hat @ make(w_codes, w_scale).T + bias_codes * (x_scale * w_scale)

    return layer


def _with_bias(make):
    def layer(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
        x_hat = (_codes_of(x, x_scale, x_zero_point) - x_zero_point) * x_scale
        return x_hat @ (w_codes * w_scale[:, None]).T + make(bias_codes, x_scale, w_scale)

    return layer


def _x_as_it_is(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    return x @ (w_codes * w_scale[:, None]).T + bias_codes * (x_scale * w_scale)


def _wraps(x, x_scale, x_zero_point):
    with np.errstate(invalid="ignore"):
        return (np.rint(x / x_scale) + x_zero_point).astype(np.int64).astype(np.uint8).astype(np.int64)


def _uint8_minus(codes, x_scale, x_zero_point):
    return (codes.astype(np.uint8) - np.uint8(x_zero_point)) * x_scale


def _no_transpose(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    x_hat = (_codes_of(x, x_scale, x_zero_point) - x_zero_point) * x_scale
    return x_hat @ (w_codes * w_scale[:, None]) + bias_codes * (x_scale * w_scale)


def _narrow_sums(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    whole = (_codes_of(x, x_scale, x_zero_point) - x_zero_point).astype(np.int16)
    return (whole @ w_codes.T.astype(np.int16) + bias_codes) * (x_scale * w_scale)


def _int8_sums(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    whole = (_codes_of(x, x_scale, x_zero_point) - x_zero_point).astype(np.int64).astype(np.int8)
    return (whole @ w_codes.T + bias_codes) * (x_scale * w_scale)


def _sums(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    return (_codes_of(x, x_scale, x_zero_point) - x_zero_point) @ w_codes.T + bias_codes


def _bias_scaled_twice(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    step = x_scale * w_scale
    return ((_codes_of(x, x_scale, x_zero_point) - x_zero_point) @ w_codes.T + bias_codes * step) * step


def _off_weights(kind):
    """The zero point of x is taken off the weights' codes too, in int8, where it wraps around, or wider."""

    def layer(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
        x_hat = (_codes_of(x, x_scale, x_zero_point) - x_zero_point) * x_scale
        w_hat = (w_codes.astype(np.int64) - x_zero_point).astype(kind) * w_scale[:, None]
        return x_hat @ w_hat.T + bias_codes * (x_scale * w_scale)

    return layer


def _zero_point_off_bias(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    codes = _codes_of(x, x_scale, x_zero_point)
    return _layer(codes, x_scale, x_zero_point, w_codes, w_scale, bias_codes - x_zero_point)


def _with_relu(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes):
    return np.maximum(qdq_linear(x, x_scale, x_zero_point, w_codes, w_scale, bias_codes), 0)


_HALVES = "np.rint rounds halves to the even number, as QuantizeLinear does."
_SHIFTED = "The zero point comes after rounding: np.rint(x / x_scale) + x_zero_point."

QDQ_MISTAKES = (
    Mistake(_x_as_it_is, "x itself went into the product: it is never quantized. First codes, then x̂."),
    Mistake(
        _with_codes(lambda x, s, z: np.rint(x / s) + z), "Codes end at 0 and 255: np.clip, as QuantizeLinear saturates."
    ),
    Mistake(_with_codes(_wraps), "Your codes wrapped around: clip to 0 … 255 before the cast to uint8."),
    Mistake(
        _with_codes(lambda x, s, z: np.clip(np.rint(x / s), 0, 255) + z),
        "You clip before the zero point is added: the codes, zero point included, lie in 0 … 255.",
    ),
    Mistake(
        _with_codes(lambda x, s, z: np.clip(np.rint(x / s) + z, -128, 127)),
        "That clips to int8. These codes are uint8: 0 … 255.",
    ),
    *(
        Mistake(_with_codes(lambda x, s, z, make=make: np.clip(make(x / s) + z, 0, 255)), said)
        for make, said in (
            (np.trunc, "You cut off instead of rounding: np.rint before anything is cast."),
            (np.floor, "You round down, as a cast does with what is positive: np.rint rounds to the nearest."),
            (lambda v: np.floor(v + 0.5), _HALVES),
            (lambda v: np.sign(v) * np.floor(np.abs(v) + 0.5), _HALVES),
        )
    ),
    Mistake(_with_codes(lambda x, s, z: np.clip(np.rint(x / s + z), 0, 255)), _SHIFTED),
    Mistake(
        _with_codes(lambda x, s, z: np.clip(np.rint(x * s) + z, 0, 255)),
        "The scale is upside down: codes are x / x_scale.",
    ),
    Mistake(
        _with_codes(lambda x, s, z: np.clip(np.rint(x / s) - z, 0, 255)),
        "The zero point is the code of 0: it is added to make codes, and taken off to read them.",
    ),
    Mistake(
        _with_x_hat(lambda codes, s, z: codes * s),
        "The zero point stays in x̂: DequantizeLinear is (code − zero_point) · scale.",
    ),
    Mistake(
        _with_x_hat(lambda codes, s, z: codes * s - z),
        "The zero point is a code: take it off before you multiply by the scale.",
    ),
    Mistake(
        _with_x_hat(lambda codes, s, z: codes * s + z),
        "The zero point is a code: take it off before you multiply by the scale.",
    ),
    Mistake(_with_x_hat(_uint8_minus), "uint8 has no negative numbers: codes below the zero point wrapped around."),
    Mistake(_with_x_hat(lambda codes, s, z: codes - z), "x̂ lacks its scale: (code − zero_point) · x_scale."),
    Mistake(_with_x_hat(lambda codes, s, z: codes), "Codes went into the product. x̂ = (code − zero_point) · scale."),
    Mistake(
        _with_weights(lambda w, s: w * s),
        "w_scale has one entry for each output, a row of w_codes: w_scale[:, None] puts it beside the rows.",
    ),
    Mistake(_with_weights(lambda w, s: w), "The weights are still codes: multiply each row by its scale."),
    Mistake(_with_weights(lambda w, s: w * s.mean()), "Each row of the weights has its own scale."),
    Mistake(_with_weights(lambda w, s: w * s[0]), "Each row of the weights has its own scale."),
    Mistake(
        _with_weights(lambda w, s: w / s[:, None]), "The weights' scale is upside down: a code stands for code · scale."
    ),
    Mistake(_with_bias(lambda b, sx, sw: 0), "The bias is missing."),
    Mistake(_with_bias(lambda b, sx, sw: b), "The bias is still codes: their scale is x_scale · w_scale."),
    Mistake(_with_bias(lambda b, sx, sw: b * sx), "The scale of the bias is x_scale · w_scale: that of the sums."),
    Mistake(_with_bias(lambda b, sx, sw: b * sw), "The scale of the bias is x_scale · w_scale: that of the sums."),
    Mistake(
        _with_bias(lambda b, sx, sw: (b * (sx * sw))[:, None]),
        "One bias for each output: (O,) fits the columns of the result as it is.",
    ),
    Mistake(_bias_scaled_twice, "The bias is scaled twice: once by itself, and once more with the sums."),
    *(
        Mistake(
            function,
            "x_zero_point belongs to x alone: the codes of weights and bias are signed, and 0 is their code of 0.",
        )
        for function in (_off_weights(np.int8), _off_weights(np.int64), _zero_point_off_bias)
    ),
    Mistake(_no_transpose, "Weights have shape (O, I): x̂ @ ŵ.T gives (N, O)."),
    Mistake(_sums, "Those are the integer sums. Times x_scale · w_scale they are real numbers."),
    Mistake(_narrow_sums, "Your sums are int16 and wrapped around. Sums of products need 32 bits (lesson 04)."),
    Mistake(
        _int8_sums, "Code minus zero point runs from −255 to 255: int8 cannot hold it. Cast to a wider type first."
    ),
    Mistake(_with_relu, "That has a ReLU in it. The layer alone is asked for: negative results stay."),
)


@lru_cache(maxsize=1)
def _shipped():
    """The MLP with codes of 8 bits, and what ONNX Runtime, or the network itself, makes of the held-out digits."""
    import torch

    from qlearn import datasets, nn

    images = nn.to_inputs(datasets.mnist_arrays().calibration.images[:500])
    prepared = nn.calibrate(nn.prepare(nn.load_trained("mlp")), images, progress=False)
    net, digits = nn.convert(prepared), torch.from_numpy(held_out()[0]).reshape(DIGITS, 1, 28, 28)
    try:
        name = "ONNX Runtime int8"
        return net, name, nn.engine(name, net, digits)(digits).numpy()
    except ImportError:
        name = "integers by hand"
        return net, name, nn.engine(name, net, digits)(digits).numpy()


def _through(net, x, layer):
    """What the MLP gives if its three layers are this function."""
    names = ("linear1", "linear2", "linear3")
    for name in names:
        codes = getattr(net, name)
        x = np.asarray(
            layer(
                x,
                float(codes.input_scale),
                int(codes.input_zero_point),
                codes.weight_codes.numpy().copy(),
                codes.weight_scale.detach().numpy().reshape(-1).astype(np.float64),
                codes.bias_codes.numpy().copy(),
            )
        )
        x = x if name == names[-1] else np.maximum(x, 0)
    return x


def _against_onnx_runtime(attempt):
    net, name, theirs = _shipped()
    mine = _through(net, held_out()[0].astype(np.float64), attempt)
    same = int(np.sum(mine.argmax(axis=1) == theirs.argmax(axis=1)))
    who = "ONNX Runtime" if name.startswith("ONNX") else "the network of nn.convert (onnxruntime is not installed)"
    return (
        f"Your `qdq_linear` as all three layers: {same:,} of {DIGITS:,} held-out digits are read as {who}\n"
        f"reads them. It multiplied codes, and you real numbers: on average a logit differs by "
        f"{np.mean(np.abs(mine - theirs)):.0e}."
    )


@st.composite
def _layers(draw):
    rows, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    powers = st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0])
    return {
        "x": draw(hnp.arrays(np.float64, (rows, inputs), elements=st.integers(-2048, 2048).map(lambda n: n / 8))),
        "x_scale": draw(powers),
        "x_zero_point": draw(st.integers(0, 255)),
        "w_codes": draw(hnp.arrays(np.int8, (outputs, inputs), elements=st.integers(-127, 127))),
        "w_scale": draw(hnp.arrays(np.float64, outputs, elements=powers)),
        "bias_codes": draw(hnp.arrays(np.int32, outputs, elements=st.integers(-1000, 1000))),
    }


QDQ = Exercise(
    id="10.1",
    solution=qdq_linear,
    examples=(
        {
            "x": np.array([[1.0, -0.25, 300.0], [0.625, -40.0, 2.0]]),
            "x_scale": 0.25,
            "x_zero_point": 101,
            "w_codes": np.array([[1, -2, 3], [127, 0, -127]], dtype=np.int8),
            "w_scale": np.array([0.5, 0.125]),
            "bias_codes": np.array([4, -6], dtype=np.int32),
        },
        {
            "x": np.array([[2.5, -1.5], [1.5, -0.5]]),
            "x_scale": 1.0,
            "x_zero_point": 7,
            "w_codes": np.array([[3, 1], [-2, 5]], dtype=np.int8),
            "w_scale": np.array([1.0, 2.0]),
            "bias_codes": np.array([10, 20], dtype=np.int32),
        },
        {
            "x": np.array([[200.0, 180.0, 31.0]]),
            "x_scale": 1.0,
            "x_zero_point": 0,
            "w_codes": np.array([[120, 110, -1]], dtype=np.int8),
            "w_scale": np.array([0.25]),
            "bias_codes": np.array([0], dtype=np.int32),
        },
    ),
    cases=_layers(),
    mistakes=QDQ_MISTAKES,
    hints=(
        "Three DequantizeLinear feed the product: one for x, one for the weights, one for the bias. Only x needs a "
        "QuantizeLinear before it. Write them one below the other.",
        "`np.rint(x / x_scale)`, then the zero point, then `np.clip` to 0 … 255: those are the codes. To read them, take "
        "the zero point off and multiply by the scale.",
        "A row of `w_codes` is one output, so its scale goes beside the row: `w_scale[:, None]`. The bias lies on the "
        "grid of the sums, whose step is `x_scale * w_scale`.",
    ),
    consequence=_against_onnx_runtime,
)


# 10.2 from which batch on computing takes longer than moving


def break_even(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    weights = inputs * outputs * weight_bytes / bandwidth  # once a batch
    values = (inputs + outputs) * value_bytes / bandwidth  # once an example
    compute = 2 * inputs * outputs / operations  # once an example
    if compute <= values:
        return np.inf
    return np.ceil(weights / (compute - values))


def _break_even(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth, **other):
    """The solution with one of its numbers replaced."""
    n = {
        "weights": inputs * outputs * weight_bytes / bandwidth,
        "values": (inputs + outputs) * value_bytes / bandwidth,
        "compute": 2 * inputs * outputs / operations,
        "round": np.ceil,
        **other,
    }
    if n["compute"] <= n["values"]:
        return np.inf
    return n["round"](n["weights"] / (n["compute"] - n["values"]))


def _another(**other):
    def mistake(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
        given = (inputs, outputs, weight_bytes, value_bytes, operations, bandwidth)
        return _break_even(*given, **{name: make(*given) for name, make in other.items()})

    return mistake


def _after(change):
    """The solution with something done to its answer."""

    def mistake(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
        return change(_break_even(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth))

    return mistake


def _rounded(how):
    def mistake(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
        return _break_even(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth, round=how)

    return mistake


def _never_said(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    per = 2 * inputs * outputs / operations - (inputs + outputs) * value_bytes / bandwidth
    with np.errstate(divide="ignore"):
        return np.ceil(np.float64(inputs * outputs * weight_bytes / bandwidth) / per)


def _weights_for_each(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    moved = (inputs * outputs * weight_bytes + (inputs + outputs) * value_bytes) / bandwidth
    return np.ceil(moved / (2 * inputs * outputs / operations))


def _sum_of_both(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    compute = 2 * inputs * outputs / operations
    return np.ceil(
        inputs * outputs * weight_bytes / bandwidth / (compute + (inputs + outputs) * value_bytes / bandwidth)
    )


def _ratio(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    return np.ceil(operations / bandwidth)


def _mixed_up(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    return max(1.0, break_even(inputs, outputs, weight_bytes, value_bytes, bandwidth, operations))


def _one_at_least(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    return max(1.0, _never_said(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth))


def _without_its_sign(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    per = 2 * inputs * outputs / operations - (inputs + outputs) * value_bytes / bandwidth
    with np.errstate(divide="ignore"):
        return np.ceil(np.float64(inputs * outputs * weight_bytes / bandwidth) / abs(per))


LAYER, MEASURED = (1024, 4096), 1024  # the layer of the lesson; larger batches are not measured


def _measured_here(attempt):
    """What the attempt predicts for this machine, and how the time of a layer grows below and above that batch."""
    import torch

    from qlearn import nn

    machine = nn.measure_machine()
    bandwidth, peak, peak8 = (
        machine.bytes_per_second,
        machine.float_operations_per_second,
        machine.int8_operations_per_second,
    )
    found = float(attempt(*LAYER, 4, 4, peak, bandwidth))
    codes = "" if peak8 is None else f", with codes of 8 bits {_batch(attempt(*LAYER, 1, 1, peak8, bandwidth))}"
    said = (
        f"The lesson's layer {LAYER[0]} → {LAYER[1]} on this machine ({bandwidth / 1e9:.0f} GB and "
        f"{peak / 1e9:.0f} billion float operations a second):\nin float32 your break-even is "
        f"{_batch(found)}{codes}."
    )
    if not found <= MEASURED:
        return said
    layer, batches = torch.nn.Linear(*LAYER).eval(), (1, int(found), 4 * int(found))
    inputs = {batch: torch.rand(batch, LAYER[0]) for batch in batches}
    calls = {str(batch): lambda x=x: layer(x) for batch, x in inputs.items()}
    ms = [1e3 * t.median for t in nn.latencies(calls, seconds=0.1, progress=False).values()]
    work = [next(iter(nn.layer_work(layer, x).values())) for x in inputs.values()]
    least = [1e3 * nn.roofline(machine, one.operations, one.bytes) for one in work]
    rows = zip(batches, least, ms, strict=True)
    table = "".join(f"\n  batch {n:6,}: {roof:6.2f} ms {took:11.2f} ms" for n, roof, took in rows)
    cached = " A call quicker than the roofline finds its weights in a cache." if ms[0] < least[0] else ""
    return f"{said}\n  {'':13}roofline     measured{table}\n{_direction(int(found), *ms)}{cached}"


def _batch(found):
    return f"a batch of {found:,.0f}" if np.isfinite(found) else "at no batch"


def _direction(found, one, even, beyond):
    """Whether examples are cheaper below the break-even than above it, in words, from the time of a call at each batch."""
    below, above = even / one, beyond / even
    grows = f"{found} examples take {below:.1f} times as long as one, four times as many {above:.1f} times as long as those.\n"
    if below / found < 0.7 * above / 4:
        return f"{grows}As predicted: below the break-even a further example is cheap, above it each pays for its products."
    return f"{grows}Not as predicted: does another program run beside it? Try again."


@st.composite
def _machines(draw):
    size = st.integers(0, 6).map(lambda n: 2**n)
    return {
        "inputs": draw(size),
        "outputs": draw(size) * draw(st.sampled_from([1, 3])),
        "weight_bytes": draw(st.sampled_from([0.5, 1, 2, 4])),
        "value_bytes": draw(st.sampled_from([1, 4])),
        "operations": 2.0 ** draw(st.integers(3, 9)),
        "bandwidth": 2.0 ** draw(st.integers(2, 5)),
    }


def _close_to_a_whole_number(case, given):
    """Another order of the same divisions may lie a last bit beside a whole number, and be rounded up from there."""
    if not isinstance(given, (int, float, np.integer, np.floating)) or not np.isfinite(given):
        return False
    per = 2 * case["inputs"] * case["outputs"] / case["operations"]
    per -= (case["inputs"] + case["outputs"]) * case["value_bytes"] / case["bandwidth"]
    if per <= 0:
        return False
    exact = case["inputs"] * case["outputs"] * case["weight_bytes"] / case["bandwidth"] / per
    return abs(exact - round(exact)) < 1e-9 * max(1, exact) and given == round(exact) + 1 and given != exact + 1


def _given(inputs, outputs, weight_bytes, value_bytes, operations, bandwidth):
    return {
        "inputs": inputs,
        "outputs": outputs,
        "weight_bytes": weight_bytes,
        "value_bytes": value_bytes,
        "operations": operations,
        "bandwidth": bandwidth,
    }


EVEN = Exercise(
    id="10.2",
    solution=break_even,
    examples=(
        _given(64, 128, 4, 4, 64.0, 16.0),
        _given(1024, 4096, 0.5, 1, 16384.0, 16.0),
        _given(16, 16, 1, 4, 512.0, 8.0),
    ),
    cases=_machines(),
    mistakes=(
        Mistake(
            _another(compute=lambda i, o, w, v, p, b: i * o / p),
            "A product and its addition are two operations: 2 · inputs · outputs for an example.",
        ),
        Mistake(
            _another(values=lambda *_: 0.0),
            "The values that go in and out are moved as well: (inputs + outputs) · value_bytes for each example.",
        ),
        Mistake(
            _another(values=lambda i, o, w, v, p, b: i * v / b),
            "What comes out is moved, too: (inputs + outputs) · value_bytes.",
        ),
        Mistake(
            _another(values=lambda i, o, w, v, p, b: o * v / b),
            "What goes in is moved, too: (inputs + outputs) · value_bytes.",
        ),
        Mistake(
            _another(values=lambda i, o, w, v, p, b: (i + o) * w / b),
            "Values have value_bytes each, weights weight_bytes: they need not be the same.",
        ),
        Mistake(
            _another(values=lambda i, o, w, v, p, b: i * o * v / b),
            "The values of an example are inputs + outputs, not their product.",
        ),
        Mistake(
            _another(weights=lambda i, o, w, v, p, b: i * o * v / b),
            "Weights have weight_bytes each, values value_bytes: they need not be the same.",
        ),
        Mistake(
            _another(weights=lambda i, o, w, v, p, b: i * o * w / 8 / b),
            "weight_bytes are bytes already: no division by 8.",
        ),
        Mistake(
            _after(lambda n: 0.0 if n == np.inf else n),
            "A batch of 0 would be bound by compute. Where no batch is, return np.inf.",
        ),
        Mistake(
            _after(lambda n: -1.0 if n == np.inf else n),
            "There is no batch of −1. Where none is bound by compute, return np.inf.",
        ),
        Mistake(_after(lambda n: None if n == np.inf else n), "Where no batch is bound by compute, return np.inf."),
        Mistake(
            _never_said,
            "A batch is never negative. Where each further example takes longer to move than to compute, return np.inf.",
        ),
        *(
            Mistake(
                function,
                "Where each further example takes longer to move than to compute, no batch is large enough: return np.inf.",
            )
            for function in (_one_at_least, _without_its_sign)
        ),
        Mistake(
            _mixed_up,
            "Operations are divided by `operations`, bytes by `bandwidth`: yours are mixed up, or multiplied.",
        ),
        Mistake(_rounded(lambda n: n), "A batch is a whole number: the smallest from which on it holds, np.ceil."),
        Mistake(
            _rounded(np.floor),
            "np.floor gives the last batch that is still bound by memory: np.ceil.",
        ),
        Mistake(
            _rounded(np.rint),
            "The nearest whole number may lie below: the smallest batch from which on it holds is np.ceil.",
        ),
        Mistake(
            _rounded(lambda n: np.floor(n) + 1),
            "“At least as long”: where both take equally long, that batch counts. np.ceil.",
        ),
        Mistake(
            _weights_for_each,
            "The weights are moved once a batch, whatever its size. The values, and the operations, once an example.",
        ),
        Mistake(_sum_of_both, "A further example adds to both sides: its moving is taken off its computing."),
        Mistake(
            _ratio, "That is operations a byte, the ridge of the roofline. How many does the layer have at batch N?"
        ),
    ),
    hints=(
        "Write down both times for a batch of N: what is done once a batch, what once an example?",
        "Moving takes (weights + N · values) seconds, computing N · products. Where are they equal? Solve for N.",
        "N is `weights / (compute - values)`, each in seconds, rounded up with `np.ceil`. And if `compute` is not larger than "
        "`values`, no N is large enough.",
    ),
    also_right=_close_to_a_whole_number,
    consequence=_measured_here,
)


# 10.3 a block of a stranger's file


def read_q4_0(block):
    d = float(block[:2].view("<f2")[0])
    low, high = block[2:] & 15, block[2:] >> 4
    codes = np.concatenate([low, high]).astype(np.int64) - 8
    return d * codes


def _scale_of(block):
    return float(block[:2].view("<f2")[0])


def _nibbles_of(block):
    return np.concatenate([block[2:] & 15, block[2:] >> 4]).astype(np.int64)


def _neighbours(block):
    low, high = block[2:] & 15, block[2:] >> 4
    return _scale_of(block) * (np.stack([low, high], axis=1).reshape(-1).astype(np.int64) - 8)


def _neighbours_high_first(block):
    low, high = block[2:] & 15, block[2:] >> 4
    return _scale_of(block) * (np.stack([high, low], axis=1).reshape(-1).astype(np.int64) - 8)


def _high_first(block):
    return _scale_of(block) * (np.concatenate([block[2:] >> 4, block[2:] & 15]).astype(np.int64) - 8)


def _no_offset(block):
    return _scale_of(block) * _nibbles_of(block)


def _two_s_complement(block):
    codes = _nibbles_of(block)
    return _scale_of(block) * np.where(codes > 7, codes - 16, codes)


def _offset_seven(block):
    return _scale_of(block) * (_nibbles_of(block) - 7)


def _offset_seven_and_a_half(block):
    return _scale_of(block) * (_nibbles_of(block) - 7.5)


def _wrapped(block):
    codes = np.concatenate([block[2:] & 15, block[2:] >> 4]) - np.uint8(8)
    return _scale_of(block) * codes


def _wrapped_in_float16(block):
    codes = np.concatenate([block[2:] & 15, block[2:] >> 4]) - np.uint8(8)
    with np.errstate(all="ignore"):
        return block[:2].view("<f2")[0] * codes


def _high_byte_first(block):
    with np.errstate(all="ignore"):
        return float(block[:2].view(">f2")[0]) * (_nibbles_of(block) - 8)


def _scale_as_whole_number(block):
    return float(block[:2].view("<u2")[0]) * (_nibbles_of(block) - 8)


def _scale_as_bfloat16(block):
    bits = np.array([block[:2].view("<u2")[0]], np.uint32) << 16
    with np.errstate(all="ignore"):
        return float(bits.view(np.float32)[0]) * (_nibbles_of(block) - 8)


def _cast_not_view(block):
    return float(block[:2].astype(np.float16)[0]) * (_nibbles_of(block) - 8)


def _scale_at_the_end(block):
    d = float(block[16:].view("<f2")[0])
    with np.errstate(all="ignore"):
        return d * (np.concatenate([block[:16] & 15, block[:16] >> 4]).astype(np.int64) - 8)


def _all_bytes(block):
    return _scale_of(block) * (np.concatenate([block & 15, block >> 4]).astype(np.int64) - 8)


def _only_codes(block):
    return _nibbles_of(block) - 8


def _without_mask(block):
    return _scale_of(block) * (np.concatenate([block[2:], block[2:] >> 4]).astype(np.int64) - 8)


def _high_not_shifted(block):
    return _scale_of(block) * (np.concatenate([block[2:] & 15, block[2:] & 240]).astype(np.int64) - 8)


def _in_float16(block):
    with np.errstate(all="ignore"):
        return block[:2].view("<f2")[0] * (_nibbles_of(block) - 8).astype(np.float16)


def _divided(block):
    with np.errstate(all="ignore"):
        return (_nibbles_of(block) - 8) / np.float64(_scale_of(block))


def _d_times_nibble_minus_eight(block):
    return _scale_of(block) * _nibbles_of(block) - 8


def _one_half(block):
    return _scale_of(block) * ((block[2:] & 15).astype(np.int64) - 8)


def _reads_a_model(attempt):
    import torch

    net = copy.deepcopy(letters.model())
    layers = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)]
    blocks = 0
    for layer in layers:
        data = gguf_blocks.quantize_q4_0(layer.weight.detach().numpy()).reshape(-1, gguf_blocks.Q4_0.bytes)
        numbers = np.concatenate([np.asarray(attempt(block.copy())) for block in data])
        layer.weight.data = torch.from_numpy(numbers.reshape(layer.weight.shape)).to(layer.weight)
        blocks += len(data)
    reached, before = letters.perplexity(net, READ), letters.perplexity(letters.model(), READ)
    return (
        f"Your `read_q4_0` read the {blocks:,} blocks of the language model's {len(layers)} linear layers: it reads "
        f"with\nperplexity {reached:.2f} (in float {before:.2f}), in {blocks * gguf_blocks.Q4_0.bytes:,} bytes instead "
        f"of {blocks * 128:,}."
    )


READ = 1024  # letters

_ORDER = "You lay neighbours into one byte. In Q4_0 the low halves are values 0 to 15, the high halves values 16 to 31."
_OFFSET = "Codes are stored + 8, so that none is negative: take 8 off."


@st.composite
def _blocks(draw):
    d = draw(st.floats(-8, 8, width=16).filter(lambda v: abs(v) > 0.001))
    half = np.array([d], dtype="<f2").view(np.uint8)
    return {"block": np.concatenate([half, draw(hnp.arrays(np.uint8, 16))])}


def _block(d, *values):
    return {"block": np.concatenate([np.array([d], "<f2").view(np.uint8), np.array(values, np.uint8)])}


BLOCK = Exercise(
    id="10.3",
    solution=read_q4_0,
    examples=(
        _block(0.5, *range(0, 256, 16)),
        _block(-0.1, 0x98, 0xA7, 0x3F, 0xF0, *range(1, 13)),
        _block(0.0379, 0xFF, *range(100, 115)),
    ),
    cases=_blocks(),
    mistakes=(
        Mistake(_neighbours, _ORDER),
        Mistake(_neighbours_high_first, _ORDER),
        Mistake(_high_first, "The low halves come first: values 0 to 15. The high halves are values 16 to 31."),
        Mistake(_no_offset, _OFFSET),
        Mistake(
            _two_s_complement,
            "You read the halves as signed numbers. Here they are shifted: stored is code + 8, so take 8 off.",
        ),
        Mistake(_offset_seven, "Stored is code + 8, not + 7: the 16 codes run from −8 to 7."),
        Mistake(_offset_seven_and_a_half, "Stored is code + 8: 0 is a code, and the codes run from −8 to 7."),
        *(
            Mistake(
                function,
                "The bytes are uint8, which have no negative numbers: 3 − 8 becomes 251. Cast to a signed type first.",
            )
            for function in (_wrapped, _wrapped_in_float16)
        ),
        Mistake(_high_byte_first, "The low byte of d comes first: '<f2', not '>f2'."),
        Mistake(_scale_as_whole_number, "You read d as a whole number. Its two bytes are a float16: .view('<f2')."),
        Mistake(_scale_as_bfloat16, "That is bfloat16. d is a float16, with 5 bits of exponent: .view('<f2')."),
        Mistake(
            _cast_not_view,
            "astype turns the number of one byte into a float. view reads the two bytes together as one float16.",
        ),
        Mistake(_scale_at_the_end, "d stands in front: bytes 0 and 1."),
        Mistake(_all_bytes, "The first two bytes are d, no codes: start at block[2:]."),
        Mistake(_only_codes, "Those are the codes. Each is multiplied by d."),
        Mistake(_without_mask, "The upper half is still in there: & 15 leaves the lower four bits."),
        Mistake(_high_not_shifted, "The upper half must come down by four bits: >> 4."),
        Mistake(
            _in_float16,
            "Your product is a float16, with 11 bits, and was rounded once more. Make d a float first: float(…).",
        ),
        Mistake(_divided, "A value is d · code: multiply."),
        Mistake(_d_times_nibble_minus_eight, "8 is taken off the code, before it is multiplied by d."),
        Mistake(_one_half, "A byte holds two codes, so 16 bytes hold 32: the high halves are missing."),
    ),
    hints=(
        "18 bytes: two for d, sixteen for 32 codes. Take them apart first, and look at one byte of the sixteen.",
        "`block[:2].view('<f2')` reads the two bytes as one float16, the low byte first. `& 15` is the lower half of a "
        "byte, `>> 4` its upper one.",
        "All lower halves, then all upper halves: `np.concatenate`. They are uint8: make them signed before you take 8 "
        "off.",
    ),
    consequence=_reads_a_model,
)


# 10.4 histograms of workers


def merge_histograms(bins, counts):
    all_bins, all_counts = np.concatenate(bins), np.concatenate(counts)
    merged, place = np.unique(all_bins, return_inverse=True)
    total = np.zeros(len(merged), dtype=np.int64)
    np.add.at(total, place, all_counts)
    return merged, total


def _by_place(bins, counts):
    return bins[0].copy(), np.sum(counts, axis=0)


def _by_place_broadcast(bins, counts):
    return bins[0].copy(), sum(counts)


def _concatenated(bins, counts):
    return np.concatenate(bins), np.concatenate(counts)


def _concatenated_in_order(bins, counts):
    order = np.argsort(np.concatenate(bins), kind="stable")
    return np.concatenate(bins)[order], np.concatenate(counts)[order]


def _last_wins(bins, counts):
    found = {}
    for own, many in zip(bins, counts, strict=True):
        found.update(dict(zip(own.tolist(), many.tolist(), strict=True)))
    keys = sorted(found)
    return np.array(keys, dtype=np.int64), np.array([found[k] for k in keys], dtype=np.int64)


def _first_seen_order(bins, counts):
    found = {}
    for own, many in zip(bins, counts, strict=True):
        for b, c in zip(own.tolist(), many.tolist(), strict=True):
            found[b] = found.get(b, 0) + c
    return np.array(list(found), dtype=np.int64), np.array(list(found.values()), dtype=np.int64)


def _with_total(add):
    def mistake(bins, counts):
        merged, place = np.unique(np.concatenate(bins), return_inverse=True)
        total = np.zeros(len(merged), dtype=np.int64)
        add(total, place, np.concatenate(counts))
        return merged, total

    return mistake


def _indexed_add(total, place, counts):
    total[place] += counts


def _indexed_set(total, place, counts):
    total[place] = counts


def _of_total(change):
    def mistake(bins, counts):
        merged, total = merge_histograms(bins, counts)
        return merged, change(total, len(bins))

    return mistake


def _how_often(bins, counts):
    return np.unique(np.concatenate(bins), return_counts=True)


def _only_the_first(bins, counts):
    return bins[0].copy(), counts[0].copy()


def _only_two(bins, counts):
    return merge_histograms(bins[:2], counts[:2])


def _only_common(bins, counts):
    merged, total = merge_histograms(bins, counts)
    common = np.array([all(b in own for own in bins) for b in merged], dtype=bool)
    return merged[common], total[common]


def _by_bincount(bins, counts):
    merged, place = np.unique(np.concatenate(bins), return_inverse=True)
    return merged, np.bincount(place, weights=np.concatenate(counts), minlength=len(merged))


def _with_empty_bins(bins, counts):
    merged, total = merge_histograms(bins, counts)
    if not len(merged):
        return merged, total
    full = np.zeros(int(merged[-1] - merged[0]) + 1, dtype=np.int64)
    full[merged - merged[0]] = total
    return np.arange(merged[0], merged[-1] + 1), full


def _a_dictionary(bins, counts):
    merged, total = merge_histograms(bins, counts)
    return dict(zip(merged.tolist(), total.tolist(), strict=True))


def _counts_first(bins, counts):
    return merge_histograms(bins, counts)[::-1]


def _counts_alone(bins, counts):
    return merge_histograms(bins, counts)[1]


@lru_cache(maxsize=1)
def _shares():
    """What linear2 of the MLP reads from the calibration images, in the shares of four workers: (values,) each."""
    from qlearn import datasets

    net = datasets.trained("mlp")
    x = datasets.mnist_arrays().calibration.images.reshape(-1, 784).astype(np.float32) / 255
    read = np.maximum(x @ net["linear1.weight"].T + net["linear1.bias"], 0)
    return [read[rank::4].reshape(-1) for rank in range(4)]


def _one_range(attempt):
    from qlearn import datasets
    from qlearn.observers import MSEObserver

    shares = _shares()
    each = [LogHistogram.of(share) for share in shares]
    # Bin numbers as the lesson counts them: the upper 16 bits of a float32.
    numbers = tuple((h.first.view(np.int32) >> 16).astype(np.int64) for h in each)
    _, counts = (np.asarray(part) for part in attempt(numbers, tuple(h.counts.copy() for h in each)))
    alone = LogHistogram.of(np.concatenate(shares))
    mine = LogHistogram(alone.first, alone.last, counts)
    solved = []
    for histogram in (mine, alone):
        observer = MSEObserver(QuantConfig(bits=3, method="mse"))
        ends = {"lo": histogram.first[0], "hi": histogram.last[-1], "bins": np.array([len(histogram.counts)])}
        parts = {"first": histogram.first, "last": histogram.last, "counts": histogram.counts}
        solved.append(observer.with_state({**ends, **parts}).qparams())
    net, (x, labels) = datasets.trained("mlp"), held_out()
    x = np.maximum(x @ net["linear1.weight"].T + net["linear1.bias"], 0)
    x = fake_quantize(x, solved[0])
    x = np.maximum(x @ net["linear2.weight"].T + net["linear2.bias"], 0)
    right = np.mean((x @ net["linear3.weight"].T + net["linear3.bias"]).argmax(axis=1) == labels)
    same = float(solved[0].scale) == float(solved[1].scale)
    return (
        f"Your `merge_histograms` on what the second layer reads, in the shares of four workers: {len(mine):,} values.\n"
        f"The best step for 3 bits is {float(solved[0].scale):.3f}, {'to the last bit' if same else 'but not'} that of "
        f"one worker who saw all. With it {100 * right:.1f} % of the held-out digits are read."
    )


@st.composite
def _histograms(draw):
    bins, counts = [], []
    for _ in range(draw(st.integers(1, 4))):
        bins.append(np.array(sorted(draw(st.sets(st.integers(-6, 6), max_size=5))), dtype=np.int64))
        counts.append(draw(hnp.arrays(np.int64, len(bins[-1]), elements=st.integers(1, 2**20) | st.just(2**40))))
    return {"bins": tuple(bins), "counts": tuple(counts)}


def _workers(*each):
    bins, counts = zip(*each, strict=True)
    return {
        "bins": tuple(np.array(own, dtype=np.int64) for own in bins),
        "counts": tuple(np.array(own, dtype=np.int64) for own in counts),
    }


MERGE = Exercise(
    id="10.4",
    solution=merge_histograms,
    examples=(
        _workers(([-3, 0, 2], [4, 9, 1]), ([0, 2, 5], [6, 2, 7]), ([5], [3])),
        _workers(([4, 8], [2**33, 1]), ([], []), ([4], [2**33])),
        _workers(([1, 2], [5, 6]), ([1, 2], [1, 2])),
    ),
    cases=_histograms(),
    mistakes=(
        *(
            Mistake(
                function,
                "You add the first count to the first, the second to the second. A worker's first bin may be another one: "
                "add what has the same number.",
            )
            for function in (_by_place, _by_place_broadcast)
        ),
        Mistake(_concatenated, "The lists stand one behind the other: a bin that two workers have is there twice."),
        Mistake(_concatenated_in_order, "In order, but a bin that two workers have is there twice: add its counts."),
        *(
            Mistake(
                function,
                "Where two workers have a bin, only the later count is left. (total[place] += counts adds but once to a "
                "place, too; np.add.at adds every time.)",
            )
            for function in (_last_wins, _with_total(_indexed_set), _with_total(_indexed_add))
        ),
        Mistake(_first_seen_order, "The sums are right, the order is not: bins ascend, whoever came first."),
        *(
            Mistake(_of_total(mean), "That is an average. Counts add up: all workers together have seen all values.")
            for mean in (lambda total, n: total // n, lambda total, n: total / n)
        ),
        Mistake(_with_total(np.maximum.at), "You keep the largest count of a bin. All its values were seen: add."),
        Mistake(_how_often, "That is how many workers have the bin. Add up what they counted in it."),
        Mistake(_only_the_first, "That is the first worker's. The others have seen something, too."),
        Mistake(_only_two, "That merges two. There may be any number of workers."),
        Mistake(_only_common, "A bin that one worker alone has seen counts, too."),
        Mistake(
            _by_bincount,
            "np.bincount with weights gives floats, which count to 2^53 only. Counts are whole numbers: np.add.at, or a cast "
            "at the end.",
        ),
        Mistake(
            _of_total(lambda total, n: total.astype(np.int32)), "int32 ends at two thousand million. Counts are int64."
        ),
        Mistake(_with_empty_bins, "Empty bins are not kept: only those in which something lies."),
        Mistake(_a_dictionary, "Return two arrays: the bins, ascending, and their counts."),
        Mistake(_counts_first, "The other way round: first the bins, then their counts."),
        Mistake(_counts_alone, "Return both: the bins, and their counts."),
    ),
    hints=(
        "What has to happen to a bin that two workers have seen, and to one that only one has?",
        "Lay all bins into one array and all counts into another. `np.unique` knows which bins there are; with "
        "`return_inverse=True`, also where each of the long list has gone.",
        "Zeros in `np.int64`, one for each bin; `np.add.at(total, place, …)` adds to a place as often as it comes.",
    ),
    consequence=_one_range,
)

EXERCISES = (QDQ, EVEN, BLOCK, MERGE)


# 10.C small, and quick


SMALL, RIGHT, TIMES, TIMES_WITHOUT = 80_000, 97.5, 2.0, 1.2
BATCH, ROUNDS = 1000, 60


def ship(model, images):
    import torch

    from qlearn import nn

    rows = slice(4 * 28, 25 * 28)  # above and below, nearly all is 0
    first = torch.nn.Linear(21 * 28, 100)
    first.weight.data = model.linear1.weight.data[:, rows]
    first.bias.data = model.linear1.bias.data
    model.linear1 = first

    class Rows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.flatten(1)[:, rows])

    prepared = nn.prepare(Rows().eval())
    return nn.convert(nn.calibrate(prepared, images))


def _codes_of_all(bits, activations):
    def ship_all(model, images):
        from qlearn import PerAxis, nn

        weights = QuantConfig(bits=bits, symmetric=True, granularity=PerAxis(0))
        prepared = nn.prepare(model, weights, QuantConfig() if activations else None)
        return nn.convert(nn.calibrate(prepared, images, progress=False) if activations else prepared)

    return ship_all


def wanted_speed():
    """How many times as quick as float an answer has to be: less where the processor has no quick int8 products."""
    from qlearn.nn.processor import EXACT, instructions

    return TIMES if set(EXACT) & set(instructions()) else TIMES_WITHOUT


@lru_cache(maxsize=1)
def _float_file():
    import tempfile
    from pathlib import Path

    from qlearn import nn

    with tempfile.TemporaryDirectory() as folder:
        nn.export_onnx(nn.load_trained("mlp"), Path(folder, "float.onnx"), (1, 28, 28))
        return Path(folder, "float.onnx").read_bytes()


def _times_as_quick(one, other, images):
    """How much less time the second takes than the first: the best of many tries of each, in turn.

    Whatever else the machine does makes single ones slow, and neither of the two in particular.
    """
    best = [np.inf, np.inf]
    until = time.perf_counter() + 4.0
    for _ in range(ROUNDS):
        for which, run in enumerate((one, other)):
            start = time.perf_counter()
            run(images)
            best[which] = min(best[which], time.perf_counter() - start)
        if time.perf_counter() > until:
            break
    return best[0] / best[1]


def judge(answer):
    import tempfile
    from pathlib import Path

    import torch

    from qlearn import datasets, nn
    from qlearn.nn.engines import session_of

    # Before the answer runs: it may put others there.
    write, load, float_file, wanted = nn.export_onnx, session_of, _float_file(), wanted_speed()
    images = nn.to_inputs(datasets.mnist_arrays().calibration.images[:500])
    given = answer(nn.load_trained("mlp"), images)
    if not isinstance(given, torch.nn.Module):
        raise CannotBeJudged(f"ship must return a network, and returned a {type(given).__name__}.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "answer.onnx")
        try:
            write(given, path, (1, 28, 28))
        except ValueError as error:
            raise CannotBeJudged(f"your network cannot be written: {error}") from error
        content = path.read_bytes()
    sessions = [load(file) for file in (float_file, content)]
    runs = [lambda x, session=session: session.run(None, {"input": x})[0] for session in sessions]
    digits, labels = held_out()
    digits = digits.reshape(DIGITS, 1, 28, 28)
    logits = runs[1](digits)
    if logits.shape != (DIGITS, 10):
        raise CannotBeJudged(f"for {DIGITS:,} images your network gives {logits.shape}: wanted are 10 logits for each.")
    right = 100 * np.mean(logits.argmax(axis=1) == labels)
    times = _times_as_quick(*runs, digits[:BATCH])
    return Score(
        {"bytes": f"{len(content):,}", "accuracy": f"{right:.1f} %", "times as quick": f"{times:.1f}"},
        len(content) <= SMALL and right >= RIGHT and times >= wanted,
    )


CHALLENGE = Challenge(
    id="10.C",
    target=(
        f"a file of {SMALL:,} bytes or less that reads {RIGHT} % of 2,000 held-out digits, {TIMES:.0f} times as quick in ONNX "
        f"Runtime as the float MLP ({TIMES_WITHOUT} times where the processor has no VNNI or the like)."
    ),
    solution=ship,
    judge=judge,
    simple={
        "weights and inputs 8 bits": _codes_of_all(8, True),
        "weights 4 bits, inputs 8": _codes_of_all(4, True),
        "weights 4 bits": _codes_of_all(4, False),
    },
    hints=(
        "Eight bits are quick, and 17,000 bytes too many. Four bits are turned back into floats, whatever you do. What else makes "
        "a file smaller, and a product cheaper?",
        "`linear1` has 78,400 of the 89,400 weights: one column for each pixel. What do the pixels at the border of all the "
        "`images` say?",
        "A network that leaves out the first and the last rows of an image, `x.flatten(1)[:, a:b]`, needs only those columns of "
        "`linear1.weight`. They lie side by side in memory, so that cutting costs little. Then 8 bits for weights and inputs.",
    ),
)

CHALLENGES = (CHALLENGE,)
