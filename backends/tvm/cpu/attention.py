"""Attention on a CPU: what its two kernels share, and which of them builds a node."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu import math as elementary
from planish.backends.tvm.cpu.flat import Flat, product, real
from planish.backends.tvm.cpu.variant import DEFAULT, Variant
from planish.backends.tvm.isa import Isa
from planish.ir.node import Node

LOWEST = -3.4028234663852886e38
"""The lowest f32: stands for minus infinity where a difference to it is taken; masks use it too."""


@dataclass(frozen=True)
class Heads:
    """A tensor of heads: element ``d`` of position ``t`` of head ``h`` of sequence ``b``, in one of two orders."""

    data: Flat
    order: str

    @property
    def sizes(self) -> tuple[Any, Any, Any, Any]:
        """Sequences, heads, positions, channels."""
        batch, a, b, width = self.data.sizes
        return (batch, b, a, width) if self.order == "bthd" else (batch, a, b, width)

    def at(self, b: Any, h: Any, t: Any) -> Any:
        """Index of the first channel."""
        _, heads, positions, width = self.sizes
        if self.order == "bthd":
            return ((b * positions + t) * heads + h) * width
        return ((b * heads + h) * positions + t) * width


@dataclass(frozen=True)
class Mask:
    """A mask ``[B, H, T, S]`` whose axes may be 1 or missing."""

    data: Flat

    @property
    def sizes(self) -> tuple[Any, ...]:
        """Four sizes."""
        return (1,) * (4 - len(self.data.sizes)) + tuple(self.data.sizes)

    @property
    def of_rows(self) -> bool:
        """True if heads or queries have masks of their own."""
        return any(not _is_one(s) for s in self.sizes[1:3])

    @property
    def of_keys(self) -> bool:
        """True if keys have masks of their own."""
        return not _is_one(self.sizes[3])

    def at(self, b: Any, h: Any, t: Any) -> Any:
        """Index of the first key."""
        index: Any = 0
        for i, (size, place) in enumerate(zip(self.sizes[:3], (b, h, t), strict=True)):
            if not _is_one(size):
                index = index + place * product(self.sizes[i + 1 :])
        return index

    def added(self, index: Any) -> Any:
        """What is added to one score: minus infinity where a bool mask does not allow."""
        value = self.data.load(index)
        if self.data.data.dtype == "bool":
            return tirx.Select(value, real(0.0), real(-math.inf))
        return value


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


@dataclass(frozen=True)
class Scores:
    """How scores are made of products: the scale, and what follows it."""

    scale: float
    softcap: float | None

    def finished(self, scaled: Any) -> Any:
        """Scores of products that have the scale already."""
        if self.softcap is None:
            return scaled
        inner = scaled * elementary.constant(1.0 / self.softcap, scaled)
        return elementary.tanh(inner) * elementary.constant(self.softcap, scaled)


def scores_of(scale: float | None, softcap: float | None, width: int) -> Scores:
    """Scores with the default scale ``1/sqrt(width)``."""
    return Scores(1.0 / math.sqrt(width) if scale is None else scale, softcap)


def finite(largest: Any) -> Any:
    """The largest scores, or a finite number where none was seen."""
    return elementary.larger(largest, LOWEST)


def maximum(a: Any, b: Any) -> Any:
    """The larger, lane by lane."""
    return tirx.Select(a > b, a, b)


def inverse(total: Any, largest: Any) -> Any:
    """``1 / total``; 0 for rows that see nothing."""
    zero = elementary.constant(0.0, total)
    seen = largest > elementary.constant(-math.inf, total)
    return tirx.Select(seen, elementary.constant(1.0, total) / total, zero)


def counted(count: Any, body: Callable[[Any], None]) -> None:
    """``body(i)`` for every i below ``count``, one by one."""
    with T.serial(0, count) as i:
        body(i)


def variants(node: Node, isa: Isa) -> tuple[Variant, ...]:
    """What the two kernels can be built as."""
    from planish.backends.tvm.cpu import attention_decode, attention_prefill

    module = attention_decode if node.op == "kernel.attention_step" else attention_prefill
    return module.variants(node, isa)


def build(node: Node, isa: Isa, chosen: Variant = DEFAULT) -> Any:
    """The PrimFunc of ``kernel.attention`` or ``kernel.attention_step``."""
    from planish.backends.tvm.cpu.attention_decode import decode
    from planish.backends.tvm.cpu.attention_prefill import prefill

    return (decode if node.op == "kernel.attention_step" else prefill)(node, isa, chosen)
