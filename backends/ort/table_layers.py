"""Products, convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planish.backends.ort.graph import fixed
from planish.backends.ort.table import COMMON, Call, lowers
from planish.ir.types import Size


@lowers("aten.linear", native=COMMON)
def _linear(c: Call, x: str, weight: str, bias: str | None) -> str:
    """The weight is read as it is stored, transposed in place: it may serve an embedding as well."""
    rank = c.type(0).rank
    if c.dtype.name != "f32":
        out = c.op("MatMul", x, c.op("Transpose", weight, perm=[1, 0]))
        return out if bias is None else c.op("Add", out, bias)
    if rank == 2:
        return c.op("Gemm", x, weight, bias, transB=1)
    row = c.op("Unsqueeze", x, c.graph.ints(0)) if rank == 1 else x
    out = c.contrib("FusedMatMul", row, weight, transB=1)
    out = c.op("Squeeze", out, c.graph.ints(0)) if rank == 1 else out
    return out if bias is None else c.op("Add", out, bias)


@lowers("aten.matmul", native=COMMON)
def _matmul(c: Call, a: str, b: str) -> str:
    return c.op("MatMul", a, b)


@lowers("aten.convolution", native="f32")
def _convolution(
    c: Call, x: str, weight: str, bias: str | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> str:  # fmt: skip
    shared = {
        "strides": list(stride), "pads": [*padding, *padding], "dilations": list(dilation), "group": groups,
        "kernel_shape": [int(s) for s in c.shape(1)[2:]] if fixed(c.shape(1)[2:]) else None,
    }  # fmt: skip
    if not transposed:
        return c.op("Conv", x, weight, bias, **shared)
    extra = list(output_padding) if any(output_padding) else None
    return c.op("ConvTranspose", x, weight, bias, output_padding=extra, **shared)


def batched(c: Call, x: str, spatial: int, body: Callable[[str], str]) -> str:
    """Apply ``body`` with a batch axis, adding one where the input has none."""
    if c.type(0).rank == spatial + 2:
        return body(x)
    return c.op("Squeeze", body(c.op("Unsqueeze", x, c.graph.ints(0))), c.graph.ints(0))


@lowers("aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", native="f32 f64 i8 u8")
def _max_pool(
    c: Call, x: str, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil: bool,
) -> str:  # fmt: skip
    def body(value: str) -> str:
        return c.op(
            "MaxPool", value, kernel_shape=list(kernel), strides=list(stride), pads=[*padding, *padding],
            dilations=list(dilation) if any(d != 1 for d in dilation) else None, ceil_mode=int(ceil),
        )  # fmt: skip

    return batched(c, x, len(kernel), body)


@lowers("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", native="f32")
def _avg_pool(
    c: Call, x: str, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool,
    count_include_pad: bool,
) -> str:  # fmt: skip
    def body(value: str) -> str:
        return c.op(
            "AveragePool", value, kernel_shape=list(kernel), strides=list(stride), pads=[*padding, *padding],
            ceil_mode=int(ceil), count_include_pad=int(count_include_pad),
        )  # fmt: skip

    return batched(c, x, len(kernel), body)


@lowers("aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d", native="f32 f64")
def _adaptive_avg(c: Call, x: str, output: Sequence[Size]) -> str:
    return _adaptive(c, x, output, "ReduceMean", "AveragePool", _average_axis)


@lowers("aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d", native="f32 f64")
def _adaptive_max(c: Call, x: str, output: Sequence[Size]) -> str:
    return _adaptive(c, x, output, "ReduceMax", "MaxPool", _largest_of_axis)


def _adaptive(
    c: Call, x: str, output: Sequence[Size], reduce: str, pool: str, along: Callable[[Call, str, int, Size, Size], str]
) -> str:  # fmt: skip
    shape = c.shape()
    first = len(shape) - len(output)
    have = shape[first:]
    if all(o == 1 for o in output):
        return c.op(reduce, x, c.graph.ints(*range(first, len(shape))), keepdims=1)
    pairs = list(zip(have, output, strict=True))
    if c.dtype.name == "f32" and all(
        isinstance(a, int) and isinstance(b, int) and b > 0 and a % b == 0 for a, b in pairs
    ):
        kernel = [int(a // b) for a, b in pairs]
        return batched(
            c, x, len(output), lambda value: c.op(pool, value, kernel_shape=kernel, strides=kernel)
        )
    for i, (a, b) in enumerate(pairs):
        if a != b:
            x = along(c, x, first + i, a, b)
    return x


def _windows(c: Call, have: Size, want: Size) -> tuple[str, str]:
    """First and one-past-last place of each window: i*have // want and -(-(i+1)*have // want), ``i64[want, 1]``."""
    i = c.op("Range", c.number(0, "i64"), c.graph.scalar(want), c.number(1, "i64"))
    i = c.op("Unsqueeze", i, c.graph.ints(1))
    length, count = c.graph.size(have), c.graph.size(want)
    start = c.op("Div", c.op("Mul", i, length), count)
    after = c.op("Mul", c.op("Add", i, c.number(1, "i64")), length)
    end = c.op("Div", c.op("Sub", c.op("Add", after, count), c.number(1, "i64")), count)
    return start, end


def _average_axis(c: Call, x: str, axis: int, have: Size, want: Size) -> str:
    """Multiply by a matrix that holds 1/n where a place belongs to a window of n places."""
    start, end = _windows(c, have, want)
    places = c.op("Range", c.number(0, "i64"), c.graph.scalar(have), c.number(1, "i64"))
    inside = c.op("And", c.op("GreaterOrEqual", places, start), c.op("Less", places, end))
    share = c.op("Div", c.graph.cast(inside, c.dtype), c.graph.cast(c.op("Sub", end, start), c.dtype))
    rank = c.type(0).rank
    order = [i for i in range(rank) if i != axis] + [axis]
    last = axis == rank - 1
    turned = x if last else c.op("Transpose", x, perm=order)
    out = c.op("MatMul", turned, c.op("Transpose", share, perm=[1, 0]))
    return out if last else c.op("Transpose", out, perm=[order.index(i) for i in range(rank)])


def _largest_of_axis(c: Call, x: str, axis: int, have: Size, want: Size) -> str:
    """Gather each window, the last place repeated to one length, and take the largest."""
    start, end = _windows(c, have, want)
    longest = c.op("ReduceMax", c.op("Sub", end, start), keepdims=0)
    offsets = c.op("Range", c.number(0, "i64"), longest, c.number(1, "i64"))
    places = c.op("Min", c.op("Add", start, offsets), c.op("Sub", end, c.number(1, "i64")))
    return c.op("ReduceMax", c.op("Gather", x, places, axis=axis), c.graph.ints(axis + 1), keepdims=0)
