"""Products ``x @ w.T`` by tiles in shared memory: with plain arithmetic, or by tensor cores.

A block computes 64 columns, four panels of 16, and some rows. What is multiplied comes by two functions that a family
of kernels gives, two elements along K at a time, 32 per round; what is done with the sums by a third.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.device import Gpu
from planish.backends.tvm.gpu.matrix import WARP, Multiplier, pack

CHUNK = 32
"""Elements along K of one round."""
LANES = 16
"""Columns of a panel."""
PANELS = 4
"""Panels of a block."""

Store = Callable[[Any, Any, Any, Any], None]
"""``store(row or column, k, value, value of k + 1)`` with even k."""


@dataclass(frozen=True)
class Source:
    """What a product is made of; ``rows`` and ``chunks`` are its sizes, ``across`` the blocks along the columns.

    ``load_x(thread, threads, first, height, chunk, store)`` brings ``height`` rows from ``first``;
    ``load_w(thread, threads, across, chunk, store)`` the 64 columns of a block, column ``16*j + lane``;
    ``end(row, lane, across, sums)`` takes the sums of the four panels. With ``scale(row, lane, panel, across, chunk)``
    the sum of each round is multiplied by it (tensor cores only).
    """

    rows: Any
    chunks: int
    across: int
    load_x: Callable[[Any, int, Any, int, Any, Store], None]
    load_w: Callable[[Any, int, Any, Any, Store], None]
    end: Callable[[Any, Any, Any, list[Any]], None]
    scale: Callable[[Any, Any, Any, Any, Any], Any] | None = None


def plain(source: Source, per_thread: int = 4) -> None:
    """One launch with 256 threads; each has ``per_thread`` rows of one column of every panel."""
    threads, height = 256, 16 * per_thread
    stride = height + 4
    with W.launch([source.across, W.ceil_div(source.rows, height)], threads) as ((across, down), thread):
        tx, ty = tirx.floormod(thread, LANES), tirx.floordiv(thread, LANES)
        x, w = W.shared(CHUNK * stride), W.shared(CHUNK * LANES * PANELS)
        sums = W.local(per_thread * PANELS)
        for i in range(per_thread * PANELS):
            W.put(sums, i, W.real(0.0))

        def store_x(m: Any, k: Any, first: Any, second: Any) -> None:
            W.put(x, k * stride + m, first)
            W.put(x, k * stride + stride + m, second)

        def store_w(n: Any, k: Any, first: Any, second: Any) -> None:
            place = tirx.floormod(n, LANES) * PANELS + tirx.floordiv(n, LANES)
            W.put(w, k * (LANES * PANELS) + place, first)
            W.put(w, (k + 1) * (LANES * PANELS) + place, second)

        with T.serial(0, source.chunks) as chunk:
            source.load_x(thread, threads, down * height, height, chunk, store_x)
            source.load_w(thread, threads, across, chunk, store_w)
            W.barrier()
            with T.serial(0, CHUNK) as k:
                xs, ws = W.local(per_thread), W.local(PANELS)
                for i in range(0, per_thread, 4):
                    W.put(xs, i, W.get(x, k * stride + ty * per_thread + i, 4), 4)
                W.put(ws, 0, W.get(w, k * (LANES * PANELS) + tx * PANELS, 4), 4)
                for i in range(per_thread):
                    for j in range(PANELS):
                        W.put(sums, i * PANELS + j, sums[i * PANELS + j] + xs[i] * ws[j])
            W.barrier()
        for i in range(per_thread):
            row = W.named(down * height + ty * per_thread + i)
            with W.when(row < source.rows):
                source.end(row, tx, across, [sums[i * PANELS + j] for j in range(PANELS)])


ROW_WORDS = CHUNK // 2 + 4
"""Words of a row in shared memory: eight rows begin in different banks."""


def tensor(gpu: Gpu, kind: str, source: Source, warps: int = 4, tall: int = 2) -> None:
    """One launch by tensor cores on elements of ``kind``; each warp has ``16*tall`` rows of all columns."""
    threads, height = warps * WARP, 16 * tall * warps
    columns = LANES * PANELS
    with W.launch([source.across, W.ceil_div(source.rows, height)], threads) as ((across, down), thread):
        lane, warp = tirx.floormod(thread, WARP), tirx.floordiv(thread, WARP)
        group, pair = tirx.floordiv(lane, 4), tirx.floormod(lane, 4)
        x, w = W.shared(height * ROW_WORDS, "uint32"), W.shared(columns * ROW_WORDS, "uint32")
        multiply = Multiplier.make(gpu, kind, thread, threads)
        count = tall * (columns // 8) * 4
        sums = W.local(count)
        fresh = W.local(count) if source.scale is not None else sums
        for i in range(count):
            W.put(sums, i, W.real(0.0))

        def store(buffer: Any) -> Store:
            return lambda row, k, first, second: W.put(
                buffer, row * ROW_WORDS + tirx.floordiv(k, 2), pack(gpu, kind, first, second)
            )

        with T.serial(0, source.chunks) as chunk:
            source.load_x(thread, threads, down * height, height, chunk, store(x))
            source.load_w(thread, threads, across, chunk, store(w))
            W.barrier()
            if source.scale is not None:
                for i in range(count):
                    W.put(fresh, i, W.real(0.0))
            with T.serial(0, CHUNK // 16, unroll=True) as half:
                a, b = W.local(4 * tall, "uint32"), W.local(2 * (columns // 8), "uint32")
                for i in range(tall):
                    for part in range(4):
                        row = warp * (16 * tall) + i * 16 + group + 8 * (part % 2)
                        W.put(a, i * 4 + part, x[row * ROW_WORDS + half * 8 + pair + 4 * (part // 2)])
                for t in range(columns // 8):
                    for part in range(2):
                        W.put(b, t * 2 + part, w[(t * 8 + group) * ROW_WORDS + half * 8 + pair + 4 * part])
                for i in range(tall):
                    multiply.each(
                        columns // 8,
                        lambda t, i=i, a=a, b=b: multiply(
                            a, i * 4, b, t * 2, fresh, (i * (columns // 8) + t) * 4
                        ),  # type: ignore[misc]
                    )
            if source.scale is not None:
                for i, row, at, place in _places(tall, warp, group, pair, down * height):
                    value = fresh[i] * source.scale(row, place, at, across, chunk)
                    W.put(sums, i, sums[i] + value)
            W.barrier()
        rows: dict[int, list[tuple[int, Any, Any]]] = {}
        for i, row, at, place in _places(tall, warp, group, pair, down * height):
            rows.setdefault(i - at * 8, []).append((i, row, place))
        for found in rows.values():
            row, place = W.named(found[0][1]), W.named(found[0][2])
            with W.when(row < source.rows):
                source.end(row, place, across, [sums[i] for i, _, _ in found])


def _places(tall: int, warp: Any, group: Any, pair: Any, first: Any) -> list[tuple[int, Any, int, Any]]:
    """Of each sum of a thread: its index, row, panel, and lane in the panel."""
    made = []
    for i in range(tall):
        for t in range(LANES * PANELS // 8):
            for part in range(4):
                index = (i * (LANES * PANELS // 8) + t) * 4 + part
                row = first + warp * (16 * tall) + i * 16 + group + 8 * (part // 2)
                made.append((index, row, t // 2, (t % 2) * 8 + pair * 2 + part % 2))
    return made


def gather(
    gpu: Gpu, thread: Any, threads: int, lanes: int, sums: Any, count: int, place: Any, width: int
) -> Any:
    """Sums of threads that work on the same outputs, ``thread % lanes``, in shared memory, behind a barrier.

    ``place(i, lane)`` is where sum ``i`` of ``count`` goes among ``width`` outputs. Gives a function that adds the
    parts of one output.
    """
    distance = lanes
    while distance < gpu.warp:
        for i in range(count):
            W.put(sums, i, sums[i] + W.shuffled(gpu, sums[i], distance))
        distance *= 2
    step = max(gpu.warp, lanes)
    slots = threads // step
    room = W.shared(slots * width)
    lane, slot = tirx.floormod(thread, lanes), tirx.floordiv(thread, step)
    W.barrier()
    with W.when(tirx.floormod(thread, step) < lanes if step > lanes else None):
        for i in range(count):
            W.put(room, slot * width + place(i, lane), sums[i])
    W.barrier()

    def total(output: Any) -> Any:
        made = W.local(1)
        W.put(made, 0, room[output])
        with T.serial(1, slots) as n:
            W.put(made, 0, made[0] + room[n * width + output])
        return made[0]

    return total
