"""What this machine's processor can do, and how much of it this process may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from planish.errors import BackendError
from planish.runtime.native_code import LibraryFile

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"
_QUOTA = "/sys/fs/cgroup/cpu.max"


@cache
def features() -> frozenset[str]:
    """Features of this processor as Linux lists them; empty where it does not."""
    text = _read("/proc/cpuinfo") or ""
    line = next((part for part in text.splitlines() if part.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def system() -> tuple[str, str]:
    """Operating system and processor, such as ``("linux", "x86_64")``."""
    machine = platform.machine().lower()
    return platform.system().lower(), {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def usable_processors() -> tuple[int, ...]:
    """The numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Physical cores that this process may use: by its affinity, and not above the quota of its control group."""
    cores = {
        (_read(_TOPOLOGY.format(n, "physical_package_id")), _read(_TOPOLOGY.format(n, "core_id")) or f"alone {n}")
        for n in usable_processors()
    }  # fmt: skip
    quota = (_read(_QUOTA) or "max").split()
    if len(quota) == 2 and all(part.isdigit() for part in quota) and int(quota[1]):
        return max(1, min(len(cores), -(-int(quota[0]) // int(quota[1]))))
    return max(1, len(cores))


def choose_library(
    libraries: Mapping[str, LibraryFile], have: frozenset[str] | None = None, *, where: str | None = None
) -> str:
    """The library with the most needs that this processor (or one with the features ``have``) meets; PL773 if none."""
    present = features() if have is None else have
    fitting = [name for name, library in libraries.items() if set(library.needs) <= present]
    if fitting:
        return min(fitting, key=lambda name: (-len(libraries[name].needs), name))
    missing = [f"{name} needs {' '.join(sorted(set(f.needs) - present))}" for name, f in libraries.items()]
    raise BackendError(
        "PL773", f"this processor lacks what the libraries need: {'; '.join(missing)}", where=where,
        hint="compile the program afresh on this machine, or with isa=generic",
    )  # fmt: skip


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
