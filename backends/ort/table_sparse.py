"""Decoding of sparse weights in operators of ONNX."""

from __future__ import annotations

from planish.backends.ort.table import Call, lowers
from planish.backends.ort.table_quantized import first, unpack
from planish.ir.ops.sparse import position_bits
from planish.ir.types import DTYPES


@lowers("planish.expand_nm")
def _expand_nm(c: Call, values: str, positions: str, n: int, m: int, length: int) -> str:
    g, node = c.graph, c.node
    kind = node.dtype if node.dtype.bits >= 32 else DTYPES["f32"]
    *lead, count = c.shape(0)
    rank, blocks = len(lead) + 1, -(-length // m)
    codes = g.cast(unpack(g, positions, lead, position_bits(m), int(count)), "i32")
    given = values if kind is node.dtype else g.cast(values, kind)
    split = (*lead, blocks, n)
    codes, given = (g.reshape(each, (*lead, count), split) for each in (codes, given))
    lanes, zero = g.constant(list(range(m)), "i32"), g.constant(0.0, kind)
    total = ""
    for t in range(n):
        place, value = (
            g.op("Slice", each, g.ints(t), g.ints(t + 1), g.ints(rank)) for each in (codes, given)
        )
        one = g.op("Where", g.op("Equal", place, lanes), value, zero)
        total = g.op("Add", total, one) if total else one
    flat = g.reshape(total, (*lead, blocks, m), (*lead, blocks * m))
    flat = flat if blocks * m == length else first(g, flat, rank - 1, length)
    return flat if kind is node.dtype else g.cast(flat, node.dtype)
