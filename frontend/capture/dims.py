"""Dimension names asked for by the user, and torch's size expressions as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy

from planish.errors import CaptureError, UsageError
from planish.ir import types
from planish.ir.types import Size, Symbol

UNBOUNDED = 2**31 - 1


@dataclass(frozen=True)
class Wanted:
    """A dimension that shall be dynamic: its name and range."""

    name: str
    low: int = 1
    high: int = UNBOUNDED


def wanted(given: Any, fallback: str) -> Wanted | None:
    """What a user wrote for one axis: a name, ``(name, low, high)``, ``(low, high)``, a torch ``Dim`` or None."""
    if given is None or given is False:
        return None
    if isinstance(given, Wanted):
        return given
    if given is True:
        return Wanted(fallback)
    if isinstance(given, str):
        return Wanted(given)
    if isinstance(given, (tuple, list)):
        if len(given) == 3 and isinstance(given[0], str):
            return Wanted(given[0], int(given[1]), int(given[2]))
        if len(given) == 2 and all(isinstance(v, int) for v in given):
            return Wanted(fallback, *given)
    name = getattr(given, "__name__", None)
    if name is not None and hasattr(given, "min"):
        return Wanted(str(name), max(int(given.min), 1), min(int(given.max), UNBOUNDED))
    if type(given).__name__ == "_DimHint" or "Dim." in repr(given):
        return Wanted(fallback) if "STATIC" not in repr(given) else None
    raise UsageError(
        "PL852", f"a dynamic dimension is a name, (name, low, high) or a torch Dim, got {given!r}"
    )


def wanted_axes(spec: Any, rank: int, name: str) -> dict[int, Wanted]:
    """The dynamic axes of one input, from a mapping of axes or a list with one entry per axis."""
    if spec is None:
        return {}
    pairs = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
    found = {}
    for axis, given in pairs:
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise UsageError("PL852", f"{name} has {rank} axes, there is no axis {axis}")
        each = wanted(given, f"{name}_{axis % rank}")
        if each is not None:
            found[axis % rank] = each
    return found


@dataclass
class SizeTranslator:
    """torch's symbols as ours; expressions are rebuilt from dimension arithmetic."""

    symbols: dict[Any, Size] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        """A size from an ``int``, ``SymInt`` or torch expression; raises ``CaptureError`` PL102 for unknown ones."""
        if isinstance(value, (bool, int, float)):
            return value
        node = getattr(value, "node", None)
        expression = node.expr if node is not None else value
        return self.expression(expression)

    def expression(self, e: Any) -> Size:
        """One torch expression."""
        if e in self.symbols:
            return self.symbols[e]
        if isinstance(e, (int, sympy.Integer)):
            return int(e)
        if isinstance(e, sympy.Symbol):
            raise CaptureError("PL102", f"the size {e} depends on the data")
        parts = [self.expression(a) for a in e.args]
        name = type(e).__name__
        if name == "Add":
            return types.size(sympy.Add(*parts))
        if name == "Mul":
            return (
                types.product(parts)
                if all(types.at_least(p, 0) for p in parts)
                else types.size(sympy.Mul(*parts))
            )
        if name == "Pow":
            return types.size(sympy.Pow(*parts))
        if name in ("FloorDiv", "CleanDiv", "IntTrueDiv"):
            return types.floor_div(parts[0], parts[1])
        if name == "CeilToInt" or name == "CeilDiv":
            return types.size(-types.floor_div(types.size(-parts[0]), parts[1]))
        if name in ("Mod", "PythonMod"):
            return types.mod(parts[0], parts[1])
        if name in ("Max", "Min"):
            fold = types.maximum if name == "Max" else types.minimum
            out = parts[0]
            for part in parts[1:]:
                out = fold(out, part)
            return out
        raise CaptureError("PL103", f"the size {e} cannot be expressed by dimensions")


def named_symbol(name: str, low: int, high: int) -> Symbol:
    """A symbol with a name that text can hold."""
    from planish.ir.printer import identifier

    return types.dim(identifier(name), low, high)


def symbolic_axes(value: Any) -> list[tuple[int, Any]]:
    """The axes of a traced tensor whose sizes are not numbers, with those sizes; none for anything else."""
    shape: Any = getattr(value, "shape", ())
    return [(i, s) for i, s in enumerate(shape) if not isinstance(s, int) and not s.node.expr.is_number]


def free_symbols(have: Any) -> list[Any]:
    """The symbols of a traced size, in a fixed order."""
    return sorted(have.node.expr.free_symbols, key=str)
