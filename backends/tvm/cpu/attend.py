"""Attention over caches on a CPU: a few queries as over a cache of their past, many as over a whole sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.attention import Heads, Mask, counted, scores_of
from planish.backends.tvm.cpu.attention_decode import (
    PARALLEL,
    Decode,
    Part,
    add_values,
    clear,
    join,
    place_of,
    score,
    weigh,
)
from planish.backends.tvm.cpu.attention_prefill import Prefill, all_blocks
from planish.backends.tvm.cpu.cached import Cached
from planish.backends.tvm.cpu.dense_block import to_f32
from planish.backends.tvm.cpu.emit import store
from planish.backends.tvm.cpu.flat import (
    Flat,
    each,
    function,
    larger_of,
    named,
    quotient,
    real,
    remainder,
    scratch,
    smaller_of,
    whole,
)
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.kernels.attention import FEW
from planish.ir.node import Node


class Widened(Flat):
    """Numbers of f16 or bf16 that are read as f32."""

    def load(self, index: Any, lanes: int = 1) -> Any:
        """``lanes`` consecutive elements."""
        return to_f32(super().load(index, lanes), lanes)


def build(node: Node, isa: Isa) -> Any:
    """The PrimFunc of ``kernel.attend``."""
    _, _, _, _, _, bias, window, scale, softcap, ring, queries, result = node.args
    scores = scores_of(scale, softcap, int(node.operands[0].shape[3]))

    def body(operands: list[Flat], out: Flat) -> None:
        first, key, value, start, count, *masks = operands
        q, (k, v) = Heads(first, queries), (Heads(_wide(x), "bhtd") for x in (key, value))
        results, mask = Heads(out, result), None if bias is None else Mask(masks[0])
        cached = Cached(start, count, q.sizes[2], k.sizes[2], window, ring)

        def few() -> None:
            _all_parts(Decode(q, k, v, k, v, results, mask, scores, isa), cached)

        def many() -> None:
            all_blocks(Prefill(q, k, v, results, mask, True, window, scores, isa, cached=cached))

        if isinstance(q.sizes[2], int):
            (few if q.sizes[2] <= FEW else many)()
            return
        with T.If(q.sizes[2] <= whole(FEW)):
            with T.Then():
                few()
            with T.Else():
                many()

    return function(node, body)


def _wide(x: Flat) -> Flat:
    return x if x.data.dtype == "float32" else Widened(x.data, x.sizes)


def _all_parts(kernel: Decode, cached: Cached) -> None:
    """A few queries: the keys of each sequence and head are split into parts if there are many."""
    batch, key_heads, _, width = kernel.past_k.sizes
    rows, value_width, lanes = kernel.rows, kernel.v.sizes[3], kernel.lanes
    work = named(cached.total(batch) * (key_heads * width))
    splits = named(tirx.Select(work >= whole(PARALLEL), whole(kernel.splits), whole(1)))
    pairs = batch * key_heads
    room = larger_of(pairs * kernel.splits, 1) * rows
    largest, total, results = (T.alloc_buffer((room * n,), "float32") for n in (1, 1, value_width))
    held = rows if isinstance(rows, int) else kernel.group * FEW

    def task(i: Any) -> None:
        pair, split = named(quotient(i, splits)), named(remainder(i, splits))
        part = Part(
            named(quotient(pair, key_heads)), named(remainder(pair, key_heads)), scratch(held * kernel.pitch),
            scratch(held), largest, total, results, named(i * rows),
        )  # fmt: skip
        first = cached.first(part.batch)
        low, high = cached.span(part.batch, first)
        share = named(quotient(quotient(high - low + splits - 1, splits) + lanes - 1, lanes) * lanes)
        begin = named(smaller_of(low + split * share, high))
        end = named(smaller_of(begin + share, high))
        clear(kernel, part)
        cached.segments(begin, end, lambda a, b, shift: _keys(kernel, cached, part, first, a, b, shift))

    each(pairs * splits, work, PARALLEL, task)
    counted(pairs * rows, lambda i: join(kernel, largest, total, results, i, splits))


@dataclass(frozen=True)
class _Chunk:
    """Rows of a cache in work; a query sees those before ``own``, its own row, if it were in this segment."""

    start: Any
    count: Any
    own: Any


def _keys(kernel: Decode, cached: Cached, part: Part, first: Any, begin: Any, end: Any, shift: Any) -> None:
    """The keys of rows that lie one behind the other."""
    held, several = kernel.chunk, kernel.q.sizes[2] != 1

    def chunk(i: Any) -> None:
        start = named(begin + i * held)
        count = named(smaller_of(end - start, held))
        here = _Chunk(start, count, first - shift)

        def hide(row: Any) -> None:
            _hide(kernel, cached, part, here, row)

        score(kernel, part, start, count)
        counted(kernel.rows, lambda row: weigh(kernel, part, row, start, count, hide if several else None))
        add_values(kernel, part, start, count)

    counted(named(quotient(end - begin + held - 1, held)), chunk)


def _hide(kernel: Decode, cached: Cached, part: Part, here: _Chunk, row: Any) -> None:
    """Keys that some queries see, and others do not."""
    _, query = place_of(kernel, part, row)
    scores, own = named(row * kernel.pitch), named(here.own + query - here.start)

    def fill(begin: Any, end: Any) -> None:
        counted(
            named(larger_of(end - begin, 0)),
            lambda j: store(part.scores, (scores + begin + j,), real(-math.inf), 1),
        )

    fill(named(larger_of(own + 1, 0)), here.count)
    if cached.window is not None:
        fill(0, named(smaller_of(own - (cached.window - 1), here.count)))
