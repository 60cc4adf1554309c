"""Layouts that kernels read: encodings of constants that lose nothing, and their decodings.

A kernel's argument is a constant in its own layout, and its meaning decodes that constant with these operations, so a
program with kernels still runs in eager torch, and the recoding happens once, when constants are folded.
"""

from __future__ import annotations

from planish.ir.dialect import define
from planish.ir.shapes import need, same
from planish.ir.types import Size, TensorType, floor_div, size, u8

TILE = 16
"""Rows of a matrix that are stored side by side unless a layout says otherwise."""


def panel_planes(bits: int) -> tuple[int, ...]:
    """Widths in bits of the planes of a panel, in the order in which they are stored: 6 bits are 4 and 2."""
    return (8,) if bits == 8 else tuple(width for width in (4, 2, 1) if bits & width)


def panel_bytes(length: int, bits: int, tile: int = TILE) -> int:
    """Bytes of a panel of ``tile`` rows of ``length`` codes: rows are padded to a multiple of 32 codes."""
    return -(-length // 32) * 32 * bits * tile // 8


def _ceil_div(a: Size, b: int) -> Size:
    return floor_div(size(a + b - 1), b)


def _tile_rows(x: TensorType, tile: int = TILE, depth: int = 1) -> TensorType:
    need(x.rank == 2, f"a matrix is needed, got {x.rank} axes")
    need(tile >= 1 and depth >= 1, "tile and depth must be positive")
    rows, length = x.shape
    return TensorType(x.dtype, (_ceil_div(rows, tile), _ceil_div(length, depth), tile * depth))


def _untile_rows(x: TensorType, rows: int, length: int, tile: int = TILE, depth: int = 1) -> TensorType:
    need(x.rank == 3, f"three axes are needed, got {x.rank}")
    for have, want, what in zip(
        x.shape,
        (-(-rows // tile), -(-length // depth), tile * depth),
        ("tiles", "steps", "lanes"),
        strict=True,
    ):
        same(have, want, what)
    return TensorType(x.dtype, (rows, length))


def _panel(codes: TensorType, bits: int, tile: int = TILE) -> TensorType:
    need(codes.rank == 2 and codes.dtype is u8, f"codes are u8 in two axes, got {codes}")
    need(1 <= bits <= 8, f"bits must be 1 to 8, got {bits}")
    rows, length = codes.shape
    need(isinstance(length, int), "the length of a row must be known")
    return TensorType(u8, (_ceil_div(rows, tile), panel_bytes(int(length), bits, tile)))


def _unpanel(panels: TensorType, bits: int, rows: int, length: int, tile: int = TILE) -> TensorType:
    need(panels.rank == 2 and panels.dtype is u8, f"panels are u8 in two axes, got {panels}")
    same(panels.shape[0], -(-rows // tile), "panels")
    same(panels.shape[1], panel_bytes(length, bits, tile), f"bytes of a panel of {bits} bits")
    return TensorType(u8, (rows, length))


def _fake_quantize(x: TensorType, bits: int, group: int) -> TensorType:
    need(x.rank >= 1 and x.dtype.is_float, f"a floating point tensor with an axis is needed, got {x}")
    need(2 <= bits <= 8 and group >= 1, "bits must be 2 to 8 and group positive")
    return x


define(
    "planish.tile_rows", "x, tile:int=16, depth:int=1", _tile_rows, torch="custom:tile_rows",
    doc="[N, K] -> [ceil(N/tile), ceil(K/depth), tile*depth]: `depth` elements of each of `tile` rows side by side,"
    " padded with zeros",
)  # fmt: skip
define(
    "planish.untile_rows", "x, rows:int, length:int, tile:int=16, depth:int=1", _untile_rows,
    torch="custom:untile_rows", doc="undoes tile_rows: -> [rows, length]",
)  # fmt: skip
define(
    "planish.panel", "codes, bits:int, tile:int=16", _panel, torch="custom:panel",
    doc="codes u8[N, K], one a byte -> u8[ceil(N/tile), panel_bytes(K, bits)]: planes of 8, 4, 2 and 1 bits; in a plane"
    " of p bits the byte [step, row, j] holds the codes of the inputs step*32/p + 4*i + j at the bits i*p",
)  # fmt: skip
define(
    "planish.unpanel", "panels, bits:int, rows:int, length:int, tile:int=16", _unpanel, torch="custom:unpanel",
    doc="undoes panel: -> u8[rows, length], one code a byte",
)  # fmt: skip
define(
    "planish.fake_quantize", "x, bits:int, group:int", _fake_quantize, torch="custom:fake_quantize",
    doc="x rounded, half to even, to whole multiples -(2^(bits-1)-1) .. 2^(bits-1)-1 of max|x|/(2^(bits-1)-1), one"
    " scale per `group` elements of the last axis",
)  # fmt: skip
