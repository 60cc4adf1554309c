"""Attention and rotary embedding as the dialect's own operations."""

from __future__ import annotations

import math

from planish.frontend.capture.onnx_ops.pointwise import cast
from planish.frontend.capture.onnx_ops.registry import At, Result, onnx_op
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.types import Size, boolean, equal, f64, floor_div, i64, size


def _heads(x: Node, count: int, at: At) -> Node:
    """``[B, S, H*D]`` as ``[B, H, S, D]``."""
    if x.rank == 4:
        return x
    at.need(x.rank == 3 and count > 0, "3D inputs need the numbers of heads", "PL141")
    b, s, width = x.shape
    return aten.permute(aten.view(x, (b, s, count, floor_div(width, count))), (0, 2, 1, 3))


@onnx_op("Attention")
def attention(
    q: Node, k: Node, v: Node, mask: Node | None = None, past_key: Node | None = None, past_value: Node | None = None,
    lengths: Node | None = None, *, is_causal: int = 0, kv_num_heads: int = 0, q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0, scale: float | None = None, softcap: float = 0.0, softmax_precision: int = 0,
    left_window_size: int = -1, right_window_size: int = -1, at: At,
) -> Result:  # fmt: skip
    """Grouped attention with an optional cache, masks by position, and present keys and values"""
    if at.wants(3) or (softmax_precision and at.dtype(softmax_precision) is f64 and q.dtype is not f64):
        return NotImplemented  # the operator's own body says what the scores and the precision are
    flat = q.rank == 3
    q, k, v = _heads(q, q_num_heads, at), _heads(k, kv_num_heads, at), _heads(v, kv_num_heads, at)
    offset: Size | Node = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = aten.cat((past_key, k), 2), aten.cat((past_value, v), 2)
    rows, columns = q.shape[2], k.shape[2]
    if lengths is not None:
        lengths = aten.view(cast(lengths, i64), (lengths.shape[0], 1, 1, 1))
        offset = aten.sub(lengths, rows)
    plain = right_window_size < 0 and (left_window_size < 0 or is_causal) and not isinstance(offset, Node)
    simple = plain and equal(offset, 0)
    window = left_window_size + 1 if left_window_size >= 0 else None
    if simple:
        allowed = None
    else:
        allowed = _allowed(rows, columns, offset, is_causal, left_window_size, right_window_size)
    if lengths is not None:
        inside = aten.lt(aten.view(aten.arange(0, columns), (1, 1, 1, columns)), lengths)
        allowed = inside if allowed is None else aten.bitwise_and(allowed, inside)
    out = planish.attention(
        q, k, v, _joined(mask, allowed, columns, q, at), bool(is_causal) and simple, window if simple else None, scale,
        softcap or None,
    )  # fmt: skip
    if flat:
        out = aten.permute(out, (0, 2, 1, 3))
        out = aten.view(out, (out.shape[0], rows, size(out.shape[2] * out.shape[3])))
    return out, k, v


def _allowed(
    rows: Size, columns: Size, offset: Size | Node, causal: int, left: int, right: int
) -> Node | None:
    """Which keys a query sees by position, when queries begin at ``offset``."""
    i = aten.view(aten.arange(0, rows), (rows, 1))
    distance = aten.sub(i, aten.view(aten.arange(0, columns), (1, columns)))
    if isinstance(offset, Node) or not equal(offset, 0):
        distance = aten.add(distance, offset)
    tests = []
    if causal:
        tests.append(aten.ge(distance, 0))
    if left >= 0:
        tests.append(aten.le(distance, left))
    if right >= 0:
        tests.append(aten.ge(distance, -right))
    found: Node | None = None
    for test in tests:
        found = test if found is None else aten.bitwise_and(found, test)
    return found


def _joined(mask: Node | None, allowed: Node | None, columns: Size, q: Node, at: At) -> Node | None:
    if mask is None:
        return allowed
    if mask.dtype is not boolean:
        mask = cast(mask, q.dtype)
    missing = size(columns - mask.shape[-1])
    if not equal(missing, 0):
        if mask.dtype is boolean:
            mask = aten.gt(aten.pad(cast(mask, i64), (0, missing), "constant", 0), 0)
        else:
            mask = aten.pad(mask, (0, missing), "constant", -math.inf)
    if mask.rank == 1:
        mask = aten.view(mask, (1, mask.shape[0]))
    if allowed is None:
        return mask
    if mask.dtype is boolean:
        return aten.bitwise_and(mask, allowed)
    return aten.where(allowed, mask, -math.inf)


@onnx_op("RotaryEmbedding")
def rotary_embedding(
    x: Node, cos: Node, sin: Node, positions: Node | None = None, *, interleaved: int = 0, num_heads: int = 0,
    rotary_embedding_dim: int = 0, at: At,
) -> Result:  # fmt: skip
    """Pairs of channels turned by an angle that grows with the position"""
    flat = x.rank == 3
    wide = _heads(x, num_heads, at)
    if positions is not None:
        cos, sin = (aten.embedding(t, positions) for t in (cos, sin))
    half = rotary_embedding_dim // 2
    if half:
        cos, sin = (aten.slice(t, t.rank - 1, 0, half) for t in (cos, sin))
    batch, steps, pairs = cos.shape
    cos, sin = (aten.view(t, (batch, 1, steps, pairs)) for t in (cos, sin))
    out = planish.rope(wide, cos, sin, bool(interleaved))
    return aten.view(aten.permute(out, (0, 2, 1, 3)), x.shape) if flat else out
