"""Rules: equations between expressions with the same holes, registered, documented and tested in one loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from planish.errors import PlanishError, ShapeError
from planish.ir.node import Node, input_leaf
from planish.ir.pattern import Hole, Miss, Pattern, explain, matches, patterns_in

Kind: TypeAlias = Literal["exact", "close", "lossy"]


class Decline(Exception):
    """Raised by a rule that matched but does not apply; says why."""


@dataclass(frozen=True, eq=False)
class Rule:
    """An equation ``left = right`` over holes.

    ``exact`` rules give bitwise equal results, ``close`` ones reassociate floating point within ``tolerance``
    (relative to the largest value).
    """

    name: str
    left: Callable[..., Any]
    right: Callable[..., Node]
    kind: Kind
    example: Mapping[str, Any]
    tolerance: float
    pattern: Pattern
    doc: str = field(default="")

    @property
    def root(self) -> str:
        """The operation at which the rule may fire."""
        return self.pattern.row.name

    @cached_property
    def needs(self) -> frozenset[str]:
        """Operations that operands of the root must have; a node without them is passed over quickly."""
        return frozenset(p.row.name for p in patterns_in(self.pattern.args))

    def apply(self, node: Node) -> Node | None:
        """The right side at this node, or None if the left side does not match or the rule declines."""
        for bound in matches(self.pattern, node):
            try:
                result = self.right(**bound)
            except Decline:
                continue
            if result is node:
                continue
            if result.type != node.type:
                raise ShapeError(
                    "PL350", f"rule {self.name} changes {node.type} into {result.type} at {node!r}"
                )
            return result
        return None

    def why(self, node: Node) -> Miss | None:
        """The nearest miss at this node; None if the rule fires or is not about this operation."""
        if node.op != self.root:
            return None
        declined: str | None = None
        for bound in matches(self.pattern, node):
            try:
                self.right(**bound)
            except Decline as reason:
                declined = str(reason)
            else:
                return None
        if declined is None:
            return explain(self.pattern, node)
        return Miss(self.pattern.size(), node, f"declined: {declined}")

    def example_sides(self) -> tuple[Node, Node | None]:
        """The left side on the example's types, and what the rule makes of it."""
        from planish.ir.parser import parse_type

        values = {}
        for name, given in self.example.items():
            is_type = isinstance(given, str) and "[" in given
            values[name] = (
                input_leaf(name, parse_type(given)) if is_type else given() if callable(given) else given
            )
        left = self.left(**values)
        return left, self.apply(left)


RULES: dict[str, Rule] = {}
"""Every rule by name."""


def rule(
    left: Callable[..., Any], *, example: Mapping[str, Any], kind: Kind = "exact", tolerance: float = 0.0
) -> Callable[[Callable[..., Node]], Rule]:  # fmt: skip
    """Declare a rule: ``left`` is the pattern, the decorated function (same parameters) gives the right side.

    The docstring begins with the equation; ``example`` gives a type or value per hole on which the rule fires. The
    function raises :class:`Decline` with a reason when the rule does not apply.
    """

    def declare(right: Callable[..., Node]) -> Rule:
        holes = list(inspect.signature(left).parameters)
        if holes != list(inspect.signature(right).parameters) or set(holes) != set(example):
            raise ShapeError(
                "PL351", f"rule {right.__name__}: pattern, function and example need the same holes"
            )
        pattern = left(**{h: Hole(h) for h in holes})
        if not isinstance(pattern, Pattern):
            raise ShapeError("PL351", f"rule {right.__name__}: the left side is not an operation")
        name = right.__name__.replace("_", "-")
        if name in RULES:
            raise ShapeError("PL351", f"there are two rules called {name}")
        made = Rule(name, left, right, kind, example, tolerance, pattern, inspect.getdoc(right) or "")
        RULES[name] = made
        return made

    return declare


def check_example(each: Rule, seed: int = 0) -> float:
    """Run both sides of a rule's example in eager torch; returns the largest difference relative to the largest value.

    Raises ``PlanishError`` if the rule does not fire or changes the type.
    """
    from planish.ir.node import Program, topological
    from planish.ir.run import example_value, run
    from planish.ir.types import symbols_of
    from planish.ir.weights import Weights

    left, right = each.example_sides()
    if right is None:
        miss = each.why(left)
        raise ShapeError(
            "PL352", f"rule {each.name} does not fire on its example: {miss.reason if miss else 'no match'}"
        )
    inputs = tuple(n for n in topological([left]) if n.op == "input")
    binding = {
        s: max(s.low, 5 + i) for i, s in enumerate(sorted(symbols_of(tuple(n.type for n in inputs)), key=str))
    }
    values = [example_value(n.tensor, binding, seed + i) for i, n in enumerate(inputs)]
    program = Program("sides", inputs, (left, right))
    a, b = run(program, Weights(), *values)
    if a.dtype != b.dtype or a.shape != b.shape:
        raise ShapeError(
            "PL350", f"rule {each.name}: {a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
        )
    if not a.numel():
        return 0.0
    gap = (a.double() - b.double()).abs()
    gap[(a == b) | (a.isnan() & b.isnan())] = 0.0
    scale = float(a.double().nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.dtype.is_floating_point else 1.0
    return float(gap.nan_to_num(math.inf, math.inf).max()) / max(scale, 1e-30)


__all__ = ["RULES", "Decline", "Kind", "PlanishError", "Rule", "check_example", "rule"]
