"""Tables whose last axis repeats itself, as rotary cosines and sines do: find the half that is repeated."""

from __future__ import annotations

from planish.ir.dialect import operation
from planish.ir.infer import infer
from planish.ir.namespace import aten
from planish.ir.node import Node, intern, map_operands
from planish.ir.types import equal


def half_of(table: Node, interleaved: bool, depth: int = 24) -> Node | None:
    """``h`` with ``table == cat([h, h], -1)``, or ``== repeat_interleave(h, 2, -1)`` if interleaved; else None.

    Decided by structure: repetition survives pointwise operations and moves of other axes.
    """
    if not table.rank or depth == 0 or table.is_leaf:
        return None
    half = table.shape[-1] // 2 if isinstance(table.shape[-1], int) and table.shape[-1] % 2 == 0 else None
    if half is None:
        return None
    found = _repeated(table, interleaved)
    if found is not None:
        return found
    row = operation(table.op)
    if row.pointwise:
        return _pointwise_half(table, interleaved, depth)
    if table.op == "aten.view":
        return _view_half(table, interleaved, depth)
    if table.op in ("aten.permute", "aten.expand", "aten.slice", "aten.index_select"):
        return _moved_half(table, interleaved, depth)
    return None


def _repeated(table: Node, interleaved: bool) -> Node | None:
    if not interleaved and table.op == "aten.cat":
        parts, dim = table.args
        if dim == table.rank - 1 and len(parts) == 2 and parts[0] is parts[1]:
            found: Node = parts[0]
            return found
    if interleaved and table.op == "aten.view":
        wide = table.args[0]
        if wide.op == "aten.expand" and wide.rank == table.rank + 1 and equal(wide.shape[-1], 2):
            narrow = wide.args[0]
            if (
                narrow.rank == wide.rank
                and equal(narrow.shape[-1], 1)
                and wide.shape[:-2] == table.shape[:-1]
            ):
                return _whole(narrow, wide)
    if interleaved and table.op == "aten.view" and table.args[0].op == "aten.cat":
        joined = table.args[0]
        parts, dim = joined.args
        same = len(parts) == 2 and parts[0] is parts[1] and dim == joined.rank - 1 == table.rank
        if same and equal(parts[0].shape[-1], 1):
            half: Node = aten.view(parts[0], parts[0].shape[:-1])
            return half
    return None


def _whole(narrow: Node, wide: Node) -> Node:
    half: Node = aten.view(narrow, narrow.shape[:-1])
    return half if half.shape == wide.shape[:-1] else aten.expand(half, wide.shape[:-1])


def _pointwise_half(table: Node, interleaved: bool, depth: int) -> Node | None:
    halves: dict[Node, Node] = {}
    for operand in table.operands:
        if not operand.rank or equal(operand.shape[-1], 1):
            halves[operand] = operand
            continue
        found = half_of(operand, interleaved, depth - 1)
        if found is None:
            return None
        halves[operand] = found
    args = map_operands(table.args, lambda n: halves[n])
    return intern(table.op, args, infer(operation(table.op), args))


def _view_half(table: Node, interleaved: bool, depth: int) -> Node | None:
    source = table.args[0]
    if not source.rank or not equal(source.shape[-1], table.shape[-1]):
        return None
    found = half_of(source, interleaved, depth - 1)
    return None if found is None else aten.view(found, [*table.shape[:-1], table.shape[-1] // 2])


def _moved_half(table: Node, interleaved: bool, depth: int) -> Node | None:
    source = table.args[0]
    last = source.rank - 1
    if table.op == "aten.permute" and table.args[1][-1] != last:
        return None
    if table.op in ("aten.slice", "aten.index_select") and table.args[1] == last:
        return None
    if not equal(source.shape[-1], table.shape[-1]):
        return None
    found = half_of(source, interleaved, depth - 1)
    if found is None:
        return None
    if table.op == "aten.expand":
        return aten.expand(found, [*table.shape[:-1], table.shape[-1] // 2])
    args = (found, *table.args[1:])
    return intern(table.op, args, infer(operation(table.op), args))
