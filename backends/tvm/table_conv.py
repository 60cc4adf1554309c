"""Convolutions over one to three axes, where no kernel takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from planish.backends.tvm.expressions import Call, Reader, all_of, as_expression, literal
from planish.backends.tvm.table import lowers
from planish.backends.tvm.table_pool import narrow


@lowers("aten.convolution", form="tensor")
def _convolution(
    c: Call, x: Reader, weight: Reader, bias: Reader | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    sizes = [int(n) for n in weight.node.shape]
    window = [te.reduce_axis((0, n), f"k{i}") for i, n in enumerate(sizes[2:])]
    inputs = int(x.node.shape[1]) // groups
    outputs = sizes[1] if transposed else sizes[0] // groups
    channel = te.reduce_axis((0, inputs), "channel")
    zero = literal(0, c.dtype)

    def element(batch: Any, out: Any, *index: Any) -> Any:
        group, places, inside = tirx.floordiv(out, outputs), [], []
        for i, s, p, d, k, size in zip(index, stride, padding, dilation, window, x.shape[2:], strict=True):
            if transposed:
                at = i + p - k * d
                if s > 1:
                    inside.append(tirx.floormod(at, s) < 1)
                at = tirx.floordiv(at, s)
            else:
                at = i * s - p + k * d
            inside += [at >= 0, at < as_expression(size)]
            places.append(at)
        taken = x.wide(batch, group * inputs + channel, *places)
        if transposed:
            factor = weight.wide(group * inputs + channel, tirx.floormod(out, outputs), *window)
        else:
            factor = weight.wide(out, channel, *window)
        value = tirx.if_then_else(all_of(inside), taken * factor, zero)
        return te.sum(value, axis=[channel, *window])

    total = te.compute(tuple(c.shape()), element, "products")
    if bias is not None:
        shifted = te.compute(tuple(c.shape()), lambda *index: total(*index) + bias.wide(index[1]), "shifted")
        return narrow(c, shifted)
    return narrow(c, total)
