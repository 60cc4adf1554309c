"""Tuning: the kernels of a program are measured in their variants, the costliest first, and the fastest are taken."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from time import perf_counter
from typing import Any

from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.isa import Isa, supported
from planish.backends.tvm.kernel_cost import Sizes, cases, kernel_text, seconds
from planish.backends.tvm.tune_records import Record, Records, machine_facts
from planish.ir.node import Node, Program
from planish.ir.target import Machine
from planish.ir.types import DType

SECONDS = 60.0
"""How long is measured, if nothing else is said."""

GAIN = 0.97
"""A variant is taken if it needs less than this share of the default's time, as the mean over all sizes,"""

LOSS = 1.02
"""if at no size it needs more than this share,"""

STEADY = 0.75
"""and if it is the faster one in this share of the rounds, where it is faster; all that in a second measurement too."""


@dataclass(frozen=True)
class Job:
    """One kernel to be tuned: its variants, the sizes that count, and how often the program has it."""

    node: Node
    isa: Isa
    text: str
    variants: tuple[Variant, ...]
    sizes: tuple[Sizes, ...]
    count: int
    cost: float

    def facts(self, threads: int) -> dict[str, Any]:
        """What a measurement of it depends on, as plain values."""
        return {
            **machine_facts(threads),
            "isa": self.isa.name,
            "kernel": self.text,
            "sizes": [{s.name: n for s, n in sizes.items()} for sizes in self.sizes],
            "count": self.count,
            "variants": [v.name for v in self.variants],
        }


Rounds = Sequence[Sequence[float]]
"""Seconds by round, then by variant, of which the first is the default."""

Measure = Callable[[Job, Sequence[Variant], Callable[[], float]], Sequence[Rounds] | None]
"""Times variants of a kernel: rounds for each of its sizes. The function tells the seconds left; None: not enough."""


@dataclass(frozen=True)
class Tuning:
    """How to tune: for how long, where records are kept, how is measured, and who is told of progress."""

    seconds: float = SECONDS
    folder: Path | None = None
    policy: str = "on"
    threads: int = 1
    measure: Measure | None = None
    clock: Callable[[], float] = perf_counter
    progress: Callable[[str, float], None] | None = None


@dataclass(frozen=True)
class Tuned:
    """The variants that were chosen, by instruction set and text of the kernel; what is not named is the default.

    ``measured`` kernels were measured, ``reused`` were known from records. ``notes`` are for the report, ``table`` for
    the artifact.
    """

    chosen: Mapping[str, Mapping[str, Variant]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    table: tuple[Mapping[str, str], ...] = ()
    measured: int = 0
    reused: int = 0


def tune(programs: Sequence[Program], isas: Sequence[Isa], machine: Machine, tuning: Tuning) -> Tuned:
    """Choose variants for the kernels of programs, for those of the instruction sets that this machine has."""
    here = tuple(isa for isa in isas if isa in supported())
    notes = [f"{isa.name} is not tuned: this processor lacks it" for isa in isas if isa not in here]
    records, measure = Records(tuning.folder, tuning.policy), tuning.measure or _timer(tuning.threads)
    begin = tuning.clock()
    chosen: dict[str, dict[str, Variant]] = {isa.name: {} for isa in here}
    table: list[dict[str, str]] = []
    measured = reused = left_out = 0
    for job in jobs(programs, here, machine):
        facts, start = job.facts(tuning.threads), tuning.clock()
        record = records.find(facts)
        if record is not None:
            reused += 1
        else:
            record = decide(job, measure, lambda: tuning.seconds - (tuning.clock() - begin))
            if record is None:
                left_out += 1
                continue
            measured += 1
            records.keep(facts, record)
        if tuning.progress is not None:
            tuning.progress(f"tune: {job.text}: {record.variant}", tuning.clock() - start)
        if record.variant != DEFAULT.name:
            chosen[job.isa.name][job.text] = next(v for v in job.variants if v.name == record.variant)
            table.append({"library": job.isa.name, "kernel": job.text, "variant": record.variant})
            notes.append(
                f"tuned for {job.isa.name}: {record.variant} takes {record.ratio:.2f} of the time in {job.text}"
            )
    if left_out:
        notes.append(
            f"not tuned, as {tuning.seconds:g} s were over or other programs were busy: {left_out} of the kernels"
        )
    return Tuned(chosen, (*notes, *records.problems), tuple(table), measured, reused)


def _timer(threads: int) -> Measure:
    from planish.backends.tvm.tune_measure import Timer

    return Timer(threads)


def jobs(programs: Sequence[Program], isas: Sequence[Isa], machine: Machine) -> list[Job]:
    """The distinct kernels of programs that have variants and can be measured, those first that cost most in all."""
    from planish.backends.tvm.cpu.registry import variants

    nodes: dict[str, list[Node]] = {}
    for node in dict.fromkeys(n for program in programs for n in program.nodes):
        if node.op.startswith("kernel."):
            nodes.setdefault(kernel_text(node), []).append(node)
    made = []
    for text, same in nodes.items():
        if not all(_is_plain(operand.dtype) for operand in same[0].operands):
            continue
        for isa in isas:
            offered = variants(same[0], isa)
            if len(offered) > 1:
                sizes = cases(same[0])
                cost = len(same) * sum(seconds(same[0], each, machine) for each in sizes)
                made.append(Job(same[0], isa, text, offered, sizes, len(same), cost))
    return sorted(made, key=lambda job: (-job.cost, job.text, job.isa.name))


def _is_plain(kind: DType) -> bool:
    """False for numbers that say where to read, or how much: what a kernel does with them cannot be made up."""
    return kind.is_float or kind.bits <= 8


def decide(job: Job, measure: Measure, left: Callable[[], float]) -> Record | None:
    """The best variant of a kernel: measured with all others, and once more with the default alone; None: no time."""
    if left() <= 0:
        return None
    times = measure(job, job.variants, left)
    if times is None:
        return None
    ratios = {i: ratio for i in range(1, len(job.variants)) if (ratio := gain(times, i)) is not None}
    if not ratios:
        return Record(DEFAULT.name, 1.0)
    best = min(ratios, key=ratios.__getitem__)
    again = measure(job, (job.variants[0], job.variants[best]), left)
    if again is None:
        return None
    ratio = gain(again, 1)
    return Record(DEFAULT.name, 1.0) if ratio is None else Record(job.variants[best].name, round(ratio, 4))


def gain(times: Sequence[Rounds], index: int) -> float | None:
    """The share of the default's time that a variant takes, the mean over sizes; None if it is not clearly faster."""
    ratios = []
    for rounds in times:
        each = [round_[index] / round_[0] for round_ in rounds]
        ratio = statistics.median(each)
        steady = sum(r < 1 for r in each) >= STEADY * len(each)
        if ratio > LOSS or (ratio < GAIN and not steady):
            return None
        ratios.append(ratio)
    mean = exp(statistics.fmean(map(log, ratios)))
    return mean if mean < GAIN else None
