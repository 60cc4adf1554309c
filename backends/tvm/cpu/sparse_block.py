"""The innermost part of a linear layer that keeps ``n`` of each ``m`` inputs: a block of rows by a tile of outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit, math
from planish.backends.tvm.cpu.dense_block import from_f32, opaque, to_f32
from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.isa import Isa
from planish.ir.ops.quantized import packed_bytes
from planish.ir.ops.sparse import kept, position_bits

_PERMUTES = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}
"""Instructions by lanes: each lane of the result is the lane of the first operand that the second names."""

FEW = 4
"""Rows up to which vectors have 8 lanes: on machines that split longer ones in two they permute and convert faster."""

AHEAD = 64
"""Cache lines of values that are asked for before they are needed: memory then gives all that it can."""


@dataclass(frozen=True)
class SparseShape:
    """What is fixed about one sparse linear layer when its kernel is made.

    ``rows`` by ``length`` is the weight, of which ``n`` of each ``m`` inputs are stored as ``weight``; ``kind`` is the
    type of inputs and results (names as in TIR). ``chosen`` is the variant.
    """

    isa: Isa
    rows: int
    length: int
    n: int
    m: int
    weight: str
    kind: str
    activation: str
    tile: int = 16
    chosen: Variant = DEFAULT

    @property
    def panels(self) -> int:
        """Tiles of rows."""
        return -(-self.rows // self.tile)

    @property
    def blocks(self) -> int:
        """Blocks of ``m`` inputs."""
        return -(-self.length // self.m)

    @property
    def count(self) -> int:
        """Values of a row."""
        return kept(self.length, self.n, self.m)

    @property
    def bits(self) -> int:
        """Bits of a position."""
        return position_bits(self.m)

    @property
    def words(self) -> int:
        """Words of 32 bits that hold the positions of a row."""
        return -(-int(packed_bytes(self.count, self.bits)) // 4)

    @property
    def unit(self) -> int:
        """Blocks whose positions fit into 32 bits."""
        return 32 // (self.n * self.bits)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all values and positions."""
        return self.panels * self.tile * (self.count * self.value_bytes + self.words * 4)

    @property
    def value_bytes(self) -> int:
        """Bytes of a value."""
        return 4 if self.weight == "float32" else 2

    @property
    def plain(self) -> bool:
        """True if inputs are read as they are given."""
        return self.kind == "float32" and self.length % self.m == 0

    @property
    def stride(self) -> int:
        """Elements from one row of the inputs to the next, as blocks read them."""
        return self.blocks * self.m

    def lanes(self, rows: int) -> int:
        """Lanes of the vectors in a block of so many rows: short ones are faster where memory is what limits."""
        return min(8, self.isa.lanes) if rows <= FEW else self.isa.lanes

    @property
    def block_rows(self) -> tuple[int, ...]:
        """Numbers of rows for which there is a block, descending."""
        most = self.chosen.get("rows", 8 if self.isa.lanes == 16 else 4)
        return tuple(rows for rows in (16, 8, 4, 2, 1) if rows <= most)


@dataclass(frozen=True)
class SparseBuffers:
    """Flat buffers of one sparse linear layer, as blocks read and write them; None for what is not there."""

    x: Any
    values: Any
    positions: Any
    bias: Any
    residual: Any
    out: Any


def _local(count: int, kind: str) -> Any:
    """Elements on the stack, in registers if all indices are constants."""
    return T.alloc_buffer((count,), kind, annotations={"disable_lower_builtin": True})


def _bits(number: int, lanes: int) -> Any:
    return tirx.Broadcast(tirx.IntImm("uint32", number), lanes)


def _prefetch(buffer: Any, at: Any) -> None:
    read = (tirx.IntImm("int32", n) for n in (0, 3, 1))
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[at]), *read))


