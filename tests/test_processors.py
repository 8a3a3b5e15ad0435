"""Other processors: the settings do what they say or are left out, and the noise is what it should be."""

import subprocess
import sys

import numpy as np
import pytest

import processors
from noise import disturbed

OWN = {
    "processor": "x86_64",
    "features": ["AVX2", "AVX512F", "AVX512_SKX", "FMA3", "SSE42", "X86_V4"],
    "numpy": ["AVX2", "X86_V4"],
    "blas": "SkylakeX",
    "threads": 1,
    "torch": "AVX512",
    "torch threads": 1,
    "MKL": "AVX-512",
    "oneDNN": "Intel AVX-512",
}
ARM = {**dict.fromkeys(OWN), "processor": "aarch64", "features": ["ASIMD", "SVE"], "numpy": ["SVE"], "torch": "DEFAULT"}


def setting(name, own=OWN):
    (found,) = [setting for setting in processors.settings(own) if setting.name == name]
    return found


def test_a_setting_that_does_what_it_says_is_run():
    assert processors.judge(setting("nehalem"), OWN, OWN | {"blas": "Nehalem"}) == ("", [])


@pytest.mark.parametrize(
    "name, own, found, why",
    [
        ("nehalem", OWN, OWN, "blas is SkylakeX and not Nehalem"),
        ("zen", OWN, OWN | {"blas": "Haswell"}, "blas is Haswell and not Zen"),
        ("skylakex", OWN, OWN, "the same as own"),
        ("haswell", OWN, {}, "a process with these variables does not run"),
        ("haswell", ARM, ARM, "this processor (aarch64) has no AVX2 and no FMA3"),
        ("nehalem", OWN | {"blas": None}, OWN, "nothing here has a choice of blas"),
    ],
)
def test_a_setting_that_does_nothing_is_left_out_and_says_why(name, own, found, why):
    assert processors.judge(setting(name, own), own, found) == (why, [])


def test_a_variable_without_effect_beside_others_that_have_one_is_named():
    found = OWN | {"numpy": [], "torch": "DEFAULT", "MKL": "AVX-512", "oneDNN": "Intel SSE4.1"}
    assert processors.judge(setting("least"), OWN, found) == ("", ["MKL is AVX-512 and not COMPATIBLE"])


def test_numpy_is_asked_for_its_own_names_of_instructions():
    assert setting("avx2").variables["NPY_DISABLE_CPU_FEATURES"] == "X86_V4"
    assert setting("least").variables["NPY_DISABLE_CPU_FEATURES"] == "AVX2 X86_V4"
    assert setting("least", ARM).variables["NPY_DISABLE_CPU_FEATURES"] == "SVE"
    assert "NPY_DISABLE_CPU_FEATURES" not in setting("least", ARM | {"numpy": []}).variables


def test_the_tests_of_the_maths_are_there():
    missing = [name for name in processors.MATHS if not (processors.ROOT / f"tests/test_{name}.py").exists()]
    assert missing == []


def test_what_a_process_says_of_itself():
    own = processors.seen()
    assert set(own) == set(OWN) and own["threads"] in (1, None)
    other = processors.another(processors.settings(own), own)
    assert other["why"] or (other["variables"] and len(other["lessons"]) == len(processors.ARRAY_LESSONS))


def test_a_report_names_what_failed(tmp_path):
    report = tmp_path / "r.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="b"><failure/></testcase>'
        '<testcase classname="tests.test_a" name="c"/></testsuite></testsuites>'
    )
    assert processors.failures(report) == ["test_a b"]


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_moves_numbers_by_at_most_its_units(dtype):
    x = np.random.default_rng(0).normal(size=1000).astype(dtype)
    moved = np.abs(disturbed(x, seed=1, units=8) - x) / (np.abs(x) * np.finfo(dtype).eps)
    assert 7 < moved.max() <= 9  # the sum is rounded once more, by half a unit of the larger number
    assert np.mean(moved == 0) < 0.2


def test_noise_hangs_on_the_significand_alone():
    x = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    y = disturbed(x, seed=1, units=8)
    assert np.array_equal(disturbed(8 * x, seed=1, units=8), 8 * y)
    assert np.array_equal(disturbed(x[1:3].T, seed=1, units=8), y[1:3].T)
    assert not np.array_equal(disturbed(x, seed=2, units=8), y)


def test_noise_leaves_integers_zero_infinity_and_shapes_alone():
    assert disturbed(np.arange(5), seed=1, units=8).tolist() == [0, 1, 2, 3, 4]
    assert disturbed(np.float64(0), seed=1, units=8) == 0
    for seed in range(20):
        special = disturbed(np.array([np.inf, -np.inf, np.nan]), seed=seed, units=1)
        assert np.array_equal(special, [np.inf, -np.inf, np.nan], equal_nan=True)
    assert disturbed(np.zeros((0, 3)), seed=1, units=8).shape == (0, 3)


NOISE = """
import runpy, sys
import numpy as np
from qlearn import datasets
try:
    import torch
    linear = torch.nn.functional.linear
except ImportError:
    torch = None
before, x = datasets.trained("mlp")["linear1.weight"], np.ones((2, 784), dtype=np.float32)
runpy.run_path(sys.argv[1])["disturb"](1)
after = datasets.trained("mlp")["linear1.weight"]
assert np.array_equal(before, after) and not np.array_equal(x @ before.T, x @ after.T)
assert (np.random.default_rng(0).laplace(size=9) != np.random.Generator(np.random.PCG64(0)).laplace(size=9)).any()
if torch:
    layer, x = torch.nn.Linear(784, 100), torch.ones(2, 784)
    y = layer(x)
    assert torch.equal(y, layer(x)) and not torch.equal(y, linear(x, layer.weight, layer.bias))
    y.sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((100, 784), 2.0))
"""


def test_noise_reaches_numpy_the_networks_and_pytorch():
    tool = str(processors.ROOT / "tools/noise.py")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", NOISE, tool], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
