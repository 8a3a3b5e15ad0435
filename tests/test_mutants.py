"""The tool that looks for holes in these tests makes the changes that it should, and puts them where tests see them."""

from __future__ import annotations

import doctest
import sys
import tomllib
import types

import pytest

import mutations
from mutants import EXPLAINED, MODULES, ROOT, put_into
from mutations import mutants


def changes(source: str) -> list[str]:
    return [mutant.name.partition("  ∙  ")[2] for mutant in mutants(source)]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a < b", ["a < b → a <= b"]),
        ("a <= b != c", ["a <= b != c → a < b != c", "a <= b != c → a <= b == c"]),
        ("a + b", ["a + b → a - b"]),
        ("a // b", ["a // b → a / b"]),
        ("a += b", ["a += b → a -= b"]),
        ("x = 3", ["3 → 4", "3 → 2"]),
        ("x = -1", ["-1 → 0", "-1 → -2"]),
        ("x = -y", ["-y → y"]),
        ("x = True", ["True → False"]),
        ("x = not y", ["not y → y"]),
        ("a and b", ["a and b → a or b", "a and b → b", "a and b → a"]),
        ("a if b else c", ["a if b else c → a", "a if b else c → c"]),
        ("x = max(a, b)", ["max → min"]),
        ("x = xp.minimum(a, b)", ["xp.minimum → xp.maximum"]),
        ("x = clip(y, a, b)", ["clip(y, a, b) → clip(y, None, b)", "clip(y, a, b) → clip(y, a, None)"]),
        ("x = clip(y, max=a)", ["clip(y, max=a) → clip(y)"]),
        ("x = where(a, b, c)", ["where(a, b, c) → b", "where(a, b, c) → c"]),
        ("x = abs(y)", ["abs(y) → y"]),
        ("check(x)", ["check(x) → pass"]),
        ("if a:\n    raise E(f'{a + 1}')", ["a → False"]),
        ("if a:\n    x = b", ["a → True", "a → False"]),
        ("while a:\n    x = b", ["a → False"]),
        ("x = [a for a in y if a]", ["a → True"]),
        ("def f(x: int = 2):\n    return x", ["2 → 3", "2 → 1"]),
    ],
)
def test_each_kind_of_change_is_made(source, wanted):
    assert changes(source) == wanted


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring that says 1 + 1."""',
        "def f(x: Array[1]) -> Array[2]:\n    ...",
        "raise ValueError(f'{n + 1} of {m - 1}')",
        "from a import min",
        "x = 'text' + 'text'",
        "x = clip(y, None, None)",
    ],
)
def test_what_only_explains_is_left_alone(source):
    assert changes(source) == []


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(mutations) == (0, 1)


def test_a_mutant_differs_from_its_module_in_one_place():
    source = "def f(x, k=1):\n    if x > k:\n        return x + k\n    return x * 2\n"
    for mutant in mutants(source):
        differing = [(a, b) for a, b in zip(source.splitlines(), mutant.source.splitlines(), strict=True) if a != b]
        assert len(differing) == 1
        assert mutant.line == source.splitlines().index(differing[0][0]) + 1
    assert next((m.line, m.lines) for m in mutants(source)) == (1, range(2, 5))  # a default: whoever runs f
    assert len({mutant.name for mutant in mutants(source)}) == len(list(mutants(source)))


def test_a_mutant_is_seen_by_those_who_have_imported_the_module():
    source = (
        "from dataclasses import dataclass\nimport numpy as np\n"
        "LIMIT = 1\n"
        "@dataclass(frozen=True)\nclass Point:\n"
        "    x: int\n"
        "    @property\n    def next(self):\n        return self.x + 1\n"
        "def moved(point, by=2):\n    return Point(point.x + by + LIMIT)\n"
        "ORIGIN = Point(0)\n"
        "@np.errstate(over='ignore')\ndef decorated(x, by=2):\n    return x + by\n"
    )
    module = types.ModuleType("shapes")
    sys.modules["shapes"] = module
    module.__file__ = "shapes.py"
    try:
        exec(source, vars(module))
        point, moved, origin = module.Point, module.moved, module.ORIGIN
        decorated = module.decorated
        changed = source.replace("self.x + 1", "self.x - 1").replace("by=2", "by=3").replace("LIMIT = 1", "LIMIT = 9")
        changed = changed.replace("return x + by", "return x - by")
        put_into(module, changed.replace("Point(0)", "Point(5)").replace("point.x", "-point.x"))
        assert point(4).next == 3
        assert moved(point(4)) == point(-4 + 3 + 9) and isinstance(moved(point(4)), point)
        assert origin.x == 5 and decorated(1) == 1 - 3
        with pytest.raises(AttributeError):
            origin.x = 1
        put_into(module, source.replace("frozen=True", "frozen=False"))
        origin.x = 1
        assert origin.x == 1
    finally:
        del sys.modules["shapes"]


def test_explanations_are_of_mutants_that_exist():
    explained = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    assert set(explained) <= set(MODULES)
    for module, reasons in explained.items():
        names = {mutant.name for mutant in mutants((ROOT / f"qlearn/{module}.py").read_text(encoding="utf-8"))}
        assert sorted(set(reasons) - names) == []
        assert all(len(reason) > 10 for reason in reasons.values())
