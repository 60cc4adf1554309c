"""Views, joins and splits of ATen."""

from __future__ import annotations

from typing import Any

from planish.frontend.capture.torch_ops.base import (
    HANDLERS,
    axis_of,
    handles,
    promoted,
    refuse,
    reshaped,
    shape_with_wildcard,
)
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import Size, equal, floor_div, product, size


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


for _name in (
    "clone.default", "detach.default", "detach_.default", "alias.default", "contiguous.default",
    "lift_fresh_copy.default", "lift_fresh.default", "dropout.default",
    "feature_dropout.default", "alpha_dropout.default", "positive.default", "resolve_conj.default",
    "resolve_neg.default", "_conj_physical.default", "requires_grad_.default",
):  # fmt: skip
    HANDLERS[_name] = _same


@handles(
    "view.default", "reshape.default", "_unsafe_view.default", "view_copy.default", "_reshape_alias.default"
)
def view(x: Node, shape: Any, *_: Any) -> Node:
    """Another shape, -1 resolved."""
    return reshaped(x, shape_with_wildcard(x, shape))


@handles("view_as.default", "reshape_as.default")
def view_as(x: Node, other: Node) -> Node:
    """The shape of another tensor."""
    return reshaped(x, other.shape)


@handles("flatten.using_ints")
def flatten(x: Node, start: int = 0, end: int = -1) -> Node:
    """Axes merged into one."""
    if not x.rank:
        return aten.view(x, [1])
    start, end = axis_of(start, x.rank), axis_of(end, x.rank)
    return reshaped(x, [*x.shape[:start], product(x.shape[start : end + 1]), *x.shape[end + 1 :]])


@handles("unflatten.int")
def unflatten(x: Node, dim: int, sizes: Any) -> Node:
    """One axis split into several."""
    dim = axis_of(dim, x.rank)
    sizes = [size(s) for s in sizes]
    known = product(s for s in sizes if s != -1)
    sizes = [floor_div(x.shape[dim], known) if s == -1 else s for s in sizes]
    return reshaped(x, [*x.shape[:dim], *sizes, *x.shape[dim + 1 :]])


@handles("unsqueeze.default", "unsqueeze_copy.default")
def unsqueeze(x: Node, dim: int) -> Node:
    """A new axis of size one."""
    dim %= x.rank + 1
    return aten.view(x, [*x.shape[:dim], 1, *x.shape[dim:]])


