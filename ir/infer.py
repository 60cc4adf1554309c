"""Result types. The only place where an operation meets its shape rule."""

from __future__ import annotations

from typing import Any

from planish.errors import ShapeError
from planish.ir.dialect import Operation, load_all, operation
from planish.ir.node import Node, argument_key, repr_argument
from planish.ir.shapes import Mismatch
from planish.ir.types import TensorType, TupleType, Type

_memo: dict[Any, Type] = {}


def infer(row: Operation, args: tuple[Any, ...]) -> Type:
    """The result type of an operation on complete, normalised arguments; raises ``ShapeError`` PL310."""
    types = _types(args)
    key = (row.name, argument_key(types))
    known = _memo.get(key)
    if known is None:
        try:
            known = row.rule(*types)
        except Mismatch as problem:
            raise mismatch(row.name, args, problem) from None
        assert isinstance(known, (TensorType, TupleType))
        if len(_memo) > 200_000:
            _memo.clear()
        _memo[key] = known
    return known


def mismatch(name: str, args: tuple[Any, ...], problem: Mismatch) -> ShapeError:
    """The error for arguments that do not fit: operation with types, then what is wrong."""
    return ShapeError("PL310", f"{name}({', '.join(map(repr_argument, args))}): {problem}")


def _types(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([a.type if isinstance(a, Node) else _types(a) if isinstance(a, tuple) else a for a in args])


load_all()
__all__ = ["infer", "mismatch", "operation"]
