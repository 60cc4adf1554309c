"""Variants of a kernel: numbers that its builder takes in place of its own, such as the rows of a register block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """Named numbers; what is not named is as in the default."""

    numbers: tuple[tuple[str, int], ...] = ()

    def get(self, name: str, default: int) -> int:
        """The number of that name, or the builder's own."""
        return dict(self.numbers).get(name, default)

    def least(self, default: int) -> int:
        """From how much work on a loop is parallel: ``parallel``; always for ``threads=1``, never for ``threads=0``."""
        threads = self.get("threads", -1)
        return self.get("parallel", default) if threads < 0 else 0 if threads else NEVER

    @property
    def name(self) -> str:
        """How records and reports call it."""
        return ",".join(f"{name}={number}" for name, number in self.numbers) or "default"

    def __str__(self) -> str:
        return self.name


NEVER = 1 << 60
"""More work than there is."""

DEFAULT = Variant()
"""The variant that is built without tuning."""


def variant(**numbers: int) -> Variant:
    """A variant with these numbers."""
    return Variant(tuple(numbers.items()))


def thresholds(work: Any, least: int) -> tuple[Variant, ...]:
    """Other choices than ``least`` of how much ``work`` makes a loop parallel, as :meth:`Variant.least` reads them.

    Where the work is known, the opposite, if the two are near; where it is a symbol, a quarter and four times.
    """
    if not isinstance(work, int):
        return variant(parallel=least // 4), variant(parallel=least * 4)
    if not least // 16 <= work < least * 16:
        return ()
    return (variant(threads=int(work < least)),)
