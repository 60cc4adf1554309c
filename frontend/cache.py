"""The cache of finished artifacts: a file that was compiled in the same way before is not compiled again.

Beside them lie records of what was measured when kernels were tuned (:mod:`planish.backends.tvm.tune_records`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.errors import ArtifactError
from planish.frontend.compiled import Compiled
from planish.frontend.config import CompileOptions

SUFFIX = ".planish"
FOLDER = "artifacts"
TUNING = "tuning"


@dataclass(frozen=True)
class Usage:
    """What the cache holds: artifacts (``files``), records of tuned kernels, and the bytes of all."""

    folder: Path
    files: int
    bytes: int
    records: int = 0


def cached(
    model: Any,
    options: CompileOptions,
    example_inputs: Any,
    dynamic_shapes: Any,
    make: Callable[[], Compiled],
) -> Compiled:
    """The artifact of an earlier run, or what ``make`` makes, which is kept for later runs.

    Only models that are files are kept, compiled without inputs and shapes of the caller for a target with code.
    """
    key = _key(model, options) if example_inputs is None and dynamic_shapes is None else None
    if key is None or options.cache is None:
        return make()
    path = options.cache / FOLDER / f"{key}{SUFFIX}"
    if options.policy != "redo" and path.is_file():
        found = _load(path)
        if found is not None:
            return found
    compiled = make()
    if options.policy != "readonly":
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path.with_suffix(".lock"))):
            compiled.export(path, overwrite=True)
    return compiled


def _load(path: Path) -> Compiled | None:
    """A kept artifact, or None if it is damaged: then it is made again."""
    from planish.runtime.session import load

    try:
        return Compiled(session=load(path, verify="fast"))
    except ArtifactError:
        return None


def _key(model: Any, options: CompileOptions) -> str | None:
    """What decides the bytes of the artifact: the source, the options and the versions of the tools."""
    if options.cache is None or options.target.kind == "eager" or not isinstance(model, (str, os.PathLike)):
        return None
    from planish.frontend.capture.source import file_digest, folder_digest
    from planish.frontend.package import versions

    path = Path(model)
    if not path.exists() or path.name.endswith((".ir.py", ".onnx")):
        return None  # these have further files beside them
    facts = {
        "source": folder_digest(path) if path.is_dir() else file_digest(path),
        "suffix": path.suffix,
        "pipeline": options.pipeline,
        "layers": [dict(rule) for rule in options.layers],
        "target": [str(options.target), repr(options.options)],
        "seed": options.seed,
        "generate": repr(options.generate),
        "switches": [options.allow_pickle, options.allow_fixed],
        "versions": versions(),
    }
    if options.tune is not None:
        from planish.backends.tvm.tune_records import machine_facts
        from planish.runtime.tvm_threads import tvm_threads

        facts["tune"] = [options.tune, dict(machine_facts(tvm_threads()))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def usage(folder: Path) -> Usage:
    """How many artifacts and records the cache holds and how many bytes they take."""
    sizes = {p: p.stat().st_size for p in _files(folder) if p.suffix != ".lock"}
    artifacts = sum(p.suffix == SUFFIX for p in sizes)
    return Usage(folder, artifacts, sum(sizes.values()), len(sizes) - artifacts)


def clear(folder: Path) -> Usage:
    """Remove all artifacts and records from the cache and nothing else; gives what was removed."""
    before = usage(folder)
    for path in _files(folder):
        path.unlink(missing_ok=True)
    return before


def _files(folder: Path) -> list[Path]:
    places = ((folder / FOLDER, (SUFFIX, ".lock")), (folder / TUNING, (".json",)))
    return sorted(
        path for place, suffixes in places if place.is_dir() for path in place.iterdir() if path.suffix in suffixes
    )  # fmt: skip
