"""Kernel selection: what a program says is replaced by kernels of the target that compute it.

The steps: rules that put kernels in the place of operations and lay constants out for them; kernels that read one
input are joined; kernels take in what stands before and after them, where nothing else reads it; and constants in
their new layouts become weights of their own, evaluated when they are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.ir.node import Node, Program, const, topological, users_of
from planish.ir.rewrite import Log, NodeRule, remake, substitute, sweep
from planish.ir.rule import Kind, Rule
from planish.ir.target import Joiner, KernelSet, kernel_set
from planish.ir.types import TensorType, symbols_of
from planish.ir.weights import Weights
from planish.passes.base import Pass
from planish.passes.canonical.fold import recipe

LAYOUTS = frozenset({"planish.tile_rows", "planish.panel"})
"""Operations that lay constants out; they are worth nothing on values that are computed."""

MAX_ROUNDS = 40

TILE = 32
"""Layouts fill rows, and the bytes of rows, up to multiples of at most this."""


@dataclass(frozen=True)
class Select(Pass):
    """Replace operations by the kernels that the target named ``target`` has."""

    kind: ClassVar[Kind] = "close"
    target: str = "cpu"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """The program with kernels; laid-out constants are added to ``weights``."""
        return select(program, weights, kernel_set(self.target), log)


def select(program: Program, weights: Weights, kernels: KernelSet, log: Log) -> Program:
    """The program with the kernels of a set, and with constants in their layouts."""
    return lay_out(with_kernels(program, kernels, log), weights, log)


def with_kernels(program: Program, kernels: KernelSet, log: Log) -> Program:
    """The program with the kernels of a set, which read constants through operations that lay them out."""
    program = sweep(program, [guarded(rule) for rule in kernels.rules], log)
    for joiner in kernels.joiners:
        program = _join(program, joiner, log)
    program = _fuse(program, kernels.fusions, log)
    program = sweep(program, [guarded(rule) for rule in kernels.late], log)
    return _fuse(program, kernels.fusions, log)


def guarded(rule: Rule) -> tuple[str, NodeRule]:
    """The rule, kept from laying out what is not stored."""

    def apply(node: Node) -> Node | None:
        after = rule.apply(node)
        if after is None or any(n.op in LAYOUTS and not is_constant(n) for n in topological([after])):
            return None
        return after

    def at_root(node: Node) -> Node | None:
        return apply(node) if node.op == rule.root else None

    return rule.name, at_root


def is_constant(node: Node) -> bool:
    """True if a value depends on stored constants alone."""
    return node in constant_values(topological([node]))


def constant_values(nodes: Iterable[Node]) -> set[Node]:
    """Those of the nodes (operands first) whose values depend on stored constants alone."""
    found: set[Node] = set()
    for node in nodes:
        if node.op == "const":
            found.add(node)
        elif not node.is_leaf and all(o in found for o in node.operands):
            nested = any(isinstance(a, Program) for a in node.args)
            if not nested and not symbols_of(node.args):
                found.add(node)
    return found


def _join(program: Program, joiner: Joiner, log: Log) -> Program:
    """Put kernels with equal keys, which read one input, into one kernel and take parts of its result."""
    groups: dict[Any, list[Node]] = {}
    for node in program.nodes:
        key = joiner.key(node)
        if key is not None:
            groups.setdefault(key, []).append(node)
    changed: dict[Node, Node] = {}
    for nodes in groups.values():
        parts = joiner.join(nodes) if len(nodes) > 1 and not log.exhausted else None
        for node, part in zip(nodes, parts or (), strict=False):
            log.record(joiner.name, node, part)
            changed[node] = part
    return replaced(program, changed)


def _fuse(program: Program, rules: Sequence[Rule], log: Log) -> Program:
    """Apply rules that take neighbours into a kernel, where what is taken in has no other user."""
    for _ in range(MAX_ROUNDS):
        users = users_of(program)
        roots = set(program.roots)
        changed: dict[Node, Node] = {}
        touched: set[Node] = set()
        for node in program.nodes:
            if node.is_leaf or log.exhausted:
                continue
            for rule in rules:
                if node.op != rule.root:
                    continue
                after = rule.apply(node)
                if after is None or after is node:
                    continue
                inside = absorbed(node, after)
                free = all(n not in roots and set(users[n]) <= inside | {node} for n in inside)
                if free and not inside & touched and node not in touched:
                    log.record(rule.name, node, after)
                    changed[node] = after
                    touched |= inside | {node}
                    break
        if not changed:
            return program
        program = replaced(program, changed)
    return program


def replaced(program: Program, changed: Mapping[Node, Node]) -> Program:
    """The program with nodes replaced all at once; replacements may read nodes that are themselves replaced."""
    if not changed:
        return program
    new: dict[Node, Node] = {}
    origins = dict(program.origins)
    for node in program.nodes:
        if node in changed:
            inside = dict(new)
            for each in topological([changed[node]]):
                if each not in inside:
                    inside[each] = remake(each, inside)
            new[node] = inside[changed[node]]
        else:
            new[node] = remake(node, new)
        if node in origins:
            origins.setdefault(new[node], origins[node])
    return substitute(program, new, origins)


def absorbed(before: Node, after: Node) -> set[Node]:
    """What stands below ``before``, computed from inputs, and no longer below ``after``."""
    kept, below = set(topological([after])), topological([before])
    constant = constant_values(below)
    return {n for n in below if n not in kept and n is not before and n not in constant}


def lay_out(program: Program, weights: Weights, log: Log) -> Program:
    """Make weights of the constant expressions that lay constants out, each evaluated when it is used.

    An expression stays in the program if its value is larger than what it is made of, which counts as filled up to
    whole tiles unless the expression decodes it, or if something else reads that too, which then would be stored twice.
    """
    constant = _layouts(program)
    users = users_of(program)
    roots = set(program.roots)
    outermost = [
        n for n in program.nodes if n in constant and (n in roots or not constant.issuperset(users[n]))
    ]
    readers = _readers(program, outermost)
    changed: dict[Node, Node] = {}
    for node in outermost:
        below = topological([node])
        leaves = [n for n in below if n.op == "const"]
        is_decoded = any(map(_decodes, below))
        most = sum(int(leaf.tensor.nbytes) if is_decoded else filled(leaf.tensor) for leaf in leaves)
        if any(readers[leaf] > 1 for leaf in leaves) or int(node.tensor.nbytes) > most:
            continue
        made = const(_add(node, weights), node.tensor)
        log.record("lay-out", node, made)
        changed[node] = made
    return replaced(program, changed)


def _decodes(node: Node) -> bool:
    """True if a node makes more bytes of what is stored than filling up to whole tiles does."""
    widens = node.op == "aten.to" and node.dtype.bits > node.args[0].dtype.bits
    return widens or node.op in ("planish.dequant", "planish.expand_nm")


def filled(kind: TensorType) -> int:
    """The bytes of a constant whose rows, and whose bytes in a row, are filled up to multiples of :data:`TILE`."""
    rows = int(kind.shape[0]) if kind.rank > 1 else 1
    row = -(-int(kind.nbytes) // max(rows, 1))
    whole = -(-rows // TILE) * TILE if kind.rank > 1 else 1
    return whole * (-(-row // TILE) * TILE)


def _readers(program: Program, outermost: Sequence[Node]) -> Counter[Node]:
    """For each constant, how many of these expressions read it; one more if anything outside of them does."""
    found: Counter[Node] = Counter()
    for node in outermost:
        found.update(n for n in topological([node]) if n.op == "const")
    inside, outside, pending = set(outermost), set[Node](), list(program.roots)
    while pending:
        node = pending.pop()
        if node not in outside and node not in inside:
            outside.add(node)
            pending.extend(node.operands)
    found.update(n for n in outside if n.op == "const")
    return found


def _layouts(program: Program) -> set[Node]:
    """The constant expressions with a layout in them."""
    constant = constant_values(program.nodes)
    found: set[Node] = set()
    for node in program.nodes:
        if node in constant and isinstance(node.type, TensorType):
            if node.op in LAYOUTS or any(o in found for o in node.operands):
                found.add(node)
    return found


def _add(node: Node, weights: Weights) -> str:
    name = f"{next(n.name for n in topological([node]) if n.op == 'const')}#layout-{recipe(node)}"
    weights.add_lazy(name, node.tensor, lambda: evaluated(node, weights))
    return name


def evaluated(node: Node, weights: Weights) -> Any:
    """The value of a constant expression, as a contiguous tensor."""
    import torch

    from planish.ir.run import run

    with torch.no_grad():
        return run(Program("layout", (), (node,)), weights)[0].contiguous()
