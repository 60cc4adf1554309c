"""Reductions, scans, orderings and softmax of ATen."""

from __future__ import annotations

from typing import Any

from planish.frontend.capture.torch_ops.base import (
    HANDLERS,
    axis_of,
    cast,
    floating,
    handles,
    refuse,
    reshaped,
    to_dtype,
)
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.types import boolean, dtype, i64


def _axes(dims: Any) -> Any:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return None
    return [dims] if isinstance(dims, int) else list(dims)


def _summand(x: Node, kind: Any) -> Node:
    if kind is not None:
        return cast(x, to_dtype(kind))
    return x if x.dtype.kind in ("float", "complex") else cast(x, i64)


@handles("sum.default", "sum.dim_IntList")
def total(x: Node, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    """Sum; integers and bool become i64."""
    return aten.sum(_summand(x, dtype), _axes(dims), keepdim)


@handles("mean.default", "mean.dim")
def mean(x: Node, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    """Mean."""
    return aten.mean(cast(x, to_dtype(dtype)) if dtype is not None else x, _axes(dims), keepdim)


@handles("prod.default", "prod.dim_int")
def prod(x: Node, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    """Product."""
    x = _summand(x, dtype)
    return aten.prod(reshaped(x, [x.tensor.numel]), 0) if dim is None else aten.prod(x, dim, keepdim)


@handles("amax.default")
def amax(x: Node, dims: Any = (), keepdim: bool = False) -> Node:
    """Largest value over axes."""
    return aten.amax(x, _axes(dims), keepdim)


@handles("amin.default")
def amin(x: Node, dims: Any = (), keepdim: bool = False) -> Node:
    """Smallest value over axes."""
    return aten.amin(x, _axes(dims), keepdim)


HANDLERS["max.default"] = lambda x: aten.amax(x)
HANDLERS["min.default"] = lambda x: aten.amin(x)
HANDLERS["max.dim"] = lambda x, dim, keepdim=False: (
    aten.amax(x, [dim], keepdim),
    aten.argmax(x, dim, keepdim),
)
HANDLERS["min.dim"] = lambda x, dim, keepdim=False: (
    aten.amin(x, [dim], keepdim),
    aten.argmin(x, dim, keepdim),
)


def _arg(name: str) -> Any:
    def apply(x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
        if dim is not None:
            node: Node = getattr(aten, name)(x, dim, keepdim)
            return node
        flat = getattr(aten, name)(reshaped(x, [x.tensor.numel]), 0)
        return reshaped(flat, [1] * x.rank) if keepdim else flat

    return apply


HANDLERS["argmax.default"], HANDLERS["argmin.default"] = _arg("argmax"), _arg("argmin")


def _truth(name: str) -> Any:
    def apply(x: Node, dims: Any = None, keepdim: bool = False) -> Node:
        flags = x if x.dtype is boolean else aten.ne(x, cast(0, x.dtype))
        node: Node = getattr(aten, name)(flags, _axes(dims), keepdim)
        return node

    return apply


for _name in ("any", "all"):
    for _overload in ("default", "dim", "dims"):
        HANDLERS[f"{_name}.{_overload}"] = _truth(_name)


@handles("logsumexp.default")
def logsumexp(x: Node, dims: Any, keepdim: bool = False) -> Node:
    """log(sum(exp(x)))."""
    return aten.logsumexp(floating(x), _axes(dims), keepdim)


def _variance(
    x: Node, dims: Any = None, *rest: Any, correction: Any = None, keepdim: bool = False, **kw: Any
) -> Node:
    flags = [r for r in rest if isinstance(r, bool)]
    if isinstance(dims, bool):
        dims, flags = None, [dims, *flags]
    if flags:
        correction, keepdim = (1.0 if flags[0] else 0.0), (flags[1] if len(flags) > 1 else keepdim)
    unbiased = kw.get("unbiased", True)
    return aten.var(
        x, _axes(dims), float((1 if unbiased else 0) if correction is None else correction), keepdim
    )


for _overload in ("default", "dim", "correction"):
    HANDLERS[f"var.{_overload}"] = _variance
    HANDLERS[f"std.{_overload}"] = lambda *a, **k: aten.sqrt(_variance(*a, **k))
    HANDLERS[f"var_mean.{_overload}"] = lambda x, dims=None, *a, **k: (
        _variance(x, dims, *a, **k),
        aten.mean(x, None if isinstance(dims, bool) else _axes(dims), k.get("keepdim", False)),
    )


@handles("linalg_vector_norm.default", "norm.ScalarOpt_dim", "norm.Scalar")
def vector_norm(
    x: Node, order: Any = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    """The p-norm over axes."""
    x = cast(x, to_dtype(dtype)) if dtype is not None else x
    order = 2 if order is None else order
    axes = _axes(dims)
    if order == float("inf"):
        return aten.amax(aten.abs(x), axes, keepdim)
    if order == float("-inf"):
        return aten.amin(aten.abs(x), axes, keepdim)
    if order == 0:
        return aten.sum(aten.to(aten.ne(x, 0.0), x.dtype), axes, keepdim)
    if order == 1:
        return aten.sum(aten.abs(x), axes, keepdim)
    if order == 2:
        return aten.sqrt(aten.sum(aten.mul(x, x), axes, keepdim))
    return aten.pow(aten.sum(aten.pow(aten.abs(x), float(order)), axes, keepdim), 1.0 / order)


@handles("cumsum.default")
def cumsum(x: Node, dim: int, *, dtype: Any = None) -> Node:
    """Running sum."""
    return aten.cumsum(_summand(x, dtype), dim)


@handles("cumprod.default")
def cumprod(x: Node, dim: int, *, dtype: Any = None) -> Node:
    """Running product."""
    return aten.cumprod(_summand(x, dtype), dim)


def _softmax(name: str) -> Any:
    def apply(x: Node, dim: int, kind: Any = None, half_to_float: bool = False, **kw: Any) -> Node:
        kind = kw.get("dtype", kind)
        if kind is not None and not isinstance(kind, bool):
            x = cast(x, to_dtype(kind))
        node: Node = getattr(aten, name)(floating(x), dim)
        return node

    return apply


for _name in ("softmax", "log_softmax"):
    HANDLERS[f"{_name}.int"] = HANDLERS[f"_{_name}.default"] = HANDLERS[f"special_{_name}.int"] = _softmax(
        _name
    )


@handles("_safe_softmax.default")
def safe_softmax(x: Node, dim: int, dtype: Any = None) -> Node:
    """Softmax whose rows of minus infinity give zeros."""
    blocked = aten.all(aten.eq(x, float("-inf")), [dim], True)
    return aten.where(blocked, 0.0, aten.softmax(x, dim))


@handles("topk.default")
def topk(x: Node, k: Any, dim: int = -1, largest: bool = True, ordered: bool = True) -> tuple[Node, Node]:
    """The k extreme values and where they are."""
    return planish.topk_values(x, k, dim, largest), planish.topk_indices(x, k, dim, largest)


@handles("sort.default", "sort.stable")
def sort(x: Node, dim: int = -1, descending: bool = False, *, stable: Any = None) -> tuple[Node, Node]:
    """Values in order and where they were."""
    return planish.sort_values(x, dim, descending), aten.argsort(x, dim, descending)


@handles("argsort.default", "argsort.stable")
def argsort(x: Node, dim: int = -1, descending: bool = False, *, stable: Any = None) -> Node:
    """The order of values."""
    return aten.argsort(x, dim, descending)


@handles("histc.default")
def histc(x: Node, bins: int = 100, min: Any = 0, max: Any = 0) -> Node:
    """Counts per bin; exact for whole-number values with one bin per number (as expert routing uses it)."""
    low, high = float(min), float(max)
    if low == high:
        raise refuse("histc without explicit bounds depends on the data")
    flat = reshaped(x, [x.tensor.numel, 1])
    values = flat if flat.dtype.is_float else aten.to(flat, dtype("f32"))
    inside = aten.bitwise_and(aten.ge(values, low), aten.le(values, high))
    place = aten.clamp(
        aten.floor(aten.mul(aten.sub(values, low), bins / (high - low))), None, float(bins - 1)
    )
    hits = aten.bitwise_and(aten.eq(place, aten.to(aten.arange(0, bins), values.dtype)), inside)
    return cast(aten.sum(aten.to(hits, dtype("f32")), [0]), x.dtype)


@handles("diff.default")
def diff(x: Node, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Node:
    """Differences of neighbours."""
    dim = axis_of(dim, x.rank)
    parts = [p for p in (prepend, x, append) if p is not None]
    x = parts[0] if len(parts) == 1 else aten.cat(parts, dim)
    for _ in range(n):
        length = x.shape[dim]
        a, b = aten.slice(x, dim, 1, length), aten.slice(x, dim, 0, -1)
        x = aten.ne(a, b) if x.dtype is boolean else aten.sub(a, b)
    return x


@handles("count_nonzero.dim_IntList", "count_nonzero.default")
def count_nonzero(x: Node, dims: Any = None) -> Node:
    """How many values are not zero."""
    flags = x if x.dtype is boolean else aten.ne(x, cast(0, x.dtype))
    return aten.sum(aten.to(flags, i64), _axes(dims))
