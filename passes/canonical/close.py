"""Equations that reassociate floating point: both sides agree up to rounding, within the tolerance each states."""

from __future__ import annotations

import math
from typing import Any

from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.rule import rule
from planish.ir.types import Size, equal
from planish.passes.canonical.terms import number, require, tensor, typed

F = "f32[2, 3]"
ROUNDING = 1e-6
"""A few units in the last place of f32, relative to the largest value."""
PRODUCT = 1e-5
"""Another order of summation in a product of matrices."""


def _float(x: Any) -> Node:
    require(tensor(x).dtype.is_float, "only for floating point")
    return x


@rule(lambda x, c: aten.add(x, c), kind="close", tolerance=0.0, example={"x": F, "c": 0.0})
def add_float_zero(x: Any, c: Any) -> Node:
    """x + 0.0 = x (but for the sign of a zero)"""
    require(number(c) == 0, "the number is not 0")
    return _float(x)


@rule(lambda x, a, b: aten.add(aten.add(x, a), b), kind="close", tolerance=ROUNDING,
      example={"x": F, "a": 0.5, "b": 0.25})  # fmt: skip
def add_float_chain(x: Any, a: Any, b: Any) -> Node:
    """(x + a) + b = x + (a + b) for numbers a, b"""
    return aten.add(_float(x), float(number(a) + number(b)))


@rule(lambda x, a, b: aten.mul(aten.mul(x, a), b), kind="close", tolerance=ROUNDING,
      example={"x": F, "a": 0.5, "b": 0.3})  # fmt: skip
def mul_float_chain(x: Any, a: Any, b: Any) -> Node:
    """(x * a) * b = x * (a * b) for numbers a, b"""
    product = float(number(a) * number(b))
    require(1e-30 < abs(product) < 1e30, "the product leaves the range of f32")
    return aten.mul(_float(x), product)


@rule(lambda x, c: aten.div(x, c), kind="close", tolerance=ROUNDING, example={"x": F, "c": 3.0})
def div_number(x: Any, c: Any) -> Node:
    """x / c = x * (1/c) for a number c"""
    require(1e-4 < abs(number(c)) < 1e4, "the divisor is extreme")
    return aten.mul(tensor(x), 1.0 / c)


@rule(lambda x, c: aten.pow(x, c), kind="close", tolerance=ROUNDING, example={"x": F, "c": 2.0})
def pow_float_two(x: Any, c: Any) -> Node:
    """x ** 2 = x * x"""
    require(number(c) == 2, "the exponent is not 2")
    return aten.mul(_float(x), x)


@rule(lambda x, c: aten.pow(x, c), kind="close", tolerance=0.0, example={"x": F, "c": 1.0})
def pow_one(x: Any, c: Any) -> Node:
    """x ** 1 = x"""
    require(number(c) == 1, "the exponent is not 1")
    return tensor(x)


@rule(lambda x, c: aten.pow(aten.abs(x), c), kind="close", tolerance=ROUNDING, example={"x": F, "c": 0.5})
def pow_half_abs(x: Node, c: Any) -> Node:
    """|x| ** 0.5 = sqrt(|x|)"""
    require(number(c) == 0.5, "the exponent is not 0.5")
    return aten.sqrt(aten.abs(_float(x)))


@rule(lambda x, e, c: aten.pow(aten.add(x, e), c), kind="close", tolerance=ROUNDING,
      example={"x": "f32[2, 3]", "e": 8.0, "c": 0.5})  # fmt: skip
def pow_half(x: Any, e: Any, c: Any) -> Node:
    """(x + e) ** 0.5 = sqrt(x + e); (x + e) ** -0.5 = rsqrt(x + e)"""
    require(abs(number(c)) == 0.5, "the exponent is not 0.5 or -0.5")
    root = aten.sqrt if c > 0 else aten.rsqrt
    return root(aten.add(_float(x), e))


@rule(lambda x, c: aten.pow(x, c), kind="close", tolerance=ROUNDING, example={"x": F, "c": -1.0})
def pow_minus_one(x: Any, c: Any) -> Node:
    """x ** -1 = reciprocal(x)"""
    require(number(c) == -1, "the exponent is not -1")
    return aten.reciprocal(_float(x))


@rule(lambda x: aten.reciprocal(aten.sqrt(x)), kind="close", tolerance=ROUNDING, example={"x": F})
def reciprocal_sqrt(x: Node) -> Node:
    """1 / sqrt(x) = rsqrt(x)"""
    return aten.rsqrt(x)


@rule(lambda x: aten.mul(x, aten.sigmoid(x)), kind="close", tolerance=ROUNDING, example={"x": F})
def silu(x: Any) -> Node:
    """x * sigmoid(x) = silu(x)"""
    return aten.silu(tensor(x))


