"""Hadamard matrices against SciPy's and their definition; kurtosis against SciPy's and known distributions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from qlearn import errors, fake_quantize, find_qparams, rotations
from qlearn.rotations import hadamard, kurtosis, random_hadamard, random_orthogonal

BUILT = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 60, 64, 76, 192, 512, 576, 1536]


@pytest.mark.parametrize("n", BUILT)
def test_rows_are_orthogonal_and_all_entries_as_large(n):
    signs = hadamard(n) * n**0.5
    assert hadamard(n).dtype == np.float64 and np.array_equal(np.abs(np.rint(signs)), np.ones((n, n)))
    assert np.abs(signs - np.rint(signs)).max() < 1e-14  # 1/√n, rounded once
    assert np.array_equal(np.rint(signs) @ np.rint(signs).T, n * np.eye(n))


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64, 512])
def test_powers_of_two_are_sylvester_s(n):
    assert np.array_equal(hadamard(n), scipy.linalg.hadamard(n) / np.sqrt(n))


def test_sizes_that_language_models_have_are_built():
    """Widths and hidden widths of Llama, Qwen and Mistral: the part that is doubled."""
    sizes = {4096: 1, 768: 12, 3072: 12, 896: 28, 4864: 76, 3584: 28, 18944: 148, 8960: 140, 14336: 28, 5120: 20}
    sizes |= {13824: 108, 28672: 28, 11008: 5504}
    assert {n: rotations._smallest_part(n) for n in sizes} == sizes


def test_paley_s_matrix_is_that_of_squares():
    """Of size 4, q = 3: 1 is a square modulo 3, 2 is none."""
    assert rotations._paley(4).tolist() == [[1, 1, 1, 1], [-1, 1, -1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]]


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (3, "n=3: no Hadamard matrix of this size is built here; the nearest are 2 and 4"),
        (52, "n=52: .* the nearest are 48 and 56"),
        (193, "n=193: .* the nearest are 192 and 196"),
        (0, "n=0 must be a whole number, 1 or more"),
        (4.0, "n=4.0 must be a whole number"),
        (True, "n=True must be"),
    ],
)
def test_other_sizes_are_refused_with_their_neighbours(n, message):
    with pytest.raises(ValueError, match=message):
        hadamard(n)
    with pytest.raises(ValueError, match=message):
        random_hadamard(n)


@pytest.mark.parametrize("make", [random_hadamard, random_orthogonal])
def test_a_seed_is_a_matrix(make):
    first = make(12, seed=3)
    assert np.array_equal(first, make(12, seed=3)) and not np.array_equal(first, make(12, seed=4))
    assert np.array_equal(make(12), make(12, seed=0))
    assert np.abs(first @ first.T - np.eye(12)).max() < 1e-14


@pytest.mark.parametrize("make", [random_hadamard, random_orthogonal])
@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_a_seed_is_a_whole_number(make, seed):
    with pytest.raises(ValueError, match=rf"seed={seed} must be a whole number, 0 or more: it says which"):
        make(4, seed=seed)


def test_random_signs_are_those_of_whole_columns():
    ratio = random_hadamard(64, seed=5) / hadamard(64)
    assert set(ratio[0]) == {-1.0, 1.0} and np.array_equal(ratio, np.broadcast_to(ratio[0], ratio.shape))
    assert 16 < (ratio[0] > 0).sum() < 48


def test_any_size_has_a_random_orthogonal_matrix():
    q = random_orthogonal(7, seed=1)
    assert np.abs(q @ q.T - np.eye(7)).max() < 1e-14
    assert random_orthogonal(1).tolist() == [[1.0]]
    # Of 2000 matrices, each entry is as often positive as negative: QR alone has a sign of its own.
    positive = np.mean([random_orthogonal(2, seed=seed) > 0 for seed in range(2000)], axis=0)
    assert np.abs(positive - 0.5).max() < 0.05  # four standard deviations
    with pytest.raises(ValueError, match="n=0 must be"):
        random_orthogonal(0)


def test_an_outlier_is_shared_by_all_channels():
    """One channel 64 times as large, one scale for all: in the other basis the steps are a tenth as wide."""
    x = np.random.default_rng(0).normal(size=(200, 192))
    x[:, 7] *= 64
    turned = x @ random_hadamard(192)
    assert kurtosis(x) > 100 and kurtosis(turned) < 4
    assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(x, axis=1))
    before, after = (errors.mse(v, fake_quantize(v, find_qparams(v, bits=8, symmetric=True))) for v in (x, turned))
    assert before > 30 * after


# --- kurtosis ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_kurtosis_is_scipy_s(axis, library):
    x = np.random.default_rng(1).normal(size=(40, 50)) ** 3 + 5
    wanted = scipy.stats.kurtosis(x, axis=axis, fisher=False)
    found = kurtosis(library(x), axis=axis)
    assert np.allclose(found, wanted, rtol=1e-12)
    assert type(found) is float if axis is None else tuple(found.shape) == wanted.shape


def test_kurtosis_of_known_distributions():
    rng = np.random.default_rng(0)
    assert kurtosis(rng.normal(size=100_000)) == pytest.approx(3, abs=0.06)  # four times √(24 / n)
    assert kurtosis(rng.uniform(size=100_000)) == pytest.approx(1.8, abs=0.02)
    n = 50
    lone = np.zeros(n)
    lone[3] = -7.0
    assert kurtosis(lone) == pytest.approx(n - 2 + 1 / (n - 1), rel=1e-12)  # the most there is


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-310])
def test_kurtosis_does_not_depend_on_the_unit(scale):
    x = np.array([3.0, -1.0, 8.0, 2.0]) * scale
    assert kurtosis(x) == pytest.approx(kurtosis([3.0, -1.0, 8.0, 2.0]), rel=1e-9)
    assert type(kurtosis(torch.ones(3) * torch.arange(3))) is float


def test_what_has_no_kurtosis_is_refused():
    with pytest.raises(ValueError, match=r"x is the same everywhere\.$"):
        kurtosis([0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="x is the same everywhere along axis 0 at some place"):
        kurtosis([[1.0, 2.0], [1.0, 3.0]], axis=0)
    with pytest.raises(ValueError, match=r"axis=2: x has shape \(1, 3\), so it must be from -2 to 1"):
        kurtosis([[1.0, 2.0, 3.0]], axis=2)
    with pytest.raises(ValueError, match="not finite"):
        kurtosis([1.0, np.nan])
    with pytest.raises(ValueError, match="x is empty"):
        kurtosis([])
