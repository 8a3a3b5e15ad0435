"""Small changes to a module, each of which a good test notices: the mutants of `make mutants`.

One change at a time, to what is computed: comparisons, arithmetic, constants, min and max, bounds of a clip, branches,
guards, default values. Left alone is what only explains: docstrings, annotations, messages, imports.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OPERATORS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
_PAIRS = "min max, minimum maximum, floor ceil, argmin argmax, any all, zeros ones, zeros_like ones_like"
NAMES = {a: b for pair in _PAIRS.split(", ") for a, b in (pair.split(), reversed(pair.split()))}
SKIPPED = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        line: where the change is.
        name: the text of that line and "before → after": it stays the same when the lines above it move.
        lines: who runs one of these lines may notice.
        at_import: it is run when the module is imported, so that everyone may notice.
        source: the whole module.
    """

    line: int
    name: str
    lines: range
    at_import: bool
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module.

    >>> [mutant.name for mutant in mutants("y = min(x, 2)")]
    ['y = min(x, 2)  ∙  min → max', 'y = min(x, 2)  ∙  2 → 3', 'y = min(x, 2)  ∙  2 → 1']
    """
    tree = ast.parse(source)
    text = source.splitlines()
    names: Counter[str] = Counter()
    inside = {id(part) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for part in ast.walk(f)}
    for parent, field, index, node, statement in list(_places(tree, tree)):
        for other in _alternatives(parent, field, node):
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):  # a default value: whoever calls the function
                lines = range(statement.body[0].lineno, (statement.end_lineno or 0) + 1)
            elif isinstance(statement, (ast.If, ast.For, ast.While, ast.With)):  # the part before the colon
                lines = range(statement.lineno, statement.body[0].lineno)
            else:
                lines = range(statement.lineno, (statement.end_lineno or 0) + 1)
            name = f"{text[node.lineno - 1].strip()}  ∙  {ast.unparse(node)} → {ast.unparse(other)}"
            names[name] += 1
            name += f"  ({names[name]})" if names[name] > 1 else ""  # the same again on the same line
            _put(parent, field, index, other)
            yield Mutant(node.lineno, name, lines, id(statement) not in inside, ast.unparse(tree))
            _put(parent, field, index, node)


def _places(parent: Any, statement: Any) -> Iterator[tuple[Any, str, int | None, Any, Any]]:
    """Every part of the tree that may be changed: (parent, field, index in it, part, the statement it belongs to)."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns") or (isinstance(parent, ast.AnnAssign) and field == "target"):
            continue
        for index, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            is_text = isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
            if not isinstance(part, ast.AST) or isinstance(part, SKIPPED) or is_text:
                continue
            own = part if isinstance(part, ast.stmt) else statement
            yield parent, field, index, part, own
            if not _negative(part):
                yield from _places(part, own)


def _put(parent: Any, field: str, index: int | None, part: Any) -> None:
    if index is None:
        setattr(parent, field, part)
    else:
        getattr(parent, field)[index] = part


def _alternatives(parent: Any, field: str, node: Any) -> Iterator[Any]:
    """What may stand in this node's place."""
    if field == "ifs" or (isinstance(parent, ast.If) and field == "test" and not isinstance(parent.body[0], ast.Raise)):
        yield ast.Constant(True)
    if field == "test" and isinstance(parent, (ast.If, ast.While)):
        yield ast.Constant(False)  # of a guard: nothing is raised any more
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value) | float(value))):
            yield from (ast.Constant(1 - value), ast.Constant(-1 - value))
        case ast.UnaryOp():
            yield node.operand
        case ast.BinOp() if type(node.op) in OPERATORS and not (_is_text(node.left) or _is_text(node.right)):
            yield _with(node, op=OPERATORS[type(node.op)]())
        case ast.AugAssign() if type(node.op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=OPERATORS[type(node.op)]())
            for i in range(len(node.values)):
                rest = [*node.values[:i], *node.values[i + 1 :]]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.Compare():
            for i, op in enumerate(node.ops):
                yield _with(node, ops=[*node.ops[:i], OPERATORS[type(op)](), *node.ops[i + 1 :]])
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.Name(ctx=ast.Load()) if node.id in NAMES:
            yield ast.Name(NAMES[node.id], node.ctx)
        case ast.Attribute() if node.attr in NAMES:
            yield _with(node, attr=NAMES[node.attr])
        case ast.Call():
            yield from _other_calls(node)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()


def _other_calls(call: ast.Call) -> Iterator[Any]:
    """A clip without one of its bounds, either branch of a where, a value without its abs or round."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "clip":
        for i, bound in enumerate(call.args[1:], start=1):
            if not (isinstance(bound, ast.Constant) and bound.value is None):
                yield _with(call, args=[*call.args[:i], ast.Constant(None), *call.args[i + 1 :]])
        for keyword in call.keywords:
            if keyword.arg in ("min", "max"):
                yield _with(call, keywords=[other for other in call.keywords if other is not keyword])
    elif name == "where" and len(call.args) == 3:
        yield from call.args[1:]
    elif name in ("abs", "round") and len(call.args) == 1:
        yield call.args[0]


def _negative(node: Any) -> bool:
    """−1 is a constant, and not the negative of one."""
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
        and not isinstance(node.operand.value, bool)
    )


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _with(node: Any, **fields: Any) -> Any:
    """The node with other fields; what it holds is shared."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other
