"""The passes of canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from planish.ir.node import Program
from planish.ir.rewrite import Log
from planish.ir.rule import Kind, Rule
from planish.ir.weights import Weights
from planish.passes.base import Pass, rewrite_all


@cache
def exact_rules() -> tuple[Rule, ...]:
    """The rules of the canonical form."""
    from planish.passes.canonical import algebra, pointwise, views

    found = [r for module in (algebra, views) for r in vars(module).values() if isinstance(r, Rule)]
    return tuple(r for r in (*found, *pointwise.POINTWISE) if r.kind == "exact")


@cache
def close_rules() -> tuple[Rule, ...]:
    """The rules that reassociate floating point."""
    from planish.passes.canonical import close, pointwise

    found = [r for r in vars(close).values() if isinstance(r, Rule)]
    return tuple(r for r in (*found, *pointwise.POINTWISE) if r.kind == "close")


@dataclass(frozen=True)
class Canonical(Pass):
    """One spelling for what can be written in several ways, by equations that hold bit by bit."""

    kind: ClassVar[Kind] = "exact"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Apply the exact rules of algebra and views until none fires."""
        return rewrite_all(program, exact_rules(), log)


@dataclass(frozen=True)
class Simplify(Pass):
    """Cheaper spellings that round differently: chains of numbers, squares, roots, activations, products."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Apply the exact and the close rules until none fires."""
        return rewrite_all(program, (*exact_rules(), *close_rules()), log)
