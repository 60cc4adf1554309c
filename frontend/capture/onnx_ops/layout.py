"""Shapes, joins and pieces: operators that move elements without computing."""

from __future__ import annotations

import itertools
from typing import Any

from planish.frontend.capture.onnx_ops.indexing import pick
from planish.frontend.capture.onnx_ops.pointwise import cast
from planish.frontend.capture.onnx_ops.registry import (
    At,
    Known,
    Operand,
    Result,
    Size,
    Sizes,
    Value,
    known,
    onnx_op,
)
from planish.ir import types
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.shapes import broadcast
from planish.ir.types import at_least, equal, f32, i64, product, size


@onnx_op("Constant")
def constant(
    *,
    value: Any = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_string: Any = None,
    value_strings: Any = None,
    sparse_value: Any = None,
    at: At,
) -> Result:
    """A constant of the file"""
    at.need(value_string is None and value_strings is None, "strings are not supported", "PL142")
    at.need(sparse_value is None, "sparse tensors are not supported", "PL142")
    if value is not None:
        return at.read(value)
    for dtype, given in ((f32, value_float), (f32, value_floats), (i64, value_int), (i64, value_ints)):
        if given is not None:
            return known(dtype, given)
    return at.refuse("it has no value", "PL141")


@onnx_op("ConstantOfShape")
def constant_of_shape(shape: Sizes, *, value: Any = None, at: At) -> Result:
    """A tensor filled with one number"""
    if value is None:
        return aten.full(shape, 0.0, f32)
    filling = at.read(value)
    at.need(
        isinstance(filling, Known) and len(filling.items) == 1, "the value must hold one element", "PL141"
    )
    return aten.full(shape, filling.items[0], filling.dtype)  # type: ignore[union-attr]


@onnx_op("Reshape")
def reshape(x: Node, shape: Sizes, *, allowzero: int = 0, at: At) -> Result:
    """The same elements in another shape; 0 keeps a size, -1 is computed"""
    want: list[Size] = []
    for index, each in enumerate(shape):
        if equal(each, 0) and not allowzero:
            at.need(index < x.rank, "it keeps a dimension that the input lacks", "PL141")
            each = x.shape[index]
        want.append(each)
    return aten.view(x, resolved(want, product(x.shape), at))


def resolved(shape: list[Size], numel: Size, at: At) -> tuple[Size, ...]:
    """A shape whose -1 is replaced by what is left."""
    open_ = [i for i, s in enumerate(shape) if isinstance(s, int) and s == -1]
    at.need(len(open_) <= 1, "more than one dimension is -1", "PL141")
    if open_:
        rest = product(s for i, s in enumerate(shape) if i not in open_)
        at.need(not equal(rest, 0), "a dimension that is -1 cannot be computed", "PL141")
        shape[open_[0]] = types.floor_div(numel, rest)
    return tuple(shape)


