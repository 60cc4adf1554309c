"""Patterns: expressions with holes, built by the same functions that build nodes, matched against nodes.

Matching tries both orders where the dialect says that an operation is commutative, matches lists element by
element, and can tell how near it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from planish.ir.dialect import Operation, operation
from planish.ir.node import Node, argument_key, repr_argument


@dataclass(frozen=True, eq=False)
class Hole:
    """A place that matches anything: a node, a number, a size, a list."""

    name: str


@dataclass(frozen=True, eq=False)
class Pattern:
    """An operation over patterns, holes and literals; omitted arguments match anything."""

    row: Operation
    args: tuple[Any, ...]

    def size(self) -> int:
        """Number of operations in the pattern."""
        return 1 + sum(a.size() for a in patterns_in(self.args))


def patterns_in(args: tuple[Any, ...]) -> Iterator[Pattern]:
    """The patterns among arguments and in their lists."""
    for arg in args:
        if isinstance(arg, Pattern):
            yield arg
        elif isinstance(arg, (tuple, list)):
            yield from patterns_in(tuple(arg))


class _Any:
    """The value of an omitted argument."""


ANY = _Any()


def build(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pattern:
    """The pattern for a call with holes; an omitted argument with a default must have that default."""
    row = operation(name)
    given = dict(zip((p.name for p in row.parameters), args, strict=False)) | dict(kwargs)
    full = tuple(
        given.get(p.name, ANY if p.kind == "axes?" else p.default)
        if not p.required or p.name in given
        else ANY
        for p in row.parameters
    )
    return Pattern(row, full)


Bindings = dict[str, Any]


@dataclass
class Miss:
    """The nearest miss of a pattern: how many operations matched, where it stopped and why."""

    matched: int
    node: Node
    reason: str


def match(pattern: Pattern | Hole, node: Node) -> Bindings | None:
    """What the holes stand for if the pattern matches at this node, else None."""
    return next(_match(pattern, node, {}, None, 0), None)


def matches(pattern: Pattern, node: Node) -> Iterator[Bindings]:
    """Every way in which the pattern matches at this node: commutative operations give several."""
    return _match(pattern, node, {}, None, 0)


def explain(pattern: Pattern, node: Node) -> Miss | None:
    """The nearest miss at this node; None if the pattern matches or not even the root does."""
    miss: list[Miss] = []
    if next(_match(pattern, node, {}, miss, 0), None) is not None:
        return None
    return max(miss, key=lambda m: m.matched, default=None)


def _match(want: Any, have: Any, bound: Bindings, miss: list[Miss] | None, depth: int) -> Iterator[Bindings]:
    if isinstance(want, Hole):
        if want.name not in bound:
            yield {**bound, want.name: have}
        elif _same(bound[want.name], have):
            yield bound
        return
    if want is ANY:
        yield bound
        return
    if isinstance(want, Pattern):
        if not isinstance(have, Node) or have.op != want.row.name:
            if miss is not None and isinstance(have, Node) and depth:
                miss.append(Miss(depth, have, f"expected {want.row.name}, found {have.op}"))
            return
        orders = [want.args]
        if want.row.commutative:
            orders.append((want.args[1], want.args[0], *want.args[2:]))
        for order in orders:
            yield from _match_all(order, have.args, bound, miss, depth + 1, have)
        return
    if isinstance(want, (tuple, list)):
        if isinstance(have, tuple) and len(have) == len(want):
            yield from _match_all(tuple(want), have, bound, miss, depth, None)
        return
    if _same(want, have):
        yield bound


def _match_all(
    wants: tuple[Any, ...],
    haves: tuple[Any, ...],
    bound: Bindings,
    miss: list[Miss] | None,
    depth: int,
    at: Node | None,
) -> Iterator[Bindings]:
    if not wants:
        yield bound
        return
    found = False
    for extended in _match(wants[0], haves[0], bound, miss, depth):
        found = True
        yield from _match_all(wants[1:], haves[1:], extended, miss, depth, at)
    if not found and miss is not None and at is not None and not isinstance(wants[0], Pattern):
        miss.append(Miss(depth, at, f"expected {_shown(wants[0])}, found {repr_argument(haves[0])}"))


def _shown(want: Any) -> str:
    return f"the same as {want.name}" if isinstance(want, Hole) else repr(want)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Node) or isinstance(b, Node):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return float(a) == float(b) and isinstance(a, bool) == isinstance(b, bool)
    return bool(argument_key(a) == argument_key(b)) if isinstance(a, tuple) == isinstance(b, tuple) else False
