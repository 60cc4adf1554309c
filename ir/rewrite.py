"""The one sweep driver: applies rules bottom-up, numbers and logs every rewrite, and stops at a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from planish.errors import InternalError
from planish.ir.dialect import operation
from planish.ir.infer import infer
from planish.ir.node import Node, Origin, Program, intern, map_operands
from planish.ir.rule import Rule

MAX_SWEEPS = 60
MAX_STEPS = 1000

NodeRule: TypeAlias = "Callable[[Node], Node | None]"
"""A rewrite that is not an equation between patterns: returns the replacement, or None."""


ByRoot: TypeAlias = "dict[str, list[tuple[frozenset[str], str, NodeRule]]]"
"""Rules by the operation at their root: operations that operands must have, name, function."""


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One step: which rule replaced which node by which."""

    number: int
    rule: str
    before: Node
    after: Node


@dataclass
class Log:
    """All rewrites of a run, in order, how many more may happen, and what passes have to report."""

    limit: int | None = None
    steps: list[Rewrite] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)

    @property
    def exhausted(self) -> bool:
        """True once the limit is reached."""
        return self.limit is not None and len(self.steps) >= self.limit

    def record(self, rule: str, before: Node, after: Node) -> None:
        """Add a step with the next number."""
        self.steps.append(Rewrite(len(self.steps) + 1, rule, before, after))


def remake(node: Node, changed: dict[Node, Node]) -> Node:
    """The node with its operands replaced; the same object if none changed."""
    if all(changed.get(o, o) is o for o in node.operands):
        return node
    args = map_operands(node.args, lambda n: changed.get(n, n))
    return intern(node.op, args, infer(operation(node.op), args))


def sweep(program: Program, rules: Sequence[Rule | tuple[str, NodeRule]], log: Log) -> Program:
    """Visit every node once, operands first, and apply the rules at each until none fires."""
    by_root: ByRoot = {}
    anywhere: list[tuple[str, NodeRule]] = []
    for each in rules:
        if isinstance(each, Rule):
            by_root.setdefault(each.root, []).append((each.needs, each.name, each.apply))
        else:
            anywhere.append(each)
    changed: dict[Node, Node] = {}
    origins = dict(program.origins)
    moved = False
    for node in program.nodes:
        result = remake(node, changed) if moved else node
        if result is not node:
            _inherit(origins, node, result)
        result = _settle(result, by_root, anywhere, log, origins)
        if result is not node:
            changed[node] = result
            moved = True
    if not moved:
        return program
    return substitute(program, changed, origins)


def _settle(
    node: Node, by_root: ByRoot, anywhere: list[tuple[str, NodeRule]], log: Log,
    origins: dict[Node, Origin],
) -> Node:  # fmt: skip
    for _ in range(MAX_STEPS):
        have = {operand.op for operand in node.operands}
        table = [(name, apply) for needs, name, apply in by_root.get(node.op, ()) if needs <= have]
        for name, apply in (*table, *anywhere) if anywhere else table:
            if log.exhausted:
                return node
            after = apply(node)
            if after is not None and after is not node:
                log.record(name, node, after)
                _inherit(origins, node, after)
                node = after
                break
        else:
            return node
    raise _endless(log, f"{MAX_STEPS} steps at one place")


def _endless(log: Log, after: str) -> InternalError:
    culprits = sorted({s.rule for s in log.steps[-20:]})
    return InternalError(
        "PL901", f"rewriting does not end after {after}; still firing: {', '.join(culprits)}"
    )


def _inherit(origins: dict[Node, Origin], before: Node, after: Node) -> None:
    """New nodes come from where the replaced node came from."""
    origin = origins.get(before)
    if origin is None:
        return
    stack = [after]
    while stack:
        node = stack.pop()
        if not node.is_leaf and node not in origins:
            origins[node] = origin
            stack.extend(node.operands)


def substitute(
    program: Program, changed: dict[Node, Node], origins: dict[Node, Origin] | None = None
) -> Program:
    """The program with roots replaced as given, and origins of nodes that are still in use."""
    outputs = tuple(changed.get(o, o) for o in program.outputs)
    states = tuple((n, changed.get(v, v)) for n, v in program.states)
    made = replace(
        program, outputs=outputs, states=states, origins=program.origins if origins is None else origins
    )
    alive = made.nodes
    known = made.origins
    return replace(made, origins={n: known[n] for n in alive if n in known})


def replace_nodes(program: Program, replacements: dict[Node, Node]) -> Program:
    """The program with some nodes replaced by others of the same type, and everything above rebuilt."""
    return sweep(program, [("replace", lambda n: replacements.get(n))], Log())


def rewrite(
    program: Program, rules: Iterable[Rule | tuple[str, NodeRule]], log: Log | None = None
) -> Program:
    """Sweep until nothing changes; raises ``InternalError`` PL901 if the rules undo each other for ever."""
    ready = list(rules)
    log = Log() if log is None else log
    for _ in range(MAX_SWEEPS):
        after = sweep(program, ready, log)
        if after.roots == program.roots:
            return after
        program = after
        if log.exhausted:
            return program
    raise _endless(log, f"{MAX_SWEEPS} sweeps")
