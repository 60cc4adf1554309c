"""The loop of a generation: read the prompts, then choose and read one token of every sequence after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from planish.runtime.generate.capacity import EXTEND
from planish.runtime.generate.checks import overflow
from planish.runtime.generate.completion import Completion, Piece, Statistics, Stopped
from planish.runtime.generate.context import Context
from planish.runtime.generate.draft import Draft
from planish.runtime.generate.sampling import Sampling
from planish.runtime.generate.stopping import Stopper
from planish.runtime.generate.tokenizer import Detokenizer, Tokenizer
from planish.runtime.tensors import Array

DEFAULT_TOKENS = 512


@dataclass(frozen=True)
class Options:
    """How to continue: ``max_tokens`` of None is what fits, at most 512; ``drafts`` is the longest guess, or 0."""

    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_texts: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    drafts: int = 0


class Speaker:
    """One sequence at work: what it has said, and whether it goes on."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        limit: tuple[int, Stopped],
        options: Options,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.text = ""
        self.stopped: Stopped | None = None
        self.prompt = len(prompt)
        self.draft = Draft(options.drafts) if options.drafts else None
        if self.draft is not None:
            self.draft.add(prompt)
        self._limit = limit
        self._options = options
        self._sampler = options.sampling.sampler(index)
        self._stopper = Stopper(options.stop_texts)
        self._words = None if tokenizer is None else Detokenizer(tokenizer, prompt)

    @property
    def left(self) -> int:
        """How many tokens it may still say."""
        return 0 if self.stopped else self._limit[0] - len(self.tokens)

    def choose(self, logits: Array) -> Piece:
        """Say one more token."""
        token = self._sampler.choose(logits)
        self.tokens.append(token)
        if self.draft is not None:
            self.draft.add([token])
        ends = token in self._options.stop_tokens
        shown, found = self._shown(token, ends)
        if ends:
            self.stopped = "token"
        elif found:
            self.stopped = "text"
        elif len(self.tokens) >= self._limit[0]:
            self.stopped = self._limit[1]
        if self.stopped and not found:
            shown += self._rest()
        self.text += shown
        return Piece(self.index, token, shown, self.stopped)

    def _shown(self, token: int, ends: bool) -> tuple[str, bool]:
        if self._words is None or ends:
            return "", False
        return self._stopper.push(self._words.push(token))

    def _rest(self) -> str:
        if self._words is None:
            return ""
        shown, found = self._stopper.push(self._words.flush())
        return shown if found else shown + self._stopper.flush()


