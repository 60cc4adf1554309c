"""What a kernel node costs, as far as its types tell: bytes that it touches and multiply-adds of what it means."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from planish.ir.kernel import meaning_of
from planish.ir.namespace import make
from planish.ir.node import Node, input_leaf, map_operands, repr_argument, topological
from planish.ir.target import Machine
from planish.ir.types import Symbol, evaluate, symbols_of

Sizes = Mapping[Symbol, int]

TOKENS = (1, 256)
"""What sizes that are symbols stand for: a single token or image, and many."""

LARGEST = 2_000_000_000
"""Multiply-adds of one call up to which many are 256; else they are 64, 16 or 4."""

_BATCHES = ("b", "n", "batch", "batch_size")


def kernel_text(node: Node) -> str:
    """A kernel with types in the place of its operands; operands that are one value are told by their number."""
    seen: dict[Node, int] = {}

    def shown(argument: Any) -> str:
        if isinstance(argument, tuple):
            return f"[{', '.join(map(shown, argument))}]"
        if not isinstance(argument, Node):
            return repr_argument(argument)
        known = argument in seen
        number = seen.setdefault(argument, len(seen))
        return f"operand {number}" if known else str(argument.type)

    return f"{node.op.removeprefix('kernel.')}({', '.join(map(shown, node.args))})"


def alone(node: Node) -> Node:
    """The same kernel on inputs, so that nothing before it is seen."""
    leaves = {o: input_leaf(f"a{i}", o.tensor) for i, o in enumerate(dict.fromkeys(node.operands))}
    return make(node.op, *map_operands(node.args, leaves.__getitem__))


def shape_at(node: Node, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a node at given sizes."""
    return tuple(evaluate(s, sizes) for s in node.shape)


def multiply_adds(node: Node, sizes: Sizes) -> int:
    """Multiply-adds of the products, convolutions and attentions that a kernel stands for."""
    return sum(_products(each, sizes) for each in topological([meaning_of(alone(node))]) if not each.is_leaf)


def _products(node: Node, sizes: Sizes) -> int:
    name = node.op.partition(".")[2]
    if name in ("linear", "matmul", "mm", "bmm"):
        return prod(shape_at(node, sizes)) * shape_at(node.args[0], sizes)[-1]
    if name == "convolution":
        return prod(shape_at(node, sizes)) * prod(shape_at(node.args[1], sizes)[1:])
    if name == "attention":
        q, k, v = (shape_at(each, sizes) for each in node.args[:3])
        return prod(q[:3]) * k[2] * (q[3] + v[3])
    return 0


def touched(node: Node, sizes: Sizes) -> int:
    """Bytes of the operands and of the result."""
    return sum(
        prod(shape_at(each, sizes)) * each.dtype.bits // 8 for each in (*dict.fromkeys(node.operands), node)
    )


def seconds(node: Node, sizes: Sizes, machine: Machine) -> float:
    """The time of one call by the speed that is assumed of a machine: of memory or of arithmetic."""
    rate = machine.peak.get("f32", 50.0) * 0.5e9
    return max(touched(node, sizes) / (machine.bandwidth * 1e9), multiply_adds(node, sizes) / rate)


def cases(node: Node) -> tuple[dict[Symbol, int], ...]:
    """Sizes at which a kernel is judged: its symbols at 1 and at 256 (batches at 1), or as near as they may be."""
    symbols = sorted(
        symbols_of(tuple(o.type for o in node.operands)) | symbols_of(node.type), key=lambda s: s.name
    )
    if not symbols:
        return ({},)
    free = [s for s in symbols if s.name.lower() not in _BATCHES] or symbols

    def at(many: int) -> dict[Symbol, int]:
        return {s: min(max(many if s in free else 1, s.low), s.high) for s in symbols}

    few, many = at(TOKENS[0]), at(4)
    for count in (TOKENS[1], 64, 16):
        if multiply_adds(node, at(count)) <= LARGEST:
            many = at(count)
            break
    return (few, many) if few != many else (few,)
