"""Attention over caches: where the queries of a sequence stand, and which rows of the caches they may see.

Keys are counted by position. The positions that are seen lie in a row, and so do their rows of the cache, but that
in a ring they may come to its end and go on at its begin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from planish.backends.tvm.cpu.attention import counted
from planish.backends.tvm.cpu.flat import Flat, larger_of, named, remainder, smaller_of, vectors, whole

FARTHEST = 1 << 30
"""Positions are kept below this number, whatever is given: nothing outside of a cache is read."""


def clamped(value: Any, low: Any, high: Any) -> Any:
    """A number moved between two others."""
    return named(smaller_of(larger_of(value, low), high))


@dataclass(frozen=True)
class Cached:
    """What is given with the caches: positions of first queries, numbers of valid ones, and what is seen of them.

    ``queries`` is the number of queries of each sequence and ``capacity`` the number of rows of the caches.
    """

    start: Flat
    count: Flat
    queries: Any
    capacity: Any
    window: int | None
    ring: bool

    def first(self, b: Any) -> Any:
        """The position of the first query of a sequence."""
        return clamped(self.start.load(b), -FARTHEST, FARTHEST)

    def span(self, b: Any, first: Any) -> tuple[Any, Any]:
        """The positions that any query of a sequence sees, which have all been written: begin and end."""
        written = first + clamped(self.count.load(b), 0, self.queries)
        end = named(larger_of(written if self.ring else smaller_of(written, self.capacity), 0))
        begin: Any = larger_of(end - self.capacity, 0) if self.ring else 0
        if self.window is not None:
            begin = larger_of(begin, first - (self.window - 1))
        return named(smaller_of(begin, end)), end

    def total(self, batch: Any) -> Any:
        """The number of keys that are seen, summed over the sequences."""
        found = vectors(1, 1, "int64")
        found.put(0, whole(0))

        def one(b: Any) -> None:
            begin, end = self.span(b, self.first(b))
            found.put(0, found.get(0) + (end - begin))

        counted(batch, one)
        return found.get(0)

    def segments(self, begin: Any, end: Any, body: Callable[[Any, Any, Any], None]) -> None:
        """``body(first row, end of rows, position less row)`` for positions whose rows lie one behind the other."""
        if not self.ring:
            body(begin, end, 0)
            return
        capacity = larger_of(self.capacity, 1)
        row = named(remainder(begin, capacity))
        head = named(smaller_of(end - begin, capacity - row))

        def segment(i: Any) -> None:
            leads = i == 0
            low = named(tirx.Select(leads, row, whole(0)))
            high = named(tirx.Select(leads, row + head, end - begin - head))
            body(low, high, named(tirx.Select(leads, begin - row, begin + head)))

        counted(2, segment)
