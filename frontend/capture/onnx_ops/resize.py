"""Resampling: as one operation where ATen has the same formula, else by explicit indices and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.frontend.capture.onnx_ops.indexing import pick
from planish.frontend.capture.onnx_ops.pointwise import cast
from planish.frontend.capture.onnx_ops.registry import At, Known, Result, Size, Sizes, Value, known, onnx_op
from planish.ir import types
from planish.ir.eager import TORCH_DTYPES
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import equal, f32, i64

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Style:
    """How values between elements are found."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    outside: bool
    extrapolation: float
    antialias: bool


@onnx_op("Resize")
def resize(
    x: Node, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None, *, antialias: int = 0,
    axes: tuple[int, ...] = (), coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor", at: At,
) -> Result:  # fmt: skip
    """Each axis resampled to another length"""
    style = Style(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), extrapolation_value,
        bool(antialias),
    )  # fmt: skip
    at.need(mode in ("nearest", "linear", "cubic"), f"the mode {mode!r} is not supported")
    places = [a % x.rank for a in axes] if axes else list(range(x.rank))
    target, factors = _target(x, places, scales, sizes, keep_aspect_ratio_policy, at)
    whole = _whole(x, target, factors, style)
    if whole is not None:
        return whole
    region: Sizes = ()
    if style.coordinates == "tf_crop_and_resize":
        region = at.sizes(roi, "the input 'roi'")
    narrow = x.dtype
    if mode != "nearest" and not narrow.is_float:
        at.refuse(f"{mode} resampling of {narrow} is not supported")
    for index, axis in enumerate(places):
        length, want, factor = x.shape[axis], target[axis], factors[axis]
        ends = (float(region[index]), float(region[index + len(places)])) if region else (0.0, 1.0)
        if equal(length, want) and factor == 1.0 and ends == (0.0, 1.0):
            continue
        if not isinstance(length, int) or not isinstance(want, int) or factor is None:
            at.refuse(
                f"{mode} resampling with {style.coordinates} coordinates from {length} to {want} elements "
                "is not supported for dynamic sizes"
            )
        x = _axis(x, axis, _taps(length, want, factor, style, ends), style, at)
    return cast(x, narrow)


def _target(
    x: Node, places: list[int], scales: Value | None, sizes: Value | None, policy: str, at: At
) -> tuple[list[Size], list[float | None]]:
    """The lengths of the result, and ONNX's factors for coordinates (None: the ratio of the lengths)."""
    target: list[Size] = list(x.shape)
    factors: list[float | None] = [1.0] * x.rank
    if scales is not None and not (isinstance(scales, Known) and not scales.items):
        given = at.sizes(scales, "the input 'scales'")
        at.need(len(given) == len(places), f"{len(given)} scales for {len(places)} axes", "PL141")
        for axis, each in zip(places, given, strict=True):
            if not isinstance(each, (int, float)):
                at.refuse(f"the factor {each} is dynamic")
            target[axis], factors[axis] = _scaled(x.shape[axis], float(each), at)
        return target, factors
    wanted = at.sizes(sizes, "the input 'sizes'")
    at.need(len(wanted) == len(places), f"{len(wanted)} sizes for {len(places)} axes", "PL141")
    if policy != "stretch":
        lengths = [x.shape[a] for a in places]
        at.need(
            all(isinstance(v, int) for v in (*wanted, *lengths)), "a kept aspect ratio with dynamic sizes"
        )
        pick_one = min if policy == "not_larger" else max
        ratio = pick_one(float(w) / float(n) for w, n in zip(wanted, lengths, strict=True))
        for axis, n in zip(places, lengths, strict=True):
            target[axis], factors[axis] = math.floor(ratio * int(n) + 0.5), ratio
        return target, factors
    for axis, want in zip(places, wanted, strict=True):
        length = x.shape[axis]
        target[axis] = want
        both = isinstance(want, int) and isinstance(length, int) and length
        factors[axis] = int(want) / int(length) if both else (1.0 if equal(want, length) else None)
    return target, factors


def _scaled(length: Size, factor: float, at: At) -> tuple[Size, float | None]:
    """A length times a factor, cut to a whole number."""
    if isinstance(length, int):
        return math.floor(length * factor + 1e-9), factor
    whole = factor if factor >= 1 else 1 / factor if factor > 0 else 0.5
    if whole != int(whole):
        at.refuse(f"the factor {factor} of the dynamic length {length}")
    if factor >= 1:
        return types.size(length * int(whole)), None if factor > 1 else 1.0
    want = types.floor_div(length, int(whole))
    return want, None if equal(types.size(want * int(whole)), length) else factor


def _whole(x: Node, target: list[Size], factors: list[float | None], style: Style) -> Node | None:
    """One ATen operation that computes the same, if there is one: two last axes, factor = ratio of the lengths."""
    if x.rank != 4 or not x.dtype.is_float or style.antialias or style.outside:
        return None
    if not all(equal(x.shape[i], target[i]) and factors[i] == 1.0 for i in (0, 1)):
        return None
    if not all(_is_ratio(x.shape[i], target[i], factors[i]) for i in (2, 3)):
        return None
    output = (target[2], target[3])
    if style.mode == "nearest":
        floor = style.coordinates == "asymmetric" and style.nearest == "floor"
        return aten.upsample_nearest2d(x, output) if floor else None
    corners = style.coordinates == "align_corners"
    if not corners and style.coordinates not in ("half_pixel", "pytorch_half_pixel"):
        return None
    if style.mode == "linear":
        return aten.upsample_bilinear2d(x, output, corners)
    return aten.upsample_bicubic2d(x, output, corners) if style.cubic == -0.75 else None


