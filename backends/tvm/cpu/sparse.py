"""Linear layers that keep ``n`` of each ``m`` inputs, on processors: inputs are looked up by the stored positions.

For each block of ``m`` inputs a register repeats these; each lane, an output, picks its own by a permutation of lanes,
whose low bits are the position. So no weight is expanded, and as many products are computed as values are stored.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.dense_block import opaque
from planish.backends.tvm.cpu.sparse_block import SparseBuffers, SparseShape, block, widen
from planish.backends.tvm.cpu.variant import DEFAULT, Variant, thresholds, variant
from planish.backends.tvm.dims import Dims
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node
from planish.ir.types import product

_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8"}
_PARALLEL_PRODUCTS = 1 << 20
"""From so many multiply-adds on, threads pay off: about 20 microseconds of one core."""
_PARALLEL_BYTES = 1 << 18
"""From so many bytes of weight on, threads pay off whatever the number of rows."""
_CHUNK_BYTES = 1 << 19
"""Bytes of inputs that stay in the second-level cache while the panels of the weight pass by."""


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """Rows of a register block, bytes of the inputs of a chunk, products from which the panels run in parallel."""
    shape = _shape(node, isa, DEFAULT)
    count = product(node.shape[:-1])
    made: list[Variant] = []
    if not isinstance(count, int) or count > 4:
        most = shape.block_rows[0]
        made += [variant(rows=most // 2), variant(rows=most * 2)]
        made += [variant(chunk=size) for size in (_CHUNK_BYTES // 4, _CHUNK_BYTES * 4)]
    if shape.weight_bytes < _PARALLEL_BYTES:
        made += thresholds(product((count, shape.rows, shape.count)), _PARALLEL_PRODUCTS)
    return tuple(made)


def _shape(node: Node, isa: Isa, chosen: Variant) -> SparseShape:
    x, values, _, _, _, n, m, rows, activation = node.args
    return SparseShape(
        isa, rows, int(x.shape[-1]), n, m, _NAMES[values.dtype.name], _NAMES[x.dtype.name], activation, chosen=chosen
    )  # fmt: skip


def build(node: Node, isa: Isa, chosen: Variant = DEFAULT) -> Any:
    """The function of a ``kernel.linear_sparse`` node for an instruction set."""
    x, values, positions, bias, residual, _, _, rows, _ = node.args
    shape = _shape(node, isa, chosen)
    dims = Dims()
    with IRBuilder() as builder, T.prim_func():
        T.func_name("linear_sparse")
        T.func_attr({"tirx.noalias": True})
        given = {
            id(n): T.arg(f"a{i}", T.Buffer(dims.shape(n.shape), _NAMES[n.dtype.name]))
            for i, n in enumerate(node.operands)
        }
        out = T.arg("out", T.Buffer(dims.shape(node.shape), shape.kind))
        count: Any = 1
        for size in dims.shape(x.shape[:-1]):
            count = count * size
        panels = shape.panels
        buffers = SparseBuffers(
            _flat(given[id(x)], count * shape.length, shape.kind),
            _flat(given[id(values)], panels * shape.count * shape.tile, shape.weight),
            _flat(given[id(positions)], panels * shape.words * shape.tile * 4, "uint8"),
            None if bias is None else given[id(bias)],
            None
            if residual is None
            else _flat(given[id(residual)], count * rows, _NAMES[residual.dtype.name]),
            _flat(out, count * rows, shape.kind),
        )
        _body(shape, buffers, count)
    return builder.get()


def _flat(buffer: Any, count: Any, kind: str) -> Any:
    return T.decl_buffer((count,), kind, data=buffer.data)


def _body(shape: SparseShape, buffers: SparseBuffers, count: Any) -> None:
    if isinstance(count, int) and not count:
        T.evaluate(0)
        return
    if not shape.plain:
        buffers = _widened(shape, buffers, count)
    products = count * (shape.rows * shape.count)
    least = shape.chosen.least(_PARALLEL_PRODUCTS)
    if shape.weight_bytes >= _PARALLEL_BYTES:
        _panels(shape, buffers, count, T.parallel)
    elif isinstance(count, int):
        _panels(shape, buffers, count, T.parallel if products >= least else T.serial)
    else:
        with T.If(products >= tirx.IntImm("int64", least)):
            with T.Then():
                _panels(shape, buffers, count, T.parallel)
            with T.Else():
                _panels(shape, buffers, count, T.serial)


def _widened(shape: SparseShape, buffers: SparseBuffers, count: Any) -> SparseBuffers:
    """The inputs in f32, each row followed by zeros up to whole blocks."""
    rows = max(count, 1) if isinstance(count, int) else tirx.max(count, tirx.IntImm("int64", 1))
    scratch = T.alloc_buffer((rows * shape.stride,), "float32")
    with T.serial(0, count) as row:
        widen(shape, buffers.x, scratch, opaque(row * shape.length), opaque(row * shape.stride))
    return SparseBuffers(
        scratch, buffers.values, buffers.positions, buffers.bias, buffers.residual, buffers.out
    )


def _panels(shape: SparseShape, buffers: SparseBuffers, count: Any, loop: Any) -> None:
    """Every panel of the weight for every chunk of rows; chunks follow one another, panels within a chunk."""
    most = shape.block_rows[0]
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


def _chunk(shape: SparseShape, buffers: SparseBuffers, begin: Any, end: Any, panel: Any) -> None:
    """Blocks of rows from ``begin`` to ``end`` for one panel; what is left is cut into blocks of half the height."""
    for height in shape.block_rows:
        blocks = (end - begin) // height
        if isinstance(blocks, int) and not blocks:
            continue
        with T.serial(0, blocks if isinstance(blocks, int) else opaque(blocks)) as i:
            block(shape, buffers, height, begin + i * height, panel)
        begin = begin + blocks * height
        begin = begin if isinstance(begin, int) else opaque(begin)
