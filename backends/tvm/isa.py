"""Instruction sets of CPUs that kernels are made for, and which of them a machine has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Isa:
    """One way to make kernels for x86-64: features that LLVM may use, and what the emitters may rely on.

    ``lanes`` are f32 lanes of a vector register, ``registers`` their number. ``vnni`` says that bytes are
    multiplied by ``vpdpbusd`` on 64 bytes, ``bf16`` that ``vdpbf16ps`` on 32 pairs is there. ``needs`` are the
    names under which Linux lists the features.
    """

    name: str
    mcpu: str
    mattr: tuple[str, ...] = ()
    lanes: int = 4
    registers: int = 16
    vnni: bool = False
    bf16: bool = False
    needs: frozenset[str] = frozenset()

    @property
    def target(self) -> dict[str, Any]:
        """The configuration of the LLVM target."""
        made: dict[str, Any] = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": self.mcpu}
        return made | ({"mattr": list(self.mattr)} if self.mattr else {})


_V3 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}

ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            "avx512bf16", "x86-64-v4", ("+avx512vnni", "+avx512bf16", "-prefer-256-bit"), 16, 32, True, True,
            _V4 | {"avx512_vnni", "avx512_bf16"},
        ),
        Isa("avx512vnni", "x86-64-v4", ("+avx512vnni", "-prefer-256-bit"), 16, 32, True, False, _V4 | {"avx512_vnni"}),
        Isa("avx2", "x86-64-v3", (), 8, 16, False, False, _V3),
        Isa("generic", "x86-64", (), 4, 16),
    )
}  # fmt: skip
"""Best first. Every x86-64 machine runs the last."""


@cache
def machine_features() -> frozenset[str]:
    """Features of this processor as Linux lists them; empty where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((part for part in text.splitlines() if part.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def supported(features: frozenset[str] | None = None) -> tuple[Isa, ...]:
    """The instruction sets that a machine has (default: this one), best first."""
    have = machine_features() if features is None else features
    return tuple(isa for isa in ISAS.values() if isa.needs <= have)
