"""Generation with compiled models, through whatever runs them: a session, or the interpreter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from planish.runtime.generate.capacity import Capacity, read_capacity
from planish.runtime.generate.model import Model
from planish.runtime.manifest import EntryPoint
from planish.runtime.states import States
from planish.runtime.tensors import Array

if TYPE_CHECKING:
    from planish.frontend.compiled import Compiled


class CompiledModel(Model):
    """A model that was compiled in this process; its tokenizer is that of the model it was made from."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._running = compiled._running()

    @property
    def entry_points(self) -> Mapping[str, EntryPoint]:
        """The functions of the model by name."""
        return self._running.entry_points

    @cached_property
    def capacity(self) -> Capacity:
        """How many tokens and sequences it takes; PL870 if it was not made for generation."""
        dims = {s.name: (s.low, s.high) for s in self._compiled.module.symbols}
        where = f"target {self._compiled.target}"
        return read_capacity(self._compiled.generation, self.entry_points, dims, where)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the programs, and over the digest of the model that they were made from."""
        text = f"{self._compiled.module}\0{self._compiled.report.source}"
        return hashlib.sha256(text.encode()).hexdigest()

    def run(
        self, feeds: Mapping[str, Any], entry: str | None = None, *, states: States | None = None
    ) -> dict[str, Array]:
        """Outputs by name of an entry point; ``states`` are used and replaced."""
        return self._running.run(feeds, entry, states=states)

    def tokenizer_file(self, name: str) -> bytes | None:
        """A file of the tokenizer; None if there is none."""
        return self._files.get(name)

    @cached_property
    def _files(self) -> Mapping[str, bytes]:
        return self._compiled.tokenizer


def model_of(compiled: Compiled) -> Model:
    """What generates with a compiled model: of a loaded one its session."""
    return CompiledModel(compiled) if compiled._made is not None else compiled._opened()
