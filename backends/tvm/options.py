"""How a program is lowered by this backend: plain values that are part of what is stored with the result."""

from __future__ import annotations

from dataclasses import dataclass

from planish.errors import UsageError

ISA_NAMES = ("avx512bf16", "avx512vnni", "avx2", "generic")


@dataclass(frozen=True)
class CpuOptions:
    """Options of the target ``cpu``.

    ``backend`` is ``tvm`` (kernels made here), ``ort`` (ONNX Runtime) or ``auto``: both are built, timed on made-up
    inputs, and the faster one is kept. ``activation_bits=8`` rounds activations to whole numbers where they meet coded
    weights, 32 keeps them exact. ``math="bf16"`` rounds both operands of products with uncoded weights to bf16 and
    sums in f32. ``isa`` names the instruction sets to build for: ``native`` is the best that this machine has,
    ``all`` is each of them, or names joined by ``+``, such as ``avx512vnni+avx2``.
    """

    backend: str = "tvm"
    activation_bits: int = 8
    math: str = "f32"
    isa: str = "native"

    def __post_init__(self) -> None:
        _known("backend", self.backend, ("tvm", "ort", "auto"))
        _known("activation_bits", self.activation_bits, (8, 32))
        _known("math", self.math, ("f32", "bf16"))
        if self.isa not in ("native", "all"):
            for name in self.isa.split("+"):
                _known("isa", name, ("native", "all", *ISA_NAMES))


@dataclass(frozen=True)
class GpuOptions:
    """Options of the targets ``cuda`` and ``opencl``. ``activation_bits`` is as for the target ``cpu``."""

    activation_bits: int = 32

    def __post_init__(self) -> None:
        _known("activation_bits", self.activation_bits, (8, 32))


def _known(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise UsageError("PL842", f"{name} is {value!r}", hint=f"known: {', '.join(map(str, known))}")
