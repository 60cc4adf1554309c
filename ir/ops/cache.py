"""Caches of keys and values: rows are written at positions, and attention reads what has been written."""

from __future__ import annotations

from typing import Any

from planish.ir.dialect import define
from planish.ir.shapes import need, same
from planish.ir.shapes_layers import attention
from planish.ir.types import DType, TensorType, f32, i64


def _places(batch: Any, start: TensorType, count: TensorType) -> None:
    _by_sequence(batch, i64, start=start, count=count)


def _by_sequence(batch: Any, kind: DType, **given: TensorType) -> None:
    for what, each in given.items():
        need(each.dtype is kind and each.rank == 1, f"{what} is {kind} with one axis, got {each}")
        same(each.shape[0], batch, f"sequences of the cache and of {what}")


def _put(
    cache: TensorType, new: TensorType, start: TensorType, count: TensorType, ring: bool = False
) -> TensorType:
    need(cache.rank >= 3 and new.rank == cache.rank, f"cache and new rows need one rank above 2, got {new}")
    need(new.dtype is cache.dtype, f"the new rows must be {cache.dtype}, got {new.dtype}")
    for axis, (a, b) in enumerate(zip(cache.shape, new.shape, strict=True)):
        if axis != cache.rank - 2:
            same(a, b, f"sizes of cache and new rows at axis {axis}")
    _places(cache.shape[0], start, count)
    return cache


def _attend(
    q: TensorType, k: TensorType, v: TensorType, start: TensorType, count: TensorType, bias: TensorType | None = None,
    window: Any = None, *_: Any,
) -> TensorType:  # fmt: skip
    need(q.rank == 4, f"q needs four axes, got {q}")
    need(window is None or window >= 1, f"the window must be positive, got {window}")
    same(q.shape[0], k.shape[0], "sequences of q and k")
    same(q.shape[0], v.shape[0], "sequences of q and v")
    _places(q.shape[0], start, count)
    return attention(q, k, v, bias)


def _attend_parallel(
    q: TensorType, k: TensorType, v: TensorType, start: TensorType, count: TensorType, first: TensorType,
    last: TensorType, temperature: TensorType, share: TensorType, *_: Any,
) -> TensorType:  # fmt: skip
    made = _attend(q, k, v, start, count)
    _by_sequence(q.shape[0], i64, first=first, last=last)
    _by_sequence(q.shape[0], f32, temperature=temperature, share=share)
    return made


define(
    "planish.put", "cache, new, start, count, ring:bool=False", _put, torch="custom:put",
    doc="row i < count[b] of new [B, ..., S, D] replaces row start[b] + i of cache [B, ..., C, D], in a ring that"
    " modulo C, of which the last C rows stay; rows at C or beyond are dropped otherwise; start, count: i64[B]",
)  # fmt: skip
define(
    "planish.attend",
    "q, k, v, start, count, bias:tensor?=None, window:any=None, scale:float?=None, softcap:float?=None,"
    " ring:bool=False",
    _attend, torch="custom:attend",
    doc="causal attention of q [B, H, S, D], whose row i stands at p = start[b] + i, over caches k [B, Hk, C, D] and"
    " v [B, Hk, C, Dv]; row c holds position c, in a ring the last one <= start[b] + count[b] - 1 that is c modulo C;"
    " a key at j is seen if 0 <= j <= p, j < start[b] + count[b] and (window is None or p - j < window); bias as the"
    " mask of attention; rows of q that see nothing yield zeros",
)  # fmt: skip
define(
    "planish.attend_parallel",
    "q, k, v, start, count, first, last, temperature, share, scale:float?=None, softcap:float?=None",
    _attend_parallel, torch="custom:attend_parallel",
    doc="attend without a ring, where rows first[b] <= c < last[b] of the caches are contexts that were encoded apart"
    " (APE): over them, scores are divided by temperature[b] and their log-sum-exp is multiplied by temperature[b] *"
    " share[b]; what contexts and other rows give is weighted by the softmax of the two log-sum-exps. first, last:"
    " i64[B]; temperature, share: f32[B], positive; without contexts, or where both are 1, it is attend",
)  # fmt: skip
