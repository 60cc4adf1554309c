"""Linear layers whose weight keeps ``n`` of each ``m`` inputs: the kernel by its meaning, and its rules."""

from __future__ import annotations

from typing import Any

from planish.backends.tvm.kernels.common import is_stored, stored
from planish.backends.tvm.kernels.dense import ACTIVATIONS, SMALLEST, activated
from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.ops.quantized import packed_bytes
from planish.ir.ops.sparse import kept, position_bits
from planish.ir.rule import Decline, Rule, rule
from planish.ir.types import bf16, equal, f16, f32

TILE, WORD = 16, 4
"""Rows that lie side by side, and bytes of the positions of a row that do."""


def _f32(x: Any) -> Any:
    known = x.dtype is f32 if isinstance(x, Node) else str(x.dtype) == "torch.float32"
    return x if known or str(x.dtype) == "torch.float64" else aten.to(x, f32)


def _like(y: Any, x: Any) -> Any:
    """``y`` in the element type of ``x``."""
    if isinstance(x, Node):
        return y if y.dtype is x.dtype else aten.to(y, x.dtype)
    return y.to(x.dtype)


def _linear_sparse(
    x: Any, values: Any, positions: Any, bias: Any, residual: Any, n: int, m: int, rows: int, activation: str
) -> Any:
    """activation(linear(x, expand_nm(untile_rows(values), untile_rows(positions)), bias)) + residual in f32"""
    length = int(x.shape[-1])
    count = kept(length, n, m)
    weight = planish.expand_nm(
        planish.untile_rows(values, rows, count, TILE),
        planish.untile_rows(positions, rows, packed_bytes(count, position_bits(m)), TILE, WORD),
        n, m, length,
    )  # fmt: skip
    y = activated(aten.linear(_f32(x), _f32(weight), None if bias is None else _f32(bias)), activation)
    return _like(y if residual is None else aten.add(y, _f32(residual)), x)


declare(
    "linear_sparse",
    "x, values, positions, bias:tensor?=None, residual:tensor?=None, n:int=2, m:int=4, rows:int=0,"
    " activation:str='none'",
    _linear_sparse,
    doc="activation(linear(x, expand_nm(untile_rows(values), untile_rows(positions)), bias)) + residual in f32,"
    " rounded to the type of x",
)


def _selected(x: Node, v: Node, p: Node, n: int, m: int, length: Any, b: Any, wide: Any) -> Node:
    """The kernel; the weight that is expanded has been cast to ``wide``."""
    if x.dtype not in (f32, f16, bf16) or v.dtype not in (f32, f16, bf16):
        raise Decline(f"a product of {x.dtype.name} by {v.dtype.name} is not computed in f32")
    if wide is not f32 and wide is not v.dtype:
        raise Decline(f"values of {v.dtype.name} are rounded to {wide.name}")
    if v.rank != 2 or x.rank < 1:
        raise Decline("not a product of rows with one matrix")
    stored(v, "the weight")
    stored(p, "the positions")
    rows = v.shape[0]
    if not isinstance(rows, int):
        raise Decline("the sizes of the weight are not known")
    if rows < SMALLEST or length < SMALLEST:
        raise Decline("the weight is small")
    values, positions = planish.tile_rows(v, TILE), planish.tile_rows(p, TILE, WORD)
    return kernel.linear_sparse(x, values, positions, b, None, n, m, rows)


_STORED = {"x": "f32[4, 30]", "v": "f16[40, 16]", "p": "u8[40, 4]", "n": 2, "m": 4, "k": 30}
_SAME = _STORED | {"v": "f32[40, 16]"}


@rule(
    lambda x, v, p, n, m, k, b: aten.linear(x, planish.expand_nm(v, p, n, m, k), b), kind="close", tolerance=1e-5,
    example=_SAME | {"b": "f32[40]"},
)  # fmt: skip
def sparse_linear(x: Node, v: Node, p: Node, n: int, m: int, k: int, b: Any) -> Node:
    """linear(x, expand_nm(V, P), b) = linear_sparse(x, tile_rows(V), tile_rows(P), b) for stored V and P"""
    return _selected(x, v, p, n, m, k, b, v.dtype)


@rule(
    lambda x, v, p, n, m, k, b: aten.linear(x, aten.to(planish.expand_nm(v, p, n, m, k), f32), b),
    kind="close", tolerance=1e-5, example=_STORED | {"b": "f32[40]"},
)  # fmt: skip
def sparse_linear_narrow(x: Node, v: Node, p: Node, n: int, m: int, k: int, b: Any) -> Node:
    """linear(x, to(expand_nm(V, P), f32), b) = linear_sparse(x, tile_rows(V), tile_rows(P), b) for V of 16 bits"""
    return _selected(x, v, p, n, m, k, b, f32)


