"""Convolution of each channel by its own window, channels last, many channels at a time."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit, math
from planish.backends.tvm.cpu.conv_words import (
    activate,
    blocks,
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

PIXELS = 4
"""Pixels of a row that share the loaded taps."""


def build(node: Node, isa: Isa) -> Any:
    """The function of a ``kernel.depthwise``: (x, taps, bias?, residual?, out)."""
    x, taps, bias, residual, size, stride, padding, dilation, activation = node.args
    dims = Dims()
    with IRBuilder() as builder, T.prim_func():
        T.func_name("depthwise")
        T.func_attr({"tirx.noalias": True})
        given = {"x": x, "taps": taps, "bias": bias, "residual": residual, "out": node}
        buffers = {name: T.arg(name, tensor_buffer(dims, v)) for name, v in given.items() if v is not None}
        of = {name: flat(buffer) for name, buffer in buffers.items()}
        source, weight, target = of["x"], of["taps"], of["out"]
        added, more = of.get("bias"), of.get("residual")
        _, high, wide, channels = map(settled, dims.shape(x.shape))
        batch, rows, columns, _ = map(settled, dims.shape(node.shape))
        down = Window(size[0], stride[0], padding[0], dilation[0], high)
        along = Window(size[1], stride[1], padding[1], dilation[1], wide)
        length = batch * rows * columns * channels
        large = not isinstance(length, int) or length * size[0] * size[1] > 1 << 17

        def finish(line: Any, column: Any, start: Any, total: Any, i: int, lanes: int) -> None:
            value = emit.load(total, (i, 0), lanes)
            place = named((line * columns + column) * channels + start)
            if added is not None:
                value = value + read(added, start, lanes)
            if more is not None:
                value = value + read(more, place, lanes)
            write(isa, target, place, activate(value, activation), lanes)

        def pixels(
            line: Any, top: Any, column: Any, count: int, start: Any, lanes: int, inside: bool
        ) -> None:
            image = named(tirx.floordiv(line, rows) * high)
            total = emit.registers(count, lanes)
            for i in range(count):
                emit.store(total, (i, 0), emit.splat(tirx.FloatImm("float32", 0.0), lanes), lanes)
            low, end = map(named, down.taps(top))

            def tap(r: Any, c: Any) -> None:
                factor = read(weight, (r * size[1] + c) * channels + start, lanes)
                origin = named(
                    ((image + down.source(top, r)) * wide + along.source(column, c)) * channels + start
                )
                for i in range(count):
                    at = origin + i * (stride[1] * channels)
                    have = emit.load(total, (i, 0), lanes)
                    emit.store(total, (i, 0), math.fma(read(source, at, lanes), factor, have), lanes)

            with T.serial(low, end) as r:
                if inside:
                    for c in range(size[1]):
                        tap(r, c)
                else:
                    left, right = map(named, along.taps(column))
                    with T.serial(left, right) as c:
                        tap(r, c)
            for i in range(count):
                finish(line, column + i, start, total, i, lanes)

        reach = (size[1] - 1) * dilation[1]
        first = -(-padding[1] // stride[1])
        after = tirx.max(
            tirx.min(tirx.floordiv(wide - 1 - reach + padding[1], stride[1]) + 1, columns), first
        )
        after, first = settled(tirx.min(after, columns)), settled(tirx.min(first, columns))
        middle = settled(after - first)

        with rounding(isa), loop(batch * rows, large) as line:
            top = tirx.floormod(line, rows)

            def channel(start: Any, vectors: int, lanes: int) -> None:
                for v in range(vectors):
                    begin = start + v * lanes
                    with T.serial(0, first) as column:
                        pixels(line, top, column, 1, begin, lanes, False)
                    blocks(
                        middle, PIXELS,
                        lambda i, n, begin=begin: pixels(line, top, first + i, n, begin, lanes, True),  # type: ignore[misc]
                    )  # fmt: skip
                    with T.serial(0, columns - after) as column:
                        pixels(line, top, after + column, 1, begin, lanes, False)

            channel_blocks(channels, isa.lanes, channel)
    return builder.get()
