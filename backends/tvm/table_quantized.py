"""Codes: unpacking, scaling, and rounding of activations."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, as_expression, cast, literal
from planish.backends.tvm.table import computed, lowers
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import DType, Size, f32, floor_div
from planish.ir.types import size as as_size


@lowers("planish.unpack", form="index", once=True)
def _unpack(c: Call, index: Index, codes: Reader, bits: int, length: Size) -> Any:
    *lead, i = index
    if bits == 8:
        return codes(*lead, i)
    mask = literal(2**bits - 1, "int32")
    if bits in (1, 2, 4):
        per = 8 // bits
        byte = cast(codes(*lead, tirx.floordiv(i, per)), "int32")
        shift = cast(tirx.floormod(i, per) * bits, "int32")
        return cast(tirx.bitwise_and(tirx.shift_right(byte, shift), mask), "uint8")
    place = c.let(i * bits)
    low = c.let(tirx.floordiv(place, 8))
    last = as_expression(codes.shape[-1]) - 1
    # A code that ends in the last byte has none of its bits in the next one: any byte will do there.
    first = cast(codes(*lead, low), "int32")
    second = cast(codes(*lead, tirx.min(low + 1, last)), "int32")
    wide = tirx.bitwise_or(first, tirx.shift_left(second, literal(8, "int32")))
    shift = cast(tirx.floormod(place, 8), "int32")
    return cast(tirx.bitwise_and(tirx.shift_right(wide, shift), mask), "uint8")


@lowers("planish.dequant", form="index", once=True)
def _dequant(c: Call, index: Index, codes: Reader, scale: Reader, zero: Any, group: int, dtype: DType) -> Any:
    kind = computed(dtype)
    *lead, i = index

    def spread(part: Reader) -> Any:
        places = [0 if s == 1 else at for s, at in zip(part.node.shape[:-1], lead, strict=True)]
        return cast(part(*places, tirx.floordiv(i, group)), kind)

    point = spread(zero) if isinstance(zero, Reader) else literal(zero, kind)
    return (cast(codes(*index), kind) - point) * spread(scale)


@lowers("planish.fake_quantize", form="nodes")
def _fake_quantize(node: Node) -> Node:
    x, bits, group = node.args
    top = float(2 ** (bits - 1) - 1)
    *lead, length = x.shape
    groups = floor_div(as_size(length + group - 1), group)
    full = as_size(groups * group)
    wide = aten.to(x, f32) if x.dtype is not f32 else x
    padded = aten.pad(wide, [0, as_size(full - length)], "constant", 0.0) if full != length else wide
    parts = aten.view(padded, [*lead, groups, group])
    axis = len(lead) + 1
    largest = aten.amax(aten.abs(parts), [axis], True)
    one = aten.full([1], 1.0, f32)
    is_zero = aten.eq(largest, 0.0)
    inverse = aten.where(is_zero, 0.0, aten.div(aten.mul(one, top), aten.where(is_zero, one, largest)))
    rounded = aten.mul(aten.round(aten.mul(parts, inverse)), aten.div(largest, top))
    flat = aten.view(rounded, [*lead, full])
    cut = aten.slice(flat, len(lead), 0, length) if full != length else flat
    return aten.to(cut, x.dtype) if x.dtype is not f32 else cut
