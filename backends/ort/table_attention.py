"""Attention and rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence

from planish.backends.ort.table import Call, lowers
from planish.backends.ort.table_structure import expand
from planish.ir.node import Node
from planish.ir.shapes import broadcast
from planish.ir.types import Size, equal, product


@lowers("aten.scaled_dot_product_attention", native="f32")
def _plain_attention(
    c: Call, q: str, k: str, v: str, mask: str | None, causal: bool, scale: float | None
) -> str:
    return _attention(c, q, k, v, mask, causal, None, scale, None)


@lowers("planish.attention", native="f32")
def _attention(
    c: Call, q: str, k: str, v: str, mask: str | None, causal: bool, window: Size | None, scale: float | None,
    softcap: float | None,
) -> str:  # fmt: skip
    """ONNX's Attention groups heads by itself, aligns causality top-left, and yields 0 where nothing is seen."""
    shapes = [c.shape(i) for i in range(3)]
    rows, columns = shapes[0][-2], shapes[1][-2]
    lead = broadcast(*(s[:-3] for s in shapes)) if len(shapes[0]) > 2 else ()
    q, k, v = (_four_axes(c, x, s, lead) for x, s in zip((q, k, v), shapes, strict=True))
    whole = (*lead, *shapes[0][-3:-1], columns)
    value: str | None = None
    if mask is not None:
        value = _mask(c, mask, c.node.args[3], whole)
    if window is not None:
        near = _within(c, rows, columns, window)
        value = near if value is None else _both(c, value, c.node.args[3], near)
    if softcap is not None and softcap == 0:
        softcap = None
    out = c.op("Attention", q, k, v, value, is_causal=int(causal), scale=scale, softcap=softcap)
    result = c.node.shape
    flat = (product(lead), *result[-3:]) if len(result) > 2 else (1, 1, *result)
    return c.graph.reshape(out, flat, result) if len(result) != 4 else out


def _four_axes(c: Call, x: str, shape: Sequence[Size], lead: Sequence[Size]) -> str:
    if len(shape) == 2:
        return c.op("Unsqueeze", x, c.graph.ints(0, 1))
    if len(shape) == 3:
        return c.op("Unsqueeze", x, c.graph.ints(0))
    full = (*lead, *shape[-3:])
    x = expand(c, x, shape, full)
    return x if len(full) == 4 else c.graph.reshape(x, full, (product(lead), *shape[-3:]))


def _mask(c: Call, mask: str, node: Node, whole: Sequence[Size]) -> str:
    """The mask with two to four axes, the last two whole."""
    value = mask if node.dtype.name in ("bool", c.dtype.name) else c.graph.cast(mask, c.dtype)
    have = tuple(node.shape)
    wanted = (*have[:-2], *whole[-2:])
    if len(have) > 4:
        wanted = (*whole[:-3], *have[-3:-2], *whole[-2:])
    value = expand(c, value, have, wanted)
    if len(wanted) > 4:
        return c.graph.reshape(value, wanted, (product(wanted[:-3]), *wanted[-3:]))
    return value


def _within(c: Call, rows: Size, columns: Size, window: Size) -> str:
    """Which keys are less than a window behind the query, ``bool[rows, columns]``."""
    zero, one = c.number(0, "i64"), c.number(1, "i64")
    i = c.op("Unsqueeze", c.op("Range", zero, c.graph.scalar(rows), one), c.graph.ints(1))
    j = c.op("Range", zero, c.graph.scalar(columns), one)
    return c.op("Less", c.op("Sub", i, j), c.graph.scalar(window))


def _both(c: Call, mask: str, node: Node, near: str) -> str:
    if node.dtype.kind == "bool":
        return c.op("And", mask, near)
    return c.op("Where", near, mask, c.number(float("-inf")))


@lowers("planish.rope", native="f32 f64")
def _rope(c: Call, x: str, cos: str, sin: str, interleaved: bool) -> str:
    fused = _rotary(c, x, cos, sin, interleaved)
    return fused if fused is not None else _rotated(c, x, cos, sin, interleaved)


def _rotary(c: Call, x: str, cos: str, sin: str, interleaved: bool) -> str | None:
    """ONNX's RotaryEmbedding where the tables hold one row per position, for ``[B, H, T, D]``."""
    shape, table = c.shape(), c.shape(1)
    turned = table[-1]
    if (
        c.dtype.name != "f32"
        or len(shape) != 4
        or not isinstance(turned, int)
        or not isinstance(shape[3], int)
    ):
        return None
    if turned < 1 or len(table) < 2 or not equal(table[-2], shape[2]):
        return None
    lead = table[:-2]
    if len(lead) == 2 and not equal(lead[1], 1):
        return None
    if len(lead) == 1 and not equal(lead[0], 1):
        return None
    rows = table[-2:]
    per_batch = len(lead) == 2 and not equal(lead[0], 1)
    if per_batch and not equal(lead[0], shape[0]):
        return None
    attributes = {
        "interleaved": int(interleaved),
        "rotary_embedding_dim": 2 * turned if 2 * turned != shape[3] else None,
    }
    want = (shape[0], *rows) if per_batch else (1, *rows)
    cos, sin = (c.graph.reshape(t, table, want) for t in (cos, sin))
    if not per_batch and not equal(shape[0], 1):
        cos, sin = (expand(c, t, want, (shape[0], *rows)) for t in (cos, sin))
    return c.op("RotaryEmbedding", x, cos, sin, **attributes)


def _rotated(c: Call, x: str, cos: str, sin: str, interleaved: bool) -> str:
    shape, half = c.shape(), c.shape(1)[-1]
    rank, g = len(shape), c.graph
    axis = g.ints(rank - 1)
    double = g.size(2 * half)
    turned = c.op("Slice", x, g.ints(0), double, axis)
    if interleaved:
        split = c.op("Reshape", turned, g.sizes((*shape[:-1], half, 2)))
        a, b = (c.op("Gather", split, c.number(i, "i64"), axis=rank) for i in (0, 1))
    else:
        a = c.op("Slice", x, g.ints(0), g.size(half), axis)
        b = c.op("Slice", x, g.size(half), double, axis)
    first = c.op("Sub", c.op("Mul", a, cos), c.op("Mul", b, sin))
    second = c.op("Add", c.op("Mul", b, cos), c.op("Mul", a, sin))
    if interleaved:
        pairs = [c.op("Unsqueeze", part, g.ints(rank)) for part in (first, second)]
        joined = c.op("Reshape", c.op("Concat", *pairs, axis=rank), g.sizes((*shape[:-1], 2 * half)))
        parts = [joined]
    else:
        parts = [first, second]
    if not equal(2 * half, shape[-1]):
        parts.append(c.op("Slice", x, double, g.size(shape[-1]), axis))
    return c.op("Concat", *parts, axis=rank - 1) if len(parts) > 1 else parts[0]
