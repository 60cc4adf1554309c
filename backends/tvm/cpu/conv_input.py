"""What a convolution reads: the input itself, or a copy of it with borders of zeros, rounded or thinned out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit, pairs
from planish.backends.tvm.cpu.conv_words import flat, loop, named, narrow, read, settled
from planish.backends.tvm.isa import Isa


@dataclass(frozen=True)
class Input:
    """A flat buffer of images ``[batch, height, width, channels]``."""

    buffer: Any
    height: Any
    width: Any
    channels: int

    def offset(self, rows: Any, columns: Any) -> Any:
        """Elements between two places ``rows`` and ``columns`` apart."""
        return (rows * self.width + columns) * self.channels

    def at(self, batch: Any, row: Any, column: Any) -> Any:
        """The first element of a pixel."""
        return ((batch * self.height + row) * self.width + column) * self.channels

    def joined(self) -> Input:
        """All rows of an image as one."""
        return replace(self, height=1, width=settled(self.height * self.width))


def direct(isa: Isa, source: Any, shape: Any, *_: Any) -> Input:
    """The input as it is."""
    _, height, width, channels = shape
    return Input(flat(source), height, width, channels)


def copied(isa: Isa, source: Any, shape: Any, padding: Any, skip: Any, words: bool, rounded: bool) -> Input:
    """A copy with zeros around each image, of every ``skip``-th row and column.

    ``words`` stores bf16, ``rounded`` rounds to bf16 but stores f32.
    """
    batch, height, width, channels = shape
    up, side = padding

    def spread(length: Any, by: int, border: int) -> Any:
        if isinstance(length, int):
            return -(-length // by) + 2 * border
        return (tirx.floordiv(length + by - 1, by) if by > 1 else length) + 2 * border

    kind = "uint16" if words else "float32"
    # TVM moves allocations to the beginning of a function, where only the sizes of its arguments are known
    known = [
        source.shape[0],
        spread(source.shape[1], skip[0], up),
        spread(source.shape[2], skip[1], side),
        channels,
    ]
    made = T.alloc_buffer((known[0] * known[1] * known[2] * known[3] + 64,), kind)
    rows, columns = settled(spread(height, skip[0], up)), settled(spread(width, skip[1], side))
    length = settled(batch * rows * columns * channels)
    given = flat(source)
    zero = tirx.IntImm("uint16", 0) if words else tirx.FloatImm("float32", 0.0)
    lanes = 16 if isa.lanes == 16 else isa.lanes

    def fill(begin: Any, count: Any) -> None:
        _spans(count, lanes, lambda i, n: emit.store(made, (begin + i,), emit.splat(zero, n), n))

    def move(to: Any, start: Any, count: Any) -> None:
        def part(i: Any, n: int) -> None:
            value = read(given, start + i, n)
            if words:
                value = (
                    emit.load(given, (start + i,), n)
                    if str(given.dtype) == "uint16"
                    else narrow(isa, value, n)
                )
            elif rounded:
                value = pairs.round_bf16(value)
            emit.store(made, (to + i,), value, n)

        _spans(count, lanes, part)

    large = not isinstance(length, int) or length > 1 << 15
    with loop(batch * rows, large) as line:
        image, row = named(tirx.floordiv(line, rows)), named(tirx.floormod(line, rows))
        begin = named(line * (columns * channels))

        def inside() -> None:
            start = named(((image * height + (row - up) * skip[0]) * width) * channels)
            if skip[1] > 1:
                with T.serial(0, columns) as column:
                    move(begin + column * channels, start + column * (skip[1] * channels), channels)
                return
            if side:
                fill(begin, side * channels)
                fill(begin + (width + side) * channels, side * channels)
            move(begin + side * channels, start, width * channels)

        if up:
            with T.If(tirx.all(row >= up, row < height + up)):
                with T.Then():
                    inside()
                with T.Else():
                    fill(begin, columns * channels)
        else:
            inside()
    fill(length, 64)
    return Input(made, rows, columns, channels)


def _spans(count: Any, lanes: int, part: Any) -> None:
    """``part(i, lanes)`` over whole vectors, then one by one."""
    if isinstance(count, int):
        if count >= lanes:
            with T.serial(0, count // lanes) as i:
                part(i * lanes, lanes)
        if count % lanes:
            with T.serial(0, count % lanes) as i:
                part(count // lanes * lanes + i, 1)
        return
    whole = tirx.floordiv(count, lanes)
    with T.serial(0, whole) as i:
        part(i * lanes, lanes)
    with T.serial(0, count - whole * lanes) as i:
        part(whole * lanes + i, 1)
