"""Resampling of images."""

from __future__ import annotations

from collections.abc import Sequence

from planish.backends.ort.table import Call, lowers
from planish.ir.types import Size


@lowers("aten.upsample_nearest2d")
def _nearest(c: Call, x: str, output: Sequence[Size]) -> str:
    """Source row of row i: floor(i * (in/out)) with the ratio in f32, as torch has it."""
    shape = c.shape()
    for axis, want in zip((2, 3), output, strict=True):
        have = shape[axis]
        if have == want:
            continue
        x = c.op("Gather", x, _nearest_rows(c, have, want), axis=axis)
    return x


def _nearest_rows(c: Call, have: Size, want: Size) -> str:
    rows = c.op("Range", c.number(0, "i64"), c.graph.scalar(want), c.number(1, "i64"))
    ratio = c.op("Div", c.graph.scalar(have, "f32"), c.graph.scalar(want, "f32"))
    source = c.graph.cast(c.op("Floor", c.op("Mul", c.graph.cast(rows, "f32"), ratio)), "i64")
    return c.op("Min", source, c.op("Sub", c.graph.scalar(have), c.number(1, "i64")))


def _resize(c: Call, x: str, output: Sequence[Size], align_corners: bool, mode: str) -> str:
    return c.op(
        "Resize", x, None, None, c.graph.sizes(output), mode=mode, axes=[2, 3],
        coordinate_transformation_mode="align_corners" if align_corners else "half_pixel",
        cubic_coeff_a=-0.75 if mode == "cubic" else None,
    )  # fmt: skip


@lowers("aten.upsample_bilinear2d", native="f32")
def _bilinear(c: Call, x: str, output: Sequence[Size], align_corners: bool) -> str:
    return _resize(c, x, output, align_corners, "linear")


@lowers("aten.upsample_bicubic2d", native="f32")
def _bicubic(c: Call, x: str, output: Sequence[Size], align_corners: bool) -> str:
    return _resize(c, x, output, align_corners, "cubic")


@lowers("aten.grid_sampler_2d", native="f32 f64")
def _grid_sampler(c: Call, x: str, grid: str, interpolation: int, padding: int, align_corners: bool) -> str:
    return c.op(
        "GridSample", x, grid, mode=("linear", "nearest", "cubic")[interpolation],
        padding_mode=("zeros", "border", "reflection")[padding], align_corners=int(align_corners),
    )  # fmt: skip
