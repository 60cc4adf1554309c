"""Convolution over images with channels last: blocks of pixels by output channels in registers.

A window row lies consecutively in memory, so a block runs over whole window rows; borders and the rounding to bf16 are
dealt with by a padded copy of the input, which is left out where neither is needed.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit, math, pairs
from planish.backends.tvm.cpu.conv_input import Input, copied, direct
from planish.backends.tvm.cpu.conv_words import (
    Output,
    Results,
    blocks,
    flat,
    loop,
    named,
    read,
    rounding,
    settled,
    tensor_buffer,
)
from planish.backends.tvm.cpu.variant import DEFAULT, Variant, variant
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.kernels.conv import Runs, runs_of
from planish.ir.node import Node

CACHED = 256 << 10
"""Bytes of weights up to which tasks go over rows first, since all weights stay in a core's cache."""


@dataclass(frozen=True)
class Block:
    """Registers of one step: ``rows`` by ``columns`` pixels, ``vectors`` of output channels."""

    rows: int
    columns: int
    vectors: int


@dataclass(frozen=True)
class Weights:
    """Tiles ``[count, steps, tile*depth]`` as a flat buffer, ``depth`` 2 if they are of bf16."""

    buffer: Any
    runs: Runs
    tile: int
    depth: int
    half: bool
    chosen: Variant = DEFAULT

    @property
    def length(self) -> int:
        """Elements of one tile."""
        return self.runs.count * self.runs.padded * self.tile


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """Pixels by vectors of channels in registers, steps of a turn, and whether rows or weights are gone over first."""
    tiles, tile = node.args[1], node.args[9]
    vectors = min(2, tile // isa.lanes)
    most = (28 if isa.registers == 32 else 12) // vectors
    made = [variant(pixels=most * 3 // 4), variant(pixels=most // 2), variant(unroll=4)]
    if vectors == 2:
        made.append(variant(vectors=1, pixels=most * 2))
    if tiles.shape[0] > 1:
        made.append(variant(rows_first=int(int(tiles.tensor.nbytes) > CACHED)))
    return tuple(made)


def build(node: Node, isa: Isa, chosen: Variant = DEFAULT) -> Any:
    """The function of a ``kernel.conv``: (x, tiles, bias?, residual?, out)."""
    x, tiles, bias, residual, channels, size, stride, padding, dilation, tile, depth, activation = node.args
    dims = Dims()
    runs = runs_of(size, x.shape[3], dilation, depth)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("conv")
        T.func_attr({"tirx.noalias": True})
        source = T.arg("x", tensor_buffer(dims, x))
        weight = T.arg("tiles", tensor_buffer(dims, tiles))
        extra = {}
        for name, value in (("bias", bias), ("residual", residual)):
            if value is not None:
                extra[name] = T.arg(name, tensor_buffer(dims, value))
        out = T.arg("out", tensor_buffer(dims, node))
        with rounding(isa):
            weights = Weights(flat(weight), runs, tile, depth, tiles.dtype.name == "bf16", chosen)
            shape = list(map(settled, dims.shape(x.shape)))
            point = tuple(size) == (1, 1) and not any(padding)
            copy = any(padding) or weights.half or x.dtype.name != "f32"
            skip = tuple(stride) if point and copy else (1, 1)
            make = copied if copy else direct
            image = make(isa, source, shape, tuple(padding), skip, weights.half and isa.bf16, weights.half)
            step = (1, 1) if skip != (1, 1) else tuple(stride)
            added, more = (flat(b) if b is not None else None for b in map(extra.get, ("bias", "residual")))
            stored = tiles.shape[0] * tile
            target = Output(flat(out), added, more, channels, stored, activation)
            sizes = list(map(settled, dims.shape(node.shape)))
            if point and step == (1, 1):
                sizes = [sizes[0], 1, settled(sizes[1] * sizes[2]), sizes[3]]
                image = image.joined()
            _compute(isa, image, weights, target, sizes, size, step, tuple(dilation))
    return builder.get()


def _compute(isa: Isa, image: Input, weights: Weights, target: Output, sizes: Any, size: Any, stride: Any,
             dilation: Any) -> None:  # fmt: skip
    batch, height, width, channels = sizes
    vectors = weights.chosen.get("vectors", min(2, weights.tile // isa.lanes))
    most = weights.chosen.get("pixels", (28 if isa.registers == 32 else 12) // vectors)
    rows, columns = block_of(height, width, most)
    tiles = -(-channels // weights.tile)
    row_blocks = height if rows == 1 else -(-height // rows)
    bytes_of_weights = weights.length * tiles * (2 if weights.half else 4)
    lines = settled(batch * row_blocks)

    def row(line: Any, tile: Any) -> None:
        image_of, top = named(tirx.floordiv(line, row_blocks)), tirx.floormod(line, row_blocks) * rows
        if rows > 1 and height % rows:
            top = tirx.min(top, height - rows)
        top = named(top)

        def block(left: Any, count: int) -> None:
            left = named(left)
            parts = weights.tile // (vectors * isa.lanes)
            with T.serial(0, parts) if parts > 1 else nullcontext(0) as part:
                _block(isa, image, weights, target, sizes, Block(rows, count, vectors), (image_of, top, left),
                       tile, part, size, stride, dilation)  # fmt: skip

        blocks(width, columns, block)

    big = (
        not isinstance(batch * height * width, int)
        or batch * height * width * weights.length * tiles > 1 << 19
    )
    if weights.chosen.get("rows_first", int(bytes_of_weights <= CACHED)) or tiles == 1:
        with loop(lines, big) as line, T.serial(0, tiles) as tile:
            row(line, tile)
    else:
        with loop(tiles * lines, big) as task:
            row(tirx.floormod(task, lines), tirx.floordiv(task, lines))


def block_of(height: Any, width: Any, most: int) -> tuple[int, int]:
    """Rows and columns of a block of at most ``most`` pixels that covers an image in few equal blocks."""
    if not isinstance(width, int):
        return 1, min(most, 8)
    if width == 0:
        return 1, 1
    count = -(-width // most)
    columns = -(-width // count)
    if count > 1 or not isinstance(height, int) or height == 0:
        return 1, columns

    def cost(rows: int) -> float:
        few = max(1.0, 7 / (rows * columns))
        return -(-height // rows) * rows * few

    return min(range(1, min(most // columns, height) + 1), key=cost), columns


def _block(isa: Isa, image: Input, weights: Weights, target: Output, sizes: Any, block: Block, place: Any, tile: Any,
           part: Any, size: Any, stride: Any, dilation: Any) -> None:  # fmt: skip
    batch, top, left = place
    lanes, vectors = isa.lanes, block.vectors
    pixels = [(r, c) for r in range(block.rows) for c in range(block.columns)]
    offsets = [
        image.offset(r * stride[0], c * stride[1]) if r else c * stride[1] * image.channels for r, c in pixels
    ]
    total = emit.registers(len(pixels) * vectors, lanes, "float32")
    for i in range(len(pixels) * vectors):
        emit.store(total, (i, 0), emit.splat(tirx.FloatImm("float32", 0.0), lanes), lanes)
    base = named(image.at(batch, top * stride[0], left * stride[1]))
    runs, depth = weights.runs, weights.depth
    down = named(image.offset(dilation[0], 0))
    first = tile * weights.length + part * vectors * lanes * depth
    per_row = runs.count // size[0]
    apart = max(1, stride[1] * image.channels // depth)
    with T.serial(0, size[0]) as row:
        for column in range(per_row):
            begin = named(base + row * down + image.offset(0, column * dilation[1]))
            run = named(first + (row * per_row + column) * (runs.padded * weights.tile))

            def step(k: Any, begin: Any = begin, run: Any = run) -> None:
                _step(isa, image, weights, total, [begin + o + k * depth for o in offsets],
                      run + k * (weights.tile * depth), vectors)  # fmt: skip

            # neighbouring pixels must not share inputs within a turn: LLVM would keep and spill them
            _unrolled(runs.padded // depth, min(apart, weights.chosen.get("unroll", 8)), step)
    target.finish(
        isa, Results(total, block.rows, block.columns, vectors), (batch, top, left), sizes,
        tile * weights.tile + part * (vectors * lanes),
    )  # fmt: skip


def _unrolled(steps: int, most: int, step: Any) -> None:
    """``steps`` steps, up to ``most`` in one turn of a loop."""
    by = next((u for u in range(min(8, most, steps), 2, -1) if steps % u == 0), min(4, most, steps))
    if steps // by > 1:
        with T.serial(0, steps // by) as turn:
            for u in range(by):
                step(turn * by + u)
    else:
        for u in range(by):
            step(u)
    for u in range(steps // by * by, steps):
        step(u)


def _step(
    isa: Isa, image: Input, weights: Weights, total: Any, places: Any, weight: Any, vectors: int
) -> None:
    """One input (a pair of inputs for bf16) of every pixel times the weights of every channel of the block."""
    lanes = isa.lanes

    def accumulate(i: int, value: Any) -> None:
        emit.store(total, (i, 0), value, lanes)

    if not weights.half:
        for p, place in enumerate(places):
            for v in range(vectors):
                w = read(weights.buffer, weight + v * lanes, lanes)
                x = emit.splat(image.buffer[place], lanes)
                i = p * vectors + v
                accumulate(i, math.fma(x, w, emit.load(total, (i, 0), lanes)))
        return
    for p, place in enumerate(places):
        for v in range(vectors):
            i = p * vectors + v
            pair = emit.load(weights.buffer, (weight + v * lanes * 2,), lanes * 2)
            have = emit.load(total, (i, 0), lanes)
            if isa.bf16:
                both = emit.splat(T.reinterpret("int32", emit.load(image.buffer, (place,), 2)), 16)
                accumulate(i, pairs.dot_pairs(have, both, T.reinterpret("int32x16", pair)))
                continue
            words = T.reinterpret(f"uint32x{lanes}", pair)
            first = emit.splat(image.buffer[place], lanes)
            second = emit.splat(image.buffer[place + 1], lanes)
            accumulate(
                i, math.fma(second, pairs.high_half(words), math.fma(first, pairs.low_half(words), have))
            )
