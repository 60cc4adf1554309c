"""Tokens that a caller gives, checked, and errors that several parts of generation raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from planish.errors import UsageError


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


def no_tokenizer(why: str) -> UsageError:
    """The error for text where there is no tokenizer."""
    return UsageError(
        "PL874", f"the model has no tokenizer, and {why}",
        hint="give tokens instead of text",
    )  # fmt: skip


def other_number(given: int, batch: int) -> UsageError:
    """The error for another number of sequences than a context has."""
    return UsageError("PL878", f"{given} sequences were given, the context has {batch}")
