"""The context of a generation: the tokens that a model has read, and the caches that stand for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import UsageError
from planish.runtime.generate.capacity import (
    BEGIN,
    BY,
    COUNT,
    DECODE,
    EXTEND,
    FIRST,
    LOGITS,
    MOVE,
    PREFILL,
    START,
)
from planish.runtime.generate.checks import check_tokens, no_tokenizer, other_number, overflow
from planish.runtime.generate.edits import Edit, Moves, applied, difference, moves_of, planned, with_tail
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
        self._stale: set[int] = set()
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
        """The logits ``f32[V]`` after the last token of every sequence; None where they are not known.

        Where tokens were edited, the last one is read again for them.
        """
        with self._lock:
            self._refresh()
            return tuple(self._logits)

    @property
    def nbytes(self) -> int:
        """The bytes of the caches; 0 before the first call."""
        return self.states.nbytes

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Let a model with an encoder read what comes before tokens: arrays by the names in ``capacity.given``.

        Once, before the first token. Raises before anything runs: PL351 to PL358 as for every call, PL878 (another
        number of sequences), PL881 (there are tokens already, or the model reads nothing else).
        """
        from planish.runtime.generate.begin import read_inputs

        with self._lock:
            arrays, _ = read_inputs(self.model, inputs, self.batch)
            if self._begun or any(self.lengths):
                raise UsageError("PL881", "the context has begun already", hint="make another one")
            self.model.run(arrays, BEGIN, states=self.states)

    def extend(self, tokens: Sequence[Any], *, every: bool = False) -> list[Any]:
        """Read more tokens: a list for a single sequence, else a list of lists, of which some may be empty.

        Gives for every sequence the logits ``f32[V]`` after its last token (None if it got none and none are known),
        or with ``every`` those after each of its new tokens, ``f32[N, V]``. Long lists are read in chunks. Raises
        before anything runs: PL871 (they do not fit), PL873 (no such token), PL877 (``every``, which needs the
        entry point ``extend``), PL878 (another number of sequences), PL881 (the model has to :meth:`begin`).
        """
        given = self._checked(tokens)
        if every and self._entry(EXTEND) not in self.model.entry_points:
            raise UsageError(
                "PL877", "the model has no entry point that gives the logits of every token",
                hint="compile it with GenerateOptions(extend=True)",
            )  # fmt: skip
        with self._lock:
            self._check_begun()
            self._check_room(given)
            rows: list[list[Array]] = [[] for _ in given]
            for begin in range(0, max(map(len, given)), self.capacity.chunk):
                part = [ids[begin : begin + self.capacity.chunk] for ids in given]
                for found, more in zip(rows, self._feed(part, every), strict=True):
                    found.append(more)
            if every:
                empty = np.empty((0, self.capacity.vocabulary), np.float32)
                return [np.concatenate([empty, *found]) for found in rows]
            return list(self.logits)

    def step(self, tokens: Sequence[int | None]) -> list[Any]:
        """Read one token of every sequence; None lets a sequence rest. Gives what :meth:`extend` gives."""
        return self.extend([[] if t is None else [t] for t in tokens])

    def rollback(self, count: int | Sequence[int]) -> None:
        """Take back the last tokens: the same number for all sequences, or one for each.

        PL875 if there are fewer, or if a ring has lost what stood before them.
        """
        counts = [count] * self.batch if isinstance(count, int) else list(count)
        if len(counts) != self.batch:
            raise other_number(len(counts), self.batch)
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
                    self._stale.discard(index)
                    if not self._tokens[index]:
                        self._reach[index] = 0

    def fork(self) -> Context:
        """Another context with the same tokens and a copy of the caches, which goes its own way."""
        with self._lock:
            made = self._empty()
            made.states = self.states.copy()
            made._tokens = [list(ids) for ids in self._tokens]
            made._reach = list(self._reach)
            made._logits = list(self._logits)
            made._stale = set(self._stale)
            return made

    def edit(self, start: int, stop: int, tokens: Sequence[int] = (), sequence: int = 0) -> None:
        """Put ``tokens`` in the place of those from ``start`` to before ``stop``; see :meth:`edits`."""
        self.edits([(start, stop, tokens)], sequence)

    def edits(self, edits: Iterable[Any], sequence: int = 0) -> tuple[Edit, ...]:
        """Make several edits ``(start, stop, tokens)`` of a sequence, places counted before the first of them.

        Only the new tokens are read. What stands behind keeps what it had made of the old ones, and moves: exact in
        the first layer, approximate in later ones. Up to 16 tokens behind them that would move are read anew, which
        is exact. Gives what was left to do after equal tokens at the ends of edits. If the model fails while it
        reads, the tokens before the first edit are left.

        Raises before anything runs: PL871 (they do not fit), PL873 (no such token), PL879 (the model's rows cannot be
        moved; edits that change no places are possible where nothing is a ring), PL880 (no such place or sequence).
        """
        with self._lock:
            old = self._tokens[self._index(sequence)]
            todo = planned(edits, old, self.capacity.vocabulary)
            if not todo:
                return ()
            made = applied(todo, old)
            if self.capacity.context is not None and len(made) > self.capacity.context:
                raise overflow(len(old), len(made) - len(old), self.capacity.context)
            full = with_tail(todo, old, bool(self.capacity.rings))
            work = moves_of(full, len(old))
            self._check_movable(full, work, sequence)
            self._make(full, work, made, sequence)
            return tuple(todo)

    def text(self, sequence: int = 0) -> str:
        """The text of a sequence, with that of special tokens; PL874 if the model has no tokenizer."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise no_tokenizer("tokens become text")
        return tokenizer.decode(self._tokens[self._index(sequence)], special=True)

    def edit_text(self, text: str, sequence: int = 0) -> tuple[Edit, ...]:
        """Make ``text`` the whole text of a sequence by :meth:`edits` of the tokens that differ, and give these.

        Special tokens are as :meth:`text` spells them; those that prompts begin with may be left out.
        """
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise no_tokenizer("text becomes tokens")
        with self._lock:
            old = self._tokens[self._index(sequence)]
            plain, framed = (
                difference(old, tokenizer.encode(text, special=special)) for special in (False, True)
            )
            return self.edits(framed if _changed(framed) < _changed(plain) else plain, sequence)

    def replace_text(self, old: str, new: str, sequence: int = 0) -> tuple[Edit, ...]:
        """Replace a text by another one wherever it stands; see :meth:`edit_text`. PL880 if it is not there."""
        with self._lock:
            text = self.text(sequence)
            if not old or old not in text:
                raise UsageError("PL880", f"the text {old[:80]!r} is not in the context")
            return self.edit_text(text.replace(old, new), sequence)

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
            raise other_number(len(rows), self.batch)
        return [check_tokens(row, self.capacity.vocabulary) for row in rows]

    def _check_room(self, given: list[list[int]]) -> None:
        context = self.capacity.context
        for length, more in zip(self.lengths, given, strict=True):
            if context is not None and more and length + len(more) > context:
                raise overflow(length, len(more), context)

    def _feed(self, part: list[list[int]], every: bool) -> list[Array]:
        """One call of the model on more tokens; gives the logits of the new ones, or of the last one."""
        rows = self._call(part, self.lengths, every)
        for index, more in enumerate(part):
            if more:
                self._tokens[index] += more
                self._know(index, rows[index][-1])
        return rows

    def _call(self, part: list[list[int]], places: Sequence[int], every: bool = False) -> list[Array]:
        """Read tokens at places of each sequence; gives the logits of all of them, or of the last one."""
        longest = max(map(len, part))
        entry = self._entry(DECODE if longest == 1 else EXTEND if every else PREFILL)
        width = max(longest, self.capacity.widths[entry][0])
        ids = np.zeros((self.batch, width), self._token_type(entry))
        for row, more in zip(ids, part, strict=True):
            row[: len(more)] = more
        start, count = np.array(places, np.int64), np.array([len(more) for more in part], np.int64)
        # Code may write to the caches and fail then: these positions are lost either way.
        self._reach = [max(r, place + len(m)) for r, place, m in zip(self._reach, places, part, strict=True)]
        feeds = {self.capacity.token_input: ids, START: start, COUNT: count, **self._beside(start)}
        outputs = self.model.run(feeds, entry, states=self.states)
        logits = outputs[LOGITS] if LOGITS in outputs else next(iter(outputs.values()))
        return [
            logits[index, : len(more) if every else 1].astype(np.float32, copy=False)
            for index, more in enumerate(part)
        ]

    def _empty(self) -> Context:
        return Context(self.model, self.batch)

    def _entry(self, name: str) -> str:
        """The entry point that does for this context what another one does in general."""
        return name

    def _beside(self, start: Array) -> dict[str, Array]:
        """What entry points read besides tokens and the rows for them."""
        return {}

    def _know(self, index: int, logits: Array | None) -> None:
        self._logits[index] = logits
        self._stale.discard(index)

    def _refresh(self) -> None:
        """Read the last token again where an edit has made its logits stale."""
        if not self._stale:
            return
        part = [ids[-1:] if i in self._stale else [] for i, ids in enumerate(self._tokens)]
        places = [n - len(more) for n, more in zip(self.lengths, part, strict=True)]
        for index, rows in enumerate(self._call(part, places)):
            if part[index]:
                self._know(index, rows[-1])

    def _make(self, todo: list[Edit], work: Moves, made: list[int], sequence: int) -> None:
        """Move rows and read new tokens; until all is done, only the tokens before the first edit count."""
        length = len(self._tokens[sequence])
        self._tokens[sequence] = made[: todo[0].start]
        self._know(sequence, None)
        if not self._tokens[sequence]:
            self._reach[sequence] = 0
        for first, by in work.moves:
            # The rows of other sequences that stand behind all of theirs move by nothing.
            firsts = np.full(self.batch, self.capacity.context, np.int64)
            shifts = np.zeros(self.batch, np.int64)
            firsts[sequence], shifts[sequence] = first, by
            self.model.run({FIRST: firsts, BY: shifts}, MOVE, states=self.states)
        found: Array | None = None
        for place, tokens in work.reads:
            for begin in range(0, len(tokens), self.capacity.chunk):
                part: list[list[int]] = [[] for _ in self._tokens]
                part[sequence] = list(tokens[begin : begin + self.capacity.chunk])
                places = list(self.lengths)
                places[sequence] = place + begin
                found = self._call(part, places)[sequence][-1]
        self._tokens[sequence] = made
        self._reach[sequence] = max(self._reach[sequence], len(made))
        if todo[-1].tokens and todo[-1].stop == length:
            self._know(sequence, found)
        elif made:
            self._stale.add(sequence)

    def _index(self, sequence: int) -> int:
        if type(sequence) is not int or not 0 <= sequence < self.batch:
            raise UsageError(
                "PL880", f"there is no sequence {sequence!r}", hint=f"there are 0 to {self.batch - 1}"
            )
        return sequence

    def _check_movable(self, todo: list[Edit], work: Moves, sequence: int) -> None:
        """PL879 unless the caches can follow the edits."""
        rings = self.capacity.rings
        why = self.capacity.no_move if work.moves else None
        if rings:
            # At the end a ring only goes back; the token before is read again where none comes after it.
            length, reach = len(self._tokens[sequence]), self._reach[sequence]
            kept = todo[0].start if todo[0].tokens else max(todo[0].start - 1, 0)
            if len(todo) > 1 or todo[0].stop < length:
                why = "layers that see a window keep only their last rows"
            elif not all(ring.keeps(kept, reach) for ring in rings.values()):
                why = "a ring has lost what stood before them"
        if why is not None:
            raise UsageError(
                "PL879", f"these tokens cannot be edited: {why}",
                hint=f"take back what stands behind {todo[0].start} tokens, and read it anew",
            )  # fmt: skip

    @property
    def _begun(self) -> bool:
        entry = self.model.entry_points.get(BEGIN)
        return entry is not None and any(state.name in self.states for state in entry.states)

    def _check_begun(self) -> None:
        if self.capacity.given and not self._begun:
            from planish.runtime.generate.begin import lacking

            raise lacking(self.model)

    def _token_type(self, entry: str) -> str:
        inputs = {v.name: v.type.dtype for v in self.model.entry_points[entry].inputs}
        return "int64" if inputs[self.capacity.token_input] == "i64" else "int32"


def _changed(edits: list[Edit]) -> int:
    return sum(len(e.tokens) + e.stop - e.start for e in edits)
