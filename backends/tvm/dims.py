"""Sizes of the IR as expressions of TIR."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
from tvm import tirx

from planish.errors import BackendError
from planish.ir.types import Size, Symbol


class Dims:
    """One TIR variable (i64) for each symbol, within one function."""

    def __init__(self) -> None:
        self.vars: dict[Symbol, Any] = {}

    def var(self, symbol: Symbol) -> Any:
        """The variable that stands for a symbol."""
        if symbol not in self.vars:
            self.vars[symbol] = tirx.Var(symbol.name, "int64")
        return self.vars[symbol]

    def __call__(self, size: Size) -> Any:
        """A plain ``int`` for a number, else an i64 expression."""
        return size if isinstance(size, int) else self._expression(size)

    def shape(self, sizes: Iterable[Size]) -> list[Any]:
        """All sizes of a shape."""
        return [self(s) for s in sizes]

    def _expression(self, e: Any) -> Any:
        if isinstance(e, Symbol):
            return self.var(e)
        if e.is_Integer:
            return tirx.IntImm("int64", int(e))
        parts = [self._expression(a) for a in e.args] if not isinstance(e, sympy.floor) else []
        if isinstance(e, sympy.Add):
            return _folded(parts, lambda a, b: a + b)
        if isinstance(e, sympy.Mul) and all(a.is_integer for a in e.args):
            return _folded(parts, lambda a, b: a * b)
        if isinstance(e, sympy.Pow) and e.exp.is_Integer and int(e.exp) > 0:
            return _folded([parts[0]] * int(e.exp), lambda a, b: a * b)
        if isinstance(e, sympy.Max):
            return _folded(parts, tirx.max)
        if isinstance(e, sympy.Min):
            return _folded(parts, tirx.min)
        if isinstance(e, sympy.Mod):
            return tirx.floormod(*parts)
        if isinstance(e, sympy.floor):
            top, bottom = sympy.fraction(sympy.together(e.args[0]))
            return tirx.floordiv(self._expression(top), self._expression(bottom))
        raise BackendError("PL750", f"the size {e} has no form in TIR")


def _folded(parts: list[Any], combine: Any) -> Any:
    first, *rest = parts
    for part in rest:
        first = combine(first, part)
    return first
