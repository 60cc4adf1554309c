"""Pooling over one to three axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from planish.backends.tvm.expressions import Call, Reader, all_of, as_expression, cast, literal
from planish.backends.tvm.table import computed, lowers, storage
from planish.backends.tvm.table_reduction import MAXIMUM, lowest
from planish.ir.types import Size

AXES = (1, 2, 3)


def narrow(c: Call, value: Any) -> Any:
    """A tensor expression in the element type of the result."""
    kind = storage(c.node.dtype)
    if str(value.dtype) == kind:
        return value
    return te.compute(value.shape, lambda *index: cast(value(*index), kind), "narrow")


def _windows(axes: Sequence[Any]) -> list[Any]:
    return [te.reduce_axis((0, n), f"k{i}") for i, n in enumerate(axes)]


def _inside(places: Sequence[Any], x: Reader) -> Any:
    lead = x.rank - len(places)
    sizes = x.shape[lead:]
    return all_of([t for p, s in zip(places, sizes, strict=True) for t in (p >= 0, p < as_expression(s))])


@lowers(*(f"aten.max_pool{n}d" for n in AXES), form="tensor")
def _max_pool(
    c: Call, x: Reader, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil: bool,
) -> Any:  # fmt: skip
    window, lead = _windows(kernel), x.rank - len(kernel)
    kind = storage(x.node.dtype) if not x.node.dtype.is_float else computed(x.node.dtype)

    def element(*index: Any) -> Any:
        at = [
            i * s - p + k * d
            for i, s, p, k, d in zip(index[lead:], stride, padding, window, dilation, strict=True)
        ]
        value = tirx.if_then_else(_inside(at, x), x.wide(*index[:lead], *at), lowest(kind))
        return MAXIMUM(value, axis=window)

    return narrow(c, te.compute(tuple(c.shape()), element, "pooled"))


@lowers(*(f"aten.avg_pool{n}d" for n in AXES), form="tensor")
def _avg_pool(
    c: Call, x: Reader, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool,
    count_include_pad: bool,
) -> Any:  # fmt: skip
    window, lead = _windows(kernel), x.rank - len(kernel)
    kind = computed(x.node.dtype)

    def element(*index: Any) -> Any:
        at = [i * s - p + k for i, s, p, k in zip(index[lead:], stride, padding, window, strict=True)]
        value = tirx.if_then_else(_inside(at, x), x.wide(*index[:lead], *at), literal(0, kind))
        return te.sum(value, axis=window)

    total = te.compute(tuple(c.shape()), element, "total")

    def mean(*index: Any) -> Any:
        count: Any = literal(1, "int64")
        for i, s, p, n, length in zip(index[lead:], stride, padding, kernel, x.shape[lead:], strict=True):
            begin = i * s - p
            end = tirx.min(begin + n, as_expression(length) + p)
            if not count_include_pad:
                end = tirx.min(end, as_expression(length))
                begin = tirx.max(begin, literal(0, "int64"))
            count = count * (end - begin)
        return cast(total(*index) / cast(count, kind), storage(c.node.dtype))

    return te.compute(tuple(c.shape()), mean, "mean")


def _adaptive(c: Call, x: Reader, output: Sequence[Size], largest: bool) -> Any:
    lead = x.rank - len(output)
    sizes = [as_expression(s) for s in x.shape[lead:]]
    wanted = [as_expression(c.size(o)) for o in output]
    window = _windows([tirx.floordiv(s + o - 1, o) + 1 for s, o in zip(sizes, wanted, strict=True)])
    kind = computed(x.node.dtype)

    def bounds(i: Any, s: Any, o: Any) -> tuple[Any, Any]:
        return tirx.floordiv(i * s, o), tirx.floordiv((i + 1) * s + o - 1, o)

    def element(*index: Any) -> Any:
        places, inside = [], []
        for i, s, o, k in zip(index[lead:], sizes, wanted, window, strict=True):
            begin, end = bounds(i, s, o)
            places.append(begin + k)
            inside.append(begin + k < end)
        default = lowest(kind) if largest else literal(0, kind)
        value = tirx.if_then_else(all_of(inside), x.wide(*index[:lead], *places), default)
        return MAXIMUM(value, axis=window) if largest else te.sum(value, axis=window)

    total = te.compute(tuple(c.shape()), element, "pooled")
    if largest:
        return narrow(c, total)

    def mean(*index: Any) -> Any:
        count: Any = literal(1, "int64")
        for i, s, o in zip(index[lead:], sizes, wanted, strict=True):
            begin, end = bounds(i, s, o)
            count = count * (end - begin)
        return cast(total(*index) / cast(count, kind), storage(c.node.dtype))

    return te.compute(tuple(c.shape()), mean, "mean")


@lowers(*(f"aten.adaptive_avg_pool{n}d" for n in AXES), form="tensor")
def _adaptive_avg(c: Call, x: Reader, output: Sequence[Size]) -> Any:
    return _adaptive(c, x, output, False)


@lowers(*(f"aten.adaptive_max_pool{n}d" for n in AXES), form="tensor")
def _adaptive_max(c: Call, x: Reader, output: Sequence[Size]) -> Any:
    return _adaptive(c, x, output, True)
