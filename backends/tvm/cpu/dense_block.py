"""The innermost part of a dense linear layer: a block of rows by a few vectors of columns, held in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit, math, pairs
from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.isa import Isa


@dataclass(frozen=True)
class DenseShape:
    """What is fixed about one dense linear layer when its kernel is made.

    ``rows`` by ``length`` is the weight, stored in tiles of ``tile`` rows by ``depth`` inputs of type ``weight``;
    ``kind`` is the type of inputs and results (names as in TIR). ``chosen`` is the variant.
    """

    isa: Isa
    rows: int
    length: int
    tile: int
    depth: int
    weight: str
    kind: str
    activation: str
    chosen: Variant = DEFAULT

    @property
    def panels(self) -> int:
        """Tiles of rows."""
        return -(-self.rows // self.tile)

    @property
    def steps(self) -> int:
        """Steps along the inputs: ``depth`` of them each."""
        return -(-self.length // self.depth)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tiles."""
        return self.panels * self.steps * self.tile * self.depth * (4 if self.weight == "float32" else 2)

    @property
    def in_pairs(self) -> bool:
        """True if ``vdpbf16ps`` computes."""
        return self.depth == 2 and self.isa.bf16

    @property
    def source(self) -> str:
        """How blocks read the inputs: ``plain`` f32, ``pairs`` of bf16, or a ``scratch`` they are converted to."""
        if self.kind == "float32" and self.depth == 1:
            return "plain"
        return "pairs" if self.kind == "bfloat16" and self.in_pairs and self.length % 2 == 0 else "scratch"

    @property
    def stride(self) -> int:
        """Elements from one row of the inputs to the next, in the form in which blocks read them."""
        if self.source != "scratch":
            return self.length
        return self.steps if self.in_pairs else self.steps * self.depth

    @cached_property
    def block_rows(self) -> tuple[int, ...]:
        """Numbers of rows for which there is a block, ascending."""
        made: tuple[int, ...] = (1, 2, 4)
        if self.isa.registers == 32:
            made = (1, 2, 4, 8, 12) if self.tile // self.isa.lanes >= 2 else (1, 2, 4, 8, 12, 24)
        elif self.isa.lanes == 8:
            made = (1, 2, 4, 6)
        most = self.chosen.get("rows", made[-1])
        return (*(rows for rows in made if rows < most), most)

    def vectors(self, rows: int) -> int:
        """Vectors of columns in a block of so many rows."""
        room = 28 if self.isa.registers == 32 else 12 if self.isa.lanes == 8 else 8
        count = self.tile // self.isa.lanes
        while count > 1 and rows * count > room:
            count //= 2
        return count


@dataclass(frozen=True)
class DenseBuffers:
    """Flat buffers of one dense linear layer, as blocks read and write them; None for what is not there."""

    x: Any
    tiles: Any
    bias: Any
    residual: Any
    out: Any


def _local(count: int, kind: str) -> Any:
    """Elements on the stack, in registers if all indices are constants; TVM would take them from its workspace."""
    return T.alloc_buffer((count,), kind, annotations={"disable_lower_builtin": True})


def opaque(value: Any) -> Any:
    """A variable (i64) whose value TVM does not look into, which keeps its indices, and compiling, short."""
    cell = _local(1, "int64")
    T.buffer_store(cell, value, [0])
    return T.bind(cell[0])


def _prefetch(buffer: Any, at: Any, write: bool) -> None:
    numbers = (tirx.IntImm("int32", n) for n in (int(write), 3, 1))
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[at]), *numbers))


