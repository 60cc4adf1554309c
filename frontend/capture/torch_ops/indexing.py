"""Gathers and scatters of ATen."""

from __future__ import annotations

from typing import Any

from planish.frontend.capture.torch_ops.base import HANDLERS, axis_of, cast, handles, refuse, tensor
from planish.frontend.capture.torch_ops.structure import expand
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import boolean, equal, i64, size


def whole_index(index: Node) -> Node:
    """An index as i64."""
    return cast(index, i64)


@handles("embedding.default")
def embedding(table: Node, ids: Node, padding: int = -1, *_: Any) -> Node:
    """Rows of a table."""
    return aten.embedding(table, ids)


@handles("gather.default")
def gather(x: Node, dim: int, index: Node, *, sparse_grad: bool = False) -> Node:
    """One value per index."""
    return aten.gather(x, dim, index)


@handles("index_select.default")
def index_select(x: Node, dim: int, index: Node) -> Node:
    """Slices by index."""
    return aten.index_select(x, dim, index)


@handles("take_along_dim.default")
def take_along(x: Node, index: Node, dim: int | None = None) -> Node:
    """gather with broadcast sizes."""
    if dim is None:
        raise refuse("take_along_dim without an axis")
    dim = axis_of(dim, x.rank)
    shape = [index.shape[i] if i == dim else x.shape[i] for i in range(x.rank)]
    return aten.gather(x, dim, expand(index, shape))


@handles("index.Tensor", "_unsafe_index.Tensor")
def index(x: Node, indices: Any) -> Node:
    """Advanced indexing; negative places count from the end only in data, as in torch."""
    if any(i is not None and i.dtype is boolean for i in indices):
        raise refuse("indexing by a bool mask gives a size that depends on the data", "PL102")
    return aten.index(x, [None if i is None else whole_index(i) for i in indices])


@handles("index_put.default", "_unsafe_index_put.default")
def index_put(x: Node, indices: Any, values: Node, accumulate: bool = False) -> Node:
    """Values written at indexed places."""
    given = [i for i in indices if i is not None]
    if len(given) == 1 and given[0].dtype is boolean and indices[0] is not None:
        mask = given[0]
        if values.rank == 0 or equal(values.tensor.numel, 1):
            wide = aten.view(mask, [*mask.shape, *[1] * (x.rank - mask.rank)])
            fill = cast(aten.view(values, []) if values.rank else values, x.dtype)
            return aten.where(wide, aten.add(x, fill) if accumulate else fill, x)
        raise refuse("writing many values by a bool mask depends on the data", "PL102")
    if any(i.dtype is boolean for i in given):
        raise refuse("writing by a bool mask among indices depends on the data", "PL102")
    places = [None if i is None else whole_index(i) for i in indices]
    return aten.index_put(x, places, cast(values, x.dtype), accumulate)


@handles("scatter.src")
def scatter(x: Node, dim: int, index: Node, source: Node) -> Node:
    """Values written along one axis."""
    return aten.scatter(x, dim, index, source)


@handles("scatter.value")
def scatter_value(x: Node, dim: int, index: Node, value: Any) -> Node:
    """One number written along one axis."""
    return aten.scatter(x, dim, index, aten.expand(tensor(cast(value, x.dtype), x.dtype), index.shape))


@handles("scatter_add.default")
def scatter_add(x: Node, dim: int, index: Node, source: Node) -> Node:
    """Values added along one axis."""
    return aten.scatter_add(x, dim, index, source)


@handles("scatter_reduce.two")
def scatter_reduce(
    x: Node, dim: int, index: Node, source: Node, reduce: str, *, include_self: bool = True
) -> Node:  # fmt: skip
    """Values combined along one axis."""
    return aten.scatter_reduce(x, dim, index, source, reduce, include_self)


@handles("index_add.default")
def index_add(x: Node, dim: int, index: Node, source: Node, *, alpha: Any = 1) -> Node:
    """Slices added at indexed places."""
    dim = axis_of(dim, x.rank)
    wide = aten.view(index, [index.shape[0] if i == dim else 1 for i in range(x.rank)])
    places = expand(wide, source.shape)
    return aten.scatter_add(x, dim, places, source if alpha == 1 else aten.mul(source, cast(alpha, x.dtype)))


@handles("index_copy.default")
def index_copy(x: Node, dim: int, index: Node, source: Node) -> Node:
    """Slices written at indexed places."""
    dim = axis_of(dim, x.rank)
    wide = aten.view(index, [index.shape[0] if i == dim else 1 for i in range(x.rank)])
    return aten.scatter(x, dim, expand(wide, source.shape), source)


@handles("index_fill.int_Scalar")
def index_fill(x: Node, dim: int, index: Node, value: Any) -> Node:
    """One number written at indexed places."""
    dim = axis_of(dim, x.rank)
    shape = [index.shape[0] if i == dim else s for i, s in enumerate(x.shape)]
    return index_copy(x, dim, index, aten.full(shape, cast(value, x.dtype), x.dtype))


@handles("slice_scatter.default")
def slice_scatter(
    x: Node, source: Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Node:  # fmt: skip
    """A range replaced."""
    length = x.shape[axis_of(dim, x.rank)]
    begin, stop = (0 if start is None else start), (length if end is None else end)
    if step == 1 and source.shape == x.shape:
        return cast(source, x.dtype)
    want = aten.slice(x, dim, begin, stop, step).shape
    return aten.slice_scatter(x, expand(cast(source, x.dtype), want), dim, begin, stop, step)


@handles("select_scatter.default")
def select_scatter(x: Node, source: Node, dim: int, place: Any) -> Node:
    """One place of an axis replaced."""
    dim = axis_of(dim, x.rank)
    begin = size(x.shape[dim] + place) if isinstance(place, int) and place < 0 else size(place)
    row = aten.view(cast(source, x.dtype), [*x.shape[:dim], 1, *x.shape[dim + 1 :]])
    return aten.slice_scatter(x, row, dim, begin, size(begin + 1))


@handles("masked_scatter.default")
def masked_scatter(x: Node, mask: Node, source: Node) -> Node:
    """Values of the source, in order, where the mask is true."""
    from planish.frontend.capture.torch_ops.base import reshaped

    wide = expand(mask, x.shape)
    flat = reshaped(wide, [x.tensor.numel])
    order = aten.sub(aten.cumsum(aten.to(flat, i64), 0), 1)
    last = size(source.tensor.numel - 1)
    picked = aten.index_select(reshaped(source, [source.tensor.numel]), 0, aten.clamp(order, 0, last))
    return aten.where(wide, reshaped(picked, x.shape), x)


@handles("nonzero.default", "masked_select.default", "unique_consecutive.default", "_unique2.default")
def data_dependent(*_: Any, **__: Any) -> Node:
    """Refused: the size depends on the data."""
    raise refuse("the size of its result depends on the data", "PL102")


HANDLERS["bucketize.Tensor"] = lambda x, boundaries, *, out_int32=False, right=False: aten.sum(
    aten.to((aten.ge if right else aten.gt)(aten.view(x, [*x.shape, 1]), boundaries), i64), [-1]
)
