"""The kernel of rotary position embedding."""

from __future__ import annotations

from typing import Any

from planish.backends.tvm.kernels.attention import heads_first, unswapped
from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import f32


def _rope(x: Any, cos: Any, sin: Any, order: str) -> Any:
    """planish.rope in halves, of heads in the order bthd or bhtd"""
    return heads_first(planish.rope(heads_first(x, order), cos, sin), order)


declare("rope", "x, cos, sin, order:str='bhtd'", _rope)


@rule(
    lambda x, cos, sin: planish.rope(x, cos, sin, False),
    kind="close",
    tolerance=1e-5,
    example={"x": "f32[2, 3, 5, 16]", "cos": "f32[1, 1, 5, 8]", "sin": "f32[1, 1, 5, 8]"},
)
def select_rope(x: Any, cos: Any, sin: Any) -> Node:
    """rope(x) = kernel.rope(x), which leaves permuted heads where they are"""
    if x.rank != 4 or x.dtype is not f32 or cos.rank > 4:
        raise Decline("the kernel is for f32 with four axes")
    if (
        not isinstance(x.shape[3], int)
        or not isinstance(x.shape[1], int)
        or not isinstance(cos.shape[-1], int)
    ):
        raise Decline("heads and head sizes must be known")
    plain, order = unswapped(x)
    made = kernel.rope(plain, cos, sin, order)
    return aten.permute(made, [0, 2, 1, 3]) if order == "bthd" else made
