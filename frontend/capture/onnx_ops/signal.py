"""Fourier transforms as products with constant matrices, and other operators of signal processing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from planish.frontend.capture.onnx_ops.indexing import pick
from planish.frontend.capture.onnx_ops.registry import At, Result, Size, Sizes, onnx_op
from planish.ir.eager import TORCH_DTYPES
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import floor_div, size

Array = np.ndarray[Any, Any]


def _number(value: Any, what: str, at: At) -> int:
    if not isinstance(value, int):
        at.refuse(f"{what} is {value}, which is dynamic")
    return value


def _matrix(given: int, parts: int, length: int, inverse: bool, onesided: bool) -> tuple[Array, int, int]:
    """The transform of ``given`` elements of ``parts`` numbers each: a matrix, and the layout of its result."""
    if inverse and onesided:  # half a spectrum to real values
        bins = min(given, length // 2 + 1)
        k, t = np.arange(bins)[:, None], np.arange(length)[None, :]
        angle = 2 * np.pi * (k * t % length) / length
        both = np.where((k == 0) | (2 * k == length), 1.0, 2.0) / length
        out = np.zeros((given, parts, length, 1))
        out[:bins, 0, :, 0] = both * np.cos(angle)
        if parts == 2:
            out[:bins, 1, :, 0] = -both * np.sin(angle)
        return out.reshape(given * parts, length), length, 1
    count = length // 2 + 1 if onesided else length
    rows = min(given, length)
    n, k = np.arange(rows)[:, None], np.arange(count)[None, :]
    angle = 2 * np.pi * (n * k % length) / length * (1 if inverse else -1)
    scale = 1 / length if inverse else 1.0
    out = np.zeros((given, parts, count, 2))
    out[:rows, 0, :, 0], out[:rows, 0, :, 1] = np.cos(angle), np.sin(angle)
    if parts == 2:
        out[:rows, 1, :, 0], out[:rows, 1, :, 1] = -np.sin(angle), np.cos(angle)
    return (out * scale).reshape(given * parts, count * 2), count, 2


def transform(x: Node, length: int | None, axis: int, inverse: bool, onesided: bool, at: At) -> Node:
    """The discrete Fourier transform along an axis; the last axis holds real and imaginary parts."""
    axis %= x.rank
    at.need(axis != x.rank - 1, "the last axis holds real and imaginary parts", "PL141")
    given, parts = _number(x.shape[axis], "the length", at), _number(x.shape[-1], "the last axis", at)
    at.need(parts in (1, 2), f"the last axis has {parts} elements", "PL141")
    if length is None:
        length = 2 * (given - 1) if inverse and onesided else given
    at.need(length > 0, f"the transform has the length {length}", "PL141")
    matrix, count, width = _matrix(given, parts, length, inverse, onesided)
    weight = at.constant(torch.from_numpy(matrix).to(TORCH_DTYPES[x.dtype.name]), "dft")
    order = [i for i in range(x.rank) if i not in (axis, x.rank - 1)]
    outer = tuple(x.shape[i] for i in order)
    flat = aten.view(aten.permute(x, [*order, axis, x.rank - 1]), (*outer, given * parts))
    out = aten.view(aten.matmul(flat, weight), (*outer, count, width))
    back = [*order, axis, x.rank - 1]
    return aten.permute(out, [back.index(i) for i in range(x.rank)])


@onnx_op("DFT")
def dft(
    x: Node, length: Size | None = None, place: Size | None = None, *, axis: int | None = None, inverse: int = 0,
    onesided: int = 0, at: At,
) -> Result:  # fmt: skip
    """Discrete Fourier transform"""
    if place is None:
        place = axis if axis is not None else 1 if at.opset < 20 else -2
    count = None if length is None else _number(length, "the length", at)
    return transform(x, count, _number(place, "the axis", at), bool(inverse), bool(onesided), at)


@onnx_op("STFT")
def stft(
    x: Node, step: Size, window: Node | None = None, length: Size | None = None, *, onesided: int = 1, at: At
) -> Result:
    """Fourier transforms of overlapping frames"""
    if length is None:
        length = x.shape[1] if window is None else window.shape[0]
    frame, hop = _number(length, "the frame length", at), _number(step, "the frame step", at)
    wide = frame if window is None else _number(window.shape[0], "the window", at)
    at.need(wide == frame, f"a window of {wide} for frames of {frame}")
    if x.rank == 2:
        x = aten.view(x, (*x.shape, 1))
    frames = size(floor_div(size(x.shape[1] - frame), hop) + 1)
    first = aten.view(aten.mul(aten.arange(0, frames), hop), (frames, 1))
    parts = pick(x, 1, aten.add(first, aten.view(aten.arange(0, frame), (1, frame))))
    if window is not None:
        parts = aten.mul(parts, aten.view(window, (frame, 1)))
    return transform(parts, frame, 2, False, bool(onesided), at)


@onnx_op("MelWeightMatrix")
def mel_weight_matrix(
    bins: Size, length: Size, rate: Size, low: Size, high: Size, *, output_datatype: int = 1, at: At
) -> Result:
    """Weights that sum a spectrum into mel bands"""
    count, dft_length = _number(bins, "the number of bands", at), _number(length, "the length", at)
    spectrum = dft_length // 2 + 1
    edges = np.array([float(low), float(high)])
    start, end = 2595 * np.log10(1 + edges / 700)
    points = np.arange(count + 2) * ((end - start) / (count + 2)) + start
    hertz = 700 * (10 ** (points / 2595) - 1)
    places = (((dft_length + 1) * hertz) // float(rate)).astype(int)
    at.need(
        bool((places >= 0).all() and (places < spectrum + 1).all()),
        "the bands reach beyond the spectrum",
        "PL141",
    )
    out = np.zeros((spectrum, count))
    for i, (left, centre, right) in enumerate(zip(places, places[1:], places[2:], strict=False)):
        if centre == left:
            out[centre, i] = 1
        else:
            out[left : centre + 1, i] = (np.arange(left, centre + 1) - left) / (centre - left)
        if right > centre:
            out[centre:right, i] = (right - np.arange(centre, right)) / (right - centre)
    return at.constant(torch.from_numpy(out).to(TORCH_DTYPES[at.dtype(output_datatype).name]), "mel")


@onnx_op("Col2Im")
def col2im(
    x: Node, image: Sizes, block: Sizes, *, dilations: tuple[int, ...] = (), pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (), at: At,
) -> Result:  # fmt: skip
    """Columns of blocks added up to an image"""
    spatial = len(block)
    sizes = [_number(s, "the image", at) for s in image]
    kernel = [_number(s, "the block", at) for s in block]
    strides, dilations, pads = (
        strides or (1,) * spatial,
        dilations or (1,) * spatial,
        pads or (0,) * 2 * spatial,
    )
    whole = [sizes[i] + pads[i] + pads[i + spatial] for i in range(spatial)]
    steps = [(whole[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(spatial)]
    places = np.zeros((*kernel, *steps), dtype=np.int64)
    for i in range(spatial):
        line = np.arange(kernel[i])[:, None] * dilations[i] + np.arange(steps[i])[None, :] * strides[i]
        shape = [1] * (2 * spatial)
        shape[i], shape[spatial + i] = kernel[i], steps[i]
        places = places * whole[i] + line.reshape(shape)
    batch, area = x.shape[0], int(np.prod(kernel))
    channels, length = floor_div(x.shape[1], area), area * int(np.prod(steps))
    flat = aten.view(x, (batch, channels, length))
    index = at.constant(places.reshape(1, 1, length), "places")
    empty = aten.full((batch, channels, int(np.prod(whole))), 0.0, x.dtype)
    out = aten.scatter_add(empty, 2, aten.expand(index, (batch, channels, length)), flat)
    out = aten.view(out, (batch, channels, *whole))
    for i in range(spatial):
        out = aten.slice(out, 2 + i, pads[i], pads[i] + sizes[i])
    return out


@onnx_op("Det")
def determinant(x: Node, *, at: At) -> Result:
    """The determinant of small matrices, by cofactors"""
    n = _number(x.shape[-1], "the size of the matrices", at)
    at.need(1 <= n <= 4, f"matrices of {n} rows are not supported; 1 to 4 are")
    cells = [
        [
            aten.view(aten.slice(aten.slice(x, x.rank - 2, i, i + 1), x.rank - 1, j, j + 1), x.shape[:-2])
            for j in range(n)
        ]
        for i in range(n)
    ]

    def expanded(row: int, columns: tuple[int, ...]) -> Node:
        if len(columns) == 1:
            return cells[row][columns[0]]
        total: Node | None = None
        for sign, column in enumerate(columns):
            term = aten.mul(cells[row][column], expanded(row + 1, tuple(c for c in columns if c != column)))
            total = term if total is None else (aten.sub if sign % 2 else aten.add)(total, term)
        assert total is not None
        return total

    return expanded(0, tuple(range(n)))
