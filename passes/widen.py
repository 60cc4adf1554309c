"""Operations of models in f16 and bf16 for which there are kernels in f32: computed in f32, and rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from planish.ir.namespace import aten, planish
from planish.ir.node import Node, Program
from planish.ir.rewrite import Log
from planish.ir.rule import Decline, Kind, rule
from planish.ir.types import DType, f16, f32
from planish.ir.weights import Weights
from planish.passes.base import Pass, rewrite_all

_CODED = {"c": "u8[40, 32]", "s": "f16[40, 2]", "z": 8, "g": 16}
"""The holes that both rules share, in their examples."""


def _narrow(kind: DType) -> None:
    if not kind.is_float or kind.bits >= 32:
        raise Decline("it is computed in f32 already")


def _wide(value: Any) -> Any:
    """A tensor of floating point in f32; other values stay."""
    return aten.to(value, f32) if isinstance(value, Node) and value.dtype.is_float else value


@rule(
    lambda x, c, s, z, g, kind, b: aten.linear(x, planish.dequant(c, s, z, g, kind), b), kind="close", tolerance=1e-2,
    example={"x": "f16[3, 32]", "b": "f16[40]", "kind": f16, **_CODED},
)  # fmt: skip
def widen_linear(x: Node, c: Node, s: Node, z: Any, g: int, kind: DType, b: Any) -> Node:
    """linear(x, dequant(C, kind), b) = to(linear(to(x, f32), dequant(C, f32), to(b, f32)), kind)"""
    _narrow(kind)
    return aten.to(aten.linear(_wide(x), planish.dequant(c, s, z, g), _wide(b)), kind)


@rule(
    lambda c, s, z, g, kind, ids: aten.embedding(planish.dequant(c, s, z, g, kind), ids), kind="close", tolerance=1e-2,
    example={"ids": "i64[2, 3]", "kind": f16, **_CODED},
)  # fmt: skip
def widen_embedding(c: Node, s: Node, z: Any, g: int, kind: DType, ids: Node) -> Node:
    """embedding(dequant(C, kind), ids) = to(embedding(dequant(C, f32), ids), kind)"""
    _narrow(kind)
    return aten.to(aten.embedding(planish.dequant(c, s, z, g), ids), kind)


_HEADS = {"q": "f16[2, 6, 5, 16]", "k": "f16[2, 2, 7, 16]", "v": "f16[2, 2, 7, 16]"}


@rule(
    lambda q, k, v, mask, causal, window, scale, softcap: planish.attention(
        q, k, v, mask, causal, window, scale, softcap
    ),
    kind="close", tolerance=1e-2,
    example={"mask": None, "causal": True, "window": None, "scale": 0.25, "softcap": None, **_HEADS},
)  # fmt: skip
def widen_attention(
    q: Node, k: Node, v: Node, mask: Any, causal: bool, window: Any, scale: Any, softcap: Any
) -> Node:
    """attention(q, k, v) = to(attention(to(q, f32), to(k, f32), to(v, f32)), kind)"""
    _narrow(q.dtype)
    wide = (_wide(each) for each in (q, k, v, mask))
    return aten.to(planish.attention(*wide, causal, window, scale, softcap), q.dtype)


@rule(
    lambda x, cos, sin, interleaved: planish.rope(x, cos, sin, interleaved), kind="close", tolerance=1e-2,
    example={"x": "f16[2, 3, 5, 16]", "cos": "f16[1, 1, 5, 8]", "sin": "f16[1, 1, 5, 8]", "interleaved": False},
)  # fmt: skip
def widen_rope(x: Node, cos: Node, sin: Node, interleaved: bool) -> Node:
    """rope(x, cos, sin) = to(rope(to(x, f32), to(cos, f32), to(sin, f32)), kind)"""
    _narrow(x.dtype)
    return aten.to(planish.rope(_wide(x), _wide(cos), _wide(sin), interleaved), x.dtype)


@dataclass(frozen=True)
class Widen(Pass):
    """Products with coded weights, rows of coded tables, attention and rotary embedding are computed in f32."""

    kind: ClassVar[Kind] = "close"

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Apply the rules until none fires."""
        return rewrite_all(program, (widen_linear, widen_embedding, widen_attention, widen_rope), log)
