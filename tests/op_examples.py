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
from tests import op_layer_examples  # noqa: F401  (fills the table)
from tests.op_example_forms import EXAMPLES, X, add, text

BINDINGS: tuple[Mapping[str, int], ...] = ({"T": 5, "B": 2}, {"T": 8, "B": 1}, {"T": 12, "B": 3})

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
    add(f"aten.{_name}", X, "@(x)")
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
add("aten.to", "x: f32[T]", "@(x, bf16)", "@(x, i8)", "@(x, i32)", "@(x, f64)", "@(x, i16)")
add("aten.to", "x: i64[T]", "@(x, u8)", "@(x, u16)")

# Two operands

AB = "a: f32[B, T, 6], b: f32[T, 1]"
for _name in (
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "atan2",
    "maximum",
    "minimum",
    "fmod",
    "remainder",
    "floor_divide",
):
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
    "T = dim(4, 64)\ndef main(x: f32[T, 3]):\n    f = aten.full([T, 3], -inf, f32)\n    g = aten.add(f, x)\n"
    "    out = aten.logsumexp(g, [1])\n    return out\n",
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
add("aten.batch_norm", f"x: f32[B, 6, T, 3], {W}, {M}", "@(x, w, b, m, v)")
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

add(
    "aten.view", "x: f32[B, T, 6]", "@(x, [B, T, 2, 3])", "@(x, [B*T, 6])", "@(x, [6*B*T])", "@(x, [T, B, 6])"
)
add(
    "aten.view",
    "x: f32[2, T, 6]",
    "@(x, [2*T, 3, 2])",
    "@(x, [2, 6*T])",
    "@(x, [12, T])",
    "@(x, [1, 2, 1, T, 6])",
)
add("aten.view", "x: f32[4, 6]", "@(x, [2, 12])")
add("aten.permute", X, "@(x, [0, 2, 1])", "@(x, [2, 0, 1])", "@(x, [0, 1, 2])")
add("aten.expand", "x: f32[B, 1, 6]", "@(x, [B, 4, 6])", "@(x, [3, B, 2, 6])")
add("aten.expand", "x: f32[T, 1], y: f32[B, 1]", "@(x, [B, T, 5])")
add("aten.expand", "x: bf16[1, T]", "@(x, [3, T])")
add(
    "aten.slice",
    X,
    "@(x, 1, 1, 3)",
    "@(x, 1, 0, T - 1)",
    "@(x, -1, 1, 6, 2)",
    "@(x, 1, T // 2, T)",
    "@(x, 1, -3, T)",
)
add("aten.slice", "x: bool[T]", "@(x, 0, 1, T, 2)")
add(
    "aten.slice_scatter",
    f"{X}, s: f32[B, 2, 6]",
    "@(x, s, 1, 1, 3)",
    "@(x, s, 1, T - 2, T)",
    "@(x, s, 1, 0, 4, 2)",
)
add("aten.slice_scatter", f"{X}, s: f32[B, T, 3]", "@(x, s, 2, 0, 6, 2)", "@(x, s, 2, 3, 6)")
add("aten.cat", f"{X}, y: f32[B, 2, 6]", "@([x, y], 1)", "@([x, y, x], -2)", "@([x], 0)")
add("aten.cat", "x: bool[T], y: bool[3]", "@([x, y], 0)")
add("aten.flip", X, "@(x, [1])", "@(x, [0, 2])")
add(
    "aten.pad",
    X,
    "@(x, [1, 2])",
    "@(x, [0, 1, 2, 0], 'constant', 0.5)",
    "@(x, [-1, 1])",
    "@(x, [0, 0, 0, T])",
)
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
add(
    "aten.full",
    "x: f32[B, T]",
    "@([B, T], 2.5, f32)",
    "@([3], 7, i64)",
    "@([T], True, bool)",
    "@([T + 1], 1.0, f16)",
)
add("aten.full", "x: f32[B, T]", "@([2, T], T, i64)", "@([], 1.5, f32)", "@([T], 0.5, bf16)")
add(
    "aten.arange", "x: f32[T]", "@(0, T)", "@(1, 9, 2)", "@(T, 0, -1)", "@(0, T, 1, f32)", "@(0, 2*T, 3, i32)"
)
add("aten.arange", "x: f32[T]", "@(0.0, 1.0, 0.1, f32)", "@(1.5, 4.0, 0.5, f64)")

