"""What a model reads before any token, such as the text of an encoder: checked, and how many sequences it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.errors import UsageError
from planish.runtime.generate.capacity import BEGIN, PREFILL
from planish.runtime.generate.model import Model
from planish.runtime.inputs import bind_arguments, check_inputs
from planish.runtime.tensors import Array
from planish.runtime.typetext import evaluate, solve, symbols


def read_inputs(
    model: Model, inputs: Mapping[str, Any], batch: int | None = None
) -> tuple[dict[str, Array], int]:
    """The arrays that ``begin`` takes, and the number of their sequences.

    PL351 to PL358 as for every call; PL878: there is another number of sequences than ``batch``; PL881: the model
    reads nothing but tokens.
    """
    if not model.capacity.given:
        raise UsageError("PL881", f"the model reads tokens, and not {', '.join(map(str, inputs)) or 'more'}")
    entry = model.entry_points[BEGIN]
    arrays, sizes = check_inputs(entry, {}, bind_arguments(entry, (), inputs))
    tokens = {v.name: v.type for v in model.entry_points[PREFILL].inputs}[model.capacity.token_input]
    rows = tokens.dims[0]
    count = evaluate(rows, sizes) if symbols(rows) <= set(sizes) else batch or model.capacity.batch[0]
    if batch in (None, count) and all(
        sizes.get(n, size) == size for n, size in solve(rows, count, {}).items()
    ):
        return arrays, count
    facts = ", ".join(f"{name} is {array.shape}" for name, array in arrays.items())
    raise UsageError("PL878", f"the inputs are of {count} sequences, the context of {batch}: {facts}")


def lacking(model: Model) -> UsageError:
    """The error for tokens that are read before anything else was."""
    names = ", ".join(model.capacity.given)
    return UsageError(
        "PL881", f"the model reads {names} before tokens",
        hint="give them: context(inputs={...}), generate(..., inputs={...})",
    )  # fmt: skip


__all__ = ["lacking", "read_inputs"]
