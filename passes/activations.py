"""Rounding of activations to 8 bits where they meet coded weights, for kernels that multiply whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from planish.errors import UsageError
from planish.ir.namespace import aten, make, planish
from planish.ir.node import Node, Program, const
from planish.ir.rewrite import Log, sweep
from planish.ir.rule import Kind
from planish.ir.types import TensorType, bf16, f32
from planish.ir.weights import Weights
from planish.passes.base import Pass
from planish.passes.select import is_constant

STEP = 32
"""Groups are multiples of this, or whole rows: what kernels multiply at a time."""


@dataclass(frozen=True)
class RoundActivations(Pass):
    """Round what is multiplied by coded weights, with one scale for each group of the weight's rows.

    The relative error of a rounded group is at most ``1 / (2 * (2**(bits - 1) - 1))`` of its largest value.
    """

    kind: ClassVar[Kind] = "lossy"
    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits != 8:
            raise UsageError("PL813", f"bits={self.bits}: expected 8")

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """The program with rounded inputs of linear layers."""
        return sweep(program, [("round-activations", self._rounded)], log)

    def _rounded(self, node: Node) -> Node | None:
        if node.op != "aten.linear" or node.dtype.name != "f32":
            return None
        x, weight, bias = node.args
        group = coded_group(weight)
        if group is None or x.op == "planish.fake_quantize":
            return None
        return aten.linear(planish.fake_quantize(x, self.bits, group), weight, bias)


def coded_group(weight: Any) -> int | None:
    """Inputs that share a scale in the rows of a matrix that is decoded from constants; None for other values."""
    if not isinstance(weight, Node) or weight.op != "planish.dequant" or not is_constant(weight):
        return None
    length, group = weight.shape[-1], weight.args[3]
    if not isinstance(length, int) or not (group % STEP == 0 or group >= length):
        return None
    return min(int(group), length)


@dataclass(frozen=True)
class RoundOperands(Pass):
    """Round both operands of products with constant f32 weights to bf16; sums stay in f32.

    Coded weights are left alone. The relative error of an operand is at most ``2**-9``.
    """

    kind: ClassVar[Kind] = "lossy"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """The program with rounded inputs and weights of linear layers and convolutions."""
        return sweep(program, [("round-operands", lambda node: _rounded_operands(node, weights))], log)


def _rounded_operands(node: Node, weights: Weights) -> Node | None:
    if node.op not in ("aten.linear", "aten.convolution") or node.dtype is not f32:
        return None
    x, weight, *rest = node.args
    if weight.op != "const" or weight.dtype is not f32:
        return None
    if node.op == "aten.convolution" and (x.rank != 4 or rest[4] or rest[-1] != 1):
        return None  # no kernel multiplies these in bf16
    return make(node.op, aten.to(aten.to(x, bf16), f32), aten.to(_half(weight, weights), f32), *rest)


def _half(weight: Node, weights: Weights) -> Node:
    """A weight in bf16, as a constant of its own."""
    import torch

    name, kind = f"{weight.name}#bf16", TensorType(bf16, weight.shape)
    weights.add_lazy(name, kind, lambda: weights.tensor(weight.name).to(torch.bfloat16))
    return const(name, kind)
