"""Building the libraries of programs: one for each instruction set or architecture that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.backends.tvm.isa import ISAS, Isa, supported
from planish.backends.tvm.options import CpuOptions, GpuOptions
from planish.backends.tvm.product import Product
from planish.backends.tvm.tune import Tuned
from planish.errors import BackendError
from planish.ir.node import Module, Program
from planish.ir.target import Target
from planish.ir.weights import Weights


def build_product(
    module: Module, main: Module, load: Program | None, weights: Weights, target: Target, options: Any,
    tuned: Tuned | None = None,
) -> Product:  # fmt: skip
    """Programs in machine code for a target.

    ``module`` is the whole, ``main`` what runs in each call and ``load`` what runs once; ``tuned`` are variants of
    kernels for processors. Raises ``BackendError``
    PL752 without the compiler library, ``UnsupportedOpError`` PL251 for operations that have no form.
    """
    need_compiler()
    programs = {program.name: program for program in (*main.programs, *([load] if load is not None else []))}
    if isinstance(options, CpuOptions):
        tuned = tuned or Tuned()
        libraries, entries = cpu_libraries(programs, options, tuned)
        return Product(
            module, main, load, weights, libraries, entries, "cpu", options, tuned.notes, tuned.table
        )
    from planish.backends.tvm.gpu.make import gpu_libraries

    assert isinstance(options, GpuOptions)
    libraries, entries, resources = gpu_libraries(programs, target, options)
    return Product(module, main, load, weights, libraries, entries, target.kind, options, resources=resources)


def cpu_libraries(
    programs: Mapping[str, Program], options: CpuOptions, tuned: Tuned
) -> tuple[dict[str, bytes], Mapping[str, Any]]:
    """A library for each instruction set of the options, and the order of arguments of each function."""
    import tvm

    from planish.backends.tvm.build import compile_library
    from planish.backends.tvm.lower import lower

    libraries: dict[str, bytes] = {}
    entries: Mapping[str, Any] = {}
    for isa in chosen(options.isa):
        lowered = lower(programs, isa, tuned.chosen.get(isa.name))
        entries = lowered.entries
        libraries[isa.name] = compile_library(lowered, tvm.target.Target(isa.target))
    return libraries, entries


def chosen(text: str) -> tuple[Isa, ...]:
    """The instruction sets that a text names: ``native``, ``all`` or names joined by ``+``."""
    made: list[Isa] = []
    for name in text.split("+"):
        found = (
            tuple(ISAS.values()) if name == "all" else supported()[:1] if name == "native" else (ISAS[name],)
        )
        made += [isa for isa in found if isa not in made]
    return tuple(made)


def need_compiler() -> None:
    """Raise ``BackendError`` PL752 unless the compiler library is installed."""
    try:
        import tvm  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "PL752", f"the compiler library is missing: {error}", hint="pip install 'planish[tvm]'"
        ) from error
