"""The table from the dialect to Relax and TIR: operation name -> small function, and what a function is called with.

A row has one of six forms, by what its function is given and gives:

- ``scalar``: ``f(call, *values)``, one element from one element of each operand, in the type to compute in;
- ``index``: ``f(call, index, *readers)``, the element at an index; a reader gives an element of an operand;
- ``tensor``: ``f(call, *readers)``, tensor expressions (:mod:`tvm.te`), for reductions and what has several stages;
- ``loops``: ``f(call, *buffers)``, statements of TIR that fill the last buffers, the results;
- ``nodes``: ``f(node)``, an expression of simpler operations of the dialect;
- ``values``: ``f(body, node)``, bindings of Relax: views, results of several, control flow.

Neighbours of the first two forms become one function (:mod:`planish.backends.tvm.fuse`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from planish.ir.dialect import operation
from planish.ir.node import Node
from planish.ir.types import DType

Emit = Callable[..., Any]
E = TypeVar("E", bound=Emit)

TVM_DTYPES: Mapping[str, str] = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "bool": "bool",
}  # fmt: skip
"""Element types that can be lowered, with their names in TVM."""


@dataclass(frozen=True)
class Row:
    """How one operation is lowered. ``once`` says that no element of an operand is read many times.

    A value that is read once may be computed where it is read.
    """

    form: str
    emit: Emit
    once: bool


TABLE: dict[str, Row] = {}


def lowers(*names: str, form: str = "scalar", once: bool = False) -> Callable[[E], E]:
    """Register a function for operations of the dialect."""

    def register(emit: E) -> E:
        for name in names:
            operation(name)
            TABLE[name] = Row(form, emit, once or form == "scalar")
        return emit

    return register


def storage(kind: DType) -> str:
    """The name in TVM of an element type."""
    return TVM_DTYPES[kind.name]


def computed(kind: DType) -> str:
    """The type to compute in: narrow floating point is widened to f32 and rounded once by each operation."""
    return "float32" if kind.is_float and kind.bits < 32 else TVM_DTYPES[kind.name]


def main_dtype(node: Node) -> DType:
    """The element type that numbers among the operands take: that of the last tensor operand."""
    from planish.ir.types import TensorType

    first = 1 if node.op == "aten.where" else 0
    found = [a.dtype for a in node.args[first:] if isinstance(a, Node) and isinstance(a.type, TensorType)]
    if found:
        return found[-1]
    operands = [o.dtype for o in node.operands if isinstance(o.type, TensorType)]
    return operands[0] if operands else node.dtype


@cache
def table() -> Mapping[str, Row]:
    """The whole table."""
    from planish.backends.tvm import (  # noqa: F401
        table_attention,
        table_cache,
        table_control,
        table_conv,
        table_index,
        table_layers,
        table_layout,
        table_norm,
        table_pointwise,
        table_pool,
        table_quantized,
        table_recurrent,
        table_reduction,
        table_resample,
        table_scatter,
        table_sort,
        table_sparse,
        table_structure,
    )

    return TABLE