@rule(lambda x, c: aten.div(x, aten.add(aten.exp(aten.neg(x)), c)), kind="close", tolerance=ROUNDING,
      example={"x": F, "c": 1.0})  # fmt: skip
def silu_exp(x: Any, c: Any) -> Node:
    """x / (exp(-x) + 1) = silu(x)"""
    require(number(c) == 1, "the number is not 1")
    return aten.silu(tensor(x))


def _near(value: Any, wanted: float) -> None:
    require(math.isclose(number(value), wanted, rel_tol=1e-3), f"the number is not {wanted:.5g}")


@rule(lambda x, h, r, c: aten.mul(aten.mul(x, h), aten.add(aten.erf(aten.mul(x, r)), c)), kind="close",
      tolerance=ROUNDING, example={"x": F, "h": 0.5, "r": 0.7071067811865476, "c": 1.0})  # fmt: skip
def gelu_erf(x: Any, h: Any, r: Any, c: Any) -> Node:
    """(x / 2) * (erf(x / sqrt(2)) + 1) = gelu(x)"""
    _near(h, 0.5)
    _near(r, math.sqrt(0.5))
    _near(c, 1.0)
    return aten.gelu(tensor(x))


@rule(lambda x, h, r, c: aten.mul(aten.mul(x, aten.add(aten.erf(aten.mul(x, r)), c)), h), kind="close",
      tolerance=ROUNDING, example={"x": F, "h": 0.5, "r": 0.7071067811865476, "c": 1.0})  # fmt: skip
def gelu_erf_last(x: Any, h: Any, r: Any, c: Any) -> Node:
    """(x * (erf(x / sqrt(2)) + 1)) / 2 = gelu(x)"""
    _near(h, 0.5)
    _near(r, math.sqrt(0.5))
    _near(c, 1.0)
    return aten.gelu(tensor(x))


# Products


@rule(lambda x, w: aten.matmul(x, aten.permute(w, [1, 0])), kind="close", tolerance=PRODUCT,
      example={"x": "f32[2, 5, 4]", "w": "f32[3, 4]"})  # fmt: skip
def matmul_linear(x: Node, w: Node) -> Node:
    """x @ W.T = linear(x, W)"""
    return aten.linear(x, w)


@rule(lambda x, w, b: aten.add(aten.linear(x, w, None), b), kind="close", tolerance=PRODUCT,
      example={"x": "f32[2, 4]", "w": "f32[3, 4]", "b": "f32[3]"})  # fmt: skip
def linear_bias(x: Node, w: Node, b: Any) -> Node:
    """linear(x, W) + b = linear(x, W, b)"""
    require(tensor(b).rank == 1 and equal(b.shape[0], w.shape[0]), "not a bias")
    return aten.linear(x, w, b)


@rule(lambda x, w, s, b: aten.add(aten.view(aten.linear(x, w, None), s), b), kind="close", tolerance=PRODUCT,
      example={"x": "f32[2, 5, 4]", "w": "f32[3, 4]", "s": (10, 3), "b": "f32[3]"})  # fmt: skip
def linear_view_bias(x: Node, w: Node, s: Any, b: Any) -> Node:
    """view(linear(x, W)) + b = view(linear(x, W, b)) if the view keeps the last axis"""
    require(tensor(b).rank == 1 and equal(b.shape[0], w.shape[0]), "not a bias")
    require(bool(s) and equal(s[-1], w.shape[0]), "the view changes the last axis")
    return aten.view(aten.linear(x, w, b), s)


def _same_rows(x: Node, flat: tuple[Size, ...]) -> None:
    require(x.rank > len(flat) and equal(x.shape[-1], flat[-1]), "the view changes the last axis")


@rule(lambda x, s, w, b: aten.linear(aten.view(x, s), w, b), kind="close", tolerance=PRODUCT,
      example={"x": "f32[2, 5, 4]", "s": (10, 4), "w": "f32[3, 4]", "b": "f32[3]"})  # fmt: skip
def linear_flat(x: Node, s: Any, w: Node, b: Any) -> Node:
    """linear(view(x, [n, k]), W, b) = view(linear(x, W, b), [n, m])"""
    _same_rows(x, s)
    left = aten.linear(aten.view(x, s), w, b)
    return typed(aten.view(aten.linear(x, w, b), left.shape), left)


@rule(lambda x, s, w: aten.matmul(aten.view(x, s), w), kind="close", tolerance=PRODUCT,
      example={"x": "f32[2, 5, 4]", "s": (10, 4), "w": "f32[4, 3]"})  # fmt: skip
def matmul_flat(x: Node, s: Any, w: Node) -> Node:
    """view(x, [n, k]) @ W = view(x @ W, [n, m])"""
    require(w.rank == 2 and len(s) == 2, "not a product with one matrix")
    _same_rows(x, s)
    left = aten.matmul(aten.view(x, s), w)
    return typed(aten.view(aten.matmul(x, w), left.shape), left)
