"""What a node ``kernel.linear_affine`` asks for, as plain values that the emitters read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from planish.ir.node import Node
from planish.ir.ops.layout import TILE, panel_planes
from planish.ir.types import Size

NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8"}
"""Element types of the IR by their names in TIR."""

BLOCK = 32
"""Codes of a row that planes of every width divide: a row is padded to a multiple of them."""


@dataclass(frozen=True)
class Plane:
    """One plane of a panel: ``width`` bits of every code, beginning at byte ``offset`` of the panel.

    A 64-byte vector of the plane holds, for 16 rows, 4 bytes of ``8 // width`` codes each; the bits of the plane are
    the bits ``below .. below + width`` of the code.
    """

    width: int
    offset: int
    below: int

    @property
    def per(self) -> int:
        """Codes in a byte."""
        return 8 // self.width


@dataclass(frozen=True)
class AffineSpec:
    """Sizes and options of a linear layer on affine codes.

    ``rows`` is the number of rows of x (possibly symbolic), ``length`` K, ``outputs`` N, ``group`` the codes that
    share a scale (at most ``padded``), ``zero`` how zeros are stored, ``rank`` that of the low-rank side (0: none).
    """

    rows: Size
    length: int
    outputs: int
    bits: int
    group: int
    scale: str
    zero: Literal["number", "packed", "float"]
    zero_number: float
    zero_bytes: int
    zero_type: str
    bias: bool
    norm: bool
    residual: bool
    rank: int
    eps: float
    activation_bits: int
    activation: str
    gated: bool

    @property
    def padded(self) -> int:
        """K rounded up to a multiple of 32."""
        return -(-self.length // BLOCK) * BLOCK

    @property
    def tiles(self) -> int:
        """Panels of 16 rows."""
        return -(-self.outputs // TILE)

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.length // self.group)

    @property
    def tail(self) -> int:
        """Padded codes of the last group; those of the others are ``group``."""
        return self.padded - (self.groups - 1) * self.group

    @property
    def width(self) -> int:
        """Elements of a row of the result."""
        return self.outputs // 2 if self.gated else self.outputs

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes of a panel in the order in which they are stored."""
        made, offset, below = [], 0, self.bits
        for width in panel_planes(self.bits):
            below -= width
            made.append(Plane(width, offset, below))
            offset += self.padded * width * TILE // 8
        return tuple(made)

    @property
    def panel_bytes(self) -> int:
        """Bytes of a panel."""
        return self.padded * self.bits * TILE // 8

    @property
    def weight_bytes(self) -> int:
        """Bytes of all codes."""
        return self.tiles * self.panel_bytes


def affine_spec(node: Node) -> AffineSpec:
    """The description of a node ``kernel.linear_affine``."""
    (
        x,
        panels,
        scale,
        zero,
        bias,
        norm,
        residual,
        left,
        right,
        bits,
        group,
        rows,
        eps,
        kind,
        activation,
        gated,
    ) = node.args
    del panels, right
    stored = isinstance(zero, Node)
    length = int(x.shape[-1])
    packed = stored and zero.dtype.name == "u8"
    return AffineSpec(
        rows=prod(x.shape[:-1]),
        length=length,
        outputs=rows,
        bits=bits,
        group=min(group, -(-length // BLOCK) * BLOCK),
        scale=NAMES[scale.dtype.name],
        zero=("packed" if packed else "float") if stored else "number",
        zero_number=0.0 if stored else float(zero),
        zero_bytes=int(zero.shape[1]) if packed else 0,
        zero_type=NAMES[zero.dtype.name] if stored else "",
        bias=bias is not None,
        norm=norm is not None,
        residual=residual is not None,
        rank=0 if left is None else int(left.shape[1]),
        eps=eps,
        activation_bits=kind,
        activation=activation,
        gated=gated,
    )
