"""The function of a node ``kernel.linear_affine`` for GPUs."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.affine_spec import affine_spec
from planish.backends.tvm.gpu import affine_parts as A
from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.affine_gemm import gemm
from planish.backends.tvm.gpu.affine_gemv import gemv
from planish.backends.tvm.gpu.device import Gpu
from planish.ir.node import Node

FEW = 8
"""Rows up to which weights are decoded in registers, four rows of x at a time."""


def build(node: Node, gpu: Gpu) -> Any:
    """The PrimFunc, scheduled; the number of rows decides when it is called if it is not known before."""
    spec = affine_spec(node)
    names = ("x", "panels", "scale", "zero", "bias", "norm", "residual", "left", "right")

    def body(flats: list[W.Flat], out: W.Flat) -> None:
        parts = iter(flats)
        given = {
            n: next(parts) if isinstance(a, Node) else None for n, a in zip(names, node.args, strict=False)
        }
        o = A.Operands(spec, gpu, **given, out=out)  # type: ignore[arg-type]
        few = min(o.rows, 4) if isinstance(o.rows, int) else 4
        by_rows(o.rows, lambda: gemv(o, 1), lambda: gemv(o, few), lambda: gemm(o))

    return W.function(node, gpu, body)


def by_rows(rows: Any, one: Any, few: Any, many: Any) -> None:
    """Emit what fits the number of rows, or a choice when it is called."""
    if isinstance(rows, int):
        (one if rows == 1 else few if rows <= FEW else many)()
        return
    with T.If(rows <= FEW):
        with T.Then(), T.If(rows == 1):
            with T.Then():
                one()
            with T.Else():
                few()
        with T.Else():
            many()
