"""Views, joins, ranges and creation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, all_of, as_expression, cast, literal
from planish.backends.tvm.table import lowers, storage
from planish.ir.node import Node
from planish.ir.types import DType, at_least


@lowers("aten.view", form="values")
def _view(body: Any, node: Node) -> Any:
    return body.reshape(body.values[node.args[0]], node.shape)


@lowers("aten.permute", form="index", once=True)
def _permute(c: Call, index: Index, x: Reader, dims: Sequence[int]) -> Any:
    places: list[Any] = [None] * len(dims)
    for i, d in zip(index, dims, strict=True):
        places[d] = i
    return x(*places)


@lowers("aten.expand", form="index")
def _expand(c: Call, index: Index, x: Reader, shape: Any) -> Any:
    own = index[len(index) - x.rank :]
    return x(*(0 if s == 1 else i for s, i in zip(x.node.shape, own, strict=True)))


@lowers("aten.slice", form="index", once=True)
def _slice(c: Call, index: Index, x: Reader, dim: int, start: Any, end: Any, step: int) -> Any:
    moved = index[dim] * step + c.size(start)
    return x(*index[:dim], moved, *index[dim + 1 :])


@lowers("aten.slice_scatter", form="index", once=True)
def _slice_scatter(
    c: Call, index: Index, x: Reader, source: Reader, dim: int, start: Any, end: Any, step: int
) -> Any:
    offset = index[dim] - c.size(start)
    count = as_expression(source.shape[dim])
    inside = [offset >= 0, tirx.floordiv(offset, step) < count]
    if step > 1:
        inside.append(tirx.EQ(tirx.floormod(offset, step), literal(0, "int64")))
    place = (*index[:dim], tirx.floordiv(offset, step), *index[dim + 1 :])
    return c.when(all_of(inside), lambda: source(*place), lambda: x(*index))


@lowers("aten.cat", form="index", once=True)
def _cat(c: Call, index: Index, xs: Sequence[Reader], dim: int) -> Any:
    def pick(i: int, before: Any) -> Any:
        x = xs[i]
        place = (*index[:dim], index[dim] - before, *index[dim + 1 :])
        if i == len(xs) - 1:
            return x(*place)
        after = before + x.shape[dim]
        return c.when(index[dim] < after, lambda: x(*place), lambda: pick(i + 1, after))

    return pick(0, 0)


@lowers("aten.flip", form="index", once=True)
def _flip(c: Call, index: Index, x: Reader, dims: Sequence[int]) -> Any:
    return x(*(x.shape[i] - 1 - at if i in dims else at for i, at in enumerate(index)))


@lowers("aten.pad", form="index", once=True)
def _pad(c: Call, index: Index, x: Reader, amounts: Sequence[Any], mode: str, value: Any) -> Any:
    places, inside = list(index), []
    for k in range(len(amounts) // 2):
        axis = x.rank - 1 - k
        before, after = amounts[2 * k], amounts[2 * k + 1]
        at, length = index[axis] - c.size(before), x.shape[axis]
        if mode == "constant":
            if not at_least(0, before):
                inside.append(at >= 0)
            if not at_least(0, after):
                inside.append(at < length)
        elif mode == "reflect":
            at = tirx.Select(at < 0, 0 - at, at)
            at = tirx.Select(at >= length, 2 * (length - 1) - at, at)
        elif mode == "replicate":
            at = tirx.max(tirx.min(at, as_expression(length) - 1), literal(0, "int64"))
        else:
            at = tirx.Select(at < 0, at + length, tirx.Select(at >= length, at - length, at))
        places[axis] = at
    kind = storage(c.node.dtype)
    return c.when(all_of(inside), lambda: x(*places), lambda: cast(c.number(value), kind))


@lowers("aten.tril", "aten.triu", form="index", once=True)
def _triangle(c: Call, index: Index, x: Reader, diagonal: Any) -> Any:
    row, column = index[-2] + c.size(diagonal), index[-1]
    keep = column <= row if c.node.op == "aten.tril" else column >= row
    return tirx.Select(keep, x(*index), literal(0, x.dtype))


@lowers("aten.full", form="index", once=True)
def _full(c: Call, index: Index, shape: Any, value: Any, dtype: DType) -> Any:
    return c.number(value)


@lowers("aten.arange", form="index", once=True)
def _arange(c: Call, index: Index, start: Any, end: Any, step: Any, dtype: DType) -> Any:
    (i,) = index
    if any(isinstance(v, float) for v in (start, end, step)):
        wide = "float64"  # torch computes in double precision where steps are not whole
        value = literal(start, wide) + cast(i, wide) * literal(step, wide)
        return cast(value, storage(dtype))
    return cast(as_expression(c.size(start)) + i * c.size(step), storage(dtype))
