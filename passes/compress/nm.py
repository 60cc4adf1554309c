"""N:M sparsity: of each few neighbours in a row the largest are kept, as values and their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from planish.errors import UsageError
from planish.ir.namespace import aten, planish
from planish.ir.node import Program
from planish.ir.ops.sparse import BLOCKS, kept, position_bits
from planish.ir.rewrite import Log
from planish.ir.rule import Kind
from planish.ir.types import DTYPES, DType
from planish.ir.weights import Weights
from planish.passes.base import Pass
from planish.passes.compress.codec import Codec, Parts, in_parallel, pack, packed_bytes
from planish.passes.compress.encode import encode_constants
from planish.passes.spec import SHOWN, format_options

if TYPE_CHECKING:
    import torch

Values = Literal["f16", "same", "f32", "bf16"]
"""How values are stored; a pass takes the first two."""

CHUNK = 1 << 18
"""Elements that are encoded at a time, few enough for the caches of a processor."""

LARGEST_F16, SMALLEST_F16 = 65504.0, 2.0**-10


@dataclass(frozen=True)
class NmCodec(Codec):
    """Of each block of ``m`` neighbours along the last axis the ``n`` of the largest magnitude, equal ones: the first.

    A position takes log2(m) bits. ``values="f16"`` stores values in 16 bits (in f32 where these do not hold their
    range), ``"same"`` in the narrowest of bf16, f16 and f32 that holds all of them exactly.
    """

    n: int = field(default=2, metadata=SHOWN)
    m: int = field(default=4, metadata=SHOWN)
    values: Values = "f16"

    def __post_init__(self) -> None:
        _one_of("m", self.m, BLOCKS)
        _one_of("n", self.n, range(1, self.m))
        _one_of("values", self.values, ("f16", "same", "f32", "bf16"))

    @property
    def spec(self) -> str:
        """For example ``nm{n=2,m=4}``."""
        return "nm" + format_options(self)

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """``n/m`` of the bits of a value and a position, with what rounding up to blocks and bytes adds.

        ``"same"`` counts as f32, which is the most that it may take.
        """
        length = shape[-1]
        count = kept(length, self.n, self.m)
        width = 2 if self.values in ("f16", "bf16") else 4
        return 8 * (count * width + packed_bytes(count, position_bits(self.m))) / length

    def adapted(self, value: torch.Tensor) -> NmCodec:
        """The codec with values of a type that holds the weight: its own, or one of its range."""
        import torch

        if self.values not in ("f16", "same"):
            return self
        if _exact(value, torch.bfloat16):
            return replace(self, values="bf16")
        if self.values == "same":
            return replace(self, values="f16" if _exact(value, torch.float16) else "f32")
        low, high = torch.aminmax(value)
        largest = max(abs(float(low)), abs(float(high)))
        return self if SMALLEST_F16 <= largest < LARGEST_F16 else replace(self, values="f32")

    def encode(self, value: torch.Tensor) -> Parts:
        """``values`` and their ``positions``, packed along the last axis."""
        import torch

        kinds = {"f16": torch.float16, "bf16": torch.bfloat16}
        rows = value.reshape(-1, value.shape[-1])
        step = max(1, CHUNK // max(1, rows.shape[1]))
        places = [slice(begin, begin + step) for begin in range(0, rows.shape[0], step)]

        def encoded(place: slice) -> tuple[torch.Tensor, torch.Tensor]:
            positions, values = largest_of_blocks(rows[place], self.n, self.m)
            return values.to(kinds.get(self.values, torch.float32)), pack(positions, position_bits(self.m))

        values, positions = zip(*in_parallel(encoded, places), strict=True)
        lead = value.shape[:-1]
        return {
            "values": torch.cat(values).reshape(*lead, -1),
            "positions": torch.cat(positions).reshape(*lead, -1),
        }

    def decode(self, parts: Mapping[str, Any], shape: Sequence[Any], dtype: DType) -> Any:
        """``expand_nm(values, positions)``, cast if values are stored in another type."""
        import torch

        values = parts["values"]
        expanded = planish.expand_nm(values, parts["positions"], self.n, self.m, int(shape[-1]))
        if isinstance(values, torch.Tensor):
            from planish.ir.eager import TORCH_DTYPES

            return expanded.to(TORCH_DTYPES[dtype.name])
        return expanded if values.dtype is DTYPES[dtype.name] else aten.to(expanded, dtype)


def largest_of_blocks(rows: torch.Tensor, n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The places (u8, ascending) and values of the ``n`` largest magnitudes of each ``m`` neighbours in a row.

    Of equal magnitudes the first are kept. A last, shorter block counts as if zeros followed. Both results are
    ``[rows, ceil(length/m)*n]``.
    """
    import torch
    import torch.nn.functional as F

    blocks = F.pad(rows, (0, -rows.shape[1] % m)).reshape(rows.shape[0], -1, m)
    sizes = blocks.abs()
    columns = sizes.unbind(-1)
    # How many of a block come before each: larger ones, and those as large that stand before it.
    ranks = [
        sum((b >= a if j < i else b > a).to(torch.uint8) for j, b in enumerate(columns) if j != i)
        for i, a in enumerate(columns)
    ]
    chosen = torch.stack(ranks, -1) < n  # type: ignore[arg-type]
    places = torch.arange(m, dtype=torch.uint8).expand(chosen.shape)[chosen]
    return places.reshape(rows.shape[0], -1), blocks[chosen].reshape(rows.shape[0], -1)


def _exact(value: torch.Tensor, kind: torch.dtype) -> bool:
    import torch

    return torch.equal(value.to(kind).to(value.dtype), value)


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed or isinstance(value, bool):
        raise UsageError("PL813", f"{name}={value}: expected one of {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class Nm(Pass):
    """Keeps ``n`` of each ``m`` neighbours in the rows of weights, those of the largest magnitude.

    ``only`` and ``skip`` are glob patterns of weights, alternatives are separated by ``|``. Weights of fewer than
    ``min_numel`` elements stay as they are. The other options are those of :class:`NmCodec`.
    """

    kind: ClassVar[Kind] = "lossy"

    n: int = field(default=2, metadata=SHOWN)
    m: int = field(default=4, metadata=SHOWN)
    values: Literal["f16", "same"] = "f16"
    only: str = "*"
    skip: str = ""
    min_numel: int = 1024

    def __post_init__(self) -> None:
        self.codec()
        _one_of("values", self.values, ("f16", "same"))

    def codec(self) -> NmCodec:
        """The codec with the options of the pass."""
        return NmCodec(self.n, self.m, self.values)

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Replace every chosen constant by an expansion of its parts."""
        return encode_constants(
            program, weights, self.codec(), only=self.only, skip=self.skip, min_numel=self.min_numel, log=log
        )
