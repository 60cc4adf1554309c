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


def attend_parallel(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, count: Tensor, first: Tensor, last: Tensor, temperature: Tensor,
    share: Tensor, scale: Any, softcap: Any,
) -> Tensor:  # fmt: skip
    """Attention over contexts and attention over all other rows, merged by their log-sum-exps; at least in f32."""
    kind = q.dtype if q.dtype == torch.float64 else torch.float32
    temperature, share = (t.to(kind)[:, None, None, None] for t in (temperature, share))
    keys = key_positions(start, count, k.shape[-2], False)[:, None, None, :]
    rows = (start[:, None] + torch.arange(q.shape[-2], device=q.device))[:, None, :, None]
    seen = (keys <= rows) & (keys < (start + count)[:, None, None, None])
    context = (keys >= first[:, None, None, None]) & (keys < last[:, None, None, None])
    k, v = (t.to(kind).repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q.to(kind) @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    v = torch.where(seen.any(-2)[..., None], v, 0)
    inner, of_context = _part(scores / temperature, seen & context, v)
    outer, of_others = _part(scores, seen & ~context, v)
    inner = torch.where(inner == -math.inf, inner, inner * temperature * share)
    weights = torch.softmax(torch.cat([inner, outer], -1), -1).nan_to_num(0.0)
    return (weights[..., :1] * of_context + weights[..., 1:] * of_others).to(q.dtype)


def _part(scores: Tensor, seen: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp ``[B, H, S, 1]`` of the scores that are seen, and attention by them."""
    scores = scores.masked_fill(~seen, -math.inf)
    total = torch.logsumexp(scores, -1, keepdim=True)
    return total, torch.exp(scores - total.masked_fill(total == -math.inf, 0.0)) @ v
