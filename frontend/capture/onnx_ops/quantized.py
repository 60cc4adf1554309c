"""Quantized operators, computed in wide types."""

from __future__ import annotations

from planish.frontend.capture.onnx_ops.convolution import Ints, convolve
from planish.frontend.capture.onnx_ops.pointwise import cast
from planish.frontend.capture.onnx_ops.reduction import highest, lowest
from planish.frontend.capture.onnx_ops.registry import At, Result, onnx_op
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.types import DType, equal, f32, f64, floor_div, i32, size, u8


def spread(part: Node, x: Node, axis: int, block: int) -> Node:
    """A scale or zero point in the shape that broadcasts over a tensor: one, one per slice, or one per block."""
    if part.rank == 0 or (part.rank == 1 and equal(part.shape[0], 1) and not block):
        return aten.view(part, ())
    axis %= x.rank
    if part.rank == 1 and not (block and x.rank == 1):
        return aten.view(part, tuple(part.shape[0] if i == axis else 1 for i in range(x.rank)))
    apart = (*part.shape[: axis + 1], 1, *part.shape[axis + 1 :])
    repeated = aten.expand(aten.view(part, apart), (*part.shape[: axis + 1], block, *part.shape[axis + 1 :]))
    whole = aten.view(repeated, (*part.shape[:axis], size(part.shape[axis] * block), *part.shape[axis + 1 :]))
    return aten.slice(whole, axis, 0, x.shape[axis])


def _block(x: Node, scale: Node, axis: int, block: int, at: At) -> int:
    if block or scale.rank < 2:
        return block
    guessed = floor_div(x.shape[axis], scale.shape[axis])
    if not isinstance(guessed, int):
        at.refuse("the block size is dynamic")
    return guessed


def quantized(x: Node, scale: Node, zero: Node | None, kind: DType) -> Node:
    """round(x / scale) + zero, cut to the range of an integer type"""
    y = aten.round(aten.div(x, scale))
    wide = cast(y, f32) if y.dtype.bits < 32 and kind.bits > 8 else y
    if zero is not None:
        wide = aten.add(wide, cast(zero, wide.dtype))
    return aten.to(aten.clamp(wide, float(lowest(kind)), float(highest(kind))), kind)


@onnx_op("QuantizeLinear")
def quantize_linear(
    x: Node, scale: Node, zero: Node | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0,
    precision: int = 0, saturate: int = 1, at: At,
) -> Result:  # fmt: skip
    """Codes of a tensor"""
    kind = zero.dtype if zero is not None else at.dtype(output_dtype) if output_dtype else u8
    at.need(kind.is_integer, f"codes of {kind}")
    block = _block(x, scale, axis, block_size, at)
    compute = at.dtype(precision) if precision else scale.dtype if x.dtype.kind != "float" else x.dtype
    factor = cast(spread(scale, x, axis, block), compute)
    offset = None if zero is None else spread(zero, x, axis, block)
    return quantized(cast(x, compute), factor, offset, kind)


@onnx_op("DequantizeLinear")
def dequantize_linear(
    x: Node,
    scale: Node,
    zero: Node | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    at: At,
) -> Result:
    """scale * (codes - zero)"""
    kind = at.dtype(output_dtype) if output_dtype else scale.dtype
    block = _block(x, scale, axis, block_size, at)
    decoded = _decode(x, scale, zero, axis, block)
    if decoded is None:
        values = cast(x, scale.dtype)
        if zero is not None:
            values = aten.sub(values, cast(spread(zero, x, axis, block), scale.dtype))
        decoded = aten.mul(values, spread(scale, x, axis, block))
    return cast(decoded, kind)


def _decode(x: Node, scale: Node, zero: Node | None, axis: int, block: int) -> Node | None:
    """The decode operation, which holds one scale per group of the last axis; None if the layout is another."""
    if x.rank == 0 or not isinstance(x.shape[-1], int) or not x.shape[-1] or x.dtype.bits > 16:
        return None
    last, axis = x.rank - 1, axis % x.rank
    if block:
        if axis != last:
            return None
        group, shape = block, scale.shape
    elif scale.rank == 0 or equal(scale.shape[0], 1):
        group, shape = x.shape[-1], (1,) * x.rank
    else:
        group = 1 if axis == last else x.shape[-1]
        shape = tuple(scale.shape[0] if i == axis else 1 for i in range(x.rank))
    offset = 0 if zero is None else aten.view(zero, shape)
    return planish.dequant(x, aten.view(scale, shape), offset, group, scale.dtype)


