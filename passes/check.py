"""Holding a pass to its kind: both programs run on the same inputs and are compared with what the pass promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planish.errors import GuardError
from planish.ir.node import Program
from planish.ir.rule import Kind
from planish.ir.weights import Weights


@dataclass(frozen=True)
class Check:
    """What a pass is checked on: inputs and states, and how much a ``close`` pass may differ.

    ``tolerance`` is relative to the largest value of each result.
    """

    inputs: Sequence[Any]
    tolerance: float
    states: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """How far two lists of results are apart: bitwise equality, and the largest difference over the largest value."""

    equal: bool
    relative: float

    def __str__(self) -> str:
        return "bitwise equal" if self.equal else f"relative difference {self.relative:.3g}"


def difference(before: Sequence[Any], after: Sequence[Any]) -> Difference:
    """Compare results pairwise; NaN equals NaN, and results of other types or shapes are infinitely far apart."""
    import torch

    equal, worst = True, 0.0
    for a, b in zip(before, after, strict=True):
        if a.dtype != b.dtype or a.shape != b.shape:
            return Difference(False, float("inf"))
        if not a.numel() or torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)):
            if not (a.numel() and a.is_floating_point() and bool((a.isnan() != b.isnan()).any())):
                continue
        equal = False
        x, y = (v.to(torch.float64) for v in (a, b))
        gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())
        scale = float(x.nan_to_num(0.0, 0.0, 0.0).abs().max())
        worst = max(worst, float(gap.nan_to_num(float("inf"), float("inf")).max()) / max(scale, 1e-30))
    return Difference(equal, worst)


def compare(before: Program, after: Program, weights: Weights, check: Check) -> Difference:
    """Run both programs in eager torch and compare their outputs and next states."""
    import torch

    from planish.ir.run import run

    with torch.no_grad():
        results = [run(each, weights, *check.inputs, states=check.states) for each in (before, after)]
    return difference(*results)


def hold(name: str, kind: Kind, found: Difference, tolerance: float) -> None:
    """Raise ``GuardError`` PL501 if a pass changed results by more than its kind allows."""
    allowed = {"exact": found.equal, "close": found.relative <= tolerance, "lossy": found.relative < float("inf")}
    if not allowed[kind]:
        limit = f", {tolerance:g} is allowed" if kind == "close" else ""
        raise GuardError(
            "PL501",
            f"the pass {name} is declared {kind}, but changes results: {found}{limit}",
            hint="find the rewrite with a limit on their number",
        )
