"""Many rows of f32 activations times a quantized weight that is decoded to f32, 32 outputs at a time.

The micro-kernel holds the sums of a few rows and 2 vectors of outputs in registers, on any instruction set.
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
VECTORS = 2
"""Vectors of outputs whose sums are in registers at a time."""


class FloatBlock:
    """The weight of one block as numbers ``panel f32[K, 32]``."""

    def __init__(self, isa: Isa, spec: AffineSpec) -> None:
        self.isa, self.spec = isa, spec
        self.panel = T.alloc_buffer((spec.padded, TILES * 16), "float32")

    def fill(self, operands: Operands, tile: Any, lane: Any) -> None:
        """Decode the weight of a tile, ``scale * (code - zero)``; it becomes tile ``lane`` of the block."""
        spec = self.spec
        with T.serial(0, spec.padded // BLOCK) as part:
            group = tirx.floordiv(part, spec.group // BLOCK)
            factors = emit.registers(2, 16)
            emit.store(factors, (0, 0), group_scale(self.isa, spec, operands, tile, group), 16)
            emit.store(factors, (1, 0), group_zero(self.isa, spec, operands, tile, group), 16)
            for step, words in enumerate(decode_block(spec, operands.panels, tile, part)):
                four = emit.registers(1, 16, "int32")
                emit.store(four, (0, 0), T.reinterpret("int32x16", words), 16)
                for i in range(4):
                    shifted = tirx.shift_right(emit.load(four, (0, 0), 16), _whole(8 * i))
                    code = tirx.bitwise_and(shifted, _whole(255)).astype("float32x16")
                    value = (code - emit.load(factors, (1, 0), 16)) * emit.load(factors, (0, 0), 16)
                    emit.store(self.panel, (part * BLOCK + step * 4 + i, lane * 16), value, 16)

    def multiply(self, rows: Rows, first: Any, height: int, sums: Any) -> None:
        """Write ``sums f32[height, 32]``, the products of the rows ``first ..`` of the activations."""
        lanes = self.isa.lanes
        wide = lanes * VECTORS
        with T.serial(0, TILES * 16 // wide) as part:
            places = [(row, part * wide + v * lanes) for row in range(height) for v in range(VECTORS)]
            total = emit.registers(len(places), lanes)
            for i in range(len(places)):
                emit.store(total, (i, 0), emit.splat(T.float32(0), lanes), lanes)
            with T.serial(0, self.spec.padded) as k:
                for i, (row, column) in enumerate(places):
                    value = emit.splat(rows.normed[first + row, k], lanes)
                    weight = emit.load(self.panel, (k, column), lanes)
                    emit.store(total, (i, 0), fma(value, weight, emit.load(total, (i, 0), lanes)), lanes)
            for i, (row, column) in enumerate(places):
                emit.store(sums, (row, column), emit.load(total, (i, 0), lanes), lanes)


def _whole(number: int) -> Any:
    return emit.splat(T.int32(number), 16)
