"""Equations that hold for every pointwise operation, made from the dialect: one rule for each operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planish.ir.dialect import OPERATIONS, Operation, load_all
from planish.ir.namespace import aten, call
from planish.ir.node import Node
from planish.ir.rule import Rule, rule
from planish.ir.types import DType, dtype
from planish.passes.canonical.terms import broadcast_full, full_value, require, tensor, typed

ROUNDED_ALIKE = frozenset(
    ("neg", "abs", "sign", "relu", "floor", "ceil", "round", "trunc", "sqrt", "reciprocal")
    + ("isnan", "isinf", "logical_not", "bitwise_not")
)
"""Functions of one operand whose result does not depend on where in memory the operand is."""

ROUNDED_APART = frozenset({"pow", "atan2"})
"""Functions of two operands that eager torch computes by vectors and, at the ends, one by one with other rounding."""


def _kind(row: Operation) -> dict[str, Any]:
    alike = _short(row) in ROUNDED_ALIKE or (len(row.parameters) == 2 and _short(row) not in ROUNDED_APART)
    return {"kind": "exact"} if alike else {"kind": "close", "tolerance": 1e-6}


def _named(function: Callable[..., Any], name: str, equation: str) -> Callable[..., Any]:
    function.__name__, function.__doc__ = name, equation
    return function


def _short(row: Operation) -> str:
    return row.name.partition(".")[2]


def _element(row: Operation) -> str:
    if "bitwise" not in row.name:
        return "f32"
    return "i64" if "shift" in row.name else "bool"


def _binary_rules(row: Operation) -> list[Rule]:
    made = [_full_right(row), _expand_right(row)]
    if not row.commutative:
        made += [_full_left(row), _expand_left(row)]
    return made


def _as_number(x: Any, s: Any, v: Any, d: DType) -> Any:
    require(broadcast_full(s, tensor(x).tensor), "the constant makes the result larger")
    return full_value(v, d)


def _full_right(row: Operation) -> Rule:
    def right(x: Any, s: Any, v: Any, d: DType) -> Node:
        left = call(row.name, tensor(x), aten.full(s, v, d))
        return typed(call(row.name, x, _as_number(x, s, v, d)), left)

    element = _element(row)
    example = {"x": f"{element}[2, 3]", "s": (3,), "v": 1, "d": dtype(element)}
    named = _named(right, f"{_short(row)}_full", f"{_short(row)}(x, full(v)) = {_short(row)}(x, v)")
    return rule(lambda x, s, v, d: call(row.name, x, aten.full(s, v, d)), example=example, **_kind(row))(
        named
    )


def _full_left(row: Operation) -> Rule:
    def right(x: Any, s: Any, v: Any, d: DType) -> Node:
        left = call(row.name, aten.full(s, v, d), tensor(x))
        return typed(call(row.name, _as_number(x, s, v, d), x), left)

    element = _element(row)
    example = {"x": f"{element}[2, 3]", "s": (3,), "v": 1, "d": dtype(element)}
    named = _named(right, f"full_{_short(row)}", f"{_short(row)}(full(v), x) = {_short(row)}(v, x)")
    return rule(lambda x, s, v, d: call(row.name, aten.full(s, v, d), x), example=example, **_kind(row))(
        named
    )


def _expand_right(row: Operation) -> Rule:
    def right(x: Any, y: Node, s: Any) -> Node:
        return typed(call(row.name, tensor(x), y), call(row.name, x, aten.expand(y, s)))

    element = _element(row)
    example = {"x": f"{element}[2, 3]", "y": f"{element}[3]", "s": (2, 3)}
    named = _named(right, f"{_short(row)}_expand", f"{_short(row)}(x, expand(y)) = {_short(row)}(x, y)")
    return rule(lambda x, y, s: call(row.name, x, aten.expand(y, s)), example=example, **_kind(row))(named)


def _expand_left(row: Operation) -> Rule:
    def right(x: Node, y: Any, s: Any) -> Node:
        return typed(call(row.name, x, tensor(y)), call(row.name, aten.expand(x, s), y))

    element = _element(row)
    example = {"x": f"{element}[3]", "y": f"{element}[2, 3]", "s": (2, 3)}
    named = _named(right, f"expand_{_short(row)}", f"{_short(row)}(expand(x), y) = {_short(row)}(x, y)")
    return rule(lambda x, y, s: call(row.name, aten.expand(x, s), y), example=example, **_kind(row))(named)


def _unary_rule(row: Operation) -> Rule:
    def right(x: Node, s: Any) -> Node:
        return aten.expand(call(row.name, x), s)

    element = "i64" if row.name == "aten.bitwise_not" else "f32"
    named = _named(right, f"{_short(row)}_of_expand", f"{_short(row)}(expand(x)) = expand({_short(row)}(x))")
    example = {"x": f"{element}[3]", "s": (2, 3)}
    return rule(lambda x, s: call(row.name, aten.expand(x, s)), example=example, **_kind(row))(named)


@rule(lambda x, s, d: aten.to(aten.expand(x, s), d), example={"x": "f32[3]", "s": (2, 3), "d": dtype("i64")})
def to_of_expand(x: Node, s: Any, d: DType) -> Node:
    """to(expand(x), t) = expand(to(x, t))"""
    return aten.expand(aten.to(x, d), s)


@rule(lambda c, s, a, b: aten.where(aten.expand(c, s), a, b),
      example={"c": "bool[3]", "s": (2, 3), "a": "f32[2, 3]", "b": 0.0})  # fmt: skip
def where_expand(c: Node, s: Any, a: Any, b: Any) -> Node:
    """where(expand(c), a, b) = where(c, a, b) if a choice has the whole shape"""
    return typed(aten.where(c, a, b), aten.where(aten.expand(c, s), a, b))


@rule(lambda c, s, v, d, b: aten.where(c, aten.full(s, v, d), b),
      example={"c": "bool[2, 3]", "s": (), "v": 1.5, "d": dtype("f32"), "b": "f32[2, 3]"})  # fmt: skip
def where_full_then(c: Node, s: Any, v: Any, d: DType, b: Any) -> Node:
    """where(c, full(v), b) = where(c, v, b) if b is a tensor"""
    left = aten.where(c, aten.full(s, v, d), tensor(b))
    return typed(aten.where(c, full_value(v, d), b), left)


@rule(lambda c, a, s, v, d: aten.where(c, a, aten.full(s, v, d)),
      example={"c": "bool[2, 3]", "a": "f32[2, 3]", "s": (), "v": 1.5, "d": dtype("f32")})  # fmt: skip
def where_full_else(c: Node, a: Any, s: Any, v: Any, d: DType) -> Node:
    """where(c, a, full(v)) = where(c, a, v) if a is a tensor"""
    left = aten.where(c, tensor(a), aten.full(s, v, d))
    return typed(aten.where(c, a, full_value(v, d)), left)


def _pointwise() -> tuple[Rule, ...]:
    load_all()
    made = [to_of_expand, where_expand, where_full_then, where_full_else]
    for row in list(OPERATIONS.values()):
        kinds = [p.kind for p in row.parameters]
        if row.pointwise and kinds == ["operand", "operand"]:
            made += _binary_rules(row)
        elif row.pointwise and kinds == ["tensor"]:
            made.append(_unary_rule(row))
    return tuple(made)


POINTWISE: tuple[Rule, ...] = _pointwise()
"""The rules made from the dialect."""
