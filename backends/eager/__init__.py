"""The eager backend: the interpreter itself, as a callable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.ir.node import Program
    from planish.ir.weights import Weights

__all__ = ["build"]


def build(program: Program, weights: Weights) -> Callable[..., Any]:
    """A callable that runs the program in eager torch: its outputs, then its next states, one value bare."""
    from planish.ir.run import run

    def call(*inputs: Any, states: Any = None) -> Any:
        results = run(program, weights, *inputs, states=states)
        return results[0] if len(results) == 1 else results

    return call
