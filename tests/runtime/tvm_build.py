"""Small libraries made by TVM, and artifacts that hold them, for the tests of the runtime."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.errors import PlanishError
from planish.runtime import load
from planish.runtime.artifact import write_artifact
from planish.runtime.native_code import Abi, EntryCode, LibraryFile, NativeCode
from planish.runtime.selftest import selftest_members
from planish.runtime.tensors import SafetensorsPayload
from planish.runtime.tvm_library import current_abi

CODE = "code/cpu/code.json"
LIBRARY = "code/cpu/generic.so"
SIZE = 64
NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int8": "i8"}


def library(weights: int = 2, dtype: str = "float32", state: bool = False, parallel: bool = False) -> bytes:
    """A library that is made once for each choice; see :func:`_library`."""
    return _library(weights, dtype, state, parallel)


@functools.cache
def _library(weights: int, dtype: str, state: bool, parallel: bool) -> bytes:
    """``main(x[T, 64], [s[64]], w0, w1, ...) -> (x * w0 * w1, [s + 1])``, ``same(x, w0) -> (x, w0)``, ``load``."""
    from tvm import relax, target, te, tirx, transform
    from tvm.relax import transform as passes

    builder = relax.BlockBuilder()
    rows = tirx.Var("T", "int64")

    def times(a: Any, b: Any) -> Any:
        return te.compute(a.shape, lambda i, j: a[i, j] * b[j], name="times")

    def more(a: Any) -> Any:
        return te.compute(a.shape, lambda i: a[i] + tirx.const(1, dtype), name="more")

    x, s = (
        relax.Var("x", relax.TensorType((rows, SIZE), dtype)),
        relax.Var("s", relax.TensorType((SIZE,), dtype)),
    )
    names = [relax.Var(f"w{i}", relax.TensorType((SIZE,), dtype)) for i in range(weights)]
    given = [x, s] if state else [x]
    with builder.function("main", [*given, *names], attrs={"num_input": len(given)}):
        with builder.dataflow():
            y = x
            for weight in names[:2]:
                y = builder.emit_te(times, y, weight)
            results = [builder.emit_output(y)]
            if state:
                results.append(builder.emit_output(builder.emit_te(more, s)))
            out = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(out)
    same = (
        relax.Var("x", relax.TensorType((rows, SIZE), dtype)),
        relax.Var("w", relax.TensorType((SIZE,), dtype)),
    )
    with builder.function("same", list(same), attrs={"num_input": 1}):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple(same))
        builder.emit_func_output(out)
    raw = relax.Var("raw", relax.TensorType((SIZE,), dtype))
    with builder.function("load", [raw], attrs={"num_input": 0}):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple([builder.emit_output(builder.emit_te(more, raw))]))
        builder.emit_func_output(out)
    module = builder.get()
    if parallel:
        for name, function in list(module.functions.items()):
            if isinstance(function, tirx.PrimFunc) and "times" in str(name):
                module[name] = _parallel(function)
    steps = [
        passes.LegalizeOps(), passes.ToNonDataflow(), passes.RemovePurityChecking(), passes.CallTIRRewrite(),
        passes.StaticPlanBlockMemory(), passes.LowerAllocTensor(), passes.KillAfterLastUse(),
        passes.LowerRuntimeBuiltin(), passes.ComputePrimValue(), passes.VMShapeLower(), passes.AttachGlobalSymbol(),
    ]  # fmt: skip
    made = relax.build(
        module, target.Target({"kind": "llvm", "mcpu": "x86-64"}), relax_pipeline=transform.Sequential(steps)
    )
    with tempfile.TemporaryDirectory() as folder:
        made.export_library(f"{folder}/a.so")
        return Path(folder, "a.so").read_bytes()


def _parallel(function: Any) -> Any:
    from tvm import s_tir

    schedule = s_tir.Schedule(function)
    _, inner = schedule.get_loops(schedule.get_sblock("times"))
    outer, _ = schedule.split(inner, [2, SIZE // 2])
    schedule.reorder(outer, schedule.get_loops(schedule.get_sblock("times"))[0])
    schedule.parallel(outer)
    return schedule.mod["main"]


def abi(**changes: str) -> Abi:
    """What libraries made here are built against."""
    return replace(current_abi(), **changes)


def code(
    entries: Mapping[str, EntryCode], libraries: Mapping[str, LibraryFile] | None = None, **changes: Any
) -> NativeCode:
    """A description of code for the CPU."""
    chosen = {"generic": LibraryFile("generic.so")} if libraries is None else libraries
    return NativeCode(**{"device": "cpu", "abi": abi(), "libraries": chosen, "entries": entries} | changes)


def weights(count: int = 2, dtype: Any = np.float32) -> dict[str, Any]:
    """Weights ``w0``, ``w1``, ...: small whole numbers, which every element type holds."""
    return {f"w{i}": ((np.arange(SIZE) + i) % 5 + 1).astype(dtype) for i in range(count)}


def main_entry(count: int = 2, state: bool = False) -> EntryCode:
    """How ``main`` is called."""
    states = ("s",) if state else ()
    return EntryCode(
        "main",
        ("x",),
        ("y",),
        states,
        tuple(f"{s}.next" for s in states),
        tuple(f"w{i}" for i in range(count)),
    )


def tvm_artifact(
    path: Path, *, count: int = 2, dtype: str = "float32", state: bool = False, parallel: bool = False,
    described: NativeCode | None = None, more: Mapping[str, Any] | None = None,
    entries: Mapping[str, Any] | None = None, selftest: bool = True,
) -> Path:  # fmt: skip
    """Write an artifact with one library; ``more`` adds or replaces members, ``described`` its ``code.json``."""
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16)

    kind, short = np.dtype(dtype), NAMES[dtype]
    stored = weights(count, kind)
    entry: dict[str, Any] = {
        "inputs": [{"name": "x", "type": f"{short}[T, {SIZE}]"}],
        "outputs": [{"name": "y", "type": f"{short}[T, {SIZE}]"}],
        "states": [{"name": "s", "type": f"{short}[{SIZE}]"}] if state else [],
        "code": {"cpu": CODE},
    }
    members: dict[str, Any] = {
        CODE: (described or code({"main": main_entry(count, state)})).dump(),
        LIBRARY: library(count, dtype, state, parallel),
        "weights/model.safetensors": SafetensorsPayload(stored),
    }
    if selftest and not state:
        x = np.ones((3, SIZE), kind)
        members |= selftest_members("main", {"x": x}, {"y": x * stored["w0"] * stored["w1"]}, rtol=0, atol=0)
    fields = {
        "producer": {"planish": "0.1.0"},
        "targets": [{"name": "cpu", "device": "cpu"}],
        "dims": {"T": [0, 4096]},
        "entry_points": dict(entries or {"main": entry}),
    }
    return write_artifact(path, manifest_fields=fields, members=members | dict(more or {}), overwrite=True)


def rows(count: int, dtype: Any = np.float32) -> Any:
    return (np.arange(count * SIZE) % 7 - 3).astype(dtype).reshape(count, SIZE)


def expected(x: Any, dtype: Any = np.float32) -> Any:
    stored = weights(2, dtype)
    return x * stored["w0"] * stored["w1"]


def code_of(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(PlanishError) as caught:
        call(*args, **named)
    return caught.value.code


def opened(path: Path, **options: Any) -> Any:
    return load(path, allow_native_code=True, **options)
