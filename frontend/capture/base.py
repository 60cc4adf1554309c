"""What every capture returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planish.ir.node import Program
from planish.ir.weights import Weights


@dataclass(frozen=True)
class Captured:
    """A model as a program and its weights; ``notes`` tell what the user should know about the capture."""

    program: Program
    weights: Weights
    notes: tuple[str, ...] = ()
    digest: str = ""
    tokenizer: Path | None = None
