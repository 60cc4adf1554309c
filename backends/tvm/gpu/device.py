"""Graphics processors that kernels are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planish.errors import BackendError

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")
"""Architectures of CUDA that kernels are built for."""


@dataclass(frozen=True)
class Gpu:
    """A way to make kernels: ``kind`` is ``cuda`` or ``opencl``, ``arch`` the architecture (CUDA only).

    ``threads`` is the largest block, ``shared`` the bytes of shared memory that a block may have without asking for
    more, ``warp`` the threads that exchange registers (1: none do). ``matrix`` says how products of matrices of f16 and
    bf16 are made: ``mma`` by tensor cores, ``emulate`` by the same blocks with plain arithmetic (for tests),
    ``none`` by blocks for plain arithmetic.
    """

    kind: str
    arch: str = ""
    threads: int = 256
    shared: int = 32768
    warp: int = 1
    matrix: str = "none"

    @property
    def target(self) -> dict[str, Any]:
        """The configuration of TVM's target."""
        made: dict[str, Any] = {
            "kind": self.kind,
            "max_num_threads": self.threads,
            "max_threads_per_block": self.threads,
            "max_shared_memory_per_block": self.shared,
            "thread_warp_size": self.warp,
            "host": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
        }
        return made | ({"arch": self.arch} if self.arch else {})

    @property
    def has_half(self) -> bool:
        """True if f16 is a type of the language; else its bits are converted by integer arithmetic."""
        return self.kind == "cuda"


OPENCL = Gpu("opencl")
"""Any OpenCL 1.2 device: no extensions are asked for."""


def cuda(arch: str) -> Gpu:
    """A CUDA device by its architecture, such as ``sm_80``; raises ``BackendError`` PL760 for unknown ones."""
    if arch not in ARCHITECTURES:
        raise BackendError(
            "PL760", f"unknown architecture {arch!r}", hint=f"known: {', '.join(ARCHITECTURES)}"
        )
    number = int(arch.removeprefix("sm_").rstrip("a"))
    return Gpu("cuda", arch, 1024, 49152, 32, "mma" if number >= 80 else "none")
