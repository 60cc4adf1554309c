"""A model that generates: entry points that share states, and all that can be done with them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from planish.runtime.generate.capacity import Capacity
from planish.runtime.manifest import EntryPoint
from planish.runtime.states import States
from planish.runtime.tensors import Array

if TYPE_CHECKING:
    from planish.runtime.generate.api import Listener
    from planish.runtime.generate.context import Context
    from planish.runtime.generate.parallel import ParallelContext
    from planish.runtime.generate.tokenizer import Tokenizer


class Model(ABC):
    """What generation needs of a model, and what it gives it. A loaded artifact is one.

    The entry points are ``prefill`` (many tokens, logits after the last), ``decode`` (one token of every sequence)
    and perhaps ``extend`` (many tokens, logits after each).
    """

    @property
    @abstractmethod
    def entry_points(self) -> Mapping[str, EntryPoint]:
        """The functions of the model by name."""

    @property
    @abstractmethod
    def capacity(self) -> Capacity:
        """How many tokens and sequences it takes; PL870 if it was not made for generation."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """What tells models apart whose states must not be mixed up."""

    @abstractmethod
    def run(
        self, feeds: Mapping[str, Any], entry: str | None = None, *, states: States | None = None
    ) -> dict[str, Array]:
        """Outputs by name of an entry point; ``states`` are used and replaced."""

    @abstractmethod
    def tokenizer_file(self, name: str) -> bytes | None:
        """A file of the tokenizer, such as ``tokenizer.json``; None if there is none."""

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the model has none. PL642 if its files are damaged."""
        from planish.runtime.generate.tokenizer import load_tokenizer

        return load_tokenizer(self)

    def context(self, batch: int | None = None, *, inputs: Mapping[str, Any] | None = None) -> Context:
        """An empty context for ``batch`` sequences side by side; see :class:`Context` for what can be done with it.

        ``inputs`` are what a model with an encoder reads before tokens, arrays by name; they say how many sequences
        there are, if ``batch`` does not. PL881 if it takes none.
        """
        from planish.runtime.generate.begin import read_inputs
        from planish.runtime.generate.context import Context

        if inputs is None:
            return Context(self, batch)
        made = Context(self, read_inputs(self, inputs, batch)[1])
        made.begin(inputs)
        return made

    def restore(self, path: str | os.PathLike[str]) -> Context:
        """The context in a file that :meth:`Context.save` wrote; PL640: damaged, PL641: of another model."""
        from planish.runtime.generate.context import Context

        return Context.restore(self, path)

    def parallel(
        self,
        prefix: Any,
        contexts: Sequence[Any],
        *,
        temperature: float = 0.9,
        share: float = 0.9,
        inputs: Mapping[str, Any] | None = None,
    ) -> ParallelContext:
        """A context in which ``contexts``, texts or lists of tokens, stand side by side behind a common ``prefix``.

        Each is read alone behind the prefix, at the same positions; what the context reads afterwards sees all of them
        (APE, arXiv 2502.05431). Their order says nothing. Scores of their tokens are divided by ``temperature``, and
        ``share`` scales what weight they have together: 0.9 for both are the values of the paper's demonstration; 1
        leaves attention as it is. With one context and 1 for both it is as if all were read one after another.
        ``inputs`` are for models with an encoder.

        Raises before anything runs: PL824 (numbers out of range), PL871 (they do not fit), PL872 (an empty prefix),
        PL873 (no such token), PL874 (no tokenizer), PL878 (the model takes several sequences at once), PL881 (inputs
        that are missing, or too many), PL882 (the model was compiled without ``parallel``).
        """
        from planish.runtime.generate.parallel import parallel_context

        return parallel_context(self, prefix, contexts, temperature, share, inputs)

    def generate(
        self,
        prompt: Any,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | int | Sequence[str | int] = (),
        seed: int | None = None,
        stream: bool | Listener = False,
        speculate: bool | int = False,
        chat: bool = False,
        context: Context | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Continue a prompt; gives a :class:`Completion`, for a list of prompts a list of them.

        ``prompt`` is a text, a list of tokens, a conversation (a list of tables with ``role`` and ``content``), or a
        list of such prompts. ``chat`` takes a text as what a user says. At most ``max_tokens`` tokens are generated
        (None: what fits, at most 512) until a token that ends texts, or a text or token of ``stop``. A
        ``temperature`` of 0 takes the best token; ``top_k``, ``top_p`` and ``seed`` are for draws. ``stream=True``
        gives an iterator of :class:`Piece`, a function is called with each. ``speculate`` guesses tokens from what
        was said before and checks several at once, which changes the speed and not the choice. A ``context`` is
        continued and keeps prompt and answer; otherwise each call begins anew, with ``inputs`` where a model with an
        encoder reads more than tokens: arrays by name, a row for each prompt.

        Raises before anything runs: PL824 (a value out of range), PL870 (not made for generation), PL871 (prompt and
        ``max_tokens`` do not fit), PL872 (empty prompt), PL873 (no such token), PL874 (no tokenizer), PL876 (chat),
        PL877 (cannot speculate), PL878 (numbers of sequences), PL881 (inputs that are missing, or too
        many). PL790 if the model gives no numbers.
        """
        from planish.runtime.generate.api import Request, generate

        request = Request(max_tokens, temperature, top_k, top_p, stop, seed, speculate, chat)
        return generate(self, prompt, request, stream=stream, context=context, inputs=inputs)
