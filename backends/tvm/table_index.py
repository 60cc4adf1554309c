"""Reading at computed places. A place counts from the end if it is negative; one outside is moved to the edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, as_expression, cast, literal
from planish.backends.tvm.table import lowers


def place(c: Call, value: Any, size: Any) -> Any:
    """A place along an axis of ``size`` elements, as i64; nothing outside of the axis is ever read or written."""
    size = as_expression(size)
    at = c.let(cast(value, "int64"))
    zero = literal(0, "int64")
    moved = tirx.Select(at < zero, at + size, at)
    return c.let(tirx.max(tirx.min(moved, size - 1), zero))


@lowers("aten.embedding", form="index", once=True)
def _embedding(c: Call, index: Index, table: Reader, ids: Reader) -> Any:
    *lead, channel = index
    return table(place(c, ids(*lead), table.shape[0]), channel)


@lowers("aten.gather", form="index", once=True)
def _gather(c: Call, index: Index, x: Reader, dim: int, places: Reader) -> Any:
    at = list(index)
    if at:
        at[dim] = place(c, places(*index), x.shape[dim])
    return x(*at)


@lowers("aten.index_select", form="index", once=True)
def _index_select(c: Call, index: Index, x: Reader, dim: int, places: Reader) -> Any:
    at = list(index)
    at[dim] = place(c, places(index[dim]), x.shape[dim])
    return x(*at)


@lowers("aten.index", form="index", once=True)
def _index(c: Call, index: Index, x: Reader, indices: Sequence[Reader | None]) -> Any:
    return x(*indexed(c, index, x.shape, indices))


def indexed(c: Call, index: Index, sizes: Sequence[Any], indices: Sequence[Reader | None]) -> list[Any]:
    """Where advanced indexing reads for an element of its result."""
    given = [i for i, t in enumerate(indices) if t is not None]
    readers = [t for t in indices if t is not None]
    joint = max(t.rank for t in readers)
    adjacent = given == list(range(given[0], given[-1] + 1))
    begin = given[0] if adjacent else 0
    own, rest = index[begin : begin + joint], [*index[:begin], *index[begin + joint :]]
    found: list[Any] = []
    for axis, size in enumerate(sizes):
        reader = indices[axis] if axis < len(indices) else None
        if reader is None:
            found.append(rest.pop(0))
            continue
        mine = own[joint - reader.rank :]
        at = [0 if s == 1 else i for s, i in zip(reader.node.shape, mine, strict=True)]
        found.append(place(c, reader(*at), size))
    return found
