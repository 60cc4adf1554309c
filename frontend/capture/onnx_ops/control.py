"""Branches and loops whose course is known at capture, and sequences and optionals of known structure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from planish.frontend.capture.onnx_ops.layout import pieces
from planish.frontend.capture.onnx_ops.registry import (
    At,
    Empty,
    Items,
    Known,
    Result,
    Size,
    Sizes,
    Value,
    known,
    onnx_op,
    truthy,
)
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import boolean, i64

UNROLL_LIMIT = 256
"""Most steps of a loop that is written out."""


@onnx_op("If")
def branch(condition: Value, *, then_branch: Any, else_branch: Any, at: At) -> Result:
    """One of two branches, where the condition is known at capture"""
    chosen = truthy(condition)
    if chosen is None:
        at.unknown(condition, "its condition", "PL144")
    return at.walk.subgraph(then_branch if chosen else else_branch, (), at)


@onnx_op("Loop")
def loop(trips: Value | None, condition: Value | None, *carried: Value, body: Any, at: At) -> Result:
    """A loop written out; how often it runs must be known"""
    limit = UNROLL_LIMIT + 1
    if trips is not None:
        if not isinstance(trips, Known):
            at.unknown(trips, "the number of iterations", "PL144")
        count = trips.items[0]
        at.need(isinstance(count, int), f"it runs {count} times, which is dynamic", "PL144")
        limit = min(limit, max(int(count), 0))
    values, rows = list(carried), []
    going = condition
    for step in range(limit):
        if not _goes_on(going, at):
            break
        at.need(step < UNROLL_LIMIT, f"it runs more than {UNROLL_LIMIT} times", "PL144")
        going, *results = at.walk.subgraph(
            body, (known(i64, step), going or known(boolean, True), *values), at
        )
        values, row = results[: len(carried)], results[len(carried) :]
        rows.append(row)
    count = len(body.outputs) - 1 - len(carried)
    at.need(bool(rows) or count == 0, "it runs no time, so what it would collect has no shape", "PL144")
    return (*values, *(_stacked([row[i] for row in rows], 0, at) for i in range(count)))


def _goes_on(condition: Value | None, at: At) -> bool:
    if condition is None:
        return True
    decided = truthy(condition)
    if decided is None:
        at.unknown(condition, "whether it goes on", "PL144")
    return decided


def _stacked(rows: Iterable[Value], axis: int, at: At) -> Node:
    nodes = [at.node_of(r) for r in rows]
    axis %= nodes[0].rank + 1
    return aten.cat([aten.view(n, (*n.shape[:axis], 1, *n.shape[axis:])) for n in nodes], axis)


@onnx_op("Scan")
def scan(
    *values: Value, body: Any, num_scan_inputs: int, scan_input_axes: tuple[int, ...] = (),
    scan_input_directions: tuple[int, ...] = (), scan_output_axes: tuple[int, ...] = (),
    scan_output_directions: tuple[int, ...] = (), at: At,
) -> Result:  # fmt: skip
    """A scan written out; the length of its sequences must be a number"""
    states = len(values) - num_scan_inputs
    carried: list[Value] = list(values[:states])
    xs = [at.node_of(v) for v in values[states:]]
    axes = [a % x.rank for a, x in zip(scan_input_axes or (0,) * len(xs), xs, strict=True)]
    length = xs[0].shape[axes[0]]
    if not isinstance(length, int):
        at.refuse(f"its sequences have the dynamic length {length}", "PL144")
    at.need(
        1 <= length <= UNROLL_LIMIT,
        f"its sequences have {length} elements; 1 to {UNROLL_LIMIT} are supported",
        "PL144",
    )
    rows = []
    for step in range(length):
        parts = []
        for i, (x, axis) in enumerate(zip(xs, axes, strict=True)):
            place = length - 1 - step if scan_input_directions and scan_input_directions[i] else step
            shape = x.shape[:axis] + x.shape[axis + 1 :]
            parts.append(aten.view(aten.slice(x, axis, place, place + 1), shape))
        results = at.walk.subgraph(body, (*carried, *parts), at)
        carried = list(results[:states])
        rows.append(results[states:])
    collected = []
    for i in range(len(rows[0])):
        column = [row[i] for row in rows]
        if scan_output_directions and scan_output_directions[i]:
            column.reverse()
        collected.append(_stacked(column, scan_output_axes[i] if scan_output_axes else 0, at))
    return (*carried, *collected)


def _items(value: Value, at: At) -> tuple[Value, ...]:
    if not isinstance(value, Items):
        at.refuse("a sequence is needed", "PL141")
    return value.items


def _place(position: Value | None, length: int, default: int, at: At) -> int:
    if position is None:
        return default
    place = at.sizes(position, "the position")[0]
    at.need(
        isinstance(place, int) and -length <= place <= length, f"the position {place} of {length}", "PL141"
    )
    return int(place) + (length if int(place) < 0 else 0)


@onnx_op("SequenceEmpty")
def sequence_empty(*, dtype: int = 1) -> Result:
    """A sequence without elements"""
    return Items(())


@onnx_op("SequenceConstruct")
def sequence_construct(*values: Value) -> Result:
    """A sequence of the inputs"""
    return Items(values)


@onnx_op("SequenceInsert")
def sequence_insert(sequence: Value, value: Value, position: Value | None = None, *, at: At) -> Result:
    """A sequence with one more element"""
    items = _items(sequence, at)
    place = _place(position, len(items), len(items), at)
    return Items((*items[:place], value, *items[place:]))


@onnx_op("SequenceErase")
def sequence_erase(sequence: Value, position: Value | None = None, *, at: At) -> Result:
    """A sequence with one element less"""
    items = _items(sequence, at)
    place = _place(position, len(items), len(items) - 1, at)
    at.need(place < len(items), "there is no such element", "PL141")
    return Items(items[:place] + items[place + 1 :])


@onnx_op("SequenceAt")
def sequence_at(sequence: Value, position: Value, *, at: At) -> Result:
    """One element"""
    items = _items(sequence, at)
    place = _place(position, len(items), 0, at)
    at.need(place < len(items), "there is no such element", "PL141")
    return items[place]


@onnx_op("SequenceLength")
def sequence_length(sequence: Value, *, at: At) -> Result:
    """How many elements there are"""
    return known(i64, len(_items(sequence, at)))


@onnx_op("SplitToSequence")
def split_to_sequence(
    x: Node, parts: Value | None = None, *, axis: int = 0, keepdims: int = 1, at: At
) -> Result:
    """Pieces along an axis, as a sequence"""
    axis %= x.rank
    length = x.shape[axis]
    given: Sizes | None = None
    if isinstance(parts, Known) and parts.rank == 1:
        given = at.sizes(parts, "the input 'split'")
    else:
        each: Size = 1 if parts is None else at.sizes(parts, "the input 'split'")[0]
        if not isinstance(length, int) or not isinstance(each, int):
            at.refuse(f"how many pieces {length} has is dynamic")
        given = tuple(min(each, length - i) for i in range(0, length, each))
    found: list[Node] = [aten.slice(x, axis, a, b) for a, b in pieces(x, given, axis, len(given), at)]
    if parts is None and not keepdims:
        found = [aten.view(f, f.shape[:axis] + f.shape[axis + 1 :]) for f in found]
    return Items(tuple(found))


@onnx_op("ConcatFromSequence")
def concat_from_sequence(sequence: Value, *, axis: int, new_axis: int = 0, at: At) -> Result:
    """All elements joined along an axis"""
    items = _items(sequence, at)
    at.need(bool(items), "the sequence is empty")
    return _stacked(items, axis, at) if new_axis else aten.cat([at.node_of(v) for v in items], axis)


@onnx_op("SequenceMap")
def sequence_map(sequence: Value, *more: Value, body: Any, at: At) -> Result:
    """A graph applied to each element"""
    columns = [_items(sequence, at), *(v.items if isinstance(v, Items) else None for v in more)]
    rows = []
    for i in range(len(columns[0] or ())):
        given = [v if c is None else c[i] for c, v in zip(columns, (sequence, *more), strict=True)]
        rows.append(at.walk.subgraph(body, given, at))
    return tuple(Items(tuple(row[i] for row in rows)) for i in range(len(body.outputs)))


@onnx_op("Optional")
def optional(value: Value | None = None, *, type: Any = None) -> Result:
    """The value, or nothing"""
    return Empty() if value is None else value


@onnx_op("OptionalHasElement")
def optional_has_element(value: Value | None = None) -> Result:
    """Whether there is a value"""
    return known(boolean, not (value is None or isinstance(value, Empty)))


@onnx_op("OptionalGetElement")
def optional_get_element(value: Value, *, at: At) -> Result:
    """The value of an optional"""
    at.need(not isinstance(value, Empty), "the optional is empty", "PL141")
    return value
