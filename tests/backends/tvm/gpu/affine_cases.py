"""Nodes ``kernel.linear_affine`` with random operands."""

from __future__ import annotations

from typing import Any

import torch

import planish.backends.tvm.kernels.affine
from planish.ir.kernel import kernel
from planish.ir.namespace import planish
from planish.ir.node import input_leaf
from planish.ir.types import TensorType, dim, dtype

M = dim("M", 0, 4096)


def affine_case(
    rows: Any, length: int, outputs: int, *, bits: int = 4, group: int = 64, zero: str = "packed", scale: str = "f16",
    bias: bool = False, norm: bool = False, residual: bool = False, rank: int = 0, activation_bits: int = 32,
    activation: str = "none", gated: bool = False, seed: int = 0,
) -> tuple[Any, Any]:  # fmt: skip
    """A node over leaves, and a function that gives its operands for a number of rows."""
    g = torch.Generator().manual_seed(seed)
    groups = -(-length // group)
    codes = torch.randint(0, 2**bits, (outputs, length), generator=g, dtype=torch.uint8)
    parts: dict[str, Any] = {"panels": planish.panel(codes, bits)}
    kind = {"f16": torch.float16, "f32": torch.float32}[scale]
    steps = (torch.rand(outputs, groups, generator=g) + 0.5) / 2**bits
    parts["scale"] = planish.tile_rows(steps.to(kind))
    if zero == "packed":
        zeros = torch.randint(0, 2**bits, (outputs, groups), generator=g, dtype=torch.uint8)
        parts["zero"] = planish.tile_rows(zeros if bits == 8 else packed(zeros, bits))
    elif zero == "float":
        parts["zero"] = planish.tile_rows((torch.rand(outputs, groups, generator=g) * 2**bits).half())
    width = outputs // 2 if gated else outputs
    parts["bias"] = torch.randn(outputs, generator=g) if bias else None
    parts["norm"] = torch.rand(length, generator=g) + 0.5 if norm else None
    parts["left"] = planish.tile_rows(torch.randn(outputs, rank, generator=g)) if rank else None
    parts["right"] = torch.randn(rank, length, generator=g) / length**0.5 if rank else None

    def leaf(name: str) -> Any:
        value = parts.get(name)
        return None if value is None else input_leaf(name, type_of(value))

    f32 = dtype("f32")
    node = kernel.linear_affine(
        input_leaf("x", TensorType(f32, (1, rows, length))), leaf("panels"), leaf("scale"),
        leaf("zero") if zero != "number" else 2.0 ** (bits - 1), leaf("bias"), leaf("norm"),
        input_leaf("residual", TensorType(f32, (1, rows, width))) if residual else None, leaf("left"), leaf("right"),
        bits, group, outputs, 1e-5, activation_bits, activation, gated,
    )  # fmt: skip

    def operands(count: int) -> list[torch.Tensor]:
        made = {"x": torch.randn(1, count, length, generator=g), **parts}
        made["residual"] = torch.randn(1, count, width, generator=g) if residual else None
        order = ("x", "panels", "scale", "zero", "bias", "norm", "residual", "left", "right")
        return [made[n] for n in order if made.get(n) is not None]

    return node, operands


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes as a little-endian stream of bits along the bytes of each row."""
    stream = (codes[..., None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    stream = stream.flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (stream.int() << torch.arange(8)).sum(-1).to(torch.uint8)


def type_of(value: torch.Tensor) -> TensorType:
    """The type of a tensor in the IR."""
    names = {
        torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int8: "i8",
        torch.int64: "i64", torch.bool: "bool",
    }  # fmt: skip
    return TensorType(dtype(names[value.dtype]), tuple(value.shape))
