"""Recognition as a whole: canonical form, then norms, rotary embedding and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.ir.node import Program
from planish.ir.rewrite import Log
from planish.ir.rule import Kind
from planish.ir.weights import Weights
from planish.passes.base import Pass
from planish.passes.canonical.fold import Fold
from planish.passes.canonical.passes import Canonical, Simplify
from planish.passes.recognise.attention import FindAttention
from planish.passes.recognise.norm import FindNorm
from planish.passes.recognise.rope import FindRope


@dataclass(frozen=True)
class Recognise(Pass):
    """Norms, rotary embedding and attention in any spelling; constants folded, views and arithmetic simplified."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Run the passes of recognition in order."""
        for each in (Canonical(), Simplify(), FindNorm(), FindRope(), FindAttention(), Simplify(), Fold()):
            program = each.apply(program, weights, log)
        return program