@onnx_op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Node) -> Result:
    """Codes, scale and zero point from the range of a tensor"""
    dims = tuple(range(x.rank))
    low = aten.minimum(aten.amin(x, dims), 0.0)
    high = aten.maximum(aten.amax(x, dims), 0.0)
    scale = aten.div(aten.sub(high, low), 255.0)
    safe = aten.where(aten.eq(scale, 0.0), 1.0, scale)
    zero = aten.to(aten.round(aten.clamp(aten.div(aten.neg(low), safe), 0.0, 255.0)), u8)
    return quantized(x, safe, zero, u8), scale, zero


def _centred(x: Node, zero: Node | None, rows: bool) -> Node:
    """Codes minus their zero point, as 32-bit integers; ``rows``: one zero per row, else per column."""
    x = aten.to(x, i32)
    if zero is None:
        return x
    offset = aten.to(zero, i32)
    if offset.rank == 1 and rows and not equal(offset.shape[0], 1):
        offset = aten.view(offset, (offset.shape[0], 1))
    return aten.sub(x, offset)


@onnx_op("MatMulInteger")
def matmul_integer(a: Node, b: Node, a_zero: Node | None = None, b_zero: Node | None = None) -> Result:
    """(a - a_zero) @ (b - b_zero) in 32-bit integers"""
    return aten.matmul(_centred(a, a_zero, True), _centred(b, b_zero, False))


@onnx_op("QLinearMatMul")
def qlinear_matmul(
    a: Node, a_scale: Node, a_zero: Node, b: Node, b_scale: Node, b_zero: Node, y_scale: Node, y_zero: Node
) -> Result:
    """A product of codes, as codes"""
    total = aten.matmul(_centred(a, a_zero, True), _centred(b, b_zero, False))
    left, right = cast(a_scale, f32), cast(b_scale, f32)
    if left.rank == 1 and not equal(left.shape[0], 1):
        left = aten.view(left, (left.shape[0], 1))
    values = aten.mul(aten.to(total, f32), aten.mul(left, right))
    if values.rank == total.rank:
        values = aten.view(values, total.shape)
    return quantized(values, cast(y_scale, f32), y_zero, y_zero.dtype)


def _convolved(
    x: Node, w: Node, x_zero: Node | None, w_zero: Node | None, b: Node | None, at: At, auto_pad: str, dilations: Ints,
    group: int, kernel_shape: Ints, pads: Ints, strides: Ints,
) -> Node:  # fmt: skip
    """A convolution of centred codes, exact in 64-bit floating point; the padding is the zero point."""
    wide = aten.to(_centred(x, x_zero, False), f64)
    offset = w_zero
    if offset is not None and offset.rank == 1 and not equal(offset.shape[0], 1):
        offset = aten.view(offset, (offset.shape[0], *[1] * (w.rank - 1)))
    kernel = aten.to(_centred(w, offset, False), f64)
    bias = None if b is None else aten.to(b, f64)
    return convolve(wide, kernel, bias, at, auto_pad, dilations, group, kernel_shape, pads, strides)


@onnx_op("ConvInteger")
def conv_integer(
    x: Node, w: Node, x_zero: Node | None = None, w_zero: Node | None = None, *, auto_pad: str = "NOTSET",
    dilations: Ints = (), group: int = 1, kernel_shape: Ints = (), pads: Ints = (), strides: Ints = (), at: At,
) -> Result:  # fmt: skip
    """A convolution of codes in 32-bit integers"""
    return aten.to(
        _convolved(x, w, x_zero, w_zero, None, at, auto_pad, dilations, group, kernel_shape, pads, strides),
        i32,
    )


@onnx_op("QLinearConv")
def qlinear_conv(
    x: Node, x_scale: Node, x_zero: Node, w: Node, w_scale: Node, w_zero: Node, y_scale: Node, y_zero: Node,
    b: Node | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = (), group: int = 1, kernel_shape: Ints = (),
    pads: Ints = (), strides: Ints = (), at: At,
) -> Result:  # fmt: skip
    """A convolution of codes, as codes"""
    total = _convolved(x, w, x_zero, w_zero, b, at, auto_pad, dilations, group, kernel_shape, pads, strides)
    factor = aten.mul(x_scale, w_scale)
    if factor.rank == 1 and not equal(factor.shape[0], 1):
        factor = aten.view(factor, (1, factor.shape[0], *[1] * (x.rank - 2)))
    elif factor.rank == 1:
        factor = aten.view(factor, ())
    y_scale = aten.view(y_scale, ())
    return quantized(aten.mul(aten.to(total, f32), factor), y_scale, aten.view(y_zero, ()), y_zero.dtype)