@handles("squeeze.default", "squeeze.dim", "squeeze.dims", "squeeze_copy.dims")
def squeeze(x: Node, dims: Any = None) -> Node:
    """Axes of size one removed."""
    given = range(x.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    chosen = [axis_of(d, x.rank) for d in given]
    return reshaped(x, [s for i, s in enumerate(x.shape) if not (i in chosen and equal(s, 1))])


@handles("permute.default", "permute_copy.default")
def permute(x: Node, dims: Any) -> Node:
    """Axes in another order."""
    return aten.permute(x, list(dims))


@handles("transpose.int", "swapaxes.default", "transpose_copy.int")
def transpose(x: Node, a: int, b: int) -> Node:
    """Two axes exchanged."""
    if not x.rank:
        return x
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    return aten.permute(x, order)


@handles("t.default", "numpy_T.default", "t_copy.default")
def t(x: Node) -> Node:
    """Axes reversed."""
    return x if x.rank < 2 else aten.permute(x, list(range(x.rank))[::-1])


HANDLERS["mT.default"] = lambda x: transpose(x, -2, -1)


@handles("movedim.intlist", "movedim.int")
def movedim(x: Node, source: Any, target: Any) -> Node:
    """Axes moved."""
    sources = [axis_of(s, x.rank) for s in ([source] if isinstance(source, int) else source)]
    targets = [axis_of(d, x.rank) for d in ([target] if isinstance(target, int) else target)]
    order: list[Any] = [None] * x.rank
    for s, d in zip(sources, targets, strict=True):
        order[d] = s
    rest = iter(i for i in range(x.rank) if i not in sources)
    return aten.permute(x, [next(rest) if o is None else o for o in order])


@handles("expand.default", "expand_copy.default", "broadcast_to.default")
def expand(x: Node, shape: Any, *, implicit: bool = False) -> Node:
    """Axes of size one repeated; -1 keeps a size."""
    missing = len(shape) - x.rank
    target = [x.shape[i - missing] if s == -1 else size(s) for i, s in enumerate(shape)]
    return x if tuple(target) == x.shape else aten.expand(x, target)


@handles("expand_as.default")
def expand_as(x: Node, other: Node) -> Node:
    """The shape of another tensor."""
    return expand(x, other.shape)


@handles("broadcast_tensors.default")
def broadcast_tensors(xs: Any) -> list[Node]:
    """All to one shape."""
    from planish.ir.shapes import broadcast

    shape = broadcast(*(x.shape for x in xs))
    return [expand(x, shape) for x in xs]


@handles("slice.Tensor", "slice_copy.Tensor")
def slice_axis(x: Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Node:
    """A range of one axis."""
    length = x.shape[axis_of(dim, x.rank)]
    node: Node = aten.slice(x, dim, 0 if start is None else start, length if end is None else end, step)
    return x if node.shape == x.shape and step == 1 else node


@handles("select.int", "select_copy.int")
def select(x: Node, dim: int, index: Any) -> Node:
    """One place of an axis, the axis removed."""
    dim = axis_of(dim, x.rank)
    begin = size(x.shape[dim] + index) if isinstance(index, int) and index < 0 else size(index)
    row = aten.slice(x, dim, begin, size(begin + 1))
    return aten.view(row, [*x.shape[:dim], *x.shape[dim + 1 :]])


@handles("narrow.default")
def narrow(x: Node, dim: int, start: Any, length: Any) -> Node:
    """A range by start and length."""
    return slice_axis(x, dim, start, size(start + length))


@handles("split_with_sizes.default", "split.sizes", "split_with_sizes_copy.default")
def split_sizes(x: Node, sizes: Any, dim: int = 0) -> list[Node]:
    """Ranges of given lengths."""
    out, begin = [], 0
    for length in sizes:
        end = size(begin + length)
        out.append(slice_axis(x, dim, begin, end))
        begin = end
    return out


@handles("split.Tensor", "split_copy.Tensor")
def split(x: Node, length: Any, dim: int = 0) -> list[Node]:
    """Ranges of one length."""
    whole = x.shape[axis_of(dim, x.rank)]
    count = floor_div(size(whole + length - 1), size(length))
    if not isinstance(count, int):
        raise refuse(f"a split of {whole} by {length} has a number of parts that depends on a dynamic size")
    return [slice_axis(x, dim, size(i * length), size((i + 1) * length)) for i in range(count)]


@handles("chunk.default")
def chunk(x: Node, chunks: int, dim: int = 0) -> list[Node]:
    """At most ``chunks`` ranges of one length."""
    whole = x.shape[axis_of(dim, x.rank)]
    return split(x, floor_div(size(whole + chunks - 1), chunks), dim)


@handles("tensor_split.sections")
def tensor_split(x: Node, sections: int, dim: int = 0) -> list[Node]:
    """Ranges that differ by at most one."""
    whole = x.shape[axis_of(dim, x.rank)]
    if not isinstance(whole, int):
        raise refuse("tensor_split of a dynamic axis")
    return split_sizes(x, [whole // sections + (i < whole % sections) for i in range(sections)], dim)


@handles("unbind.int", "unbind_copy.int")
def unbind(x: Node, dim: int = 0) -> list[Node]:
    """Every place of an axis."""
    length = x.shape[axis_of(dim, x.rank)]
    if not isinstance(length, int):
        raise refuse(f"unbind of a dynamic axis of {length}")
    return [select(x, dim, i) for i in range(length)]


@handles("cat.default", "concat.default", "concatenate.default")
def cat(xs: Any, dim: int = 0) -> Node:
    """Tensors joined; empty one-dimensional ones are ignored, as torch does."""
    parts = [x for x in xs if not (x.rank == 1 and equal(x.shape[0], 0))] or [xs[0]]
    parts = list(promoted(*parts))
    return parts[0] if len(parts) == 1 else aten.cat(parts, dim)


@handles("stack.default")
def stack(xs: Any, dim: int = 0) -> Node:
    """Tensors joined along a new axis."""
    dim %= xs[0].rank + 1
    parts = [unsqueeze(x, dim) for x in promoted(*xs)]
    return parts[0] if len(parts) == 1 else aten.cat(parts, dim)


@handles("repeat.default", "tile.default")
def repeat(x: Node, counts: Any) -> Node:
    """Whole copies along axes."""
    counts = [size(c) for c in counts]
    counts = [1] * (x.rank - len(counts)) + counts
    shape: list[Size] = [1] * (len(counts) - x.rank) + list(x.shape)
    if all(equal(c, 1) or equal(s, 1) for c, s in zip(counts, shape, strict=True)):
        return expand(x, [s if equal(c, 1) else c for c, s in zip(counts, shape, strict=True)])
    spread = [v for s in shape for v in (1, s)]
    wide = [v for c, s in zip(counts, shape, strict=True) for v in (c, s)]
    whole = [product(pair) for pair in zip(counts, shape, strict=True)]
    return reshaped(aten.expand(reshaped(x, spread), wide), whole)


@handles("repeat_interleave.self_int")
def repeat_interleave(x: Node, count: Any, dim: int | None = None, *, output_size: Any = None) -> Node:
    """Every place of an axis repeated."""
    if dim is None:
        x, dim = reshaped(x, [x.tensor.numel]), 0
    dim = axis_of(dim, x.rank)
    before, after = x.shape[: dim + 1], x.shape[dim + 1 :]
    wide = aten.expand(aten.view(x, [*before, 1, *after]), [*before, count, *after])
    return aten.view(wide, [*x.shape[:dim], product((x.shape[dim], size(count))), *after])


@handles("flip.default")
def flip(x: Node, dims: Any) -> Node:
    """Axes reversed in place."""
    return aten.flip(x, list(dims))


@handles("roll.default")
def roll(x: Node, shifts: Any, dims: Any = ()) -> Node:
    """Axes rotated."""
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        return reshaped(roll(reshaped(x, [x.tensor.numel]), shifts, [0]), x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        length = x.shape[axis_of(dim, x.rank)]
        at = (-shift) % length if isinstance(length, int) else size(length - shift) if shift >= 0 else -shift
        if at != 0:
            x = aten.cat([aten.slice(x, dim, at, length), aten.slice(x, dim, 0, at)], dim)
    return x


@handles("constant_pad_nd.default")
def constant_pad(x: Node, amounts: Any, value: Any = 0.0) -> Node:
    """Padding with a number; negative amounts crop."""
    return pad(x, amounts, "constant", value)


@handles("pad.default")
def pad(x: Node, amounts: Any, mode: str = "constant", value: Any = None) -> Node:
    """Padding of the last axes; negative amounts crop."""
    amounts = [size(a) for a in amounts]
    for i in range(len(amounts) // 2):
        begin, end = amounts[2 * i], amounts[2 * i + 1]
        dim = x.rank - 1 - i
        cut = (
            -begin if isinstance(begin, int) and begin < 0 else 0,
            -end if isinstance(end, int) and end < 0 else 0,
        )
        if any(cut):
            x = aten.slice(x, dim, cut[0], size(x.shape[dim] - cut[1]))
    amounts = [0 if isinstance(a, int) and a < 0 else a for a in amounts]
    if all(equal(a, 0) for a in amounts):
        return x
    fill = 0.0 if value is None else value
    return aten.pad(x, amounts, mode, bool(fill) if x.dtype.name == "bool" else fill)


for _n in (1, 2, 3):
    HANDLERS[f"reflection_pad{_n}d.default"] = lambda x, a: pad(x, a, "reflect")
    HANDLERS[f"replication_pad{_n}d.default"] = lambda x, a: pad(x, a, "replicate")


@handles("unfold.default")
def unfold(x: Node, dim: int, length: int, step: int) -> Node:
    """Sliding windows of an axis, as a new last axis."""
    dim = axis_of(dim, x.rank)
    have = x.shape[dim]
    count = size(floor_div(size(have - length), step) + 1)
    starts = aten.mul(aten.arange(0, count), step)
    places = aten.add(aten.view(starts, [count, 1]), aten.arange(0, length))
    rows = aten.index_select(x, dim, reshaped(places, [product((count, length))]))
    wide = aten.view(rows, [*x.shape[:dim], count, length, *x.shape[dim + 1 :]])
    order = [i for i in range(wide.rank) if i != dim + 1] + [dim + 1]
    return aten.permute(wide, order)


@handles("pixel_shuffle.default")
def pixel_shuffle(x: Node, factor: int) -> Node:
    """Channels to space."""
    *batch, c, h, w = x.shape
    n = len(batch)
    wide = aten.view(x, [*batch, floor_div(c, factor * factor), factor, factor, h, w])
    turned = aten.permute(wide, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return aten.view(
        turned, [*batch, floor_div(c, factor * factor), product((h, factor)), product((w, factor))]
    )


@handles("pixel_unshuffle.default")
def pixel_unshuffle(x: Node, factor: int) -> Node:
    """Space to channels."""
    *batch, c, h, w = x.shape
    n = len(batch)
    wide = aten.view(x, [*batch, c, floor_div(h, factor), factor, floor_div(w, factor), factor])
    turned = aten.permute(wide, [*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return aten.view(
        turned, [*batch, product((c, factor * factor)), floor_div(h, factor), floor_div(w, factor)]
    )


@handles("channel_shuffle.default")
def channel_shuffle(x: Node, groups: int) -> Node:
    """Channels interleaved between groups."""
    n, c, *rest = x.shape
    wide = aten.view(x, [n, groups, floor_div(c, groups), *rest])
    return reshaped(aten.permute(wide, [0, 2, 1, *range(3, wide.rank)]), x.shape)


@handles("diagonal.default", "diagonal_copy.default")
def diagonal(x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    """The diagonal of two axes, as the last axis."""
    a, b = axis_of(dim1, x.rank), axis_of(dim2, x.rank)
    rows, columns = x.shape[a], x.shape[b]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise refuse("the diagonal of dynamic axes")
    begin = max(0, -offset) * columns + max(0, offset)
    count = max(0, min(rows - max(0, -offset), columns - max(0, offset)))
    order = [i for i in range(x.rank) if i not in (a, b)] + [a, b]
    moved = aten.permute(x, order)
    flat = aten.view(moved, [*moved.shape[:-2], rows * columns])
    return aten.slice(flat, -1, begin, begin + (count - 1) * (columns + 1) + 1, columns + 1)


@handles("meshgrid.indexing", "meshgrid.default")
def meshgrid(xs: Any, *, indexing: str = "ij") -> list[Node]:
    """Coordinate grids."""
    shape = [x.shape[0] if x.rank else 1 for x in xs]
    out = []
    for i, x in enumerate(xs):
        line = aten.view(x, [s if j == i else 1 for j, s in enumerate(shape)])
        grid = expand(line, shape)
        out.append(transpose(grid, 0, 1) if indexing == "xy" and len(xs) > 1 else grid)
    if indexing == "xy" and len(xs) > 1:
        x, y = xs[0], xs[1]
        rest = shape[2:]
        whole = [shape[1], shape[0], *rest]
        out[0] = expand(aten.view(x, [1, shape[0], *[1] * len(rest)]), whole)
        out[1] = expand(aten.view(y, [shape[1], 1, *[1] * len(rest)]), whole)
    return out
