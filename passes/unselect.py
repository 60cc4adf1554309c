"""The way back from kernels: a program that says what it computes in operations of the dialect, in plain layouts."""

from __future__ import annotations

from typing import Any

from planish.ir.kernel import expanded
from planish.ir.namespace import planish
from planish.ir.node import Node, Program, const, topological
from planish.ir.ops.quantized import packed_bytes
from planish.ir.rewrite import Log, sweep
from planish.ir.types import TensorType, u8
from planish.ir.weights import Weights
from planish.passes.canonical.fold import recipe
from planish.passes.compress.codec import pack
from planish.passes.select import constant_values, evaluated

BACK = {"planish.untile_rows": "planish.tile_rows", "planish.unpanel": "planish.panel"}
"""Layouts by the operations that undo them."""


def unselect(program: Program, weights: Weights) -> Program:
    """The program with kernels replaced by their meanings; constants in plain layouts are added to ``weights``.

    Stored codes stay packed: the weights of the result take no more bytes than those of ``program``.
    """
    program = expanded(program)
    constant = constant_values(program.nodes)

    def plain(node: Node) -> Node | None:
        if node.op in BACK and (inside := node.operands[0]).op == BACK[node.op]:
            source = inside.operands[0]
            return source if source.type == node.type else None
        if node not in constant:
            return None
        if node.op == "planish.unpanel":
            return _codes(node, weights)
        if node.op == "planish.untile_rows" and isinstance(node.type, TensorType):
            return const(_add(node, node.tensor, weights, lambda value: value), node.tensor)
        return None

    return sweep(program, [("unselect", plain)], Log())


def _codes(node: Node, weights: Weights) -> Node:
    bits, length = int(node.args[1]), node.shape[-1]
    if bits == 8:
        return const(_add(node, node.tensor, weights, lambda value: value), node.tensor)
    kind = TensorType(u8, (node.shape[0], packed_bytes(length, bits)))
    name = _add(node, kind, weights, lambda value: pack(value, bits))
    return planish.unpack(const(name, kind), bits, length)


def _add(node: Node, kind: TensorType, weights: Weights, finish: Any) -> str:
    leaf = next(n for n in topological([node]) if n.op == "const")
    name = f"{leaf.name}#plain-{recipe(node)}"
    weights.add_lazy(name, kind, lambda: finish(evaluated(node, weights)))
    return name
