"""Programs with their dimensions fixed, and whether one program is another one with its dimensions fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy

from planish.errors import PlanishError
from planish.ir.namespace import make
from planish.ir.node import Node, Program, input_leaf, state
from planish.ir.types import Size, Symbol, TensorType, size


def with_sizes(program: Program, sizes: Mapping[Symbol, Size]) -> Program:
    """The program with symbols replaced in all types and arguments; raises ``ShapeError`` where they do not fit."""
    places = {symbol: sympy.sympify(value) for symbol, value in sizes.items()}

    def changed(arg: Any) -> Any:
        if isinstance(arg, Node):
            return made[arg]
        if isinstance(arg, tuple):
            return tuple(map(changed, arg))
        return size(arg.xreplace(places)) if isinstance(arg, sympy.Expr) else arg

    made: dict[Node, Node] = {}
    for node in dict.fromkeys((*program.inputs, *program.nodes)):
        if node.op in ("input", "state"):
            leaf = input_leaf if node.op == "input" else state
            made[node] = leaf(node.name, TensorType(node.dtype, changed(node.shape)))
        else:
            made[node] = node if node.is_leaf else make(node.op, *map(changed, node.args))
    return replace(
        program,
        inputs=tuple(made[leaf] for leaf in program.inputs),
        outputs=tuple(made[node] for node in program.outputs),
        states=tuple((name, made[node]) for name, node in program.states),
        origins={made[node]: origin for node, origin in program.origins.items() if node in made},
    )


def is_special_case(special: Program, general: Program) -> bool:
    """Whether a program is another one for some sizes within its ranges, so that the other can be run in its place."""
    if general.nested() or special.output_names != general.output_names:
        return False
    sizes: dict[Symbol, Size] = {}
    if [leaf.name for leaf in special.inputs] != [leaf.name for leaf in general.inputs]:
        return False
    for mine, other in zip(special.inputs, general.inputs, strict=True):
        if mine.dtype is not other.dtype or mine.rank != other.rank:
            return False
        for fixed, free in zip(mine.shape, other.shape, strict=True):
            if not isinstance(free, Symbol) or fixed is free:
                continue
            if not isinstance(fixed, int) or not free.low <= fixed <= free.high:
                return False
            sizes[free] = fixed
    try:
        made = with_sizes(general, sizes)
    except PlanishError:
        return False
    return (made.inputs, made.roots) == (special.inputs, special.roots) and [n for n, _ in made.states] == [
        n for n, _ in special.states
    ]


__all__ = ["is_special_case", "with_sizes"]
