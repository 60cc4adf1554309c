"""Exact equations of arithmetic, comparison, selection and casts: both sides are equal bit by bit."""

from __future__ import annotations

import math
from typing import Any

from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import DType, dtype, size
from planish.passes.canonical.terms import (
    fits,
    float_zero,
    full_value,
    holds,
    integral,
    number,
    require,
    signed,
    tensor,
    truth,
    typed,
    whole,
    widens,
)

F = "f32[2, 3]"
I = "i64[2, 3]"
B = "bool[2, 3]"


@rule(lambda x, c: aten.add(x, c), example={"x": F, "c": -0.0})
def add_zero(x: Any, c: Any) -> Node:
    """x + 0 = x for integers, x + -0.0 = x for floating point (x + 0.0 turns -0.0 into 0.0)"""
    require(float_zero(c, -1.0) or (type(c) is int and c == 0), "nothing is added only by 0 and by -0.0")
    require(not (type(c) is int and tensor(x).dtype.is_float), "x + 0.0 turns -0.0 into 0.0")
    return tensor(x)


@rule(lambda x, c: aten.sub(x, c), example={"x": F, "c": 0.5})
def sub_number(x: Any, c: Any) -> Node:
    """x - c = x + -c for a number c"""
    if isinstance(c, float):
        return aten.add(tensor(x), -c)
    if tensor(x).dtype.is_float:
        return aten.add(x, -float(number(c)))
    require(fits(size(-whole(c)), signed(x)), "the negated number does not fit")
    return aten.add(x, size(-c))


@rule(lambda x, a, b: aten.add(aten.add(x, a), b), example={"x": I, "a": 2, "b": 3})
def add_chain(x: Any, a: Any, b: Any) -> Node:
    """(x + a) + b = x + (a + b) for integers a, b"""
    total = size(whole(a) + whole(b))
    require(fits(total, signed(tensor(x))), "the sum does not fit")
    return aten.add(x, total)


@rule(lambda x, a, b: aten.mul(aten.mul(x, a), b), example={"x": I, "a": 2, "b": 3})
def mul_chain(x: Any, a: Any, b: Any) -> Node:
    """(x * a) * b = x * (a * b) for integers a, b"""
    total = size(whole(a) * whole(b))
    require(fits(total, signed(tensor(x))), "the product does not fit")
    return aten.mul(x, total)


@rule(lambda x: aten.sub(x, x), example={"x": I})
def sub_self(x: Any) -> Node:
    """x - x = 0 for integers"""
    return aten.full(integral(tensor(x)).shape, 0, x.dtype)


@rule(lambda x, y: aten.add(x, aten.neg(y)), example={"x": F, "y": F})
def add_negated(x: Any, y: Any) -> Node:
    """x + -y = x - y"""
    return aten.sub(x, y)


@rule(lambda x, y: aten.sub(x, aten.neg(y)), example={"x": F, "y": F})
def sub_negated(x: Any, y: Any) -> Node:
    """x - -y = x + y"""
    return aten.add(x, y)


@rule(lambda x: aten.neg(aten.neg(x)), example={"x": F})
def neg_neg(x: Node) -> Node:
    """--x = x"""
    return x


@rule(lambda x, c: aten.mul(x, c), example={"x": F, "c": 1.0})
def mul_one(x: Any, c: Any) -> Node:
    """x * 1 = x"""
    require(number(c) == 1, "the factor is not 1")
    return tensor(x)


@rule(lambda x, c: aten.mul(x, c), example={"x": F, "c": -1.0})
def mul_minus_one(x: Any, c: Any) -> Node:
    """x * -1 = -x"""
    require(number(c) == -1, "the factor is not -1")
    return aten.neg(tensor(x))


@rule(lambda x, c: aten.mul(x, c), example={"x": I, "c": 0})
def mul_zero(x: Any, c: Any) -> Node:
    """x * 0 = 0 for integers"""
    require(number(c) == 0, "the factor is not 0")
    return aten.full(integral(tensor(x)).shape, 0, x.dtype)


@rule(lambda x, y: aten.mul(aten.neg(x), aten.neg(y)), example={"x": F, "y": F})
def mul_negated(x: Node, y: Node) -> Node:
    """-x * -y = x * y"""
    return aten.mul(x, y)


@rule(lambda x, c: aten.div(x, c), example={"x": F, "c": 8.0})
def div_power_of_two(x: Any, c: Any) -> Node:
    """x / c = x * (1/c) for c = 1 and other powers of two of moderate size"""
    magnitude, exponent = math.frexp(number(c))
    require(abs(magnitude) == 0.5 and abs(exponent) < 14, "the divisor is no moderate power of two")
    require(tensor(x).dtype.bits > 8, "one byte holds few powers of two")
    return aten.mul(x, 1.0 / c)


