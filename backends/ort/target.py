"""What this backend can do, as plain values."""

from __future__ import annotations

import os
from typing import Any

from planish.ir.namespace import aten, planish
from planish.ir.target import Kernel, Machine, Target


def _power_of_two(group: int) -> bool:
    return group >= 16 and group & (group - 1) == 0


def linear_codes(
    x: Any, codes: Any, bits: Any, length: Any, scale: Any, zero: Any, group: Any, bias: Any
) -> Any:
    """Coded weights, grouped affine, decoded while multiplying (MatMulNBits)."""
    return aten.linear(x, planish.dequant(planish.unpack(codes, bits, length), scale, zero, group), bias)


def embedding_codes(codes: Any, bits: Any, length: Any, scale: Any, zero: Any, group: Any, ids: Any) -> Any:
    """Rows of a coded table, decoded when they are read (GatherBlockQuantized)."""
    return aten.embedding(planish.dequant(planish.unpack(codes, bits, length), scale, zero, group), ids)


def decode_codes(codes: Any, bits: Any, length: Any, scale: Any, zero: Any, group: Any) -> Any:
    """Coded values, decoded in each call (blocked DequantizeLinear)."""
    return planish.dequant(planish.unpack(codes, bits, length), scale, zero, group)


KERNELS = (
    Kernel(
        "linear_codes", linear_codes, "weights of 2 to 8 bits, groups with a power of two from 16 as a factor",
        when=lambda group, **_: group % 16 == 0,
    ),
    Kernel(
        "embedding_codes", embedding_codes, "tables of 2, 4 and 8 bits, groups of a power of two from 16",
        when=lambda bits, group, **_: bits in (2, 4, 8) and _power_of_two(group),
    ),
    Kernel("decode_codes", decode_codes, "any coded constant"),
)  # fmt: skip


def target() -> Target:
    """ONNX Runtime on the CPU of this machine; its speed is assumed until it is measured."""
    cores = os.cpu_count() or 1
    peak = {"f32": 60.0 * cores, "i8": 90.0 * cores}
    return Target("onnxruntime", "", Machine("cpu", cores, 12.0, peak, "assumed"), KERNELS)
