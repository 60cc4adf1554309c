"""Normalisations."""

from __future__ import annotations

from planish.frontend.capture.onnx_ops.pointwise import cast
from planish.frontend.capture.onnx_ops.registry import At, Result, onnx_op
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import equal, floor_div


@onnx_op("BatchNormalization")
def batch_norm(
    x: Node, scale: Node, bias: Node, mean: Node, var: Node, *, epsilon: float = 1e-5, momentum: float = 0.9,
    training_mode: int = 0, spatial: int = 1, at: At,
) -> Result:  # fmt: skip
    """(x - mean) / sqrt(var + epsilon) * scale + bias, per channel"""
    at.need(not training_mode, "training mode is not supported")
    at.need(spatial == 1, "statistics per element are not supported")
    parts = [cast(p, x.dtype) for p in (scale, bias, mean, var)]
    return aten.batch_norm(x, *parts, epsilon)


def _stashed(x: Node, stash_type: int, at: At) -> Node:
    return x if stash_type == 0 else cast(x, at.dtype(stash_type))


@onnx_op("LayerNormalization")
def layer_norm(
    x: Node,
    scale: Node,
    bias: Node | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    at: At,
) -> Result:
    """Normalisation over the last axes, with mean and inverse deviation as further results"""
    axis %= x.rank
    shape = x.shape[axis:]
    result = aten.layer_norm(
        x, shape, _fitted(scale, shape), None if bias is None else _fitted(bias, shape), epsilon
    )
    if not at.wants(1) and not at.wants(2):
        return result
    dims, wide = tuple(range(axis, x.rank)), _stashed(x, stash_type, at)
    mean = aten.mean(wide, dims, True)
    inverse = aten.rsqrt(aten.add(aten.var(wide, dims, 0.0, True), epsilon))
    return result, mean, inverse


def _fitted(weight: Node, shape: tuple[object, ...]) -> Node:
    return weight if weight.shape == shape else aten.expand(weight, shape)


@onnx_op("RMSNormalization")
def rms_norm(
    x: Node, scale: Node, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, at: At
) -> Result:
    """x / sqrt(mean(x*x) + epsilon) * scale over the last axes"""
    axis %= x.rank
    shape = x.shape[axis:]
    if scale.dtype is x.dtype:
        return aten.rms_norm(x, shape, _fitted(scale, shape), epsilon)
    normal = aten.rms_norm(_stashed(x, stash_type, at), shape, None, epsilon)
    return aten.mul(cast(normal, scale.dtype), scale)


@onnx_op("GroupNormalization")
def group_norm(
    x: Node, scale: Node, bias: Node, *, epsilon: float = 1e-5, num_groups: int, stash_type: int = 1, at: At
) -> Result:
    """Normalisation of groups of channels"""
    channels = x.shape[1]
    if at.opset < 21 and not equal(scale.shape[0], channels):
        each = floor_div(channels, num_groups)
        scale, bias = (
            aten.view(aten.expand(aten.view(p, (num_groups, 1)), (num_groups, each)), (channels,))
            for p in (scale, bias)
        )
    return aten.group_norm(x, num_groups, cast(scale, x.dtype), cast(bias, x.dtype), epsilon)


@onnx_op("InstanceNormalization")
def instance_norm(x: Node, scale: Node, bias: Node, *, epsilon: float = 1e-5, at: At) -> Result:
    """Normalisation of each channel by itself"""
    channels = x.shape[1]
    if not isinstance(channels, int):
        at.refuse("a dynamic number of channels is not supported")
    return aten.group_norm(x, channels, scale, bias, epsilon)


@onnx_op("LRN")
def local_response_norm(
    x: Node, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Result:
    """x / (bias + alpha/size * sum of squares of near channels) ** beta"""
    before = (size - 1) // 2
    squares = aten.mul(x, x)
    amounts = [0, 0] * (x.rank - 2) + [before, size - 1 - before]
    wide = aten.pad(squares, amounts)
    total = aten.slice(wide, 1, 0, x.shape[1])
    for i in range(1, size):
        total = aten.add(total, aten.slice(wide, 1, i, x.shape[1] + i))
    return aten.div(x, aten.pow(aten.add(aten.mul(total, alpha / size), bias), beta))


@onnx_op("MeanVarianceNormalization")
def mean_variance_norm(x: Node, *, axes: tuple[int, ...] = (0, 2, 3)) -> Result:
    """(x - mean) / deviation"""
    mean = aten.mean(x, axes, True)
    deviation = aten.sqrt(aten.var(x, axes, 0.0, True))
    return aten.div(aten.sub(x, mean), aten.add(deviation, 1e-9))


@onnx_op("LpNormalization")
def lp_norm(x: Node, *, axis: int = -1, p: int = 2) -> Result:
    """x divided by its norm along an axis; zeros stay"""
    if p == 1:
        norm = aten.sum(aten.abs(x), (axis,), True)
    else:
        norm = aten.sqrt(aten.sum(aten.mul(x, x), (axis,), True))
    return aten.where(aten.eq(norm, 0.0), 0.0, aten.div(x, aten.where(aten.eq(norm, 0.0), 1.0, norm)))
