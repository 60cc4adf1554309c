"""Kernels of attention: over a whole sequence, and of a few queries over a cache."""

from __future__ import annotations

from typing import Any

from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import f32

SWAPPED = (0, 2, 1, 3)
"""Exchanges the axes of heads and positions."""

FEW = 8
"""Queries that are answered over a cache without blocks."""


def heads_first(x: Any, layout: str) -> Any:
    """``[B, T, H, D]`` (``bthd``) or ``[B, H, T, D]`` (``bhtd``) as the latter."""
    return aten.permute(x, SWAPPED) if layout == "bthd" else x


def _attention(
    q: Any, k: Any, v: Any, mask: Any, causal: bool, window: Any, scale: Any, softcap: Any, queries: str, keys: str,
    values: str, result: str,
) -> Any:  # fmt: skip
    """planish.attention with the axes of q, k, v and the result in the orders given: bthd or bhtd"""
    out = planish.attention(
        heads_first(q, queries),
        heads_first(k, keys),
        heads_first(v, values),
        mask,
        causal,
        window,
        scale,
        softcap,
    )
    return heads_first(out, result)


def _attention_step(
    q: Any, past_k: Any, past_v: Any, k: Any, v: Any, mask: Any, scale: Any, softcap: Any, queries: str, keys: str,
    values: str, result: str,
) -> Any:  # fmt: skip
    """planish.attention of a few queries over a cache and the newest keys and values"""
    keys_all = aten.cat([past_k, heads_first(k, keys)], 2)
    values_all = aten.cat([past_v, heads_first(v, values)], 2)
    out = planish.attention(heads_first(q, queries), keys_all, values_all, mask, False, None, scale, softcap)
    return heads_first(out, result)


_ORDERS = "queries:str='bhtd', keys:str='bhtd', values:str='bhtd', result:str='bhtd'"
declare(
    "attention",
    "q, k, v, mask:tensor?=None, causal:bool=False, window:any=None, scale:float?=None, softcap:float?=None, "
    + _ORDERS,
    _attention,
)
declare(
    "attention_step",
    "q, past_k, past_v, k, v, mask:tensor?=None, scale:float?=None, softcap:float?=None, " + _ORDERS,
    _attention_step,
)


def unswapped(x: Node) -> tuple[Node, str]:
    """What a value is before heads and positions were exchanged, and the order of its axes."""
    if x.op == "aten.permute" and tuple(x.args[1]) == SWAPPED:
        return x.args[0], "bthd"
    return x, "bhtd"


def _fits(q: Node, k: Node, v: Node, mask: Any) -> None:
    if q.rank != 4 or q.dtype is not f32:
        raise Decline("the kernel is for f32 with a batch axis and a head axis")
    if q.shape[0] != k.shape[0] or k.shape[0] != v.shape[0]:
        raise Decline("batches are broadcast")
    if not all(isinstance(n, int) for n in (q.shape[1], k.shape[1], q.shape[3], v.shape[3])):
        raise Decline("heads and head sizes must be known")
    if q.shape[3] > 512 or v.shape[3] > 512:
        raise Decline("heads are too wide")
    if isinstance(mask, Node) and mask.rank > 4:
        raise Decline("the mask has too many axes")


@rule(
    lambda q, k, v, mask, causal, window, scale, softcap: planish.attention(
        q, k, v, mask, causal, window, scale, softcap
    ),
    kind="close",
    tolerance=1e-5,
    example={
        "q": "f32[2, 6, 5, 16]",
        "k": "f32[2, 2, 7, 16]",
        "v": "f32[2, 2, 7, 16]",
        "mask": "bool[2, 1, 1, 7]",
        "causal": False,
        "window": None,
        "scale": 0.25,
        "softcap": None,
    },
)
def select_attention(
    q: Any, k: Any, v: Any, mask: Any, causal: Any, window: Any, scale: Any, softcap: Any
) -> Node:
    """attention(q, k, v) = kernel.attention(q, k, v), which reads permuted operands where they are"""
    _fits(q, k, v, mask)
    if _is_step(q, k, v, causal, window):
        raise Decline("a few queries over a cache have a kernel of their own")
    (q, queries), (k, keys), (v, values) = unswapped(q), unswapped(k), unswapped(v)
    return kernel.attention(q, k, v, mask, causal, window, scale, softcap, queries, keys, values)


