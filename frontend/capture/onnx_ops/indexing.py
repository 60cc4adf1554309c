"""Gathers and scatters."""

from __future__ import annotations

from planish.frontend.capture.onnx_ops.pointwise import cast
from planish.frontend.capture.onnx_ops.registry import At, Known, NeedsValue, Result, Value, known, onnx_op
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import Size, i64, product, size

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def pick(x: Node, axis: int, index: Node) -> Node:
    """Slices of an axis by an index tensor, which takes the axis' place; negative indices count from the end."""
    return aten.index(x, (*[None] * axis, cast(index, i64)))


def wrap(index: Node, length: Size) -> Node:
    """An index whose negative elements count from the end."""
    index = cast(index, i64)
    return aten.where(aten.lt(index, 0), aten.add(index, length), index)


@onnx_op("Gather")
def gather(x: Node, index: Value, *, axis: int = 0, at: At) -> Result:
    """Slices of an axis by index"""
    axis %= x.rank
    length = x.shape[axis]
    if isinstance(index, Known) and len(index.items) == 1:
        place = index.items[0]
        start = place if not isinstance(place, int) or place >= 0 else size(length + place)
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        return aten.view(aten.slice(x, axis, start, size(start + 1)), shape)
    places = at.node_of(index)
    if x.op == "const" and x.rank == 2 and axis == 0 and x.dtype.is_float:
        return aten.embedding(x, places)
    return pick(x, axis, places)


@onnx_op("GatherElements")
def gather_elements(x: Node, index: Value, *, axis: int = 0, at: At) -> Result:
    """One element per index along an axis"""
    axis %= x.rank
    return aten.gather(x, axis, _wrapped(index, x.shape[axis], at))


def _wrapped(index: Value, length: Size, at: At) -> Node:
    if isinstance(index, Known) and index.numeric and isinstance(length, int):
        return at.node_of(known(i64, [v + length if v < 0 else v for v in index.items], index.shape))
    return wrap(at.node_of(index), length)


def _coordinates(x: Node, index: Node, batch: int, at: At) -> list[Node]:
    """The index tensors of each axis from coordinates on the last axis, after ``batch`` shared axes."""
    depth = index.shape[-1]
    if not isinstance(depth, int):
        at.refuse("the number of coordinates is dynamic")
    index = cast(index, i64)
    outer = index.shape[:-1]
    found: list[Node] = []
    for axis in range(batch):
        counted = aten.arange(0, x.shape[axis])
        found.append(aten.view(counted, tuple(x.shape[axis] if i == axis else 1 for i in range(len(outer)))))
    for column in range(depth):
        found.append(aten.view(aten.slice(index, index.rank - 1, column, column + 1), outer))
    return found


@onnx_op("GatherND")
def gather_nd(x: Node, index: Node, *, batch_dims: int = 0, at: At) -> Result:
    """Slices by coordinates"""
    return aten.index(x, _coordinates(x, index, batch_dims, at))


@onnx_op("ScatterElements")
def scatter_elements(
    x: Node, index: Value, updates: Node, *, axis: int = 0, reduction: str = "none", at: At
) -> Result:
    """Elements written along an axis"""
    axis %= x.rank
    places = _wrapped(index, x.shape[axis], at)
    if reduction == "none":
        return aten.scatter(x, axis, places, updates)
    at.need(reduction in _REDUCE, f"the reduction {reduction!r} is not supported")
    return aten.scatter_reduce(x, axis, places, updates, _REDUCE[reduction])


@onnx_op("ScatterND")
def scatter_nd(x: Node, index: Node, updates: Node, *, reduction: str = "none", at: At) -> Result:
    """Slices written at coordinates"""
    where = _coordinates(x, index, 0, at)
    if reduction in ("none", "add"):
        return aten.index_put(x, where, updates, reduction == "add")
    at.need(reduction in _REDUCE, f"the reduction {reduction!r} is not supported")
    depth = len(where)
    count, width = product(index.shape[:-1]), product(x.shape[depth:])
    flat = aten.full((count,), 0, i64)
    for axis, column in enumerate(where):
        flat = aten.add(aten.mul(flat, x.shape[axis]), wrap(aten.view(column, (count,)), x.shape[axis]))
    places = aten.expand(aten.view(flat, (count, 1)), (count, width))
    rows = aten.view(x, (product(x.shape[:depth]), width))
    done = aten.scatter_reduce(rows, 0, places, aten.view(updates, (count, width)), _REDUCE[reduction])
    return aten.view(done, x.shape)


@onnx_op("TensorScatter")
def tensor_scatter(
    past: Node, update: Node, start: Node | None = None, *, axis: int = -2, mode: str = "linear", at: At
) -> Result:
    """A cache with new rows written from a place of each batch entry"""
    axis %= past.rank
    rows, length = update.shape[axis], past.shape[axis]
    places = aten.view(aten.arange(0, rows), tuple(rows if i == axis else 1 for i in range(past.rank)))
    if start is not None:
        batch = past.shape[0]
        places = aten.add(places, aten.view(cast(start, i64), (batch, *[1] * (past.rank - 1))))
    if mode == "circular":
        places = aten.remainder(places, length)
    return aten.scatter(past, axis, aten.expand(places, update.shape), update)


@onnx_op("Compress")
def compress(x: Node, condition: Value, *, axis: int | None = None, at: At) -> Result:
    """Slices where a condition holds, which must be known"""
    if not isinstance(condition, Known):
        at.unknown(condition, "the input 'condition'")
    if axis is None:
        x, axis = aten.view(x, (product(x.shape),)), 0
    axis %= x.rank
    kept = [i for i, on in enumerate(condition.items) if on]
    return aten.index_select(x, axis, at.node_of(known(i64, kept, (len(kept),))))


@onnx_op("ReverseSequence")
def reverse_sequence(x: Node, lengths: Node, *, batch_axis: int = 1, time_axis: int = 0) -> Result:
    """Each sequence of a batch backwards, up to its own length"""
    steps, batch = x.shape[time_axis], x.shape[batch_axis]

    def along(v: Node, axis: int, extent: Size) -> Node:
        return aten.view(v, tuple(extent if i == axis else 1 for i in range(x.rank)))

    t = along(aten.arange(0, steps), time_axis, steps)
    n = along(cast(lengths, i64), batch_axis, batch)
    places = aten.where(aten.lt(t, n), aten.sub(aten.sub(n, 1), t), t)
    return aten.gather(x, time_axis, aten.expand(places, x.shape))


@onnx_op("NonZero", "Unique", "NonMaxSuppression")
def data_dependent(*xs: Value, at: At, **_: object) -> Result:
    """Refused: how many results there are is seen only when the model runs"""
    raise NeedsValue("PL143", "the shape of its result depends on data", where=at.where)
