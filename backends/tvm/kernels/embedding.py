"""The kernel that reads rows of a table of affine codes, in the layout of the linear layers that share it."""

from __future__ import annotations

from typing import Any

from planish.backends.tvm.kernels.common import stored
from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import f16, f32, i32, i64, u8


def _zeros(zero: Any, bits: int, rows: int, groups: int) -> Any:
    if isinstance(zero, (int, float)) or not len(zero.shape):
        return float(zero)
    if str(zero.dtype).removeprefix("torch.") not in ("u8", "uint8"):
        return planish.untile_rows(zero, rows, groups)
    packed = planish.untile_rows(zero, rows, -(-groups * bits // 8))
    return packed if bits == 8 else planish.unpack(packed, bits, groups)


def _embedding_affine(
    ids: Any, panels: Any, scale: Any, zero: Any, bits: int, group: int, rows: int, length: int
) -> Any:
    """rows of dequant(codes) by number; the kernel takes numbers outside of the table as its first or last"""
    groups = -(-length // group)
    table = planish.dequant(
        planish.unpanel(panels, bits, rows, length),
        planish.untile_rows(scale, rows, groups),
        _zeros(zero, bits, rows, groups),
        group,
    )
    return aten.embedding(table, ids)


declare(
    "embedding_affine",
    "ids, panels, scale, zero:operand, bits:int, group:int, rows:int, length:int",
    _embedding_affine,
)


def _selected(ids: Node, codes: Node, plain: Node, scale: Node, zero: Any, group: int, bits: int) -> Node:
    rows, length = plain.shape
    if ids.dtype not in (i64, i32) or scale.dtype not in (f16, f32):
        raise Decline("row numbers are whole numbers, scales f16 or f32")
    if not isinstance(rows, int) or not isinstance(length, int):
        raise Decline("the size of the table must be known")
    if group % 32 and group < length:
        raise Decline("groups are whole multiples of 32, or a row")
    if isinstance(zero, Node):
        if zero.shape != scale.shape:
            raise Decline("zeros are broadcast")
        if zero.op == "planish.unpack" and zero.args[1] == bits and bits < 8:
            zero = stored(zero.args[0], "the zero")
        elif not (zero.dtype is u8 and bits == 8) and zero.dtype not in (f16, f32):
            raise Decline("zeros are packed like codes, or floats")
        zero = planish.tile_rows(stored(zero, "the zero"))
    elif not isinstance(zero, (int, float)):
        raise Decline("the zero is a size")
    if scale.shape != (rows, -(-length // group)):
        raise Decline("scales are broadcast")
    stored(codes, "the codes")
    panels = planish.panel(plain, bits)
    tiles = planish.tile_rows(stored(scale, "the scale"))
    return kernel.embedding_affine(ids, panels, tiles, zero, bits, group, rows, length)


@rule(
    lambda codes, bits, length, scale, zero, group, ids: aten.embedding(
        planish.dequant(planish.unpack(codes, bits, length), scale, zero, group), ids
    ),
    kind="close",
    tolerance=1e-5,
    example={
        "codes": "u8[20, 32]",
        "bits": 4,
        "length": 64,
        "scale": "f16[20, 2]",
        "zero": 8,
        "group": 32,
        "ids": "i64[2, 3]",
    },
)
def select_embedding_affine(
    codes: Any, bits: Any, length: Any, scale: Any, zero: Any, group: Any, ids: Any
) -> Node:
    """embedding(dequant(unpack(codes), scale, zero), ids) = kernel.embedding_affine(ids, panel(unpack(codes)), ...)"""
    plain = planish.unpack(codes, bits, length)
    if plain.rank != 2:
        raise Decline("a table has two axes")
    return _selected(ids, codes, plain, scale, zero, group, bits)


@rule(
    lambda codes, scale, zero, group, ids: aten.embedding(planish.dequant(codes, scale, zero, group), ids),
    kind="close",
    tolerance=1e-5,
    example={"codes": "u8[20, 64]", "scale": "f16[20, 2]", "zero": 128, "group": 32, "ids": "i64[2, 3]"},
)
def select_embedding_bytes(codes: Any, scale: Any, zero: Any, group: Any, ids: Any) -> Node:
    """embedding(dequant(codes u8), ids) = kernel.embedding_affine(ids, panel(codes, 8), ...)"""
    if codes.op == "planish.unpack" or codes.rank != 2 or codes.dtype is not u8:
        raise Decline("codes of one byte are needed")
    return _selected(ids, codes, codes, scale, zero, group, 8)
