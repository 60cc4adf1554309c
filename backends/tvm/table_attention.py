"""Attention and rotary embedding, as simpler operations."""

from __future__ import annotations

import math
from typing import Any

from planish.backends.tvm.table import lowers
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import DType, f32, i64


def widened(value: Any) -> Any:
    """A value in the type to compute in; None stays."""
    narrow = isinstance(value, Node) and value.dtype.is_float and value.dtype.bits < 32
    return aten.to(value, f32) if narrow else value


def narrowed(value: Node, kind: DType) -> Node:
    """A result in the type that it is stored in."""
    return value if value.dtype is kind else aten.to(value, kind)


@lowers("aten.scaled_dot_product_attention", form="nodes")
def _sdpa(node: Node) -> Node:
    q, k, v, mask, causal, scale = node.args
    return _attention(node, q, k, v, mask, causal, None, scale, None)


@lowers("planish.attention", form="nodes")
def _grouped(node: Node) -> Node:
    return _attention(node, *node.args)


def _attention(
    node: Node, q: Any, k: Any, v: Any, mask: Any, causal: bool, window: Any, scale: Any, softcap: Any
) -> Node:
    rows, columns, channels = q.shape[-2], k.shape[-2], q.shape[-1]
    share = _share(q, k)
    q, k, v = (widened(x) for x in (q, k, v))
    if share > 1:  # queries of one group get an axis of their own
        *lead, heads, _, _ = q.shape
        q = aten.view(q, [*lead, heads // share, share, rows, channels])
        k, v = (aten.view(x, [*x.shape[:-2], 1, *x.shape[-2:]]) for x in (k, v))
        mask = _split_heads(mask, share)
    factor = 1 / math.sqrt(channels) if scale is None else scale
    turned = aten.permute(k, [*range(k.rank - 2), k.rank - 1, k.rank - 2])
    if softcap is None:
        scores = aten.matmul(aten.mul(q, factor), turned)
    else:
        scores = aten.mul(aten.tanh(aten.mul(aten.matmul(q, turned), factor / softcap)), softcap)
    for each in (mask, _positions(rows, columns, causal, window)):
        if each is not None:
            low = aten.full([1], -math.inf, scores.dtype)
            scores = (
                aten.where(each, scores, low)
                if each.dtype.name == "bool"
                else aten.add(scores, widened(each))
            )
    out = aten.matmul(_safe_softmax(scores), v)
    return narrowed(aten.view(out, list(node.shape)) if share > 1 else out, node.dtype)


def _share(q: Any, k: Any) -> int:
    """Query heads for each key head."""
    return int(q.shape[-3] // k.shape[-3]) if q.rank > 2 and q.shape[-3] != k.shape[-3] else 1


def _split_heads(mask: Any, share: int) -> Any:
    """A mask with an axis for the queries of a group."""
    if mask is None or mask.rank < 3:
        return mask
    *lead, heads, rows, columns = mask.shape
    split = [1, 1] if heads == 1 else [heads // share, share]
    return aten.view(mask, [*lead, *split, rows, columns])


def _positions(rows: Any, columns: Any, causal: bool, window: Any) -> Any:
    if not causal and window is None:
        return None
    query = aten.view(aten.arange(0, rows, 1, i64), [rows, 1])
    distance = aten.sub(query, aten.view(aten.arange(0, columns, 1, i64), [1, columns]))
    near = None if window is None else aten.lt(distance, window)
    if not causal:
        return near
    before = aten.ge(distance, 0)
    return before if near is None else aten.bitwise_and(before, near)


def _safe_softmax(scores: Any) -> Any:
    """Softmax over the last axis; rows that see nothing are zero."""
    axis = scores.rank - 1
    largest = aten.amax(scores, [axis], True)
    none = aten.eq(largest, -math.inf)
    powers = aten.exp(aten.sub(scores, aten.where(none, 0.0, largest)))
    total = aten.sum(powers, [axis], True)
    return aten.div(powers, aten.where(none, 1.0, total))


@lowers("planish.rope", form="nodes")
def _rope(node: Node) -> Node:
    x, cos, sin, interleaved = node.args
    axis, half = x.rank - 1, cos.shape[-1]
    step = 2 if interleaved else 1
    if interleaved:
        a, b = aten.slice(x, axis, 0, 2 * half, 2), aten.slice(x, axis, 1, 2 * half, 2)
    else:
        a, b = aten.slice(x, axis, 0, half), aten.slice(x, axis, half, 2 * half)
    turned = [
        aten.sub(aten.mul(a, cos), aten.mul(b, sin)),
        aten.add(aten.mul(b, cos), aten.mul(a, sin)),
    ]
    if step == 2:
        lead = list(turned[0].shape)
        pairs = aten.cat([aten.view(t, [*lead, 1]) for t in turned], axis + 1)
        turned = [aten.view(pairs, [*lead[:-1], 2 * half])]
    rest = aten.slice(x, axis, 2 * half, x.shape[-1])
    return aten.cat([*turned, rest] if rest.shape[-1] != 0 else turned, axis)
