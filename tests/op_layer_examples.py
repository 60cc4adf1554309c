# ruff: noqa: E501 (a table)
"""Examples for layers: products, convolutions, pooling, recurrence, attention, codes, control flow."""

from __future__ import annotations

from tests.op_example_forms import add, text

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
add(
    _C,
    "x: f32[B, 4, T], w: f32[6, 4, 3], b: f32[6]",
    "@(x, w, b, [1], [1], [1])",
    "@(x, w, None, [2], [0], [1])",
)
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
add(
    "aten.max_pool2d",
    "x: f32[B, 3, T, 9]",
    "@(x, [2, 3], [2, 2], [0, 1], [1, 1])",
    "@(x, [2, 2], [1, 1], [0, 0], [2, 3])",
)
add(
    "aten.max_pool2d",
    "x: f32[B, 3, 7, 9]",
    "@(x, [3, 3], [2, 2], [1, 1], [1, 1], True)",
    "@(x, [2, 2], [2, 2], [0, 0], [1, 1], True)",
    "@(x, [2, 2], [3, 3], [1, 1], [1, 1], True)",
)
add("aten.max_pool3d", "x: f32[B, 3, T, 5, 6]", "@(x, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1])")
add(
    "aten.avg_pool1d",
    "x: f32[B, 3, T]",
    "@(x, [2], [2], [0])",
    "@(x, [3], [1], [1], False, False)",
    "@(x, [3], [1], [1])",
)
add("aten.avg_pool1d", "x: f32[B, 3, 8]", "@(x, [3], [2], [1], True)", "@(x, [3], [2], [0], True, False)")
add(
    "aten.avg_pool2d",
    "x: f32[B, 3, T, 9]",
    "@(x, [2, 3], [2, 2], [0, 1])",
    "@(x, [3, 3], [2, 2], [1, 1], False, False)",
)
add(
    "aten.avg_pool2d",
    "x: f32[B, 3, 7, 8]",
    "@(x, [3, 3], [2, 2], [1, 1], True, False)",
    "@(x, [3, 3], [2, 2], [1, 1], True, True)",
    "@(x, [2, 2], [3, 3], [1, 1], True, True)",
    "@(x, [2, 2], [3, 3], [1, 1], True, False)",
)
add(
    "aten.avg_pool3d",
    "x: f32[B, 3, T, 5, 6]",
    "@(x, [2, 2, 2], [2, 2, 2], [0, 0, 0])",
    "@(x, [3, 3, 3], [2, 2, 2], [1, 1, 1])",
)
for _name in ("avg", "max"):
    add(f"aten.adaptive_{_name}_pool1d", "x: f32[B, 3, T]", "@(x, [1])", "@(x, [3])", "@(x, [7])")
    add(f"aten.adaptive_{_name}_pool1d", "x: f32[B, 3, 12]", "@(x, [4])", "@(x, [5])")
    add(f"aten.adaptive_{_name}_pool2d", "x: f32[B, 3, T, 9]", "@(x, [1, 1])", "@(x, [2, 3])", "@(x, [3, 9])")
    add(f"aten.adaptive_{_name}_pool2d", "x: f32[3, 8, 9]", "@(x, [2, 3])", "@(x, [3, 2])")
    add(f"aten.adaptive_{_name}_pool3d", "x: f32[B, 3, T, 5, 6]", "@(x, [2, 2, 2])", "@(x, [1, 1, 1])")
add(
    "aten.upsample_nearest2d",
    "x: f32[B, 3, T, 5]",
    "@(x, [2*T, 10])",
    "@(x, [7, 9])",
    "@(x, [T, 3])",
    "@(x, [49, 49])",
)
for _name in ("bilinear", "bicubic"):
    add(
        f"aten.upsample_{_name}2d",
        "x: f32[B, 3, T, 5]",
        "@(x, [2*T, 10])",
        "@(x, [7, 9])",
        "@(x, [2*T, 10], True)",
        "@(x, [3, 1], True)",
        "@(x, [1, 3])",
    )
for _mode in (0, 1, 2):
    for _pad in (0, 1, 2):
        add(
            "aten.grid_sampler_2d",
            "x: f32[B, 3, T, 5], g: f32[B, 4, 6, 2]",
            f"@(x, g, {_mode}, {_pad})",
            f"@(x, g, {_mode}, {_pad}, True)",
        )

# Recurrent layers

for _kind, _gates, _states in (("lstm", 4, 2), ("gru", 3, 1), ("rnn_tanh", 1, 1), ("rnn_relu", 1, 1)):
    for _layers, _both, _first, _bias in (
        (1, False, True, True),
        (2, True, False, True),
        (2, False, True, False),
        (1, True, True, False),
    ):
        _dirs = 2 if _both else 1
        _x = "f32[B, T, 6]" if _first else "f32[T, B, 6]"
        _names, _given = [], [f"x: {_x}"]
        for _i in range(_states):
            _given.append(f"h{_i}: f32[{_layers * _dirs}, B, 5]")
        for _l in range(_layers):
            for _d in range(_dirs):
                _in = 6 if _l == 0 else 5 * _dirs
                _shapes = [f"{_gates * 5}, {_in}", f"{_gates * 5}, 5"] + [f"{_gates * 5}"] * (
                    2 if _bias else 0
                )
                for _s in _shapes:
                    _names.append(f"w{len(_names)}")
                    _given.append(f"{_names[-1]}: f32[{_s}]")
        _call = (
            f"aten.{_kind}(x, [{', '.join(f'h{i}' for i in range(_states))}], [{', '.join(_names)}], {_bias}, {_layers},"
            f" {_both}, {_first})"
        )
        _items = "".join(f"    y{i} = planish.item(r, {i})\n" for i in range(_states + 1))
        _out = ", ".join(f"y{i}" for i in range(_states + 1))
        _program = f"B = dim(1, 64)\nT = dim(4, 64)\ndef main({', '.join(_given)}):\n    r = {_call}\n{_items}    return {_out}\n"
        text(f"aten.{_kind}", _program)
        text("planish.item", _program)

