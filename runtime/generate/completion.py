"""What a generation gives: pieces of text as they come, and at the end the whole with its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Stopped: TypeAlias = Literal["token", "text", "length", "context"]
"""Why a text ends: a token that ends texts, a stop of the caller, as many tokens as asked for, a full context."""


@dataclass(frozen=True)
class Piece:
    """One token of the sequence ``index`` and the text that is complete with it; ``stopped`` with the last."""

    index: int
    token: int
    text: str
    stopped: Stopped | None = None


@dataclass(frozen=True)
class Statistics:
    """Figures of one generation, of all sequences that ran side by side: tokens, seconds and bytes.

    ``first`` is the time to the first token: reading the prompt and choosing. Speed of decoding counts the tokens
    after it. ``drafted`` tokens were guessed, of which ``accepted`` were right.
    """

    prompt_tokens: int
    tokens: int
    first: float
    prefill: float
    decode: float
    cache_bytes: int
    drafted: int = 0
    accepted: int = 0
    sequences: int = 1

    @property
    def prefill_speed(self) -> float:
        """Tokens of the prompt by second."""
        return self.prompt_tokens / self.prefill if self.prefill else 0.0

    @property
    def decode_speed(self) -> float:
        """Tokens by second after the first."""
        return max(self.tokens - self.sequences, 0) / self.decode if self.decode else 0.0

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that were right; None if none were drafted."""
        return self.accepted / self.drafted if self.drafted else None

    def as_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        made: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens, "tokens": self.tokens, "time_to_first_token": self.first,
            "prefill_seconds": self.prefill, "prefill_tokens_per_second": self.prefill_speed,
            "decode_seconds": self.decode, "decode_tokens_per_second": self.decode_speed,
            "cache_bytes": self.cache_bytes,
        }  # fmt: skip
        if self.drafted:
            made |= {"drafted": self.drafted, "accepted": self.accepted, "acceptance": self.acceptance}
        return made

    def __str__(self) -> str:
        lines = [
            f"prompt   {self.prompt_tokens:,} tokens, {self.prefill_speed:,.1f} tokens/s",
            f"first    {self.first * 1e3:,.1f} ms to the first token",
            f"decode   {self.tokens:,} tokens, {self.decode_speed:,.1f} tokens/s",
            f"caches   {self.cache_bytes:,} bytes",
        ]
        if self.acceptance is not None:
            lines.append(f"drafts   {self.accepted} of {self.drafted} tokens right ({self.acceptance:.0%})")
        return "\n".join(lines)


@dataclass(frozen=True)
class Completion:
    """A finished text: ``token_ids`` are all that were generated, ``text`` without stops; None without tokenizer."""

    text: str | None
    token_ids: tuple[int, ...]
    stopped: Stopped
    prompt_tokens: int
    statistics: Statistics

    def __str__(self) -> str:
        return self.text if self.text is not None else " ".join(map(str, self.token_ids))

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "text": self.text, "token_ids": list(self.token_ids), "stopped": self.stopped,
            "prompt_tokens": self.prompt_tokens, "statistics": self.statistics.as_json(),
        }  # fmt: skip