def _is_step(q: Node, k: Node, v: Node, causal: Any, window: Any) -> bool:
    cached = all(
        x.op == "aten.cat" and x.args[1] == 2 and len(x.args[0]) == 2 and _is_few(x.args[0][1])
        for x in (k, v)
    )
    return cached and not causal and window is None and _is_few(q)


def _is_few(x: Node) -> bool:
    return isinstance(x.shape[2], int) and 1 <= x.shape[2] <= FEW


@rule(
    lambda q, past_k, past_v, k, v, mask, scale, softcap: planish.attention(
        q, aten.cat([past_k, k], 2), aten.cat([past_v, v], 2), mask, False, None, scale, softcap
    ),
    kind="close",
    tolerance=1e-5,
    example={
        "q": "f32[2, 6, 1, 16]",
        "past_k": "f32[2, 2, 7, 16]",
        "past_v": "f32[2, 2, 7, 16]",
        "k": "f32[2, 2, 1, 16]",
        "v": "f32[2, 2, 1, 16]",
        "mask": None,
        "scale": 0.25,
        "softcap": None,
    },
)
def select_attention_step(
    q: Any, past_k: Any, past_v: Any, k: Any, v: Any, mask: Any, scale: Any, softcap: Any
) -> Node:
    """attention(q, cat([past_k, k]), cat([past_v, v])) = kernel.attention_step(q, past_k, past_v, k, v)"""
    _fits(q, k, v, mask)
    if not (_is_few(q) and _is_few(k) and _is_few(v)) or past_k.shape[2] != past_v.shape[2]:
        raise Decline(f"more than {FEW} queries or new keys, or a number that is not known")
    (q, queries), (k, keys), (v, values) = unswapped(q), unswapped(k), unswapped(v)
    return kernel.attention_step(q, past_k, past_v, k, v, mask, scale, softcap, queries, keys, values)


@rule(
    lambda q, k, v, mask, causal, window, scale, softcap, queries, keys, values: aten.permute(
        kernel.attention(q, k, v, mask, causal, window, scale, softcap, queries, keys, values), [0, 2, 1, 3]
    ),
    kind="close",
    tolerance=1e-5,
    example={
        "q": "f32[2, 5, 6, 16]",
        "k": "f32[2, 7, 2, 16]",
        "v": "f32[2, 7, 2, 16]",
        "mask": None,
        "causal": True,
        "window": None,
        "scale": 0.25,
        "softcap": None,
        "queries": "bthd",
        "keys": "bthd",
        "values": "bthd",
    },
)
def attention_writes_permuted(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    causal: Any,
    window: Any,
    scale: Any,
    softcap: Any,
    queries: Any,
    keys: Any,
    values: Any,
) -> Node:
    """permute(kernel.attention(...)) = kernel.attention(..., result='bthd')"""
    return kernel.attention(q, k, v, mask, causal, window, scale, softcap, queries, keys, values, "bthd")


@rule(
    lambda q, past_k, past_v, k, v, mask, scale, softcap, queries, keys, values: aten.permute(
        kernel.attention_step(q, past_k, past_v, k, v, mask, scale, softcap, queries, keys, values),
        [0, 2, 1, 3],
    ),
    kind="close",
    tolerance=1e-5,
    example={
        "q": "f32[2, 1, 6, 16]",
        "past_k": "f32[2, 2, 7, 16]",
        "past_v": "f32[2, 2, 7, 16]",
        "k": "f32[2, 1, 2, 16]",
        "v": "f32[2, 1, 2, 16]",
        "mask": None,
        "scale": 0.25,
        "softcap": None,
        "queries": "bthd",
        "keys": "bthd",
        "values": "bthd",
    },
)
def attention_step_writes_permuted(
    q: Any,
    past_k: Any,
    past_v: Any,
    k: Any,
    v: Any,
    mask: Any,
    scale: Any,
    softcap: Any,
    queries: Any,
    keys: Any,
    values: Any,
) -> Node:
    """permute(kernel.attention_step(...)) = kernel.attention_step(..., result='bthd')"""
    return kernel.attention_step(q, past_k, past_v, k, v, mask, scale, softcap, queries, keys, values, "bthd")
