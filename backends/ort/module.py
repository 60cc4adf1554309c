"""Several programs for ONNX Runtime: a model for each, over tensors that are stored once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from planish.backends.ort.lower import Lowered, check, lower
from planish.backends.ort.options import OrtOptions
from planish.ir.node import Module, Program
from planish.ir.special import is_special_case
from planish.runtime.tensors import TensorSource

if TYPE_CHECKING:
    from planish.ir.weights import Weights


@dataclass(frozen=True)
class LoweredModule:
    """The programs of a module as ONNX models.

    ``uses`` names for each program the model that computes it: a program that is another one for fixed sizes has no
    model of its own, because each session packs weights in memory of its own. ``leaf_bytes`` are those of all weights,
    each counted once.
    """

    models: Mapping[str, Lowered]
    uses: Mapping[str, str]
    leaf_bytes: int
    options: OrtOptions = field(default_factory=OrtOptions)

    @property
    def tensors(self) -> dict[str, TensorSource]:
        """The tensors that any model refers to."""
        return {name: source for model in self.models.values() for name, source in model.tensors.items()}

    @property
    def by_program(self) -> dict[str, Lowered]:
        """The model that computes each program."""
        return {name: self.models[model] for name, model in self.uses.items()}

    @property
    def widened_bytes(self) -> int:
        """What was added to the weights on request."""
        return max(model.widened_bytes for model in self.models.values())


def lower_module(module: Module, weights: Weights, *, options: OrtOptions | None = None) -> LoweredModule:
    """Write programs as ONNX; raises ``UnsupportedOpError`` PL220 with everything of one that cannot be written."""
    options = options or OrtOptions()
    for program in module.programs:
        check(program)
    uses = {program.name: _general(program, module).name for program in module.programs}
    models = {name: lower(module[name], weights, options=options) for name in dict.fromkeys(uses.values())}
    leaves = sum(int(leaf.tensor.nbytes) for leaf in module.constants())
    return LoweredModule(models, uses, leaves, options)


def _general(program: Program, module: Module) -> Program:
    """The program that does what a program does, and more: the last of those of which it is a special case."""
    found = program
    for other in module.programs:
        if other is not found and is_special_case(found, other) and not is_special_case(other, found):
            found = other
    return found
