"""What a value of an ONNX graph is at capture: a node, or an array that is known without any input.

A known array is small; its elements are numbers or sizes, so that `Shape -> Gather -> Concat -> Reshape` is computed
while the model is read and leaves dimension expressions behind, not operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir
import sympy

from planish.errors import CaptureError
from planish.ir.namespace import aten
from planish.ir.node import Node
from planish.ir.types import DTYPES, DType, Size, size

KNOWN_LIMIT = 1024
"""Most elements of a known integer or bool array."""

_NAMES = {
    "FLOAT": "f32", "DOUBLE": "f64", "FLOAT16": "f16", "BFLOAT16": "bf16", "INT8": "i8", "INT16": "i16", "INT32": "i32",
    "INT64": "i64", "UINT8": "u8", "UINT16": "u16", "UINT32": "u32", "UINT64": "u64", "BOOL": "bool",
}  # fmt: skip
FROM_ONNX: dict[int, DType] = {int(onnx_ir.DataType[k]): DTYPES[v] for k, v in _NAMES.items()}
TO_ONNX: dict[str, int] = {d.name: code for code, d in FROM_ONNX.items()}


@dataclass(frozen=True, eq=False)
class Known:
    """An array that is known at capture; ``array`` holds Python numbers and sizes, ``leaf`` its name in the file."""

    dtype: DType
    array: np.ndarray[Any, Any]
    leaf: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the array, all numbers."""
        return tuple(int(s) for s in self.array.shape)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return int(self.array.ndim)

    @property
    def items(self) -> list[Any]:
        """The elements in order."""
        return list(self.array.reshape(-1))

    @property
    def numeric(self) -> bool:
        """True if no element is a symbolic size."""
        return not any(isinstance(v, sympy.Basic) for v in self.array.reshape(-1))

    @property
    def whole(self) -> bool:
        """True if no element is a fraction of a size, such as ``T/2``, which no argument of an operation can be."""
        return all(not isinstance(v, sympy.Basic) or v.is_integer for v in self.array.reshape(-1))

    def numbers(self) -> np.ndarray[Any, Any]:
        """The array as one of float64, int64, uint64 or bool."""
        kind = {"float": np.float64, "int": np.int64, "uint": np.uint64, "bool": np.bool_}[self.dtype.kind]
        return np.array(self.items, dtype=kind).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Items:
    """A sequence of values whose length is known."""

    items: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Empty:
    """An optional that holds nothing."""


Value: TypeAlias = "Node | Known | Items | Empty"


def known(dtype: DType, elements: Any, shape: Sequence[int] | None = None) -> Known:
    """A known array from (nested) Python elements; ``shape`` reshapes a flat list."""
    if shape is None:
        shape = np.shape(elements) if not isinstance(elements, np.ndarray) else elements.shape
        elements = _flat(elements)
    array = np.empty(len(elements), dtype=object)
    for i, element in enumerate(elements):
        array[i] = element
    return Known(dtype, array.reshape(tuple(shape)))


def _flat(elements: Any) -> list[Any]:
    if isinstance(elements, np.ndarray):
        return list(elements.reshape(-1))
    if isinstance(elements, (list, tuple)):
        return list(itertools.chain.from_iterable(_flat(e) for e in elements))
    return [elements]


def dtype_of(code: int, where: str = "") -> DType:
    """The element type of an ONNX type code; raises ``CaptureError`` PL142 for one that planish lacks."""
    found = FROM_ONNX.get(int(code))
    if found is None:
        known_code = int(code) in {int(d) for d in onnx_ir.DataType}
        name = onnx_ir.DataType(int(code)).name if known_code else str(code)
        raise CaptureError(
            "PL142", f"the element type {name} is not supported", where=where or None,
            hint="supported: " + ", ".join(_NAMES),
        )  # fmt: skip
    return found


def wrapped(dtype: DType, value: Any) -> Any:
    """An element brought into the range of its type as hardware does; sizes stay."""
    if isinstance(value, sympy.Basic) or dtype.is_float:
        return value
    if dtype.kind == "bool":
        return bool(value)
    value = int(value) & (2**dtype.bits - 1)
    return value - 2**dtype.bits if dtype.kind == "int" and value >> (dtype.bits - 1) else value


def full_like_items(value: Known) -> Node | None:
    """A creation operation that yields a known array without stored data; None if there is no short one."""
    items = value.items
    first = items[0] if items else 0
    if value.whole and all(_same(first, v) for v in items):
        return aten.full(value.shape, first, value.dtype)
    if value.rank == 1 and value.numeric and value.dtype.is_integer:
        step = items[1] - items[0]
        if all(b - a == step for a, b in itertools.pairwise(items)):
            return aten.arange(items[0], items[-1] + (1 if step > 0 else -1), step, value.dtype)
    return None


def symbolic_node(value: Known) -> Node:
    """A tensor made of sizes, one by one."""
    parts = []
    for v in value.items:
        top, bottom = sympy.fraction(sympy.together(v)) if isinstance(v, sympy.Basic) else (v, 1)
        part = aten.full((1,), size(top) if isinstance(top, sympy.Basic) else top, value.dtype)
        parts.append(part if bottom == 1 else aten.div(part, aten.full((1,), size(bottom), value.dtype)))
    return aten.view(aten.cat(parts, 0), value.shape)


def _same(a: Any, b: Any) -> bool:
    return (
        type(a) is type(b) and (a == b or (isinstance(a, float) and a != a and b != b)) and repr(a) == repr(b)
    )


def sizes_text(sizes: Iterable[Size]) -> str:
    """Sizes for a message."""
    return "[" + ", ".join(str(s) for s in sizes) + "]"
