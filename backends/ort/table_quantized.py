"""Codes: unpacking and scaling of values that are computed, and of constants where no kernel takes the codes."""

from __future__ import annotations

from collections.abc import Sequence

from planish.backends.ort.graph import Graph
from planish.backends.ort.table import Call, lowers
from planish.ir.node import Node
from planish.ir.ops.quantized import packed_bytes
from planish.ir.types import DType, Size, floor_div
from planish.ir.types import size as as_size


@lowers("planish.unpack")
def _unpack(c: Call, codes: str, bits: int, length: Size) -> str:
    return unpack(c.graph, codes, c.shape()[:-1], bits, length)


def unpack(g: Graph, codes: str, lead: Sequence[Size], bits: int, length: Size) -> str:
    """Packed codes to one code a byte."""
    rank = len(lead) + 1
    if bits == 8:
        return codes
    mask = g.constant(2**bits - 1, "u8")
    if bits in (1, 2, 4):
        shifts = g.constant(range(0, 8, bits), "u8")
        wide = g.op("BitShift", g.op("Unsqueeze", codes, g.ints(rank)), shifts, direction="RIGHT")
        wide = g.op("BitwiseAnd", wide, mask)
        count = as_size(packed_bytes(length, bits) * (8 // bits))
        flat = g.reshape(wide, (*lead, packed_bytes(length, bits), 8 // bits), (*lead, count))
        return flat if count == length else first(g, flat, rank - 1, length)
    rows = floor_div(as_size(length + 7), 8)
    wide = widen(g, codes, lead, packed_bytes(length, bits), bits, 8)
    return wide if as_size(rows * 8) == length else first(g, wide, rank - 1, length)


def widen(
    g: Graph, codes: str, lead: Sequence[Size], count: Size, bits: int, to: int, add: int = 0
) -> str:  # fmt: skip
    """Packed codes of ``bits`` bits (``count`` bytes a row) as packed codes of ``to`` bits, ``add`` added to each.

    Eight codes are one 64-bit word, which is spread in three steps: halves of four codes move apart, then pairs,
    then codes.
    """
    rank, words = len(lead) + 1, floor_div(as_size(count + bits - 1), bits)
    room = as_size(words * bits - count)
    if room != 0:
        codes = g.op("Pad", codes, g.sizes([0] * (2 * rank - 1) + [room]))
    parts = g.cast(g.reshape(codes, (*lead, as_size(words * bits)), (*lead, words, bits)), "u64")
    columns = [
        g.op("Squeeze", c, g.ints(rank)) for c in g.ops("Split", bits, parts, axis=rank, num_outputs=bits)
    ]
    word = columns[0]
    for i, column in enumerate(columns[1:], 1):
        word = g.op("BitwiseOr", word, g.op("BitShift", column, g.constant(8 * i, "u64"), direction="LEFT"))
    for half in (4, 2, 1):
        low = _lanes(2 ** (half * bits) - 1, 2 * half * to, 8 * to)
        stays = g.op("BitwiseAnd", word, g.constant(low, "u64"))
        moves = g.op("BitwiseAnd", word, g.constant(low << half * bits, "u64"))
        moved = g.op("BitShift", moves, g.constant(half * (to - bits), "u64"), direction="LEFT")
        word = g.op("BitwiseOr", stays, moved)
    if add:
        word = g.op("Add", word, g.constant(_lanes(add, to, 8 * to), "u64"))
    # One shift for each byte of the words: broadcasting along a short last axis would be slow.
    taken = [g.op("BitShift", word, g.constant(at, "u64"), direction="RIGHT") for at in range(0, 8 * to, 8)]
    out = g.op("Concat", *(g.op("Unsqueeze", g.cast(t, "u8"), g.ints(rank)) for t in taken), axis=rank)
    return g.reshape(out, (*lead, words, to), (*lead, as_size(words * to)))


def _lanes(value: int, width: int, total: int) -> int:
    """A value repeated every ``width`` bits."""
    return sum(value << at for at in range(0, total, width))


def pack(g: Graph, codes: str, lead: Sequence[Size], bits: int, length: int) -> str:
    """One code a byte to packed codes of 2, 4 or 8 bits; ``length`` is a multiple of the codes in a byte."""
    if bits == 8:
        return codes
    per, rank = 8 // bits, len(lead) + 1
    parts = g.reshape(codes, (*lead, length), (*lead, length // per, per))
    moved = g.op("BitShift", parts, g.constant(range(0, 8, bits), "u8"), direction="LEFT")
    out = g.op("Gather", moved, g.constant(0, "i64"), axis=rank)
    for i in range(1, per):
        out = g.op("BitwiseOr", out, g.op("Gather", moved, g.constant(i, "i64"), axis=rank))
    return out


def first(g: Graph, value: str, axis: int, count: Size) -> str:
    """The first places of an axis."""
    return g.op("Slice", value, g.ints(0), g.size(count), g.ints(axis))


@lowers("planish.dequant")
def _dequant(c: Call, codes: str, scale: str, zero: str, group: int, dtype: DType) -> str:
    statistics = (scale, zero) if isinstance(c.node.args[2], Node) else (scale,)
    return dequantized(c.graph, c.node, codes, c.type(0).dtype.name, *statistics)


def dequantized(g: Graph, node: Node, codes: str, kind: str, scale: str, zero: str | None = None) -> str:
    """The result of a dequant node from its codes, held as ``kind``, and its statistics."""
    shape_of_codes, scale_node, zero_node, group, dtype = node.args
    values = Scaled(g, codes, kind, shape_of_codes.shape, group)
    spread = values.spread(values.as_f32(scale, scale_node.dtype), scale_node.shape)
    if zero is None:
        out = values.scaled(spread, float(zero_node))
    else:
        point = values.spread(zero, zero_node.shape)
        if _fits_codes(zero_node, kind):
            out = values.linear(spread, g.cast(point, kind) if kind != "u8" else point)
        else:
            out = values.shifted(spread, values.as_f32(point, zero_node.dtype))
    return out if dtype.name == "f32" else g.cast(out, dtype)


class Scaled:
    """``scale*(codes - zero)`` by a blocked ``DequantizeLinear``, which ONNX Runtime does not fold."""

    def __init__(self, g: Graph, codes: str, kind: str, shape: Sequence[Size], group: int) -> None:
        self.g, self.codes, self.kind, self.shape = g, codes, kind, tuple(shape)
        length = self.shape[-1]
        self.groups = floor_div(as_size(length + group - 1), group)
        self.group = min(group, length) if isinstance(length, int) else group
        self.stats = (*self.shape[:-1], self.groups)

    def as_f32(self, value: str, have: DType) -> str:
        """A statistic in the element type that is computed in."""
        return value if have.name == "f32" else self.g.cast(value, "f32")

    def spread(self, value: str, have: Sequence[Size]) -> str:
        """A statistic for every group."""
        if tuple(have) == self.stats:
            return value
        given = [1 if a == b else b for a, b in zip(have, self.stats, strict=True)]
        return self.g.op("Expand", value, self.g.sizes(given))

    def scaled(self, scale: str, zero: float) -> str:
        """The values with one zero for all."""
        g = self.g
        low, high = {"u4": (0, 15), "u2": (0, 3), "u8": (0, 255)}.get(self.kind, (0, -1))
        if zero == 0:
            return self.linear(scale, None)
        if zero == int(zero) and low <= zero <= high:
            point = g.op("Expand", g.constant(int(zero), "u8"), g.sizes(self.stats))
            return self.linear(scale, point if self.kind == "u8" else g.cast(point, self.kind))
        return self.shifted(scale, g.constant(zero, "f32"))

    def shifted(self, scale: str, zero: str) -> str:
        """The values with zeros that are no codes: scale*codes - scale*zero."""
        return self.g.op("Sub", self.linear(scale, None), self._repeat(self.g.op("Mul", scale, zero)))

    def linear(self, scale: str, zero: str | None) -> str:
        """The values with zeros of the type of the codes."""
        codes = self.g.cast(self.codes, "i32") if self.kind in ("i64", "u64", "u32") else self.codes
        return self.g.op("DequantizeLinear", codes, scale, zero, axis=-1, block_size=self.group)

    def _repeat(self, value: str) -> str:
        """One value for each code from one for each group."""
        g, rank = self.g, len(self.shape)
        wide = g.op("Expand", g.op("Unsqueeze", value, g.ints(rank)), g.ints(*[1] * rank, self.group))
        total = as_size(self.groups * self.group)
        flat = g.reshape(wide, (*self.stats, self.group), (*self.shape[:-1], total))
        return flat if total == self.shape[-1] else first(g, flat, rank - 1, self.shape[-1])


def _fits_codes(zero: Node, kind: str) -> bool:
    """True if all zeros are certainly values of the element type of the codes."""
    if zero.dtype.name == kind:
        return kind in ("u8", "i8", "u16", "i16")
    return zero.op == "planish.unpack" and zero.args[1] <= {"u4": 4, "u2": 2, "u8": 8}.get(kind, 0)
