"""Types as text, ``i64[B, 2*T]``: parsing, and matching given shapes against them.

A size is a Python expression over whole numbers and symbols with ``+ - * // %``, ``min`` and ``max``. It is
read by ``ast`` and evaluated here, never by ``eval``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from planish.errors import ArtifactError

_TYPE = re.compile(r"\s*([a-z][a-z0-9]*)\s*\[(.*)\]\s*", re.DOTALL)
_LONGEST = 4096
_LARGEST = 2**63
_DTYPES = frozenset(
    ("f64", "f32", "f16", "bf16", "f8e4m3", "f8e5m2", "c64", "bool")
    + ("i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8")
)


@dataclass(frozen=True)
class TensorType:
    """An element type and sizes; ``str()`` gives the text it came from."""

    dtype: str
    dims: tuple[ast.expr, ...]
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.dims)

    def static(self) -> tuple[int, ...] | None:
        """The sizes, if all are numbers."""
        sizes = [evaluate(d, {}) if not symbols(d) else None for d in self.dims]
        known = tuple(n for n in sizes if n is not None)
        return known if len(known) == len(sizes) else None

    def sizes(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The sizes for given values of the symbols; PL611 if one is missing."""
        return tuple(evaluate(d, values) for d in self.dims)


def parse_type(text: str, *, where: str | None = None) -> TensorType:
    """Read a type such as ``f16[B, T, 64]``; PL611 if it is none."""
    found = _TYPE.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None or found[1] not in _DTYPES:
        raise _invalid(text, where)
    inner = found[2].strip()
    if not inner:
        return TensorType(found[1], (), text)
    try:
        parsed = ast.parse(f"[{inner}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _invalid(text, where) from None
    if not isinstance(parsed, ast.List) or not all(_allowed(d) for d in parsed.elts):
        raise _invalid(text, where)
    return TensorType(found[1], tuple(parsed.elts), text)


def _allowed(root: ast.expr) -> bool:
    waiting: list[tuple[ast.AST, int]] = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > 100:
            return False
        match node:
            case ast.Constant(value=value):
                if type(value) is not int or not 0 <= value < _LARGEST:
                    return False
            case ast.Name():
                pass
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                waiting.append((operand, depth + 1))
            case ast.BinOp(
                op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv() | ast.Mod(), left=left, right=right
            ):
                waiting += [(left, depth + 1), (right, depth + 1)]
            case ast.Call(func=ast.Name(id="min" | "max"), args=[_, *_] as args, keywords=[]):
                waiting += [(a, depth + 1) for a in args]
            case _:
                return False
    return True


def symbols(expression: ast.expr) -> set[str]:
    """The names of the symbols in an expression."""
    functions = {id(n.func) for n in ast.walk(expression) if isinstance(n, ast.Call)}
    return {n.id for n in ast.walk(expression) if isinstance(n, ast.Name) and id(n) not in functions}


def evaluate(expression: ast.expr, values: Mapping[str, int]) -> int:
    """The value of an expression; PL611 for an unknown symbol, a division by zero or a number beyond 64 bits."""
    result = _evaluate(expression, values)
    if abs(result) >= _LARGEST:
        raise ArtifactError("PL611", f"the size {ast.unparse(expression)} is too large")
    return result


def _evaluate(node: ast.expr, values: Mapping[str, int]) -> int:
    # The depth is bounded by _allowed.
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            if name not in values:
                raise ArtifactError("PL611", f"the size {name} is not known")
            return values[name]
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, values)
        case ast.Call(func=ast.Name(id=name), args=args):
            found = [_evaluate(a, values) for a in args]
            return min(found) if name == "min" else max(found)
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(op, _evaluate(left, values), _evaluate(right, values), node)
    raise ArtifactError("PL611", f"{ast.unparse(node)} is not a size")


def _arithmetic(op: ast.operator, a: int, b: int, node: ast.expr) -> int:
    if isinstance(op, ast.Add):
        return a + b
    if isinstance(op, ast.Sub):
        return a - b
    if isinstance(op, ast.Mult):
        return a * b
    if b == 0:
        raise ArtifactError("PL611", f"the size {ast.unparse(node)} divides by zero")
    return a // b if isinstance(op, ast.FloorDiv) else a % b


def solve(expression: ast.expr, size: int, values: Mapping[str, int]) -> dict[str, int]:
    """The value of the one unknown symbol of an affine expression that equals ``size``; empty if there is none."""
    unknown = symbols(expression) - set(values)
    if len(unknown) != 1:
        return {}
    name = unknown.pop()
    try:
        at_zero, at_one = (evaluate(expression, {**values, name: n}) for n in (0, 1))
        slope = at_one - at_zero
        if slope == 0 or (size - at_zero) % slope:
            return {}
        guess = (size - at_zero) // slope
        return {name: guess} if evaluate(expression, {**values, name: guess}) == size else {}
    except ArtifactError:
        return {}


def _invalid(text: str, where: str | None) -> ArtifactError:
    return ArtifactError(
        "PL611", f"{text[:80]!r} is not a type", where=where, hint="types look like i64[B, 2*T]"
    )
