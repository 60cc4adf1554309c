"""Only the last row of each sequence: the rest of the work on rows apart is not done for the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planish.ir.namespace import aten, make
from planish.ir.node import Node, Program
from planish.ir.types import size
from planish.passes.position.axes import routes, rows_of


def last_rows(program: Program, length: Any, count: Node) -> Program:
    """The program whose output is that of row ``count - 1`` alone, ``[B, 1, ...]``.

    The row is taken as early as possible: below all that treats rows apart and reads one value with rows.
    """
    chain: list[Node] = []
    node = program.outputs[0]
    while (below := _below(node, length)) is not None:
        chain.append(node)
        node = below
    batch, width = node.shape[0], node.shape[2]
    index = aten.clamp(aten.sub(count, 1), 0)
    made = aten.gather(node, 1, aten.expand(aten.view(index, [batch, 1, 1]), [batch, 1, width]))
    origins = dict(program.origins)
    for each in reversed(chain):
        one = {length: size(1)}
        args = tuple(made if a is node else _with_one(a, length) for a in each.args)
        node, made = each, make(each.op, *args)
        if each in program.origins:
            origins[made] = program.origins[each]
        del one
    return replace(program, outputs=(made, *program.outputs[1:]), origins=origins)


def _below(node: Node, length: Any) -> Node | None:
    """The one operand with rows, if the node treats the rows of axis 1 apart and both have three axes."""
    found = None if node.is_leaf or node.op == "planish.attend" else routes(node)
    with_rows = [(o, r) for o, r in found or () if rows_of(o.shape, length)]
    if len(with_rows) != 1 or node.rank != 3:
        return None
    operand, route = with_rows[0]
    good = operand.rank == 3 and rows_of(operand.shape, length) == (1,) and route[1] == 1
    return operand if good else None


def _with_one(arg: Any, length: Any) -> Any:
    import sympy

    if isinstance(arg, tuple):
        return tuple(_with_one(a, length) for a in arg)
    return size(arg.xreplace({length: sympy.Integer(1)})) if hasattr(arg, "xreplace") else arg
