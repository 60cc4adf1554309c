"""Stages that the GPU kernels of ``kernel.linear_affine`` share: operands, the rows they read, scales, the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.affine_spec import AffineSpec
from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.device import Gpu

CHUNK = 32
"""Codes of a row that are read together."""
TILE = 16
"""Rows of a panel."""


@dataclass(frozen=True)
class Operands:
    """The buffers of one node; ``x`` counts as ``[rows, K]`` and ``rows`` is their number."""

    spec: AffineSpec
    gpu: Gpu
    x: W.Flat
    panels: W.Flat
    scale: W.Flat
    zero: W.Flat | None
    bias: W.Flat | None
    norm: W.Flat | None
    residual: W.Flat | None
    left: W.Flat | None
    right: W.Flat | None
    out: W.Flat

    @property
    def rows(self) -> Any:
        """Rows of x."""
        return W.product(self.x.sizes[:-1])

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return self.spec.padded // CHUNK

    @property
    def is_plain(self) -> bool:
        """True if rows of x are read as they are."""
        return self.norm is None and self.spec.activation_bits == 32


def normalizer(o: Operands, thread: Any, threads: int, row: Any) -> Callable[[Any], Any]:
    """The elements of a row of x after the norm, as a function of their index (below K)."""
    base = row * o.spec.length
    if o.norm is None:
        return lambda k: o.x.load(base + k)
    total = W.local(1)
    W.put(total, 0, W.real(0.0))
    with W.strided(thread, o.spec.length, threads) as k:
        value = W.named(o.x.load(base + k))
        W.put(total, 0, total[0] + value * value)
    squares = W.block_reduce(o.gpu, thread, threads, total[0], W.add)
    factor = W.named(tirx.rsqrt(squares * W.real(1.0 / o.spec.length) + W.real(o.spec.eps)))
    weight = o.norm
    return lambda k: o.x.load(base + k) * factor * weight.load(k)


def group_maxima(o: Operands, thread: Any, threads: int, value: Callable[[Any], Any]) -> Any:
    """The largest magnitude of each group, in shared memory; behind a barrier."""
    spec, chunks = o.spec, o.chunks
    parts = W.shared(chunks)
    with W.strided(thread, chunks, threads) as c:
        top = W.local(1)
        W.put(top, 0, W.real(0.0))
        is_whole = spec.length == spec.padded
        with T.serial(0, CHUNK) as i, W.when(is_whole or c * CHUNK + i < spec.length):
            W.put(top, 0, tirx.max(top[0], tirx.abs(value(c * CHUNK + i))))
        W.put(parts, c, top[0])
    W.barrier()
    per = -(-spec.group // CHUNK)
    if per == 1:
        return parts
    maxima = W.shared(spec.groups)
    with W.strided(thread, spec.groups, threads) as g:
        top = W.local(1)
        W.put(top, 0, W.real(0.0))
        with T.serial(0, per) as i, W.when(None if chunks % per == 0 else g * per + i < chunks):
            W.put(top, 0, tirx.max(top[0], parts[g * per + i]))
        W.put(maxima, g, top[0])
    W.barrier()
    return maxima


def inverse(top: Any) -> Any:
    """What an element is multiplied by before it is rounded, from the largest magnitude of its group."""
    return tirx.Select(top > W.real(0.0), W.real(127.0) / top, W.real(0.0))


def prepare(o: Operands, thread: Any, threads: int, row: Any, store: Callable[[Any, Any], None]) -> None:
    """``store(k, value)`` for all padded elements of a row, after norm and rounding, by all threads of a block."""
    spec = o.spec
    value = normalizer(o, thread, threads, row)
    bounded = value
    if spec.length != spec.padded:

        def bounded(k: Any) -> Any:
            return T.if_then_else(k < spec.length, value(k), W.real(0.0))

    if spec.activation_bits == 32:
        with W.strided(thread, spec.padded, threads) as k:
            store(k, bounded(k))
        return
    maxima = group_maxima(o, thread, threads, value)
    with W.strided(thread, spec.padded, threads) as k:
        top = W.named(maxima[tirx.floordiv(k, spec.group)])
        code = W.rounded(bounded(k) * inverse(top))
        store(k, code * (top / W.real(127.0)))
    W.barrier()


def prepared_rows(o: Operands, threads: int) -> W.Flat:
    """A launch that writes all rows as they are multiplied, ``[rows, padded]``."""
    made = W.workspace(o.gpu, (o.rows, o.spec.padded))
    with W.launch([o.rows], threads) as ((row,), thread):
        prepare(o, thread, threads, row, lambda k, v: made.store(row * o.spec.padded + k, v))
    return made


def coded_rows(o: Operands, threads: int) -> tuple[W.Flat, W.Flat]:
    """A launch that writes all rows as whole numbers, i8 ``[rows, padded]``, and scales ``[rows, groups]``."""
    spec = o.spec
    codes = W.workspace(o.gpu, (o.rows, spec.padded), "int8")
    scales = W.workspace(o.gpu, (o.rows, spec.groups))
    with W.launch([o.rows], threads) as ((row,), thread):
        value = normalizer(o, thread, threads, row)
        maxima = group_maxima(o, thread, threads, value)
        with W.strided(thread, spec.padded, threads) as k:
            top = W.named(maxima[tirx.floordiv(k, spec.group)])
            code = W.rounded(T.if_then_else(k < spec.length, value(k), W.real(0.0)) * inverse(top))
            codes.store(row * spec.padded + k, code)
        with W.strided(thread, spec.groups, threads) as g:
            scales.store(row * spec.groups + g, maxima[g] / W.real(127.0))
    return codes, scales


def low_rank_rows(o: Operands, threads: int) -> W.Flat | None:
    """A launch that writes ``linear(norm(x), right)``, ``[rows, rank]``; nothing without that side."""
    right, rank, length = o.right, o.spec.rank, o.spec.length
    if right is None:
        return None
    made = W.workspace(o.gpu, (o.rows, rank))
    with W.launch([o.rows], threads) as ((row,), thread):
        value = normalizer(o, thread, threads, row)
        with T.serial(0, rank) as j:
            total = W.local(1)
            W.put(total, 0, W.real(0.0))
            with W.strided(thread, length, threads) as k:
                W.put(total, 0, total[0] + value(k) * right.load(j * length + k))
            summed = W.block_reduce(o.gpu, thread, threads, total[0], W.add)
            with W.when(thread == 0):
                made.store(row * rank + j, summed)
    return made


def scale_of(o: Operands, tile: Any, group: Any, row: Any) -> Any:
    """The scale of a row of a panel."""
    return o.scale.load((tile * o.spec.groups + group) * TILE + row)


def zero_of(o: Operands, tile: Any, group: Any, row: Any) -> Any:
    """The zero of a row of a panel as f32."""
    spec, zero = o.spec, o.zero
    if zero is None:
        return W.real(spec.zero_number)
    if spec.zero == "float":
        return zero.load((tile * spec.groups + group) * TILE + row)
    bit = group * spec.bits
    first = tirx.floordiv(bit, 8)

    def byte(index: Any) -> Any:
        return tirx.Cast("uint32", zero.raw((tile * spec.zero_bytes + index) * TILE + row))

    pair = byte(first) | (byte(tirx.min(first + 1, spec.zero_bytes - 1)) << W.u32(8))
    shift = tirx.Cast("uint32", tirx.floormod(bit, 8))
    return tirx.Cast("float32", (pair >> shift) & W.u32((1 << spec.bits) - 1))


def finish(o: Operands, low: W.Flat | None, m: Any, n: Any, sums: list[Any]) -> None:
    """Write one element of a row ``m`` of the result from its sum, and that of the gate, at column ``n``."""
    spec = o.spec
    values = []
    for i, total in enumerate(sums):
        column = n + i * spec.width
        value = total if o.bias is None else total + o.bias.load(column)
        if low is not None and o.left is not None:
            extra = W.local(1)
            W.put(extra, 0, value)
            with T.serial(0, spec.rank) as j:
                lane = tirx.floormod(column, TILE)
                weight = o.left.load((tirx.floordiv(column, TILE) * spec.rank + j) * TILE + lane)
                W.put(extra, 0, extra[0] + low.load(m * spec.rank + j) * weight)
            value = extra[0]
        values.append(W.named(value))
    made = W.ACTIVATIONS[spec.activation](values[0])
    if spec.gated:
        made = made * values[1]
    place = m * spec.width + n
    o.out.store(place, made if o.residual is None else made + o.residual.load(place))
