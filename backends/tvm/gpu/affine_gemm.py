"""``kernel.linear_affine`` for many rows: tiles of x and of decoded weights.

With activations of 8 bits both factors are whole numbers below 256 that f16 holds exactly, and their sums over 32
products are exact in f32: tensor cores lose nothing there. Other activations are multiplied in f32.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.gpu import affine_parts as A
from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.tiles import CHUNK, PANELS, Source, Store, plain, tensor


def gemm(o: A.Operands) -> None:
    """The launches for any number of rows of x."""
    threads = 256
    low = A.low_rank_rows(o, threads)
    if o.gpu.matrix != "none" and o.spec.activation_bits == 8 and _has_whole_zeros(o):
        codes, scales = A.coded_rows(o, threads)
        tensor(o.gpu, "float16", _source(o, low, codes, scales))
        return
    rows = None if o.is_plain else A.prepared_rows(o, threads)
    plain(_source(o, low, rows, None), 8 if isinstance(o.rows, int) and o.rows >= 1024 else 4)


def _has_whole_zeros(o: A.Operands) -> bool:
    """True if ``code - zero`` is a whole number that f16 holds."""
    spec = o.spec
    return spec.zero == "packed" or (
        spec.zero == "number" and spec.zero_number.is_integer() and abs(spec.zero_number) < 1024
    )


def _source(o: A.Operands, low: W.Flat | None, rows: W.Flat | None, scales: W.Flat | None) -> Source:
    spec = o.spec
    pairs = PANELS // 2 if spec.gated else PANELS

    def panel(across: Any, j: Any) -> Any:
        """The panel at place ``j`` of a block: gates follow what they gate; past the end, the last."""
        if not spec.gated:
            return tirx.min(across * PANELS + j, spec.tiles - 1)
        side, place = (
            (divmod(j, pairs)) if isinstance(j, int) else (tirx.floordiv(j, pairs), tirx.floormod(j, pairs))
        )
        return tirx.min(across * pairs + place, spec.tiles // 2 - 1) + side * (spec.tiles // 2)

    def end(row: Any, lane: Any, across: Any, sums: list[Any]) -> None:
        for j in range(pairs):
            column = W.named((across * pairs + j) * A.TILE + lane)
            with W.when(None if spec.width % (A.TILE * pairs) == 0 else column < spec.width):
                A.finish(o, low, row, column, [sums[j], sums[j + pairs]] if spec.gated else [sums[j]])

    def scale(row: Any, lane: Any, j: int, across: Any, chunk: Any) -> Any:
        group = tirx.floordiv(chunk * CHUNK, spec.group)
        assert scales is not None
        own = scales.load(tirx.min(row, o.rows - 1) * spec.groups + group)
        return own * A.scale_of(o, panel(across, j), group, lane)

    return Source(
        o.rows, o.chunks, W.ceil_div(spec.width, A.TILE * pairs),
        lambda thread, threads, first, height, chunk, store: _load_x(
            o, rows, thread, threads, first, height, chunk, store
        ),
        lambda thread, threads, across, chunk, store: _load_w(
            o, thread, threads, lambda j: panel(across, j), chunk, store, scales is None
        ),
        end, None if scales is None else scale,
    )  # fmt: skip


def _load_x(
    o: A.Operands,
    rows: W.Flat | None,
    thread: Any,
    threads: int,
    first: Any,
    height: int,
    chunk: Any,
    store: Store,
) -> None:
    """Rows past the end repeat the last."""
    spec, per = o.spec, CHUNK // 4
    source, length = (o.x, spec.length) if rows is None else (rows, spec.padded)
    with W.strided(thread, height * per, threads) as item:
        m, v = tirx.floordiv(item, per), tirx.floormod(item, per)
        row = W.named(tirx.min(first + m, o.rows - 1))
        k = W.named(chunk * CHUNK + v * 4)
        four = W.local(4)
        if length % 4 == 0 and source.dtype == "float32":
            W.put(four, 0, T.if_then_else(k < length, source.raw(row * length + k, 4), tirx.Broadcast(W.real(0.0), 4))
                  if length != spec.padded else source.raw(row * length + k, 4), 4)  # fmt: skip
        else:
            for i in range(4):
                inside = k + i < length
                value = tirx.Cast("float32", source.raw(row * length + k + i))
                W.put(four, i, T.if_then_else(inside, value, W.real(0.0)) if length != spec.padded else value)
        for i in range(0, 4, 2):
            store(m, v * 4 + i, four[i], four[i + 1])


def _load_w(
    o: A.Operands, thread: Any, threads: int, panel: Any, chunk: Any, store: Store, with_scale: bool
) -> None:
    """The codes of 64 rows, less their zeros; 8 codes of one row are one item."""
    spec, codes = o.spec, o.panels.words()
    with W.strided(thread, PANELS * A.TILE * 4, threads) as item:
        part, n = tirx.floormod(item, 4), tirx.floordiv(item, 4)
        lane = tirx.floormod(n, A.TILE)
        tile = W.named(panel(tirx.floordiv(n, A.TILE)))
        group = W.named(tirx.floordiv(chunk * CHUNK, spec.group)) if spec.groups > 1 else 0
        zero = W.named(A.zero_of(o, tile, group, lane))
        scale = W.named(A.scale_of(o, tile, group, lane)) if with_scale else None
        held = []
        for plane in spec.planes:
            base = tile * (spec.panel_bytes // 4) + plane.offset // 4 + lane
            step = part * 2 if plane.width == 8 else tirx.floordiv(part * plane.width, 4)
            count = 2 if plane.width == 8 else 1
            found = [W.named(codes[base + (chunk * plane.width + step + i) * A.TILE]) for i in range(count)]
            if plane.width < 4:  # several parts share a word
                shift = tirx.floormod(part, 4 // plane.width) * (2 * plane.width)
                found = [W.named(found[0] >> tirx.Cast("uint32", shift))]
            held.append((plane, found))
        values = []
        for i in range(8):
            code = None
            for plane, found in held:
                word, at = (found[i // 4], 0) if plane.width == 8 else (found[0], plane.width * (i // 4))
                at += 8 * (i % 4)
                bits = (word >> W.u32(at) if at else word) & W.u32((1 << plane.width) - 1)
                bits = bits << W.u32(plane.below) if plane.below else bits
                code = bits if code is None else code | bits
            value = tirx.Cast("float32", code) - zero
            values.append(value if scale is None else value * scale)
        for i in range(0, 8, 2):
            store(n, part * 8 + i, values[i], values[i + 1])
