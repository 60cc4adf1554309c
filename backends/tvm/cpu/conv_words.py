"""Words that the kernels of convolutions and pooling share: flat buffers, loops over blocks, the end of a block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit, math, pairs
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def tensor_buffer(dims: Dims, node: Node) -> Any:
    """The buffer of a tensor, for an argument of a function."""
    return T.Buffer(dims.shape(node.shape), _NAMES[node.dtype.name])


def flat(buffer: Any) -> Any:
    """The same memory with one axis."""
    total: Any = 1
    for size in buffer.shape:
        total = total * size
    kind = "uint16" if str(buffer.dtype) == "bfloat16" else str(buffer.dtype)
    return T.decl_buffer((total,), kind, data=buffer.data)


def loop(count: Any, parallel: bool) -> AbstractContextManager[Any]:
    """A loop from 0, over threads if that is worth it."""
    return T.parallel(0, count) if parallel else T.serial(0, count)


def named(value: Any) -> Any:
    """The value under a name of its own, so that expressions built of it stay short."""
    return value if isinstance(value, int) else T.bind(value)


def settled(value: Any) -> Any:
    """A size that is not known as a variable that TVM does not look behind.

    Its passes multiply out products of sums of sizes, which takes minutes for a function with many accesses; LLVM
    removes the detour.
    """
    if isinstance(value, int):
        return value
    cell = T.alloc_local((1,), "int64")
    T.buffer_store(cell, tirx.Cast("int64", value), [0])
    return T.bind(cell[0])


def blocks(length: Any, size: int, body: Callable[[Any, int], None]) -> None:
    """``body(start, size)`` over 0 .. length; the last block begins earlier instead of being shorter.

    If the length is not known, lengths below ``size`` are gone through one by one.
    """
    if isinstance(length, int):
        if length <= size:
            body(0, length)
            return
        with T.serial(0, -(-length // size)) as i:
            body(tirx.min(i * size, length - size) if length % size else i * size, size)
        return
    with T.If(length >= size):
        with T.Then(), T.serial(0, tirx.floordiv(length + size - 1, size)) as i:
            body(tirx.min(i * size, length - size), size)
        with T.Else(), T.serial(0, length) as i:
            body(i, 1)


def rounding(isa: Isa) -> AbstractContextManager[Any]:
    """The scope in which results may be rounded to bf16; wraps the body of a function."""
    return pairs.imported() if isa.bf16 else nullcontext()


def narrow(isa: Isa, value: Any, lanes: int) -> Any:
    """f32 rounded to bf16 as words of 16 bits."""
    if isa.bf16 and lanes == 16:
        return pairs.round_pairs(value)
    suffix = f"x{lanes}" if lanes > 1 else ""
    words = T.reinterpret(f"uint32{suffix}", pairs.round_bf16(value))
    return tirx.Cast(f"uint16{suffix}", T.shift_right(words, emit.splat(tirx.IntImm("uint32", 16), lanes)))


def wide(words: Any, lanes: int) -> Any:
    """Words of bf16 as f32."""
    return pairs.low_half(tirx.Cast(f"uint32x{lanes}" if lanes > 1 else "uint32", words))


def read(buffer: Any, place: Any, lanes: int) -> Any:
    """``lanes`` elements of a flat buffer as f32."""
    value, kind = emit.load(buffer, (place,), lanes), str(buffer.dtype)
    if kind == "float16":
        return T.cast(value, f"float32x{lanes}" if lanes > 1 else "float32")
    return value if kind == "float32" else wide(value, lanes)


def write(isa: Isa, buffer: Any, place: Any, value: Any, lanes: int) -> None:
    """Write ``lanes`` elements of f32 to a flat buffer in its element type."""
    kind = str(buffer.dtype)
    if kind == "float16":
        value = T.cast(value, f"float16x{lanes}" if lanes > 1 else "float16")
    elif kind != "float32":
        value = narrow(isa, value, lanes)
    emit.store(buffer, (place,), value, lanes)


def activate(value: Any, name: str) -> Any:
    """An activation by its name."""

    def bounded(v: Any) -> Any:
        return math.larger(math.smaller(v, 6.0), 0.0)

    if name == "relu6":
        return bounded(value)
    if name == "hardswish":
        return math.bind(
            value, lambda v: v * bounded(v + math.constant(3.0, v)) * math.constant(1.0 / 6.0, v)
        )
    return math.ACTIVATIONS[name](value)


CHEAP = ("none", "relu", "relu6")
"""Activations that are repeated for every register; others are applied in a loop, which keeps the code small."""


@dataclass(frozen=True)
class Output:
    """Where blocks go: the flat result, what is added before, and the activation.

    ``stored`` is the number of channels with padding, which weights are stored for.
    """

    buffer: Any
    bias: Any
    residual: Any
    channels: int
    stored: int
    activation: str

    def finish(self, isa: Isa, block: Results, place: Any, sizes: Any, first: Any) -> None:
        """Store a block for the channels from ``first``; those beyond the last fall off."""
        batch, top, left = place
        _, height, width, _ = sizes
        origin = named(((batch * height + top) * width + left) * self.channels)
        step = (named(width * self.channels), self.channels)
        span = block.vectors * isa.lanes
        full, rest = divmod(self.channels, span)
        if rest == 0 and self.stored == self.channels:
            self._part(isa, block, origin, step, first, span)
            return
        if full:
            with T.If(first < full * span), T.Then():
                self._part(isa, block, origin, step, first, span)
        if rest:
            with T.If(tirx.EQ(first, full * span)), T.Then():
                self._part(isa, block, origin, step, full * span, rest)

    def _part(self, isa: Isa, block: Results, origin: Any, step: Any, start: Any, have: int) -> None:
        """The first ``have`` channels of a block."""
        lanes, vectors = isa.lanes, block.vectors
        if self.activation in CHEAP and have == vectors * lanes:
            for p in range(block.rows * block.columns):
                row, column = divmod(p, block.columns)
                for v in range(vectors):
                    value = emit.load(block.total, (p * vectors + v, 0), lanes)
                    pixel = origin + row * step[0] + column * step[1]
                    self._store(isa, pixel, start + v * lanes, value, lanes)
            return
        count = block.rows * block.columns * vectors
        kept = T.alloc_local((count * lanes,), "float32")
        for i in range(count):
            emit.store(kept, (i * lanes,), emit.load(block.total, (i, 0), lanes), lanes)
        with T.serial(0, block.rows * block.columns) as p:
            row, column = tirx.floordiv(p, block.columns), tirx.floormod(p, block.columns)
            pixel = named(origin + row * step[0] + column * step[1])
            for v in range(-(-have // lanes)):
                at, channel, left = (p * vectors + v) * lanes, start + v * lanes, have - v * lanes
                if left >= lanes:
                    self._store(isa, pixel, channel, emit.load(kept, (at,), lanes), lanes)
                    continue
                with T.serial(0, left) as c:
                    self._store(isa, pixel, channel + c, kept[at + c], 1)

    def _store(self, isa: Isa, pixel: Any, channel: Any, value: Any, lanes: int) -> None:
        if self.bias is not None:
            value = value + read(self.bias, channel, lanes)
        if self.residual is not None:
            value = value + read(self.residual, pixel + channel, lanes)
        write(isa, self.buffer, pixel + channel, activate(value, self.activation), lanes)


@dataclass(frozen=True)
class Results:
    """Registers ``[rows*columns*vectors, lanes]`` with the sums of a block of pixels."""

    total: Any
    rows: int
    columns: int
    vectors: int
