"""``kernel.linear_affine`` for a few rows: every thread reads 16 bytes, four rows of codes, at once."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.gpu import affine_parts as A
from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.tiles import gather

PADDED = 36
"""Floats between chunks in shared memory, so that threads on different chunks use different banks."""
QUADS = 4
"""Threads on one chunk of a panel: each has four of its 16 rows."""


def gemv(o: A.Operands, per_block: int) -> None:
    """The launches for any number of rows of x, ``per_block`` of them in a block (their activations in registers)."""
    spec, gpu = o.spec, o.gpu
    threads = 256 if o.chunks >= 128 else 128 if o.chunks >= 24 else 64
    low = A.low_rank_rows(o, threads)
    fits = (per_block * o.chunks * PADDED + 2 * o.chunks) * 4 + threads * 16 * per_block <= gpu.shared
    rows = None if fits else A.prepared_rows(o, threads)
    sides = 2 if spec.gated else 1
    grid = [spec.tiles // sides, W.ceil_div(o.rows, per_block)]
    with W.launch(grid, threads) as ((tile, part), thread):
        first = part * per_block
        real_rows = [
            first + m if per_block == 1 else tirx.min(first + m, o.rows - 1) for m in range(per_block)
        ]
        if rows is None:
            held = W.shared(per_block * o.chunks * PADDED)
            for m, row in enumerate(real_rows):
                A.prepare(o, thread, threads, row, lambda k, v, m=m: W.put(held, _place(o, m, k), v))  # type: ignore[misc]
            W.barrier()

            def vector(m: int, chunk: Any, v: int) -> Any:
                return W.get(held, (chunk + m * o.chunks) * PADDED + 4 * v, 4)
        else:

            def vector(m: int, chunk: Any, v: int) -> Any:
                return rows.raw(real_rows[m] * spec.padded + chunk * A.CHUNK + 4 * v, 4)

        tiles = [tile + side * (spec.tiles // 2) for side in range(sides)]
        sums = _partial_sums(o, per_block, threads, thread, tiles, vector)
        _end(o, low, per_block, threads, thread, tiles, sums, first)


def _place(o: A.Operands, m: int, k: Any) -> Any:
    return (tirx.floordiv(k, A.CHUNK) + m * o.chunks) * PADDED + tirx.floormod(k, A.CHUNK)


def _partial_sums(
    o: A.Operands, per_block: int, threads: int, thread: Any, tiles: list[Any], vector: Any
) -> Any:
    """What each thread adds up: ``[side, row of x, row of four]``."""
    spec, slots = o.spec, threads // QUADS
    slot, quad = tirx.floordiv(thread, QUADS), tirx.floormod(thread, QUADS)
    codes = o.panels.words()
    sums = W.local(len(tiles) * per_block * 4)
    for i in range(len(tiles) * per_block * 4):
        W.put(sums, i, W.real(0.0))
    with W.strided(slot, o.chunks, slots) as chunk:
        x, total = W.local(A.CHUNK * per_block), W.local(per_block)
        for m in range(per_block):
            for v in range(A.CHUNK // 4):
                W.put(x, m * A.CHUNK + 4 * v, vector(m, chunk, v), 4)
            W.put(total, m, W.real(0.0))
            with T.serial(0, A.CHUNK, unroll=True) as k:
                W.put(total, m, total[m] + x[k + m * A.CHUNK])
        group = W.named(tirx.floordiv(chunk * A.CHUNK, spec.group)) if spec.groups > 1 else 0
        for side, tile in enumerate(tiles):
            held = W.local(4 * spec.bits, "uint32")
            begin = 0
            for plane in spec.planes:
                for step in range(plane.width):
                    place = (
                        (tile * spec.panel_bytes + plane.offset) // 4
                        if isinstance(tile, int)
                        else (tile * (spec.panel_bytes // 4) + plane.offset // 4)
                    )
                    place = place + (chunk * plane.width + step) * A.TILE + quad * 4
                    W.put(held, begin, W.get(codes, place, 4), 4)
                    begin += 4
            with T.serial(0, 4, unroll=True) as r:
                dots = W.local(per_block)
                for m in range(per_block):
                    W.put(dots, m, W.real(0.0))
                for k in range(A.CHUNK):
                    code = W.named(code_of(spec, held, r, k))
                    for m in range(per_block):
                        W.put(dots, m, dots[m] + code * x[m * A.CHUNK + k])
                row = quad * 4 + r
                scale = W.named(A.scale_of(o, tile, group, row))
                zero = A.zero_of(o, tile, group, row)
                lift, offset = (float(1 << spec.bits),) * 2 if spec.bits <= 4 else (1.0, 0.0)
                zero = W.named(zero + W.real(offset)) if offset else W.named(zero)
                for m in range(per_block):
                    i = (side * per_block + m) * 4
                    value = scale * (dots[m] * W.real(lift) - zero * total[m])
                    W.put(sums, i + r, sums[i + r] + value)
    return sums


def code_of(spec: Any, held: Any, r: Any, k: int) -> Any:
    """Code ``k`` of a chunk of one row as f32: ``1 + q/2^bits`` up to 4 bits, ``q`` above.

    The bits of a code are moved to the place in which they are the fraction of an f32.
    """
    top = 23 - spec.bits if spec.bits <= 4 else 0
    made, begin = None, 0
    for plane in spec.planes:
        per_step = A.CHUNK // plane.width
        step, rest = divmod(k, per_step)
        i, j = divmod(rest, 4)
        word = held[begin + 4 * step + r]
        begin += 4 * plane.width
        have, want = 8 * j + plane.width * i, top + plane.below
        moved = (
            word << W.u32(want - have) if want > have else word >> W.u32(have - want) if have > want else word
        )
        part = moved & W.u32(((1 << plane.width) - 1) << want)
        made = part if made is None else made | part
    if spec.bits <= 4:
        return T.reinterpret("float32", made | W.u32(0x3F800000))
    return T.reinterpret("float32", made | W.u32(0x4B000000)) - W.real(8388608.0)


def _end(
    o: A.Operands, low: W.Flat | None, per_block: int, threads: int, thread: Any, tiles: list[Any], sums: Any,
    first: Any,
) -> None:  # fmt: skip
    """Add up over the threads of a panel and write the rows."""
    spec, gpu = o.spec, o.gpu
    count = len(tiles) * per_block * 4

    def place(i: int, lane: Any) -> Any:
        return (i // 4) * A.TILE + lane * 4 + i % 4

    total = gather(gpu, thread, threads, QUADS, sums, count, place, count * QUADS)
    with W.strided(thread, per_block * A.TILE, threads) as item:
        m, lane = tirx.floordiv(item, A.TILE), tirx.floormod(item, A.TILE)
        row, column = W.named(first + m), W.named(tiles[0] * A.TILE + lane)
        inside = [column < spec.width] if spec.width % A.TILE else []
        inside += [row < o.rows] if per_block > 1 else []
        with W.when(tirx.all(*inside) if inside else None):
            A.finish(
                o,
                low,
                row,
                column,
                [total((side * per_block + m) * A.TILE + lane) for side in range(len(tiles))],
            )
