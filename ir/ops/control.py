"""Results of tuple-typed operations, and control flow by nested programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish.ir.dialect import define
from planish.ir.node import Program
from planish.ir.shapes import Mismatch, need
from planish.ir.types import TensorType, TupleType, boolean


def _item(value: Any, index: int) -> TensorType:
    need(isinstance(value, TupleType), "needs an operation with several results")
    if not 0 <= index < len(value.items):
        raise Mismatch(f"there are {len(value.items)} results, not {index + 1}")
    result: TensorType = value.items[index]
    return result


def _check_inputs(program: Program, given: Sequence[TensorType]) -> None:
    need(
        len(program.inputs) == len(given),
        f"{program.name} takes {len(program.inputs)} inputs, got {len(given)}",
    )
    for leaf, have in zip(program.inputs, given, strict=True):
        need(leaf.type == have, f"{program.name}: {leaf.name} is {leaf.type}, got {have}")


def _cond(
    predicate: TensorType, then: Program, otherwise: Program, operands: Sequence[TensorType]
) -> TupleType:
    need(predicate.dtype is boolean and equal_one(predicate), "the predicate must be one bool")
    for branch in (then, otherwise):
        _check_inputs(branch, operands)
    results = tuple(o.tensor for o in then.outputs)
    need(results == tuple(o.tensor for o in otherwise.outputs), "the branches return different types")
    return TupleType(results)


def equal_one(kind: TensorType) -> bool:
    """True if the type holds exactly one element."""
    return kind.numel == 1


def _scan(
    body: Program, initial: Sequence[TensorType], xs: Sequence[TensorType], extra: Sequence[TensorType]
) -> TupleType:
    need(len(xs) > 0, "needs at least one sequence")
    length = xs[0].shape[0]
    rows = [TensorType(x.dtype, x.shape[1:]) for x in xs]
    _check_inputs(body, [*initial, *rows, *extra])
    results = [o.tensor for o in body.outputs]
    need(
        results[: len(initial)] == list(initial),
        "the body must return the carried values first, with their types",
    )
    stacked = [TensorType(r.dtype, (length, *r.shape)) for r in results[len(initial) :]]
    return TupleType((*initial, *stacked))


define("planish.item", "value, index:int", _item, torch="custom:item")
define(
    "planish.cond", "predicate, then:program, otherwise:program, operands:tensors", _cond, torch="custom:cond",
    doc="one of two programs, chosen by a bool",
)  # fmt: skip
define(
    "planish.scan", "body:program, initial:tensors, xs:tensors, extra:tensors=()", _scan, torch="custom:scan",
    doc="body(carried..., row..., extra...) -> (carried..., row results...) over axis 0 of xs",
)  # fmt: skip
