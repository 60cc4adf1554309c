"""From prompts of any kind to completions: what ``generate`` of a session and of a compiled model do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from planish.errors import UsageError
from planish.runtime.generate.begin import lacking, read_inputs
from planish.runtime.generate.capacity import EXTEND
from planish.runtime.generate.chat import chat_text
from planish.runtime.generate.checks import check_tokens, no_tokenizer
from planish.runtime.generate.completion import Completion, Piece
from planish.runtime.generate.context import Context
from planish.runtime.generate.draft import MOST
from planish.runtime.generate.loop import Options, Run
from planish.runtime.generate.model import Model
from planish.runtime.generate.sampling import Sampling

Listener: TypeAlias = Callable[[Piece], object]
_MOST_DRAFT = 64


class Stream:
    """Pieces of text as they are generated; afterwards :attr:`result` holds the whole."""

    def __init__(
        self, model: Model, batch: Sequence[list[int]], options: Options, context: Context | None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._tokenizer = model.tokenizer
        self._completions: list[Completion] = []
        self.single = False
        # The contexts of all groups are made first, so that what does not fit is refused before anything runs.
        size = min(len(batch), model.capacity.batch[1]) if context is None else context.batch
        self._runs = [
            Run(
                _context(model, size) if context is None else context, batch[at : at + size], options,
                self._tokenizer, first=at, keep=context is not None,
            )
            for at in range(0, len(batch), size)
        ]  # fmt: skip
        if inputs is not None:
            self._runs[0].context.begin(inputs)
        self._pieces = self._all()

    @property
    def result(self) -> Completion | list[Completion]:
        """The completion, or those of a list of prompts; what is left is generated first."""
        for _ in self:
            pass
        return self._completions[0] if self.single else list(self._completions)

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _all(self) -> Iterator[Piece]:
        for run in self._runs:
            yield from run
            self._completions += run.completions()


@dataclass(frozen=True)
class Request:
    """What is asked for, as the arguments of :meth:`planish.runtime.generate.model.Model.generate` say it."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    stop: str | int | Sequence[str | int] = ()
    seed: int | None = None
    speculate: bool | int = False
    chat: bool = False


def generate(
    model: Model,
    prompt: Any,
    request: Request,
    *,
    stream: bool | Listener = False,
    context: Context | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Any:
    """Continue a prompt, or a list of prompts; see :meth:`planish.runtime.generate.model.Model.generate`."""
    batch, single = _batch(model, prompt, request.chat)
    options = _options(model, request)
    if context is not None and (context.model is not model or context.batch != len(batch)):
        raise UsageError(
            "PL878", f"the context holds {context.batch} sequences of {'this' if context.model is model else 'another'}"
            f" model, there are {len(batch)} prompts",
        )  # fmt: skip
    _check_inputs(model, inputs, context, len(batch))
    for index, ids in enumerate(batch):
        if not ids and (context is None or context.logits[index] is None):
            where = None if single else f"prompt {index}"
            raise UsageError("PL872", "the prompt is empty", where=where, hint="give at least one token")
    made = Stream(model, batch, options, context, inputs)
    made.single = single
    if stream is True:
        return made
    if callable(stream):
        for piece in made:
            stream(piece)
    return made.result


def _context(model: Model, size: int) -> Context:
    return Context(model, max(size, model.capacity.batch[0]))


def _check_inputs(
    model: Model, inputs: Mapping[str, Any] | None, context: Context | None, count: int
) -> None:
    """PL881 unless there is what the model reads before tokens, for a context that has not read it; PL878 as there."""
    if inputs is None:
        if context is None and model.capacity.given:
            raise lacking(model)
        return
    if context is not None:
        raise UsageError("PL881", "a context that is given has read its inputs", hint="leave out one of them")
    if count > model.capacity.batch[1]:
        raise UsageError("PL878", f"there are {count} prompts, with inputs at most {model.capacity.batch[1]}")
    read_inputs(model, inputs, max(count, model.capacity.batch[0]))


def _batch(model: Model, prompt: Any, chat: bool) -> tuple[list[list[int]], bool]:
    """The tokens of every prompt, and whether there is only one that is no list."""
    if _is_one(prompt):
        return [_tokens(model, prompt, chat)], True
    if not isinstance(prompt, (Sequence, np.ndarray)):
        raise UsageError(
            "PL872",
            f"a {type(prompt).__name__} is no prompt",
            hint="give text, tokens, messages, or a list of these",
        )
    return [_tokens(model, each, chat) for each in prompt], False


def _is_one(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return True
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1
    return isinstance(prompt, Sequence) and all(isinstance(p, (int, np.integer, Mapping)) for p in prompt)


def _tokens(model: Model, prompt: Any, chat: bool) -> list[int]:
    messages = isinstance(prompt, Sequence) and any(isinstance(p, Mapping) for p in prompt)
    vocabulary = model.capacity.vocabulary
    if not isinstance(prompt, str) and not messages:
        return check_tokens(prompt, vocabulary)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise no_tokenizer("text becomes tokens")
    if not prompt:
        return []
    if messages or chat:
        talk = prompt if messages else [{"role": "user", "content": prompt}]
        ids = tokenizer.encode(chat_text(model, tokenizer, talk), special=False)
    else:
        ids = tokenizer.encode(prompt)
    return check_tokens(ids, vocabulary)


def _options(model: Model, request: Request) -> Options:
    most, stop = request.max_tokens, request.stop
    if most is not None and (type(most) is not int or most < 1):
        raise UsageError("PL824", f"max_tokens={most!r}", hint="give a whole number from 1, or None")
    sampling = Sampling(request.temperature, request.top_k, request.top_p, request.seed)
    stops = [stop] if isinstance(stop, (str, int)) else list(stop or ())
    texts = tuple(s for s in stops if isinstance(s, str))
    tokenizer = model.tokenizer
    if any(not s for s in texts):
        raise UsageError("PL824", "stop has an empty text")
    if texts and tokenizer is None:
        raise no_tokenizer("stop has texts")
    ids = check_tokens([s for s in stops if not isinstance(s, str)], model.capacity.vocabulary)
    ends = tokenizer.stops if tokenizer is not None else frozenset()
    return Options(most, sampling, texts, ends | frozenset(ids), _drafts(model, sampling, request.speculate))


def _drafts(model: Model, sampling: Sampling, speculate: Any) -> int:
    if speculate is False or speculate is None:
        return 0
    most = MOST if speculate is True else speculate
    if type(most) is not int or not 1 <= most <= _MOST_DRAFT:
        raise UsageError(
            "PL824", f"speculate={speculate!r}", hint=f"give True, or a number from 1 to {_MOST_DRAFT}"
        )
    if not sampling.greedy:
        raise UsageError(
            "PL877", "guesses are checked against the best token, so that they need a temperature of 0",
            hint="leave out speculate, or temperature",
        )  # fmt: skip
    if EXTEND not in model.entry_points:
        raise UsageError(
            "PL877", "the model has no entry point that checks several guesses at once",
            hint="compile it with GenerateOptions(extend=True)",
        )  # fmt: skip
    return most
