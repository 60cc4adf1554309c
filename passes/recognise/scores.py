"""Attention that is written out: ``softmax(scale * q @ k.T + mask) @ v`` in its spellings, read from the outside in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import equal, product

ABSORBS = -1e9
"""A score plus this number, or less, is this number: adding it is the same as putting it in the place of the score."""


@dataclass(frozen=True)
class Scores:
    """Scores of queries against keys: ``softcap * tanh(scale * q @ k.T / softcap) + mask``."""

    q: Node
    k: Node
    scale: float = 1.0
    softcap: float | None = None
    mask: Node | None = None


def read_attention(node: Node) -> tuple[Scores, Node] | None:
    """Scores and values if the node is ``softmax(...) @ v``, else None."""
    if node.op != "aten.matmul":
        return None
    weights, v = node.args
    if weights.op == "aten.to" and weights.args[0].op == "aten.softmax":
        weights = weights.args[0]
    if weights.op == "aten.view" and _merges(weights.args[0], weights) and weights.rank == v.rank:
        weights = weights.args[0]
        v = apart(v, weights)
    if (
        weights.op != "aten.softmax"
        or weights.args[1] != weights.rank - 1
        or weights.rank < 2
        or v.rank != weights.rank
    ):
        return None
    scores = read_scores(weights.args[0])
    return None if scores is None or scores.q.dtype is not v.dtype else (scores, v)


def read_scores(node: Node) -> Scores | None:
    """Scores that end in this node, or None."""
    if node.op == "aten.matmul":
        return _product(node)
    if node.op == "aten.to" and node.dtype.is_float and node.args[0].dtype.is_float:
        return read_scores(node.args[0])
    if node.op in ("aten.mul", "aten.div"):
        return _scaled(node)
    if node.op == "aten.add":
        return _masked(node)
    if node.op == "aten.where":
        return _chosen(node)
    if node.op == "aten.view" and _merges(node, node.args[0]):
        below = read_scores(node.args[0])
        if below is None or (below.mask is not None and below.mask.rank != 3):
            return None
        mask = None if below.mask is None else apart(below.mask, node)
        return replace(below, q=apart(below.q, node), k=apart(below.k, node), mask=mask)
    return None


def _merges(wide: Node, merged: Node) -> bool:
    """True for ``[B, H, S, T]`` and ``[B*H, S, T]``."""
    same = wide.rank == 4 and merged.rank == 3 and wide.shape[2:] == merged.shape[1:]
    return same and equal(product(wide.shape[:2]), merged.shape[0])


def apart(node: Node, wide: Node) -> Node:
    """``[B*H, S, T]`` with batch and heads apart, as those of ``wide [B, H, ...]``; one row stays one for all."""
    lead = [1, 1] if node.shape[0] == 1 else wide.shape[:2]
    return aten.view(node, [*lead, *node.shape[1:]])


def _product(node: Node) -> Scores | None:
    q, turned = node.args
    if q.rank < 3 or turned.rank != q.rank:
        return None
    scale = 1.0
    q, factor = _factor(q)
    scale *= factor
    turned, factor = _factor(turned)
    scale *= factor
    order = list(range(turned.rank))
    order[-1], order[-2] = order[-2], order[-1]
    if turned.op == "aten.permute":
        inverse = tuple(turned.args[1][i] for i in order)
        k = (
            turned.args[0]
            if inverse == tuple(range(turned.rank))
            else aten.permute(turned.args[0], list(inverse))
        )
    else:
        k = aten.permute(turned, order)
    k, factor = _factor(k)
    return Scores(q, k, scale * factor)


def _factor(node: Node) -> tuple[Node, float]:
    """A node without its outer scaling by a number, and the number."""
    if node.op == "aten.mul":
        a, b = node.args
        if isinstance(b, (int, float)) and isinstance(a, Node):
            return a, float(b)
        if isinstance(a, (int, float)) and isinstance(b, Node):
            return b, float(a)
    if node.op == "aten.div" and isinstance(node.args[1], (int, float)) and isinstance(node.args[0], Node):
        return node.args[0], 1.0 / float(node.args[1])
    return node, 1.0


def _scaled(node: Node) -> Scores | None:
    inner, factor = _factor(node)
    if inner is node:
        return None
    if inner.op == "aten.tanh":
        below = read_scores(inner.args[0])
        if below is None or below.mask is not None or below.softcap is not None:
            return None
        return replace(below, scale=below.scale * factor, softcap=factor)
    below = read_scores(inner)
    if below is None or below.mask is not None or below.softcap is not None:
        return None
    return replace(below, scale=below.scale * factor)


def _masked(node: Node) -> Scores | None:
    a, b = node.args
    if not isinstance(a, Node) or not isinstance(b, Node):
        return None
    for inner, mask in ((a, b), (b, a)):
        if inner.shape != node.shape or mask.rank < 2:
            continue
        below = read_scores(inner)
        if below is not None and (below.mask is None or below.mask.dtype.is_float):
            joint = mask if below.mask is None else aten.add(below.mask, mask)
            return replace(below, mask=joint)
    return None


def _chosen(node: Node) -> Scores | None:
    condition, a, b = node.args
    for inner, fill, allow in ((a, b, True), (b, a, False)):
        value = fill.args[1] if isinstance(fill, Node) and fill.op == "aten.full" else fill
        if not isinstance(inner, Node) or not isinstance(value, (int, float)) or value > ABSORBS:
            continue
        below = read_scores(inner)
        if below is None or condition.rank < 2:
            continue
        seen = condition if allow else aten.logical_not(condition)
        if math.isfinite(value):
            # Stays a number that is added: where a row hides every key, attention is uniform, not zero.
            seen = aten.where(seen, aten.full([], 0.0, inner.dtype), float(value))
        if below.mask is None:
            return replace(below, mask=seen)
        if below.mask.dtype is seen.dtype:
            joint = aten.add if seen.dtype.is_float else aten.bitwise_and
            return replace(below, mask=joint(below.mask, seen))
    return None


def ungrouped(node: Node, heads: Any) -> Node | None:
    """The tensor of key or value heads that ``repeat_kv`` repeated to ``heads``, or None."""
    if node.op != "aten.view" or node.rank < 3 or not equal(node.shape[-3], heads):
        return None
    wide = node.args[0]
    if wide.op != "aten.expand" or wide.rank != node.rank + 1:
        return None
    narrow = wide.args[0]
    if narrow.rank != wide.rank or not equal(narrow.shape[-3], 1) or equal(wide.shape[-3], 1):
        return None
    same = wide.shape[:-3] == narrow.shape[:-3] and wide.shape[-2:] == narrow.shape[-2:] == node.shape[-2:]
    if not same or wide.shape[:-4] != node.shape[:-3]:
        return None
    target = [*narrow.shape[:-3], *narrow.shape[-2:]]
    if narrow.op == "aten.view" and narrow.args[0].shape == tuple(target):
        source: Node = narrow.args[0]
        return source
    return aten.view(narrow, target)
