"""Shape rules: for each family of operations a function from argument types to the result type.

Pure, exact and symbolic: a rule may prove that two sizes are equal or refuse; it never assumes a new fact about a
dimension. In a rule tensor arguments are :class:`TensorType`, everything else is the argument itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish.ir.types import (
    DType,
    Size,
    TensorType,
    at_least,
    boolean,
    different,
    equal,
    floor_div,
    format_size,
    i64,
    maximum,
    minimum,
    product,
    size,
)

Operand = Any
"""A tensor type, a number or a size."""


class Mismatch(Exception):
    """Why arguments do not fit; the caller adds the operation and the types."""


def need(condition: bool, reason: str) -> None:
    """Refuse with ``reason`` unless the condition holds."""
    if not condition:
        raise Mismatch(reason)


def same(a: Size, b: Size, what: str) -> Size:
    """One size of two that must be equal."""
    if not equal(a, b):
        verb = "differ" if different(a, b) else "cannot be shown to be equal"
        raise Mismatch(f"{what} {verb}, {format_size(a)} and {format_size(b)}")
    return a if isinstance(a, int) else b


def broadcast(*shapes: Sequence[Size]) -> tuple[Size, ...]:
    """The shape that all shapes expand to (numpy rules, sizes compared symbolically)."""
    rank = max(len(s) for s in shapes)
    out: list[Size] = []
    for axis in range(-rank, 0):
        result: Size = 1
        for shape in shapes:
            if -axis <= len(shape) and not equal(shape[axis], 1):
                result = (
                    shape[axis] if equal(result, 1) else same(result, shape[axis], f"sizes at axis {axis}")
                )
        out.append(result)
    return tuple(out)


def tensors(*operands: Operand) -> list[TensorType]:
    """The operands that are tensors."""
    return [o for o in operands if isinstance(o, TensorType)]


def one_dtype(*operands: Operand) -> DType:
    """The element type that all tensor operands share; Python numbers adopt it."""
    found = tensors(*operands)
    need(bool(found), "at least one operand must be a tensor")
    for other in found[1:]:
        need(
            other.dtype is found[0].dtype,
            f"element types differ, {found[0].dtype} and {other.dtype}: cast one with aten.to",
        )
    for operand in operands:
        if isinstance(operand, float) and not isinstance(operand, bool):
            need(
                found[0].dtype.kind in ("float", "complex"),
                f"a float number meets {found[0].dtype}: cast with aten.to first",
            )
    return found[0].dtype


def keep(x: TensorType, *_: Any) -> TensorType:
    """Same type as the first argument."""
    return x


def keep_float(x: TensorType, *_: Any) -> TensorType:
    """Same type as the first argument, which must be floating point."""
    need(
        x.dtype.kind in ("float", "complex"),
        f"needs a floating-point tensor, got {x.dtype}: cast with aten.to first",
    )
    return x


def keep_numeric(x: TensorType, *_: Any) -> TensorType:
    """Same type as the first argument, which must not be bool."""
    need(x.dtype is not boolean, "needs a numeric tensor, got bool")
    return x


def clamped(x: TensorType, low: Operand, high: Operand) -> TensorType:
    """Same type as the first argument; at least one bound is given."""
    need(low is not None or high is not None, "needs a lower or an upper bound")
    return keep_numeric(x)


def keep_integer(x: TensorType, *_: Any) -> TensorType:
    """Same type as the first argument, which must be integer or bool."""
    need(x.dtype.is_integer or x.dtype is boolean, f"needs an integer or bool tensor, got {x.dtype}")
    return x


def to_bool(x: TensorType, *_: Any) -> TensorType:
    """A bool tensor of the same shape."""
    return TensorType(boolean, x.shape)


def elementwise(*operands: Operand) -> TensorType:
    """Broadcast of operands that share one element type."""
    return TensorType(one_dtype(*operands), broadcast(*(t.shape for t in tensors(*operands))))


def arithmetic(*operands: Operand) -> TensorType:
    """Like :func:`elementwise`, not for bool."""
    need(one_dtype(*operands) is not boolean, "needs numeric tensors, got bool: cast with aten.to first")
    return elementwise(*operands)


def float_arithmetic(*operands: Operand) -> TensorType:
    """Like :func:`elementwise`, floating point only."""
    kind = one_dtype(*operands)
    need(
        kind.kind in ("float", "complex"),
        f"needs floating-point tensors, got {kind}: cast with aten.to first",
    )
    return elementwise(*operands)


def bitwise(*operands: Operand) -> TensorType:
    """Like :func:`elementwise`, integers and bool only."""
    kind = one_dtype(*operands)
    need(kind.is_integer or kind is boolean, f"needs integer or bool tensors, got {kind}")
    return elementwise(*operands)


def compare(*operands: Operand) -> TensorType:
    """Broadcast of operands that share one element type, result bool."""
    return TensorType(boolean, elementwise(*operands).shape)


def where(condition: TensorType, a: Operand, b: Operand) -> TensorType:
    """Broadcast of the condition and both choices."""
    need(condition.dtype is boolean, f"the condition must be bool, got {condition.dtype}")
    kind = one_dtype(a, b)
    return TensorType(kind, broadcast(condition.shape, *(t.shape for t in tensors(a, b))))


def cast(x: TensorType, element: DType) -> TensorType:
    """Same shape, other element type."""
    return TensorType(element, x.shape)


def reduced(shape: Sequence[Size], dims: Sequence[int], keepdim: bool) -> tuple[Size, ...]:
    """The shape after reducing ``dims``."""
    if keepdim:
        return tuple(1 if i in dims else s for i, s in enumerate(shape))
    return tuple(s for i, s in enumerate(shape) if i not in dims)


def reduce(x: TensorType, dims: Sequence[int], keepdim: bool = False) -> TensorType:
    """Reduction that keeps the element type."""
    need(x.dtype is not boolean, "needs a numeric tensor, got bool: cast with aten.to first")
    return TensorType(x.dtype, reduced(x.shape, dims, keepdim))


def need_axes(x: TensorType, dims: Sequence[int]) -> None:
    """Refuse a reduction over no axes: torch reads that as all of them."""
    need(bool(dims) or not x.rank, "needs at least one axis to reduce")


def reduce_extreme(x: TensorType, dims: Sequence[int], keepdim: bool = False) -> TensorType:
    """Reduction that keeps the element type and needs an axis."""
    need_axes(x, dims)
    return reduce(x, dims, keepdim)


def reduce_one(x: TensorType, dim: int, keepdim: bool = False) -> TensorType:
    """Reduction of one axis that keeps the element type."""
    return reduce(x, (dim,), keepdim)


def reduce_float(x: TensorType, dims: Sequence[int], *rest: Any) -> TensorType:
    """Reduction over floating-point values; ``keepdim`` is the last argument."""
    need_axes(x, dims)
    return TensorType(keep_float(x).dtype, reduced(x.shape, dims, rest[-1]))


def reduce_bool(x: TensorType, dims: Sequence[int], keepdim: bool = False) -> TensorType:
    """Reduction of truth values."""
    need_axes(x, dims)
    return TensorType(boolean, reduced(x.shape, dims, keepdim))


def arg_reduce(x: TensorType, dim: int, keepdim: bool = False) -> TensorType:
    """Index of an extreme along one axis."""
    return TensorType(i64, reduced(x.shape, (dim,), keepdim))


def along_axis(x: TensorType, dim: int, *_: Any) -> TensorType:
    """Same type; the axis must exist."""
    return x


def indices_like(x: TensorType, *_: Any) -> TensorType:
    """Indices of the same shape."""
    return TensorType(i64, x.shape)


def top_k(x: TensorType, k: Size, dim: int, largest: bool = True) -> TensorType:
    """``k`` values along one axis."""
    return TensorType(x.dtype, tuple(k if i == dim else s for i, s in enumerate(x.shape)))


def top_k_indices(x: TensorType, k: Size, dim: int, largest: bool = True) -> TensorType:
    """Indices of ``k`` values along one axis."""
    return TensorType(i64, top_k(x, k, dim).shape)


def view(x: TensorType, shape: Sequence[Size]) -> TensorType:
    """Another shape with as many elements."""
    if not equal(product(x.shape), product(shape)):
        raise Mismatch(f"{format_size(x.numel)} elements do not fill [{', '.join(map(format_size, shape))}]")
    return TensorType(x.dtype, tuple(shape))


def permute(x: TensorType, dims: Sequence[int]) -> TensorType:
    """Axes in another order."""
    need(sorted(dims) == list(range(x.rank)), f"{list(dims)} is not an order of the {x.rank} axes")
    return TensorType(x.dtype, tuple(x.shape[d] for d in dims))


def expand(x: TensorType, shape: Sequence[Size]) -> TensorType:
    """Repeat axes of size one."""
    need(len(shape) >= x.rank, f"rank {len(shape)} is below {x.rank}")
    for have, want in zip(reversed(x.shape), reversed(shape), strict=False):
        if not equal(have, 1):
            same(have, want, "expanded sizes")
    return TensorType(x.dtype, tuple(shape))


def clamp_index(index: Size, length: Size) -> Size:
    """A slice bound counted from the start and cut to ``[0, length]``."""
    if not at_least(index, 0):
        index = size(length + index) if at_least(-1, index) else index
    return minimum(maximum(index, 0), length)


def slice_axis(x: TensorType, dim: int, start: Size, end: Size, step: int = 1) -> TensorType:
    """A range of one axis."""
    need(isinstance(step, int) and step >= 1, "the step must be a positive number")
    length = slice_length(x.shape[dim], start, end, step)
    return TensorType(x.dtype, tuple(length if i == dim else s for i, s in enumerate(x.shape)))


def slice_length(have: Size, start: Size, end: Size, step: int = 1) -> Size:
    """How many elements a slice selects."""
    start, end = clamp_index(start, have), clamp_index(end, have)
    span = maximum(size(end - start), 0)
    return floor_div(size(span + step - 1), step) if step != 1 else span


def slice_scatter(
    x: TensorType, source: TensorType, dim: int, start: Size, end: Size, step: int = 1
) -> TensorType:
    """A tensor with a range of one axis replaced."""
    need(one_dtype(x, source) is x.dtype, "")
    for want, have in zip(slice_axis(x, dim, start, end, step).shape, source.shape, strict=True):
        same(want, have, "sizes of the replaced range")
    return x


def cat(xs: Sequence[TensorType], dim: int) -> TensorType:
    """Tensors joined along one axis."""
    need(len(xs) > 0, "needs at least one tensor")
    kind, first = one_dtype(*xs), xs[0]
    for other in xs[1:]:
        need(other.rank == first.rank, f"ranks differ, {first.rank} and {other.rank}")
        for axis in range(first.rank):
            if axis != dim:
                same(first.shape[axis], other.shape[axis], f"sizes at axis {axis}")
    total = size(sum(x.shape[dim] for x in xs))
    return TensorType(kind, tuple(total if i == dim else s for i, s in enumerate(first.shape)))


def pad(x: TensorType, amounts: Sequence[Size], mode: str = "constant", value: float = 0.0) -> TensorType:
    """Last axes padded; ``amounts`` as in torch (last axis first, before and after)."""
    need(
        len(amounts) % 2 == 0 and len(amounts) <= 2 * x.rank,
        f"{len(amounts)} amounts do not fit rank {x.rank}",
    )
    need(mode in ("constant", "reflect", "replicate", "circular"), f"unknown mode '{mode}'")
    shape = list(x.shape)
    for i in range(len(amounts) // 2):
        shape[-1 - i] = size(shape[-1 - i] + amounts[2 * i] + amounts[2 * i + 1])
    return TensorType(x.dtype, tuple(shape))


def triangle(x: TensorType, diagonal: int = 0) -> TensorType:
    """Same type, rank at least two."""
    need(x.rank >= 2, "needs at least two axes")
    return x


def need_index(index: TensorType) -> None:
    """Refuse an index tensor that is not integer."""
    need(index.dtype.is_integer, f"the index must be an integer tensor, got {index.dtype}")


def embedding(table: TensorType, ids: TensorType) -> TensorType:
    """Rows of a table."""
    need_index(ids)
    need(table.rank == 2, f"the table must have two axes, got {table.rank}")
    return TensorType(table.dtype, ids.shape + table.shape[1:])


def gather(x: TensorType, dim: int, index: TensorType) -> TensorType:
    """One value per index along one axis."""
    need_index(index)
    need(index.rank == x.rank, f"ranks differ, {x.rank} and {index.rank}")
    return TensorType(x.dtype, index.shape)


def index_select(x: TensorType, dim: int, index: TensorType) -> TensorType:
    """Whole slices by index."""
    need_index(index)
    need(index.rank == 1, "the index must have one axis")
    return TensorType(x.dtype, x.shape[:dim] + index.shape + x.shape[dim + 1 :])


def index(x: TensorType, indices: Sequence[TensorType | None]) -> TensorType:
    """Advanced indexing by integer tensors; ``None`` keeps an axis."""
    need(len(indices) <= x.rank, f"{len(indices)} indices for rank {x.rank}")
    given = [i for i, t in enumerate(indices) if t is not None]
    need(bool(given), "needs at least one index")
    found = [t for t in indices if t is not None]
    for each in found:
        need_index(each)
    joint = broadcast(*(t.shape for t in found))
    rest = [s for i, s in enumerate(x.shape) if i not in given]
    adjacent = given == list(range(given[0], given[-1] + 1))
    at = given[0] if adjacent else 0
    return TensorType(x.dtype, (*rest[:at], *joint, *rest[at:]))


def index_put(
    x: TensorType, indices: Sequence[TensorType | None], values: TensorType, accumulate: bool = False
) -> TensorType:
    """A tensor with the indexed places replaced or added to."""
    need(one_dtype(x, values) is x.dtype, "")
    broadcast(index(x, indices).shape, values.shape)
    return x


def scatter(x: TensorType, dim: int, index: TensorType, source: Operand, *_: Any) -> TensorType:
    """A tensor with values written along one axis."""
    need_index(index)
    need(one_dtype(x, source) is x.dtype, "")
    return x


def full(shape: Sequence[Size], value: Any, element: DType) -> TensorType:
    """A tensor filled with one number."""
    return TensorType(element, tuple(shape))


def arange(start: Operand, end: Operand, step: Operand = 1, element: DType = i64) -> TensorType:
    """An arithmetic progression."""
    import math

    if any(isinstance(v, float) for v in (start, end, step)):
        need(
            all(isinstance(v, (int, float)) for v in (start, end, step)),
            "a fractional range needs plain numbers",
        )
        return TensorType(element, (max(0, math.ceil((end - start) / step)),))
    need(not equal(step, 0), "the step is zero")
    span = size(end - start)
    if equal(step, 1):
        return TensorType(element, (maximum(span, 0),))
    return TensorType(element, (maximum(size(-floor_div(size(-span), step)), 0),))
