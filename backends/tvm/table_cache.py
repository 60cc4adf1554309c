"""Caches of keys and values: rows put to positions, and attention over them, as simpler operations."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, as_expression, literal
from planish.backends.tvm.table import lowers
from planish.backends.tvm.table_attention import narrowed, widened
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


@lowers("planish.attend_parallel", form="nodes")
def _attend_parallel(node: Node) -> Node:
    """softmax of two log-sum-exps, of contexts and of all other rows, over the softmax of each of these"""
    q, k, v, start, count, first, last, temperature, share, scale, softcap = node.args
    (batch, _, rows, channels), (_, groups, capacity, _) = q.shape, k.shape

    def places(value: Node, lead: int = 4) -> Node:
        return aten.view(value, [batch, *[1] * lead])

    keys = aten.view(aten.arange(0, capacity, 1, i64), [1, 1, 1, 1, capacity])
    end = aten.add(places(start), places(count))
    queries = aten.add(places(start), aten.view(aten.arange(0, rows, 1, i64), [1, 1, 1, rows, 1]))
    seen = aten.bitwise_and(aten.lt(keys, end), aten.le(keys, queries))
    context = aten.bitwise_and(aten.ge(keys, places(first)), aten.lt(keys, places(last)))
    column = aten.view(aten.arange(0, capacity, 1, i64), [1, 1, capacity, 1])
    written = aten.lt(column, aten.add(places(start, 3), places(count, 3)))
    v = aten.where(written, widened(v), 0.0)
    q, k, v = (
        aten.view(x, [batch, groups, x.shape[1] // groups, *x.shape[2:]]) for x in map(widened, (q, k, v))
    )
    temperature, share = (aten.to(places(x), q.dtype) for x in (temperature, share))
    factor = 1 / math.sqrt(channels) if scale is None else scale
    scores = aten.mul(aten.matmul(q, aten.permute(k, [0, 1, 2, 4, 3])), factor)
    if softcap is not None:
        scores = aten.mul(aten.tanh(aten.div(scores, softcap)), softcap)
    cool = aten.div(scores, temperature)
    inner, of_context = _part(cool, aten.bitwise_and(seen, context))
    outer, of_others = _part(scores, aten.bitwise_and(seen, aten.bitwise_not(context)))
    inner = aten.where(aten.eq(inner, -math.inf), inner, aten.mul(inner, aten.mul(temperature, share)))
    most = aten.maximum(inner, outer)
    most = aten.where(aten.eq(most, -math.inf), 0.0, most)
    inner, outer = (aten.exp(aten.sub(x, most)) for x in (inner, outer))
    both = aten.add(inner, outer)
    both = aten.where(aten.eq(both, 0.0), 1.0, both)
    parts = ((inner, of_context), (outer, of_others))
    weights = aten.add(*(aten.mul(aten.div(total, both), part) for total, part in parts))
    return narrowed(aten.view(aten.matmul(weights, v), list(node.shape)), node.dtype)


def _part(scores: Node, seen: Node) -> tuple[Node, Node]:
    """The log-sum-exp of the scores that are seen, and their softmax over the last axis; -inf and 0 for none."""
    axis = scores.rank - 1
    scores = aten.where(seen, scores, aten.full([1], -math.inf, scores.dtype))
    largest = aten.amax(scores, [axis], True)
    none = aten.eq(largest, -math.inf)
    powers = aten.exp(aten.sub(scores, aten.where(none, 0.0, largest)))
    total = aten.where(none, 1.0, aten.sum(powers, [axis], True))
    return aten.add(largest, aten.log(total)), aten.div(powers, total)
