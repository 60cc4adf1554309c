"""What the rules of several kernel families ask of a program."""

from __future__ import annotations

from typing import Any

from planish.ir.node import Node, topological
from planish.ir.rule import Decline

LAYOUTS = frozenset(
    {
        "planish.unpack", "planish.panel", "planish.unpanel", "planish.tile_rows", "planish.untile_rows",
        "planish.dequant", "aten.to", "aten.permute", "aten.view", "aten.cat", "aten.slice", "aten.expand",
    }
)  # fmt: skip
"""Operations that only lay out, decode or cast what is stored."""


SCALES = frozenset({"aten.mul"})
"""Operations that scale what is stored, as a batch norm does with the codes of the convolution before it."""


def is_stored(node: Any) -> bool:
    """True if a value is known when a model is compiled: leaves and what only lays them out, decodes or casts them.

    Constants may also be scaled by constants. Leaves of kind ``input`` count as stored, so that examples of rules can
    stand for constants by their types; the pass that applies the rules keeps them from laying out real inputs.
    """
    if not isinstance(node, Node):
        return False
    below = topological([node])
    known = LAYOUTS if any(n.op == "input" for n in below) else LAYOUTS | SCALES
    return all(n.op in ("const", "input") or n.op in known for n in below)


def stored(node: Any, what: str) -> Node:
    """The node, or :class:`Decline` if it is computed from inputs of the model."""
    if not is_stored(node):
        raise Decline(f"{what} is computed, not stored")
    return node
