"""Attention of many queries: blocks of queries against blocks of keys, with a running maximum and sum.

Lanes are queries: a row is a query of one of the heads that share a key head, and the transposed queries of a block
stay in cache, so keys and values are read as they lie, the maximum over keys is taken lane by lane, and both products
are multiply-adds of a vector and one broadcast number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tvm import tirx

from planish.backends.tvm.cpu import math as elementary
from planish.backends.tvm.cpu.attention import (
    Heads,
    Mask,
    Scores,
    counted,
    finite,
    inverse,
    maximum,
    scores_of,
)  # fmt: skip
from planish.backends.tvm.cpu.cached import Cached
from planish.backends.tvm.cpu.emit import load, splat, store
from planish.backends.tvm.cpu.flat import (
    Flat,
    each,
    fitting_lanes,
    function,
    larger_of,
    named,
    quotient,
    real,
    remainder,
    scratch,
    smaller_of,
    vectors,
)  # fmt: skip
from planish.backends.tvm.cpu.variant import DEFAULT, Variant, thresholds, variant
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node
from planish.ir.types import product

PARALLEL = 1_000_000
"""Multiply-adds from which threads are worth their start."""


@dataclass(frozen=True)
class Prefill:
    """One kernel: its arguments, what scores are, and the sizes of its blocks."""

    q: Heads
    k: Heads
    v: Heads
    out: Heads
    mask: Mask | None
    causal: bool
    window: int | None
    scores: Scores
    isa: Isa
    chosen: Variant = DEFAULT
    cached: Cached | None = None

    @property
    def lanes(self) -> int:
        """Queries of a vector."""
        return self.isa.lanes

    @property
    def vectors(self) -> int:
        """Vectors of queries in a block."""
        return self.chosen.get("vectors", 2)

    @property
    def block(self) -> int:
        """Queries of a block."""
        return self.vectors * self.lanes

    @property
    def keys_at_once(self) -> int:
        """Keys whose scores are in registers together."""
        return self.chosen.get("keys", 8 if self.isa.registers >= 32 else 6)

    @property
    def key_block(self) -> int:
        """Keys of a block."""
        return self.chosen.get("times", 8) * self.keys_at_once

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return int(self.q.sizes[1]) // int(self.k.sizes[1])

    @cached_property
    def value_lanes(self) -> int:
        """Channels of values in a vector."""
        return fitting_lanes(self.v.sizes[3], self.lanes)

    @cached_property
    def value_tile(self) -> tuple[int, int]:
        """Queries, and vectors of channels, whose results are in registers together."""
        columns = int(self.v.sizes[3]) // self.value_lanes
        room = 16 if self.isa.registers >= 32 else 8
        wide = next(n for n in (4, 3, 2, 1) if columns % n == 0)
        deep = min(self.block, 8, 2 ** int(math.log2(room // wide)))
        return deep, wide

    @property
    def has_positions(self) -> bool:
        """True if what a query sees depends on where it is."""
        return self.causal or self.window is not None


@dataclass(frozen=True)
class Block:
    """A block of queries in work: where it is, and its scratch.

    ``ahead`` is the position of the first query of its sequence, ``shift`` what positions of keys are ahead of rows.
    """

    batch: Any
    head: Any
    first: Any
    rows: Any
    queries: Any
    products: Any
    results: Any
    positions: Any
    added: Any
    factors: Any
    largest: Any
    total: Any
    ahead: Any = 0
    shift: Any = 0


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """Vectors of queries by keys in registers, keys of a block (in ``times`` of these), work that is parallel."""
    made = [variant(times=4), variant(times=16)]
    if isa.registers >= 32:
        made += [
            variant(vectors=1, keys=12, times=6),
            variant(vectors=3, keys=8),
            variant(vectors=4, keys=6, times=16),
        ]
    else:
        made += [variant(keys=4, times=12), variant(vectors=1, keys=8)]
    q, k = node.args[:2]
    keys = k.shape[1] if node.args[9] == "bthd" else k.shape[2]
    work = product((*q.shape, keys))
    return (*made, *(thresholds(work, PARALLEL) if isinstance(work, int) else ()))


def prefill(node: Node, isa: Isa, chosen: Variant = DEFAULT) -> Any:
    """The PrimFunc of ``kernel.attention``."""
    _, _, _, mask, causal, window, scale, softcap, queries, keys, values, result = node.args

    def body(operands: list[Flat], out: Flat) -> None:
        kernel = Prefill(
            Heads(operands[0], queries), Heads(operands[1], keys), Heads(operands[2], values), Heads(out, result),
            None if mask is None else Mask(operands[3]), causal, window,
            scores_of(scale, softcap, node.operands[0].shape[3]), isa, chosen,
        )  # fmt: skip
        all_blocks(kernel)

    return function(node, body)


def all_blocks(kernel: Prefill) -> None:
    """Every block of queries, in parallel if there is much to do."""
    batch, heads, positions, width = kernel.q.sizes
    key_heads, keys = kernel.k.sizes[1], batch * kernel.k.sizes[2]
    if kernel.cached is not None:
        keys = named(kernel.cached.total(batch))
    rows = positions * kernel.group
    blocks = named(quotient(rows + kernel.block - 1, kernel.block))

    def task(i: Any) -> None:
        place = named(remainder(i, blocks))
        pair = named(quotient(i, blocks))
        if kernel.causal:
            half = quotient(place, 2)
            place = named(tirx.Select(remainder(place, 2) == 0, half, blocks - 1 - half))
        rest = named(quotient(pair, key_heads))
        _block(kernel, rest, named(remainder(pair, key_heads)), named(place * kernel.block), rows)

    work = heads * positions * keys * width
    each(batch * key_heads * blocks, work, kernel.chosen.least(PARALLEL), task)


def _block(kernel: Prefill, batch: Any, head: Any, first: Any, rows: Any) -> None:
    wide, depth, width = kernel.block, kernel.q.sizes[3], kernel.v.sizes[3]
    block = Block(
        batch, head, first, rows,
        queries=scratch(depth * wide), products=scratch(kernel.key_block * wide), results=scratch(width * wide),
        positions=vectors(kernel.vectors, kernel.lanes, "int32"),
        added=scratch(kernel.key_block * wide) if kernel.mask is not None and kernel.mask.of_rows else None,
        factors=scratch(wide), largest=vectors(kernel.vectors, kernel.lanes),
        total=vectors(kernel.vectors, kernel.lanes), ahead=0 if kernel.cached is None else kernel.cached.first(batch),
    )  # fmt: skip
    _load_queries(kernel, block)
    block.largest.fill(-math.inf)
    block.total.fill(0.0)
    lanes = fitting_lanes(width * wide, kernel.lanes)
    counted(
        width * wide // lanes, lambda i: store(block.results, (i * lanes,), splat(real(0.0), lanes), lanes)
    )
    begin, end = _range_of_keys(kernel, block)
    if kernel.cached is None:
        _all_keys(kernel, block, begin, end)
    else:
        kernel.cached.segments(
            begin, end, lambda low, high, shift: _all_keys(kernel, replace(block, shift=shift), low, high)
        )
    _finish(kernel, block)


def _all_keys(kernel: Prefill, block: Block, begin: Any, end: Any) -> None:
    def some_keys(i: Any) -> None:
        start = named(begin + i * kernel.key_block)
        count = named(smaller_of(kernel.key_block, end - start))
        _scores(kernel, block, start, count)
        _weights(kernel, block, count)
        _values(kernel, block, start, count)

    counted(named(quotient(larger_of(end - begin, 0) + kernel.key_block - 1, kernel.key_block)), some_keys)


def _row(kernel: Prefill, block: Block, lane: Any) -> tuple[Any, Any]:
    """Head and position of a query of the block; lanes behind the last query repeat it."""
    row = named(smaller_of(block.first + lane, block.rows - 1))
    return named(block.head * kernel.group + remainder(row, kernel.group)), named(quotient(row, kernel.group))


def _load_queries(kernel: Prefill, block: Block) -> None:
    """The queries of the block, scaled, ``[channel, query]``, and their positions."""
    wide = kernel.block
    positions = scratch(wide, "int32") if kernel.has_positions else None

    def one(lane: Any) -> None:
        head, position = _row(kernel, block, lane)
        begin = named(kernel.q.at(block.batch, head, position))
        if positions is not None:
            store(positions, (lane,), tirx.Cast("int32", position + block.ahead), 1)

        def channel(d: Any) -> None:
            store(
                block.queries,
                (d * wide + lane,),
                kernel.q.data.load(begin + d) * real(kernel.scores.scale),
                1,
            )

        counted(kernel.q.sizes[3], channel)

    counted(wide, one)
    if positions is not None:
        for v in range(kernel.vectors):
            place = load(positions, (v * kernel.lanes,), kernel.lanes)
            block.positions.put(v, place)


def _range_of_keys(kernel: Prefill, block: Block) -> tuple[Any, Any]:
    """The positions of keys that any query of the block may see: begin and end."""
    begin: Any = 0
    end: Any = kernel.k.sizes[2]
    if kernel.cached is not None:
        begin, end = kernel.cached.span(block.batch, block.ahead)
    if kernel.causal:
        last = quotient(smaller_of(block.first + kernel.block, block.rows) - 1, kernel.group)
        end = named(smaller_of(end, block.ahead + last + 1))
    if kernel.window is not None:
        first = block.ahead + quotient(block.first, kernel.group)
        begin = named(larger_of(first - (kernel.window - 1), begin))
    return begin, named(larger_of(begin, end)) if kernel.cached is not None else end


def _scores(kernel: Prefill, block: Block, start: Any, count: Any) -> None:
    """Scores of the block ``[key, query]``, and the largest so far; the sum and results are scaled to it."""
    lanes, some, wide = kernel.lanes, kernel.keys_at_once, kernel.block
    if block.added is not None:
        _stage_mask(kernel, block, start, count)
    top = vectors(kernel.vectors, lanes)
    for v in range(kernel.vectors):
        top.put(v, block.largest.get(v))

    def tile(i: Any) -> None:
        # keys behind the last one repeat it: the largest score stays what it is
        places = [named(smaller_of(i * some + j, count - 1)) for j in range(some)]
        begins = [named(kernel.k.at(block.batch, block.head, start + p)) for p in places]
        acc = vectors(kernel.vectors * some, lanes)
        acc.fill(0.0)

        def channel(d: Any) -> None:
            held = vectors(kernel.vectors, lanes)
            for v in range(kernel.vectors):
                held.put(v, load(block.queries, (d * wide + v * lanes,), lanes))
            for j in range(some):
                key = splat(kernel.k.data.load(begins[j] + d), lanes)
                for v in range(kernel.vectors):
                    at = kernel.vectors * j + v
                    acc.put(at, elementary.fma(key, held.get(v), acc.get(at)))

        counted(kernel.q.sizes[3], channel)
        for j in range(some):
            for v in range(kernel.vectors):
                at = kernel.vectors * j + v
                value = kernel.scores.finished(acc.get(at))
                acc.put(at, _masked(kernel, block, value, start, places[j], v))
                store(block.products, ((i * some + j) * wide + v * lanes,), acc.get(at), lanes)
                top.put(v, maximum(acc.get(at), top.get(v)))

    counted(quotient(count + some - 1, some), tile)
    for v in range(kernel.vectors):
        old, new = block.largest.get(v), top.get(v)
        store(block.factors, (v * lanes,), elementary.exp(old - finite(new)), lanes)
        block.largest.put(v, new)


def _masked(kernel: Prefill, block: Block, value: Any, start: Any, place: Any, v: int) -> Any:
    lanes = kernel.lanes
    if kernel.mask is not None and block.added is not None:
        value = value + load(block.added, (place * kernel.block + v * lanes,), lanes)
    elif kernel.mask is not None:
        index = kernel.mask.at(block.batch, 0, 0) + (start + place if kernel.mask.of_keys else 0)
        value = value + splat(named(kernel.mask.added(index)), lanes)
    if not kernel.has_positions:
        return value
    hidden = splat(real(-math.inf), lanes)
    position, key = block.positions.get(v), tirx.Cast("int32", start + place + block.shift)
    if kernel.causal:
        value = tirx.Select(position >= splat(key, lanes), value, hidden)
    if kernel.window is not None:
        value = tirx.Select(position < splat(key + kernel.window, lanes), value, hidden)
    return value


def _stage_mask(kernel: Prefill, block: Block, start: Any, count: Any) -> None:
    """What is added to the scores of the block, ``[key, query]``."""
    mask = kernel.mask
    assert mask is not None

    def one(lane: Any) -> None:
        head, position = _row(kernel, block, lane)
        begin = named(mask.at(block.batch, head, position))
        step = start if mask.of_keys else 0

        def key(j: Any) -> None:
            store(
                block.added,
                (j * kernel.block + lane,),
                mask.added(begin + (step + j if mask.of_keys else 0)),
                1,
            )

        counted(count, key)

    counted(kernel.block, one)


def _weights(kernel: Prefill, block: Block, count: Any) -> None:
    """Scores become their exponentials; the sums take them up."""
    lanes, wide = kernel.lanes, kernel.block
    sums, tops = vectors(kernel.vectors, lanes), vectors(kernel.vectors, lanes)
    for v in range(kernel.vectors):
        sums.put(v, splat(real(0.0), lanes))
        tops.put(v, finite(block.largest.get(v)))

    def one(j: Any) -> None:
        for v in range(kernel.vectors):
            at = (j * wide + v * lanes,)
            store(block.products, at, elementary.exp(load(block.products, at, lanes) - tops.get(v)), lanes)
            sums.put(v, sums.get(v) + load(block.products, at, lanes))

    counted(count, one)
    for v in range(kernel.vectors):
        old = block.total.get(v) * load(block.factors, (v * lanes,), lanes)
        block.total.put(v, old + sums.get(v))


def _values(kernel: Prefill, block: Block, start: Any, count: Any) -> None:
    """Results ``[query, channel]`` scaled to the new maximum, plus the weighted values of the block."""
    lanes, (deep, across), width = kernel.value_lanes, kernel.value_tile, kernel.v.sizes[3]
    step = kernel.v.at(0, 0, 1)
    base = named(kernel.v.at(block.batch, block.head, start))

    def tile(i: Any) -> None:
        row = named(quotient(i, width // (across * lanes)) * deep)
        column = named(remainder(i, width // (across * lanes)) * (across * lanes))
        acc = vectors(deep * across, lanes)
        places = [[(row + r) * width + column + c * lanes for c in range(across)] for r in range(deep)]
        for r in range(deep):
            factor = splat(load(block.factors, (row + r,), 1), lanes)
            for c in range(across):
                acc.put(r * across + c, load(block.results, (places[r][c],), lanes) * factor)

        def key(j: Any) -> None:
            held = vectors(across, lanes)
            for c in range(across):
                held.put(c, kernel.v.data.load(base + j * step + column + c * lanes, lanes))
            for r in range(deep):
                weight = splat(load(block.products, (j * kernel.block + row + r,), 1), lanes)
                for c in range(across):
                    at = r * across + c
                    acc.put(at, elementary.fma(weight, held.get(c), acc.get(at)))

        counted(count, key)
        for r in range(deep):
            for c in range(across):
                store(block.results, (places[r][c],), acc.get(r * across + c), lanes)

    counted(kernel.block // deep * (width // (across * lanes)), tile)


def _finish(kernel: Prefill, block: Block) -> None:
    """Results divided by the sums, to where they belong."""
    lanes, width = kernel.value_lanes, kernel.v.sizes[3]
    for v in range(kernel.vectors):
        at = v
        value = inverse(block.total.get(at), block.largest.get(at))
        store(block.factors, (v * kernel.lanes,), value, kernel.lanes)

    def one(lane: Any) -> None:
        head, position = _row(kernel, block, lane)
        begin = named(kernel.out.at(block.batch, head, position))
        factor = splat(named(load(block.factors, (lane,), 1)), lanes)

        def part(c: Any) -> None:
            value = load(block.results, (lane * width + c * lanes,), lanes) * factor
            kernel.out.data.store(begin + c * lanes, value, lanes)

        counted(width // lanes, part)

    counted(named(smaller_of(kernel.block, block.rows - block.first)), one)
