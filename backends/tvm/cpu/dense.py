"""Dense linear layers on processors: one function for one row, few rows and many rows."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import emit, pairs
from planish.backends.tvm.cpu.dense_block import DenseBuffers, DenseShape, block, opaque, to_f32
from planish.backends.tvm.cpu.variant import DEFAULT, Variant, thresholds, variant
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node
from planish.ir.types import product

_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_PARALLEL_PRODUCTS = 1 << 20
"""From so many multiply-adds on, threads pay off: about 20 microseconds of one core."""
_PARALLEL_BYTES = 1 << 18
"""From so many bytes of weight on, threads pay off whatever the number of rows."""
_PARALLEL_INPUTS = 1 << 18
"""From so many inputs on, threads convert them."""
_CHUNK_BYTES = 1 << 19
"""Bytes of inputs that stay in the second-level cache while the panels of the weight pass by."""


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """Rows of a register block, bytes of the inputs of a chunk, products from which the panels run in parallel."""
    shape = _shape(node, isa, DEFAULT)
    count = product(node.shape[:-1])
    made: list[Variant] = []
    if not isinstance(count, int) or count > 4:
        heights = {12: (8, 14), 24: (12, 28), 6: (4,)}.get(shape.block_rows[-1], ())
        made += [variant(rows=rows) for rows in heights]
        made += [variant(chunk=size) for size in (_CHUNK_BYTES // 4, _CHUNK_BYTES * 4)]
    if shape.weight_bytes < _PARALLEL_BYTES:
        made += thresholds(product((count, shape.rows, shape.length)), _PARALLEL_PRODUCTS)
    elif shape.weight_bytes < 4 * _PARALLEL_BYTES:
        made.append(variant(always=4 * _PARALLEL_BYTES))
    return tuple(made)


def _shape(node: Node, isa: Isa, chosen: Variant) -> DenseShape:
    x, tiles, _, _, rows, tile, depth, activation = node.args
    return DenseShape(
        isa, rows, int(x.shape[-1]), tile, depth, _NAMES[tiles.dtype.name], _NAMES[x.dtype.name], activation, chosen
    )  # fmt: skip


def build(node: Node, isa: Isa, chosen: Variant = DEFAULT) -> Any:
    """The function of a ``kernel.linear_dense`` node for an instruction set."""
    x, tiles, bias, residual, rows, tile, depth, _ = node.args
    shape = _shape(node, isa, chosen)
    dims = Dims()
    with IRBuilder() as builder, T.prim_func():
        T.func_name("linear_dense")
        T.func_attr({"tirx.noalias": True})
        given = {
            id(n): T.arg(f"a{i}", T.Buffer(dims.shape(n.shape), _NAMES[n.dtype.name]))
            for i, n in enumerate(node.operands)
        }
        out = T.arg("out", T.Buffer(dims.shape(node.shape), shape.kind))
        count = _product(dims.shape(x.shape[:-1]))
        buffers = DenseBuffers(
            _flat(given[id(x)], count * shape.length, shape.kind),
            _flat(given[id(tiles)], shape.panels * shape.steps * tile * depth, shape.weight),
            None if bias is None else given[id(bias)],
            None
            if residual is None
            else _flat(given[id(residual)], count * rows, _NAMES[residual.dtype.name]),
            _flat(out, count * rows, shape.kind),
        )
        if isa.bf16 and depth == 2:
            with pairs.imported():
                _body(shape, buffers, count)
        else:
            _body(shape, buffers, count)
    return builder.get()


def _product(sizes: list[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def _flat(buffer: Any, count: Any, kind: str) -> Any:
    return T.decl_buffer((count,), kind, data=buffer.data)


def _body(shape: DenseShape, buffers: DenseBuffers, count: Any) -> None:
    if shape.source == "scratch":
        buffers = _converted(shape, buffers, count)
    products = count * (shape.rows * shape.length)
    least = shape.chosen.least(_PARALLEL_PRODUCTS)
    if shape.weight_bytes >= shape.chosen.get("always", _PARALLEL_BYTES):
        _panels(shape, buffers, count, T.parallel)
    elif isinstance(count, int):
        _panels(shape, buffers, count, T.parallel if products >= least else T.serial)
    else:
        with T.If(products >= _long(least)):
            with T.Then():
                _panels(shape, buffers, count, T.parallel)
            with T.Else():
                _panels(shape, buffers, count, T.serial)


def _panels(shape: DenseShape, buffers: DenseBuffers, count: Any, loop: Any) -> None:
    """Every panel of the weight for every chunk of rows; chunks follow one another, panels within a chunk."""
    most = shape.block_rows[-1]
    size = shape.chosen.get("chunk", _CHUNK_BYTES)
    chunk = most * min(20 * max(1, size // _CHUNK_BYTES), max(4, size // (4 * shape.length * most)))
    if isinstance(count, int) and count <= chunk:
        with loop(0, shape.panels) as panel:
            _chunk(shape, buffers, 0, count, panel)
        return
    chunks = (count + (chunk - 1)) // chunk
    with loop(0, chunks * shape.panels) as task:
        begin = opaque(tirx.floordiv(task, shape.panels) * chunk)
        panel = opaque(tirx.floormod(task, shape.panels))
        _chunk(shape, buffers, begin, opaque(tirx.min(begin + chunk, count)), panel)


def _chunk(shape: DenseShape, buffers: DenseBuffers, begin: Any, end: Any, panel: Any) -> None:
    """Blocks of rows from ``begin`` to ``end`` for one panel.

    What is left after blocks of full height takes one lower block that ends at the last row, and so computes a few
    rows again; where there are not so many rows at all, two blocks that overlap.
    """
    heights = shape.block_rows
    most = heights[-1]
    whole = (end - begin) // most
    if not isinstance(whole, int) or whole:
        with T.serial(0, whole if isinstance(whole, int) else opaque(whole)) as i:
            block(shape, buffers, most, begin + i * most, panel)
    rest = end - begin - whole * most
    rest = rest if isinstance(rest, int) else opaque(rest)
    for below, height, above in zip((0, *heights), heights, (*heights[1:], most), strict=False):
        times: Any
        if isinstance(rest, int) and isinstance(end, int):
            times = int(below < rest <= height <= end) + 2 * int(height < rest < above and end < above)
            step: Any = max(rest - height, 0)
            if not times:
                continue
        else:
            fits = tirx.all(rest > below, rest <= height, end >= height)
            twice = tirx.all(rest > height, rest < above, end < above)
            times = opaque(tirx.Select(fits, _long(1), tirx.Select(twice, _long(2), _long(0))))
            step = opaque(tirx.max(rest - height, 0))
        with T.serial(0, times) as i:
            # the last of one or two blocks ends at the last row
            block(shape, buffers, height, end - height - (times - 1 - i) * step, panel)


def _long(number: int) -> Any:
    return tirx.IntImm("int64", number)


def _converted(shape: DenseShape, buffers: DenseBuffers, count: Any) -> DenseBuffers:
    """The inputs in the form that blocks read: f32, rounded to bf16 for pairs, or pairs of bf16 as u32."""
    rows = max(count, 1) if isinstance(count, int) else tirx.max(count, _long(1))
    scratch = T.alloc_buffer((rows * shape.stride,), "uint32" if shape.in_pairs else "float32")

    def convert(loop: Any) -> None:
        with loop(0, count) as row:
            _convert_row(shape, buffers.x, scratch, opaque(row * shape.length), opaque(row * shape.stride))

    if isinstance(count, int):
        convert(T.parallel if count * shape.length >= _PARALLEL_INPUTS else T.serial)
    else:
        with T.If(count * shape.length >= _PARALLEL_INPUTS):
            with T.Then():
                convert(T.parallel)
            with T.Else():
                convert(T.serial)
    return DenseBuffers(scratch, buffers.tiles, buffers.bias, buffers.residual, buffers.out)


def _convert_row(shape: DenseShape, x: Any, scratch: Any, source: Any, target: Any) -> None:
    lanes = 16 if shape.in_pairs else shape.isa.lanes
    rounds = shape.depth == 2 and shape.kind != "bfloat16"
    whole = shape.length // lanes

    def scalar(column: int) -> Any:
        if column >= shape.length:
            return tirx.FloatImm("float32", 0.0)
        value = to_f32(x[source + column], 1)
        return pairs.round_bf16(value) if rounds else value

    with T.serial(0, whole) as i:
        v = emit.load(x, (source + i * lanes,), lanes)
        if shape.in_pairs:
            bits = pairs.round_pairs(to_f32(v, lanes)) if rounds else T.reinterpret("uint16x16", v)
            emit.store(scratch, (target + i * 8,), T.reinterpret("uint32x8", bits), 8)
        else:
            wide = to_f32(v, lanes)
            emit.store(scratch, (target + i * lanes,), pairs.round_bf16(wide) if rounds else wide, lanes)
    first = whole * lanes
    if not shape.in_pairs:
        for column in range(first, shape.stride):
            T.buffer_store(scratch, scalar(column), [target + column])
        return
    for step in range(first // 2, shape.steps):
        low, high = (T.reinterpret("uint32", scalar(2 * step + each)) for each in (0, 1))
        low = tirx.shift_right(low, tirx.IntImm("uint32", 16))
        T.buffer_store(scratch, tirx.bitwise_or(low, high), [target + step])
