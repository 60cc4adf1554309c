"""Convolutions over images whose channels come last, and the rules that select them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from planish.backends.tvm.kernels.common import stored
from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import dtype

TILE = 32
"""Output channels that are stored side by side."""
ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid")
"""What a convolution may apply to its results."""
KINDS = ("f32", "f16", "bf16")
"""Element types of images."""


@dataclass(frozen=True)
class Runs:
    """The inputs of one window as ``count`` runs of ``length`` consecutive elements, stored as ``padded``.

    With channels last the elements of all columns and channels of one row of a window lie side by side, unless the
    window is dilated along the row.
    """

    count: int
    length: int
    padded: int


def runs_of(kernel_size: Any, channels: int, dilation: Any, depth: int) -> Runs:
    """The runs of a window ``kernel_size`` over ``channels``, padded to multiples of ``depth``."""
    rows, columns = kernel_size
    joined = columns == 1 or dilation[1] == 1
    count, length = (rows, columns * channels) if joined else (rows * columns, channels)
    return Runs(count, length, -(-length // depth) * depth)


def is_half(value: Any) -> bool:
    """True for a node or tensor of bf16."""
    return str(getattr(value.dtype, "name", value.dtype)) in ("bf16", "torch.bfloat16")


def activated(value: Any, name: str) -> Any:
    """An activation of :data:`ACTIVATIONS` by its name."""
    match name:
        case "none":
            return value
        case "relu6":
            return aten.clamp(value, 0.0, 6.0)
        case "gelu_tanh":
            return aten.gelu(value, "tanh")
    return getattr(aten, name)(value)


def _finished(y: Any, residual: Any, activation: str) -> Any:
    y = aten.permute(y, [0, 2, 3, 1])
    return activated(y if residual is None else aten.add(y, residual), activation)


def _rounded(x: Any) -> Any:
    return aten.to(aten.to(x, dtype("bf16")), dtype("f32"))


def _conv(x: Any, tiles: Any, bias: Any, residual: Any, channels: int, kernel_size: Any, stride: Any, padding: Any,
          dilation: Any, tile: int, depth: int, activation: str) -> Any:  # fmt: skip
    rows, columns = kernel_size
    runs = runs_of(kernel_size, x.shape[3], dilation, depth)
    w = planish.untile_rows(tiles, channels, runs.count * runs.padded, tile, depth)
    w = aten.slice(aten.view(w, [channels, runs.count, runs.padded]), 2, 0, runs.length)
    w = aten.permute(aten.view(w, [channels, rows, columns, x.shape[3]]), [0, 3, 1, 2])
    if is_half(tiles) and not is_half(x):
        x, w = _rounded(x), aten.to(w, dtype("f32"))
    y = aten.convolution(
        aten.permute(x, [0, 3, 1, 2]), w, bias, list(stride), list(padding), list(dilation), False, [], 1
    )
    return _finished(y, residual, activation)


def _depthwise(x: Any, taps: Any, bias: Any, residual: Any, kernel_size: Any, stride: Any, padding: Any,
               dilation: Any, activation: str) -> Any:  # fmt: skip
    rows, columns = kernel_size
    channels = x.shape[3]
    w = aten.view(aten.permute(taps, [1, 0]), [channels, 1, rows, columns])
    y = aten.convolution(
        aten.permute(x, [0, 3, 1, 2]),
        w,
        bias,
        list(stride),
        list(padding),
        list(dilation),
        False,
        [],
        channels,
    )
    return _finished(y, residual, activation)


def _pool(x: Any, mode: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, counted: bool
          ) -> Any:  # fmt: skip
    x = aten.permute(x, [0, 3, 1, 2])
    if mode == "max":
        y = aten.max_pool2d(x, list(kernel_size), list(stride), list(padding), list(dilation), ceil)
    else:
        y = aten.avg_pool2d(x, list(kernel_size), list(stride), list(padding), ceil, counted)
    return aten.permute(y, [0, 2, 3, 1])


_GEOMETRY = "kernel:ints, stride:ints, padding:ints, dilation:ints"

declare(
    "conv",
    f"x, tiles, bias:tensor?, residual:tensor?, channels:int, {_GEOMETRY}, tile:int=32, depth:int=1,"
    " activation:str='none'",
    _conv,
    doc="activation(convolution of x [B, H, W, C] + bias + residual) -> [B, OH, OW, channels]; tiles are the weight as"
    " [channels, runs*padded] in tile_rows(tile, depth). With tiles of bf16 an x of f32 is rounded to bf16.",
)
declare(
    "depthwise",
    f"x, taps, bias:tensor?, residual:tensor?, {_GEOMETRY}, activation:str='none'",
    _depthwise,
    doc="activation(convolution of each channel of x [B, H, W, C] by its own window + bias + residual); taps are"
    " [KH*KW, C]",
)
declare(
    "pool",
    f"x, mode:str, {_GEOMETRY}, ceil:bool=False, counted:bool=True",
    _pool,
    doc="max or mean of windows of x [B, H, W, C]; mode is 'max' or 'mean', counted: padding counts in a mean",
)


def tiled_weight(w: Node, dilation: Any, tile: int = TILE, depth: int = 1) -> Node:
    """A weight [O, C, KH, KW] in the layout that ``kernel.conv`` reads."""
    channels, inputs, rows, columns = w.shape
    runs = runs_of((rows, columns), inputs, dilation, depth)
    flat = aten.view(aten.permute(w, [0, 2, 3, 1]), [channels, runs.count, runs.length])
    if runs.padded != runs.length:
        flat = aten.pad(flat, [0, runs.padded - runs.length])
    return planish.tile_rows(aten.view(flat, [channels, runs.count * runs.padded]), tile, depth)


def _known(w: Node) -> None:
    if not all(isinstance(s, int) for s in w.shape):
        raise Decline("a size of the weight is symbolic")


def _first(x: Node) -> Node:
    return aten.permute(x, [0, 3, 1, 2])


def _last(x: Node) -> Node:
    return aten.permute(x, [0, 2, 3, 1])


def _plain(x: Node, w: Node, stride: Any) -> None:
    if len(stride) != 2:
        raise Decline("not a convolution over images")
    if x.dtype.name not in KINDS:
        raise Decline(f"activations of {x.dtype.name}")
    stored(w, "the weight")
    _known(w)


def _tile_of(channels: int) -> int:
    return 16 if channels <= 16 else TILE


_IMAGE = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}


@rule(
    lambda x, w, b, stride, padding, dilation: aten.convolution(x, w, b, stride, padding, dilation, False, (), 1),
    kind="close", tolerance=1e-5,
    example={"x": "f32[2, 4, 9, 9]", "w": "f32[8, 4, 3, 3]", "b": "f32[8]", **_IMAGE},
)  # fmt: skip
def select_conv(x: Node, w: Node, b: Any, stride: Any, padding: Any, dilation: Any) -> Node:
    """conv(x, W, b) = permute(kernel.conv(permute(x), tiles(W), b)), channels last inside"""
    _plain(x, w, stride)
    channels, _, rows, columns = w.shape
    tile, depth = _tile_of(channels), 2 if is_half(w) else 1
    tiles = tiled_weight(w, dilation, tile, depth)
    return _first(
        kernel.conv(
            _last(x),
            tiles,
            b,
            None,
            channels,
            (rows, columns),
            stride,
            padding,
            dilation,
            tile,
            depth,
            "none",
        )
    )


@rule(
    lambda x, w, b, stride, padding, dilation: aten.convolution(
        aten.to(aten.to(x, dtype("bf16")), dtype("f32")), aten.to(w, dtype("f32")), b, stride, padding, dilation,
        False, (), 1,
    ),
    kind="close", tolerance=1e-5,
    example={"x": "f32[2, 4, 9, 9]", "w": "bf16[8, 4, 3, 3]", "b": "f32[8]", **_IMAGE},
)  # fmt: skip
def select_conv_half(x: Node, w: Node, b: Any, stride: Any, padding: Any, dilation: Any) -> Node:
    """conv(bf16(x), W, b) = permute(kernel.conv(permute(x), tiles(W), b)) for W of bf16, products added in f32"""
    _plain(x, w, stride)
    if not is_half(w) or x.dtype.name != "f32":
        raise Decline("the weight is not bf16, or the input not f32")
    channels, _, rows, columns = w.shape
    tile = _tile_of(channels)
    tiles = tiled_weight(w, dilation, tile, 2)
    return _first(
        kernel.conv(
            _last(x), tiles, b, None, channels, (rows, columns), stride, padding, dilation, tile, 2, "none"
        )
    )


@rule(
    lambda x, w, b, stride, padding, dilation, groups: aten.convolution(
        x, w, b, stride, padding, dilation, False, (), groups
    ),
    kind="close", tolerance=1e-5,
    example={"x": "f32[2, 6, 9, 9]", "w": "f32[6, 1, 3, 3]", "b": "f32[6]", **_IMAGE, "groups": 6},
)  # fmt: skip
def select_depthwise(x: Node, w: Node, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> Node:
    """conv(x, W, b, groups=C) = permute(kernel.depthwise(permute(x), taps(W), b)), channels last inside"""
    _plain(x, w, stride)
    channels, inputs, rows, columns = w.shape
    if groups == 1 or inputs != 1 or channels != groups:
        raise Decline("the groups are not single channels")
    taps = aten.permute(aten.view(w, [channels, rows * columns]), [1, 0])
    return _first(
        kernel.depthwise(_last(x), taps, b, None, (rows, columns), stride, padding, dilation, "none")
    )


@rule(
    lambda x, k, s, p, d, ceil: aten.max_pool2d(x, k, s, p, d, ceil),
    example={"x": "f32[2, 4, 9, 9]", "k": (3, 3), "s": (2, 2), "p": (1, 1), "d": (1, 1), "ceil": False},
)  # fmt: skip
def select_max_pool(x: Node, k: Any, s: Any, p: Any, d: Any, ceil: Any) -> Node:
    """max_pool2d(x, k) = permute(kernel.pool(permute(x), 'max', k)), channels last inside"""
    _image(x)
    return _first(kernel.pool(_last(x), "max", k, s, p, d, ceil, True))


@rule(
    lambda x, k, s, p, ceil, counted: aten.avg_pool2d(x, k, s, p, ceil, counted), kind="close", tolerance=1e-5,
    example={"x": "f32[2, 4, 9, 9]", "k": (3, 3), "s": (2, 2), "p": (1, 1), "ceil": False, "counted": True},
)  # fmt: skip
def select_mean_pool(x: Node, k: Any, s: Any, p: Any, ceil: Any, counted: Any) -> Node:
    """avg_pool2d(x, k) = permute(kernel.pool(permute(x), 'mean', k)), channels last inside"""
    _image(x)
    if ceil:
        raise Decline("windows that reach over the padding count differently in a mean")
    return _first(kernel.pool(_last(x), "mean", k, s, p, (1, 1), ceil, counted))


def _image(x: Node) -> None:
    if (
        x.rank != 4
        or x.dtype.name not in KINDS
        or math.prod(s if isinstance(s, int) else 1 for s in x.shape) == 0
    ):
        raise Decline("not a batch of images of floats")


RULES = (select_depthwise, select_conv_half, select_conv, select_max_pool, select_mean_pool)
"""What selects the kernels of this file."""
