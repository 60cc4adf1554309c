"""Caches of keys and values: rows put to positions, and attention over them, as simpler operations."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, as_expression, literal
from planish.backends.tvm.table import lowers
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.types import i64


@lowers("planish.put", form="index", once=True)
def _put(c: Call, index: Index, cache: Reader, new: Reader, start: Reader, count: Reader, ring: bool) -> Any:
    """Each row of the result looks for the new row that belongs to it."""
    batch, *_, row, _ = index
    rows, capacity = as_expression(new.shape[-2]), as_expression(cache.shape[-2])
    written, zero = c.let(count(batch)), literal(0, "int64")
    found = c.let(as_expression(row) - start(batch))
    if ring:  # the last of the new rows that come to this place
        last = c.let(written - literal(1, "int64"))
        found = c.let(last - tirx.floormod(last - found, tirx.max(capacity, literal(1, "int64"))))
    is_new = tirx.all(found >= zero, found < written, found < rows)

    def fresh() -> Any:
        return new(*index[:-2], found, index[-1])

    return c.when(is_new, fresh, lambda: cache(*index))


@lowers("planish.attend", form="nodes")
def _attend(node: Node) -> Node:
    """attention over rows of zeros where nothing was put, with a mask of what each query sees"""
    q, k, v, start, count, bias, window, scale, softcap, ring = node.args
    batch, rows, capacity = q.shape[0], q.shape[2], k.shape[2]
    first = aten.view(start, [batch, 1, 1, 1])
    end = aten.add(first, aten.view(count, [batch, 1, 1, 1]))
    keys = aten.view(aten.arange(0, capacity, 1, i64), [1, 1, 1, capacity])
    if ring:
        last = aten.sub(end, 1)
        keys = aten.sub(last, aten.remainder(aten.sub(last, keys), capacity))
    written = aten.bitwise_and(aten.ge(keys, 0), aten.lt(keys, end))
    queries = aten.add(first, aten.view(aten.arange(0, rows, 1, i64), [1, 1, rows, 1]))
    seen = aten.bitwise_and(written, aten.le(keys, queries))
    if window is not None:
        seen = aten.bitwise_and(seen, aten.lt(aten.sub(queries, keys), window))
    if bias is not None:
        is_bool = bias.dtype.name == "bool"
        seen = aten.bitwise_and(seen, bias) if is_bool else aten.where(seen, bias, -math.inf)
    by_row = aten.view(written, [batch, 1, capacity, 1])
    k, v = (aten.where(by_row, x, 0.0) for x in (k, v))
    made: Node = planish.attention(q, k, v, seen, False, None, scale, softcap)
    return made
