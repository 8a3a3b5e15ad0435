"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# Up to 1e6 and no subnormals: what oracles agree on. Extremes have tests of their own.
moderate = st.floats(-1e6, 1e6, width=32, allow_nan=False, allow_subnormal=False)


def arrays(elements: st.SearchStrategy[float] = moderate, dims: int = 3, dtype: type = np.float32):
    """Non-empty float arrays of 1 to `dims` axes."""
    shapes = hnp.array_shapes(min_dims=1, max_dims=dims, max_side=8)
    return hnp.arrays(dtype, shapes, elements=elements)


@st.composite
def codes_of(draw, bits=st.integers(1, 8)):
    """(bits, symmetric, narrow_range) of a quantizer that exists."""
    symmetric = draw(st.booleans())
    return {
        "bits": max(draw(bits), 2 if symmetric else 1),
        "symmetric": symmetric,
        "narrow_range": draw(st.booleans()),
    }
