"""Kernels that normalize the last axis: root mean square, layer norm, softmax."""

from __future__ import annotations

from typing import Any

from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import f32


def _rms_norm(x: Any, weight: Any, residual: Any, eps: float) -> Any:
    """rms_norm(residual + x) over the last axis"""
    whole = x if residual is None else aten.add(residual, x)
    return aten.rms_norm(whole, [x.shape[-1]], weight, eps)


def _layer_norm(x: Any, weight: Any, bias: Any, residual: Any, eps: float) -> Any:
    """layer_norm(residual + x) over the last axis"""
    whole = x if residual is None else aten.add(residual, x)
    return aten.layer_norm(whole, [x.shape[-1]], weight, bias, eps)


def _softmax(x: Any) -> Any:
    """softmax over the last axis"""
    return aten.softmax(x, len(x.shape) - 1)


declare("rms_norm", "x, weight:tensor?=None, residual:tensor?=None, eps:float=1e-6", _rms_norm)
declare(
    "layer_norm",
    "x, weight:tensor?=None, bias:tensor?=None, residual:tensor?=None, eps:float=1e-5",
    _layer_norm,
)
declare("softmax", "x", _softmax)


def _last_axis(x: Node, shape: Any) -> None:
    if x.dtype is not f32 or x.rank == 0:
        raise Decline("the kernel is for f32")
    if len(shape) != 1 or not isinstance(x.shape[-1], int) or x.shape[-1] < 1:
        raise Decline("more than the last axis is normalized, or its size is not known")


@rule(
    lambda x, shape, weight, eps: aten.rms_norm(x, shape, weight, eps),
    kind="close",
    tolerance=1e-5,
    example={"x": "f32[3, 24]", "shape": (24,), "weight": "f32[24]", "eps": 1e-5},
)
def select_rms_norm(x: Any, shape: Any, weight: Any, eps: Any) -> Node:
    """rms_norm(x, w) = kernel.rms_norm(x, w)"""
    _last_axis(x, shape)
    return kernel.rms_norm(x, weight, None, eps)


@rule(
    lambda x, shape, weight, bias, eps: aten.layer_norm(x, shape, weight, bias, eps),
    kind="close",
    tolerance=1e-5,
    example={"x": "f32[3, 24]", "shape": (24,), "weight": "f32[24]", "bias": "f32[24]", "eps": 1e-5},
)
def select_layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: Any) -> Node:
    """layer_norm(x, w, b) = kernel.layer_norm(x, w, b)"""
    _last_axis(x, shape)
    return kernel.layer_norm(x, weight, bias, None, eps)


@rule(
    lambda x, residual, weight, bias, eps: kernel.layer_norm(aten.add(residual, x), weight, bias, None, eps),
    kind="close",
    tolerance=1e-5,
    example={
        "x": "f32[3, 24]",
        "residual": "f32[3, 24]",
        "weight": "f32[24]",
        "bias": "f32[24]",
        "eps": 1e-5,
    },
)
def layer_norm_of_sum(x: Any, residual: Any, weight: Any, bias: Any, eps: Any) -> Node:
    """kernel.layer_norm(r + x) = kernel.layer_norm(x, residual=r)"""
    if not (isinstance(x, Node) and isinstance(residual, Node)) or x.type != residual.type:
        raise Decline("the sum broadcasts")
    return kernel.layer_norm(x, weight, bias, residual, eps)


@rule(
    lambda x, dim: aten.softmax(x, dim), kind="close", tolerance=1e-5, example={"x": "f32[3, 21]", "dim": 1}
)
def select_softmax(x: Any, dim: Any) -> Node:
    """softmax(x, last axis) = kernel.softmax(x)"""
    if x.dtype is not f32 or x.rank == 0 or dim != x.rank - 1:
        raise Decline("the kernel is for f32 and the last axis")
    return kernel.softmax(x)
