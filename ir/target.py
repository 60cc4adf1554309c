"""Plain values that describe where a program will run. Backends make them; passes read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planish.errors import UsageError

if TYPE_CHECKING:
    from planish.ir.node import Node
    from planish.ir.rule import Rule


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
class Joiner:
    """How kernels that read one input become one kernel.

    ``key`` gives what nodes that may be joined have in common (None: not such a kernel); ``join`` takes nodes of one
    key and gives for each what stands in its place, or None.
    """

    name: str
    key: Callable[[Node], Any]
    join: Callable[[Sequence[Node]], Sequence[Node] | None]


@dataclass(frozen=True)
class KernelSet:
    """The kernels of a target, as rules, in the order in which they are applied.

    ``rules`` put kernels in the place of operations, ``joiners`` join kernels that read one input, ``fusions`` let
    kernels take in their neighbours, and ``late`` are rules for what no kernel took in.
    """

    rules: tuple[Rule, ...] = ()
    joiners: tuple[Joiner, ...] = ()
    fusions: tuple[Rule, ...] = ()
    late: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Target:
    """A backend with an architecture, the machine it is judged by and the kernels that it has."""

    kind: str
    arch: str = ""
    machine: Machine = Machine("unknown")
    kernels: tuple[Kernel, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}" if self.arch else self.kind


KINDS = ("cpu", "cuda", "opencl", "onnxruntime", "eager")
"""Targets that can be named; ``cpu`` has a choice of backends."""

KERNEL_SETS: dict[str, Callable[[], KernelSet]] = {}
"""The kernels of each kind of target; backends add theirs when they are imported."""


def kernel_set(kind: str) -> KernelSet:
    """The kernels of a kind of target; raises ``UsageError`` PL801 if no backend has been loaded for it."""
    if kind not in KERNEL_SETS:
        known = ", ".join(KERNEL_SETS) or "none"
        raise UsageError(
            "PL801", f"there are no kernels for the target '{kind}'", hint=f"targets with kernels: {known}"
        )
    return KERNEL_SETS[kind]()


def parse_target(text: str | Target) -> Target:
    """A target from text such as ``cpu`` or ``cuda:sm_90``; raises ``UsageError`` PL801 for an unknown one."""
    if isinstance(text, Target):
        return text
    kind, _, arch = text.partition(":")
    if kind not in KINDS:
        raise UsageError("PL801", f"unknown target '{text}'", hint=f"known targets: {', '.join(KINDS)}")
    return Target(kind, arch)
