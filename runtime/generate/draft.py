"""Drafts for speculative decoding, looked up in what was read and written before."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 3, 1
FIRST, MOST = 4, 8


class Draft:
    """Guesses the next tokens of one sequence: those that followed the last occurrence of its last few tokens.

    The longest run of tokens that occurred before decides. How many tokens are guessed doubles when all were right,
    and halves when none was.
    """

    def __init__(self, most: int = MOST) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._most = most
        self._count = min(FIRST, most)

    def add(self, tokens: Iterable[int]) -> None:
        """More tokens of the sequence, read or written."""
        for token in tokens:
            # A run is entered when a token follows it, so that what is found is never the end itself.
            for size in range(SHORTEST, LONGEST + 1):
                if size <= len(self._tokens):
                    self._after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """At most ``most`` next tokens; none where the end of the sequence occurred nowhere before."""
        count = min(most, self._count)
        for size in range(LONGEST, SHORTEST - 1, -1):
            at = self._after.get(tuple(self._tokens[-size:])) if size <= len(self._tokens) else None
            if at is not None and count > 0:
                return self._tokens[at : at + count]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """How many of the tokens that were guessed were right."""
        if guessed and right == guessed:
            self._count = min(self._count * 2, self._most)
        elif guessed and not right:
            self._count = max(self._count // 2, 1)
