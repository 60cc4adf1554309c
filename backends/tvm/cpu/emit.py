"""Words of the emitters of CPU kernels: vectors, multiply-accumulate of bytes and of bf16 pairs, conversions.

Kernels are built with ``tvm.script.ir_builder`` by plain Python functions, so that several can be put together
into one function. A vector is an expression with lanes; registers are local buffers with constant indices.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.isa import Isa


def load(buffer: Any, index: tuple[Any, ...], lanes: int) -> Any:
    """``lanes`` consecutive elements along the last axis, beginning at ``index``."""
    *lead, last = index
    return buffer[(*lead, tirx.Ramp(last, 1, lanes) if lanes > 1 else last)]


def store(buffer: Any, index: tuple[Any, ...], value: Any, lanes: int) -> None:
    """Write ``lanes`` consecutive elements along the last axis."""
    *lead, last = index
    T.buffer_store(buffer, value, [*lead, tirx.Ramp(last, 1, lanes) if lanes > 1 else last])


def splat(value: Any, lanes: int) -> Any:
    """A scalar in every lane."""
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def registers(count: int, lanes: int, dtype: str = "float32") -> Any:
    """``count`` vector registers ``[count, lanes]``; LLVM keeps them in registers if indices are constants."""
    return T.alloc_buffer((count, lanes), dtype, annotations={"disable_lower_builtin": True})


def dot_bytes(isa: Isa, acc: Any, unsigned: Any, signed4: Any) -> Any:
    """``acc[l] + sum_j unsigned[4l + j] * signed4[j]`` for 16 lanes of i32, by ``vpdpbusd``.

    ``unsigned`` is u8x64, ``signed4`` i8x4, the same four for every lane.
    """
    assert isa.vnni
    four = tirx.Broadcast(T.reinterpret("int32", signed4), 16)
    return tirx.call_llvm_pure_intrin(
        "int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, unsigned, T.reinterpret("int8x64", four)
    )
