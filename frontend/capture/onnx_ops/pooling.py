"""Pooling: as one operation where that is exact, else over explicit windows."""

from __future__ import annotations

from planish.frontend.capture.onnx_ops.convolution import Ints, Pads, padded, paddings, symmetric
from planish.frontend.capture.onnx_ops.reduction import lowest
from planish.frontend.capture.onnx_ops.registry import At, Result, Size, Sizes, onnx_op
from planish.ir import types
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import f32, i64, product, size


def counts(x: Node, kernel: Ints, strides: Ints, dilations: Ints, pads: Pads, ceil: bool) -> tuple[Size, ...]:
    """How many windows there are along each axis; with ``ceil`` none begins in the padding at the end."""
    out: list[Size] = []
    for i, k in enumerate(kernel):
        length = x.shape[x.rank - len(kernel) + i]
        span = size(length + pads[i][0] + pads[i][1] - dilations[i] * (k - 1) - 1)
        if not ceil:
            out.append(size(types.floor_div(span, strides[i]) + 1))
            continue
        count = size(types.floor_div(size(span + strides[i] - 1), strides[i]) + 1)
        begun = size(types.floor_div(size(length + pads[i][0] - 1), strides[i]) + 1)
        out.append(types.minimum(count, begun))
    return tuple(out)