class Run:
    """A generation that goes on while it is iterated over; each sequence gets its own share of the context's room.

    ``first`` is the index of the first sequence. ``keep`` also reads the last token of every sequence, so that the
    context can go on from there. PL871 if prompt and ``max_tokens`` do not fit, before anything runs.
    """

    def __init__(
        self, context: Context, prompts: Sequence[Sequence[int]], options: Options, tokenizer: Tokenizer | None = None,
        *, first: int = 0, keep: bool = False,
    ) -> None:  # fmt: skip
        self.context = context
        self._options = options
        self._prompts = [list(p) for p in prompts]
        self._keep = keep
        limits = [
            _limit(context, length, len(p), options.max_tokens, keep)
            for length, p in zip(context.lengths, self._prompts)
        ]
        told = [[*before, *p] for before, p in zip(context.tokens, self._prompts)]
        self.sequences = [
            Speaker(first + i, ids, limit, options, tokenizer)
            for i, (ids, limit) in enumerate(zip(told, limits))
        ]
        self._text = tokenizer is not None
        self._first = self._prefill = self._decode = 0.0
        self._drafted = self._accepted = 0

    def __iter__(self) -> Iterator[Piece]:
        begin = perf_counter()
        idle: list[list[int]] = [[]] * (self.context.batch - len(self._prompts))
        logits = self.context.extend([*self._prompts, *idle])
        self._prefill = perf_counter() - begin
        rows = [[logits[i]] for i in range(len(self.sequences))]
        guesses: list[list[int]] = [[] for _ in self.sequences]
        while True:
            pieces = self._say(rows, guesses)
            now = perf_counter()
            if not self._first:
                self._first = now - begin
            else:
                self._decode += now - begin
            yield from pieces
            begin = perf_counter()
            if all(s.stopped for s in self.sequences):
                break
            rows, guesses = self._read([*idle])
        if self._keep:
            self._finish(idle)

    def completions(self) -> list[Completion]:
        """What was said, once all is."""
        figures = Statistics(
            prompt_tokens=sum(map(len, self._prompts)), tokens=sum(len(s.tokens) for s in self.sequences),
            first=self._first, prefill=self._prefill, decode=self._decode, cache_bytes=self.context.nbytes,
            drafted=self._drafted, accepted=self._accepted, sequences=len(self.sequences),
        )  # fmt: skip
        return [
            Completion(
                s.text if self._text else None, tuple(s.tokens), s.stopped or "length", len(p), figures
            )
            for s, p in zip(self.sequences, self._prompts)
        ]

    def _say(self, rows: list[list[Array]], guesses: list[list[int]]) -> list[Piece]:
        """The tokens that follow from logits: one, and one more for each guess that was right."""
        pieces: list[Piece] = []
        back = [0] * self.context.batch
        for index, (sequence, given, guessed) in enumerate(zip(self.sequences, rows, guesses)):
            right = 0
            for place, logits in enumerate(given):
                if sequence.stopped:
                    break
                pieces.append(sequence.choose(logits))
                if sequence.stopped or place >= len(guessed) or guessed[place] != sequence.tokens[-1]:
                    break
                right += 1
            back[index] = len(guessed) - right
            if guessed and sequence.draft is not None:
                self._drafted += len(guessed)
                self._accepted += right
                sequence.draft.learn(len(guessed), right)
        if any(back):
            self.context.rollback(back)
        return pieces

    def _read(self, idle: list[list[int]]) -> tuple[list[list[Array]], list[list[int]]]:
        """Read the last token of every sequence that goes on, and what is guessed to follow it."""
        guesses = [self._guess(s) for s in self.sequences]
        part = [[] if s.stopped else [s.tokens[-1], *g] for s, g in zip(self.sequences, guesses, strict=True)]
        if not any(guesses):
            found = self.context.extend([*part, *idle])
            return [[found[i]] for i in range(len(self.sequences))], guesses
        rows = self.context.extend([*part, *idle], every=True)
        return [list(rows[i]) for i in range(len(self.sequences))], guesses

    def _guess(self, sequence: Speaker) -> list[int]:
        if sequence.draft is None or sequence.stopped:
            return []
        capacity = self.context.capacity
        # A guess is read beside the token before it, in one call, and may have to be taken back.
        most = min(sequence.left - 1, capacity.chunk - 1, capacity.widths[EXTEND][1] - 1)
        slack = capacity.slack()
        return sequence.draft.guess(most if slack is None else min(most, slack))

    def _finish(self, idle: list[list[int]]) -> None:
        last = [s.tokens[-1:] for s in self.sequences]
        self.context.extend([*last, *idle])


def _limit(context: Context, length: int, prompt: int, most: int | None, keep: bool) -> tuple[int, Stopped]:
    """How many tokens a sequence may say, and why it ends there. The last one is not read, unless ``keep``."""
    capacity = context.capacity.context
    if capacity is None:
        return most or DEFAULT_TOKENS, "length"
    room = capacity - length - prompt + (0 if keep else 1)
    wanted = most or min(DEFAULT_TOKENS, room)
    if wanted > room or room < 1:
        raise overflow(length, prompt + max(wanted, 1) - (0 if keep else 1), capacity)
    return wanted, "length" if most or room > DEFAULT_TOKENS else "context"
