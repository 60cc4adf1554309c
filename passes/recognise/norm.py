"""Norms that are written out become ``aten.rms_norm`` and ``aten.layer_norm``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from planish.ir.namespace import aten
from planish.ir.node import Node, Program
from planish.ir.rewrite import Log
from planish.ir.rule import Decline, Kind, Rule, rule
from planish.ir.types import equal
from planish.ir.weights import Weights
from planish.passes.base import Pass, rewrite_all

TOLERANCE = 4e-6
"""A few units in the last place of f32, relative to the largest value."""


def _epsilon(eps: Any) -> float:
    if isinstance(eps, (int, float)) and not isinstance(eps, bool) and eps > 0:
        return float(eps)
    if isinstance(eps, Node) and eps.op == "aten.full" and eps.tensor.numel == 1:
        return _epsilon(eps.args[1])
    raise Decline("epsilon is not a positive number")


def _last_axis(x: Node, dims: Any, keepdim: Any) -> list[Any]:
    if dims != (x.rank - 1,) or keepdim is not True:
        raise Decline("the mean is not over the last axis, kept")
    return [x.shape[-1]]


def _channel_weight(w: Any, x: Node, shape: Any) -> Node:
    """``w`` as a vector over the normalised axis."""
    if not isinstance(w, Node) or len(shape) != 1 or w.dtype is not x.dtype:
        raise Decline("the factor is not a vector over the normalised axis")
    if not equal(w.tensor.numel, shape[0]) or not equal(w.shape[-1] if w.rank else 1, shape[0]):
        raise Decline("the factor is not a vector over the normalised axis")
    return w if w.rank == 1 else aten.view(w, [shape[0]])


@rule(
    lambda x, dims, keepdim, eps: aten.mul(
        x, aten.rsqrt(aten.add(aten.mean(aten.mul(x, x), dims, keepdim), eps))
    ),
    kind="close",
    tolerance=TOLERANCE,
    example={"x": "f32[B, T, 64]", "dims": [-1], "keepdim": True, "eps": 1e-6},
)
def find_rms_norm(x: Node, dims: Any, keepdim: Any, eps: Any) -> Node:
    """x * rsqrt(mean(x * x) + eps) = rms_norm(x)"""
    return aten.rms_norm(x, _last_axis(x, dims, keepdim), None, _epsilon(eps))


@rule(
    lambda x, dims, keepdim, eps: aten.div(
        x, aten.sqrt(aten.add(aten.mean(aten.mul(x, x), dims, keepdim), eps))
    ),
    kind="close",
    tolerance=TOLERANCE,
    example={"x": "f32[B, T, 64]", "dims": [-1], "keepdim": True, "eps": 1e-6},
)
def find_rms_norm_division(x: Node, dims: Any, keepdim: Any, eps: Any) -> Node:
    """x / sqrt(mean(x * x) + eps) = rms_norm(x)"""
    return aten.rms_norm(x, _last_axis(x, dims, keepdim), None, _epsilon(eps))


@rule(
    lambda w, x, shape, eps: aten.mul(w, aten.rms_norm(x, shape, None, eps)),
    kind="close",
    tolerance=TOLERANCE,
    example={"w": "f32[64]", "x": "f32[B, T, 64]", "shape": [64], "eps": 1e-6},
)
def weigh_rms_norm(w: Any, x: Node, shape: Any, eps: float) -> Node:
    """w * rms_norm(x) = rms_norm(x, w)"""
    return aten.rms_norm(x, shape, _channel_weight(w, x, shape), eps)


@rule(
    lambda x, dims, keepdim, shape, w, eps: aten.rms_norm(
        aten.sub(x, aten.mean(x, dims, keepdim)), shape, w, eps
    ),
    kind="close",
    tolerance=TOLERANCE,
    example={"x": "f32[B, T, 64]", "dims": [-1], "keepdim": True, "shape": [64], "w": "f32[64]", "eps": 1e-6},
)
def find_layer_norm(x: Node, dims: Any, keepdim: Any, shape: Any, w: Any, eps: float) -> Node:
    """rms_norm(x - mean(x), w) = layer_norm(x, w)"""
    if tuple(_last_axis(x, dims, keepdim)) != tuple(shape):
        raise Decline("the mean and the norm are over different axes")
    return aten.layer_norm(x, shape, w, None, eps)


@rule(
    lambda w, x, shape, eps: aten.mul(w, aten.layer_norm(x, shape, None, None, eps)),
    kind="close",
    tolerance=TOLERANCE,
    example={"w": "f32[64]", "x": "f32[B, T, 64]", "shape": [64], "eps": 1e-6},
)
def weigh_layer_norm(w: Any, x: Node, shape: Any, eps: float) -> Node:
    """w * layer_norm(x) = layer_norm(x, w)"""
    return aten.layer_norm(x, shape, _channel_weight(w, x, shape), None, eps)


@rule(
    lambda b, x, shape, w, eps: aten.add(b, aten.layer_norm(x, shape, w, None, eps)),
    kind="close",
    tolerance=TOLERANCE,
    example={"b": "f32[64]", "x": "f32[B, T, 64]", "shape": [64], "w": "f32[64]", "eps": 1e-6},
)
def shift_layer_norm(b: Any, x: Node, shape: Any, w: Any, eps: float) -> Node:
    """layer_norm(x, w) + b = layer_norm(x, w, b)"""
    if w is None:
        raise Decline("there is no weight: the sum may be a residual")
    return aten.layer_norm(x, shape, w, _channel_weight(b, x, shape), eps)


@cache
def norm_rules() -> tuple[Rule, ...]:
    """The rules of this pass."""
    return tuple(r for r in globals().values() if isinstance(r, Rule))


@dataclass(frozen=True)
class FindNorm(Pass):
    """Written-out root-mean-square and layer norms become one operation each."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Apply the rules until none fires."""
        return rewrite_all(program, norm_rules(), log)
