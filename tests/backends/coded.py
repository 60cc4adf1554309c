"""Programs with coded weights, for tests of backends."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from planish.ir.node import Program
from planish.ir.parser import parse
from planish.ir.weights import Weights

Use = Literal["linear", "embedding", "tied", "mul"]
Zero = float | Literal["codes", "float"]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes packed along the last axis, little end first."""
    flat = np.unpackbits(codes.numpy()[..., None], axis=-1, bitorder="little")[..., :bits]
    return torch.from_numpy(np.packbits(flat.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little"))


def coded_program(
    use: Use, rows: int, length: int, bits: int, group: int, zero: Zero, *, scale: str = "f16"
) -> tuple[Program, Weights]:
    """A program that multiplies by, looks up in, or reads a matrix of codes; its weights are random."""
    groups = -(-length // group)
    random = torch.Generator().manual_seed(bits * 1000 + group)
    weights = Weights()
    lines = []

    def constant(name: str, value: torch.Tensor) -> str:
        kind = weights.add(f"w#{name}", value)
        lines.append(f"    {name}: {kind} = const('w#{name}')")
        return name

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2**bits, shape, generator=random).to(torch.uint8)

    def codes(name: str, count: int) -> str:
        stored = constant(name, pack(integers(rows, count), bits))
        if bits == 8:
            return stored
        lines.append(f"    {name}_u = planish.unpack({name}, {bits}, {count})")
        return f"{name}_u"

    value = codes("codes", length)
    steps = torch.rand(rows, groups, generator=random) * 0.1 + 0.01
    constant("scale", steps.half() if scale == "f16" else steps)
    point: Any = zero
    if zero == "codes":
        point = codes("zero", groups)
    elif zero == "float":
        point = constant("zero", (torch.rand(rows, groups, generator=random) * 2**bits).half())
    lines.append(f"    w = planish.dequant({value}, scale, {point}, {group})")
    if use == "linear":
        given = f"x: f32[1, T, {length}]"
        constant("bias", torch.randn(rows, generator=random))
        lines.append("    y = aten.linear(x, w, bias)")
    elif use == "mul":
        given = f"x: f32[T, {rows}, {length}]"
        lines.append("    y = aten.mul(x, w)")
    else:
        given = "x: i64[1, T]"
        lines.append("    e = aten.embedding(w, x)")
        lines.append("    y = aten.linear(e, w)" if use == "tied" else "    y = aten.mul(e, 1.0)")
    body = "\n".join(lines)
    return parse(f"T = dim(1, 1024)\ndef main({given}):\n{body}\n    return y\n"), weights


def input_for(program: Program, count: int, rows: int) -> torch.Tensor:
    """A random input with ``count`` tokens."""
    leaf = program.inputs[0]
    shape = [s if isinstance(s, int) else count for s in leaf.shape]
    random = torch.Generator().manual_seed(count)
    if leaf.dtype.is_float:
        return torch.randn(shape, generator=random)
    return torch.randint(0, rows, shape, generator=random)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The relative error in the Euclidean norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())