@rule(lambda x, c: aten.div(c, x), example={"x": F, "c": 1.0})
def div_one(x: Any, c: Any) -> Node:
    """1 / x = reciprocal(x)"""
    require(number(c) == 1, "the dividend is not 1")
    return aten.reciprocal(tensor(x))


@rule(lambda x, c: aten.pow(x, c), example={"x": I, "c": 2})
def pow_two(x: Any, c: Any) -> Node:
    """x ** 2 = x * x for integers"""
    require(number(c) == 2 and tensor(x).dtype.is_integer, "only for the square of integers")
    return aten.mul(x, x)


@rule(lambda x: aten.abs(aten.neg(x)), example={"x": F})
def abs_neg(x: Node) -> Node:
    """|-x| = |x|"""
    return aten.abs(x)


@rule(lambda x: aten.maximum(x, x), example={"x": F})
def maximum_self(x: Any) -> Node:
    """max(x, x) = x"""
    return tensor(x)


@rule(lambda x: aten.minimum(x, x), example={"x": F})
def minimum_self(x: Any) -> Node:
    """min(x, x) = x"""
    return tensor(x)


# Casts


@rule(lambda x, d: aten.to(x, d), example={"x": F, "d": dtype("f32")})
def cast_same(x: Node, d: DType) -> Node:
    """to(x, t) = x if x has element type t"""
    require(x.dtype is d, "the element type changes")
    return x


@rule(
    lambda x, a, b: aten.to(aten.to(x, a), b), example={"x": "f16[4]", "a": dtype("f32"), "b": dtype("f16")}
)
def cast_cast(x: Node, a: DType, b: DType) -> Node:
    """to(to(x, a), b) = to(x, b) if a holds every value of x"""
    require(widens(x.dtype, a), f"{a} does not hold every value of {x.dtype}")
    return aten.to(x, b)


@rule(lambda s, v, a, b: aten.to(aten.full(s, v, a), b),
      example={"s": (2, 3), "v": 2.5, "a": dtype("f32"), "b": dtype("f16")})  # fmt: skip
def cast_full(s: Any, v: Any, a: DType, b: DType) -> Node:
    """to(full(v, a), b) = full(v, b) if the value survives the first type"""
    value = full_value(v, a)
    require(holds(value, a), "the value is rounded")
    if isinstance(value, float) and not b.is_float:
        require(math.isfinite(value), "not a number of the other type")
        value = int(value) if b.is_integer else value != 0
    if b.is_integer:
        require(fits(size(int(value) if isinstance(value, bool) else value), b), "the value does not fit")
    return aten.full(s, full_value(value, b), b)


# Truth values


@rule(lambda x: aten.logical_not(aten.logical_not(x)), example={"x": B})
def not_not(x: Node) -> Node:
    """not not x = x for truth values"""
    return truth(x)


@rule(lambda x: aten.bitwise_not(aten.bitwise_not(x)), example={"x": I})
def invert_invert(x: Node) -> Node:
    """~~x = x"""
    return x


@rule(lambda x: aten.bitwise_not(x), example={"x": B})
def invert_truth(x: Node) -> Node:
    """~x = not x for truth values"""
    return aten.logical_not(truth(x))


@rule(lambda x, c: aten.bitwise_and(x, c), example={"x": B, "c": True})
def and_number(x: Any, c: Any) -> Node:
    """x & True = x; x & False = False"""
    element = truth(tensor(x)).dtype
    return x if number(c) else aten.full(x.shape, False, element)


@rule(lambda x, c: aten.bitwise_or(x, c), example={"x": B, "c": False})
def or_number(x: Any, c: Any) -> Node:
    """x | False = x; x | True = True"""
    element = truth(tensor(x)).dtype
    return aten.full(x.shape, True, element) if number(c) else x


@rule(lambda x, c: aten.bitwise_xor(x, c), example={"x": B, "c": True})
def xor_number(x: Any, c: Any) -> Node:
    """x ^ False = x; x ^ True = not x"""
    truth(tensor(x))
    return aten.logical_not(x) if number(c) else x


@rule(lambda x: aten.bitwise_and(x, x), example={"x": B})
def and_self(x: Any) -> Node:
    """x & x = x"""
    return tensor(x)


@rule(lambda x: aten.bitwise_or(x, x), example={"x": B})
def or_self(x: Any) -> Node:
    """x | x = x"""
    return tensor(x)


@rule(lambda a, b: aten.logical_not(aten.eq(a, b)), example={"a": F, "b": F})
def not_eq(a: Any, b: Any) -> Node:
    """not (a == b) = a != b"""
    return aten.ne(a, b)


@rule(lambda a, b: aten.logical_not(aten.ne(a, b)), example={"a": F, "b": F})
def not_ne(a: Any, b: Any) -> Node:
    """not (a != b) = a == b"""
    return aten.eq(a, b)


