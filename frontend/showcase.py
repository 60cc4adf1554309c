"""The main job on the small language model, measured: what ``planish demo`` runs and what it finds."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from planish.frontend import api, yardstick
from planish.frontend.config import GenerateOptions
from planish.frontend.report import Report

if TYPE_CHECKING:
    from planish.frontend.capture.base import Captured
    from planish.frontend.yardstick import Memory, Speed, Tokens
    from planish.ir.node import Program

HEADS = yardstick.Heads(queries=9, keys=3)
TARGET = "cpu{activation_bits=8}"
"""Activations meet coded weights as 8-bit numbers: faster, and part of every figure that is shown."""

FP32 = "fp32"
INT4 = "int4"
TABLE = "int6{group=64,only=model.embed_tokens}"
"""The embedding, which is the head as well, in 6 bits: with fewer it loses the most for each byte that it saves."""

PIPELINES = {
    FP32: "auto",
    "int8": "auto,int8{group=64}",
    INT4: f"auto,{TABLE},int4{{group=64}}",
    "int4-all": "auto,int4{group=64}",
    "int3": f"auto,{TABLE},int3{{group=64}}",
}
"""What is compared, by name. Only three bits gain from a search for scales: it clips what large weights need."""

SHARE, ROOM = 0.17, 150 * 1000 * 1000
"""The largest share of the fp32 bytes for int4, and the bytes that a process may take beyond its artifact."""

SAME = 1e-4
CONTEXT = 1024
PROMPT, ANSWER = "In two sentences: why do cats purr?", 64
"""What the compressed model is asked at the end, and how many tokens it may answer."""
COUNTS = {"planish.attention": 30, "aten.rms_norm": 61, "planish.rope": 60}


@dataclass(frozen=True)
class Row:
    """One way to store the model: bytes of the file, the largest weight error, and perplexities."""

    name: str
    pipeline: str
    bytes: int
    error: float
    rescaled: float
    plain: float | None
    seconds: float


@dataclass(frozen=True)
class Check:
    """Something that must hold, with what was found."""

    what: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Findings:
    """All that the demo measured."""

    model: str
    source_bytes: int
    tokens: int
    rows: tuple[Row, ...]
    speed: Speed
    memory: Memory
    artifact_bytes: int
    report: Report
    peak: int
    checks: tuple[Check, ...]
    seconds: float


@dataclass
class Showcase:
    """Runs the job once; ``tell`` hears the name and the seconds of every step."""

    folder: Path
    tokens: int
    seed: int
    with_plain: bool
    tell: Callable[[str, float], None]
    checks: list[Check] = field(default_factory=list)

    def run(self) -> Findings:
        """Capture once, store the model in every way, and measure."""
        from planish.frontend.capture.source import capture, tokenizer_files

        begin = perf_counter()
        source = yardstick.model_file()
        with self._step("capture"):
            plain = capture(source)
            capture_seconds = perf_counter() - begin
        with self._step("text"):
            text = yardstick.tokenize(yardstick.topics_text(), tokenizer_files(plain.tokenizer))
            windows = yardstick.held_out(text, self.tokens)
        rescaled = replace(plain, weights=yardstick.rescaled(plain.weights, HEADS, self.seed))
        self._check_same(plain, rescaled, windows)
        rows, report = [], Report()
        for name, pipeline in PIPELINES.items():
            row, made = self._row(name, pipeline, rescaled, plain if self.with_plain else None, windows)
            rows.append(row)
            report = made if name == INT4 else report
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        speed = self._speed(windows)
        with self._step("memory of a fresh process"):
            memory = yardstick.memory(self._path(INT4))
        size = self._path(INT4).stat().st_size
        self._check_sizes(rows, memory, size)
        report = replace(report, phases={"capture": capture_seconds, **report.phases})
        return Findings(
            source.name, source.stat().st_size, self.tokens, tuple(rows), speed, memory, size, report, peak,
            tuple(self.checks), perf_counter() - begin,
        )  # fmt: skip

    def load(self, name: str) -> api.Compiled:
        """One of the models that were stored, ready to run."""
        return api.load(self._path(name), verify="off", allow_native_code=True)

    def _step(self, name: str) -> _Step:
        return _Step(name, self.tell)

    def _path(self, name: str) -> Path:
        return self.folder / f"smollm2-{name}.planish"

    def _row(
        self, name: str, pipeline: str, rescaled: Captured, plain: Captured | None, windows: Tokens
    ) -> tuple[Row, Report]:
        begin = perf_counter()
        report = self._store(name, pipeline, rescaled)
        seconds = perf_counter() - begin
        measured = self._perplexity(name, windows)
        beside = None
        if plain is not None:
            with self._step(f"{name} of the plain model"), self._compiled(pipeline, plain) as compiled:
                beside = yardstick.perplexity(yardstick.runner(compiled), windows)
        error = max((layer.error for layer in report.layers), default=0.0)
        row = Row(name, report.pipeline, self._path(name).stat().st_size, error, measured, beside, seconds)
        return row, report

    def _compiled(
        self, pipeline: str, captured: Captured, generate: GenerateOptions | None = None
    ) -> api.Compiled:
        return api.compile_captured(
            captured, api.make_options(passes=pipeline, target=TARGET, seed=self.seed, generate=generate)
        )

    def _store(self, name: str, pipeline: str, captured: Captured) -> Report:
        """Compile and write one artifact."""
        generate = GenerateOptions(context=CONTEXT) if name == INT4 else None
        with self._step(f"compile {name}"), self._compiled(pipeline, captured, generate) as compiled:
            compiled.export(self._path(name), overwrite=True)
            if name == INT4:
                self._check_recognised(compiled.program)
            return compiled.report

    def _perplexity(self, name: str, windows: Tokens) -> float:
        with self._step(f"perplexity {name}"), self.load(name) as model:
            return yardstick.perplexity(yardstick.runner(model), windows)

    def _speed(self, windows: Tokens) -> Speed:
        names = (FP32, INT4)
        with self._step("prefill"):
            models = [self.load(name) for name in names]
            try:
                return yardstick.prefill([yardstick.runner(m) for m in models], windows[:1])
            finally:
                for model in models:
                    model.close()

    def _check_same(self, plain: Captured, rescaled: Captured, windows: Tokens) -> None:
        import torch

        from planish.ir.run import run

        some = torch.from_numpy(windows[:1, :64].copy())
        with self._step("re-scale"), torch.no_grad():
            left, right = (run(c.program, c.weights, some)[0].numpy() for c in (rescaled, plain))
        found = yardstick.largest_difference(left, right)
        self._check("the re-scaled model computes the same", f"largest difference {found:.1e}", found <= SAME)

    def _check_recognised(self, program: Program) -> None:
        found = {op: program.count(op) for op in COUNTS}
        found["planish.attention"] += program.count("planish.attend")  # the same over a cache
        shown = ", ".join(f"{count} {op.partition('.')[2]}" for op, count in found.items())
        self._check("all attentions, norms and rotary embeddings are found", shown, found == COUNTS)

    def _check_sizes(self, rows: list[Row], memory: Memory, size: int) -> None:
        sizes = {row.name: row.bytes for row in rows}
        share = sizes[INT4] / sizes[FP32]
        self._check(f"int4 takes at most {SHARE} of the fp32 bytes", f"{share:.4f}", share <= SHARE)
        extra = memory.resident - size
        self._check(
            "a process that runs it takes at most 150 MB more than the file",
            f"{extra / 1e6:.0f} MB more", extra <= ROOM,
        )  # fmt: skip

    def _check(self, what: str, found: str, holds: bool) -> None:
        self.checks.append(Check(what, found, bool(holds)))


class _Step:
    """Times a block and tells when it ends."""

    def __init__(self, name: str, tell: Callable[[str, float], None]) -> None:
        self._name, self._tell = name, tell

    def __enter__(self) -> None:
        self._begin = perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._tell(self._name, perf_counter() - self._begin)
