"""Views, joins, padding and creation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from planish.backends.ort.graph import I64_MIN, number
from planish.backends.ort.table import Call, lowers
from planish.ir.types import DType, Size, equal, maximum
from planish.ir.types import size as as_size


@lowers("aten.view")
def _view(c: Call, x: str, shape: Sequence[Size]) -> str:
    return c.graph.reshape(x, c.shape(), shape)


@lowers("aten.permute")
def _permute(c: Call, x: str, dims: Sequence[int]) -> str:
    return c.op("Transpose", x, perm=list(dims)) if list(dims) != sorted(dims) else x


@lowers("aten.expand", native="f32 f64 f16 i8 i16 i32 i64 u8 u16 u32 u64 bool")
def _expand(c: Call, x: str, shape: Sequence[Size]) -> str:
    return expand(c, x, c.shape(), shape)


def expand(c: Call, x: str, have: Sequence[Size], want: Sequence[Size]) -> str:
    """Repeat axes of size one; axes that stay as they are need no size."""
    if tuple(have) == tuple(want):
        return x
    at = len(want) - len(have)
    given = [1 if i >= at and equal(have[i - at], s) else s for i, s in enumerate(want)]
    return c.op("Expand", x, c.graph.sizes(given))


def cut(c: Call, x: str, dim: int, start: Size, end: Size, step: int = 1) -> str:
    """A range of one axis."""
    return c.op("Slice", x, c.graph.size(start), c.graph.size(end), c.graph.ints(dim), c.graph.ints(step))


@lowers("aten.slice")
def _slice(c: Call, x: str, dim: int, start: Size, end: Size, step: int) -> str:
    if start == 0 and step == 1 and equal(end, c.shape()[dim]):
        return x
    return cut(c, x, dim, start, end, step)


@lowers("aten.slice_scatter")
def _slice_scatter(c: Call, x: str, source: str, dim: int, start: Size, end: Size, step: int) -> str:
    length, rank = c.shape()[dim], c.type(0).rank
    if step == 1:
        end = maximum(start, end)
        parts = [] if start == 0 else [cut(c, x, dim, 0, start)]
        parts.append(source)
        if not equal(end, length):
            parts.append(cut(c, x, dim, end, length))
        return c.op("Concat", *parts, axis=dim) if len(parts) > 1 else source
    order = [dim, *(i for i in range(rank) if i != dim)]
    back = [order.index(i) for i in range(rank)]
    rows = c.op("Range", c.graph.scalar(start), c.graph.scalar(end), c.number(step, "i64"))
    rows = c.op("Unsqueeze", rows, c.graph.ints(1))
    turned, new = c.op("Transpose", x, perm=order), c.op("Transpose", source, perm=order)
    return c.op("Transpose", c.op("ScatterND", turned, rows, new), perm=back)


@lowers("aten.cat")
def _cat(c: Call, xs: Sequence[str], dim: int) -> str:
    return c.op("Concat", *xs, axis=dim) if len(xs) > 1 else xs[0]


@lowers("aten.flip")
def _flip(c: Call, x: str, dims: Sequence[int]) -> str:
    if not dims:
        return x
    n = len(dims)
    back = c.graph.ints(*[-1] * n)
    return c.op("Slice", x, back, c.graph.ints(*[I64_MIN] * n), c.graph.ints(*dims), back)


_MODES = {"constant": None, "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@lowers("aten.pad", native="i32 i64 f32 f64 u32 u64 i8 u8 bool")
def _pad(c: Call, x: str, amounts: Sequence[Size], mode: str, value: Any) -> str:
    count = len(amounts) // 2
    axes = [c.type(0).rank - 1 - i for i in range(count)]
    kept = [i for i in range(count) if amounts[2 * i] != 0 or amounts[2 * i + 1] != 0]
    if not kept:
        return x
    sizes = [amounts[2 * i] for i in kept] + [amounts[2 * i + 1] for i in kept]
    fill = c.number(value) if mode == "constant" and value != 0 else None
    axis_list = c.graph.ints(*(axes[i] for i in kept))
    return c.op("Pad", x, c.graph.sizes(sizes), fill, axis_list, mode=_MODES[mode])


@lowers("aten.tril", native="f32 f64 i32 i64 bool")
def _tril(c: Call, x: str, diagonal: Size) -> str:
    return c.op("Trilu", x, c.graph.scalar(diagonal), upper=0)


@lowers("aten.triu", native="f32 f64 i32 i64 bool")
def _triu(c: Call, x: str, diagonal: Size) -> str:
    return c.op("Trilu", x, c.graph.scalar(diagonal), upper=1)


@lowers("aten.full")
def _full(c: Call, shape: Sequence[Size], value: Any, dtype: DType) -> str:
    plain = number(value) or isinstance(value, bool)
    through = dtype if dtype.name != "bf16" and not dtype.name.startswith("f8") else None
    kind = through.name if through else "f32"
    one = c.graph.constant(value, kind) if plain else c.graph.scalar(value, kind)
    out = one if not shape else c.op("Expand", one, c.graph.sizes(shape))
    return out if through else c.graph.cast(out, dtype)


@lowers("aten.arange")
def _arange(c: Call, start: Any, end: Any, step: Any, dtype: DType) -> str:
    """Whole numbers count exactly; fractions are ``start + i*step`` in f64, as torch has it."""
    if not any(isinstance(v, float) for v in (start, end, step)):
        counted = c.op("Range", *(c.graph.scalar(as_size(v)) for v in (start, end, step)))
        return counted if dtype.name == "i64" else c.graph.cast(counted, dtype)
    length = max(0, math.ceil((end - start) / step))
    places = c.op("Range", c.number(0, "i64"), c.number(length, "i64"), c.number(1, "i64"))
    steps = c.op("Mul", c.graph.cast(places, "f64"), c.number(step, "f64"))
    return c.graph.cast(c.op("Add", steps, c.number(start, "f64")), dtype)
