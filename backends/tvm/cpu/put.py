"""Rows written to a cache on a CPU: in place, or to a copy of it."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from planish.backends.tvm.cpu.attention import Heads, counted
from planish.backends.tvm.cpu.cached import clamped
from planish.backends.tvm.cpu.flat import (
    Flat,
    each,
    fitting_lanes,
    function,
    larger_of,
    named,
    product,
    quotient,
    remainder,
    smaller_of,
    whole,
)
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

FARTHEST = 1 << 40
"""Positions are kept below this number, whatever is given: no row outside of the cache is written."""

PARALLEL = 1 << 20
"""Numbers of a cache from which threads copy it."""


def build(node: Node, isa: Isa) -> Any:
    """The PrimFunc of ``kernel.put``: the result is a copy of the cache with the new rows."""

    def body(operands: list[Flat], out: Flat) -> None:
        _copy(operands[0], out, isa)
        _write(node, operands, out, isa)

    return function(node, body)


def build_in_place(node: Node, isa: Isa) -> Any:
    """The PrimFunc of a ``kernel.put`` that writes to the cache that it is given, and has no other result."""
    return function(node, lambda operands, out: _write(node, operands, out, isa), in_place=True)


def _lanes(isa: Isa, width: Any) -> int:
    return fitting_lanes(width, isa.lanes)


def _copy(cache: Flat, out: Flat, isa: Isa) -> None:
    width = cache.sizes[-1]
    lanes = _lanes(isa, width)
    slab = product(cache.sizes[-2:])

    def one(i: Any) -> None:
        base = named(i * slab)
        counted(
            named(quotient(slab, lanes)),
            lambda j: out.store(base + j * lanes, cache.load(base + j * lanes, lanes), lanes),
        )

    each(product(cache.sizes[:-2]), product(cache.sizes), PARALLEL, one)


def _write(node: Node, operands: list[Flat], out: Flat, isa: Isa) -> None:
    """The rows ``begin`` to ``end`` of the new ones, each to its place in the cache."""
    cache, given, start, count = operands
    ring, order = node.args[4:6]
    batch, capacity, width = cache.sizes[0], cache.sizes[-2], cache.sizes[-1]
    slabs, lanes = product(cache.sizes[1:-2]), _lanes(isa, width)
    new = Heads(_four(given), order)
    rows = new.sizes[2]

    def sequence(b: Any) -> None:
        written = clamped(count.load(b), -FARTHEST, FARTHEST)
        if ring:
            begin, end = named(larger_of(written - capacity, 0)), named(smaller_of(written, rows))
            place = _modulo(_modulo(start.load(b), capacity) + begin, capacity)
        else:
            first = clamped(start.load(b), -FARTHEST, FARTHEST)
            begin = named(larger_of(0 - first, 0))
            end = named(smaller_of(smaller_of(written, rows), capacity - first))
            place = named(first + begin)

        def slab(h: Any) -> None:
            base = named((b * slabs + h) * capacity)

            def row(i: Any) -> None:
                at: Any = place + i
                if ring:
                    at = named(at)
                    at = tirx.Select(at >= capacity, at - capacity, at)
                target, source = named((base + at) * width), named(new.at(b, h, begin + i))
                counted(
                    width // lanes,
                    lambda j: out.store(target + j * lanes, new.data.load(source + j * lanes, lanes), lanes),
                )

            counted(named(larger_of(end - begin, 0)), row)

        counted(slabs, slab)

    counted(batch, sequence)


def _modulo(value: Any, capacity: Any) -> Any:
    """The row of a ring that a position belongs to, which is never outside."""
    rest = named(remainder(named(value), larger_of(capacity, 1)))
    return named(tirx.Select(rest < whole(0), rest + capacity, rest))


def _four(x: Flat) -> Flat:
    """The same rows under four sizes: the axes between sequences and rows become one."""
    if len(x.sizes) == 4:
        return x
    return Flat(x.data, (x.sizes[0], product(x.sizes[1:-2]), *x.sizes[-2:]))
