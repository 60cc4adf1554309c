"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from planish.backends.tvm.expressions import Call, Index, Reader, cast, literal
from planish.backends.tvm.table import lowers, storage
from planish.backends.tvm.table_reduction import count, reduced


def _scaled(value: Any, weight: Reader | None, bias: Reader | None, index: Sequence[Any]) -> Any:
    for part in (weight, bias):
        if part is not None:
            own = index[len(index) - part.rank :]
            read = part.wide(*(0 if s == 1 else i for s, i in zip(part.node.shape, own, strict=True)))
            value = value * read if part is weight else value + read
    return value


@lowers("aten.rms_norm", form="tensor")
def _rms_norm(c: Call, x: Reader, shape: Sequence[Any], weight: Reader | None, eps: float) -> Any:
    dims = tuple(range(x.rank - len(shape), x.rank))
    squares = reduced(c, x, dims, False, te.sum, lambda _, v: v * v, "squares")
    number = count(c, x, dims, c.dtype)
    factor = c.compute(
        squares.shape,
        lambda *i: literal(1.0, c.dtype) / tirx.sqrt(squares(*i) / number + literal(eps, c.dtype)),
        "factor",
    )

    def element(*index: Any) -> Any:
        row = index[: x.rank - len(shape)]
        value = x.wide(*index) * factor(*row)
        return cast(_scaled(value, weight, None, index[len(row) :]), storage(c.node.dtype))

    return c.compute(x.shape, element)


def _moments(c: Call, x: Reader, dims: Sequence[int], eps: float) -> tuple[Any, Any]:
    """Mean and inverse deviation."""
    number = count(c, x, dims, c.dtype)
    total = reduced(c, x, dims, False, te.sum, name="total")
    mean = c.compute(total.shape, lambda *i: total(*i) / number, "mean")

    def square(index: Sequence[Any], value: Any) -> Any:
        off = c.let(value - mean(*index))
        return off * off

    spread = reduced(c, x, dims, False, te.sum, square, "spread")
    factor = c.compute(
        total.shape,
        lambda *i: literal(1.0, c.dtype) / tirx.sqrt(spread(*i) / number + literal(eps, c.dtype)),
        "factor",
    )
    return mean, factor


@lowers("aten.layer_norm", form="tensor")
def _layer_norm(
    c: Call, x: Reader, shape: Sequence[Any], weight: Reader | None, bias: Reader | None, eps: float
) -> Any:
    lead = x.rank - len(shape)
    mean, factor = _moments(c, x, tuple(range(lead, x.rank)), eps)

    def element(*index: Any) -> Any:
        row = index[:lead]
        value = (x.wide(*index) - mean(*row)) * factor(*row)
        return cast(_scaled(value, weight, bias, index[lead:]), storage(c.node.dtype))

    return c.compute(x.shape, element)


@lowers("aten.group_norm", form="tensor")
def _group_norm(
    c: Call, x: Reader, groups: int, weight: Reader | None, bias: Reader | None, eps: float
) -> Any:
    each = tirx.floordiv(_whole(x.shape[1]), groups)
    axes = [te.reduce_axis((0, each), "channel")]
    axes += [te.reduce_axis((0, s), f"k{i}") for i, s in enumerate(x.shape[2:])]
    number = cast(_whole(each), c.dtype)
    for size in x.shape[2:]:
        number = number * cast(_whole(size), c.dtype)

    def summed(element: Any, name: str) -> Any:
        return te.compute(
            (x.shape[0], groups),
            lambda n, g: te.sum(
                c.scope(lambda: element(n, g, x.wide(n, g * each + axes[0], *axes[1:]))), axis=axes
            ),
            name,
        )

    total = summed(lambda n, g, v: v, "total")
    mean = c.compute((x.shape[0], groups), lambda n, g: total(n, g) / number, "mean")
    spread = summed(lambda n, g, v: (v - mean(n, g)) * (v - mean(n, g)), "spread")
    factor = c.compute(
        (x.shape[0], groups),
        lambda n, g: literal(1.0, c.dtype) / tirx.sqrt(spread(n, g) / number + literal(eps, c.dtype)),
        "factor",
    )

    def element(*index: Any) -> Any:
        n, channel = index[:2]
        group = tirx.floordiv(channel, each)
        value = (x.wide(*index) - mean(n, group)) * factor(n, group)
        return cast(_scaled(value, weight, bias, (channel,)), storage(c.node.dtype))

    return c.compute(x.shape, element)


def _whole(value: Any) -> Any:
    return literal(value, "int64") if isinstance(value, int) else value


@lowers("aten.batch_norm", form="index", once=True)
def _batch_norm(
    c: Call, index: Index, x: Reader, weight: Reader | None, bias: Reader | None, mean: Reader, var: Reader, eps: float
) -> Any:  # fmt: skip
    channel = index[1]
    factor = literal(1.0, c.dtype) / tirx.sqrt(var.wide(channel) + literal(eps, c.dtype))
    factor = c.let(factor * weight.wide(channel) if weight is not None else factor)
    shift = literal(0.0, c.dtype) - mean.wide(channel) * factor
    if bias is not None:
        shift = bias.wide(channel) + shift
    return x.wide(*index) * factor + shift