# Attention

QKV = "q: f32[B, 4, T, 8], k: f32[B, 2, T, 8], v: f32[B, 2, T, 8]"
P = "planish.attention"
add(
    P,
    QKV,
    "@(q, k, v)",
    "@(q, k, v, causal=True)",
    "@(q, k, v, causal=True, window=3)",
    "@(q, k, v, scale=0.3, softcap=2.0)",
)
add(P, QKV, "@(q, k, v, causal=True, softcap=2.0, window=3)", "@(q, k, v, window=2)")
add(P, "q: f32[B, 4, 3, 8], k: f32[B, 2, T, 8], v: f32[B, 2, T, 5]", "@(q, k, v, causal=True)", "@(q, k, v)")
add(
    P,
    "q: f32[B, 2, T, 8], k: f32[B, 2, 3, 8], v: f32[B, 2, 3, 8]",
    "@(q, k, v, causal=True)",
    "@(q, k, v, causal=True, window=2)",
)
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

for _tile, _depth in ((16, 1), (16, 4), (32, 2), (8, 1)):
    _tiles, _steps = -(-20 // _tile), -(-10 // _depth)
    add("planish.tile_rows", "x: f32[20, 10]", f"@(x, {_tile}, {_depth})")
    add(
        "planish.untile_rows",
        f"x: f32[{_tiles}, {_steps}, {_tile * _depth}]",
        f"@(x, 20, 10, {_tile}, {_depth})",
    )
for _bits in range(1, 9):
    add("planish.panel", "c: u8[18, 40]", f"@(c, {_bits})")
    add("planish.unpanel", f"c: u8[2, {64 * _bits * 2}]", f"@(c, {_bits}, 18, 40)")
add("planish.fake_quantize", "x: f32[B, T, 10]", "@(x, 8, 4)", "@(x, 8, 32)", "@(x, 4, 5)")
for _n, _m, _bits in ((1, 2, 1), (2, 4, 2), (3, 4, 2), (1, 8, 3), (5, 8, 3)):
    for _length in (16, 19):
        _count = -(-_length // _m) * _n
        _bytes = -(-_count * _bits // 8)
        for _kind in ("f32", "f16"):
            _given = f"v: {_kind}[T, {_count}], p: u8[T, {_bytes}]"
            add("planish.expand_nm", _given, f"@(v, p, {_n}, {_m}, {_length})")
add("planish.expand_nm", "v: f64[B, T, 6], p: u8[B, T, 2]", "@(v, p, 2, 4, 12)")

# Caches

_CACHE = "q: f32[2, 4, T, 8], k: f32[2, 2, 12, 8], v: f32[2, 2, 12, 6], s: i64[2], n: i64[2]"
add(
    "planish.put",
    "c: f32[2, 2, 12, 8], x: f32[2, 2, T, 8], s: i64[2], n: i64[2]",
    "@(c, x, s, n)",
    "@(c, x, s, n, True)",
)
add("planish.put", "c: f16[B, 12, 8], x: f16[B, T, 8], s: i64[B], n: i64[B]", "@(c, x, s, n)")
add(
    "planish.attend",
    _CACHE,
    "@(q, k, v, s, n)",
    "@(q, k, v, s, n, None, 3, 0.2, 30.0)",
    "@(q, k, v, s, n, None, 3, 0.2, None, True)",
)
add("planish.attend", _CACHE + ", m: f32[4, T, 12]", "@(q, k, v, s, n, m)")
add("planish.attend", _CACHE + ", m: bool[T, 12]", "@(q, k, v, s, n, m)")
for _more in (")", ", 0.2, 30.0)"):
    text(
        "planish.attend_parallel",
        f"T = dim(1, 64)\ndef main({_CACHE}, f: i64[2], l: i64[2], t: f32[2], p: f32[2]):\n"
        "    last = aten.add(l, 3)\n    warm = aten.sigmoid(t)\n    part = aten.sigmoid(p)\n"
        f"    out = planish.attend_parallel(q, k, v, s, n, f, last, warm, part{_more}\n    return out\n",
    )
text(
    "planish.attend_parallel",
    "B = dim(1, 64)\nT = dim(1, 64)\ndef main(q: f16[B, 4, T, 8], k: f16[B, 4, 12, 8], v: f16[B, 4, 12, 6], s: i64[B],"
    " n: i64[B], f: i64[B], l: i64[B], t: f32[B]):\n"
    "    count = aten.add(n, 3)\n    warm = aten.sigmoid(t)\n"
    "    out = planish.attend_parallel(q, k, v, s, count, f, l, warm, warm)\n    return out\n",
)
