"""Verification: a table of checks that every program must pass after every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from planish.errors import PlanishError, ShapeError
from planish.ir.dialect import bind, operation
from planish.ir.infer import infer
from planish.ir.node import LEAVES, Program, argument_key
from planish.ir.shapes import Mismatch
from planish.ir.types import Symbol, TensorType, symbols_of
from planish.ir.weights import Weights

Check: TypeAlias = "Callable[[Program, Weights | None], Iterator[str]]"


def operations_known(program: Program, weights: Weights | None) -> Iterator[str]:
    """Every operation is in the dialect and its arguments are in canonical form."""
    for node in program.nodes:
        if node.op in LEAVES:
            continue
        try:
            row = operation(node.op)
            bound = bind(row, node.args, {})
        except (PlanishError, Mismatch) as problem:
            yield f"{node!r}: {problem}"
            continue
        if argument_key(bound) != argument_key(node.args):
            yield f"{node!r}: arguments are not canonical, they should be {bound}"
        elif infer(row, node.args) != node.type:
            yield f"{node!r}: the type should be {infer(row, node.args)}"


def inputs_declared(program: Program, weights: Weights | None) -> Iterator[str]:
    """Inputs in use are parameters, and have names of their own."""
    names = [i.name for i in program.inputs]
    for name in {n for n in names if names.count(n) > 1}:
        yield f"two inputs are called {name}"
    for node in program.nodes:
        if node.op == "input" and node not in program.inputs:
            yield f"input {node.name} is used but is not a parameter of {program.name}"


def results_are_tensors(program: Program, weights: Weights | None) -> Iterator[str]:
    """Outputs and next states are single tensors; next states keep the type of the state."""
    if not program.roots:
        yield f"{program.name} returns nothing"
    for root in program.roots:
        if not isinstance(root.type, TensorType):
            yield f"{root!r} has several results; return planish.item of it"
    kinds = {n.name: n.type for n in program.nodes if n.op == "state"}
    for name, value in program.states:
        if name in kinds and kinds[name] != value.type:
            yield f"state {name} is {kinds[name]} but its next value is {value.type}"


def leaves_consistent(program: Program, weights: Weights | None) -> Iterator[str]:
    """A constant or state has one type, and constants are in the weights with that type."""
    seen: dict[tuple[str, str], object] = {}
    for node in program.nodes:
        if node.op not in ("const", "state"):
            continue
        if seen.setdefault((node.op, node.name), node.type) != node.type:
            yield f"{node.op} {node.name} is used with two types, {seen[node.op, node.name]} and {node.type}"
        if weights is not None and node.op == "const":
            if node.name not in weights:
                yield f"constant {node.name} is not among the weights"
            elif weights.type(node.name) != node.type:
                yield f"constant {node.name} is {node.type}, the weight is {weights.type(node.name)}"


def dimensions_bound(program: Program, weights: Weights | None) -> Iterator[str]:
    """Every symbol has one range and occurs in the type of an input or a state."""
    ranges: dict[str, Symbol] = {}
    for symbol in program.symbols:
        if ranges.setdefault(symbol.name, symbol) is not symbol:
            yield f"the dimension {symbol.name} is used with two ranges"
    known = symbols_of(tuple(n.type for n in program.nodes if n.op == "state")) | symbols_of(
        tuple(i.type for i in program.inputs)
    )
    for symbol in program.symbols:
        if symbol not in known:
            yield f"the dimension {symbol.name} is not bound by any input"


def nested_valid(program: Program, weights: Weights | None) -> Iterator[str]:
    """Nested programs pass the same checks."""
    for child in program.nested():
        for message in problems(child, weights, nested=True):
            yield f"in {child.name}: {message}"


CHECKS: tuple[Check, ...] = (
    operations_known, inputs_declared, results_are_tensors, leaves_consistent, dimensions_bound, nested_valid,
)  # fmt: skip


def problems(program: Program, weights: Weights | None = None, *, nested: bool = False) -> list[str]:
    """Everything that is wrong with a program; empty if it is valid."""
    checks = [c for c in CHECKS if not (nested and c is dimensions_bound)]
    return [message for check in checks for message in check(program, weights)]


def verify(program: Program, weights: Weights | None = None) -> Program:
    """The program itself if it is valid; raises ``ShapeError`` PL360 that lists what is wrong."""
    found = problems(program, weights)
    if found:
        shown = "\n  ".join(found[:20]) + (f"\n  and {len(found) - 20} more" if len(found) > 20 else "")
        raise ShapeError("PL360", f"{program.name} is not valid:\n  {shown}")
    return program
