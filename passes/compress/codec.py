"""What a codec is: a pair of encode and decode with an error measure; and the packing of codes into bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from planish.ir.types import DType

if TYPE_CHECKING:
    import torch

Parts: TypeAlias = "dict[str, torch.Tensor]"
"""What a value is encoded to, by name."""


@dataclass(frozen=True)
class Codec(ABC):
    """Turns a value into smaller parts, and parts back into the value, with a loss.

    Values are ``f32[.., in]``: what a weight multiplies runs along the last axis. ``decode`` is an expression of the
    dialect, so that it reads as nodes when the parts are nodes and as numbers when they are tensors.
    """

    @property
    @abstractmethod
    def spec(self) -> str:
        """The codec with its options as text; names of encoded weights contain it."""

    @abstractmethod
    def encode(self, value: torch.Tensor) -> Parts:
        """The parts that stand for a value."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Any], shape: Sequence[Any], dtype: DType) -> Any:
        """The value again, of a shape and element type, from nodes or from tensors."""

    @abstractmethod
    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """Bits that the parts of a value of this shape take for each of its elements."""

    def adapted(self, value: torch.Tensor) -> Codec:
        """This codec, or a variant that can hold the range of the value."""
        return self

    def error(self, value: torch.Tensor, parts: Mapping[str, torch.Tensor], dtype: DType) -> float:
        """The weight error, ``|W - decode(W)| / |W|`` in the Frobenius norm; 0 for a weight of zeros."""
        decoded = self.decode(parts, tuple(value.shape), dtype)
        return relative_error(square_sum(value - decoded.to(value.dtype)), square_sum(value))


def square_sum(value: torch.Tensor) -> float:
    """The sum of squares, added up in double precision."""
    return float(value.double().square().sum())


def relative_error(difference: float, whole: float) -> float:
    """The root of a quotient of sums of squares."""
    return float((difference / whole) ** 0.5) if whole else 0.0


Item = TypeVar("Item")
Result = TypeVar("Result")


_workers: ContextVar[int | None] = ContextVar("workers", default=None)


@contextmanager
def single_threads() -> Iterator[int]:
    """Operations of torch take one thread each; gives the number of threads that there were before.

    Threads that share one small operation wait for each other, for long where the machine is busy. Use
    :func:`in_parallel` inside to give every thread operations of its own.
    """
    import torch

    known = _workers.get()
    if known is not None:
        yield known
        return
    threads = torch.get_num_threads()
    token = _workers.set(threads)
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        _workers.reset(token)


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``work`` on every item, an item on one thread: the result does not depend on how many threads there are."""
    import torch

    with single_threads() as threads:
        if threads == 1 or len(items) == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))


def packed_bytes(length: int, bits: int) -> int:
    """Bytes that hold ``length`` codes."""
    return (length * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of ``bits`` bits, one a byte, packed along the last axis, little end first: 8 codes in ``bits`` bytes."""
    import torch
    import torch.nn.functional as F

    length = codes.shape[-1]
    if bits == 8:
        return codes.contiguous()
    padded = F.pad(codes, (0, -length % 8))
    if bits in (1, 2, 4):
        per = 8 // bits
        lanes = padded.unflatten(-1, (-1, per))
        packed = lanes[..., 0].clone()
        for i in range(1, per):
            packed |= lanes[..., i] << (bits * i)
    else:
        lanes = padded.unflatten(-1, (-1, 8))
        word = lanes[..., 0].to(torch.int64)
        for i in range(1, 8):
            word |= lanes[..., i].to(torch.int64) << (bits * i)
        packed = torch.stack([(word >> (8 * j)).to(torch.uint8) for j in range(bits)], -1).flatten(-2)
    return packed[..., : packed_bytes(length, bits)].contiguous()
