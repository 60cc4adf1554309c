"""Many rows of int8 activations times a quantized weight: ``vpdpbusd`` on blocks of 2 tiles, that is 32 outputs.

The codes of a block are expanded to bytes once; then a few rows of activations at a time run over them. A step
multiplies 4 inputs of 6 rows by 2 vectors of 16 outputs into 12 registers of i32; at the end of a group these are
scaled and added to 12 registers of f32.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit
from planish.backends.tvm.cpu.affine_spec import BLOCK, AffineSpec
from planish.backends.tvm.cpu.affine_stages import Operands, Rows, decode_block, group_scale, group_zero
from planish.backends.tvm.cpu.math import fma
from planish.backends.tvm.isa import Isa

TILES = 2
"""Tiles of 16 outputs in a block."""


class BytesBlock:
    """The weight of one block as bytes ``codes u8[K/4, 2, 64]``, ``scales`` and ``corrections f32[G, 2, 16]``.

    A correction is ``-scale * zero``: it is multiplied by the sum of a group of activations.
    """

    def __init__(self, isa: Isa, spec: AffineSpec) -> None:
        self.isa, self.spec = isa, spec
        self.codes = T.alloc_buffer((spec.padded // 4, TILES, 64), "uint8")
        self.scales = T.alloc_buffer((spec.groups, TILES, 16), "float32")
        self.corrections = T.alloc_buffer((spec.groups, TILES, 16), "float32")

    def fill(self, operands: Operands, tile: Any, lane: Any) -> None:
        """Expand the codes, scales and zeros of a tile; it becomes tile ``lane`` of the block."""
        spec = self.spec
        with T.serial(0, spec.padded // BLOCK) as part:
            for step, words in enumerate(decode_block(spec, operands.panels, tile, part)):
                emit.store(self.codes, (part * 8 + step, lane, 0), T.reinterpret("uint8x64", words), 64)
        with T.serial(0, spec.groups) as group:
            scale = emit.registers(1, 16)
            emit.store(scale, (0, 0), group_scale(self.isa, spec, operands, tile, group), 16)
            emit.store(self.scales, (group, lane, 0), emit.load(scale, (0, 0), 16), 16)
            zero = emit.splat(T.float32(0), 16) - group_zero(self.isa, spec, operands, tile, group)
            emit.store(self.corrections, (group, lane, 0), emit.load(scale, (0, 0), 16) * zero, 16)

    def multiply(self, rows: Rows, first: Any, height: int, sums: Any) -> None:
        """Write ``sums f32[height, 32]``, the products of the rows ``first ..`` of the activations."""
        places = [(row, lane) for row in range(height) for lane in range(TILES)]
        total = emit.registers(len(places), 16)
        for i in range(len(places)):
            emit.store(total, (i, 0), emit.splat(T.float32(0), 16), 16)
        with T.serial(0, self.spec.groups) as group:
            dots = self._dots(rows, first, height, group)
            scales = [emit.load(self.scales, (group, lane, 0), 16) for lane in range(TILES)]
            corrections = [emit.load(self.corrections, (group, lane, 0), 16) for lane in range(TILES)]
            for i, (row, lane) in enumerate(places):
                unit = emit.splat(rows.scales[first + row, group], 16)
                whole = emit.splat(rows.sums[first + row, group], 16)
                scaled = emit.load(dots, (i, 0), 16).astype("float32x16") * scales[lane]
                corrected = fma(corrections[lane], whole, emit.load(total, (i, 0), 16))
                emit.store(total, (i, 0), fma(scaled, unit, corrected), 16)
        for i, (row, lane) in enumerate(places):
            emit.store(sums, (row, lane * 16), emit.load(total, (i, 0), 16), 16)

    def _dots(self, rows: Rows, first: Any, height: int, group: Any) -> Any:
        """Registers of i32 by row and tile: the sums of code * activation over one group."""
        spec = self.spec
        dots = emit.registers(height * TILES, 16, "int32")
        for i in range(height * TILES):
            emit.store(dots, (i, 0), emit.splat(T.int32(0), 16), 16)
        even = spec.tail == spec.group
        count = (
            spec.group // 4
            if even
            else tirx.min(spec.group // 4, spec.padded // 4 - group * (spec.group // 4))
        )
        with T.serial(0, count) as step:
            at = group * (spec.group // 4) + step
            for row in range(height):
                four = emit.load(rows.codes, (first + row, 0, at * 4), 4)
                for lane in range(TILES):
                    place = (row * TILES + lane, 0)
                    codes = emit.load(self.codes, (at, lane, 0), 64)
                    emit.store(
                        dots, place, emit.dot_bytes(self.isa, emit.load(dots, place, 16), codes, four), 16
                    )
        return dots
