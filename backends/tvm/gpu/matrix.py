"""Products of small matrices by tensor cores: ``D[16, 8] += A[16, 16] @ B[16, 8]`` by the 32 threads of a warp.

Of A a thread holds four words of two elements, rows ``t/4`` and ``t/4 + 8``, columns ``2*(t%4)`` and 8 further; of B
two words, rows ``2*(t%4)`` and 8 further of column ``t/4``; of D the columns ``2*(t%4)`` and the next of A's two rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.gpu import words as W
from planish.backends.tvm.gpu.device import Gpu

WARP = 32


def pack(gpu: Gpu, kind: str, low: Any, high: Any) -> Any:
    """Two f32 rounded to ``float16`` or ``bfloat16`` in one word."""
    return _bits(gpu, kind, low) | (_bits(gpu, kind, high) << W.u32(16))


def _bits(gpu: Gpu, kind: str, value: Any) -> Any:
    if kind == "bfloat16":
        return bf16_word(value) >> W.u32(16)
    if gpu.has_half:
        return tirx.Cast("uint32", T.reinterpret("uint16", tirx.Cast("float16", value)))
    return tirx.Cast("uint32", W.half_bits(value))


def bf16_word(value: Any) -> Any:
    """The word of an f32 after rounding, half to even, to bf16."""
    bits = W.named(T.reinterpret("uint32", value))
    up = W.named(bits + W.u32(0x7FFF) + ((bits >> W.u32(16)) & W.u32(1)))
    is_nan = (bits & W.u32(0x7FFFFFFF)) > W.u32(0x7F800000)
    return tirx.Select(is_nan, W.u32(0x7FC00000), up & W.u32(0xFFFF0000))


def rounded_bf16(value: Any) -> Any:
    """An f32 rounded to bf16."""
    return T.reinterpret("float32", bf16_word(value))


def element(gpu: Gpu, kind: str, word: Any, high: bool) -> Any:
    """One of the two elements of a word as f32."""
    if kind == "bfloat16":
        return T.reinterpret("float32", word & W.u32(0xFFFF0000) if high else word << W.u32(16))
    bits = tirx.Cast("uint16", word >> W.u32(16) if high else word & W.u32(0xFFFF))
    return tirx.Cast("float32", T.reinterpret("float16", bits)) if gpu.has_half else W.half_value(bits)


@dataclass(frozen=True)
class Multiplier:
    """Emits products of the words of a warp; where the device has no tensor cores, the same by way of shared memory."""

    gpu: Gpu
    kind: str
    thread: Any
    room: Any = None

    @staticmethod
    def make(gpu: Gpu, kind: str, thread: Any, threads: int) -> Multiplier:
        """For blocks of so many threads, a multiple of 32."""
        room = None if gpu.matrix == "mma" else W.shared(threads * 6, "uint32")
        return Multiplier(gpu, kind, thread, room)

    def each(self, count: int, body: Callable[[Any], None]) -> None:
        """``body(i)`` for every i: one after the other in the text for tensor cores, else in a loop."""
        if self.gpu.matrix == "mma":
            for i in range(count):
                body(i)
            return
        with T.serial(0, count) as i:
            body(i)

    def __call__(self, a: Any, a_at: Any, b: Any, b_at: Any, sums: Any, at: Any) -> None:
        """``sums[at:at+4] += A @ B`` of the words ``a[a_at:+4]`` and ``b[b_at:+2]``, by all threads of the block."""
        if self.gpu.matrix != "mma":
            self._emulated(a, a_at, b, b_at, sums, at)
            return
        short = {"float16": "fp16", "bfloat16": "bf16"}[self.kind]
        T.evaluate(
            T.ptx_legacy.mma(
                "m16n8k16", "row", "col", short, short, "fp32", a.data, a_at, b.data, b_at, sums.data, at, False,
                dtype="float32",
            )
        )  # fmt: skip

    def _emulated(self, a: Any, a_at: Any, b: Any, b_at: Any, sums: Any, at: Any) -> None:
        lane, base = tirx.floormod(self.thread, WARP), tirx.floordiv(self.thread, WARP) * (WARP * 6)
        for i in range(4):
            W.put(self.room, base + lane * 6 + i, a[a_at + i])
        for i in range(2):
            W.put(self.room, base + lane * 6 + 4 + i, b[b_at + i])
        W.barrier()
        row, column = tirx.floordiv(lane, 4), tirx.floormod(lane, 4) * 2
        with T.serial(0, 16) as k:
            quarter, eighth = tirx.floordiv(tirx.floormod(k, 8), 2), tirx.floordiv(k, 8)
            is_high = tirx.floormod(k, 2) == 1
            for i in range(4):
                left = self.room[base + (row * 4 + quarter) * 6 + (i // 2) + 2 * eighth]
                right = self.room[base + ((column + i % 2) * 4 + quarter) * 6 + 4 + eighth]
                product = self._either(left, is_high) * self._either(right, is_high)
                W.put(sums, at + i, sums[at + i] + product)
        W.barrier()

    def _either(self, word: Any, is_high: Any) -> Any:
        chosen = tirx.Select(is_high, word >> W.u32(16), word & W.u32(0xFFFF))
        return element(self.gpu, self.kind, chosen, False)
