"""Affine codes of 2 to 8 bits: ``w = scale * (code - zero)`` with a scale for each group of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from planish.errors import UsageError
from planish.ir.namespace import planish
from planish.ir.node import Program
from planish.ir.rewrite import Log
from planish.ir.rule import Kind
from planish.ir.types import DType
from planish.ir.weights import Weights
from planish.passes.base import Pass
from planish.passes.compress.codec import (
    Codec,
    Parts,
    in_parallel,
    pack,
    packed_bytes,
    relative_error,
    square_sum,
)
from planish.passes.compress.encode import encode_constants
from planish.passes.spec import SHOWN, format_options

if TYPE_CHECKING:
    import torch

    from planish.passes.compress.search import Fit

CHUNK = 1 << 18
"""Elements that are fitted at a time, few enough for the caches of a processor."""

LARGEST_F16, SMALLEST_NORMAL_F16 = 65504.0, 2.0**-14


@dataclass(frozen=True)
class AffineCodec(Codec):
    """Affine codes along the last axis.

    ``group`` codes share a scale (0: the whole row). Symmetric codes have the fixed zero ``2**(bits - 1)``, others
    a zero for each group, stored as packed codes (``zero="int"``) or in half precision (``zero="float"``).
    ``search="mse"`` chooses scales by the squared error, ``"none"`` by the largest values (round to nearest);
    ``"auto"`` is ``"mse"`` up to three bits. From four bits on a search clips large weights that a model needs: the
    weight error falls, but perplexity rises (``benchmarks/results/language_model.md``).
    """

    bits: int = 4
    group: int = field(default=64, metadata=SHOWN)
    symmetric: bool = False
    search: Literal["auto", "mse", "none"] = "auto"
    zero: Literal["int", "float"] = "int"
    scale: Literal["f16", "f32"] = "f16"

    def __post_init__(self) -> None:
        _one_of("bits", self.bits, range(2, 9))
        _one_of("search", self.search, ("auto", "mse", "none"))
        _one_of("zero", self.zero, ("int", "float"))
        _one_of("scale", self.scale, ("f16", "f32"))
        if self.group < 0:
            raise UsageError(
                "PL813", f"group={self.group}: a group has at least one code; 0 means a whole row"
            )

    @property
    def searches(self) -> bool:
        """True if scales are chosen by the squared error."""
        return self.search == "mse" or (self.search == "auto" and self.bits <= 3)

    @property
    def spec(self) -> str:
        """For example ``int4{group=64}``."""
        return f"int{self.bits}" + format_options(self, ("bits",))

    def group_of(self, length: int) -> int:
        """Codes that share a scale in a row of ``length`` codes."""
        return min(self.group, length) if self.group else length

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """``bits + (scale bits + zero bits) / group``, with what rounding up to groups and bytes adds."""
        length = shape[-1]
        groups = -(-length // self.group_of(length))
        row = packed_bytes(length, self.bits) + groups * (2 if self.scale == "f16" else 4)
        if not self.symmetric:
            row += packed_bytes(groups, self.bits) if self.zero == "int" else 2 * groups
        return 8 * row / length

    def adapted(self, value: torch.Tensor) -> AffineCodec:
        """The codec with single precision scales if half precision does not hold them."""
        import torch

        low, high = torch.aminmax(value)
        largest = max(abs(float(low)), abs(float(high)))
        if largest and not SMALLEST_NORMAL_F16 <= largest / 2**self.bits < largest < LARGEST_F16:
            return AffineCodec(self.bits, self.group, self.symmetric, self.search, self.zero, "f32")
        return self

    def encode(self, value: torch.Tensor) -> Parts:
        """``codes`` packed along the last axis, ``scale``, and ``zero`` unless symmetric."""
        import torch

        from planish.passes.compress.search import fit

        rows = value.reshape(-1, value.shape[-1])

        def encoded(place: slice) -> Fit:
            found = fit(rows[place], self)
            return found._replace(codes=pack(found.codes, self.bits))

        chunks = in_parallel(encoded, _chunks(rows))
        lead = value.shape[:-1]

        def joined(tensors: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat(tensors).reshape(*lead, -1)

        parts = {"codes": joined([c.codes for c in chunks]), "scale": joined([c.scale for c in chunks])}
        if not self.symmetric:
            zeros = joined([c.zero for c in chunks])
            parts["zero"] = pack(zeros.to(torch.uint8), self.bits) if self.zero == "int" else zeros.half()
        return parts

    def decode(self, parts: Mapping[str, Any], shape: Sequence[Any], dtype: DType) -> Any:
        """``dequant(unpack(codes), scale, zero)``; nothing is unpacked at 8 bits."""
        length = shape[-1]
        group = self.group_of(length)
        zero: Any = 2 ** (self.bits - 1)
        if not self.symmetric:
            zero = parts["zero"]
            if self.zero == "int" and self.bits < 8:
                zero = planish.unpack(zero, self.bits, -(-length // group))
        codes = parts["codes"] if self.bits == 8 else planish.unpack(parts["codes"], self.bits, length)
        return planish.dequant(codes, parts["scale"], zero, group, dtype)

    def error(self, value: torch.Tensor, parts: Mapping[str, torch.Tensor], dtype: DType) -> float:
        """The weight error, computed some rows at a time."""
        rows = value.reshape(-1, value.shape[-1])
        flat = {name: part.reshape(rows.shape[0], -1) for name, part in parts.items()}

        def sums(place: slice) -> tuple[float, float]:
            some = rows[place]
            decoded = self.decode({k: v[place] for k, v in flat.items()}, tuple(some.shape), dtype)
            return square_sum(some - decoded.to(some.dtype)), square_sum(some)

        lost, total = (sum(column) for column in zip(*in_parallel(sums, _chunks(rows)), strict=True))
        return relative_error(lost, total)


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed or isinstance(value, bool):
        raise UsageError("PL813", f"{name}={value}: expected one of {', '.join(map(str, allowed))}")


def _chunks(rows: torch.Tensor) -> list[slice]:
    """Parts of a matrix, each of whole rows."""
    step = max(1, CHUNK // rows.shape[1])
    return [slice(begin, begin + step) for begin in range(0, rows.shape[0], step)]


@dataclass(frozen=True)
class Affine(Pass):
    """Stores weights as integers of 2 to 8 bits; ``int4`` is short for ``affine{bits=4}``.

    ``only`` and ``skip`` are glob patterns of weights, alternatives are separated by ``|``. Weights of fewer than
    ``min_numel`` elements stay as they are. The other options are those of :class:`AffineCodec`.
    """

    kind: ClassVar[Kind] = "lossy"

    bits: int = 4
    group: int = field(default=64, metadata=SHOWN)
    symmetric: bool = False
    search: Literal["auto", "mse", "none"] = "auto"
    only: str = "*"
    skip: str = ""
    zero: Literal["int", "float"] = "int"
    scale: Literal["f16", "f32"] = "f16"
    min_numel: int = 1024

    def __post_init__(self) -> None:
        self.codec()

    def codec(self) -> AffineCodec:
        """The codec with the options of the pass."""
        return AffineCodec(self.bits, self.group, self.symmetric, self.search, self.zero, self.scale)

    def apply(self, program: Program, weights: Weights, log: Log) -> Program:
        """Replace every chosen constant by a decoding of its parts."""
        return encode_constants(
            program, weights, self.codec(), only=self.only, skip=self.skip, min_numel=self.min_numel, log=log
        )
