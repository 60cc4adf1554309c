"""Small questions that rules ask about the arguments they are given; each answers or declines."""

from __future__ import annotations

import math
import struct
from typing import Any

import sympy

from planish.ir.node import Node
from planish.ir.rule import Decline
from planish.ir.types import DType, Size, TensorType, bounds, equal


def number(value: Any) -> float:
    """A plain number, not a tensor and not a symbolic size."""
    if isinstance(value, (int, float)):
        return value
    raise Decline("the operand is not a plain number")


def tensor(value: Any) -> Node:
    """A tensor, not a number."""
    if isinstance(value, Node):
        return value
    raise Decline("the operand is not a tensor")


def whole(value: Any) -> Size:
    """A whole number or a size."""
    if isinstance(value, bool) or not isinstance(value, (int, sympy.Expr)):
        raise Decline("the operand is not a whole number")
    return value


def require(condition: bool, reason: str) -> None:
    """Decline with ``reason`` unless the condition holds."""
    if not condition:
        raise Decline(reason)


def typed(result: Node, like: Node) -> Node:
    """The result, if it has the type of what it replaces."""
    require(result.type == like.type, "the sizes cannot be shown to be equal")
    return result


def float_zero(value: Any, sign: float) -> bool:
    """True for a zero of the given sign."""
    return isinstance(value, float) and value == 0 and math.copysign(1.0, value) == sign


def fits(value: Size, element: DType) -> bool:
    """True if a whole number can be stored in an element type, whatever its symbols stand for."""
    low, high = bounds(value)
    top = 2 ** (element.bits - (element.kind == "int"))
    return (-top if element.kind == "int" else 0) <= low and high < top


def signed(x: Node) -> DType:
    """The element type of a tensor of signed integers."""
    require(x.dtype.kind == "int", "only for signed integers")
    return x.dtype


def integral(x: Node) -> Node:
    """A tensor of integers or truth values: every value equals itself."""
    require(x.dtype.is_integer or x.dtype.kind == "bool", "only for integers and truth values")
    return x


def truth(x: Node) -> Node:
    """A tensor of truth values."""
    require(x.dtype.kind == "bool", "only for truth values")
    return x


def full_value(value: Any, element: DType) -> Any:
    """The number that ``full(value)`` holds, as an operand of its element type."""
    if isinstance(value, sympy.Expr):
        require(element.is_integer, "a symbolic value of another element type")
        return value
    if element.kind == "bool":
        return bool(value)
    if element.is_float:
        return float(value)
    require(element.is_integer, f"a value of type {element}")
    require(math.isfinite(value) and fits(int(value), element), f"{value} is not a value of type {element}")
    return int(value)


def holds(value: Any, element: DType) -> bool:
    """True if an element type holds a value without rounding."""
    if not isinstance(value, float) or not math.isfinite(value) or element.name == "f64":
        return True
    form = {"f32": "f", "bf16": "f", "f16": "e"}.get(element.name)
    if form is None:
        return False
    try:
        stored = struct.pack("<" + form, value)
    except OverflowError:
        return False
    same = struct.unpack("<" + form, stored)[0] == value
    return bool(same and (element.name != "bf16" or stored[:2] == b"\0\0"))


def single(size: Size) -> bool:
    """True if a size is certainly one."""
    return equal(size, 1)


LOSSLESS = {
    "bool": ("u8", "i8", "i16", "i32", "i64", "f16", "bf16", "f32", "f64"),
    "u8": ("i16", "i32", "i64", "f16", "bf16", "f32", "f64"),
    "i8": ("i16", "i32", "i64", "f16", "bf16", "f32", "f64"),
    "i16": ("i32", "i64", "f32", "f64"),
    "i32": ("i64", "f64"),
    "f16": ("f32", "f64"),
    "bf16": ("f32", "f64"),
    "f32": ("f64",),
}
"""Element types to those that hold every one of their values."""


def widens(source: DType, target: DType) -> bool:
    """True if a cast keeps every value."""
    return source is target or target.name in LOSSLESS.get(source.name, ())


def broadcast_full(shape: tuple[Size, ...], kind: TensorType) -> bool:
    """True if a shape broadcasts to the shape of a type without changing it."""
    if len(shape) > kind.rank:
        return False
    pairs = zip(reversed(shape), reversed(kind.shape), strict=False)
    return all(single(have) or equal(have, want) for have, want in pairs)
