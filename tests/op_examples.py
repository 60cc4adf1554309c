"""Small programs for every operation of the dialect: shape rules and backends are tested on all of them.

Integer inputs hold 0 to 3, so an indexed axis has at least four places. Sizes are bound by :data:`BINDINGS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from planish.ir.node import Program
from planish.ir.parser import parse_module
from planish.ir.run import example_value
from planish.ir.weights import Weights

BINDINGS: tuple[Mapping[str, int], ...] = ({"T": 5, "B": 2}, {"T": 8, "B": 1}, {"T": 12, "B": 3})

EXAMPLES: dict[str, list[str]] = {}


def add(op: str, given: str, *expressions: str) -> None:
    """Programs that apply ``op`` to inputs; in an expression ``@`` stands for the operation."""
    dims = "".join(f"{name} = dim({low}, 64)\n" for name, low in (("B", 1), ("T", 4)) if _uses(given, name))
    for expression in expressions:
        call = expression.replace("@", op)
        EXAMPLES.setdefault(op, []).append(f"{dims}def main({given}):\n    out = {call}\n    return out\n")


def text(op: str, program: str) -> None:
    """A program in full."""
    EXAMPLES.setdefault(op, []).append(program)


def _uses(given: str, name: str) -> bool:
    return name in given.replace("[", " ").replace("]", " ").replace(",", " ").replace("*", " ").split()


X = "x: f32[B, T, 6]"
FLOAT_UNARY = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tan", "asin",
    "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "silu", "mish", "hardswish",
    "hardsigmoid", "gelu", "softplus", "elu", "leaky_relu",
)  # fmt: skip
for _name in FLOAT_UNARY:
    add(f"aten.{_name}", X, "@(x)")
    add(f"aten.{_name}", "x: f16[T]", "@(x)")
for _name in ("exp", "expm1", "log1p", "tanh", "sigmoid", "silu", "sqrt", "leaky_relu"):
    add(f"aten.{_name}", "x: f64[T]", "@(x)")
add("aten.erf", "x: bf16[T, 2]", "@(x)")
add("aten.gelu", X, "@(x, 'tanh')")
add("aten.softplus", X, "@(x, 2.0, 1.0)", "@(x, 0.5)")
add("aten.elu", X, "@(x, 0.5)", "@(x, 1.673, 1.051)", "@(x, 1.0, 1.0, 0.7)")
add("aten.leaky_relu", X, "@(x, 0.2)")
for _name in ("neg", "abs", "sign", "relu", "floor", "ceil", "round", "trunc"):
    add(f"aten.{_name}", X, "@(x)", "@(aten.mul(x, 0.5))" if _name == "none" else "@(x)")
    for _kind in ("f64", "f16", "i64", "i32", "i16", "i8"):
        add(f"aten.{_name}", f"x: {_kind}[T, 3]", "@(x)")
text(
    "aten.round",
    "T = dim(4, 64)\ndef main(x: i64[T]):\n    f = aten.to(x, f32)\n    h = aten.mul(f, 0.5)\n"
    "    out = aten.round(h)\n    return out\n",
)
text(
    "aten.trunc",
    "T = dim(4, 64)\ndef main(x: f32[T]):\n    h = aten.mul(x, 3.0)\n    out = aten.trunc(h)\n    return out\n",
)
add("aten.clamp", X, "@(x, -0.5, 0.5)", "@(x, min=0.0)", "@(x, max=0.3)")
add("aten.clamp", "x: i64[T]", "@(x, 1, 2)", "@(x, min=1)")
add("aten.clamp", "x: i16[T]", "@(x, 1, 2)")
add("aten.clamp", "x: f16[T]", "@(x, -0.5, 0.5)")
for _name in ("isnan", "isinf", "logical_not"):
    add(f"aten.{_name}", "x: i32[T]", "@(x)")
    add(f"aten.{_name}", "x: f16[T]", "@(x)")
    text(
        f"aten.{_name}",
        "T = dim(4, 64)\ndef main(x: i64[T]):\n    f = aten.to(x, f32)\n    g = aten.sub(f, 1.0)\n"
        f"    l = aten.log(g)\n    out = aten.{_name}(l)\n    return out\n",
    )
add("aten.logical_not", "x: bool[T]", "@(x)")
for _kind in ("bool", "i64", "i32", "i8", "u8"):
    add("aten.bitwise_not", f"x: {_kind}[T]", "@(x)")
    for _name in ("and", "or", "xor"):
        add(f"aten.bitwise_{_name}", f"a: {_kind}[B, T], b: {_kind}[T]", "@(a, b)")
for _kind in ("i64", "i32", "u8", "i8"):
    for _name in ("left", "right"):
        add(f"aten.bitwise_{_name}_shift", f"a: {_kind}[B, T], b: {_kind}[T]", "@(a, b)", "@(a, 1)")
text(
    "aten.bitwise_right_shift",
    "T = dim(4, 64)\ndef main(x: i64[T]):\n    n = aten.sub(x, 7)\n    out = aten.bitwise_right_shift(n, 1)\n"
    "    return out\n",
)
for _kind in ("f64", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool", "f32"):
    add("aten.to", f"x: {_kind}[T]", "@(x, f32)", "@(x, i64)", "@(x, bool)", "@(x, f16)")
add("aten.to", "x: f32[T]", "@(x, bf16)", "@(x, i8)", "@(x, i32)", "@(x, f64)", "@(x, u8)" if False else "@(x, i16)")
add("aten.to", "x: i64[T]", "@(x, u8)", "@(x, u16)")

# Two operands

AB = "a: f32[B, T, 6], b: f32[T, 1]"
for _name in ("add", "sub", "mul", "div", "pow", "atan2", "maximum", "minimum", "fmod", "remainder", "floor_divide"):
    add(f"aten.{_name}", AB, "@(a, b)")
    add(f"aten.{_name}", "a: f32[T, 6]", "@(a, 2.5)")
    add(f"aten.{_name}", "a: f16[T], b: f16[T]", "@(a, b)")
for _name in ("add", "sub", "mul", "maximum", "minimum"):
    for _kind in ("i64", "i32", "i16", "u8", "f64"):
        add(f"aten.{_name}", f"a: {_kind}[B, T], b: {_kind}[B, 1]", "@(a, b)")
    add(f"aten.{_name}", "a: i64[T]", "@(a, 3)", "@(a, T)")
add("aten.maximum", "a: bool[T], b: bool[T]", "@(a, b)")
add("aten.minimum", "a: bool[T], b: bool[T]", "@(a, b)")
add("aten.div", "a: f32[T]", "@(a, T)", "@(1.0, a)")
add("aten.sub", "a: f32[T]", "@(1.0, a)")
add("aten.pow", "a: f32[T]", "@(a, 2)", "@(2.0, a)", "@(a, 0.5)", "@(a, 3)", "@(a, -1)")
add("aten.pow", "a: i64[T]", "@(a, 2)", "@(2, a)")
add("aten.pow", "a: f64[T], b: f64[T]", "@(a, b)")
for _name in ("fmod", "remainder", "floor_divide"):
    for _kind in ("i64", "i32", "i8"):
        for _by in ("3", "-3", "2"):
            text(
                f"aten.{_name}",
                f"T = dim(4, 64)\ndef main(x: {_kind}[T, 5]):\n    n = aten.sub(x, 2)\n    m = aten.mul(n, 5)\n"
                f"    out = aten.{_name}(m, {_by})\n    return out\n",
            )
    text(
        f"aten.{_name}",
        "T = dim(4, 64)\ndef main(x: f32[T, 5]):\n    m = aten.mul(x, 3.0)\n"
        f"    out = aten.{_name}(m, -0.7)\n    return out\n",
    )
    add(f"aten.{_name}", "a: u8[T]", "@(a, 3)")
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    for _kind in ("f32", "f64", "f16", "i64", "i32", "u8", "i8", "bool"):
        add(f"aten.{_name}", f"a: {_kind}[B, T], b: {_kind}[T]", "@(a, b)")
    add(f"aten.{_name}", "a: f32[T]", "@(a, 0.0)")
    add(f"aten.{_name}", "a: i64[T]", "@(a, 2)")
for _kind in ("f32", "f64", "f16", "bf16", "i64", "i32", "i16", "u8", "bool"):
    add("aten.where", f"c: bool[B, T], a: {_kind}[T], b: {_kind}[B, 1]", "@(c, a, b)")
add("aten.where", "c: bool[B, T], a: f32[T]", "@(c, a, -inf)", "@(c, 0.0, a)")

# Reductions

for _name in ("sum", "amax", "amin"):
    add(f"aten.{_name}", X, "@(x)", "@(x, [1])", "@(x, [0, 2], True)", "@(x, [-1], True)")
    for _kind in ("i64", "i32", "u8", "f64", "f16"):
        add(f"aten.{_name}", f"x: {_kind}[T, 3]", "@(x, [0])")
for _name in ("mean", "logsumexp"):
    add(f"aten.{_name}", X, "@(x)", "@(x, [1])", "@(x, [0, 2], True)")
    add(f"aten.{_name}", "x: f16[T, 3]", "@(x, [0])")
    add(f"aten.{_name}", "x: f64[T, 3]", "@(x, [0])")
text(
    "aten.logsumexp",
    "T = dim(4, 64)\ndef main(x: f32[T, 3]):\n    y = aten.where(aten_mask, x, -inf)\n".replace(
        "    y = aten.where(aten_mask, x, -inf)\n",
        "    f = aten.full([T, 3], -inf, f32)\n    g = aten.add(f, x)\n",
    )
    + "    out = aten.logsumexp(g, [1])\n    return out\n",
)
add("aten.var", X, "@(x)", "@(x, [1])", "@(x, [0, 2], 0.0, True)", "@(x, [2], 1.0, True)")
for _name in ("any", "all"):
    add(f"aten.{_name}", "x: bool[B, T]", "@(x)", "@(x, [1])", "@(x, [0], True)")
    add(f"aten.{_name}", "x: f32[B, T]", "@(x, [1])")
    add(f"aten.{_name}", "x: i64[B, T]", "@(x, [1])")
    text(
        f"aten.{_name}",
        "T = dim(4, 64)\ndef main(x: f32[T, 3]):\n    e = aten.slice(x, 0, 2, 2)\n"
        f"    out = aten.{_name}(e, [0])\n    return out\n",
    )
text(
    "aten.sum",
    "T = dim(4, 64)\ndef main(x: f32[T, 3]):\n    e = aten.slice(x, 0, 2, 2)\n    out = aten.sum(e, [0])\n"
    "    return out\n",
)
add("aten.prod", X, "@(x, 1)", "@(x, -1, True)")
add("aten.prod", "x: i64[T, 3]", "@(x, 0)")
add("aten.prod", "x: i32[T, 3]", "@(x, 1)")
for _name in ("argmax", "argmin"):
    add(f"aten.{_name}", X, "@(x, 1)", "@(x, -1, True)")
    add(f"aten.{_name}", "x: f16[T, 3]", "@(x, 0)")
for _name in ("cumsum", "cumprod"):
    add(f"aten.{_name}", X, "@(x, 1)", "@(x, -1)")
    for _kind in ("i64", "i32", "f64"):
        add(f"aten.{_name}", f"x: {_kind}[T, 3]", "@(x, 0)")
for _name in ("softmax", "log_softmax"):
    add(f"aten.{_name}", X, "@(x, -1)", "@(x, 1)")
    add(f"aten.{_name}", "x: f16[T, 3]", "@(x, 0)")
    add(f"aten.{_name}", "x: f64[T, 3]", "@(x, 0)")
for _name in ("topk_values", "topk_indices"):
    add(f"planish.{_name}", X, "@(x, 3, 1)", "@(x, 2, -1, False)")
    add(f"planish.{_name}", "x: f32[T, 3]", "@(x, T // 2, 0)")
add("planish.topk_values", "x: i64[T, 3]", "@(x, 3, 0)")
for _name in ("planish.sort_values", "aten.argsort"):
    add(_name, X, "@(x, 1)", "@(x, -1, True)")
    add(_name, "x: i64[T, 3]", "@(x, 0)", "@(x, 0, True)")
add("planish.sort_values", "x: u8[T]", "@(x, 0)")

# Normalisations

W = "w: f32[6], b: f32[6]"
add("aten.rms_norm", f"{X}, {W}", "@(x, [6], w)", "@(x, [6])", "@(x, [6], w, 0.1)")
add("aten.rms_norm", "x: f16[T, 6], w: f16[6]", "@(x, [6], w)")
add("aten.rms_norm", "x: f32[T, 4, 6], w: f32[4, 6]", "@(x, [4, 6], w)")
add("aten.layer_norm", f"{X}, {W}", "@(x, [6], w, b)", "@(x, [6])", "@(x, [6], w)", "@(x, [6], w, b, 0.1)")
add("aten.layer_norm", "x: f32[T, 4, 6], w: f32[4, 6]", "@(x, [4, 6], w)")
text(
    "aten.rms_norm",
    "T = dim(4, 64)\ndef main(x: f32[2, T, 6], y: f32[2, T, 6], w: f32[6]):\n    s = aten.add(x, y)\n"
    "    n = aten.rms_norm(s, [6], w)\n    out = aten.add(n, s)\n    return out, s\n",
)
text(
    "aten.layer_norm",
    "T = dim(4, 64)\ndef main(x: f32[2, T, 6], y: f32[2, T, 6], w: f32[6], b: f32[6]):\n    s = aten.add(x, y)\n"
    "    n = aten.layer_norm(s, [6], w, b)\n    out = aten.add(n, s)\n    return out\n",
)
add("aten.group_norm", f"x: f32[B, 6, T, 3], {W}", "@(x, 3, w, b)", "@(x, 2)", "@(x, 1, w, b, 0.1)")
add("aten.group_norm", f"x: f32[B, 6, T], {W}", "@(x, 6, w, b)")
M = "m: f32[6], v: f32[6]"
add("aten.batch_norm", f"x: f32[B, 6, T, 3], {W}, {M}", "@(x, w, b, m, aten_v)".replace("aten_v", "v"))
EXAMPLES["aten.batch_norm"] = [
    t.replace("    out =", "    a = aten.abs(v)\n    out =").replace(", m, v)", ", m, a)")
    for t in EXAMPLES["aten.batch_norm"]
]
text(
    "aten.batch_norm",
    "T = dim(4, 64)\ndef main(x: f32[T, 6], m: f32[6], v: f32[6]):\n    a = aten.abs(v)\n"
    "    out = aten.batch_norm(x, None, None, m, a, 0.001)\n    return out\n",
)

# Views and joins

add("aten.view", "x: f32[B, T, 6]", "@(x, [B, T, 2, 3])", "@(x, [B*T, 6])", "@(x, [6*B*T])", "@(x, [T, B, 6])")
add("aten.view", "x: f32[2, T, 6]", "@(x, [2*T, 3, 2])", "@(x, [2, 6*T])", "@(x, [12, T])", "@(x, [1, 2, 1, T, 6])")
add("aten.view", "x: f32[4, 6]", "@(x, [2, 12])")
add("aten.permute", X, "@(x, [0, 2, 1])", "@(x, [2, 0, 1])", "@(x, [0, 1, 2])")
add("aten.expand", "x: f32[B, 1, 6]", "@(x, [B, 4, 6])", "@(x, [3, B, 2, 6])")
add("aten.expand", "x: f32[T, 1], y: f32[B, 1]", "@(x, [B, T, 5])")
add("aten.expand", "x: bf16[1, T]", "@(x, [3, T])")
add("aten.slice", X, "@(x, 1, 1, 3)", "@(x, 1, 0, T - 1)", "@(x, -1, 1, 6, 2)", "@(x, 1, T // 2, T)", "@(x, 1, -3, T)")
add("aten.slice", "x: bool[T]", "@(x, 0, 1, T, 2)")
add("aten.slice_scatter", f"{X}, s: f32[B, 2, 6]", "@(x, s, 1, 1, 3)", "@(x, s, 1, T - 2, T)", "@(x, s, 1, 0, 4, 2)")
add("aten.slice_scatter", f"{X}, s: f32[B, T, 3]", "@(x, s, 2, 0, 6, 2)", "@(x, s, 2, 3, 6)")
add("aten.cat", f"{X}, y: f32[B, 2, 6]", "@([x, y], 1)", "@([x, y, x], -2)", "@([x], 0)")
add("aten.cat", "x: bool[T], y: bool[3]", "@([x, y], 0)")
add("aten.flip", X, "@(x, [1])", "@(x, [0, 2])")
add("aten.pad", X, "@(x, [1, 2])", "@(x, [0, 1, 2, 0], 'constant', 0.5)", "@(x, [-1, 1])", "@(x, [0, 0, 0, T])")
for _mode in ("reflect", "replicate", "circular"):
    add("aten.pad", X, f"@(x, [1, 2], '{_mode}')")
    add("aten.pad", "x: f32[B, 2, T, 6]", f"@(x, [1, 2, 2, 1], '{_mode}')")
add("aten.pad", "x: bool[T]", "@(x, [1, 1])")
add("aten.pad", "x: i64[T]", "@(x, [1, 1], 'constant', 7)")
add("aten.pad", "x: f16[T]", "@(x, [1, 1])")
for _name in ("tril", "triu"):
    add(f"aten.{_name}", X, "@(x)", "@(x, 1)", "@(x, -1)", "@(x, T - 3)")
    add(f"aten.{_name}", "x: bool[T, T]", "@(x, 1)")
    add(f"aten.{_name}", "x: u8[T, T]", "@(x)")
add("aten.full", "x: f32[B, T]", "@([B, T], 2.5, f32)", "@([3], 7, i64)", "@([T], True, bool)", "@([T + 1], 1.0, f16)")
add("aten.full", "x: f32[B, T]", "@([2, T], T, i64)", "@([], 1.5, f32)", "@([T], 0.5, bf16)")
add("aten.arange", "x: f32[T]", "@(0, T)", "@(1, 9, 2)", "@(T, 0, -1)", "@(0, T, 1, f32)", "@(0, 2*T, 3, i32)")
add("aten.arange", "x: f32[T]", "@(0.0, 1.0, 0.1, f32)", "@(1.5, 4.0, 0.5, f64)")

# Indexing

add("aten.embedding", "w: f32[7, 6], i: i64[B, T]", "@(w, i)")
add("aten.embedding", "w: f16[7, 6], i: i32[T]", "@(w, i)")
add("aten.gather", "x: f32[B, T, 6], i: i64[B, 2, 6]", "@(x, 1, i)")
add("aten.gather", "x: f32[T, 6], i: i64[3, 2]", "@(x, 1, i)", "@(x, 0, i)")
add("aten.index_select", "x: f32[B, T, 6], i: i64[5]", "@(x, 1, i)", "@(x, 2, i)")
add("aten.index", "x: f32[B, T, 6], i: i64[3], j: i64[2, 1]", "@(x, [None, i])", "@(x, [None, i, j])")
add("aten.index", "x: f32[T, 5, 6], i: i64[3], j: i64[2, 1]", "@(x, [i, None, j])", "@(x, [i, j])", "@(x, [i])")
add("aten.index", "x: f32[T, 5, 4, 6], i: i64[3], j: i64[3]", "@(x, [None, i, j])", "@(x, [i, i, j, j])")
add("aten.index", "x: i64[T, 5], i: i32[B, T]", "@(x, [i])")
for _flag in ("False", "True"):
    add("aten.index_put", "x: f32[T, 6], i: i64[1], v: f32[1, 6]", f"@(x, [i], v, {_flag})")
    add("aten.index_put", "x: f32[B, T, 6], i: i64[1], v: f32[B, 1, 6]", f"@(x, [None, i], v, {_flag})")
    add("aten.index_put", "x: f32[T, 4, 6], i: i64[1], v: f32[6]", f"@(x, [i, i], v, {_flag})")
    add("aten.index_put", "x: f32[T, 5, 6], i: i64[1], v: f32[5]", f"@(x, [i, None, i], v, {_flag})")
add("aten.index_put", "x: f32[T, 6], i: i64[5], v: f32[5, 1]", "@(x, [i], v, True)")
add("aten.index_put", "x: i64[T, 4, 6], i: i64[3, 1], j: i64[2], v: i64[6]", "@(x, [None, i, j], v, True)".replace("v,", "w,") if False else "@(x, [i, j], v, True)")
add("aten.scatter_add", "x: f32[T, 6], i: i64[4, 6], s: f32[4, 6]", "@(x, 0, i, s)")
add("aten.scatter_add", "x: f32[T, 6], i: i64[4, 5], s: f32[5, 6]", "@(x, 1, i, s)")
add("aten.scatter_add", "x: i64[T], i: i64[6], s: i64[6]", "@(x, 0, i, s)")
add("aten.scatter", "x: f32[T, 6], i: i64[T, 1], s: f32[T, 1]", "@(x, 1, i, s)")
add("aten.scatter", "x: f32[T, 6], i: i64[1, 5], s: f32[3, 6]", "@(x, 0, i, s)")
for _mode in ("sum", "prod", "mean", "amax", "amin"):
    for _flag in ("True", "False"):
        add("aten.scatter_reduce", "x: f32[T, 6], i: i64[4, 6], s: f32[4, 6]", f"@(x, 0, i, s, '{_mode}', {_flag})")
add("aten.scatter_reduce", "x: i64[T], i: i64[7], s: i64[7]", "@(x, 0, i, s, 'mean', True)", "@(x, 0, i, s, 'amax', False)")

# Products and convolutions

add("aten.linear", "x: f32[B, T, 6], w: f32[4, 6], b: f32[4]", "@(x, w, b)", "@(x, w)")
add("aten.linear", "x: f32[T, 6], w: f32[4, 6], b: f32[4]", "@(x, w, b)", "@(x, w)")
add("aten.linear", "x: f32[6], w: f32[4, 6], b: f32[4]", "@(x, w, b)")
add("aten.linear", "x: f16[T, 6], w: f16[4, 6]", "@(x, w)")
add("aten.linear", "x: f64[T, 6], w: f64[4, 6], b: f64[4]", "@(x, w, b)")
add("aten.matmul", "a: f32[B, T, 6], b: f32[6, 3]", "@(a, b)")
add("aten.matmul", "a: f32[B, 2, T, 6], b: f32[B, 1, 6, T]", "@(a, b)")
add("aten.matmul", "a: f32[T], b: f32[T]", "@(a, b)")
add("aten.matmul", "a: f32[B, T, 6], b: f32[6]", "@(a, b)")
add("aten.matmul", "a: f32[6], b: f32[B, 6, T]", "@(a, b)")
add("aten.matmul", "a: i64[T, 6], b: i64[6, 2]", "@(a, b)")
add("aten.matmul", "a: f16[T, 6], b: f16[6, 2]", "@(a, b)")
_C = "aten.convolution"
add(_C, "x: f32[B, 4, T], w: f32[6, 4, 3], b: f32[6]", "@(x, w, b, [1], [1], [1])", "@(x, w, None, [2], [0], [1])")
add(_C, "x: f32[B, 4, T], w: f32[6, 2, 3]", "@(x, w, None, [1], [2], [2], False, [], 2)")
add(_C, "x: f32[B, 4, T, 9], w: f32[6, 4, 3, 2], b: f32[6]", "@(x, w, b, [1, 2], [1, 0], [1, 1])")
add(_C, "x: f32[B, 4, T, 9], w: f32[4, 1, 3, 3]", "@(x, w, None, [2, 1], [1, 1], [1, 2], False, [0, 0], 4)")
add(_C, "x: f32[B, 2, T, 5, 6], w: f32[3, 2, 2, 2, 2]", "@(x, w, None, [1, 1, 1], [0, 0, 0], [1, 1, 1])")
add(_C, "x: f32[B, 4, T], w: f32[4, 3, 3], b: f32[3]", "@(x, w, b, [2], [1], [1], True, [1], 1)")
add(_C, "x: f32[B, 4, T, 5], w: f32[4, 3, 3, 2]", "@(x, w, None, [1, 2], [0, 1], [1, 1], True, [0, 0], 1)")
add(_C, "x: f32[B, 4, T, 5], w: f32[4, 3, 3, 2]", "@(x, w, None, [2, 2], [1, 0], [2, 1], True, [1, 0], 2)")
add(_C, "x: f16[B, 4, T], w: f16[6, 4, 3]", "@(x, w, None, [1], [1], [1])")

# Pooling

add("aten.max_pool1d", "x: f32[B, 3, T]", "@(x, [2], [2], [0], [1])", "@(x, [3], [1], [1], [1])")
add("aten.max_pool1d", "x: f32[3, T]", "@(x, [2], [2], [0], [1])")
add("aten.max_pool2d", "x: f32[B, 3, T, 9]", "@(x, [2, 3], [2, 2], [0, 1], [1, 1])", "@(x, [2, 2], [1, 1], [0, 0], [2, 3])")
add("aten.max_pool2d", "x: f32[B, 3, 7, 9]", "@(x, [3, 3], [2, 2], [1, 1], [1, 1], True)", "@(x, [2, 2], [2, 2], [0, 0], [1, 1], True)", "@(x, [2, 2], [3, 3], [1, 1], [1, 1], True)")
add("aten.max_pool3d", "x: f32[B, 3, T, 5, 6]", "@(x, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1])")
add("aten.avg_pool1d", "x: f32[B, 3, T]", "@(x, [2], [2], [0])", "@(x, [3], [1], [1], False, False)", "@(x, [3], [1], [1])")
add("aten.avg_pool1d", "x: f32[B, 3, 8]", "@(x, [3], [2], [1], True)", "@(x, [3], [2], [0], True, False)")
add("aten.avg_pool2d", "x: f32[B, 3, T, 9]", "@(x, [2, 3], [2, 2], [0, 1])", "@(x, [3, 3], [2, 2], [1, 1], False, False)")
add("aten.avg_pool2d", "x: f32[B, 3, 7, 8]", "@(x, [3, 3], [2, 2], [1, 1], True, False)", "@(x, [3, 3], [2, 2], [1, 1], True, True)", "@(x, [2, 2], [3, 3], [1, 1], True, True)", "@(x, [2, 2], [3, 3], [1, 1], True, False)")
add("aten.avg_pool3d", "x: f32[B, 3, T, 5, 6]", "@(x, [2, 2, 2], [2, 2, 2], [0, 0, 0])", "@(x, [3, 3, 3], [2, 2, 2], [1, 1, 1])")
for _name in ("avg", "max"):
    add(f"aten.adaptive_{_name}_pool1d", "x: f32[B, 3, T]", "@(x, [1])", "@(x, [3])", "@(x, [7])")
    add(f"aten.adaptive_{_name}_pool1d", "x: f32[B, 3, 12]", "@(x, [4])", "@(x, [5])")
    add(f"aten.adaptive_{_name}_pool2d", "x: f32[B, 3, T, 9]", "@(x, [1, 1])", "@(x, [2, 3])", "@(x, [3, 9])")
    add(f"aten.adaptive_{_name}_pool2d", "x: f32[3, 8, 9]", "@(x, [2, 3])", "@(x, [3, 2])")
    add(f"aten.adaptive_{_name}_pool3d", "x: f32[B, 3, T, 5, 6]", "@(x, [2, 2, 2])", "@(x, [1, 1, 1])")
add("aten.upsample_nearest2d", "x: f32[B, 3, T, 5]", "@(x, [2*T, 10])", "@(x, [7, 9])", "@(x, [T, 3])", "@(x, [49, 49])")
for _name in ("bilinear", "bicubic"):
    add(f"aten.upsample_{_name}2d", "x: f32[B, 3, T, 5]", "@(x, [2*T, 10])", "@(x, [7, 9])", "@(x, [2*T, 10], True)", "@(x, [3, 1], True)", "@(x, [1, 3])")
for _mode in (0, 1, 2):
    for _pad in (0, 1, 2):
        add("aten.grid_sampler_2d", "x: f32[B, 3, T, 5], g: f32[B, 4, 6, 2]", f"@(x, g, {_mode}, {_pad})", f"@(x, g, {_mode}, {_pad}, True)")

# Recurrent layers

for _kind, _gates, _states in (("lstm", 4, 2), ("gru", 3, 1), ("rnn_tanh", 1, 1), ("rnn_relu", 1, 1)):
    for _layers, _both, _first, _bias in ((1, False, True, True), (2, True, False, True), (2, False, True, False), (1, True, True, False)):
        _dirs = 2 if _both else 1
        _x = "f32[B, T, 6]" if _first else "f32[T, B, 6]"
        _names, _given = [], [f"x: {_x}"]
        for _i in range(_states):
            _given.append(f"h{_i}: f32[{_layers * _dirs}, B, 5]")
        for _l in range(_layers):
            for _d in range(_dirs):
                _in = 6 if _l == 0 else 5 * _dirs
                _shapes = [f"{_gates * 5}, {_in}", f"{_gates * 5}, 5"] + [f"{_gates * 5}"] * (2 if _bias else 0)
                for _s in _shapes:
                    _names.append(f"w{len(_names)}")
                    _given.append(f"{_names[-1]}: f32[{_s}]")
        _call = (
            f"aten.{_kind}(x, [{', '.join(f'h{i}' for i in range(_states))}], [{', '.join(_names)}], {_bias}, {_layers},"
            f" {_both}, {_first})"
        )
        _items = "".join(f"    y{i} = planish.item(r, {i})\n" for i in range(_states + 1))
        _out = ", ".join(f"y{i}" for i in range(_states + 1))
        _program = (
            f"B = dim(1, 64)\nT = dim(4, 64)\ndef main({', '.join(_given)}):\n    r = {_call}\n{_items}    return {_out}\n"
        )
        text(f"aten.{_kind}", _program)
        text("planish.item", _program)

# Attention

QKV = "q: f32[B, 4, T, 8], k: f32[B, 2, T, 8], v: f32[B, 2, T, 8]"
P = "planish.attention"
add(P, QKV, "@(q, k, v)", "@(q, k, v, causal=True)", "@(q, k, v, causal=True, window=3)", "@(q, k, v, scale=0.3, softcap=2.0)")
add(P, QKV, "@(q, k, v, causal=True, softcap=2.0, window=3)", "@(q, k, v, window=2)")
add(P, "q: f32[B, 4, 3, 8], k: f32[B, 2, T, 8], v: f32[B, 2, T, 5]", "@(q, k, v, causal=True)", "@(q, k, v)")
add(P, "q: f32[B, 2, T, 8], k: f32[B, 2, 3, 8], v: f32[B, 2, 3, 8]", "@(q, k, v, causal=True)", "@(q, k, v, causal=True, window=2)")
add(P, "q: f32[4, T, 8], k: f32[2, T, 8], v: f32[2, T, 8]", "@(q, k, v, causal=True)")
add(P, "q: f32[T, 8], k: f32[T, 8], v: f32[T, 8]", "@(q, k, v, causal=True)", "@(q, k, v)")
add(P, "q: f32[B, 3, 4, T, 8], k: f32[B, 3, 2, T, 8], v: f32[B, 3, 2, T, 8]", "@(q, k, v, causal=True)")
for _shape in ("[T, T]", "[B, 1, T, T]", "[1, 1, T, T]", "[B, 1, 1, T]", "[B, 4, T, T]"):
    add(P, f"{QKV}, m: f32{_shape}", "@(q, k, v, m)", "@(q, k, v, m, True, window=3)")
    add(P, f"{QKV}, m: bool{_shape}", "@(q, k, v, m)", "@(q, k, v, m, True)", "@(q, k, v, m, False, 3)")
add(P, f"{QKV}, m: f32[T, 1]", "@(q, k, v, m)")
add(P, f"{QKV}, m: bool[B, 1, T, T]", "@(q, k, v, m, softcap=2.0)")
S = "aten.scaled_dot_product_attention"
SAME = "q: f32[B, 4, T, 8], k: f32[B, 4, T, 8], v: f32[B, 4, T, 8]"
add(S, SAME, "@(q, k, v)", "@(q, k, v, causal=True)", "@(q, k, v, scale=0.2)")
add(S, f"{SAME}, m: f32[B, 1, T, T]", "@(q, k, v, m)")
add(S, f"{SAME}, m: bool[T, T]", "@(q, k, v, m)")
add(S, "q: f16[B, 4, T, 8], k: f16[B, 4, T, 8], v: f16[B, 4, T, 8]", "@(q, k, v)")
R = "planish.rope"
for _flag in ("False", "True"):
    add(R, "x: f32[B, 4, T, 8], c: f32[T, 4], s: f32[T, 4]", f"@(x, c, s, {_flag})")
    add(R, "x: f32[B, 4, T, 8], c: f32[T, 3], s: f32[T, 3]", f"@(x, c, s, {_flag})")
    add(R, "x: f32[B, 4, T, 8], c: f32[B, 1, T, 4], s: f32[B, 1, T, 4]", f"@(x, c, s, {_flag})")
    add(R, "x: f32[B, 4, T, 8], c: f32[1, 1, T, 4], s: f32[1, 1, T, 4]", f"@(x, c, s, {_flag})")
    add(R, "x: f32[B, T, 4, 8], c: f32[T, 1, 2], s: f32[T, 1, 2]", f"@(x, c, s, {_flag})")
    add(R, "x: f32[B, T, 8], c: f32[B, T, 4], s: f32[B, T, 4]", f"@(x, c, s, {_flag})")
add(R, "x: f64[B, 4, T, 8], c: f64[T, 4], s: f64[T, 4]", "@(x, c, s)")

# Codes

for _bits in range(1, 9):
    _bytes = -(-10 * _bits // 8)
    add("planish.unpack", f"c: u8[T, {_bytes}]", f"@(c, {_bits}, 10)")
    add("planish.unpack", f"c: u8[B, T, {2 * _bits}]", f"@(c, {_bits}, 16)")
add("planish.unpack", "c: u8[3, T]", "@(c, 4, 2*T)", "@(c, 8, T)")
D = "planish.dequant"
add(D, "c: u8[T, 12], s: f32[T, 3]", "@(c, s, 2, 4)", "@(c, s, 0, 4)", "@(c, s, 1.5, 4)")
add(D, "c: u8[T, 10], s: f32[T, 3], z: u8[T, 3]", "@(c, s, z, 4)")
add(D, "c: u8[B, T, 10], s: f16[B, T, 1], z: f16[B, T, 1]", "@(c, s, z, 10)", "@(c, s, z, 10, f16)")
add(D, "c: u8[T, 10], s: f32[1, 3], z: u8[1, 3]", "@(c, s, z, 4)")
add(D, "c: i8[T, 8], s: f32[T, 2]", "@(c, s, 0, 4)", "@(c, s, 3, 4)")
add(D, "c: u8[T, 10], s: f32[T, 3], z: f32[T, 3]", "@(c, s, z, 4)")

# Control flow

_BRANCHES = (
    "T = dim(4, 64)\ndef then(x: f32[T, 3]):\n    y = aten.mul(x, 2.0)\n    return y\n"
    "def otherwise(x: f32[T, 3]):\n    y = aten.sub(x, 1.0)\n    return y\n"
)
for _shape in ("()", "1"):
    text(
        "planish.cond",
        f"{_BRANCHES}def main(p: bool[{_shape}], x: f32[T, 3]):\n    r = planish.cond(p, then, otherwise, [x])\n"
        "    out = planish.item(r, 0)\n    return out\n",
    )
text(
    "planish.scan",
    "T = dim(4, 64)\ndef body(h: f32[3], x: f32[3], w: f32[3, 3]):\n    m = aten.matmul(h, w)\n    n = aten.add(m, x)\n"
    "    t = aten.tanh(n)\n    y = aten.mul(t, 2.0)\n    return t, y\n"
    "def main(h: f32[3], x: f32[T, 3], w: f32[3, 3]):\n    r = planish.scan(body, [h], [x], [w])\n"
    "    last = planish.item(r, 0)\n    all = planish.item(r, 1)\n    return last, all\n",
)


def cases() -> Iterator[tuple[str, str]]:
    """Every example with a name of its own."""
    for op, programs in EXAMPLES.items():
        for i, program in enumerate(programs):
            yield f"{op}-{i}", program


def program_of(source: str) -> Program:
    """The program of an example; the last one if it holds nested ones."""
    return parse_module(source).programs[-1]


def inputs_of(program: Program, sizes: Mapping[str, int], seed: int = 0) -> list[Any]:
    """Inputs for a program at given sizes."""
    binding = {s: sizes[s.name] for s in program.symbols}
    return [example_value(leaf.tensor, binding, seed + i) for i, leaf in enumerate(program.inputs)]


def expected(program: Program, inputs: list[Any], weights: Weights | None = None) -> tuple[torch.Tensor, ...]:
    """What the interpreter gives."""
    from planish.ir.run import run

    return run(program, weights or Weights(), *inputs)