def _ordered(*operands: Any) -> None:
    for each in operands:
        if isinstance(each, Node):
            integral(each)


@rule(lambda a, b: aten.logical_not(aten.lt(a, b)), example={"a": I, "b": I})
def not_lt(a: Any, b: Any) -> Node:
    """not (a < b) = a >= b for integers"""
    _ordered(a, b)
    return aten.ge(a, b)


@rule(lambda a, b: aten.logical_not(aten.le(a, b)), example={"a": I, "b": I})
def not_le(a: Any, b: Any) -> Node:
    """not (a <= b) = a > b for integers"""
    _ordered(a, b)
    return aten.gt(a, b)


@rule(lambda a, b: aten.logical_not(aten.gt(a, b)), example={"a": I, "b": I})
def not_gt(a: Any, b: Any) -> Node:
    """not (a > b) = a <= b for integers"""
    _ordered(a, b)
    return aten.le(a, b)


@rule(lambda a, b: aten.logical_not(aten.ge(a, b)), example={"a": I, "b": I})
def not_ge(a: Any, b: Any) -> Node:
    """not (a >= b) = a < b for integers"""
    _ordered(a, b)
    return aten.lt(a, b)


@rule(lambda x: aten.eq(x, x), example={"x": I})
def eq_self(x: Any) -> Node:
    """(x == x) = True for integers (NaN differs from itself)"""
    return aten.full(integral(tensor(x)).shape, True, dtype("bool"))


@rule(lambda x: aten.ne(x, x), example={"x": I})
def ne_self(x: Any) -> Node:
    """(x != x) = False for integers (NaN differs from itself)"""
    return aten.full(integral(tensor(x)).shape, False, dtype("bool"))


@rule(lambda x: aten.le(x, x), example={"x": I})
def le_self(x: Any) -> Node:
    """(x <= x) = True for integers"""
    return aten.full(integral(tensor(x)).shape, True, dtype("bool"))


@rule(lambda x: aten.ge(x, x), example={"x": I})
def ge_self(x: Any) -> Node:
    """(x >= x) = True for integers"""
    return aten.full(integral(tensor(x)).shape, True, dtype("bool"))


@rule(lambda x: aten.lt(x, x), example={"x": F})
def lt_self(x: Any) -> Node:
    """(x < x) = False"""
    return aten.full(tensor(x).shape, False, dtype("bool"))


@rule(lambda x: aten.gt(x, x), example={"x": F})
def gt_self(x: Any) -> Node:
    """(x > x) = False"""
    return aten.full(tensor(x).shape, False, dtype("bool"))


@rule(lambda x, c: aten.eq(x, c), example={"x": B, "c": True})
def eq_truth(x: Any, c: Any) -> Node:
    """(x == True) = x; (x == False) = not x for truth values"""
    truth(tensor(x))
    return x if number(c) else aten.logical_not(x)


@rule(lambda x, c: aten.ne(x, c), example={"x": B, "c": False})
def ne_truth(x: Any, c: Any) -> Node:
    """(x != False) = x; (x != True) = not x for truth values"""
    truth(tensor(x))
    return aten.logical_not(x) if number(c) else x


# Selection


@rule(lambda s, v, d, a, b: aten.where(aten.full(s, v, d), a, b),
      example={"s": (2, 3), "v": True, "d": dtype("bool"), "a": F, "b": 0.0})  # fmt: skip
def where_full(s: Any, v: Any, d: DType, a: Any, b: Any) -> Node:
    """where(full(True), a, b) = a; where(full(False), a, b) = b"""
    whole_type = aten.where(aten.full(s, v, d), a, b)
    chosen = a if number(v) else b
    if not isinstance(chosen, Node):
        return aten.full(whole_type.shape, chosen, whole_type.dtype)
    return aten.expand(chosen, whole_type.shape)


@rule(lambda c, x: aten.where(c, x, x), example={"c": B, "x": "f32[3]"})
def where_same(c: Node, x: Any) -> Node:
    """where(c, x, x) = x"""
    return aten.expand(tensor(x), aten.where(c, x, x).shape)


@rule(lambda c, a, b: aten.where(aten.logical_not(c), a, b), example={"c": B, "a": F, "b": F})
def where_not(c: Node, a: Any, b: Any) -> Node:
    """where(not c, a, b) = where(c, b, a)"""
    return aten.where(truth(c), b, a)


@rule(lambda c, a, b, d: aten.where(c, aten.where(c, a, d), b), example={"c": B, "a": F, "b": F, "d": F})
def where_nested(c: Node, a: Any, b: Any, d: Any) -> Node:
    """where(c, where(c, a, d), b) = where(c, a, b)"""
    if not (isinstance(a, Node) or isinstance(b, Node)):
        raise Decline("one choice must be a tensor")
    return typed(aten.where(c, a, b), aten.where(c, aten.where(c, a, d), b))
