"""Rotary position embedding on a CPU, of heads in either order."""

from __future__ import annotations

from typing import Any

from planish.backends.tvm.cpu import math as elementary
from planish.backends.tvm.cpu.attention import Heads, counted
from planish.backends.tvm.cpu.flat import (
    Flat,
    each,
    fitting_lanes,
    function,
    named,
    product,
    quotient,
    remainder,
)  # fmt: skip
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

PARALLEL = 65_536
"""Numbers from which threads are worth their start."""


def build(node: Node, isa: Isa) -> Any:
    """The PrimFunc of ``kernel.rope``."""

    def body(operands: list[Flat], out: Flat) -> None:
        x, cos, sin = operands
        _turn(Heads(x, node.args[3]), Heads(out, node.args[3]), cos, sin, isa)

    return function(node, body)


def _turn(x: Heads, out: Heads, cos: Flat, sin: Flat, isa: Isa) -> None:
    batch, heads, positions, width = x.sizes
    half = int(cos.sizes[-1])
    lanes, tail = fitting_lanes(half, isa.lanes), fitting_lanes(width - 2 * half or 1, isa.lanes)
    tables = (1,) * (4 - len(cos.sizes)) + tuple(cos.sizes)

    def row(i: Any) -> None:
        pair, inner = named(quotient(i, x.data.sizes[2])), named(remainder(i, x.data.sizes[2]))
        b, outer = named(quotient(pair, x.data.sizes[1])), named(remainder(pair, x.data.sizes[1]))
        h, t = (inner, outer) if x.order == "bthd" else (outer, inner)
        table: Any = 0
        for axis, place in enumerate((b, h, t)):
            if not (isinstance(tables[axis], int) and tables[axis] == 1):
                table = table + place * product(tables[axis + 1 :])
        table, begin = named(table), named(i * width)

        def part(c: Any) -> None:
            low, high = begin + c * lanes, begin + half + c * lanes
            a, b = x.data.load(low, lanes), x.data.load(high, lanes)
            by_cos, by_sin = cos.load(table + c * lanes, lanes), sin.load(table + c * lanes, lanes)
            zero = elementary.constant(0.0, a)
            out.data.store(low, elementary.fma(a, by_cos, zero - b * by_sin), lanes)
            out.data.store(high, elementary.fma(b, by_cos, a * by_sin), lanes)

        counted(half // lanes, part)

        def rest(c: Any) -> None:
            at = begin + 2 * half + c * tail
            out.data.store(at, x.data.load(at, tail), tail)

        counted((width - 2 * half) // tail, rest)

    rows = batch * heads * positions
    each(rows, rows * width, PARALLEL, row)
