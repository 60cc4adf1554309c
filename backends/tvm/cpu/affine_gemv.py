"""Linear layers on affine codes for few rows of x: every byte of the weight is read once."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit as E
from planish.backends.tvm.cpu.affine_spec import BLOCK, AffineSpec
from planish.backends.tvm.cpu.affine_stages import (
    Operands,
    Rows,
    allocate,
    constant_vector,
    decode_block,
    finish,
    group_scale,
    group_zero,
    keep,
    prepare,
    registers,
)
from planish.backends.tvm.cpu.math import fma
from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.isa import Isa
from planish.ir.ops.layout import TILE

SERIAL_BYTES = 64 << 10
"""Weights of fewer bytes are not worth a second thread."""

AHEAD = 8192
"""Bytes by which codes of several planes are asked for before they are used.

Planes are read in turn, a few KiB each, which the processor does not foresee; a single plane it reads ahead itself.
"""

BLOCKS = 4
"""Blocks of 32 inputs that are unrolled at most."""


def digits_of(isa: Isa, spec: AffineSpec) -> int:
    """Signed bytes that stand for an activation: f32 is as exact as three; 0: floating point is used as it is."""
    if isa.lanes == 4:
        return 0
    return 1 if spec.activation_bits == 8 else 3


def _dot(isa: Isa, spec: AffineSpec, acc: Any, word: Any, four: Any) -> Any:
    """``acc + sum_j code_j * x_j`` in 16 lanes of i32; ``four`` is i8x4."""
    if isa.vnni:
        return E.dot_bytes(isa, acc, T.reinterpret("uint8x64", word), four)
    spread = T.reinterpret("int8x32", tirx.Broadcast(T.reinterpret("int32", four), 8))

    def products(part: Any, times: int) -> Any:
        halves = []
        for first in (0, 8):
            lanes = tirx.Shuffle([part], [tirx.IntImm("int32", first + i) for i in range(8)])
            pairs = tirx.call_llvm_pure_intrin(
                "int16x16", "llvm.x86.avx2.pmadd.ub.sw", T.reinterpret("int8x32", lanes), spread
            )
            weights = tirx.Broadcast(tirx.IntImm("int16", times), 16)
            halves.append(tirx.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, weights))
        return tirx.Shuffle(halves, [tirx.IntImm("int32", i) for i in range(16)])

    if spec.bits < 8:
        return acc + products(word, 1)
    mask, four_bits = (tirx.Broadcast(tirx.IntImm("uint32", n), TILE) for n in (0x0F0F0F0F, 4))
    high = tirx.bitwise_and(tirx.shift_right(word, four_bits), mask)
    return acc + products(tirx.bitwise_and(word, mask), 1) + products(high, 16)


def _whole_numbers(
    isa: Isa,
    spec: AffineSpec,
    operands: Operands,
    rows: Rows,
    tiles: list[Any],
    totals: Any,
    group: Any,
    length: int,
    chosen: Variant,
) -> None:
    """Add one group of every tile for one row of x given as signed bytes."""
    ahead = chosen.get("ahead", AHEAD)
    chains = 2 if rows.digits == 1 else 1
    width = rows.digits * chains
    acc = registers(len(tiles) * width, TILE, "int32")
    for i in range(len(tiles) * width):
        E.store(acc, (i, 0), tirx.Broadcast(tirx.IntImm("int32", 0), TILE), TILE)
    first = group * (spec.group // BLOCK)

    def block(index: Any) -> None:
        for t, tile in enumerate(tiles):
            if len(spec.planes) > 1:
                _ask(operands, tile, index * (spec.bits * 64) + ahead, spec.bits)
            for quad, word in enumerate(decode_block(spec, operands.panels, tile, index)):
                for digit in range(rows.digits):
                    place = (t * width + digit * chains + quad % chains, 0)
                    four = E.load(rows.codes, (0, digit, index * BLOCK + quad * 4), 4)
                    E.store(acc, place, _dot(isa, spec, E.load(acc, place, TILE), word, four), TILE)

    _blocks(length // BLOCK, lambda i: block(first + i))
    scale, total = E.splat(rows.scales[0, group], TILE), E.splat(rows.sums[0, group], TILE)
    for t, tile in enumerate(tiles):
        y = constant_vector(0.0)
        for digit in reversed(range(rows.digits)):
            part = E.load(acc, (t * width + digit * chains, 0), TILE)
            for chain in range(1, chains):
                part = part + E.load(acc, (t * width + digit * chains + chain, 0), TILE)
            part = tirx.Cast(f"float32x{TILE}", part)
            y = part if digit == rows.digits - 1 else fma(y, constant_vector(256.0), part)
        y = y * scale - group_zero(isa, spec, operands, tile, group) * total
        y = fma(y, group_scale(isa, spec, operands, tile, group), E.load(totals, (t, 0), TILE))
        E.store(totals, (t, 0), y, TILE)


def _ask(operands: Operands, tile: Any, begin: Any, lines: int) -> None:
    """Bring ``lines`` lines of 64 bytes of the panels near, from a byte of a tile on; it may lie beyond the tile."""
    for line in range(lines):
        place = T.address_of(operands.panels[tile, begin + line * 64])
        read, near, data = (tirx.IntImm("int32", n) for n in (0, 3, 1))
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", place, read, near, data))


def _blocks(count: int, body: Any) -> None:
    if count <= BLOCKS:
        for i in range(count):
            body(i)
        return
    with T.serial(0, count // 2) as i:
        body(i * 2)
        body(i * 2 + 1)
    if count % 2:
        body(count - 1)


def _floating(
    isa: Isa,
    spec: AffineSpec,
    operands: Operands,
    rows: Rows,
    tiles: list[Any],
    totals: Any,
    group: Any,
    length: int,
    _: Variant,
) -> None:
    """Add one group of every tile for one row of x in floating point."""
    for t, tile in enumerate(tiles):
        acc = registers(1, TILE)
        E.store(acc, (0, 0), constant_vector(0.0), TILE)
        zero = keep(group_zero(isa, spec, operands, tile, group))
        first = group * (spec.group // BLOCK)
        with T.serial(0, length // BLOCK) as i:
            for quad, word in enumerate(decode_block(spec, operands.panels, tile, first + i)):
                for j in range(4):
                    byte = tirx.bitwise_and(
                        tirx.shift_right(word, tirx.Broadcast(tirx.IntImm("uint32", 8 * j), TILE)),
                        tirx.Broadcast(tirx.IntImm("uint32", 255), TILE),
                    )
                    code = tirx.Cast(f"float32x{TILE}", tirx.Cast(f"int32x{TILE}", byte))
                    x = E.splat(rows.normed[0, (first + i) * BLOCK + quad * 4 + j], TILE)
                    E.store(acc, (0, 0), fma(code - zero, x, E.load(acc, (0, 0), TILE)), TILE)
        scale = group_scale(isa, spec, operands, tile, group)
        y = fma(E.load(acc, (0, 0), TILE), scale, E.load(totals, (t, 0), TILE))
        E.store(totals, (t, 0), y, TILE)


def emit_gemv(isa: Isa, spec: AffineSpec, operands: Operands, chosen: Variant = DEFAULT) -> None:
    """Emit the layer one row of x at a time.

    If the weight is large every thread prepares the row for itself, which takes less time than to hand it over, and
    computes a part of the tiles.
    """
    if isinstance(operands.rows, int) and operands.rows == 1:
        return _row(isa, spec, operands, 0, chosen)
    with T.serial(0, operands.rows) as row:
        _row(isa, spec, operands, row, chosen)
    return None


def _row(isa: Isa, spec: AffineSpec, operands: Operands, row: Any, chosen: Variant) -> None:
    steps = spec.tiles // 2 if spec.gated else spec.tiles

    def part(loop: Any) -> None:
        rows = allocate(spec, 1, digits_of(isa, spec))
        prepare(isa, spec, operands, row, rows, 0)
        with loop(0, steps) as step:
            _step(isa, spec, operands, rows, row, step, chosen)

    if spec.weight_bytes < chosen.least(SERIAL_BYTES) or steps < 2:
        part(T.serial)
        return
    with T.attr(0, "pragma_parallel_launch_point", 1):
        part(T.parallel)


def _step(
    isa: Isa, spec: AffineSpec, operands: Operands, rows: Rows, row: Any, step: Any, chosen: Variant
) -> None:
    """One tile of the result."""
    step = T.bind(step)
    tiles = [step, T.bind(step + spec.tiles // 2)] if spec.gated else [step]
    totals = registers(len(tiles), TILE)
    for t in range(len(tiles)):
        E.store(totals, (t, 0), constant_vector(0.0), TILE)
    add = _whole_numbers if rows.digits else _floating
    if spec.groups > 1:
        with T.serial(0, spec.groups - 1) as group:
            add(isa, spec, operands, rows, tiles, totals, group, spec.group, chosen)
    add(isa, spec, operands, rows, tiles, totals, spec.groups - 1, spec.tail, chosen)
    values = [E.load(totals, (t, 0), TILE) for t in range(len(tiles))]
    finish(spec, operands, row, rows, 0, step, *values)
