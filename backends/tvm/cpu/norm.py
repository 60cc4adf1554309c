"""Normalization of the last axis on a CPU: rows stay in the nearest cache, sums have several registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from planish.backends.tvm.cpu import math as elementary
from planish.backends.tvm.cpu.attention import counted, maximum
from planish.backends.tvm.cpu.emit import splat
from planish.backends.tvm.cpu.flat import (
    Flat,
    Registers,
    across,
    add,
    each,
    function,
    named,
    product,
    quotient,
    real,
    scratch,
    vectors,
)  # fmt: skip
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

PARALLEL = 65_536
"""Numbers from which threads are worth their start."""

SUMS = 4
"""Registers of a sum."""

Step = Callable[[Any, int, int], None]
"""``step(index, lanes, number)``: what is done with ``lanes`` elements, in the register ``number`` of a sum."""


@dataclass(frozen=True)
class Row:
    """A row in work: where it begins, its length, and the lanes of a vector."""

    begin: Any
    length: Any
    lanes: int

    def visit(self, step: Step) -> None:
        """Every element once: groups of vectors, vectors, then single elements."""
        group = SUMS * self.lanes
        groups = named(quotient(self.length, group))

        def some(i: Any) -> None:
            for n in range(SUMS):
                step(i * group + n * self.lanes, self.lanes, n)

        counted(groups, some)
        vector_count = named(quotient(self.length, self.lanes))
        counted(vector_count - groups * SUMS, lambda i: step((groups * SUMS + i) * self.lanes, self.lanes, 0))
        counted(
            self.length - vector_count * self.lanes, lambda i: step(vector_count * self.lanes + i, 1, SUMS)
        )

    def reduced(
        self, value: Callable[[Any, int], Any], combine: Callable[[Any, Any], Any], first: float
    ) -> Any:
        """All values ``value(index, lanes)`` of the row combined into one scalar."""
        wide, single = vectors(SUMS, self.lanes), vectors(1, 1)
        wide.fill(first)
        single.fill(first)

        def step(index: Any, lanes: int, number: int) -> None:
            place, into = (0, single) if lanes == 1 and number == SUMS else (number, wide)
            into.put(place, combine(value(index, lanes), into.get(place)))

        self.visit(step)
        pairs = combine(combine(wide.get(0), wide.get(1)), combine(wide.get(2), wide.get(3)))
        return named(combine(across(pairs, self.lanes, combine), single.get(0)))


def build(node: Node, isa: Isa) -> Any:
    """The PrimFunc of ``kernel.rms_norm``, ``kernel.layer_norm`` or ``kernel.softmax``."""
    if node.op == "kernel.softmax":
        return function(node, lambda operands, out: _rows(operands[0], out, isa, _softmax(operands[0], out)))
    return function(node, lambda operands, out: _normalized(node, isa, operands, out))


def _rows(x: Flat, out: Flat, isa: Isa, one: Callable[[Row], None]) -> None:
    length = out.sizes[-1]
    count = product(out.sizes[:-1])
    each(count, count * length, PARALLEL, lambda i: one(Row(named(i * length), length, isa.lanes)))


def _normalized(node: Node, isa: Isa, operands: list[Flat], out: Flat) -> None:
    rest = iter(operands[1:])
    names = ("weight", "residual") if node.op == "kernel.rms_norm" else ("weight", "bias", "residual")
    given = {
        name: next(rest) for name, arg in zip(names, node.args[1:], strict=False) if isinstance(arg, Node)
    }
    x, weight, bias, residual = operands[0], given.get("weight"), given.get("bias"), given.get("residual")
    length, eps = int(out.sizes[-1]), float(node.args[-1])

    def one(row: Row) -> None:
        held = None if residual is None else scratch(length)
        source = Flat(held, (length,)) if held is not None else x
        start = 0 if held is not None else row.begin
        if residual is not None:
            _add_rows(row, x, residual, source)

        def read(index: Any, lanes: int) -> Any:
            return source.load(start + index, lanes)

        mean = None
        if node.op == "kernel.layer_norm":
            mean = named(row.reduced(read, add, 0.0) * real(1.0 / length))

        def centred(index: Any, lanes: int) -> Any:
            return read(index, lanes) if mean is None else read(index, lanes) - splat(mean, lanes)

        def square(index: Any, lanes: int) -> Any:
            return elementary.bind(centred(index, lanes), lambda v: v * v)

        spread = row.reduced(square, add, 0.0) * real(1.0 / length) + real(eps)
        factor = named(real(1.0) / tirx.sqrt(spread))

        def write(index: Any, lanes: int, _: int) -> None:
            value = centred(index, lanes) * splat(factor, lanes)
            if weight is not None:
                value = value * weight.load(index, lanes)
            if bias is not None:
                value = value + bias.load(index, lanes)
            out.store(row.begin + index, value, lanes)

        row.visit(write)

    _rows(x, out, isa, one)


def _add_rows(row: Row, x: Flat, residual: Flat, into: Flat) -> None:
    def step(index: Any, lanes: int, _: int) -> None:
        at = row.begin + index
        into.store(index, x.load(at, lanes) + residual.load(at, lanes), lanes)

    row.visit(step)


def _softmax(x: Flat, out: Flat) -> Callable[[Row], None]:
    def one(row: Row) -> None:
        top = row.reduced(lambda index, lanes: x.load(row.begin + index, lanes), maximum, -math.inf)
        sums, single = vectors(SUMS, row.lanes), vectors(1, 1)
        sums.fill(0.0)
        single.fill(0.0)

        def exponential(index: Any, lanes: int, number: int) -> None:
            at = row.begin + index
            out.store(at, elementary.exp(x.load(at, lanes) - splat(top, lanes)), lanes)
            place, into = (0, single) if number == SUMS else (number, sums)
            into.put(place, into.get(place) + out.load(at, lanes))

        row.visit(exponential)
        total = across(_sum(sums), row.lanes, add) + single.get(0)
        factor = named(real(1.0) / total)

        def scale(index: Any, lanes: int, _: int) -> None:
            at = row.begin + index
            out.store(at, out.load(at, lanes) * splat(factor, lanes), lanes)

        row.visit(scale)

    return one


def _sum(parts: Registers) -> Any:
    return (parts.get(0) + parts.get(1)) + (parts.get(2) + parts.get(3))
