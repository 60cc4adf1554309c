"""Choosing scales and zeros: by the largest values, or by the squared error that the codes leave."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from planish.passes.compress.affine import AffineCodec

Tensor = torch.Tensor
REFINEMENTS = 3
"""How often scales are fitted again to the codes they led to."""


class Fit(NamedTuple):
    """Codes of rows, one a byte, with the scales (as stored) and zeros of their groups."""

    codes: Tensor
    scale: Tensor
    zero: Tensor


class Grid(NamedTuple):
    """A scale and a zero for every group, ``[groups, 1]`` in f32 with the values that are stored."""

    scale: Tensor
    zero: Tensor


def fit(rows: Tensor, codec: AffineCodec) -> Fit:
    """Codes, scales and zeros of ``f32[rows, in]``; the last group of a row may be shorter than the others."""
    count, length = rows.shape
    group = codec.group_of(length)
    missing = -length % group
    # Repeating the last value keeps the least and largest of the group; the mask keeps it out of every sum.
    padded = F.pad(rows[:, None], (0, missing), mode="replicate")[:, 0] if missing else rows
    w = padded.reshape(-1, group)
    mask = None
    if missing:
        mask = torch.ones(padded.shape[1]).index_fill_(0, torch.arange(length, length + missing), 0.0)
        mask = mask.reshape(1, -1, group).expand(count, -1, -1).reshape(-1, group)
    grid = _search(w, mask, codec)
    codes = _codes(w, grid, codec).to(torch.uint8).reshape(count, -1)[:, :length]
    kind = torch.float16 if codec.scale == "f16" else torch.float32
    return Fit(codes, grid.scale.to(kind).reshape(count, -1), grid.zero.reshape(count, -1))


def _stored_scale(scale: Tensor, codec: AffineCodec) -> Tensor:
    """The scale as it is stored, never zero."""
    if codec.scale == "f32":
        return torch.where(scale.abs() < 1e-38, 1e-38, scale)
    stored = scale.clamp(-65504.0, 65504.0).half().float()
    return torch.where(stored == 0, 2.0**-24, stored)


def _stored_zero(zero: Tensor, codec: AffineCodec) -> Tensor:
    """The zero as it is stored."""
    if codec.symmetric:
        return torch.full_like(zero, 2.0 ** (codec.bits - 1))
    if codec.zero == "float":
        return zero.clamp(-65504.0, 65504.0).half().float()
    return zero.round().clamp_(0, 2**codec.bits - 1)


def _range(w: Tensor) -> tuple[Tensor, Tensor]:
    """The least and largest value of each group, zero included."""
    low, high = torch.aminmax(w, dim=1, keepdim=True)
    return low.clamp(max=0.0), high.clamp(min=0.0)


def _grid(low: Tensor, high: Tensor, codec: AffineCodec) -> Grid:
    """The grid that spans a range."""
    scale = _stored_scale((high - low) / (2**codec.bits - 1), codec)
    return Grid(scale, _stored_zero(-low / scale, codec))


def _nearest(low: Tensor, high: Tensor, codec: AffineCodec) -> Grid:
    """The grid that clips nothing."""
    if not codec.symmetric:
        return _grid(low, high, codec)
    scale = torch.maximum(-low, high) / (2 ** (codec.bits - 1) - 1)
    return Grid(_stored_scale(scale, codec), _stored_zero(scale, codec))


def _candidates(low: Tensor, high: Tensor, codec: AffineCodec) -> Iterator[Grid]:
    """Grids that clip more and more."""
    finest = 0.94 if codec.bits >= 6 else 0.8 if codec.bits >= 4 else 0.5
    ratios = [1.0 - (1.0 - finest) * i / 5 for i in range(1, 6)]
    if not codec.symmetric:
        # Where each level counts, or the zero may lie anywhere, both ends move on their own.
        apart = codec.bits <= 3 or codec.zero == "float"
        for left, right in (
            product((1.0, *ratios[::2]), repeat=2) if apart else zip(ratios, ratios, strict=True)
        ):
            yield _grid(low * left, high * right, codec)
        return
    # The negative side has one code more: the larger side takes it, with a negative scale where it is positive.
    extreme = torch.where(high > -low, high, low)
    for ratio in (1.0, *ratios):
        scale = -extreme * (ratio / 2 ** (codec.bits - 1))
        yield Grid(_stored_scale(scale, codec), _stored_zero(scale, codec))


def _search(w: Tensor, mask: Tensor | None, codec: AffineCodec) -> Grid:
    """The best grid for every group."""
    low, high = _range(w)
    best = _nearest(low, high, codec)
    if not codec.searches:
        return best
    least = _loss(w, mask, best, codec)
    for candidate in _candidates(low, high, codec):
        best, least = _better(best, least, candidate, _loss(w, mask, candidate, codec))
    for _ in range(REFINEMENTS):
        candidate = _refitted(w, mask, best, codec)
        best, least = _better(best, least, candidate, _loss(w, mask, candidate, codec))
    return best


def _better(best: Grid, least: Tensor, other: Grid, loss: Tensor) -> tuple[Grid, Tensor]:
    wins = loss < least
    return Grid(*(torch.where(wins, new, old) for new, old in zip(other, best, strict=True))), torch.where(
        wins, loss, least
    )


def _loss(w: Tensor, mask: Tensor | None, grid: Grid, codec: AffineCodec) -> Tensor:
    """The squared error of each group."""
    u = w * grid.scale.reciprocal()
    d = _levels(u, grid, codec).sub_(u)
    if mask is not None:
        d *= mask
    return (d.norm(dim=1, keepdim=True) * grid.scale).square_()


def _levels(u: Tensor, grid: Grid, codec: AffineCodec) -> Tensor:
    """``code - zero`` for values in units of the scale."""
    top = 2**codec.bits - 1
    if codec.symmetric:
        return u.round().clamp_(-(2 ** (codec.bits - 1)), 2 ** (codec.bits - 1) - 1)
    if codec.zero == "int":
        return torch.clamp(u.round(), -grid.zero, top - grid.zero)
    return (u + grid.zero).round_().clamp_(0, top).sub_(grid.zero)


def _codes(w: Tensor, grid: Grid, codec: AffineCodec) -> Tensor:
    """The codes of the grid, as whole numbers in f32."""
    u = w / grid.scale
    return (_levels(u, grid, codec) + grid.zero).round_()


def _refitted(w: Tensor, mask: Tensor | None, grid: Grid, codec: AffineCodec) -> Grid:
    """The grid that fits the present codes best by least squares."""
    levels = _levels(w * grid.scale.reciprocal(), grid, codec)
    if mask is not None:
        w, levels = w * mask, levels * mask
    if codec.symmetric:
        power = (levels * levels).sum(1, keepdim=True)
        scale = (w * levels).sum(1, keepdim=True) / power.clamp(min=0.5)
        scale = torch.where(power > 0, scale, grid.scale)
        return Grid(_stored_scale(scale, codec), grid.zero)
    count = float(w.shape[1]) if mask is None else mask.sum(1, keepdim=True)
    mean_w, mean_d = w.sum(1, keepdim=True) / count, levels.sum(1, keepdim=True) / count
    power = (levels * levels).sum(1, keepdim=True) - count * mean_d * mean_d
    slope = ((w * levels).sum(1, keepdim=True) - count * mean_w * mean_d) / power.clamp(min=1e-6)
    scale = _stored_scale(torch.where((power > 0.1) & (slope > 0), slope, grid.scale), codec)
    return Grid(scale, _stored_zero(grid.zero + mean_d - mean_w / scale, codec))
