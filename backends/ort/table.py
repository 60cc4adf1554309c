"""The table from the dialect to ONNX: operation name -> small function, and what a function is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from planish.backends.ort.graph import Graph
from planish.backends.ort.options import OrtOptions
from planish.ir.dialect import operation
from planish.ir.node import Node
from planish.ir.types import DTYPES, DType, Size, TensorType

Emit = Callable[..., "str | tuple[str, ...]"]
E = TypeVar("E", bound=Emit)


@dataclass(frozen=True)
class Row:
    """How one operation is written. ``native`` are the element types that ONNX Runtime computes it in.

    Arguments of another type are cast to the nearest of these before, and the result is cast back.
    """

    emit: Emit
    native: frozenset[str] | None


TABLE: dict[str, Row] = {}

FLOATS = "f32 f64"
NUMBERS = "f32 f64 i8 i16 i32 i64 u8 u16 u32 u64"
COMMON = "f32 f64 i32 i64"


def lowers(*names: str, native: str | None = None) -> Callable[[E], E]:
    """Register a function for operations of the dialect; without ``native`` every element type will do."""

    def register(emit: E) -> E:
        for name in names:
            operation(name)
            TABLE[name] = Row(emit, frozenset(native.split()) if native is not None else None)
        return emit

    return register


@dataclass(frozen=True)
class Call:
    """One operation to write: the graph, the node, and the element type to compute in.

    The function of a row gets this and the arguments of the node, with value names in place of nodes.
    """

    graph: Graph
    node: Node
    dtype: DType
    options: OrtOptions
    emit_program: Callable[..., Any]

    def op(self, kind: str, *inputs: str | None, **attributes: Any) -> str:
        """One node of the standard operators."""
        return self.graph.op(kind, *inputs, **attributes)

    def contrib(self, kind: str, *inputs: str | None, **attributes: Any) -> str:
        """One node of ONNX Runtime's own operators."""
        return self.graph.contrib(kind, *inputs, **attributes)

    def number(self, value: Any, kind: DType | str | None = None) -> str:
        """A number as a constant of the element type that is computed in."""
        return self.graph.constant(value, kind or self.dtype)

    def type(self, index: int) -> TensorType:
        """The type of the argument at ``index``."""
        node: Node = self.node.args[index]
        return node.tensor

    def shape(self, index: int = 0) -> tuple[Size, ...]:
        """The shape of the argument at ``index``."""
        return self.type(index).shape

    @property
    def is_float(self) -> bool:
        """True if the computation is in floating point."""
        return self.dtype.is_float


def main_dtype(node: Node) -> DType | None:
    """The element type that decides how a node is computed: that of its first tensor, or of its choices."""
    if node.op == "aten.where":
        return node.dtype
    first = next(iter(node.operands), None)
    return first.dtype if first is not None and isinstance(first.type, TensorType) else None


def substitute(kind: DType, native: frozenset[str]) -> DType:
    """The element type to compute in where ``kind`` itself has no kernel."""
    if kind.name in native:
        return kind
    order: tuple[str, ...]
    if kind.kind == "float":
        order = ("f32", "f64")
    elif kind.bits < 32 or kind.kind == "bool":
        order = ("i32", "i64", "u8")
    else:
        order = ("i64", "u64", "i32")
    return DTYPES[next(n for n in order if n in native)]


@cache
def table() -> Mapping[str, Row]:
    """The whole table."""
    from planish.backends.ort import (  # noqa: F401
        table_attention,
        table_cache,
        table_control,
        table_index,
        table_layers,
        table_layout,
        table_pointwise,
        table_quantized,
        table_recurrent,
        table_reduction,
        table_resample,
        table_sparse,
        table_structure,
    )

    return TABLE
