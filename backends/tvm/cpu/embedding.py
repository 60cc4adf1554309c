"""Rows of a table of affine codes on a CPU, decoded from the panels that linear layers read."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.attention import counted
from planish.backends.tvm.cpu.emit import splat
from planish.backends.tvm.cpu.flat import (
    Flat,
    Registers,
    each,
    function,
    larger_of,
    named,
    product,
    quotient,
    real,
    remainder,
    smaller_of,
    vectors,
)  # fmt: skip
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node
from planish.ir.ops.layout import TILE, panel_planes

PARALLEL = 65_536
"""Numbers from which threads are worth their start."""


def build(node: Node, isa: Isa) -> Any:
    """The PrimFunc of ``kernel.embedding_affine``."""
    return function(node, lambda operands, out: _Table(node, isa, operands).read(out))


class _Table:
    """The arguments of a node."""

    def __init__(self, node: Node, isa: Isa, operands: list[Flat]) -> None:
        self.ids, self.panels, self.scale, *zeros = operands
        self.zero: Any = zeros[0] if zeros else node.args[3]
        self.bits, group, self.rows, self.length = node.args[4:]
        self.group = min(group, -(-self.length // 32) * 32)
        self.groups = -(-self.length // group)
        self.isa = isa

    def read(self, out: Flat) -> None:
        """One row for every number."""
        count = product(self.ids.sizes)
        each(count, count * self.length, PARALLEL, lambda i: self._row(i, out))

    def _row(self, i: Any, out: Flat) -> None:
        wanted = tirx.Cast("int64", self.ids.load(i))
        row = named(larger_of(smaller_of(wanted, self.rows - 1), 0))
        tile, place = named(quotient(row, TILE)), named(remainder(row, TILE))
        panel = named(tile * self.panels.sizes[1] + place * 4)
        numbers = vectors(2, 1)

        def group(g: Any) -> None:
            self._scale_and_zero(numbers, tile, place, g)
            end = named(smaller_of((g + 1) * self.group, self.length))
            first = named(g * (self.group // 32))
            blocks = named(quotient(end - g * self.group, 32))
            counted(blocks, lambda b: self._block(numbers, panel, first + b, out, i * self.length, None))
            if self.length % 32:
                with T.If(remainder(end, 32) > 0), T.Then():
                    self._block(numbers, panel, first + blocks, out, i * self.length, self.length % 32)

        counted(self.groups, group)

    def _scale_and_zero(self, numbers: Registers, tile: Any, place: Any, g: Any) -> None:
        """The scale of a group and its zero."""
        at = (tile * self.groups + g) * TILE + place
        numbers.put(0, _single(self.isa, self.scale, at))
        if not isinstance(self.zero, Flat):
            zero = real(float(self.zero))
        elif self.zero.data.dtype != "uint8":
            zero = _single(self.isa, self.zero, at)
        elif self.bits == 8:
            zero = tirx.Cast("float32", self.zero.load(at))
        else:
            width = self.zero.sizes[1]
            bit = g * self.bits
            byte = named(quotient(bit, 8))
            low = self._byte(tile, place, byte, width)
            high = self._byte(tile, place, smaller_of(byte + 1, width - 1), width)
            word = tirx.shift_right(
                tirx.bitwise_or(low, tirx.shift_left(high, tirx.const(8, "int32"))),
                tirx.Cast("int32", remainder(bit, 8)),
            )
            zero = tirx.Cast("float32", tirx.bitwise_and(word, tirx.const(2**self.bits - 1, "int32")))
        numbers.put(1, zero)

    def _byte(self, tile: Any, place: Any, byte: Any, width: Any) -> Any:
        return tirx.Cast("int32", self.zero.load((tile * width + byte) * TILE + place))

    def _block(
        self, numbers: Registers, panel: Any, block: Any, out: Flat, begin: Any, only: int | None
    ) -> None:
        """32 codes of a row (``only`` the first of them), four at a time."""
        padded = -(-self.length // 32) * 32
        for quad in range(8):
            left = 4 if only is None else min(only - 4 * quad, 4)
            if left <= 0:
                break
            words, offset, below = [], 0, self.bits
            for width in panel_planes(self.bits):
                below -= width
                step, part = divmod(quad, 8 // width)
                index = panel + offset + (block * width + step) * (4 * TILE)
                word = T.reinterpret("uint32", self.panels.load(index, 4))
                mask = (2**width - 1) * 0x01010101
                word = tirx.bitwise_and(tirx.shift_right(word, _word(part * width)), _word(mask))
                words.append(tirx.shift_left(word, _word(below)))
                offset += padded * width * TILE // 8
            whole = words[0]
            for other in words[1:]:
                whole = tirx.bitwise_or(whole, other)
            codes = vectors(1, 4)
            codes.put(0, tirx.Cast("float32x4", T.reinterpret("uint8x4", whole)))
            values = (codes.get(0) - splat(numbers.get(1), 4)) * splat(numbers.get(0), 4)
            at = begin + block * 32 + 4 * quad
            if left == 4:
                out.store(at, values, 4)
            else:
                codes.put(0, values)
                for lane in range(left):
                    out.store(at + lane, codes.cells[0][lane])


def _word(number: int) -> Any:
    return tirx.const(number, "uint32")


def _single(isa: Isa, values: Flat, at: Any) -> Any:
    """One number of f16 or f32 as f32; machines without the conversion shift the bits."""
    value = values.load(at)
    if values.data.dtype == "float32":
        return value
    if isa.lanes > 4:
        return tirx.Cast("float32", value)
    bits = named(tirx.Cast("uint32", T.reinterpret("uint16", value)))
    magnitude = T.reinterpret("float32", tirx.shift_left(tirx.bitwise_and(bits, _word(0x7FFF)), _word(13)))
    sign = tirx.shift_left(tirx.bitwise_and(bits, _word(0x8000)), _word(16))
    scaled = T.reinterpret("uint32", magnitude * real(2.0**112))
    return T.reinterpret("float32", tirx.bitwise_or(scaled, sign))
