"""Attention in any spelling becomes ``planish.attention``: grouped heads, and masks by their meaning.

Sources: Attention Is All You Need, arXiv 1706.03762; GQA, arXiv 2305.13245; sliding windows as in Longformer,
arXiv 2004.05150; soft capping of scores as in Gemma 2, arXiv 2408.00118.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program
from planish.ir.rewrite import Log
from planish.ir.rule import Decline, Kind, rule
from planish.ir.types import equal, product
from planish.ir.weights import Weights
from planish.passes.base import Pass, rewrite_all
from planish.passes.recognise.mask import Meaning, is_position_only, terms, understand
from planish.passes.recognise.scores import read_attention, ungrouped

TOLERANCE = 1e-5
"""Softmax and products in another order, relative to the largest value."""


@rule(
    lambda q, k, v, mask, causal, scale: aten.scaled_dot_product_attention(q, k, v, mask, causal, scale),
    kind="close",
    tolerance=TOLERANCE,
    example={
        "q": "f32[B, 4, T, 16]",
        "k": "f32[B, 4, T, 16]",
        "v": "f32[B, 4, T, 16]",
        "mask": "bool[T, T]",
        "causal": False,
        "scale": 0.25,
    },
)
def find_attention(q: Node, k: Node, v: Node, mask: Node | None, causal: bool, scale: float | None) -> Node:
    """scaled_dot_product_attention(q, k, v, mask) = attention(q, k, v, mask)"""
    if q.rank < 3:
        raise Decline("there is no axis of heads")
    if causal and not equal(q.shape[-2], k.shape[-2]):
        raise Decline("a causal mask over unequal lengths is aligned to the start")
    return planish.attention(
        q, k, v, mask, causal, None, 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    )


@rule(
    lambda q, k, v, mask, causal, window, scale, softcap: planish.attention(
        q, k, v, mask, causal, window, scale, softcap
    ),
    example={
        "q": "f32[B, 4, T, 16]",
        "k": lambda: _repeated_heads(),
        "v": lambda: _repeated_heads(),
        "mask": None,
        "causal": True,
        "window": None,
        "scale": 0.25,
        "softcap": None,
    },
)
def group_heads(
    q: Node, k: Node, v: Node, mask: Node | None, causal: bool, window: int | None, scale: float, softcap: float | None
) -> Node:  # fmt: skip
    """attention(q, repeat(k), repeat(v)) = attention(q, k, v): grouped heads are not repeated"""
    short_k, short_v = ungrouped(k, q.shape[-3]), ungrouped(v, q.shape[-3])
    if short_k is None or short_v is None or short_k.shape[-3] != short_v.shape[-3]:
        raise Decline("k and v are not repeated along their heads")
    return planish.attention(q, short_k, short_v, mask, causal, window, scale, softcap)


def _repeated_heads() -> Node:
    from planish.ir.node import input_leaf
    from planish.ir.parser import parse_type

    few = input_leaf("few", parse_type("f32[B, 2, T, 16]"))
    batch, _, length, _ = few.shape
    wide = aten.expand(aten.view(few, [batch, 2, 1, length, 16]), [batch, 2, 2, length, 16])
    return aten.view(wide, [batch, 4, length, 16])


def join_written_out(node: Node) -> Node | None:
    """``softmax(scale * q @ k.T + mask) @ v = attention(q, k, v, mask)``, in its spellings."""
    found = read_attention(node)
    if found is None:
        return None
    s, v = found
    if len({s.q.rank, s.k.rank, v.rank}) != 1 or s.q.rank < 3 or not equal(s.k.shape[-3], v.shape[-3]):
        return None
    if not equal(s.q.shape[-3], s.k.shape[-3]) or s.q.dtype is not s.k.dtype:
        return None
    if s.mask is not None and s.mask.dtype.name != "bool" and s.mask.dtype is not s.q.dtype:
        return None
    made = planish.attention(s.q, s.k, v, s.mask, False, None, s.scale, s.softcap)
    if made.rank == 4 and node.rank == 3 and equal(product(made.shape[:2]), node.shape[0]):
        made = aten.view(made, node.shape)
    return made if made.type == node.type else None


@dataclass
class MaskReader:
    """Rewrites masks by their meaning; remembers what each mask means, with the sizes that showed it."""

    weights: Weights
    found: dict[tuple[Node, Any, Any], Meaning | None] = field(default_factory=dict)

    def meaning(self, mask: Node, queries: Any, keys: Any) -> Meaning | None:
        """The meaning of a position-only mask."""
        key = (mask, queries, keys)
        if key not in self.found:
            self.found[key] = (
                understand(mask, queries, keys, self.weights) if is_position_only(mask) else None
            )
        return self.found[key]

    def __call__(self, node: Node) -> Node | None:
        """``attention(q, k, v, mask) = attention(q, k, v, causal, window)`` where the mask says just that."""
        if node.op != "planish.attention" or node.args[3] is None:
            return None
        q, k, v, mask, causal, window, scale, softcap = node.args
        queries, keys = q.shape[-2], k.shape[-2]
        rest: list[Node] = []
        changed = False
        for term in terms(mask):
            meaning = self.meaning(term, queries, keys)
            if meaning is None or (not meaning.hides_nothing and not equal(queries, keys)):
                rest.append(term)
                continue
            changed = True
            causal = causal or meaning.causal
            window = meaning.window if window is None else min(window, meaning.window or window)
        if not changed:
            return self._whole(node)
        joined = None
        for term in rest:
            joint: Callable[..., Node] = aten.bitwise_and if term.dtype.name == "bool" else aten.add
            joined = term if joined is None else joint(joined, term)
        return planish.attention(q, k, v, joined, causal, window, scale, softcap)

    def _whole(self, node: Node) -> Node | None:
        """The mask as a whole, where its parts say nothing."""
        q, k, v, mask, causal, window, scale, softcap = node.args
        if len(terms(mask)) < 2:
            return None
        meaning = self.meaning(mask, q.shape[-2], k.shape[-2])
        if meaning is None or causal or window is not None:
            return None
        return planish.attention(q, k, v, None, meaning.causal, meaning.window, scale, softcap)


@dataclass(frozen=True)
class FindAttention(Pass):
    """Attention in any spelling becomes one operation: grouped heads, causal, sliding-window and full masks."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Apply the rules until none fires; evidence for masks is noted in the log."""
        reader = MaskReader(weights)
        rules = (
            ("join-written-out", join_written_out), find_attention, group_heads, ("read-mask", reader),
        )  # fmt: skip
        program = rewrite_all(program, rules, log)
        for meaning in dict.fromkeys(m for m in reader.found.values() if m is not None):
            log.notes.append(f"find-attention: a mask is {meaning}")
        return program
