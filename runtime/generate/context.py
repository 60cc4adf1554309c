"""The context of a generation: the tokens that a model has read, and the caches that stand for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import UsageError
from planish.runtime.generate.capacity import COUNT, DECODE, EXTEND, LOGITS, PREFILL, START
from planish.runtime.generate.model import Model
from planish.runtime.states import States
from planish.runtime.tensors import Array


class Context:
    """Sequences of tokens side by side, ``batch`` of them, with the caches of one model.

    Several contexts may live on one model; each has caches of its own. What is refused leaves the context as it was.
    """

    def __init__(self, model: Model, batch: int | None = None) -> None:
        self.model = model
        self.capacity = model.capacity
        low, high = self.capacity.batch
        self.batch = low if batch is None else batch
        if type(self.batch) is not int or not low <= self.batch <= high:
            known = str(low) if low == high else f"{low} to {high}"
            raise UsageError("PL878", f"{batch!r} sequences side by side", hint=f"the model takes {known}")
        self.states = States()
        self._tokens: list[list[int]] = [[] for _ in range(self.batch)]
        self._reach = [0] * self.batch
        self._logits: list[Array | None] = [None] * self.batch
        self._lock = threading.RLock()

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of every sequence."""
        return tuple(map(tuple, self._tokens))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of every sequence."""
        return tuple(map(len, self._tokens))

    @property
    def room(self) -> int | None:
        """How many tokens the longest sequence can still take; None for any number."""
        return None if self.capacity.context is None else self.capacity.context - max(self.lengths)

    @property
    def logits(self) -> tuple[Array | None, ...]:
        """The logits ``f32[V]`` after the last token of every sequence; None where it is not known."""
        return tuple(self._logits)

    @property
    def nbytes(self) -> int:
        """The bytes of the caches; 0 before the first call."""
        return self.states.nbytes

    def extend(self, tokens: Sequence[Any], *, every: bool = False) -> list[Any]:
        """Read more tokens: a list for a single sequence, else a list of lists, of which some may be empty.

        Gives for every sequence the logits ``f32[V]`` after its last token (None if it got none and none are known),
        or with ``every`` those after each of its new tokens, ``f32[N, V]``. Long lists are read in chunks. Raises
        before anything runs: PL871 (they do not fit), PL873 (no such token), PL877 (``every``, which needs the
        entry point ``extend``), PL878 (another number of sequences).
        """
        given = self._checked(tokens)
        if every and EXTEND not in self.model.entry_points:
            raise UsageError(
                "PL877", "the model has no entry point that gives the logits of every token",
                hint="compile it with GenerateOptions(extend=True)",
            )  # fmt: skip
        with self._lock:
            self._check_room(given)
            rows: list[list[Array]] = [[] for _ in given]
            for begin in range(0, max(map(len, given)), self.capacity.chunk):
                part = [ids[begin : begin + self.capacity.chunk] for ids in given]
                for found, more in zip(rows, self._feed(part, every), strict=True):
                    found.append(more)
            if every:
                empty = np.empty((0, self.capacity.vocabulary), np.float32)
                return [np.concatenate([empty, *found]) for found in rows]
            return list(self._logits)

    def step(self, tokens: Sequence[int | None]) -> list[Any]:
        """Read one token of every sequence; None lets a sequence rest. Gives what :meth:`extend` gives."""
        return self.extend([[] if t is None else [t] for t in tokens])

    def rollback(self, count: int | Sequence[int]) -> None:
        """Take back the last tokens: the same number for all sequences, or one for each.

        PL875 if there are fewer, or if a ring has lost what stood before them.
        """
        counts = [count] * self.batch if isinstance(count, int) else list(count)
        if len(counts) != self.batch:
            raise _other_number(len(counts), self.batch)
        with self._lock:
            for each, length, reach in zip(counts, self.lengths, self._reach, strict=True):
                if type(each) is not int or not 0 <= each <= length:
                    raise UsageError("PL875", f"{each!r} tokens cannot be taken back from {length}")
                if each and not all(r.keeps(length - each, reach) for r in self.capacity.rings.values()):
                    raise UsageError(
                        "PL875", f"{each} tokens are too many to take back: a ring has lost what stood before them",
                        hint=f"{self.capacity.slack()} are always possible; fork a context to come back to it",
                    )  # fmt: skip
            for index, each in enumerate(counts):
                if each:
                    del self._tokens[index][-each:]
                    self._logits[index] = None
                    if not self._tokens[index]:
                        self._reach[index] = 0

    def fork(self) -> Context:
        """Another context with the same tokens and a copy of the caches, which goes its own way."""
        with self._lock:
            made = Context(self.model, self.batch)
            made.states = self.states.copy()
            made._tokens = [list(ids) for ids in self._tokens]
            made._reach = list(self._reach)
            made._logits = list(self._logits)
            return made

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write tokens and caches to a safetensors file that :meth:`restore` reads; PL614 if it is there already."""
        from planish.runtime.generate.contextfile import write_context

        with self._lock:
            return write_context(self, Path(path), overwrite=overwrite)

    @classmethod
    def restore(cls, model: Model, path: str | os.PathLike[str]) -> Context:
        """The context in a file, for the model that wrote it; PL640: damaged or of another kind; PL641: not its own."""
        from planish.runtime.generate.contextfile import read_context

        return read_context(model, Path(path))

    def __repr__(self) -> str:
        most = self.capacity.context
        return f"Context(lengths={list(self.lengths)}, of {'any' if most is None else most})"

    def _checked(self, tokens: Sequence[Any]) -> list[list[int]]:
        """The tokens by sequence, as plain whole numbers in range."""
        rows = list(tokens)
        if not any(isinstance(row, (Sequence, np.ndarray)) and not isinstance(row, str) for row in rows):
            rows = [rows]
        if len(rows) != self.batch:
            raise _other_number(len(rows), self.batch)
        return [check_tokens(row, self.capacity.vocabulary) for row in rows]

    def _check_room(self, given: list[list[int]]) -> None:
        context = self.capacity.context
        for length, more in zip(self.lengths, given, strict=True):
            if context is not None and more and length + len(more) > context:
                raise overflow(length, len(more), context)

    def _feed(self, part: list[list[int]], every: bool) -> list[Array]:
        """One call of the model; gives for every sequence the logits of its new tokens, or of the last one."""
        longest = max(map(len, part))
        entry = DECODE if longest == 1 else EXTEND if every else PREFILL
        width = max(longest, self.capacity.widths[entry][0])
        ids = np.zeros((self.batch, width), self._token_type(entry))
        for row, more in zip(ids, part, strict=True):
            row[: len(more)] = more
        start, count = np.array(self.lengths, np.int64), np.array([len(more) for more in part], np.int64)
        # Code may write to the caches and fail then: these positions are lost either way.
        self._reach = [
            max(r, len(t) + len(m)) for r, t, m in zip(self._reach, self._tokens, part, strict=True)
        ]
        feeds = {self.capacity.token_input: ids, START: start, COUNT: count}
        outputs = self.model.run(feeds, entry, states=self.states)
        logits = outputs[LOGITS] if LOGITS in outputs else next(iter(outputs.values()))
        rows: list[Array] = []
        for index, more in enumerate(part):
            found = logits[index, : len(more) if every else 1].astype(np.float32, copy=False)
            rows.append(found)
            if more:
                self._tokens[index] += more
                self._logits[index] = found[len(more) - 1 if every else 0]
        return rows

    def _token_type(self, entry: str) -> str:
        inputs = {v.name: v.type.dtype for v in self.model.entry_points[entry].inputs}
        return "int64" if inputs[self.capacity.token_input] == "i64" else "int32"


def check_tokens(tokens: Any, vocabulary: int) -> list[int]:
    """Tokens as plain numbers; PL873 if one is no whole number from 0 below the size of the vocabulary."""
    if isinstance(tokens, str) or not isinstance(tokens, (Sequence, np.ndarray)):
        raise UsageError("PL873", f"a list of tokens is needed, not {type(tokens).__name__}")
    made: list[int] = []
    for token in tokens:
        whole = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
        if not whole or not 0 <= token < vocabulary:
            raise UsageError("PL873", f"{token!r} is no token", hint=f"tokens are 0 to {vocabulary - 1}")
        made.append(int(token))
    return made


def overflow(length: int, more: int, context: int) -> UsageError:
    """The error for a context that is too small."""
    return UsageError(
        "PL871", f"{more} more tokens after {length} do not fit: the context holds {context}",
        hint="shorten the prompt, lower max_tokens, or compile with a larger context",
    )  # fmt: skip


def _other_number(given: int, batch: int) -> UsageError:
    return UsageError("PL878", f"{given} sequences were given, the context has {batch}")
