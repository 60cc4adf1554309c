"""Reading and writing by index."""

from __future__ import annotations

from collections.abc import Sequence

from planish.backends.ort.table import Call, lowers
from planish.backends.ort.table_structure import expand
from planish.ir.node import Node
from planish.ir.shapes import broadcast
from planish.ir.types import Size, equal


def index_value(c: Call, name: str, node: Node) -> str:
    """An index in an element type that ONNX Runtime indexes with."""
    return name if node.dtype.name in ("i32", "i64") else c.graph.cast(name, "i64")


@lowers("aten.embedding")
def _embedding(c: Call, table: str, ids: str) -> str:
    return c.op("Gather", table, index_value(c, ids, c.node.args[1]), axis=0)


@lowers("aten.index_select")
def _index_select(c: Call, x: str, dim: int, index: str) -> str:
    return c.op("Gather", x, index_value(c, index, c.node.args[2]), axis=dim)


@lowers("aten.gather")
def _gather(c: Call, x: str, dim: int, index: str) -> str:
    index = index_value(c, index, c.node.args[2])
    if c.shape():
        return c.op("GatherElements", x, index, axis=dim)
    one = c.graph.ints(0)
    picked = c.op("GatherElements", c.op("Unsqueeze", x, one), c.op("Unsqueeze", index, one), axis=0)
    return c.op("Squeeze", picked, one)


def _places(c: Call, indices: Sequence[str | None]) -> tuple[list[int], str, tuple[Size, ...], int]:
    """For advanced indexing: the indexed axes, all indices as one table, their joint shape, and where it goes."""
    nodes = c.node.args[1]
    axes = [i for i, each in enumerate(indices) if each is not None]
    joint = broadcast(*(nodes[i].shape for i in axes))
    columns = []
    for i in axes:
        name = indices[i]
        assert name is not None
        value = name if nodes[i].dtype.name == "i64" else c.graph.cast(name, "i64")
        value = expand(c, value, nodes[i].shape, joint)
        columns.append(c.op("Unsqueeze", value, c.graph.ints(len(joint))))
    together = axes == list(range(axes[0], axes[-1] + 1))
    table = c.op("Concat", *columns, axis=len(joint)) if len(columns) > 1 else columns[0]
    return axes, table, joint, axes[0] if together else 0


@lowers("aten.index")
def _index(c: Call, x: str, indices: Sequence[str | None]) -> str:
    rank = c.type(0).rank
    if sum(i is not None for i in indices) == 1:
        dim = next(i for i, each in enumerate(indices) if each is not None)
        return c.op("Gather", x, index_value(c, str(indices[dim]), c.node.args[1][dim]), axis=dim)
    axes, table, joint, at = _places(c, indices)
    rest = [i for i in range(rank) if i not in axes]
    order = axes + rest
    turned = x if order == sorted(order) else c.op("Transpose", x, perm=order)
    out = c.op("GatherND", turned, table)
    if at == 0:
        return out
    n = len(joint)
    return c.op("Transpose", out, perm=[*range(n, n + at), *range(n), *range(n + at, n + len(rest))])


@lowers("aten.index_put", native="f32 f64 i8 i16 i32 i64 u8 u16 u32 u64 bool")
def _index_put(c: Call, x: str, indices: Sequence[str | None], values: str, accumulate: bool) -> str:
    rank, shape = c.type(0).rank, c.shape()
    axes, table, joint, at = _places(c, indices)
    rest = [i for i in range(rank) if i not in axes]
    n, order = len(joint), axes + rest
    placed = (*(shape[i] for i in rest[:at]), *joint, *(shape[i] for i in rest[at:]))
    new = expand(c, values, c.type(2).shape, placed)
    if at:
        new = c.op("Transpose", new, perm=[*range(at, at + n), *range(at), *range(at + n, n + len(rest))])
    moved = order != sorted(order)
    turned = c.op("Transpose", x, perm=order) if moved else x
    if accumulate and c.dtype.kind == "bool":
        turned, new = c.graph.cast(turned, "i32"), c.graph.cast(new, "i32")
    out = c.op("ScatterND", turned, table, new, reduction="add" if accumulate else None)
    if accumulate and c.dtype.kind == "bool":
        out = c.graph.cast(out, "bool")
    return c.op("Transpose", out, perm=[order.index(i) for i in range(rank)]) if moved else out


def _scatter_parts(c: Call, index: str, source: str) -> tuple[str, str]:
    """Index and source with one shape: torch lets the source be larger."""
    wanted, have = c.type(2).shape, c.type(3).shape
    index = index_value(c, index, c.node.args[2])
    if not all(equal(a, b) for a, b in zip(wanted, have, strict=True)):
        rank = len(wanted)
        start, axes = c.graph.ints(*[0] * rank), c.graph.ints(*range(rank))
        source = c.op("Slice", source, start, c.graph.sizes(wanted), axes)
    return index, source


def _scatter_elements(c: Call, x: str, dim: int, index: str, source: str, reduction: str | None) -> str:
    if c.shape():
        return c.op("ScatterElements", x, index, source, axis=dim, reduction=reduction)
    one = c.graph.ints(0)
    x, index, source = (c.op("Unsqueeze", v, one) for v in (x, index, source))
    return c.op("Squeeze", c.op("ScatterElements", x, index, source, axis=0, reduction=reduction), one)


@lowers("aten.scatter")
def _scatter(c: Call, x: str, dim: int, index: str, source: str) -> str:
    return _scatter_elements(c, x, dim, *_scatter_parts(c, index, source), None)


_ADDABLE = "f32 f64 i32 i64 i8 i16 u8 u16 u32 u64"


@lowers("aten.scatter_add", native=_ADDABLE)
def _scatter_add(c: Call, x: str, dim: int, index: str, source: str) -> str:
    return _scatter_elements(c, x, dim, *_scatter_parts(c, index, source), "add")


_REDUCTIONS = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}


@lowers("aten.scatter_reduce", native="f32 f64 i32 i64")
def _scatter_reduce(
    c: Call, x: str, dim: int, index: str, source: str, reduce: str, include_self: bool
) -> str:
    index, source = _scatter_parts(c, index, source)
    if not include_self:
        neutral = c.op("Expand", c.number(_neutral(c, reduce)), c.op("Shape", source))
        x = _scatter_elements(c, x, dim, index, neutral, None)
    out = _scatter_elements(c, x, dim, index, source, _REDUCTIONS[reduce])
    if reduce != "mean":
        return out
    ones = c.op("Expand", c.number(1), c.op("Shape", source))
    start = c.op("Expand", c.number(1 if include_self else 0), c.op("Shape", x))
    count = _scatter_elements(c, start, dim, index, ones, "add")
    count = count if include_self else c.op("Max", count, c.number(1))
    if c.is_float:
        return c.op("Div", out, count)
    return c.op("Div", c.op("Sub", out, c.op("Mod", out, count)), count)


def _neutral(c: Call, reduce: str) -> float:
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if c.is_float:
        return float("-inf") if reduce == "amax" else float("inf")
    high = 2 ** (c.dtype.bits - 1)
    return -high if reduce == "amax" else high - 1
