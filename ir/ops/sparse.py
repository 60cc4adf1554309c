"""Decoding of weights of which each few neighbours keep some: N:M sparsity."""

from __future__ import annotations

from planish.ir.dialect import define
from planish.ir.ops.quantized import packed_bytes
from planish.ir.shapes import need, same
from planish.ir.types import TensorType, u8

BLOCKS = (2, 4, 8)
"""Inputs of which a block may consist."""


def position_bits(m: int) -> int:
    """Bits of a position in a block of ``m`` inputs."""
    return m.bit_length() - 1


def kept(length: int, n: int, m: int) -> int:
    """Values of a row of ``length`` inputs: ``n`` for each block of ``m``, the last of which may be shorter."""
    return -(-length // m) * n


def _expand_nm(values: TensorType, positions: TensorType, n: int, m: int, length: int) -> TensorType:
    need(values.rank >= 1 and values.dtype.is_float, f"values are floating point with an axis, got {values}")
    need(positions.dtype is u8, f"packed positions are u8, got {positions.dtype}")
    need(m in BLOCKS, f"m must be 2, 4 or 8, got {m}")
    need(1 <= n < m, f"n must be 1 to {m - 1}, got {n}")
    need(length >= 0, f"length must not be negative, got {length}")
    need(positions.rank == values.rank, f"positions need {values.rank} axes, got {positions.rank}")
    count = kept(length, n, m)
    same(values.shape[-1], count, f"values for {length} inputs, {n} of {m},")
    same(positions.shape[-1], packed_bytes(count, position_bits(m)), f"bytes for {count} positions")
    for axis, (a, b) in enumerate(zip(values.shape[:-1], positions.shape[:-1], strict=True)):
        same(a, b, f"sizes of values and positions at axis {axis}")
    return TensorType(values.dtype, (*values.shape[:-1], length))


define(
    "planish.expand_nm", "values, positions, n:int, m:int, length:int", _expand_nm, torch="custom:expand_nm",
    doc="values[..., ceil(length/m)*n], positions u8 (log2(m) bits each, little end first) -> [..., length]: zeros but"
    " for n values at their positions in each block of m; values at equal positions add up, those beyond length are"
    " dropped",
)  # fmt: skip
