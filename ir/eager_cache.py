"""Eager torch implementations of writing to caches and of attention over them."""

from __future__ import annotations

import math
from typing import Any

import torch

Tensor = torch.Tensor


def put(cache: Tensor, new: Tensor, start: Tensor, count: Tensor, ring: bool) -> Tensor:
    """The cache ``[B, ..., C, D]`` with the first ``count[b]`` new rows written from ``start[b]`` on."""
    made, capacity = cache.clone(), cache.shape[-2]
    for b, (first, rows) in enumerate(zip(start.tolist(), count.tolist(), strict=True)):
        for i in range(max(rows - capacity, 0) if ring else 0, min(rows, new.shape[-2])):
            place = (first + i) % capacity if ring else first + i
            if 0 <= place < capacity:
                made[b, ..., place, :] = new[b, ..., i, :]
    return made


def key_positions(start: Tensor, count: Tensor, capacity: int, ring: bool) -> Tensor:
    """The position that each row of a cache holds, ``i64[B, C]``; negative if none."""
    rows = torch.arange(capacity, device=start.device)
    if not ring:
        return rows.expand(start.shape[0], capacity)
    last = (start + count - 1)[:, None]
    return last - (last - rows) % capacity


def attend(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, count: Tensor, bias: Any, window: int | None, scale: Any,
    softcap: Any, ring: bool,
) -> Tensor:  # fmt: skip
    """Causal attention over caches; what no position was written to is not seen, whatever it holds."""
    keys = key_positions(start, count, k.shape[-2], ring)[:, None, :]
    rows = (start[:, None] + torch.arange(q.shape[-2], device=q.device))[:, :, None]
    seen = (keys >= 0) & (keys <= rows) & (keys < (start + count)[:, None, None])
    if window is not None:
        seen = seen & (rows - keys < window)
    seen = seen[:, None]
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None and bias.dtype is torch.bool:
        seen = seen & bias
    elif bias is not None:
        scores = scores + bias
    weights = torch.softmax(scores.masked_fill(~seen, -math.inf), -1).nan_to_num(0.0)
    return weights @ torch.where(seen.any(-2)[..., None], v, 0)
