"""Quantized weights in the layouts of the kernels that read codes: ``MatMulNBits`` and ``GatherBlockQuantized``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from planish.backends.ort.graph import Graph
from planish.backends.ort.storage import Storage
from planish.backends.ort.table_quantized import pack, widen
from planish.ir.node import Node

ROW_BLOCK = 128
"""Block that stands for a whole row with one scale."""


@dataclass(frozen=True)
class Coded:
    """A constant matrix ``scale*(codes - zero)``: what the nodes of its decode say about it."""

    codes: Node
    bits: int
    rows: int
    length: int
    scale: Node
    zero: Any
    group: int

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return -(-self.length // self.group)

    @property
    def whole_number_zero(self) -> int | None:
        """The zero if it is one whole number that codes can have."""
        plain = not isinstance(self.zero, Node) and float(self.zero).is_integer()
        return int(self.zero) if plain and 0 <= self.zero < 2**self.bits else None

    @property
    def packable_zeros(self) -> bool:
        """True if there is a zero for each group that is a code of the same width."""
        if not isinstance(self.zero, Node) or self.zero.dtype.name != "u8":
            return False
        return self.bits == 8 or (self.zero.op == "planish.unpack" and self.zero.args[1] <= self.bits)

    @property
    def has_offset(self) -> bool:
        """True if the zeros are none that kernels take, such as fractions."""
        return not self.packable_zeros and self.whole_number_zero is None


def coded(node: Node) -> Coded | None:
    """What is known of a matrix that is decoded from constants, or None for anything else."""
    if node.op != "planish.dequant" or node.rank != 2 or node.dtype.name != "f32":
        return None
    codes, scale, zero, group, _ = node.args
    bits = 8
    rows, length = node.shape
    if codes.op == "planish.unpack":
        codes, bits, _ = codes.args
    if (
        codes.op != "const"
        or codes.dtype.name != "u8"
        or not (isinstance(rows, int) and isinstance(length, int))
    ):
        return None
    if not length or not rows or not is_constant(scale) or (isinstance(zero, Node) and not is_constant(zero)):
        return None
    if isinstance(zero, Node) and not (zero.dtype.name == "u8" or zero.dtype.is_float):
        return None
    return Coded(codes, bits, rows, length, scale, zero, min(group, length))


def is_constant(node: Node) -> bool:
    """True if a value depends on constants alone."""
    seen, stack = set(), [node]
    while stack:
        each = stack.pop()
        if each.op in ("input", "state"):
            return False
        if each not in seen:
            seen.add(each)
            stack.extend(each.operands)
    return True


def block_of(weight: Coded) -> int | None:
    """The block size for the kernels: a power of two from 16 that divides the groups, or None."""
    if weight.groups == 1:
        power = ROW_BLOCK
        while power > 16 and power >= 2 * weight.length:
            power //= 2
        return power
    power = weight.group & -weight.group
    return min(power, 256) if power >= 16 else None


@dataclass(frozen=True)
class Layout:
    """Writes the parts of a coded matrix for blocks of ``block`` codes of ``bits`` bits.

    What is stored in the right form already is used where it lies; the rest is computed by the load model.
    ``in_load`` lowers a constant expression there.
    """

    weight: Coded
    storage: Storage
    in_load: Callable[[Node], str]
    bits: int
    block: int

    @property
    def blocks(self) -> int:
        """Blocks in a row."""
        return -(-self.weight.length // self.block)

    @property
    def shift(self) -> int:
        """What is added to codes that get wider, so that their zero is the one which the kernels assume."""
        zero = self.weight.whole_number_zero
        if zero is None:
            return 0
        offset: int = 2 ** (self.bits - 1) - zero
        return offset if 0 <= offset <= 2**self.bits - 2**self.weight.bits else 0

    def codes(self) -> str:
        """``u8[rows, blocks, block*bits/8]``."""
        w = self.weight
        shape = (w.rows, self.blocks, self.block * self.bits // 8)
        if w.bits == self.bits and w.length % self.block == 0 and not self.shift:
            return self.storage.view(w.codes.name, f"blocks{self.block}", TensorProto.UINT8, shape)
        return self.storage.loaded(
            f"{w.codes.name}@{self.bits}bits/blocks{self.block}/{self.shift}", "u8", shape, self._codes
        )

    def _codes(self, g: Graph) -> str:
        w = self.weight
        value, held = self.in_load(w.codes), int(w.codes.shape[1])
        if w.bits != self.bits:
            value = widen(g, value, (w.rows,), held, w.bits, self.bits, self.shift)
            held = -(-held // w.bits) * self.bits
        room = self.blocks * self.block * self.bits // 8 - held
        if room:
            value = g.op("Pad", value, g.ints(0, 0, 0, room))
        return g.op("Reshape", value, g.ints(w.rows, self.blocks, self.block * self.bits // 8))

    def scale(self, main: Graph) -> str:
        """``f32[rows, blocks]``; a cast of stored scales is small, and left to ONNX Runtime."""
        w, node = self.weight, self.weight.scale
        if node.op == "const" and node.shape == (w.rows, self.blocks):
            value = self.storage.constant(node.name)
            return value if node.dtype.name == "f32" else main.cast(value, "f32")
        return self._loaded_statistic(node, "scale")

    def zeros(self, main: Graph) -> str | None:
        """Packed ``u8[rows, ceil(blocks*bits/8)]``; None for what the kernels assume."""
        w, zero = self.weight, self.weight.zero
        whole = w.whole_number_zero
        if whole is not None and whole + self.shift == 2 ** (self.bits - 1):
            return None
        if whole is not None:
            shape = (w.rows, self.blocks)
            return self._packed_zeros(
                f"{w.codes.name}@zero{whole}",
                lambda g: g.op("Expand", g.constant(whole, "u8"), g.ints(*shape)),
            )
        if not w.packable_zeros:
            return None
        stored = zero.args[0] if zero.op == "planish.unpack" and zero.args[1] == self.bits else None
        if self.bits == 8:
            stored = zero
        packed_shape = (w.rows, -(-self.blocks * self.bits // 8))
        if (
            stored is not None
            and stored.op == "const"
            and w.groups == self.blocks
            and stored.shape == packed_shape
        ):
            return self.storage.constant(stored.name)
        name = f"{_name_of(zero)}@{self.bits}bits/{self.blocks}"
        return self._packed_zeros(name, lambda g: self._for_blocks(g, zero, self.in_load(zero)))

    def offset(self) -> str:
        """``f32[rows, groups]``: scale*(assumed zero - zero), what a code of 1 for each input would add."""
        w, zero = self.weight, self.weight.zero

        def compute(g: Graph) -> str:
            scale = self._as_f32(g, w.scale, self.in_load(w.scale))
            value = (
                self._as_f32(g, zero, self.in_load(zero))
                if isinstance(zero, Node)
                else g.constant(zero, "f32")
            )
            out = g.op("Mul", scale, g.op("Sub", g.constant(2 ** (self.bits - 1), "f32"), value))
            return g.op("Expand", out, g.ints(w.rows, w.groups))

        name = f"{w.codes.name}@{self.bits}bits/offset" + ("" if isinstance(zero, Node) else f"{zero}")
        return self.storage.loaded(name, "f32", (w.rows, w.groups), compute)

    @staticmethod
    def _as_f32(g: Graph, node: Node, value: str) -> str:
        return value if node.dtype.name == "f32" else g.cast(value, "f32")

    def _packed_zeros(self, name: str, compute: Callable[[Graph], str]) -> str:
        w, per = self.weight, 8 // self.bits
        count = -(-self.blocks // per) * per

        def packed(g: Graph) -> str:
            value = compute(g)
            if count != self.blocks:
                value = g.op("Pad", value, g.ints(0, 0, 0, count - self.blocks))
            return pack(g, value, (w.rows,), self.bits, count)

        return self.storage.loaded(f"{name}/packed{self.bits}", "u8", (w.rows, count // per), packed)

    def _loaded_statistic(self, node: Node, what: str) -> str:
        w = self.weight

        def compute(g: Graph) -> str:
            return self._for_blocks(g, node, self._as_f32(g, node, self.in_load(node)))

        name = f"{_name_of(node)}@{what}/{w.codes.name if node.op != 'const' else ''}/{self.blocks}"
        return self.storage.loaded(name, "f32", (w.rows, self.blocks), compute)

    def _for_blocks(self, g: Graph, node: Node, value: str) -> str:
        """A statistic for each block from one for each group, which may broadcast over the rows."""
        w = self.weight
        if node.shape != (w.rows, w.groups):
            value = g.op("Expand", value, g.ints(w.rows, w.groups))
        times = self.blocks if w.groups == 1 else w.group // self.block
        if times == 1:
            return value
        wide = g.op("Expand", g.op("Unsqueeze", value, g.ints(2)), g.ints(w.rows, w.groups, times))
        flat = g.op("Reshape", wide, g.ints(w.rows, w.groups * times))
        return g.op("Slice", flat, g.ints(0), g.ints(self.blocks), g.ints(1))


def _name_of(node: Node) -> str:
    leaf = node
    while leaf.op != "const":
        leaf = leaf.operands[0]
    return leaf.name
