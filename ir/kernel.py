"""Kernels: operations ``kernel.NAME`` whose meaning is an expression of the dialect.

The meaning gives the result type, the eager implementation, and the reference of every test; a backend adds how it is
computed. A selection pass replaces what a program says by kernels; :func:`expanded` undoes that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planish.ir.dialect import Operation, define
from planish.ir.namespace import Namespace, make
from planish.ir.node import Node, Program, input_leaf, map_operands, topological
from planish.ir.types import TensorType, Type

kernel = Namespace("kernel")
"""Kernels as attributes: ``kernel.linear_affine(...)`` builds a pattern, a node or a number."""


@dataclass(frozen=True)
class Declared:
    """A kernel: its name, its meaning as a function of its arguments, and the row of the dialect."""

    name: str
    meaning: Callable[..., Any]
    row: Operation


KERNELS: dict[str, Declared] = {}
"""Every kernel by name, without the prefix."""


def declare(name: str, signature: str, meaning: Callable[..., Any], *, doc: str = "") -> Declared:
    """Add the operation ``kernel.NAME``; ``signature`` is written as for :func:`planish.ir.dialect.define`.

    ``meaning`` takes the arguments of the signature, in order, and returns an expression of the dialect without
    kernels; with torch tensors it must compute (the operations it calls read as numbers then).
    """

    def rule(*types: Any) -> Type:
        return meaning(*_as_leaves(types)).type

    row = define(f"kernel.{name}", signature, rule, torch=meaning, doc=doc or (meaning.__doc__ or ""))
    made = Declared(name, meaning, row)
    KERNELS[name] = made
    return made


def _as_leaves(values: tuple[Any, ...]) -> tuple[Any, ...]:
    made: list[Any] = []
    for i, value in enumerate(values):
        if isinstance(value, TensorType):
            made.append(input_leaf(f"a{i}", value))
        else:
            made.append(_as_leaves(value) if isinstance(value, tuple) else value)
    return tuple(made)


def meaning_of(node: Node) -> Node:
    """The expression that a kernel node stands for; other nodes stand for themselves."""
    if not node.op.startswith("kernel."):
        return node
    return KERNELS[node.op.removeprefix("kernel.")].meaning(*node.args)


def expanded(program: Program) -> Program:
    """The program with every kernel replaced by its meaning."""
    found: dict[Node, Node] = {}
    for node in topological(program.roots):
        if node.is_leaf:
            found[node] = node
            continue
        args = map_operands(node.args, found.__getitem__)
        found[node] = meaning_of(node if args == node.args else make(node.op, *args))
    outputs = [found[n] for n in program.outputs]
    return program.with_roots(outputs, [found[n] for _, n in program.states])


__all__ = ["KERNELS", "Declared", "declare", "expanded", "kernel", "meaning_of"]
