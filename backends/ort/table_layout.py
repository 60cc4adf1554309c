"""Layouts that kernels of other backends read, and rounding of activations, in operators of ONNX."""

from __future__ import annotations

from collections.abc import Sequence

from planish.backends.ort.graph import Graph
from planish.backends.ort.table import Call, lowers
from planish.ir.ops.layout import panel_planes
from planish.ir.types import Size, floor_div
from planish.ir.types import size as as_size


def _up(length: Size, step: int) -> Size:
    """``length`` rounded up to a multiple of ``step``."""
    return as_size(floor_div(as_size(length + step - 1), step) * step)


def _padded(g: Graph, x: str, have: Sequence[Size], want: Sequence[Size]) -> str:
    room = [as_size(w - h) for h, w in zip(have, want, strict=True)]
    return x if all(r == 0 for r in room) else g.op("Pad", x, g.sizes([0] * len(room) + room))


def _cut(g: Graph, x: str, have: Sequence[Size], want: Sequence[Size]) -> str:
    for axis, (h, w) in enumerate(zip(have, want, strict=True)):
        if h != w:
            x = g.op("Slice", x, g.ints(0), g.sizes([w]), g.ints(axis))
    return x


def _permuted(g: Graph, x: str, have: Sequence[Size], perm: Sequence[int], want: Sequence[Size]) -> str:
    moved = g.op("Transpose", x, perm=list(perm))
    return g.reshape(moved, [have[p] for p in perm], want)


@lowers("planish.tile_rows")
def _tile_rows(c: Call, x: str, tile: int, depth: int) -> str:
    g, (rows, length) = c.graph, c.shape()
    full = (_up(rows, tile), _up(length, depth))
    split = (floor_div(full[0], tile), tile, floor_div(full[1], depth), depth)
    parts = g.reshape(_padded(g, x, (rows, length), full), full, split)
    return _permuted(g, parts, split, (0, 2, 1, 3), c.node.shape)


@lowers("planish.untile_rows")
def _untile_rows(c: Call, x: str, rows: int, length: int, tile: int, depth: int) -> str:
    g, (tiles, steps, _) = c.graph, c.shape()
    split, full = (tiles, steps, tile, depth), (as_size(tiles * tile), as_size(steps * depth))
    flat = _permuted(g, g.reshape(x, c.shape(), split), split, (0, 2, 1, 3), full)
    return _cut(g, flat, full, (rows, length))


@lowers("planish.panel")
def _panel(c: Call, codes: str, bits: int, tile: int) -> str:
    g, (rows, length) = c.graph, c.shape()
    full = (_up(rows, tile), int(_up(length, 32)))
    panels = floor_div(full[0], tile)
    codes = _padded(g, codes, (rows, length), full)
    planes, below = [], bits
    for width in panel_planes(bits):
        below -= width
        per = 8 // width
        part = g.op("BitShift", codes, g.constant(below, "u8"), direction="RIGHT")
        part = g.op("BitwiseAnd", part, g.constant(2**width - 1, "u8"))
        split = (panels, tile, full[1] // (4 * per), per, 4)
        part = g.op("Transpose", g.reshape(part, full, split), perm=[0, 2, 3, 1, 4])
        shifts = g.op("Reshape", g.constant(list(range(0, 8, width)), "u8"), g.ints(per, 1, 1))
        # Bits of different codes do not overlap, so their sum puts them together; there is no sum of bytes.
        part = g.cast(g.op("BitShift", part, shifts, direction="LEFT"), "i32")
        part = g.cast(g.op("ReduceSum", part, g.ints(2), keepdims=0), "u8")
        moved = (panels, split[2], tile, 4)
        planes.append(g.reshape(part, moved, (panels, split[2] * tile * 4)))
    return planes[0] if len(planes) == 1 else g.op("Concat", *planes, axis=1)


@lowers("planish.unpanel")
def _unpanel(c: Call, panels: str, bits: int, rows: int, length: int, tile: int) -> str:
    g, count = c.graph, c.shape()[0]
    padded, begin, below = -(-length // 32) * 32, 0, bits
    full = (as_size(count * tile), padded)
    codes = ""
    for width in panel_planes(bits):
        below -= width
        per, size = 8 // width, padded * width * tile // 8
        part = g.op("Slice", panels, g.ints(begin), g.ints(begin + size), g.ints(1))
        split = (count, size // (4 * tile), 1, tile, 4)
        part = g.reshape(part, (count, size), split)
        shifts = g.op("Reshape", g.constant(list(range(0, 8, width)), "u8"), g.ints(per, 1, 1))
        part = g.op("BitShift", part, shifts, direction="RIGHT")
        part = g.op("BitwiseAnd", part, g.constant(2**width - 1, "u8"))
        part = g.op("BitShift", part, g.constant(below, "u8"), direction="LEFT")
        part = _permuted(g, part, (count, split[1], per, tile, 4), (0, 3, 1, 2, 4), full)
        codes = g.op("BitwiseOr", codes, part) if codes else part
        begin += size
    return _cut(g, codes, full, (rows, length))


@lowers("planish.fake_quantize", native="f32")
def _fake_quantize(c: Call, x: str, bits: int, group: int) -> str:
    g, shape = c.graph, c.shape()
    *lead, length = shape
    top = float(2 ** (bits - 1) - 1)
    full = (*lead, _up(length, group))
    split = (*lead, floor_div(full[-1], group), group)
    parts = g.reshape(_padded(g, x, shape, full), full, split)
    largest = g.op("ReduceMax", g.op("Abs", parts), g.ints(-1), keepdims=1)
    zero = g.constant(0.0, "f32")
    inverse = g.op(
        "Where", g.op("Greater", largest, zero), g.op("Div", g.constant(top, "f32"), largest), zero
    )
    scale = g.op("Div", largest, g.constant(top, "f32"))
    rounded = g.op("Mul", g.op("Round", g.op("Mul", parts, inverse)), scale)
    return _cut(g, g.reshape(rounded, split, full), full, shape)
