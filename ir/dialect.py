"""The closed table of operations. What has no row here is not IR.

A row names the operation, its parameters and its shape rule. Parameters are written ``name:kind=default``; a bare
name is a tensor. Kinds: ``tensor``, ``tensor?`` (or None), ``tensors``, ``tensors?`` (a list that may hold None),
``operand`` (tensor, number or size), ``axis``, ``axes``, ``axes?`` (None means all), ``size``, ``sizes``, ``number``,
``bool``, ``int``, ``ints``, ``float``, ``float?``, ``str``, ``dtype``, ``program``, ``any``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from planish.errors import ShapeError
from planish.ir import shapes
from planish.ir.node import Node, Program
from planish.ir.types import DTYPES, DType, Symbol, TensorType, size

_REQUIRED = object()


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operation."""

    name: str
    kind: str
    default: Any = _REQUIRED

    @property
    def required(self) -> bool:
        """True if there is no default."""
        return self.default is _REQUIRED


@dataclass(frozen=True)
class Operation:
    """A row of the dialect: parameters, shape rule, algebraic facts and the eager implementation."""

    name: str
    parameters: tuple[Parameter, ...]
    rule: Callable[..., Any]
    commutative: bool = False
    pointwise: bool = False
    torch: str | Callable[..., Any] = ""
    doc: str = ""
    canonical: Callable[..., tuple[Any, ...]] | None = None

    def signature(self) -> str:
        """The operation as it is called, with defaults."""
        shown = [p.name if p.required else f"{p.name}={p.default}" for p in self.parameters]
        return f"{self.name}({', '.join(shown)})"


OPERATIONS: dict[str, Operation] = {}


def _parameter(text: str) -> Parameter:
    head, _, default = text.strip().partition("=")
    name, _, kind = head.partition(":")
    kind = kind or "tensor"
    if not default:
        return Parameter(name, kind)
    values: dict[str, Any] = {"None": None, "True": True, "False": False, "()": (), **DTYPES}
    if default in values:
        return Parameter(name, kind, values[default])
    if default.startswith("'"):
        return Parameter(name, kind, default.strip("'"))
    return Parameter(name, kind, float(default) if "." in default or "e" in default else int(default))


def define(
    name: str, signature: str, rule: Callable[..., Any], *, torch: str | Callable[..., Any] = "",
    commutative: bool = False, pointwise: bool = False,
    doc: str = "", canonical: Callable[..., tuple[Any, ...]] | None = None,
) -> Operation:  # fmt: skip
    """Add a row; ``torch`` is the ATen overload (default: the one named like the row) or an eager function."""
    if name in OPERATIONS:
        raise ShapeError("PL305", f"{name} is already in the dialect")
    parameters = tuple(_parameter(p) for p in signature.split(",") if p.strip())
    row = Operation(
        name,
        parameters,
        rule,
        commutative,
        pointwise,
        torch or name.removeprefix("aten.") + ".default",
        doc,
        canonical,
    )
    OPERATIONS[name] = row
    return row


def operation(name: str) -> Operation:
    """The row called ``name``; raises ``ShapeError`` PL306 with the nearest names."""
    row = OPERATIONS.get(name)
    if row is None:
        import difflib

        near = difflib.get_close_matches(name, OPERATIONS, 3)
        raise ShapeError(
            "PL306",
            f"{name} is not in the dialect",
            hint=f"did you mean {', '.join(near)}?" if near else None,
        )
    return row


def _axis(value: Any, rank: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise shapes.Mismatch(f"{what} must be a whole number, got {value!r}")
    if not -max(rank, 1) <= value < max(rank, 1):
        raise shapes.Mismatch(f"{what} {value} is outside of the {rank} axes")
    return value % max(rank, 1)


def _is_size(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, sympy.Expr)


def _normalise(parameter: Parameter, value: Any, rank: int) -> Any:
    """One argument in its canonical form; raises ``Mismatch``."""
    kind, name = parameter.kind, parameter.name
    if isinstance(value, list):
        value = tuple(value)
    if kind.endswith("?") and value is None:
        return tuple(range(rank)) if kind == "axes?" else None
    kind = kind.rstrip("?")
    if kind == "tensor":
        good = isinstance(value, Node)
    elif kind == "tensors":
        good = isinstance(value, tuple) and all(
            isinstance(v, Node) or (v is None and parameter.kind[-1] == "?") for v in value
        )
    elif kind == "operand":
        if isinstance(value, sympy.Expr) and not isinstance(value, Symbol):
            value = size(value)
        good = isinstance(value, (Node, int, float, sympy.Expr))
    elif kind == "axis":
        return _axis(value, rank, name)
    elif kind == "axes":
        value = (value,) if isinstance(value, int) else value
        if not isinstance(value, tuple):
            raise shapes.Mismatch(f"{name} must be a list of axes, got {value!r}")
        axes = tuple(_axis(v, rank, name) for v in value)
        if len(set(axes)) != len(axes):
            raise shapes.Mismatch(f"{name} names an axis twice: {list(value)}")
        return axes
    elif kind == "size":
        good = _is_size(value)
        value = size(value) if good else value
    elif kind == "sizes":
        good = isinstance(value, tuple) and all(_is_size(v) for v in value)
        value = tuple(size(v) for v in value) if good else value
    elif kind == "ints":
        good = isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    elif kind == "number":
        good = isinstance(value, (int, float)) or _is_size(value)
    elif kind == "float":
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if good else value
    else:
        accepted: Mapping[str, type] = {
            "bool": bool,
            "int": int,
            "str": str,
            "dtype": DType,
            "program": Program,
            "any": object,
        }
        good = isinstance(value, accepted[kind])
    if not good:
        raise shapes.Mismatch(f"{name} must be {'a ' + parameter.kind}, got {value!r}")
    return value


def bind(row: Operation, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """All arguments in order, defaults filled in, axes non-negative, sizes canonical; raises ``Mismatch``."""
    if len(args) > len(row.parameters):
        raise shapes.Mismatch(f"takes {len(row.parameters)} arguments, got {len(args)}")
    given = dict(zip((p.name for p in row.parameters), args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            raise shapes.Mismatch(f"{name} is given twice")
        if all(p.name != name for p in row.parameters):
            raise shapes.Mismatch(f"has no parameter {name}; it is {row.signature()}")
        given[name] = value
    rank = _rank(row, given)
    bound = []
    for parameter in row.parameters:
        if parameter.name not in given:
            if parameter.required:
                raise shapes.Mismatch(f"needs {parameter.name}; it is {row.signature()}")
            given[parameter.name] = parameter.default
        bound.append(_normalise(parameter, given[parameter.name], rank))
    return row.canonical(*bound) if row.canonical is not None else tuple(bound)


def _rank(row: Operation, given: Mapping[str, Any]) -> int:
    for parameter in row.parameters:
        value = given.get(parameter.name)
        if isinstance(value, (tuple, list)) and parameter.kind == "tensors" and value:
            value = value[0]
        if isinstance(value, Node) and isinstance(value.type, TensorType):
            return value.rank
    return 0


def load_all() -> None:
    """Fill the table (idempotent)."""
    from planish.ir import ops

    ops.load()  # each family fills its rows when it is imported, which may have happened to some already


__all__ = ["OPERATIONS", "Operation", "Parameter", "bind", "define", "load_all", "operation"]
