"""What a pass is: a frozen dataclass whose fields are its options, and a function from program to program."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.ir.node import Node, Program, intern
from planish.ir.rewrite import Log, NodeRule, rewrite, sweep
from planish.ir.rule import Kind, Rule
from planish.ir.weights import Weights


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of whole programs.

    ``kind`` is a promise: ``exact`` results are equal bit by bit, ``close`` ones reassociate floating point,
    ``lossy`` ones lose information. ``name`` is what the pass is called in a pipeline; by default the name of the
    class in kebab case.
    """

    kind: ClassVar[Kind] = "exact"
    name: ClassVar[str] = ""

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if "name" not in cls.__dict__:
            cls.name = kebab(cls.__name__)

    @abstractmethod
    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """The rewritten program. Derived weights are added to ``weights``; every step is recorded in ``log``."""

    def __str__(self) -> str:
        from planish.passes.spec import format_pass

        return format_pass(self)


def kebab(name: str) -> str:
    """``FindRope`` as ``find-rope``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def leaf_bytes(program: Program) -> int:
    """Bytes of the constants that a program uses, each counted once."""
    return sum(int(leaf.tensor.nbytes) for leaf in program.constants())


def map_programs(program: Program, change: Callable[[Program], Program]) -> Program:
    """The program with ``change`` applied to its nested programs, innermost first, and then to itself."""
    changed: dict[Program, Program] = {}
    for child in program.nested():
        after = map_programs(child, change)
        if after is not child:
            changed[child] = after
    return change(_with_nested(program, changed) if changed else program)


def _with_nested(program: Program, changed: dict[Program, Program]) -> Program:
    def swap(node: Node) -> Node | None:
        if not any(isinstance(a, Program) for a in node.args):
            return None
        args = tuple(changed.get(a, a) if isinstance(a, Program) else a for a in node.args)
        return intern(node.op, args, node.type)

    return sweep(program, [("nested", swap)], Log())


def rewrite_all(program: Program, rules: Sequence[Rule | tuple[str, NodeRule]], log: Log) -> Program:
    """Rewrite a program and the programs nested in it until no rule fires."""
    return map_programs(program, lambda each: rewrite(each, rules, log))
