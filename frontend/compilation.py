"""From a captured model to a program for a target: passes, report, lowering. The steps behind ``planish.compile``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from planish.errors import UsageError
from planish.frontend.config import CompileOptions, Progress
from planish.frontend.report import Report, make_report
from planish.ir.node import Module
from planish.ir.types import Symbol, evaluate
from planish.ir.verify_module import verify_module
from planish.ir.weights import Weights

if TYPE_CHECKING:
    from planish.backends.ort.module import LoweredModule
    from planish.backends.tvm.product import Product
    from planish.frontend.capture.base import Captured
    from planish.frontend.config import GenerateOptions
    from planish.ir.node import Node, Program
    from planish.ir.types import Size
    from planish.passes.base import Pass
    from planish.passes.pipeline import Result


@dataclass(frozen=True)
class Made:
    """Compiled programs with all that an artifact of them needs; ``lowered`` is None for the target ``eager``.

    ``generation`` is what a host has to know to continue a text with them, as the manifest of an artifact has it.
    """

    module: Module
    weights: Weights
    report: Report
    captured: Captured
    seed: int = 0
    lowered: LoweredModule | Product | None = None
    generation: Mapping[str, Any] | None = None

    @property
    def program(self) -> Program:
        """The default program."""
        return self.module.default


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
    module, generation = Module((result.program,)), None
    if options.generate is not None:
        module, generation = _with_cache(result.program, weights, options.generate, phases)
    return finish(captured, options, phases, result, weights, module, generation)


def _with_cache(
    program: Program, weights: Weights, wanted: GenerateOptions, phases: Phases
) -> tuple[Module, Mapping[str, Any]]:
    """The entry points that continue a text with caches, and what a host has to know of them."""
    from planish.passes.position.cache import CacheOptions, insert_cache
    from planish.passes.position.validate import validate_cache

    with phases("insert-kv-cache"):
        options = CacheOptions(
            wanted.context or _context(program), wanted.batch, wanted.chunk, wanted.rings, wanted.extend, wanted.edit,
            wanted.parallel,
        )  # fmt: skip
        made = insert_cache(program, weights, options)
    if wanted.validate:
        with phases("validate"):
            validate_cache(program, weights, made)
    return made.module, made.generation


def _context(program: Program) -> int:
    """The tokens that fit into a cache where nothing else is asked for: as many as the model takes, within limits."""
    from planish.frontend.config import CONTEXT

    lengths = [
        leaf.shape[1].high for leaf in program.inputs if leaf.rank == 2 and isinstance(leaf.shape[1], Symbol)
    ]
    return min([CONTEXT, *lengths])


def finish(
    captured: Captured, options: CompileOptions, phases: Phases, result: Result, weights: Weights, module: Module,
    generation: Mapping[str, Any] | None = None,
) -> Made:  # fmt: skip
    """Lower the programs that were made of a captured model, whose pipeline gave ``result``."""
    from planish.frontend.layers import with_layers

    lowered, notes = None, tuple(captured.notes)
    if len(module.programs) > 1 or module.default.states:
        verify_module(module, weights)
    if options.target.kind != "eager":
        from planish.frontend.lowering import lower

        lowered, more = lower(module, weights, options, phases)
        notes += more
    report = make_report(
        captured.program, result, module, target=str(options.target),
        pipeline=_text(with_layers(options.passes, options.layers)), source=captured.digest, notes=notes,
        phases=dict(phases.seconds), seed=options.seed,
    )  # fmt: skip
    return Made(module, _used(module, weights), report, captured, options.seed, lowered, generation)


def _text(passes: tuple[Pass, ...]) -> str:
    return ",".join(map(str, passes))


def _used(module: Module, weights: Weights) -> Weights:
    """Only the weights that the programs use, so that the others can be freed."""
    made = Weights()
    for leaf in module.constants():
        made.add_lazy(leaf.name, leaf.tensor, lambda name=leaf.name: weights.tensor(name))  # type: ignore[misc]
    return made


def example_feeds(program: Program, seed: int, sizes: dict[str, int] | None = None) -> dict[str, Any]:
    """Inputs for a program, as torch tensors: small sizes within the ranges, masks of ones, random values.

    Rows that are put into caches are all of those given, from the first place on.
    """
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
    places = _places(program)
    feeds = {}
    for index, leaf in enumerate(program.inputs):
        value = example_value(leaf.tensor, binding, seed + index)
        if leaf in places:
            feeds[leaf.name] = torch.full_like(value, evaluate(places[leaf], binding))
        elif "mask" in leaf.name and not leaf.dtype.is_float:
            feeds[leaf.name] = torch.ones_like(value)
        else:
            feeds[leaf.name] = value
    return feeds


def _places(program: Program) -> dict[Node, Size]:
    """For the inputs that say where rows of caches begin 0, for those that count them how many there are.

    Where contexts were read side by side, the first row is one, at temperature 1.
    """
    from planish.ir.kernel import expanded
    from planish.passes.position.parallel import POSITION

    found: dict[Node, Size] = {}
    for node in expanded(program).nodes if program.states else ():
        if node.op == "planish.put":
            _, new, start, count, _ = node.args
            found |= {start: 0, count: new.shape[-2]}
        elif node.op == "planish.attend_parallel":
            first, last, temperature, share = node.args[5:9]
            found |= {first: 0, last: 1, temperature: 1, share: 1}
            found |= {leaf: 0 for leaf in program.inputs if leaf.name == POSITION}
    return {node: value for node, value in found.items() if node.op == "input"}