class _Block:
    """Sums ``[part][row][vector]`` of a block and the code that fills and stores them."""

    def __init__(self, shape: SparseShape, buffers: SparseBuffers, rows: int) -> None:
        self.shape, self.buffers, self.rows = shape, buffers, rows
        self.lanes = shape.lanes(rows)
        self.vectors = shape.tile // self.lanes if self.lanes in _PERMUTES else 1
        self.width = self.vectors * self.lanes
        self.parts = max(1, min(4, 8 // (rows * self.vectors)))
        self.sums = _local(self.parts * rows * self.width, "float32")

    def begin(self, row: Any, panel: Any, first: Any) -> None:
        """The block is that of the rows from ``row`` on and the outputs of a panel from ``first`` on; sums are 0."""
        shape = self.shape
        self.x = opaque(row * shape.stride)
        self.values = opaque(panel * (shape.count * shape.tile) + first)
        self.positions = opaque((panel * (shape.words * shape.tile) + first) * 4)
        zero = emit.splat(tirx.FloatImm("float32", 0.0), self.lanes)
        for at in range(0, self.parts * self.rows * self.width, self.lanes):
            emit.store(self.sums, (at,), zero, self.lanes)

    def _place(self, part: int, row: int, vector: int) -> int:
        return ((part * self.rows + row) * self.vectors + vector) * self.lanes

    def get(self, part: int, row: int, vector: int) -> Any:
        return emit.load(self.sums, (self._place(part, row, vector),), self.lanes)

    def set(self, part: int, row: int, vector: int, value: Any) -> None:
        emit.store(self.sums, (self._place(part, row, vector),), value, self.lanes)

    def _word(self, index: Any, vector: int) -> Any:
        at = self.positions + index * (self.shape.tile * 4) + vector * self.lanes * 4
        return T.reinterpret(f"uint32x{self.lanes}", emit.load(self.buffers.positions, (at,), 4 * self.lanes))

    def _fetch(self, unit: Any, vector: int) -> Any:
        """The positions of a unit, those of its first block lowest."""
        shape = self.shape
        width = shape.unit * shape.n * shape.bits
        if width == 32:
            return self._word(unit, vector)
        first = unit * width
        if isinstance(first, int):
            low, shift = first // 32, first % 32
            high: Any = min(low + 1, shape.words - 1)
        else:
            low, shift = tirx.truncdiv(first, 32), tirx.Cast("uint32", tirx.truncmod(first, 32))
            high = tirx.min(low + 1, shape.words - 1)
        shift = tirx.IntImm("uint32", shift) if isinstance(shift, int) else shift
        below = tirx.shift_right(self._word(low, vector), emit.splat(shift, self.lanes))
        # in two steps, so that nothing is shifted by 32
        above = tirx.shift_left(self._word(high, vector), _bits(1, self.lanes))
        above = tirx.shift_left(above, emit.splat(tirx.IntImm("uint32", 31) - shift, self.lanes))
        return tirx.bitwise_or(below, above)

    def unit(self, unit: Any, blocks: int) -> None:
        """Add the products of so many blocks of a unit."""
        shape, lanes = self.shape, self.lanes
        words = [T.bind(self._fetch(unit, v)) for v in range(self.vectors)]
        x = self.x + unit * (shape.unit * shape.m)
        values = self.values + unit * (shape.unit * shape.n * shape.tile)
        if self.rows <= FEW and blocks == shape.unit:
            self._fetch_ahead(values, blocks * shape.n * shape.tile)

        def stored(t: int, v: int) -> tuple[Any, Any]:
            place = tirx.shift_right(words[v], _bits(t * shape.bits, lanes))
            value = emit.load(self.buffers.values, (values + (t * shape.tile + v * lanes),), lanes)
            return T.bind(place), T.bind(self._wide(value))

        for each in range(blocks):
            begins = [x + (r * shape.stride + each * shape.m) for r in range(self.rows)]
            chosen = range(each * shape.n, (each + 1) * shape.n)
            if lanes in _PERMUTES:
                inputs = [T.bind(self._repeated(begin)) for begin in begins]
                for t in chosen:
                    for v in range(self.vectors):
                        place, value = stored(t, v)
                        for r in range(self.rows):
                            self._add(t % self.parts, r, v, self._picked(inputs[r], place), value)
                continue
            for v in range(self.vectors):
                kept_here = [stored(t, v) for t in chosen]
                for i in range(shape.m):
                    weight = self._at(i, kept_here)
                    for r in range(self.rows):
                        value = emit.splat(self.buffers.x[begins[r] + i], lanes)
                        self._add(i % self.parts, r, v, value, weight)

    def _fetch_ahead(self, values: Any, count: int) -> None:
        """Ask for the cache lines of as many values as a unit has, and a line of positions, some steps ahead."""
        shape = self.shape
        line = 64 // shape.value_bytes
        last = shape.panels * shape.count * shape.tile - count
        first = T.bind(tirx.min(values + AHEAD * line, last))
        for at in range(0, count, line):
            _prefetch(self.buffers.values, first + at)
        lines = AHEAD * line * shape.bits // (8 * 64)  # as many positions as there are values
        end = shape.panels * shape.words * shape.tile * 4 - 64
        place = tirx.truncdiv(values - self.values, shape.tile) * (2 * shape.bits)
        _prefetch(self.buffers.positions, tirx.min(self.positions + place + lines * 64, end))

    def _add(self, part: int, row: int, vector: int, x: Any, weight: Any) -> None:
        self.set(part, row, vector, math.fma(x, weight, self.get(part, row, vector)))

    def _wide(self, value: Any) -> Any:
        """Values in f32; machines without vectors of f16 would convert them one by one, in a function."""
        lanes = self.lanes
        if self.shape.weight != "float16" or lanes in _PERMUTES:
            return to_f32(value, lanes)
        bits = T.bind(T.cast(T.reinterpret(f"uint16x{lanes}", value), f"uint32x{lanes}"))
        size = T.bind(tirx.shift_left(tirx.bitwise_and(bits, _bits(0x7FFF, lanes)), _bits(13, lanes)))
        sign = tirx.shift_left(tirx.bitwise_and(bits, _bits(0x8000, lanes)), _bits(16, lanes))
        power = tirx.Broadcast(tirx.FloatImm("float32", 2.0**112), lanes)
        scaled = T.reinterpret(f"uint32x{lanes}", T.reinterpret(f"float32x{lanes}", size) * power)
        # the largest exponent stands for infinity and NaN
        top = tirx.GE(
            T.reinterpret(f"int32x{lanes}", size), T.cast(_bits(0x0F800000, lanes), f"int32x{lanes}")
        )
        scaled = tirx.Select(top, tirx.bitwise_or(size, _bits(0x7F800000, lanes)), scaled)
        return T.reinterpret(f"float32x{lanes}", tirx.bitwise_or(scaled, sign))

    def _at(self, place: int, given: list[tuple[Any, Any]]) -> Any:
        """The weights of one input of a block from the positions and values that are stored."""
        lanes = self.lanes
        zero, total = emit.splat(tirx.FloatImm("float32", 0.0), lanes), None
        for position, value in given:
            code = tirx.bitwise_and(position, _bits(self.shape.m - 1, lanes))
            code = T.reinterpret(f"int32x{lanes}", code)
            mine = tirx.Select(tirx.EQ(code, tirx.Broadcast(tirx.IntImm("int32", place), lanes)), value, zero)
            total = mine if total is None else total + mine
        return T.bind(total)

    def _repeated(self, begin: Any) -> Any:
        """The inputs of a block, over and over."""
        given = T.bind(emit.load(self.buffers.x, (begin,), self.shape.m))
        order = [tirx.IntImm("int32", lane) for lane in range(self.lanes)]
        return tirx.Shuffle([given] * (self.lanes // self.shape.m), order)

    def _picked(self, given: Any, place: Any) -> Any:
        """Of each lane the input of its position, which is in the low bits of ``place``."""
        index = T.reinterpret(
            f"int32x{self.lanes}", place
        )  # bits above the position choose among repetitions
        return tirx.call_llvm_pure_intrin(f"float32x{self.lanes}", _PERMUTES[self.lanes], given, index)

    def finish(self, row: Any, panel: Any, first: Any) -> None:
        """Parts added up, bias, activation, residual and store."""
        shape, lanes = self.shape, self.lanes
        column = opaque(panel * shape.tile + first)
        out = opaque(row * shape.rows + column)
        # the sums may only be read at constant places, or they would not stay in registers
        spare = _local(self.rows * self.width, "float32")
        for r in range(self.rows):
            for v in range(self.vectors):
                total = self.get(0, r, v)
                for part in range(1, self.parts):
                    total = total + self.get(part, r, v)
                emit.store(spare, ((r * self.vectors + v) * lanes,), total, lanes)

        def whole() -> None:
            with T.serial(0, self.rows) as r:
                for v in range(self.vectors):
                    value = emit.load(spare, (r * self.width + v * lanes,), lanes)
                    self._end(out + r * shape.rows + v * lanes, value, column + v * lanes, lanes)

        def ragged() -> None:
            left = tirx.min(tirx.max(shape.rows - column, 0), self.width)
            with T.serial(0, self.rows) as r, T.serial(0, left) as c:
                self._end(out + r * shape.rows + c, spare[r * self.width + c], column + c, 1)

        if shape.rows % shape.tile == 0:
            whole()
            return
        with T.If(panel < shape.panels - 1):
            with T.Then():
                whole()
            with T.Else():
                ragged()

    def _end(self, at: Any, value: Any, column: Any, lanes: int) -> None:
        """Bias, activation and residual for lanes of the results that begin at ``at``, and their store."""
        if self.buffers.bias is not None:
            value = value + to_f32(emit.load(self.buffers.bias, (column,), lanes), lanes)
        value = math.ACTIVATIONS[self.shape.activation](value)
        if self.buffers.residual is not None:
            value = value + to_f32(emit.load(self.buffers.residual, (at,), lanes), lanes)
        emit.store(self.buffers.out, (at,), from_f32(value, self.shape.kind, lanes), lanes)


def block(shape: SparseShape, buffers: SparseBuffers, rows: int, row: Any, panel: Any) -> None:
    """Results of ``rows`` rows of the input from ``row`` on, for the outputs of a panel."""
    made = _Block(shape, buffers, rows)
    whole, rest = divmod(shape.blocks, shape.unit)

    def columns(first: Any) -> None:
        made.begin(row, panel, first)
        if whole:
            with T.serial(0, whole) as unit:
                made.unit(unit, shape.unit)
        if rest:
            made.unit(whole, rest)
        made.finish(row, panel, first)

    if made.width == shape.tile:
        columns(0)
        return
    with T.serial(0, shape.tile // made.width) as group:
        columns(group * made.width)


def widen(shape: SparseShape, x: Any, scratch: Any, source: Any, target: Any) -> None:
    """One row of the inputs in f32, from ``source`` on, to ``target``, filled up with zeros."""
    lanes = shape.isa.lanes
    whole = shape.length // lanes
    with T.serial(0, whole) as i:
        v = emit.load(x, (source + i * lanes,), lanes)
        emit.store(scratch, (target + i * lanes,), to_f32(v, lanes), lanes)
    for column in range(whole * lanes, shape.stride):
        value = to_f32(x[source + column], 1) if column < shape.length else tirx.FloatImm("float32", 0.0)
        T.buffer_store(scratch, value, [target + column])
