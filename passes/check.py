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

    ``tolerance`` is relative to the largest value of each result. ``rounding`` is the same for an ``exact`` pass: its
    equations hold bit by bit, but eager torch rounds some functions by where values lie in memory (in a vector or at
    the end of a row), and a pass may move them.
    """

    inputs: Sequence[Any]
    tolerance: float
    rounding: float = 0.0
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
        same = (a == b) | (a.isnan() & b.isnan())
        if bool(same.all()):
            continue
        equal = False
        x, y = (v.to(torch.complex128 if v.is_complex() else torch.float64) for v in (a, b))
        gap = (x - y).abs()
        gap[same] = 0.0
        scale = float(x.abs().nan_to_num(0.0, 0.0, 0.0).max())
        worst = max(worst, float(gap.nan_to_num(float("inf"), float("inf")).max()) / max(scale, 1e-30))
    return Difference(equal, worst)


def compare(before: Program, after: Program, weights: Weights, check: Check) -> Difference:
    """Run both programs in eager torch and compare their outputs and next states."""
    import torch

    from planish.ir.run import run

    with torch.no_grad():
        results = [run(each, weights, *check.inputs, states=check.states) for each in (before, after)]
    return difference(*results)


def hold(name: str, kind: Kind, found: Difference, check: Check) -> None:
    """Raise ``GuardError`` PL501 if a pass changed results by more than its kind allows."""
    allowed = {"exact": check.rounding, "close": check.tolerance, "lossy": float("inf")}[kind]
    if (
        found.equal
        or found.relative <= allowed < float("inf")
        or (kind == "lossy" and found.relative < allowed)
    ):
        return
    raise GuardError(
        "PL501",
        f"the pass {name} is declared {kind}, but changes results: {found}, {allowed:g} is allowed",
        hint="find the rewrite with a limit on their number",
    )
