"""Writing a compiled model: as an artifact with a self-test, as a plain ONNX model, or as a library for C++."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import ArtifactError, BackendError, UsageError
from planish.frontend.package import Package
from planish.runtime.session import load as load_session
from planish.runtime.zipwriter import CHUNK

if TYPE_CHECKING:
    from planish.frontend.compiled import Compiled

SELFTEST_RTOL, SELFTEST_ATOL = 1e-3, 1e-3
"""How far a self-test may be off on another machine: relative, and as a share of the largest value."""

ROUNDED_RTOL, ROUNDED_ATOL = 3e-2, 3e-2
"""The same where activations are rounded to 8 bits, which other kernels do elsewhere."""


ELSEWHERE = frozenset({"PL705", "PL772", "PL773", "PL775", "PL863"})
"""Errors of code for another processor, or for a GPU that is not here: it is written without a self-test."""

log = logging.getLogger("planish")
FORMATS = ("planish", "onnx", "so")


def export(compiled: Compiled, path: str | os.PathLike[str], *, format: str, overwrite: bool) -> Path:
    """Write a compiled model; what fails leaves nothing at the destination."""
    target = Path(path)
    if format == "mlir":
        raise UsageError(
            "PL823", "format='mlir' is not supported by this version", hint=f"known: {', '.join(FORMATS)}"
        )
    if format not in FORMATS:
        raise UsageError("PL827", f"unknown format {format!r}", hint=f"known: {', '.join(FORMATS)}")
    if target.exists() and not overwrite:
        raise ArtifactError(
            "PL614",
            "the destination exists already",
            where=str(target),
            hint="pass overwrite=True to replace it",
        )
    begin = perf_counter()
    written = {"onnx": _onnx, "so": _library, "planish": _artifact}[format](compiled, target, overwrite)
    if compiled._report is not None:
        compiled._report = compiled._report.with_phase("export", perf_counter() - begin)
    return written


def _onnx(compiled: Compiled, target: Path, overwrite: bool) -> Path:
    from planish.backends.ort.module import lower_module
    from planish.backends.ort.options import OrtOptions
    from planish.backends.ort.write import save_onnx

    module, weights = compiled.module, compiled.weights
    missing = [leaf.name for leaf in module.constants() if leaf.name not in weights]
    if missing:
        raise BackendError(
            "PL722", f"the artifact holds {len(missing)} weights only in the layout of its code, first {missing[0]}",
            hint="compile the model again and export that",
        )  # fmt: skip
    if any(n.op.startswith("kernel.") for program in module.programs for n in program.nodes):
        from planish.frontend.compilation import forked
        from planish.passes.joint import join, split
        from planish.passes.unselect import unselect

        weights = forked(weights)
        module = split(unselect(join(module), weights), module)
    made = compiled._made
    chosen = made.lowered.options if made is not None and made.lowered is not None else None
    options = chosen if isinstance(chosen, OrtOptions) else OrtOptions()
    return save_onnx(lower_module(module, weights, options=options), target, overwrite=overwrite)


def _library(compiled: Compiled, target: Path, overwrite: bool) -> Path:
    from planish.frontend.export_library import export_library, model_of

    return export_library(model_of(compiled), target, overwrite=overwrite)


def _artifact(compiled: Compiled, target: Path, overwrite: bool) -> Path:
    if compiled._made is None:
        from planish.runtime.zipwriter import file_chunks, replacing

        if compiled.source_path is None:
            raise BackendError("PL721", "there is no artifact behind this model")
        with replacing(target, overwrite=overwrite) as file:
            for chunk in file_chunks(compiled.source_path):
                file.write(chunk)
        return target
    if not target.parent.is_dir():
        raise ArtifactError("PL625", f"the folder {target.parent} does not exist", where=str(target))
    package = compiled._package(tokenizer=True)
    written = _tested(compiled, package, target, overwrite)
    _trust(compiled, written)
    return written


def _tested(compiled: Compiled, package: Package, target: Path, overwrite: bool) -> Path:
    """Write a package with a self-test: an artifact without one is written, run and copied."""
    from planish.frontend.compiled import write_package
    from planish.runtime.artifact import open_artifact

    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        scratch = write_package(package, Path(folder) / "model.planish")
        more = _selftest(compiled, scratch)
        with open_artifact(scratch, verify="off") as artifact:
            # Weights are computed when they are written, and that once is enough.
            written = {n: _pieces(artifact.view(n)) for n in package.members}
            return write_package(Package({**written, **more}, package.fields), target, overwrite=overwrite)


def _pieces(view: memoryview) -> Iterator[bytes]:
    for start in range(0, len(view), CHUNK):
        yield bytes(view[start : start + CHUNK])


def _selftest(compiled: Compiled, scratch: Path) -> dict[str, Any]:
    """A small input of each entry point and what it makes of it, computed by one thread from the code that is written.

    States begin as zeros, and are not stored.
    """
    from planish.frontend.code import code_of
    from planish.frontend.compilation import example_feeds
    from planish.frontend.compiled import SELFTEST_THREADS
    from planish.runtime.inputs import to_array
    from planish.runtime.selftest import selftest_members

    made = compiled._made
    assert made is not None and made.lowered is not None
    code = code_of(made.lowered, made.module, made.weights)
    device = code.targets[0]["device"]
    rtol, atol = (ROUNDED_RTOL, ROUNDED_ATOL) if code.rounded else (SELFTEST_RTOL, SELFTEST_ATOL)
    members: dict[str, Any] = {}
    try:
        with load_session(
            scratch, device=device, verify="off", threads=SELFTEST_THREADS, allow_native_code=True
        ) as session:
            for program in made.module.programs:
                if not program.outputs:
                    continue
                name = program.name
                feeds = {n: to_array(v, n, name) for n, v in example_feeds(program, made.seed).items()}
                session.reset()
                outputs = session.run(feeds, name)
                largest = max((_largest(a) for a in outputs.values()), default=0.0)
                members |= selftest_members(name, feeds, outputs, rtol=rtol, atol=atol * largest)
    except (BackendError, UsageError) as error:
        if error.code not in ELSEWHERE:
            raise
        return {}
    return members


def _trust(compiled: Compiled, written: Path) -> None:
    """What was compiled here runs here without being asked for; a list that cannot be changed is no error."""
    from planish.backends.tvm.product import Product
    from planish.frontend.trusting import trust_own

    made = compiled._made
    if made is None or not isinstance(made.lowered, Product):
        return
    note = trust_own(written, made.lowered.libraries)
    if note is not None:
        log.warning("%s: %s", written, note)
        compiled._report = replace(compiled.report, notes=(*compiled.report.notes, note))


def _largest(array: Any) -> float:
    if not array.size or array.dtype.kind not in "fc":
        return 0.0
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0
