"""Which writes to caches change the memory of a state instead of a copy of it.

A state comes in as a parameter and its next value goes out as a result. Where that is the state with rows put to it,
and nothing else reads what the state was before, the rows can be written where they belong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planish.ir.node import Node, topological

PUT = "kernel.put"
"""The operation that can be done in place."""


def written_in_place(states: Sequence[tuple[str, Node]], roots: Sequence[Node]) -> frozenset[Node]:
    """The writes that change their first operand: all of those between a state and its next value, or none of them.

    ``states`` are the next values by name, ``roots`` all results. A value that is changed may have no reader but the
    write itself: otherwise the order of both would matter. A next value that two states share is copied.
    """
    readers = Counter(roots)
    for node in topological(roots):
        readers.update(node.operands)
    shared = Counter(node for _, node in states)
    found: set[Node] = set()
    for name, node in states:
        chain: list[Node] = []
        while node.op == PUT and readers[node.args[0]] == 1:
            chain.append(node)
            node = node.args[0]
        if chain and shared[chain[0]] == 1 and node.op == "state" and node.name == name:
            found.update(chain)
    return frozenset(found)
