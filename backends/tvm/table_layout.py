"""Layouts that kernels read, element by element."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from planish.backends.tvm.expressions import Call, Index, Reader, all_of, as_expression, cast, literal
from planish.backends.tvm.table import lowers, storage
from planish.ir.ops.layout import panel_planes


@lowers("planish.tile_rows", form="index", once=True)
def _tile_rows(c: Call, index: Index, x: Reader, tile: int, depth: int) -> Any:
    block, step, lane = index
    row = c.let(block * tile + tirx.floordiv(lane, depth))
    column = c.let(step * depth + tirx.floormod(lane, depth))
    inside = all_of([row < as_expression(x.shape[0]), column < as_expression(x.shape[1])])
    return c.when(inside, lambda: x(row, column), lambda: cast(literal(0, "int32"), storage(c.node.dtype)))


@lowers("planish.untile_rows", form="index", once=True)
def _untile_rows(c: Call, index: Index, x: Reader, rows: int, length: int, tile: int, depth: int) -> Any:
    row, column = index
    lane = tirx.floormod(row, tile) * depth + tirx.floormod(column, depth)
    return x(tirx.floordiv(row, tile), tirx.floordiv(column, depth), lane)


@lowers("planish.panel", form="index")
def _panel(c: Call, index: Index, codes: Reader, bits: int, tile: int) -> Any:
    block, place = index
    padded = -(-int(codes.node.shape[1]) // 32) * 32
    planes, begin, below = [], 0, bits
    for width in panel_planes(bits):
        below -= width
        planes.append((width, begin, below))
        begin += padded * width * tile // 8

    def plane(number: int) -> Any:
        width, start, shift = planes[number]
        if number + 1 < len(planes):
            return c.when(
                place < planes[number + 1][1], lambda: byte(width, start, shift), lambda: plane(number + 1)
            )
        return byte(width, start, shift)

    def byte(width: int, start: int, shift: int) -> Any:
        at = place - start
        step, lane = tirx.floordiv(at, 4 * tile), tirx.floormod(at, 4 * tile)
        row = block * tile + tirx.floordiv(lane, 4)
        total = literal(0, "int32")
        for i in range(8 // width):
            column = step * (32 // width) + 4 * i + tirx.floormod(lane, 4)
            inside = all_of([row < as_expression(codes.shape[0]), column < as_expression(codes.shape[1])])
            code = c.when(
                inside,
                lambda column=column: cast(codes(row, column), "int32"),  # type: ignore[misc]
                lambda: literal(0, "int32"),
            )
            part = tirx.bitwise_and(
                tirx.shift_right(code, literal(shift, "int32")), literal(2**width - 1, "int32")
            )
            total = tirx.bitwise_or(total, tirx.shift_left(part, literal(i * width, "int32")))
        return cast(total, "uint8")

    return plane(0)


@lowers("planish.unpanel", form="index", once=True)
def _unpanel(c: Call, index: Index, panels: Reader, bits: int, rows: int, length: int, tile: int) -> Any:
    row, column = index
    padded, begin, below = -(-length // 32) * 32, 0, bits
    total = literal(0, "int32")
    for width in panel_planes(bits):
        below -= width
        per = 8 // width
        step, rest = tirx.floordiv(column, 4 * per), tirx.floormod(column, 4 * per)
        place = begin + (step * tile + tirx.floormod(row, tile)) * 4 + tirx.floormod(rest, 4)
        shift = cast(tirx.floordiv(rest, 4) * width, "int32")
        byte = cast(panels(tirx.floordiv(row, tile), place), "int32")
        part = tirx.bitwise_and(tirx.shift_right(byte, shift), literal(2**width - 1, "int32"))
        total = tirx.bitwise_or(total, tirx.shift_left(part, literal(below, "int32")))
        begin += padded * width * tile // 8
    return cast(total, "uint8")
