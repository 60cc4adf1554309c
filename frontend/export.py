"""Writing a compiled model: as an artifact with a self-test, or as a plain ONNX model."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import ArtifactError, BackendError, UsageError
from planish.runtime.session import load as load_session

if TYPE_CHECKING:
    from planish.frontend.compiled import Compiled

SELFTEST_RTOL, SELFTEST_ATOL = 1e-3, 1e-3
"""How far a self-test may be off on another machine: relative, and as a share of the largest value."""

ROUNDED_RTOL, ROUNDED_ATOL = 3e-2, 3e-2
"""The same where activations are rounded to 8 bits, which other kernels do elsewhere."""


def export(compiled: Compiled, path: str | os.PathLike[str], *, format: str, overwrite: bool) -> Path:
    """Write a compiled model; what fails leaves nothing at the destination."""
    target = Path(path)
    if format in ("so", "mlir"):
        raise UsageError(
            "PL823",
            f"format={format!r} is not supported by this version",
            hint="known: planish, onnx",
        )
    if format not in ("planish", "onnx"):
        raise UsageError("PL827", f"unknown format {format!r}", hint="known: planish, onnx")
    if target.exists() and not overwrite:
        raise ArtifactError(
            "PL614",
            "the destination exists already",
            where=str(target),
            hint="pass overwrite=True to replace it",
        )
    begin = perf_counter()
    written = (
        _onnx(compiled, target, overwrite) if format == "onnx" else _artifact(compiled, target, overwrite)
    )
    if compiled._report is not None:
        compiled._report = compiled._report.with_phase("export", perf_counter() - begin)
    return written


def _onnx(compiled: Compiled, target: Path, overwrite: bool) -> Path:
    from planish.backends.ort.lower import lower
    from planish.backends.ort.options import OrtOptions
    from planish.backends.ort.write import save_onnx

    program, weights = compiled.program, compiled.weights
    missing = [leaf.name for leaf in program.constants() if leaf.name not in weights]
    if missing:
        raise BackendError(
            "PL722", f"the artifact holds {len(missing)} weights only in the layout of its code, first {missing[0]}",
            hint="compile the model again and export that",
        )  # fmt: skip
    made = compiled._made
    options = made.lowered.options if made is not None and made.lowered is not None else OrtOptions()
    return save_onnx(lower(program, weights, options=options), target, overwrite=overwrite)


def _artifact(compiled: Compiled, target: Path, overwrite: bool) -> Path:
    from planish.frontend.compiled import write_package

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
    return write_package(package.with_members(_selftest(compiled)), target, overwrite=overwrite)


def _selftest(compiled: Compiled) -> dict[str, Any]:
    """One small input and what the model makes of it, computed by one thread from the code that is written."""
    import tempfile

    from planish.frontend.compilation import example_feeds
    from planish.frontend.compiled import SELFTEST_THREADS, write_package
    from planish.runtime.inputs import to_array
    from planish.runtime.selftest import selftest_members

    made = compiled._made
    assert made is not None and made.lowered is not None
    program = made.program
    if program.states:
        return {}
    feeds = {n: to_array(v, n, program.name) for n, v in example_feeds(program, made.seed).items()}
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        scratch = write_package(compiled._package(), Path(folder) / "model.planish")
        with load_session(scratch, verify="off", threads=SELFTEST_THREADS) as session:
            outputs = session.run(feeds)
    rounded = made.lowered.options.activation_bits < 32
    rtol, atol = (ROUNDED_RTOL, ROUNDED_ATOL) if rounded else (SELFTEST_RTOL, SELFTEST_ATOL)
    largest = max((_largest(a) for a in outputs.values()), default=0.0)
    return dict(selftest_members(program.name, feeds, outputs, rtol=rtol, atol=atol * largest))


def _largest(array: Any) -> float:
    if not array.size or array.dtype.kind not in "fc":
        return 0.0
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0
