"""States of a model in ONNX Runtime: memory that stays where it is from call to call and is written in place."""

from __future__ import annotations

import json
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np

from planish.errors import ArtifactError
from planish.runtime.ort_values import RAW, array_of, onnxruntime, ort_value
from planish.runtime.tensors import Array

IN_PLACE = "planish.in_place"
"""The property of a model that names, as JSON, states with the outputs that may take their memory."""


class Kept:
    """A state as a value of ONNX Runtime; on a CPU it lies in the memory of a numpy array, ``array``."""

    def __init__(self, value: Any, array: Array | None) -> None:
        self.value = value
        self.array = array
        self.shape: tuple[int, ...] = tuple(value.shape())


def read_in_place(session: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs of a model whose memory an output may take, with that output.

    ``inputs`` and ``outputs`` are types by name. PL621 if what the model says does not fit them.
    """
    text = session.get_modelmeta().custom_metadata_map.get(IN_PLACE, "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    fits = isinstance(found, dict) and all(
        isinstance(o, str) and i in inputs and inputs[i] == outputs.get(o) for i, o in found.items()
    )
    if not fits or len(set(found.values())) != len(found):
        raise ArtifactError("PL621", f"the model does not have the states that it names: {text[:200]}")
    return dict(found)


class StateRunner:
    """Runs a model on states that stay in place.

    Inputs and outputs are bound once for the states of one run of the model and used as long as these live; a call
    then binds what is new. Calls of several threads never share what is bound. ``device`` is where states lie, such as
    ``cpu`` or ``cuda:1``. ``in_place`` names inputs with the outputs that take their memory.
    """

    def __init__(self, session: Any, in_place: Mapping[str, str], device: str) -> None:
        self._session = session
        self._in_place = dict(in_place)
        kind, _, index = device.partition(":")
        self._device = (kind, int(index or 0))
        self._types = {v.name: v.type for v in session.get_inputs()}
        self._bound: weakref.WeakKeyDictionary[Kept, _Bound] = weakref.WeakKeyDictionary()

    def run(self, feeds: Mapping[str, Any], names: Sequence[str], keep: Collection[str]) -> dict[str, Any]:
        """Outputs by name from inputs by name; those in ``keep`` as :class:`Kept`, the others as arrays.

        The memory of an array that is given for a state is taken over if it can be written; else it is copied.
        """
        written = {i: o for i, o in self._in_place.items() if o in keep and i in feeds}
        kept = {name: self._own(name, feeds[name]) for name in written}
        fresh = [name for name in names if name not in written.values()]
        bound = self._binding(kept, fresh, written)
        for name, value in feeds.items():
            if name not in written:
                self._bind(bound.binding, name, value)
        for name in fresh:
            bound.binding.bind_output(name, *(self._device if name in keep else ("cpu", 0)))
        self._session.run_with_iobinding(bound.binding)
        made = bound.binding.get_outputs_as_ortvaluevector()
        found: dict[str, Any] = {o: kept[i] for i, o in written.items()}
        for index, name in enumerate(fresh):
            value = onnxruntime().OrtValue(made[index])
            found[name] = Kept(value, None) if name in keep else array_of(value)
        if kept:
            self._bound[next(iter(kept.values()))] = bound
        return {name: found[name] for name in names}

    def close(self) -> None:
        """Let go of the session and of the states that are bound."""
        self._bound.clear()
        self._session = None

    def _binding(self, kept: Mapping[str, Kept], fresh: Sequence[str], written: Mapping[str, str]) -> _Bound:
        first = next(iter(kept.values()), None)
        key, values = (*fresh, "", *kept), [each.value for each in kept.values()]
        # Taken out while it is in use: no two calls share one, whatever the callers share.
        bound = self._bound.pop(first, None) if first is not None else None
        if bound is not None and bound.key == key and all(map(is_, bound.values, values)):
            return bound
        binding = self._session.io_binding()
        for name in fresh:
            binding.bind_output(name)
        for name, each in kept.items():
            binding.bind_ortvalue_input(name, each.value)
            binding.bind_ortvalue_output(written[name], each.value)
        return _Bound(binding, key, values)

    def _own(self, name: str, value: Any) -> Kept:
        if isinstance(value, Kept):
            return value
        array, kind = np.asarray(value, order="C"), self._types[name]
        if self._device[0] != "cpu" and kind not in RAW:
            return Kept(onnxruntime().OrtValue.ortvalue_from_numpy(array, *self._device), None)
        if not (array.flags.writeable and array.flags.aligned):
            array = array.copy()
        return Kept(ort_value(array, kind), array)

    def _bind(self, binding: Any, name: str, value: Any) -> None:
        kind = self._types.get(name, "")
        if isinstance(value, Kept):
            binding.bind_ortvalue_input(name, value.value)
        elif kind in RAW:
            binding.bind_ortvalue_input(name, ort_value(np.asarray(value, order="C"), kind))
        else:
            binding.bind_cpu_input(name, np.asarray(value, order="C"))


@dataclass(frozen=True)
class _Bound:
    """States that are bound, for these outputs."""

    binding: Any
    key: tuple[str, ...]
    values: list[Any]


def state_array(value: Any) -> Array:
    """A state as an array of its own; an array as it is."""
    if not isinstance(value, Kept):
        return np.asarray(value)
    return array_of(value.value) if value.array is None else value.array.copy()
