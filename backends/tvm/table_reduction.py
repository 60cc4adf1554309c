"""Reductions, running sums and softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.expressions import Call, Reader, cast, literal
from planish.backends.tvm.table import lowers, storage
from planish.backends.tvm.table_pointwise import exp, is_nan, larger, smaller
from planish.ir.node import Node
from planish.ir.types import DType

Value = Any


def lowest(kind: str) -> Value:
    """The value that every other is above."""
    return literal(float("-inf"), kind) if kind.startswith("float") else _extreme(kind, te.min_value)


def highest(kind: str) -> Value:
    """The value that every other is below."""
    return literal(float("inf"), kind) if kind.startswith("float") else _extreme(kind, te.max_value)


def _extreme(kind: str, bound: Callable[[str], Value]) -> Value:
    return literal(bound is te.max_value, "bool") if kind == "bool" else bound(kind)


def reducer(combine: Callable[[Value, Value], Value], start: Callable[[str], Value]) -> Any:
    """A reduction for tensor expressions."""
    return te.comm_reducer(combine, start)


MAXIMUM = reducer(larger, lowest)
MINIMUM = reducer(smaller, highest)
PRODUCT = reducer(lambda a, b: a * b, lambda kind: literal(1, kind))
ANY = reducer(lambda a, b: tirx.any(a, b), lambda kind: literal(False, kind))
ALL = reducer(lambda a, b: tirx.all(a, b), lambda kind: literal(True, kind))


def reduced(
    c: Call, x: Reader, dims: Sequence[int], keepdim: bool, combine: Any, element: Callable[..., Value] | None = None,
    name: str = "reduced",
) -> Any:  # fmt: skip
    """``combine`` over axes of ``element(index of the result, value of x)``."""
    axes = {d: te.reduce_axis((0, x.shape[d]), f"k{d}") for d in dims}
    shape = [1 if d in axes else s for d, s in enumerate(x.shape) if keepdim or d not in axes]

    def place(index: Sequence[Any]) -> list[Any]:
        left = list(index)
        found = []
        for d in range(x.rank):
            if d in axes:
                found.append(axes[d])
                if keepdim:
                    left.pop(0)
            else:
                found.append(left.pop(0))
        return found

    def compute(*index: Any) -> Any:
        def source() -> Any:
            value = x.wide(*place(index))
            return element(index, value) if element is not None else value

        made = c.scope(source)
        return combine(made, axis=list(axes.values())) if axes else made

    if axes and combine in (MAXIMUM, MINIMUM) and (element is not None or x.is_computed):
        return reduced(c, _stage(c, x, element, combine), dims, keepdim, combine, None, name)

    if any(isinstance(x.shape[d], int) and x.shape[d] == 0 for d in axes):
        kind = "bool" if combine in (ANY, ALL) else c.dtype
        return te.compute(tuple(shape), lambda *_: _start(combine, kind), name)
    return te.compute(tuple(shape), compute, name)


class _Stage:
    """A tensor expression in place of a reader."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape, self.rank, self.is_computed = (
            tensor,
            list(tensor.shape),
            len(tensor.shape),
            False,
        )

    def wide(self, *index: Any) -> Any:
        """The element at an index."""
        return self.tensor(*index)


def _stage(c: Call, x: Any, element: Any, combine: Any) -> Any:
    """The values to reduce as a tensor of their own: a reduction that compares repeats its argument."""

    def value(*index: Any) -> Any:
        made = x.wide(*index)
        return element(index, made) if element is not None else made

    return _Stage(c.compute(x.shape, value, "values"))


def _start(combine: Any, kind: str) -> Value:
    """What a reduction of nothing gives."""
    if combine is MAXIMUM:
        return lowest(kind)
    if combine is MINIMUM:
        return highest(kind)
    return literal(1 if combine is PRODUCT or combine is ALL else 0, kind)


def finished(c: Call, tensor: Any, element: Callable[[Value], Value]) -> Any:
    """A function of every element, in the element type of the result."""
    kind = storage(c.node.dtype)
    if not tensor.shape:
        return c.compute((), lambda: cast(element(tensor()), kind))
    return c.compute(tensor.shape, lambda *index: cast(element(tensor(*index)), kind))


