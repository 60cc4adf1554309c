"""What this backend makes of programs: libraries for one or several instruction sets, and the weights they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planish.backends.tvm.options import CpuOptions, GpuOptions
from planish.ir.node import Module, Node, Program
from planish.ir.types import TensorType
from planish.ir.weights import Weights
from planish.runtime.native_code import EntryCode, LibraryFile, NativeCode
from planish.runtime.tensors import TensorSource


@dataclass(frozen=True)
class Product:
    """Programs with kernels, in machine code: one library holds all of them, and they share weights and states.

    ``libraries`` maps the name of an instruction set (or of a GPU architecture) to a shared library; ``entries`` says
    in which order a function takes its arguments. ``module`` is what the code computes, with kernels, and ``weights``
    holds every constant in it. ``main`` is what runs in each call, and ``load``, which runs once, gives the constants
    that ``main`` reads from it.
    """

    module: Module
    main: Module
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
        made = set(self.load.output_names) if self.load is not None else set()
        leaves: list[Node] = [leaf for leaf in self.main.constants() if leaf.name not in made]
        leaves += self.load.constants() if self.load is not None else ()
        return {leaf.name: _source(leaf.name, leaf.tensor, self.weights) for leaf in leaves}

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


def _source(name: str, kind: TensorType, weights: Weights) -> TensorSource:
    def data() -> Any:
        from planish.ir.arrays import to_numpy

        return to_numpy(weights.tensor(name), kind.dtype)

    return TensorSource(kind.dtype.name, tuple(int(s) for s in kind.shape if isinstance(s, int)), data)
