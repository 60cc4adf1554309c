"""Attention for GPUs: blocks of queries against blocks of keys with a running softmax, and the keys split at decode.

The rows of a block are the queries of all heads that share a head of keys, position by position, so keys and values
are read once for all of them. Where there are few rows, the keys are split among blocks and their results combined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.device import Gpu
from planish.ir.node import Node

THREADS = 128


def lowest() -> Any:
    """The smallest number, where running maxima begin, so that differences are numbers."""
    return W.exact(0xFF7FFFFF)


def unseen() -> Any:
    """The score of a key that is not seen."""
    return W.exact(0xFF800000)


@dataclass(frozen=True)
class Heads:
    """A tensor of heads: ``[B, T, H, D]`` (``bthd``) or ``[B, H, T, D]`` (``bhtd``)."""

    flat: W.Flat
    order: str

    @property
    def sizes(self) -> tuple[Any, Any, Any, Any]:
        """Batch, heads, positions, channels."""
        b, first, second, d = self.flat.sizes
        return (b, first, second, d) if self.order == "bhtd" else (b, second, first, d)

    def at(self, b: Any, h: Any, t: Any, d: Any) -> Any:
        """The place of an element."""
        _, heads, count, width = self.sizes
        if self.order == "bhtd":
            return ((b * heads + h) * count + t) * width + d
        return ((b * count + t) * heads + h) * width + d


@dataclass(frozen=True)
class Task:
    """One node: queries, how a key and a value element is read, the number of keys, and the options."""

    gpu: Gpu
    q: Heads
    out: Heads
    key: Callable[[Any, Any, Any, Any], Any]
    value: Callable[[Any, Any, Any, Any], Any]
    keys: Any
    key_heads: int
    mask: W.Flat | None
    causal: bool
    window: Any
    scale: float
    softcap: Any

    @property
    def shared_by(self) -> int:
        """Heads of queries on one head of keys."""
        return int(self.q.sizes[1]) // self.key_heads

    @property
    def rows(self) -> Any:
        """Queries on one head of keys of one batch."""
        return self.q.sizes[2] * self.shared_by


def build(node: Node, gpu: Gpu) -> Any:
    """The PrimFunc of ``kernel.attention`` or ``kernel.attention_step``, scheduled."""

    def body(flats: list[W.Flat], out: W.Flat) -> None:
        parts = iter(flats)
        is_step = node.op == "kernel.attention_step"
        count = 6 if is_step else 4
        given = [next(parts) if isinstance(a, Node) else None for a in node.args[:count]]
        task = _step(node, gpu, given, out) if is_step else _whole(node, gpu, given, out)
        emit(task)

    return W.function(node, gpu, body)


def _scale(scale: Any, width: Any) -> float:
    return 1 / math.sqrt(int(width)) if scale is None else float(scale)


def _whole(node: Node, gpu: Gpu, given: list[Any], out: W.Flat) -> Task:
    causal, window, scale, softcap, queries, keys, values, result = node.args[4:]
    q, k, v, mask = given
    q, k, v = Heads(q, queries), Heads(k, keys), Heads(v, values)
    return Task(
        gpu, q, Heads(out, result), lambda *i: k.flat.load(k.at(*i)), lambda *i: v.flat.load(v.at(*i)), k.sizes[2],
        int(k.sizes[1]), mask, causal, window, _scale(scale, q.sizes[3]), softcap,
    )  # fmt: skip


def _step(node: Node, gpu: Gpu, given: list[Any], out: W.Flat) -> Task:
    scale, softcap, queries, keys, values, result = node.args[6:]
    q, past_k, past_v, k, v, mask = given
    q = Heads(q, queries)

    def joined(past: Heads, new: Heads) -> Callable[[Any, Any, Any, Any], Any]:
        count = past.sizes[2]
        return lambda b, h, t, d: T.if_then_else(
            t < count, past.flat.load(past.at(b, h, t, d)), new.flat.load(new.at(b, h, t - count, d))
        )

    first = Heads(past_k, "bhtd")
    key, value = joined(first, Heads(k, keys)), joined(Heads(past_v, "bhtd"), Heads(v, values))
    total = first.sizes[2] + Heads(k, keys).sizes[2]
    return Task(
        gpu, q, Heads(out, result), key, value, total, int(first.sizes[1]), mask, False, None,
        _scale(scale, q.sizes[3]), softcap,
    )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a task is cut: rows of a block, keys of a round, blocks along the keys."""

    rows: int
    keys: int
    splits: int


