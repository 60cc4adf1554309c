"""Matrix products, where no kernel takes them."""

from __future__ import annotations

from typing import Any

from tvm import te

from planish.backends.tvm.expressions import Call, Reader
from planish.backends.tvm.table import lowers
from planish.backends.tvm.table_pool import narrow


@lowers("aten.linear", form="tensor")
def _linear(c: Call, x: Reader, weight: Reader, bias: Reader | None) -> Any:
    inner = te.reduce_axis((0, x.shape[-1]), "inner")

    def product(*index: Any) -> Any:
        return te.sum(x.wide(*index[:-1], inner) * weight.wide(index[-1], inner), axis=inner)

    total = te.compute(tuple(c.shape()), product, "products")
    if bias is not None:
        sums = total
        total = te.compute(tuple(c.shape()), lambda *index: sums(*index) + bias.wide(index[-1]), "shifted")
    return narrow(c, total)


@lowers("aten.matmul", form="tensor")
def _matmul(c: Call, a: Reader, b: Reader) -> Any:
    inner = te.reduce_axis((0, a.shape[-1]), "inner")

    def product(*index: Any) -> Any:
        rest = list(index)
        column = [rest.pop()] if b.rank > 1 else []
        row = [rest.pop()] if a.rank > 1 else []
        left, right = _batch(a, rest), _batch(b, rest)
        return te.sum(a.wide(*left, *row, inner) * b.wide(*right, inner, *column), axis=inner)

    return narrow(c, te.compute(tuple(c.shape()), product, "products"))


def _batch(x: Reader, index: list[Any]) -> list[Any]:
    """The leading places of an operand under broadcasting."""
    lead = max(x.rank - 2, 0)
    own = index[len(index) - lead :]
    return [0 if s == 1 else i for s, i in zip(x.node.shape[:lead], own, strict=True)]
