"""The choice of a backend by measured cost: both are built and run in turn, and the faster one is kept."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from planish.errors import UnsupportedOpError

if TYPE_CHECKING:
    from planish.backends.ort.module import LoweredModule
    from planish.backends.tvm.product import Product
    from planish.frontend.compilation import Phases
    from planish.frontend.config import CompileOptions
    from planish.ir.node import Module, Program
    from planish.ir.weights import Weights
    from planish.runtime.session import Session

SECONDS = 1.0
"""About how long each size is timed, for both backends together."""

SIZES: tuple[dict[str, int], ...] = ({}, {"T": 128, "S": 128})
"""Dimensions of the inputs that are timed, within their ranges; others are small."""

TIMED = frozenset({"prefill", "decode"})
"""Entry points of language models that are timed: others run seldom, or do what these do."""


def faster(
    module: Module, weights: Weights, options: CompileOptions, phases: Phases
) -> tuple[LoweredModule | Product, tuple[str, ...]]:
    """The code of the backend with the smaller geometric mean of median times over programs and :data:`SIZES`."""
    from planish.backends.ort.options import OrtOptions
    from planish.frontend.code import code_of
    from planish.frontend.lowering import native, onnx

    made: dict[str, Any] = {}
    notes: list[str] = []
    for name in ("tvm", "ort"):
        try:
            if name == "tvm":
                made[name] = native(module, weights, options, phases)
            else:
                bits = options.options.activation_bits
                made[name] = onnx(module, weights, OrtOptions(activation_bits=bits), phases)
        except UnsupportedOpError as missing:
            notes.append(f"{name} cannot run the model: {str(missing).splitlines()[0]}")
    if len(made) == 1:
        only = next(iter(made.values()))
        return only, (*notes, *getattr(only, "notes", ()))
    if not made:
        return onnx(module, weights, OrtOptions(), phases), ()
    with phases("measure"), tempfile.TemporaryDirectory(prefix="planish-") as folder:
        sessions = {n: _session(code_of(m, module, weights), Path(folder) / n) for n, m in made.items()}
        try:
            ratio = _ratio(sessions["tvm"], sessions["ort"], module, options.seed)
        finally:
            for session in sessions.values():
                session.close()
    chosen = "tvm" if ratio <= 1 else "ort"
    notes += made[chosen].notes if chosen == "tvm" else ()
    notes.append(f"backend {chosen} was chosen: tvm takes {ratio:.2f} of the time of ort on this machine")
    return made[chosen], tuple(notes)


def _session(code: Any, folder: Path) -> Session:
    from planish.frontend.compiled import write_package
    from planish.frontend.package import Parts, make_package
    from planish.frontend.report import Report
    from planish.runtime.session import load

    folder.mkdir()
    path = write_package(make_package(Parts(code, Report(), "")), folder / "model.planish")
    return load(path, verify="off", allow_native_code=True)


def _ratio(left: Session, right: Session, module: Module, seed: int) -> float:
    timed = [p for p in module.programs if p.name in TIMED] or module.programs
    ratios = [ratio for program in timed for ratio in _ratios(left, right, program, seed)]
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _ratios(left: Session, right: Session, program: Program, seed: int) -> list[float]:
    from planish.frontend.compilation import example_feeds
    from planish.runtime.inputs import to_array

    ratios = []
    for sizes in SIZES:
        known = {s.name: s for s in program.symbols}
        fitting = {n: min(max(v, known[n].low), known[n].high) for n, v in sizes.items() if n in known}
        if sizes and not fitting:
            continue
        feeds = {n: to_array(v, n, "") for n, v in example_feeds(program, seed, fitting).items()}
        ratios.append(_one_ratio(left, right, program.name, feeds))
        left.reset()
        right.reset()
    return ratios


def _one_ratio(left: Session, right: Session, entry: str, feeds: dict[str, Any]) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    end = perf_counter() + SECONDS
    while perf_counter() < end or len(times[0]) < 4:
        for session, found in zip((left, right), times, strict=True):
            begin = perf_counter()
            session.run(feeds, entry)
            found.append(perf_counter() - begin)
    return statistics.median(times[0][1:]) / statistics.median(times[1][1:])
