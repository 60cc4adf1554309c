"""Linear layers on affine codes, with what stands before and after them in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish.backends.tvm.kernels.common import stored
from planish.ir.kernel import declare, kernel
from planish.ir.namespace import aten, planish
from planish.ir.node import Node
from planish.ir.rule import Decline, rule
from planish.ir.types import equal, f32

ACTIVATIONS = ("none", "relu", "silu", "gelu", "gelu_tanh")
"""Activations of the kernel by name."""


def _activated(y: Any, activation: str) -> Any:
    if activation == "gelu_tanh":
        return aten.gelu(y, "tanh")
    return y if activation == "none" else getattr(aten, activation)(y)


def _zeros(zero: Any, bits: int, rows: int, groups: int) -> Any:
    """The zeros as ``[rows, groups]`` from their layout, or the number that they are."""
    if not hasattr(zero, "dtype"):
        return zero
    if not len(zero.shape):  # a number in eager torch
        return zero.item()
    if str(zero.dtype).removeprefix("torch.") not in ("u8", "uint8"):
        return planish.untile_rows(zero, rows, groups)
    packed = planish.untile_rows(zero, rows, -(-groups * bits // 8))
    return packed if bits == 8 else planish.unpack(packed, bits, groups)


def _linear_affine(
    x: Any, panels: Any, scale: Any, zero: Any, bias: Any = None, norm: Any = None, residual: Any = None,
    left: Any = None, right: Any = None, bits: int = 4, group: int = 64, rows: int = 0, eps: float = 0.0,
    activation_bits: int = 32, activation: str = "none", gated: bool = False,
) -> Any:  # fmt: skip
    """act(linear(rms_norm(x), dequant(codes), bias) + linear(linear(x, right), left)) [gated] + residual"""
    length = x.shape[-1]
    groups = -(-length // group)
    normed = x if norm is None else aten.rms_norm(x, [length], norm, eps)
    read = planish.fake_quantize(normed, 8, group) if activation_bits == 8 else normed
    weight = planish.dequant(
        planish.unpanel(panels, bits, rows, length),
        planish.untile_rows(scale, rows, groups),
        _zeros(zero, bits, rows, groups),
        group,
    )
    y = aten.linear(read, weight, bias)
    if left is not None:
        y = aten.add(
            y, aten.linear(aten.linear(normed, right), planish.untile_rows(left, rows, left.shape[1]))
        )
    if gated:
        axis, half = len(y.shape) - 1, rows // 2
        first, second = aten.slice(y, axis, 0, half), aten.slice(y, axis, half, rows)
        y = aten.mul(_activated(first, activation), second)
    else:
        y = _activated(y, activation)
    return y if residual is None else aten.add(y, residual)


declare(
    "linear_affine",
    "x, panels, scale, zero:operand, bias:tensor?=None, norm:tensor?=None, residual:tensor?=None,"
    " left:tensor?=None, right:tensor?=None, bits:int=4, group:int=64, rows:int=0, eps:float=0.0,"
    " activation_bits:int=32, activation:str='none', gated:bool=False",
    _linear_affine,
)

LONGEST = 65536
"""Codes of a group whose products with signed bytes surely fit into 32 bits."""

_NAMES = (
    "x", "panels", "scale", "zero", "bias", "norm", "residual", "left", "right", "bits", "group", "rows", "eps",
    "activation_bits", "activation", "gated",
)  # fmt: skip


def _changed(node: Node, **changes: Any) -> Node:
    """The node ``kernel.linear_affine`` with other arguments."""
    return kernel.linear_affine(**(dict(zip(_NAMES, node.args, strict=True)) | changes))


def _options(node: Any) -> dict[str, Any]:
    """The arguments of a node ``kernel.linear_affine`` by name; declines other nodes."""
    if not isinstance(node, Node) or node.op != "kernel.linear_affine":
        raise Decline("not a linear layer on affine codes")
    return dict(zip(_NAMES, node.args, strict=True))


def _open(node: Any) -> dict[str, Any]:
    """The arguments of a kernel that ends with its sum."""
    options = _options(node)
    if options["residual"] is not None or options["activation"] != "none" or options["gated"]:
        raise Decline("the kernel already ends otherwise")
    return options


def _selected(
    x: Node, codes: Node, scale: Node, zero: Any, group: int, bias: Node | None, bits: int, length: Any
) -> Node:
    """The kernel; ``zero`` is a number or already a matrix as it is stored."""
    if x.dtype is not f32 or codes.rank != 2 or scale.rank != 2:
        raise Decline("not a product of f32 by a matrix")
    rows = codes.shape[0]
    if not isinstance(rows, int) or not isinstance(length, int):
        raise Decline("the sizes of the weight are not known")
    groups = -(-length // group)
    if (group % 32 and group < length) or min(group, length) > LONGEST or bits < 2:
        raise Decline(f"groups of {group} codes of {bits} bits have no kernel")
    if not all(map(equal, scale.shape, (rows, groups))):
        raise Decline("scales of several rows are shared")
    if isinstance(zero, Node):
        if zero.rank != 2 or not equal(zero.shape[0], rows):
            raise Decline("zeros of several rows are shared")
        if zero.dtype.is_float and not equal(zero.shape[1], groups):
            raise Decline("zeros of several groups are shared")
        zero = planish.tile_rows(stored(zero, "the zero"))
    elif not isinstance(zero, (int, float)):
        raise Decline("the zero is a size")
    panels = planish.panel(stored(codes, "the weight"), bits)
    scale = planish.tile_rows(stored(scale, "the scale"))
    return kernel.linear_affine(x, panels, scale, zero, bias, bits=bits, group=group, rows=rows)


@rule(
    lambda x, c, s, z, n, i, bits, group, b: aten.linear(
        x, planish.dequant(planish.unpack(c, bits, n), s, planish.unpack(z, bits, i), group), b
    ),
    kind="close", tolerance=1e-5,
    example={
        "x": "f32[3, 96]", "c": "u8[40, 48]", "s": "f16[40, 3]", "z": "u8[40, 2]", "n": 96, "i": 3, "bits": 4,
        "group": 32, "b": "f32[40]",
    },
)  # fmt: skip
def affine_linear_packed(
    x: Node, c: Node, s: Node, z: Node, n: int, i: int, bits: int, group: int, b: Any
) -> Node:
    """linear(x, dequant(unpack(C), S, unpack(Z)), b) = linear_affine(x, panel(C), tile_rows(S), tile_rows(Z), b)"""
    return _selected(x, planish.unpack(c, bits, n), s, z, group, b, bits, n)


@rule(
    lambda x, c, s, z, n, bits, group, b: aten.linear(x, planish.dequant(planish.unpack(c, bits, n), s, z, group), b),
    kind="close", tolerance=1e-5,
    example={
        "x": "f32[3, 96]", "c": "u8[40, 36]", "s": "f16[40, 3]", "z": "f16[40, 3]", "n": 96, "bits": 3,
        "group": 32, "b": "f32[40]",
    },
)  # fmt: skip
def affine_linear(x: Node, c: Node, s: Node, z: Any, n: int, bits: int, group: int, b: Any) -> Node:
    """linear(x, dequant(unpack(C), S, z), b) = linear_affine(x, panel(unpack(C)), tile_rows(S), z, b)

    z is a number or stored in floating point.
    """
    if isinstance(z, Node) and not z.dtype.is_float:
        raise Decline("zeros that are whole numbers are packed")
    return _selected(x, planish.unpack(c, bits, n), s, z, group, b, bits, n)


@rule(
    lambda x, c, s, z, group, b: aten.linear(x, planish.dequant(c, s, z, group), b),
    kind="close", tolerance=1e-5,
    example={
        "x": "f32[3, 96]", "c": "u8[40, 96]", "s": "f16[40, 3]", "z": "u8[40, 3]", "group": 32, "b": "f32[40]",
    },
)  # fmt: skip
def affine_linear_bytes(x: Node, c: Node, s: Node, z: Any, group: int, b: Any) -> Node:
    """linear(x, dequant(C, S, z), b) = linear_affine(x, panel(C), tile_rows(S), z, b) for codes of 8 bits"""
    if c.op == "planish.unpack" or c.dtype.name != "u8":
        raise Decline("not codes of 8 bits")
    if isinstance(z, Node) and z.dtype.name != "u8" and not z.dtype.is_float:
        raise Decline(f"zeros of type {z.dtype.name} have no kernel")
    return _selected(x, c, s, z, group, b, 8, c.shape[-1])


def _example(x: str = "f32[3, 64]", **changes: Any) -> Any:
    """A function that makes a small kernel node for the example of a rule."""

    def made() -> Node:
        from planish.ir.node import input_leaf
        from planish.ir.parser import parse_type

        leaf = {
            name: input_leaf(name, parse_type(text))
            for name, text in (("x", x), ("panels", "u8[2, 512]"), ("scale", "f16[2, 2, 16]"))
        }
        values = {name: value() if callable(value) else value for name, value in changes.items()}
        return kernel.linear_affine(**(leaf | {"zero": 8, "bits": 4, "group": 32, "rows": 32} | values))

    return made


_WEIGHT = {
    "p": "u8[2, 512]", "s": "f16[2, 2, 16]", "z": 8, "b": None, "r": None, "c": 4, "g": 32, "n": 32, "a": "none",
    "d": False,
}  # fmt: skip


@rule(
    lambda x, h, p, s, z, b, r, c, g, n, a, d: kernel.linear_affine(
        planish.fake_quantize(x, 8, h), p, s, z, b, None, r, None, None, c, g, n, 0.0, 32, a, d
    ),
    kind="close", tolerance=1e-5, example={"x": "f32[3, 64]", "h": 32} | _WEIGHT,
)  # fmt: skip
def affine_rounded(
    x: Node, h: int, p: Node, s: Node, z: Any, b: Any, r: Any, c: int, g: int, n: int, a: str, d: bool
) -> Node:
    """linear_affine(fake_quantize(x, 8, g), ...) = linear_affine(x, ..., activation_bits=8)"""
    length = int(x.shape[-1])
    if min(h, length) != min(g, length):
        raise Decline(f"activations are rounded in groups of {h}, weights in groups of {g}")
    return kernel.linear_affine(
        x, p, s, z, b, None, r, bits=c, group=g, rows=n, activation_bits=8, activation=a, gated=d
    )


@rule(
    lambda x, h, w, e, p, s, z, b, r, c, g, n, a, d, k: kernel.linear_affine(
        aten.rms_norm(x, h, w, e), p, s, z, b, None, r, None, None, c, g, n, 0.0, k, a, d
    ),
    kind="close", tolerance=1e-5,
    example={"x": "f32[3, 64]", "h": (64,), "w": "f32[64]", "e": 1e-5, "k": 32} | _WEIGHT,
)  # fmt: skip
def affine_norm(
    x: Node, h: tuple[Any, ...], w: Any, e: float, p: Node, s: Node, z: Any, b: Any, r: Any, c: int, g: int, n: int,
    a: str, d: bool, k: int,
) -> Node:  # fmt: skip
    """linear_affine(rms_norm(x, [K], w, eps), ...) = linear_affine(x, ..., norm=w, eps=eps)

    Each of several kernels that read the norm computes it: join them first.
    """
    if len(h) != 1 or w is None or w.dtype is not f32:
        raise Decline("not a norm of the last axis with a weight in f32")
    return kernel.linear_affine(
        x, p, s, z, b, w, r, bits=c, group=g, rows=n, eps=e, activation_bits=k, activation=a, gated=d
    )


@rule(
    lambda y, b: aten.add(y, b), kind="close", tolerance=1e-5,
    example={"y": _example(), "b": "f32[32]"},
)  # fmt: skip
def affine_bias(y: Node, b: Any) -> Node:
    """linear_affine(x, ...) + b = linear_affine(x, ..., bias=b) for a stored vector b; right if y has one user"""
    options = _open(y)
    if options["bias"] is not None or not isinstance(b, Node) or b.rank != 1 or b.dtype is not f32:
        raise Decline("what is added is not a bias")
    if not equal(b.shape[0], options["rows"]):
        raise Decline("the bias has another length")
    return _changed(y, bias=stored(b, "the bias"))


@rule(
    lambda y, r: aten.add(y, r), kind="close", tolerance=1e-5,
    example={"y": _example(), "r": "f32[3, 32]"},
)  # fmt: skip
def affine_residual(y: Node, r: Any) -> Node:
    """linear_affine(x, ...) + r = linear_affine(x, ..., residual=r) for equal shapes; right if y has one user"""
    options = _options(y)
    if options["residual"] is not None:
        raise Decline("the kernel already adds a residual")
    if not isinstance(r, Node) or r.type != y.type or r.dtype is not f32 or r.rank < 2:
        raise Decline("what is added has another shape")
    return _changed(y, residual=r)


@rule(
    lambda y, x, right, left: aten.add(y, aten.linear(aten.linear(x, right), left)), kind="close", tolerance=1e-5,
    example={"y": _example(), "x": "f32[3, 64]", "right": "f32[8, 64]", "left": "f32[32, 8]"},
)  # fmt: skip
def affine_low_rank(y: Node, x: Node, right: Node, left: Node) -> Node:
    """linear_affine(x, ...) + linear(linear(x, R), L) = linear_affine(x, ..., left=tile_rows(L), right=R)

    x may also be the norm that the kernel computes. Right if the sum is the only user of y.
    """
    options = _open(y)
    read, norm = options["x"], options["norm"]
    if norm is not None:
        read = aten.rms_norm(read, [read.shape[-1]], norm, options["eps"])
    if options["left"] is not None or read is not x:
        raise Decline("the low-rank side reads something else")
    if left.rank != 2 or right.rank != 2 or not isinstance(left.shape[1], int):
        raise Decline("the low-rank side is not of two matrices")
    left = planish.tile_rows(stored(left, "the left factor"))
    return _changed(y, left=left, right=stored(right, "the right factor"))


@rule(
    lambda y, d, f, e: aten.mul(aten.silu(aten.slice(y, d, 0, f)), aten.slice(y, d, f, e)),
    kind="close", tolerance=1e-5,
    example={"y": _example(), "d": 1, "f": 16, "e": 32},
)  # fmt: skip
def affine_gate(y: Node, d: int, f: int, e: int) -> Node:
    """silu(y[..., :F]) * y[..., F:] = linear_affine(x, ..., activation="silu", gated=True) for y = linear_affine(x)"""
    options = _open(y)
    if d != y.rank - 1 or 2 * f != options["rows"] or e != options["rows"] or f % 16:
        raise Decline("not the two halves of the rows of the weight")
    return _changed(y, activation="silu", gated=True)


def _ended(activation: str) -> Any:
    """The rule that takes an activation into the kernel."""

    def ended(y: Node) -> Node:
        _open(y)
        return _changed(y, activation=activation)

    ended.__name__ = f"affine_{activation}"
    ended.__doc__ = (
        f'{activation}(linear_affine(x, ...)) = linear_affine(x, ..., activation="{activation}");'
        " right if y has one user"
    )
    return rule(lambda y: _activated(y, activation), kind="close", tolerance=1e-5, example={"y": _example()})(
        ended
    )


affine_activations = tuple(_ended(name) for name in ACTIVATIONS[1:])
"""The rules that take an activation into the kernel."""


def join_affine(nodes: Sequence[Node]) -> tuple[Node, tuple[Node, ...]]:
    """One kernel for several that read the same x, and what stands for each of them: slices of its result.

    Raises :class:`Decline` if their options differ, one has more than codes and a bias, or rows are not whole tiles.
    """
    all_options = [_open(node) for node in nodes]
    first = all_options[0]
    for options in all_options:
        if any(options[name] is not None for name in ("norm", "left", "right")):
            raise Decline("only plain kernels are joined")
        if any(options[name] != first[name] for name in ("bits", "group", "activation_bits")):
            raise Decline("the kernels have other options")
        if options["x"] is not first["x"] or options["rows"] % 16:
            raise Decline("the kernels read something else, or rows are not whole tiles")
        if options["scale"].dtype is not first["scale"].dtype:
            raise Decline("scales are stored otherwise")
    rows = [int(options["rows"]) for options in all_options]
    zeros = [options["zero"] for options in all_options]
    biases = [options["bias"] for options in all_options]
    bias = None
    if any(b is not None for b in biases):
        given = [
            aten.full([count], 0.0, f32) if b is None else b for b, count in zip(biases, rows, strict=True)
        ]
        bias = aten.cat(given, 0)
    joined = _changed(
        nodes[0],
        panels=aten.cat([options["panels"] for options in all_options], 0),
        scale=aten.cat([options["scale"] for options in all_options], 0),
        zero=_joined_zeros(zeros),
        bias=bias,
        rows=sum(rows),
    )
    axis, ends = joined.rank - 1, [sum(rows[: i + 1]) for i in range(len(rows))]
    parts = (aten.slice(joined, axis, end - count, end) for end, count in zip(ends, rows, strict=True))
    return joined, tuple(parts)


def _joined_zeros(zeros: list[Any]) -> Any:
    if all(isinstance(zero, Node) for zero in zeros):
        if any(zero.dtype is not zeros[0].dtype for zero in zeros):
            raise Decline("zeros are stored otherwise")
        return aten.cat(zeros, 0)
    if any(zero != zeros[0] for zero in zeros):
        raise Decline("zeros are stored otherwise")
    return zeros[0]
