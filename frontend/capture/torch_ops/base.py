"""The registry of ATen operators and the helpers that their functions share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy
import torch

from planish.errors import CaptureError
from planish.ir.eager import TORCH_DTYPES
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import DType, Size, dtype, floor_div, product, size

HANDLERS: dict[str, Callable[..., Any]] = {}
"""ATen overload such as ``add.Tensor`` (or ``namespace::name.overload`` for others) -> function."""

NAMES = {v: k for k, v in TORCH_DTYPES.items()}


def handles(*overloads: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for ATen overloads."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for overload in overloads:
            HANDLERS[overload] = function
        return function

    return register


def to_dtype(kind: torch.dtype) -> DType:
    """Our element type for torch's; raises ``CaptureError`` PL110 for one that programs do not have."""
    if kind not in NAMES:
        raise CaptureError("PL110", f"element type {kind} is not supported")
    return dtype(NAMES[kind])


@lru_cache(maxsize=64)
def _sample(kind: str, scalar: bool) -> torch.Tensor:
    return torch.empty(() if scalar else (1,), dtype=TORCH_DTYPES[kind], device="meta")


def result_type(*operands: Any) -> DType:
    """The element type that torch's promotion gives to operands."""
    samples: list[Any] = []
    for operand in operands:
        if isinstance(operand, Node):
            samples.append(_sample(operand.dtype.name, operand.rank == 0))
        else:
            samples.append(1 if isinstance(operand, sympy.Expr) else operand)
    found = samples[0] if len(samples) == 1 else None
    if found is not None:
        return to_dtype(found.dtype)
    return to_dtype(_fold_types(samples))


def _fold_types(samples: list[Any]) -> torch.dtype:
    dims = [s for s in samples if isinstance(s, torch.Tensor) and s.dim()]
    zeros = [s for s in samples if isinstance(s, torch.Tensor) and not s.dim()]
    numbers = [s for s in samples if not isinstance(s, torch.Tensor)]
    ordered = dims + zeros + numbers
    kind = ordered[0]
    for other in ordered[1:]:
        joint = torch.result_type(kind, other)
        scalar = not any(isinstance(x, torch.Tensor) and x.dim() for x in (kind, other))
        kind = torch.empty(() if scalar else (1,), dtype=joint, device="meta")
    return kind.dtype if isinstance(kind, torch.Tensor) else torch.get_default_dtype()


def cast(x: Any, kind: DType) -> Any:
    """``x`` as another element type; numbers become numbers of that kind."""
    if isinstance(x, Node):
        return x if x.dtype is kind else aten.to(x, kind)
    if isinstance(x, sympy.Expr):
        return x
    if kind.name == "bool":
        return bool(x)
    if kind.is_float:
        return float(x)
    return int(x) if math.isfinite(x) else x


def promoted(*operands: Any) -> tuple[Any, ...]:
    """The operands cast to the element type of torch's promotion."""
    kind = result_type(*operands)
    return tuple(cast(o, kind) for o in operands)


def floating(x: Node) -> Node:
    """``x`` as floating point: integers and bool become f32, as torch's unary functions do."""
    return x if x.dtype.kind in ("float", "complex") else aten.to(x, dtype("f32"))


def tensor(value: Any, kind: DType | None = None) -> Node:
    """A node for a number or a node."""
    if isinstance(value, Node):
        return value
    if kind is None:
        kind = dtype("bool" if isinstance(value, bool) else "f32" if isinstance(value, float) else "i64")
    if isinstance(value, sympy.Expr):
        return aten.to(aten.view(aten.arange(value, size(value + 1)), []), kind)
    return aten.full([], value, kind)


def shape_with_wildcard(x: Node, shape: Any) -> list[Size]:
    """A target shape with its -1 resolved from the number of elements."""
    shape = [size(s) for s in shape]
    if -1 not in shape:
        return shape
    known = product(s for s in shape if not (isinstance(s, int) and s == -1))
    return [floor_div(x.tensor.numel, known) if isinstance(s, int) and s == -1 else s for s in shape]


def axis_of(dim: int, rank: int) -> int:
    """A non-negative axis."""
    return dim % max(rank, 1)


def reshaped(x: Node, shape: Any) -> Node:
    """``x`` with another shape; the same node if nothing changes."""
    target = tuple(size(s) for s in shape)
    return x if target == x.shape else aten.view(x, target)


def refuse(reason: str, code: str = "PL111") -> CaptureError:
    """The error for an operator whose arguments cannot be expressed."""
    return CaptureError(code, reason)