# Indexing

add("aten.embedding", "w: f32[7, 6], i: i64[B, T]", "@(w, i)")
add("aten.embedding", "w: f16[7, 6], i: i32[T]", "@(w, i)")
add("aten.gather", "x: f32[B, T, 6], i: i64[B, 2, 6]", "@(x, 1, i)")
add("aten.gather", "x: f32[T, 6], i: i64[3, 2]", "@(x, 1, i)", "@(x, 0, i)")
add("aten.index_select", "x: f32[B, T, 6], i: i64[5]", "@(x, 1, i)", "@(x, 2, i)")
add("aten.index", "x: f32[B, T, 6], i: i64[3], j: i64[2, 1]", "@(x, [None, i])", "@(x, [None, i, j])")
add(
    "aten.index",
    "x: f32[T, 5, 6], i: i64[3], j: i64[2, 1]",
    "@(x, [i, None, j])",
    "@(x, [i, j])",
    "@(x, [i])",
)
add("aten.index", "x: f32[T, 5, 4, 6], i: i64[3], j: i64[3]", "@(x, [None, i, j])", "@(x, [i, i, j, j])")
add("aten.index", "x: i64[T, 5], i: i32[B, T]", "@(x, [i])")
for _flag in ("False", "True"):
    add("aten.index_put", "x: f32[T, 6], i: i64[1], v: f32[1, 6]", f"@(x, [i], v, {_flag})")
    add("aten.index_put", "x: f32[B, T, 6], i: i64[1], v: f32[B, 1, 6]", f"@(x, [None, i], v, {_flag})")
    add("aten.index_put", "x: f32[T, 4, 6], i: i64[1], v: f32[6]", f"@(x, [i, i], v, {_flag})")
    add("aten.index_put", "x: f32[T, 5, 6], i: i64[1], v: f32[5]", f"@(x, [i, None, i], v, {_flag})")
add("aten.index_put", "x: f32[T, 6], i: i64[5], v: f32[5, 1]", "@(x, [i], v, True)")
add("aten.index_put", "x: i64[T, 4, 6], i: i64[3, 1], j: i64[2], v: i64[6]", "@(x, [i, j], v, True)")
add("aten.scatter_add", "x: f32[T, 6], i: i64[4, 6], s: f32[4, 6]", "@(x, 0, i, s)")
add("aten.scatter_add", "x: f32[T, 6], i: i64[4, 5], s: f32[5, 6]", "@(x, 1, i, s)")
add("aten.scatter_add", "x: i64[T], i: i64[6], s: i64[6]", "@(x, 0, i, s)")
add("aten.scatter", "x: f32[T, 6], i: i64[T, 1], s: f32[T, 1]", "@(x, 1, i, s)")
add("aten.scatter", "x: f32[T, 6], i: i64[1, 5], s: f32[3, 6]", "@(x, 0, i, s)")
for _mode in ("sum", "prod", "mean", "amax", "amin"):
    for _flag in ("True", "False"):
        add(
            "aten.scatter_reduce",
            "x: f32[T, 6], i: i64[4, 6], s: f32[4, 6]",
            f"@(x, 0, i, s, '{_mode}', {_flag})",
        )
add(
    "aten.scatter_reduce",
    "x: i64[T], i: i64[7], s: i64[7]",
    "@(x, 0, i, s, 'mean', True)",
    "@(x, 0, i, s, 'amax', False)",
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
