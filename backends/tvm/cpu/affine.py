"""The function of a node ``kernel.linear_affine`` for CPUs."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.affine_gemm import SHARES, emit_gemm
from planish.backends.tvm.cpu.affine_gemv import AHEAD, SERIAL_BYTES, emit_gemv
from planish.backends.tvm.cpu.affine_spec import affine_spec
from planish.backends.tvm.cpu.affine_stages import declare_operands
from planish.backends.tvm.cpu.variant import DEFAULT, Variant, thresholds, variant
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

FEW = 3
"""Rows of x up to which each is multiplied on its own."""


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """Rows of a register block and pieces of work for many rows; threads and prefetching for single rows.

    A known number of rows near ``FEW`` can be multiplied in the other way, too.
    """
    spec = affine_spec(node)
    known = spec.rows if isinstance(spec.rows, int) else None
    one_by_one = known is not None and known <= FEW
    made: list[Variant] = []
    if known is not None and 2 <= known <= 2 * FEW + 2:
        made.append(variant(few=1 if one_by_one else known))
    if not one_by_one:
        made += [variant(rows=rows) for rows in (4, 8, 12)]
        if spec.tiles < 4 * SHARES:
            made.append(variant(shares=4 * SHARES))
    if known is None or one_by_one:
        made += thresholds(spec.weight_bytes, SERIAL_BYTES)
        if len(spec.planes) > 1:
            made += [variant(ahead=AHEAD // 4), variant(ahead=AHEAD * 2)]
    return tuple(made)


def build(node: Node, isa: Isa, chosen: Variant = DEFAULT) -> Any:
    """A PrimFunc that takes the operands of the node in order, then the result."""
    few = chosen.get("few", FEW)
    spec = affine_spec(node)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("linear_affine")
        T.func_attr({"tirx.noalias": True})
        operands = declare_operands(node, spec)
        if isinstance(operands.rows, int):
            (emit_gemv if operands.rows <= few else emit_gemm)(isa, spec, operands, chosen)
        else:
            with T.If(operands.rows <= few):
                with T.Then():
                    emit_gemv(isa, spec, operands, chosen)
                with T.Else():
                    emit_gemm(isa, spec, operands, chosen)
    return builder.get()
