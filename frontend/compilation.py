"""From a captured model to a program for a target: passes, report, lowering. The steps behind ``planish.compile``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from planish.errors import UsageError
from planish.frontend.config import CompileOptions, Progress
from planish.frontend.report import Report, make_report
from planish.ir.weights import Weights

if TYPE_CHECKING:
    from planish.backends.ort.lower import Lowered
    from planish.backends.tvm.product import Product
    from planish.frontend.capture.base import Captured
    from planish.ir.node import Program
    from planish.passes.base import Pass


@dataclass(frozen=True)
class Made:
    """A compiled program with all that an artifact of it needs; ``lowered`` is None for the target ``eager``."""

    program: Program
    weights: Weights
    report: Report
    captured: Captured
    seed: int = 0
    lowered: Lowered | Product | None = None


class Phases:
    """Times the phases of a compilation and tells a listener when one ends."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = perf_counter()
        yield
        self.add(name, perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """Count a phase that was timed elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._progress is not None:
            self._progress(name, seconds)


def forked(weights: Weights) -> Weights:
    """Weights with the same names and tensors; what is added to one is not seen by the other."""
    made = Weights()
    for name in weights:
        made.add_lazy(name, weights.type(name), lambda name=name: weights.tensor(name))  # type: ignore[misc]
    return made


def compile_captured(captured: Captured, options: CompileOptions, phases: Phases | None = None) -> Made:
    """Run the passes on a captured model and lower the result; the captured model stays as it is."""
    from planish.frontend.layers import with_layers
    from planish.passes.pipeline import PassRecord, run_pipeline

    phases = phases or Phases(options.progress)
    weights = forked(captured.weights)
    passes = with_layers(options.passes, options.layers)

    def observe(record: PassRecord) -> None:
        phases.add(record.name if len(record.name) < 60 else record.each.name, record.seconds)

    result = run_pipeline(captured.program, weights, passes, observers=[observe])
    lowered, notes = None, tuple(captured.notes)
    if options.target.kind != "eager":
        from planish.frontend.lowering import lower

        lowered, more = lower(result.program, weights, options, phases)
        notes += more
    report = make_report(
        captured.program, result, target=str(options.target), pipeline=_text(passes), source=captured.digest,
        notes=notes, phases=dict(phases.seconds), seed=options.seed,
    )  # fmt: skip
    return Made(result.program, _used(result.program, weights), report, captured, options.seed, lowered)


def _text(passes: tuple[Pass, ...]) -> str:
    return ",".join(map(str, passes))


def _used(program: Program, weights: Weights) -> Weights:
    """Only the weights that the program uses, so that the others can be freed."""
    made = Weights()
    for leaf in program.constants():
        made.add_lazy(leaf.name, leaf.tensor, lambda name=leaf.name: weights.tensor(name))  # type: ignore[misc]
    return made


def example_feeds(program: Program, seed: int, sizes: dict[str, int] | None = None) -> dict[str, Any]:
    """Inputs for a program, as torch tensors: small sizes within the ranges, masks of ones, random values."""
    import torch

    from planish.ir.run import example_value

    wanted = {"B": 2, "T": 5, **(sizes or {})}
    binding = {s: min(max(wanted.get(s.name, 4), s.low), s.high) for s in program.symbols}
    unknown = set(sizes or {}) - {s.name for s in program.symbols}
    if unknown:
        names = ", ".join(s.name for s in program.symbols) or "none"
        raise UsageError(
            "PL824", f"there is no dimension {', '.join(sorted(unknown))}", hint=f"dimensions: {names}"
        )
    feeds = {}
    for index, leaf in enumerate(program.inputs):
        value = example_value(leaf.tensor, binding, seed + index)
        feeds[leaf.name] = (
            torch.ones_like(value) if "mask" in leaf.name and not leaf.dtype.is_float else value
        )
    return feeds
