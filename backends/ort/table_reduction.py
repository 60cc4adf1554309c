"""Reductions, scans, orderings and normalisations."""

from __future__ import annotations

from collections.abc import Sequence

from planish.backends.ort.graph import fixed
from planish.backends.ort.table import COMMON, FLOATS, Call, Emit, lowers
from planish.ir.types import Size, product


def _reduce(kind: str) -> Emit:
    def emit(c: Call, x: str, dims: Sequence[int], *rest: bool) -> str:
        return _over(c, kind, x, dims, rest[-1])

    return emit


def _over(c: Call, kind: str, x: str, dims: Sequence[int], keepdim: bool) -> str:
    if not dims:
        return x
    return c.op(kind, x, c.graph.ints(*dims), keepdims=int(keepdim))


lowers("aten.mean", native=FLOATS)(_reduce("ReduceMean"))
lowers("aten.amax", native="f32 f64 i8 i32 i64 u8")(_reduce("ReduceMax"))
lowers("aten.amin", native="f32 f64 i8 i32 i64 u8")(_reduce("ReduceMin"))


lowers("aten.sum", native=COMMON)(_reduce("ReduceSum"))


@lowers("aten.prod", native=COMMON)
def _prod(c: Call, x: str, dim: int, keepdim: bool) -> str:
    return _over(c, "ReduceProd", x, (dim,), keepdim) if c.shape() else x


@lowers("aten.logsumexp", native=FLOATS)
def _logsumexp(c: Call, x: str, dims: Sequence[int], keepdim: bool) -> str:
    """log(sum(exp(x - m))) + m with m the largest value, or 0 where that is infinite."""
    if not dims:
        return x
    axes = c.graph.ints(*dims)
    top = c.op("ReduceMax", x, axes, keepdims=1)
    top = c.op("Where", c.op("IsInf", top), c.number(0.0), top)
    total = c.op("ReduceSum", c.op("Exp", c.op("Sub", x, top)), axes, keepdims=1)
    out = c.op("Add", c.op("Log", total), top)
    return out if keepdim else c.op("Squeeze", out, axes)


@lowers("aten.var", native=FLOATS)
def _var(c: Call, x: str, dims: Sequence[int], correction: float, keepdim: bool) -> str:
    if not dims:
        dims = ()
    count = product(c.shape()[d] for d in dims)
    centred = c.op("Sub", x, _over(c, "ReduceMean", x, dims, True))
    total = _over(c, "ReduceSum", c.op("Mul", centred, centred), dims, keepdim)
    if isinstance(count, int):
        return c.op("Div", total, c.number(max(count - correction, 0.0)))
    held = c.op("Sub", c.graph.scalar(count, c.dtype.name), c.number(correction))
    return c.op("Div", total, c.op("Max", held, c.number(0.0)))


@lowers("aten.any")
def _any(c: Call, x: str, dims: Sequence[int], keepdim: bool) -> str:
    truth = x if c.dtype.kind == "bool" else c.graph.cast(x, "bool")
    return c.graph.cast(_over(c, "ReduceSum", c.graph.cast(truth, "i32"), dims, keepdim), "bool")


@lowers("aten.all")
def _all(c: Call, x: str, dims: Sequence[int], keepdim: bool) -> str:
    truth = x if c.dtype.kind == "bool" else c.graph.cast(x, "bool")
    untrue = c.graph.cast(c.op("Not", truth), "i32")
    return c.op("Not", c.graph.cast(_over(c, "ReduceSum", untrue, dims, keepdim), "bool"))


def _arg(kind: str) -> Emit:
    def emit(c: Call, x: str, dim: int, keepdim: bool) -> str:
        if not c.shape():
            return c.number(0, "i64")
        return c.op(kind, x, axis=dim, keepdims=int(keepdim))

    return emit


lowers("aten.argmax", native="f32 f64 i8 u8 i32 i64")(_arg("ArgMax"))
lowers("aten.argmin", native="f32 f64 i8 u8 i32 i64")(_arg("ArgMin"))


def _scan(kind: str) -> Emit:
    def emit(c: Call, x: str, dim: int) -> str:
        return c.op(kind, x, c.number(dim, "i64")) if c.shape() else x

    return emit


