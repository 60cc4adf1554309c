"""Timing of several contestants in turn, in one process, so that noise of the machine hits them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep

PAUSE = 0.02
"""Seconds between contestants, so that spinning worker threads of the last one fall asleep."""

TURN = 0.3
"""Seconds that the calls of a contestant in a round should not exceed."""

LONG = 1.0
"""Seconds from which a call is so long that caches which others have filled make no difference to it."""


@dataclass(frozen=True)
class Contestant:
    """Something to time: its name, one call, the bytes of its weights, and what to know about it.

    ``prepare`` is called before each call and not timed.
    """

    name: str
    call: Callable[[], object]
    bytes: int = 0
    note: str = ""
    prepare: Callable[[], object] | None = None

    def seconds(self) -> float:
        """How long a call takes."""
        if self.prepare is not None:
            self.prepare()
        begin = perf_counter()
        self.call()
        return perf_counter() - begin


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, 10th and 90th percentile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:.2f} ms ({self.low * 1e3:.2f} to {self.high * 1e3:.2f})"


@dataclass(frozen=True)
class Race:
    """The times of all contestants, and of each the ratio to the first, round by round."""

    timings: dict[str, Timing]
    ratios: dict[str, Timing]


def race(contestants: Sequence[Contestant], rounds: int = 15, calls: int = 5) -> Race:
    """Each round times up to ``calls`` calls of every contestant, and takes their median.

    One call before them is not counted, unless it takes long; slow contestants are called less often, but at least
    once.
    """
    found: dict[str, list[float]] = {c.name: [] for c in contestants}
    counts, warm = {}, {}
    for c in contestants:
        taken = c.seconds()
        if taken < LONG:
            taken = c.seconds()
        counts[c.name], warm[c.name] = max(1, min(calls, int(TURN / taken))), taken < LONG
    for index in range(rounds):
        shift = index % len(contestants)
        for c in (*contestants[shift:], *contestants[:shift]):
            sleep(PAUSE)
            if warm[c.name]:
                c.seconds()
            found[c.name].append(statistics.median(c.seconds() for _ in range(counts[c.name])))
    first = found[contestants[0].name]
    ratios = {n: [a / b for a, b in zip(t, first, strict=True)] for n, t in found.items()}
    return Race({n: _timing(t) for n, t in found.items()}, {n: _timing(t) for n, t in ratios.items()})


def _timing(values: Sequence[float]) -> Timing:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Timing(statistics.median(values), tenths[0], tenths[-1])


def read_bandwidth(size: int = 1 << 30) -> float:
    """GB/s at which all threads of torch read memory: the best of several sums over ``size`` bytes."""
    import torch

    data = torch.ones(size // 4)
    best = 0.0
    for _ in range(7):
        begin = perf_counter()
        data.sum()
        best = max(best, size / (perf_counter() - begin) / 1e9)
    return best


def machine() -> str:
    """The processor, its cores and features that matter, in a line."""
    import os
    from pathlib import Path

    text = Path("/proc/cpuinfo").read_text()
    name = next(
        (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line), "unknown"
    )
    flags = [
        f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f" {f} " in f"{text} "
    ]
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {' '.join(flags)}"
