"""Plain values that describe where a program will run. Backends make them; passes read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planish.errors import UsageError


@dataclass(frozen=True)
class Machine:
    """What a machine can do: bandwidth in GB/s, arithmetic peak in GFLOP/s per element type."""

    name: str
    cores: int = 1
    bandwidth: float = 10.0
    peak: Mapping[str, float] = field(default_factory=dict)
    source: str = "assumed"


@dataclass(frozen=True)
class Kernel:
    """A kernel, declared by its meaning: a pattern over the dialect that it computes."""

    name: str
    meaning: Callable[..., Any]
    doc: str = ""
    when: Callable[..., bool] | None = None


@dataclass(frozen=True)
class Target:
    """A backend with an architecture, the machine it is judged by and the kernels that it has."""

    kind: str
    arch: str = ""
    machine: Machine = Machine("unknown")
    kernels: tuple[Kernel, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}" if self.arch else self.kind


KINDS = ("cpu", "onnxruntime", "eager")
"""Targets that can be named; ``cpu`` chooses among the backends that run on a CPU."""


def parse_target(text: str | Target) -> Target:
    """A target from text such as ``cpu`` or ``cuda:sm_90``; raises ``UsageError`` PL801 for an unknown one."""
    if isinstance(text, Target):
        return text
    kind, _, arch = text.partition(":")
    if kind not in KINDS:
        raise UsageError("PL801", f"unknown target '{text}'", hint=f"known targets: {', '.join(KINDS)}")
    return Target(kind, arch)
