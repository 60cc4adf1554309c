"""The choice of a token from logits: the best one, or a draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.errors import BackendError, UsageError
from planish.runtime.tensors import Array


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the best one for a temperature of 0, else a draw from softmax(logits / temperature).

    ``top_k`` keeps the k most likely tokens, ``top_p`` the fewest that together have at least this probability (of
    what ``top_k`` left). Equal ``seed`` gives equal draws; None draws anew every time. PL824: a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _refused("temperature", self.temperature, "a number from 0, which takes the best token")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise _refused("top_k", self.top_k, "a whole number from 1, or None")
        if self.top_p is not None and (not _number(self.top_p) or not 0 < self.top_p <= 1):
            raise _refused("top_p", self.top_p, "a number above 0, at most 1, or None")
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise _refused("seed", self.seed, "a whole number from 0, or None")

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken, without chance."""
        return self.temperature == 0

    def sampler(self, index: int = 0) -> Sampler:
        """What chooses for the sequence of this index; its draws do not depend on other sequences."""
        return Sampler(self, index)


class Sampler:
    """Chooses the tokens of one sequence, one after the other."""

    def __init__(self, sampling: Sampling, index: int = 0) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(None if sampling.seed is None else [sampling.seed, index])

    def choose(self, logits: Array) -> int:
        """A token from logits ``f32[V]``; the first of equals. PL790 if they are not numbers."""
        best = int(logits.argmax())  # the first NaN counts as the largest
        if not np.isfinite(logits[best]):
            raise BackendError(
                "PL790", f"the model gives {float(logits[best])} as the largest logit",
                hint="its weights or caches hold NaN or infinity: look for the first layer that differs",
            )  # fmt: skip
        if self._sampling.greedy:
            return best
        tokens, shares = _shares(logits, self._sampling)
        total = np.cumsum(shares)
        place = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return int(tokens[min(place, len(tokens) - 1)])


def _shares(logits: Array, sampling: Sampling) -> tuple[Array, Array]:
    """The tokens that may be drawn, and numbers in proportion to their probabilities."""
    if sampling.top_k is not None and sampling.top_k < len(logits):
        # The k largest, and of those that equal the smallest of them the first.
        least = np.partition(logits, -sampling.top_k)[-sampling.top_k]
        above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
        tokens = np.sort(np.concatenate([above, equal[: sampling.top_k - len(above)]]))
    else:
        tokens = np.arange(len(logits))
    scaled = logits[tokens].astype(np.float64)
    shares = np.exp((scaled - scaled.max()) / sampling.temperature)
    if sampling.top_p is None or sampling.top_p == 1:
        return tokens, shares
    wanted = sampling.top_p * shares.sum()
    # All below this share together are less than what may be left out.
    likely = np.flatnonzero(shares * len(shares) >= shares.sum() - wanted)
    order = likely[np.argsort(-shares[likely], kind="stable")]
    count = int(np.searchsorted(np.cumsum(shares[order]), wanted)) + 1
    kept = np.sort(order[:count])
    return tokens[kept], shares[kept]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)


def _refused(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError("PL824", f"{name}={value!r}", hint=f"give {wanted}")
