"""Arguments of a CPU kernel as flat buffers with their sizes, and sums and maxima over lanes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit
from planish.backends.tvm.dims import Dims
from planish.ir.node import Node
from planish.ir.types import Size, Symbol, symbols_of

DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip
"""Element types of the IR under TVM's names."""


def whole(number: int) -> Any:
    """A 64-bit constant."""
    return tirx.IntImm("int64", number)


def real(number: float) -> Any:
    """An f32 constant."""
    return tirx.FloatImm("float32", number)


def named(value: Any) -> Any:
    """A scalar that is computed once, here.

    It is held in a cell that the arithmetic of TVM does not look into: proofs about nested quotients take minutes.
    """
    if isinstance(value, int):
        return value
    cell = _in_frame(1, str(value.ty))
    T.buffer_store(cell, value, [0])
    return cell[0]


def product(sizes: Sequence[Any]) -> Any:
    """The product of sizes; 1 of none."""
    return reduce(operator.mul, sizes, 1)


def smaller_of(a: Any, b: Any) -> Any:
    """The smaller of two whole numbers."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(_wide(a), _wide(b))


def larger_of(a: Any, b: Any) -> Any:
    """The larger of two whole numbers."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(_wide(a), _wide(b))


def quotient(a: Any, b: Any) -> Any:
    """``a // b`` of numbers that are not negative."""
    return a // b if isinstance(a, int) and isinstance(b, int) else tirx.truncdiv(_wide(a), _wide(b))


def remainder(a: Any, b: Any) -> Any:
    """``a % b`` of numbers that are not negative."""
    return a % b if isinstance(a, int) and isinstance(b, int) else tirx.truncmod(_wide(a), _wide(b))


def _wide(a: Any) -> Any:
    if isinstance(a, int):
        return whole(a)
    return a if str(a.ty) == "int64" else tirx.Cast("int64", a)


@dataclass(frozen=True)
class Flat:
    """One argument: its elements in order, and its sizes (``int`` where they are known)."""

    data: Any
    sizes: tuple[Any, ...]

    def load(self, index: Any, lanes: int = 1) -> Any:
        """``lanes`` consecutive elements."""
        return emit.load(self.data, (index,), lanes)

    def store(self, index: Any, value: Any, lanes: int = 1) -> None:
        """Write ``lanes`` consecutive elements."""
        emit.store(self.data, (index,), value, lanes)


class _Sizes:
    """Sizes as TIR; an expression of symbols that no argument has as a size of its own gets a variable."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.dims = Dims()
        self.bound = {s for n in nodes for s in n.shape if isinstance(s, Symbol)}
        self.others: dict[Any, Any] = {}

    def __call__(self, size: Size) -> Any:
        if isinstance(size, int):
            return size
        if isinstance(size, Symbol) or set(symbols_of((size,))) <= self.bound:
            return self.dims(size)
        if size not in self.others:
            self.others[size] = tirx.Var(f"size{len(self.others)}", "int64")
        return self.others[size]


def function(node: Node, body: Callable[[list[Flat], Flat], None], *, in_place: bool = False) -> Any:
    """The PrimFunc of a kernel node: ``body(operands, output)`` emits what it does.

    ``in_place`` leaves out the last parameter, the output: it is the first operand, which the kernel changes.
    """
    sizes = _Sizes(node.operands)

    def argument(name: str, part: Node) -> Flat:
        shape = tuple(sizes(s) for s in part.shape)
        buffer = T.arg(name, T.Buffer(shape, DTYPES[part.dtype.name]))
        return Flat(buffer, shape)

    def flat(part: Flat) -> Flat:
        return Flat(T.decl_buffer((product(part.sizes),), part.data.dtype, data=part.data.data), part.sizes)

    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        operands = [argument(f"a{i}", operand) for i, operand in enumerate(node.operands)]
        output = None if in_place else argument("out", node)
        made = [flat(o) for o in operands]
        body(made, made[0] if output is None else flat(output))
    return builder.get()


def each(count: Any, work: Any, least: int, body: Callable[[Any], None]) -> None:
    """``body(i)`` for every i below ``count``: in parallel if ``work`` is at least ``least``, else one by one."""

    def loop(frame: Callable[..., Any]) -> None:
        with frame(whole(0), count if not isinstance(count, int) else whole(count)) as i:
            body(i)

    if isinstance(work, int):
        loop(T.parallel if work >= least else T.serial)
        return
    with T.If(work >= whole(least)):
        with T.Then():
            loop(T.parallel)
        with T.Else():
            loop(T.serial)


def scratch(count: int, dtype: str = "float32") -> Any:
    """A flat buffer of the running task, from TVM's pool: never so small that registers would be put into it."""
    return T.alloc_buffer((max(count, 1024),), dtype)


def _in_frame(count: int, dtype: str) -> Any:
    # TVM keeps buffers in the frame of their function that have scope `global` and less than 1 KiB; others, also those
    # of scope `local`, are taken from a pool by a call each
    return T.alloc_buffer((count,), dtype)


@dataclass(frozen=True)
class Registers:
    """Vector registers: one local buffer each, so that LLVM sees every one apart."""

    cells: tuple[Any, ...]
    lanes: int

    def get(self, number: int) -> Any:
        """The value of a register."""
        return emit.load(self.cells[number], (0,), self.lanes)

    def put(self, number: int, value: Any) -> None:
        """Set a register."""
        emit.store(self.cells[number], (0,), value, self.lanes)

    def fill(self, number: float) -> None:
        """Set all lanes of all registers of f32."""
        for i in range(len(self.cells)):
            self.put(i, emit.splat(real(number), self.lanes))


def vectors(count: int, lanes: int, dtype: str = "float32") -> Registers:
    """``count`` registers of ``lanes`` numbers."""
    return Registers(tuple(_in_frame(lanes, dtype) for _ in range(count)), lanes)


def shuffled(parts: Sequence[Any], lanes: Sequence[int]) -> Any:
    """The lanes with these numbers out of vectors laid end to end."""
    return tirx.Shuffle(list(parts), [tirx.IntImm("int32", i) for i in lanes])


def across(value: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """One scalar from all lanes, halves combined with halves."""
    while lanes > 1:
        half = lanes // 2
        held = vectors(1, lanes)
        held.put(0, value)
        whole_vector = held.get(0)
        low, high = shuffled([whole_vector], range(half)), shuffled([whole_vector], range(half, lanes))
        value, lanes = combine(low, high), half
    return value


def add(a: Any, b: Any) -> Any:
    """The sum, as a function."""
    return a + b


def fitting_lanes(count: Size, most: int) -> int:
    """The most lanes, a power of two, that divide a known count; 1 for others."""
    lanes = most if isinstance(count, int) else 1
    while isinstance(count, int) and count % lanes:
        lanes //= 2
    return lanes