lowers("aten.cumsum", native=COMMON)(_scan("CumSum"))
lowers("aten.cumprod", native=COMMON)(_scan("CumProd"))


def _softmax(kind: str) -> Emit:
    def emit(c: Call, x: str, dim: int) -> str:
        if c.shape():
            return c.op(kind, x, axis=dim)
        return c.op("Squeeze", c.op(kind, c.op("Unsqueeze", x, c.graph.ints(0)), axis=0), c.graph.ints(0))

    return emit


lowers("aten.softmax", native=FLOATS)(_softmax("Softmax"))
lowers("aten.log_softmax", native=FLOATS)(_softmax("LogSoftmax"))


# Orderings. Equal values keep their order: TopK puts the lower index first.

_SORTABLE = "f32 f64 i64 i32 i8 i16 u8"


def _top(c: Call, x: str, k: Size, dim: int, largest: bool, result: int) -> str:
    if not c.shape():
        return x if result == 0 else c.number(0, "i64")
    return c.graph.ops("TopK", 2, x, c.graph.size(k), axis=dim, largest=int(largest), sorted=1)[result]


@lowers("planish.topk_values", native=_SORTABLE)
def _topk_values(c: Call, x: str, k: Size, dim: int, largest: bool) -> str:
    return _top(c, x, k, dim, largest, 0)


@lowers("planish.topk_indices", native=_SORTABLE)
def _topk_indices(c: Call, x: str, k: Size, dim: int, largest: bool) -> str:
    return _top(c, x, k, dim, largest, 1)


@lowers("planish.sort_values", native=_SORTABLE)
def _sort_values(c: Call, x: str, dim: int, descending: bool) -> str:
    return _top(c, x, c.shape()[dim] if c.shape() else 1, dim, descending, 0)


@lowers("aten.argsort", native=_SORTABLE)
def _argsort(c: Call, x: str, dim: int, descending: bool) -> str:
    return _top(c, x, c.shape()[dim] if c.shape() else 1, dim, descending, 1)


# Normalisations


def _filled(c: Call, value: float, shape: Sequence[Size]) -> str:
    if fixed(shape):
        return c.graph.constant(value, c.dtype, [int(s) for s in shape if isinstance(s, int)])
    return c.op("Expand", c.number(value), c.graph.sizes(shape))


@lowers("aten.rms_norm", native=FLOATS)
def _rms_norm(c: Call, x: str, shape: Sequence[Size], weight: str | None, eps: float) -> str:
    given = c.type(2).rank if weight else len(shape)
    if given != len(shape):
        weight = c.op("Expand", weight, c.graph.sizes(shape))
    scale = weight or _filled(c, 1.0, shape)
    return c.op("SimplifiedLayerNormalization", x, scale, axis=-len(shape), epsilon=eps)


@lowers("aten.layer_norm", native="f32")
def _layer_norm(
    c: Call, x: str, shape: Sequence[Size], weight: str | None, bias: str | None, eps: float
) -> str:
    scale = weight or _filled(c, 1.0, shape)
    return c.op("LayerNormalization", x, scale, bias, axis=-len(shape), epsilon=eps)


@lowers("aten.group_norm", native="f32")
def _group_norm(c: Call, x: str, groups: int, weight: str | None, bias: str | None, eps: float) -> str:
    """Instance normalisation of the channels of a group taken together."""
    shape = c.shape()
    flat = c.op("Reshape", x, c.graph.ints(0, groups, -1))
    ones, zeros = _filled(c, 1.0, (groups,)), _filled(c, 0.0, (groups,))
    out = c.op("InstanceNormalization", flat, ones, zeros, epsilon=eps)
    out = c.op("Reshape", out, c.op("Shape", x))
    axes = c.graph.ints(*range(1, len(shape) - 1)) if len(shape) > 2 else None
    for kind, part in (("Mul", weight), ("Add", bias)):
        if part is not None:
            out = c.op(kind, out, part if axes is None else c.op("Unsqueeze", part, axes))
    return out


@lowers("aten.batch_norm", native=FLOATS)
def _batch_norm(
    c: Call, x: str, weight: str | None, bias: str | None, mean: str, variance: str, eps: float
) -> str:
    channels = c.type(3).shape
    scale, shift = weight or _filled(c, 1.0, channels), bias or _filled(c, 0.0, channels)
    return c.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=eps)
