"""Orders of values along an axis: a stable merge sort; NaN counts as the largest value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.expressions import Call, cast, literal
from planish.backends.tvm.table import lowers
from planish.backends.tvm.table_pointwise import is_nan
from planish.backends.tvm.table_reduction import fibers

At = Callable[[Any], "tuple[Any, ...]"]


def _before(c: Call, a: Any, b: Any, descending: bool) -> Any:
    """True if ``a`` must stand before ``b``, whatever their places are."""
    first = (a > b) if descending else (a < b)
    if not c.is_float:
        return first
    left, right = (a, b) if descending else (b, a)
    return tirx.any(first, tirx.all(is_nan(left), tirx.Not(is_nan(right))))


def _comparable(c: Call, value: Any) -> Any:
    return cast(value, "int32") if c.dtype == "bool" else cast(value, c.dtype)


def _local(kind: str, start: Any) -> Any:
    made = T.alloc_buffer((1,), kind)
    T.buffer_store(made, start, [0])
    return made


def _ordered(c: Call, x: Any, at: At, length: Any, descending: bool) -> tuple[Any, Any]:
    """Places of a line in order, in the half of a workspace that is returned as an offset."""
    zero, one = literal(0, "int64"), literal(1, "int64")
    work = T.alloc_buffer((tirx.max(length, one) * 2,), "int64")
    with T.serial(0, length) as i:
        T.buffer_store(work, cast(i, "int64"), [i])
    width, source = _local("int64", one), _local("int64", zero)
    low, left, right, end, middle = (_local("int64", zero) for _ in range(5))
    with T.While(width[0] < length):
        target = length - source[0]
        T.buffer_store(low, zero, [0])
        with T.While(low[0] < length):
            T.buffer_store(middle, tirx.min(low[0] + width[0], length), [0])
            T.buffer_store(end, tirx.min(low[0] + width[0] * 2, length), [0])
            T.buffer_store(left, low[0], [0])
            T.buffer_store(right, middle[0], [0])
            with T.serial(0, end[0] - low[0]) as k:
                last = length - one
                a = _comparable(c, x[at(work[source[0] + tirx.min(left[0], last)])])
                b = _comparable(c, x[at(work[source[0] + tirx.min(right[0], last)])])
                take = tirx.any(
                    left[0] >= middle[0], tirx.all(right[0] < end[0], _before(c, b, a, descending))
                )
                place = low[0] + k
                with T.If(take):
                    with T.Then():
                        T.buffer_store(work, work[source[0] + right[0]], [target + place])
                        T.buffer_store(right, right[0] + one, [0])
                    with T.Else():
                        T.buffer_store(work, work[source[0] + left[0]], [target + place])
                        T.buffer_store(left, left[0] + one, [0])
            T.buffer_store(low, low[0] + width[0] * 2, [0])
        T.buffer_store(source, target, [0])
        T.buffer_store(width, width[0] * 2, [0])
    return work, source


def _sort(c: Call, x: Any, dim: int, descending: bool, count: Any, out: Any) -> None:
    values = c.node.op in ("planish.sort_values", "planish.topk_values")
    if not len(x.shape):
        T.buffer_store(out, x[()] if values else literal(0, "int64"), [])
        return

    def body(at: At) -> None:
        work, source = _ordered(c, x, at, x.shape[dim], descending)
        with T.serial(0, count) as i:
            place = work[source[0] + i]
            T.buffer_store(out, x[at(place)] if values else place, list(at(i)))

    fibers(x.shape, dim, body)


@lowers("planish.sort_values", "aten.argsort", form="loops")
def _sorted(c: Call, x: Any, dim: int, descending: bool, out: Any) -> None:
    _sort(c, x, dim, descending, x.shape[dim] if len(x.shape) else 1, out)


@lowers("planish.topk_values", "planish.topk_indices", form="loops")
def _top(c: Call, x: Any, k: Any, dim: int, largest: bool, out: Any) -> None:
    _sort(c, x, dim, largest, c.size(k), out)
