"""Rows of a table of affine codes, and rotary positions, for GPUs: one thread an element."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.device import Gpu
from planish.ir.node import Node
from planish.ir.ops.layout import TILE, panel_bytes, panel_planes

THREADS = 128


def build(node: Node, gpu: Gpu) -> Any:
    """The PrimFunc of ``kernel.embedding_affine`` or ``kernel.rope``, scheduled."""
    make = _embedding if node.op == "kernel.embedding_affine" else _rope
    return W.function(node, gpu, lambda flats, out: make(node, flats, out))


def _embedding(node: Node, flats: list[W.Flat], out: W.Flat) -> None:
    bits, group, rows, length = node.args[4:]
    ids, panels, scale, *rest = flats
    groups = -(-length // group)
    zero_bytes = -(-groups * bits // 8)

    def zero_of(tile: Any, lane: Any, g: Any) -> Any:
        if not rest:
            return W.real(float(node.args[3]))
        zero = rest[0]
        if not zero.sizes:
            return zero.load(0)
        if zero.dtype != "uint8":
            return zero.load((tile * groups + g) * TILE + lane)
        bit = g * bits
        first = tirx.floordiv(bit, 8)

        def byte(index: Any) -> Any:
            return tirx.Cast("uint32", zero.raw((tile * zero_bytes + index) * TILE + lane))

        pair = byte(first) | (byte(tirx.min(first + 1, zero_bytes - 1)) << W.u32(8))
        return tirx.Cast(
            "float32", (pair >> tirx.Cast("uint32", tirx.floormod(bit, 8))) & W.u32((1 << bits) - 1)
        )

    with W.launch([W.product(ids.sizes)], THREADS) as ((place,), thread):
        row = W.named(tirx.Cast("int32", tirx.max(tirx.min(ids.raw(place), rows - 1), 0)))
        tile, lane = tirx.floordiv(row, TILE), tirx.floormod(row, TILE)
        base = W.named(tirx.Cast("int64", tile) * panel_bytes(length, bits))
        with W.strided(thread, length, THREADS) as k:
            code = W.named(_code(panels, base, lane, k, bits, length))
            g = W.named(tirx.floordiv(k, group))
            step = scale.load((tile * groups + g) * TILE + lane)
            out.store(place * length + k, step * (tirx.Cast("float32", code) - zero_of(tile, lane, g)))


def _code(panels: W.Flat, base: Any, lane: Any, k: Any, bits: int, length: int) -> Any:
    """The code (u32) at place ``k`` of the row ``lane`` of a panel that begins at ``base``."""
    padded, offset, below, made = -(-length // 32) * 32, 0, bits, None
    for width in panel_planes(bits):
        below -= width
        per_step = 32 // width
        step, rest = tirx.floordiv(k, per_step), tirx.floormod(k, per_step)
        at = base + offset + (step * TILE + lane) * 4 + tirx.floormod(rest, 4)
        byte = tirx.Cast("uint32", panels.raw(at))
        shift = tirx.Cast("uint32", tirx.floordiv(rest, 4) * width)
        part = ((byte >> shift) & W.u32((1 << width) - 1)) << W.u32(below)
        made = part if made is None else made | part
        offset += padded * width * TILE // 8
    return made


def _rope(node: Node, flats: list[W.Flat], out: W.Flat) -> None:
    x, cos, sin = flats
    order = node.args[3]
    b, first, second, width = x.sizes
    half = int(cos.sizes[-1])

    def angle(table: W.Flat, index: dict[int, Any]) -> Any:
        """An element of a table whose axes are aligned with batch, head, position and channel from the last."""
        place: Any = 0
        stride: Any = 1
        for axis, size in zip(range(3, -1, -1), reversed(table.sizes), strict=False):
            if not (isinstance(size, int) and size == 1):
                place = place + index[axis] * stride
            stride = stride * size
        return table.load(place)

    with W.launch([b * first * second], min(THREADS, 64)) as ((row,), thread):
        outer, inner = tirx.floordiv(row, second), tirx.floormod(row, second)
        batch, middle = tirx.floordiv(outer, first), tirx.floormod(outer, first)
        head, position = (middle, inner) if order == "bhtd" else (inner, middle)
        base = row * width
        with W.strided(thread, half, 64) as i:
            index = {0: batch, 1: head, 2: position, 3: i}
            c, s = W.named(angle(cos, index)), W.named(angle(sin, index))
            low, high = W.named(x.load(base + i)), W.named(x.load(base + half + i))
            out.store(base + i, low * c - high * s)
            out.store(base + half + i, high * c + low * s)
        if int(width) > 2 * half:
            with W.strided(thread, int(width) - 2 * half, 64) as i:
                out.store(base + 2 * half + i, x.load(base + 2 * half + i))
