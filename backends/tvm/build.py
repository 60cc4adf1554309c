"""From a Relax module to a shared library: memory is planned, calls become those of the virtual machine."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax import transform

from planish.backends.tvm.lower import Lowered
from planish.backends.tvm.schedule import scheduled
from planish.backends.tvm.stages import tir_pipeline
from planish.errors import BackendError

LINKERS = ("g++", "gcc", "clang++", "clang")
"""Programs that link a library, in the order in which they are looked for."""


def _in_order(module: Any, _: Any) -> Any:
    """Sizes are computed in the order of their slots; ``VMShapeLower`` leaves them in the order of addresses."""
    made = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and name.name_hint.startswith("shape_func"):
            made.update_func(name, function.with_body(_sorted(function.body)))
    return made


def _sorted(body: Any) -> Any:
    """The stores of a sequence by place, where none reads what another one writes."""
    stores = list(body.seq) if isinstance(body, tirx.SeqStmt) else []
    if not all(isinstance(s, tirx.BufferStore) and isinstance(s.indices[0], tirx.IntImm) for s in stores):
        return body
    written = {int(s.indices[0]) for s in stores}
    if not stores or not all(_reads(s.value).isdisjoint(written) for s in stores):
        return body
    return tirx.SeqStmt(sorted(stores, key=lambda s: int(s.indices[0])))


def _reads(expression: Any) -> set[int]:
    """The places that an expression of sizes reads."""
    found: set[int] = set()
    pending = [expression]
    while pending:
        each = pending.pop()
        if isinstance(each, tvm.ir.expr.TensorLoad):
            found.add(int(each.indices[0]))
            continue
        pending += [getattr(each, part) for part in ("a", "b", "value") if hasattr(each, part)]
        pending += list(getattr(each, "args", ()))
        pending = [e for e in pending if not isinstance(e, int)]  # IntImm.value
    return found


def pipeline() -> Any:
    """The passes from calls of TIR functions to instructions of the virtual machine."""
    return tvm.transform.Sequential(
        [
            transform.ToNonDataflow(),
            transform.RemovePurityChecking(),
            transform.CallTIRRewrite(),
            transform.StaticPlanBlockMemory(),
            transform.LowerAllocTensor(),
            transform.KillAfterLastUse(),
            transform.LowerRuntimeBuiltin(),
            transform.ComputePrimValue(),
            transform.VMShapeLower(),
            tvm.transform.module_pass(_in_order, opt_level=0, name="InOrder"),
            transform.AttachGlobalSymbol(),
        ]
    )


def executable(lowered: Lowered, target: Any) -> Any:
    """The compiled module."""
    module = scheduled(lowered.module, target) if target.kind.name == "llvm" else lowered.module
    return relax.build(module, target, relax_pipeline=pipeline(), tir_pipeline=tir_pipeline())


def compile_library(lowered: Lowered, target: Any) -> bytes:
    """The bytes of a shared library with every entry point, the same for the same module; PL753: no linker."""
    return link(executable(lowered, target))


def link(made: Any) -> bytes:
    """A compiled module as a shared library. ``BackendError`` PL753: there is no linker, or it fails."""
    program = linker()
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        path = Path(folder) / "library.so"
        try:
            made.export_library(str(path), cc=program, options=["-Wl,--build-id=none"])
        except RuntimeError as error:
            raise BackendError("PL753", f"{program} cannot link the library: {_last_line(error)}") from error
        return path.read_bytes()


def linker() -> str:
    """The program that links libraries; PL753 if there is none."""
    for name in LINKERS:
        if found := shutil.which(name):
            return found
    raise BackendError(
        "PL753", f"no linker was found: none of {', '.join(LINKERS)} is there",
        hint="install a C++ compiler (Debian: apt-get install g++), or use target='onnxruntime'",
    )  # fmt: skip


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