def planned(task: Task) -> Plan:
    """Few rows split the keys; a round of keys fills the shared memory."""
    _, _, count, width = task.q.sizes
    value_width = int(task.out.sizes[3])
    rows = 16
    if isinstance(task.rows, int):
        while rows // 2 >= max(task.rows, 1):
            rows //= 2
    room = task.gpu.shared // 4 - 64
    wide = max(int(width), value_width) + 1
    while rows > 1 and room - rows * (int(width) + 1) < 8 * (wide + rows):
        rows //= 2
    keys = 64
    while keys > 8 and rows * (int(width) + 1) + keys * wide + rows * (keys + 1) > room:
        keys //= 2
    batch = task.q.sizes[0] if isinstance(task.q.sizes[0], int) else 1
    is_few = isinstance(count, int) and count <= 8
    blocks = max(1, batch * task.key_heads * (-(-task.rows // rows) if is_few else 1))
    return Plan(rows, keys, max(1, min(16, 256 // blocks)) if is_few else 1)


def emit(task: Task) -> None:
    """The launches."""
    plan, gpu = planned(task), task.gpu
    batch, _, _, _ = task.q.sizes
    width = int(task.out.sizes[3])
    places = batch * task.key_heads * task.rows
    parts = maxima = sums = None
    if plan.splits > 1:
        parts = W.workspace(gpu, (plan.splits, places, width))
        maxima, sums = W.workspace(gpu, (plan.splits, places)), W.workspace(gpu, (plan.splits, places))
    grid = [W.ceil_div(task.rows, plan.rows), batch * task.key_heads, plan.splits]
    with W.launch(grid if plan.splits > 1 else grid[:2], THREADS) as (blocks, thread):
        down, at = blocks[0], blocks[1]
        b, h = tirx.floordiv(at, task.key_heads), tirx.floormod(at, task.key_heads)
        begin, end = 0, task.keys
        if plan.splits > 1:
            span = W.ceil_div(W.ceil_div(task.keys, plan.splits), plan.keys) * plan.keys
            begin = W.named(blocks[2] * span)
            end = W.named(tirx.min(begin + span, task.keys))
        row, slot, m, total, acc = _block(task, plan, thread, down, b, h, begin, end)
        per = THREADS // plan.rows
        with W.when(row < task.rows):
            for i in range(-(-width // per)):
                d = slot + i * per
                with W.when(None if width % per == 0 else d < width):
                    if plan.splits == 1:
                        head = h * task.shared_by + tirx.floormod(row, task.shared_by)
                        t = tirx.floordiv(row, task.shared_by)
                        task.out.flat.store(task.out.at(b, head, t, d), acc[i] / _safe(total))
                    else:
                        assert parts is not None
                        place = blocks[2] * places + at * task.rows + row
                        parts.store(place * width + d, acc[i])
            if maxima is not None and sums is not None:
                with W.when(slot == 0):
                    place = blocks[2] * places + at * task.rows + row
                    maxima.store(place, m)
                    sums.store(place, total)
    if parts is not None and maxima is not None and sums is not None:
        _combine(task, plan, parts, maxima, sums)


def _safe(total: Any) -> Any:
    return tirx.Select(total > W.real(0.0), total, W.real(1.0))


def _block(
    task: Task, plan: Plan, thread: Any, down: Any, b: Any, h: Any, begin: Any, end: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """The running softmax of the rows of a block over a range of keys.

    Gives a thread's row and slot in the row, the maximum and the sum of that row, and its channels of the result.
    """
    width, value_width = int(task.q.sizes[3]), int(task.out.sizes[3])
    per, stride, value_stride = THREADS // plan.rows, width + 1, value_width + 1
    local_row, slot = tirx.floordiv(thread, per), tirx.floormod(thread, per)
    first = down * plan.rows
    row = W.named(first + local_row)
    q, tile = W.shared(plan.rows * stride), W.shared(plan.keys * max(stride, value_stride))
    scores = W.shared(plan.rows * (plan.keys + 1))
    count = -(-value_width // per)
    acc, state = W.local(count), W.local(3)  # maximum, sum, factor
    for i in range(count):
        W.put(acc, i, W.real(0.0))
    W.put(state, 0, lowest())
    W.put(state, 1, W.real(0.0))
    with W.strided(thread, plan.rows * width, THREADS) as item:
        r, d = tirx.floordiv(item, width), tirx.floormod(item, width)
        at = W.named(tirx.min(first + r, task.rows - 1))
        head, t = h * task.shared_by + tirx.floormod(at, task.shared_by), tirx.floordiv(at, task.shared_by)
        W.put(q, r * stride + d, task.q.flat.load(task.q.at(b, head, t, d)))
    head = W.named(h * task.shared_by + tirx.floormod(tirx.min(row, task.rows - 1), task.shared_by))
    t = W.named(tirx.floordiv(tirx.min(row, task.rows - 1), task.shared_by))
    if task.causal:  # keys behind the last query of the block are not seen
        last = tirx.floordiv(tirx.min(first + plan.rows, task.rows) - 1, task.shared_by)
        end = W.named(tirx.min(end, last + 1))
    is_known = isinstance(end, int) and isinstance(begin, int)
    rounds = W.ceil_div(end - begin if is_known else W.named(tirx.max(end - begin, 0)), plan.keys)
    with T.serial(0, rounds) as n:
        start = W.named(begin + n * plan.keys)
        _load(task.key, thread, b, h, start, end, plan.keys, width, stride, tile)
        W.barrier()
        with W.strided(slot, plan.keys, per) as j:
            total = W.local(1)
            W.put(total, 0, W.real(0.0))
            with T.serial(0, width) as d:
                W.put(total, 0, total[0] + q[local_row * stride + d] * tile[j * stride + d])
            W.put(scores, local_row * (plan.keys + 1) + j, _score(task, total[0], b, head, t, start + j, end))
        W.barrier()
        _load(task.value, thread, b, h, start, end, plan.keys, value_width, value_stride, tile)
        top = W.local(1)
        W.put(top, 0, state[0])
        with T.serial(0, plan.keys) as j:
            W.put(top, 0, tirx.max(top[0], scores[local_row * (plan.keys + 1) + j]))
        W.put(state, 2, tirx.exp(state[0] - top[0]))
        W.put(state, 1, state[1] * state[2])
        W.put(state, 0, top[0])
        for i in range(count):
            W.put(acc, i, acc[i] * state[2])
        W.barrier()
        with T.serial(0, plan.keys) as j:
            score = W.named(scores[local_row * (plan.keys + 1) + j])
            share = tirx.Select(score < lowest(), W.real(0.0), tirx.exp(score - state[0]))
            share = W.named(share)
            W.put(state, 1, state[1] + share)
            for i in range(count):
                d = slot + i * per
                d = d if value_width % per == 0 else tirx.min(d, value_width - 1)
                W.put(acc, i, acc[i] + share * tile[j * value_stride + d])
        W.barrier()
    return row, slot, state[0], state[1], acc


def _load(
    read: Any,
    thread: Any,
    b: Any,
    h: Any,
    start: Any,
    end: Any,
    keys: int,
    width: int,
    stride: int,
    tile: Any,
) -> None:
    """A round of keys or values, zeros past the end."""
    with W.strided(thread, keys * width, THREADS) as item:
        j, d = tirx.floordiv(item, width), tirx.floormod(item, width)
        at = W.named(start + j)
        W.put(tile, j * stride + d, T.if_then_else(at < end, read(b, h, at, d), W.real(0.0)))


def _score(task: Task, product: Any, b: Any, head: Any, t: Any, j: Any, end: Any) -> Any:
    """The score of a key; :func:`unseen` if it is not seen."""
    value = product * W.real(task.scale)
    if task.softcap is not None:
        value = tirx.tanh(product * W.real(task.scale / task.softcap)) * W.real(task.softcap)
    seen = [j < end]
    if task.causal:
        seen.append(j <= t)
    if task.window is not None:
        seen.append(t - j < task.window)
    held = W.named(value)
    if task.mask is not None:
        at = W.named(_mask_place(task, b, head, t, tirx.min(j, task.keys - 1)))
        if task.mask.dtype == "bool":
            seen.append(task.mask.raw(at))
        else:
            held = W.named(held + task.mask.load(at))
    return tirx.Select(tirx.all(*seen), held, unseen())


def _mask_place(task: Task, b: Any, head: Any, t: Any, j: Any) -> Any:
    assert task.mask is not None
    made: Any = 0
    stride: Any = 1
    for size, index in zip(reversed(task.mask.sizes), (j, t, head, b), strict=False):
        if not (isinstance(size, int) and size == 1):
            made = made + index * stride
        stride = stride * size
    return made


def _combine(task: Task, plan: Plan, parts: W.Flat, maxima: W.Flat, sums: W.Flat) -> None:
    """Add up what the blocks along the keys have, each by its share of the softmax."""
    width, batch = int(task.out.sizes[3]), task.q.sizes[0]
    places = batch * task.key_heads * task.rows
    with W.launch([places], 64) as ((place,), thread):
        top, total = W.local(1), W.local(1)
        W.put(top, 0, maxima.load(place))
        with T.serial(1, plan.splits) as s:
            W.put(top, 0, tirx.max(top[0], maxima.load(s * places + place)))
        W.put(total, 0, W.real(0.0))
        with T.serial(0, plan.splits) as s:
            share = tirx.exp(maxima.load(s * places + place) - top[0])
            W.put(total, 0, total[0] + sums.load(s * places + place) * share)
        at, row = tirx.floordiv(place, task.rows), tirx.floormod(place, task.rows)
        b, h = tirx.floordiv(at, task.key_heads), tirx.floormod(at, task.key_heads)
        head, t = h * task.shared_by + tirx.floormod(row, task.shared_by), tirx.floordiv(row, task.shared_by)
        with W.strided(thread, width, 64) as d:
            made = W.local(1)
            W.put(made, 0, W.real(0.0))
            with T.serial(0, plan.splits) as s:
                share = tirx.exp(maxima.load(s * places + place) - top[0])
                W.put(made, 0, made[0] + parts.load((s * places + place) * width + d) * share)
            task.out.flat.store(task.out.at(b, head, t, d), made[0] / _safe(total[0]))
