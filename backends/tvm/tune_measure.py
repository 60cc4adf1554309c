"""Times variants of a kernel: each is compiled, then all run in turn on the same random operands."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from planish.backends.tvm.cpu.registry import build
from planish.backends.tvm.cpu.variant import Variant
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.kernel_cost import Sizes, shape_at
from planish.backends.tvm.stand_in import stand_in
from planish.backends.tvm.tune import Job, Rounds
from planish.backends.tvm.tune_quiet import Watch
from planish.ir.node import Node
from planish.ir.types import evaluate
from planish.runtime.tvm_library import load_runtime
from planish.runtime.tvm_threads import use_threads

ROUNDS = 15
"""Rounds in which every variant is timed once."""

SLICE = 2e-3
"""Seconds that a variant runs for in one round, or one call."""

ATTEMPTS = 3
"""How often is timed until other programs are quiet: what is seen beside them is not what is seen alone."""

STORED = 64 << 20
"""Bytes up to which there are copies of stored operands: as many as the program has such kernels.

One copy would stay in the cache of the processor, while in the program other weights come in between.
"""


class Timer:
    """Compiles and times with a number of threads; what is compiled is kept while it is about the same kernel."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._ffi = load_runtime()
        self._kernel: tuple[str, str] | None = None
        self._made: dict[Variant, Any] = {}

    def __call__(
        self, job: Job, variants: Sequence[Variant], left: Callable[[], float]
    ) -> Sequence[Rounds] | None:
        """Rounds for every size of a job; None if the time is over before all is measured, or others are busy."""
        if self._kernel != (job.text, job.isa.name):
            self._kernel, self._made = (job.text, job.isa.name), {}
        for each in variants:
            if left() <= 0:
                return None
            if each not in self._made:
                self._made[each] = compiled(job.node, job.isa, each)
        use_threads(self._ffi, self.threads)
        functions = [self._made[each] for each in variants]
        made = []
        for sizes in job.sizes:
            rounds = quietly(functions, operands(job, sizes), left, self.threads)
            if rounds is None:
                return None
            made.append(rounds)
        return made


def compiled(node: Node, isa: Isa, variant: Variant) -> Any:
    """A kernel as a function of TVM's tensors, made as it is for a library."""
    import tvm

    from planish.backends.tvm.stages import LOOPS, tir_pipeline

    function = build(stand_in(node), isa, variant).with_attr("global_symbol", "main").with_attr(LOOPS, 1)
    module = tvm.IRModule({"main": function})
    return tvm.compile(module, tvm.target.Target(isa.target), tir_pipeline=tir_pipeline())["main"]


def operands(job: Job, sizes: Sizes) -> list[tuple[Any, ...]]:
    """Arguments of a kernel at given sizes; several sets of them that differ in the stored operands."""
    from tvm.runtime import tensor

    from planish.backends.tvm.primitive import free_symbols

    source, node = np.random.default_rng(0), job.node
    given = dict.fromkeys(node.operands)
    fixed = {each: tensor(_values(each, sizes, source)) for each in given if each.op != "const"}
    out = tensor(np.zeros(shape_at(node, sizes), _numpy(node)))
    stored = [each for each in given if each.op == "const"]
    count = max(1, min(job.count, STORED // max(1, sum(int(each.tensor.nbytes) for each in stored))))
    symbols: tuple[int, ...] = ()
    if _takes_sizes(job):
        symbols = tuple(evaluate(s, sizes) for s in free_symbols(frozenset((node,)), node.operands, node))
    made = []
    for _ in range(count):
        values = fixed | {each: tensor(_values(each, sizes, source)) for each in stored}
        made.append((*(values[each] for each in node.operands), *symbols, out))
    return made


def _takes_sizes(job: Job) -> bool:
    function = build(stand_in(job.node), job.isa)
    return len(function.params) > len(job.node.operands) + 1


def _numpy(node: Node) -> Any:
    if node.dtype.name == "bf16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    names = {
        "f64": "f8",
        "f32": "f4",
        "f16": "f2",
        "i64": "i8",
        "i32": "i4",
        "i16": "i2",
        "i8": "i1",
        "u8": "u1",
    }
    return np.dtype(names.get(node.dtype.name, "?"))


def _values(node: Node, sizes: Sizes, source: np.random.Generator) -> Any:
    """Random bytes for codes, small normal numbers for floats, true for masks, zero for other whole numbers."""
    shape, kind = shape_at(node, sizes), _numpy(node)
    if node.dtype.is_float:
        return (source.standard_normal(shape, np.float32) * np.float32(0.1)).astype(kind)
    if node.dtype.name in ("u8", "i8"):
        return np.frombuffer(source.bytes(int(np.prod(shape))), kind).reshape(shape)
    return np.full(shape, node.dtype.name == "bool", kind)


@dataclass
class _Turn:
    """Runs functions on one set of operands after the other."""

    sets: list[tuple[Any, ...]]
    place: int = 0

    def seconds(self, function: Any, times: int) -> float:
        """The time of so many calls."""
        sets, place = self.sets, self.place
        begin = perf_counter()
        for _ in range(times):
            function(*sets[place])
            place = place + 1 if place + 1 < len(sets) else 0
        end = perf_counter()
        self.place = place
        return end - begin


def quietly(
    functions: Sequence[Any], sets: list[tuple[Any, ...]], left: Callable[[], float], threads: int
) -> list[list[float]] | None:
    """What :func:`timed` gives, when other programs leave the processors alone; None if they never do."""
    for _ in range(ATTEMPTS):
        watch = Watch(threads)
        rounds = timed(functions, sets, left)
        if rounds is None or watch.is_quiet():
            return rounds
    return None


def timed(
    functions: Sequence[Any], sets: list[tuple[Any, ...]], left: Callable[[], float]
) -> list[list[float]] | None:
    """Seconds of one call by round and function, the functions in turn; None if the time is over."""
    turn = _Turn(sets)
    for function in functions:
        turn.seconds(function, 1)
    once = statistics.median(turn.seconds(functions[0], 1) for _ in range(3))
    times = max(1, min(10_000, round(SLICE / max(once, 1e-7))))
    rounds = []
    for number in range(ROUNDS):
        if left() <= 0:
            return None
        row = [0.0] * len(functions)
        for step in range(len(functions)):
            index = (step + number) % len(functions)
            row[index] = turn.seconds(functions[index], times) / times
        rounds.append(row)
    return rounds
