"""Convolutions and what belongs to them."""

from __future__ import annotations

from planish.frontend.capture.onnx_ops.registry import At, Result, Size, onnx_op
from planish.ir import types
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import equal, size

Ints = tuple[int, ...]
Pads = list[tuple[Size, Size]]


def paddings(
    x: Node, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints, auto_pad: str, at: At
) -> Pads:
    """What is added before and after each spatial axis."""
    spatial = len(kernel)
    if auto_pad in ("NOTSET", ""):
        given = pads or (0,) * 2 * spatial
        at.need(len(given) == 2 * spatial, f"{len(given)} pads for {spatial} axes", "PL141")
        return [(given[i], given[i + spatial]) for i in range(spatial)]
    if auto_pad == "VALID":
        return [(0, 0)] * spatial
    at.need(auto_pad in ("SAME_UPPER", "SAME_LOWER"), f"auto_pad={auto_pad!r} is not known", "PL141")
    out: Pads = []
    for i in range(spatial):
        length = x.shape[x.rank - spatial + i]
        count = types.floor_div(size(length + strides[i] - 1), strides[i])
        total = types.maximum(size((count - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - length), 0)
        half = types.floor_div(total, 2)
        rest = size(total - half)
        out.append((half, rest) if auto_pad == "SAME_UPPER" else (rest, half))
    return out


def padded(x: Node, pads: Pads, value: float | int = 0.0) -> Node:
    """The last axes with constants around them."""
    if all(equal(s, 0) for pair in pads for s in pair):
        return x
    return aten.pad(
        x, [s for pair in reversed(pads) for s in pair], "constant", value if x.dtype.is_float else int(value)
    )


def symmetric(pads: Pads) -> Ints | None:
    """The one number per axis if both sides get the same, fixed amount."""
    if all(isinstance(a, int) and isinstance(b, int) and a == b and a >= 0 for a, b in pads):
        return tuple(int(a) for a, _ in pads)
    return None


def window(w: Node, kernel_shape: Ints, at: At) -> Ints:
    """The sizes of the kernel, which must be known."""
    sizes = w.shape[2:]
    at.need(all(isinstance(s, int) for s in sizes), "the kernel has dynamic sizes")
    at.need(
        not kernel_shape or tuple(kernel_shape) == sizes,
        f"the kernel is {list(sizes)}, not {kernel_shape}",
        "PL141",
    )
    return tuple(int(s) for s in sizes)


def convolve(
    x: Node, w: Node, b: Node | None, at: At, auto_pad: str, dilations: Ints, group: int, kernel_shape: Ints,
    pads: Ints, strides: Ints,
) -> Node:  # fmt: skip
    """Convolution over one to three axes."""
    kernel = window(w, kernel_shape, at)
    spatial = len(kernel)
    at.need(1 <= spatial <= 3, f"{spatial} spatial axes are not supported")
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    around = paddings(x, kernel, strides, dilations, pads, auto_pad, at)
    even = symmetric(around)
    if even is None:
        x, even = padded(x, around), (0,) * spatial
    return aten.convolution(x, w, b, strides, even, dilations, False, (), group)


@onnx_op("Conv")
def conv(
    x: Node, w: Node, b: Node | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = (), group: int = 1,
    kernel_shape: Ints = (), pads: Ints = (), strides: Ints = (), at: At,
) -> Result:  # fmt: skip
    """Convolution"""
    return convolve(x, w, b, at, auto_pad, dilations, group, kernel_shape, pads, strides)


@onnx_op("ConvTranspose")
def conv_transpose(
    x: Node, w: Node, b: Node | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = (), group: int = 1,
    kernel_shape: Ints = (), output_padding: Ints = (), output_shape: Ints = (), pads: Ints = (), strides: Ints = (),
    at: At,
) -> Result:  # fmt: skip
    """Transposed convolution; pads cut its result"""
    kernel = window(w, kernel_shape, at)
    spatial = len(kernel)
    at.need(1 <= spatial <= 3, f"{spatial} spatial axes are not supported")
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    extra = output_padding or (0,) * spatial
    cut: Pads = [(pads[i], pads[i + spatial]) for i in range(spatial)] if pads else [(0, 0)] * spatial
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        cut = []
        for i in range(spatial):
            length = x.shape[2 + i]
            want = output_shape[i - spatial] if output_shape else size(length * strides[i])
            total = size((length - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - want)
            half = types.floor_div(total, 2)
            # ONNX: the larger half goes to the end only for SAME_UPPER
            cut.append((half, size(total - half)) if auto_pad == "SAME_UPPER" else (size(total - half), half))
    even = symmetric(cut)
    direct = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    at.need(direct, "output_padding is not smaller than stride and dilation")
    result = aten.convolution(x, w, b, strides, even or (0,) * spatial, dilations, True, extra, group)
    if even is None:
        for i, (before, after) in enumerate(cut):
            if types.at_least(size(-before), 1) or types.at_least(size(-after), 1):
                result = padded_axis(
                    result, 2 + i, types.maximum(size(-before), 0), types.maximum(size(-after), 0), b
                )
            result = aten.slice(
                result, 2 + i, types.maximum(before, 0), size(result.shape[2 + i] - types.maximum(after, 0))
            )
    return result


def padded_axis(x: Node, axis: int, before: Size, after: Size, bias: Node | None) -> Node:
    """An axis longer by what no input reaches: zeros, or the bias."""
    amounts = [s for i in reversed(range(axis, x.rank)) for s in ((before, after) if i == axis else (0, 0))]
    if bias is None:
        return aten.pad(x, amounts)
    spread = aten.view(bias, (1, bias.shape[0], *[1] * (x.rank - 2)))
    return aten.add(aten.pad(aten.sub(x, spread), amounts), spread)
