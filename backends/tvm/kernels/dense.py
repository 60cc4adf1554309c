"""Linear layers whose weight is stored in floating point: the kernel by its meaning, and the rules that select it."""

from __future__ import annotations

from typing import Any

from planish.backends.tvm.kernels.common import is_stored, stored
from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.rule import Decline, Rule, rule
from planish.ir.types import bf16, equal, f16, f32

ACTIVATIONS = ("none", "relu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid")
"""What may follow the product within the kernel."""

SMALLEST = 8
"""Fewer rows or columns of a weight are left to the compiler."""


def activated(y: Any, activation: str) -> Any:
    """``y`` after one of :data:`ACTIVATIONS`."""
    if activation == "none":
        return y
    if activation == "gelu_tanh":
        return aten.gelu(y, "tanh")
    return getattr(aten, activation)(y)


def _kind(x: Any) -> Any:
    """The type of the elements of a node or of a tensor."""
    return x.dtype if isinstance(x, Node) else _ELEMENTS[str(x.dtype)]


_ELEMENTS = {"torch.float32": f32, "torch.float16": f16, "torch.bfloat16": bf16, "torch.float64": f32}


def _cast(x: Any, kind: Any) -> Any:
    return x if _kind(x) is kind else aten.to(x, kind)


def _linear_dense(
    x: Any, tiles: Any, bias: Any, residual: Any, rows: int, tile: int, depth: int, activation: str
) -> Any:
    """activation(linear(x, untile_rows(tiles), bias)) + residual, computed in f32 and rounded to the type of x

    Weights that are bf16 in pairs (depth 2) also round x to bf16.
    """
    kind = _kind(x)
    weight = _cast(planish.untile_rows(tiles, rows, int(x.shape[-1]), tile, depth), f32)
    if _kind(tiles) is bf16 and depth == 2:
        x = _cast(x, bf16)
    y = aten.linear(_cast(x, f32), weight, None if bias is None else _cast(bias, f32))
    y = activated(y, activation)
    if residual is not None:
        y = aten.add(y, _cast(residual, f32))
    return _cast(y, kind)


declare(
    "linear_dense",
    "x, tiles, bias:tensor?=None, residual:tensor?=None, rows:int=0, tile:int=32, depth:int=1,"
    " activation:str='none'",
    _linear_dense,
    doc="activation(linear(x, untile_rows(tiles), bias)) + residual in f32, rounded to the type of x",
)


def _selected(x: Node, w: Node, bias: Any, depth: int = 1) -> Node:
    stored(w, "the weight")
    rows, length = w.shape
    if not isinstance(rows, int) or not isinstance(length, int):
        raise Decline("the sizes of the weight are not known")
    if rows < SMALLEST or length < SMALLEST:
        raise Decline("the weight is small")
    tile = 32 if rows % 32 == 0 else 16
    tiles = planish.tile_rows(w, tile, depth)
    return kernel.linear_dense(x, tiles, bias, None, rows, tile, depth)


@rule(
    lambda x, w, b: aten.linear(x, w, b), kind="close", tolerance=1e-5,
    example={"x": "f32[4, 32]", "w": "f32[40, 32]", "b": "f32[40]"},
)  # fmt: skip
def dense_linear(x: Node, w: Node, b: Any) -> Node:
    """linear(x, W, b) = linear_dense(x, tile_rows(W), b) for a stored W"""
    if x.dtype not in (f32, f16, bf16):
        raise Decline(f"{x.dtype.name} is not computed in f32")
    return _selected(x, w, b, 2 if w.dtype is bf16 else 1)


@rule(
    lambda x, w, b: aten.linear(x, aten.to(w, f32), b), kind="close", tolerance=1e-5,
    example={"x": "f32[4, 32]", "w": "f16[40, 32]", "b": "f32[40]"},
)  # fmt: skip
def dense_linear_narrow(x: Node, w: Node, b: Any) -> Node:
    """linear(x, to(W, f32), b) = linear_dense(x, tile_rows(W), b) for a stored W of f16 or bf16"""
    if w.dtype not in (f16, bf16):
        raise Decline(f"a weight of {w.dtype.name} is not converted while it is read")
    return _selected(x, w, b)


