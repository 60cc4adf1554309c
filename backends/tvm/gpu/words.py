"""Words of the emitters of GPU kernels: launches, shared memory, reductions over a block, loads as f32.

Kernels are plain Python functions over ``tvm.script.ir_builder``; each PrimFunc holds one launch or several.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.dims import Dims
from planish.backends.tvm.gpu.device import Gpu
from planish.ir.node import Node
from planish.ir.types import Size, Symbol, symbols_of

DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "u16": "uint16", "u32": "uint32", "bool": "bool",
}  # fmt: skip
"""Element types of the IR under TVM's names."""

_BITS = {
    "float32": 32,
    "uint32": 32,
    "int32": 32,
    "float16": 16,
    "bfloat16": 16,
    "uint8": 8,
    "int8": 8,
    "int64": 64,
}


def real(number: float) -> Any:
    """An f32 constant."""
    return tirx.FloatImm("float32", number)


def exact(bits: int) -> Any:
    """An f32 by its bits: TVM writes numbers for OpenCL with seven digits."""
    return T.reinterpret("float32", u32(bits))


def i32(number: int) -> Any:
    """An i32 constant."""
    return tirx.IntImm("int32", number)


def u32(number: int) -> Any:
    """A u32 constant."""
    return tirx.const(number, "uint32")


def product(sizes: Sequence[Any]) -> Any:
    """The product of sizes; 1 of none."""
    return reduce(operator.mul, sizes, 1)


def ceil_div(a: Any, b: int) -> Any:
    """``a / b`` rounded up, of a number that is not negative."""
    return -(-a // b) if isinstance(a, int) else tirx.floordiv(a + (b - 1), b)


@dataclass(frozen=True)
class Flat:
    """A buffer seen as its elements in order, and its sizes (``int`` where they are known)."""

    gpu: Gpu
    data: Any
    sizes: tuple[Any, ...]
    dtype: str

    def raw(self, index: Any, lanes: int = 1) -> Any:
        """``lanes`` elements as they are stored; f16 as its bits where the language has no such type."""
        return self.data[index if lanes == 1 else tirx.Ramp(index, 1, lanes)]

    def load(self, index: Any) -> Any:
        """One element as f32 (floating point) or as it is."""
        value = self.data[index]
        if self.dtype == "float16":
            return tirx.Cast("float32", value) if self.gpu.has_half else half_value(value)
        return tirx.Cast("float32", value) if self.dtype in ("bfloat16", "float64") else value

    def store(self, index: Any, value: Any) -> None:
        """Write one element of f32, rounded to the type of the buffer."""
        if self.dtype == "float16" and not self.gpu.has_half:
            value = half_bits(value)
        elif self.dtype != "float32":
            value = tirx.Cast(self.dtype, value)
        T.buffer_store(self.data, value, [index])

    def words(self, dtype: str = "uint32") -> Any:
        """The same bytes as a buffer of whole words."""
        bits = _BITS[self.dtype]
        count = product(self.sizes) * bits // _BITS[dtype]
        return T.decl_buffer((count,), dtype, data=self.data.data)


def half_value(bits: Any) -> Any:
    """The f32 of the bits (u16) of a finite f16."""
    wide = tirx.Cast("uint32", bits)
    moved = ((wide & u32(0x7FFF)) << u32(13)) | ((wide & u32(0x8000)) << u32(16))
    return T.reinterpret("float32", moved) * exact(0x77800000)


def half_bits(value: Any) -> Any:
    """The bits (u16) of an f32 rounded, half to even, to f16; too large values become infinite."""
    bits = named(T.reinterpret("uint32", value))
    size = named(bits & u32(0x7FFFFFFF))
    sign = (bits >> u32(16)) & u32(0x8000)
    normal = (size - u32(112 << 23) + u32(0xFFF) + ((size >> u32(13)) & u32(1))) >> u32(13)
    # adding one half puts the 11 bits of a small number at the end of the word, rounded
    small = T.reinterpret("uint32", T.reinterpret("float32", size) + real(0.5)) - u32(0x3F000000)
    finite = tirx.Select(size < u32(113 << 23), small, tirx.min(normal, u32(0x7C00)))
    rest = tirx.Select(size > u32(0x7F800000), u32(0x7E00), u32(0x7C00))
    return tirx.Cast("uint16", sign | tirx.Select(size >= u32(0x7F800000), rest, finite))


def named(value: Any) -> Any:
    """A scalar that is computed once, here."""
    if isinstance(value, int):
        return value
    cell = T.alloc_local((1,), str(value.ty))
    T.buffer_store(cell, value, [0])
    return cell[0]


def function(node: Node, gpu: Gpu, body: Callable[[list[Flat], Flat], None]) -> Any:
    """The PrimFunc of a kernel node: ``body(operands, output)`` emits its launches."""
    dims = Dims()
    bound = {s for n in node.operands for s in n.shape if isinstance(s, Symbol)}
    others: dict[Any, Any] = {}

    def sized(size: Size) -> Any:
        if isinstance(size, (int, Symbol)) or set(symbols_of((size,))) <= bound:
            return dims(size)
        return others.setdefault(size, tirx.Var(f"size{len(others)}", "int64"))

    def argument(name: str, part: Node) -> tuple[Any, tuple[Any, ...], str]:
        shape, dtype = tuple(sized(s) for s in part.shape), DTYPES[part.dtype.name]
        return T.arg(name, T.Buffer(shape, dtype)), shape, dtype

    def flat(made: tuple[Any, tuple[Any, ...], str]) -> Flat:
        buffer, shape, dtype = made
        stored = "uint16" if dtype == "float16" and not gpu.has_half else dtype
        return Flat(gpu, T.decl_buffer((product(shape),), stored, data=buffer.data), shape, dtype)

    with IRBuilder() as builder, T.prim_func():
        T.func_name("main")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": 1, "op_pattern": 8})
        operands = [argument(f"a{i}", operand) for i, operand in enumerate(node.operands)]
        output = argument("out", node)
        flats = [flat(o) for o in operands]
        result = flat(output)
        count = product(result.sizes)
        if isinstance(count, int):
            if count:
                body(flats, result)
            else:
                T.evaluate(0)
        else:
            with T.If(count > 0), T.Then():
                body(flats, result)
    return builder.get()


def workspace(gpu: Gpu, sizes: tuple[Any, ...], dtype: str = "float32") -> Flat:
    """Device memory between the launches of one function."""
    return Flat(gpu, T.alloc_buffer((product(sizes),), dtype), sizes, dtype)


@contextmanager
def launch(grid: Sequence[Any], threads: int) -> Iterator[tuple[list[Any], Any]]:
    """A launch of up to three grid axes, x first; gives the block's indices and the thread's."""
    frames, blocks = [], []
    for axis, extent in zip("xyz", grid, strict=False):
        frame = T.launch_thread(f"blockIdx.{axis}", extent)
        blocks.append(frame.__enter__())
        frames.append(frame)
    frame = T.launch_thread("threadIdx.x", threads)
    thread = frame.__enter__()
    frames.append(frame)
    try:
        yield blocks, thread
    finally:
        for frame in reversed(frames):
            frame.__exit__(None, None, None)


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """Only if a condition holds; ``True`` and ``None`` are no condition."""
    if condition is None or condition is True:
        yield
        return
    with T.If(condition), T.Then():
        yield


def shared(shape: int, dtype: str = "float32") -> Any:
    """A flat buffer of the block."""
    return T.alloc_buffer((shape,), dtype, scope="shared")


def local(count: int, dtype: str = "float32") -> Any:
    """A flat buffer of the thread; constant indices keep it in registers."""
    return T.alloc_local((count,), dtype)


def put(buffer: Any, index: Any, value: Any, lanes: int = 1) -> None:
    """Write one element, or ``lanes`` consecutive ones."""
    T.buffer_store(buffer, value, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)])


