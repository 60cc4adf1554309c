"""Constant folding that never goes uphill: what is evaluated is no larger than the constants that it frees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.ir.namespace import aten
from planish.ir.node import Node, Program, const, topological, users_of
from planish.ir.rewrite import Log, sweep
from planish.ir.rule import Kind
from planish.ir.types import TensorType, symbols_of
from planish.ir.weights import Weights
from planish.passes.base import Pass, map_programs

DECODES = frozenset({"planish.unpack", "planish.dequant", "planish.expand_nm"})
"""Operations that turn stored codes into values; an expression is never evaluated through one."""


@dataclass(frozen=True)
class Fold(Pass):
    """Evaluate expressions of constants, where the result is not larger than what it frees.

    Results become derived weights whose names are their recipes; results of one element become numbers.
    """

    kind: ClassVar[Kind] = "exact"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Evaluate what may be evaluated until nothing is left."""
        return map_programs(program, lambda each: _fold(each, weights, log))


def _fold(program: Program, weights: Weights, log: Log) -> Program:
    while not log.exhausted:
        chosen = foldable(program)
        after = _evaluate(program, chosen, weights, log) if chosen else program
        if after == program:
            return program
        program = after
    return program


def _evaluate(program: Program, chosen: set[Node], weights: Weights, log: Log) -> Program:
    return sweep(program, [("fold", lambda n: _evaluated(n, weights) if n in chosen else None)], log)


def constant_nodes(program: Program) -> set[Node]:
    """The operations of a program that depend on nothing but constants, and on no decoding of codes."""
    found: set[Node] = set()
    codes: set[Node] = set()
    for node in program.nodes:
        if node.op == "const" or (node.op in ("aten.full", "aten.arange") and not symbols_of(node.args)):
            found.add(node)
            continue
        nested = any(isinstance(a, Program) for a in node.args)
        if node.is_leaf or nested or node.op in DECODES or symbols_of(node.args):
            continue
        if node.operands and all(o in found for o in node.operands):
            (codes if _decodes(node) else found).add(node)
    return {n for n in found if n.op != "const"}


def _decodes(node: Node) -> bool:
    """True if two parts of one encoded weight meet below a node: that is a decoding, in whatever operations."""
    seen: set[str] = set()
    for leaf in topological([node]):
        recipe, slash, _ = leaf.name.rpartition("/") if leaf.op == "const" else ("", "", "")
        if slash and "#" in recipe:
            if recipe in seen:
                return True
            seen.add(recipe)
    return False


def foldable(program: Program) -> set[Node]:
    """The constant expressions whose evaluation does not make the program larger."""
    constant = constant_nodes(program)
    users = users_of(program)
    roots = set(program.roots)
    position = {n: i for i, n in enumerate(program.nodes)}
    chosen: set[Node] = set()
    edge = {n for n in constant if n in roots or any(u not in constant for u in users[n])}
    while edge:
        refused: set[Node] = set()
        for group in _groups(sorted((n for n in edge if _is_work(n)), key=position.__getitem__)):
            if _downhill(group, users, roots):
                chosen |= set(group)
                continue
            alone = [n for n in group if len(group) > 1 and _downhill([n], users, roots)]
            chosen |= set(alone)
            refused |= set(group) - set(alone)
        below = {o for n in refused for o in n.operands if o in constant}
        edge = below - chosen
    return chosen


def _is_work(node: Node) -> bool:
    """Whether evaluation changes anything: not for a tensor that is filled with one number or counts."""
    return node.op not in ("aten.full", "aten.arange") and isinstance(node.type, TensorType)


def _groups(nodes: Sequence[Node]) -> list[list[Node]]:
    """Expressions that share constants, together."""
    groups: dict[int, list[Node]] = {}
    owner: dict[Node, int] = {}
    for index, node in enumerate(nodes):
        groups[index] = [node]
        for leaf in topological([node]):
            if leaf.op != "const":
                continue
            other = owner.get(leaf, index)
            if other != index:
                for moved in groups[other]:
                    for each in topological([moved]):
                        if each.op == "const":
                            owner[each] = index
                groups[index] = groups.pop(other) + groups[index]
            owner[leaf] = index
    return list(groups.values())


def _downhill(nodes: Iterable[Node], users: dict[Node, list[Node]], roots: set[Node]) -> bool:
    """True if the values of the nodes take no more bytes than the constants that nothing else would read."""
    replaced = set(nodes)
    dead: set[Node] = set(replaced)
    freed = 0
    for node in reversed(topological(replaced)):
        if node in replaced:
            continue
        if node not in roots and all(u in dead for u in users[node]):
            dead.add(node)
            if node.op == "const":
                freed += int(node.tensor.nbytes)
    return sum(0 if n.tensor.numel == 1 else int(n.tensor.nbytes) for n in replaced) <= freed


def _evaluated(node: Node, weights: Weights) -> Node | None:
    """The constant that stands for an expression."""
    kind = node.tensor
    if kind.numel == 0:
        return aten.full(kind.shape, 0, kind.dtype)
    if kind.numel == 1 and kind.dtype.kind != "complex" and kind.dtype.bits <= 64:
        return aten.full(kind.shape, _value(node, weights).item(), kind.dtype)
    return const(_add(node, weights), kind)


def _value(node: Node, weights: Weights) -> Any:
    import torch

    from planish.ir.run import run

    with torch.no_grad():
        return run(Program("fold", (), (node,)), weights)[0].contiguous()


def _add(node: Node, weights: Weights) -> str:
    """Add the value of an expression to the weights, evaluated when it is used; returns its name."""
    name = f"{next(n.name for n in topological([node]) if n.op == 'const')}#fold-{recipe(node)}"
    weights.add_lazy(name, node.tensor, lambda: _value(node, weights))
    return name


def recipe(node: Node) -> str:
    """A short digest of a constant expression: its operations, arguments and the names of its constants."""
    order = topological([node])
    number = {n: i for i, n in enumerate(order)}

    def shown(arg: Any) -> str:
        if isinstance(arg, Node):
            return f"%{number[arg]}"
        return f"[{','.join(map(shown, arg))}]" if isinstance(arg, tuple) else repr(arg)

    text = "\n".join(f"{n.op}({','.join(map(shown, n.args))}):{n.type}" for n in order)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
