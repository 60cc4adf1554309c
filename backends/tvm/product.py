"""What this backend makes of a program: libraries for one or several instruction sets, and the weights they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planish.backends.tvm.options import CpuOptions, GpuOptions
from planish.ir.node import Program
from planish.ir.types import TensorType
from planish.ir.weights import Weights
from planish.runtime.native_code import EntryCode, LibraryFile, NativeCode
from planish.runtime.tensors import TensorSource


@dataclass(frozen=True)
class Product:
    """A program with kernels, in machine code.

    ``libraries`` maps the name of an instruction set (or of a GPU architecture) to a shared library; ``entries`` says
    in which order a function takes its arguments. ``program`` is what the code computes, with kernels, and
    ``weights`` holds every constant in it. ``load`` runs once and gives the constants that ``program`` reads from it.
    """

    program: Program
    main: Program
    load: Program | None
    weights: Weights
    libraries: Mapping[str, bytes]
    entries: Mapping[str, Any]
    device: str
    options: CpuOptions | GpuOptions
    notes: tuple[str, ...] = ()
    resources: tuple[Mapping[str, Any], ...] = ()

    @property
    def tensors(self) -> dict[str, TensorSource]:
        """The constants that the code reads, by name."""
        found: dict[str, TensorSource] = {}
        for program in filter(None, (self.main, self.load)):
            made = set() if program is self.load else self._loaded
            for leaf in program.constants():
                if leaf.name not in made:
                    found[leaf.name] = _source(leaf.name, leaf.tensor, self.weights)
        return found

    def code(self) -> NativeCode:
        """What the libraries hold and how they are called."""
        from planish.backends.tvm.isa import ISAS
        from planish.runtime.tvm_library import current_abi

        entries = {
            name: EntryCode(
                name, e.inputs, e.outputs, e.states, tuple(f"{s}.next" for s in e.next_states), e.weights
            )
            for name, e in self.entries.items()
        }
        libraries = {
            name: LibraryFile(f"{name}.so", tuple(sorted(ISAS[name].needs)) if name in ISAS else ())
            for name in self.libraries
        }
        load = self.load.name if self.load is not None else None
        return NativeCode(self.device, current_abi(), libraries, entries, load, self.resources)

    @property
    def _loaded(self) -> set[str]:
        return set(self.load.output_names) if self.load is not None else set()


def _source(name: str, kind: TensorType, weights: Weights) -> TensorSource:
    def data() -> Any:
        from planish.ir.arrays import to_numpy

        return to_numpy(weights.tensor(name), kind.dtype)

    return TensorSource(kind.dtype.name, tuple(int(s) for s in kind.shape if isinstance(s, int)), data)
