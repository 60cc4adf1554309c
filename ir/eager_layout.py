"""Eager torch implementations of the layouts that kernels read."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from planish.ir.ops.layout import panel_planes

Tensor = torch.Tensor


def tile_rows(x: Tensor, tile: int, depth: int) -> Tensor:
    """``[N, K]`` to ``[ceil(N/tile), ceil(K/depth), tile*depth]``, padded with zeros."""
    rows, length = x.shape
    x = F.pad(x, (0, -length % depth, 0, -rows % tile))
    parts = x.reshape(x.shape[0] // tile, tile, x.shape[1] // depth, depth)
    return parts.permute(0, 2, 1, 3).reshape(parts.shape[0], parts.shape[2], tile * depth)


def untile_rows(x: Tensor, rows: int, length: int, tile: int, depth: int) -> Tensor:
    """The inverse of :func:`tile_rows`."""
    parts = x.reshape(x.shape[0], x.shape[1], tile, depth).permute(0, 2, 1, 3)
    return parts.reshape(x.shape[0] * tile, x.shape[1] * depth)[:rows, :length].contiguous()


def panel(codes: Tensor, bits: int, tile: int) -> Tensor:
    """Codes, one a byte, as panels of ``tile`` rows in planes of 8, 4, 2 and 1 bits."""
    rows, length = codes.shape
    codes = F.pad(codes, (0, -length % 32, 0, -rows % tile))
    panels, below, planes = codes.shape[0] // tile, bits, []
    for width in panel_planes(bits):
        below -= width
        part = codes.reshape(panels, tile, -1, 8 // width, 4).permute(3, 0, 2, 1, 4)
        plane = codes.new_zeros(part.shape[1:])
        for index, each in enumerate(part.contiguous()):
            plane |= ((each >> below) & (2**width - 1)) << index * width
        planes.append(plane.reshape(panels, -1))
    return torch.cat(planes, 1)


def unpanel(panels: Tensor, bits: int, rows: int, length: int, tile: int) -> Tensor:
    """The inverse of :func:`panel`."""
    padded, begin, below = -(-length // 32) * 32, 0, bits
    codes = torch.zeros(panels.shape[0] * tile, padded, dtype=torch.uint8)
    for width in panel_planes(bits):
        below -= width
        per, count = 8 // width, padded * width * tile // 8
        part = panels[:, begin : begin + count].reshape(panels.shape[0], -1, 1, tile, 4)
        shifts = torch.arange(0, 8, width, dtype=torch.uint8).view(1, 1, per, 1, 1)
        part = ((part >> shifts) & (2**width - 1)) << below
        codes |= part.permute(0, 3, 1, 2, 4).reshape(codes.shape)
        begin += count
    return codes[:rows, :length].contiguous()


def fake_quantize(x: Tensor, bits: int, group: int) -> Tensor:
    """``x`` rounded to whole multiples of one scale per group; groups of zeros stay zero."""
    length, top = x.shape[-1], 2 ** (bits - 1) - 1
    parts = F.pad(x.float(), (0, -length % group)).unflatten(-1, (-1, group))
    largest = parts.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, top / largest, 0.0)
    rounded = torch.round(parts * inverse) * (largest / top)
    return rounded.flatten(-2)[..., :length].to(x.dtype)
