"""A compiled model: called like the original, explained, measured and exported."""

from __future__ import annotations

import difflib
import shutil
import tempfile
import weakref
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from planish.errors import BackendError, UsageError
from planish.frontend.report import Layer, Report
from planish.runtime.inputs import bind_arguments, to_torch, torch_device
from planish.runtime.manifest import EntryPoint
from planish.runtime.session import Session
from planish.runtime.session import load as load_session

if TYPE_CHECKING:
    from planish.frontend.compilation import Made
    from planish.frontend.eager import EagerModel
    from planish.frontend.package import Package
    from planish.ir.node import Module, Program
    from planish.ir.weights import Weights
    from planish.runtime.generate.model import Model

SELFTEST_THREADS = 1
"""Self-tests are computed by one thread, so that an artifact does not depend on how many there are."""


@dataclass(frozen=True)
class Bench:
    """Milliseconds of one call: the median and the 10th and 90th percentile of ``repeats`` calls."""

    median: float
    p10: float
    p90: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ms (p10 {self.p10:.3f}, p90 {self.p90:.3f}, {self.repeats} calls)"


class Compiled:
    """A model that planish made or loaded.

    Call it like the original, with arrays or torch tensors, by position or by name: torch gives torch, numpy gives
    numpy. One output comes bare, several as a tuple with the names of the outputs; :meth:`run` gives a table.
    Of several entry points, the first is the one that is called; :meth:`run` takes the name of another. They share
    weights, and states, which are kept from call to call until :meth:`reset`.
    """

    def __init__(self, *, made: Made | None = None, session: Session | None = None) -> None:
        self._made = made
        self._session = session
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._eager_model: EagerModel | None = None
        self._module: Module | None = made.module if made is not None else None
        self._weights: Weights | None = made.weights if made is not None else None
        self._report = made.report if made is not None else None
        self._generator: Model | None = None
        self.source_path = session.path if session is not None else None

    @property
    def program(self) -> Program:
        """The program of the default entry point, after all passes."""
        return self.module.default

    @property
    def module(self) -> Module:
        """The programs of all entry points, after all passes; the first is the default."""
        if self._module is None:
            from planish.frontend.afresh import stored_module

            self._module = stored_module(self._opened().artifact)
        return self._module

    @property
    def generation(self) -> Mapping[str, Any] | None:
        """How the entry points continue a text: sizes of caches and calls; None if they were not made for it."""
        if self._made is not None:
            return self._made.generation
        return self._opened().manifest.generation

    @property
    def weights(self) -> Weights:
        """The weights that the programs use. Of a loaded artifact: those that are stored as the program has them."""
        if self._weights is None:
            from planish.frontend.afresh import stored_weights

            self._weights = stored_weights(self._opened().artifact, self.module)
        return self._weights

    @property
    def report(self) -> Report:
        """Sizes, phases, rewrites, and a row for each weight."""
        if self._report is None:
            self._report = Report.from_json(self._opened().report or {})
        return self._report

    @property
    def plan(self) -> None:
        """The decisions of a search; None, because nothing was searched."""
        return None

    @property
    def target(self) -> str:
        """The target that the model was compiled for."""
        return self.report.target or "onnxruntime"

    @property
    def tokenizer(self) -> dict[str, bytes]:
        """The files of the tokenizer by name; empty where the model has none."""
        if self._made is not None:
            from planish.frontend.capture.source import tokenizer_files

            return tokenizer_files(self._made.captured.tokenizer)
        artifact = self._opened().artifact
        return {
            n.removeprefix("tokenizer/"): artifact.read(n)
            for n in artifact.names
            if n.startswith("tokenizer/")
        }

    @property
    def entry_points(self) -> Mapping[str, EntryPoint]:
        """The functions of the model by name, with typed inputs, outputs and states."""
        if self._session is None and self._made is not None:
            from planish.frontend.eager import entry_of

            return {program.name: entry_of(program) for program in self._made.module.programs}
        return self._opened().entry_points

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs of the default entry point."""
        return tuple(value.name for value in self._default.outputs)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the model; gives what the original gives: one array, or a tuple with names."""
        given = bind_arguments(self._default, inputs, named)
        device = torch_device(given)
        found = self.run(given)
        values = [to_torch(a, device) for a in found.values()] if device is not None else list(found.values())
        return values[0] if len(values) == 1 else namedtuple("Outputs", list(found), rename=True)(*values)

    def run(self, feeds: Mapping[str, Any], entry: str | None = None) -> dict[str, Any]:
        """Outputs by name from inputs by name, as numpy arrays, of the default entry point or the one named."""
        return self._running().run(dict(feeds), entry or self._default.name)

    @property
    def states(self) -> Mapping[str, Any]:
        """The states after the last call, by name; empty before the first."""
        return self._running().states

    def reset(self) -> None:
        """Forget the states: the next call begins with zeros."""
        self._running().reset()

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Continue a prompt: text, tokens, a conversation, or a list of these; see :meth:`Model.generate`.

        Options: ``max_tokens``, ``temperature``, ``top_k``, ``top_p``, ``stop``, ``seed``, ``stream``, ``speculate``,
        ``chat`` and ``context``. PL870 if the model was not compiled with ``generate``.
        """
        return self.generator.generate(prompt, **options)

    @property
    def generator(self) -> Model:
        """What generates: it also makes empty contexts, ``generator.context()``, and restores stored ones."""
        if self._generator is None:
            from planish.frontend.generating import model_of

            self._generator = model_of(self)
        return self._generator

    def explain(self, name: str) -> Layer | tuple[Layer, ...]:
        """How a weight is stored and why: its row, or several rows for a glob such as ``*.q_proj``."""
        rows = {row.name: row for row in self.report.layers}
        found = rows.get(name) or rows.get(f"{name}.weight")
        if found is not None:
            return found
        chosen = tuple(
            r for n, r in rows.items() if any(fnmatchcase(x, name) for x in (n, n.removesuffix(".weight")))
        )
        if not chosen:
            near = difflib.get_close_matches(name, rows, 3)
            raise UsageError(
                "PL828", f"there is no weight {name!r}", hint=f"near: {', '.join(near)}" if near else None
            )
        return chosen

    def bench(
        self, feeds: Mapping[str, Any] | None = None, *, sizes: Mapping[str, int] | None = None, warmup: int = 2,
        repeats: int = 10,
    ) -> Bench:  # fmt: skip
        """Time calls on ``feeds``, or on made-up inputs in which dimensions have the given ``sizes``."""
        import statistics

        if repeats < 2 or warmup < 0:
            raise UsageError("PL824", f"repeats={repeats} and warmup={warmup}: at least two calls are timed")
        if feeds is None:
            from planish.frontend.compilation import example_feeds

            feeds = example_feeds(self.program, 0, dict(sizes or {}))
        for _ in range(warmup):
            self.run(feeds)
        times = []
        for _ in range(repeats):
            begin = perf_counter()
            self.run(feeds)
            times.append((perf_counter() - begin) * 1e3)
        tenths = statistics.quantiles(times, n=10, method="inclusive")
        return Bench(statistics.median(times), tenths[0], tenths[-1], repeats)

    def export(self, path: Any, *, format: str = "planish", overwrite: bool = False) -> Path:
        """Write the model to a file; see :func:`planish.export`."""
        from planish.frontend.export import export

        return export(self, path, format=format, overwrite=overwrite)

    def close(self) -> None:
        """Free the memory of what runs the model; a loaded model cannot be used afterwards, a compiled one can."""
        self._generator = None
        if self._session is not None:
            self._session.close()
        if self._made is not None:
            self._session = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def __enter__(self) -> Compiled:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Compiled({', '.join(str(e) for e in self.entry_points.values())})"

    @property
    def _default(self) -> EntryPoint:
        entries = self.entry_points
        if self._made is not None:
            return entries[self._made.program.name]
        chosen = self._opened().manifest.default or ("main" if "main" in entries else None)
        if chosen is None and len(entries) > 1:
            raise UsageError("PL861", "the model has several entry points and none is called main")
        return entries[chosen or next(iter(entries))]

    def _running(self) -> Session | EagerModel:
        """What runs the model."""
        if self._made is None or self._made.lowered is not None:
            return self._opened()
        if self._eager_model is None:
            from planish.frontend.eager import EagerModel

            self._eager_model = EagerModel(self._made.module, self._made.weights)
        return self._eager_model

    def _opened(self) -> Session:
        """What runs the model: of a compiled one, a session on an artifact in a scratch folder."""
        if self._session is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="planish-")
            path = Path(self._scratch.name) / "model.planish"
            write_package(self._package(), path)
            self._session = load_session(path, verify="off", allow_native_code=True)
            weakref.finalize(self, shutil.rmtree, self._scratch.name, ignore_errors=True)
        return self._session

    def _package(self, *, tokenizer: bool = False) -> Package:
        from planish.frontend.code import code_of
        from planish.frontend.package import Parts, make_package

        made = self._made
        if made is None or made.lowered is None:
            raise BackendError(
                "PL721", "a model for the target eager has no code that an artifact could hold",
                hint="compile with target='onnxruntime'",
            )  # fmt: skip
        files = self.tokenizer if tokenizer else {}
        code = code_of(made.lowered, made.module, made.weights)
        parts = Parts(code, made.report, made.captured.digest, files, made.module, made.generation)
        return make_package(parts)


def write_package(package: Package, path: Path, *, overwrite: bool = False) -> Path:
    """Write an artifact; it appears at ``path`` only when it is complete and on disk."""
    from planish.runtime.artifact import write_artifact

    return write_artifact(path, manifest_fields=package.fields, members=package.members, overwrite=overwrite)
