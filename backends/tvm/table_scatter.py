"""Writing at computed places: the operand is copied, then the places are written one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.expressions import Call, as_expression, cast, literal
from planish.backends.tvm.table import computed, lowers
from planish.backends.tvm.table_pointwise import larger, smaller

Loop = Callable[[list[Any]], None]


def nest(sizes: Sequence[Any], body: Loop) -> None:
    """Loops over all indices of a shape, serial."""

    def level(index: list[Any]) -> None:
        if len(index) == len(sizes):
            body(index)
            return
        with T.serial(0, as_expression(sizes[len(index)])) as i:
            level([*index, i])

    level([])


def _place(value: Any, size: Any) -> Any:
    """A place along an axis of ``size`` elements, as i64, moved to the edge if it is outside."""
    size, zero = as_expression(size), literal(0, "int64")
    at = T.bind(tirx.Cast("int64", value))
    moved = tirx.Select(at < zero, at + size, at)
    return T.bind(tirx.max(tirx.min(moved, size - literal(1, "int64")), zero))


def _copy(x: Any, out: Any) -> None:
    nest(out.shape, lambda i: T.buffer_store(out, x[tuple(i)], i))


@lowers("aten.index_put", form="loops")
def _index_put(c: Call, x: Any, indices: Sequence[Any], values: Any, accumulate: bool, out: Any) -> None:
    _copy(x, out)
    node_indices = c.node.args[1]
    given = [i for i, t in enumerate(indices) if t is not None]
    joint_rank = max(t.rank for t in node_indices if t is not None)
    adjacent = given == list(range(given[0], given[-1] + 1))
    begin = given[0] if adjacent else 0
    rest = [s for i, s in enumerate(c.shape(c.node.args[0])) if i not in given]
    joint: list[Any] = [literal(1, "int64")] * joint_rank
    for t in node_indices:
        if t is not None:
            for k, size in enumerate(t.shape):
                if size != 1:
                    joint[joint_rank - t.rank + k] = c.size(size)

    def body(index: list[Any]) -> None:
        own, others = index[begin : begin + joint_rank], [*index[:begin], *index[begin + joint_rank :]]
        at: list[Any] = []
        for axis in range(len(out.shape)):
            reader = indices[axis] if axis < len(indices) else None
            if reader is None:
                at.append(others.pop(0))
                continue
            shape = node_indices[axis].shape
            mine = own[joint_rank - len(shape) :]
            places = tuple(0 if s == 1 else i for s, i in zip(shape, mine, strict=True))
            at.append(_place(reader[places], out.shape[axis]))
        source = c.node.args[2].shape
        mine = index[len(index) - len(source) :]
        value = values[tuple(0 if s == 1 else i for s, i in zip(source, mine, strict=True))]
        T.buffer_store(out, _sum(c, out[tuple(at)], value) if accumulate else value, at)

    nest([*rest[:begin], *joint, *rest[begin:]], body)


def _sum(c: Call, a: Any, b: Any) -> Any:
    kind = str(a.ty)
    if kind == "bool":
        return tirx.Or(a, b)
    return cast(cast(a, c.dtype) + cast(b, c.dtype), kind)


@lowers("aten.scatter", "aten.scatter_add", form="loops")
def _scatter(c: Call, x: Any, dim: int, index: Any, source: Any, out: Any) -> None:
    _copy(x, out)

    def body(at: list[Any]) -> None:
        to = list(at)
        if to:
            to[dim] = _place(index[tuple(at)], out.shape[dim])
        value = source[tuple(at)]
        if c.node.op == "aten.scatter_add":
            value = _sum(c, out[tuple(to)], value)
        T.buffer_store(out, value, to)

    nest(index.shape, body)


@lowers("aten.scatter_reduce", form="loops")
def _scatter_reduce(
    c: Call, x: Any, dim: int, index: Any, source: Any, reduce: str, include_self: bool, out: Any
) -> None:
    kind = computed(c.node.dtype)
    narrow = str(out.dtype)
    held = T.alloc_buffer(tuple(out.shape), kind)
    counts = T.alloc_buffer(tuple(out.shape), "int64")

    def begin(at: list[Any]) -> None:
        T.buffer_store(held, cast(x[tuple(at)], kind), at)
        T.buffer_store(counts, literal(int(include_self), "int64"), at)

    nest(out.shape, begin)

    def body(at: list[Any]) -> None:
        to = list(at)
        if to:
            to[dim] = _place(index[tuple(at)], out.shape[dim])
        place = tuple(to)
        value = T.bind(cast(source[tuple(at)], kind))
        have = T.bind(held[place])
        empty = tirx.EQ(counts[place], literal(0, "int64"))
        T.buffer_store(held, tirx.Select(empty, value, _combined(reduce, have, value)), to)
        T.buffer_store(counts, counts[place] + literal(1, "int64"), to)

    nest(index.shape, body)

    def finish(at: list[Any]) -> None:
        value = held[tuple(at)]
        if reduce == "mean":
            count = cast(tirx.max(counts[tuple(at)], literal(1, "int64")), kind)
            value = tirx.floordiv(value, count) if kind.startswith(("int", "uint")) else value / count
        T.buffer_store(out, cast(value, narrow), at)

    nest(out.shape, finish)


def _combined(reduce: str, a: Any, b: Any) -> Any:
    if reduce in ("sum", "mean"):
        return a + b
    if reduce == "prod":
        return a * b
    return larger(a, b) if reduce == "amax" else smaller(a, b)
