"""Runs a kernel node through its GPU builder on OpenCL, and through its meaning in eager torch."""

from __future__ import annotations

from typing import Any

import torch

from planish.ir.kernel import KERNELS
from planish.ir.node import Node

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def meaning(node: Node, operands: list[torch.Tensor]) -> torch.Tensor:
    """What the node means for these operands."""
    given = iter(operands)
    args = [next(given) if isinstance(a, Node) else a for a in node.args]
    return KERNELS[node.op.removeprefix("kernel.")].meaning(*args)


def compare(compiled: Any, node: Node, operands: list[torch.Tensor], tolerance: float) -> None:
    """Assert that the compiled function gives what the node means, relative to the largest value."""
    want = meaning(node, operands)
    have = torch.full(want.shape, float("nan"), dtype=TORCH[node.dtype.name])
    compiled(*[t.contiguous() for t in operands], have)
    if not want.numel():
        return
    want, have = want.double(), have.double()
    error = (have - want).abs().max() / want.abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"
