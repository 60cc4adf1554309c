"""Where the bytes of initializers come from: weights as they are, other views of them, and the load model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from onnx import TensorProto, numpy_helper

from planish.backends.ort.graph import ONNX_TYPES, Graph, value_info
from planish.ir.arrays import to_numpy
from planish.ir.types import DTYPES, TensorType
from planish.runtime.tensors import TensorSource

if TYPE_CHECKING:
    import onnx

    from planish.ir.weights import Weights

LOADED = "load"
"""The location that an initializer names when it is an output of the load model."""

PLACEHOLDER = "weights/model.safetensors"
"""The location of all other big initializers until they are placed."""


class Storage:
    """The initializers of a model in the making. Every tensor is stored once, whatever refers to it."""

    def __init__(self, weights: Weights, graph: Graph, inline_bytes: int) -> None:
        self.weights = weights
        self.graph = graph
        self.load = Graph()
        self.tensors: dict[str, TensorSource] = {}
        self.initializers: list[onnx.TensorProto] = []
        self.stored: dict[str, str] = {}
        self.load_inputs: dict[str, onnx.ValueInfoProto] = {}
        self.load_outputs: dict[str, onnx.ValueInfoProto] = {}
        self._inline_bytes = inline_bytes
        self._sources: set[str] = set()
        self._initializers: dict[str, str] = {}

    def constant(self, name: str) -> str:
        """A weight as it is: its initializer."""
        if name not in self._initializers:
            kind = self.weights.type(name)
            made = self.graph.fresh(name)
            self._initializers[name] = made
            if int(kind.nbytes) <= self._inline_bytes:
                array = to_numpy(self.weights.tensor(name), kind.dtype)
                self.graph.constants[made] = numpy_helper.from_array(array, made)
                self._sources.add(name)
            else:
                self._external(made, ONNX_TYPES[kind.dtype.name], self._shape(kind), self._store(name))
        return self._initializers[name]

    def view(self, name: str, what: str, element: int, shape: Sequence[int]) -> str:
        """The bytes of a weight under another element type and shape."""
        key = f"{name}@{what}"
        if key not in self._initializers:
            self._initializers[key] = self.graph.fresh(key)
            self._external(self._initializers[key], element, shape, self._store(name))
        return self._initializers[key]

    def load_input(self, name: str) -> str:
        """A weight as an input of the load model."""
        if name not in self.load_inputs:
            kind = self.weights.type(name)
            self._store(name)
            self.load.reserve(name)
            self.load_inputs[name] = value_info(name, kind.dtype, kind.shape)
        return name

    def loaded(self, made: str, kind: str, shape: Sequence[int], compute: Callable[[Graph], str]) -> str:
        """An initializer that the load model computes."""
        if made not in self.load_outputs:
            self.graph.reserve(made)
            value = compute(self.load)
            self.load.reserve(made)
            self.load.copy(value, made)
            self.load_outputs[made] = value_info(made, DTYPES[kind], shape)
            tensor = self._reference(made, ONNX_TYPES[kind], shape, LOADED)
            self.initializers.append(tensor)
        return made

    def leaf_bytes(self) -> int:
        """Bytes of all weights that the model uses, as they are in the program."""
        return sum(self.weights.nbytes(name) for name in self._sources)

    def _store(self, name: str) -> str:
        if name not in self.tensors:
            kind, weights = self.weights.type(name), self.weights
            self.tensors[name] = TensorSource(
                kind.dtype.name, self._shape(kind), lambda: to_numpy(weights.tensor(name), kind.dtype)
            )
            self._sources.add(name)
        return name

    def _external(self, name: str, element: int, shape: Sequence[int], stored: str) -> None:
        self.initializers.append(self._reference(name, element, shape, PLACEHOLDER))
        self.stored[name] = stored

    def _reference(self, name: str, element: int, shape: Sequence[int], location: str) -> onnx.TensorProto:
        tensor = TensorProto(name=name, data_type=element, dims=list(shape))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        return tensor

    @staticmethod
    def _shape(kind: TensorType) -> tuple[int, ...]:
        return tuple(int(s) for s in kind.shape if isinstance(s, int))


def external_location(tensor: onnx.TensorProto) -> str:
    """The location that an external initializer names."""
    entries: Mapping[str, str] = {e.key: e.value for e in tensor.external_data}
    return entries["location"]
