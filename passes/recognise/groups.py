"""Fusion groups: linear layers that read one input in one module; runtimes fuse them, so they are decided together."""

from __future__ import annotations

from dataclasses import dataclass

from planish.ir.node import Node, Program, topological


@dataclass(frozen=True)
class Group:
    """Weights that are decided together, such as q, k and v of one attention or gate and up of one MLP."""

    name: str
    weights: tuple[str, ...]
    numel: int
    kind: str


def weight_of(node: Node) -> Node | None:
    """The constant behind the weight of a linear layer or the table of an embedding, also through a decoding."""
    if node.op not in ("aten.linear", "aten.embedding", "aten.convolution"):
        return None
    place = 0 if node.op == "aten.embedding" else 1
    leaves = [n for n in topological([node.args[place]]) if n.is_leaf]
    if not leaves or any(n.op != "const" for n in leaves):
        return None
    return max(leaves, key=lambda n: int(n.tensor.nbytes))


def base_name(name: str) -> str:
    """The weight that a derived weight was made from."""
    return name.partition("#")[0]


def find_groups(program: Program) -> tuple[Group, ...]:
    """The decision groups of a program, in the order of first use.

    Linear layers with constant weights form a group if they read the same value and their weights belong to the same
    module; an embedding that shares its table with a linear layer is one group with it.
    """
    members: dict[tuple[Node | str, str], list[tuple[str, int, str]]] = {}
    for node in program.nodes:
        leaf = weight_of(node)
        if leaf is None:
            continue
        name = base_name(leaf.name)
        parent = name.removesuffix(".weight").rpartition(".")[0]
        source: Node | str = node.args[0] if node.op == "aten.linear" else name
        rows = node.args[0 if node.op == "aten.embedding" else 1].tensor
        members.setdefault((source, parent), []).append(
            (name, int(rows.numel), node.op.removeprefix("aten."))
        )
    tied = _tied(members)
    groups = []
    for key, found in members.items():
        unique = {name: (numel, kind) for name, numel, kind in found}
        if key in tied:
            continue
        kinds = {kind for _, kind in unique.values()}
        groups.append(
            Group(
                _joint_name(tuple(unique)),
                tuple(unique),
                sum(n for n, _ in unique.values()),
                "+".join(sorted(kinds)),
            )
        )
    return tuple(groups)


def _tied(members: dict[tuple[Node | str, str], list[tuple[str, int, str]]]) -> set[tuple[Node | str, str]]:
    """Keys whose weights are all in an earlier group already."""
    seen: set[str] = set()
    out = set()
    for key, found in members.items():
        names = {name for name, _, _ in found}
        if names <= seen:
            out.add(key)
        seen |= names
    return out


def _joint_name(names: tuple[str, ...]) -> str:
    """``layers.3.self_attn.{q_proj,k_proj,v_proj}`` for several weights of one module."""
    short = [n.removesuffix(".weight") for n in names]
    if len(short) == 1:
        return short[0]
    parent = short[0].rpartition(".")[0]
    lead = f"{parent}." if parent and all(s.startswith(f"{parent}.") for s in short) else ""
    return f"{lead}{{{','.join(s.removeprefix(lead) for s in short)}}}"