class _Block:
    """Accumulators ``[part][row][vector]`` of a block and the code that fills and stores them."""

    def __init__(self, shape: DenseShape, buffers: DenseBuffers, rows: int) -> None:
        self.shape, self.buffers, self.rows = shape, buffers, rows
        self.lanes, self.vectors = shape.isa.lanes, shape.vectors(rows)
        self.parts = max(1, min(4, 8 // (rows * self.vectors)))
        self.width = self.vectors * self.lanes
        self.sums = _local(self.parts * rows * self.width, "float32")

    def fetch(self, row: Any, panel: Any, first: Any) -> None:
        """Ask for the cache lines that the results (and what is added to them) will need at the end."""
        shape = self.shape
        start = opaque(row * shape.rows + panel * shape.tile + first)
        line = 64 // (4 if shape.kind == "float32" else 2)
        for r in range(self.rows):
            for column in range(0, self.width, line):
                at = start + (r * shape.rows + column)
                _prefetch(self.buffers.out, at, write=True)
                if self.buffers.residual is not None:
                    _prefetch(self.buffers.residual, at, write=False)

    def get(self, part: int, row: int, vector: int) -> Any:
        return emit.load(
            self.sums, (((part * self.rows + row) * self.vectors + vector) * self.lanes,), self.lanes
        )

    def set(self, part: int, row: int, vector: int, value: Any) -> None:
        at = ((part * self.rows + row) * self.vectors + vector) * self.lanes
        emit.store(self.sums, (at,), value, self.lanes)

    def clear(self) -> None:
        zero = emit.splat(tirx.FloatImm("float32", 0.0), self.lanes)
        for i in range(self.parts * self.rows * self.vectors):
            emit.store(self.sums, (i * self.lanes,), zero, self.lanes)

    def step(self, x: Any, tiles: Any, step: Any, part: int) -> None:
        """Add the products of one step of ``depth`` inputs; ``x`` and ``tiles`` are where the block begins."""
        shape, lanes = self.shape, self.lanes
        tiles = tiles + step * (shape.tile * shape.depth)
        if shape.in_pairs:
            columns = [T.bind(self._pairs(tiles, v, "int32")) for v in range(self.vectors)]
            for r in range(self.rows):
                pair = emit.splat(self._input_pair(x + r * shape.stride, step), lanes)
                for v in range(self.vectors):
                    self.set(part, r, v, pairs.dot_pairs(self.get(part, r, v), columns[v], pair))
            return
        for each in range(shape.depth):
            columns = [T.bind(self._column(tiles, v, each)) for v in range(self.vectors)]
            for r in range(self.rows):
                value = emit.splat(self.buffers.x[x + (r * shape.stride + each) + step * shape.depth], lanes)
                for v in range(self.vectors):
                    self.set(part, r, v, math.fma(value, columns[v], self.get(part, r, v)))

    def _input_pair(self, x: Any, step: Any) -> Any:
        if self.shape.source == "pairs":
            return T.reinterpret("int32", emit.load(self.buffers.x, (x + step * 2,), 2))
        return T.reinterpret("int32", self.buffers.x[x + step])

    def _pairs(self, tiles: Any, v: int, kind: str) -> Any:
        lanes = self.lanes
        return T.reinterpret(
            f"{kind}x{lanes}", emit.load(self.buffers.tiles, (tiles + v * lanes * 2,), 2 * lanes)
        )

    def _column(self, tiles: Any, v: int, each: int) -> Any:
        if self.shape.depth == 1:
            return to_f32(emit.load(self.buffers.tiles, (tiles + v * self.lanes,), self.lanes), self.lanes)
        both = self._pairs(tiles, v, "uint32")
        return pairs.high_half(both) if each else pairs.low_half(both)

    def merge(self) -> None:
        """Add up the parts."""
        for part in range(1, self.parts):
            for r in range(self.rows):
                for v in range(self.vectors):
                    self.set(0, r, v, self.get(0, r, v) + self.get(part, r, v))

    def finish(self, row: Any, panel: Any, first: Any) -> None:
        """Bias, activation, residual and store."""
        shape, lanes = self.shape, self.lanes
        column = opaque(panel * shape.tile + first)
        out = opaque(row * shape.rows + column)

        # the accumulators may only be read at constant places, or they would not stay in registers
        spare = _local(self.rows * self.width, "float32")
        for r in range(self.rows):
            for v in range(self.vectors):
                emit.store(spare, ((r * self.vectors + v) * lanes,), self.get(0, r, v), lanes)

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


def _vector(kind: str, lanes: int) -> str:
    return f"{kind}x{lanes}" if lanes > 1 else kind


def to_f32(v: Any, lanes: int) -> Any:
    """Lanes of f32, f16 or bf16 as f32."""
    kind = str(v.ty).partition("x")[0]
    if kind == "float32":
        return v
    if kind != "bfloat16":
        return T.cast(v, _vector("float32", lanes))
    return pairs.low_half(T.cast(T.reinterpret(_vector("uint16", lanes), v), _vector("uint32", lanes)))


def from_f32(v: Any, kind: str, lanes: int) -> Any:
    """Lanes of f32 rounded to f32, f16 or bf16."""
    if kind == "float32":
        return v
    if kind != "bfloat16":
        return T.cast(v, _vector(kind, lanes))
    bits = T.reinterpret(_vector("uint32", lanes), pairs.round_bf16(v))
    sixteen = tirx.IntImm("uint32", 16)
    high = tirx.shift_right(bits, tirx.Broadcast(sixteen, lanes) if lanes > 1 else sixteen)
    return T.reinterpret(_vector("bfloat16", lanes), T.cast(high, _vector("uint16", lanes)))


def block(shape: DenseShape, buffers: DenseBuffers, rows: int, row: Any, panel: Any) -> None:
    """Results of ``rows`` rows of the input from ``row`` on, for all columns of a panel."""
    made = _Block(shape, buffers, rows)
    x = opaque(row * shape.stride)

    def columns(first: Any) -> None:
        tiles = opaque(panel * (shape.steps * shape.tile * shape.depth) + first * shape.depth)
        made.clear()
        if rows == shape.block_rows[-1]:
            made.fetch(row, panel, first)
        whole = shape.steps // made.parts
        if whole:
            with T.serial(0, whole) as outer:
                for part in range(made.parts):
                    made.step(x, tiles, outer * made.parts + part, part)
        for step in range(whole * made.parts, shape.steps):
            made.step(x, tiles, step, step % made.parts)
        made.merge()
        made.finish(row, panel, first)

    if made.width == shape.tile:
        columns(0)
        return
    with T.serial(0, shape.tile // made.width) as group:
        columns(group * made.width)


__all__: Sequence[str] = ("DenseBuffers", "DenseShape", "block", "from_f32", "opaque", "to_f32")
