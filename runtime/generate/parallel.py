"""Contexts that were read side by side behind a common prefix: adaptive parallel encoding (APE, arXiv 2502.05431)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.errors import UsageError
from planish.runtime.generate.capacity import (
    BEGIN,
    FIRST,
    LAST,
    PARALLEL,
    POSITION,
    PREFILL,
    SHARE,
    TEMPERATURE,
)
from planish.runtime.generate.checks import check_tokens, no_tokenizer, overflow
from planish.runtime.generate.context import Context
from planish.runtime.generate.edits import Edit, Moves
from planish.runtime.generate.model import Model
from planish.runtime.tensors import Array


@dataclass(frozen=True)
class Parallel:
    """Where contexts stand: in the rows ``first`` to before ``last`` of the caches, the longest has ``longest`` rows.

    Scores of contexts are divided by ``temperature``, and ``share`` scales the weight of all of them. Raises
    ``UsageError`` PL824 for what is no such number.
    """

    first: int
    last: int
    longest: int
    temperature: float
    share: float

    def __post_init__(self) -> None:
        for name in ("temperature", "share"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0.01 <= value <= 100:
                raise UsageError("PL824", f"{name}={value!r}", hint="give a number from 0.01 to 100")
        places = (self.first, self.last, self.longest)
        if (
            not all(type(n) is int for n in places)
            or not 0 <= self.longest <= self.last - self.first
            or self.first < 1
        ):
            raise UsageError("PL824", f"contexts of up to {self.longest!r} rows at {places[:2]}")

    @property
    def gap(self) -> int:
        """By how much rows behind the contexts are ahead of their positions."""
        return self.last - self.first - self.longest


class ParallelContext(Context):
    """A context of one sequence in which contexts stand that do not see each other; :meth:`Model.parallel` makes it.

    Its tokens are those of the prefix, of all contexts and what came after them. What came after can be taken back
    and edited, the others stay.
    """

    def __init__(self, model: Model, parallel: Parallel) -> None:
        super().__init__(model, 1)
        self.parallel = parallel

    def rollback(self, count: int | Sequence[int]) -> None:
        """Take back the last tokens, as :meth:`Context.rollback`; PL875 if they are not behind the contexts."""
        counts = [count] if isinstance(count, int) else list(count)
        with self._lock:
            if (
                len(counts) == 1
                and type(counts[0]) is int
                and counts[0] > self.lengths[0] - self.parallel.last
            ):
                raise UsageError(
                    "PL875", f"{counts[0]} tokens cannot be taken back: {self.parallel.last} were read side by side",
                    hint="make another context of those that are wanted",
                )  # fmt: skip
            super().rollback(counts)

    def _empty(self) -> Context:
        return ParallelContext(self.model, self.parallel)

    def _entry(self, name: str) -> str:
        return name + PARALLEL

    def _beside(self, start: Array) -> dict[str, Array]:
        place = self.parallel

        def whole(value: int) -> Array:
            return np.full(1, value, np.int64)

        return {
            POSITION: start - place.gap, FIRST: whole(place.first), LAST: whole(place.last),
            TEMPERATURE: np.full(1, place.temperature, np.float32), SHARE: np.full(1, place.share, np.float32),
        }  # fmt: skip

    def _check_movable(self, todo: list[Edit], work: Moves, sequence: int) -> None:
        if todo[0].start < self.parallel.last:
            raise UsageError(
                "PL879", f"these tokens cannot be edited: the first {self.parallel.last} were read side by side",
                hint="make another context of those that are wanted",
            )  # fmt: skip
        super()._check_movable(todo, work, sequence)

    def _refresh(self) -> None:
        if (
            self.lengths[0] <= self.parallel.last
        ):  # the last token of a context is none that a text goes on after
            self._stale.clear()
        super()._refresh()


def parallel_context(
    model: Model,
    prefix: Any,
    contexts: Sequence[Any],
    temperature: float,
    share: float,
    inputs: Mapping[str, Any] | None,
) -> ParallelContext:
    """Read contexts side by side; see :meth:`planish.runtime.generate.model.Model.parallel`."""
    capacity = model.capacity
    if not capacity.parallel:
        raise UsageError(
            "PL882", "the model has no entry points for contexts side by side",
            hint="compile it with GenerateOptions(parallel=True)",
        )  # fmt: skip
    before = _tokens(model, prefix, special=True)
    if not before:
        raise UsageError(
            "PL872", "the prefix is empty: contexts need some tokens that they share", hint="give at least one line"
        )  # fmt: skip
    if isinstance(contexts, str) or not isinstance(contexts, Sequence):
        raise UsageError("PL872", f"a {type(contexts).__name__} is no list of contexts")
    parts = [_tokens(model, each, special=False) for each in contexts]
    lengths = [len(part) for part in parts]
    first, last = len(before), len(before) + sum(lengths)
    if capacity.context is not None and last >= capacity.context:
        raise overflow(first, sum(lengths) + 1, capacity.context)
    made = ParallelContext(model, Parallel(first, last, max(lengths, default=0), temperature, share))
    alone = model.context(1, inputs=inputs)
    alone.extend(before)
    names = _caches(model)
    rows: list[dict[str, Array]] = []
    for part in filter(None, parts):
        alone.extend(part)
        arrays = alone.states.arrays()
        rows.append({name: arrays[name][..., first : first + len(part), :].copy() for name in names})
        alone.rollback(len(part))
    joint = alone.states.copy()
    arrays = joint.arrays()
    for name in names:
        arrays[name][..., first:last, :] = np.concatenate([part[name] for part in rows], -2) if rows else 0
    made.states = joint
    made._tokens = [[*before, *(token for part in parts for token in part)]]
    made._reach = [last]
    return made


def _caches(model: Model) -> list[str]:
    """The states that hold a row for every token."""
    begin = model.entry_points.get(BEGIN)
    others = {s.name for s in begin.states} if begin is not None else set()
    return [s.name for s in model.entry_points[PREFILL].states if s.name not in others]


def _tokens(model: Model, given: Any, *, special: bool) -> list[int]:
    if not isinstance(given, str):
        return check_tokens(given, model.capacity.vocabulary)
    if model.tokenizer is None:
        raise no_tokenizer("text becomes tokens")
    return check_tokens(
        model.tokenizer.encode(given, special=special) if given else [], model.capacity.vocabulary
    )


__all__ = ["Parallel", "ParallelContext", "parallel_context"]
