"""Batch normalisation after a convolution as part of its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from planish.ir.namespace import aten
from planish.ir.node import Node, Program
from planish.ir.rewrite import Log
from planish.ir.rule import Decline, Kind, rule
from planish.ir.types import f32
from planish.ir.weights import Weights
from planish.passes.base import Pass, rewrite_all


def scale_and_shift(weight: Any, bias: Any, mean: Node, var: Node, eps: float) -> tuple[Node, Node]:
    """``batch_norm(x) = x * scale + shift``, both ``[C]``; of f16 and bf16 they are computed and kept in f32."""
    weight, bias, mean, var = (_wide(each) for each in (weight, bias, mean, var))
    scale = aten.rsqrt(aten.add(var, eps))
    scale = scale if weight is None else aten.mul(scale, weight)
    moved = aten.mul(mean, scale)
    return scale, aten.neg(moved) if bias is None else aten.sub(bias, moved)


def _wide(value: Any) -> Any:
    return aten.to(value, f32) if isinstance(value, Node) and is_narrow(value) else value


def is_narrow(value: Node) -> bool:
    """True for floating point of less than 32 bits."""
    return value.dtype.is_float and value.dtype.bits < 32


@rule(
    lambda x, w, b, stride, padding, dilation, groups, weight, bias, mean, var, eps: aten.batch_norm(
        aten.convolution(x, w, b, stride, padding, dilation, False, (), groups), weight, bias, mean, var, eps
    ),
    kind="close", tolerance=1e-5,
    example={"x": "f32[2, 4, 9, 9]", "w": "f32[8, 4, 3, 3]", "b": "f32[8]", "stride": (1, 1), "padding": (1, 1),
             "dilation": (1, 1), "groups": 1, "weight": "f32[8]", "bias": "f32[8]", "mean": "f32[8]",
             "var": "f32[8]", "eps": 8.0},
)  # fmt: skip
def fold_batch_norm(
    x: Node, w: Node, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any, weight: Any, bias: Any, mean: Node,
    var: Node, eps: float,
) -> Node:  # fmt: skip
    """batch_norm(conv(x, W, b), g, h, m, v) = conv(x, W*s, b*s + h - m*s) with s = g / sqrt(v + eps)"""
    if w.dtype is not mean.dtype or not all(isinstance(s, int) for s in w.shape):
        raise Decline("the weight has another type than the statistics, or no known size")
    if is_narrow(w):
        raise Decline(
            "a factor in the weight would be rounded with it, and the error is the same for a whole channel"
        )
    scale, shift = scale_and_shift(weight, bias, mean, var, eps)
    scaled = aten.mul(w, aten.view(scale, [w.shape[0]] + [1] * (w.rank - 1)))
    moved = shift if b is None else aten.add(aten.mul(b, scale), shift)
    return aten.convolution(x, scaled, moved, stride, padding, dilation, False, (), groups)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Batch normalisation after a convolution moves into its weight and bias, which are then constants to fold."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Apply the rule until it does not fire."""
        return rewrite_all(program, (fold_batch_norm,), log)
