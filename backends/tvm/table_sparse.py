"""Sparse weights, element by element."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, as_expression, cast, literal
from planish.backends.tvm.table import computed, lowers
from planish.ir.ops.sparse import position_bits


@lowers("planish.expand_nm", form="index")
def _expand_nm(c: Call, index: Index, values: Reader, positions: Reader, n: int, m: int, length: int) -> Any:
    *lead, i = index
    bits, kind = position_bits(m), computed(c.node.dtype)
    mask = literal(m - 1, "int32")
    first = c.let(tirx.floordiv(as_expression(i), m) * n)
    wanted = c.let(cast(tirx.floormod(as_expression(i), m), "int32"))
    last = as_expression(positions.shape[-1]) - 1
    total: Any = literal(0, kind)
    for t in range(n):
        place = c.let((first + t) * bits)
        low = c.let(tirx.floordiv(place, 8))
        word = cast(positions(*lead, low), "int32")
        if 8 % bits:
            # A code that ends in the last byte has none of its bits in the next one: any byte will do there.
            second = cast(positions(*lead, tirx.min(low + 1, last)), "int32")
            word = tirx.bitwise_or(word, tirx.shift_left(second, literal(8, "int32")))
        shift = cast(tirx.floormod(place, 8), "int32")
        found = tirx.bitwise_and(tirx.shift_right(word, shift), mask)
        value = cast(values(*lead, first + t), kind)
        total = total + tirx.Select(tirx.EQ(found, wanted), value, literal(0, kind))
    return total
