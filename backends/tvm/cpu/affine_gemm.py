"""Quantized linear layers on many rows: blocks of 32 outputs, in parallel, each over all rows.

A block is two tiles of 16 outputs, side by side or, with a gate, a tile of values and its tile of gates. Its weight is
expanded once into scratch; then a few rows at a time are multiplied by it and finished. Where blocks are few, the rows
are divided too.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit
from planish.backends.tvm.cpu.affine_gemm_f32 import FloatBlock
from planish.backends.tvm.cpu.affine_gemm_int8 import BytesBlock
from planish.backends.tvm.cpu.affine_spec import AffineSpec
from planish.backends.tvm.cpu.affine_stages import Operands, Rows, allocate, finish, prepare
from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.isa import Isa

HEIGHT = 6
"""Rows that are multiplied at a time; a remainder is multiplied by 4 or 2."""

SHARES = 16
"""Pieces of work that are aimed at: where blocks are fewer, the rows are divided too."""


def emit_gemm(isa: Isa, spec: AffineSpec, operands: Operands, chosen: Variant = DEFAULT) -> None:
    """Emit the layer for any number of rows of x: all are prepared, then multiplied block by block.

    The scratch has an even number of rows, so that an odd last row is multiplied with whatever follows it there.
    """
    count, heights = operands.rows, heights_of(chosen)
    rows = allocate(spec, _ceil_div(count, heights[-1]) * heights[-1], 1 if _in_bytes(isa, spec) else 0)
    with T.parallel(0, count) as row:
        prepare(isa, spec, operands, row, rows, row)
    blocks = -(-spec.tiles // 2)
    shares = _shares(count, -(-chosen.get("shares", SHARES) // blocks), heights[0])
    height = _ceil_div(count, heights[0] * shares) * heights[0]
    with T.parallel(0, blocks * shares) as piece:
        # numbers in memory: as expressions they would occupy TVM's simplifier for seconds
        place = T.alloc_buffer((3,), "int64")
        divided = not isinstance(shares, int) or shares > 1
        T.buffer_store(place, _wide(piece // shares if divided else piece), [0])
        T.buffer_store(place, _wide(piece % shares * height if divided else 0), [1])
        T.buffer_store(place, tirx.min(_wide(height), count - place[1]), [2])
        _block(isa, spec, operands, rows, heights, place[0], place[1], place[2])


def heights_of(chosen: Variant) -> tuple[int, ...]:
    """Rows that are multiplied at a time in a variant: even numbers, and every one below the greatest."""
    return tuple(range(chosen.get("rows", HEIGHT), 0, -2))


def _in_bytes(isa: Isa, spec: AffineSpec) -> bool:
    return spec.activation_bits == 8 and isa.vnni


def _block(
    isa: Isa, spec: AffineSpec, operands: Operands, rows: Rows, heights: tuple[int, ...], block: Any, begin: Any,
    count: Any,
) -> None:  # fmt: skip
    """One block of outputs for ``count`` rows, none if not positive, beginning at ``begin``."""
    held = (BytesBlock if _in_bytes(isa, spec) else FloatBlock)(isa, spec)
    sums = T.alloc_buffer((heights[0], 32), "float32")
    tiles = 2 if spec.tiles % 2 == 0 else tirx.min(2, spec.tiles - block * 2)
    with T.serial(0, tiles) as lane:
        held.fill(operands, block + lane * (spec.tiles // 2) if spec.gated else block * 2 + lane, lane)
    with T.serial(0, _ceil_div(count, heights[0])) as chunk:
        first, rest = T.bind(begin + chunk * heights[0]), T.bind(count - chunk * heights[0])
        for height, least in zip(heights, (*heights[1:], 0), strict=True):
            with (
                T.If(rest > least if height == heights[0] else tirx.all(rest > least, rest <= height)),
                T.Then(),
            ):
                held.multiply(rows, first, height, sums)
        with T.serial(0, tirx.min(heights[0], rest)) as i:
            row = T.bind(first + i)
            if spec.gated:
                value, gate = (emit.load(sums, (i, lane * 16), 16) for lane in range(2))
                finish(spec, operands, row, rows, row, block, value, gate)
            else:
                with T.serial(0, tiles) as lane:
                    value = emit.load(sums, (i, lane * 16), 16)
                    finish(spec, operands, row, rows, row, T.bind(block * 2 + lane), value)


def _shares(rows: Any, most: int, height: int) -> Any:
    """Parts into which rows are divided: at most ``most``, of at least two chunks each."""
    if most == 1:
        return 1
    parts = rows // (2 * height)
    return max(1, min(most, parts)) if isinstance(rows, int) else tirx.max(1, tirx.min(most, parts))


def _ceil_div(number: Any, by: Any) -> Any:
    if isinstance(number, int) and isinstance(by, int):
        return -(-number // by)
    return tirx.floordiv(number + by - 1, by)


def _wide(number: Any) -> Any:
    return tirx.Cast("int64", number) if not isinstance(number, int) else tirx.IntImm("int64", number)
