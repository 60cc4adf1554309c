"""Decode operations: they turn stored codes back into values."""

from __future__ import annotations

from planish.ir.dialect import define
from planish.ir.shapes import Mismatch, Operand, broadcast, need, same
from planish.ir.types import DType, Size, TensorType, equal, f32, floor_div, size, u8


def packed_bytes(length: Size, bits: int) -> Size:
    """Bytes that hold ``length`` codes of ``bits`` bits, little end first."""
    return floor_div(size(length * bits + 7), 8)


def _unpack(codes: TensorType, bits: int, length: Size) -> TensorType:
    need(codes.dtype is u8, f"packed codes are u8, got {codes.dtype}")
    need(1 <= bits <= 8, f"bits must be 1 to 8, got {bits}")
    same(codes.shape[-1], packed_bytes(length, bits), f"bytes for {length} codes of {bits} bits")
    return TensorType(u8, (*codes.shape[:-1], length))


def _dequant(
    codes: TensorType, scale: TensorType, zero: Operand, group: int, dtype: DType = f32
) -> TensorType:
    need(codes.dtype.is_integer, f"codes are integers, got {codes.dtype}")
    need(scale.dtype.is_float and dtype.is_float, "scale and result are floating point")
    need(group >= 1, f"group must be positive, got {group}")
    groups = floor_div(size(codes.shape[-1] + group - 1), group)
    want = (*codes.shape[:-1], groups)
    for what, part in (("scale", scale), ("zero", zero)):
        if isinstance(part, TensorType):
            need(part.rank == codes.rank, f"{what} needs {codes.rank} axes, got {part.rank}")
            if not equal(part.shape[-1], groups):
                raise Mismatch(f"{what} has {part.shape[-1]} groups, {groups} are needed")
            broadcast(part.shape, want)
    return TensorType(dtype, codes.shape)


define(
    "planish.unpack", "codes, bits:int, length:size", _unpack, torch="custom:unpack",
    doc="u8[..., ceil(length*bits/8)] -> u8[..., length], codes little end first",
)  # fmt: skip
define(
    "planish.dequant", "codes, scale, zero:operand, group:int, dtype:dtype=f32", _dequant, torch="custom:dequant",
    doc="scale*(codes - zero), one scale and zero per `group` codes of the last axis",
)  # fmt: skip
