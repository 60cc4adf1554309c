"""Running passes one after another, with one numbering of rewrites, verification and observers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

from planish.errors import PlanishError
from planish.ir.node import Program
from planish.ir.rewrite import Log, Rewrite
from planish.ir.verify import verify as verify_program
from planish.ir.weights import Weights
from planish.passes.base import Pass, leaf_bytes
from planish.passes.check import Check, Difference, compare, hold
from planish.passes.spec import parse_pipeline


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: the programs around it, its rewrites and notes, and how long it took."""

    index: int
    each: Pass
    before: Program
    after: Program
    steps: Sequence[Rewrite]
    notes: Sequence[Any]
    seconds: float
    difference: Difference | None = None

    @property
    def name(self) -> str:
        """The pass with its options, as text."""
        return str(self.each)

    @property
    def changed(self) -> bool:
        """True if the program is another one now."""
        return self.before != self.after

    def rules(self) -> Counter[str]:
        """How often each rule fired."""
        return Counter(step.rule for step in self.steps)

    def operations(self) -> tuple[Counter[str], Counter[str]]:
        """How many nodes of each operation there were before and are now, leaves left out."""
        return count_operations(self.before), count_operations(self.after)

    def bytes(self) -> tuple[int, int]:
        """Bytes of the constants before and now."""
        return leaf_bytes(self.before), leaf_bytes(self.after)


Observer: TypeAlias = Callable[[PassRecord], None]
"""Called after every pass."""


@dataclass(frozen=True)
class Result:
    """What a pipeline leaves: the program, the log of all rewrites and a record for every pass that ran."""

    program: Program
    log: Log
    records: Sequence[PassRecord] = field(default_factory=tuple)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by pass; a pass that ran twice is counted together."""
        total: dict[str, float] = {}
        for record in self.records:
            total[record.name] = total.get(record.name, 0.0) + record.seconds
        return total

    @property
    def notes(self) -> list[Any]:
        """What passes reported, such as the error of each encoded weight."""
        return [note for record in self.records for note in record.notes]


def count_operations(program: Program) -> Counter[str]:
    """How many nodes of each operation a program has, leaves left out."""
    return Counter(node.op for node in program.nodes if not node.is_leaf)


def run_pipeline(
    program: Program,
    weights: Weights,
    passes: str | Iterable[Pass],
    *,
    observers: Iterable[Observer] = (),
    limit: int | None = None,
    verify: bool = True,
    check_each: Check | None = None,
    started: Callable[[int, Pass], None] | None = None,
) -> Result:
    """Apply passes in order.

    Rewrites are numbered through all passes; with ``limit`` the run stops after that many. ``verify`` checks the
    program after each pass. ``check_each`` runs the program before and after each pass and holds the pass to its
    kind. ``started`` is called when a pass begins, ``observers`` when it ends.
    """
    ready = parse_pipeline(passes) if isinstance(passes, str) else list(passes)
    watching = list(observers)
    log = Log(limit)
    records: list[PassRecord] = []
    for index, each in enumerate(ready):
        if log.exhausted:
            break
        if started is not None:
            started(index, each)
        record = _run_one(index, each, program, weights, log, verify, check_each)
        records.append(record)
        program = record.after
        for observer in watching:
            observer(record)
    return Result(program, log, tuple(records))


def _run_one(
    index: int, each: Pass, program: Program, weights: Weights, log: Log, verify: bool, check: Check | None
) -> PassRecord:
    steps, notes = len(log.steps), len(log.notes)
    begin = perf_counter()
    try:
        after = each.apply(program, weights, log)
        if verify:
            verify_program(after, weights)
    except PlanishError as error:
        error.where = error.where or f"pass {each}"
        raise
    seconds = perf_counter() - begin
    found = None
    if check is not None and after != program:
        found = compare(program, after, weights, check)
        hold(str(each), each.kind, found, check)
    return PassRecord(index, each, program, after, log.steps[steps:], log.notes[notes:], seconds, found)
