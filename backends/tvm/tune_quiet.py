"""Whether other programs leave the processors alone while something is timed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time

SHARE = 0.15
"""Of one processor: what others may use of those that the timed program needs."""


@dataclass(frozen=True)
class Watch:
    """Counts from when it is made on. ``stat`` has the form of Linux's ``/proc/stat``; without it all is quiet."""

    threads: int
    stat: Path = Path("/proc/stat")
    begin: float = field(default_factory=perf_counter)
    own: float = field(default_factory=process_time)
    busy: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "busy", busy_seconds(self.stat))

    def is_quiet(self) -> bool:
        """True if as many processors as there are threads were free of the work of others, all but a small share."""
        now = busy_seconds(self.stat)
        passed = perf_counter() - self.begin
        if now is None or self.busy is None or passed <= 0:
            return True
        others = max(0.0, now - self.busy - (process_time() - self.own)) / passed
        return (os.cpu_count() or 1) - others >= self.threads - SHARE


def busy_seconds(stat: Path) -> float | None:
    """Seconds that all processors together have worked since the start of the machine; None if that is not told."""
    try:
        fields = stat.read_text().partition("\n")[0].split()
        user, nice, system, _, _, irq, soft, steal = map(int, fields[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / float(os.sysconf("SC_CLK_TCK"))
