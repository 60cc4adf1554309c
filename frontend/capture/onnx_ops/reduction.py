"""Reductions, running sums, and operators that pick by order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planish.frontend.capture.onnx_ops.pointwise import WIDE, cast, ordered, widened
from planish.frontend.capture.onnx_ops.registry import At, Result, Size, Sizes, onnx_op
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.types import DType, boolean, equal, f32, i64, product, size


def reduced_axes(x: Node, axes: Any, noop: int) -> tuple[int, ...]:
    """The axes to reduce, non-negative; none given means all, or none with ``noop``."""
    if not axes:
        return () if noop else tuple(range(x.rank))
    return tuple(sorted({int(a) % max(x.rank, 1) for a in axes}))


def _keep_shape(x: Node, dims: tuple[int, ...], keepdim: bool) -> tuple[Size, ...]:
    if keepdim:
        return tuple(1 if i in dims else s for i, s in enumerate(x.shape))
    return tuple(s for i, s in enumerate(x.shape) if i not in dims)


def total(x: Node, dims: tuple[int, ...], keepdim: bool) -> Node:
    """Sum over axes, none of them meaning the tensor itself."""
    if not dims:
        return x
    if x.dtype.name in WIDE:
        return aten.to(aten.sum(aten.to(x, i64), dims, keepdim), x.dtype)
    return aten.sum(x, dims, keepdim)


def _mean(x: Node, dims: tuple[int, ...], keepdim: bool) -> Node:
    if not dims:
        return x
    if x.dtype.is_float:
        return aten.mean(x, dims, keepdim)
    summed, count = total(aten.to(x, i64), dims, keepdim), product(x.shape[d] for d in dims)
    return aten.to(aten.floor_divide(aten.sub(summed, aten.fmod(summed, count)), count), x.dtype)


def _product(x: Node, dims: tuple[int, ...], keepdim: bool) -> Node:
    shape, narrow = _keep_shape(x, dims, keepdim), x.dtype
    for dim in dims:
        x = aten.prod(x, dim, True)
    return cast(x if keepdim else aten.view(x, shape), narrow)


def _extreme(largest: bool) -> Callable[..., Node]:
    def apply(x: Node, dims: tuple[int, ...], keepdim: bool) -> Node:
        if not dims:
            return x
        if x.dtype is boolean:
            return (aten.any if largest else aten.all)(x, dims, keepdim)
        if any(equal(x.shape[d], 0) for d in dims):
            return aten.full(
                _keep_shape(x, dims, keepdim), lowest(x.dtype) if largest else highest(x.dtype), x.dtype
            )
        pick = aten.amax if largest else aten.amin
        return ordered(lambda y: pick(y, dims, keepdim), x)

    return apply


def lowest(dtype: DType) -> Any:
    """The identity of the maximum."""
    if dtype.is_float:
        return float("-inf")
    return -(2 ** (dtype.bits - 1)) if dtype.kind == "int" else 0


def highest(dtype: DType) -> Any:
    """The identity of the minimum."""
    if dtype.is_float:
        return float("inf")
    return 2 ** (dtype.bits - (1 if dtype.kind == "int" else 0)) - 1


def _square(x: Node) -> Node:
    return widened(aten.mul, x, x)


def _float(f: Callable[[Node], Node]) -> Callable[[Node], Node]:
    return lambda x: f(x) if x.dtype.is_float else aten.to(f(aten.to(x, f32)), x.dtype)


def _l2(x: Node, dims: tuple[int, ...], keepdim: bool) -> Node:
    return _float(lambda y: aten.sqrt(total(_square(y), dims, keepdim)))(x)


def _log_sum(x: Node, dims: tuple[int, ...], keepdim: bool) -> Node:
    return _float(lambda y: aten.log(total(y, dims, keepdim)))(x)


def _log_sum_exp(x: Node, dims: tuple[int, ...], keepdim: bool) -> Node:
    return _float(lambda y: aten.logsumexp(y, dims, keepdim) if dims else y)(x)


_REDUCTIONS: dict[str, Callable[..., Node]] = {
    "ReduceSum": total,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _extreme(True),
    "ReduceMin": _extreme(False),
    "ReduceL1": lambda x, dims, keepdim: total(x if x.dtype.kind == "uint" else aten.abs(x), dims, keepdim),
    "ReduceL2": _l2,
    "ReduceSumSquare": lambda x, dims, keepdim: total(_square(x), dims, keepdim),
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(name: str, f: Callable[..., Node]) -> None:
    @onnx_op(name)
    def apply(
        x: Node,
        dims: Sizes | None = None,
        *,
        axes: tuple[int, ...] = (),
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Result:
        return f(x, reduced_axes(x, dims or axes, noop_with_empty_axes), bool(keepdims))


for _name, _function in _REDUCTIONS.items():
    _reduction(_name, _function)


def _arg(largest: bool) -> Callable[..., Result]:
    def apply(x: Node, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Result:
        x = aten.to(x, i64) if x.dtype.name in ("u16", "u32") else x
        pick = aten.argmax if largest else aten.argmin
        if not select_last_index:
            return pick(x, axis, bool(keepdims))
        last = size(x.shape[axis] - 1)
        return aten.sub(last, pick(aten.flip(x, (axis,)), axis, bool(keepdims)))

    return apply


onnx_op("ArgMax")(_arg(True))
onnx_op("ArgMin")(_arg(False))


def _running(name: str, start: int) -> None:
    @onnx_op(name)
    def apply(x: Node, axis: Size, *, exclusive: int = 0, reverse: int = 0) -> Result:
        axis = int(axis)
        x = aten.flip(x, (axis,)) if reverse else x
        if exclusive:
            first = aten.slice(x, axis, 0, 1)
            one = aten.full(first.shape, float(start) if x.dtype.is_float else start, x.dtype)
            x = aten.cat((one, aten.slice(x, axis, 0, size(x.shape[axis] - 1))), axis)
        x = (aten.cumprod if start else aten.cumsum)(x, axis)
        return aten.flip(x, (axis,)) if reverse else x


_running("CumSum", 0)
_running("CumProd", 1)


@onnx_op("TopK")
def top_k(x: Node, k: Size, *, axis: int = -1, largest: int = 1, sorted: int = 1, at: At) -> Result:
    """The k extreme values and where they are; of equal values the first comes first"""
    kind = x.dtype
    if kind.name == "u64":
        both = top_k(aten.bitwise_xor(aten.to(x, i64), -(2**63)), k, axis=axis, largest=largest, at=at)
        return aten.to(aten.bitwise_xor(both[0], -(2**63)), kind), both[1]  # type: ignore[index]
    x = aten.to(x, i64) if kind.name in WIDE else x
    order = aten.slice(aten.argsort(x, axis, bool(largest)), axis, 0, k)
    values = aten.gather(x, axis, order) if at.wants(1) else planish.topk_values(x, k, axis, bool(largest))
    return cast(values, kind), order
