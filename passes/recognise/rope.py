"""Rotary position embedding in its spellings becomes ``planish.rope``.

Source: RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv 2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program
from planish.ir.rewrite import Log
from planish.ir.rule import Decline, Kind, Rule, rule
from planish.ir.types import equal
from planish.ir.weights import Weights
from planish.passes.base import Pass, rewrite_all
from planish.passes.recognise.halves import half_of

TOLERANCE = 4e-6
"""A few units in the last place of f32, relative to the largest value."""


def _half(table: Node, interleaved: bool) -> Node:
    found = half_of(table, interleaved)
    if found is None:
        raise Decline("the table does not repeat itself, as far as its structure tells")
    return found


def part(x: Node, dim: int, start: Any, end: Any) -> Node:
    """``x[start:end]`` along an axis in canonical form: a slice of a slice is one slice."""
    if start == 0 and equal(end, x.shape[dim]):
        return x
    if x.op == "aten.slice" and x.args[1] == dim and x.args[4] == 1 and isinstance(x.args[2], int):
        return aten.slice(x.args[0], dim, x.args[2] + start, x.args[2] + end)
    return aten.slice(x, dim, start, end)


def _need_halves(x: Node, low: Node, high: Node, dim: int) -> None:
    length = x.shape[-1]
    if dim != x.rank - 1 or not isinstance(length, int) or length % 2:
        raise Decline("the parts are not joined along a last axis of even size")
    if low is not part(x, dim, 0, length // 2) or high is not part(x, dim, length // 2, length):
        raise Decline("the parts are not the two halves of what is turned")


def _need_table(x: Node, table: Node) -> None:
    if table.rank > x.rank:
        raise Decline("the table has more axes than what it turns")


@rule(
    lambda x, c, s, dim, low, high: aten.add(
        aten.mul(x, c), aten.mul(aten.cat([aten.neg(high), low], dim), s)
    ),
    kind="close",
    tolerance=TOLERANCE,
    example={
        "x": "f32[B, 4, T, 16]",
        "c": lambda: aten.cos(_repeat("angles")),
        "s": lambda: aten.sin(_repeat("angles")),
        "dim": 3,
        "low": lambda: aten.slice(_turned(), 3, 0, 8),
        "high": lambda: aten.slice(_turned(), 3, 8, 16),
    },
)
def find_rope(x: Node, c: Node, s: Node, dim: int, low: Node, high: Node) -> Node:
    """x*cos + cat([-x2, x1])*sin = rope(x, cos1, sin1) where cos = cat([cos1, cos1]) and sin = cat([sin1, sin1])"""
    if not all(isinstance(v, Node) for v in (x, c, s)):
        raise Decline("a factor is a number")
    _need_halves(x, low, high, dim)
    for table in (c, s):
        _need_table(x, table)
    return planish.rope(x, _half(c, False), _half(s, False))


@rule(
    lambda x, c, s, dim, start, middle, end: aten.cat(
        [
            aten.sub(
                aten.mul(aten.slice(x, dim, start, middle), c), aten.mul(aten.slice(x, dim, middle, end), s)
            ),
            aten.add(
                aten.mul(aten.slice(x, dim, middle, end), c), aten.mul(aten.slice(x, dim, start, middle), s)
            ),
        ],
        dim,
    ),
    kind="close",
    tolerance=TOLERANCE,
    example={
        "x": "f32[B, 4, T, 16]",
        "c": "f32[T, 8]",
        "s": "f32[T, 8]",
        "dim": 3,
        "start": 0,
        "middle": 8,
        "end": 16,
    },
)
def find_rope_halves(x: Node, c: Node, s: Node, dim: int, start: Any, middle: Any, end: Any) -> Node:
    """cat([x1*cos - x2*sin, x2*cos + x1*sin]) = rope(x, cos, sin)"""
    if not all(isinstance(v, int) for v in (start, middle, end)) or middle - start != end - middle:
        raise Decline("the parts are not two neighbouring halves")
    if dim != x.rank - 1:
        raise Decline("the parts are not joined along the last axis")
    for table in (c, s):
        _need_table(x, table)
        if not equal(table.shape[-1], middle - start):
            raise Decline("the tables are not as wide as a half")
    return planish.rope(part(x, dim, start, end), c, s)


def _need_pairs(x: Node, dim: int, even: Any, odd: Any, end: Any, last: Any, step: int) -> None:
    length = x.shape[-1]
    good = even == 0 and odd == 1 and step == 2 and isinstance(length, int) and length % 2 == 0
    if dim != x.rank - 1 or not good or last != length or end not in (length, length - 1):
        raise Decline("the parts are not the even and odd places of the last axis")


def _need_pairwise_join(x: Node, wide: int, column: Any, shape: Any) -> None:
    if wide != x.rank or tuple(shape) != x.shape or len(column) != x.rank + 1 or not equal(column[-1], 1):
        raise Decline("the parts are not joined pair by pair")


@rule(
    lambda x, c, s, dim, even, odd, end, last, step, column, wide, shape: aten.add(
        aten.mul(x, c),
        aten.mul(
            aten.view(
                aten.cat(
                    [
                        aten.view(aten.neg(aten.slice(x, dim, odd, last, step)), column),
                        aten.view(aten.slice(x, dim, even, end, step), column),
                    ],
                    wide,
                ),
                shape,
            ),
            s,
        ),
    ),
    kind="close",
    tolerance=TOLERANCE,
    example={
        "x": "f32[2, 4, 6, 16]",
        "c": lambda: aten.cos(_interleave("angles")),
        "s": lambda: aten.sin(_interleave("angles")),
        "dim": 3,
        "even": 0,
        "odd": 1,
        "end": 16,
        "last": 16,
        "step": 2,
        "column": [2, 4, 6, 8, 1],
        "wide": 4,
        "shape": [2, 4, 6, 16],
    },
)
def find_rope_interleaved(
    x: Node, c: Node, s: Node, dim: int, even: Any, odd: Any, end: Any, last: Any, step: int, column: Any, wide: int,
    shape: Any,
) -> Node:  # fmt: skip
    """x*cos + stack([-x_odd, x_even])*sin = rope(x, cos1, sin1, interleaved) where cos and sin repeat each column"""
    _need_pairs(x, dim, even, odd, end, last, step)
    _need_pairwise_join(x, wide, column, shape)
    for table in (c, s):
        _need_table(x, table)
    return planish.rope(x, _half(c, True), _half(s, True), True)


@rule(
    lambda x, c, s, dim, even, odd, end, last, step, column, wide, shape: aten.view(
        aten.cat(
            [
                aten.view(
                    aten.sub(
                        aten.mul(aten.slice(x, dim, even, end, step), c),
                        aten.mul(aten.slice(x, dim, odd, last, step), s),
                    ),
                    column,
                ),
                aten.view(
                    aten.add(
                        aten.mul(aten.slice(x, dim, odd, last, step), c),
                        aten.mul(aten.slice(x, dim, even, end, step), s),
                    ),
                    column,
                ),
            ],
            wide,
        ),
        shape,
    ),
    kind="close",
    tolerance=TOLERANCE,
    example={
        "x": "f32[2, 4, 6, 16]",
        "c": "f32[6, 8]",
        "s": "f32[6, 8]",
        "dim": 3,
        "even": 0,
        "odd": 1,
        "end": 16,
        "last": 16,
        "step": 2,
        "column": [2, 4, 6, 8, 1],
        "wide": 4,
        "shape": [2, 4, 6, 16],
    },
)
def find_rope_pairs(
    x: Node, c: Node, s: Node, dim: int, even: Any, odd: Any, end: Any, last: Any, step: int, column: Any, wide: int,
    shape: Any,
) -> Node:  # fmt: skip
    """stack([x_even*cos - x_odd*sin, x_odd*cos + x_even*sin]) = rope(x, cos, sin, interleaved)"""
    _need_pairs(x, dim, even, odd, end, last, step)
    _need_pairwise_join(x, wide, column, shape)
    for table in (c, s):
        _need_table(x, table)
    return planish.rope(x, c, s, True)


@rule(
    lambda x, dim, start, middle, end, c, s, interleaved: aten.cat(
        [planish.rope(aten.slice(x, dim, start, middle), c, s, interleaved), aten.slice(x, dim, middle, end)],
        dim,
    ),
    example={
        "x": "f32[B, 4, T, 16]",
        "dim": 3,
        "start": 0,
        "middle": 8,
        "end": 16,
        "c": "f32[T, 4]",
        "s": "f32[T, 4]",
        "interleaved": False,
    },
)
def widen_partial_rope(
    x: Node, dim: int, start: Any, middle: Any, end: Any, c: Node, s: Node, interleaved: bool
) -> Node:  # fmt: skip
    """cat([rope(x1, cos, sin), x2]) = rope(x, cos, sin): the channels behind the tables are left alone"""
    if dim != x.rank - 1 or not all(isinstance(v, int) for v in (start, middle, end)):
        raise Decline("the parts are not neighbours along the last axis")
    if not equal(middle - start, 2 * c.shape[-1]):
        raise Decline("the first part is not turned as a whole")
    return planish.rope(part(x, dim, start, end), c, s, interleaved)


def _turned() -> Node:
    from planish.ir.node import input_leaf
    from planish.ir.parser import parse_type

    return input_leaf("x", parse_type("f32[B, 4, T, 16]"))


def _repeat(name: str) -> Node:
    from planish.ir.node import input_leaf
    from planish.ir.parser import parse_type

    angles = input_leaf(name, parse_type("f32[T, 8]"))
    return aten.cat([angles, angles], 1)


def _interleave(name: str) -> Node:
    from planish.ir.node import input_leaf
    from planish.ir.parser import parse_type

    angles = input_leaf(name, parse_type("f32[6, 8]"))
    return aten.view(aten.expand(aten.view(angles, [6, 8, 1]), [6, 8, 2]), [6, 16])


@cache
def rope_rules() -> tuple[Rule, ...]:
    """The rules of this pass."""
    return tuple(r for r in globals().values() if isinstance(r, Rule))


@dataclass(frozen=True)
class FindRope(Pass):
    """Half-split and interleaved rotary embedding become one operation; partial rotation too."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Apply the rules until none fires."""
        return rewrite_all(program, rope_rules(), log)
