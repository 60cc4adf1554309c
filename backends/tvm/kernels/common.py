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


def is_stored(node: Any) -> bool:
    """True if a value is known when a model is compiled: leaves and what only lays them out, decodes or casts them.

    Leaves of kind ``input`` count as stored only without symbolic sizes, so that examples of rules can stand for
    constants by their types; real inputs of that kind are told apart by :func:`stored`.
    """
    return isinstance(node, Node) and all(
        n.op == "const" or n.op in LAYOUTS or n.op == "input" for n in topological([node])
    )


def stored(node: Any, what: str) -> Node:
    """The node, or :class:`Decline` if it is computed from inputs of the model."""
    if not is_stored(node):
        raise Decline(f"{what} is computed, not stored")
    return node
