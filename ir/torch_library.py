"""The operations that ATen lacks as torch operators ``torch.ops.planish.*``.

Registered with the same body as kernel and as fake, explicitly composite: they stay whole under ``torch.export``, so a
model may call them and capture finds them again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from planish.ir.dialect import OPERATIONS, Operation, Parameter, load_all
from planish.ir.run import apply
from planish.ir.types import dtype

_KINDS = {
    "tensor": "Tensor", "tensor?": "Tensor?", "tensors": "Tensor[]", "bool": "bool", "int": "int", "size": "SymInt",
    "axis": "int", "float": "float", "float?": "float?", "ints": "int[]", "sizes": "SymInt[]", "str": "str",
    "dtype": "ScalarType",
}  # fmt: skip
_SPECIAL = {("planish.attention", "window"): "int?", ("planish.dequant", "zero"): "Tensor"}


def schema(row: Operation) -> str | None:
    """The torch schema of a row with one tensor result, or None if torch cannot express its parameters."""
    parts = []
    for parameter in row.parameters:
        kind = _SPECIAL.get((row.name, parameter.name), _KINDS.get(parameter.kind))
        if kind is None:
            return None
        parts.append(f"{kind} {parameter.name}{_default(parameter)}")
    return f"{row.name.removeprefix('planish.')}({', '.join(parts)}) -> Tensor"


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return ""
    if parameter.kind == "dtype":
        return "=float32"
    return f"={parameter.default}" if not isinstance(parameter.default, tuple) else "=[]"


def _body(row: Operation) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        result = apply(row.name, *args, **kwargs)
        return result.clone() if any(result is a for a in args) else result

    return kernel


@cache
def register() -> tuple[str, ...]:
    """Make ``torch.ops.planish.*`` available; returns the names (idempotent)."""
    import torch

    load_all()
    library = torch.library.Library("planish", "FRAGMENT")
    names = []
    for row in list(OPERATIONS.values()):
        text = schema(row) if row.name.startswith("planish.") else None
        if text is None:
            continue
        short = row.name.removeprefix("planish.")
        library.define(text)
        library.impl(short, _body(row), "CompositeExplicitAutograd")
        torch.library.register_fake(f"planish::{short}", _body(row), lib=library)
        names.append(short)
    _KEPT.append(library)
    return tuple(names)


_KEPT: list[Any] = []


def argument(value: Any) -> Any:
    """An argument of a torch call as an argument of the dialect."""
    kinds = {v: k for k, v in _torch_dtypes().items()}
    return dtype(kinds[value]) if type(value).__name__ == "dtype" else value


def _torch_dtypes() -> dict[str, Any]:
    from planish.ir.eager import TORCH_DTYPES

    return TORCH_DTYPES