def _is_ratio(length: Size, want: Size, factor: float | None) -> bool:
    """True if the factor is the ratio of the lengths, and the result has more than one element."""
    if isinstance(want, int) and want <= 1:
        return False
    if factor is None:
        return True
    if isinstance(length, int) and isinstance(want, int):
        return abs(length * factor - want) <= 1e-6 * want
    return factor == 1.0 and equal(length, want)


def _coordinates(length: int, want: int, factor: float, style: Style, ends: tuple[float, float]) -> Array:
    """Where the elements of the result lie in the input."""
    at = np.arange(want, dtype=np.float64)
    kind = style.coordinates
    if kind == "align_corners":  # ONNX counts the result's length before it is cut to a whole number
        exact = factor * length
        return at * (length - 1) / (exact - 1) if exact != 1 else at * 0
    if kind == "asymmetric":
        return at / factor
    if kind == "tf_crop_and_resize":
        start, end = ends
        if want == 1:
            return at * 0 + 0.5 * (start + end) * (length - 1)
        return start * (length - 1) + at * (end - start) * (length - 1) / (want - 1)
    centred = (at + 0.5) / factor - 0.5
    if kind == "pytorch_half_pixel" and want == 1:
        return at * 0
    if kind == "half_pixel_symmetric":
        return length / 2 * (1 - want / (factor * length)) + centred
    return centred


_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _taps(
    length: int, want: int, factor: float, style: Style, ends: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """For each element of the result: places in the input, their weights, and whether it lies outside of it."""
    at = _coordinates(length, want, factor, style, ends)
    beyond = (
        (at < 0) | (at > length - 1) if style.coordinates == "tf_crop_and_resize" else np.zeros(want, bool)
    )
    if style.mode == "nearest":
        places = _NEAREST[style.nearest](at)[:, None]
        weights = np.ones_like(places)
    else:
        narrow = min(factor, 1.0) if style.antialias else 1.0
        reach = 1 if style.mode == "linear" else 2
        first = math.floor(-reach / narrow) + 1
        base = np.floor(at)[:, None]
        places = base + np.arange(first, 2 - first)
        distance = np.abs(places - at[:, None]) * narrow
        weights = np.clip(1 - distance, 0, 1) if style.mode == "linear" else _cubic(distance, style.cubic)
        if style.antialias:
            weights = weights / weights.sum(1, keepdims=True)
    if style.outside:
        weights = np.where((places < 0) | (places >= length), 0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, length - 1).astype(np.int64), weights, beyond


def _cubic(d: Array, a: float) -> Array:
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _axis(x: Node, axis: int, taps: tuple[Array, Array, Array], style: Style, at: At) -> Node:
    places, weights, beyond = taps
    want = len(places)
    shape = [want if i == axis else 1 for i in range(x.rank)]

    def number(values: Array, hint: str) -> Node:
        import torch

        return at.constant(
            torch.from_numpy(np.ascontiguousarray(values)).to(TORCH_DTYPES[x.dtype.name]).reshape(shape), hint
        )

    total: Node | None = None
    for tap in range(places.shape[1]):
        if not weights[:, tap].any():
            continue
        part = pick(x, axis, at.node_of(known(i64, [int(p) for p in places[:, tap]])))
        if not (weights[:, tap] == 1).all():
            part = aten.mul(part, number(weights[:, tap], f"weight{tap}"))
        total = part if total is None else aten.add(total, part)
    if total is None:
        at.refuse("all weights are zero")
    if beyond.any():
        outside = aten.gt(number(beyond.astype(np.float64), "outside"), 0.5)
        total = aten.where(outside, style.extrapolation, total)
    return total


@onnx_op("GridSample")
def grid_sample(
    x: Node, grid: Node, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros", at: At
) -> Result:
    """Samples of an image at the places of a grid"""
    modes = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
    paddings = {"zeros": 0, "border": 1, "reflection": 2}
    at.need(mode in modes and padding_mode in paddings, f"the mode {mode!r} with {padding_mode!r}")
    at.need(x.rank == 4, f"{x.rank - 2} spatial axes are not supported")
    return aten.grid_sampler_2d(
        x, cast(grid, x.dtype), modes[mode], paddings[padding_mode], bool(align_corners)
    )


@onnx_op("AffineGrid")
def affine_grid(theta: Node, size: Sizes, *, align_corners: int = 0) -> Result:
    """The places of an affine image of a regular grid"""
    spatial = size[2:]
    lines = []
    for i, n in enumerate(spatial):
        steps = aten.to(aten.arange(0, n), f32)
        if align_corners:
            line = aten.sub(aten.mul(aten.div(steps, types.maximum(types.size(n - 1), 1)), 2.0), 1.0)
        else:
            line = aten.sub(aten.div(aten.add(aten.mul(steps, 2.0), 1.0), n), 1.0)
        lines.append(aten.expand(aten.view(line, [n if j == i else 1 for j in range(len(spatial))]), spatial))
    ones = aten.full((*spatial, 1), 1.0, f32)
    base = aten.cat([*(aten.view(line, (*spatial, 1)) for line in reversed(lines)), ones], len(spatial))
    flat = cast(aten.view(base, (1, types.product(spatial), len(spatial) + 1)), theta.dtype)
    out = aten.matmul(flat, aten.permute(theta, (0, 2, 1)))
    return aten.view(out, (theta.shape[0], *spatial, len(spatial)))
