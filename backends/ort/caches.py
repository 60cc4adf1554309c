"""Attention over caches that are written in the same step, by one kernel of ONNX Runtime: GroupQueryAttention.

It writes the new rows to the caches and reads no more of them than is in use. Where its outputs are bound to the
memory of its inputs nothing else is moved. It takes one row for each of several sequences, or several rows of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planish.backends.ort.contrib import Choice, Site
from planish.backends.ort.graph import MICROSOFT, Graph
from planish.backends.ort.table_cache import row_index, select
from planish.ir.node import Node, Program, users_of
from planish.ir.types import Size, TensorType, equal


def attention_over_caches(program: Program) -> Mapping[Node, Choice]:
    """attend(q, put(keys, k, start, count), put(values, v, start, count), start, count) = GroupQueryAttention."""
    found = [
        step for node in program.nodes if node.op == "planish.attend" if (step := _step(node)) is not None
    ]
    chosen: dict[Node, Choice] = {}
    for step in _independent(program, found):
        for output, node in enumerate(step.nodes):
            chosen[node] = Choice(step.operands, _emission(step, output))
    return chosen


def written_in_place(program: Program) -> tuple[str, ...]:
    """The states whose next values may take their memory: nothing reads what they were after it is written over.

    Those are what is put into a state that nothing else reads, and states that stay as they are.
    """
    users, names = users_of(program), []
    for name, value in program.states:
        leaf = value.args[0] if value.op == "planish.put" else value
        if leaf.op != "state" or leaf.name != name:
            continue
        alone = users[leaf] == [value] and leaf not in program.roots and value.operands.count(leaf) == 1
        if leaf is value or alone:
            names.append(name)
    return tuple(names)


@dataclass(frozen=True)
class _Step:
    """An attention with the two writes before it: all that the kernel does at once."""

    nodes: tuple[Node, Node, Node]

    @property
    def operands(self) -> tuple[Node, ...]:
        """q, keys, k, values, v, start, count, and the bias if there is one."""
        attend, keys, values = self.nodes
        bias = attend.args[5]
        return (
            attend.args[0],
            *keys.args[:2],
            *values.args[:2],
            *attend.args[3:5],
            *(() if bias is None else (bias,)),
        )


def _step(node: Node) -> _Step | None:
    q, keys, values, start, count, bias, window, scale, softcap, ring = node.args
    for cache in (keys, values):
        if cache.op != "planish.put" or cache.args[2:] != (start, count, False):
            return None
    if ring or keys is values or keys.args[0] is values.args[0]:
        return None
    (batch, heads, rows, width), (_, groups, capacity, _) = q.shape, keys.shape
    sizes = (heads, width, groups, capacity)
    if not all(isinstance(s, int) and s > 0 for s in sizes) or values.shape != keys.shape:
        return None
    if width % 8 or q.dtype.name not in ("f32", "f16") or keys.dtype is not q.dtype:
        return None
    if not (equal(batch, 1) or equal(rows, 1)) or not all(
        equal(c.args[1].shape[2], rows) for c in (keys, values)
    ):
        return None
    if bias is not None and (bias.dtype is not q.dtype or bias.rank > 4):
        return None
    if not (window is None or isinstance(window, int)) or (scale is not None and scale == 0):
        return None
    return _Step((node, keys, values)) if not softcap or softcap > 0 else None


def _independent(program: Program, steps: list[_Step]) -> list[_Step]:
    """Those that can be done at once: what they read must not wait for writes of their own, or of later ones."""
    writes = {
        node: 1 << i for i, node in enumerate(dict.fromkeys(n for step in steps for n in step.nodes[1:]))
    }
    before: dict[Node, int] = {}
    for node in program.nodes:
        before[node] = writes.get(node, 0)
        for operand in node.operands:
            before[node] |= before[operand]
    done, chosen = 0, []
    for step in steps:
        mine = writes[step.nodes[1]] | writes[step.nodes[2]]
        if not mine & done and not any(before[operand] & ~done for operand in step.operands):
            chosen.append(step)
            done |= mine
    return chosen


def _emission(step: _Step, output: int) -> Callable[..., str]:
    def emit(
        site: Site,
        q: str,
        keys: str,
        k: str,
        values: str,
        v: str,
        start: str,
        count: str,
        bias: str | None = None,
    ) -> str:
        rows = _one_row if equal(step.nodes[0].shape[2], 1) else _several_rows
        return rows(site.graph, step, (q, keys, k, values, v), (start, count), bias)[output]

    return emit


_Results = tuple[str, str, str]


def _one_row(
    g: Graph, step: _Step, given: tuple[str, ...], places: tuple[str, str], bias: str | None
) -> _Results:
    """One new row of each sequence. A sequence that takes none gets a row that it has already, written once more."""
    attend, (q, keys, k, values, v), (start, count) = step.nodes[0], given, places
    (batch, heads, _, width), (_, groups, capacity, _) = attend.shape, step.nodes[1].shape
    place = g.op("Max", g.op("Min", start, g.ints(capacity if equal(batch, 1) else capacity - 1)), g.ints(0))
    if not equal(batch, 1):
        takes = g.op("And", g.op("Greater", count, g.ints(0)), g.op("Less", start, g.ints(capacity)))
        takes = g.op("Unsqueeze", takes, g.ints(1, 2, 3))
        index = row_index(g, step.nodes[1].tensor, g.op("Unsqueeze", place, g.ints(1)))
        k, v = (
            select(g, takes, new, g.op("GatherND", cache, index), attend.dtype.name)
            for new, cache in ((k, keys), (v, values))
        )
    flat = [g.op("Reshape", x, g.ints(0, 1, n * width)) for x, n in ((q, heads), (k, groups), (v, groups))]
    total = g.op("Add", place, g.ints(1))
    out, *written = _kernel(g, step, flat, (keys, values), total, _bias(g, step, bias, None))
    return g.op("Reshape", out, g.ints(0, heads, 1, width)), written[0], written[1]


def _several_rows(
    g: Graph, step: _Step, given: tuple[str, ...], places: tuple[str, str], bias: str | None
) -> _Results:
    """Several new rows of one sequence: those that count, at least one; rows of the result after them are zeros."""
    attend, (q, keys, k, values, v), (start, count) = step.nodes[0], given, places
    (_, heads, rows, width), (_, groups, capacity, _) = attend.shape, step.nodes[1].shape
    place = g.op("Max", g.op("Min", start, g.ints(capacity)), g.ints(0))
    room = g.op("Sub", g.ints(capacity), place)
    number = g.op("Min", g.op("Max", g.op("Min", count, room), g.ints(1)), g.size(rows))
    flat = []
    for x, n in ((q, heads), (k, groups), (v, groups)):
        turned = g.op("Slice", g.op("Transpose", x, perm=[0, 2, 1, 3]), g.ints(0), number, g.ints(1))
        flat.append(g.op("Reshape", turned, g.ints(0, 0, n * width)))
    total = g.op("Add", place, number)
    out, *written = _kernel(g, step, flat, (keys, values), total, _bias(g, step, bias, number))
    out = g.op("Transpose", g.op("Reshape", out, g.ints(0, 0, heads, width)), perm=[0, 2, 1, 3])
    # All axes are named: ONNX Runtime moves transpositions over a Pad as if they always were.
    after = g.op("Concat", g.ints(0, 0, 0, 0, 0, 0), g.op("Sub", g.size(rows), number), g.ints(0), axis=0)
    return g.op("Pad", out, after), written[0], written[1]


def _kernel(
    g: Graph,
    step: _Step,
    rows: list[str],
    caches: tuple[str, str],
    total: str,
    bias: Callable[[str], str] | None,
) -> _Results:
    _, _, _, _, _, _, window, scale, softcap, _ = step.nodes[0].args
    longest = total if equal(step.nodes[0].shape[0], 1) else g.op("ReduceMax", total, g.ints(0), keepdims=1)
    results = g.ops(
        "GroupQueryAttention", 3, *rows, *caches, g.cast(g.op("Sub", total, g.ints(1)), "i32"), g.cast(longest, "i32"),
        None, None, None, None if bias is None else bias(longest), domain=MICROSOFT,
        num_heads=step.nodes[0].shape[1], kv_num_heads=step.nodes[1].shape[1], scale=scale,
        local_window_size=window, softcap=softcap or None,
    )  # fmt: skip
    return results[0], results[1], results[2]


def _bias(g: Graph, step: _Step, bias: str | None, number: str | None) -> Callable[[str], str] | None:
    """The bias for ``number`` new rows (None: one) and the rows of the caches up to the longest, ``[B, H, S, T]``."""
    if bias is None:
        return None
    kind: TensorType = step.nodes[0].args[5].tensor
    shape = (*[1] * (4 - kind.rank), *kind.shape)

    def make(longest: str) -> str:
        value = g.op("Unsqueeze", bias, g.ints(*range(4 - kind.rank))) if kind.rank < 4 else bias
        ends = g.op("Concat", number or g.ints(1), longest, axis=0)
        if not equal(shape[2], 1) and number is not None:
            value = g.op("Slice", value, g.ints(0), number, g.ints(2))
        if not equal(shape[3], 1):
            return _expanded(g, g.op("Slice", value, g.ints(0), longest, g.ints(3)), shape, ends)
        return _expanded(g, value, shape, ends)

    return make


def _expanded(g: Graph, value: str, shape: tuple[Size, ...], ends: str) -> str:
    """A bias with its last two axes whole."""
    if not equal(shape[2], 1) and not equal(shape[3], 1):
        return value
    return g.op("Expand", value, g.op("Concat", g.ints(1, 1), ends, axis=0))