def get(buffer: Any, index: Any, lanes: int = 1) -> Any:
    """Read one element, or ``lanes`` consecutive ones."""
    return buffer[index if lanes == 1 else tirx.Ramp(index, 1, lanes)]


def barrier() -> None:
    """Wait for all threads of the block."""
    T.evaluate(T.tvm_storage_sync("shared"))


@contextmanager
def strided(begin: Any, count: Any, step: int) -> Iterator[Any]:
    """For every ``i = begin + n*step`` below ``count``; ``begin`` is below ``step``."""
    rounds = ceil_div(count, step)
    whole = isinstance(count, int) and count % step == 0
    with T.serial(0, rounds) as n:
        index = n * step + begin
        with when(None if whole else index < count):
            yield index


def shuffled(gpu: Gpu, value: Any, distance: int) -> Any:
    """The value that the thread ``distance`` away (xor) in the warp holds."""
    mask = tirx.const(0xFFFFFFFF, "uint32")
    return T.tvm_warp_shuffle_xor(mask, value, distance, gpu.warp, gpu.warp)


def block_reduce(gpu: Gpu, thread: Any, threads: int, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """One f32 of all threads of the block, in every thread; ends with a barrier behind it."""
    held = local(1)
    put(held, 0, value)
    width = min(gpu.warp, threads)
    distance = width // 2
    while distance:
        put(held, 0, combine(held[0], shuffled(gpu, held[0], distance)))
        distance //= 2
    count = threads // width
    if count == 1:
        return held[0]
    room = shared(count)
    with when(thread % width == 0 if width > 1 else None):
        put(room, thread // width, held[0])
    barrier()
    if width > 1:
        put(held, 0, room[0])
        for i in range(1, count):
            put(held, 0, combine(held[0], room[i]))
        barrier()
        return held[0]
    half = count // 2
    while half:
        with when(thread < half):
            put(room, thread, combine(room[thread], room[thread + half]))
        barrier()
        half //= 2
    put(held, 0, room[0])
    barrier()
    return held[0]


def add(a: Any, b: Any) -> Any:
    """The sum."""
    return a + b


def largest(a: Any, b: Any) -> Any:
    """The larger."""
    return tirx.max(a, b)


def rounded(value: Any) -> Any:
    """The nearest whole number, half to even."""
    return tirx.nearbyint(value)


def _sigmoid(v: Any) -> Any:
    return real(1.0) / (real(1.0) + tirx.exp(real(0.0) - v))


def _gelu(v: Any) -> Any:
    return v * real(0.5) * (real(1.0) + tirx.erf(v * real(math.sqrt(0.5))))


def _gelu_tanh(v: Any) -> Any:
    return v * _sigmoid(v * (real(1.5957691216057308) + real(1.5957691216057308 * 0.044715) * v * v))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda v: v,
    "relu": lambda v: tirx.Select(v < real(0.0), real(0.0), v),
    "silu": lambda v: v * _sigmoid(v),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "tanh": tirx.tanh,
    "sigmoid": _sigmoid,
}
"""What kernels apply to what they computed, by name."""
