"""Export as a folder for C++: a shared library, its weights, a header, an example and a Makefile."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import ArtifactError, BackendError
from planish.frontend.code import NativeCode as Native
from planish.frontend.library_text import EXAMPLE, MAKEFILE, HeaderFacts, header
from planish.frontend.package import entry_point, typed
from planish.runtime.elf import check_library
from planish.runtime.manifest import EntryPoint
from planish.runtime.native_code import NAME, LibraryFile, NativeCode, parse_code
from planish.runtime.processor import choose_library
from planish.runtime.tensors import Array, SafetensorsPayload, TensorSource

if TYPE_CHECKING:
    from planish.backends.tvm.product import Product
    from planish.frontend.compiled import Compiled
    from planish.runtime.artifact import Artifact

LIBRARY = "libmodel.so"
WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.json"
HEADER = "planish_model.h"


@dataclass(frozen=True)
class LibraryModel:
    """A model in machine code: ``library`` is the one of ``code.libraries`` called ``variant``.

    ``entries`` gives the types of the entry points, ``dims`` the ranges of sizes, and ``weights`` all tensors that
    entry points name, but those that the load function makes.
    """

    code: NativeCode
    variant: str
    library: bytes
    entries: Mapping[str, EntryPoint]
    dims: Mapping[str, tuple[int, int]]
    weights: Mapping[str, Array | TensorSource]


def model_of(compiled: Compiled) -> LibraryModel:
    """What is exported of a model whose code is native, the library that this machine runs best.

    PL721: it is not for CPUs, or other code; PL773: none of its libraries runs on this machine.
    """
    from planish.backends.tvm.product import Product

    made = compiled._made
    if made is not None and isinstance(made.lowered, Product) and made.lowered.device == "cpu":
        return _of_product(made.lowered)
    if made is None and compiled._session is not None:
        artifact = compiled._session.artifact
        if f"code/cpu/{NAME}" in artifact:
            return _of_artifact(artifact)
    raise BackendError(
        "PL721", "the model has no machine code for CPUs that a library could be made of",
        hint="compile it with target='cpu'",
    )  # fmt: skip


def _of_product(product: Product) -> LibraryModel:
    code, native = product.code(), Native(product)
    entries = {p.name: typed(p.name, entry_point(native, p)) for p in product.module.programs}
    variant = choose_library(code.libraries)
    dims = {s.name: (s.low, s.high) for s in product.module.symbols}
    return LibraryModel(code, variant, product.libraries[variant], entries, dims, product.tensors)


def _of_artifact(artifact: Artifact) -> LibraryModel:
    member = f"code/cpu/{NAME}"
    code = parse_code(artifact.read(member), where=f"{artifact.path}: {member}")
    variant = choose_library(code.libraries, where=str(artifact.path))
    weights: dict[str, Any] = {}
    for name in artifact.names:
        if name.startswith("weights/"):
            weights |= artifact.tensors(name)
    library = artifact.read(f"code/cpu/{code.libraries[variant].file}")
    return LibraryModel(
        code, variant, library, artifact.manifest.entry_points, artifact.manifest.dims, weights
    )


def export_library(model: LibraryModel, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the folder ``path`` and return it; it appears only when it is complete and on disk.

    PL614: something is there and ``overwrite`` is not set, or it is no folder of this kind; PL612: a weight is
    missing; PL621: entry points and code do not agree; PL625: the parent folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ArtifactError("PL625", f"the folder {target.parent} does not exist", where=str(target))
    _check_free(target, overwrite)
    _check_model(model, target)
    scratch = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
    try:
        scratch.mkdir()
        for name, content in _files(model).items():
            _write(scratch / name, content)
        _sync(scratch)
        _check_free(target, overwrite)
        _publish(scratch, target)
    except OSError as error:
        raise ArtifactError("PL614", f"cannot be written: {error.strerror}", where=str(target)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _files(model: LibraryModel) -> dict[str, Any]:
    load = model.code.load
    made = set(model.code.entries[load].outputs) if load is not None else set()
    used = [n for key, e in model.code.entries.items() for n in e.weights if key == load or n not in made]
    payload = SafetensorsPayload({name: model.weights[name] for name in dict.fromkeys(used)})
    layout = payload.layout()
    needs = model.code.libraries[model.variant].needs
    code = replace(model.code, libraries={model.variant: LibraryFile(LIBRARY, needs)})
    end = max((info.offset + info.length for info in layout.values()), default=0)
    size = end or len(next(iter(payload.chunks())))  # a file without tensors is its header
    return {
        LIBRARY: [model.library],
        WEIGHTS: payload.chunks(),
        DESCRIPTION: [code.dump()],
        HEADER: [header(HeaderFacts(model.code, model.entries, model.dims, layout, size)).encode()],
        "example.cc": [EXAMPLE.encode()],
        "Makefile": [MAKEFILE.encode()],
    }


def _check_model(model: LibraryModel, target: Path) -> None:
    where, load = str(target), model.code.load
    check_library(model.library, machine=model.code.abi.machine, where=where)
    made = set(model.code.entries[load].outputs) if load is not None else set()
    for name, code in model.code.entries.items():
        missing = [w for w in code.weights if w not in model.weights and (name == load or w not in made)]
        if missing:
            raise ArtifactError("PL612", f"the weight {missing[0]!r} of {name} is not there", where=where)
        entry = model.entries.get(name)
        if name == load:
            continue
        if entry is None or code.arguments != (
            *(v.name for v in entry.inputs), *(s.input for s in entry.states)
        ) or code.results != (*(v.name for v in entry.outputs), *(s.output for s in entry.states)):  # fmt: skip
            raise ArtifactError("PL621", f"the code has other names than the entry point {name}", where=where)


def _check_free(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ArtifactError(
            "PL614", "the destination exists already", where=str(target),
            hint="pass overwrite=True to replace it",
        )  # fmt: skip
    ours = target.is_dir() and ((target / DESCRIPTION).is_file() or not any(target.iterdir()))
    if target.is_symlink() or not ours:
        raise ArtifactError(
            "PL614", "the destination is not a folder that was exported before", where=str(target),
            hint="choose another name",
        )  # fmt: skip


def _write(path: Path, chunks: Any) -> None:
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _publish(scratch: Path, target: Path) -> None:
    """Give the folder its name; what bore it before is moved aside first and removed in the end."""
    old = None
    if target.exists():
        old = scratch.with_suffix(".old")
        target.rename(old)
    try:
        scratch.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    _sync(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a folder cannot be opened everywhere
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