def count(c: Call, x: Reader, dims: Sequence[int], kind: str) -> Value:
    """How many elements a reduction takes, as a number of an element type."""
    total: Any = literal(1, "int64")
    for d in dims:
        total = total * x.shape[d]
    return cast(total, kind)


@lowers("aten.sum", form="tensor", once=True)
def _sum(c: Call, x: Reader, dims: Sequence[int], keepdim: bool) -> Any:
    made = reduced(c, x, dims, keepdim, te.sum)
    return made if storage(c.node.dtype) == c.dtype else finished(c, made, lambda v: v)


@lowers("aten.mean", form="tensor", once=True)
def _mean(c: Call, x: Reader, dims: Sequence[int], keepdim: bool) -> Any:
    return finished(c, reduced(c, x, dims, keepdim, te.sum), lambda v: v / count(c, x, dims, c.dtype))


@lowers("aten.amax", "aten.amin", form="tensor", once=True)
def _extremes(c: Call, x: Reader, dims: Sequence[int], keepdim: bool) -> Any:
    made = reduced(c, x, dims, keepdim, MAXIMUM if c.node.op == "aten.amax" else MINIMUM)
    return made if storage(c.node.dtype) == c.dtype else finished(c, made, lambda v: v)


@lowers("aten.prod", form="tensor", once=True)
def _prod(c: Call, x: Reader, dim: int, keepdim: bool) -> Any:
    made = reduced(c, x, (dim,) if x.rank else (), keepdim, PRODUCT)
    return made if storage(c.node.dtype) == c.dtype else finished(c, made, lambda v: v)


@lowers("aten.any", form="tensor", once=True)
def _any(c: Call, x: Reader, dims: Sequence[int], keepdim: bool) -> Any:
    return reduced(c, x, dims, keepdim, ANY, lambda _, v: cast(v, "bool"))


@lowers("aten.all", form="tensor", once=True)
def _all(c: Call, x: Reader, dims: Sequence[int], keepdim: bool) -> Any:
    return reduced(c, x, dims, keepdim, ALL, lambda _, v: cast(v, "bool"))


def _log(c: Call, x: Value) -> Value:
    return tirx.log(x)


@lowers("aten.logsumexp", form="tensor")
def _logsumexp(c: Call, x: Reader, dims: Sequence[int], keepdim: bool) -> Any:
    top = reduced(c, x, dims, keepdim, MAXIMUM, name="top")
    finite = literal(float("inf"), c.dtype)

    def base(index: Sequence[Any]) -> Value:
        value = top(*index)
        return tirx.Select(tirx.abs(value) >= finite, literal(0.0, c.dtype), value)

    total = reduced(c, x, dims, keepdim, te.sum, lambda index, v: exp(c, v - base(index)), "total")
    kind = storage(c.node.dtype)
    return c.compute(
        total.shape,
        lambda *index: cast(_log(c, total(*index)) + base(index), kind),
    )


@lowers("aten.var", form="tensor")
def _var(c: Call, x: Reader, dims: Sequence[int], correction: float, keepdim: bool) -> Any:
    number = count(c, x, dims, c.dtype)
    total = reduced(c, x, dims, keepdim, te.sum, name="total")
    mean = c.compute(total.shape, lambda *i: total(*i) / number, "mean")

    def square(index: Sequence[Any], value: Value) -> Value:
        off = c.let(value - mean(*index))
        return off * off

    spread = reduced(c, x, dims, keepdim, te.sum, square, "spread")
    divisor = number - literal(correction, c.dtype)
    zero = literal(0.0, c.dtype)
    return finished(c, spread, lambda v: v / tirx.Select(divisor > zero, divisor, zero))


def _better(op: str) -> Callable[[Value, Value], Value]:
    return (lambda a, b: a > b) if op == "aten.argmax" else (lambda a, b: a < b)


