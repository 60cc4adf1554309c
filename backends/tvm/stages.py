"""Lowering of TIR to what LLVM compiles: functions with blocks take TVM's long way, kernels a short one.

Kernels are built as plain loops over buffers. TVM's long way would move their registers into a pool of workspaces
(StorageRewrite drops what keeps them on the stack) and takes ten times as long.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

LOOPS = "planish.loops"
"""Attribute of functions that are plain loops over buffers: they hold no blocks."""

PLAIN = "planish.plain"
"""Attribute of functions whose blocks have been lowered to plain loops."""


NAME = "planish"


def tir_pipeline() -> str:
    """The name of the pipeline that lowers every function of a module by the way that suits it."""
    register_tir_pipeline(NAME, _ways)
    return NAME


def _plain() -> Any:
    """For functions whose blocks were lowered: as for kernels, without what only their buffers need."""
    passes = tirx.transform
    return tvm.transform.Sequential(
        [
            passes.StmtSimplify(), passes.FlattenBuffer(), passes.BF16ComputeLegalize(), passes.NarrowDataType(32),
            passes.VectorizeLoop(True), passes.UnrollLoop(), passes.StmtSimplify(), passes.RemoveNoOp(),
            passes.CommonSubexprElim(), passes.FP8ComputeLegalize(), passes.VerifyMemory(), passes.AnnotateEntryFunc(),
            passes.SplitHostDevice(), passes.MakePackedAPI(), passes.FP8StorageLegalize(), passes.BF16StorageLegalize(),
        ]
    )  # fmt: skip


def _ways() -> tuple[Any, Any, Any]:
    blocks, host, device = get_tir_pipeline("default")
    ways = (blocks, get_tir_pipeline("tirx")[0], _plain())

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lower(module: Any, _: Any) -> Any:
        parts: tuple[dict[Any, Any], ...] = ({}, {}, {})
        for name, function in module.functions.items():
            attributes = function.attrs if isinstance(function, tirx.PrimFunc) and function.attrs else {}
            parts[1 if LOOPS in attributes else 2 if PLAIN in attributes else 0][name] = function
        made: dict[Any, Any] = {}
        for way, functions in zip(ways, parts, strict=True):
            if functions:
                made.update(way(tvm.IRModule(functions, attrs=module.attrs)).functions)
        return tvm.IRModule(made, attrs=module.attrs)

    return lower, host, device
