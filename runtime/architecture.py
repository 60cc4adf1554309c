"""Which library holds machine code for a GPU: by the architectures in its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from planish.errors import BackendError

JOINED = "+"
"""Between the architectures in the name of a library, such as ``sm_80+sm_90``."""

_NAME = re.compile(r"sm_([0-9]+)([0-9])(a?)")


def choose_architecture(libraries: Iterable[str], device: str, *, where: str | None = None) -> str:
    """The library for a device such as ``sm_86``, by the names of libraries; PL773 if there is none.

    Code for the device's own architecture is best, then code for a lower one of the same generation (``sm_80``);
    that for ``sm_90a`` runs on ``sm_90`` alone. Of libraries that are equally good, the one for fewest architectures.
    """
    names = sorted(libraries)
    ranked = [
        (max(_rank(a, device) for a in name.split(JOINED)), -name.count(JOINED), name) for name in names
    ]
    fitting = [entry for entry in ranked if entry[0] > 0]
    if fitting:
        return max(fitting, key=lambda entry: entry[:2])[2]
    raise BackendError(
        "PL773", f"the device is {device}; code is there for {', '.join(names)}", where=where,
        hint="compile the program afresh for this device",
    )  # fmt: skip


def _rank(architecture: str, device: str) -> int:
    """How well code for an architecture suits a device; 0 if it does not run there."""
    code, own = _NAME.fullmatch(architecture), _NAME.fullmatch(device)
    if code is None or own is None or code[1] != own[1] or code[2] > own[2]:
        return 0
    if code[3]:
        return 12 if code[2] == own[2] else 0
    return 1 + int(code[2])