@lowers("aten.argmax", "aten.argmin", form="tensor", once=True)
def _argument(c: Call, x: Reader, dim: int, keepdim: bool) -> Any:
    """The first place of the extreme; NaN counts as one."""
    if not x.rank:
        return c.compute((), lambda: literal(0, "int64"))
    better = _better(c.node.op)

    def combine(a: Any, b: Any) -> Any:
        wins = tirx.any(better(a[1], b[1]), tirx.all(is_nan(a[1]), tirx.Not(is_nan(b[1]))))
        both_nan = tirx.all(is_nan(a[1]), is_nan(b[1]))
        ties = tirx.any(tirx.EQ(a[1], b[1]), both_nan) if c.is_float else tirx.EQ(a[1], b[1])
        first = tirx.all(ties, a[0] < b[0])
        left = tirx.any(wins if c.is_float else better(a[1], b[1]), first)
        return tirx.Select(left, a[0], b[0]), tirx.Select(left, a[1], b[1])

    def start(place: str, value: str) -> Any:
        return te.max_value(place), lowest(value) if c.node.op == "aten.argmax" else highest(value)

    axis = te.reduce_axis((0, x.shape[dim]), "k")
    shape = [1 if d == dim else s for d, s in enumerate(x.shape) if keepdim or d != dim]
    find = te.comm_reducer(combine, start)
    values = _stage(c, x, None, find) if x.is_computed else x

    def element(*index: Any) -> Any:
        at = (*index[:dim], axis, *index[dim + 1 if keepdim else dim :])
        return find((cast(axis.var, "int64"), c.scope(lambda: values.wide(*at))), axis=axis)

    places, _ = te.compute(tuple(shape), element, "place")
    return c.compute(places.shape, lambda *i: tirx.max(literal(0, "int64"), places(*i)))


# Along an axis


def fibers(shape: Sequence[Any], dim: int, body: Callable[[Callable[[Any], tuple[Any, ...]]], None]) -> None:
    """Statements for every line along an axis; ``body`` gets the index of an element of the line."""
    others = [s for d, s in enumerate(shape) if d != dim]
    if not shape:
        body(lambda i: ())
        return
    from planish.backends.tvm.cpu.loops import product, unravel

    if not others:
        body(lambda i: (i,))
        return
    with T.parallel(0, product(others)) as line:
        place = unravel(line, others)
        body(lambda i: (*place[:dim], i, *place[dim:]))


def _running(c: Call, x: Any, dim: int, out: Any) -> None:
    kind = storage(c.node.dtype)
    rank = len(c.node.shape)

    def body(at: Callable[[Any], tuple[Any, ...]]) -> None:
        wide = _wide(c.kind)
        total = T.alloc_buffer((1,), wide)
        start = 0 if c.node.op == "aten.cumsum" else 1
        T.buffer_store(total, literal(start, wide), [0])
        with T.serial(0, out.shape[dim] if rank else 1) as i:
            value = cast(x[at(i)] if rank else x[()], wide)
            T.buffer_store(total, total[0] + value if start == 0 else total[0] * value, [0])
            T.buffer_store(out, cast(total[0], kind), list(at(i)))

    fibers(c.shape(), dim, body)


def _wide(kind: DType) -> str:
    return (
        "float64"
        if kind.is_float and kind.name == "f32"
        else "float32"
        if kind.is_float and kind.bits < 32
        else (storage(kind))
    )


lowers("aten.cumsum", "aten.cumprod", form="loops")(_running)


@lowers("aten.softmax", "aten.log_softmax", form="tensor")
def _softmax(c: Call, x: Reader, dim: int) -> Any:
    kind = storage(c.node.dtype)
    logarithm = c.node.op == "aten.log_softmax"
    if not x.rank:
        return c.compute((), lambda: cast(literal(0.0 if logarithm else 1.0, c.dtype), kind))
    top = reduced(c, x, (dim,), True, MAXIMUM, name="top")

    def one(index: Sequence[Any]) -> tuple[Any, ...]:
        return (*index[:dim], 0, *index[dim + 1 :])

    if logarithm:
        total = reduced(c, x, (dim,), True, te.sum, lambda i, v: exp(c, v - top(*i)), "total")
        base = c.compute(total.shape, lambda *i: top(*i) + _log(c, total(*i)), "base")
        return c.compute(x.shape, lambda *i: cast(x.wide(*i) - base(*one(i)), kind))
    powers = c.compute(x.shape, lambda *i: exp(c, x.wide(*i) - top(*one(i))), "powers")
    axis = te.reduce_axis((0, x.shape[dim]), "k")
    total = te.compute(
        top.shape, lambda *i: te.sum(powers(*i[:dim], axis, *i[dim + 1 :]), axis=axis), "total"
    )
    return c.compute(x.shape, lambda *i: cast(powers(*i) / total(*one(i)), kind))


__all__ = ["MAXIMUM", "MINIMUM", "fibers", "finished", "highest", "lowest", "reduced", "Node"]
