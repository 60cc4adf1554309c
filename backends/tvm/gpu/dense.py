"""The function of a node ``kernel.linear_dense`` for GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.affine import by_rows
from planish.backends.tvm.gpu.device import Gpu
from planish.backends.tvm.gpu.matrix import element, rounded_bf16
from planish.backends.tvm.gpu.tiles import CHUNK, LANES, PANELS, Source, Store, gather, plain, tensor
from planish.ir.node import Node


@dataclass(frozen=True)
class Dense:
    """One node: its buffers, N (``outputs``), K (``length``), and how the weight is laid out."""

    gpu: Gpu
    x: W.Flat
    tiles: W.Flat
    bias: W.Flat | None
    residual: W.Flat | None
    out: W.Flat
    outputs: int
    length: int
    tile: int
    depth: int
    activation: str

    @property
    def rows(self) -> Any:
        """Rows of x."""
        return W.product(self.x.sizes[:-1])

    @property
    def steps(self) -> int:
        """Stored groups of ``depth`` elements of a row."""
        return -(-self.length // self.depth)

    def input(self, row: Any, k: Any) -> Any:
        """One element of x as it is multiplied, in f32."""
        value = self.x.load(row * self.length + k)
        is_rounded = self.tiles.dtype == "bfloat16" and self.depth == 2 and self.x.dtype != "bfloat16"
        return rounded_bf16(value) if is_rounded else value

    def finish(self, row: Any, column: Any, total: Any) -> None:
        """Write one element of the result from its sum."""
        value = W.named(total if self.bias is None else total + self.bias.load(column))
        value = W.ACTIVATIONS[self.activation](value)
        place = row * self.outputs + column
        self.out.store(place, value if self.residual is None else value + self.residual.load(place))


def build(node: Node, gpu: Gpu) -> Any:
    """The PrimFunc, scheduled; the number of rows decides when it is called if it is not known before."""
    outputs, tile, depth, activation = node.args[4:]

    def body(flats: list[W.Flat], out: W.Flat) -> None:
        parts = iter(flats)
        x, tiles, bias, residual = [next(parts) if isinstance(a, Node) else None for a in node.args[:4]]
        assert x is not None and tiles is not None
        d = Dense(gpu, x, tiles, bias, residual, out, outputs, int(x.sizes[-1]), tile, depth, activation)
        few = min(d.rows, 4) if isinstance(d.rows, int) else 4
        by_rows(d.rows, lambda: _gemv(d, 1), lambda: _gemv(d, few), lambda: _gemm(d))

    return W.function(node, gpu, body)


def _gemv(d: Dense, per_block: int) -> None:
    """One tile of the weight a block, 16 bytes at once by each thread, for ``per_block`` rows of x."""
    threads = 128 if d.steps >= 256 else 64
    kind = d.tiles.dtype
    per_word = 1 if kind == "float32" else 2
    height = 4 * per_word // d.depth  # rows of the weight in 16 bytes
    lanes = d.tile // height
    slots = threads // lanes
    grid = [int(d.tiles.sizes[0]), W.ceil_div(d.rows, per_block)]
    with W.launch(grid, threads) as ((tile, part), thread):
        lane, slot = tirx.floormod(thread, lanes), tirx.floordiv(thread, lanes)
        first = part * per_block
        rows = [first + m if per_block == 1 else tirx.min(first + m, d.rows - 1) for m in range(per_block)]
        weights = d.tiles.data if per_word == 1 else d.tiles.words()
        sums = W.local(per_block * height)
        for i in range(per_block * height):
            W.put(sums, i, W.real(0.0))
        with W.strided(slot, d.steps, slots) as step:
            held = W.local(4, "float32" if per_word == 1 else "uint32")
            W.put(held, 0, W.get(weights, ((tile * d.steps + step) * lanes + lane) * 4, 4), 4)
            xs = W.local(per_block * d.depth)
            for m in range(per_block):
                for i in range(d.depth):
                    k = step * d.depth + i
                    is_whole = d.length % d.depth == 0
                    W.put(xs, m * d.depth + i, d.input(rows[m], k if is_whole else tirx.min(k, d.length - 1)))
            for place in range(4 * per_word):
                word, high = held[place // per_word], place % per_word == 1
                value = W.named(word if per_word == 1 else element(d.gpu, kind, word, high))
                r, i = divmod(place, d.depth)
                for m in range(per_block):
                    at = m * height + r
                    W.put(sums, at, sums[at] + value * xs[m * d.depth + i])

        def place_of(i: int, lane: Any) -> Any:
            return (i // height) * d.tile + lane * height + i % height

        total = gather(d.gpu, thread, threads, lanes, sums, per_block * height, place_of, per_block * d.tile)
        with W.strided(thread, per_block * d.tile, threads) as item:
            row, column = (
                W.named(first + tirx.floordiv(item, d.tile)),
                W.named(tile * d.tile + tirx.floormod(item, d.tile)),
            )
            inside = [column < d.outputs] if d.outputs % d.tile else []
            inside += [row < d.rows] if per_block > 1 else []
            with W.when(tirx.all(*inside) if inside else None):
                d.finish(row, column, total(item))


def _gemm(d: Dense) -> None:
    """Tiles of both factors; by tensor cores where both are f16 or bf16."""
    kind = d.tiles.dtype

    def load_x(thread: Any, threads: int, first: Any, height: int, chunk: Any, store: Store) -> None:
        with W.strided(thread, height * (CHUNK // 2), threads) as item:
            m, k = tirx.floordiv(item, CHUNK // 2), tirx.floormod(item, CHUNK // 2) * 2
            row, at = W.named(tirx.min(first + m, d.rows - 1)), W.named(chunk * CHUNK + k)
            store(m, k, *[_inside(d, at + i, lambda p: d.input(row, p)) for i in range(2)])

    def load_w(thread: Any, threads: int, across: Any, chunk: Any, store: Store) -> None:
        with W.strided(thread, LANES * PANELS * (CHUNK // 2), threads) as item:
            n, k = tirx.floormod(item, LANES * PANELS), tirx.floordiv(item, LANES * PANELS) * 2
            column, at = (
                W.named(tirx.min(across * (LANES * PANELS) + n, d.outputs - 1)),
                W.named(chunk * CHUNK + k),
            )
            base = W.named(tirx.floordiv(column, d.tile) * (d.steps * d.tile * d.depth))
            lane = W.named(tirx.floormod(column, d.tile) * d.depth)

            def weight(p: Any) -> Any:
                step, i = (tirx.floordiv(p, d.depth), tirx.floormod(p, d.depth)) if d.depth > 1 else (p, 0)
                return d.tiles.load(base + step * (d.tile * d.depth) + lane + i)

            store(n, k, *[_inside(d, at + i, weight) for i in range(2)])

    def end(row: Any, lane: Any, across: Any, sums: list[Any]) -> None:
        for j, total in enumerate(sums):
            column = W.named((across * PANELS + j) * LANES + lane)
            with W.when(None if d.outputs % (LANES * PANELS) == 0 else column < d.outputs):
                d.finish(row, column, total)

    source = Source(
        d.rows, W.ceil_div(d.length, CHUNK), W.ceil_div(d.outputs, LANES * PANELS), load_x, load_w, end
    )
    is_rounded = kind == "bfloat16" and d.depth == 2
    if d.gpu.matrix != "none" and kind != "float32" and (d.x.dtype == kind or is_rounded):
        tensor(d.gpu, kind, source)
    else:
        plain(source, 8 if isinstance(d.rows, int) and d.rows >= 1024 else 4)


def _inside(d: Dense, k: Any, value: Any) -> Any:
    """An element along K; zero past the end."""
    if d.length % CHUNK == 0:
        return value(k)
    return T.if_then_else(k < d.length, value(k), W.real(0.0))
