"""Kernels of caches: rows written in place, and attention over what has been written."""

from __future__ import annotations

from typing import Any

from planish.backends.tvm.kernels.attention import heads_first, unswapped
from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import bf16, f16, f32

WIDEST = 512
"""Most channels of a head that the kernel of attention is for."""


def _put(cache: Any, new: Any, start: Any, count: Any, ring: bool, order: str) -> Any:
    """planish.put of new rows whose axes have the order given: bthd or bhtd"""
    return planish.put(cache, heads_first(new, order), start, count, ring)


def _attend(
    q: Any, k: Any, v: Any, start: Any, count: Any, bias: Any, window: Any, scale: Any, softcap: Any, ring: bool,
    queries: str, result: str,
) -> Any:  # fmt: skip
    """planish.attend with the axes of q and the result in the orders given; caches of f16 or bf16 are widened"""
    k, v = (x if x.dtype == q.dtype else aten.to(x, f32) for x in (k, v))
    out = planish.attend(heads_first(q, queries), k, v, start, count, bias, window, scale, softcap, ring)
    return heads_first(out, result)


declare("put", "cache, new, start, count, ring:bool=False, order:str='bhtd'", _put)
declare(
    "attend",
    "q, k, v, start, count, bias:tensor?=None, window:any=None, scale:float?=None, softcap:float?=None,"
    " ring:bool=False, queries:str='bhtd', result:str='bhtd'",
    _attend,
)


@rule(
    lambda cache, new, start, count, ring: planish.put(cache, new, start, count, ring),
    kind="exact",
    example={
        "cache": "f32[2, 3, 12, 8]", "new": "f32[2, 3, 5, 8]", "start": "i64[2]", "count": "i64[2]", "ring": True,
    },
)  # fmt: skip
def select_put(cache: Any, new: Any, start: Any, count: Any, ring: Any) -> Node:
    """put(cache, new) = kernel.put(cache, new), which reads permuted rows where they are"""
    if not isinstance(cache.shape[-1], int):
        raise Decline("the number of channels is not known")
    plain, order = unswapped(new)
    return kernel.put(cache, plain, start, count, ring, order)


_EXAMPLE = {
    "q": "f32[2, 6, 5, 16]", "k": "f32[2, 2, 9, 16]", "v": "f32[2, 2, 9, 16]", "start": "i64[2]", "count": "i64[2]",
    "bias": "bool[2, 1, 1, 9]", "window": 4, "scale": 0.25, "softcap": None, "ring": False,
}  # fmt: skip


def _selected(
    q: Node, k: Node, v: Node, start: Node, count: Node, bias: Any, window: Any, scale: Any, softcap: Any, ring: bool
) -> Node:  # fmt: skip
    if q.dtype is not f32 or any(x.dtype not in (f32, f16, bf16) for x in (k, v)):
        raise Decline("the kernel is for queries of f32 over caches of f32, f16 or bf16")
    if not all(isinstance(n, int) for n in (q.shape[1], k.shape[1], q.shape[3], v.shape[3])):
        raise Decline("heads and head sizes must be known")
    if q.shape[3] > WIDEST or v.shape[3] > WIDEST:
        raise Decline("heads are too wide")
    if window is not None and not isinstance(window, int):
        raise Decline("the window must be a number")
    plain, order = unswapped(q)
    return kernel.attend(plain, k, v, start, count, bias, window, scale, softcap, ring, order)


@rule(
    lambda q, k, v, start, count, bias, window, scale, softcap, ring: planish.attend(
        q, k, v, start, count, bias, window, scale, softcap, ring
    ),
    kind="close",
    tolerance=1e-5,
    example=_EXAMPLE,
)
def select_attend(
    q: Any,
    k: Any,
    v: Any,
    start: Any,
    count: Any,
    bias: Any,
    window: Any,
    scale: Any,
    softcap: Any,
    ring: Any,
) -> Node:
    """attend(q, k, v) = kernel.attend(q, k, v), which reads no row that nothing was put to"""
    return _selected(q, k, v, start, count, bias, window, scale, softcap, ring)


@rule(
    lambda q, k, v, start, count, bias, window, scale, softcap, ring: planish.attend(
        q, aten.to(k, f32), aten.to(v, f32), start, count, bias, window, scale, softcap, ring
    ),
    kind="close",
    tolerance=1e-5,
    example=_EXAMPLE | {"k": "f16[2, 2, 9, 16]", "v": "bf16[2, 2, 9, 16]"},
)
def select_attend_narrow(
    q: Any,
    k: Any,
    v: Any,
    start: Any,
    count: Any,
    bias: Any,
    window: Any,
    scale: Any,
    softcap: Any,
    ring: Any,
) -> Node:
    """attend(q, to(k, f32), to(v, f32)) = kernel.attend(q, k, v), which widens what it reads"""
    if k.dtype not in (f16, bf16) or v.dtype not in (f16, bf16):
        raise Decline("the caches are not of f16 or bf16")
    return _selected(q, k, v, start, count, bias, window, scale, softcap, ring)


@rule(
    lambda q, k, v, start, count, bias, window, scale, softcap, ring, queries: aten.permute(
        kernel.attend(q, k, v, start, count, bias, window, scale, softcap, ring, queries), [0, 2, 1, 3]
    ),
    kind="close",
    tolerance=1e-5,
    example=_EXAMPLE | {"q": "f32[2, 5, 6, 16]", "queries": "bthd"},
)
def attend_writes_permuted(
    q: Any, k: Any, v: Any, start: Any, count: Any, bias: Any, window: Any, scale: Any, softcap: Any, ring: Any,
    queries: Any,
) -> Node:  # fmt: skip
    """permute(kernel.attend(...)) = kernel.attend(..., result='bthd')"""
    return kernel.attend(q, k, v, start, count, bias, window, scale, softcap, ring, queries, "bthd")
