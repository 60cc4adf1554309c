"""Products of bf16 pairs and roundings to bf16 by the instructions of AVX512-BF16.

TVM widens every bf16 value to f32 before LLVM sees it, so these instructions come from a piece of LLVM text whose
functions take integers of the same bits; LLVM puts them in line.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.cpu.math import bind, lanes_of

_NAN = 0x7FC00000

_TEXT = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)

define <16 x float> @planish_dot_pairs(<16 x float> %sum, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %left = bitcast <16 x i32> %a to <32 x bfloat>
  %right = bitcast <16 x i32> %b to <32 x bfloat>
  %made = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %sum, <32 x bfloat> %left, <32 x bfloat> %right)
  ret <16 x float> %made
}

define <16 x i16> @planish_round_pairs(<16 x float> %v) alwaysinline {
  %rounded = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %v)
  %made = bitcast <16 x bfloat> %rounded to <16 x i16>
  ret <16 x i16> %made
}
"""


def imported() -> Any:
    """The scope in which :func:`dot_pairs` and :func:`round_pairs` may be used; wraps the body of a function."""
    return T.attr(0, "pragma_import_llvm", _TEXT)


def dot_pairs(total: Any, a: Any, b: Any) -> Any:
    """``total[l] + a[l].low * b[l].low + a[l].high * b[l].high`` for 16 lanes; ``a`` and ``b`` are pairs as i32."""
    return T.call_pure_extern("float32x16", "planish_dot_pairs", total, a, b)


def round_pairs(v: Any) -> Any:
    """16 lanes of f32 rounded to bf16, as u16; denormal numbers become 0."""
    return T.reinterpret("uint16x16", T.call_pure_extern("int16x16", "planish_round_pairs", v))


def _of(kind: str, number: int, lanes: int) -> Any:
    scalar = tirx.IntImm(kind, number)
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def _kind(kind: str, lanes: int) -> str:
    return f"{kind}x{lanes}" if lanes > 1 else kind


def round_bf16(v: Any) -> Any:
    """Lanes of f32 rounded to bf16, half to even, as f32 again; any NaN becomes one. Runs on every machine."""
    lanes = lanes_of(v)

    def value(x: Any) -> Any:
        bits = T.reinterpret(_kind("uint32", lanes), x)
        odd = tirx.bitwise_and(tirx.shift_right(bits, _of("uint32", 16, lanes)), _of("uint32", 1, lanes))
        up = tirx.bitwise_and(bits + odd + _of("uint32", 0x7FFF, lanes), _of("uint32", 0xFFFF0000, lanes))
        # Rounding may carry a NaN over to a number, or cut it to an infinity. TVM takes ``x == x`` for true.
        size = tirx.bitwise_and(bits, _of("uint32", 0x7FFFFFFF, lanes))
        is_number = size <= _of("uint32", 0x7F800000, lanes)
        chosen = tirx.Select(is_number, up, _of("uint32", _NAN, lanes))
        return T.reinterpret(_kind("float32", lanes), chosen)

    return bind(v, value)


def low_half(pairs: Any) -> Any:
    """The first bf16 of each pair (u32 lanes) as f32."""
    lanes = lanes_of(pairs)
    return T.reinterpret(_kind("float32", lanes), tirx.shift_left(pairs, _of("uint32", 16, lanes)))


def high_half(pairs: Any) -> Any:
    """The second bf16 of each pair (u32 lanes) as f32."""
    lanes = lanes_of(pairs)
    masked = tirx.bitwise_and(pairs, _of("uint32", 0xFFFF0000, lanes))
    return T.reinterpret(_kind("float32", lanes), masked)
