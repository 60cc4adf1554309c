"""Artifacts whose machine code may not run here: their programs are compiled again, with the weights that they hold."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import ArtifactError, PlanishError
from planish.frontend.compiled import Compiled
from planish.frontend.report import Report
from planish.runtime.artifact import Artifact, open_artifact
from planish.runtime.limits import Limits
from planish.runtime.selftest import run_selftest

if TYPE_CHECKING:
    from planish.ir.node import Module

TARGET = "cpu"

REASONS = frozenset({"PL622", "PL771", "PL772", "PL773"})
"""Why machine code may not run here: it is not trusted, or for another version, system or processor."""


def compile_again(
    path: str | os.PathLike[str],
    *,
    verify: Any,
    mmap: bool,
    limits: Limits | None,
    reason: PlanishError | None = None,
) -> Compiled:
    """The model of an artifact, compiled for this machine from its programs; nothing of its machine code is run.

    ``reason`` says why its own code does not run; it becomes a note of the report. With ``verify="full"`` the
    self-tests of the artifact are run: PL615.
    """
    from planish.backends.tvm.make import build_product
    from planish.backends.tvm.target import machine
    from planish.frontend.capture.base import Captured
    from planish.frontend.compilation import Made
    from planish.frontend.config import read_target
    from planish.ir.verify_module import verify_module
    from planish.passes.materialise import materialise_module

    artifact = open_artifact(path, mmap=mmap, verify=verify, limits=limits)
    module = stored_module(artifact)
    weights = stored_weights(artifact, module)
    verify_module(module, weights)
    report = Report.from_json(_report(artifact))
    report = replace(report, notes=(*report.notes, *_notes(reason)))
    target, options = read_target(TARGET)
    split = materialise_module(module, machine())
    product = build_product(module, split.main, split.load, weights, target, options)
    digest, folder = str(artifact.manifest.source.get("digest", "")), _tokenizer(artifact)
    captured = Captured(module.default, weights, (), digest, folder)
    compiled = Compiled(
        made=Made(module, weights, report, captured, 0, product, artifact.manifest.generation)
    )
    compiled.source_path = artifact.path
    if folder is not None:
        weakref.finalize(compiled, shutil.rmtree, folder, ignore_errors=True)
    if verify == "full":
        session = compiled._opened()
        for entry in artifact.manifest.entry_points.values():
            run_selftest(artifact, entry, session._model)
    return compiled


def _tokenizer(artifact: Artifact) -> Path | None:
    """A new folder with the files of the tokenizer, where there are any."""
    names = [n for n in artifact.names if n.startswith("tokenizer/")]
    if not names:
        return None
    folder = Path(tempfile.mkdtemp(prefix="planish-"))
    for name in names:
        (folder / Path(name).name).write_bytes(artifact.read(name))
    return folder


def _notes(reason: PlanishError | None) -> tuple[str, ...]:
    if reason is None:
        return ()
    trust = "; 'planish trust add' lets it run" if reason.code == "PL622" else ""
    return (f"compiled afresh, because of {reason.code}: {reason.message}{trust}",)


def stored_module(artifact: Artifact) -> Module:
    """The programs in an artifact, the default first, with the names of their outputs.

    PL612: an entry point has no program that fits it.
    """
    from planish.backends.tvm.target import load_kernels
    from planish.ir.node import Module
    from planish.ir.parser import parse

    load_kernels()
    manifest = artifact.manifest
    made = []
    for name, entry in manifest.entry_points.items():
        member = f"ir/{name}.ir.py"
        if member not in artifact:
            raise ArtifactError(
                "PL612", f"the artifact holds no program for {name}", where=str(artifact.path)
            )
        program = parse(artifact.read(member).decode(), f"{artifact.path}: {member}")
        if program.name != name or len(program.outputs) != len(entry.outputs):
            raise ArtifactError("PL612", f"{member} does not fit the entry points", where=str(artifact.path))
        made.append(replace(program, output_names=tuple(value.name for value in entry.outputs)))
    first = manifest.default or ("main" if "main" in manifest.entry_points else made[0].name)
    return Module(tuple(sorted(made, key=lambda program: program.name != first)))


def stored_weights(artifact: Artifact, module: Module) -> Any:
    """The constants of programs that an artifact holds, mapped and read when they are used."""
    import torch  # noqa: F401  (weights are torch tensors)

    from planish.ir.weights import Weights
    from planish.runtime.inputs import to_torch

    made = Weights()
    wanted = {leaf.name: leaf.tensor for leaf in module.constants()}
    for member in artifact.names:
        if not member.startswith("weights/"):
            continue
        for name, array in artifact.tensors(member).items():
            if name in wanted:
                made.add_lazy(name, wanted[name], lambda array=array: to_torch(array, "cpu"))  # type: ignore[misc]
    return made


def _report(artifact: Artifact) -> Any:
    from planish.runtime.tensors import parse_json

    name = "report.json"
    if name not in artifact:
        return {}
    return parse_json(artifact.read(name), code="PL611", where=f"{artifact.path}: {name}")
