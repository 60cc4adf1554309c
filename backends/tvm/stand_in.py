"""Kernels on sizes that no axis of an operand has by itself, such as ``B*T``: each gets a name of its own.

The function of a kernel learns its sizes from the shapes of its operands, so each must be a name there.
"""

from __future__ import annotations

from typing import Any

from planish.errors import ShapeError
from planish.ir.namespace import make
from planish.ir.node import Node, input_leaf, map_operands
from planish.ir.types import Size, Symbol, TensorType, dim


def stand_in(node: Node) -> Node:
    """The same operation on leaves whose sizes are numbers and names.

    The node itself where the operation depends on how its sizes are related.
    """
    names: dict[Any, Symbol] = {}

    def named(size: Size) -> Size:
        if isinstance(size, (int, Symbol)):
            return size
        return names.setdefault(size, dim(f"size{len(names)}", 0))

    leaves = {
        operand: input_leaf(f"a{i}", TensorType(operand.dtype, tuple(map(named, operand.shape))))
        for i, operand in enumerate(dict.fromkeys(node.operands))
    }
    if not names:
        return node
    try:
        return make(node.op, *map_operands(node.args, leaves.__getitem__))
    except ShapeError:
        return node
