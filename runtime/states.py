"""What a model keeps from call to call, as a value that can be copied, stored and given to a later call."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from planish.errors import ShapeError, UsageError
from planish.runtime.manifest import EntryPoint
from planish.runtime.runner import Runner
from planish.runtime.tensors import ALIGNMENT, Array, element_type
from planish.runtime.typetext import solve, symbols

_NUMPY = {"bool": "bool", "f16": "float16", "f32": "float32", "f64": "float64", "c64": "complex64"}
_SMALL = {"bf16": "BF16", "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2"}
_CHECKED = 64


class States:
    """The states of one run of a model, by name; empty at first, which stands for zeros.

    Several of them may be used with one model: each call takes one, reads it and replaces what it holds. Code may
    write to the memory of the states it is given, so that nothing else may share it: :meth:`copy` makes another.
    A lock is held while a call uses them, so that threads may share one.
    """

    def __init__(self, arrays: Mapping[str, Array] | None = None) -> None:
        self._lock = threading.RLock()
        self._values: dict[str, Any] = dict(arrays or {})
        self._holders: dict[str, Runner] = {}
        self._checked: set[tuple[Any, ...]] = set()
        self._bytes = sum(array.nbytes for array in self._values.values())

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    @property
    def nbytes(self) -> int:
        """The bytes of all states; 0 before the first call."""
        with self._lock:
            return self._bytes if self._values else 0

    def run(
        self, model: Runner, entry: EntryPoint, feeds: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> dict[str, Array]:
        """Run an entry point on these states; gives its outputs by name, and keeps its next states.

        PL356 if a state has another shape than the sizes of this call ask for.
        """
        following = [s.output for s in entry.states]
        names = [v.name for v in entry.outputs]
        with self._lock:
            given = dict(feeds)
            self._prepare(entry, sizes)
            for state in entry.states:
                given[state.input] = self._value(state.name, model)
            found = model.run(given, [*names, *following], keep=following)
            for state in entry.states:
                self._values[state.name] = found.pop(state.output)
                self._holders[state.name] = model
            return found

    def arrays(self) -> dict[str, Array]:
        """The states as arrays by name."""
        with self._lock:
            return {name: self._array(name) for name in self._values}

    def copy(self) -> States:
        """The same states in memory of their own."""
        with self._lock:
            made = States()
            made._bytes = self._bytes
            for name, value in self._values.items():
                array = self._array(name)
                own = array is not value and array.flags.owndata
                made._values[name] = array if own else array.copy()
            return made

    def clear(self) -> None:
        """Forget all: the next call begins with zeros."""
        with self._lock:
            self._values.clear()
            self._holders.clear()
            self._checked.clear()

    def _array(self, name: str) -> Array:
        holder, value = self._holders.get(name), self._values[name]
        return value if holder is None else holder.array(value)

    def _prepare(self, entry: EntryPoint, sizes: Mapping[str, int]) -> None:
        """Make the states that are missing, and check the shapes of the others, once for each set of sizes."""
        key = (entry.name, *sizes.items())
        if self._values and key in self._checked:
            return
        self._bytes = 0
        known = self._known(entry, sizes)
        for state in entry.states:
            shape = tuple(state.type.sizes(known))
            self._bytes += int(np.prod(shape, dtype=np.int64)) * number_type(state.type.dtype).itemsize
            if state.name not in self._values:
                self._values[state.name] = zeros(shape, state.type.dtype)
            have = tuple(self._values[state.name].shape)
            if have != shape:
                raise ShapeError(
                    "PL356", f"the state {state.name} is {list(have)}, this call needs {list(shape)}",
                    where=entry.name, hint="states keep the sizes of the first call; begin anew with fresh ones",
                )  # fmt: skip
        if len(self._checked) >= _CHECKED:
            self._checked.clear()
        self._checked.add(key)

    def _known(self, entry: EntryPoint, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """The sizes of a call with those that only states tell; PL881 if such a state is not there yet."""
        known = dict(sizes)
        for state in entry.states:
            have = tuple(getattr(self._values.get(state.name), "shape", ()))
            for dim, size in zip(state.type.dims, have):
                known |= solve(dim, int(size), known)
        for state in entry.states:
            lacking = sorted(set().union(*map(symbols, state.type.dims)) - set(known))
            if lacking:
                raise UsageError(
                    "PL881", f"the state {state.name}: {state.type} is not there yet, so that {lacking[0]} is unknown",
                    where=entry.name, hint="run the entry point that makes it first",
                )  # fmt: skip
        return known

    def _value(self, name: str, model: Runner) -> Any:
        value, holder = self._values[name], self._holders.get(name)
        if holder is not None and type(holder) is not type(model):
            return holder.array(value)
        return value


def zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros of the element type ``dtype`` (such as ``f32``) that begin at a multiple of 64 bytes.

    Their memory is taken from the system only when it is written to.
    """
    kind = number_type(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(kind).reshape(shape)


def number_type(dtype: str) -> np.dtype[Any]:
    """The numpy type of planish's short name of an element type."""
    if dtype in _SMALL:
        return element_type(_SMALL[dtype])
    name = _NUMPY.get(dtype)
    if name is None:
        name = dtype.replace("u", "uint") if dtype.startswith("u") else dtype.replace("i", "int")
    return np.dtype(name)
