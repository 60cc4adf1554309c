"""Which neighbouring operations become one function: chains in which each element is computed where it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planish.backends.tvm.table import Row, table
from planish.ir.node import Node
from planish.ir.types import TensorType, at_least

CHEAP = frozenset(
    {
        "aten.full", "aten.arange", "aten.expand", "aten.to", "aten.permute", "aten.slice", "aten.where", "aten.eq",
        "aten.ne", "aten.lt", "aten.le", "aten.gt", "aten.ge", "aten.neg", "aten.logical_not", "aten.bitwise_and",
        "aten.bitwise_or", "aten.bitwise_not", "planish.unpack", "planish.dequant",
    }
)  # fmt: skip
"""Operations that cost no more than the reading of their results."""

FETCHES = frozenset({"aten.embedding", "aten.gather", "aten.index_select", "aten.index", "aten.slice"})
"""Operations that read a part of their first operand: what they do not read need not be computed."""

MOST_NODES = 48
MOST_OPERANDS = 20


def groups(nodes: Sequence[Node], kept: frozenset[Node]) -> Mapping[Node, frozenset[Node]]:
    """For every node that is computed, the nodes computed with it; ``kept`` are nodes that others than these read.

    ``nodes`` are in order, operands before users. A node that is part of a group of another is not among the keys.
    """
    users: dict[Node, list[Node]] = {n: [] for n in nodes}
    for node in nodes:
        for operand in dict.fromkeys(node.operands):
            if operand in users:
                users[operand].append(node)
    home: dict[Node, Node] = {}
    members: dict[Node, set[Node]] = {}
    rates: dict[Node, bool] = {}  # False: elements of this node may be computed many times
    for node in reversed(nodes):
        row = table().get(node.op)
        root = _joined(node, row, users[node], home, rates) if node not in kept else None
        if root is not None and _fits(members[root], node):
            home[node] = root
            members[root].add(node)
            rates[node] = all(rates[u] and _once(node, u) for u in users[node]) and len(users[node]) < 3
        else:
            home[node], rates[node] = node, True
            members[node] = {node}
    return {root: frozenset(found) for root, found in members.items()}


def _joined(
    node: Node, row: Row | None, users: Sequence[Node], home: Mapping[Node, Node], rates: Mapping[Node, bool]
) -> Node | None:
    """The root of the group that a node may join."""
    if row is None or row.form not in ("scalar", "index") or not users:
        return None
    roots = {home[u] for u in users}
    if len(roots) != 1:
        return None
    for user in users:
        reader = table().get(user.op)
        form = reader.form if reader is not None else "kernel"
        if form not in ("scalar", "index", "tensor") or (form == "tensor" and not table()[user.op].once):
            return None
        cheap = node.op in CHEAP
        if not cheap and not (rates[user] and _once(node, user)):
            return None
        if not cheap and len(users) > 1 and not all(_same_place(node, u) for u in users):
            return None
    return next(iter(roots))


def _once(node: Node, user: Node) -> bool:
    """True if the user reads each element of a node about once."""
    if user.op in FETCHES:
        return user.args[0] is node
    row = table()[user.op]
    if not row.once or not isinstance(user.type, TensorType):
        return False
    return row.form != "scalar" or _same_place(node, user)


def _same_place(node: Node, user: Node) -> bool:
    """True if the user reads a node at the index of its own result, or the node has hardly any elements."""
    if table()[user.op].form != "scalar":
        return False
    return node.shape == user.shape or at_least(4, node.tensor.numel)


def _fits(group: set[Node], node: Node) -> bool:
    if len(group) >= MOST_NODES:
        return False
    outside = {o for n in (*group, node) for o in n.operands if o not in group and o is not node}
    return len(outside) <= MOST_OPERANDS
