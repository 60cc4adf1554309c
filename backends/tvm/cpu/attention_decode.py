"""Attention of a few queries over a cache: every key and value is read once for all heads that share it.

Scores are products along the channels; those of as many keys as a vector has lanes are summed together. A long cache
is split between threads, and what the parts found is joined at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

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
from planish.backends.tvm.cpu.emit import load, splat, store
from planish.backends.tvm.cpu.flat import (
    Flat,
    across,
    add,
    each,
    fitting_lanes,
    function,
    larger_of,
    named,
    quotient,
    real,
    remainder,
    scratch,
    shuffled,
    smaller_of,
    vectors,
    whole,
)  # fmt: skip
from planish.backends.tvm.cpu.variant import DEFAULT, Variant, thresholds, variant
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node
from planish.ir.types import product

PARALLEL = 16_384
"""Numbers in the cached keys from which threads are worth their start."""

SPLITS = 4
"""Parts of a long cache for each key head."""

CHUNK = 256
"""Cached keys whose scores are held at once."""


@dataclass(frozen=True)
class Decode:
    """One kernel: its arguments and what scores are."""

    q: Heads
    past_k: Heads
    past_v: Heads
    k: Heads
    v: Heads
    out: Heads
    mask: Mask | None
    scores: Scores
    isa: Isa
    chosen: Variant = DEFAULT

    @property
    def splits(self) -> int:
        """Parts of a long cache for each key head."""
        return self.chosen.get("splits", SPLITS)

    @property
    def chunk(self) -> int:
        """Cached keys whose scores are held at once."""
        return self.chosen.get("chunk", CHUNK)

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return int(self.q.sizes[1]) // int(self.k.sizes[1])

    @property
    def rows(self) -> Any:
        """Queries that share a key head: those of its group of heads, at every position."""
        return self.group * self.q.sizes[2]

    @property
    def lanes(self) -> int:
        """Channels of keys in a vector, and keys whose scores are summed together."""
        return fitting_lanes(self.q.sizes[3], self.isa.lanes)

    @property
    def value_lanes(self) -> int:
        """Channels of values in a vector."""
        return fitting_lanes(self.v.sizes[3], self.isa.lanes)

    @property
    def value_tile(self) -> tuple[int, int]:
        """Rows, and vectors of channels, whose results are in registers together."""
        columns, room = int(self.v.sizes[3]) // self.value_lanes, 16 if self.isa.registers >= 32 else 8
        shapes = [
            (r, c)
            for r in range(1, room + 1)
            for c in range(1, room // r + 1)
            if (self.rows if isinstance(self.rows, int) else self.group) % r == 0 and columns % c == 0
        ]
        return max(shapes, key=lambda rc: (rc[0] * rc[1], -rc[0] - rc[1]))

    @property
    def pitch(self) -> int:
        """Scores of a row: a chunk, the new keys, and room for whole vectors."""
        return self.chunk + 64


@dataclass(frozen=True)
class Part:
    """A part of the keys of one key head in work, and what it found: rows' largest scores, sums and results."""

    batch: Any
    head: Any
    scores: Any
    factors: Any
    largest: Any
    total: Any
    results: Any
    index: Any


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """Parts of a long cache, keys whose scores are held at once, cached numbers from which threads take part."""
    made = [variant(splits=2), variant(splits=8), variant(chunk=CHUNK // 2), variant(chunk=CHUNK * 2)]
    return (*made, *thresholds(product(node.args[1].shape), PARALLEL))


def decode(node: Node, isa: Isa, chosen: Variant = DEFAULT) -> Any:
    """The PrimFunc of ``kernel.attention_step``."""
    _, _, _, _, _, mask, scale, softcap, queries, keys, values, result = node.args

    def body(operands: list[Flat], out: Flat) -> None:
        q, past_k, past_v, k, v, *masks = operands
        kernel = Decode(
            Heads(q, queries), Heads(past_k, "bhtd"), Heads(past_v, "bhtd"), Heads(k, keys), Heads(v, values),
            Heads(out, result), None if mask is None else Mask(masks[0]),
            scores_of(scale, softcap, node.operands[0].shape[3]), isa, chosen,
        )  # fmt: skip
        _all_parts(kernel)

    return function(node, body)


def _all_parts(kernel: Decode) -> None:
    batch, key_heads, past, width = kernel.past_k.sizes
    rows, value_width = kernel.rows, kernel.v.sizes[3]
    work = batch * key_heads * past * width
    least = kernel.chosen.least(PARALLEL)
    splits: Any = kernel.splits if isinstance(work, int) and work >= least else 1
    if not isinstance(work, int):
        splits = named(tirx.Select(work >= whole(least), whole(kernel.splits), whole(1)))
    tasks = batch * key_heads * splits
    room = larger_of(batch * key_heads * kernel.splits, 1) * rows
    largest, total, results = (T.alloc_buffer((room * n,), "float32") for n in (1, 1, value_width))
    lanes = kernel.lanes
    share = named(quotient(quotient(past + splits - 1, splits) + lanes - 1, lanes) * lanes)

    def task(i: Any) -> None:
        pair, split = named(quotient(i, splits)), named(remainder(i, splits))
        part = Part(
            named(quotient(pair, key_heads)), named(remainder(pair, key_heads)), scratch(rows * kernel.pitch),
            scratch(rows), largest, total, results, named(i * rows),
        )  # fmt: skip
        begin = named(smaller_of(split * share, past))
        end = named(smaller_of(begin + share, past))
        _part(kernel, part, begin, end, split == splits - 1)

    each(tasks, work, least, task)
    counted(batch * key_heads * rows, lambda i: join(kernel, largest, total, results, i, splits))


def place_of(kernel: Decode, part: Part, row: Any) -> tuple[Any, Any]:
    """Head and position of a row."""
    if isinstance(row, int):
        return part.head * kernel.group + row % kernel.group, row // kernel.group
    return (
        named(part.head * kernel.group + remainder(row, kernel.group)),
        named(quotient(row, kernel.group)),
    )


def clear(kernel: Decode, part: Part) -> None:
    """Begin a part: no row has seen a key."""
    width, lanes = kernel.v.sizes[3], kernel.value_lanes

    def row_of(row: Any) -> None:
        store(part.largest, (part.index + row,), real(-math.inf), 1)
        store(part.total, (part.index + row,), real(0.0), 1)
        counted(
            width // lanes,
            lambda c: store(
                part.results, ((part.index + row) * width + c * lanes,), splat(real(0.0), lanes), lanes
            ),
        )

    counted(kernel.rows, row_of)


def _part(kernel: Decode, part: Part, begin: Any, end: Any, is_last: Any) -> None:
    clear(kernel, part)
    held = kernel.chunk
    chunks = named(larger_of(quotient(end - begin + held - 1, held), 1))
    new = kernel.k.sizes[2]

    def chunk(i: Any) -> None:
        start = named(begin + i * held)
        old = named(smaller_of(end - start, held))
        fresh = named(tirx.Select(tirx.all(is_last, i == chunks - 1), whole(new), whole(0)))
        score(kernel, part, start, old, fresh)
        counted(kernel.rows, lambda row: weigh(kernel, part, row, start, named(old + fresh)))
        add_values(kernel, part, start, old, fresh)

    counted(chunks, chunk)


def score(kernel: Decode, part: Part, start: Any, old: Any, fresh: Any = None) -> None:
    """Scores of cached keys, then of new keys, ``[row, key]``."""
    lanes, pitch = kernel.lanes, kernel.pitch
    base = named(kernel.past_k.at(part.batch, part.head, start))
    width = kernel.q.sizes[3]
    unrolled = next(n for n in (8, 6, 5, 4, 3, 2, 1) if width // lanes % n == 0)

    def group(i: Any, places: list[Any]) -> None:
        def row(r: Any) -> None:
            head, position = place_of(kernel, part, r)
            query = named(kernel.q.at(part.batch, head, position))
            acc = vectors(lanes, lanes)
            acc.fill(0.0)

            def channels(c: Any) -> None:
                held = vectors(unrolled, lanes)
                for n in range(unrolled):
                    held.put(n, kernel.q.data.load(query + (c * unrolled + n) * lanes, lanes))
                # key by key: memory is read in rising order
                for j in range(lanes):
                    for n in range(unrolled):
                        key = kernel.past_k.data.load(places[j] + (c * unrolled + n) * lanes, lanes)
                        acc.put(j, elementary.fma(key, held.get(n), acc.get(j)))

            counted(width // (unrolled * lanes), channels)
            _store_scores(kernel, part, r * pitch + i * lanes, _transposed_sum(acc, lanes), lanes)

        counted(kernel.rows, row)

    def full(i: Any) -> None:
        first = named(base + i * lanes * width)
        group(i, [first + j * width for j in range(lanes)])

    counted(quotient(old, lanes), full)
    if lanes > 1:
        with T.If(remainder(old, lanes) > 0), T.Then():
            i = named(quotient(old, lanes))
            group(i, [named(base + smaller_of(i * lanes + j, old - 1) * width) for j in range(lanes)])

    def new_key(j: Any) -> None:
        key = named(kernel.k.at(part.batch, part.head, j))

        def row(r: Any) -> None:
            head, position = place_of(kernel, part, r)
            query = named(kernel.q.at(part.batch, head, position))
            acc = vectors(1, lanes)
            acc.fill(0.0)

            def channels(c: Any) -> None:
                a, b = (
                    kernel.k.data.load(key + c * lanes, lanes),
                    kernel.q.data.load(query + c * lanes, lanes),
                )
                acc.put(0, elementary.fma(a, b, acc.get(0)))

            counted(width // lanes, channels)
            _store_scores(kernel, part, r * pitch + old + j, across(acc.get(0), lanes, add), 1)

        counted(kernel.rows, row)

    if fresh is not None:
        counted(fresh, new_key)


def _store_scores(kernel: Decode, part: Part, index: Any, products: Any, lanes: int) -> None:
    scaled = products * splat(real(kernel.scores.scale), lanes)
    store(part.scores, (index,), kernel.scores.finished(scaled), lanes)


def _transposed_sum(acc: Any, lanes: int) -> Any:
    """The sum over the lanes of every one of ``lanes`` vectors, in the lane with its number."""
    values = [acc.get(j) for j in range(lanes)]
    stride = 1
    while stride < lanes:
        joined = vectors(len(values) // 2, lanes)
        for i in range(len(values) // 2):
            pair = values[2 * i : 2 * i + 2]
            keep = [lane + (lanes if lane & stride else 0) for lane in range(lanes)]
            swap = [(lane ^ stride) + (lanes if lane & stride else 0) for lane in range(lanes)]
            joined.put(i, shuffled(pair, keep) + shuffled(pair, swap))
        values = [joined.get(i) for i in range(len(values) // 2)]
        stride *= 2
    return values[0]


def weigh(
    kernel: Decode, part: Part, row: Any, start: Any, count: Any, hide: Callable[[Any], None] | None = None
) -> None:
    """Scores of a row become their exponentials; its largest score, sum and factor are brought up to date.

    ``hide(row)`` may put minus infinity in the place of scores before.
    """
    lanes, first = kernel.isa.lanes, named(row * kernel.pitch)
    if kernel.mask is not None:
        _add_mask(kernel, kernel.mask, part, row, start, count)
    if hide is not None:
        hide(row)
    wholes = named(quotient(count + lanes - 1, lanes))
    # scores behind the last become minus infinity, so that whole vectors can be read
    counted(wholes * lanes - count, lambda j: store(part.scores, (first + count + j,), real(-math.inf), 1))
    top, sums = vectors(1, lanes), vectors(1, lanes)
    top.fill(-math.inf)
    sums.fill(0.0)

    def largest(i: Any) -> None:
        value = load(part.scores, (first + i * lanes,), lanes)
        top.put(0, maximum(value, top.get(0)))

    counted(wholes, largest)
    at = (part.index + row,)
    before = named(load(part.largest, at, 1))
    new = named(maximum(across(top.get(0), lanes, maximum), before))
    used = named(finite(new))

    def exponential(i: Any) -> None:
        place = (first + i * lanes,)
        store(part.scores, place, elementary.exp(load(part.scores, place, lanes) - splat(used, lanes)), lanes)
        sums.put(0, sums.get(0) + load(part.scores, place, lanes))

    counted(wholes, exponential)
    factor = named(elementary.exp(before - used))
    store(part.factors, (row,), factor, 1)
    store(part.largest, at, new, 1)
    store(part.total, at, load(part.total, at, 1) * factor + across(sums.get(0), lanes, add), 1)


def _add_mask(kernel: Decode, mask: Mask, part: Part, row: Any, start: Any, count: Any) -> None:
    head, position = place_of(kernel, part, row)
    begin = named(mask.at(part.batch, head, position) + (start if mask.of_keys else 0))
    first = named(row * kernel.pitch)

    def key(j: Any) -> None:
        place = (first + j,)
        store(
            part.scores,
            place,
            load(part.scores, place, 1) + mask.added(begin + (j if mask.of_keys else 0)),
            1,
        )

    counted(count, key)


def add_values(kernel: Decode, part: Part, start: Any, old: Any, fresh: Any = None) -> None:
    """Results of the rows, scaled to the new largest score, plus the weighted values."""
    lanes, (deep, wide), width = kernel.value_lanes, kernel.value_tile, kernel.v.sizes[3]
    sources = [(kernel.past_v, named(kernel.past_v.at(part.batch, part.head, start)), 0, old)]
    if fresh is not None:
        sources.append((kernel.v, named(kernel.v.at(part.batch, part.head, 0)), old, fresh))
    columns = width // (wide * lanes)

    def tile(i: Any) -> None:
        row, column = named(quotient(i, columns) * deep), named(remainder(i, columns) * (wide * lanes))
        acc = vectors(deep * wide, lanes)
        places = [
            [(part.index + row + r) * width + column + c * lanes for c in range(wide)] for r in range(deep)
        ]
        for r in range(deep):
            factor = splat(named(load(part.factors, (row + r,), 1)), lanes)
            for c in range(wide):
                acc.put(r * wide + c, load(part.results, (places[r][c],), lanes) * factor)
        for source, base, shift, count in sources:

            def key(j: Any, source: Heads = source, base: Any = base, shift: Any = shift) -> None:
                held = vectors(wide, lanes)
                for c in range(wide):
                    value = source.data.load(base + j * source.at(0, 0, 1) + column + c * lanes, lanes)
                    held.put(c, value)
                for r in range(deep):
                    weight = splat(load(part.scores, ((row + r) * kernel.pitch + shift + j,), 1), lanes)
                    for c in range(wide):
                        at = r * wide + c
                        value = elementary.fma(weight, held.get(c), acc.get(at))
                        acc.put(at, value)

            counted(count, key)
        for r in range(deep):
            for c in range(wide):
                store(part.results, (places[r][c],), acc.get(r * wide + c), lanes)

    counted(quotient(kernel.rows, deep) * columns, tile)


def join(kernel: Decode, largest: Any, total: Any, results: Any, i: Any, splits: Any) -> None:
    """The result of one row of one key head from what the parts found."""
    rows, width, lanes = kernel.rows, kernel.v.sizes[3], kernel.value_lanes
    pair, row = named(quotient(i, rows)), named(remainder(i, rows))
    key_heads = kernel.k.sizes[1]
    batch, key_head = named(quotient(pair, key_heads)), named(remainder(pair, key_heads))
    head = named(key_head * kernel.group + remainder(row, kernel.group))
    out = named(kernel.out.at(batch, head, quotient(row, kernel.group)))
    numbers = vectors(3, 1)
    top, sums, factor = range(3)
    numbers.put(top, real(-math.inf))
    numbers.put(sums, real(0.0))

    def index(split: Any) -> Any:
        return (pair * splits + split) * rows + row

    counted(
        splits,
        lambda s: numbers.put(top, maximum(load(largest, (index(s),), 1), numbers.get(top))),
    )

    def scale(s: Any) -> None:
        value = elementary.exp(load(largest, (index(s),), 1) - finite(numbers.get(top)))
        numbers.put(factor, value)

    def summed(s: Any) -> None:
        scale(s)
        numbers.put(sums, numbers.get(sums) + load(total, (index(s),), 1) * numbers.get(factor))

    counted(splits, summed)
    share = named(inverse(numbers.get(sums), numbers.get(top)))
    counted(width // lanes, lambda c: kernel.out.data.store(out + c * lanes, splat(real(0.0), lanes), lanes))

    def taken(s: Any) -> None:
        scale(s)
        weight = splat(named(numbers.get(factor) * share), lanes)

        def part(c: Any) -> None:
            value = load(results, (index(s) * width + c * lanes,), lanes)
            at = out + c * lanes
            kernel.out.data.store(at, elementary.fma(value, weight, kernel.out.data.load(at, lanes)), lanes)

        counted(width // lanes, part)

    counted(splits, taken)
