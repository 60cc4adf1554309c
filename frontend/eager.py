"""Programs run in eager torch behind the interface of a session: entry points by name, states from call to call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from planish.errors import UsageError
from planish.frontend.package import signature, typed
from planish.runtime.inputs import bind_arguments, check_inputs, to_torch
from planish.runtime.states import States

if TYPE_CHECKING:
    from planish.ir.node import Module, Program
    from planish.ir.weights import Weights
    from planish.runtime.manifest import EntryPoint
    from planish.runtime.tensors import Array


def results(program: Program) -> tuple[str, ...]:
    """The names of outputs, then of next states, of a program that is not lowered."""
    names = program.output_names or tuple(f"output{i}" for i in range(len(program.outputs)))
    return (*names, *(f"{name}.next" for name, _ in program.states))


def entry_of(program: Program) -> EntryPoint:
    """The entry point of a program that is not lowered or not loaded yet."""
    return typed(program.name, signature(program, results(program)))


class EagerModel:
    """The entry points of a module; states are kept from call to call until :meth:`reset`."""

    def __init__(self, module: Module, weights: Weights) -> None:
        self.entry_points: Mapping[str, EntryPoint] = MappingProxyType(
            {program.name: entry_of(program) for program in module.programs}
        )
        self._dims = {s.name: (s.low, s.high) for s in module.symbols}
        self._runners = {program.name: _Runner(program, weights) for program in module.programs}
        self._default = module.default.name
        self._states = States()

    def run(
        self, feeds: Mapping[str, Any], entry: str | None = None, *, states: States | None = None
    ) -> dict[str, Array]:
        """Run an entry point on inputs by name; gives its outputs by name, as numpy arrays.

        ``states`` are used and replaced instead of the model's own. PL861: there is no such entry point.
        """
        name = entry or self._default
        if name not in self.entry_points:
            known = ", ".join(self.entry_points)
            raise UsageError("PL861", f"there is no entry point {name!r}", hint=f"there are {known}")
        chosen, runner = self.entry_points[name], self._runners[name]
        arrays, sizes = check_inputs(chosen, self._dims, bind_arguments(chosen, (), feeds))
        if not chosen.states:
            return runner.run(arrays)
        return (self._states if states is None else states).run(runner, chosen, arrays, sizes)

    @property
    def states(self) -> Mapping[str, Array]:
        """The states after the last call, by name; empty before the first."""
        return MappingProxyType(self._states.arrays())

    def reset(self) -> None:
        """Forget the states: the next call begins with zeros."""
        self._states.clear()


class _Runner:
    """One program; results that are kept stay torch tensors."""

    def __init__(self, program: Program, weights: Weights) -> None:
        self._program, self._weights = program, weights
        self._states = tuple(leaf.name for leaf in program.state_leaves())
        self.inputs = (*(leaf.name for leaf in program.inputs), *self._states)
        self.outputs = results(program)
        self._types = dict(zip(self.outputs, (root.dtype for root in program.roots), strict=True))

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Arrays by output name from arrays by input name; those in ``keep`` can be given as inputs again."""
        import numpy as np
        import torch

        from planish.ir.arrays import to_numpy
        from planish.ir.run import run

        given = {n: to_torch(v, "cpu") if isinstance(v, np.ndarray) else v for n, v in feeds.items()}
        with torch.no_grad():
            values = run(
                self._program, self._weights, *(given[leaf.name] for leaf in self._program.inputs),
                states={name: given[name] for name in self._states},
            )  # fmt: skip
        found = dict(zip(self.outputs, values, strict=True))
        return {
            name: found[name] if name in keep else to_numpy(found[name], self._types[name])
            for name in (self.outputs if outputs is None else outputs)
        }

    def array(self, value: Any) -> Any:
        """A kept tensor as an array."""
        from planish.ir.arrays import to_numpy
        from planish.ir.weights import type_of

        return to_numpy(value, type_of(value).dtype)

    def close(self) -> None:
        """Nothing is held."""


__all__ = ["EagerModel", "entry_of", "results"]
