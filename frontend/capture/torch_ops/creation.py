"""Tensors made from nothing."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from planish.frontend.capture.torch_ops.base import HANDLERS, cast, handles, refuse, tensor, to_dtype
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import DType, boolean, dtype, i64, size


def _kind(given: Any, value: Any = 0.0) -> DType:
    if given is not None:
        return to_dtype(given)
    return dtype("bool" if isinstance(value, bool) else "i64" if isinstance(value, int) else "f32")


def _fill(shape: Any, value: Any, kind: DType) -> Node:
    if isinstance(value, Node):
        return aten.expand(cast(value, kind), shape)
    return aten.full(shape, cast(value, kind), kind)


@handles("full.default")
def full(shape: Any, value: Any, *, dtype: Any = None, **_: Any) -> Node:
    """Filled with one number."""
    return _fill(shape, value, _kind(dtype, value))


HANDLERS["zeros.default"] = lambda shape, *, dtype=None, **_: _fill(shape, 0, _kind(dtype))
HANDLERS["ones.default"] = lambda shape, *, dtype=None, **_: _fill(shape, 1, _kind(dtype))
HANDLERS["empty.memory_format"] = HANDLERS["empty_permuted.default"] = lambda shape, *a, dtype=None, **_: (
    _fill(shape, 0, _kind(dtype))
)
HANDLERS["scalar_tensor.default"] = lambda value, *, dtype=None, **_: tensor(value, _kind(dtype, value))


def _like(value: Any) -> Any:
    def apply(x: Node, *, dtype: Any = None, **_: Any) -> Node:
        return _fill(x.shape, value, x.dtype if dtype is None else to_dtype(dtype))

    return apply


for _name, _value in (("zeros", 0), ("ones", 1), ("empty", 0)):
    HANDLERS[f"{_name}_like.default"] = _like(_value)


@handles("full_like.default")
def full_like(x: Node, value: Any, *, dtype: Any = None, **_: Any) -> Node:
    """Filled with one number, shaped like another tensor."""
    return _fill(x.shape, value, x.dtype if dtype is None else to_dtype(dtype))


def _new(value: Any) -> Any:
    def apply(x: Node, shape: Any, *_: Any, dtype: Any = None, **__: Any) -> Node:
        return _fill(shape, value, x.dtype if dtype is None else to_dtype(dtype))

    return apply


for _name, _value in (("new_zeros", 0), ("new_ones", 1), ("new_empty", 0), ("new_empty_strided", 0)):
    HANDLERS[f"{_name}.default"] = _new(_value)


@handles("new_full.default")
def new_full(x: Node, shape: Any, value: Any, *, dtype: Any = None, **_: Any) -> Node:
    """Filled with one number, typed like another tensor."""
    return _fill(shape, value, x.dtype if dtype is None else to_dtype(dtype))


@handles("fill.Scalar", "fill.Tensor")
def fill(x: Node, value: Any) -> Node:
    """A tensor of the same type, filled."""
    return _fill(x.shape, value, x.dtype)


@handles("copy.default")
def copy(x: Node, source: Node, *_: Any) -> Node:
    """The source with the type of the target."""
    source = cast(source, x.dtype)
    return source if source.shape == x.shape else aten.expand(source, x.shape)


@handles("arange.default", "arange.start", "arange.start_step")
def arange(*bounds: Any, dtype: Any = None, **_: Any) -> Node:
    """An arithmetic progression."""
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    kind = (
        to_dtype(dtype)
        if dtype is not None
        else _kind(None, sum(b for b in bounds if isinstance(b, float)) or 0)
    )
    limits = (start, end, step)
    if all(not isinstance(b, float) or b.is_integer() for b in limits):
        start, end, step = (int(b) if isinstance(b, float) else b for b in limits)
        limits = (start, end, step)
    if any(isinstance(b, float) for b in limits) and any(isinstance(b, sympy.Expr) for b in limits):
        raise refuse("arange with a fractional step over a dynamic size")
    return aten.arange(start, end, step, kind)


@handles("linspace.default")
def linspace(start: Any, end: Any, steps: Any, *, dtype: Any = None, **_: Any) -> Node:
    """Evenly spaced numbers."""
    kind = _kind(dtype)
    if isinstance(steps, int) and not isinstance(start, Node) and not isinstance(end, Node):
        if steps <= 1:
            return aten.full([steps], float(start), kind)
        step = (end - start) / (steps - 1)
        places = aten.to(aten.arange(0, steps), kind)
        low = aten.add(aten.mul(places, float(step)), float(start))
        back = aten.to(aten.sub(steps - 1, aten.arange(0, steps)), kind)
        high = aten.sub(float(end), aten.mul(back, float(step)))
        return aten.where(aten.lt(aten.arange(0, steps), steps // 2), low, high)
    places = aten.to(aten.arange(0, steps), kind)
    step = aten.div(tensor(float(end - start), kind), aten.to(tensor(size(steps - 1)), kind))
    return aten.add(aten.mul(places, step), float(start))


@handles("eye.default", "eye.m")
def eye(rows: Any, columns: Any = None, *, dtype: Any = None, **_: Any) -> Node:
    """The identity matrix."""
    columns = rows if columns is None else columns
    same = aten.eq(aten.view(aten.arange(0, rows), [rows, 1]), aten.arange(0, columns))
    return aten.to(same, _kind(dtype))


def _triangle(name: str) -> Any:
    def apply(x: Node, diagonal: Any = 0) -> Node:
        node: Node = getattr(aten, name)(x, diagonal)
        return node

    return apply


HANDLERS["tril.default"], HANDLERS["triu.default"] = _triangle("tril"), _triangle("triu")


@handles("tril_indices.default", "triu_indices.default")
def triangle_indices(*_: Any, **__: Any) -> Node:
    """Refused: the indices would have to be known at capture."""
    raise refuse("indices of a triangle of dynamic size")


@handles("one_hot.default")
def one_hot(x: Node, classes: int = -1) -> Node:
    """Ones at the class of each value."""
    if classes < 0:
        raise refuse("one_hot without a number of classes depends on the data")
    return aten.to(aten.eq(aten.view(x, [*x.shape, 1]), aten.to(aten.arange(0, classes), x.dtype)), i64)


@handles("bincount.default")
def bincount(*_: Any, **__: Any) -> Node:
    """Refused: the length depends on the data."""
    raise refuse("bincount: the length of its result depends on the data", "PL102")


def literal(value: torch.Tensor) -> Node | None:
    """A small constant of one value as a literal, or None."""
    if value.numel() != 1 or value.dtype.is_complex:
        return None
    kind = to_dtype(value.dtype)
    number = value.reshape(()).item()
    return aten.full(list(value.shape), bool(number) if kind is boolean else number, kind)
