"""Pooling of images with channels last: the largest or the mean of a window, many channels at a time."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit
from planish.backends.tvm.cpu.conv_words import (
    flat,
    loop,
    named,
    read,
    rounding,
    settled,
    tensor_buffer,
    write,
)
from planish.backends.tvm.cpu.windows import Window, channel_blocks
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node


def build(node: Node, isa: Isa) -> Any:
    """The function of a ``kernel.pool``: (x, out)."""
    x, mode, size, stride, padding, dilation, _, counted = node.args
    dims = Dims()
    with IRBuilder() as builder, T.prim_func():
        T.func_name("pool")
        T.func_attr({"tirx.noalias": True})
        given, made = T.arg("x", tensor_buffer(dims, x)), T.arg("out", tensor_buffer(dims, node))
        source, target = flat(given), flat(made)
        _, high, wide, channels = map(settled, dims.shape(x.shape))
        batch, rows, columns, _ = map(settled, dims.shape(node.shape))
        down = Window(size[0], stride[0], padding[0], dilation[0], high)
        along = Window(size[1], stride[1], padding[1], dilation[1], wide)
        length = batch * rows * columns * channels
        large = not isinstance(length, int) or length * size[0] * size[1] > 1 << 18

        def pixel(line: Any, top: Any, column: Any, start: Any, vectors: int, lanes: int) -> None:
            place = named((line * columns + column) * channels + start)
            image = named(tirx.floordiv(line, rows) * high)
            total = emit.registers(vectors, lanes)
            zero = tirx.FloatImm("float32", 0.0 if mode == "mean" else float("-inf"))
            for v in range(vectors):
                emit.store(total, (v, 0), emit.splat(zero, lanes), lanes)
            low, end = map(named, down.taps(top))
            left, right = map(named, along.taps(column))
            with T.serial(low, end) as r, T.serial(left, right) as c:
                at = named(
                    ((image + down.source(top, r)) * wide + along.source(column, c)) * channels + start
                )
                for v in range(vectors):
                    have = emit.load(total, (v, 0), lanes)
                    value = read(source, at + v * lanes, lanes)
                    best = have + value if mode == "mean" else _larger(value, have, lanes)
                    emit.store(total, (v, 0), best, lanes)
            count = size[0] * size[1] if counted else (end - low) * (right - left)
            for v in range(vectors):
                value = emit.load(total, (v, 0), lanes)
                if mode == "mean":
                    value = value / emit.splat(tirx.Cast("float32", count), lanes)
                write(isa, target, place + v * lanes, value, lanes)

        with rounding(isa), loop(batch * rows, large) as line, T.serial(0, columns) as column:
            top = tirx.floormod(line, rows)
            channel_blocks(channels, isa.lanes, lambda *block: pixel(line, top, column, *block))
    return builder.get()


def _larger(value: Any, have: Any, lanes: int) -> Any:
    """The larger one; NaN wins."""
    kind = f"float32x{lanes}" if lanes > 1 else "float32"
    return tirx.call_llvm_pure_intrin(kind, "llvm.maximum", value, have)