def exact_pads(x: Node, kernel: Ints, strides: Ints, dilations: Ints, pads: Pads, ceil: bool) -> Pads:
    """Padding with which the windows fit exactly (what no window reaches is cut)."""
    out: Pads = []
    for i, count in enumerate(counts(x, kernel, strides, dilations, pads, ceil)):
        length = x.shape[x.rank - len(kernel) + i]
        reach = size((count - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1)
        out.append((pads[i][0], size(reach - length - pads[i][0])))
    return out


def windows(x: Node, kernel: Ints, strides: Ints, dilations: Ints) -> Node:
    """All windows of the last axes: ``[..., outputs, elements of the kernel]``."""
    spatial, rank = len(kernel), x.rank
    outer = x.shape[: rank - spatial]
    found: list[Size] = []
    for i in range(spatial):
        axis = rank - spatial + 2 * i
        reach = dilations[i] * (kernel[i] - 1) + 1
        count = size(types.floor_div(size(x.shape[axis] - reach), strides[i]) + 1)
        first = aten.view(aten.mul(aten.arange(0, count), strides[i]), (count, 1))
        places = aten.add(first, aten.view(aten.arange(0, reach, dilations[i]), (1, kernel[i])))
        x = aten.index(x, (*[None] * axis, places))
        found.append(count)
    start = len(outer)
    order = [
        *range(start),
        *(start + 2 * i for i in range(spatial)),
        *(start + 2 * i + 1 for i in range(spatial)),
    ]
    return aten.view(aten.permute(x, order), (*outer, *found, product(kernel)))


def _max_pool(x: Node, kernel: Ints, strides: Ints, dilations: Ints, pads: Pads, ceil: bool) -> Node:
    spatial, even = len(kernel), symmetric(pads)
    narrow = None if x.dtype.is_float else x.dtype
    if narrow is not None:
        x = aten.to(x, f32)  # pooled integers have 8 bits
    if ceil or even is None or any(p > k // 2 for p, k in zip(even, kernel, strict=True)):
        x = padded(x, exact_pads(x, kernel, strides, dilations, pads, ceil), lowest(x.dtype))
        even = (0,) * spatial
    x = getattr(aten, f"max_pool{spatial}d")(x, kernel, strides, even, dilations)
    return x if narrow is None else aten.to(x, narrow)


@onnx_op("MaxPool")
def max_pool(
    x: Node, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints = (), kernel_shape: Ints, pads: Ints = (),
    storage_order: int = 0, strides: Ints = (), at: At,
) -> Result:  # fmt: skip
    """The largest element of each window, and where it is"""
    spatial = len(kernel_shape)
    at.need(1 <= spatial <= 3 and x.rank == spatial + 2, f"{spatial} spatial axes are not supported")
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    around = paddings(x, kernel_shape, strides, dilations, pads, auto_pad, at)
    largest = _max_pool(x, kernel_shape, strides, dilations, around, bool(ceil_mode))
    if not at.wants(1):
        return largest
    extent = exact_pads(x, kernel_shape, strides, dilations, around, bool(ceil_mode))
    values = x if x.dtype.is_float else aten.to(x, f32)
    order = range(spatial) if not storage_order else reversed(range(spatial))
    places = aten.full(x.shape[2:], 0, i64)
    for i in order:
        line = aten.view(
            aten.arange(0, x.shape[2 + i]), tuple(x.shape[2 + i] if j == i else 1 for j in range(spatial))
        )
        places = aten.add(aten.mul(places, x.shape[2 + i]), line)
    spread = windows(padded(values, extent, lowest(values.dtype)), kernel_shape, strides, dilations)
    best = aten.argmax(spread, spread.rank - 1, True)
    where = windows(padded(places, extent), kernel_shape, strides, dilations)
    index = aten.gather(
        aten.expand(aten.view(where, (1, 1, *where.shape)), spread.shape), spread.rank - 1, best
    )
    n, c = x.shape[:2]
    planes = aten.view(aten.arange(0, size(n * c)), (n, c, *[1] * spatial))
    index = aten.add(aten.view(index, largest.shape), aten.mul(planes, product(x.shape[2:])))
    return largest, index


@onnx_op("AveragePool")
def average_pool(
    x: Node, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0, dilations: Ints = (),
    kernel_shape: Ints, pads: Ints = (), strides: Ints = (), at: At,
) -> Result:  # fmt: skip
    """The mean of each window, with or without the padding"""
    spatial = len(kernel_shape)
    at.need(1 <= spatial <= 3 and x.rank == spatial + 2, f"{spatial} spatial axes are not supported")
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    around = paddings(x, kernel_shape, strides, dilations, pads, auto_pad, at)
    even = symmetric(around)
    pool = getattr(aten, f"avg_pool{spatial}d")
    dense = all(d == 1 for d in dilations)
    if (
        dense
        and not ceil_mode
        and even is not None
        and all(p <= k // 2 for p, k in zip(even, kernel_shape, strict=True))
    ):
        return pool(x, kernel_shape, strides, even, False, bool(count_include_pad))
    extent = exact_pads(x, kernel_shape, strides, dilations, around, bool(ceil_mode))
    inside = aten.full((1, 1, *x.shape[2:]), 1.0, x.dtype)
    if count_include_pad:
        inside = padded(inside, around, 1.0)
        past = [(0, size(e[1] - a[1])) for e, a in zip(extent, around, strict=True)]
        inside = padded(inside, past)
    else:
        inside = padded(inside, extent)
    whole, many = padded(x, extent), inside
    if dense:
        zero = (0,) * spatial
        return aten.div(pool(whole, kernel_shape, strides, zero), pool(many, kernel_shape, strides, zero))
    parts = [windows(v, kernel_shape, strides, dilations) for v in (whole, many)]
    return aten.div(*(aten.sum(p, (p.rank - 1,)) for p in parts))


@onnx_op("LpPool")
def lp_pool(
    x: Node, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints = (), kernel_shape: Ints, p: int = 2,
    pads: Ints = (), strides: Ints = (), at: At,
) -> Result:  # fmt: skip
    """The p-norm of each window"""
    spatial = len(kernel_shape)
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    around = paddings(x, kernel_shape, strides, dilations, pads, auto_pad, at)
    extent = exact_pads(x, kernel_shape, strides, dilations, around, bool(ceil_mode))
    parts = windows(padded(aten.pow(aten.abs(x), float(p)), extent), kernel_shape, strides, dilations)
    return aten.pow(aten.sum(parts, (parts.rank - 1,)), 1.0 / p)


@onnx_op("GlobalAveragePool")
def global_average_pool(x: Node) -> Result:
    """The mean of each channel"""
    return aten.mean(x, tuple(range(2, x.rank)), True)


@onnx_op("GlobalMaxPool")
def global_max_pool(x: Node) -> Result:
    """The largest element of each channel"""
    return aten.amax(x, tuple(range(2, x.rank)), True)


@onnx_op("GlobalLpPool")
def global_lp_pool(x: Node, *, p: int = 2) -> Result:
    """The p-norm of each channel"""
    return aten.pow(aten.sum(aten.pow(aten.abs(x), float(p)), tuple(range(2, x.rank)), True), 1.0 / p)


@onnx_op("MaxUnpool")
def max_unpool(
    x: Node,
    index: Node,
    shape: Sizes | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints = (),
    strides: Ints = (),
    at: At,
) -> Result:
    """Elements put back to where they were the largest"""
    spatial = len(kernel_shape)
    strides = strides or (1,) * spatial
    around = pads or (0,) * 2 * spatial
    grown = tuple(
        size((x.shape[2 + i] - 1) * strides[i] + kernel_shape[i] - around[i] - around[i + spatial])
        for i in range(spatial)
    )
    n, c = x.shape[:2]
    inferred = (n, c, *grown)
    want = inferred if shape is None else tuple(shape)
    # Indices count in the inferred shape; a larger one is the same places in a larger tensor.
    places = aten.view(index, (product(x.shape),))
    if want != inferred:
        at.need(all(isinstance(s, int) for s in (*want, *inferred)), "a dynamic output shape")
        parts: list[Node] = []
        for extent in reversed(inferred):
            parts.append(aten.remainder(places, extent))
            places = aten.floor_divide(places, extent)
        places = aten.full((product(x.shape),), 0, i64)
        for part, extent in zip(reversed(parts), want, strict=True):
            places = aten.add(aten.mul(places, extent), part)
    empty = aten.full((product(want),), 0.0, x.dtype)
    return aten.view(aten.scatter(empty, 0, places, aten.view(x, (product(x.shape),))), want)