@rule(
    lambda x, v, p, n, m, k: aten.matmul(x, aten.permute(planish.expand_nm(v, p, n, m, k), (1, 0))),
    kind="close", tolerance=1e-5, example=_SAME,
)  # fmt: skip
def sparse_matmul(x: Node, v: Node, p: Node, n: int, m: int, k: int) -> Node:
    """x @ permute(expand_nm(V, P)) = linear_sparse(x, tile_rows(V), tile_rows(P)) for stored V and P"""
    return _selected(x, v, p, n, m, k, None, v.dtype)


@rule(
    lambda x, v, p, n, m, k: aten.matmul(x, aten.permute(aten.to(planish.expand_nm(v, p, n, m, k), f32), (1, 0))),
    kind="close", tolerance=1e-5, example=_STORED,
)  # fmt: skip
def sparse_matmul_narrow(x: Node, v: Node, p: Node, n: int, m: int, k: int) -> Node:
    """x @ permute(to(expand_nm(V, P), f32)) = linear_sparse(x, tile_rows(V), tile_rows(P)) for V of 16 bits"""
    return _selected(x, v, p, n, m, k, None, f32)


_TILES: dict[str, Any] = {
    "x": "f32[4, 32]",
    "v": "f16[3, 16, 16]",
    "p": "u8[3, 1, 64]",
    "n": 2,
    "m": 4,
    "c": 40,
}


@rule(
    lambda x, v, p, n, m, c, b: aten.add(kernel.linear_sparse(x, v, p, None, None, n, m, c, "none"), b),
    kind="close", tolerance=1e-5, example=_TILES | {"b": "f32[40]"},
)  # fmt: skip
def sparse_bias(x: Node, v: Node, p: Node, n: int, m: int, c: int, b: Any) -> Node:
    """linear_sparse(x, V, P) + b = linear_sparse(x, V, P, b) for a stored vector b"""
    if not isinstance(b, Node) or b.rank != 1 or b.dtype is not x.dtype or not equal(b.shape[0], c):
        raise Decline("what is added is not a bias")
    return kernel.linear_sparse(x, v, p, stored(b, "the bias"), None, n, m, c)


def _activation_rule(name: str) -> Rule:
    """The rule that takes an activation into the kernel before it."""

    def left(x: Any, v: Any, p: Any, b: Any, n: Any, m: Any, c: Any) -> Any:
        return activated(kernel.linear_sparse(x, v, p, b, None, n, m, c, "none"), name)

    def right(x: Node, v: Node, p: Node, b: Any, n: int, m: int, c: int) -> Node:
        return kernel.linear_sparse(x, v, p, b, None, n, m, c, name)

    right.__name__ = f"sparse_{name}"
    right.__doc__ = f"{name}(linear_sparse(x, V, P, b)) = linear_sparse(x, V, P, b, activation='{name}')"
    return rule(left, kind="close", tolerance=1e-5, example=_TILES | {"b": "f32[40]"})(right)


ACTIVATION_RULES = tuple(_activation_rule(name) for name in ACTIVATIONS if name != "none")
"""One rule for each activation."""


@rule(
    lambda x, v, p, b, n, m, c, activation, residual: aten.add(
        kernel.linear_sparse(x, v, p, b, None, n, m, c, activation), residual
    ),
    kind="close", tolerance=1e-5,
    example=_TILES | {"b": "f32[40]", "activation": "gelu", "residual": "f32[4, 40]"},
)  # fmt: skip
def sparse_residual(
    x: Node, v: Node, p: Node, b: Any, n: int, m: int, c: int, activation: str, residual: Any
) -> Node:
    """linear_sparse(x, V, P, b) + r = linear_sparse(x, V, P, b, r) for an r of the same type"""
    y = kernel.linear_sparse(x, v, p, b, None, n, m, c, activation)
    if not isinstance(residual, Node) or residual.type != y.type:
        raise Decline("what is added has another type")
    if is_stored(residual) and residual.op != "input":
        raise Decline("what is added is stored")
    return kernel.linear_sparse(x, v, p, b, residual, n, m, c, activation)


RULES = (
    sparse_linear,
    sparse_linear_narrow,
    sparse_matmul,
    sparse_matmul_narrow,
    sparse_bias,
    *ACTIVATION_RULES,
    sparse_residual,
)
"""The rules of this family, in the order in which they are tried."""