@onnx_op("Flatten")
def flatten(x: Node, *, axis: int = 1) -> Result:
    """A matrix: axes before ``axis`` are rows"""
    axis = axis + x.rank if axis < 0 else axis
    return aten.view(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@onnx_op("Squeeze")
def squeeze(x: Node, axes: Sizes | None = None, *, at: At) -> Result:
    """Axes of size one removed"""
    if axes is None:
        at.need(
            all(isinstance(s, int) or at_least(s, 2) for s in x.shape), "which axes have size one is dynamic"
        )
        gone = {i for i, s in enumerate(x.shape) if equal(s, 1)}
    else:
        gone = {int(a) % max(x.rank, 1) for a in axes}
    return aten.view(x, tuple(s for i, s in enumerate(x.shape) if i not in gone))


@onnx_op("Unsqueeze")
def unsqueeze(x: Node, axes: Sizes) -> Result:
    """Axes of size one added"""
    rank = x.rank + len(axes)
    places = {int(a) % rank for a in axes}
    rest = iter(x.shape)
    return aten.view(x, tuple(1 if i in places else next(rest) for i in range(rank)))


@onnx_op("Transpose")
def transpose(x: Node, *, perm: tuple[int, ...] | None = None) -> Result:
    """Axes in another order"""
    order = tuple(perm) if perm is not None else tuple(reversed(range(x.rank)))
    return aten.permute(x, order) if x.rank > 1 else x


@onnx_op("Expand")
def expand(x: Node, shape: Sizes) -> Result:
    """Axes of size one repeated"""
    return aten.expand(x, broadcast(x.shape, shape))


@onnx_op("Tile")
def tile(x: Node, repeats: Sizes, *, at: At) -> Result:
    """Each axis repeated as a whole"""
    at.need(len(repeats) == x.rank, f"{len(repeats)} repeats for rank {x.rank}", "PL141")
    if all(equal(r, 1) for r in repeats):
        return x
    apart = [s for extent in x.shape for s in (1, extent)]
    wide = [s for extent, r in zip(x.shape, repeats, strict=True) for s in (r, extent)]
    whole = [size(extent * r) for extent, r in zip(x.shape, repeats, strict=True)]
    return aten.view(aten.expand(aten.view(x, apart), wide), whole)


@onnx_op("Concat")
def concat(*xs: Node, axis: int) -> Result:
    """Tensors joined along an axis"""
    return aten.cat(xs, axis) if len(xs) > 1 else xs[0]


@onnx_op("Split")
def split(
    x: Node, parts: Sizes | None = None, *, axis: int = 0, num_outputs: int | None = None, at: At
) -> Result:
    """Pieces along an axis"""
    axis %= x.rank
    return tuple(
        aten.slice(x, axis, a, b) for a, b in pieces(x, parts, axis, num_outputs or len(at.node.outputs), at)
    )


def pieces(x: Node, parts: Sizes | None, axis: int, count: int, at: At) -> list[tuple[Size, Size]]:
    """Where each piece begins and ends."""
    length = x.shape[axis]
    if parts is None:
        if isinstance(length, int):
            each: Size = -(-length // count)
            parts = tuple(max(0, min(each, length - i * each)) for i in range(count))
        else:
            each = types.floor_div(length, count)
            at.need(equal(size(each * count), length), f"{length} does not split evenly into {count}")
            parts = (each,) * count
    ends: list[Size] = [0]
    for part in parts:
        ends.append(size(ends[-1] + part))
    at.need(equal(ends[-1], length) or not isinstance(ends[-1], int) or not isinstance(length, int),
            f"pieces of {ends[-1]} in all do not fill {length}", "PL141")  # fmt: skip
    return list(itertools.pairwise(ends))


@onnx_op("Slice")
def slice_axes(
    x: Node, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None, *, at: At
) -> Result:
    """A range of each axis; negative steps go backwards"""
    places = [int(a) % x.rank for a in axes] if axes is not None else list(range(len(starts)))
    strides = [int(s) for s in steps] if steps is not None else [1] * len(places)
    for axis, start, end, step in zip(places, starts, ends, strides, strict=True):
        at.need(step != 0, "a step is zero", "PL141")
        if step < 0:
            x, start, end = _backwards(x, axis, start, end)
        x = aten.slice(x, axis, start, end, abs(step))
    return x


def _backwards(x: Node, axis: int, start: Size, end: Size) -> tuple[Node, Size, Size]:
    """The flipped tensor, and where the range lies in it."""
    length = x.shape[axis]
    last = size(length - 1)

    def place(index: Size, low: int) -> Size:
        if not at_least(index, 0):
            index = size(index + length)
        return size(last - types.minimum(types.maximum(index, low), last))

    return aten.flip(x, (axis,)), place(start, 0), place(end, -1)


@onnx_op("Pad")
def pad(
    x: Node,
    pads: Sizes,
    value: Operand | None = None,
    axes: Sizes | None = None,
    *,
    mode: str = "constant",
    at: At,
) -> Result:
    """Elements added before and after each axis: a constant, or copies of the tensor's own"""
    places = [int(a) % x.rank for a in axes] if axes is not None else list(range(x.rank))
    at.need(len(pads) == 2 * len(places), f"{len(pads)} amounts for {len(places)} axes", "PL141")
    amounts: dict[int, tuple[Size, Size]] = {}
    for index, axis in enumerate(places):
        amounts[axis] = (pads[index], pads[index + len(places)])
    if mode != "constant":
        for axis, (before, after) in amounts.items():
            if not (equal(before, 0) and equal(after, 0)):
                x = _mirrored(x, axis, before, after, mode, at)
        return x
    flat = [s for axis in reversed(range(x.rank)) for s in amounts.get(axis, (0, 0))]
    if not isinstance(value, Node):
        return aten.pad(x, flat, "constant", value if value is not None else 0.0 if x.dtype.is_float else 0)
    inside = aten.pad(aten.full(x.shape, 1.0, f32), flat, "constant", 0.0)
    return aten.where(
        aten.gt(inside, 0.5), aten.pad(x, flat, "constant", 0.0 if x.dtype.is_float else 0), _scalar(value)
    )


def _scalar(x: Node) -> Node:
    return x if x.rank == 0 else aten.view(x, ())


def _mirrored(x: Node, axis: int, before: Size, after: Size, mode: str, at: At) -> Node:
    """One axis longer (or shorter) by copies of its own elements."""
    length = x.shape[axis]
    places = aten.arange(size(-before), size(length + after))
    if mode == "edge":
        places = aten.minimum(aten.maximum(places, 0), size(length - 1))
    elif mode == "wrap":
        places = aten.remainder(places, length)
    elif mode == "reflect":
        last = size(length - 1)
        if isinstance(last, int) and last == 0:
            places = aten.mul(places, 0)
        else:
            at.need(isinstance(last, int) or at_least(last, 1), f"reflection along {length}, which may be 1")
            places = aten.sub(last, aten.abs(aten.sub(aten.remainder(places, size(2 * last)), last)))
    else:
        at.refuse(f"the mode {mode!r} is not supported")
    return pick(x, axis, places)


@onnx_op("DepthToSpace")
def depth_to_space(x: Node, *, blocksize: int, mode: str = "DCR") -> Result:
    """Blocks of channels become squares of pixels"""
    n, _, h, w = x.shape
    b, rest = blocksize, types.floor_div(x.shape[1], blocksize**2)
    if mode == "DCR":
        x = aten.permute(aten.view(x, (n, b, b, rest, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        x = aten.permute(aten.view(x, (n, rest, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return aten.view(x, (n, rest, size(h * b), size(w * b)))


@onnx_op("SpaceToDepth")
def space_to_depth(x: Node, *, blocksize: int, mode: str = "DCR") -> Result:
    """Squares of pixels become blocks of channels"""
    n, c, h, w = x.shape
    b = blocksize
    rows, columns = types.floor_div(h, b), types.floor_div(w, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    x = aten.permute(aten.view(x, (n, c, rows, b, columns, b)), order)
    return aten.view(x, (n, size(c * b * b), rows, columns))


@onnx_op("Range")
def arange(start: Value, limit: Value, delta: Value, *, at: At) -> Result:
    """An arithmetic progression"""
    ends = [
        at.sizes(v, f"the input {n!r}")[0] for v, n in ((start, "start"), (limit, "limit"), (delta, "delta"))
    ]
    kind = start.dtype  # type: ignore[union-attr]
    at.need(not any(isinstance(v, float) for v in ends) or all(isinstance(v, (int, float)) for v in ends),
            "a fractional range of a dynamic length")  # fmt: skip
    if kind.is_float and kind is not types.f64:
        count = types.size(aten.arange(*(float(v) for v in ends), kind).shape[0])
        steps = aten.to(aten.arange(0, count), kind)
        return aten.add(aten.mul(steps, float(ends[2])), float(ends[0]))
    return aten.arange(*ends, kind)


@onnx_op("EyeLike")
def eye_like(x: Node, *, dtype: int | None = None, k: int = 0, at: At) -> Result:
    """Ones on a diagonal"""
    rows, columns = x.shape
    down = aten.view(aten.arange(k, size(rows + k)), (rows, 1))
    on = aten.eq(down, aten.view(aten.arange(0, columns), (1, columns)))
    return cast(on, x.dtype if dtype is None else at.dtype(dtype))


@onnx_op("Trilu")
def trilu(x: Node, k: Size | None = None, *, upper: int = 1) -> Result:
    """The upper or lower triangle"""
    return (aten.triu if upper else aten.tril)(x, 0 if k is None else k)


@onnx_op("OneHot")
def one_hot(index: Node, depth: Size, values: Node, *, axis: int = -1) -> Result:
    """``values[1]`` at the index along a new axis, else ``values[0]``"""
    rank = index.rank + 1
    axis %= rank
    off, on = (aten.view(aten.slice(values, 0, i, i + 1), ()) for i in (0, 1))
    where = cast(index, i64)
    where = aten.where(aten.lt(where, 0), aten.add(where, depth), where)
    apart = aten.view(where, (*index.shape[:axis], 1, *index.shape[axis:]))
    places = aten.view(aten.arange(0, depth), tuple(depth if i == axis else 1 for i in range(rank)))
    return aten.where(aten.eq(apart, places), on, off)
