"""Dynamic dimensions of ONNX inputs as symbols with ranges."""

from __future__ import annotations

import ast
from collections.abc import Mapping

import onnx_ir

from planish.errors import CaptureError, ShapeError
from planish.ir import types
from planish.ir.printer import identifier
from planish.ir.types import Size, Symbol


class Dimensions:
    """Names of dimensions to sizes. The same name is the same symbol everywhere."""

    def __init__(
        self, given: Mapping[str, tuple[int, int] | int | str], taken: set[str] | None = None
    ) -> None:
        self._given = dict(given)
        self._taken = taken or set()
        self._used: set[str] = set()
        self._symbols: dict[str, str] = {}
        self._names: list[str] = []

    def shape(self, name: str, shape: onnx_ir.Shape) -> tuple[Size, ...]:
        """The sizes of an input; an unnamed dimension gets its name from the input."""
        return tuple(self._size(name, i, d) for i, d in enumerate(shape.dims))

    def _size(self, name: str, index: int, dim: int | onnx_ir.SymbolicDim) -> Size:
        if isinstance(dim, int):
            if dim < 0:
                raise CaptureError("PL141", f"dimension {index} is {dim}", where=f"input {name!r}")
            return dim
        if not dim.value:
            return self.named(f"{identifier(name)}_dim{index}")
        return self._expression(dim.value)

    def _expression(self, text: str, seen: tuple[str, ...] = ()) -> Size:
        if text.isidentifier() or (text in self._given and text not in seen):
            return self.named(text, seen)
        try:
            return types.size(self._computed(ast.parse(text, mode="eval").body, seen))
        except (SyntaxError, ValueError, RecursionError, TypeError):
            if seen:
                raise CaptureError(
                    "PL149", f"dims: {seen[-1]!r} cannot be {text!r}: use names, whole numbers, + - * //"
                ) from None
            return self.named(text)

    def _computed(self, tree: ast.expr, seen: tuple[str, ...]) -> Size:
        if isinstance(tree, ast.Name):
            return self.named(tree.id, seen)
        if isinstance(tree, ast.Constant) and type(tree.value) is int:
            return tree.value
        if isinstance(tree, ast.BinOp):
            a, b = self._computed(tree.left, seen), self._computed(tree.right, seen)
            if isinstance(tree.op, ast.Add):
                return types.size(a + b)
            if isinstance(tree.op, ast.Sub):
                return types.size(a - b)
            if isinstance(tree.op, ast.Mult):
                return types.size(a * b)
            if isinstance(tree.op, ast.FloorDiv) and types.at_least(b, 1):
                return types.floor_div(a, b)
        raise ValueError(ast.dump(tree))

    def named(self, name: str, seen: tuple[str, ...] = ()) -> Size:
        """The size that a dimension's name stands for."""
        if name in seen:
            raise CaptureError("PL149", f"dims: {name!r} is declared to depend on itself")
        if not seen:
            self._names.append(name)
        given = self._given.get(name)
        if given is None:
            return self._symbol(name, 1, 2**31 - 1)
        self._used.add(name)
        if isinstance(given, str):
            return self._expression(given, (*seen, name))
        if isinstance(given, int):
            if given < 0:
                raise CaptureError("PL149", f"dims: {name!r} is {given}")
            return given
        try:
            low, high = given
            return self._symbol(name, int(low), int(high))
        except (ShapeError, TypeError, ValueError) as error:
            raise CaptureError(
                "PL149", f"dims: {name!r} needs a range (low, high), got {given!r}: {error}"
            ) from None

    def _symbol(self, name: str, low: int, high: int) -> Symbol:
        plain = identifier(name)
        while plain in self._taken or self._symbols.setdefault(plain, name) != name:
            plain += "_"
        return Symbol(plain, low, high)

    def check_used(self) -> None:
        """Refuse a name in ``dims`` that no input has."""
        unknown = sorted(set(self._given) - self._used)
        if unknown:
            there = ", ".join(sorted(set(self._names))) or "no dynamic dimension"
            raise CaptureError(
                "PL149",
                f"dims: the model has no dimension {', '.join(map(repr, unknown))}",
                hint=f"it has {there}",
            )
