"""The function of a node ``kernel.linear_affine`` for CPUs."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.affine_gemm import emit_gemm
from planish.backends.tvm.cpu.affine_gemv import emit_gemv
from planish.backends.tvm.cpu.affine_spec import affine_spec
from planish.backends.tvm.cpu.affine_stages import declare_operands
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

FEW = 3
"""Rows of x up to which each is multiplied on its own."""


def build(node: Node, isa: Isa) -> Any:
    """A PrimFunc that takes the operands of the node in order, then the result."""
    spec = affine_spec(node)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("linear_affine")
        T.func_attr({"tirx.noalias": True})
        operands = declare_operands(node, spec)
        if isinstance(operands.rows, int):
            (emit_gemv if operands.rows <= FEW else emit_gemm)(isa, spec, operands)
        else:
            with T.If(operands.rows <= FEW):
                with T.Then():
                    emit_gemv(isa, spec, operands)
                with T.Else():
                    emit_gemm(isa, spec, operands)
    return builder.get()