@rule(
    lambda x, w, b: aten.linear(aten.to(aten.to(x, bf16), f32), aten.to(w, f32), b), kind="close", tolerance=1e-5,
    example={"x": "f32[4, 32]", "w": "bf16[64, 32]", "b": "f32[64]"},
)  # fmt: skip
def dense_linear_pairs(x: Node, w: Node, b: Any) -> Node:
    """linear(to(to(x, bf16), f32), to(W, f32), b) = linear_dense(x, tile_rows(W, 2), b) for a stored bf16 W"""
    if w.dtype is not bf16 or x.dtype is not f32:
        raise Decline("not a product of f32 by bf16")
    return _selected(x, w, b, 2)


@rule(
    lambda x, w: aten.matmul(x, w), kind="close", tolerance=1e-5,
    example={"x": "f32[4, 32]", "w": "f32[32, 40]"},
)  # fmt: skip
def dense_matmul(x: Node, w: Node) -> Node:
    """x @ W = linear_dense(x, tile_rows(permute(W))) for a stored matrix W"""
    if w.rank != 2 or x.rank < 2 or x.dtype not in (f32, f16, bf16):
        raise Decline("not a product of rows with one matrix")
    stored(w, "the right side")
    return _selected(x, aten.permute(w, [1, 0]), None, 2 if w.dtype is bf16 else 1)


@rule(
    lambda x, w, b: aten.add(aten.matmul(x, w), b), kind="close", tolerance=1e-5,
    example={"x": "f32[4, 32]", "w": "f32[32, 40]", "b": "f32[40]"},
)  # fmt: skip
def dense_matmul_bias(x: Node, w: Node, b: Any) -> Node:
    """x @ W + b = linear_dense(x, tile_rows(permute(W)), b) for a stored matrix W and a vector b"""
    if w.rank != 2 or x.rank < 2 or x.dtype not in (f32, f16, bf16):
        raise Decline("not a product of rows with one matrix")
    if not isinstance(b, Node) or b.rank != 1 or b.dtype is not x.dtype or not equal(b.shape[0], w.shape[1]):
        raise Decline("what is added is not a bias")
    stored(w, "the right side")
    return _selected(x, aten.permute(w, [1, 0]), b, 2 if w.dtype is bf16 else 1)


_ROW = {"x": "f32[4, 32]", "t": "f32[2, 32, 32]", "b": "f32[64]", "n": 64, "tile": 32, "depth": 1}


def _activation_rule(name: str) -> Rule:
    """The rule that takes an activation into the kernel before it."""

    def left(x: Any, t: Any, b: Any, n: Any, tile: Any, depth: Any) -> Any:
        return activated(kernel.linear_dense(x, t, b, None, n, tile, depth, "none"), name)

    def right(x: Node, t: Node, b: Any, n: int, tile: int, depth: int) -> Node:
        return kernel.linear_dense(x, t, b, None, n, tile, depth, name)

    right.__name__ = f"dense_{name}"
    right.__doc__ = f"{name}(linear_dense(x, W, b)) = linear_dense(x, W, b, activation='{name}')"
    return rule(left, kind="close", tolerance=1e-5, example=_ROW)(right)


ACTIVATION_RULES = tuple(_activation_rule(name) for name in ACTIVATIONS if name != "none")
"""One rule for each activation."""


@rule(
    lambda x, t, b, n, tile, depth, activation, residual: aten.add(
        kernel.linear_dense(x, t, b, None, n, tile, depth, activation), residual
    ),
    kind="close", tolerance=1e-5, example=_ROW | {"activation": "gelu", "residual": "f32[4, 64]"},
)  # fmt: skip
def dense_residual(
    x: Node, t: Node, b: Any, n: int, tile: int, depth: int, activation: str, residual: Any
) -> Node:
    """linear_dense(x, W, b) + r = linear_dense(x, W, b, r) for an r of the same type"""
    y = kernel.linear_dense(x, t, b, None, n, tile, depth, activation)
    if not isinstance(residual, Node) or residual.type != y.type:
        raise Decline("what is added has another type")
    if is_stored(residual) and residual.op != "input":
        raise Decline("what is added is stored")
    return kernel.linear_dense(x, t, b, residual, n, tile, depth, activation)


RULES = (
    dense_linear_pairs,
    dense_linear_narrow,
    dense_linear,
    dense_matmul_bias,
    dense_matmul,
    *ACTIVATION_RULES,
    dense_residual,
)
"""The rules of this family, in the order in which they are tried."""
